//! Arrow across the C Data Interface, without copies, and the few types that need a hand.
//!
//! DuckDB converts without loss (`arrow_lossless_conversion`), which also turns BOOLEAN into the 8-bit `arrow.bool8`;
//! those columns become plain bit-packed booleans here, because plain Arrow loses nothing of them.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, Int8Array, RecordBatch, RecordBatchOptions, StructArray,
    ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi_and_data_type, to_ffi},
    make_array,
};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};

use crate::error::{Error, Result};

/// Field metadata that keeps the DuckDB type where Arrow has no form of its own for it (ENUM, TUPLE).
pub(super) const DUCKDB_TYPE: &str = "mallard.duckdb_type";

const EXTENSION_NAME: &str = "ARROW:extension:name";
const BOOL8: &str = "arrow.bool8";

/// How arrays of one result become record batches.
pub(super) struct Importer {
    raw: DataType,
    schema: SchemaRef,
    has_bool8: bool,
}

impl Importer {
    pub(super) fn new(schema: duckdb::arrow::ArrowSchema) -> Result<Self> {
        // SAFETY: both are the C Data Interface's ArrowSchema; ownership moves to the arrow-rs type, which releases it.
        let raw = unsafe { std::mem::transmute::<duckdb::ffi::ArrowSchema, FFI_ArrowSchema>(schema.into_raw()) };
        let raw = Schema::try_from(&raw).map_err(|error| Error::Unsupported(error.to_string()))?;
        let has_bool8 = raw.fields().iter().any(|field| contains_bool8(field));
        let fields: Fields = raw.fields().iter().map(plain_field).collect();
        Ok(Self { raw: DataType::Struct(raw.fields().clone()), schema: Arc::new(Schema::new(fields)), has_bool8 })
    }

    pub(super) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Notes DuckDB's type of a column in its field, where Arrow alone would lose it.
    pub(super) fn annotate(&mut self, types: &[String]) {
        let annotated = self.schema.fields().iter().zip(types).map(|(field, duckdb_type)| {
            if !loses_type(field.data_type()) {
                return field.clone();
            }
            let mut metadata = field.metadata().clone();
            metadata.insert(DUCKDB_TYPE.to_string(), duckdb_type.clone());
            Arc::new(field.as_ref().clone().with_metadata(metadata))
        });
        self.schema = Arc::new(Schema::new(annotated.collect::<Fields>()));
    }

    /// Whether some column needs [`Importer::annotate`].
    pub(super) fn loses_types(&self) -> bool {
        self.schema.fields().iter().any(|field| loses_type(field.data_type()))
    }

    pub(super) fn batch(&self, array: duckdb::arrow::ArrowArray) -> Result<RecordBatch> {
        // SAFETY: both are the C Data Interface's ArrowArray; ownership moves to the arrow-rs type, which releases it.
        let raw = unsafe { std::mem::transmute::<duckdb::ffi::ArrowArray, FFI_ArrowArray>(array.into_raw()) };
        // SAFETY: DuckDB made the array for the schema of this result, which `self.raw` is.
        let data = unsafe { from_ffi_and_data_type(raw, self.raw.clone()) }.map_err(Error::internal)?;
        let rows = StructArray::from(data);
        let length = rows.len();
        let (_, mut columns, _) = rows.into_parts();
        if self.has_bool8 {
            let Self { raw: DataType::Struct(raw), .. } = self else { unreachable!("built from a schema's fields") };
            columns = raw.iter().zip(columns).map(|(field, column)| plain_array(field, column)).collect();
        }
        let options = RecordBatchOptions::new().with_row_count(Some(length));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map_err(Error::internal)
    }
}

/// A batch as the C struct that DuckDB's importer takes over.
pub(super) fn export(batch: RecordBatch) -> Result<duckdb::arrow::ArrowArray> {
    let rows = StructArray::from(batch);
    let (array, _schema) = to_ffi(&rows.to_data()).map_err(Error::internal)?;
    // SAFETY: both are the C Data Interface's ArrowArray; ownership moves to DuckDB's type, which releases it.
    unsafe {
        let raw = std::mem::transmute::<FFI_ArrowArray, duckdb::ffi::ArrowArray>(array);
        Ok(duckdb::arrow::ArrowArray::from_raw(raw))
    }
}

pub(super) fn export_schema(schema: &Schema) -> Result<duckdb::arrow::ArrowSchema> {
    let schema = FFI_ArrowSchema::try_from(schema).map_err(Error::invalid)?;
    // SAFETY: both are the C Data Interface's ArrowSchema; ownership moves to DuckDB's type, which releases it.
    unsafe {
        let raw = std::mem::transmute::<FFI_ArrowSchema, duckdb::ffi::ArrowSchema>(schema);
        Ok(duckdb::arrow::ArrowSchema::from_raw(raw))
    }
}

fn is_bool8(field: &Field) -> bool {
    field.metadata().get(EXTENSION_NAME).is_some_and(|name| name == BOOL8)
}

fn contains_bool8(field: &Field) -> bool {
    is_bool8(field) || children(field.data_type()).iter().any(|child| contains_bool8(child))
}

/// ENUM leaves as a dictionary, and TUPLE as a struct of made-up names; neither comes back by itself.
fn loses_type(data_type: &DataType) -> bool {
    let here = match data_type {
        DataType::Dictionary(..) => true,
        DataType::Struct(fields) => fields.first().is_some_and(|first| first.name() == "element1"),
        _ => false,
    };
    here || children(data_type).iter().any(|child| loses_type(child.data_type()))
}

fn children(data_type: &DataType) -> Vec<FieldRef> {
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

/// The field with every `arrow.bool8` in it as a plain boolean.
fn plain_field(field: &FieldRef) -> FieldRef {
    if !contains_bool8(field) {
        return field.clone();
    }
    let plain = field.as_ref().clone();
    if is_bool8(field) {
        let mut metadata = field.metadata().clone();
        metadata.retain(|key, _| !key.starts_with("ARROW:extension:"));
        return Arc::new(plain.with_data_type(DataType::Boolean).with_metadata(metadata));
    }
    let data_type = match field.data_type() {
        DataType::List(child) => DataType::List(plain_field(child)),
        DataType::LargeList(child) => DataType::LargeList(plain_field(child)),
        DataType::ListView(child) => DataType::ListView(plain_field(child)),
        DataType::LargeListView(child) => DataType::LargeListView(plain_field(child)),
        DataType::FixedSizeList(child, size) => DataType::FixedSizeList(plain_field(child), *size),
        DataType::Map(child, sorted) => DataType::Map(plain_field(child), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::Union(fields, mode) => {
            DataType::Union(fields.iter().map(|(id, child)| (id, plain_field(child))).collect(), *mode)
        }
        other => other.clone(),
    };
    Arc::new(plain.with_data_type(data_type))
}

/// The column with every `arrow.bool8` in it as plain booleans.
fn plain_array(field: &FieldRef, array: ArrayRef) -> ArrayRef {
    if !contains_bool8(field) {
        return array;
    }
    if is_bool8(field) {
        let bytes = array.as_any().downcast_ref::<Int8Array>().expect("arrow.bool8 is stored as int8");
        return Arc::new(BooleanArray::from_unary(bytes, |byte| byte != 0));
    }
    let data = array.to_data();
    let parts = children(field.data_type())
        .iter()
        .zip(data.child_data())
        .map(|(child, part)| plain_array(child, make_array(part.clone())).to_data())
        .collect();
    let builder = data.into_builder().data_type(plain_field(field).data_type().clone()).child_data(parts);
    // SAFETY: only int8 children became booleans of the same length and nulls; offsets and lengths are as DuckDB made them.
    make_array(unsafe { builder.build_unchecked() })
}
