//! `mallard query`

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, NullArray, RecordBatch, StringArray};
use clap::Args;
use serde_json::Value;

use super::{
    connect::{self, LoginArguments},
    files::OutputArguments,
};
use crate::{
    client::Answered,
    error::{Error, Result},
    location::Location,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// One SQL statement
    sql: String,
    /// Value of a parameter, in their order (? or $1), or as NAME=VALUE for $NAME: a number, true, false, null, or text
    /// ("quoted" where it looks like one of those)
    #[arg(long = "param", value_name = "[NAME=]VALUE", conflicts_with = "endpoints")]
    parameters: Vec<String>,
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
    if !arguments.parameters.is_empty() {
        let values = values(&arguments.sql, &arguments.parameters)?;
        return match client.statement_with(&arguments.sql, values).await? {
            Answered::Rows(rows) => arguments.output.write("query", rows).await,
            Answered::Changed(count) => {
                eprintln!("{count} row{} changed", if count == 1 { "" } else { "s" });
                Ok(())
            }
        };
    }
    let rows = client.query_endpoints(&arguments.sql, arguments.endpoints.into()).await?;
    arguments.output.write("query", rows).await
}

/// One row of them, a column each, called as the statement calls them.
fn values(sql: &str, given: &[String]) -> Result<RecordBatch> {
    let columns = given.iter().enumerate().map(|(place, text)| {
        let named = text.split_once('=').filter(|(name, _)| {
            // A name that the statement has; else the sign is a part of the value.
            !name.is_empty()
                && name.chars().all(|c| c.is_alphanumeric() || c == '_')
                && sql.contains(&format!("${name}"))
        });
        let (name, text) =
            named.map_or_else(|| ((place + 1).to_string(), text.as_str()), |(name, text)| (name.into(), text));
        (name, value(text), true)
    });
    RecordBatch::try_from_iter_with_nullable(columns).map_err(Error::invalid)
}

fn value(text: &str) -> ArrayRef {
    match serde_json::from_str(text) {
        Ok(Value::Number(number)) if number.is_i64() => Arc::new(Int64Array::from(vec![number.as_i64()])),
        Ok(Value::Number(number)) => Arc::new(Float64Array::from(vec![number.as_f64()])),
        Ok(Value::Bool(flag)) => Arc::new(BooleanArray::from(vec![flag])),
        Ok(Value::Null) => Arc::new(NullArray::new(1)),
        Ok(Value::String(quoted)) => Arc::new(StringArray::from(vec![quoted])),
        _ => Arc::new(StringArray::from(vec![text])),
    }
}
