//! Prepared statements: kept as text with what was bound, planned anew for whoever runs them.
//!
//! DuckDB's own prepared statements belong to a connection; most statements here have one of their own, so what is kept
//! is the text, checked again with the caller's rights each time.

use std::sync::Arc;

use arrow_flight::{
    FlightInfo,
    sql::{
        ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, CommandPreparedStatementQuery,
        CommandPreparedStatementUpdate, DoPutPreparedStatementResult,
    },
};
use arrow_schema::{Schema, SchemaRef};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::TryStreamExt;

use super::{Carried, Note, named, nothing};
use crate::{
    auth::Identity,
    engine::{Act, Ask, Bound},
    error::{Error, Result},
    flight::service::Flight,
    session::{Handle, Prepared},
    stream::{RecordBatchStream, held_bytes, own_copy},
    wire::{Upload, schema_bytes},
};

/// What all tickets of a FlightInfo may carry of a statement and its values. Such tickets are good when the statement is closed:
/// ADBC's drivers close it before its partitions are read.
const CARRIED: usize = 64 * 1024;

impl Flight {
    pub(super) async fn create_prepared(
        &self,
        identity: &Identity,
        request: ActionCreatePreparedStatementRequest,
    ) -> Result<ActionCreatePreparedStatementResult> {
        let transaction = named(request.transaction_id.as_deref())?;
        self.check_one(identity, &request.query).await?;
        let (rows, parameters) = match Act::of(&request.query) {
            Act::Savepoint => return Err(super::statement::no_savepoints()),
            Act::Plain | Act::Stays => {
                let ask = Ask { sql: request.query.clone(), ..self.sessions.place(identity, transaction)? };
                let plan = self.engine.plan(&identity.rights, &ask).await?;
                (plan.rows, plan.parameters)
            }
            Act::Begin { .. } | Act::Commit | Act::Rollback => (None, Arc::new(Schema::empty())),
        };
        let handle = self.sessions.prepare(identity, &request.query, transaction)?;
        // Clients take a statement without columns for one to run for its effect.
        let rows = rows.unwrap_or_else(|| Arc::new(Schema::empty()));
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.bytes().into(),
            dataset_schema: schema_bytes(&rows)?,
            parameter_schema: schema_bytes(&parameters)?,
        })
    }

    /// DoPut of a query: the values of its parameters.
    pub(super) async fn bind_prepared(
        &self,
        identity: &Identity,
        query: CommandPreparedStatementQuery,
        upload: Upload,
    ) -> Result<DoPutPreparedStatementResult> {
        let handle = query.prepared_statement_handle;
        // Before anything is read for it.
        self.sessions.prepared(identity, &handle)?;
        let bound = self.bound(identity, upload).await?;
        self.sessions.bind(identity, &handle, bound)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    /// What an upload binds; nothing where it has no columns.
    async fn bound(&self, identity: &Identity, upload: Upload) -> Result<Option<Bound>> {
        let Some(mut stream) = upload.batches_if_any().await? else { return Ok(None) };
        let schema = stream.schema();
        let (mut batches, mut reserved) = (Vec::new(), self.sessions.reserve(identity));
        while let Some(batch) = stream.try_next().await? {
            reserved.grow(held_bytes(&batch))?;
            // The message that it came in goes: a statement may be kept for long.
            batches.push(own_copy(&batch)?.0);
        }
        if schema.fields().is_empty() {
            return Ok(None);
        }
        Ok(Some(Bound::new(schema, batches)?.holding(reserved)))
    }

    pub(super) async fn prepared_info(
        &self,
        identity: &Identity,
        query: &CommandPreparedStatementQuery,
        endpoints: usize,
    ) -> Result<FlightInfo> {
        let prepared = self.sessions.prepared(identity, &query.prepared_statement_handle)?;
        if let Some(changed) = self.act(identity, &prepared.sql, prepared.transaction).await? {
            return self.done_info(identity, changed);
        }
        let ask = self.asked(identity, &prepared)?;
        match self.engine.plan(&identity.rights, &ask).await?.rows {
            Some(schema) => {
                let handle = Handle::from_bytes(&query.prepared_statement_handle);
                let handle = handle.ok_or_else(|| Error::internal("a known handle is none"))?;
                let values = prepared.bound.as_ref().map(|bound| bound.to_ipc(CARRIED / endpoints)).transpose()?;
                let is_short = prepared.sql.len() * endpoints <= CARRIED && values != Some(None);
                let carried = is_short.then(|| Carried {
                    transaction: prepared.transaction,
                    values: values.flatten().map(|values| STANDARD.encode(values)),
                });
                let sql = if is_short { prepared.sql.as_str() } else { "" };
                let note = Note::Prepared { handle, binding: prepared.binding, carried };
                self.flight_info(identity, sql, note.text()?, &schema, endpoints)
            }
            None => {
                let changed = self.engine.update(&identity.rights, &ask).await?;
                self.done_info(identity, changed)
            }
        }
    }

    pub(super) async fn prepared_schema(
        &self,
        identity: &Identity,
        query: &CommandPreparedStatementQuery,
    ) -> Result<SchemaRef> {
        let prepared = self.sessions.prepared(identity, &query.prepared_statement_handle)?;
        let none = Arc::new(Schema::empty());
        if Act::of(&prepared.sql) != Act::Plain {
            return Ok(none);
        }
        let ask = self.asked(identity, &prepared)?;
        Ok(self.engine.plan(&identity.rights, &ask).await?.rows.unwrap_or(none))
    }

    /// DoGet of a ticket that [`Self::prepared_info`] handed out.
    pub(super) async fn prepared_noted(
        &self,
        identity: &Identity,
        sql: &str,
        (handle, binding): (Handle, u64),
        carried: Option<Carried>,
    ) -> Result<RecordBatchStream> {
        let ask = match (self.sessions.prepared(identity, &handle.bytes()), carried) {
            (Ok(prepared), _) if prepared.binding != binding => {
                return Err(Error::State(
                    "other values were bound to the statement since its FlightInfo was asked for; ask for it again"
                        .into(),
                ));
            }
            (Ok(prepared), _) => self.asked(identity, &prepared)?,
            // It was closed since.
            (Err(Error::NotFound(_)), Some(Carried { transaction, values })) => {
                let decoded = values.map(|values| STANDARD.decode(values).map_err(Error::internal)).transpose()?;
                let bound = decoded.map(|bytes| Bound::from_ipc(&bytes)).transpose()?;
                Ask { sql: sql.to_string(), bound, ..self.sessions.place(identity, transaction)? }
            }
            (Err(error), _) => return Err(error),
        };
        self.engine.answer(&identity.rights, &ask).await
    }

    /// DoGet of the command itself.
    pub(super) async fn prepared_rows(
        &self,
        identity: &Identity,
        query: &CommandPreparedStatementQuery,
    ) -> Result<RecordBatchStream> {
        let prepared = self.sessions.prepared(identity, &query.prepared_statement_handle)?;
        if self.act(identity, &prepared.sql, prepared.transaction).await?.is_some() {
            return Ok(nothing());
        }
        let ask = self.asked(identity, &prepared)?;
        match self.engine.plan(&identity.rights, &ask).await?.rows {
            Some(_) => self.engine.answer(&identity.rights, &ask).await,
            None => self.engine.update(&identity.rights, &ask).await.map(|_changed| nothing()),
        }
    }

    /// DoPut of an update: runs it with the values that come with it, or with those bound before.
    pub(super) async fn prepared_update(
        &self,
        identity: &Identity,
        update: CommandPreparedStatementUpdate,
        upload: Upload,
    ) -> Result<i64> {
        let handle = update.prepared_statement_handle;
        let mut prepared = self.sessions.prepared(identity, &handle)?;
        if let Some(bound) = self.bound(identity, upload).await? {
            prepared.bound = Some(bound);
        }
        if let Some(changed) = self.act(identity, &prepared.sql, prepared.transaction).await? {
            return Ok(changed);
        }
        let ask = self.asked(identity, &prepared)?;
        self.engine.update(&identity.rights, &ask).await
    }

    fn asked(&self, identity: &Identity, prepared: &Prepared) -> Result<Ask> {
        let place = self.sessions.place(identity, prepared.transaction)?;
        Ok(Ask { sql: prepared.sql.clone(), bound: prepared.bound.clone(), ..place })
    }
}
