//! One process has the database: a lock file beside it and a lock of the file itself, both held for the process's life, and
//! the database file sealed.
//!
//! DuckDB's own lock (fcntl) is lost as soon as anything in the process opens and closes the file, SQL included; a lock of
//! an open file description (flock) is not. The lock file is there before the database is, and says who has it. The lock
//! of the file belongs to the file and not to its name, so that a hard link, or the file mounted elsewhere, is not another
//! database. A symbolic link is followed first: the lock and the logs are beside the file that it leads to. The seal takes the
//! file's mode away while DuckDB has it open, so that the kernel refuses every other way to it to all but root. Both are
//! undone at an orderly close; after a crash, the next start or `chmod` does it.

use std::{
    fs::{File, Metadata, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags};

use super::restore;
use crate::error::{Error, Result};

/// Where nothing is known of the mode that a seal has taken away.
const DEFAULT_MODE: u32 = 0o600;

/// What DuckDB keeps beside a database, by the name that it was opened with: commits that the database has not.
pub(super) const LOGS: [&str; 3] = [".wal", ".wal.checkpoint", ".wal.recovery"];

/// As many symbolic links as Linux itself follows.
const MAX_LINKS: usize = 40;

/// The locks, and the mode to give back. Dropped after DuckDB has closed the file.
pub(super) struct Hold {
    lock: File,
    /// The database file, locked, from when there is one. Not closed before DuckDB closes it: that would end DuckDB's lock.
    file: Option<File>,
    given: PathBuf,
    database: PathBuf,
    sealed: Option<u32>,
    /// Whether DuckDB has it open, or had.
    is_opened: bool,
    /// What the lock file says once this is dropped.
    last: Note,
}

/// `database` with an ending.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_os_string();
    name.push(ending);
    name.into()
}

/// What a holder writes into its lock file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Note {
    pid: Option<u32>,
    /// Which file the database is, while it is open and after a crash.
    inode: Option<u64>,
    mode: Option<u32>,
    /// The ending of the name under which a restore puts the old database aside, while it does that.
    restoring: Option<String>,
}

impl Note {
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        // Nothing known is what is left where it cannot be read.
        let _ = file.rewind().and_then(|()| file.take(256).read_to_string(&mut text));
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Self {
            pid: value("pid").and_then(|pid| pid.parse().ok()),
            inode: value("inode").and_then(|inode| inode.parse().ok()),
            mode: value("mode").and_then(|mode| u32::from_str_radix(mode, 8).ok()).filter(|mode| *mode != 0),
            restoring: value("restoring").map(str::to_string),
        }
    }

    fn write(&self, file: &mut File) -> std::io::Result<()> {
        let mut text = String::new();
        if let Some(pid) = self.pid {
            text.push_str(&format!("pid {pid}\n"));
        }
        if let Some(inode) = self.inode {
            text.push_str(&format!("inode {inode}\n"));
        }
        if let Some(mode) = self.mode {
            text.push_str(&format!("mode {mode:o}\n"));
        }
        if let Some(ending) = &self.restoring {
            text.push_str(&format!("restoring {ending}\n"));
        }
        // What was there is overwritten and not removed first, so that a crash in between forgets nothing.
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        file.sync_data()
    }
}

impl Hold {
    /// Takes the locks, ends a restore that was killed, and undoes the seal of one who crashed. Changes nothing else.
    pub(super) fn take(given: &Path) -> Result<Self> {
        let shown = given.display();
        let (database, _) = follow(given)?;
        let path = beside(&database, ".lock");
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
        let found = Note::read(&mut lock);
        let last = Note { pid: None, ..found.clone() };
        let mut hold =
            Self { lock, file: None, given: given.to_path_buf(), database, sealed: None, is_opened: false, last };
        hold.file = hold.lock_file(&found)?;
        if let Some(ending) = &found.restoring {
            restore::finish(&hold.database, ending)?;
            hold.last.restoring = None;
        } else {
            restore::forget(&hold.database);
        }
        // Only for people; a full volume is no reason not to start.
        let _ = Note { pid: Some(std::process::id()), ..hold.last.clone() }.write(&mut hold.lock);
        Ok(hold)
    }

    /// Where the file is that the configured path leads to.
    pub(super) fn database(&self) -> &Path {
        &self.database
    }

    /// The database file, if there is one, locked and with a mode. One that another process has is left as it is.
    fn lock_file(&mut self, found: &Note) -> Result<Option<File>> {
        let shown = self.given.display();
        let Ok(there) = std::fs::metadata(&self.database) else { return Ok(None) };
        if !there.is_file() {
            return Ok(None);
        }
        let in_use = |who: Option<u32>| {
            let who = who.map_or("another process".into(), |pid| format!("pid {pid}"));
            Error::InUse(format!(
                "database {shown} is in use by {who}, which has the same file under another name; stop it first, or \
                 serve another file"
            ))
        };
        let is_sealed = mode_of(&there) == 0;
        if is_sealed {
            if let Some(pid) = locked_by(&there) {
                return Err(in_use(Some(pid)));
            }
            let sealed_here = found.mode.is_some() && found.inode.is_none_or(|inode| inode == there.ino());
            if !sealed_here && there.nlink() > 1 {
                return Err(Error::InUse(format!(
                    "database {shown} is sealed (mode 000) by a server that opened it under another name (it has {}): \
                     start that name, beside which its write-ahead log is; or, if no server has it and there is no such \
                     log, chmod 600 {}",
                    there.nlink(),
                    self.database.display()
                )));
            }
        }
        let allow = |mode| std::fs::set_permissions(&self.database, Permissions::from_mode(mode));
        let unsealing = |error: io::Error| {
            Error::Io(format!("database {shown} is sealed and its mode cannot be restored: {error}"))
        };
        let mut lent = false;
        let mut opened = open(&self.database);
        if is_sealed && opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
            // Nobody is known to have it; the lock says it for sure, and needs the file to be readable for a moment.
            allow(0o400).map_err(unsealing)?;
            lent = true;
            opened = open(&self.database);
        }
        let file = match opened {
            Ok(file) => file,
            Err(_) if !is_sealed => return Ok(None), // DuckDB says why.
            Err(error) => {
                if lent {
                    let _ = allow(0);
                }
                return Err(unsealing(error));
            }
        };
        if !lock(&file).map_err(|error| Error::Io(format!("cannot lock database {shown}: {error}")))? {
            if lent {
                let _ = allow(0);
            }
            return Err(in_use(locked_by(&there)));
        }
        if is_sealed {
            let mode = found.mode.unwrap_or(DEFAULT_MODE);
            file.set_permissions(Permissions::from_mode(mode)).map_err(unsealing)?;
            self.last.mode = None;
        }
        Ok(Some(file))
    }

    /// Refuses a database that is not what the files beside it belong to: DuckDB finds logs by name, and would open it
    /// without the commits that are in them, or make an empty one.
    pub(super) fn check_names(&self) -> Result<()> {
        let (given, database) = (self.given.display(), self.database.display());
        let (_, links) = follow(&self.given)?;
        for link in links {
            for log in LOGS.map(|ending| beside(&link, ending)) {
                if !is_empty(&log) && !LOGS.iter().any(|own| is_same(&log, &beside(&self.database, own))) {
                    let log = log.display();
                    return Err(Error::Corrupt(format!(
                        "cannot open database {given}: it is a symbolic link to {database}, and the write-ahead log {log} \
                         is beside the link, where its commits would be missed; nothing was changed. If it is newer than \
                         the file's own, move it beside the file, else move it away"
                    )));
                }
            }
        }
        let own_log = LOGS.map(|ending| beside(&self.database, ending)).into_iter().find(|log| !is_empty(log));
        let Ok(there) = std::fs::metadata(&self.database) else {
            if let Some(log) = own_log {
                let log = log.display();
                return Err(Error::Corrupt(format!(
                    "cannot open database {given}: there is no such file, but its write-ahead log {log} is there, and a \
                     new database would replace it; nothing was changed. Put the database back, or restore a backup \
                     (`mallard restore --force`), or move the log away to begin with an empty database"
                )));
            }
            if self.last.inode.is_some() || self.last.mode.is_some() {
                let lock = beside(&self.database, ".lock");
                let lock = lock.display();
                return Err(Error::Corrupt(format!(
                    "cannot open database {given}: there is no such file, but {lock} says that a server had it and that \
                     it was lost meanwhile; nothing was changed. Put the database back, or restore a backup (`mallard \
                     restore`), or remove {lock} to begin with an empty database"
                )));
            }
            return Ok(());
        };
        if self.last.inode.is_some_and(|inode| inode != there.ino()) {
            tracing::warn!(%database, "the database file is another than the last server had, which did not close it");
        }
        if !there.is_file() || there.nlink() == 1 || own_log.is_some() {
            return Ok(());
        }
        for name in names_of(&self.database, &there) {
            if let Some(log) = LOGS.map(|ending| beside(&name, ending)).iter().find(|log| !is_empty(log)) {
                let (name, log) = (name.display(), log.display());
                return Err(Error::Corrupt(format!(
                    "cannot open database {given}: the same file has the name {name}, too, and the write-ahead log {log} is \
                     beside that name, so that its commits would be missed; nothing was changed. Start {name} instead, or \
                     move its log away"
                )));
            }
        }
        tracing::warn!(
            %database, names = there.nlink(),
            "the database file has several names (hard links): its write-ahead log is only found by the name that it was \
             opened with, so open it by one name always"
        );
        Ok(())
    }

    /// DuckDB has opened the database, and made its file if there was none: takes its lock, and its mode away if `seal`. A
    /// file system that refuses the seal is warned of.
    pub(super) fn opened(&mut self, seal: bool) -> Result<()> {
        let shown = self.given.display();
        if self.file.is_none()
            && let Ok(file) = open(&self.database)
        {
            if !lock(&file).map_err(|error| Error::Io(format!("cannot lock database {shown}: {error}")))? {
                return Err(Error::InUse(format!("database {shown} is in use by another process")));
            }
            self.file = Some(file);
        }
        let Some(there) = self.file.as_ref().and_then(|file| file.metadata().ok()) else { return Ok(()) };
        (self.is_opened, self.last) = (true, Note::default());
        let mode = mode_of(&there);
        // Known to the next start before it is gone; where there is no room for that, that start makes it 600.
        let note = Note { pid: Some(std::process::id()), inode: Some(there.ino()), ..Note::default() };
        let _ = Note { mode: seal.then_some(mode), ..note }.write(&mut self.lock);
        if seal && let Some(file) = &self.file {
            match file.set_permissions(Permissions::from_mode(0o000)) {
                Ok(()) => self.sealed = Some(mode),
                Err(error) => {
                    let database = self.database.display();
                    tracing::warn!(%database, %error, "the database file cannot be sealed (database.seal)");
                }
            }
        }
        Ok(())
    }

    /// Says that a restore begins, with the ending of the name under which the old database is put aside; or, with `None`,
    /// that there is none any more, and that nothing is known of the file that is there now.
    pub(super) fn note_restore(&mut self, aside: Option<&str>) -> Result<()> {
        match aside {
            Some(ending) => self.last.restoring = Some(ending.to_string()),
            None => self.last = Note::default(),
        }
        let note = Note { pid: Some(std::process::id()), ..self.last.clone() };
        let path = beside(&self.database, ".lock");
        note.write(&mut self.lock).map_err(|error| Error::Io(format!("cannot write {}: {error}", path.display())))
    }

    /// What has happened to the file of a database that is open, if its path does not lead to it any more.
    pub(super) fn lost(&self) -> Option<&'static str> {
        let own = self.file.as_ref().filter(|_| self.is_opened)?.metadata().ok()?;
        match std::fs::metadata(&self.given) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => None,
            Ok(_) => Some(REPLACED),
            Err(error) if error.kind() == ErrorKind::NotFound => Some("the database file was removed or renamed"),
            // Of a directory that cannot be read for now nothing is known.
            Err(_) => None,
        }
    }
}

/// What has happened to a file where another is in its place.
pub(super) const REPLACED: &str = "the database file was replaced by another";

/// A lock of a database that is only read, which other readers may have, too; nothing is written beside the file. It is not
/// closed before DuckDB closes it.
pub(super) fn share(given: &Path) -> Result<File> {
    let shown = given.display();
    let place = place(given);
    let in_use = || {
        let who = holder(&place).unwrap_or_else(|| "another process".into());
        Error::InUse(format!("database {shown} cannot be read while {who} writes it; stop it first"))
    };
    let file = open(&place).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied if is_sealed(&place) => in_use(),
        _ => Error::Io(format!("cannot open database {shown}: {error}")),
    })?;
    if rustix::fs::fstatfs(&file).is_ok_and(|volume| REMOTE.contains(&(volume.f_type.cast_unsigned() as u32))) {
        return Ok(file);
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use()),
        // Where there are no such locks, DuckDB's own is the lock.
        _ => Ok(file),
    }
}

impl Hold {
    /// Whether DuckDB has the log open, but it has no name any more.
    pub(super) fn lost_log(&self) -> bool {
        let log = beside(&self.database, LOGS[0]);
        if !self.is_opened || log.exists() {
            return false;
        }
        let directory = log.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (Ok(directory), Some(name)) = (directory.canonicalize(), log.file_name()) else { return false };
        let mut removed = directory.join(name).into_os_string();
        // As proc(5) shows a file that was removed.
        removed.push(" (deleted)");
        let mut open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        open.any(|descriptor| std::fs::read_link(descriptor.path()).is_ok_and(|file| file.as_os_str() == removed))
    }

    /// Gives the file's mode back. The locks stay.
    pub(super) fn unseal(&mut self) {
        if let (Some(mode), Some(file)) = (self.sealed.take(), &self.file)
            && let Err(error) = file.set_permissions(Permissions::from_mode(mode))
        {
            let database = self.database.display();
            tracing::warn!(%database, %error, "the database file's mode cannot be restored; the next start does it");
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.unseal();
        if let Some(how) = self.lost() {
            let database = self.database.display();
            tracing::error!(%database, "{how}: what was written since is in no file that has a name");
            self.last.inode = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|file| file.ino());
        }
        // Nobody holds it any more; the file stays, because removing it would race with whoever opens it now.
        let _ = self.last.write(&mut self.lock);
    }
}

/// Where a path leads whose last part may be a symbolic link, also where nothing is yet; and the links on the way.
fn follow(path: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let (mut at, mut links) = (path.to_path_buf(), Vec::new());
    while let Ok(next) = std::fs::read_link(&at) {
        if links.len() == MAX_LINKS {
            return Err(Error::Io(format!("cannot open database {}: too many symbolic links", path.display())));
        }
        let next = at.parent().unwrap_or(Path::new("")).join(next);
        links.push(std::mem::replace(&mut at, next));
    }
    Ok((at, links))
}

/// Where the file of a database is, for those who only look.
pub(super) fn place(database: &Path) -> PathBuf {
    follow(database).map_or_else(|_| database.to_path_buf(), |(place, _)| place)
}

fn open(database: &Path) -> io::Result<File> {
    // What is no file is DuckDB's to tell, and a pipe must not be waited for.
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(database)
}

/// Locks the file, if nobody else has. Where locks of files are those of their ranges, DuckDB's own is the lock.
fn lock(file: &File) -> io::Result<bool> {
    if rustix::fs::fstatfs(file).is_ok_and(|volume| REMOTE.contains(&(volume.f_type.cast_unsigned() as u32))) {
        return Ok(true);
    }
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOLCK | rustix::io::Errno::NOSYS) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// NFS, SMB, CIFS, SMB2 and 9P, by their numbers in statfs(2): Linux makes a flock there a lock of the range that DuckDB's
/// own lock is of.
const REMOTE: [u32; 5] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997];

/// The process that has a lock on this file, as far as this one sees it.
fn locked_by(file: &Metadata) -> Option<u32> {
    let name = format!("{:02x}:{:02x}:{}", rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()), file.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, of, ..] = words.as_slice() else { return None };
        (*of == name).then(|| pid.parse().ok())?
    })
}

/// Other names in the same directory.
fn names_of(database: &Path, file: &Metadata) -> Vec<PathBuf> {
    let directory = database.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let others = entries.filter(|entry| Some(entry.file_name().as_os_str()) != database.file_name());
    let same = others.filter(|entry| entry.metadata().is_ok_and(|at| (at.dev(), at.ino()) == (file.dev(), file.ino())));
    same.map(|entry| entry.path()).collect()
}

/// Whether there is nothing in this file, or no such file.
fn is_empty(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |file| file.len() == 0)
}

pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    file(one).is_some_and(|one| file(other) == Some(one))
}

fn mode_of(file: &Metadata) -> u32 {
    file.permissions().mode() & 0o7777
}

/// Whether a file that is there has no mode left.
pub(super) fn is_sealed(database: &Path) -> bool {
    std::fs::metadata(database).is_ok_and(|file| mode_of(&file) == 0)
}

/// Who holds the database now, if anybody: a text for people. Takes no lock that lasts.
pub(super) fn holder(database: &Path) -> Option<String> {
    let database = place(database);
    let by_name =
        OpenOptions::new().read(true).open(beside(&database, ".lock")).ok().and_then(
            |mut lock| match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => None,
                Err(_) => Some(Note::read(&mut lock).pid.map_or("another process".into(), |pid| format!("pid {pid}"))),
            },
        );
    by_name.or_else(|| {
        let file = std::fs::metadata(&database).ok().filter(Metadata::is_file)?;
        if let Some(pid) = locked_by(&file) {
            return Some(format!("pid {pid}"));
        }
        let opened = open(&database).ok()?;
        lock(&opened).is_ok_and(|free| !free).then(|| "another process".to_string())
    })
}
