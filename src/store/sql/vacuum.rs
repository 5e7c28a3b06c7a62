//! Frees what finished deliveries leave behind in Postgres' hot table, while many are finished.
//!
//! Autovacuum looks at a database once a minute (`autovacuum_naptime`). At 20,000 messages a second more than a million
//! rows are dead by then, in a table of 600 MiB where 60 would do, and with indices to match.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::within;
use crate::clock::pause;
use crate::failure::Failure;
use crate::store::Result;

/// Deliveries that a node finishes between two vacuums, at least: where there are fewer, autovacuum is enough.
pub const VACUUM_AFTER: u64 = 200_000;
/// How many times as long as a vacuum took the next one waits, within these bounds: it is no more than a fiftieth of a
/// core for each node, however large the table is, and where an old transaction keeps it from freeing anything.
const REST: u32 = 50;
const REST_LEAST: Duration = Duration::from_millis(500);
const REST_MOST: Duration = Duration::from_mins(10);
/// For connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// For the vacuum itself.
const LONGEST: Duration = Duration::from_mins(10);

/// The task that vacuums. It has a connection while it does.
pub(super) struct Vacuum {
    due: Arc<Due>,
    task: JoinHandle<()>,
}

struct Due {
    after: u64,
    /// Deliveries finished since the last one began.
    ended: AtomicU64,
    bell: Notify,
}

impl Vacuum {
    /// Starts it; a vacuum may take longer than other calls, so `options` have no limits of time.
    pub(super) fn start(options: PgConnectOptions, after: u64, failure: &Failure) -> Self {
        // That another node is doing it is no news.
        let options = options.options([("client_min_messages", "error")]).disable_statement_logging();
        let due = Arc::new(Due { after, ended: AtomicU64::new(0), bell: Notify::new() });
        let task = failure.spawn("vacuuming", run(options, Arc::clone(&due)));
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

impl Drop for Vacuum {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn run(options: PgConnectOptions, due: Arc<Due>) {
    loop {
        due.bell.notified().await;
        due.ended.store(0, Ordering::Relaxed);
        let rest = match vacuum(&options).await {
            Ok(took) => (took * REST).clamp(REST_LEAST, REST_MOST),
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "vacuuming failed; autovacuum will do it"
                );
                REST_MOST
            }
        };
        pause(rest).await;
    }
}

/// Another node may be doing it. The end of the file stays: giving it back would hold up everybody. How long it took.
async fn vacuum(options: &PgConnectOptions) -> Result<Duration> {
    let mut connection = within(CONNECT, async { Ok(options.connect().await?) }).await?;
    let began = Instant::now();
    let sql = "VACUUM (SKIP_LOCKED, TRUNCATE FALSE, PARALLEL 0) deliveries";
    within(LONGEST, async { Ok(sqlx::query(sql).execute(&mut connection).await?) }).await?;
    let took = began.elapsed();
    connection.close().await?;
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_due_when_as_many_as_that_are_finished() {
        let due = Due { after: 10, ended: AtomicU64::new(0), bell: Notify::new() };
        let rung = || tokio::time::timeout(Duration::ZERO, due.bell.notified());
        due.add(9);
        assert!(rung().await.is_err());
        due.add(1);
        assert!(rung().await.is_ok());
        due.add(100);
        assert!(rung().await.is_err(), "once");
        due.ended.store(0, Ordering::Relaxed);
        due.add(11);
        assert!(rung().await.is_ok(), "and again");
    }
}
