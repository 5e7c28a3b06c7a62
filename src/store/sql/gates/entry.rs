//! What accepting a message does at its gates: it makes them, takes over what the message says about its key, wakes
//! them, and takes the message's place.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::{PgConnection, SqliteConnection};

use super::{ControlRow, contended, limit_columns};
use crate::domain::gate::{Control, Limits, Path, is_queue};
use crate::domain::message::{FlowControl, Message};
use crate::domain::time::Timestamp;
use crate::store::gates::RECHECK;
use crate::store::sql::Backend;
use crate::store::sql::nodes::now_ms;
use crate::store::{Result, StoreError};

/// A connection inside a transaction.
pub(in crate::store::sql) type Conn<'a> = Backend<&'a mut PgConnection, &'a mut SqliteConnection>;

/// Where a delivery waits: the columns of its row.
pub(in crate::store::sql) struct Entry {
    pub(in crate::store::sql) gate: Arc<str>,
    pub(in crate::store::sql) flow: Option<Arc<str>>,
    pub(in crate::store::sql) place: i64,
}

/// What the messages of one batch want of a gate.
#[derive(Default)]
struct Wanted<'a> {
    /// When the first of those that wait here is due.
    due_at: Option<Timestamp>,
    /// How many join a queue at once.
    joining: i64,
    /// What the last one says about its key.
    flow: Option<&'a FlowControl>,
}

/// A gate as it is.
#[derive(sqlx::FromRow)]
struct KnownRow {
    name: String,
    #[sqlx(flatten)]
    control: ControlRow,
    next_at: Option<i64>,
    now: i64,
}

macro_rules! select_known {
    ($now:expr, $rest:literal) => {
        concat!("SELECT name, ", control_columns!(), ", next_at, ", $now, " AS now FROM gates WHERE ", $rest)
    };
}

const INSERT: &str = "INSERT INTO gates (name, created_at, updated_at, used_at, parallelism, rate, period_s, paused, \
                          pinned_parallelism, pinned_rate, version, next_at) \
                      VALUES ($1, $2, $2, $2, $3, $4, $5, FALSE, FALSE, FALSE, 0, $6) ON CONFLICT (name) DO NOTHING";

/// Postgres' lock for counting: `hqueues` in ASCII.
const ADVISORY_LOCK: i64 = 0x68_7175_6575_6573;

/// Lets messages in. From here to the end of the transaction their gates can't be removed, and nobody else takes places
/// in their queues. Gates are locked in the order of their names, and before any delivery is.
pub(in crate::store::sql) async fn enter(
    conn: &mut Conn<'_>,
    messages: &[&Message],
    max_queues: Option<u32>,
) -> Result<Vec<Option<Entry>>> {
    let paths: Vec<Option<Path>> = messages.iter().map(|message| Path::of(message)).collect();
    let wanted = wanted(messages, &paths);
    let accepted_at = messages.iter().map(|message| message.created_at).max().unwrap_or_default();
    let now = hold(conn, &wanted, accepted_at, max_queues).await?;
    let mut places = take_places(conn, &wanted, now).await?;
    let entries = messages.iter().zip(paths).map(|(message, path)| {
        let path = path?;
        let next = places.get_mut(&path.gate).filter(|_| !is_delayed(message));
        let place = match next {
            Some(place) => {
                *place += 1;
                *place
            }
            // The publisher's node may be ahead of the database's clock.
            None if !is_delayed(message) => message.due_at.min(now).as_millis() * 1000,
            None => message.due_at.as_millis() * 1000,
        };
        Some(Entry { gate: path.gate, flow: path.flow, place })
    });
    Ok(entries.collect())
}

/// A delayed message joins when it is due, and takes its place by that time.
fn is_delayed(message: &Message) -> bool {
    message.due_at > message.created_at
}

fn wanted<'a>(messages: &[&'a Message], paths: &[Option<Path>]) -> BTreeMap<Arc<str>, Wanted<'a>> {
    let mut all: BTreeMap<Arc<str>, Wanted<'a>> = BTreeMap::new();
    for (message, path) in messages.iter().zip(paths) {
        let Some(path) = path else { continue };
        let wanted = all.entry(Arc::clone(&path.gate)).or_default();
        wanted.due_at = Some(wanted.due_at.map_or(message.due_at, |due_at| due_at.min(message.due_at)));
        if is_queue(&path.gate) && !is_delayed(message) {
            wanted.joining += 1;
        }
        if let Some(flow) = &path.flow {
            all.entry(Arc::clone(flow)).or_default().flow = message.options.flow_control.as_ref();
        }
    }
    all
}

/// Makes the gates that are missing, holds all of them, and brings them up to date; the store's time.
async fn hold(
    conn: &mut Conn<'_>,
    wanted: &BTreeMap<Arc<str>, Wanted<'_>>,
    accepted_at: Timestamp,
    max_queues: Option<u32>,
) -> Result<Timestamp> {
    // One that was missing may be made by others, and one that was there may be removed, before it is held.
    for _ in 0..4 {
        let known = known(conn, wanted).await?;
        let missing: Vec<(&Arc<str>, &Wanted<'_>)> =
            wanted.iter().filter(|(name, _)| !known.iter().any(|row| *row.name == ***name)).collect();
        if let Some(max) = max_queues {
            let queues: Vec<&str> =
                missing.iter().map(|(name, _)| &***name).filter(|name| is_queue(name)).collect();
            if !has_room(conn, &queues, max).await? {
                return Err(StoreError::TooManyQueues(max));
            }
        }
        for (name, wanted) in &missing {
            insert(conn, name, wanted, accepted_at).await?;
        }
        if missing.is_empty() {
            let now = known.first().map_or(0, |row| row.now);
            for row in known {
                update(conn, &wanted[&*row.name], &row).await?;
            }
            return Ok(Timestamp::from_millis(now));
        }
    }
    Err(contended())
}

/// Whether there may be these queues, by their gates, where there may be `max`: those that are missing fit. No other
/// transaction that asks goes on before this one's end.
pub(in crate::store::sql) async fn has_room(conn: &mut Conn<'_>, queues: &[&str], max: u32) -> Result<bool> {
    if queues.is_empty() {
        return Ok(true);
    }
    if let Conn::Postgres(conn) = &mut *conn {
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ADVISORY_LOCK).execute(&mut **conn).await?;
    }
    let sql = "SELECT name FROM gates WHERE name >= 'q:' AND name < 'q;'";
    let there: Vec<String> = on_backend!(conn, |conn| sqlx::query_scalar(sql).fetch_all(&mut **conn).await?);
    let missing = queues.iter().filter(|name| !there.iter().any(|have| have == *name)).count();
    Ok(missing == 0 || there.len() + missing <= max as usize)
}

async fn known(conn: &mut Conn<'_>, wanted: &BTreeMap<Arc<str>, Wanted<'_>>) -> Result<Vec<KnownRow>> {
    match conn {
        Backend::Postgres(conn) => {
            let names: Vec<&str> = wanted.keys().map(|name| &**name).collect();
            Ok(sqlx::query_as(select_known!(now_ms!(), "name = ANY ($1) ORDER BY name FOR KEY SHARE"))
                .bind(names)
                .fetch_all(&mut **conn)
                .await?)
        }
        Backend::Sqlite(conn) => {
            let now = crate::clock::system_now().as_millis();
            let mut known = Vec::with_capacity(wanted.len());
            for name in wanted.keys() {
                let row: Option<KnownRow> = sqlx::query_as(select_known!("$2", "name = $1"))
                    .bind(&**name)
                    .bind(now)
                    .fetch_optional(&mut **conn)
                    .await?;
                known.extend(row);
            }
            Ok(known)
        }
    }
}

async fn insert(conn: &mut Conn<'_>, name: &str, wanted: &Wanted<'_>, accepted_at: Timestamp) -> Result<()> {
    let mut control = Control { limits: Limits { parallelism: Some(1), rate: None }, ..Control::default() };
    if let Some(flow) = wanted.flow {
        control.follow(flow);
    }
    let (parallelism, rate, period_s) = limit_columns(control.limits);
    on_backend!(conn, |conn| {
        sqlx::query(INSERT)
            .bind(name)
            .bind(accepted_at.as_millis())
            .bind(parallelism)
            .bind(rate)
            .bind(period_s)
            .bind(wanted.due_at.map(Timestamp::as_millis))
            .execute(&mut **conn)
            .await?;
    });
    Ok(())
}

/// Changes a gate only where it has to: that waits for a claim, and a claim for it.
async fn update(conn: &mut Conn<'_>, wanted: &Wanted<'_>, row: &KnownRow) -> Result<()> {
    let before = row.control.control();
    let mut control = before;
    if let Some(flow) = wanted.flow {
        control.follow(flow);
    }
    if control != before {
        let sql = "UPDATE gates SET parallelism = $2, rate = $3, period_s = $4, updated_at = $5, next_at = $5, \
                       version = version + 1 WHERE name = $1";
        let (parallelism, rate, period_s) = limit_columns(control.limits);
        on_backend!(&mut *conn, |conn| {
            sqlx::query(sql)
                .bind(row.name.as_str())
                .bind(parallelism)
                .bind(rate)
                .bind(period_s)
                .bind(row.now)
                .execute(&mut **conn)
                .await?;
        });
    }
    let Some(due_at) = wanted.due_at.filter(|_| !control.paused) else { return Ok(()) };
    let soon = due_at.after(RECHECK).as_millis();
    if row.next_at.is_none_or(|next_at| next_at > soon) {
        let sql = "UPDATE gates SET next_at = $2 WHERE name = $1 AND (next_at IS NULL OR next_at > $2)";
        on_backend!(conn, |conn| {
            sqlx::query(sql).bind(row.name.as_str()).bind(due_at.as_millis()).execute(&mut **conn).await?;
        });
    }
    Ok(())
}

/// Takes the places of those that join queues now; the last one before them, for each queue.
async fn take_places(
    conn: &mut Conn<'_>,
    wanted: &BTreeMap<Arc<str>, Wanted<'_>>,
    now: Timestamp,
) -> Result<BTreeMap<Arc<str>, i64>> {
    let joining: Vec<(&Arc<str>, i64)> = wanted
        .iter()
        .filter(|(_, wanted)| wanted.joining > 0)
        .map(|(name, wanted)| (name, wanted.joining))
        .collect();
    if joining.is_empty() {
        return Ok(BTreeMap::new());
    }
    macro_rules! take {
        ($from:expr) => {
            concat!(
                "INSERT INTO queue_places ",
                $from,
                " ON CONFLICT (gate) DO UPDATE SET place = excluded.place - $1 + \
                      CASE WHEN queue_places.place > $1 THEN queue_places.place ELSE $1 END \
                  RETURNING gate, place"
            )
        };
    }
    // Microseconds; the first place after this one is the first to take.
    let before = now.as_millis() * 1000 - 1;
    let mut last: Vec<(String, i64)> = Vec::with_capacity(joining.len());
    match conn {
        Backend::Postgres(conn) => {
            let names: Vec<&str> = joining.iter().map(|(name, _)| &***name).collect();
            let counts: Vec<i64> = joining.iter().map(|(_, count)| *count).collect();
            last = sqlx::query_as(take!(
                "SELECT name, $1 + count FROM unnest($2::text[], $3::bigint[]) AS w (name, count) ORDER BY name"
            ))
            .bind(before)
            .bind(names)
            .bind(counts)
            .fetch_all(&mut **conn)
            .await?;
        }
        Backend::Sqlite(conn) => {
            for (name, count) in &joining {
                last.push(
                    sqlx::query_as(take!("VALUES ($2, $1 + $3)"))
                        .bind(before)
                        .bind(&***name)
                        .bind(count)
                        .fetch_one(&mut **conn)
                        .await?,
                );
            }
        }
    }
    let last: BTreeMap<String, i64> = last.into_iter().collect();
    let first = |(name, count): &(&Arc<str>, i64)| Some((Arc::clone(name), last.get(&***name)? - count));
    Ok(joining.iter().filter_map(first).collect())
}
