//! Where signing keys and tokens are kept.

use async_trait::async_trait;

use super::Result;
use crate::domain::time::Timestamp;

/// The pair that signs, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeyPair {
    pub current: String,
    pub next: String,
}

/// A stored pair, and the SHA-256 of the configured pair that it comes from, perhaps by rotation; `None` for a generated
/// one.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredKeys {
    pub pair: SigningKeyPair,
    pub configured: Option<[u8; 32]>,
}

/// Signing keys and tokens.
#[async_trait]
pub trait Secrets: Send + Sync {
    /// The stored pair of signing keys, storing this one when there is none; and what it comes from.
    async fn signing_keys(&self, fresh: &StoredKeys, now: Timestamp) -> Result<StoredKeys>;
    /// Makes next current and `fresh` next; the new pair.
    async fn rotate_signing_keys(&self, fresh: &str, now: Timestamp) -> Result<SigningKeyPair>;
    /// Replaces the stored pair.
    async fn set_signing_keys(&self, keys: &StoredKeys, now: Timestamp) -> Result<()>;
    /// Hashes of the generated tokens; stores `fresh` when there are none, and tells whether it did.
    async fn tokens(&self, fresh: &[u8; 32], now: Timestamp) -> Result<(Vec<[u8; 32]>, bool)>;
}
