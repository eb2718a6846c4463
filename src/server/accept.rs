//! Listeners and connections: HTTP/2 with the settings of the configuration, until the server stops.
//!
//! An accept loop of our own, because tonic's server has no knob for the send buffer and the reset limits, and because
//! one server listens on TCP and on a Unix socket.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use super::{
    admission::{Admission, Admitted},
    connection::Activity,
    link::{Link, Overdue, Patience},
    tls::Tls,
};
use crate::{
    auth::{ClientCertificate, Standing},
    config::{Config, Limits, Size, Wire},
    error::{Error, Result},
    location::Location,
    machine,
    wire::Spool,
};

const MAX_HEADERS: u32 = 32 * 1024;

/// Streams that a client resets before they are accepted, and that our own errors reset, before it is cut off
/// (CVE-2023-26964, RUSTSEC-2024-0003).
const MAX_RESETS: usize = 256;

/// After an accept that failed: too many open files pass, and nothing is gained by asking at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What is under way on a connection that has to go without a login may take so long.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Connections that have been told to go may still be open when as many have come in.
const LEAVING: usize = 8;

/// Who is at the other end, where that has an address.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves the connections of one server.
#[derive(Clone)]
pub(super) struct Acceptor<S> {
    service: S,
    spool: Spool,
    wire: Wire,
    max_streams: u32,
    patience: Patience,
    /// Of the TCP listener; a Unix socket has none.
    tls: Option<Tls>,
    admission: Admission,
    /// One for each socket that may be open, whoever is behind it.
    sockets: Arc<Semaphore>,
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
        config: &Config,
        tls: Option<Tls>,
        activity: Activity,
        stop: CancellationToken,
    ) -> Self {
        let max_streams = u32::try_from(config.limits.streams_per_connection).unwrap_or(u32::MAX);
        let limits = carried(&config.limits, machine::connections(config));
        let most = if limits.connections == 0 { Semaphore::MAX_PERMITS } else { limits.connections + LEAVING };
        let sockets = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let admission = Admission::new(&limits, activity.metrics());
        let (wire, patience) = (config.wire.clone(), Patience::new(config));
        let spool = Spool::new(config, activity.metrics().clone());
        Self { service, spool, wire, max_streams, patience, tls, admission, sockets, activity, stop }
    }

    /// HTTP/2 for one connection, whose streams are tasks of its link.
    fn http2(&self, link: &Link) -> http2::Builder<Link> {
        let mut http2 = http2::Builder::new(link.clone());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(u32_of(self.wire.stream_window))
            .initial_connection_window_size(u32_of(self.wire.connection_window))
            .max_frame_size(u32_of(self.wire.frame_size))
            .max_send_buf_size(self.wire.send_buffer.bytes())
            .keep_alive_interval(self.wire.keepalive_interval.limit())
            .keep_alive_timeout(self.wire.keepalive_timeout.0)
            .max_concurrent_streams(self.max_streams)
            .max_header_list_size(MAX_HEADERS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS);
        http2
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
        // Not closed.
        let socket = self.sockets.clone().acquire_owned().await.map_err(io::Error::other)?;
        match listener {
            Listener::Tcp(listener) => {
                let (io, peer) = listener.accept().await?;
                let Some(admitted) = self.admission.admit(Some(peer.ip())) else { return Ok(()) };
                io.set_nodelay(self.wire.nodelay)?;
                self.patience.apply(&io)?;
                let connection = self.clone().tcp(self.activity.watch(io), Peer(peer), admitted);
                connections.spawn(holding(socket, connection));
            }
            Listener::Unix(listener, _) => {
                let (io, _unnamed) = listener.accept().await?;
                let Some(admitted) = self.admission.admit(None) else { return Ok(()) };
                let connection = self.clone().connection(self.activity.watch(io), None, None, admitted);
                connections.spawn(holding(socket, connection));
            }
        }
        Ok(())
    }

    async fn tcp(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, admitted: Admitted) {
        let Some(tls) = self.tls.clone() else { return self.connection(io, Some(peer), None, admitted).await };
        let shaken = tokio::select! {
            // Nobody has asked for anything yet.
            () = self.stop.cancelled() => return,
            () = admitted.evicted() => return self.activity.metrics().connection_closed("evicted"),
            shaken = tls.handshake(io) => shaken,
        };
        match shaken {
            Ok((io, certificate)) => self.connection(io, Some(peer), certificate, admitted).await,
            Err(error) => tracing::debug!(%error, peer = %peer.0, "a TLS handshake failed"),
        }
    }

    async fn connection(
        self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<Peer>,
        certificate: Option<ClientCertificate>,
        admitted: Admitted,
    ) {
        let metrics = self.activity.metrics();
        let link = Link::new(self.patience, admitted, self.spool.clone(), metrics.clone());
        let http2 = self.http2(&link);
        let Self { service, stop, .. } = self;
        let standing = Standing::default();
        let of_requests = link.clone();
        let here = standing.connection();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            request.extensions_mut().insert(of_requests.answer());
            request.extensions_mut().insert(of_requests.clone());
            request.extensions_mut().insert(here.clone());
            // Always ready: nothing in front of the Flight service limits it.
            service.clone().call(request)
        });
        let connection = http2.serve_connection(TokioIo::new(link.watch(io)), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            overdue = link.overdue() => match overdue {
                Overdue::Silent(reason) => return metrics.connection_closed(reason),
                Overdue::Leaving(reason) => {
                    metrics.connection_closed(reason);
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = tokio::time::sleep(FAREWELL), if !link.is_authenticated() => {
                            // A login may have come through at the last moment.
                            if link.is_authenticated() { connection.await } else { return }
                        }
                    }
                }
            },
        };
        if let Err(error) = ended {
            // The client's end, mostly: it has gone without a word.
            tracing::debug!(%error, "a connection ended in an error");
        }
    }
}

/// Keeps the socket's permit until the connection, and its socket with it, is gone.
async fn holding(socket: OwnedSemaphorePermit, connection: impl Future<Output = ()>) {
    connection.await;
    drop(socket);
}

/// The limits as far as file descriptors carry them. Where they do not, no address has all of what is left.
fn carried(limits: &Limits, most: Option<usize>) -> Limits {
    let mut limits = limits.clone();
    let Some(most) = most else { return limits };
    let configured = limits.connections;
    // Of those that the limit is for.
    let most = most.saturating_sub(LEAVING).max(1);
    if configured != 0 && configured <= most {
        return limits;
    }
    limits.connections = most;
    if limits.connections_per_address != 0 {
        limits.connections_per_address = limits.connections_per_address.min((most / 4 * 3).max(1));
    }
    if limits.unauthenticated_connections != 0 {
        limits.unauthenticated_connections = limits.unauthenticated_connections.min((most / 2).max(1));
    }
    let open_files = machine::open_files().unwrap_or(0);
    tracing::warn!(
        configured,
        connections = most,
        per_address = limits.connections_per_address,
        open_files,
        "limits.connections is lowered to what the limit of open files (RLIMIT_NOFILE, ulimit -n) carries"
    );
    limits
}

/// The configuration is checked to hold what HTTP/2 allows.
fn u32_of(size: Size) -> u32 {
    u32::try_from(size.0).unwrap_or(u32::MAX)
}
