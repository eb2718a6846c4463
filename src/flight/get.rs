//! DoGet: the rows of a ticket.

use super::{command, service::Flight};
use crate::{auth::Identity, error::Result, stream::RecordBatchStream};

impl Flight {
    pub(super) async fn get(&self, identity: &Identity, ticket: &[u8]) -> Result<RecordBatchStream> {
        match self.authenticator.read_ticket(identity, ticket)? {
            Some(claims) => {
                let stream = self.engine.query(&claims.sql).await?;
                Ok(self.running.track(&claims.id, stream))
            }
            None => self.engine.query(&command::text("ticket", ticket)?).await,
        }
    }
}
