//! The traits [`Gates`] and [`Queues`] of the store on SQL: which connection each call takes.

use std::sync::Arc;

use async_trait::async_trait;

use super::{claim_postgres, claim_sqlite};
use crate::domain::gate::FlowChange;
use crate::domain::time::Timestamp;
use crate::store::gates::{DueGates, FlowKey, GateStep, Gates, Pass, Queue, QueueRemoval, Queues, Snapshot};
use crate::store::sql::rewind::rewind;
use crate::store::sql::tx::begin_immediate;
use crate::store::sql::{Backend, DEADLINE, LONG_DEADLINE, SqlStore, within};
use crate::store::{Delivery, Lease, NodeId, Result};

#[async_trait]
impl Gates for SqlStore {
    async fn snapshot_gates(&self, names: &[Arc<str>], count: usize) -> Result<Snapshot> {
        match &self.backend {
            Backend::Postgres(pools) => {
                pools.hot(async |conn| claim_postgres::snapshot(conn, names, count).await).await
            }
            Backend::Sqlite(pools) => {
                claim_sqlite::snapshot(&pools.readers, names, count, self.clock.now()).await
            }
        }
    }

    async fn pass_gates(
        &self,
        node: NodeId,
        lease: Lease,
        steps: &[GateStep],
        passes: &[Pass],
        now: Timestamp,
    ) -> Result<Vec<Delivery>> {
        match &self.backend {
            Backend::Postgres(pools) => {
                pools
                    .hot(async |conn| claim_postgres::pass(conn, node, lease, steps, passes, now).await)
                    .await
            }
            Backend::Sqlite(pools) => {
                claim_sqlite::pass(&pools.writer, node, lease, steps, passes, now).await
            }
        }
    }

    async fn rest_gates(&self, gates: &[(Arc<str>, Timestamp)]) -> Result<()> {
        match &self.backend {
            Backend::Postgres(pools) => pools.hot(async |conn| super::rest_postgres(conn, gates).await).await,
            Backend::Sqlite(pools) => super::rest_sqlite(&pools.writer, gates, &self.clock).await,
        }
    }

    async fn due_gates(&self, limit: usize) -> Result<DueGates> {
        within(DEADLINE, super::due(&self.readers(), limit, self.clock.now())).await
    }

    async fn wake_gates(&self) -> Result<()> {
        match &self.backend {
            Backend::Postgres(pools) => {
                pools.hot(async |conn| Ok(sqlx::query(super::WAKE_POSTGRES).execute(conn).await?)).await?;
            }
            Backend::Sqlite(pools) => {
                let now = self.clock.now();
                let mut tx = begin_immediate(&pools.writer).await?;
                rewind(&mut tx, now).await?;
                sqlx::query(super::WAKE_SQLITE).bind(now.as_millis()).execute(&mut *tx).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Queues for SqlStore {
    async fn upsert_queue(
        &self,
        name: &str,
        parallelism: Option<u32>,
        paused: Option<bool>,
        max: Option<u32>,
        now: Timestamp,
    ) -> Result<bool> {
        self.write(DEADLINE, async |tx| super::upsert_queue(tx, name, parallelism, paused, max, now).await)
            .await
    }

    async fn pause_queue(&self, name: &str, paused: bool, now: Timestamp) -> Result<bool> {
        self.write(DEADLINE, async |tx| super::pause_queue(tx, name, paused, now).await).await
    }

    async fn queue(&self, name: &str) -> Result<Option<Queue>> {
        within(DEADLINE, super::queue(&self.readers(), name)).await
    }

    async fn queues(&self) -> Result<Vec<Queue>> {
        within(LONG_DEADLINE, super::queues(&self.readers())).await
    }

    async fn may_use_queue(&self, name: &str, max: u32) -> Result<bool> {
        within(DEADLINE, super::may_use(&self.readers(), name, max)).await
    }

    async fn remove_queue(&self, name: &str, now: Timestamp) -> Result<QueueRemoval> {
        self.write(LONG_DEADLINE, async |tx| super::remove_queue(tx, name, now).await).await
    }

    async fn change_flow_key(&self, key: &str, change: &FlowChange, now: Timestamp) -> Result<bool> {
        self.write(DEADLINE, async |tx| super::change_flow_key(tx, key, change, now).await).await
    }

    async fn flow_key(&self, key: &str, now: Timestamp) -> Result<Option<FlowKey>> {
        within(DEADLINE, super::flow_key(&self.readers(), key, now)).await
    }

    async fn flow_keys(&self, containing: &str, now: Timestamp) -> Result<Vec<FlowKey>> {
        within(LONG_DEADLINE, super::flow_keys(&self.readers(), containing, now)).await
    }
}
