//! The actions SetSessionOptions and GetSessionOptions.

use std::collections::HashMap;

use crate::{
    access::is_own_schema,
    auth::Identity,
    engine::{Ask, Settings},
    error::{Error, Result},
    flight::{
        service::Flight,
        session::{
            GetSessionOptionsResult, OptionError, OptionErrorValue, OptionValue, SessionOptionValue,
            SetSessionOptionsRequest, SetSessionOptionsResult,
        },
    },
};

/// Rows of a record batch that a client may ask for.
const BATCH_ROWS: std::ops::RangeInclusive<i64> = 1..=1_048_576;

impl Flight {
    /// Sets what is valid; the answer names what is not.
    pub(in crate::flight) async fn set_session_options(
        &self,
        identity: &Identity,
        request: SetSessionOptionsRequest,
    ) -> Result<SetSessionOptionsResult> {
        let mut errors = HashMap::new();
        let mut refuse = |name: String, why: OptionErrorValue| errors.insert(name, OptionError { value: why.into() });
        let mut settings = self.sessions.settings(identity);
        // A catalog before its schema.
        let mut options: Vec<_> = request.session_options.into_iter().collect();
        options.sort_by(|one, other| one.0.cmp(&other.0));
        for (name, value) in options {
            let mut changed = settings.clone();
            let outcome = set(&mut changed, &name, value.option_value);
            if let Err(why) = outcome {
                refuse(name, why);
                continue;
            }
            // DuckDB says whether the catalog, the schema and the time zone are there.
            let ask = Ask { sql: "SELECT 1".into(), settings: changed.clone(), ..Ask::default() };
            match self.engine.plan(&identity.rights, &ask).await {
                Ok(_) => settings = changed,
                Err(Error::Sql(_) | Error::NotFound(_) | Error::Unsupported(_) | Error::Denied { .. }) => {
                    refuse(name, OptionErrorValue::InvalidValue);
                }
                Err(error) => return Err(error),
            }
        }
        self.sessions.set_settings(identity, settings)?;
        Ok(SetSessionOptionsResult { errors })
    }

    /// All options, with their defaults where they were not set.
    pub(in crate::flight) async fn get_session_options(&self, identity: &Identity) -> Result<GetSessionOptionsResult> {
        let Settings { catalog, schema, time_zone, lossless, batch_rows } = self.sessions.settings(identity);
        let catalog = match catalog {
            Some(catalog) => catalog,
            None => self.engine.row("SELECT current_database()".into()).await?.remove(0),
        };
        let rows = batch_rows.unwrap_or(self.config.database.batch_rows);
        let options = [
            ("catalog", OptionValue::Text(catalog)),
            ("schema", OptionValue::Text(schema.unwrap_or_else(|| "main".into()))),
            ("timezone", OptionValue::Text(time_zone.unwrap_or_else(|| "UTC".into()))),
            ("batch_rows", OptionValue::Int64(i64::try_from(rows).unwrap_or(i64::MAX))),
            ("lossless_types", OptionValue::Bool(lossless.unwrap_or(self.is_lossless(identity)))),
        ];
        let options = options
            .into_iter()
            .map(|(name, value)| (name.to_string(), SessionOptionValue { option_value: Some(value) }));
        Ok(GetSessionOptionsResult { session_options: options.collect() })
    }
}

/// One option; nothing takes it back to its default.
fn set(settings: &mut Settings, name: &str, value: Option<OptionValue>) -> Result<(), OptionErrorValue> {
    let text = |value: Option<OptionValue>| match value {
        Some(OptionValue::Text(text)) if text.is_empty() => Ok(None),
        Some(OptionValue::Text(text)) => Ok(Some(text)),
        None => Ok(None),
        Some(_) => Err(OptionErrorValue::InvalidValue),
    };
    match name.to_lowercase().as_str() {
        "catalog" => settings.catalog = text(value)?,
        "schema" => match text(value)? {
            Some(schema) if is_own_schema(&schema) => return Err(OptionErrorValue::InvalidValue),
            schema => settings.schema = schema,
        },
        "timezone" => settings.time_zone = text(value)?,
        "batch_rows" => {
            settings.batch_rows = match value {
                None => None,
                Some(OptionValue::Int64(rows)) if BATCH_ROWS.contains(&rows) => usize::try_from(rows).ok(),
                Some(OptionValue::Text(rows)) => match rows.parse::<i64>() {
                    Ok(rows) if BATCH_ROWS.contains(&rows) => usize::try_from(rows).ok(),
                    _ => return Err(OptionErrorValue::InvalidValue),
                },
                Some(_) => return Err(OptionErrorValue::InvalidValue),
            }
        }
        "lossless_types" => {
            settings.lossless = match value {
                None => None,
                Some(OptionValue::Bool(lossless)) => Some(lossless),
                Some(OptionValue::Text(lossless)) => {
                    Some(lossless.to_lowercase().parse().map_err(|_| OptionErrorValue::InvalidValue)?)
                }
                Some(_) => return Err(OptionErrorValue::InvalidValue),
            }
        }
        _ => return Err(OptionErrorValue::InvalidName),
    }
    Ok(())
}
