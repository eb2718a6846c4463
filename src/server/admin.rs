//! The admin port: /livez, /readyz and /metrics over HTTP, on a thread of its own, so that it answers however busy
//! the Flight port is.

use std::{net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, State as With},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::oneshot;

use super::gate::{Gate, State};
use crate::{
    error::{Error, Result},
    telemetry::Metrics,
};

/// A database that does not answer this soon is not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Stops when dropped.
pub(super) struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    metrics: Metrics,
    gate: Gate,
}

impl Admin {
    pub(super) fn start(address: SocketAddr, metrics: Metrics, gate: Gate) -> Result<Self> {
        let failed = |error: std::io::Error| Error::Io(format!("cannot listen on {address} (admin.listen): {error}"));
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::internal)?;
        let shared = Arc::new(Shared { metrics, gate });
        let serve = move || {
            runtime.block_on(async move {
                let app = Router::new()
                    .route("/livez", get(|| async { "ok\n" }))
                    .route("/readyz", get(readyz))
                    .route("/metrics", get(metrics_text))
                    .with_state(shared);
                let served = async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    axum::serve(listener, app).await
                };
                tokio::select! {
                    outcome = served => if let Err(error) = outcome {
                        tracing::error!(%error, "the admin port ended");
                    },
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

/// 200 while the server takes calls and the database answers, else 503; `?verbose` lists the checks.
async fn readyz(With(shared): With<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let state = match shared.gate.state() {
        State::Serving => Ok(()),
        State::Starting => Err("starting"),
        State::Leaving | State::Draining => Err("draining"),
    };
    let database = match shared.gate.engine() {
        None => Err("not open"),
        Some(_) if state.is_err() => Err("not asked"),
        Some(engine) => match tokio::time::timeout(PROBE_TIMEOUT, engine.probe()).await {
            Ok(Ok(())) => Ok(()),
            Err(_elapsed) => Err("did not answer in time"),
            Ok(Err(_)) => Err("failed"),
        },
    };
    let checks = [("state", state), ("database", database)];
    let ready = checks.iter().all(|(_, outcome)| outcome.is_ok());
    let mut body = String::new();
    if query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose"))) {
        for (name, outcome) in checks {
            match outcome {
                Ok(()) => body.push_str(&format!("[+]{name} ok\n")),
                Err(why) => body.push_str(&format!("[-]{name} {why}\n")),
            }
        }
    }
    body.push_str(if ready { "ready\n" } else { "not ready\n" });
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, body).into_response()
}

async fn metrics_text(With(shared): With<Arc<Shared>>) -> Response {
    match shared.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
