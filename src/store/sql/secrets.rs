//! The tables `signing_keys` and `tokens`.

use sqlx::{PgPool, SqlitePool};

use super::{Backend, Tx};
use crate::domain::time::Timestamp;
use crate::store::{Result, SigningKeyPair, StoredKeys};

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
pub(super) async fn stored(pools: &Backend<&PgPool, &SqlitePool>) -> Result<Option<StoredKeys>> {
    let row: Option<KeysRow> =
        on_backend!(pools, |pool| sqlx::query_as(SELECT).fetch_optional(*pool).await?);
    Ok(row.map(StoredKeys::from))
}

async fn read(tx: &mut Tx) -> Result<StoredKeys> {
    let row: KeysRow = on_backend!(tx, |tx| sqlx::query_as(SELECT).fetch_one(&mut **tx).await?);
    Ok(row.into())
}

pub(super) async fn signing_keys(tx: &mut Tx, fresh: &StoredKeys, now: Timestamp) -> Result<StoredKeys> {
    let sql = concat!(insert!(), "DO NOTHING");
    write(tx, sql, fresh, now).await?;
    read(tx).await
}

pub(super) async fn set(tx: &mut Tx, keys: &StoredKeys, now: Timestamp) -> Result<()> {
    let sql = concat!(
        insert!(),
        "DO UPDATE SET current_key = excluded.current_key, next_key = excluded.next_key, \
         rotated_at = excluded.rotated_at, configured = excluded.configured"
    );
    write(tx, sql, keys, now).await
}

async fn write(tx: &mut Tx, sql: &'static str, keys: &StoredKeys, now: Timestamp) -> Result<()> {
    on_backend!(tx, |tx| {
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

pub(super) async fn rotate(tx: &mut Tx, fresh: &str, now: Timestamp) -> Result<SigningKeyPair> {
    let sql = "UPDATE signing_keys SET current_key = next_key, next_key = $1, rotated_at = $2 WHERE id = 1";
    on_backend!(&mut *tx, |tx| {
        sqlx::query(sql).bind(fresh).bind(now.as_millis()).execute(&mut **tx).await?;
    });
    Ok(read(tx).await?.pair)
}

/// The hashes of all tokens, storing `fresh` when there are none.
pub(super) async fn tokens(tx: &mut Tx, fresh: &[u8; 32], now: Timestamp) -> Result<(Vec<[u8; 32]>, bool)> {
    // Two nodes that start at once on an empty Postgres must not both print a token.
    if let Tx::Postgres(tx) = &mut *tx {
        sqlx::query("LOCK TABLE tokens IN EXCLUSIVE MODE").execute(&mut **tx).await?;
    }
    let sql = "INSERT INTO tokens (sha256, created_at) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM tokens)";
    let inserted = on_backend!(&mut *tx, |tx| {
        sqlx::query(sql).bind(&fresh[..]).bind(now.as_millis()).execute(&mut **tx).await?.rows_affected()
    });
    let hashes: Vec<Vec<u8>> = on_backend!(&mut *tx, |tx| {
        sqlx::query_scalar("SELECT sha256 FROM tokens").fetch_all(&mut **tx).await?
    });
    Ok((hashes.into_iter().filter_map(|hash| hash.try_into().ok()).collect(), inserted == 1))
}
