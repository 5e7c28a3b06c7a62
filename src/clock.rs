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

/// What a store's clock said: then, and when by ours since boot.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    store: Timestamp,
    boot: Duration,
}

/// An answer that took longer tells too little about when it was true.
const MAX_ROUND_TRIP: Duration = Duration::from_millis(500);

/// The store's time, as this node knows it.
#[derive(Debug)]
pub enum Clock {
    /// The store is on this machine and goes by its wall clock.
    System,
    /// The store has a clock of its own.
    Store(Mutex<Observation>),
}

impl Clock {
    /// The clock for a store that says that it is `now`.
    pub fn following(now: Timestamp) -> Self {
        Self::Store(Mutex::new(Observation { store: now, boot: since_boot() }))
    }

    /// Now, by the store's clock.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => system_now(),
            Self::Store(seen) => {
                let seen = *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                seen.store.after(since_boot().saturating_sub(seen.boot))
            }
        }
    }

    /// Takes note of what the store said, in an answer that took `round_trip`: it was true at about half of that.
    pub fn observe(&self, store: Timestamp, round_trip: Duration) {
        if let Self::Store(seen) = self
            && round_trip <= MAX_ROUND_TRIP
        {
            let boot = since_boot().saturating_sub(round_trip / 2);
            *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Observation { store, boot };
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
