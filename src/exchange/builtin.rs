//! The exchangers that every server has.

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::{BooleanArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_buffer::{BooleanBuffer, MutableBuffer};
use arrow_schema::{DataType, Field, Schema};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};

use super::Exchanger;
use crate::{
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
};

pub(super) const KIND: &str = "builtin";

/// The column that [`Processed`] appends.
const PROCESSED: &str = "processed";

pub(super) fn all() -> BTreeMap<String, Arc<dyn Exchanger>> {
    let processed = Arc::new(Processed);
    let all: [(&str, Arc<dyn Exchanger>); 4] = [
        ("echo", Arc::new(Echo)),
        ("processed", processed.clone()),
        // The name that the original's clients use.
        ("my_streaming_exchanger", processed),
        ("count", Arc::new(Count)),
    ];
    all.into_iter().map(|(name, exchanger)| (name.to_string(), exchanger)).collect()
}

struct Echo;

impl Exchanger for Echo {
    fn description(&self) -> &str {
        "answers the input as it is"
    }

    fn kind(&self) -> &'static str {
        KIND
    }

    fn start(&self, input: RecordBatchStream) -> BoxFuture<'static, Result<RecordBatchStream>> {
        futures::future::ready(Ok(input)).boxed()
    }
}

struct Processed;

impl Exchanger for Processed {
    fn description(&self) -> &str {
        "appends the BOOLEAN column `processed`, true in every row"
    }

    fn kind(&self) -> &'static str {
        KIND
    }

    fn start(&self, input: RecordBatchStream) -> BoxFuture<'static, Result<RecordBatchStream>> {
        futures::future::ready(append_processed(input)).boxed()
    }
}

fn append_processed(input: RecordBatchStream) -> Result<RecordBatchStream> {
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

struct Count;

impl Exchanger for Count {
    fn description(&self) -> &str {
        "answers one row: rows, batches and bytes of the input"
    }

    fn kind(&self) -> &'static str {
        KIND
    }

    fn start(&self, mut input: RecordBatchStream) -> BoxFuture<'static, Result<RecordBatchStream>> {
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
        futures::future::ready(Ok(RecordBatchStream::new(schema, stream::once(counted)))).boxed()
    }
}
