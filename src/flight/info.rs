//! ListFlights, GetFlightInfo, GetSchema, PollFlightInfo: what could be read, and the tickets to read it with.

use std::time::{Duration, SystemTime};

use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, PollInfo, SchemaResult, Ticket};
use arrow_schema::{Schema, SchemaRef};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::{
    command::{Command, select_from},
    service::Flight,
};
use crate::{
    auth::Identity,
    engine::{Act, Ask, Settings, TablePage, TablePlace, status_schema},
    error::{Error, Result},
    wire::schema_bytes,
};

/// Each ticket holds its statement, and stock clients refuse messages above 4 MiB, in which the schema must have room, too.
const MAX_TICKETS_BYTES: usize = 3 * 1024 * 1024;

/// What of the list of tables comes next.
enum Page {
    Ready(TablePage),
    After(TablePlace),
}

impl Flight {
    /// Plans the statement, does not run it, and hands out as many tickets for it as endpoints are asked for.
    pub(super) async fn info(
        &self,
        identity: &Identity,
        descriptor: FlightDescriptor,
        endpoints: usize,
    ) -> Result<FlightInfo> {
        let (sql, rows) = match Command::from_descriptor(&descriptor)? {
            // A table's row count is in its metadata.
            Command::Table(table) => {
                identity.may_begin()?;
                (select_from(&table), self.engine.count(&identity.rights, &table).await?)
            }
            Command::Text(sql) => {
                let schema = self.text_schema(identity, &sql).await?;
                let info = self.flight_info(identity, &sql, super::sql::text_note()?, &schema, endpoints)?;
                return Ok(info.with_descriptor(descriptor));
            }
            Command::FlightSql(command) => {
                let info = self.sql_info(identity, command, endpoints).await?;
                return Ok(info.with_descriptor(descriptor));
            }
        };
        let schema = self.engine.schema(&identity.rights, &self.table_ask(identity, sql.clone())).await?;
        let info = self.flight_info(identity, &sql, None, &schema, endpoints)?;
        Ok(info.with_descriptor(descriptor).with_total_records(rows))
    }

    /// The rows of a table that everybody sees, in the form that the caller gets.
    pub(super) fn table_ask(&self, identity: &Identity, sql: String) -> Ask {
        let settings = Settings { lossless: Some(self.is_lossless(identity)), ..Settings::default() };
        Ask { sql, settings, ..Ask::default() }
    }

    /// The columns of a text's rows, planned in the caller's session where there is one.
    async fn text_schema(&self, identity: &Identity, sql: &str) -> Result<SchemaRef> {
        if matches!(Act::of(sql), Act::Begin { .. } | Act::Commit | Act::Rollback) && self.sessions.has_one(identity) {
            return Ok(status_schema());
        }
        let ask = Ask { sql: sql.to_string(), ..self.sessions.place(identity, None)? };
        Ok(self.engine.plan(&identity.rights, &ask).await?.rows.unwrap_or_else(status_schema))
    }

    pub(super) async fn poll(
        &self,
        identity: &Identity,
        descriptor: FlightDescriptor,
        endpoints: usize,
    ) -> Result<PollInfo> {
        let info = self.info(identity, descriptor, endpoints).await?;
        // No descriptor means that there is nothing to poll for: the statement is planned.
        PollInfo::new().with_info(info).try_with_progress(1.0).map_err(Error::internal)
    }

    pub(super) async fn schema(&self, identity: &Identity, descriptor: &FlightDescriptor) -> Result<SchemaResult> {
        let schema = match Command::from_descriptor(descriptor)? {
            Command::Table(table) => {
                identity.may_begin()?;
                self.engine.schema(&identity.rights, &self.table_ask(identity, select_from(&table))).await?
            }
            Command::Text(sql) => self.text_schema(identity, &sql).await?,
            Command::FlightSql(command) => self.sql_schema(identity, command).await?,
        };
        Ok(SchemaResult { schema: schema_bytes(&schema)? })
    }

    /// The tables and views whose `schema.table` matches the criteria, a glob; empty means all. A page of them is there when
    /// this returns, and the next one is asked for when the client has taken it.
    pub(super) async fn list(
        &self,
        identity: &Identity,
        criteria: &[u8],
    ) -> Result<impl Stream<Item = Result<FlightInfo>> + Send + use<>> {
        let glob = match criteria {
            [] => "*".to_string(),
            bytes => super::command::text("criteria expression", bytes)?,
        };
        let lossless = self.is_lossless(identity);
        let first = self.engine.tables(&identity.rights, &glob, TablePlace::default(), lossless).await?;
        let (flight, caller) = (self.clone(), identity.clone());
        let pages = stream::try_unfold(Some(Page::Ready(first)), move |page| {
            let (flight, caller, glob) = (flight.clone(), caller.clone(), glob.clone());
            async move {
                let TablePage { tables, next } = match page {
                    None => return Ok::<_, Error>(None),
                    Some(Page::Ready(ready)) => ready,
                    Some(Page::After(place)) => flight.engine.tables(&caller.rights, &glob, place, lossless).await?,
                };
                Ok(Some((tables, next.map(Page::After))))
            }
        });
        let (flight, caller) = (self.clone(), identity.clone());
        let flights = pages.map_ok(move |tables| {
            let (flight, caller) = (flight.clone(), caller.clone());
            stream::iter(tables).map(move |(table, schema)| {
                let descriptor = FlightDescriptor::new_path(table.parts().to_vec());
                let info = flight.flight_info(&caller, &select_from(&table), None, &schema, 1)?;
                Ok(info.with_descriptor(descriptor))
            })
        });
        Ok(flights.try_flatten())
    }

    /// `note` is for whoever answers the tickets.
    pub(super) fn flight_info(
        &self,
        identity: &Identity,
        sql: &str,
        note: Option<String>,
        schema: &Schema,
        endpoints: usize,
    ) -> Result<FlightInfo> {
        let mut told = identity.clone();
        told.lossless = Some(self.is_lossless(identity));
        let (tickets, life) = self.authenticator.tickets(&told, sql, note, endpoints)?;
        if endpoints > 1 && tickets.iter().map(Vec::len).sum::<usize>() > MAX_TICKETS_BYTES {
            return Err(Error::invalid(format!(
                "{endpoints} tickets of a statement of {} bytes do not fit into a FlightInfo; ask for fewer endpoints",
                sql.len()
            )));
        }
        // Several endpoints are in no order: whoever reads gets the next batch.
        let mut info = FlightInfo::new().with_ordered(false).with_total_records(-1);
        for ticket in tickets {
            // No location: the ticket is good at the server that made it.
            let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
            info = info.with_endpoint(endpoint.with_expiration_time(timestamp(life)));
        }
        info.schema = schema_bytes(schema)?;
        Ok(info)
    }
}

/// `life` from now, as protobuf writes it.
pub(super) fn timestamp(life: Duration) -> prost_types::Timestamp {
    prost_types::Timestamp::from(SystemTime::now() + life)
}
