//! The ways rows go between a client and servers, as the demo shows them and the benchmark measures them.

use arrow_array::{Array, RecordBatch, cast::AsArray};
use arrow_schema::Schema;
use futures::StreamExt;
use serde_json::{Value, json};

use super::progress::Meter;
use crate::{
    access::Rights,
    client::{Client, Login},
    engine::{Engine, Fingerprint, Mode, TableName},
    error::{Error, Result},
    location::Location,
    stream::RecordBatchStream,
    transfer::{Progress, first_row},
};

/// The exchanger that every server has and that changes every row.
pub(super) const PROCESSED: &str = "processed";

/// Reads to the end; `each` may look at a batch or keep it.
pub(super) async fn drain(mut rows: RecordBatchStream, mut each: impl FnMut(RecordBatch)) -> Result<()> {
    while let Some(batch) = rows.next().await {
        each(batch?);
    }
    Ok(())
}

/// The body of the action that makes a server pull `table` of `from` into its own, new table `to`.
pub(super) fn order(from: &Location, login: Option<&Login>, table: &str, to: &str, verify: bool) -> Value {
    let mut body = json!({"from": from.to_string(), "table": table, "to": to, "verify": verify});
    if let Some(login) = login {
        body["username"] = login.user.as_str().into();
        body["password"] = login.password.reveal().into();
    }
    body
}

/// Makes a server pull; what it says when it is done.
pub(super) async fn pull(to: &Client, order: &Value, meter: &Meter) -> Result<Progress> {
    let mut steps = to.action("transfer", order).await?.boxed();
    let mut last = None;
    while let Some(step) = steps.next().await {
        let step: Progress = serde_json::from_slice(&step?)
            .map_err(|error| Error::Stream(format!("{}: not a transfer's progress: {error}", to.peer())))?;
        meter.set(step.rows, step.bytes);
        last = Some(step);
    }
    let done = last.filter(|step| step.done);
    done.ok_or_else(|| Error::Stream(format!("{}: the transfer ended without a result", to.peer())))
}

/// Whether the column that [`PROCESSED`] appends is there and true in every row.
pub(super) fn is_processed(batch: &RecordBatch) -> bool {
    let Some(column) = batch.column_by_name(PROCESSED) else { return false };
    let processed = column.as_boolean_opt();
    processed.is_some_and(|column| column.null_count() == 0 && column.true_count() == batch.num_rows())
}

/// What was sent through [`PROCESSED`], out of what came back: without the column, which is true in every row.
pub(super) fn unprocessed(rows: RecordBatchStream) -> RecordBatchStream {
    let schema = rows.schema();
    let kept: Vec<usize> =
        (0..schema.fields().len()).filter(|&index| schema.field(index).name() != PROCESSED).collect();
    let fields: Vec<_> = kept.iter().map(|&index| schema.fields()[index].clone()).collect();
    let before = Schema::new_with_metadata(fields, schema.metadata().clone());
    let batches = rows.map(move |batch| match batch? {
        batch if is_processed(&batch) => batch.project(&kept).map_err(Error::internal),
        _ => Err(Error::Unverified(format!("the column \"{PROCESSED}\" is not true in every row that came back"))),
    });
    RecordBatchStream::new(before.into(), batches)
}

/// The fingerprint of a relation, computed by the server's DuckDB.
pub(super) async fn fingerprint(client: &Client, relation: &str) -> Result<Fingerprint> {
    Fingerprint::from_row(&first_row(client.query(&Fingerprint::sql(relation)).await?).await?)
}

/// The fingerprint of rows that reached the client, computed by its own DuckDB.
pub(super) async fn fingerprint_of(local: &Engine, rows: RecordBatchStream) -> Result<Fingerprint> {
    let table = TableName::from_path(&path("received"))?;
    let staged = local.ingest(&Rights::all("local"), &table, Mode::Create, rows, true).await?;
    let fingerprint = staged.fingerprint.clone();
    // Dropped rather than rolled back: a rollback is not waited for, and the next table has the same name.
    staged.commit().await?;
    run_local(local, &format!("DROP TABLE {}", table.sql())).await?;
    fingerprint.ok_or_else(|| Error::internal("a new table has no fingerprint"))
}

/// A table's path.
pub(super) fn path(table: &str) -> [String; 1] {
    [table.to_string()]
}

/// Runs a statement to its end.
pub(super) async fn run(client: &Client, sql: &str) -> Result<()> {
    first_row(client.query(sql).await?).await.map(drop)
}

/// The same in the command line's own DuckDB.
pub(super) async fn run_local(local: &Engine, sql: &str) -> Result<()> {
    first_row(local.query(&Rights::all("local"), sql).await?).await.map(drop)
}

/// Runs an action to its end.
pub(super) async fn act(client: &Client, name: &str, body: &Value) -> Result<()> {
    let mut results = client.action(name, body).await?.boxed();
    while let Some(result) = results.next().await {
        result?;
    }
    Ok(())
}
