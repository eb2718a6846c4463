//! The app_metadata of messages, on their way through exchangers that answer the batches they got.
//!
//! It travels in the metadata of a batch's own schema, from the decoder to the encoder; a message of nothing else is a batch
//! without rows. So it keeps its place among the batches, and needs no memory of its own.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;

use crate::error::{Error, Result};

const WITH_ROWS: &str = "mallard.app_metadata";
const ALONE: &str = "mallard.app_metadata_alone";

/// What a message says beside its batch.
#[derive(Debug, PartialEq)]
pub(super) enum Beside {
    Nothing,
    WithRows(Bytes),
    /// There is no batch.
    Alone(Bytes),
}

pub(super) fn with_rows(batch: RecordBatch, app_metadata: &[u8]) -> Result<RecordBatch> {
    if app_metadata.is_empty() {
        return Ok(batch);
    }
    let schema = said(&batch.schema(), WITH_ROWS, app_metadata);
    batch.with_schema(schema).map_err(Error::internal)
}

pub(super) fn alone(schema: &SchemaRef, app_metadata: &[u8]) -> RecordBatch {
    RecordBatch::new_empty(said(schema, ALONE, app_metadata))
}

fn said(schema: &Schema, key: &str, app_metadata: &[u8]) -> SchemaRef {
    let mut metadata = schema.metadata().clone();
    metadata.insert(key, BASE64_STANDARD.encode(app_metadata));
    Arc::new(Schema::new_with_metadata(schema.fields().clone(), metadata))
}

/// The batch as its stream's schema has it, and what was beside it.
pub(super) fn apart(batch: RecordBatch, schema: &SchemaRef) -> Result<(RecordBatch, Beside)> {
    let metadata = batch.schema_ref().metadata();
    if metadata.is_empty() || metadata == schema.metadata() {
        return Ok((batch, Beside::Nothing));
    }
    // A key of the client's own is not ours.
    let read = |key: &str| {
        let text = metadata.get(key).filter(|_| !schema.metadata().contains_key(key))?;
        BASE64_STANDARD.decode(text).ok().map(Bytes::from)
    };
    let beside = match (read(WITH_ROWS), read(ALONE)) {
        (Some(bytes), _) => Beside::WithRows(bytes),
        (None, Some(bytes)) => Beside::Alone(bytes),
        (None, None) => return Ok((batch, Beside::Nothing)),
    };
    let fields = batch.schema_ref().fields().clone();
    let plain = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(plain, batch.columns().to_vec(), &options);
    Ok((batch.map_err(Error::internal)?, beside))
}
