//! `mallard query`

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, NullArray, RecordBatch, StringArray,
};
use clap::Args;

use super::{
    connect::{self, LoginArguments},
    files::OutputArguments,
};
use crate::{
    client::Answered,
    error::{Error, Result},
    json::{Decimal, Json, Kind},
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
    let json = Json::parse(text);
    match json.as_ref().map(Json::kind) {
        Ok(Kind::Number(digits)) => number(digits),
        Ok(Kind::Bool(flag)) => Arc::new(BooleanArray::from(vec![flag])),
        Ok(Kind::Null) => Arc::new(NullArray::new(1)),
        Ok(Kind::Text(quoted)) => Arc::new(StringArray::from(vec![quoted])),
        _ => Arc::new(StringArray::from(vec![text])),
    }
}

/// A BIGINT, a DECIMAL where another type would lose digits, or a DOUBLE.
fn number(digits: &str) -> ArrayRef {
    if let Ok(whole) = digits.parse::<i64>() {
        return Arc::new(Int64Array::from(vec![whole]));
    }
    let exact = Decimal::parse(digits).filter(|number| !digits.contains(['.', 'e', 'E']) || !number.is_a_double());
    let decimal = exact.and_then(|number| {
        let (precision, scale) = (u8::try_from(number.precision()).ok()?, i8::try_from(number.scale()).ok()?);
        Decimal128Array::from(vec![number.unscaled()?]).with_precision_and_scale(precision, scale).ok()
    });
    match decimal {
        Some(decimal) => Arc::new(decimal),
        None => Arc::new(Float64Array::from(vec![digits.parse::<f64>().ok()])),
    }
}
