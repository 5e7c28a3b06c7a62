//! The exact JSON of answers, and of what stands in batches and filters.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{failed, post, send, waiting};
use crate::support::{Gate, Receiver, Reply, Test, hex};

engines! {
    counts_are_objects_of_one_integer,
    empty_lists_are_empty,
    optional_is_absent_and_numbers_are_integers,
    what_has_two_names_is_sent_under_both,
    redaction_hides_binary_bodies_too,
    an_upsert_changes_what_it_mentions,
    a_schedule_is_paused_by_patch_and_by_post,
    a_publish_waits_for_no_destination,
    a_batch_headers_value_may_be_any_text,
    a_batch_item_takes_null_for_nothing,
    a_batch_error_names_its_item,
    filters_are_repeated_or_joined,
    a_url_with_commas_is_matched_whole,
    a_cursor_may_be_a_time,
    log_entries_are_grouped_by_message,
}

async fn counts_are_objects_of_one_integer(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let delete = async |target: &str| server.call("DELETE", target).send().await.json(200);
    assert_eq!(delete("/v2/messages").await, json!({"cancelled": 0}));
    assert_eq!(delete("/v2/dlq").await, json!({"deleted": 0}));
    assert_eq!(delete("/v2/messages?messageIds=msg_none").await, json!({"cancelled": 0}));
    assert_eq!(delete("/v2/dlq?dlqIds=1-0").await, json!({"deleted": 0}));
    let (one, two) = (waiting(&server, &receiver).await, waiting(&server, &receiver).await);
    assert_eq!(delete(&format!("/v2/messages/{one}")).await, json!({"cancelled": 1}));
    let target = format!("/v2/messages?messageIds={one},{two}&messageIds={two}");
    assert_eq!(delete(&target).await, json!({"cancelled": 1}));
    let (one, two) = (failed(&server, &receiver).await, failed(&server, &receiver).await);
    let text = |letter: &Value| letter["dlqId"].as_str().expect("an id").to_owned();
    let target = format!("/v2/dlq?dlqIds={},{}", text(&one), text(&two));
    assert_eq!(delete(&target).await, json!({"deleted": 2}));
}

async fn empty_lists_are_empty(t: Test) {
    let server = t.server().await;
    for (target, empty) in [
        ("/v2/events", json!({"events": []})),
        ("/v2/logs", json!({"logs": [], "events": []})),
        ("/v2/events?groupBy=messageId", json!({"messages": []})),
        ("/v2/dlq", json!({"messages": []})),
        ("/v2/queues", json!([])),
        ("/v2/topics", json!([])),
        ("/v2/schedules", json!([])),
        ("/v2/flowControl", json!([])),
    ] {
        assert_eq!(server.get_json(target).await, empty, "{target}");
    }
    let retried = server.call("POST", "/v2/dlq/retry").send().await.json(201);
    assert_eq!(retried, json!({"responses": []}));
    assert_eq!(send(&server, "POST", "/v2/batch", "[]").await.json(200), json!([]));
}

/// Fails on null and on numbers that are no integers, anywhere.
fn assert_plain(what: &str, value: &Value) {
    match value {
        Value::Null => panic!("{what}: null"),
        Value::Number(number) => assert!(number.is_i64() || number.is_u64(), "{what}: {number}"),
        Value::Array(items) => items.iter().for_each(|item| assert_plain(what, item)),
        Value::Object(fields) => {
            for (name, value) in fields {
                assert_plain(&format!("{what}.{name}"), value);
            }
        }
        Value::Bool(_) | Value::String(_) => {}
    }
}

async fn optional_is_absent_and_numbers_are_integers(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    post(&server, "/v2/queues", json!({"queueName": "q"})).await;
    post(
        &server,
        "/v2/topics/g/endpoints",
        json!({"endpoints": [{"url": url, "name": "n"}, {"url": receiver.url("/b")}]}),
    )
    .await;
    let flow = [("Upstash-Flow-Control-Key", "k"), ("Upstash-Flow-Control-Value", "rate=100")];
    server.publish(&url, &flow, "x").await;
    for headers in [
        &[("Upstash-Cron", "@yearly")][..],
        &[("Upstash-Cron", "@yearly"), ("Upstash-Delay", "1.5s"), flow[0], flow[1]],
    ] {
        server.call("POST", &format!("/v2/schedules/{url}")).headers(headers).send().await.json(200);
    }
    let letter = failed(&server, &receiver).await;
    // Zero is a value, and some clients index it without looking.
    assert_eq!((&letter["maxRetries"], &letter["responseStatus"]), (&json!(0), &json!(500)));
    let hung_up = receiver.url("/hangs-up");
    receiver.script("/hangs-up", [Reply::hangup()]);
    let id = server.publish(&hung_up, &[("Upstash-Retries", "0")], "").await;
    assert_eq!(server.dead_letter(&id).await["responseStatus"], 0);
    server
        .call("DELETE", &format!("/v2/messages/{}", waiting(&server, &receiver).await))
        .send()
        .await
        .json(200);
    for target in [
        "/v2/events".to_owned(),
        "/v2/logs".to_owned(),
        "/v2/dlq".to_owned(),
        "/v2/queues".to_owned(),
        "/v2/queues/q".to_owned(),
        "/v2/topics".to_owned(),
        "/v2/schedules".to_owned(),
        "/v2/flowControl".to_owned(),
        "/v2/flowControl/k".to_owned(),
        "/v2/globalParallelism".to_owned(),
        format!("/v2/messages/{id}"),
    ] {
        assert_plain(&target, &server.get_json(&target).await);
    }
    let queue = server.get_json("/v2/queues/q").await;
    assert_eq!((&queue["lag"], &queue["paused"]), (&json!(0), &json!(false)));
    let keys: BTreeSet<&str> = queue.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["name", "parallelism", "createdAt", "updatedAt", "paused", "lag"]));
}

async fn what_has_two_names_is_sent_under_both(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500).header("X-A", "1")]);
    post(&server, "/v2/topics/g/endpoints", json!({"endpoints": [{"url": receiver.url("/")}]})).await;
    let headers = [("Upstash-Retries", "0"), ("Upstash-Retry-Delay", "10"), ("Upstash-Label", "a,b")];
    let answer = server.call("POST", "/v2/publish/g").headers(&headers).send().await.json(200);
    let id = answer[0]["messageId"].as_str().expect("an id");
    let letter = server.dead_letter(id).await;
    for object in [&server.message(id).await, &letter] {
        assert_eq!((&object["topicName"], &object["urlGroup"]), (&json!("g"), &json!("g")), "{object}");
        assert_eq!((&object["callerIP"], &object["callerIp"]), (&json!("127.0.0.1"), &json!("127.0.0.1")));
        assert_eq!((&object["label"], &object["labels"]), (&json!("a"), &json!(["a", "b"])));
    }
    let error = &server.list(&format!("/v2/events?messageId={id}&state=ERROR"), "events").await[0];
    assert!(error["responseHeader"].is_object());
    assert_eq!(error["responseHeader"], error["responseHeaders"]);
    assert_eq!((&error["retryDelayExpr"], &error["retryDelayExpression"]), (&json!("10"), &json!("10")));
    assert_eq!(error["topicName"], "g");
    let call = server.call("POST", "/v2/schedules/g").header("Upstash-Cron", "@yearly");
    let schedule = call.headers(&headers).send().await.json(200)["scheduleId"].clone();
    let schedule = server.get_json(&format!("/v2/schedules/{}", schedule.as_str().expect("an id"))).await;
    assert_eq!((&schedule["callerIP"], &schedule["callerIp"]), (&json!("127.0.0.1"), &json!("127.0.0.1")));
    let logs = server.get_json("/v2/logs").await;
    assert_eq!(logs["logs"], logs["events"]);
}

async fn redaction_hides_binary_bodies_too(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let body = [0xff_u8, 0xfe, 0];
    let marker = format!("REDACTED:{}", hex(&Sha256::digest(body)));
    let redact = ("Upstash-Redact-Fields", "body");
    let id = server.publish(&receiver.url("/"), &[redact], body).await;
    let message = server.message(&id).await;
    assert_eq!((message.get("body"), message.get("bodyBase64")), (Some(&json!(marker)), None));
    let call = server
        .call("POST", &format!("/v2/schedules/{}", receiver.url("/")))
        .header("Upstash-Cron", "@yearly");
    let answer = call.headers(&[redact]).body(body).send().await.json(200);
    let schedule =
        server.get_json(&format!("/v2/schedules/{}", answer["scheduleId"].as_str().expect("an id"))).await;
    assert_eq!((schedule.get("body"), schedule.get("bodyBase64")), (Some(&json!(marker)), None));
    assert_eq!(receiver.next_request().await.body, &body[..]);
}

async fn an_upsert_changes_what_it_mentions(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    post(&server, "/v2/queues", json!({"queueName": "q", "parallelism": 3, "paused": true})).await;
    post(&server, "/v2/queues", json!({"queueName": "q", "parallelism": 4})).await;
    let queue = server.get_json("/v2/queues/q").await;
    assert_eq!((&queue["parallelism"], &queue["paused"]), (&json!(4), &json!(true)));
    server.call("POST", &format!("/v2/enqueue/q/{}", receiver.url("/"))).send().await.json(200);
    let after = server.get_json("/v2/queues/q").await;
    assert_eq!(
        (&after["parallelism"], &after["paused"], &after["lag"]),
        (&json!(4), &json!(true), &json!(1))
    );
    let endpoints = |rest: Value| json!({"endpoints": [rest]});
    for endpoint in [
        json!({"name": "a", "url": receiver.url("/a")}),
        json!({"name": "b", "url": receiver.url("/b")}),
        json!({"name": "a", "url": receiver.url("/c")}),
    ] {
        post(&server, "/v2/topics/g/endpoints", endpoints(endpoint)).await;
    }
    let expected =
        json!([{"name": "a", "url": receiver.url("/c")}, {"name": "b", "url": receiver.url("/b")}]);
    assert_eq!(server.get_json("/v2/topics/g").await["endpoints"], expected);
    // Also with older clients' content types.
    let call = server.call("PATCH", "/v2/topics/g").header("Content-Type", "text/plain");
    assert_eq!(call.body(r#"{"headers":{"X-Group":["1"],"X-Own":"2"}}"#).send().await.status, 200);
    let group = server.get_json("/v2/topics/g").await;
    assert_eq!(group["endpoints"], expected);
    let call = server.call("POST", "/v2/publish/g").header("Upstash-Forward-X-Own", "3");
    let answer = call.send().await.json(200);
    let message = server.message(answer[0]["messageId"].as_str().expect("an id")).await;
    assert_eq!(message["header"], json!({"X-Group": ["1"], "X-Own": ["3"]}));
}

async fn a_schedule_is_paused_by_patch_and_by_post(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let call = server.call("POST", &format!("/v2/schedules/{}", receiver.url("/")));
    call.headers(&[("Upstash-Cron", "@yearly"), ("Upstash-Schedule-Id", "s")]).send().await.json(200);
    for method in ["PATCH", "POST"] {
        for (action, paused) in [("pause", true), ("pause", true), ("resume", false), ("resume", false)] {
            let target = format!("/v2/schedules/s/{action}");
            assert_eq!(server.call(method, &target).send().await.status, 200, "{method} {target}");
            assert_eq!(server.get_json("/v2/schedules/s").await["isPaused"], paused, "{method} {target}");
        }
    }
}

async fn a_publish_waits_for_no_destination(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let url = receiver.url("/");
    server.publish(&url, &[], "x").await;
    server.call("POST", &format!("/v2/enqueue/q/{url}")).send().await.json(200);
    post(&server, "/v2/batch", json!([{"destination": url}])).await;
    assert_eq!(server.get_json("/v2/queues/q").await["lag"], 1);
    // All have been answered while the destination has answered none.
    for _ in 0..3 {
        receiver.next_request().await;
    }
    assert_eq!(receiver.open(), 3);
    gate.open();
}

async fn a_batch_headers_value_may_be_any_text(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let item =
        |value: Value| json!([{"destination": receiver.url("/"), "headers": {"upstash-FORWARD-x-a": value}}]);
    for (value, delivered) in [(json!("日本 ✓"), vec!["日本 ✓"]), (json!(["one", "two"]), vec!["one", "two"])]
    {
        let answer = post(&server, "/v2/batch", item(value)).await.json(200);
        let message = server.message(answer[0]["messageId"].as_str().expect("an id")).await;
        assert_eq!(message["header"], json!({ "X-A": delivered }));
        let request = receiver.next_request().await;
        let values: Vec<_> = request
            .headers
            .get_all("x-a")
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        assert_eq!(values, delivered);
    }
    for value in ["a\r\nb: c", "a\nb", "a\u{0}b"] {
        send(&server, "POST", "/v2/batch", item(json!(value)).to_string()).await.error(400);
    }
}

async fn a_batch_item_takes_null_for_nothing(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/");
    let items = json!([
        {"destination": url, "headers": {}, "body": "", "queue": ""},
        {"destination": url, "headers": null, "body": null, "queue": null},
        {"destination": url},
    ]);
    let answer = send(&server, "POST", "/v2/batch", items.to_string()).await.json(200);
    for item in answer.as_array().expect("an array") {
        let message = server.message(item["messageId"].as_str().expect("an id")).await;
        assert_eq!((message.get("body"), message.get("queueName")), (None, None));
        // Not the content type of the batch.
        assert_eq!(message["header"], json!({}));
        receiver.next_request().await;
    }
    assert_eq!(server.get_json("/v2/queues").await, json!([]));
    // One item, too, is answered with an array.
    let one = post(&server, "/v2/batch", json!([{"destination": url}])).await.json(200);
    assert_eq!(one.as_array().map(Vec::len), Some(1));
}

async fn a_batch_error_names_its_item(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let good = json!({"destination": receiver.url("/")});
    for bad in [
        json!("text"),
        json!({}),
        json!({"destination": ""}),
        json!({"destination": "nowhere:"}),
        json!({"destination": receiver.url("/"), "headers": {"Upstash-Delay": "5x"}}),
        json!({"destination": receiver.url("/"), "headers": 7}),
        json!({"destination": receiver.url("/"), "body": 7}),
        json!({"destination": receiver.url("/"), "queue": "a name"}),
    ] {
        let items = json!([good, good, bad]).to_string();
        let error = send(&server, "POST", "/v2/batch", items).await.error(400);
        assert!(error.contains('2'), "{bad}: {error}");
    }
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn filters_are_repeated_or_joined(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for label in ["a", "b", "c"] {
        server.publish(&receiver.url("/"), &[("Upstash-Delay", "1d"), ("Upstash-Label", label)], "x").await;
    }
    for filter in ["label=a&label=b", "label=a,b", "label=a,%20b,", "label=none&label=a,b"] {
        let entries = server.list(&format!("/v2/events?{filter}"), "events").await;
        let labels: BTreeSet<_> = entries.iter().map(|entry| entry["label"].as_str()).collect();
        assert_eq!(labels, BTreeSet::from([Some("a"), Some("b")]), "{filter}");
    }
    let cancelled = server.call("DELETE", "/v2/messages?label=a,b&path=/").send().await.json(200);
    assert_eq!(cancelled, json!({"cancelled": 2}));
    // The caller's address has two spellings here as well, and the state has two.
    for filter in ["callerIp=127.0.0.1", "callerIP=127.0.0.1"] {
        assert_eq!(server.list(&format!("/v2/events?state=CREATED&{filter}"), "events").await.len(), 3);
        server.get(&format!("/v2/dlq?{filter}")).await.json(200);
    }
    for state in ["CANCELED", "CANCELLED", "canceled"] {
        let entries = server.list(&format!("/v2/events?state={state}"), "events").await;
        assert_eq!(entries.len(), 2, "{state}");
        assert!(entries.iter().all(|entry| entry["state"] == "CANCELED"));
    }
}

async fn a_url_with_commas_is_matched_whole(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/a,b?x=1,2");
    let id = server.publish(&url, &[("Upstash-Delay", "1d")], "x").await;
    let other = server.publish(&receiver.url("/c"), &[("Upstash-Delay", "1d")], "x").await;
    let encoded = url.replace('?', "%3F").replace('=', "%3D");
    for (filter, expected) in [
        (format!("url={encoded}"), vec![&id]),
        (format!("url={encoded}&url={}", receiver.url("/c")), vec![&id, &other]),
        (format!("url={},{}", receiver.url("/c"), receiver.url("/none")), vec![&other]),
        ("path=/a,b".to_owned(), vec![&id]),
        ("path=/c,/none".to_owned(), vec![&other]),
    ] {
        let entries = server.list(&format!("/v2/events?{filter}"), "events").await;
        let ids: BTreeSet<_> =
            entries.iter().map(|entry| entry["messageId"].as_str().expect("an id")).collect();
        assert_eq!(ids, expected.iter().map(|id| id.as_str()).collect(), "{filter}");
    }
    let cancelled = server.call("DELETE", &format!("/v2/messages?url={encoded}")).send().await.json(200);
    assert_eq!(cancelled, json!({"cancelled": 1}));
    assert_eq!(server.states(&other).await, ["CREATED"]);
}

async fn a_cursor_may_be_a_time(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let letter = failed(&server, &receiver).await;
    let id = letter["messageId"].as_str().expect("an id");
    let time = server.events(id).await[0]["time"].as_i64().expect("a time");
    for (target, key, count) in [
        (format!("/v2/events?cursor={}", time + 60_000), "events", 4),
        (format!("/v2/events?cursor={}", time - 60_000), "events", 0),
        (format!("/v2/events?order=earliestFirst&cursor={}", time - 60_000), "events", 4),
        (format!("/v2/dlq?cursor={}", time - 60_000), "messages", 1),
        (format!("/v2/dlq?cursor={}", time + 60_000), "messages", 0),
        (format!("/v2/dlq?order=latestFirst&cursor={}", time + 60_000), "messages", 1),
    ] {
        let page = server.get_json(&target).await;
        assert_eq!(page[key].as_array().map(Vec::len), Some(count), "{target}: {page}");
        assert_eq!(page.get("cursor"), None, "{target}");
    }
}

async fn log_entries_are_grouped_by_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let mut ids = Vec::new();
    for _ in 0..12 {
        let id = server.publish(&receiver.url("/"), &[], "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
        ids.push(id);
    }
    for order in ["earliestFirst", "latestFirst"] {
        let target = format!("/v2/events?groupBy=messageId&order={order}");
        let page = server.get_json(&target).await;
        assert_eq!(page["messages"].as_array().map(Vec::len), Some(10), "{page}");
        let mut groups = server.list(&target, "messages").await;
        assert_eq!(groups.len(), 12, "{order}");
        if order == "latestFirst" {
            groups.reverse();
        }
        for (group, id) in groups.iter().zip(&ids) {
            assert_eq!(group["messageId"], json!(id));
            assert_eq!(group["events"].as_array().map(Vec::len), Some(3), "{group}");
            assert!(
                group["events"]
                    .as_array()
                    .expect("entries")
                    .iter()
                    .all(|entry| entry["messageId"] == json!(id))
            );
        }
    }
    server.get("/v2/events?groupBy=url").await.error(400);
}
