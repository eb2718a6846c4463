//! DoGet: the rows of a ticket.

use super::{command, service::Flight};
use crate::{
    auth::Identity,
    engine::{Act, Ask, status_row},
    error::{Error, Result},
    stream::RecordBatchStream,
};

impl Flight {
    pub(super) async fn get(&self, identity: &Identity, ticket: &[u8]) -> Result<RecordBatchStream> {
        let Some(claims) = self.authenticator.read_ticket(identity, ticket)? else {
            return match command::flight_sql("ticket", ticket)? {
                Some(command) => self.sql_rows(identity, command).await,
                None => self.text_rows(identity, &command::text("ticket", ticket)?).await,
            };
        };
        let mut identity = identity.clone();
        // As its FlightInfo has told, unless the call says otherwise.
        identity.lossless = identity.lossless.or(claims.lossless);
        let identity = &identity;
        let starting = async {
            match &claims.note {
                Some(note) => self.sql_noted(identity, &claims.sql, note).await,
                // A table, which is what everybody sees.
                None => {
                    identity.may_begin()?;
                    self.engine.answer(&identity.rights, &self.table_ask(identity, claims.sql.clone())).await
                }
            }
        };
        let used = self.running.begin(&identity.principal(), &claims.id)?;
        let Some(place) = &claims.place else { return used.run(starting).await };
        let rows = self.shared.read(&claims, place, starting).await?;
        if used.is_cancelled() {
            // Before it could be found there.
            self.shared.cancel(&claims.id);
            return Err(Error::Cancelled);
        }
        Ok(rows)
    }

    /// The rows of a text, in the caller's session where there is one: what it has set and made is there.
    pub(super) async fn text_rows(&self, identity: &Identity, sql: &str) -> Result<RecordBatchStream> {
        if Act::of(sql) != Act::Plain && self.sessions.has_one(identity) {
            let changed = self.act(identity, sql, None).await?;
            return status_row(changed.unwrap_or_default());
        }
        let ask = Ask { sql: sql.to_string(), ..self.sessions.place(identity, None)? };
        self.engine.answer(&identity.rights, &ask).await
    }
}
