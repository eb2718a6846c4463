//! What the server itself keeps: a file beside the database, `DATABASE.mallard`, which no SQL reaches.
//!
//! It knows nothing of what the texts mean. The file is replaced in one step and flushed before a change counts as made,
//! so that a crash leaves the state before it or after it. Its first line has the hash of the rest. One that is damaged is
//! put aside, and the server starts without it.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use duckdb::{Parameters, connection::Connection};
use serde::{Deserialize, Serialize};

use super::{Engine, Shared, catalog::quote, hold::beside};
use crate::{
    access::OWN_SCHEMA,
    error::{Error, Result},
    machine,
};

/// One version of a registered exchanger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptExchanger {
    pub name: String,
    pub version: u64,
    pub owner: String,
    /// Empty for none.
    pub description: String,
    /// JSON.
    pub definition: String,
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct State {
    exchangers: Vec<KeptExchanger>,
}

/// How the first line begins; the hash of what follows it comes behind.
const FORMAT: &str = "mallard state 1 sha256 ";

/// Where the state of a database is.
pub(super) fn state_of(database: &Path) -> PathBuf {
    beside(database, ".mallard")
}

impl State {
    /// Nothing where there is no such file.
    pub(super) fn read(file: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if machine::is_out_of_descriptors(&error) => return Err(machine::no_descriptors(error)),
            Err(error) => return Err(Error::Io(format!("{}: {error}", file.display()))),
        };
        let damaged = |why: &str| Error::Corrupt(format!("{} is damaged: {why}", file.display()));
        let line = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has no first line"))?;
        let (head, body) = (&bytes[..line], &bytes[line + 1..]);
        let sum = head.strip_prefix(FORMAT.as_bytes()).ok_or_else(|| damaged("its first line is another one"))?;
        if sum != hash(body).as_bytes() {
            return Err(damaged("its contents are not what their hash says"));
        }
        serde_json::from_slice(body).map(Some).map_err(|error| damaged(&error.to_string()))
    }

    /// Durable when this returns; else what was there before is there still.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let body = serde_json::to_vec(self).map_err(Error::internal)?;
        let head = format!("{FORMAT}{}\n", hash(&body));
        let new = beside(file, ".new");
        let written = (|| {
            let mut writer = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            writer.write_all(head.as_bytes())?;
            writer.write_all(&body)?;
            writer.sync_all()?;
            std::fs::rename(&new, file)?;
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(directory)?.sync_all()
        })();
        written.map_err(|error: std::io::Error| match machine::is_out_of_descriptors(&error) {
            true => machine::no_descriptors(error),
            false => Error::Io(format!("the server's own state cannot be stored: {error}")),
        })
    }
}

fn hash(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Shared {
    /// Where the server's own state is, if the database is a file.
    fn state_file(&self) -> Option<PathBuf> {
        self.file.as_deref().map(state_of)
    }

    /// At start: what an earlier version kept in the database moves out of it, and damaged state is put aside.
    pub(super) fn prepare_state(&self, connection: &Connection) {
        let Some(file) = self.state_file() else { return };
        match State::read(&file) {
            Ok(Some(_)) => {}
            Ok(None) => {
                let state = self.state_in_database(connection).unwrap_or_else(|error| {
                    tracing::warn!(%error, "what an earlier version kept in the database cannot be read; exchangers are lost");
                    State::default()
                });
                if let Err(error) = state.write(&file) {
                    tracing::warn!(%error, "exchangers cannot be registered");
                    return;
                }
            }
            Err(error) => {
                let stamp = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
                let stamp: String = stamp.chars().filter(char::is_ascii_alphanumeric).collect();
                let aside = beside(&file, &format!(".damaged-{stamp}"));
                let moved = std::fs::rename(&file, &aside).map_err(|error| Error::Io(error.to_string()));
                let outcome = moved.and_then(|()| State::default().write(&file)).err();
                let outcome = outcome.map(|error| error.to_string());
                tracing::warn!(%error, aside = %aside.display(), failure = outcome, "the server's own state is damaged; it starts without the exchangers that were registered");
            }
        }
        if let Err(error) = self.remove_from_database(connection) {
            tracing::warn!(%error, "the schema that an earlier version kept its state in cannot be removed");
        }
    }

    fn has_table(&self, connection: &Connection) -> Result<bool> {
        let there = "SELECT count(*)::VARCHAR FROM duckdb_tables() \
                     WHERE database_name = current_database() AND schema_name = $1 AND table_name = 'exchangers'";
        let there = self.rows(connection, there, Parameters::positional(&[&OWN_SCHEMA]))?;
        Ok(there.iter().flatten().any(|count| count != "0"))
    }

    fn state_in_database(&self, connection: &Connection) -> Result<State> {
        if !self.has_table(connection)? {
            return Ok(State::default());
        }
        let select = format!(
            "SELECT name, version::VARCHAR, owner, description, definition FROM {}.exchangers ORDER BY name, version",
            quote(OWN_SCHEMA)
        );
        let rows = self.rows(connection, &select, Parameters::None)?;
        let exchangers = rows.into_iter().filter_map(|row| {
            let [name, version, owner, description, definition] = <[String; 5]>::try_from(row).ok()?;
            let version = version.parse().ok()?;
            Some(KeptExchanger { name, version, owner, description, definition })
        });
        Ok(State { exchangers: exchangers.collect() })
    }

    fn remove_from_database(&self, connection: &Connection) -> Result<()> {
        if self.has_table(connection)? {
            let schema = quote(OWN_SCHEMA);
            self.execute(connection, &format!("DROP TABLE {schema}.exchangers"))?;
            self.execute(connection, &format!("DROP SCHEMA {schema}"))?;
        }
        Ok(())
    }

    fn change_state(&self, change: impl FnOnce(&mut Vec<KeptExchanger>)) -> Result<()> {
        let file = self.state_file().ok_or_else(|| Error::internal("a database in memory keeps nothing"))?;
        let mut state = State::read(&file)?.unwrap_or_default();
        change(&mut state.exchangers);
        state.write(&file)
    }

    /// The state beside a backup of the database. Whether there is one.
    pub(super) fn copy_state(&self, backup: &Path) -> Result<bool> {
        let Some(file) = self.state_file() else { return Ok(false) };
        let Some(state) = State::read(&file)? else { return Ok(false) };
        state.write(&state_of(backup)).map(|()| true)
    }
}

impl Engine {
    /// Whether what is kept outlives the process.
    pub fn is_on_disk(&self) -> bool {
        self.shared.config.database.file().is_some()
    }

    /// Stores a version, and forgets those of its name that are older than `oldest`. Durable when this returns.
    pub async fn keep_exchanger(&self, kept: KeptExchanger, oldest: u64) -> Result<()> {
        self.aside(move |shared, _| {
            shared.change_state(|exchangers| {
                exchangers.retain(|other| {
                    other.name != kept.name || (other.version >= oldest && other.version != kept.version)
                });
                exchangers.push(kept);
                exchangers.sort_by(|one, other| (&one.name, one.version).cmp(&(&other.name, other.version)));
            })
        })
        .await
    }

    /// Forgets one version, or all of that name.
    pub async fn forget_exchanger(&self, name: String, version: Option<u64>) -> Result<()> {
        self.aside(move |shared, _| {
            shared.change_state(|exchangers| {
                exchangers.retain(|kept| kept.name != name || version.is_some_and(|version| kept.version != version));
            })
        })
        .await
    }

    /// All that are kept, by name and version.
    pub async fn kept_exchangers(&self) -> Result<Vec<KeptExchanger>> {
        self.aside(|shared, _| {
            let Some(file) = shared.state_file() else { return Ok(Vec::new()) };
            Ok(State::read(&file)?.unwrap_or_default().exchangers)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let kept = |version| KeptExchanger {
            name: "even".into(),
            version,
            owner: "ann".into(),
            description: "it's \"kept\"\n".into(),
            definition: "{}".into(),
        };
        State { exchangers: vec![kept(1), kept(2)] }
    }

    #[test]
    fn state_is_read_as_it_was_written_and_every_changed_byte_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = state_of(&directory.path().join("m.duckdb"));
        assert_eq!(State::read(&file).expect("no file is no error"), None);
        state().write(&file).expect("it is written");
        assert_eq!(State::read(&file).expect("it is whole"), Some(state()));
        let whole = std::fs::read(&file).expect("it is there");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).expect("it is written");
            assert!(matches!(State::read(&file), Err(Error::Corrupt(_))), "byte {at}");
        }
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).expect("it is written");
            assert!(matches!(State::read(&file), Err(Error::Corrupt(_))), "{length} bytes");
        }
        // What a crash leaves half written is not read, and does not stop the next write.
        std::fs::write(beside(&file, ".new"), b"half").expect("it is written");
        state().write(&file).expect("it is written");
        assert_eq!(State::read(&file).expect("it is whole"), Some(state()));
    }
}
