//! The tables `gates` and `queue_places`: queues and flow-control keys, and when to look at which.
//!
//! [`entering`] has the part of accepts, `claim_postgres` and `claim_sqlite` the snapshots and claims. Whoever accepts holds the row of its gate against its removal and against [`rest_postgres`], not against claims.

use std::sync::Arc;

use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, SqlitePool};

use self::entering::{AtTime, Conn};
use super::nodes::now_ms;
use super::query::table;
use super::tx::begin_immediate;
use super::{Backend, codec};
use crate::clock::Clock;
use crate::domain::gate::{Control, Gate, Limits, Rate};
use crate::domain::time::Timestamp;
use crate::store::Result;
use crate::store::gates::{DueGates, GateSnapshot, RECHECK_BLOCKED};

/// The columns of [`ControlRow`].
macro_rules! control_columns {
    () => {
        "parallelism, rate, period_s, paused, pinned_parallelism, pinned_rate"
    };
}

pub(super) use control_columns;

mod calls;
mod claim_postgres;
mod claim_sqlite;
pub(super) mod entering;
pub(super) mod keys;
pub(super) mod queues;

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
