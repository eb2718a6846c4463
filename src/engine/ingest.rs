//! A stream into a table, in one transaction that the caller decides on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arrow_schema::SchemaRef;
use duckdb::{Parameters, connection::Connection, schema::Schema};
use tokio::sync::oneshot;

use super::{
    Engine, Shared,
    arrow::DUCKDB_TYPE,
    catalog::{TableName, literal, quote},
    columns::{self, Column},
    creation::Turn,
    definitions::Change,
    guard,
    interruption::Manner,
    line::{Line, Place, Settings},
    pool::{Cancel, CancelOnDrop},
    seen::Seen,
    source::{Sharing, Source},
};
use crate::{
    access::{Rights, Role},
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
    telemetry::Access,
};

/// How often, and after which pauses, the creation of a table is tried again while a statement of someone else's creates it.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// What becomes of a table that exists already, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Create it if it is missing, else append to it.
    CreateOrAppend,
    /// Create it; a table of that name is an error.
    Create,
    /// Create it in place of a table of that name.
    Replace,
    /// Append to it; a table that is missing is an error.
    Append,
    /// Create it in place of one that has to be there.
    ReplaceExisting,
    /// Create it if it is missing, else put these rows in the place of its own: its keys, defaults, indexes and comments
    /// stay. Columns that do not fit are an error.
    ReplaceRows,
    /// The same, but a table that they do not fit is created anew.
    ReplaceRowsOrTable,
}

impl Mode {
    /// Whether a table that is there gives way to a new one.
    fn replaces_table(self) -> bool {
        matches!(self, Self::Replace | Self::ReplaceExisting | Self::ReplaceRowsOrTable)
    }

    /// Whether a table that is there loses its rows.
    fn replaces_rows(self) -> bool {
        matches!(self, Self::ReplaceRows | Self::ReplaceRowsOrTable)
    }
}

/// Where a stream goes.
#[derive(Clone)]
pub struct Target {
    pub table: TableName,
    pub mode: Mode,
    /// A table of the line's session alone.
    pub temporary: bool,
    /// Whose transaction it becomes a part of, where one is open; on a connection of its own where there is none.
    pub line: Option<Line>,
    pub settings: Settings,
}

impl Target {
    pub fn new(table: &TableName, mode: Mode) -> Self {
        Self { table: table.clone(), mode, temporary: false, line: None, settings: Settings::default() }
    }
}

/// Row count and an order-independent hash of rows: the sum of DuckDB's hash of each row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    pub rows: u64,
    pub hash: i128,
}

impl Fingerprint {
    /// The SQL that computes it over a relation (a table's name or a subquery in parentheses).
    pub fn sql(relation: &str) -> String {
        format!("SELECT count(*)::VARCHAR, coalesce(sum(hash(mallard_row)), 0)::VARCHAR FROM {relation} AS mallard_row")
    }

    /// The same with names for the columns, and the count as a number.
    pub fn named_sql(relation: &str) -> String {
        format!(
            "SELECT count(*) AS rows, coalesce(sum(hash(mallard_row)), 0)::VARCHAR AS hash FROM {relation} AS mallard_row"
        )
    }

    pub fn from_row(row: &[String]) -> Result<Self> {
        let parsed = match row {
            [rows, hash] => rows.parse().ok().zip(hash.parse().ok()),
            _ => None,
        };
        let (rows, hash) = parsed.ok_or_else(|| Error::internal(format!("not a fingerprint: {row:?}")))?;
        Ok(Self { rows, hash })
    }
}

/// Rows that are in a transaction and wait for [`Staged::commit`]. Dropping it rolls everything back.
pub struct Staged {
    pub rows: u64,
    pub bytes: u64,
    /// What the transaction added, if it was asked for; `None` where values were cast on the way.
    pub fingerprint: Option<Fingerprint>,
    decision: oneshot::Sender<()>,
    done: oneshot::Receiver<Result<()>>,
    guard: CancelOnDrop,
}

impl Staged {
    /// Makes the rows durable.
    pub async fn commit(self) -> Result<()> {
        let Self { decision, done, guard, .. } = self;
        // If the engine thread is gone, `done` says why.
        let _ = decision.send(());
        let outcome = done.await.map_err(|_| Error::internal("an engine thread ended without an answer"))?;
        drop(guard);
        outcome
    }
}

struct Report {
    rows: u64,
    fingerprint: Option<Fingerprint>,
}

impl Engine {
    /// Moves the stream into `table`, all in one transaction that is still open when this returns.
    pub async fn ingest(
        &self,
        rights: &Arc<Rights>,
        table: &TableName,
        mode: Mode,
        input: RecordBatchStream,
        verify: bool,
    ) -> Result<Staged> {
        self.ingest_into(rights, Target::new(table, mode), input, verify).await
    }

    /// The same into any target. Where that has a transaction already, committing what is staged leaves it open, and a
    /// failure aborts all of it: DuckDB cannot take back a part.
    pub async fn ingest_into(
        &self,
        rights: &Arc<Rights>,
        target: Target,
        input: RecordBatchStream,
        verify: bool,
    ) -> Result<Staged> {
        let table = &target.table;
        let schema = input.schema();
        if schema.fields().is_empty() {
            return Err(Error::invalid("the stream has no columns; a table needs at least one"));
        }
        rights.require(Role::Writer, "storing rows")?;
        let config = &self.shared.config.ingest;
        let sharing = Sharing::Parallel { workers: config.workers, preserve_order: config.preserve_order };
        let (source, feed) = self.sources.add(schema.clone(), sharing)?;
        let seen = self.shared.see(rights, &format!("INGEST {table}"));
        seen.identify_ingest(&table.parts().join("."));
        let room = async {
            let place = Place::take(target.line.as_ref(), &self.shared).await?;
            Ok((place, self.pool.slot(rights).await?))
        };
        let (mut place, slot) =
            seen.unless_killed(room).await.inspect_err(|error| seen.end::<()>(&Err(error.clone())))?;
        seen.start();
        let (cancel, guard) = self.pool.begin();
        seen.runs(&cancel);
        source.stop_with(&cancel);
        let (report, mut staged) = oneshot::channel();
        let (decision, decided) = oneshot::channel();
        let (outcome, done) = oneshot::channel();
        let (shared, failed) = (self.shared.clone(), source.failure.clone());
        let rights = rights.clone();
        self.pool.run(slot, move || {
            place.runs(&cancel);
            let work = Work { shared: &shared, rights, source, schema, target, verify, seen: seen.clone() };
            let finished = work.run(&mut place, &cancel, report, decided).map_err(|error| failed.or(error));
            let finished = shared.finish(&cancel, &seen, finished);
            // The connection may be another statement's next.
            place.settle(&shared, &cancel);
            drop(place);
            // A receiver that is gone needs no answer.
            let _ = outcome.send(finished);
        })?;

        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        let input = input.inspect(move |batch| {
            counted.fetch_add(batch_bytes(batch), Ordering::Relaxed);
        });
        let mut pump = Box::pin(feed.pump(input));
        // The thread may fail before the input ends, and the input may wait for that answer.
        let report = tokio::select! {
            report = &mut staged => report,
            () = &mut pump => staged.await,
        };
        match report {
            Ok(Report { rows, fingerprint }) => {
                let bytes = bytes.load(Ordering::Relaxed);
                Ok(Staged { rows, bytes, fingerprint, decision, done, guard })
            }
            Err(_no_report) => {
                let outcome = done.await.map_err(|_| Error::internal("an engine thread ended without an answer"))?;
                Err(outcome.err().unwrap_or_else(|| Error::internal("an ingest ended without a report")))
            }
        }
    }
}

/// The table that a stream goes into.
struct Opened {
    columns: Vec<Column>,
    /// Whether it was there before.
    existed: bool,
}

/// One ingest on its engine thread.
struct Work<'a> {
    shared: &'a Shared,
    rights: Arc<Rights>,
    source: Source,
    schema: SchemaRef,
    target: Target,
    verify: bool,
    seen: Arc<Seen>,
}

impl Work<'_> {
    fn run(
        self,
        place: &mut Place,
        cancel: &Cancel,
        report: oneshot::Sender<Report>,
        decided: oneshot::Receiver<()>,
    ) -> Result<()> {
        place.connect(self.shared, &self.target.settings)?;
        place.works();
        let (connection, joins) = (place.connection()?, place.in_transaction());
        // What is stored of it cannot be taken back alone.
        cancel.arm(connection.interrupt_handle(), Manner::AtOnce)?;
        guard::check_names(&self.rights, place.is_moved() || self.target.settings.moves_names())?;
        let table = self.target_sql(connection, place)?;
        if let Some(parts) = self.seen.is_audited().then(|| self.target.table.parts()) {
            let database = self.shared.database_name(connection)?;
            let (name, before) = parts.split_last().ok_or_else(|| Error::internal("a table without a name"))?;
            let (catalog, schema) = match before {
                _ if self.target.temporary => ("temp", "main"),
                [] => (database, "main"),
                [schema] => (database, schema.as_str()),
                [catalog, schema, ..] => (catalog.as_str(), schema.as_str()),
            };
            let [kind, catalog, schema, name] = ["table", catalog, schema, name].map(str::to_string);
            self.seen.binds(Arc::new([Access { kind, catalog, schema, name, usage: "write" }]));
        }
        if !self.target.temporary {
            guard::may_write(&self.rights, &self.target.table, self.shared.catalogs(connection)?)?;
        }
        self.shared.may_store()?;
        if !joins {
            self.shared.execute(connection, "BEGIN TRANSACTION")?;
        }
        // Until the transaction has ended.
        let (mut turn, mut change) = (None, None);
        let opened = self.open(connection, cancel, &table, joins, &mut turn, &mut change);
        let staged = opened.and_then(|opened| self.stage(connection, cancel, &table, &opened)).and_then(|staged| {
            report.send(staged).map_err(|_| Error::Cancelled)?;
            // The sender is dropped without a word when the caller gives up.
            cancel.wait(decided)?.map_err(|_| Error::Cancelled)?;
            self.shared.may_store()
        });
        let outcome = match staged {
            Ok(()) if joins => Ok(()),
            Ok(()) => self.shared.execute(connection, "COMMIT").map(|_| ()),
            Err(error) => {
                // A failed transaction is rolled back by DuckDB when the connection closes, too. One that was there before
                // is only aborted: its client is told so by its next statement, and rolls it back.
                let end = if joins { "SELECT error('an ingest before has failed')" } else { "ROLLBACK" };
                let _ = self.shared.execute(connection, end);
                Err(error)
            }
        };
        if let Some(change) = change {
            place.has_changed(change);
        }
        outcome
    }

    /// The target as SQL. What is not to be temporary never is: a bare name in a session means its temporary table first.
    fn target_sql(&self, connection: &Connection, place: &Place) -> Result<String> {
        let Target { table: name, temporary, .. } = &self.target;
        let is_temp = |part: &str| part.eq_ignore_ascii_case("temp");
        let refused = || {
            Err(Error::invalid(format!(
                "table {name} would be a temporary one, which is the session's own and gone with it; send the rows to a table \
                 of another catalog, or as a temporary ingest of Flight SQL"
            )))
        };
        if *temporary {
            return Ok(name.sql());
        }
        let parts = name.parts();
        if matches!(parts, [catalog, _, _] if is_temp(catalog)) {
            return refused();
        }
        // What other connections make temporary is not seen here.
        if matches!(place, Place::Own(_)) && !parts.first().is_some_and(|first| is_temp(first) && parts.len() == 2) {
            return Ok(name.sql());
        }
        let rows = self.shared.rows(
            connection,
            "SELECT current_database(), current_schema(), \
             (SELECT count(*) FROM duckdb_schemas() WHERE database_name = current_database() AND lower(schema_name) = lower($1)), \
             (SELECT count(*) FROM duckdb_tables() WHERE database_name = 'temp' AND lower(table_name) = lower($2)) \
             + (SELECT count(*) FROM duckdb_views() WHERE database_name = 'temp' AND lower(view_name) = lower($2))",
            Parameters::positional(&[&parts[0], &parts[parts.len() - 1]]),
        )?;
        let [current, schema, schemas, temporaries] = rows.first().map_or(&[][..], Vec::as_slice) else {
            return Err(Error::internal("a question about the target's name answered no row"));
        };
        let whole = match parts {
            [first, _] if is_temp(first) && schemas == "0" => return refused(),
            [first, table] if is_temp(first) => vec![current, first, table],
            _ if temporaries == "0" => return Ok(name.sql()),
            [table] => vec![current, schema, table],
            [first, table] if schemas != "0" => vec![current, first, table],
            _ => return Ok(name.sql()),
        };
        Ok(whole.into_iter().map(|part| quote(part)).collect::<Vec<_>>().join("."))
    }

    /// Finds the table, or creates it. `turn` is held by whoever has created it in a transaction of its own.
    fn open(
        &self,
        connection: &Connection,
        cancel: &Cancel,
        table: &str,
        joins: bool,
        turn: &mut Option<Turn>,
        change: &mut Option<Change>,
    ) -> Result<Opened> {
        let Target { mode, temporary, .. } = &self.target;
        let shared = self.shared;
        let again = || {
            // What a transaction sees is as old as itself.
            shared.execute(connection, "ROLLBACK")?;
            shared.execute(connection, "BEGIN TRANSACTION")
        };
        let mut tries = 0;
        loop {
            if let Some(columns) = self.existing(connection, table)? {
                *turn = None;
                return Ok(Opened { columns, existed: true });
            }
            if turn.is_none() && !joins && !temporary {
                let turns = shared.creations.of(&self.creation(connection)?);
                match turns.clone().try_lock_owned() {
                    Ok(first) => *turn = Some(first),
                    Err(_taken) => {
                        *turn = Some(cancel.wait(turns.lock_owned())?);
                        again()?;
                        continue;
                    }
                }
            }
            let columns = self.as_sent(connection)?;
            *change = Some(shared.definitions.change());
            match self.create(connection, table, &columns) {
                Ok(()) => return Ok(Opened { columns, existed: false }),
                Err(error) if joins || *temporary || tries == TRIES => return Err(error),
                // A statement of someone else's creates it, or has done so since this transaction began.
                Err(Error::Conflict(_)) => cancel.rest(if tries == 0 { Duration::ZERO } else { PAUSE })?,
                Err(Error::Exists(_)) if *mode == Mode::CreateOrAppend || mode.replaces_rows() => {}
                Err(error) => return Err(error),
            }
            tries += 1;
            again()?;
        }
    }

    /// The table's name as those who create it at the same time have it, however they write it.
    fn creation(&self, connection: &Connection) -> Result<String> {
        let parts = self.target.table.parts();
        let rows = self.shared.rows(connection, "SELECT current_database(), current_schema()", Parameters::None)?;
        let [database, schema] = rows.first().map_or(&[][..], Vec::as_slice) else {
            return Err(Error::internal("a connection has no current schema"));
        };
        let whole = match parts {
            [table] => [database, schema, table],
            // The first may be a database's name, too; then two of the same name in two schemas wait for each other.
            [first, table] => [database, if first == database { schema } else { first }, table],
            [catalog, schema, table] => [catalog, schema, table],
            _ => return Err(Error::internal("a table's name has one to three parts")),
        };
        Ok(whole.map(|part| quote(&part.to_lowercase())).join("."))
    }

    fn source(&self, connection: &Connection) -> Result<Schema> {
        self.shared.bind(connection, &format!("SELECT * FROM {}", self.source.call()))
    }

    /// How the stream fits the table that is there; nothing where it is to be created.
    fn existing(&self, connection: &Connection, table: &str) -> Result<Option<Vec<Column>>> {
        let Target { table: name, mode, .. } = &self.target;
        let shared = self.shared;
        // Asked as an INSERT: a SELECT would take a table that is missing for a file of its name.
        let there = || match shared.bind(connection, &format!("INSERT INTO {table} DEFAULT VALUES")) {
            Ok(_) => shared.bind(connection, &format!("SELECT * FROM {table}")).map(Some),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        };
        let missing = || Error::NotFound(format!("table {name} does not exist, and is not to be created"));
        let existing = match mode {
            Mode::CreateOrAppend | Mode::ReplaceRows | Mode::ReplaceRowsOrTable => there()?,
            Mode::Append => Some(there()?.ok_or_else(missing)?),
            Mode::ReplaceExisting => there()?.ok_or_else(missing).map(|_| None)?,
            Mode::Create | Mode::Replace => None,
        };
        let Some(existing) = existing else { return Ok(None) };
        let fits = columns::fitted(shared, &self.source(connection)?, &existing, &name.to_string());
        if !mode.replaces_rows() {
            return fits.map(Some);
        }
        match fits.and_then(|columns| self.covering(connection, table, &existing, columns)) {
            Ok(columns) => Ok(Some(columns)),
            Err(Error::Invalid(_)) if mode.replaces_table() => Ok(None),
            Err(Error::Invalid(why)) => Err(Error::Invalid(format!(
                "{why}; nothing was replaced: its keys, defaults, indexes and comments would be lost with the table (\"force\": true, or \
                 --force, creates it anew without them)"
            ))),
            Err(error) => Err(error),
        }
    }

    fn as_sent(&self, connection: &Connection) -> Result<Vec<Column>> {
        let declared: Vec<Option<String>> =
            self.schema.fields().iter().map(|field| field.metadata().get(DUCKDB_TYPE).cloned()).collect();
        columns::as_sent(connection, &self.source(connection)?, &declared)
    }

    fn create(&self, connection: &Connection, table: &str, columns: &[Column]) -> Result<()> {
        let Target { mode, temporary, .. } = &self.target;
        let create = match (mode.replaces_table(), temporary) {
            (true, false) => "CREATE OR REPLACE TABLE",
            (true, true) => "CREATE OR REPLACE TEMP TABLE",
            (false, false) => "CREATE TABLE",
            (false, true) => "CREATE TEMP TABLE",
        };
        // Not CREATE TABLE AS .. WITH NO DATA over the stream: with DuckDB 2.0.0 that left an empty first row group,
        // and the rows of a parallel insert in the same transaction lay behind it, where no scan found them.
        let declared: Vec<String> =
            columns.iter().map(|column| format!("{} {}", quote(&column.name), column.duckdb_type)).collect();
        self.shared.execute(connection, &format!("{create} {table} ({})", declared.join(", "))).map(drop)
    }

    fn stage(&self, connection: &Connection, cancel: &Cancel, table: &str, opened: &Opened) -> Result<Report> {
        let (shared, Opened { columns, existed }) = (self.shared, opened);
        let (Target { table: name, mode, .. }, call) = (&self.target, self.source.call());
        let empties = *existed && mode.replaces_rows();
        if empties {
            shared.execute(connection, &format!("DELETE FROM {table}")).map_err(|error| match error {
                Error::Constraint(why) => Error::Constraint(format!(
                    "the rows of table {name} cannot be replaced while rows of another table refer to them: {why}"
                )),
                other => other,
            })?;
        }
        let comparable = self.verify && columns.iter().all(|column| column.exact);
        // Of what is sent, in the order in which it is sent: a table that was there may have more, and another order.
        let names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
        let sent = format!("(SELECT {} FROM {table})", names.join(", "));
        let before = match *existed && comparable && !empties {
            true => self.fingerprint(connection, &sent)?,
            false => Fingerprint { rows: 0, hash: 0 },
        };
        let stored: Vec<&Column> = columns.iter().filter(|column| !column.generated).collect();
        let into: Vec<String> = stored.iter().map(|column| quote(&column.name)).collect();
        let insert = format!("INSERT INTO {table} ({}) SELECT {} FROM {call}", into.join(", "), select_list(&stored));
        let mut rows = 0;
        // A statement only where rows are there, and more than one where the sender is slow: rows are waited for here,
        // and not by DuckDB's workers. (With DuckDB 2.0.0, an INSERT of no rows would also lose those of the next one.)
        while self.source.wait(&shared.metrics)? {
            let mut result =
                connection.query(insert.as_str(), Parameters::None).map_err(|error| shared.cause(&error))?;
            cancel.check()?;
            rows += result.drain().map_err(|error| shared.cause(&error))? as u64;
        }
        let fingerprint = if comparable {
            let after = self.fingerprint(connection, &sent)?;
            Some(Fingerprint { rows: after.rows - before.rows, hash: after.hash - before.hash })
        } else {
            None
        };
        Ok(Report { rows, fingerprint })
    }

    /// The columns of rows that replace all of a table's own: they have to have each of its columns that is not computed and
    /// has no default, and those that are computed are not stored.
    fn covering(
        &self,
        connection: &Connection,
        table: &str,
        there: &Schema,
        mut columns: Vec<Column>,
    ) -> Result<Vec<Column>> {
        let (shared, name) = (self.shared, &self.target.table);
        for column in &mut columns {
            let assigned = format!("INSERT INTO {table} ({}) VALUES (NULL)", quote(&column.name));
            column.generated = match shared.bind(connection, &assigned) {
                Err(Error::Sql(why)) => why.contains("generated column"),
                other => other.map(|_| false)?,
            };
        }
        for (missing, _) in there.get_all().map_err(Error::internal)? {
            if columns.iter().any(|column| column.name.eq_ignore_ascii_case(&missing)) {
                continue;
            }
            let assigned = format!("INSERT INTO {table} ({}) VALUES (NULL)", quote(&missing));
            let generated =
                matches!(shared.bind(connection, &assigned), Err(Error::Sql(why)) if why.contains("generated column"));
            if !generated && !self.has_default(connection, table, &missing)? {
                return Err(Error::invalid(format!(
                    "column \"{missing}\" of table {name} is not in the stream, and has no default"
                )));
            }
        }
        Ok(columns)
    }

    fn has_default(&self, connection: &Connection, table: &str, column: &str) -> Result<bool> {
        let described = format!(
            "SELECT count(*)::VARCHAR FROM (DESCRIBE {table}) WHERE column_name = {} AND \"default\" IS NOT NULL",
            literal(column)
        );
        let rows = self.shared.rows(connection, &described, Parameters::None)?;
        Ok(rows.first().and_then(|row| row.first()).is_some_and(|count| count != "0"))
    }

    fn fingerprint(&self, connection: &Connection, relation: &str) -> Result<Fingerprint> {
        let rows = self.shared.rows(connection, &Fingerprint::sql(relation), Parameters::None)?;
        Fingerprint::from_row(rows.first().map_or(&[], Vec::as_slice))
    }
}

fn select_list(columns: &[&Column]) -> String {
    let selected: Vec<String> =
        columns.iter().map(|column| format!("{} AS {}", column.expression, quote(&column.name))).collect();
    selected.join(", ")
}
