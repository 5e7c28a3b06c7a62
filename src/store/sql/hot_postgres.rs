//! The hot steps on Postgres: accept and claim; [`super::finish_postgres`] has finish. Beside [`super::hot_sqlite`], step for step.
//!
//! Each is one statement over arrays that commits by itself, but for an accept with gates, with deduplication keys or of
//! more than [`STATEMENT_BYTES`], and for messages that can't be read. They run on connections whose plans are pinned (see
//! `open`): the nested loop over the batch, through the index that serves the step. Set membership is written as
//! `CASE WHEN … IN (SELECT …)`, which Postgres answers from a hash table whatever joins are allowed. A row is joined by
//! its id as `= ANY (ARRAY[id])`, for which the only plan is to look it up: for `= id` Postgres may also read the whole
//! index in its order, and does where a vacuum found the table empty and so tells it of no rows.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::postgres::PgArguments;
use sqlx::{Connection as _, PgConnection, PgExecutor};

use super::columns::{add_arrays, add_row, arguments, arrays, names, placeholders};
use super::gates::entering::{Coming, Conn, GatePlace, enter};
use super::low_water::LowWater;
use super::messages::{self, ClaimedRow, LEASED, New, SELECTED, delivery};
use super::nodes::now_ms;
use super::runs;
use super::tx::Claimable;
use crate::domain::gate::is_gated;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{Accept, Accepted, Delivery, DueLanes, Lease, NodeId, Repeat, Result, StoreError, Want};

/// Bytes of messages in one statement, which Postgres has in memory several times over. What publishes gather fits.
const STATEMENT_BYTES: usize = 32 << 20;

pub(super) async fn now<'e>(on: impl PgExecutor<'e>) -> Result<Timestamp> {
    let ms: i64 = sqlx::query_scalar(concat!("SELECT ", now_ms!())).fetch_one(on).await?;
    Ok(Timestamp::from_millis(ms))
}

/// An insert of rows that come as arrays, one for each column.
pub(super) fn insert(table: &str, names: &str, arrays: &str) -> String {
    format!("INSERT INTO {table} ({names}) SELECT {names} FROM unnest({arrays}) AS new ({names})")
}

/// The inserts of messages and of their deliveries, from the arrays that [`bind_new`] binds; and the number of the first
/// placeholder after these.
static INSERTS: LazyLock<(String, String, usize)> = LazyLock::new(|| {
    let first = 1 + messages::written().len();
    (
        insert("messages", &names(&messages::written(), ""), &arrays(&messages::written(), 1)),
        insert("deliveries", &names(&delivery(), ""), &arrays(&delivery(), first)),
        first + delivery().len(),
    )
});

/// The arrays of messages and their deliveries.
pub(super) fn bind_new(rows: &[New<'_>]) -> sqlx::Result<PgArguments> {
    arguments(|arguments: &mut PgArguments| {
        add_arrays(arguments, &messages::written(), &rows.iter().map(|row| &*row.accept.message))?;
        add_arrays(arguments, &delivery(), &rows.iter().copied())
    })
}

/// Stores messages and their deliveries: in one statement, or in one transaction when they are too large for that. No two
/// of the batch have the same deduplication key.
pub(super) async fn accept(
    conn: &mut PgConnection,
    claimable: &mut Claimable,
    node: NodeId,
    batch: &[Accept],
    repeat: Repeat,
    max_queues: Option<u32>,
) -> Result<Vec<Accepted>> {
    claimable.accepted(batch);
    if repeat == Repeat::First {
        return accept_all(conn, node, batch, repeat, max_queues).await;
    }
    // A message that is there already must not touch its gates and its key, which others may have changed since.
    let ids: Vec<&str> = batch.iter().map(|accept| accept.message.id.as_str()).collect();
    let present: HashSet<String> = sqlx::query_scalar("SELECT id FROM messages WHERE id = ANY ($1)")
        .bind(ids)
        .fetch_all(&mut *conn)
        .await?
        .into_iter()
        .collect();
    let is_missing = |accept: &Accept| !present.contains(accept.message.id.as_str());
    let missing: Vec<Accept> = batch.iter().filter(|accept| is_missing(accept)).cloned().collect();
    let mut results = Vec::new();
    if !missing.is_empty() {
        results = accept_all(conn, node, &missing, repeat, max_queues).await?;
    }
    let mut results = results.into_iter();
    let result = |accept| if is_missing(accept) { results.next() } else { Some(Accepted::Stored) };
    Ok(batch.iter().filter_map(result).collect())
}

async fn accept_all(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Accept],
    repeat: Repeat,
    max_queues: Option<u32>,
) -> Result<Vec<Accepted>> {
    let parts = parts_of(batch);
    let gated = batch.iter().any(|accept| is_gated(&accept.message));
    if batch.iter().any(|accept| accept.on_run.is_some()) {
        return accept_on_runs(conn, node, batch, repeat, max_queues).await;
    }
    if let [whole] = parts[..]
        && !gated
    {
        return store(conn, node, whole, &[], repeat).await;
    }
    let mut tx = conn.begin().await?;
    if !gated {
        let mut results = Vec::with_capacity(batch.len());
        for part in parts {
            results.extend(store(&mut tx, node, part, &[], repeat).await?);
        }
        tx.commit().await?;
        return Ok(results);
    }
    let coming = Coming {
        messages: batch.iter().map(|accept| &*accept.message).collect(),
        requests: batch.iter().map(|accept| accept.request).collect(),
        max_queues,
    };
    let entered = enter(&mut Conn::Postgres(&mut tx), &coming).await?;
    let open = || batch.iter().zip(&entered).filter(|(_, entered)| entered.refused().is_none());
    let accepts: Vec<Accept> = open().map(|(accept, _)| accept.clone()).collect();
    let places: Vec<Option<&GatePlace>> = open().map(|(_, entered)| entered.place()).collect();
    let mut results = Vec::with_capacity(batch.len());
    let mut places = &places[..];
    for part in parts_of(&accepts) {
        let (own, later) = places.split_at(part.len());
        results.extend(store(&mut tx, node, part, own, repeat).await?);
        places = later;
    }
    tx.commit().await?;
    let mut results = results.into_iter();
    Ok(entered.iter().filter_map(|entered| entered.refused().or_else(|| results.next())).collect())
}

/// Parts of a batch that one statement each may hold.
fn parts_of(batch: &[Accept]) -> Vec<&[Accept]> {
    let mut bytes = 0;
    let parts = batch.chunk_by(|_, next| {
        bytes += next.message.size();
        let fits = bytes <= STATEMENT_BYTES;
        bytes = if fits { bytes } else { 0 };
        fits
    });
    parts.collect()
}

/// Stores messages of which some bring changes of runs.
async fn accept_on_runs(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Accept],
    repeat: Repeat,
    max_queues: Option<u32>,
) -> Result<Vec<Accepted>> {
    let mut tx = conn.begin().await?;
    let all: Vec<&Accept> = batch.iter().collect();
    let entered = runs::entering::enter(&mut Conn::Postgres(&mut tx), &all).await?;
    let open = batch.iter().zip(&entered).filter(|(_, result)| result.is_none());
    let open: Vec<Accept> = open.map(|(accept, _)| Accept { on_run: None, ..accept.clone() }).collect();
    let mut stored = Vec::new();
    if !open.is_empty() {
        stored = Box::pin(accept_all(&mut tx, node, &open, repeat, max_queues)).await?;
    }
    tx.commit().await?;
    let mut stored = stored.into_iter();
    Ok(entered.into_iter().filter_map(|result| result.or_else(|| stored.next())).collect())
}

/// Stores messages with the places of their deliveries at gates: none, or one for each message.
async fn store(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Accept],
    places: &[Option<&GatePlace>],
    repeat: Repeat,
) -> Result<Vec<Accepted>> {
    static NEW: LazyLock<String> = LazyLock::new(|| {
        let (messages, deliveries, _) = &*INSERTS;
        format!("WITH m AS ({messages}) {deliveries}")
    });
    // The delivery of a message that is there already may be finished: it must not come back.
    static AGAIN: LazyLock<String> = LazyLock::new(|| {
        let (messages, deliveries, _) = &*INSERTS;
        format!(
            "WITH m AS ({messages} ON CONFLICT (id) DO NOTHING RETURNING id) \
             {deliveries} WHERE CASE WHEN message_id IN (SELECT id FROM m) THEN TRUE END"
        )
    });
    let rows = rows(node, batch, places);
    if batch.iter().any(|accept| accept.deduplication.is_some()) {
        return accept_deduplicated(conn, &rows).await;
    }
    match (&rows[..], repeat) {
        ([row], Repeat::First) => store_one(conn, *row).await?,
        (rows, Repeat::First) => {
            sqlx::query_with(NEW.as_str(), bind_new(rows)?).execute(conn).await?;
        }
        (rows, Repeat::Again) => {
            sqlx::query_with(AGAIN.as_str(), bind_new(rows)?).execute(conn).await?;
        }
    }
    Ok(vec![Accepted::Stored; batch.len()])
}

/// Stores one message that is new. Postgres takes 50 µs less for values than for arrays of one.
async fn store_one(conn: &mut PgConnection, row: New<'_>) -> Result<()> {
    static ONE: LazyLock<String> = LazyLock::new(|| {
        let columns = messages::written().len();
        format!(
            "WITH m AS (INSERT INTO messages ({}) VALUES ({})) INSERT INTO deliveries ({}) VALUES ({})",
            names(&messages::written(), ""),
            placeholders(columns, 1),
            names(&delivery(), ""),
            placeholders(delivery().len(), 1 + columns),
        )
    });
    let arguments = arguments(|arguments: &mut PgArguments| {
        add_row(arguments, &messages::written(), &*row.accept.message)?;
        add_row(arguments, &delivery(), row)
    })?;
    sqlx::query_with(ONE.as_str(), arguments).execute(conn).await?;
    Ok(())
}

fn rows<'a>(node: NodeId, batch: &'a [Accept], places: &[Option<&'a GatePlace>]) -> Vec<New<'a>> {
    let place = |index: usize| places.get(index).copied().flatten();
    let accepts = batch.iter().enumerate();
    accepts.map(|(index, accept)| New { accept, node, place: place(index), slot: None }).collect()
}

/// Stores messages of which some have deduplication keys. The keys are won in one statement with the messages of the
/// winners; who holds a key that was not won is read afterwards, since that row may be newer than the statement's
/// snapshot.
async fn accept_deduplicated(conn: &mut PgConnection, batch: &[New<'_>]) -> Result<Vec<Accepted>> {
    let mut results: Vec<Option<Accepted>> = vec![None; batch.len()];
    // A key that expires between the two statements is won at the second try.
    for _ in 0..4 {
        let open: Vec<usize> = (0..batch.len()).filter(|&index| results[index].is_none()).collect();
        if open.is_empty() {
            break;
        }
        let rows: Vec<New<'_>> = open.iter().map(|&index| batch[index]).collect();
        let won = insert_key_winners(conn, &rows).await?;
        let mut lost: HashMap<&str, usize> = HashMap::new();
        for &index in &open {
            let accept = batch[index].accept;
            match &accept.deduplication {
                Some(wanted) if !won.contains(accept.message.id.as_str()) => {
                    lost.insert(&wanted.key, index);
                }
                _ => results[index] = Some(Accepted::Stored),
            }
        }
        let keys: Vec<&str> = lost.keys().copied().collect();
        let holders: Vec<(String, String)> =
            sqlx::query_as("SELECT key, message_id FROM deduplications WHERE key = ANY ($1)")
                .bind(keys)
                .fetch_all(&mut *conn)
                .await?;
        for (key, holder) in holders {
            if let Some(&index) = lost.get(key.as_str()) {
                results[index] = Some(Accepted::Duplicate(MessageId::new(holder)));
            }
        }
    }
    results.into_iter().collect::<Option<_>>().ok_or(StoreError::Contended)
}

/// Inserts the messages that have no key, and those whose key is free or has expired. The ids of the latter.
async fn insert_key_winners(conn: &mut PgConnection, batch: &[New<'_>]) -> Result<HashSet<String>> {
    // Keys in order, so that two nodes that want the same ones wait for each other and don't deadlock.
    static WIN: LazyLock<String> = LazyLock::new(|| {
        let (messages, deliveries, first) = &*INSERTS;
        let (keys, ids, expiries, now) = (*first, first + 1, first + 2, first + 3);
        format!(
            "WITH won AS (INSERT INTO deduplications (key, message_id, expires_at) \
                 SELECT * FROM unnest(${keys}::text[], ${ids}::text[], ${expiries}::bigint[]) \
                 ON CONFLICT (key) DO UPDATE \
                 SET message_id = excluded.message_id, expires_at = excluded.expires_at \
                 WHERE deduplications.expires_at <= ${now} OR deduplications.message_id = excluded.message_id \
                 RETURNING message_id), \
             m AS ({messages} WHERE CASE WHEN id IN (SELECT message_id FROM won) THEN TRUE \
                                         WHEN id IN (SELECT unnest(${ids}::text[])) THEN FALSE ELSE TRUE END \
                 ON CONFLICT (id) DO NOTHING RETURNING id), \
             d AS ({deliveries} WHERE CASE WHEN message_id IN (SELECT id FROM m) THEN TRUE END) \
             SELECT message_id FROM won"
        )
    });
    let mut keys: Vec<(&str, &str, i64)> = Vec::new();
    let mut now = i64::MAX;
    for New { accept, .. } in batch {
        if let Some(wanted) = &accept.deduplication {
            keys.push((&wanted.key, accept.message.id.as_str(), wanted.expires_at.as_millis()));
            now = now.min(accept.message.created_at.as_millis());
        }
    }
    keys.sort_unstable();
    let won: Vec<String> = sqlx::query_scalar_with(WIN.as_str(), bind_new(batch)?)
        .bind(keys.iter().map(|key| key.0).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.1).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.2).collect::<Vec<_>>())
        .bind(now)
        .fetch_all(conn)
        .await?;
    Ok(won.into_iter().collect())
}

/// The lanes of what is due first, and of some lanes after `after`.
pub(super) async fn due_lanes(
    conn: &mut PgConnection,
    limit: usize,
    after: &str,
    low_water: &LowWater,
) -> Result<DueLanes> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let first: Vec<(String, i64)> = sqlx::query_as(concat!(
        "SELECT lane, due_at FROM deliveries \
         WHERE node = 0 AND gate IS NULL AND due_at >= 0 AND due_at >= $1 AND due_at <= ",
        now_ms!(),
        " ORDER BY due_at LIMIT $2"
    ))
    .bind(low_water.begin_scan())
    .bind(limit)
    .fetch_all(&mut *conn)
    .await?;
    if let Some((_, due_ms)) = first.first() {
        low_water.raise(*due_ms);
    }
    let mut walked = Vec::new();
    if i64::try_from(first.len()).unwrap_or(i64::MAX) == limit {
        walked = sqlx::query_scalar(super::deliveries::NEXT_LANES)
            .bind(after)
            .bind(super::deliveries::LANES_PER_WALK)
            .fetch_all(conn)
            .await?;
    }
    Ok(super::deliveries::due_lanes(first.into_iter().map(|(lane, _)| lane).collect(), walked))
}

/// The deliveries that a statement has leased as `taken`, returning [`LEASED`], with their messages.
pub(super) static SELECT_TAKEN: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT t.*, {} FROM taken t JOIN messages m ON m.id = ANY (ARRAY[t.message_id])", *SELECTED)
});

/// Leases what is due in the wanted lanes, from the due time `low` on.
pub(super) async fn claim(
    conn: &mut PgConnection,
    node: NodeId,
    lease: Lease,
    wants: &[Want],
    max_bytes: usize,
    low: i64,
) -> Result<Vec<Delivery>> {
    // Rows that are locked but don't fit any more are free again when the statement ends. A lane that is wanted twice
    // gives its deliveries once; only the first delivery has a running total that is its own size.
    static CLAIM: LazyLock<String> = LazyLock::new(|| {
        format!(
            "WITH picked AS MATERIALIZED ( \
                 SELECT d.message_id, d.due_at, d.size FROM unnest($1::text[], $2::bigint[]) AS w (lane, count) \
                 CROSS JOIN LATERAL ( \
                     SELECT message_id, due_at, size FROM deliveries \
                     WHERE node = 0 AND gate IS NULL AND lane = w.lane AND due_at >= $6 AND due_at <= {now} \
                     ORDER BY due_at, message_id LIMIT w.count FOR UPDATE SKIP LOCKED) AS d), \
             fit AS MATERIALIZED ( \
                 SELECT message_id FROM ( \
                     SELECT message_id, size, SUM(size) OVER (ORDER BY due_at, message_id) AS total \
                     FROM (SELECT DISTINCT message_id, due_at, size FROM picked) AS once) AS p \
                 WHERE total <= $3 OR total = size), \
             taken AS ( \
                 UPDATE deliveries d SET node = $4, lease = $5, claims = claims + 1 FROM fit \
                 WHERE d.message_id = ANY (ARRAY[fit.message_id]) RETURNING {LEASED}) \
             {select}",
            now = now_ms!(),
            select = *SELECT_TAKEN,
        )
    });
    let lanes: Vec<&str> = wants.iter().map(|want| &*want.lane).collect();
    let counts: Vec<i64> = wants.iter().map(|want| i64::try_from(want.count).unwrap_or(i64::MAX)).collect();
    let rows: Vec<ClaimedRow> = sqlx::query_as(CLAIM.as_str())
        .bind(lanes)
        .bind(counts)
        .bind(i64::try_from(max_bytes).unwrap_or(i64::MAX))
        .bind(node.0)
        .bind(lease.0)
        .bind(low)
        .fetch_all(&mut *conn)
        .await?;
    let (deliveries, unreadable) = ClaimedRow::into_deliveries(rows, lease);
    if !unreadable.is_empty() {
        super::deliveries::set_aside_unreadable(conn, node, lease, unreadable).await?;
    }
    Ok(deliveries)
}
