//! The command line: data on standard output, everything else on standard error.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 3 not reachable or not ready, 4 not logged in or not
//! allowed, 5 not found, 65 the database or its log is corrupt, 70 the database became unusable (restart), 75 another
//! process has the database, 130 interrupted.

mod actions;
mod backup;
mod bench;
mod config;
mod connect;
mod demo;
mod doctor;
mod exchange;
mod files;
mod health;
mod moves;
mod progress;
mod put;
mod query;
mod report;
mod running;
mod serve;
mod shell;
mod tables;
mod transfer;
mod user;
mod users_file;
mod workload;

use std::process::ExitCode;

pub use serve::serve;

use clap::{CommandFactory, Parser, Subcommand};
use tonic::Code;
use tracing::Instrument;

use crate::{
    config::Traces,
    error::{Error, Result},
    printable::escaped_lines,
    telemetry::Telemetry,
};

/// Moves data between DuckDB databases over Apache Arrow Flight.
#[derive(Parser)]
#[command(
    name = "mallard",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong use or configuration, \
3 not reachable or not ready, 4 not logged in or not allowed, 5 not found, 65 the database or its log is corrupt, \
70 the database became unusable and needs a restart, 75 another process has the database, 130 interrupted."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a DuckDB database.
    Serve(serve::Arguments),
    /// Run one SQL statement and show or save its rows.
    Query(query::Arguments),
    /// A shell for SQL, in one session: a prompt, statements from standard input, or from --command.
    Sql(shell::Arguments),
    /// List the tables and views of a server, with their columns.
    Tables(tables::Arguments),
    /// Store a file (Parquet, CSV, JSON, Arrow) in a table, all of it or nothing.
    Put(put::Arguments),
    /// Send rows through an exchanger and show or save what comes back.
    Exchange(Box<exchange::Arguments>),
    /// List a server's exchangers, and what each has done.
    Exchangers(running::ListArguments),
    /// Make one server pull a table or query from another, verified by count and hash.
    Transfer(transfer::Arguments),
    /// List a server's actions, or run one.
    Actions(actions::Arguments),
    /// List the statements that run on a server: all for admins, your own for others.
    Queries(running::ListArguments),
    /// End a statement, or all of a user.
    Kill(running::KillArguments),
    /// List the users that have called within a token's life.
    Sessions(running::ListArguments),
    /// Ask a server whether it serves (gRPC health); exit code 0 or 3.
    Health(health::Arguments),
    /// Make a server write a verified copy of its database while it serves.
    Backup(backup::BackupArguments),
    /// Put a backup in place, verified first; no server may have the database.
    Restore(backup::RestoreArguments),
    /// Say what a server would meet here: limits, volumes, database; exit code 1 where something is broken.
    Doctor(doctor::Arguments),
    /// Move and verify 24 million rows between two servers, and measure it.
    Demo(demo::Arguments),
    /// Measure your own servers: throughput of every operation and latencies of small queries, all of it verified.
    #[command(override_usage = "mallard bench [OPTIONS] <URI> [URI2]")]
    Bench(bench::Arguments),
    /// Show or check the configuration.
    Config(config::Arguments),
    /// Manage users.
    User(user::Arguments),
    /// Print shell completions.
    Completions { shell: clap_complete::Shell },
}

impl Command {
    /// What the trace of it is called.
    fn name(&self) -> &'static str {
        match self {
            Self::Query(_) => "mallard query",
            Self::Sql(_) => "mallard sql",
            Self::Tables(_) => "mallard tables",
            Self::Put(_) => "mallard put",
            Self::Exchange(_) => "mallard exchange",
            Self::Exchangers(_) => "mallard exchangers",
            Self::Transfer(_) => "mallard transfer",
            Self::Actions(_) => "mallard actions",
            Self::Queries(_) => "mallard queries",
            Self::Kill(_) => "mallard kill",
            Self::Sessions(_) => "mallard sessions",
            Self::Health(_) => "mallard health",
            Self::Backup(_) => "mallard backup",
            Self::Restore(_) => "mallard restore",
            Self::Doctor(_) => "mallard doctor",
            Self::Demo(_) => "mallard demo",
            Self::Bench(_) => "mallard bench",
            _ => "mallard",
        }
    }
}

/// Parses, runs, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Only OTEL_ variables ask a command for spans; a server's configuration does, too, and logs.
    let telemetry = match arguments.command {
        Command::Serve(_) | Command::Config(_) | Command::Completions { .. } => None,
        _ => match Telemetry::start(None, &Traces::default()) {
            Ok(telemetry) => Some(telemetry),
            Err(mistake) => {
                eprintln!("error: {mistake}");
                return ExitCode::from(2);
            }
        },
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        // DuckDB's workers have the other half. With one more on two cores, a GET of 480 MB made 4,000 context switches
        // in place of 1,400 (bench/PROFILE.md).
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        runtime.worker_threads((cores / 2).max(1));
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(dispatch(arguments.command));
    drop(telemetry);
    // A silent connection's task is not waited for.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    code
}

async fn dispatch(command: Command) -> ExitCode {
    let span = tracing::info_span!("mallard", otel.name = command.name());
    match command {
        // These have an end of their own.
        Command::Serve(arguments) => serve::run(arguments).await,
        Command::Config(arguments) => config::run(&arguments),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "mallard", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Bench(arguments) => finish(bench::run(arguments).instrument(span).await),
        Command::Sql(arguments) => finish(shell::run(arguments).instrument(span).await),
        command => tokio::select! {
            outcome = run(command).instrument(span) => finish(outcome),
            _ = tokio::signal::ctrl_c() => {
                // The command is dropped, and its cancellation has this long to reach the server.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                eprintln!("interrupted");
                ExitCode::from(INTERRUPTED)
            }
        },
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Query(arguments) => query::run(arguments).await.map(done),
        Command::Tables(arguments) => tables::run(arguments).await.map(done),
        Command::Put(arguments) => put::run(arguments).await.map(done),
        Command::Exchange(arguments) => exchange::run(*arguments).await.map(done),
        Command::Exchangers(arguments) => exchange::list(arguments).await.map(done),
        Command::Transfer(arguments) => transfer::run(arguments).await.map(done),
        Command::Actions(arguments) => actions::run(arguments).await.map(done),
        Command::Queries(arguments) => running::queries(arguments).await.map(done),
        Command::Kill(arguments) => running::kill(arguments).await.map(done),
        Command::Sessions(arguments) => running::sessions(arguments).await.map(done),
        Command::User(arguments) => user::run(&arguments).map(done),
        Command::Health(arguments) => health::run(&arguments).await,
        Command::Backup(arguments) => backup::back_up(arguments).await.map(done),
        Command::Restore(arguments) => backup::restore(arguments).await.map(done),
        Command::Doctor(arguments) => doctor::run(arguments).await,
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Serve(_) | Command::Bench(_) | Command::Sql(_) | Command::Config(_) | Command::Completions { .. } => {
            unreachable!("handled by dispatch")
        }
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

fn finish(outcome: Result<ExitCode>) -> ExitCode {
    let error = match outcome {
        Ok(code) => return code,
        Err(error) => error,
    };
    // A server's words may hold anything.
    eprintln!("error: {}", escaped_lines(&error.to_string()));
    if let Some(next) = what_next(&error) {
        eprintln!("  {next}");
    }
    ExitCode::from(exit_code(&error))
}

const DONE: u8 = 0;
const FAILED: u8 = 1;
const WRONG_USE: u8 = 2;
/// As sysexits.h has them: EX_DATAERR, EX_SOFTWARE, EX_TEMPFAIL.
const CORRUPT: u8 = 65;
const UNUSABLE: u8 = 70;
const IN_USE: u8 = 75;
/// 128 and SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Corrupt(_) => return CORRUPT,
        Error::InUse(_) => return IN_USE,
        _ => {}
    }
    match error.code() {
        Code::Unavailable | Code::DeadlineExceeded => 3,
        Code::Unauthenticated | Code::PermissionDenied => 4,
        Code::NotFound => 5,
        _ => FAILED,
    }
}

fn is_of_another_ca(error: &Error) -> bool {
    let message = error.to_string();
    // The second where the CAs have the same name.
    ["invalid peer certificate: UnknownIssuer", "invalid peer certificate: BadSignature"]
        .iter()
        .any(|why| message.contains(why))
}

fn what_next(error: &Error) -> Option<&'static str> {
    match error.code() {
        // That is how HTTP/2 reads an alert of TLS.
        Code::Internal if error.to_string().contains("frame with invalid size") => {
            Some("the server may speak TLS: grpc+tls://HOST:PORT")
        }
        Code::Unavailable if is_of_another_ca(error) => {
            Some("trust the CA of its certificate with --tls-ca FILE, or with tls.peer_ca where a server pulls")
        }
        Code::Unavailable => Some("is the server running there? `mallard health URI` asks it"),
        Code::Unauthenticated => {
            Some("log in with --user NAME and the password in MALLARD_PASSWORD, --password-file, or at the prompt")
        }
        Code::ResourceExhausted => Some("the server's limits are in its configuration: `mallard config show`"),
        _ => None,
    }
}
