//! Rules of the wire contract that no SDK shows: request targets as they come, bodies where libraries drop them, and,
//! in `answers`, the exact JSON. Each test is named after its rule.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::http::{Answer, Call};
use crate::support::{READ_ONLY_TOKEN, Receiver, Reply, Server, TOKEN, Test};

mod answers;

engines! {
    every_operation_knows_the_tokens,
    every_operation_takes_the_token_in_the_query,
    every_path_has_fixed_words_in_any_case_and_a_trailing_slash,
    every_path_names_its_methods,
    every_malformed_body_is_an_error_object,
    destinations_stay_raw_in_every_path,
    merged_slashes_are_repaired_in_every_path,
    surplus_slashes_are_ignored_in_every_path,
    a_schedule_named_pause_is_no_destination,
    flow_control_keys_stay_raw,
    a_delete_reads_its_json_body,
    a_delete_of_type_json_without_a_body_is_all,
    a_delete_that_ends_in_a_slash_must_say_which,
    a_post_needs_neither_body_nor_length_nor_type,
    bodies_in_chunks_are_read_everywhere,
    a_batch_may_be_much_larger_than_a_message,
    a_body_that_waits_to_be_asked_for_is_asked_for,
}

/// Method and path of every documented operation, examples in the place of parameters, and whether it is public and
/// needs a token that may write.
async fn operations(server: &Server) -> Vec<(String, String, bool, bool)> {
    let document = server.get_json("/openapi.json").await;
    let resolve = |value: &Value| match value["$ref"].as_str() {
        Some(pointer) => document.pointer(&pointer[1..]).expect("what a reference points at").clone(),
        None => value.clone(),
    };
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let mut target = path.clone();
            for parameter in operation["parameters"].as_array().into_iter().flatten().map(resolve) {
                if parameter["in"] == "path" {
                    let name = format!("{{{}}}", parameter["name"].as_str().expect("a name"));
                    target = target.replace(&name, parameter["example"].as_str().expect("an example"));
                }
            }
            let public = operation["security"].as_array().is_some_and(Vec::is_empty);
            let writes = operation["responses"].get("403").is_some();
            all.push((method.to_uppercase(), target, public, writes));
        }
    }
    assert!(all.len() > 40, "{} operations", all.len());
    all
}

/// Whether a path is a webhook's, which takes any method, and tells nothing where there is none.
fn is_hook(target: &str) -> bool {
    target.starts_with("/v2/workflows/hooks/")
}

fn with_token(server: &Server, method: &str, target: &str, token: &str) -> Call {
    let call = server.call(method, target).without("authorization");
    call.header("Authorization", format!("Bearer {token}"))
}

async fn every_operation_knows_the_tokens(t: Test) {
    let server = t.server().await;
    for (method, target, public, writes) in operations(&server).await {
        let what = format!("{method} {target}");
        let without = server.call(&method, &target).without("authorization").send().await;
        if is_hook(&target) {
            // Its path is a secret, and this one nobody knows.
            assert_eq!(without.status, 404, "{what}");
            continue;
        }
        if public {
            assert_eq!(without.status, 200, "{what}");
            continue;
        }
        assert_eq!(without.status, 401, "{what}: {}", without.text());
        assert_eq!(without.header("www-authenticate"), Some("Bearer"), "{what}");
        without.error(401);
        let wrong = with_token(&server, &method, &target, "wrong").send().await;
        assert_eq!(wrong.status, 401, "{what}: {}", wrong.text());
        let reading = with_token(&server, &method, &target, READ_ONLY_TOKEN).send().await;
        assert_eq!(reading.status == 403, writes, "{what}: {} {}", reading.status, reading.text());
        assert_ne!(reading.status, 401, "{what}");
    }
}

async fn every_operation_takes_the_token_in_the_query(t: Test) {
    let server = t.server().await;
    for (method, target, public, writes) in operations(&server).await {
        let separator = if target.contains('?') { '&' } else { '?' };
        for (token, known) in [(READ_ONLY_TOKEN, true), ("wrong", false)] {
            let target = format!("{target}{separator}qstash_token={token}");
            let answer = server.call(&method, &target).without("authorization").send().await;
            let (status, text) = (answer.status, answer.text());
            assert_eq!(status == 401, !known && !public, "{method} {target}: {status} {text}");
            assert_eq!(status == 403, known && writes, "{method} {target}: {status} {text}");
            assert_ne!(status, 400, "{method} {target}: {text}");
        }
    }
}

async fn every_path_has_fixed_words_in_any_case_and_a_trailing_slash(t: Test) {
    let server = t.server().await;
    // Asked with a token that may only read: nothing is changed, and the answer tells which operation it was.
    let status = async |method: &str, target: &str| {
        with_token(&server, method, target, READ_ONLY_TOKEN).send().await.status
    };
    for (method, target, _, _) in operations(&server).await {
        // A destination begins where the scheme does, and has a slash of its own.
        let at = target.find("https://").unwrap_or(target.len());
        let (words, destination) = target.split_at(at);
        let is_id = |segment: &&str| {
            ["orders", "billing", "subscribers", "scd_nightly"].contains(segment)
                || segment.contains(|c: char| c.is_ascii_digit()) && *segment != "v2"
        };
        let other: Vec<String> = words
            .split('/')
            .map(|segment| if is_id(&segment) { segment.to_owned() } else { segment.to_uppercase() })
            .collect();
        let expected = status(&method, &target).await;
        assert!(![301, 302, 307, 308, 405].contains(&expected), "{method} {target}: {expected}");
        let upper = format!("{}{destination}", other.join("/"));
        assert_eq!(status(&method, &upper).await, expected, "{method} {upper}");
        let says_more = ["/v2/messages", "/v2/dlq", "/v2/workflows/dlq", "/v2/workflows/runs"];
        let slash_says_more = method == "DELETE" && says_more.contains(&target.as_str());
        if destination.is_empty() && target != "/" && !slash_says_more {
            assert_eq!(status(&method, &format!("{target}/")).await, expected, "{method} {target}/");
        }
    }
}

async fn every_path_names_its_methods(t: Test) {
    let server = t.server().await;
    let operations = operations(&server).await;
    let targets: BTreeSet<&str> = operations.iter().map(|(_, target, _, _)| target.as_str()).collect();
    for target in targets.into_iter().filter(|target| !is_hook(target)) {
        let answer = server.call("PUT", target).send().await;
        let allow = answer.header("allow").unwrap_or_default().to_owned();
        assert_eq!(answer.status, 405, "{target}: {}", answer.text());
        answer.error(405);
        let allowed: BTreeSet<&str> = allow.split(", ").filter(|method| *method != "HEAD").collect();
        let documented: BTreeSet<&str> = operations
            .iter()
            .filter(|(_, other, _, _)| *other == target)
            .map(|(method, ..)| method.as_str())
            .collect();
        assert!(documented.is_subset(&allowed), "{target}: {allow}, documented {documented:?}");
    }
}

async fn send(server: &Server, method: &str, target: &str, body: impl AsRef<[u8]>) -> Answer {
    server.call(method, target).header("Content-Type", "application/json").body(body).send().await
}

async fn post(server: &Server, target: &str, body: Value) -> Answer {
    let answer = send(server, "POST", target, body.to_string()).await;
    assert!((200..300).contains(&answer.status), "{target}: {} {}", answer.status, answer.text());
    answer
}

async fn every_malformed_body_is_an_error_object(t: Test) {
    let server = t.server().await;
    for (method, target) in [
        ("POST", "/v2/batch"),
        ("POST", "/v2/queues"),
        ("POST", "/v2/topics/g/endpoints"),
        ("DELETE", "/v2/topics/g/endpoints"),
        ("PATCH", "/v2/topics/g"),
        ("DELETE", "/v2/messages"),
        ("DELETE", "/v2/dlq"),
        ("DELETE", "/v2/workflows/dlq"),
        ("DELETE", "/v2/workflows/runs"),
        ("POST", "/v2/workflows/dlq/resume"),
        ("POST", "/v2/workflows/dlq/restart"),
    ] {
        for body in [&b"{"[..], b"\"text\"", b"7", b"{\"a\":\"\xff\"}", b"\x00", b"[[[[[["] {
            let answer = send(&server, method, target, body).await;
            assert_eq!(answer.status, 400, "{method} {target} {body:?}: {}", answer.text());
            answer.error(400);
        }
    }
}

async fn destinations_stay_raw_in_every_path(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for rest in [
        "/a//b/../c/./d",
        "/%2F%61?q=%2B+%25&r",
        "/p?u=https://z.com/?a=1",
        "/trailing/?",
        "/pause",
        "/a/pause",
    ] {
        let url = receiver.url(rest);
        let target = format!("/v2/enqueue/q/{url}&upstash-label=l");
        let target = if rest.contains('?') { target } else { target.replace("&upstash", "?upstash") };
        let answer = server.call("POST", &target).body("x").send().await.json(200);
        let id = answer["messageId"].as_str().expect("an id");
        let message = server.message(id).await;
        assert_eq!((&message["url"], &message["label"]), (&json!(url), &json!("l")));
        assert_eq!(receiver.next_request().await.target, rest);

        let call = server.call("POST", &format!("/v2/schedules/{url}"));
        let answer = call.header("Upstash-Cron", "@yearly").send().await.json(200);
        let id = answer["scheduleId"].as_str().expect("an id");
        assert_eq!(server.get_json(&format!("/v2/schedules/{id}")).await["destination"], url);

        let items = json!([{"destination": url, "headers": {}, "body": "x"}]);
        let answer = post(&server, "/v2/batch", items).await.json(200);
        let id = answer[0]["messageId"].as_str().expect("an id");
        assert_eq!(server.message(id).await["url"], url);
        assert_eq!(receiver.next_request().await.target, rest);
    }
}

async fn merged_slashes_are_repaired_in_every_path(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let merged = receiver.url("/x").replace("//", "/");
    let encoded = receiver.url("/x").replace(':', "%3A").replace('/', "%2F");
    for destination in [merged, encoded] {
        server.call("POST", &format!("/v2/enqueue/q/{destination}")).send().await.json(200);
        assert_eq!(receiver.next_request().await.target, "/x");
        let call = server.call("POST", &format!("/v2/schedules/{destination}"));
        let answer = call.header("Upstash-Cron", "@yearly").send().await.json(200);
        let schedule = format!("/v2/schedules/{}", answer["scheduleId"].as_str().expect("an id"));
        assert_eq!(server.get_json(&schedule).await["destination"], receiver.url("/x"));
    }
}

/// A base URL that ends in a slash, or in `/v2/`, leaves them.
async fn surplus_slashes_are_ignored_in_every_path(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let answer = async |method: &str, target: &str| {
        let answer = with_token(&server, method, target, READ_ONLY_TOKEN).send().await;
        (answer.status, answer.text())
    };
    for (method, target, _, _) in operations(&server).await {
        let expected = answer(&method, &target).await;
        assert!(is_hook(&target) || !expected.1.contains("no such endpoint"), "{method} {target}");
        for (before, after) in [("//", "/"), ("/", "//"), ("///", "///")] {
            let surplus = match target.strip_prefix("/v2/") {
                Some(rest) => format!("{before}v2{after}{rest}"),
                None => format!("{before}{}", &target[1..]),
            };
            assert_eq!(answer(&method, &surplus).await, expected, "{method} {surplus}");
        }
    }
    let url = receiver.url("/a//b/../?x=//y");
    for target in [
        format!("//v2/publish/{url}"),
        format!("/v2//publish/{url}"),
        format!("///v2///publish//{url}"),
        format!("//v2/enqueue/q/{url}"),
        format!("/v2//enqueue//q//{url}"),
        format!("//v2/publish/{}", url.replacen("//", "/", 1)),
    ] {
        let answer = server.call("POST", &target).body("x").send().await.json(200);
        assert_eq!(receiver.next_request().await.target, "/a//b/../?x=//y", "{target}");
        let id = answer["messageId"].as_str().expect("an id");
        assert_eq!(server.message(id).await["url"], url, "{target}");
    }
    let call = server.call("POST", &format!("//v2//schedules//{url}")).header("Upstash-Cron", "@yearly");
    let id = call.send().await.json(200)["scheduleId"].as_str().expect("an id").to_owned();
    assert_eq!(server.get_json(&format!("//v2//Schedules//{id}")).await["destination"], url);
    assert_eq!(server.call("PATCH", &format!("//v2/schedules/{id}//pause")).send().await.status, 200);
    // A flow-control key may begin with a slash itself.
    assert_eq!(server.call("POST", "//v2/flowControl//k/pause").send().await.status, 200);
    assert_eq!(server.get_json("/v2//flowControl//k").await["flowControlKey"], "/k");
}

async fn a_schedule_named_pause_is_no_destination(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    post(&server, "/v2/topics/pause/endpoints", json!({"endpoints": [{"url": receiver.url("/")}]})).await;
    let call = server.call("POST", "/v2/schedules/pause").header("Upstash-Cron", "@yearly");
    let answer = call.header("Upstash-Schedule-Id", "resume").send().await.json(200);
    assert_eq!(answer, json!({"scheduleId": "resume"}));
    for (action, paused) in [("pause", true), ("resume", false)] {
        let target = format!("/v2/schedules/resume/{action}");
        assert_eq!(server.call("POST", &target).send().await.status, 200);
        assert_eq!(server.get_json("/v2/schedules/resume").await["isPaused"], paused);
    }
    // A URL whose path ends like an action is a destination.
    let url = receiver.url("/pause");
    let call = server.call("POST", &format!("/v2/schedules/{url}")).header("Upstash-Cron", "@yearly");
    assert!(call.send().await.json(200)["scheduleId"].is_string());
}

async fn flow_control_keys_stay_raw(t: Test) {
    let server = t.server().await;
    for (written, key) in [
        ("a/b//c", "a/b//c"),
        ("https://example.com/x:y", "https://example.com/x:y"),
        ("a%20b%2Fc%25", "a b/c%"),
        ("pause", "pause"),
        ("a/pin/resume", "a/pin/resume"),
        ("%C3%BC", "ü"),
    ] {
        let target = format!("/v2/flowControl/{written}");
        assert_eq!(server.call("POST", &format!("{target}/pin?parallelism=3")).send().await.status, 200);
        let info = server.get_json(&target).await;
        assert_eq!((&info["flowControlKey"], &info["parallelismMax"]), (&json!(key), &json!(3)));
        for (action, paused) in [("pause", true), ("resume", false)] {
            assert_eq!(server.call("POST", &format!("{target}/{action}")).send().await.status, 200);
            assert_eq!(server.get_json(&target).await["isPaused"], paused);
        }
    }
    server.get("/v2/flowControl/none").await.error(404);
    server.call("POST", "/v2/flowControl//pause").send().await.error(400);
    let listed = server.get_json("/v2/flowControl/?search=a/").await;
    let keys: Vec<_> =
        listed.as_array().expect("an array").iter().map(|key| &key["flowControlKey"]).collect();
    assert!(keys.contains(&&json!("a/b//c")) && !keys.contains(&&json!("pause")), "{keys:?}");
}

async fn waiting(server: &Server, receiver: &Receiver) -> String {
    server.publish(&receiver.url("/"), &[("Upstash-Delay", "1d")], "x").await
}

async fn failed(server: &Server, receiver: &Receiver) -> Value {
    receiver.script("/fails", [Reply::status(500).body("boom")]);
    let id = server.publish(&receiver.url("/fails"), &[("Upstash-Retries", "0")], "x").await;
    server.dead_letter(&id).await
}

async fn a_delete_reads_its_json_body(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let (one, two) = (waiting(&server, &receiver).await, waiting(&server, &receiver).await);
    let body = json!({"messageIds": [one]}).to_string();
    assert_eq!(send(&server, "DELETE", "/v2/messages", &body).await.json(200), json!({"cancelled": 1}));
    assert_eq!(server.states(&two).await, ["CREATED"]);

    let letter = failed(&server, &receiver).await;
    let body = json!({"dlqIds": [letter["dlqId"], "1-0"]}).to_string();
    assert_eq!(send(&server, "DELETE", "/v2/dlq", &body).await.json(200), json!({"deleted": 1}));

    let endpoints = json!([{"name": "a", "url": receiver.url("/a")}, {"url": receiver.url("/b")}]);
    post(&server, "/v2/topics/g/endpoints", json!({ "endpoints": endpoints })).await;
    let body = json!({"endpoints": [{"name": "a"}]}).to_string();
    assert_eq!(send(&server, "DELETE", "/v2/topics/g/endpoints", &body).await.status, 200);
    let group = server.get_json("/v2/topics/g").await;
    assert_eq!(group["endpoints"], json!([{"url": receiver.url("/b")}]));
    // No endpoints named is a mistake, not all of them.
    send(&server, "DELETE", "/v2/topics/g/endpoints", "").await.error(400);
    assert_eq!(server.get_json("/v2/topics/g").await["endpoints"], group["endpoints"]);
}

async fn a_delete_of_type_json_without_a_body_is_all(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for _ in 0..2 {
        waiting(&server, &receiver).await;
        failed(&server, &receiver).await;
    }
    assert_eq!(send(&server, "DELETE", "/v2/messages", "").await.json(200), json!({"cancelled": 2}));
    assert_eq!(send(&server, "DELETE", "/v2/dlq", "").await.json(200), json!({"deleted": 2}));
}

async fn a_delete_that_ends_in_a_slash_must_say_which(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = waiting(&server, &receiver).await;
    failed(&server, &receiver).await;
    for target in ["/v2/messages/", "/v2/dlq/"] {
        server.call("DELETE", target).send().await.error(400);
        send(&server, "DELETE", target, "").await.error(400);
        server.call("DELETE", &format!("{target}?qstash_token={TOKEN}")).send().await.error(400);
    }
    assert_eq!(server.states(&id).await, ["CREATED"]);
    let cancelled = server.call("DELETE", "/v2/messages/?count=1").send().await;
    assert_eq!(cancelled.json(200), json!({"cancelled": 1}));
    let deleted = server.call("DELETE", "/v2/dlq/?count=1").send().await;
    assert_eq!(deleted.json(200), json!({"deleted": 1}));
}

/// The status of a request whose head is exactly this, and nothing else.
async fn status_of_head(server: &Server, request_line: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = format!(
        "{request_line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).split(' ').nth(1).expect("a status").to_owned()
}

async fn a_post_needs_neither_body_nor_length_nor_type(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    post(&server, "/v2/queues", json!({"queueName": "q"})).await;
    let call = server.call("POST", &format!("/v2/schedules/{}", receiver.url("/")));
    call.headers(&[("Upstash-Cron", "@yearly"), ("Upstash-Schedule-Id", "s")]).send().await.json(200);
    let letter = failed(&server, &receiver).await;
    for (request_line, status) in [
        ("POST /v2/queues/q/pause", "200"),
        ("POST /v2/queues/q/resume", "200"),
        ("PATCH /v2/schedules/s/pause", "200"),
        ("POST /v2/schedules/s/resume", "200"),
        ("POST /v2/flowControl/k/pause", "200"),
        ("POST /v2/flowControl/k/resume", "200"),
        ("POST /v2/flowControl/k/pin?rate=5&period=60", "200"),
        ("POST /v2/flowControl/k/unpin?rate=true", "200"),
        ("POST /v2/flowControl/k/resetRate", "200"),
        ("POST /v2/flowControl/k/reset", "200"),
        ("POST /v2/keys/rotate", "200"),
        (&format!("POST /v2/publish/{}", receiver.url("/")), "200"),
        (&format!("POST /v2/enqueue/q/{}", receiver.url("/")), "200"),
        (&format!("POST /v2/dlq/retry/{}", letter["dlqId"].as_str().expect("an id")), "201"),
        ("POST /v2/dlq/retry?responseStatus=999", "201"),
    ] {
        assert_eq!(status_of_head(&server, request_line).await, status, "{request_line}");
    }
}

async fn bodies_in_chunks_are_read_everywhere(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let chunked = async |method: &str, target: &str, body: String| {
        let answer = server.call(method, target).chunked().body(body).send().await;
        assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
    };
    let url = receiver.url("/");
    chunked("POST", "/v2/queues", json!({"queueName": "q", "parallelism": 7}).to_string()).await;
    assert_eq!(server.get_json("/v2/queues/q").await["parallelism"], 7);
    chunked("POST", "/v2/topics/g/endpoints", json!({"endpoints": [{"url": url}]}).to_string()).await;
    chunked("POST", "/v2/batch", json!([{"destination": url, "body": "batched"}]).to_string()).await;
    assert_eq!(receiver.next_request().await.body, "batched");
    chunked("POST", &format!("/v2/enqueue/q/{url}"), "enqueued".to_owned()).await;
    assert_eq!(receiver.next_request().await.body, "enqueued");
    let id = waiting(&server, &receiver).await;
    chunked("DELETE", "/v2/messages", json!({"messageIds": [id]}).to_string()).await;
    assert_eq!(server.ended(&id).await, "CREATED CANCEL_REQUESTED CANCELED");
    chunked("DELETE", "/v2/topics/g/endpoints", json!({"endpoints": [{"url": url}]}).to_string()).await;
    server.get("/v2/topics/g").await.error(404);
}

async fn a_batch_may_be_much_larger_than_a_message(t: Test) {
    let server = t.server_with(&[("HOMING_MAX_MESSAGE_SIZE", "1MiB")]).await;
    let receiver = Receiver::start().await;
    let item = |size: usize| json!({"destination": receiver.url("/"), "body": "x".repeat(size)});
    let items = json!([item(1 << 20), item(1 << 20), item(1 << 20)]);
    assert_eq!(post(&server, "/v2/batch", items).await.json(200).as_array().map(Vec::len), Some(3));
    for _ in 0..3 {
        assert_eq!(receiver.next_request().await.body.len(), 1 << 20);
    }
    let too_large = json!([item(1), item((1 << 20) + 1)]);
    send(&server, "POST", "/v2/batch", too_large.to_string()).await.error(413);
    assert_eq!(receiver.requests().len(), 3);
}

async fn a_body_that_waits_to_be_asked_for_is_asked_for(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let batch = json!([{"destination": receiver.url("/"), "body": "x"}]).to_string();
    for (method, target, body) in [
        ("POST", format!("/v2/enqueue/q/{}", receiver.url("/")), "x".to_owned()),
        ("POST", "/v2/batch".to_owned(), batch),
        ("DELETE", "/v2/messages".to_owned(), json!({"messageIds": []}).to_string()),
    ] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut asked = [0; 25];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n", "{method} {target}");
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{method} {target}: {answer}");
    }
}
