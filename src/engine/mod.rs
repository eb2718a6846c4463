//! The only folder that knows DuckDB: open, engine threads, statement -> stream, stream -> table, catalog.
//!
//! It knows no Flight and no gRPC. Every statement has a connection of its own, so that nothing a client sets or
//! leaves behind meets another client's statement.

mod act;
mod arrow;
mod attach;
mod backup;
mod binding;
mod calls;
mod carry;
mod catalog;
mod columns;
mod creation;
mod definitions;
mod error;
mod exported;
mod extensions;
mod failing;
mod files;
pub mod guard;
mod hold;
mod ingest;
mod init;
mod interruption;
mod joining;
mod kept;
mod line;
mod metadata;
mod names;
mod once;
mod open;
mod origins;
mod outlet;
mod parameters;
mod plain;
mod pool;
mod query;
mod reopen;
mod restore;
#[cfg(all(feature = "bundled", target_os = "linux"))]
mod rethrow;
mod rows;
mod sandbox;
mod script;
mod seen;
mod shape;
mod source;
mod statement;
mod steps;
mod storage;
mod stored;
mod timezones;
mod transform;
mod types;
mod validate;
mod variant;
mod verify;
mod wal;
mod width;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use duckdb::{Parameters, connection::Connection, environment::Environment, instance::Instance};
use tokio::sync::{oneshot, watch};

pub use act::Act;
pub use backup::Manifest;
pub use binding::Bound;
pub use catalog::{Place as TablePlace, Plan, TableName, TablePage, literal, quote};
pub use files::FileFormat;
pub use ingest::{Fingerprint, Mode, Staged, Target};
pub use kept::KeptExchanger;
pub use line::{End, Line, Settings};
pub use metadata::{KeyTable, ListedColumn, ListedTable, TABLE_TYPES, TableFilter, Vocabulary};
pub use parameters::{Declared, Given};
pub use plain::plain_types;
pub use query::{Ask, status_row, status_schema};
pub use restore::{Restored, restore};
pub use script::{Part, Script, may_hold_several};
pub use seen::{Kill, RunningStatement};
pub use shape::{Reads, Shape};
pub use stored::Misfit;
pub use transform::{Checked, Transformation};
pub use verify::{Examined, FileState, TableSum, examine, verify};

use crate::{
    access::Rights,
    config::{Config, Span},
    error::{Error, Result},
    telemetry::{Access, Metrics},
};
use attach::Beside;
use error::Redact;
use hold::Hold;
use interruption::Manner;
use once::Once;
use pool::{Cancel, Pool, Slot, lock};
use reopen::Offenders;
use seen::{Seen, Statements};
use source::Sources;

/// One open DuckDB database and the threads that run its statements.
pub struct Engine {
    shared: Arc<Shared>,
    pool: Pool,
    sources: Sources,
    /// Answers that many may ask for at once.
    probed: Once<()>,
    listed: Once<Arc<Vec<RunningStatement>>>,
    stored: Once<storage::Memory>,
}

/// What engine threads share.
struct Shared {
    /// One for all instances of this database, so that DuckDB sees whether the file is still open in another one.
    environment: Environment,
    /// An instance is not `Sync`, so a connection is made under the lock.
    instance: Mutex<Served>,
    /// The lock and the seal of the database file; after the instance, because it outlives it.
    hold: Mutex<Option<Hold>>,
    /// The same of attached databases.
    beside: Mutex<Beside>,
    /// The database file itself, where the configured path leads; none in memory.
    file: Option<PathBuf>,
    config: Config,
    redact: Redact,
    metrics: Metrics,
    statements: Statements,
    /// Those that are open, and may have gone.
    lines: Mutex<Vec<Weak<line::Ends>>>,
    last_wal_size: AtomicU64,
    /// Set at open, before a client's statement runs.
    built_ins: OnceLock<Arc<guard::BuiltIns>>,
    /// Those that no statement is bound in now.
    shadows: Mutex<Vec<guard::Shadow>>,
    types: types::KnownTypes,
    /// Asked for once.
    database_name: OnceLock<String>,
    catalogs: OnceLock<catalog::Catalogs>,
    creations: creation::Creations,
    definitions: definitions::Definitions,
    decisions: guard::Decisions,
    /// The names of all views, of one version of the definitions.
    views: Mutex<Option<(u64, Arc<HashSet<String>>)>>,
    /// What statements reach, for the audit log.
    accesses: guard::Decisions<Arc<[Access]>>,
    /// Held while a backup is made.
    backing_up: Mutex<()>,
    /// Whether DuckDB has said that the database is unusable, and it has not been reopened since.
    broken: watch::Sender<bool>,
    /// Whether it is known whose statement that was.
    blamed: AtomicBool,
    offenders: Arc<Offenders>,
    /// Held while the database is reopened or closed.
    reopening: Mutex<()>,
    /// When it was reopened.
    reopened: Mutex<Vec<Instant>>,
    /// Whether no statement may change a setting of the database.
    locked: bool,
}

/// What becomes of the instance.
enum Served {
    Open(Instance),
    Reopening,
    /// It could not be reopened.
    Unusable,
    Closed,
}

impl Served {
    fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }
}

impl Shared {
    fn cause(&self, error: &duckdb::Error) -> Error {
        self.redact.cause(error)
    }

    /// A statement has ended; the outcome with the reason where it was cancelled.
    fn finish<T>(&self, cancel: &Cancel, seen: &Seen, outcome: Result<T>) -> Result<T> {
        self.notice_checkpoint();
        // Before the reason of a cancellation hides what has happened to the database.
        let outcome = outcome.map_err(|error| self.recognise(error, Some(seen.suspect())));
        let outcome = cancel.explain(outcome);
        seen.end(&outcome);
        outcome
    }

    /// Whether tables can be read; a statement that reads none works in an invalidated database, too.
    fn ask(&self) -> Result<()> {
        let connection = self.connect()?;
        self.execute(&connection, "SELECT count(*) FROM duckdb_tables()").map(drop)
    }

    /// Refuses to store rows in a file that will be gone with the process.
    fn may_store(&self) -> Result<()> {
        match self.lost_file() {
            None => Ok(()),
            Some(how) => Err(Error::Io(format!(
                "{how} while the server has it open; nothing is stored until it is put back, but reads and backups go on"
            ))),
        }
    }

    fn lost_file(&self) -> Option<&'static str> {
        lock(&self.hold).as_ref().and_then(Hold::lost).or_else(|| lock(&self.beside).lost())
    }

    fn connect(&self) -> Result<Connection> {
        self.on_instance(Instance::connect)
    }

    fn on_instance<T>(&self, work: impl FnOnce(&Instance) -> duckdb::Result<T>) -> Result<T> {
        match &*lock(&self.instance) {
            Served::Open(instance) => work(instance).map_err(|error| self.cause(&error)),
            Served::Reopening => Err(Error::Reopening),
            Served::Unusable => Err(Error::Broken("it could not be reopened".into())),
            Served::Closed => Err(Error::Draining),
        }
    }

    fn built_ins(&self) -> &Arc<guard::BuiltIns> {
        self.built_ins.get().expect("set at open")
    }

    /// The name of the database that clients' tables are in.
    fn database_name(&self, connection: &Connection) -> Result<&str> {
        if let Some(name) = self.database_name.get() {
            return Ok(name);
        }
        let rows = self.rows(connection, "SELECT current_database()", Parameters::None)?;
        let name = rows.into_iter().flatten().next().ok_or_else(|| Error::internal("the database has no name"))?;
        Ok(self.database_name.get_or_init(|| name))
    }

    /// The catalogs that clients' tables are in.
    fn catalogs(&self, connection: &Connection) -> Result<&catalog::Catalogs> {
        if let Some(catalogs) = self.catalogs.get() {
            return Ok(catalogs);
        }
        let catalogs = catalog::Catalogs::of(self, connection)?;
        Ok(self.catalogs.get_or_init(|| catalogs))
    }

    /// Runs a statement of ours to its end; the rows it changed.
    fn execute(&self, connection: &Connection, sql: &str) -> Result<usize> {
        connection.execute(sql, Parameters::None).map_err(|error| self.cause(&error))
    }

    /// The columns of a query of ours, which is not run.
    fn bind(&self, connection: &Connection, sql: &str) -> Result<duckdb::schema::Schema> {
        let statement = statement::parse(self, connection, sql)?;
        Ok(statement.bind(connection).map_err(|error| self.cause(&error))?.schema)
    }
}

impl Engine {
    /// Runs `work` on an engine thread with a connection of its own, as a statement of that user.
    async fn call<T: Send + 'static>(
        &self,
        rights: &Rights,
        work: impl FnOnce(&Shared, &Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.pool.slot(rights).await?;
        self.call_on(slot, work).await
    }

    /// The same for what clients may ask the server about itself, which does not wait for clients' statements.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared, &Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.pool.slot_aside().await?;
        self.call_on(slot, work).await
    }

    /// The same for probes, which wait for no client.
    async fn for_probe<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared, &Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.pool.slot_for_probe().await?;
        self.call_on(slot, work).await
    }

    async fn call_on<T: Send + 'static>(
        &self,
        slot: Slot,
        work: impl FnOnce(&Shared, &Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let limit = self.shared.config.limits.statement_timeout;
        self.call_within(slot, limit, move |shared, connection, _| work(shared, connection)).await
    }

    /// The same, with a deadline of its own, for work that asks now and then whether it is still wanted.
    async fn call_within<T: Send + 'static>(
        &self,
        slot: Slot,
        limit: Span,
        work: impl FnOnce(&Shared, &Connection, &Cancel) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (cancel, _guard) = self.pool.begin_within(limit);
        let (answer, answered) = oneshot::channel();
        let shared = self.shared.clone();
        self.pool.run(slot, move || {
            let outcome = shared.connect().and_then(|connection| {
                cancel.arm(connection.interrupt_handle(), Manner::AtOnce)?;
                work(&shared, &connection, &cancel)
            });
            let outcome = outcome.map_err(|error| shared.recognise(error, None));
            let outcome = cancel.explain(outcome);
            // A receiver that is gone needs no answer.
            let _ = answer.send(outcome);
        })?;
        answered.await.map_err(|_| Error::internal("an engine thread ended without an answer"))?
    }

    /// What has happened to the database file, if its path does not lead to it any more. Blocks.
    pub fn lost_file(&self) -> Option<&'static str> {
        self.shared.lost_file()
    }

    /// Whether the write-ahead log was removed while it is open. Blocks.
    pub fn lost_log(&self) -> bool {
        lock(&self.shared.hold).as_ref().is_some_and(Hold::lost_log)
    }

    /// Writes what the log has into the database file.
    pub async fn checkpoint(&self) -> Result<()> {
        self.aside(|shared, connection| shared.execute(connection, "CHECKPOINT").map(drop)).await
    }

    /// Whether the database answers.
    pub async fn probe(&self) -> Result<()> {
        self.probed.get(self.for_probe(|shared, _| shared.ask())).await
    }

    /// What is wrong with files that the configuration names: extensions, attached databases and the start script. Nothing of
    /// them is run. Blocks.
    pub fn examine_files(config: &Config) -> Result<Vec<Error>> {
        let database = &config.database;
        let mut mistakes = match database.extensions.is_empty() {
            true => Vec::new(),
            false => extensions::examine(config)?,
        };
        mistakes.extend(attach::examine(database));
        mistakes.extend(init::examine(database));
        Ok(mistakes)
    }

    /// The version of DuckDB that is linked.
    pub fn duckdb_version() -> &'static str {
        duckdb::library_version().unwrap_or("unknown")
    }

    /// Completes with true when DuckDB has said that the database is unusable, with false when the engine is gone.
    pub fn broken(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut broken = self.shared.broken.subscribe();
        async move { broken.wait_for(|broken| *broken).await.is_ok() }
    }

    pub fn is_broken(&self) -> bool {
        *self.shared.broken.borrow()
    }

    /// Interrupts what runs, ends the threads, writes a checkpoint and closes the database. Blocks; for threads that
    /// may wait.
    pub fn close(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.pool.close();
        self.interrupt_all();
        // A database that is being reopened is closed once it is open.
        let ended = self.pool.join(deadline);
        let Some(_alone) = self.alone(deadline).filter(|_| ended) else {
            tracing::warn!("a statement did not stop in time; the database is closed without a checkpoint");
            return;
        };
        self.close_lines();
        if !self.is_broken()
            && let Ok(connection) = self.shared.connect()
        {
            if self.shared.config.database.file().is_some()
                && let Err(error) = self.shared.execute(&connection, "CHECKPOINT")
            {
                tracing::warn!(%error, "no checkpoint at close; the next start replays the log");
            }
            lock(&self.shared.beside).checkpoint(&self.shared, &connection);
        }
        *lock(&self.shared.instance) = Served::Closed;
        *lock(&self.shared.hold) = None;
        *lock(&self.shared.beside) = Beside::default();
    }

    /// Nobody reopens the database while this is held.
    #[expect(clippy::disallowed_methods, reason = "a thread that may wait asks now and then whether another has ended")]
    fn alone(&self, deadline: Instant) -> Option<MutexGuard<'_, ()>> {
        loop {
            match self.shared.reopening.try_lock() {
                Ok(alone) => return Some(alone),
                Err(TryLockError::Poisoned(alone)) => return Some(alone.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Ends what runs; in an unusable database for that reason.
    fn interrupt_all(&self) {
        let reason = match self.is_broken() {
            true => Error::Broken("a statement before this one met a fatal error".into()),
            false => Error::Draining,
        };
        self.pool.interrupt_all(&reason);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.pool.close();
        self.interrupt_all();
    }
}
