//! Rows from a file and to a file or the terminal.

use std::{
    fs::File,
    io::{BufReader, BufWriter, IsTerminal, Read, Seek, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use arrow_array::RecordBatch;
use arrow_ipc::{
    reader::{FileReader, StreamReader},
    writer::StreamWriter,
};
use arrow_schema::{ArrowError, SchemaRef};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use tokio::runtime::Handle;

use super::progress::Meter;
use crate::{
    engine::{Engine, FileFormat},
    error::{Error, Result},
    stream::{self, RecordBatchStream},
};

/// Rows that a table on the terminal shows before it leaves out the middle.
const SHOWN_ROWS: usize = 40;

/// Batches of an Arrow file that wait for the network, and their bytes.
const FILE_BATCHES: usize = 2;
const FILE_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Text for people; long results show their first and last rows
    Table,
    Json,
    Csv,
    /// Arrow IPC stream
    Arrow,
    /// Needs -o FILE
    Parquet,
}

#[derive(Args)]
pub(super) struct OutputArguments {
    /// Format of the rows; by default that of the file's ending, else table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl OutputArguments {
    /// To standard output.
    pub(super) fn of(format: Format) -> Self {
        Self { format: Some(format), output: None }
    }

    /// Writes all rows; how many and how fast goes to standard error.
    pub(super) async fn write(&self, what: &str, rows: RecordBatchStream) -> Result<()> {
        let meter = Meter::start(what, None);
        self.put(meter.watch(rows)).await?;
        let measured = meter.finish();
        if self.output.is_some() || std::io::stderr().is_terminal() {
            eprintln!("{measured}");
        }
        Ok(())
    }

    /// Writes all rows and nothing else.
    pub(super) async fn put(&self, rows: RecordBatchStream) -> Result<()> {
        let format = match (self.format, &self.output) {
            (Some(format), _) => format,
            (None, Some(path)) => by_ending(path)?,
            (None, None) => Format::Table,
        };
        match format {
            Format::Table => {
                let width = if std::io::stdout().is_terminal() { 0 } else { 10_000 };
                let text = local().await?.render(rows, SHOWN_ROWS, width).await?;
                match &self.output {
                    Some(path) => std::fs::write(path, text).map_err(|error| io(path, &error))?,
                    // A reader that closes early (head) is no failure.
                    None => drop(writeln!(std::io::stdout(), "{}", text.trim_end())),
                }
            }
            Format::Parquet if self.output.is_none() => {
                return Err(Error::invalid("Parquet needs a file: add -o FILE"));
            }
            Format::Parquet => self.write_file(rows, FileFormat::Parquet).await?,
            Format::Json => self.write_file(rows, FileFormat::Json).await?,
            Format::Csv => self.write_file(rows, FileFormat::Csv).await?,
            Format::Arrow => write_arrow(rows, self.output.as_deref()).await?,
        }
        Ok(())
    }
}

impl OutputArguments {
    /// Through DuckDB, to the file or to standard output by way of a pipe: DuckDB opens what it writes by name, and
    /// opening /dev/stdout by name would truncate a file that it is redirected to.
    async fn write_file(&self, rows: RecordBatchStream, format: FileFormat) -> Result<()> {
        let local = local().await?;
        if let Some(path) = &self.output {
            return local.write_file(rows, path, format).await.map(drop);
        }
        let failed = |error: std::io::Error| Error::Io(format!("standard output: {error}"));
        let (mut reader, writer) = std::io::pipe().map_err(failed)?;
        let copying = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::stdout()));
        let name = PathBuf::from(format!("/dev/fd/{}", writer.as_raw_fd()));
        let written = local.write_file(rows, &name, format).await;
        drop(writer);
        match copying.await.map_err(Error::internal)? {
            // A reader that closes early (head) is no failure.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(failed(error)),
            _ => written.map(drop),
        }
    }
}

fn by_ending(path: &Path) -> Result<Format> {
    match (FileFormat::of(path), path.extension().and_then(|ending| ending.to_str())) {
        (Some(FileFormat::Parquet), _) => Ok(Format::Parquet),
        (Some(FileFormat::Csv), _) => Ok(Format::Csv),
        (Some(FileFormat::Json), _) => Ok(Format::Json),
        (None, Some("arrow" | "arrows" | "ipc")) => Ok(Format::Arrow),
        (None, Some("txt")) => Ok(Format::Table),
        _ => Err(Error::invalid(format!("the ending of {} names no format; add --format", path.display()))),
    }
}

/// The command line's own DuckDB.
pub(super) async fn local() -> Result<Engine> {
    tokio::task::spawn_blocking(Engine::open_local).await.map_err(Error::internal)?
}

/// The rows of a file, by its ending.
pub(super) async fn read(local: &Engine, path: &Path) -> Result<RecordBatchStream> {
    // DuckDB's own message would speak of globs.
    File::open(path).map_err(|error| io(path, &error))?;
    match (FileFormat::of(path), path.extension().and_then(|ending| ending.to_str())) {
        (Some(format), _) => local.read_file(path, format).await,
        (None, Some("arrow" | "arrows" | "ipc" | "feather")) => read_arrow(path).await,
        _ => Err(Error::invalid(format!(
            "the ending of {} is none of parquet, csv, tsv, json, ndjson, arrow",
            path.display()
        ))),
    }
}

/// An Arrow IPC file or stream, told apart by the file's magic.
async fn read_arrow(path: &Path) -> Result<RecordBatchStream> {
    let path = path.to_path_buf();
    let shown = path.display().to_string();
    let wrong = move |error: ArrowError| Error::Stream(format!("{shown} is not valid Arrow IPC: {error}"));
    let opened = tokio::task::spawn_blocking(move || {
        let mut file = BufReader::new(File::open(&path)?);
        let mut magic = [0_u8; 6];
        let is_file = file.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
        file.rewind()?;
        let (schema, batches): (SchemaRef, Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>) =
            if is_file {
                let reader = FileReader::try_new(file, None)?;
                (reader.schema(), Box::new(reader))
            } else {
                let reader = StreamReader::try_new(file, None)?;
                (reader.schema(), Box::new(reader))
            };
        Ok((schema, batches))
    });
    let (schema, batches) = opened.await.map_err(Error::internal)?.map_err(wrong.clone())?;
    let (sender, rows) = stream::channel(FILE_BATCHES, FILE_BYTES);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        for batch in batches {
            if !runtime.block_on(sender.send(batch.map_err(&wrong))) {
                return;
            }
        }
    });
    Ok(RecordBatchStream::new(schema, rows))
}

#[expect(clippy::disallowed_methods, reason = "the command line has nothing else to do while it writes")]
async fn write_arrow(mut rows: RecordBatchStream, path: Option<&Path>) -> Result<()> {
    let output: Box<dyn Write + Send> = match path {
        Some(path) => Box::new(File::create(path).map_err(|error| io(path, &error))?),
        None => Box::new(std::io::stdout()),
    };
    let failed = |error: ArrowError| Error::Io(format!("cannot write Arrow IPC: {error}"));
    let mut writer = StreamWriter::try_new(BufWriter::new(output), &rows.schema()).map_err(failed)?;
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        tokio::task::block_in_place(|| writer.write(&batch)).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    writer.into_inner().map_err(failed)?.flush().map_err(|error| failed(error.into()))
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> Error {
    Error::Io(format!("{}: {error}", path.display()))
}
