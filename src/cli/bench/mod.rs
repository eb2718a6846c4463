//! `mallard bench`: measures servers that run already, the way bench/run.py measures its own.

mod agent;
mod measure;
mod report;
mod small;
mod usage;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    connect::{self, LoginArguments},
    workload::Workload,
};
use crate::{
    error::{Error, Result},
    location::Location,
};
use measure::{Bench, Plan};

const CANCELLATION: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Arguments {
    /// Server to measure, such as grpc://127.0.0.1:8815; a table of the benchmark's own is made there, and dropped again
    #[arg(required_unless_present = "stdin", value_name = "URI")]
    uri: Option<Location>,
    /// Second server, for transfers; it must reach the first under the same URI
    #[arg(value_name = "URI2")]
    uri2: Option<Location>,
    /// Which rows
    #[arg(long, value_enum, default_value_t)]
    workload: Workload,
    /// How many of them; by default 24 million flights or 6 million lineitem
    #[arg(long)]
    rows: Option<u64>,
    /// Measured rounds, after one that warms up and verifies what reaches the client
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only these operations; by default all that the given servers allow
    #[arg(long = "operation", value_enum, value_delimiter = ',', value_name = "OPERATION,..")]
    operations: Vec<Operation>,
    /// Clients that ask small queries at once, after one alone
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// How long small queries are asked, alone and at once
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// A module that appends the column `processed`, for the operation exchange-wasm
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Connections that GET and TRANSFER pulled read one result over
    #[arg(long, default_value_t = 1, value_parser = connect::endpoints(), value_name = "COUNT")]
    endpoints: u16,
    /// Write bench.json, bench.md and bench.html into this directory
    #[arg(long, value_name = "DIRECTORY")]
    report: Option<PathBuf>,
    /// What standard output gets
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Take operations from standard input, one JSON object a line, and answer each with a line of JSON: the interface
    /// of bench/run.py
    #[arg(long, hide_short_help = true, conflicts_with_all = ["uri", "report", "operations", "format"])]
    stdin: bool,
    #[command(flatten)]
    login: LoginArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Operation {
    /// Server to client, decoded and dropped
    Get,
    /// Client to server, a new table
    Put,
    /// Server to client to second server
    Relay,
    /// The second server pulls from the first
    Pull,
    /// Client to server and back, through the exchanger `processed`
    Exchange,
    /// The same through an SQL exchanger, which is registered for it; only where it is asked for
    ExchangeSql,
    /// The same through the WebAssembly module of --module; only where it is asked for
    ExchangeWasm,
    /// One-row queries: latencies, and queries a second
    Small,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
enum Format {
    #[default]
    Text,
    Json,
}

/// Exit code 0 only if everything was verified, 130 after Ctrl-C. It has an end of its own, because its tables are dropped
/// after Ctrl-C, too.
pub(super) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let (login, trust) = (arguments.login.login()?, arguments.login.trust());
    let Some(first) = arguments.uri.clone() else {
        return match unless_interrupted(agent::run(login, trust)).await {
            Some(ended) => ended.map(|()| ExitCode::SUCCESS),
            None => Ok(interrupted()),
        };
    };
    let plan = Plan {
        first,
        second: arguments.uri2.clone(),
        login,
        trust,
        workload: arguments.workload,
        rows: arguments.rows.unwrap_or(arguments.workload.usual_rows()),
        rounds: arguments.rounds,
        operations: operations(&arguments)?,
        module: arguments.module.clone(),
        clients: arguments.clients.into(),
        endpoints: arguments.endpoints.into(),
        patience: Duration::try_from_secs_f64(arguments.seconds)
            .map_err(|error| Error::invalid(format!("--seconds: {error}")))?,
    };
    let Some(bench) = unless_interrupted(Bench::open(plan)).await else { return Ok(interrupted()) };
    let mut bench = bench?;
    let measured = unless_interrupted(bench.run()).await;
    if measured.is_none() {
        // What was running is dropped, and its cancellation has this long to reach the server before its table is dropped.
        tokio::time::sleep(CANCELLATION).await;
    }
    // A second Ctrl-C leaves the tables where they are.
    let cleaned = unless_interrupted(bench.clean_up()).await;
    let Some(measured) = measured else { return Ok(interrupted()) };
    let report = bench.report(&measured);
    match arguments.format {
        Format::Text => print!("{}", report.text()),
        Format::Json => print!("{}", report.json()),
    }
    if let Some(directory) = &arguments.report {
        report.write(directory)?;
    }
    measured?;
    match cleaned {
        Some(cleaned) => cleaned?,
        None => return Ok(interrupted()),
    }
    Ok(if report.verified() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was asked for, or all that the servers allow, in the order in which they are measured.
fn operations(arguments: &Arguments) -> Result<Vec<Operation>> {
    let asked = &arguments.operations;
    let needs_second = |operation: &Operation| matches!(operation, Operation::Relay | Operation::Pull);
    if arguments.uri2.is_none() && asked.iter().any(needs_second) {
        return Err(Error::invalid("a transfer needs a second server: add URI2"));
    }
    if asked.contains(&Operation::ExchangeWasm) && arguments.module.is_none() {
        return Err(Error::invalid("the operation exchange-wasm needs a module: add --module FILE"));
    }
    let extra = |operation: &Operation| matches!(operation, Operation::ExchangeSql | Operation::ExchangeWasm);
    let possible = |operation: &Operation| (arguments.uri2.is_some() || !needs_second(operation)) && !extra(operation);
    let all = Operation::value_variants().iter().copied();
    Ok(all.filter(|operation| if asked.is_empty() { possible(operation) } else { asked.contains(operation) }).collect())
}

async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        _ = tokio::signal::ctrl_c() => None,
    }
}

fn interrupted() -> ExitCode {
    eprintln!("interrupted");
    ExitCode::from(130)
}
