//! The route table: which path and method mean what, and who may call it. Works on the raw request target.
//!
//! The fixed words of a path match in any case and a trailing slash is no different from none; names and ids are taken as
//! they are (percent-decoded once). Nothing here redirects.

use http::Method;
use percent_encoding::percent_decode_str;

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// `POST /v2/publish/…`; what follows, raw, query included.
    Publish {
        rest: String,
    },
    GetMessage {
        id: String,
    },
    CancelMessage {
        id: String,
    },
    ListDeadLetters,
    DeleteDeadLetters,
    GetDeadLetter {
        id: String,
    },
    DeleteDeadLetter {
        id: String,
    },
    RetryDeadLetter {
        id: String,
    },
    RetryDeadLetters,
    /// `GET /v2/events`: pages of 1000, in `events`.
    ListEvents,
    /// `GET /v2/logs`: the same in pages of 100, in `logs` too.
    ListLogs,
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
    /// 400: a path that ends where an id should follow. It must not mean "all".
    MissingId,
}

impl Route {
    /// Who may call it.
    pub const fn access(&self) -> Access {
        match self {
            Self::Healthz | Self::Readyz | Self::Root => Access::Public,
            Self::GetMessage { .. }
            | Self::ListDeadLetters
            | Self::GetDeadLetter { .. }
            | Self::ListEvents
            | Self::ListLogs
            | Self::ListQueues
            | Self::GetQueue { .. }
            | Self::ListFlowKeys
            | Self::GetFlowKey { .. }
            | Self::GetParallelism => Access::Read,
            Self::Publish { .. }
            | Self::CancelMessage { .. }
            | Self::DeleteDeadLetters
            | Self::DeleteDeadLetter { .. }
            | Self::RetryDeadLetter { .. }
            | Self::RetryDeadLetters
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

/// Finds the route of a method and a raw request target (path and query).
pub fn route(method: &Method, target: &str) -> Result<Route, RouteError> {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    if let Some(rest) = after_words(target, "/v2/publish") {
        return only(method, &[(Method::POST, Route::Publish { rest: rest.to_owned() })], "POST");
    }
    if let Some(rest) = after_words(path, "/v2/flowControl").filter(|rest| !rest.is_empty()) {
        return flow_control(method, rest);
    }
    let has_query = target.contains('?');
    let trailing_slash = path.len() > 1 && path.ends_with('/');
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let words: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if path.contains('%') && percent_decode_str(path).any(|byte| byte.is_ascii_control()) {
        // No name or id has such characters, and not every database can be asked for them.
        return Err(RouteError::Unknown);
    }
    let id = |index: usize| {
        segments
            .get(index)
            .map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned())
            .unwrap_or_default()
    };
    let get = Method::GET;
    let post = Method::POST;
    let delete = Method::DELETE;
    match *words.as_slice() {
        [] => only(method, &[(get, Route::Root)], "GET, HEAD"),
        ["healthz"] => only(method, &[(get, Route::Healthz)], "GET, HEAD"),
        ["readyz"] => only(method, &[(get, Route::Readyz)], "GET, HEAD"),
        ["v2", "messages"] if trailing_slash && !has_query => Err(RouteError::MissingId),
        ["v2", "messages", _] => only(
            method,
            &[(get, Route::GetMessage { id: id(2) }), (delete, Route::CancelMessage { id: id(2) })],
            "GET, HEAD, DELETE",
        ),
        ["v2", "dlq"] => only(
            method,
            &[(get, Route::ListDeadLetters), (delete, Route::DeleteDeadLetters)],
            "GET, HEAD, DELETE",
        ),
        ["v2", "dlq", "retry"] if *method == Method::POST => Ok(Route::RetryDeadLetters),
        ["v2", "dlq", "retry", _] => only(method, &[(post, Route::RetryDeadLetter { id: id(3) })], "POST"),
        ["v2", "dlq", _] => only(
            method,
            &[(get, Route::GetDeadLetter { id: id(2) }), (delete, Route::DeleteDeadLetter { id: id(2) })],
            "GET, HEAD, DELETE",
        ),
        ["v2", "events"] => only(method, &[(get, Route::ListEvents)], "GET, HEAD"),
        ["v2", "logs"] => only(method, &[(get, Route::ListLogs)], "GET, HEAD"),
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

/// A flow-control key is free text and stands in the path as it is: with slashes, or what looks like another route. It is
/// all of the rest, or, for a POST, all but the last word.
fn flow_control(method: &Method, rest: &str) -> Result<Route, RouteError> {
    let decode = |raw: &str| percent_decode_str(raw).decode_utf8_lossy().into_owned();
    if *method != Method::POST {
        return only(method, &[(Method::GET, Route::GetFlowKey { key: decode(rest) })], "GET, HEAD");
    }
    let allowed = RouteError::Method { allow: "GET, HEAD" };
    let (key, word) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once('/').ok_or(allowed.clone())?;
    let key = decode(key);
    match word.to_ascii_lowercase().as_str() {
        "pause" => Ok(Route::PauseFlowKey { key }),
        "resume" => Ok(Route::ResumeFlowKey { key }),
        "pin" => Ok(Route::PinFlowKey { key }),
        "unpin" => Ok(Route::UnpinFlowKey { key }),
        "resetrate" | "reset" => Ok(Route::ResetFlowRate { key }),
        _ => Err(allowed),
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
    fn fixed_words_match_in_any_case_and_with_a_trailing_slash() {
        check("GET", "/v2/Events/", &Ok(Route::ListEvents));
        check("GET", "/v2/logs?count=3", &Ok(Route::ListLogs));
        check("POST", "/v2/rotate", &Ok(Route::RotateKeys));
        check("POST", "/v2/keys/rotate/", &Ok(Route::RotateKeys));
        check("GET", "/v2/messages/msg_aB", &Ok(Route::GetMessage { id: "msg_aB".to_owned() }));
        check("HEAD", "/healthz", &Ok(Route::Healthz));
    }

    #[test]
    fn a_missing_id_is_not_all() {
        check("DELETE", "/v2/messages/", &Err(RouteError::MissingId));
        check("DELETE", "/v2/messages/?messageIds=msg_a", &Err(RouteError::Unknown));
        // Its handler looks for ids, in the query and in the body.
        check("DELETE", "/v2/dlq/", &Ok(Route::DeleteDeadLetters));
        check("DELETE", "/v2/dlq/?dlqIds=1-0", &Ok(Route::DeleteDeadLetters));
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
