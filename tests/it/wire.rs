//! The wire path against the standard one: equal batches, exact bytes, no copies, named limits, and nothing that a peer can
//! send breaks it.

mod any;
mod budget;
mod corpus;
mod framing;
mod heap;
pub(crate) mod limits;
pub(crate) mod mutated;
mod paths;
mod pointers;
mod requests;

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_flight::{FlightData, FlightDescriptor, decode::FlightRecordBatchStream};
use arrow_schema::SchemaRef;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, Response};
use http_body::Frame;
use mallard::{
    config::{Compression, Size},
    error::Error,
    stream::RecordBatchStream,
    wire::{self, Sending},
};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

/// An HTTP/2 body of just these frames.
struct Pieces(VecDeque<Frame<Bytes>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn body(pieces: impl IntoIterator<Item = Bytes>) -> Body {
    Body::new(Pieces(pieces.into_iter().map(Frame::data).collect()))
}

/// The answer of a server: pieces, then trailers.
fn answer(pieces: impl IntoIterator<Item = Bytes>, trailers: Option<HeaderMap>) -> Response<Body> {
    let frames = pieces.into_iter().map(Frame::data).chain(trailers.map(Frame::trailers));
    Response::new(Body::new(Pieces(frames.collect())))
}

fn good_trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))])
}

/// The data frames of a body as they are, and its trailers.
async fn drain(mut body: Body) -> (Vec<Bytes>, Option<HeaderMap>) {
    let (mut segments, mut trailers) = (Vec::new(), None);
    while let Some(frame) = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await {
        match frame.unwrap().into_data() {
            Ok(data) => segments.push(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (segments, trailers)
}

fn sending(message_size: usize, compression: Compression) -> Sending {
    Sending { message_size: Size(message_size as u64), compression }
}

fn plain() -> Sending {
    sending(2 << 20, Compression::None)
}

fn stream_of(schema: &SchemaRef, batches: &[RecordBatch]) -> RecordBatchStream {
    RecordBatchStream::from_batches(schema.clone(), batches.to_vec())
}

/// The segments of a server's answer, and its trailers.
async fn framed(schema: &SchemaRef, batches: &[RecordBatch], sending: Sending) -> (Vec<Bytes>, HeaderMap) {
    let response = wire::respond(std::future::ready(Ok(stream_of(schema, batches))), sending);
    let (segments, trailers) = drain(response.into_body()).await;
    (segments, trailers.expect("an answer ends in trailers"))
}

/// The segments of a client's request.
async fn uploaded(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    sending: Sending,
    descriptor: FlightDescriptor,
) -> Vec<Bytes> {
    let failed = |error: Error| panic!("{error}");
    let body = wire::upload(stream_of(schema, batches), sending, descriptor, false, CancellationToken::new(), failed);
    drain(body).await.0
}

/// The messages of the standard encoder.
async fn standard(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    sending: Sending,
    descriptor: Option<FlightDescriptor>,
) -> Vec<FlightData> {
    wire::encode(stream_of(schema, batches), sending, descriptor).try_collect().await.unwrap()
}

/// A message as gRPC frames it.
fn prefixed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Takes gRPC's framing away.
fn unframed(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut messages, mut rest) = (Vec::new(), bytes);
    while let [flag, length @ ..] = rest {
        assert_eq!(*flag, 0, "nothing is compressed by gRPC");
        let (length, message) = length.split_first_chunk().expect("a length of four bytes");
        let (message, others) = message.split_at(u32::from_be_bytes(*length) as usize);
        messages.push(message);
        rest = others;
    }
    messages
}

/// The standard decoder.
async fn decoded_standard(messages: Vec<FlightData>) -> (SchemaRef, Vec<RecordBatch>) {
    let messages = futures::stream::iter(messages.into_iter().map(Ok));
    let mut stream = FlightRecordBatchStream::new_from_flight_data(messages);
    let batches: Vec<RecordBatch> = stream.by_ref().try_collect().await.unwrap();
    (stream.schema().expect("a schema comes first").clone(), batches)
}

/// What our parser and decoder make of a request's body.
async fn received(
    pieces: impl IntoIterator<Item = Bytes>,
    max_message: usize,
) -> Result<(SchemaRef, Vec<RecordBatch>), Error> {
    let stream = wire::decode(wire::request(body(pieces), max_message), broken).await?;
    let schema = stream.schema();
    Ok((schema, stream.try_collect().await?))
}

/// The parser's own word, so that a test sees it.
fn broken(status: &Status) -> Error {
    Error::Remote { peer: "the stream".into(), code: status.code(), message: status.message().to_string() }
}

fn batch(columns: impl IntoIterator<Item = (&'static str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

/// A small deterministic generator.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `bound`, or 0 where there is nothing less.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 11) as usize).checked_rem(bound).unwrap_or(0)
    }

    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Cuts bytes at random places: often into single bytes, sometimes not at all.
    pub(crate) fn pieces(&mut self, mut bytes: Bytes) -> Vec<Bytes> {
        let longest = [1, 7, 100, 5_000, usize::MAX][self.below(5)];
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            pieces.push(bytes.split_to((1 + self.below(longest)).min(bytes.len())));
        }
        pieces
    }
}
