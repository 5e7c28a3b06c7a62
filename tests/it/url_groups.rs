//! URL groups: keeping them, and publishing to them.

use serde_json::{Value, json};

use crate::support::http::Answer;
use crate::support::{Engine, Receiver, Reply, Server, Test};

engines! {
    a_group_lives_as_long_as_its_endpoints,
    an_endpoint_is_found_by_name_and_then_by_url,
    deleting_what_is_not_there_succeeds,
    a_publish_goes_to_every_endpoint,
    an_enqueue_goes_to_every_endpoint,
    a_group_in_a_batch_is_answered_by_an_array,
    all_options_hold_for_every_message,
    default_headers_yield_to_the_messages_own,
    repeats_are_found_for_each_endpoint,
    what_is_published_stays_as_it_is,
    unknown_groups_are_not_found,
    bad_groups_and_endpoints_are_refused,
    numbers_are_limited,
    what_a_group_multiplies_is_limited,
    callbacks_name_the_group,
}

async fn call(server: &Server, method: &str, target: &str, body: &Value) -> Answer {
    let call =
        server.call(method, &format!("/v2/topics/{target}")).header("Content-Type", "application/json");
    call.body(body.to_string()).send().await
}

async fn add(server: &Server, group: &str, endpoints: &Value) {
    call(server, "POST", &format!("{group}/endpoints"), &json!({"endpoints": endpoints})).await.json(200);
}

async fn remove(server: &Server, group: &str, endpoints: &Value) -> Answer {
    call(server, "DELETE", &format!("{group}/endpoints"), &json!({"endpoints": endpoints})).await
}

async fn endpoints(server: &Server, group: &str) -> Value {
    server.get_json(&format!("/v2/topics/{group}")).await["endpoints"].clone()
}

async fn publish(server: &Server, group: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    server.call("POST", &format!("/v2/publish/{group}")).headers(headers).body(body).send().await
}

/// The ids of an answer's messages.
fn ids(answer: &Value) -> Vec<String> {
    let items = answer.as_array().unwrap_or_else(|| panic!("no array: {answer}"));
    items.iter().map(|item| item["messageId"].as_str().expect("an id").to_owned()).collect()
}

async fn a_group_lives_as_long_as_its_endpoints(t: Test) {
    let server = t.server().await;
    assert_eq!(server.get_json("/v2/topics").await, json!([]));
    let first = json!({"name": "First endpoint", "url": "https://a.example/x?y=1"});
    add(&server, "my-group", &json!([first, {"url": "https://b.example"}])).await;
    let group = server.get_json("/v2/topics/my-group").await;
    let created = group["createdAt"].as_i64().expect("createdAt is an integer");
    assert_eq!(
        group,
        json!({
            "name": "my-group", "createdAt": created, "updatedAt": created,
            "endpoints": [first, {"url": "https://b.example"}],
        })
    );
    add(&server, "another", &json!([{"url": "https://c.example", "name": ""}])).await;
    let groups = server.get_json("/v2/Topics/").await;
    assert_eq!((&groups[0]["name"], &groups[1]), (&json!("another"), &group));
    assert_eq!(groups[0]["endpoints"], json!([{"url": "https://c.example"}]));

    // By name or by URL; what is not there is passed over.
    remove(&server, "my-group", &json!([{"url": "https://a.example/x?y=1"}, {"name": "nobody"}]))
        .await
        .json(200);
    assert_eq!(endpoints(&server, "my-group").await, json!([{"url": "https://b.example"}]));
    let updated = server.get_json("/v2/topics/my-group").await;
    assert_eq!(updated["createdAt"], created);
    assert!(updated["updatedAt"].as_i64().expect("an integer") > created, "{updated}");
    remove(&server, "my-group", &json!([{"url": "https://b.example"}])).await.json(200);
    assert_eq!(server.get("/v2/topics/my-group").await.error(404), "topic my-group not found");
    assert_eq!(
        remove(&server, "my-group", &json!([{"name": "x"}])).await.error(404),
        "topic my-group not found"
    );
    assert_eq!(server.get_json("/v2/topics").await.as_array().map(Vec::len), Some(1));
}

async fn an_endpoint_is_found_by_name_and_then_by_url(t: Test) {
    let server = t.server().await;
    add(&server, "g", &json!([{"name": "a", "url": "https://a.example"}, {"url": "https://b.example"}]))
        .await;
    let changes = json!([
        {"name": "a", "url": "https://c.example"},
        {"name": "b", "url": "https://b.example"},
        {"url": "https://c.example", "name": null},
        {"url": "https://d.example"},
    ]);
    add(&server, "g", &changes).await;
    let expected = json!([
        {"name": "a", "url": "https://c.example"},
        {"name": "b", "url": "https://b.example"},
        {"url": "https://d.example"},
    ]);
    assert_eq!(endpoints(&server, "g").await, expected);
    // A name goes before a URL when both are given.
    remove(&server, "g", &json!([{"name": "b", "url": "https://d.example"}])).await.json(200);
    assert_eq!(endpoints(&server, "g").await, json!([expected[0], expected[2]]));
}

async fn deleting_what_is_not_there_succeeds(t: Test) {
    let server = t.server().await;
    for _ in 0..2 {
        server.call("DELETE", "/v2/topics/g").send().await.json(200);
    }
    add(&server, "g", &json!([{"url": "https://a.example"}])).await;
    server.call("DELETE", "/v2/topics/g").send().await.json(200);
    server.get("/v2/topics/g").await.error(404);
    // None is not all.
    server.call("DELETE", "/v2/topics/").send().await.error(405);
}

async fn a_publish_goes_to_every_endpoint(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let first = receiver.url("/1?a=b//c");
    add(&server, "g", &json!([{"name": "First endpoint", "url": first}, {"url": receiver.url("/2")}])).await;
    let answer = publish(&server, "g", &[("Upstash-Forward-A", "1")], "hello").await.json(200);
    let ids = ids(&answer);
    let expected = json!([
        {"messageId": ids[0], "url": first},
        {"messageId": ids[1], "url": receiver.url("/2")},
    ]);
    assert_eq!(answer, expected);
    assert_ne!(ids[0], ids[1]);
    for (path, id, endpoint) in [("/1", &ids[0], Some("First endpoint")), ("/2", &ids[1], None)] {
        let request = receiver.next_on(path).await;
        assert_eq!(
            (request.message_id(), &request.body[..], request.header("a")),
            (id.as_str(), &b"hello"[..], Some("1"))
        );
        assert_eq!(request.header("upstash-topic-name"), Some("g"));
        assert_eq!(request.header("upstash-endpoint-name"), endpoint);
        let message = server.message(id).await;
        assert_eq!((&message["topicName"], &message["urlGroup"]), (&json!("g"), &json!("g")));
        assert_eq!(message.get("endpointName").and_then(Value::as_str), endpoint);
        assert_eq!(message["header"], json!({"A": ["1"]}));
        server.ended(id).await;
        assert!(server.events(id).await.iter().all(|event| event["topicName"] == "g"));
    }
    // One endpoint is an array too.
    remove(&server, "g", &json!([{"name": "First endpoint"}])).await.json(200);
    assert_eq!(
        publish(&server, "g?upstash-retries=0", &[], "").await.json(200).as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(receiver.next_on("/2").await.body, "");
}

async fn an_enqueue_goes_to_every_endpoint(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    add(&server, "g", &json!([{"url": receiver.url("/1")}, {"url": receiver.url("/2")}])).await;
    let answer = server.call("POST", "/v2/enqueue/q/g").body("x").send().await.json(200);
    for id in ids(&answer) {
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
        let message = server.message(&id).await;
        assert_eq!((&message["queueName"], &message["topicName"]), (&json!("q"), &json!("g")));
    }
    assert_eq!(receiver.requests().len(), 2);
}

async fn a_group_in_a_batch_is_answered_by_an_array(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    add(&server, "g", &json!([{"url": receiver.url("/1")}, {"url": receiver.url("/2")}])).await;
    let items = json!([
        {"destination": "g", "body": "a"},
        {"destination": receiver.url("/0"), "body": "b"},
        {"destination": "g", "body": "c", "queue": "q", "headers": {"Upstash-Deduplication-Id": "d"}},
        {"destination": "g", "body": "c", "headers": {"Upstash-Deduplication-Id": "d"}},
    ]);
    let answer = server.call("POST", "/v2/batch").body(items.to_string()).send().await.json(200);
    assert_eq!(answer.as_array().map(Vec::len), Some(4));
    assert_eq!(answer[1]["url"], receiver.url("/0"));
    for (index, body, queue) in [(0, "a", None), (2, "c", Some("q"))] {
        for (endpoint, id) in ids(&answer[index]).iter().enumerate() {
            assert_eq!(answer[index][endpoint]["url"], receiver.url(&format!("/{}", endpoint + 1)));
            let message = server.message(id).await;
            assert_eq!((&message["body"], &message["url"]), (&json!(body), &answer[index][endpoint]["url"]));
            assert_eq!(message.get("queueName").and_then(Value::as_str), queue);
        }
    }
    let repeats: Vec<Value> = answer[2]
        .as_array()
        .expect("an array")
        .iter()
        .cloned()
        .map(|mut item| {
            item["deduplicated"] = true.into();
            item
        })
        .collect();
    assert_eq!(answer[3], json!(repeats));
}

async fn all_options_hold_for_every_message(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    add(&server, "g", &json!([{"url": receiver.url("/1")}, {"url": receiver.url("/2")}])).await;
    let headers = [
        ("Upstash-Method", "PUT"),
        ("Upstash-Delay", "1h"),
        ("Upstash-Retries", "7"),
        ("Upstash-Label", "l"),
        ("Upstash-Redact-Fields", "body"),
        ("Content-Type", "text/plain"),
    ];
    let answer = publish(&server, "g", &headers, "x").await.json(200);
    for id in ids(&answer) {
        let message = server.message(&id).await;
        assert_eq!(
            (&message["method"], &message["maxRetries"], &message["label"]),
            (&json!("PUT"), &json!(7), &json!("l"))
        );
        assert_eq!(
            message["notBefore"].as_i64().zip(message["createdAt"].as_i64()).map(|(due, made)| due - made),
            Some(3_600_000)
        );
        assert_eq!(message["header"], json!({"Content-Type": ["text/plain"]}));
        assert!(message["body"].as_str().expect("a text").starts_with("REDACTED:"), "{message}");
    }
}

async fn default_headers_yield_to_the_messages_own(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = json!({"headers": {"x-tenant": "7", "X-Name": "J\u{f6}rg", "X-Multi": ["1", "2"], "content-type": "text/plain", "Host": "dropped"}});
    call(&server, "PATCH", "g", &headers).await.error(404);
    add(&server, "g", &json!([{"url": receiver.url("/")}])).await;
    call(&server, "PATCH", "g", &headers).await.json(200);
    let stored = json!({"X-Tenant": ["7"], "X-Name": ["J\u{f6}rg"], "X-Multi": ["1", "2"], "Content-Type": ["text/plain"]});
    assert_eq!(server.get_json("/v2/topics/g").await["headers"], stored);
    publish(&server, "g", &[], "x").await.json(200);
    let request = receiver.next_request().await;
    assert_eq!((request.header("x-tenant"), request.all("x-multi")), (Some("7"), vec!["1", "2"]));
    // JSON is text, which goes out as UTF-8.
    assert_eq!(request.bytes("x-name"), "J\u{f6}rg".as_bytes());
    assert_eq!(request.header("content-type"), Some("text/plain"));
    let own = [("Upstash-Forward-X-Multi", "own"), ("Content-Type", "application/json")];
    let answer = publish(&server, "g", &own, "{}").await.json(200);
    let request = receiver.next_request().await;
    assert_eq!((request.header("x-tenant"), request.all("x-multi")), (Some("7"), vec!["own"]));
    let message = server.message(&ids(&answer)[0]).await;
    let expected = json!({"X-Tenant": ["7"], "X-Name": ["J\u{f6}rg"], "X-Multi": ["own"], "Content-Type": ["application/json"]});
    assert_eq!(message["header"], expected);
    // Not of the group's are messages that go to its endpoint by themselves.
    server.publish(&receiver.url("/"), &[], "x").await;
    assert_eq!(receiver.next_request().await.header("x-tenant"), None);
    // Older clients leave out the word; what is set replaces what was.
    let bare = server.call("PATCH", "/v2/topics/g").body(r#"{"X-New":["1"]}"#);
    bare.send().await.json(200);
    assert_eq!(server.get_json("/v2/topics/g").await["headers"], json!({"X-New": ["1"]}));
    call(&server, "PATCH", "g", &json!({"headers": {}})).await.json(200);
    assert_eq!(server.get_json("/v2/topics/g").await.get("headers"), None);
    for bad in [
        json!({"headers": {"A": 1}}),
        json!({"headers": {"A b": "1"}}),
        json!({"headers": {"A": "1\r\nB: 2"}}),
        json!({"headers": "A: 1"}),
        json!(["A"]),
    ] {
        let answer = call(&server, "PATCH", "g", &bad).await;
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
        answer.error(400);
    }
    server.call("PATCH", "/v2/topics/g").send().await.error(400);
}

async fn repeats_are_found_for_each_endpoint(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    add(&server, "g", &json!([{"url": receiver.url("/1")}])).await;
    for headers in
        [[("Upstash-Deduplication-Id", "order 17")], [("Upstash-Content-Based-Deduplication", "true")]]
    {
        let first = publish(&server, "g", &headers, "x").await.json(200);
        let again = publish(&server, "g", &headers, "x").await.json(202);
        let repeat =
            json!({"messageId": first[0]["messageId"], "url": receiver.url("/1"), "deduplicated": true});
        assert_eq!(again, json!([repeat]));
        // One that joins later still gets it.
        add(&server, "g", &json!([{"url": receiver.url("/2")}])).await;
        let joined = publish(&server, "g", &headers, "x").await.json(200);
        assert_eq!((&joined[0], &joined[1]["url"]), (&repeat, &json!(receiver.url("/2"))));
        assert_eq!(joined[1].get("deduplicated"), None);
        publish(&server, "g", &headers, "x").await.json(202);
        remove(&server, "g", &json!([{"url": receiver.url("/2")}])).await.json(200);
        for id in ids(&joined) {
            server.ended(&id).await;
        }
    }
    let mut paths: Vec<_> = receiver.requests().into_iter().map(|request| request.target).collect();
    paths.sort();
    assert_eq!(paths, ["/1", "/1", "/2", "/2"]);
}

async fn what_is_published_stays_as_it_is(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    add(&server, "g", &json!([{"name": "n", "url": receiver.url("/old")}])).await;
    let answer = publish(&server, "g", &[("Upstash-Delay", "1s")], "x").await.json(200);
    add(&server, "g", &json!([{"name": "n", "url": receiver.url("/new")}])).await;
    server.call("DELETE", "/v2/topics/g").send().await.json(200);
    let request = receiver.next_request().await;
    assert_eq!((request.target.as_str(), request.message_id()), ("/old", ids(&answer)[0].as_str()));
    assert_eq!(request.header("upstash-topic-name"), Some("g"));
}

async fn unknown_groups_are_not_found(t: Test) {
    let server = t.server().await;
    assert_eq!(
        publish(&server, "no.such-group_1", &[], "x").await.error(404),
        "topic no.such-group_1 not found"
    );
    server.get("/v2/topics/no%20name").await.error(404);
    server.get("/v2/topics/a%00b").await.error(404);
    // Names are their exact letters.
    add(&server, "g", &json!([{"url": "http://127.0.0.1:9/"}])).await;
    assert_eq!(publish(&server, "G", &[], "x").await.error(404), "topic G not found");
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn bad_groups_and_endpoints_are_refused(t: Test) {
    let server = t.server().await;
    let good = json!({"url": "https://a.example"});
    let long = "g".repeat(257);
    for name in ["a%20b", "a%2Fb", "a:b", "%FF", long.as_str()] {
        let error = call(&server, "POST", &format!("{name}/endpoints"), &json!({"endpoints": [good]}))
            .await
            .error(400);
        assert!(error.starts_with("invalid URL group: "), "{name}: {error}");
    }
    for (bad, text) in [
        (json!({}), "a non-empty destination must be provided"),
        (json!({"url": "undefined/x"}), "invalid destination url: endpoint has invalid scheme"),
        (json!({"url": ""}), "a non-empty destination must be provided"),
        (json!({"name": "n"}), "a non-empty destination must be provided"),
        (json!({"url": "example.com"}), "invalid destination url: endpoint has invalid scheme"),
        (json!({"url": "other-group"}), "invalid destination url: endpoint has invalid scheme"),
        (json!({"url": "api/llm"}), "invalid destination url: endpoint has invalid scheme"),
        (json!({"url": "ftp://a.example"}), "invalid destination url: endpoint has invalid scheme"),
        (json!({"url": "https://"}), "invalid destination url: it has no host"),
        (
            json!({"url": "https://a.example/\r\n"}),
            "invalid destination url: it contains a control character",
        ),
        (json!({"url": "http://169.254.169.254/latest"}), "invalid destination url: "),
        (json!({"url": "https://a.example", "name": "a\nb"}), "invalid name \"a\\nb\": "),
        (json!({"url": "https://a.example", "name": "n".repeat(257)}), "invalid name "),
    ] {
        let answer = call(&server, "POST", "g/endpoints", &json!({"endpoints": [good, bad]})).await;
        let error = answer.error(400);
        assert!(error.starts_with(&format!("endpoint 1: {text}")), "{bad}: {error}");
    }
    for body in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"endpoints":[]}"#,
        r#"{"endpoints":{}}"#,
        r#"{"endpoints":[1]}"#,
        r#"{"endpoints":[{"url":1}]}"#,
    ] {
        for method in ["POST", "DELETE"] {
            let answer = server.call(method, "/v2/topics/g/endpoints").body(body).send().await;
            assert_eq!(answer.status, 400, "{method} {body}: {}", answer.text());
            answer.error(400);
        }
    }
    let error = remove(&server, "g", &json!([{"name": "n"}, {"name": "", "url": null}])).await.error(400);
    assert_eq!(error, "endpoint 1: a name or a url must be given");
    assert_eq!(server.get_json("/v2/topics").await, json!([]));
}

async fn numbers_are_limited(t: Test) {
    let settings = [("HOMING_MAX_URL_GROUPS", "2"), ("HOMING_MAX_ENDPOINTS_PER_GROUP", "3")];
    let server = t.server_with(&settings).await;
    let some = |count: usize| {
        let endpoints: Vec<Value> =
            (0..count).map(|number| json!({"url": format!("https://{number}.example")})).collect();
        json!({"endpoints": endpoints})
    };
    let error = call(&server, "POST", "a/endpoints", &some(4)).await.error(412);
    assert_eq!(error, "quota maxEndpointsPerGroup exceeded, current limit: 3");
    server.get("/v2/topics/a").await.error(404);
    call(&server, "POST", "a/endpoints", &some(3)).await.json(200);
    call(&server, "POST", "b/endpoints", &some(1)).await.json(200);
    let error = call(&server, "POST", "c/endpoints", &some(1)).await.error(412);
    assert_eq!(error, "quota maxUrlGroups exceeded, current limit: 2");
    call(&server, "POST", "b/endpoints", &some(3)).await.json(200);
    server.call("DELETE", "/v2/topics/a").send().await.json(200);
    call(&server, "POST", "c/endpoints", &some(1)).await.json(200);
}

async fn what_a_group_multiplies_is_limited(t: Test) {
    let settings = [("HOMING_MAX_MESSAGE_SIZE", "1KiB"), ("HOMING_MAX_BATCH_SIZE", "2KiB")];
    let server = t.server_with(&settings).await;
    let some: Vec<Value> =
        (0..3).map(|number| json!({"url": format!("http://127.0.0.1:9/{number}")})).collect();
    add(&server, "g", &json!(some)).await;
    let error = publish(&server, "g", &[("Upstash-Delay", "1h")], &"x".repeat(683)).await.error(413);
    assert_eq!(error, "what its messages hold together is larger than the limit of 2048 bytes");
    let items =
        json!([{"destination": "g", "body": "x".repeat(400)}, {"destination": "g", "body": "x".repeat(300)}]);
    let error = server.call("POST", "/v2/batch").body(items.to_string()).send().await.error(413);
    assert_eq!(error, "item 1: what its messages hold together is larger than the limit of 2048 bytes");
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
    let long = "x".repeat(600);
    let headers =
        [("Upstash-Callback", "http://127.0.0.1:9/"), ("Upstash-Callback-Forward-X", long.as_str())];
    publish(&server, "g", &headers, "x").await.error(413);
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
    publish(&server, "g", &[("Upstash-Delay", "1h")], &"x".repeat(300)).await.json(200);
}

async fn callbacks_name_the_group(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    add(&server, "g", &json!([{"name": "n", "url": receiver.url("/fails")}])).await;
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Upstash-Retries", "0"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Failure-Callback", failure.as_str()),
    ];
    let answer = publish(&server, "g", &headers, "x").await.json(200);
    for path in ["/callback", "/failure"] {
        let request = receiver.next_on(path).await;
        let body = request.json();
        assert_eq!((&body["topicName"], &body["endpointName"]), (&json!("g"), &json!("n")), "{path}: {body}");
        // The callback itself goes to no group.
        assert_eq!(request.header("upstash-topic-name"), None);
    }
    let letter = server.dead_letter(&ids(&answer)[0]).await;
    assert_eq!((&letter["topicName"], &letter["endpointName"]), (&json!("g"), &json!("n")));
    // A retry goes where the message went, whatever has become of the group.
    server.call("DELETE", "/v2/topics/g").send().await.json(200);
    receiver.script("/fails", [Reply::ok()]);
    let dlq_id = letter["dlqId"].as_str().expect("an id");
    let retried = server.call("POST", &format!("/v2/dlq/retry/{dlq_id}")).send().await.json(201);
    let id = retried["messageId"].as_str().expect("an id");
    server.ended(id).await;
    assert_eq!(server.message(id).await["topicName"], "g");
}

/// What one node has answered, the next request to another one knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_known_to_all_nodes_at_once() {
    Test::run(Engine::Postgres, async |t| {
        let names = [("HOMING_NODE_NAME", "a"), ("HOMING_NODE_NAME", "b")];
        let [a, b] = [t.server_with(&names[..1]).await, t.server_with(&names[1..]).await];
        let receiver = Receiver::start().await;
        for round in 0..20 {
            let path = format!("/{round}");
            add(&a, "g", &json!([{"name": "n", "url": receiver.url(&path)}])).await;
            let answer = publish(&b, "g", &[], "x").await.json(200);
            assert_eq!(answer[0]["url"], receiver.url(&path));
            receiver.next_on(&path).await;
        }
        b.call("DELETE", "/v2/topics/g").send().await.json(200);
        publish(&a, "g", &[], "x").await.error(404);
    })
    .await;
}
