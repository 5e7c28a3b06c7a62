//! Cancelling many messages.

use std::collections::{HashMap, HashSet};

use sqlx::{PgPool, SqlitePool};

use super::deliveries::{known_times, on_cancelled_again};
use super::query::Query;
use super::tx::Tx;
use super::{Backend, LONG_DEADLINE, SqlStore, messages};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{Cancellation, Look, NodeId, Nodes as _, Result, UnfinishedFilter};

#[derive(sqlx::FromRow)]
struct IdRow {
    message_id: String,
}

#[derive(sqlx::FromRow)]
struct FoundRow {
    message_id: String,
    leased: bool,
}

/// What a step does about deliveries that others have locked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Locked {
    /// It leaves them out. Whoever holds locks and waits for none can't be part of a deadlock.
    Skip,
    /// It waits for them, which is safe while it holds no other.
    Wait,
}

/// What the node has leased and a user has cancelled.
pub(super) async fn leases(pools: &Backend<&PgPool, &SqlitePool>, node: NodeId) -> Result<Vec<MessageId>> {
    let mut query = Query::new(pools);
    query
        .sql("SELECT message_id FROM deliveries WHERE cancel_requested_at IS NOT NULL AND node = ")
        .number(node.0);
    ids(query, pools).await
}

/// Those of the messages that are cancelled and not finished.
pub(super) async fn requested(
    pools: &Backend<&PgPool, &SqlitePool>,
    among: &[MessageId],
) -> Result<Vec<MessageId>> {
    let among: Vec<&str> = among.iter().map(MessageId::as_str).collect();
    let mut query = Query::new(pools);
    query
        .sql("SELECT message_id FROM deliveries WHERE cancel_requested_at IS NOT NULL AND message_id ")
        .one_of(&among);
    ids(query, pools).await
}

async fn ids(query: Query, pools: &Backend<&PgPool, &SqlitePool>) -> Result<Vec<MessageId>> {
    let rows: Vec<IdRow> = query.fetch(pools).await?;
    Ok(rows.into_iter().map(|row| MessageId::new(row.message_id)).collect())
}

/// Cancels messages: at first those that nobody has locked, then the others one by one.
pub(super) async fn cancel_many(
    store: &SqlStore,
    ids: &[MessageId],
    now: Timestamp,
) -> Result<Vec<Cancellation>> {
    let texts: Vec<&str> = ids.iter().map(MessageId::as_str).collect();
    let step = async |ids: &[&str], locked: Locked| {
        store.write(LONG_DEADLINE, async |tx| cancel(tx, ids, locked, now).await).await
    };
    let mut found = step(&texts, Locked::Skip).await?;
    if found.len() < ids.len() && store.is_shared() {
        let rest: Vec<&str> = texts.into_iter().filter(|id| !found.contains_key(*id)).collect();
        for row in not_cancelled(&store.readers(), &rest).await? {
            found.extend(step(&[&row.message_id], Locked::Wait).await?);
        }
    }
    Ok(ids.iter().map(|id| found.remove(id.as_str()).unwrap_or(Cancellation::NotFound)).collect())
}

/// Unfinished messages that nobody has cancelled, after `after`.
pub(super) async fn unfinished(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &UnfinishedFilter,
    after: Option<&MessageId>,
    count: usize,
) -> Result<Look> {
    let mut query = Query::new(pools);
    query.sql("SELECT message_id FROM deliveries WHERE cancel_requested_at IS NULL");
    if let Some(after) = after {
        query.sql(" AND message_id > ").text(after.as_str());
    }
    query.accepted("message_id", filter.from, filter.to);
    query.sql(" ORDER BY message_id LIMIT ").number(i64::try_from(count).unwrap_or(i64::MAX));
    let rows: Vec<IdRow> = query.fetch(pools).await?;
    let next = rows.last().filter(|_| rows.len() >= count).map(|row| MessageId::new(row.message_id.as_str()));
    let mut ids: Vec<String> = rows.into_iter().map(|row| row.message_id).collect();
    if !filter.matching.is_empty() {
        let texts: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut matching = HashSet::new();
        for part in texts.chunks(messages::MATCHED) {
            matching.extend(messages::matching(pools, part, &filter.matching).await?);
        }
        ids.retain(|id| matching.contains(id));
    }
    Ok(Look { found: ids.into_iter().map(MessageId::new).collect(), next })
}

async fn not_cancelled(pools: &Backend<&PgPool, &SqlitePool>, ids: &[&str]) -> Result<Vec<IdRow>> {
    let mut query = Query::new(pools);
    query
        .sql("SELECT message_id FROM deliveries WHERE cancel_requested_at IS NULL AND message_id ")
        .one_of(ids);
    query.fetch(pools).await
}

/// Removes waiting deliveries and marks leased ones, of those that nobody has cancelled.
async fn cancel(
    tx: &mut Tx,
    ids: &[&str],
    locked: Locked,
    now: Timestamp,
) -> Result<HashMap<String, Cancellation>> {
    let mut query = Query::new(&tx.on);
    query
        .sql(
            "SELECT d.message_id, d.node <> 0 AS leased FROM deliveries d \
             WHERE d.cancel_requested_at IS NULL AND d.message_id ",
        )
        .one_of(ids)
        .lock(match locked {
            Locked::Skip => " FOR UPDATE OF d SKIP LOCKED",
            Locked::Wait => " FOR UPDATE OF d",
        });
    let found: Vec<FoundRow> = query.fetch_in(tx).await?;
    let of = |leased: bool| -> Vec<&str> {
        found.iter().filter(|row| row.leased == leased).map(|row| row.message_id.as_str()).collect()
    };
    let (waiting, leased) = (of(false), of(true));

    let mut record = Query::new(&tx.on);
    record
        .sql(
            "INSERT INTO cancellations (message_id, requested_at, cancelled_at) \
             SELECT message_id, at, CASE WHEN node = 0 THEN at END \
             FROM (SELECT d.message_id, d.node, (SELECT MAX(known.at) FROM (SELECT CAST(",
        )
        .number(now.as_millis())
        .sql(concat!(
            " AS BIGINT) AS at",
            known_times!("d.message_id"),
            " AS at FROM deliveries d WHERE d.message_id "
        ))
        .one_of(&[&waiting[..], &leased[..]].concat())
        .sql(concat!(") AS c", on_cancelled_again!()));
    record.execute_in(tx).await?;
    let mut remove = Query::new(&tx.on);
    remove.sql("DELETE FROM deliveries WHERE message_id ").one_of(&waiting);
    remove.execute_in(tx).await?;
    let mut mark = Query::new(&tx.on);
    mark.sql("UPDATE deliveries SET cancel_requested_at = ").number(now.as_millis());
    mark.sql(" WHERE message_id ").one_of(&leased);
    mark.execute_in(tx).await?;

    let cancellation = |leased| if leased { Cancellation::Requested } else { Cancellation::Cancelled };
    Ok(found.into_iter().map(|row| (row.message_id, cancellation(row.leased))).collect())
}
