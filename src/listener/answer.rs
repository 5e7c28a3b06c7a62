//! An answer's body on its way out: in small pieces, each of which tells when the connection has let go of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::guests::Exchange;
use crate::api::LEAST;

/// The body of an answer, and the exchange that it belongs to.
pub(super) struct Answer {
    body: Body,
    /// What is left of the body's last frame.
    rest: Bytes,
    exchange: Arc<Exchange>,
}

impl Answer {
    /// The answer; it is the client's turn now.
    pub(super) fn new(response: Response, exchange: Exchange) -> http::Response<Self> {
        exchange.goes_on();
        response.map(|body| Self { body, rest: Bytes::new(), exchange: Arc::new(exchange) })
    }

    /// The next piece of what is left of the last frame.
    fn piece(&mut self) -> Bytes {
        let bytes = self.rest.split_to(self.rest.len().min(LEAST));
        Bytes::from_owner(Piece { bytes, exchange: Arc::clone(&self.exchange) })
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(other) => return Poll::Ready(other),
                Poll::Pending => {
                    self.exchange.works();
                    return Poll::Pending;
                }
            };
            self.exchange.goes_on();
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// A piece of an answer. The connection drops it when it was written, or won't be.
struct Piece {
    bytes: Bytes,
    exchange: Arc<Exchange>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.exchange.took(self.bytes.len());
    }
}
