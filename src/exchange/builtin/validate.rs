//! `validate`: rows are held to rules; those that break one are dropped, returned with the reason, marked, counted, or end
//! the stream.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, Scalar, StringArray, cast::AsArray,
};
use arrow_buffer::BooleanBuffer;
use arrow_ord::cmp;
use arrow_schema::{DataType, Field, Schema};
use futures::{StreamExt, stream};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;

use super::{
    super::Run,
    columns::{find, keep, scalar, try_out},
    filter::one_of,
};
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// The column that tells which rule a row breaks.
const REASON: &str = "reason";

/// Bytes of a compiled pattern.
const REGEX_SIZE: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    rules: Vec<Rule>,
    #[serde(default)]
    failing: Failing,
}

/// What becomes of a row that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Failing {
    #[default]
    Drop,
    /// Those rows alone, with the reason.
    Return,
    /// All rows, with the reason where there is one.
    Mark,
    Count,
    Fail,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    column: String,
    #[serde(default)]
    not_null: bool,
    min: Option<Value>,
    max: Option<Value>,
    regex: Option<String>,
    r#in: Option<Vec<Value>>,
}

/// One part of a rule, and how it is told.
struct Check {
    at: usize,
    text: String,
    kind: Kind,
}

enum Kind {
    NotNull,
    Least(Scalar<ArrayRef>),
    Most(Scalar<ArrayRef>),
    Pattern(Regex),
    OneOf(Vec<Scalar<ArrayRef>>),
}

pub(super) fn validate(input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    let Parameters { rules, failing } = run.arguments.read()?;
    let before = input.schema();
    let mut checks = Vec::new();
    for rule in &rules {
        Check::of(&before, rule, &mut checks)?;
    }
    if checks.is_empty() {
        return Err(Error::invalid("parameters: there is no rule"));
    }
    match failing {
        Failing::Count => Ok(count(input, checks)),
        Failing::Drop | Failing::Fail => {
            let mut rows = 0_u64;
            let batches = input.map(move |batch| {
                let batch = batch?;
                let reasons = reasons(&batch, &checks)?;
                let first = reasons.iter().position(|reason| reason.is_some());
                if let (Failing::Fail, Some(row)) = (failing, first) {
                    let reason = reasons[row].map_or("", |check| checks[check].text.as_str());
                    return Err(Error::invalid(reason).at_row(rows + row as u64 + 1));
                }
                rows += batch.num_rows() as u64;
                keep(&batch, &reasons.iter().map(|reason| Some(reason.is_none())).collect())
            });
            Ok(RecordBatchStream::new(before, batches))
        }
        Failing::Return | Failing::Mark => {
            if before.fields().iter().any(|field| field.name().eq_ignore_ascii_case(REASON)) {
                return Err(Error::invalid(format!("the input has a column \"{REASON}\" already")));
            }
            let mut fields = before.fields().to_vec();
            fields.push(Arc::new(Field::new(REASON, DataType::Utf8, true)));
            let schema = Arc::new(Schema::new_with_metadata(fields, before.metadata().clone()));
            let answer = schema.clone();
            let batches = input.map(move |batch| {
                let batch = batch?;
                let reasons = reasons(&batch, &checks)?;
                let texts: StringArray =
                    reasons.iter().map(|reason| reason.map(|check| checks[check].text.as_str())).collect();
                let mut columns = batch.columns().to_vec();
                columns.push(Arc::new(texts));
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                let marked = RecordBatch::try_new_with_options(answer.clone(), columns, &options);
                let marked = marked.map_err(Error::internal)?;
                match failing {
                    Failing::Return => keep(&marked, &reasons.iter().map(|reason| Some(reason.is_some())).collect()),
                    _ => Ok(marked),
                }
            });
            Ok(RecordBatchStream::new(schema, batches))
        }
    }
}

/// One row a check: what it is, and how many rows break it.
fn count(mut input: RecordBatchStream, checks: Vec<Check>) -> RecordBatchStream {
    let schema = Arc::new(Schema::new(vec![
        Field::new("rule", DataType::Utf8, false),
        Field::new("rows", DataType::Int64, false),
        Field::new("failing", DataType::Int64, false),
    ]));
    let answer = schema.clone();
    let counted = async move {
        let mut rows = 0_i64;
        let mut failing = vec![0_i64; checks.len()];
        while let Some(batch) = input.next().await {
            let batch = batch?;
            rows += batch.num_rows() as i64;
            for (check, failing) in checks.iter().zip(&mut failing) {
                *failing += check.broken(&batch)?.count_set_bits() as i64;
            }
        }
        let rules = StringArray::from_iter_values(checks.iter().map(|check| check.text.as_str()));
        let all = Int64Array::from(vec![rows; checks.len()]);
        let columns: Vec<ArrayRef> = vec![Arc::new(rules), Arc::new(all), Arc::new(Int64Array::from(failing))];
        RecordBatch::try_new(answer, columns).map_err(Error::internal)
    };
    RecordBatchStream::new(schema, stream::once(counted))
}

/// Of each row, the first check that it breaks.
fn reasons(batch: &RecordBatch, checks: &[Check]) -> Result<Vec<Option<usize>>> {
    let mut reasons = vec![None; batch.num_rows()];
    for (place, check) in checks.iter().enumerate() {
        for row in check.broken(batch)?.set_indices() {
            reasons[row].get_or_insert(place);
        }
    }
    Ok(reasons)
}

impl Check {
    fn of(schema: &Schema, rule: &Rule, checks: &mut Vec<Self>) -> Result<()> {
        let Rule { column, not_null, min, max, regex, r#in } = rule;
        let at = find(schema, column)?;
        let data_type = schema.field(at).data_type();
        let value = |value: &Value| {
            let value = scalar(column, data_type, value)?;
            try_out(column, data_type, cmp::lt, &value)?;
            Ok::<_, Error>(value)
        };
        let mut add = |text: String, kind: Kind| checks.push(Self { at, text: format!("{column} {text}"), kind });
        if *not_null {
            add("is null".into(), Kind::NotNull);
        }
        if let Some(min) = min {
            add(format!("is less than {min}"), Kind::Least(value(min)?));
        }
        if let Some(max) = max {
            add(format!("is more than {max}"), Kind::Most(value(max)?));
        }
        if let Some(pattern) = regex {
            if !arrow_cast::can_cast_types(data_type, &DataType::Utf8) {
                return Err(Error::invalid(format!("the column \"{column}\" ({data_type}) has no text for a regex")));
            }
            // Of linear time, whatever the pattern and the text.
            let compiled = RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build();
            let compiled =
                compiled.map_err(|error| Error::invalid(format!("parameters: regex of \"{column}\": {error}")))?;
            add(format!("does not match {pattern}"), Kind::Pattern(compiled));
        }
        if let Some(values) = r#in {
            let known = values.iter().map(value).collect::<Result<_>>()?;
            add("is not one of the values".into(), Kind::OneOf(known));
        }
        Ok(())
    }

    /// The rows that break it; as in SQL, NULL breaks nothing but `not_null`.
    fn broken(&self, batch: &RecordBatch) -> Result<BooleanBuffer> {
        let column = batch.column(self.at);
        let nulls = column.logical_nulls();
        let compared = |rows: BooleanArray| match rows.nulls() {
            Some(nulls) => rows.values() & nulls.inner(),
            None => rows.values().clone(),
        };
        let broken = match &self.kind {
            Kind::NotNull => {
                return Ok(match &nulls {
                    Some(nulls) => !nulls.inner(),
                    None => BooleanBuffer::new_unset(column.len()),
                });
            }
            Kind::Least(least) => compared(cmp::lt(column, least).map_err(Error::invalid)?),
            Kind::Most(most) => compared(cmp::gt(column, most).map_err(Error::invalid)?),
            Kind::OneOf(values) => !one_of(column, values)?.values(),
            Kind::Pattern(pattern) => {
                let texts = arrow_cast::cast(column, &DataType::Utf8).map_err(Error::invalid)?;
                let texts = texts.as_string::<i32>();
                (0..texts.len()).map(|row| !texts.is_null(row) && !pattern.is_match(texts.value(row))).collect()
            }
        };
        Ok(match &nulls {
            Some(nulls) => &broken & nulls.inner(),
            None => broken,
        })
    }
}
