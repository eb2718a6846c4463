//! Connections that close without losing what is still on its way, and whose activity a stop can watch.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::ready;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use crate::telemetry::Metrics;

/// How long a connection that is closing still listens for its peer's end.
const LINGER: Duration = Duration::from_secs(5);

/// Reads and writes on all connections of one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Activity {
    count: Arc<AtomicU64>,
    metrics: Metrics,
}

impl Activity {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { count: Arc::default(), metrics }
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Completes once nothing has been read or written for `quiet`.
    pub(super) async fn settled(&self, quiet: Duration) {
        loop {
            let before = self.count.load(Ordering::Relaxed);
            tokio::time::sleep(quiet).await;
            if self.count.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    pub(super) fn watch<IO>(&self, io: IO) -> Watched<IO> {
        self.metrics.connections_total.inc();
        self.metrics.connections.inc();
        Watched { io, activity: self.clone(), linger: None }
    }

    fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// One connection.
pub(super) struct Watched<IO> {
    io: IO,
    activity: Activity,
    linger: Option<Pin<Box<Sleep>>>,
}

impl<IO> Drop for Watched<IO> {
    fn drop(&mut self) {
        self.activity.metrics.connections.dec();
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_read(cx, buffer);
        if outcome.is_ready() {
            self.activity.add();
        }
        outcome
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, bytes);
        if outcome.is_ready() {
            self.activity.add();
        }
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        if outcome.is_ready() {
            self.activity.add();
        }
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Sends the end, then reads what the peer still says until it ends, too. Closing a socket with unread input (a late
    /// WINDOW_UPDATE is enough) resets it, and the reset throws away what the kernel has not delivered yet.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut discarded = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            match Pin::new(&mut this.io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => this.activity.add(),
                // The peer's end, or a connection that is broken anyway.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
