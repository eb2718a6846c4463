//! A bounded number of engine threads, a bounded queue for them, and how a running statement is cancelled.
//!
//! Knows nothing of SQL. Only these threads call DuckDB.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use duckdb::connection::InterruptHandle;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    interruption::{Interruption, Left, Manner},
    reopen::Offenders,
};
use crate::{
    access::{Issuer, Principal, Rights, Role},
    config::{Limits, Span},
    error::{Error, Result},
    machine,
    telemetry::Metrics,
};

/// DuckDB's parser and binder recurse: some 900 chained CTEs overflow the 2 MiB that Rust gives a thread.
const STACK_BYTES: usize = crate::machine::ENGINE_STACK;

/// How long a cancelled statement in an open transaction has to notice by itself. An interrupt after that aborts the
/// transaction. Between two steps of DuckDB's are some milliseconds, on a busy machine some hundred.
const PATIENCE: Duration = Duration::from_secs(2);

/// Statements of admins that run beside `limits.queries`.
const RESERVE: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    slots: Arc<Semaphore>,
    /// Beside them, for admins alone: whatever all others' statements do, also while they are planned and cannot be
    /// interrupted, an admin can look and act.
    reserve: Arc<Semaphore>,
    /// Two more: for statements of health checks and metrics, and for the list of running statements and what the server
    /// stores of its own.
    probes: Arc<Semaphore>,
    aside: Arc<Semaphore>,
    waiting: AtomicUsize,
    users: Mutex<HashMap<Principal, Weak<Share>>>,
    limits: Limits,
    idle: Arc<Mutex<Vec<mpsc::Sender<Job>>>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    running: Mutex<Vec<Weak<CancelState>>>,
    metrics: Metrics,
    offenders: Arc<Offenders>,
}

/// What one user has of the threads and of the queue, while they have any. Who has more statements than their share waits
/// here, and not in front of others.
struct Share {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to use one engine thread.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    _share: Option<(OwnedSemaphorePermit, Arc<Share>)>,
    /// Of a client's statement, which is counted.
    metrics: Option<Metrics>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.queries_running.dec();
        }
    }
}

impl Pool {
    pub(super) fn new(limits: &Limits, metrics: Metrics, offenders: Arc<Offenders>) -> Self {
        metrics.pool_size.set(limits.queries as i64);
        Self {
            slots: Arc::new(Semaphore::new(limits.queries)),
            reserve: Arc::new(Semaphore::new(RESERVE)),
            probes: Arc::new(Semaphore::new(1)),
            aside: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
            users: Mutex::default(),
            limits: limits.clone(),
            idle: Arc::default(),
            threads: Mutex::default(),
            running: Mutex::default(),
            metrics,
            offenders,
        }
    }

    /// Waits for a free engine thread, within the bounds of the queue and of the user's share of both.
    pub(super) async fn slot(&self, rights: &Rights) -> Result<Slot> {
        self.offenders.check(rights)?;
        let share = self.share(rights);
        let free = share.slots.clone().try_acquire_owned().ok();
        // Where nobody logs in, everybody may be one.
        let admin = rights.role >= Role::Admin && !matches!(rights.issuer, Issuer::Anonymous | Issuer::Server);
        let kept = || self.reserve.clone().try_acquire_owned().ok().filter(|_| admin);
        let free = free.and_then(|own| Some((own, self.slots.clone().try_acquire_owned().ok().or_else(kept)?)));
        let (own, permit) = match free {
            Some(both) => both,
            None if self.slots.is_closed() => return Err(Error::Draining),
            None => self.queue(&share, admin).await?,
        };
        self.metrics.queries_running.inc();
        Ok(Slot { _permit: permit, _share: Some((own, share)), metrics: Some(self.metrics.clone()) })
    }

    /// How many engine threads clients' statements have.
    pub(super) fn busy(&self) -> usize {
        self.limits.queries.saturating_sub(self.slots.available_permits())
    }

    fn share(&self, rights: &Rights) -> Arc<Share> {
        let mut users = lock(&self.users);
        if let Some(share) = users.get(&rights.principal()).and_then(Weak::upgrade) {
            return share;
        }
        users.retain(|_, share| share.strong_count() > 0);
        let most = [rights.allowance.queries.unwrap_or(0), self.limits.queries_per_user];
        let most = most.into_iter().find(|most| *most > 0).unwrap_or(usize::MAX).min(self.limits.queries);
        let share = Arc::new(Share { slots: Arc::new(Semaphore::new(most)), waiting: AtomicUsize::new(0) });
        users.insert(rights.principal(), Arc::downgrade(&share));
        share
    }

    /// The engine thread that clients' statements leave free, for what clients may ask the server about itself.
    pub(super) async fn slot_aside(&self) -> Result<Slot> {
        self.slot_of(&self.aside).await
    }

    /// The engine thread that is kept for probes, which no client's call takes.
    pub(super) async fn slot_for_probe(&self) -> Result<Slot> {
        self.slot_of(&self.probes).await
    }

    async fn slot_of(&self, aside: &Arc<Semaphore>) -> Result<Slot> {
        let permit = aside.clone().acquire_owned().await.map_err(|_| Error::Draining)?;
        Ok(Slot { _permit: permit, _share: None, metrics: None })
    }

    async fn queue(&self, share: &Share, admin: bool) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        struct Place<'a>(&'a Pool, &'a Share);
        impl Drop for Place<'_> {
            fn drop(&mut self) {
                self.0.waiting.fetch_sub(1, Ordering::Relaxed);
                self.1.waiting.fetch_sub(1, Ordering::Relaxed);
                self.0.metrics.queries_queued.dec();
            }
        }

        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let own_ahead = share.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.queries_queued.inc();
        let _place = Place(self, share);
        let Limits { queries, queue, queue_timeout, .. } = &self.limits;
        // An admin waits for the reserve, which the others do not.
        if ahead >= *queue && !admin {
            let what = format!("{queries} statements run and {queue} wait already");
            return Err(Error::Limit { what, key: "limits.queue" });
        }
        // A quarter of the queue is for others.
        let own_queue = (queue - queue / 4).max(1);
        if own_ahead >= own_queue {
            let what = format!("{own_queue} statements of this user wait already");
            return Err(Error::Limit { what, key: "limits.queue" });
        }
        let both = async {
            // One's own first: who waits for that is in nobody's way.
            let own = share.slots.clone().acquire_owned().await;
            let slot = match admin {
                true => tokio::select! {
                    biased;
                    slot = self.slots.clone().acquire_owned() => slot,
                    slot = self.reserve.clone().acquire_owned() => slot,
                },
                false => self.slots.clone().acquire_owned().await,
            };
            own.and_then(|own| Ok((own, slot?)))
        };
        match tokio::time::timeout(queue_timeout.0, both).await {
            Ok(both) => both.map_err(|_closed| Error::Draining),
            Err(_elapsed) if share.slots.available_permits() == 0 && self.slots.available_permits() > 0 => {
                let what = format!("none of this user's statements ended within {queue_timeout}");
                Err(Error::Limit { what, key: "limits.queries_per_user" })
            }
            Err(_elapsed) => {
                let what = format!("no engine thread was free within {queue_timeout} ({queries} statements run)");
                Err(Error::Limit { what, key: "limits.queries" })
            }
        }
    }

    /// Runs `job` on an engine thread; `slot` is given back when it ends.
    /// Where no thread can be started for it, it is dropped.
    pub(super) fn run(&self, slot: Slot, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let idle = Arc::downgrade(&self.idle);
        let mut job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            drop(slot);
            if outcome.is_err() {
                tracing::error!("an engine thread panicked; its statement failed");
            }
        });
        let mut waiting = lock(&self.idle);
        while let Some(thread) = waiting.pop() {
            match thread.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(returned)) => job = returned,
            }
        }
        drop(waiting);
        let mut threads = lock(&self.threads);
        // An ended thread keeps its stack mapped until its handle is dropped.
        threads.retain(|thread| !thread.is_finished());
        let name = format!("engine-{}", threads.len());
        let spawned = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || work(job, &idle));
        threads.push(spawned.map_err(machine::no_threads)?);
        Ok(())
    }

    /// Handles that cancel one statement: by a call, at its deadline, when the pool interrupts all, or when dropped.
    pub(super) fn begin(&self) -> (Cancel, CancelOnDrop) {
        self.begin_within(self.limits.statement_timeout)
    }

    /// The same, with a deadline of its own; none where it is zero.
    pub(super) fn begin_within(&self, limit: Span) -> (Cancel, CancelOnDrop) {
        let state = Arc::new(CancelState {
            token: CancellationToken::new(),
            reason: Mutex::default(),
            interruption: Interruption::default(),
            runtime: Handle::current(),
        });
        let mut running = lock(&self.running);
        running.retain(|other| other.strong_count() > 0);
        running.push(Arc::downgrade(&state));
        drop(running);
        let deadline = limit.limit().map(|duration| {
            let state = state.clone();
            tokio::spawn(async move {
                tokio::time::sleep(duration).await;
                cancel(&state, Error::Timeout(limit.to_string()));
            })
        });
        let cancel = Cancel(state);
        (cancel.clone(), CancelOnDrop { cancel, deadline })
    }

    /// No statement starts from now on.
    pub(super) fn close(&self) {
        self.slots.close();
        self.reserve.close();
        self.aside.close();
        self.probes.close();
    }

    pub(super) fn interrupt_all(&self, reason: &Error) {
        for state in lock(&self.running).iter().filter_map(Weak::upgrade) {
            Cancel(state).end_at_once(reason.clone());
        }
    }

    /// Ends the threads, waiting for running statements until `deadline`. Returns whether all ended.
    #[expect(clippy::disallowed_methods, reason = "a thread that may wait asks now and then whether others have ended")]
    pub(super) fn join(&self, deadline: Instant) -> bool {
        loop {
            lock(&self.idle).clear();
            let mut threads = lock(&self.threads);
            threads.retain(|thread| !thread.is_finished());
            if threads.is_empty() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            drop(threads);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// An engine thread: one job after the other until the pool lets go of it or nothing came for a minute.
fn work(first: Job, idle: &Weak<Mutex<Vec<mpsc::Sender<Job>>>>) {
    let mut job = Some(first);
    while let Some(next) = job {
        next();
        let Some(waiting) = idle.upgrade() else { return };
        let (sender, jobs) = mpsc::channel::<Job>();
        lock(&waiting).push(sender);
        drop(waiting);
        job = match jobs.recv_timeout(Duration::from_secs(60)) {
            Ok(next) => Some(next),
            Err(_) => {
                let Some(waiting) = idle.upgrade() else { return };
                // Jobs are sent under this lock: one that came just now is taken, and none comes after `jobs` is gone.
                let _sending = lock(&waiting);
                let last = jobs.try_recv().ok();
                drop(jobs);
                last
            }
        };
    }
}

// === Cancel ===

/// Cancels one statement from any thread.
#[derive(Clone)]
pub(super) struct Cancel(Arc<CancelState>);

struct CancelState {
    token: CancellationToken,
    reason: Mutex<Option<Error>>,
    interruption: Interruption<InterruptHandle>,
    /// Where patience is waited for.
    runtime: Handle,
}

/// Only the first reason is recorded.
fn cancel(state: &Arc<CancelState>, reason: Error) {
    lock(&state.reason).get_or_insert(reason);
    state.token.cancel();
    if state.interruption.cancel() == Left::Insist {
        let late = Arc::downgrade(state);
        state.runtime.spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            if let Some(state) = late.upgrade() {
                state.interruption.insist();
            }
        });
    }
}

impl Cancel {
    /// From now on a cancellation reaches this connection.
    pub(super) fn arm(&self, connection: InterruptHandle, manner: Manner) -> Result<()> {
        self.0.interruption.begin(connection, manner);
        self.check()
    }

    /// From now on a cancellation interrupts the connection at once.
    pub(super) fn arm_at_once(&self) -> Result<()> {
        self.0.interruption.at_once();
        self.check()
    }

    /// A cancellation interrupts nothing from now on: the statement has ended, and its connection may go on. Answers whether
    /// the connection was interrupted, so that what is left of it has to be cleared.
    pub(super) fn disarm(&self) -> bool {
        self.0.interruption.end()
    }

    /// Interrupts what DuckDB's workers still do for the statement, which is about to be closed by its own thread.
    pub(super) fn stop_workers(&self) {
        self.0.interruption.insist();
    }

    /// Starting a statement clears DuckDB's interrupt flag, so this is asked right after each start.
    pub(super) fn check(&self) -> Result<()> {
        if self.0.token.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The first reason stands.
    pub(super) fn end(&self, reason: Error) {
        cancel(&self.0, reason);
    }

    /// The same, without giving it time in a transaction, which is over anyway.
    pub(super) fn end_at_once(&self, reason: Error) {
        self.end(reason);
        self.0.interruption.insist();
    }

    /// Why it was cancelled.
    pub(super) fn reason(&self) -> Option<Error> {
        lock(&self.0.reason).clone()
    }

    pub(super) fn token(&self) -> CancellationToken {
        self.0.token.clone()
    }

    /// Waits on an engine thread for `future`, unless the statement is cancelled meanwhile.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        match wait_unless(&self.0.token, future, None) {
            Waited::For(value) => Ok(value),
            Waited::Cancelled | Waited::LongEnough => Err(Error::Cancelled),
        }
    }

    /// Lets time pass on an engine thread, unless the statement is cancelled meanwhile.
    pub(super) fn rest(&self, duration: Duration) -> Result<()> {
        match wait_unless(&self.0.token, std::future::pending::<()>(), Some(duration)) {
            Waited::Cancelled => Err(Error::Cancelled),
            Waited::For(()) | Waited::LongEnough => Ok(()),
        }
    }

    /// A cancelled statement fails in many ways; what counts is why it was cancelled.
    pub(super) fn explain<T>(&self, outcome: Result<T>) -> Result<T> {
        match (outcome, lock(&self.0.reason).as_ref()) {
            // Of what it has done to the database, its sender is told.
            (Err(error @ (Error::Fatal(_) | Error::Broken(_))), _) => Err(error),
            (Err(_), Some(reason)) => Err(reason.clone()),
            (outcome, _) => outcome,
        }
    }
}

/// What a thread has waited for.
pub(super) enum Waited<T> {
    For(T),
    Cancelled,
    LongEnough,
}

/// Blocks this thread until `future` completes, the token is cancelled, or it was patient enough.
pub(super) fn wait_unless<T>(
    token: &CancellationToken,
    future: impl Future<Output = T>,
    patience: Option<Duration>,
) -> Waited<T> {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut waiting = std::pin::pin!(token.run_until_cancelled(future));
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        match waiting.as_mut().poll(&mut context) {
            Poll::Ready(Some(value)) => return Waited::For(value),
            Poll::Ready(None) => return Waited::Cancelled,
            Poll::Pending => {}
        }
        let Some(deadline) = deadline else {
            std::thread::park();
            continue;
        };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) => std::thread::park_timeout(left),
            None => return Waited::LongEnough,
        }
    }
}

/// Cancels when dropped. Holds the statement's deadline, too.
pub(super) struct CancelOnDrop {
    cancel: Cancel,
    deadline: Option<JoinHandle<()>>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(deadline) = &self.deadline {
            deadline.abort();
        }
        self.cancel.end(Error::Cancelled);
    }
}

/// The sections are short and leave the data whole, so a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
