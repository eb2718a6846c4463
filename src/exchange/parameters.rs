//! Parameters of registered exchangers: what a registration declares, and what a use gives. The same for all kinds.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, json};

use super::Arguments;
use crate::{
    engine::{Declared, Given},
    error::{Error, Result},
    json::{Decimal, Json, Kind},
};

/// What a registration declares: names with a default, or with `{"type": .., "default"?: ..}`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters(pub(super) Vec<Declared>);

impl Parameters {
    /// Reads a JSON object of them.
    pub fn read(params: &Json) -> Result<Self> {
        let members = params.members().ok_or_else(|| Error::invalid("params is no JSON object"))?;
        members.into_iter().map(|(name, value)| declared(name, value)).collect::<Result<_>>().map(Self)
    }

    /// Types that fit these values, which are no declarations.
    pub fn of_values(values: &[(String, Json)]) -> Result<Self> {
        values.iter().map(|(name, value)| of_default(name.clone(), value.clone())).collect::<Result<_>>().map(Self)
    }

    /// As a listing shows them.
    pub fn listed(&self) -> Map<String, Value> {
        let listed = self.0.iter().map(|Declared { name, duckdb_type, default }| {
            let mut one = json!({"type": duckdb_type});
            if let Some(default) = default {
                one["default"] = default.value();
            }
            (name.clone(), one)
        });
        listed.collect()
    }

    /// What a use gives, and the defaults of the others.
    pub(super) fn values(&self, Arguments(given): Arguments) -> Result<Vec<Given>> {
        let value = |declared: &Declared, value: Json| {
            let Declared { name, duckdb_type, .. } = declared.clone();
            Given { name, duckdb_type, value }
        };
        let mut values = Vec::with_capacity(self.0.len());
        for (name, json) in given {
            let declared = self.0.iter().find(|declared| declared.name == name).ok_or_else(|| {
                let known: Vec<&str> = self.0.iter().map(|declared| declared.name.as_str()).collect();
                let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                Error::invalid(format!("parameters: unknown field `{name}`; there are {known}"))
            })?;
            values.push(value(declared, json));
        }
        for declared in &self.0 {
            let name = &declared.name;
            if !values.iter().any(|given| given.name == *name) {
                let default = declared.default.clone();
                let default = default.ok_or_else(|| Error::invalid(format!("parameters: missing field `{name}`")))?;
                values.push(value(declared, default));
            }
        }
        Ok(values)
    }
}

fn declared(name: String, value: Json) -> Result<Declared> {
    let Some(members) = value.members() else { return of_default(name, value) };
    let wrong = |why: &str| Error::invalid(format!("params: {name} is a default or a type: {why}"));
    let (mut duckdb_type, mut default) = (None, None);
    for (key, value) in members {
        match (key.as_str(), value.kind()) {
            ("type", Kind::Text(text)) => duckdb_type = Some(text),
            ("type", _) => return Err(wrong("type is no text")),
            ("default", _) => default = Some(value),
            _ => return Err(wrong(&format!("unknown field `{key}`, expected `type` or `default`"))),
        }
    }
    match duckdb_type {
        Some(duckdb_type) => Ok(Declared { name, duckdb_type, default }),
        None => Err(wrong("missing field `type`")),
    }
}

/// The type that a bare default stands for.
fn of_default(name: String, value: Json) -> Result<Declared> {
    let duckdb_type = match value.kind() {
        Kind::Bool(_) => "BOOLEAN".to_string(),
        Kind::Number(digits) => number_type(digits),
        Kind::Text(_) => "VARCHAR".to_string(),
        Kind::Null | Kind::Nested => {
            return Err(Error::invalid(format!(
                "params: {name} needs its type beside such a default: {{\"type\": .., \"default\": ..}}"
            )));
        }
    };
    Ok(Declared { name, duckdb_type, default: Some(value) })
}

/// The smallest of BIGINT, HUGEINT, DOUBLE and DECIMAL that keeps all digits; DOUBLE where none does.
fn number_type(digits: &str) -> String {
    if digits.parse::<i64>().is_ok() {
        return "BIGINT".into();
    }
    if digits.parse::<i128>().is_ok() {
        return "HUGEINT".into();
    }
    match Decimal::parse(digits) {
        Some(number) if !number.is_a_double() && number.precision() <= 38 => format!("DECIMAL(38, {})", number.scale()),
        _ => "DOUBLE".into(),
    }
}

impl Serialize for Parameters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let listed = self.listed();
        let mut map = serializer.serialize_map(Some(listed.len()))?;
        listed.iter().try_for_each(|(name, one)| map.serialize_entry(name, one))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::Object(Map::deserialize(deserializer)?);
        Self::read(&Json::from(&value)).map_err(serde::de::Error::custom)
    }
}
