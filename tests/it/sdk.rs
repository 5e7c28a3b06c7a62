//! The official SDKs, unmodified, against the server: what they accept is the contract.
//!
//! The checks are scripts in `tests/sdk/js` and `tests/sdk/py`, which call every method that the SDKs have.

use crate::support::{Gate, Receiver, Reply, Script, Server, Test};

engines! {
    javascript,
    javascript_version_2_7,
    javascript_schedule_run,
    javascript_limits,
    javascript_development_mode,
    python,
    python_async,
    python_schedule_run,
    python_limits,
}

/// Limits that a script runs into; it is told them in these variables.
const REQUESTS_PER_SECOND: &str = "5";
const MESSAGES_PER_DAY: &str = "10";

async fn javascript(t: Test) {
    run(Script::javascript("js/main.mjs"), &t.server().await).await;
}

async fn javascript_version_2_7(t: Test) {
    run(Script::javascript("js/version_2_7.mjs"), &t.server().await).await;
}

async fn javascript_schedule_run(t: Test) {
    run(Script::javascript("js/schedule_run.mjs"), &t.server().await).await;
}

async fn javascript_limits(t: Test) {
    run(Script::javascript("js/limits.mjs"), &limited(&t).await).await;
}

async fn javascript_development_mode(t: Test) {
    let ours = ["HOMING_TOKEN", "HOMING_CURRENT_SIGNING_KEY", "HOMING_NEXT_SIGNING_KEY"];
    let mut settings = ours.map(|name| (name, "")).to_vec();
    settings.push(("HOMING_DEV", "true"));
    let server = t.server_with(&settings).await;
    let mut script = Script::javascript("js/development.mjs");
    for known in ["QSTASH_URL", "QSTASH_TOKEN", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"] {
        script = script.variable(known, None);
    }
    let port = server.address().port().to_string();
    let script =
        script.variable("QSTASH_DEV", Some("true".to_owned())).variable("QSTASH_DEV_PORT", Some(port));
    run(script, &server).await;
}

async fn python(t: Test) {
    run(Script::python("py/main.py").with("sync"), &t.server().await).await;
}

async fn python_async(t: Test) {
    run(Script::python("py/main.py").with("async"), &t.server().await).await;
}

async fn python_schedule_run(t: Test) {
    run(Script::python("py/schedule_run.py"), &t.server().await).await;
}

async fn python_limits(t: Test) {
    run(Script::python("py/limits.py"), &limited(&t).await).await;
}

async fn limited(t: &Test) -> Server {
    t.server_with(&[
        ("HOMING_MAX_REQUESTS_PER_SECOND", REQUESTS_PER_SECOND),
        ("HOMING_MAX_MESSAGES_PER_DAY", MESSAGES_PER_DAY),
    ])
    .await
}

/// Runs a script against the server and a receiver, whose requests it asks for through `RECEIVED_URL`.
async fn run(script: Script, server: &Server) {
    let receiver = Receiver::start().await;
    let not_found = Reply::status(404).header("Content-Type", "text/plain").body("404 Not Found");
    receiver.script("/fails", [not_found]);
    receiver.script("/recovers", [Reply::status(500), Reply::ok().body("recovered")]);
    let answer = Reply::ok().header("X-Answer", "one").header("X-Answer", "two").body("answer");
    receiver.script("/answers", [answer]);
    let model = Reply::ok().header("Content-Type", "application/json").body(r#"{"choices":[]}"#);
    receiver.script("/v1/chat/completions", [model]);
    let gate = Gate::new();
    receiver.script("/held", [Reply::ok().behind(&gate)]);
    receiver.show_requests_on("/received");

    let ended = script
        .variable("RECEIVER_URL", Some(receiver.url("")))
        .variable("RECEIVED_URL", Some(receiver.url("/received")))
        .variable("REQUESTS_PER_SECOND", Some(REQUESTS_PER_SECOND.to_owned()))
        .variable("MESSAGES_PER_DAY", Some(MESSAGES_PER_DAY.to_owned()))
        .run(server)
        .await;
    gate.open();
    ended.check();
}
