//! Record batches -> FlightData.

use arrow_flight::{
    FlightData, FlightDescriptor, IpcMessage, SchemaAsIpc, encode::FlightDataEncoderBuilder, error::FlightError,
};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::Schema;
use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::{
    config::Size,
    error::{Error, Result},
    stream::RecordBatchStream,
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
        .build(stream.map(|batch| batch.map_err(|error| FlightError::ExternalError(Box::new(error)))))
        .map(|item| item.map_err(cause))
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
