//! Opening the database with the settings that every statement runs under.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use duckdb::{
    environment::{Environment, StorageLocation},
    instance::{AttachBuilder, Instance, InstanceBuilder},
};

use tokio::sync::watch;

use super::{
    Engine, Served, Shared,
    attach::{self, Beside},
    catalog::{literal, quote},
    error::Redact,
    exported, extensions, failing,
    guard::{self, BuiltIns},
    hold::{Hold, beside},
    init,
    pool::{Pool, lock},
    reopen::Offenders,
    source::Sources,
    timezones, wal,
};
use crate::{
    config::{Config, Database, Size},
    error::{Error, Result},
    machine,
    telemetry::Metrics,
};

/// The statement after which settings stay as they are.
pub(super) const LOCK: &str = "SET lock_configuration = true";

/// DuckDB reads the cgroup's files while it makes an instance. Where it cannot open them, it frees an instance that is half
/// made, which ends the process (main/database.cpp). So descriptors are asked for first.
pub(super) const DESCRIPTORS: usize = 8;

impl Engine {
    /// Opens the database of the configuration. Blocks while DuckDB reads the file and replays its log.
    pub fn open(config: &Config, metrics: Metrics) -> Result<Self> {
        Self::open_with(config, metrics, None, true)
    }

    /// The same, for a caller that has settings of its own to make before [`LOCK`], and may have asked another instance
    /// what DuckDB has built in.
    pub(super) fn open_unlocked(config: &Config, metrics: Metrics, known: Option<Arc<BuiltIns>>) -> Result<Self> {
        Self::open_with(config, metrics, known, false)
    }

    fn open_with(config: &Config, metrics: Metrics, known: Option<Arc<BuiltIns>>, locked: bool) -> Result<Self> {
        let database = &config.database;
        // Held before DuckDB looks at the file, and for as long as it has it.
        let hold = database.file().map(Hold::take).transpose()?;
        let file = hold.as_ref().map(|hold| hold.database().to_path_buf());
        if let (Some(hold), Some(file)) = (&hold, &file) {
            hold.check_names()?;
            wal::check(file)?;
        }
        // Those that have no settings locked attach nothing.
        let beside = if locked { Beside::take(database, file.as_deref())? } else { Beside::default() };
        let backups = database.backup_directory.as_ref().map(|path| path.to_string_lossy().into_owned());
        let paths = [database.path.clone(), database.temp_directory.clone(), absolute(&database.path)];
        let own = file.iter().flat_map(|file| file.to_str()).flat_map(|file| [file.to_string(), absolute(file)]);
        let attached = database.attach.iter().flat_map(|one| [one.path.clone(), absolute(&one.path)]);
        let init = database.init.iter().map(|file| file.to_string_lossy().into_owned());
        let redact = Redact::new(paths.into_iter().chain(own).chain(backups).chain(attached).chain(init));
        let environment = Environment::new().map_err(|error| refused(database, &error))?;
        let offenders = Arc::new(Offenders::new(&config.limits));
        let shared = Arc::new(Shared {
            environment,
            instance: Mutex::new(Served::Closed),
            hold: Mutex::new(hold),
            beside: Mutex::new(beside),
            file,
            config: config.clone(),
            redact,
            metrics,
            statements: Default::default(),
            lines: Default::default(),
            last_wal_size: Default::default(),
            built_ins: Default::default(),
            shadows: Mutex::default(),
            types: Default::default(),
            database_name: Default::default(),
            catalogs: Default::default(),
            creations: Default::default(),
            definitions: Default::default(),
            views: Mutex::default(),
            decisions: guard::Decisions::new(config.limits.decisions_size),
            accesses: guard::Decisions::new(config.limits.decisions_size),
            backing_up: Mutex::default(),
            broken: watch::Sender::new(false),
            blamed: Default::default(),
            offenders: offenders.clone(),
            reopening: Mutex::default(),
            reopened: Mutex::default(),
            locked,
        });
        if let Some(known) = known {
            shared.built_ins.get_or_init(|| known);
        }
        let sources = Sources::default();
        let instance = instance(&shared, &sources)?;
        *lock(&shared.instance) = Served::Open(instance);
        if locked {
            shared.prepare_state(&shared.connect()?);
        }
        let pool = Pool::new(&config.limits, shared.metrics.clone(), offenders);
        let (probed, listed, stored) = Default::default();
        Ok(Self { shared, pool, sources, probed, listed, stored })
    }
}

/// An instance with the database attached and everything that statements of clients run under. The seal is taken as soon
/// as DuckDB has the file.
pub(super) fn instance(shared: &Shared, sources: &Sources) -> Result<Instance> {
    let database = &shared.config.database;
    let opening = |error: duckdb::Error| refused(database, &error);
    let mut attachment = AttachBuilder::new(StorageLocation::InMemory);
    if let Some(file) = &shared.file {
        // DuckDB looks for the log beside the name that it is given, so it is given the file's own.
        attachment = AttachBuilder::new(StorageLocation::OnDisk(utf8(file)?));
        if file != Path::new(&database.path) {
            attachment = attachment.alias(database.catalog());
        }
    }
    machine::spare_descriptors(DESCRIPTORS)?;
    let instance = InstanceBuilder::new().options(options(database)).build(&shared.environment).map_err(opening)?;
    instance.attach(attachment.make_default()).map_err(opening)?;
    lock(&shared.hold).iter_mut().try_for_each(|hold| hold.opened(database.seal))?;
    let connection = instance.connect().map_err(opening)?;
    sources.register_function(&connection).map_err(opening)?;
    exported::register_function(&connection).map_err(opening)?;
    let linked = BuiltIns::table_functions(shared, &connection)?;
    extensions::load(shared, &connection)?;
    timezones::register(&connection).map_err(opening)?;
    if shared.locked {
        attach::attach(database, &connection, &mut lock(&shared.beside))?;
        init::run(database, &connection)?;
    }
    for (name, value) in &database.debug {
        match name.as_str() {
            failing::KEY => failing::register(&connection, value).map_err(opening)?,
            _ => shared.execute(&connection, &format!("SET GLOBAL {} = {}", quote(name), literal(value))).map(drop)?,
        }
    }
    if !database.external_access {
        shared.execute(&connection, "SET enable_external_access = false")?;
    }
    if shared.built_ins.get().is_none() {
        let built_ins = Arc::new(BuiltIns::of(shared, &connection, &linked)?);
        shared.built_ins.get_or_init(|| built_ins);
    }
    if shared.locked {
        // From here on no statement changes a setting of the database.
        // What we set for one connection after the lock; the guard keeps clients from it.
        let config = connection.config().map_err(|error| shared.cause(&error))?;
        let known = |name: &&str| config.try_get_value(name).is_ok_and(|value| value.is_some());
        let unlocked: Vec<String> = guard::settings::unlocked().filter(known).map(literal).collect();
        shared.execute(&connection, &format!("SET allowed_configs = [{}]", unlocked.join(", ")))?;
        shared.execute(&connection, LOCK)?;
        guard::self_test(shared, &connection)?;
    }
    drop(connection);
    Ok(instance)
}

/// What an instance is started with.
pub(super) fn options(database: &Database) -> Vec<(&'static str, String)> {
    let temp_directory = match (database.temp_directory.as_str(), database.file()) {
        ("", Some(file)) => beside(file, ".tmp").to_string_lossy().into_owned(),
        ("", None) => ".tmp".to_string(),
        (given, _) => given.to_string(),
    };
    // Of what is free now: spilling must not fill the volume that the database is on.
    let max_temp_size = database.max_temp_size.or_else(|| {
        let volume = machine::volume(Path::new(&temp_directory))?;
        Some(Size(volume.free / 2))
    });
    let memory_limit = database.memory_limit.unwrap_or(Size(machine::memory() / 100 * 70));
    let threads = if database.threads > 0 { database.threads } else { machine::cores() };
    let mut options: Vec<(&str, String)> = vec![
        // Nothing is downloaded at run time, and nothing is loaded that nobody has asked for.
        ("autoinstall_known_extensions", "false".into()),
        ("autoload_known_extensions", "false".into()),
        // Only what the configuration names is loaded.
        ("allow_community_extensions", (!database.extensions.is_empty()).to_string()),
        ("allow_unsigned_extensions", database.allow_unsigned_extensions.to_string()),
        ("allow_extension_repositories", "forbidden".into()),
        ("allow_persistent_secrets", "false".into()),
        ("allow_unredacted_secrets", "false".into()),
        // Types that plain Arrow loses leave as extension types (see engine/arrow.rs).
        // What is plain is made so on the way out, for each client.
        ("arrow_lossless_conversion", "true".to_string()),
        ("threads", threads.to_string()),
        ("memory_limit", duckdb_size(memory_limit)),
        ("temp_directory", temp_directory),
    ];
    options.extend(max_temp_size.map(|size| ("max_temp_directory_size", duckdb_size(size))));
    options
}

/// Why DuckDB does not open the database, and what to do next. Nothing was changed.
pub(super) fn refused(database: &Database, error: &duckdb::Error) -> Error {
    let (path, message) = (&database.path, &error.message);
    let lower = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if says(&["could not set lock"]) {
        return Error::InUse(format!("database {path} is in use by another process: {message}"));
    }
    let others = [
        "permission denied",
        "read-only file system",
        "no space left",
        "is a directory",
        "no such file",
        "too many open files",
        "cannot open file",
        "out of memory",
        "version of duckdb",
        "version number",
        "not implemented",
    ];
    let there = database.file().is_some_and(|file| std::fs::metadata(file).is_ok_and(|file| file.len() > 0));
    if !there || says(&others) {
        return Error::Io(format!("cannot open database {path}: {message}"));
    }
    if says(&["wal"]) {
        return Error::Corrupt(format!(
            "cannot open database {path}: its write-ahead log {path}.wal is corrupt: {message}; nothing was changed. Restore a backup (`mallard restore`), \
             or keep a copy of both files and move {path}.wal away, which loses every write since the last checkpoint"
        ));
    }
    Error::Corrupt(format!(
        "cannot open database {path}: it is corrupt, or no DuckDB database: {message}; nothing was changed. `mallard doctor --verify --db \
         {path}` says what can be read; restore a backup with `mallard restore`"
    ))
}

/// A size in the form DuckDB's settings take.
fn duckdb_size(size: Size) -> String {
    format!("{}B", size.0)
}

/// A path as DuckDB takes it.
fn utf8(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_string);
    text.ok_or_else(|| Error::Io(format!("cannot open database {}: its path is not UTF-8", path.display())))
}

fn absolute(path: &str) -> String {
    std::path::absolute(path).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}
