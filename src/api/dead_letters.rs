//! `/v2/dlq`: the dead-letter queue, but for dead letters that have ended workflow runs, which `workflow_dead_letters` has.

use std::collections::HashSet;

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::answers::{Each, Page};
use super::body::Upload;
use super::error::ApiError;
use super::query::{Query, invalid_cursor};
use super::routes::Call;
use super::wire::Shown as _;
use super::{Api, PAGE_BYTES, answers, filter, headers};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::publish::Overrides;
use crate::domain::time::Timestamp;
use crate::operations::dead_letters::{Bulk, Matching};
use crate::store::{DeadLetterFilter, LetterPlace, Order, Owner};

/// Dead letters in one page of the list.
pub(super) const PAGE: usize = 100;
/// Dead letters that one call deletes or retries, unless it says how many; and at most.
const BULK: usize = 100;
const MAX_BULK: usize = 10_000;

/// Bytes of the answer for one that was retried.
const RETRIED: usize = 64;

/// Parameters that say which ones.
pub(super) const SELECTING: [&str; 3] = ["dlqIds", "messageId", "responseStatus"];
/// Accepted, and change nothing.
const IGNORED: [&str; 3] = ["api", "source", "trimBody"];

/// Which dead letters a call is about.
pub(super) enum Selection {
    /// Each once.
    Ids(Vec<DeadLetterId>),
    Matching(Box<Matching>),
}

/// The parameters with which a call selects dead letters, beside `dlqIds` and `count`.
pub(super) struct Selecting<'a> {
    /// The names of those that filter.
    pub(super) filters: &'a [&'static str],
    /// Refuses a parameter that the call does not have.
    pub(super) known: fn(&Query) -> Result<(), ApiError>,
    /// Reads the filters, the order, the cursor and the count: how many unless the query says so, and how many at most.
    pub(super) read_matching: fn(&Query, usize, usize) -> Result<Matching, ApiError>,
}

/// The answer for what has become of a dead letter.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Retried {
    message_id: String,
}

#[derive(Serialize)]
struct AllRetried {
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    responses: Vec<Retried>,
}

#[derive(Serialize)]
pub(super) struct Deleted {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<String>,
    pub(super) deleted: u64,
}

impl Api {
    pub(super) async fn list_dead_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        if query.get("source") == Some("workflow") {
            return self.list_run_letters(call).await;
        }
        known(&query)?;
        let which = read_matching(&query, PAGE, PAGE)?;
        let turn = self.answers.turn().await?;
        let page = self.operations.dead_letters(&which, PAGE_BYTES).await?;
        let page = Page { names: &["messages"], items: Each(page.items), cursor: write_cursor(page.next) };
        self.answers.list(StatusCode::OK, Some(turn), page).await
    }

    pub(super) async fn get_dead_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let letter = self.operations.dead_letter(&DeadLetterId::new(call.name)).await?;
        self.answers.json(StatusCode::OK, &letter.shown()).await
    }

    pub(super) async fn delete_dead_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.delete_dead_letter(&DeadLetterId::new(call.name)).await?;
        super::json(StatusCode::OK, &json!({ "deleted": 1 }))
    }

    /// Deletes the given ids, those that exist; or else what matches the filters, a part of it at a time.
    pub(super) async fn delete_dead_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        let Bulk { done: deleted, next } =
            match self.selection(query, call.trailing_slash, call.upload).await? {
                Selection::Ids(ids) => {
                    Bulk { done: self.operations.delete_dead_letters(&ids).await?, next: None }
                }
                Selection::Matching(which) => self.operations.delete_matching_dead_letters(&which).await?,
            };
        super::json(StatusCode::OK, &Deleted { cursor: write_cursor(next), deleted })
    }

    pub(super) async fn retry_dead_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let (query, params) = Query::parse_with_options(call.query);
        query.only(&[])?;
        let overrides = self.read_overrides(&call, &params)?;
        let ids = [DeadLetterId::new(call.name)];
        let retried = self.operations.retry_dead_letters(&ids, &overrides).await?;
        super::json(StatusCode::CREATED, &shown(retried).first())
    }

    /// Retries the given ids, all or none; or else what matches the filters, a part of it at a time.
    pub(super) async fn retry_dead_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let (query, params) = Query::parse_with_options(call.query);
        let overrides = self.read_overrides(&call, &params)?;
        self.operations.check_overrides(&overrides)?;
        let selection = self.selection(query, call.trailing_slash, call.upload).await?;
        let count = match &selection {
            Selection::Ids(ids) => ids.len(),
            Selection::Matching(which) => which.count,
        };
        // Before anything is retried: afterwards there must be an answer.
        let size = count.saturating_mul(RETRIED);
        let share = self.receipts.share(size).await?;
        let Bulk { done: retried, next } = match selection {
            Selection::Ids(ids) => {
                Bulk { done: self.operations.retry_dead_letters(&ids, &overrides).await?, next: None }
            }
            Selection::Matching(which) => {
                self.operations.retry_matching_dead_letters(*which, &overrides).await?
            }
        };
        let answer = AllRetried { cursor: write_cursor(next), responses: shown(retried) };
        answers::json(StatusCode::CREATED, &answer, size, share)
    }

    pub(super) fn read_overrides(
        &self,
        call: &Call<'_>,
        params: &[(String, Vec<u8>)],
    ) -> Result<Overrides, ApiError> {
        let limits = &self.settings.headers;
        Ok(headers::parse_overrides(call.fields(), params, limits, self.operations.now())?)
    }

    async fn selection(
        &self,
        query: Query,
        trailing_slash: bool,
        upload: &mut Upload,
    ) -> Result<Selection, ApiError> {
        let filters = &[&SELECTING[1..], &filter::COMMON].concat();
        self.read_selection(query, trailing_slash, upload, &Selecting { filters, known, read_matching }).await
    }

    /// Reads which dead letters, from the query and from a JSON body.
    pub(super) async fn read_selection(
        &self,
        mut query: Query,
        trailing_slash: bool,
        upload: &mut Upload,
        Selecting { filters, known, read_matching }: &Selecting<'_>,
    ) -> Result<Selection, ApiError> {
        let received = self.read_body(upload, self.settings.max_message, "the body").await?;
        query.add_body(&received.body, "dlqIds")?;
        known(&query)?;
        query.refuse_bare(trailing_slash, &[&["dlqIds", "count"], *filters].concat())?;
        filter::refuse_empty(&query, filters)?;
        if !query.has("dlqIds") {
            return Ok(Selection::Matching(Box::new(read_matching(&query, BULK, MAX_BULK)?)));
        }
        if let Some(name) = filters.iter().find(|name| query.has(name)) {
            return Err(ApiError::bad_request(format!("{name} can't be given beside dlqIds")));
        }
        let mut seen = HashSet::new();
        let ids = query.list("dlqIds").into_iter().filter(|text| seen.insert(*text));
        Ok(Selection::Ids(ids.map(DeadLetterId::new).collect()))
    }
}

fn shown(retried: Vec<MessageId>) -> Vec<Retried> {
    retried.into_iter().map(|id| Retried { message_id: id.as_str().to_owned() }).collect()
}

/// Refuses what is not known here.
fn known(query: &Query) -> Result<(), ApiError> {
    query.only(&[&SELECTING[..], &filter::COMMON, &["count", "cursor", "order"], &IGNORED].concat())
}

pub(super) fn read_matching(query: &Query, count: usize, max: usize) -> Result<Matching, ApiError> {
    Ok(Matching {
        filter: read_filter(query)?,
        order: query.order(Order::EarliestFirst)?,
        after: query.get("cursor").map(read_cursor).transpose()?,
        count: query.count(count, max)?,
    })
}

pub(super) fn read_filter(query: &Query) -> Result<DeadLetterFilter, ApiError> {
    let status = |text: &str| {
        text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "invalid responseStatus `{}`: a status is allowed, or 0 for none",
                Excerpt(text)
            ))
        })
    };
    Ok(DeadLetterFilter {
        owner: Owner::User,
        runs: None,
        messages: query.filter(&["messageId"])?.into_iter().map(MessageId::new).collect(),
        ids: query.filter(&["dlqIds"])?.into_iter().map(DeadLetterId::new).collect(),
        matching: filter::read(query)?,
        statuses: query.filter(&["responseStatus"])?.into_iter().map(status).collect::<Result<_, _>>()?,
        from: query.time("fromDate")?,
        to: query.time("toDate")?,
    })
}

/// A cursor is a dead letter's id, which begins with the time it was made.
fn read_cursor(text: &str) -> Result<LetterPlace, ApiError> {
    let ms = text.split('-').next().and_then(|ms| ms.parse().ok());
    let ms = ms.ok_or_else(|| invalid_cursor(text))?;
    Ok((Timestamp::from_millis(ms), DeadLetterId::new(text)))
}

pub(super) fn write_cursor(next: Option<LetterPlace>) -> Option<String> {
    next.map(|(_, id)| id.as_str().to_owned())
}
