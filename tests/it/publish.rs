//! What a publish takes: destinations as they stand in the request target, bodies, and every option of one message.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Receiver, Reply, Server, TOKEN, Test, hex};

engines! {
    bodies_arrive_byte_for_byte,
    an_empty_body_is_no_body,
    a_body_may_come_in_chunks,
    urls_stay_as_they_are,
    a_percent_encoded_url_is_decoded_once,
    merged_slashes_are_repaired,
    the_servers_own_parameters_are_cut_out,
    parameters_stand_for_headers_and_headers_win,
    fixed_words_match_in_any_case,
    the_answer_names_the_message,
    every_method_is_delivered,
    delay_is_waited_for,
    not_before_wins_over_delay,
    retries_bound_the_attempts,
    the_header_map_is_what_was_forwarded,
    header_forward_takes_everything_but_secrets,
    a_deduplication_id_makes_one_message,
    content_is_deduplicated_on_request,
    equal_ids_at_once_make_one_message,
    labels_are_split_and_trimmed,
    redacted_fields_are_hidden_but_delivered,
    unknown_and_empty_options_are_ignored,
}

async fn bodies_arrive_byte_for_byte(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0_u32..3_000_000).map(|i| i.to_le_bytes()[usize::from(i % 3 == 0)]).collect();
    for body in [every_byte, large, b"{\"hello\":\"w\xc3\xb6rld\"}\r\n\0".to_vec()] {
        let id = server.publish(&receiver.url("/"), &[], &body).await;
        let request = receiver.next_request().await;
        assert_eq!(request.message_id(), id);
        assert!(request.body == body, "the body of {} bytes has changed", body.len());
    }
}

async fn an_empty_body_is_no_body(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[], "").await;
    let request = receiver.next_request().await;
    assert_eq!(request.body, "");
    assert_eq!(request.header("content-length"), Some("0"));
    assert_eq!(request.header("transfer-encoding"), None);
    let message = server.message(&id).await;
    assert_eq!((message.get("body"), message.get("bodyBase64")), (None, None));
}

async fn a_body_may_come_in_chunks(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let target = format!("/v2/publish/{}", receiver.url("/"));
    server.call("POST", &target).chunked().body("a body in several chunks").send().await.json(200);
    assert_eq!(receiver.next_request().await.body, "a body in several chunks");
    let call = server.call("POST", &target).header("Expect", "100-continue");
    call.body("expected").send().await.json(200);
    assert_eq!(receiver.next_request().await.body, "expected");
}

async fn urls_stay_as_they_are(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for rest in [
        "/",
        "/a?b=1&c=2",
        "/a//b///c",
        "/a/../b/./c",
        "/%2F%61%20?q=%2B+%25",
        "/p?u=https://z.com/?a=1",
        "/trailing/?",
        "/comma,semi;colon:at@",
        "/UPPER?Mixed=Case",
    ] {
        let url = receiver.url(rest);
        let id = server.publish(&url, &[], "x").await;
        assert_eq!(receiver.next_request().await.target, rest);
        assert_eq!(server.message(&id).await["url"], url);
    }
    // Without a path the request line needs a slash, but the URL keeps its form.
    let bare = receiver.url("");
    let id = server.publish(&bare, &[], "x").await;
    assert_eq!(receiver.next_request().await.target, "/");
    assert_eq!(server.message(&id).await["url"], bare);
    let upper = bare.replacen("http://", "HTTP://", 1);
    let id = server.publish(&upper, &[], "x").await;
    receiver.next_request().await;
    assert_eq!(server.message(&id).await["url"], upper);
}

async fn a_percent_encoded_url_is_decoded_once(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let port = receiver.port();
    let id = server
        .publish(&format!("http%3A%2F%2F127.0.0.1%3A{port}%2Fa%2520b?y=2&upstash-retries=1"), &[], "x")
        .await;
    assert_eq!(receiver.next_request().await.target, "/a%20b?y=2");
    let message = server.message(&id).await;
    assert_eq!(message["url"], receiver.url("/a%20b?y=2"));
    assert_eq!(message["maxRetries"], 1);
}

async fn merged_slashes_are_repaired(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&format!("http:/127.0.0.1:{}/x", receiver.port()), &[], "x").await;
    receiver.next_on("/x").await;
    assert_eq!(server.message(&id).await["url"], receiver.url("/x"));
}

async fn the_servers_own_parameters_are_cut_out(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for (sent, delivered) in [
        (format!("/a?qstash_token={TOKEN}"), "/a"),
        (format!("/a?x=1&qstash_token={TOKEN}&y=2"), "/a?x=1&y=2"),
        (format!("/a?qstash_token={TOKEN}&y=%41+b"), "/a?y=%41+b"),
        (format!("/a?b&upstash-retries=0&Upstash-Label=l&qstash_token={TOKEN}"), "/a?b"),
    ] {
        let call =
            server.call("POST", &format!("/v2/publish/{}", receiver.url(&sent))).without("authorization");
        let id = call.send().await.json(200)["messageId"].as_str().expect("an id").to_owned();
        assert_eq!(receiver.next_request().await.target, delivered);
        assert_eq!(server.message(&id).await["url"], receiver.url(delivered));
        let log = server.log().text();
        assert!(!log.contains(TOKEN), "the token is in the log:\n{log}");
    }
}

async fn parameters_stand_for_headers_and_headers_win(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let query = "upstash-retries=1&upstash-label=from-query&upstash-method=put&upstash-forward-x-a=%C3%BCber";
    let url = receiver.url(&format!("/q?{query}"));
    let id = server.publish(&url, &[("Upstash-Label", "from-header")], "x").await;
    let request = receiver.next_request().await;
    assert_eq!((request.method.as_str(), request.target.as_str()), ("PUT", "/q"));
    assert_eq!(request.headers.get("x-a").expect("the forwarded header").as_bytes(), "über".as_bytes());
    let message = server.message(&id).await;
    assert_eq!((&message["maxRetries"], &message["label"]), (&json!(1), &json!("from-header")));
}

async fn fixed_words_match_in_any_case(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    server.call("POST", &format!("/V2/Publish/{}", receiver.url("/Case"))).send().await.json(200);
    assert_eq!(receiver.next_request().await.target, "/Case");
}

async fn the_answer_names_the_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let answer = server.call("POST", &format!("/v2/publish/{}", receiver.url("/"))).send().await.json(200);
    let id = answer["messageId"].as_str().expect("a text");
    assert!(id.starts_with("msg_"), "{id}");
    assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{id} needs escaping");
    assert_eq!(answer.get("deduplicated"), None);
    // Readable in the very next request.
    assert_eq!(server.message(id).await["messageId"], id);
}

async fn every_method_is_delivered(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "patch"] {
        let id = server.publish(&receiver.url("/"), &[("Upstash-Method", method)], "a body").await;
        let request = receiver.next_request().await;
        assert_eq!(request.method, method.to_uppercase());
        assert_eq!(request.body, "a body", "{method}");
        assert_eq!(server.message(&id).await["method"], method.to_uppercase());
    }
    server.publish(&receiver.url("/"), &[], "").await;
    assert_eq!(receiver.next_request().await.method, "POST");
}

async fn delay_is_waited_for(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let start = Instant::now();
    let delayed = server.publish(&receiver.url("/delayed"), &[("Upstash-Delay", "1s")], "x").await;
    let at_once = server.publish(&receiver.url("/at-once"), &[("Upstash-Delay", "0s")], "x").await;
    assert_eq!(receiver.next_request().await.message_id(), at_once);
    let request = receiver.next_request().await;
    assert_eq!(request.message_id(), delayed);
    let waited = request.at - start;
    assert!(waited >= Duration::from_secs(1), "early: after {waited:?}");

    let long = server.publish(&receiver.url("/"), &[("Upstash-Delay", "1d10h30m5.5s")], "x").await;
    let message = server.message(&long).await;
    let ms = message["notBefore"].as_i64().expect("ms") - message["createdAt"].as_i64().expect("ms");
    assert_eq!(ms, ((34 * 60 + 30) * 60 + 5) * 1000 + 500);
    let bare = server.publish(&receiver.url("/"), &[("Upstash-Delay", "90")], "x").await;
    let message = server.message(&bare).await;
    assert_eq!(
        message["notBefore"].as_i64().expect("ms") - message["createdAt"].as_i64().expect("ms"),
        90_000
    );
}

async fn not_before_wins_over_delay(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let due = (now + 3600).to_string();
    let headers = [("Upstash-Not-Before", due.as_str()), ("Upstash-Delay", "1d")];
    let id = server.publish(&receiver.url("/"), &headers, "x").await;
    assert_eq!(server.message(&id).await["notBefore"], (now + 3600) * 1000);
    // What lies in the past is due now.
    let past = (now - 3600).to_string();
    let id = server.publish(&receiver.url("/past"), &[("Upstash-Not-Before", &past)], "x").await;
    assert_eq!(receiver.next_request().await.message_id(), id);
}

async fn retries_bound_the_attempts(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    for retries in [0, 2] {
        let number = retries.to_string();
        let headers = [("Upstash-Retries", number.as_str()), ("Upstash-Retry-Delay", "20")];
        let id = server.publish(&receiver.url("/"), &headers, "x").await;
        server.dead_letter(&id).await;
        assert_eq!(receiver.counts()[&id], retries + 1);
        assert_eq!(server.message(&id).await["maxRetries"], retries);
    }
    let id = server.publish(&receiver.url("/default"), &[], "x").await;
    assert_eq!(server.message(&id).await["maxRetries"], 3);
}

async fn the_header_map_is_what_was_forwarded(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Content-Type", "application/json"),
        ("upstash-forward-test-header", "test-value"),
        ("Upstash-Forward-Multi", "one"),
        ("Upstash-Forward-Multi", "two"),
        ("Upstash-Forward-Empty", ""),
        ("Upstash-Telemetry-Sdk", "upstash-qstash-js@2.12.0"),
        ("User-Agent", "node"),
        ("Accept", "*/*"),
        ("X-Not-Forwarded", "1"),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "{}").await;
    let expected = json!({
        "Content-Type": ["application/json"],
        "Empty": [""],
        "Multi": ["one", "two"],
        "Test-Header": ["test-value"],
    });
    assert_eq!(server.message(&id).await["header"], expected);
    let request = receiver.next_request().await;
    assert_eq!(request.header("test-header"), Some("test-value"));
    assert_eq!(request.all("multi"), ["one", "two"]);
    assert_eq!(request.header("empty"), Some(""));
    for absent in ["upstash-telemetry-sdk", "x-not-forwarded", "authorization", "accept"] {
        assert_eq!(request.header(absent), None, "{absent}");
    }
    // No content type was sent, so none is made up.
    let id = server.publish(&receiver.url("/"), &[("Upstash-Forward-Test-Header", "v")], "x").await;
    assert_eq!(server.message(&id).await["header"], json!({"Test-Header": ["v"]}));
    assert_eq!(receiver.next_request().await.header("content-type"), None);
}

async fn header_forward_takes_everything_but_secrets(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Upstash-Header-Forward", "true"),
        ("X-Github-Event", "push"),
        ("Content-Type", "application/json"),
        ("Upstash-Label", "l"),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "{}").await;
    let request = receiver.next_request().await;
    assert_eq!(request.header("x-github-event"), Some("push"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    for absent in ["authorization", "upstash-header-forward"] {
        assert_eq!(request.header(absent), None, "{absent}");
    }
    assert_eq!(request.all("host"), [format!("127.0.0.1:{}", receiver.port())]);
    assert_eq!(request.all("content-length"), ["2"]);
    assert_eq!(server.message(&id).await["header"]["X-Github-Event"], json!(["push"]));
}

/// Publishes `body` with these headers and returns the status, the id, and whether it was a duplicate.
async fn publish_again(
    server: &Server,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String, bool) {
    let answer = server.call("POST", &format!("/v2/publish/{url}")).headers(headers).body(body).send().await;
    let json: Value = answer.json(answer.status);
    let id = json["messageId"].as_str().unwrap_or_else(|| panic!("no id in {json}"));
    let duplicate = json["deduplicated"] == true;
    assert_eq!(json.get("url").is_none(), duplicate, "{json}");
    (answer.status, id.to_owned(), duplicate)
}

async fn a_deduplication_id_makes_one_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/first");
    let headers = [("Upstash-Deduplication-Id", "order 17")];
    let (status, first, duplicate) = publish_again(&server, &url, &headers, "a").await;
    assert_eq!((status, duplicate), (200, false));
    assert_eq!(publish_again(&server, &url, &headers, "b").await, (202, first.clone(), true));
    // The id alone decides, not where to.
    let elsewhere = receiver.url("/elsewhere");
    assert_eq!(publish_again(&server, &elsewhere, &headers, "a").await, (202, first.clone(), true));
    assert_eq!(server.ended(&first).await, "CREATED ACTIVE DELIVERED");
    assert_eq!(publish_again(&server, &url, &headers, "after delivery").await, (202, first, true));
    // What comes later has been published later, so nothing else was sent before it.
    let (_, other, _) = publish_again(&server, &url, &[("Upstash-Deduplication-Id", "order 18")], "c").await;
    server.ended(&other).await;
    let bodies: Vec<_> = receiver.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, ["a", "c"]);
}

async fn content_is_deduplicated_on_request(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    let on = ("Upstash-Content-Based-Deduplication", "True");
    let (_, first, _) = publish_again(&server, &url, &[on, ("Upstash-Forward-A", "1")], "body").await;
    let again = publish_again(&server, &url, &[on, ("Upstash-Forward-A", "1")], "body").await;
    assert_eq!(again, (202, first, true));
    for (headers, body, url) in [
        (vec![on, ("Upstash-Forward-A", "2")], "body", receiver.url("/")),
        (vec![on, ("Upstash-Forward-A", "1")], "other", receiver.url("/")),
        (vec![on, ("Upstash-Forward-A", "1")], "body", receiver.url("/other")),
        (vec![on, ("Upstash-Forward-A", "1"), ("Content-Type", "text/plain")], "body", receiver.url("/")),
        (vec![("Upstash-Forward-A", "1")], "body", receiver.url("/")),
    ] {
        let (status, _, duplicate) = publish_again(&server, &url, &headers, body).await;
        assert_eq!((status, duplicate), (200, false), "{headers:?} {body} {url}");
    }
}

async fn equal_ids_at_once_make_one_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    let headers = [("Upstash-Deduplication-Id", "the same")];
    let answers = join_all((0..50).map(|_| publish_again(&server, &url, &headers, "x"))).await;
    let id = &answers[0].1;
    assert!(answers.iter().all(|answer| &answer.1 == id), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| !answer.2).count(), 1, "exactly one is the first");
    server.ended(id).await;
    assert_eq!(receiver.requests().len(), 1);
}

async fn labels_are_split_and_trimmed(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Label", "a, b ,,c d")], "x").await;
    let message = server.message(&id).await;
    assert_eq!((&message["label"], &message["labels"]), (&json!("a"), &json!(["a", "b", "c d"])));
}

async fn redacted_fields_are_hidden_but_delivered(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let hidden = |value: &str| format!("REDACTED:{}", hex(&Sha256::digest(value)));
    let headers = [
        ("Upstash-Redact-Fields", "body, header[x-secret]"),
        ("Upstash-Forward-X-Secret", "s3cret"),
        ("Upstash-Forward-X-Open", "open"),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "private body").await;
    let request = receiver.next_request().await;
    assert_eq!(request.body, "private body");
    assert_eq!(request.header("x-secret"), Some("s3cret"));
    let message = server.message(&id).await;
    assert_eq!(message["body"], hidden("private body"));
    assert_eq!(message["header"], json!({"X-Secret": [hidden("s3cret")], "X-Open": ["open"]}));
    server.ended(&id).await;
    let events = Value::from(server.events(&id).await).to_string();
    for secret in ["s3cret", "private body", "cHJpdmF0ZSBib2R5"] {
        assert!(!events.contains(secret), "{secret} is in the log: {events}");
    }
    let headers = [("Upstash-Redact-Fields", "headers"), ("Upstash-Forward-A", "1")];
    let id = server.publish(&receiver.url("/"), &headers, "open body").await;
    let message = server.message(&id).await;
    assert_eq!((&message["body"], &message["header"]), (&json!("open body"), &json!({"A": [hidden("1")]})));
}

async fn unknown_and_empty_options_are_ignored(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Upstash-No-Such-Option", "1"),
        ("Upstash-Telemetry-Runtime", "node@v20.20.2"),
        ("Upstash-Delay", ""),
        ("Upstash-Retries", ""),
        ("Upstash-Callback", ""),
        ("Upstash-Method", ""),
        ("Upstash-Label", " , "),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "x").await;
    assert_eq!(receiver.next_request().await.method, "POST");
    let message = server.message(&id).await;
    assert_eq!((&message["maxRetries"], &message["header"]), (&json!(3), &json!({})));
    assert_eq!((message.get("callback"), message.get("label")), (None, None));
}
