//! How far back Postgres has to look for due deliveries.
//!
//! A delivery that is gone stays in the indexes until no transaction can see it any more, and while one is old, looks and
//! claims would step over ever more of them. They lie before the earliest delivery that is still there, so a bound on the
//! due time leaves them out. What comes back with an earlier due time lowers the bound; what another node has brought
//! back is found by a look without it, from time to time: as part of an ordinary look, unless it has become slow. Then it
//! is made beside the others, and lowers the bound for the next one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::task::AbortHandle;

use super::{Backend, DEADLINE, deliveries, within};
use crate::failure::Failure;

/// Between looks without the bound. What another node has brought back may be found that much later than others, and where
/// these looks are slow, so much more as they take and as the next ordinary look needs to come.
const WHOLE: Duration = Duration::from_secs(1);
/// The same where they take long.
const WHOLE_MOST: Duration = Duration::from_secs(5);
/// How long one may hold others up, the way to the database included.
const SLOW: Duration = Duration::from_millis(3);
/// How many times as long as a slow one took the next one waits, within those bounds.
const REST: u32 = 50;
/// How far below the earliest delivery seen the bound lies, in milliseconds: one that was accepted at the same time may
/// have been stored a little later.
const MARGIN_MS: i64 = 1000;

/// The bound on due times.
pub(super) struct LowWater(Mutex<State>);

struct State {
    due_ms: i64,
    /// The lowest that it was lowered to since the last look began, which may not have seen what it was lowered for.
    since_ms: i64,
    /// When the next look without the bound is due.
    whole_at: Option<Instant>,
    /// Whether the last one was, or has not ended.
    slow: bool,
    /// The one that is or was made beside the others.
    beside: Option<AbortHandle>,
}

/// How to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// From this due time on, in Unix milliseconds.
    From(i64),
    /// The same, and beside it at all that waits.
    FromAndBeside(i64),
    /// At all that waits.
    Whole,
}

impl LowWater {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(State {
            due_ms: i64::MIN,
            since_ms: i64::MAX,
            whole_at: None,
            slow: false,
            beside: None,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn for_look(&self) -> Look {
        let mut state = self.state();
        state.since_ms = i64::MAX;
        let now = Instant::now();
        let bounded = state.due_ms > i64::MIN;
        let under_way = state.beside.as_ref().is_some_and(|look| !look.is_finished());
        if bounded && (under_way || state.whole_at.is_some_and(|at| now < at)) {
            return Look::From(state.due_ms);
        }
        state.whole_at = Some(now + WHOLE);
        if bounded && state.slow {
            return Look::FromAndBeside(state.due_ms);
        }
        state.slow = true;
        Look::Whole
    }

    /// The bound for what the last look has seen.
    pub(super) fn for_claim(&self) -> i64 {
        self.state().due_ms
    }

    /// Lets the bound be no higher than what was stored with this due time; `i64::MIN` for anything at all.
    pub(super) fn lower(&self, due_ms: i64) {
        let mut state = self.state();
        state.due_ms = state.due_ms.min(due_ms);
        state.since_ms = state.since_ms.min(due_ms);
    }

    /// Takes note of the earliest due time that the last look has seen.
    pub(super) fn saw(&self, due_ms: i64) {
        let mut state = self.state();
        state.due_ms = due_ms.saturating_sub(MARGIN_MS).min(state.since_ms);
    }

    /// Takes note of how long a look without the bound took.
    pub(super) fn looked(&self, took: Duration) {
        let mut state = self.state();
        state.slow = took > SLOW;
        state.whole_at = Some(Instant::now() + (took * REST).clamp(WHOLE, WHOLE_MOST));
    }

    /// Looks at all that waits, in a task.
    pub(super) fn look_beside(self: &Arc<Self>, pool: PgPool, failure: &Failure) {
        let low_water = Arc::clone(self);
        let look = failure.spawn("looking at all that waits", async move {
            let began = Instant::now();
            let backend = Backend::Postgres(&pool);
            match within(DEADLINE, deliveries::next_due(&backend, i64::MIN)).await {
                Ok(Some(due_at)) => low_water.lower(due_at.as_millis()),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "looking at all that waits failed"
                    );
                }
            }
            low_water.looked(began.elapsed());
        });
        self.state().beside = Some(look.abort_handle());
    }

    /// Ends a look beside the others.
    pub(super) fn stop(&self) {
        if let Some(look) = self.state().beside.take() {
            look.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_follows_what_was_seen() {
        let low = LowWater::new();
        assert_eq!(low.for_look(), Look::Whole);
        low.saw(5000);
        low.looked(Duration::ZERO);
        assert_eq!((low.for_look(), low.for_claim()), (Look::From(4000), 4000));
        low.lower(4500);
        assert_eq!(low.for_look(), Look::From(4000));
        low.lower(3000);
        low.saw(5000);
        assert_eq!(low.for_look(), Look::From(3000), "the look may have begun before it was lowered");
        low.saw(5000);
        assert_eq!(low.for_look(), Look::From(4000));
        low.lower(i64::MIN);
        assert_eq!(low.for_look(), Look::Whole);
    }

    #[tokio::test]
    async fn a_slow_look_at_all_is_made_beside_the_others() {
        let low = LowWater::new();
        let due = |low: &LowWater| low.state().whole_at = None;
        low.saw(5000);
        low.looked(SLOW);
        due(&low);
        assert_eq!(low.for_look(), Look::Whole);
        due(&low);
        assert_eq!(low.for_look(), Look::FromAndBeside(4000), "the last one has not ended");
        low.looked(SLOW * 2);
        assert_eq!(low.for_look(), Look::From(4000));
        due(&low);
        assert_eq!(low.for_look(), Look::FromAndBeside(4000));
        let look = tokio::spawn(std::future::pending::<()>());
        low.state().beside = Some(look.abort_handle());
        due(&low);
        assert_eq!(low.for_look(), Look::From(4000), "only one at a time");
        low.stop();
        assert!(look.await.is_err_and(|error| error.is_cancelled()));
    }
}
