//! Exchangers that clients register as SQL: one SELECT over the relation `input`, each run in a DuckDB of its own
//! that has no files, no network and locked settings.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Exchanger;
use crate::{
    config::Config,
    engine::{Engine, guard::BuiltIns},
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// One permit for each DuckDB that runs an exchanger, and for each that checks one.
#[derive(Clone)]
pub(super) struct Permits {
    running: Arc<Semaphore>,
    checking: Arc<Semaphore>,
}

impl Permits {
    pub(super) fn new(max_running: usize) -> Self {
        // A check takes milliseconds; those that come at once wait for each other.
        Self { running: Arc::new(Semaphore::new(max_running)), checking: Arc::new(Semaphore::new(2)) }
    }
}

pub(super) struct SqlExchanger {
    sql: String,
    description: String,
    config: Config,
    running: Arc<Semaphore>,
    /// Asked when it was registered, and not at each start.
    built_ins: Arc<BuiltIns>,
}

impl SqlExchanger {
    /// Checks that `sql` is one SELECT. What it reads is known only with an input.
    pub(super) async fn new(
        sql: &str,
        description: Option<String>,
        config: &Config,
        Permits { running, checking }: Permits,
    ) -> Result<Self> {
        let permit = checking.acquire_owned().await.map_err(Error::internal)?;
        let sandbox = Sandbox::open(config, permit, None).await?;
        sandbox.engine().check_transformation(sql).await?;
        let description = description.unwrap_or_else(|| sql.split_whitespace().collect::<Vec<_>>().join(" "));
        let built_ins = sandbox.engine().built_ins();
        Ok(Self { sql: sql.to_string(), description, config: config.clone(), running, built_ins })
    }
}

impl Exchanger for SqlExchanger {
    fn description(&self) -> &str {
        &self.description
    }

    fn kind(&self) -> &'static str {
        "sql"
    }

    fn start(&self, input: RecordBatchStream) -> BoxFuture<'static, Result<RecordBatchStream>> {
        let (sql, config, running) = (self.sql.clone(), self.config.clone(), self.running.clone());
        let built_ins = self.built_ins.clone();
        async move {
            let permit = running.try_acquire_owned().map_err(|_| Error::Limit {
                what: format!("{} SQL exchangers run already", config.exchange.max_running),
                key: "exchange.max_running",
            })?;
            let sandbox = Sandbox::open(&config, permit, Some(built_ins)).await?;
            let output = sandbox.engine().transform(&sql, input).await?;
            Ok(output.holding(sandbox))
        }
        .boxed()
    }
}

/// An in-memory engine that is opened and closed away from the async threads.
struct Sandbox(Option<(Engine, OwnedSemaphorePermit)>);

impl Sandbox {
    /// The permit is given back when the engine is closed.
    async fn open(config: &Config, permit: OwnedSemaphorePermit, known: Option<Arc<BuiltIns>>) -> Result<Self> {
        let config = config.clone();
        let opened =
            tokio::task::spawn_blocking(move || Engine::open_sandbox(config.exchange.memory_limit, &config, known));
        opened.await.map_err(Error::internal)?.map(|engine| Self(Some((engine, permit))))
    }

    fn engine(&self) -> &Engine {
        &self.0.as_ref().expect("taken only when dropped").0
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let engine = self.0.take();
        std::thread::spawn(move || drop(engine));
    }
}
