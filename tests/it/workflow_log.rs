//! Workflow runs as users look back at them.

use serde_json::{Value, json};

use crate::support::flow::{Flow, failing, handled, ran, words};
use crate::support::{Gate, Reply, Test, base64_text, eventually};

engines! {
    a_run_is_logged_step_by_step,
    runs_are_filtered_and_paged,
    steps_side_by_side_are_one_group,
    a_call_is_logged_with_its_answer,
    what_a_run_hides_is_not_logged,
    messages_of_runs_have_a_log_of_their_own,
}

async fn a_run_is_logged_step_by_step(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    let gate = Gate::new();
    flow.receiver.script("/flow", [handled(), handled().behind(&gate)]);
    let more = json!({
        "upstash-label": "one,two", "upstash-forward-x-tenant": "acme",
        "upstash-flow-control-key": "shop", "upstash-flow-control-value": "parallelism=9",
    });
    let first = flow.trigger("wfr_a", more, r#"{"order":7}"#).await;
    flow.next_log().await;
    let second = flow.steps("wfr_a", [ran(1, "{\"id\":9}")]).await;
    flow.next_log().await;
    let run = flow.logged("wfr_a", "the next step", |run| run["steps"].get(2).is_some()).await;
    assert_eq!(
        words(&run),
        ["sequential: init STEP_SUCCESS", "sequential: s1 STEP_SUCCESS", "next: - STEP_PROGRESS"]
    );
    assert_eq!(run["steps"][2]["steps"][0]["messageId"], second[0]);
    gate.open();
    flow.finish("wfr_a", r#"{"done":true}"#).await;
    let run = flow.in_state("wfr_a", "RUN_SUCCESS").await;
    assert_eq!(words(&run), ["sequential: init STEP_SUCCESS", "sequential: s1 STEP_SUCCESS"]);
    let init = &run["steps"][0]["steps"][0];
    assert_eq!((&init["out"], &init["messageId"]), (&json!("{\"order\":7}"), &json!(first)));
    assert_eq!(init["headers"], json!({"X-Tenant": ["acme"]}));
    let step = &run["steps"][1]["steps"][0];
    assert_eq!(
        (&step["out"], &step["stepId"], &step["callType"]),
        (&json!("{\"id\":9}"), &json!(1), &json!("step"))
    );
    assert_eq!(run["workflowRunResponse"], r#"{"done":true}"#);
    assert_eq!((&run["label"], &run["labels"]), (&json!("one"), &json!(["one", "two"])));
    assert_eq!((&run["flowControlKey"], &run["workflowUrl"]), (&json!("shop"), &json!(flow.url())));
    assert!(run["workflowRunCompletedAt"].as_i64() >= run["workflowRunCreatedAt"].as_i64(), "{run}");
    assert_eq!(run["workflowRunCallerIp"], "127.0.0.1");
}

async fn runs_are_filtered_and_paged(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    for (index, run) in ["wfr_a", "wfr_b", "wfr_c"].into_iter().enumerate() {
        flow.trigger(run, json!({"upstash-label": format!("l{index}")}), "x").await;
        let (_, log) = flow.next_log().await;
        assert_eq!(log.len(), 1);
    }
    flow.finish("wfr_b", "").await;
    let ids = async |query: &str| {
        let runs = server.list(&format!("/v2/workflows/events?groupBy=workflowRunId&{query}"), "runs").await;
        let id = |run: &Value| run["workflowRunId"].as_str().unwrap().trim_start_matches("wfr_").to_owned();
        runs.iter().map(id).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids("").await, "c b a");
    assert_eq!(ids("count=1").await, "c b a", "page by page");
    assert_eq!(ids("state=RUN_SUCCESS").await, "b");
    assert_eq!(ids("label=l0&label=l2").await, "c a");
    assert_eq!(ids("label=l0,l1&state=RUN_STARTED").await, "a");
    let url = flow.url();
    assert_eq!(ids(&format!("workflowUrl={url}")).await, "c b a");
    assert_eq!(ids(&format!("workflowUrl={}", &url[..url.len() - 1])).await, "", "the whole URL");
    assert_eq!(ids("path=/flow&host=127.0.0.1").await, "c b a");
    assert_eq!(ids("path=/other").await, "");
    let run = flow.in_state("wfr_b", "RUN_SUCCESS").await;
    let created_at = run["workflowRunCreatedAt"].as_i64().unwrap();
    assert_eq!(ids(&format!("workflowRuns=wfr_b@{created_at},wfr_a@1")).await, "b");
    assert_eq!(ids(&format!("workflowRunId=wfr_b&workflowCreatedAt={created_at}")).await, "b");
    assert_eq!(ids(&format!("workflowRunId=wfr_b&workflowCreatedAt={}", created_at + 1)).await, "");
    let message = run["steps"][0]["steps"][0]["messageId"].as_str().unwrap().to_owned();
    assert_eq!(ids(&format!("messageId={message}")).await, "b");
    assert_eq!(ids("messageId=msg_none").await, "");
    assert_eq!(ids(&format!("toDate={}", created_at - 1_000_000)).await, "");
    for wrong in ["state=DONE", "workflowRuns=wfr_b", "groupBy=messageId", "cursor=x", "nonsense=1"] {
        server.get(&format!("/v2/workflows/logs?{wrong}")).await.error(400);
    }
}

async fn steps_side_by_side_are_one_group(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.trigger("wfr_a", json!({}), "").await;
    flow.next_log().await;
    let plan = |target: u64| json!({"stepId": 0, "targetStep": target, "stepName": format!("s{target}"), "stepType": "Run", "concurrent": 2});
    flow.steps("wfr_a", [plan(1), plan(2)]).await;
    flow.next_log().await;
    flow.next_log().await;
    let mut result = ran(2, "2");
    result["concurrent"] = json!(2);
    flow.steps("wfr_a", [result]).await;
    let run = flow
        .logged("wfr_a", "one of two", |run| run["steps"][1]["steps"][1]["state"] == "STEP_SUCCESS")
        .await;
    assert_eq!(words(&run), ["sequential: init STEP_SUCCESS", "parallel: s1 STEP_PROGRESS, s2 STEP_SUCCESS"]);
}

async fn a_call_is_logged_with_its_answer(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.receiver.script("/api", [Reply::status(201).header("X-Rate", "1").body("1.1")]);
    flow.trigger("wfr_a", json!({}), "").await;
    flow.next_log().await;
    let api = flow.receiver.url("/api");
    let mut headers = flow.headers("wfr_a", false);
    let more = json!({
        "upstash-workflow-calltype": "toCallback", "upstash-feature-set": "WF_NoDelete,InitialBody",
        "upstash-method": "PUT", "upstash-forward-x-key": "k", "upstash-retries": "0",
        "upstash-callback": flow.url(),
        "upstash-callback-workflow-runid": "wfr_a", "upstash-callback-workflow-calltype": "fromCallback",
        "upstash-callback-forward-upstash-workflow-callback": "true",
        "upstash-callback-forward-upstash-workflow-stepid": "1",
        "upstash-callback-forward-upstash-workflow-stepname": "rates",
        "upstash-callback-forward-upstash-workflow-steptype": "Call",
        "upstash-callback-forward-upstash-workflow-concurrent": "1",
    });
    let fields = headers.as_object_mut().unwrap();
    fields.remove("upstash-forward-upstash-workflow-sdk-version");
    fields.extend(more.as_object().unwrap().clone());
    flow.submit(json!([{"destination": api, "headers": headers, "body": "EUR"}])).await;
    let result = flow.receiver.next_on("/flow").await;
    assert_eq!(result.json()["status"], 201);
    let is_answered = |run: &Value| run["steps"][1]["steps"][0]["callResponseStatus"] == 201;
    let run = flow.logged("wfr_a", "the answer", is_answered).await;
    let step = &run["steps"][1]["steps"][0];
    assert_eq!(words(&run), ["sequential: init STEP_SUCCESS", "sequential: rates STEP_PROGRESS"]);
    let parts = ["callUrl", "callMethod", "callBody", "callResponseBody", "callType"].map(|name| &step[name]);
    assert_eq!(parts, [&json!(api), &json!("PUT"), &json!("EUR"), &json!("1.1"), &json!("fromCallback")]);
    assert_eq!(step["callHeaders"]["X-Key"], json!(["k"]));
    assert_eq!(step["callResponseHeaders"]["X-Rate"], json!(["1"]));
    let done = json!({"stepId": 1, "stepName": "rates", "stepType": "Call", "out": "{}", "concurrent": 1});
    flow.steps("wfr_a", [done]).await;
    flow.next_log().await;
    let is_done = |run: &Value| run["steps"][1]["steps"][0]["state"] == "STEP_SUCCESS";
    let run = flow.logged("wfr_a", "the result", is_done).await;
    assert_eq!(run["steps"][1]["steps"][0]["callResponseBody"], "1.1");
}

async fn what_a_run_hides_is_not_logged(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    flow.receiver.script("/flow", [handled(), Reply::status(500)]);
    let mut more = failing(&flow, "l");
    let hidden =
        json!({"upstash-redact-fields": "body,header[X-Secret]", "upstash-forward-x-secret": "hush"});
    more.as_object_mut().unwrap().extend(hidden.as_object().unwrap().clone());
    flow.trigger("wfr_a", more, "hush").await;
    flow.next_log().await;
    flow.steps("wfr_a", [ran(1, "hush")]).await;
    let letter = flow.letter("wfr_a").await;
    let run = flow.in_state("wfr_a", "RUN_FAILED").await;
    let events = server.list("/v2/workflows/messageLogs", "events").await;
    let is_told = |event: &&Value| event["url"] == flow.receiver.url("/failure");
    let told = events.iter().find(is_told).expect("the failure is told");
    assert!(base64_text(&told["body"]).starts_with(b"REDACTED:"), "a copy of what is hidden: {told}");
    for shown in [&letter, &run] {
        let text = shown.to_string();
        assert!(!text.contains("hush") && text.contains("REDACTED:"), "{text}");
    }
}

async fn messages_of_runs_have_a_log_of_their_own(t: Test) {
    let server = t.server().await;
    let flow = Flow::start(&server).await;
    let plain = server.publish(&flow.receiver.url("/"), &[], "x").await;
    server.ended(&plain).await;
    let id = flow.trigger("wfr_a", json!({}), "x").await;
    flow.trigger("wfr_b", json!({}), "x").await;
    for target in ["/v2/workflows/events", "/v2/workflows/messageLogs"] {
        eventually("both are delivered", async || {
            let events = server.list(&format!("{target}?state=DELIVERED"), "events").await;
            (events.len() == 2).then_some(())
        })
        .await;
        let events = server.list(&format!("{target}?workflowRunId=wfr_a&count=1"), "events").await;
        let states: Vec<&str> = events.iter().map(|event| event["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["DELIVERED", "ACTIVE", "CREATED"]);
        assert!(events.iter().all(|event| event["messageId"] == id && event["workflowRunId"] == "wfr_a"));
    }
}
