//! Workflow runs that have failed: their dead letters, resuming and restarting, and that the API of plain messages leaves
//! them alone.

use serde_json::{Value, json};

use crate::support::flow::{Flow, failing, handled, ran, words};
use crate::support::{Gate, Reply, Test, base64_text};

engines! {
    a_failed_run_leaves_a_dead_letter,
    the_failure_function_is_called_again,
    a_failed_run_is_resumed,
    a_failed_run_is_restarted_with_other_settings,
    many_runs_are_resumed,
    plain_messages_and_runs_are_kept_apart,
}

async fn a_failed_run_leaves_a_dead_letter(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.receiver.script("/flow", [handled(), Reply::status(500).header("X-A", "1").body("kaput")]);
    flow.receiver.script("/failure", [Reply::ok().body(r#"{"result":"told"}"#)]);
    flow.trigger("wfr_a", failing(&flow, "l"), "payload").await;
    flow.next_log().await;
    flow.steps("wfr_a", [ran(1, "1")]).await;
    let is_told = |run: &Value| run["failureFunction"]["state"] == "CALLBACK_SUCCESS";
    let run = flow.logged("wfr_a", "told", is_told).await;
    assert_eq!(
        words(&run),
        ["sequential: init STEP_SUCCESS", "sequential: s1 STEP_SUCCESS", "next: - STEP_FAILED"]
    );
    let error = &run["steps"][2]["steps"][0]["errors"][0];
    assert_eq!((&error["status"], &error["body"]), (&json!(500), &json!("kaput")));
    let told = &run["failureFunction"];
    assert_eq!((&told["failStatus"], &told["failResponse"]), (&json!(500), &json!("kaput")));
    assert_eq!(
        (&told["responseStatus"], &told["responseBody"]),
        (&json!(200), &json!("{\"result\":\"told\"}"))
    );
    assert_eq!(told["failHeaders"]["X-A"], json!(["1"]));

    let letter = flow.letter("wfr_a").await;
    assert_eq!((&letter["dlqId"], &letter["dlqId"]), (&run["dlqId"], &told["dlqId"]));
    assert_eq!((&letter["body"], &letter["responseBody"]), (&json!("payload"), &json!("kaput")));
    assert_eq!(letter["header"]["Upstash-Workflow-Runid"], json!(["wfr_a"]));
    assert_eq!((&letter["workflowRunId"], &letter["label"]), (&json!("wfr_a"), &json!("l")));
    assert_eq!(letter["workflowCreatedAt"], run["workflowRunCreatedAt"]);
    assert_eq!(letter["failureCallback"], flow.receiver.url("/failure"));
    assert_eq!(letter["failureFunctionState"], "CALLBACK_SUCCESS");
    assert_eq!(letter["failureCallbackInfo"]["responseBody"], "{\"result\":\"told\"}");
    let id = letter["dlqId"].as_str().unwrap();
    assert_eq!(server.get_json(&format!("/v2/workflows/dlq/{id}")).await, letter);
    let count =
        async |query: &str| server.list(&format!("/v2/workflows/dlq?{query}"), "messages").await.len();
    for (query, expected) in [
        ("label=l", 1),
        ("label=x", 0),
        ("failureFunctionState=CALLBACK_SUCCESS", 1),
        ("failureFunctionState=CALLBACK_FAIL,CALLBACK_INPROGRESS", 0),
        ("responseStatus=500", 1),
        ("responseStatus=404", 0),
        ("fromDate=1", 1),
    ] {
        assert_eq!(count(query).await, expected, "{query}");
    }
    assert_eq!(server.list("/v2/dlq?source=workflow", "messages").await, std::slice::from_ref(&letter));
    let target = format!("/v2/workflows/dlq/{id}");
    assert_eq!(server.call("DELETE", &target).send().await.json(200), json!({"deleted": 1}));
    server.call("DELETE", &target).send().await.error(404);
    let run = flow.in_state("wfr_a", "RUN_FAILED").await;
    assert_eq!(run.get("dlqId"), None, "it is gone");
}

async fn the_failure_function_is_called_again(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    let gate = Gate::new();
    flow.receiver.script("/flow", [Reply::status(500).body("kaput")]);
    flow.receiver.script("/failure", [Reply::status(503), Reply::ok().behind(&gate), Reply::ok()]);
    flow.trigger("wfr_a", failing(&flow, "l"), "payload").await;
    let in_state = |state: &'static str| move |run: &Value| run["failureFunction"]["state"] == state;
    flow.logged("wfr_a", "it failed", in_state("CALLBACK_FAIL")).await;
    let letter = flow.letter("wfr_a").await;
    assert_eq!(letter["failureCallbackInfo"]["responseStatus"], 503);
    let target = format!("/v2/workflows/dlq/callback/{}", letter["dlqId"].as_str().unwrap());
    server.call("DELETE", &target).send().await.error(400);
    let first = flow.receiver.next_on("/failure").await;
    let told = server.call("POST", &target).send().await.json(200);
    assert_eq!(told, json!({"workflowRunId": "wfr_a", "workflowCreatedAt": letter["workflowCreatedAt"]}));
    let again = flow.receiver.next_on("/failure").await;
    assert_eq!(again.body, first.body);
    server.call("POST", &target).send().await.error(400);
    server.call("DELETE", &target).send().await.json(200);
    flow.logged("wfr_a", "it is cancelled", in_state("CALLBACK_CANCELED")).await;
    gate.open();
    // It was out already, and has arrived.
    flow.logged("wfr_a", "it succeeded", in_state("CALLBACK_SUCCESS")).await;
    server.call("POST", "/v2/workflows/dlq/callback/1-0").send().await.error(404);
}

async fn a_failed_run_is_resumed(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.receiver.script("/flow", [handled(), handled(), Reply::status(500), handled()]);
    flow.trigger("wfr_a", json!({"upstash-forward-x-tenant": "acme"}), "payload").await;
    for (id, out) in [(1, "1"), (2, "2")] {
        flow.next_log().await;
        flow.steps("wfr_a", [ran(id, out)]).await;
    }
    let (_, failed) = flow.next_log().await;
    let letter = flow.letter("wfr_a").await;
    let id = letter["dlqId"].as_str().unwrap();
    let resumed =
        server.call("POST", &format!("/v2/workflows/dlq/resume?dlqIds={id}")).send().await.json(200);
    let new = resumed["workflowRuns"][0]["workflowRunId"].as_str().expect("a run").to_owned();
    assert!(new != "wfr_a" && new.starts_with("wfr_"), "{new}");
    let delivery = flow.receiver.next_on("/flow").await;
    assert_eq!(delivery.header("upstash-workflow-runid"), Some(new.as_str()));
    assert_eq!(delivery.header("x-tenant"), Some("acme"));
    assert_eq!(delivery.header("upstash-workflow-sdk-version"), Some("1"));
    let log = delivery.json();
    let log = log.as_array().unwrap();
    let bodies = |log: &[Value]| log.iter().map(|entry| entry["body"].clone()).collect::<Vec<_>>();
    assert_eq!(bodies(log), bodies(&failed), "it goes on where the old one was");
    assert_eq!(log.last().unwrap()["messageId"], delivery.message_id());
    assert_eq!(base64_text(&log[0]["body"]), b"payload");
    flow.steps(&new, [ran(3, "3")]).await;
    let (_, log) = flow.next_log().await;
    assert_eq!(log.len(), 4);
    flow.finish(&new, "").await;
    let run = flow.in_state(&new, "RUN_SUCCESS").await;
    assert_eq!(words(&run).len(), 4, "{run}");
    assert!(server.list("/v2/workflows/dlq", "messages").await.is_empty(), "it has taken its place");
    server.call("POST", &format!("/v2/workflows/dlq/resume/{id}")).send().await.error(404);
}

async fn a_failed_run_is_restarted_with_other_settings(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.receiver.script("/flow", [handled(), Reply::status(500), Reply::status(500), handled()]);
    flow.trigger("wfr_a", json!({}), "payload").await;
    flow.next_log().await;
    flow.steps("wfr_a", [ran(1, "1")]).await;
    flow.next_log().await;
    let id = flow.letter("wfr_a").await["dlqId"].as_str().unwrap().to_owned();
    let call = server.call("POST", &format!("/v2/workflows/dlq/restart/{id}"));
    let call = call.header("Upstash-Retries", "1").header("Upstash-Retry-Delay", "10");
    let restarted = call.header("Upstash-Label", "again").send().await.json(200);
    let new = restarted["workflowRunId"].as_str().expect("a run").to_owned();
    for retried in [0, 1] {
        let delivery = flow.receiver.next_on("/flow").await;
        assert_eq!((delivery.retried(), delivery.header("upstash-label")), (retried, Some("again")));
        assert_eq!(delivery.json().as_array().unwrap().len(), 1, "from the beginning");
    }
    flow.finish(&new, "").await;
    let run = flow.in_state(&new, "RUN_SUCCESS").await;
    assert_eq!(
        (&run["labels"], &run["workflowRunCreatedAt"]),
        (&json!(["again"]), &restarted["workflowCreatedAt"])
    );
}

async fn many_runs_are_resumed(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.receiver.script("/flow", [Reply::status(500), Reply::status(500), Reply::status(500), handled()]);
    for run in ["wfr_a", "wfr_b", "wfr_c"] {
        let label = if run == "wfr_c" { "other" } else { "these" };
        flow.trigger(run, json!({"upstash-label": label}), "x").await;
        flow.letter(run).await;
    }
    let post = async |target: &str| server.call("POST", target).send().await;
    post("/v2/workflows/dlq/resume?dlqIds=1-0").await.error(404);
    post("/v2/workflows/dlq/resume?label=").await.error(400);
    let first = post("/v2/workflows/dlq/resume?label=these&count=1").await.json(200);
    assert_eq!(first["workflowRuns"].as_array().unwrap().len(), 1, "{first}");
    let cursor = first["cursor"].as_str().expect("more match");
    let rest = post(&format!("/v2/workflows/dlq/resume?label=these&count=1&cursor={cursor}")).await.json(200);
    assert_eq!(rest["workflowRuns"].as_array().unwrap().len(), 1, "{rest}");
    let left = server.list("/v2/workflows/dlq", "messages").await;
    assert_eq!(left.iter().map(|letter| &letter["workflowRunId"]).collect::<Vec<_>>(), ["wfr_c"]);
    let deleted = server.call("DELETE", "/v2/workflows/dlq?label=other").send().await.json(200);
    assert_eq!(deleted, json!({"deleted": 1}));
}

async fn plain_messages_and_runs_are_kept_apart(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.receiver.script("/flow", [Reply::status(500), handled()]);
    let failed = flow.trigger("wfr_a", json!({}), "x").await;
    let letter = flow.letter("wfr_a").await;
    let sleeps = flow.trigger("wfr_b", json!({"upstash-delay": "1d"}), "x").await;
    let plain = server.publish(&flow.receiver.url("/"), &[("Upstash-Delay", "1d")], "x").await;

    let events = server.list("/v2/events", "events").await;
    assert!(events.iter().all(|event| event["messageId"] == plain), "{events:?}");
    assert!(server.events(&failed).await.is_empty());
    assert_eq!(
        server.message(&sleeps).await["messageId"],
        sleeps,
        "a message is shown to whoever knows its id"
    );
    assert_eq!(server.get_json("/homing/v1/messages/count").await["count"], 1);
    assert_eq!(server.get_json("/homing/v1/dlq/count").await["count"], 0);
    assert!(server.list("/v2/dlq", "messages").await.is_empty());
    assert_eq!(server.call("DELETE", "/v2/dlq").send().await.json(200), json!({"deleted": 0}));
    assert_eq!(server.call("POST", "/v2/dlq/retry").send().await.json(201), json!({"responses": []}));
    let id = letter["dlqId"].as_str().unwrap();
    let refused = server.call("POST", &format!("/v2/dlq/retry/{id}")).send().await.error(400);
    assert!(refused.contains("/v2/workflows/dlq/resume"), "{refused}");

    server.call("DELETE", &format!("/v2/messages/{sleeps}")).send().await.error(404);
    let target = format!("/v2/messages?messageIds={sleeps}");
    assert_eq!(server.call("DELETE", &target).send().await.json(200), json!({"cancelled": 0}));
    assert_eq!(server.call("DELETE", "/v2/messages").send().await.json(200), json!({"cancelled": 1}));
    let run = flow.in_state("wfr_b", "RUN_STARTED").await;
    assert_eq!(words(&run), ["sequential: init STEP_SUCCESS", "next: - STEP_PROGRESS"]);
}
