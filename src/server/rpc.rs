//! The outermost layer: counts every RPC from its request to the end of its answer, and logs it.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::Notify;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::{telemetry::Metrics, wire::watch};

/// The RPCs whose answer is not finished. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<(AtomicUsize, Notify)>);

impl Calls {
    pub(super) fn count(&self) -> usize {
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
    pub(super) async fn none(&self) {
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

#[derive(Clone)]
pub(super) struct RpcLayer {
    metrics: Metrics,
    calls: Calls,
}

impl RpcLayer {
    pub(super) fn new(metrics: Metrics, calls: Calls) -> Self {
        Self { metrics, calls }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct RpcService<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S> Service<Request<Body>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut call = Call::begin(&self.layer, request.uri().path());
        let answering = self.inner.call(request);
        Box::pin(async move {
            let response = answering.await?;
            let (parts, body) = response.into_parts();
            let body = watch(&parts.headers, body, move |code| call.end(code));
            Ok(Response::from_parts(parts, body))
        })
    }
}

/// One RPC. Ends once: with the code of its answer, or as cancelled when it is dropped before.
struct Call {
    method: &'static str,
    start: Instant,
    layer: RpcLayer,
    waited_for: bool,
    ended: bool,
}

impl Call {
    fn begin(layer: &RpcLayer, path: &str) -> Self {
        let method = known_method(path);
        // A health Watch never ends, and no stop waits for it.
        let waited_for = method != "Watch";
        if waited_for {
            layer.calls.begin();
        }
        layer.metrics.streams_open.inc();
        layer.metrics.rpc_started.with_label_values(&[method]).inc();
        Self { method, start: Instant::now(), layer: layer.clone(), waited_for, ended: false }
    }

    fn end(&mut self, code: tonic::Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let (metrics, seconds) = (&self.layer.metrics, self.start.elapsed().as_secs_f64());
        metrics.streams_open.dec();
        metrics.rpc_handled.with_label_values(&[self.method, &format!("{code:?}")]).inc();
        metrics.rpc_seconds.with_label_values(&[self.method]).observe(seconds);
        tracing::debug!(method = self.method, ?code, seconds, "rpc");
        if self.waited_for {
            self.layer.calls.end();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(tonic::Code::Cancelled);
    }
}

/// The method's name as a label; what clients make up is not one.
fn known_method(path: &str) -> &'static str {
    const METHODS: [&str; 12] = [
        "Handshake",
        "ListFlights",
        "GetFlightInfo",
        "PollFlightInfo",
        "GetSchema",
        "DoGet",
        "DoPut",
        "DoExchange",
        "DoAction",
        "ListActions",
        "Check",
        "Watch",
    ];
    let name = path.rsplit('/').next().unwrap_or_default();
    METHODS.into_iter().find(|method| *method == name).unwrap_or("unknown")
}
