//! Listeners and connections: HTTP/2 with the settings of the configuration, until the server stops.
//!
//! An accept loop of our own, because tonic's server has no knob for the send buffer and the reset limits, and because
//! one server listens on TCP and on a Unix socket.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use super::{connection::Activity, tls::Tls};
use crate::{
    auth::ClientCertificate,
    config::{Size, Wire},
    error::{Error, Result},
    location::Location,
};

/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;

const MAX_HEADERS: u32 = 32 * 1024;

/// Streams that a client resets before they are accepted, and that our own errors reset, before it is cut off
/// (CVE-2023-26964, RUSTSEC-2024-0003).
const MAX_RESETS: usize = 256;

/// After an accept that failed: too many open files pass, and nothing is gained by asking at once.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Who is at the other end, where that has an address.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves the connections of one server.
#[derive(Clone)]
pub(super) struct Acceptor<S> {
    service: S,
    http2: http2::Builder<TokioExecutor>,
    nodelay: bool,
    /// Of the TCP listener; a Unix socket has none.
    tls: Option<Tls>,
    activity: Activity,
    stop: CancellationToken,
}

impl Listener {
    /// Listens, and says where: a port of 0 has become one.
    pub(super) async fn bind(location: &Location) -> Result<(Self, Location)> {
        let failed = |error: io::Error| Error::Io(format!("cannot listen on {location}: {error}"));
        match location {
            Location::Tcp { host, port } | Location::Tls { host, port } => {
                let address = (host.trim_start_matches('[').trim_end_matches(']'), *port);
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let port = listener.local_addr().map_err(failed)?.port();
                let bound = Location::Tcp { host: host.clone(), port };
                let bound = if matches!(location, Location::Tls { .. }) { bound.under_tls() } else { bound };
                Ok((Self::Tcp(listener), bound))
            }
            Location::Unix(path) => {
                remove_stale_socket(path).await?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                Ok((Self::Unix(listener, path.clone()), location.clone()))
            }
        }
    }
}

/// A socket file that nobody listens on is left over from a server that was killed.
async fn remove_stale_socket(path: &PathBuf) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(Error::Io(format!("another server listens on grpc+unix://{}", path.display())));
    }
    std::fs::remove_file(path).map_err(|error| Error::Io(format!("cannot remove {}: {error}", path.display())))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Someone may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl<S> Acceptor<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Nothing is accepted any more once `stop` is cancelled, and connections end with the calls that are open.
    pub(super) fn new(
        service: S,
        config: &Wire,
        tls: Option<Tls>,
        activity: Activity,
        stop: CancellationToken,
    ) -> Self {
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(u32_of(config.stream_window))
            .initial_connection_window_size(u32_of(config.connection_window))
            .max_frame_size(u32_of(config.frame_size))
            .max_send_buf_size(config.send_buffer.bytes())
            .keep_alive_interval(config.keepalive_interval.limit())
            .keep_alive_timeout(config.keepalive_timeout.0)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS);
        Self { service, http2, nodelay: config.nodelay, tls, activity, stop }
    }

    /// Completes when all connections have ended after the stop. Dropping it cuts them.
    pub(super) async fn serve(self, listener: Listener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = self.accept(&listener, &mut connections) => accepted,
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
            // Those that have ended.
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self, listener: &Listener, connections: &mut JoinSet<()>) -> io::Result<()> {
        match listener {
            Listener::Tcp(listener) => {
                let (io, peer) = listener.accept().await?;
                io.set_nodelay(self.nodelay)?;
                connections.spawn(self.clone().tcp(self.activity.watch(io), Peer(peer)));
            }
            Listener::Unix(listener, _) => {
                let (io, _unnamed) = listener.accept().await?;
                connections.spawn(self.clone().connection(self.activity.watch(io), None, None));
            }
        }
        Ok(())
    }

    async fn tcp(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let Some(tls) = self.tls.clone() else { return self.connection(io, Some(peer), None).await };
        let shaken = tokio::select! {
            // Nobody has asked for anything yet.
            () = self.stop.cancelled() => return,
            shaken = tls.handshake(io) => shaken,
        };
        match shaken {
            Ok((io, certificate)) => self.connection(io, Some(peer), certificate).await,
            Err(error) => tracing::debug!(%error, peer = %peer.0, "a TLS handshake failed"),
        }
    }

    async fn connection(
        self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<Peer>,
        certificate: Option<ClientCertificate>,
    ) {
        let Self { service, http2, stop, .. } = self;
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            // Always ready: nothing in front of the Flight service limits it.
            service.clone().call(request)
        });
        let connection = http2.serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            // The client's end, mostly: it has gone without a word.
            tracing::debug!(%error, "a connection ended in an error");
        }
    }
}

/// The configuration is checked to hold what HTTP/2 allows.
fn u32_of(size: Size) -> u32 {
    u32::try_from(size.0).unwrap_or(u32::MAX)
}
