//! The signing keys in use.

use std::sync::{Arc, PoisonError, RwLock};

use crate::chance::Chance;
use crate::domain::signature::{self, SigningKey};
use crate::store::{Result, SigningKeyPair, StoredKeys};

/// The pair that signs, prepared.
struct Prepared {
    pair: SigningKeyPair,
    current: Arc<SigningKey>,
}

/// The signing keys, replaced as a whole when they rotate.
pub struct Keys {
    prepared: RwLock<Prepared>,
    /// Held from asking the store until what it answered is in use.
    asking: tokio::sync::Mutex<()>,
}

impl Keys {
    /// These keys.
    pub fn new(pair: SigningKeyPair) -> Self {
        Self { prepared: RwLock::new(Prepared::new(pair)), asking: tokio::sync::Mutex::default() }
    }

    /// The key to sign with now.
    pub fn current(&self) -> Arc<SigningKey> {
        Arc::clone(&self.prepared.read().unwrap_or_else(PoisonError::into_inner).current)
    }

    /// Both, as text.
    pub fn pair(&self) -> SigningKeyPair {
        self.prepared.read().unwrap_or_else(PoisonError::into_inner).pair.clone()
    }

    /// Signs from now on with what the store answers to `ask`. One asks at a time: the old pair, read just before a
    /// rotation, must not come into use after the new one. Dropped, it leaves the pair as it is.
    pub async fn follow(&self, ask: impl Future<Output = Result<SigningKeyPair>>) -> Result<SigningKeyPair> {
        let _asking = self.asking.lock().await;
        let pair = ask.await?;
        let mut prepared = self.prepared.write().unwrap_or_else(PoisonError::into_inner);
        if prepared.pair != pair {
            *prepared = Prepared::new(pair.clone());
        }
        Ok(pair)
    }
}

impl Prepared {
    fn new(pair: SigningKeyPair) -> Self {
        Self { current: Arc::new(SigningKey::new(&pair.current)), pair }
    }
}

/// A new pair, for a store that has none.
pub fn fresh_pair(chance: &Chance) -> StoredKeys {
    StoredKeys { pair: SigningKeyPair { current: fresh(chance), next: fresh(chance) }, configured: None }
}

/// A new signing key, as text.
pub fn fresh(chance: &Chance) -> String {
    signature::generate_key(chance.random())
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn pair(current: &str, next: &str) -> SigningKeyPair {
        SigningKeyPair { current: current.to_owned(), next: next.to_owned() }
    }

    #[tokio::test]
    async fn what_was_read_before_a_rotation_does_not_undo_it() {
        let (old, new) = (pair("sig_1", "sig_2"), pair("sig_2", "sig_3"));
        let keys = Keys::new(old.clone());
        let (answer, answered) = oneshot::channel();
        let (look, rotation, sent) = tokio::join!(
            biased;
            keys.follow(async { Ok(answered.await.expect("an answer")) }),
            keys.follow(async { Ok(new.clone()) }),
            async { answer.send(old.clone()) },
        );
        assert!(sent.is_ok() && look.expect("the old pair") == old);
        assert!(rotation.expect("the new pair") == new);
        assert!(keys.pair() == new, "the rotation counts");
    }
}
