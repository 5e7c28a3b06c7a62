//! The table `reserved_messages`.

use async_trait::async_trait;

use super::tx::Tx;
use super::{DEADLINE, SqlStore};
use crate::store::{Quota, Result};

#[async_trait]
impl Quota for SqlStore {
    async fn reserve_messages(&self, day: i64, wanted: u64, limit: u64) -> Result<u64> {
        self.write(DEADLINE, async |tx| {
            let reserved = reserved(tx, day).await?;
            let granted = wanted.min(limit.saturating_sub(reserved));
            add(tx, day, granted).await?;
            Ok(granted)
        })
        .await
    }
}

/// Messages reserved so far on a day, its row locked.
async fn reserved(tx: &mut Tx, day: i64) -> Result<u64> {
    let begin = "INSERT INTO reserved_messages (day, reserved) VALUES ($1, 0) ON CONFLICT (day) DO NOTHING";
    // Not yesterday: about midnight a node may be a moment behind.
    let forget = "DELETE FROM reserved_messages WHERE day < $1 - 1";
    let begun =
        on_backend!(&mut tx.on, |tx| sqlx::query(begin).bind(day).execute(&mut **tx).await?.rows_affected());
    if begun == 1 {
        on_backend!(&mut tx.on, |tx| {
            sqlx::query(forget).bind(day).execute(&mut **tx).await?;
        });
    }
    // An update that changes nothing: it locks the row, on either engine.
    let lock = "UPDATE reserved_messages SET reserved = reserved WHERE day = $1 RETURNING reserved";
    let reserved: i64 =
        on_backend!(&mut tx.on, |tx| sqlx::query_scalar(lock).bind(day).fetch_one(&mut **tx).await?);
    Ok(u64::try_from(reserved).unwrap_or(0))
}

async fn add(tx: &mut Tx, day: i64, count: u64) -> Result<()> {
    let sql = "UPDATE reserved_messages SET reserved = reserved + $2 WHERE day = $1";
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql).bind(day).bind(i64::try_from(count).unwrap_or(i64::MAX)).execute(&mut **tx).await?;
    });
    Ok(())
}
