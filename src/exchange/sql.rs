//! Exchangers that clients register as SQL: one SELECT over the relation `input`, each run in a DuckDB of its own
//! that has no files, no network and locked settings.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{About, Exchanger, Kind, Run};
use crate::{
    config::Config,
    engine::{Engine, guard::BuiltIns},
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// What the SQL exchangers of one server share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sandboxes {
    config: Arc<Config>,
    running: Arc<Semaphore>,
    checking: Arc<Semaphore>,
    /// What every DuckDB of this process has built in: asked for once, and not at each start of one.
    built_ins: Arc<BuiltIns>,
    #[expect(dead_code, reason = "it is what exchangers with tables read")]
    engine: Arc<Engine>,
}

impl Sandboxes {
    pub(super) fn new(config: &Config, engine: Arc<Engine>) -> Self {
        Self {
            config: Arc::new(config.clone()),
            running: Arc::new(Semaphore::new(config.exchange.max_running)),
            // A check takes milliseconds; those that come at once wait for each other.
            checking: Arc::new(Semaphore::new(2)),
            built_ins: engine.built_ins(),
            engine,
        }
    }

    /// Checks that `sql` is one SELECT. What it reads is known only with an input.
    pub(super) async fn exchanger(
        &self,
        sql: &str,
        params: Map<String, Value>,
        description: Option<String>,
    ) -> Result<Arc<dyn Exchanger>> {
        let permit = self.checking.clone().acquire_owned().await.map_err(Error::internal)?;
        let sandbox = self.open(permit).await?;
        sandbox.engine().check_transformation(sql).await?;
        let description = description.unwrap_or_else(|| sql.split_whitespace().collect::<Vec<_>>().join(" "));
        let (input, output) = ("the columns that the SELECT names", "the SELECT's");
        let about = About { description, input: input.into(), output: output.into(), streams: true, params };
        Ok(Arc::new(SqlExchanger { sql: sql.to_string(), about, sandboxes: self.clone() }))
    }

    /// The permit is given back when the engine is closed.
    async fn open(&self, permit: OwnedSemaphorePermit) -> Result<Sandbox> {
        let (config, known) = (self.config.clone(), self.built_ins.clone());
        let opened = tokio::task::spawn_blocking(move || {
            Engine::open_sandbox(config.exchange.memory_limit, &config, Some(known))
        });
        opened.await.map_err(Error::internal)?.map(|engine| Sandbox(Some((engine, permit))))
    }
}

struct SqlExchanger {
    sql: String,
    about: About,
    sandboxes: Sandboxes,
}

impl Exchanger for SqlExchanger {
    fn kind(&self) -> Kind {
        Kind::Sql
    }

    fn about(&self) -> &About {
        &self.about
    }

    fn start(&self, input: RecordBatchStream, run: Run) -> BoxFuture<'static, Result<RecordBatchStream>> {
        let (sql, sandboxes) = (self.sql.clone(), self.sandboxes.clone());
        async move {
            run.arguments.none()?;
            let permit = sandboxes.running.clone().try_acquire_owned().map_err(|_| Error::Limit {
                what: format!("{} SQL exchangers run already", sandboxes.config.exchange.max_running),
                key: "exchange.max_running",
            })?;
            let sandbox = sandboxes.open(permit).await?;
            let output = sandbox.engine().transform(&sql, input).await?;
            Ok(output.holding(sandbox))
        }
        .boxed()
    }
}

/// An in-memory engine that is opened and closed away from the async threads.
struct Sandbox(Option<(Engine, OwnedSemaphorePermit)>);

impl Sandbox {
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
