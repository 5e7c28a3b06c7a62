//! The table `nodes`: who is alive, and freeing what the dead held.

use std::time::Duration;

use sqlx::PgPool;

use super::Tx;
use crate::domain::time::Timestamp;
use crate::store::{Lease, NodeId, Result};

/// Postgres' statement time in Unix milliseconds: stable within a statement, so that an index condition may use it.
macro_rules! now_ms {
    () => {
        "FLOOR(EXTRACT(EPOCH FROM statement_timestamp()) * 1000)::bigint"
    };
}
pub(super) use now_ms;

/// The stamp is the statement's own time where others compare it, and `now` where there are no others: what happened
/// before in the transaction, or in the process, may have taken long.
pub(super) async fn insert(tx: &mut Tx, node: NodeId, name: &str, now: Timestamp) -> Result<()> {
    match tx {
        Tx::Postgres(tx) => {
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
        Tx::Sqlite(tx) => {
            let sql =
                "INSERT INTO nodes (incarnation, name, started_at, heartbeat_at) VALUES ($1, $2, $3, $3)";
            sqlx::query(sql).bind(node.0).bind(name).bind(now.as_millis()).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

pub(super) async fn delete(tx: &mut Tx, node: NodeId) -> Result<()> {
    let sql = "DELETE FROM nodes WHERE incarnation = $1";
    on_backend!(tx, |tx| {
        sqlx::query(sql).bind(node.0).execute(&mut **tx).await?;
    });
    Ok(())
}

/// Frees what earlier incarnations of this name held, and ends them. On SQLite, whose file one process holds, whoever
/// held a lease before is gone, whatever its name.
pub(super) async fn free_namesakes(tx: &mut Tx, name: &str) -> Result<u64> {
    match tx {
        Tx::Postgres(tx) => {
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
        Tx::Sqlite(tx) => {
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
pub(super) async fn free(tx: &mut Tx, node: NodeId) -> Result<u64> {
    let sql = "UPDATE deliveries SET node = 0, lease = 0 WHERE node = $1";
    Ok(on_backend!(tx, |tx| sqlx::query(sql).bind(node.0).execute(&mut **tx).await?.rows_affected()))
}

/// Frees what is held by nodes that are not registered, other than `node` itself. A node that was silent for too long
/// may store leases in its old name until it notices, and nobody else would look for that name again.
pub(super) async fn free_orphans(tx: &mut Tx, node: NodeId) -> Result<u64> {
    // The holders are found first: a delivery that a new node takes meanwhile is not among theirs.
    let sql = "WITH gone AS MATERIALIZED ( \
             SELECT DISTINCT node FROM deliveries WHERE node <> 0 AND node <> $1 \
             AND node NOT IN (SELECT incarnation FROM nodes)) \
         UPDATE deliveries SET node = 0, lease = 0 WHERE node IN (SELECT node FROM gone)";
    Ok(on_backend!(tx, |tx| sqlx::query(sql).bind(node.0).execute(&mut **tx).await?.rows_affected()))
}

/// Frees the node's leases up to `last` other than `live`.
pub(super) async fn free_all_but(tx: &mut Tx, node: NodeId, live: &[Lease], last: Lease) -> Result<u64> {
    let live: Vec<i64> = live.iter().map(|lease| lease.0).collect();
    match tx {
        Tx::Postgres(tx) => Ok(sqlx::query(
            "UPDATE deliveries SET node = 0, lease = 0 WHERE node = $1 AND lease <> ALL ($2) AND lease <= $3",
        )
        .bind(node.0)
        .bind(live)
        .bind(last.0)
        .execute(&mut **tx)
        .await?
        .rows_affected()),
        Tx::Sqlite(tx) => {
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

pub(super) async fn heartbeat(pool: &PgPool, node: NodeId) -> Result<Option<Timestamp>> {
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

/// One statement: the nodes go, and what they held is free, together.
pub(super) async fn take_over(pool: &PgPool, ttl: Duration) -> Result<u64> {
    let stale: Vec<i64> = sqlx::query_scalar(concat!(
        "SELECT incarnation FROM nodes WHERE heartbeat_at < ",
        now_ms!(),
        " - $1"
    ))
    .bind(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await?;
    if stale.is_empty() {
        return Ok(0);
    }
    let dead: Vec<i64> = sqlx::query_scalar(concat!(
        "WITH dead AS (DELETE FROM nodes WHERE incarnation = ANY ($1) AND heartbeat_at < ",
        now_ms!(),
        " - $2 RETURNING incarnation), \
         freed AS (UPDATE deliveries SET node = 0, lease = 0 \
                   WHERE node <> 0 AND node IN (SELECT incarnation FROM dead)) \
         SELECT incarnation FROM dead"
    ))
    .bind(stale)
    .bind(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await?;
    Ok(dead.len() as u64)
}

pub(super) async fn count(pool: &PgPool) -> Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM nodes").fetch_one(pool).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}
