//! Whether the store can be written to.
//!
//! A write that fails for the store's sake, or takes long, makes it unwritable at once. From then on a write is tried each
//! second: a real one, of a message, synced like the others, so that what keeps messages from being stored keeps it
//! from succeeding. The first one that succeeds ends the trouble.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, SqliteConnection, SqlitePool};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::tx::{Claimable, begin_immediate};
use super::{Backend, hot_postgres, hot_sqlite, within};
use crate::chance::Chance;
use crate::clock::{Clock, pause};
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::failure::Failure;
use crate::store::{Accept, NodeId, Repeat, Result, StoreError};

/// A write that takes longer than this counts as one that fails.
const SLOW: Duration = Duration::from_secs(2);
/// From a failed write to the next try.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// Limit for a try on Postgres. SQLite has a limit of its own for the wait for a lock.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of the message that is tried, random, so that they take the room that they seem to.
const SIZE: usize = 8 << 10;

/// Whether writes to the store succeed, as far as the last ones tell.
pub(super) struct Health {
    task: OnceLock<AbortHandle>,
    last: Mutex<Option<Trouble>>,
    /// Rung when there is trouble.
    bell: Notify,
}

#[derive(Clone, Copy)]
struct Trouble {
    /// Of the last write that failed.
    at: Instant,
    reason: &'static str,
}

impl Health {
    /// Starts the task that tries to write while there is trouble.
    pub(super) fn start(
        to: Backend<PgConnectOptions, SqlitePool>,
        clock: &Clock,
        failure: &Failure,
    ) -> Arc<Self> {
        let health = Arc::new(Self { task: OnceLock::new(), last: Mutex::new(None), bell: Notify::new() });
        let task = failure.spawn("trying to write", run(Arc::clone(&health), to, clock.clone()));
        health.task.get_or_init(|| task.abort_handle());
        health
    }

    /// Ends the task.
    pub(super) fn stop(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Why the store can't be written to; `None`: as far as is known, it can.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.last().map(|trouble| trouble.reason)
    }

    /// Takes note of how a write ends, and of one that takes long before it does.
    pub(super) async fn watch<T>(&self, write: impl Future<Output = Result<T>>) -> Result<T> {
        let mut write = pin!(write);
        let result = if let Ok(result) = tokio::time::timeout(SLOW, write.as_mut()).await {
            result
        } else {
            self.note("it does not answer in time");
            write.await
        };
        if let Some(reason) = result.as_ref().err().and_then(StoreError::trouble) {
            self.note(reason);
        }
        result
    }

    fn last(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, reason: &'static str) {
        let before = self.last().replace(Trouble { at: Instant::now(), reason });
        if before.is_none() {
            tracing::warn!(reason, "the database can't be written to: not ready");
            self.bell.notify_one();
        }
    }

    /// Ends the trouble, unless a write has failed since this one began.
    fn wrote(&self, began: Instant) {
        let mut last = self.last();
        if last.is_some_and(|trouble| trouble.at < began) {
            *last = None;
            tracing::info!("the database can be written to again");
        }
    }
}

async fn run(health: Arc<Health>, to: Backend<PgConnectOptions, SqlitePool>, clock: Clock) {
    loop {
        health.bell.notified().await;
        while let Some(at) = { health.last().map(|trouble| trouble.at) } {
            pause(TRY_EVERY.saturating_sub(at.elapsed())).await;
            let began = Instant::now();
            match try_to_write(&to, clock.now()).await {
                Ok(()) => health.wrote(began),
                Err(error) => health.note(error.trouble().unwrap_or("it refuses to store messages")),
            }
        }
    }
}

async fn try_to_write(to: &Backend<PgConnectOptions, SqlitePool>, now: Timestamp) -> Result<()> {
    match to {
        Backend::Postgres(options) => {
            within(LIMIT, async {
                let mut connection = options.connect().await?;
                on_postgres(&mut connection, now).await?;
                connection.close().await?;
                Ok(())
            })
            .await
        }
        Backend::Sqlite(writer) => {
            let mut tx = begin_immediate(writer).await?;
            on_sqlite(&mut tx, now).await?;
            tx.commit().await?;
            Ok(())
        }
    }
}

/// Nobody else sees the message: it goes in the transaction that it came in.
async fn on_postgres(connection: &mut PgConnection, now: Timestamp) -> Result<()> {
    let mut tx = connection.begin().await?;
    let accept = message(now);
    let batch = std::slice::from_ref(&accept);
    hot_postgres::accept(&mut tx, &mut Claimable::unseen(), NodeId(0), batch, Repeat::First, None).await?;
    for sql in REMOVE {
        sqlx::query(sql).bind(accept.message.id.as_str()).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn on_sqlite(connection: &mut SqliteConnection, now: Timestamp) -> Result<()> {
    let accept = message(now);
    hot_sqlite::accept(connection, NodeId(0), &[&accept], Repeat::First, None, now).await?;
    for sql in REMOVE {
        sqlx::query(sql).bind(accept.message.id.as_str()).execute(&mut *connection).await?;
    }
    Ok(())
}

const REMOVE: [&str; 2] =
    ["DELETE FROM deliveries WHERE message_id = $1", "DELETE FROM messages WHERE id = $1"];

fn message(now: Timestamp) -> Accept {
    let chance = Chance::system();
    let body: [[u8; 32]; SIZE / 32] = std::array::from_fn(|_| chance.random());
    let id = MessageId::generate(now, chance.random());
    let message = Message::plain(id, now, "http://localhost/", body.concat().into());
    Accept::waiting(Arc::new(message), super::lane("probe"))
}
