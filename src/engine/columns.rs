//! How the columns of a stream fit the columns of a table: by name, and cast only where nothing can be lost.
//!
//! A cast is taken when every value either keeps its meaning or ends the write with DuckDB's error: widening, and
//! narrowing of integers, which DuckDB checks. Rounding, truncating and parsing casts are refused by type.

use duckdb::{
    connection::Connection,
    logical_type::{LogicalType, LogicalTypeID as Id},
    schema::Schema,
};

use crate::error::{Error, Result};

use super::{Shared, catalog::quote};

/// One column of the stream: the SQL expression that reads it.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) expression: String,
    /// DuckDB's type of the expression.
    pub(super) duckdb_type: String,
    /// Whether the stored value is the sent one, not a cast of it.
    pub(super) exact: bool,
    /// Whether the table computes it, so that it is compared and not stored.
    pub(super) generated: bool,
}

/// The stream's columns as a new table would hold them. `declared` are DuckDB types that the stream's fields carry
/// where Arrow alone would lose them.
pub(super) fn as_sent(connection: &Connection, source: &Schema, declared: &[Option<String>]) -> Result<Vec<Column>> {
    let fields = source.get_all().map_err(Error::internal)?;
    let mut columns = Vec::with_capacity(fields.len());
    for (index, (name, logical_type)) in fields.into_iter().enumerate() {
        let (expression, duckdb_type) = match declared.get(index).and_then(Option::as_deref) {
            None if logical_type.id().is_ok_and(|id| id == Id::SqlNull) => {
                // A column of nothing but NULL; DuckDB itself makes it an INTEGER.
                (quote(&name), "INTEGER".to_string())
            }
            None => (quote(&name), logical_type.to_text().map_err(Error::internal)?),
            Some(text) => {
                // Parsed and rendered by DuckDB, so that the text from the network is a type and nothing else.
                let rendered = LogicalType::from_text(connection, text).and_then(|parsed| parsed.to_text());
                let rendered = rendered.map_err(|error| {
                    Error::invalid(format!("column \"{name}\" declares an unknown DuckDB type: {}", error.message))
                })?;
                (format!("CAST({} AS {rendered})", quote(&name)), rendered)
            }
        };
        columns.push(Column { name, expression, duckdb_type, exact: true, generated: false });
    }
    Ok(columns)
}

/// The stream's columns as the table takes them; the first that does not fit is named.
pub(super) fn fitted(shared: &Shared, source: &Schema, table: &Schema, table_name: &str) -> Result<Vec<Column>> {
    let cause = |error: duckdb::Error| shared.cause(&error);
    let targets = table.get_all().map_err(cause)?;
    let mut columns = Vec::new();
    for (name, from) in source.get_all().map_err(cause)? {
        let Some((target_name, to)) = targets.iter().find(|(target, _)| target.eq_ignore_ascii_case(&name)) else {
            let known: Vec<&str> = targets.iter().map(|(target, _)| target.as_str()).collect();
            return Err(Error::invalid(format!(
                "column \"{name}\" is not in table {table_name}, which has {}",
                known.join(", ")
            )));
        };
        let (from_text, to_text) = (from.to_text().map_err(cause)?, to.to_text().map_err(cause)?);
        let exact = from_text == to_text;
        if !exact && !fits(&from, to).map_err(cause)? {
            return Err(Error::invalid(format!(
                "column \"{name}\" is {from_text} in the stream and {to_text} in table {table_name}, and cannot be cast without loss"
            )));
        }
        let expression = if exact { quote(&name) } else { format!("CAST({} AS {to_text})", quote(&name)) };
        columns.push(Column { name: target_name.clone(), expression, duckdb_type: to_text, exact, generated: false });
    }
    Ok(columns)
}

/// Whether every value of `from` is a value of `to`, or is refused by DuckDB when it is not.
fn fits(from: &LogicalType, to: &LogicalType) -> duckdb::Result<bool> {
    let (source, target) = (from.id()?, to.id()?);
    if source == target {
        return match source {
            Id::Decimal => Ok(decimal(from)?.1 <= decimal(to)?.1),
            Id::List => fits(&child(from, 0)?.1, &child(to, 0)?.1),
            Id::Array => Ok(from.to_text()?.rsplit('[').next() == to.to_text()?.rsplit('[').next()
                && fits(&child(from, 0)?.1, &child(to, 0)?.1)?),
            Id::Map => Ok(fits(&child(from, 0)?.1, &child(to, 0)?.1)? && fits(&child(from, 1)?.1, &child(to, 1)?.1)?),
            Id::Struct => {
                if from.param_count()? != to.param_count()? {
                    return Ok(false);
                }
                for index in 0..from.param_count()? {
                    let (source, target) = (child(from, index)?, child(to, index)?);
                    if !source.0.eq_ignore_ascii_case(&target.0) || !fits(&source.1, &target.1)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Id::Union => Ok(from.to_text()? == to.to_text()?),
            _ => Ok(true),
        };
    }
    let integer_bits = |id: Id| match id {
        Id::TinyInt | Id::UTinyInt => Some(8),
        Id::SmallInt | Id::USmallInt => Some(16),
        Id::Integer | Id::UInteger => Some(32),
        Id::BigInt | Id::UBigInt => Some(64),
        Id::HugeInt | Id::UHugeInt => Some(128),
        _ => None,
    };
    Ok(match (source, target) {
        (Id::SqlNull, _) => true,
        (from, to) if integer_bits(from).is_some() && integer_bits(to).is_some() => true,
        (from, Id::Decimal | Id::BigNum) if integer_bits(from).is_some() => true,
        (from, Id::Float) => integer_bits(from).is_some_and(|bits| bits <= 16),
        (Id::Float, Id::Double) => true,
        (from, Id::Double) => integer_bits(from).is_some_and(|bits| bits <= 32),
        (Id::Date, Id::Timestamp | Id::TimestampSec | Id::TimestampMs | Id::TimestampNs) => true,
        (Id::TimestampSec, Id::TimestampMs | Id::Timestamp | Id::TimestampNs) => true,
        (Id::TimestampMs, Id::Timestamp | Id::TimestampNs) => true,
        (Id::Timestamp, Id::TimestampNs) => true,
        (Id::Varchar, Id::Enum | Id::Uuid) => true,
        (Id::Enum | Id::Uuid, Id::Varchar) => true,
        (Id::Array, Id::List) => fits(&child(from, 0)?.1, &child(to, 0)?.1)?,
        _ => false,
    })
}

pub(super) fn child(parent: &LogicalType, index: usize) -> duckdb::Result<(String, LogicalType)> {
    let (name, value) = parent.get_param(index)?;
    let child =
        value.get::<LogicalType>()?.ok_or_else(|| duckdb::Error::api_error("a nested type has no child type"))?;
    Ok((name.to_string(), child))
}

/// Width and scale.
fn decimal(decimal: &LogicalType) -> duckdb::Result<(u64, u64)> {
    let number = |index| -> duckdb::Result<u64> {
        decimal
            .get_param(index)?
            .1
            .dbg_string()?
            .parse()
            .map_err(|_| duckdb::Error::api_error("a DECIMAL has no width"))
    };
    Ok((number(0)?, number(1)?))
}
