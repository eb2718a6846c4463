//! One result over several connections at once.

use arrow_flight::{FlightDescriptor, Ticket};
use futures::{StreamExt, future::try_join_all};
use tokio::task::JoinSet;

use super::Client;
use crate::{
    error::{Error, Result},
    stream::{self, RecordBatchStream},
};

/// The header of GetFlightInfo that asks for a number of endpoints.
pub const ENDPOINTS_HEADER: &str = "x-mallard-endpoints";

/// Batches of each connection that wait for whoever reads.
const CHANNEL_BATCHES: usize = 2;

/// Bytes of all connections that wait.
const CHANNEL_BYTES: u64 = 64 * 1024 * 1024;

impl Client {
    /// The rows of one SQL statement over so many connections of its own, in no order. Dropping the stream cancels it on
    /// the server. One is [`Self::query`].
    pub async fn query_endpoints(&self, sql: &str, count: usize) -> Result<RecordBatchStream> {
        match count {
            1 => self.query(sql).await,
            _ => self.endpoints(FlightDescriptor::new_cmd(sql.to_string()), count).await,
        }
    }

    /// The same of a table, named by its parts.
    pub async fn table_endpoints(&self, path: &[String], count: usize) -> Result<RecordBatchStream> {
        match count {
            1 => self.table(path).await,
            _ => self.endpoints(FlightDescriptor::new_path(path.to_vec()), count).await,
        }
    }

    async fn endpoints(&self, descriptor: FlightDescriptor, count: usize) -> Result<RecordBatchStream> {
        let info = self.info_of(descriptor, Some(count)).await?;
        let tickets: Vec<Ticket> = info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket).collect();
        if tickets.len() > count {
            let (peer, there) = (&self.peer, tickets.len());
            return Err(Error::Stream(format!(
                "{peer}: the FlightInfo has {there} endpoints where {count} were asked for"
            )));
        }
        // The first ticket that is used starts the statement, so all connections are there before.
        let connections = tickets.iter().map(|_| self.another());
        let connections = try_join_all(connections).await?;
        let opening = connections.iter().zip(tickets).map(|(connection, ticket)| connection.get(ticket));
        let streams = try_join_all(opening).await?;
        Ok(self.merged(streams)?.holding(connections))
    }

    /// Each stream is read and decoded by a task of its own; all end with the first error, or when nobody reads.
    fn merged(&self, streams: Vec<RecordBatchStream>) -> Result<RecordBatchStream> {
        let none = || Error::Stream(format!("{}: the FlightInfo has no ticket", self.peer));
        let schema = streams.first().ok_or_else(none)?.schema();
        if streams.iter().any(|stream| stream.schema() != schema) {
            return Err(Error::Stream(format!("{}: the endpoints of a result differ in their schemas", self.peer)));
        }
        let (sender, batches) = stream::channel(CHANNEL_BATCHES * streams.len(), CHANNEL_BYTES);
        let mut reading = JoinSet::new();
        for mut stream in streams {
            let sender = sender.clone();
            reading.spawn(async move {
                while let Some(batch) = stream.next().await {
                    if !sender.send(batch).await {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let merged = futures::stream::try_unfold((batches, reading), async |(mut batches, mut reading)| {
            match batches.next().await {
                Some(batch) => Ok(Some((batch?, (batches, reading)))),
                None => {
                    // A task that panicked has not sent all of its rows.
                    while let Some(ended) = reading.join_next().await {
                        ended.map_err(Error::internal)?;
                    }
                    Ok(None)
                }
            }
        });
        Ok(RecordBatchStream::new(schema, merged))
    }
}
