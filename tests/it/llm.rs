//! Messages to the configured language model.

use serde_json::{Value, json};

use crate::support::{Receiver, Reply, Server, Test, base64_text};

engines! {
    without_a_model_there_is_none,
    messages_go_to_the_model_with_its_key,
    a_key_of_ones_own_goes_before_the_servers,
    queues_and_batches_reach_the_model,
    the_key_is_for_nobody_else,
    the_model_obeys_the_egress_policy,
}

const KEY: &str = "sk-0123456789abcdef";

/// A receiver that stands for the model's service, and a server that knows it.
async fn model(t: &Test) -> (Server, Receiver) {
    let receiver = Receiver::start().await;
    let base = receiver.url("/v1/");
    let server = t.server_with(&[("HOMING_LLM_URL", base.as_str()), ("HOMING_LLM_API_KEY", KEY)]).await;
    (server, receiver)
}

async fn without_a_model_there_is_none(t: Test) {
    let server = t.server().await;
    let item = json!([{"destination": "api/llm"}]).to_string();
    for (target, body) in
        [("/v2/publish/api/llm", "{}"), ("/v2/enqueue/q/api/llm", "{}"), ("/v2/batch", item.as_str())]
    {
        let error = server.call("POST", target).body(body).send().await.error(400);
        assert!(error.contains("api/llm is not available: no language model is configured"), "{error}");
    }
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn messages_go_to_the_model_with_its_key(t: Test) {
    let (server, receiver) = model(&t).await;
    receiver.script("/v1/chat/completions", [Reply::status(500), Reply::ok().body("{\"choices\":[]}")]);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Content-Type", "application/json"),
        ("Upstash-Retry-Delay", "0"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Failure-Callback", failure.as_str()),
    ];
    let call = server.call("POST", "/v2/publish/api/llm?upstash-retries=1").headers(&headers);
    let answer = call.body(r#"{"model":"m"}"#).send().await.json(200);
    let id = answer["messageId"].as_str().expect("an id");
    for retried in 0..2 {
        let request = receiver.next_on("/v1/chat/completions").await;
        assert_eq!((request.method.as_str(), request.retried()), ("POST", retried));
        assert_eq!(request.all("authorization"), [format!("Bearer {KEY}")]);
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.body, r#"{"model":"m"}"#);
    }
    assert_eq!(server.ended(id).await, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED");
    let message = server.message(id).await;
    assert_eq!(
        (&message["api"], &message["url"]),
        (&json!("llm"), &json!(receiver.url("/v1/chat/completions")))
    );
    assert_eq!(message["header"], json!({"Content-Type": ["application/json"]}));
    let events = server.events(id).await;
    assert!(events.iter().all(|event| event["api"] == "llm"), "{events:?}");
    let mut shown = vec![message.to_string(), Value::from(events).to_string(), server.log().text()];
    for _ in 0..2 {
        let request = receiver.next_on("/callback").await;
        let body = request.json();
        assert_eq!((&body["api"], &body["sourceMessageId"]), (&json!("llm"), &json!(id)));
        assert_eq!(body["sourceHeader"], json!({"Content-Type": ["application/json"]}));
        assert_eq!(base64_text(&body["sourceBody"]), br#"{"model":"m"}"#);
        assert_eq!(request.header("authorization"), None);
        let made = server.message(request.message_id()).await;
        assert_eq!(made.get("api"), None, "the callback is no message to the model");
        shown.extend([body.to_string(), made.to_string()]);
    }
    assert!(shown.iter().all(|text| !text.contains(KEY)), "the key is shown: {shown:?}");
}

async fn a_key_of_ones_own_goes_before_the_servers(t: Test) {
    let (server, receiver) = model(&t).await;
    let call =
        server.call("POST", "/v2/publish/api/llm").header("Upstash-Forward-Authorization", "Bearer mine");
    call.body("{}").send().await.json(200);
    assert_eq!(receiver.next_request().await.all("authorization"), ["Bearer mine"]);
}

async fn queues_and_batches_reach_the_model(t: Test) {
    let (server, receiver) = model(&t).await;
    let enqueued = server.call("POST", "/v2/enqueue/q/api/llm").body("{}").send().await.json(200);
    let body = json!([{"destination": "api/llm", "body": "{}", "queue": "q"}, {"destination": receiver.url("/"), "body": "{}"}]);
    let sent = server.call("POST", "/v2/batch").body(body.to_string()).send().await.json(200);
    for (answer, api) in [(&enqueued, Some("llm")), (&sent[0], Some("llm")), (&sent[1], None)] {
        let id = answer["messageId"].as_str().expect("an id");
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
        assert_eq!(server.message(id).await.get("api").and_then(Value::as_str), api);
    }
    assert_eq!(receiver.requests_on("/v1/chat/completions").len(), 2);
    server.call("POST", "/v2/publish/api/email").send().await.error(400);
}

async fn the_key_is_for_nobody_else(t: Test) {
    let (server, receiver) = model(&t).await;
    // The model's own URL, published as any other.
    server.publish(&receiver.url("/v1/chat/completions"), &[], "{}").await;
    assert_eq!(receiver.next_request().await.header("authorization"), None);
    // A message to another service, which was configured before.
    let waiting = server.call("POST", "/v2/publish/api/llm").header("Upstash-Delay", "1s");
    let waiting = waiting.body("{}").send().await.json(200);
    server.terminate().await;
    let settings = [("HOMING_LLM_URL", "http://127.0.0.1:9/v1"), ("HOMING_LLM_API_KEY", KEY)];
    let server = t.server_with(&settings).await;
    let request = receiver.next_request().await;
    assert_eq!(
        (request.message_id(), request.header("authorization")),
        (waiting["messageId"].as_str().unwrap(), None)
    );
    assert_eq!(server.message(request.message_id()).await["api"], "llm");
}

async fn the_model_obeys_the_egress_policy(t: Test) {
    let settings = [("HOMING_LLM_URL", "http://127.0.0.1:9/v1"), ("HOMING_EGRESS", "public")];
    let server = t.server_with(&settings).await;
    let error = server.call("POST", "/v2/publish/api/llm").body("{}").send().await.error(400);
    assert!(error.starts_with("invalid destination url: "), "{error}");
}
