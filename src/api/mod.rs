//! The wire contract coming in: routes, authentication, the JSON of answers and errors.
//!
//! It works on the raw request target, since destinations stand in paths unencoded: a router that decodes or normalises
//! would change them. It knows the engine only as the handle that accepts messages, and reads lists from the store.

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
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

mod answers;
pub mod auth;
mod batch;
mod body;
mod caller;
mod dead_letters;
pub mod error;
mod filter;
mod flow_control;
pub mod headers;
mod keys;
mod log;
mod messages;
mod openapi;
mod publish;
mod query;
mod queues;
mod quota;
mod routes;
mod schedules;
mod url_groups;
#[doc(hidden)] // public for the benchmarks
pub mod wire;

use self::answers::{AnswerMemory, Share};
use self::auth::Tokens;
use self::body::Upload;
use self::error::ApiError;
use self::headers::Limits;
use self::quota::{BurstLimit, DailyQuota};
use self::routes::{Access, Call, Found, Runs};
use crate::egress::policy::Policy;
use crate::engine::Engine;
use crate::store::url_groups::UrlGroupLimits;

/// The address of the client at the other end of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// What must arrive of a request's body, or be taken of an answer, within the time limit for it, if it doesn't end.
pub(crate) const LEAST: usize = 16 << 10;

/// Bytes of headers and bodies, of messages and responses, in one page of dead letters or of groups of log entries; a page ends early when it
/// would hold more. Until it is JSON, a page takes several times as much.
const PAGE_BYTES: usize = 4 << 20;

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
    /// Bytes of request bodies in memory at once.
    pub max_body_memory: usize,
    /// Time for a body to arrive.
    pub body_timeout: Duration,
    /// Time in which some of a body must arrive.
    pub stall_timeout: Duration,
    /// Bytes of large answers in memory at once.
    pub max_answer_memory: usize,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How long a deduplication key is held.
    pub deduplication_window: Duration,
    /// The most schedules; `None`: no limit.
    pub max_schedules: Option<u32>,
    /// Messages in a day; `None`: no limit.
    pub max_messages_per_day: Option<u64>,
    /// Requests in a second other than those that publish; `None`: no limit.
    pub max_requests_per_second: Option<u64>,
    pub url_groups: UrlGroupLimits,
    /// Where messages to `api/llm` go; `None`: they are refused.
    pub llm_url: Option<String>,
    /// The most queues; `None`: no limit.
    pub max_queues: Option<u32>,
    /// The highest parallelism of a queue; `None`: no limit.
    pub max_queue_parallelism: Option<u32>,
}

/// What the handlers share.
pub struct Api {
    settings: Settings,
    tokens: Tokens,
    policy: Arc<Policy>,
    engine: Arc<Engine>,
    body_memory: Arc<Semaphore>,
    /// For what is read.
    answers: AnswerMemory,
    /// For what tells that messages were stored, which must not wait for those who only read.
    receipts: AnswerMemory,
    daily_quota: Option<DailyQuota>,
    burst_limit: Option<BurstLimit>,
}

impl Api {
    /// The API on a running engine.
    pub fn new(settings: Settings, tokens: Tokens, policy: Arc<Policy>, engine: Arc<Engine>) -> Self {
        let body_memory = Arc::new(Semaphore::new(body::kib(settings.max_body_memory) as usize));
        let answers = AnswerMemory::new(settings.max_answer_memory);
        let receipts = AnswerMemory::new(RECEIPT_MEMORY);
        let daily_quota = settings.max_messages_per_day.map(DailyQuota::new);
        let burst_limit = settings.max_requests_per_second.map(BurstLimit::new);
        Self { settings, tokens, policy, engine, body_memory, answers, receipts, daily_quota, burst_limit }
    }

    /// Answers a request. One handler for all paths: see [`routes`].
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
        let Found { handler, name, rest, trailing_slash } = found;
        let query = parts.uri.query().unwrap_or_default();
        (handler.answer)(self, Call { name, rest, trailing_slash, query, parts, upload }).await
    }

    async fn healthz(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        json(StatusCode::OK, &serde_json::json!({ "status": "alive" }))
    }

    async fn readyz(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        let ready = self.engine.readiness().await;
        ready.map_err(|reason| ApiError::unavailable(format!("not ready: {reason}")))?;
        json(StatusCode::OK, &serde_json::json!({ "status": "ready" }))
    }

    async fn root(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        json(StatusCode::OK, &serde_json::json!({ "name": "homing", "version": env!("CARGO_PKG_VERSION") }))
    }

    async fn openapi(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        Ok(openapi::document())
    }
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
