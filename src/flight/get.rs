//! DoGet: the rows of a ticket.

use super::{command, service::Flight};
use crate::{auth::Identity, error::Result, stream::RecordBatchStream};

impl Flight {
    pub(super) async fn get(&self, identity: &Identity, ticket: &[u8]) -> Result<RecordBatchStream> {
        let Some(claims) = self.authenticator.read_ticket(identity, ticket)? else {
            return self.engine.query(&identity.rights, &command::text("ticket", ticket)?).await;
        };
        let starting = self.engine.query(&identity.rights, &claims.sql);
        match &claims.place {
            None => self.running.begin(&claims.id).run(starting).await,
            Some(place) => self.shared.read(&claims, place, starting).await,
        }
    }
}
