//! `/v2/workflows/logs`, `/v2/workflows/events` and `/v2/workflows/messageLogs`: what has become of runs.

use axum::response::Response;
use http::StatusCode;

use super::answers::{Each, Page};
use super::error::ApiError;
use super::query::{Query, invalid_cursor};
use super::routes::Call;
use super::{Api, filter, log};
use crate::domain::excerpt::Excerpt;
use crate::domain::filter::MessageFilter;
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::outcome::LOGGED_BODY;
use crate::domain::run::{RunState, Told};
use crate::domain::time::Timestamp;
use crate::operations::stories::WhichRuns;
use crate::store::runs::{RunFilter, RunPlace};
use crate::store::{LogFilter, Owner};

/// Runs in one page, unless it says how many; and at most.
const RUNS: usize = 10;
const MAX_RUNS: usize = 100;
/// Entries in one page of the log of messages, and bytes of their headers and bodies.
const EVENTS: usize = 1000;
const EVENTS_BYTES: usize = 16 << 20;

/// Parameters that say which runs.
const SELECTING: [&str; 9] = [
    "workflowUrl",
    "workflowRunId",
    "workflowCreatedAt",
    "workflowRuns",
    "label",
    "flowControlKey",
    "callerIp",
    "fromDate",
    "toDate",
];

impl Api {
    /// `GET /v2/workflows/logs`: runs with their steps.
    pub(super) async fn list_workflow_logs(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(
            &[
                &SELECTING[..],
                &filter::PARTS,
                &["state", "messageId", "groupBy", "trimBody", "count", "cursor"],
            ]
            .concat(),
        )?;
        if let Some(other) = query.get("groupBy").filter(|by| *by != "workflowRunId") {
            let text = format!("invalid groupBy `{}`: workflowRunId is allowed", Excerpt(other));
            return Err(ApiError::bad_request(text));
        }
        let which = WhichRuns {
            filter: RunFilter { states: states(&query)?, ..read_runs(&query)? },
            urls: MessageFilter {
                hosts: filter::hosts(&query)?,
                paths: filter::paths(&query)?,
                ..MessageFilter::default()
            },
            messages: query.filter(&["messageId"])?.into_iter().map(MessageId::new).collect(),
        };
        let after = query.get("cursor").map(read_cursor).transpose()?;
        let count = query.count(RUNS, MAX_RUNS)?;
        let max_text = query.trim_body()?.unwrap_or(LOGGED_BODY);
        let turn = self.answers.turn().await?;
        let page = self.operations.told_runs(which, after, count, max_text).await?;
        let page =
            Page { names: &["runs"], items: Each(page.runs), cursor: page.next.as_ref().map(write_cursor) };
        self.answers.list(StatusCode::OK, Some(turn), page).await
    }

    /// `GET /v2/workflows/events`: grouped by runs, the runs with their steps; else what happened to their messages.
    pub(super) async fn list_workflow_events(&self, call: Call<'_>) -> Result<Response, ApiError> {
        if Query::parse(call.query).has("groupBy") {
            return self.list_workflow_logs(call).await;
        }
        self.list_workflow_messages(call).await
    }

    /// `GET /v2/workflows/messageLogs`: what happened to the messages of runs.
    pub(super) async fn list_workflow_messages(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&[&SELECTING[..], &["state", "messageId", "trimBody", "count", "cursor"]].concat())?;
        let mut runs = read_runs(&query)?;
        let entries = LogFilter {
            owner: Owner::Run,
            messages: query.filter(&["messageId"])?.into_iter().map(MessageId::new).collect(),
            matching: MessageFilter::default(),
            states: query.get("state").map(log::states).transpose()?.unwrap_or_default(),
            // Of the entries, and not of the runs.
            from: runs.from.take(),
            to: runs.to.take(),
        };
        let cursor = query.get("cursor").map(log::read_cursor).transpose()?;
        let (count, trim) = (query.count(EVENTS, EVENTS)?, query.trim_body()?);
        let turn = self.answers.turn().await?;
        let page = self.operations.run_events(&entries, &runs, cursor, count, EVENTS_BYTES).await?;
        let items = Each(page.items.into_iter().map(|event| (event, trim)).collect());
        let page = Page { names: &["events"], items, cursor: page.next.as_ref().map(log::write_cursor) };
        self.answers.list(StatusCode::OK, Some(turn), page).await
    }
}

/// Reads which runs are meant, as the log and the dead letters name them.
pub(super) fn read_runs(query: &Query) -> Result<RunFilter, ApiError> {
    query.filter(&["workflowUrl"])?;
    query.filter(&["flowControlKey"])?;
    let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect::<Vec<String>>();
    let pairs = query.filter(&["workflowRuns"])?.into_iter().map(read_pair).collect::<Result<Vec<_>, _>>()?;
    let ids = owned(query.filter(&["workflowRunId"])?);
    let created_at = query.time("workflowCreatedAt")?;
    Ok(RunFilter {
        ids,
        begun: pairs,
        urls: query.texts("workflowUrl"),
        labels: owned(query.filter(&["label"])?),
        flow_keys: query.texts("flowControlKey"),
        caller_ips: owned(query.filter(&["callerIp"])?),
        from: created_at.or(query.time("fromDate")?),
        to: created_at.or(query.time("toDate")?),
        ..RunFilter::default()
    })
}

/// Reads `<run id>@<when it began, in Unix milliseconds>`.
fn read_pair(text: &str) -> Result<(String, Timestamp), ApiError> {
    let pair = text.rsplit_once('@').and_then(|(id, ms)| Some((id.to_owned(), ms.parse().ok()?)));
    let (id, ms) = pair.ok_or_else(|| {
        let text = Excerpt(text);
        ApiError::bad_request(format!(
            "invalid workflowRuns `{text}`: <run id>@<Unix milliseconds> is allowed"
        ))
    })?;
    Ok((id, Timestamp::from_millis(ms)))
}

fn states(query: &Query) -> Result<Vec<RunState>, ApiError> {
    let read = |text: &str| {
        RunState::parse(text).ok_or_else(|| {
            ApiError::bad_request(format!(
                "invalid state `{}`; allowed: RUN_STARTED, RUN_SUCCESS, RUN_FAILED, RUN_CANCELED",
                Excerpt(text)
            ))
        })
    };
    query.filter(&["state"])?.into_iter().map(read).collect()
}

/// States of telling of a failure, and their names on the wire. Where there is nobody to tell, there is no state.
pub(super) const TOLD: [(Option<Told>, &str); 4] = [
    (None, "CALLBACK_INPROGRESS"),
    (Some(Told::Done), "CALLBACK_SUCCESS"),
    (Some(Told::Failed), "CALLBACK_FAIL"),
    (Some(Told::Cancelled), "CALLBACK_CANCELED"),
];

/// Reads `failureFunctionState`.
pub(super) fn read_told(query: &Query) -> Result<Vec<Option<Told>>, ApiError> {
    let read = |text: &str| {
        let found = TOLD.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
        found.map(|(told, _)| *told).ok_or_else(|| {
            let names: Vec<&str> = TOLD.iter().map(|(_, name)| *name).collect();
            ApiError::bad_request(format!(
                "invalid failureFunctionState `{}`; allowed: {}",
                Excerpt(text),
                names.join(", ")
            ))
        })
    };
    query.filter(&["failureFunctionState"])?.into_iter().map(read).collect()
}

/// `<unix ms>-<instance>`.
fn write_cursor((time, instance): &RunPlace) -> String {
    format!("{}-{instance}", time.as_millis())
}

fn read_cursor(text: &str) -> Result<RunPlace, ApiError> {
    let parts = text.split_once('-').and_then(|(ms, instance)| Some((ms.parse().ok()?, instance)));
    let (ms, instance) = parts.ok_or_else(|| invalid_cursor(text))?;
    Ok((Timestamp::from_millis(ms), InstanceId::new(instance)))
}

/// Reads which runs are to be cancelled; `exact`: the URL is the whole one, not the beginning.
pub(super) fn read_filter(query: &Query, exact: bool) -> Result<RunFilter, ApiError> {
    let mut filter = read_runs(query)?;
    if let ([prefix], false) = (&filter.urls[..], exact) {
        filter.url_prefix = Some(prefix.clone());
        filter.urls.clear();
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read() {
        let cursor = read_cursor("1686652644442-msg_a-b").unwrap();
        assert_eq!(cursor, (Timestamp::from_millis(1_686_652_644_442), InstanceId::new("msg_a-b")));
        assert_eq!(write_cursor(&cursor), "1686652644442-msg_a-b");
        for wrong in ["", "x-msg", "1"] {
            assert!(read_cursor(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn runs_are_named_with_their_beginning() {
        let (id, at) = read_pair("wfr_a@b@12").unwrap();
        assert_eq!((id.as_str(), at.as_millis()), ("wfr_a@b", 12));
        for wrong in ["wfr_a", "wfr_a@", "wfr_a@x"] {
            assert!(read_pair(wrong).is_err(), "{wrong}");
        }
    }
}
