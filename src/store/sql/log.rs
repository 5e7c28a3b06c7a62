//! The log. No row is written for it: its entries are derived from messages, attempts and cancellations.
//!
//! An entry stands at (time, message, sequence). The sequence tells a message's entries apart: CREATED is 0, attempt n
//! (from 0) has ACTIVE at 4n + 1, ERROR at 4n + 2 and what followed at 4n + 3; a cancellation comes last. Each kind is
//! read through an index on its time, the kinds are merged, and a page is cut from the merged entries.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{PgPool, SqlitePool};

use super::Backend;
use super::dead_letters::{fitting, response};
use super::messages;
use super::query::Query;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::store::{LogCursor, LogEntry, LogFilter, Order, Page, Result, State, StoreError};

/// Sequences of a cancellation's entries: behind any attempt's.
const CANCEL_REQUESTED: i64 = 1 << 40;
const CANCELLED: i64 = CANCEL_REQUESTED + 1;

/// One kind of entry: where it is read from.
struct Source {
    state: State,
    table: &'static str,
    message_id: &'static str,
    time: &'static str,
    sequence: &'static str,
    condition: &'static str,
}

const SOURCES: [Source; 9] = [
    Source {
        state: State::Created,
        table: "messages e",
        message_id: "e.id",
        time: "e.created_at",
        sequence: "0",
        condition: "1 = 1",
    },
    Source {
        state: State::Active,
        table: "attempts e",
        message_id: "e.message_id",
        time: "e.started_at",
        sequence: "4 * e.retried + 1",
        condition: "1 = 1",
    },
    // Attempts in flight have no row yet. They began when they were due, or a little later.
    Source {
        state: State::Active,
        table: "deliveries e",
        message_id: "e.message_id",
        time: "e.due_at",
        sequence: "4 * e.retried + 1",
        condition: "e.node <> 0",
    },
    Source {
        state: State::Error,
        table: "attempts e",
        message_id: "e.message_id",
        time: "e.ended_at",
        sequence: "4 * e.retried + 2",
        condition: "e.result <> 'delivered'",
    },
    Source {
        state: State::Retry,
        table: "attempts e",
        message_id: "e.message_id",
        time: "e.ended_at",
        sequence: "4 * e.retried + 3",
        condition: "e.result = 'retry'",
    },
    Source {
        state: State::Failed,
        table: "attempts e",
        message_id: "e.message_id",
        time: "e.ended_at",
        sequence: "4 * e.retried + 3",
        condition: "e.result = 'failed'",
    },
    Source {
        state: State::Delivered,
        table: "attempts e",
        message_id: "e.message_id",
        time: "e.ended_at",
        sequence: "4 * e.retried + 3",
        condition: "e.result = 'delivered'",
    },
    Source {
        state: State::CancelRequested,
        table: "cancellations e",
        message_id: "e.message_id",
        time: "e.requested_at",
        sequence: "1099511627776",
        condition: "1 = 1",
    },
    Source {
        state: State::Cancelled,
        table: "cancellations e",
        message_id: "e.message_id",
        time: "e.cancelled_at",
        sequence: "1099511627777",
        condition: "e.cancelled_at IS NOT NULL",
    },
];

#[derive(sqlx::FromRow)]
struct EntryRow {
    time: i64,
    message_id: String,
    sequence: i64,
    state: i64,
}

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

pub(super) async fn page(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &LogFilter,
    order: Order,
    cursor: Option<&LogCursor>,
    count: usize,
    max_bytes: usize,
) -> Result<Page<LogEntry>> {
    let rows = entries(pools, filter, order, cursor, count).await?;
    let sizes = sizes(pools, &rows).await?;
    let within =
        fitting(rows.iter().map(|row| sizes.get(&row.message_id).copied().unwrap_or(0)), count, max_bytes);
    let more = rows.len() > within;
    let items = details(pools, &rows[..within]).await?;
    Ok(Page { items, more })
}

/// The page's entries and one more, merged from all sources.
async fn entries(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &LogFilter,
    order: Order,
    cursor: Option<&LogCursor>,
    count: usize,
) -> Result<Vec<EntryRow>> {
    let limit = i64::try_from(count.saturating_add(1)).unwrap_or(i64::MAX);
    let mut query = Query::new(pools);
    let mut first = true;
    for (index, source) in SOURCES.iter().enumerate() {
        if !filter.states.is_empty() && !filter.states.contains(&source.state) {
            continue;
        }
        query.sql(if first { "SELECT * FROM (" } else { " UNION ALL SELECT * FROM (" });
        first = false;
        select(&mut query, index, source, filter, order, cursor);
        query.sql(" LIMIT ").number(limit).sql(") AS part").sql(&index.to_string());
    }
    if first {
        return Ok(Vec::new());
    }
    let mut rows: Vec<EntryRow> = query.fetch(pools).await?;
    rows.sort_by(|a, b| (a.time, &a.message_id, a.sequence).cmp(&(b.time, &b.message_id, b.sequence)));
    if order == Order::LatestFirst {
        rows.reverse();
    }
    rows.truncate(count.saturating_add(1));
    Ok(rows)
}

fn select(
    query: &mut Query,
    index: usize,
    source: &Source,
    filter: &LogFilter,
    order: Order,
    cursor: Option<&LogCursor>,
) {
    let Source { table, message_id, time, sequence, condition, .. } = source;
    query.sql(&format!(
        "SELECT {time} AS time, {message_id} AS message_id, CAST({sequence} AS BIGINT) AS sequence, \
         CAST({index} AS BIGINT) AS state \
         FROM {table} WHERE {condition}"
    ));
    let (strict, loose, direction) = match order {
        Order::LatestFirst => ("<", "<=", " DESC"),
        Order::EarliestFirst => (">", ">=", ""),
    };
    match cursor {
        None => {}
        Some(LogCursor { time: at, entry: None }) => {
            query.sql(&format!(" AND {time} {strict} ")).number(at.as_millis());
        }
        Some(LogCursor { time: at, entry: Some((id, after)) }) => {
            // The first condition is implied by the second; it is the one that an index serves.
            query.sql(&format!(" AND {time} {loose} ")).number(at.as_millis());
            query.sql(&format!(" AND ({time}, {message_id}, {sequence}) {strict} ("));
            query.number(at.as_millis()).sql(", ").text(id.as_str()).sql(", ").number(*after).sql(")");
        }
    }
    if let Some(from) = filter.from {
        query.sql(&format!(" AND {time} >= ")).number(from.as_millis());
    }
    if let Some(to) = filter.to {
        query.sql(&format!(" AND {time} <= ")).number(to.as_millis());
    }
    if source.state == State::Created {
        bound_ids(query, filter, order, cursor);
    }
    if !filter.messages.is_empty() {
        let ids: Vec<&str> = filter.messages.iter().map(MessageId::as_str).collect();
        query.sql(&format!(" AND {message_id} IN ")).list(&ids);
    }
    // A message's id is in the order of its creation, and it is the index that the messages have.
    query.sql(&if source.state == State::Created {
        format!(" ORDER BY {message_id}{direction}")
    } else {
        format!(" ORDER BY {time}{direction}, {message_id}{direction}, sequence{direction}")
    });
}

/// Messages have no index on the time of their creation but their ids, which begin with it: the conditions on the time
/// once more, as conditions on the id.
fn bound_ids(query: &mut Query, filter: &LogFilter, order: Order, cursor: Option<&LogCursor>) {
    let at = cursor.map(|cursor| cursor.time);
    let (from, to) = match order {
        Order::LatestFirst => (filter.from, at.into_iter().chain(filter.to).min()),
        Order::EarliestFirst => (at.into_iter().chain(filter.from).max(), filter.to),
    };
    if let Some(from) = from {
        query.sql(" AND e.id >= ").text(MessageId::earliest_at(from).as_str());
    }
    if let Some(to) = to {
        let next = Timestamp::from_millis(to.as_millis().saturating_add(1));
        query.sql(" AND e.id < ").text(MessageId::earliest_at(next).as_str());
    }
}

/// Bytes of the bodies that each message of the page brings, at its first entry.
async fn sizes(pools: &Backend<&PgPool, &SqlitePool>, rows: &[EntryRow]) -> Result<HashMap<String, i64>> {
    let mut query = Query::new(pools);
    query
        .sql("SELECT m.id, CAST(LENGTH(m.body) + COALESCE((SELECT SUM(LENGTH(a.response_body)) FROM attempts a \
              WHERE a.message_id = m.id), 0) AS BIGINT) AS size FROM messages m WHERE m.id IN ")
        .list(&distinct(rows));
    let mut sizes = HashMap::new();
    for row in query.fetch::<SizeRow>(pools).await? {
        sizes.insert(row.id, row.size);
    }
    Ok(sizes)
}

/// The attempts that the entries are about, as `<message id> <number>`.
fn attempts_of(rows: &[EntryRow]) -> Vec<String> {
    let mut attempts: Vec<String> = rows
        .iter()
        .filter(|row| row.sequence > 0 && row.sequence < CANCEL_REQUESTED)
        .map(|row| format!("{} {}", row.message_id, row.sequence / 4))
        .collect();
    attempts.sort_unstable();
    attempts.dedup();
    attempts
}

fn distinct(rows: &[EntryRow]) -> Vec<&str> {
    let mut ids: Vec<&str> = rows.iter().map(|row| row.message_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The entries with their messages and answers. One whose message has been removed meanwhile is left out.
async fn details(pools: &Backend<&PgPool, &SqlitePool>, rows: &[EntryRow]) -> Result<Vec<LogEntry>> {
    let ids = distinct(rows);
    let messages: HashMap<String, Arc<Message>> = messages::get_many(pools, &ids)
        .await?
        .into_iter()
        .map(|message| (message.id.as_str().to_owned(), Arc::new(message)))
        .collect();
    let mut query = Query::new(pools);
    query
        .sql("SELECT message_id, retried, status, error, next_due_at, response_headers, response_body FROM attempts WHERE message_id IN ")
        .list(&ids);
    // Only the attempts that the page shows: a message may have many, with large answers.
    let shown = attempts_of(rows);
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    query.sql(" AND message_id || ' ' || CAST(retried AS TEXT) IN ").list(&shown);
    let mut attempts = HashMap::new();
    for row in query.fetch::<AttemptRow>(pools).await? {
        attempts.insert((row.message_id.clone(), row.retried), row);
    }
    rows.iter()
        .filter_map(|row| {
            let message = messages.get(&row.message_id)?;
            Some(entry(row, message, &attempts))
        })
        .collect()
}

fn entry(
    row: &EntryRow,
    message: &Arc<Message>,
    attempts: &HashMap<(String, i64), AttemptRow>,
) -> Result<LogEntry> {
    let state = usize::try_from(row.state)
        .ok()
        .and_then(|index| SOURCES.get(index))
        .map(|source| source.state)
        .ok_or_else(|| StoreError::Corrupt { table: "log", column: "state", id: row.message_id.clone() })?;
    let mut entry = LogEntry {
        time: Timestamp::from_millis(row.time),
        message: Arc::clone(message),
        state,
        sequence: row.sequence,
        next_due_at: None,
        error: None,
        response: None,
    };
    if state == State::Created && message.due_at > message.created_at {
        entry.next_due_at = Some(message.due_at);
    }
    let ended = matches!(state, State::Error | State::Retry | State::Failed | State::Delivered);
    if let Some(attempt) = attempts.get(&(row.message_id.clone(), row.sequence / 4)).filter(|_| ended) {
        if state == State::Retry {
            entry.next_due_at = attempt.next_due_at.map(Timestamp::from_millis);
        } else {
            entry.error.clone_from(&attempt.error);
            entry.response = response(
                attempt.status,
                attempt.response_headers.as_deref(),
                attempt.response_body.clone(),
                &row.message_id,
            )?;
        }
    }
    Ok(entry)
}

const _: () = assert!(CANCEL_REQUESTED == 1_099_511_627_776 && CANCELLED == 1_099_511_627_777);
