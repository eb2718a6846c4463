//! The commands of Flight SQL that ask for facts: catalogs, schemas, tables, keys, types and abilities.
//!
//! Their columns, order and field metadata are those of the specification's comments in FlightSql.proto. What a caller
//! may not read is not there for them.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    metadata::{SqlInfoDataBuilder, XdbcTypeInfoDataBuilder},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use super::{Metadata, info, xdbc};
use crate::{
    auth::Identity,
    engine::{Ask, KeyTable, ListedColumn, ListedTable, TABLE_TYPES, TableFilter, Vocabulary},
    error::{Error, Result},
    flight::service::Flight,
    stream::RecordBatchStream,
    wire::schema_bytes,
};

/// Tables of one record batch, whose schemas are written when it leaves and not before.
const TABLES_AT_ONCE: usize = 512;

impl Metadata {
    /// The schema of what [`Flight::metadata`] answers.
    pub(super) fn schema(&self) -> SchemaRef {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        let present = |name: &str| Field::new(name, DataType::Utf8, false);
        let fields = match self {
            Self::Catalogs(_) => vec![present("catalog_name")],
            Self::DbSchemas(_) => vec![text("catalog_name"), present("db_schema_name")],
            Self::Tables(asked) => {
                let mut fields =
                    vec![text("catalog_name"), text("db_schema_name"), present("table_name"), present("table_type")];
                if asked.include_schema {
                    fields.push(Field::new("table_schema", DataType::Binary, false));
                }
                fields
            }
            Self::TableTypes(_) => vec![present("table_type")],
            Self::PrimaryKeys(_) => vec![
                text("catalog_name"),
                text("db_schema_name"),
                present("table_name"),
                present("column_name"),
                text("key_name"),
                Field::new("key_sequence", DataType::Int32, false),
            ],
            Self::ExportedKeys(_) | Self::ImportedKeys(_) | Self::CrossReference(_) => vec![
                text("pk_catalog_name"),
                text("pk_db_schema_name"),
                present("pk_table_name"),
                present("pk_column_name"),
                text("fk_catalog_name"),
                text("fk_db_schema_name"),
                present("fk_table_name"),
                present("fk_column_name"),
                Field::new("key_sequence", DataType::Int32, false),
                text("fk_key_name"),
                text("pk_key_name"),
                Field::new("update_rule", DataType::UInt8, false),
                Field::new("delete_rule", DataType::UInt8, false),
            ],
            Self::XdbcTypeInfo(_) => return XdbcTypeInfoDataBuilder::new().schema(),
            Self::SqlInfo(_) => return Arc::new(SqlInfoDataBuilder::schema().clone()),
        };
        Arc::new(Schema::new(fields))
    }
}

impl Flight {
    /// The answer to one of them, as far as this caller may know it.
    pub(super) async fn metadata(&self, identity: &Identity, asked: Metadata) -> Result<RecordBatchStream> {
        let (schema, rights) = (asked.schema(), &identity.rights);
        // In the session's open transaction, which these commands do not name.
        let place = &self.sessions.joining(identity)?;
        let rows = match asked {
            Metadata::Catalogs(CommandGetCatalogs {}) => texts(&schema, &[self.engine.catalogs(rights, place).await?])?,
            Metadata::DbSchemas(CommandGetDbSchemas { catalog, db_schema_filter_pattern }) => {
                let schemas = self.engine.schemas(rights, place, catalog, db_schema_filter_pattern).await?;
                let (catalogs, names): (Vec<_>, Vec<_>) =
                    schemas.into_iter().map(|[catalog, name]| (catalog, name)).unzip();
                texts(&schema, &[catalogs, names])?
            }
            Metadata::Tables(asked) => return self.tables(identity, place, schema, asked).await,
            Metadata::TableTypes(CommandGetTableTypes {}) => {
                texts(&schema, &[TABLE_TYPES.map(str::to_string).to_vec()])?
            }
            Metadata::PrimaryKeys(CommandGetPrimaryKeys { catalog, db_schema, table }) => {
                let table = KeyTable { catalog, schema: db_schema, table };
                self.engine.primary_keys(rights, place, table).await?
            }
            Metadata::ExportedKeys(CommandGetExportedKeys { catalog, db_schema, table }) => {
                let parent = KeyTable { catalog, schema: db_schema, table };
                self.engine.foreign_keys(rights, place, Some(parent), None).await?
            }
            Metadata::ImportedKeys(CommandGetImportedKeys { catalog, db_schema, table }) => {
                let child = KeyTable { catalog, schema: db_schema, table };
                self.engine.foreign_keys(rights, place, None, Some(child)).await?
            }
            Metadata::CrossReference(asked) => {
                let CommandGetCrossReference { pk_catalog, pk_db_schema, pk_table, fk_catalog, fk_db_schema, fk_table } =
                    asked;
                let parent = KeyTable { catalog: pk_catalog, schema: pk_db_schema, table: pk_table };
                let child = KeyTable { catalog: fk_catalog, schema: fk_db_schema, table: fk_table };
                self.engine.foreign_keys(rights, place, Some(parent), Some(child)).await?
            }
            Metadata::XdbcTypeInfo(CommandGetXdbcTypeInfo { data_type }) => {
                xdbc::types()?.record_batch(data_type).map_err(Error::internal)?
            }
            Metadata::SqlInfo(CommandGetSqlInfo { info: ids }) => {
                let vocabulary = match info::needs_vocabulary(&ids) {
                    true => self.engine.vocabulary(rights).await?,
                    false => Vocabulary::default(),
                };
                info::rows(&self.config, rights, vocabulary, ids)?
            }
        };
        // The engine's columns are the specification's, but none of its fields forbids NULL.
        let rows = RecordBatch::try_new(schema.clone(), rows.columns().to_vec()).map_err(Error::internal)?;
        Ok(RecordBatchStream::from_batches(schema, vec![rows]))
    }

    async fn tables(
        &self,
        identity: &Identity,
        place: &Ask,
        schema: SchemaRef,
        asked: CommandGetTables,
    ) -> Result<RecordBatchStream> {
        let CommandGetTables {
            catalog,
            db_schema_filter_pattern,
            table_name_filter_pattern,
            table_types: types,
            include_schema,
        } = asked;
        let filter = TableFilter { catalog, schema: db_schema_filter_pattern, table: table_name_filter_pattern, types };
        let mut tables = self.engine.listed(&identity.rights, place, filter, include_schema).await?.into_iter();
        let batches_schema = schema.clone();
        let batches = std::iter::from_fn(move || {
            let some: Vec<ListedTable> = tables.by_ref().take(TABLES_AT_ONCE).collect();
            (!some.is_empty()).then(|| table_rows(&batches_schema, some, include_schema))
        });
        Ok(RecordBatchStream::new(schema, futures::stream::iter(batches)))
    }
}

fn table_rows(schema: &SchemaRef, tables: Vec<ListedTable>, include_schema: bool) -> Result<RecordBatch> {
    let column =
        |of: fn(&ListedTable) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(tables.iter().map(of))) };
    let mut columns = vec![
        column(|table| &table.catalog),
        column(|table| &table.schema),
        column(|table| &table.name),
        column(|table| &table.kind),
    ];
    if include_schema {
        let schemas = tables.iter().map(|table| {
            let fields: Vec<Field> = table.columns.iter().map(|column| field(table, column)).collect();
            schema_bytes(&Schema::new(fields))
        });
        let schemas = schemas.collect::<Result<Vec<_>>>()?;
        columns.push(Arc::new(BinaryArray::from_iter_values(schemas)));
    }
    RecordBatch::try_new(schema.clone(), columns).map_err(Error::internal)
}

/// A column of a table, with what clients of ODBC's and JDBC's kind want to know of it.
fn field(table: &ListedTable, column: &ListedColumn) -> Field {
    let known = xdbc::Type::of(&column.duckdb_type);
    let flag = |set: bool| if set { "1" } else { "0" }.to_string();
    let mut notes: HashMap<String, String> = column.field.metadata().clone().into();
    let mut note = |key: &str, value: String| notes.insert(format!("ARROW:FLIGHT:SQL:{key}"), value);
    note("CATALOG_NAME", table.catalog.clone());
    note("DB_SCHEMA_NAME", table.schema.clone());
    note("TABLE_NAME", table.name.clone());
    note("TYPE_NAME", column.duckdb_type.clone());
    if let Some(size) = column.precision.or(known.and_then(|known| known.size)) {
        note("PRECISION", size.to_string());
    }
    if let Some(scale) = column.scale {
        note("SCALE", scale.to_string());
    }
    note("IS_AUTO_INCREMENT", flag(column.serial));
    note("IS_CASE_SENSITIVE", flag(known.is_some_and(xdbc::Type::is_case_sensitive)));
    note("IS_READ_ONLY", flag(column.generated));
    note("IS_SEARCHABLE", flag(true));
    if let Some(comment) = &column.comment {
        note("REMARKS", comment.clone());
    }
    column.field.as_ref().clone().with_metadata(notes)
}

/// Rows of nothing but text, one vector a column.
fn texts(schema: &SchemaRef, columns: &[Vec<String>]) -> Result<RecordBatch> {
    let columns = columns.iter().map(|values| Arc::new(StringArray::from_iter_values(values)) as ArrayRef).collect();
    RecordBatch::try_new(schema.clone(), columns).map_err(Error::internal)
}
