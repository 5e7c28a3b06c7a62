//! Flow control: parallelism and rate of keys, what users do to them, and keys together with queues.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Engine, Gate, READ_ONLY_TOKEN, Received, Receiver, Reply, Server, Test, eventually, open, something_else,
    within,
};

engines! {
    a_key_is_shown_with_all_its_fields,
    keys_are_taken_from_the_path_as_they_are,
    what_makes_no_sense_is_refused,
    a_key_limits_attempts_at_once,
    a_key_limits_attempts_in_a_period,
    an_attempt_that_can_not_start_in_time_is_not_made_late,
    the_last_message_sets_the_limits,
    a_paused_key_starts_nothing,
    a_retry_holds_nothing_while_it_waits,
    pins_hold_against_messages,
    a_reset_lets_the_rate_begin_anew,
    a_queue_and_a_key_must_both_admit,
    callbacks_may_have_keys,
    limits_outlive_crashes,
    the_servers_own_parallelism_is_shown,
}

/// Publishes under a key and returns the message's id.
async fn publish(server: &Server, key: &str, value: &str, url: &str, headers: &[(&str, &str)]) -> String {
    let mut all = vec![("Upstash-Flow-Control-Key", key), ("Upstash-Flow-Control-Value", value)];
    all.extend_from_slice(headers);
    server.publish(url, &all, "x").await
}

async fn post(server: &Server, target: &str) {
    server.call("POST", target).send().await.json(200);
}

async fn key(server: &Server, key: &str) -> Value {
    server.get_json(&format!("/v2/flowControl/{key}")).await
}

async fn a_key_is_shown_with_all_its_fields(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    assert_eq!(server.get_json("/v2/flowControl").await, json!([]));
    server.get("/v2/flowControl/k").await.error(404);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let url = receiver.url("/");
    let id = publish(&server, "k", "parallelism=2, rate=20, period=1m", &url, &[]).await;
    let now = server.message(&id).await["createdAt"].as_i64().unwrap() / 1000;
    // It is there as soon as the first message is.
    assert_eq!(key(&server, "k").await["flowControlKey"], "k");
    for _ in 0..4 {
        publish(&server, "k", "parallelism=2, rate=20, period=1m", &url, &[]).await;
    }
    publish(&server, "k", "parallelism=2, rate=20, period=1m", &url, &[("Upstash-Delay", "1h")]).await;
    open(&receiver, 2).await;
    let mut shown = key(&server, "k").await;
    let start = shown.as_object_mut().unwrap().remove("ratePeriodStart").unwrap();
    assert!(start.as_i64().is_some_and(|start| (now..now + 30).contains(&start)), "{start} after {now}");
    let expected = json!({
        "flowControlKey": "k", "waitListSize": 3, "parallelismMax": 2, "parallelismCount": 2, "rateMax": 20,
        "rateCount": 2, "ratePeriod": 60, "isPaused": false, "isPinnedParallelism": false, "isPinnedRate": false,
    });
    assert_eq!(shown, expected);
    gate.open();
    eventually("all have gone but the delayed one", async || {
        let shown = key(&server, "k").await;
        let idle = shown["waitListSize"] == 0 && shown["parallelismCount"] == 0;
        idle.then(|| assert_eq!(shown["rateCount"], 5))
    })
    .await;
    // What is not set is 0.
    publish(&server, "l", "parallelism=1", &url, &[]).await;
    let shown = key(&server, "l").await;
    for (field, value) in [("rateMax", 0), ("rateCount", 0), ("ratePeriod", 0), ("ratePeriodStart", 0)] {
        assert_eq!(shown[field], value, "{field}");
    }
    let keys = async |target: &str| -> Vec<String> {
        let list = server.get_json(target).await;
        let keys = list.as_array().unwrap().iter();
        keys.map(|key| key["flowControlKey"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys("/v2/flowControl/").await, ["k", "l"]);
    assert_eq!(keys("/v2/flowControl?search=l").await, ["l"]);
    assert_eq!(keys("/v2/flowControl?search=x").await, [""; 0]);
    let message = server.message(&id).await;
    let shown = (&message["flowControlKey"], &message["parallelism"], &message["rate"], &message["period"]);
    assert_eq!(shown, (&json!("k"), &json!(2), &json!(20), &json!(60)));
}

async fn keys_are_taken_from_the_path_as_they_are(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for (name, path) in [
        ("a/b:c", "a/b:c"),
        ("a//pause", "a//pause"),
        ("ä b%", "%C3%A4%20b%25"),
        ("https://e.com/x", "https://e.com/x"),
        ("pause", "pause"),
    ] {
        let id = publish(&server, name, "parallelism=1", &receiver.url("/"), &[]).await;
        server.ended(&id).await;
        assert_eq!(key(&server, path).await["flowControlKey"], name);
        post(&server, &format!("/v2/flowControl/{path}/pause")).await;
        assert_eq!(key(&server, path).await["isPaused"], true, "{name}");
        post(&server, &format!("/v2/FlowControl/{path}/Resume/")).await;
        assert_eq!(key(&server, path).await["isPaused"], false, "{name}");
    }
}

async fn what_makes_no_sense_is_refused(t: Test) {
    let server = t.server_with(&[("HOMING_MAX_FLOW_CONTROL_KEY", "10")]).await;
    let long = "k".repeat(11);
    for (target, says) in [
        ("/v2/flowControl//pause", "a flow-control key must be given"),
        ("/v2/flowControl/k/pin", "at least one of parallelism and rate must be given"),
        ("/v2/flowControl/k/pin?parallelism=0", "invalid parallelism"),
        ("/v2/flowControl/k/pin?rate=x", "invalid rate"),
        ("/v2/flowControl/k/pin?rate=1&period=0", "invalid period"),
        ("/v2/flowControl/k/pin?rate=1&period=8d", "invalid period"),
        ("/v2/flowControl/k/pin?parallelism=1&period=5", "invalid period: it belongs to a rate"),
        ("/v2/flowControl/k/pin?paralelism=1", "unknown parameter `paralelism`"),
        ("/v2/flowControl/k/unpin", "at least one of parallelism=true and rate=true"),
        ("/v2/flowControl/k/unpin?rate=yes", "invalid rate"),
        (&format!("/v2/flowControl/{long}/pause"), "longer than 10 bytes"),
    ] {
        let text = server.call("POST", target).send().await.error(400);
        assert!(text.contains(says), "{target}: {text}");
    }
    for word in ["unpin?rate=true", "resetRate", "reset"] {
        server.call("POST", &format!("/v2/flowControl/k/{word}")).send().await.error(404);
    }
    assert_eq!(server.get_json("/v2/flowControl").await, json!([]));
    let call = server.call("POST", "/v2/publish/https://example.com");
    let call = call.header("Upstash-Flow-Control-Key", &long);
    let text = call.header("Upstash-Flow-Control-Value", "rate=1").send().await.error(400);
    assert!(text.contains("invalid header upstash-flow-control-key: it is longer than 10 bytes"), "{text}");
    for word in ["pause", "resume", "pin?rate=1", "unpin?rate=true", "resetRate"] {
        let call = server.call("POST", &format!("/v2/flowControl/k/{word}")).without("Authorization");
        call.header("Authorization", format!("Bearer {READ_ONLY_TOKEN}")).send().await.error(403);
    }
}

async fn a_key_limits_attempts_at_once(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let other = Receiver::start().await;
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    other.script("/", [Reply::ok().behind(&gate)]);
    let mut ids = Vec::new();
    // It spans destinations.
    for number in 0..12 {
        let url = [&receiver, &other][number % 2].url("/");
        ids.push(publish(&server, "k", "parallelism=3", &url, &[]).await);
    }
    eventually("three are open", async || (receiver.open() + other.open() == 3).then_some(())).await;
    something_else(&server, &receiver).await;
    assert_eq!(receiver.open() + other.open(), 3);
    // Nobody else waits.
    let free = publish(&server, "l", "parallelism=1", &receiver.url("/free"), &[]).await;
    assert_eq!(server.ended(&free).await, "CREATED ACTIVE DELIVERED");
    gate.open();
    for id in &ids {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
}

/// The most requests that arrived within that time.
fn most_within(requests: &[Received], period: Duration) -> usize {
    let mut times: Vec<Instant> = requests.iter().map(|request| request.at).collect();
    times.sort();
    (0..times.len())
        .map(|first| times[first..].iter().take_while(|at| **at - times[first] < period).count())
        .max()
        .unwrap_or(0)
}

/// When the attempts of these messages were started, in milliseconds, in order.
async fn starts(server: &Server, ids: &[String]) -> Vec<i64> {
    let mut starts = Vec::new();
    for id in ids {
        let events = server.events(id).await;
        let active = events.iter().filter(|event| event["state"] == "ACTIVE");
        starts.extend(active.map(|event| event["time"].as_i64().unwrap()));
    }
    starts.sort_unstable();
    starts
}

/// No window of that many milliseconds holds more starts.
fn check_starts(starts: &[i64], most: usize, period_ms: i64) {
    for (index, first) in starts.iter().enumerate() {
        let inside = starts[index..].iter().take_while(|start| **start < first + period_ms).count();
        assert!(inside <= most, "{inside} attempts in {period_ms} ms from {first} on: {starts:?}");
    }
}

async fn a_key_limits_attempts_in_a_period(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500), Reply::ok()]);
    let mut ids = Vec::new();
    for number in 0..33 {
        // A retry counts as well.
        let url = receiver.url(if number == 3 { "/fails" } else { "/" });
        ids.push(publish(&server, "k", "rate=10", &url, &[("Upstash-Retry-Delay", "1")]).await);
    }
    for id in &ids {
        server.ended(id).await;
    }
    let starts = starts(&server, &ids).await;
    assert_eq!(starts.len(), 34);
    check_starts(&starts, 10, 1000);
    // On its way a request may be held up, so the receiver's windows can't be as long.
    assert!(most_within(&receiver.requests(), Duration::from_millis(500)) <= 10);
    assert!(key(&server, "k").await["rateCount"].as_u64().unwrap() <= 10);
}

/// Admitted while its destination has no slot, an attempt would start whenever one ends, and with it those that the rate
/// admits by then.
async fn an_attempt_that_can_not_start_in_time_is_not_made_late(t: Test) {
    let settings = [("HOMING_CONCURRENCY_PER_ORIGIN", "2")];
    let (server, receiver) = (t.server_with(&settings).await, Receiver::start().await);
    receiver.script("/slow", [Reply::ok().after(Duration::from_millis(1300))]);
    let mut slow = Vec::new();
    for _ in 0..2 {
        slow.push(server.publish(&receiver.url("/slow"), &[], "x").await);
    }
    open(&receiver, 2).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(publish(&server, "k", "rate=1", &receiver.url("/"), &[]).await);
    }
    for id in &ids {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
    check_starts(&starts(&server, &ids).await, 1, 1000);
    for id in &slow {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
}

async fn the_last_message_sets_the_limits(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let url = receiver.url("/");
    for _ in 0..6 {
        publish(&server, "k", "parallelism=1", &url, &[]).await;
    }
    open(&receiver, 1).await;
    publish(&server, "k", "parallelism=3", &url, &[]).await;
    open(&receiver, 3).await;
    publish(&server, "k", "rate=1, period=1h", &url, &[]).await;
    let shown = key(&server, "k").await;
    assert_eq!((&shown["parallelismMax"], &shown["rateMax"]), (&json!(0), &json!(1)));
    // Without a limit on attempts at once, the rate is all: one more goes.
    open(&receiver, 4).await;
    publish(&server, "k", "parallelism=100", &url, &[]).await;
    open(&receiver, 9).await;
    gate.open();
}

async fn a_paused_key_starts_nothing(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for _ in 0..2 {
        post(&server, "/v2/flowControl/k/pause").await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(publish(&server, "k", "parallelism=1", &receiver.url("/"), &[]).await);
    }
    ids.push(
        publish(&server, "k", "parallelism=1", &receiver.url("/"), &[("Upstash-Queue-Name", "q")]).await,
    );
    something_else(&server, &receiver).await;
    for id in &ids {
        assert_eq!(server.states(id).await, ["CREATED"]);
    }
    let shown = key(&server, "k").await;
    assert_eq!((&shown["isPaused"], &shown["waitListSize"]), (&json!(true), &json!(4)));
    for _ in 0..2 {
        post(&server, "/v2/flowControl/k/resume").await;
    }
    for id in &ids {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
    // A key that nobody has used can be resumed, and is there then.
    post(&server, "/v2/flowControl/new/resume").await;
    assert_eq!(key(&server, "new").await["isPaused"], false);
}

async fn a_retry_holds_nothing_while_it_waits(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    let url = receiver.url("/fails");
    let first = publish(&server, "k", "parallelism=1", &url, &[("Upstash-Retry-Delay", "3600000")]).await;
    let second = publish(&server, "k", "parallelism=1", &receiver.url("/"), &[]).await;
    assert_eq!(server.ended(&second).await, "CREATED ACTIVE DELIVERED");
    assert_eq!(server.states(&first).await, ["CREATED", "ACTIVE", "ERROR", "RETRY"]);
    let shown = key(&server, "k").await;
    assert_eq!((&shown["parallelismCount"], &shown["waitListSize"]), (&json!(0), &json!(0)));
}

async fn pins_hold_against_messages(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let url = receiver.url("/");
    post(&server, "/v2/flowControl/k/pin?parallelism=2&rate=50&period=60").await;
    for _ in 0..5 {
        publish(&server, "k", "parallelism=4", &url, &[]).await;
    }
    open(&receiver, 2).await;
    let limits = async || {
        let shown = key(&server, "k").await;
        json!([
            shown["parallelismMax"],
            shown["rateMax"],
            shown["ratePeriod"],
            shown["isPinnedParallelism"],
            shown["isPinnedRate"]
        ])
    };
    assert_eq!(limits().await, json!([2, 50, 60, true, true]));
    post(&server, "/v2/flowControl/k/unpin?parallelism=true&rate=False").await;
    assert_eq!(limits().await, json!([2, 50, 60, false, true]));
    publish(&server, "k", "parallelism=3", &url, &[]).await;
    assert_eq!(limits().await, json!([3, 50, 60, false, true]));
    open(&receiver, 3).await;
    post(&server, "/v2/flowControl/k/pin?parallelism=5").await;
    open(&receiver, 5).await;
    assert_eq!(limits().await, json!([5, 50, 60, true, true]));
    gate.open();
}

async fn a_reset_lets_the_rate_begin_anew(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(publish(&server, "k", "rate=1, period=1h", &receiver.url("/"), &[]).await);
    }
    for (sent, word) in [(1, ""), (2, "resetRate"), (3, "reset"), (5, "pin?rate=2&period=3600")] {
        if !word.is_empty() {
            post(&server, &format!("/v2/flowControl/k/{word}")).await;
        }
        eventually(&format!("{sent} have gone"), async || {
            let shown = key(&server, "k").await;
            (shown["waitListSize"] == 5 - sent && shown["parallelismCount"] == 0).then_some(())
        })
        .await;
        something_else(&server, &receiver).await;
        assert_eq!(receiver.requests_on("/").len(), sent);
        assert_eq!(key(&server, "k").await["rateCount"], if sent == 5 { 2 } else { 1 });
    }
    let mut arrived: Vec<String> =
        receiver.requests_on("/").iter().map(|request| request.message_id().to_owned()).collect();
    arrived.truncate(3);
    assert_eq!(arrived, ids[..3], "in their order");
}

async fn a_queue_and_a_key_must_both_admit(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    server.call("POST", "/v2/queues").body(r#"{"queueName":"q","parallelism":3}"#).send().await.json(200);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let queue = [("Upstash-Queue-Name", "q")];
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(publish(&server, "k", "parallelism=1", &receiver.url("/"), &queue).await);
    }
    // It has no key, but the one in front of it waits for its key.
    ids.push(server.publish(&receiver.url("/free"), &queue, "x").await);
    open(&receiver, 1).await;
    something_else(&server, &receiver).await;
    assert_eq!(receiver.open(), 1);
    assert!(receiver.requests_on("/free").is_empty());
    // Outside of the queue the key is as full.
    let outside = publish(&server, "k", "parallelism=1", &receiver.url("/outside"), &[]).await;
    something_else(&server, &receiver).await;
    assert_eq!(server.states(&outside).await, ["CREATED"]);
    gate.open();
    for id in &ids {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
    assert_eq!(server.ended(&outside).await, "CREATED ACTIVE DELIVERED");
    let shown = key(&server, "k").await;
    assert_eq!((&shown["parallelismCount"], &shown["waitListSize"]), (&json!(0), &json!(0)));
}

async fn callbacks_may_have_keys(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callbacks = Receiver::start().await;
    callbacks.script("/", [Reply::ok().after(Duration::from_millis(10))]);
    let callback = callbacks.url("/");
    for _ in 0..6 {
        let headers = [
            ("Upstash-Callback", callback.as_str()),
            ("Upstash-Callback-Flow-Control-Key", "k"),
            ("Upstash-Callback-Flow-Control-Value", "parallelism=1"),
        ];
        server.publish(&receiver.url("/"), &headers, "x").await;
    }
    for _ in 0..6 {
        let request = callbacks.next_request().await;
        assert_eq!(server.ended(request.message_id()).await, "CREATED ACTIVE DELIVERED");
        assert_eq!(server.message(request.message_id()).await["flowControlKey"], "k");
    }
    assert_eq!(callbacks.most_open(), 1);
    assert_eq!(key(&server, "k").await["parallelismMax"], 1);
}

async fn limits_outlive_crashes(t: Test) {
    let server = t.server_with(&[("HOMING_NODE_NAME", "the-only-node")]).await;
    let receiver = Receiver::start().await;
    receiver.script("/", [Reply::ok().after(Duration::from_millis(20))]);
    let mut ids = Vec::new();
    for _ in 0..18 {
        ids.push(publish(&server, "k", "parallelism=2, rate=6, period=2s", &receiver.url("/"), &[]).await);
    }
    eventually("some of them have gone", async || (receiver.requests().len() >= 6).then_some(())).await;
    server.kill9();
    server.restart().await;
    for id in &ids {
        server.ended(id).await;
    }
    // Attempts that a crash cut off have arrived too.
    assert!(most_within(&receiver.requests(), Duration::from_millis(1500)) <= 6);
    assert!(receiver.most_open() <= 4, "{}", receiver.most_open());
}

async fn the_servers_own_parallelism_is_shown(t: Test) {
    let (server, receiver) = (t.server_with(&[("HOMING_CONCURRENCY", "300")]).await, Receiver::start().await);
    let shown = server.get_json("/v2/globalParallelism").await;
    assert_eq!(shown, json!({ "parallelismMax": 300, "parallelismCount": 0 }));
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    server.publish(&receiver.url("/"), &[], "x").await;
    open(&receiver, 1).await;
    assert_eq!(server.get_json("/v2/globalParallelism/").await["parallelismCount"], 1);
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_keep_to_one_key() {
    Test::run(Engine::Postgres, async |t| {
        let mut nodes = Vec::new();
        for name in ["a", "b", "c"] {
            nodes.push(t.server_with(&[("HOMING_NODE_NAME", name)]).await);
        }
        let receiver = Receiver::start().await;
        receiver.script("/", [Reply::ok().after(Duration::from_millis(10))]);
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..6_usize {
            let (server, url) = (nodes[client % 3].clone(), receiver.url("/"));
            let each = if client < 2 { 84 } else { 83 };
            clients.spawn(async move {
                let mut ids = Vec::new();
                for _ in 0..each {
                    ids.push(publish(&server, "k", "rate=50, parallelism=5", &url, &[]).await);
                }
                ids
            });
        }
        let ids: Vec<String> = clients.join_all().await.into_iter().flatten().collect();
        assert_eq!(ids.len(), 500);
        within(Duration::from_secs(40), "all have gone", async || {
            let shown = key(&nodes[0], "k").await;
            (shown["waitListSize"] == 0 && shown["parallelismCount"] == 0).then_some(())
        })
        .await;
        assert_eq!(receiver.requests().len(), 500);
        assert!(receiver.most_open() <= 5, "{} at once", receiver.most_open());
        // On its way a request may be held up, so the receiver's windows can't be as long.
        let most = most_within(&receiver.requests(), Duration::from_millis(500));
        assert!(most <= 50, "{most} within half a period");
        let events = nodes[0].list("/v2/events?state=ACTIVE", "events").await;
        let mut starts: Vec<i64> = events.iter().map(|event| event["time"].as_i64().unwrap()).collect();
        starts.sort_unstable();
        assert_eq!(starts.len(), 500);
        // Each node tells the store's time as it knows it, and may be a little off.
        check_starts(&starts, 50, 900);
    })
    .await;
}
