//! Workflow apps on the official SDKs, unmodified, against the server.
//!
//! The apps and their clients are in `tests/sdk/workflow`: one program for TypeScript, which is told the version of the
//! SDK, and one for Python. Each is an app and its client at once, counts what comes to the app, and compares that with
//! what the hosted service would send.

use crate::support::{Script, Server, Test};

engines! {
    typescript_0_2,
    typescript_1_0,
    typescript_1_1,
    typescript_1_3,
    typescript_1_3_on_express,
    python,
}

/// The setting for the longest log that is sent with a delivery, and a length.
const LONGEST_SENT_LOG: Option<(&str, &str)> = Some(("HOMING_MAX_PUSHED_LOG_SIZE", "200KiB"));
/// What the scripts take for large: more than `LONGEST_SENT_LOG`.
const LARGE_BYTES: &str = "300000";

async fn typescript_0_2(t: Test) {
    typescript(&t, "0.2.23").await;
}

async fn typescript_1_0(t: Test) {
    typescript(&t, "1.0.0").await;
}

async fn typescript_1_1(t: Test) {
    typescript(&t, "1.1.1").await;
}

async fn typescript_1_3(t: Test) {
    typescript(&t, "1.3.3").await;
}

async fn typescript_1_3_on_express(t: Test) {
    typescript(&t, "1.3.3-express").await;
}

async fn python(t: Test) {
    let script = Script::python("workflow/main.py");
    run(script, &server(&t).await).await;
}

async fn typescript(t: &Test, version: &str) {
    let script = Script::javascript("workflow/main.mjs").with(version);
    run(script, &server(t).await).await;
}

async fn server(t: &Test) -> Server {
    t.server_with(LONGEST_SENT_LOG.as_slice()).await
}

async fn run(script: Script, server: &Server) {
    script.variable("LARGE_BYTES", Some(LARGE_BYTES.to_owned())).run(server).await.check();
}
