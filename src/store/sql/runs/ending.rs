//! What outcomes do to runs, and how runs end.

use std::sync::Arc;

use super::{INSERT_ENTRIES, advance, appended, entries, hold};
use crate::domain::id::InstanceId;
use crate::domain::message::Message;
use crate::domain::outcome::Effect;
use crate::domain::run::ending::Ending;
use crate::domain::run::{Kind, NewEntry, RunState};
use crate::domain::time::Timestamp;
use crate::store::runs::RunEnded;
use crate::store::sql::gates::entering::Conn;
use crate::store::sql::query::Query;
use crate::store::sql::tx::Claimable;
use crate::store::sql::{Backend, DEADLINE, SqlStore, deliveries};
use crate::store::{Accept, Ended, OnRun, Result};

/// A message that waits in the store, with the entry that it delivers.
pub(super) fn appending(message: &Arc<Message>, entry: &NewEntry) -> Accept {
    Accept { on_run: Some(OnRun::Append(entry.clone())), ..Accept::by_url(Arc::clone(message)) }
}

/// Holds the runs that outcomes change, before any of their deliveries is touched.
pub(in crate::store::sql) async fn hold_all(conn: &mut Conn<'_>, batch: &[Ended]) -> Result<()> {
    let effects = batch.iter().flat_map(|ended| ended.finish.on_runs());
    let mut instances: Vec<&str> = effects.flat_map(touched).collect();
    instances.sort_unstable();
    instances.dedup();
    hold(conn, &instances).await?;
    Ok(())
}

/// The runs that an effect touches.
fn touched(effect: &Effect) -> Vec<&str> {
    match effect {
        Effect::Callback(_) => Vec::new(),
        Effect::Append(message, _) | Effect::TimeOut(message, _) => {
            message.run.iter().map(|part| part.instance.as_str()).collect()
        }
        Effect::End(ending) => touched_by_end(ending),
        Effect::Told { instance, .. } => vec![instance.as_str()],
    }
}

fn touched_by_end(ending: &Ending) -> Vec<&str> {
    let parent = ending.parent.as_ref().and_then(|(message, _)| message.run.as_ref());
    [Some(&ending.instance), parent.map(|part| &part.instance)]
        .into_iter()
        .flatten()
        .map(InstanceId::as_str)
        .collect()
}

/// Makes the effects that outcomes have on runs, after these have been stored.
pub(in crate::store::sql) async fn apply<'a>(
    conn: &mut Conn<'_>,
    claimable: &mut Claimable,
    applied: impl Iterator<Item = &'a Ended>,
) -> Result<()> {
    let mut accepts = Vec::new();
    for effect in applied.flat_map(|ended| ended.finish.on_runs()) {
        match effect {
            Effect::Callback(_) => {}
            Effect::Append(message, entry) => accepts.push(appending(message, entry)),
            Effect::TimeOut(message, entry) => {
                if super::waiting::remove(conn, &[(message, entry)]).await? == [true] {
                    accepts.push(appending(message, entry));
                }
            }
            Effect::End(ending) => {
                let (_, follows) = end_held(conn, ending).await?;
                accepts.extend(follows);
            }
            Effect::Told { instance, message, answer } => {
                let mut query = Query::new(conn);
                query.sql("UPDATE runs SET failure_told = ").text(answer.as_str());
                query.sql(" WHERE instance = ").text(instance.as_str());
                query.sql(" AND failure_message = ").text(message.as_str());
                query.execute_on(conn).await?;
            }
        }
    }
    deliveries::insert_on(conn, claimable, accepts).await
}

/// Ends a run.
pub(super) async fn end(conn: &mut Conn<'_>, claimable: &mut Claimable, ending: &Ending) -> Result<RunEnded> {
    hold(conn, &touched_by_end(ending)).await?;
    let (ended, follows) = end_held(conn, ending).await?;
    deliveries::insert_on(conn, claimable, follows).await?;
    Ok(ended)
}

/// Ends a run whose row is held; and the messages that follow from it.
async fn end_held(conn: &mut Conn<'_>, ending: &Ending) -> Result<(RunEnded, Vec<Accept>)> {
    let sql = "UPDATE runs SET state = $1, completed_at = $2, result = $3, dead_letter = $4, failure_message = $5 \
               WHERE instance = $6 AND state = 'RUN_STARTED'";
    let ended = on_backend!(conn, |conn| {
        sqlx::query(sql)
            .bind(ending.state.as_str())
            .bind(ending.at.as_millis())
            .bind(ending.result.as_deref())
            .bind(ending.dead_letter.as_ref().map(|id| id.as_str().to_owned()))
            .bind(ending.failure_callback.as_ref().map(|message| message.id.as_str().to_owned()))
            .bind(ending.instance.as_str())
            .execute(&mut **conn)
            .await?
            .rows_affected()
    });
    if ended == 0 {
        return Ok((RunEnded::Before, Vec::new()));
    }
    let instance = ending.instance.as_str();
    for sql in ["DELETE FROM waiters WHERE instance = ", "DELETE FROM kept_events WHERE instance = "] {
        let mut drop = Query::new(conn);
        drop.sql(sql).text(instance);
        drop.execute_on(conn).await?;
    }
    // Whoever holds several deliveries and waits for one of these would wait for ever: what others are changing at this moment is
    // left to `drop_rest`.
    let mut drop = Query::new(conn);
    drop.sql("DELETE FROM deliveries WHERE message_id IN (SELECT message_id FROM deliveries WHERE node = 0 AND run = ")
        .text(instance)
        .lock(" FOR UPDATE SKIP LOCKED")
        .sql(")");
    drop.execute_on(conn).await?;
    let mut mark = Query::new(conn);
    mark.sql("UPDATE deliveries SET cancel_requested_at = COALESCE(cancel_requested_at, ")
        .number(ending.at.as_millis())
        .sql(") WHERE message_id IN (SELECT message_id FROM deliveries WHERE run = ")
        .text(instance)
        .lock(" FOR UPDATE SKIP LOCKED")
        .sql(")");
    let leased = mark.execute_on(conn).await? > 0;
    let mut parent = None;
    if let Some((message, entry)) = &ending.parent
        && !record_if_ended(conn, message, entry).await?
    {
        parent = Some(appending(message, entry));
    }
    let callback = ending.failure_callback.iter().map(|message| Accept::by_url(Arc::clone(message)));
    Ok((RunEnded::Now { leased }, parent.into_iter().chain(callback).collect()))
}

/// Appends an entry to a run that has ended, for its log alone: nothing is delivered. False: the run is live, or there is none.
async fn record_if_ended(conn: &mut Conn<'_>, message: &Message, entry: &NewEntry) -> Result<bool> {
    let Some(part) = &message.run else { return Ok(false) };
    let mut held = hold(conn, &[part.instance.as_str()]).await?;
    let Some(run) = held.first_mut().filter(|run| run.state != RunState::Started.as_str()) else {
        return Ok(false);
    };
    let row = appended(&part.instance, run.next_position, &message.id, message.created_at, entry);
    INSERT_ENTRIES.run(conn, &entries(), &[row]).await?;
    run.next_position += 1;
    advance(conn, &held).await?;
    Ok(true)
}

#[derive(sqlx::FromRow)]
struct IdRow {
    message_id: String,
}

/// Drops what is left of a run that has ended on Postgres, one delivery at a time: what others were changing then. Whether
/// anything was.
pub(in crate::store::sql) async fn drop_rest(
    store: &SqlStore,
    instance: &InstanceId,
    at: Timestamp,
) -> Result<bool> {
    if matches!(store.backend, Backend::Sqlite(_)) {
        return Ok(false);
    }
    let pools = store.readers();
    let mut rest = Query::new(&pools);
    rest.sql(
        "SELECT d.message_id FROM deliveries d JOIN messages m ON m.id = d.message_id \
         WHERE d.cancel_requested_at IS NULL AND m.kind <> ",
    )
    .text(Kind::FailureCallback.as_str())
    .sql(" AND d.run = ")
    .text(instance.as_str());
    let rest: Vec<IdRow> = rest.fetch(&pools).await?;
    for row in &rest {
        store
            .write(DEADLINE, async |tx| {
                let (mut conn, _) = tx.parts();
                let mut drop = Query::new(&conn);
                drop.sql("DELETE FROM deliveries WHERE node = 0 AND message_id = ").text(&row.message_id);
                if drop.execute_on(&mut conn).await? == 0 {
                    let mut mark = Query::new(&conn);
                    mark.sql("UPDATE deliveries SET cancel_requested_at = ")
                        .number(at.as_millis())
                        .sql(" WHERE cancel_requested_at IS NULL AND message_id = ")
                        .text(&row.message_id);
                    mark.execute_on(&mut conn).await?;
                }
                Ok(())
            })
            .await?;
    }
    Ok(!rest.is_empty())
}
