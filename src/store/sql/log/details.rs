//! The contents of a page of the log: messages and the answers to their attempts.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{PgPool, SqlitePool};

use super::{CANCEL_REQUESTED, FoundEntry};
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::store::sql::dead_letters::response;
use crate::store::sql::query::Query;
use crate::store::sql::{Backend, messages};
use crate::store::{LogEntry, Result, State};

#[derive(sqlx::FromRow)]
struct SizeRow {
    id: String,
    size: i64,
}

#[derive(sqlx::FromRow)]
struct AttemptRow {
    message_id: String,
    retried: i64,
    status: i64,
    error: Option<String>,
    next_due_at: Option<i64>,
    response_headers: Option<String>,
    response_body: Option<Vec<u8>>,
}

/// Bytes of the bodies and headers that each message of these entries has, its answers included.
pub(super) async fn sizes(
    pools: &Backend<&PgPool, &SqlitePool>,
    entries: &[FoundEntry],
) -> Result<HashMap<String, i64>> {
    let mut query = Query::new(pools);
    query
        .sql("SELECT m.id, CAST(LENGTH(m.body) + COALESCE(OCTET_LENGTH(m.headers), 0) + COALESCE(( \
                  SELECT SUM(COALESCE(LENGTH(a.response_body), 0) + COALESCE(OCTET_LENGTH(a.response_headers), 0)) \
                  FROM attempts a WHERE a.message_id = m.id), 0) AS BIGINT) AS size \
              FROM messages m WHERE m.id ")
        .one_of(&distinct(entries));
    let mut sizes = HashMap::new();
    for row in query.fetch::<SizeRow>(pools).await? {
        sizes.insert(row.id, row.size);
    }
    Ok(sizes)
}

/// The attempts that the entries are about, as `<message id> <number>`.
fn attempts_of(entries: &[FoundEntry]) -> Vec<String> {
    let mut attempts: Vec<String> = entries
        .iter()
        .map(|entry| &entry.place)
        .filter(|place| place.sequence > 0 && place.sequence < CANCEL_REQUESTED)
        .map(|place| format!("{} {}", place.message_id, place.sequence / 4))
        .collect();
    attempts.sort_unstable();
    attempts.dedup();
    attempts
}

pub(super) fn distinct(entries: &[FoundEntry]) -> Vec<&str> {
    let mut ids: Vec<&str> = entries.iter().map(|entry| entry.place.message_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The entries with their messages and answers. One whose message has been removed meanwhile is left out.
pub(super) async fn details(
    pools: &Backend<&PgPool, &SqlitePool>,
    entries: &[FoundEntry],
) -> Result<Vec<LogEntry>> {
    let ids = distinct(entries);
    let messages: HashMap<String, Arc<Message>> = messages::get_many(pools, &ids)
        .await?
        .into_iter()
        .map(|message| (message.id.as_str().to_owned(), Arc::new(message)))
        .collect();
    let mut query = Query::new(pools);
    query
        .sql("SELECT message_id, retried, status, error, next_due_at, response_headers, response_body FROM attempts WHERE message_id ")
        .one_of(&ids);
    // Only the attempts that the page shows: a message may have many, with large answers.
    let shown = attempts_of(entries);
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    query.sql(" AND message_id || ' ' || CAST(retried AS TEXT) ").one_of(&shown);
    let mut attempts = HashMap::new();
    for row in query.fetch::<AttemptRow>(pools).await? {
        attempts.insert((row.message_id.clone(), row.retried), row);
    }
    entries
        .iter()
        .filter_map(|entry| {
            let message = messages.get(&entry.place.message_id)?;
            Some(log_entry(entry, message, &attempts))
        })
        .collect()
}

fn log_entry(
    FoundEntry { place, state, .. }: &FoundEntry,
    message: &Arc<Message>,
    attempts: &HashMap<(String, i64), AttemptRow>,
) -> Result<LogEntry> {
    let state = *state;
    let mut entry = LogEntry {
        time: Timestamp::from_millis(place.time),
        message: Arc::clone(message),
        state,
        sequence: place.sequence,
        next_due_at: None,
        error: None,
        response: None,
    };
    if state == State::Created && message.due_at > message.created_at {
        entry.next_due_at = Some(message.due_at);
    }
    let ended = matches!(state, State::Error | State::Retry | State::Failed | State::Delivered);
    if let Some(attempt) = attempts.get(&(place.message_id.clone(), place.sequence / 4)).filter(|_| ended) {
        if state == State::Retry {
            entry.next_due_at = attempt.next_due_at.map(Timestamp::from_millis);
        } else {
            entry.error.clone_from(&attempt.error);
            entry.response = response(
                attempt.status,
                attempt.response_headers.as_deref(),
                attempt.response_body.clone(),
                &place.message_id,
            )?;
        }
    }
    Ok(entry)
}
