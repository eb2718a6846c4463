//! What the targets call.

#[path = "../../src/wire/beside.rs"]
mod beside;
#[path = "../../src/wire/decode.rs"]
mod decode;
#[path = "../../src/wire/end.rs"]
mod end;
#[path = "../../src/wire/frame.rs"]
mod frame;
#[path = "../../src/wire/parse.rs"]
mod parse;

use std::cell::Cell;

use arrow_array::RecordBatch;
use arrow_flight::{FlightData, FlightDescriptor};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::SchemaRef;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt};
use prost::Message;
use tonic::Status;

use crate::error::{Error, Result};
use frame::Framer;
use parse::Parser;

thread_local! {
    /// Whether a panic may be one of arrow-ipc's, which the decoder catches.
    pub static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Messages are not longer than this here; servers take more.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The messages of a body that comes in pieces, and how it ends.
pub fn parsed(pieces: impl IntoIterator<Item = Bytes>) -> (Vec<FlightData>, Result<(), Status>) {
    let (mut parser, mut messages) = (Parser::new(MAX_MESSAGE), Vec::new());
    for mut piece in pieces {
        loop {
            match parser.push(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(status) => return (messages, Err(status)),
            }
        }
    }
    let whole = parser.between_messages();
    (messages, if whole { Ok(()) } else { Err(Status::data_loss("the stream ends within a message")) })
}

/// The batches of messages.
pub fn decoded(messages: Vec<FlightData>) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let messages = futures::stream::iter(messages.into_iter().map(Ok));
    let work = async {
        let stream = decode::decode(messages.boxed(), |status: &Status| Error::Stream(status.to_string())).await?;
        let schema = stream.schema();
        Ok((schema, stream.try_collect().await?))
    };
    DECODING.set(true);
    let decoded = work.now_or_never().expect("the messages are all there");
    DECODING.set(false);
    decoded
}

/// The body that carries batches.
pub fn framed(schema: &SchemaRef, batches: &[RecordBatch], descriptor: Option<FlightDescriptor>) -> Result<Bytes> {
    let (first, mut framer) = Framer::new(schema, IpcWriteOptions::default(), descriptor)?;
    let mut body: Vec<Bytes> = first.into();
    for batch in batches {
        body.extend(framer.frame_with(batch, &[])?.into_iter().flatten());
    }
    Ok(body.concat().into())
}

/// A message as gRPC frames it.
pub fn prefixed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

/// What prost makes of a message's bytes.
pub fn standard(message: &[u8]) -> Option<FlightData> {
    FlightData::decode(message).ok()
}
