//! The wire contract coming in: routes, authentication, the JSON of answers and errors.
//!
//! The API works on the raw request target, since destinations stand in paths unencoded: a router that decodes or normalises
//! would change them. It is a face: it reads requests, has [`Operations`] do what they ask for, and writes answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::CACHE_CONTROL;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use ipnet::IpNet;
use serde::Serialize;
use tokio_util::task::AbortOnDropHandle;

mod answers;
pub mod auth;
mod batch;
mod body;
mod burst_limit;
mod caller;
mod dead_letters;
pub mod error;
mod filter;
mod flow_control;
pub mod headers;
mod homing;
mod keys;
mod log;
mod messages;
mod openapi;
mod publish;
mod query;
mod queues;
mod routes;
mod schedules;
mod url_groups;
#[doc(hidden)] // public for the benchmarks
pub mod wire;
mod workflow_dead_letters;
mod workflow_log;
mod workflows;

use self::answers::{AnswerMemory, Share};
use self::auth::Tokens;
use self::body::Upload;
use self::burst_limit::BurstLimit;
use self::error::ApiError;
use self::headers::Limits;
use self::routes::{Access, Call, Found, Runs};
use crate::operations::Operations;

/// The address of the client at the other end of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Bytes that must arrive of a request's body, or be taken of an answer, within the time limit for them, unless it ends.
pub(crate) const LEAST: usize = 16 << 10;

/// Bytes of headers and bodies, of messages and responses, in one page of dead letters; a page ends early when it would hold
/// more. Until it is JSON, a page takes several times as much.
const PAGE_BYTES: usize = 4 << 20;
/// Items that are read at once for the list of all, where they are small; and bytes of larger ones.
const LISTED: usize = 500;
const PIECE_BYTES: usize = 1 << 20;

/// Bytes of large answers about what was stored in memory at once: two of the largest batches, or hundreds of usual ones,
/// beside the memory for what is read.
const RECEIPT_MEMORY: usize = 16 << 20;

/// The API's limits.
#[derive(Clone, Debug)]
pub struct Settings {
    pub headers: Limits,
    /// Bytes of a message's body.
    pub max_message: usize,
    /// Bytes of a batch request's body.
    pub max_batch: usize,
    /// Time for a body to arrive.
    pub body_timeout: Duration,
    /// Time in which some of a body must arrive.
    pub stall_timeout: Duration,
    /// Bytes of large answers in memory at once.
    pub max_answer_memory: usize,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where users reach the server, if the operator says so: scheme and authority.
    pub public_url: Option<String>,
    /// Requests in a second other than those that publish; `None`: no limit.
    pub max_requests_per_second: Option<u64>,
}

/// The API, which all requests share.
pub struct Api {
    settings: Settings,
    tokens: Tokens,
    operations: Arc<Operations>,
    /// For what is read.
    answers: AnswerMemory,
    /// For what tells that messages were stored, which must not wait for those who only read.
    receipts: AnswerMemory,
    burst_limit: Option<BurstLimit>,
}

impl Api {
    /// The API of these operations.
    pub fn new(settings: Settings, tokens: Tokens, operations: Arc<Operations>) -> Self {
        let answers = AnswerMemory::new(settings.max_answer_memory);
        let receipts = AnswerMemory::new(RECEIPT_MEMORY);
        let burst_limit = settings.max_requests_per_second.map(BurstLimit::new);
        Self { settings, tokens, operations, answers, receipts, burst_limit }
    }

    /// Answers a request. One handler for all paths: see `routes`.
    pub async fn answer(self: &Arc<Self>, request: Request) -> Response {
        let head = request.method() == http::Method::HEAD;
        let (parts, body) = request.into_parts();
        let upload = Upload::new(&parts.headers, body);
        let (result, unread) = self.respond(parts, upload).await;
        if let Some(unread) = unread {
            unread.discard().await;
        }
        let mut response = result.unwrap_or_else(ApiError::into_response);
        // Answers hold messages and keys, and each is true for its moment only.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if head {
            *response.body_mut() = Body::empty();
        }
        response
    }
}

impl Api {
    /// Refuses a request, after what its client still sends within bounds.
    pub async fn refuse(request: Request, error: ApiError) -> Response {
        let (parts, body) = request.into_parts();
        Upload::new(&parts.headers, body).discard().await;
        error.into_response()
    }

    /// The answer, and what is left of the request's body.
    async fn respond(
        self: &Arc<Self>,
        parts: Parts,
        mut upload: Upload,
    ) -> (Result<Response, ApiError>, Option<Upload>) {
        let found = match self.admit(&parts) {
            Ok(found) => found,
            Err(error) => return (Err(error), Some(upload)),
        };
        let handler = found.handler;
        if handler.runs == Runs::InPlace {
            return (self.call(found, &parts, &mut upload).await, Some(upload));
        }
        let api = Arc::clone(self);
        let task = tokio::spawn(async move { (api.call(found, &parts, &mut upload).await, Some(upload)) });
        // A read ends with its caller: nobody needs it any more.
        let ended =
            if handler.access == Access::Read { AbortOnDropHandle::new(task).await } else { task.await };
        ended.unwrap_or_else(|error| (Err(ApiError::task_failed(&error)), None))
    }

    /// The operation that is asked for, if the caller may.
    fn admit(&self, parts: &Parts) -> Result<Found, ApiError> {
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let found = routes::find(&parts.method, target);
        // Paths of the API are not told apart for those who may not use it.
        let access = found.as_ref().map_or(Access::Read, |found| found.handler.access);
        self.tokens.check(access, &parts.headers, parts.uri.query())?;
        let found = found?;
        self.count_request(access)?;
        Ok(found)
    }

    async fn call(&self, found: Found, parts: &Parts, upload: &mut Upload) -> Result<Response, ApiError> {
        let Found { handler, name, names_before, rest, trailing_slash } = found;
        let query = parts.uri.query().unwrap_or_default();
        (handler.answer)(self, Call { name, names_before, rest, trailing_slash, query, parts, upload }).await
    }

    /// The publisher's address.
    fn caller_ip(&self, parts: &Parts) -> Option<String> {
        let peer = parts.extensions.get::<Peer>()?;
        Some(caller::address(peer.0, &parts.headers, &self.settings.trusted_proxies).to_string())
    }

    async fn readyz(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        let ready = self.operations.readiness().await;
        ready.map_err(|reason| ApiError::unavailable(format!("not ready: {reason}")))?;
        json(StatusCode::OK, &serde_json::json!({ "status": "ready" }))
    }
}

fn alive() -> Result<Response, ApiError> {
    json(StatusCode::OK, &serde_json::json!({ "status": "alive" }))
}

fn root() -> Result<Response, ApiError> {
    json(StatusCode::OK, &serde_json::json!({ "name": "homing", "version": env!("CARGO_PKG_VERSION") }))
}

/// Whether a request asks if the server is alive or ready, which is answered whoever else is there.
pub fn is_health_check<T>(request: &http::Request<T>) -> bool {
    let found = routes::find(request.method(), request.uri().path());
    found.is_ok_and(|found| matches!(found.handler.id, "healthz" | "readyz"))
}

/// A small answer with a JSON body: large ones take a share of the memory, see [`answers`].
fn json(status: StatusCode, body: &impl Serialize) -> Result<Response, ApiError> {
    answers::json(status, body, 0, Share::none())
}
