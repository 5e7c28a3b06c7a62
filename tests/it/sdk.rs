//! The official SDKs, unmodified, against the server: what they accept is the contract.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{CURRENT_KEY, Gate, NEXT_KEY, Receiver, Reply, Server, TOKEN, Test};

engines! {
    javascript,
    python,
}

async fn javascript(t: Test) {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
    assert!(
        sdk.join("node_modules/@upstash/qstash").exists(),
        "no JavaScript SDK; run the tests with ./scripts/test"
    );
    drive(&t, "node".into(), &sdk.join("js.mjs")).await;
}

async fn python(t: Test) {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
    let python = sdk.join(".venv/bin/python");
    assert!(python.exists(), "no Python SDK; run the tests with ./scripts/test");
    drive(&t, python, &sdk.join("py.py")).await;
}

/// Runs a script against a server and a receiver. The script asks for what the receiver got through `RECEIVED_URL`.
async fn drive(t: &Test, program: PathBuf, script: &Path) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver
        .script("/fails", [Reply::status(404).header("Content-Type", "text/plain").body("404 Not Found")]);
    receiver.script("/recovers", [Reply::status(500), Reply::ok().body("recovered")]);
    let gate = Gate::new();
    receiver.script("/held", [Reply::ok().behind(&gate)]);
    receiver.show_requests_on("/received");
    let output = run(&server, &receiver, program, script).await;
    gate.open();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {}\n{text}", script.display(), output.status);
    assert!(text.contains("all checks passed"), "the script did not come to its end:\n{text}");
}

async fn run(server: &Server, receiver: &Receiver, program: PathBuf, script: &Path) -> std::process::Output {
    let mut command = Command::new(program);
    for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command
        .arg(script)
        .env("QSTASH_URL", server.url())
        .env("QSTASH_TOKEN", TOKEN)
        .env("QSTASH_CURRENT_SIGNING_KEY", CURRENT_KEY)
        .env("QSTASH_NEXT_SIGNING_KEY", NEXT_KEY)
        .env("RECEIVER_URL", receiver.url(""))
        .env("RECEIVED_URL", receiver.url("/received"));
    let finished = tokio::task::spawn_blocking(move || command.output().expect("the script starts"));
    finished.await.expect("the script's task")
}
