//! Limits on how much the API is used. Both are off unless they are set.

use serde_json::json;

use crate::support::http::Answer;
use crate::support::{Engine, Receiver, Reply, Server, TOKEN, Test, eventually};

engines! {
    a_days_messages_are_limited,
    other_requests_are_limited_in_a_second,
    without_limits_nothing_is_counted,
}

/// Publishes something that waits.
async fn publish(server: &Server, key: &str) -> Answer {
    let call = server.call("POST", "/v2/publish/https://a.example").header("Upstash-Delay", "10d");
    let call = if key.is_empty() { call } else { call.header("Upstash-Deduplication-Id", key) };
    call.body("x").send().await
}

/// Fails unless it is the answer of the one limit, without any header of the others.
#[track_caller]
fn assert_limited(answer: &Answer, prefix: &str, limit: &str, remaining: &str) -> i64 {
    answer.error(429);
    let header = |name: &str| answer.header(&format!("{prefix}RateLimit-{name}")).map(str::to_owned);
    assert_eq!(header("Limit").as_deref(), Some(limit));
    assert_eq!(header("Remaining").as_deref(), Some(remaining));
    let reset = header("Reset").expect("when it ends").parse::<i64>().expect("Unix seconds");
    let other = if prefix.is_empty() { "Burst-" } else { "" };
    for name in ["Limit", "Remaining", "Reset"] {
        assert_eq!(answer.header(&format!("{other}RateLimit-{name}")), None);
    }
    for name in ["Limit-Requests", "Limit-Tokens", "Remaining-Requests", "Reset-Requests"] {
        assert_eq!(answer.header(&format!("x-ratelimit-{name}")), None);
    }
    reset
}

async fn a_days_messages_are_limited(t: Test) {
    let settings = [("HOMING_MAX_MESSAGES_PER_DAY", "4")];
    let server = t.server_with(&settings).await;
    assert_eq!(publish(&server, "a").await.status, 200);
    assert_eq!(publish(&server, "a").await.status, 202, "a repeat makes no message");
    assert_eq!(publish(&server, "").await.status, 200);
    server.terminate().await;
    server.restart().await;
    // Another node where there can be one.
    let second = if t.engine() == Engine::Postgres { t.server_with(&settings).await } else { server.clone() };
    for server in [&second, &server] {
        assert_eq!(publish(server, "").await.status, 200);
    }
    for server in [&second, &server] {
        let reset = assert_limited(&publish(server, "").await, "", "4", "0");
        assert_eq!(reset % (24 * 60 * 60), 0, "the end of a day");
        // Nothing else is limited.
        for _ in 0..20 {
            server.get_json("/v2/events").await;
        }
    }
    assert_eq!(second.list("/v2/events?state=CREATED", "events").await.len(), 4);
}

async fn other_requests_are_limited_in_a_second(t: Test) {
    let server = t.server_with(&[("HOMING_MAX_REQUESTS_PER_SECOND", "2")]).await;
    for (method, target) in [("GET", "/v2/events"), ("DELETE", "/v2/messages?label=x"), ("GET", "/v2/keys")] {
        let limited = eventually("more requests than in a second", async || {
            let answer = server.call(method, target).send().await;
            (answer.status != 200).then_some(answer)
        })
        .await;
        let reset = assert_limited(&limited, "Burst-", "2", "0");
        assert!(reset > 1_700_000_000, "Unix seconds: {reset}");
    }
    // What is not limited: publishing, and what needs no token.
    for _ in 0..20 {
        assert_eq!(publish(&server, "").await.status, 200);
        assert_eq!(server.get("/readyz").await.status, 200);
    }
    // Who has no token learns that first.
    let call = server.call("GET", "/v2/events").without("Authorization");
    for _ in 0..5 {
        call.clone().send().await.error(401);
    }
    // And in another second there are some again.
    eventually("a request that is allowed", async || {
        (server.get("/v2/events").await.status == 200).then_some(())
    })
    .await;
}

async fn without_limits_nothing_is_counted(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::ok()]);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let call = server.call("GET", &format!("/v2/events?qstash_token={TOKEN}"));
        calls.spawn(async move { call.send().await.status });
    }
    assert_eq!(calls.join_all().await, [200; 100]);
    let answer = publish(&server, "").await;
    assert!(answer.json(200)["messageId"].is_string());
    for name in ["RateLimit-Limit", "Burst-RateLimit-Limit"] {
        assert_eq!(answer.header(name), None);
    }
    assert_eq!(server.get_json("/v2/dlq").await, json!({"messages": []}));
}
