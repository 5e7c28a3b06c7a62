//! Snapshots of gates and claims from them, on Postgres, as [`super::claim_sqlite`] has them for SQLite.
//!
//! They run on the connections with pinned plans, each as one statement that commits by itself. A condition inside a
//! `CASE` is one that no index may serve: the plan is made when nothing waits, and must not walk all that does later.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use sqlx::PgConnection;

use super::{GATE_COLUMNS, GateRow, TAKE_SLOT, codec};
use crate::domain::gate::Waiting;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::gates::{BEHIND, GateSnapshot, GateStep, Pass, Snapshot};
use crate::store::sql::deliveries::set_aside_unreadable;
use crate::store::sql::hot_postgres::SELECT_TAKEN;
use crate::store::sql::messages::{ClaimedRow, LEASED};
use crate::store::sql::nodes::now_ms;
use crate::store::{Delivery, Lease, NodeId, Result};

/// A gate, or something that waits at one.
#[derive(sqlx::FromRow)]
struct SnapshotRow {
    now: i64,
    #[sqlx(flatten)]
    gate: GateRow,
    message_id: Option<String>,
    lane: Option<String>,
    size: Option<i64>,
    due_at: Option<i64>,
    place: Option<i64>,
    flow: Option<String>,
    holds_slot: Option<bool>,
}

/// Of each gate as many deliveries as could go at most, and one more, which tells whether more wait; `$3` more at a queue.
static SNAPSHOT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH g AS MATERIALIZED ( \
             SELECT {GATE_COLUMNS} FROM unnest($1::text[]) AS n (name) JOIN gates g ON g.name = n.name), \
         w AS MATERIALIZED ( \
             SELECT g.name, d.* FROM g CROSS JOIN LATERAL ( \
                 (SELECT message_id, lane, size, due_at, place, flow, TRUE AS holds_slot FROM deliveries \
                  WHERE slot = g.name AND CASE WHEN gate = g.name AND node = 0 THEN TRUE END \
                  ORDER BY due_at, message_id LIMIT $2 + 1) \
                 UNION ALL \
                 (SELECT message_id, lane, size, place / 1000, place, flow, FALSE FROM deliveries \
                  WHERE gate = g.name AND node = 0 AND slot IS DISTINCT FROM gate ORDER BY place, message_id \
                  LIMIT LEAST($2, g.rate, CASE WHEN g.parallelism IS NOT NULL \
                                               THEN GREATEST(g.parallelism - g.in_use, 0) END \
                                          + CASE WHEN LEFT(g.name, 1) = 'q' THEN $3 ELSE 0 END) + 1) \
             ) AS d WHERE NOT g.paused), \
         k AS MATERIALIZED ( \
             SELECT {GATE_COLUMNS} FROM (SELECT DISTINCT flow FROM w WHERE flow <> ALL ($1)) AS f \
             JOIN gates g ON g.name = f.flow) \
         SELECT {now} AS now, a.*, NULL AS message_id, NULL AS lane, NULL::bigint AS size, NULL::bigint AS due_at, \
                NULL::bigint AS place, NULL AS flow, NULL::boolean AS holds_slot \
         FROM (SELECT * FROM g UNION ALL SELECT * FROM k) AS a \
         UNION ALL \
         SELECT {now}, name, 0, NULL, NULL, NULL, FALSE, FALSE, FALSE, NULL, NULL, 0, message_id, lane, size, due_at, \
                place, flow, holds_slot FROM w",
        now = now_ms!()
    )
});

/// Takes a snapshot of gates: what waits there, and what is in use.
pub(in crate::store::sql) async fn snapshot(
    conn: &mut PgConnection,
    names: &[Arc<str>],
    count: usize,
) -> Result<Snapshot> {
    let mut wanted: Vec<&str> = names.iter().map(|name| &**name).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let rows: Vec<SnapshotRow> = sqlx::query_as(SNAPSHOT.as_str())
        .bind(wanted)
        .bind(i64::try_from(count).unwrap_or(i64::MAX - 1))
        .bind(i64::from(BEHIND))
        .fetch_all(conn)
        .await?;
    let now = Timestamp::from_millis(rows.first().map_or(0, |row| row.now));
    let mut gates: Vec<GateSnapshot> = Vec::new();
    let mut waiting: HashMap<String, Vec<(i64, Waiting)>> = HashMap::new();
    for row in rows {
        let SnapshotRow { gate, message_id: Some(id), lane: Some(lane), due_at: Some(due_at), .. } = row
        else {
            gates.push(row.gate.into_snapshot(now)?);
            continue;
        };
        let holds_slot = row.holds_slot == Some(true);
        let order = if holds_slot { due_at } else { row.place.unwrap_or_default() };
        let one = Waiting {
            id: MessageId::new(id),
            lane: Arc::from(lane),
            size: usize::try_from(row.size.unwrap_or_default()).unwrap_or(usize::MAX),
            due_at: Timestamp::from_millis(due_at),
            holds_slot,
            flow: row.flow.filter(|flow| *flow != gate.name).map(Arc::from),
        };
        waiting.entry(gate.name).or_default().push((order, one));
    }
    for gate in &mut gates {
        let mut list = waiting.remove(&*gate.name).unwrap_or_default();
        list.sort_by(|(a, one), (b, other)| {
            (!one.holds_slot, a, &one.id).cmp(&(!other.holds_slot, b, &other.id))
        });
        gate.waiting = list.into_iter().map(|(_, one)| one).collect();
    }
    Ok(Snapshot { now, gates })
}

/// First the gates, in the order of their names, and only then deliveries, none of which is waited for: whoever holds one
/// may want a gate. Of those that go in order, none goes past one that could not be had.
static PASS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH changed AS ( \
             UPDATE gates g SET version = g.version + 1, starts = s.starts, \
                 next_at = COALESCE(s.next_at, g.next_at), used_at = $12 \
             FROM (SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[]) \
                       AS s (name, version, starts, next_at) ORDER BY name) AS s \
             WHERE g.name = s.name AND g.version = s.version \
             RETURNING g.name), \
         wanted AS MATERIALIZED ( \
             SELECT * FROM unnest($5::text[], $6::text[], $7::text[], $8::bigint[], $9::boolean[]) \
                 AS p (id, gate, flow, number, in_order) \
             WHERE CASE WHEN gate IN (SELECT name FROM changed) THEN TRUE END \
               AND CASE WHEN flow IS NULL THEN TRUE WHEN flow IN (SELECT name FROM changed) THEN TRUE END), \
         locked AS MATERIALIZED ( \
             SELECT w.id, w.gate, w.number, w.in_order \
             FROM wanted w JOIN deliveries d ON d.message_id = ANY (ARRAY[w.id]) \
             WHERE CASE WHEN d.node = 0 AND d.gate = w.gate THEN TRUE END FOR UPDATE OF d SKIP LOCKED), \
         passing AS MATERIALIZED ( \
             SELECT id FROM ( \
                 SELECT id, number, in_order, ROW_NUMBER() OVER (PARTITION BY gate, in_order ORDER BY number) AS have \
                 FROM locked) AS l \
             WHERE NOT in_order OR number = have), \
         taken AS ( \
             UPDATE deliveries d SET node = $10, lease = $11, claims = claims + 1, due_at = $12, {TAKE_SLOT} \
             FROM passing WHERE d.message_id = ANY (ARRAY[passing.id]) RETURNING {LEASED}) \
         {}",
        *SELECT_TAKEN
    )
});

/// [`PASS`] for one delivery at one gate, as a queue of parallelism 1 needs it for each message: setting the other plan up
/// takes longer than running it.
static PASS_ONE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH changed AS MATERIALIZED ( \
             UPDATE gates SET version = version + 1, starts = $3, next_at = COALESCE($4, next_at), used_at = $8 \
             WHERE name = $1 AND version = $2 RETURNING name), \
         locked AS MATERIALIZED ( \
             SELECT message_id AS id FROM deliveries \
             WHERE message_id = $5 AND CASE WHEN node = 0 AND gate = $1 THEN EXISTS (SELECT 1 FROM changed) END \
             FOR UPDATE SKIP LOCKED), \
         taken AS ( \
             UPDATE deliveries d SET node = $6, lease = $7, claims = claims + 1, due_at = $8, {TAKE_SLOT} \
             WHERE d.message_id = $5 AND EXISTS (SELECT 1 FROM locked) RETURNING {LEASED}) \
         {} WHERE m.id = $5",
        *SELECT_TAKEN
    )
});

/// Takes deliveries from gates that are as they were seen.
pub(in crate::store::sql) async fn pass(
    conn: &mut PgConnection,
    node: NodeId,
    lease: Lease,
    steps: &[GateStep],
    passes: &[Pass],
    now: Timestamp,
) -> Result<Vec<Delivery>> {
    let query = match (steps, passes) {
        ([step], [one]) if one.flow.as_ref().is_none_or(|flow| *flow == step.name) => {
            sqlx::query_as(PASS_ONE.as_str())
                .bind(&*step.name)
                .bind(step.version)
                .bind(codec::write_starts(&step.starts))
                .bind(step.next_at.map(Timestamp::as_millis))
                .bind(one.id.as_str())
        }
        _ => sqlx::query_as(PASS.as_str())
            .bind(steps.iter().map(|step| &*step.name).collect::<Vec<&str>>())
            .bind(steps.iter().map(|step| step.version).collect::<Vec<i64>>())
            .bind(steps.iter().map(|step| codec::write_starts(&step.starts)).collect::<Vec<_>>())
            .bind(steps.iter().map(|step| step.next_at.map(Timestamp::as_millis)).collect::<Vec<_>>())
            .bind(passes.iter().map(|pass| pass.id.as_str()).collect::<Vec<&str>>())
            .bind(passes.iter().map(|pass| &*pass.gate).collect::<Vec<&str>>())
            .bind(passes.iter().map(|pass| pass.flow.as_deref()).collect::<Vec<_>>())
            .bind(numbers(passes))
            .bind(passes.iter().map(|pass| pass.in_order).collect::<Vec<bool>>()),
    };
    let rows: Vec<ClaimedRow> =
        query.bind(node.0).bind(lease.0).bind(now.as_millis()).fetch_all(&mut *conn).await?;
    let (deliveries, unreadable) = ClaimedRow::into_deliveries(rows, lease);
    if !unreadable.is_empty() {
        set_aside_unreadable(conn, node, lease, unreadable).await?;
    }
    Ok(deliveries)
}

/// The number of each among those of its gate that go in order.
fn numbers(passes: &[Pass]) -> Vec<i64> {
    let mut last: HashMap<(&str, bool), i64> = HashMap::new();
    let mut numbers = Vec::with_capacity(passes.len());
    for pass in passes {
        let last = last.entry((&*pass.gate, pass.in_order)).or_default();
        *last += 1;
        numbers.push(*last);
    }
    numbers
}
