//! Finding messages by what they have, and doing something with many at once: cancelling, deleting, retrying.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Engine, Gate, Receiver, Reply, Server, Test, eventually};

engines! {
    messages_are_cancelled_by_their_ids,
    messages_are_cancelled_by_what_they_have,
    a_count_bounds_a_cancel,
    all_messages_are_cancelled,
    a_cancel_that_is_not_understood_cancels_nothing,
    a_cancel_of_many_withdraws_what_has_not_started,
    dead_letters_are_listed_by_what_they_have,
    dead_letters_are_deleted_a_part_at_a_time,
    dead_letters_are_retried_a_part_at_a_time,
    dead_letters_are_retried_by_their_ids_all_or_none,
    the_log_is_filtered_by_what_messages_have,
    url_groups_are_filtered_by_either_name,
    the_log_is_grouped_by_messages,
    log_pages_have_the_sizes_of_their_endpoints,
}

/// Publishes with a delay, so that it waits.
async fn publish_waiting(server: &Server, url: &str, label: &str) -> String {
    server.publish(url, &[("Upstash-Delay", "10d"), ("Upstash-Label", label)], "x").await
}

async fn cancel(server: &Server, target: &str, body: &str) -> Value {
    let call = server.call("DELETE", target).header("Content-Type", "application/json").body(body);
    call.send().await.json(200)
}

async fn is_cancelled(server: &Server, id: &str) -> bool {
    server.states(id).await == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
}

async fn messages_are_cancelled_by_their_ids(t: Test) {
    let server = t.server().await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(publish_waiting(&server, "https://a.example", "").await);
    }
    for empty in [r#"{"messageIds":[]}"#, r#"{"messageIds":null}"#, "[]"] {
        assert_eq!(cancel(&server, "/v2/messages", empty).await, json!({"cancelled": 0}), "{empty}");
    }
    assert_eq!(cancel(&server, "/v2/messages?messageIds=", "").await, json!({"cancelled": 0}));
    let query = |ids: &[String]| format!("/v2/messages?messageIds={}", ids.join(","));
    let repeated = format!("/v2/messages?messageIds={}&messageIds={}", ids[0], ids[1]);
    let with_unknown = format!("{},{},msg_unknown", query(&ids[2..4]), ids[0]);
    // Its filter is ignored.
    let with_filter = json!({"messageIds": [ids[4], ids[4], "msg_unknown"], "label": "no"});
    let (only, another) = (format!("{}&count=1", query(&ids[6..7])), json!({"messageIds": [ids[7]]}));
    for (target, body, cancelled) in [
        (&repeated, String::new(), 2),
        (&with_unknown, String::new(), 2),
        (&"/v2/messages".to_owned(), with_filter.to_string(), 1),
        (&"/v2/messages/".to_owned(), json!([ids[5]]).to_string(), 1),
        (&only, another.to_string(), 1),
        (&query(&ids[..6]), String::new(), 0),
    ] {
        assert_eq!(cancel(&server, target, &body).await, json!({"cancelled": cancelled}), "{target} {body}");
    }
    for id in &ids[..7] {
        assert!(is_cancelled(&server, id).await, "{id}");
        server.call("DELETE", &format!("/v2/messages/{id}")).send().await.error(404);
    }
    assert_eq!(server.states(&ids[7]).await, ["CREATED"]);
}

async fn messages_are_cancelled_by_what_they_have(t: Test) {
    let server = t.server_with(&[("HOMING_TRUSTED_PROXIES", "127.0.0.1")]).await;
    let urls = [
        "https://a.example/one?x=1",
        "https://a.example:8443/two",
        "http://u:p@b.example/one",
        "https://b.example/a.example,c",
        "https://c.example",
    ];
    let messages = async || {
        let mut messages = Vec::new();
        for (index, url) in urls.iter().enumerate() {
            let headers = [
                ("Upstash-Delay", "10d"),
                ("Upstash-Label", ["l0,l1", "l1", "l2", "l12", ""][index]),
                ("X-Forwarded-For", if index < 2 { "192.0.2.1" } else { "192.0.2.2" }),
            ];
            messages.push(server.publish(url, &headers, "x").await);
        }
        messages
    };
    let mut left = messages().await;
    let created = server.message(&left[0]).await["createdAt"].as_i64().expect("a time");
    let (before, after) = (created - 1, created + 600_000);
    for (query, body, expected) in [
        ("label=l1", json!({"label": "l1"}), vec![0, 1]),
        ("label=l1,l2", json!({"label": ["l1", "l2"]}), vec![0, 1, 2]),
        ("label=l1&label=l12&host=b.example", json!({"label": ["l1", "l12"], "host": "b.example"}), vec![3]),
        ("url=https://a.example/one?x=1", json!({"url": urls[0]}), vec![0]),
        ("url=https://b.example/a.example,c", json!({"url": [urls[3]]}), vec![3]),
        ("url=https://c.example,https://a.example/one%3Fx=1", json!({"url": [urls[4], urls[0]]}), vec![0, 4]),
        ("host=A.example", json!({"host": "a.example"}), vec![0, 1]),
        ("host=a.example:8443&host=b.example:80", json!({"host": "a.example:8443,b.example:80"}), vec![1, 2]),
        ("path=/one", json!({"path": ["/one"]}), vec![0, 2]),
        ("path=/a.example,c", json!({"path": "/a.example,c"}), vec![3]),
        ("path=/&path=/two", json!({"path": ["/", "/two"]}), vec![1, 4]),
        ("path=/one&host=b.example&label=l2", json!({"path": "/one", "host": "b.example"}), vec![2]),
        ("callerIp=192.0.2.1", json!({"callerIP": "192.0.2.1"}), vec![0, 1]),
        (
            &*format!("fromDate={before}&toDate={after}"),
            json!({"fromDate": before, "toDate": after}),
            vec![0, 1, 2, 3, 4],
        ),
        (&*format!("toDate={before}"), json!({"toDate": before}), vec![]),
        (&*format!("fromDate={after}"), json!({"fromDate": after.to_string()}), vec![]),
        ("queueName=q", json!({"queueName": "q"}), vec![]),
        ("topicName=g", json!({"topicName": "g"}), vec![]),
        ("scheduleId=s&flowControlKey=k", json!({"scheduleId": "s", "flowControlKey": "k/1,2"}), vec![]),
    ] {
        for (target, body) in
            [(format!("/v2/messages?{query}"), String::new()), ("/v2/messages".to_owned(), body.to_string())]
        {
            assert_eq!(
                cancel(&server, &target, &body).await,
                json!({"cancelled": expected.len()}),
                "{target} {body}"
            );
            for (index, id) in left.iter().enumerate() {
                assert_eq!(
                    is_cancelled(&server, id).await,
                    expected.contains(&index),
                    "{index} {target} {body}"
                );
            }
            if !expected.is_empty() {
                cancel(&server, "/v2/messages", "").await;
                left = messages().await;
            }
        }
    }
}

async fn a_count_bounds_a_cancel(t: Test) {
    let server = t.server().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(publish_waiting(&server, "https://a.example", "l").await);
    }
    for count in ["0", "501", "-1", "1.5", "x", ""] {
        server.call("DELETE", &format!("/v2/messages?count={count}")).send().await.error(400);
    }
    assert_eq!(cancel(&server, "/v2/messages?count=1", "").await, json!({"cancelled": 1}));
    assert!(is_cancelled(&server, &ids[0]).await, "the oldest");
    assert_eq!(cancel(&server, "/v2/messages?label=l", r#"{"count":2}"#).await, json!({"cancelled": 2}));
    assert_eq!(server.states(&ids[3]).await, ["CREATED"]);
    assert_eq!(cancel(&server, "/v2/messages/?count=500", "").await, json!({"cancelled": 1}));
}

async fn all_messages_are_cancelled(t: Test) {
    let server = t.server().await;
    for target in ["/v2/messages", "/v2/messages?qstash_token=x"] {
        for body in ["", "{}"] {
            for _ in 0..3 {
                publish_waiting(&server, "https://a.example", "").await;
            }
            assert_eq!(cancel(&server, target, body).await, json!({"cancelled": 3}), "{target} {body}");
            assert_eq!(cancel(&server, target, body).await, json!({"cancelled": 0}));
        }
    }
}

async fn a_cancel_that_is_not_understood_cancels_nothing(t: Test) {
    let server = t.server().await;
    let id = publish_waiting(&server, "https://a.example", "l").await;
    for (target, body, text) in [
        // This is what the Python and Go SDKs send for an empty id.
        ("/v2/messages/", "", "id"),
        ("/v2/messages//?qstash_token=x", "{}", "id"),
        ("/v2/messages?labeel=l", "", "labeel"),
        ("/v2/messages?cursor=1", "", "cursor"),
        ("/v2/messages", r#"{"labeel":"l"}"#, "labeel"),
        ("/v2/messages", r#"{"messageIds":["x"],"labeel":"l"}"#, "labeel"),
        ("/v2/messages?label=", "", "label is empty"),
        ("/v2/messages?label=,", "", "label is empty"),
        ("/v2/messages", r#"{"label":[]}"#, "label is empty"),
        ("/v2/messages?label=l&url=", "", "url is empty"),
        ("/v2/messages?fromDate=", "", "fromDate is empty"),
        ("/v2/messages?fromDate=yesterday", "", "Unix milliseconds"),
        ("/v2/messages?label=%00", "", "control character"),
        ("/v2/messages?host=https://a.example/", "", "host:port"),
        ("/v2/messages", r#"{"label":{"a":"b"}}"#, "label"),
        ("/v2/messages", r#"{"label":"l""#, "JSON"),
        ("/v2/messages", "true", "JSON"),
    ] {
        let call = server.call("DELETE", target).body(body);
        let error = call.send().await.error(400);
        assert!(error.contains(text), "{target} {body}: {error}");
    }
    assert_eq!(server.states(&id).await, ["CREATED"]);
    let read_only = server.call("DELETE", "/v2/messages").without("Authorization");
    let read_only = read_only.header("Authorization", format!("Bearer {}", crate::support::READ_ONLY_TOKEN));
    read_only.send().await.error(403);
    let error = server.get("/v2/messages").await;
    assert_eq!((error.status, error.header("allow")), (405, Some("DELETE")));
    assert_eq!(server.states(&id).await, ["CREATED"]);
}

async fn a_cancel_of_many_withdraws_what_has_not_started(t: Test) {
    let server = t.server_with(&[("HOMING_CONCURRENCY", "1"), ("HOMING_CONCURRENCY_PER_ORIGIN", "1")]).await;
    let receiver = Receiver::start().await;
    let gate = Gate::new();
    receiver.script("/", [Reply::status(500).behind(&gate)]);
    let url = receiver.url("/");
    let running = server.publish(&url, &[("Upstash-Retry-Delay", "20")], "x").await;
    receiver.next_request().await;
    let mut waiting = Vec::new();
    for index in 0..300 {
        // Some in memory, some in the store alone.
        let delay = [("Upstash-Delay", if index % 3 == 0 { "10d" } else { "0s" })];
        waiting.push(server.publish(&url, &delay, "x").await);
    }
    assert_eq!(cancel(&server, "/v2/messages", "").await, json!({"cancelled": 301}));
    for id in &waiting {
        assert!(is_cancelled(&server, id).await, "at once: {:?}", server.states(id).await);
    }
    assert_eq!(server.states(&running).await, ["CREATED", "ACTIVE", "CANCEL_REQUESTED"]);
    assert_eq!(cancel(&server, "/v2/messages", "").await, json!({"cancelled": 0}), "each once");
    gate.open();
    assert!(server.ended(&running).await.ends_with("CANCELED"));
    // The slot is free, and nothing else took it.
    receiver.script("/next", [Reply::ok()]);
    let next = server.publish(&receiver.url("/next"), &[], "x").await;
    assert_eq!(server.ended(&next).await, "CREATED ACTIVE DELIVERED");
    assert_eq!(receiver.requests_on("/").len(), 1);
}

/// A node with one attempt out and messages behind it in its memory, and another node.
struct Held {
    holder: Server,
    other: Server,
    receiver: Receiver,
    gate: Gate,
    running: String,
    waiting: Vec<String>,
}

impl Held {
    async fn start(t: &Test) -> Self {
        let one = [("HOMING_CONCURRENCY", "1"), ("HOMING_CONCURRENCY_PER_ORIGIN", "1")];
        let holder = t.server_with(&[&one[..], &[("HOMING_NODE_NAME", "a")]].concat()).await;
        let other = t.server_with(&[("HOMING_NODE_NAME", "b")]).await;
        let receiver = Receiver::start().await;
        let gate = Gate::new();
        receiver.script("/", [Reply::ok().behind(&gate)]);
        let running = holder.publish(&receiver.url("/"), &[], "x").await;
        receiver.next_request().await;
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(holder.publish(&receiver.url("/"), &[], "x").await);
        }
        Self { holder, other, receiver, gate, running, waiting }
    }

    /// All that waits ends while the only slot is taken, and nothing of it is ever attempted.
    async fn end_as_cancelled(self) {
        for id in &self.waiting {
            eventually(&format!("{id} is withdrawn"), async || {
                (self.other.states(id).await.last()? == "CANCELED").then_some(())
            })
            .await;
            assert!(is_cancelled(&self.holder, id).await, "{:?}", self.holder.states(id).await);
        }
        self.gate.open();
        assert_eq!(self.other.ended(&self.running).await, "CREATED ACTIVE CANCEL_REQUESTED DELIVERED");
        assert_eq!(self.receiver.requests().len(), 1);
    }
}

/// A cancel through one node reaches what another one has in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_the_memory_of_other_nodes() {
    Test::run(Engine::Postgres, async |t| {
        let held = Held::start(&t).await;
        let (b, waiting) = (&held.other, &held.waiting);
        assert_eq!(b.call("DELETE", &format!("/v2/messages/{}", waiting[0])).send().await.status, 200);
        assert_eq!(cancel(b, "/v2/messages", "").await, json!({"cancelled": 4}), "one is cancelled already");
        held.end_as_cancelled().await;
    })
    .await;
}

/// What is said while a node's connection is lost, it does not hear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_other_nodes_that_just_lost_their_connection() {
    Test::run(Engine::Postgres, async |t| {
        let held = Held::start(&t).await;
        let listening = "FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN%'";
        eventually("each node listens", async || {
            (t.execute(format!("SELECT pid {listening}")).await == 2).then_some(())
        })
        .await;
        assert_eq!(t.execute(format!("SELECT pg_terminate_backend(pid) {listening}")).await, 2);
        assert_eq!(cancel(&held.other, "/v2/messages", "").await, json!({"cancelled": 5}));
        held.end_as_cancelled().await;
    })
    .await;
}

/// A node also looks by itself for cancels of which no word has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_other_nodes_without_a_word() {
    Test::run(Engine::Postgres, async |t| {
        let held = Held::start(&t).await;
        // As a node does that ends before it has told the others.
        let cancel = "WITH marked AS ( \
                          UPDATE deliveries SET cancel_requested_at = EXTRACT(EPOCH FROM now()) * 1000 \
                          WHERE node <> 0 RETURNING * \
                      ) INSERT INTO cancellations SELECT message_id, cancel_requested_at FROM marked";
        assert_eq!(t.execute(cancel).await, 5);
        held.end_as_cancelled().await;
    })
    .await;
}

/// Dead letters of two labels and statuses: `l0 500`, `l1 404`, `l0 500`, …
async fn some_dead_letters(server: &Server, receiver: &Receiver, count: usize) -> Vec<String> {
    receiver.script("/500", [Reply::status(500)]);
    receiver.script("/404", [Reply::status(404)]);
    let mut ids = Vec::new();
    for index in 0..count {
        let path = ["/500", "/404"][index % 2];
        let headers = [
            ("Upstash-Retries", "0"),
            ("Upstash-Label", ["l0,even", "l1"][index % 2]),
            ("X-Forwarded-For", ["192.0.2.1", "192.0.2.2"][index % 2]),
        ];
        let id = server.publish(&receiver.url(path), &headers, "x").await;
        ids.push(server.dead_letter(&id).await["dlqId"].as_str().expect("an id").to_owned());
    }
    ids
}

async fn dlq_ids(server: &Server, target: &str) -> Vec<String> {
    let letters = server.list(target, "messages").await;
    letters.iter().map(|letter| letter["dlqId"].as_str().expect("an id").to_owned()).collect()
}

async fn dead_letters_are_listed_by_what_they_have(t: Test) {
    let server = t.server_with(&[("HOMING_TRUSTED_PROXIES", "127.0.0.1")]).await;
    let receiver = Receiver::start().await;
    let ids = some_dead_letters(&server, &receiver, 4).await;
    let letter = server.get_json(&format!("/v2/dlq/{}", ids[1])).await;
    let message = letter["messageId"].as_str().expect("an id").to_owned();
    let entered = ids[1].split('-').next().expect("a time").parse::<i64>().expect("a time");
    let url = receiver.url("/404");
    for (query, expected) in [
        (String::new(), vec![0, 1, 2, 3]),
        ("label=even".to_owned(), vec![0, 2]),
        ("label=even,l1".to_owned(), vec![0, 1, 2, 3]),
        ("label=eve".to_owned(), vec![]),
        (format!("url={url}"), vec![1, 3]),
        (format!("url=https://x.example/,{url}"), vec![1, 3]),
        ("responseStatus=404".to_owned(), vec![1, 3]),
        ("responseStatus=404&responseStatus=500".to_owned(), vec![0, 1, 2, 3]),
        ("responseStatus=999".to_owned(), vec![]),
        ("callerIp=192.0.2.1".to_owned(), vec![0, 2]),
        ("callerIP=192.0.2.2&label=l1".to_owned(), vec![1, 3]),
        (format!("messageId={message}"), vec![1]),
        (format!("dlqIds={},{}", ids[0], ids[3]), vec![0, 3]),
        (format!("toDate={}", entered - 100_000), vec![]),
        (format!("fromDate={entered}&label=l1"), vec![1, 3]),
        ("queueName=q".to_owned(), vec![]),
        ("topicName=g&scheduleId=s&flowControlKey=k".to_owned(), vec![]),
        ("api=llm&source=x&trimBody=5".to_owned(), vec![0, 1, 2, 3]),
    ] {
        let mut expected: Vec<&String> = expected.iter().map(|&index: &usize| &ids[index]).collect();
        for order in ["", "&order=earliestFirst", "&order=latestFirst"] {
            if order.ends_with("latestFirst") {
                expected.reverse();
            }
            for count in ["", "&count=1"] {
                let target = format!("/v2/dlq?{query}{order}{count}");
                assert_eq!(dlq_ids(&server, &target).await.iter().collect::<Vec<_>>(), expected, "{target}");
            }
        }
    }
    for query in
        ["host=a.example", "path=/", "labeel=l", "state=FAILED", "responseStatus=x", "count=0", "order=up"]
    {
        for (method, target) in [("GET", "/v2/dlq"), ("DELETE", "/v2/dlq"), ("POST", "/v2/dlq/retry")] {
            server.call(method, &format!("{target}?{query}")).send().await.error(400);
        }
    }
    for (method, target) in [("DELETE", "/v2/dlq/"), ("POST", "/v2/dlq/retry/")] {
        server.call(method, target).send().await.error(400);
        server.call(method, &format!("{target}?cursor=1-0")).send().await.error(400);
        let target = target.trim_end_matches('/');
        for query in ["label=", "url=,", "toDate="] {
            server.call(method, &format!("{target}?{query}")).send().await.error(400);
        }
        server.call(method, &format!("{target}?dlqIds={}&label=l1", ids[0])).send().await.error(400);
    }
    assert_eq!(dlq_ids(&server, "/v2/dlq").await, ids, "all are still there");
}

async fn dead_letters_are_deleted_a_part_at_a_time(t: Test) {
    let server = t.server_with(&[("HOMING_TRUSTED_PROXIES", "127.0.0.1")]).await;
    let receiver = Receiver::start().await;
    let ids = some_dead_letters(&server, &receiver, 10).await;
    let delete =
        async |target: &str, body: &str| server.call("DELETE", target).body(body).send().await.json(200);
    assert_eq!(delete("/v2/dlq?label=nobodys", "").await, json!({"deleted": 0}));
    assert_eq!(delete("/v2/dlq", r#"{"dlqIds":[]}"#).await, json!({"deleted": 0}));
    let answer = delete("/v2/dlq?label=l1&count=2", "").await;
    assert_eq!(answer, json!({"deleted": 2, "cursor": ids[3]}));
    assert_eq!(delete(&format!("/v2/dlq?label=l1&count=2&cursor={}", ids[3]), "").await["deleted"], 2);
    // The last of them: no cursor.
    let last = delete("/v2/dlq", &json!({"label": "l1", "responseStatus": 404}).to_string()).await;
    assert_eq!(last, json!({"deleted": 1}));
    assert_eq!(dlq_ids(&server, "/v2/dlq").await, [0, 2, 4, 6, 8].map(|index: usize| ids[index].clone()));
    let some = format!("/v2/dlq?dlqIds={},{},1-1", ids[0], ids[2]);
    assert_eq!(delete(&some, "").await, json!({"deleted": 2}));
    let answer = delete("/v2/dlq/?count=1&order=latestFirst", "").await;
    assert_eq!(answer, json!({"deleted": 1, "cursor": ids[8]}));
    assert_eq!(delete("/v2/dlq", "").await, json!({"deleted": 2}), "all that is left");
    assert_eq!(server.get_json("/v2/dlq").await, json!({"messages": []}));
}

async fn dead_letters_are_retried_a_part_at_a_time(t: Test) {
    let server = t.server_with(&[("HOMING_TRUSTED_PROXIES", "127.0.0.1")]).await;
    let receiver = Receiver::start().await;
    let ids = some_dead_letters(&server, &receiver, 7).await;
    let retry = async |target: &str, body: &str| {
        let call =
            server.call("POST", target).header("Upstash-Delay", "10d").header("Upstash-Label", "again");
        call.body(body).send().await.json(201)
    };
    for nothing in ["/v2/dlq/retry?responseStatus=999", "/v2/dlq/retry?messageId=msg_unknown"] {
        assert_eq!(retry(nothing, "").await, json!({"responses": []}));
    }
    assert_eq!(retry("/v2/dlq/retry", r#"{"dlqIds":[]}"#).await, json!({"responses": []}));
    let mut made = BTreeSet::new();
    let mut take = async |answer: Value, count: usize, cursor: Option<&String>| {
        assert_eq!(answer.get("cursor").and_then(Value::as_str), cursor.map(String::as_str), "{answer}");
        let responses = answer["responses"].as_array().expect("an array").clone();
        assert_eq!(responses.len(), count, "{answer}");
        for response in &responses {
            let id = response["messageId"].as_str().expect("an id");
            assert!(made.insert(id.to_owned()), "a new one");
            let message = server.message(id).await;
            assert_eq!((&message["label"], &message["callerIP"]), (&json!("again"), &json!("192.0.2.1")));
            assert_eq!(server.states(id).await, ["CREATED"]);
        }
    };
    take(retry("/v2/dlq/retry?label=l0&count=1", "").await, 1, Some(&ids[0])).await;
    let target = format!("/v2/dlq/retry?label=l0&count=2&cursor={}", ids[0]);
    take(retry(&target, "").await, 2, Some(&ids[4])).await;
    take(retry("/v2/dlq/retry", r#"{"label":"l0"}"#).await, 1, None).await;
    assert_eq!(dlq_ids(&server, "/v2/dlq").await, [1, 3, 5].map(|index: usize| ids[index].clone()));
    let rest = server.call("POST", "/v2/dlq/retry").header("Upstash-Retries", "0").send().await.json(201);
    assert_eq!(rest["responses"].as_array().map(Vec::len), Some(3));
    assert_eq!(rest.get("cursor"), None);
    for response in rest["responses"].as_array().expect("an array") {
        let id = response["messageId"].as_str().expect("an id");
        assert_eq!(server.ended(id).await, "CREATED ACTIVE ERROR FAILED");
    }
}

async fn dead_letters_are_retried_by_their_ids_all_or_none(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let ids = some_dead_letters(&server, &receiver, 4).await;
    let retry = async |query: &str, body: &str| {
        let call = server.call("POST", &format!("/v2/dlq/retry{query}")).header("Upstash-Delay", "10d");
        call.body(body).send().await
    };
    let error = retry(&format!("?dlqIds={},1-1,{}", ids[0], ids[1]), "").await.error(404);
    assert!(error.contains("1-1"), "{error}");
    retry("", &json!({"dlqIds": [ids[0], "1-1"]}).to_string()).await.error(404);
    retry(&format!("?dlqIds={}&Upstash-Retries=x", ids[0]), "").await.error(400);
    let refused = format!("?dlqIds={}&upstash-callback=http://169.254.169.254/", ids[0]);
    retry(&refused, "").await.error(400);
    retry("?upstash-callback=http://169.254.169.254/", "").await.error(400);
    assert_eq!(dlq_ids(&server, "/v2/dlq").await, ids);
    // In the order that was asked for.
    let answer = retry(&format!("?dlqIds={}", ids[3]), &json!([ids[1], ids[3]]).to_string()).await.json(201);
    let responses = answer["responses"].as_array().expect("an array");
    assert_eq!((responses.len(), answer.get("cursor")), (2, None));
    let first = server.message(responses[0]["messageId"].as_str().expect("an id")).await;
    assert_eq!(first["url"], receiver.url("/404"));
    assert_eq!(dlq_ids(&server, "/v2/dlq").await, [0, 2].map(|index: usize| ids[index].clone()));
}

fn message_ids(events: &[Value]) -> BTreeSet<&str> {
    events.iter().map(|event| event["messageId"].as_str().expect("an id")).collect()
}

async fn the_log_is_filtered_by_what_messages_have(t: Test) {
    let server = t.server_with(&[("HOMING_TRUSTED_PROXIES", "127.0.0.1")]).await;
    let receiver = Receiver::start().await;
    let host = receiver.url("").trim_start_matches("http://").to_owned();
    let mut ids = Vec::new();
    for (path, label, ip) in
        [("/a?x=1,2", "one", "192.0.2.1"), ("/b", "one,two", "192.0.2.1"), ("/c,d", "", "192.0.2.2")]
    {
        let headers = [("Upstash-Label", label), ("X-Forwarded-For", ip)];
        let id = server.publish(&receiver.url(path), &headers, "x").await;
        server.ended(&id).await;
        ids.push(id);
    }
    ids.push(publish_waiting(&server, "https://a.example/a", "two").await);
    cancel(&server, &format!("/v2/messages?messageIds={}", ids[3]), "").await;
    let first = receiver.url("/a?x=1,2");
    for (query, expected) in [
        (format!("url={first}"), vec![0]),
        (format!("url={first}&url={}", receiver.url("/b")), vec![0, 1]),
        ("label=one".to_owned(), vec![0, 1]),
        ("label=two,none".to_owned(), vec![1, 3]),
        ("label=one&label=two".to_owned(), vec![0, 1, 3]),
        (format!("host={host}&path=/a"), vec![0]),
        ("path=/a".to_owned(), vec![0, 3]),
        ("path=/c,d".to_owned(), vec![2]),
        ("host=127.0.0.1".to_owned(), vec![0, 1, 2]),
        ("host=127.0.0.1:1".to_owned(), vec![]),
        ("callerIp=192.0.2.1&label=two".to_owned(), vec![1]),
        (format!("messageIds={}&messageIds={}&label=two", ids[0], ids[1]), vec![1]),
        ("state=CANCELED".to_owned(), vec![3]),
        ("state=cancelled&label=two".to_owned(), vec![3]),
        ("state=CANCEL_REQUESTED".to_owned(), vec![3]),
        ("state=DELIVERED&host=a.example".to_owned(), vec![]),
        ("state=IN_PROGRESS".to_owned(), vec![0, 1, 2]),
        ("queueName=q".to_owned(), vec![]),
        ("topicName=g&scheduleId=s&flowControlKey=k&api=llm".to_owned(), vec![]),
        ("toDate=99999999999999999".to_owned(), vec![0, 1, 2, 3]),
    ] {
        for count in ["", "&count=1", "&order=earliestFirst&count=2"] {
            for (path, key) in [("/v2/events", "events"), ("/v2/logs", "logs")] {
                let events = server.list(&format!("{path}?{query}{count}"), key).await;
                let expected = expected.iter().map(|&index: &usize| ids[index].as_str()).collect();
                assert_eq!(message_ids(&events), expected, "{path}?{query}{count}");
            }
        }
    }
    for query in ["host=a%20b", "groupBy=url", "count=0", "labeel=one", "cursor=x"] {
        server.get(&format!("/v2/events?{query}")).await.error(400);
    }
}

/// The JavaScript SDK sends both of them up to version 2.9.
async fn url_groups_are_filtered_by_either_name(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let endpoints = json!({"endpoints": [{"url": receiver.url("/")}]}).to_string();
    for group in ["g", "h"] {
        server.call("POST", &format!("/v2/topics/{group}/endpoints")).body(&endpoints).send().await.json(200);
        let call = server.call("POST", &format!("/v2/publish/{group}")).header("Upstash-Retries", "0");
        let id = call.send().await.json(200)[0]["messageId"].as_str().expect("an id").to_owned();
        server.dead_letter(&id).await;
        server
            .call("POST", &format!("/v2/publish/{group}"))
            .header("Upstash-Delay", "1d")
            .send()
            .await
            .json(200);
    }
    for (query, count) in [
        ("urlGroup=g", 1),
        ("urlGroup=g&topicName=g", 1),
        ("urlGroup=g,h&topicName=h&topicName=g", 2),
        ("urlGroup=none", 0),
        ("urlGroup=", 2),
    ] {
        assert_eq!(server.list(&format!("/v2/dlq?{query}"), "messages").await.len(), count, "{query}");
        let events = server.list(&format!("/v2/events?state=FAILED&{query}"), "events").await;
        assert_eq!(events.len(), count, "{query}");
    }
    let differing = "topicName=h&urlGroup=g";
    for (method, path) in [
        ("GET", "/v2/dlq"),
        ("DELETE", "/v2/dlq"),
        ("POST", "/v2/dlq/retry"),
        ("GET", "/v2/logs"),
        ("GET", "/v2/events"),
        ("DELETE", "/v2/messages"),
    ] {
        let error = server.call(method, &format!("{path}?{differing}")).send().await.error(400);
        assert!(error.contains("are one filter"), "{method} {path}: {error}");
        if method != "GET" {
            server.call(method, &format!("{path}?urlGroup=")).send().await.error(400);
            let body = json!({"topicName": "h", "urlGroup": ["g"]}).to_string();
            server.call(method, path).body(body).send().await.error(400);
        }
    }
    assert_eq!(cancel(&server, "/v2/messages", r#"{"urlGroup":"g"}"#).await, json!({"cancelled": 1}));
    let retried = server.call("POST", "/v2/dlq/retry?urlGroup=h&topicName=h").send().await.json(201);
    assert_eq!(retried["responses"].as_array().map(Vec::len), Some(1));
    let deleted = server.call("DELETE", "/v2/dlq?urlGroup=g").send().await.json(200);
    assert_eq!(deleted["deleted"], 1);
}

async fn the_log_is_grouped_by_messages(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    let mut ids = Vec::new();
    for index in 0..7 {
        let path = if index % 2 == 0 { "/" } else { "/fails" };
        let headers = [("Upstash-Retries", "2"), ("Upstash-Retry-Delay", "20"), ("Upstash-Label", "l")];
        ids.push(server.publish(&receiver.url(path), &headers, "x").await);
    }
    for id in &ids {
        server.ended(id).await;
    }
    publish_waiting(&server, "https://a.example", "other").await;
    for (order, state) in [
        ("earliestFirst", ""),
        ("latestFirst", ""),
        ("latestFirst", "&state=IN_PROGRESS"),
        ("earliestFirst", "&state=FAILED"),
    ] {
        let filter = format!("label=l&order={order}{state}");
        let mut firsts: Vec<Value> = Vec::new();
        for event in server.list(&format!("/v2/events?{filter}"), "events").await {
            if !firsts.contains(&event["messageId"]) {
                firsts.push(event["messageId"].clone());
            }
        }
        for count in [1, 3, 10] {
            let groups =
                server.list(&format!("/v2/logs?groupBy=messageId&{filter}&count={count}"), "messages").await;
            let found: Vec<Value> = groups.iter().map(|group| group["messageId"].clone()).collect();
            assert_eq!(found, firsts, "{filter} {count}");
            for group in &groups {
                let id = group["messageId"].as_str().expect("an id");
                let events = server.list(&format!("/v2/events?{filter}&messageId={id}"), "events").await;
                assert_eq!(group["events"], Value::from(events));
            }
        }
    }
    let page = server.get_json("/v2/events?groupBy=messageId&count=100").await;
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(8));
    assert_eq!((page.get("cursor"), page.get("events")), (None, None));
    let none = server.get_json("/v2/logs?groupBy=messageId&label=none").await;
    assert_eq!(none, json!({"messages": []}));
}

async fn log_pages_have_the_sizes_of_their_endpoints(t: Test) {
    let server = t.server().await;
    for _ in 0..12 {
        publish_waiting(&server, "https://a.example", "").await;
    }
    let page = server.get_json("/v2/logs?groupBy=messageId&count=50").await;
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(10), "more are cut to the most");
    assert!(page["cursor"].is_string());
    let mut publishes = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let server = server.clone();
        if publishes.len() == 16 {
            publishes.join_next().await;
        }
        publishes.spawn(async move { publish_waiting(&server, "https://a.example", "").await });
    }
    publishes.join_all().await;
    for (query, size) in [("", 100), ("?count=101", 100), ("?count=7", 7)] {
        let page = server.get_json(&format!("/v2/logs{query}")).await;
        assert_eq!(page["logs"].as_array().map(Vec::len), Some(size), "{query}");
        assert_eq!(page["logs"], page["events"]);
    }
    for (query, size) in [("", 1000), ("?count=5000", 1000), ("?count=1", 1)] {
        let page = server.get_json(&format!("/v2/events{query}")).await;
        assert_eq!(page["events"].as_array().map(Vec::len), Some(size), "{query}");
        assert_eq!(page.get("logs"), None);
    }
}
