//! The route table: which path and method mean what, and who may call it. Works on the raw request target.
//!
//! The fixed words of a path match in any case. Surplus slashes around them don't count, which a base URL that ends in one
//! leaves, nor does a trailing slash. Names and ids are taken as they are (percent-decoded once), and nothing of a
//! destination is touched. Nothing here redirects.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::domain::destination::is_url;

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// `POST /v2/publish/…`; what follows, raw, query included.
    Publish {
        rest: String,
    },
    /// `POST /v2/enqueue/{queue}/…`; what follows the queue's name, raw, query included.
    Enqueue {
        queue: String,
        rest: String,
    },
    Batch,
    GetMessage {
        id: String,
    },
    CancelMessage {
        id: String,
    },
    /// With nothing else, all; but not with a trailing slash, which is what an empty id leaves.
    CancelMessages {
        trailing_slash: bool,
    },
    ListDeadLetters,
    /// As [`Route::CancelMessages`].
    DeleteDeadLetters {
        trailing_slash: bool,
    },
    GetDeadLetter {
        id: String,
    },
    DeleteDeadLetter {
        id: String,
    },
    RetryDeadLetter {
        id: String,
    },
    /// As [`Route::CancelMessages`].
    RetryDeadLetters {
        trailing_slash: bool,
    },
    /// `GET /v2/events`: pages of 1000, in `events`.
    ListEvents,
    /// `GET /v2/logs`: the same in pages of 100, in `logs` too.
    ListLogs,
    /// `POST /v2/schedules/…`; what follows, raw, query included.
    CreateSchedule {
        rest: String,
    },
    ListSchedules,
    GetSchedule {
        id: String,
    },
    DeleteSchedule {
        id: String,
    },
    PauseSchedule {
        id: String,
    },
    ResumeSchedule {
        id: String,
    },
    /// `/v2/topics`, as all that follow.
    ListUrlGroups,
    GetUrlGroup {
        name: String,
    },
    SetUrlGroupHeaders {
        name: String,
    },
    DeleteUrlGroup {
        name: String,
    },
    UpsertEndpoints {
        name: String,
    },
    RemoveEndpoints {
        name: String,
    },
    ListQueues,
    UpsertQueue,
    GetQueue {
        name: String,
    },
    DeleteQueue {
        name: String,
    },
    PauseQueue {
        name: String,
    },
    ResumeQueue {
        name: String,
    },
    ListFlowKeys,
    GetFlowKey {
        key: String,
    },
    PauseFlowKey {
        key: String,
    },
    ResumeFlowKey {
        key: String,
    },
    PinFlowKey {
        key: String,
    },
    UnpinFlowKey {
        key: String,
    },
    /// `/resetRate`, and `/reset`.
    ResetFlowRate {
        key: String,
    },
    GetParallelism,
    GetKeys,
    RotateKeys,
    Healthz,
    Readyz,
    OpenApi,
    Root,
}

/// What a caller must be allowed to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Anyone, without a token.
    Public,
    /// Any token.
    Read,
    /// A token that may write; also for what shows secrets.
    Full,
}

/// Why no route was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteError {
    /// 404.
    Unknown,
    /// 405, with the methods that the path knows.
    Method { allow: &'static str },
}

impl Route {
    /// Whether it publishes: what a quota on messages counts.
    pub const fn brings_messages(&self) -> bool {
        matches!(self, Self::Publish { .. } | Self::Enqueue { .. } | Self::Batch)
    }

    /// Who may call it.
    pub const fn access(&self) -> Access {
        match self {
            Self::Healthz | Self::Readyz | Self::OpenApi | Self::Root => Access::Public,
            Self::GetMessage { .. }
            | Self::ListDeadLetters
            | Self::GetDeadLetter { .. }
            | Self::ListEvents
            | Self::ListLogs
            | Self::ListSchedules
            | Self::GetSchedule { .. }
            | Self::ListUrlGroups
            | Self::GetUrlGroup { .. }
            | Self::ListQueues
            | Self::GetQueue { .. }
            | Self::ListFlowKeys
            | Self::GetFlowKey { .. }
            | Self::GetParallelism => Access::Read,
            Self::Publish { .. }
            | Self::Enqueue { .. }
            | Self::Batch
            | Self::CancelMessage { .. }
            | Self::CancelMessages { .. }
            | Self::DeleteDeadLetters { .. }
            | Self::DeleteDeadLetter { .. }
            | Self::RetryDeadLetter { .. }
            | Self::CreateSchedule { .. }
            | Self::DeleteSchedule { .. }
            | Self::PauseSchedule { .. }
            | Self::ResumeSchedule { .. }
            | Self::RetryDeadLetters { .. }
            | Self::SetUrlGroupHeaders { .. }
            | Self::DeleteUrlGroup { .. }
            | Self::UpsertEndpoints { .. }
            | Self::RemoveEndpoints { .. }
            | Self::UpsertQueue
            | Self::DeleteQueue { .. }
            | Self::PauseQueue { .. }
            | Self::ResumeQueue { .. }
            | Self::PauseFlowKey { .. }
            | Self::ResumeFlowKey { .. }
            | Self::PinFlowKey { .. }
            | Self::UnpinFlowKey { .. }
            | Self::ResetFlowRate { .. }
            | Self::GetKeys
            | Self::RotateKeys => Access::Full,
        }
    }
}

/// The route of a path in which something stands as it is, unencoded.
fn raw_route(method: &Method, target: &str) -> Option<Result<Route, RouteError>> {
    let post = |route: Route| Some(only(method, &[(Method::POST, route)], "POST"));
    // No destination begins with a slash.
    let trimmed = |rest: &'static str| after_words(target, rest).map(|rest| rest.trim_start_matches('/'));
    if let Some(rest) = trimmed("/v2/publish") {
        return post(Route::Publish { rest: rest.to_owned() });
    }
    if let Some(rest) = trimmed("/v2/enqueue") {
        let (queue, rest) = split_name(rest);
        return post(Route::Enqueue { queue, rest: rest.trim_start_matches('/').to_owned() });
    }
    let rest = trimmed("/v2/schedules")?;
    if is_url(rest) || *method == Method::POST && is_new_schedule(rest) {
        return post(Route::CreateSchedule { rest: rest.to_owned() });
    }
    None
}

/// Finds the route of a method and a raw request target (path and query).
pub fn route(method: &Method, target: &str) -> Result<Route, RouteError> {
    let target = &*without_surplus_slashes(target);
    if let Some(found) = raw_route(method, target) {
        return found;
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    if path.contains('%') && percent_decode_str(path).any(|byte| byte.is_ascii_control()) {
        // No name or id has such characters, and not every database can be asked for them.
        return Err(RouteError::Unknown);
    }
    if let Some(rest) = after_words(path, "/v2/flowControl").filter(|rest| !rest.is_empty()) {
        return flow_control(method, rest);
    }
    let trailing_slash = path.len() > 1 && path.ends_with('/');
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let words: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let id = |index: usize| {
        segments
            .get(index)
            .map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned())
            .unwrap_or_default()
    };
    let get = Method::GET;
    let post = Method::POST;
    let delete = Method::DELETE;
    let patch = Method::PATCH;
    match *words.as_slice() {
        [] => only(method, &[(get, Route::Root)], "GET, HEAD"),
        ["healthz"] => only(method, &[(get, Route::Healthz)], "GET, HEAD"),
        ["readyz"] => only(method, &[(get, Route::Readyz)], "GET, HEAD"),
        ["v2", "messages"] => only(method, &[(delete, Route::CancelMessages { trailing_slash })], "DELETE"),
        ["openapi.json"] => only(method, &[(get, Route::OpenApi)], "GET, HEAD"),
        ["v2", "batch"] => only(method, &[(post, Route::Batch)], "POST"),
        ["v2", "messages", _] => only(
            method,
            &[(get, Route::GetMessage { id: id(2) }), (delete, Route::CancelMessage { id: id(2) })],
            "GET, HEAD, DELETE",
        ),
        ["v2", "dlq"] => only(
            method,
            &[(get, Route::ListDeadLetters), (delete, Route::DeleteDeadLetters { trailing_slash })],
            "GET, HEAD, DELETE",
        ),
        ["v2", "dlq", "retry"] => only(method, &[(post, Route::RetryDeadLetters { trailing_slash })], "POST"),
        ["v2", "dlq", "retry", _] => only(method, &[(post, Route::RetryDeadLetter { id: id(3) })], "POST"),
        ["v2", "dlq", _] => only(
            method,
            &[(get, Route::GetDeadLetter { id: id(2) }), (delete, Route::DeleteDeadLetter { id: id(2) })],
            "GET, HEAD, DELETE",
        ),
        ["v2", "events"] => only(method, &[(get, Route::ListEvents)], "GET, HEAD"),
        ["v2", "logs"] => only(method, &[(get, Route::ListLogs)], "GET, HEAD"),
        ["v2", "schedules"] => only(method, &[(get, Route::ListSchedules)], "GET, HEAD"),
        ["v2", "schedules", _] => only(
            method,
            &[(get, Route::GetSchedule { id: id(2) }), (delete, Route::DeleteSchedule { id: id(2) })],
            "GET, HEAD, POST, DELETE",
        ),
        // The SDKs send PATCH, the documentation says POST.
        ["v2", "schedules", _, "pause"] => {
            let route = Route::PauseSchedule { id: id(2) };
            only(method, &[(post, route.clone()), (Method::PATCH, route)], "POST, PATCH")
        }
        ["v2", "schedules", _, "resume"] => {
            let route = Route::ResumeSchedule { id: id(2) };
            only(method, &[(post, route.clone()), (Method::PATCH, route)], "POST, PATCH")
        }
        ["v2", "topics"] => only(method, &[(get, Route::ListUrlGroups)], "GET, HEAD"),
        ["v2", "topics", _] => only(
            method,
            &[
                (get, Route::GetUrlGroup { name: id(2) }),
                (patch, Route::SetUrlGroupHeaders { name: id(2) }),
                (delete, Route::DeleteUrlGroup { name: id(2) }),
            ],
            "GET, HEAD, PATCH, DELETE",
        ),
        ["v2", "topics", _, "endpoints"] => only(
            method,
            &[
                (post, Route::UpsertEndpoints { name: id(2) }),
                (delete, Route::RemoveEndpoints { name: id(2) }),
            ],
            "POST, DELETE",
        ),
        ["v2", "queues"] => {
            only(method, &[(get, Route::ListQueues), (post, Route::UpsertQueue)], "GET, HEAD, POST")
        }
        ["v2", "queues", _] => only(
            method,
            &[(get, Route::GetQueue { name: id(2) }), (delete, Route::DeleteQueue { name: id(2) })],
            "GET, HEAD, DELETE",
        ),
        ["v2", "queues", _, "pause"] => only(method, &[(post, Route::PauseQueue { name: id(2) })], "POST"),
        ["v2", "queues", _, "resume"] => only(method, &[(post, Route::ResumeQueue { name: id(2) })], "POST"),
        ["v2", "flowcontrol"] => only(method, &[(get, Route::ListFlowKeys)], "GET, HEAD"),
        ["v2", "globalparallelism"] => only(method, &[(get, Route::GetParallelism)], "GET, HEAD"),
        ["v2", "keys"] => only(method, &[(get, Route::GetKeys)], "GET, HEAD"),
        ["v2", "keys", "rotate"] | ["v2", "rotate"] => only(method, &[(post, Route::RotateKeys)], "POST"),
        _ => Err(RouteError::Unknown),
    }
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

/// Whether what is posted to `/v2/schedules/` is a destination, and not an id with what to do: `pause` or `resume`.
fn is_new_schedule(rest: &str) -> bool {
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let is_action = |word: &str| word.eq_ignore_ascii_case("pause") || word.eq_ignore_ascii_case("resume");
    !matches!(*segments.as_slice(), [_, word] if is_action(word))
}

/// A flow-control key is free text and stands in the path as it is: with slashes, or what looks like another route. It is
/// all of the rest, or, for a POST, all but the last word.
fn flow_control(method: &Method, rest: &str) -> Result<Route, RouteError> {
    let decode = |raw: &str| percent_decode_str(raw).decode_utf8_lossy().into_owned();
    let get = Route::GetFlowKey { key: decode(rest) };
    let action = rest.strip_suffix('/').unwrap_or(rest).rsplit_once('/').and_then(|(key, word)| {
        let key = decode(key);
        match word.to_ascii_lowercase().as_str() {
            "pause" => Some(Route::PauseFlowKey { key }),
            "resume" => Some(Route::ResumeFlowKey { key }),
            "pin" => Some(Route::PinFlowKey { key }),
            "unpin" => Some(Route::UnpinFlowKey { key }),
            "resetrate" | "reset" => Some(Route::ResetFlowRate { key }),
            _ => None,
        }
    });
    match action {
        // A key may end in such a word, so it can be read there as well.
        Some(action) => only(method, &[(Method::GET, get), (Method::POST, action)], "POST"),
        None => only(method, &[(Method::GET, get)], "GET, HEAD"),
    }
}

/// What follows the words (in any case) and their slash; empty when nothing does.
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

fn only(method: &Method, routes: &[(Method, Route)], allow: &'static str) -> Result<Route, RouteError> {
    let wanted = if *method == Method::HEAD { &Method::GET } else { method };
    routes
        .iter()
        .find(|(method, _)| method == wanted)
        .map(|(_, route)| route.clone())
        .ok_or(RouteError::Method { allow })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, target: &str, expected: &Result<Route, RouteError>) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(route(&method, target), *expected, "{method} {target}");
    }

    #[test]
    fn publish_takes_the_raw_rest() {
        let publish = |rest: &str| Ok(Route::Publish { rest: rest.to_owned() });
        check("POST", "/v2/publish/https://e.com//a/../b?x=1&y", &publish("https://e.com//a/../b?x=1&y"));
        check("POST", "/V2/Publish/http%3A%2F%2Fe.com", &publish("http%3A%2F%2Fe.com"));
        check("POST", "/v2/publish/", &publish(""));
        check("POST", "/v2/publish", &publish(""));
        check("POST", "/v2/publish?upstash-delay=1s", &publish("?upstash-delay=1s"));
        check("GET", "/v2/publish/https://e.com", &Err(RouteError::Method { allow: "POST" }));
        check("POST", "/v2/publisher/https://e.com", &Err(RouteError::Unknown));
    }

    #[test]
    fn enqueue_takes_a_decoded_name_and_the_raw_rest() {
        let enqueue =
            |queue: &str, rest: &str| Ok(Route::Enqueue { queue: queue.to_owned(), rest: rest.to_owned() });
        check("POST", "/v2/enqueue/q/https://e.com//a%20b?x=1", &enqueue("q", "https://e.com//a%20b?x=1"));
        check("POST", "/V2/Enqueue/My%2Dq/group", &enqueue("My-q", "group"));
        check("POST", "/v2/enqueue/a%252Fb/x", &enqueue("a%2Fb", "x"));
        check("POST", "/v2/enqueue/q?upstash-delay=1s", &enqueue("q", "?upstash-delay=1s"));
        check("POST", "/v2/enqueue/q/", &enqueue("q", ""));
        check("POST", "/v2/enqueue/https://e.com", &enqueue("https:", "e.com"));
        check("POST", "/v2/enqueue", &enqueue("", ""));
        check("GET", "/v2/enqueue/q/x", &Err(RouteError::Method { allow: "POST" }));
    }

    #[test]
    fn fixed_words_match_in_any_case_and_with_a_trailing_slash() {
        check("GET", "/v2/Events/", &Ok(Route::ListEvents));
        check("GET", "/v2/logs?count=3", &Ok(Route::ListLogs));
        check("POST", "/v2/Batch/", &Ok(Route::Batch));
        check("POST", "/v2/rotate", &Ok(Route::RotateKeys));
        check("POST", "/v2/keys/rotate/", &Ok(Route::RotateKeys));
        check("GET", "/v2/messages/msg_aB", &Ok(Route::GetMessage { id: "msg_aB".to_owned() }));
        check("HEAD", "/healthz", &Ok(Route::Healthz));
        check("GET", "/openapi.json", &Ok(Route::OpenApi));
    }

    #[test]
    fn surplus_slashes_before_a_destination_are_ignored() {
        let rest = "https://e.com//a//?x=//y";
        for base in ["", "/", "//"] {
            for after in ["", "/", "//"] {
                let target = |words: &str| format!("{base}/V2{after}/{words}");
                let is = |words: &str, expected: Route| check("POST", &target(words), &Ok(expected));
                for slashes in ["/", "//", "///"] {
                    is(&format!("publish{slashes}{rest}"), Route::Publish { rest: rest.to_owned() });
                    is(
                        &format!("enqueue{slashes}q{slashes}{rest}"),
                        Route::Enqueue { queue: "q".to_owned(), rest: rest.to_owned() },
                    );
                    is(&format!("schedules{slashes}{rest}"), Route::CreateSchedule { rest: rest.to_owned() });
                    is(
                        &format!("schedules{slashes}s{slashes}pause"),
                        Route::PauseSchedule { id: "s".to_owned() },
                    );
                    is(
                        &format!("queues{slashes}q{slashes}pause/"),
                        Route::PauseQueue { name: "q".to_owned() },
                    );
                }
                is("batch", Route::Batch);
                is("dlq/retry?a=//b", Route::RetryDeadLetters { trailing_slash: false });
                is("flowControl/k//pause", Route::PauseFlowKey { key: "k/".to_owned() });
                check("GET", &target("flowControl//k"), &Ok(Route::GetFlowKey { key: "/k".to_owned() }));
                check("DELETE", &target("messages"), &Ok(Route::CancelMessages { trailing_slash: false }));
                check("DELETE", &target("messages//"), &Ok(Route::CancelMessages { trailing_slash: true }));
            }
            check("GET", &format!("{base}/healthz"), &Ok(Route::Healthz));
        }
        for target in ["/v2", "//v2//", "/v", "v2x/keys", "/\u{fc}/", "//v2\u{fc}/keys"] {
            check("GET", target, &Err(RouteError::Unknown));
        }
        check(
            "POST",
            "/v2/publish/v2/publish/https://e.com",
            &Ok(Route::Publish { rest: "v2/publish/https://e.com".to_owned() }),
        );
    }

    #[test]
    fn a_schedules_destination_is_told_from_an_action() {
        let create = |rest: &str| Ok(Route::CreateSchedule { rest: rest.to_owned() });
        let pause = |id: &str| Ok(Route::PauseSchedule { id: id.to_owned() });
        let resume = |id: &str| Ok(Route::ResumeSchedule { id: id.to_owned() });
        for rest in [
            "https://e.com//a?b=1",
            "https:/pause",
            "HTTP:/e.com/resume",
            "http%3A%2F%2Fe.com/pause",
            "my-group",
            "my-group?upstash-cron=@daily",
            "pause",
            "a/b/pause",
            "a/paused",
            "",
        ] {
            check("POST", &format!("/v2/schedules/{rest}"), &create(rest));
        }
        check("POST", "/v2/Schedules/https://e.com", &create("https://e.com"));
        check("POST", "/v2/schedules", &create(""));
        for method in ["POST", "PATCH"] {
            check(method, "/v2/schedules/http-job/pause", &pause("http-job"));
            check(method, "/v2/Schedules/Ab.c/Resume/?x=1", &resume("Ab.c"));
        }
        check("GET", "/v2/schedules/", &Ok(Route::ListSchedules));
        check("GET", "/v2/Schedules/Ab", &Ok(Route::GetSchedule { id: "Ab".to_owned() }));
        check("DELETE", "/v2/schedules/pause", &Ok(Route::DeleteSchedule { id: "pause".to_owned() }));
        check("DELETE", "/v2/schedules", &Err(RouteError::Method { allow: "GET, HEAD" }));
        check("GET", "/v2/schedules/a/pause", &Err(RouteError::Method { allow: "POST, PATCH" }));
        check("PUT", "/v2/schedules/a", &Err(RouteError::Method { allow: "GET, HEAD, POST, DELETE" }));
        check("PATCH", "/v2/schedules/https://e.com/pause", &Err(RouteError::Method { allow: "POST" }));
    }

    #[test]
    fn a_trailing_slash_is_told_to_what_could_mean_all() {
        for (slash, trailing_slash) in [("", false), ("/", true), ("//", true)] {
            for query in ["", "?messageIds=a/"] {
                let target = |path: &str| format!("{path}{slash}{query}");
                check("DELETE", &target("/v2/messages"), &Ok(Route::CancelMessages { trailing_slash }));
                check("DELETE", &target("/v2/dlq"), &Ok(Route::DeleteDeadLetters { trailing_slash }));
                check("POST", &target("/v2/dlq/retry"), &Ok(Route::RetryDeadLetters { trailing_slash }));
            }
        }
        check("GET", "/v2/messages/", &Err(RouteError::Method { allow: "DELETE" }));
    }

    #[test]
    fn url_groups_are_topics_here() {
        let name = || "My-g".to_owned();
        check("GET", "/v2/topics/", &Ok(Route::ListUrlGroups));
        check("GET", "/v2/Topics/My-g", &Ok(Route::GetUrlGroup { name: name() }));
        check("DELETE", "/v2/topics/My%2Dg", &Ok(Route::DeleteUrlGroup { name: name() }));
        check("PATCH", "/v2/topics/My-g", &Ok(Route::SetUrlGroupHeaders { name: name() }));
        check("POST", "/v2/topics/My-g/endpoints", &Ok(Route::UpsertEndpoints { name: name() }));
        check("DELETE", "/v2/topics/My-g/Endpoints/", &Ok(Route::RemoveEndpoints { name: name() }));
        check("DELETE", "/v2/topics", &Err(RouteError::Method { allow: "GET, HEAD" }));
        check("POST", "/v2/topics/endpoints", &Err(RouteError::Method { allow: "GET, HEAD, PATCH, DELETE" }));
    }

    #[test]
    fn control_characters_are_no_ids() {
        check("GET", "/v2/messages/a%00b", &Err(RouteError::Unknown));
        check("GET", "/v2/dlq/", &Ok(Route::ListDeadLetters));
    }

    #[test]
    fn a_flow_control_key_is_all_between_the_fixed_words() {
        let get = |key: &str| Ok(Route::GetFlowKey { key: key.to_owned() });
        check("GET", "/v2/flowControl/k", &get("k"));
        check("GET", "/V2/FlowControl/a/b:c//d", &get("a/b:c//d"));
        check("GET", "/v2/flowControl/a%2Fb%20c%25?x=1", &get("a/b c%"));
        check("GET", "/v2/flowControl/k/pause", &get("k/pause"));
        check("GET", "/v2/flowControl/k/", &get("k/"));
        check("GET", "/v2/flowControl", &Ok(Route::ListFlowKeys));
        check("GET", "/v2/flowControl/", &Ok(Route::ListFlowKeys));
        check("GET", "/v2/flowControl/?search=a", &Ok(Route::ListFlowKeys));
        check("POST", "/v2/flowControl/k/pause", &Ok(Route::PauseFlowKey { key: "k".to_owned() }));
        check("POST", "/v2/flowControl/a/b/Resume/", &Ok(Route::ResumeFlowKey { key: "a/b".to_owned() }));
        check("POST", "/v2/flowControl/pause/pin?rate=1", &Ok(Route::PinFlowKey { key: "pause".to_owned() }));
        check("POST", "/v2/flowControl/k//unpin", &Ok(Route::UnpinFlowKey { key: "k/".to_owned() }));
        for word in ["resetRate", "reset", "RESETRATE"] {
            let target = format!("/v2/flowControl/k/{word}");
            check("POST", &target, &Ok(Route::ResetFlowRate { key: "k".to_owned() }));
        }
        check("POST", "/v2/flowControl//pause", &Ok(Route::PauseFlowKey { key: String::new() }));
        let only_get = Err(RouteError::Method { allow: "GET, HEAD" });
        for target in
            ["/v2/flowControl/k", "/v2/flowControl/pause", "/v2/flowControl/k/stop", "/v2/flowControl"]
        {
            check("POST", target, &only_get);
        }
        check("DELETE", "/v2/flowControl/k", &only_get);
    }

    #[test]
    fn queues_are_named_in_the_path() {
        check("GET", "/v2/queues/", &Ok(Route::ListQueues));
        check("POST", "/v2/queues/", &Ok(Route::UpsertQueue));
        check("GET", "/v2/Queues/aB.c", &Ok(Route::GetQueue { name: "aB.c".to_owned() }));
        check("DELETE", "/v2/queues/q", &Ok(Route::DeleteQueue { name: "q".to_owned() }));
        check("POST", "/v2/queues/pause/Pause", &Ok(Route::PauseQueue { name: "pause".to_owned() }));
        check("POST", "/v2/queues/q/resume/", &Ok(Route::ResumeQueue { name: "q".to_owned() }));
        check("DELETE", "/v2/queues", &Err(RouteError::Method { allow: "GET, HEAD, POST" }));
        check("GET", "/v2/queues/q/pause", &Err(RouteError::Method { allow: "POST" }));
        check("POST", "/v2/queues/q/stop", &Err(RouteError::Unknown));
    }

    #[test]
    fn unknown_paths_and_methods_are_told_apart() {
        check("GET", "/v3", &Err(RouteError::Unknown));
        check("PUT", "/v2/dlq/1-0", &Err(RouteError::Method { allow: "GET, HEAD, DELETE" }));
        check("GET", "/v2/keys/rotate", &Err(RouteError::Method { allow: "POST" }));
    }
}
