//! The hot steps on Postgres: accept, claim, finish. Beside [`super::hot_sqlite`], step for step.
//!
//! Each is one statement over arrays that commits by itself, but for an accept with gates, with deduplication keys or of
//! more than [`STATEMENT_BYTES`], and for messages that can't be read. They run on connections whose plans are pinned (see
//! `open`): the nested loop over the batch, through the index that serves the step. Set membership is written as
//! `CASE WHEN … IN (SELECT …)`, which Postgres answers from a hash table whatever joins are allowed. A row is joined by
//! its id as `= ANY (ARRAY[id])`, for which the only plan is to look it up: for `= id` Postgres may also read the whole
//! index in its order, and does where a vacuum found the table empty and so tells it of no rows.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::postgres::{PgArguments, PgBindIterExt as _, PgRow};
use sqlx::{Arguments as _, Connection as _, FromRow, PgConnection, PgExecutor, Row as _};

use super::attempts::{self, callbacks, letter, with_letter};
use super::columns::{Column, add_arrays, add_row, arguments, arrays, names, placeholders};
use super::gates::entering::{Conn, GatePlace, enter};
use super::low_water::LowWater;
use super::messages::{self, ClaimedRow, LEASED, New, SELECTED, delivery};
use super::nodes::now_ms;
use super::tx::Claimable;
use crate::domain::gate::is_gated;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::outcome::Next;
use crate::domain::time::Timestamp;
use crate::store::{
    Accept, Accepted, Applied, Delivery, DueLanes, Ended, Lease, NodeId, Repeat, Result, StoreError, Want,
};

/// Bytes of messages in one statement, which Postgres has in memory several times over. What publishes gather fits.
const STATEMENT_BYTES: usize = 32 << 20;

pub(super) async fn now<'e>(on: impl PgExecutor<'e>) -> Result<Timestamp> {
    let ms: i64 = sqlx::query_scalar(concat!("SELECT ", now_ms!())).fetch_one(on).await?;
    Ok(Timestamp::from_millis(ms))
}

/// An insert of rows that come as arrays, one for each column.
fn insert(table: &str, names: &str, arrays: &str) -> String {
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
fn bind_new(rows: &[New<'_>]) -> sqlx::Result<PgArguments> {
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
    let mut bytes = 0;
    let parts = batch.chunk_by(|_, next| {
        bytes += next.message.size();
        let fits = bytes <= STATEMENT_BYTES;
        bytes = if fits { bytes } else { 0 };
        fits
    });
    let parts: Vec<&[Accept]> = parts.collect();
    let gated = batch.iter().any(|accept| is_gated(&accept.message));
    if let [whole] = parts[..]
        && !gated
    {
        return store(conn, node, whole, &[], repeat).await;
    }
    let mut tx = conn.begin().await?;
    let mut places = Vec::new();
    if gated {
        let messages: Vec<&Message> = batch.iter().map(|accept| &*accept.message).collect();
        places = enter(&mut Conn::Postgres(&mut tx), &messages, max_queues).await?;
    }
    let mut rest = places.as_slice();
    let mut results = Vec::with_capacity(batch.len());
    for part in parts {
        let (own, later) = rest.split_at(part.len().min(rest.len()));
        results.extend(store(&mut tx, node, part, own, repeat).await?);
        rest = later;
    }
    tx.commit().await?;
    Ok(results)
}

/// Stores messages with the places of their deliveries at gates: none, or one for each message.
async fn store(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Accept],
    places: &[Option<GatePlace>],
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

fn rows<'a>(node: NodeId, batch: &'a [Accept], places: &'a [Option<GatePlace>]) -> Vec<New<'a>> {
    let place = |index| places.get(index).and_then(Option::as_ref);
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

/// Stores the ends of attempts. Every part reads from what was really deleted or changed, so that an attempt whose lease
/// is gone leaves nothing.
pub(super) async fn finish(
    conn: &mut PgConnection,
    claimable: &mut Claimable,
    node: NodeId,
    batch: &[Ended],
) -> Result<Vec<Applied>> {
    if let Some(due_ms) = batch.iter().filter_map(attempts::due_again).min() {
        claimable.from(due_ms);
    }
    let plain = batch
        .iter()
        .all(|ended| matches!(ended.finish.next, Next::Delivered) && ended.finish.callbacks.is_empty());
    let callbacks = || batch.iter().flat_map(|ended| &ended.finish.callbacks).map(|message| &**message);
    let rows = if plain {
        finish_delivered(conn, node, batch).await?
    } else if callbacks().any(is_gated) {
        let mut tx = conn.begin().await?;
        let messages: Vec<&Message> = callbacks().collect();
        // Callbacks are in no queue.
        let places = enter(&mut Conn::Postgres(&mut tx), &messages, None).await?;
        let rows = finish_mixed(&mut tx, node, batch, &places).await?;
        tx.commit().await?;
        rows
    } else {
        finish_mixed(conn, node, batch, &[]).await?
    };
    let mut rows: HashMap<String, Option<ClaimedRow>> =
        rows.into_iter().map(|row| (row.ended_id, row.next)).collect();
    let mut applied = Vec::with_capacity(batch.len());
    for ended in batch {
        applied.push(match (rows.remove(ended.id.as_str()), &ended.pass_on) {
            (None, _) => Applied::No,
            (Some(Some(next)), Some(to)) => passed_on(conn, node, to.lease, next).await?,
            (Some(_), _) => Applied::Yes,
        });
    }
    Ok(applied)
}

/// The result of an end whose slot has gone to this delivery.
async fn passed_on(conn: &mut PgConnection, node: NodeId, lease: Lease, next: ClaimedRow) -> Result<Applied> {
    let (mut deliveries, unreadable) = ClaimedRow::into_deliveries(vec![next], lease);
    if !unreadable.is_empty() {
        super::deliveries::set_aside_unreadable(conn, node, lease, unreadable).await?;
    }
    Ok(deliveries.pop().map_or(Applied::Yes, |delivery| Applied::PassedOn(Box::new(delivery))))
}

/// An end that was stored, and the delivery that has got its slot.
struct EndedRow {
    ended_id: String,
    next: Option<ClaimedRow>,
}

impl<'r> FromRow<'r, PgRow> for EndedRow {
    fn from_row(row: &'r PgRow) -> sqlx::Result<Self> {
        let next: Option<&str> = match row.try_get("message_id") {
            // The statement passes nothing on.
            Err(sqlx::Error::ColumnNotFound(_)) => None,
            next => next?,
        };
        let next = next.map(|_| ClaimedRow::from_row(row)).transpose()?;
        Ok(Self { ended_id: row.try_get("ended_id")?, next })
    }
}

/// The columns of the statements that end attempts: those of `attempts`, and the lease that the delivery must have.
fn ends<'a>() -> Vec<Column<'a, &'a Ended>> {
    let mut columns = attempts::columns();
    columns.push(Column::number("lease", |ended: &Ended| Some(ended.lease.0)));
    columns
}

/// The columns of the statements that pass slots on as well.
fn passing_ends<'a>() -> Vec<Column<'a, &'a Ended>> {
    type Own<'a> = Column<'a, &'a Ended>;
    let mut columns = ends();
    columns.extend([
        Own::number("to_lease", |ended| Some(ended.pass_on.as_ref()?.lease.0)),
        Own::text("to_lane", |ended| Some((&*ended.pass_on.as_ref()?.lane).into())),
        Own::number("to_room", |ended| i64::try_from(ended.pass_on.as_ref()?.room).ok()),
        Own::number("callbacks", |ended| i64::try_from(ended.finish.callbacks.len()).ok()),
    ]);
    columns
}

/// Whether an end of the batch may pass its slot on. The statements for that cost more.
fn is_passing(batch: &[Ended]) -> bool {
    batch.iter().any(|ended| ended.pass_on.is_some())
}

/// The parts of a statement that pass slots on, as `taken`: those of deliveries that are `gone`, with the columns of
/// [`passing_ends`], `slot` and `holder`, by the node `$node`. In its snapshot these still have their slots, and their
/// callbacks have none. A queue's row is held against the queue's removal, as in an accept. Neither for that nor for the
/// delivery anything waits: where somebody else has one of them, the slot is left to a claim.
///
/// A claim that was decided before takes effect all the same: there are as many slots in use as it has seen.
fn passing_on(node: usize) -> String {
    format!(
        "kept AS MATERIALIZED ( \
             SELECT q.slot, h.holder FROM ( \
                 SELECT DISTINCT slot FROM gone WHERE slot IS NOT NULL AND to_lease IS NOT NULL) AS q \
             CROSS JOIN LATERAL ( \
                 SELECT d.holder FROM deliveries d WHERE d.slot = q.slot \
                    AND CASE WHEN d.message_id IN (SELECT message_id FROM gone) THEN FALSE ELSE TRUE END \
                 UNION SELECT g.holder FROM gone g WHERE g.slot = q.slot AND g.callbacks > 0) AS h), \
         freed AS MATERIALIZED ( \
             SELECT DISTINCT ON (slot) slot, message_id, ended_at, to_lease, to_lane, to_room FROM gone \
             WHERE CASE WHEN slot IS NULL OR to_lease IS NULL THEN FALSE \
                        WHEN (slot, holder) IN (SELECT slot, holder FROM kept) THEN FALSE ELSE TRUE END \
             ORDER BY slot, message_id COLLATE \"C\"), \
         heads AS MATERIALIZED ( \
             SELECT f.*, h.message_id AS next_id FROM freed f JOIN gates g ON g.name = ANY (ARRAY[f.slot]) \
             CROSS JOIN LATERAL ( \
                 SELECT message_id, lane, size, flow, place FROM deliveries \
                 WHERE gate = f.slot AND node = 0 AND slot IS DISTINCT FROM gate ORDER BY place, message_id \
                 LIMIT 1) AS h \
             WHERE NOT g.paused AND h.lane = f.to_lane AND h.size <= f.to_room AND h.flow IS NULL \
               AND h.place / 1000 <= {now} \
               AND (SELECT COUNT(*) FROM kept k WHERE k.slot = f.slot) < g.parallelism \
             FOR KEY SHARE OF g SKIP LOCKED), \
         locked AS MATERIALIZED ( \
             SELECT d.message_id FROM heads h JOIN deliveries d ON d.message_id = ANY (ARRAY[h.next_id]) \
             WHERE CASE WHEN d.node = 0 AND d.gate = h.slot THEN TRUE END FOR UPDATE OF d SKIP LOCKED), \
         taken AS ( \
             UPDATE deliveries d SET node = ${node}, lease = h.to_lease, claims = d.claims + 1, \
                 due_at = GREATEST(d.due_at, h.ended_at), slot = d.gate, holder = d.message_id \
             FROM heads h \
             WHERE d.message_id = ANY (ARRAY[h.next_id]) \
               AND CASE WHEN h.next_id IN (SELECT message_id FROM locked) THEN TRUE END \
             RETURNING {LEASED}, h.message_id AS passed_by)",
        now = now_ms!()
    )
}

/// The end of a statement that passes slots on: each end that was stored, with the delivery that is `taken` for its slot.
fn select_ended(ended: &str) -> String {
    format!(
        "SELECT e.message_id AS ended_id, t.*, {} FROM {ended} e LEFT JOIN taken t ON t.passed_by = e.message_id \
         LEFT JOIN messages m ON m.id = ANY (ARRAY[t.message_id])",
        *SELECTED
    )
}

async fn finish_delivered(conn: &mut PgConnection, node: NodeId, batch: &[Ended]) -> Result<Vec<EndedRow>> {
    fn gone(ends: &[Column<'_, &Ended>], returned: &str) -> String {
        format!(
            "WITH gone AS ( \
                 DELETE FROM deliveries d USING unnest({}) AS f ({}) \
                 WHERE d.message_id = ANY (ARRAY[f.message_id]) AND d.node = $1 AND d.lease = f.lease \
                 RETURNING {returned})",
            arrays(ends, 2),
            names(ends, ""),
        )
    }
    static INSERTED: LazyLock<String> = LazyLock::new(|| {
        let names = names(&attempts::columns(), "");
        format!("INSERT INTO attempts ({names}) SELECT {names} FROM gone")
    });
    static DELIVERED: LazyLock<String> =
        LazyLock::new(|| format!("{} {} RETURNING message_id AS ended_id", gone(&ends(), "f.*"), *INSERTED));
    static PASSING: LazyLock<String> = LazyLock::new(|| {
        format!(
            "{}, {}, a AS ({}) {}",
            gone(&passing_ends(), "f.*, d.slot, d.holder"),
            passing_on(1),
            *INSERTED,
            select_ended("gone"),
        )
    });
    let (sql, ends) = if is_passing(batch) { (&PASSING, passing_ends()) } else { (&DELIVERED, ends()) };
    let arguments = arguments(|arguments: &mut PgArguments| {
        arguments.add(node.0)?;
        add_arrays(arguments, &ends, &batch.iter())
    })?;
    Ok(sqlx::query_as_with(sql.as_str(), arguments).fetch_all(conn).await?)
}

/// The general form: after the arrays of the callback messages, as in accept, come each one's source, the node, the ends
/// and the dead letters. At a key's gate a retry takes its place anew; in a queue it has its slot.
///
/// `ends` are the columns of the ends, `gone` is what is kept of those that remove a delivery, and `rest` follows the parts
/// that store.
fn mixed(ends: &[Column<'_, &Ended>], gone: &str, rest: &str) -> String {
    let columns = messages::written().len();
    let source = 1 + columns + delivery().len();
    let of_ended = |table, names: &str, arrays: &str| {
        format!(
            "INSERT INTO {table} ({names}) SELECT {names} FROM unnest({arrays}, ${source}::text[]) \
                 AS new ({names}, source) WHERE CASE WHEN source IN (SELECT message_id FROM ended) THEN TRUE END"
        )
    };
    format!(
        "WITH f AS MATERIALIZED (SELECT * FROM unnest({ended}) AS f ({ends})), \
         gone AS ( \
             DELETE FROM deliveries d USING f \
             WHERE f.result <> 'retry' AND d.message_id = ANY (ARRAY[f.message_id]) AND d.node = ${node} \
               AND d.lease = f.lease \
               AND CASE f.result WHEN 'delivered' THEN TRUE \
                       WHEN 'cancelled' THEN d.cancel_requested_at IS NOT NULL \
                       ELSE d.cancel_requested_at IS NULL END \
             RETURNING {gone}), \
         again AS ( \
             UPDATE deliveries d SET node = 0, lease = 0, claims = 0, starts = 0, retried = f.retried + 1, \
                 due_at = f.next_due_at, \
                 place = CASE WHEN LEFT(d.gate, 1) = 'f' THEN f.next_due_at * 1000 ELSE d.place END \
             FROM f \
             WHERE f.result = 'retry' AND d.message_id = ANY (ARRAY[f.message_id]) AND d.node = ${node} \
               AND d.lease = f.lease AND d.cancel_requested_at IS NULL \
             RETURNING f.*), \
         ended AS (SELECT {ends} FROM gone UNION ALL SELECT {ends} FROM again), \
         a AS (INSERT INTO attempts ({attempts}) SELECT {attempts} FROM ended), \
         l AS ({letters} WHERE CASE WHEN message_id IN (SELECT message_id FROM gone) THEN TRUE END), \
         c AS ( \
             UPDATE cancellations SET cancelled_at = GREATEST(requested_at, gone.ended_at) FROM gone \
             WHERE gone.result = 'cancelled' AND cancellations.message_id = ANY (ARRAY[gone.message_id])), \
         m AS ({messages}), \
         d AS ({deliveries}){rest}",
        ended = arrays(ends, source + 2),
        ends = names(ends, ""),
        node = source + 1,
        attempts = names(&attempts::columns(), ""),
        letters = insert("dead_letters", &names(&letter(), ""), &arrays(&letter(), source + 2 + ends.len())),
        messages = of_ended("messages", &names(&messages::written(), ""), &arrays(&messages::written(), 1)),
        deliveries = of_ended("deliveries", &names(&delivery(), ""), &arrays(&delivery(), 1 + columns)),
    )
}

static MIXED: LazyLock<String> =
    LazyLock::new(|| mixed(&ends(), "f.*", " SELECT message_id AS ended_id FROM ended"));

static MIXED_PASSING: LazyLock<String> = LazyLock::new(|| {
    let node = 2 + messages::written().len() + delivery().len();
    let rest = format!(", {} {}", passing_on(node), select_ended("ended"));
    mixed(&passing_ends(), "f.*, d.slot, d.holder", &rest)
});

/// Stores ends of any kind. `places`: those of the callbacks' deliveries at gates, none or one for each.
async fn finish_mixed(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Ended],
    places: &[Option<GatePlace>],
) -> Result<Vec<EndedRow>> {
    let callbacks: Vec<(&Ended, Accept)> =
        batch.iter().flat_map(|ended| callbacks(ended).map(move |accept| (ended, accept))).collect();
    let rows: Vec<New<'_>> = callbacks
        .iter()
        .enumerate()
        .map(|(index, (ended, accept))| {
            let place = places.get(index).and_then(Option::as_ref);
            New { accept, node, place, slot: ended.slot.as_ref() }
        })
        .collect();
    let (sql, ends) = if is_passing(batch) { (&MIXED_PASSING, passing_ends()) } else { (&MIXED, ends()) };
    let mut arguments = bind_new(&rows)?;
    let add = |arguments: &mut PgArguments| {
        arguments.add(callbacks.iter().map(|(ended, _)| ended.id.as_str()).bind_iter())?;
        arguments.add(node.0)?;
        add_arrays(arguments, &ends, &batch.iter())?;
        add_arrays(arguments, &letter(), &with_letter(batch.iter()))
    };
    add(&mut arguments).map_err(sqlx::Error::Encode)?;
    Ok(sqlx::query_as_with(sql.as_str(), arguments).fetch_all(conn).await?)
}
