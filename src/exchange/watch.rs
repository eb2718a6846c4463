//! What surrounds a running exchanger, whatever its kind: its input and output are counted, it is cut when it stalls or
//! floods, and its errors are told with its name and the row of the input where they happened.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{
    Stream, StreamExt,
    future::{BoxFuture, ready as at_once},
};
use tokio::time::{Instant, Sleep};
use tracing::Span;

use super::{Exchanger, Run, statistics::Statistics, version::Version};
use crate::{
    access::Allowance,
    config,
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
    telemetry::Metrics,
};

/// What may be given before it is compared with what was taken: a constant table, a generator.
const FREE_ROWS: u64 = 1_000_000;
const FREE_BYTES: u64 = 1024 * 1024 * 1024;

/// One exchanger as a running chain uses it.
pub(super) struct Stage {
    /// NAME, or NAME@VERSION.
    pub(super) name: String,
    pub(super) exchanger: Arc<dyn Exchanger>,
    pub(super) version: Arc<Version>,
}

impl Stage {
    pub(super) async fn start(
        self,
        input: RecordBatchStream,
        run: Run,
        limits: &config::Exchange,
        metrics: &Metrics,
    ) -> Result<RecordBatchStream> {
        let Self { name, exchanger, version } = self;
        let kind = exchanger.kind().word();
        let span = tracing::info_span!("exchange", otel.name = "exchange", exchange.name = name, exchange.kind = kind);
        let passage = Arc::new(Passage {
            name,
            statistics: version.statistics.clone(),
            taken: Totals::default(),
            given: Totals::default(),
            last_batch: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            input_failed: Mutex::default(),
            max_growth: limits.max_growth as u64,
        });
        let mut underway = metrics.exchange(kind);
        let using = Using::begin(version);
        let input = passage.clone().taking(input);
        let starting = span.in_scope(|| exchanger.start(input, run));
        let patience = Patience::new(limits.stall_timeout);
        let started = Starting { starting, patience, passage: passage.clone(), span: span.clone() };
        let (output, patience) = match started.await {
            Ok(started) => started,
            Err(error) => {
                let error = passage.explain(error, None);
                using.failed(&error);
                underway.end::<()>(&Err(error.clone()));
                return Err(error);
            }
        };
        let schema = output.schema();
        let output = Output { output: Some(output), patience, passage, span };
        Ok(RecordBatchStream::new(schema, output).ending(move |outcome| {
            if let Err(error) = &outcome {
                using.failed(error);
            }
            underway.end(&outcome);
            drop(using);
        }))
    }
}

/// An answer within what its reader's role may have.
pub fn within(allowance: Allowance, output: RecordBatchStream) -> RecordBatchStream {
    let Allowance { result_rows, result_bytes, .. } = allowance;
    if result_rows.is_none() && result_bytes.is_none() {
        return output;
    }
    let given = Totals::default();
    let schema = output.schema();
    let batches = output.map(move |batch| {
        let batch = batch?;
        let (rows, bytes) = given.add(batch.num_rows() as u64, batch_bytes(&batch));
        let over = |what: String, key| Err(Error::Limit { what, key });
        match (result_rows, result_bytes) {
            (Some(most), _) if rows > most => over(
                format!("the exchange answers more than {most} rows, which is what the caller's role may have"),
                "the role's result_rows",
            ),
            (_, Some(most)) if bytes > most.0 => over(
                format!("the exchange answers more than {most}, which is what the caller's role may have"),
                "the role's result_bytes",
            ),
            _ => Ok(batch),
        }
    });
    let mut failed = false;
    // It ends with its first error.
    RecordBatchStream::new(
        schema,
        batches.take_while(move |batch| at_once(!std::mem::replace(&mut failed, batch.is_err()))),
    )
}

/// Counts one use for as long as it lives.
struct Using(Arc<Version>);

impl Using {
    fn begin(version: Arc<Version>) -> Self {
        version.statistics.uses.fetch_add(1, Relaxed);
        version.statistics.running.fetch_add(1, Relaxed);
        Self(version)
    }

    fn failed(&self, error: &Error) {
        if !matches!(error, Error::Cancelled) {
            self.0.statistics.failed.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        self.0.statistics.running.fetch_sub(1, Relaxed);
    }
}

/// What both ends of one running exchanger share.
struct Passage {
    name: String,
    statistics: Arc<Statistics>,
    taken: Totals,
    given: Totals,
    /// Rows of the batch that was taken last.
    last_batch: AtomicU64,
    /// Batches taken and given.
    moves: AtomicU64,
    /// Whether it has asked for input that is not there yet.
    waits: AtomicBool,
    /// The input's own error, which is not the exchanger's.
    input_failed: Mutex<Option<Error>>,
    max_growth: u64,
}

#[derive(Default)]
struct Totals {
    rows: AtomicU64,
    bytes: AtomicU64,
}

impl Totals {
    fn add(&self, rows: u64, bytes: u64) -> (u64, u64) {
        (self.rows.fetch_add(rows, Relaxed) + rows, self.bytes.fetch_add(bytes, Relaxed) + bytes)
    }
}

impl Passage {
    /// The input as the exchanger gets it.
    fn taking(self: Arc<Self>, mut input: RecordBatchStream) -> RecordBatchStream {
        let schema = input.schema();
        let batches = futures::stream::poll_fn(move |cx| {
            let item = Pin::new(&mut input).poll_next(cx);
            self.waits.store(item.is_pending(), Relaxed);
            match &item {
                Poll::Ready(Some(Ok(batch))) => {
                    let (rows, bytes) = (batch.num_rows() as u64, batch_bytes(batch));
                    self.taken.add(rows, bytes);
                    self.last_batch.store(rows, Relaxed);
                    self.statistics.rows_in.fetch_add(rows, Relaxed);
                    self.statistics.bytes_in.fetch_add(bytes, Relaxed);
                    self.moves.fetch_add(1, Relaxed);
                }
                Poll::Ready(Some(Err(error))) => {
                    *self.input_failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                }
                Poll::Ready(None) => {
                    self.moves.fetch_add(1, Relaxed);
                }
                Poll::Pending => {}
            }
            item
        });
        RecordBatchStream::new(schema, batches)
    }

    fn gave(&self, rows: u64, bytes: u64) -> Result<()> {
        self.statistics.rows_out.fetch_add(rows, Relaxed);
        self.statistics.bytes_out.fetch_add(bytes, Relaxed);
        self.moves.fetch_add(1, Relaxed);
        let (rows, bytes) = self.given.add(rows, bytes);
        if self.max_growth == 0 {
            return Ok(());
        }
        let allowed =
            |taken: &AtomicU64, free: u64| free.saturating_add(taken.load(Relaxed).saturating_mul(self.max_growth));
        if rows > allowed(&self.taken.rows, FREE_ROWS) || bytes > allowed(&self.taken.bytes, FREE_BYTES) {
            let Self { name, max_growth, .. } = self;
            let what = format!("exchanger \"{name}\" gives more than {max_growth} times what it took");
            return Err(Error::Limit { what, key: "exchange.max_growth" });
        }
        Ok(())
    }

    /// The row where the last batch began, where one was taken.
    fn row(&self) -> Option<u64> {
        let taken = self.taken.rows.load(Relaxed);
        (taken > 0).then(|| taken - self.last_batch.load(Relaxed) + 1)
    }

    /// Whose error it is.
    fn explain(&self, error: Error, row: Option<u64>) -> Error {
        if let Some(own) = self.input_failed.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return own;
        }
        let name = self.name.clone();
        match error {
            Error::Exchanger { name: unnamed, row, cause } if unnamed.is_empty() => {
                Error::Exchanger { name, row, cause }
            }
            // The exchanger's own doing, and not that of whoever calls, leaves or stops the server.
            Error::Sql(_) | Error::Invalid(_) | Error::NotFound(_) | Error::Constraint(_) | Error::Unsupported(_) => {
                Error::Exchanger { name, row, cause: Arc::new(error) }
            }
            other => other,
        }
    }

    fn stalled(&self, limit: Duration) -> Error {
        let (name, limit) = (&self.name, humantime::format_duration(limit));
        let what = format!("exchanger \"{name}\" took and gave nothing for {limit}");
        Error::Limit { what, key: "exchange.stall_timeout" }
    }
}

/// How long an exchanger may work in silence. Looked at while its output is waited for, so that a slow reader is no stall.
struct Patience {
    limit: Duration,
    /// `None` without a limit.
    timer: Option<Pin<Box<Sleep>>>,
    /// Moves when the timer was set.
    seen: u64,
}

impl Patience {
    fn new(limit: config::Span) -> Self {
        let timer = limit.limit().map(|limit| Box::pin(tokio::time::sleep(limit)));
        Self { limit: limit.0, timer, seen: 0 }
    }

    /// Whether nothing has moved since the timer was set, although the exchanger does not wait for input.
    fn ended(&mut self, passage: &Passage, cx: &mut Context<'_>) -> bool {
        let Some(timer) = &mut self.timer else { return false };
        while timer.as_mut().poll(cx).is_ready() {
            let moves = passage.moves.load(Relaxed);
            if moves == self.seen && !passage.waits.load(Relaxed) {
                return true;
            }
            self.seen = moves;
            timer.as_mut().reset(Instant::now() + self.limit);
        }
        false
    }
}

struct Starting {
    starting: BoxFuture<'static, Result<RecordBatchStream>>,
    patience: Patience,
    passage: Arc<Passage>,
    span: Span,
}

impl Future for Starting {
    type Output = Result<(RecordBatchStream, Patience)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { starting, patience, passage, span } = &mut *self;
        let _in_span = span.enter();
        match starting.as_mut().poll(cx) {
            Poll::Pending if patience.ended(passage, cx) => Poll::Ready(Err(passage.stalled(patience.limit))),
            Poll::Pending => Poll::Pending,
            Poll::Ready(started) => {
                let none = Patience { limit: Duration::ZERO, timer: None, seen: 0 };
                Poll::Ready(started.map(|output| (output, std::mem::replace(patience, none))))
            }
        }
    }
}

struct Output {
    /// `None` once it has ended: what an exchanger that was cut still does is ended by this.
    output: Option<RecordBatchStream>,
    patience: Patience,
    passage: Arc<Passage>,
    span: Span,
}

impl Stream for Output {
    type Item = Result<arrow_array::RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { output, patience, passage, span } = &mut *self;
        let _in_span = span.enter();
        let Some(batches) = output else { return Poll::Ready(None) };
        let polled = Pin::new(batches).poll_next(cx);
        if polled.is_pending() && patience.ended(passage, cx) {
            *output = None;
            return Poll::Ready(Some(Err(passage.stalled(patience.limit))));
        }
        let item = match ready!(polled) {
            Some(Ok(batch)) => passage.gave(batch.num_rows() as u64, batch_bytes(&batch)).map(|()| batch),
            Some(Err(error)) => Err(passage.explain(error, passage.row())),
            None => {
                *output = None;
                return Poll::Ready(None);
            }
        };
        if item.is_err() {
            *output = None;
        }
        Poll::Ready(Some(item))
    }
}
