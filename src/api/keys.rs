//! `/v2/keys`: the signing keys.

use axum::response::Response;
use http::StatusCode;

use super::error::ApiError;
use super::routes::Call;
use super::{Api, json};
use crate::engine::keys;
use crate::store::SigningKeyPair;

impl Api {
    pub(super) async fn get_keys(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        answer(&self.engine.keys().pair())
    }

    pub(super) async fn rotate_keys(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        let fresh = keys::fresh();
        let rotation = self.engine.store().rotate_signing_keys(&fresh, self.engine.now());
        let pair = self.engine.keys().follow(rotation).await?;
        tracing::warn!("the signing keys were rotated: receivers must learn of the new next key");
        answer(&pair)
    }
}

fn answer(pair: &SigningKeyPair) -> Result<Response, ApiError> {
    json(StatusCode::OK, &serde_json::json!({ "current": pair.current, "next": pair.next }))
}
