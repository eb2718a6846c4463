//! CommandStatementQuery and CommandStatementUpdate: one statement as text.

use std::sync::Arc;

use arrow_flight::{
    FlightInfo,
    sql::{CommandStatementQuery, CommandStatementUpdate},
};
use arrow_schema::{Schema, SchemaRef};

use super::{Note, named, nothing};
use crate::{
    auth::Identity,
    engine::{Act, Ask},
    error::{Error, Result},
    flight::service::Flight,
    session::Handle,
    stream::RecordBatchStream,
};

impl Flight {
    pub(super) async fn statement_info(
        &self,
        identity: &Identity,
        query: &CommandStatementQuery,
        endpoints: usize,
    ) -> Result<FlightInfo> {
        let transaction = named(query.transaction_id.as_deref())?;
        if let Some(changed) = self.act(identity, &query.query, transaction).await? {
            return self.done_info(identity, changed);
        }
        let ask = Ask { sql: query.query.clone(), ..self.sessions.place(identity, transaction)? };
        match self.engine.plan(&identity.rights, &ask).await?.rows {
            Some(schema) => {
                self.flight_info(identity, &ask.sql, Note::Query { transaction }.text()?, &schema, endpoints)
            }
            None => {
                let changed = self.engine.update(&identity.rights, &ask).await?;
                self.done_info(identity, changed)
            }
        }
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
        if self.act(identity, &query.query, transaction).await?.is_some() {
            return Ok(nothing());
        }
        let ask = Ask { sql: query.query.clone(), ..self.sessions.place(identity, transaction)? };
        match self.engine.plan(&identity.rights, &ask).await?.rows {
            Some(_) => self.engine.answer(&identity.rights, &ask).await,
            None => self.engine.update(&identity.rights, &ask).await.map(|_changed| nothing()),
        }
    }

    pub(super) async fn statement_update(&self, identity: &Identity, update: &CommandStatementUpdate) -> Result<i64> {
        let transaction = named(update.transaction_id.as_deref())?;
        if let Some(changed) = self.act(identity, &update.query, transaction).await? {
            return Ok(changed);
        }
        let ask = Ask { sql: update.query.clone(), ..self.sessions.place(identity, transaction)? };
        self.engine.update(&identity.rights, &ask).await
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
            (Act::Begin { .. }, Some(_)) => {
                return Err(Error::State("a transaction is open already; end it first".into()));
            }
            (Act::Begin { read_only }, None) => sessions.begin_text(identity, read_only).await?,
            (Act::Commit, None) => sessions.end_text(identity, true).await?,
            (Act::Rollback, None) => sessions.end_text(identity, false).await?,
            (Act::Commit, Some(handle)) => sessions.end(identity, handle, true).await?,
            (Act::Rollback, Some(handle)) => sessions.end(identity, handle, false).await?,
            (Act::Savepoint, _) => return Err(no_savepoints()),
            (Act::Stays, transaction) => {
                let mut ask = Ask { sql: sql.to_string(), ..sessions.place(identity, transaction)? };
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
