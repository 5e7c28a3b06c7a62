//! The [`Gates`] trait of the store on SQL: which connection each call takes, and where its transaction ends.

use std::sync::Arc;

use async_trait::async_trait;

use super::{claim_postgres, claim_sqlite};
use crate::domain::gate::FlowChange;
use crate::domain::time::Timestamp;
use crate::store::gates::{DueGates, FlowKey, GateStep, Gates, Looks, Pass, Queue, QueueRemoval};
use crate::store::sql::rewind::rewind;
use crate::store::sql::{Backend, DEADLINE, LONG_DEADLINE, SqlStore, hot_postgres, within};
use crate::store::{Delivery, Lease, NodeId, Result};

#[async_trait]
impl Gates for SqlStore {
    async fn look_at_gates(&self, names: &[Arc<str>], count: usize) -> Result<Looks> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let mut conn = hot_postgres::acquire(&pools.hot, DEADLINE).await?;
                let step = claim_postgres::look(&mut conn, names, count);
                let result = tokio::time::timeout(DEADLINE, step).await;
                hot_postgres::give_back(conn, DEADLINE, result)
            }
            Backend::Sqlite(pools) => {
                claim_sqlite::look(&pools.readers, names, count, self.clock.now()).await
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
                let mut conn = hot_postgres::acquire(&pools.hot, DEADLINE).await?;
                let step = claim_postgres::pass(&mut conn, node, lease, steps, passes, now);
                let result = tokio::time::timeout(DEADLINE, step).await;
                hot_postgres::give_back(conn, DEADLINE, result)
            }
            Backend::Sqlite(pools) => {
                claim_sqlite::pass(&pools.writer, node, lease, steps, passes, now).await
            }
        }
    }

    async fn rest_gates(&self, gates: &[(Arc<str>, Timestamp)]) -> Result<()> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let mut conn = hot_postgres::acquire(&pools.hot, DEADLINE).await?;
                let step = super::rest_postgres(&mut conn, gates);
                let result = tokio::time::timeout(DEADLINE, step).await;
                hot_postgres::give_back(conn, DEADLINE, result)
            }
            Backend::Sqlite(pools) => super::rest_sqlite(&pools.writer, gates, &self.clock).await,
        }
    }

    async fn due_gates(&self, limit: usize) -> Result<DueGates> {
        within(DEADLINE, super::due(&self.readers(), limit, self.clock.now())).await
    }

    async fn wake_gates(&self) -> Result<()> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let mut conn = hot_postgres::acquire(&pools.hot, DEADLINE).await?;
                let step = async { Ok(sqlx::query(super::WAKE_POSTGRES).execute(&mut *conn).await?) };
                let result = tokio::time::timeout(DEADLINE, step).await;
                hot_postgres::give_back(conn, DEADLINE, result)?;
            }
            Backend::Sqlite(pools) => {
                let now = self.clock.now();
                let mut tx = pools.writer.begin().await?;
                rewind(&mut tx, now).await?;
                sqlx::query(super::WAKE_SQLITE).bind(now.as_millis()).execute(&mut *tx).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }

    async fn upsert_queue(
        &self,
        name: &str,
        parallelism: Option<u32>,
        paused: Option<bool>,
        max: Option<u32>,
        now: Timestamp,
    ) -> Result<bool> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let done = super::upsert_queue(&mut tx, name, parallelism, paused, max, now).await?;
            self.commit(tx).await?;
            Ok(done)
        })
        .await
    }

    async fn pause_queue(&self, name: &str, paused: bool, now: Timestamp) -> Result<bool> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let done = super::pause_queue(&mut tx, name, paused, now).await?;
            self.commit(tx).await?;
            Ok(done)
        })
        .await
    }

    async fn queue(&self, name: &str) -> Result<Option<Queue>> {
        within(DEADLINE, super::queue(&self.readers(), name)).await
    }

    async fn may_use_queue(&self, name: &str, max: u32) -> Result<bool> {
        within(DEADLINE, super::may_use(&self.readers(), name, max)).await
    }

    async fn remove_queue(&self, name: &str, now: Timestamp) -> Result<QueueRemoval> {
        within(LONG_DEADLINE, async {
            let mut tx = self.begin().await?;
            let removal = super::remove_queue(&mut tx, name, now).await?;
            self.commit(tx).await?;
            Ok(removal)
        })
        .await
    }

    async fn change_flow_key(&self, key: &str, change: &FlowChange, now: Timestamp) -> Result<bool> {
        within(DEADLINE, async {
            let mut tx = self.begin().await?;
            let done = super::change_flow_key(&mut tx, key, change, now).await?;
            self.commit(tx).await?;
            Ok(done)
        })
        .await
    }

    async fn flow_key(&self, key: &str, now: Timestamp) -> Result<Option<FlowKey>> {
        within(DEADLINE, super::flow_key(&self.readers(), key, now)).await
    }
}
