//! Moves what SQLite's write-ahead log holds into the database file, beside the writer.
//!
//! SQLite would do it inside the commit that finds the log long, and that commit, with all that wait for it, would stand
//! still for the sync of the database file: 300 ms were seen. Here a connection of its own does most of it while the
//! writer goes on. As long as the writer goes on, though, the log can't start anew, so that past a size the rest is done
//! on the writer's own connection, when little is left to do.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::pause;
use crate::store::Result;

/// Between two checkpoints while there are commits: some thousand pages at full rate.
const INTERVAL: Duration = Duration::from_millis(500);
/// Pages of 4 KiB from which on the log must start anew: 32 MiB.
const LONG: i64 = 8192;
/// Pages left from which on the writer is not held up for them.
const MANY: i64 = 2048;

/// The task that makes the checkpoints.
pub(super) struct Checkpointer {
    /// Rung after commits.
    written: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Checkpointer {
    /// Starts with `own`, a pool of one connection for nothing else.
    pub(super) fn start(own: SqlitePool, writer: SqlitePool) -> Self {
        let written = Arc::new(Notify::new());
        let task = tokio::spawn(run(own, writer, Arc::clone(&written)));
        Self { written, task }
    }

    /// What to ring after each commit.
    pub(super) fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.written)
    }

    /// Stops it; closing the last connection makes the last checkpoint.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

async fn run(own: SqlitePool, writer: SqlitePool, written: Arc<Notify>) {
    loop {
        written.notified().await;
        pause(INTERVAL).await;
        if let Err(error) = checkpoint(&own, &writer).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a checkpoint failed; the log grows");
        }
    }
}

async fn checkpoint(own: &SqlitePool, writer: &SqlitePool) -> Result<()> {
    let mut connection = own.acquire().await?;
    let (log, done) = passive(&mut connection).await?;
    if log < LONG || log - done > MANY {
        return Ok(());
    }
    let mut connection = writer.acquire().await?;
    passive(&mut connection).await?;
    Ok(())
}

/// Moves what can be moved without waiting for anybody. Pages in the log, and how many of them are moved.
async fn passive(connection: &mut SqliteConnection) -> Result<(i64, i64)> {
    let (_, log, done): (i64, i64, i64) =
        sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?;
    Ok((log, done))
}
