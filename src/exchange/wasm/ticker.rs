//! What makes modules look at the clock: a thread that raises the engine's epoch while any of them runs, and rests
//! while none does.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use wasmtime::Engine;

use crate::{error::Result, machine};

/// How late the end of a module's time may be noticed.
const TICK: Duration = Duration::from_millis(10);

/// The thread ends when this is dropped.
pub(super) struct Ticker(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    /// The thread rests, and has to be woken.
    resting: bool,
    stopped: bool,
}

impl Ticker {
    pub(super) fn start(engine: &Engine) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (seen, engine) = (shared.clone(), engine.clone());
        let thread = std::thread::Builder::new().name("mallard-wasm-ticker".into());
        thread.spawn(move || tick(&seen, &engine)).map_err(machine::no_threads)?;
        Ok(Self(shared))
    }

    /// Ticks as long as what it answers lives.
    pub(super) fn running(&self) -> Running<'_> {
        let mut state = self.0.lock();
        state.running += 1;
        // Not at each call: whoever is woken begins to wait anew, and would never tick.
        if std::mem::take(&mut state.resting) {
            self.0.changed.notify_one();
        }
        Running(&self.0)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_one();
    }
}

pub(super) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tick(shared: &Shared, engine: &Engine) {
    let mut state = shared.lock();
    while !state.stopped {
        if state.running == 0 {
            state.resting = true;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        } else {
            let waited = shared.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            engine.increment_epoch();
        }
    }
}
