//! The settings TimeZone and Calendar, which every connection has for itself.

use std::sync::Arc;

use duckdb::{
    DuckDBType, Result, ToValue,
    connection::{Connection, Context, SettingScope},
    custom_option::{CustomOptionBuilder, CustomOptionCallbacks},
    error::DuckDBError,
    value::Value,
};

use super::{
    SETTING, error,
    zone::{Zones, candidates},
};

/// The calendars that are there. ISO 8601 has the weeks that all functions count by.
pub(super) const CALENDARS: [&str; 2] = ["gregorian", "iso8601"];

struct TimeZoneSetting(Arc<Zones>);

impl CustomOptionCallbacks for TimeZoneSetting {
    fn update(&self, context: &Context, value: Value, _scope: SettingScope, _is_reset: bool) -> Result<Value> {
        let name = given(SETTING, &value)?;
        self.0.find(&name)?.name.value(context)
    }
}

struct CalendarSetting;

impl CustomOptionCallbacks for CalendarSetting {
    fn update(&self, context: &Context, value: Value, _scope: SettingScope, _is_reset: bool) -> Result<Value> {
        let name = given("Calendar", &value)?;
        match CALENDARS.iter().find(|calendar| calendar.eq_ignore_ascii_case(&name)) {
            Some(calendar) => calendar.to_string().value(context),
            None => {
                let known: Vec<String> = CALENDARS.map(str::to_string).into();
                let message = format!("Unknown Calendar '{name}'!");
                Err(error(DuckDBError::InputInvalid, message + &candidates("Candidate calendars", &known, &name)))
            }
        }
    }
}

fn given(setting: &str, value: &Value) -> Result<String> {
    let text = value.get::<String>()?;
    text.ok_or_else(|| error(DuckDBError::InputInvalid, format!("{setting} setting cannot be NULL")))
}

pub(super) fn register(connection: &Connection, zones: &Arc<Zones>) -> Result<()> {
    let text = || String::logical_type(connection);
    CustomOptionBuilder::new(SETTING, "The current time zone", text()?, TimeZoneSetting(zones.clone()))
        .default_value("UTC".to_string().value(connection)?)
        .register(connection)?;
    CustomOptionBuilder::new("Calendar", "The current calendar", text()?, CalendarSetting)
        .default_value("gregorian".to_string().value(connection)?)
        .register(connection)
}
