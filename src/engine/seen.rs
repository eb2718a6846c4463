//! What is seen of statements from outside: metrics, spans, and the list of those that run. Streams through exchangers are
//! on that list, too, and are ended like statements.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arrow_array::RecordBatch;
use duckdb::connection::Connection;
use futures::Stream;
use serde::{Serialize, Serializer};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    Engine, Shared,
    pool::{Cancel, lock},
    reopen::Suspect,
    statement,
};
use crate::{
    access::{Principal, Rights, Role},
    config::StatementText,
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
    telemetry::{self, Access, Event, Metrics, StatementSpan},
};

/// Statements from when they are asked for until they have ended.
#[derive(Default)]
pub(super) struct Statements {
    seen: Mutex<Vec<Weak<Seen>>>,
    /// How many there were.
    count: AtomicU64,
}

/// One of them.
pub(super) struct Seen {
    id: u64,
    rights: Arc<Rights>,
    text: String,
    /// The same without literals, once somebody has looked.
    shown: OnceLock<String>,
    asked: Instant,
    started: OnceLock<Instant>,
    class: OnceLock<&'static str>,
    rows: AtomicU64,
    /// The tables it names, where there is an audit log.
    objects: OnceLock<Vec<String>>,
    /// What they stand for.
    bound: OnceLock<Arc<[Access]>>,
    cancel: OnceLock<Cancel>,
    /// Who has ended it, while it waits for a thread, too.
    killer: OnceLock<String>,
    killed: CancellationToken,
    /// Of a stream through exchangers: what ends with it. Empty when it has ended.
    exchange: OnceLock<Weak<Mutex<Option<RecordBatchStream>>>>,
    /// A stream through exchangers has spans of its own, one for each exchanger.
    span: Option<StatementSpan>,
    metrics: Metrics,
}

/// The class of a statement that is planned only.
const PLAN: &str = "plan";

/// The class of a stream through exchangers.
const EXCHANGE: &str = "exchange";

/// What the status page and the action `queries` show of a statement, or of a stream through exchangers: no literal of its
/// text.
#[derive(Debug, Clone, Serialize)]
pub struct RunningStatement {
    /// Of this server since its start.
    pub id: u64,
    pub user: String,
    /// Who has vouched for the user's name.
    pub issuer: String,
    pub class: &'static str,
    pub text: String,
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub running: Duration,
    /// Whether it still waits for an engine thread.
    pub queued: bool,
    /// Whether it was asked to end and still has its thread: DuckDB does not look while it plans.
    pub ending: bool,
    /// Rows that it has answered so far.
    pub rows: u64,
}

impl RunningStatement {
    pub fn is_of(&self, principal: &Principal) -> bool {
        self.user == principal.name && self.issuer == principal.issuer.to_string()
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

impl Shared {
    /// A statement is asked for. `text` is its SQL, or what it does.
    pub(super) fn see(&self, rights: &Arc<Rights>, text: &str) -> Arc<Seen> {
        self.list(rights, text, Some(StatementSpan::begin()))
    }

    /// A statement is to be planned, and not run.
    pub(super) fn see_planning(&self, rights: &Arc<Rights>, text: &str) -> Arc<Seen> {
        let seen = self.list(rights, text, None);
        seen.set_class(PLAN);
        seen
    }

    fn list(&self, rights: &Arc<Rights>, text: &str, span: Option<StatementSpan>) -> Arc<Seen> {
        let seen = Arc::new(Seen {
            id: self.statements.count.fetch_add(1, Ordering::Relaxed) + 1,
            rights: rights.clone(),
            text: text.to_string(),
            shown: OnceLock::new(),
            asked: Instant::now(),
            started: OnceLock::new(),
            class: OnceLock::new(),
            rows: AtomicU64::new(0),
            objects: OnceLock::new(),
            bound: OnceLock::new(),
            cancel: OnceLock::new(),
            killer: OnceLock::new(),
            killed: CancellationToken::new(),
            exchange: OnceLock::new(),
            span,
            metrics: self.metrics.clone(),
        });
        let mut statements = lock(&self.statements.seen);
        statements.retain(|other| other.strong_count() > 0);
        statements.push(Arc::downgrade(&seen));
        seen
    }

    /// What kind of statement it is, now that it is parsed.
    pub(super) fn identify(&self, seen: &Seen, connection: &Connection, class: &'static str) {
        seen.set_class(class);
        // The tokens are told only to someone who looks.
        let audited = self.metrics.audit.get().is_some();
        let Some(span) = &seen.span else { return };
        if audited || span.is_watched() {
            let described = statement::describe(connection, &seen.text, class);
            let text = match self.config.traces.statement_text {
                StatementText::Redacted => Some(described.text.as_str()),
                StatementText::Full => Some(seen.text.as_str()),
                StatementText::Off => None,
            };
            span.identify(&described.operation, &described.summary, text);
            if audited {
                // Described once.
                let _ = seen.objects.set(described.targets);
            }
        }
    }
}

impl Seen {
    /// Waits, unless someone ends the statement meanwhile.
    pub(super) async fn unless_killed<T>(&self, waiting: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = self.killed.run_until_cancelled(waiting).await;
        outcome.unwrap_or_else(|| Err(self.ended_by()))
    }

    /// It runs, and this is how it is cancelled.
    pub(super) fn runs(&self, cancel: &Cancel) {
        // Set once; a kill that came just before finds nothing there.
        let _ = self.cancel.set(cancel.clone());
        if self.killed.is_cancelled() {
            cancel.end(self.ended_by());
        }
    }

    fn ended_by(&self) -> Error {
        Error::Killed(self.killer.get().cloned().unwrap_or_default())
    }

    fn kill(&self, killer: &str) {
        // The first one stands.
        let _ = self.killer.set(killer.to_string());
        self.killed.cancel();
        if let Some(cancel) = self.cancel.get() {
            cancel.end(self.ended_by());
        }
        if let Some(stream) = self.exchange.get().and_then(Weak::upgrade) {
            // Dropped outside of the lock, and now: its reader may stand still and never ask again.
            let ended = lock(&stream).take();
            drop(ended);
        }
    }

    /// Whether it is a stream through exchangers that has ended, and that its reader has not let go of.
    fn has_left(&self) -> bool {
        self.exchange.get().is_some_and(|stream| stream.upgrade().is_none_or(|stream| lock(&stream).is_none()))
    }

    /// It has an engine thread for its planning.
    pub(super) fn plans(&self) {
        // Started once.
        let _ = self.started.set(Instant::now());
    }

    fn is_ending(&self) -> bool {
        self.killed.is_cancelled() || self.cancel.get().is_some_and(|cancel| cancel.token().is_cancelled())
    }

    /// It has an engine thread.
    pub(super) fn start(&self) {
        let waited = self.asked.elapsed();
        // Started once.
        let _ = self.started.set(Instant::now());
        self.metrics.queue_seconds.observe(waited.as_secs_f64());
    }

    /// Whether somebody wants to know what it reaches.
    pub(super) fn is_audited(&self) -> bool {
        self.metrics.audit.get().is_some()
    }

    pub(super) fn binds(&self, bound: Arc<[Access]>) {
        // Found once.
        let _ = self.bound.set(bound);
    }

    /// An ingest has no SQL of a client's.
    pub(super) fn identify_ingest(&self, table: &str) {
        self.set_class("ingest");
        // Described once.
        let _ = self.objects.set(vec![table.to_string()]);
        self.describe("INGEST", &format!("INGEST {table}"));
    }

    /// The begin or the end of a transaction.
    pub(super) fn identify_turn(&self, sql: &str) {
        self.set_class("other");
        self.describe(sql, sql);
    }

    fn describe(&self, operation: &str, summary: &str) {
        self.span.iter().for_each(|span| span.identify(operation, summary, None));
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

    /// Whose statement it is, should it be to blame for something.
    pub(super) fn suspect(&self) -> Suspect<'_> {
        Suspect {
            rights: &self.rights,
            class: self.class.get().unwrap_or(&"other"),
            objects: self.objects.get().map_or(&[], Vec::as_slice),
        }
    }

    pub(super) fn end<T>(&self, outcome: &Result<T>) {
        let took = self.started.get().map_or(Duration::ZERO, Instant::elapsed);
        self.metrics.query_ended(self.class.get().unwrap_or(&"other"), outcome, took);
        let rows = self.rows.load(Ordering::Relaxed);
        self.span.iter().for_each(|span| span.end(outcome, rows));
        if let Some(audit) = self.metrics.audit.get() {
            let Rights { user, issuer, role_name, origin, .. } = &*self.rights;
            let issuer = issuer.to_string();
            let rule = match outcome {
                Err(Error::Denied { rule, .. }) => Some(*rule),
                _ => None,
            };
            audit.write(&Event {
                event: "statement",
                user: Some(user),
                issuer: Some(&issuer),
                role: Some(role_name),
                peer: origin.as_ref().and_then(|origin| origin.peer.as_deref()),
                trace_id: origin.as_ref().map(|origin| origin.trace_id.as_str()),
                class: Some(self.class.get().unwrap_or(&"other")),
                objects: self.objects.get().map_or(&[], Vec::as_slice),
                bound: self.bound.get().map_or(&[], |bound| bound),
                outcome: telemetry::outcome(outcome),
                rule,
                rows_sent: Some(rows).filter(|rows| *rows > 0),
                seconds: Some(took.as_secs_f64()),
                ..Event::default()
            });
        }
    }
}

// === streams through exchangers ===

impl Engine {
    /// Lets a stream through exchangers be seen and ended like a statement, from before it starts until it has ended or its
    /// reader has let go of it. `text` names the exchangers and holds no value.
    pub async fn see_exchange(
        &self,
        rights: &Arc<Rights>,
        text: &str,
        starting: impl Future<Output = Result<RecordBatchStream>>,
    ) -> Result<RecordBatchStream> {
        let seen = self.shared.list(rights, text, None);
        seen.set_class(EXCHANGE);
        // It waits for no engine thread.
        let _ = seen.started.set(Instant::now());
        let stream = seen.unless_killed(starting).await?;
        let schema = stream.schema();
        let stream = Arc::new(Mutex::new(Some(stream)));
        // Set once.
        let _ = seen.exchange.set(Arc::downgrade(&stream));
        let killed = Box::pin(seen.killed.clone().cancelled_owned());
        Ok(RecordBatchStream::new(schema, Exchange { stream, killed, seen: Some(seen) }))
    }
}

/// The batches of a stream that may be taken away from beside.
struct Exchange {
    stream: Arc<Mutex<Option<RecordBatchStream>>>,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    /// `None` when it has ended.
    seen: Option<Arc<Seen>>,
}

impl Stream for Exchange {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { stream, killed, seen } = &mut *self;
        let Some(running) = seen else { return Poll::Ready(None) };
        let item = match killed.as_mut().poll(cx) {
            Poll::Ready(()) => Some(Err(running.ended_by())),
            Poll::Pending => {
                let mut stream = lock(stream);
                // Taken between the two: the next poll says why.
                let Some(batches) = stream.as_mut() else { return Poll::Pending };
                std::task::ready!(Pin::new(batches).poll_next(cx))
            }
        };
        match &item {
            Some(Ok(batch)) => drop(running.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed)),
            Some(Err(_)) | None => {
                *seen = None;
                let ended = lock(stream).take();
                drop(ended);
            }
        }
        Poll::Ready(item)
    }
}

/// Which statements to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kill {
    Statement(u64),
    Of(Principal),
}

impl Engine {
    /// Ends statements and exchanges, waiting ones, too. Who is no admin ends their own only. How many there were.
    pub fn kill(&self, rights: &Rights, which: &Kill) -> usize {
        let by = match rights.role {
            Role::Admin => format!("administrator {}", rights.principal()),
            _ => "its user".to_string(),
        };
        let chosen = |seen: &Arc<Seen>| {
            let meant = match which {
                Kill::Statement(id) => seen.id == *id,
                Kill::Of(principal) => seen.rights.principal() == *principal,
            };
            meant && (rights.role >= Role::Admin || seen.rights.principal() == rights.principal())
        };
        let seen: Vec<Arc<Seen>> = self.seen().into_iter().filter(chosen).collect();
        seen.iter().for_each(|seen| seen.kill(&by));
        seen.len()
    }

    /// Whose statements run or wait.
    pub fn principals(&self) -> Vec<Principal> {
        self.seen().iter().map(|seen| seen.rights.principal()).collect()
    }

    fn seen(&self) -> Vec<Arc<Seen>> {
        let seen = lock(&self.shared.statements.seen);
        seen.iter().filter_map(Weak::upgrade).filter(|seen| !seen.has_left()).collect()
    }

    /// The statements and exchanges that run or wait, the oldest first. Those who ask at once share the answer.
    pub async fn statements(&self) -> Result<Arc<Vec<RunningStatement>>> {
        if self.seen().is_empty() {
            return Ok(Arc::default());
        }
        self.listed.get(self.list()).await
    }

    async fn list(&self) -> Result<Arc<Vec<RunningStatement>>> {
        let seen = self.seen();
        self.aside(move |_, connection| {
            let shown = |seen: &Arc<Seen>| {
                let class = *seen.class.get().unwrap_or(&"other");
                // Described once; whoever looks next finds it.
                let text = seen.shown.get_or_init(|| match class {
                    "ingest" | EXCHANGE => seen.text.clone(),
                    _ => statement::describe(connection, &seen.text, class).text,
                });
                let text = text.clone();
                let queued = seen.started.get().is_none();
                RunningStatement {
                    id: seen.id,
                    user: seen.rights.user.clone(),
                    issuer: seen.rights.issuer.to_string(),
                    class,
                    text,
                    running: seen.asked.elapsed(),
                    queued,
                    ending: seen.is_ending(),
                    rows: seen.rows.load(Ordering::Relaxed),
                }
            };
            Ok(Arc::new(seen.iter().map(shown).collect()))
        })
        .await
    }
}

/// A batch that waits between DuckDB and the network.
pub(super) struct Waiting {
    batch: Option<RecordBatch>,
    bytes: i64,
    metrics: Metrics,
    /// Its part of what may wait.
    _room: OwnedSemaphorePermit,
}

impl Waiting {
    pub(super) fn new(batch: RecordBatch, room: OwnedSemaphorePermit, metrics: &Metrics) -> Self {
        let bytes = i64::try_from(batch_bytes(&batch)).unwrap_or(i64::MAX);
        metrics.stream_buffer.add(bytes);
        Self { batch: Some(batch), bytes, metrics: metrics.clone(), _room: room }
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
