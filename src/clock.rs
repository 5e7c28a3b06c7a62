//! The clocks: the store's time, which decides what is due, and the monotonic one, which measures.
//!
//! On one machine the store's time is the wall clock without its steps back, as something that was due must stay due.
//! Where several nodes share a Postgres, its clock is the common one. A node follows it by the heartbeat's answer plus
//! what its own monotonic clock has counted since, so that a node whose wall clock is wrong or jumps is not.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::domain::time::Timestamp;

/// The time of a store on this machine: the wall clock, which it follows forwards at once. After a step back of up to
/// `MAX_AHEAD` it goes on a little slower until the wall clock has caught up; a larger one it follows.
pub fn system_now() -> Timestamp {
    static TIME: Mutex<Option<Steady>> = Mutex::new(None);
    let mut time = TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // In this order: a pause between the two would look like a step back otherwise.
    let wall = since_epoch();
    let boot = since_boot();
    let now = time.get_or_insert(Steady { time: wall, boot }).at(wall, boot);
    timestamp(now)
}

/// The machine's wall clock as it is, for what others compare with theirs.
pub fn wall_now() -> Timestamp {
    timestamp(since_epoch())
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

fn timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// The largest step back that is not followed at once: what is due at a time of day is early by as much at most.
const MAX_AHEAD: Duration = Duration::from_mins(5);
/// By which part of the time that passes it falls back towards the wall clock. Delays get longer by as much.
const SLOWER: u32 = 8;

/// A time that follows the wall clock but for steps back.
#[derive(Debug)]
struct Steady {
    /// Since the Unix epoch, when it was last asked.
    time: Duration,
    /// The time since boot then, which has no steps.
    boot: Duration,
}

impl Steady {
    fn at(&mut self, wall: Duration, boot: Duration) -> Duration {
        let passed = boot.saturating_sub(self.boot);
        let counted = self.time + passed;
        let ahead = counted.saturating_sub(wall);
        self.time = if ahead.is_zero() || ahead > MAX_AHEAD {
            wall
        } else {
            counted.saturating_sub((passed / SLOWER).min(ahead))
        };
        self.boot = boot;
        self.time
    }
}

/// Watches the store's time for jumps: timers count the time that passes while the machine runs, so that they are late
/// after a step forwards and after a suspend.
#[derive(Debug, Default)]
pub struct Jumps {
    last: Option<(Timestamp, Duration)>,
}

impl Jumps {
    /// A difference that timers may have.
    const TOLERANCE: Duration = Duration::from_millis(500);

    /// Whether the store's time has jumped since the last call. It is `now`, and `elapsed` by the clock of the timers.
    pub fn seen(&mut self, now: Timestamp, elapsed: Duration) -> bool {
        let last = self.last.replace((now, elapsed));
        last.is_some_and(|(before, at)| {
            let passed = elapsed.saturating_sub(at);
            let expected = before.after(passed);
            now.since(expected).max(expected.since(now)) > Self::TOLERANCE + passed / (SLOWER / 2)
        })
    }
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
    /// The store is on this machine and goes by [`system_now`].
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
                let seen = *seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.at(since_boot())
            }
        }
    }

    /// Now, for receivers, who compare it with their own clocks.
    pub fn now_for_others(&self) -> Timestamp {
        match self {
            Self::System => wall_now(),
            Self::Store(_) => self.now(),
        }
    }

    /// Takes note of what the store said, in an answer that took `round_trip`. Quick answers tell more than slow ones.
    pub fn observe(&self, store: Timestamp, round_trip: Duration) {
        if let Self::Store(seen) = self
            && round_trip <= MAX_ROUND_TRIP
        {
            let new = Observation::new(store, round_trip);
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
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

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// A clock at 1,000,000 s, which was asked 100 s after boot.
    fn steady() -> Steady {
        Steady { time: secs(1_000_000), boot: secs(100) }
    }

    #[test]
    fn the_wall_clock_is_followed() {
        let mut clock = steady();
        assert_eq!(clock.at(secs(1_000_010), secs(110)), secs(1_000_010));
        // A step forwards, by an hour.
        assert_eq!(clock.at(secs(1_003_611), secs(111)), secs(1_003_611));
        assert_eq!(clock.at(secs(1_003_612), secs(112)), secs(1_003_612));
    }

    #[test]
    fn after_a_step_back_time_goes_on_until_the_wall_clock_has_caught_up() {
        let mut clock = steady();
        let (mut before, mut same_at) = (clock.time, None);
        for passed in 0..=600 {
            let wall = secs(1_000_000 - 60 + passed);
            let now = clock.at(wall, secs(100 + passed));
            assert!(now >= before && now >= wall, "{passed}: {now:?} after {before:?}");
            if passed > 0 && now > wall {
                assert_eq!(now, before + secs(1) / SLOWER * (SLOWER - 1), "{passed}");
            }
            if now == wall && same_at.is_none() {
                same_at = Some(passed);
            }
            before = now;
        }
        assert_eq!(same_at, Some(60 * u64::from(SLOWER)));
    }

    #[test]
    fn it_falls_back_however_often_it_is_asked() {
        let (mut clock, mut boot) = (steady(), secs(100));
        let wall = |boot: Duration| secs(1_000_000 - 160) + boot;
        for _ in 0..1_000_000 {
            boot += Duration::from_micros(5);
            clock.at(wall(boot), boot);
        }
        let ahead = clock.time.saturating_sub(wall(boot));
        assert!(ahead + secs(5) / (SLOWER + 1) < secs(60), "{ahead:?}");
    }

    #[test]
    fn a_large_step_back_is_followed() {
        let mut clock = steady();
        assert_eq!(clock.at(secs(1_000_000 - 300), secs(100)), secs(1_000_000));
        assert_eq!(clock.at(secs(900_000), secs(101)), secs(900_000));
        assert_eq!(clock.at(secs(900_001), secs(102)), secs(900_001));
    }

    #[test]
    fn jumps_are_seen() {
        let at = |secs: i64| Timestamp::from_millis(1_700_000_000_000 + secs * 1000);
        let mut jumps = Jumps::default();
        assert!(!jumps.seen(at(0), secs(5)), "there was nothing before");
        assert!(!jumps.seen(at(1), secs(6)));
        assert!(jumps.seen(at(3602), secs(7)), "a step forwards, or a suspend");
        assert!(!jumps.seen(at(3603), secs(8)));
        assert!(jumps.seen(at(3), secs(9)), "a step back");
        assert!(!jumps.seen(at(63), secs(69)), "it was asked late");
    }

    #[test]
    fn the_times_of_this_machine_agree() {
        let (now, wall) = (system_now(), wall_now());
        assert!(wall.since(now) < secs(60) && now.since(wall) < secs(60), "{now:?} {wall:?}");
        assert!(system_now() >= now);
    }

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
