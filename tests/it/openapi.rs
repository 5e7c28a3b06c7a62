//! The API's document: that it is one, and that the server does what it says.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Receiver, Reply, Server, TOKEN, Test, eventually};

engines! {
    the_document_is_for_everyone,
    the_document_is_valid,
    answers_conform_to_the_document,
}

/// Fixed, so that a run can be repeated. Another number makes other requests.
const SEED: &str = "20261124";
/// Requests to each operation in each of the ways they are made in.
const EXAMPLES: &str = "25";
/// Every network but the loopback's: whatever URL a made-up request holds, nothing leaves this machine.
const ELSEWHERE: &str = "0.0.0.0/2,64.0.0.0/3,96.0.0.0/4,112.0.0.0/5,120.0.0.0/6,124.0.0.0/7,126.0.0.0/8,128.0.0.0/1,\
    2000::/3,fc00::/7,fe80::/10";

async fn the_document_is_for_everyone(t: Test) {
    let server = t.server().await;
    let document = server.call("GET", "/openapi.json").without("authorization").send().await.json(200);
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

async fn the_document_is_valid(t: Test) {
    let server = t.server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("openapi.json");
    std::fs::write(&file, server.get("/openapi.json").await.body).unwrap();
    let mut command = Command::new(tool("openapi-spec-validator"));
    command.arg("--errors=all").arg(&file);
    succeed(command).await;
}

/// schemathesis makes requests from the document, right and wrong ones, and holds the answers against it.
async fn answers_conform_to_the_document(t: Test) {
    let server = t.server_with(&[("HOMING_EGRESS_DENY", ELSEWHERE)]).await;
    let receiver = Receiver::start().await;
    let known = populate(&server, &receiver).await;
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(tool("schemathesis"));
    command
        .current_dir(directory.path())
        .env("PYTHONPATH", root())
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("RECEIVER_URL", receiver.url(""))
        .env("KNOWN", known.to_string())
        .args(["run", &format!("{}/openapi.json", server.url())])
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--checks", "all"])
        // A message stays readable after it was cancelled. The other two take a request for valid, or for invalid, by
        // the document alone; but some rules hold between parameters, and names match in any case.
        .args(["--exclude-checks", "use_after_free,positive_data_acceptance,negative_data_rejection"])
        .args(["--seed", SEED, "--max-examples", EXAMPLES, "--generation-database", "none"])
        .args(["--warnings", "off", "--no-color"]);
    let output = succeed(command).await;
    assert!(
        output.contains("Stateful") && output.contains(" passed"),
        "it did not come to its end:\n{output}"
    );
}

/// Makes one of everything that can be asked for; its ids, by the names of the document's path parameters.
async fn populate(server: &Server, receiver: &Receiver) -> Value {
    receiver.script("/fails", [Reply::status(500).header("X-A", "1").body("boom")]);
    let callback = receiver.url("/ok");
    let all = [
        ("Content-Type", "application/json"),
        ("Upstash-Forward-X-Secret", "1"),
        ("Upstash-Callback", callback.as_str()),
        ("Upstash-Callback-Forward-A", "1"),
        ("Upstash-Failure-Callback", callback.as_str()),
        ("Upstash-Failure-Callback-Forward-A", "1"),
        ("Upstash-Label", "one,two"),
        ("Upstash-Retry-Delay", "1000"),
        ("Upstash-Timeout", "30s"),
        ("Upstash-Redact-Fields", "header[X-Secret]"),
        ("Upstash-Flow-Control-Key", "known"),
        ("Upstash-Flow-Control-Value", "parallelism=1000, rate=100000, period=60"),
    ];
    let post = async |target: &str, body: Value| {
        let call = server.call("POST", target).header("Content-Type", "application/json");
        let answer = call.body(body.to_string()).send().await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    };
    post("/v2/queues", json!({"queueName": "known", "parallelism": 100})).await;
    let endpoints =
        json!([{"name": "an endpoint", "url": receiver.url("/ok")}, {"url": receiver.url("/fails")}]);
    post("/v2/topics/known/endpoints", json!({ "endpoints": endpoints })).await;
    let fails = receiver.url("/fails");
    for target in ["publish/known", "enqueue/known/known", &format!("publish/{fails}")] {
        let call = server.call("POST", &format!("/v2/{target}")).headers(&all);
        call.header("Upstash-Retries", "0").body(r#"{"hello":1}"#).send().await.json(200);
    }
    let schedule = [("Upstash-Cron", "* * * * *"), ("Upstash-Schedule-Id", "known"), ("Upstash-Delay", "1d")];
    let call = server.call("POST", &format!("/v2/schedules/{fails}")).headers(&all).headers(&schedule);
    call.body(r#"{"hello":1}"#).send().await.json(200);

    let waits = server.publish(&receiver.url("/ok"), &[("Upstash-Delay", "1d")], [0xff]).await;
    let delivered = server.publish(&receiver.url("/ok"), &[], "").await;
    server.ended(&delivered).await;
    let failed = server.publish(&fails, &[("Upstash-Retries", "0")], [0xff]).await;
    let letter = server.dead_letter(&failed).await;
    let run_letter = populate_runs(server, &fails).await;
    json!({
        "messageId": [waits, delivered, failed],
        "dlqId": [letter["dlqId"], run_letter],
        "workflowRunId": ["wfr_waits", "wfr_failed"],
        "eventId": ["known"],
        "queue": ["known"],
        "urlGroup": ["known"],
        "scheduleId": ["known"],
        "scheduleIdOrDestination": ["known"],
        "flowControlKey": ["known", "a b"],
    })
}

/// Begins a run that waits and one that fails; the id of the dead letter that this one leaves.
async fn populate_runs(server: &Server, fails: &str) -> Value {
    let begin = |run: &str, more: Value| {
        let mut headers = json!({
            "Upstash-Workflow-RunId": run, "Upstash-Workflow-Init": "true", "Upstash-Workflow-Url": fails,
            "Upstash-Retries": "0", "Upstash-Label": "one,two", "Upstash-Forward-X-Secret": "1",
        });
        headers.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"destination": fails, "headers": headers, "body": "{}"})
    };
    let items = [
        begin("wfr_waits", json!({"Upstash-Delay": "1d"})),
        begin(
            "wfr_failed",
            json!({"Upstash-Failure-Callback": fails, "Upstash-Redact-Fields": "header[X-Secret]"}),
        ),
    ];
    server.call("POST", "/v2/batch").body(json!(items).to_string()).send().await.json(200);
    eventually("a run has failed", async || {
        let letters = server.list("/v2/workflows/dlq", "messages").await;
        letters.first().map(|letter| letter["dlqId"].clone())
    })
    .await
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/openapi")
}

fn tool(name: &str) -> PathBuf {
    let tool = root().join(".venv/bin").join(name);
    assert!(tool.exists(), "no {name}; run the tests with ./scripts/test");
    tool
}

/// Runs a command, which must succeed; what it said.
async fn succeed(mut command: Command) -> String {
    let program = format!("{command:?}");
    let finished = tokio::task::spawn_blocking(move || {
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        command.output().expect("the program starts")
    });
    let output = finished.await.expect("the program's task");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {}\n{text}", output.status);
    text
}
