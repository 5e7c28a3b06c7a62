//! The tables `signing_keys` and `tokens`.

use async_trait::async_trait;
use sqlx::{PgPool, SqlitePool};

use super::nodes::NOTIFY_CHANGE;
use super::tx::Tx;
use super::{Backend, DEADLINE, SqlStore, within};
use crate::domain::time::Timestamp;
use crate::store::{Result, Secrets, SigningKeyPair, StoredKeys};

#[async_trait]
impl Secrets for SqlStore {
    async fn signing_keys(&self, fresh: &StoredKeys, now: Timestamp) -> Result<StoredKeys> {
        // Every node asks again and again, and there are some but at the very first time.
        if let Some(stored) = within(DEADLINE, stored(&self.readers())).await? {
            return Ok(stored);
        }
        self.write(DEADLINE, async |tx| signing_keys(tx, fresh, now).await).await
    }

    async fn rotate_signing_keys(&self, fresh: &str, now: Timestamp) -> Result<SigningKeyPair> {
        self.write(DEADLINE, async |tx| {
            let pair = rotate(tx, fresh, now).await?;
            if let Backend::Postgres(tx) = &mut tx.on {
                sqlx::query(NOTIFY_CHANGE).execute(&mut **tx).await?;
            }
            Ok(pair)
        })
        .await
    }

    async fn set_signing_keys(&self, keys: &StoredKeys, now: Timestamp) -> Result<()> {
        self.write(DEADLINE, async |tx| set(tx, keys, now).await).await
    }

    async fn tokens(&self, fresh: &[u8; 32], now: Timestamp) -> Result<(Vec<[u8; 32]>, bool)> {
        self.write(DEADLINE, async |tx| tokens(tx, fresh, now).await).await
    }
}

/// The insert, up to what happens when there is a pair already.
macro_rules! insert {
    () => {
        "INSERT INTO signing_keys (id, current_key, next_key, rotated_at, configured) VALUES (1, $1, $2, $3, $4) \
         ON CONFLICT (id) "
    };
}

const SELECT: &str = "SELECT current_key, next_key, configured FROM signing_keys WHERE id = 1";

#[derive(sqlx::FromRow)]
struct KeysRow {
    current_key: String,
    next_key: String,
    configured: Option<Vec<u8>>,
}

impl From<KeysRow> for StoredKeys {
    fn from(row: KeysRow) -> Self {
        Self {
            pair: SigningKeyPair { current: row.current_key, next: row.next_key },
            configured: row.configured.and_then(|hash| hash.try_into().ok()),
        }
    }
}

/// The pair, if there is one.
async fn stored(pools: &Backend<&PgPool, &SqlitePool>) -> Result<Option<StoredKeys>> {
    let row: Option<KeysRow> =
        on_backend!(pools, |pool| sqlx::query_as(SELECT).fetch_optional(*pool).await?);
    Ok(row.map(StoredKeys::from))
}

async fn read(tx: &mut Tx) -> Result<StoredKeys> {
    let row: KeysRow = on_backend!(&mut tx.on, |tx| sqlx::query_as(SELECT).fetch_one(&mut **tx).await?);
    Ok(row.into())
}

async fn signing_keys(tx: &mut Tx, fresh: &StoredKeys, now: Timestamp) -> Result<StoredKeys> {
    let sql = concat!(insert!(), "DO NOTHING");
    write(tx, sql, fresh, now).await?;
    read(tx).await
}

async fn set(tx: &mut Tx, keys: &StoredKeys, now: Timestamp) -> Result<()> {
    let sql = concat!(
        insert!(),
        "DO UPDATE SET current_key = excluded.current_key, next_key = excluded.next_key, \
         rotated_at = excluded.rotated_at, configured = excluded.configured"
    );
    write(tx, sql, keys, now).await
}

async fn write(tx: &mut Tx, sql: &'static str, keys: &StoredKeys, now: Timestamp) -> Result<()> {
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql)
            .bind(keys.pair.current.as_str())
            .bind(keys.pair.next.as_str())
            .bind(now.as_millis())
            .bind(keys.configured.as_ref().map(|hash| &hash[..]))
            .execute(&mut **tx)
            .await?;
    });
    Ok(())
}

async fn rotate(tx: &mut Tx, fresh: &str, now: Timestamp) -> Result<SigningKeyPair> {
    let sql = "UPDATE signing_keys SET current_key = next_key, next_key = $1, rotated_at = $2 WHERE id = 1";
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql).bind(fresh).bind(now.as_millis()).execute(&mut **tx).await?;
    });
    Ok(read(tx).await?.pair)
}

/// The hashes of all tokens, storing `fresh` when there are none.
async fn tokens(tx: &mut Tx, fresh: &[u8; 32], now: Timestamp) -> Result<(Vec<[u8; 32]>, bool)> {
    // Two nodes that start at once on an empty Postgres must not both print a token.
    if let Backend::Postgres(tx) = &mut tx.on {
        sqlx::query("LOCK TABLE tokens IN EXCLUSIVE MODE").execute(&mut **tx).await?;
    }
    let sql = "INSERT INTO tokens (sha256, created_at) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM tokens)";
    let inserted = on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql).bind(&fresh[..]).bind(now.as_millis()).execute(&mut **tx).await?.rows_affected()
    });
    let hashes: Vec<Vec<u8>> = on_backend!(&mut tx.on, |tx| {
        sqlx::query_scalar("SELECT sha256 FROM tokens").fetch_all(&mut **tx).await?
    });
    Ok((hashes.into_iter().filter_map(|hash| hash.try_into().ok()).collect(), inserted == 1))
}
