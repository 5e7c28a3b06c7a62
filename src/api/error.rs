//! The one place where errors become HTTP: status, JSON body, headers.

use std::fmt::Display;

use axum::body::Body;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::headers::HeaderError;
use super::routes::RouteError;
use crate::domain::destination::DestinationError;
use crate::domain::excerpt::shorten;
use crate::operations::OperationError;
use crate::store::StoreError;

/// An answer with status 400 or above.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    text: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether it says that a workflow run has ended, which its endpoint must be able to tell from all else.
    run_ended: bool,
}

/// Which limit on requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RateLimit {
    /// Messages in a day.
    Daily,
    /// Requests in a second.
    Burst,
}

impl RateLimit {
    /// By these names clients tell the limits apart: limit, remaining, reset.
    const fn headers(self) -> [&'static str; 3] {
        match self {
            Self::Daily => ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"],
            Self::Burst => ["burst-ratelimit-limit", "burst-ratelimit-remaining", "burst-ratelimit-reset"],
        }
    }
}

impl ApiError {
    /// An error with a text for the caller.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), headers: Vec::new(), run_ended: false }
    }

    /// 400.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// 404.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// 401 (RFC 9110, 15.5.2).
    pub fn unauthorized(text: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::UNAUTHORIZED, text);
        error.headers.push((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        error
    }

    /// 413, for a body above `limit` bytes.
    pub fn too_large(what: &str, limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{what} is larger than the limit of {limit} bytes"))
    }

    /// 503 with a time to come back after.
    pub fn unavailable(text: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, text);
        error.headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
        error
    }

    /// 429. `reset_s` is in Unix seconds.
    pub fn rate_limited(
        text: impl Into<String>,
        kind: RateLimit,
        limit: u64,
        remaining: u64,
        reset_s: i64,
    ) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, text);
        let [limit_name, remaining_name, reset_name] = kind.headers();
        error.headers = vec![
            (HeaderName::from_static(limit_name), limit.into()),
            (HeaderName::from_static(remaining_name), remaining.into()),
            (HeaderName::from_static(reset_name), reset_s.into()),
        ];
        error
    }

    /// 500, for a request whose task failed.
    pub fn task_failed(error: &tokio::task::JoinError) -> Self {
        tracing::error!(%error, "a request's task failed");
        let text = "internal error; the server's log has the cause";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    /// The error with what it is about before its text, where a request has several things.
    #[must_use]
    pub fn of(mut self, what: impl Display) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    /// The error as workflows' endpoints take it: to them 400 says that the run has ended, so whatever else is wrong with a
    /// submission is 412.
    #[must_use]
    pub fn of_workflow(mut self) -> Self {
        let is_bad = matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE);
        if is_bad && !self.run_ended {
            self.status = StatusCode::PRECONDITION_FAILED;
        }
        self
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        let body = serde_json::json!({ "error": self.text }).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        response
    }
}

/// The problem that a JSON parser tells, at a length fit for an answer: parsers repeat texts of the input as they are.
pub(super) fn json_problem(error: &serde_json::Error) -> String {
    shorten(&error.to_string())
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found("no such endpoint"),
            RouteError::Method { allow } => {
                let text = format!("method not allowed here; allowed: {allow}");
                let mut error = Self::new(StatusCode::METHOD_NOT_ALLOWED, text);
                error.headers.extend(HeaderValue::try_from(allow).map(|allow| (ALLOW, allow)));
                error
            }
        }
    }
}

impl From<DestinationError> for ApiError {
    fn from(error: DestinationError) -> Self {
        match error {
            DestinationError::UnknownGroup(_) => Self::not_found(error.to_string()),
            _ => Self::bad_request(error.to_string()),
        }
    }
}

impl From<HeaderError> for ApiError {
    fn from(error: HeaderError) -> Self {
        let status = if error.is_quota() { StatusCode::PRECONDITION_FAILED } else { StatusCode::BAD_REQUEST };
        Self::new(status, error.to_string())
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        let text = error.to_string();
        match error {
            OperationError::Store(error) => error.into(),
            OperationError::Destination(error) => error.into(),
            OperationError::Invalid(_) => Self::bad_request(text),
            OperationError::NotFound(_) => Self::not_found(text),
            OperationError::RunEnded => Self { run_ended: true, ..Self::bad_request(text) },
            OperationError::RunIdTaken | OperationError::Quota { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, text)
            }
            OperationError::DailyQuota { limit, left, reset_s, .. } => {
                Self::rate_limited(text, RateLimit::Daily, limit, left, reset_s)
            }
            OperationError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, text),
            OperationError::Busy(_) => Self::unavailable(text),
            OperationError::Part { what, source } => Self::from(*source).of(what),
            OperationError::TaskFailed(error) => Self::task_failed(&error),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if let StoreError::TooManyQueues(max) = error {
            let text = format!("quota maxQueues exceeded, current limit: {max}");
            return Self::new(StatusCode::PRECONDITION_FAILED, text);
        }
        if let StoreError::TooMuch = error {
            return Self::unavailable(
                "the search takes too long, or too many are under way: try again, or ask for less, for example by fromDate and toDate",
            );
        }
        if error.is_transient() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a request failed for want of the database"
            );
            return Self::unavailable(
                "the database is unavailable; whether the request took effect is unknown",
            );
        }
        tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the server's log has the cause")
    }
}
