//! What a message hides is hidden wherever the API shows it, and goes to its destination all the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{Receiver, Reply, Server, Test, base64_text, eventually, hex};

engines! {
    a_hidden_text_is_shown_nowhere,
    a_hidden_binary_body_is_shown_nowhere,
    callbacks_carry_what_their_views_hide,
    a_retry_hides_no_less,
}

fn marker(value: &[u8]) -> String {
    format!("REDACTED:{}", hex(&Sha256::digest(value)))
}

/// Fails if one of the secrets is in a text of the answer, as it is, in base64, or in a text that is in base64.
#[track_caller]
fn assert_hidden(what: &str, value: &Value, secrets: &[&[u8]]) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| assert_hidden(what, value, secrets)),
        Value::Object(fields) => fields.values().for_each(|value| assert_hidden(what, value, secrets)),
        Value::String(text) => assert_bytes_hidden(what, text.as_bytes(), secrets),
        _ => {}
    }
}

#[track_caller]
fn assert_bytes_hidden(what: &str, bytes: &[u8], secrets: &[&[u8]]) {
    let text = String::from_utf8_lossy(bytes);
    for secret in secrets {
        let is_there = bytes.windows(secret.len()).any(|window| window == *secret);
        assert!(!is_there, "{what} shows it: {text}");
        assert!(!text.contains(&STANDARD.encode(secret)), "{what} shows it in base64: {text}");
    }
    if let Ok(decoded) = STANDARD.decode(bytes)
        && !decoded.is_empty()
    {
        assert_bytes_hidden(what, &decoded, secrets);
    }
}

/// Everything that the API tells of a message that has failed, and of the whole.
async fn views(server: &Server, id: &str) -> Vec<(String, Value)> {
    let letter = server.dead_letter(id).await;
    let dlq_id = letter["dlqId"].as_str().expect("an id");
    let mut views = Vec::new();
    for target in [
        format!("/v2/messages/{id}"),
        format!("/v2/dlq/{dlq_id}"),
        format!("/v2/dlq?messageId={id}"),
        format!("/v2/dlq?dlqIds={dlq_id}"),
        format!("/v2/events?messageId={id}"),
        format!("/v2/logs?messageId={id}"),
        format!("/v2/events?messageId={id}&trimBody=2"),
        format!("/v2/logs?groupBy=messageId&messageIds={id}"),
        "/v2/dlq".to_owned(),
        "/v2/events".to_owned(),
    ] {
        views.push((target.clone(), server.get_json(&target).await));
    }
    views
}

async fn a_hidden_text_is_shown_nowhere(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let (body, header) = ("the body's secret", "the header's secret");
    for (fields, open) in [("body, header[x-secret]", true), ("header,body", false)] {
        let headers = [
            ("Upstash-Retries", "0"),
            ("Upstash-Redact-Fields", fields),
            ("Upstash-Forward-X-Secret", header),
            ("Upstash-Forward-X-Secret", "the header's secret again"),
            ("Upstash-Forward-X-Open", "open"),
        ];
        let id = server.publish(&receiver.url("/"), &headers, body).await;
        let request = receiver.next_request().await;
        assert_eq!((request.body.as_ref(), request.header("x-secret")), (body.as_bytes(), Some(header)));
        for (what, view) in views(&server, &id).await {
            assert_hidden(&what, &view, &[body.as_bytes(), header.as_bytes()]);
        }
        let letter = server.dead_letter(&id).await;
        let shown = |text: &str| if open { text.to_owned() } else { marker(text.as_bytes()) };
        let hidden = [header, "the header's secret again"].map(|value| marker(value.as_bytes()));
        for view in [&server.message(&id).await, &letter] {
            assert_eq!((&view["body"], view.get("bodyBase64")), (&json!(marker(body.as_bytes())), None));
            assert_eq!(view["header"], json!({"X-Secret": hidden, "X-Open": [shown("open")]}));
        }
        for event in server.events(&id).await {
            assert_eq!(base64_text(&event["body"]), marker(body.as_bytes()).as_bytes());
        }
        // A retry sends the originals, and hides them as well.
        let target = format!("/v2/dlq/retry/{}", letter["dlqId"].as_str().expect("an id"));
        let answer = server.call("POST", &target).send().await.json(201);
        let again = receiver.next_request().await;
        assert_eq!((again.body.as_ref(), again.header("x-secret")), (body.as_bytes(), Some(header)));
        for (what, view) in views(&server, answer["messageId"].as_str().expect("an id")).await {
            assert_hidden(&what, &view, &[body.as_bytes(), header.as_bytes()]);
        }
    }
}

async fn a_hidden_binary_body_is_shown_nowhere(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let body = b"\xff\x00 binary secret \xfe";
    let headers = [("Upstash-Retries", "0"), ("Upstash-Redact-Fields", "body")];
    let id = server.publish(&receiver.url("/"), &headers, body).await;
    for (what, view) in views(&server, &id).await {
        assert_hidden(&what, &view, &[&body[..]]);
        assert!(!view.to_string().contains("bodyBase64"), "{what}: {view}");
    }
    assert_eq!(server.message(&id).await["body"], marker(body));
    assert_eq!(receiver.next_request().await.body.as_ref(), body);
}

async fn callbacks_carry_what_their_views_hide(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for path in ["/", "/callback", "/failure"] {
        receiver.script(path, [Reply::status(500)]);
    }
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    // Either alone hides the callback's body, which holds both.
    for (fields, body, header, secret) in [
        ("body", "the body's secret", "the first header", "the body's secret"),
        ("header[x-secret]", "the second body", "the header's secret", "the header's secret"),
    ] {
        let headers = [
            ("Upstash-Retries", "0"),
            ("Upstash-Redact-Fields", fields),
            ("Upstash-Forward-X-Secret", header),
            ("Upstash-Callback", callback.as_str()),
            ("Upstash-Failure-Callback", failure.as_str()),
        ];
        let id = server.publish(&receiver.url("/"), &headers, body).await;
        let mut made = vec![id.clone()];
        for path in ["/callback", "/failure"] {
            let request = receiver.next_on(path).await;
            let notice: Value = serde_json::from_slice(&request.body).expect("JSON");
            assert_eq!(base64_text(&notice["sourceBody"]), body.as_bytes());
            assert_eq!(notice["sourceHeader"]["X-Secret"], json!([header]));
            made.push(request.message_id().to_owned());
        }
        for id in &made {
            eventually("it has failed", async || (server.states(id).await.last()? == "FAILED").then_some(()))
                .await;
            for (what, view) in views(&server, id).await {
                assert_hidden(&what, &view, &[secret.as_bytes()]);
            }
        }
        for id in &made[1..] {
            let shown = server.message(id).await;
            assert!(shown["body"].as_str().is_some_and(|body| body.starts_with("REDACTED:")), "{shown}");
        }
    }
}

async fn a_retry_hides_no_less(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for path in ["/", "/callback"] {
        receiver.script(path, [Reply::status(500)]);
    }
    let callback = receiver.url("/callback");
    let (body, header) = ("the body's secret", "the header's secret");
    let secrets = [body.as_bytes(), header.as_bytes()];
    let headers = [
        ("Upstash-Retries", "0"),
        ("Upstash-Redact-Fields", "body, header[x-secret], header[y-secret]"),
        ("Upstash-Forward-X-Secret", header),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Forward-Y-Secret", header),
        ("Upstash-Callback-Redact-Fields", "header[y-secret]"),
        ("Upstash-Label", "retried"),
    ];
    let mut id = server.publish(&receiver.url("/"), &headers, body).await;
    let fields =
        [("Upstash-Redact-Fields", "header[Zzz]"), ("Upstash-Callback-Redact-Fields", "header[Zzz]")];
    let params = "upstash-redact-fields=header%5BZzz%5D&upstash-callback-redact-fields=header%5BZzz%5D";
    for way in ["one", "one by parameters", "named", "filtered", "all by parameters"] {
        receiver.next_on("/").await;
        let of_callback = receiver.next_on("/callback").await.message_id().to_owned();
        for made in [&id, &of_callback] {
            let what = "both have failed";
            eventually(what, async || (server.states(made).await.last()? == "FAILED").then_some(())).await;
            for (what, view) in views(&server, made).await {
                assert_hidden(&format!("{way}: {what}"), &view, &secrets);
            }
        }
        let letter = server.dead_letter(&id).await;
        let dlq_id = letter["dlqId"].as_str().expect("an id");
        let json = |call: crate::support::Call| call.header("Content-Type", "application/json");
        let call = match way {
            "one" => server.call("POST", &format!("/v2/dlq/retry/{dlq_id}")).headers(&fields),
            "one by parameters" => server.call("POST", &format!("/v2/dlq/retry/{dlq_id}?{params}")),
            "named" => {
                let call = server.call("POST", "/v2/dlq/retry").headers(&fields);
                json(call).body(json!({"dlqIds": [dlq_id]}).to_string())
            }
            "filtered" => server.call("POST", "/v2/dlq/retry?label=retried").headers(&fields),
            _ => server.call("POST", &format!("/v2/dlq/retry?label=retried&{params}")),
        };
        let answer = call.send().await.json(201);
        let answer = answer.get("responses").map_or(&answer, |all| &all[0]);
        answer["messageId"].as_str().expect("an id").clone_into(&mut id);
    }
    // It may hide more.
    receiver.next_on("/").await;
    let letter = server.dead_letter(&id).await;
    let target = format!("/v2/dlq/retry/{}", letter["dlqId"].as_str().expect("an id"));
    let call = server.call("POST", &target).header("Upstash-Redact-Fields", "header");
    let call = call.header("Upstash-Forward-X-More", "more").header("Upstash-Delay", "1h");
    let answer = call.send().await.json(201);
    let shown = server.message(answer["messageId"].as_str().expect("an id")).await;
    assert_eq!(
        shown["header"],
        json!({"X-Secret": [marker(header.as_bytes())], "X-More": [marker(b"more")]})
    );
    assert_eq!(shown["body"], marker(body.as_bytes()));
}
