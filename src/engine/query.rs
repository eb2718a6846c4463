//! One statement on an engine thread, its rows through a bounded channel.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use arrow_array::{Int64Array, RecordBatch, StringArray, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use duckdb::{
    Parameters,
    arrow::ArrowArray,
    connection::{Connection, SettingScope},
    error::DuckDBError,
    query_result::{ArrowQueryResult, ResultType},
    statement::Statement,
};
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::{
    Engine, Shared,
    arrow::Importer,
    error::discreet,
    guard,
    pool::{Cancel, CancelOnDrop, lock},
    seen::{Seen, Waiting},
    source::Source,
    statement,
};
use crate::{
    access::{Allowance, Rights, Role},
    config::Database,
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
};

/// Batches that wait between DuckDB and the network, beside DuckDB's own streaming buffer.
const CHANNEL_BATCHES: usize = 2;

/// How many statements have room for batches of full size; where more run, each gets a part of it.
const FULL_SIZE: usize = 2;

/// What one statement's rows may take on their way out, which depends on how many others run: a reader that stands still
/// holds all of it.
#[derive(Clone, Copy)]
struct Room {
    batch_rows: usize,
    /// DuckDB's streaming buffer, in bytes.
    buffer: u64,
}

impl Room {
    fn among(running: usize, database: &Database) -> Self {
        let running = running.max(1);
        // Whole vectors of DuckDB's, and not so few that handing them on costs more than making them.
        let part = (database.batch_rows * FULL_SIZE / running) / 2048 * 2048;
        let batch_rows = database.batch_rows.min(part.max(6144));
        let buffer = (database.stream_buffer.0 / running as u64).max(512 * 1024).min(database.stream_buffer.0);
        Self { batch_rows, buffer }
    }
}

/// What a statement needs beside its text.
pub(super) struct Setup {
    /// What its sender may do.
    pub(super) rights: Arc<Rights>,
    /// A stream the statement reads, and the statements that make it visible to it.
    pub(super) input: Option<(Source, Vec<String>)>,
}

/// The schema of the one row that a statement without rows answers.
pub fn status_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("status", DataType::Utf8, false),
        Field::new("rows_changed", DataType::Int64, false),
    ]))
}

impl Engine {
    /// Runs one statement. It has started when this returns; its rows come as the stream is read, and dropping the
    /// stream interrupts it. A statement without rows has run once, in full, and answers one row.
    pub async fn query(&self, rights: &Arc<Rights>, sql: &str) -> Result<RecordBatchStream> {
        self.query_with(sql, Setup { rights: rights.clone(), input: None }).await
    }

    /// Runs one statement to its end, for its effect. How many rows it changed, or answered where it answers rows.
    pub async fn update(&self, rights: &Arc<Rights>, sql: &str) -> Result<i64> {
        let (mut answer, shape) = self.start(sql, Setup { rights: rights.clone(), input: None }).await?;
        let mut count = 0;
        while let Some(batch) = answer.next().await {
            let batch = batch?;
            count += match shape {
                Shape::Rows => i64::try_from(batch.num_rows()).unwrap_or(i64::MAX),
                Shape::Changed => batch.column(1).as_primitive::<Int64Type>().iter().flatten().sum(),
            };
        }
        Ok(count)
    }

    pub(super) async fn query_with(&self, sql: &str, setup: Setup) -> Result<RecordBatchStream> {
        Ok(self.start(sql, setup).await?.0)
    }

    async fn start(&self, sql: &str, setup: Setup) -> Result<(RecordBatchStream, Shape)> {
        statement::check_text(&self.shared, sql)?;
        let seen = self.shared.see(&setup.rights, sql);
        let slot = seen
            .unless_killed(self.pool.slot(&setup.rights))
            .await
            .inspect_err(|error| seen.end::<()>(&Err(error.clone())))?;
        seen.start();
        let (cancel, guard) = self.pool.begin();
        seen.runs(&cancel);
        let (tell, head) = oneshot::channel();
        let (rows, batches) = mpsc::channel(CHANNEL_BATCHES);
        let ending = Arc::new(Mutex::new(None));
        let shared = self.shared.clone();
        let sql = sql.to_string();
        let ended = ending.clone();
        let room = Room::among(self.pool.busy(), &self.shared.config.database);
        self.pool.run(slot, move || {
            let failure = setup.input.as_ref().map(|(source, _)| source.failure.clone()).unwrap_or_default();
            let mut answer = Answer {
                head: Some(tell),
                whole: None,
                shape: Shape::Rows,
                rows,
                cancel: cancel.clone(),
                seen,
                allowance: setup.rights.allowance,
                answered: (0, 0),
                room,
            };
            let mut connection = None;
            let outcome = run(&shared, &sql, &setup, &cancel, &mut answer, &mut connection);
            let outcome = outcome.map_err(|error| discreet(failure.or(error), &setup.rights));
            let outcome = shared.finish(&cancel, &answer.seen, outcome);
            let Answer { head, whole, rows, shape, .. } = answer;
            if let Err(error) = &outcome {
                // Before the channel closes; the reader looks here when it has.
                *lock(&ended) = Some(error.clone());
            }
            drop(rows);
            if let Some(head) = head {
                let schema = whole.ok_or_else(|| Error::internal("a statement ended without a schema"));
                // A receiver that is gone needs no answer.
                let _ = head.send(outcome.and(schema).map(|schema| (schema, shape)));
            }
            // Last: nobody waits for it.
            drop(connection);
        });
        let head = head.await.map_err(|_| Error::internal("an engine thread ended without an answer"))?;
        let (schema, shape) = head?;
        Ok((RecordBatchStream::new(schema, Batches { batches, ending, _guard: guard }), shape))
    }
}

/// What the rows of an answer are.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// The statement's own.
    Rows,
    /// One that says how many were changed.
    Changed,
}

/// The two channels an engine thread answers through.
struct Answer {
    head: Option<oneshot::Sender<Result<(SchemaRef, Shape)>>>,
    /// The schema of an answer that goes out when all of it is there.
    whole: Option<SchemaRef>,
    shape: Shape,
    rows: mpsc::Sender<Waiting>,
    cancel: Cancel,
    seen: Arc<Seen>,
    allowance: Allowance,
    answered: (u64, u64),
    room: Room,
}

impl Answer {
    fn schema(&mut self, schema: SchemaRef) -> Result<()> {
        match self.head.take().map(|head| head.send(Ok((schema, self.shape)))) {
            Some(Ok(())) => Ok(()),
            _ => Err(Error::Cancelled),
        }
    }

    fn batch(&mut self, shared: &Shared, batch: RecordBatch) -> Result<()> {
        self.allow(&batch)?;
        self.seen.answered(batch.num_rows());
        let batch = Waiting::new(batch, &shared.metrics);
        self.cancel.wait(self.rows.send(batch))?.map_err(|_| Error::Cancelled)
    }
}

impl Answer {
    /// Counts what goes out against what the role may have.
    fn allow(&mut self, batch: &RecordBatch) -> Result<()> {
        let Allowance { result_rows, result_bytes, .. } = self.allowance;
        let (rows, bytes) = &mut self.answered;
        *rows += batch.num_rows() as u64;
        *bytes += if result_bytes.is_some() { batch_bytes(batch) } else { 0 };
        match (result_rows, result_bytes) {
            (Some(most), _) if *rows > most => {
                let what = format!("the result has more than {most} rows, which is what the caller's role may have");
                Err(Error::Limit { what, key: "the role's result_rows" })
            }
            (_, Some(most)) if *bytes > most.0 => {
                let what = format!("the result is larger than {most}, which is what the caller's role may have");
                Err(Error::Limit { what, key: "the role's result_bytes" })
            }
            _ => Ok(()),
        }
    }
}

/// `connection` is where the statement's connection is left.
fn run(
    shared: &Shared,
    sql: &str,
    setup: &Setup,
    cancel: &Cancel,
    answer: &mut Answer,
    connection: &mut Option<Connection>,
) -> Result<()> {
    let connection = &*connection.insert(shared.connect()?);
    cancel.arm(connection.interrupt_handle())?;
    if let Some((source, prepare)) = &setup.input {
        source.stop_with(cancel);
        for sql in prepare {
            shared.execute(connection, sql)?;
        }
    }
    let statement = guard::admit(shared, connection, sql, &setup.rights)
        .inspect_err(|_| shared.identify(&answer.seen, connection, statement::class_of_text(connection, sql)))?;
    if let Some(size) = setup.rights.allowance.operator_memory {
        shared.execute(connection, &format!("SET operator_memory_limit = '{}B'", size.0))?;
    }
    if setup.input.is_none() {
        let config = connection.config().map_err(|error| shared.cause(&error))?;
        let buffer = format!("{}B", answer.room.buffer);
        config
            .set_text("max_streaming_buffer_size", &buffer, SettingScope::Session)
            .map_err(|error| shared.cause(&error))?;
    }
    if setup.rights.role < Role::Writer && setup.input.is_none() {
        // The second wall: what the guard took for a read cannot write.
        shared.execute(connection, "BEGIN TRANSACTION READ ONLY")?;
    }
    shared.identify(&answer.seen, connection, statement::class(statement::kind(&statement)?));
    let mut result = statement
        .arrow_query(connection, Parameters::None, Some(answer.room.batch_rows))
        .map_err(|error| shared.cause(&error))?;
    cancel.check()?;
    stream(shared, &statement, &mut result, setup.input.is_none(), answer)
}

/// `at_once`: a small answer may wait until all of it is there, which saves whoever waits for it several wake-ups. One
/// that reads a stream may not: its client may wait for the schema before it sends.
fn stream(
    shared: &Shared,
    statement: &Statement<'_>,
    result: &mut ArrowQueryResult<'_>,
    at_once: bool,
    answer: &mut Answer,
) -> Result<()> {
    let cause = |error: duckdb::Error| shared.cause(&error);
    let mut arrays = VecDeque::new();
    // A statement that expands to others (PRAGMA, PIVOT) knows its answer only after the first step.
    let shape = match result.result_type() {
        Err(error) if error.code == DuckDBError::InputMetadataDeferred => {
            arrays.extend(result.next_array().map_err(cause)?);
            result.result_type().map_err(cause)?
        }
        shape => shape.map_err(cause)?,
    };
    if shape != ResultType::QueryResult {
        let changed = result.drain().map_err(cause)?;
        let schema = status_schema();
        let status = Arc::new(StringArray::from(vec!["OK"]));
        let changed = Arc::new(Int64Array::from(vec![i64::try_from(changed).unwrap_or(i64::MAX)]));
        let row = RecordBatch::try_new(schema.clone(), vec![status, changed]).map_err(Error::internal)?;
        answer.whole = Some(schema);
        answer.shape = Shape::Changed;
        return answer.batch(shared, row);
    }
    let mut importer = Importer::new(result.schema().map_err(cause)?, !shared.config.database.lossless_types)?;
    if importer.loses_types() {
        let types = super::catalog::column_types(shared, statement)?;
        importer.annotate(&types);
    }
    if at_once {
        if arrays.is_empty() {
            arrays.extend(result.next_array().map_err(cause)?);
        }
        let short = |array: &ArrowArray| array.len() < answer.room.batch_rows;
        if arrays.front().is_none_or(short) {
            let next = result.next_array().map_err(cause)?;
            if next.is_none() {
                answer.whole = Some(importer.schema());
                return arrays.pop_front().map_or(Ok(()), |array| answer.batch(shared, importer.batch(array)?));
            }
            arrays.extend(next);
        }
    }
    answer.schema(importer.schema())?;
    while let Some(array) =
        arrays.pop_front().map_or_else(|| result.next_array().map_err(cause), |array| Ok(Some(array)))?
    {
        answer.batch(shared, importer.batch(array)?)?;
    }
    Ok(())
}

/// The receiving end; dropping it interrupts the statement.
struct Batches {
    batches: mpsc::Receiver<Waiting>,
    /// Why there are no more batches, where that is an error.
    ending: Arc<Mutex<Option<Error>>>,
    _guard: CancelOnDrop,
}

impl Stream for Batches {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_recv(cx).map(|batch| match batch {
            Some(waiting) => Some(Ok(waiting.leave())),
            None => lock(&self.ending).take().map(Err),
        })
    }
}
