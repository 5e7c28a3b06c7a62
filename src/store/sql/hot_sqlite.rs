//! The hot steps on SQLite: accept, claim, finish, as [`super::hot_postgres`] has them for Postgres.
//!
//! Each step runs in a transaction of its caller's: accepts and finishes in those of [`super::group_commit`]. Most of the cost
//! is not SQLite's but each statement's way to its thread and back, so there are few of them: rows are inserted many at a time, by statements for some fixed numbers of rows, which
//! stay prepared and skip the rows that are not there; and a statement returns all that it has to say as one row.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, FromRow, SqliteConnection, SqlitePool};

use super::attempts::{self, callbacks, letter, with_letter};
use super::codec::json;
use super::columns::{Column, add_row, arguments, names};
use super::deliveries::set_aside;
use super::gates::entering::{AtTime, Coming, Conn, Entered, enter};
use super::messages::{self, ClaimedRow, LEASED, New, SELECTED, delivery};
use super::runs;
use super::tx::{Claimable, begin_immediate};
use crate::domain::gate::is_gated;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::outcome::Next;
use crate::domain::time::Timestamp;
use crate::store::{
    Accept, Accepted, Applied, Delivery, DueLanes, Ended, Lease, NodeId, PassOn, Repeat, Result, Slot, Want,
};

/// Rows that the inserting statements have room for: 256 × 18 values are well below SQLite's 32,766.
const ROWS: [usize; 4] = [1, 8, 64, 256];

/// Statements that insert rows into a table, for each of the numbers of rows in [`ROWS`].
pub(super) type Inserts = [String; ROWS.len()];

pub(super) fn inserts<R>(table: &str, columns: &[Column<'_, R>]) -> Inserts {
    let names = names(columns, "");
    let row = format!("(?{})", ", ?".repeat(columns.len() - 1));
    ROWS.map(|room| {
        let rows = vec![row.as_str(); room].join(", ");
        format!("INSERT INTO {table} ({names}) SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL")
    })
}

/// The place in [`ROWS`] of the inserting statement that has room for so many rows.
fn room(rows: usize) -> usize {
    ROWS.iter().position(|&room| room >= rows).unwrap_or(ROWS.len() - 1)
}

/// Inserts messages and their deliveries.
async fn insert_new(conn: &mut SqliteConnection, rows: &[New<'_>]) -> Result<()> {
    static MESSAGES: LazyLock<Inserts> = LazyLock::new(|| inserts("messages", &messages::written()));
    static DELIVERIES: LazyLock<Inserts> = LazyLock::new(|| inserts("deliveries", &delivery()));
    let accepted: Vec<&Message> = rows.iter().map(|row| &*row.accept.message).collect();
    insert_rows(conn, &MESSAGES, &messages::written(), &accepted).await?;
    insert_rows(conn, &DELIVERIES, &delivery(), rows).await
}

/// Inserts rows by the smallest of a table's statements that holds them. Values that are missing at the end are NULL.
pub(super) async fn insert_rows<R: Copy>(
    conn: &mut SqliteConnection,
    statements: &'static Inserts,
    columns: &[Column<'_, R>],
    rows: &[R],
) -> Result<()> {
    for rows in rows.chunks(ROWS[ROWS.len() - 1]) {
        let arguments = arguments(|arguments: &mut SqliteArguments| {
            rows.iter().try_for_each(|row| add_row(arguments, columns, *row))
        })?;
        sqlx::query_with(statements[room(rows.len())].as_str(), arguments).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Stores messages and their deliveries.
pub(super) async fn accept(
    conn: &mut SqliteConnection,
    node: NodeId,
    batch: &[&Accept],
    repeat: Repeat,
    max_queues: Option<u32>,
    now: Timestamp,
) -> Result<Vec<Accepted>> {
    // The delivery of a message that is there already may be finished: it must not come back. Nor must it touch its gates
    // and its key, which others may have changed or removed since.
    let present = match repeat {
        Repeat::First => HashSet::new(),
        Repeat::Again => present(conn, batch).await?,
    };
    let is_missing = |accept: &Accept| !present.contains(accept.message.id.as_str());
    let mut results = vec![Accepted::Stored; batch.len()];
    if batch.iter().any(|accept| accept.deduplication.is_some()) {
        for (accept, result) in batch.iter().zip(&mut results).filter(|(accept, _)| is_missing(accept)) {
            if let Some(holder) = hold_key(conn, accept).await? {
                *result = Accepted::Duplicate(holder);
            }
        }
    }
    if batch.iter().any(|accept| accept.on_run.is_some()) {
        let (indices, open): (Vec<usize>, Vec<&Accept>) =
            batch.iter().copied().enumerate().filter(|(_, accept)| is_missing(accept)).unzip();
        let entered = runs::entering::enter(&mut Conn::Sqlite(AtTime { conn, now }), &open).await?;
        for (index, result) in indices.into_iter().zip(entered) {
            results[index] = result.unwrap_or(Accepted::Stored);
        }
    }
    let is_open = |accept: &Accept, result: &Accepted| accept.on_run.is_none() || *result == Accepted::Stored;
    let missing: Vec<usize> = (0..batch.len())
        .filter(|index| is_missing(batch[*index]) && is_open(batch[*index], &results[*index]))
        .collect();
    let coming = Coming {
        messages: missing.iter().map(|index| &*batch[*index].message).collect(),
        requests: missing.iter().map(|index| batch[*index].request).collect(),
        max_queues,
    };
    let entered = enter_all(conn, &coming, now).await?;
    for (index, refused) in missing.iter().zip(entered.iter().map(Entered::refused)) {
        if let Some(refused) = refused
            && results[*index] == Accepted::Stored
        {
            results[*index] = refused;
        }
    }
    let rows: Vec<New<'_>> = missing
        .iter()
        .enumerate()
        .filter(|(_, index)| results[**index] == Accepted::Stored)
        .map(|(place, index)| New {
            accept: batch[*index],
            node,
            place: entered.get(place).and_then(Entered::place),
            slot: None,
        })
        .collect();
    insert_new(conn, &rows).await?;
    Ok(results)
}

/// Takes the accept's deduplication key, or tells which message holds it.
async fn hold_key(conn: &mut SqliteConnection, accept: &Accept) -> Result<Option<MessageId>> {
    let Some(wanted) = &accept.deduplication else { return Ok(None) };
    let taken = sqlx::query(
        "INSERT INTO deduplications (key, message_id, expires_at) VALUES ($1, $2, $3) \
         ON CONFLICT (key) DO UPDATE SET message_id = excluded.message_id, expires_at = excluded.expires_at \
         WHERE deduplications.expires_at <= $4 OR deduplications.message_id = excluded.message_id",
    )
    .bind(wanted.key.as_str())
    .bind(accept.message.id.as_str())
    .bind(wanted.expires_at.as_millis())
    .bind(accept.message.created_at.as_millis())
    .execute(&mut *conn)
    .await?;
    if taken.rows_affected() == 1 {
        return Ok(None);
    }
    let holder: String = sqlx::query_scalar("SELECT message_id FROM deduplications WHERE key = $1")
        .bind(wanted.key.as_str())
        .fetch_one(conn)
        .await?;
    Ok(Some(MessageId::new(holder)))
}

/// Which of the ids are stored already.
async fn present(conn: &mut SqliteConnection, batch: &[&Accept]) -> Result<HashSet<String>> {
    let ids: Vec<&str> = batch.iter().map(|accept| accept.message.id.as_str()).collect();
    let ids = json(&ids);
    let found: Vec<String> =
        sqlx::query_scalar("SELECT id FROM messages WHERE id IN (SELECT value FROM json_each($1))")
            .bind(ids)
            .fetch_all(conn)
            .await?;
    Ok(found.into_iter().collect())
}

/// Lets messages in at their gates: each where it waits at one, or nothing if none does.
async fn enter_all(conn: &mut SqliteConnection, coming: &Coming<'_>, now: Timestamp) -> Result<Vec<Entered>> {
    if !coming.messages.iter().any(|message| is_gated(message)) {
        return Ok(Vec::new());
    }
    enter(&mut Conn::Sqlite(AtTime { conn, now }), coming).await
}

/// The lanes of what is due first, and of some lanes after `after`.
pub(super) async fn due_lanes(
    readers: &SqlitePool,
    limit: usize,
    after: &str,
    now: Timestamp,
) -> Result<DueLanes> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let first: Vec<String> = sqlx::query_scalar(
        "SELECT lane FROM deliveries WHERE node = 0 AND gate IS NULL AND due_at >= 0 AND due_at <= $1 \
         ORDER BY due_at LIMIT $2",
    )
    .bind(now.as_millis())
    .bind(limit)
    .fetch_all(readers)
    .await?;
    let mut walked = Vec::new();
    if i64::try_from(first.len()).unwrap_or(i64::MAX) == limit {
        walked = sqlx::query_scalar(super::deliveries::NEXT_LANES)
            .bind(after)
            .bind(super::deliveries::LANES_PER_WALK)
            .fetch_all(readers)
            .await?;
    }
    Ok(super::deliveries::due_lanes(first, walked))
}

/// Leases what is due in the wanted lanes.
pub(super) async fn claim(
    writer: &SqlitePool,
    node: NodeId,
    lease: Lease,
    wants: &[Want],
    max_bytes: usize,
    now: Timestamp,
) -> Result<Vec<Delivery>> {
    static CLAIMED: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT {LEASED}, {} FROM json_each($1) j CROSS JOIN deliveries d ON d.message_id = j.value \
             JOIN messages m ON m.id = d.message_id",
            *SELECTED
        )
    });
    let now = now.as_millis();
    let mut tx = begin_immediate(writer).await?;
    let mut picked: Vec<(i64, String, i64)> = Vec::new();
    for want in wants {
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "SELECT due_at, message_id, size FROM deliveries \
             WHERE node = 0 AND gate IS NULL AND lane = $1 AND due_at <= $2 ORDER BY due_at, message_id LIMIT $3",
        )
        .bind(&*want.lane)
        .bind(now)
        .bind(i64::try_from(want.count).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await?;
        picked.extend(rows);
    }
    picked.sort_unstable();
    // A lane that is wanted twice gives its deliveries once.
    picked.dedup();
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let mut bytes: i64 = 0;
    let fit: Vec<&str> = picked
        .iter()
        .enumerate()
        .take_while(|(index, (_, _, size))| {
            bytes = bytes.saturating_add(*size);
            bytes <= max_bytes || *index == 0
        })
        .map(|(_, (_, id, _))| id.as_str())
        .collect();
    let ids = json(&fit);
    sqlx::query(
        "UPDATE deliveries SET node = $1, lease = $2, claims = claims + 1 \
         WHERE message_id IN (SELECT value FROM json_each($3))",
    )
    .bind(node.0)
    .bind(lease.0)
    .bind(ids.as_str())
    .execute(&mut *tx)
    .await?;
    let rows: Vec<ClaimedRow> =
        sqlx::query_as(CLAIMED.as_str()).bind(ids.as_str()).fetch_all(&mut *tx).await?;
    let (deliveries, unreadable) = ClaimedRow::into_deliveries(rows, lease);
    set_aside_unreadable(&mut tx, unreadable).await?;
    tx.commit().await?;
    Ok(deliveries)
}

/// Stores the ends of attempts: removes or changes the deliveries whose lease holds, then writes what follows for these.
pub(super) async fn finish(
    conn: &mut SqliteConnection,
    node: NodeId,
    batch: &[Ended],
    now: Timestamp,
) -> Result<Vec<Applied>> {
    static ATTEMPTS: LazyLock<Inserts> = LazyLock::new(|| inserts("attempts", &attempts::columns()));
    static LETTERS: LazyLock<Inserts> = LazyLock::new(|| inserts("dead_letters", &letter()));
    let on_runs = batch.iter().any(|ended| ended.finish.on_runs().next().is_some());
    let messages = batch.iter().flat_map(|ended| ended.finish.callbacks()).map(|message| &**message);
    // Callbacks are in no queue.
    let coming = Coming { messages: messages.collect(), requests: Vec::new(), max_queues: None };
    let places = enter_all(conn, &coming, now).await?;
    // Beside each, whether it had a slot.
    let mut applied: HashMap<String, bool> = HashMap::with_capacity(batch.len());
    let of = |wanted: fn(&Next) -> bool| -> Vec<&Ended> {
        batch.iter().filter(|ended| wanted(&ended.finish.next)).collect()
    };
    let delivered = of(|next| matches!(next, Next::Delivered));
    applied.extend(delete(conn, node, &delivered, "").await?);
    let failed = of(|next| matches!(next, Next::Failed { .. }));
    applied.extend(delete(conn, node, &failed, "AND d.cancel_requested_at IS NULL").await?);
    let cancelled = of(|next| matches!(next, Next::Cancelled));
    applied.extend(delete(conn, node, &cancelled, "AND d.cancel_requested_at IS NOT NULL").await?);
    for ended in of(|next| matches!(next, Next::Retry { .. })) {
        if retry(conn, node, ended).await? {
            applied.insert(ended.id.as_str().to_owned(), false);
        }
    }
    let ended: Vec<&Ended> = batch.iter().filter(|ended| applied.contains_key(ended.id.as_str())).collect();
    insert_rows(conn, &ATTEMPTS, &attempts::columns(), &ended).await?;
    insert_rows(conn, &LETTERS, &letter(), &with_letter(ended.iter().copied()).collect::<Vec<_>>()).await?;
    for ended in ended.iter().filter(|ended| matches!(ended.finish.next, Next::Cancelled)) {
        sqlx::query("UPDATE cancellations SET cancelled_at = MAX(requested_at, $1) WHERE message_id = $2")
            .bind(ended.finish.attempt.ended_at.as_millis())
            .bind(ended.id.as_str())
            .execute(&mut *conn)
            .await?;
    }
    let callbacks: Vec<(&Ended, Accept)> =
        batch.iter().flat_map(|ended| callbacks(ended).map(move |accept| (ended, accept))).collect();
    let rows: Vec<New<'_>> = callbacks
        .iter()
        .enumerate()
        .filter(|(_, (ended, _))| applied.contains_key(ended.id.as_str()))
        .map(|(index, (ended, accept))| {
            let place = places.get(index).and_then(Entered::place);
            New { accept, node, place, slot: ended.slot.as_ref() }
        })
        .collect();
    insert_new(conn, &rows).await?;
    if on_runs {
        let mut conn = Conn::Sqlite(AtTime { conn, now });
        runs::ending::apply(&mut conn, &mut Claimable::unseen(), ended.iter().copied()).await?;
    }
    let had_slot = |ended: &&&Ended| applied.get(ended.id.as_str()) == Some(&true);
    let mut next = pass_on(conn, node, ended.iter().filter(had_slot).copied(), now).await?;
    let result = |ended: &Ended| match next.remove(ended.id.as_str()) {
        Some(delivery) => Applied::PassedOn(Box::new(delivery)),
        None if applied.contains_key(ended.id.as_str()) => Applied::Yes,
        None => Applied::No,
    };
    Ok(batch.iter().map(result).collect())
}

/// A delivery that gets a slot, and the number of the end that passes it on.
#[derive(FromRow)]
struct PassedRow {
    ended: i64,
    #[sqlx(flatten)]
    next: ClaimedRow,
}

/// Gives slots that became free to the next messages of their queues, one for each queue and as far as that may go: the
/// deliveries, by the ids of the messages whose slots these were. To be called when the ends and their callbacks are stored.
async fn pass_on(
    conn: &mut SqliteConnection,
    node: NodeId,
    ends: impl Iterator<Item = &Ended>,
    now: Timestamp,
) -> Result<HashMap<String, Delivery>> {
    // The rows as they are once they are leased.
    static NEXT: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT e.number AS ended, d.lane, MAX(d.due_at, e.ended_at) AS attempt_due_at, d.size, d.retried, \
                    d.claims + 1 AS claims, d.cancel_requested_at IS NOT NULL AS cancel_requested, \
                    d.gate AS slot, d.message_id AS holder, d.flow AS flow_gate, {} \
             FROM (SELECT MIN(key) AS number, value ->> 0 AS queue, value ->> 2 AS lane, value ->> 3 AS room, \
                          value ->> 4 AS ended_at \
                   FROM json_each($1) \
                   WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE slot = value ->> 0 AND holder = value ->> 1) \
                   GROUP BY value ->> 0) AS e \
             CROSS JOIN gates g ON g.name = e.queue \
             CROSS JOIN deliveries d ON d.message_id = ( \
                 SELECT message_id FROM deliveries WHERE gate = e.queue AND node = 0 AND slot IS NOT gate \
                 ORDER BY place, message_id LIMIT 1) \
             CROSS JOIN messages m ON m.id = d.message_id \
             WHERE NOT g.paused AND d.lane = e.lane AND d.size <= e.room AND d.flow IS NULL AND d.place / 1000 <= $2 \
               AND (SELECT COUNT(DISTINCT holder) FROM deliveries WHERE slot = e.queue) < g.parallelism",
            *SELECTED
        )
    });
    let passing = |ended| -> Option<(&Ended, &PassOn, &Slot)> {
        let ended: &Ended = ended;
        Some((ended, ended.pass_on.as_ref()?, ended.slot.as_ref()?))
    };
    let mut ends: Vec<(&Ended, &PassOn, &Slot)> = ends.filter_map(passing).collect();
    if ends.is_empty() {
        return Ok(HashMap::new());
    }
    ends.sort_by_key(|(ended, ..)| &ended.id);
    let at = |ended: &Ended| ended.finish.attempt.ended_at.as_millis();
    let wanted: Vec<_> = ends
        .iter()
        .map(|(ended, to, slot)| (&*slot.queue, slot.holder.as_str(), &*to.lane, to.room, at(ended)))
        .collect();
    let rows: Vec<PassedRow> =
        sqlx::query_as(NEXT.as_str()).bind(json(&wanted)).bind(now.as_millis()).fetch_all(&mut *conn).await?;
    let mut passed = HashMap::with_capacity(rows.len());
    for PassedRow { ended, next } in rows {
        let Some((ended, to, _)) = usize::try_from(ended).ok().and_then(|number| ends.get(number)) else {
            continue;
        };
        sqlx::query(
            "UPDATE deliveries SET node = $1, lease = $2, claims = claims + 1, due_at = MAX(due_at, $3), \
                 slot = gate, holder = message_id \
             WHERE message_id = $4",
        )
        .bind(node.0)
        .bind(to.lease.0)
        .bind(at(ended))
        .bind(next.id())
        .execute(&mut *conn)
        .await?;
        let (deliveries, unreadable) = ClaimedRow::into_deliveries(vec![next], to.lease);
        set_aside_unreadable(conn, unreadable).await?;
        passed.extend(deliveries.into_iter().map(|delivery| (ended.id.as_str().to_owned(), delivery)));
    }
    Ok(passed)
}

/// Gives back what was leased and can't be read.
pub(super) async fn set_aside_unreadable(conn: &mut SqliteConnection, unreadable: Vec<String>) -> Result<()> {
    for id in unreadable {
        sqlx::query(concat!("UPDATE deliveries SET ", set_aside!(), " WHERE message_id = $2"))
            .bind(super::deliveries::SET_ASIDE_MS)
            .bind(id)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Deletes the deliveries whose lease holds; their ids, and whether each had a slot.
async fn delete(
    conn: &mut SqliteConnection,
    node: NodeId,
    batch: &[&Ended],
    condition: &'static str,
) -> Result<Vec<(String, bool)>> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let leases: HashMap<&str, i64> = batch.iter().map(|ended| (ended.id.as_str(), ended.lease.0)).collect();
    let leases = json(&leases);
    let held = format!(
        "FROM json_each($1) j CROSS JOIN deliveries d ON d.message_id = j.key \
         WHERE d.node = $2 AND d.lease = j.value {condition}"
    );
    let ids: String = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT json_group_object(d.message_id, d.slot IS NOT NULL) {held}"
    )))
    .bind(leases.as_str())
    .bind(node.0)
    .fetch_one(&mut *conn)
    .await?;
    sqlx::query(AssertSqlSafe(format!("DELETE FROM deliveries WHERE rowid IN (SELECT d.rowid {held})")))
        .bind(leases.as_str())
        .bind(node.0)
        .execute(conn)
        .await?;
    let ids: HashMap<String, u8> =
        serde_json::from_str(&ids).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(ids.into_iter().map(|(id, has_slot)| (id, has_slot != 0)).collect())
}

async fn retry(conn: &mut SqliteConnection, node: NodeId, ended: &Ended) -> Result<bool> {
    let Next::Retry { due_at } = ended.finish.next else { return Ok(false) };
    // At a key's gate it takes its place anew; in a queue it has its slot.
    let changed = sqlx::query(
        "UPDATE deliveries SET node = 0, lease = 0, claims = 0, starts = 0, retried = $1, due_at = $2, \
             place = CASE WHEN SUBSTR(gate, 1, 1) = 'f' THEN $2 * 1000 ELSE place END \
         WHERE message_id = $3 AND node = $4 AND lease = $5 AND cancel_requested_at IS NULL",
    )
    .bind(i64::from(ended.finish.attempt.retried) + 1)
    .bind(due_at.as_millis())
    .bind(ended.id.as_str())
    .bind(node.0)
    .bind(ended.lease.0)
    .execute(conn)
    .await?;
    Ok(changed.rows_affected() == 1)
}
