//! One connection's life: what it has done so far, when it is overdue, and the tasks that answer its streams.
//!
//! It knows nothing of what is asked; it sees bytes, streams that begin and end, and whether anyone takes an answer.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::task::AtomicWaker;
use hyper::rt::Executor;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::admission::Admitted;
use crate::{
    config::{Config, Span},
    telemetry::Metrics,
    wire::{Answer, Spool},
};

/// HTTP/2's preface and the head of the SETTINGS frame that must follow it (RFC 9113, 3.4).
const PREFACE: u64 = 24 + 9;

/// Of a connection on which nobody has shown who they are, so much is read and no more. Its windows would allow for
/// megabytes, which HTTP/2 keeps while passwords are checked.
const UNKNOWN_BYTES: u64 = 128 * 1024;

/// Cheap to clone; travels in the extensions of the connection's requests.
#[derive(Clone)]
pub(super) struct Link(Arc<Inner>);

struct Inner {
    patience: Patience,
    began: Instant,
    admitted: Admitted,
    read: AtomicU64,
    /// The reader that waits for an identity.
    waiting: AtomicWaker,
    streams: Mutex<Streams>,
    /// Where answers wait for clients that send before they read.
    spool: Spool,
    metrics: Metrics,
}

struct Streams {
    open: usize,
    /// When the last one ended.
    idle: Instant,
    /// Of the request that hyper has handed over and not begun to answer.
    next: Option<Answer>,
}

/// How long what may take; `None` is for ever.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    handshake: Duration,
    unauthenticated: Option<Duration>,
    idle: Option<Duration>,
    stall: Span,
    /// A peer that reads nothing at all from its socket.
    unread: Option<Duration>,
}

impl Patience {
    pub(super) fn new(config: &Config) -> Self {
        let (limits, wire) = (&config.limits, &config.wire);
        Self {
            handshake: limits.handshake_timeout.0,
            unauthenticated: limits.unauthenticated_lifetime.limit(),
            idle: limits.idle_timeout.limit(),
            stall: limits.stall_timeout,
            // As long as a PING may remain without its answer, which such a peer does not even get to see.
            unread: wire.keepalive_interval.limit().map(|interval| interval + wire.keepalive_timeout.0),
        }
    }

    /// The kernel gives up as early on a peer that has vanished with bytes on their way to it.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "others have no such option"))]
    pub(super) fn apply(&self, io: &TcpStream) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(unread) = self.unread {
            let millis = u32::try_from(unread.as_millis()).unwrap_or(u32::MAX);
            rustix::net::sockopt::set_tcp_user_timeout(io, millis)?;
        }
        Ok(())
    }
}

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Overdue {
    /// Nothing that could be HTTP/2 came in time, or others need the room: it is not worth a word.
    Silent(&'static str),
    /// It is told that it ends.
    Leaving(&'static str),
}

impl Link {
    pub(super) fn new(patience: Patience, admitted: Admitted, spool: Spool, metrics: Metrics) -> Self {
        let began = Instant::now();
        let streams = Mutex::new(Streams { open: 0, idle: began, next: None });
        let (read, waiting) = (AtomicU64::new(0), AtomicWaker::new());
        Self(Arc::new(Inner { patience, began, admitted, read, waiting, streams, spool, metrics }))
    }

    /// A call has passed the auth layer.
    pub(super) fn authenticated(&self) {
        if self.0.admitted.authenticated() {
            self.0.waiting.wake();
        }
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.0.admitted.is_authenticated()
    }

    /// Completes when the connection has to end.
    pub(super) async fn overdue(&self) -> Overdue {
        tokio::select! {
            () = self.0.admitted.evicted() => Overdue::Silent("evicted"),
            overdue = self.timed_out() => overdue,
        }
    }

    async fn timed_out(&self) -> Overdue {
        let Patience { handshake, unauthenticated, idle, .. } = self.0.patience;
        tokio::time::sleep_until(self.0.began + handshake).await;
        if self.0.read.load(Ordering::Relaxed) < PREFACE {
            return Overdue::Silent("handshake");
        }
        if let Some(lifetime) = unauthenticated
            && !self.is_authenticated()
        {
            tokio::time::sleep_until(self.0.began + lifetime).await;
            if !self.is_authenticated() {
                return Overdue::Leaving("unauthenticated");
            }
        }
        let Some(limit) = idle else { return std::future::pending().await };
        loop {
            let since = self.idle_since();
            let until = since.unwrap_or_else(Instant::now) + limit;
            tokio::time::sleep_until(until).await;
            // Otherwise there was a stream meanwhile.
            if since.is_some() && since == self.idle_since() {
                return Overdue::Leaving("idle");
            }
        }
    }

    /// Since when no stream is open.
    fn idle_since(&self) -> Option<Instant> {
        let streams = self.streams();
        (streams.open == 0).then_some(streams.idle)
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next request's answer and the task that sends it will share.
    pub(super) fn answer(&self) -> Answer {
        let answer = Answer::spooling(self.0.spool.clone());
        self.streams().next = Some(answer.clone());
        answer
    }

    pub(super) fn watch<IO>(&self, io: IO) -> Attended<IO> {
        Attended { io, link: self.clone(), blocked: None, timer: None }
    }
}

/// hyper hands over a request to its service and, right after that, what answers it to this executor.
impl<F> Executor<F> for Link
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let answer = {
            let mut streams = self.streams();
            streams.open += 1;
            streams.next.take()
        };
        let open = Open(self.clone());
        tokio::spawn(async move {
            match answer {
                Some(answer) => open.0.send(stream, &answer).await,
                None => stream.await,
            }
        });
    }
}

/// One open stream.
struct Open(Link);

impl Drop for Open {
    fn drop(&mut self) {
        let mut streams = self.0.streams();
        streams.open -= 1;
        streams.idle = Instant::now();
    }
}

impl Link {
    /// Answers a stream as long as its client takes something now and then. Where it does not, what makes the answer ends,
    /// with a status for a client that comes back; one that stays away as long again finds its stream reset.
    async fn send(&self, stream: impl Future<Output = ()>, answer: &Answer) {
        let patience = self.0.patience.stall.limit();
        let mut stream = pin!(stream);
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        let mut failed = false;
        std::future::poll_fn(|cx| {
            loop {
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let ahead = answer.poll_ahead(cx);
                // Nothing was asked of the answer since then, because the last of it has not left yet.
                let Some(since) = answer.untaken_since() else { return Poll::Pending };
                let stalled = patience.map(|patience| since + if failed { 2 * patience } else { patience });
                if stalled.is_some_and(|stalled| Instant::now() >= stalled) {
                    if failed {
                        return Poll::Ready(());
                    }
                    failed = true;
                    answer.stalled(self.0.patience.stall);
                    continue;
                }
                let Some(until) = ahead.into_iter().chain(stalled).min() else { return Poll::Pending };
                if timer.deadline() != until {
                    timer.as_mut().reset(until);
                }
                ready!(timer.as_mut().poll(cx));
            }
        })
        .await;
    }
}

/// The connection's bytes, above TLS.
pub(super) struct Attended<IO> {
    io: IO,
    link: Link,
    /// Since when the peer has taken nothing that it was to take.
    blocked: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<IO> Attended<IO> {
    /// Fails a write that has made no progress for too long. A peer that is stopped, or gone without a word, would keep its
    /// streams for ever: an end that must be written first is never written.
    fn unread<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(patience) = self.link.0.patience.unread else { return written };
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let until = *self.blocked.get_or_insert_with(Instant::now) + patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= until {
                self.link.0.metrics.connection_closed("unread");
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")));
            }
            timer.as_mut().reset(until);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Attended<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let link = &this.link.0;
        if link.read.load(Ordering::Relaxed) >= UNKNOWN_BYTES && !this.link.is_authenticated() {
            link.waiting.register(cx.waker());
            // It may have come in between.
            if !this.link.is_authenticated() {
                return Poll::Pending;
            }
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.io).poll_read(cx, buffer);
        link.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        outcome
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Attended<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.unread(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.unread(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.unread(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
