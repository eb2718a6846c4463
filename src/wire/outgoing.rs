//! The HTTP/2 body of a stream of gRPC messages.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use arrow_flight::{FlightData, FlightDescriptor};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::Frame;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use super::{
    encode::{Sending, frames},
    end::app_metadata,
    frame::{Segments, small_message},
};
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// Which end of the call the body is of.
#[derive(PartialEq)]
enum Side {
    /// Its last frame are the trailers, which carry the status.
    Response,
    /// Its end is the end of the stream; an error resets it, and that is all a server learns.
    Request,
}

struct Outgoing {
    messages: BoxStream<'static, Result<Segments, Status>>,
    segments: Segments,
    side: Side,
    ended: bool,
}

/// The answer of a call that streams record batches, once what starts it has; its headers go out before that.
pub fn respond(
    starting: impl Future<Output = Result<RecordBatchStream>> + Send + 'static,
    sending: Sending,
) -> Response<Body> {
    let messages = futures::stream::once(starting).flat_map(move |started| match started {
        Ok(stream) => frames(stream, sending, None),
        Err(error) => futures::stream::iter([Err(error)]).boxed(),
    });
    with_trailers(messages.map(|message| message.map_err(Status::from)))
}

/// The answer of a call whose messages are small.
pub fn answer<M: prost::Message>(messages: impl Stream<Item = Result<M, Status>> + Send + 'static) -> Response<Body> {
    with_trailers(messages.map(|message| message.map(|message| small_message(&message))))
}

/// The request of a call that has one message.
pub fn single(message: &impl prost::Message) -> Body {
    let messages = futures::stream::iter([Ok(small_message(message))]);
    Body::new(Outgoing::new(messages, Side::Request))
}

/// The request of a call that streams record batches. The server sees the call reset where they end in an error, which
/// goes to `failed`, and where `stop` is cancelled before they end. Where they end well, the last message says so if
/// `says_end`, with the number of rows (see [`END_HEADER`](super::END_HEADER)).
pub fn upload(
    stream: RecordBatchStream,
    sending: Sending,
    descriptor: FlightDescriptor,
    says_end: bool,
    stop: CancellationToken,
    failed: impl FnOnce(Error) + Send + 'static,
) -> Body {
    let mut failed = Some(failed);
    let rows = Arc::new(AtomicU64::new(0));
    let counted = rows.clone();
    let stream = stream.inspect(move |batch| {
        counted.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
    });
    // Asked for when the batches have ended; an error ends the body before.
    let end = futures::stream::once(async move {
        let app_metadata = app_metadata(rows.load(Ordering::Relaxed)).into();
        Ok(small_message(&FlightData { app_metadata, ..FlightData::default() }))
    });
    let end = futures::stream::iter(says_end.then_some(end)).flatten();
    let messages = frames(stream, sending, Some(descriptor)).chain(end).map(move |message| {
        message.map_err(|error| {
            if let Some(failed) = failed.take() {
                failed(error);
            }
            Status::cancelled("the rows to send ended in an error")
        })
    });
    let stopped = stop.clone().cancelled_owned();
    let cut = futures::stream::once(async move { stop.is_cancelled() })
        .filter_map(async |stopped| stopped.then(|| Err(Status::cancelled("the call was dropped"))));
    Body::new(Outgoing::new(messages.take_until(stopped).chain(cut), Side::Request))
}

fn with_trailers(messages: impl Stream<Item = Result<Segments, Status>> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(Body::new(Outgoing::new(messages, Side::Response)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl Outgoing {
    fn new(messages: impl Stream<Item = Result<Segments, Status>> + Send + 'static, side: Side) -> Self {
        Self { messages: messages.boxed(), segments: Segments::new(), side, ended: false }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(segment) = this.segments.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(segment))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let status = match ready!(this.messages.poll_next_unpin(cx)) {
                Some(Ok(segments)) => {
                    this.segments = segments;
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            this.ended = true;
            // Whatever makes the messages ends now, and not when the peer has read the last of them.
            this.messages = futures::stream::empty().boxed();
            return Poll::Ready(match (&this.side, status.code()) {
                (Side::Request, tonic::Code::Ok) => None,
                (Side::Request, _) => Some(Err(status)),
                (Side::Response, _) => Some(Ok(Frame::trailers(trailers(&status)))),
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.segments.is_empty()
    }
}

pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    if status.add_header(&mut trailers).is_err() {
        // Some metadata is no header.
        trailers.clear();
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}
