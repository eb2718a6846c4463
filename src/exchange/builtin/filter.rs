//! `filter`: rows that meet conditions on columns.

use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, Scalar};
use arrow_ord::cmp;
use arrow_schema::Schema;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use super::{
    super::Run,
    columns::{Comparison, comparison, find, keep, scalar, try_out},
};
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    r#where: Vec<Condition>,
    /// Whether one condition is enough.
    #[serde(default)]
    any: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    column: String,
    op: String,
    value: Option<Value>,
}

/// A condition on a column of a known type.
struct Test {
    at: usize,
    kind: Kind,
}

enum Kind {
    IsNull(bool),
    Compare(Comparison, Scalar<ArrayRef>),
    OneOf(Vec<Scalar<ArrayRef>>),
}

pub(super) fn filter(input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    let Parameters { r#where, any } = run.arguments.read()?;
    if r#where.is_empty() {
        return Err(Error::invalid("parameters: where has no condition"));
    }
    let schema = input.schema();
    let tests = r#where.iter().map(|condition| Test::new(&schema, condition)).collect::<Result<Vec<_>>>()?;
    let batches = input.map(move |batch| {
        let batch = batch?;
        let mut rows: Option<BooleanArray> = None;
        for test in &tests {
            let met = test.met(&batch)?;
            rows = Some(match rows {
                None => met,
                Some(rows) if any => BooleanArray::new(rows.values() | met.values(), None),
                Some(rows) => BooleanArray::new(rows.values() & met.values(), None),
            });
        }
        rows.map_or_else(|| Ok(batch.clone()), |rows| keep(&batch, &rows))
    });
    Ok(RecordBatchStream::new(schema, batches))
}

impl Test {
    fn new(schema: &Schema, Condition { column, op, value }: &Condition) -> Result<Self> {
        let at = find(schema, column)?;
        let data_type = schema.field(at).data_type();
        let kind = match (op.as_str(), value) {
            ("is_null", None) => Kind::IsNull(true),
            ("not_null", None) => Kind::IsNull(false),
            ("in", Some(Value::Array(values))) => {
                let values: Vec<_> =
                    values.iter().map(|value| scalar(column, data_type, value)).collect::<Result<_>>()?;
                values.iter().try_for_each(|value| try_out(column, data_type, cmp::eq, value))?;
                Kind::OneOf(values)
            }
            (op, Some(value)) => {
                let compare = comparison(op).ok_or_else(|| unknown(op))?;
                let value = scalar(column, data_type, value)?;
                try_out(column, data_type, compare, &value)?;
                Kind::Compare(compare, value)
            }
            (op, None) if comparison(op).is_some() || op == "in" => {
                return Err(Error::invalid(format!("parameters: the condition {op} on \"{column}\" has no value")));
            }
            (op, None) => return Err(unknown(op)),
        };
        Ok(Self { at, kind })
    }

    /// Of each row, whether it is known to meet the condition: no nulls.
    fn met(&self, batch: &RecordBatch) -> Result<BooleanArray> {
        let column = batch.column(self.at);
        let known = |met: BooleanArray| match met.nulls() {
            Some(nulls) => BooleanArray::new(met.values() & nulls.inner(), None),
            None => met,
        };
        let met = match &self.kind {
            Kind::IsNull(wanted) => {
                let nulls = column.logical_nulls();
                (0..column.len())
                    .map(|row| Some(nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) == *wanted))
                    .collect()
            }
            Kind::Compare(compare, value) => compare(column, value).map_err(Error::invalid)?,
            Kind::OneOf(values) => one_of(column, values)?,
        };
        Ok(known(met))
    }
}

/// Whether a row is one of the values; NULL is none.
pub(super) fn one_of(column: &ArrayRef, values: &[Scalar<ArrayRef>]) -> Result<BooleanArray> {
    let mut found = BooleanArray::from(vec![false; column.len()]);
    for value in values {
        let equal = cmp::eq(column, value).map_err(Error::invalid)?;
        let equal = match equal.nulls() {
            Some(nulls) => equal.values() & nulls.inner(),
            None => equal.values().clone(),
        };
        found = BooleanArray::new(found.values() | &equal, None);
    }
    Ok(found)
}

fn unknown(op: &str) -> Error {
    Error::invalid(format!("parameters: op \"{op}\" is none of =, !=, <, <=, >, >=, in, is_null, not_null"))
}
