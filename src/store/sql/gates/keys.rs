//! Flow-control keys as users see them, and the end of those that nothing uses any more.

use sqlx::{PgPool, SqlitePool};

use super::{ControlRow, limit_columns};
use crate::domain::gate::{Control, FlowChange, bare_name, flow_gate};
use crate::domain::time::Timestamp;
use crate::store::Result;
use crate::store::gates::FlowKey;
use crate::store::sql::tx::Tx;
use crate::store::sql::{Backend, codec};

/// Keys that are pruned in one step.
const PRUNED_AT_ONCE: i64 = 500;

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
pub(in crate::store::sql) struct FlowRow {
    name: String,
    #[sqlx(flatten)]
    control: ControlRow,
    starts: Option<String>,
    waiting: i64,
    in_flight: i64,
}

impl FlowRow {
    pub(in crate::store::sql) fn into_key(self, now: Timestamp) -> Result<FlowKey> {
        Ok(FlowKey {
            key: bare_name(&self.name).to_owned(),
            control: self.control.control(),
            starts: codec::read_starts(self.starts.as_deref(), now, &self.name)?,
            waiting: u64::try_from(self.waiting).unwrap_or(0),
            in_flight: u64::try_from(self.in_flight).unwrap_or(0),
        })
    }
}

pub(super) async fn flow_key(
    pools: &Backend<&PgPool, &SqlitePool>,
    key: &str,
    now: Timestamp,
) -> Result<Option<FlowKey>> {
    let sql = concat!(
        "SELECT name, ",
        control_columns!(),
        ", starts, \
             (SELECT COUNT(*) FROM deliveries WHERE flow = $1 AND node = 0 AND due_at <= $2) AS waiting, \
             (SELECT COUNT(*) FROM deliveries WHERE flow = $1 AND node > 0) AS in_flight \
         FROM gates WHERE name = $1"
    );
    let row: Option<FlowRow> = on_backend!(pools, |pool| {
        sqlx::query_as(sql).bind(flow_gate(key)).bind(now.as_millis()).fetch_optional(*pool).await?
    });
    row.map(|row| row.into_key(now)).transpose()
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
pub(in crate::store::sql) async fn idle_keys(
    pools: &Backend<&PgPool, &SqlitePool>,
    cutoff: Timestamp,
) -> Result<Vec<String>> {
    let sql = concat!(idle_keys!("$1"), " LIMIT $2");
    Ok(on_backend!(pools, |pool| {
        sqlx::query_scalar(sql).bind(cutoff.as_millis()).bind(PRUNED_AT_ONCE).fetch_all(*pool).await?
    }))
}

/// Removes those of the keys that are still idle.
pub(in crate::store::sql) async fn prune(tx: &mut Tx, keys: &[String], cutoff: Timestamp) -> Result<()> {
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
