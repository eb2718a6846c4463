//! Reads a database file in full, with a DuckDB of its own that can only read: for `mallard doctor` and `mallard restore`.

use std::path::Path;

use duckdb::{
    Parameters,
    connection::Connection,
    environment::{Environment, StorageLocation},
    instance::{AttachBuilder, Instance, InstanceBuilder},
};
use serde::{Deserialize, Serialize};

use super::{
    Shared,
    arrow::Importer,
    catalog::{literal, quote},
    error::Redact,
    hold::{self, Hold, beside},
    ingest::Fingerprint,
    open::{DESCRIPTORS, options, refused},
    wal,
};
use crate::{
    config::{Config, Database},
    error::{Error, Result},
    machine,
};

/// One table of a database, and what all of its rows come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSum {
    pub schema: String,
    pub table: String,
    pub rows: u64,
    /// A text: JSON's numbers end before 128 bits.
    pub hash: String,
}

impl TableSum {
    pub(super) fn new(schema: &str, table: &str, sum: &Fingerprint) -> Self {
        Self { schema: schema.into(), table: table.into(), rows: sum.rows, hash: sum.hash.to_string() }
    }
}

/// Tables of the attached database `name`, by schema and name.
pub(super) fn tables_of(name: &str) -> String {
    let name = literal(name);
    format!(
        "SELECT schema_name, table_name FROM duckdb_tables() \
         WHERE database_name = {name} AND NOT internal AND NOT temporary ORDER BY ALL"
    )
}

pub(super) fn sum_of(database: &str, schema: &str, table: &str) -> String {
    Fingerprint::sql(&format!("{}.{}.{}", quote(database), quote(schema), quote(table)))
}

/// What is known of a database file without opening it.
#[derive(Debug, Clone, Serialize)]
pub struct FileState {
    pub exists: bool,
    pub size: u64,
    pub log_size: u64,
    /// As DuckDB's own files begin.
    pub is_duckdb: bool,
    /// Its mode has been taken away: by a server that runs, or by one that crashed.
    pub sealed: bool,
    /// Who has it open, if anybody.
    pub held_by: Option<String>,
}

impl FileState {
    pub fn of(path: &Path) -> Self {
        let size = |path: &Path| std::fs::metadata(path).map(|file| file.len());
        let path = &hold::place(path);
        Self {
            exists: path.exists(),
            size: size(path).unwrap_or(0),
            log_size: size(&beside(path, ".wal")).unwrap_or(0),
            // Only root can look into a sealed one.
            is_duckdb: begins_as_duckdb(path).unwrap_or_else(|| hold::is_sealed(path)),
            sealed: hold::is_sealed(path),
            held_by: hold::holder(path),
        }
    }
}

/// The bytes "DUCK" stand behind the checksum of the main header.
fn begins_as_duckdb(path: &Path) -> Option<bool> {
    use std::io::Read;
    let mut head = [0; 12];
    std::fs::File::open(path).ok()?.read_exact(&mut head).ok()?;
    Some(&head[8..] == b"DUCK")
}

/// Reads every table of a database file that no server has, and tells of each what it came to or why it cannot be read.
/// Changes nothing. Blocks.
pub fn verify(path: &Path, mut each: impl FnMut(&str, &str, Result<TableSum>)) -> Result<()> {
    if let Some(who) = hold::holder(path) {
        return Err(Error::InUse(format!("database {} is in use by {who}; stop it first", path.display())));
    }
    if !path.exists() {
        return Err(Error::NotFound(format!("there is no file {}", path.display())));
    }
    let file = hold::place(path);
    // Where a server was, its lock is taken, and the seal of one that crashed undone.
    let hold = beside(&file, ".lock").exists().then(|| Hold::take(path)).transpose()?;
    if let Some(hold) = &hold {
        hold.check_names()?;
    }
    wal::check(&file)?;
    let database = Database { path: file.to_string_lossy().into_owned(), ..Config::default().database };
    let opening = |error: duckdb::Error| refused(&database, &error);
    machine::spare_descriptors(DESCRIPTORS)?;
    let environment = Environment::new().map_err(opening)?;
    let instance = InstanceBuilder::new().options(options(&database)).build(&environment).map_err(opening)?;
    let name = "verified";
    let location = StorageLocation::OnDisk(database.path.clone());
    instance.attach(AttachBuilder::new(location).alias(name).option("read_only", "true")).map_err(opening)?;
    let reader = Reader::new(&instance)?;
    for row in reader.rows(&tables_of(name))? {
        let [schema, table] = row.as_slice() else { continue };
        let read = reader.rows(&sum_of(name, schema, table)).and_then(|rows| {
            let sum = Fingerprint::from_row(rows.first().map_or(&[], Vec::as_slice))?;
            Ok(TableSum::new(schema, table, &sum))
        });
        each(schema, table, read);
    }
    Ok(())
}

/// A connection for questions of ours, where there is no engine.
struct Reader(Connection);

impl Reader {
    fn new(instance: &Instance) -> Result<Self> {
        instance.connect().map(Self).map_err(|error| Error::Io(error.message))
    }

    fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        rows(&self.0, sql, Parameters::None, &|error| Redact::default().cause(&error))
    }
}

/// All rows of a small query, each value as text.
pub(super) fn rows(
    connection: &Connection,
    sql: &str,
    parameters: Parameters<'_>,
    cause: &dyn Fn(duckdb::Error) -> Error,
) -> Result<Vec<Vec<String>>> {
    use arrow_array::{Array, cast::AsArray};
    let mut result = connection.arrow_query(sql, parameters, None).map_err(cause)?;
    let importer = Importer::new(result.schema().map_err(cause)?, false)?;
    let mut rows = Vec::new();
    while let Some(array) = result.next_array().map_err(cause)? {
        let batch = importer.batch(array)?;
        let mut texts = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            texts.push(arrow_cast::cast(column, &arrow_schema::DataType::Utf8).map_err(Error::internal)?);
        }
        for row in 0..batch.num_rows() {
            let value = |text: &arrow_array::ArrayRef| {
                let text = text.as_string::<i32>();
                if text.is_null(row) { String::new() } else { text.value(row).to_string() }
            };
            rows.push(texts.iter().map(value).collect());
        }
    }
    Ok(rows)
}

impl Shared {
    /// All rows of a small query of ours, each value as text.
    pub(super) fn rows(
        &self,
        connection: &Connection,
        sql: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Vec<String>>> {
        rows(connection, sql, parameters, &|error| self.cause(&error))
    }
}
