//! Bodies that tell their RPC what passes through them and how it ended, and that end where a client stands still.
//!
//! A client that sends nothing is noticed by the request's body, because whoever reads it waits. One that takes nothing is
//! not noticed by the answer's: HTTP/2 asks for more of it only when there is room. So the body is shared with the task that
//! sends it ([`Answer`]).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body};

use super::{
    outgoing::trailers,
    spool::{Full, Spool, Spooled},
};
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
    /// Whether what has come ends with a message's end.
    fn between(&self) -> bool {
        self.left == 0 && self.have == 0
    }

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
    answer.lock().receiving = true;
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
            this.answer.lock().received = Some(Instant::now());
        }
        if !matches!(frame, Some(Ok(_))) {
            this.answer.lock().receiving = false;
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

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.answer.lock();
        let receiving = std::mem::replace(&mut state.receiving, false);
        if receiving && state.discards {
            state.left_over = Some(std::mem::take(&mut self.body));
            if let Some(task) = state.task.take() {
                task.wake();
            }
        }
    }
}

// === The answer ===

/// What a call's answer and the task that sends it know of each other. Cheap to clone.
#[derive(Clone, Default)]
pub struct Answer {
    state: Arc<Mutex<State>>,
    /// Where it may wait for a client that sends before it reads.
    spool: Option<Spool>,
}

/// A client that takes nothing for so long, while it may still send, is taken for one that sends before it reads.
const BEFORE_SPOOLING: Duration = Duration::from_secs(1);

/// Pieces that are made ahead before other tasks of the thread have their turn.
const AT_ONCE: usize = 32;

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
    /// Whether the request is still read.
    receiving: bool,
    /// When something of it came last.
    received: Option<Instant>,
    /// Whether what still comes of the request is thrown away. The answer has failed, and a client that sends before it reads
    /// comes to read it only when it has sent everything.
    discards: bool,
    left_over: Option<Body>,
    /// Who throws it away.
    task: Option<Waker>,
}

struct Going {
    body: Body,
    messages: Messages,
    /// What of its last piece has not been handed out.
    rest: Bytes,
    /// What was made of it ahead of its client, behind the rest.
    spooled: Option<Spooled>,
    /// How the body ended, once it has; behind what is spooled. `Some(None)` is an end without trailers.
    ended: Option<Option<Result<HeaderMap, Status>>>,
    call: Call,
}

impl Answer {
    pub fn spooling(spool: Spool) -> Self {
        Self { spool: Some(spool), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the client has taken nothing of what there is, and sent nothing.
    pub fn untaken_since(&self) -> Option<Instant> {
        let state = self.lock();
        let untaken = state.untaken?;
        let sends = state.receiving || state.discards;
        Some(state.received.filter(|_| sends).map_or(untaken, |received| received.max(untaken)))
    }

    /// For the task that sends the answer: goes on with it although its client takes nothing, as long as that may still send.
    /// Says when it is to be asked again, whatever happens.
    pub fn poll_ahead(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let spool = self.spool.as_ref()?;
        let (since, mut going) = {
            let mut state = self.lock();
            if state.discards {
                drop(state);
                self.poll_discard(cx);
                return None;
            }
            let since = state.untaken.filter(|_| state.receiving)?;
            let due = since + BEFORE_SPOOLING;
            if Instant::now() < due {
                return Some(due);
            }
            (since, state.going.take()?)
        };
        let full = going.poll_ahead(spool, cx);
        let mut state = self.lock();
        let full = match full {
            Poll::Ready(full) if state.receiving => full,
            _ => {
                state.going = Some(going);
                return None;
            }
        };
        let due = spool.patience().limit().map(|patience| since + patience);
        let error = match (full, due) {
            (Full::Failed(error), _) => {
                format!(
                    "the answer cannot be kept on disk for a client that does not read it ({error}): read while sending, from \
                     another thread"
                )
            }
            (Full::Limit, Some(due)) if Instant::now() >= due => format!(
                "the client sends and reads nothing of the answer, and exchange.buffer_disk ({}), where that waits, is full: read while \
                 sending, from another thread",
                spool.limit()
            ),
            (Full::Limit, due) => {
                state.going = Some(going);
                // Others may make room.
                let again = Instant::now() + Duration::from_secs(1);
                return Some(due.map_or(again, |due| due.min(again)));
            }
        };
        let error = Error::Limit { what: error, key: "exchange.buffer_disk" };
        tracing::debug!(%error, "an exchange ends");
        going.ended = Some(Some(Ok(trailers(&error.into_status()))));
        state.discards = true;
        state.task = Some(cx.waker().clone());
        let body = std::mem::take(&mut going.body);
        state.going = Some(going);
        // Ends what makes it, which may ask here.
        drop(state);
        drop(body);
        cx.waker().wake_by_ref();
        None
    }

    fn poll_discard(&self, cx: &mut Context<'_>) {
        let mut state = self.lock();
        state.task = Some(cx.waker().clone());
        let State { left_over, received, .. } = &mut *state;
        let Some(body) = left_over else { return };
        for _ in 0..AT_ONCE {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => {
                    *left_over = None;
                    return;
                }
                Poll::Pending => return,
            }
            *received = Some(Instant::now());
        }
        cx.waker().wake_by_ref();
    }

    /// The client has taken nothing for too long: whatever makes the answer ends now, and the answer ends in an error.
    pub fn stalled(&self, limit: Span) {
        let Some(going) = self.lock().going.take() else { return };
        let stalled = Error::stalled("taken", limit);
        let code = stalled.code();
        let mut state = self.lock();
        state.failure = Some(stalled.into_status());
        // It may be in the middle of sending, and sees the answer only behind that.
        state.discards = state.receiving;
        drop(state);
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
    answer.lock().going =
        Some(Going { body, messages: Messages::default(), rest: Bytes::new(), spooled: None, ended: None, call });
    Body::new(Watched(answer))
}

impl Going {
    /// The next piece that the body makes, or nothing at its end, which is kept.
    fn poll_made(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        let polled = {
            // What makes the answer is a part of the call's trace.
            let _inside = self.call.span().enter();
            Pin::new(&mut self.body).poll_frame(cx)
        };
        let end = match ready!(polled) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let begun = self.messages.begun(&data);
                    self.call.messages(Direction::Sent, begun);
                    return Poll::Ready(Some(data));
                }
                Err(frame) => frame.into_trailers().ok().map(Ok),
            },
            Some(Err(status)) => Some(Err(status)),
            None => None,
        };
        self.ended = Some(end);
        Poll::Ready(None)
    }

    /// Makes pieces ahead. Completes when no more may wait and a message is whole.
    fn poll_ahead(&mut self, spool: &Spool, cx: &mut Context<'_>) -> Poll<Full> {
        let spooled = self.spooled.take();
        let mut spooled = spooled.unwrap_or_else(|| Spooled::new(spool));
        let mut full = Poll::Pending;
        for turn in 0.. {
            match spooled.poll_room(cx) {
                Poll::Pending => break,
                Poll::Ready(Err(why)) if self.messages.between() || matches!(why, Full::Failed(_)) => {
                    full = Poll::Ready(why);
                    break;
                }
                Poll::Ready(_) => {}
            }
            if turn == AT_ONCE {
                cx.waker().wake_by_ref();
                break;
            }
            match self.poll_made(cx) {
                Poll::Ready(Some(data)) => spooled.push(data),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        self.spooled = Some(spooled);
        full
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            let mut next = None;
            if let Some(spooled) = &mut self.spooled {
                match ready!(spooled.poll_next(cx)) {
                    Ok(data) => next = data,
                    Err(error) => {
                        let lost =
                            Error::internal(format!("what waited on disk for its reader cannot be read: {error}"));
                        self.ended = Some(Some(Err(lost.into_status())));
                    }
                }
                if next.is_none() {
                    self.spooled = None;
                }
            }
            if next.is_none() {
                next = ready!(self.poll_made(cx));
            }
            let Some(data) = next else { return Poll::Ready(self.end()) };
            self.rest = data;
        }
        let length = LONGEST.min(self.rest.len());
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    /// Everything before it has been handed out.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        let code = match &self.ended {
            Some(Some(Ok(trailers))) => Status::from_header_map(trailers).map_or(Code::Ok, |status| status.code()),
            Some(Some(Err(status))) => status.code(),
            Some(None) | None => Code::Ok,
        };
        self.call.end(code);
        let end = self.ended.replace(None)??;
        Some(end.map(Frame::trailers))
    }

    fn has_ended(&self) -> bool {
        self.rest.is_empty() && self.spooled.as_ref().is_none_or(Spooled::is_empty) && self.body.is_end_stream()
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
            // An end that was made ahead has still to be handed out.
            Some(going) => going.has_ended() && !matches!(going.ended, Some(Some(_))),
            None => state.failure.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.lock().going {
            Some(going) if going.rest.is_empty() && going.spooled.is_none() => going.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let going = self.0.lock().going.take();
        if let Some(going) = going {
            // hyper may drop a body that says it has ended without asking for the end.
            going.call.end(if going.has_ended() { Code::Ok } else { Code::Cancelled });
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
