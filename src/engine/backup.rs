//! A consistent copy of the database while it serves, verified before it gets its name; and a copy put back.
//!
//! DuckDB copies the database in one transaction (`COPY FROM DATABASE`): schemas, tables with their constraints, views,
//! macros, types, sequences and indexes. The copy is then opened again, every table's rows are counted and hashed, and
//! must be what the same transaction saw in the source.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use duckdb::{Parameters, connection::Connection, environment::StorageLocation, instance::AttachBuilder};
use serde::{Deserialize, Serialize};

use super::{
    Engine, Shared,
    catalog::quote,
    hold::{Hold, beside},
    ingest::Fingerprint,
    pool::Cancel,
    verify::{TableSum, sum_of, tables_of, verify},
};
use crate::{
    access::Rights,
    config::Span,
    error::{Error, Result},
};

/// What is written beside a backup, under its name with the ending `.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The file's name.
    pub file: String,
    pub made: String,
    pub mallard: String,
    pub duckdb: String,
    pub bytes: u64,
    pub tables: Vec<TableSum>,
}

impl Engine {
    /// Writes a backup into `database.backup_directory`. One at a time; dropping the future ends it and leaves nothing.
    pub async fn backup(&self, rights: &Rights) -> Result<Manifest> {
        let Some(directory) = self.shared.config.database.backup_directory.clone() else {
            return Err(Error::Unsupported(
                "this server makes no backups: database.backup_directory is not set".into(),
            ));
        };
        let slot = self.pool.slot(rights).await?;
        let began = Instant::now();
        // Of the size of the database, and not bounded by what a statement may take.
        let made = self
            .call_within(slot, Span(Duration::ZERO), move |shared, connection, cancel| {
                let Ok(_alone) = shared.backing_up.try_lock() else {
                    return Err(Error::Conflict("a backup is under way already".into()));
                };
                Work { shared, connection, cancel, directory: &directory }.run()
            })
            .await;
        self.shared.metrics.backed_up(&made, began.elapsed());
        match &made {
            Ok(made) => {
                tracing::info!(file = %made.file, bytes = made.bytes, tables = made.tables.len(), "backup made")
            }
            Err(error) => tracing::warn!(%error, "backup failed"),
        }
        made
    }
}

struct Work<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    cancel: &'a Cancel,
    directory: &'a Path,
}

/// What a backup is called until it is verified; after a crash one may be left, which the next backup removes.
const PARTIAL: &str = ".partial";

impl Work<'_> {
    fn run(&self) -> Result<Manifest> {
        let (file, made) = self.name();
        let partial = self.directory.join(format!(".{file}{PARTIAL}"));
        self.remove_partial()?;
        let outcome = self.write(&partial, file, made);
        if outcome.is_err() {
            // What cannot be removed is removed by the next backup.
            let _ = self.remove_partial();
        }
        outcome
    }

    /// Of the database and the time, and the time as people write it.
    fn name(&self) -> (String, String) {
        let stem = self.shared.config.database.file().and_then(Path::file_stem).map(|stem| stem.to_string_lossy());
        let (stamp, made) = now();
        (format!("{}-{stamp}.duckdb", stem.as_deref().unwrap_or("memory")), made)
    }

    fn remove_partial(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.directory).map_err(trouble)? {
            let path = entry.map_err(trouble)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with('.') && (name.ends_with(PARTIAL) || name.ends_with(&format!("{PARTIAL}.wal"))) {
                std::fs::remove_file(&path).map_err(trouble)?;
            }
        }
        Ok(())
    }

    fn write(&self, partial: &Path, file: String, made: String) -> Result<Manifest> {
        let source = self.shared.database_name(self.connection)?;
        let copied = {
            let copy = self.attach(partial, false)?;
            self.execute("BEGIN TRANSACTION")?;
            let copied = self.copy(source, &copy.name);
            if let Err(error) = copied {
                let _ = self.execute("ROLLBACK");
                return Err(error);
            }
            self.execute("COMMIT")?;
            self.execute(&format!("CHECKPOINT {}", quote(&copy.name)))?;
            copied?
        };
        let stored = self.sums(&self.attach(partial, true)?.name)?;
        if stored != copied {
            return Err(Error::Unverified("the backup differs from what was copied".into()));
        }
        let bytes =
            File::open(partial).and_then(|file| file.sync_all().and_then(|()| file.metadata())).map_err(trouble)?;
        let manifest = Manifest {
            made,
            mallard: env!("CARGO_PKG_VERSION").into(),
            duckdb: Engine::duckdb_version().into(),
            bytes: bytes.len(),
            tables: stored,
            file,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(Error::internal)?;
        let beside_it = self.directory.join(format!(".{}.json{PARTIAL}", manifest.file));
        std::fs::write(&beside_it, text).and_then(|()| File::open(&beside_it)?.sync_all()).map_err(trouble)?;
        // The file last: where it is, its sums are.
        let target = self.directory.join(&manifest.file);
        std::fs::rename(&beside_it, beside(&target, ".json")).map_err(trouble)?;
        std::fs::rename(partial, &target).map_err(trouble)?;
        sync_directory(self.directory)?;
        Ok(manifest)
    }

    fn copy(&self, source: &str, target: &str) -> Result<Vec<TableSum>> {
        self.execute(&format!("COPY FROM DATABASE {} TO {}", quote(source), quote(target)))?;
        self.sums(source)
    }

    fn sums(&self, database: &str) -> Result<Vec<TableSum>> {
        let mut sums = Vec::new();
        for row in self.shared.rows(self.connection, &tables_of(database), Parameters::None)? {
            let [schema, table] = row.as_slice() else { continue };
            let rows = self.shared.rows(self.connection, &sum_of(database, schema, table), Parameters::None)?;
            self.cancel.check()?;
            sums.push(TableSum::new(schema, table, &Fingerprint::from_row(rows.first().map_or(&[], Vec::as_slice))?));
        }
        Ok(sums)
    }

    fn execute(&self, sql: &str) -> Result<()> {
        self.shared.execute(self.connection, sql)?;
        self.cancel.check()
    }

    /// Beside the served database, for as long as the value lives. By the API and not by SQL, which may not reach files.
    fn attach(&self, file: &Path, read_only: bool) -> Result<Attached<'_>> {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let location = StorageLocation::OnDisk(file.to_string_lossy().into_owned());
        let attachment = AttachBuilder::new(location).alias(&name).option("read_only", read_only.to_string());
        self.shared.on_instance(|instance| instance.attach(attachment).map(drop))?;
        Ok(Attached { shared: self.shared, connection: self.connection, name })
    }
}

/// Detached when dropped.
struct Attached<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    name: String,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        // Interrupted or not: a statement that does not run cannot be interrupted.
        if let Err(error) = self.shared.execute(self.connection, &format!("DETACH {}", quote(&self.name)))
            && let Err(again) = self.shared.on_instance(|instance| instance.detach(&self.name).map(drop))
        {
            tracing::warn!(%error, %again, "a backup's file is still attached");
        }
    }
}

/// What was put back.
#[derive(Debug, Serialize)]
pub struct Restored {
    pub tables: Vec<TableSum>,
    /// Whether the sums of the backup were there to compare with.
    pub compared: bool,
    /// Where the database is that was there before.
    pub kept: Option<PathBuf>,
}

/// Puts a backup, verified first, in the place of a database that nobody has open. What is there is moved aside if
/// `replace`, else refused. Blocks.
pub fn restore(backup: &Path, database: &Path, replace: bool) -> Result<Restored> {
    let shown = backup.display();
    if beside(backup, ".wal").exists() {
        return Err(Error::invalid(format!("{shown} has a write-ahead log beside it: it is a database and no backup")));
    }
    let mut tables = Vec::new();
    let mut broken = None;
    verify(backup, |_, _, read| match read {
        Ok(sum) => tables.push(sum),
        Err(error) => broken = broken.take().or(Some(error)),
    })?;
    if let Some(error) = broken {
        return Err(Error::Corrupt(format!("{shown} is not whole: {error}")));
    }
    let expected = match std::fs::read(beside(backup, ".json")) {
        Ok(text) => Some(
            serde_json::from_slice::<Manifest>(&text)
                .map_err(|error| Error::Corrupt(format!("{shown}.json does not describe a backup: {error}")))?,
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::Io(format!("{shown}.json: {error}"))),
    };
    if expected.as_ref().is_some_and(|expected| expected.tables != tables) {
        return Err(Error::Corrupt(format!("{shown} is not what {shown}.json says of it")));
    }
    let _hold = Hold::take(database)?;
    let log = beside(database, ".wal");
    let there = database.exists() || log.exists();
    if there && !replace {
        let database = database.display();
        return Err(Error::Exists(format!("{database} exists; --force puts it aside, under another name")));
    }
    let failed = |error: std::io::Error| Error::Io(format!("cannot write {}: {error}", database.display()));
    let partial = beside(database, ".restoring");
    std::fs::copy(backup, &partial).and_then(|_| File::open(&partial)?.sync_all()).map_err(failed)?;
    let directory = database.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = beside(database, &format!(".before-{}", now().0));
    // A crash leaves what was there, or what is restored; between these and the last step, the log of the one beside the
    // other, which is refused at the next start.
    if database.exists() {
        std::fs::hard_link(database, &aside).or_else(|_| std::fs::copy(database, &aside).map(drop)).map_err(failed)?;
        sync_directory(directory)?;
    }
    std::fs::rename(&partial, database).map_err(failed)?;
    sync_directory(directory)?;
    if log.exists() {
        std::fs::rename(&log, beside(&aside, ".wal")).map_err(failed)?;
        sync_directory(directory)?;
    }
    let kept = there.then_some(aside);
    Ok(Restored { tables, compared: expected.is_some(), kept })
}

/// The time as a part of a file's name, and as people write it.
fn now() -> (String, String) {
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    (now.chars().filter(|c| c.is_ascii_alphanumeric()).collect(), now)
}

fn trouble(error: std::io::Error) -> Error {
    Error::Io(format!("database.backup_directory: {error}"))
}

fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(trouble)
}
