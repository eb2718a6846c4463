//! `mallard demo`: the walk of the original demonstration, each step shown and verified, and what it measured.

mod report;
mod servers;
mod steps;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use crate::{error::Result, location::Location};
use servers::Servers;
use steps::Walk;

#[derive(Args)]
pub(super) struct Arguments {
    /// Rows of the table flights
    #[arg(long, default_value_t = 24_000_000, env = "MALLARD_DEMO_ROWS", conflicts_with = "parquet")]
    rows: u64,
    /// Use the rows of this Parquet file instead of generated ones
    #[arg(long, value_name = "FILE")]
    parquet: Option<PathBuf>,
    /// First server; without it two servers are started in this process, in memory
    #[arg(long, env = "MALLARD_DEMO_SERVER1", requires = "server2", value_name = "URI")]
    server1: Option<Location>,
    /// Second server, which must reach the first under the same URI
    #[arg(long, env = "MALLARD_DEMO_SERVER2", requires = "server1", value_name = "URI")]
    server2: Option<Location>,
    /// How long to wait for running servers to be healthy
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Leave the demo's tables and exchanger where they are
    #[arg(long)]
    keep: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the report as one page of HTML with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write demo.json, demo.md and demo.html into this directory
    #[arg(long, env = "MALLARD_DEMO_REPORT", value_name = "DIRECTORY")]
    report: Option<PathBuf>,
    #[command(flatten)]
    login: super::connect::LoginArguments,
}

/// Exit code 0 only if everything was verified.
pub(super) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let servers = match (&arguments.server1, &arguments.server2) {
        (Some(first), Some(second)) => {
            let (login, trust) = (arguments.login.login()?, arguments.login.trust());
            Servers::running([first.clone(), second.clone()], login, trust, arguments.wait).await?
        }
        _ => Servers::in_process().await?,
    };
    let mut walk = Walk::new(&servers, arguments.rows, arguments.parquet.clone()).await?;
    let walked = walk.run().await;
    if !arguments.keep {
        walk.clean_up().await;
    }
    let mut report = walk.report();
    drop(walk);
    servers.stop().await?;
    if let Err(error) = &walked {
        report.failed(error);
    }
    print!("\n{}", report.text());
    let within = |name: &str| arguments.report.as_ref().map(|directory| directory.join(name));
    write([arguments.json, within("demo.json")], || Ok(report.json()))?;
    write([arguments.markdown, within("demo.md")], || Ok(report.markdown()))?;
    write([arguments.html, within("demo.html")], || report.html())?;
    walked?;
    Ok(if report.verified() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(paths: [Option<PathBuf>; 2], text: impl Fn() -> Result<String>) -> Result<()> {
    for path in paths.into_iter().flatten() {
        std::fs::write(&path, text()?).map_err(|error| super::files::io(&path, &error))?;
    }
    Ok(())
}
