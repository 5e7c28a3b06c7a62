//! Callbacks and failure callbacks: when they are sent, what they say, and how they are configured.

use serde_json::{Value, json};

use crate::support::{Receiver, Reply, Test, base64_text, eventually};

engines! {
    a_callback_tells_the_outcome,
    every_attempt_has_its_callback,
    a_failure_callback_comes_once_and_names_the_dead_letter,
    a_final_489_has_both,
    an_attempt_without_answer_is_reported,
    binary_answers_are_reported_whole,
    callbacks_are_configured_by_their_own_headers,
    a_failure_callback_is_configured_apart,
    callback_headers_may_come_without_forward,
    a_callback_is_a_message,
    a_callback_that_fails_is_retried_and_then_a_dead_letter,
    a_callback_may_have_callbacks,
    a_delayed_callback_waits,
    cancelled_messages_have_no_callbacks,
    what_the_source_hides_its_callback_hides,
}

async fn a_callback_tells_the_outcome(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let answer = Reply::status(201)
        .header("X-Answer", "one")
        .header("X-Answer", "two")
        .header("Content-Type", "text/plain");
    receiver.script("/work", [answer.body("done")]);
    let callback = receiver.url("/callback");
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Retries", "2"),
        ("Upstash-Method", "PUT"),
        ("Content-Type", "application/json"),
        ("Upstash-Forward-X-Tenant", "7"),
    ];
    let id = server.publish(&receiver.url("/work?x=1"), &headers, r#"{"hello":1}"#).await;
    let request = receiver.next_on("/callback").await;
    assert_eq!(request.method, "POST");
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_ne!(request.message_id(), id);
    let body = request.json();
    let message = server.message(&id).await;
    for (field, expected) in [
        ("status", json!(201)),
        ("retried", json!(0)),
        ("maxRetries", json!(2)),
        ("sourceMessageId", json!(id)),
        ("sourceMessasgeId", json!(id)),
        ("url", json!(receiver.url("/work?x=1"))),
        ("method", json!("PUT")),
        ("sourceHeader", json!({"Content-Type": ["application/json"], "X-Tenant": ["7"]})),
        ("notBefore", message["createdAt"].clone()),
        ("createdAt", message["createdAt"].clone()),
        ("callerIP", json!("127.0.0.1")),
    ] {
        assert_eq!(body[field], expected, "{field} in {body}");
    }
    assert_eq!(base64_text(&body["body"]), b"done");
    assert_eq!(base64_text(&body["sourceBody"]), br#"{"hello":1}"#);
    assert_eq!(body["header"]["X-Answer"], json!(["one", "two"]));
    assert_eq!(body["headers"]["X-Answer"], "one, two");
    assert_eq!(body["header"]["Content-Type"], json!(["text/plain"]));
    for absent in ["dlqId", "topicName", "endpointName", "scheduleId", "queueName", "api", "error"] {
        assert_eq!(body.get(absent), None, "{absent}");
    }
    server.ended(request.message_id()).await;
    assert_eq!(receiver.requests().len(), 2, "one delivery and one callback");
}

async fn every_attempt_has_its_callback(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/work", [Reply::status(500).body("no"), Reply::status(503), Reply::ok().body("yes")]);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Failure-Callback", failure.as_str()),
        ("Upstash-Retries", "5"),
        ("Upstash-Retry-Delay", "20"),
    ];
    let id = server.publish(&receiver.url("/work"), &headers, "").await;
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        let body = receiver.next_on("/callback").await.json();
        assert_eq!(body["sourceMessageId"], id);
        assert_eq!(body.get("sourceBody"), None);
        let answer = String::from_utf8(base64_text(&body["body"])).expect("text");
        outcomes.push((body["retried"].as_i64(), body["status"].as_i64(), answer));
    }
    outcomes.sort();
    let expected = [(0, 500, "no"), (1, 503, ""), (2, 200, "yes")];
    assert_eq!(
        outcomes,
        expected.map(|(retried, status, body)| (Some(retried), Some(status), body.to_owned()))
    );
    // A later message has gone all the way, and there is still no failure callback.
    let later = server.publish(&receiver.url("/later"), &[], "").await;
    server.ended(&later).await;
    assert_eq!(receiver.requests_on("/failure").len(), 0);
}

async fn a_failure_callback_comes_once_and_names_the_dead_letter(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/work", [Reply::status(500).body("boom")]);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Failure-Callback", failure.as_str()),
        ("Upstash-Retries", "1"),
        ("Upstash-Retry-Delay", "20"),
    ];
    let id = server.publish(&receiver.url("/work"), &headers, "payload").await;
    let request = receiver.next_on("/failure").await;
    let body = request.json();
    let letter = server.dead_letter(&id).await;
    assert_eq!(body["dlqId"], letter["dlqId"]);
    assert_eq!((&body["status"], &body["retried"], &body["maxRetries"]), (&json!(500), &json!(1), &json!(1)));
    assert_eq!(body["sourceMessageId"], id);
    assert_eq!(base64_text(&body["body"]), b"boom");
    assert_eq!(base64_text(&body["sourceBody"]), b"payload");
    let callbacks = [receiver.next_on("/callback").await.json(), receiver.next_on("/callback").await.json()];
    assert!(callbacks.iter().all(|body| body.get("dlqId").is_none()), "{callbacks:?}");
    server.ended(request.message_id()).await;
    assert_eq!(receiver.requests_on("/failure").len(), 1);
    assert_eq!(receiver.requests_on("/callback").len(), 2);
}

async fn a_final_489_has_both(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/work", [Reply::status(489).header("Upstash-NonRetryable-Error", "true")]);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Failure-Callback", failure.as_str()),
        ("Upstash-Retries", "4"),
    ];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    for path in ["/callback", "/failure"] {
        let body = receiver.next_on(path).await.json();
        assert_eq!(
            (&body["status"], &body["retried"], &body["maxRetries"]),
            (&json!(489), &json!(0), &json!(4))
        );
    }
}

async fn an_attempt_without_answer_is_reported(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/work", [Reply::hangup()]);
    let failure = receiver.url("/failure");
    let headers = [("Upstash-Failure-Callback", failure.as_str()), ("Upstash-Retries", "0")];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    let body = receiver.next_on("/failure").await.json();
    assert_eq!((&body["status"], &body["body"]), (&json!(0), &json!("")));
    assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
}

async fn binary_answers_are_reported_whole(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let every_byte: Vec<u8> = (0..=255).collect();
    receiver.script("/work", [Reply::ok().body(every_byte.clone())]);
    let callback = receiver.url("/callback");
    server.publish(&receiver.url("/work"), &[("Upstash-Callback", &callback)], &every_byte).await;
    let body = receiver.next_on("/callback").await.json();
    assert_eq!(base64_text(&body["body"]), every_byte);
    assert_eq!(base64_text(&body["sourceBody"]), every_byte);
}

async fn callbacks_are_configured_by_their_own_headers(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callback = receiver.url("/callback?from=c");
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Method", "PATCH"),
        ("Upstash-Callback-Retries", "7"),
        ("Upstash-Callback-Retry-Delay", "1000 * retried"),
        ("Upstash-Callback-Timeout", "30s"),
        ("Upstash-Callback-Forward-Authorization", "Bearer for-the-callback"),
        ("Upstash-Callback-Forward-Content-Type", "application/cloudevents+json"),
        ("Upstash-Forward-X-Message", "not for the callback"),
        ("Upstash-Label", "not inherited"),
    ];
    let id = server.publish(&receiver.url("/work"), &headers, "x").await;
    let source = server.message(&id).await;
    assert_eq!(source["callback"], callback);
    assert_eq!(source["callbackHeader"]["Authorization"], json!(["Bearer for-the-callback"]));
    let request = receiver.next_on("/callback").await;
    assert_eq!((request.method.as_str(), request.target.as_str()), ("PATCH", "/callback?from=c"));
    assert_eq!(request.all("authorization"), ["Bearer for-the-callback"]);
    assert_eq!(request.all("content-type"), ["application/cloudevents+json"]);
    assert_eq!(request.header("x-message"), None);
    let message = server.message(request.message_id()).await;
    assert_eq!(message["maxRetries"], 7);
    assert_eq!(message["retryDelayExpression"], "1000 * retried");
    assert_eq!((message.get("label"), message.get("callback")), (None, None));
}

async fn a_failure_callback_is_configured_apart(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/work", [Reply::status(500)]);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Upstash-Retries", "0"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Forward-X-Which", "callback"),
        ("Upstash-Failure-Callback", failure.as_str()),
        ("Upstash-Failure-Callback-Forward-X-Which", "failure"),
        ("Upstash-Failure-Callback-Method", "PUT"),
        ("Upstash-Failure-Callback-Retries", "2"),
    ];
    let id = server.publish(&receiver.url("/work"), &headers, "x").await;
    let source = server.message(&id).await;
    assert_eq!(source["failureCallback"], failure);
    assert_eq!(source["failureCallbackHeader"], json!({"X-Which": ["failure"]}));
    let callback = receiver.next_on("/callback").await;
    assert_eq!((callback.method.as_str(), callback.all("x-which")), ("POST", vec!["callback"]));
    assert_eq!(server.message(callback.message_id()).await["maxRetries"], 0, "as the message's own");
    let failure = receiver.next_on("/failure").await;
    assert_eq!((failure.method.as_str(), failure.all("x-which")), ("PUT", vec!["failure"]));
    assert_eq!(server.message(failure.message_id()).await["maxRetries"], 2);
}

async fn callback_headers_may_come_without_forward(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callback = receiver.url("/callback");
    let headers = [("Upstash-Callback", callback.as_str()), ("Upstash-Callback-X-Python", "yes")];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    assert_eq!(receiver.next_on("/callback").await.all("x-python"), ["yes"]);
}

async fn a_callback_is_a_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callback = receiver.url("/callback");
    let headers = [("Upstash-Callback", callback.as_str()), ("Upstash-Retries", "4")];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    let request = receiver.next_on("/callback").await;
    assert_eq!(server.ended(request.message_id()).await, "CREATED ACTIVE DELIVERED");
    let message = server.message(request.message_id()).await;
    assert_eq!((&message["url"], &message["method"]), (&json!(callback), &json!("POST")));
    assert_eq!(message["maxRetries"], 4);
    assert_eq!(message["header"], json!({"Content-Type": ["application/json"]}));
    let shown: Value = serde_json::from_str(message["body"].as_str().expect("text")).expect("JSON");
    assert_eq!(shown, request.json());
}

async fn a_callback_that_fails_is_retried_and_then_a_dead_letter(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/callback", [Reply::status(500)]);
    let callback = receiver.url("/callback");
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Retries", "1"),
        ("Upstash-Callback-Retry-Delay", "20"),
    ];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    let (first, second) = (receiver.next_on("/callback").await, receiver.next_on("/callback").await);
    assert_eq!(first.message_id(), second.message_id());
    assert_eq!((first.retried(), second.retried()), (0, 1));
    assert_eq!(first.body, second.body);
    server.dead_letter(first.message_id()).await;
    assert_eq!(receiver.requests_on("/callback").len(), 2);
}

async fn a_callback_may_have_callbacks(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/callback", [Reply::status(500)]);
    let (callback, nested) = (receiver.url("/callback"), receiver.url("/nested"));
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Retries", "0"),
        ("Upstash-Callback-Failure-Callback", nested.as_str()),
    ];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    let callback = receiver.next_on("/callback").await;
    let body = receiver.next_on("/nested").await.json();
    assert_eq!((&body["sourceMessageId"], &body["status"]), (&json!(callback.message_id()), &json!(500)));
}

async fn a_delayed_callback_waits(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callback = receiver.url("/callback");
    let headers = [("Upstash-Callback", callback.as_str()), ("Upstash-Callback-Delay", "1s")];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    let work = receiver.next_on("/work").await.at;
    let waited = receiver.next_on("/callback").await.at - work;
    assert!(waited >= std::time::Duration::from_secs(1), "{waited:?}");
}

async fn what_the_source_hides_its_callback_hides(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callback = receiver.url("/callback");
    let headers = [
        ("Upstash-Redact-Fields", "header[X-Secret]"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Forward-X-Secret", "s3cret"),
        ("Upstash-Callback-Forward-X-Open", "open"),
    ];
    server.publish(&receiver.url("/work"), &headers, "x").await;
    let request = receiver.next_on("/callback").await;
    assert_eq!(request.all("x-secret"), ["s3cret"]);
    let message = server.message(request.message_id()).await;
    assert_eq!(message["header"]["X-Open"], json!(["open"]));
    assert!(!message.to_string().contains("s3cret"), "{message}");
}

async fn cancelled_messages_have_no_callbacks(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Failure-Callback", failure.as_str()),
        ("Upstash-Delay", "1h"),
    ];
    let id = server.publish(&receiver.url("/work"), &headers, "x").await;
    server.call("DELETE", &format!("/v2/messages/{id}")).send().await.json(200);
    assert_eq!(server.ended(&id).await, "CREATED CANCEL_REQUESTED CANCELED");
    let later = server.publish(&receiver.url("/later"), &[("Upstash-Callback", &callback)], "").await;
    let request = receiver.next_on("/callback").await;
    assert_eq!(request.json()["sourceMessageId"], later);
    eventually("the callback ends", async || {
        (server.states(request.message_id()).await.last()? == "DELIVERED").then_some(())
    })
    .await;
    assert_eq!(receiver.requests().len(), 2, "nothing came of the cancelled message");
}
