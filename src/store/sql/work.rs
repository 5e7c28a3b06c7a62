//! The [`Work`] of the store on SQL: which connection each call takes.

use async_trait::async_trait;

use super::runs::ending::drop_rest;
use super::tx::Tx;
use super::{
    Backend, DEADLINE, LONG_DEADLINE, SqlStore, attempts, cancelling, deduplication, deliveries,
    finish_postgres, hot_postgres, hot_sqlite, within,
};
use crate::domain::id::MessageId;
use crate::domain::outcome::Effect;
use crate::domain::time::Timestamp;
use crate::store::{
    Accept, Accepted, Applied, Cancellation, Delivery, DueLanes, Ended, Lease, NextDue, NodeId, Nodes as _,
    Repeat, Result, UnfinishedFilter, UnfinishedPage, Want, Work,
};

#[async_trait]
impl Work for SqlStore {
    async fn accept(&self, node: NodeId, batch: &[Accept], repeat: Repeat) -> Result<Vec<Accepted>> {
        let followers = deduplication::followers(batch);
        if !followers.is_empty() {
            let leaders = deduplication::leaders(batch, &followers);
            let results = self.accept(node, &leaders, repeat).await?;
            return Ok(deduplication::join(batch, &followers, results));
        }
        match &self.backend {
            Backend::Postgres(pools) => {
                let max_queues = self.max_queues;
                pools
                    .hot_write(async |conn, claimable| {
                        hot_postgres::accept(conn, claimable, node, batch, repeat, max_queues).await
                    })
                    .await
            }
            Backend::Sqlite(pools) => {
                pools.health.watch(pools.group.accept(node, batch.to_vec(), repeat)).await
            }
        }
    }

    async fn due_lanes(&self, limit: usize, after: &str) -> Result<DueLanes> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let low_water = &pools.low_water;
                low_water.scan_beside(&pools.rest, &self.failure);
                pools.hot(async |conn| hot_postgres::due_lanes(conn, limit, after, low_water).await).await
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
                let low = pools.low_water.due_ms();
                let claim = pools
                    .hot(async |conn| hot_postgres::claim(conn, node, lease, wants, max_bytes, low).await);
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
                Backend::Postgres(pools) => pools.low_water.due_ms(),
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
                let write = async |conn: &mut _, claimable: &mut _| {
                    finish_postgres::finish(conn, claimable, node, batch).await
                };
                let applied = pools.hot_write(write).await?;
                let stored = batch.iter().zip(&applied).filter(|(_, applied)| **applied != Applied::No);
                for effect in stored.flat_map(|(ended, _)| ended.finish.on_runs()) {
                    if let Effect::End(ending) = effect
                        && let Err(error) = drop_rest(self, &ending.instance, ending.at).await
                    {
                        tracing::debug!(%error, "messages of a run that has ended may go on");
                    }
                }
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
        self.write(DEADLINE, async |tx| cancelling::finish(tx, node, batch, now).await).await
    }

    async fn count_start(&self, node: NodeId, id: &MessageId, lease: Lease) -> Result<Option<u32>> {
        let count = async |tx: &mut Tx| deliveries::count_start(tx, node, id, lease).await;
        let starts = self.write(DEADLINE, count).await?;
        Ok(starts.map(|starts| u32::try_from(starts).unwrap_or(u32::MAX)))
    }

    async fn release(&self, node: NodeId, batch: &[(MessageId, Lease)]) -> Result<u64> {
        self.write(LONG_DEADLINE, async |tx| deliveries::release(tx, node, batch).await).await
    }

    async fn cancel(&self, id: &MessageId, now: Timestamp) -> Result<Cancellation> {
        self.write(DEADLINE, async |tx| cancelling::cancel_one(tx, id, now).await).await
    }

    async fn unfinished(
        &self,
        filter: &UnfinishedFilter,
        after: Option<&MessageId>,
        count: usize,
    ) -> Result<UnfinishedPage> {
        within(LONG_DEADLINE, cancelling::unfinished(&self.lists(), filter, after, count)).await
    }

    async fn cancel_many(&self, ids: &[MessageId], now: Timestamp) -> Result<Vec<Cancellation>> {
        within(LONG_DEADLINE, cancelling::cancel_many(self, ids, now)).await
    }

    async fn cancelled_leases(&self, node: NodeId) -> Result<Vec<MessageId>> {
        within(DEADLINE, cancelling::leases(&self.readers(), node)).await
    }
}
