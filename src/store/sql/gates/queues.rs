//! Queues as users see them, and the trait [`Queues`] of the store on SQL.

use async_trait::async_trait;
use sqlx::{PgConnection, PgPool, SqlitePool};

use super::entering::{AtTime, Conn, has_room};
use super::keys;
use crate::domain::gate::{FlowChange, bare_name, queue_gate};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::gates::{FlowKey, Queue, QueueRemoval, Queues};
use crate::store::sql::cancelling::{self, Take};
use crate::store::sql::tx::Tx;
use crate::store::sql::{Backend, DEADLINE, LONG_DEADLINE, SqlStore, within};
use crate::store::{Cancellation, Result};

/// Messages that are cancelled in one step of a queue's removal: few enough to hold no lock for long.
const REMOVED_AT_ONCE: i64 = 500;

#[async_trait]
impl Queues for SqlStore {
    async fn upsert_queue(
        &self,
        name: &str,
        parallelism: Option<u32>,
        paused: Option<bool>,
        max: Option<u32>,
        now: Timestamp,
    ) -> Result<bool> {
        self.write(DEADLINE, async |tx| upsert_queue(tx, name, parallelism, paused, max, now).await).await
    }

    async fn pause_queue(&self, name: &str, paused: bool, now: Timestamp) -> Result<bool> {
        self.write(DEADLINE, async |tx| pause_queue(tx, name, paused, now).await).await
    }

    async fn queue(&self, name: &str) -> Result<Option<Queue>> {
        within(DEADLINE, queue(&self.readers(), name)).await
    }

    async fn may_use_queue(&self, name: &str, max: u32) -> Result<bool> {
        within(DEADLINE, may_use(&self.readers(), name, max)).await
    }

    async fn remove_queue(&self, name: &str, now: Timestamp) -> Result<QueueRemoval> {
        self.write(LONG_DEADLINE, async |tx| remove_queue(tx, name, now).await).await
    }

    async fn change_flow_key(&self, key: &str, change: &FlowChange, now: Timestamp) -> Result<bool> {
        self.write(DEADLINE, async |tx| keys::change_flow_key(tx, key, change, now).await).await
    }

    async fn flow_key(&self, key: &str, now: Timestamp) -> Result<Option<FlowKey>> {
        within(DEADLINE, keys::flow_key(&self.readers(), key, now)).await
    }
}

/// Makes a queue, or changes what is given; false: there are too many.
async fn upsert_queue(
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
async fn may_use(pools: &Backend<&PgPool, &SqlitePool>, name: &str, max: u32) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM gates WHERE name = $1) \
                   OR (SELECT COUNT(*) FROM gates WHERE name >= 'q:' AND name < 'q;') < $2";
    Ok(on_backend!(pools, |pool| {
        sqlx::query_scalar(sql).bind(queue_gate(name)).bind(i64::from(max)).fetch_one(*pool).await?
    }))
}

async fn pause_queue(tx: &mut Tx, name: &str, paused: bool, now: Timestamp) -> Result<bool> {
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
pub(in crate::store::sql) struct QueueRow {
    name: String,
    created_at: i64,
    updated_at: i64,
    parallelism: Option<i64>,
    paused: bool,
    lag: i64,
}

async fn queue(pools: &Backend<&PgPool, &SqlitePool>, name: &str) -> Result<Option<Queue>> {
    // A message in flight has its own slot.
    let sql = "SELECT name, created_at, updated_at, parallelism, paused, \
                   (SELECT COUNT(*) FROM deliveries WHERE gate = $1 AND node = 0) + \
                   (SELECT COUNT(*) FROM deliveries WHERE slot = $1 AND gate = $1 AND node <> 0) AS lag \
               FROM gates WHERE name = $1";
    let row: Option<QueueRow> = on_backend!(pools, |pool| {
        sqlx::query_as(sql).bind(queue_gate(name)).fetch_optional(*pool).await?
    });
    Ok(row.map(QueueRow::into_queue))
}

impl QueueRow {
    pub(in crate::store::sql) fn into_queue(self) -> Queue {
        Queue {
            name: bare_name(&self.name).to_owned(),
            created_at: Timestamp::from_millis(self.created_at),
            updated_at: Timestamp::from_millis(self.updated_at),
            parallelism: self.parallelism.map_or(1, |number| u32::try_from(number).unwrap_or(u32::MAX)),
            paused: self.paused,
            lag: u64::try_from(self.lag).unwrap_or(0),
        }
    }
}

/// Cancels some messages of a queue; with the last ones the queue goes too. Meanwhile nobody adds to it or claims from it.
/// While somebody does, nothing is done.
async fn remove_queue(tx: &mut Tx, name: &str, now: Timestamp) -> Result<QueueRemoval> {
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
