//! `mallard query`

use clap::Args;

use super::{connect::LoginArguments, files::OutputArguments};
use crate::{error::Result, location::Location};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// One SQL statement
    sql: String,
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.login.connect(&arguments.uri).await?;
    let rows = client.query(&arguments.sql).await?;
    arguments.output.write("query", rows).await
}
