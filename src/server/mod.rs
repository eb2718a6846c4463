//! One server: bind, open the database, serve, and stop in order. A value, so that one process can hold many.

mod admin;
mod connection;
mod gate;
mod rpc;
mod status;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::TryStreamExt;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::TcpIncoming;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    auth::{AuthLayer, Authenticator},
    config::Config,
    engine::Engine,
    error::{Error, Result},
    flight::{Flight, Router},
    location::Location,
    telemetry::{Calls, Metrics},
    wire,
};
use admin::Admin;
use connection::Activity;
use gate::{Gate, State};
use rpc::RpcLayer;

/// How long an interrupted statement may take to notice.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the last words of interrupted streams may take to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// Once all calls are answered: connections on which nothing happens for this long have nothing more to send.
const QUIET: Duration = Duration::from_secs(1);

pub struct Server {
    location: Location,
    admin: Option<Admin>,
    config: Config,
    engine: Arc<Engine>,
    gate: Gate,
    calls: Calls,
    health: HealthReporter,
    metrics: Metrics,
    activity: Activity,
    stop_accepting: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// Binds, answers health with NOT_SERVING while the database opens, and serves when this returns.
    pub async fn start(config: Config) -> Result<Self> {
        let metrics = Metrics::new(Engine::duckdb_version());
        let (auth, auth_metrics) = (config.auth.clone(), metrics.clone());
        let authenticator = tokio::task::spawn_blocking(move || Authenticator::new(&auth, auth_metrics));
        let authenticator = authenticator.await.map_err(Error::internal)??;
        let (listener, location) = listen(&config.server.location).await?;
        let gate = Gate::default();
        let admin = match config.admin.listen.0 {
            Some(address) => {
                Some(Admin::start(address, &location, &config, metrics.clone(), gate.clone(), authenticator.clone())?)
            }
            None => None,
        };
        let (health, health_service) = tonic_health::server::health_reporter();
        report(&health, ServingStatus::NotServing).await;

        let calls = Calls::default();
        let router = tonic::transport::Server::builder()
            .initial_stream_window_size(16 * 1024 * 1024)
            .initial_connection_window_size(64 * 1024 * 1024)
            .max_frame_size(1024 * 1024)
            .max_concurrent_streams(256)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .http2_max_header_list_size(32 * 1024)
            .layer(RpcLayer::new(metrics.clone(), calls.clone()))
            .layer(AuthLayer(authenticator.clone()))
            .add_service(health_service)
            .add_service(gate.clone());
        let (stop_accepting, stopped) = oneshot::channel::<()>();
        let stopped = async move {
            // A server that is dropped stops, too.
            let _ = stopped.await;
        };
        let activity = Activity::new(metrics.clone());
        let watching = activity.clone();
        let serving = tokio::spawn(async move {
            let served = match listener {
                Listener::Tcp(listener) => {
                    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                    let incoming = incoming.map_ok(move |io| watching.watch(io));
                    router.serve_with_incoming_shutdown(incoming, stopped).await
                }
                Listener::Unix(listener) => {
                    let incoming = UnixListenerStream::new(listener).map_ok(move |io| watching.watch(io));
                    router.serve_with_incoming_shutdown(incoming, stopped).await
                }
            };
            if let Err(error) = served {
                tracing::error!(%error, "the Flight port ended");
            }
        });

        let (open_config, open_metrics) = (config.clone(), metrics.clone());
        let engine = tokio::task::spawn_blocking(move || Engine::open(&open_config, open_metrics));
        let engine = Arc::new(engine.await.map_err(Error::internal)??);
        let flight = Flight::new(&config, engine.clone(), authenticator, metrics.clone());
        gate.open(Router::new(&config, flight), engine.clone());
        report(&health, ServingStatus::Serving).await;
        let broken = engine.broken();
        let (health_then, metrics_then) = (health.clone(), metrics.clone());
        tokio::spawn(async move {
            if broken.await {
                tracing::error!("the database is unusable; not ready any more until a restart");
                report(&health_then, ServingStatus::NotServing).await;
                metrics_then.ready.set(0);
                metrics_then.invalidated.set(1);
            }
        });
        metrics.ready.set(1);
        tracing::info!(
            %location, database = %config.database.path, auth = config.auth.enabled,
            admin = %admin.as_ref().map_or("off".into(), |admin| admin.address().to_string()), "serving"
        );
        Ok(Self { location, admin, config, engine, gate, calls, health, metrics, activity, stop_accepting, serving })
    }

    /// Where it really listens: a port of 0 has become one.
    pub fn location(&self) -> &Location {
        &self.location
    }

    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// Stops in order: not ready, drain delay, no new calls, grace for running ones (until `impatient` completes),
    /// interrupt, checkpoint, close. One silent connection does not hold it up.
    pub async fn stop(self, impatient: impl Future<Output = ()>) -> Result<()> {
        let Self {
            config,
            engine,
            gate,
            calls,
            health,
            metrics,
            activity,
            stop_accepting,
            mut serving,
            admin,
            location,
        } = self;
        report(&health, ServingStatus::NotServing).await;
        metrics.ready.set(0);
        metrics.draining.set(1);
        gate.set(State::Leaving);
        tracing::info!("stopping: not ready any more");
        let graceful = async {
            tokio::time::sleep(config.server.drain_delay.0).await;
            gate.set(State::Draining);
            // The server task may be gone already; then nothing accepts.
            let _ = stop_accepting.send(());
            tokio::time::timeout(config.server.grace_period.0, calls.none()).await
        };
        tokio::select! {
            outcome = graceful => if outcome.is_err() {
                tracing::warn!(running = calls.count(), "the grace period is over; interrupting what still runs");
            },
            () = impatient => tracing::warn!(running = calls.count(), "second signal; interrupting what still runs"),
        }
        gate.set(State::Draining);
        let answered = calls.count() == 0;
        let closing = tokio::task::spawn_blocking(move || engine.close(INTERRUPT_PATIENCE));
        // An answer that is finished here may still be on its way: connections end by themselves when they are done, and
        // those that stay silent are not waited for. Interrupted streams get little time for their error.
        let leaving = async {
            if answered {
                tokio::select! {
                    _ = &mut serving => {}
                    () = activity.settled(QUIET) => {}
                }
            } else {
                let _ = tokio::time::timeout(FAREWELL, calls.none()).await;
                let _ = tokio::time::timeout(FAREWELL, &mut serving).await;
            }
        };
        let (closed, ()) = tokio::join!(closing, leaving);
        closed.map_err(Error::internal)?;
        serving.abort();
        if let Location::Unix(path) = &location {
            // Someone may have removed it already.
            let _ = std::fs::remove_file(path);
        }
        drop(admin);
        tracing::info!("stopped");
        Ok(())
    }
}

/// For the server as a whole and for the Flight service by name.
async fn report(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(wire::FLIGHT_SERVICE, status).await;
}

async fn listen(location: &Location) -> Result<(Listener, Location)> {
    let failed = |error: std::io::Error| Error::Io(format!("cannot listen on {location}: {error}"));
    match location {
        Location::Tcp { host, port } => {
            let address = (host.trim_start_matches('[').trim_end_matches(']'), *port);
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let port = listener.local_addr().map_err(failed)?.port();
            Ok((Listener::Tcp(listener), Location::Tcp { host: host.clone(), port }))
        }
        Location::Unix(path) => {
            remove_stale_socket(path).await?;
            let listener = UnixListener::bind(path).map_err(failed)?;
            Ok((Listener::Unix(listener), location.clone()))
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
