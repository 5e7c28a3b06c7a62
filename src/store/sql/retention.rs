//! Removing what is past its age, in small batches.

use super::query::Query;
use super::tx::Tx;
use super::{Backend, gates};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{Result, Retention};

/// Messages looked at in one batch: small enough to hold a lock for a moment only.
const BATCH: i64 = 500;

/// Postgres' lock for it: `homing` in ASCII.
const ADVISORY_LOCK: i64 = 0x686f_6d69_6e67;

/// One batch, and those of the keys that are still idle; where the walk goes on.
pub(super) async fn prune(
    tx: &mut Tx,
    retention: Retention,
    now: Timestamp,
    after: &str,
    idle_keys: &[String],
) -> Result<Option<String>> {
    if let Backend::Postgres(tx) = &mut tx.on {
        // One node at a time does it for all.
        let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
            .bind(ADVISORY_LOCK)
            .fetch_one(&mut **tx)
            .await?;
        if !alone {
            return Ok(None);
        }
    }
    let more_expired = prune_expired(tx, retention, now).await?;
    let cutoff = now.before(retention.log);
    gates::keys::prune(tx, idle_keys, cutoff).await?;
    let more_expired = prune_runs(tx, cutoff).await? || more_expired;
    let bound = MessageId::earliest_at(cutoff);
    let page = "SELECT MAX(id), COUNT(*) FROM \
                (SELECT id FROM messages WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3) AS page";
    let (upto, count): (Option<String>, i64) = on_backend!(&mut tx.on, |tx| {
        sqlx::query_as(page).bind(after).bind(bound.as_str()).bind(BATCH).fetch_one(&mut **tx).await?
    });
    let Some(upto) = upto else { return Ok(more_expired.then(|| after.to_owned())) };
    // A message stays while it waits, while it is a dead letter, while its run is kept, and while anything in its log is
    // young enough.
    let messages = "DELETE FROM messages WHERE id > $1 AND id <= $2 \
         AND (run IS NULL OR NOT EXISTS (SELECT 1 FROM runs r WHERE r.instance = messages.run)) \
         AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.message_id = messages.id) \
         AND NOT EXISTS (SELECT 1 FROM dead_letters l WHERE l.message_id = messages.id) \
         AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.message_id = messages.id AND a.ended_at >= $3) \
         AND NOT EXISTS (SELECT 1 FROM cancellations c WHERE c.message_id = messages.id \
             AND (c.requested_at >= $3 OR c.cancelled_at >= $3))";
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(messages)
            .bind(after)
            .bind(upto.as_str())
            .bind(cutoff.as_millis())
            .execute(&mut **tx)
            .await?;
    });
    let orphans = [
        "DELETE FROM attempts WHERE message_id > $1 AND message_id <= $2 \
         AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = attempts.message_id)",
        "DELETE FROM cancellations WHERE message_id > $1 AND message_id <= $2 \
         AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = cancellations.message_id)",
    ];
    for sql in orphans {
        on_backend!(&mut tx.on, |tx| {
            sqlx::query(sql).bind(after).bind(upto.as_str()).execute(&mut **tx).await?;
        });
    }
    if let Backend::Sqlite(tx) = &mut tx.on {
        // Gives freed pages back to the file system, a few at a time.
        sqlx::query("PRAGMA incremental_vacuum(200)").execute(&mut **tx).await?;
    }
    Ok((count == BATCH || more_expired).then_some(upto))
}

/// Runs of one batch: their logs may be long.
const RUNS: i64 = 50;

/// One batch of runs that ended before then, with their logs; whether there may be more. A run stays while it has a dead
/// letter, from which it may be resumed, and while somebody is told of its failure.
async fn prune_runs(tx: &mut Tx, cutoff: Timestamp) -> Result<bool> {
    let mut query = Query::new(&tx.on);
    query
        .sql("SELECT r.instance FROM runs r WHERE r.completed_at < ")
        .number(cutoff.as_millis())
        .sql(
            " AND NOT EXISTS (SELECT 1 FROM dead_letters l WHERE l.run = r.instance) \
             AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.message_id = r.failure_message) \
             ORDER BY r.completed_at LIMIT ",
        )
        .number(RUNS);
    let rows: Vec<InstanceRow> = query.fetch_in(tx).await?;
    let instances: Vec<&str> = rows.iter().map(|row| row.instance.as_str()).collect();
    if instances.is_empty() {
        return Ok(false);
    }
    for sql in ["DELETE FROM run_entries WHERE instance ", "DELETE FROM runs WHERE instance "] {
        let mut query = Query::new(&tx.on);
        query.sql(sql).one_of(&instances);
        query.execute_in(tx).await?;
    }
    Ok(i64::try_from(instances.len()).unwrap_or(i64::MAX) >= RUNS)
}

#[derive(sqlx::FromRow)]
struct InstanceRow {
    instance: String,
}

/// One batch each of the dead letters and deduplication keys past their age; whether there may be more.
async fn prune_expired(tx: &mut Tx, retention: Retention, now: Timestamp) -> Result<bool> {
    let statements = [
        (
            "DELETE FROM dead_letters WHERE id IN \
             (SELECT id FROM dead_letters WHERE created_at < $1 ORDER BY created_at LIMIT $2)",
            now.before(retention.dead_letters),
        ),
        (
            "DELETE FROM deduplications WHERE key IN \
             (SELECT key FROM deduplications WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
            now,
        ),
    ];
    let mut more = false;
    for (sql, cutoff) in statements {
        let deleted = on_backend!(&mut tx.on, |tx| {
            sqlx::query(sql).bind(cutoff.as_millis()).bind(BATCH).execute(&mut **tx).await?.rows_affected()
        });
        more |= deleted >= BATCH.unsigned_abs();
    }
    Ok(more)
}
