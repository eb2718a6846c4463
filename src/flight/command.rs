//! What the bytes of a ticket or a descriptor ask for.

use arrow_flight::{FlightDescriptor, flight_descriptor::DescriptorType, sql};
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
    FlightSql(sql::Command),
}

impl Command {
    pub(super) fn from_descriptor(descriptor: &FlightDescriptor) -> Result<Self> {
        match descriptor.r#type() {
            DescriptorType::Path => TableName::from_path(&descriptor.path).map(Self::Table),
            DescriptorType::Cmd => match flight_sql("descriptor", &descriptor.cmd)? {
                Some(command) => Ok(Self::FlightSql(command)),
                None => text("descriptor", &descriptor.cmd).map(Self::Text),
            },
            DescriptorType::Unknown => Err(Error::invalid("the descriptor's type is neither PATH nor CMD")),
        }
    }
}

/// The SQL that reads a table.
pub(super) fn select_from(table: &TableName) -> String {
    format!("SELECT * FROM {}", table.sql())
}

/// Whether the bytes begin as those of Python's pickle do, from protocol 2 on: clients of Python servers send such.
pub(super) fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..])
}

/// UTF-8 text; `what` names the bytes in errors.
pub(super) fn text(what: &str, bytes: &[u8]) -> Result<String> {
    if is_pickle(bytes) {
        return Err(Error::invalid(format!(
            "the {what} is a Python pickle, which is never loaded here; send SQL or a name as UTF-8 text in its place"
        )));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| Error::invalid(format!("the {what} is not UTF-8 text: {error}")))?;
    if text.trim().is_empty() {
        return Err(Error::invalid(format!("the {what} is empty")));
    }
    Ok(text.to_string())
}

/// The message of Flight SQL that the bytes are, wrapped in a google.protobuf.Any; none where they are something else.
pub(super) fn flight_sql(what: &str, bytes: &[u8]) -> Result<Option<sql::Command>> {
    let Ok(any) = sql::Any::decode(bytes) else { return Ok(None) };
    let named = any.type_url.rsplit_once('/').is_some_and(|(_, name)| name.starts_with("arrow.flight.protocol.sql."));
    if !named {
        return Ok(None);
    }
    let malformed = |error| Error::invalid(format!("the {what} is a malformed message of Flight SQL: {error}"));
    match sql::Command::try_from(any).map_err(malformed)? {
        sql::Command::Unknown(any) => {
            Err(Error::Unsupported(format!("the {what} is {}, which is not served", any.type_url)))
        }
        known => Ok(Some(known)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flight_sql_is_recognised_and_sql_text_is_not_taken_for_it() {
        let any = |name: &str| sql::Any {
            type_url: format!("type.googleapis.com/arrow.flight.protocol.sql.{name}"),
            value: b"\n\x08SELECT 1".to_vec().into(),
        };
        let known = flight_sql("ticket", &any("CommandStatementQuery").encode_to_vec()).expect("it is known");
        assert!(
            matches!(known, Some(sql::Command::CommandStatementQuery(query)) if query.query == "SELECT 1"),
            "the query's text"
        );
        let refused = flight_sql("ticket", &any("CommandOfTomorrow").encode_to_vec()).expect_err("unknown");
        assert!(matches!(refused, Error::Unsupported(_)), "{refused}");
        for sql in ["SELECT 1", "\n\nSELECT 'type.googleapis.com/x'", "FROM t"] {
            assert_eq!(flight_sql("ticket", sql.as_bytes()).expect("plain SQL"), None);
            assert_eq!(text("ticket", sql.as_bytes()).expect("plain SQL"), sql);
        }
    }
}
