//! `/v2/messages/{id}`.

use axum::response::Response;
use http::StatusCode;

use super::error::ApiError;
use super::{Api, json, wire};
use crate::domain::id::MessageId;
use crate::store::Cancellation;

impl Api {
    pub(super) async fn get_message(&self, id: &str) -> Result<Response, ApiError> {
        let message = self.engine.store().message(&MessageId::new(id)).await?;
        let message = message.ok_or_else(|| unknown(id))?;
        json(StatusCode::OK, &wire::message(&message))
    }

    pub(super) async fn cancel_message(&self, id: &str) -> Result<Response, ApiError> {
        match self.engine.cancel(&MessageId::new(id)).await? {
            Cancellation::NotFound => {
                Err(ApiError::not_found(format!("message {id} not found, or already finished")))
            }
            Cancellation::Cancelled | Cancellation::Requested => {
                json(StatusCode::OK, &serde_json::json!({ "cancelled": 1 }))
            }
        }
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("message {id} not found"))
}
