//! Rows that DuckDB gives vector by vector, because nobody knows how wide they are, as batches of some megabytes.
//!
//! A batch costs the same on its way to the client whether it has 2,048 rows or thirty times as many, and copying narrow rows
//! together costs less than that. Rows that are wide already pass as they are.

use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use arrow_select::concat::concat_batches;

use crate::{
    error::{Error, Result},
    stream::batch_bytes,
};

/// What is joined has at most this, and one vector that has half of it passes alone.
const JOINED_BYTES: u64 = 4 * 1024 * 1024;

/// How long rows wait for those behind them.
const PATIENCE: Duration = Duration::from_millis(5);

pub(super) struct Joining {
    schema: SchemaRef,
    /// Rows of a joined batch; 0 where nothing is joined.
    most: usize,
    held: Vec<RecordBatch>,
    rows: usize,
    bytes: u64,
    due: Option<Instant>,
}

impl Joining {
    /// `most` is 0 where batches are long anyway.
    pub(super) fn new(schema: SchemaRef, most: usize) -> Self {
        // Others share their values between batches, or have parts that a copy would not keep.
        let flat = |data_type: &DataType| {
            data_type.is_primitive()
                || matches!(
                    data_type,
                    DataType::Boolean | DataType::Utf8 | DataType::Binary | DataType::FixedSizeBinary(_)
                )
        };
        let most = if schema.fields().iter().all(|field| flat(field.data_type())) { most } else { 0 };
        Self { schema, most, held: Vec::new(), rows: 0, bytes: 0, due: None }
    }

    /// When what is held has to leave.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Takes a batch in; what leaves, in order.
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<[Option<RecordBatch>; 2]> {
        if self.most == 0 {
            return Ok([Some(batch), None]);
        }
        let (rows, bytes) = (batch.num_rows(), batch_bytes(&batch));
        if bytes >= JOINED_BYTES / 2 || rows >= self.most / 2 {
            return Ok([self.take()?, Some(batch)]);
        }
        let full = self.rows + rows > self.most || self.bytes + bytes > JOINED_BYTES;
        let joined = if full { self.take()? } else { None };
        self.held.push(batch);
        (self.rows, self.bytes) = (self.rows + rows, self.bytes + bytes);
        self.due.get_or_insert_with(|| Instant::now() + PATIENCE);
        Ok([joined, None])
    }

    /// What is held, as one batch.
    pub(super) fn take(&mut self) -> Result<Option<RecordBatch>> {
        let held = std::mem::take(&mut self.held);
        (self.rows, self.bytes, self.due) = (0, 0, None);
        Ok(match held.len() {
            0 | 1 => held.into_iter().next(),
            _ => Some(concat_batches(&self.schema, &held).map_err(Error::internal)?),
        })
    }
}
