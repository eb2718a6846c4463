//! Connections that stay between statements: of transactions, and of sessions with temporary tables or settings.
//!
//! A line has one seat. A statement sits on it from before it starts until its last row is on its way, and the next one
//! waits: DuckDB would end the result that is still being read, and its reader would take it for a whole one. Nothing
//! here knows whose line it is.

use std::{
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use duckdb::connection::Connection;
use tokio::sync::OwnedMutexGuard;

use super::{
    Engine, Shared,
    definitions::Change,
    guard::Sees,
    interruption::Manner,
    literal,
    pool::{Cancel, lock},
    quote,
};
use crate::{
    access::{Rights, Role},
    config::{LosslessTypes, Span},
    error::{Error, Result},
    machine,
};

/// What a connection is set to before a statement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    pub catalog: Option<String>,
    pub schema: Option<String>,
    pub time_zone: Option<String>,
    /// Whether types leave in forms that lose nothing, where it is not as configured.
    pub lossless: Option<bool>,
    /// Rows of a record batch at most.
    pub batch_rows: Option<usize>,
}

impl Settings {
    pub(super) fn plain(&self, shared: &Shared) -> bool {
        !self.lossless.unwrap_or(shared.config.database.lossless_types == LosslessTypes::On)
    }

    /// What of them a connection is set to; the others are for what becomes of its rows.
    pub(super) fn of_connection(&self) -> [Option<&str>; 3] {
        [self.catalog.as_deref(), self.schema.as_deref(), self.time_zone.as_deref()]
    }

    /// Whether a bare name means something else under them.
    pub(super) fn moves_names(&self) -> bool {
        self.catalog.is_some() || self.schema.is_some()
    }

    /// The statements that make them so.
    fn sql(&self, database: &str) -> Vec<String> {
        let mut statements = Vec::new();
        if self.catalog.is_some() || self.schema.is_some() {
            let catalog = self.catalog.as_deref().unwrap_or(database);
            let schema = self.schema.as_deref().unwrap_or("main");
            statements.push(format!("USE {}.{}", quote(catalog), quote(schema)));
        }
        statements.extend(self.time_zone.as_ref().map(|zone| format!("SET TimeZone = {}", literal(zone))));
        statements
    }
}

/// A connection that stays, and is closed (rolled back) when the last of its clones is dropped. Cheap to clone.
#[derive(Clone)]
pub struct Line(Arc<Ends>);

pub(super) struct Ends {
    seat: Arc<tokio::sync::Mutex<Kept>>,
    /// When the last statement ended.
    used: Mutex<Instant>,
    /// Whether a transaction is open, as of the last statement that has ended.
    open: AtomicBool,
    /// Whether a statement has run in it.
    worked: AtomicBool,
    /// Why no statement may run on it any more.
    closed: OnceLock<Error>,
    running: Mutex<Option<Cancel>>,
}

/// What has the seat.
pub(super) struct Kept {
    connection: Option<Connection>,
    pub(super) in_transaction: bool,
    /// Whether the transaction, or the last one, cannot write.
    reads_only: bool,
    /// Whether the next statement begins a transaction like the last one, which a text has ended while its client has the name of it.
    resumes: bool,
    /// Whether a statement has run in it.
    worked: bool,
    /// Why the open transaction can only be rolled back, where that was a cancellation.
    aborted: Option<Error>,
    applied: Settings,
    /// A client's own USE or SET schema: names mean something else now than the guard takes them for.
    pub(super) moved: bool,
    /// Whether something was run on it after which it may see what other connections do not: temporary tables, settings.
    sees_its_own: bool,
    /// What the open transaction has changed besides rows.
    change: Option<Change>,
    line: Weak<Ends>,
}

/// The right to use a line for one statement.
pub(super) struct Seat(OwnedMutexGuard<Kept>);

impl Line {
    /// Whether a transaction is open on it.
    pub fn in_transaction(&self) -> bool {
        self.0.open.load(Ordering::Acquire)
    }

    /// Whether a transaction is open on it in which a statement has run, so that there may be something to commit.
    pub fn has_work(&self) -> bool {
        self.in_transaction() && self.0.worked.load(Ordering::Acquire)
    }

    /// For how long nothing has run on it; nothing while something does.
    pub fn idle(&self) -> Duration {
        match self.0.seat.try_lock() {
            Ok(_free) => lock(&self.0.used).elapsed(),
            Err(_busy) => Duration::ZERO,
        }
    }

    /// Why it is gone, where that was the database's doing: it was reopened, and what the connection had went with it.
    pub fn lost(&self) -> Option<Error> {
        self.0.closed.get().filter(|why| matches!(why, Error::Invalidated(_))).cloned()
    }

    /// Ends what runs on it, and nothing else.
    pub fn interrupt(&self, reason: &Error) {
        if let Some(running) = lock(&self.0.running).as_ref() {
            running.end_at_once(reason.clone());
        }
    }

    /// Rolls back and closes the connection; what runs on it ends with the same reason.
    pub fn close(&self, reason: Error) {
        // The first reason stands.
        let _ = self.0.closed.set(reason.clone());
        if let Some(running) = lock(&self.0.running).as_ref() {
            running.end_at_once(reason);
        }
        let ends = self.0.clone();
        // Once the statement has noticed. DuckDB rolls back when a connection closes.
        tokio::spawn(async move { machine::drop_aside(ends.seat.lock().await.connection.take()) });
    }

    /// Waits until no other statement has the line.
    pub(super) async fn seat(&self, patience: Span) -> Result<Seat> {
        let waiting = tokio::time::timeout(patience.0, self.0.seat.clone().lock_owned());
        let seat = waiting.await.map_err(|_elapsed| Error::Limit {
            what: format!(
                "another statement of this transaction or session still ran, or its rows were not read to the end, after {patience}"
            ),
            key: "session.wait",
        })?;
        match self.0.closed.get() {
            Some(reason) => Err(reason.clone()),
            None => Ok(Seat(seat)),
        }
    }
}

impl Drop for Ends {
    /// The last clone is gone, and nobody sits: only the connection is left.
    fn drop(&mut self) {
        if let Some(connection) = self.seat.try_lock().ok().and_then(|mut kept| kept.connection.take()) {
            machine::drop_aside(connection);
        }
    }
}

impl Seat {
    pub(super) fn kept(&mut self) -> &mut Kept {
        &mut self.0
    }

    fn connection(&self) -> Option<&Connection> {
        self.0.connection.as_ref()
    }

    fn in_transaction(&self) -> bool {
        self.0.in_transaction
    }

    fn is_moved(&self) -> bool {
        self.0.moved
    }

    /// A statement begins, and this is how it is cancelled.
    pub(super) fn runs(&self, cancel: &Cancel) {
        if let Some(line) = self.0.line.upgrade() {
            *lock(&line.running) = Some(cancel.clone());
            if let Some(reason) = line.closed.get() {
                cancel.end_at_once(reason.clone());
            }
        }
    }
}

/// The connection that a statement runs on.
pub(super) enum Place {
    Own(Option<Connection>),
    Kept(Seat),
}

impl Place {
    /// Of its own, or the line's once nothing else runs there.
    pub(super) async fn take(line: Option<&Line>, shared: &Shared) -> Result<Self> {
        Ok(match line {
            Some(line) => Self::Kept(line.seat(shared.config.session.wait).await?),
            None => Self::Own(None),
        })
    }

    /// The statement begins, and this is how it is cancelled.
    pub(super) fn runs(&self, cancel: &Cancel) {
        if let Self::Kept(seat) = self {
            seat.runs(cancel);
        }
    }

    pub(super) fn connect(&mut self, shared: &Shared, settings: &Settings) -> Result<()> {
        match self {
            Self::Own(connection) => apply(shared, connection.insert(shared.connect()?), settings),
            Self::Kept(seat) => seat.kept().apply(shared, settings),
        }
    }

    pub(super) fn connection(&self) -> Result<&Connection> {
        let connection = match self {
            Self::Own(connection) => connection.as_ref(),
            Self::Kept(seat) => seat.connection(),
        };
        connection.ok_or_else(|| Error::internal("a statement has no connection"))
    }

    pub(super) fn in_transaction(&self) -> bool {
        matches!(self, Self::Kept(seat) if seat.in_transaction())
    }

    pub(super) fn is_moved(&self) -> bool {
        matches!(self, Self::Kept(seat) if seat.is_moved())
    }

    fn on_line<T>(
        &mut self,
        shared: &Shared,
        cancel: &Cancel,
        work: impl FnOnce(&Shared, &mut Kept) -> Result<T>,
    ) -> Result<T> {
        let manner = self.manner();
        let Self::Kept(seat) = self else { return Err(Error::internal("a statement has no line")) };
        let kept = seat.kept();
        cancel.arm(kept.connection(shared)?.interrupt_handle(), manner)?;
        work(shared, kept)
    }

    /// A statement of a client's runs here.
    pub(super) fn works(&mut self) {
        if let Self::Kept(seat) = self {
            seat.kept().worked = true;
        }
    }

    /// Something besides rows is about to be changed here. The change is to be held until it is committed or undone; a line
    /// holds that of its open transaction itself.
    pub(super) fn changes(&mut self, shared: &Shared) -> Option<Change> {
        self.has_changed(shared.definitions.change())
    }

    pub(super) fn has_changed(&mut self, change: Change) -> Option<Change> {
        let Self::Kept(seat) = self else { return Some(change) };
        let kept = seat.kept();
        kept.sees_its_own = true;
        match kept.in_transaction {
            true => {
                kept.change = Some(change);
                None
            }
            false => Some(change),
        }
    }

    /// A setting of this connection is about to be changed.
    pub(super) fn sets(&mut self) {
        if let Self::Kept(seat) = self {
            seat.kept().sees_its_own = true;
        }
    }

    pub(super) fn sees(&self) -> Sees<'static> {
        match self {
            Self::Own(_) => Sees::Committed,
            Self::Kept(seat) => seat.0.sees(),
        }
    }

    /// How a cancellation ends a statement here.
    pub(super) fn manner(&self) -> Manner {
        if self.in_transaction() { Manner::Patiently } else { Manner::AtOnce }
    }

    /// Nothing of the statement runs any more. Its cancellation does not meet the next one.
    pub(super) fn settle(&mut self, shared: &Shared, cancel: &Cancel) {
        if let (true, Self::Kept(seat)) = (cancel.disarm(), self) {
            seat.kept().settle(shared, cancel);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(line) = self.0.line.upgrade() {
            *lock(&line.running) = None;
            *lock(&line.used) = Instant::now();
            line.worked.store(self.0.worked, Ordering::Release);
            line.open.store(self.0.in_transaction, Ordering::Release);
        }
    }
}

impl Kept {
    pub(super) fn sees(&self) -> Sees<'static> {
        match self.in_transaction || self.sees_its_own || self.moved {
            true => Sees::ItsOwn,
            false => Sees::Committed,
        }
    }

    /// The connection, made at its first use.
    pub(super) fn connection(&mut self, shared: &Shared) -> Result<&Connection> {
        if self.connection.is_none() {
            self.connection = Some(shared.connect()?);
        }
        self.connection.as_ref().ok_or_else(|| Error::internal("a line has no connection"))
    }

    /// Fails where an error has aborted the transaction: DuckDB runs nothing there any more.
    pub(super) fn is_sound(&mut self, shared: &Shared) -> Result<()> {
        shared.execute(self.connection(shared)?, "SELECT 1").map(drop)
    }

    /// Clears what an interrupt has left behind: DuckDB does that when a statement starts, and not when one is planned.
    fn settle(&mut self, shared: &Shared, cancel: &Cancel) {
        let Some(connection) = &self.connection else { return };
        let aborted = shared.execute(connection, "SELECT 1").is_err();
        if aborted && self.in_transaction {
            let why = cancel.reason().map_or_else(String::new, |reason| format!(" ({reason})"));
            self.aborted = Some(Error::State(format!(
                "the transaction was aborted, because a statement of it was ended while it ran{why}; ROLLBACK it, and begin again"
            )));
        }
    }

    /// Begins a transaction.
    fn begin(&mut self, shared: &Shared, reads_only: bool) -> Result<()> {
        let sql = if reads_only { "BEGIN TRANSACTION READ ONLY" } else { "BEGIN TRANSACTION" };
        shared.execute(self.connection(shared)?, sql)?;
        (self.in_transaction, self.reads_only, self.worked) = (true, reads_only, false);
        Ok(())
    }

    /// Makes the settings those of the connection. Fails in a transaction that a cancellation has aborted.
    pub(super) fn apply(&mut self, shared: &Shared, settings: &Settings) -> Result<()> {
        if let Some(aborted) = &self.aborted {
            return Err(aborted.clone());
        }
        self.connection(shared)?;
        if self.resumes && !self.in_transaction {
            self.begin(shared, self.reads_only)?;
        }
        if self.applied.of_connection() == settings.of_connection() {
            return Ok(());
        }
        apply(shared, self.connection(shared)?, settings)?;
        self.applied = settings.clone();
        Ok(())
    }
}

/// How a transaction is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Commit,
    Rollback,
    /// By a text, while the client has the transaction's name: the next statement with that name begins another one.
    CommitWithin,
    RollbackWithin,
}

/// Aborts the connection's transaction, as DuckDB does with each error. Some it does not see: those of the parser, and of what
/// was planned or bound by us.
pub(super) fn abort(shared: &Shared, connection: &Connection) {
    // That it fails is what it is for.
    let _ = shared.execute(connection, "SELECT error('a statement before has failed')");
}

/// Whether DuckDB would have aborted the transaction in which it said so.
pub(super) fn aborts(error: &Error) -> bool {
    match error {
        Error::Sql(_) | Error::NotFound(_) | Error::Exists(_) | Error::Constraint(_) | Error::Conflict(_) => true,
        Error::Unsupported(message) => message.contains(" Error: "),
        _ => false,
    }
}

/// Makes the settings those of a fresh connection.
pub(super) fn apply(shared: &Shared, connection: &Connection, settings: &Settings) -> Result<()> {
    if settings.of_connection() == [None; 3] {
        return Ok(());
    }
    for sql in settings.sql(shared.database_name(connection)?) {
        shared.execute(connection, &sql)?;
    }
    Ok(())
}

impl Engine {
    /// A new line; its connection is made when it is used.
    pub fn line(&self) -> Line {
        let ends = Arc::new_cyclic(|line: &Weak<Ends>| Ends {
            seat: Arc::new(tokio::sync::Mutex::new(Kept {
                connection: None,
                in_transaction: false,
                reads_only: false,
                resumes: false,
                worked: false,
                aborted: None,
                applied: Settings::default(),
                moved: false,
                sees_its_own: false,
                change: None,
                line: line.clone(),
            })),
            used: Mutex::new(Instant::now()),
            open: AtomicBool::new(false),
            worked: AtomicBool::new(false),
            closed: OnceLock::new(),
            running: Mutex::new(None),
        });
        let mut lines = lock(&self.shared.lines);
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(&ends));
        Line(ends)
    }

    /// Begins a transaction on a line that has none; one that cannot write for whom may not. One that the client's driver has
    /// begun and in which nothing has run yet is the one that a text asks for (`begun_by_driver`).
    pub async fn begin(&self, rights: &Arc<Rights>, line: &Line, read_only: bool, begun_by_driver: bool) -> Result<()> {
        let read_only = read_only || rights.role < Role::Writer;
        let sql = if read_only { "BEGIN TRANSACTION READ ONLY" } else { "BEGIN TRANSACTION" };
        self.turn(rights, line, sql, move |shared, kept| {
            if !kept.in_transaction {
                return kept.begin(shared, read_only);
            }
            let is_fresh = !kept.worked && kept.aborted.is_none() && kept.is_sound(shared).is_ok();
            if begun_by_driver && is_fresh {
                if read_only == kept.reads_only {
                    return Ok(());
                }
                shared.execute(kept.connection(shared)?, "ROLLBACK")?;
                kept.in_transaction = false;
                return kept.begin(shared, read_only);
            }
            abort(shared, kept.connection(shared)?);
            Err(Error::State(
                "cannot start a transaction within a transaction, and this one is aborted now, as every error aborts it; ROLLBACK it \
                 first"
                    .into(),
            ))
        })
        .await
    }

    /// Ends the line's transaction. One that cannot be committed is rolled back.
    pub async fn end(&self, rights: &Arc<Rights>, line: &Line, end: End) -> Result<()> {
        let commit = matches!(end, End::Commit | End::CommitWithin);
        self.turn(rights, line, if commit { "COMMIT" } else { "ROLLBACK" }, move |shared, kept| {
            let within = matches!(end, End::CommitWithin | End::RollbackWithin);
            let resumes = std::mem::replace(&mut kept.resumes, within);
            if !kept.in_transaction {
                // A text has ended it before its client's driver does.
                let is_over = resumes && !within;
                return if is_over { Ok(()) } else { Err(Error::State("no transaction is open".into())) };
            }
            kept.in_transaction = false;
            // Until it has ended.
            let _change = kept.change.take();
            if !commit {
                kept.aborted = None;
                return shared.execute(kept.connection(shared)?, "ROLLBACK").map(drop);
            }
            // DuckDB commits nothing of an aborted one, and says that all is well.
            let aborted =
                kept.aborted.take().or_else(|| kept.is_sound(shared).err()).or_else(|| shared.may_store().err());
            let connection = kept.connection(shared)?;
            let committed = shared.execute(connection, if aborted.is_some() { "ROLLBACK" } else { "COMMIT" });
            if let Some(aborted) = aborted {
                return Err(Error::State(format!(
                    "the transaction was rolled back, because an error had ended it: {aborted}"
                )));
            }
            committed.map(drop).inspect_err(|_| {
                // It is over where DuckDB has done so already.
                let _ = shared.execute(connection, "ROLLBACK");
            })
        })
        .await
    }

    /// A statement of a client's that changes the line's transaction.
    async fn turn(
        &self,
        rights: &Arc<Rights>,
        line: &Line,
        sql: &'static str,
        work: impl FnOnce(&Shared, &mut Kept) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let seen = self.shared.see(rights, sql);
        let asked = async {
            // The seat first: who waits for it takes no thread from others.
            let seat = line.seat(self.shared.config.session.wait).await?;
            Ok((seat, self.pool.slot(rights).await?))
        };
        let (mut seat, slot) =
            seen.unless_killed(asked).await.inspect_err(|error| seen.end::<()>(&Err(error.clone())))?;
        seen.start();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let shared = self.shared.clone();
        // Not to be interrupted: a commit is done, or it is not.
        self.pool.run(slot, move || {
            let outcome = work(&shared, seat.kept());
            seen.identify_turn(sql);
            shared.notice_checkpoint();
            let outcome = outcome.map_err(|error| shared.recognise(error, Some(seen.suspect())));
            seen.end(&outcome);
            drop(seat);
            // A receiver that is gone needs no answer.
            let _ = answer.send(outcome);
        })?;
        answered.await.map_err(|_| Error::internal("an engine thread ended without an answer"))?
    }

    /// Runs a question of ours on a line.
    pub(super) async fn call_on_line<T: Send + 'static>(
        &self,
        rights: &Rights,
        line: &Line,
        work: impl FnOnce(&Shared, &mut Kept) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let seat = line.seat(self.shared.config.session.wait).await?;
        let slot = self.pool.slot(rights).await?;
        let (cancel, _guard) = self.pool.begin();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let shared = self.shared.clone();
        self.pool.run(slot, move || {
            let mut place = Place::Kept(seat);
            place.runs(&cancel);
            let outcome = place.on_line(&shared, &cancel, work);
            let outcome = outcome.map_err(|error| shared.recognise(error, None));
            let outcome = cancel.explain(outcome);
            place.settle(&shared, &cancel);
            drop(place);
            // A receiver that is gone needs no answer.
            let _ = answer.send(outcome);
        })?;
        answered.await.map_err(|_| Error::internal("an engine thread ended without an answer"))?
    }

    /// Closes the connections of lines on which nothing runs, and tells the others to end; they hold the database open.
    pub(super) fn lose_lines(&self, reason: &Error) {
        let lines: Vec<Arc<Ends>> = lock(&self.shared.lines).iter().filter_map(Weak::upgrade).collect();
        for line in lines {
            match line.seat.try_lock() {
                // One that has no connection has lost nothing.
                Ok(kept) if kept.connection.is_none() => continue,
                Ok(mut kept) => {
                    // The first reason stands.
                    let _ = line.closed.set(reason.clone());
                    drop(kept.connection.take());
                }
                Err(_busy) => drop(line.closed.set(reason.clone())),
            }
        }
    }

    /// Closes what lines are left; their threads have ended.
    pub(super) fn close_lines(&self) {
        for line in std::mem::take(&mut *lock(&self.shared.lines)).iter().filter_map(Weak::upgrade) {
            // The first reason stands.
            let _ = line.closed.set(Error::Draining);
            drop(line.seat.try_lock().ok().and_then(|mut kept| kept.connection.take()));
        }
    }
}
