//! What stands on the Flight port before the database is open and after draining has begun.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::{body::Body, server::NamedService};
use tower::Service;

use crate::{engine::Engine, error::Error, flight::Router, wire::FLIGHT_SERVICE};

/// Lets calls through to the Flight service while the server serves. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: AtomicU8,
    behind: OnceLock<(Router, Arc<Engine>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Starting = 0,
    Serving = 1,
    /// Not ready any more, but calls that still come are taken.
    Leaving = 2,
    Draining = 3,
}

impl Gate {
    pub(super) fn open(&self, service: Router, engine: Arc<Engine>) {
        // Opened once, by Server::start.
        let _ = self.0.behind.set((service, engine));
        self.set(State::Serving);
    }

    pub(super) fn set(&self, state: State) {
        self.0.state.store(state as u8, Ordering::Release);
    }

    pub(super) fn state(&self) -> State {
        match self.0.state.load(Ordering::Acquire) {
            0 => State::Starting,
            1 => State::Serving,
            2 => State::Leaving,
            _ => State::Draining,
        }
    }

    /// The engine, once it is open.
    pub(super) fn engine(&self) -> Option<Arc<Engine>> {
        self.0.behind.get().map(|(_, engine)| engine.clone())
    }
}

impl NamedService for Gate {
    const NAME: &'static str = FLIGHT_SERVICE;
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refusal = match (self.state(), self.0.behind.get()) {
            (State::Serving | State::Leaving, Some((service, _))) => {
                let mut service = service.clone();
                return Box::pin(async move { service.call(request).await });
            }
            (State::Draining, _) => Error::Draining,
            _ => Error::Starting,
        };
        Box::pin(std::future::ready(Ok(refusal.into_status().into_http())))
    }
}
