//! CommandStatementIngest: a stream into a table, all of it or nothing.

use arrow_flight::sql::{CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption};

use super::named;
use crate::{
    engine::{Mode, TableName, Target},
    error::{Error, Result},
    flight::service::{Caller, Flight, counted},
    telemetry::Direction,
    wire::{EndRule, Upload},
};

impl Flight {
    /// How many rows were stored. Part of the transaction that is named, else of the session's open one (ADBC's driver
    /// names none here), else a transaction of its own.
    pub(super) async fn ingest(&self, command: CommandStatementIngest, upload: Upload, caller: &Caller) -> Result<i64> {
        let Caller { identity, call } = caller;
        let mode = mode(command.table_definition_options.as_ref())?;
        let place = match named(command.transaction_id.as_deref())? {
            Some(transaction) => self.sessions.place(identity, Some(transaction))?,
            None => self.sessions.joining(identity)?,
        };
        let given = |part: Option<String>| part.filter(|part| !part.is_empty());
        let (catalog, schema) = (given(command.catalog), given(command.schema));
        let (table, line) = match command.temporary {
            false => {
                let schema = schema.or_else(|| catalog.as_ref().map(|_| "main".to_string()));
                let path: Vec<String> = catalog.into_iter().chain(schema).chain([command.table]).collect();
                (TableName::from_path(&path)?, place.line)
            }
            true => {
                let fits = |part: &Option<String>, own: &str| part.as_ref().is_none_or(|part| part == own);
                if !fits(&catalog, "temp") || !fits(&schema, "main") {
                    return Err(Error::invalid(
                        "a temporary table is in the catalog temp and its schema main, and in no other",
                    ));
                }
                let path = ["temp".to_string(), "main".to_string(), command.table];
                let home = || self.sessions.home(identity);
                (TableName::from_path(&path)?, Some(place.line.map_or_else(home, Ok)?))
            }
        };
        let target = Target { table, mode, temporary: command.temporary, line, settings: place.settings };
        let upload = upload.require_end(self.config.put.require_end.then_some(EndRule::ConfigurationOfIngest));
        let input = counted(call, Direction::Received, upload.batches().await?);
        let staged = self.engine.ingest_into(&identity.rights, target, input, false).await?;
        let rows = i64::try_from(staged.rows).unwrap_or(i64::MAX);
        staged.commit().await?;
        Ok(rows)
    }
}

fn mode(options: Option<&TableDefinitionOptions>) -> Result<Mode> {
    let Some(options) = options else { return Ok(Mode::CreateOrAppend) };
    Ok(match (options.if_not_exist(), options.if_exists()) {
        (TableNotExistOption::Create, TableExistsOption::Fail) => Mode::Create,
        (TableNotExistOption::Create, TableExistsOption::Append) => Mode::CreateOrAppend,
        (TableNotExistOption::Create, TableExistsOption::Replace) => Mode::Replace,
        (TableNotExistOption::Fail, TableExistsOption::Append) => Mode::Append,
        (TableNotExistOption::Fail, TableExistsOption::Replace) => Mode::ReplaceExisting,
        (TableNotExistOption::Fail, TableExistsOption::Fail) => {
            return Err(Error::invalid("an ingest that fails whether or not the table exists does nothing"));
        }
        (TableNotExistOption::Unspecified, _) | (_, TableExistsOption::Unspecified) => {
            return Err(Error::invalid(
                "the ingest does not say what to do when the table exists, and when it does not",
            ));
        }
    })
}
