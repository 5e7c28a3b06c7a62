//! `/v2/workflows/dlq`: dead letters that have ended workflow runs.

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::answers::{Each, Page};
use super::body::Upload;
use super::dead_letters::{self, PAGE, Selecting, Selection, write_cursor};
use super::error::ApiError;
use super::query::Query;
use super::routes::Call;
use super::wire::Shown as _;
use super::{Api, PAGE_BYTES, answers, workflow_log};
use crate::domain::filter::MessageFilter;
use crate::domain::id::DeadLetterId;
use crate::domain::run::again::From;
use crate::operations::dead_letters::{Bulk, Matching};
use crate::operations::run_letters::Begun;
use crate::store::runs::RunFilter;
use crate::store::{DeadLetterFilter, Order, Owner};

/// Bytes of the answer for one run that has begun.
const BEGUN: usize = 128;

/// Parameters that say which ones, beside `dlqIds`.
const SELECTING: [&str; 13] = [
    "messageId",
    "responseStatus",
    "url",
    "workflowUrl",
    "workflowRunId",
    "workflowCreatedAt",
    "failureFunctionState",
    "label",
    "flowControlKey",
    "callerIp",
    "callerIP",
    "fromDate",
    "toDate",
];
/// Accepted, and change nothing.
const IGNORED: [&str; 2] = ["source", "trimBody"];

/// A run that has begun.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BegunJson<'a> {
    workflow_run_id: &'a str,
    workflow_created_at: i64,
}

impl<'a> BegunJson<'a> {
    fn of(begun: &'a Begun) -> Self {
        Self { workflow_run_id: &begun.id, workflow_created_at: begun.created_at.as_millis() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AllBegun<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    workflow_runs: Vec<BegunJson<'a>>,
}

impl Api {
    pub(super) async fn list_run_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        known(&query)?;
        let which = read_matching(&query, PAGE, PAGE)?;
        let turn = self.answers.turn().await?;
        let page = self.operations.run_letters(&which, PAGE_BYTES).await?;
        let page = Page { names: &["messages"], items: Each(page.items), cursor: write_cursor(page.next) };
        self.answers.list(StatusCode::OK, Some(turn), page).await
    }

    pub(super) async fn get_run_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let letter = self.operations.run_letter(&DeadLetterId::new(call.name)).await?;
        self.answers.json(StatusCode::OK, &letter.shown()).await
    }

    pub(super) async fn delete_run_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.delete_run_letter(&DeadLetterId::new(call.name)).await?;
        super::json(StatusCode::OK, &json!({ "deleted": 1 }))
    }

    /// Deletes the given ids, those that exist; or else what matches the filters, a part of it at a time.
    pub(super) async fn delete_run_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        let which = match self.run_letter_selection(query, call.trailing_slash, call.upload).await? {
            Selection::Ids(ids) => {
                let filter = DeadLetterFilter { owner: Owner::Run, ids, ..DeadLetterFilter::default() };
                let count = filter.ids.len();
                Matching { filter, order: Order::EarliestFirst, after: None, count }
            }
            Selection::Matching(which) => *which,
        };
        let Bulk { done, next } = self.operations.delete_matching_dead_letters(&which).await?;
        super::json(StatusCode::OK, &dead_letters::Deleted { cursor: write_cursor(next), deleted: done })
    }

    pub(super) async fn resume_run(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.begin_run_again(call, From::Failure).await
    }

    pub(super) async fn restart_run(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.begin_run_again(call, From::Beginning).await
    }

    async fn begin_run_again(&self, call: Call<'_>, from: From) -> Result<Response, ApiError> {
        let (query, params) = Query::parse_with_options(call.query);
        query.only(&[])?;
        let overrides = self.read_overrides(&call, &params)?;
        self.operations.check_overrides(&overrides)?;
        let id = DeadLetterId::new(call.name);
        let begun = self.operations.begin_again(std::slice::from_ref(&id), from, &overrides).await?;
        match begun.first() {
            Some(begun) => super::json(StatusCode::OK, &BegunJson::of(begun)),
            None => Err(ApiError::not_found(format!("dead letter {id} is gone"))),
        }
    }

    pub(super) async fn resume_runs(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.begin_runs_again(call, From::Failure).await
    }

    pub(super) async fn restart_runs(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.begin_runs_again(call, From::Beginning).await
    }

    /// Begins runs in the places of the given dead letters, all of which there must be; or else of what matches the filters,
    /// a part of it at a time.
    async fn begin_runs_again(&self, call: Call<'_>, from: From) -> Result<Response, ApiError> {
        let (query, params) = Query::parse_with_options(call.query);
        let overrides = self.read_overrides(&call, &params)?;
        self.operations.check_overrides(&overrides)?;
        let selection = self.run_letter_selection(query, call.trailing_slash, call.upload).await?;
        let count = match &selection {
            Selection::Ids(ids) => ids.len(),
            Selection::Matching(which) => which.count,
        };
        // Before any run begins: afterwards there must be an answer.
        let size = count.saturating_mul(BEGUN);
        let share = self.receipts.share(size).await?;
        let Bulk { done, next } = match selection {
            Selection::Ids(ids) => {
                Bulk { done: self.operations.begin_again(&ids, from, &overrides).await?, next: None }
            }
            Selection::Matching(which) => {
                self.operations.begin_matching_again(*which, from, &overrides).await?
            }
        };
        let workflow_runs = done.iter().map(BegunJson::of).collect();
        let answer = AllBegun { cursor: write_cursor(next), workflow_runs };
        answers::json(StatusCode::OK, &answer, size, share)
    }

    pub(super) async fn call_failure_function(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let told = self.operations.tell_again(&DeadLetterId::new(call.name)).await?;
        super::json(StatusCode::OK, &BegunJson::of(&told))
    }

    pub(super) async fn cancel_failure_function(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let cancelled = self.operations.cancel_telling(&DeadLetterId::new(call.name)).await?;
        super::json(StatusCode::OK, &BegunJson::of(&cancelled))
    }

    async fn run_letter_selection(
        &self,
        query: Query,
        trailing_slash: bool,
        upload: &mut Upload,
    ) -> Result<Selection, ApiError> {
        let selecting = Selecting { filters: &SELECTING, known, read_matching };
        self.read_selection(query, trailing_slash, upload, &selecting).await
    }
}

/// Refuses what is not known here.
fn known(query: &Query) -> Result<(), ApiError> {
    query.only(&[&SELECTING[..], &["dlqIds", "count", "cursor", "order"], &IGNORED].concat())
}

fn read_matching(query: &Query, count: usize, max: usize) -> Result<Matching, ApiError> {
    let plain = dead_letters::read_matching(query, count, max)?;
    let runs = workflow_log::read_runs(query)?;
    let runs = RunFilter {
        told: workflow_log::read_told(query)?,
        // Of the dead letters, and not of the runs.
        from: query.time("workflowCreatedAt")?,
        to: query.time("workflowCreatedAt")?,
        ..runs
    };
    // Labels, keys and callers are the runs'.
    let matching = MessageFilter { urls: plain.filter.matching.urls.clone(), ..MessageFilter::default() };
    let filter = DeadLetterFilter { owner: Owner::Run, runs: Some(Box::new(runs)), matching, ..plain.filter };
    Ok(Matching { filter, ..plain })
}
