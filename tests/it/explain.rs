//! Why a message waits, and how many there are: what Homing tells beyond QStash.

use serde_json::{Value, json};

use crate::support::{Gate, READ_ONLY_TOKEN, Receiver, Reply, Server, Test, eventually};

engines! {
    a_delayed_message_says_until_when,
    a_queue_says_what_comes_first,
    a_key_says_what_is_used_up,
    a_retry_says_what_failed,
    an_attempt_in_flight_is_told,
    a_finished_message_has_no_reasons,
    what_matches_is_counted_first,
    lists_have_pages,
}

async fn explain(server: &Server, id: &str) -> Value {
    server.get_json(&format!("/homing/v1/messages/{id}/explain")).await
}

/// The kinds of the reasons.
fn kinds(explanation: &Value) -> Vec<&str> {
    let reasons = explanation["reasons"].as_array().expect("reasons").iter();
    reasons.map(|reason| reason["reason"].as_str().expect("a kind")).collect()
}

async fn enqueue(server: &Server, queue: &str, url: &str, headers: &[(&str, &str)]) -> String {
    let call = server.call("POST", &format!("/v2/enqueue/{queue}/{url}")).headers(headers);
    call.send().await.json(200)["messageId"].as_str().expect("an id").to_owned()
}

async fn a_delayed_message_says_until_when(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Delay", "1d")], "").await;
    let told = explain(&server, &id).await;
    assert_eq!((&told["messageId"], &told["state"]), (&json!(id), &json!("WAITING")));
    assert_eq!(kinds(&told), ["DELAYED"], "{told}");
    let message = server.message(&id).await;
    assert_eq!(told["dueAt"], message["notBefore"]);
    assert_eq!(told["reasons"][0]["until"], message["notBefore"]);
    let text = told["reasons"][0]["text"].as_str().expect("a text");
    assert!(text.starts_with("it is delayed until 20"), "{text}");
    // Whoever may read may ask.
    let call = server.call("GET", &format!("/homing/v1/messages/{id}/explain")).without("authorization");
    call.header("Authorization", format!("Bearer {READ_ONLY_TOKEN}")).send().await.json(200);
    let unknown = server.get("/homing/v1/messages/msg_none/explain").await;
    assert_eq!(unknown.error(404), "message msg_none not found");
    server.get(&format!("/homing/v1/messages/{id}/explain?x=1")).await.error(400);
}

async fn a_queue_says_what_comes_first(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let url = receiver.url("/");
    let first = enqueue(&server, "q", &url, &[]).await;
    receiver.next_request().await;
    let second = enqueue(&server, "q", &url, &[]).await;
    let third = enqueue(&server, "q", &url, &[]).await;
    let told = explain(&server, &third).await;
    assert_eq!(kinds(&told), ["QUEUE_FULL", "BEHIND"], "{told}");
    let (full, behind) = (&told["reasons"][0], &told["reasons"][1]);
    assert_eq!((&full["queueName"], &full["parallelism"]), (&json!("q"), &json!(1)));
    assert_eq!(full["messageIds"], json!([first]));
    assert_eq!((&behind["ahead"], &behind["messageIds"]), (&json!(1), &json!([second])));
    server.call("POST", "/v2/queues/q/pause").send().await.json(200);
    assert_eq!(kinds(&explain(&server, &second).await), ["QUEUE_PAUSED"]);
    server.call("POST", "/v2/queues/q/resume").send().await.json(200);
    gate.open();
    for _ in 0..2 {
        receiver.next_request().await;
    }
}

async fn a_key_says_what_is_used_up(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    let rate = [("Upstash-Flow-Control-Key", "r"), ("Upstash-Flow-Control-Value", "rate=1, period=1h")];
    server.ended(&server.publish(&url, &rate, "").await).await;
    receiver.next_request().await;
    let id = server.publish(&url, &rate, "").await;
    let told = explain(&server, &id).await;
    assert_eq!(kinds(&told), ["KEY_RATE"], "{told}");
    let reason = &told["reasons"][0];
    assert_eq!((&reason["flowControlKey"], &reason["rate"]), (&json!("r"), &json!(1)));
    assert_eq!(reason["period"], 3600);
    assert!(reason["until"].as_i64() > told["time"].as_i64(), "{told}");
    server.call("POST", "/v2/flowControl/r/pause").send().await.json(200);
    assert_eq!(kinds(&explain(&server, &id).await), ["KEY_PAUSED"]);

    let gate = Gate::new();
    receiver.script("/slow", [Reply::ok().behind(&gate)]);
    let one = [("Upstash-Flow-Control-Key", "p"), ("Upstash-Flow-Control-Value", "parallelism=1")];
    server.publish(&receiver.url("/slow"), &one, "").await;
    receiver.next_request().await;
    let id = server.publish(&url, &one, "").await;
    let told = explain(&server, &id).await;
    assert_eq!(kinds(&told), ["KEY_FULL"], "{told}");
    assert_eq!(told["reasons"][0]["parallelism"], 1);
    gate.open();
    receiver.next_request().await;
}

async fn a_retry_says_what_failed(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(503)]);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retry-Delay", "3600000")], "").await;
    receiver.next_request().await;
    eventually("it waits for a retry", async || (server.states(&id).await.last()? == "RETRY").then_some(()))
        .await;
    let told = explain(&server, &id).await;
    assert_eq!(kinds(&told), ["RETRIED", "BACKOFF"], "{told}");
    let reason = &told["reasons"][0];
    assert_eq!((&reason["attempts"], &reason["responseStatus"]), (&json!(1), &json!(503)));
    assert_eq!(told["reasons"][1]["until"], told["dueAt"]);
}

async fn an_attempt_in_flight_is_told(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let id = server.publish(&receiver.url("/"), &[], "").await;
    receiver.next_request().await;
    let told = explain(&server, &id).await;
    assert_eq!((&told["state"], kinds(&told)), (&json!("IN_FLIGHT"), vec!["ATTEMPTED"]), "{told}");
    server.call("DELETE", &format!("/v2/messages/{id}")).send().await.json(200);
    assert_eq!(kinds(&explain(&server, &id).await), ["CANCEL_REQUESTED", "ATTEMPTED"]);
    gate.open();
}

async fn a_finished_message_has_no_reasons(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    let delivered = server.publish(&receiver.url("/"), &[], "").await;
    let failed = server.publish(&receiver.url("/fails"), &[("Upstash-Retries", "0")], "").await;
    let cancelled = server.publish(&receiver.url("/"), &[("Upstash-Delay", "1d")], "").await;
    server.call("DELETE", &format!("/v2/messages/{cancelled}")).send().await.json(200);
    server.ended(&delivered).await;
    server.dead_letter(&failed).await;
    for (id, state) in [(delivered, "DELIVERED"), (failed, "FAILED"), (cancelled, "CANCELED")] {
        let told = explain(&server, &id).await;
        assert_eq!((&told["state"], &told["reasons"]), (&json!(state), &json!([])), "{told}");
        assert_eq!(told.get("dueAt"), None);
    }
}

async fn what_matches_is_counted_first(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for label in ["one", "one", "two"] {
        let headers = [("Upstash-Delay", "1d"), ("Upstash-Label", label)];
        server.publish(&receiver.url("/"), &headers, "").await;
    }
    let count = async |target: &str| server.get_json(target).await;
    assert_eq!(count("/homing/v1/messages/count").await, json!({"count": 3, "exact": true}));
    assert_eq!(count("/homing/v1/messages/count?label=one").await, json!({"count": 2, "exact": true}));
    let cancelled = server.call("DELETE", "/v2/messages?label=one").send().await.json(200);
    assert_eq!(cancelled, json!({"cancelled": 2}));
    assert_eq!(count("/homing/v1/messages/count?label=one").await, json!({"count": 0, "exact": true}));
    receiver.script("/", [Reply::status(500)]);
    let failed = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "").await;
    server.dead_letter(&failed).await;
    assert_eq!(count("/homing/v1/dlq/count").await, json!({"count": 1, "exact": true}));
    assert_eq!(count("/homing/v1/dlq/count?responseStatus=400").await, json!({"count": 0, "exact": true}));
    server.get("/homing/v1/messages/count?labeel=one").await.error(400);
    server.get("/homing/v1/dlq/count?host=x").await.error(400);
}

async fn lists_have_pages(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for name in ["a", "b", "c"] {
        let post = async |target: String, body: Value| {
            server.call("POST", &target).body(body.to_string()).send().await.json(200)
        };
        post("/v2/queues".to_owned(), json!({"queueName": name})).await;
        let endpoints = json!({"endpoints": [{"url": receiver.url("/")}]});
        post(format!("/v2/topics/{name}/endpoints"), endpoints).await;
        post(format!("/v2/flowControl/{name}/pause"), json!(null)).await;
        let call = server.call("POST", &format!("/v2/schedules/{}", receiver.url("/")));
        call.headers(&[("Upstash-Cron", "@yearly"), ("Upstash-Schedule-Id", name)]).send().await.json(200);
    }
    for (list, name) in [
        ("/v2/queues", "name"),
        ("/v2/topics", "name"),
        ("/v2/flowControl", "flowControlKey"),
        ("/v2/schedules", "scheduleId"),
    ] {
        let names = async |query: &str| -> Vec<String> {
            let list = server.get_json(&format!("{list}{query}")).await;
            let items = list.as_array().expect("an array").iter();
            items.map(|item| item[name].as_str().expect("a name").to_owned()).collect()
        };
        assert_eq!(names("").await, ["a", "b", "c"], "{list}");
        assert_eq!(names("?count=2").await, ["a", "b"], "{list}");
        assert_eq!(names("?count=2&cursor=b").await, ["c"], "{list}");
        assert_eq!(names("?cursor=a").await, ["b", "c"], "{list}");
        assert!(names("?cursor=c").await.is_empty(), "{list}");
        server.get(&format!("{list}?count=0")).await.error(400);
    }
}
