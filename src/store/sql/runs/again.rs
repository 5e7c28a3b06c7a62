//! What users make of runs that have failed: new ones in their places, and telling of the failure once more.

use super::{Appended, Begun, HeldRow, INSERT_ENTRIES, INSERT_RUNS, advance, begun, entries, hold};
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::run::Told;
use crate::domain::run::again::Again;
use crate::domain::time::Timestamp;
use crate::store::sql::query::Query;
use crate::store::sql::tx::Tx;
use crate::store::sql::{cancelling, dead_letters, deliveries};
use crate::store::{Accept, Cancellation, Result};

/// Begins a run in the place of a dead letter.
pub(super) async fn begin(tx: &mut Tx, again: &Again) -> Result<bool> {
    if !dead_letters::remove_of_run(tx, &again.letter).await? {
        return Ok(false);
    }
    let (mut conn, claimable) = tx.parts();
    let run = Begun { instance: again.instance.as_str(), created_at: again.created_at, new: &again.new };
    INSERT_RUNS.run(&mut conn, &begun(), &[run]).await?;
    let rows: Vec<Appended<'_>> = again
        .entries
        .iter()
        .map(|entry| Appended {
            instance: again.instance.as_str(),
            position: i64::from(entry.position),
            message: entry.message.as_str(),
            created_at: entry.created_at,
            call_type: entry.call_type,
            key: entry.key.as_deref(),
            body: &entry.body,
        })
        .collect();
    INSERT_ENTRIES.run(&mut conn, &entries(), &rows).await?;
    let next_position = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let row = HeldRow { instance: again.instance.as_str().to_owned(), state: String::new(), next_position };
    advance(&mut conn, &[row]).await?;
    let accepts: Vec<Accept> =
        again.messages.iter().map(|message| Accept::by_url(message.clone().into())).collect();
    deliveries::insert_on(&mut conn, claimable, accepts).await?;
    Ok(true)
}

/// Tells of a failure by another message.
pub(super) async fn tell(
    tx: &mut Tx,
    instance: &InstanceId,
    failed: &MessageId,
    again: &Accept,
) -> Result<bool> {
    let (mut conn, claimable) = tx.parts();
    hold(&mut conn, &[instance.as_str()]).await?;
    let mut query = Query::new(&conn);
    query.sql("UPDATE runs SET failure_told = NULL, failure_message = ").text(again.message.id.as_str());
    query.sql(" WHERE instance = ").text(instance.as_str());
    query.sql(" AND failure_message = ").text(failed.as_str());
    query.sql(" AND failure_told = ").text(Told::Failed.as_str());
    if query.execute_on(&mut conn).await? == 0 {
        return Ok(false);
    }
    deliveries::insert_on(&mut conn, claimable, vec![again.clone()]).await?;
    Ok(true)
}

/// Cancels telling of a failure while it is under way.
pub(super) async fn cancel(
    tx: &mut Tx,
    instance: &InstanceId,
    message: &MessageId,
    now: Timestamp,
) -> Result<Cancellation> {
    let (mut conn, _) = tx.parts();
    hold(&mut conn, &[instance.as_str()]).await?;
    let mut query = Query::new(&conn);
    query.sql("UPDATE runs SET failure_told = ").text(Told::Cancelled.as_str());
    query.sql(" WHERE failure_told IS NULL AND instance = ").text(instance.as_str());
    query.sql(" AND failure_message = ").text(message.as_str());
    if query.execute_on(&mut conn).await? == 0 {
        return Ok(Cancellation::NotFound);
    }
    cancelling::cancel_telling(tx, message, now).await
}
