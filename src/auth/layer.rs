//! The tower layer in front of every gRPC service: a header becomes an [`Identity`] in the request's extensions.
//!
//! A call without one is whoever its connection's client certificate stands for. Only health, and a Handshake that carries its credentials in the payload, pass without one.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use base64::Engine as _;
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{AUTHORIZATION, COOKIE},
};
use http_body_util::BodyExt;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Authenticator, BASE64, ClientCertificate};
use crate::{error::Error, telemetry::Call};

const HEALTH: &str = "/grpc.health.v1.Health/";
const HANDSHAKE_TOKEN: &str = "auth-token-bin";
/// What of a refused call's request is taken, and for how long: all of a question, and nothing of an upload.
const DRAIN_SIZE: usize = 64 * 1024;
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

const HANDSHAKE: &str = "/arrow.flight.protocol.FlightService/Handshake";

#[derive(Clone)]
pub struct AuthLayer(pub Authenticator);

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> AuthService<S> {
        AuthService { inner, authenticator: self.0.clone() }
    }
}

#[derive(Clone)]
pub struct AuthService<S> {
    inner: S,
    authenticator: Authenticator,
}

impl<S> Service<Request<Body>> for AuthService<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The service that was polled ready takes the call; its clone waits for the next.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let authenticator = self.authenticator.clone();
        Box::pin(async move {
            if request.uri().path().starts_with(HEALTH) {
                return inner.call(request).await;
            }
            let call = request.extensions().get::<Call>().cloned();
            let address = call.as_ref().and_then(Call::address);
            let outcome = match credentials(request.headers()) {
                Some(value) => authenticator.authenticate(&value, address).await,
                None if !authenticator.enabled() => Ok((authenticator.anonymous(), None)),
                None if request.uri().path() == HANDSHAKE => return inner.call(request).await,
                None => match request.extensions().get::<ClientCertificate>() {
                    Some(certificate) => authenticator.certified(certificate, address).map(|identity| (identity, None)),
                    None => Err(Error::Unauthenticated("log in first: the call has no authorization header".into())),
                },
            };
            let (mut identity, issued) = match outcome {
                Ok(known) => known,
                Err(error) => {
                    drain(request.into_body());
                    return Ok(error.into_status().into_http());
                }
            };
            if let Some(call) = call {
                identity.rights = call.set_caller(identity.rights);
            }
            identity.cookie = cookie(request.headers());
            identity.connection = request.extensions().get().cloned();
            identity.has_connection_alone = authenticator.0.sessions_per_connection && !is_forwarded(request.headers());
            request.extensions_mut().insert(identity);
            let mut response = inner.call(request).await?;
            if let Some(value) = issued.and_then(|token| bearer(&token)) {
                response.headers_mut().insert(AUTHORIZATION, value);
            }
            Ok(response)
        })
    }
}

/// Takes what is still to come of a refused call's request. Dropped, its stream would be reset, and frames that are on
/// their way for streams that HTTP/2 has forgotten end the whole connection once there are some hundred.
fn drain(mut body: Body) {
    tokio::spawn(tokio::time::timeout(DRAIN_PATIENCE, async move {
        let mut left = DRAIN_SIZE;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, |data| data.len());
            match left.checked_sub(size) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }));
}

/// The `authorization` header, or the token that clients of the payload form of Handshake send with each call.
fn credentials(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        return Some(value.to_str().unwrap_or_default().to_string());
    }
    let token = BASE64.decode(headers.get(HANDSHAKE_TOKEN)?).ok()?;
    Some(format!("Bearer {}", String::from_utf8(token).ok()?))
}

/// Whether a proxy says that it has passed the call on: many clients' calls may come by its connection.
fn is_forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "via"].iter().any(|name| headers.contains_key(*name))
}

/// The name of the cookie that stands for a session (Flight.proto).
pub const SESSION_COOKIE: &str = "arrow_flight_session_id";

fn cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION_COOKIE).map(|(_, value)| value.trim_matches('"').to_string())
}

/// The header that carries a token, hidden from logs.
fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
