//! `mallard query`

use clap::Args;

use super::{
    connect::{self, LoginArguments},
    files::OutputArguments,
};
use crate::{error::Result, location::Location};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// One SQL statement
    sql: String,
    /// Read over so many connections at once; rows then come in no order
    #[arg(long, default_value_t = 1, value_parser = connect::endpoints(), value_name = "COUNT")]
    endpoints: u16,
    /// Exchangers of the server that the rows pass on their way out, such as 'a | b {"key": 1}'
    #[arg(long, value_name = "CHAIN", conflicts_with = "endpoints")]
    through: Option<String>,
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.login.connect(&arguments.uri).await?.through(arguments.through.as_deref())?;
    let rows = client.query_endpoints(&arguments.sql, arguments.endpoints.into()).await?;
    arguments.output.write("query", rows).await
}
