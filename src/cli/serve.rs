//! `mallard serve`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::{self, Loaded, Mistakes},
    server::Server,
    telemetry::Telemetry,
};

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

/// Many systems begin with 1,024 file descriptors and allow far more; each connection needs one.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Without it limits.connections may be more than there are, and then connections wait to be accepted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

pub(super) async fn run(arguments: Arguments) -> ExitCode {
    allow_descriptors();
    let config = match arguments.config.load() {
        Ok(loaded) => loaded.config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(2);
        }
    };
    let _telemetry = match Telemetry::start(Some(&config.log), &config.traces) {
        Ok(telemetry) => telemetry,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(2);
        }
    };
    let (mut stop, mut hangup) = match Stop::listen().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?))) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("error: cannot listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let server = tokio::select! {
        started = Server::start(config) => match started {
            Ok(server) => server,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        },
        // Nothing was acknowledged yet.
        () = stop.signal() => return ExitCode::SUCCESS,
    };
    loop {
        tokio::select! {
            () = stop.signal() => break,
            _ = hangup.recv() => server.reload(),
        }
    }
    match server.stop(stop.signal()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
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
