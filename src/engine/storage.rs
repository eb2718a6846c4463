//! What the database holds, in memory and on disk: for metrics.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use duckdb::{Parameters, connection::Connection};

use super::{Engine, Shared};
use crate::{error::Result, machine, telemetry::Storage};

impl Engine {
    /// Reads what a scrape shows, beside what runs. Files and volumes are read also where DuckDB does not answer.
    pub async fn storage(&self, patience: Duration) -> Storage {
        let asked = self.stored.get(self.for_probe(|shared, connection| shared.memory(connection)));
        let (memory, memory_limit) =
            tokio::time::timeout(patience, asked).await.ok().and_then(Result::ok).unwrap_or_default();
        let shared = &self.shared;
        shared.notice_checkpoint();
        let mut volumes = Vec::new();
        if let Some(path) = shared.file() {
            volumes.extend(volume("database", path));
        }
        let temporary = &shared.config.database.temp_directory;
        if !temporary.is_empty() {
            volumes.extend(volume("temp", Path::new(temporary)));
        }
        let database_size = shared.file().map_or(0, file_size);
        Storage { memory, memory_limit, database_size, wal_size: shared.wal_size(), volumes }
    }
}

/// By tag: bytes in memory and in temporary files; and DuckDB's limit.
pub(super) type Memory = (Vec<(String, u64, u64)>, Option<u64>);

impl Shared {
    fn memory(&self, connection: &Connection) -> Result<Memory> {
        let rows = self.rows(
            connection,
            "SELECT tag, memory_usage_bytes::VARCHAR, temporary_storage_bytes::VARCHAR FROM duckdb_memory()",
            Parameters::None,
        )?;
        let number = |text: &String| text.parse().unwrap_or(0);
        let memory = rows.iter().filter_map(|row| match row.as_slice() {
            [tag, memory, temporary] => Some((tag.clone(), number(memory), number(temporary))),
            _ => None,
        });
        let limit = self.rows(connection, "SELECT current_setting('memory_limit')", Parameters::None)?;
        let limit = limit.first().and_then(|row| row.first()?.parse::<bytesize::ByteSize>().ok());
        Ok((memory.collect(), limit.map(|size| size.as_u64())))
    }

    /// The database file, if there is one.
    fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    fn wal_size(&self) -> u64 {
        let Some(file) = self.file() else { return 0 };
        let beside = |ending: &str| {
            let mut name = file.as_os_str().to_os_string();
            name.push(ending);
            file_size(Path::new(&name))
        };
        beside(".wal") + beside(".wal.checkpoint")
    }

    /// DuckDB checkpoints by itself and tells nobody; what shows is a write-ahead log that has become shorter.
    pub(super) fn notice_checkpoint(&self) {
        let now = self.wal_size();
        if now < self.last_wal_size.swap(now, Ordering::Relaxed) {
            self.metrics.checkpoints.inc();
        }
    }
}

fn file_size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// Free space and size of the volume that holds `path`, or would hold it.
fn volume(what: &'static str, path: &Path) -> Option<(&'static str, u64, u64)> {
    let volume = machine::volume(path)?;
    Some((what, volume.free, volume.size))
}
