//! Parameters of exchangers: each has a DuckDB type, and a value of that type or none.

use duckdb::{
    ToValue,
    connection::Connection,
    logical_type::{LogicalType, LogicalTypeID as Id},
    value::Value,
};

use super::{Engine, Shared};
use crate::{
    access::Rights,
    error::{Error, Result},
    json::{Decimal, Json, Kind},
};

/// A parameter that an exchanger declares.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    pub name: String,
    pub duckdb_type: String,
    pub default: Option<Json>,
}

/// One parameter's value, and the DuckDB type that it has.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    pub name: String,
    pub duckdb_type: String,
    pub value: Json,
}

impl Engine {
    /// Whether each type is one that DuckDB knows, and each default a value of it.
    pub async fn check_parameters(&self, declared: Vec<Declared>) -> Result<()> {
        self.call(&Rights::all("mallard"), move |shared, connection| {
            declared.iter().try_for_each(|declared| check(shared, connection, declared))
        })
        .await
    }

    /// The values as JSON of their types' form: numbers for numbers of all kinds, true and false for BOOLEAN, a text for
    /// everything else that is not nested.
    pub async fn fit_parameters(&self, given: Vec<Given>) -> Result<Vec<(String, Json)>> {
        self.call(&Rights::all("mallard"), move |shared, connection| {
            let fit = |given: &Given| {
                Ok((given.name.clone(), as_json(connection, given, &bound(shared, connection, given)?)?))
            };
            given.iter().map(fit).collect()
        })
        .await
    }
}

/// Whether the type is one that DuckDB knows, and the default a value of it.
pub(super) fn check(shared: &Shared, connection: &Connection, declared: &Declared) -> Result<()> {
    let Declared { name, duckdb_type, default } = declared;
    let value = default.clone().unwrap_or_else(|| Json::from(&serde_json::Value::Null));
    bound(shared, connection, &Given { name: name.clone(), duckdb_type: duckdb_type.clone(), value }).map(drop)
}

fn wrong(given: &Given, why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the parameter {}: {why}", given.name))
}

/// A value as DuckDB has it, of the declared type.
pub(super) fn bound(shared: &Shared, connection: &Connection, given: &Given) -> Result<Value> {
    let Given { duckdb_type, value: json, .. } = given;
    let failed = |error: duckdb::Error| wrong(given, error.message);
    let target = LogicalType::from_text(connection, duckdb_type).map_err(failed)?;
    let kind = json.kind();
    check_kind(given, &kind, &target)?;
    let value = match &kind {
        Kind::Null => return Value::null(connection, &target).map_err(failed),
        Kind::Bool(value) => value.value(connection),
        // As a text it keeps its digits, whatever the type.
        Kind::Number(digits) if is_number(&target) => digits.to_string().value(connection),
        Kind::Number(digits) => match digits.parse::<i64>() {
            Ok(whole) => whole.value(connection),
            Err(_) => digits.to_string().value(connection),
        },
        Kind::Text(text) => text.value(connection),
        Kind::Nested => json.to_string().value(connection),
    };
    let value = value.map_err(|error| shared.cause(&error))?;
    value.cast(connection, &target).map_err(failed)
}

fn id(logical_type: &LogicalType) -> Option<Id> {
    logical_type.id().ok()
}

fn is_whole(logical_type: &LogicalType) -> bool {
    use Id::{BigInt, BigNum, HugeInt, Integer, SmallInt, TinyInt, UBigInt, UHugeInt, UInteger, USmallInt, UTinyInt};
    let whole = [TinyInt, SmallInt, Integer, BigInt, HugeInt, UTinyInt, USmallInt, UInteger, UBigInt, UHugeInt, BigNum];
    id(logical_type).is_some_and(|id| whole.contains(&id))
}

fn is_number(logical_type: &LogicalType) -> bool {
    is_whole(logical_type) || id(logical_type).is_some_and(|id| matches!(id, Id::Decimal | Id::Float | Id::Double))
}

/// DuckDB would round a number to make it fit, and take true for 1.
fn check_kind(given: &Given, kind: &Kind<'_>, target: &LogicalType) -> Result<()> {
    let Given { duckdb_type, value, .. } = given;
    let number = match kind {
        Kind::Bool(_) if is_number(target) => None,
        Kind::Number(_) if id(target) == Some(Id::Boolean) => None,
        Kind::Number(digits) => Some(Decimal::parse(digits)),
        Kind::Text(text) => Some(Decimal::parse(text)),
        _ => return Ok(()),
    };
    let Some(number) = number else { return Err(wrong(given, format!("{value} is no {duckdb_type}"))) };
    // What is no number is told by DuckDB.
    let Some(number) = number else { return Ok(()) };
    if is_whole(target) && number.scale() > 0 {
        return Err(wrong(given, format!("{value} is no whole number, and no {duckdb_type}")));
    }
    if id(target) == Some(Id::Decimal) {
        let text = target.to_text().unwrap_or_default();
        let scale = text.trim_end_matches(')').rsplit(',').next().and_then(|scale| scale.trim().parse::<usize>().ok());
        if let Some(scale) = scale.filter(|scale| number.scale() > *scale) {
            return Err(wrong(given, format!("{value} has more than the {scale} digits behind the point of {text}")));
        }
    }
    Ok(())
}

fn as_json(connection: &Connection, given: &Given, value: &Value) -> Result<Json> {
    let failed = |error: duckdb::Error| wrong(given, error.message);
    let target = value.logical_type().map_err(failed)?;
    let text = || -> Result<String> {
        let varchar = LogicalType::from_text(connection, "VARCHAR").map_err(failed)?;
        let text = value.cast(connection, &varchar).and_then(|text| text.get::<String>()).map_err(failed)?;
        Ok(text.unwrap_or_default())
    };
    let kind = given.value.kind();
    if given.duckdb_type.trim().eq_ignore_ascii_case("json") {
        return Ok(given.value.clone());
    }
    Ok(match kind {
        Kind::Null => given.value.clone(),
        // As it was written: DuckDB's text of a double is another one of the same.
        Kind::Number(_) if matches!(id(&target), Some(Id::Float | Id::Double)) => given.value.clone(),
        _ if is_number(&target) => {
            let text = text()?;
            // There are infinite ones and none at all, which JSON has no number for.
            if Decimal::parse(&text).is_some() { Json::number(&text) } else { Json::text(&text) }
        }
        _ if id(&target) == Some(Id::Boolean) => Json::from(&serde_json::Value::from(text()? == "true")),
        Kind::Nested if id(&target) != Some(Id::Varchar) => given.value.clone(),
        Kind::Text(text) => Json::text(&text),
        _ => Json::text(&text()?),
    })
}
