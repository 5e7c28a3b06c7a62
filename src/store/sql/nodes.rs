//! The table `nodes`: who is alive, freeing what the dead held, and telling the others.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgPool;
use sqlx::postgres::PgListener;

use super::tx::Tx;
use super::{Backend, DEADLINE, LONG_DEADLINE, SqlStore, hot_postgres, within};
use crate::domain::time::Timestamp;
use crate::store::{Gates as _, Lease, NodeId, Nodes, Result};

/// Postgres' statement time in Unix milliseconds: stable within a statement, so that an index condition may use it.
macro_rules! now_ms {
    () => {
        "FLOOR(EXTRACT(EPOCH FROM statement_timestamp()) * 1000)::bigint"
    };
}
pub(super) use now_ms;

/// The channel on which nodes tell each other of rare changes that all must know. Never used for messages: Postgres takes
/// a global lock at the commit of a transaction that notifies.
const CHANGES: &str = "homing_changes";
pub(super) const NOTIFY_CHANGE: &str = "NOTIFY homing_changes";

#[async_trait]
impl Nodes for SqlStore {
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
        self.write(LONG_DEADLINE, async |tx| {
            free_namesakes(tx, name).await?;
            // One that was taken over may have stored leases after that; nobody would look for them.
            free_orphans(tx, node).await?;
            insert(tx, node, name).await
        })
        .await?;
        self.wake_gates().await
    }

    async fn rejoin(&self, node: NodeId, name: &str) -> Result<()> {
        self.write(DEADLINE, async |tx| insert(tx, node, name).await).await
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Option<Timestamp>> {
        match &self.backend {
            Backend::Postgres(pools) => {
                let beat = within(DEADLINE, heartbeat(&pools.heartbeat, node));
                pools.health.watch(beat).await
            }
            // The file is locked: nobody can have taken over.
            Backend::Sqlite(_) => Ok(Some(self.clock.now())),
        }
    }

    async fn take_over(&self, ttl: Duration) -> Result<u64> {
        let Backend::Postgres(pools) = &self.backend else { return Ok(0) };
        let silent = within(DEADLINE, silent(&pools.rest, ttl)).await?;
        if silent.is_empty() {
            return Ok(0);
        }
        let dead = self.write(LONG_DEADLINE, async |tx| remove_silent(tx, silent, ttl).await).await?;
        if dead > 0 {
            self.wake_gates().await?;
        }
        Ok(dead)
    }

    async fn count_nodes(&self) -> Result<u64> {
        match &self.backend {
            Backend::Postgres(pools) => within(DEADLINE, count(&pools.rest)).await,
            Backend::Sqlite(_) => Ok(1),
        }
    }

    async fn deregister(&self, node: NodeId) -> Result<()> {
        self.write(LONG_DEADLINE, async |tx| {
            free(tx, node).await?;
            delete(tx, node).await
        })
        .await?;
        self.wake_gates().await
    }

    async fn reconcile(&self, node: NodeId, live: &[Lease], last: Lease) -> Result<u64> {
        let freed = self
            .write(LONG_DEADLINE, async |tx| {
                Ok(free_all_but(tx, node, live, last).await? + free_orphans(tx, node).await?)
            })
            .await?;
        if freed > 0 {
            self.wake_gates().await?;
        }
        Ok(freed)
    }

    async fn changed_elsewhere(&self) -> Result<()> {
        let Backend::Postgres(pools) = &self.backend else { return std::future::pending().await };
        let mut place = pools.listener.lock().await;
        let Some((mut listener, ticket)) = place.take() else {
            let ticket = pools.primary.ticket();
            let mut listener = PgListener::connect_with(&pools.listening).await?;
            listener.listen(CHANGES).await?;
            *place = Some((listener, ticket));
            // A change before this was heard by nobody.
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

    fn moves(&self) -> u64 {
        match &self.backend {
            Backend::Postgres(pools) => pools.primary.moves(),
            Backend::Sqlite(_) => 0,
        }
    }

    fn is_followed(&self) -> bool {
        matches!(&self.backend, Backend::Postgres(pools) if pools.primary.is_followed())
    }
}

/// Registers an incarnation. Its first heartbeat is the statement's own time where others compare it: the transaction
/// and the process may have taken long until then.
async fn insert(tx: &mut Tx, node: NodeId, name: &str) -> Result<()> {
    let now = tx.now;
    match &mut tx.on {
        Backend::Postgres(tx) => {
            sqlx::query(concat!(
                "INSERT INTO nodes (incarnation, name, started_at, heartbeat_at) VALUES ($1, $2, ",
                now_ms!(),
                ", ",
                now_ms!(),
                ")"
            ))
            .bind(node.0)
            .bind(name)
            .execute(&mut **tx)
            .await?;
        }
        Backend::Sqlite(tx) => {
            let sql =
                "INSERT INTO nodes (incarnation, name, started_at, heartbeat_at) VALUES ($1, $2, $3, $3)";
            sqlx::query(sql).bind(node.0).bind(name).bind(now.as_millis()).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

async fn delete(tx: &mut Tx, node: NodeId) -> Result<()> {
    let sql = "DELETE FROM nodes WHERE incarnation = $1";
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql).bind(node.0).execute(&mut **tx).await?;
    });
    Ok(())
}

/// Frees what earlier incarnations of this name held, and ends them. On SQLite, whose file one process holds, whoever
/// held a lease before is gone, whatever its name.
async fn free_namesakes(tx: &mut Tx, name: &str) -> Result<u64> {
    tx.claimable.anything();
    match &mut tx.on {
        Backend::Postgres(tx) => {
            let freed = sqlx::query(
                "UPDATE deliveries SET node = 0, lease = 0 \
                 WHERE node <> 0 AND node IN (SELECT incarnation FROM nodes WHERE name = $1)",
            )
            .bind(name)
            .execute(&mut **tx)
            .await?
            .rows_affected();
            sqlx::query("DELETE FROM nodes WHERE name = $1").bind(name).execute(&mut **tx).await?;
            Ok(freed)
        }
        Backend::Sqlite(tx) => {
            let freed = sqlx::query("UPDATE deliveries SET node = 0, lease = 0 WHERE node <> 0")
                .execute(&mut **tx)
                .await?
                .rows_affected();
            sqlx::query("DELETE FROM nodes").execute(&mut **tx).await?;
            Ok(freed)
        }
    }
}

/// Frees all that a node holds.
async fn free(tx: &mut Tx, node: NodeId) -> Result<u64> {
    tx.claimable.anything();
    let sql = "UPDATE deliveries SET node = 0, lease = 0 WHERE node = $1";
    Ok(on_backend!(&mut tx.on, |tx| sqlx::query(sql).bind(node.0).execute(&mut **tx).await?.rows_affected()))
}

/// Frees what is held by nodes that are not registered, other than `node` itself. A node that was silent for too long
/// may store leases in its old name until it notices, and nobody else would look for that name again.
async fn free_orphans(tx: &mut Tx, node: NodeId) -> Result<u64> {
    tx.claimable.anything();
    // The holders are found first: a delivery that a new node takes meanwhile is not among theirs.
    let sql = "WITH gone AS MATERIALIZED ( \
             SELECT DISTINCT node FROM deliveries WHERE node <> 0 AND node <> $1 \
             AND node NOT IN (SELECT incarnation FROM nodes)) \
         UPDATE deliveries SET node = 0, lease = 0 WHERE node IN (SELECT node FROM gone)";
    Ok(on_backend!(&mut tx.on, |tx| sqlx::query(sql).bind(node.0).execute(&mut **tx).await?.rows_affected()))
}

/// Frees the node's leases up to `last` other than `live`.
async fn free_all_but(tx: &mut Tx, node: NodeId, live: &[Lease], last: Lease) -> Result<u64> {
    tx.claimable.anything();
    let live: Vec<i64> = live.iter().map(|lease| lease.0).collect();
    match &mut tx.on {
        Backend::Postgres(tx) => Ok(sqlx::query(
            "UPDATE deliveries SET node = 0, lease = 0 WHERE node = $1 AND lease <> ALL ($2) AND lease <= $3",
        )
        .bind(node.0)
        .bind(live)
        .bind(last.0)
        .execute(&mut **tx)
        .await?
        .rows_affected()),
        Backend::Sqlite(tx) => {
            let live = super::codec::json(&live);
            Ok(sqlx::query(
                "UPDATE deliveries SET node = 0, lease = 0 \
                 WHERE node = $1 AND lease NOT IN (SELECT value FROM json_each($2)) AND lease <= $3",
            )
            .bind(node.0)
            .bind(live)
            .bind(last.0)
            .execute(&mut **tx)
            .await?
            .rows_affected())
        }
    }
}

async fn heartbeat(pool: &PgPool, node: NodeId) -> Result<Option<Timestamp>> {
    let now: Option<i64> = sqlx::query_scalar(concat!(
        "UPDATE nodes SET heartbeat_at = ",
        now_ms!(),
        " WHERE incarnation = $1 RETURNING heartbeat_at"
    ))
    .bind(node.0)
    .fetch_optional(pool)
    .await?;
    Ok(now.map(Timestamp::from_millis))
}

/// Nodes whose heartbeat is older than `ttl`.
async fn silent(pool: &PgPool, ttl: Duration) -> Result<Vec<i64>> {
    Ok(sqlx::query_scalar(concat!("SELECT incarnation FROM nodes WHERE heartbeat_at < ", now_ms!(), " - $1"))
        .bind(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
        .fetch_all(pool)
        .await?)
}

/// Removes those of the nodes that are still silent. In one statement the nodes go and what they held is free.
async fn remove_silent(tx: &mut Tx, silent: Vec<i64>, ttl: Duration) -> Result<u64> {
    let Backend::Postgres(on) = &mut tx.on else { return Ok(0) };
    tx.claimable.anything();
    let dead: Vec<i64> = sqlx::query_scalar(concat!(
        "WITH dead AS (DELETE FROM nodes WHERE incarnation = ANY ($1) AND heartbeat_at < ",
        now_ms!(),
        " - $2 RETURNING incarnation), \
         freed AS (UPDATE deliveries SET node = 0, lease = 0 \
                   WHERE node <> 0 AND node IN (SELECT incarnation FROM dead)) \
         SELECT incarnation FROM dead"
    ))
    .bind(silent)
    .bind(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
    .fetch_all(&mut **on)
    .await?;
    Ok(dead.len() as u64)
}

async fn count(pool: &PgPool) -> Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM nodes").fetch_one(pool).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}
