//! Snapshots of gates and claims from them, on SQLite, as [`super::claim_postgres`] has them for Postgres.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use sqlx::{SqliteConnection, SqlitePool};

use super::{GATE_COLUMNS, GateRow, TAKE_SLOT};
use crate::domain::gate::{Waiting, is_queue};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::gates::{BEHIND, GateSnapshot, GateStep, Pass, Snapshot};
use crate::store::sql::codec::{self, json};
use crate::store::sql::hot_sqlite::set_aside_unreadable;
use crate::store::sql::messages::{ClaimedRow, SELECTED};
use crate::store::sql::tx::begin_immediate;
use crate::store::{Delivery, Lease, NodeId, Result};

/// One that waits: id, lane, size, due time, key.
type WaitingRow = (String, String, i64, i64, Option<String>);

/// Takes a snapshot of gates: what waits there, and what is in use.
pub(in crate::store::sql) async fn snapshot(
    readers: &SqlitePool,
    names: &[Arc<str>],
    count: usize,
    now: Timestamp,
) -> Result<Snapshot> {
    // All of it as one moment sees it.
    let mut tx = readers.begin().await?;
    let wanted: HashSet<&str> = names.iter().map(|name| &**name).collect();
    let mut gates = self::gates(&mut tx, &wanted, now).await?;
    wait(&mut tx, &mut gates, count).await?;
    let keys = gates.iter().flat_map(|gate| &gate.waiting).filter_map(|one| one.flow.as_deref());
    let keys: HashSet<&str> = keys.filter(|key| !wanted.contains(key)).collect();
    if !keys.is_empty() {
        let keys = self::gates(&mut tx, &keys, now).await?;
        gates.extend(keys);
    }
    Ok(Snapshot { now, gates })
}

async fn gates(
    conn: &mut SqliteConnection,
    names: &HashSet<&str>,
    now: Timestamp,
) -> Result<Vec<GateSnapshot>> {
    static GATES: LazyLock<String> = LazyLock::new(|| {
        format!("SELECT {GATE_COLUMNS} FROM gates g WHERE g.name IN (SELECT value FROM json_each($1))")
    });
    let rows: Vec<GateRow> = sqlx::query_as(GATES.as_str()).bind(json(names)).fetch_all(conn).await?;
    rows.into_iter().map(|row| row.into_snapshot(now)).collect()
}

/// Adds what waits at these gates: as many as could go at most, and one more, which tells whether more wait; [`BEHIND`]
/// more at a queue.
async fn wait(conn: &mut SqliteConnection, gates: &mut [GateSnapshot], count: usize) -> Result<()> {
    let open: Vec<&mut GateSnapshot> = gates.iter_mut().filter(|gate| !gate.gate.paused).collect();
    if open.is_empty() {
        return Ok(());
    }
    let counts: Vec<usize> = open.iter().map(|gate| most(gate, count).saturating_add(1)).collect();
    let names: Vec<&str> = open.iter().map(|gate| &*gate.name).collect();
    // The result of a statement comes cheapest as one row.
    let text: String = sqlx::query_scalar(
        "SELECT json_group_array(json_array( \
             (SELECT json_group_array(json_array(message_id, lane, size, due_at, flow)) FROM ( \
                 SELECT * FROM deliveries WHERE slot = j.value AND gate = j.value AND node = 0 \
                 ORDER BY due_at, message_id LIMIT $2)), \
             (SELECT json_group_array(json_array(message_id, lane, size, place / 1000, flow)) FROM ( \
                 SELECT * FROM deliveries WHERE gate = j.value AND node = 0 AND slot IS NOT gate \
                 ORDER BY place, message_id LIMIT $3)))) \
         FROM json_each($1) AS j",
    )
    .bind(json(&names))
    .bind(i64::try_from(count.saturating_add(1)).unwrap_or(i64::MAX))
    .bind(counts.iter().max().map_or(0, |&most| i64::try_from(most).unwrap_or(i64::MAX)))
    .fetch_one(conn)
    .await?;
    let lists: Vec<(Vec<WaitingRow>, Vec<WaitingRow>)> =
        serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
    for ((gate, count), (holding, others)) in open.into_iter().zip(counts).zip(lists) {
        let one = |holds_slot: bool, (id, lane, size, due_at, flow): WaitingRow| Waiting {
            id: MessageId::new(id),
            lane: Arc::from(lane),
            size: usize::try_from(size).unwrap_or(usize::MAX),
            due_at: Timestamp::from_millis(due_at),
            holds_slot,
            flow: flow.filter(|flow| **flow != *gate.name).map(Arc::from),
        };
        let holding = holding.into_iter().map(|row| one(true, row));
        let others = others.into_iter().take(count).map(|row| one(false, row));
        gate.waiting = holding.chain(others).collect();
    }
    Ok(())
}

/// How many of those that hold no slot are worth knowing.
fn most(gate: &GateSnapshot, count: usize) -> usize {
    let number = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let behind = if is_queue(&gate.name) { BEHIND } else { 0 };
    let limits = gate.gate.limits;
    let free = limits.parallelism.map(|limit| limit.saturating_sub(gate.gate.in_use));
    let free = free.map(|free| number(free.saturating_add(behind)));
    let rate = limits.rate.map(|rate| number(rate.count));
    [Some(count), free, rate].into_iter().flatten().min().unwrap_or(count)
}

/// Takes deliveries from gates that are as they were seen.
pub(in crate::store::sql) async fn pass(
    writer: &SqlitePool,
    node: NodeId,
    lease: Lease,
    steps: &[GateStep],
    passes: &[Pass],
    now: Timestamp,
) -> Result<Vec<Delivery>> {
    static TAKEN: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT d.lane, $2 AS attempt_due_at, d.size, d.retried, d.claims + 1 AS claims, \
                    d.cancel_requested_at IS NOT NULL AS cancel_requested, d.flow AS flow_gate, \
                    CASE WHEN SUBSTR(d.gate, 1, 1) = 'q' THEN d.gate ELSE d.slot END AS slot, \
                    CASE WHEN SUBSTR(d.gate, 1, 1) = 'q' THEN d.message_id ELSE d.holder END AS holder, {} \
             FROM (SELECT value ->> 0 AS id, value ->> 1 AS gate FROM json_each($1)) AS p \
             CROSS JOIN deliveries d ON d.message_id = p.id AND d.node = 0 AND d.gate = p.gate \
             CROSS JOIN messages m ON m.id = p.id",
            *SELECTED
        )
    });
    static TAKE: LazyLock<String> = LazyLock::new(|| {
        format!(
            "UPDATE deliveries AS d SET node = $1, lease = $2, claims = claims + 1, due_at = $3, {TAKE_SLOT} \
             WHERE message_id IN (SELECT value FROM json_each($4))"
        )
    });
    let mut tx = begin_immediate(writer).await?;
    let steps = steps.iter().map(|step| {
        let next_at = step.next_at.map(Timestamp::as_millis);
        (&*step.name, step.version, codec::write_starts(&step.starts), next_at)
    });
    let changed: Vec<String> = sqlx::query_scalar(
        "UPDATE gates SET version = gates.version + 1, starts = s.starts, \
             next_at = COALESCE(s.next_at, gates.next_at), used_at = $2 \
         FROM (SELECT value ->> 0 AS name, value ->> 1 AS version, value ->> 2 AS starts, value ->> 3 AS next_at \
               FROM json_each($1)) AS s \
         WHERE gates.name = s.name AND gates.version = s.version RETURNING gates.name",
    )
    .bind(json(&steps.collect::<Vec<_>>()))
    .bind(now.as_millis())
    .fetch_all(&mut *tx)
    .await?;
    let changed: HashSet<&str> = changed.iter().map(String::as_str).collect();
    let is_open = |pass: &&Pass| {
        [Some(&pass.gate), pass.flow.as_ref()].into_iter().flatten().all(|name| changed.contains(&**name))
    };
    let wanted: Vec<(&str, &str)> =
        passes.iter().filter(is_open).map(|pass| (pass.id.as_str(), &*pass.gate)).collect();
    // The rows as they are once they are taken.
    let rows: Vec<ClaimedRow> =
        sqlx::query_as(TAKEN.as_str()).bind(json(&wanted)).bind(now.as_millis()).fetch_all(&mut *tx).await?;
    let there: HashSet<&str> = rows.iter().map(ClaimedRow::id).collect();
    let mut stopped: HashSet<&str> = HashSet::new();
    let mut taken: HashSet<&str> = HashSet::with_capacity(passes.len());
    for pass in passes {
        let held_up = pass.in_order && stopped.contains(&*pass.gate);
        if !held_up && there.contains(pass.id.as_str()) {
            taken.insert(pass.id.as_str());
        } else if pass.in_order {
            stopped.insert(&pass.gate);
        }
    }
    let rows = rows.into_iter().filter(|row| taken.contains(row.id())).collect();
    sqlx::query(TAKE.as_str())
        .bind(node.0)
        .bind(lease.0)
        .bind(now.as_millis())
        .bind(json(&taken))
        .execute(&mut *tx)
        .await?;
    let (deliveries, unreadable) = ClaimedRow::into_deliveries(rows, lease);
    set_aside_unreadable(&mut tx, unreadable).await?;
    tx.commit().await?;
    Ok(deliveries)
}
