//! The model's keys and tokens.

use async_trait::async_trait;

use super::Model;
use crate::domain::time::Timestamp;
use crate::store::{Result, Secrets, SigningKeyPair, StoredKeys};

#[async_trait]
impl Secrets for Model {
    async fn signing_keys(&self, fresh: &StoredKeys, _: Timestamp) -> Result<StoredKeys> {
        let fresh = fresh.clone();
        self.write("signing_keys", move |state| Ok(state.signing_keys.get_or_insert(fresh).clone())).await
    }

    async fn rotate_signing_keys(&self, fresh: &str, _: Timestamp) -> Result<SigningKeyPair> {
        let fresh = fresh.to_owned();
        self.write("rotate_signing_keys", move |state| {
            let pair = &mut state.signing_keys.as_mut().expect("the engine reads them first").pair;
            *pair = SigningKeyPair { current: pair.next.clone(), next: fresh };
            Ok(pair.clone())
        })
        .await
    }

    async fn set_signing_keys(&self, keys: &StoredKeys, _: Timestamp) -> Result<()> {
        let keys = keys.clone();
        self.write("set_signing_keys", move |state| {
            state.signing_keys = Some(keys);
            Ok(())
        })
        .await
    }

    async fn tokens(&self, fresh: &[u8; 32], _: Timestamp) -> Result<(Vec<[u8; 32]>, bool)> {
        let fresh = *fresh;
        self.write("tokens", move |state| {
            let stored = state.tokens.is_empty();
            if stored {
                state.tokens.push(fresh);
            }
            Ok((state.tokens.clone(), stored))
        })
        .await
    }
}
