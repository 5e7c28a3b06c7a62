//! What a destination receives, and what its answers lead to.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Gate, Receiver, Reply, Server, TOKEN, Test, eventually, hex};

engines! {
    the_server_adds_its_headers,
    forwarded_headers_are_unwrapped_once,
    forwarded_values_keep_their_bytes,
    bytes_of_a_response_are_shown_as_text,
    the_servers_headers_cannot_be_overridden,
    a_forwarded_content_type_wins,
    userinfo_becomes_basic_authorization,
    any_2xx_is_delivered,
    any_other_status_fails,
    redirects_are_not_followed,
    a_489_with_its_header_is_final,
    no_answer_is_a_failed_attempt,
    the_timeout_spans_the_whole_attempt,
    attempts_share_the_id_and_count_up,
    the_retry_delay_expression_is_followed,
    the_default_back_off_begins_at_twelve_seconds,
    retry_after_comes_first,
    unusable_retry_headers_are_ignored,
    a_silent_destination_holds_up_no_other,
    many_silent_destinations_hold_up_no_other,
    who_answers_goes_on_where_nobody_else_does,
    parallel_deliveries_keep_their_bodies,
    a_lack_of_descriptors_costs_no_attempt,
}

async fn the_server_adds_its_headers(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/x?y=1"), &[], "hello").await;
    let request = receiver.next_request().await;
    assert_eq!(request.header("user-agent"), Some("Upstash-QStash"));
    assert_eq!(request.message_id(), id);
    assert_eq!(request.header("upstash-retried"), Some("0"));
    assert_eq!(request.header("upstash-caller-ip"), Some("127.0.0.1"));
    assert_eq!(request.all("host"), [format!("127.0.0.1:{}", receiver.port())]);
    assert_eq!(request.all("content-length"), ["5"]);
    assert!(request.header("upstash-signature").is_some());
    for absent in [
        "content-type",
        "authorization",
        "upstash-schedule-id",
        "upstash-topic-name",
        "upstash-region",
        "upstash-method",
    ] {
        assert_eq!(request.header(absent), None, "{absent}");
    }
}

async fn forwarded_headers_are_unwrapped_once(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Upstash-Forward-Upstash-Workflow-Runid", "wfr_1"),
        ("Upstash-Forward-Upstash-Forward-Deep", "2"),
        ("Upstash-Forward-User-Agent", "mine/1.0"),
        ("Upstash-Forward-Authorization", "Bearer theirs"),
    ];
    server.publish(&receiver.url("/"), &headers, "x").await;
    let request = receiver.next_request().await;
    assert_eq!(request.header("upstash-workflow-runid"), Some("wfr_1"));
    assert_eq!(request.header("upstash-forward-deep"), Some("2"));
    assert_eq!(request.all("user-agent"), ["mine/1.0"]);
    assert_eq!(request.all("authorization"), ["Bearer theirs"]);
}

/// Latin-1, UTF-8, and both in one value, which is neither.
const VALUES: [&[u8]; 3] = [b"J\xf6rg", b"J\xc3\xb6rg", b"J\xf6rg J\xc3\xb6rg \x80\xff"];
/// How they are shown.
const TEXTS: [&str; 3] = ["J\u{f6}rg", "J\u{f6}rg", "J\u{f6}rg J\u{c3}\u{b6}rg \u{80}\u{ff}"];

async fn forwarded_values_keep_their_bytes(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let url = receiver.url("/");
    for (value, text) in VALUES.into_iter().zip(TEXTS) {
        for target in [format!("/v2/publish/{url}"), format!("/v2/enqueue/q/{url}")] {
            let call = server.call("POST", &target).header("Upstash-Forward-X-Name", value);
            let call = call.header("Content-Type", value).header("Upstash-Label", value);
            let call = call.header("Upstash-Callback", receiver.url("/callback"));
            let call = call.header("Upstash-Callback-Forward-X-Name", value);
            let answer = call.header("Upstash-Retries", "0").body("x").send().await.json(200);
            let id = answer["messageId"].as_str().expect("an id");
            let request = receiver.next_on("/").await;
            assert_eq!([request.bytes("x-name"), request.bytes("content-type")], [value, value]);
            let callback = receiver.next_on("/callback").await;
            assert_eq!(callback.bytes("x-name"), value);
            assert_eq!(callback.json()["sourceHeader"], json!({"Content-Type": [text], "X-Name": [text]}));

            let letter = server.dead_letter(id).await;
            for shown in [&server.message(id).await, &letter, &server.events(id).await[0]] {
                assert_eq!(shown["header"], json!({"Content-Type": [text], "X-Name": [text]}));
                assert_eq!(shown["label"], json!(text));
            }
            assert_eq!(letter["callbackHeader"], json!({"X-Name": [text]}));
            let target = format!("/v2/dlq/retry/{}", letter["dlqId"].as_str().expect("an id"));
            let call = server.call("POST", &target).header("Upstash-Forward-X-Other", value);
            call.send().await.json(201);
            let request = receiver.next_on("/").await;
            assert_eq!([request.bytes("x-name"), request.bytes("x-other")], [value, value]);
            assert_eq!(receiver.next_on("/callback").await.bytes("x-name"), value);
        }

        let call = server.call("POST", &format!("/v2/publish/{url}?upstash-retries=0"));
        let call = call.header("Upstash-Header-Forward", "true").header("X-Own", value);
        call.send().await.json(200);
        assert_eq!(receiver.next_on("/").await.bytes("x-own"), value);

        let escaped: String = hex(value)
            .as_bytes()
            .chunks(2)
            .fold(String::new(), |text, byte| text + "%" + std::str::from_utf8(byte).expect("hex"));
        let target = format!("/v2/publish/{url}?upstash-forward-x-name={escaped}&upstash-retries=0");
        let answer = server.call("POST", &target).send().await.json(200);
        assert_eq!(receiver.next_on("/").await.bytes("x-name"), value);
        let letter = server.dead_letter(answer["messageId"].as_str().expect("an id")).await;
        let id = letter["dlqId"].as_str().expect("an id");
        let target = format!("/v2/dlq/retry/{id}?upstash-forward-x-more={escaped}");
        server.call("POST", &target).send().await.json(201);
        let request = receiver.next_on("/").await;
        assert_eq!([request.bytes("x-name"), request.bytes("x-more")], [value, value]);
    }
    // JSON is text, which goes out as UTF-8.
    let item = json!([{"destination": url, "headers": {"Upstash-Forward-X-Name": TEXTS[0], "Upstash-Retries": "0"}}]);
    let call = server.call("POST", "/v2/batch").header("Content-Type", "application/json");
    call.body(item.to_string()).send().await.json(200);
    assert_eq!(receiver.next_on("/").await.bytes("x-name"), VALUES[1]);
}

async fn bytes_of_a_response_are_shown_as_text(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let reply = VALUES.iter().fold(Reply::status(500), |reply, value| reply.header("X-Name", value));
    receiver.script("/", [reply]);
    let callback = receiver.url("/callback");
    let headers = [("Upstash-Retries", "0"), ("Upstash-Callback", callback.as_str())];
    let id = server.publish(&receiver.url("/"), &headers, "x").await;
    let notice = receiver.next_on("/callback").await.json();
    assert_eq!(notice["header"]["X-Name"], json!(TEXTS));
    assert_eq!(notice["headers"]["X-Name"], json!(TEXTS.join(", ")));
    assert_eq!(server.dead_letter(&id).await["responseHeader"]["X-Name"], json!(TEXTS));
    let events = server.events(&id).await;
    let failed = events.iter().find(|event| event["state"] == "FAILED").expect("it has failed");
    for name in ["responseHeader", "responseHeaders"] {
        assert_eq!(failed[name]["X-Name"], json!(TEXTS), "{name}");
    }
}

async fn the_servers_headers_cannot_be_overridden(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Upstash-Forward-Upstash-Message-Id", "forged"),
        ("Upstash-Forward-Upstash-Retried", "7"),
        ("Upstash-Forward-Upstash-Signature", "forged"),
        ("Upstash-Forward-Upstash-Caller-Ip", "192.0.2.1"),
        ("Upstash-Forward-Upstash-Topic-Name", "forged"),
        ("Upstash-Forward-Upstash-Schedule-Id", "forged"),
        ("Upstash-Forward-Host", "forged.example"),
        ("Upstash-Forward-Content-Length", "999"),
        ("Upstash-Forward-Transfer-Encoding", "chunked"),
        ("Upstash-Forward-Connection", "close"),
        ("Upstash-Forward-Upgrade", "websocket"),
        ("Upstash-Forward-Te", "trailers"),
        ("Upstash-Forward-Proxy-Authorization", "Basic eA=="),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "hello").await;
    let request = receiver.next_request().await;
    assert_eq!(request.all("upstash-message-id"), [id]);
    assert_eq!(request.all("upstash-retried"), ["0"]);
    assert_eq!(request.all("upstash-caller-ip"), ["127.0.0.1"]);
    assert_ne!(request.all("upstash-signature"), ["forged"]);
    assert_eq!(request.all("host"), [format!("127.0.0.1:{}", receiver.port())]);
    assert_eq!(request.all("content-length"), ["5"]);
    for absent in [
        "upstash-topic-name",
        "upstash-schedule-id",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "proxy-authorization",
    ] {
        assert_eq!(request.header(absent), None, "{absent}");
    }
}

async fn a_forwarded_content_type_wins(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let plain = ("Content-Type", "text/plain; charset=utf-8");
    let forwarded = ("Upstash-Forward-Content-Type", "application/vnd.x+json");
    for (headers, expected) in
        [(vec![plain], plain.1), (vec![forwarded], forwarded.1), (vec![plain, forwarded], forwarded.1)]
    {
        let id = server.publish(&receiver.url("/"), &headers, "x").await;
        assert_eq!(receiver.next_request().await.all("content-type"), [expected]);
        assert_eq!(server.message(&id).await["header"], json!({"Content-Type": [expected]}));
    }
}

async fn userinfo_becomes_basic_authorization(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = format!("http://user:p%40ss@127.0.0.1:{}/", receiver.port());
    server.publish(&url, &[], "x").await;
    // user:p@ss
    assert_eq!(receiver.next_request().await.all("authorization"), ["Basic dXNlcjpwQHNz"]);
    server.publish(&url, &[("Upstash-Forward-Authorization", "Bearer mine")], "x").await;
    assert_eq!(receiver.next_request().await.all("authorization"), ["Bearer mine"]);
}

async fn any_2xx_is_delivered(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for status in [200, 201, 202, 204, 206, 299] {
        let path = format!("/{status}");
        receiver.script(&path, [Reply::status(status)]);
        let id = server.publish(&receiver.url(&path), &[("Upstash-Retries", "0")], "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED", "{status}");
    }
}

async fn any_other_status_fails(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for status in [304, 400, 404, 410, 429, 500, 503] {
        let path = format!("/{status}");
        receiver.script(&path, [Reply::status(status)]);
        let id = server.publish(&receiver.url(&path), &[("Upstash-Retries", "0")], "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR FAILED", "{status}");
        assert_eq!(server.dead_letter(&id).await["responseStatus"], status);
    }
}

async fn redirects_are_not_followed(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for status in [301, 302, 303, 307, 308] {
        let path = format!("/{status}");
        receiver.script(&path, [Reply::status(status).header("Location", receiver.url("/target"))]);
        let id = server.publish(&receiver.url(&path), &[("Upstash-Retries", "0")], "x").await;
        assert_eq!(server.dead_letter(&id).await["responseStatus"], status);
    }
    assert_eq!(receiver.requests_on("/target").len(), 0);
}

async fn a_489_with_its_header_is_final(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [("Upstash-Retries", "2"), ("Upstash-Retry-Delay", "20")];
    receiver.script("/final", [Reply::status(489).header("Upstash-NonRetryable-Error", "true")]);
    let id = server.publish(&receiver.url("/final"), &headers, "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR FAILED");
    assert_eq!(server.dead_letter(&id).await["responseStatus"], 489);
    assert_eq!(receiver.counts()[&id], 1);

    receiver.script("/ordinary", [Reply::status(489)]);
    let id = server.publish(&receiver.url("/ordinary"), &headers, "x").await;
    server.dead_letter(&id).await;
    assert_eq!(receiver.counts()[&id], 3);
}

async fn no_answer_is_a_failed_attempt(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/hangup", [Reply::hangup()]);
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let refused = format!("http://{}/", unused.local_addr().expect("its address"));
    drop(unused);
    for url in [receiver.url("/hangup"), refused, "http://no-such-host.invalid/".to_owned()] {
        let id = server.publish(&url, &[("Upstash-Retries", "0")], "x").await;
        let letter = server.dead_letter(&id).await;
        assert_eq!(letter["responseStatus"], 0, "{url}");
        assert_eq!((letter.get("responseBody"), letter.get("responseHeader")), (None, None), "{url}");
        let events = server.events(&id).await;
        let error = events.iter().find(|event| event["state"] == "ERROR").expect("an ERROR entry");
        assert!(error["error"].as_str().is_some_and(|text| !text.is_empty()), "{url}: {error}");
    }
    // Sent once: a request that was written must not be sent again behind the attempt's back.
    assert_eq!(receiver.requests_on("/hangup").len(), 1);
}

async fn the_timeout_spans_the_whole_attempt(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/silent", [Reply::ok().behind(&gate)]);
    receiver.script("/stalling", [Reply::ok().body("begun").stalling()]);
    receiver.script("/dripping", [Reply::ok().body(vec![b'x'; 600]).dripping(Duration::from_millis(100))]);
    let headers = [("Upstash-Retries", "0"), ("Upstash-Timeout", "1s")];
    for path in ["/silent", "/stalling", "/dripping"] {
        let start = Instant::now();
        let id = server.publish(&receiver.url(path), &headers, "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR FAILED", "{path}");
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(10), "{path}: {took:?}");
        assert_eq!(server.dead_letter(&id).await["responseStatus"], 0, "{path}");
    }
    gate.open();
}

async fn attempts_share_the_id_and_count_up(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500), Reply::hangup(), Reply::status(404), Reply::ok()]);
    let headers = [
        ("Upstash-Retries", "5"),
        ("Upstash-Retry-Delay", "20"),
        ("Upstash-Forward-X", "1"),
        ("Content-Type", "a/b"),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "the body").await;
    let mut signatures = Vec::new();
    for retried in 0..4 {
        let request = receiver.next_request().await;
        assert_eq!((request.message_id(), request.retried()), (id.as_str(), retried));
        assert_eq!((request.header("x"), request.header("content-type")), (Some("1"), Some("a/b")));
        assert_eq!(request.body, "the body");
        signatures.push(request.header("upstash-signature").expect("signed").to_owned());
    }
    signatures.dedup();
    assert_eq!(signatures.len(), 4, "each attempt is signed anew");
    let expected = "CREATED ACTIVE ERROR RETRY ACTIVE ERROR RETRY ACTIVE ERROR RETRY ACTIVE DELIVERED";
    assert_eq!(server.ended(&id).await, expected);
}

async fn the_retry_delay_expression_is_followed(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let expression = "max(0, pow(2, retried)) * 150 + 50";
    let headers = [("Upstash-Retries", "2"), ("Upstash-Retry-Delay", expression)];
    let id = server.publish(&receiver.url("/"), &headers, "x").await;
    let mut last = receiver.next_request().await.at;
    for least in [200, 350] {
        let at = receiver.next_request().await.at;
        // The wait begins when the answer is in, so what the receiver sees is longer; but due times are whole
        // milliseconds, by the node's idea of the database's clock.
        let least = Duration::from_millis(least - 5);
        assert!(at - last >= least, "{:?} instead of {least:?}", at - last);
        last = at;
    }
    assert_eq!(server.dead_letter(&id).await["retryDelayExpression"], expression);
}

async fn the_default_back_off_begins_at_twelve_seconds(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let id = server.publish(&receiver.url("/"), &[], "x").await;
    let retry = eventually("a RETRY entry", async || {
        server.events(&id).await.into_iter().find(|event| event["state"] == "RETRY")
    })
    .await;
    let wait = retry["nextDeliveryTime"].as_i64().expect("ms") - retry["time"].as_i64().expect("ms");
    assert!((11_900..=12_200).contains(&wait), "{wait} ms: {retry}");
}

async fn retry_after_comes_first(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let past = httpdate::fmt_http_date(SystemTime::now() - Duration::from_mins(1));
    let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    for (i, (replied, least_ms)) in [
        (vec![("Retry-After", "1")], 1000),
        (vec![("Retry-After", "0")], 0),
        (vec![("Retry-After", "0.3")], 300),
        (vec![("Retry-After", past.as_str())], 0),
        (vec![("Retry-After", soon.as_str())], 0),
        (vec![("X-RateLimit-Reset", "250ms")], 250),
        (vec![("X-RateLimit-Reset-Requests", "1s200ms")], 1200),
        (vec![("X-RateLimit-Reset-Tokens", "100ms"), ("X-RateLimit-Reset", "600ms")], 600),
        (vec![("X-RateLimit-Reset", "5h"), ("Retry-After", "0")], 0),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{i}");
        let reply = replied.iter().fold(Reply::status(429), |reply, (name, value)| reply.header(name, value));
        receiver.script(&path, [reply, Reply::ok()]);
        // An hour, if the response did not say otherwise.
        let headers = [("Upstash-Retries", "1"), ("Upstash-Retry-Delay", "3600000")];
        let id = server.publish(&receiver.url(&path), &headers, "x").await;
        let first = receiver.next_on(&path).await.at;
        let waited = receiver.next_on(&path).await.at - first;
        assert!(waited >= Duration::from_millis(least_ms), "{replied:?}: {waited:?}");
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED", "{replied:?}");
    }
}

async fn unusable_retry_headers_are_ignored(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for (i, value) in ["86401", "1760000000", "soon", "-5", "", "1d", "25h"].into_iter().enumerate() {
        let path = format!("/{i}");
        receiver.script(&path, [Reply::status(503).header("Retry-After", value), Reply::ok()]);
        let headers = [("Upstash-Retries", "1"), ("Upstash-Retry-Delay", "20")];
        let id = server.publish(&receiver.url(&path), &headers, "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED", "{value:?}");
    }
}

async fn a_silent_destination_holds_up_no_other(t: Test) {
    let server = t.server().await;
    let (silent, healthy) = (Receiver::start().await, Receiver::start().await);
    let gate = Gate::new();
    silent.script("/", [Reply::ok().behind(&gate)]);
    for _ in 0..300 {
        server.publish(&silent.url("/"), &[], "x").await;
    }
    for i in 0..20 {
        let id = server.publish(&healthy.url("/"), &[], i.to_string()).await;
        assert_eq!(healthy.next_request().await.message_id(), id);
    }
    assert!(silent.open() > 0, "the silent destination holds requests");
    gate.open();
    eventually("the held messages are delivered", async || (silent.requests().len() == 300).then_some(()))
        .await;
}

/// Destinations that accept connections and say nothing, at as many addresses as one likes.
struct Silent {
    port: u16,
    accepted: Arc<AtomicUsize>,
}

impl Silent {
    async fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                kept.push(connection);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { port, accepted }
    }

    /// Publishes as many messages to each of so many origins.
    async fn publish(&self, server: &Server, origins: usize, each: usize) {
        let mut items = Vec::new();
        for origin in 0..origins {
            let url = format!("http://127.1.{}.{}:{}/", origin / 250, origin % 250 + 1, self.port);
            items.extend((0..each).map(|_| json!({"destination": &*url, "body": "x"})));
        }
        let call = server.call("POST", "/v2/batch").header("Content-Type", "application/json");
        call.body(Value::from(items).to_string()).send().await.json(200);
    }

    async fn accepted(&self, count: usize) {
        eventually(&format!("{count} attempts hang"), async || {
            (self.accepted.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }
}

async fn many_silent_destinations_hold_up_no_other(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let silent = Silent::start().await;
    silent.publish(&server, 600, 2).await;
    silent.accepted(600).await;
    for i in 0..20 {
        let id = server.publish(&receiver.url("/"), &[], i.to_string()).await;
        assert_eq!(receiver.next_request().await.message_id(), id);
    }
    silent.accepted(1200).await;
}

async fn who_answers_goes_on_where_nobody_else_does(t: Test) {
    let limits =
        [("HOMING_CONCURRENCY", "16"), ("HOMING_CONCURRENCY_PER_ORIGIN", "16"), ("HOMING_PREFETCH", "64")];
    let (server, receiver) = (t.server_with(&limits).await, Receiver::start().await);
    let known = server.publish(&receiver.url("/"), &[], "x").await;
    assert_eq!(server.ended(&known).await, "CREATED ACTIVE DELIVERED");
    // More than the slots, more than what is kept in memory, and more than a look at the store finds.
    let silent = Silent::start().await;
    silent.publish(&server, 400, 2).await;
    silent.accepted(14).await;
    receiver.script("/again", [Reply::status(500), Reply::ok()]);
    let retry = [("Upstash-Retries", "1"), ("Upstash-Retry-Delay", "20")];
    let again = server.publish(&receiver.url("/again"), &retry, "x").await;
    let later = server.publish(&receiver.url("/"), &[("Upstash-Delay", "1s")], "x").await;
    for _ in 0..30 {
        let id = server.publish(&receiver.url("/"), &[], "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
    }
    assert_eq!(server.ended(&again).await, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED");
    assert_eq!(server.ended(&later).await, "CREATED ACTIVE DELIVERED");
}

async fn parallel_deliveries_keep_their_bodies(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::ok().after(Duration::from_millis(20))]);
    let mut published = std::collections::HashMap::new();
    for i in 0..100 {
        let body = format!("body {i} {}", "x".repeat(i * 37));
        published.insert(server.publish(&receiver.url("/"), &[], &body).await, body);
    }
    for id in published.keys() {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
    let requests = receiver.requests();
    assert_eq!(requests.len(), 100, "each message arrives once");
    for request in requests {
        assert_eq!(request.body, published[request.message_id()]);
    }
    assert!(receiver.most_open() > 1, "deliveries run side by side");
}

/// The lowest descriptor that a process has free: with it as the limit, it gets none.
fn lowest_free_descriptor(pid: Pid) -> u64 {
    let open: HashSet<u64> = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    (0..=open.len() as u64).find(|number| !open.contains(number)).unwrap()
}

async fn a_lack_of_descriptors_costs_no_attempt(t: Test) {
    t.allow_errors("Too many open files");
    let (server, receiver) = (t.server().await, Receiver::start().await);
    // The server can't accept a connection then, so there has to be one.
    let mut connection = TcpStream::connect(server.address()).await.expect("a connection");
    let publish = async |connection: &mut TcpStream, url: &str| {
        let request = format!(
            "POST /v2/publish/{url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
             Upstash-Retries: 0\r\nContent-Length: 1\r\n\r\nx"
        );
        connection.write_all(request.as_bytes()).await.expect("the request is sent");
        let mut answer = String::new();
        while !answer.contains('}') {
            let mut part = [0; 4096];
            let count = connection.read(&mut part).await.expect("an answer");
            assert!(count > 0, "the server hung up: {answer}");
            answer.push_str(std::str::from_utf8(&part[..count]).expect("text"));
        }
        let json = answer.split("\r\n\r\n").nth(1).expect("a body");
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        json["messageId"].as_str().expect("an id").to_owned()
    };
    // Everything that is opened once is open after a first delivery, which leaves no connection behind.
    receiver.script("/warm", [Reply::ok().header("Connection", "close")]);
    let warm = publish(&mut connection, &receiver.url("/warm")).await;
    assert_eq!(server.ended(&warm).await, "CREATED ACTIVE DELIVERED");

    let pid = server.pid();
    let old = prlimit(Some(pid), Resource::Nofile, limit(lowest_free_descriptor(pid))).expect("a limit");
    let mut ids = Vec::new();
    let said = async || {
        // Connections of earlier calls may end meanwhile and leave descriptors free below the limit.
        prlimit(Some(pid), Resource::Nofile, limit(lowest_free_descriptor(pid))).expect("a limit");
        for host in ["127.0.0.1", "localhost"] {
            ids.push(publish(&mut connection, &format!("http://{host}:{}/", receiver.port())).await);
        }
        server.log().text().contains("this machine is short of descriptors").then_some(())
    };
    eventually("the log says what is lacking", said).await;
    prlimit(Some(pid), Resource::Nofile, old).expect("the old limit");
    for id in ids {
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
    }
}

/// The soft limit; the server has inherited the hard one.
fn limit(descriptors: u64) -> Rlimit {
    Rlimit { current: Some(descriptors), ..getrlimit(Resource::Nofile) }
}
