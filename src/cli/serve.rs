//! `mallard serve`

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{DONE, FAILED, UNUSABLE, WRONG_USE, exit_code};
use crate::{
    config::{self, Config, Loaded, Mistakes},
    machine,
    server::Server,
    telemetry::Telemetry,
};

/// Once the database is unusable: what calls that run may take to end by themselves, each with its own error.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
}

/// The sources of a configuration: a file, the environment, and these flags.
#[derive(Args)]
pub(super) struct ConfigArguments {
    /// TOML file; config/mallard.toml documents every key
    #[arg(long, env = "MALLARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve: grpc://HOST:PORT, grpc+tls://HOST:PORT or grpc+unix:///path (server.location)
    #[arg(long, value_name = "URI")]
    location: Option<String>,
    /// Database file, or :memory: (database.path)
    #[arg(long, value_name = "PATH")]
    db: Option<String>,
    /// Address of /livez, /readyz and /metrics, or off (admin.listen)
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
    /// Require a login (auth.enabled)
    #[arg(long)]
    auth: bool,
}

impl ConfigArguments {
    pub(super) fn load(&self) -> Result<Loaded, Mistakes> {
        let texts = [("server.location", &self.location), ("database.path", &self.db), ("admin.listen", &self.admin)];
        let mut flags: Vec<(&str, String)> =
            texts.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
        if self.auth {
            flags.push(("auth.enabled", "true".into()));
        }
        // A variable that is not UTF-8 cannot be a value of ours.
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        config::load(self.config.as_deref(), environment, &flags)
    }
}

pub(super) async fn run(arguments: Arguments) -> ExitCode {
    match arguments.config.load() {
        Ok(loaded) => ExitCode::from(serve(loaded.config).await),
        Err(mistakes) => {
            eprintln!("{mistakes}");
            ExitCode::from(WRONG_USE)
        }
    }
}

/// Serves until a signal or until the database is unusable; the exit code.
pub async fn serve(config: Config) -> u8 {
    let _telemetry = match Telemetry::start(Some(&config.log), &config.traces) {
        Ok(telemetry) => telemetry,
        Err(mistake) => {
            eprintln!("{mistake}");
            return WRONG_USE;
        }
    };
    machine::allow_open_files();
    if let Some(bytes) = machine::process_memory(&config)
        && let Err(error) = machine::bound_memory(bytes)
    {
        eprintln!("error: {error}");
        return FAILED;
    }
    let (mut stop, mut hangup) = match Stop::listen().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?))) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("error: cannot listen for signals: {error}");
            return FAILED;
        }
    };
    // A file that may not grow (RLIMIT_FSIZE) fails the write, and does not end the process.
    let _too_large = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()));
    let server = tokio::select! {
        started = Server::start(config) => match started {
            Ok(server) => server,
            Err(error) => {
                eprintln!("error: {error}");
                return exit_code(&error);
            }
        },
        // Nothing was acknowledged yet.
        () = stop.signal() => return DONE,
    };
    let mut broken = std::pin::pin!(server.broken());
    let unusable = loop {
        tokio::select! {
            () = stop.signal() => break false,
            true = &mut broken => break true,
            _ = hangup.recv() => server.reload(),
        }
    };
    let stopped = match unusable {
        true => server.stop(tokio::time::sleep(LAST_WORDS)).await,
        false => server.stop(stop.signal()).await,
    };
    match stopped {
        Ok(()) if unusable => {
            eprintln!("error: the database is unusable; the next start recovers it from its log");
            UNUSABLE
        }
        Ok(()) => DONE,
        Err(error) => {
            eprintln!("error: {error}");
            FAILED
        }
    }
}

/// SIGTERM and SIGINT.
struct Stop(Signal, Signal);

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn signal(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}
