//! Dates and time zones where DuckDB has no ICU: what its extension registers, on the time zone database of jiff.
//!
//! The compiled-in DuckDB has the type TIMESTAMP WITH TIME ZONE and next to nothing that works on it. `register` adds the
//! settings TimeZone and Calendar, casts, operators and functions through DuckDB's C API. Values and errors are those of
//! DuckDB's extension as far as they are known. Where the extension is there, nothing is added.

mod calendar;
mod casts;
mod format;
mod functions;
mod parts;
mod ranges;
mod scalar;
mod settings;
mod text;
mod zone;

use std::sync::Arc;

use duckdb::{Result, connection::Connection, error::DuckDBError};

use zone::Zones;

/// The session's time zone.
pub(super) const SETTING: &str = "TimeZone";

/// Adds what the instance lacks. To be called before its configuration is locked.
pub(super) fn register(connection: &Connection) -> Result<()> {
    if connection.config()?.try_get_value(SETTING)?.is_some() {
        return Ok(());
    }
    let zones = Arc::new(Zones::bundled());
    settings::register(connection, &zones)?;
    casts::register(connection, &zones)?;
    functions::register(connection, &zones)?;
    ranges::register(connection, &zones)
}

fn error(code: DuckDBError, message: impl Into<String>) -> duckdb::Error {
    duckdb::Error { code, message: message.into() }
}
