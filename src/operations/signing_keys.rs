//! The signing keys.

use super::{Operations, Result};
use crate::engine::keys;
use crate::store::SigningKeyPair;

impl Operations {
    pub fn signing_keys(&self) -> SigningKeyPair {
        self.engine.keys().pair()
    }

    /// Makes the next key current, and a new one next; the new pair, which signs from now on.
    pub async fn rotate_signing_keys(&self) -> Result<SigningKeyPair> {
        let fresh = keys::fresh(self.engine.chance());
        let rotation = self.store().rotate_signing_keys(&fresh, self.now());
        let pair = self.engine.keys().follow(rotation).await?;
        tracing::warn!("the signing keys were rotated: receivers must learn of the new next key");
        Ok(pair)
    }
}
