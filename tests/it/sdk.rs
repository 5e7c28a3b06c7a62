//! The official SDKs, unmodified, against the server: what they accept is the contract.
//!
//! The checks are scripts in `tests/sdk/js` and `tests/sdk/py`, which call every method that the SDKs have.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{CURRENT_KEY, Gate, NEXT_KEY, Receiver, Reply, Server, TOKEN, Test};

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
    Script::javascript("main.mjs").run(&t.server().await).await;
}

async fn javascript_version_2_7(t: Test) {
    Script::javascript("version_2_7.mjs").run(&t.server().await).await;
}

async fn javascript_schedule_run(t: Test) {
    Script::javascript("schedule_run.mjs").run(&t.server().await).await;
}

async fn javascript_limits(t: Test) {
    Script::javascript("limits.mjs").run(&limited(&t).await).await;
}

async fn javascript_development_mode(t: Test) {
    let ours = ["HOMING_TOKEN", "HOMING_CURRENT_SIGNING_KEY", "HOMING_NEXT_SIGNING_KEY"];
    let mut settings = ours.map(|name| (name, "")).to_vec();
    settings.push(("HOMING_DEV", "true"));
    let server = t.server_with(&settings).await;
    let mut script = Script::javascript("development.mjs");
    for known in ["QSTASH_URL", "QSTASH_TOKEN", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"] {
        script.variables.push((known, None));
    }
    script.variables.push(("QSTASH_DEV", Some("true".to_owned())));
    script.variables.push(("QSTASH_DEV_PORT", Some(server.address().port().to_string())));
    script.run(&server).await;
}

async fn python(t: Test) {
    Script::python("main.py").with("sync").run(&t.server().await).await;
}

async fn python_async(t: Test) {
    Script::python("main.py").with("async").run(&t.server().await).await;
}

async fn python_schedule_run(t: Test) {
    Script::python("schedule_run.py").run(&t.server().await).await;
}

async fn python_limits(t: Test) {
    Script::python("limits.py").run(&limited(&t).await).await;
}

async fn limited(t: &Test) -> Server {
    t.server_with(&[
        ("HOMING_MAX_REQUESTS_PER_SECOND", REQUESTS_PER_SECOND),
        ("HOMING_MAX_MESSAGES_PER_DAY", MESSAGES_PER_DAY),
    ])
    .await
}

/// A program of checks.
struct Script {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// What it finds in its environment beside what all find; `None`: not even that.
    variables: Vec<(&'static str, Option<String>)>,
}

impl Script {
    fn javascript(name: &str) -> Self {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
        let package = sdk.join("node_modules/@upstash/qstash");
        assert!(package.exists(), "no JavaScript SDK; run the tests with ./scripts/test");
        let arguments = vec!["--test-reporter=spec".into(), sdk.join("js").join(name).into()];
        Self { program: "node".into(), arguments, variables: Vec::new() }
    }

    fn python(name: &str) -> Self {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
        let program = sdk.join(".venv/bin/python");
        assert!(program.exists(), "no Python SDK; run the tests with ./scripts/test");
        Self { program, arguments: vec![sdk.join("py").join(name).into()], variables: Vec::new() }
    }

    fn with(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs it against the server and a receiver, whose requests it asks for through `RECEIVED_URL`.
    async fn run(self, server: &Server) {
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

        let mut command = self.command(server, &receiver);
        let what = format!("{command:?}");
        let finished = tokio::task::spawn_blocking(move || command.output().expect("the script starts"));
        let output = finished.await.expect("the script's task");
        gate.open();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{what}: {}\n{text}", output.status);
        // Of a script that ended early, too, an exit code could say success.
        assert!(text.contains("all checks were made"), "{what} broke off:\n{text}");
    }

    fn command(&self, server: &Server, receiver: &Receiver) -> Command {
        let mut command = Command::new(&self.program);
        // Nothing of the developer's environment may leak in: neither the SDKs' variables nor proxies.
        command.env_clear().args(&self.arguments);
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("QSTASH_URL", server.url())
            .env("QSTASH_TOKEN", TOKEN)
            .env("QSTASH_CURRENT_SIGNING_KEY", CURRENT_KEY)
            .env("QSTASH_NEXT_SIGNING_KEY", NEXT_KEY)
            .env("RECEIVER_URL", receiver.url(""))
            .env("RECEIVED_URL", receiver.url("/received"))
            .env("REQUESTS_PER_SECOND", REQUESTS_PER_SECOND)
            .env("MESSAGES_PER_DAY", MESSAGES_PER_DAY)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}
