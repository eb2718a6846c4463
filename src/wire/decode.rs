//! FlightData -> record batches.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    task::{Context, Poll, ready},
};

use arrow_array::RecordBatch;
use arrow_flight::{
    FlightData, FlightDescriptor,
    decode::{DecodedFlightData, DecodedPayload, FlightDataDecoder},
    error::FlightError,
};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use tonic::Status;

use super::{
    beside,
    end::{EndRule, ExplicitEnd},
};
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// How a broken transport becomes an error; a server and a client see different things in it.
type Broken = fn(&Status) -> Error;

/// A stream that a client sends: its descriptor is known, its schema perhaps not yet.
pub struct Upload {
    pub descriptor: FlightDescriptor,
    decoder: FlightDataDecoder,
    schema: Option<SchemaRef>,
    end: ExplicitEnd,
    keeps_app_metadata: bool,
    broken: Broken,
}

/// Reads the first message, which carries the descriptor; with the schema or, as pyarrow's DoExchange has it, alone.
pub async fn open(
    messages: impl Stream<Item = Result<FlightData, Status>> + Send + Unpin + 'static,
    broken: Broken,
) -> Result<Upload> {
    let mut messages = messages;
    let first = messages.next().await.ok_or_else(|| Error::Stream("the stream is empty".into()))?;
    let first = first.map_err(|status| broken(&status))?;
    let descriptor = first.flight_descriptor.clone();
    let descriptor =
        descriptor.ok_or_else(|| Error::invalid("the first message of the stream carries no FlightDescriptor"))?;
    let with_schema = !first.data_header.is_empty();
    let mut decoder = decoder(futures::stream::iter([Ok(first)]).chain(messages));
    let mut end = ExplicitEnd::default();
    let schema = if with_schema { Some(schema(&mut decoder, &mut end, broken).await?) } else { None };
    Ok(Upload { descriptor, decoder, schema, end, keeps_app_metadata: false, broken })
}

impl Upload {
    /// From now on the stream ends in an error unless its last message says that it is whole, see [`EndRule`].
    pub fn require_end(mut self, rule: Option<EndRule>) -> Self {
        rule.into_iter().for_each(|rule| self.end.require(rule));
        self
    }

    /// The batches keep the app_metadata of their messages, and messages of nothing else are batches without rows, for an
    /// encoder behind exchangers that answer what they got.
    pub fn keep_app_metadata(self, keeps: bool) -> Self {
        Self { keeps_app_metadata: keeps, ..self }
    }

    /// Whether somebody asks for an explicit end.
    pub fn requires_end(&self) -> bool {
        self.end.is_required()
    }

    /// The record batches, once the schema is there.
    pub async fn batches(mut self) -> Result<RecordBatchStream> {
        let schema = match self.schema.take() {
            Some(schema) => schema,
            None => schema(&mut self.decoder, &mut self.end, self.broken).await?,
        };
        Ok(stream(schema, self.decoder, self.end, self.keeps_app_metadata, self.broken))
    }

    /// The same, where a client may send nothing but the descriptor.
    pub async fn batches_if_any(mut self) -> Result<Option<RecordBatchStream>> {
        let schema = match self.schema.take() {
            Some(schema) => Some(schema),
            None => schema_if_any(&mut self.decoder, &mut self.end, self.broken).await?,
        };
        let Some(schema) = schema else { return self.end.finish().map(|()| None) };
        Ok(Some(stream(schema, self.decoder, self.end, self.keeps_app_metadata, self.broken)))
    }
}

/// Record batches of an answer, once its schema is there.
pub async fn decode(
    messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    broken: impl Fn(&Status) -> Error + Send + Sync + 'static,
) -> Result<RecordBatchStream> {
    let mut decoder = decoder(messages);
    let mut end = ExplicitEnd::default();
    let schema = schema(&mut decoder, &mut end, &broken).await?;
    Ok(stream(schema, decoder, end, false, broken))
}

/// A flatbuffer of an IPC message of no type: the offset of its table, a vtable of no fields, the table.
static NO_MESSAGE: [u8; 12] = [8, 0, 0, 0, 4, 0, 4, 0, 4, 0, 0, 0];

/// Messages without a header carry app_metadata alone. arrow-flight's decoder refuses them, and lets a message of no type pass.
fn decoder(messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static) -> FlightDataDecoder {
    let mut dictionaries = HashMap::new();
    FlightDataDecoder::new(messages.map(move |item| {
        let mut message = item.map_err(|status| FlightError::Tonic(Box::new(status)))?;
        if message.data_header.is_empty() {
            message.data_header = Bytes::from_static(&NO_MESSAGE);
        }
        check_buffers(&message, &mut dictionaries)?;
        Ok(message)
    }))
}

/// The most that one message's buffers may say they hold once decompressed: arrow-ipc allocates what they say.
const MAX_DECOMPRESSED: u64 = 512 * 1024 * 1024;

/// Rows of one message, and elements of a column within it that has no bytes: one of nothing but NULL needs none, and whoever
/// makes some of it would.
const MAX_ROWS: i64 = 1 << 24;

/// The most bytes of dictionaries that a stream may keep: each stays until the next of its id, and a delta makes it longer.
const MAX_DICTIONARIES: u64 = MAX_DECOMPRESSED;

/// Refuses a batch whose header names bytes that its body does not have (arrow-ipc would panic on them), or whose buffers or
/// columns declare an absurd length (the allocation would end the process). `dictionaries` has the bytes of each by its id.
fn check_buffers(message: &FlightData, dictionaries: &mut HashMap<i64, u64>) -> Result<(), FlightError> {
    let malformed = |why: &str| FlightError::DecodeError(why.to_string());
    let header = arrow_ipc::root_as_message(&message.data_header).map_err(|error| malformed(&error.to_string()))?;
    let batch = match header.header_type() {
        arrow_ipc::MessageHeader::RecordBatch => header.header_as_record_batch(),
        arrow_ipc::MessageHeader::DictionaryBatch => {
            header.header_as_dictionary_batch().and_then(|dictionary| dictionary.data())
        }
        _ => return Ok(()),
    };
    let batch = batch.ok_or_else(|| malformed("the header holds no batch"))?;
    if !(0..=MAX_ROWS).contains(&batch.length()) {
        return Err(malformed(&format!("a batch of {} rows is more than {MAX_ROWS}", batch.length())));
    }
    let (body, mut decompressed) = (&message.data_body, 0_u64);
    for buffer in batch.buffers().into_iter().flatten() {
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let bytes = range.and_then(|(start, length)| body.get(start..start.checked_add(length)?));
        let bytes = bytes.ok_or_else(|| malformed("a buffer reaches beyond the message's body"))?;
        if batch.compression().is_some()
            && let Some(prefix) = bytes.first_chunk::<8>()
        {
            // The length after decompression, or -1 for bytes that are not compressed.
            let declared = i64::from_le_bytes(*prefix);
            decompressed = decompressed.saturating_add(u64::try_from(declared).unwrap_or_default());
        }
    }
    if decompressed > MAX_DECOMPRESSED {
        return Err(malformed(&format!("{decompressed} bytes after decompression are more than {MAX_DECOMPRESSED}")));
    }
    let bytes = body.len() as u64 + decompressed;
    // What has bytes has at least a bit for each of its elements.
    let elements = MAX_ROWS.max(i64::try_from(bytes * 8).unwrap_or(i64::MAX));
    for node in batch.nodes().into_iter().flatten() {
        if !(0..=elements).contains(&node.length()) {
            return Err(malformed(&format!("a column of {} elements is longer than its message", node.length())));
        }
    }
    if let Some(dictionary) = header.header_as_dictionary_batch() {
        let known = dictionaries.entry(dictionary.id()).or_default();
        *known = if dictionary.isDelta() { known.saturating_add(bytes) } else { bytes };
        let kept = dictionaries.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        if kept > MAX_DICTIONARIES {
            return Err(malformed(&format!("dictionaries of {kept} bytes are more than {MAX_DICTIONARIES}")));
        }
    }
    Ok(())
}

async fn schema(
    decoder: &mut FlightDataDecoder,
    end: &mut ExplicitEnd,
    broken: impl Fn(&Status) -> Error,
) -> Result<SchemaRef> {
    let schema = schema_if_any(decoder, end, broken).await?;
    schema.ok_or_else(|| Error::Stream("the stream ended before its schema".into()))
}

async fn schema_if_any(
    decoder: &mut FlightDataDecoder,
    end: &mut ExplicitEnd,
    broken: impl Fn(&Status) -> Error,
) -> Result<Option<SchemaRef>> {
    while let Some(message) = next(decoder, &broken).await? {
        end.message(0, &message.inner.app_metadata)?;
        match message.payload {
            DecodedPayload::Schema(schema) => return Ok(Some(schema)),
            DecodedPayload::None => {}
            DecodedPayload::RecordBatch(_) => return Err(no_schema()),
        }
    }
    Ok(None)
}

fn no_schema() -> Error {
    Error::Stream("the stream has a record batch before its schema".into())
}

async fn next(decoder: &mut FlightDataDecoder, broken: impl Fn(&Status) -> Error) -> Result<Option<DecodedFlightData>> {
    match AssertUnwindSafe(decoder.next()).catch_unwind().await {
        Ok(item) => item.transpose().map_err(|error| cause(error, broken)),
        Err(_) => Err(panicked()),
    }
}

/// What [`check_buffers`] does not see may still be wrong enough for arrow-ipc to panic; its decoder is not used again.
fn panicked() -> Error {
    Error::Stream("the stream is not valid Arrow IPC: a message contradicts its schema".into())
}

fn stream(
    schema: SchemaRef,
    decoder: FlightDataDecoder,
    mut end: ExplicitEnd,
    keeps_app_metadata: bool,
    broken: impl Fn(&Status) -> Error + Send + Sync + 'static,
) -> RecordBatchStream {
    let expected = schema.clone();
    let mut messages = AssertUnwindSafe(decoder).catch_unwind();
    let mut ended = false;
    let mut next = move |cx: &mut Context<'_>| -> Poll<Result<Option<RecordBatch>>> {
        loop {
            let item = ready!(messages.poll_next_unpin(cx));
            let Some(item) = item else { return Poll::Ready(end.finish().map(|()| None)) };
            let message = match item {
                Ok(message) => message.map_err(|error| cause(error, &broken))?,
                Err(_panic) => return Poll::Ready(Err(panicked())),
            };
            let app_metadata = &message.inner.app_metadata;
            match message.payload {
                DecodedPayload::RecordBatch(batch) => {
                    end.message(batch.num_rows(), app_metadata)?;
                    let said: &[u8] = if keeps_app_metadata { app_metadata } else { &[] };
                    return Poll::Ready(beside::with_rows(batch, said).map(Some));
                }
                DecodedPayload::Schema(again) if again != expected => {
                    return Poll::Ready(Err(Error::Stream("the schema changed within the stream".into())));
                }
                DecodedPayload::Schema(_) | DecodedPayload::None => {
                    end.message(0, app_metadata)?;
                    if keeps_app_metadata && !app_metadata.is_empty() {
                        return Poll::Ready(Ok(Some(beside::alone(&expected, app_metadata))));
                    }
                }
            }
        }
    };
    let batches = futures::stream::poll_fn(move |cx| {
        if ended {
            return Poll::Ready(None);
        }
        let item = ready!(next(cx)).transpose();
        ended = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    });
    RecordBatchStream::new(schema, batches)
}

fn cause(error: FlightError, broken: impl Fn(&Status) -> Error) -> Error {
    match error {
        FlightError::Tonic(status) => broken(&status),
        other => Error::Stream(format!("the stream is not valid Arrow IPC: {other}")),
    }
}
