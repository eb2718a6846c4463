//! Bodies that tell their RPC what passes through them and how it ended.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Code, Status, body::Body};

use crate::telemetry::{Call, Direction};

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

/// Counts the messages of a request.
struct Counted {
    body: Body,
    messages: Messages,
    call: Call,
}

/// Wraps a request's body.
pub fn count(body: Body, call: Call) -> Body {
    Body::new(Counted { body, messages: Messages::default(), call })
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = futures::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            let begun = self.messages.begun(data);
            self.call.messages(Direction::Received, begun);
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

/// Ends its call: with the code of the trailers, or as CANCELLED where the body is dropped before its end.
struct Watched {
    body: Body,
    messages: Messages,
    call: Call,
}

/// Wraps a response's body; `headers` already carry the status of a call that failed at once.
pub fn watch(headers: &HeaderMap, body: Body, call: Call) -> Body {
    if let Some(status) = Status::from_header_map(headers) {
        call.end(status.code());
    }
    Body::new(Watched { body, messages: Messages::default(), call })
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let polled = {
            // What makes the answer is a part of the call's trace.
            let _inside = this.call.span().enter();
            Pin::new(&mut this.body).poll_frame(cx)
        };
        let frame = futures::ready!(polled);
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let begun = this.messages.begun(data);
                    this.call.messages(Direction::Sent, begun);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    this.call.end(Status::from_header_map(trailers).map_or(Code::Ok, |status| status.code()));
                }
            }
            Some(Err(status)) => this.call.end(status.code()),
            None => this.call.end(Code::Ok),
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

impl Drop for Watched {
    fn drop(&mut self) {
        // hyper may drop a body that says it has ended without asking for the end.
        self.call.end(if self.body.is_end_stream() { Code::Ok } else { Code::Cancelled });
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
