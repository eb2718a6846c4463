//! `mallard health`

use std::{process::ExitCode, time::Duration};

use clap::Args;

use crate::{
    client::Client,
    error::{Error, Result},
    location::Location,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server to ask
    #[arg(default_value = "grpc://127.0.0.1:8815", env = "MALLARD_URI")]
    uri: Location,
    /// Seconds to wait for an answer
    #[arg(long, default_value_t = 5.0)]
    timeout: f64,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let patience = Duration::try_from_secs_f64(arguments.timeout)
        .map_err(|error| Error::invalid(format!("--timeout: {error}")))?;
    let asked = tokio::time::timeout(patience, async { Client::connect(&arguments.uri, None).await?.healthy().await });
    let serving =
        asked.await.map_err(|_| Error::Unreachable(format!("{} did not answer in time", arguments.uri)))??;
    println!("{}", if serving { "SERVING" } else { "NOT_SERVING" });
    Ok(ExitCode::from(if serving { 0 } else { 3 }))
}
