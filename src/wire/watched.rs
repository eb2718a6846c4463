//! A response body that tells its watcher how the call ended.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Code, Status, body::Body};

/// Calls back once with the gRPC code: from the trailers, or CANCELLED where the body is dropped before its end.
struct Watched<F: FnMut(Code)> {
    body: Body,
    ended: bool,
    watcher: F,
}

/// Wraps a response's body; `headers` already carry the status of a call that failed at once.
pub fn watch<F: FnMut(Code) + Send + Unpin + 'static>(headers: &HeaderMap, body: Body, watcher: F) -> Body {
    let mut watched = Watched { body, ended: false, watcher };
    if let Some(status) = Status::from_header_map(headers) {
        watched.end(status.code());
    }
    Body::new(watched)
}

impl<F: FnMut(Code)> Watched<F> {
    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            (self.watcher)(code);
        }
    }
}

impl<F: FnMut(Code) + Unpin> http_body::Body for Watched<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = futures::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = Status::from_header_map(trailers).map_or(Code::Ok, |status| status.code());
                    self.end(code);
                }
            }
            Some(Err(status)) => {
                let code = status.code();
                self.end(code);
            }
            None => self.end(Code::Ok),
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

impl<F: FnMut(Code)> Drop for Watched<F> {
    fn drop(&mut self) {
        // hyper may drop a body that says it has ended without asking for the end.
        let code = if self.body.is_end_stream() { Code::Ok } else { Code::Cancelled };
        self.end(code);
    }
}
