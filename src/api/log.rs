//! `GET /v2/events` and `GET /v2/logs`.

use axum::response::Response;
use http::StatusCode;

use super::answers::{Each, Page};
use super::error::ApiError;
use super::query::{Query, invalid_cursor};
use super::routes::Call;
use super::{Api, filter, wire};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{LogCursor, LogFilter, Order, Owner, State};

/// Bytes of headers and bodies in one page of entries. A dead letter's text may become six times as long in JSON; here it is base64.
const ENTRIES_BYTES: usize = 16 << 20;
/// Messages in one page, when the entries are grouped by their messages.
const GROUPS: usize = 10;

impl Api {
    pub(super) async fn list_events(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.list_log(call.query, &["events"], 1000).await
    }

    pub(super) async fn list_logs(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.list_log(call.query, &["logs", "events"], 100).await
    }

    /// A page of at most `max` entries, under each of the names; or of messages.
    async fn list_log(
        &self,
        query: &str,
        names: &'static [&'static str],
        max: usize,
    ) -> Result<Response, ApiError> {
        let query = Query::parse(query);
        let others =
            ["messageId", "messageIds", "state", "order", "groupBy", "trimBody", "count", "cursor", "api"];
        query.only(&[&others[..], &filter::COMMON, &filter::PARTS].concat())?;
        let filter = LogFilter {
            owner: Owner::User,
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
                let count = query.count(max, max)?;
                let turn = self.answers.turn().await?;
                let page = self.operations.log(&filter, order, cursor.as_ref(), count, ENTRIES_BYTES).await?;
                let items = Each(page.items.into_iter().map(|entry| (entry, trim)).collect());
                let page = Page { names, items, cursor: page.next.as_ref().map(write_cursor) };
                self.answers.list(StatusCode::OK, Some(turn), page).await
            }
            Some("messageId") => {
                let count = query.count(GROUPS, GROUPS)?;
                let turn = self.answers.turn().await?;
                let page = self.operations.log_groups(&filter, order, cursor, count).await?;
                let items = Each(page.groups.into_iter().map(|entries| (entries, trim)).collect());
                let page = Page { names: &["messages"], items, cursor: page.next.as_ref().map(write_cursor) };
                self.answers.list(StatusCode::OK, Some(turn), page).await
            }
            Some(other) => {
                let text = format!("invalid groupBy `{}`: messageId is allowed", Excerpt(other));
                Err(ApiError::bad_request(text))
            }
        }
    }
}

pub(super) fn states(text: &str) -> Result<Vec<State>, ApiError> {
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
pub(super) fn write_cursor(cursor: &LogCursor) -> String {
    let ms = cursor.time.as_millis();
    match &cursor.entry {
        Some((id, sequence)) => format!("{ms}-{sequence}-{id}"),
        None => ms.to_string(),
    }
}

/// Reads a cursor, or a bare time.
pub(super) fn read_cursor(text: &str) -> Result<LogCursor, ApiError> {
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
