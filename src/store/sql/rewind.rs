//! Bringing back what a clock that has gone back leaves in the future, on SQLite.
//!
//! A message that was accepted without a delay is due from then on. After a step back, or at a start after one, its due time lies
//! ahead, and it is brought back. What was published with a delay, and a retry, waits for its time: nothing tells whether
//! a time of day was meant, and early is worse than late.

use sqlx::SqliteConnection;

use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::Result;

/// How far ahead nothing is by itself: places in queues are in microseconds, and batches take many at once.
const TOLERANCE_MS: i64 = 1000;

/// Deliveries of messages that had no delay.
macro_rules! undelayed {
    () => {
        "EXISTS (SELECT 1 FROM messages m WHERE m.id = deliveries.message_id AND m.due_at <= m.created_at)"
    };
}
/// Deliveries of messages that had no delay and were not attempted yet, with an id from `$2` on, which begins with the
/// time of acceptance.
macro_rules! accepted {
    () => {
        concat!("message_id >= $2 AND node = 0 AND retried = 0 AND ", undelayed!())
    };
}

/// Brings back what lies in the future though it was due when it was accepted.
pub(super) async fn rewind(connection: &mut SqliteConnection, now: Timestamp) -> Result<()> {
    let (now_ms, now_us) = (now.as_millis(), now.as_millis() * 1000);
    let from = MessageId::earliest_at(Timestamp::from_millis(now_ms + TOLERANCE_MS));
    let accepted: Option<i64> = sqlx::query_scalar("SELECT 1 FROM messages WHERE id >= $1 LIMIT 1")
        .bind(from.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    if accepted.is_none() {
        return Ok(());
    }
    let lanes =
        concat!("UPDATE deliveries SET due_at = $1 WHERE gate IS NULL AND due_at > $1 AND ", accepted!());
    sqlx::query(lanes).bind(now_ms).bind(from.as_str()).execute(&mut *connection).await?;
    let keys = concat!(
        "UPDATE deliveries SET place = $1 WHERE SUBSTR(gate, 1, 1) = 'f' AND place > $1 AND ",
        accepted!()
    );
    sqlx::query(keys).bind(now_us).bind(from.as_str()).execute(&mut *connection).await?;
    // The places of a queue are moved together, up to the last that was taken, so that their order stays. The place of
    // one with a delay is its due time.
    let ahead: Vec<(String, i64)> = sqlx::query_as("SELECT gate, place FROM queue_places WHERE place > $1")
        .bind(now_us + TOLERANCE_MS * 1000)
        .fetch_all(&mut *connection)
        .await?;
    for (gate, last) in ahead {
        for sql in [
            concat!(
                "UPDATE deliveries SET place = place - $2 + $3 WHERE gate = $1 AND place <= $2 AND ",
                undelayed!()
            ),
            "UPDATE queue_places SET place = place - $2 + $3 WHERE gate = $1",
        ] {
            sqlx::query(sql).bind(&gate).bind(last).bind(now_us).execute(&mut *connection).await?;
        }
        // A snapshot that was taken before is void.
        sqlx::query("UPDATE gates SET version = version + 1 WHERE name = $1")
            .bind(&gate)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
