//! The Prometheus metrics of one server.

use std::sync::Arc;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::error::{Error, Result};

/// Cheap to clone; every part of one server counts into the same registry.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

pub struct Inner {
    registry: Registry,
    /// RPCs by method: begun.
    pub rpc_started: IntCounterVec,
    /// RPCs by method and gRPC code: ended, with the whole stream.
    pub rpc_handled: IntCounterVec,
    /// RPCs by method: seconds from the request to the end of the answer.
    pub rpc_seconds: HistogramVec,
    pub streams_open: IntGauge,
    pub queries_running: IntGauge,
    pub queries_queued: IntGauge,
    pub pool_size: IntGauge,
    queries: IntCounterVec,
    rows: IntCounterVec,
    bytes: IntCounterVec,
    logins: IntCounterVec,
    pub exchangers: IntGauge,
    pub ready: IntGauge,
}

impl Metrics {
    /// With the process's own metrics and the build's version.
    pub fn new(duckdb_version: &str) -> Self {
        let metrics = Self::unregistered();
        let registry = &metrics.registry;
        let build = IntGaugeVec::new(
            Opts::new("mallard_build_info", "Always 1; the versions are in the labels."),
            &["version", "duckdb_version"],
        );
        let build = build.expect("the metric's name and labels are valid");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), duckdb_version]).set(1);
        registry.register(Box::new(build)).expect("registered once");
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("registered once");
        metrics
    }

    /// Counts that nobody scrapes: for sandboxes and the command line.
    pub fn unregistered() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels).expect("the metric's name is valid");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("the metric's name is valid");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        let seconds =
            HistogramOpts::new("grpc_server_handling_seconds", "Seconds from request to the end of the answer.")
                .buckets(vec![
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
                ]);
        let rpc_seconds = HistogramVec::new(seconds, &["grpc_method"]).expect("the metric's name is valid");
        registry.register(Box::new(rpc_seconds.clone())).expect("registered once");
        let inner = Inner {
            rpc_started: counters("grpc_server_started_total", "RPCs begun.", &["grpc_method"]),
            rpc_handled: counters("grpc_server_handled_total", "RPCs ended.", &["grpc_method", "grpc_code"]),
            rpc_seconds,
            streams_open: gauge("mallard_streams_open", "RPCs whose answer is not finished."),
            queries_running: gauge("mallard_queries_running", "Statements on an engine thread."),
            queries_queued: gauge("mallard_queries_queued", "Statements waiting for an engine thread."),
            pool_size: gauge("mallard_pool_size", "Engine threads at most."),
            queries: counters("mallard_queries_total", "Statements ended.", &["outcome"]),
            rows: counters("mallard_rows_total", "Rows moved over Flight.", &["direction"]),
            bytes: counters("mallard_bytes_total", "Arrow bytes moved over Flight, without framing.", &["direction"]),
            logins: counters("mallard_logins_total", "Attempts to log in.", &["outcome"]),
            exchangers: gauge("mallard_exchangers_registered", "Exchangers registered by clients."),
            ready: gauge("mallard_ready", "1 while the server takes calls."),
            registry: registry.clone(),
        };
        for outcome in ["ok", "error", "cancelled"] {
            inner.queries.with_label_values(&[outcome]);
        }
        for direction in ["out", "in"] {
            inner.rows.with_label_values(&[direction]);
            inner.bytes.with_label_values(&[direction]);
        }
        for outcome in ["ok", "refused"] {
            inner.logins.with_label_values(&[outcome]);
        }
        Self(Arc::new(inner))
    }

    /// The text exposition format.
    pub fn text(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(Error::internal)
    }

    pub fn query_done<T>(&self, outcome: &Result<T>) {
        let outcome = match outcome {
            Ok(_) => "ok",
            Err(Error::Cancelled) => "cancelled",
            Err(_) => "error",
        };
        self.queries.with_label_values(&[outcome]).inc();
    }

    pub fn moved(&self, direction: Direction, rows: u64, bytes: u64) {
        let label = match direction {
            Direction::Out => "out",
            Direction::In => "in",
        };
        self.rows.with_label_values(&[label]).inc_by(rows);
        self.bytes.with_label_values(&[label]).inc_by(bytes);
    }

    pub fn login(&self, accepted: bool) {
        self.logins.with_label_values(&[if accepted { "ok" } else { "refused" }]).inc();
    }
}

/// As the server sees it.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    Out,
    In,
}
