//! Streams that GetFlightInfo's tickets started, so that CancelFlightInfo can end them, and tickets that it has cancelled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::{
    access::Principal,
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// Cancelled tickets that are remembered of one user, at most. Further ones cannot be cancelled before they are used.
const REMEMBERED: usize = 4096;

/// The tickets of one server that are used or cancelled. Cheap to clone.
#[derive(Clone)]
pub(super) struct Running(Arc<Mutex<State>>, Duration);

#[derive(Default)]
struct State {
    /// By ticket id: how many uses run, and what ends them.
    uses: HashMap<String, (usize, CancellationToken)>,
    /// By user and ticket id: until when no ticket of that id is good any more by itself.
    cancelled: HashMap<Principal, HashMap<String, Instant>>,
}

/// One use of a ticket, from before its statement starts until its stream is dropped.
pub(super) struct Use {
    running: Running,
    id: String,
    token: CancellationToken,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.running.lock();
        if let Some((uses, _)) = state.uses.get_mut(&self.id) {
            *uses -= 1;
            if *uses == 0 {
                state.uses.remove(&self.id);
            }
        }
    }
}

impl Running {
    /// `life` is that of a ticket.
    pub(super) fn new(life: Duration) -> Self {
        Self(Arc::default(), life)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket is used; one that was cancelled is not.
    pub(super) fn begin(&self, whose: &Principal, id: &str) -> Result<Use> {
        let mut state = self.lock();
        if state.is_cancelled(whose, id) {
            return Err(Error::Cancelled);
        }
        let (uses, token) = state.uses.entry(id.to_string()).or_default();
        *uses += 1;
        Ok(Use { running: self.clone(), id: id.to_string(), token: token.clone() })
    }

    pub(super) fn is_cancelled(&self, whose: &Principal, id: &str) -> bool {
        self.lock().is_cancelled(whose, id)
    }

    /// Ends what uses the ticket now, and remembers that no other use may begin. Whether anything came of it.
    pub(super) fn cancel(&self, whose: &Principal, id: &str) -> bool {
        let mut state = self.lock();
        let running = state.uses.get(id).map(|(_, token)| token.cancel()).is_some();
        state.remember(whose, id, Instant::now() + self.1 + Duration::from_secs(1)) || running
    }
}

impl State {
    fn is_cancelled(&self, whose: &Principal, id: &str) -> bool {
        self.cancelled.get(whose).is_some_and(|cancelled| cancelled.contains_key(id))
    }

    /// Whether there was room.
    fn remember(&mut self, whose: &Principal, id: &str, until: Instant) -> bool {
        let now = Instant::now();
        if !self.cancelled.contains_key(whose) {
            self.cancelled.retain(|_, cancelled| {
                cancelled.retain(|_, until| *until > now);
                !cancelled.is_empty()
            });
        }
        let cancelled = self.cancelled.entry(whose.clone()).or_default();
        if cancelled.len() >= REMEMBERED {
            cancelled.retain(|_, until| *until > now);
        }
        let room = cancelled.len() < REMEMBERED || cancelled.contains_key(id);
        if room {
            cancelled.insert(id.to_string(), until);
        }
        room
    }
}

impl Use {
    /// Whether it was cancelled since it began.
    pub(super) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Starts the stream and lets it end in CANCELLED once [`Running::cancel`] is called with the same id.
    pub(super) async fn run(
        self,
        starting: impl Future<Output = Result<RecordBatchStream>>,
    ) -> Result<RecordBatchStream> {
        let stream = self.token.run_until_cancelled(starting).await.ok_or(Error::Cancelled)??;
        let (schema, token) = (stream.schema(), self.token.clone());
        let until_cancelled = stream.take_until(token.clone().cancelled_owned());
        let ending = futures::stream::once(async move { token.is_cancelled().then_some(Err(Error::Cancelled)) });
        let batches = until_cancelled.chain(ending.filter_map(futures::future::ready));
        Ok(RecordBatchStream::new(schema, batches).holding(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Rights;

    #[test]
    fn cancelled_tickets_are_forgotten_when_they_have_expired_and_are_bounded() {
        let running = Running::new(Duration::from_secs(3600));
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| Rights::all(name).principal());
        for ticket in 0..REMEMBERED {
            assert!(running.cancel(&alice, &ticket.to_string()));
        }
        assert!(running.begin(&alice, "0").is_err_and(|error| matches!(error, Error::Cancelled)));
        assert!(!running.cancel(&alice, "one more"), "there is no room, and that is said");
        assert!(running.cancel(&alice, "0"), "again");
        assert!(running.cancel(&bob, "one more"), "another user has room");
        let used = running.begin(&alice, "one more").expect("it was not cancelled");
        assert!(running.cancel(&alice, "one more") && used.is_cancelled());
        let expired = Instant::now() - Duration::from_secs(1);
        running.lock().cancelled.values_mut().flat_map(HashMap::values_mut).for_each(|until| *until = expired);
        assert!(running.cancel(&alice, "later") && running.cancel(&carol, "later"));
        assert_eq!(running.lock().cancelled.values().map(HashMap::len).sum::<usize>(), 2);
    }
}
