//! Exchangers that clients register as SQL: one SELECT over the relation `input`, each run in a DuckDB of its own
//! that has no files, no network and locked settings; or, where it reads tables and the server lets it, in the server's.

use std::sync::{Arc, Mutex, PoisonError};

use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{About, Exchanger, Kind, Parameters, Run};
use crate::{
    config::Config,
    engine::{Checked, Engine, Fingerprint, Given, Reads, Shape, Transformation, guard::BuiltIns},
    error::{Error, Result},
    json::Json,
    machine,
    stream::RecordBatchStream,
};

/// What the SQL exchangers of one server share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sandboxes(Arc<Shared>);

struct Shared {
    config: Config,
    running: Arc<Semaphore>,
    checking: Semaphore,
    /// What every DuckDB of this process has built in: asked for once, and not at each start of one.
    built_ins: Arc<BuiltIns>,
    /// Opened ahead. One that has run something is never used again.
    ready: Mutex<Vec<Sandbox>>,
    /// What knows the types of parameters that are not for SQL.
    types: tokio::sync::Mutex<Option<Sandbox>>,
    engine: Arc<Engine>,
}

impl Sandboxes {
    pub(super) fn new(config: &Config, engine: Arc<Engine>) -> Self {
        Self(Arc::new(Shared {
            config: config.clone(),
            running: Arc::new(Semaphore::new(config.exchange.max_running)),
            // A check takes milliseconds; those that come at once wait for each other.
            checking: Semaphore::new(2),
            built_ins: engine.built_ins(),
            ready: Mutex::default(),
            types: tokio::sync::Mutex::default(),
            engine,
        }))
    }

    /// The right to run one.
    fn permit(&self) -> Result<OwnedSemaphorePermit> {
        self.0.running.clone().try_acquire_owned().map_err(|_| Error::Limit {
            what: format!("{} SQL exchangers run already", self.0.config.exchange.max_running),
            key: "exchange.max_running",
        })
    }

    /// Checks that `sql` is one SELECT, and what it does with its input. Which columns it reads is known only with one.
    pub(super) async fn exchanger(
        &self,
        sql: &str,
        Parameters(declared): Parameters,
        inherited: bool,
    ) -> Result<(Arc<dyn Exchanger>, Parameters)> {
        let Checked { shape, declared } = {
            let _permit = self.0.checking.acquire().await.map_err(Error::internal)?;
            self.take().await?.engine().check_transformation(sql, declared, inherited).await?
        };
        self.may_read_tables(&shape)?;
        if !shape.tables.is_empty() && shape.reads != Reads::EachRow {
            return Err(Error::invalid(
                "an exchanger that reads tables must work on each row for itself; put what needs all rows behind it, in \
                 a chain: a | b",
            ));
        }
        let description = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let params = Parameters(declared);
        let about = about(description, &shape, &params);
        let (kind, sql) = (Kind::Sql, sql.to_string());
        let exchanger = SqlExchanger { kind, sql, shape, params: params.clone(), about, sandboxes: self.clone() };
        Ok((Arc::new(exchanger), params))
    }

    /// Whether the types of parameters are DuckDB's, and their defaults values of them.
    pub(super) async fn check_parameters(&self, Parameters(declared): &Parameters) -> Result<()> {
        let _permit = self.0.checking.acquire().await.map_err(Error::internal)?;
        self.take().await?.engine().check_parameters(declared.clone()).await
    }

    /// The values of parameters as JSON of their types' form. One DuckDB, which runs nothing else, looks at all of them.
    pub(super) async fn fit_parameters(&self, values: Vec<Given>) -> Result<Vec<(String, Json)>> {
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let _permit = self.0.checking.acquire().await.map_err(Error::internal)?;
        let mut types = self.0.types.lock().await;
        let sandbox = match types.take() {
            Some(sandbox) => sandbox,
            None => self.take().await?,
        };
        let fit = sandbox.engine().fit_parameters(values).await;
        if !sandbox.engine().is_broken() {
            *types = Some(sandbox);
        }
        fit
    }

    /// The built-in exchanger that computes what transfers compare.
    pub(super) fn checksum(&self) -> Arc<dyn Exchanger> {
        let shape = Shape::whole();
        let about = About {
            description:
                "answers one row: how many rows there are, and the sum of DuckDB's hash of each, whatever their \
                          order; the sum that transfers and backups compare"
                    .into(),
            input: "any columns".into(),
            output: "rows BIGINT, hash VARCHAR".into(),
            ..About::default()
        };
        Arc::new(SqlExchanger {
            kind: Kind::BuiltIn,
            sql: Fingerprint::named_sql("input"),
            shape,
            params: Parameters::default(),
            about,
            sandboxes: self.clone(),
        })
    }

    fn may_read_tables(&self, shape: &Shape) -> Result<()> {
        match shape.tables.first() {
            Some(table) if !self.0.config.exchange.tables => Err(Error::NotFound(format!(
                "there is no relation {table} but input: exchange.tables = false keeps this server's tables from exchangers"
            ))),
            _ => Ok(()),
        }
    }

    /// A fresh one, opened ahead where there is one; others are then opened in its place.
    async fn take(&self) -> Result<Sandbox> {
        let ready = self.0.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let sandbox = match ready {
            Some(sandbox) => sandbox,
            None => {
                let shared = self.0.clone();
                tokio::task::spawn_blocking(move || shared.open()).await.map_err(Error::internal)??
            }
        };
        // Nobody waits for it, and a server that is gone needs none.
        let shared = Arc::downgrade(&self.0);
        tokio::task::spawn_blocking(move || {
            if let Some(shared) = shared.upgrade() {
                shared.refill();
            }
        });
        Ok(sandbox)
    }
}

impl Shared {
    fn open(&self) -> Result<Sandbox> {
        Engine::open_sandbox(&self.config, Some(self.built_ins.clone())).map(|engine| Sandbox(Some(engine)))
    }

    fn refill(&self) {
        let lacks = |ready: &Vec<Sandbox>| ready.len() < self.config.exchange.ready;
        while lacks(&self.ready.lock().unwrap_or_else(PoisonError::into_inner)) {
            match self.open() {
                Ok(sandbox) => {
                    let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
                    // Another may have been quicker; the one that is too many is dropped.
                    if lacks(&ready) {
                        ready.push(sandbox);
                    }
                }
                // Whoever needs one meets the same, and tells it.
                Err(_) => return,
            }
        }
    }
}

/// An in-memory engine that is closed away from the async threads.
struct Sandbox(Option<Engine>);

impl Sandbox {
    fn engine(&self) -> &Engine {
        self.0.as_ref().expect("taken only when dropped")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        machine::drop_aside(self.0.take());
    }
}

struct SqlExchanger {
    kind: Kind,
    sql: String,
    shape: Shape,
    params: Parameters,
    about: About,
    sandboxes: Sandboxes,
}

impl Exchanger for SqlExchanger {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn about(&self) -> &About {
        &self.about
    }

    fn start(&self, input: RecordBatchStream, run: Run) -> BoxFuture<'static, Result<RecordBatchStream>> {
        let Run { arguments, rights, lossless } = run;
        let transformation = self.params.values(arguments).map(|values| Transformation {
            sql: self.sql.clone(),
            shape: self.shape.clone(),
            values,
            lossless,
        });
        let sandboxes = self.sandboxes.clone();
        async move {
            let transformation = transformation?;
            sandboxes.may_read_tables(&transformation.shape)?;
            let permit = sandboxes.permit()?;
            if !transformation.shape.tables.is_empty() {
                let output = sandboxes.0.engine.transform_with_tables(&rights, transformation, input).await?;
                return Ok(output.holding(permit));
            }
            let sandbox = sandboxes.take().await?;
            let output = sandbox.engine().transform(transformation, input).await.map_err(own_limit)?;
            let schema = output.schema();
            Ok(RecordBatchStream::new(schema, output.map_err(own_limit)).holding((sandbox, permit)))
        }
        .boxed()
    }
}

/// The memory is a sandbox's, and not the database's.
fn own_limit(error: Error) -> Error {
    match error {
        Error::Limit { what, key: "database.memory_limit" } => Error::Limit { what, key: "exchange.memory_limit" },
        other => other,
    }
}

fn about(description: String, shape: &Shape, params: &Parameters) -> About {
    let streams = shape.reads == Reads::EachRow;
    let mut input = "the columns that the SELECT names".to_string();
    if !shape.tables.is_empty() {
        let tables: Vec<&str> = shape.tables.iter().map(String::as_str).collect();
        input = format!("{input}; reads the table{} {}", if tables.len() > 1 { "s" } else { "" }, tables.join(", "));
    }
    let output = match shape.reads {
        Reads::EachRow => "the SELECT's columns, row by row",
        Reads::Whole => "the SELECT's columns, once it has its whole input",
        Reads::Nothing => "the SELECT's columns; the input is not read",
    };
    let tables = shape.tables.iter().cloned().collect();
    About { description, input, output: output.into(), streams, params: params.listed(), tables }
}
