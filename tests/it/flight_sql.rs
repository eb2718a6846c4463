//! Flight SQL through arrow-flight's own client, and message by message where a client does what that one does not.

mod ingest;
mod interleavings;
mod jdbc;
mod prepared;
mod session;
mod statement;
mod transaction;

use arrow_array::RecordBatch;
use arrow_flight::{
    FlightDescriptor, FlightInfo,
    sql::{ProstMessageExt, client::FlightSqlServiceClient},
};
use arrow_schema::Schema;
use bytes::Bytes;
use futures::TryStreamExt;
use prost::Message;
use tonic::{Code, transport::Channel};

use crate::support::{PASSWORD, TestServer};

pub(crate) type Sql = FlightSqlServiceClient<Channel>;

/// A descriptor that is a message of Flight SQL.
pub(crate) fn message(command: &impl ProstMessageExt) -> FlightDescriptor {
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

impl TestServer {
    /// A stock client without a login.
    pub(crate) async fn sql(&self) -> Sql {
        Sql::new(self.channel().await)
    }

    /// A stock client in a session of its own.
    pub(crate) async fn sql_of(&self, user: &str) -> Sql {
        let mut client = self.sql().await;
        client.handshake(user, PASSWORD).await.expect("the login");
        client
    }
}

/// Every endpoint's rows, and the schema that was announced, which is that of each of them.
pub(crate) async fn rows(client: &mut Sql, info: FlightInfo) -> (Schema, Vec<RecordBatch>) {
    let endpoints = info.endpoint.clone();
    let announced = info.try_decode_schema().expect("the info has a schema");
    let mut batches = Vec::new();
    for endpoint in endpoints {
        let mut stream = client.do_get(endpoint.ticket.expect("a ticket")).await.expect("the rows begin");
        while let Some(batch) = stream.try_next().await.expect("the rows go on") {
            assert_eq!(batch.schema().as_ref(), &announced);
            batches.push(batch);
        }
        assert_eq!(stream.schema().expect("a schema, also without rows").as_ref(), &announced);
    }
    (announced, batches)
}

/// A query's rows as texts, columns separated by `|`.
pub(crate) async fn table(client: &mut Sql, sql: &str) -> Vec<String> {
    table_in(client, sql, None).await
}

/// The same within a transaction.
pub(crate) async fn table_in(client: &mut Sql, sql: &str, transaction: Option<&Bytes>) -> Vec<String> {
    let info = client.execute(sql.into(), transaction.cloned()).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    texts(&rows(client, info).await.1)
}

pub(crate) fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let options = arrow_cast::display::FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| {
                arrow_cast::display::ArrayFormatter::try_new(column, &options).expect("a column that can be shown")
            })
            .collect();
        lines.extend(
            (0..batch.num_rows())
                .map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|")),
        );
    }
    lines
}

/// Runs a statement for its effect.
pub(crate) async fn update(client: &mut Sql, sql: &str) -> i64 {
    client.execute_update(sql.into(), None).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// An action with a body that is no Any, as Flight itself has them: the one result, and the answer's headers.
pub(crate) async fn action(
    client: &mut Sql,
    name: &str,
    body: Vec<u8>,
    headers: &[(&'static str, String)],
) -> Result<(Bytes, tonic::metadata::MetadataMap), tonic::Status> {
    let mut request = tonic::Request::new(arrow_flight::Action::new(name, body));
    if let Some(token) = client.token() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    let answer = client.inner_mut().do_action(request).await?;
    let headers = answer.metadata().clone();
    let results: Vec<_> = answer.into_inner().try_collect().await?;
    Ok((results.into_iter().next().map(|result| result.body).unwrap_or_default(), headers))
}

/// The code and the message that a call was refused with.
pub(crate) fn refused<T>(outcome: Result<T, arrow_flight::error::FlightError>) -> (Code, String) {
    match outcome {
        Ok(_) => panic!("it was let through"),
        Err(arrow_flight::error::FlightError::Tonic(status)) => (status.code(), status.message().to_string()),
        Err(other) => panic!("no status: {other}"),
    }
}
