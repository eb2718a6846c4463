//! The exchangers that every server has.

use std::sync::Arc;

use arrow_array::{BooleanArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_buffer::{BooleanBuffer, MutableBuffer};
use arrow_schema::{DataType, Field, Schema};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use serde_json::{Map, json};

use super::{About, Exchanger, Kind, Run};
use crate::{
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
};

/// The column that [`processed`] appends.
const PROCESSED: &str = "processed";

pub(super) fn all() -> Vec<(String, Arc<dyn Exchanger>)> {
    let any = "any columns";
    let built_in = [
        BuiltIn::new("echo", echo, "answers the input as it is", any, "the input's", json!({})),
        // The name that the original's clients use is the second one.
        BuiltIn::new(
            "processed",
            processed,
            "appends the BOOLEAN column `processed`, true in every row",
            "no column `processed`",
            "the input's columns, processed BOOLEAN",
            json!({}),
        ),
        BuiltIn::new(
            "my_streaming_exchanger",
            processed,
            "appends the BOOLEAN column `processed`, true in every row",
            "no column `processed`",
            "the input's columns, processed BOOLEAN",
            json!({}),
        ),
        BuiltIn::new(
            "count",
            count,
            "answers one row: rows, batches and bytes of the input",
            any,
            "rows BIGINT, batches BIGINT, bytes BIGINT",
            json!({}),
        )
        .consuming(),
    ];
    built_in.into_iter().map(|built_in| (built_in.name.to_string(), Arc::new(built_in) as _)).collect()
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
        Self { name, function, about: About { description, input, output, streams: true, params } }
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
