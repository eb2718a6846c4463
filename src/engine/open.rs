//! Opening the database with the settings that every statement runs under.

use std::sync::{Arc, Mutex};

use duckdb::{
    Parameters,
    environment::{Environment, StorageLocation},
    instance::{AttachBuilder, InstanceBuilder},
};

use tokio::sync::watch;

use super::{
    Engine, Shared,
    error::Redact,
    guard::{self, Functions},
    pool::Pool,
    source::Sources,
};
use crate::{
    config::{Config, Size},
    error::{Error, Result},
    telemetry::Metrics,
};

/// The statement after which settings stay as they are.
pub(super) const LOCK: &str = "SET lock_configuration = true";

impl Engine {
    /// Opens the database of the configuration. Blocks while DuckDB reads the file and replays its log.
    pub fn open(config: &Config, metrics: Metrics) -> Result<Self> {
        let engine = Self::open_unlocked(config, metrics)?;
        // From here on no statement changes a setting of the database.
        let connection = engine.shared.connect()?;
        // What we set for one connection after the lock; the guard keeps clients from it.
        engine.shared.execute(&connection, "SET allowed_configs = ['operator_memory_limit']")?;
        engine.shared.execute(&connection, LOCK)?;
        guard::self_test(&engine.shared, &connection)?;
        Ok(engine)
    }

    /// The same, for a caller that has settings of its own to make before [`LOCK`].
    pub(super) fn open_unlocked(config: &Config, metrics: Metrics) -> Result<Self> {
        let database = &config.database;
        let mut options: Vec<(&str, String)> = vec![
            // Nothing is downloaded at run time, and nothing unsigned is loaded.
            ("autoinstall_known_extensions", "false".into()),
            ("autoload_known_extensions", "false".into()),
            ("allow_community_extensions", "false".into()),
            ("allow_persistent_secrets", "false".into()),
            // Types that plain Arrow loses leave as extension types (see engine/arrow.rs).
            ("arrow_lossless_conversion", database.lossless_types.to_string()),
        ];
        if database.threads > 0 {
            options.push(("threads", database.threads.to_string()));
        }
        let sizes = [("memory_limit", database.memory_limit), ("max_temp_directory_size", database.max_temp_size)];
        options.extend(sizes.into_iter().filter_map(|(name, size)| Some((name, duckdb_size(size?)))));
        if !database.temp_directory.is_empty() {
            options.push(("temp_directory", database.temp_directory.clone()));
        }
        let location = match database.path.as_str() {
            ":memory:" | "" => StorageLocation::InMemory,
            path => StorageLocation::OnDisk(path.to_string()),
        };
        let redact = Redact::new([database.path.clone(), database.temp_directory.clone(), absolute(&database.path)]);
        let opening =
            |error: duckdb::Error| Error::Io(format!("cannot open database {}: {}", database.path, error.message));

        let environment = Environment::new().map_err(opening)?;
        let instance = InstanceBuilder::new().options(options).build(&environment).map_err(opening)?;
        instance.attach(AttachBuilder::new(location).make_default()).map_err(opening)?;
        let sources = Sources::default();
        let connection = instance.connect().map_err(opening)?;
        sources.register_function(&connection).map_err(opening)?;
        let shared = Arc::new(Shared {
            instance: Mutex::new(Some(instance)),
            config: config.clone(),
            redact,
            metrics,
            statements: Default::default(),
            last_wal_size: Default::default(),
            functions: Default::default(),
            system_views: Default::default(),
            broken: watch::Sender::new(false),
        });
        if !database.external_access {
            shared.execute(&connection, "SET enable_external_access = false")?;
        }
        let views =
            shared.rows(&connection, "SELECT lower(view_name) FROM duckdb_views() WHERE internal", Parameters::None)?;
        let _ = shared.system_views.set(views.into_iter().flatten().collect());
        let _ = shared.functions.set(Functions::of(&shared, &connection)?);
        drop(connection);
        let pool = Pool::new(&config.limits, shared.metrics.clone());
        Ok(Self { shared, pool, sources })
    }
}

/// A size in the form DuckDB's settings take.
fn duckdb_size(size: Size) -> String {
    format!("{}B", size.0)
}

fn absolute(path: &str) -> String {
    std::path::absolute(path).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}
