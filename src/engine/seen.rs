//! What is seen of statements from outside: metrics, spans, and the list of those that run.

use std::{
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow_array::RecordBatch;
use duckdb::connection::Connection;

use super::{Engine, Shared, pool::lock, statement};
use crate::{
    config::StatementText,
    error::Result,
    stream::batch_bytes,
    telemetry::{Metrics, StatementSpan},
};

/// Statements from when they are asked for until they have ended.
#[derive(Default)]
pub(super) struct Statements(Mutex<Vec<Weak<Seen>>>);

/// One of them.
pub(super) struct Seen {
    text: String,
    asked: Instant,
    started: OnceLock<Instant>,
    class: OnceLock<&'static str>,
    rows: AtomicU64,
    span: StatementSpan,
    metrics: Metrics,
}

/// What the status page shows of a statement: no literal of its text.
#[derive(Debug, Clone)]
pub struct RunningStatement {
    pub class: &'static str,
    pub text: String,
    pub running: Duration,
    /// Whether it still waits for an engine thread.
    pub queued: bool,
    /// Rows that it has answered so far.
    pub rows: u64,
}

impl Shared {
    /// A statement is asked for. `text` is its SQL, or what it does.
    pub(super) fn see(&self, text: &str) -> Arc<Seen> {
        let seen = Arc::new(Seen {
            text: text.to_string(),
            asked: Instant::now(),
            started: OnceLock::new(),
            class: OnceLock::new(),
            rows: AtomicU64::new(0),
            span: StatementSpan::begin(),
            metrics: self.metrics.clone(),
        });
        let mut statements = lock(&self.statements.0);
        statements.retain(|other| other.strong_count() > 0);
        statements.push(Arc::downgrade(&seen));
        seen
    }

    /// What kind of statement it is, now that it is parsed.
    pub(super) fn identify(&self, seen: &Seen, connection: &Connection, class: &'static str) {
        seen.set_class(class);
        // The tokens are told only to someone who looks.
        if seen.span.is_watched() {
            let described = statement::describe(connection, &seen.text, class);
            let text = match self.config.traces.statement_text {
                StatementText::Redacted => Some(described.text.as_str()),
                StatementText::Full => Some(seen.text.as_str()),
                StatementText::Off => None,
            };
            seen.span.identify(&described.operation, &described.summary, text);
        }
    }
}

impl Seen {
    /// It has an engine thread.
    pub(super) fn start(&self) {
        let waited = self.asked.elapsed();
        // Started once.
        let _ = self.started.set(Instant::now());
        self.metrics.queue_seconds.observe(waited.as_secs_f64());
    }

    /// An ingest has no SQL of a client's.
    pub(super) fn identify_ingest(&self, table: &str) {
        self.set_class("ingest");
        self.span.identify("INGEST", &format!("INGEST {table}"), None);
    }

    fn set_class(&self, class: &'static str) {
        // A statement is of one class.
        let _ = self.class.set(class);
    }

    /// Rows are on their way to the client.
    pub(super) fn answered(&self, rows: usize) {
        if self.rows.fetch_add(rows as u64, Ordering::Relaxed) == 0 {
            self.metrics.first_batch_seconds.observe(self.asked.elapsed().as_secs_f64());
        }
    }

    pub(super) fn end<T>(&self, outcome: &Result<T>) {
        let took = self.started.get().map_or(Duration::ZERO, Instant::elapsed);
        self.metrics.query_ended(self.class.get().unwrap_or(&"other"), outcome, took);
        self.span.end(outcome, self.rows.load(Ordering::Relaxed));
    }
}

impl Engine {
    /// The statements that run or wait, the oldest first.
    pub async fn statements(&self) -> Result<Vec<RunningStatement>> {
        let seen: Vec<Arc<Seen>> = lock(&self.shared.statements.0).iter().filter_map(Weak::upgrade).collect();
        if seen.is_empty() {
            return Ok(Vec::new());
        }
        self.aside(move |_, connection| {
            let shown = |seen: &Arc<Seen>| {
                let class = *seen.class.get().unwrap_or(&"other");
                let text = match class {
                    "ingest" => seen.text.clone(),
                    _ => statement::describe(connection, &seen.text, class).text,
                };
                let queued = seen.started.get().is_none();
                RunningStatement {
                    class,
                    text,
                    running: seen.asked.elapsed(),
                    queued,
                    rows: seen.rows.load(Ordering::Relaxed),
                }
            };
            Ok(seen.iter().map(shown).collect())
        })
        .await
    }
}

/// A batch that waits between DuckDB and the network.
pub(super) struct Waiting {
    batch: Option<RecordBatch>,
    bytes: i64,
    metrics: Metrics,
}

impl Waiting {
    pub(super) fn new(batch: RecordBatch, metrics: &Metrics) -> Self {
        let bytes = i64::try_from(batch_bytes(&batch)).unwrap_or(i64::MAX);
        metrics.stream_buffer.add(bytes);
        Self { batch: Some(batch), bytes, metrics: metrics.clone() }
    }

    pub(super) fn leave(mut self) -> RecordBatch {
        self.batch.take().expect("it leaves once")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.metrics.stream_buffer.sub(self.bytes);
    }
}
