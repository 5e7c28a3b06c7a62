//! The clocks: the store's time, which decides what is due, and the monotonic one, which measures.
//!
//! Where several nodes share a Postgres, its clock is the common one. A node follows it by the heartbeat's answer plus
//! what its own monotonic clock has counted since, so that a node whose wall clock is wrong or jumps is not.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::domain::time::Timestamp;

/// The machine's wall clock.
pub fn system_now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The store's time, as this node knows it.
#[derive(Debug)]
pub enum Clock {
    /// The store is on this machine and goes by its wall clock.
    System,
    /// The store has a clock of its own: what it said, and when.
    Store(Mutex<(Timestamp, Instant)>),
}

impl Clock {
    /// The clock for a store that says that it is `now`.
    pub fn following(now: Timestamp) -> Self {
        Self::Store(Mutex::new((now, Instant::now())))
    }

    /// Now, by the store's clock.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => system_now(),
            Self::Store(seen) => {
                let (at, when) = *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                at.after(when.elapsed())
            }
        }
    }

    /// Takes note of what the store said.
    ///
    /// The answer was true somewhere between the question and now. Taking it as of now keeps this clock from running
    /// ahead of the store's, by which something would be sent early.
    pub fn observe(&self, store_now: Timestamp) {
        if let Self::Store(seen) = self {
            *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (store_now, Instant::now());
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
