//! Reading request bodies: to a limit, in time, within the memory for all of them.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::time::Instant;

use super::error::ApiError;
use super::{Api, LEAST};
use crate::operations::memory::Share;

/// Bodies up to this size are read without asking: there is one per connection or stream, and they must not queue behind
/// those that take a share of the memory.
const SMALL: usize = 64 << 10;
/// Bytes that are read and thrown away of a body that nobody wanted.
const DISCARD: usize = 64 << 20;
/// The time for that.
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// A body, and its share of the memory for bodies until it is dropped.
pub(super) struct Received {
    pub(super) body: Bytes,
    _memory: Option<Share>,
}

/// A request's body, as far as it has not been read.
pub(super) struct Upload {
    body: Body,
    /// The length that `Content-Length` names.
    announced: Option<usize>,
    /// The client sends nothing before it is asked to (`Expect: 100-continue`); reading asks.
    held_back: bool,
    /// The client has had its time.
    late: bool,
}

impl Upload {
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse().ok());
        let held_back =
            headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Self { body, announced, held_back, late: false }
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Option<Result<Bytes, axum::Error>> {
        self.held_back = false;
        loop {
            match self.body.frame().await?.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => return Some(Ok(data)),
                Ok(Err(_trailers)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Reads the rest for nothing, within bounds. Many clients write all of a request before they look for an answer; were
    /// the connection closed on them, they would report that and not the answer.
    pub(super) async fn discard(mut self) {
        if self.held_back || self.late || self.body.is_end_stream() {
            return;
        }
        let rest = async {
            let mut read = 0;
            while let Some(Ok(data)) = self.next().await {
                read += data.len();
                if read > DISCARD {
                    break;
                }
            }
        };
        // Whoever needs longer sees the connection close.
        drop(tokio::time::timeout(DISCARD_TIME, rest).await);
    }
}

/// 408.
fn late() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time")
}

impl Api {
    /// Reads a body of at most `limit` bytes; `what` names it in the error.
    pub(super) async fn read_body(
        &self,
        upload: &mut Upload,
        limit: usize,
        what: &'static str,
    ) -> Result<Received, ApiError> {
        if upload.announced.is_some_and(|length| length > limit) {
            return Err(ApiError::too_large(what, limit));
        }
        let memory = match upload.announced {
            Some(length) if length > SMALL => Some(self.operations.memory().share(length).await?),
            _ => None,
        };
        let collected = self.collect(upload, limit, what, memory);
        let in_time = tokio::time::timeout(self.settings.body_timeout, collected).await;
        in_time.unwrap_or_else(|_| {
            upload.late = true;
            Err(late())
        })
    }

    async fn collect(
        &self,
        upload: &mut Upload,
        limit: usize,
        what: &'static str,
        mut memory: Option<Share>,
    ) -> Result<Received, ApiError> {
        let mut whole = BytesMut::new();
        let mut first: Option<Bytes> = None;
        let mut have = 0;
        // Whoever sends nothing, or next to nothing, doesn't keep its share for as long as a slow but honest upload takes.
        let stall = self.settings.stall_timeout;
        let (mut seen, mut by) = (0, Instant::now() + stall);
        loop {
            let next = tokio::time::timeout_at(by, upload.next()).await;
            let Some(data) = next.inspect_err(|_| upload.late = true).map_err(|_| late())? else { break };
            let data =
                data.map_err(|error| ApiError::bad_request(format!("the request body broke off: {error}")))?;
            have += data.len();
            if have > limit {
                return Err(ApiError::too_large(what, limit));
            }
            // Of unknown length: as much as it may become, since two that each hold a part would wait for each other.
            if have > SMALL && memory.is_none() {
                memory = Some(self.operations.memory().share(limit).await?);
                by = Instant::now() + stall;
            }
            if have - seen >= LEAST {
                (seen, by) = (have, Instant::now() + stall);
            }
            // Most bodies come in one piece, which is kept as it is.
            if whole.is_empty() && first.is_none() {
                first = Some(data);
                continue;
            }
            if let Some(first) = first.take() {
                whole.reserve(upload.announced.unwrap_or(first.len() + data.len()));
                whole.extend_from_slice(&first);
            }
            whole.extend_from_slice(&data);
        }
        Ok(Received { body: first.unwrap_or_else(|| whole.freeze()), _memory: memory })
    }
}
