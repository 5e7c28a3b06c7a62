//! `GET /v2/events` and `GET /v2/logs`.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::query::{Query, invalid_cursor};
use super::{Api, PAGE_BYTES, json, wire};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{LogCursor, LogEntry, LogFilter, Order, State};

/// Which of the two lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Events,
    Logs,
}

const PARAMETERS: [&str; 10] =
    ["count", "cursor", "messageId", "messageIds", "state", "fromDate", "toDate", "order", "api", "trimBody"];

impl Api {
    pub(super) async fn list_log(&self, query: &str, form: Form) -> Result<Response, ApiError> {
        let query = Query::parse(query);
        query.only(&PARAMETERS)?;
        let max = if form == Form::Events { 1000 } else { 100 };
        let count = query.count(max, max)?;
        let filter = LogFilter {
            messages: [query.list("messageId"), query.list("messageIds")]
                .concat()
                .into_iter()
                .map(MessageId::new)
                .collect(),
            states: query.get("state").map(states).transpose()?.unwrap_or_default(),
            from: query.time("fromDate")?,
            to: query.time("toDate")?,
        };
        let cursor = query.get("cursor").map(read_cursor).transpose()?;
        let order = query.order(Order::LatestFirst)?;
        let trim = query.trim_body()?;
        let page = self.engine.store().log(&filter, order, cursor.as_ref(), count, PAGE_BYTES).await?;
        let entries: Vec<Value> = page.items.iter().map(|entry| wire::log_entry(entry, trim)).collect();
        let mut answer = Map::new();
        if let Some(last) = page.items.last().filter(|_| page.more) {
            answer.insert("cursor".to_owned(), write_cursor(last).into());
        }
        if form == Form::Logs {
            answer.insert("logs".to_owned(), entries.clone().into());
        }
        answer.insert("events".to_owned(), entries.into());
        json(StatusCode::OK, &answer)
    }
}

fn states(text: &str) -> Result<Vec<State>, ApiError> {
    if text.eq_ignore_ascii_case("IN_PROGRESS") {
        return Ok(vec![State::Active, State::Retry, State::Error]);
    }
    let text = if text.eq_ignore_ascii_case("CANCELLED") { "CANCELED" } else { text };
    wire::STATES
        .iter()
        .find(|(_, name)| name.eq_ignore_ascii_case(text))
        .map(|(state, _)| vec![*state])
        .ok_or_else(|| {
            let names: Vec<&str> = wire::STATES.iter().map(|(_, name)| *name).collect();
            ApiError::bad_request(format!(
                "invalid state `{text}`; allowed: {}, IN_PROGRESS",
                names.join(", ")
            ))
        })
}

/// `<unix ms>-<sequence>-<message id>`.
fn write_cursor(entry: &LogEntry) -> String {
    format!("{}-{}-{}", entry.time.as_millis(), entry.sequence, entry.message.id)
}

/// Reads a cursor, or a bare time.
fn read_cursor(text: &str) -> Result<LogCursor, ApiError> {
    let invalid = || invalid_cursor(text);
    let number = |text: &str| text.parse::<i64>().map_err(|_| invalid());
    let mut parts = text.splitn(3, '-');
    let time = Timestamp::from_millis(number(parts.next().unwrap_or_default())?);
    let entry = match (parts.next(), parts.next()) {
        (None, _) => None,
        (Some(sequence), Some(id)) => Some((MessageId::new(id), number(sequence)?)),
        (Some(_), None) => return Err(invalid()),
    };
    Ok(LogCursor { time, entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read() {
        let cursor = read_cursor("1686652644442-3-msg_a-b").unwrap();
        assert_eq!(cursor.time.as_millis(), 1_686_652_644_442);
        assert_eq!(cursor.entry, Some((MessageId::new("msg_a-b"), 3)));
        assert_eq!(read_cursor("1686652644442").unwrap().entry, None);
        for wrong in ["x", "", "1-2", "1-x-msg"] {
            assert!(read_cursor(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn states_are_read() {
        assert_eq!(states("CANCELLED").unwrap(), states("CANCELED").unwrap());
        assert_eq!(states("in_progress").unwrap().len(), 3);
        assert!(states("DONE").is_err());
    }
}
