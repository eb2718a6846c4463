//! One server: bind, open the database, serve, and stop in order. A value, so that one process can hold many.

mod accept;
mod admin;
mod admission;
mod connection;
mod gate;
mod link;
mod presence;
mod rpc;
mod services;
mod status;
mod tls;

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceBuilder;

use crate::{
    auth::{AuthLayer, Authenticator},
    config::Config,
    engine::Engine,
    error::{Error, Result},
    exchange::Registry,
    flight::{Flight, Router},
    location::Location,
    reload::{Files, Reloads},
    telemetry::{Audit, Calls, Metrics},
    wire,
};
use accept::{Acceptor, Listener};
use admin::Admin;
use connection::Activity;
use gate::{Gate, State};
use presence::Presence;
use rpc::RpcLayer;
use services::Services;
use tls::Tls;
pub use tls::certificate_ends;

/// How long an interrupted statement may take to notice.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(5);

/// The same where the database has to be reopened; who does not notice by then ends the process.
const REOPEN_PATIENCE: Duration = Duration::from_secs(10);

/// How long the last words of interrupted streams may take to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long the last lines of the audit log may take.
const FLUSH: Duration = Duration::from_secs(2);

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
    reloads: Reloads,
    /// Whether only a restart helps.
    unusable: watch::Receiver<bool>,
    /// Cancelled when dropped, too: a server that is dropped stops.
    stop_accepting: DropGuard,
    serving: JoinSet<()>,
}

/// For how long calls are answered after the last transaction has ended.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// How often it is looked whether transactions are still open.
const TRANSACTIONS: Duration = Duration::from_millis(20);

impl Server {
    /// Binds, answers health with NOT_SERVING while the database opens, and serves when this returns.
    pub async fn start(config: Config) -> Result<Self> {
        let metrics = Metrics::new(Engine::duckdb_version());
        if let Some(file) = &config.audit.file {
            // Set once, here.
            let _ = metrics.audit.set(Audit::start(file, metrics.audit_lost.clone())?);
        }
        let reloads = Reloads::start(metrics.clone())?;
        let users_files = Files::now(config.auth.users_file.clone());
        let key_files = [&config.auth.signing_key_file, &config.jwt.jwks_file].into_iter().flatten().cloned();
        let key_files = Files::now(key_files);
        let (auth, auth_metrics) = (config.clone(), metrics.clone());
        let authenticator = tokio::task::spawn_blocking(move || Authenticator::new(&auth, auth_metrics));
        let authenticator = authenticator.await.map_err(Error::internal)??;
        let (users, keys) = (authenticator.clone(), authenticator.clone());
        reloads.watch("users", users_files, move || users.reload_users());
        reloads.watch("keys", key_files, move || keys.reload_keys());
        let tls_files = Tls::files(&config.tls);
        let (settings, patience, tls_metrics) =
            (config.tls.clone(), config.limits.handshake_timeout.0, metrics.clone());
        let tls = tokio::task::spawn_blocking(move || Tls::new(&settings, patience, tls_metrics));
        let tls = tls.await.map_err(Error::internal)??;
        if let Some(tls) = tls.clone() {
            reloads.watch("certificate", tls_files, move || tls.reload());
        }
        let (listener, location) = Listener::bind(&config.served()).await?;
        let mut listeners = vec![listener];
        if let Some(path) = &config.server.unix_socket {
            listeners.push(Listener::bind(&Location::Unix(path.clone())).await?.0);
        }
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
        let stack = ServiceBuilder::new()
            .layer(RpcLayer::new(metrics.clone(), calls.clone(), config.limits.stall_timeout))
            .layer(AuthLayer(authenticator.clone()))
            .service(Services { health: health_service, flight: gate.clone() });
        let activity = Activity::new(metrics.clone());
        let stop_accepting = CancellationToken::new();
        let acceptor = Acceptor::new(stack, &config, tls, activity.clone(), stop_accepting.clone());
        let mut serving = JoinSet::new();
        for listener in listeners {
            serving.spawn(acceptor.clone().serve(listener));
        }

        let (open_config, open_metrics) = (config.clone(), metrics.clone());
        let engine = tokio::task::spawn_blocking(move || Engine::open(&open_config, open_metrics));
        let engine = Arc::new(engine.await.map_err(Error::internal)??);
        let exchangers = Registry::load(&config, engine.clone(), metrics.clone()).await?;
        let flight = Flight::new(&config, engine.clone(), authenticator, exchangers, metrics.clone());
        gate.open(Router::new(&config, flight), engine.clone());
        report(&health, ServingStatus::Serving).await;
        let (told, unusable) = watch::channel(false);
        let recovery = Recovery { gate: gate.clone(), health: health.clone(), metrics: metrics.clone() };
        tokio::spawn(recovery.watch(Arc::downgrade(&engine), told));
        if config.database.file().is_some() {
            let presence = Presence { gate: gate.clone(), health: health.clone(), metrics: metrics.clone() };
            tokio::spawn(presence.watch(Arc::downgrade(&engine)));
        }
        metrics.ready.set(1);
        tracing::info!(
            %location, database = %config.database.path, auth = config.auth.enabled,
            admin = %admin.as_ref().map_or("off".into(), |admin| admin.address().to_string()), "serving"
        );
        let stop_accepting = stop_accepting.drop_guard();
        Ok(Self {
            location,
            admin,
            config,
            engine,
            gate,
            calls,
            health,
            metrics,
            activity,
            reloads,
            unusable,
            stop_accepting,
            serving,
        })
    }

    /// Where it really listens: a port of 0 has become one.
    pub fn location(&self) -> &Location {
        &self.location
    }

    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// Completes with true when the database has become unusable, which only a restart changes.
    pub fn broken(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut unusable = self.unusable.clone();
        async move { unusable.wait_for(|unusable| *unusable).await.is_ok() }
    }

    /// Reads the files that can change while it runs again, changed or not.
    pub fn reload(&self) {
        self.reloads.reload();
    }

    /// Stops in order: not ready, drain delay, no new calls, grace for running ones and for transactions that are open (until
    /// `impatient` completes),
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
            reloads: _,
            unusable: _,
            stop_accepting,
            mut serving,
            admin,
            location: _,
        } = self;
        report(&health, ServingStatus::NotServing).await;
        metrics.ready.set(0);
        metrics.draining.set(1);
        gate.set(State::Leaving);
        tracing::info!("stopping: not ready any more");
        let graceful = async {
            tokio::time::sleep(config.server.drain_delay.0).await;
            gate.set(State::Draining);
            let finished = async {
                // Their next calls come on connections that are open, which end when nothing more is accepted.
                let mut some = false;
                while gate.transactions_in_reach() > 0 {
                    some = true;
                    tokio::time::sleep(TRANSACTIONS).await;
                }
                if some {
                    // Clients that begin the next transaction with each commit have that answered, too.
                    tokio::time::sleep(AFTERWARDS).await;
                }
                drop(stop_accepting);
                calls.none().await;
            };
            tokio::time::timeout(config.server.grace_period.0, finished).await
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
                    () = all_of(&mut serving) => {}
                    () = activity.settled(QUIET) => {}
                }
            } else {
                let _ = tokio::time::timeout(FAREWELL, calls.none()).await;
                let _ = tokio::time::timeout(FAREWELL, all_of(&mut serving)).await;
            }
        };
        let (closed, ()) = tokio::join!(closing, leaving);
        closed.map_err(Error::internal)?;
        serving.shutdown().await;
        drop(admin);
        if let Some(audit) = metrics.audit.get().cloned() {
            let flushing = tokio::task::spawn_blocking(move || audit.flush(FLUSH));
            if !flushing.await.map_err(Error::internal)? {
                tracing::warn!("the last lines of the audit log could not be written in time");
            }
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// What is done about a database that DuckDB has invalidated.
struct Recovery {
    gate: Gate,
    health: HealthReporter,
    metrics: Metrics,
}

impl Recovery {
    /// Reopens the database each time, and says so where it cannot be.
    async fn watch(self, engine: Weak<Engine>, unusable: watch::Sender<bool>) {
        loop {
            let Some(broken) = engine.upgrade().map(|engine| engine.broken()) else { return };
            if !broken.await {
                return;
            }
            report(&self.health, ServingStatus::NotServing).await;
            self.metrics.ready.set(0);
            self.metrics.invalidated.set(1);
            let Some(engine) = engine.upgrade() else { return };
            if !engine.may_reopen() {
                tracing::error!("the database is unusable; not ready any more until a restart");
                break;
            }
            self.gate.change(State::Serving, State::Reopening);
            tracing::warn!("reopening the database after a fatal error in DuckDB");
            let began = Instant::now();
            let reopened = tokio::task::spawn_blocking(move || engine.reopen(REOPEN_PATIENCE)).await;
            let reopened = reopened.map_err(Error::internal).and_then(|reopened| reopened);
            self.gate.change(State::Reopening, State::Serving);
            match reopened {
                Ok(()) => self.metrics.reopened.inc(),
                Err(Error::Draining) => return,
                Err(error) => {
                    tracing::error!(%error, "the database could not be reopened; not ready any more until a restart");
                    break;
                }
            }
            self.metrics.invalidated.set(0);
            if self.gate.state() == State::Serving && self.metrics.file_lost.get() == 0 {
                self.metrics.ready.set(1);
                report(&self.health, ServingStatus::Serving).await;
            }
            tracing::warn!(seconds = began.elapsed().as_secs_f64(), "the database was reopened");
        }
        unusable.send_replace(true);
    }
}

/// For the server as a whole and for the Flight service by name.
async fn report(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(wire::FLIGHT_SERVICE, status).await;
}

/// Completes when every listener's connections have ended.
async fn all_of(serving: &mut JoinSet<()>) {
    while serving.join_next().await.is_some() {}
}
