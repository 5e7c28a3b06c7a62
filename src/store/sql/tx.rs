//! Transactions that write. They know what they make claimable, and lower the low-water mark when they end.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Postgres, Sqlite, SqlitePool, Transaction};

use super::gates::entering::{AtTime, Conn};
use super::low_water::LowWater;
use super::{Backend, SqlStore, within};
use crate::domain::time::Timestamp;
use crate::store::{Accept, Result};

/// A transaction that may write, on either engine.
pub(super) struct Tx {
    pub(super) on: Backend<Transaction<'static, Postgres>, Transaction<'static, Sqlite>>,
    /// When it began, by SQLite's clock; Postgres has its own.
    pub(super) now: Timestamp,
    pub(super) claimable: Claimable,
}

impl Tx {
    /// Its connection, and what it makes claimable.
    pub(super) fn parts(&mut self) -> (Conn<'_>, &mut Claimable) {
        let conn = match &mut self.on {
            Backend::Postgres(tx) => Conn::Postgres(&mut **tx),
            Backend::Sqlite(tx) => Conn::Sqlite(AtTime { conn: tx, now: self.now }),
        };
        (conn, &mut self.claimable)
    }
}

/// The earliest due time of what a step makes claimable. Lowers the low-water mark to it when it is dropped, which must
/// not be before the step has taken effect or can't any more.
pub(super) struct Claimable {
    /// `None` on SQLite, which has no such mark.
    low_water: Option<Arc<LowWater>>,
    due_ms: Option<i64>,
}

impl Claimable {
    /// Nothing claimable yet, of a step on Postgres.
    pub(super) const fn below(low_water: Arc<LowWater>) -> Self {
        Self { low_water: Some(low_water), due_ms: None }
    }

    /// For a step that nobody else sees.
    pub(super) const fn unseen() -> Self {
        Self { low_water: None, due_ms: None }
    }

    /// Notes deliveries that become claimable with this due time or later, in Unix milliseconds.
    pub(super) fn from(&mut self, due_ms: i64) {
        self.due_ms = Some(self.due_ms.map_or(due_ms, |before| before.min(due_ms)));
    }

    /// Notes deliveries of any due time.
    pub(super) fn anything(&mut self) {
        self.from(i64::MIN);
    }

    /// Notes new messages, of which those that are stored leased wait for nobody.
    pub(super) fn accepted(&mut self, batch: &[Accept]) {
        let waiting = batch.iter().filter(|accept| accept.lease.is_none());
        if let Some(due_at) = waiting.map(|accept| accept.message.due_at).min() {
            self.from(due_at.as_millis());
        }
    }
}

impl Drop for Claimable {
    fn drop(&mut self) {
        if let (Some(low_water), Some(due_ms)) = (&self.low_water, self.due_ms) {
            low_water.lower(due_ms);
        }
    }
}

/// Starts a transaction of SQLite's only connection that writes: one that began by reading and wrote later could fail at
/// once with `SQLITE_BUSY`.
pub(super) async fn begin_immediate(writer: &SqlitePool) -> Result<Transaction<'static, Sqlite>> {
    Ok(writer.begin_with("BEGIN IMMEDIATE").await?)
}

impl SqlStore {
    /// Runs a step in a transaction of its own, which is committed if the step succeeds.
    pub(super) async fn write<T>(
        &self,
        deadline: Duration,
        step: impl AsyncFnOnce(&mut Tx) -> Result<T>,
    ) -> Result<T> {
        within(deadline, async {
            let mut tx = self.begin().await?;
            // Boxed, since futures of steps are large.
            let done = Box::pin(step(&mut tx)).await?;
            self.commit(tx).await?;
            Ok(done)
        })
        .await
    }

    /// Starts a transaction that may write.
    pub(super) async fn begin(&self) -> Result<Tx> {
        let (on, claimable) = match &self.backend {
            Backend::Postgres(pools) => {
                (Backend::Postgres(pools.rest.begin().await?), Claimable::below(Arc::clone(&pools.low_water)))
            }
            Backend::Sqlite(pools) => {
                let tx = pools.health.watch(begin_immediate(&pools.writer)).await?;
                (Backend::Sqlite(tx), Claimable::unseen())
            }
        };
        Ok(Tx { on, now: self.clock.now(), claimable })
    }

    /// Ends a transaction. On Postgres only what is on the primary counts.
    pub(super) async fn commit(&self, tx: Tx) -> Result<()> {
        let Tx { on, claimable: _until_the_end, .. } = tx;
        let commit = async {
            match (on, &self.backend) {
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
}
