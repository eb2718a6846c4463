//! The admin port: /livez, /readyz and /metrics over HTTP, on a thread of its own, so that it answers however busy
//! the Flight port is.
//!
//! Nobody logs in here. A connection has one request and a deadline for all of it, and where there are too many, the oldest
//! makes room: probes take milliseconds, so they get through beside connections that stand still.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use askama::Template;
use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State as With},
    http::{
        HeaderMap, Request, StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    response::{Html, IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::oneshot, task::AbortHandle};
use tower::ServiceExt;

use super::{
    gate::{Gate, State},
    status::{self, Check, Statement, StatusPage, Throughput},
};
use crate::{
    auth::Authenticator,
    config::{self, Config},
    engine::Engine,
    error::{Error, Result},
    location::Location,
    telemetry::{Metrics, REVISION},
};

/// A database that does not answer this soon is not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a request's head may take.
const MAX_HEAD: usize = 32 * 1024;

/// How long accepting waits after an error, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Stops when dropped.
pub(super) struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    location: Location,
    public: Option<Location>,
    auth: bool,
    show_statements: bool,
    start: Instant,
    throughput: Throughput,
    metrics: Metrics,
    gate: Gate,
    authenticator: Authenticator,
}

impl Admin {
    pub(super) fn start(
        address: SocketAddr,
        location: &Location,
        config: &Config,
        metrics: Metrics,
        gate: Gate,
        authenticator: Authenticator,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| Error::Io(format!("cannot listen on {address} (admin.listen): {error}"));
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::internal)?;
        let shared = Arc::new(Shared {
            location: location.clone(),
            public: config.server.public_location.clone(),
            auth: config.auth.enabled,
            show_statements: config.admin.show_statements,
            start: Instant::now(),
            throughput: Throughput::default(),
            metrics,
            gate,
            authenticator,
        });
        let limits = config.admin.clone();
        let serve = move || {
            runtime.block_on(async move {
                let sampled = shared.clone();
                tokio::spawn(async move {
                    let mut seconds = tokio::time::interval(Duration::from_secs(1));
                    loop {
                        seconds.tick().await;
                        sampled.throughput.sample(&sampled.metrics);
                    }
                });
                let app = Router::new()
                    .route("/", get(status_page))
                    .route("/livez", get(livez))
                    .route("/startupz", get(startupz))
                    .route("/readyz", get(readyz))
                    .route("/metrics", get(metrics_text))
                    .with_state(shared);
                let served = async {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => answer(listener, app, limits).await,
                        Err(error) => tracing::error!(%error, "the admin port ended"),
                    }
                };
                tokio::select! {
                    () = served => {}
                    // Open connections are not waited for.
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("admin".into()).spawn(serve).map_err(Error::internal)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been logged by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Takes connections, each for one request.
async fn answer(listener: TcpListener, app: Router, limits: config::Admin) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection to the admin port was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        while open.len() >= limits.connections.max(1) {
            open.pop_front().iter().for_each(AbortHandle::abort);
        }
        let app = app.clone();
        let service = service_fn(move |request: Request<Incoming>| app.clone().oneshot(request.map(Body::new)));
        let connection = http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let deadline = limits.timeout.limit().unwrap_or(Duration::MAX);
        // A connection that breaks or takes too long has nobody to be told.
        let served = async move { drop(tokio::time::timeout(deadline, connection).await) };
        open.push_back(tokio::spawn(served).abort_handle());
    }
}

/// 200 unless only a restart helps.
async fn livez(With(shared): With<Arc<Shared>>) -> (StatusCode, &'static str) {
    match shared.is_invalidated() && shared.gate.state() != State::Reopening {
        true => (StatusCode::SERVICE_UNAVAILABLE, "the database is unusable until a restart\n"),
        false => (StatusCode::OK, "ok\n"),
    }
}

/// 200 once the database is open.
async fn startupz(With(shared): With<Arc<Shared>>) -> (StatusCode, &'static str) {
    match shared.gate.state() {
        State::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        _ => (StatusCode::OK, "started\n"),
    }
}

impl Shared {
    fn is_invalidated(&self) -> bool {
        self.metrics.invalidated.get() != 0
    }

    /// What readiness depends on.
    async fn checks(&self) -> Vec<Check> {
        let state = match self.gate.state() {
            State::Serving => None,
            State::Starting => Some("starting"),
            State::Leaving | State::Draining => Some("draining"),
            State::Reopening => Some("reopening the database"),
        };
        let database = match self.gate.engine() {
            None => Some("not open"),
            Some(_) if self.gate.state() == State::Reopening => Some("being reopened after a fatal error"),
            Some(_) if self.is_invalidated() => Some("unusable until a restart"),
            Some(_) if self.metrics.file_lost.get() != 0 => Some("its file was removed, renamed or replaced"),
            Some(_) if state.is_some() => Some("not asked"),
            Some(engine) => match tokio::time::timeout(PROBE_TIMEOUT, engine.probe()).await {
                Ok(Ok(())) => None,
                Err(_elapsed) => Some("did not answer in time"),
                Ok(Err(_)) => Some("failed"),
            },
        };
        vec![Check { name: "state", problem: state }, Check { name: "database", problem: database }]
    }
}

fn are_well(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.problem.is_none())
}

/// 200 while the server takes calls and the database answers, else 503; `?verbose` lists the checks.
async fn readyz(With(shared): With<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let checks = shared.checks().await;
    let ready = are_well(&checks);
    let mut body = String::new();
    if query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose"))) {
        for Check { name, problem } in &checks {
            match problem {
                None => body.push_str(&format!("[+]{name} ok\n")),
                Some(why) => body.push_str(&format!("[-]{name} {why}\n")),
            }
        }
    }
    body.push_str(if ready { "ready\n" } else { "not ready\n" });
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, body).into_response()
}

/// A database that does not answer leaves the last values of its own gauges.
async fn metrics_text(With(shared): With<Arc<Shared>>) -> Response {
    if let Some(engine) = shared.gate.engine() {
        shared.metrics.stored(&engine.storage(PROBE_TIMEOUT).await);
    }
    shared.metrics.logins_waiting.set(i64::try_from(shared.authenticator.logins_waiting()).unwrap_or(i64::MAX));
    shared.metrics.sessions_closed.set(i64::try_from(shared.authenticator.sessions_closed()).unwrap_or(i64::MAX));
    shared.metrics.sessions.set(i64::try_from(shared.authenticator.sessions()).unwrap_or(i64::MAX));
    match shared.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status_page(With(shared): With<Arc<Shared>>, headers: HeaderMap) -> Response {
    let checks = shared.checks().await;
    let statements = match shared.gate.engine() {
        Some(engine) => tokio::time::timeout(PROBE_TIMEOUT, engine.statements()).await.ok().and_then(Result::ok),
        None => None,
    };
    let asked = headers.get(HOST).and_then(|host| host.to_str().ok());
    let page = StatusPage {
        ready: are_well(&checks),
        checks,
        reopened: shared.metrics.reopened.get(),
        version: env!("CARGO_PKG_VERSION"),
        revision: REVISION,
        duckdb: Engine::duckdb_version(),
        uptime: status::uptime(shared.start.elapsed()),
        flows: shared.throughput.flows(&shared.metrics),
        streams: shared.metrics.streams_open.get(),
        connections: shared.metrics.connections.get(),
        sessions: shared.authenticator.sessions(),
        statements: statements
            .unwrap_or_default()
            .iter()
            .map(|one| Statement::of(one, shared.show_statements))
            .collect(),
        location: status::reachable(shared.public.as_ref(), &shared.location, asked),
        auth: shared.auth,
    };
    let safe = [
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    match page.render() {
        Ok(html) => (safe, Html(html)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
