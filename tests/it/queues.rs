//! Queues: order, slots, pauses, and what the API shows of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::support::wait::pause;
use crate::support::{
    Engine, Gate, READ_ONLY_TOKEN, Receiver, Reply, Server, Test, eventually, open, something_else, within,
};

engines! {
    a_queue_is_shown_with_all_its_fields,
    queues_are_refused_with_a_reason,
    limits_on_queues_are_quotas,
    a_queue_goes_in_order_whatever_happens,
    a_queue_lets_as_many_run_as_it_has_slots,
    a_paused_queue_starts_nothing,
    a_retry_keeps_those_behind_it_waiting,
    cancelling_the_first_lets_the_next_go,
    a_delayed_message_joins_when_it_is_due,
    a_failed_message_lets_the_next_go,
    a_deleted_queue_takes_its_messages_along,
    a_dead_letter_goes_back_into_its_queue,
    a_queue_outlives_crashes,
    a_paused_backlog_is_in_nobodys_way,
}

/// Publishes into a queue and returns the message's id.
async fn enqueue(server: &Server, queue: &str, url: &str, headers: &[(&str, &str)]) -> String {
    let mut all = vec![("Upstash-Queue-Name", queue)];
    all.extend_from_slice(headers);
    server.publish(url, &all, "x").await
}

async fn upsert(server: &Server, body: &Value) {
    let answer = server.call("POST", "/v2/queues").body(body.to_string()).send().await;
    answer.json(200);
}

async fn set_parallelism(server: &Server, queue: &str, parallelism: u32) {
    upsert(server, &json!({ "queueName": queue, "parallelism": parallelism })).await;
}

async fn post(server: &Server, target: &str) {
    server.call("POST", target).send().await.json(200);
}

/// The ids of the messages in the order in which each first arrived.
fn first_arrivals(receiver: &Receiver) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for request in receiver.requests() {
        let id = request.message_id();
        if !ids.iter().any(|have| have == id) {
            ids.push(id.to_owned());
        }
    }
    ids
}

async fn a_queue_is_shown_with_all_its_fields(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    assert_eq!(server.get_json("/v2/queues").await, json!([]));
    assert!(server.get("/v2/queues/q").await.error(404).contains("queue q not found"));
    upsert(&server, &json!({ "queueName": "q", "parallelism": 2, "paused": false })).await;
    let mut queue = server.get_json("/v2/queues/q").await;
    for time in ["createdAt", "updatedAt"] {
        let time = queue.as_object_mut().unwrap().remove(time).expect("a time");
        assert!(time.as_i64().is_some_and(|time| time > 1_700_000_000_000), "{time}");
    }
    assert_eq!(queue, json!({ "name": "q", "parallelism": 2, "paused": false, "lag": 0 }));
    // What is not said stays as it is; a new queue has one slot.
    upsert(&server, &json!({ "queueName": "q", "paused": true })).await;
    upsert(&server, &json!({ "queueName": "r" })).await;
    let queues = server.get_json("/v2/queues/").await;
    let shown: Vec<_> = queues
        .as_array()
        .unwrap()
        .iter()
        .map(|queue| json!([queue["name"], queue["parallelism"], queue["paused"]]))
        .collect();
    assert_eq!(shown, [json!(["q", 2, true]), json!(["r", 1, false])]);
    // Enqueuing makes a queue, and leaves the settings of one alone. What is in flight counts too.
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    for queue in ["s", "s", "s", "q"] {
        enqueue(&server, queue, &receiver.url("/"), &[]).await;
    }
    open(&receiver, 1).await;
    let queue = server.get_json("/v2/queues/s").await;
    assert_eq!(
        (&queue["parallelism"], &queue["paused"], &queue["lag"]),
        (&json!(1), &json!(false), &json!(3))
    );
    let queue = server.get_json("/v2/queues/q").await;
    assert_eq!(
        (&queue["parallelism"], &queue["paused"], &queue["lag"]),
        (&json!(2), &json!(true), &json!(1))
    );
    gate.open();
    eventually("the queue is empty", async || {
        (server.get_json("/v2/queues/s").await["lag"] == 0).then_some(())
    })
    .await;
    // Twice is no error.
    for _ in 0..2 {
        server.call("DELETE", "/v2/queues/s").send().await.json(200);
    }
    assert_eq!(server.get("/v2/queues/s").await.status, 404);
}

async fn queues_are_refused_with_a_reason(t: Test) {
    let server = t.server().await;
    for (body, says) in [
        ("", "the body must be JSON like {\"queueName\""),
        ("[]", "the body must be JSON like"),
        ("{}", "missing field `queueName`"),
        (r#"{"queueName":""}"#, "invalid queueName: \"\" is not a name; letters, digits"),
        (r#"{"queueName":"a b"}"#, "invalid queueName"),
        (r#"{"queueName":"q","parallelism":0}"#, "invalid parallelism 0: an integer from 1"),
        (r#"{"queueName":"q","parallelism":-1}"#, "invalid parallelism -1"),
        (r#"{"queueName":"q","parallelism":2147483648}"#, "invalid parallelism 2147483648"),
        (r#"{"queueName":"q","parallelism":"2"}"#, "the body must be JSON like"),
        (r#"{"queueName":"q","parallelism":1.5}"#, "the body must be JSON like"),
        (r#"{"queueName":"q","paused":"yes"}"#, "the body must be JSON like"),
    ] {
        let text = server.call("POST", "/v2/queues").body(body).send().await.error(400);
        assert!(text.contains(says), "{body}: {text}");
    }
    for word in ["pause", "resume"] {
        let text = server.call("POST", &format!("/v2/queues/q/{word}")).send().await.error(404);
        assert!(text.contains("queue q not found"), "{text}");
    }
    let target = "/v2/publish/https://example.com";
    let text = server.call("POST", target).header("Upstash-Queue-Name", "a/b").send().await.error(400);
    assert!(text.contains("invalid header upstash-queue-name"), "{text}");
    assert_eq!(server.get_json("/v2/queues").await, json!([]));
    for (method, target) in [
        ("POST", "/v2/queues"),
        ("DELETE", "/v2/queues/q"),
        ("POST", "/v2/queues/q/pause"),
        ("POST", "/v2/queues/q/resume"),
    ] {
        let call = server.call(method, target).without("Authorization");
        call.header("Authorization", format!("Bearer {READ_ONLY_TOKEN}")).send().await.error(403);
    }
}

async fn limits_on_queues_are_quotas(t: Test) {
    let settings = [("HOMING_MAX_QUEUES", "2"), ("HOMING_MAX_QUEUE_PARALLELISM", "5")];
    let (server, receiver) = (t.server_with(&settings).await, Receiver::start().await);
    let wants = async |body: Value| server.call("POST", "/v2/queues").body(body.to_string()).send().await;
    wants(json!({ "queueName": "a", "parallelism": 5 })).await.json(200);
    let text = wants(json!({ "queueName": "a", "parallelism": 6 })).await.error(412);
    assert_eq!(text, "quota maxQueueParallelism exceeded, current limit: 5");
    enqueue(&server, "b", &receiver.url("/"), &[]).await;
    let text = wants(json!({ "queueName": "c" })).await.error(412);
    assert_eq!(text, "quota maxQueues exceeded, current limit: 2");
    let call = server.call("POST", &format!("/v2/publish/{}", receiver.url("/")));
    let text = call.header("Upstash-Queue-Name", "c").send().await.error(412);
    assert_eq!(text, "quota maxQueues exceeded, current limit: 2");
    // Whatever would make one.
    receiver.script("/fails", [Reply::status(500)]);
    let failed = server.publish(&receiver.url("/fails"), &[("Upstash-Retries", "0")], "x").await;
    let letter = server.dead_letter(&failed).await["dlqId"].as_str().expect("an id").to_owned();
    for target in [format!("/v2/dlq/retry/{letter}"), "/v2/dlq/retry".to_owned()] {
        let retry = server.call("POST", &target).header("Upstash-Queue-Name", "c");
        let text = retry.send().await.error(412);
        assert_eq!(text, "quota maxQueues exceeded, current limit: 2");
    }
    server.dead_letter(&failed).await;
    let publishes = (0..8).map(|number| {
        let call = server.call("POST", &format!("/v2/publish/{}", receiver.url("/")));
        call.header("Upstash-Queue-Name", format!("new{number}")).send()
    });
    server.call("DELETE", "/v2/queues/a").send().await.json(200);
    let answers = futures_util::future::join_all(publishes).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1, "{answers:?}");
    let made = answers.iter().position(|answer| answer.status == 200).expect("one");
    server.call("DELETE", &format!("/v2/queues/new{made}")).send().await.json(200);
    enqueue(&server, "a", &receiver.url("/"), &[]).await;
    wants(json!({ "queueName": "b", "paused": true })).await.json(200);
    server.call("DELETE", "/v2/queues/a").send().await.json(200);
    wants(json!({ "queueName": "c" })).await.json(200);
}

/// When a client's publish was sent and answered.
struct Published {
    id: String,
    sent: Instant,
    answered: Instant,
}

/// Publishes into a queue from several clients at once. Each message goes to a path of its own, and has a callback.
async fn publish_at_once(
    servers: &[Server],
    clients: usize,
    each: usize,
    receiver: &Arc<Receiver>,
    callback: &str,
) -> Vec<Published> {
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let (server, receiver) = (servers[client % servers.len()].clone(), Arc::clone(receiver));
        let callback = callback.to_owned();
        tasks.spawn(async move {
            let mut published = Vec::new();
            for number in 0..each {
                let path = format!("/{client}-{number}");
                if rand::rng().random_ratio(1, 4) {
                    receiver.script(&path, [Reply::status(500), Reply::ok()]);
                }
                let headers = [
                    ("Upstash-Retry-Delay", "20"),
                    ("Upstash-Retries", "2"),
                    ("Upstash-Callback", &callback),
                ];
                let sent = Instant::now();
                let id = enqueue(&server, "q", &receiver.url(&path), &headers).await;
                published.push(Published { id, sent, answered: Instant::now() });
            }
            published
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// Whoever had the answer before another one was sent comes first.
fn check_order(published: &[Published], arrivals: &[String]) {
    assert_eq!(arrivals.len(), published.len(), "each message arrives");
    let place: HashMap<&str, usize> = arrivals.iter().map(String::as_str).zip(0..).collect();
    for earlier in published {
        for later in published.iter().filter(|later| earlier.answered < later.sent) {
            let (first, second) = (place[earlier.id.as_str()], place[later.id.as_str()]);
            assert!(first < second, "{} came in before {} and went out after it", earlier.id, later.id);
        }
    }
}

/// Many publishers, failures, callbacks: one message at a time, with all that belongs to it.
async fn a_queue_goes_in_order_whatever_happens(t: Test) {
    const CALLBACK_TAKES: Duration = Duration::from_millis(15);
    let server = t.server().await;
    let (receiver, callbacks) = (Arc::new(Receiver::start().await), Receiver::start().await);
    callbacks.script("/", [Reply::ok().after(CALLBACK_TAKES)]);
    let published =
        publish_at_once(std::slice::from_ref(&server), 8, 125, &receiver, &callbacks.url("/")).await;
    within(Duration::from_mins(2), "the queue is empty", async || {
        (server.get_json("/v2/queues/q").await["lag"] == 0).then_some(())
    })
    .await;
    assert_eq!(receiver.most_open(), 1, "one at a time");
    let arrivals = first_arrivals(&receiver);
    check_order(&published, &arrivals);
    let requests = receiver.requests();
    eventually("each attempt has its callback", async || {
        (callbacks.requests().len() == requests.len()).then_some(())
    })
    .await;
    let mut done: HashMap<String, Instant> = HashMap::new();
    for callback in callbacks.requests() {
        let source = callback.json()["sourceMessageId"].as_str().unwrap().to_owned();
        let ended = callback.at + CALLBACK_TAKES;
        let last = done.entry(source).or_insert(ended);
        *last = ended.max(*last);
    }
    for pair in arrivals.windows(2) {
        let next = requests.iter().find(|request| request.message_id() == pair[1]).unwrap();
        assert!(done[&pair[0]] <= next.at, "{} begins before the callbacks of {} are done", pair[1], pair[0]);
    }
    let retried = requests.iter().filter(|request| request.retried() > 0).count();
    assert!(retried > 0, "some of them failed at first");
}

async fn a_queue_lets_as_many_run_as_it_has_slots(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gates: Vec<Gate> = (0..8).map(|_| Gate::new()).collect();
    for (number, gate) in gates.iter().enumerate() {
        receiver.script(&format!("/{number}"), [Reply::ok().behind(gate)]);
    }
    set_parallelism(&server, "q", 3).await;
    let mut ids = Vec::new();
    for number in 0..8 {
        ids.push(enqueue(&server, "q", &receiver.url(&format!("/{number}")), &[]).await);
    }
    open(&receiver, 3).await;
    something_else(&server, &receiver).await;
    assert_eq!(receiver.open(), 3);
    let mut running: Vec<String> =
        receiver.requests().iter().map(|request| request.path().to_owned()).collect();
    running.retain(|path| path != "/else");
    running.sort();
    assert_eq!(running, ["/0", "/1", "/2"]);
    gates[1].open();
    receiver.next_on("/3").await;
    // More slots take effect at once, fewer when they are free.
    set_parallelism(&server, "q", 5).await;
    open(&receiver, 5).await;
    set_parallelism(&server, "q", 2).await;
    for gate in [0, 2, 3] {
        gates[gate].open();
    }
    open(&receiver, 2).await;
    something_else(&server, &receiver).await;
    assert_eq!(receiver.open(), 2);
    gates[4].open();
    receiver.next_on("/6").await;
    for gate in &gates {
        gate.open();
    }
    for id in &ids {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
}

async fn a_paused_queue_starts_nothing(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/first", [Reply::status(500).behind(&gate), Reply::ok()]);
    let first = enqueue(
        &server,
        "q",
        &receiver.url("/first"),
        &[("Upstash-Retry-Delay", "1"), ("Upstash-Callback", &receiver.url("/callback"))],
    )
    .await;
    let second = enqueue(&server, "q", &receiver.url("/second"), &[]).await;
    receiver.next_on("/first").await;
    for _ in 0..2 {
        post(&server, "/v2/queues/q/pause").await;
    }
    assert_eq!(server.get_json("/v2/queues/q").await["paused"], true);
    // The attempt in flight ends, its callback goes; the retry waits.
    gate.open();
    assert_eq!(receiver.next_on("/callback").await.json()["status"], 500);
    enqueue(&server, "q", &receiver.url("/third"), &[]).await;
    something_else(&server, &receiver).await;
    assert_eq!(receiver.requests_on("/first").len(), 1);
    assert_eq!(server.states(&first).await, ["CREATED", "ACTIVE", "ERROR", "RETRY"]);
    assert_eq!(server.states(&second).await, ["CREATED"]);
    for _ in 0..2 {
        post(&server, "/v2/queues/q/resume").await;
    }
    assert_eq!(receiver.next_on("/first").await.retried(), 1);
    receiver.next_on("/second").await;
    receiver.next_on("/third").await;
    assert!(receiver.requests_on("/second")[0].at >= receiver.requests_on("/callback")[1].at);
}

async fn a_retry_keeps_those_behind_it_waiting(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/first", [Reply::status(500), Reply::status(500), Reply::ok()]);
    enqueue(&server, "q", &receiver.url("/first"), &[("Upstash-Retry-Delay", "700")]).await;
    let second = enqueue(&server, "q", &receiver.url("/second"), &[]).await;
    let other = enqueue(&server, "other", &receiver.url("/other"), &[]).await;
    server.ended(&other).await;
    assert_eq!(server.states(&second).await, ["CREATED"]);
    server.ended(&second).await;
    let paths: Vec<String> = receiver.requests().iter().map(|request| request.path().to_owned()).collect();
    let queue: Vec<&str> = paths.iter().map(String::as_str).filter(|path| *path != "/other").collect();
    assert_eq!(queue, ["/first", "/first", "/first", "/second"]);
}

async fn a_failed_message_lets_the_next_go(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/first", [Reply::status(500)]);
    receiver.script("/failure", [Reply::ok().behind(&gate)]);
    let failure = receiver.url("/failure");
    let headers = [("Upstash-Retries", "0"), ("Upstash-Failure-Callback", failure.as_str())];
    let first = enqueue(&server, "q", &receiver.url("/first"), &headers).await;
    let second = enqueue(&server, "q", &receiver.url("/second"), &[]).await;
    receiver.next_on("/failure").await;
    something_else(&server, &receiver).await;
    assert_eq!(server.states(&first).await.last().unwrap(), "FAILED");
    assert_eq!(server.states(&second).await, ["CREATED"], "the failure callback is not done");
    gate.open();
    assert_eq!(server.ended(&second).await, "CREATED ACTIVE DELIVERED");
}

async fn cancelling_the_first_lets_the_next_go(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/first", [Reply::status(500)]);
    let gate = Gate::new();
    receiver.script("/second", [Reply::status(500).behind(&gate)]);
    let first = enqueue(&server, "q", &receiver.url("/first"), &[("Upstash-Retry-Delay", "3600000")]).await;
    let second = enqueue(&server, "q", &receiver.url("/second"), &[]).await;
    let third = enqueue(&server, "q", &receiver.url("/third"), &[]).await;
    eventually("the first one waits for its retry", async || {
        (server.states(&first).await.last()? == "RETRY").then_some(())
    })
    .await;
    assert_eq!(server.states(&second).await, ["CREATED"]);
    let cancel = async |id: &str| {
        server.call("DELETE", &format!("/v2/messages/{id}")).send().await.json(200);
    };
    cancel(&first).await;
    receiver.next_on("/second").await;
    cancel(&second).await;
    something_else(&server, &receiver).await;
    assert_eq!(server.states(&third).await, ["CREATED"], "the attempt in flight ends first");
    gate.open();
    assert_eq!(server.ended(&third).await, "CREATED ACTIVE DELIVERED");
    assert_eq!(server.states(&second).await.last().unwrap(), "CANCELED");
    // A callback that is cancelled gives its source's slot back.
    receiver.script("/callback", [Reply::status(500)]);
    let callback = receiver.url("/callback");
    let headers = [("Upstash-Callback", callback.as_str()), ("Upstash-Callback-Retry-Delay", "3600000")];
    enqueue(&server, "q", &receiver.url("/fourth"), &headers).await;
    let fifth = enqueue(&server, "q", &receiver.url("/fifth"), &[]).await;
    let request = receiver.next_on("/callback").await;
    eventually("the callback waits for its retry", async || {
        (server.states(request.message_id()).await.last()? == "RETRY").then_some(())
    })
    .await;
    assert_eq!(server.states(&fifth).await, ["CREATED"]);
    cancel(request.message_id()).await;
    assert_eq!(server.ended(&fifth).await, "CREATED ACTIVE DELIVERED");
}

async fn a_delayed_message_joins_when_it_is_due(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let start = Instant::now();
    let late = enqueue(&server, "q", &receiver.url("/late"), &[("Upstash-Delay", "2s")]).await;
    let at_once = enqueue(&server, "q", &receiver.url("/now"), &[]).await;
    assert_eq!(server.ended(&at_once).await, "CREATED ACTIVE DELIVERED");
    assert!(receiver.requests_on("/late").is_empty(), "nobody waits for what is not due");
    let request = receiver.next_on("/late").await;
    assert!(request.at - start >= Duration::from_secs(2), "early");
    server.ended(&late).await;
}

async fn a_deleted_queue_takes_its_messages_along(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/first", [Reply::status(500).behind(&gate)]);
    let first = enqueue(&server, "q", &receiver.url("/first"), &[("Upstash-Retry-Delay", "1")]).await;
    receiver.next_on("/first").await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(enqueue(&server, "q", &receiver.url("/waiting"), &[]).await);
    }
    waiting.push(enqueue(&server, "q", &receiver.url("/waiting"), &[("Upstash-Delay", "1h")]).await);
    server.call("DELETE", "/v2/queues/q").send().await.json(200);
    assert_eq!(server.get("/v2/queues/q").await.status, 404);
    for id in &waiting {
        assert_eq!(server.ended(id).await, "CREATED CANCEL_REQUESTED CANCELED");
    }
    gate.open();
    let states = server.ended(&first).await;
    assert!(states.contains("CANCEL_REQUESTED") && states.ends_with("CANCELED"), "{states}");
    // A new queue of that name has its slot.
    let fresh = enqueue(&server, "q", &receiver.url("/fresh"), &[]).await;
    assert_eq!(server.ended(&fresh).await, "CREATED ACTIVE DELIVERED");
    assert!(receiver.requests_on("/waiting").is_empty());
    assert_eq!(receiver.requests_on("/first").len(), 1);
}

async fn a_dead_letter_goes_back_into_its_queue(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500), Reply::ok()]);
    let id = enqueue(&server, "q", &receiver.url("/"), &[("Upstash-Retries", "0")]).await;
    let letter = server.dead_letter(&id).await;
    assert_eq!(letter["queueName"], "q");
    post(&server, "/v2/queues/q/pause").await;
    let target = format!("/v2/dlq/retry/{}", letter["dlqId"].as_str().unwrap());
    let answer = server.call("POST", &target).send().await.json(201);
    let again = answer["messageId"].as_str().unwrap().to_owned();
    something_else(&server, &receiver).await;
    assert_eq!(server.states(&again).await, ["CREATED"], "its queue is paused");
    assert_eq!(server.message(&again).await["queueName"], "q");
    post(&server, "/v2/queues/q/resume").await;
    assert_eq!(server.ended(&again).await, "CREATED ACTIVE DELIVERED");
}

async fn a_queue_outlives_crashes(t: Test) {
    let server = t.server_with(&[("HOMING_NODE_NAME", "the-only-node")]).await;
    let receiver = Arc::new(Receiver::start().await);
    receiver.script("/", [Reply::ok().after(Duration::from_millis(5))]);
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(enqueue(&server, "q", &receiver.url("/"), &[]).await);
    }
    for crash in 1..=3 {
        eventually("some of them have gone", async || {
            (receiver.requests().len() >= 15 * crash).then_some(())
        })
        .await;
        server.kill9();
        server.restart().await;
    }
    for id in &ids {
        server.ended(id).await;
    }
    assert_eq!(first_arrivals(&receiver), ids);
    let repeated = receiver.requests().len() - ids.len();
    assert!(repeated <= 3, "what was in flight at a crash is repeated, and nothing else: {repeated}");
    let order: Vec<String> =
        receiver.requests().iter().map(|request| request.message_id().to_owned()).collect();
    let places: Vec<usize> = order.iter().map(|id| ids.iter().position(|have| have == id).unwrap()).collect();
    assert!(places.is_sorted(), "nothing is repeated after its successor: {places:?}");
}

async fn a_paused_backlog_is_in_nobodys_way(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    upsert(&server, &json!({ "queueName": "q", "paused": true })).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (server, url) = (server.clone(), receiver.url("/backlog"));
        clients.spawn(async move {
            for _ in 0..150 {
                enqueue(&server, "q", &url, &[]).await;
            }
        });
    }
    clients.join_all().await;
    let mut ids = Vec::new();
    for number in 0..20 {
        let queue = ["one", "other"][number % 2];
        ids.push(enqueue(&server, queue, &receiver.url("/queued"), &[]).await);
        ids.push(server.publish(&receiver.url("/plain"), &[], "x").await);
    }
    for id in &ids {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
    assert!(receiver.requests_on("/backlog").is_empty());
    assert_eq!(server.get_json("/v2/queues/q").await["lag"], 1200);
    if t.database_url().starts_with("postgres") {
        // Nobody comes back to it before it is resumed.
        let mut database = PgConnection::connect(&t.database_url()).await.unwrap();
        within(Duration::from_secs(20), "the paused queue is left alone", async || {
            let due: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM gates WHERE name = 'q:q' AND next_at IS NOT NULL")
                    .fetch_one(&mut database)
                    .await
                    .unwrap();
            (due == 0).then_some(())
        })
        .await;
        database.close().await.unwrap();
    }
    server.call("DELETE", "/v2/queues/q").send().await.json(200);
    assert_eq!(server.get("/v2/queues/q").await.status, 404);
}

/// Three nodes on one database, one of which dies in the middle: the order holds, and at any time one message is out,
/// but for the one that the dead node had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_keep_one_queue_in_order() {
    Test::run(Engine::Postgres, async |t| {
        const EACH: usize = 125;
        let mut nodes = Vec::new();
        for name in ["a", "b", "c"] {
            nodes.push(t.server_with(&[("HOMING_NODE_NAME", name)]).await);
        }
        let (receiver, callbacks) = (Arc::new(Receiver::start().await), Receiver::start().await);
        let clients = tokio::spawn({
            let (nodes, receiver) = (nodes[1..].to_vec(), Arc::clone(&receiver));
            let callback = callbacks.url("/");
            async move { publish_at_once(&nodes, 8, EACH, &receiver, &callback).await }
        });
        // The queue goes through the node that has a message out: so each of them gets some.
        let mut own = Vec::new();
        for _ in 0..20 {
            let sent = Instant::now();
            let id = enqueue(&nodes[0], "q", &receiver.url("/own"), &[]).await;
            own.push(Published { id, sent, answered: Instant::now() });
            pause(Duration::from_millis(5)).await;
        }
        within(Duration::from_mins(2), "half of them have gone", async || {
            (receiver.requests().len() >= 4 * EACH).then_some(())
        })
        .await;
        nodes[0].kill9();
        let mut published = clients.await.unwrap();
        published.extend(own);
        within(Duration::from_mins(2), "the queue is empty", async || {
            (nodes[1].get_json("/v2/queues/q").await["lag"] == 0).then_some(())
        })
        .await;
        check_order(&published, &first_arrivals(&receiver));
        assert!(receiver.most_open() <= 2, "{}", receiver.most_open());
    })
    .await;
}
