//! The trait [`Gates`] of the store on SQL: which connection each call takes.

use std::sync::Arc;

use async_trait::async_trait;

use super::{claim_postgres, claim_sqlite};
use crate::domain::time::Timestamp;
use crate::store::gates::{DueGates, GateStep, Gates, Pass, Snapshot};
use crate::store::sql::rewind::rewind;
use crate::store::sql::tx::begin_immediate;
use crate::store::sql::{Backend, DEADLINE, SqlStore, within};
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
