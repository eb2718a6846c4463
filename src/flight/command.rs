//! What the bytes of a ticket or a descriptor ask for.

use arrow_flight::{FlightDescriptor, flight_descriptor::DescriptorType};
use prost::Message;

use crate::{
    engine::TableName,
    error::{Error, Result},
};

/// A descriptor, understood.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Table(TableName),
    Text(String),
}

impl Command {
    pub(super) fn from_descriptor(descriptor: &FlightDescriptor) -> Result<Self> {
        match descriptor.r#type() {
            DescriptorType::Path => TableName::from_path(&descriptor.path).map(Self::Table),
            DescriptorType::Cmd => text("descriptor", &descriptor.cmd).map(Self::Text),
            DescriptorType::Unknown => Err(Error::invalid("the descriptor's type is neither PATH nor CMD")),
        }
    }

    /// The SQL of GetFlightInfo, GetSchema and PollFlightInfo.
    pub(super) fn into_sql(self) -> String {
        match self {
            Self::Table(table) => format!("SELECT * FROM {}", table.sql()),
            Self::Text(sql) => sql,
        }
    }

    /// The table of DoPut.
    pub(super) fn into_table(self) -> Result<TableName> {
        match self {
            Self::Table(table) => Ok(table),
            Self::Text(name) => TableName::parse(&name),
        }
    }
}

/// UTF-8 text that is no protobuf message of Flight SQL; `what` names the bytes in errors.
pub(super) fn text(what: &str, bytes: &[u8]) -> Result<String> {
    if let Some(message) = flight_sql_message(bytes) {
        return Err(Error::Unsupported(format!("Flight SQL is not served: the {what} is a {message}")));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| Error::invalid(format!("the {what} is not UTF-8 text: {error}")))?;
    if text.trim().is_empty() {
        return Err(Error::invalid(format!("the {what} is empty")));
    }
    Ok(text.to_string())
}

/// google.protobuf.Any, of which only the type's name is needed.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

fn flight_sql_message(bytes: &[u8]) -> Option<String> {
    let any = Any::decode(bytes).ok()?;
    let (_, name) = any.type_url.rsplit_once('/')?;
    name.starts_with("arrow.flight.protocol.sql.").then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flight_sql_is_recognised_and_sql_text_is_not_taken_for_it() {
        let any = Any {
            type_url: "type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery".into(),
            value: b"\n\x08SELECT 1".to_vec(),
        };
        let refused = text("ticket", &any.encode_to_vec()).expect_err("Flight SQL is refused");
        assert!(matches!(refused, Error::Unsupported(_)), "{refused}");
        for sql in ["SELECT 1", "\n\nSELECT 'type.googleapis.com/x'", "FROM t"] {
            assert_eq!(text("ticket", sql.as_bytes()).expect("plain SQL"), sql);
        }
    }
}
