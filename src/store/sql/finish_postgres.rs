//! Finishing on Postgres: the ends of attempts with all their consequences, as one statement, or as one transaction where
//! gates or runs have a part in them.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::postgres::{PgArguments, PgBindIterExt as _, PgRow};
use sqlx::{Arguments as _, Connection as _, FromRow, PgConnection, Row as _};

use super::attempts::{self, callbacks, letter, with_letter};
use super::columns::{Column, add_arrays, arguments, arrays, names};
use super::gates::entering::{Coming, Conn, Entered, enter};
use super::messages::{self, ClaimedRow, LEASED, New, SELECTED, delivery};
use super::nodes::now_ms;
use super::runs;
use super::tx::Claimable;
use crate::domain::gate::is_gated;
use crate::domain::outcome::Next;
use crate::store::{Accept, Applied, Ended, Lease, NodeId, Result};

use super::hot_postgres::{bind_new, insert};
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
        .all(|ended| matches!(ended.finish.next, Next::Delivered) && ended.finish.effects.is_empty());
    let on_runs = batch.iter().any(|ended| ended.finish.on_runs().next().is_some());
    let callbacks = || batch.iter().flat_map(|ended| ended.finish.callbacks()).map(|message| &**message);
    let rows = if plain {
        finish_delivered(conn, node, batch).await?
    } else if on_runs || callbacks().any(is_gated) {
        let mut tx = conn.begin().await?;
        if on_runs {
            runs::ending::hold_all(&mut Conn::Postgres(&mut tx), batch).await?;
        }
        let mut places = Vec::new();
        if callbacks().any(is_gated) {
            // Callbacks are in no queue.
            let coming = Coming { messages: callbacks().collect(), requests: Vec::new(), max_queues: None };
            places = enter(&mut Conn::Postgres(&mut tx), &coming).await?;
        }
        let rows = finish_mixed(&mut tx, node, batch, &places).await?;
        if on_runs {
            let ended: HashSet<&str> = rows.iter().map(|row| row.ended_id.as_str()).collect();
            let ended = batch.iter().filter(|end| ended.contains(end.id.as_str()));
            runs::ending::apply(&mut Conn::Postgres(&mut tx), claimable, ended).await?;
        }
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
        Own::number("callbacks", |ended| i64::try_from(ended.finish.callbacks().count()).ok()),
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
    places: &[Entered],
) -> Result<Vec<EndedRow>> {
    let callbacks: Vec<(&Ended, Accept)> =
        batch.iter().flat_map(|ended| callbacks(ended).map(move |accept| (ended, accept))).collect();
    let rows: Vec<New<'_>> = callbacks
        .iter()
        .enumerate()
        .map(|(index, (ended, accept))| {
            let place = places.get(index).and_then(Entered::place);
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
