//! A DuckDB of its own for SQL that works on a stream: in memory, no files, settings locked.

use std::{path::Path, sync::Arc};

use super::{Engine, guard::BuiltIns};
use crate::{config::Config, error::Result, telemetry::Metrics};

/// The relation that the SQL reads.
pub(super) const INPUT: &str = "input";

impl Engine {
    /// Opens an in-memory engine that runs one statement. `known` is what another one has built in.
    pub fn open_sandbox(server: &Config, known: Option<Arc<BuiltIns>>) -> Result<Self> {
        let mut config = Config::default();
        config.database.memory_limit = Some(server.exchange.memory_limit);
        config.database.max_temp_size = Some(server.exchange.temp_size);
        config.database.temp_directory = own_temp_directory(server);
        let database = &server.database;
        config.database.extensions = database.extensions.clone();
        config.database.extension_directory = database.extension_directory.clone();
        config.database.allow_unsigned_extensions = database.allow_unsigned_extensions;
        config.database.extension_functions = database.extension_functions.clone();
        config.limits = server.limits.clone();
        config.limits.queries = 1;
        // One worker in stream order: a row-wise SELECT answers in the order it was asked, while input still comes.
        config.database.threads = 1;
        Self::open_unlocked(&config, Metrics::unregistered(), known)
    }

    /// What DuckDB has built in, for another instance.
    pub fn built_ins(&self) -> Arc<BuiltIns> {
        self.shared.built_ins().clone()
    }
}

/// Two instances of DuckDB in one directory would take each other's files for theirs. It is made when it is needed, and
/// gone when the instance is closed.
fn own_temp_directory(server: &Config) -> String {
    let database = &server.database;
    let near = match (database.temp_directory.as_str(), database.file()) {
        ("", Some(file)) => format!("{}.tmp", file.display()),
        ("", None) => ".tmp".to_string(),
        (given, _) => given.to_string(),
    };
    let number = getrandom::u64().expect("the operating system hands out random numbers");
    let parent = Path::new(&near).parent().map(|parent| parent.to_path_buf()).unwrap_or_default();
    let name = Path::new(&near).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    parent.join(format!("{name}-exchange-{number:016x}")).to_string_lossy().into_owned()
}
