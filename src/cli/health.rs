//! `mallard health`

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::connect::TlsArguments;
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
    /// Ask instead whether calls without a login are refused; exit code 0 only if they are
    #[arg(long)]
    denied: bool,
    #[command(flatten)]
    tls: TlsArguments,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let patience = Duration::try_from_secs_f64(arguments.timeout)
        .map_err(|error| Error::invalid(format!("--timeout: {error}")))?;
    let asked = tokio::time::timeout(patience, async {
        let client = Client::connect_trusting(&arguments.uri, None, &arguments.tls.trust()).await?;
        if arguments.denied { is_denied(&client).await } else { client.healthy().await }
    });
    let well = asked.await.map_err(|_| Error::Unreachable(format!("{} did not answer in time", arguments.uri)))??;
    let (answer, code) = match (arguments.denied, well) {
        (false, true) => ("SERVING", 0),
        (false, false) => ("NOT_SERVING", 3),
        (true, true) => ("DENIED", 0),
        (true, false) => ("ALLOWED", 1),
    };
    println!("{answer}");
    Ok(ExitCode::from(code))
}

/// Whether a statement without a login is refused for just that.
async fn is_denied(client: &Client) -> Result<bool> {
    match client.query("SELECT 1").await {
        Ok(_) => Ok(false),
        Err(Error::Unauthenticated(_)) => Ok(true),
        Err(other) => Err(other),
    }
}
