//! Cancelling many messages.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use sqlx::{PgPool, SqlitePool};

use super::deliveries::{known_times, on_cancelled_again};
use super::query::Query;
use super::{Backend, DEADLINE, LONG_DEADLINE, SqlStore, Tx, messages, within};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{Cancellation, Cancelling, Look, NodeId, Result, UnfinishedFilter};

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

#[async_trait]
impl Cancelling for SqlStore {
    async fn unfinished(
        &self,
        filter: &UnfinishedFilter,
        after: Option<&MessageId>,
        count: usize,
    ) -> Result<Look> {
        within(LONG_DEADLINE, unfinished(&self.lists(), filter, after, count)).await
    }

    async fn cancel_many(&self, ids: &[MessageId], now: Timestamp) -> Result<Vec<Cancellation>> {
        within(LONG_DEADLINE, async {
            let texts: Vec<&str> = ids.iter().map(MessageId::as_str).collect();
            let mut found = self.cancel_step(&texts, Locked::Skip, now).await?;
            if found.len() < ids.len() && self.is_postgres() {
                let rest: Vec<&str> = texts.into_iter().filter(|id| !found.contains_key(*id)).collect();
                for row in not_cancelled(&self.readers(), &rest).await? {
                    found.extend(self.cancel_step(&[&row.message_id], Locked::Wait, now).await?);
                }
            }
            Ok(ids.iter().map(|id| found.remove(id.as_str()).unwrap_or(Cancellation::NotFound)).collect())
        })
        .await
    }

    async fn cancelled_leases(&self, node: NodeId) -> Result<Vec<MessageId>> {
        within(DEADLINE, async {
            let mut query = Query::new(&self.readers());
            query
                .sql("SELECT message_id FROM deliveries WHERE cancel_requested_at IS NOT NULL AND node = ")
                .number(node.0);
            let rows: Vec<IdRow> = query.fetch(&self.readers()).await?;
            Ok(rows.into_iter().map(|row| MessageId::new(row.message_id)).collect())
        })
        .await
    }

    async fn cancel_requested(&self, ids: &[MessageId]) -> Result<Vec<MessageId>> {
        within(DEADLINE, async {
            let mut query = Query::new(&self.readers());
            query
                .sql(
                    "SELECT message_id FROM deliveries WHERE cancel_requested_at IS NOT NULL AND message_id ",
                )
                .one_of(&ids.iter().map(MessageId::as_str).collect::<Vec<_>>());
            let rows: Vec<IdRow> = query.fetch(&self.readers()).await?;
            Ok(rows.into_iter().map(|row| MessageId::new(row.message_id)).collect())
        })
        .await
    }
}

impl SqlStore {
    fn is_postgres(&self) -> bool {
        matches!(self.backend, Backend::Postgres(_))
    }

    async fn cancel_step(
        &self,
        ids: &[&str],
        locked: Locked,
        now: Timestamp,
    ) -> Result<HashMap<String, Cancellation>> {
        let mut tx = self.begin().await?;
        let found = cancel(&mut tx, ids, locked, now).await?;
        self.commit(tx).await?;
        Ok(found)
    }
}

async fn unfinished(
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
    let mut query = Query::new(tx);
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

    let mut record = Query::new(tx);
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
    let mut remove = Query::new(tx);
    remove.sql("DELETE FROM deliveries WHERE message_id ").one_of(&waiting);
    remove.execute_in(tx).await?;
    let mut mark = Query::new(tx);
    mark.sql("UPDATE deliveries SET cancel_requested_at = ").number(now.as_millis());
    mark.sql(" WHERE message_id ").one_of(&leased);
    mark.execute_in(tx).await?;

    let cancellation = |leased| if leased { Cancellation::Requested } else { Cancellation::Cancelled };
    Ok(found.into_iter().map(|row| (row.message_id, cancellation(row.leased))).collect())
}
