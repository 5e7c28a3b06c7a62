//! The store on SQL: one text for both engines, except for the few hot steps, which have one each.
//!
//! A trait of the store is in the file of its name, `work` with `hot_postgres` and `hot_sqlite`, which hold accept, claim
//! and finish. Everything else is in a file per table, written once and expanded for each engine by `on_backend!`, from
//! lists of columns (`columns`). The time that decides what is due is the database's on Postgres and this machine's on
//! SQLite; what callers say of time enters as a parameter in Unix milliseconds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgListener};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, SqlitePool};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::AbortHandle;

use super::{Result, Store, StoreError};
use crate::clock::Clock;
use crate::failure::Failure;

/// Expands the body once per engine, the driver inferred in each arm. Not a closure: `?` returns from the function.
macro_rules! on_backend {
    ($on:expr, |$conn:ident| $body:expr) => {
        match $on {
            $crate::store::sql::Backend::Postgres($conn) => $body,
            $crate::store::sql::Backend::Sqlite($conn) => $body,
        }
    };
}

mod attempts;
mod cancelling;
mod checkpoint;
mod codec;
mod columns;
mod damage;
mod dead_letters;
mod deduplication;
mod deliveries;
mod error;
mod finish_postgres;
mod gates;
mod group_commit;
mod health;
mod history;
mod hot_postgres;
mod hot_sqlite;
mod listing;
mod log;
mod low_water;
mod messages;
mod nodes;
mod open;
mod primary;
mod query;
mod quota;
mod retention;
mod rewind;
mod runs;
mod schedules;
mod secrets;
mod situation;
mod tx;
mod url_groups;
mod work;

use self::health::Health;
use self::low_water::LowWater;
use self::primary::Primary;
use self::tx::Claimable;

/// A value that exists once per engine: a pool, a transaction.
pub enum Backend<P, S> {
    Postgres(P),
    Sqlite(S),
}

/// The engines' migrations; the same numbers and names in both folders.
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Deadline of a call to Postgres, the wait for a connection included. A database that is slower than this is away.
const DEADLINE: Duration = Duration::from_secs(5);
/// Deadline of the answer whether the database can be read.
const PING: Duration = Duration::from_secs(2);
/// Deadline of a page of a list, which searches for a second or so, waits for others, and reads bodies.
const LIST_DEADLINE: Duration = Duration::from_secs(20);
/// Deadline of retention and takeovers, which may read much.
const LONG_DEADLINE: Duration = Duration::from_mins(1);

/// Which database, and how many connections to it.
#[derive(Clone)]
pub struct Options {
    pub database: Database,
    /// Postgres: connections beside the hot ones.
    pub connections: u32,
    /// Postgres: connections for accepting, claiming and finishing.
    pub hot_connections: u32,
    /// Queues that there may be for messages to make another.
    pub max_queues: Option<u32>,
}

/// Where the database is.
#[derive(Clone)]
pub enum Database {
    /// The path of a file.
    Sqlite(PathBuf),
    /// A `postgres://` URL.
    Postgres(String),
}

/// Postgres: `hot` connections have their plans pinned and serve accept, claim and finish alone.
struct PostgresPools {
    hot: PgPool,
    rest: PgPool,
    /// For what may read much, so that `rest` always has a connection for what is short.
    lists: PgPool,
    /// One connection, so that a node full of work and lists still says that it is alive.
    heartbeat: PgPool,
    /// One connection, which hears what other nodes have changed.
    listening: PgPool,
    listener: Mutex<Option<(PgListener, primary::Ticket)>>,
    low_water: Arc<LowWater>,
    /// For migrations, which may wait and take long.
    unlimited: PgConnectOptions,
    health: Arc<Health>,
    primary: Arc<Primary>,
    /// The task that probes for the primary.
    probes: AbortHandle,
}

impl PostgresPools {
    /// Runs a step on a hot connection. One on which a step does not end properly is closed: its statement may still be
    /// running.
    async fn hot<T>(&self, step: impl AsyncFnOnce(&mut PgConnection) -> Result<T>) -> Result<T> {
        let mut connection = within(DEADLINE, async { Ok(self.hot.acquire().await?) }).await?;
        // Boxed, since futures of steps are large.
        let result = within(DEADLINE, Box::pin(step(&mut connection))).await;
        if result.as_ref().is_err_and(StoreError::is_transient) {
            drop(connection.detach());
        }
        result
    }

    /// Runs a step that writes on a hot connection; it has taken effect only where that leads to the primary.
    async fn hot_write<T>(
        &self,
        step: impl AsyncFnOnce(&mut PgConnection, &mut Claimable) -> Result<T>,
    ) -> Result<T> {
        let ticket = self.primary.ticket();
        let mut claimable = Claimable::below(Arc::clone(&self.low_water));
        let write = self.hot(async |conn| {
            let done = step(conn, &mut claimable).await?;
            self.primary.settle(conn, ticket).await?;
            Ok(done)
        });
        self.health.watch(write).await
    }
}

/// SQLite: one writer, and readers beside it. The lock file is held as long as this lives.
struct SqlitePools {
    /// Of one connection.
    writer: SqlitePool,
    group: group_commit::GroupCommit,
    health: Arc<Health>,
    checkpointer: checkpoint::Checkpointer,
    /// The checkpointer's connection.
    checkpoints: SqlitePool,
    readers: SqlitePool,
    /// For what may read much, so that there is always a reader for what is short.
    lists: SqlitePool,
    /// Held by whoever removes dead letters.
    dead_letters: Mutex<()>,
    checkup: Mutex<damage::Checkup>,
    /// The database file.
    path: PathBuf,
    lock: open::LockFile,
}

/// The store on Postgres or SQLite.
pub struct SqlStore {
    backend: Backend<PostgresPools, SqlitePools>,
    max_queues: Option<u32>,
    /// SQLite's time is this one; Postgres has its own.
    clock: Clock,
    failure: Failure,
}

impl SqlStore {
    /// Connects without touching the schema. SQLite goes by `clock`, Postgres by its own.
    pub async fn connect(options: &Options, clock: Clock) -> Result<Self> {
        let failure = Failure::default();
        let backend = open::connect(options, &clock, &failure).await?;
        Ok(Self { backend, max_queues: options.max_queues, clock, failure })
    }

    /// Brings the schema up to date, under a lock where several nodes may try at once.
    pub async fn migrate(&self) -> Result<()> {
        match &self.backend {
            // Another node may be migrating, and a migration may take its time: without the limits of other calls.
            Backend::Postgres(pools) => {
                let mut connection = pools.unlimited.connect().await?;
                let migrated = POSTGRES_MIGRATIONS.run(&mut connection).await;
                connection.close().await?;
                Ok(migrated?)
            }
            Backend::Sqlite(pools) => {
                let migrated = SQLITE_MIGRATIONS.run(&mut *pools.writer.acquire().await?).await;
                migrated.map_err(|error| damage::migrating(&pools.path, error))
            }
        }
    }

    fn health(&self) -> &Health {
        match &self.backend {
            Backend::Postgres(pools) => &pools.health,
            Backend::Sqlite(pools) => &pools.health,
        }
    }

    /// SQLite: nobody else removes dead letters until this is dropped. On Postgres their rows are locked.
    async fn keep_dead_letters(&self) -> Result<Option<MutexGuard<'_, ()>>> {
        match &self.backend {
            Backend::Postgres(_) => Ok(None),
            Backend::Sqlite(pools) => {
                within(LONG_DEADLINE, async { Ok(Some(pools.dead_letters.lock().await)) }).await
            }
        }
    }

    /// The pools that short reads go to.
    fn readers(&self) -> Backend<&PgPool, &SqlitePool> {
        match &self.backend {
            Backend::Postgres(pools) => Backend::Postgres(&pools.rest),
            Backend::Sqlite(pools) => Backend::Sqlite(&pools.readers),
        }
    }

    /// The pools that lists and searches go to.
    fn lists(&self) -> Backend<&PgPool, &SqlitePool> {
        match &self.backend {
            Backend::Postgres(pools) => Backend::Postgres(&pools.lists),
            Backend::Sqlite(pools) => Backend::Sqlite(&pools.lists),
        }
    }
}

/// Runs a call with a deadline. No async function: that would hold the call twice, and futures of calls are large.
fn within<T>(deadline: Duration, call: impl Future<Output = Result<T>>) -> impl Future<Output = Result<T>> {
    let answer = tokio::time::timeout(deadline, call);
    answer.map(move |answer| answer.unwrap_or(Err(StoreError::Deadline(deadline))))
}

#[async_trait]
impl Store for SqlStore {
    fn failure(&self) -> Failure {
        self.failure.clone()
    }

    fn trouble(&self) -> Option<&'static str> {
        match &self.backend {
            Backend::Postgres(pools) => pools.primary.trouble().or_else(|| pools.health.trouble()),
            Backend::Sqlite(pools) => pools.health.trouble(),
        }
    }

    async fn ping(&self) -> Result<()> {
        within(PING, async {
            on_backend!(self.readers(), |pool| {
                sqlx::query("SELECT 1").execute(pool).await?;
            });
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        match &self.backend {
            Backend::Postgres(pools) => {
                pools.health.stop();
                pools.probes.abort();
                pools.low_water.stop();
                pools.hot.close().await;
                pools.rest.close().await;
                pools.lists.close().await;
                pools.heartbeat.close().await;
                // The pool's end waits for its connection.
                drop(pools.listener.lock().await.take());
                pools.listening.close().await;
            }
            Backend::Sqlite(pools) => {
                pools.health.stop();
                pools.checkup.lock().await.stop().await;
                pools.readers.close().await;
                pools.lists.close().await;
                pools.group.close().await;
                pools.checkpointer.stop();
                pools.checkpoints.close().await;
                pools.writer.close().await;
                pools.lock.note_orderly_end();
            }
        }
    }
}

/// A lane's name, shared by what waits in it.
fn lane(text: &str) -> Arc<str> {
    Arc::from(text)
}
