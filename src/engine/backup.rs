//! A consistent copy of the database while it serves, verified before it gets its name.
//!
//! DuckDB copies the database in one transaction (`COPY FROM DATABASE`): schemas, tables with their constraints, views,
//! macros, types, sequences and indexes. The copy is then opened again, every table's rows are counted and hashed, and
//! must be what the same transaction saw in the source. What the server itself keeps beside the database (`kept`) is copied
//! beside the copy.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use duckdb::{Parameters, connection::Connection, environment::StorageLocation, instance::AttachBuilder};
use serde::{Deserialize, Serialize};

use super::{
    Engine, Shared,
    catalog::quote,
    hold::beside,
    ingest::Fingerprint,
    pool::Cancel,
    verify::{TableSum, sum_of, tables_of},
};
use crate::{
    access::Rights,
    config::Span,
    error::{Error, Result},
    machine,
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
    /// Attached databases, of which nothing is in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<String>,
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
        // The copy, its log, their directory and the sums; what cannot be done is told before it is begun.
        machine::spare_descriptors(8)?;
        let (file, made) = self.name();
        let partial = self.directory.join(format!(".{file}{PARTIAL}"));
        self.remove_partial()?;
        // Its log and what is half done are nobody else's to read, either.
        DirBuilder::new().mode(0o700).create(&partial).map_err(trouble)?;
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
            let entry = entry.map_err(trouble)?;
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            if !name.starts_with('.') {
                continue;
            }
            if name.ends_with(PARTIAL) && entry.file_type().map_err(trouble)?.is_dir() {
                std::fs::remove_dir_all(&path).map_err(trouble)?;
            } else if name.ends_with(PARTIAL) || name.ends_with(&format!("{PARTIAL}.wal")) {
                std::fs::remove_file(&path).map_err(trouble)?;
            }
        }
        Ok(())
    }

    /// In `directory`, whose files get their names when all is well.
    fn write(&self, directory: &Path, file: String, made: String) -> Result<Manifest> {
        let partial = &directory.join(&file);
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
        // All rows of all users are in it.
        std::fs::set_permissions(partial, Permissions::from_mode(0o600)).map_err(trouble)?;
        let bytes =
            File::open(partial).and_then(|file| file.sync_all().and_then(|()| file.metadata())).map_err(trouble)?;
        let manifest = Manifest {
            made,
            mallard: env!("CARGO_PKG_VERSION").into(),
            duckdb: Engine::duckdb_version().into(),
            bytes: bytes.len(),
            tables: stored,
            attached: self
                .shared
                .catalogs(self.connection)?
                .all_attached()
                .iter()
                .map(|one| one.name.clone())
                .collect(),
            file,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(Error::internal)?;
        let sums = directory.join("sums.json");
        let mut writing = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&sums).map_err(trouble)?;
        writing.write_all(&text).and_then(|()| writing.sync_all()).map_err(trouble)?;
        // The file last: where it is, its sums and the server's own state are.
        let target = self.directory.join(&manifest.file);
        self.shared.copy_state(&target)?;
        std::fs::rename(&sums, beside(&target, ".json")).map_err(trouble)?;
        std::fs::rename(partial, &target).map_err(trouble)?;
        // Empty now; one that stays is removed by the next backup.
        let _ = std::fs::remove_dir(directory);
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

/// The time as a part of a file's name, and as people write it.
pub(super) fn now() -> (String, String) {
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    (now.chars().filter(|c| c.is_ascii_alphanumeric()).collect(), now)
}

fn trouble(error: std::io::Error) -> Error {
    match machine::is_out_of_descriptors(&error) {
        true => machine::no_descriptors(error),
        false => Error::Io(format!("database.backup_directory: {error}")),
    }
}

fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(trouble)
}
