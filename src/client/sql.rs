//! Flight SQL, as far as our own command line uses it: statements in a session, and with values for their parameters.

use arrow_array::RecordBatch;
use arrow_flight::{
    Action, FlightDescriptor, FlightInfo,
    sql::{
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
        Any, CommandPreparedStatementQuery, CommandStatementQuery, ProstMessageExt,
    },
};
use bytes::Bytes;
use futures::{TryFutureExt, TryStreamExt};
use prost::Message;
use tonic::Code;

use super::Client;
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// What a statement in a session has answered.
pub enum Answered {
    Rows(RecordBatchStream),
    /// It has run, and changed so many rows.
    Changed(i64),
}

impl Client {
    /// Opens a session for a client without a login, where the server keeps one by a cookie.
    pub async fn open_session(&mut self) -> Result<()> {
        if self.headers.has_login() {
            return Ok(());
        }
        let (span, request) = self.request("DoAction", Action::new("SetSessionOptions", Bytes::new()));
        let mut flight = self.flight.clone();
        let opened = async {
            let answer = flight.do_action(request).await?;
            let kept = answer.metadata().clone();
            answer.into_inner().try_for_each(async |_| Ok(())).await?;
            Ok(kept)
        };
        match span.of(opened.map_err(|status| self.broken()(&status))).await {
            Ok(kept) => self.headers.keep_cookie(&kept),
            // Not every server has sessions.
            Err(error) if matches!(error.code(), Code::Unimplemented | Code::InvalidArgument | Code::NotFound) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Ends the session that [`Self::open_session`] has opened; one of a login ends with that.
    pub async fn close_session(&self) -> Result<()> {
        if self.headers.has_cookie() {
            self.action_with("CloseSession", Bytes::new()).await?.try_for_each(async |_| Ok(())).await?;
        }
        Ok(())
    }

    /// Runs one statement in the session of this client.
    pub async fn statement(&self, sql: &str) -> Result<Answered> {
        let command = CommandStatementQuery { query: sql.to_string(), transaction_id: None };
        self.answered(FlightDescriptor::new_cmd(command.as_any().encode_to_vec())).await
    }

    /// Runs one statement with values for its parameters: once for each row.
    pub async fn statement_with(&self, sql: &str, values: RecordBatch) -> Result<Answered> {
        let request = ActionCreatePreparedStatementRequest { query: sql.to_string(), transaction_id: None };
        let body = Bytes::from(request.as_any().encode_to_vec());
        let created = self.action_with("CreatePreparedStatement", body).await?.try_next().await?;
        let malformed = || Error::Stream(format!("{}: CreatePreparedStatement answered no handle", self.peer()));
        let created = created.and_then(|body| Any::decode(body).ok()?.unpack().ok()?);
        let created: ActionCreatePreparedStatementResult = created.ok_or_else(malformed)?;
        let handle = created.prepared_statement_handle;
        let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let bound = RecordBatchStream::from_batches(values.schema(), vec![values]);
        let answered = match self.put_to(descriptor.clone(), bound).await {
            Ok(_) => self.answered(descriptor).await,
            Err(error) => Err(error),
        };
        // It has started, and needs what was kept no longer.
        let request = ActionClosePreparedStatementRequest { prepared_statement_handle: handle };
        let closed = self.action_with("ClosePreparedStatement", Bytes::from(request.as_any().encode_to_vec())).await;
        let closed = match closed {
            Ok(mut results) => results.try_next().await.map(drop),
            Err(error) => Err(error),
        };
        if let (Ok(_), Err(error)) = (&answered, closed) {
            tracing::debug!(%error, "a prepared statement could not be closed; the server forgets it");
        }
        answered
    }

    async fn answered(&self, descriptor: FlightDescriptor) -> Result<Answered> {
        let info: FlightInfo = self.info(descriptor).await?;
        let changed = info.total_records;
        let schema = info.clone().try_decode_schema();
        let schema =
            schema.map_err(|error| Error::Stream(format!("{}: the FlightInfo has no schema: {error}", self.peer())))?;
        if schema.fields().is_empty() {
            return Ok(Answered::Changed(changed));
        }
        let ticket = info.endpoint.into_iter().find_map(|endpoint| endpoint.ticket);
        let ticket = ticket.ok_or_else(|| Error::Stream(format!("{}: the FlightInfo has no ticket", self.peer())))?;
        self.get(ticket).await.map(Answered::Rows)
    }
}
