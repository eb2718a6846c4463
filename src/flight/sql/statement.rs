//! CommandStatementQuery and CommandStatementUpdate: one statement as text.

use std::sync::Arc;

use arrow_flight::{
    FlightInfo,
    sql::{CommandStatementQuery, CommandStatementUpdate},
};
use arrow_schema::{Schema, SchemaRef};

use super::{Note, nothing};
use crate::{auth::Identity, engine::Plan, error::Result, flight::service::Flight, stream::RecordBatchStream};

impl Flight {
    pub(super) async fn statement_info(
        &self,
        identity: &Identity,
        query: &CommandStatementQuery,
        endpoints: usize,
    ) -> Result<FlightInfo> {
        match self.engine.plan(&identity.rights, &query.query).await? {
            Plan::Rows(schema) => self.flight_info(identity, &query.query, Note::Query.text()?, &schema, endpoints),
            Plan::Effect => {
                let changed = self.engine.update(&identity.rights, &query.query).await?;
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
        Ok(match self.engine.plan(&identity.rights, &query.query).await? {
            Plan::Rows(schema) => schema,
            Plan::Effect => Arc::new(Schema::empty()),
        })
    }

    /// A client that leaves GetFlightInfo out has its rows in one round trip.
    pub(super) async fn statement_rows(
        &self,
        identity: &Identity,
        query: &CommandStatementQuery,
    ) -> Result<RecordBatchStream> {
        match self.engine.plan(&identity.rights, &query.query).await? {
            Plan::Rows(_) => self.engine.query(&identity.rights, &query.query).await,
            Plan::Effect => {
                self.engine.update(&identity.rights, &query.query).await?;
                Ok(nothing())
            }
        }
    }

    pub(super) async fn statement_update(&self, identity: &Identity, update: &CommandStatementUpdate) -> Result<i64> {
        self.engine.update(&identity.rights, &update.query).await
    }
}
