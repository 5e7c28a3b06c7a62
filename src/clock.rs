//! The clocks: the store's time, which decides what is due, and the monotonic one, which measures.
//!
//! Where several nodes share a Postgres, its clock is the common one. A node follows it by the heartbeat's answer plus
//! what its own monotonic clock has counted since, so that a node whose wall clock is wrong or jumps is not.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::domain::time::Timestamp;

/// The machine's wall clock.
pub fn system_now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// What a store's clock said: then, when by ours since boot, and by how much that may be wrong.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    store: Timestamp,
    boot: Duration,
    error: Duration,
}

/// An answer that took longer tells too little about when it was true.
const MAX_ROUND_TRIP: Duration = Duration::from_millis(500);
/// How much two clocks may drift apart, as a part of the time: more than any quartz does.
const DRIFT: u32 = 10_000;

impl Observation {
    /// What an answer tells that took `round_trip` and has come just now: it was true at about half of that.
    fn new(store: Timestamp, round_trip: Duration) -> Self {
        let half = round_trip / 2;
        Self { store, boot: since_boot().saturating_sub(half), error: half + Duration::from_millis(1) }
    }

    /// The store's time when ours since boot is `boot`.
    fn at(self, boot: Duration) -> Timestamp {
        self.store.after(boot.saturating_sub(self.boot))
    }

    /// Whether this one tells more than an older one, or tells that the store's clock was set.
    fn replaces(self, older: Self) -> bool {
        let error = older.error + self.boot.saturating_sub(older.boot) / DRIFT;
        let expected = older.at(self.boot);
        let apart = self.store.since(expected).max(expected.since(self.store));
        self.error <= error || apart > self.error + error
    }
}

/// The store's time, as this node knows it.
#[derive(Debug)]
pub enum Clock {
    /// The store is on this machine and goes by its wall clock.
    System,
    /// The store has a clock of its own.
    Store(Mutex<Observation>),
}

impl Clock {
    /// The clock for a store that says that it is `now`, in an answer that took `round_trip`.
    pub fn following(now: Timestamp, round_trip: Duration) -> Self {
        Self::Store(Mutex::new(Observation::new(now, round_trip)))
    }

    /// Now, by the store's clock.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => system_now(),
            Self::Store(seen) => {
                let seen = *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                seen.at(since_boot())
            }
        }
    }

    /// Takes note of what the store said, in an answer that took `round_trip`. Quick answers tell more than slow ones.
    pub fn observe(&self, store: Timestamp, round_trip: Duration) {
        if let Self::Store(seen) = self
            && round_trip <= MAX_ROUND_TRIP
        {
            let new = Observation::new(store, round_trip);
            let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if new.replaces(*seen) {
                *seen = new;
            }
        }
    }
}

/// Time since boot, with the time that the machine was suspended: a lease runs out while a laptop sleeps.
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Waits; for back-off after faults and for timers, never for something that an event could tell.
pub async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answer_tells_the_time_until_it_is_old_or_wrong() {
        let seen = |store, boot, error| Observation {
            store: Timestamp::from_millis(store),
            boot: Duration::from_millis(boot),
            error: Duration::from_millis(error),
        };
        let quick = seen(1_000_000, 50_000, 2);
        for (new, replaces, why) in [
            (seen(1_005_000, 55_000, 1), true, "quicker"),
            (seen(1_005_040, 55_000, 50), false, "slower, and within its error"),
            (seen(1_004_960, 55_000, 50), false, "likewise, on the other side"),
            (seen(1_005_100, 55_000, 50), true, "the clock was set forward"),
            (seen(1_004_900, 55_000, 50), true, "the clock was set back"),
            (seen(1_600_040, 650_000, 50), true, "after ten minutes nobody knows better"),
            (seen(1_100_003, 150_000, 12), true, "after 100 s the older one may be 12 ms off as well"),
        ] {
            assert_eq!(new.replaces(quick), replaces, "{why}");
        }
        assert_eq!(quick.at(Duration::from_millis(51_500)), Timestamp::from_millis(1_001_500));
    }
}
