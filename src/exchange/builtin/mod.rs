//! The exchangers that every server has.

mod columns;
mod filter;
mod mask;
mod sample;
mod select;
mod validate;

use std::sync::Arc;

use arrow_array::{BooleanArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_buffer::{BooleanBuffer, MutableBuffer};
use arrow_schema::{DataType, Field, Schema};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use serde_json::{Map, json};

use super::{About, Exchanger, Kind, Run, sql::Sandboxes};
use crate::{
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
};

/// The column that [`processed`] appends.
const PROCESSED: &str = "processed";

pub(super) fn all(sandboxes: &Sandboxes) -> Vec<(String, Arc<dyn Exchanger>)> {
    let (any, same) = ("any columns", "the input's columns");
    let processed_about = "appends the BOOLEAN column `processed`, true in every row";
    let (unprocessed, and_processed) = ("no column `processed`", "the input's columns, processed BOOLEAN");
    let built_in = [
        BuiltIn::new(
            "echo",
            echo,
            "answers the input as it is, with the app_metadata of its messages",
            any,
            same,
            json!({}),
        ),
        BuiltIn::new("processed", processed, processed_about, unprocessed, and_processed, json!({})),
        // The name that the original's clients use.
        BuiltIn::new("my_streaming_exchanger", processed, processed_about, unprocessed, and_processed, json!({})),
        BuiltIn::new(
            "count",
            count,
            "answers one row: rows, batches and bytes of the input",
            any,
            "rows BIGINT, batches BIGINT, bytes BIGINT",
            json!({}),
        )
        .consuming(),
        BuiltIn::new(
            "select",
            select::select,
            "answers some columns, in the order given and under other names where that is asked for",
            "the columns named",
            "the columns named",
            json!({"columns": ["NAME", {"column": "NAME", "as": "NEW NAME"}], "except": ["NAME"]}),
        ),
        BuiltIn::new(
            "filter",
            filter::filter,
            "answers the rows that meet all conditions, or any of them",
            "the columns named",
            same,
            json!({
                "where": [{"column": "NAME", "op": "= != < <= > >= in is_null not_null", "value": "value, or an array for in"}],
                "any": false,
            }),
        ),
        BuiltIn::new(
            "sample",
            sample::sample,
            "answers the first rows, or one in every so many, or a fraction that a seed decides",
            any,
            same,
            json!({"first": "rows", "every": "1 or more", "fraction": "0 to 1", "seed": 0}),
        ),
        BuiltIn::new(
            "mask",
            mask::mask,
            "hashes columns with a key (HMAC-SHA256 of the value's text), covers them, or takes their values away",
            "the columns named",
            "the input's columns; hashed and covered ones are VARCHAR",
            json!({"columns": {"NAME": "hash | redact | null"}, "key": "text of 8 bytes or more, for hash"}),
        ),
        BuiltIn::new(
            "validate",
            validate::validate,
            "holds rows to rules; those that break one are dropped, returned or marked with the reason, counted, or end the \
             stream",
            "the columns named",
            "the input's columns; return and mark add reason VARCHAR; count: rule VARCHAR, rows BIGINT, failing BIGINT",
            json!({
                "rules": [{"column": "NAME", "not_null": true, "min": 0, "max": 1, "regex": "text", "in": ["values"]}],
                "failing": "drop | return | mark | count | fail",
            }),
        ),
    ];
    let mut all: Vec<_> =
        built_in.into_iter().map(|built_in| (built_in.name.to_string(), Arc::new(built_in) as _)).collect();
    all.push(("checksum".to_string(), sandboxes.checksum()));
    all
}

/// One function and what is said of it.
struct BuiltIn {
    name: &'static str,
    about: About,
    function: fn(RecordBatchStream, Run) -> Result<RecordBatchStream>,
}

impl BuiltIn {
    fn new(
        name: &'static str,
        function: fn(RecordBatchStream, Run) -> Result<RecordBatchStream>,
        description: &str,
        input: &str,
        output: &str,
        params: serde_json::Value,
    ) -> Self {
        let params = params.as_object().cloned().unwrap_or_else(Map::new);
        let (description, input, output) = (description.into(), input.into(), output.into());
        Self { name, function, about: About { description, input, output, streams: true, params, tables: Vec::new() } }
    }

    /// One that answers when its input has ended.
    fn consuming(mut self) -> Self {
        self.about.streams = false;
        self
    }
}

impl Exchanger for BuiltIn {
    fn kind(&self) -> Kind {
        Kind::BuiltIn
    }

    fn about(&self) -> &About {
        &self.about
    }

    fn start(&self, input: RecordBatchStream, run: Run) -> BoxFuture<'static, Result<RecordBatchStream>> {
        futures::future::ready((self.function)(input, run)).boxed()
    }
}

fn echo(input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    run.arguments.none()?;
    Ok(input)
}

fn processed(input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    run.arguments.none()?;
    let before = input.schema();
    if before.fields().iter().any(|field| field.name().eq_ignore_ascii_case(PROCESSED)) {
        return Err(Error::invalid(format!("the input has a column \"{PROCESSED}\" already")));
    }
    let mut fields = before.fields().to_vec();
    fields.push(Arc::new(Field::new(PROCESSED, DataType::Boolean, true)));
    let schema = Arc::new(Schema::new_with_metadata(fields, before.metadata().clone()));
    let answer = schema.clone();
    // One run of set bits serves every batch; it grows to the longest.
    let mut set = BooleanBuffer::new_set(0);
    let batches = input.map(move |batch| {
        let batch = batch?;
        let rows = batch.num_rows();
        if set.len() < rows {
            let bytes = rows.div_ceil(64) * 8;
            set = BooleanBuffer::new(MutableBuffer::new(bytes).with_bitset(bytes, true).into(), 0, bytes * 8);
        }
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(BooleanArray::new(set.slice(0, rows), None)));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(answer.clone(), columns, &options).map_err(Error::internal)
    });
    Ok(RecordBatchStream::new(schema, batches))
}

fn count(mut input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    run.arguments.none()?;
    let fields = ["rows", "batches", "bytes"].map(|name| Field::new(name, DataType::Int64, false));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let answer = schema.clone();
    let counted = async move {
        let (mut rows, mut batches, mut bytes) = (0_i64, 0_i64, 0_i64);
        while let Some(batch) = input.next().await {
            let batch = batch?;
            rows += batch.num_rows() as i64;
            batches += 1;
            bytes += batch_bytes(&batch) as i64;
        }
        let column = |value: i64| Arc::new(Int64Array::from(vec![value])) as _;
        let columns = vec![column(rows), column(batches), column(bytes)];
        RecordBatch::try_new(answer, columns).map_err(Error::internal)
    };
    Ok(RecordBatchStream::new(schema, stream::once(counted)))
}
