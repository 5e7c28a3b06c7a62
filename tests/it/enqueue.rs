//! Messages through a queue: where its name may stand, and that everything else is as with a publish.

use serde_json::{Value, json};

use crate::support::{Receiver, Server, TOKEN, Test};

engines! {
    the_path_names_the_queue,
    the_name_is_decoded_once,
    a_header_names_the_queue,
    all_options_are_those_of_a_publish,
    bad_queue_names_are_refused,
    the_destination_is_read_as_in_a_publish,
}

/// Enqueues and returns the answer, which has this status.
async fn enqueue(server: &Server, rest: &str, headers: &[(&str, &str)], status: u16) -> Value {
    server.call("POST", &format!("/v2/enqueue/{rest}")).headers(headers).body("x").send().await.json(status)
}

async fn queue_of(server: &Server, answer: &Value) -> Value {
    server.message(answer["messageId"].as_str().expect("an id")).await["queueName"].clone()
}

async fn the_path_names_the_queue(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let answer = enqueue(&server, &format!("my-queue_1.x/{}", receiver.url("/a//b?c=1")), &[], 200).await;
    let request = receiver.next_request().await;
    assert_eq!(
        (request.target.as_str(), request.message_id()),
        ("/a//b?c=1", answer["messageId"].as_str().unwrap())
    );
    assert_eq!(request.body, "x");
    assert_eq!(queue_of(&server, &answer).await, "my-queue_1.x");
    // The queue's name is no business of the destination's.
    assert_eq!(request.header("upstash-queue-name"), None);
}

async fn the_name_is_decoded_once(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let answer = enqueue(&server, &format!("my%2Dqueue/{}", receiver.url("/")), &[], 200).await;
    assert_eq!(queue_of(&server, &answer).await, "my-queue");
    enqueue(&server, &format!("my%252Dqueue/{}", receiver.url("/")), &[], 400).await;
}

async fn a_header_names_the_queue(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Queue-Name", "by-header")], "x").await;
    assert_eq!(server.message(&id).await["queueName"], "by-header");
    let id = server.publish(&receiver.url("/?upstash-queue-name=by-parameter"), &[], "x").await;
    assert_eq!(server.message(&id).await["queueName"], "by-parameter");
    let id = server.publish(&receiver.url("/"), &[("Upstash-Queue-Name", "")], "x").await;
    assert_eq!(server.message(&id).await.get("queueName"), None);
    let call = server.call("POST", &format!("/v2/publish/{}", receiver.url("/")));
    call.header("Upstash-Queue-Name", "a/b").send().await.error(400);
    // In the path there is one already.
    let headers = [("Upstash-Queue-Name", "other")];
    let answer = enqueue(&server, &format!("q/{}", receiver.url("/")), &headers, 200).await;
    assert_eq!(queue_of(&server, &answer).await, "q");
}

async fn all_options_are_those_of_a_publish(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Upstash-Method", "PUT"),
        ("Upstash-Delay", "1h"),
        ("Upstash-Forward-X-A", "1"),
        ("Content-Type", "text/plain"),
        ("Upstash-Deduplication-Id", "once"),
        ("Upstash-Flow-Control-Key", "k"),
        ("Upstash-Flow-Control-Value", "parallelism=3, rate=5, period=1m"),
    ];
    let target = format!("q/{}", receiver.url(&format!("/?upstash-retries=7&qstash_token={TOKEN}&x=1")));
    let answer = enqueue(&server, &target, &headers, 200).await;
    let mut message = server.message(answer["messageId"].as_str().expect("an id")).await;
    let delay = message["notBefore"].as_i64().expect("ms") - message["createdAt"].as_i64().expect("ms");
    assert_eq!(delay, 3_600_000);
    for time in ["createdAt", "notBefore"] {
        message.as_object_mut().expect("an object").remove(time);
    }
    let expected = json!({
        "messageId": answer["messageId"], "url": receiver.url("/?x=1"), "method": "PUT", "body": "x",
        "header": {"Content-Type": ["text/plain"], "X-A": ["1"]}, "maxRetries": 7, "queueName": "q",
        "flowControlKey": "k", "parallelism": 3, "rate": 5, "period": 60,
        "callerIP": "127.0.0.1", "callerIp": "127.0.0.1",
    });
    assert_eq!(message, expected);
    let again = enqueue(&server, &target, &headers, 202).await;
    assert_eq!(again, json!({"messageId": answer["messageId"], "deduplicated": true}));
}

async fn bad_queue_names_are_refused(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let long = "q".repeat(257);
    for name in ["", "a%20b", "a%2Fb", "%FF", "a%00b", "a:b", "caf%C3%A9", long.as_str()] {
        let call = server.call("POST", &format!("/v2/enqueue/{name}/{}", receiver.url("/")));
        let error = call.body("x").send().await.error(400);
        assert!(error.starts_with("invalid queue in the path: "), "{name}: {error}");
    }
    // Without the queue, the scheme stands where its name should.
    let error = server.call("POST", "/v2/enqueue/https://example.com").send().await.error(400);
    assert!(error.contains("\"https:\" is not a name"), "{error}");
    server.call("POST", "/v2/enqueue").send().await.error(400);
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn the_destination_is_read_as_in_a_publish(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for (rest, status, text) in [
        ("q", 400, "a non-empty destination must be provided"),
        ("q/", 400, "a non-empty destination must be provided"),
        ("q?upstash-delay=1s", 400, "a non-empty destination must be provided"),
        ("q/example.com/x", 400, "endpoint has invalid scheme, add http:// or https://"),
        ("q/v2/enqueue/q/https://example.com", 400, "endpoint has invalid scheme, add http:// or https://"),
        ("q/no-such-group", 404, "topic no-such-group not found"),
        ("q/http://169.254.169.254/", 400, "invalid destination url: "),
    ] {
        let error = server.call("POST", &format!("/v2/enqueue/{rest}")).body("x").send().await.error(status);
        assert!(error.contains(text), "{rest}: {error}");
    }
    enqueue(&server, &format!("q/http:/127.0.0.1:{}/merged", receiver.port()), &[], 200).await;
    assert_eq!(receiver.next_request().await.target, "/merged");
    let encoded = format!("q/http%3A%2F%2F127.0.0.1%3A{}%2Fencoded", receiver.port());
    enqueue(&server, &encoded, &[], 200).await;
    assert_eq!(receiver.next_request().await.target, "/encoded");
    server.call("POST", &format!("/V2/Enqueue/q/{}", receiver.url("/Case"))).send().await.json(200);
    assert_eq!(receiver.next_request().await.target, "/Case");
}
