//! A fresh database for each test.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

/// The variable that holds the cluster's base URL, without a database name.
const CLUSTER: &str = "HOMING_TEST_POSTGRES";

/// The databases that the server runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

/// One database, and a directory that lives as long.
pub(crate) struct Database {
    engine: Engine,
    url: String,
    dir: TempDir,
    name: String,
}

impl Database {
    pub(crate) async fn create(engine: Engine) -> Self {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let dir = TempDir::with_prefix("homing-test-").expect("a temporary directory");
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let name = format!("homing_{}_{sequence}_{:08x}", std::process::id(), rand::random::<u32>());
        let url = match engine {
            Engine::Sqlite => format!("sqlite://{}", dir.path().join("homing.db").display()),
            Engine::Postgres => {
                execute(format!("CREATE DATABASE {name}")).await;
                format!("{}/{name}", cluster())
            }
        };
        Self { engine, url, dir, name }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Changes it behind the server's back; how many rows.
    pub(crate) async fn execute(&self, sql: String) -> u64 {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        match self.engine {
            Engine::Sqlite => {
                let mut connection = SqliteConnection::connect(&self.url).await.expect("the database");
                let done = sql.execute(&mut connection).await.expect("a statement");
                connection.close().await.expect("closing the connection");
                done.rows_affected()
            }
            Engine::Postgres => {
                let mut connection = PgConnection::connect(&self.url).await.expect("the database");
                let done = sql.execute(&mut connection).await.expect("a statement");
                connection.close().await.expect("closing the connection");
                done.rows_affected()
            }
        }
    }

    /// Drops a Postgres database; an SQLite one goes with its directory.
    pub(crate) async fn drop_it(&self) {
        if self.engine == Engine::Postgres {
            execute(format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
        }
    }
}

/// The cluster's base URL. Without one the test fails: a skipped test looks like a passed one.
fn cluster() -> String {
    let url = std::env::var(CLUSTER).unwrap_or_else(|_| {
        panic!(
            "{CLUSTER} is not set, so there is no PostgreSQL to test on; run the tests with ./scripts/test"
        )
    });
    url.trim_end_matches('/').to_owned()
}

async fn execute(sql: String) {
    let url = format!("{}/postgres", cluster());
    let mut connection = PgConnection::connect(&url).await.unwrap_or_else(|e| {
        panic!("can't connect to {CLUSTER} = {url}: {e}; run the tests with ./scripts/test")
    });
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("a statement on the cluster");
    connection.close().await.expect("closing the connection");
}
