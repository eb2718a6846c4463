//! The check of Arrow data, without the DuckDB that reads what passes it.

mod catalog {
    /// As in src/engine/catalog.rs, which needs DuckDB.
    pub(super) fn quote(name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

mod plain {
    use arrow_schema::{DataType, FieldRef};

    /// As in src/engine/plain.rs, whose other half reads what DuckDB makes.
    pub(super) fn children(data_type: &DataType) -> Vec<FieldRef> {
        match data_type {
            DataType::List(field)
            | DataType::LargeList(field)
            | DataType::ListView(field)
            | DataType::LargeListView(field)
            | DataType::FixedSizeList(field, _)
            | DataType::Map(field, _) => vec![field.clone()],
            DataType::Struct(fields) => fields.iter().cloned().collect(),
            DataType::Union(fields, _) => fields.iter().map(|(_, field)| field.clone()).collect(),
            _ => Vec::new(),
        }
    }
}
#[path = "../../src/engine/validate/mod.rs"]
mod validate;

use arrow_array::{RecordBatch, StructArray};
use arrow_schema::SchemaRef;

use crate::error::Result;

/// What DuckDB would read of a batch, with the schema by which it does.
pub fn checked(batch: &RecordBatch) -> Result<(SchemaRef, StructArray)> {
    let checked = validate::Checked::new(batch.schema())?;
    let rows = checked.batch(batch, 0)?.into_struct()?;
    let _relation = checked.relation("sent()");
    Ok((checked.schema().clone(), rows))
}
