//! Files that are read again while the server runs: certificates, users, keys.
//!
//! A thread of its own looks at them every second, by what their paths lead to, so that a swapped symlink (Kubernetes) is
//! a change like any other. It does not know what is in them: whoever registers brings the function that reads them, and
//! that keeps its old state where the new is broken.

use std::{
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    telemetry::Metrics,
};

/// How often the files are looked at. A change is taken once two looks agree, so that a pair that is being written is
/// not read half way.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reads files again when they change, or when it is told to. Cheap to clone; the last one that is dropped ends it.
#[derive(Clone)]
pub struct Reloads(Sender<Order>);

enum Order {
    Watch(Watched),
    Reload,
}

/// Files, and what they were like when this was made: before they were read, so that no change is missed.
pub struct Files {
    paths: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
}

/// What differs once a file was written or replaced; `None` in its place where there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

struct Watched {
    what: &'static str,
    /// As they were when they were last read.
    files: Files,
    seen: Vec<Option<Stamp>>,
    reload: Box<dyn FnMut() -> Result<()> + Send>,
}

impl Reloads {
    pub fn start(metrics: Metrics) -> Result<Self> {
        let (orders, received) = channel();
        let work = move || run(&received, &metrics);
        std::thread::Builder::new().name("reload".into()).spawn(work).map_err(Error::internal)?;
        Ok(Self(orders))
    }

    /// From now on `reload` is called when one of `files` has changed, on a thread that may block. `what` is the metric's
    /// label: `certificate`, `users` or `keys`.
    pub fn watch(&self, what: &'static str, files: Files, reload: impl FnMut() -> Result<()> + Send + 'static) {
        if files.paths.is_empty() {
            return;
        }
        let seen = files.stamps.clone();
        // The thread lives as long as there is a sender.
        let _ = self.0.send(Order::Watch(Watched { what, files, seen, reload: Box::new(reload) }));
    }

    /// Reads everything again, changed or not.
    pub fn reload(&self) {
        let _ = self.0.send(Order::Reload);
    }
}

impl Files {
    pub fn now(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut files = Self { paths: paths.into_iter().collect(), stamps: Vec::new() };
        files.stamps = files.look();
        files
    }

    fn look(&self) -> Vec<Option<Stamp>> {
        let stamp = |path: &PathBuf| {
            let file = std::fs::metadata(path).ok()?;
            Some(Stamp {
                file: (file.dev(), file.ino()),
                size: file.size(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            })
        };
        self.paths.iter().map(stamp).collect()
    }
}

impl Watched {
    fn has_changed(&mut self) -> bool {
        let now = self.files.look();
        let settled = now == self.seen;
        self.seen = now;
        settled && self.seen != self.files.stamps
    }

    fn reload(&mut self, metrics: &Metrics) {
        self.files.stamps = self.files.look();
        let outcome = (self.reload)();
        metrics.reloaded(self.what, outcome.is_ok());
        match outcome {
            Ok(()) => tracing::info!(what = self.what, "read again"),
            Err(error) => tracing::error!(what = self.what, %error, "refused; what was there before stays in use"),
        }
    }
}

fn run(orders: &Receiver<Order>, metrics: &Metrics) {
    let mut all: Vec<Watched> = Vec::new();
    loop {
        let order = match all.is_empty() {
            true => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => orders.recv_timeout(INTERVAL),
        };
        match order {
            Ok(Order::Watch(watched)) => all.push(watched),
            Ok(Order::Reload) if all.is_empty() => tracing::info!("asked to reload: no file can be read again"),
            Ok(Order::Reload) => all.iter_mut().for_each(|watched| watched.reload(metrics)),
            Err(RecvTimeoutError::Timeout) => {
                let changed = all.iter_mut().filter_map(|watched| watched.has_changed().then_some(watched));
                changed.for_each(|watched| watched.reload(metrics));
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
