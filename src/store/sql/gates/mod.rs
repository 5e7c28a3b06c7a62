//! The tables `gates` and `queue_places`: queues and flow-control keys, and when to look at which.
//!
//! [`entering`] has the part of accepts, `claim_postgres` and `claim_sqlite` the snapshots and claims. Whoever accepts holds the row of its gate against its removal and against [`rest_postgres`], not against claims.

use std::sync::Arc;

use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, SqlitePool};

use self::entering::{AtTime, Conn, has_room};
use super::cancelling::{self, Take};
use super::nodes::now_ms;
use super::query::table;
use super::tx::{Tx, begin_immediate};
use super::{Backend, codec};
use crate::clock::Clock;
use crate::domain::gate::{Control, FlowChange, Gate, Limits, Rate, bare_name, flow_gate, queue_gate};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::gates::{DueGates, FlowKey, GateSnapshot, Queue, QueueRemoval, RECHECK_BLOCKED};
use crate::store::{Cancellation, Result, StoreError};

/// The columns of [`ControlRow`].
macro_rules! control_columns {
    () => {
        "parallelism, rate, period_s, paused, pinned_parallelism, pinned_rate"
    };
}

mod calls;
mod claim_postgres;
mod claim_sqlite;
pub(super) mod entering;

/// Messages that are cancelled in one step of a queue's removal: few enough to hold no lock for long.
const REMOVED_AT_ONCE: i64 = 500;
/// Keys that are pruned in one step.
const PRUNED_AT_ONCE: i64 = 500;

/// A gate's settings.
#[derive(sqlx::FromRow)]
struct ControlRow {
    parallelism: Option<i64>,
    rate: Option<i64>,
    period_s: Option<i64>,
    paused: bool,
    pinned_parallelism: bool,
    pinned_rate: bool,
}

impl ControlRow {
    fn control(&self) -> Control {
        let number = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
        let rate = self.rate.zip(self.period_s);
        Control {
            limits: Limits {
                parallelism: self.parallelism.map(number),
                rate: rate.map(|(count, period)| Rate { count: number(count), period_s: number(period) }),
            },
            paused: self.paused,
            pinned_parallelism: self.pinned_parallelism,
            pinned_rate: self.pinned_rate,
        }
    }
}

/// Limits as they are stored: parallelism, rate, period.
fn limit_columns(limits: Limits) -> (Option<i64>, Option<i64>, Option<i64>) {
    (
        limits.parallelism.map(i64::from),
        limits.rate.map(|rate| i64::from(rate.count)),
        limits.rate.map(|rate| i64::from(rate.period_s)),
    )
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A gate in a snapshot.
#[derive(sqlx::FromRow)]
struct GateRow {
    name: String,
    version: i64,
    #[sqlx(flatten)]
    control: ControlRow,
    starts: Option<String>,
    next_at: Option<i64>,
    in_use: i64,
}

/// The columns of [`GateRow`], from a table `g`. In use is counted from rows: a queue's slots, attempts under a key; a
/// queue has none of the latter, and a key none of the former.
const GATE_COLUMNS: &str = "g.name, g.version, g.parallelism, g.rate, g.period_s, g.paused, \
    g.pinned_parallelism, g.pinned_rate, g.starts, g.next_at, \
    (SELECT COUNT(DISTINCT d.holder) FROM deliveries d WHERE d.slot = g.name) + \
    (SELECT COUNT(*) FROM deliveries d WHERE d.flow = g.name AND d.node > 0) AS in_use";

/// Sets the slot of a delivery `d` that passes its gate: in a queue its message's own, at a key's gate the one it has.
const TAKE_SLOT: &str = "slot = CASE WHEN SUBSTR(d.gate, 1, 1) = 'q' THEN d.gate ELSE d.slot END, \
    holder = CASE WHEN SUBSTR(d.gate, 1, 1) = 'q' THEN d.message_id ELSE d.holder END";

impl GateRow {
    fn into_snapshot(self, now: Timestamp) -> Result<GateSnapshot> {
        let control = self.control.control();
        Ok(GateSnapshot {
            version: self.version,
            gate: Gate {
                limits: control.limits,
                paused: control.paused,
                in_use: u32::try_from(self.in_use).unwrap_or(u32::MAX),
                starts: codec::read_starts(self.starts.as_deref(), now, &self.name)?,
                passed: 0,
            },
            next_at: self.next_at.map(Timestamp::from_millis),
            waiting: Vec::new(),
            name: Arc::from(self.name),
        })
    }
}

#[derive(sqlx::FromRow)]
struct DueRow {
    name: Option<String>,
    next_at: Option<i64>,
    now: i64,
}

macro_rules! due_gates {
    ($now:expr) => {
        concat!(
            "SELECT * FROM (SELECT name, next_at, ",
            $now,
            " AS now FROM gates WHERE next_at <= ",
            $now,
            " ORDER BY next_at LIMIT $1) AS due \
             UNION ALL SELECT NULL, (SELECT MIN(next_at) FROM gates WHERE next_at > ",
            $now,
            "), ",
            $now
        )
    };
}

/// The gates that are due, and when the next one is; `now` by SQLite's clock, Postgres asks its own.
pub(super) async fn due(
    pools: &Backend<&PgPool, &SqlitePool>,
    limit: usize,
    now: Timestamp,
) -> Result<DueGates> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows: Vec<DueRow> = match pools {
        Backend::Postgres(pool) => sqlx::query_as(due_gates!(now_ms!())).bind(limit).fetch_all(*pool).await?,
        Backend::Sqlite(pool) => {
            let now = now.as_millis();
            sqlx::query_as(due_gates!("$2")).bind(limit).bind(now).fetch_all(*pool).await?
        }
    };
    let mut due = DueGates { gates: Vec::new(), next_at: None, now: Timestamp::default() };
    for row in rows {
        due.now = Timestamp::from_millis(row.now);
        match row.name {
            Some(name) => due.gates.push(Arc::from(name)),
            None => due.next_at = row.next_at.map(Timestamp::from_millis),
        }
    }
    Ok(due)
}

/// Makes all gates due that have a time, locking them in the order in which everybody does. Not in a transaction that holds
/// deliveries: whoever holds a gate may wait for these.
pub(super) const WAKE_POSTGRES: &str = concat!(
    "UPDATE gates SET next_at = ",
    now_ms!(),
    " FROM (SELECT name FROM gates WHERE next_at > ",
    now_ms!(),
    " ORDER BY name) AS later WHERE gates.name = later.name"
);
/// Makes all gates due that have a time; `$1` is now.
pub(super) const WAKE_SQLITE: &str = "UPDATE gates SET next_at = $1 WHERE next_at > $1";

/// A gate that may rest.
#[derive(Serialize)]
struct Resting<'a> {
    name: &'a str,
    /// Before when what is due already can't go.
    until: i64,
}

/// Lets gates rest: until the first of those that wait is due, or, while anything is in flight, not too late. `$2` is now.
async fn rest(conn: &mut Conn<'_>, gates: &[Resting<'_>], now: Timestamp) -> Result<()> {
    let sql = format!(
        "UPDATE gates SET next_at = CASE WHEN paused THEN NULL ELSE ( \
             SELECT MIN(CASE WHEN due_at <= $2 THEN r.until ELSE due_at END) FROM ( \
                 SELECT * FROM ( \
                     SELECT place / 1000 AS due_at FROM deliveries \
                     WHERE gate = gates.name AND node = 0 AND (slot IS NULL OR slot <> gate) \
                     ORDER BY place, message_id LIMIT 1) AS head \
                 UNION ALL \
                 SELECT due_at FROM deliveries WHERE slot = gates.name AND gate = gates.name AND node = 0 \
                 UNION ALL \
                 SELECT $3 WHERE EXISTS (SELECT 1 FROM deliveries WHERE slot = gates.name) \
                     OR EXISTS (SELECT 1 FROM deliveries WHERE flow = gates.name AND node > 0)) AS coming) END \
         FROM {} WHERE gates.name = r.name",
        table(conn, &[("name", "TEXT"), ("until", "BIGINT")])
    );
    let blocked = now.after(RECHECK_BLOCKED).as_millis();
    let rows = codec::json(&gates);
    on_backend!(conn, |conn| {
        let query = sqlx::query(AssertSqlSafe(sql)).bind(rows).bind(now.as_millis()).bind(blocked);
        query.execute(&mut **conn).await?;
    });
    Ok(())
}

/// Lets gates rest, but for those that are in use. Whatever is accepted is either seen here, in a statement that begins
/// when the gate is held, or sees this. Nobody waits for those who accept: they hold one gate and may wait for another.
pub(super) async fn rest_postgres(conn: &mut PgConnection, gates: &[(Arc<str>, Timestamp)]) -> Result<()> {
    let mut tx = conn.begin().await?;
    let names: Vec<&str> = gates.iter().map(|(name, _)| &**name).collect();
    let held: Vec<(String, i64)> = sqlx::query_as(concat!(
        "SELECT name, ",
        now_ms!(),
        " FROM gates WHERE name = ANY ($1) ORDER BY name FOR UPDATE SKIP LOCKED"
    ))
    .bind(names)
    .fetch_all(&mut *tx)
    .await?;
    let Some((_, now)) = held.first() else { return Ok(()) };
    let now = Timestamp::from_millis(*now);
    let is_held = |name: &str| held.iter().any(|(held, _)| held == name);
    let held: Vec<Resting<'_>> = resting(gates).filter(|gate| is_held(gate.name)).collect();
    rest(&mut Conn::Postgres(&mut tx), &held, now).await?;
    tx.commit().await?;
    Ok(())
}

/// Lets gates rest, but for those that are in use. Nobody else writes meanwhile.
pub(super) async fn rest_sqlite(
    writer: &SqlitePool,
    gates: &[(Arc<str>, Timestamp)],
    clock: &Clock,
) -> Result<()> {
    let mut tx = begin_immediate(writer).await?;
    let now = clock.now();
    let gates: Vec<Resting<'_>> = resting(gates).collect();
    rest(&mut Conn::Sqlite(AtTime { conn: &mut tx, now }), &gates, now).await?;
    tx.commit().await?;
    Ok(())
}

fn resting(gates: &[(Arc<str>, Timestamp)]) -> impl Iterator<Item = Resting<'_>> {
    gates.iter().map(|(name, until)| Resting { name, until: until.as_millis() })
}

/// Makes a queue, or changes what is given; false: there are too many.
pub(super) async fn upsert_queue(
    tx: &mut Tx,
    name: &str,
    parallelism: Option<u32>,
    paused: Option<bool>,
    max: Option<u32>,
    now: Timestamp,
) -> Result<bool> {
    if let Some(max) = max
        && !may_make(tx, name, max).await?
    {
        return Ok(false);
    }
    let sql = "INSERT INTO gates (name, created_at, updated_at, used_at, parallelism, paused, pinned_parallelism, \
                   pinned_rate, version) \
               VALUES ($1, $2, $2, $2, COALESCE($3, 1), COALESCE($4, FALSE), FALSE, FALSE, 0) \
               ON CONFLICT (name) DO UPDATE SET parallelism = COALESCE($3, gates.parallelism), \
                   paused = COALESCE($4, gates.paused), updated_at = $2, version = gates.version + 1, next_at = $2";
    let gate = queue_gate(name);
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql)
            .bind(gate)
            .bind(now.as_millis())
            .bind(parallelism.map(i64::from))
            .bind(paused)
            .execute(&mut **tx)
            .await?;
    });
    Ok(true)
}

async fn may_make(tx: &mut Tx, name: &str, max: u32) -> Result<bool> {
    let now = tx.now;
    let mut conn = match &mut tx.on {
        Backend::Postgres(tx) => Conn::Postgres(&mut **tx),
        Backend::Sqlite(tx) => Conn::Sqlite(AtTime { conn: tx, now }),
    };
    has_room(&mut conn, &[&queue_gate(name)], max).await
}

/// Whether the queue is there or there is room for one more, at this moment: [`has_room`] decides.
pub(super) async fn may_use(pools: &Backend<&PgPool, &SqlitePool>, name: &str, max: u32) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM gates WHERE name = $1) \
                   OR (SELECT COUNT(*) FROM gates WHERE name >= 'q:' AND name < 'q;') < $2";
    Ok(on_backend!(pools, |pool| {
        sqlx::query_scalar(sql).bind(queue_gate(name)).bind(i64::from(max)).fetch_one(*pool).await?
    }))
}

pub(super) async fn pause_queue(tx: &mut Tx, name: &str, paused: bool, now: Timestamp) -> Result<bool> {
    let sql = "UPDATE gates SET updated_at = CASE WHEN paused = $2 THEN updated_at ELSE $3 END, paused = $2, \
                   version = version + 1, next_at = $3 WHERE name = $1";
    let gate = queue_gate(name);
    let changed = on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql)
            .bind(gate)
            .bind(paused)
            .bind(now.as_millis())
            .execute(&mut **tx)
            .await?
            .rows_affected()
    });
    Ok(changed == 1)
}

#[derive(sqlx::FromRow)]
struct QueueRow {
    name: String,
    created_at: i64,
    updated_at: i64,
    parallelism: Option<i64>,
    paused: bool,
    lag: i64,
}

/// The queues of these gates. A message in flight has its own slot.
macro_rules! select_queues {
    ($condition:literal) => {
        concat!(
            "SELECT name, created_at, updated_at, parallelism, paused, \
                 (SELECT COUNT(*) FROM deliveries d WHERE d.gate = gates.name AND d.node = 0) + \
                 (SELECT COUNT(*) FROM deliveries d WHERE d.slot = gates.name AND d.gate = gates.name AND d.node <> 0) \
                 AS lag \
             FROM gates WHERE ",
            $condition,
            " ORDER BY name"
        )
    };
}

pub(super) async fn queue(pools: &Backend<&PgPool, &SqlitePool>, name: &str) -> Result<Option<Queue>> {
    let gate = queue_gate(name);
    let row: Option<QueueRow> = on_backend!(pools, |pool| {
        sqlx::query_as(select_queues!("name = $1")).bind(gate).fetch_optional(*pool).await?
    });
    Ok(row.map(QueueRow::into_queue))
}

pub(super) async fn queues(pools: &Backend<&PgPool, &SqlitePool>) -> Result<Vec<Queue>> {
    let rows: Vec<QueueRow> = on_backend!(pools, |pool| {
        sqlx::query_as(select_queues!("name >= 'q:' AND name < 'q;'")).fetch_all(*pool).await?
    });
    Ok(rows.into_iter().map(QueueRow::into_queue).collect())
}

impl QueueRow {
    fn into_queue(self) -> Queue {
        Queue {
            name: bare_name(&self.name).to_owned(),
            created_at: Timestamp::from_millis(self.created_at),
            updated_at: Timestamp::from_millis(self.updated_at),
            parallelism: self.parallelism.map_or(1, |number| u32::try_from(number).unwrap_or(u32::MAX)),
            paused: self.paused,
            lag: count(self.lag),
        }
    }
}

/// Cancels some messages of a queue; with the last ones the queue goes too. Meanwhile nobody adds to it or claims from it.
/// While somebody does, nothing is done.
pub(super) async fn remove_queue(tx: &mut Tx, name: &str, now: Timestamp) -> Result<QueueRemoval> {
    let gate = queue_gate(name);
    let gate = gate.as_str();
    if let Backend::Postgres(tx) = &mut tx.on {
        let of = async |tx: &mut PgConnection, sql: &'static str| -> Result<bool> {
            Ok(sqlx::query(sql).bind(gate).fetch_optional(tx).await?.is_some())
        };
        if !of(tx, "SELECT 1 FROM gates WHERE name = $1 FOR UPDATE SKIP LOCKED").await? {
            let done = !of(tx, "SELECT 1 FROM gates WHERE name = $1").await?;
            return Ok(QueueRemoval { done, requested: Vec::new() });
        }
    }
    let members = "SELECT * FROM ( \
                       SELECT message_id FROM deliveries WHERE gate = $1 AND node = 0 LIMIT $2) AS waiting \
                   UNION ALL SELECT message_id FROM deliveries WHERE slot = $1 AND gate = $1 AND node <> 0";
    let members: Vec<String> = on_backend!(&mut tx.on, |tx| {
        sqlx::query_scalar(members).bind(gate).bind(REMOVED_AT_ONCE).fetch_all(&mut **tx).await?
    });
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let cancelled = cancelling::cancel(tx, &members, Take::Any, now).await?;
    let in_flight =
        cancelled.into_iter().filter(|(_, cancellation)| *cancellation == Cancellation::Requested);
    let mut requested: Vec<MessageId> = in_flight.map(|(id, _)| MessageId::new(id)).collect();
    requested.sort();
    // A delivery in flight leaves the queue, so that it needs no gate if it is given back.
    let detach = "UPDATE deliveries SET gate = NULL, place = NULL, slot = NULL, holder = NULL \
                  WHERE slot = $1 AND gate = $1 AND node <> 0";
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(detach).bind(gate).execute(&mut **tx).await?;
    });
    let left = "SELECT COUNT(*) FROM (SELECT 1 FROM deliveries WHERE gate = $1 AND node = 0 LIMIT 1) AS rest";
    let left: i64 =
        on_backend!(&mut tx.on, |tx| sqlx::query_scalar(left).bind(gate).fetch_one(&mut **tx).await?);
    if left == 0 {
        for sql in [
            "UPDATE deliveries SET slot = NULL, holder = NULL WHERE slot = $1",
            "DELETE FROM queue_places WHERE gate = $1",
            "DELETE FROM gates WHERE name = $1",
        ] {
            on_backend!(&mut tx.on, |tx| {
                sqlx::query(sql).bind(gate).execute(&mut **tx).await?;
            });
        }
    }
    Ok(QueueRemoval { done: left == 0, requested })
}

/// Changes a key; false: there is none.
pub(super) async fn change_flow_key(
    tx: &mut Tx,
    key: &str,
    change: &FlowChange,
    now: Timestamp,
) -> Result<bool> {
    let gate = flow_gate(key);
    if change.creates() {
        let sql = "INSERT INTO gates (name, created_at, updated_at, used_at, paused, pinned_parallelism, pinned_rate, \
                       version) VALUES ($1, $2, $2, $2, FALSE, FALSE, FALSE, 0) ON CONFLICT (name) DO NOTHING";
        on_backend!(&mut tx.on, |tx| {
            sqlx::query(sql).bind(gate.as_str()).bind(now.as_millis()).execute(&mut **tx).await?;
        });
    }
    let row: Option<ControlRow> = match &mut tx.on {
        Backend::Postgres(tx) => {
            sqlx::query_as(concat!(
                "SELECT ",
                control_columns!(),
                " FROM gates WHERE name = $1 FOR NO KEY UPDATE"
            ))
            .bind(gate.as_str())
            .fetch_optional(&mut **tx)
            .await?
        }
        Backend::Sqlite(tx) => {
            sqlx::query_as(concat!("SELECT ", control_columns!(), " FROM gates WHERE name = $1"))
                .bind(gate.as_str())
                .fetch_optional(&mut **tx)
                .await?
        }
    };
    let Some(row) = row else { return Ok(false) };
    let mut control = row.control();
    control.apply(change);
    set_control(tx, &gate, &control, now).await?;
    if change.resets_rate() {
        on_backend!(&mut tx.on, |tx| {
            sqlx::query("UPDATE gates SET starts = NULL WHERE name = $1")
                .bind(gate)
                .execute(&mut **tx)
                .await?;
        });
    }
    Ok(true)
}

async fn set_control(tx: &mut Tx, gate: &str, control: &Control, now: Timestamp) -> Result<()> {
    let sql = "UPDATE gates SET parallelism = $2, rate = $3, period_s = $4, paused = $5, pinned_parallelism = $6, \
                   pinned_rate = $7, updated_at = $8, next_at = $8, version = version + 1 WHERE name = $1";
    let (parallelism, rate, period_s) = limit_columns(control.limits);
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql)
            .bind(gate)
            .bind(parallelism)
            .bind(rate)
            .bind(period_s)
            .bind(control.paused)
            .bind(control.pinned_parallelism)
            .bind(control.pinned_rate)
            .bind(now.as_millis())
            .execute(&mut **tx)
            .await?;
    });
    Ok(())
}

#[derive(sqlx::FromRow)]
struct FlowRow {
    name: String,
    #[sqlx(flatten)]
    control: ControlRow,
    starts: Option<String>,
    waiting: i64,
    in_flight: i64,
}

/// The keys of these gates; `$2` is now.
macro_rules! select_flow_keys {
    ($condition:expr) => {
        concat!(
            "SELECT name, ",
            control_columns!(),
            ", starts, \
                 (SELECT COUNT(*) FROM deliveries d WHERE d.flow = gates.name AND d.node = 0 AND d.due_at <= $2) \
                 AS waiting, \
                 (SELECT COUNT(*) FROM deliveries d WHERE d.flow = gates.name AND d.node > 0) AS in_flight \
             FROM gates WHERE ",
            $condition,
            " ORDER BY name"
        )
    };
}

impl FlowRow {
    fn into_key(self, now: Timestamp) -> Result<FlowKey> {
        Ok(FlowKey {
            key: bare_name(&self.name).to_owned(),
            control: self.control.control(),
            starts: codec::read_starts(self.starts.as_deref(), now, &self.name)?,
            waiting: count(self.waiting),
            in_flight: count(self.in_flight),
        })
    }
}

pub(super) async fn flow_key(
    pools: &Backend<&PgPool, &SqlitePool>,
    key: &str,
    now: Timestamp,
) -> Result<Option<FlowKey>> {
    let gate = flow_gate(key);
    let row: Option<FlowRow> = on_backend!(pools, |pool| {
        sqlx::query_as(select_flow_keys!("name = $1"))
            .bind(gate)
            .bind(now.as_millis())
            .fetch_optional(*pool)
            .await?
    });
    row.map(|row| row.into_key(now)).transpose()
}

pub(super) async fn flow_keys(
    pools: &Backend<&PgPool, &SqlitePool>,
    containing: &str,
    now: Timestamp,
) -> Result<Vec<FlowKey>> {
    macro_rules! containing {
        ($position:literal) => {
            concat!("name >= 'f:' AND name < 'f;' AND ", $position, "(SUBSTR(name, 3), $1) > 0")
        };
    }
    let rows: Vec<FlowRow> = match pools {
        Backend::Postgres(pool) => {
            sqlx::query_as(select_flow_keys!(containing!("STRPOS")))
                .bind(containing)
                .bind(now.as_millis())
                .fetch_all(*pool)
                .await?
        }
        Backend::Sqlite(pool) => {
            sqlx::query_as(select_flow_keys!(containing!("INSTR")))
                .bind(containing)
                .bind(now.as_millis())
                .fetch_all(*pool)
                .await?
        }
    };
    rows.into_iter().map(|row| row.into_key(now)).collect()
}

/// Keys that nothing has used since `cutoff`, unless a user has paused or pinned them. Finding them reads all keys.
macro_rules! idle_keys {
    ($cutoff:literal) => {
        concat!(
            "SELECT name FROM gates WHERE name >= 'f:' AND name < 'f;' AND used_at < ",
            $cutoff,
            " AND updated_at < ",
            $cutoff,
            " AND next_at IS NULL AND NOT paused AND NOT pinned_parallelism AND NOT pinned_rate"
        )
    };
}

/// Some of these keys, as a reader finds them: whoever writes should not wait for that.
pub(super) async fn idle_keys(
    pools: &Backend<&PgPool, &SqlitePool>,
    cutoff: Timestamp,
) -> Result<Vec<String>> {
    let sql = concat!(idle_keys!("$1"), " LIMIT $2");
    Ok(on_backend!(pools, |pool| {
        sqlx::query_scalar(sql).bind(cutoff.as_millis()).bind(PRUNED_AT_ONCE).fetch_all(*pool).await?
    }))
}

/// Removes those of the keys that are still idle.
pub(super) async fn prune(tx: &mut Tx, keys: &[String], cutoff: Timestamp) -> Result<()> {
    macro_rules! unused {
        () => {
            " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.flow = gates.name)"
        };
    }
    if keys.is_empty() {
        return Ok(());
    }
    match &mut tx.on {
        Backend::Postgres(tx) => {
            // A delivery that somebody is accepting now is seen only by a statement that begins after it.
            let sql = concat!(idle_keys!("$1"), " AND name = ANY ($2) FOR UPDATE SKIP LOCKED");
            let idle: Vec<String> =
                sqlx::query_scalar(sql).bind(cutoff.as_millis()).bind(keys).fetch_all(&mut **tx).await?;
            sqlx::query(concat!("DELETE FROM gates WHERE name = ANY ($1)", unused!()))
                .bind(idle)
                .execute(&mut **tx)
                .await?;
        }
        Backend::Sqlite(tx) => {
            sqlx::query(concat!(
                "DELETE FROM gates WHERE name IN (",
                idle_keys!("$1"),
                " AND name IN (SELECT value FROM json_each($2)))",
                unused!()
            ))
            .bind(cutoff.as_millis())
            .bind(codec::json(&keys))
            .execute(&mut **tx)
            .await?;
        }
    }
    Ok(())
}

/// Others changed the same gates again and again.
fn contended() -> StoreError {
    StoreError::Contended
}
