//! A call's body as FlightData, message by message.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use arrow_flight::FlightData;
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use http::Response;
use http_body::Body as _;
use prost::Message;
use tonic::{Code, Status, Streaming, body::Body, codec::Codec};
use tonic_prost::ProstCodec;

use super::{
    budget::Budget,
    parse::{Held, Parser},
};
use crate::error;

struct Incoming {
    body: Body,
    piece: Bytes,
    parser: Parser,
    budget: Option<Budget>,
    /// The wait for room in it.
    asking: Option<BoxFuture<'static, error::Result<Held>>>,
    /// Whether it is what a server answers.
    answers: bool,
    /// Whether trailers must tell how it ended.
    status_follows: bool,
    ended: bool,
}

/// What a client sends.
pub fn request(body: Body, max_message: usize) -> impl Stream<Item = Result<FlightData, Status>> + Send + 'static {
    Incoming::new(body, Parser::new(max_message), false)
}

/// The same, as long as the server has room for it.
pub fn request_within(
    body: Body,
    max_message: usize,
    budget: Budget,
) -> impl Stream<Item = Result<FlightData, Status>> + Send + 'static {
    Incoming { budget: Some(budget), ..Incoming::new(body, Parser::asking(max_message), false) }
}

/// What a server answers, in messages of so many bytes at most, as long as `budget` has room for it, where there is one; an
/// answer that is an error from the start is one here.
pub fn response(
    response: Response<Body>,
    max_message: usize,
    budget: Option<Budget>,
) -> Result<impl Stream<Item = Result<FlightData, Status>> + Send + 'static, Status> {
    let known = Status::from_header_map(response.headers());
    if let Some(failed) = known.as_ref().filter(|status| status.code() != Code::Ok) {
        return Err(failed.clone());
    }
    if !response.status().is_success() {
        return Err(Status::unknown(format!("the answer is HTTP {}, not gRPC", response.status())));
    }
    let parser = if budget.is_some() { Parser::asking(max_message) } else { Parser::new(max_message) };
    Ok(Incoming { budget, answers: true, ..Incoming::new(response.into_body(), parser, known.is_none()) })
}

/// The one message of a unary request.
pub async fn first<M: Message + Default + 'static>(body: Body, max_message: usize) -> Result<Option<M>, Status> {
    let decoder = ProstCodec::<M, M>::default().decoder();
    Streaming::new_request(decoder, body, None, Some(max_message)).message().await
}

/// The small messages that a server answers.
pub fn messages<M: Message + Default + 'static>(
    response: Response<Body>,
) -> impl Stream<Item = Result<M, Status>> + Send + 'static {
    let failed = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok);
    let decoder = ProstCodec::<M, M>::default().decoder();
    let status = response.status();
    let messages = Streaming::new_response(decoder, response.into_body(), status, None, None);
    match failed {
        Some(failed) => futures::stream::iter([Err(failed)]).left_stream(),
        None => messages.right_stream(),
    }
}

impl Incoming {
    fn new(body: Body, parser: Parser, status_follows: bool) -> Self {
        Self {
            body,
            piece: Bytes::new(),
            parser,
            budget: None,
            asking: None,
            answers: false,
            status_follows,
            ended: false,
        }
    }

    /// A server's message over the limit, which is of the configuration where others share the budget.
    fn too_large(&self, what: &str) -> error::Error {
        let what = what.to_string();
        match self.budget {
            Some(_) => error::Error::Limit { what, key: "limits.max_message_size" },
            None => error::Error::Stream(what),
        }
    }

    fn end(&mut self, failure: Option<Status>) -> Poll<Option<Result<FlightData, Status>>> {
        self.ended = true;
        self.body = Body::empty();
        self.asking = None;
        Poll::Ready(failure.map(Err))
    }

    /// What an end without trailers means.
    fn without_status(&self) -> Option<Status> {
        let unknown = self.status_follows.then(|| Status::data_loss("the answer ends without a status"));
        self.within_message().or(unknown)
    }

    /// A stream that ends here is not whole, whatever its status says.
    fn within_message(&self) -> Option<Status> {
        (!self.parser.between_messages()).then(|| Status::data_loss("the stream ends within a message"))
    }
}

impl Stream for Incoming {
    type Item = Result<FlightData, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            match this.parser.push(&mut this.piece) {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(status) if this.answers && status.code() == Code::OutOfRange => {
                    let too_large = this.too_large(status.message());
                    return this.end(Some(too_large.carried()));
                }
                Err(status) => return this.end(Some(status)),
            }
            if let (Some(wanted), Some(budget)) = (this.parser.wanted(), &this.budget) {
                let asking = this.asking.get_or_insert_with(|| budget.clone().take(wanted).boxed());
                match ready!(asking.poll_unpin(cx)) {
                    Ok(held) => this.parser.granted(held),
                    Err(error) => return this.end(Some(error.carried())),
                }
                this.asking = None;
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.piece = data,
                    Err(frame) => {
                        let status = frame.trailers_ref().and_then(Status::from_header_map);
                        let failure = match status {
                            Some(status) if this.status_follows && status.code() != Code::Ok => Some(status),
                            Some(_) if this.status_follows => this.within_message(),
                            _ => this.without_status(),
                        };
                        return this.end(failure);
                    }
                },
                Some(Err(status)) => return this.end(Some(status)),
                None => {
                    let failure = this.without_status();
                    return this.end(failure);
                }
            }
        }
    }
}
