//! The outermost layer: follows every RPC from its request to the end of its answer.

use std::{
    convert::Infallible,
    net::SocketAddr,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::{Code, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::{
    telemetry::{Call, Calls, Metrics},
    wire,
};

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
        let RpcLayer { metrics, calls } = &self.layer;
        let call = Call::begin(metrics, calls, request.uri().path(), request.headers(), peer(&request));
        let mut unanswered = Unanswered(Some(call.clone()));
        let mut request = request.map(|body| wire::count(body, call.clone()));
        request.extensions_mut().insert(call.clone());
        let answering = self.inner.call(request).instrument(call.span().clone());
        Box::pin(async move {
            let (parts, body) = answering.await?.into_parts();
            // From here on the body ends the call.
            let body = wire::watch(&parts.headers, body, call);
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
    request.extensions().get::<TcpConnectInfo>()?.remote_addr()
}
