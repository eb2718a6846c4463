//! `mallard exchange` and `mallard exchangers`

use std::path::PathBuf;

use clap::Args;

use super::{
    connect::LoginArguments,
    files::{self, OutputArguments},
    running::{ListArguments, ask, show},
};
use crate::{access::Rights, error::Result, location::Location};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Exchanger as `mallard exchangers` lists them: NAME or NAME@VERSION, with parameters as NAME {"key": value}; or a chain of
    /// them, such as 'a | b'
    #[arg(value_name = "CHAIN")]
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

pub(super) async fn list(arguments: ListArguments) -> Result<()> {
    let listed = ask(&arguments.login, &arguments.uri, "list_exchanges", &serde_json::Value::Null).await?;
    let columns = [
        "name",
        "version",
        "kind",
        "owner",
        "streams",
        "uses",
        "running",
        "failed",
        "rows_in",
        "rows_out",
        "description",
    ];
    show(&listed, &columns, arguments.json);
    Ok(())
}
