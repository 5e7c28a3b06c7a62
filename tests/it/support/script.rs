//! Programs in `tests/sdk` that check a server from outside, on the official SDKs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{CURRENT_KEY, NEXT_KEY, Server, TOKEN};

/// A program of checks.
pub(crate) struct Script {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// What it finds in its environment beside what all find; `None`: not even that.
    variables: Vec<(&'static str, Option<String>)>,
}

impl Script {
    /// A program for Node.js, by its path in `tests/sdk`.
    pub(crate) fn javascript(path: &str) -> Self {
        let package = sdk().join("node_modules/@upstash/qstash");
        assert!(package.exists(), "no JavaScript SDK; run the tests with ./scripts/test");
        let arguments = vec!["--test-reporter=spec".into(), sdk().join(path).into()];
        Self { program: "node".into(), arguments, variables: Vec::new() }
    }

    /// A program for Python, by its path in `tests/sdk`.
    pub(crate) fn python(path: &str) -> Self {
        let program = sdk().join(".venv/bin/python");
        assert!(program.exists(), "no Python SDK; run the tests with ./scripts/test");
        Self { program, arguments: vec![sdk().join(path).into()], variables: Vec::new() }
    }

    pub(crate) fn with(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable of its environment; `None` takes it away.
    pub(crate) fn variable(mut self, name: &'static str, value: Option<String>) -> Self {
        self.variables.push((name, value));
        self
    }

    /// Runs it against the server, to its end.
    pub(crate) async fn run(&self, server: &Server) -> Ended {
        let mut command = self.command(server);
        let what = format!("{command:?}");
        let finished = tokio::task::spawn_blocking(move || command.output().expect("the script starts"));
        Ended { what, output: finished.await.expect("the script's task") }
    }

    fn command(&self, server: &Server) -> Command {
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

fn sdk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk")
}

/// A program that has ended, well or not.
#[must_use = "its checks may have failed"]
pub(crate) struct Ended {
    what: String,
    output: Output,
}

impl Ended {
    /// Fails unless all its checks were made and passed.
    pub(crate) fn check(&self) {
        let Self { what, output } = self;
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{what}: {}\n{text}", output.status);
        // Of a script that ended early, too, an exit code could say success.
        assert!(text.contains("all checks were made"), "{what} broke off:\n{text}");
    }
}
