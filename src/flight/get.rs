//! DoGet: the rows of a ticket.

use super::{command, service::Flight};
use crate::{auth::Identity, error::Result, stream::RecordBatchStream};

impl Flight {
    pub(super) async fn get(&self, identity: &Identity, ticket: &[u8]) -> Result<RecordBatchStream> {
        match self.authenticator.read_ticket(identity, ticket)? {
            Some(claims) => self.running.begin(&claims.id).run(self.engine.query(&claims.sql)).await,
            None => self.engine.query(&command::text("ticket", ticket)?).await,
        }
    }
}
