//! DuckDB's types as Arrow has them: what DuckDB says of a column of each.
//!
//! Asking takes a query, which is most of what planning a small statement costs. So what DuckDB has said of its built-in types
//! is kept; other types may mean something else tomorrow.

use std::{collections::HashMap, sync::Mutex};

use arrow_schema::{FieldRef, Schema, SchemaRef};
use duckdb::{Parameters, connection::Connection};

use super::{
    Shared,
    arrow::Importer,
    catalog::quote,
    exported::{self, Columns},
    pool::lock,
};
use crate::error::Result;

/// Types without parameters, as DuckDB writes them. Nobody can create one of the same name. TIMESTAMP WITH TIME ZONE is
/// missing: its Arrow type has the zone of the connection.
const BUILT_IN: [&str; 25] = [
    "BIGINT",
    "BIT",
    "BLOB",
    "BOOLEAN",
    "DATE",
    "DOUBLE",
    "FLOAT",
    "HUGEINT",
    "INTEGER",
    "INTERVAL",
    "SMALLINT",
    "TIME",
    "TIME WITH TIME ZONE",
    "TIMESTAMP",
    "TIMESTAMP_MS",
    "TIMESTAMP_NS",
    "TIMESTAMP_S",
    "TINYINT",
    "UBIGINT",
    "UHUGEINT",
    "UINTEGER",
    "USMALLINT",
    "UTINYINT",
    "UUID",
    "VARCHAR",
];

fn is_built_in(duckdb_type: &str) -> bool {
    BUILT_IN.contains(&duckdb_type) || duckdb_type.starts_with("DECIMAL(")
}

/// A field of each built-in type that was asked for; the second map has the plain form.
#[derive(Default)]
pub(super) struct KnownTypes(Mutex<[HashMap<String, FieldRef>; 2]>);

impl KnownTypes {
    /// Columns of types that are known; nothing where one is not.
    fn fields(&self, columns: &[(String, String)], plain: bool) -> Option<Vec<FieldRef>> {
        let known = &lock(&self.0)[usize::from(plain)];
        let field = |(name, duckdb_type): &(String, String)| {
            let field = known.get(duckdb_type)?;
            Some(field.as_ref().clone().with_name(named(name)).into())
        };
        columns.iter().map(field).collect()
    }
}

/// The same of a bound statement's columns, whose types need not have a name in SQL.
pub(super) fn arrow_schema_of(
    shared: &Shared,
    connection: &Connection,
    columns: Columns,
    plain: bool,
) -> Result<SchemaRef> {
    let texts = columns.iter().map(|(_, of)| of.to_text()).collect::<duckdb::Result<Vec<_>>>();
    let texts = texts.map_err(|error| shared.cause(&error))?;
    if columns.is_empty() || texts.iter().all(|duckdb_type| is_built_in(duckdb_type)) {
        let named: Vec<_> = columns.into_iter().map(|(name, _)| name).zip(texts).collect();
        return arrow_schema(shared, connection, &named, plain);
    }
    let columns = columns.into_iter().map(|(name, of)| (named(&name).to_string(), of)).collect();
    let mut importer = Importer::new(exported::schema_of(shared, connection, columns)?, plain)?;
    importer.annotate(&texts);
    Ok(importer.schema())
}

/// Columns of these names and DuckDB types as Arrow, as a result has them.
pub(super) fn arrow_schema(
    shared: &Shared,
    connection: &Connection,
    columns: &[(String, String)],
    plain: bool,
) -> Result<SchemaRef> {
    if let Some(fields) = shared.types.fields(columns, plain) {
        return Ok(Schema::new(fields).into());
    }
    if !columns.iter().all(|(_, duckdb_type)| is_built_in(duckdb_type)) {
        return ask(shared, connection, columns, plain);
    }
    // On a connection where names mean what they always do.
    let schema = ask(shared, &shared.connect()?, columns, plain)?;
    let types = columns.iter().map(|(_, duckdb_type)| duckdb_type.clone());
    lock(&shared.types.0)[usize::from(plain)].extend(types.zip(schema.fields().iter().cloned()));
    Ok(schema)
}

fn ask(shared: &Shared, connection: &Connection, columns: &[(String, String)], plain: bool) -> Result<SchemaRef> {
    let (mut selected, mut types) = (Vec::new(), Vec::new());
    for (name, duckdb_type) in columns {
        selected.push(format!("NULL::{duckdb_type} AS {}", quote(named(name))));
        types.push(duckdb_type.clone());
    }
    let empty = format!("SELECT {} LIMIT 0", selected.join(", "));
    let result = connection.arrow_query(empty, Parameters::None, None).map_err(|error| shared.cause(&error))?;
    let mut importer = Importer::new(result.schema().map_err(|error| shared.cause(&error))?, plain)?;
    importer.annotate(&types);
    Ok(importer.schema())
}

/// SQL has no empty names.
fn named(name: &str) -> &str {
    if name.is_empty() { " " } else { name }
}
