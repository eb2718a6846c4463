//! What stands on the Flight port before the database is open and after draining has begun.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;

use crate::{auth::Identity, engine::Engine, error::Error, flight::Router};

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
    /// The database is being reopened after a fatal error.
    Reopening = 4,
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

    /// From one state to another, unless the server has gone on to a third one meanwhile.
    pub(super) fn change(&self, from: State, to: State) {
        let _ = self.0.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn state(&self) -> State {
        match self.0.state.load(Ordering::Acquire) {
            0 => State::Starting,
            1 => State::Serving,
            2 => State::Leaving,
            4 => State::Reopening,
            _ => State::Draining,
        }
    }

    /// How many transactions are open whose clients are still there.
    pub(super) fn transactions_in_reach(&self) -> usize {
        self.0.behind.get().map_or(0, |(service, _)| service.transactions_in_reach())
    }

    /// The engine, once it is open.
    pub(super) fn engine(&self) -> Option<Arc<Engine>> {
        self.0.behind.get().map(|(_, engine)| engine.clone())
    }
}

impl Gate {
    /// Hands the call to the Flight service, or refuses it. While the server drains, what goes on with a transaction that is
    /// open is answered, and the service refuses the rest.
    pub(super) fn answer(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        if let (State::Draining, Some((service, _))) = (self.state(), self.0.behind.get())
            && let Some(identity) = request.extensions_mut().get_mut::<Identity>()
        {
            identity.draining = true;
            return Box::pin(service.clone().answer(request));
        }
        let refusal = match (self.state(), self.0.behind.get()) {
            (State::Serving | State::Leaving, Some((service, _))) => return Box::pin(service.clone().answer(request)),
            (State::Draining, _) => Error::Draining,
            (State::Reopening, _) => Error::Reopening,
            _ => Error::Starting,
        };
        Box::pin(std::future::ready(Ok(refusal.into_status().into_http())))
    }
}
