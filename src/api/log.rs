//! `GET /v2/events` and `GET /v2/logs`.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::answers::{Each, Page};
use super::error::ApiError;
use super::query::{Query, invalid_cursor};
use super::routes::Call;
use super::{Api, PAGE_BYTES, filter, wire};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{LogCursor, LogEntry, LogFilter, Order, State};

/// Which of the two lists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Events,
    Logs,
}

/// Bytes of headers and bodies in one page of entries. A dead letter's text may become six times as long in JSON; here it is base64.
const ENTRIES_BYTES: usize = 16 << 20;
/// Messages in one page, when the entries are grouped by their messages.
const GROUPS: usize = 10;
/// Entries of one message that a group shows.
const GROUP: usize = 1000;
/// Pages of entries that are looked at for one page of groups, and how long that may take.
const GROUP_LOOKS: usize = 20;
const GROUP_TIME: Duration = Duration::from_secs(2);

impl Api {
    pub(super) async fn list_events(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.list_log(call.query, Form::Events).await
    }

    pub(super) async fn list_logs(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.list_log(call.query, Form::Logs).await
    }

    async fn list_log(&self, query: &str, form: Form) -> Result<Response, ApiError> {
        let query = Query::parse(query);
        let others =
            ["messageId", "messageIds", "state", "order", "groupBy", "trimBody", "count", "cursor", "api"];
        query.only(&[&others[..], &filter::COMMON, &filter::PARTS].concat())?;
        let filter = LogFilter {
            messages: query.filter(&["messageId", "messageIds"])?.into_iter().map(MessageId::new).collect(),
            matching: filter::read(&query)?,
            states: query.get("state").map(states).transpose()?.unwrap_or_default(),
            from: query.time("fromDate")?,
            to: query.time("toDate")?,
        };
        let cursor = query.get("cursor").map(read_cursor).transpose()?;
        let order = query.order(Order::LatestFirst)?;
        let trim = query.trim_body()?;
        match query.get("groupBy") {
            None => {
                let max = if form == Form::Events { 1000 } else { 100 };
                let count = query.count(max, max)?;
                let turn = self.answers.turn().await?;
                let page =
                    self.engine.store().log(&filter, order, cursor.as_ref(), count, ENTRIES_BYTES).await?;
                let names: &[&str] = if form == Form::Logs { &["logs", "events"] } else { &["events"] };
                let cursor = page.next.as_ref().map(write_cursor);
                let page = Page { names, items: entries(page.items, trim), cursor };
                self.answers.list(StatusCode::OK, Some(turn), page).await
            }
            Some("messageId") => {
                let count = query.count(GROUPS, GROUPS)?;
                let turn = self.answers.turn().await?;
                let (groups, next) = self.log_groups(&filter, order, cursor, count).await?;
                let items = Each(groups, move |group: &Vec<LogEntry>| {
                    let events: Vec<_> = group.iter().map(|entry| wire::log_entry(entry, trim)).collect();
                    json!({ "messageId": group[0].message.id.as_str(), "events": events })
                });
                let page = Page { names: &["messages"], items, cursor: next.as_ref().map(write_cursor) };
                self.answers.list(StatusCode::OK, Some(turn), page).await
            }
            Some(other) => {
                let text = format!("invalid groupBy `{}`: messageId is allowed", Excerpt(other));
                Err(ApiError::bad_request(text))
            }
        }
    }

    /// The entries that match, by message, each message where its first entry is; and where to go on.
    async fn log_groups(
        &self,
        filter: &LogFilter,
        order: Order,
        mut cursor: Option<LogCursor>,
        count: usize,
    ) -> Result<(Vec<Vec<LogEntry>>, Option<LogCursor>), ApiError> {
        let store = self.engine.store();
        let started = Instant::now();
        let mut groups = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..GROUP_LOOKS {
            let page = store.log(filter, order, cursor.as_ref(), 100, PAGE_BYTES).await?;
            for entry in page.items {
                if seen.insert(entry.message.id.clone()) {
                    let only = LogFilter { messages: vec![entry.message.id.clone()], ..filter.clone() };
                    let story = store.log(&only, order, None, GROUP, PAGE_BYTES / GROUPS).await?.items;
                    // Otherwise an earlier page has shown it.
                    if story.first().is_some_and(|first| first.place() == entry.place()) {
                        if groups.len() == count {
                            return Ok((groups, cursor));
                        }
                        groups.push(story);
                    }
                }
                cursor = Some(entry.place());
            }
            cursor = page.next;
            if cursor.is_none() || started.elapsed() >= GROUP_TIME {
                break;
            }
        }
        Ok((groups, cursor))
    }
}

fn entries(entries: Vec<LogEntry>, trim: Option<usize>) -> impl Serialize + Send {
    Each(entries, move |entry: &LogEntry| wire::log_entry(entry, trim))
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
                "invalid state `{}`; allowed: {}, IN_PROGRESS",
                Excerpt(text),
                names.join(", ")
            ))
        })
}

/// `<unix ms>-<sequence>-<message id>`.
fn write_cursor(cursor: &LogCursor) -> String {
    let ms = cursor.time.as_millis();
    match &cursor.entry {
        Some((id, sequence)) => format!("{ms}-{sequence}-{id}"),
        None => ms.to_string(),
    }
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
        for text in ["1686652644442-3-msg_a-b", "1686652644442"] {
            assert_eq!(write_cursor(&read_cursor(text).unwrap()), text);
        }
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
