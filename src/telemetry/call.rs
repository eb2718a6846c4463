//! One RPC as its metrics, its span and its log line see it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::HeaderMap;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tonic::Code;
use tracing::Span;

use super::{Audit, Direction, Event, Method, Metrics, spans};
use crate::{
    access::{Origin, Rights},
    error::{Error, Result},
};

/// The RPCs of one server whose answer is not finished. Cheap to clone.
#[derive(Clone, Default)]
pub struct Calls(Arc<(AtomicUsize, Notify)>);

impl Calls {
    pub fn count(&self) -> usize {
        self.0.0.load(Ordering::Acquire)
    }

    fn begin(&self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }

    fn end(&self) {
        if self.0.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.1.notify_waiters();
        }
    }

    /// Completes when no RPC is open.
    pub async fn none(&self) {
        loop {
            let ended = self.0.1.notified();
            tokio::pin!(ended);
            // Registered before the count is read, so that no end is missed.
            ended.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// One RPC, from its request to the end of its answer. It travels in the request's extensions; cheap to clone.
#[derive(Clone)]
pub struct Call(Arc<Inner>);

struct Inner {
    method: &'static Method,
    start: Instant,
    trace_id: String,
    peer: Option<SocketAddr>,
    span: Span,
    /// And their role.
    caller: OnceLock<(String, String, String)>,
    action: OnceLock<String>,
    rule: OnceLock<&'static str>,
    sent: Moved,
    received: Moved,
    messages: (IntCounter, IntCounter),
    ended: OnceLock<()>,
    calls: Calls,
    metrics: Metrics,
}

#[derive(Default)]
struct Moved {
    rows: AtomicU64,
    bytes: AtomicU64,
}

impl Moved {
    /// `None` where nothing moved, so that a log line leaves it out.
    fn seen(&self) -> (Option<u64>, Option<u64>) {
        let some = |counter: &AtomicU64| Some(counter.load(Ordering::Relaxed)).filter(|count| *count > 0);
        (some(&self.rows), some(&self.bytes))
    }
}

impl Call {
    /// `path` is the HTTP/2 path, `headers` those of the request.
    pub fn begin(metrics: &Metrics, calls: &Calls, path: &str, headers: &HeaderMap, peer: Option<SocketAddr>) -> Self {
        let method = Method::of_path(path);
        if !method.is_endless() {
            calls.begin();
        }
        let span = spans::server(method, path, headers, peer);
        let trace_id = spans::trace_id(&span, headers);
        Self(Arc::new(Inner {
            method,
            start: Instant::now(),
            trace_id,
            peer,
            span,
            caller: OnceLock::new(),
            action: OnceLock::new(),
            rule: OnceLock::new(),
            sent: Moved::default(),
            received: Moved::default(),
            messages: metrics.rpc_begun(method),
            ended: OnceLock::new(),
            calls: calls.clone(),
            metrics: metrics.clone(),
        }))
    }

    /// What is done for this RPC is done inside its span.
    pub fn span(&self) -> &Span {
        &self.0.span
    }

    /// Where it comes from; nowhere in particular over a Unix socket.
    pub fn address(&self) -> Option<IpAddr> {
        self.0.peer.map(|peer| peer.ip())
    }

    /// Who calls, once that is known. Their rights for this call.
    pub fn set_caller(&self, rights: Arc<Rights>) -> Arc<Rights> {
        // The first one stands; a call has one identity.
        let _ = self.0.caller.set((rights.user.clone(), rights.issuer.to_string(), rights.role_name.clone()));
        if self.0.metrics.audit.get().is_none() {
            return rights;
        }
        let peer = self.0.peer.map(|peer| peer.to_string());
        rights.within(Origin { trace_id: self.0.trace_id.clone(), peer })
    }

    /// Which action it calls.
    pub fn set_action(&self, name: &str) {
        // A call has one, and any text may stand for one.
        let _ = self.0.action.set(name.chars().take(64).collect());
    }

    /// Notes the rule that was against it.
    pub fn noting<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(Error::Denied { rule, .. }) = &outcome {
            // The first one stands.
            let _ = self.0.rule.set(rule);
        }
        outcome
    }

    /// Record batches have moved.
    pub fn moved(&self, direction: Direction, rows: u64, bytes: u64) {
        let moved = match direction {
            Direction::Sent => &self.0.sent,
            Direction::Received => &self.0.received,
        };
        moved.rows.fetch_add(rows, Ordering::Relaxed);
        moved.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.metrics.moved(direction, rows, bytes);
    }

    /// gRPC messages have moved.
    pub fn messages(&self, direction: Direction, count: u64) {
        match direction {
            Direction::Received => self.0.messages.0.inc_by(count),
            Direction::Sent => self.0.messages.1.inc_by(count),
        }
    }

    /// The client has stood still for too long.
    pub fn stalled(&self, direction: Direction) {
        self.0.metrics.stream_stalled(direction);
    }

    /// The answer is finished. The first word counts.
    pub fn end(&self, code: Code) {
        let Inner {
            method,
            start,
            trace_id,
            peer,
            span,
            caller,
            action,
            rule,
            sent,
            received,
            ended,
            calls,
            metrics,
            ..
        } = &*self.0;
        if ended.set(()).is_err() {
            return;
        }
        let took = start.elapsed();
        metrics.rpc_ended(method, code, took);
        let ((rows_sent, bytes_sent), (rows_received, bytes_received)) = (sent.seen(), received.seen());
        spans::end(span, code, true);
        let user = caller.get().map(|(user, ..)| user.as_str());
        let issuer = caller.get().map(|(_, issuer, _)| issuer.as_str());
        let role = caller.get().map(|(.., role)| role.as_str());
        if let Some(audit) = metrics.audit.get().filter(|_| !method.is_health()) {
            let peer = peer.map(|peer| peer.to_string());
            let write = if user.is_some() { Audit::write } else { Audit::write_of_stranger };
            let event = Event {
                event: "call",
                user,
                issuer,
                role,
                peer: peer.as_deref(),
                trace_id: Some(trace_id),
                method: Some(method.full),
                action: action.get().map(String::as_str),
                rule: rule.get().copied(),
                outcome: spans::code_name(code),
                rows_sent,
                bytes_sent,
                rows_received,
                bytes_received,
                seconds: Some(took.as_secs_f64()),
                ..Event::default()
            };
            write(audit, &event);
        }
        let peer = peer.map(tracing::field::display);
        let (method_name, code, seconds) = (method.full, spans::code_name(code), took.as_secs_f64());
        // A probe every few seconds is not worth a line each.
        if method.is_health() {
            tracing::debug!(target: "mallard::rpc", trace_id, method = method_name, code, seconds, peer, user, "answered");
        } else {
            tracing::info!(
                target: "mallard::rpc",
                trace_id,
                method = method_name,
                code,
                seconds,
                peer,
                user,
                rows_sent,
                bytes_sent,
                rows_received,
                bytes_received,
                "answered"
            );
        }
        if !method.is_endless() {
            calls.end();
        }
    }
}
