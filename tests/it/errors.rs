//! What is refused, with which status, and that nothing comes of it.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Receiver, Reply, Server, TOKEN, Test};

engines! {
    bad_destinations_are_refused,
    bad_options_are_refused,
    times_after_the_year_9999_are_refused,
    names_that_paths_cannot_hold_are_refused,
    errors_repeat_little_of_what_they_refuse,
    control_characters_are_refused,
    bodies_over_the_limit_are_refused,
    an_early_error_reaches_who_writes_first,
    an_early_error_does_not_ask_for_the_body,
    slow_uploads_stop_nobody_else,
    unknown_routes_are_not_found,
    known_routes_name_their_methods,
    malformed_json_is_refused,
    small_bodies_make_no_large_messages,
    no_answer_may_be_cached,
}

const INVALID_SCHEME: &str = "invalid destination url: endpoint has invalid scheme, add http:// or https://";

/// Fails unless the log is empty: a refused publish leaves no trace.
async fn assert_nothing_stored(server: &Server) {
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn bad_destinations_are_refused(t: Test) {
    let server = t.server().await;
    for (destination, status, text) in [
        ("", 400, "a non-empty destination must be provided"),
        ("ftp://example.com/x", 400, INVALID_SCHEME),
        ("example.com/path", 400, INVALID_SCHEME),
        ("undefined/api/hook", 400, INVALID_SCHEME),
        ("v2/publish/https://example.com", 400, INVALID_SCHEME),
        ("javascript:alert(1)", 400, INVALID_SCHEME),
        ("ftp%3A%2F%2Fexample.com", 400, INVALID_SCHEME),
        ("https%3A%2F%2F", 400, ""),
        ("https%3A%2F%2F%zz", 400, ""),
        ("https%3A%2F%2F%FF%FE", 400, ""),
        ("https%3A%2F%2Fexample.com%2F%0d%0ax", 400, ""),
        ("https://", 400, ""),
        ("http://:80/", 400, ""),
        ("http://exa mple.com/".replace(' ', "%20").as_str(), 400, ""),
        ("http://example.com:99999/", 400, ""),
        ("http://[::1/", 400, ""),
        ("api/unknown", 400, ""),
        ("no-such-group", 404, "topic no-such-group not found"),
    ] {
        let answer = server.call("POST", &format!("/v2/publish/{destination}")).body("x").send().await;
        assert_eq!(answer.status, status, "{destination:?}: {}", answer.text());
        let error = answer.error(status);
        assert!(error.contains(text), "{destination:?}: {error}");
    }
    server.call("POST", "/v2/publish").send().await.error(400);
    assert_nothing_stored(&server).await;
}

async fn bad_options_are_refused(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let target = format!("/v2/publish/{}", receiver.url("/"));
    let long = format!("{}1{}", "(".repeat(100), ")".repeat(100));
    for (name, value) in [
        ("Upstash-Delay", "5x"),
        ("Upstash-Delay", "-5s"),
        ("Upstash-Delay", "s"),
        ("Upstash-Delay", "1h 30m"),
        ("Upstash-Delay", "99999999999999999999d"),
        ("Upstash-Not-Before", "tomorrow"),
        ("Upstash-Not-Before", "-1"),
        ("Upstash-Retries", "-1"),
        ("Upstash-Retries", "1.5"),
        ("Upstash-Retries", "many"),
        ("Upstash-Retries", "99999999999"),
        ("Upstash-Retry-Delay", "1000 *"),
        ("Upstash-Retry-Delay", "retries * 5"),
        ("Upstash-Retry-Delay", "system(1)"),
        ("Upstash-Retry-Delay", "pow(2)"),
        ("Upstash-Retry-Delay", long.as_str()),
        ("Upstash-Timeout", "soon"),
        ("Upstash-Timeout", "-1"),
        ("Upstash-Method", "HEAD"),
        ("Upstash-Method", "BREW"),
        ("Upstash-Callback", "example.com/hook"),
        ("Upstash-Callback", "ftp://example.com"),
        ("Upstash-Failure-Callback", "/relative"),
        ("Upstash-Redact-Fields", "everything"),
        ("Upstash-Content-Based-Deduplication", "perhaps"),
        ("Upstash-Flow-Control-Key", "key-without-value"),
        ("Upstash-Flow-Control-Value", "parallelism=1"),
    ] {
        let answer = server.call("POST", &target).header(name, value).body("x").send().await;
        assert_eq!(answer.status, 400, "{name}: {value}: {}", answer.text());
        answer.error(400);
    }
    for value in
        ["parallelism=0", "rate=-1", "speed=5", "period=1m", "rate=1,period=8d", "rate", "rate=1 period=2"]
    {
        let call = server.call("POST", &target).header("Upstash-Flow-Control-Key", "k");
        let answer = call.header("Upstash-Flow-Control-Value", value).send().await;
        assert_eq!(answer.status, 400, "{value}: {}", answer.text());
        answer.error(400);
    }
    // The options of a callback are checked when the message is published, not when it is too late.
    for (name, value) in [
        ("Upstash-Callback-Retries", "-1"),
        ("Upstash-Callback-Method", "HEAD"),
        ("Upstash-Callback-Timeout", "soon"),
        ("Upstash-Callback-Retry-Delay", "1 +"),
        ("Upstash-Callback-Callback", "nowhere"),
    ] {
        let call = server.call("POST", &target).header("Upstash-Callback", receiver.url("/"));
        call.header(name, value).send().await.error(400);
    }
    assert_nothing_stored(&server).await;
    assert_eq!(receiver.requests().len(), 0);
}

/// Milliseconds in the place of seconds, above all.
async fn times_after_the_year_9999_are_refused(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
    let retry = format!("/v2/dlq/retry/{}", server.dead_letter(&id).await["dlqId"].as_str().expect("an id"));
    let url = receiver.url("/never");
    let callbacks = [("Upstash-Callback", &*url), ("Upstash-Callback-Failure-Callback", &*url)];
    for (name, value) in [
        ("Upstash-Not-Before", "1796081837163"),
        ("Upstash-Not-Before", "253402300800"),
        ("Upstash-Delay", "99999999d"),
        ("Upstash-Delay", "1796081837163"),
        ("Upstash-Delay", "99999999999999999999d"),
        ("Upstash-Callback-Delay", "99999999d"),
        ("Upstash-Callback-Failure-Callback-Delay", "99999999d"),
    ] {
        let headers = [callbacks[0], callbacks[1], (name, value)];
        for target in [
            format!("/v2/publish/{url}"),
            format!("/v2/enqueue/q/{url}"),
            format!("/v2/schedules/{url}"),
            retry.clone(),
            "/v2/dlq/retry".to_owned(),
        ] {
            let is_schedule = target.contains("/schedules/");
            if is_schedule && name == "Upstash-Not-Before" {
                continue;
            }
            let mut call = server.call("POST", &target).headers(&headers);
            if is_schedule {
                call = call.header("Upstash-Cron", "@yearly");
            }
            let error = call.send().await.error(400);
            assert!(error.contains("Unix time in seconds"), "{target}: {error}");
            assert!(error.contains(&name.to_lowercase()), "{target}: {error}");
        }
        let parameter = format!("{}={value}", name.to_lowercase());
        for target in [format!("/v2/publish/{url}?{parameter}"), format!("{retry}?{parameter}")] {
            let error = server.call("POST", &target).headers(&callbacks).send().await.error(400);
            assert!(error.contains("Unix time in seconds"), "{target}: {error}");
        }
        let fields: serde_json::Map<_, _> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let batch = json!([{"destination": url, "headers": fields}]).to_string();
        let error = server.call("POST", "/v2/batch").body(batch).send().await.error(400);
        assert!(error.starts_with("item 0: ") && error.contains("Unix time in seconds"), "{error}");
    }
    // The last second that there is.
    let last = server.publish(&url, &[("Upstash-Not-Before", "253402300799")], "x").await;
    assert_eq!(server.message(&last).await["notBefore"], 253_402_300_799_000_i64);
    assert_eq!(server.get_json("/v2/schedules").await, json!([]));
    assert_eq!(receiver.requests().len(), 1);
    // Parts of a second, as a division by 1000 leaves them.
    let id = server.publish(&url, &[("Upstash-Not-Before", "253402300798.25")], "x").await;
    assert_eq!(server.message(&id).await["notBefore"], 253_402_300_798_250_i64);
}

async fn names_that_paths_cannot_hold_are_refused(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    let refused = async |method: &str, target: &str, headers: &[(&str, &str)], body: String| {
        let error = server.call(method, target).headers(headers).body(body).send().await.error(400);
        assert!(error.contains("step of a path"), "{method} {target}: {error}");
    };
    for name in [".", ".."] {
        refused("POST", "/v2/queues", &[], json!({"queueName": name}).to_string()).await;
        refused("POST", &format!("/v2/enqueue/{name}/{url}"), &[], String::new()).await;
        refused("POST", &format!("/v2/enqueue/{}/{url}", name.replace('.', "%2e")), &[], String::new()).await;
        let endpoints = json!({"endpoints": [{"url": url}]}).to_string();
        refused("POST", &format!("/v2/topics/{name}/endpoints"), &[], endpoints).await;
        let publish = format!("/v2/publish/{url}");
        refused("POST", &publish, &[("Upstash-Queue-Name", name)], String::new()).await;
        let flow = [("Upstash-Flow-Control-Key", name), ("Upstash-Flow-Control-Value", "rate=1")];
        refused("POST", &publish, &flow, String::new()).await;
        let schedule = [("Upstash-Cron", "@yearly"), ("Upstash-Schedule-Id", name)];
        refused("POST", &format!("/v2/schedules/{url}"), &schedule, String::new()).await;
        refused("POST", &format!("/v2/flowControl/{name}/pause"), &[], String::new()).await;
        refused("POST", &format!("/v2/flowControl/{name}/pin?rate=1"), &[], String::new()).await;
        let batch = json!([{"destination": url, "queue": name}]).to_string();
        refused("POST", "/v2/batch", &[], batch).await;
        server.call("POST", &format!("/v2/publish/{name}")).send().await.error(404);
    }
    // What got such a name from an earlier version can be read, used up and deleted.
    let called = |name: &str| json!({"queueName": name, "paused": true}).to_string();
    server.call("POST", "/v2/queues").body(called("old")).send().await.json(200);
    let endpoints = json!({"endpoints": [{"url": url}]}).to_string();
    server.call("POST", "/v2/topics/old/endpoints").body(endpoints).send().await.json(200);
    server.call("POST", "/v2/flowControl/old/pause").send().await.json(200);
    t.execute("UPDATE url_groups SET name = '..'").await;
    assert_eq!(server.get_json("/v2/topics/..").await["name"], "..");
    server.call("POST", "/v2/publish/..").send().await.json(200);
    receiver.next_on("/").await;
    server.call("DELETE", "/v2/topics/..").send().await.json(200);
    assert_eq!(server.get_json("/v2/topics").await, json!([]));
}

async fn errors_repeat_little_of_what_they_refuse(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let long = "\u{fc}".repeat(5000);
    let escaped = "%C3%BC".repeat(5000);
    let url = receiver.url("/");
    let mut answers = Vec::new();
    for target in [
        format!("/v2/messages/{escaped}"),
        format!("/v2/dlq/{escaped}"),
        format!("/v2/schedules/{escaped}"),
        format!("/v2/topics/{escaped}"),
        format!("/v2/queues/{escaped}"),
        format!("/v2/flowControl/{}", "%C3%BC".repeat(250)),
        format!("/v2/events?{escaped}=1"),
        format!("/v2/events?cursor={escaped}"),
        format!("/v2/events?state={escaped}"),
        format!("/v2/events?order={escaped}"),
        format!("/v2/events?groupBy={escaped}"),
        format!("/v2/events?count={escaped}"),
        format!("/v2/events?fromDate={escaped}"),
        format!("/v2/events?host=a%20{escaped}"),
        format!("/v2/events?label=%01{escaped}"),
        format!("/v2/dlq?responseStatus={escaped}"),
        format!("/v2/dlq?cursor={escaped}"),
        format!("/v2/logs?trimBody={escaped}"),
    ] {
        answers.push((target.clone(), server.get(&target).await));
    }
    for target in [
        format!("/v2/publish/{}", "a".repeat(5000)),
        format!("/v2/publish/api/{}", "a".repeat(5000)),
        format!("/v2/publish/http://a%21{escaped}/"),
        format!("/v2/publish/http://[{}]/", "1".repeat(5000)),
        format!("/v2/publish/http://a:{}/", "a".repeat(5000)),
        format!("/v2/enqueue/{escaped}/{url}"),
        format!("/v2/publish/{url}?upstash-delay={escaped}"),
        format!("/v2/flowControl/k/pin?rate={escaped}"),
        format!("/v2/schedules/{url}?upstash-cron={escaped}"),
        format!("/v2/schedules/{url}?upstash-cron=*+*+*+*+{escaped}"),
        format!("/v2/schedules/{url}?upstash-cron=TZ={escaped}+*+*+*+*+*"),
        format!("/v2/schedules/{url}?upstash-cron=@{escaped}"),
    ] {
        answers.push((target.clone(), server.call("POST", &target).send().await));
    }
    for (method, target, body) in [
        ("POST", "/v2/batch", json!([{"destination": long}])),
        ("POST", "/v2/batch", json!([{"destination": format!("http://{long}!/")}])),
        ("POST", "/v2/batch", json!([{"destination": url, "queue": long}])),
        ("POST", "/v2/batch", json!([{"destination": url, "headers": {&long: 1}}])),
        ("POST", "/v2/batch", json!([{"destination": url, "headers": {"Upstash-Retries": long}}])),
        (
            "POST",
            "/v2/batch",
            json!([{"destination": url, "headers": {format!("Upstash-Forward-{long}"): "1"}}]),
        ),
        ("POST", "/v2/batch", json!(long)),
        ("POST", "/v2/queues", json!({"queueName": long})),
        ("POST", "/v2/queues", json!({"queueName": "q", "parallelism": long})),
        ("POST", "/v2/topics/g/endpoints", json!({"endpoints": [{"name": long, "url": url}]})),
        ("POST", "/v2/topics/g/endpoints", json!({"endpoints": long})),
        ("DELETE", "/v2/messages", json!({&long: "1"})),
        ("DELETE", "/v2/dlq", json!({&long: [{}]})),
    ] {
        let answer = server.call(method, target).body(body.to_string()).send().await;
        answers.push((target.to_owned(), answer));
    }
    for (target, answer) in answers {
        let target = &target[..target.len().min(80)];
        assert!((400..500).contains(&answer.status), "{target}: {} {}", answer.status, answer.text());
        let error = answer.error(answer.status);
        assert!(error.chars().count() <= 700, "{target}: {} characters: {error}", error.chars().count());
        assert!(
            !error.contains(&"\u{fc}".repeat(201)) && !error.contains(&"a".repeat(201)),
            "{target}: {error}"
        );
    }
}

async fn control_characters_are_refused(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    // The HTTP parser refuses these before anything of ours sees them.
    for value in [&b"a\x01b"[..], b"a\x00b", b"a\x7fb", b"a\rb"] {
        let call = server.call("POST", &format!("/v2/publish/{}", receiver.url("/")));
        assert_eq!(call.header("Upstash-Forward-X", value).send().await.status, 400, "{value:?}");
    }
    // In a parameter they can be written.
    for parameter in
        ["upstash-forward-x=a%0d%0ab:c", "upstash-forward-x=a%00b", "upstash-callback-forward-x=a%0ab"]
    {
        let url = receiver.url(&format!("/?upstash-callback=http://127.0.0.1:9/&{parameter}"));
        server.call("POST", &format!("/v2/publish/{url}")).send().await.error(400);
    }
    assert_nothing_stored(&server).await;
    assert_eq!(receiver.requests().len(), 0);
}

async fn bodies_over_the_limit_are_refused(t: Test) {
    let server = t.server_with(&[("HOMING_MAX_MESSAGE_SIZE", "1KiB")]).await;
    let receiver = Receiver::start().await;
    let target = format!("/v2/publish/{}", receiver.url("/"));
    server.call("POST", &target).body(vec![b'x'; 1025]).send().await.error(413);
    server.call("POST", &target).chunked().body(vec![b'x'; 1025]).send().await.error(413);
    assert_nothing_stored(&server).await;
    server.call("POST", &target).body(vec![b'x'; 1024]).send().await.json(200);
    assert_eq!(receiver.next_request().await.body.len(), 1024);
}

/// A request's head for `/v2/publish/…` with these lines.
fn publish_head(server: &Server, token: &str, lines: &str) -> String {
    format!(
        "POST /v2/publish/http://127.0.0.1:9/ HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n{lines}\r\n\r\n",
        server.address()
    )
}

async fn an_early_error_reaches_who_writes_first(t: Test) {
    let server = t.server().await;
    let large = vec![b'x'; 20 << 20];
    for (token, length, status) in [("wrong", 9 << 20, "401"), (TOKEN, 20 << 20, "413")] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let head = publish_head(&server, token, &format!("Content-Length: {length}"));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&large[..length]).await.unwrap();
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("error"), "{answer}");
    }
}

async fn an_early_error_does_not_ask_for_the_body(t: Test) {
    let server = t.server().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = publish_head(&server, "wrong", "Content-Length: 9000000\r\nExpect: 100-continue");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let read = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

async fn slow_uploads_stop_nobody_else(t: Test) {
    let server = t
        .server_with(&[
            ("HOMING_MAX_MESSAGE_SIZE", "1MiB"),
            ("HOMING_MAX_BATCH_SIZE", "1MiB"),
            ("HOMING_MAX_INFLIGHT_REQUEST_BYTES", "1MiB"),
        ])
        .await;
    let receiver = Receiver::start().await;
    let mut slow = Vec::new();
    for _ in 0..30 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let head = publish_head(&server, TOKEN, "Transfer-Encoding: chunked");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"1\r\nx\r\n").await.unwrap();
        slow.push(stream);
    }
    // One more is large. Being asked for its body, it holds all of the memory.
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = publish_head(&server, TOKEN, "Content-Length: 1048576\r\nExpect: 100-continue");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    slow.push(stream);
    let target = format!("/v2/publish/{}", receiver.url("/"));
    let large = server.call("POST", &target).body(vec![b'x'; 1 << 20]).send().await;
    large.error(503);
    assert!(large.header("retry-after").is_some());
    for size in [0, 1, 64 << 10] {
        server.call("POST", &target).body(vec![b'x'; size]).send().await.json(200);
        server.call("POST", &target).chunked().body(vec![b'x'; size / 64]).send().await.json(200);
    }
    drop(slow);
    server.call("POST", &target).body(vec![b'x'; 1 << 20]).send().await.json(200);
}

async fn unknown_routes_are_not_found(t: Test) {
    let server = t.server().await;
    for target in
        ["/v2", "/v2/", "/v2/nothing", "/v1/publish/https://example.com", "/v3/keys", "/v2/keys/nothing"]
    {
        for method in ["GET", "POST"] {
            let answer = server.call(method, target).send().await;
            assert_eq!(answer.status, 404, "{method} {target}: {}", answer.text());
            answer.error(404);
        }
    }
}

async fn known_routes_name_their_methods(t: Test) {
    let server = t.server().await;
    for (method, target, allowed) in [
        ("GET", "/v2/publish/https://example.com", "POST"),
        ("PUT", "/v2/messages/msg_a", "DELETE"),
        ("DELETE", "/v2/keys", "GET"),
        ("GET", "/v2/keys/rotate", "POST"),
        ("POST", "/v2/events", "GET"),
        ("PUT", "/v2/dlq/1-0", "DELETE"),
    ] {
        let answer = server.call(method, target).send().await;
        assert_eq!(answer.status, 405, "{method} {target}: {}", answer.text());
        answer.error(405);
        let allow = answer.header("allow").unwrap_or_else(|| panic!("{method} {target}: no Allow"));
        assert!(allow.split(',').any(|method| method.trim() == allowed), "{target}: {allow}");
    }
    // Never a redirect, with or without the last slash.
    assert_eq!(server.get("/v2/dlq/").await.status, 200);
    assert_eq!(server.get("/v2/keys/").await.status, 200);
}

async fn malformed_json_is_refused(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
    server.dead_letter(&id).await;
    for body in ["{", "[1]", "\"1-0\"", "{\"dlqIds\":\"", "{\"dlqIds\":[1]}", "\u{0}"] {
        let call = server.call("DELETE", "/v2/dlq").header("Content-Type", "application/json").body(body);
        let answer = call.send().await;
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
        answer.error(400);
    }
    server.call("DELETE", "/v2/dlq?labeel=x").send().await.error(400);
    server.call("POST", "/v2/dlq/retry?labeel=x").send().await.error(400);
    server.dead_letter(&id).await;
}

async fn small_bodies_make_no_large_messages(t: Test) {
    let settings = [
        ("HOMING_MAX_MESSAGE_SIZE", "1MiB"),
        ("HOMING_MAX_BATCH_SIZE", "4MiB"),
        ("HOMING_MAX_INFLIGHT_REQUEST_BYTES", "8MiB"),
    ];
    let server = t.server_with(&settings).await;
    let batch = async |item: &Value, count: usize| {
        let body = vec![item.to_string(); count].join(",");
        let call = server.call("POST", "/v2/batch").header("Content-Type", "application/json");
        call.body(format!("[{body}]")).send().await
    };
    let delay = "10d";
    let plain = json!({"destination": "https://example.com", "headers": {"Upstash-Delay": delay}});
    assert_eq!(batch(&plain, 10).await.json(200).as_array().map(Vec::len), Some(10));
    for headers in [
        json!({"Upstash-Delay": delay, "Upstash-Forward-A": vec![""; 250]}),
        json!({"Upstash-Delay": delay, "Upstash-Label": vec!["a"; 500].join(",")}),
        json!({"Upstash-Delay": delay, "Upstash-Callback": "https://example.com", "Upstash-Callback-Forward-A": vec![""; 200]}),
    ] {
        let item = json!({"destination": "https://example.com", "headers": headers});
        let error = batch(&item, 1000).await.error(413);
        assert!(error.contains("what its messages take in memory is larger than the limit"), "{error}");
    }
    // An item is checked before the next one is read.
    let error = batch(&json!({"headers": {"a": vec![""; 250]}}), 4000).await.error(400);
    assert!(error.starts_with("item 0: a non-empty destination"), "{error}");
    // What was held is given back.
    assert_eq!(batch(&plain, 2000).await.json(200).as_array().map(Vec::len), Some(2000));
    let ids = format!("[{}]", vec![r#""""#; 60_000].join(","));
    for (method, target) in [("DELETE", "/v2/messages"), ("DELETE", "/v2/dlq"), ("POST", "/v2/dlq/retry")] {
        let call = server.call(method, target).header("Content-Type", "application/json");
        let error = call.body(&ids).send().await.error(400);
        assert!(error.contains("it holds more than 50000 values"), "{target}: {error}");
    }
}

async fn no_answer_may_be_cached(t: Test) {
    let server = t.server().await;
    // The document has every route.
    let document = server.get_json("/openapi.json").await;
    let mut targets =
        vec![("GET".to_owned(), "/nowhere".to_owned()), ("BREW".to_owned(), "/v2/keys".to_owned())];
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let path: String = path.split('/').map(|part| if part.starts_with('{') { "/x" } else { part }).fold(
            String::new(),
            |path, part| {
                if part.is_empty() { path } else { path + "/" + part.trim_start_matches('/') }
            },
        );
        for method in operations.as_object().expect("operations").keys() {
            targets.push((method.to_uppercase(), path.clone()));
        }
    }
    assert!(targets.len() > 30, "{targets:?}");
    for (method, target) in &targets {
        for call in [server.call(method, target).without("Authorization"), server.call(method, target)] {
            let answer = call.send().await;
            let shown = (answer.status, answer.header("cache-control"));
            assert_eq!(shown, (answer.status, Some("no-store")), "{method} {target}: {}", answer.text());
        }
    }
    // An answer of the HTTP library's own.
    let answer = server.call("GET", "/v2/keys").header("X-Bad", b"a\x00b").send().await;
    assert_eq!((answer.status, answer.header("cache-control")), (400, Some("no-store")));
}
