//! The store on SQL: one text for both engines, except for the few hot steps, which have one each.
//!
//! `hot_postgres` and `hot_sqlite` hold accept, claim and finish, to be read side by side. Everything else is in a
//! file per table, written once and expanded for each engine by `on_backend!`. Time enters every statement as a
//! parameter in Unix milliseconds; only Postgres' claim asks the database's own clock.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgListener};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Sqlite, SqlitePool, Transaction,
};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::AbortHandle;

use super::{
    Accept, Accepted, Applied, Cancellation, DeadLetter, DeadLetterFilter, Delivery, DueLanes, Ended,
    Gates as _, Lease, LetterPage, LetterPlace, LogCursor, LogFilter, LogPage, Missing, NextDue, NodeId,
    Order, Repeat, Result, Retention, SigningKeyPair, Store, StoreError, StoredKeys, Want,
};
use crate::clock::Clock;
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
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
mod gates;
mod health;
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
mod schedules;
mod secrets;
mod situation;
mod url_groups;
mod vacuum;
mod writer;

use self::health::Health;
use self::low_water::{Look, LowWater, LowerAtEnd};
use self::primary::Primary;
pub use self::vacuum::VACUUM_AFTER;
use self::writer::Writer;

/// A value that exists once per engine: a pool, a transaction.
pub enum Backend<P, S> {
    Postgres(P),
    Sqlite(S),
}

/// A transaction on either engine.
pub(crate) type Tx = Backend<Transaction<'static, Postgres>, Transaction<'static, Sqlite>>;

/// The engines' migrations; the same numbers and names in both folders.
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Deadline of a call to Postgres, the wait for a connection included. A database that is slower than this is away.
const DEADLINE: Duration = Duration::from_secs(5);
/// Limit for the answer whether the database can be read.
const PING: Duration = Duration::from_secs(2);
/// The same for a page of a list, which looks for a second or so, waits for others, and reads bodies.
const LIST_DEADLINE: Duration = Duration::from_secs(20);
/// The same for retention and takeovers, which may read much.
const LONG_DEADLINE: Duration = Duration::from_mins(1);

/// The channel on which nodes tell each other of rare changes that all must know. Never used for messages: Postgres takes
/// a global lock at the commit of a transaction that notifies.
const CHANGES: &str = "homing_changes";
const NOTIFY_CHANGE: &str = "NOTIFY homing_changes";

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
    /// Postgres: deliveries that are finished between two vacuums of their table.
    pub vacuum_after: u64,
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
    vacuum: vacuum::Vacuum,
    /// For migrations, which may wait and take long.
    unlimited: PgConnectOptions,
    health: Arc<Health>,
    primary: Arc<Primary>,
    /// The task that looks for the primary.
    looks: AbortHandle,
}

impl PostgresPools {
    /// A step that writes on a hot connection; it has taken effect only where that leads to the primary.
    async fn hot_write<T>(&self, step: impl AsyncFnOnce(&mut PgConnection) -> Result<T>) -> Result<T> {
        let ticket = self.primary.ticket();
        let mut conn = hot_postgres::acquire(&self.hot, DEADLINE).await?;
        let step = async {
            let done = step(&mut conn).await?;
            self.primary.settle(&mut conn, ticket).await?;
            Ok(done)
        };
        let result = tokio::time::timeout(DEADLINE, step).await;
        hot_postgres::give_back(conn, DEADLINE, result)
    }
}

/// SQLite: one writer, and readers beside it. The lock file is held as long as this lives.
struct SqlitePools {
    writer: Arc<Writer>,
    group: hot_sqlite::GroupCommit,
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
                migrated
            }
            Backend::Sqlite(pools) => {
                let migrated = SQLITE_MIGRATIONS.run(&mut *pools.writer.acquire().await?).await;
                return migrated.map_err(|error| damage::migrating(&pools.path, error));
            }
        }
        .map_err(StoreError::Migrate)
    }

    /// Starts a transaction that may write.
    async fn begin(&self) -> Result<Tx> {
        Ok(match &self.backend {
            Backend::Postgres(pools) => Backend::Postgres(pools.rest.begin().await?),
            Backend::Sqlite(pools) => Backend::Sqlite(pools.health.watch(pools.writer.begin()).await?),
        })
    }

    /// Ends it. On Postgres only what is on the primary counts.
    async fn commit(&self, tx: Tx) -> Result<()> {
        let commit = async {
            match (tx, &self.backend) {
                (Backend::Postgres(mut tx), Backend::Postgres(pools)) => {
                    let ticket = pools.primary.ticket();
                    pools.primary.check(&mut tx).await?;
                    tx.commit().await?;
                    pools.primary.confirm(ticket).await
                }
                (tx, _) => on_backend!(tx, |tx| Ok(tx.commit().await?)),
            }
        };
        self.health().watch(commit).await
    }

    fn health(&self) -> &Health {
        match &self.backend {
            Backend::Postgres(pools) => &pools.health,
            Backend::Sqlite(pools) => &pools.health,
        }
    }

    /// To be held over a step, its commit included, that lets deliveries wait with this due time or later, in Unix
    /// milliseconds: looks go back that far afterwards.
    fn bringing_back(&self, due_ms: i64) -> Option<LowerAtEnd<'_>> {
        match &self.backend {
            Backend::Postgres(pools) => Some(LowerAtEnd { low_water: &pools.low_water, due_ms }),
            Backend::Sqlite(_) => None,
        }
    }

    /// The same for new messages.
    fn bringing<'a>(&self, accepts: impl Iterator<Item = &'a Accept>) -> Option<LowerAtEnd<'_>> {
        let due_at = accepts.map(|accept| accept.message.due_at).min()?;
        self.bringing_back(due_at.as_millis())
    }

    /// SQLite: nobody else removes dead letters until this is dropped. On Postgres their rows are locked.
    async fn keep_dead_letters(&self) -> Option<MutexGuard<'_, ()>> {
        match &self.backend {
            Backend::Postgres(_) => None,
            Backend::Sqlite(pools) => Some(pools.dead_letters.lock().await),
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

/// Runs a call with a deadline.
async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(deadline, call).await.map_err(|_| StoreError::Deadline(deadline))?
}

#[async_trait]
impl Store for SqlStore {
    fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Postgres(_))
    }

    async fn now(&self) -> Result<Timestamp> {
        match &self.backend {
            Backend::Postgres(pools) => within(DEADLINE, hot_postgres::now(&pools.rest)).await,
            Backend::Sqlite(_) => Ok(self.clock.now()),
        }
    }

    async fn register(&self, node: NodeId, name: &str) -> Result<()> {
        within(LONG_DEADLINE, async {
            let _brings = self.bringing_back(i64::MIN);
            let mut tx = self.begin().await?;
            nodes::free_namesakes(&mut tx, name).await?;
            // One that was taken over may have stored leases after that; nobody would look for them.
            nodes::free_orphans(&mut tx, node).await?;
            nodes::insert(&mut tx, node, name, self.clock.now()).await?;
            self.commit(tx).await
        })
        .await?;
        self.wake_gates().await
    }

    async fn rejoin(&self, node: NodeId, name: &str) -> Result<()> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            nodes::insert(&mut tx, node, name, self.clock.now()).await?;
            self.commit(tx).await
        })
        .await
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Option<Timestamp>> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let beat = within(DEADLINE, nodes::heartbeat(&pools.heartbeat, node));
                pools.health.watch(beat).await
            }
            // The file is locked: nobody can have taken over.
            Backend::Sqlite(_) => Ok(Some(self.clock.now())),
        }
    }

    async fn take_over(&self, ttl: Duration) -> Result<u64> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let dead = within(LONG_DEADLINE, nodes::take_over(&pools.rest, ttl)).await;
                if !matches!(dead, Ok(0)) {
                    pools.low_water.lower(i64::MIN);
                }
                let dead = dead?;
                if dead > 0 {
                    self.wake_gates().await?;
                }
                Ok(dead)
            }
            Backend::Sqlite(_) => Ok(0),
        }
    }

    async fn count_nodes(&self) -> Result<u64> {
        match &self.backend {
            Backend::Postgres(pools) => within(DEADLINE, nodes::count(&pools.rest)).await,
            Backend::Sqlite(_) => Ok(1),
        }
    }

    async fn deregister(&self, node: NodeId) -> Result<()> {
        within(LONG_DEADLINE, async {
            let _brings = self.bringing_back(i64::MIN);
            let mut tx = self.begin().await?;
            nodes::free(&mut tx, node).await?;
            nodes::delete(&mut tx, node).await?;
            self.commit(tx).await
        })
        .await?;
        self.wake_gates().await
    }

    async fn reconcile(&self, node: NodeId, live: &[Lease], last: Lease) -> Result<u64> {
        let freed = within(LONG_DEADLINE, async {
            let _brings = self.bringing_back(i64::MIN);
            let mut tx = self.begin().await?;
            let freed = nodes::free_all_but(&mut tx, node, live, last).await?;
            let orphans = nodes::free_orphans(&mut tx, node).await?;
            self.commit(tx).await?;
            Ok(freed + orphans)
        })
        .await?;
        if freed > 0 {
            self.wake_gates().await?;
        }
        Ok(freed)
    }

    async fn accept(&self, node: NodeId, batch: &[Accept], repeat: Repeat) -> Result<Vec<Accepted>> {
        let followers = deduplication::followers(batch);
        if !followers.is_empty() {
            let leaders = deduplication::leaders(batch, &followers);
            let results = self.accept(node, &leaders, repeat).await?;
            return Ok(deduplication::join(batch, &followers, results));
        }
        match &self.backend {
            Backend::Postgres(pools) => {
                let _brings = self.bringing(batch.iter().filter(|accept| accept.lease.is_none()));
                let write = pools.hot_write(async |conn| {
                    hot_postgres::accept(conn, node, batch, repeat, self.max_queues).await
                });
                pools.health.watch(write).await
            }
            Backend::Sqlite(pools) => {
                pools.health.watch(pools.group.accept(node, batch.to_vec(), repeat)).await
            }
        }
    }

    async fn due_lanes(&self, limit: usize, after: &str) -> Result<DueLanes> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let look = pools.low_water.for_look();
                if let Look::FromAndBeside(_) = look {
                    pools.low_water.look_beside(pools.rest.clone(), &self.failure);
                }
                let mut conn = hot_postgres::acquire(&pools.hot, DEADLINE).await?;
                let step = hot_postgres::due_lanes(&mut conn, limit, after, &pools.low_water, look);
                let result = tokio::time::timeout(DEADLINE, step).await;
                hot_postgres::give_back(conn, DEADLINE, result)
            }
            Backend::Sqlite(pools) => {
                hot_sqlite::due_lanes(&pools.readers, limit, after, self.clock.now()).await
            }
        }
    }

    async fn claim(
        &self,
        node: NodeId,
        lease: Lease,
        wants: &[Want],
        max_bytes: usize,
    ) -> Result<Vec<Delivery>> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let mut conn = hot_postgres::acquire(&pools.hot, DEADLINE).await?;
                let low = pools.low_water.for_claim();
                let claim = async {
                    let step = hot_postgres::claim(&mut conn, node, lease, wants, max_bytes, low);
                    let result = tokio::time::timeout(DEADLINE, step).await;
                    hot_postgres::give_back(conn, DEADLINE, result)
                };
                pools.health.watch(claim).await
            }
            Backend::Sqlite(pools) => {
                let claim = hot_sqlite::claim(&pools.writer, node, lease, wants, max_bytes, self.clock.now());
                pools.health.watch(claim).await
            }
        }
    }

    async fn next_due(&self) -> Result<NextDue> {
        within(DEADLINE, async {
            let low = match &self.backend {
                Backend::Postgres(pools) => pools.low_water.for_claim(),
                Backend::Sqlite(_) => i64::MIN,
            };
            let due_at = deliveries::next_due(&self.readers(), low).await?;
            Ok(NextDue { due_at, now: self.now().await? })
        })
        .await
    }

    async fn finish(&self, node: NodeId, batch: &[Ended]) -> Result<Vec<Applied>> {
        if let Some(repeat) = attempts::first_repeat(batch) {
            let mut applied = self.finish(node, &batch[..repeat]).await?;
            applied.extend(self.finish(node, &batch[repeat..]).await?);
            return Ok(applied);
        }
        match &self.backend {
            Backend::Postgres(pools) => {
                let again = batch.iter().filter_map(attempts::due_again).min();
                let _brings = again.and_then(|due_ms| self.bringing_back(due_ms));
                let write = pools.hot_write(async |conn| hot_postgres::finish(conn, node, batch).await);
                let applied = pools.health.watch(write).await?;
                pools.vacuum.count_ended(batch.len());
                Ok(applied)
            }
            Backend::Sqlite(pools) => pools.health.watch(pools.group.finish(node, batch.to_vec())).await,
        }
    }

    async fn finish_cancelled(
        &self,
        node: NodeId,
        batch: &[(MessageId, Lease)],
        now: Timestamp,
    ) -> Result<u64> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let mut ended = 0;
            for (id, lease) in batch {
                ended += u64::from(deliveries::finish_cancelled(&mut tx, node, id, *lease, now).await?);
            }
            self.commit(tx).await?;
            Ok(ended)
        })
        .await
    }

    async fn count_start(&self, node: NodeId, id: &MessageId, lease: Lease) -> Result<Option<u32>> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let starts = deliveries::count_start(&mut tx, node, id, lease).await?;
            self.commit(tx).await?;
            Ok(starts.map(|starts| u32::try_from(starts).unwrap_or(u32::MAX)))
        })
        .await
    }

    async fn release(&self, node: NodeId, batch: &[(MessageId, Lease)]) -> Result<u64> {
        within(LONG_DEADLINE, async {
            let _brings = self.bringing_back(i64::MIN);
            let mut tx = self.begin().await?;
            let freed = deliveries::release(&mut tx, node, batch).await?;
            self.commit(tx).await?;
            Ok(freed)
        })
        .await
    }

    async fn message(&self, id: &MessageId) -> Result<Option<Message>> {
        within(DEADLINE, messages::get(&self.readers(), id)).await
    }

    async fn cancel(&self, id: &MessageId, now: Timestamp) -> Result<Cancellation> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let cancellation = deliveries::cancel(&mut tx, id, now).await?;
            self.commit(tx).await?;
            Ok(cancellation)
        })
        .await
    }

    async fn log(
        &self,
        filter: &LogFilter,
        order: Order,
        cursor: Option<&LogCursor>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LogPage> {
        within(LIST_DEADLINE, log::page(&self.lists(), filter, order, cursor, count, max_bytes)).await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        within(DEADLINE, dead_letters::get(&self.readers(), id)).await
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LetterPage<DeadLetter>> {
        within(LIST_DEADLINE, dead_letters::page(&self.lists(), filter, order, after, count, max_bytes)).await
    }

    async fn dead_letter_places(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
    ) -> Result<LetterPage<LetterPlace>> {
        within(LIST_DEADLINE, dead_letters::places(&self.lists(), filter, order, after, count)).await
    }

    async fn delete_dead_letters(&self, ids: &[DeadLetterId]) -> Result<u64> {
        within(LONG_DEADLINE, async {
            let ids: Vec<&str> = ids.iter().map(DeadLetterId::as_str).collect();
            let _kept = self.keep_dead_letters().await;
            let mut tx = self.begin().await?;
            let deleted = dead_letters::delete(&mut tx, &ids).await?;
            self.commit(tx).await?;
            Ok(deleted)
        })
        .await
    }

    async fn retry_dead_letters(
        &self,
        replacements: &[(DeadLetterId, Accept)],
        missing: Missing,
    ) -> Result<Vec<bool>> {
        within(LONG_DEADLINE, async {
            let _kept = self.keep_dead_letters().await;
            let parts = match &self.backend {
                Backend::Postgres(_) => vec![replacements],
                Backend::Sqlite(_) => dead_letters::parts(replacements),
            };
            if parts.len() > 1 && missing == Missing::Refuse {
                let ids: Vec<&DeadLetterId> = replacements.iter().map(|(id, _)| id).collect();
                if !dead_letters::all_exist(&self.readers(), &ids).await? {
                    return Ok(vec![false; replacements.len()]);
                }
            }
            let _brings = self.bringing(replacements.iter().map(|(_, accept)| accept));
            let mut replaced = Vec::with_capacity(replacements.len());
            for part in parts {
                let mut tx = self.begin().await?;
                replaced.extend(
                    dead_letters::replace(&mut tx, part, missing, self.max_queues, self.clock.now()).await?,
                );
                self.commit(tx).await?;
            }
            Ok(replaced)
        })
        .await
    }

    async fn signing_keys(&self, fresh: &StoredKeys, now: Timestamp) -> Result<StoredKeys> {
        within(DEADLINE, async {
            // Every node asks again and again, and there are some but at the very first time.
            if let Some(stored) = secrets::stored(&self.readers()).await? {
                return Ok(stored);
            }
            let mut tx = self.begin().await?;
            let pair = secrets::signing_keys(&mut tx, fresh, now).await?;
            self.commit(tx).await?;
            Ok(pair)
        })
        .await
    }

    async fn rotate_signing_keys(&self, fresh: &str, now: Timestamp) -> Result<SigningKeyPair> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let pair = secrets::rotate(&mut tx, fresh, now).await?;
            if let Tx::Postgres(tx) = &mut tx {
                sqlx::query(NOTIFY_CHANGE).execute(&mut **tx).await?;
            }
            self.commit(tx).await?;
            Ok(pair)
        })
        .await
    }

    async fn set_signing_keys(&self, keys: &StoredKeys, now: Timestamp) -> Result<()> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            secrets::set(&mut tx, keys, now).await?;
            self.commit(tx).await
        })
        .await
    }

    async fn tokens(&self, fresh: &[u8; 32], now: Timestamp) -> Result<(Vec<[u8; 32]>, bool)> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let tokens = secrets::tokens(&mut tx, fresh, now).await?;
            self.commit(tx).await?;
            Ok(tokens)
        })
        .await
    }

    async fn prune(&self, retention: Retention, now: Timestamp, after: &str) -> Result<Option<String>> {
        within(LONG_DEADLINE, async {
            let _kept = self.keep_dead_letters().await;
            let idle_keys = match after {
                "" => gates::idle_keys(&self.readers(), now.before(retention.log)).await?,
                _ => Vec::new(),
            };
            let mut tx = self.begin().await?;
            let next = retention::prune(&mut tx, retention, now, after, &idle_keys).await?;
            self.commit(tx).await?;
            Ok(next)
        })
        .await
    }

    async fn changed_elsewhere(&self) -> Result<()> {
        let Backend::Postgres(pools) = &self.backend else { return std::future::pending().await };
        let mut place = pools.listener.lock().await;
        let Some((mut listener, ticket)) = place.take() else {
            let ticket = pools.primary.ticket();
            let mut listener = PgListener::connect_with(&pools.listening).await?;
            listener.listen(CHANGES).await?;
            *place = Some((listener, ticket));
            // What changed before this was heard by nobody.
            return Ok(());
        };
        // Nothing was received when the connection was lost and made anew. What was said meanwhile was heard by nobody, so
        // it counts as a change. A listener that can't connect, or leads to a former primary, is not put back.
        tokio::select! {
            biased;
            heard = listener.try_recv() => {
                let _change = heard?;
                *place = Some((listener, ticket));
            }
            () = pools.primary.moved(ticket) => {}
        }
        Ok(())
    }

    async fn tell_others(&self) -> Result<()> {
        let Backend::Postgres(pools) = &self.backend else { return Ok(()) };
        within(DEADLINE, async {
            sqlx::query(NOTIFY_CHANGE).execute(&pools.rest).await?;
            Ok(())
        })
        .await
    }

    fn failure(&self) -> Failure {
        self.failure.clone()
    }

    fn trouble(&self) -> Option<&'static str> {
        match &self.backend {
            Backend::Postgres(pools) => pools.primary.trouble().or_else(|| pools.health.trouble()),
            Backend::Sqlite(pools) => pools.health.trouble(),
        }
    }

    fn moves(&self) -> u64 {
        match &self.backend {
            Backend::Postgres(pools) => pools.primary.moves(),
            Backend::Sqlite(_) => 0,
        }
    }

    fn is_followed(&self) -> bool {
        matches!(&self.backend, Backend::Postgres(pools) if pools.primary.is_followed())
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
                pools.looks.abort();
                pools.vacuum.stop();
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

/// A shared lane name.
fn lane(text: &str) -> Arc<str> {
    Arc::from(text)
}
