//! `/homing/v1`: operations of our own, beyond QStash's.

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::error::ApiError;
use super::query::Query;
use super::routes::Call;
use super::{Api, dead_letters, filter, json, messages, wire};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::operations::counts::Count;
use crate::operations::explain::{Explanation, Phase, Reason};

/// How many there are.
#[derive(Serialize)]
struct Counted {
    count: u64,
    /// Whether these are all; else there are at least so many.
    exact: bool,
}

impl From<Count> for Counted {
    fn from(Count { count, exact }: Count) -> Self {
        Self { count, exact }
    }
}

/// Where a message stands, and why.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplanationJson<'a> {
    message_id: &'a str,
    time: i64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<i64>,
    reasons: Vec<ReasonJson<'a>>,
}

/// A reason: its kind, its details, and all of it in words.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct ReasonJson<'a> {
    reason: &'static str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_control_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    /// In Unix milliseconds, as `since`.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallelism: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    period: Option<u32>,
    /// Messages that hold the slots of a queue, or the first one in front.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    message_ids: Vec<&'a str>,
    /// How many are in front.
    #[serde(skip_serializing_if = "Option::is_none")]
    ahead: Option<usize>,
}

impl<'a> From<&'a Reason> for ReasonJson<'a> {
    fn from(reason: &'a Reason) -> Self {
        let ms = |time: &Timestamp| Some(time.as_millis());
        let json = Self { text: reason.to_string(), ..Self::default() };
        match reason {
            Reason::Delayed { until } => Self { reason: "DELAYED", until: ms(until), ..json },
            Reason::Backoff { until } => Self { reason: "BACKOFF", until: ms(until), ..json },
            Reason::Retried { attempts, status, error } => Self {
                reason: "RETRIED",
                attempts: Some(*attempts),
                response_status: *status,
                error: error.as_deref(),
                ..json
            },
            Reason::CancelRequested => Self { reason: "CANCEL_REQUESTED", ..json },
            Reason::Attempted => Self { reason: "ATTEMPTED", ..json },
            Reason::ElsewhereHeld { node } => {
                Self { reason: "ELSEWHERE_HELD", node: node.as_deref(), ..json }
            }
            Reason::NoRoom { most, .. } => {
                Self { reason: "NO_ROOM", parallelism: Some(*most as u64), ..json }
            }
            Reason::Due { since } => Self { reason: "DUE", since: ms(since), ..json },
            Reason::QueuePaused { queue } => Self { reason: "QUEUE_PAUSED", queue_name: Some(queue), ..json },
            Reason::QueueFull { queue, parallelism, holders } => Self {
                reason: "QUEUE_FULL",
                queue_name: Some(queue),
                parallelism: Some((*parallelism).into()),
                message_ids: holders.iter().map(MessageId::as_str).collect(),
                ..json
            },
            Reason::Behind { queue, messages, first } => Self {
                reason: "BEHIND",
                queue_name: Some(queue),
                ahead: Some(*messages),
                message_ids: vec![first.as_str()],
                ..json
            },
            Reason::KeyPaused { key } => Self { reason: "KEY_PAUSED", flow_control_key: Some(key), ..json },
            Reason::KeyFull { key, parallelism } => Self {
                reason: "KEY_FULL",
                flow_control_key: Some(key),
                parallelism: Some((*parallelism).into()),
                ..json
            },
            Reason::KeyRate { key, rate, period_s, until } => Self {
                reason: "KEY_RATE",
                flow_control_key: Some(key),
                rate: Some(*rate),
                period: Some(*period_s),
                until: ms(until),
                ..json
            },
        }
    }
}

impl Api {
    pub(super) async fn explain_message(&self, call: Call<'_>) -> Result<Response, ApiError> {
        Query::parse(call.query).only(&[])?;
        let Explanation { id, now, phase, due_at, reasons } =
            self.operations.explain(&MessageId::new(call.name)).await?;
        let answer = ExplanationJson {
            message_id: id.as_str(),
            time: now.as_millis(),
            state: match phase {
                Phase::Waiting => "WAITING",
                Phase::InFlight => "IN_FLIGHT",
                Phase::Finished(state) => wire::state_name(state),
            },
            due_at: due_at.map(Timestamp::as_millis),
            reasons: reasons.iter().map(ReasonJson::from).collect(),
        };
        self.answers.json(StatusCode::OK, &answer).await
    }

    /// Counts what `DELETE /v2/messages` would cancel with the same filters.
    pub(super) async fn count_messages(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&[&filter::COMMON[..], &filter::PARTS].concat())?;
        let count = self.operations.count_unfinished(&messages::read_filter(&query)?).await?;
        json(StatusCode::OK, &Counted::from(count))
    }

    /// Counts what `DELETE /v2/dlq` and `POST /v2/dlq/retry` would come to with the same filters.
    pub(super) async fn count_dead_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&[&dead_letters::SELECTING[..], &filter::COMMON].concat())?;
        let count = self.operations.count_dead_letters(&dead_letters::read_filter(&query)?).await?;
        json(StatusCode::OK, &Counted::from(count))
    }
}
