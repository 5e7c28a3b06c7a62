//! `/v2/queues`.

use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::Each;
use super::error::{ApiError, json_problem};
use super::headers::read_name;
use super::routes::Call;
use super::{Api, json};
use crate::domain::excerpt::Excerpt;
use crate::domain::gate::queue_gate;
use crate::store::StoreError;
use crate::store::gates::Queue;

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
    pub(super) async fn list_queues(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        let queues = self.engine.store().queues().await?;
        self.answers.list(StatusCode::OK, None, Each(queues, shown)).await
    }

    pub(super) async fn get_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let name = &call.name;
        let queue = self.engine.store().queue(name).await?.ok_or_else(|| unknown(name))?;
        json(StatusCode::OK, &shown(&queue))
    }

    pub(super) async fn upsert_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let received = self.read_body(call.upload, self.settings.max_message, "the body").await?;
        let upsert: Upsert = serde_json::from_slice(&received.body).map_err(|error| {
            ApiError::bad_request(format!(
                "the body must be JSON like {{\"queueName\":\"q\",\"parallelism\":2,\"paused\":false}}: {}",
                json_problem(&error)
            ))
        })?;
        let name = check_name(&upsert.queue_name)?;
        let name = name.as_str();
        let parallelism = upsert.parallelism.map(|wanted| self.check_parallelism(wanted)).transpose()?;
        let (max, now) = (self.settings.max_queues, self.engine.now());
        let store = self.engine.store();
        if !store.upsert_queue(name, parallelism, upsert.paused, max, now).await? {
            return Err(StoreError::TooManyQueues(max.unwrap_or_default()).into());
        }
        self.engine.gate_changed(queue_gate(name));
        json(StatusCode::OK, &json!({}))
    }

    fn check_parallelism(&self, wanted: i64) -> Result<u32, ApiError> {
        let parallelism = u32::try_from(wanted).ok().filter(|_| (1..=MAX_PARALLELISM).contains(&wanted));
        let parallelism = parallelism.ok_or_else(|| {
            ApiError::bad_request(format!(
                "invalid parallelism {wanted}: an integer from 1 to {MAX_PARALLELISM} is allowed"
            ))
        })?;
        match self.settings.max_queue_parallelism {
            Some(limit) if parallelism > limit => Err(ApiError::quota("maxQueueParallelism", limit)),
            _ => Ok(parallelism),
        }
    }

    pub(super) async fn delete_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.engine.remove_queue(&call.name).await?;
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn pause_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.set_paused(&call.name, true).await
    }

    pub(super) async fn resume_queue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.set_paused(&call.name, false).await
    }

    async fn set_paused(&self, name: &str, paused: bool) -> Result<Response, ApiError> {
        if !self.engine.store().pause_queue(name, paused, self.engine.now()).await? {
            return Err(unknown(name));
        }
        self.engine.gate_changed(queue_gate(name));
        json(StatusCode::OK, &json!({}))
    }

    /// Checks that a message may go to a queue, which is made when it is missing. The store looks again when it makes one;
    /// what it refuses there has held up the others of its batch.
    pub(super) async fn check_queue(&self, name: &str) -> Result<(), ApiError> {
        match self.settings.max_queues {
            Some(max) if !self.engine.store().may_use_queue(name, max).await? => {
                Err(StoreError::TooManyQueues(max).into())
            }
            _ => Ok(()),
        }
    }
}

fn check_name(name: &str) -> Result<String, ApiError> {
    read_name(name).map_err(|problem| ApiError::bad_request(format!("invalid queueName: {problem}")))
}

fn shown(queue: &Queue) -> Value {
    json!({
        "name": queue.name,
        "parallelism": queue.parallelism,
        "createdAt": queue.created_at.as_millis(),
        "updatedAt": queue.updated_at.as_millis(),
        "paused": queue.paused,
        "lag": queue.lag,
    })
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!("queue {} not found", Excerpt(name)))
}
