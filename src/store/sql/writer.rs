//! SQLite's only connection that writes.
//!
//! Accepts and finishes are most of what is written, so their task keeps the connection ([`Writer::keep`]) and gives it
//! to whoever asks for it: the pool tests a connection that comes back, which takes a quarter of the time of a
//! transaction.

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::sync::Notify;

use crate::store::Result;

pub(super) struct Writer {
    /// Of one connection.
    pool: SqlitePool,
    /// Rung when somebody asks for the connection.
    wanted: Notify,
}

impl Writer {
    pub(super) fn new(pool: SqlitePool) -> Self {
        Self { pool, wanted: Notify::new() }
    }

    pub(super) async fn acquire(&self) -> Result<PoolConnection<Sqlite>> {
        self.wanted.notify_one();
        Ok(self.pool.acquire().await?)
    }

    /// Starts a transaction that may write: one that begins reading and writes later can fail at once with `SQLITE_BUSY`.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        self.wanted.notify_one();
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// The connection, for the one who keeps it until it [is wanted](Self::wanted). Those who asked earlier go first.
    pub(super) async fn keep(&self) -> Result<PoolConnection<Sqlite>> {
        Ok(self.pool.acquire().await?)
    }

    /// Waits until somebody asks for the connection. May say so once more than was asked.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}
