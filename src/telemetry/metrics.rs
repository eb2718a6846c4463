//! The Prometheus metrics of one server: a registry that is handed down, its label sets few and there from the start.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};
use tonic::Code;

use super::{Audit, Method};
use crate::error::{Error, Result};

/// Seconds; OpenTelemetry's advice for durations, and longer ones for analytics.
const SECONDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What a statement is, as a label.
const STATEMENTS: [&str; 12] =
    ["select", "insert", "update", "delete", "merge", "create", "drop", "alter", "copy", "ingest", "explain", "other"];

const CODES: [(Code, &str); 17] = [
    (Code::Ok, "OK"),
    (Code::Cancelled, "Canceled"),
    (Code::Unknown, "Unknown"),
    (Code::InvalidArgument, "InvalidArgument"),
    (Code::DeadlineExceeded, "DeadlineExceeded"),
    (Code::NotFound, "NotFound"),
    (Code::AlreadyExists, "AlreadyExists"),
    (Code::PermissionDenied, "PermissionDenied"),
    (Code::ResourceExhausted, "ResourceExhausted"),
    (Code::FailedPrecondition, "FailedPrecondition"),
    (Code::Aborted, "Aborted"),
    (Code::OutOfRange, "OutOfRange"),
    (Code::Unimplemented, "Unimplemented"),
    (Code::Internal, "Internal"),
    (Code::Unavailable, "Unavailable"),
    (Code::DataLoss, "DataLoss"),
    (Code::Unauthenticated, "Unauthenticated"),
];

/// Cheap to clone; every part of one server counts into the same registry.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl std::ops::Deref for Metrics {
    type Target = Arc<Inner>;

    fn deref(&self) -> &Arc<Inner> {
        &self.0
    }
}

pub struct Inner {
    registry: Registry,
    rpc_started: IntCounterVec,
    rpc_handled: IntCounterVec,
    rpc_seconds: HistogramVec,
    rpc_received: IntCounterVec,
    rpc_sent: IntCounterVec,
    pub connections: IntGauge,
    pub connections_total: IntCounter,
    pub connections_unauthenticated: IntGauge,
    connections_refused: IntCounterVec,
    connections_closed: IntCounterVec,
    streams_stalled: IntCounterVec,
    pub streams_open: IntGauge,
    pub queries_running: IntGauge,
    pub queries_queued: IntGauge,
    pub pool_size: IntGauge,
    queries: IntCounterVec,
    query_seconds: HistogramVec,
    pub queue_seconds: Histogram,
    pub first_batch_seconds: Histogram,
    cancellations: IntCounterVec,
    rows: IntCounterVec,
    bytes: IntCounterVec,
    pub stream_buffer: IntGauge,
    pub bytes_in_flight: IntGauge,
    pub exchange_buffer: IntGauge,
    pub client_sessions: IntGauge,
    pub transactions_open: IntGauge,
    pub prepared_statements: IntGauge,
    pub ingests_waiting: IntGauge,
    logins: IntCounterVec,
    jwks_fetches: IntCounterVec,
    pub sessions_closed: IntGauge,
    denials: IntCounterVec,
    pub logins_waiting: IntGauge,
    pub sessions: IntGauge,
    exchanges: IntCounterVec,
    pub exchanges_running: IntGauge,
    pub exchangers: IntGauge,
    transfers: IntCounterVec,
    pub transfers_running: IntGauge,
    pub transfer_rows: IntCounter,
    pub transfer_bytes: IntCounter,
    pub checkpoints: IntCounter,
    backups: IntCounterVec,
    backup_time: IntGauge,
    backup_seconds: Gauge,
    memory: IntGaugeVec,
    temp_storage: IntGaugeVec,
    memory_limit: IntGauge,
    database_size: IntGauge,
    wal_size: IntGauge,
    volume_free: IntGaugeVec,
    volume_size: IntGaugeVec,
    reloads: IntCounterVec,
    pub audit_lost: IntCounter,
    /// Where what is counted is written down, too; set once, at start.
    pub audit: OnceLock<Audit>,
    handshakes: IntCounterVec,
    pub certificate_not_after: IntGauge,
    pub ready: IntGauge,
    pub draining: IntGauge,
    pub invalidated: IntGauge,
    pub file_lost: IntGauge,
    pub reopened: IntCounter,
}

/// What is read from the engine when metrics are scraped.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Storage {
    /// By tag: bytes in memory, and in temporary files; empty where DuckDB did not answer.
    pub memory: Vec<(String, u64, u64)>,
    pub memory_limit: Option<u64>,
    pub database_size: u64,
    pub wal_size: u64,
    /// By what it is for: bytes free to this process, and in all.
    pub volumes: Vec<(&'static str, u64, u64)>,
}

impl Metrics {
    /// With the process's own metrics and the build's versions.
    pub fn new(duckdb_version: &str) -> Self {
        let metrics = Self::unregistered();
        let build = gauges(
            &metrics.registry,
            "mallard_build_info",
            "Always 1; the versions are in the labels.",
            &["version", "revision", "duckdb_version", "arrow_version"],
        );
        let versions = [env!("CARGO_PKG_VERSION"), super::REVISION, duckdb_version, super::ARROW_VERSION];
        build.with_label_values(&versions).set(1);
        #[cfg(target_os = "linux")]
        register(&metrics.registry, prometheus::process_collector::ProcessCollector::for_self());
        metrics
    }

    /// Counts that nobody scrapes: for sandboxes and the command line.
    pub fn unregistered() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let rpc = ["grpc_type", "grpc_service", "grpc_method"];
        let rpc_with_code = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let inner = Inner {
            rpc_started: counters(r, "grpc_server_started_total", "RPCs begun.", &rpc),
            rpc_handled: counters(r, "grpc_server_handled_total", "RPCs ended, with their stream.", &rpc_with_code),
            rpc_seconds: histograms(
                r,
                "grpc_server_handling_seconds",
                "Seconds from an RPC's request to the end of its answer, which its reader paces.",
                &rpc,
            ),
            rpc_received: counters(r, "grpc_server_msg_received_total", "gRPC messages received.", &rpc),
            rpc_sent: counters(r, "grpc_server_msg_sent_total", "gRPC messages sent.", &rpc),
            connections: gauge(r, "mallard_connections", "Open connections on the Flight port."),
            connections_total: counter(r, "mallard_connections_total", "Connections accepted on the Flight port."),
            connections_unauthenticated: gauge(
                r,
                "mallard_connections_unauthenticated",
                "Open connections of which no call has passed the login yet.",
            ),
            connections_refused: counters(
                r,
                "mallard_connections_refused_total",
                "Connections closed at once, because limits.connections or limits.connections_per_address are reached.",
                &["reason"],
            ),
            connections_closed: counters(
                r,
                "mallard_connections_closed_total",
                "Connections that the server closed: silent ones (handshake), ones without login (unauthenticated) or that made room for others (evicted), idle ones, and ones whose client reads nothing (unread).",
                &["reason"],
            ),
            streams_stalled: counters(
                r,
                "mallard_streams_stalled_total",
                "Streams ended because their client took or sent nothing for limits.stall_timeout.",
                &["direction"],
            ),
            streams_open: gauge(r, "mallard_streams_open", "RPCs whose answer is not finished."),
            queries_running: gauge(r, "mallard_queries_running", "Statements on an engine thread."),
            queries_queued: gauge(r, "mallard_queries_queued", "Statements waiting for an engine thread."),
            pool_size: gauge(r, "mallard_pool_size", "Engine threads at most (limits.queries)."),
            queries: counters(r, "mallard_queries_total", "Statements ended.", &["statement", "outcome"]),
            query_seconds: histograms(
                r,
                "mallard_query_duration_seconds",
                "Seconds a statement held an engine thread, its stream included.",
                &["statement"],
            ),
            queue_seconds: histogram(
                r,
                "mallard_query_queue_duration_seconds",
                "Seconds a statement waited for an engine thread.",
            ),
            first_batch_seconds: histogram(
                r,
                "mallard_query_time_to_first_batch_seconds",
                "Seconds from a statement's request to its first record batch, the wait included.",
            ),
            cancellations: counters(
                r,
                "mallard_query_cancellations_total",
                "Statements ended before their time: the client left or asked for it, the deadline came, the server drained, the database was reopened.",
                &["reason"],
            ),
            rows: counters(r, "mallard_rows_total", "Rows moved over Flight.", &["direction"]),
            bytes: counters(
                r,
                "mallard_bytes_total",
                "Bytes of Arrow data moved over Flight, without framing.",
                &["direction"],
            ),
            stream_buffer: gauge(
                r,
                "mallard_stream_buffer_bytes",
                "Bytes of Arrow data that wait between DuckDB and the network.",
            ),
            bytes_in_flight: gauge(
                r,
                "mallard_bytes_in_flight",
                "Bytes of incoming messages that are being received or that something still reads (limits.bytes_in_flight).",
            ),
            exchange_buffer: gauge(
                r,
                "mallard_exchange_buffer_bytes",
                "Bytes of exchanges' answers on disk that wait for clients which send before they read (exchange.buffer_disk).",
            ),
            client_sessions: gauge(
                r,
                "mallard_client_sessions",
                "Sessions that keep something between calls: settings, temporary tables, a transaction.",
            ),
            transactions_open: gauge(r, "mallard_transactions_open", "Transactions that are open between calls."),
            prepared_statements: gauge(r, "mallard_prepared_statements", "Prepared statements that are kept."),
            ingests_waiting: gauge(
                r,
                "mallard_ingests_waiting",
                "Incoming streams whose sender is slow; they hold an engine thread and no DuckDB worker.",
            ),
            logins: counters(
                r,
                "mallard_logins_total",
                "Attempts to log in; limited ones were refused before anybody looked at the password.",
                &["method", "outcome"],
            ),
            jwks_fetches: counters(
                r,
                "mallard_jwks_fetches_total",
                "Fetches of the keys of whoever issues JWTs (jwt.jwks_url).",
                &["outcome"],
            ),
            sessions_closed: gauge(
                r,
                "mallard_sessions_closed",
                "Closed sessions that are remembered until their tokens have expired (auth.closed_sessions of each user).",
            ),
            logins_waiting: gauge(r, "mallard_logins_waiting", "Logins that wait for their password to be checked."),
            denials: counters(
                r,
                "mallard_denials_total",
                "RPCs refused: no valid identity, not allowed, or a configured limit reached.",
                &["reason"],
            ),
            sessions: gauge(r, "mallard_sessions", "Users whose login was used within auth.token_ttl."),
            exchanges: counters(r, "mallard_exchanges_total", "Exchanges ended.", &["kind", "outcome"]),
            exchanges_running: gauge(r, "mallard_exchanges_running", "Exchanges under way."),
            exchangers: gauge(r, "mallard_exchangers_registered", "Exchangers registered by clients."),
            transfers: counters(
                r,
                "mallard_transfers_total",
                "Transfers that this server pulled, ended.",
                &["outcome"],
            ),
            transfers_running: gauge(r, "mallard_transfers_running", "Transfers that this server pulls."),
            transfer_rows: counter(r, "mallard_transfer_rows_total", "Rows pulled by transfers."),
            transfer_bytes: counter(r, "mallard_transfer_bytes_total", "Bytes of Arrow data pulled by transfers."),
            checkpoints: counter(
                r,
                "mallard_checkpoints_total",
                "Checkpoints noticed, by the write-ahead log having become shorter.",
            ),
            backups: counters(r, "mallard_backups_total", "Backups ended.", &["outcome"]),
            backup_time: gauge(
                r,
                "mallard_backup_last_success_timestamp_seconds",
                "When the last backup of this process was made; 0 if there is none.",
            ),
            backup_seconds: registered(
                r,
                Gauge::new("mallard_backup_last_duration_seconds", "How long that took, its verification included."),
            ),
            memory: gauges(r, "mallard_duckdb_memory_bytes", "DuckDB's memory, by what it is for.", &["tag"]),
            temp_storage: gauges(
                r,
                "mallard_duckdb_temp_storage_bytes",
                "What DuckDB has spilled to temporary files, by what it is for.",
                &["tag"],
            ),
            memory_limit: gauge(r, "mallard_duckdb_memory_limit_bytes", "DuckDB's memory limit."),
            database_size: gauge(r, "mallard_database_size_bytes", "Size of the database file; 0 in memory."),
            wal_size: gauge(r, "mallard_wal_size_bytes", "Size of the write-ahead log; 0 in memory."),
            volume_free: gauges(
                r,
                "mallard_volume_free_bytes",
                "Free space where the database or its temporary files lie.",
                &["volume"],
            ),
            volume_size: gauges(
                r,
                "mallard_volume_size_bytes",
                "Size of the volume where the database or its temporary files lie.",
                &["volume"],
            ),
            audit_lost: counter(
                r,
                "mallard_audit_lost_total",
                "Lines of the audit log that were not written: they came too fast, or the file could not be written.",
            ),
            audit: OnceLock::new(),
            reloads: counters(
                r,
                "mallard_config_reloads_total",
                "Files read again after a change or SIGHUP; what was there before stays in use where the new is refused.",
                &["what", "outcome"],
            ),
            handshakes: counters(r, "mallard_tls_handshakes_total", "TLS handshakes on the Flight port.", &["outcome"]),
            certificate_not_after: gauge(
                r,
                "mallard_tls_certificate_not_after_timestamp_seconds",
                "When the certificate of the Flight port expires, in seconds since 1970; 0 without TLS.",
            ),
            ready: gauge(r, "mallard_ready", "1 while the server is ready for calls."),
            draining: gauge(r, "mallard_draining", "1 once the server has begun to stop."),
            invalidated: gauge(
                r,
                "mallard_database_invalidated",
                "1 while the database is unusable because DuckDB has met a fatal error in it.",
            ),
            file_lost: gauge(
                r,
                "mallard_database_file_lost",
                "1 while the path of the database does not lead to the file that is open: removed, renamed or replaced.",
            ),
            reopened: counter(
                r,
                "mallard_database_reopened_total",
                "How often the database was reopened in the process after a fatal error in DuckDB.",
            ),
            registry: registry.clone(),
        };
        inner.initialise();
        Self(Arc::new(inner))
    }

    /// The text exposition format.
    pub fn text(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(Error::internal)
    }
}

impl Inner {
    /// Every label set that can come is there with 0, so that a rate works from the first event on.
    fn initialise(&self) {
        for method in Method::ALL {
            let labels = [method.grpc_type, method.service, method.name];
            for vector in [&self.rpc_started, &self.rpc_received, &self.rpc_sent] {
                vector.with_label_values(&labels);
            }
            self.rpc_seconds.with_label_values(&labels);
            for (_, code) in CODES {
                self.rpc_handled.with_label_values(&[method.grpc_type, method.service, method.name, code]);
            }
        }
        for statement in STATEMENTS {
            self.query_seconds.with_label_values(&[statement]);
            for outcome in ["ok", "error", "cancelled", "timeout"] {
                self.queries.with_label_values(&[statement, outcome]);
            }
        }
        for outcome in ["ok", "error", "cancelled"] {
            self.transfers.with_label_values(&[outcome]);
            self.backups.with_label_values(&[outcome]);
            for kind in ["builtin", "sql"] {
                self.exchanges.with_label_values(&[kind, outcome]);
            }
        }
        for reason in ["client", "deadline", "drain", "admin", "reopen"] {
            self.cancellations.with_label_values(&[reason]);
        }
        for reason in ["unauthenticated", "permission", "limit"] {
            self.denials.with_label_values(&[reason]);
        }
        for outcome in ["ok", "failed", "timeout"] {
            self.handshakes.with_label_values(&[outcome]);
        }
        for outcome in ["ok", "refused"] {
            self.logins.with_label_values(&["mtls", outcome]);
        }
        for what in ["certificate", "users", "keys"] {
            for outcome in ["ok", "refused"] {
                self.reloads.with_label_values(&[what, outcome]);
            }
        }
        for reason in ["address", "connections"] {
            self.connections_refused.with_label_values(&[reason]);
        }
        for reason in ["evicted", "handshake", "idle", "unauthenticated", "unread"] {
            self.connections_closed.with_label_values(&[reason]);
        }
        for direction in ["sent", "received"] {
            self.streams_stalled.with_label_values(&[direction]);
            self.rows.with_label_values(&[direction]);
            self.bytes.with_label_values(&[direction]);
        }
        for outcome in ["ok", "error"] {
            self.jwks_fetches.with_label_values(&[outcome]);
        }
        for method in ["basic", "handshake"] {
            for outcome in ["ok", "refused", "limited"] {
                self.logins.with_label_values(&[method, outcome]);
            }
        }
    }

    /// An RPC has begun; the counters of its messages, received and sent.
    pub fn rpc_begun(&self, method: &Method) -> (IntCounter, IntCounter) {
        let labels = [method.grpc_type, method.service, method.name];
        self.streams_open.inc();
        self.rpc_started.with_label_values(&labels).inc();
        (self.rpc_received.with_label_values(&labels), self.rpc_sent.with_label_values(&labels))
    }

    pub fn rpc_ended(&self, method: &Method, code: Code, took: Duration) {
        let name = CODES.iter().find(|(known, _)| *known == code).map_or("Unknown", |(_, name)| name);
        let (kind, service, method) = (method.grpc_type, method.service, method.name);
        self.streams_open.dec();
        self.rpc_handled.with_label_values(&[kind, service, method, name]).inc();
        self.rpc_seconds.with_label_values(&[kind, service, method]).observe(took.as_secs_f64());
        let denial = match code {
            Code::Unauthenticated => "unauthenticated",
            Code::PermissionDenied => "permission",
            Code::ResourceExhausted => "limit",
            _ => return,
        };
        self.denials.with_label_values(&[denial]).inc();
    }

    /// `reason` is one of those that are initialised.
    pub fn connection_refused(&self, reason: &str) {
        self.connections_refused.with_label_values(&[reason]).inc();
    }

    pub fn connection_closed(&self, reason: &str) {
        self.connections_closed.with_label_values(&[reason]).inc();
    }

    pub fn stream_stalled(&self, direction: Direction) {
        self.streams_stalled.with_label_values(&[direction.label()]).inc();
    }

    pub fn query_ended<T>(&self, statement: &str, outcome: &Result<T>, took: Duration) {
        let (label, reason) = match outcome {
            Ok(_) => ("ok", None),
            Err(Error::Cancelled) => ("cancelled", Some("client")),
            Err(Error::Killed(_)) => ("cancelled", Some("admin")),
            Err(Error::Draining) => ("cancelled", Some("drain")),
            Err(Error::Invalidated(_)) => ("cancelled", Some("reopen")),
            Err(Error::Timeout(_)) => ("timeout", Some("deadline")),
            Err(_) => ("error", None),
        };
        self.queries.with_label_values(&[statement, label]).inc();
        self.query_seconds.with_label_values(&[statement]).observe(took.as_secs_f64());
        if let Some(reason) = reason {
            self.cancellations.with_label_values(&[reason]).inc();
        }
    }

    pub fn moved(&self, direction: Direction, rows: u64, bytes: u64) {
        self.rows.with_label_values(&[direction.label()]).inc_by(rows);
        self.bytes.with_label_values(&[direction.label()]).inc_by(bytes);
    }

    /// Rows and bytes so far.
    pub fn totals(&self, direction: Direction) -> (u64, u64) {
        let label = [direction.label()];
        (self.rows.with_label_values(&label).get(), self.bytes.with_label_values(&label).get())
    }

    /// `method` is `basic` or `handshake`; `outcome` is `ok`, `refused`, or `limited`: nobody looked at the password.
    pub fn login(&self, method: &str, outcome: &str) {
        self.logins.with_label_values(&[method, outcome]).inc();
    }

    /// `what` is `certificate`, `users` or `keys`.
    pub fn reloaded(&self, what: &str, accepted: bool) {
        self.reloads.with_label_values(&[what, if accepted { "ok" } else { "refused" }]).inc();
    }

    pub fn jwks_fetched(&self, ok: bool) {
        self.jwks_fetches.with_label_values(&[if ok { "ok" } else { "error" }]).inc();
    }

    /// `outcome` is `ok`, `failed` or `timeout`.
    pub fn handshake(&self, outcome: &str) {
        self.handshakes.with_label_values(&[outcome]).inc();
    }

    /// An exchange under way, counted when it ends.
    pub fn exchange(self: &Arc<Self>, kind: &'static str) -> Underway {
        let metrics = self.clone();
        Underway::begin(self.exchanges_running.clone(), move |outcome| {
            metrics.exchanges.with_label_values(&[kind, outcome]).inc();
        })
    }

    pub fn transfer(self: &Arc<Self>) -> Underway {
        let metrics = self.clone();
        Underway::begin(self.transfers_running.clone(), move |outcome| {
            metrics.transfers.with_label_values(&[outcome]).inc();
        })
    }

    pub fn backed_up<T>(&self, outcome: &Result<T>, took: Duration) {
        self.backups.with_label_values(&[outcome_label(outcome)]).inc();
        if outcome.is_ok() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            self.backup_time.set(i64::try_from(now).unwrap_or(i64::MAX));
            self.backup_seconds.set(took.as_secs_f64());
        }
    }

    pub fn stored(&self, storage: &Storage) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for (tag, memory, temporary) in &storage.memory {
            self.memory.with_label_values(&[tag]).set(gauge(*memory));
            self.temp_storage.with_label_values(&[tag]).set(gauge(*temporary));
        }
        if let Some(limit) = storage.memory_limit {
            self.memory_limit.set(gauge(limit));
        }
        self.database_size.set(gauge(storage.database_size));
        self.wal_size.set(gauge(storage.wal_size));
        for (volume, free, size) in &storage.volumes {
            self.volume_free.with_label_values(&[volume]).set(gauge(*free));
            self.volume_size.with_label_values(&[volume]).set(gauge(*size));
        }
    }
}

/// Something counted while it is under way and, with its outcome, when it has ended: as cancelled where it is dropped
/// before [`Underway::end`].
pub struct Underway {
    running: IntGauge,
    ended: Option<Box<dyn FnOnce(&'static str) + Send>>,
}

impl Underway {
    fn begin(running: IntGauge, ended: impl FnOnce(&'static str) + Send + 'static) -> Self {
        running.inc();
        Self { running, ended: Some(Box::new(ended)) }
    }

    pub fn end<T>(&mut self, outcome: &Result<T>) {
        self.finish(outcome_label(outcome));
    }

    fn finish(&mut self, outcome: &'static str) {
        if let Some(ended) = self.ended.take() {
            ended(outcome);
            self.running.dec();
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.finish("cancelled");
    }
}

fn outcome_label<T>(outcome: &Result<T>) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(Error::Cancelled) => "cancelled",
        Err(_) => "error",
    }
}

/// As the server sees it.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    Sent,
    Received,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

// === Making and registering; names and labels are our own, so that what could fail never does ===

fn register<C: Collector + 'static>(registry: &Registry, collector: C) {
    registry.register(Box::new(collector)).expect("registered once");
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("the metric's name and labels are valid");
    register(registry, collector.clone());
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn seconds(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(SECONDS.to_vec())
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    registered(registry, Histogram::with_opts(seconds(name, help)))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    registered(registry, HistogramVec::new(seconds(name, help), labels))
}
