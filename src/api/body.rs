//! Reading request bodies: to a limit, in time, within the memory for all of them.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Api;
use super::error::ApiError;

/// A body, and its share of the memory for bodies until it is dropped.
pub(super) struct Received {
    pub(super) body: Bytes,
    _memory: OwnedSemaphorePermit,
}

/// Permits for that many bytes.
pub(super) fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(1 << 28)
}

impl Api {
    /// Reads a body of at most `limit` bytes; `what` names it in the error.
    pub(super) async fn read_body(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit: usize,
        what: &str,
    ) -> Result<Received, ApiError> {
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(ApiError::too_large(what, limit));
        }
        // Of unknown length: as much as it may become, since two that each hold a part would wait for each other.
        let share = kib(announced.unwrap_or(limit).max(1));
        let memory = tokio::time::timeout(self.settings.body_timeout, acquire(self, share))
            .await
            .map_err(|_| ApiError::unavailable("too many large requests at once"))??;
        let body = tokio::time::timeout(self.settings.body_timeout, collect(body, limit, what, announced))
            .await
            .map_err(|_| {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time")
            })??;
        Ok(Received { body, _memory: memory })
    }
}

async fn acquire(api: &Api, share: u32) -> Result<OwnedSemaphorePermit, ApiError> {
    Semaphore::acquire_many_owned(std::sync::Arc::clone(&api.body_memory), share)
        .await
        .map_err(|_| ApiError::unavailable("the server is stopping"))
}

async fn collect(
    mut body: Body,
    limit: usize,
    what: &str,
    announced: Option<usize>,
) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    let mut first: Option<Bytes> = None;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::bad_request(format!("the request body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let have = whole.len() + first.as_ref().map_or(0, Bytes::len);
        if have + data.len() > limit {
            return Err(ApiError::too_large(what, limit));
        }
        // Most bodies come in one piece, which is kept as it is.
        if whole.is_empty() && first.is_none() {
            first = Some(data);
            continue;
        }
        if let Some(first) = first.take() {
            whole.reserve(announced.unwrap_or(first.len() + data.len()));
            whole.extend_from_slice(&first);
        }
        whole.extend_from_slice(&data);
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}
