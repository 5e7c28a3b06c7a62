//! The table `deliveries`, apart from the hot steps: releasing, what is due next.

use std::collections::HashSet;

use sqlx::{PgConnection, PgPool, SqlitePool};

use super::gates::entering::{AtTime, Conn};
use super::tx::{Claimable, Tx};
use super::{Backend, hot_postgres, hot_sqlite};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{Accept, Accepted, DueLanes, Lease, NodeId, Refusal, Repeat, Result, StoreError};

/// Lanes in one step of the walk through all lanes.
pub(super) const LANES_PER_WALK: i64 = 64;

/// The next lanes with anything waiting, in their order, each found with one step down the index.
pub(super) const NEXT_LANES: &str = "WITH RECURSIVE next (lane) AS ( \
         SELECT (SELECT lane FROM deliveries WHERE node = 0 AND gate IS NULL AND lane > $1 ORDER BY lane LIMIT 1) \
         UNION ALL \
         SELECT (SELECT d.lane FROM deliveries d WHERE d.node = 0 AND d.gate IS NULL AND d.lane > next.lane \
                 ORDER BY d.lane LIMIT 1) \
         FROM next WHERE next.lane IS NOT NULL) \
     SELECT lane FROM next WHERE lane IS NOT NULL LIMIT $2";

/// The lanes that are due first and those of one walk by [`NEXT_LANES`], each where it comes first.
pub(super) fn due_lanes(first: Vec<String>, walked: Vec<String>) -> DueLanes {
    let complete = i64::try_from(walked.len()).is_ok_and(|count| count < LANES_PER_WALK);
    let after = walked.last().filter(|_| !complete).cloned().unwrap_or_default();
    let mut seen = HashSet::with_capacity(first.len() + walked.len());
    let lanes = first.into_iter().chain(walked).filter(|lane| seen.insert(lane.clone())).collect();
    DueLanes { lanes, after }
}

/// Stores messages that wait; all of one transaction at once, so that their gates are locked in order.
pub(super) async fn insert(tx: &mut Tx, accepts: &[Accept], max_queues: Option<u32>) -> Result<()> {
    let (mut conn, claimable) = tx.parts();
    store(&mut conn, claimable, accepts, max_queues).await
}

/// Stores messages that wait, in no queue. Each stands by itself: one whose run has ended is left out.
pub(super) async fn insert_on(
    conn: &mut Conn<'_>,
    claimable: &mut Claimable,
    accepts: Vec<Accept>,
) -> Result<()> {
    if accepts.is_empty() {
        return Ok(());
    }
    let numbered = accepts.into_iter().enumerate();
    let accepts: Vec<Accept> = numbered.map(|(request, accept)| Accept { request, ..accept }).collect();
    store(conn, claimable, &accepts, None).await
}

async fn store(
    conn: &mut Conn<'_>,
    claimable: &mut Claimable,
    accepts: &[Accept],
    max_queues: Option<u32>,
) -> Result<()> {
    let (nobody, first) = (NodeId(0), Repeat::First);
    let accepted = match conn {
        Backend::Postgres(conn) => {
            hot_postgres::accept(conn, claimable, nobody, accepts, first, max_queues).await?
        }
        Backend::Sqlite(AtTime { conn, now }) => {
            let accepts: Vec<&Accept> = accepts.iter().collect();
            hot_sqlite::accept(conn, nobody, &accepts, first, max_queues, *now).await?
        }
    };
    let is_too_many = |one: &Accepted| match one {
        Accepted::Refused(Refusal::TooManyQueues(max)) => Some(*max),
        _ => None,
    };
    // They were all asked for together.
    accepted.iter().find_map(is_too_many).map_or(Ok(()), |max| Err(StoreError::TooManyQueues(max)))
}

/// The earliest due time from `low` on of what nobody holds.
pub(super) async fn next_due(pools: &Backend<&PgPool, &SqlitePool>, low: i64) -> Result<Option<Timestamp>> {
    let sql = "SELECT due_at FROM deliveries WHERE node = 0 AND gate IS NULL AND due_at >= 0 AND due_at >= $1 \
               ORDER BY due_at LIMIT 1";
    let due_at: Option<i64> =
        on_backend!(pools, |pool| sqlx::query_scalar(sql).bind(low).fetch_optional(*pool).await?);
    Ok(due_at.map(Timestamp::from_millis))
}

/// Counts the start of a suspect's attempt.
pub(super) async fn count_start(
    tx: &mut Tx,
    node: NodeId,
    id: &MessageId,
    lease: Lease,
) -> Result<Option<i64>> {
    let sql = "UPDATE deliveries SET starts = starts + 1 \
               WHERE message_id = $1 AND node = $2 AND lease = $3 RETURNING starts";
    Ok(on_backend!(&mut tx.on, |tx| {
        sqlx::query_scalar(sql).bind(id.as_str()).bind(node.0).bind(lease.0).fetch_optional(&mut **tx).await?
    }))
}

/// Gives leased deliveries back; the claims do not count, since no attempt was made.
pub(super) async fn release(tx: &mut Tx, node: NodeId, held: &[(MessageId, Lease)]) -> Result<u64> {
    tx.claimable.anything();
    match &mut tx.on {
        Backend::Postgres(tx) => {
            let ids: Vec<&str> = held.iter().map(|(id, _)| id.as_str()).collect();
            let leases: Vec<i64> = held.iter().map(|(_, lease)| lease.0).collect();
            Ok(sqlx::query(
                "UPDATE deliveries d SET node = 0, lease = 0, claims = claims - 1 \
                 FROM unnest($1::text[], $2::bigint[]) AS h (id, lease) \
                 WHERE d.message_id = ANY (ARRAY[h.id]) AND d.node = $3 AND d.lease = h.lease",
            )
            .bind(ids)
            .bind(leases)
            .bind(node.0)
            .execute(&mut **tx)
            .await?
            .rows_affected())
        }
        Backend::Sqlite(tx) => {
            let held: Vec<(&str, i64)> = held.iter().map(|(id, lease)| (id.as_str(), lease.0)).collect();
            Ok(sqlx::query(
                "UPDATE deliveries SET node = 0, lease = 0, claims = claims - 1 WHERE rowid IN ( \
                     SELECT d.rowid FROM json_each($1) h CROSS JOIN deliveries d ON d.message_id = h.value ->> 0 \
                     WHERE d.node = $2 AND d.lease = h.value ->> 1)",
            )
            .bind(super::codec::json(&held))
            .bind(node.0)
            .execute(&mut **tx)
            .await?
            .rows_affected())
        }
    }
}

/// Gives back what can't be read, `$1` milliseconds later.
macro_rules! set_aside {
    () => {
        "node = 0, lease = 0, due_at = due_at + $1, place = place + $1 * 1000, slot = NULL, holder = NULL"
    };
}
pub(super) use set_aside;

/// Gives back what was claimed and can't be read. On Postgres the claim has committed already: where others have taken
/// over meanwhile, it is theirs.
pub(super) async fn set_aside_unreadable(
    conn: &mut PgConnection,
    node: NodeId,
    lease: Lease,
    unreadable: Vec<String>,
) -> Result<()> {
    sqlx::query(concat!(
        "UPDATE deliveries SET ",
        set_aside!(),
        " WHERE message_id = ANY ($2) AND node = $3 AND lease = $4"
    ))
    .bind(SET_ASIDE_MS)
    .bind(unreadable)
    .bind(node.0)
    .bind(lease.0)
    .execute(conn)
    .await?;
    Ok(())
}

/// For how long deliveries are put aside whose messages can't be read: they must not keep the others from being claimed.
pub(super) const SET_ASIDE_MS: i64 = 24 * 60 * 60 * 1000;
