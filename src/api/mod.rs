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
use http::HeaderValue;
use http::header::CACHE_CONTROL;
use http::request::Parts;
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
pub mod routes;
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
use self::routes::{Route, route};
use crate::domain::gate::FlowChange;
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
        let route = match self.admit(&parts) {
            Ok(route) => route,
            Err(error) => return (Err(error), Some(upload)),
        };
        match &route {
            // A busy server has no worker for another task at once.
            Route::Healthz => return (alive(), Some(upload)),
            // What these store is stored by a task of the engine; they need none of their own.
            Route::Publish { rest } => {
                return (self.publish(None, rest, &parts, &mut upload).await, Some(upload));
            }
            Route::Enqueue { queue, rest } => {
                return (self.publish(Some(queue), rest, &parts, &mut upload).await, Some(upload));
            }
            _ => {}
        }
        let api = Arc::clone(self);
        let only_reads = route.access() == routes::Access::Read;
        let task = tokio::spawn(async move {
            let query = parts.uri.query().unwrap_or_default();
            (api.call(route, query, &parts, &mut upload).await, Some(upload))
        });
        // A caller that hangs up must not stop a step of the database half-way. What only reads, nobody needs any more.
        let ended = if only_reads { AbortOnDropHandle::new(task).await } else { task.await };
        ended.unwrap_or_else(|error| (Err(ApiError::task_failed(&error)), None))
    }

    /// What is asked for, if the caller may.
    fn admit(&self, parts: &Parts) -> Result<Route, ApiError> {
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let query = parts.uri.query();
        let route = route(&parts.method, target);
        // Paths of the API are not told apart for those who may not use it.
        let access = route.as_ref().map_or(routes::Access::Read, Route::access);
        self.tokens.check(access, &parts.headers, query)?;
        let route = route?;
        self.count_request(&route)?;
        Ok(route)
    }

    async fn call(
        &self,
        route: Route,
        query: &str,
        parts: &Parts,
        upload: &mut Upload,
    ) -> Result<Response, ApiError> {
        match route {
            Route::Publish { rest } => self.publish(None, &rest, parts, upload).await,
            Route::Enqueue { queue, rest } => self.publish(Some(&queue), &rest, parts, upload).await,
            Route::Batch => self.batch(parts, upload).await,
            Route::GetMessage { id } => self.get_message(&id).await,
            Route::CancelMessage { id } => self.cancel_message(&id).await,
            Route::CancelMessages { trailing_slash } => {
                self.cancel_messages(query, trailing_slash, upload).await
            }
            Route::ListDeadLetters => self.list_dead_letters(query).await,
            Route::DeleteDeadLetters { trailing_slash } => {
                self.delete_dead_letters(query, trailing_slash, upload).await
            }
            Route::GetDeadLetter { id } => self.get_dead_letter(&id).await,
            Route::DeleteDeadLetter { id } => self.delete_dead_letter(&id).await,
            Route::RetryDeadLetter { id } => self.retry_dead_letter(&id, query, &parts.headers).await,
            Route::RetryDeadLetters { trailing_slash } => {
                self.retry_dead_letters(query, trailing_slash, &parts.headers, upload).await
            }
            Route::ListEvents => self.list_log(query, log::Form::Events).await,
            Route::ListLogs => self.list_log(query, log::Form::Logs).await,
            Route::CreateSchedule { rest } => self.create_schedule(&rest, parts, upload).await,
            Route::ListSchedules => self.list_schedules().await,
            Route::GetSchedule { id } => self.get_schedule(&id).await,
            Route::DeleteSchedule { id } => self.delete_schedule(&id).await,
            Route::PauseSchedule { id } => self.pause_schedule(&id).await,
            Route::ResumeSchedule { id } => self.resume_schedule(&id).await,
            Route::ListUrlGroups => self.list_url_groups().await,
            Route::GetUrlGroup { name } => self.get_url_group(&name).await,
            Route::SetUrlGroupHeaders { name } => self.set_url_group_headers(&name, upload).await,
            Route::DeleteUrlGroup { name } => self.delete_url_group(&name).await,
            Route::UpsertEndpoints { name } => self.upsert_endpoints(&name, upload).await,
            Route::RemoveEndpoints { name } => self.remove_endpoints(&name, upload).await,
            Route::ListQueues => self.list_queues().await,
            Route::UpsertQueue => self.upsert_queue(upload).await,
            Route::GetQueue { name } => self.get_queue(&name).await,
            Route::DeleteQueue { name } => self.delete_queue(&name).await,
            Route::PauseQueue { name } => self.pause_queue(&name, true).await,
            Route::ResumeQueue { name } => self.pause_queue(&name, false).await,
            Route::ListFlowKeys => self.list_flow_keys(query).await,
            Route::GetFlowKey { key } => self.get_flow_key(&key).await,
            Route::PauseFlowKey { key } => self.change_flow_key(&key, &FlowChange::Pause).await,
            Route::ResumeFlowKey { key } => self.change_flow_key(&key, &FlowChange::Resume).await,
            Route::PinFlowKey { key } => self.pin_flow_key(&key, query).await,
            Route::UnpinFlowKey { key } => self.unpin_flow_key(&key, query).await,
            Route::ResetFlowRate { key } => self.change_flow_key(&key, &FlowChange::ResetRate).await,
            Route::GetParallelism => self.get_parallelism(),
            Route::GetKeys => self.get_keys(),
            Route::RotateKeys => self.rotate_keys().await,
            Route::Healthz => alive(),
            Route::Readyz => self.readyz().await,
            Route::OpenApi => Ok(openapi::document()),
            Route::Root => json(
                http::StatusCode::OK,
                &serde_json::json!({ "name": "homing", "version": env!("CARGO_PKG_VERSION") }),
            ),
        }
    }

    async fn readyz(&self) -> Result<Response, ApiError> {
        let ready = self.engine.readiness().await;
        ready.map_err(|reason| ApiError::unavailable(format!("not ready: {reason}")))?;
        json(http::StatusCode::OK, &serde_json::json!({ "status": "ready" }))
    }
}

/// Whether a request asks if the server is alive or ready, which is answered whoever else is there.
pub fn is_health_check<T>(request: &http::Request<T>) -> bool {
    matches!(route(request.method(), request.uri().path()), Ok(Route::Healthz | Route::Readyz))
}

fn alive() -> Result<Response, ApiError> {
    json(http::StatusCode::OK, &serde_json::json!({ "status": "alive" }))
}

/// A small answer with a JSON body: large ones take a share of the memory, see [`answers`].
fn json(status: http::StatusCode, body: &impl Serialize) -> Result<Response, ApiError> {
    answers::json(status, body, 0, Share::none())
}
