//! What reading may cost: filters, searches that take long, answers of destinations that are kept, and the state of
//! SQLite's files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::support::{Engine, Receiver, Reply, Test, base64_text};

engines! {
    a_filter_has_a_limit,
    ids_that_are_named_are_no_filter,
    a_search_without_end_holds_up_nothing_else,
    the_log_keeps_the_beginning_of_long_answers,
    files_that_others_can_read_are_told,
}

async fn a_filter_has_a_limit(t: Test) {
    let server = t.server().await;
    let values = |count: usize| (0..count).map(|number| format!("v{number}")).collect::<Vec<_>>();
    let in_query = |name: &str, count| format!("?{name}={}", values(count).join(","));
    let repeated = |name: &str, count| {
        let all: Vec<String> = values(count).iter().map(|value| format!("{name}={value}")).collect();
        format!("?{}", all.join("&"))
    };
    let common = ["url", "topicName", "queueName", "label", "flowControlKey", "scheduleId", "callerIp"];
    let (parts, logs) = (["host", "path"], ["messageId", "messageIds"]);
    for (method, target, others, ok) in [
        ("GET", "/v2/logs", &[&parts[..], &logs].concat()[..], 200),
        ("GET", "/v2/events", &[&parts[..], &logs].concat(), 200),
        ("GET", "/v2/dlq", &["messageId", "dlqIds"][..], 200),
        ("DELETE", "/v2/messages", &parts, 200),
        ("DELETE", "/v2/dlq", &["messageId"], 200),
        ("POST", "/v2/dlq/retry", &["messageId"], 201),
    ] {
        for name in common.iter().chain(others) {
            for query in [in_query(name, 101), repeated(name, 101)] {
                let error = server.call(method, &format!("{target}{query}")).send().await.error(400);
                let says = error.contains("at most 100 are allowed") && error.contains(name);
                assert!(says, "{method} {target} {name}: {error}");
            }
            server.call(method, &format!("{target}{}", in_query(name, 100))).send().await.json(ok);
            if method != "GET" {
                let body = |count| json!({ *name: values(count) }).to_string();
                let call = |body: String| server.call(method, target).body(body).send();
                assert!(call(body(101)).await.error(400).contains("at most 100"), "{method} {target} {name}");
                call(body(100)).await.json(ok);
            }
        }
    }
    let statuses = |count: usize| vec!["500"; count].join(",");
    let status = |count| format!("/v2/dlq?responseStatus={}", statuses(count));
    assert!(server.get(&status(101)).await.error(400).contains("at most 100"));
    server.get(&status(100)).await.json(200);
    // The two spellings are one filter.
    let both = format!("/v2/logs{}&callerIP={}", in_query("callerIp", 60), values(41).join(","));
    assert!(server.get(&both).await.error(400).contains("has 101 values"));
    let long = json!({ "label": ["x".repeat(200_000)] }).to_string();
    assert!(server.call("DELETE", "/v2/messages").body(long).send().await.error(400).contains("bytes"));
}

async fn ids_that_are_named_are_no_filter(t: Test) {
    let server = t.server().await;
    let id = server.publish("https://a.example", &[("Upstash-Delay", "10d")], "x").await;
    let mut ids: Vec<String> = (0..10_000).map(|number| format!("msg_{number}")).collect();
    ids.push(id);
    let body = |name: &str| json!({ name: ids }).to_string();
    let call = |method, target, body: String| server.call(method, target).body(body).send();
    assert_eq!(call("DELETE", "/v2/messages", body("messageIds")).await.json(200), json!({"cancelled": 1}));
    assert_eq!(call("DELETE", "/v2/dlq", body("dlqIds")).await.json(200), json!({"deleted": 0}));
    call("POST", "/v2/dlq/retry", body("dlqIds")).await.error(404);
}

/// Each search for cancellations goes on forever.
const ENDLESS: [&str; 2] = [
    "ALTER TABLE cancellations RENAME TO others; \
     CREATE VIEW cancellations AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
     SELECT * FROM others UNION ALL SELECT 'x', -i, -i FROM n",
    "ALTER TABLE cancellations RENAME TO others; \
     CREATE VIEW cancellations AS SELECT * FROM others UNION ALL \
     SELECT 'x', -i, -i FROM (SELECT generate_series(1, 1000000000000) AS i) AS n",
];

async fn a_search_without_end_holds_up_nothing_else(t: Test) {
    let server = t.server_with(&[("HOMING_POSTGRES_CONNECTIONS", "4")]).await;
    let id = server.publish("https://a.example", &[("Upstash-Delay", "10d")], "x").await;
    t.execute(ENDLESS[usize::from(t.engine() == Engine::Postgres)]).await;
    let searches: Vec<_> =
        (0..12).map(|_| tokio::spawn(server.call("GET", "/v2/logs?label=x").try_send())).collect();
    let message = format!("/v2/messages/{id}");
    for _ in 0..20 {
        for target in ["/readyz", "/v2/queues", "/v2/schedules", "/v2/topics", &message] {
            server.get(target).await.json(200);
        }
    }
    assert!(searches.iter().all(|search| !search.is_finished()), "they go on");
    // All of them hang up; what they asked for stops, and there is room for others at once.
    searches.iter().for_each(tokio::task::JoinHandle::abort);
    for _ in 0..4 {
        assert_eq!(server.get("/v2/dlq").await.json(200), json!({"messages": []}));
    }
    let answer = server.get("/v2/logs").await;
    assert!(answer.error(503).contains("takes too long"), "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    let created = server.get("/v2/logs?state=CREATED").await.json(200);
    assert_eq!(created["logs"].as_array().map(Vec::len), Some(1), "{created}");
}

async fn the_log_keeps_the_beginning_of_long_answers(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let long = "é".repeat(150_000);
    receiver.script("/long", [Reply::status(500).body(long.clone())]);
    let headers =
        [("Upstash-Retries", "1"), ("Upstash-Retry-Delay", "0"), ("Upstash-Callback", &receiver.url("/cb"))];
    let id = server.publish(&receiver.url("/long"), &headers, "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR RETRY ACTIVE ERROR FAILED");
    let events = server.events(&id).await;
    let kept: Vec<&Value> = events.iter().filter_map(|event| event.get("responseBody")).collect();
    assert!(kept.len() >= 2, "{kept:?}");
    for body in kept {
        assert_eq!(base64_text(body), &long.as_bytes()[..64 << 10]);
    }
    assert_eq!(server.dead_letter(&id).await["responseBody"], *long);
    for _ in 0..2 {
        let callback = receiver.next_on("/cb").await.json();
        assert_eq!(base64_text(&callback["body"]), long.as_bytes());
    }
}

async fn files_that_others_can_read_are_told(t: Test) {
    if t.engine() != Engine::Sqlite {
        return;
    }
    let server = t.server().await;
    server.terminate().await;
    assert!(!server.log().text().contains("chmod"));
    let path = t.database_url().trim_start_matches("sqlite://").to_owned();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    server.restart().await;
    assert!(server.log().text().contains(&format!("chmod 600 {path}*")), "{}", server.log().text());
}
