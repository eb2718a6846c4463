//! Arrow across the C Data Interface, without copies, and the few types that need a hand.
//!
//! DuckDB converts without loss (`arrow_lossless_conversion`); `plain` has what becomes another type on the way out.

use std::{ffi::CStr, sync::Arc};

use arrow_array::{
    Array, RecordBatch, RecordBatchOptions, StructArray,
    ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi_and_data_type, to_ffi},
};
use arrow_schema::{DataType, FieldRef, Fields, Schema, SchemaRef};

use super::{
    plain::{self, Form},
    validate::CheckedBatch,
};
use crate::error::{Error, Result};

/// Field metadata that keeps the DuckDB type where Arrow has no form of its own for it (ENUM, TUPLE).
pub(super) const DUCKDB_TYPE: &str = "mallard.duckdb_type";

/// Whoever reads a schema from a message verifies it first, and a flatbuffer's tables may stand in each other 64 deep: beside
/// the types these are the message, the schema, the column and what the innermost type says of itself.
const MOST_LEVELS: usize = 60;

/// How many types stand in each other, the outermost included.
fn levels(data_type: &DataType) -> usize {
    let deepest = |fields: &mut dyn Iterator<Item = &FieldRef>| fields.map(|field| levels(field.data_type())).max();
    let inner = match data_type {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => Some(levels(field.data_type())),
        DataType::Struct(fields) => deepest(&mut fields.iter()),
        DataType::Union(fields, _) => deepest(&mut fields.iter().map(|(_, field)| field)),
        DataType::Dictionary(_, value) => Some(levels(value)),
        DataType::RunEndEncoded(_, values) => Some(levels(values.data_type())),
        _ => None,
    };
    1 + inner.unwrap_or(0)
}

/// How arrays of one result become record batches.
pub(super) struct Importer {
    raw: DataType,
    schema: SchemaRef,
    /// Of each column.
    plain: Vec<bool>,
    changes: bool,
}

impl Importer {
    /// `plain` is for clients that read no extension types.
    pub(super) fn new(schema: duckdb::arrow::ArrowSchema, plain: bool) -> Result<Self> {
        let raw = schema.into_raw();
        // SAFETY: DuckDB made it, and it is released below.
        let without_form = unsafe { children(&raw) }.find(|column| !unsafe { has_form(column) });
        let without_form = without_form.map(|column| {
            // SAFETY: where a name is not null, it is a C string that lives as long as the schema.
            let name = (!column.name.is_null()).then(|| unsafe { CStr::from_ptr(column.name) }.to_string_lossy());
            Error::Unsupported(format!(
                "column \"{}\": its type has no form in Arrow: cast it to VARCHAR, and a state of an aggregate (EXPORT_STATE) \
                 with finalize()",
                name.unwrap_or_default()
            ))
        });
        // SAFETY: both are the C Data Interface's ArrowSchema; ownership moves to the arrow-rs type, which releases it.
        let raw = unsafe { std::mem::transmute::<duckdb::ffi::ArrowSchema, FFI_ArrowSchema>(raw) };
        if let Some(error) = without_form {
            return Err(error);
        }
        let raw = Schema::try_from(&raw).map_err(|error| Error::Unsupported(error.to_string()))?;
        if let Some(deep) = raw.fields().iter().find(|field| levels(field.data_type()) > MOST_LEVELS) {
            return Err(Error::invalid(format!(
                "column \"{}\": its type nests {} levels deep, and the messages of Arrow's IPC format hold {MOST_LEVELS}",
                deep.name(),
                levels(deep.data_type())
            )));
        }
        let changes = raw.fields().iter().any(|field| plain::changes(field, Form::of(plain)));
        let fields: Fields = raw.fields().iter().map(|field| plain::field(field, Form::of(plain))).collect();
        let schema = Arc::new(Schema::new(fields));
        let plain = vec![plain; raw.fields().len()];
        Ok(Self { raw: DataType::Struct(raw.fields().clone()), schema, plain, changes })
    }

    /// The columns without loss, whatever the form of the others.
    pub(super) fn lossless(&self) -> Schema {
        let Self { raw: DataType::Struct(raw), .. } = self else { unreachable!("built from a schema's fields") };
        Schema::new(raw.iter().map(|field| plain::field(field, Form::Lossless)).collect::<Fields>())
    }

    /// From now on these columns are given without loss.
    pub(super) fn keep_lossless(&mut self, kept: &[bool]) {
        let lossless = self.lossless();
        let mut fields = self.schema.fields().to_vec();
        for (index, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
            self.plain[index] = false;
            fields[index] = lossless.fields()[index].clone();
        }
        self.schema = Arc::new(Schema::new(fields));
    }

    pub(super) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// With other names of its columns.
    pub(super) fn named(mut self, names: impl Iterator<Item = String>) -> Self {
        let fields = self.schema.fields().iter().zip(names);
        let fields = fields.map(|(field, name)| field.as_ref().clone().with_name(name)).collect::<Vec<_>>();
        self.schema = Arc::new(Schema::new(fields));
        self
    }

    /// Whether the columns hold intervals, which DuckDB exports without a look at their size.
    pub(super) fn holds_intervals(&self) -> bool {
        holds_intervals(&self.raw)
    }

    /// Whether arrays that the other one is for are this one's, too.
    pub(super) fn takes(&self, other: &Self) -> bool {
        self.raw == other.raw
    }

    /// Notes DuckDB's type of a column in its field, where Arrow alone would lose it.
    pub(super) fn annotate(&mut self, types: &[String]) {
        // Where they are not known, nothing is noted.
        if types.len() != self.schema.fields().len() {
            return;
        }
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
        if self.changes {
            let Self { raw: DataType::Struct(raw), .. } = self else { unreachable!("built from a schema's fields") };
            let columns_in = raw.iter().zip(columns).zip(&self.plain);
            let changed = columns_in.map(|((field, column), plain)| plain::array(field, column, Form::of(*plain)));
            columns = changed.collect::<Result<_>>()?;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(length));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map_err(Error::internal)
    }
}

/// The children of a schema.
///
/// # Safety
///
/// It is one that was made as the C Data Interface says, and not released.
unsafe fn children(schema: &duckdb::ffi::ArrowSchema) -> impl Iterator<Item = &duckdb::ffi::ArrowSchema> {
    let count = usize::try_from(schema.n_children).unwrap_or(0);
    // SAFETY: there are as many pointers to children as it says, all of them valid as long as the schema is.
    (0..count).map(|child| unsafe { &**schema.children.add(child) })
}

/// Whether DuckDB has said how the column's values lie: of some states of aggregates it says nothing.
///
/// # Safety
///
/// As that of [`children`].
unsafe fn has_form(schema: &duckdb::ffi::ArrowSchema) -> bool {
    // SAFETY: children of a schema are schemas.
    !schema.format.is_null() && unsafe { children(schema) }.all(|child| unsafe { has_form(child) })
}

/// A batch as the C struct that DuckDB's importer takes over.
pub(super) fn export(batch: CheckedBatch) -> Result<duckdb::arrow::ArrowArray> {
    let rows = batch.into_struct()?;
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

fn holds_intervals(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Interval(_))
        || plain::children(data_type).iter().any(|child| holds_intervals(child.data_type()))
}

/// ENUM leaves as a dictionary, and TUPLE as a struct of made-up names; neither comes back by itself.
fn loses_type(data_type: &DataType) -> bool {
    let here = match data_type {
        DataType::Dictionary(..) => true,
        DataType::Struct(fields) => fields.first().is_some_and(|first| first.name() == "element1"),
        _ => false,
    };
    here || plain::children(data_type).iter().any(|child| loses_type(child.data_type()))
}
