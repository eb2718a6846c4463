//! Names, tables and schemas, told without running anything of the client's.

use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};
use duckdb::{
    Parameters,
    connection::{Connection, IntoStatement},
    error::DuckDBError,
    qualified_name::QualifiedName,
    query_result::ResultType,
    statement::Statement,
};

use super::{
    Engine, Shared,
    arrow::Importer,
    binding::Values,
    error::discreet,
    guard::{self, Sees},
    line,
    query::{Ask, status_schema},
    statement::{self, Expansion},
    types::{arrow_schema, arrow_schema_of},
};
use crate::{
    access::{Rights, Role},
    error::{Error, Result},
};

/// A table's name in one to three parts, outermost first; never pasted into SQL unquoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName(Vec<String>);

impl TableName {
    /// From a descriptor's path: `[table]`, `[schema, table]` or `[catalog, schema, table]`.
    pub fn from_path(parts: &[String]) -> Result<Self> {
        if parts.is_empty() || parts.len() > 3 || parts.iter().any(|part| part.is_empty() || part.contains('\0')) {
            return Err(Error::invalid(format!(
                "a table's path has one to three parts and none is empty; this one is {parts:?}"
            )));
        }
        Ok(Self(parts.to_vec()))
    }

    /// From text with dotted parts, quoted as in SQL where needed.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |_| Error::invalid(format!("\"{text}\" is not a table's name"));
        let parts = QualifiedName::from_sql(text).and_then(|name| name.parts()).map_err(wrong)?;
        Self::from_path(&parts)
    }

    /// As SQL.
    pub fn sql(&self) -> String {
        self.0.iter().map(|part| quote(part)).collect::<Vec<_>>().join(".")
    }

    pub fn parts(&self) -> &[String] {
        &self.0
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.join("."))
    }
}

/// An identifier as SQL.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A text literal as SQL.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The catalogs that clients' tables are in: the served database's, and those that are attached to it.
#[derive(Debug)]
pub(super) struct Catalogs {
    served: String,
    attached: Vec<Attached>,
    change_outside: bool,
}

/// A catalog beside the served database's.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) name: String,
    /// The schema that is meant by a name of catalog and table, where that is known.
    pub(super) default_schema: Option<String>,
}

impl Catalogs {
    /// Those that there are now. Asked for once, after all have been attached.
    pub(super) fn of(shared: &Shared, connection: &Connection) -> Result<Self> {
        let served = shared.database_name(connection)?.to_string();
        let rows = shared.rows(
            connection,
            "SELECT database_name, type, \
               (SELECT count(*) FROM duckdb_schemas() AS schemas \
                WHERE schemas.database_name = databases.database_name AND schema_name = 'main')::VARCHAR \
             FROM duckdb_databases() AS databases WHERE NOT internal AND database_name <> $1 ORDER BY database_name",
            Parameters::positional(&[&served]),
        )?;
        let rows: Vec<[String; 3]> = rows.into_iter().filter_map(|row| row.try_into().ok()).collect();
        let change_outside = rows.iter().any(|[_, of_type, _]| of_type != "duckdb");
        let attached = rows.into_iter().map(|[name, of_type, has_main]| {
            let default_schema = match (of_type.as_str(), has_main != "0") {
                ("postgres", _) => Some("public"),
                (_, true) => Some("main"),
                _ => None,
            };
            Attached { name, default_schema: default_schema.map(str::to_string) }
        });
        Ok(Self { served, attached: attached.collect(), change_outside })
    }

    /// Whether one is attached whose tables others may change. Files of DuckDB are locked while they are attached.
    pub(super) fn change_outside(&self) -> bool {
        self.change_outside
    }

    pub(super) fn is_served(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case(&self.served)
    }

    pub(super) fn attached(&self, name: &str) -> Option<&Attached> {
        self.attached.iter().find(|attached| attached.name.eq_ignore_ascii_case(name))
    }

    pub(super) fn all_attached(&self) -> &[Attached] {
        &self.attached
    }

    /// A catalog as rights know it; temporary tables are with those of the served database.
    pub(super) fn beside<'n>(&self, name: &'n str) -> Option<&'n str> {
        (!self.is_served(name) && !name.eq_ignore_ascii_case("temp")).then_some(name)
    }

    /// Their names as a list of SQL's.
    pub(super) fn sql(&self) -> String {
        let names = std::iter::once(&self.served).chain(self.attached.iter().map(|attached| &attached.name));
        names.map(|name| literal(name)).collect::<Vec<_>>().join(", ")
    }
}

/// What a statement would answer, and what it needs.
pub struct Plan {
    /// The columns of its rows; none where it is run for its effect.
    pub rows: Option<SchemaRef>,
    /// Its parameters by name, `1` for `$1` or the first `?`. Those whose type DuckDB cannot tell are texts.
    pub parameters: SchemaRef,
}

/// Some of the tables, with their schemas.
pub struct TablePage {
    pub tables: Vec<(TableName, SchemaRef)>,
    /// Behind which the next page begins, where there is one.
    pub next: Option<Place>,
}

/// A table's place in the list of all; the default is before the first.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Empty in the served database, whose tables come first.
    catalog: String,
    schema: String,
    name: String,
}

/// What a page has at most: so many tables, and a table more than so many columns.
const PAGE_TABLES: i64 = 512;
const PAGE_COLUMNS: usize = 8192;

impl Engine {
    /// The schema that [`Engine::answer`] would answer with; the statement is planned and not run.
    pub async fn schema(&self, rights: &Arc<Rights>, ask: &Ask) -> Result<SchemaRef> {
        Ok(self.plan(rights, ask).await?.rows.unwrap_or_else(status_schema))
    }

    /// What the statement would answer; it is planned and not run.
    pub async fn plan(&self, rights: &Arc<Rights>, ask: &Ask) -> Result<Plan> {
        let Ask { sql, line, settings, bound } = ask.clone();
        statement::check_text(&self.shared, &sql)?;
        let values = bound.map(|bound| self.values(&bound.first())).transpose()?;
        let caller = rights.clone();
        let moved = settings.moves_names();
        let plain = settings.plain(&self.shared);
        let work =
            move |shared: &Shared, connection: &Connection, moved: bool, in_transaction: bool, sees: Sees<'_>| {
                let statement =
                    guard::admit(shared, connection, &sql, &caller, sees).map_err(|error| discreet(error, &caller))?;
                guard::check_names(&caller, moved)?;
                let read_only = caller.role < Role::Writer && !in_transaction;
                let planned = match read_only {
                    true => reading(shared, connection, || {
                        plan(shared, connection, &statement, values.as_ref(), plain, true)
                    }),
                    false => plan(shared, connection, &statement, values.as_ref(), plain, in_transaction),
                };
                planned.map_err(|error| discreet(error, &caller))
            };
        // DuckDB does not look at an interrupt while it plans: the statement is listed for as long as its thread is busy,
        // also where its client was told already that it has ended.
        let seen = self.shared.see_planning(rights, &ask.sql);
        let listed = seen.clone();
        let work =
            move |shared: &Shared, connection: &Connection, moved: bool, in_transaction: bool, sees: Sees<'_>| {
                listed.plans();
                work(shared, connection, moved, in_transaction, sees)
            };
        let planned = async {
            let Some(line) = line else {
                let planned = self.call(rights, move |shared, connection| {
                    line::apply(shared, connection, &settings)?;
                    work(shared, connection, moved, false, Sees::Committed)
                });
                return planned.await;
            };
            let planned = self.call_on_line(rights, &line, move |shared, kept| {
                kept.apply(shared, &settings)?;
                let moved = moved || kept.moved;
                let (in_transaction, sees) = (kept.in_transaction, kept.sees());
                let connection = kept.connection(shared)?;
                let plan = work(shared, connection, moved, in_transaction, sees).inspect_err(|error| {
                    if in_transaction && line::aborts(error) {
                        line::abort(shared, connection);
                    }
                })?;
                if in_transaction && plan.rows.is_some() {
                    // DuckDB plans in an aborted one all the same.
                    kept.is_sound(shared)?;
                }
                Ok(plan)
            });
            planned.await
        };
        seen.unless_killed(planned).await
    }

    /// The tables and views that the caller may read and whose `schema.table` (`catalog.schema.table` in an attached catalog)
    /// matches the glob, in the order of their names: some of them, behind those of the page before. A page holds an engine
    /// thread only while it is made.
    pub async fn tables(&self, rights: &Arc<Rights>, glob: &str, after: Place, lossless: bool) -> Result<TablePage> {
        let (user, rights, glob) = (rights, rights.clone(), glob.to_string());
        self.call(user, move |shared, connection| {
            let Place { catalog, schema, name } = &after;
            let catalogs = shared.catalogs(connection)?.sql();
            let listed = shared.rows(
                connection,
                &format!(
                    "SELECT catalog, schema_name, name FROM (\
                       SELECT if(database_name = current_database(), '', database_name) AS catalog, * FROM (\
                         SELECT database_name, schema_name, table_name AS name FROM duckdb_tables() WHERE NOT internal \
                         UNION ALL SELECT database_name, schema_name, view_name FROM duckdb_views() WHERE NOT internal) \
                       WHERE database_name IN ({catalogs})) \
                     WHERE if(catalog = '', '', catalog || '.') || schema_name || '.' || name GLOB $1 \
                       AND (catalog, schema_name, name) > ($2, $3, $4) ORDER BY ALL LIMIT $5"
                ),
                Parameters::positional(&[&glob, catalog, schema, name, &PAGE_TABLES]),
            )?;
            let full = listed.len() >= PAGE_TABLES as usize;
            let (mut tables, mut columns, mut last) = (Vec::new(), 0, None);
            for row in listed {
                if columns >= PAGE_COLUMNS {
                    return Ok(TablePage { tables, next: last });
                }
                let [catalog, schema, name] =
                    <[String; 3]>::try_from(row).map_err(|_| Error::internal("three columns were asked for"))?;
                let beside = Some(catalog.as_str()).filter(|catalog| !catalog.is_empty());
                let seen = rights.may_read(beside, &schema, &name);
                let parts = beside.map(str::to_string).into_iter().chain([schema.clone(), name.clone()]);
                let table = TableName::from_path(&parts.collect::<Vec<_>>())?;
                last = Some(Place { catalog, schema, name });
                if !seen {
                    continue;
                }
                let statement = statement::parse(shared, connection, &format!("SELECT * FROM {}", table.sql()))?;
                match rows_of(shared, connection, &statement, !lossless) {
                    Ok(schema) => {
                        columns += schema.fields().len();
                        tables.push((table, schema));
                    }
                    // A view over something that is gone cannot be read, nor can a type that no message holds; the others can.
                    Err(Error::NotFound(_) | Error::Sql(_) | Error::Invalid(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(TablePage { tables, next: last.filter(|_| full) })
        })
        .await
    }

    /// The first row of a small query of ours, as texts.
    pub async fn row(&self, sql: String) -> Result<Vec<String>> {
        self.call(&Rights::all("mallard"), move |shared, connection| {
            let rows = shared.rows(connection, &sql, Parameters::None)?;
            rows.into_iter().next().ok_or_else(|| Error::internal("a query of ours answered no row"))
        })
        .await
    }

    /// How many rows a table has that the caller may read.
    pub async fn count(&self, rights: &Arc<Rights>, table: &TableName) -> Result<i64> {
        let (user, rights, table) = (rights, rights.clone(), table.clone());
        self.call(user, move |shared, connection| {
            guard::may_read(&rights, &table, shared.catalogs(connection)?)?;
            let sql = format!("SELECT count(*)::VARCHAR FROM {}", table.sql());
            let counted = shared.rows(connection, &sql, Parameters::None);
            let rows = counted.map_err(|error| discreet(error, &rights))?;
            let count = rows.into_iter().flatten().next().and_then(|count| count.parse().ok());
            count.ok_or_else(|| Error::internal("a count of ours answered no number"))
        })
        .await
    }
}

/// DuckDB's word where parameters without values leave a type open.
const UNKNOWN: &str = "UNKNOWN";

/// Does `work` in a transaction that cannot write and that is rolled back.
fn reading<T>(shared: &Shared, connection: &Connection, work: impl FnOnce() -> Result<T>) -> Result<T> {
    shared.execute(connection, "BEGIN TRANSACTION READ ONLY")?;
    let outcome = work();
    let ended = shared.execute(connection, "ROLLBACK");
    let value = outcome?;
    ended.map(|_| value)
}

/// Runs nothing of the statement. With `values`, the types of the answer are those that the types of these lead to.
pub(super) fn plan(
    shared: &Shared,
    connection: &Connection,
    statement: &Statement<'_>,
    values: Option<&Values>,
    plain: bool,
    in_transaction: bool,
) -> Result<Plan> {
    let cause = |error: duckdb::Error| shared.cause(&error);
    let bound = match statement.bind(connection) {
        Err(error) if error.code == DuckDBError::InputMetadataDeferred => {
            let expand = || expanded(shared, connection, statement, plain);
            return if in_transaction { expand() } else { reading(shared, connection, expand) };
        }
        bound => bound.map_err(cause)?,
    };
    let parameters = match bound.parameters.is_empty().map_err(cause)? {
        true => Arc::new(Schema::empty()),
        false => as_arrow(shared, connection, &bound.parameters, plain)?,
    };
    if !statement::answers_rows(connection, statement)? {
        return Ok(Plan { rows: None, parameters });
    }
    if let Some(values) = values.filter(|values| values.rows() > 0)
        && let Some(typed) = values.typed(shared, &shared.connect()?, statement)?
        // Where a value has no place as a literal, DuckDB tells less.
        && let Ok(with_values) = connection.parse(&typed.sql).and_then(|text| text.into_statement(connection))
        && let Ok(with_values) = with_values.bind(connection)
    {
        let known = columns_of(shared, &bound.schema)?;
        let columns = columns_of(shared, &with_values.schema)?;
        let columns = columns.into_iter().enumerate().map(|(place, (name, duckdb_type))| match known.get(place) {
            Some((known, bound_type)) if bound_type != UNKNOWN => (known.clone(), duckdb_type),
            _ => (typed.name(name), duckdb_type),
        });
        return Ok(Plan { rows: Some(shown(shared, connection, columns, plain)?), parameters });
    }
    Ok(Plan { rows: Some(as_arrow(shared, connection, &bound.schema, plain)?), parameters })
}

/// Of the statements that DuckDB makes several of, only a PIVOT without its values answers rows, and its columns are in the
/// data: it is run for them, in a transaction that cannot write. What may change something is not run.
fn expanded(shared: &Shared, connection: &Connection, statement: &Statement<'_>, plain: bool) -> Result<Plan> {
    let cause = |error: duckdb::Error| shared.cause(&error);
    let parameters = Arc::new(Schema::empty());
    match statement::expansion(connection, statement)? {
        Expansion::Pivot => {}
        Expansion::Change => return Ok(Plan { rows: None, parameters }),
        Expansion::Unclear => {
            return Err(Error::Unsupported(
                "a PIVOT without its values beside a change is not planned; name its values with IN (..)".into(),
            ));
        }
    }
    let mut result = statement.arrow_query(connection, Parameters::None, None).map_err(cause)?;
    // Its first rows, with which the columns come.
    drop(result.next_array().map_err(cause)?);
    if result.result_type().map_err(cause)? != ResultType::QueryResult {
        return Ok(Plan { rows: None, parameters });
    }
    let rows = Importer::new(result.schema().map_err(cause)?, plain)?.schema();
    // What is dropped half way aborts a transaction.
    result.drain().map_err(cause)?;
    Ok(Plan { rows: Some(rows), parameters })
}

/// The schema of a query of ours.
fn rows_of(shared: &Shared, connection: &Connection, statement: &Statement<'_>, plain: bool) -> Result<SchemaRef> {
    let bound = statement.bind(connection).map_err(|error| shared.cause(&error))?;
    as_arrow(shared, connection, &bound.schema, plain)
}

/// Columns of the statement's as Arrow.
fn as_arrow(
    shared: &Shared,
    connection: &Connection,
    schema: &duckdb::schema::Schema,
    plain: bool,
) -> Result<SchemaRef> {
    let columns = schema.get_all().map_err(|error| shared.cause(&error))?;
    let texts = types_of(shared, schema)?;
    if texts.iter().any(|duckdb_type| duckdb_type == UNKNOWN) {
        return shown(shared, connection, columns.into_iter().map(|(name, _)| name).zip(texts), plain);
    }
    arrow_schema_of(shared, connection, columns, plain)
}

/// A type that parameters leave open is shown as a text.
fn shown(
    shared: &Shared,
    connection: &Connection,
    columns: impl IntoIterator<Item = (String, String)>,
    plain: bool,
) -> Result<SchemaRef> {
    let known = |duckdb_type: String| if duckdb_type == UNKNOWN { "VARCHAR".to_string() } else { duckdb_type };
    let columns: Vec<_> = columns.into_iter().map(|(name, duckdb_type)| (name, known(duckdb_type))).collect();
    arrow_schema(shared, connection, &columns, plain)
}

/// Names and DuckDB's types.
pub(super) fn columns_of(shared: &Shared, schema: &duckdb::schema::Schema) -> Result<Vec<(String, String)>> {
    let mut columns = Vec::new();
    for (index, duckdb_type) in types_of(shared, schema)?.into_iter().enumerate() {
        let name = schema.name(index).map_err(|error| shared.cause(&error))?;
        columns.push((name.to_string(), duckdb_type));
    }
    Ok(columns)
}

/// DuckDB's types of a statement's columns, as text; none where parameters leave one open.
pub(super) fn bound_types(shared: &Shared, connection: &Connection, statement: &Statement<'_>) -> Result<Vec<String>> {
    let bound = match statement.bind(connection) {
        Err(error) if error.code == DuckDBError::InputMetadataDeferred => return Ok(Vec::new()),
        bound => bound.map_err(|error| shared.cause(&error))?,
    };
    let types = types_of(shared, &bound.schema)?;
    Ok(if types.iter().any(|name| name == UNKNOWN) { Vec::new() } else { types })
}

/// DuckDB's types of a statement's columns, as text.
///
/// Asked while the statement's result is live, and a connection has one live result at a time: this takes another.
pub(super) fn column_types(shared: &Shared, statement: &Statement<'_>) -> Result<Vec<String>> {
    let other = shared.connect()?;
    let sql = statement.get_text().map_err(|error| shared.cause(&error))?;
    let statement = statement::parse(shared, &other, sql)?;
    let bound = statement.bind(&other).map_err(|error| shared.cause(&error))?;
    types_of(shared, &bound.schema)
}

pub(super) fn types_of(shared: &Shared, schema: &duckdb::schema::Schema) -> Result<Vec<String>> {
    let fields = schema.get_all().map_err(|error| shared.cause(&error))?;
    fields.into_iter().map(|(_, field)| field.to_text().map_err(|error| shared.cause(&error))).collect()
}
