//! How far back Postgres has to look for due deliveries.
//!
//! A delivery that is gone stays in the indexes until no transaction can see it any more, and while one is old, looks and
//! claims would step over ever more of them. They lie before the earliest delivery that is still there, so a bound on the
//! due time leaves them out. What comes back with an earlier due time lowers the bound; what another node has brought
//! back is found by a look without it, from time to time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between looks without the bound: how much later than others something may be found that came back.
const WHOLE: Duration = Duration::from_secs(1);
/// How far below the earliest delivery seen the bound lies, in milliseconds: one that was accepted at the same time may
/// have been stored a little later.
const MARGIN_MS: i64 = 1000;

/// The bound on due times.
pub(super) struct LowWater(Mutex<State>);

struct State {
    due_ms: i64,
    /// When the last look without the bound was.
    whole: Option<Instant>,
}

impl LowWater {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(State { due_ms: i64::MIN, whole: None }))
    }

    /// The bound for a look, in Unix milliseconds.
    pub(super) fn for_look(&self) -> i64 {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.whole.is_some_and(|whole| whole.elapsed() < WHOLE) {
            return state.due_ms;
        }
        state.whole = Some(Instant::now());
        i64::MIN
    }

    /// The bound for what the last look has seen.
    pub(super) fn for_claim(&self) -> i64 {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).due_ms
    }

    /// Lets the bound be no higher than what was stored with this due time; `i64::MIN` for anything at all.
    pub(super) fn lower(&self, due_ms: i64) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.due_ms = state.due_ms.min(due_ms);
    }

    /// Takes note of the earliest due time that a look has seen.
    pub(super) fn saw(&self, due_ms: i64) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).due_ms =
            due_ms.saturating_sub(MARGIN_MS);
    }
}
