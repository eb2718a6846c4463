//! The audit log: who did what to which objects, and how it ended, as JSON lines. No SQL text, no literal, no secret.
//!
//! Lines are written by a thread of its own from a bounded queue. A line that finds the queue full, or a file that cannot
//! be written, is counted as lost and never waited for: an audit must not be a way to stop the server.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant, SystemTime},
};

use prometheus::IntCounter;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    printable::escaped,
};

/// Lines that may wait to be written.
const QUEUE: usize = 8192;

/// Lines a second of callers without an identity.
const STRANGERS: u32 = 20;

/// How often the file is looked at: one that was moved away is opened anew.
const LOOK: Duration = Duration::from_secs(1);

/// One thing that happened.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Event<'a> {
    /// `login`, `call` or `statement`.
    pub event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    /// Who has vouched for the user's name: `users` (the configuration), `certificate`, `anonymous`, `server`, or a JWT's issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'a str>,
    /// Address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<&'a str>,
    /// The same in a call's line and in those of its statements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<&'a str>,
    /// The RPC of a call, or how a login was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'a str>,
    /// Of DoAction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<&'a str>,
    /// What kind of statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<&'a str>,
    /// Tables that the statement names.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub objects: &'a [String],
    /// What they stand for.
    #[serde(skip_serializing_if = "<[Access]>::is_empty")]
    pub bound: &'a [Access],
    /// OK, or the gRPC code; of a login ok, refused (wrong), or limited (too many).
    pub outcome: &'a str,
    /// Which rule was against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// OK, or gRPC's name of the error's code.
pub fn outcome<T>(result: &Result<T>) -> &'static str {
    super::spans::code_name(result.as_ref().err().map_or(tonic::Code::Ok, Error::code))
}

/// Where events go. Cheap to clone; the thread ends, with everything written, when the last one is dropped.
#[derive(Clone)]
pub struct Audit {
    orders: SyncSender<Order>,
    lost: IntCounter,
    /// The second that is counted, and what strangers have had of it.
    strangers: Arc<Mutex<(Instant, u32)>>,
}

enum Order {
    Write(String),
    /// Says when everything before it is written.
    Flush(SyncSender<()>),
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

impl Audit {
    /// To a file that is appended to, or to standard output where it is `-`.
    pub fn start(to: &Path, lost: IntCounter) -> Result<Self> {
        let sink = Sink::open(to).map_err(|error| Error::Io(format!("audit.file {}: {error}", to.display())))?;
        let (orders, received) = sync_channel(QUEUE);
        let counted = lost.clone();
        let work = move || write(&received, sink, &counted);
        std::thread::Builder::new().name("audit".into()).spawn(work).map_err(Error::internal)?;
        Ok(Self { orders, lost, strangers: Arc::new(Mutex::new((Instant::now(), 0))) })
    }

    /// The same for callers without an identity, who may be any number: further lines of a second are lost.
    pub fn write_of_stranger(&self, event: &Event<'_>) {
        let within = {
            let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            if strangers.0.elapsed() >= Duration::from_secs(1) {
                *strangers = (Instant::now(), 0);
            }
            strangers.1 += 1;
            strangers.1 <= STRANGERS
        };
        if within { self.write(event) } else { self.lost.inc() }
    }

    /// Waits until what was told so far is written, `patience` at most: a disk may hang. For threads that may wait. Whether
    /// all of it is written.
    #[expect(clippy::disallowed_methods, reason = "the standard library's bounded channel has no send with a timeout")]
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (done, written) = sync_channel(1);
        let mut order = Order::Flush(done);
        // A queue that is full empties when lines can be written.
        while let Err(TrySendError::Full(returned)) = self.orders.try_send(order) {
            if Instant::now() >= deadline {
                return false;
            }
            order = returned;
            std::thread::sleep(Duration::from_millis(5));
        }
        // An end without an answer means that nobody writes any more.
        written.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }

    /// Names come from outside: what would hide or turn text around is escaped.
    pub fn write(&self, event: &Event<'_>) {
        let (user, action) = (event.user.map(escaped), event.action.map(escaped));
        let objects: Vec<String> = event.objects.iter().map(|name| escaped(name).into_owned()).collect();
        let bound: Vec<Access> = event.bound.iter().map(Access::escaped).collect();
        let event = &Event {
            user: user.as_deref(),
            action: action.as_deref(),
            objects: &objects,
            bound: &bound,
            ..event.clone()
        };
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let line = serde_json::to_string(&Line { time, event });
        if !line.is_ok_and(|line| self.orders.try_send(Order::Write(line)).is_ok()) {
            self.lost.inc();
        }
    }
}

/// An object of a database, and how a statement uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Access {
    /// table, view, macro, sequence, type, schema, index or trigger.
    pub kind: String,
    pub catalog: String,
    pub schema: String,
    pub name: String,
    /// read, write, create, drop or advance.
    #[serde(rename = "use")]
    pub usage: &'static str,
}

impl Access {
    fn escaped(&self) -> Self {
        let text = |name: &str| escaped(name).into_owned();
        Self { catalog: text(&self.catalog), schema: text(&self.schema), name: text(&self.name), ..self.clone() }
    }
}

enum Sink {
    Stdout,
    File { path: PathBuf, file: File, looked: Instant },
}

impl Sink {
    fn open(to: &Path) -> io::Result<Self> {
        if to == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(to)?;
        Ok(Self::File { path: to.into(), file, looked: Instant::now() })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        // In one write, so that lines of several processes do not mix.
        let line = format!("{line}\n");
        match self {
            Self::Stdout => io::stdout().lock().write_all(line.as_bytes()),
            Self::File { path, file, looked } => {
                if looked.elapsed() >= LOOK {
                    *looked = Instant::now();
                    let inode = |file: std::fs::Metadata| (file.dev(), file.ino());
                    if std::fs::metadata(&*path).ok().map(inode) != file.metadata().ok().map(inode) {
                        *self = Self::open(&path.clone())?;
                        return self.write(&line[..line.len() - 1]);
                    }
                }
                file.write_all(line.as_bytes())
            }
        }
    }
}

fn write(orders: &Receiver<Order>, mut sink: Sink, lost: &IntCounter) {
    let mut well = true;
    while let Ok(order) = orders.recv() {
        let line = match order {
            Order::Write(line) => line,
            Order::Flush(done) => {
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
                continue;
            }
        };
        match sink.write(&line) {
            Ok(()) => well = true,
            Err(error) => {
                lost.inc();
                // Once, until it works again.
                if std::mem::take(&mut well) {
                    tracing::error!(%error, "the audit log cannot be written");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe that nobody empties is as good as a disk that hangs.
    #[test]
    fn flush_ends_in_time_although_nothing_can_be_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
        let reader = OpenOptions::new().read(true).write(true).open(&path).expect("its other end");
        let lost = IntCounter::new("lost", "lines").expect("a counter");
        let audit = Audit::start(&path, lost.clone()).expect("it is opened");
        let objects = vec!["x".repeat(100)];
        let event = Event { event: "statement", objects: &objects, ..Event::default() };
        // More than the pipe and the queue hold: what is too much is lost, and not waited for.
        while lost.get() < 10 {
            audit.write(&event);
        }
        let (told, ended) = sync_channel(1);
        let flushed = audit.clone();
        std::thread::spawn(move || told.send(flushed.flush(Duration::from_millis(50))));
        let written = ended.recv_timeout(Duration::from_secs(20)).expect("it ends although the disk hangs");
        assert!(!written, "not all of it is written");
        // A reader lets it go on.
        let emptying = std::thread::spawn(move || io::copy(&mut { reader }, &mut io::sink()));
        assert!(audit.flush(Duration::from_secs(20)), "all of it is written");
        drop(emptying);
    }
}
