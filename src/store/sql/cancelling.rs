//! Cancelling messages, on behalf of users: one, many, or all of a queue.

use std::collections::{HashMap, HashSet};

use sqlx::{PgPool, SqlitePool};

use super::query::Query;
use super::tx::Tx;
use super::{Backend, LONG_DEADLINE, SqlStore, messages};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{
    Cancellation, Lease, NodeId, Nodes as _, Owner, Result, UnfinishedFilter, UnfinishedPage,
};

#[derive(sqlx::FromRow)]
struct IdRow {
    message_id: String,
}

#[derive(sqlx::FromRow)]
struct FoundRow {
    message_id: String,
    leased: bool,
}

/// The deliveries that a cancel takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// Deliveries that nobody has cancelled or locked. Whoever holds locks and waits for none can't be part of a deadlock.
    Free,
    /// Deliveries that nobody has cancelled. The cancel waits for locks, which is safe while it holds no other.
    Uncancelled,
    /// All deliveries. The cancel waits for their locks.
    Any,
    /// Deliveries of a run's messages, and no others. The cancel waits for their locks.
    OfRun,
}

#[derive(sqlx::FromRow)]
struct LeasedRow {
    message_id: String,
    lease: i64,
}

/// The messages that the node has leased and a user has cancelled.
pub(super) async fn leases(pools: &Backend<&PgPool, &SqlitePool>, node: NodeId) -> Result<Vec<MessageId>> {
    let mut query = Query::new(pools);
    query
        .sql("SELECT message_id FROM deliveries WHERE cancel_requested_at IS NOT NULL AND node = ")
        .number(node.0);
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
    let step = async |ids: &[&str], take: Take| {
        store.write(LONG_DEADLINE, async |tx| cancel(tx, ids, take, now).await).await
    };
    let mut found = step(&texts, Take::Free).await?;
    if found.len() < ids.len() && store.is_shared() {
        let rest: Vec<&str> = texts.into_iter().filter(|id| !found.contains_key(*id)).collect();
        for row in not_cancelled(&store.readers(), &rest).await? {
            found.extend(step(&[&row.message_id], Take::Uncancelled).await?);
        }
    }
    Ok(ids.iter().map(|id| found.remove(id.as_str()).unwrap_or(Cancellation::NotFound)).collect())
}

/// Unfinished messages of no run that nobody has cancelled, after `after`.
pub(super) async fn unfinished(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &UnfinishedFilter,
    after: Option<&MessageId>,
    count: usize,
) -> Result<UnfinishedPage> {
    let mut query = Query::new(pools);
    query.sql("SELECT message_id FROM deliveries WHERE run IS NULL AND cancel_requested_at IS NULL");
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
            matching.extend(messages::matching(pools, part, &filter.matching, Owner::User).await?);
        }
        ids.retain(|id| matching.contains(id));
    }
    Ok(UnfinishedPage { found: ids.into_iter().map(MessageId::new).collect(), next })
}

async fn not_cancelled(pools: &Backend<&PgPool, &SqlitePool>, ids: &[&str]) -> Result<Vec<IdRow>> {
    let mut query = Query::new(pools);
    query
        .sql("SELECT message_id FROM deliveries WHERE run IS NULL AND cancel_requested_at IS NULL AND message_id ")
        .one_of(ids);
    query.fetch(pools).await
}

/// Cancels one message, which may be cancelled already.
pub(super) async fn cancel_one(tx: &mut Tx, id: &MessageId, now: Timestamp) -> Result<Cancellation> {
    let cancelled = cancel(tx, &[id.as_str()], Take::Any, now).await?;
    Ok(cancelled.into_values().next().unwrap_or(Cancellation::NotFound))
}

/// Cancels the message that tells of a run's failure.
pub(super) async fn cancel_telling(tx: &mut Tx, id: &MessageId, now: Timestamp) -> Result<Cancellation> {
    let cancelled = cancel(tx, &[id.as_str()], Take::OfRun, now).await?;
    Ok(cancelled.into_values().next().unwrap_or(Cancellation::NotFound))
}

/// Cancels messages of no run: removes the deliveries of those that wait, marks those of leased ones, and takes note of it.
pub(super) async fn cancel(
    tx: &mut Tx,
    ids: &[&str],
    take: Take,
    now: Timestamp,
) -> Result<HashMap<String, Cancellation>> {
    let mut query = Query::new(&tx.on);
    query.sql("SELECT d.message_id, d.node <> 0 AS leased FROM deliveries d WHERE d.message_id ").one_of(ids);
    query.sql(match take {
        Take::Free | Take::Uncancelled => " AND d.run IS NULL AND d.cancel_requested_at IS NULL",
        Take::Any => " AND d.run IS NULL",
        Take::OfRun => " AND d.run IS NOT NULL",
    });
    query.lock(if take == Take::Free { " FOR UPDATE OF d SKIP LOCKED" } else { " FOR UPDATE OF d" });
    let found: Vec<FoundRow> = query.fetch_in(tx).await?;
    let of = |leased: bool| -> Vec<&str> {
        found.iter().filter(|row| row.leased == leased).map(|row| row.message_id.as_str()).collect()
    };
    let (waiting, leased) = (of(false), of(true));
    if !waiting.is_empty() {
        remove(tx, &waiting).await?;
        record(tx, &waiting, Cancellation::Cancelled, now).await?;
    }
    if !leased.is_empty() {
        record(tx, &leased, Cancellation::Requested, now).await?;
        let mut mark = Query::new(&tx.on);
        mark.sql("UPDATE deliveries SET cancel_requested_at = COALESCE(cancel_requested_at, ")
            .number(now.as_millis())
            .sql(") WHERE message_id ")
            .one_of(&leased);
        mark.execute_in(tx).await?;
    }
    let cancellation = |leased| if leased { Cancellation::Requested } else { Cancellation::Cancelled };
    Ok(found.into_iter().map(|row| (row.message_id, cancellation(row.leased))).collect())
}

/// Ends leased deliveries that a user has cancelled; how many.
pub(super) async fn finish(
    tx: &mut Tx,
    node: NodeId,
    batch: &[(MessageId, Lease)],
    now: Timestamp,
) -> Result<u64> {
    let leases: HashMap<&str, i64> = batch.iter().map(|(id, lease)| (id.as_str(), lease.0)).collect();
    let mut query = Query::new(&tx.on);
    query
        .sql("SELECT d.message_id, d.lease FROM deliveries d WHERE d.cancel_requested_at IS NOT NULL AND d.node = ")
        .number(node.0)
        .sql(" AND d.message_id ")
        .one_of(&leases.keys().collect::<Vec<_>>())
        .lock(" FOR UPDATE OF d");
    let rows: Vec<LeasedRow> = query.fetch_in(tx).await?;
    let held = rows.iter().filter(|row| leases.get(row.message_id.as_str()) == Some(&row.lease));
    let ids: Vec<&str> = held.map(|row| row.message_id.as_str()).collect();
    if !ids.is_empty() {
        remove(tx, &ids).await?;
        record(tx, &ids, Cancellation::Cancelled, now).await?;
    }
    Ok(ids.len() as u64)
}

async fn remove(tx: &mut Tx, ids: &[&str]) -> Result<()> {
    let mut remove = Query::new(&tx.on);
    remove.sql("DELETE FROM deliveries WHERE message_id ").one_of(ids);
    remove.execute_in(tx).await?;
    Ok(())
}

/// Takes note of cancels: that they are requested, or that they have taken effect. By a node whose time is `now`, but not
/// before anything else that is known of the message: other nodes may have written that down, whose clocks are a little
/// apart, and the log goes by time.
async fn record(tx: &mut Tx, ids: &[&str], cancellation: Cancellation, now: Timestamp) -> Result<()> {
    let cancelled_at = match cancellation {
        Cancellation::Cancelled => "c.at",
        Cancellation::Requested | Cancellation::NotFound => "CAST(NULL AS BIGINT)",
    };
    let mut record = Query::new(&tx.on);
    record
        .sql("INSERT INTO cancellations (message_id, requested_at, cancelled_at) SELECT c.id, c.at, ")
        .sql(cancelled_at)
        .sql(" FROM (SELECT list.id, (SELECT MAX(known.at) FROM (SELECT CAST(")
        .number(now.as_millis())
        // The condition at the end is for SQLite's parser.
        .sql(
            " AS BIGINT) AS at \
               UNION ALL SELECT created_at FROM messages WHERE messages.id = list.id \
               UNION ALL SELECT ended_at FROM attempts WHERE message_id = list.id \
               UNION ALL SELECT due_at FROM deliveries WHERE node <> 0 AND message_id = list.id) AS known) AS at \
             FROM ",
        )
        .list(ids)
        .sql(
            ") AS c WHERE 1 = 1 \
             ON CONFLICT (message_id) DO UPDATE SET cancelled_at = COALESCE(cancellations.cancelled_at, \
                 CASE WHEN excluded.cancelled_at < cancellations.requested_at THEN cancellations.requested_at \
                 ELSE excluded.cancelled_at END)",
        );
    record.execute_in(tx).await?;
    Ok(())
}
