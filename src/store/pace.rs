//! Whether a batch should wait for those that will join it.
//!
//! Where syncs are slow, whoever is answered together comes again together. If the first of them goes on at once, all
//! others wait for its sync and then for their own; if it waits a moment for them, all share one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a batch waits at most: up to twice as long by the runtime's timer.
pub(crate) const WAIT: Duration = Duration::from_millis(1);
/// Where even the fastest batch of a window takes longer, its own work apart, they wait for the disk or the database.
const SLOW: Duration = Duration::from_micros(1500);
/// Batches in a window.
const WINDOW: u32 = 16;
/// Waits in vain, less those that were not, after which it does not pay.
const VAIN: u32 = 8;
/// Batches until it is tried again.
const RETRY_AFTER: u32 = 64;

/// How long batches of one kind took lately, and whether waiting for more has paid.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Lately>);

#[derive(Debug, Default)]
struct Lately {
    batches: u32,
    fastest: Option<Duration>,
    slow: bool,
    vain: u32,
    rest: u32,
}

impl Pace {
    /// Takes note of how long a batch took, and how much of that its own [`work`] may have been.
    pub(crate) fn took(&self, time: Duration, work: Duration) {
        let time = time.saturating_sub(work);
        let mut state = self.state();
        state.rest = state.rest.saturating_sub(1);
        state.batches += 1;
        state.fastest = Some(state.fastest.map_or(time, |fastest| fastest.min(time)));
        if state.batches == WINDOW {
            state.slow = state.fastest > Some(SLOW);
            state.batches = 0;
            state.fastest = None;
        }
    }

    /// Whether the next batch should wait.
    pub(crate) fn pays(&self) -> bool {
        let state = self.state();
        state.slow && state.rest == 0
    }

    /// Takes note of whether those came that were waited for.
    pub(crate) fn waited(&self, came: bool) {
        let mut state = self.state();
        state.vain = if came { state.vain.saturating_sub(1) } else { state.vain + 1 };
        if state.vain == VAIN {
            state.rest = RETRY_AFTER;
            // The next try decides.
            state.vain = VAIN - 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, Lately> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The least time on a processor that messages and their bodies take to be stored.
pub(crate) fn work(messages: usize, bytes: usize) -> Duration {
    let nanos = messages.saturating_mul(10_000).saturating_add(bytes.saturating_mul(10));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    fn window(pace: &Pace, fast: Duration) {
        pace.took(fast, NONE);
        (1..WINDOW).for_each(|_| pace.took(SLOW * 2, NONE));
    }

    #[test]
    fn it_pays_while_every_batch_is_slow() {
        let pace = Pace::default();
        assert!(!pace.pays());
        window(&pace, SLOW * 2);
        assert!(pace.pays());
        window(&pace, SLOW);
        assert!(!pace.pays());
    }

    #[test]
    fn work_is_not_waiting() {
        let pace = Pace::default();
        (0..WINDOW).for_each(|_| pace.took(SLOW * 2, work(150, 0)));
        assert!(!pace.pays());
    }

    #[test]
    fn it_rests_when_nobody_comes() {
        let pace = Pace::default();
        window(&pace, SLOW * 2);
        for _ in 0..VAIN {
            assert!(pace.pays());
            pace.waited(false);
        }
        for _ in 0..RETRY_AFTER {
            assert!(!pace.pays());
            pace.took(SLOW * 2, NONE);
        }
        assert!(pace.pays(), "it is tried again");
        pace.waited(false);
        assert!(!pace.pays());
    }

    #[test]
    fn it_goes_on_while_most_come() {
        let pace = Pace::default();
        window(&pace, SLOW * 2);
        for _ in 0..10 * VAIN {
            pace.waited(false);
            pace.waited(true);
            assert!(pace.pays());
        }
    }
}
