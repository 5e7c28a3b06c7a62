//! The low-water mark: how far back Postgres has to look for due deliveries.
//!
//! A delivery that is gone stays in the indexes until no transaction can see it any more, and while one is old, scans and
//! claims would step over ever more of them. They lie before the earliest delivery that is still there, so a bound on the
//! due time leaves them out. What comes back with an earlier due time lowers the mark; what another node has brought
//! back is found by a full scan, which is made from time to time beside the ordinary ones, and lowers the mark for the
//! next of these.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::task::JoinHandle;

use super::{Backend, DEADLINE, deliveries, within};
use crate::failure::Failure;

/// From the end of one full scan to the next: deliveries that another node has freed below the mark start at most this
/// late, the scan and the way to the next ordinary one apart.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(1);
/// How far below the earliest delivery seen the mark lies, in milliseconds: one that was accepted at the same time may
/// have been stored a little later.
const MARGIN_MS: i64 = 1000;

/// The bound on due times.
pub(super) struct LowWater(Mutex<Mark>);

struct Mark {
    due_ms: i64,
    /// The lowest that the mark was lowered to since the last scan began, which may not have seen what it was lowered for.
    since_ms: i64,
    /// When the next full scan is due.
    full_scan_at: Instant,
    full_scan: Option<JoinHandle<()>>,
}

impl LowWater {
    pub(super) fn new() -> Self {
        let mark =
            Mark { due_ms: i64::MIN, since_ms: i64::MAX, full_scan_at: Instant::now(), full_scan: None };
        Self(Mutex::new(mark))
    }

    fn mark(&self) -> MutexGuard<'_, Mark> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a scan; the due time that it begins at, in Unix milliseconds.
    pub(super) fn begin_scan(&self) -> i64 {
        let mut mark = self.mark();
        mark.since_ms = i64::MAX;
        mark.due_ms
    }

    /// The mark, for claims of what the last scan has seen.
    pub(super) fn due_ms(&self) -> i64 {
        self.mark().due_ms
    }

    /// Lets the mark be no higher than what was stored with this due time; `i64::MIN` for anything at all.
    pub(super) fn lower(&self, due_ms: i64) {
        let mut mark = self.mark();
        mark.due_ms = mark.due_ms.min(due_ms);
        mark.since_ms = mark.since_ms.min(due_ms);
    }

    /// Raises the mark to the earliest due time that the last scan has seen.
    pub(super) fn raise(&self, due_ms: i64) {
        let mut mark = self.mark();
        mark.due_ms = due_ms.saturating_sub(MARGIN_MS).min(mark.since_ms);
    }

    /// Starts a full scan beside the others, if one is due and none is under way.
    pub(super) fn scan_beside(self: &Arc<Self>, pool: &PgPool, failure: &Failure) {
        let mut mark = self.mark();
        let is_under_way = mark.full_scan.as_ref().is_some_and(|scan| !scan.is_finished());
        if is_under_way || Instant::now() < mark.full_scan_at {
            return;
        }
        let (low_water, pool) = (Arc::clone(self), pool.clone());
        mark.full_scan = Some(failure.spawn("scanning all that waits", async move {
            let backend = Backend::Postgres(&pool);
            match within(DEADLINE, deliveries::next_due(&backend, i64::MIN)).await {
                Ok(Some(due_at)) => low_water.lower(due_at.as_millis()),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "scanning all that waits failed"
                    );
                }
            }
            low_water.mark().full_scan_at = Instant::now() + FULL_SCAN_EVERY;
        }));
    }

    /// Ends a full scan.
    pub(super) fn stop(&self) {
        if let Some(scan) = self.mark().full_scan.take() {
            scan.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_follows_what_was_seen() {
        let low = LowWater::new();
        assert_eq!(low.begin_scan(), i64::MIN);
        low.raise(5000);
        assert_eq!((low.begin_scan(), low.due_ms()), (4000, 4000));
        low.lower(4500);
        assert_eq!(low.begin_scan(), 4000);
        low.lower(3000);
        low.raise(5000);
        assert_eq!(low.begin_scan(), 3000, "the scan may have begun before the mark was lowered");
        low.raise(5000);
        assert_eq!(low.begin_scan(), 4000);
        low.lower(i64::MIN);
        assert_eq!(low.begin_scan(), i64::MIN);
    }
}
