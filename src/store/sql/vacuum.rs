//! Frees what finished deliveries leave behind in Postgres' hot table, while many are finished.
//!
//! Autovacuum looks at a database once a minute (`autovacuum_naptime`). At 20,000 messages a second more than a million
//! rows are dead by then, in a table of 600 MiB where 120 would do, and with indices to match.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::pause;
use crate::store::Result;

/// Deliveries that a node finishes between two vacuums, at least: where there are fewer, autovacuum is enough.
pub const VACUUM_AFTER: u64 = 200_000;
/// How many times as long as a vacuum took the next one waits: it is never more than a fiftieth of a core, however large
/// the table is, and where an old transaction keeps it from freeing anything.
const REST: u32 = 50;

/// The task that vacuums. It has a connection while it does.
pub(super) struct Vacuum {
    due: Arc<Due>,
    task: JoinHandle<()>,
}

struct Due {
    after: u64,
    /// Deliveries finished since the last one.
    ended: AtomicU64,
    bell: Notify,
}

impl Vacuum {
    /// Starts it; a vacuum may take longer than other calls, so `options` have no limits of time.
    pub(super) fn start(options: PgConnectOptions, after: u64) -> Self {
        let due = Arc::new(Due { after, ended: AtomicU64::new(0), bell: Notify::new() });
        let task = tokio::spawn(run(options, Arc::clone(&due)));
        Self { due, task }
    }

    /// Counts deliveries that are finished, whose rows are dead.
    pub(super) fn count_ended(&self, count: usize) {
        self.due.add(count as u64);
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Due {
    fn add(&self, count: u64) {
        let before = self.ended.fetch_add(count, Ordering::Relaxed);
        if before < self.after && before + count >= self.after {
            self.bell.notify_one();
        }
    }
}

async fn run(options: PgConnectOptions, due: Arc<Due>) {
    loop {
        due.bell.notified().await;
        let began = Instant::now();
        if let Err(error) = vacuum(&options).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "vacuuming failed; autovacuum will do it"
            );
        }
        pause(began.elapsed() * REST).await;
        due.ended.store(0, Ordering::Relaxed);
    }
}

/// Another node may be doing it. The end of the file stays: giving it back would hold up everybody.
async fn vacuum(options: &PgConnectOptions) -> Result<()> {
    let mut connection = options.connect().await?;
    let done = sqlx::query("VACUUM (SKIP_LOCKED, TRUNCATE FALSE) deliveries").execute(&mut connection).await;
    connection.close().await?;
    done?;
    Ok(())
}
