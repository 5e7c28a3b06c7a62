//! The route table: which path and method mean which operation, who may call it, and what answers it. Works on the raw
//! request target.
//!
//! The fixed words of a path match in any case. Surplus slashes around them don't count, which a base URL that ends in one
//! leaves, nor does a trailing slash. Names and ids are taken as they are (percent-decoded once), and nothing of a
//! destination is touched. Nothing here redirects.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::pin::Pin;

use axum::response::Response;
use http::Method;
use http::request::Parts;
use percent_encoding::percent_decode_str;

use super::Api;
use super::body::Upload;
use super::error::ApiError;
use crate::domain::destination::is_url;

/// Whom an operation needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Anyone, without a token.
    Public,
    /// Any token.
    Read,
    /// A token that may write; also for operations that show secrets.
    Full,
    /// A token that may write. The messages that a request brings count towards their own quota, not as a request.
    Publish,
}

/// Where an operation runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Runs {
    /// In the connection's task. It touches no database, or leaves that to a task of the engine; and a busy server has no
    /// worker for another task at once.
    InPlace,
    /// In a task of its own: a caller that hangs up must not stop a step of the database half-way.
    InTask,
}

/// One operation: its method at a path, and what answers it.
#[derive(Clone, Copy)]
pub(super) struct Handler {
    method: &'static str,
    /// The operation's id in the `OpenAPI` document.
    pub(super) id: &'static str,
    pub(super) access: Access,
    pub(super) runs: Runs,
    pub(super) answer: Answer,
}

/// Answers a call.
type Answer = for<'a> fn(&'a Api, Call<'a>) -> Answering<'a>;
type Answering<'a> = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send + 'a>>;

/// A request to an operation.
pub(super) struct Call<'a> {
    /// The name, id or key in the path, decoded, the last one if there are several; empty where the path has none.
    pub(super) name: String,
    /// The names before that one, in order.
    pub(super) names_before: Vec<String>,
    /// The destination with its query, raw; empty where the path has none.
    pub(super) rest: String,
    /// Whether the path ends in a slash, which is what an empty id leaves.
    pub(super) trailing_slash: bool,
    pub(super) query: &'a str,
    pub(super) parts: &'a Parts,
    pub(super) upload: &'a mut Upload,
}

impl<'a> Call<'a> {
    /// The request's header fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
    }
}

/// The operation that a request asks for, and what stands in its path: see [`Call`].
pub(super) struct Found {
    pub(super) handler: &'static Handler,
    pub(super) name: String,
    pub(super) names_before: Vec<String>,
    pub(super) rest: String,
    pub(super) trailing_slash: bool,
}

/// Why no operation was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RouteError {
    /// 404.
    Unknown,
    /// 405, with the methods that the path knows.
    Method { allow: String },
}

/// A path, and the operations there.
struct Route {
    path: Path,
    handlers: &'static [Handler],
}

/// A form of paths. The first one in the table that fits a path decides, but for [`Path::KeyAnd`].
enum Path {
    /// Words, and `{}` for a name or an id.
    Words(&'static str),
    /// Words, then a destination.
    Destination(&'static str),
    /// Words, a queue's name, then a destination.
    QueueAndDestination(&'static str),
    /// Words, then a destination that is no id with `pause` or `resume` behind it.
    NewSchedule(&'static str),
    /// A flow-control key, which is free text and stands in the path as it is: with slashes, or like another route.
    Key,
    /// A flow-control key, then this word. A key may end in such a word, so the search goes on where the method doesn't
    /// fit.
    KeyAnd(&'static str),
}

const fn handler(method: &'static str, id: &'static str, access: Access, answer: Answer) -> Handler {
    Handler { method, id, access, runs: Runs::InTask, answer }
}

/// An operation that only reads.
const fn get(id: &'static str, answer: Answer) -> Handler {
    handler("GET", id, Access::Read, answer)
}

const fn post(id: &'static str, answer: Answer) -> Handler {
    handler("POST", id, Access::Full, answer)
}

const fn patch(id: &'static str, answer: Answer) -> Handler {
    handler("PATCH", id, Access::Full, answer)
}

const fn delete(id: &'static str, answer: Answer) -> Handler {
    handler("DELETE", id, Access::Full, answer)
}

impl Handler {
    /// The operation with other needs.
    const fn needs(self, access: Access) -> Self {
        Self { access, ..self }
    }

    const fn in_place(self) -> Self {
        Self { runs: Runs::InPlace, ..self }
    }
}

const fn at(path: Path, handlers: &'static [Handler]) -> Route {
    Route { path, handlers }
}

/// The method of [`Api`] that answers.
macro_rules! by {
    ($method:ident) => {
        |api, call| Box::pin(api.$method(call))
    };
}

/// An answer that waits for nothing.
macro_rules! at_once {
    (|$api:ident| $answer:expr) => {
        |$api, _call| Box::pin(std::future::ready($answer))
    };
}

/// `POST /v2/schedules/…`. It stands beside those with an id as well, since such a path knows the method.
const CREATE_SCHEDULE: Handler = post("createSchedule", by!(create_schedule));

/// All operations.
static ROUTES: &[Route] = {
    use Access::{Full, Public, Publish};
    use Path::{Destination, Key, KeyAnd, NewSchedule, QueueAndDestination, Words};
    &[
        at(Destination("/v2/publish"), &[post("publish", by!(publish)).needs(Publish).in_place()]),
        at(QueueAndDestination("/v2/enqueue"), &[post("enqueue", by!(enqueue)).needs(Publish).in_place()]),
        at(Words("v2/batch"), &[post("batch", by!(batch)).needs(Publish)]),
        at(Words("healthz"), &[get("healthz", at_once!(|_api| super::alive())).needs(Public).in_place()]),
        at(Words("readyz"), &[get("readyz", by!(readyz)).needs(Public)]),
        at(
            Words("openapi.json"),
            &[get("openapi", at_once!(|_api| Ok(super::openapi::document()))).needs(Public)],
        ),
        at(Words(""), &[get("root", at_once!(|_api| super::root())).needs(Public)]),
        at(
            Words("v2/messages/{}"),
            &[get("getMessage", by!(get_message)), delete("cancelMessage", by!(cancel_message))],
        ),
        at(Words("v2/messages"), &[delete("cancelMessages", by!(cancel_messages))]),
        at(
            Words("v2/dlq"),
            &[
                get("listDeadLetters", by!(list_dead_letters)),
                delete("deleteDeadLetters", by!(delete_dead_letters)),
            ],
        ),
        at(Words("v2/dlq/retry"), &[post("retryDeadLetters", by!(retry_dead_letters))]),
        at(Words("v2/dlq/retry/{}"), &[post("retryDeadLetter", by!(retry_dead_letter))]),
        at(
            Words("v2/dlq/{}"),
            &[
                get("getDeadLetter", by!(get_dead_letter)),
                delete("deleteDeadLetter", by!(delete_dead_letter)),
            ],
        ),
        at(Words("v2/events"), &[get("listEvents", by!(list_events))]),
        at(Words("v2/logs"), &[get("listLogs", by!(list_logs))]),
        at(NewSchedule("/v2/schedules"), &[CREATE_SCHEDULE]),
        at(Words("v2/schedules"), &[get("listSchedules", by!(list_schedules))]),
        at(
            Words("v2/schedules/{}"),
            &[
                get("getSchedule", by!(get_schedule)),
                CREATE_SCHEDULE,
                delete("deleteSchedule", by!(delete_schedule)),
            ],
        ),
        // The SDKs send PATCH, the documentation says POST.
        at(
            Words("v2/schedules/{}/pause"),
            &[post("pauseScheduleByPost", by!(pause_schedule)), patch("pauseSchedule", by!(pause_schedule))],
        ),
        at(
            Words("v2/schedules/{}/resume"),
            &[
                post("resumeScheduleByPost", by!(resume_schedule)),
                patch("resumeSchedule", by!(resume_schedule)),
            ],
        ),
        at(Words("v2/topics"), &[get("listUrlGroups", by!(list_url_groups))]),
        at(
            Words("v2/topics/{}"),
            &[
                get("getUrlGroup", by!(get_url_group)),
                patch("updateUrlGroup", by!(set_url_group_headers)),
                delete("deleteUrlGroup", by!(delete_url_group)),
            ],
        ),
        at(
            Words("v2/topics/{}/endpoints"),
            &[
                post("upsertEndpoints", by!(upsert_endpoints)),
                delete("removeEndpoints", by!(remove_endpoints)),
            ],
        ),
        at(
            Words("v2/queues"),
            &[get("listQueues", by!(list_queues)), post("upsertQueue", by!(upsert_queue))],
        ),
        at(
            Words("v2/queues/{}"),
            &[get("getQueue", by!(get_queue)), delete("deleteQueue", by!(delete_queue))],
        ),
        at(Words("v2/queues/{}/pause"), &[post("pauseQueue", by!(pause_queue))]),
        at(Words("v2/queues/{}/resume"), &[post("resumeQueue", by!(resume_queue))]),
        at(Words("v2/flowControl"), &[get("listFlowControl", by!(list_flow_keys))]),
        at(KeyAnd("pause"), &[post("pauseFlowControl", by!(pause_flow_key))]),
        at(KeyAnd("resume"), &[post("resumeFlowControl", by!(resume_flow_key))]),
        at(KeyAnd("pin"), &[post("pinFlowControl", by!(pin_flow_key))]),
        at(KeyAnd("unpin"), &[post("unpinFlowControl", by!(unpin_flow_key))]),
        at(KeyAnd("resetRate"), &[post("resetRateFlowControl", by!(reset_flow_rate))]),
        at(KeyAnd("reset"), &[post("resetFlowControl", by!(reset_flow_rate))]),
        at(Key, &[get("getFlowControl", by!(get_flow_key))]),
        at(
            Words("v2/globalParallelism"),
            &[get("getGlobalParallelism", at_once!(|api| api.get_parallelism()))],
        ),
        at(Words("v2/keys"), &[get("getKeys", at_once!(|api| api.get_keys())).needs(Full)]),
        at(Words("v2/keys/rotate"), &[post("rotateKeys", by!(rotate_keys))]),
        at(Words("v2/rotate"), &[post("rotateKeysShort", by!(rotate_keys))]),
        at(Destination("/v2/trigger"), &[post("triggerWorkflow", by!(trigger)).needs(Publish)]),
        at(Words("v2/batch/trigger"), &[post("batchTriggerWorkflow", by!(batch_trigger)).needs(Publish)]),
        at(Words("v2/wait/{}"), &[post("waitForEvent", by!(wait_for_event))]),
        at(Words("v2/notify/{}"), &[post("notify", by!(notify))]),
        at(Words("v2/notify/{}/{}"), &[post("notifyRun", by!(notify_run))]),
        at(Words("v2/waiters/{}"), &[get("listWaiters", by!(list_waiters))]),
        // Whoever knows the path may call it, by any method.
        at(
            Words("v2/workflows/hooks/{}/{}/{}"),
            &[
                handler("GET", "getHook", Public, by!(call_hook)),
                handler("POST", "postHook", Public, by!(call_hook)),
                handler("PUT", "putHook", Public, by!(call_hook)),
                handler("PATCH", "patchHook", Public, by!(call_hook)),
                handler("DELETE", "deleteHook", Public, by!(call_hook)),
            ],
        ),
        at(Words("v2/workflows/runs"), &[delete("cancelWorkflowRuns", by!(cancel_workflow_runs))]),
        at(
            Words("v2/workflows/runs/{}"),
            &[get("getWorkflowRun", by!(get_workflow_run)), delete("endWorkflowRun", by!(end_workflow_run))],
        ),
        at(Words("v2/workflows/logs"), &[get("listWorkflowLogs", by!(list_workflow_logs))]),
        at(Words("v2/workflows/events"), &[get("listWorkflowEvents", by!(list_workflow_events))]),
        at(Words("v2/workflows/messageLogs"), &[get("listWorkflowMessages", by!(list_workflow_messages))]),
        at(
            Words("v2/workflows/dlq"),
            &[
                get("listRunLetters", by!(list_run_letters)),
                delete("deleteRunLetters", by!(delete_run_letters)),
            ],
        ),
        at(Words("v2/workflows/dlq/resume"), &[post("resumeRuns", by!(resume_runs))]),
        at(Words("v2/workflows/dlq/resume/{}"), &[post("resumeRun", by!(resume_run))]),
        at(Words("v2/workflows/dlq/restart"), &[post("restartRuns", by!(restart_runs))]),
        at(Words("v2/workflows/dlq/restart/{}"), &[post("restartRun", by!(restart_run))]),
        at(
            Words("v2/workflows/dlq/callback/{}"),
            &[
                post("callFailureFunction", by!(call_failure_function)),
                delete("cancelFailureFunction", by!(cancel_failure_function)),
            ],
        ),
        at(
            Words("v2/workflows/dlq/{}"),
            &[get("getRunLetter", by!(get_run_letter)), delete("deleteRunLetter", by!(delete_run_letter))],
        ),
        at(Words("homing/v1/messages/{}/explain"), &[get("explainMessage", by!(explain_message))]),
        at(Words("homing/v1/messages/count"), &[get("countMessages", by!(count_messages))]),
        at(Words("homing/v1/dlq/count"), &[get("countDeadLetters", by!(count_dead_letters))]),
    ]
};

/// The ids of all operations.
#[cfg(test)]
pub(super) fn ids() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().flat_map(|route| route.handlers).map(|handler| handler.id)
}

/// Finds the operation of a method and a raw request target (path and query).
pub(super) fn find(method: &Method, target: &str) -> Result<Found, RouteError> {
    let target = &*without_surplus_slashes(target);
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    let mut refused = None;
    for route in ROUTES {
        let Some((mut names, rest)) = route.path.capture(method, target, path) else { continue };
        if let Some(handler) = route.handlers.iter().find(|handler| handler.method == method) {
            let trailing_slash = path.len() > 1 && path.ends_with('/');
            let name = names.pop().unwrap_or_default();
            return Ok(Found { handler, name, names_before: names, rest, trailing_slash });
        }
        refused.get_or_insert_with(|| RouteError::Method { allow: route.allow() });
        if !matches!(route.path, Path::KeyAnd(_)) {
            break;
        }
    }
    Err(refused.unwrap_or(RouteError::Unknown))
}

impl Route {
    /// The methods that the path knows, as `Allow` has them.
    fn allow(&self) -> String {
        let methods = self.handlers.iter().map(|handler| match handler.method {
            "GET" => "GET, HEAD",
            other => other,
        });
        methods.collect::<Vec<_>>().join(", ")
    }
}

impl Path {
    /// The names and the destination in a path of this form; `None`: it has another form.
    fn capture(&self, method: &str, target: &str, path: &str) -> Option<(Vec<String>, String)> {
        // No destination begins with a slash.
        let after = |words: &str| after_words(target, words).map(|rest| rest.trim_start_matches('/'));
        let key = || after_words(path, "/v2/flowControl").filter(|rest| !rest.is_empty());
        match self {
            Self::Words(words) => Some((capture_names(words, path)?, String::new())),
            Self::Destination(words) => Some((Vec::new(), after(words)?.to_owned())),
            Self::QueueAndDestination(words) => {
                let (queue, rest) = split_name(after(words)?);
                Some((vec![queue], rest.trim_start_matches('/').to_owned()))
            }
            Self::NewSchedule(words) => {
                let rest = after(words)?;
                let is_new = is_url(rest) || method == "POST" && is_new_schedule(rest);
                is_new.then(|| (Vec::new(), rest.to_owned()))
            }
            Self::Key => Some((vec![decode_name(key()?)?], String::new())),
            Self::KeyAnd(action) => {
                let rest = key()?;
                let (key, word) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once('/')?;
                if word.eq_ignore_ascii_case(action) {
                    Some((vec![decode_name(key)?], String::new()))
                } else {
                    None
                }
            }
        }
    }
}

/// The names in a path of these words; `None`: the path has other words.
fn capture_names(words: &str, path: &str) -> Option<Vec<String>> {
    let (mut words, mut steps, mut names) = (steps(words), steps(path), Vec::new());
    loop {
        match (words.next(), steps.next()) {
            (None, None) => return Some(names),
            (Some("{}"), Some(step)) => names.push(decode_name(step)?),
            (Some(word), Some(step)) if word.eq_ignore_ascii_case(step) => {}
            _ => return None,
        }
    }
}

/// The parts of a path between its slashes.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|step| !step.is_empty())
}

/// A name, id or key, decoded once. None has control characters, for which not every database can be asked.
fn decode_name(raw: &str) -> Option<String> {
    let name = percent_decode_str(raw).decode_utf8_lossy();
    (!name.contains(|c: char| c.is_ascii_control())).then(|| name.into_owned())
}

/// The target with one slash before `v2` and one after it.
fn without_surplus_slashes(target: &str) -> Cow<'_, str> {
    let from_version = target.trim_start_matches('/');
    let Some(rest) = from_version
        .get(..3)
        .and_then(|word| word.eq_ignore_ascii_case("v2/").then(|| from_version[3..].trim_start_matches('/')))
    else {
        return Cow::Borrowed(target);
    };
    if target.len() == rest.len() + "/v2/".len() {
        Cow::Borrowed(target)
    } else {
        Cow::Owned(format!("/v2/{rest}"))
    }
}

/// Whether the rest of a POST to `/v2/schedules/` is a destination, and not an id with an action: `pause` or `resume`.
fn is_new_schedule(rest: &str) -> bool {
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let is_action = |word: &str| word.eq_ignore_ascii_case("pause") || word.eq_ignore_ascii_case("resume");
    !matches!(*segments.as_slice(), [_, word] if is_action(word))
}

/// The rest of a target after words (in any case) and their slash; empty when nothing follows.
fn after_words<'a>(target: &'a str, words: &str) -> Option<&'a str> {
    let head = target.get(..words.len())?;
    if !head.eq_ignore_ascii_case(words) {
        return None;
    }
    match &target[words.len()..] {
        "" => Some(""),
        rest => rest.strip_prefix('/').or_else(|| rest.starts_with('?').then_some(rest)),
    }
}

/// The name up to the next slash or query, decoded, and what follows the slash, raw.
fn split_name(rest: &str) -> (String, &str) {
    let (name, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
    (name, rest.strip_prefix('/').unwrap_or(rest))
}
