//! SQLite's only connection that writes.
//!
//! Accepts and finishes are most of what is written, so their task keeps the connection ([`Writer::keep`]) and gives it
//! to whoever asks for it: the pool tests a connection that comes back, which takes a quarter of the time of a
//! transaction.

use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::sync::Notify;

use crate::store::Result;

pub(super) struct Writer {
    /// Of one connection.
    pool: SqlitePool,
    /// Those who wait for the connection.
    asking: AtomicUsize,
    /// Rung when somebody asks for it.
    wanted: Notify,
}

/// Somebody who waits for the connection, until this is dropped.
struct Asking<'a>(&'a Writer);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Writer {
    pub(super) fn new(pool: SqlitePool) -> Self {
        Self { pool, asking: AtomicUsize::new(0), wanted: Notify::new() }
    }

    pub(super) async fn acquire(&self) -> Result<PoolConnection<Sqlite>> {
        let _asking = self.ask();
        Ok(self.pool.acquire().await?)
    }

    /// Starts a transaction that may write: one that begins reading and writes later can fail at once with `SQLITE_BUSY`.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        let _asking = self.ask();
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    fn ask(&self) -> Asking<'_> {
        self.asking.fetch_add(1, Ordering::AcqRel);
        self.wanted.notify_one();
        Asking(self)
    }

    /// The connection, for the one who keeps it until it [is wanted](Self::wanted), and no longer than for one
    /// transaction while it [is asked for](Self::is_asked_for).
    pub(super) async fn keep(&self) -> Result<PoolConnection<Sqlite>> {
        Ok(self.pool.acquire().await?)
    }

    /// Waits until somebody asks for the connection. May say so once more than was asked.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether somebody waits for the connection. Who has rung need not stand in the pool's line yet, so that the ring
    /// alone may be over when it matters.
    pub(super) fn is_asked_for(&self) -> bool {
        self.asking.load(Ordering::Acquire) > 0
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}
