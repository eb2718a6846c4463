//! Other databases that the configuration attaches beside the main one, and the locks of their files.
//!
//! A DuckDB file that is written is held as the main one is (`hold`): locked, sealed, and known by its file and not by its
//! name. One that is only read has a lock that other readers may have, too. What an extension brings (PostgreSQL, a lake)
//! keeps its own order.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use duckdb::{Parameters, connection::Connection};

use super::{
    Shared,
    catalog::{literal, quote},
    hold::{self, Hold},
    open, wal,
};
use crate::{
    config::{Attachment, Database, OptionValue},
    error::{Error, Result},
};

/// The files of attached databases, for as long as DuckDB has them open.
#[derive(Default)]
pub(super) struct Beside {
    /// Of those that are written, each with the catalog's name.
    writers: Vec<(String, Hold)>,
    /// Locks of those that are read; closing the file would end DuckDB's own lock.
    _readers: Vec<File>,
}

impl Beside {
    /// Takes the locks of all attached files, before DuckDB looks at one.
    pub(super) fn take(database: &Database, main: Option<&Path>) -> Result<Self> {
        let mut files: Vec<(String, PathBuf)> =
            main.iter().map(|file| ("the main database (database.path)".to_string(), file.to_path_buf())).collect();
        let mut beside = Self::default();
        for attachment in &database.attach {
            let Some(given) = attachment.file() else { continue };
            let name = &attachment.name;
            let place = hold::place(given);
            if let Some((other, _)) = files.iter().find(|(_, file)| *file == place || hold::is_same(file, &place)) {
                return Err(Error::Invalid(format!(
                    "database.attach: \"{name}\" ({}) is the same file as {other}; a file is attached once",
                    given.display()
                )));
            }
            files.push((format!("\"{name}\""), place.clone()));
            let held = match attachment.read_only {
                true => hold::share(given).map(|file| beside._readers.push(file)),
                false => Self::hold(given, &place).map(|hold| beside.writers.push((name.clone(), hold))),
            };
            held.map_err(|error| about(name, error))?;
        }
        Ok(beside)
    }

    fn hold(given: &Path, place: &Path) -> Result<Hold> {
        let hold = Hold::take(given)?;
        hold.check_names()?;
        wal::check(place)?;
        Ok(hold)
    }

    /// Before DuckDB opens the files by their names once more.
    pub(super) fn unseal(&mut self) -> Result<()> {
        for (name, hold) in &mut self.writers {
            if let Some(how) = hold.lost() {
                return Err(Error::Io(format!("attached database \"{name}\": {how} while it was open")));
            }
            hold.unseal();
            wal::check(hold.database())?;
        }
        Ok(())
    }

    /// What has happened to one of the files, if its path does not lead to it any more.
    pub(super) fn lost(&self) -> Option<&'static str> {
        self.writers.iter().find_map(|(_, hold)| hold.lost()).map(|how| match how {
            hold::REPLACED => "the file of an attached database was replaced by another",
            _ => "the file of an attached database was removed or renamed",
        })
    }

    /// Writes what the logs have into the files.
    pub(super) fn checkpoint(&self, shared: &Shared, connection: &Connection) {
        for (name, _) in &self.writers {
            if let Err(error) = shared.execute(connection, &format!("CHECKPOINT {}", quote(name))) {
                tracing::warn!(database = %name, %error, "no checkpoint at close; the next start replays the log");
            }
        }
    }

    fn opened(&mut self, name: &str, seal: bool) -> Result<()> {
        match self.writers.iter_mut().find(|(of, _)| of == name) {
            Some((_, hold)) => hold.opened(seal),
            None => Ok(()),
        }
    }
}

/// Attaches what the configuration names to the instance of this connection.
pub(super) fn attach(database: &Database, connection: &Connection, beside: &mut Beside) -> Result<()> {
    for attachment in &database.attach {
        let sql = statement(attachment);
        connection.execute(sql.as_str(), Parameters::None).map_err(|error| failed(database, attachment, &error))?;
        beside.opened(&attachment.name, database.seal)?;
    }
    let directories: Vec<String> = database.attach.iter().flat_map(directories).map(|path| literal(&path)).collect();
    if !database.external_access && !directories.is_empty() {
        let sql = format!("SET allowed_directories = [{}]", directories.join(", "));
        connection.execute(sql.as_str(), Parameters::None).map_err(|error| {
            Error::Invalid(format!("database.attach: its directories cannot be allowed: {}", error.message))
        })?;
    }
    Ok(())
}

/// Where the files of an attached database are, beside what DuckDB opens itself.
fn directories(attachment: &Attachment) -> Vec<String> {
    let mut directories = attachment.directories.clone();
    // DuckLake's own option.
    if let Some(OptionValue::Text(path)) = attachment.options.get("data_path") {
        directories.push(path.clone());
    }
    directories
}

fn statement(attachment: &Attachment) -> String {
    let Attachment { name, path, read_only, r#type, options, .. } = attachment;
    // DuckDB finds logs beside the name that it is given, so it is given the file's own.
    let path = attachment.file().map_or_else(|| path.clone(), |file| hold::place(file).to_string_lossy().into_owned());
    let mut all: Vec<String> = Vec::new();
    all.extend(r#type.as_ref().map(|of_type| format!("TYPE {}", quote(of_type))));
    if *read_only {
        all.push("READ_ONLY".into());
    }
    all.extend(options.iter().map(|(name, value)| {
        let value = match value {
            OptionValue::Flag(flag) => flag.to_string(),
            OptionValue::Number(number) => number.to_string(),
            OptionValue::Text(text) => literal(text),
        };
        format!("{} {value}", quote(name))
    }));
    let options = if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) };
    format!("ATTACH {} AS {}{options}", literal(&path), quote(name))
}

/// The same error with the name of the attached database.
fn about(name: &str, error: Error) -> Error {
    let why = format!("database.attach, \"{name}\": {error}");
    match error {
        Error::InUse(_) => Error::InUse(why),
        Error::Corrupt(_) => Error::Corrupt(why),
        _ => Error::Io(why),
    }
}

/// Why DuckDB does not attach a database, without a password that its path or options may hold.
fn failed(database: &Database, attachment: &Attachment, error: &duckdb::Error) -> Error {
    let name = &attachment.name;
    if attachment.file().is_some() {
        let of_file = Database { path: attachment.path.clone(), ..database.clone() };
        return about(name, open::refused(&of_file, error));
    }
    let texts = attachment.options.values().filter_map(|value| match value {
        OptionValue::Text(text) if text.len() > 2 => Some(text),
        _ => None,
    });
    let secrets = std::iter::once(&attachment.path).chain(texts).filter(|text| *text != ":memory:");
    let why = secrets.fold(error.message.clone(), |message, secret| message.replace(secret.as_str(), "(redacted)"));
    Error::Io(format!("database.attach: cannot attach \"{name}\": {why}"))
}

/// What is wrong with the files of attached databases, as far as it is seen without opening them.
pub(super) fn examine(database: &Database) -> Vec<Error> {
    let missing = |attachment: &Attachment| {
        let file = attachment.file()?;
        let name = &attachment.name;
        let about = |why: &str| Some(Error::Io(format!("database.attach, \"{name}\": {} {why}", file.display())));
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        match std::fs::metadata(file) {
            Ok(there) if there.is_dir() => about("is a directory"),
            Ok(_) => None,
            Err(_) if attachment.read_only => about("does not exist, and read_only = true creates none"),
            Err(_) if parent.is_some_and(|parent| !parent.is_dir()) => about("is in a directory that does not exist"),
            Err(_) => None,
        }
    };
    database.attach.iter().filter_map(missing).collect()
}
