//! CommandStatementQuery and CommandStatementUpdate: a text of one statement or of several.

use std::sync::Arc;

use arrow_flight::{
    FlightInfo,
    sql::{CommandStatementQuery, CommandStatementUpdate},
};
use arrow_schema::{Schema, SchemaRef};

use super::{Note, named, nothing};
use crate::{
    auth::Identity,
    engine::{Act, Ask, may_hold_several},
    error::{Error, Result},
    flight::service::Flight,
    session::Handle,
    stream::RecordBatchStream,
};

/// What is left of a text to be answered: its last statement, mostly its only one.
struct Last {
    sql: String,
    /// How many statements the text holds, where they are several, and on which line this one begins.
    place: Option<(usize, usize)>,
}

impl Last {
    fn tell<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| match self.place {
            Some((count, line)) => error.of_statement(count, count, line),
            None => error,
        })
    }
}

impl Flight {
    /// All statements of the text but the last run here; that one is planned, and runs when its ticket is used, or here where it
    /// has no rows.
    pub(super) async fn statement_info(
        &self,
        identity: &Identity,
        query: &CommandStatementQuery,
        endpoints: usize,
    ) -> Result<FlightInfo> {
        let transaction = named(query.transaction_id.as_deref())?;
        let last = self.up_to_last(identity, &query.query, transaction).await?;
        let info = async {
            if let Some(changed) = self.act(identity, &last.sql, transaction).await? {
                return self.done_info(identity, changed);
            }
            let ask = Ask { sql: last.sql.clone(), ..self.sessions.place(identity, transaction)? };
            match self.engine.plan(&identity.rights, &ask).await?.rows {
                Some(schema) => {
                    self.flight_info(identity, &ask.sql, Note::Query { transaction }.text()?, &schema, endpoints)
                }
                None => {
                    let changed = self.engine.update(&identity.rights, &ask).await?;
                    self.done_info(identity, changed)
                }
            }
        };
        last.tell(info.await)
    }

    /// The FlightInfo of a statement that has run and has no rows: clients take the count for the rows it changed.
    pub(super) fn done_info(&self, identity: &Identity, changed: i64) -> Result<FlightInfo> {
        let info = self.flight_info(identity, "", Note::Done.text()?, &Schema::empty(), 1)?;
        Ok(info.with_total_records(changed))
    }

    pub(super) async fn statement_schema(
        &self,
        identity: &Identity,
        query: &CommandStatementQuery,
    ) -> Result<SchemaRef> {
        self.check_one(identity, &query.query).await?;
        let none = Arc::new(Schema::empty());
        if Act::of(&query.query) != Act::Plain {
            return Ok(none);
        }
        let transaction = named(query.transaction_id.as_deref())?;
        let ask = Ask { sql: query.query.clone(), ..self.sessions.place(identity, transaction)? };
        Ok(self.engine.plan(&identity.rights, &ask).await?.rows.unwrap_or(none))
    }

    /// A client that leaves GetFlightInfo out has its rows in one round trip.
    pub(super) async fn statement_rows(
        &self,
        identity: &Identity,
        query: &CommandStatementQuery,
    ) -> Result<RecordBatchStream> {
        let transaction = named(query.transaction_id.as_deref())?;
        let last = self.up_to_last(identity, &query.query, transaction).await?;
        let rows = async {
            if self.act(identity, &last.sql, transaction).await?.is_some() {
                return Ok(nothing());
            }
            let ask = Ask { sql: last.sql.clone(), ..self.sessions.place(identity, transaction)? };
            match self.engine.plan(&identity.rights, &ask).await?.rows {
                Some(_) => self.engine.answer(&identity.rights, &ask).await,
                None => self.engine.update(&identity.rights, &ask).await.map(|_changed| nothing()),
            }
        };
        last.tell(rows.await)
    }

    /// How many rows the last statement of the text has changed.
    pub(super) async fn statement_update(&self, identity: &Identity, update: &CommandStatementUpdate) -> Result<i64> {
        let transaction = named(update.transaction_id.as_deref())?;
        let last = self.up_to_last(identity, &update.query, transaction).await?;
        last.tell(self.run(identity, &last.sql, transaction).await)
    }

    /// Runs one statement for its effect.
    async fn run(&self, identity: &Identity, sql: &str, transaction: Option<Handle>) -> Result<i64> {
        if let Some(changed) = self.act(identity, sql, transaction).await? {
            return Ok(changed);
        }
        let ask = Ask { sql: sql.to_string(), ..self.sessions.place(identity, transaction)? };
        self.engine.update(&identity.rights, &ask).await
    }

    /// Runs all statements of a text but the last, each guarded right before it runs: what the ones before have made and set
    /// is there. Nothing runs of a text that does not parse.
    async fn up_to_last(&self, identity: &Identity, text: &str, transaction: Option<Handle>) -> Result<Last> {
        if !may_hold_several(text) {
            return Ok(Last { sql: text.to_string(), place: None });
        }
        let mut parts = self.engine.parts(&identity.rights, text).await?;
        let count = parts.len();
        let Some(last) = parts.pop().filter(|_| count > 1) else {
            return Ok(Last { sql: text.to_string(), place: None });
        };
        for (at, part) in parts.into_iter().enumerate() {
            let ran = self.run(identity, &part.sql, transaction).await;
            ran.map_err(|error| error.of_statement(at + 1, count, part.line))?;
        }
        Ok(Last { sql: last.sql, place: Some((count, last.line)) })
    }

    /// Fails for a text of several statements.
    pub(super) async fn check_one(&self, identity: &Identity, text: &str) -> Result<()> {
        if may_hold_several(text) {
            let count = self.engine.parts(&identity.rights, text).await?.len();
            if count > 1 {
                // So answered, ADBC's drivers send the text as a statement.
                return Err(Error::Unsupported(format!(
                    "the text holds {count} statements, and one is planned or prepared at a time: send them as \
                     CommandStatementQuery or CommandStatementUpdate, which run more than one statement in order"
                )));
            }
        }
        Ok(())
    }

    /// Runs a text that changes the session or its transaction; nothing where it does not.
    pub(in crate::flight) async fn act(
        &self,
        identity: &Identity,
        sql: &str,
        transaction: Option<Handle>,
    ) -> Result<Option<i64>> {
        let sessions = &self.sessions;
        match (Act::of(sql), transaction) {
            (Act::Plain, _) => return Ok(None),
            (Act::Begin { read_only }, Some(handle)) => sessions.begin_within(identity, handle, read_only).await?,
            (Act::Begin { read_only }, None) => sessions.begin_text(identity, read_only).await?,
            (Act::Commit, None) => sessions.end_text(identity, true).await?,
            (Act::Rollback, None) => sessions.end_text(identity, false).await?,
            (Act::Commit, Some(handle)) => sessions.end_within(identity, handle, true).await?,
            (Act::Rollback, Some(handle)) => sessions.end_within(identity, handle, false).await?,
            (Act::Savepoint, _) => return Err(no_savepoints()),
            (Act::Stays, transaction) => {
                let mut ask = Ask { sql: sql.to_string(), ..sessions.place(identity, transaction)? };
                if let Some(handle) = transaction {
                    sessions.settle(identity, handle)?;
                }
                if ask.line.is_none() {
                    ask.line = Some(sessions.home(identity)?);
                }
                return self.engine.update(&identity.rights, &ask).await.map(Some);
            }
        }
        Ok(Some(0))
    }
}

pub(super) fn no_savepoints() -> Error {
    Error::Unsupported("savepoints are not served: DuckDB has none".into())
}
