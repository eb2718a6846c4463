//! Answers of exchanges that wait on disk for their reader.
//!
//! A client may send all of its rows before it reads any of the answer. HTTP/2's windows hold some megabytes of that answer;
//! beyond them the input would wait for the output, and the output for a reader that never comes. What is made meanwhile goes
//! into a file without a name, which is gone with its last descriptor, and comes back from there once the client reads.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::{
    config::{Config, Size, Span},
    machine,
    telemetry::Metrics,
};

/// What is written and read at once.
const CHUNK: usize = 1024 * 1024;

/// The part of a volume that is left to others: the database's own log may be there.
const KEPT_FREE: u64 = 20;

/// What the answers of a server may hold on disk together. Cheap to clone.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    limit: Size,
    patience: Span,
    used: AtomicU64,
    metrics: Metrics,
}

impl Spool {
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        let (directory, exchange) = (config.database.spool_directory(), &config.exchange);
        let (limit, patience) = (exchange.buffer_disk, exchange.buffer_timeout);
        Self(Arc::new(Inner { directory, limit, patience, used: AtomicU64::new(0), metrics }))
    }

    pub(super) fn limit(&self) -> Size {
        self.0.limit
    }

    /// How long a client may take nothing while what waits for it has no room on disk.
    pub(super) fn patience(&self) -> Span {
        self.0.patience
    }

    /// Takes room for so many bytes, if there is any.
    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.0.limit.0);
        let taken = self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if taken {
            self.0.metrics.exchange_buffer.add(bytes as i64);
        }
        taken
    }

    fn give_back(&self, bytes: u64) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        self.0.metrics.exchange_buffer.sub(bytes as i64);
    }
}

/// What waits of one answer, in order.
pub(super) struct Spooled {
    spool: Spool,
    file: Option<Arc<File>>,
    /// Of the file: what has been read, and what has been written.
    read: u64,
    written: u64,
    /// What of the server's room this answer has.
    taken: u64,
    /// What is not in the file; behind it.
    fresh: VecDeque<Bytes>,
    fresh_bytes: usize,
    writing: Option<JoinHandle<io::Result<Arc<File>>>>,
    /// How many bytes it writes.
    under_way: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

/// Why nothing more may wait.
#[derive(Debug)]
pub(super) enum Full {
    /// All room on disk is taken.
    Limit,
    Failed(io::Error),
}

impl Spooled {
    pub(super) fn new(spool: &Spool) -> Self {
        Self {
            spool: spool.clone(),
            file: None,
            read: 0,
            written: 0,
            taken: 0,
            fresh: VecDeque::new(),
            fresh_bytes: 0,
            writing: None,
            under_way: 0,
            reading: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.read == self.written && self.fresh.is_empty() && self.writing.is_none() && self.reading.is_none()
    }

    /// Adds to what waits; it is written by [`Self::poll_room`].
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.fresh_bytes += bytes.len();
        self.fresh.push_back(bytes);
    }

    /// Completes when there is room for more.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Full>> {
        loop {
            if let Err(error) = ready!(self.poll_written(cx)) {
                // A part is missing; nothing behind it may follow.
                (self.fresh, self.fresh_bytes) = (VecDeque::new(), 0);
                return Poll::Ready(Err(Full::Failed(error)));
            }
            if self.fresh_bytes < CHUNK {
                return Poll::Ready(Ok(()));
            }
            if !self.spool.take(self.fresh_bytes as u64) {
                return Poll::Ready(Err(Full::Limit));
            }
            self.taken += self.fresh_bytes as u64;
            self.under_way = std::mem::take(&mut self.fresh_bytes) as u64;
            let (chunk, at, file) = (std::mem::take(&mut self.fresh), self.written, self.file.clone());
            let directory = self.spool.0.directory.clone();
            self.writing = Some(tokio::task::spawn_blocking(move || write(file, &directory, chunk, at)));
        }
    }

    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(writing) = &mut self.writing else { return Poll::Ready(Ok(())) };
        let outcome = ready!(Pin::new(writing).poll(cx));
        self.writing = None;
        let under_way = std::mem::take(&mut self.under_way);
        self.file = Some(outcome.map_err(io::Error::other)??);
        self.written += under_way;
        Poll::Ready(Ok(()))
    }

    /// The next that waits; nothing where that is all.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let outcome = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                let bytes = outcome.map_err(io::Error::other)??;
                self.read += bytes.len() as u64;
                if self.read == self.written && self.writing.is_none() {
                    self.forget();
                }
                return Poll::Ready(Ok(Some(bytes)));
            }
            if self.read == self.written
                && let Err(error) = ready!(self.poll_written(cx))
            {
                (self.fresh, self.fresh_bytes) = (VecDeque::new(), 0);
                return Poll::Ready(Err(error));
            }
            if self.read < self.written {
                let length = usize::try_from(self.written - self.read).map_or(CHUNK, |left| left.min(CHUNK));
                let (file, at) = (self.file.clone(), self.read);
                let file = file.ok_or_else(|| io::Error::other("what was written is in no file"))?;
                self.reading = Some(tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
                }));
                continue;
            }
            let next = self.fresh.pop_front();
            self.fresh_bytes -= next.as_ref().map_or(0, Bytes::len);
            return Poll::Ready(Ok(next));
        }
    }

    /// All of the file has been read.
    fn forget(&mut self) {
        (self.file, self.read, self.written) = (None, 0, 0);
        self.spool.give_back(std::mem::take(&mut self.taken));
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        self.forget();
    }
}

fn write(file: Option<Arc<File>>, directory: &Path, chunk: VecDeque<Bytes>, mut at: u64) -> io::Result<Arc<File>> {
    let file = match file {
        Some(file) => file,
        None => Arc::new(nameless(directory)?),
    };
    if machine::volume(directory).is_some_and(|volume| volume.free < volume.size / KEPT_FREE) {
        return Err(io::Error::new(ErrorKind::StorageFull, "the volume of database.temp_directory is nearly full"));
    }
    for bytes in chunk {
        file.write_all_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(file)
}

/// A file that nobody finds, and that is gone when the process ends, in whatever way.
fn nameless(directory: &Path) -> io::Result<File> {
    std::fs::create_dir_all(directory)?;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
            return Ok(File::from(file));
        }
    }
    // Not every file system has files without a name.
    let number = getrandom::u64().map_err(io::Error::other)?;
    let path = directory.join(format!(".mallard-spool-{number:016x}"));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
