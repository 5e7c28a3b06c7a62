//! `/v2/queues`.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::error::{ApiError, json_problem};
use super::query::Query;
use super::routes::Call;
use super::wire::Shown as _;
use super::{Api, LISTED, json};
use crate::domain::id::Name;

/// Higher numbers don't fit into what SDKs read them into.
const MAX_PARALLELISM: i64 = i32::MAX as i64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Upsert {
    queue_name: String,
    parallelism: Option<i64>,
    paused: Option<bool>,
}

impl Api {
    pub(super) async fn list_queues(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let part = Query::parse(call.query).part()?;
        let operations = Arc::clone(&self.operations);
        let page = move |after: Option<String>, count| {
            let operations = Arc::clone(&operations);
            async move {
                let page = operations.queues(after.as_deref(), count).await?;
                let next = page.items.last().filter(|_| page.more).map(|queue| queue.name.clone());
                Ok((page.items, next))
            }
        };
        self.answers.array(part, LISTED, page).await
    }

    pub(super) async fn get_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let queue = self.operations.queue(&call.name).await?;
        json(StatusCode::OK, &queue.shown())
    }

    pub(super) async fn upsert_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let received = self.read_body(call.upload, self.settings.max_message, "the body").await?;
        let upsert: Upsert = serde_json::from_slice(&received.body).map_err(|error| {
            ApiError::bad_request(format!(
                "the body must be JSON like {{\"queueName\":\"q\",\"parallelism\":2,\"paused\":false}}: {}",
                json_problem(&error)
            ))
        })?;
        let name = Name::read(&upsert.queue_name)
            .map_err(|problem| ApiError::bad_request(format!("invalid queueName: {problem}")))?;
        let parallelism = upsert.parallelism.map(read_parallelism).transpose()?;
        self.operations.upsert_queue(&name, parallelism, upsert.paused).await?;
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn delete_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.remove_queue(&call.name).await?;
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn pause_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.pause_queue(&call.name).await?;
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn resume_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.resume_queue(&call.name).await?;
        json(StatusCode::OK, &json!({}))
    }
}

fn read_parallelism(wanted: i64) -> Result<NonZeroU32, ApiError> {
    let parallelism = u32::try_from(wanted).ok().filter(|_| wanted <= MAX_PARALLELISM);
    parallelism.and_then(NonZeroU32::new).ok_or_else(|| {
        ApiError::bad_request(format!(
            "invalid parallelism {wanted}: an integer from 1 to {MAX_PARALLELISM} is allowed"
        ))
    })
}
