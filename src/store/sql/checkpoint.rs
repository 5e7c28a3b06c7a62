//! Moves what SQLite's write-ahead log holds into the database file, beside the writer.
//!
//! SQLite would do it inside the commit that finds the log long, and that commit, with all that wait for it, would stand
//! still for the sync of the database file: 300 ms were seen. Here a connection of its own does most of it while the
//! writer goes on. As long as the writer goes on, though, the log can't start anew, so that past a size the rest is done
//! on the writer's own connection, when little is left to do.
//!
//! Another program's transaction that stays open keeps the log from starting anew, and it grows. There is nothing to do
//! about that but to say so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::pause;
use crate::failure::Failure;
use crate::store::Result;

/// Between two checkpoints while there are commits: some thousand pages at full rate.
const INTERVAL: Duration = Duration::from_millis(500);
/// Pages of 4 KiB from which on the log must start anew: 32 MiB.
const LONG: i64 = 8192;
/// Pages left from which on the writer is not held up for them.
const MANY: i64 = 2048;
/// Bytes that the log's file keeps when it starts anew. The commit that shortens a larger one waits for that: 8 s for
/// 25 GiB.
pub(super) const KEPT: u64 = 64 << 20;
/// Pages from which on a log that can't start anew is worth a warning, and again whenever it has doubled: 1 GiB.
const HUGE: i64 = 1 << 18;

/// The task that makes the checkpoints.
pub(super) struct Checkpointer {
    /// Notified after commits.
    written: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Checkpointer {
    /// Starts with `own`, a pool of one connection for nothing else.
    pub(super) fn start(own: SqlitePool, writer: SqlitePool, database: &Path, failure: &Failure) -> Self {
        let written = Arc::new(Notify::new());
        let state = State { own, writer, database: database.to_owned(), warn_at: HUGE };
        let task = failure.spawn("checkpoints", run(state, Arc::clone(&written)));
        Self { written, task }
    }

    /// The bell to notify after each commit.
    pub(super) fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.written)
    }

    /// Stops it; closing the last connection makes the last checkpoint.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

struct State {
    own: SqlitePool,
    writer: SqlitePool,
    database: PathBuf,
    /// Pages in the log from which on to warn. Not bytes of its file, which stays large for a while.
    warn_at: i64,
}

async fn run(mut state: State, written: Arc<Notify>) {
    loop {
        written.notified().await;
        pause(INTERVAL).await;
        if let Err(error) = state.checkpoint().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a checkpoint failed; the log grows");
        }
    }
}

impl State {
    async fn checkpoint(&mut self) -> Result<()> {
        let mut connection = self.own.acquire().await?;
        let (log, done) = passive(&mut connection).await?;
        if log < LONG || log - done > MANY {
            self.warn(log);
            return Ok(());
        }
        self.warn_at = HUGE;
        let mut connection = self.writer.acquire().await?;
        passive(&mut connection).await?;
        Ok(())
    }

    fn warn(&mut self, log: i64) {
        if log >= self.warn_at {
            tracing::warn!(
                mib = log >> 8,
                "the database's write-ahead log can't start anew: another program has a transaction open on {}",
                self.database.display()
            );
            self.warn_at = log.saturating_mul(2);
        }
    }
}

/// Moves what can be moved without waiting for anybody. Pages in the log, and how many of them are moved.
async fn passive(connection: &mut SqliteConnection) -> Result<(i64, i64)> {
    let (_, log, done): (i64, i64, i64) =
        sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?;
    Ok((log, done))
}
