//! The tables `waiters` and `kept_events`: runs that wait for events, and events that came before.

use std::sync::Arc;

use bytes::Bytes;
use sqlx::{PgPool, SqlitePool};

use super::ending::appending;
use super::{HeldRow, hold};
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::message::Message;
use crate::domain::run::waiting::Waiter;
use crate::domain::run::{NewEntry, RunState};
use crate::domain::time::Timestamp;
use crate::store::runs::{Keeps, MAX_KEPT, Waits};
use crate::store::sql::gates::entering::Conn;
use crate::store::sql::query::Query;
use crate::store::sql::tx::Claimable;
use crate::store::sql::{Backend, codec, deliveries};
use crate::store::{Accept, Result};

#[derive(sqlx::FromRow)]
struct WaiterRow {
    instance: String,
    step_key: String,
    event_id: String,
    step: String,
    url: String,
    headers: Option<String>,
    timeout: String,
    deadline: i64,
    timeout_url: String,
    timeout_headers: String,
    timer: String,
}

impl WaiterRow {
    fn into_waiter(self) -> Result<Waiter> {
        Ok(Waiter {
            headers: codec::read_headers(self.headers.as_deref(), "waiters", &self.instance)?,
            instance: InstanceId::new(self.instance),
            key: self.step_key,
            event_id: self.event_id,
            step: self.step,
            url: self.url,
            timeout: self.timeout,
            deadline: Timestamp::from_millis(self.deadline),
            timeout_url: self.timeout_url,
            timeout_headers: self.timeout_headers,
            timer: MessageId::new(self.timer),
        })
    }
}

#[derive(sqlx::FromRow)]
struct KeptRow {
    number: i64,
    data: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct OneRow {
    one: i64,
}

#[derive(sqlx::FromRow)]
struct TimerRow {
    timer: String,
}

async fn is_live(conn: &mut Conn<'_>, instance: &InstanceId) -> Result<bool> {
    let rows = hold(conn, &[instance.as_str()]).await?;
    Ok(rows.iter().any(|row: &HeldRow| row.state == RunState::Started.as_str()))
}

pub(super) async fn wait(
    conn: &mut Conn<'_>,
    claimable: &mut Claimable,
    waiter: &Waiter,
    timer: &Accept,
) -> Result<Waits> {
    if !is_live(conn, &waiter.instance).await? {
        return Ok(Waits::Ended);
    }
    let mut known = Query::new(conn);
    for (sql, more) in [
        ("SELECT CAST(1 AS BIGINT) AS one FROM waiters WHERE instance = ", " UNION ALL "),
        ("SELECT CAST(1 AS BIGINT) AS one FROM run_entries WHERE instance = ", ""),
    ] {
        known.sql(sql).text(waiter.instance.as_str());
        known.sql(" AND step_key = ").text(&waiter.key).sql(more);
    }
    let known: Vec<OneRow> = known.fetch_on(conn).await?;
    if !known.is_empty() {
        return Ok(Waits::Already);
    }
    let mut kept = Query::new(conn);
    kept.sql("SELECT number, data FROM kept_events WHERE instance = ").text(waiter.instance.as_str());
    kept.sql(" AND event_id = ").text(&waiter.event_id).sql(" ORDER BY number LIMIT 1");
    let kept: Vec<KeptRow> = kept.fetch_on(conn).await?;
    if let Some(KeptRow { number, data }) = kept.into_iter().next() {
        return Ok(Waits::Kept { number, data: Bytes::from(data) });
    }
    let sql = "INSERT INTO waiters (instance, step_key, event_id, step, url, headers, timeout, deadline, timeout_url, \
                   timeout_headers, timer) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    on_backend!(conn, |conn| {
        sqlx::query(sql)
            .bind(waiter.instance.as_str())
            .bind(waiter.key.as_str())
            .bind(waiter.event_id.as_str())
            .bind(waiter.step.as_str())
            .bind(waiter.url.as_str())
            .bind(codec::write_headers(&waiter.headers))
            .bind(waiter.timeout.as_str())
            .bind(waiter.deadline.as_millis())
            .bind(waiter.timeout_url.as_str())
            .bind(waiter.timeout_headers.as_str())
            .bind(waiter.timer.as_str())
            .execute(&mut **conn)
            .await?;
    });
    deliveries::insert_on(conn, claimable, vec![timer.clone()]).await?;
    Ok(Waits::Waiting)
}

pub(super) async fn waiters(
    pools: &Backend<&PgPool, &SqlitePool>,
    event_id: &str,
    instance: Option<&InstanceId>,
) -> Result<Vec<Waiter>> {
    let mut query = Query::new(pools);
    query.sql("SELECT * FROM waiters WHERE event_id = ").text(event_id);
    if let Some(instance) = instance {
        query.sql(" AND instance = ").text(instance.as_str());
    }
    query.sql(" ORDER BY deadline, instance, step_key");
    let rows: Vec<WaiterRow> = query.fetch(pools).await?;
    rows.into_iter().map(WaiterRow::into_waiter).collect()
}

/// The waits of a run.
pub(super) async fn of_run(
    pools: &Backend<&PgPool, &SqlitePool>,
    instance: &InstanceId,
) -> Result<Vec<Waiter>> {
    let mut query = Query::new(pools);
    query.sql("SELECT * FROM waiters WHERE instance = ").text(instance.as_str());
    query.sql(" ORDER BY deadline, step_key");
    let rows: Vec<WaiterRow> = query.fetch(pools).await?;
    rows.into_iter().map(WaiterRow::into_waiter).collect()
}

/// Removes waiters by instance and key, those of runs that are held; which of them were there. Their timers go, too.
pub(super) async fn remove(conn: &mut Conn<'_>, ends: &[(&Arc<Message>, &NewEntry)]) -> Result<Vec<bool>> {
    let mut removed = Vec::with_capacity(ends.len());
    let mut timers = Vec::new();
    for (message, entry) in ends {
        let place = message.run.as_ref().zip(entry.key.as_deref());
        let Some((part, key)) = place else {
            removed.push(false);
            continue;
        };
        let mut query = Query::new(conn);
        query.sql("DELETE FROM waiters WHERE instance = ").text(part.instance.as_str());
        query.sql(" AND step_key = ").text(key).sql(" RETURNING timer");
        let rows: Vec<TimerRow> = query.fetch_on(conn).await?;
        removed.push(!rows.is_empty());
        timers.extend(rows.into_iter().map(|row| row.timer));
    }
    if !timers.is_empty() {
        // One that is leased finds no waiter.
        let mut query = Query::new(conn);
        query.sql("DELETE FROM deliveries WHERE node = 0 AND message_id ").one_of(&timers);
        query.execute_on(conn).await?;
    }
    Ok(removed)
}

pub(super) async fn end_all(
    conn: &mut Conn<'_>,
    claimable: &mut Claimable,
    ends: &[(Arc<Message>, NewEntry)],
) -> Result<Vec<bool>> {
    let parts = ends.iter().filter_map(|(message, _)| message.run.as_ref());
    let mut instances: Vec<&str> = parts.map(|part| part.instance.as_str()).collect();
    instances.sort_unstable();
    instances.dedup();
    hold(conn, &instances).await?;
    let waits: Vec<(&Arc<Message>, &NewEntry)> =
        ends.iter().map(|(message, entry)| (message, entry)).collect();
    let removed = remove(conn, &waits).await?;
    let ended = ends.iter().zip(&removed).filter(|(_, removed)| **removed);
    let accepts: Vec<Accept> = ended.map(|((message, entry), _)| appending(message, entry)).collect();
    deliveries::insert_on(conn, claimable, accepts).await?;
    Ok(removed)
}

pub(super) async fn keep(
    conn: &mut Conn<'_>,
    instance: &InstanceId,
    event_id: &str,
    data: &Bytes,
) -> Result<Keeps> {
    if !is_live(conn, instance).await? {
        return Ok(Keeps::Ended);
    }
    let mut waits = Query::new(conn);
    waits.sql("SELECT CAST(1 AS BIGINT) AS one FROM waiters WHERE instance = ").text(instance.as_str());
    waits.sql(" AND event_id = ").text(event_id).sql(" LIMIT 1");
    let waits: Vec<OneRow> = waits.fetch_on(conn).await?;
    if !waits.is_empty() {
        return Ok(Keeps::Waited);
    }
    let mut count = Query::new(conn);
    count.sql("SELECT COUNT(*) AS one FROM kept_events WHERE instance = ").text(instance.as_str());
    let count: Vec<OneRow> = count.fetch_on(conn).await?;
    if count.iter().any(|row| row.one >= i64::from(MAX_KEPT)) {
        return Ok(Keeps::Full);
    }
    let sql = "INSERT INTO kept_events (instance, event_id, number, data) \
               SELECT $1, $2, COALESCE(MAX(number), 0) + 1, $3 FROM kept_events \
               WHERE instance = $1 AND event_id = $2";
    on_backend!(conn, |conn| {
        sqlx::query(sql).bind(instance.as_str()).bind(event_id).bind(&data[..]).execute(&mut **conn).await?;
    });
    Ok(Keeps::Kept)
}

pub(super) async fn take(
    conn: &mut Conn<'_>,
    claimable: &mut Claimable,
    event_id: &str,
    number: i64,
    message: &Arc<Message>,
    entry: &NewEntry,
) -> Result<bool> {
    let Some(part) = &message.run else { return Ok(false) };
    if !is_live(conn, &part.instance).await? {
        return Ok(false);
    }
    let mut query = Query::new(conn);
    query.sql("DELETE FROM kept_events WHERE instance = ").text(part.instance.as_str());
    query.sql(" AND event_id = ").text(event_id).sql(" AND number = ").number(number);
    if query.execute_on(conn).await? == 0 {
        return Ok(false);
    }
    deliveries::insert_on(conn, claimable, vec![appending(message, entry)]).await?;
    Ok(true)
}
