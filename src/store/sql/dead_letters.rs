//! The table `dead_letters`.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::{PgPool, SqlitePool};

use super::query::{PAGE_TIME, Query};
use super::tx::Tx;
use super::{Backend, codec, deliveries, messages, runs};
use crate::domain::id::{DeadLetterId, InstanceId, MessageId};
use crate::domain::outcome::Response;
use crate::domain::time::Timestamp;
use crate::store::{
    Accept, DeadLetter, DeadLetterFilter, LetterPage, LetterPlace, Missing, Order, Owner, Result,
};

/// Rows of a walk's first window at least: a filter may leave few of them.
const LEAST_WINDOW: usize = 200;

#[derive(sqlx::FromRow)]
struct DeadLetterRow {
    id: String,
    message_id: String,
    created_at: i64,
    status: i64,
    error: Option<String>,
    response_headers: Option<String>,
    response_body: Option<Vec<u8>>,
    run: Option<String>,
}

#[derive(sqlx::FromRow)]
struct PlaceRow {
    id: String,
    message_id: String,
    created_at: i64,
    status: i64,
    run: Option<String>,
    /// Bytes of its bodies.
    size: i64,
}

impl PlaceRow {
    fn place(&self) -> LetterPlace {
        (Timestamp::from_millis(self.created_at), DeadLetterId::new(self.id.as_str()))
    }
}

#[derive(sqlx::FromRow)]
struct IdRow {
    id: String,
}

/// The stored answer of an attempt; `None` without one.
pub(super) fn response(
    status: i64,
    headers: Option<&str>,
    body: Option<Vec<u8>>,
    id: &str,
) -> Result<Option<Response>> {
    if status == 0 {
        return Ok(None);
    }
    Ok(Some(Response {
        status: u16::try_from(status).unwrap_or(0),
        headers: codec::read_headers(headers, "attempts", id)?,
        body: body.map(Bytes::from).unwrap_or_default(),
    }))
}

pub(super) async fn get(
    pools: &Backend<&PgPool, &SqlitePool>,
    id: &DeadLetterId,
) -> Result<Option<DeadLetter>> {
    Ok(get_many(pools, &[id.as_str()]).await?.pop())
}

/// The dead letters of these ids, in this order, as far as they exist.
async fn get_many(pools: &Backend<&PgPool, &SqlitePool>, ids: &[&str]) -> Result<Vec<DeadLetter>> {
    let mut query = Query::new(pools);
    query
        .sql(
            "SELECT id, message_id, created_at, status, error, response_headers, response_body, run FROM dead_letters \
             WHERE id ",
        )
        .one_of(ids);
    let rows: Vec<DeadLetterRow> = query.fetch(pools).await?;
    let message_ids: Vec<&str> = rows.iter().map(|row| row.message_id.as_str()).collect();
    let mut messages: HashMap<String, _> = messages::get_many(pools, &message_ids)
        .await?
        .into_iter()
        .map(|message| (message.id.as_str().to_owned(), message))
        .collect();
    let mut found = HashMap::new();
    for row in rows {
        // The letter and its message are removed together, perhaps between the two reads.
        let Some(message) = messages.remove(&row.message_id) else { continue };
        let response = response(row.status, row.response_headers.as_deref(), row.response_body, &row.id)?;
        found.insert(
            row.id.clone(),
            DeadLetter {
                id: DeadLetterId::new(row.id),
                created_at: Timestamp::from_millis(row.created_at),
                message,
                response,
                error: row.error,
                run: row.run.map(InstanceId::new),
            },
        );
    }
    Ok(ids.iter().filter_map(|id| found.remove(*id)).collect())
}

pub(super) async fn page(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &DeadLetterFilter,
    order: Order,
    after: Option<&LetterPlace>,
    count: usize,
    max_bytes: usize,
) -> Result<LetterPage<DeadLetter>> {
    let walk = Walk { pools, filter, order, time: PAGE_TIME };
    let (mut rows, mut next) = walk.rows(after, count).await?;
    let within = fitting(rows.iter().map(|row| row.size), count, max_bytes);
    if within < rows.len() {
        rows.truncate(within);
        next = rows.last().map(PlaceRow::place);
    }
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    Ok(LetterPage { items: get_many(pools, &ids).await?, next })
}

pub(super) async fn places(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &DeadLetterFilter,
    order: Order,
    after: Option<&LetterPlace>,
    count: usize,
) -> Result<LetterPage<LetterPlace>> {
    let walk = Walk { pools, filter, order, time: PAGE_TIME };
    let (rows, next) = walk.rows(after, count).await?;
    Ok(LetterPage { items: rows.iter().map(PlaceRow::place).collect(), next })
}

/// A walk along the dead letters in one direction.
struct Walk<'a> {
    pools: &'a Backend<&'a PgPool, &'a SqlitePool>,
    filter: &'a DeadLetterFilter,
    order: Order,
    /// [`PAGE_TIME`].
    time: Duration,
}

impl Walk<'_> {
    /// The first `count` rows that match, after a place; and where to go on. It reads windows of rows, whatever they are,
    /// and keeps what matches of them, so that it always knows how far it has come.
    async fn rows(
        &self,
        after: Option<&LetterPlace>,
        count: usize,
    ) -> Result<(Vec<PlaceRow>, Option<LetterPlace>)> {
        let started = Instant::now();
        let mut after = after.cloned();
        let mut found: Vec<PlaceRow> = Vec::new();
        let mut limit = count.saturating_add(1).clamp(LEAST_WINDOW, messages::MATCHED);
        loop {
            let rows = self.window(after.as_ref(), limit).await?;
            let ended = rows.len() < limit;
            after = rows.last().map(PlaceRow::place);
            found.extend(self.matching(rows).await?);
            if found.len() > count {
                found.truncate(count);
                let next = found.last().map(PlaceRow::place);
                return Ok((found, next));
            }
            if ended {
                return Ok((found, None));
            }
            if started.elapsed() >= self.time {
                return Ok((found, after));
            }
            limit = messages::MATCHED;
        }
    }

    async fn matching(&self, mut rows: Vec<PlaceRow>) -> Result<Vec<PlaceRow>> {
        let Self { pools, filter, .. } = self;
        rows.retain(|row| filter.owner.includes(row.run.is_some()));
        if let Some(runs) = &filter.runs {
            let instances: Vec<&str> = rows.iter().filter_map(|row| row.run.as_deref()).collect();
            let matching = runs::listing::matching(pools, &instances, runs).await?;
            rows.retain(|row| row.run.as_ref().is_some_and(|run| matching.contains(run)));
        }
        if !filter.statuses.is_empty() {
            rows.retain(|row| filter.statuses.iter().any(|status| i64::from(*status) == row.status));
        }
        if !filter.matching.is_empty() && !rows.is_empty() {
            let mut ids: Vec<&str> = rows.iter().map(|row| row.message_id.as_str()).collect();
            ids.sort_unstable();
            ids.dedup();
            let matching = messages::matching(pools, &ids, &filter.matching, Owner::Any).await?;
            rows.retain(|row| matching.contains(&row.message_id));
        }
        Ok(rows)
    }

    /// The next rows, whether or not their messages match.
    async fn window(&self, after: Option<&LetterPlace>, limit: usize) -> Result<Vec<PlaceRow>> {
        let Self { pools, filter, order, .. } = self;
        let mut query = Query::new(*pools);
        query.sql(
            "SELECT l.id, l.message_id, l.created_at, l.status, l.run, \
                    CAST(COALESCE(LENGTH(l.response_body), 0) + COALESCE(OCTET_LENGTH(l.response_headers), 0) + \
                        LENGTH(m.body) + COALESCE(OCTET_LENGTH(m.headers), 0) + COALESCE((SELECT LENGTH(e.body) \
                            FROM run_entries e WHERE e.instance = l.run AND e.position = 0), 0) AS BIGINT) AS size \
             FROM dead_letters l JOIN messages m ON m.id = l.message_id WHERE 1 = 1",
        );
        if let Some((time, id)) = after {
            query.sql(match order {
                Order::EarliestFirst => " AND (l.created_at, l.id) > (",
                Order::LatestFirst => " AND (l.created_at, l.id) < (",
            });
            query.number(time.as_millis()).sql(", ").text(id.as_str()).sql(")");
        }
        if !filter.ids.is_empty() {
            query.sql(" AND l.id ").one_of(&filter.ids.iter().map(DeadLetterId::as_str).collect::<Vec<_>>());
        }
        if !filter.messages.is_empty() {
            let ids: Vec<&str> = filter.messages.iter().map(MessageId::as_str).collect();
            query.sql(" AND l.message_id ").one_of(&ids);
        }
        if let Some(from) = filter.from {
            query.sql(" AND l.created_at >= ").number(from.as_millis());
        }
        if let Some(to) = filter.to {
            query.sql(" AND l.created_at <= ").number(to.as_millis());
        }
        query.sql(match order {
            Order::EarliestFirst => " ORDER BY l.created_at, l.id LIMIT ",
            Order::LatestFirst => " ORDER BY l.created_at DESC, l.id DESC LIMIT ",
        });
        query.number(i64::try_from(limit).unwrap_or(i64::MAX));
        query.fetch(pools).await
    }
}

/// How many of the leading items fit a page: at least one, so that every page makes progress.
pub(super) fn fitting(sizes: impl Iterator<Item = i64>, count: usize, max_bytes: usize) -> usize {
    let mut room = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    sizes
        .take(count)
        .take_while(|size| {
            let fits = room > 0;
            room = room.saturating_sub(*size);
            fits
        })
        .count()
}

/// Dead letters that one transaction may replace where others wait for its end: 35 ms in a debug build.
const PART: usize = 1000;
const PART_BYTES: usize = 4 << 20;

/// Splits a retry.
pub(super) fn parts(replacements: &[(DeadLetterId, Accept)]) -> Vec<&[(DeadLetterId, Accept)]> {
    let (mut count, mut bytes) = (1, 0);
    let parts = replacements.chunk_by(|(_, accept), _| {
        bytes += accept.message.size();
        let fits = count < PART && bytes < PART_BYTES;
        (count, bytes) = if fits { (count + 1, bytes) } else { (1, 0) };
        fits
    });
    parts.collect()
}

/// Whether there is a dead letter for each of the ids.
pub(super) async fn all_exist(pools: &Backend<&PgPool, &SqlitePool>, ids: &[&DeadLetterId]) -> Result<bool> {
    let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    let mut query = Query::new(pools);
    query.sql("SELECT l.id FROM dead_letters l WHERE l.id ").one_of(&ids);
    let found: Vec<IdRow> = query.fetch(pools).await?;
    Ok(found.len() == ids.len())
}

/// Replaces dead letters by messages that wait; which of them. Nothing is done where one is missing that must not be.
pub(super) async fn replace(
    tx: &mut Tx,
    replacements: &[(DeadLetterId, Accept)],
    missing: Missing,
    max_queues: Option<u32>,
) -> Result<Vec<bool>> {
    let ids: Vec<&str> = replacements.iter().map(|(id, _)| id.as_str()).collect();
    let found = lock(tx, &ids).await?;
    if missing == Missing::Refuse && found.len() < ids.len() {
        return Ok(vec![false; ids.len()]);
    }
    remove(tx, &found).await?;
    let replaced: Vec<bool> = ids.iter().map(|id| found.contains(*id)).collect();
    let accepts = replacements.iter().zip(&replaced).filter(|(_, replaced)| **replaced);
    let accepts: Vec<Accept> = accepts.map(|((_, accept), _)| accept.clone()).collect();
    deliveries::insert(tx, &accepts, max_queues).await?;
    Ok(replaced)
}

/// Deletes those of the dead letters that exist; how many.
pub(super) async fn delete(tx: &mut Tx, ids: &[&str]) -> Result<u64> {
    let found = lock(tx, ids).await?;
    remove(tx, &found).await
}

/// Locks those of the dead letters that exist; which they are. In one order, so that two that remove the same ones wait
/// for each other and don't deadlock.
async fn lock(tx: &mut Tx, ids: &[&str]) -> Result<HashSet<String>> {
    let mut lock = Query::new(&tx.on);
    lock.sql("SELECT l.id FROM dead_letters l WHERE l.id ").one_of(ids);
    lock.sql(" ORDER BY l.id").lock(" FOR UPDATE OF l");
    let rows: Vec<IdRow> = lock.fetch_in(tx).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Removes a dead letter that has ended a run; false: there is none of that id.
pub(super) async fn remove_of_run(tx: &mut Tx, id: &DeadLetterId) -> Result<bool> {
    let mut delete = Query::new(&tx.on);
    delete.sql("DELETE FROM dead_letters WHERE run IS NOT NULL AND id = ").text(id.as_str());
    Ok(delete.execute_in(tx).await? > 0)
}

async fn remove(tx: &mut Tx, ids: &HashSet<String>) -> Result<u64> {
    let mut delete = Query::new(&tx.on);
    delete.sql("DELETE FROM dead_letters WHERE id ").one_of(&ids.iter().collect::<Vec<_>>());
    delete.execute_in(tx).await
}
