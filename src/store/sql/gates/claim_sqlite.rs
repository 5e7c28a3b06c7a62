//! Looking at gates and taking deliveries from them, on SQLite. Beside [`super::claim_postgres`], step for step.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::{SqliteConnection, SqlitePool};

use super::{GateRow, codec};
use crate::clock::system_now;
use crate::domain::gate::{Gate, Waiting, is_queue};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::gates::{BEHIND, GateLook, GateStep, Looks, Pass};
use crate::store::sql::deliveries::{SET_ASIDE_MS, set_aside};
use crate::store::sql::messages::{ClaimedRow, message_columns};
use crate::store::sql::writer::Writer;
use crate::store::{Delivery, Lease, NodeId, Result};

#[derive(sqlx::FromRow)]
struct WaitingRow {
    message_id: String,
    lane: String,
    size: i64,
    due_at: i64,
    flow: Option<String>,
}

/// What waits at these gates, and what is in use.
pub(in crate::store::sql) async fn look(
    readers: &SqlitePool,
    names: &[Arc<str>],
    count: usize,
) -> Result<Looks> {
    let now = system_now();
    // All of it as one moment sees it.
    let mut tx = readers.begin().await?;
    let mut gates: Vec<GateLook> = Vec::new();
    let mut seen: HashSet<Arc<str>> = HashSet::new();
    for name in names {
        if seen.insert(Arc::clone(name))
            && let Some(mut gate) = self::gate(&mut tx, name, now).await?
        {
            if !gate.gate.paused {
                gate.waiting = waiting(&mut tx, name, &gate.gate, count).await?;
            }
            gates.push(gate);
        }
    }
    let keys: Vec<Arc<str>> =
        gates.iter().flat_map(|gate| &gate.waiting).filter_map(|one| one.flow.clone()).collect();
    for name in keys {
        if seen.insert(Arc::clone(&name)) {
            gates.extend(gate(&mut tx, &name, now).await?);
        }
    }
    Ok(Looks { now, gates })
}

async fn gate(conn: &mut SqliteConnection, name: &str, now: Timestamp) -> Result<Option<GateLook>> {
    let row: Option<GateRow> = sqlx::query_as(
        "SELECT name, version, parallelism, rate, period_s, paused, starts, next_at, \
             CASE WHEN SUBSTR(name, 1, 1) = 'f' \
                 THEN (SELECT COUNT(*) FROM deliveries d WHERE d.flow = $1 AND d.node > 0) \
                 ELSE (SELECT COUNT(DISTINCT d.holder) FROM deliveries d WHERE d.slot = $1) END AS in_use \
         FROM gates WHERE name = $1",
    )
    .bind(name)
    .fetch_optional(conn)
    .await?;
    row.map(|row| row.into_look(now)).transpose()
}

/// As many as could go at most, and one more, which tells whether more wait; [`BEHIND`] more at a queue.
async fn waiting(conn: &mut SqliteConnection, name: &str, gate: &Gate, count: usize) -> Result<Vec<Waiting>> {
    let holding: Vec<WaitingRow> = sqlx::query_as(
        "SELECT message_id, lane, size, due_at, flow FROM deliveries \
         WHERE slot = $1 AND gate = $1 AND node = 0 ORDER BY due_at, message_id LIMIT $2",
    )
    .bind(name)
    .bind(i64::try_from(count.saturating_add(1)).unwrap_or(i64::MAX))
    .fetch_all(&mut *conn)
    .await?;
    let number = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let behind = if is_queue(name) { BEHIND } else { 0 };
    let free = gate.limits.parallelism.map(|limit| limit.saturating_sub(gate.in_use));
    let free = free.map(|free| number(free.saturating_add(behind)));
    let rate = gate.limits.rate.map(|rate| number(rate.count));
    let most = [Some(count), free, rate].into_iter().flatten().min().unwrap_or(count);
    let others: Vec<WaitingRow> = sqlx::query_as(
        "SELECT message_id, lane, size, place / 1000 AS due_at, flow FROM deliveries \
         WHERE gate = $1 AND node = 0 AND slot IS NOT gate ORDER BY place, message_id LIMIT $2",
    )
    .bind(name)
    .bind(i64::try_from(most.saturating_add(1)).unwrap_or(i64::MAX))
    .fetch_all(conn)
    .await?;
    let one = |holds_slot: bool| {
        move |row: WaitingRow| Waiting {
            id: MessageId::new(row.message_id),
            lane: Arc::from(row.lane),
            size: usize::try_from(row.size).unwrap_or(usize::MAX),
            due_at: Timestamp::from_millis(row.due_at),
            holds_slot,
            flow: row.flow.filter(|flow| flow != name).map(Arc::from),
        }
    };
    Ok(holding.into_iter().map(one(true)).chain(others.into_iter().map(one(false))).collect())
}

/// Takes deliveries from gates that are as they were seen.
pub(in crate::store::sql) async fn pass(
    writer: &Writer,
    node: NodeId,
    lease: Lease,
    steps: &[GateStep],
    passes: &[Pass],
    now: Timestamp,
) -> Result<Vec<Delivery>> {
    let mut tx = writer.begin().await?;
    let mut changed: HashSet<&str> = HashSet::new();
    for step in steps {
        let done = sqlx::query(
            "UPDATE gates SET version = version + 1, starts = $3, next_at = COALESCE($4, next_at), used_at = $5 \
             WHERE name = $1 AND version = $2",
        )
        .bind(&*step.name)
        .bind(step.version)
        .bind(codec::write_starts(&step.starts))
        .bind(step.next_at.map(Timestamp::as_millis))
        .bind(now.as_millis())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 1 {
            changed.insert(&step.name);
        }
    }
    let mut stopped: HashSet<&str> = HashSet::new();
    let mut taken: Vec<&str> = Vec::new();
    for pass in passes {
        let open = [Some(&pass.gate), pass.flow.as_ref()].into_iter().flatten();
        let open = open.into_iter().all(|name| changed.contains(&**name));
        let held_up = pass.in_order && stopped.contains(&*pass.gate);
        if open && !held_up && take(&mut tx, node, lease, pass, now).await? {
            taken.push(pass.id.as_str());
        } else if pass.in_order {
            stopped.insert(&pass.gate);
        }
    }
    let rows: Vec<ClaimedRow> = sqlx::query_as(concat!(
        "SELECT d.lane, d.due_at AS attempt_due_at, d.retried, d.claims, \
                d.cancel_requested_at IS NOT NULL AS cancel_requested, d.slot, d.holder, d.flow AS flow_gate, ",
        message_columns!(),
        " FROM json_each($1) j CROSS JOIN deliveries d ON d.message_id = j.value \
          JOIN messages m ON m.id = d.message_id"
    ))
    .bind(serde_json::to_string(&taken).expect("text is valid JSON"))
    .fetch_all(&mut *tx)
    .await?;
    let (deliveries, unreadable) = ClaimedRow::into_deliveries(rows, lease);
    for id in unreadable {
        sqlx::query(concat!("UPDATE deliveries SET ", set_aside!(), " WHERE message_id = $2"))
            .bind(SET_ASIDE_MS)
            .bind(id)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(deliveries)
}

async fn take(
    conn: &mut SqliteConnection,
    node: NodeId,
    lease: Lease,
    pass: &Pass,
    now: Timestamp,
) -> Result<bool> {
    let sql = if is_queue(&pass.gate) {
        "UPDATE deliveries SET node = $1, lease = $2, claims = claims + 1, due_at = $3, slot = gate, \
             holder = message_id WHERE message_id = $4 AND node = 0 AND gate = $5"
    } else {
        "UPDATE deliveries SET node = $1, lease = $2, claims = claims + 1, due_at = $3 \
         WHERE message_id = $4 AND node = 0 AND gate = $5"
    };
    let taken = sqlx::query(sql)
        .bind(node.0)
        .bind(lease.0)
        .bind(now.as_millis())
        .bind(pass.id.as_str())
        .bind(&*pass.gate)
        .execute(conn)
        .await?;
    Ok(taken.rows_affected() == 1)
}
