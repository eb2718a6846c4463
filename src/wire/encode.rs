//! Record batches -> FlightData.

use arrow_array::RecordBatch;
use arrow_flight::{
    FlightData, FlightDescriptor, IpcMessage, SchemaAsIpc, encode::FlightDataEncoderBuilder, error::FlightError,
};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::Schema;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};

use crate::{
    config::Size,
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
};

/// The schema first, then each batch, split by rows to stay near `message_size`.
pub fn encode(
    stream: RecordBatchStream,
    message_size: Size,
    descriptor: Option<FlightDescriptor>,
) -> impl Stream<Item = Result<FlightData>> + Send + 'static {
    let schema = stream.schema();
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_max_flight_data_size(message_size.bytes())
        .with_dictionary_handling(super::DICTIONARIES)
        .with_flight_descriptor(descriptor)
        .build(
            in_pieces(stream, message_size.bytes() as u64).map_err(|error| FlightError::ExternalError(Box::new(error))),
        )
        .map(|item| item.map_err(cause))
}

/// Halves batches until each is near the size: the encoder splits by rows alone, as if all were equally long. One row
/// that is longer than the size stays whole.
fn in_pieces(stream: RecordBatchStream, size: u64) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
    fn halve(batch: RecordBatch, size: u64, pieces: &mut Vec<Result<RecordBatch>>) {
        let rows = batch.num_rows();
        if rows < 2 || batch_bytes(&batch) <= size {
            return pieces.push(Ok(batch));
        }
        halve(batch.slice(0, rows / 2), size, pieces);
        halve(batch.slice(rows / 2, rows - rows / 2), size, pieces);
    }
    stream.flat_map(move |batch| {
        let mut pieces = Vec::with_capacity(1);
        match batch {
            Ok(batch) => halve(batch, size, &mut pieces),
            Err(error) => pieces.push(Err(error)),
        }
        futures::stream::iter(pieces)
    })
}

/// The stream's own error again, or what the encoder could not encode.
fn cause(error: FlightError) -> Error {
    match error {
        FlightError::ExternalError(inner) => match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => Error::internal(other),
        },
        other => Error::Unsupported(format!("cannot be sent as Arrow IPC: {other}")),
    }
}

/// A schema as an encapsulated IPC message, the form of FlightInfo and SchemaResult.
pub fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into().map_err(Error::internal)?;
    Ok(bytes)
}
