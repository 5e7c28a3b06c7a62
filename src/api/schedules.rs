//! `/v2/schedules`: creating, listing, pausing and deleting schedules.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::error::ApiError;
use super::headers::Kind;
use super::query::Query;
use super::routes::Call;
use super::wire::Shown as _;
use super::{Api, PIECE_BYTES};
use crate::domain::destination::{self, Destination};
use crate::domain::id::ScheduleId;
use crate::domain::publish::Publish;

/// Schedules that are read at once for the list of all.
const PIECE: usize = 100;

impl Api {
    /// Creates a schedule, or replaces the one whose id is given.
    pub(super) async fn create_schedule(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let parsed = destination::parse(&call.rest)?;
        let publish = self.read_headers(Kind::Schedule, &call, &parsed.params)?;
        if publish.cron.is_none() {
            return Err(ApiError::bad_request("the header Upstash-Cron is required"));
        }
        self.schedule(parsed.destination, publish, call).await
    }

    pub(super) async fn schedule(
        &self,
        destination: Destination,
        publish: Publish,
        call: Call<'_>,
    ) -> Result<Response, ApiError> {
        let draft = self.operations.draft_schedule(destination, publish).await?;
        let received = self.read_body(call.upload, self.settings.max_message, "the message").await?;
        let caller_ip = self.caller_ip(call.parts);
        let id = self.operations.create_schedule(draft, received.body.clone(), caller_ip).await?;
        super::json(StatusCode::OK, &json!({ "scheduleId": id.as_str() }))
    }

    pub(super) async fn list_schedules(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let part = Query::parse(call.query).part()?;
        let operations = Arc::clone(&self.operations);
        let page = move |after: Option<String>, count| {
            let operations = Arc::clone(&operations);
            async move {
                let after = after.map(ScheduleId::new);
                let page = operations.schedules(after.as_ref(), count, PIECE_BYTES).await?;
                let next = page.items.last().filter(|_| page.more);
                let next = next.map(|state| state.schedule.id.as_str().to_owned());
                Ok((page.items, next))
            }
        };
        self.answers.array(part, PIECE, page).await
    }

    pub(super) async fn get_schedule(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let schedule = self.operations.schedule(&ScheduleId::new(call.name)).await?;
        self.answers.json(StatusCode::OK, &schedule.shown()).await
    }

    pub(super) async fn delete_schedule(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.delete_schedule(&ScheduleId::new(call.name)).await?;
        super::json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn pause_schedule(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.pause_schedule(&ScheduleId::new(call.name)).await?;
        super::json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn resume_schedule(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.resume_schedule(&ScheduleId::new(call.name)).await?;
        super::json(StatusCode::OK, &json!({}))
    }
}
