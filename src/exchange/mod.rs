//! Exchangers: named functions from a stream to a stream, built in or registered by clients.

mod builtin;
mod sql;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use futures::future::BoxFuture;
use serde::Serialize;

use sql::{Permits, SqlExchanger};

use crate::{
    config::Config,
    error::{Error, Result},
    stream::RecordBatchStream,
    telemetry::Metrics,
};

/// A named stream -> stream function. The output starts before the input ends unless its nature forbids it, and the
/// memory held does not grow with the stream.
pub trait Exchanger: Send + Sync {
    /// One line for people.
    fn description(&self) -> &str;

    /// `builtin` or `sql`.
    fn kind(&self) -> &'static str;

    /// Starts the exchange; the output's schema is known when this returns.
    fn start(&self, input: RecordBatchStream) -> BoxFuture<'static, Result<RecordBatchStream>>;
}

/// What `list_exchanges` tells of one exchanger.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub kind: &'static str,
    pub description: String,
}

/// Bytes; a description is one line for people.
const MAX_DESCRIPTION: usize = 4096;

/// The exchangers of one server, by name. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    exchangers: RwLock<BTreeMap<String, Arc<dyn Exchanger>>>,
    permits: Permits,
    config: Config,
    metrics: Metrics,
}

impl Registry {
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        let exchangers = RwLock::new(builtin::all());
        let permits = Permits::new(config.exchange.max_running);
        Self(Arc::new(Inner { exchangers, permits, config: config.clone(), metrics }))
    }

    pub fn get(&self, name: &str) -> Option<Arc<dyn Exchanger>> {
        self.read().get(name).cloned()
    }

    /// The error for a name that is not there: it lists those that are.
    pub fn unknown(&self, name: &str) -> Error {
        let known: Vec<String> = self.read().keys().cloned().collect();
        Error::NotFound(format!("exchanger \"{name}\" not found; there are {}", known.join(", ")))
    }

    pub fn list(&self) -> Vec<Listed> {
        let exchangers = self.read();
        let listed = exchangers.iter().map(|(name, exchanger)| Listed {
            name: name.clone(),
            kind: exchanger.kind(),
            description: exchanger.description().to_string(),
        });
        listed.collect()
    }

    /// Registers a SELECT over the relation `input`.
    pub async fn add_sql(&self, name: &str, sql: &str, description: Option<String>) -> Result<()> {
        check_name(name)?;
        if description.as_ref().is_some_and(|text| text.len() > MAX_DESCRIPTION) {
            return Err(Error::invalid(format!("the description is longer than {MAX_DESCRIPTION} bytes")));
        }
        self.check_free(name)?;
        let exchanger = SqlExchanger::new(sql, description, &self.0.config, self.0.permits.clone()).await?;
        let mut exchangers = self.0.exchangers.write().unwrap_or_else(PoisonError::into_inner);
        let registered = exchangers.values().filter(|exchanger| exchanger.kind() != builtin::KIND).count();
        let limit = self.0.config.exchange.max_registered;
        if registered >= limit {
            let what = format!("{limit} exchangers are registered already");
            return Err(Error::Limit { what, key: "exchange.max_registered" });
        }
        if exchangers.contains_key(name) {
            return Err(exists(name));
        }
        exchangers.insert(name.to_string(), Arc::new(exchanger));
        self.0.metrics.exchangers.set(registered as i64 + 1);
        Ok(())
    }

    /// Forgets an exchanger; running exchanges keep theirs.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut exchangers = self.0.exchangers.write().unwrap_or_else(PoisonError::into_inner);
        match exchangers.get(name).map(|exchanger| exchanger.kind()) {
            None => {
                drop(exchangers);
                Err(self.unknown(name))
            }
            Some(builtin::KIND) => {
                Err(Error::invalid(format!("exchanger \"{name}\" is built in and cannot be dropped")))
            }
            Some(_) => {
                exchangers.remove(name);
                self.0.metrics.exchangers.dec();
                Ok(())
            }
        }
    }

    fn check_free(&self, name: &str) -> Result<()> {
        if self.read().contains_key(name) { Err(exists(name)) } else { Ok(()) }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<dyn Exchanger>>> {
        self.0.exchangers.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exists(name: &str) -> Error {
    Error::Exists(format!("exchanger \"{name}\" already exists; drop it first"))
}

/// Whether a text is a name and not SQL: letters, digits, `_`, `-` and `.`, at most 64, a letter or `_` first.
pub fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "\"{name}\" is not an exchanger's name: letters, digits, _ - and ., at most 64, a letter or _ first"
    )))
}
