//! What the Go SDK's own tests expect, in the shapes in which it sends and reads: it has no script here, since its
//! requests are few and its decoder strict.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::http::Answer;
use crate::support::{CURRENT_KEY, NEXT_KEY, Receiver, Reply, Server, Test, eventually};

engines! {
    a_url_without_a_path_is_kept,
    the_header_map_is_what_was_forwarded,
    a_hundred_failures_are_four_hundred_entries_in_one_page,
    a_dead_letter_has_the_response_as_text,
    many_are_deleted_and_cancelled_by_a_body,
    groups_are_deleted_before_they_are_made,
    a_batch_says_empty_for_nothing,
    schedules_are_read_under_a_capital_letter,
    keys_are_the_configured_ones_and_rotate_under_a_short_path,
    queues_are_decoded_into_integers,
}

/// As it sends: canonical header names, JSON's content type even without a body.
async fn call(server: &Server, method: &str, target: &str, body: &str) -> Answer {
    server.call(method, target).header("Content-Type", "application/json").body(body).send().await
}

/// `{"cancelled":n}` and `{"deleted":n}` are decoded as a map of integers: anything else in it is an error.
#[track_caller]
fn count(answer: &Answer) -> i64 {
    let json = answer.json(200);
    let object = json.as_object().expect("an object");
    assert_eq!(object.len(), 1, "{json}");
    object.values().next().and_then(Value::as_i64).expect("an integer")
}

async fn a_url_without_a_path_is_kept(t: Test) {
    let server = t.server().await;
    // It waits until it is cancelled, and is never sent.
    let id = server.publish("http://example.com", &[("Upstash-Delay", "1d")], "x").await;
    let message = server.message(&id).await;
    assert_eq!(message["url"], "http://example.com");
    assert_eq!(count(&call(&server, "DELETE", &format!("/v2/messages/{id}"), "").await), 1);
}

async fn the_header_map_is_what_was_forwarded(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [("Upstash-Forward-Test-Header", "test-value"), ("User-Agent", "Go-http-client/1.1")];
    let id = server.publish(&receiver.url("/"), &headers, "x").await;
    assert_eq!(server.message(&id).await["header"], json!({"Test-Header": ["test-value"]}));
}

async fn a_hundred_failures_are_four_hundred_entries_in_one_page(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(404).body("404 Not Found")]);
    let start = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let url = receiver.url("/");
    join_all((0..100).map(async |_| {
        server.publish(&url, &[("Upstash-Retries", "0")], "x").await;
    }))
    .await;
    let target = format!("/v2/events?fromDate={start}");
    let page = eventually("400 entries", async || {
        let page = server.get_json(&target).await;
        (page["events"].as_array().map(Vec::len) == Some(400)).then_some(page)
    })
    .await;
    assert_eq!(page.get("cursor"), None, "one page holds all");
}

async fn a_dead_letter_has_the_response_as_text(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(404).header("Content-Type", "text/plain").body("404 Not Found")]);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
    let listed = server.dead_letter(&id).await;
    let target = format!("/v2/dlq/{}", listed["dlqId"].as_str().expect("an id"));
    for letter in [&listed, &server.get_json(&target).await] {
        assert_eq!(
            (&letter["responseBody"], &letter["responseStatus"]),
            (&json!("404 Not Found"), &json!(404))
        );
        assert_eq!(letter.get("responseBodyBase64"), None);
    }
}

async fn many_are_deleted_and_cancelled_by_a_body(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(404)]);
    let (mut letters, mut messages) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
        letters.push(server.dead_letter(&id).await["dlqId"].clone());
        messages.push(server.publish(&receiver.url("/"), &[("Upstash-Delay", "1d")], "x").await);
    }
    let body = json!({ "dlqIds": letters }).to_string();
    assert_eq!(count(&call(&server, "DELETE", "/v2/dlq", &body).await), 3);
    assert_eq!(count(&call(&server, "DELETE", "/v2/dlq", &body).await), 0);
    let body = json!({"messageIds": &messages[..2]}).to_string();
    assert_eq!(count(&call(&server, "DELETE", "/v2/messages", &body).await), 2);
    // Cancelling all has JSON's content type and no body.
    assert_eq!(count(&call(&server, "DELETE", "/v2/messages", "").await), 1);
    assert_eq!(count(&call(&server, "DELETE", "/v2/messages", r#"{"messageIds":[]}"#).await), 0);
}

async fn groups_are_deleted_before_they_are_made(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    assert_eq!(call(&server, "DELETE", "/v2/topics/go-url-group", "").await.status, 200);
    let endpoints = json!({"endpoints": [
        {"name": "First endpoint", "url": receiver.url("/a")},
        {"name": "Second endpoint", "url": receiver.url("/b")},
    ]});
    let answer = call(&server, "POST", "/v2/topics/go-url-group/endpoints", &endpoints.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let group = server.get_json("/v2/topics/go-url-group").await;
    assert_eq!((&group["name"], &group["endpoints"]), (&json!("go-url-group"), &endpoints["endpoints"]));
    assert_eq!(server.get_json("/v2/topics").await, json!([group]));
    let sent = call(&server, "POST", "/v2/publish/go-url-group", "{}").await.json(200);
    assert_eq!(sent.as_array().map(Vec::len), Some(2), "a bare array: {sent}");
    assert_eq!(call(&server, "DELETE", "/v2/topics/go-url-group", "").await.status, 200);
    let missing = call(&server, "POST", "/v2/publish/go-url-group", "{}").await.error(404);
    assert!(missing.contains("topic go-url-group not found"), "{missing}");
    let nowhere = call(&server, "POST", "/v2/publish/", "{}").await.error(400);
    assert!(nowhere.contains("a non-empty destination must be provided"), "{nowhere}");
}

async fn a_batch_says_empty_for_nothing(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    let endpoints = json!({"endpoints": [{"url": receiver.url("/a")}, {"url": receiver.url("/b")}]});
    call(&server, "POST", "/v2/topics/g/endpoints", &endpoints.to_string()).await;
    let items = json!([
        {"queue": "", "destination": url, "headers": {"Upstash-Retries": "0"}, "body": ""},
        {"queue": "", "destination": "g", "headers": {}, "body": "x"},
        {"queue": "go-queue", "destination": url, "headers": null, "body": "y"},
    ]);
    let answer = call(&server, "POST", "/v2/batch", &items.to_string()).await.json(200);
    let shape: Vec<_> = answer.as_array().expect("an array").iter().map(Value::is_array).collect();
    assert_eq!(shape, [false, true, false], "{answer}");
    let queues = server.get_json("/v2/queues").await;
    assert_eq!(queues.as_array().map(Vec::len), Some(1), "{queues}");
    assert_eq!(queues[0]["name"], "go-queue");
}

async fn schedules_are_read_under_a_capital_letter(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let target = format!("/v2/Schedules/{}", receiver.url("/a"));
    let call_ = server.call("POST", &target).headers(&[
        ("Upstash-Cron", "1 1 1 1 1"),
        ("Upstash-Delay", "10s"),
        ("Upstash-Retries", "2"),
        ("Content-Type", "application/json"),
    ]);
    let created = call_.body("{}").send().await.json(200);
    let id = created["scheduleId"].as_str().expect("an id");
    let schedule = server.get_json(&format!("/v2/Schedules/{id}")).await;
    assert_eq!(schedule, server.get_json(&format!("/v2/schedules/{id}")).await);
    assert_eq!((&schedule["cron"], &schedule["delay"]), (&json!("1 1 1 1 1"), &json!(10)));
    assert_eq!((&schedule["retries"], &schedule["destination"]), (&json!(2), &json!(receiver.url("/a"))));
    assert_eq!(schedule["header"], json!({"Content-Type": ["application/json"]}));
    assert_eq!(call(&server, "PATCH", &format!("/v2/schedules/{id}/pause"), "").await.status, 200);
    assert_eq!(server.get_json(&format!("/v2/Schedules/{id}")).await["isPaused"], true);
    assert_eq!(call(&server, "DELETE", &format!("/v2/schedules/{id}"), "").await.status, 200);
    server.get(&format!("/v2/Schedules/{id}")).await.error(404);
}

async fn keys_are_the_configured_ones_and_rotate_under_a_short_path(t: Test) {
    let server = t.server().await;
    assert_eq!(server.get_json("/v2/keys").await, json!({"current": CURRENT_KEY, "next": NEXT_KEY}));
    let rotated = call(&server, "POST", "/v2/rotate", "").await.json(200);
    assert_eq!(rotated["current"], NEXT_KEY);
    assert!(rotated["next"].as_str().is_some_and(|key| key.starts_with("sig_") && key != CURRENT_KEY));
    assert_eq!(server.get_json("/v2/keys").await, rotated);
}

async fn queues_are_decoded_into_integers(t: Test) {
    let server = t.server().await;
    let body = json!({"queueName": "go-queue", "parallelism": 2, "paused": false}).to_string();
    assert_eq!(call(&server, "POST", "/v2/queues", &body).await.status, 200);
    let queue = server.get_json("/v2/queues/go-queue").await;
    for field in ["parallelism", "createdAt", "updatedAt", "lag"] {
        assert!(queue[field].is_i64(), "{field}: {queue}");
    }
    assert_eq!(server.get_json("/v2/queues").await, json!([queue]));
    assert_eq!(call(&server, "POST", "/v2/queues/go-queue/pause", "").await.status, 200);
    assert_eq!(server.get_json("/v2/queues/go-queue").await["paused"], true);
    assert_eq!(call(&server, "POST", "/v2/queues/go-queue/resume", "").await.status, 200);
    assert_eq!(call(&server, "DELETE", "/v2/queues/go-queue", "").await.status, 200);
    assert_eq!(server.get_json("/v2/queues").await, json!([]));
}
