//! Whose turn it is to have a password checked.
//!
//! Checking one takes tens of milliseconds of a core, so few are checked at once and the others wait in a line: each
//! address in turn, and none takes the places of others. Knows no password and no answer.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Passwords that are checked at once: argon2 takes 19 MiB and a core for each.
const AT_ONCE: usize = 2;

/// Who waits together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// Everybody from there.
    Address(Option<IpAddr>),
    /// A user who has logged in from there before: not together with whoever else is there.
    Known(u64, Option<IpAddr>),
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns(Arc<Mutex<Line>>);

struct Line {
    free: usize,
    /// Who may wait, all together.
    places: usize,
    waiting: HashMap<Class, VecDeque<oneshot::Sender<Turn>>>,
    /// Those that wait, from whose turn is next to whose was last.
    order: VecDeque<Class>,
}

/// The right to check one password; given back when dropped.
pub(super) struct Turn(Option<Turns>);

impl Turns {
    /// So many may be under way, those whose password is being checked included.
    pub(super) fn new(under_way: usize) -> Self {
        let line = Line {
            free: AT_ONCE,
            places: under_way.saturating_sub(AT_ONCE),
            waiting: HashMap::new(),
            order: VecDeque::new(),
        };
        Self(Arc::new(Mutex::new(line)))
    }

    /// Waits for a turn; `None` where there is no place to wait, or where it had to be given to a class that had fewer.
    pub(super) async fn take(&self, class: Class) -> Option<Turn> {
        let turn = {
            let mut line = self.line();
            if line.free > 0 {
                line.free -= 1;
                return Some(Turn(Some(self.clone())));
            }
            line.queue(class)?
        };
        turn.await.ok()
    }

    /// Those that wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.line().waiting.values().map(VecDeque::len).sum()
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn queue(&mut self, class: Class) -> Option<oneshot::Receiver<Turn>> {
        if self.is_full() {
            // Some may have left without a word.
            self.waiting.retain(|_, waiters| {
                waiters.retain(|waiter| !waiter.is_closed());
                !waiters.is_empty()
            });
            let Self { waiting, order, .. } = self;
            order.retain(|class| waiting.contains_key(class));
        }
        if self.is_full() {
            self.make_room(class)?;
        }
        let (turn, received) = oneshot::channel();
        let waiters = self.waiting.entry(class).or_default();
        if waiters.is_empty() {
            self.order.push_back(class);
        }
        waiters.push_back(turn);
        Some(received)
    }

    fn is_full(&self) -> bool {
        self.waiting.values().map(VecDeque::len).sum::<usize>() >= self.places
    }

    /// The newest of the class with the most leaves, if `class` has fewer; a known one comes before others with as many.
    fn make_room(&mut self, class: Class) -> Option<()> {
        let is_known = |class: &Class| matches!(class, Class::Known(..));
        let own = self.waiting.get(&class).map_or(0, VecDeque::len) + 1;
        let most = self.waiting.iter().map(|(class, waiters)| (waiters.len(), !is_known(class), *class));
        let (most, unknown, longest) = most.max_by_key(|(count, unknown, _)| (*count, *unknown))?;
        if most < own || (most == own && !(unknown && is_known(&class))) {
            return None;
        }
        let waiters = self.waiting.get_mut(&longest)?;
        waiters.pop_back();
        if waiters.is_empty() {
            self.waiting.remove(&longest);
            self.order.retain(|class| *class != longest);
        }
        Some(())
    }

    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let class = self.order.pop_front()?;
        let waiters = self.waiting.get_mut(&class)?;
        let next = waiters.pop_front();
        if waiters.is_empty() {
            self.waiting.remove(&class);
        } else {
            self.order.push_back(class);
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        let mut line = turns.line();
        let mut turn = Turn(Some(turns.clone()));
        while let Some(next) = line.next() {
            match next.send(turn) {
                Ok(()) => return,
                // That one has left.
                Err(back) => turn = back,
            }
        }
        // Not given back a second time, under the lock that is held here.
        turn.0 = None;
        line.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    type Waiting = Pin<Box<dyn Future<Output = Option<Turn>> + Send>>;

    fn address(last: u8) -> Class {
        Class::Address(Some(IpAddr::from([10, 0, 0, last])))
    }

    fn poll(waiting: &mut Waiting) -> Poll<Option<Turn>> {
        waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Has taken its place in the line.
    fn wait(turns: &Turns, class: Class) -> Waiting {
        let turns = turns.clone();
        let mut waiting: Waiting = Box::pin(async move { turns.take(class).await });
        assert!(poll(&mut waiting).is_pending());
        waiting
    }

    fn take(turns: &Turns) -> Turn {
        let turns = turns.clone();
        let mut waiting: Waiting = Box::pin(async move { turns.take(address(0)).await });
        match poll(&mut waiting) {
            Poll::Ready(Some(turn)) => turn,
            _ => panic!("there is no turn"),
        }
    }

    fn has_turn(waiting: &mut Waiting) -> Option<Turn> {
        match poll(waiting) {
            Poll::Ready(turn) => Some(turn.expect("it was not sent away")),
            Poll::Pending => None,
        }
    }

    #[test]
    fn two_at_once_and_each_address_in_turn() {
        let turns = Turns::new(64);
        let (first, second) = (take(&turns), take(&turns));
        let mut crowd: Vec<Waiting> = (0..10).map(|_| wait(&turns, address(1))).collect();
        let mut other = wait(&turns, address(2));
        drop(first);
        let of_crowd = has_turn(&mut crowd[0]).expect("who came first");
        assert!(has_turn(&mut other).is_none());
        drop(of_crowd);
        let of_other = has_turn(&mut other).expect("not behind the whole crowd");
        // Who leaves the line is passed over.
        drop(crowd.remove(1));
        drop((second, of_other));
        assert!(has_turn(&mut crowd[1]).is_some());
        drop(crowd);
        assert_eq!(turns.line().free, 2, "every turn is back");
    }

    #[test]
    fn full_line_sends_the_crowd_away_and_not_the_few() {
        let turns = Turns::new(2 + 4);
        let _held = (take(&turns), take(&turns));
        let mut crowd: Vec<Waiting> = (0..4).map(|_| wait(&turns, address(1))).collect();
        let mut refused: Waiting = Box::pin({
            let turns = turns.clone();
            async move { turns.take(address(1)).await }
        });
        assert!(matches!(poll(&mut refused), Poll::Ready(None)), "its address has all places");
        let _others = (wait(&turns, address(2)), wait(&turns, address(3)));
        assert!(matches!(poll(&mut crowd[3]), Poll::Ready(None)), "the newest of the crowd left");
        assert!(poll(&mut crowd[0]).is_pending());
        // One each from four addresses, and still a known one finds a place.
        let _fourth = wait(&turns, address(4));
        let _known = wait(&turns, Class::Known(7, None));
        assert_eq!(turns.waiting(), 4);
    }
}
