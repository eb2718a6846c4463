//! Reads a database file in full, with a DuckDB of its own that can only read: for `mallard doctor` and `mallard restore`.

use std::path::Path;

use arrow_array::{cast::AsArray, types::Int64Type};
use duckdb::{
    Parameters,
    connection::Connection,
    environment::{Environment, StorageLocation},
    instance::{AttachBuilder, InstanceBuilder},
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
    stored::{self, Misfit, Misfits},
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
    read(path, |reader, schema, table| {
        each(schema, table, reader.sum(schema, table));
        Ok(())
    })
}

/// What was found in one table.
#[derive(Debug)]
pub struct Examined {
    pub schema: String,
    pub table: String,
    pub sum: Result<TableSum>,
    /// Values that their type does not have, the first hundred of each column.
    pub misfits: Vec<Misfit>,
    /// How many there are.
    pub misfit_count: u64,
    /// Columns that cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

/// The same, and each stored value is looked at: one that its type does not have may end every server that reads it.
pub fn examine(path: &Path, mut each: impl FnMut(Examined)) -> Result<()> {
    read(path, |reader, schema, table| {
        let mut examined = Examined {
            schema: schema.into(),
            table: table.into(),
            sum: reader.sum(schema, table),
            misfits: Vec::new(),
            misfit_count: 0,
            unreadable: Vec::new(),
        };
        reader.renew()?;
        for column in reader.columns(schema, table)? {
            match reader.misfits(schema, table, &column) {
                Ok(Misfits { told, count }) => {
                    examined.misfits.extend(told);
                    examined.misfit_count += count;
                }
                Err(error) => examined.unreadable.push((column, error.to_string())),
            }
            reader.renew()?;
        }
        each(examined);
        Ok(())
    })
}

fn read(path: &Path, mut each: impl FnMut(&mut Reader, &str, &str) -> Result<()>) -> Result<()> {
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
    let mut reader = Reader::open(database)?;
    for row in reader.rows(&tables_of(NAME))? {
        let [schema, table] = row.as_slice() else { continue };
        each(&mut reader, schema, table)?;
        reader.renew()?;
    }
    Ok(())
}

/// What the file is attached as.
const NAME: &str = "verified";

/// A connection for questions of ours, where there is no engine.
struct Reader {
    /// `None` while it is opened anew.
    connection: Option<Connection>,
    database: Database,
}

impl Reader {
    fn open(database: Database) -> Result<Self> {
        let connection = Some(Self::connect(&database)?);
        Ok(Self { connection, database })
    }

    fn connect(database: &Database) -> Result<Connection> {
        let opening = |error: duckdb::Error| refused(database, &error);
        machine::spare_descriptors(DESCRIPTORS)?;
        let environment = Environment::new().map_err(opening)?;
        let instance = InstanceBuilder::new().options(options(database)).build(&environment).map_err(opening)?;
        let location = StorageLocation::OnDisk(database.path.clone());
        instance.attach(AttachBuilder::new(location).alias(NAME).option("read_only", "true")).map_err(opening)?;
        // The connection keeps the instance.
        instance.connect().map_err(|error| Error::Io(error.message))
    }

    fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().ok_or_else(|| Error::internal("a reader without a connection"))
    }

    /// Opens the file anew where what was read last has made DuckDB refuse everything.
    fn renew(&mut self) -> Result<()> {
        if self.rows("SELECT count(*)::VARCHAR FROM duckdb_tables()").is_err() {
            self.connection = None;
            self.connection = Some(Self::connect(&self.database)?);
        }
        Ok(())
    }

    fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        rows(self.connection()?, sql, Parameters::None, &|error| Redact::default().cause(&error))
    }

    fn sum(&self, schema: &str, table: &str) -> Result<TableSum> {
        let rows = self.rows(&sum_of(NAME, schema, table))?;
        let sum = Fingerprint::from_row(rows.first().map_or(&[], Vec::as_slice))?;
        Ok(TableSum::new(schema, table, &sum))
    }

    /// In their order.
    fn columns(&self, schema: &str, table: &str) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT column_name FROM duckdb_columns() WHERE database_name = {} AND schema_name = {} AND table_name = {} \
             ORDER BY column_index",
            literal(NAME),
            literal(schema),
            literal(table)
        );
        Ok(self.rows(&sql)?.into_iter().flatten().collect())
    }

    fn misfits(&self, schema: &str, table: &str, column: &str) -> Result<Misfits> {
        let cause = |error: duckdb::Error| Redact::default().cause(&error);
        let columns = self.columns(schema, table)?;
        let has_id = !columns.iter().any(|column| column.eq_ignore_ascii_case("rowid"));
        let id = if has_id { "rowid" } else { "CAST(NULL AS BIGINT)" };
        let sql = format!("SELECT {id}, {} FROM {NAME}.{}.{}", quote(column), quote(schema), quote(table));
        let mut result = self.connection()?.arrow_query(sql.as_str(), Parameters::None, None).map_err(cause)?;
        let importer = Importer::new(result.schema().map_err(cause)?, false)?;
        let schema = importer.schema();
        let mut misfits = Misfits::default();
        if !stored::has_rules(schema.field(1)) {
            return Ok(misfits);
        }
        let mut before = 0_i64;
        while let Some(array) = result.next_array().map_err(cause)? {
            let batch = importer.batch(array)?;
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let rows: Vec<i64> = match has_id {
                true => ids.values().to_vec(),
                false => (before..).take(batch.num_rows()).collect(),
            };
            misfits.look(schema.field(1), batch.column(1), &rows)?;
            before += rows.len() as i64;
        }
        Ok(misfits)
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

#[cfg(test)]
mod tests {
    use duckdb::{
        QueryParameter,
        types::{
            DateValue, TimeNsValue, TimeTzValue, TimeValue, TimestampMsValue, TimestampNsValue, TimestampSecValue,
            TimestampTzValue, TimestampValue,
        },
    };

    use super::*;
    use crate::{
        engine::{Engine, failing},
        telemetry::Metrics,
    };

    #[test]
    fn stored_values_that_their_type_does_not_have_are_found_by_table_column_and_row() {
        let cases: [(&str, &str, &dyn QueryParameter, &str); 12] = [
            ("TIME", "TIME '24:00:00'", &TimeValue(-5_000_000), "time -5000000 us"),
            ("TIME", "TIME '00:00:00'", &TimeValue(86_400_000_001), "outside 00:00:00 to 24:00:00"),
            ("TIME_NS", "TIME_NS '12:00:00'", &TimeNsValue(86_400_000_000_001), "ns is outside"),
            ("TIMETZ", "TIMETZ '24:00:00+15:59:59'", &TimeTzValue(u64::MAX << 24), "us is outside"),
            ("TIMETZ", "TIMETZ '00:00:00-15:59:59'", &TimeTzValue(0xff_ffff), "time_tz offset"),
            ("DATE", "DATE '-infinity'", &DateValue(i32::MIN), "before the first DATE"),
            ("TIMESTAMP", "TIMESTAMP '-infinity'", &TimestampValue(i64::MIN), "outside the range"),
            ("TIMESTAMP", "TIMESTAMP '290309-12-22 (BC) 00:00:00'", &TimestampValue(-i64::MAX + 1), "us is outside"),
            ("TIMESTAMPTZ", "TIMESTAMPTZ 'infinity'", &TimestampTzValue(i64::MIN), "us is outside"),
            ("TIMESTAMP_S", "TIMESTAMP_S 'infinity'", &TimestampSecValue(i64::MAX / 1000), "s is outside"),
            ("TIMESTAMP_MS", "TIMESTAMP_MS '1970-01-01'", &TimestampMsValue(i64::MIN), "ms is outside"),
            ("TIMESTAMP_NS", "TIMESTAMP_NS '1677-09-22 00:00:00'", &TimestampNsValue(i64::MIN), "ns is outside"),
        ];
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        let path = directory.path().join("misfits.duckdb");
        config.database.path = path.to_string_lossy().into_owned();
        let engine = Engine::open(&config, Metrics::unregistered()).expect("it opens");
        let connection = engine.shared.connect().expect("it is open");
        for (at, (of, good, bad, _)) in cases.iter().enumerate() {
            let forms = format!(
                "SELECT v AS c, [v, NULL] AS l, [[v]] AS ll, {{'f': v}} AS s, MAP {{1: v}} AS m, [v, v]::{of}[2] AS a, \
                 union_value(v := v)::UNION(n INTEGER, v {of}) AS u FROM"
            );
            let good = format!("{forms} (SELECT {good} AS v FROM range(3))");
            engine.shared.execute(&connection, &format!("CREATE TABLE t{at} AS {good}")).expect(of);
            engine.shared.execute(&connection, &format!("DELETE FROM t{at} WHERE rowid = 0")).expect(of);
            let insert = format!("INSERT INTO t{at} {forms} (SELECT $1 AS v)");
            connection.execute(insert.as_str(), Parameters::positional(&[*bad])).expect(of);
            let nulls = format!("INSERT INTO t{at} {forms} (SELECT NULL::{of} AS v)");
            engine.shared.execute(&connection, &nulls).expect(of);
        }
        // Where rowid is a column, rows are counted.
        engine.shared.execute(&connection, "CREATE TABLE a_rowid (i INTEGER, \"rowid\" TIME)").expect("a table");
        let insert = "INSERT INTO a_rowid VALUES (0, NULL), (1, $1)";
        connection.execute(insert, Parameters::positional(&[&TimeValue(-1)])).expect("its rows");
        drop(connection);
        engine.close(std::time::Duration::from_secs(5));

        let mut found = Vec::new();
        examine(&path, |examined| found.push(examined)).expect("the file can be read");
        assert_eq!(found.len(), cases.len() + 1);
        let counted: Vec<(&str, i64)> =
            found[0].misfits.iter().map(|misfit| (misfit.column.as_str(), misfit.row)).collect();
        assert_eq!(counted, [("rowid", 1)], "{:?}", found[0]);
        for (at, (of, _, _, says)) in cases.iter().enumerate() {
            let examined = found.iter().find(|examined| examined.table == format!("t{at}")).expect("it is read");
            assert_eq!(examined.unreadable, [], "{of}");
            assert_eq!(examined.sum.as_ref().expect("its rows are counted").rows, 4, "{of}");
            let told: Vec<(&str, i64)> =
                examined.misfits.iter().map(|misfit| (misfit.column.as_str(), misfit.row)).collect();
            // The row that was deleted has a number, too.
            let expected = ["c", "l[]", "ll[][]", "s.f", "m.value", "a[]", "a[]", "u.v"].map(|column| (column, 3));
            assert_eq!(told, expected, "{of}: {examined:?}");
            assert_eq!(examined.misfit_count, 8);
            assert!(examined.misfits.iter().all(|misfit| misfit.says.contains(says)), "{of}: {examined:?}");
        }
    }

    #[test]
    fn table_that_makes_duckdb_refuse_everything_does_not_keep_the_next_one_from_being_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.database.path = directory.path().join("fatal.duckdb").to_string_lossy().into_owned();
        let engine = Engine::open(&config, Metrics::unregistered()).expect("it opens");
        engine.close(std::time::Duration::from_secs(5));
        let mut reader = Reader::open(config.database).expect("it opens");
        failing::register(reader.connection().expect("it is open"), "fail").expect("the function is registered");
        let fatal = "SELECT fail(range)::VARCHAR FROM range(1)";
        let tables = "SELECT count(*)::VARCHAR FROM duckdb_tables()";
        reader.rows(fatal).expect_err("an assertion of DuckDB's fails");
        reader.rows(tables).expect_err("everything is refused");
        reader.renew().expect("it opens again");
        assert_eq!(reader.rows(tables).expect("it answers"), [["0"]]);
    }
}
