//! `mallard config`

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::serve::ConfigArguments;
use crate::{
    auth::Authenticator,
    config::Config,
    engine::Engine,
    telemetry::{Metrics, logs},
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the effective configuration with the source of each value; secrets are redacted
    Show(ConfigArguments),
    /// Report every mistake; exit code 0 if there is none, else 2
    Check(ConfigArguments),
    /// Print the defaults as a TOML file that documents every key
    Default,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let (loaded, show) = match &arguments.command {
        Command::Default => {
            print!("{}", Config::default().to_toml());
            return ExitCode::SUCCESS;
        }
        Command::Show(sources) => (sources.load(), true),
        Command::Check(sources) => (sources.load(), false),
    };
    match loaded {
        Ok(loaded) if show => print!("{}", loaded.show()),
        Ok(loaded) => {
            let users = Authenticator::new(&loaded.config, Metrics::unregistered()).map_err(|error| error.to_string());
            let mut mistakes: Vec<String> =
                [users.err(), logs::filter(&loaded.config.log).err()].into_iter().flatten().collect();
            match Engine::examine_files(&loaded.config) {
                Ok(files) => mistakes.extend(files.iter().map(ToString::to_string)),
                Err(error) => mistakes.push(error.to_string()),
            }
            if !mistakes.is_empty() {
                eprintln!("{}", mistakes.join("\n"));
                return ExitCode::from(2);
            }
            println!("the configuration is valid");
        }
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
