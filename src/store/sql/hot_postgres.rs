//! The hot steps on Postgres: accept, claim, finish. Beside [`super::hot_sqlite`], step for step.
//!
//! Each is one statement that commits by itself, over arrays. They run on connections whose plans are pinned (see
//! `open`): the nested loop over the batch, through the index that serves the step. Set membership is written as
//! `CASE WHEN … IN (SELECT …)`, which Postgres answers from a hash table whatever joins are allowed. A row is joined by
//! its id as `= ANY (ARRAY[id])`, for which the only plan is to look it up: for `= id` Postgres may also read the whole
//! index in its order, and does where a vacuum found the table empty and so tells it of no rows.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgArguments;
use sqlx::{Connection as _, PgConnection, PgExecutor, PgPool, Postgres};

use super::attempts::AttemptColumns;
use super::codec;
use super::gates::entry::{Conn, Entry, enter};
use super::low_water::{Look, LowWater};
use super::messages::{ClaimedRow, add_delivery, add_message, message_columns, write_labels};
use super::nodes::now_ms;
use crate::domain::gate::is_gated;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::outcome::Next;
use crate::domain::time::Timestamp;
use crate::store::{
    Accept, Accepted, Applied, Delivery, DueLanes, Ended, Lease, NodeId, Repeat, Result, Slot, StoreError,
    Want,
};

/// Bytes of messages in one statement, which Postgres has in memory several times over. What publishes gather fits.
const STATEMENT_BYTES: usize = 32 << 20;

pub(super) async fn now<'e>(on: impl PgExecutor<'e>) -> Result<Timestamp> {
    let ms: i64 = sqlx::query_scalar(concat!("SELECT ", now_ms!())).fetch_one(on).await?;
    Ok(Timestamp::from_millis(ms))
}

/// Takes a connection for one step.
pub(super) async fn acquire(pool: &PgPool, deadline: Duration) -> Result<PoolConnection<Postgres>> {
    tokio::time::timeout(deadline, pool.acquire())
        .await
        .map_err(|_| StoreError::Deadline(deadline))?
        .map_err(StoreError::from)
}

/// Returns the connection after a step, unless the step did not end properly: then its statement may still be running,
/// and the connection is closed.
pub(super) fn give_back<T>(
    connection: PoolConnection<Postgres>,
    deadline: Duration,
    result: Result<Result<T>, tokio::time::error::Elapsed>,
) -> Result<T> {
    match result {
        Ok(Err(error)) if error.is_transient() => {
            drop(connection.detach());
            Err(error)
        }
        Ok(result) => result,
        Err(_) => {
            drop(connection.detach());
            Err(StoreError::Deadline(deadline))
        }
    }
}

/// The message's columns as arrays, in the order of the table.
macro_rules! message_arrays {
    () => {
        "$1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::bytea[], \
         $9::bigint[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], \
         $17::text[], $18::text[]"
    };
}

/// Inserts messages from these.
macro_rules! insert_messages {
    () => {
        concat!("INSERT INTO messages SELECT * FROM unnest(", message_arrays!(), ")")
    };
}

/// Inserts deliveries, whose columns are arrays too; id and due time are the message's. The last five are empty where no
/// gate is concerned, and then give NULLs.
macro_rules! insert_deliveries {
    ($array:literal, $column:literal) => {
        concat!(
            "INSERT INTO deliveries \
             SELECT id, lane, due_at, size, 0, claims, node, lease, NULL, 0, gate, flow, place, slot, holder \
             FROM unnest($1::text[], $19::text[], $3::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], \
                 $23::bigint[], $24::text[], $25::text[], $26::bigint[], $27::text[], $28::text[]",
            $array,
            ") AS d (id, lane, due_at, size, claims, node, lease, gate, flow, place, slot, holder",
            $column,
            ")"
        )
    };
    () => {
        insert_deliveries!("", "")
    };
}

/// Likewise where no gate is concerned: without the last five arrays.
macro_rules! insert_plain_deliveries {
    () => {
        "INSERT INTO deliveries (message_id, lane, due_at, size, retried, claims, node, lease) \
         SELECT id, lane, due_at, size, 0, claims, node, lease \
         FROM unnest($1::text[], $19::text[], $3::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], \
             $23::bigint[]) AS d (id, lane, due_at, size, claims, node, lease)"
    };
}

/// A message to insert with its delivery.
struct Row<'a> {
    message: &'a Message,
    lane: &'a str,
    lease: Option<Lease>,
    entry: Option<&'a Entry>,
    slot: Option<&'a Slot>,
}

/// Messages with their deliveries, column by column.
struct Arrays<'a> {
    ids: Vec<&'a str>,
    created_at: Vec<i64>,
    due_at: Vec<i64>,
    methods: Vec<&'a str>,
    urls: Vec<&'a str>,
    headers: Vec<Option<String>>,
    bodies: Vec<&'a [u8]>,
    hashes: Vec<&'a [u8]>,
    max_retries: Vec<i64>,
    caller_ips: Vec<Option<&'a str>>,
    labels: Vec<Option<String>>,
    queues: Vec<Option<&'a str>>,
    url_groups: Vec<Option<&'a str>>,
    endpoints: Vec<Option<&'a str>>,
    schedule_ids: Vec<Option<&'a str>>,
    flow_keys: Vec<Option<&'a str>>,
    source_ids: Vec<Option<&'a str>>,
    options: Vec<Option<String>>,
    lanes: Vec<&'a str>,
    sizes: Vec<i64>,
    claims: Vec<i64>,
    nodes: Vec<i64>,
    leases: Vec<i64>,
    gates: Vec<Option<&'a str>>,
    flows: Vec<Option<&'a str>>,
    places: Vec<Option<i64>>,
    slots: Vec<Option<&'a str>>,
    holders: Vec<Option<&'a str>>,
}

impl<'a> Arrays<'a> {
    fn new(node: NodeId, rows: &[Row<'a>]) -> Self {
        fn column<'a, T>(rows: &[Row<'a>], value: impl Fn(&'a Message) -> T) -> Vec<T> {
            rows.iter().map(|row| value(row.message)).collect()
        }
        let gated = rows.iter().any(|row| row.entry.is_some());
        let entries = || rows.iter().filter(|_| gated).map(|row| row.entry);
        let slotted = rows.iter().any(|row| row.slot.is_some());
        let slots = || rows.iter().filter(|_| slotted).map(|row| row.slot);
        Self {
            ids: column(rows, |m| m.id.as_str()),
            created_at: column(rows, |m| m.created_at.as_millis()),
            due_at: column(rows, |m| m.due_at.as_millis()),
            methods: column(rows, |m| m.method.as_str()),
            urls: column(rows, |m| m.url.as_str()),
            headers: column(rows, |m| codec::write_headers(&m.headers)),
            bodies: column(rows, |m| &m.body[..]),
            hashes: column(rows, |m| &m.body_sha256[..]),
            max_retries: column(rows, |m| i64::from(m.max_retries)),
            caller_ips: column(rows, |m| m.caller_ip.as_deref()),
            labels: column(rows, |m| write_labels(&m.labels)),
            queues: column(rows, |m| m.queue.as_deref()),
            url_groups: column(rows, |m| m.url_group.as_deref()),
            endpoints: column(rows, |m| m.endpoint.as_deref()),
            schedule_ids: column(rows, |m| m.schedule_id.as_deref()),
            flow_keys: column(rows, |m| m.options.flow_control.as_ref().map(|flow| flow.key.as_str())),
            source_ids: column(rows, |m| m.source_id.as_ref().map(MessageId::as_str)),
            options: column(rows, |m| codec::write_options(&m.options)),
            sizes: column(rows, |m| i64::try_from(m.size()).unwrap_or(i64::MAX)),
            lanes: rows.iter().map(|row| row.lane).collect(),
            claims: rows.iter().map(|row| i64::from(row.lease.is_some())).collect(),
            nodes: rows.iter().map(|row| row.lease.map_or(0, |_| node.0)).collect(),
            leases: rows.iter().map(|row| row.lease.map_or(0, |lease| lease.0)).collect(),
            gates: entries().map(|entry| entry.map(|entry| &*entry.gate)).collect(),
            flows: entries().map(|entry| entry.and_then(|entry| entry.flow.as_deref())).collect(),
            places: entries().map(|entry| entry.map(|entry| entry.place)).collect(),
            slots: slots().map(|slot| slot.map(|slot| &*slot.queue)).collect(),
            holders: slots().map(|slot| slot.map(|slot| slot.holder.as_str())).collect(),
        }
    }
}

/// Binds the arrays to `$1` to `$28`.
macro_rules! bind_arrays {
    ($query:expr, $arrays:expr) => {{
        let arrays: Arrays<'_> = $arrays;
        bind_plain_arrays!($query, arrays)
            .bind(arrays.gates)
            .bind(arrays.flows)
            .bind(arrays.places)
            .bind(arrays.slots)
            .bind(arrays.holders)
    }};
}

/// Those that have nothing to do with gates, to `$1` to `$23`.
macro_rules! bind_plain_arrays {
    ($query:expr, $arrays:ident) => {
        $query
            .bind($arrays.ids)
            .bind($arrays.created_at)
            .bind($arrays.due_at)
            .bind($arrays.methods)
            .bind($arrays.urls)
            .bind($arrays.headers)
            .bind($arrays.bodies)
            .bind($arrays.hashes)
            .bind($arrays.max_retries)
            .bind($arrays.caller_ips)
            .bind($arrays.labels)
            .bind($arrays.queues)
            .bind($arrays.url_groups)
            .bind($arrays.endpoints)
            .bind($arrays.schedule_ids)
            .bind($arrays.flow_keys)
            .bind($arrays.source_ids)
            .bind($arrays.options)
            .bind($arrays.lanes)
            .bind($arrays.sizes)
            .bind($arrays.claims)
            .bind($arrays.nodes)
            .bind($arrays.leases)
    };
}

/// Stores messages and their deliveries: in one statement, or in one transaction when they are too large for that. No two
/// of the batch have the same deduplication key.
pub(super) async fn accept(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Accept],
    repeat: Repeat,
    max_queues: Option<u32>,
) -> Result<Vec<Accepted>> {
    if repeat == Repeat::First {
        return accept_all(conn, node, batch, repeat, max_queues).await;
    }
    // What is there already must not touch its gates and its key, which others may have changed or removed since.
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
    let mut entries = Vec::new();
    if gated {
        let messages: Vec<&Message> = batch.iter().map(|accept| &*accept.message).collect();
        entries = enter(&mut Conn::Postgres(&mut tx), &messages, max_queues).await?;
    }
    let mut rest = entries.as_slice();
    let mut results = Vec::with_capacity(batch.len());
    for part in parts {
        let (own, later) = rest.split_at(part.len().min(rest.len()));
        results.extend(store(&mut tx, node, part, own, repeat).await?);
        rest = later;
    }
    tx.commit().await?;
    Ok(results)
}

/// Stores them with what their deliveries have of gates: nothing, or an entry for each message.
async fn store(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Accept],
    entries: &[Option<Entry>],
    repeat: Repeat,
) -> Result<Vec<Accepted>> {
    if batch.iter().any(|accept| accept.deduplication.is_some()) {
        return accept_deduplicated(conn, node, batch, entries).await;
    }
    if let ([accept], [], Repeat::First) = (batch, entries, repeat) {
        store_one(conn, node, accept).await?;
        return Ok(vec![Accepted::Stored]);
    }
    let rows: Vec<Row<'_>> =
        batch.iter().enumerate().map(|(index, accept)| row(accept, entries.get(index))).collect();
    let arrays = Arrays::new(node, &rows);
    let query = match repeat {
        Repeat::First if entries.is_empty() => {
            let sql = concat!("WITH m AS (", insert_messages!(), ") ", insert_plain_deliveries!());
            bind_plain_arrays!(sqlx::query(sql), arrays)
        }
        Repeat::First => {
            let sql = concat!("WITH m AS (", insert_messages!(), ") ", insert_deliveries!());
            bind_arrays!(sqlx::query(sql), arrays)
        }
        // The delivery of a message that is there already may be finished: it must not come back.
        Repeat::Again => {
            let sql = concat!(
                "WITH m AS (",
                insert_messages!(),
                " ON CONFLICT (id) DO NOTHING RETURNING id) ",
                insert_deliveries!(),
                " WHERE CASE WHEN id IN (SELECT id FROM m) THEN TRUE END"
            );
            bind_arrays!(sqlx::query(sql), arrays)
        }
    };
    query.execute(conn).await?;
    Ok(vec![Accepted::Stored; batch.len()])
}

/// The same for one message that is new and waits at no gate. Postgres takes 50 µs less for values than for arrays of one.
async fn store_one(conn: &mut PgConnection, node: NodeId, accept: &Accept) -> Result<()> {
    let sql = "WITH m AS (INSERT INTO messages VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, \
             $16, $17, $18)) \
         INSERT INTO deliveries (message_id, lane, due_at, size, retried, claims, node, lease) \
         VALUES ($1, $19, $3, $20, 0, $21, $22, $23)";
    let mut arguments = PgArguments::default();
    let add = |arguments: &mut PgArguments| {
        add_message!(&mut *arguments, &accept.message)?;
        add_delivery!(&mut *arguments, node, accept)
    };
    add(&mut arguments).map_err(sqlx::Error::Encode)?;
    sqlx::query_with(sql, arguments).execute(conn).await?;
    Ok(())
}

fn row<'a>(accept: &'a Accept, entry: Option<&'a Option<Entry>>) -> Row<'a> {
    Row {
        message: &accept.message,
        lane: &accept.lane,
        lease: accept.lease,
        entry: entry.and_then(Option::as_ref),
        slot: None,
    }
}

/// The same where some messages have deduplication keys. The keys are won in one statement with the messages of the
/// winners; who holds a key that was not won is read afterwards, since that row may be newer than the statement's
/// snapshot.
async fn accept_deduplicated(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Accept],
    entries: &[Option<Entry>],
) -> Result<Vec<Accepted>> {
    let mut results: Vec<Option<Accepted>> = vec![None; batch.len()];
    // A key that expires between the two statements is won at the second try.
    for _ in 0..4 {
        let open: Vec<usize> = (0..batch.len()).filter(|&index| results[index].is_none()).collect();
        if open.is_empty() {
            break;
        }
        let accepts: Vec<(&Accept, Row<'_>)> =
            open.iter().map(|&index| (&batch[index], row(&batch[index], entries.get(index)))).collect();
        let won = win(conn, node, accepts).await?;
        let mut lost: HashMap<&str, usize> = HashMap::new();
        for &index in &open {
            match &batch[index].deduplication {
                Some(wanted) if !won.contains(batch[index].message.id.as_str()) => {
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

/// Stores the messages that have no key, or win theirs. The ids of the winners.
async fn win(
    conn: &mut PgConnection,
    node: NodeId,
    batch: Vec<(&Accept, Row<'_>)>,
) -> Result<HashSet<String>> {
    // Keys in order, so that two nodes that want the same ones wait for each other and don't deadlock.
    let sql = concat!(
        "WITH won AS (INSERT INTO deduplications (key, message_id, expires_at) \
             SELECT * FROM unnest($29::text[], $30::text[], $31::bigint[]) \
             ON CONFLICT (key) DO UPDATE SET message_id = excluded.message_id, expires_at = excluded.expires_at \
             WHERE deduplications.expires_at <= $32 OR deduplications.message_id = excluded.message_id \
             RETURNING message_id), \
         m AS (INSERT INTO messages SELECT * FROM unnest(",
        message_arrays!(),
        ") AS m (id) WHERE CASE WHEN id IN (SELECT message_id FROM won) THEN TRUE \
                                WHEN id IN (SELECT unnest($30::text[])) THEN FALSE ELSE TRUE END \
             ON CONFLICT (id) DO NOTHING RETURNING id), \
         d AS (",
        insert_deliveries!(),
        " WHERE CASE WHEN id IN (SELECT id FROM m) THEN TRUE END) \
         SELECT message_id FROM won"
    );
    let mut keys: Vec<(&str, &str, i64)> = Vec::new();
    let mut now = i64::MAX;
    for (accept, _) in &batch {
        if let Some(wanted) = &accept.deduplication {
            keys.push((&wanted.key, accept.message.id.as_str(), wanted.expires_at.as_millis()));
            now = now.min(accept.message.created_at.as_millis());
        }
    }
    keys.sort_unstable();
    let (_, rows): (Vec<&Accept>, Vec<Row<'_>>) = batch.into_iter().unzip();
    let won: Vec<String> = bind_arrays!(sqlx::query_scalar(sql), Arrays::new(node, &rows))
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
    look: Look,
) -> Result<DueLanes> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let low = match look {
        Look::From(low) | Look::FromAndBeside(low) => low,
        Look::Whole => i64::MIN,
    };
    let began = Instant::now();
    let first: Vec<(String, i64)> = sqlx::query_as(concat!(
        "SELECT lane, due_at FROM deliveries \
         WHERE node = 0 AND gate IS NULL AND due_at >= 0 AND due_at >= $1 AND due_at <= ",
        now_ms!(),
        " ORDER BY due_at LIMIT $2"
    ))
    .bind(low)
    .bind(limit)
    .fetch_all(&mut *conn)
    .await?;
    if look == Look::Whole {
        low_water.looked(began.elapsed());
    }
    if let Some((_, due_ms)) = first.first() {
        low_water.saw(*due_ms);
    }
    let mut walked = Vec::new();
    if i64::try_from(first.len()).unwrap_or(i64::MAX) == limit {
        walked = sqlx::query_scalar(super::deliveries::NEXT_LANES)
            .bind(after)
            .bind(super::deliveries::LANES_PER_LOOK)
            .fetch_all(conn)
            .await?;
    }
    Ok(super::deliveries::due_lanes(first.into_iter().map(|(lane, _)| lane).collect(), walked))
}

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
    let sql = concat!(
        "WITH picked AS MATERIALIZED ( \
             SELECT d.message_id, d.due_at, d.size FROM unnest($1::text[], $2::bigint[]) AS w (lane, count) \
             CROSS JOIN LATERAL ( \
                 SELECT message_id, due_at, size FROM deliveries \
                 WHERE node = 0 AND gate IS NULL AND lane = w.lane AND due_at >= $6 AND due_at <= ",
        now_ms!(),
        "         ORDER BY due_at, message_id LIMIT w.count FOR UPDATE SKIP LOCKED) AS d), \
         fit AS MATERIALIZED ( \
             SELECT message_id FROM ( \
                 SELECT message_id, size, SUM(size) OVER (ORDER BY due_at, message_id) AS total \
                 FROM (SELECT DISTINCT message_id, due_at, size FROM picked) AS once) AS p \
             WHERE total <= $3 OR total = size), \
         taken AS ( \
             UPDATE deliveries d SET node = $4, lease = $5, claims = claims + 1 FROM fit \
             WHERE d.message_id = ANY (ARRAY[fit.message_id]) \
             RETURNING d.message_id, d.lane, d.due_at AS attempt_due_at, d.retried, d.claims, \
                       d.cancel_requested_at IS NOT NULL AS cancel_requested, d.slot, d.holder) \
         SELECT t.lane, t.attempt_due_at, t.retried, t.claims, t.cancel_requested, t.slot, t.holder, \
                NULL AS flow_gate, ",
        message_columns!(),
        " FROM taken t JOIN messages m ON m.id = ANY (ARRAY[t.message_id])"
    );
    let lanes: Vec<&str> = wants.iter().map(|want| &*want.lane).collect();
    let counts: Vec<i64> = wants.iter().map(|want| i64::try_from(want.count).unwrap_or(i64::MAX)).collect();
    let rows: Vec<ClaimedRow> = sqlx::query_as(sql)
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
pub(super) async fn finish(conn: &mut PgConnection, node: NodeId, batch: &[Ended]) -> Result<Vec<Applied>> {
    let plain = batch
        .iter()
        .all(|ended| matches!(ended.finish.next, Next::Delivered) && ended.finish.callbacks.is_empty());
    let callbacks = || batch.iter().flat_map(|ended| &ended.finish.callbacks).map(|message| &**message);
    let applied = if plain {
        finish_delivered(conn, node, batch).await?
    } else if callbacks().any(is_gated) {
        let mut tx = conn.begin().await?;
        let messages: Vec<&Message> = callbacks().collect();
        // Callbacks are in no queue.
        let entries = enter(&mut Conn::Postgres(&mut tx), &messages, None).await?;
        let applied = finish_mixed(&mut tx, node, batch, &entries).await?;
        tx.commit().await?;
        applied
    } else {
        finish_mixed(conn, node, batch, &[]).await?
    };
    let applied: HashSet<&str> = applied.iter().map(String::as_str).collect();
    Ok(batch
        .iter()
        .map(|ended| if applied.contains(ended.id.as_str()) { Applied::Yes } else { Applied::No })
        .collect())
}

/// Attempts, column by column.
#[derive(Default)]
struct AttemptArrays<'a> {
    ids: Vec<&'a str>,
    leases: Vec<i64>,
    retried: Vec<i64>,
    started_at: Vec<i64>,
    ended_at: Vec<i64>,
    results: Vec<&'static str>,
    statuses: Vec<i64>,
    errors: Vec<Option<&'a str>>,
    next_due_at: Vec<Option<i64>>,
    headers: Vec<Option<String>>,
    bodies: Vec<Option<&'a [u8]>>,
    letter_headers: Vec<Option<String>>,
    letter_bodies: Vec<Option<&'a [u8]>>,
}

impl<'a> AttemptArrays<'a> {
    fn new(batch: &'a [Ended]) -> Self {
        let mut arrays = Self::default();
        for ended in batch {
            let row = AttemptColumns::new(&ended.finish);
            arrays.ids.push(ended.id.as_str());
            arrays.leases.push(ended.lease.0);
            arrays.retried.push(row.retried);
            arrays.started_at.push(row.started_at);
            arrays.ended_at.push(row.ended_at);
            arrays.results.push(row.result);
            arrays.statuses.push(row.status);
            arrays.errors.push(row.error);
            arrays.next_due_at.push(row.next_due_at);
            arrays.headers.push(row.headers);
            arrays.bodies.push(row.body);
            arrays.letter_headers.push(row.letter_headers);
            arrays.letter_bodies.push(row.letter_body);
        }
        arrays
    }
}

async fn finish_delivered(conn: &mut PgConnection, node: NodeId, batch: &[Ended]) -> Result<Vec<String>> {
    let sql = "WITH gone AS ( \
             DELETE FROM deliveries d USING unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], \
                 $6::bigint[], $7::text[], $8::bigint[], $9::text[], $10::bigint[], $11::text[], $12::bytea[]) \
                 AS f (id, lease, retried, started_at, ended_at, result, status, error, next_due_at, headers, body) \
             WHERE d.message_id = ANY (ARRAY[f.id]) AND d.node = $1 AND d.lease = f.lease \
             RETURNING f.id, f.retried, f.started_at, f.ended_at, f.result, f.status, f.error, f.next_due_at, \
                       f.headers, f.body) \
         INSERT INTO attempts SELECT * FROM gone RETURNING message_id";
    let arrays = AttemptArrays::new(batch);
    Ok(sqlx::query_scalar(sql)
        .bind(node.0)
        .bind(arrays.ids)
        .bind(arrays.leases)
        .bind(arrays.retried)
        .bind(arrays.started_at)
        .bind(arrays.ended_at)
        .bind(arrays.results)
        .bind(arrays.statuses)
        .bind(arrays.errors)
        .bind(arrays.next_due_at)
        .bind(arrays.headers)
        .bind(arrays.bodies)
        .fetch_all(conn)
        .await?)
}

/// The general form. `$1` to `$28` are the callback messages, as in accept; `$29` names each one's source; `$30` to `$44`
/// are the attempts. At a key's gate a retry takes its place anew; in a queue it has its slot.
const FINISH_MIXED: &str = concat!(
    "WITH f AS MATERIALIZED ( \
         SELECT * FROM unnest($30::text[], $31::bigint[], $32::bigint[], $33::bigint[], $34::bigint[], $35::text[], \
             $36::bigint[], $37::text[], $38::bigint[], $39::text[], $40::bytea[], $41::text[], $43::text[], \
             $44::bytea[]) \
         AS f (id, lease, retried, started_at, ended_at, result, status, error, next_due_at, headers, body, dlq_id, \
             dlq_headers, dlq_body)), \
     gone AS ( \
         DELETE FROM deliveries d USING f \
         WHERE f.result <> 'retry' AND d.message_id = ANY (ARRAY[f.id]) AND d.node = $42 AND d.lease = f.lease \
           AND CASE f.result WHEN 'delivered' THEN TRUE \
                   WHEN 'cancelled' THEN d.cancel_requested_at IS NOT NULL \
                   ELSE d.cancel_requested_at IS NULL END \
         RETURNING f.*), \
     again AS ( \
         UPDATE deliveries d SET node = 0, lease = 0, claims = 0, starts = 0, retried = f.retried + 1, due_at = f.next_due_at, \
             place = CASE WHEN LEFT(d.gate, 1) = 'f' THEN f.next_due_at * 1000 ELSE d.place END \
         FROM f \
         WHERE f.result = 'retry' AND d.message_id = ANY (ARRAY[f.id]) AND d.node = $42 AND d.lease = f.lease \
           AND d.cancel_requested_at IS NULL \
         RETURNING f.*), \
     ended AS (SELECT * FROM gone UNION ALL SELECT * FROM again), \
     a AS ( \
         INSERT INTO attempts SELECT id, retried, started_at, ended_at, result, status, error, next_due_at, headers, \
             body FROM ended), \
     l AS ( \
         INSERT INTO dead_letters SELECT dlq_id, id, ended_at, status, error, dlq_headers, dlq_body \
         FROM gone WHERE dlq_id IS NOT NULL), \
     c AS ( \
         UPDATE cancellations SET cancelled_at = GREATEST(requested_at, gone.ended_at) FROM gone \
         WHERE gone.result = 'cancelled' AND cancellations.message_id = ANY (ARRAY[gone.id])), \
     m AS ( \
         INSERT INTO messages SELECT ",
    "m.id, m.created_at, m.due_at, m.method, m.url, m.headers, m.body, m.body_sha256, m.max_retries, m.caller_ip, \
     m.labels, m.queue, m.url_group, m.endpoint, m.schedule_id, m.flow_key, m.source_id, m.options",
    " FROM unnest(",
    message_arrays!(),
    ", $29::text[]) AS m (id, created_at, due_at, method, url, headers, body, body_sha256, max_retries, caller_ip, \
         labels, queue, url_group, endpoint, schedule_id, flow_key, source_id, options, source) \
         WHERE CASE WHEN m.source IN (SELECT id FROM ended) THEN TRUE END), \
     d AS (",
    insert_deliveries!(", $29::text[]", ", source"),
    " WHERE CASE WHEN source IN (SELECT id FROM ended) THEN TRUE END) \
     SELECT id FROM ended"
);

/// `entries`: what the callbacks' deliveries have of gates, nothing or one for each.
async fn finish_mixed(
    conn: &mut PgConnection,
    node: NodeId,
    batch: &[Ended],
    entries: &[Option<Entry>],
) -> Result<Vec<String>> {
    let mut rows = Vec::new();
    let mut sources = Vec::new();
    for ended in batch {
        for (message, (lane, lease)) in ended.finish.callbacks.iter().zip(&ended.callbacks) {
            let entry = entries.get(rows.len()).and_then(Option::as_ref);
            rows.push(Row { message, lane, lease: *lease, entry, slot: ended.slot.as_ref() });
            sources.push(ended.id.as_str());
        }
    }
    let dlq_ids: Vec<Option<&str>> = batch
        .iter()
        .map(|ended| match &ended.finish.next {
            Next::Failed { dead_letter } => Some(dead_letter.as_str()),
            _ => None,
        })
        .collect();
    let attempts = AttemptArrays::new(batch);
    Ok(bind_arrays!(sqlx::query_scalar(FINISH_MIXED), Arrays::new(node, &rows))
        .bind(sources)
        .bind(attempts.ids)
        .bind(attempts.leases)
        .bind(attempts.retried)
        .bind(attempts.started_at)
        .bind(attempts.ended_at)
        .bind(attempts.results)
        .bind(attempts.statuses)
        .bind(attempts.errors)
        .bind(attempts.next_due_at)
        .bind(attempts.headers)
        .bind(attempts.bodies)
        .bind(dlq_ids)
        .bind(node.0)
        .bind(attempts.letter_headers)
        .bind(attempts.letter_bodies)
        .fetch_all(conn)
        .await?)
}
