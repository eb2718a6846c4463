//! Files of the user's own, read and written by an embedded DuckDB: Parquet, CSV, JSON; and rows as a table of text.
//! For the command line, never for the server.

use std::path::Path;

use duckdb::Parameters;

use super::{Engine, catalog::literal, plain, source::Sharing};
use crate::{
    access::Rights,
    config::Config,
    error::{Error, Result},
    stream::RecordBatchStream,
    telemetry::Metrics,
};

/// A format that DuckDB reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    Parquet,
    Csv,
    Json,
}

impl FileFormat {
    /// From a file's ending.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_lowercase().as_str() {
            "parquet" | "pq" => Some(Self::Parquet),
            "csv" | "tsv" => Some(Self::Csv),
            "json" | "ndjson" | "jsonl" => Some(Self::Json),
            _ => None,
        }
    }

    fn reader(self) -> &'static str {
        match self {
            Self::Parquet => "read_parquet",
            Self::Csv => "read_csv",
            Self::Json => "read_json",
        }
    }

    fn copy_options(self) -> &'static str {
        match self {
            Self::Parquet => "FORMAT parquet",
            Self::Csv => "FORMAT csv, HEADER",
            Self::Json => "FORMAT json",
        }
    }
}

impl Engine {
    /// An in-memory engine of the command line's, which may read and write the user's files.
    pub fn open_local() -> Result<Self> {
        let mut config = Config::default();
        config.database.external_access = true;
        Self::open(&config, Metrics::unregistered())
    }

    /// The rows of a file.
    pub async fn read_file(&self, path: &Path, format: FileFormat) -> Result<RecordBatchStream> {
        let sql = format!("SELECT * FROM {}({})", format.reader(), literal(&path.to_string_lossy()));
        self.query(&Rights::all("local"), &sql).await
    }

    /// Writes the stream to a file, `/dev/stdout` included; the rows written.
    pub async fn write_file(&self, input: RecordBatchStream, path: &Path, format: FileFormat) -> Result<u64> {
        let input = if format == FileFormat::Parquet { plain::for_parquet(input)? } else { input };
        let path = literal(&path.to_string_lossy());
        let copy = move |source: &str| format!("COPY (SELECT * FROM {source}) TO {path} ({})", format.copy_options());
        self.drain_into(input, move |shared, connection, source| {
            shared.execute(connection, &copy(source)).map(|rows| rows as u64)
        })
        .await
    }

    /// The stream as DuckDB's box of text; long results show their first and last rows.
    pub async fn render(&self, input: RecordBatchStream, max_rows: usize, width: usize) -> Result<String> {
        self.drain_into(input, move |shared, connection, source| {
            let result = connection.query(format!("SELECT * FROM {source}"), Parameters::None);
            let result = result.map_err(|error| shared.cause(&error))?;
            result.to_text(max_rows, width, 0, 0, 0).map_err(|error| shared.cause(&error))
        })
        .await
    }

    /// Runs `work` with the SQL of a table function call that reads the stream.
    async fn drain_into<T: Send + 'static>(
        &self,
        input: RecordBatchStream,
        work: impl FnOnce(&super::Shared, &duckdb::connection::Connection, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if input.schema().fields().is_empty() {
            return Err(Error::invalid("the result has no columns"));
        }
        let (source, feed) = self.sources.add(input.schema(), Sharing::Single)?;
        let failure = source.failure.clone();
        let call = source.call();
        let rights = Rights::all("mallard");
        let reading = self.call(&rights, move |shared, connection| {
            let done = work(shared, connection, &call);
            drop(source);
            done
        });
        let (done, ()) = tokio::join!(reading, feed.pump(input));
        done.map_err(|error| failure.or(error))
    }
}
