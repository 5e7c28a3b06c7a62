//! Many messages in one request: all or none, each as if it had been published alone.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::http::Answer;
use crate::support::{Receiver, Server, Test};

engines! {
    items_are_answered_in_their_order,
    every_option_is_an_items_own,
    the_shapes_of_all_sdks_are_read,
    nothing_of_the_request_is_the_items,
    an_empty_batch_makes_nothing,
    a_bad_item_refuses_all,
    malformed_batches_are_refused,
    values_that_no_header_can_have_are_refused,
    any_text_may_stand_in_an_item,
    repeats_within_a_batch_are_one_message,
    sizes_are_limited,
    a_large_batch_is_one_step,
    quotas_hold_for_items,
}

async fn batch(server: &Server, body: &Value) -> Answer {
    let call = server.call("POST", "/v2/batch").header("Content-Type", "application/json");
    call.body(body.to_string()).send().await
}

/// The ids of a batch that is accepted, none of whose items went to a group.
async fn send(server: &Server, body: &Value) -> Vec<String> {
    let answer = batch(server, body).await.json(200);
    let items = answer.as_array().unwrap_or_else(|| panic!("no array: {answer}"));
    items.iter().map(|item| item["messageId"].as_str().expect("an id").to_owned()).collect()
}

async fn assert_nothing_stored(server: &Server) {
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn items_are_answered_in_their_order(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    // More than one group commit gathers, and no power of two.
    let items: Vec<Value> = (0..301)
        .map(|number| json!({"destination": receiver.url(&format!("/{number}")), "body": number.to_string()}))
        .collect();
    let answer = batch(&server, &json!(items)).await.json(200);
    let answers = answer.as_array().expect("an array");
    assert_eq!(answers.len(), 301);
    let ids: HashSet<&str> =
        answers.iter().map(|answer| answer["messageId"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), 301);
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer["url"], receiver.url(&format!("/{number}")));
    }
    for _ in 0..301 {
        let request = receiver.next_request().await;
        let number: usize = request.path()[1..].parse().expect("a number");
        assert_eq!(request.body, number.to_string());
        assert_eq!(request.message_id(), answers[number]["messageId"]);
    }
    let one = batch(&server, &json!([{"destination": receiver.url("/")}])).await.json(200);
    assert_eq!(one.as_array().map(Vec::len), Some(1));
}

async fn every_option_is_an_items_own(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let items = json!([
        {
            "destination": receiver.url("/a?x=1&upstash-delay=1h&qstash_token=theirs"),
            "headers": {
                "Content-Type": "application/json",
                "upstash-method": "PUT",
                "Upstash-Delay": "1h",
                "Upstash-Retries": "7",
                "Upstash-Label": ["last", "wins"],
                "Upstash-Forward-Multi": ["one", "two"],
                "Upstash-Callback": receiver.url("/callback"),
                "Upstash-Callback-Forward-C": "3",
                "Upstash-Flow-Control-Key": "k",
                "Upstash-Flow-Control-Value": "rate=1",
                "Upstash-Header-Forward": "true",
                "X-Stray": "1",
            },
            "body": "{\"a\":\"\\u00fc\"}",
            "queue": "q",
        },
        {"destination": receiver.url("/b"), "headers": {"Upstash-Queue-Name": "by-header"}},
        {"destination": receiver.url("/c"), "headers": {"Upstash-Queue-Name": "h"}, "queue": "wins"},
    ]);
    let ids = send(&server, &items).await;
    let mut message = server.message(&ids[0]).await;
    let delay = message["notBefore"].as_i64().expect("ms") - message["createdAt"].as_i64().expect("ms");
    assert_eq!(delay, 3_600_000);
    for time in ["createdAt", "notBefore"] {
        message.as_object_mut().expect("an object").remove(time);
    }
    // The query of a literal destination is all its own.
    let expected = json!({
        "messageId": ids[0], "url": receiver.url("/a?x=1&upstash-delay=1h&qstash_token=theirs"),
        "method": "PUT", "body": "{\"a\":\"\\u00fc\"}", "maxRetries": 7, "queueName": "q",
        "header": {"Content-Type": ["application/json"], "Multi": ["one", "two"]},
        "callback": receiver.url("/callback"), "callbackHeader": {"C": ["3"]},
        "label": "wins", "labels": ["wins"], "flowControlKey": "k", "rate": 1, "period": 1,
        "callerIP": "127.0.0.1", "callerIp": "127.0.0.1",
    });
    assert_eq!(message, expected);
    assert_eq!(server.message(&ids[1]).await["queueName"], "by-header");
    let plain = receiver.next_on("/b").await;
    assert_eq!((plain.method.as_str(), plain.header("content-type"), plain.body.len()), ("POST", None, 0));
    assert_eq!(server.message(&ids[2]).await["queueName"], "wins");
}

/// What JavaScript, Python and Go write for the same message, which has a body, and for one that has none.
async fn the_shapes_of_all_sdks_are_read(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    let shapes = json!([
        {"destination": url, "headers": {"upstash-method": "POST", "upstash-forward-a": "1", "content-type": "application/json",
            "upstash-telemetry-sdk": "upstash-qstash-js@2.12.0", "upstash-telemetry-runtime": "node@v20.20.2"},
            "body": "{}"},
        {"destination": url, "headers": {"Upstash-Forward-A": "1", "Upstash-Forward-Content-Type": "application/json"},
            "body": "{}", "queue": null},
        {"destination": url, "headers": {"Upstash-Forward-A": "1", "Content-Type": "application/json"},
            "body": "{}", "queue": ""},
        {"destination": url, "headers": {"Upstash-Content-Based-Deduplication": "False"}},
        {"destination": url, "headers": null, "body": null, "queue": null},
        {"destination": url, "body": "", "queue": "", "callback": receiver.url("/ignored")},
    ]);
    let ids = send(&server, &shapes).await;
    for (index, id) in ids.iter().enumerate() {
        let message = server.message(id).await;
        let (header, body) = if index < 3 {
            (json!({"A": ["1"], "Content-Type": ["application/json"]}), Some(&json!("{}")))
        } else {
            (json!({}), None)
        };
        assert_eq!((&message["header"], message.get("body")), (&header, body), "item {index}");
        assert_eq!((message.get("queueName"), message.get("callback")), (None, None), "item {index}");
    }
}

async fn nothing_of_the_request_is_the_items(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let call = server.call("POST", "/v2/batch?upstash-retries=9").headers(&[
        ("Content-Type", "application/json"),
        ("Upstash-Label", "of the request"),
        ("Upstash-Forward-X", "1"),
        ("Upstash-Delay", "nonsense"),
    ]);
    let answer = call
        .body(json!([{"destination": receiver.url("/"), "body": "x"}]).to_string())
        .send()
        .await
        .json(200);
    let request = receiver.next_request().await;
    assert_eq!((request.header("content-type"), request.header("x")), (None, None));
    let message = server.message(answer[0]["messageId"].as_str().expect("an id")).await;
    assert_eq!(
        (&message["header"], message.get("label"), &message["maxRetries"]),
        (&json!({}), None, &json!(3))
    );
}

async fn an_empty_batch_makes_nothing(t: Test) {
    let server = t.server().await;
    assert_eq!(batch(&server, &json!([])).await.json(200), json!([]));
    // Whatever the content type, and in chunks.
    let call = server.call("POST", "/v2/Batch/").chunked().body(" [ ] ");
    assert_eq!(call.send().await.json(200), json!([]));
    assert_nothing_stored(&server).await;
}

async fn a_bad_item_refuses_all(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let good = json!({"destination": receiver.url("/"), "body": "x"});
    for (bad, status, text) in [
        (json!({}), 400, "item 2: a non-empty destination must be provided"),
        (json!({"destination": null}), 400, "item 2: a non-empty destination must be provided"),
        (
            json!({"destination": "example.com/x"}),
            400,
            "item 2: invalid destination url: endpoint has invalid scheme",
        ),
        (json!({"destination": "http://169.254.169.254/"}), 400, "item 2: invalid destination url: "),
        (
            json!({"destination": "https://e.com/caf\u{85}"}),
            400,
            "item 2: invalid destination url: it contains a control character",
        ),
        (
            json!({"destination": receiver.url("/"), "queue": ".."}),
            400,
            "item 2: invalid queue: \"..\" can't be",
        ),
        (json!({"destination": "api/email"}), 400, "item 2: unknown destination api/email"),
        (json!({"destination": "no-such-group"}), 404, "item 2: topic no-such-group not found"),
        // Names stand for themselves here.
        (
            json!({"destination": "my%2Dgroup"}),
            400,
            "item 2: invalid destination url: endpoint has invalid scheme",
        ),
        (
            json!({"destination": receiver.url("/"), "queue": "a b"}),
            400,
            "item 2: invalid queue: \"a b\" is not a name",
        ),
        (
            json!({"destination": receiver.url("/"), "headers": {"Upstash-Retries": "-1"}}),
            400,
            "item 2: invalid header Upstash-Retries: ",
        ),
        (
            json!({"destination": receiver.url("/"), "headers": {"Upstash-Callback": "http://169.254.169.254/"}}),
            400,
            "item 2: invalid callback url: ",
        ),
    ] {
        let error = batch(&server, &json!([good, good, bad, good])).await.error(status);
        assert!(error.starts_with(text), "{bad}: {error}");
    }
    assert_nothing_stored(&server).await;
    assert_eq!(receiver.requests().len(), 0);
}

async fn malformed_batches_are_refused(t: Test) {
    let server = t.server().await;
    for (body, text) in [
        ("", "invalid batch: "),
        ("{", "invalid batch: "),
        ("nonsense", "invalid batch: "),
        ("{}", "invalid batch: invalid type: map, expected an array of messages"),
        ("null", "invalid batch: invalid type: null, expected an array of messages"),
        ("[1]", "invalid batch: item 0: invalid type: integer `1`, expected an object"),
        (r#"[{"destination":"https://e.com"},[]]"#, "invalid batch: item 1: "),
        (r#"[{"destination":1}]"#, "invalid batch: item 0: destination: "),
        (r#"[{"destination":"https://e.com","body":{"a":1}}]"#, "invalid batch: item 0: body: "),
        (r#"[{"destination":"https://e.com","headers":{"A":1}}]"#, "invalid batch: item 0: headers: A: "),
        (r#"[{"destination":"https://e.com","queue":true}]"#, "invalid batch: item 0: queue: "),
        (r#"[{"destination":"https://e.com"}"#, "invalid batch: item 1: EOF"),
    ] {
        let error = server.call("POST", "/v2/batch").body(body).send().await.error(400);
        assert!(error.starts_with(text), "{body}: {error}");
    }
    server
        .call("POST", "/v2/batch")
        .body(b"[{\"destination\":\"https://e.com/\xff\"}]")
        .send()
        .await
        .error(400);
    server.call("GET", "/v2/batch").send().await.error(405);
    assert_nothing_stored(&server).await;
}

async fn values_that_no_header_can_have_are_refused(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for value in ["a\r\nX-Smuggled: 1", "a\nb", "a\rb", "a\0b", "\u{7f}"] {
        for name in
            ["Upstash-Forward-X", "Upstash-Callback-Forward-X", "Upstash-Label", "Content-Type", "X-Stray"]
        {
            let headers = json!({"Upstash-Callback": receiver.url("/callback"), name: value});
            let body = json!([{"destination": receiver.url("/"), "headers": headers}]);
            let error = batch(&server, &body).await.error(400);
            assert!(
                error.starts_with(&format!(
                    "item 0: invalid header {name}: it contains the control character"
                )),
                "{error}"
            );
        }
    }
    for name in
        ["Upstash-Forward-a\r\nb", "Upstash-Forward-a b", "Upstash-Forward-\u{fc}", "Upstash-Forward-"]
    {
        let body = json!([{"destination": receiver.url("/"), "headers": {name: "1"}}]);
        batch(&server, &body).await.error(400);
    }
    assert_nothing_stored(&server).await;
    assert_eq!(receiver.requests().len(), 0);
}

async fn any_text_may_stand_in_an_item(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let body = "\u{1f980} \0 \u{7f} \"quoted\" \\ \r\n \u{fffd}";
    let headers =
        json!({"Upstash-Forward-X": "\u{65e5}\u{672c}", "Upstash-Label": "\u{1f980}", "X-\u{fc}": "stray"});
    let ids =
        send(&server, &json!([{"destination": receiver.url("/"), "headers": headers, "body": body}])).await;
    let request = receiver.next_request().await;
    assert_eq!(request.body, body);
    assert_eq!(request.headers.get("x").expect("it is forwarded").as_bytes(), "\u{65e5}\u{672c}".as_bytes());
    let message = server.message(&ids[0]).await;
    assert_eq!((&message["body"], &message["label"]), (&json!(body), &json!("\u{1f980}")));
    assert_eq!(message["header"], json!({"X": ["\u{65e5}\u{672c}"]}));
}

async fn repeats_within_a_batch_are_one_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let item = |path: &str, id: &str| json!({"destination": receiver.url(path), "headers": {"Upstash-Deduplication-Id": id}, "body": path});
    let by_content = json!({
        "destination": receiver.url("/content"),
        "headers": {"Upstash-Content-Based-Deduplication": "True", "upstash-forward-a": "1"},
    });
    let items =
        json!([item("/1", "a"), item("/2", "b"), item("/3", "a"), by_content, item("/4", "a"), by_content]);
    let answer = batch(&server, &items).await.json(200);
    for (index, first) in [(2, 0), (4, 0), (5, 3)] {
        assert_eq!(answer[index], json!({"messageId": answer[first]["messageId"], "deduplicated": true}));
    }
    for index in [0, 1, 3] {
        assert_eq!(answer[index].get("deduplicated"), None);
    }
    // All of it again is nothing new, and still an answer in order.
    let again = batch(&server, &items).await.json(200);
    for index in 0..6 {
        assert_eq!(again[index], json!({"messageId": answer[index]["messageId"], "deduplicated": true}));
    }
    // What is published later is sent later.
    let last = server.publish(&receiver.url("/last"), &[], "x").await;
    server.ended(&last).await;
    for index in [0, 1, 3] {
        server.ended(answer[index]["messageId"].as_str().expect("an id")).await;
    }
    let mut paths: Vec<_> = receiver.requests().into_iter().map(|request| request.target).collect();
    paths.sort();
    assert_eq!(paths, ["/1", "/2", "/content", "/last"]);
}

async fn sizes_are_limited(t: Test) {
    let settings = [("HOMING_MAX_MESSAGE_SIZE", "1KiB"), ("HOMING_MAX_BATCH_SIZE", "8KiB")];
    let (server, receiver) = (t.server_with(&settings).await, Receiver::start().await);
    let item = |size: usize| json!({"destination": receiver.url("/"), "body": "x".repeat(size)});
    let error = batch(&server, &json!([item(1024), item(1025)])).await.error(413);
    assert_eq!(error, "item 1: the message is larger than the limit of 1024 bytes");
    let many = json!([
        item(1024),
        item(1024),
        item(1024),
        item(1024),
        item(1024),
        item(1024),
        item(1024),
        item(1024)
    ]);
    let error = batch(&server, &many).await.error(413);
    assert_eq!(error, "the batch is larger than the limit of 8192 bytes");
    let chunked = server.call("POST", "/v2/batch").chunked().body(many.to_string());
    chunked.send().await.error(413);
    assert_nothing_stored(&server).await;
    // The limit is on the message's bytes, not on how JSON writes them.
    let escaped = json!({"destination": receiver.url("/"), "body": "\u{1}".repeat(1024)});
    assert!(escaped.to_string().len() > 6 * 1024);
    send(&server, &json!([escaped])).await;
    assert_eq!(receiver.next_request().await.body.len(), 1024);
    send(&server, &json!([item(1024), item(1024)])).await;
}

/// Whoever looks while it is being stored sees none of it or all.
async fn a_large_batch_is_one_step(t: Test) {
    let server = t.server().await;
    let body = "0123456789abcdef".repeat(1024);
    let items: Vec<Value> = (0..3000)
        .map(|number| {
            json!({
                "destination": format!("http://127.0.0.1:9/{number}"),
                "headers": {"Upstash-Delay": "1h", "Upstash-Label": number.to_string()},
                "body": body,
            })
        })
        .collect();
    let items = json!(items);
    let stored = AtomicBool::new(false);
    let look = async {
        while !stored.load(Ordering::Acquire) {
            // Fewer than make a page with their bodies.
            let events = server.get_json("/v2/events?count=200").await;
            let seen = events["events"].as_array().map_or(0, Vec::len);
            assert!(seen == 0 || seen == 200, "a part of the batch: {seen}");
        }
    };
    let send = async {
        let ids = send(&server, &items).await;
        stored.store(true, Ordering::Release);
        ids
    };
    let ((), ids) = tokio::join!(look, send);
    assert_eq!(ids.len(), 3000);
    assert_eq!(server.list("/v2/events", "events").await.len(), 3000);
    let last = server.message(&ids[2999]).await;
    assert_eq!((&last["label"], &last["body"]), (&json!("2999"), &json!(body)));
}

async fn quotas_hold_for_items(t: Test) {
    let settings = [("HOMING_MAX_RETRIES", "5"), ("HOMING_MAX_DELAY", "1h")];
    let server = t.server_with(&settings).await;
    for (headers, text) in [
        (json!({"Upstash-Retries": "6"}), "item 1: quota maxRetries exceeded, current limit: 5"),
        (json!({"Upstash-Delay": "2h"}), "item 1: quota maxDelay exceeded, current limit: 3600"),
    ] {
        let items = json!([
            {"destination": "http://127.0.0.1:9/"},
            {"destination": "http://127.0.0.1:9/", "headers": headers},
            {"destination": "nonsense:"},
        ]);
        assert_eq!(batch(&server, &items).await.error(412), text);
    }
    assert_nothing_stored(&server).await;
}
