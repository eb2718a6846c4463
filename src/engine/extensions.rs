//! DuckDB extensions that the configuration names: found, looked at, and loaded before settings are locked.
//!
//! A file says in its last bytes what it was built for. That is read here first, so that an extension of another version or
//! platform is told by its name, and before anything of it is run.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use duckdb::{
    Parameters,
    connection::Connection,
    environment::{Environment, StorageLocation},
    instance::{AttachBuilder, InstanceBuilder},
};

use super::{
    Shared,
    catalog::{literal, quote},
    open::options,
    verify,
};
use crate::{
    config::{Config, Database, EXTENSION_ENDING},
    error::{Error, Result},
};

/// The metadata, eight fields in reverse order, and the signature behind it.
const FOOTER: usize = 512;
const FIELD: usize = 32;

/// What DuckDB calls the format of the metadata.
const MAGIC: &str = "4";

/// What this DuckDB is, as extensions have to be built for it.
struct Build {
    version: String,
    platform: String,
}

impl Build {
    fn of(connection: &Connection) -> Result<Self> {
        let one = |sql: &str| text_of(connection, sql);
        Ok(Self { version: one("SELECT version()")?, platform: one("SELECT platform FROM pragma_platform()")? })
    }
}

fn text_of(connection: &Connection, sql: &str) -> Result<String> {
    let rows = verify::rows(connection, sql, Parameters::None, &|error| Error::internal(error))?;
    rows.into_iter().flatten().next().ok_or_else(|| Error::internal("DuckDB does not say what it is"))
}

/// Loads what the configuration names into the instance of this connection.
pub(super) fn load(shared: &Shared, connection: &Connection) -> Result<()> {
    let database = &shared.config.database;
    if database.extensions.is_empty() {
        return Ok(());
    }
    let build = Build::of(connection)?;
    for extension in &database.extensions {
        let Some(file) = find(database, connection, extension, &build)? else { continue };
        check(extension, &file, &build, database.allow_unsigned_extensions)?;
        let path = absolute(&file);
        connection.execute(format!("LOAD {}", literal(&path)).as_str(), Parameters::None).map_err(|error| {
            let unsigned = error.message.to_lowercase().contains("signature");
            let why = if unsigned { UNSIGNED.to_string() } else { error.message.clone() };
            wrong(extension, &file, why)
        })?;
    }
    Ok(())
}

const UNSIGNED: &str = "its signature is none of DuckDB's or its community's: get it from its maker again, or set \
                        database.allow_unsigned_extensions = true if you trust whoever can write the file";

fn wrong(extension: &str, file: &Path, why: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("database.extensions: cannot load \"{extension}\" ({}): {why}", file.display()))
}

/// The file of an extension; none where it is linked into the server.
fn find(database: &Database, connection: &Connection, extension: &str, build: &Build) -> Result<Option<PathBuf>> {
    if extension.ends_with(EXTENSION_ENDING) {
        return Ok(Some(PathBuf::from(extension)));
    }
    let loaded = format!(
        "SELECT count(*)::VARCHAR FROM duckdb_extensions() WHERE loaded AND (extension_name = {0} OR list_contains(aliases, {0}))",
        literal(&extension.to_lowercase())
    );
    if text_of(connection, &loaded)? != "0" {
        return Ok(None);
    }
    let missing = |what: String| Error::Invalid(format!("database.extensions: cannot load \"{extension}\": {what}"));
    let Some(directory) = &database.extension_directory else {
        return Err(missing(
            "it is not linked into the server; set database.extension_directory to where its file is, or give the file's path"
                .into(),
        ));
    };
    let name = format!("{extension}{EXTENSION_ENDING}");
    let installed = directory.join(&build.version).join(&build.platform).join(&name);
    let found = [installed.clone(), directory.join(&name)].into_iter().find(|file| file.exists());
    if let Some(file) = found {
        return Ok(Some(file));
    }
    let Some(repository) = &database.extension_repository else {
        return Err(missing(format!(
            "there is neither {} nor {}; put the file there (built for DuckDB {} on {}), or set database.extension_repository",
            installed.display(),
            directory.join(&name).display(),
            build.version,
            build.platform
        )));
    };
    let from = if repository.contains('/') { literal(repository) } else { quote(repository) };
    for sql in [
        format!("SET extension_directory = {}", literal(&absolute(directory))),
        format!("INSTALL {} FROM {from}", quote(extension)),
    ] {
        connection.execute(sql.as_str(), Parameters::None).map_err(|error| {
            missing(format!(
                "it cannot be downloaded from {repository} (database.extension_repository): {}",
                error.message
            ))
        })?;
    }
    Ok(Some(installed))
}

/// Whether the file is an extension for this DuckDB, as far as it says so itself.
fn check(extension: &str, file: &Path, build: &Build, allow_unsigned: bool) -> Result<()> {
    let wrong = |why: String| Err(wrong(extension, file, why));
    let (start, footer) = match read(file) {
        Ok(read) => read,
        Err(error) => return wrong(error.to_string()),
    };
    if start.starts_with(&[0x1f, 0x8b]) {
        return wrong("the file is compressed; unpack it with gunzip".into());
    }
    let Some(footer) = footer else {
        return wrong(format!(
            "the file is shorter than the {FOOTER} bytes that describe an extension; it was cut off"
        ));
    };
    let field = |number: usize| {
        let bytes = &footer[(7 - number) * FIELD..(8 - number) * FIELD];
        String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string()
    };
    let [magic, platform, version, _, kind] = [0, 1, 2, 3, 4].map(field);
    if magic != MAGIC {
        return wrong("the file does not end as an extension does; it is none, or it was cut off".into());
    }
    if platform != build.platform {
        return wrong(format!("it was built for the platform {platform}, and this server is {}", build.platform));
    }
    let printable = |text: &str| text.chars().all(|c| c.is_ascii_graphic());
    // With DuckDB's stable C interface, the version is that of the interface, of which DuckDB takes older ones.
    if kind != "C_STRUCT" && version != build.version {
        let version = if printable(&version) { version } else { "an unknown version".into() };
        return wrong(format!("it was built for DuckDB {version}, and this server has {}", build.version));
    }
    let unsigned = footer[8 * FIELD..].iter().all(|byte| *byte == 0);
    if unsigned && !allow_unsigned {
        return wrong(
            "it has no signature: set database.allow_unsigned_extensions = true if you trust whoever can write the file".into(),
        );
    }
    Ok(())
}

/// The first bytes of a file, and the last, where it has as many.
fn read(path: &Path) -> std::io::Result<([u8; 2], Option<[u8; FOOTER]>)> {
    let mut file = File::open(path)?;
    let (mut start, mut footer) = ([0; 2], [0; FOOTER]);
    let length = file.metadata()?.len();
    if length >= start.len() as u64 {
        file.read_exact(&mut start)?;
    }
    if length < FOOTER as u64 {
        return Ok((start, None));
    }
    file.seek(SeekFrom::End(-(FOOTER as i64)))?;
    file.read_exact(&mut footer)?;
    Ok((start, Some(footer)))
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).to_string_lossy().into_owned()
}

/// What is wrong with the files of the configuration's extensions; none of them is run. Asks a DuckDB in memory.
pub(super) fn examine(config: &Config) -> Result<Vec<Error>> {
    let mut database = Database { path: ":memory:".into(), threads: 1, ..config.database.clone() };
    // Nothing is downloaded to be looked at.
    database.extension_repository = None;
    let environment = Environment::new().map_err(Error::internal)?;
    let instance = InstanceBuilder::new().options(options(&database)).build(&environment).map_err(Error::internal)?;
    instance.attach(AttachBuilder::new(StorageLocation::InMemory).make_default()).map_err(Error::internal)?;
    let connection = instance.connect().map_err(Error::internal)?;
    let build = Build::of(&connection)?;
    let mut mistakes = Vec::new();
    for extension in &database.extensions {
        let found = match find(&database, &connection, extension, &build) {
            // It will be downloaded.
            Err(_) if config.database.extension_repository.is_some() => continue,
            found => found,
        };
        let checked = found.and_then(|file| match file {
            Some(file) => check(extension, &file, &build, database.allow_unsigned_extensions),
            None => Ok(()),
        });
        mistakes.extend(checked.err());
    }
    Ok(mistakes)
}
