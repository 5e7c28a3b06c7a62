//! `/v2/messages`: reading and cancelling.

use std::collections::HashSet;

use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::error::ApiError;
use super::query::Query;
use super::routes::Call;
use super::{Api, filter, json, wire};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::MessageId;
use crate::store::UnfinishedFilter;

/// Messages that one call cancels at most, when it says how many.
const MAX_COUNT: usize = 500;

impl Api {
    pub(super) async fn get_message(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let message = self.operations.message(&MessageId::new(call.name)).await?;
        self.answers.json(StatusCode::OK, &wire::message(&message)).await
    }

    pub(super) async fn cancel_message(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.cancel(&MessageId::new(call.name)).await?;
        json(StatusCode::OK, &json!({ "cancelled": 1 }))
    }

    /// Cancels the given ids; or else what matches the filters, without any all there is. Both are taken from the query
    /// and from a JSON body.
    pub(super) async fn cancel_messages(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let mut query = Query::parse(call.query);
        let received = self.read_body(call.upload, self.settings.max_message, "the body").await?;
        query.add_body(&received.body, "messageIds")?;
        let known = [&["messageIds", "count"], &filter::COMMON[..], &filter::PARTS].concat();
        query.only(&known)?;
        query.refuse_bare(call.trailing_slash, &known)?;
        let limit = count(&query)?.unwrap_or(usize::MAX);
        let cancelled = if query.has("messageIds") {
            let mut seen = HashSet::new();
            let texts = query.list("messageIds").into_iter().filter(|text| seen.insert(*text));
            let ids: Vec<MessageId> = texts.map(MessageId::new).collect();
            self.operations.cancel_each(&ids, limit).await?
        } else {
            filter::refuse_empty(&query, &known)?;
            self.operations.cancel_matching(&read_filter(&query)?, limit).await?
        };
        json(StatusCode::OK, &json!({ "cancelled": cancelled }))
    }
}

pub(super) fn read_filter(query: &Query) -> Result<UnfinishedFilter, ApiError> {
    Ok(UnfinishedFilter {
        matching: filter::read(query)?,
        from: query.time("fromDate")?,
        to: query.time("toDate")?,
    })
}

/// How many to cancel; `None`: all.
fn count(query: &Query) -> Result<Option<usize>, ApiError> {
    let read = |text: &str| match text.parse() {
        Ok(count) if (1..=MAX_COUNT).contains(&count) => Ok(count),
        _ => Err(ApiError::bad_request(format!(
            "invalid count `{}`: allowed are 1 to {MAX_COUNT}; without it, all are cancelled",
            Excerpt(text)
        ))),
    };
    query.get("count").map(read).transpose()
}
