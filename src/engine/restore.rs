//! A backup put in the place of a database, so that a crash at any moment leaves the old database whole or the new one.
//!
//! A database is two files while it has a log, and two files cannot be replaced at once. So the lock file says first what is
//! meant to happen. From there on the database and its logs get second names, the new file takes the place of the old one
//! in one step, and only then the logs that belong to the old one lose their first names. Whoever takes the lock next
//! finds a restore that did not end: it is undone before that one step and ended after it. What the server keeps beside the
//! database (`kept`) goes the same way; a backup without it may have it inside, as earlier versions did.

use std::{
    fs::{File, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    backup::{Manifest, now},
    hold::{Hold, LOGS, beside, is_same},
    kept::{State, state_of},
    verify::{TableSum, verify},
};
use crate::error::{Error, Result};

/// The ending of the new database's name until it takes the old one's place.
const PARTIAL: &str = ".restoring";

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
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(Error::Io(format!("{shown}.json: {error}"))),
    };
    if expected.as_ref().is_some_and(|expected| expected.tables != tables) {
        return Err(Error::Corrupt(format!("{shown} is not what {shown}.json says of it")));
    }
    State::read(&state_of(backup))?;
    let mut hold = Hold::take(database)?;
    let file = hold.database().to_path_buf();
    let there = file.exists() || LOGS.iter().any(|ending| beside(&file, ending).exists());
    if there && !replace {
        let database = database.display();
        return Err(Error::Exists(format!("{database} exists; --force puts it aside, under another name")));
    }
    if is_same(backup, &file) {
        return Err(Error::invalid(format!("{shown} is the database itself")));
    }
    let aside = format!(".before-{}", now().0);
    if let Err(error) = put(&mut hold, backup, &aside, &mut || Ok(())) {
        // As the next one who takes the lock would do it.
        let _ = finish(&file, &aside).and_then(|()| hold.note_restore(None));
        return Err(error);
    }
    let kept = there.then(|| beside(&file, &aside));
    Ok(Restored { tables, compared: expected.is_some(), kept })
}

/// Copies the backup and puts the copy in the database's place; `aside` is the ending of the old one's new name. Asks
/// `go_on` before each step, because a test ends it there as a crash would.
fn put(hold: &mut Hold, backup: &Path, aside: &str, go_on: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let database = hold.database().to_path_buf();
    let failed = |error: io::Error| Error::Io(format!("cannot write {}: {error}", database.display()));
    let partial = beside(&database, PARTIAL);
    go_on()?;
    std::fs::copy(backup, &partial).map_err(failed)?;
    if let Ok(old) = std::fs::metadata(&database) {
        std::fs::set_permissions(&partial, Permissions::from_mode(old.mode() & 0o7777)).map_err(failed)?;
        // Only root may give a file away; to all others it belongs as the old one does.
        let _ = std::os::unix::fs::chown(&partial, Some(old.uid()), Some(old.gid()));
    }
    File::open(&partial).and_then(|file| file.sync_all()).map_err(failed)?;
    let (state, new_state) = (state_of(&database), state_of(&partial));
    go_on()?;
    hold.note_restore(Some(aside))?;
    go_on()?;
    match State::read(&state_of(backup))? {
        Some(state) => state.write(&new_state)?,
        None => remove(&new_state)?,
    }
    sync_directory_of(&database)?;
    for ending in [""].iter().chain(&LOGS) {
        let (from, to) = (beside(&database, ending), beside(&beside(&database, aside), ending));
        if from.exists() {
            go_on()?;
            name_twice(&from, &to).map_err(failed)?;
        }
    }
    if state.exists() {
        go_on()?;
        name_twice(&state, &state_of(&beside(&database, aside))).map_err(failed)?;
    }
    go_on()?;
    sync_directory_of(&database)?;
    go_on()?;
    std::fs::rename(&partial, &database).map_err(failed)?;
    go_on()?;
    sync_directory_of(&database)?;
    for ending in LOGS {
        go_on()?;
        remove(&beside(&database, ending))?;
    }
    go_on()?;
    replace_state(&database)?;
    go_on()?;
    sync_directory_of(&database)?;
    go_on()?;
    hold.note_restore(None)
}

/// The state of the new database takes the place of the old one's, which has a second name; where there is none it goes.
fn replace_state(database: &Path) -> Result<()> {
    let (state, new_state) = (state_of(database), state_of(&beside(database, PARTIAL)));
    match new_state.exists() {
        true => std::fs::rename(&new_state, &state)
            .map_err(|error| Error::Io(format!("cannot write {}: {error}", state.display()))),
        false => remove(&state),
    }
}

/// Ends or undoes a restore that was killed, by what it left. May be killed itself, and is then done again.
pub(super) fn finish(database: &Path, aside: &str) -> Result<()> {
    let (partial, aside) = (beside(database, PARTIAL), beside(database, aside));
    let replaced = !partial.exists() && !is_same(database, &aside);
    for ending in LOGS {
        let (log, other) = (beside(database, ending), beside(&aside, ending));
        match replaced {
            true if is_same(&log, &other) || same_bytes(&log, &other) => remove(&log)?,
            true => {}
            false => remove(&other)?,
        }
    }
    let (state, new_state) = (state_of(database), state_of(&partial));
    if !replaced {
        remove(&state_of(&aside))?;
        remove(&new_state)?;
    } else if new_state.exists() || is_same(&state, &state_of(&aside)) {
        replace_state(database)?;
    }
    if !replaced {
        remove(&aside)?;
        // The partial file last: where it is, nothing was replaced.
        sync_directory_of(database)?;
        remove(&partial)?;
    }
    sync_directory_of(database)?;
    let database = database.display();
    match replaced {
        true => tracing::warn!(%database, aside = %aside.display(), "a restore that was killed is ended"),
        false => tracing::warn!(%database, "a restore that was killed is undone; the database is as it was before"),
    }
    Ok(())
}

/// Removes what a restore has left that was killed while it copied. The lock is held, so none is under way.
pub(super) fn forget(database: &Path) {
    // What cannot be removed is overwritten by the next restore.
    let _ = std::fs::remove_file(beside(database, PARTIAL));
}

/// A second name for the file, or a copy where a volume has no hard links.
fn name_twice(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).and_then(|_| File::open(to)?.sync_all()))
}

fn same_bytes(one: &Path, other: &Path) -> bool {
    matches!((std::fs::read(one), std::fs::read(other)), (Ok(one), Ok(other)) if one == other)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::Io(format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

fn sync_directory_of(database: &Path) -> Result<()> {
    let directory = database.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::Io(format!("cannot write {}: {error}", directory.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of these texts in its files.
    fn database(directory: &Path, logs: &[&str]) -> PathBuf {
        let database = directory.join("db.duckdb");
        std::fs::write(&database, "old").unwrap();
        std::fs::write(state_of(&database), "old state").unwrap();
        for log in logs {
            std::fs::write(beside(&database, log), format!("old {log}")).unwrap();
        }
        database
    }

    /// What is in the database and in its logs.
    fn texts(database: &Path) -> Vec<String> {
        let files = [""].into_iter().chain(LOGS).map(|ending| beside(database, ending));
        files.filter_map(|file| std::fs::read_to_string(file).ok()).collect()
    }

    #[test]
    fn restore_that_ends_anywhere_leaves_the_old_database_or_the_new_one() {
        for logs in [&[][..], &[".wal"], &[".wal", ".wal.checkpoint"], &LOGS] {
            let (mut steps, mut undone, mut ended) = (0, 0, 0);
            loop {
                let directory = tempfile::tempdir().unwrap();
                let database = database(directory.path(), logs);
                let backup = directory.path().join("backup.duckdb");
                std::fs::write(&backup, "new").unwrap();
                let old = texts(&database);
                let mut left = steps;
                let mut crash = || {
                    left -= 1;
                    if left < 0 { Err(Error::Cancelled) } else { Ok(()) }
                };
                let mut hold = Hold::take(&database).unwrap();
                if steps % 2 == 0 {
                    State::default().write(&state_of(&backup)).unwrap();
                }
                let whole = put(&mut hold, &backup, ".before", &mut crash).is_ok();
                drop(hold);
                drop(Hold::take(&database).unwrap());
                let (now, aside) = (texts(&database), beside(&database, ".before"));
                let own = std::fs::read_to_string(state_of(&database)).ok();
                let kept = std::fs::read_to_string(state_of(&aside)).ok();
                assert!(!state_of(&beside(&database, PARTIAL)).exists(), "{steps}");
                match now == old {
                    true => {
                        undone += 1;
                        assert!(!whole && texts(&aside).is_empty(), "{steps}: nothing is left of it");
                        assert_eq!((own.as_deref(), kept), (Some("old state"), None), "{steps}");
                    }
                    false => {
                        ended += 1;
                        assert_eq!((now, texts(&aside)), (vec!["new".to_string()], old), "after {steps} steps");
                        let new = own.is_some_and(|state| state.starts_with("mallard state"));
                        assert_eq!((new, kept.as_deref()), (steps % 2 == 0, Some("old state")), "after {steps} steps");
                    }
                }
                assert_eq!(std::fs::read_to_string(beside(&database, ".lock")).unwrap(), "");
                if whole {
                    break;
                }
                steps += 1;
            }
            assert!(undone > 3 && ended > 3, "{undone} were undone and {ended} ended");
        }
    }

    #[test]
    fn end_of_a_killed_restore_may_be_killed_itself() {
        // As they are left when the undoing has removed some files, and the ending some logs.
        for removed in 0..3 {
            let directory = tempfile::tempdir().unwrap();
            let database = database(directory.path(), &[".wal"]);
            let (aside, partial) = (beside(&database, ".before"), beside(&database, PARTIAL));
            std::fs::write(&partial, "new").unwrap();
            name_twice(&database, &aside).unwrap();
            name_twice(&beside(&database, ".wal"), &beside(&aside, ".wal")).unwrap();
            for file in [beside(&aside, ".wal"), aside.clone(), partial].iter().take(removed) {
                std::fs::remove_file(file).unwrap();
            }
            finish(&database, ".before").unwrap();
            assert_eq!((texts(&database).len(), texts(&aside).len()), (2, 0), "{removed} were removed");
        }
    }
}
