//! A DuckDB of its own for SQL that works on a stream: in memory, no files, settings locked.

use std::sync::Arc;

use super::{
    Engine,
    guard::{self, BuiltIns},
    open::LOCK,
    query::Setup,
    source::Sharing,
    statement,
};
use crate::{
    access::Rights,
    config::{Config, Size},
    error::{Error, Result},
    stream::RecordBatchStream,
    telemetry::Metrics,
};

/// The relation that the SQL reads.
const INPUT: &str = "input";

impl Engine {
    /// Opens an in-memory engine that runs one statement. `known` is what another one has built in.
    pub fn open_sandbox(memory_limit: Size, limits: &Config, known: Option<Arc<BuiltIns>>) -> Result<Self> {
        let mut config = Config::default();
        config.database.memory_limit = Some(memory_limit);
        // Rows that are gathered for a batch delay the first answer.
        config.database.batch_rows = 2048;
        config.limits = limits.limits.clone();
        config.limits.queries = 1;
        // One worker in stream order: a row-wise SELECT answers in the order it was asked, while input still comes.
        config.database.threads = 1;
        Self::open_unlocked(&config, Metrics::unregistered(), known)
    }

    /// What DuckDB has built in, for another instance.
    pub fn built_ins(&self) -> Arc<BuiltIns> {
        self.shared.built_ins().clone()
    }

    /// Whether `sql` is one SELECT, told without an input.
    pub async fn check_transformation(&self, sql: &str) -> Result<()> {
        statement::check_text(&self.shared, sql)?;
        let sql = sql.to_string();
        self.call(&Rights::all("mallard"), move |shared, connection| {
            let parsed = guard::admit(shared, connection, &sql, &Rights::all("exchanger"))?;
            match statement::kind(&parsed)? {
                duckdb::query_result::StatementType::Select => Ok(()),
                other => Err(Error::invalid(format!("an exchanger is one SELECT over {INPUT}, not {other:?}"))),
            }
        })
        .await
    }

    /// Runs a SELECT over the relation `input`, which is the stream. Rows come as the input does, where the SELECT
    /// allows it.
    pub async fn transform(&self, sql: &str, input: RecordBatchStream) -> Result<RecordBatchStream> {
        let (source, feed) = self.sources.add(input.schema(), Sharing::Single);
        let prepare = vec![
            // What DuckDB gathers before it hands out the first rows; a setting of the connection.
            "SET max_streaming_buffer_size = '1B'".to_string(),
            LOCK.to_string(),
            format!("CREATE TEMP VIEW {INPUT} AS SELECT * FROM {}", source.call()),
        ];
        // Aborted with the output: dropping the set ends the task, which drops the input.
        let mut pump = tokio::task::JoinSet::new();
        pump.spawn(feed.pump(input));
        let output = self
            .query_with(sql, Setup { input: Some((source, prepare)), ..Setup::new(&Rights::all("exchanger")) })
            .await?;
        Ok(output.holding(pump))
    }
}
