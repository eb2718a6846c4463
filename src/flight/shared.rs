//! Results with several endpoints: several DoGets drain one statement together, each batch going to whoever asks first.
//!
//! The first DoGet of a result's tickets starts its statement, once. No rows belong to a place beforehand, so one reader may
//! take them all, and whoever comes after the end gets none. A reader that leaves before its end has taken rows with it:
//! then all the others end in an error. Nothing here knows SQL or where the rows come from.

use std::{
    collections::HashMap,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::{Stream, StreamExt, future::poll_fn};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Place, TicketClaims},
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// Results that are known. Those that have ended hold a schema or an error, so that tickets that come late are answered.
const KNOWN: usize = 4096;

/// The shared results of one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct SharedResults(Arc<Inner>);

struct Inner {
    known: Mutex<Known>,
    /// One permit for each statement that may run.
    open: Arc<Semaphore>,
    limit: usize,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<String, Arc<SharedResult>>,
    /// Results whose tickets expire until then may have been forgotten, and are not started again.
    forgotten: u64,
}

impl SharedResults {
    pub(super) fn new(limit: usize) -> Self {
        let open = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Inner { known: Mutex::default(), open, limit }))
    }

    /// The rows that this place gets. `starting` is used by the first of the result's places.
    pub(super) async fn read(
        &self,
        claims: &TicketClaims,
        place: &Place,
        starting: impl Future<Output = Result<RecordBatchStream>>,
    ) -> Result<RecordBatchStream> {
        let (reader, permit) = self.open(claims, place)?;
        if let Some(permit) = permit {
            reader.result.start(starting, permit).await;
        }
        let schema = poll_fn(|cx| reader.result.poll_schema(reader.index, cx)).await?;
        Ok(RecordBatchStream::new(schema, reader))
    }

    /// Takes the place, once; with a permit where it is the result's first.
    fn open(&self, claims: &TicketClaims, place: &Place) -> Result<(Reader, Option<OwnedSemaphorePermit>)> {
        let mut known = lock(&self.0.known);
        let (result, permit) = match known.by_id.get(&claims.id) {
            Some(result) => (result.clone(), None),
            None if claims.exp <= known.forgotten => {
                return Err(Error::NotFound("the ticket's result is no longer known; ask GetFlightInfo again".into()));
            }
            None => {
                let permit = self.0.open.clone().try_acquire_owned().map_err(|_| Error::Limit {
                    what: format!("{} shared results are open already", self.0.limit),
                    key: "limits.shared_results",
                })?;
                known.make_room();
                let result = SharedResult::new(claims, place.of);
                known.by_id.insert(claims.id.clone(), result.clone());
                (result, Some(permit))
            }
        };
        result.take(place.index)?;
        Ok((Reader { result, index: place.index, ended: false }, permit))
    }

    /// Ends the result for all its readers, in CANCELLED; whether there was something to end, where it has begun.
    pub(super) fn cancel(&self, id: &str) -> Option<bool> {
        let result = lock(&self.0.known).by_id.get(id).cloned();
        result.map(|result| result.cancel(Error::Cancelled))
    }
}

impl Known {
    /// Forgets the older half of the results that have ended.
    fn make_room(&mut self) {
        if self.by_id.len() < KNOWN {
            return;
        }
        let mut ended: Vec<u64> =
            self.by_id.values().filter(|result| !result.is_open()).map(|result| result.exp).collect();
        ended.sort_unstable();
        if let Some(&middle) = ended.get(ended.len() / 2) {
            self.by_id.retain(|_, result| result.exp > middle || result.is_open());
            self.forgotten = self.forgotten.max(middle);
        }
    }
}

// === SharedResult ===

struct SharedResult {
    /// When its tickets expire.
    exp: u64,
    state: Mutex<State>,
    waiting: Arc<Waiting>,
    /// Cancelled when it has ended.
    over: CancellationToken,
}

struct State {
    /// The places whose tickets were used.
    taken: Vec<bool>,
    phase: Phase,
}

enum Phase {
    Starting,
    Draining(RecordBatchStream),
    Drained(SchemaRef),
    Failed(Error),
}

impl SharedResult {
    fn new(claims: &TicketClaims, places: usize) -> Arc<Self> {
        let result = Arc::new(Self {
            exp: claims.exp,
            state: Mutex::new(State { taken: vec![false; places], phase: Phase::Starting }),
            waiting: Arc::new(Waiting(Mutex::new(vec![None; places]))),
            over: CancellationToken::new(),
        });
        let (expiring, over, left) = (Arc::downgrade(&result), result.over.clone(), claims.left());
        tokio::spawn(async move {
            let expired = over.run_until_cancelled(tokio::time::sleep(left)).await.is_some();
            if let Some(result) = expiring.upgrade().filter(|_| expired) {
                result.expire();
            }
        });
        result
    }

    fn take(&self, place: usize) -> Result<()> {
        let mut state = lock(&self.state);
        let taken =
            state.taken.get_mut(place).ok_or_else(|| Error::invalid("the ticket's place is none of its result's"))?;
        if mem::replace(taken, true) {
            return Err(Error::Spent(format!(
                "the ticket of endpoint {place} was used already, and its rows are read once; ask GetFlightInfo again"
            )));
        }
        Ok(())
    }

    /// The permit is given back when the statement has ended.
    async fn start(&self, starting: impl Future<Output = Result<RecordBatchStream>>, permit: OwnedSemaphorePermit) {
        let started = self.over.run_until_cancelled(starting).await.unwrap_or(Err(Error::Cancelled));
        match started {
            Ok(rows) => self.turn(Phase::Draining(rows.holding(permit)), |phase| matches!(phase, Phase::Starting)),
            Err(error) => self.fail(error),
        }
    }

    fn poll_schema(&self, place: usize, cx: &mut Context<'_>) -> Poll<Result<SchemaRef>> {
        self.waiting.add(place, cx.waker());
        match &lock(&self.state).phase {
            Phase::Starting => Poll::Pending,
            Phase::Draining(rows) => Poll::Ready(Ok(rows.schema())),
            Phase::Drained(schema) => Poll::Ready(Ok(schema.clone())),
            Phase::Failed(error) => Poll::Ready(Err(error.clone())),
        }
    }

    fn poll_batch(&self, place: usize, cx: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        // Before the rows are asked: who has none may be woken at once.
        self.waiting.add(place, cx.waker());
        let mut state = lock(&self.state);
        let end = match &mut state.phase {
            Phase::Starting => return Poll::Pending,
            Phase::Drained(_) => return Poll::Ready(None),
            Phase::Failed(error) => return Poll::Ready(Some(Err(error.clone()))),
            Phase::Draining(rows) => {
                // A batch wakes all who wait. One of them alone might not come: its HTTP/2 stream may have no room.
                let waker = Waker::from(self.waiting.clone());
                match ready!(rows.poll_next_unpin(&mut Context::from_waker(&waker))) {
                    Some(Ok(batch)) => return Poll::Ready(Some(Ok(batch))),
                    Some(Err(error)) => Phase::Failed(error),
                    None => Phase::Drained(rows.schema()),
                }
            }
        };
        drop(state);
        self.turn(end, |phase| matches!(phase, Phase::Draining(_)));
        self.poll_batch(place, cx)
    }

    /// The first failure stands. It may come after the last row, for those who have not been told of the end yet.
    fn fail(&self, error: Error) {
        self.turn(Phase::Failed(error), |phase| !matches!(phase, Phase::Failed(_)));
    }

    fn cancel(&self, error: Error) -> bool {
        let open = self.is_open();
        if open {
            self.fail(error);
        }
        open
    }

    /// Places that nobody has taken until now stay empty, and a reader that waits for them would hold the statement.
    fn expire(&self) {
        if lock(&self.state).taken.contains(&false) {
            self.cancel(Error::Abandoned(
                "the result's tickets expired (auth.token_ttl) before all its endpoints were read; ask GetFlightInfo again"
                    .into(),
            ));
        }
    }

    fn is_open(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Starting | Phase::Draining(_))
    }

    /// Enters a phase from one that allows it, and tells all readers.
    fn turn(&self, next: Phase, allowed: impl FnOnce(&Phase) -> bool) {
        let mut state = lock(&self.state);
        if !allowed(&state.phase) {
            drop(state);
            return;
        }
        let before = mem::replace(&mut state.phase, next);
        let open = matches!(state.phase, Phase::Starting | Phase::Draining(_));
        drop(state);
        // Rows that are left end their statement, which is done without the lock.
        drop(before);
        if !open {
            self.over.cancel();
        }
        self.waiting.wake_all();
    }
}

/// The wakers of those who wait, by place.
struct Waiting(Mutex<Vec<Option<Waker>>>);

impl Waiting {
    fn add(&self, place: usize, waker: &Waker) {
        if let Some(slot) = lock(&self.0).get_mut(place) {
            *slot = Some(waker.clone());
        }
    }

    fn wake_all(&self) {
        let woken: Vec<Waker> = lock(&self.0).iter_mut().filter_map(Option::take).collect();
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }
}

// === Reader ===

/// One place, from when its ticket is used until its stream is dropped.
struct Reader {
    result: Arc<SharedResult>,
    index: usize,
    ended: bool,
}

impl Stream for Reader {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = ready!(self.result.poll_batch(self.index, cx));
        self.ended = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.ended {
            self.result.fail(Error::Abandoned(format!(
                "the reader of endpoint {} left before its end, and its rows with it; ask GetFlightInfo again",
                self.index
            )));
        }
    }
}

/// The sections are short and leave the data whole, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::Schema;

    use super::*;
    use crate::{
        access::Rights,
        auth::{Authenticator, Identity},
        config::Config,
        telemetry::Metrics,
    };

    #[tokio::test]
    async fn forgotten_result_is_not_started_again() {
        let identity = Identity::from(Rights::all("alice"));
        let tickets = Authenticator::new(&Config::default(), Metrics::unregistered()).unwrap();
        // The claims of a new result's second ticket, which expires a while from now.
        let claims = |later: u64| {
            let (made, _) = tickets.tickets(&identity, "SELECT 1", None, 2).unwrap();
            let mut claims = tickets.read_ticket(&identity, &made[1]).unwrap().unwrap();
            claims.exp += later;
            claims
        };
        let results = SharedResults::new(1);
        let read = async |claims: &TicketClaims, index: usize| {
            let mut place = claims.place.clone().unwrap();
            place.index = index;
            let empty = RecordBatchStream::from_batches(Arc::new(Schema::empty()), Vec::new());
            let rows = results.read(claims, &place, std::future::ready(Ok(empty))).await?;
            rows.collect::<Vec<_>>().await.into_iter().collect::<Result<Vec<_>>>()
        };
        let (first, unused) = (claims(0), claims(10));
        read(&first, 0).await.unwrap();
        for later in 1..KNOWN as u64 {
            read(&claims(later), 0).await.unwrap();
        }
        read(&first, 1).await.expect("it is still known");
        let last = claims(KNOWN as u64);
        read(&last, 0).await.unwrap();
        assert!(lock(&results.0.known).by_id.len() < KNOWN);
        for refused in [read(&first, 0).await, read(&unused, 0).await] {
            assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
        }
        read(&last, 1).await.expect("the younger half is known");
        assert!(matches!(read(&last, 0).await, Err(Error::Spent(_))));
    }
}
