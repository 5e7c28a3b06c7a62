use super::*;

#[derive(PartialEq, Debug)]
enum Expected {
    /// An operation's id, and the name and the destination in the path.
    Operation(&'static str, String, String),
    Unknown,
    Allow(String),
}

#[track_caller]
fn check(method: &str, target: &str, expected: &Expected) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let found = match find(&method, target) {
        Ok(found) => Expected::Operation(found.handler.id, found.name, found.rest),
        Err(RouteError::Unknown) => Expected::Unknown,
        Err(RouteError::Method { allow }) => Expected::Allow(allow),
    };
    assert_eq!(found, *expected, "{method} {target}");
}

#[track_caller]
fn check_slash(method: &str, target: &str, id: &str, trailing_slash: bool) {
    let found = find(&Method::from_bytes(method.as_bytes()).unwrap(), target);
    let found = found.map(|found| (found.handler.id, found.trailing_slash));
    assert_eq!(found, Ok((id, trailing_slash)), "{method} {target}");
}

fn plain(id: &'static str) -> Expected {
    named(id, "")
}

fn named(id: &'static str, name: &str) -> Expected {
    Expected::Operation(id, name.to_owned(), String::new())
}

fn to(id: &'static str, rest: &str) -> Expected {
    Expected::Operation(id, String::new(), rest.to_owned())
}

fn allowed(methods: &str) -> Expected {
    Expected::Allow(methods.to_owned())
}

#[test]
fn publish_takes_the_raw_rest() {
    let publish = |rest: &str| to("publish", rest);
    check("POST", "/v2/publish/https://e.com//a/../b?x=1&y", &publish("https://e.com//a/../b?x=1&y"));
    check("POST", "/V2/Publish/http%3A%2F%2Fe.com", &publish("http%3A%2F%2Fe.com"));
    check("POST", "/v2/publish/", &publish(""));
    check("POST", "/v2/publish", &publish(""));
    check("POST", "/v2/publish?upstash-delay=1s", &publish("?upstash-delay=1s"));
    check("GET", "/v2/publish/https://e.com", &allowed("POST"));
    check("POST", "/v2/publisher/https://e.com", &Expected::Unknown);
}

#[test]
fn enqueue_takes_a_decoded_name_and_the_raw_rest() {
    let enqueue = |queue: &str, rest: &str| Expected::Operation("enqueue", queue.to_owned(), rest.to_owned());
    check("POST", "/v2/enqueue/q/https://e.com//a%20b?x=1", &enqueue("q", "https://e.com//a%20b?x=1"));
    check("POST", "/V2/Enqueue/My%2Dq/group", &enqueue("My-q", "group"));
    check("POST", "/v2/enqueue/a%252Fb/x", &enqueue("a%2Fb", "x"));
    check("POST", "/v2/enqueue/q?upstash-delay=1s", &enqueue("q", "?upstash-delay=1s"));
    check("POST", "/v2/enqueue/q/", &enqueue("q", ""));
    check("POST", "/v2/enqueue/https://e.com", &enqueue("https:", "e.com"));
    check("POST", "/v2/enqueue", &enqueue("", ""));
    check("GET", "/v2/enqueue/q/x", &allowed("POST"));
}

#[test]
fn fixed_words_match_in_any_case_and_with_a_trailing_slash() {
    check("GET", "/v2/Events/", &plain("listEvents"));
    check("GET", "/v2/logs?count=3", &plain("listLogs"));
    check("POST", "/v2/Batch/", &plain("batch"));
    check("POST", "/v2/rotate", &plain("rotateKeysShort"));
    check("POST", "/v2/keys/rotate/", &plain("rotateKeys"));
    check("GET", "/v2/messages/msg_aB", &named("getMessage", "msg_aB"));
    check("HEAD", "/healthz", &plain("healthz"));
    check("GET", "/openapi.json", &plain("openapi"));
}

#[test]
fn surplus_slashes_before_a_destination_are_ignored() {
    let rest = "https://e.com//a//?x=//y";
    for base in ["", "/", "//"] {
        for after in ["", "/", "//"] {
            let target = |words: &str| format!("{base}/V2{after}/{words}");
            let is = |words: &str, expected: Expected| check("POST", &target(words), &expected);
            for slashes in ["/", "//", "///"] {
                is(&format!("publish{slashes}{rest}"), to("publish", rest));
                is(
                    &format!("enqueue{slashes}q{slashes}{rest}"),
                    Expected::Operation("enqueue", "q".to_owned(), rest.to_owned()),
                );
                is(&format!("schedules{slashes}{rest}"), to("createSchedule", rest));
                is(&format!("schedules{slashes}s{slashes}pause"), named("pauseScheduleByPost", "s"));
                is(&format!("queues{slashes}q{slashes}pause/"), named("pauseQueue", "q"));
            }
            is("batch", plain("batch"));
            is("dlq/retry?a=//b", plain("retryDeadLetters"));
            is("flowControl/k//pause", named("pauseFlowControl", "k/"));
            check("GET", &target("flowControl//k"), &named("getFlowControl", "/k"));
            check_slash("DELETE", &target("messages"), "cancelMessages", false);
            check_slash("DELETE", &target("messages//"), "cancelMessages", true);
        }
        check("GET", &format!("{base}/healthz"), &plain("healthz"));
    }
    for target in ["/v2", "//v2//", "/v", "v2x/keys", "/\u{fc}/", "//v2\u{fc}/keys"] {
        check("GET", target, &Expected::Unknown);
    }
    check("POST", "/v2/publish/v2/publish/https://e.com", &to("publish", "v2/publish/https://e.com"));
}

#[test]
fn a_schedules_destination_is_told_from_an_action() {
    let create = |rest: &str| to("createSchedule", rest);
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
    for (method, pause, resume) in [
        ("POST", "pauseScheduleByPost", "resumeScheduleByPost"),
        ("PATCH", "pauseSchedule", "resumeSchedule"),
    ] {
        check(method, "/v2/schedules/http-job/pause", &named(pause, "http-job"));
        check(method, "/v2/Schedules/Ab.c/Resume/?x=1", &named(resume, "Ab.c"));
    }
    check("GET", "/v2/schedules/", &plain("listSchedules"));
    check("GET", "/v2/Schedules/Ab", &named("getSchedule", "Ab"));
    check("DELETE", "/v2/schedules/pause", &named("deleteSchedule", "pause"));
    check("DELETE", "/v2/schedules", &allowed("GET, HEAD"));
    check("GET", "/v2/schedules/a/pause", &allowed("POST, PATCH"));
    check("PUT", "/v2/schedules/a", &allowed("GET, HEAD, POST, DELETE"));
    check("PATCH", "/v2/schedules/https://e.com/pause", &allowed("POST"));
}

#[test]
fn a_trailing_slash_is_told_to_what_could_mean_all() {
    for (slash, trailing_slash) in [("", false), ("/", true), ("//", true)] {
        for query in ["", "?messageIds=a/"] {
            let target = |path: &str| format!("{path}{slash}{query}");
            check_slash("DELETE", &target("/v2/messages"), "cancelMessages", trailing_slash);
            check_slash("DELETE", &target("/v2/dlq"), "deleteDeadLetters", trailing_slash);
            check_slash("POST", &target("/v2/dlq/retry"), "retryDeadLetters", trailing_slash);
        }
    }
    check("GET", "/v2/messages/", &allowed("DELETE"));
}

#[test]
fn url_groups_are_topics_here() {
    let name = "My-g";
    check("GET", "/v2/topics/", &plain("listUrlGroups"));
    check("GET", "/v2/Topics/My-g", &named("getUrlGroup", name));
    check("DELETE", "/v2/topics/My%2Dg", &named("deleteUrlGroup", name));
    check("PATCH", "/v2/topics/My-g", &named("updateUrlGroup", name));
    check("POST", "/v2/topics/My-g/endpoints", &named("upsertEndpoints", name));
    check("DELETE", "/v2/topics/My-g/Endpoints/", &named("removeEndpoints", name));
    check("DELETE", "/v2/topics", &allowed("GET, HEAD"));
    check("POST", "/v2/topics/endpoints", &allowed("GET, HEAD, PATCH, DELETE"));
}

#[test]
fn control_characters_are_no_ids() {
    check("GET", "/v2/messages/a%00b", &Expected::Unknown);
    check("GET", "/v2/dlq/", &plain("listDeadLetters"));
}

#[test]
fn a_flow_control_key_is_all_between_the_fixed_words() {
    let get = |key: &str| named("getFlowControl", key);
    check("GET", "/v2/flowControl/k", &get("k"));
    check("GET", "/V2/FlowControl/a/b:c//d", &get("a/b:c//d"));
    check("GET", "/v2/flowControl/a%2Fb%20c%25?x=1", &get("a/b c%"));
    check("GET", "/v2/flowControl/k/pause", &get("k/pause"));
    check("GET", "/v2/flowControl/k/", &get("k/"));
    check("GET", "/v2/flowControl", &plain("listFlowControl"));
    check("GET", "/v2/flowControl/", &plain("listFlowControl"));
    check("GET", "/v2/flowControl/?search=a", &plain("listFlowControl"));
    check("POST", "/v2/flowControl/k/pause", &named("pauseFlowControl", "k"));
    check("POST", "/v2/flowControl/a/b/Resume/", &named("resumeFlowControl", "a/b"));
    check("POST", "/v2/flowControl/pause/pin?rate=1", &named("pinFlowControl", "pause"));
    check("POST", "/v2/flowControl/k//unpin", &named("unpinFlowControl", "k/"));
    for (word, id) in [
        ("resetRate", "resetRateFlowControl"),
        ("reset", "resetFlowControl"),
        ("RESETRATE", "resetRateFlowControl"),
    ] {
        check("POST", &format!("/v2/flowControl/k/{word}"), &named(id, "k"));
    }
    check("POST", "/v2/flowControl//pause", &named("pauseFlowControl", ""));
    let only_get = allowed("GET, HEAD");
    for target in ["/v2/flowControl/k", "/v2/flowControl/pause", "/v2/flowControl/k/stop", "/v2/flowControl"]
    {
        check("POST", target, &only_get);
    }
    check("DELETE", "/v2/flowControl/k", &only_get);
}

#[test]
fn queues_are_named_in_the_path() {
    check("GET", "/v2/queues/", &plain("listQueues"));
    check("POST", "/v2/queues/", &plain("upsertQueue"));
    check("GET", "/v2/Queues/aB.c", &named("getQueue", "aB.c"));
    check("DELETE", "/v2/queues/q", &named("deleteQueue", "q"));
    check("POST", "/v2/queues/pause/Pause", &named("pauseQueue", "pause"));
    check("POST", "/v2/queues/q/resume/", &named("resumeQueue", "q"));
    check("DELETE", "/v2/queues", &allowed("GET, HEAD, POST"));
    check("GET", "/v2/queues/q/pause", &allowed("POST"));
    check("POST", "/v2/queues/q/stop", &Expected::Unknown);
}

#[test]
fn unknown_paths_and_methods_are_told_apart() {
    check("GET", "/v3", &Expected::Unknown);
    check("PUT", "/v2/dlq/1-0", &allowed("GET, HEAD, DELETE"));
    check("GET", "/v2/keys/rotate", &allowed("POST"));
}
