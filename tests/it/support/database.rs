//! A fresh database for each test.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

use crate::postgres;

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
                postgres::create(&name).await;
                postgres::url(&name)
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

    /// Takes its schema away: a Postgres database is made with the current one, an SQLite one with none.
    pub(crate) async fn without_schema(&self) {
        if self.engine == Engine::Postgres {
            postgres::drop(&self.name).await;
            postgres::create_empty(&self.name).await;
        }
    }

    /// Drops a Postgres database; an SQLite one goes with its directory.
    pub(crate) async fn drop_it(&self) {
        if self.engine == Engine::Postgres {
            postgres::drop(&self.name).await;
        }
    }
}
