//! The signing keys in use.

use std::sync::{Arc, PoisonError, RwLock};

use rand::RngExt as _;

use crate::domain::signature::{self, SigningKey};
use crate::store::{SigningKeyPair, StoredKeys};

/// The pair that signs, prepared.
struct Prepared {
    pair: SigningKeyPair,
    current: Arc<SigningKey>,
}

/// The signing keys, replaced as a whole when they rotate.
pub struct Keys(RwLock<Prepared>);

impl Keys {
    /// These keys.
    pub fn new(pair: SigningKeyPair) -> Self {
        Self(RwLock::new(Prepared::new(pair)))
    }

    /// The key to sign with now.
    pub fn current(&self) -> Arc<SigningKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).current)
    }

    /// Both, as text.
    pub fn pair(&self) -> SigningKeyPair {
        self.0.read().unwrap_or_else(PoisonError::into_inner).pair.clone()
    }

    /// Signs with these from now on.
    pub fn replace(&self, pair: SigningKeyPair) {
        let mut prepared = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if prepared.pair != pair {
            *prepared = Prepared::new(pair);
        }
    }
}

impl Prepared {
    fn new(pair: SigningKeyPair) -> Self {
        Self { current: Arc::new(SigningKey::new(&pair.current)), pair }
    }
}

/// A new pair, for a store that has none.
pub fn fresh_pair() -> StoredKeys {
    StoredKeys { pair: SigningKeyPair { current: fresh(), next: fresh() }, configured: None }
}

/// A new signing key, as text.
pub fn fresh() -> String {
    signature::generate_key(rand::rng().random())
}
