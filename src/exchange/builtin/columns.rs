//! Columns by their names, and values of JSON beside them.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, Scalar, StringArray};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_ord::cmp;
use arrow_schema::{DataType, Schema};
use serde_json::Value;

use crate::error::{Error, Result};

/// Where a column is; as it is written, or else in any case.
pub(super) fn find(schema: &Schema, name: &str) -> Result<usize> {
    let fields = schema.fields();
    let exact = fields.iter().position(|field| field.name() == name);
    exact.or_else(|| fields.iter().position(|field| field.name().eq_ignore_ascii_case(name))).ok_or_else(|| {
        let known: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        Error::invalid(format!("the input has no column \"{name}\"; there are {}", known.join(", ")))
    })
}

/// A value as a column of that type has it.
pub(super) fn scalar(column: &str, data_type: &DataType, value: &Value) -> Result<Scalar<ArrayRef>> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        _ => return Err(Error::invalid(format!("{value} is no value to compare the column \"{column}\" with"))),
    };
    let wrong = |error: arrow_schema::ArrowError| {
        Error::invalid(format!("{value} cannot be compared with the column \"{column}\" ({data_type}): {error}"))
    };
    let value_type = match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    };
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let array: ArrayRef = Arc::new(StringArray::from(vec![text]));
    cast_with_options(&array, value_type, &options).map(Scalar::new).map_err(wrong)
}

/// How a column is compared with a value.
pub(super) type Comparison =
    fn(&dyn arrow_array::Datum, &dyn arrow_array::Datum) -> Result<BooleanArray, arrow_schema::ArrowError>;

pub(super) fn comparison(op: &str) -> Option<Comparison> {
    Some(match op {
        "=" | "==" => cmp::eq,
        "!=" | "<>" => cmp::neq,
        "<" => cmp::lt,
        "<=" => cmp::lt_eq,
        ">" => cmp::gt,
        ">=" => cmp::gt_eq,
        _ => return None,
    })
}

/// Compares once with a column of no rows, so that types that cannot be compared are told before data.
pub(super) fn try_out(column: &str, data_type: &DataType, compare: Comparison, value: &Scalar<ArrayRef>) -> Result<()> {
    let none = arrow_array::new_empty_array(data_type);
    compare(&none, value).map(drop).map_err(|error| Error::invalid(format!("the column \"{column}\": {error}")))
}

/// Rows that are true; NULL is not.
pub(super) fn keep(batch: &RecordBatch, rows: &BooleanArray) -> Result<RecordBatch> {
    if rows.true_count() == batch.num_rows() {
        return Ok(batch.clone());
    }
    arrow_select::filter::filter_record_batch(batch, rows).map_err(Error::internal)
}
