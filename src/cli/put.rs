//! `mallard put`

use std::path::PathBuf;

use clap::Args;

use super::{connect::LoginArguments, files, progress::Meter};
use crate::{engine::TableName, error::Result, location::Location};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Table, dotted parts allowed; created if it is missing, else appended to
    table: String,
    /// Parquet, CSV, JSON or Arrow IPC file, told by its ending
    file: PathBuf,
    /// Exchangers of the server that the rows pass before they are stored, such as 'a | b {"key": 1}'
    #[arg(long, value_name = "CHAIN")]
    through: Option<String>,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let table = TableName::parse(&arguments.table)?;
    let local = files::local().await?;
    let rows = files::read(&local, &arguments.file).await?;
    let client = arguments.login.connect(&arguments.uri).await?.through(arguments.through.as_deref())?;
    let meter = Meter::start("put", None);
    let stored = client.put(table.parts(), meter.watch(rows)).await?;
    let measured = meter.finish();
    eprintln!("{measured}");
    println!("{} rows stored in {}", stored.rows, arguments.table);
    Ok(())
}
