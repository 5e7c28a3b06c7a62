//! `/v2/keys`: the signing keys.

use axum::response::Response;
use http::StatusCode;

use super::error::ApiError;
use super::routes::Call;
use super::{Api, json};
use crate::store::SigningKeyPair;

impl Api {
    pub(super) fn get_keys(&self) -> Result<Response, ApiError> {
        answer(&self.operations.signing_keys())
    }

    pub(super) async fn rotate_keys(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        answer(&self.operations.rotate_signing_keys().await?)
    }
}

fn answer(pair: &SigningKeyPair) -> Result<Response, ApiError> {
    json(StatusCode::OK, &serde_json::json!({ "current": pair.current, "next": pair.next }))
}
