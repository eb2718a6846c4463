//! What the catalog says of schemas, tables, columns and keys, for those who ask through a protocol and not in SQL.
//!
//! The number of statements does not grow with the number of tables: one lists them with their columns, and one more
//! turns the types of all columns into Arrow's, without binding a table. What a client sent is bound, never pasted.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use arrow_array::{BooleanArray, RecordBatch, cast::AsArray};
use arrow_schema::{DataType, Field, FieldRef};
use arrow_select::{concat::concat_batches, filter::filter_record_batch};
use duckdb::{Parameters, QueryParameter, connection::Connection};

use super::{Ask, Engine, Shared, arrow::Importer, catalog::Catalogs, line, types::arrow_schema};
use crate::{
    access::Rights,
    error::{Error, Result},
};

/// Which tables are asked for. Names are compared as DuckDB compares identifiers, without regard to case.
#[derive(Debug, Clone, Default)]
pub struct TableFilter {
    pub catalog: Option<String>,
    /// Patterns of LIKE, in which a backslash makes `%` and `_` plain.
    pub schema: Option<String>,
    pub table: Option<String>,
    /// Some of [`TABLE_TYPES`]; empty means all.
    pub types: Vec<String>,
}

/// One table of those that a question about keys means.
#[derive(Debug, Clone, Default)]
pub struct KeyTable {
    pub catalog: Option<String>,
    pub schema: Option<String>,
    pub table: String,
}

/// What [`ListedTable::kind`] may be.
pub const TABLE_TYPES: [&str; 3] = ["LOCAL TEMPORARY", "TABLE", "VIEW"];

#[derive(Debug)]
pub struct ListedTable {
    pub catalog: String,
    pub schema: String,
    pub name: String,
    pub kind: String,
    /// Empty where they were not asked for, and of a view that cannot be read any more.
    pub columns: Vec<ListedColumn>,
}

#[derive(Debug)]
pub struct ListedColumn {
    /// As a query would answer it, but NULL only where the table allows it.
    pub field: FieldRef,
    pub duckdb_type: String,
    /// Of DECIMAL alone.
    pub precision: Option<i32>,
    pub scale: Option<i32>,
    pub comment: Option<String>,
    /// Computed from other columns, and never written.
    pub generated: bool,
    /// Filled from a sequence.
    pub serial: bool,
}

/// Words of DuckDB's SQL.
#[derive(Debug, Default)]
pub struct Vocabulary {
    pub keywords: Vec<String>,
    pub numeric_functions: Vec<String>,
    pub string_functions: Vec<String>,
    pub system_functions: Vec<String>,
    pub datetime_functions: Vec<String>,
}

/// Tables and views of the served database, of those attached to it, and of the connection; what DuckDB keeps for itself is in none of these.
fn tables(catalogs: &Catalogs) -> String {
    let catalogs = catalogs.sql();
    format!(
        "(SELECT database_name, schema_name, table_name, if(temporary, 'LOCAL TEMPORARY', 'TABLE') AS kind \
          FROM duckdb_tables() WHERE NOT internal AND database_name IN ({catalogs}, 'temp') \
          UNION ALL \
          SELECT database_name, schema_name, view_name, 'VIEW' \
          FROM duckdb_views() WHERE NOT internal AND database_name IN ({catalogs}, 'temp')) AS tables"
    )
}

/// The columns of foreign keys, each beside the column that it refers to. DuckDB names the parent's table only: it is
/// always in the same schema. It knows no rules but NO ACTION, which is 3.
const FOREIGN_KEYS: &str = "\
    WITH keys AS (\
      SELECT *, generate_subscripts(constraint_column_names, 1) AS place FROM duckdb_constraints() \
      WHERE constraint_type = 'FOREIGN KEY' AND len(constraint_column_names) > 0) \
    SELECT keys.database_name AS pk_catalog_name, keys.schema_name AS pk_db_schema_name, \
      keys.referenced_table AS pk_table_name, keys.referenced_column_names[place] AS pk_column_name, \
      keys.database_name AS fk_catalog_name, keys.schema_name AS fk_db_schema_name, \
      keys.table_name AS fk_table_name, keys.constraint_column_names[place] AS fk_column_name, \
      place::INTEGER AS key_sequence, keys.constraint_name AS fk_key_name, parents.constraint_name AS pk_key_name, \
      3::UTINYINT AS update_rule, 3::UTINYINT AS delete_rule \
    FROM keys LEFT JOIN duckdb_constraints() AS parents ON parents.database_name = keys.database_name \
      AND parents.schema_name = keys.schema_name AND parents.table_name = keys.referenced_table \
      AND parents.constraint_type IN ('PRIMARY KEY', 'UNIQUE') \
      AND parents.constraint_column_names = keys.referenced_column_names";

/// Few enough for one SELECT list to stay a small statement.
const TYPES_AT_ONCE: usize = 500;

impl Engine {
    /// Asks where a statement of that place would run: its open transaction and its temporary tables are seen there.
    async fn inquire<T: Send + 'static>(
        &self,
        rights: &Rights,
        place: &Ask,
        work: impl FnOnce(&Shared, &Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let settings = place.settings.clone();
        match &place.line {
            None => {
                self.call(rights, move |shared, connection| {
                    line::apply(shared, connection, &settings)?;
                    work(shared, connection)
                })
                .await
            }
            Some(line) => {
                self.call_on_line(rights, line, move |shared, kept| {
                    kept.apply(shared, &settings)?;
                    work(shared, kept.connection(shared)?)
                })
                .await
            }
        }
    }

    /// The databases that tables of clients are in.
    pub async fn catalogs(&self, rights: &Arc<Rights>, place: &Ask) -> Result<Vec<String>> {
        let (user, rights) = (rights, rights.clone());
        self.inquire(user, place, move |shared, connection| {
            let (database, catalogs) = (shared.database_name(connection)?, shared.catalogs(connection)?);
            // An attached catalog is there for those who may see something of it, and so is that of temporary tables.
            let sql = format!(
                "SELECT DISTINCT database_name, schema_name FROM {} UNION \
                 SELECT database_name, schema_name FROM duckdb_schemas() WHERE database_name IN ({})",
                tables(catalogs),
                catalogs.sql()
            );
            let mut names = BTreeSet::from([database.to_string()]);
            for row in shared.rows(connection, &sql, Parameters::None)? {
                let [catalog, schema] = <[String; 2]>::try_from(row).map_err(|_| Error::internal("two columns"))?;
                if rights.sees_schema(catalogs.beside(&catalog), &schema) || catalog == "temp" {
                    names.insert(catalog);
                }
            }
            Ok(names.into_iter().collect())
        })
        .await
    }

    /// Catalog and schema of the schemas that the caller may see something of.
    pub async fn schemas(
        &self,
        rights: &Arc<Rights>,
        place: &Ask,
        catalog: Option<String>,
        pattern: Option<String>,
    ) -> Result<Vec<[String; 2]>> {
        let (user, rights) = (rights, rights.clone());
        self.inquire(user, place, move |shared, connection| {
            let catalogs = shared.catalogs(connection)?;
            // The schema of temporary tables is there where there are some.
            let sql = format!(
                "SELECT database_name, schema_name FROM (\
                   SELECT database_name, schema_name FROM duckdb_schemas() WHERE database_name IN ({}) \
                   UNION SELECT database_name, schema_name FROM {}) \
                 WHERE ($catalog IS NULL OR lower(database_name) = lower($catalog)) \
                   AND ($pattern IS NULL OR schema_name ILIKE $pattern ESCAPE '\\') ORDER BY ALL",
                catalogs.sql(),
                tables(catalogs)
            );
            let parameters: [(&str, &dyn QueryParameter); 2] = [("catalog", &catalog), ("pattern", &pattern)];
            let rows = shared.rows(connection, &sql, Parameters::named(&parameters))?.into_iter();
            let rows = rows.filter_map(|row| <[String; 2]>::try_from(row).ok());
            Ok(rows.filter(|[catalog, schema]| rights.sees_schema(catalogs.beside(catalog), schema)).collect())
        })
        .await
    }

    /// The tables and views that the caller may read, in the order of their names.
    pub async fn listed(
        &self,
        rights: &Arc<Rights>,
        place: &Ask,
        filter: TableFilter,
        with_columns: bool,
    ) -> Result<Vec<ListedTable>> {
        let (user, rights) = (rights, rights.clone());
        let plain = place.settings.plain(&self.shared);
        self.inquire(user, place, move |shared, connection| {
            listed(shared, connection, &rights, &filter, with_columns, plain)
        })
        .await
    }

    /// Primary keys, one row a column: catalog, schema, table, column, the key's name, the column's place in it.
    pub async fn primary_keys(&self, rights: &Arc<Rights>, place: &Ask, of: KeyTable) -> Result<RecordBatch> {
        let (user, rights) = (rights, rights.clone());
        self.inquire(user, place, move |shared, connection| {
            let catalogs = shared.catalogs(connection)?;
            let sql = format!(
                "SELECT * FROM (\
                 SELECT database_name AS catalog_name, schema_name AS db_schema_name, table_name, \
                   unnest(constraint_column_names) AS column_name, constraint_name AS key_name, \
                   generate_subscripts(constraint_column_names, 1)::INTEGER AS key_sequence \
                 FROM duckdb_constraints() \
                 WHERE constraint_type = 'PRIMARY KEY' AND database_name IN ({}, 'temp')) \
               WHERE ($catalog IS NULL OR lower(catalog_name) = lower($catalog)) \
                 AND ($schema IS NULL OR lower(db_schema_name) = lower($schema)) AND lower(table_name) = lower($table) \
               ORDER BY catalog_name, db_schema_name, table_name, key_name, key_sequence",
                catalogs.sql()
            );
            let KeyTable { catalog, schema, table } = &of;
            let parameters: [(&str, &dyn QueryParameter); 3] =
                [("catalog", catalog), ("schema", schema), ("table", table)];
            let keys = batch(shared, connection, &sql, Parameters::named(&parameters))?;
            readable(&keys, &rights, catalogs, &[0])
        })
        .await
    }

    /// Foreign keys that refer to `parent` or start at `child`, one row a column; in the order of the other side.
    pub async fn foreign_keys(
        &self,
        rights: &Arc<Rights>,
        place: &Ask,
        parent: Option<KeyTable>,
        child: Option<KeyTable>,
    ) -> Result<RecordBatch> {
        let (user, rights) = (rights, rights.clone());
        self.inquire(user, place, move |shared, connection| {
            // Keys that others have to a table are told by them; those of a table by what they refer to.
            let order = if child.is_none() {
                "fk_catalog_name, fk_db_schema_name, fk_table_name, fk_key_name, key_sequence"
            } else {
                "pk_catalog_name, pk_db_schema_name, pk_table_name, pk_key_name, fk_key_name, key_sequence"
            };
            let one = |side: &str| {
                format!(
                    "(${side}_catalog IS NULL OR lower({side}_catalog_name) = lower(${side}_catalog)) \
                     AND (${side}_schema IS NULL OR lower({side}_db_schema_name) = lower(${side}_schema)) \
                     AND (${side}_table IS NULL OR lower({side}_table_name) = lower(${side}_table))"
                )
            };
            let catalogs = shared.catalogs(connection)?;
            let sql = format!(
                "SELECT * FROM ({FOREIGN_KEYS} WHERE keys.database_name IN ({}, 'temp')) WHERE {} AND {} ORDER BY {order}",
                catalogs.sql(),
                one("pk"),
                one("fk")
            );
            let part = |side: &Option<KeyTable>| match side.clone() {
                Some(KeyTable { catalog, schema, table }) => (catalog, schema, Some(table)),
                None => (None, None, None),
            };
            let (pk, fk) = (part(&parent), part(&child));
            let parameters: [(&str, &dyn QueryParameter); 6] = [
                ("pk_catalog", &pk.0),
                ("pk_schema", &pk.1),
                ("pk_table", &pk.2),
                ("fk_catalog", &fk.0),
                ("fk_schema", &fk.1),
                ("fk_table", &fk.2),
            ];
            let keys = batch(shared, connection, &sql, Parameters::named(&parameters))?;
            readable(&keys, &rights, catalogs, &[0, 4])
        })
        .await
    }

    /// The words that DuckDB reserves and the functions it has, as it tells them.
    pub async fn vocabulary(&self, rights: &Arc<Rights>) -> Result<Vocabulary> {
        self.call(rights, |shared, connection| {
            // What a function is about is what it takes. Names that are operators or DuckDB's own are none for people.
            let sql = "WITH functions AS (\
                 SELECT function_name AS word, function_type AS kind, parameter_types AS takes FROM duckdb_functions() \
                 WHERE internal AND function_type IN ('scalar', 'macro') AND schema_name = 'main' \
                   AND regexp_full_match(function_name, '[a-z][a-z0-9_]*') \
                   AND NOT regexp_matches(function_name, '^(icu_)?collate_')) \
               SELECT DISTINCT * FROM (\
                 SELECT 'keyword', keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved' \
                 UNION ALL SELECT 'numeric', word FROM functions WHERE len(takes) > 0 AND len(list_filter(takes, \
                   lambda one: one IS NULL OR one NOT IN ('TINYINT', 'SMALLINT', 'INTEGER', 'BIGINT', 'HUGEINT', \
                   'UTINYINT', 'USMALLINT', 'UINTEGER', 'UBIGINT', 'UHUGEINT', 'FLOAT', 'DOUBLE', 'DECIMAL', \
                   'BIGNUM'))) = 0 \
                 UNION ALL SELECT 'string', word FROM functions WHERE takes[1] = 'VARCHAR' \
                 UNION ALL SELECT 'system', word FROM functions WHERE word LIKE 'current\\_%' ESCAPE '\\' \
                   OR word IN ('version', 'txid_current', 'getvariable') \
                 UNION ALL SELECT 'datetime', word FROM functions WHERE len(list_filter(takes, lambda one: one IN \
                   ('DATE', 'TIME', 'TIMESTAMP', 'INTERVAL', 'TIMESTAMP WITH TIME ZONE', 'TIME WITH TIME ZONE'))) > 0 \
                   OR word IN ('now', 'today', 'current_date', 'current_localtime', 'current_localtimestamp')) \
               ORDER BY ALL";
            let mut vocabulary = Vocabulary::default();
            for row in shared.rows(connection, sql, Parameters::None)? {
                let [kind, word] =
                    <[String; 2]>::try_from(row).map_err(|_| Error::internal("two columns were asked for"))?;
                match kind.as_str() {
                    "keyword" => vocabulary.keywords.push(word.to_uppercase()),
                    "numeric" => vocabulary.numeric_functions.push(word),
                    "string" => vocabulary.string_functions.push(word),
                    "system" => vocabulary.system_functions.push(word),
                    _ => vocabulary.datetime_functions.push(word),
                }
            }
            Ok(vocabulary)
        })
        .await
    }
}

/// One row of the listing: a table, and one of its columns where those are asked for.
type Row = [String; 13];

fn listed(
    shared: &Shared,
    connection: &Connection,
    rights: &Rights,
    filter: &TableFilter,
    with_columns: bool,
    plain: bool,
) -> Result<Vec<ListedTable>> {
    let catalogs = shared.catalogs(connection)?;
    let columns = match with_columns {
        true => "LEFT JOIN duckdb_columns() AS columns USING (database_name, schema_name, table_name)",
        // Nothing is joined, and the names of columns are there for the SELECT list.
        false => {
            "LEFT JOIN (SELECT NULL AS column_index, NULL AS column_name, NULL AS data_type, NULL AS is_nullable, \
               NULL AS numeric_precision, NULL AS numeric_scale, NULL AS comment, NULL AS is_generated, \
               NULL AS column_default) AS columns ON false"
        }
    };
    let sql = format!(
        "SELECT database_name, schema_name, table_name, kind, column_name, data_type, is_nullable::VARCHAR, \
           numeric_precision, numeric_scale, columns.comment, is_generated::VARCHAR, \
           (column_default LIKE 'nextval(%')::VARCHAR, column_index \
         FROM {} {columns} \
         WHERE ($catalog IS NULL OR lower(database_name) = lower($catalog)) \
           AND ($schema IS NULL OR schema_name ILIKE $schema ESCAPE '\\') \
           AND ($table IS NULL OR table_name ILIKE $table ESCAPE '\\') \
         ORDER BY database_name, schema_name, table_name, kind, column_index",
        tables(catalogs)
    );
    let TableFilter { catalog, schema, table, types } = filter;
    let parameters: [(&str, &dyn QueryParameter); 3] = [("catalog", catalog), ("schema", schema), ("table", table)];
    let mut rows = Vec::new();
    for row in shared.rows(connection, &sql, Parameters::named(&parameters))? {
        let row = Row::try_from(row).map_err(|_| Error::internal("a listing has other columns than asked for"))?;
        if rights.may_read(catalogs.beside(&row[0]), &row[1], &row[2]) && (types.is_empty() || types.contains(&row[3]))
        {
            rows.push(row);
        }
    }
    let arrow = arrow_types(shared, connection, &rows, plain)?;
    let mut tables: Vec<ListedTable> = Vec::new();
    for [catalog, schema, name, kind, rest @ ..] in rows {
        if tables.last().is_none_or(|last| (&last.catalog, &last.schema, &last.name) != (&catalog, &schema, &name)) {
            tables.push(ListedTable { catalog, schema, name, kind, columns: Vec::new() });
        }
        if let Some(column) = column(rest, &arrow) {
            tables.last_mut().expect("pushed above").columns.push(column);
        }
    }
    Ok(tables)
}

fn column(row: [String; 9], arrow: &HashMap<String, FieldRef>) -> Option<ListedColumn> {
    let [name, duckdb_type, nullable, precision, scale, comment, generated, serial, _] = row;
    let is_decimal = duckdb_type.starts_with("DECIMAL(") && !duckdb_type.ends_with(']');
    let field = arrow.get(&duckdb_type)?.as_ref().clone();
    Some(ListedColumn {
        field: Arc::new(field.with_name(name).with_nullable(nullable != "false")),
        precision: precision.parse().ok().filter(|_| is_decimal),
        scale: scale.parse().ok().filter(|_| is_decimal),
        duckdb_type,
        comment: Some(comment).filter(|comment| !comment.is_empty()),
        generated: generated == "true",
        serial: serial == "true",
    })
}

/// A field of each of DuckDB's types among the columns, as its results have it.
fn arrow_types(
    shared: &Shared,
    connection: &Connection,
    rows: &[Row],
    plain: bool,
) -> Result<HashMap<String, FieldRef>> {
    let types: BTreeSet<&str> = rows.iter().map(|row| row[5].as_str()).filter(|text| !text.is_empty()).collect();
    let types: Vec<String> = types.into_iter().map(str::to_string).collect();
    let mut fields = HashMap::with_capacity(types.len());
    for some in types.chunks(TYPES_AT_ONCE) {
        if let Ok(schema) = arrow_schema(shared, connection, &unnamed(some), plain) {
            fields.extend(some.iter().cloned().zip(schema.fields().iter().cloned()));
            continue;
        }
        // One of them is a type that DuckDB cannot read as it writes it: the others are known all the same.
        for one in some {
            let field = match arrow_schema(shared, connection, &unnamed(std::slice::from_ref(one)), plain) {
                Ok(schema) => schema.fields()[0].clone(),
                Err(_) => Arc::new(Field::new("", DataType::Null, true)),
            };
            fields.insert(one.clone(), field);
        }
    }
    Ok(fields)
}

fn unnamed(types: &[String]) -> Vec<(String, String)> {
    types.iter().map(|duckdb_type| (String::new(), duckdb_type.clone())).collect()
}

/// All rows of a small query of ours.
fn batch(shared: &Shared, connection: &Connection, sql: &str, parameters: Parameters<'_>) -> Result<RecordBatch> {
    let cause = |error: duckdb::Error| shared.cause(&error);
    let mut result = connection.arrow_query(sql, parameters, None).map_err(cause)?;
    let importer = Importer::new(result.schema().map_err(cause)?, false)?;
    let mut batches = Vec::new();
    while let Some(array) = result.next_array().map_err(cause)? {
        batches.push(importer.batch(array)?);
    }
    concat_batches(&importer.schema(), &batches).map_err(Error::internal)
}

/// The rows whose tables the caller may all read; the names of each are in three columns from a place on.
fn readable(rows: &RecordBatch, rights: &Rights, catalogs: &Catalogs, tables: &[usize]) -> Result<RecordBatch> {
    let kept: BooleanArray = (0..rows.num_rows())
        .map(|row| {
            let name = |column: usize| rows.column(column).as_string::<i32>().value(row);
            let may_read = |&at: &usize| rights.may_read(catalogs.beside(name(at)), name(at + 1), name(at + 2));
            Some(tables.iter().all(may_read))
        })
        .collect();
    filter_record_batch(rows, &kept).map_err(Error::internal)
}
