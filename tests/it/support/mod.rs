//! What the tests stand on: [`Test`] owns a fresh database and every server started on it, and cleans up after itself.

pub(crate) mod database;
pub(crate) mod flow;
pub(crate) mod http;
pub(crate) mod raw;
pub(crate) mod receiver;
pub(crate) mod script;
pub(crate) mod server;
pub(crate) mod wait;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use futures_util::FutureExt;

use database::Database;
pub(crate) use database::Engine;
pub(crate) use http::Call;
pub(crate) use receiver::{Gate, Received, Receiver, Reply};
pub(crate) use script::Script;
pub(crate) use server::Server;
pub(crate) use wait::{eventually, open, something_else, within};

/// Makes each named `async fn(Test)` two tests, `name::sqlite` and `name::postgres`.
macro_rules! engines {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            use crate::support::{Engine, Test};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                Test::run(Engine::Sqlite, super::$name).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                Test::run(Engine::Postgres, super::$name).await;
            }
        }
    )*};
}

/// Lower-case hex, as redacted values show it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Decodes standard base64 with padding.
#[track_caller]
pub(crate) fn base64_text(value: &serde_json::Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or_else(|| panic!("no text: {value}"));
    base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The API token of every server under test.
pub(crate) const TOKEN: &str = "eyJVc2VySUQiOiJ0ZXN0ZXIiLCJQYXNzd29yZCI6ImhvbWluZyJ9";
/// A token that may only read.
pub(crate) const READ_ONLY_TOKEN: &str = "read-only-token-of-the-tests";
/// The signing keys at the start.
pub(crate) const CURRENT_KEY: &str = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r";
pub(crate) const NEXT_KEY: &str = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs";

/// One test's surroundings. Clones share them.
#[derive(Clone)]
pub(crate) struct Test {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    servers: Mutex<Vec<Server>>,
    allowed_errors: Mutex<Vec<String>>,
}

impl Test {
    /// Runs a test's body on a fresh database; afterwards ends the servers, drops the database, and fails on leftovers.
    pub(crate) async fn run<F>(engine: Engine, body: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()>,
    {
        let database = Database::create(engine).await;
        let shared = Shared { database, servers: Mutex::default(), allowed_errors: Mutex::default() };
        let test = Self { shared: Arc::new(shared) };
        let result = AssertUnwindSafe(body(test.clone())).catch_unwind().await;

        let servers = std::mem::take(&mut *test.shared.servers.lock().unwrap());
        for server in &servers {
            server.kill9();
        }
        test.shared.database.drop_it().await;
        let allowed = test.shared.allowed_errors.lock().unwrap().clone();
        let leftovers: Vec<String> =
            servers.iter().flat_map(|server| server.log().faults(&allowed)).collect();
        if result.is_err() || !leftovers.is_empty() {
            for server in &servers {
                eprintln!(
                    "--- output of the server on {} ---\n{}",
                    server.last_address(),
                    server.log().text()
                );
            }
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        assert!(leftovers.is_empty(), "the server panicked or logged errors:\n{}", leftovers.join("\n"));
    }

    /// A server on this test's database, ready.
    pub(crate) async fn server(&self) -> Server {
        self.server_with(&[]).await
    }

    /// The same with more settings (environment variables).
    pub(crate) async fn server_with(&self, settings: &[(&str, &str)]) -> Server {
        let server = self.unstarted_server(settings);
        server.start().await;
        server
    }

    /// The kind of its database.
    pub(crate) fn engine(&self) -> Engine {
        self.shared.database.engine()
    }

    /// The URL of its database.
    pub(crate) fn database_url(&self) -> String {
        self.shared.database.url().to_owned()
    }

    /// Takes the schema of its database away, for a server or a command that makes one.
    pub(crate) async fn without_schema(&self) {
        self.shared.database.without_schema().await;
    }

    /// Changes its database behind the server's back; how many rows.
    pub(crate) async fn execute(&self, sql: impl Into<String>) -> u64 {
        self.shared.database.execute(sql.into()).await
    }

    /// A server that has not been started yet.
    pub(crate) fn unstarted_server(&self, settings: &[(&str, &str)]) -> Server {
        let server = Server::new(&self.shared.database, settings);
        self.shared.servers.lock().unwrap().push(server.clone());
        server
    }

    /// Says that error lines with this text belong to what the test does.
    pub(crate) fn allow_errors(&self, containing: &str) {
        self.shared.allowed_errors.lock().unwrap().push(containing.to_owned());
    }
}
