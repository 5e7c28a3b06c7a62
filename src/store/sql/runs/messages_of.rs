//! Messages of runs, with what has become of them.

use std::collections::HashMap;

use sqlx::{PgPool, SqlitePool};

use crate::domain::id::{InstanceId, MessageId};
use crate::domain::run::story::{AttemptResult, Pending, RunAttempt, RunMessage};
use crate::domain::time::Timestamp;
use crate::store::sql::dead_letters::{fitting, response};
use crate::store::sql::query::Query;
use crate::store::sql::{Backend, messages};
use crate::store::{Result, StoreError};

/// Messages whose sizes are looked at together.
const MESSAGES: i64 = 500;

#[derive(sqlx::FromRow)]
struct SizeRow {
    id: String,
    size: i64,
}

#[derive(sqlx::FromRow)]
struct PendingRow {
    message_id: String,
    due_at: i64,
    leased: bool,
}

#[derive(sqlx::FromRow)]
struct AttemptRow {
    message_id: String,
    ended_at: i64,
    result: String,
    status: i64,
    error: Option<String>,
    response_headers: Option<String>,
    response_body: Option<Vec<u8>>,
}

impl AttemptRow {
    fn into_attempt(self) -> Result<RunAttempt> {
        let result = match self.result.as_str() {
            "delivered" => AttemptResult::Delivered,
            "retry" => AttemptResult::Retry,
            "failed" => AttemptResult::Failed,
            "cancelled" => AttemptResult::Cancelled,
            _ => {
                let id = self.message_id;
                return Err(StoreError::Corrupt { table: "attempts", column: "result", id });
            }
        };
        let headers = self.response_headers.as_deref();
        Ok(RunAttempt {
            ended_at: Timestamp::from_millis(self.ended_at),
            result,
            error: self.error,
            response: response(self.status, headers, self.response_body, &self.message_id)?,
        })
    }
}

/// A run's messages after that one, about `max_bytes` of them.
pub(super) async fn page(
    pools: &Backend<&PgPool, &SqlitePool>,
    instance: &InstanceId,
    after: Option<&MessageId>,
    max_bytes: usize,
) -> Result<Vec<RunMessage>> {
    let mut query = Query::new(pools);
    query
        .sql(
            "SELECT m.id, CAST(LENGTH(m.body) + COALESCE(OCTET_LENGTH(m.headers), 0) + COALESCE(( \
                 SELECT SUM(COALESCE(LENGTH(a.response_body), 0) + COALESCE(OCTET_LENGTH(a.response_headers), 0)) \
                 FROM attempts a WHERE a.message_id = m.id), 0) AS BIGINT) AS size \
             FROM messages m WHERE m.run = ",
        )
        .text(instance.as_str());
    if let Some(after) = after {
        query.sql(" AND m.id > ").text(after.as_str());
    }
    query.sql(" ORDER BY m.run, m.id LIMIT ").number(MESSAGES);
    let sizes: Vec<SizeRow> = query.fetch(pools).await?;
    let fit = fitting(sizes.iter().map(|row| row.size), sizes.len(), max_bytes).max(1);
    let ids: Vec<&str> = sizes.iter().take(fit).map(|row| row.id.as_str()).collect();
    get(pools, &ids).await
}

/// The messages of these ids, in the order of their ids.
pub(super) async fn get(pools: &Backend<&PgPool, &SqlitePool>, ids: &[&str]) -> Result<Vec<RunMessage>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // Before the attempts: what ends between the two is seen as waiting, with its end, and not as neither.
    let mut query = Query::new(pools);
    query.sql("SELECT message_id, due_at, node <> 0 AS leased FROM deliveries WHERE message_id ").one_of(ids);
    let rows: Vec<PendingRow> = query.fetch(pools).await?;
    let pending = |row: PendingRow| {
        let pending = Pending { due_at: Timestamp::from_millis(row.due_at), leased: row.leased };
        (row.message_id, pending)
    };
    let mut pending: HashMap<String, Pending> = rows.into_iter().map(pending).collect();
    let mut query = Query::new(pools);
    query
        .sql(
            "SELECT message_id, ended_at, result, status, error, response_headers, response_body FROM attempts \
             WHERE message_id ",
        )
        .one_of(ids)
        .sql(" ORDER BY message_id, retried");
    let mut attempts: HashMap<String, Vec<RunAttempt>> = HashMap::new();
    for row in query.fetch::<AttemptRow>(pools).await? {
        attempts.entry(row.message_id.clone()).or_default().push(row.into_attempt()?);
    }
    let mut found: Vec<RunMessage> = messages::get_many(pools, ids)
        .await?
        .into_iter()
        .map(|message| RunMessage {
            pending: pending.remove(message.id.as_str()),
            attempts: attempts.remove(message.id.as_str()).unwrap_or_default(),
            message,
        })
        .collect();
    found.sort_by(|a, b| a.message.id.cmp(&b.message.id));
    Ok(found)
}
