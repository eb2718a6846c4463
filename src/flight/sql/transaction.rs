//! The actions BeginTransaction, EndTransaction and CancelQuery.

use arrow_flight::{
    FlightInfo,
    sql::{
        ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult, ActionEndTransactionRequest,
        EndTransaction,
    },
};
use prost::Message;

use super::named;
use crate::{
    auth::Identity,
    error::{Error, Result},
    flight::service::Flight,
};

impl Flight {
    pub(super) async fn begin_transaction(&self, identity: &Identity) -> Result<ActionBeginTransactionResult> {
        let handle = self.sessions.begin(identity).await?;
        Ok(ActionBeginTransactionResult { transaction_id: handle.bytes().into() })
    }

    pub(super) async fn end_transaction(
        &self,
        identity: &Identity,
        request: &ActionEndTransactionRequest,
    ) -> Result<()> {
        let commit = match request.action() {
            EndTransaction::Commit => true,
            EndTransaction::Rollback => false,
            EndTransaction::Unspecified => {
                return Err(Error::invalid("EndTransaction says neither commit nor rollback"));
            }
        };
        let transaction = named(Some(&request.transaction_id))?;
        let transaction = transaction.ok_or_else(|| Error::invalid("EndTransaction names no transaction"))?;
        self.sessions.end(identity, transaction, commit).await
    }

    /// As clients asked before there was CancelFlightInfo.
    pub(super) fn cancel_query(
        &self,
        identity: &Identity,
        request: &ActionCancelQueryRequest,
    ) -> Result<ActionCancelQueryResult> {
        /// ActionCancelQueryResult.CancelResult, which arrow-flight does not name.
        const CANCELLED: i32 = 1;
        const NOT_CANCELLABLE: i32 = 3;
        let info = FlightInfo::decode(request.info.clone())
            .map_err(|error| Error::invalid(format!("the FlightInfo of CancelQuery is malformed: {error}")))?;
        let result = if self.cancel(identity, info)? { CANCELLED } else { NOT_CANCELLABLE };
        Ok(ActionCancelQueryResult { result })
    }
}
