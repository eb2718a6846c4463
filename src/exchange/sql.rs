//! Exchangers that clients register as SQL: one SELECT over the relation `input`, each run in a DuckDB of its own
//! that has no files, no network and locked settings.

use futures::{FutureExt, future::BoxFuture};

use super::Exchanger;
use crate::{
    config::Config,
    engine::Engine,
    error::{Error, Result},
    stream::RecordBatchStream,
};

pub struct SqlExchanger {
    sql: String,
    description: String,
    config: Config,
}

impl SqlExchanger {
    /// Checks that `sql` is one SELECT. What it reads is known only with an input.
    pub async fn new(sql: &str, description: Option<String>, config: &Config) -> Result<Self> {
        let sandbox = Sandbox::open(config).await?;
        sandbox.engine().check_transformation(sql).await?;
        let description = description.unwrap_or_else(|| sql.split_whitespace().collect::<Vec<_>>().join(" "));
        Ok(Self { sql: sql.to_string(), description, config: config.clone() })
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
        let (sql, config) = (self.sql.clone(), self.config.clone());
        async move {
            let sandbox = Sandbox::open(&config).await?;
            let output = sandbox.engine().transform(&sql, input).await?;
            Ok(output.holding(sandbox))
        }
        .boxed()
    }
}

/// An in-memory engine that is opened and closed away from the async threads.
struct Sandbox(Option<Engine>);

impl Sandbox {
    async fn open(config: &Config) -> Result<Self> {
        let config = config.clone();
        let opened = tokio::task::spawn_blocking(move || Engine::open_sandbox(config.exchange.memory_limit, &config));
        opened.await.map_err(Error::internal)?.map(|engine| Self(Some(engine)))
    }

    fn engine(&self) -> &Engine {
        self.0.as_ref().expect("taken only when dropped")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let engine = self.0.take();
        std::thread::spawn(move || drop(engine));
    }
}
