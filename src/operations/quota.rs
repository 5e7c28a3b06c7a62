//! The limit on messages in a day, for all nodes together.

use super::{OperationError, Result};
use crate::domain::time::Timestamp;
use crate::store::Store;

const DAY_S: i64 = 24 * 60 * 60;
/// The largest part of a day's messages that a node reserves at once: a hundredth, and no more than this. What it has
/// reserved when it ends is lost to that day.
const CHUNK: u64 = 1000;

/// Messages that may be accepted in a day (UTC), by all nodes together.
pub(super) struct DailyQuota {
    limit: u64,
    /// The part that this node has reserved in the store. Held while it reserves more, so that one does it for all who
    /// wait.
    reserved: tokio::sync::Mutex<Reserved>,
}

#[derive(Default)]
struct Reserved {
    day: i64,
    left: u64,
}

impl DailyQuota {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, reserved: tokio::sync::Mutex::default() }
    }

    /// All or none.
    pub(super) async fn take(&self, store: &dyn Store, count: u64, now: Timestamp) -> Result<()> {
        let day = day(now);
        let mut reserved = self.reserved.lock().await;
        if reserved.day != day {
            *reserved = Reserved { day, left: 0 };
        }
        if reserved.left < count {
            let wanted = (count - reserved.left).max((self.limit / 100).min(CHUNK));
            reserved.left += store.reserve_messages(day, wanted, self.limit).await?;
        }
        let Some(left) = reserved.left.checked_sub(count) else {
            let reset_s = (day + 1) * DAY_S;
            let (limit, left) = (self.limit, reserved.left);
            return Err(OperationError::DailyQuota { wanted: count, limit, left, reset_s });
        };
        reserved.left = left;
        Ok(())
    }

    pub(super) async fn give_back(&self, count: u64, taken_at: Timestamp) {
        let mut reserved = self.reserved.lock().await;
        if reserved.day == day(taken_at) {
            reserved.left += count;
        }
    }
}

fn day(now: Timestamp) -> i64 {
    now.as_secs().div_euclid(DAY_S)
}
