//! DoGet: the rows of a ticket.

use super::{command, service::Flight};
use crate::{auth::Identity, error::Result, stream::RecordBatchStream};

impl Flight {
    pub(super) async fn get(&self, identity: &Identity, ticket: &[u8]) -> Result<RecordBatchStream> {
        let Some(claims) = self.authenticator.read_ticket(identity, ticket)? else {
            return match command::flight_sql("ticket", ticket)? {
                Some(command) => self.sql_rows(identity, command).await,
                None => self.engine.query(&identity.rights, &command::text("ticket", ticket)?).await,
            };
        };
        let starting = async {
            match &claims.note {
                Some(note) => self.sql_noted(identity, &claims.sql, note).await,
                None => self.engine.query(&identity.rights, &claims.sql).await,
            }
        };
        match &claims.place {
            None => self.running.begin(&claims.id).run(starting).await,
            Some(place) => self.shared.read(&claims, place, starting).await,
        }
    }
}
