//! Who may do what.

use serde_json::json;

use crate::support::{READ_ONLY_TOKEN, Receiver, Server, TOKEN, Test};

engines! {
    the_token_is_demanded_everywhere,
    the_token_may_come_in_every_form,
    a_wrong_token_is_no_token,
    the_header_wins_over_the_query,
    a_read_only_token_reads,
    a_read_only_token_changes_nothing,
    health_needs_no_token,
}

const EVERYTHING: [(&str, &str); 18] = [
    ("POST", "/v2/publish/https://example.com"),
    ("POST", "/v2/enqueue/q/https://example.com"),
    ("POST", "/v2/batch"),
    ("GET", "/v2/messages/msg_a"),
    ("DELETE", "/v2/messages/msg_a"),
    ("GET", "/v2/dlq"),
    ("DELETE", "/v2/dlq/1-0"),
    ("POST", "/v2/dlq/retry/1-0"),
    ("GET", "/v2/events"),
    ("GET", "/v2/logs"),
    ("GET", "/v2/topics"),
    ("GET", "/v2/topics/g"),
    ("PATCH", "/v2/topics/g"),
    ("DELETE", "/v2/topics/g"),
    ("POST", "/v2/topics/g/endpoints"),
    ("DELETE", "/v2/topics/g/endpoints"),
    ("GET", "/v2/keys"),
    ("POST", "/v2/keys/rotate"),
];

async fn the_token_is_demanded_everywhere(t: Test) {
    let server = t.server().await;
    for (method, target) in EVERYTHING {
        server.call(method, target).without("authorization").send().await.error(401);
    }
}

async fn the_token_may_come_in_every_form(t: Test) {
    let server = t.server().await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let call = server.call("GET", "/v2/events").without("authorization");
        call.header("authorization", format!("{scheme} {TOKEN}")).send().await.json(200);
    }
    for target in
        [format!("/v2/events?qstash_token={TOKEN}"), format!("/v2/events?count=1&qstash_token={TOKEN}")]
    {
        server.call("GET", &target).without("authorization").send().await.json(200);
    }
}

async fn a_wrong_token_is_no_token(t: Test) {
    let server = t.server().await;
    let shorter = &TOKEN[..TOKEN.len() - 1];
    for value in [
        "Bearer wrong".to_owned(),
        "Bearer ".to_owned(),
        "Bearer".to_owned(),
        String::new(),
        TOKEN.to_owned(),
        format!("Basic {TOKEN}"),
        format!("Bearer {shorter}"),
        format!("Bearer {TOKEN}="),
        format!("Bearer {}", TOKEN.to_lowercase()),
        format!("Bearer {TOKEN}, {TOKEN}"),
    ] {
        let call = server.call("GET", "/v2/events").without("authorization").header("authorization", &value);
        let answer = call.send().await;
        assert_eq!(answer.status, 401, "{value:?}");
        answer.error(401);
    }
    let call = server.call("GET", "/v2/events?qstash_token=wrong").without("authorization");
    call.send().await.error(401);
    // A header of another scheme is somebody else's: senders of webhooks have theirs.
    let target = format!("/v2/events?qstash_token={TOKEN}");
    let call = server.call("GET", &target).without("authorization");
    call.header("Authorization", "Basic dTpw").send().await.json(200);
}

async fn the_header_wins_over_the_query(t: Test) {
    let server = t.server().await;
    let target = format!("/v2/events?qstash_token={TOKEN}");
    let call = server.call("GET", &target).without("authorization").header("authorization", "Bearer wrong");
    call.send().await.error(401);
    server.call("GET", "/v2/events?qstash_token=wrong").send().await.json(200);
}

fn read_only(server: &Server, method: &str, target: &str) -> crate::support::http::Call {
    let call = server.call(method, target).without("authorization");
    call.header("authorization", format!("Bearer {READ_ONLY_TOKEN}"))
}

async fn a_read_only_token_reads(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[], "x").await;
    let call = server.call("POST", &format!("/v2/schedules/{}", receiver.url("/")));
    let created = call.header("Upstash-Cron", "@yearly").header("Upstash-Schedule-Id", "s").send().await;
    created.json(200);
    for target in [
        &format!("/v2/messages/{id}"),
        "/v2/dlq",
        "/v2/events",
        "/v2/logs",
        "/v2/schedules",
        "/v2/schedules/s",
        "/v2/topics",
    ] {
        read_only(&server, "GET", target).send().await.json(200);
    }
}

async fn a_read_only_token_changes_nothing(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Delay", "1h")], "x").await;
    let keys = server.get_json("/v2/keys").await;
    for (method, target) in [
        ("POST", format!("/v2/publish/{}", receiver.url("/"))),
        ("POST", format!("/v2/enqueue/q/{}", receiver.url("/"))),
        ("POST", "/v2/batch".to_owned()),
        ("POST", "/v2/topics/g/endpoints".to_owned()),
        ("DELETE", "/v2/topics/g/endpoints".to_owned()),
        ("DELETE", "/v2/topics/g".to_owned()),
        ("PATCH", "/v2/topics/g".to_owned()),
        ("DELETE", format!("/v2/messages/{id}")),
        ("DELETE", "/v2/messages".to_owned()),
        ("DELETE", "/v2/dlq/1-0".to_owned()),
        ("DELETE", "/v2/dlq".to_owned()),
        ("POST", "/v2/dlq/retry/1-0".to_owned()),
        ("POST", "/v2/dlq/retry".to_owned()),
        ("POST", "/v2/keys/rotate".to_owned()),
        ("POST", "/v2/rotate".to_owned()),
        ("POST", format!("/v2/schedules/{}", receiver.url("/"))),
        ("DELETE", "/v2/schedules/s".to_owned()),
        ("PATCH", "/v2/schedules/s/pause".to_owned()),
        ("POST", "/v2/schedules/s/resume".to_owned()),
        // Whoever holds the keys can forge deliveries, so reading them is no reading.
        ("GET", "/v2/keys".to_owned()),
    ] {
        let text = read_only(&server, method, &target).send().await.error(403);
        assert!(text.contains("read-only"), "{method} {target}: {text}");
    }
    assert_eq!(server.get_json("/v2/keys").await, keys);
    assert_eq!(server.states(&id).await, ["CREATED"]);
    let events = server.get_json("/v2/events").await;
    assert_eq!(events["events"].as_array().map(Vec::len), Some(1), "nothing was published: {events}");
}

async fn health_needs_no_token(t: Test) {
    let server = t.server().await;
    for target in ["/healthz", "/readyz"] {
        assert_eq!(server.call("GET", target).without("authorization").send().await.status, 200, "{target}");
    }
    assert_ne!(server.get_json("/v2/keys").await, json!({}));
}
