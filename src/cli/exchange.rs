//! `mallard exchange`

use std::path::PathBuf;

use clap::Args;

use super::{
    connect::LoginArguments,
    files::{self, OutputArguments},
};
use crate::{access::Rights, error::Result, location::Location};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Exchanger, as `mallard actions URI list_exchanges` lists them
    name: String,
    /// Send the rows of this file (Parquet, CSV, JSON or Arrow IPC, told by its ending)
    #[arg(long = "in", value_name = "FILE", required_unless_present = "query", conflicts_with = "query")]
    input: Option<PathBuf>,
    /// Send the rows of this SQL, run here in an embedded DuckDB
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let local = files::local().await?;
    let input = match (&arguments.input, &arguments.query) {
        (Some(file), _) => files::read(&local, file).await?,
        (None, query) => local.query(&Rights::all("local"), query.as_deref().unwrap_or_default()).await?,
    };
    let client = arguments.login.connect(&arguments.uri).await?;
    let output = client.exchange(&arguments.name, input).await?;
    arguments.output.write("exchange", output).await
}
