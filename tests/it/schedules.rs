//! Schedules: what the API shows of them, and their runs.
//!
//! A run is not waited for: the server is stopped, the slot is moved into the past in the database, and the server catches
//! up at its start. One test lets a slot come by the clock.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Engine, Receiver, Reply, Server, Test, eventually, hex, within};

engines! {
    a_schedule_shows_all_that_was_set,
    a_plain_schedule_shows_only_what_it_has,
    a_schedule_is_replaced_by_its_id,
    publish_with_a_cron_makes_a_schedule,
    a_pause_keeps_the_slot_and_a_resume_moves_on,
    a_deleted_schedule_is_gone,
    bad_schedules_are_refused,
    a_quota_limits_schedules,
    hidden_parts_of_a_schedule_are_not_shown,
    a_long_list_is_complete,
    slots_missed_while_down_are_run_once,
    a_paused_slot_passes,
    messages_of_a_run_have_all_that_was_set,
    a_run_shows_what_became_of_its_messages,
    a_run_that_can_not_publish_tells_why,
    a_run_that_may_not_make_its_queue_tells_why,
}

/// Far enough for no test to see its slot.
const YEARLY: &str = "0 0 1 1 *";

/// Three of its slots, in milliseconds.
const LONG_AGO: i64 = 3 * 365 * 86_400_000;

/// Creates a schedule and returns its id.
async fn create(server: &Server, destination: &str, headers: &[(&str, &str)], body: &str) -> String {
    let call = server.call("POST", &format!("/v2/schedules/{destination}")).headers(headers).body(body);
    let json = call.send().await.json(200);
    json["scheduleId"].as_str().unwrap_or_else(|| panic!("no scheduleId in {json}")).to_owned()
}

async fn get(server: &Server, id: &str) -> Value {
    server.get_json(&format!("/v2/schedules/{id}")).await
}

fn time(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("no integer: {value}"))
}

/// Changes the database behind the server's back.
async fn execute(t: &Test, sql: &str) {
    assert!(t.execute(sql).await > 0, "nothing was changed");
}

/// Stops the server, lets slots have passed three years ago, and starts it again. `which` is a condition in SQL.
async fn let_slots_pass(t: &Test, server: &Server, which: &str) {
    assert!(server.terminate().await.success());
    execute(t, &format!("UPDATE schedules SET next_at = created_at - {LONG_AGO} WHERE {which}")).await;
    server.restart().await;
}

/// The schedule after its first run.
async fn run_of(server: &Server, id: &str) -> Value {
    eventually(&format!("{id} is run"), async || {
        let schedule = get(server, id).await;
        schedule.get("lastScheduleTime").is_some().then_some(schedule)
    })
    .await
}

/// The ids and states of the last run's messages.
fn states(schedule: &Value) -> Vec<(String, String)> {
    let states = schedule["lastScheduleStates"].as_object().unwrap_or_else(|| panic!("{schedule}"));
    states.iter().map(|(id, state)| (id.clone(), state.as_str().unwrap().to_owned())).collect()
}

async fn a_schedule_shows_all_that_was_set(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let (callback, failure) = (receiver.url("/callback"), receiver.url("/failure"));
    let headers = [
        ("Content-Type", "application/json"),
        ("Upstash-Cron", "  CRON_TZ=Europe/Berlin 0  4 * * MON-FRI "),
        ("Upstash-Schedule-Id", "my.schedule_1-A"),
        ("Upstash-Method", "put"),
        ("Upstash-Forward-X-Tenant", "7"),
        ("Upstash-Delay", "1m30s"),
        ("Upstash-Timeout", "30s"),
        ("Upstash-Retries", "5"),
        ("Upstash-Retry-Delay", "1000*(1+retried)"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Forward-A", "1"),
        ("Upstash-Failure-Callback", failure.as_str()),
        ("Upstash-Failure-Callback-Forward-B", "2"),
        ("Upstash-Label", "l1, l2"),
        ("Upstash-Queue-Name", "q"),
        ("Upstash-Flow-Control-Key", "k/1"),
        ("Upstash-Flow-Control-Value", "parallelism=2, period=1d, rate=3"),
        // These mean nothing here.
        ("Upstash-Not-Before", "99999999999"),
        ("Upstash-Deduplication-Id", "d"),
    ];
    let url = receiver.url("/x?y=1");
    assert_eq!(create(&server, &url, &headers, r#"{"hello":1}"#).await, "my.schedule_1-A");
    // Go's spelling.
    let mut schedule = server.get_json("/v2/Schedules/my.schedule_1-A").await;
    assert_eq!(server.get_json("/v2/schedules").await, json!([schedule]));
    let (created, next) = (time(&schedule["createdAt"]), time(&schedule["nextScheduleTime"]));
    assert!(next > created && next % 3_600_000 == 0, "{schedule}");
    for time in ["createdAt", "nextScheduleTime"] {
        schedule.as_object_mut().unwrap().remove(time);
    }
    let expected = json!({
        "scheduleId": "my.schedule_1-A", "cron": "CRON_TZ=Europe/Berlin 0  4 * * MON-FRI",
        "destination": url, "method": "PUT", "retries": 5, "isPaused": false,
        "header": {"Content-Type": ["application/json"], "X-Tenant": ["7"]}, "body": r#"{"hello":1}"#,
        "delay": 90, "timeout": 30, "retryDelayExpression": "1000*(1+retried)",
        "callback": callback, "callbackHeader": {"A": ["1"]},
        "failureCallback": failure, "failureCallbackHeader": {"B": ["2"]},
        "label": "l1", "labels": ["l1", "l2"], "queueName": "q",
        "flowControlKey": "k/1", "parallelism": 2, "rate": 3, "period": 86400,
        "callerIP": "127.0.0.1", "callerIp": "127.0.0.1",
    });
    assert_eq!(schedule, expected);
}

async fn a_plain_schedule_shows_only_what_it_has(t: Test) {
    let server = t.server().await;
    let id = create(&server, "https://example.com", &[("Upstash-Cron", YEARLY)], "").await;
    assert!(id.starts_with("scd_") && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
    let schedule = get(&server, &id).await;
    assert!(!schedule.to_string().contains("null"), "optional means absent: {schedule}");
    let keys: BTreeSet<&str> = schedule.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "callerIP",
        "callerIp",
        "createdAt",
        "cron",
        "destination",
        "isPaused",
        "method",
        "nextScheduleTime",
        "retries",
        "scheduleId",
    ];
    assert_eq!(keys, expected.into());
    assert_eq!((&schedule["method"], &schedule["retries"]), (&json!("POST"), &json!(3)));
    // A period that nobody named is shown all the same.
    let headers = [
        ("Upstash-Cron", YEARLY),
        ("Upstash-Flow-Control-Key", "k"),
        ("Upstash-Flow-Control-Value", "rate=1"),
    ];
    let id = create(&server, "https://example.com", &headers, "").await;
    let schedule = get(&server, &id).await;
    assert_eq!((&schedule["period"], schedule.get("parallelism")), (&json!(1), None));
}

async fn a_schedule_is_replaced_by_its_id(t: Test) {
    let server = t.server().await;
    let first = [
        ("Upstash-Cron", "0 * * * *"),
        ("Upstash-Schedule-Id", "s"),
        ("Upstash-Method", "DELETE"),
        ("Upstash-Retries", "0"),
        ("Upstash-Delay", "5s"),
        ("Upstash-Label", "l"),
        ("Content-Type", "text/plain"),
    ];
    create(&server, "https://example.com/a", &first, "body").await;
    server.call("PATCH", "/v2/schedules/s/pause").send().await.json(200);
    let second = [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", "s")];
    assert_eq!(create(&server, "https://example.com/b", &second, "").await, "s");
    let replaced = get(&server, "s").await;
    assert_eq!(server.get_json("/v2/schedules").await, json!([replaced]));
    for absent in ["body", "header", "delay", "label", "labels"] {
        assert_eq!(replaced.get(absent), None, "{absent}");
    }
    assert_eq!(replaced["cron"], YEARLY);
    assert_eq!(replaced["destination"], "https://example.com/b");
    assert_eq!((&replaced["method"], &replaced["retries"]), (&json!("POST"), &json!(3)));
    assert_eq!(replaced["isPaused"], false);
    // Names are told apart by their case.
    server.get("/v2/schedules/S").await.error(404);
}

async fn publish_with_a_cron_makes_a_schedule(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let url = receiver.url("/x?y=1");
    let call = server.call("POST", &format!("/v2/publish/{url}")).header("Upstash-Cron", YEARLY);
    let answer = call.header("Upstash-Delay", "1h").body("hi").send().await.json(200);
    let id = answer["scheduleId"].as_str().unwrap();
    assert_eq!(answer, json!({ "scheduleId": id }));
    let schedule = get(&server, id).await;
    assert_eq!((&schedule["destination"], &schedule["body"]), (&json!(url), &json!("hi")));
    assert_eq!(schedule["delay"], 3600);
    // In the query, as webhook senders have to; nothing of it is part of the URL.
    let target = format!("/v2/schedules/{url}&upstash-cron=@yearly&upstash-schedule-id=s");
    server.call("POST", &target).send().await.json(200);
    assert_eq!(get(&server, "s").await["destination"], json!(url));
    assert_eq!(server.get_json("/v2/events").await, json!({ "events": [] }), "nothing was published");
}

async fn a_pause_keeps_the_slot_and_a_resume_moves_on(t: Test) {
    let server = t.server().await;
    let headers = [("Upstash-Cron", "*/5 * * * *"), ("Upstash-Schedule-Id", "http-job")];
    create(&server, "https://example.com", &headers, "").await;
    let before = get(&server, "http-job").await;
    for method in ["PATCH", "POST", "PATCH"] {
        assert_eq!(server.call(method, "/v2/schedules/http-job/pause").send().await.json(200), json!({}));
        let paused = get(&server, "http-job").await;
        assert_eq!(paused["isPaused"], true);
        assert_eq!(paused["nextScheduleTime"], before["nextScheduleTime"]);
    }
    execute(&t, "UPDATE schedules SET next_at = 300000").await;
    for method in ["POST", "PATCH"] {
        assert_eq!(server.call(method, "/v2/Schedules/http-job/Resume").send().await.json(200), json!({}));
        let resumed = get(&server, "http-job").await;
        assert_eq!(resumed["isPaused"], false);
        let next = time(&resumed["nextScheduleTime"]);
        assert!(next > time(&before["createdAt"]) && next % 300_000 == 0, "{resumed}");
        assert_eq!(resumed.get("lastScheduleTime"), None, "the slot that passed was not run");
    }
    for action in ["pause", "resume"] {
        let text = server.call("PATCH", &format!("/v2/schedules/nobody/{action}")).send().await.error(404);
        assert_eq!(text, "schedule nobody not found");
    }
}

async fn a_deleted_schedule_is_gone(t: Test) {
    let server = t.server().await;
    assert_eq!(server.get_json("/v2/schedules").await, json!([]));
    let id = create(&server, "https://example.com", &[("Upstash-Cron", YEARLY)], "").await;
    for _ in 0..2 {
        server.call("DELETE", &format!("/v2/schedules/{id}")).send().await.json(200);
        let text = server.get(&format!("/v2/schedules/{id}")).await.error(404);
        assert_eq!(text, format!("schedule {id} not found"));
        assert_eq!(server.get_json("/v2/schedules/").await, json!([]));
    }
}

async fn bad_schedules_are_refused(t: Test) {
    let server = t.server_with(&[("HOMING_MAX_DELAY", "1h"), ("HOMING_MAX_RETRIES", "5")]).await;
    let url = "https://example.com";
    let cron = ("Upstash-Cron", YEARLY);
    let invalid_cron = "invalid header Upstash-Cron: ";
    for (destination, headers, status, start) in [
        (url, vec![], 400, "the header Upstash-Cron is required"),
        (url, vec![("Upstash-Cron", "0 0 * * * *")], 400, &*format!("{invalid_cron}it has six fields")),
        (url, vec![("Upstash-Cron", "0 24 * * *")], 400, &format!("{invalid_cron}hour: \"24\"")),
        (url, vec![("Upstash-Cron", "0 0 30 2 *")], 400, &format!("{invalid_cron}it never fires")),
        (
            url,
            vec![("Upstash-Cron", "TZ=Nowhere 0 0 * * *")],
            400,
            &format!("{invalid_cron}unknown time zone"),
        ),
        (url, vec![cron, ("Upstash-Schedule-Id", "a b")], 400, "invalid header upstash-schedule-id: \"a b\""),
        (url, vec![cron, ("Upstash-Queue-Name", "a/b")], 400, "invalid header upstash-queue-name: \"a/b\""),
        (url, vec![cron, ("Upstash-Flow-Control-Key", "k")], 400, "invalid header upstash-flow-control-key"),
        (url, vec![cron, ("Upstash-Delay", "2h")], 412, "quota maxDelay exceeded, current limit: 3600"),
        (url, vec![cron, ("Upstash-Retries", "6")], 412, "quota maxRetries exceeded, current limit: 5"),
        ("", vec![cron], 400, "a non-empty destination must be provided"),
        ("ftp://example.com", vec![cron], 400, "invalid destination url: endpoint has invalid scheme"),
        ("http://169.254.169.254/", vec![cron], 400, "invalid destination url: "),
        (url, vec![cron, ("Upstash-Callback", "http://169.254.169.254/")], 400, "invalid callback url: "),
        ("no-such-group", vec![cron], 404, "topic no-such-group not found"),
        ("api/llm", vec![cron], 400, "api/llm is not available"),
    ] {
        let call = server.call("POST", &format!("/v2/schedules/{destination}")).headers(&headers);
        let text = call.body("x").send().await.error(status);
        assert!(text.to_lowercase().starts_with(&start.to_lowercase()), "{destination} {headers:?}: {text}");
    }
    assert_eq!(server.get_json("/v2/schedules").await, json!([]));
    assert_eq!(server.call("PUT", "/v2/schedules").send().await.status, 405);
}

async fn a_quota_limits_schedules(t: Test) {
    let server = t.server_with(&[("HOMING_MAX_SCHEDULES", "1")]).await;
    let named = |id| [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", id)];
    create(&server, "https://example.com/1", &named("s"), "").await;
    let call = server.call("POST", "/v2/schedules/https://example.com").headers(&named("t"));
    assert_eq!(call.send().await.error(412), "quota maxSchedules exceeded, current limit: 1");
    create(&server, "https://example.com/2", &named("s"), "").await;
    server.call("DELETE", "/v2/schedules/s").send().await.json(200);
    create(&server, "https://example.com/3", &named("t"), "").await;
}

async fn hidden_parts_of_a_schedule_are_not_shown(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Upstash-Cron", YEARLY),
        ("Upstash-Schedule-Id", "s"),
        ("Upstash-Redact-Fields", "body, header[x-secret]"),
        ("Upstash-Forward-X-Secret", "sesame"),
        ("Upstash-Forward-X-Plain", "plain"),
        ("Upstash-Callback", "https://example.com"),
        ("Upstash-Callback-Forward-X-Secret", "sesame"),
    ];
    create(&server, &receiver.url("/"), &headers, "private").await;
    let marker = |text: &str| format!("REDACTED:{}", hex(&Sha256::digest(text)));
    let_slots_pass(&t, &server, "id = 's'").await;
    let schedule = run_of(&server, "s").await;
    let (id, _) = states(&schedule).remove(0);
    for shown in [&schedule, &server.get_json("/v2/schedules").await[0], &server.message(&id).await] {
        assert_eq!(shown["body"], marker("private"));
        assert_eq!(shown["header"], json!({"X-Secret": [marker("sesame")], "X-Plain": ["plain"]}));
        assert_eq!(shown["callbackHeader"], json!({"X-Secret": [marker("sesame")]}));
        assert!(!shown.to_string().contains("sesame"), "{shown}");
    }
    // What is delivered is not hidden.
    let request = receiver.next_request().await;
    assert_eq!((&request.body[..], request.header("x-secret")), (&b"private"[..], Some("sesame")));
}

/// More schedules than are read at once.
async fn a_long_list_is_complete(t: Test) {
    let server = t.server().await;
    let mut ids = BTreeSet::new();
    for number in 0..103 {
        let body = "x".repeat(if number == 7 { 1 << 20 } else { 0 });
        ids.insert(create(&server, "https://example.com", &[("Upstash-Cron", YEARLY)], &body).await);
    }
    let list = server.get_json("/v2/schedules").await;
    let list = list.as_array().unwrap();
    let found: BTreeSet<String> =
        list.iter().map(|schedule| schedule["scheduleId"].as_str().unwrap().to_owned()).collect();
    assert_eq!((list.len(), found), (103, ids));
}

async fn slots_missed_while_down_are_run_once(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [
        ("Upstash-Cron", YEARLY),
        ("Upstash-Schedule-Id", "s"),
        ("Upstash-Forward-A", "1"),
        // Schedules know no repeats.
        ("Upstash-Deduplication-Id", "d"),
    ];
    create(&server, &receiver.url("/x?y=1"), &headers, "hi").await;
    let before = get(&server, "s").await;
    let_slots_pass(&t, &server, "id = 's'").await;
    let request = receiver.next_request().await;
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/x?y=1"));
    assert_eq!((&request.body[..], request.header("a")), (&b"hi"[..], Some("1")));
    assert_eq!(request.header("upstash-schedule-id"), Some("s"));
    let id = request.message_id();
    assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    let schedule = get(&server, "s").await;
    assert_eq!(states(&schedule), [(id.to_owned(), "SUCCESS".to_owned())]);
    assert_eq!(schedule["nextScheduleTime"], before["nextScheduleTime"], "the first slot from now on");
    assert_eq!(schedule["createdAt"], before["createdAt"]);
    assert_eq!(time(&before["createdAt"]) - time(&schedule["lastScheduleTime"]), LONG_AGO);
    let message = server.message(id).await;
    assert_eq!(message["scheduleId"], "s");
    assert!(time(&message["createdAt"]) > time(&before["createdAt"]), "made when it was run");
    assert_eq!(receiver.requests().len(), 1, "three slots, one run");
    // Deduplication is for publishes.
    let_slots_pass(&t, &server, "id = 's'").await;
    assert_ne!(receiver.next_request().await.message_id(), id);
}

async fn a_paused_slot_passes(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for id in ["paused", "running"] {
        let headers = [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", id)];
        create(&server, &receiver.url(&format!("/{id}")), &headers, "").await;
    }
    let before = get(&server, "paused").await;
    server.call("PATCH", "/v2/schedules/paused/pause").send().await.json(200);
    let_slots_pass(&t, &server, "paused OR NOT paused").await;
    receiver.next_on("/running").await;
    let stale = get(&server, "paused").await;
    assert!(time(&stale["nextScheduleTime"]) < time(&stale["createdAt"]));
    server.call("PATCH", "/v2/schedules/paused/resume").send().await.json(200);
    // Whatever were to be run by now would be run before this.
    let headers = [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", "last")];
    create(&server, &receiver.url("/last"), &headers, "").await;
    let_slots_pass(&t, &server, "id = 'last'").await;
    receiver.next_on("/last").await;
    let resumed = get(&server, "paused").await;
    assert_eq!(resumed["nextScheduleTime"], before["nextScheduleTime"]);
    assert_eq!(resumed.get("lastScheduleTime"), None);
    assert_eq!(receiver.requests_on("/paused").len(), 0);
}

async fn messages_of_a_run_have_all_that_was_set(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callback = receiver.url("/callback");
    let headers = [
        ("Upstash-Cron", YEARLY),
        ("Upstash-Schedule-Id", "s"),
        ("Upstash-Method", "PATCH"),
        ("Upstash-Delay", "10d"),
        ("Upstash-Retries", "7"),
        ("Upstash-Label", "l"),
        ("Upstash-Queue-Name", "q"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Flow-Control-Key", "k"),
        ("Upstash-Flow-Control-Value", "parallelism=1"),
    ];
    create(&server, &receiver.url("/"), &headers, "hi").await;
    let_slots_pass(&t, &server, "id = 's'").await;
    let schedule = run_of(&server, "s").await;
    let [(id, state)] = &states(&schedule)[..] else { panic!("one message: {schedule}") };
    assert_eq!(state, "IN_PROGRESS");
    let mut message = server.message(id).await;
    assert_eq!(time(&message["notBefore"]) - time(&message["createdAt"]), 10 * 86_400_000);
    for time in ["createdAt", "notBefore"] {
        message.as_object_mut().unwrap().remove(time);
    }
    let expected = json!({
        "messageId": id, "url": receiver.url("/"), "method": "PATCH", "header": {}, "body": "hi",
        "maxRetries": 7, "label": "l", "labels": ["l"], "queueName": "q", "scheduleId": "s",
        "callback": callback, "flowControlKey": "k", "parallelism": 1, "period": 1,
        "callerIP": "127.0.0.1", "callerIp": "127.0.0.1",
    });
    assert_eq!(message, expected);
    // What was made stays when the schedule goes.
    server.call("DELETE", "/v2/schedules/s").send().await.json(200);
    assert_eq!(server.states(id).await, ["CREATED"]);
}

async fn a_run_shows_what_became_of_its_messages(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/fails", [Reply::status(500)]);
    for (id, path, delay) in [("delivered", "/", "0s"), ("failed", "/fails", "0s"), ("cancelled", "/", "1h")]
    {
        let headers = [
            ("Upstash-Cron", YEARLY),
            ("Upstash-Schedule-Id", id),
            ("Upstash-Retries", "0"),
            ("Upstash-Delay", delay),
        ];
        create(&server, &receiver.url(path), &headers, "").await;
    }
    let_slots_pass(&t, &server, "NOT paused").await;
    let run = run_of(&server, "cancelled").await;
    let (message, _) = states(&run).remove(0);
    server.call("DELETE", &format!("/v2/messages/{message}")).send().await.json(200);
    for (id, expected) in [("delivered", "SUCCESS"), ("failed", "FAIL"), ("cancelled", "FAIL")] {
        eventually(&format!("{id} shows {expected}"), async || {
            let schedule = run_of(&server, id).await;
            let states = states(&schedule);
            (states.len() == 1 && states[0].1 == expected).then_some(())
        })
        .await;
    }
    let list = server.get_json("/v2/schedules").await;
    let shown: Vec<_> =
        list.as_array().unwrap().iter().map(|schedule| states(schedule).remove(0).1).collect();
    assert_eq!(shown, ["FAIL", "SUCCESS", "FAIL"], "by id: {list}");
}

async fn a_run_that_can_not_publish_tells_why(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let headers = [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", "s")];
    create(&server, &receiver.url("/"), &headers, "").await;
    let before = get(&server, "s").await;
    // As when a group that it went to has been deleted.
    execute(&t, "UPDATE schedules SET destination = 'gone'").await;
    let_slots_pass(&t, &server, "id = 's'").await;
    let schedule = run_of(&server, "s").await;
    assert_eq!(schedule["error"], "topic gone not found");
    assert_eq!((&schedule["destination"], &schedule["lastScheduleStates"]), (&json!("gone"), &json!({})));
    assert_eq!(schedule["nextScheduleTime"], before["nextScheduleTime"]);
    // The next run that succeeds leaves no error.
    execute(&t, &format!("UPDATE schedules SET destination = '{}'", receiver.url("/"))).await;
    let_slots_pass(&t, &server, "id = 's'").await;
    receiver.next_request().await;
    let schedule = run_of(&server, "s").await;
    assert_eq!((schedule.get("error"), states(&schedule).len()), (None, 1));
}

async fn a_run_that_may_not_make_its_queue_tells_why(t: Test) {
    let (server, receiver) = (t.server_with(&[("HOMING_MAX_QUEUES", "1")]).await, Receiver::start().await);
    let headers = [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", "s"), ("Upstash-Queue-Name", "its-own")];
    create(&server, &receiver.url("/"), &headers, "").await;
    let other = server.publish(&receiver.url("/other"), &[("Upstash-Queue-Name", "other")], "").await;
    server.ended(&other).await;
    let_slots_pass(&t, &server, "id = 's'").await;
    let schedule = run_of(&server, "s").await;
    assert_eq!(schedule["error"], "quota maxQueues exceeded, current limit: 1");
    assert_eq!(schedule["lastScheduleStates"], json!({}));
    server.call("DELETE", "/v2/queues/other").send().await.json(200);
    let_slots_pass(&t, &server, "id = 's'").await;
    receiver.next_on("/").await;
    assert_eq!(run_of(&server, "s").await.get("error"), None);
}

/// On SQLite nothing but its timer makes the server look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_comes_by_the_clock() {
    Test::run(Engine::Sqlite, async |t| {
        let (server, receiver) = (t.server().await, Receiver::start().await);
        let id = create(&server, &receiver.url("/"), &[("Upstash-Cron", "* * * * *")], "tick").await;
        let slot = time(&get(&server, &id).await["nextScheduleTime"]);
        let message = within(Duration::from_secs(80), "the slot comes", async || {
            receiver.requests().first().map(|request| request.message_id().to_owned())
        })
        .await;
        let made = time(&server.message(&message).await["createdAt"]);
        assert!((slot..slot + 20_000).contains(&made), "for the slot {slot} at {made}");
        let schedule = get(&server, &id).await;
        let (last, next) = (time(&schedule["lastScheduleTime"]), time(&schedule["nextScheduleTime"]));
        assert!(last >= slot && next == last + 60_000, "{schedule}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_on_one_postgres_run_each_slot_once() {
    const SCHEDULES: usize = 200;
    Test::run(Engine::Postgres, async |t| {
        let names = ["a", "b", "c"];
        let nodes = names.map(|name| t.unstarted_server(&[("HOMING_NODE_NAME", name)]));
        nodes[0].start().await;
        let receiver = Receiver::start().await;
        for number in 0..SCHEDULES {
            let id = format!("s{number}");
            let headers = [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", id.as_str())];
            create(&nodes[0], &receiver.url("/"), &headers, "").await;
        }
        // Some come when all three are there, one after the other, the others have come before.
        assert!(nodes[0].terminate().await.success());
        let before = "UPDATE schedules SET next_at = created_at - 1000 WHERE id LIKE '%1'";
        let soon = "UPDATE schedules SET next_at = FLOOR(EXTRACT(EPOCH FROM now()) * 1000) + 3000 + \
                    10 * LENGTH(destination) + 20 * LENGTH(id) WHERE id NOT LIKE '%1'";
        execute(&t, before).await;
        execute(&t, soon).await;
        tokio::join!(nodes[0].start(), nodes[1].start(), nodes[2].start());
        let runs = eventually("all are run and delivered", async || {
            let list = nodes[1].get_json("/v2/schedules").await;
            let runs: Vec<_> = list
                .as_array()?
                .iter()
                .filter(|s| s.get("lastScheduleTime").is_some())
                .flat_map(states)
                .collect();
            let done = runs.iter().filter(|(_, state)| state == "SUCCESS").count();
            (done == SCHEDULES).then_some(runs)
        })
        .await;
        let made: HashSet<String> = runs.into_iter().map(|(id, _)| id).collect();
        let requests = receiver.requests();
        let ran: BTreeSet<&str> = requests.iter().filter_map(|r| r.header("upstash-schedule-id")).collect();
        assert_eq!((requests.len(), ran.len(), made.len()), (SCHEDULES, SCHEDULES, SCHEDULES));
        assert!(requests.iter().all(|request| made.contains(request.message_id())));
    })
    .await;
}
