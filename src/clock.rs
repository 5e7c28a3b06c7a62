//! Time: the store's, which decides what is due, the time since boot, which measures, and waiting.
//!
//! On one machine the store's time is the wall clock without its steps back, as something that was due must stay due.
//! Where several nodes share a Postgres, its clock is the common one. A node follows it by the heartbeat's answer plus
//! what its own monotonic clock has counted since, so that a node whose wall clock is wrong or jumps is not.
//!
//! A [`Clock`] is handed to whoever needs the time. All waits are the runtime's, so that a simulation pauses them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::domain::time::Timestamp;

fn timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// Where a machine's times come from.
#[derive(Debug)]
enum Source {
    System,
    /// Both go on with the runtime's time, from what they were when it was `start`.
    Simulated {
        start: Instant,
        since_epoch: Duration,
        since_boot: Duration,
    },
}

impl Source {
    /// The wall clock, since the Unix epoch.
    #[expect(clippy::disallowed_methods, reason = "here is where the wall clock is read")]
    fn since_epoch(&self) -> Duration {
        match self {
            Self::System => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
            Self::Simulated { start, since_epoch, .. } => *since_epoch + start.elapsed(),
        }
    }

    fn since_boot(&self) -> Duration {
        match self {
            Self::System => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                let (secs, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
                Duration::new(secs.unwrap_or(0), nanos.unwrap_or(0))
            }
            Self::Simulated { start, since_boot, .. } => *since_boot + start.elapsed(),
        }
    }
}

/// A machine's times, and the one that is made of them for a store on it.
#[derive(Debug)]
struct Machine {
    source: Source,
    steady: Mutex<Option<Steady>>,
}

impl Machine {
    /// The wall clock, which is followed forwards at once. After a step back of up to `MAX_AHEAD` time goes on a little
    /// slower until the wall clock has caught up; a larger one is followed.
    fn now(&self) -> Timestamp {
        let mut steady = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
        // In this order: a pause between the two would look like a step back otherwise.
        let wall = self.source.since_epoch();
        let boot = self.source.since_boot();
        timestamp(steady.get_or_insert(Steady { time: wall, boot }).at(wall, boot))
    }
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

/// A reading of a store's clock: its time, our time since boot then, and by how much that may be wrong.
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
    /// The reading of an answer that took `round_trip` and came at `boot`: it was true at about half of that.
    fn new(store: Timestamp, round_trip: Duration, boot: Duration) -> Self {
        let half = round_trip / 2;
        Self { store, boot: boot.saturating_sub(half), error: half + Duration::from_millis(1) }
    }

    /// The store's time when ours since boot is `boot`.
    fn at(self, boot: Duration) -> Timestamp {
        self.store.after(boot.saturating_sub(self.boot))
    }

    /// Whether this reading tells more than an older one, or tells that the store's clock was set.
    fn replaces(self, older: Self) -> bool {
        let error = older.error + self.boot.saturating_sub(older.boot) / DRIFT;
        let expected = older.at(self.boot);
        let apart = self.store.since(expected).max(expected.since(self.store));
        self.error <= error || apart > self.error + error
    }
}

/// A node's clock. Cheap to clone; clones are one clock.
#[derive(Clone, Debug)]
pub struct Clock {
    machine: Arc<Machine>,
    /// Set: the store has a clock of its own, which this one follows.
    followed: Option<Arc<Mutex<Observation>>>,
}

impl Clock {
    /// This machine's clock, for a store on it.
    pub fn system() -> Self {
        Self::of(Source::System)
    }

    /// The clock of a simulated machine on which it is `wall` now, `since_boot` after its start. It goes on with the
    /// runtime's time.
    pub fn simulated(wall: Timestamp, since_boot: Duration) -> Self {
        let since_epoch = Duration::from_millis(u64::try_from(wall.as_millis()).unwrap_or(0));
        Self::of(Source::Simulated { start: Instant::now(), since_epoch, since_boot })
    }

    fn of(source: Source) -> Self {
        Self { machine: Arc::new(Machine { source, steady: Mutex::new(None) }), followed: None }
    }

    /// A clock on this machine that follows a store which says that it is `now`, in an answer that took `round_trip`.
    #[must_use]
    pub fn following(&self, now: Timestamp, round_trip: Duration) -> Self {
        let seen = Observation::new(now, round_trip, self.since_boot());
        Self { machine: Arc::clone(&self.machine), followed: Some(Arc::new(Mutex::new(seen))) }
    }

    /// Now, by the store's clock.
    pub fn now(&self) -> Timestamp {
        match &self.followed {
            None => self.machine.now(),
            Some(seen) => {
                let seen = *seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.at(self.since_boot())
            }
        }
    }

    /// Now, for receivers, who compare it with their own clocks.
    pub fn now_for_others(&self) -> Timestamp {
        match &self.followed {
            None => timestamp(self.machine.source.since_epoch()),
            Some(_) => self.now(),
        }
    }

    /// Time since boot, with the time that the machine was suspended: a lease runs out while a laptop sleeps.
    pub fn since_boot(&self) -> Duration {
        self.machine.source.since_boot()
    }

    /// Takes note of what the store said, in an answer that took `round_trip`. Quick answers tell more than slow ones.
    pub fn observe(&self, store: Timestamp, round_trip: Duration) {
        if let Some(seen) = &self.followed
            && round_trip <= MAX_ROUND_TRIP
        {
            let new = Observation::new(store, round_trip, self.since_boot());
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if new.replaces(*seen) {
                *seen = new;
            }
        }
    }
}

/// Waits until then; for timers.
#[expect(clippy::disallowed_methods, reason = "here is where waiting is said to be for these alone")]
pub async fn pause_until(deadline: Instant) {
    tokio::time::sleep_until(deadline).await;
}

/// Waits; for back-off after faults and for timers, never for something that an event could tell.
#[expect(clippy::disallowed_methods, reason = "here is where waiting is said to be for these alone")]
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
        let clock = Clock::system();
        let (now, wall) = (clock.now(), clock.now_for_others());
        assert!(wall.since(now) < secs(60) && now.since(wall) < secs(60), "{now:?} {wall:?}");
        assert!(clock.now() >= now);
    }

    #[tokio::test(start_paused = true)]
    async fn simulated_clocks_go_on_with_the_runtime_and_may_be_apart() {
        let at = Timestamp::from_millis(1_700_000_000_000);
        let (one, other) = (Clock::simulated(at, secs(100)), Clock::simulated(at.after(secs(1)), secs(5)));
        pause(secs(60)).await;
        assert_eq!((one.now(), one.since_boot()), (at.after(secs(60)), secs(160)));
        assert_eq!((other.now_for_others(), other.since_boot()), (at.after(secs(61)), secs(65)));
        let following = other.following(at, Duration::ZERO);
        pause(secs(1)).await;
        assert_eq!((following.now(), following.now_for_others()), (at.after(secs(1)), at.after(secs(1))));
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
