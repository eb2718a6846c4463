//! Record batches -> gRPC messages whose large parts are the columns' own buffers.
//!
//! The standard path (`encode`) copies each buffer into an IPC body and that body into a gRPC message. Here arrow-ipc's
//! [`StreamEncoder`] names the buffers that make up a message, and they go into the HTTP/2 body as they are: each is one
//! [`Bytes`] that keeps its array alive until the socket has taken it. Only what is small is copied, into the segment
//! in front of it, because every segment costs a DATA frame of its own.

use std::collections::VecDeque;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_flight::FlightDescriptor;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions, StreamEncoder};
use arrow_schema::{ArrowError, Schema};
use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

use crate::error::{Error, Result};

/// Field numbers of FlightData (Flight.proto).
pub(super) const DESCRIPTOR: u32 = 1;
pub(super) const HEADER: u32 = 2;
pub(super) const METADATA: u32 = 3;
pub(super) const BODY: u32 = 1000;

/// The compressed flag and the length in front of each message (gRPC over HTTP/2, Length-Prefixed-Message).
pub(super) const PREFIX: usize = 5;

/// In front of each encapsulated IPC message: the continuation marker and the length of the metadata.
const IPC_PREFIX: usize = 8;

/// Smaller buffers are copied: a DATA frame of their own would cost more.
const COALESCED: usize = 16 * 1024;

/// Where bodies begin within a message, so that a receiver that keeps the message in one aligned piece, as gRPC's C++
/// does, finds columns aligned in it.
const ALIGNMENT: usize = 64;

static ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];

/// One gRPC message as the segments of an HTTP/2 body.
pub(super) type Segments = VecDeque<Bytes>;

/// Makes the messages of one stream.
pub(super) struct Framer {
    encoder: StreamEncoder,
    descriptor: Option<FlightDescriptor>,
    begun: bool,
}

impl Framer {
    /// The first message of the stream, which has the schema and the descriptor, and what makes the others.
    pub(super) fn new(
        schema: &Schema,
        options: IpcWriteOptions,
        descriptor: Option<FlightDescriptor>,
    ) -> Result<(Segments, Self)> {
        let mut tracker = DictionaryTracker::new(false);
        let header =
            IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
        let encoder = StreamEncoder::try_new_with_options(schema, options).map_err(cause)?;
        let mut framer = Self { encoder, descriptor, begun: false };
        let first = message(framer.descriptor.take().as_ref(), &header.ipc_message, &[], VecDeque::new())?;
        Ok((first, framer))
    }

    /// The messages of one batch: new dictionaries, then the batch itself.
    /// `app_metadata` is what the batch's own message says beside it.
    pub(super) fn frame_with(&mut self, batch: &RecordBatch, app_metadata: &[u8]) -> Result<Vec<Segments>> {
        let mut buffers = VecDeque::from(self.encoder.encode(batch).map_err(cause)?);
        // Bitmaps without a NULL, and columns without a row: they would stand between messages.
        buffers.retain(|buffer| !buffer.is_empty());
        let mut messages = Vec::with_capacity(1);
        while !buffers.is_empty() {
            let (header, body) = next_message(&mut buffers)?;
            let app_metadata = if buffers.is_empty() { app_metadata } else { &[] };
            messages.push(message(None, &header, app_metadata, body)?);
        }
        if !std::mem::replace(&mut self.begun, true) {
            // The schema, which has been sent.
            messages.remove(0);
        }
        Ok(messages)
    }
}

fn cause(error: ArrowError) -> Error {
    Error::Unsupported(format!("cannot be sent as Arrow IPC: {error}"))
}

/// Takes one encapsulated message off the buffers of an IPC stream: its metadata, and the buffers of its body.
fn next_message(buffers: &mut VecDeque<Buffer>) -> Result<(Vec<u8>, VecDeque<Buffer>)> {
    let cut = || Error::internal("arrow-ipc's encoder made half a message");
    let prefix = buffers.pop_front().filter(|prefix| prefix.len() == IPC_PREFIX).ok_or_else(cut)?;
    let length = prefix.as_slice().last_chunk().copied().ok_or_else(cut)?;
    let length = u32::from_le_bytes(length) as usize;
    let mut header = Vec::with_capacity(length);
    while header.len() < length {
        header.extend_from_slice(&buffers.pop_front().ok_or_else(cut)?);
    }
    let metadata = arrow_ipc::root_as_message(&header).map_err(Error::internal)?;
    let mut left = usize::try_from(metadata.bodyLength()).map_err(Error::internal)?;
    let mut body = VecDeque::new();
    while left > 0 {
        let buffer = buffers.pop_front().ok_or_else(cut)?;
        left = left.checked_sub(buffer.len()).ok_or_else(cut)?;
        body.push_back(buffer);
    }
    Ok((header, body))
}

/// FlightData in protobuf, behind gRPC's prefix.
fn message(
    descriptor: Option<&FlightDescriptor>,
    header: &[u8],
    app_metadata: &[u8],
    body: VecDeque<Buffer>,
) -> Result<Segments> {
    let descriptor = descriptor.map(Message::encode_to_vec);
    let descriptor_length = descriptor.as_ref().map_or(0, |descriptor| field_length(DESCRIPTOR, descriptor.len()));
    let said_length = if app_metadata.is_empty() { 0 } else { field_length(METADATA, app_metadata.len()) };
    let body_length: usize = body.iter().map(Buffer::len).sum();
    let before_body = |padding| {
        let body_key = if body_length == 0 { 0 } else { field_length(BODY, body_length) - body_length };
        descriptor_length + field_length(HEADER, header.len() + padding) + said_length + body_key
    };
    // A flatbuffer is read from its front: zeros behind it are nobody's.
    let mut padding = 0;
    while body_length > 0 && !before_body(padding).is_multiple_of(ALIGNMENT) {
        padding += 1;
    }

    let length = before_body(padding) + body_length;
    // Splitting ends at one row, which may be as long as it likes.
    let too_long =
        |_| Error::Unsupported(format!("a row of {body_length} bytes cannot be sent: gRPC's limit is 4 GiB"));
    let length = u32::try_from(length).map_err(too_long)?;
    let mut small = BytesMut::with_capacity(PREFIX + before_body(padding) + COALESCED.min(body_length));
    small.put_u8(0);
    small.put_u32(length);
    if let Some(descriptor) = descriptor {
        put_key(&mut small, DESCRIPTOR, descriptor.len());
        small.put_slice(&descriptor);
    }
    put_key(&mut small, HEADER, header.len() + padding);
    small.put_slice(header);
    small.put_slice(&ZEROS[..padding]);
    if !app_metadata.is_empty() {
        put_key(&mut small, METADATA, app_metadata.len());
        small.put_slice(app_metadata);
    }
    if body_length > 0 {
        put_key(&mut small, BODY, body_length);
    }

    let mut segments = Segments::new();
    for buffer in body {
        if buffer.len() < COALESCED {
            small.put_slice(&buffer);
            continue;
        }
        if !small.is_empty() {
            segments.push_back(small.split().freeze());
        }
        segments.push_back(Bytes::from_owner(buffer));
    }
    if !small.is_empty() {
        segments.push_back(small.freeze());
    }
    Ok(segments)
}

fn field_length(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64) + length
}

fn put_key(into: &mut BytesMut, field: u32, length: usize) {
    encode_key(field, WireType::LengthDelimited, into);
    encode_varint(length as u64, into);
}

/// A message that has no columns, as one segment.
pub(super) fn small_message(message: &impl Message) -> Segments {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("small messages are small"));
    message.encode(&mut bytes).expect("the buffer has room for all of it");
    Segments::from([bytes.freeze()])
}
