//! Spans under OpenTelemetry's semantic conventions (RPC and gRPC: release candidate of 1.44; database: stable), and
//! the W3C trace context that goes from process to process.
//!
//! They are `tracing` spans; where no exporter is asked for, nothing takes them and they cost next to nothing.

use std::{net::SocketAddr, sync::OnceLock};

use http::HeaderMap;
use opentelemetry::{global, trace::TraceContextExt};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use tonic::{Code, metadata::MetadataMap};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::Method;
use crate::{
    error::{Error, Result},
    location::Location,
};

/// gRPC's own name of a code.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether the code is an error of the span: of a server only what is the server's fault.
fn is_span_error(code: Code, server: bool) -> bool {
    let servers_fault = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    if server { servers_fault } else { code != Code::Ok }
}

/// The span of an RPC that this process answers, a child of what its caller sent along.
pub(super) fn server(method: &Method, path: &str, headers: &HeaderMap, peer: Option<SocketAddr>) -> Span {
    let span = tracing::info_span!(
        "rpc",
        otel.name = method.full,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method.full,
        rpc.method_original = Empty,
        rpc.response.status_code = Empty,
        error.r#type = Empty,
        network.peer.address = peer.map(|peer| tracing::field::display(peer.ip())),
        network.peer.port = peer.map(|peer| peer.port()),
    );
    if !span.is_disabled() {
        if method.full == "_OTHER" {
            span.record("rpc.method_original", path.trim_start_matches('/').get(..200).unwrap_or(path));
        }
        let parent = global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(headers)));
        // Without a layer for OpenTelemetry there is no trace to be a part of.
        let _ = span.set_parent(parent);
    }
    span
}

/// The trace that log lines of this RPC name: the span's, else the caller's, else a new one.
pub(super) fn trace_id(span: &Span, headers: &HeaderMap) -> String {
    let context = span.context();
    let own = context.span().span_context().trace_id();
    if own != opentelemetry::TraceId::INVALID {
        return own.to_string();
    }
    let sent = headers.get("traceparent").and_then(|value| value.to_str().ok()?.split('-').nth(1));
    let is_id = |id: &&str| id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    sent.filter(is_id).map_or_else(random_id, str::to_string)
}

fn random_id() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system hands out random bytes");
    format!("{:032x}", u128::from_be_bytes(bytes))
}

pub(super) fn end(span: &Span, code: Code, server: bool) {
    span.record("rpc.response.status_code", code_name(code));
    if is_span_error(code, server) {
        span.record("error.type", code_name(code));
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of an RPC that this process makes. Dropped before [`ClientSpan::end`], the call was cancelled.
pub struct ClientSpan {
    span: Span,
    ended: OnceLock<()>,
}

impl ClientSpan {
    pub fn begin(method: &'static Method, location: &Location) -> Self {
        let (address, port) = match location {
            Location::Tcp { host, port } | Location::Tls { host, port } => (host.clone(), Some(*port)),
            Location::Unix(path) => (path.display().to_string(), None),
        };
        let span = tracing::info_span!(
            "call",
            otel.name = method.full,
            otel.kind = "client",
            otel.status_code = Empty,
            rpc.system.name = "grpc",
            rpc.method = method.full,
            rpc.response.status_code = Empty,
            error.r#type = Empty,
            server.address = address,
            server.port = port,
        );
        Self { span, ended: OnceLock::new() }
    }

    /// Puts the trace context into the request's headers.
    pub fn carry(&self, metadata: &mut MetadataMap) {
        if self.span.is_disabled() {
            return;
        }
        let context = self.span.context();
        let mut headers = std::mem::take(metadata).into_headers();
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut HeaderInjector(&mut headers));
        });
        *metadata = MetadataMap::from_headers(headers);
    }

    /// Ends with the outcome of `call`.
    pub async fn of<T>(self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = call.await;
        self.end(&outcome);
        outcome
    }

    /// The first word counts.
    pub fn end<T>(&self, outcome: &Result<T>) {
        if self.ended.set(()).is_ok() {
            end(&self.span, outcome.as_ref().map_or_else(Error::code, |_| Code::Ok), false);
        }
    }
}

impl Drop for ClientSpan {
    fn drop(&mut self) {
        self.end::<()>(&Err(Error::Cancelled));
    }
}

/// The span of one statement in DuckDB, a child of whatever is current when it begins.
#[derive(Clone)]
pub struct StatementSpan(Span);

impl StatementSpan {
    pub fn begin() -> Self {
        Self(tracing::info_span!(
            "statement",
            otel.name = "statement",
            otel.kind = "internal",
            otel.status_code = Empty,
            db.system.name = "duckdb",
            db.operation.name = Empty,
            db.query.summary = Empty,
            db.query.text = Empty,
            db.response.returned_rows = Empty,
            error.r#type = Empty,
        ))
    }

    /// Whether anyone looks; what is costly to tell need not be told otherwise.
    pub fn is_watched(&self) -> bool {
        !self.0.is_disabled()
    }

    /// `operation` is what kind of statement it is, `summary` that and what it works on, of few different values.
    pub fn identify(&self, operation: &str, summary: &str, text: Option<&str>) {
        self.0.record("otel.name", summary);
        self.0.record("db.operation.name", operation);
        self.0.record("db.query.summary", summary);
        if let Some(text) = text {
            self.0.record("db.query.text", text);
        }
    }

    pub fn end<T>(&self, outcome: &Result<T>, rows: u64) {
        self.0.record("db.response.returned_rows", rows);
        if let Err(error) = outcome {
            self.0.record("error.type", code_name(error.code()));
            self.0.record("otel.status_code", "ERROR");
        }
    }
}
