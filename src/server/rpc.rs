//! The outermost layer: follows every RPC from its request to the end of its answer.

use std::{
    convert::Infallible,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument;

use super::accept::Peer;
use crate::{
    config::Span,
    telemetry::{Call, Calls, Metrics},
    wire::{self, Answer},
};

#[derive(Clone)]
pub(super) struct RpcLayer {
    metrics: Metrics,
    calls: Calls,
    stall_timeout: Span,
}

impl RpcLayer {
    pub(super) fn new(metrics: Metrics, calls: Calls, stall_timeout: Span) -> Self {
        Self { metrics, calls, stall_timeout }
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
        let RpcLayer { metrics, calls, stall_timeout } = &self.layer;
        // From the connection that brought it.
        let answer = request.extensions().get::<Answer>().cloned().unwrap_or_default();
        let call = Call::begin(metrics, calls, request.uri().path(), request.headers(), peer(&request));
        let deadline = deadline(request.headers());
        let mut unanswered = Unanswered(Some(call.clone()));
        let mut request = request.map(|body| wire::count(body, call.clone(), answer.clone(), *stall_timeout));
        request.extensions_mut().insert(call.clone());
        let answering = self.inner.call(request).instrument(call.span().clone());
        Box::pin(async move {
            let answered = match deadline {
                None => answering.await,
                // The client has given up by now; this is for what it may have left behind.
                Some(patience) => tokio::time::timeout(patience, answering).await.unwrap_or_else(|_elapsed| {
                    Ok(Status::deadline_exceeded("the call's deadline has passed").into_http())
                }),
            };
            let (parts, body) = answered?.into_parts();
            // From here on the body ends the call.
            let body = wire::watch(&parts.headers, body, call, answer);
            unanswered.disarm();
            Ok(Response::from_parts(parts, body))
        })
    }
}

/// Ends its call as cancelled when dropped: the client has left before there was an answer.
struct Unanswered(Option<Call>);

impl Unanswered {
    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(call) = &self.0 {
            call.end(Code::Cancelled);
        }
    }
}

fn peer(request: &Request<Body>) -> Option<SocketAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

/// How long the client waits (gRPC over HTTP/2, Timeout: at most 8 digits and a unit).
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u32 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit * count)
}
