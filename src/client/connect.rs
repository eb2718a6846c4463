//! Opening a connection, over TCP or a Unix socket, and logging in.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use arrow_flight::{HandshakeRequest, flight_service_client::FlightServiceClient};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures::stream;
use http::{HeaderMap, header::AUTHORIZATION};
use hyper_util::rt::TokioIo;
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::{
    config::{Compression, Secret},
    error::{Error, Result},
    location::Location,
    wire::COMPRESSION_HEADER,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A user and a password.
#[derive(Clone)]
pub struct Login {
    pub user: String,
    pub password: Secret,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

/// The headers that go with every call.
#[derive(Clone, Default)]
pub(super) struct Headers {
    /// The bearer token, shared by all clones: a server replaces it by a fresh one while it is used.
    authorization: Option<Arc<RwLock<MetadataValue<Ascii>>>>,
    pub(super) compression: Option<Compression>,
}

impl Headers {
    pub(super) fn log_in(&mut self, token: MetadataValue<Ascii>) {
        self.authorization = Some(Arc::new(RwLock::new(token)));
    }

    /// Takes the fresh token that an answer may carry.
    pub(super) fn follow(&self, answered: &HeaderMap) {
        let Some(authorization) = &self.authorization else { return };
        let fresh = answered.get(AUTHORIZATION).and_then(|value| MetadataValue::try_from(value.as_bytes()).ok());
        if let Some(mut token) = fresh {
            token.set_sensitive(true);
            *authorization.write().unwrap_or_else(PoisonError::into_inner) = token;
        }
    }

    pub(super) fn apply<T>(&self, mut request: Request<T>) -> Request<T> {
        if let Some(authorization) = &self.authorization {
            let token = authorization.read().unwrap_or_else(PoisonError::into_inner).clone();
            request.metadata_mut().insert("authorization", token);
        }
        if let Some(compression) = self.compression {
            request.metadata_mut().insert(COMPRESSION_HEADER, MetadataValue::from_static(compression.word()));
        }
        request
    }
}

impl Login {
    /// Exchanges the password for a bearer token.
    pub(super) async fn exchange(
        &self,
        flight: &mut FlightServiceClient<Channel>,
        peer: &str,
        request: Request<stream::Empty<HandshakeRequest>>,
    ) -> Result<MetadataValue<Ascii>> {
        let basic = BASE64.encode(format!("{}:{}", self.user, self.password.reveal()));
        let mut basic: MetadataValue<Ascii> = format!("Basic {basic}").parse().map_err(Error::internal)?;
        basic.set_sensitive(true);
        let mut request = request;
        request.metadata_mut().insert("authorization", basic);
        let answer = flight.handshake(request).await.map_err(|status| Error::from_status(peer, &status))?;
        let token = answer.metadata().get("authorization").cloned();
        let mut token =
            token.ok_or_else(|| Error::Unauthenticated(format!("{peer}: the handshake answered no bearer token")))?;
        token.set_sensitive(true);
        Ok(token)
    }
}

pub(super) async fn channel(location: &Location) -> Result<Channel> {
    let unreachable = |error: tonic::transport::Error| {
        let mut message = format!("cannot connect to {location}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Error::Unreachable(message)
    };
    match location {
        Location::Tcp { host, port } => {
            let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(unreachable)?;
            tuned(endpoint).connect().await.map_err(unreachable)
        }
        Location::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // The authority is not used over a Unix socket, but a URI has one.
            let endpoint = Endpoint::from_static("http://localhost");
            tuned(endpoint).connect_with_connector(connector).await.map_err(unreachable)
        }
    }
}

/// Windows for bulk streams: the defaults (2 and 5 MiB) throttle them.
fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(16 * 1024 * 1024)
        .initial_connection_window_size(64 * 1024 * 1024)
        .max_frame_size(1024 * 1024)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
}
