//! One process has the database: a lock file beside it, held for the process's life, and the database file sealed.
//!
//! DuckDB's own lock (fcntl) is lost as soon as anything in the process opens and closes the file, SQL included; a lock of
//! an open file description (flock) on a file that nobody else opens is not. The seal takes the file's mode away while
//! DuckDB has it open, so that the kernel refuses every other way to it to all but root. Both are undone at an orderly
//! close; after a crash, the next start or `chmod` does it.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{Read, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};

/// Where nothing is known of the mode that a seal has taken away.
const DEFAULT_MODE: u32 = 0o600;

/// The lock, and the mode to give back. Dropped after DuckDB has closed the file.
pub(super) struct Hold {
    lock: File,
    database: PathBuf,
    sealed: Option<u32>,
}

/// `database` with an ending.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_os_string();
    name.push(ending);
    name.into()
}

/// What a holder writes into its lock file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Note {
    pid: Option<u32>,
    mode: Option<u32>,
}

impl Note {
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        // Nothing known is what is left where it cannot be read.
        let _ = file.rewind().and_then(|()| file.take(256).read_to_string(&mut text));
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Self {
            pid: value("pid").and_then(|pid| pid.parse().ok()),
            mode: value("mode").and_then(|mode| u32::from_str_radix(mode, 8).ok()).filter(|mode| *mode != 0),
        }
    }

    fn write(&self, file: &mut File) -> std::io::Result<()> {
        let mut text = String::new();
        if let Some(pid) = self.pid {
            text.push_str(&format!("pid {pid}\n"));
        }
        if let Some(mode) = self.mode {
            text.push_str(&format!("mode {mode:o}\n"));
        }
        file.rewind()?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()
    }
}

impl Hold {
    /// Takes the lock and undoes the seal of one who crashed. Changes nothing else.
    pub(super) fn take(database: &Path) -> Result<Self> {
        let shown = database.display();
        let path = beside(database, ".lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = opened.map_err(|error| {
            Error::Io(format!(
                "cannot open database {shown}: {} cannot be written ({error}); the server needs to write the database's \
                 directory, where the lock and the write-ahead log are",
                path.display()
            ))
        })?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let who = Note::read(&mut lock).pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
                return Err(Error::InUse(format!(
                    "database {shown} is in use by another process{who}, which holds {}; stop it first, or serve \
                     another file",
                    path.display()
                )));
            }
            Err(error) => return Err(Error::Io(format!("cannot lock {}: {error}", path.display()))),
        }
        let found = Note::read(&mut lock).mode;
        if mode(database) == Some(0) {
            let mode = found.unwrap_or(DEFAULT_MODE);
            std::fs::set_permissions(database, Permissions::from_mode(mode)).map_err(|error| {
                Error::Io(format!("database {shown} is sealed and its mode cannot be restored: {error}"))
            })?;
        }
        // Only for people; a full volume is no reason not to start.
        let _ = Note { pid: Some(std::process::id()), mode: None }.write(&mut lock);
        Ok(Self { lock, database: database.to_path_buf(), sealed: None })
    }

    /// Takes the file's mode away. A file system that refuses is warned of.
    pub(super) fn seal(&mut self) {
        let Some(mode) = mode(&self.database) else { return };
        // Known to the next start before it is gone; where there is no room for that, that start makes it 600.
        let _ = Note { pid: Some(std::process::id()), mode: Some(mode) }.write(&mut self.lock);
        match std::fs::set_permissions(&self.database, Permissions::from_mode(0o000)) {
            Ok(()) => self.sealed = Some(mode),
            Err(error) => {
                let database = self.database.display();
                tracing::warn!(%database, %error, "the database file cannot be sealed (database.seal)");
            }
        }
    }
}

impl Hold {
    /// Gives the file's mode back. The lock stays.
    pub(super) fn unseal(&mut self) {
        if let Some(mode) = self.sealed.take()
            && let Err(error) = std::fs::set_permissions(&self.database, Permissions::from_mode(mode))
        {
            let database = self.database.display();
            tracing::warn!(%database, %error, "the database file's mode cannot be restored; the next start does it");
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.unseal();
        // Nobody holds it any more; the file stays, because removing it would race with whoever opens it now.
        let _ = Note::default().write(&mut self.lock);
    }
}

fn mode(path: &Path) -> Option<u32> {
    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o7777)
}

/// Whether a file that is there has no mode left.
pub(super) fn is_sealed(database: &Path) -> bool {
    mode(database) == Some(0)
}

/// Who holds the database now, if anybody: a text for people. Takes no lock that lasts.
pub(super) fn holder(database: &Path) -> Option<String> {
    let mut lock = OpenOptions::new().read(true).open(beside(database, ".lock")).ok()?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => None,
        Err(_) => Some(Note::read(&mut lock).pid.map_or("another process".into(), |pid| format!("pid {pid}"))),
    }
}
