//! A table function that reads a stream which arrives while it runs.
//!
//! One function, registered once per engine, reads whichever stream its argument names; the name is a random number
//! that exists only while the stream does. Each DuckDB worker keeps an Arrow importer of its own and takes batches
//! from a bounded channel; the importer's vectors reference the batch's buffers, so nothing is copied before
//! DuckDB stores it. What a batch holds is checked first, on the worker that is about to read it (`validate`).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use arrow_select::concat::concat_batches;
use duckdb::{
    arrow::ArrowImporter,
    bind_arguments::BindArgument,
    connection::{Connection, Context},
    data_chunk::{DataChunk, DataChunkRef},
    signature::{FunctionParameter, SignatureBuilder},
    table_function::{
        BindFunctionHandle, ExecColumnInfo, InitColumnData, OrderPreservation, PartitionData, TableFunctionBuilder,
        TableFunctionCallbacks, TablePartitioningCallbacks,
    },
    vector::Unknown,
};
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    arrow,
    pool::{Cancel, Waited, lock, wait_unless},
    shape::Reads,
    validate::Checked,
};
use crate::{
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
    telemetry::Metrics,
};

/// The function's name in SQL; `engine` alone knows which argument means which stream.
pub(super) const FUNCTION: &str = "mallard_stream";

/// DuckDB's vector size: the rows of one chunk.
const CHUNK_ROWS: usize = 2048;

/// DuckDB's row group. Workers that take rows in whole row groups leave nothing to merge when order is kept.
const ROW_GROUP_ROWS: usize = 122_880;

/// What a worker takes at most where rows are long.
const ROW_GROUP_BYTES: u64 = 32 * 1024 * 1024;

/// Batches that may wait between the network and DuckDB, beside the one that each worker holds.
const CHANNEL_BATCHES: usize = 3;

/// Batches of fewer rows and bytes are joined with those that have arrived behind them: each costs DuckDB a chunk, and a
/// wake-up.
const SMALL_ROWS: usize = CHUNK_ROWS;
const SMALL_BYTES: u64 = 256 * 1024;

/// Rows that joined batches have at least, where so many have arrived.
const JOINED_ROWS: usize = 8 * CHUNK_ROWS;

/// How long a worker waits for rows before it leaves the stream to the engine thread.
const PATIENCE: Duration = Duration::from_millis(50);

/// The same where the rows that are there are to be answered at once; longer where the statement is slow to start.
const SEGMENT_PATIENCE: Duration = Duration::from_millis(2);
const MAX_SEGMENT_PATIENCE: Duration = Duration::from_millis(500);

/// Rows of a segment, where more are there: what a plan may gather of them is bounded.
const SEGMENT_ROWS: usize = 1 << 20;

/// The same in bytes: rows that go around DuckDB are kept until their others have been computed.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

enum Item {
    Batch(RecordBatch),
    /// The sender is done. A channel that closes without it was cut.
    End,
}

/// Streams that statements may read, by number.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<Mutex<HashMap<u64, Arc<Incoming>>>>);

/// How workers share a stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sharing {
    /// One worker takes each batch as it comes, and waits for the next one.
    Single,
    /// The same for a statement that is run again and again: it ends where the sender pauses, so that what was made of
    /// the rows so far leaves, and [`Source::wait`] goes on.
    Segments,
    /// Up to so many workers take a row group each.
    Parallel { workers: usize, preserve_order: bool },
}

struct Incoming {
    checked: Checked,
    sharing: Sharing,
    queue: Mutex<Queue>,
    failure: Failure,
    /// Cancelled with the statement that reads.
    stop: OnceLock<CancellationToken>,
    /// Where a single worker is.
    place: Mutex<Place>,
}

/// What a single worker has handed out last.
#[derive(Default)]
struct Place {
    batch: Option<RecordBatch>,
    /// Rows before that batch.
    before: u64,
    /// Rows of it before the last chunk, and of the chunk.
    offset: usize,
    chunk: usize,
    /// The batches that were handed out, for who asks for them.
    kept: Option<VecDeque<RecordBatch>>,
}

impl Place {
    fn begin(&mut self, batch: &RecordBatch) {
        if let Some(kept) = &mut self.kept {
            kept.push_back(batch.clone());
        }
        self.before += self.batch.as_ref().map_or(0, |last| last.num_rows() as u64);
        (self.batch, self.offset, self.chunk) = (Some(batch.clone()), 0, 0);
    }

    fn hand_out(&mut self, rows: usize) {
        (self.offset, self.chunk) = (self.offset + self.chunk, rows);
    }
}

struct Queue {
    items: mpsc::Receiver<Item>,
    /// What the last row group left of its last batch.
    rest: Option<RecordBatch>,
    /// Rows that workers have taken.
    rows_before: u64,
    taken: usize,
    ended: bool,
    /// The sender is slow: the statement has ended with what was there, and [`Source::wait`] goes on.
    paused: bool,
    opened: bool,
    /// When the statement that reads was started, until it takes its first rows.
    started: Option<Instant>,
    /// How long a segment waits for more.
    patience: Duration,
    /// Rows of this segment.
    rows: usize,
    /// And bytes.
    bytes: u64,
}

/// Why the input failed; DuckDB would wrap it in words of its own.
#[derive(Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    fn set(&self, error: Error) {
        *lock(&self.0) = Some(error);
    }

    /// The input's own error if it has one, else `error`.
    pub(super) fn or(&self, error: Error) -> Error {
        lock(&self.0).clone().unwrap_or(error)
    }
}

/// A registered stream; it is unknown again when this is dropped.
pub(super) struct Source {
    id: u64,
    incoming: Arc<Incoming>,
    sources: Sources,
    pub(super) failure: Failure,
}

impl Source {
    /// Workers that wait for rows give up when the statement is cancelled.
    pub(super) fn stop_with(&self, cancel: &Cancel) {
        self.incoming.stop.get_or_init(|| cancel.token());
    }

    /// Waits on this thread until there are rows for a statement; false at the stream's end.
    pub(super) fn wait(&self, metrics: &Metrics) -> Result<bool> {
        let mut queue = lock(&self.incoming.queue);
        if queue.rest.is_none() {
            metrics.ingests_waiting.inc();
            let received = self.incoming.receive(&mut queue, None);
            metrics.ingests_waiting.dec();
            queue.rest = received.map_err(|error| self.failure.or(Error::Stream(error.message)))?;
        }
        (queue.paused, queue.opened, queue.rows, queue.bytes) = (false, false, 0, 0);
        queue.started = Some(Instant::now());
        Ok(queue.rest.is_some())
    }

    pub(super) fn schema(&self) -> SchemaRef {
        self.incoming.checked.sent().clone()
    }

    /// The rows that a single worker handed out last, and how many came before them.
    pub(super) fn last_rows(&self) -> Option<(u64, RecordBatch)> {
        let place = lock(&self.incoming.place);
        let batch = place.batch.as_ref()?;
        Some((place.before + place.offset as u64, batch.slice(place.offset, place.chunk)))
    }

    /// From now on a single worker's batches are kept for [`Source::next_kept`].
    pub(super) fn keep(&self) {
        lock(&self.incoming.place).kept.get_or_insert_default();
    }

    /// The first batch that was handed out and not asked for yet.
    pub(super) fn next_kept(&self) -> Option<RecordBatch> {
        lock(&self.incoming.place).kept.as_mut()?.pop_front()
    }

    /// Whether what has gone wrong is not with the rows handed out last: the input's own failure, or what a query over all
    /// rows does after the last one.
    pub(super) fn has_ended_or_failed(&self, reads: Reads) -> bool {
        let failed = lock(&self.failure.0).is_some();
        failed || (reads != Reads::EachRow && lock(&self.incoming.queue).ended)
    }

    /// The relation that reads the stream, as SQL: a call of the table function, or a query in parentheses.
    pub(super) fn call(&self) -> String {
        self.incoming.checked.relation(&format!("{FUNCTION}({}::UBIGINT)", self.id))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        lock(&self.sources.0).remove(&self.id);
    }
}

/// The sending end: moves a stream into the channel.
pub(super) struct Feed {
    items: mpsc::Sender<Item>,
    failure: Failure,
    /// Whether small batches are joined.
    joins: bool,
}

impl Feed {
    /// Moves batches until the stream ends, fails, or nobody reads any more.
    pub(super) async fn pump(self, mut input: RecordBatchStream) {
        let mut small = Joining::default();
        loop {
            // Small batches wait for others only as long as those are there.
            let next = match small.batches.is_empty() {
                true => Some(input.next().await),
                false => input.next().now_or_never(),
            };
            let (batch, last) = match next {
                Some(Some(Ok(batch))) if self.joins && small.takes(&batch) => {
                    small.add(batch);
                    continue;
                }
                Some(Some(Ok(batch))) => (Some(batch), None),
                Some(Some(Err(error))) => return self.failure.set(error),
                Some(None) => (None, Some(Item::End)),
                None => (None, None),
            };
            let joined = small.take();
            let ends = last.is_some();
            for item in joined.into_iter().chain(batch).map(Item::Batch).chain(last) {
                if self.items.send(item).await.is_err() {
                    // Nobody reads any more, and whoever stopped knows why.
                    return;
                }
            }
            if ends {
                return;
            }
        }
    }
}

/// Small batches that leave as one.
#[derive(Default)]
struct Joining {
    batches: Vec<RecordBatch>,
    rows: usize,
}

impl Joining {
    fn takes(&self, batch: &RecordBatch) -> bool {
        batch.num_rows() < SMALL_ROWS && self.rows < JOINED_ROWS && batch_bytes(batch) < SMALL_BYTES
    }

    fn add(&mut self, batch: RecordBatch) {
        if batch.num_rows() == 0 {
            return;
        }
        self.rows += batch.num_rows();
        self.batches.push(batch);
    }

    fn take(&mut self) -> Vec<RecordBatch> {
        let Self { batches, .. } = std::mem::take(self);
        let [first, _, ..] = batches.as_slice() else { return batches };
        // Dictionaries of different batches may hold more values together than their keys can count.
        match concat_batches(&first.schema(), &batches) {
            Ok(joined) => vec![joined],
            Err(_) => batches,
        }
    }
}

impl Sources {
    /// Makes the function known to `connection`'s database.
    pub(super) fn register_function(&self, connection: &Connection) -> duckdb::Result<()> {
        let signature = SignatureBuilder::new().param(FunctionParameter::new::<u64>("stream"));
        TableFunctionBuilder::new(FUNCTION, signature, StreamFunction(self.clone()))
            .with_partitioning()
            .with_projection_pushdown(true)
            .register(connection)
    }

    /// A stream of one batch that is there already.
    pub(super) fn of(&self, batch: RecordBatch, sharing: Sharing) -> Result<Source> {
        let (source, feed) = self.add(batch.schema(), sharing)?;
        // The channel has room for both.
        let _ = feed.items.try_send(Item::Batch(batch));
        let _ = feed.items.try_send(Item::End);
        Ok(source)
    }

    /// Registers a stream that one statement may read; an error where DuckDB cannot take its columns.
    pub(super) fn add(&self, schema: SchemaRef, sharing: Sharing) -> Result<(Source, Feed)> {
        let checked = Checked::new(schema)?;
        let joins = checked.joins();
        let (sender, receiver) = mpsc::channel(CHANNEL_BATCHES);
        let failure = Failure::default();
        let queue = Mutex::new(Queue {
            items: receiver,
            rest: None,
            rows_before: 0,
            taken: 0,
            ended: false,
            paused: false,
            opened: false,
            started: None,
            patience: SEGMENT_PATIENCE,
            rows: 0,
            bytes: 0,
        });
        let place = Mutex::default();
        let incoming = Incoming { checked, sharing, queue, failure: failure.clone(), stop: OnceLock::new(), place };
        let incoming = Arc::new(incoming);
        let id = getrandom::u64().expect("the operating system hands out random numbers");
        lock(&self.0).insert(id, incoming.clone());
        let feed = Feed { items: sender, failure: failure.clone(), joins };
        Ok((Source { id, incoming, sources: self.clone(), failure }, feed))
    }
}

impl Incoming {
    /// The next batches for one worker, each with the rows of the stream in front of it, and their place in the stream; none at
    /// the end. Blocks a DuckDB worker until they are there.
    fn next(&self) -> duckdb::Result<(usize, VecDeque<(u64, RecordBatch)>)> {
        let mut queue = lock(&self.queue);
        if let Some(started) = queue.started.take() {
            // What a statement does before its first row (building a join's hash table) is done again for each segment.
            queue.patience = (2 * started.elapsed()).clamp(SEGMENT_PATIENCE, MAX_SEGMENT_PATIENCE);
        }
        let (wanted, patience) = match self.sharing {
            Sharing::Single => (1, None),
            Sharing::Segments => (1, Some(queue.patience)),
            Sharing::Parallel { .. } => (ROW_GROUP_ROWS, Some(PATIENCE)),
        };
        if matches!(self.sharing, Sharing::Segments) && (queue.rows >= SEGMENT_ROWS || queue.bytes >= SEGMENT_BYTES) {
            queue.paused = true;
        }
        let (mut batches, mut rows, mut bytes) = (VecDeque::new(), 0, 0);
        while rows < wanted && bytes < ROW_GROUP_BYTES && !queue.paused {
            let batch = match queue.rest.take() {
                Some(rest) => rest,
                None => match self.receive(&mut queue, patience)? {
                    Some(batch) => batch,
                    None => break,
                },
            };
            let room = ROW_GROUP_ROWS - rows;
            let batch = if batch.num_rows() > room && wanted == ROW_GROUP_ROWS {
                queue.rest = Some(batch.slice(room, batch.num_rows() - room));
                batch.slice(0, room)
            } else {
                batch
            };
            rows += batch.num_rows();
            bytes += batch_bytes(&batch);
            let before = queue.rows_before;
            queue.rows_before += batch.num_rows() as u64;
            batches.push_back((before, batch));
        }
        queue.taken += 1;
        queue.rows += rows;
        queue.bytes += bytes;
        Ok((queue.taken, batches))
    }

    /// Nothing where the stream has ended, or pauses for longer than `patience`.
    fn receive(&self, queue: &mut Queue, patience: Option<Duration>) -> duckdb::Result<Option<RecordBatch>> {
        if queue.ended {
            return Ok(None);
        }
        let never = CancellationToken::new();
        let stop = self.stop.get().unwrap_or(&never);
        let item = match wait_unless(stop, queue.items.recv(), patience) {
            Waited::For(item) => item,
            Waited::Cancelled => None,
            Waited::LongEnough => {
                queue.paused = true;
                return Ok(None);
            }
        };
        match item {
            Some(Item::Batch(batch)) => Ok(Some(batch)),
            Some(Item::End) => {
                queue.ended = true;
                Ok(None)
            }
            None => {
                let cause = self.failure.or(Error::Stream("the stream was cut before its end".into()));
                Err(duckdb::Error::invalid_input(cause.to_string()))
            }
        }
    }
}

// === the table function ===

struct StreamFunction(Sources);

struct Worker {
    // Declared before the importer: the chunk is dropped first.
    chunk: Option<DataChunk<'static>>,
    importer: ArrowImporter<'static>,
    /// Those of the stream that the statement reads.
    columns: Vec<usize>,
    batches: VecDeque<(u64, RecordBatch)>,
    place: usize,
}

// SAFETY: DuckDB hands a worker's local state to one thread at a time, and neither the importer nor the chunk has
// thread affinity: both are plain C++ objects over the query's client context.
unsafe impl Send for Worker {}

impl TableFunctionCallbacks for StreamFunction {
    type BindData = Arc<Incoming>;
    type LocalState = Worker;
    type GlobalState = ();

    fn bind(
        &self,
        context: &Context,
        arguments: Vec<BindArgument>,
        output: BindFunctionHandle<'_>,
    ) -> duckdb::Result<Self::BindData> {
        let id = arguments.first().and_then(|argument| argument.value.as_ref()).map(|value| value.get::<u64>());
        let incoming = match id.transpose()?.flatten() {
            Some(id) => lock(&self.0.0).get(&id).cloned(),
            None => None,
        };
        let incoming = incoming.ok_or_else(|| duckdb::Error::invalid_input("there is no such stream"))?;
        let importer = import_for(context, incoming.checked.schema())?;
        for field in importer.schema()?.iter()? {
            let (name, logical_type) = field?;
            output.add_result_column(name, &logical_type)?;
        }
        if matches!(incoming.sharing, Sharing::Segments) {
            // Unknown, and so much that a join gathers its other side and lets the stream pass.
            output.set_cardinality(1 << 40, false)?;
        }
        output.set_order(match incoming.sharing {
            Sharing::Single | Sharing::Segments | Sharing::Parallel { preserve_order: true, .. } => {
                OrderPreservation::Insertion
            }
            Sharing::Parallel { preserve_order: false, .. } => OrderPreservation::None,
        })?;
        Ok(incoming)
    }

    fn init_global_state(
        &self,
        incoming: &Self::BindData,
        _context: &Context,
        _columns: InitColumnData<'_>,
    ) -> duckdb::Result<(Option<()>, Option<usize>)> {
        let mut queue = lock(&incoming.queue);
        if std::mem::replace(&mut queue.opened, true) {
            return Err(duckdb::Error::invalid_input("the stream can be read only once by a statement"));
        }
        let workers = match incoming.sharing {
            Sharing::Single | Sharing::Segments => 1,
            Sharing::Parallel { workers, .. } => workers,
        };
        Ok((Some(()), Some(workers)))
    }

    fn init_local_state(
        &self,
        incoming: &Self::BindData,
        _global: Option<&()>,
        context: &Context,
        columns: InitColumnData<'_>,
    ) -> duckdb::Result<Option<Worker>> {
        let columns =
            (0..columns.count()?).map(|at| columns.get_column_index(at)).collect::<duckdb::Result<Vec<_>>>()?;
        let schema = incoming
            .checked
            .schema()
            .project(&columns)
            .map_err(|error| duckdb::Error::invalid_input(error.to_string()))?;
        let importer = import_for(context, &Arc::new(schema))?;
        // SAFETY: the importer borrows the connection's client context, of which a connection has one throughout
        // (capi_v2_arrow.cpp, CV2ArrowImporter::context). DuckDB drops this state with the running statement, which
        // the connection outlives.
        let importer = unsafe { std::mem::transmute::<ArrowImporter<'_>, ArrowImporter<'static>>(importer) };
        Ok(Some(Worker { chunk: None, importer, columns, batches: VecDeque::new(), place: 0 }))
    }

    fn exec(
        &self,
        incoming: &Self::BindData,
        _global: Option<&()>,
        worker: Option<&mut Worker>,
        _context: &Context,
        mut output: DataChunkRef<'_>,
        _columns: ExecColumnInfo<'_>,
    ) -> duckdb::Result<()> {
        let worker = worker.ok_or_else(|| duckdb::Error::api_error("the stream function has no worker state"))?;
        loop {
            if let Some(chunk) = worker.importer.next_chunk()? {
                for column in 0..chunk.col_count() {
                    let source = chunk.get_vector_at::<Unknown>(column)?;
                    let target = output.get_vector_at_mut::<Unknown>(column)?;
                    // SAFETY: the chunk stays in the worker's state, unchanged, until this function is called again,
                    // and DuckDB is done with the output by then.
                    unsafe { target.reference(source)? };
                }
                if !matches!(incoming.sharing, Sharing::Parallel { .. }) {
                    lock(&incoming.place).hand_out(chunk.row_count()?);
                }
                worker.chunk = Some(chunk);
                return Ok(());
            }
            if worker.batches.is_empty() {
                (worker.place, worker.batches) = incoming.next()?;
            }
            let Some((before, batch)) = worker.batches.pop_front() else {
                worker.chunk = None;
                return Ok(());
            };
            // All columns, also those that the statement does not read: whether a stream is taken does not depend on that.
            let checked = incoming.checked.batch(&batch, before).map_err(|error| {
                incoming.failure.set(error.clone());
                duckdb::Error::invalid_input(error.to_string())
            })?;
            if !matches!(incoming.sharing, Sharing::Parallel { .. }) {
                lock(&incoming.place).begin(&batch);
            }
            let array = arrow::export(checked.project(&worker.columns));
            let array = array.map_err(|error| duckdb::Error::invalid_input(error.to_string()))?;
            worker.importer.append_consumed(array, true)?;
        }
    }
}

impl TablePartitioningCallbacks for StreamFunction {
    fn partition_data(
        &self,
        _incoming: &Self::BindData,
        _global: Option<&()>,
        worker: Option<&mut Worker>,
        _context: &Context,
        _partition: PartitionData<'_>,
    ) -> duckdb::Result<usize> {
        Ok(worker.map_or(0, |worker| worker.place))
    }
}

fn import_for<'a>(context: &'a Context, schema: &SchemaRef) -> duckdb::Result<ArrowImporter<'a>> {
    let schema = arrow::export_schema(schema).map_err(|error| duckdb::Error::invalid_input(error.to_string()))?;
    ArrowImporter::new(context, schema, Some(CHUNK_ROWS))
}
