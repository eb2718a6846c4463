//! Bodies that tell their RPC what passes through them and how it ended, and that end where a client stands still.
//!
//! A client that sends nothing is noticed by the request's body, because whoever reads it waits. One that takes nothing is
//! not noticed by the answer's: HTTP/2 asks for more of it only when there is room. So the body is shared with the task that
//! sends it ([`Answer`]).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body};

use super::outgoing::trailers;
use crate::{
    config::Span,
    error::Error,
    telemetry::{Call, Direction},
};

/// The most that is handed to HTTP/2 at once, so that a client that takes little by little is seen to take something.
const LONGEST: usize = 1024 * 1024;

/// Counts the gRPC messages that begin in a body: each has 5 bytes in front, the last 4 its length.
#[derive(Default)]
struct Messages {
    prefix: [u8; 5],
    have: usize,
    left: usize,
}

impl Messages {
    fn begun(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.prefix.len() - self.have).min(bytes.len());
            self.prefix[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.prefix.len() {
                let [_, length @ ..] = self.prefix;
                (self.left, self.have) = (u32::from_be_bytes(length) as usize, 0);
                count += 1;
            }
        }
        count
    }
}

// === The request ===

/// Counts the messages of a request.
struct Counted {
    body: Body,
    messages: Messages,
    call: Call,
    answer: Answer,
    patience: Span,
    /// Since when its reader waits.
    waiting: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Wraps a request's body, which ends in an error where the client sends nothing for `patience` although it is waited for,
/// and takes nothing of the answer either.
pub fn count(body: Body, call: Call, answer: Answer, patience: Span) -> Body {
    Body::new(Counted { body, messages: Messages::default(), call, answer, patience, waiting: None, timer: None })
}

impl Counted {
    /// Completes when the client has stood still for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.patience.limit() else { return Poll::Pending };
        let waiting = *self.waiting.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(waiting + patience)));
        loop {
            ready!(timer.as_mut().poll(cx));
            // Only then it is worth asking what has moved meanwhile.
            let until = self.answer.lock().moved.map_or(waiting, |moved| moved.max(waiting)) + patience;
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            ready!(this.poll_stalled(cx));
            this.body = Body::empty();
            this.call.stalled(Direction::Received);
            return Poll::Ready(Some(Err(Error::stalled("sent", this.patience).carried())));
        };
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref())
            && !data.is_empty()
        {
            this.waiting = None;
            let begun = this.messages.begun(data);
            this.call.messages(Direction::Received, begun);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === The answer ===

/// What a call's answer and the task that sends it know of each other. Cheap to clone.
#[derive(Clone, Default)]
pub struct Answer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// None before there is an answer, once the client has stood still for too long, and while it is polled: that may run
    /// what reads the request, and asks here.
    going: Option<Going>,
    /// Since when HTTP/2 has had a piece of it and not asked for the next.
    untaken: Option<Instant>,
    /// When the last piece left.
    moved: Option<Instant>,
    failure: Option<Status>,
}

struct Going {
    body: Body,
    messages: Messages,
    /// What of its last piece has not been handed out.
    rest: Bytes,
    call: Call,
}

impl Answer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the client has taken nothing of what there is.
    pub fn untaken_since(&self) -> Option<Instant> {
        self.lock().untaken
    }

    /// The client has taken nothing for too long: whatever makes the answer ends now, and the answer ends in an error.
    pub fn stalled(&self, limit: Span) {
        let Some(going) = self.lock().going.take() else { return };
        let stalled = Error::stalled("taken", limit);
        let code = stalled.code();
        self.lock().failure = Some(stalled.into_status());
        going.call.stalled(Direction::Sent);
        going.call.end(code);
    }
}

/// Ends its call: with the code of the trailers, or as CANCELLED where the body is dropped before its end.
struct Watched(Answer);

/// Wraps a response's body; `headers` already carry the status of a call that failed at once.
pub fn watch(headers: &HeaderMap, body: Body, call: Call, answer: Answer) -> Body {
    if let Some(status) = Status::from_header_map(headers) {
        call.end(status.code());
    }
    answer.lock().going = Some(Going { body, messages: Messages::default(), rest: Bytes::new(), call });
    Body::new(Watched(answer))
}

impl Going {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, messages, rest, call } = self;
        if rest.is_empty() {
            let polled = {
                // What makes the answer is a part of the call's trace.
                let _inside = call.span().enter();
                Pin::new(body).poll_frame(cx)
            };
            let frame = ready!(polled);
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        let begun = messages.begun(data);
                        call.messages(Direction::Sent, begun);
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        call.end(Status::from_header_map(trailers).map_or(Code::Ok, |status| status.code()));
                    }
                }
                Some(Err(status)) => call.end(status.code()),
                None => call.end(Code::Ok),
            }
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(rest.split_to(LONGEST.min(rest.len()))))))
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let going = {
            let mut state = self.0.lock();
            state.untaken = None;
            state.going.take()
        };
        let Some(mut going) = going else {
            let failure = self.0.lock().failure.take();
            return Poll::Ready(failure.map(|status| Ok(Frame::trailers(trailers(&status)))));
        };
        let frame = going.poll_frame(cx);
        let mut state = self.0.lock();
        state.going = Some(going);
        if matches!(&frame, Poll::Ready(Some(Ok(frame))) if frame.is_data()) {
            let now = Some(Instant::now());
            (state.untaken, state.moved) = (now, now);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        match &state.going {
            Some(going) => going.rest.is_empty() && going.body.is_end_stream(),
            None => state.failure.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.lock().going {
            Some(going) if going.rest.is_empty() => going.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(Going { body, call, .. }) = self.0.lock().going.take() {
            // hyper may drop a body that says it has ended without asking for the end.
            call.end(if body.is_end_stream() { Code::Ok } else { Code::Cancelled });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Messages;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 1, 4, 5, 300, 0, 7] {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.extend(vec![1; length as usize]);
        }
        for cut in 1..=body.len() {
            let mut messages = Messages::default();
            assert_eq!(body.chunks(cut).map(|chunk| messages.begun(chunk)).sum::<u64>(), 7, "cut every {cut} bytes");
        }
    }
}
