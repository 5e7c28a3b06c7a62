//! Messages, dead letters and the log, as the API shows them.

use serde_json::{Value, json};

use crate::support::{Gate, Receiver, Reply, Test, base64_text};

engines! {
    a_message_shows_all_that_was_set,
    a_plain_message_shows_only_what_it_has,
    a_binary_body_is_shown_in_base64,
    unknown_things_are_not_found,
    finished_messages_stay_readable,
    a_waiting_message_is_cancelled_at_once,
    a_message_in_flight_is_cancelled_after_its_attempt,
    a_success_wins_over_a_cancel,
    a_cancel_without_an_id_cancels_nothing,
    a_dead_letter_shows_the_last_answer,
    a_dead_letter_without_an_answer,
    dead_letters_come_in_pages,
    dead_letters_are_deleted_once,
    a_dead_letter_is_retried_as_a_new_message,
    dead_letters_are_deleted_by_their_ids,
    a_retry_changes_what_it_names,
    parameters_nobody_knows_are_refused,
    the_log_has_exactly_the_states_of_a_life,
    log_entries_show_bodies_in_base64,
    the_log_comes_in_pages,
    the_log_is_filtered,
}

async fn a_message_shows_all_that_was_set(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Content-Type", "application/json"),
        ("Upstash-Forward-X-Tenant", "7"),
        ("Upstash-Delay", "10s"),
        ("Upstash-Retries", "5"),
        ("Upstash-Retry-Delay", "1000*(1+retried)"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Forward-A", "1"),
        ("Upstash-Failure-Callback", failure.as_str()),
        ("Upstash-Failure-Callback-Forward-B", "2"),
        ("Upstash-Label", "l1,l2"),
    ];
    let id = server.publish(&receiver.url("/x?y=1"), &headers, r#"{"hello":1}"#).await;
    let mut message = server.message(&id).await;
    let created = message["createdAt"].as_i64().expect("createdAt is an integer");
    assert_eq!(message["notBefore"], created + 10_000);
    for time in ["createdAt", "notBefore"] {
        message.as_object_mut().expect("an object").remove(time);
    }
    let expected = json!({
        "messageId": id, "url": receiver.url("/x?y=1"), "method": "POST",
        "header": {"Content-Type": ["application/json"], "X-Tenant": ["7"]},
        "body": r#"{"hello":1}"#, "maxRetries": 5, "retryDelayExpression": "1000*(1+retried)",
        "callback": callback, "callbackHeader": {"A": ["1"]},
        "failureCallback": failure, "failureCallbackHeader": {"B": ["2"]},
        "label": "l1", "labels": ["l1", "l2"],
        "callerIP": "127.0.0.1", "callerIp": "127.0.0.1",
    });
    assert_eq!(message, expected);
}

async fn a_plain_message_shows_only_what_it_has(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "").await;
    let message = server.message(&id).await;
    assert_eq!(message["notBefore"], message["createdAt"]);
    assert_eq!((&message["maxRetries"], &message["header"]), (&json!(0), &json!({})));
    assert!(!message.to_string().contains("null"), "optional means absent: {message}");
    let mut keys: Vec<_> = message.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = [
        "callerIP",
        "callerIp",
        "createdAt",
        "header",
        "maxRetries",
        "messageId",
        "method",
        "notBefore",
        "url",
    ];
    assert_eq!(keys, expected);
}

async fn a_binary_body_is_shown_in_base64(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[], b"\xff\x00").await;
    let message = server.message(&id).await;
    assert_eq!((message.get("body"), &message["bodyBase64"]), (None, &json!("/wA=")));
}

async fn unknown_things_are_not_found(t: Test) {
    let server = t.server().await;
    for (method, target) in [
        ("GET", "/v2/messages/msg_unknown"),
        ("DELETE", "/v2/messages/msg_unknown"),
        ("GET", "/v2/dlq/1725323658779-0"),
        ("DELETE", "/v2/dlq/1725323658779-0"),
        ("POST", "/v2/dlq/retry/1725323658779-0"),
    ] {
        server.call(method, target).send().await.error(404);
    }
}

async fn finished_messages_stay_readable(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    for path in ["/", "/fails"] {
        let id = server.publish(&receiver.url(path), &[("Upstash-Retries", "0")], "still here").await;
        server.ended(&id).await;
        assert_eq!(server.message(&id).await["body"], "still here", "{path}");
    }
}

async fn a_waiting_message_is_cancelled_at_once(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Delay", "10d")], "x").await;
    let target = format!("/v2/messages/{id}");
    assert_eq!(server.call("DELETE", &target).send().await.json(200), json!({"cancelled": 1}));
    assert_eq!(server.ended(&id).await, "CREATED CANCEL_REQUESTED CANCELED");
    server.call("DELETE", &target).send().await.error(404);
    assert_eq!(receiver.requests().len(), 0);
}

async fn a_message_in_flight_is_cancelled_after_its_attempt(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/", [Reply::status(500).behind(&gate)]);
    let headers = [("Upstash-Retries", "3"), ("Upstash-Retry-Delay", "20")];
    let id = server.publish(&receiver.url("/"), &headers, "x").await;
    receiver.next_request().await;
    let answer = server.call("DELETE", &format!("/v2/messages/{id}")).send().await;
    assert_eq!(answer.json(200), json!({"cancelled": 1}));
    gate.open();
    let states = server.ended(&id).await;
    assert!(
        states.starts_with("CREATED ACTIVE CANCEL_REQUESTED") && states.ends_with("CANCELED"),
        "{states}"
    );
    assert_eq!(receiver.requests().len(), 1, "no further attempt");
    assert_eq!(server.list("/v2/dlq", "messages").await.len(), 0, "no dead letter");
}

async fn a_success_wins_over_a_cancel(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let gate = Gate::new();
    receiver.script("/", [Reply::ok().behind(&gate)]);
    let id = server.publish(&receiver.url("/"), &[], "x").await;
    receiver.next_request().await;
    server.call("DELETE", &format!("/v2/messages/{id}")).send().await.json(200);
    gate.open();
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE CANCEL_REQUESTED DELIVERED");
}

async fn a_cancel_without_an_id_cancels_nothing(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Delay", "1h")], "x").await;
    // This is what the Python and Go SDKs send for an empty id.
    server.call("DELETE", "/v2/messages/").send().await.error(400);
    server.call("DELETE", "/v2/dlq/").send().await.error(400);
    assert_eq!(server.states(&id).await, ["CREATED"]);
}

async fn a_dead_letter_shows_the_last_answer(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let last = Reply::status(404).header("Content-Type", "text/plain").header("X-Why", "gone");
    receiver.script("/", [Reply::status(500).body("first"), last.body("404 Not Found")]);
    let headers = [
        ("Upstash-Retries", "1"),
        ("Upstash-Retry-Delay", "20"),
        ("Upstash-Label", "l"),
        ("Upstash-Forward-A", "1"),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "payload").await;
    let letter = server.dead_letter(&id).await;
    for (field, expected) in [
        ("messageId", json!(id)),
        ("url", json!(receiver.url("/"))),
        ("method", json!("POST")),
        ("maxRetries", json!(1)),
        ("header", json!({"A": ["1"]})),
        ("body", json!("payload")),
        ("label", json!("l")),
        ("retryDelayExpression", json!("20")),
        ("responseStatus", json!(404)),
        ("responseBody", json!("404 Not Found")),
    ] {
        assert_eq!(letter[field], expected, "{field} in {letter}");
    }
    assert_eq!(letter["responseHeader"]["X-Why"], json!(["gone"]));
    let dlq_id = letter["dlqId"].as_str().expect("an id");
    assert_eq!(server.get_json(&format!("/v2/dlq/{dlq_id}")).await, letter);
    assert!(!letter.to_string().contains("null"), "optional means absent: {letter}");
}

async fn a_dead_letter_without_an_answer(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::hangup()]);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "").await;
    let letter = server.dead_letter(&id).await;
    assert_eq!((&letter["responseStatus"], &letter["maxRetries"]), (&json!(0), &json!(0)));
    assert!(letter["error"].as_str().is_some_and(|text| !text.is_empty()), "{letter}");
    for absent in ["responseBody", "responseBodyBase64", "responseHeader", "body", "bodyBase64"] {
        assert_eq!(letter.get(absent), None, "{absent}");
    }
    for event in server.events(&id).await {
        let failed = ["ERROR", "FAILED"].contains(&event["state"].as_str().expect("a state"));
        assert_eq!(event.get("responseStatus"), failed.then_some(&json!(0)), "{event}");
    }
}

async fn dead_letters_come_in_pages(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    assert_eq!(server.get_json("/v2/dlq").await, json!({"messages": []}));
    receiver.script("/", [Reply::status(500)]);
    let mut ids = Vec::new();
    for _ in 0..5 {
        let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
        server.dead_letter(&id).await;
        ids.push(id);
    }
    for (order, first) in [("", &ids[0]), ("&order=earliestFirst", &ids[0]), ("&order=latestFirst", &ids[4])]
    {
        let page = server.get_json(&format!("/v2/dlq?count=2{order}")).await;
        assert_eq!(page["messages"].as_array().expect("an array").len(), 2);
        let all = server.list(&format!("/v2/dlq?count=2{order}"), "messages").await;
        let mut listed: Vec<_> =
            all.iter().map(|letter| letter["messageId"].as_str().expect("an id")).collect();
        assert_eq!(listed[0], first, "{order}");
        listed.sort_unstable();
        assert_eq!(listed, ids, "{order}: each exactly once");
    }
    // A cursor whose entry has been deleted still says where to go on.
    let page = server.get_json("/v2/dlq?count=2").await;
    let cursor = page["cursor"].as_str().expect("there is more");
    let dlq_id = page["messages"][1]["dlqId"].as_str().expect("an id");
    server.call("DELETE", &format!("/v2/dlq/{dlq_id}")).send().await;
    let rest = server.list(&format!("/v2/dlq?cursor={cursor}"), "messages").await;
    assert_eq!(rest.len(), 3);
    server.get("/v2/dlq?cursor=nonsense").await.error(400);
}

async fn dead_letters_are_deleted_once(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
    let letter = server.dead_letter(&id).await;
    let target = format!("/v2/dlq/{}", letter["dlqId"].as_str().expect("an id"));
    assert_eq!(server.call("DELETE", &target).send().await.status, 200);
    server.call("DELETE", &target).send().await.error(404);
    server.get(&target).await.error(404);
    assert_eq!(server.get_json("/v2/dlq").await, json!({"messages": []}));
}

async fn a_dead_letter_is_retried_as_a_new_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500), Reply::ok()]);
    let callback = receiver.url("/callback");
    let headers = [
        ("Upstash-Retries", "0"),
        ("Upstash-Method", "PUT"),
        ("Upstash-Label", "l"),
        ("Upstash-Forward-A", "1"),
        ("Upstash-Callback", callback.as_str()),
        ("Content-Type", "text/plain"),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "payload").await;
    let dlq_id = server.dead_letter(&id).await["dlqId"].as_str().expect("an id").to_owned();
    let target = format!("/v2/dlq/retry/{dlq_id}");
    let answer = server.call("POST", &target).header("Upstash-Retries", "2").send().await.json(201);
    let new = answer["messageId"].as_str().expect("an id");
    assert_ne!(new, id);
    assert_eq!(server.ended(new).await, "CREATED ACTIVE DELIVERED");
    let requests = receiver.requests_on("/");
    assert_eq!(requests.len(), 2);
    assert_eq!((requests[1].message_id(), requests[1].retried()), (new, 0));
    assert_eq!((&requests[1].method, &requests[1].body), (&requests[0].method, &requests[0].body));
    assert_eq!(
        (requests[1].header("a"), requests[1].header("content-type")),
        (Some("1"), Some("text/plain"))
    );
    let message = server.message(new).await;
    assert_eq!((&message["label"], &message["callback"]), (&json!("l"), &json!(callback)));
    assert_eq!(message["maxRetries"], 2, "the retry request's own header wins");
    server.get(&format!("/v2/dlq/{dlq_id}")).await.error(404);
    server.call("POST", &target).send().await.error(404);
}

async fn dead_letters_are_deleted_by_their_ids(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "").await;
        ids.push(server.dead_letter(&id).await["dlqId"].as_str().expect("an id").to_owned());
    }
    server.call("DELETE", "/v2/dlq/").send().await.error(400);
    server.call("DELETE", "/v2/dlq/?cursor=1-0").send().await.error(400);
    let target = format!("/v2/dlq/?dlqIds={0},{0}", ids[0]);
    assert_eq!(server.call("DELETE", &target).send().await.json(200), json!({"deleted": 1}));
    let body = json!({"dlqIds": [ids[1], ids[1]]}).to_string();
    let answer = server.call("DELETE", "/v2/dlq/").header("Content-Type", "application/json").body(body);
    assert_eq!(answer.send().await.json(200), json!({"deleted": 1}));
}

async fn a_retry_changes_what_it_names(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500)]);
    let (callback, nested) = (receiver.url("/callback"), receiver.url("/nested"));
    let headers = [
        ("Upstash-Retries", "0"),
        ("Upstash-Forward-A", "1"),
        ("Upstash-Forward-B", "2"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Method", "PUT"),
        ("Upstash-Callback-Forward-C", "3"),
        ("Upstash-Callback-Forward-D", "4"),
        ("Upstash-Callback-Failure-Callback", nested.as_str()),
    ];
    let id = server.publish(&receiver.url("/"), &headers, "payload").await;
    let dlq_id = server.dead_letter(&id).await["dlqId"].as_str().expect("an id").to_owned();
    receiver.next_on("/callback").await;

    // A header with two values; settings of the callback without its URL; the id twice.
    let target = format!("/v2/dlq/retry?dlqIds={dlq_id}&dlqIds={dlq_id}&Upstash-Callback-Retries=6");
    let call = server.call("POST", &target).headers(&[
        ("Upstash-Retries", "0"),
        ("Upstash-Forward-A", "5"),
        ("Upstash-Forward-A", "6"),
        ("Upstash-Callback-Forward-C", "7"),
        ("Upstash-Queue-Name", "q"),
        ("Upstash-Flow-Control-Key", "k"),
        ("Upstash-Flow-Control-Value", "rate=100"),
    ]);
    let answer = call.send().await.json(201);
    assert_eq!(answer["responses"].as_array().map(Vec::len), Some(1), "{answer}");
    let id = answer["responses"][0]["messageId"].as_str().expect("an id");
    let message = server.message(id).await;
    assert_eq!(message["header"], json!({"A": ["5", "6"], "B": ["2"]}));
    assert_eq!(message["callbackHeader"], json!({"C": ["7"], "D": ["4"]}));
    assert_eq!(
        (&message["queueName"], &message["flowControlKey"], &message["rate"]),
        (&json!("q"), &json!("k"), &json!(100))
    );
    let request = receiver.next_on("/callback").await;
    assert_eq!(request.method, "PUT");
    let made = server.message(request.message_id()).await;
    assert_eq!((&made["maxRetries"], &made["failureCallback"]), (&json!(6), &json!(nested)));

    // Another URL keeps the other settings.
    let dlq_id = server.dead_letter(id).await["dlqId"].as_str().expect("an id").to_owned();
    let call = server.call("POST", &format!("/v2/dlq/retry/{dlq_id}"));
    call.header("Upstash-Callback", receiver.url("/other")).send().await.json(201);
    let request = receiver.next_on("/other").await;
    assert_eq!((request.method.as_str(), request.all("c")), ("PUT", vec!["7"]));
    assert_eq!(server.message(request.message_id()).await["maxRetries"], 6);
}

async fn parameters_nobody_knows_are_refused(t: Test) {
    let server = t.server().await;
    for target in
        ["/v2/dlq/retry/1-0?labeel=x", "/v2/dlq/retry/1-0?dlqIds=1-0", "/v2/dlq/retry?dlqIds=1-0&label=x"]
    {
        server.call("POST", target).send().await.error(400);
    }
    server.call("POST", "/v2/dlq/retry/1-0?upstash-delay=1s").send().await.error(404);
    server.get("/v2/dlq?api=llm&source=x&trimBody=5").await.json(200);
    server.get("/v2/events?trimBody=x").await.error(400);
}

async fn the_log_has_exactly_the_states_of_a_life(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    receiver.script("/recovers", [Reply::status(500), Reply::ok()]);
    for (path, retries, expected) in [
        ("/", "3", "CREATED ACTIVE DELIVERED"),
        ("/fails", "0", "CREATED ACTIVE ERROR FAILED"),
        ("/fails", "2", "CREATED ACTIVE ERROR RETRY ACTIVE ERROR RETRY ACTIVE ERROR FAILED"),
        ("/recovers", "2", "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED"),
    ] {
        let headers = [("Upstash-Retries", retries), ("Upstash-Retry-Delay", "20")];
        let id = server.publish(&receiver.url(path), &headers, "x").await;
        assert_eq!(server.ended(&id).await, expected, "{path} {retries}");
        let times: Vec<_> = server.events(&id).await.iter().map(|event| event["time"].as_i64()).collect();
        assert!(times.is_sorted() && !times.contains(&None), "{times:?}");
        // The default order is the reverse.
        let latest = server.list(&format!("/v2/events?messageId={id}"), "events").await;
        let mut states: Vec<_> =
            latest.iter().map(|event| event["state"].as_str().expect("a state")).collect();
        states.reverse();
        assert_eq!(states.join(" "), expected);
    }
}

async fn log_entries_show_bodies_in_base64(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [Reply::status(500).header("X-A", "1").body("boom")]);
    let headers = [
        ("Upstash-Retries", "1"),
        ("Upstash-Retry-Delay", "20"),
        ("Upstash-Timeout", "30s"),
        ("Upstash-Label", "l1,l2"),
        ("Upstash-Forward-B", "2"),
    ];
    let id = server.publish(&receiver.url("/"), &headers, r#"{"hello":1}"#).await;
    server.ended(&id).await;
    let events = server.events(&id).await;
    for event in &events {
        assert_eq!((&event["messageId"], &event["url"]), (&json!(id), &json!(receiver.url("/"))));
        assert_eq!((&event["method"], &event["maxRetries"]), (&json!("POST"), &json!(1)));
        assert_eq!((&event["header"], &event["timeout"]), (&json!({"B": ["2"]}), &json!(30_000)));
        assert_eq!((&event["label"], &event["labels"]), (&json!("l1"), &json!(["l1", "l2"])));
        assert_eq!((&event["retryDelayExpr"], &event["retryDelayExpression"]), (&json!("20"), &json!("20")));
        assert_eq!(base64_text(&event["body"]), br#"{"hello":1}"#);
        assert!(!event.to_string().contains("null"), "optional means absent: {event}");
    }
    let error = events.iter().find(|event| event["state"] == "ERROR").expect("an ERROR entry");
    assert_eq!(error["responseStatus"], 500);
    assert_eq!(base64_text(&error["responseBody"]), b"boom");
    assert_eq!(
        (&error["responseHeader"]["X-A"], &error["responseHeaders"]["X-A"]),
        (&json!(["1"]), &json!(["1"]))
    );
    assert!(error["error"].is_string() && events.last().expect("entries")["error"].is_string());
    let target = format!("/v2/events?messageId={id}&state=ERROR&trimBody=");
    for (trim, body, answer) in [("3", &b"{\"h"[..], &b"boo"[..]), ("-1", br#"{"hello":1}"#, b"boom")] {
        let event = &server.list(&format!("{target}{trim}"), "events").await[0];
        assert_eq!(base64_text(&event["body"]), body);
        assert_eq!(base64_text(&event["responseBody"]), answer);
    }
    let retry = events.iter().find(|event| event["state"] == "RETRY").expect("a RETRY entry");
    assert!(retry["nextDeliveryTime"].is_i64(), "{retry}");
}

async fn the_log_comes_in_pages(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
    for _ in 0..4 {
        let id = server.publish(&receiver.url("/"), &[], "x").await;
        server.ended(&id).await;
    }
    for order in ["earliestFirst", "latestFirst"] {
        let whole = server.get_json(&format!("/v2/events?order={order}")).await;
        assert_eq!(whole.get("cursor"), None, "one page holds all");
        let page = server.get_json(&format!("/v2/events?order={order}&count=5")).await;
        assert_eq!(page["events"].as_array().expect("an array").len(), 5);
        for count in [1, 5, 12] {
            let paged = server.list(&format!("/v2/events?order={order}&count={count}"), "events").await;
            assert_eq!(Value::from(paged), whole["events"], "{order} {count}");
        }
    }
    assert_eq!(server.get_json("/v2/logs").await["logs"], server.get_json("/v2/events").await["events"]);
    for cursor in ["nonsense", "1-2-msg%00", "1-2-msg%0a"] {
        server.get(&format!("/v2/events?cursor={cursor}")).await.error(400);
        server.get(&format!("/v2/dlq?cursor={cursor}")).await.error(400);
    }
    server.get("/v2/messages/msg_%00").await.error(404);
    server.get("/v2/events?messageId=msg_%00").await.error(400);
}

async fn the_log_is_filtered(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    let delivered = server.publish(&receiver.url("/a?x=1,2"), &[("Upstash-Label", "one")], "x").await;
    let failed = server
        .publish(&receiver.url("/fails"), &[("Upstash-Label", "two"), ("Upstash-Retries", "0")], "x")
        .await;
    server.ended(&delivered).await;
    server.ended(&failed).await;
    for (filter, expected) in [
        (format!("messageIds={delivered}"), vec![&delivered]),
        (format!("messageIds={delivered}&messageIds={failed}"), vec![&delivered, &failed]),
        (format!("messageIds={delivered},{failed}"), vec![&delivered, &failed]),
        ("state=DELIVERED".to_owned(), vec![&delivered]),
        ("state=FAILED".to_owned(), vec![&failed]),
        ("state=IN_PROGRESS".to_owned(), vec![&delivered, &failed]),
        ("state=CANCELLED".to_owned(), vec![]),
        ("fromDate=4000000000000".to_owned(), vec![]),
        ("toDate=4000000000000".to_owned(), vec![&delivered, &failed]),
    ] {
        let events = server.list(&format!("/v2/events?{filter}"), "events").await;
        let mut ids: Vec<_> =
            events.iter().map(|event| event["messageId"].as_str().expect("an id")).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut expected: Vec<_> = expected.iter().map(|id| id.as_str()).collect();
        expected.sort_unstable();
        assert_eq!(ids, expected, "{filter}");
    }
    // A misspelt filter must not select everything.
    server.get("/v2/events?labeel=x").await.error(400);
    server.get("/v2/events?state=NO_SUCH_STATE").await.error(400);
}
