//! `mask`: columns whose values are hashed with a key, covered, or taken away.

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray, cast::AsArray, new_null_array};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt;
use ring::hmac;
use serde::Deserialize;

use super::{super::Run, columns::find};
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

const COVERED: &str = "***";

/// Bytes; a shorter one is guessed.
const LEAST_KEY: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    columns: BTreeMap<String, How>,
    key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Hash,
    Redact,
    Null,
}

pub(super) fn mask(input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    let Parameters { columns, key } = run.arguments.read()?;
    let hashes = columns.values().any(|how| *how == How::Hash);
    let key = match (hashes, key) {
        (true, Some(key)) if key.len() >= LEAST_KEY => Some(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes())),
        (true, _) => {
            // Without one, whoever has a list of possible values has the values.
            return Err(Error::invalid(format!("parameters: hash needs a key of {LEAST_KEY} bytes or more")));
        }
        (false, None) => None,
        (false, Some(_)) => return Err(Error::invalid("parameters: no column is hashed with the key")),
    };
    let before = input.schema();
    let mut masked: Vec<Option<How>> = vec![None; before.fields().len()];
    for (name, how) in &columns {
        masked[find(&before, name)?] = Some(*how);
    }
    let fields = before.fields().iter().zip(&masked).map(|(field, how)| match how {
        None => Ok(field.clone()),
        Some(How::Null) => Ok(Arc::new(field.as_ref().clone().with_nullable(true))),
        Some(How::Hash | How::Redact) if arrow_cast::can_cast_types(field.data_type(), &DataType::Utf8) => {
            Ok(Arc::new(Field::new(field.name(), DataType::Utf8, field.is_nullable())))
        }
        Some(_) => {
            let (name, data_type) = (field.name(), field.data_type());
            Err(Error::invalid(format!("the column \"{name}\" ({data_type}) has no text to mask; null takes it away")))
        }
    });
    let fields = fields.collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(Schema::new_with_metadata(fields, before.metadata().clone()));
    let answer = schema.clone();
    let batches = input.map(move |batch| {
        let batch = batch?;
        let mut columns = Vec::with_capacity(masked.len());
        for (column, how) in batch.columns().iter().zip(&masked) {
            columns.push(match how {
                None => column.clone(),
                Some(How::Null) => new_null_array(column.data_type(), column.len()),
                Some(How::Redact) => texts(column, |_| COVERED.to_string())?,
                Some(How::Hash) => texts(column, |text| match &key {
                    Some(key) => hex(hmac::sign(key, text.as_bytes()).as_ref()),
                    None => COVERED.to_string(),
                })?,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(answer.clone(), columns, &options).map_err(Error::internal)
    });
    Ok(RecordBatchStream::new(schema, batches))
}

/// NULL stays what it is.
fn texts(column: &ArrayRef, masked: impl Fn(&str) -> String) -> Result<ArrayRef> {
    let texts = arrow_cast::cast(column, &DataType::Utf8).map_err(Error::invalid)?;
    let masked: StringArray = texts.as_string::<i32>().iter().map(|text| text.map(&masked)).collect();
    Ok(Arc::new(masked))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
