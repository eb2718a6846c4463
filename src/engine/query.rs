//! One statement on an engine thread, its rows through a bounded channel.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use arrow_array::{Int64Array, RecordBatch, StringArray, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use duckdb::{
    Parameters,
    arrow::ArrowArray,
    connection::{Connection, SettingScope},
    error::DuckDBError,
    query_result::{ResultType, StatementType},
    statement::{SchemaBind, Statement},
};
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::{
    Engine, Shared, act,
    binding::{Bound, Values},
    catalog,
    error::discreet,
    guard,
    joining::Joining,
    line::{self, Line, Place, Settings},
    outlet::{Outlet, outlet},
    pool::{Cancel, CancelOnDrop, lock},
    rows::{self, Rows},
    seen::{Seen, Waiting},
    statement::{self, Effect},
    steps::{Next, Steps},
    width,
};
use crate::{
    access::{Allowance, Rights, Role},
    config::Database,
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
};

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

/// A statement, and what it runs with.
#[derive(Clone, Default)]
pub struct Ask {
    pub sql: String,
    /// Where it runs; on a connection of its own where there is none.
    pub line: Option<Line>,
    pub settings: Settings,
    /// The values of its parameters. It runs once for each row, all of it or nothing.
    pub bound: Option<Bound>,
}

/// What a statement needs beside its text.
pub(super) struct Setup {
    /// What its sender may do.
    pub(super) rights: Arc<Rights>,
    pub(super) line: Option<Line>,
    pub(super) settings: Settings,
    pub(super) values: Option<Values>,
}

impl Setup {
    pub(super) fn new(rights: &Arc<Rights>) -> Self {
        Self { rights: rights.clone(), line: None, settings: Settings::default(), values: None }
    }
}

/// The schema of the one row that a statement without rows answers.
pub fn status_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("status", DataType::Utf8, false),
        Field::new("rows_changed", DataType::Int64, false),
    ]))
}

/// That row, of a statement that has run.
pub fn status_row(changed: i64) -> Result<RecordBatchStream> {
    Ok(RecordBatchStream::from_batches(status_schema(), vec![status_batch(changed)?]))
}

fn status_batch(changed: i64) -> Result<RecordBatch> {
    let (status, changed) = (Arc::new(StringArray::from(vec!["OK"])), Arc::new(Int64Array::from(vec![changed])));
    RecordBatch::try_new(status_schema(), vec![status, changed]).map_err(Error::internal)
}

impl Engine {
    /// Runs one statement. It has started when this returns; its rows come as the stream is read, and dropping the
    /// stream interrupts it. A statement without rows has run once, in full, and answers one row.
    pub async fn query(&self, rights: &Arc<Rights>, sql: &str) -> Result<RecordBatchStream> {
        self.query_with(sql, Setup::new(rights)).await
    }

    /// The same, of a statement that runs in a transaction, with settings or with values.
    pub async fn answer(&self, rights: &Arc<Rights>, ask: &Ask) -> Result<RecordBatchStream> {
        self.query_with(&ask.sql, self.setup(rights, ask)?).await
    }

    fn setup(&self, rights: &Arc<Rights>, ask: &Ask) -> Result<Setup> {
        let Ask { sql: _, line, settings, bound } = ask;
        let values = bound.as_ref().map(|bound| self.values(bound)).transpose()?;
        Ok(Setup { rights: rights.clone(), line: line.clone(), settings: settings.clone(), values })
    }

    /// Runs one statement to its end, for its effect. How many rows it changed, or answered where it answers rows.
    pub async fn update(&self, rights: &Arc<Rights>, ask: &Ask) -> Result<i64> {
        let (mut answer, shape) = self.start(&ask.sql, self.setup(rights, ask)?).await?;
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
        let room = async {
            // The seat first: who waits for it takes no thread from others.
            let place = Place::take(setup.line.as_ref(), &self.shared).await?;
            Ok((place, self.pool.slot(&setup.rights).await?))
        };
        let (mut place, slot) =
            seen.unless_killed(room).await.inspect_err(|error| seen.end::<()>(&Err(error.clone())))?;
        seen.start();
        let (cancel, guard) = self.pool.begin();
        seen.runs(&cancel);
        let hurry = act::forces_checkpoint(sql).then(|| tokio::spawn(end_forced(cancel.clone())));
        let guard = Running { hurry, _guard: guard };
        let (tell, head) = oneshot::channel();
        let (rows, batches) = outlet();
        let ending = Arc::new(Mutex::new(None));
        let shared = self.shared.clone();
        let sql = sql.to_string();
        let ended = ending.clone();
        let room = Room::among(self.pool.busy(), &self.shared.config.database);
        self.pool.run(slot, move || {
            let mut answer = Answer {
                head: Some(tell),
                whole: None,
                held: None,
                held_bytes: 0,
                began: false,
                shape: Shape::Rows,
                rows,
                cancel: cancel.clone(),
                seen,
                allowance: setup.rights.allowance,
                answered: (0, 0),
                room,
                joined_rows: 0,
            };
            place.runs(&cancel);
            let outcome = run(&shared, &sql, &setup, &cancel, &mut answer, &mut place);
            // Before the end is told: who knows of it drops the stream, and that must not meet the next statement.
            place.settle(&shared, &cancel);
            let outcome = outcome.map_err(|error| discreet(error, &setup.rights));
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
            // Last: nobody waits for a connection to close.
            drop(place);
        })?;
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
    /// The rows of a change, which go out once it is committed: whoever sees them takes it for done.
    held: Option<Vec<RecordBatch>>,
    held_bytes: u64,
    /// Whether the statement may have changed something.
    began: bool,
    shape: Shape,
    rows: Outlet,
    cancel: Cancel,
    seen: Arc<Seen>,
    allowance: Allowance,
    answered: (u64, u64),
    room: Room,
    /// Rows of a batch into which short ones are joined; 0 where they are long anyway.
    joined_rows: usize,
}

impl Answer {
    fn schema(&mut self, schema: SchemaRef) -> Result<()> {
        if self.held.is_some() {
            self.whole = Some(schema);
            return Ok(());
        }
        match self.head.take().map(|head| head.send(Ok((schema, self.shape)))) {
            Some(Ok(())) => Ok(()),
            _ => Err(Error::Cancelled),
        }
    }

    fn batch(&mut self, shared: &Shared, batch: RecordBatch) -> Result<()> {
        if matches!(self.shape, Shape::Rows) {
            self.allow(&batch)?;
        }
        match &mut self.held {
            Some(held) => {
                self.held_bytes += batch_bytes(&batch);
                let most = shared.config.limits.returning_size;
                if self.held_bytes > most.0 {
                    let what = format!(
                        "the rows of RETURNING take more than {most}, and wait for the commit; nothing was changed"
                    );
                    return Err(Error::Limit { what, key: "limits.returning_size" });
                }
                held.push(batch);
                Ok(())
            }
            None => self.send(shared, batch),
        }
    }

    /// Lets go of what was held.
    fn release(&mut self, shared: &Shared) -> Result<()> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let schema = self.whole.take().ok_or_else(|| Error::internal("a change ended without a schema"))?;
        self.schema(schema)?;
        held.into_iter().try_for_each(|batch| self.send(shared, batch))
    }

    fn send(&mut self, shared: &Shared, batch: RecordBatch) -> Result<()> {
        self.seen.answered(batch.num_rows());
        self.rows.send(batch, &self.cancel, &shared.metrics)
    }
}

impl Answer {
    /// The one row of a statement that has none of its own.
    fn changed(&mut self, shared: &Shared, changed: usize) -> Result<()> {
        let row = status_batch(i64::try_from(changed).unwrap_or(i64::MAX))?;
        self.whole = Some(row.schema());
        self.shape = Shape::Changed;
        self.batch(shared, row)
    }

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

/// `place` is where the statement's connection is left.
fn run(
    shared: &Shared,
    sql: &str,
    setup: &Setup,
    cancel: &Cancel,
    answer: &mut Answer,
    place: &mut Place,
) -> Result<()> {
    place.connect(shared, &setup.settings)?;
    place.works();
    let connection = place.connection()?;
    cancel.arm(connection.interrupt_handle(), place.manner())?;
    let (statement, moves) = guard::admit(shared, connection, sql, &setup.rights, place.sees())
        .and_then(|statement| {
            let moves = matches!(place, Place::Kept(_)) && statement::moves_names(&statement)?;
            guard::check_names(&setup.rights, moves || place.is_moved() || setup.settings.moves_names())?;
            Ok((statement, moves))
        })
        .inspect_err(|error| {
            if place.in_transaction() && line::aborts(error) && cancel.check().is_ok() {
                line::abort(shared, connection);
            }
            shared.identify(&answer.seen, connection, statement::class_of_text(connection, sql));
        })?;
    if answer.seen.is_audited() {
        answer.seen.binds(guard::bound(shared, connection, &statement, sql, place.sees()));
    }
    // Held until it is committed.
    let _change = match statement::effect(connection, &statement)? {
        Effect::Rows => None,
        Effect::Settings => {
            place.sets();
            None
        }
        Effect::Definitions => place.changes(shared),
    };
    let connection = place.connection()?;
    if !statement::only_reads(&statement)? {
        // Its transaction cannot be kept without it.
        cancel.arm_at_once()?;
    }
    if let Some(size) = setup.rights.allowance.operator_memory {
        shared.execute(connection, &format!("SET operator_memory_limit = '{}B'", size.0))?;
    }
    let config = connection.config().map_err(|error| shared.cause(&error))?;
    let buffer = format!("{}B", answer.room.buffer);
    config
        .set_text("max_streaming_buffer_size", &buffer, SettingScope::Session)
        .map_err(|error| shared.cause(&error))?;
    shared.identify(&answer.seen, connection, statement::class(statement::kind(&statement)?));
    // The second wall: what the guard took for a read cannot write.
    let reads = setup.rights.role < Role::Writer;
    let several = setup.values.as_ref().is_some_and(|values| values.rows() > 1);
    let changes = !reads && statement::changes(connection, &statement)?;
    let returns = changes && statement::answers_rows(connection, &statement)?;
    if changes || statement::defines(&statement)? {
        shared.may_store()?;
    }
    let begin = match (place.in_transaction(), reads) {
        (false, true) => Some("BEGIN TRANSACTION READ ONLY"),
        (false, false) if several || returns => Some("BEGIN TRANSACTION"),
        _ => None,
    };
    if returns {
        answer.held = Some(Vec::new());
    }
    begin.map(|begin| shared.execute(connection, begin)).transpose()?;
    let outcome = execute(shared, sql, &statement, connection, setup, cancel, answer, place);
    let outcome = match (begin, outcome) {
        (Some(_), Ok(())) => shared.execute(connection, "COMMIT").map(drop),
        (Some(_), Err(error)) => {
            // A failed transaction is rolled back by DuckDB when the connection closes, too.
            let _ = shared.execute(connection, "ROLLBACK");
            Err(error)
        }
        // What failed may have changed something, and must not be committed.
        // A read that its client has left is no error.
        (None, Err(error))
            if place.in_transaction()
                && ((line::aborts(&error) && cancel.check().is_ok()) || (changes && answer.began)) =>
        {
            line::abort(shared, connection);
            Err(error)
        }
        (None, outcome) => outcome,
    };
    let outcome = outcome.and_then(|()| answer.release(shared));
    if let (true, Place::Kept(seat)) = (moves, place) {
        seat.kept().moved = true;
    }
    outcome
}

#[expect(clippy::too_many_arguments, reason = "all that a statement runs with, in one place")]
fn execute(
    shared: &Shared,
    sql: &str,
    statement: &Statement<'_>,
    connection: &Connection,
    setup: &Setup,
    cancel: &Cancel,
    answer: &mut Answer,
    place: &Place,
) -> Result<()> {
    let cause = |error: duckdb::Error| shared.cause(&error);
    let batch_rows = setup.settings.batch_rows.unwrap_or(answer.room.batch_rows);
    let plain = setup.settings.plain(shared);
    // Another connection would not know what this one sees.
    let alone = matches!(place, Place::Own(_)) && setup.settings.of_connection() == [None; 3];
    let types =
        if alone && setup.values.is_none() { None } else { Some(catalog::bound_types(shared, connection, statement)?) };
    let answers = answer.held.is_some() || statement::may_answer_rows(statement)?;
    let bound = answers.then(|| statement.bind(connection));
    let known = bound.as_ref().and_then(|bound| bound.as_ref().ok());
    let most = batch_rows;
    let batch_rows = batch_rows.min(fitting_rows(shared, connection, statement, known, place, sql, answer.room)?);
    // Rows of a width that nobody knows.
    answer.joined_rows = if batch_rows == width::VECTOR_ROWS { most } else { 0 };
    answer.room.batch_rows = batch_rows;
    let looked_at = bound.as_ref().is_some_and(rows::may_hold_intervals);
    let other = looked_at.then(|| shared.connect()).transpose()?;
    drop(bound);
    let Some(values) = &setup.values else {
        let result = Rows::start(statement, connection, Parameters::None, batch_rows, other.as_ref()).map_err(cause)?;
        answer.began = true;
        let mut result = Steps::of(result, cancel, shared);
        return stream(shared, statement, &mut result, types.as_deref(), plain, answer);
    };
    values.stop_with(cancel);
    if values.rows() > 1
        && let Some(insert) = values.as_one_insert(shared, connection, sql)?
    {
        let mut result = connection.query(insert, Parameters::None).map_err(|error| values.cause(shared, &error))?;
        answer.began = true;
        cancel.check()?;
        let changed = result.drain().map_err(|error| values.cause(shared, &error))?;
        return answer.changed(shared, changed);
    }
    let others = shared.connect()?;
    let prepared = statement.prepare(connection, false).map_err(cause)?;
    let (mut changed, mut importer) = (None, None);
    values.each(shared, &others, statement, |parameters| {
        cancel.check()?;
        let mut result = Rows::execute(&prepared, parameters, batch_rows, other.as_ref()).map_err(cause)?;
        answer.began = true;
        result.follow(answer.answered.0);
        let mut result = Steps::of(result, cancel, shared);
        cancel.check()?;
        if result.result_type()? != ResultType::QueryResult {
            *changed.get_or_insert(0) += result.drain()?;
            return Ok(());
        }
        let schema = result.result().importer(shared, plain)?;
        let importer = match &mut importer {
            None => {
                let mut schema = schema;
                if schema.loses_types() {
                    schema.annotate(types.as_deref().unwrap_or_default());
                }
                answer.schema(schema.schema())?;
                importer.insert(schema)
            }
            Some(importer) if importer.takes(&schema) => importer,
            Some(_) => return Err(Error::invalid("the values of this row change the types of the answer")),
        };
        while let Some(array) = result.next()? {
            answer.batch(shared, importer.batch(array)?)?;
        }
        Ok(())
    })?;
    match (importer, changed) {
        (Some(_), _) => Ok(()),
        (None, Some(changed)) => answer.changed(shared, changed),
        // Nothing was bound, so nothing ran.
        (None, None) => match catalog::plan(shared, connection, statement, None, plain, true)?.rows {
            Some(schema) => answer.schema(schema),
            None => answer.changed(shared, 0),
        },
    }
}

/// How many rows of this statement a batch may have.
fn fitting_rows(
    shared: &Shared,
    connection: &Connection,
    statement: &Statement<'_>,
    bound: Option<&SchemaBind>,
    place: &Place,
    sql: &str,
    room: Room,
) -> Result<usize> {
    if statement::kind(statement)? != StatementType::Select {
        return Ok(width::rows_of_types(&[], None, room.batch_rows));
    }
    // What does not bind says so when it is started.
    let (names, types): (Vec<String>, Vec<String>) =
        bound.and_then(|bound| catalog::columns_of(shared, &bound.schema).ok()).unwrap_or_default().into_iter().unzip();
    let rows = width::rows_of_types(&types, None, room.batch_rows);
    if rows >= room.batch_rows || !matches!(place, Place::Own(_)) {
        return Ok(rows);
    }
    let longest = width::longest(shared, connection, sql, &names);
    Ok(width::rows_of_types(&types, longest.as_deref(), room.batch_rows))
}

/// A small answer waits until all of it is there, which saves whoever waits for it several wake-ups.
fn stream(
    shared: &Shared,
    statement: &Statement<'_>,
    result: &mut Steps<'_>,
    types: Option<&[String]>,
    plain: bool,
    answer: &mut Answer,
) -> Result<()> {
    let cause = |error: duckdb::Error| shared.cause(&error);
    let mut arrays = VecDeque::new();
    // A statement that expands to others (PRAGMA, PIVOT) knows its answer only after the first step.
    let shape = match result.result().result_type() {
        Err(error) if error.code == DuckDBError::InputMetadataDeferred => {
            arrays.extend(result.next()?);
            result.result_type()?
        }
        shape => shape.map_err(cause)?,
    };
    if shape != ResultType::QueryResult {
        let changed = result.drain()?;
        return answer.changed(shared, changed);
    }
    let mut importer = result.result().importer(shared, plain)?;
    if importer.loses_types() {
        match types {
            Some(types) => importer.annotate(types),
            None => importer.annotate(&catalog::column_types(shared, statement)?),
        }
    }
    if arrays.is_empty() {
        arrays.extend(result.next()?);
    }
    let short = |array: &ArrowArray| array.len() < answer.room.batch_rows;
    if arrays.front().is_none_or(short) {
        let next = result.next()?;
        if next.is_none() {
            answer.whole = Some(importer.schema());
            return arrays.pop_front().map_or(Ok(()), |array| answer.batch(shared, importer.batch(array)?));
        }
        arrays.extend(next);
    }
    answer.schema(importer.schema())?;
    let mut joining = Joining::new(importer.schema(), answer.joined_rows);
    loop {
        let next =
            arrays.pop_front().map_or_else(|| result.next_until(joining.due()), |array| Ok(Next::Array(array)))?;
        let over = matches!(next, Next::End);
        let leaving = match next {
            Next::Array(array) => joining.push(importer.batch(array)?)?,
            Next::Late | Next::End => [joining.take()?, None],
        };
        leaving.into_iter().flatten().try_for_each(|batch| answer.batch(shared, batch))?;
        if over {
            return Ok(());
        }
    }
}

/// How long FORCE CHECKPOINT may wait for others: no transaction begins anywhere meanwhile, not even a SELECT's.
const FORCE_PATIENCE: Duration = Duration::from_secs(5);

async fn end_forced(cancel: Cancel) {
    tokio::time::sleep(FORCE_PATIENCE).await;
    cancel.end(Error::Conflict(format!(
        "FORCE CHECKPOINT has waited {}s for statements and transactions that are open, and nothing else could begin; end them \
         (the action queries shows them, kill ends them), or use CHECKPOINT, which does not wait",
        FORCE_PATIENCE.as_secs()
    )));
}

/// Ends the statement when it is dropped.
struct Running {
    hurry: Option<tokio::task::JoinHandle<()>>,
    _guard: CancelOnDrop,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(hurry) = &self.hurry {
            hurry.abort();
        }
    }
}

/// The receiving end; dropping it interrupts the statement.
struct Batches {
    batches: mpsc::Receiver<Waiting>,
    /// Why there are no more batches, where that is an error.
    ending: Arc<Mutex<Option<Error>>>,
    _guard: Running,
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
