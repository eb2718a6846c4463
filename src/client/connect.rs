//! Opening a connection, over TCP, TLS or a Unix socket, and logging in.

use std::{
    fmt,
    path::{Path, PathBuf},
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
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
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

/// What is trusted over `grpc+tls://`, and shown there.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// A PEM file of CAs, in place of the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Trust {
    fn config(&self, host: &str) -> Result<ClientTlsConfig> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut config = ClientTlsConfig::new().domain_name(host).timeout(CONNECT_TIMEOUT);
        config = match &self.ca {
            Some(path) => {
                let text = pem(path)?;
                // Else nobody is trusted, and the error would speak of the server.
                if !text.contains("-----BEGIN CERTIFICATE-----") {
                    return Err(Error::invalid(format!("{}: holds no certificate in PEM", path.display())));
                }
                config.ca_certificate(Certificate::from_pem(text))
            }
            None => config.with_native_roots(),
        };
        Ok(match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(pem(certificate)?, pem(key)?)),
            None => config,
        })
    }
}

fn pem(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Error::Io(format!("{}: {error}", path.display())))
}

/// Which exchangers the rows of a DoGet or DoPut pass on the server.
pub const EXCHANGE_HEADER: &str = "x-mallard-exchange";

/// In which form the types of rows leave: `lossless`, with Arrow's extension types, or `plain`, without.
pub const TYPES_HEADER: &str = "x-mallard-types";

/// The headers that go with every call.
#[derive(Clone, Default)]
pub(super) struct Headers {
    /// The bearer token, shared by all clones: a server replaces it by a fresh one while it is used.
    authorization: Option<Arc<RwLock<MetadataValue<Ascii>>>>,
    /// Stands for a session without a login.
    cookie: Option<MetadataValue<Ascii>>,
    pub(super) compression: Option<Compression>,
    /// The exchangers that rows pass on their way in or out.
    pub(super) chain: Option<MetadataValue<Ascii>>,
}

impl Headers {
    pub(super) fn log_in(&mut self, token: MetadataValue<Ascii>) {
        self.authorization = Some(Arc::new(RwLock::new(token)));
    }

    pub(super) fn has_login(&self) -> bool {
        self.authorization.is_some()
    }

    pub(super) fn has_cookie(&self) -> bool {
        self.cookie.is_some()
    }

    /// Takes the cookie that an answer may set.
    pub(super) fn keep_cookie(&mut self, answered: &MetadataMap) {
        let set = answered.get("set-cookie").and_then(|set| set.to_str().ok());
        self.cookie = set.and_then(|set| set.split(';').next()?.trim().parse().ok());
        self.cookie.iter_mut().for_each(|cookie| cookie.set_sensitive(true));
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
        if let Some(cookie) = &self.cookie {
            request.metadata_mut().insert("cookie", cookie.clone());
        }
        if let Some(compression) = self.compression {
            request.metadata_mut().insert(COMPRESSION_HEADER, MetadataValue::from_static(compression.word()));
        }
        request.metadata_mut().insert(TYPES_HEADER, MetadataValue::from_static("lossless"));
        if let Some(chain) = &self.chain {
            request.metadata_mut().insert(EXCHANGE_HEADER, chain.clone());
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

pub(super) async fn channel(location: &Location, trust: &Trust) -> Result<Channel> {
    let unreachable = |error: tonic::transport::Error| {
        let mut message = format!("cannot connect to {location}");
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            let error = source.to_string();
            // Some repeat what is behind them.
            if !message.ends_with(&error) {
                message = format!("{message}: {error}");
            }
            cause = source.source();
        }
        Error::Unreachable(message)
    };
    match location {
        Location::Tcp { host, port } => {
            let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(unreachable)?;
            tuned(endpoint).connect().await.map_err(unreachable)
        }
        Location::Tls { host, port } => {
            let endpoint = Endpoint::from_shared(format!("https://{host}:{port}")).map_err(unreachable)?;
            let endpoint = endpoint.tls_config(trust.config(host)?).map_err(unreachable)?;
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
