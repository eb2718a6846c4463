//! The tables of a server, as Flight SQL's GetTables tells of them.

use std::io::Cursor;

use arrow_array::{Array, RecordBatch, cast::AsArray};
use arrow_flight::{
    FlightDescriptor,
    sql::{CommandGetTables, ProstMessageExt},
};
use arrow_ipc::reader::StreamReader;
use arrow_schema::Schema;
use futures::TryStreamExt;
use prost::Message;
use serde::Serialize;

use super::Client;
use crate::error::{Error, Result};

/// A table or view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    pub catalog: String,
    pub schema: String,
    pub name: String,
    /// TABLE, VIEW or LOCAL TEMPORARY.
    pub kind: String,
    pub columns: Vec<Column>,
}

/// A column of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    pub name: String,
    /// As the server's SQL writes it, where the server says.
    pub r#type: String,
}

impl Client {
    /// Those whose name, or schema and name with a dot between (or catalog, schema and name), is like the pattern, in which `%` and `_` stand for others;
    /// all without one.
    pub async fn tables(&self, pattern: Option<&str>) -> Result<Vec<Table>> {
        let parts: Vec<&str> = pattern.map(|pattern| pattern.splitn(3, '.').collect()).unwrap_or_default();
        let (catalog, schema, name) = match parts.as_slice() {
            [catalog, schema, name] => (Some(*catalog), Some(*schema), Some(*name)),
            [schema, name] => (None, Some(*schema), Some(*name)),
            [name] => (None, None, Some(*name)),
            _ => (None, None, None),
        };
        let asked = CommandGetTables {
            catalog: catalog.map(str::to_string),
            db_schema_filter_pattern: schema.map(str::to_string),
            table_name_filter_pattern: name.map(str::to_string),
            table_types: Vec::new(),
            include_schema: true,
        };
        let info = self.info(FlightDescriptor::new_cmd(asked.as_any().encode_to_vec())).await?;
        let mut tables = Vec::new();
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            let mut rows = self.get(ticket).await?;
            while let Some(batch) = rows.try_next().await? {
                read(&batch, &mut tables).ok_or_else(|| self.not_tables())?;
            }
        }
        Ok(tables)
    }

    fn not_tables(&self) -> Error {
        Error::Stream(format!("{}: the answer to GetTables has not its columns", self.peer()))
    }
}

/// `None` for what is no answer to GetTables.
fn read(batch: &RecordBatch, tables: &mut Vec<Table>) -> Option<()> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let (schemas, names, kinds) = (text("db_schema_name")?, text("table_name")?, text("table_type")?);
    let catalogs = text("catalog_name")?;
    let columns = batch.column_by_name("table_schema")?.as_binary_opt::<i32>()?;
    for row in 0..batch.num_rows() {
        let catalog = if catalogs.is_null(row) { "" } else { catalogs.value(row) };
        let schema = if schemas.is_null(row) { "" } else { schemas.value(row) };
        tables.push(Table {
            catalog: catalog.to_string(),
            schema: schema.to_string(),
            name: names.value(row).to_string(),
            kind: kinds.value(row).to_string(),
            columns: read_columns(columns.value(row))?,
        });
    }
    Some(())
}

fn read_columns(bytes: &[u8]) -> Option<Vec<Column>> {
    let schema = match arrow_ipc::convert::try_schema_from_ipc_buffer(bytes) {
        Ok(schema) => schema,
        // Some servers write a whole stream.
        Err(_) => Schema::clone(&StreamReader::try_new(Cursor::new(bytes), None).ok()?.schema()),
    };
    let columns = schema.fields().iter().map(|field| {
        let told = field.metadata().get("ARROW:FLIGHT:SQL:TYPE_NAME").cloned();
        Column { name: field.name().clone(), r#type: told.unwrap_or_else(|| field.data_type().to_string()) }
    });
    Some(columns.collect())
}
