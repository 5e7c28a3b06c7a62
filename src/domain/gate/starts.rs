//! How many attempts of a key were started lately, so that no period ever holds more of them than its rate.
//!
//! Starts are kept as a few bursts, each counted until its last start has left every window that is still to come. That
//! keeps the history small whatever the rate, and costs less than a tenth of it.

use std::time::Duration;

use crate::domain::time::Timestamp;

/// Bursts in a period: starts closer together than this part of it are one burst.
const BURSTS: u32 = 20;
/// The least time that an admitted attempt has to start in.
const MIN_START: Duration = Duration::from_millis(20);
/// The least time by which starts count longer than they have to: what a network may add between two requests.
const MIN_MARGIN: Duration = Duration::from_millis(5);

/// At most so many starts in any period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    /// Seconds, at least 1.
    pub period_s: u32,
}

impl Rate {
    fn period(self) -> Duration {
        Duration::from_secs(u64::from(self.period_s))
    }

    fn grain(self) -> Duration {
        self.period() / BURSTS
    }

    /// How soon after its admission an attempt has to start. `slow` is how long an admission may take.
    pub fn start_within(self, slow: Duration) -> Duration {
        (self.grain() / 4).max(MIN_START).max(slow)
    }
}

/// Starts that are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Burst {
    /// When the first was admitted.
    pub first: Timestamp,
    /// When the last was made at the latest.
    pub last: Timestamp,
    pub count: u32,
}

/// The starts that still count, in the order of their admission.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Starts(Vec<Burst>);

impl Starts {
    /// These, as they were stored, seen at `now`. Where the clock has gone back, what lies in its future is now.
    pub fn new(mut bursts: Vec<Burst>, now: Timestamp) -> Self {
        for burst in &mut bursts {
            if burst.first > now {
                burst.last = now.after(burst.last.since(burst.first));
                burst.first = now;
            }
        }
        Self(bursts)
    }

    /// The bursts, to be stored.
    pub fn bursts(&self) -> &[Burst] {
        &self.0
    }

    /// How many starts the window that ends now holds.
    pub fn count(&self, rate: Rate, now: Timestamp) -> u32 {
        self.counted(rate, now).map(|burst| burst.count).fold(0, u32::saturating_add)
    }

    /// When that window began: with the first start in it. `None`: it holds none.
    pub fn window_start(&self, rate: Rate, now: Timestamp) -> Option<Timestamp> {
        self.counted(rate, now).map(|burst| burst.first).min()
    }

    fn counted(&self, rate: Rate, now: Timestamp) -> impl Iterator<Item = &Burst> {
        self.0.iter().filter(move |burst| burst.last.after(rate.period()) > now)
    }

    /// When the next one may start, if `more` start now.
    pub fn free_at(&self, rate: Rate, more: u32, now: Timestamp) -> Timestamp {
        let mut count = self.count(rate, now).saturating_add(more);
        if count < rate.count {
            return now;
        }
        let mut ends: Vec<(Timestamp, u32)> =
            self.counted(rate, now).map(|burst| (burst.last.after(rate.period()), burst.count)).collect();
        ends.sort_unstable();
        for (end, gone) in ends {
            count = count.saturating_sub(gone);
            if count < rate.count {
                return end;
            }
        }
        now.after(rate.period())
    }

    /// Takes note of starts admitted at `now`, to be made `within` that time.
    pub fn add(&mut self, rate: Rate, count: u32, now: Timestamp, within: Duration) {
        self.0.retain(|burst| burst.last.after(rate.period()) > now);
        let last = now.after(within).after((rate.grain() / 4).max(MIN_MARGIN));
        match self.0.last_mut() {
            Some(burst) if now.since(burst.first) <= rate.grain() => {
                burst.last = burst.last.max(last);
                burst.count = burst.count.saturating_add(count);
            }
            _ => self.0.push(Burst { first: now, last, count }),
        }
    }

    /// Forgets all.
    pub fn reset(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: i64 = 1_700_000_000_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(START + ms)
    }

    /// As many as may start now, at most `wanted`.
    fn start(starts: &mut Starts, rate: Rate, wanted: u32, ms: i64) -> u32 {
        let mut count = 0;
        while count < wanted && starts.free_at(rate, count, at(ms)) == at(ms) {
            count += 1;
        }
        if count > 0 {
            starts.add(rate, count, at(ms), rate.start_within(Duration::ZERO));
        }
        count
    }

    #[test]
    fn a_full_window_opens_when_its_starts_have_left_it() {
        let rate = Rate { count: 3, period_s: 10 };
        let mut starts = Starts::default();
        assert_eq!(starts.window_start(rate, at(0)), None);
        assert_eq!(start(&mut starts, rate, 2, 0), 2);
        assert_eq!(start(&mut starts, rate, 9, 4000), 1);
        assert_eq!((starts.count(rate, at(5000)), starts.window_start(rate, at(5000))), (3, Some(at(0))));
        // A start may be made 125 ms after its admission, and counts for as long again.
        assert_eq!(starts.free_at(rate, 0, at(5000)), at(10_250));
        assert_eq!(start(&mut starts, rate, 9, 10_249), 0);
        assert_eq!(start(&mut starts, rate, 9, 10_250), 2);
        assert_eq!(starts.free_at(rate, 0, at(10_300)), at(14_250));
        starts.reset();
        assert_eq!(start(&mut starts, rate, 9, 10_300), 3);
    }

    #[test]
    fn a_lower_rate_counts_what_was_started_before() {
        let mut starts = Starts::default();
        start(&mut starts, Rate { count: 10, period_s: 10 }, 6, 0);
        start(&mut starts, Rate { count: 10, period_s: 10 }, 4, 5000);
        let lower = Rate { count: 5, period_s: 10 };
        assert_eq!(starts.free_at(lower, 0, at(6000)), at(10_250));
        assert_eq!(start(&mut starts, lower, 9, 10_250), 1);
    }

    #[test]
    fn a_clock_that_goes_back_stops_nothing_for_long() {
        let rate = Rate { count: 1, period_s: 1 };
        let mut starts = Starts::default();
        start(&mut starts, rate, 1, 1_000_000);
        let starts = Starts::new(starts.bursts().to_vec(), at(0));
        assert!(starts.free_at(rate, 0, at(0)) < at(1100));
        assert_eq!(starts.window_start(rate, at(0)), Some(at(0)));
    }

    proptest! {
        /// Whatever is asked for when, and however late each attempt starts within its time.
        #[test]
        fn no_period_holds_more_starts_than_the_rate(
            count in 1_u32..40,
            period_s in prop::sample::select(vec![1_u32, 2, 7, 60]),
            steps in proptest::collection::vec((0_u32..400, 0_u32..60, any::<u32>(), 0_u64..200), 1..200),
        ) {
            let rate = Rate { count, period_s };
            let mut starts = Starts::default();
            let mut made: Vec<i64> = Vec::new();
            let mut now = 0;
            for (pause, wanted, late, slow) in steps {
                now += i64::from(pause * period_s);
                let mut admitted = 0;
                while admitted < wanted && starts.free_at(rate, admitted, at(now)) == at(now) {
                    admitted += 1;
                }
                let within = rate.start_within(Duration::from_millis(slow));
                if admitted > 0 {
                    starts.add(rate, admitted, at(now), within);
                }
                let within = i64::try_from(within.as_millis()).unwrap();
                for index in 0..admitted {
                    made.push(now + i64::from(late.wrapping_mul(index + 1)) % (within + 1));
                }
                prop_assert!(starts.bursts().len() < 50);
            }
            made.sort_unstable();
            let period = i64::from(period_s) * 1000;
            for (index, first) in made.iter().enumerate() {
                let inside = made[index..].iter().take_while(|start| **start < first + period).count();
                prop_assert!(inside <= count as usize, "{inside} from {first} on");
            }
        }

        #[test]
        fn the_time_that_is_told_is_the_time_that_has_room(
            count in 1_u32..10,
            steps in proptest::collection::vec((0_i64..900, 0_u32..12), 1..60),
        ) {
            let rate = Rate { count, period_s: 1 };
            let mut starts = Starts::default();
            let mut now = 0;
            for (pause, wanted) in steps {
                now += pause;
                start(&mut starts, rate, wanted, now);
                let free_at = starts.free_at(rate, 0, at(now));
                prop_assert!(free_at >= at(now));
                prop_assert_eq!(starts.free_at(rate, 0, free_at), free_at);
                let before = free_at.before(Duration::from_millis(1));
                prop_assert!(free_at == at(now) || starts.free_at(rate, 0, before) > before);
            }
        }
    }
}
