//! Steps that were stored lately, to be stored again where a failover has lost them ([`super::failover`]).
//!
//! With an asynchronous standby the last steps may not have reached it when it takes the primary's place. As long as the
//! node that has made them lives, it has them in memory and makes them there again: messages under their ids, outcomes
//! under their leases, so that what did reach the standby stays as it is.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Accept, Ended, Store};

/// How long steps are kept before the last one: longer than a standby is behind. How long the failover takes makes no
/// difference, since nothing is stored meanwhile.
const KEPT: Duration = Duration::from_secs(30);
/// Bytes that are kept at most; beyond, the oldest go first.
const BYTES: usize = 32 << 20;
/// Bytes that each message and each outcome takes beside those of bodies.
const OVERHEAD: usize = 512;

/// A step that was made.
pub(super) enum Step {
    Accepted(Vec<Accept>),
    Ended(Vec<Ended>),
}

impl Step {
    /// Bytes in memory, roughly.
    fn size(&self) -> usize {
        match self {
            Self::Accepted(accepts) => accepts.iter().map(|accept| accept.message.size() + OVERHEAD).sum(),
            Self::Ended(ends) => {
                let callbacks = |ended: &Ended| -> usize {
                    ended.finish.callbacks().map(|message| message.size() + OVERHEAD).sum()
                };
                let response =
                    |ended: &Ended| ended.finish.attempt.response().map_or(0, |response| response.body.len());
                ends.iter().map(|ended| OVERHEAD + callbacks(ended) + response(ended)).sum()
            }
        }
    }

    /// How many messages or outcomes there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Accepted(accepts) => accepts.len(),
            Self::Ended(ends) => ends.len(),
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A step for each message or outcome, in their order.
    pub(super) fn into_singles(self) -> Vec<Self> {
        match self {
            Self::Accepted(accepts) => accepts.into_iter().map(|one| Self::Accepted(vec![one])).collect(),
            Self::Ended(ends) => ends.into_iter().map(|one| Self::Ended(vec![one])).collect(),
        }
    }
}

/// The steps that were made lately, in their order.
#[derive(Default)]
pub(super) struct Recent(Mutex<State>);

#[derive(Default)]
struct State {
    steps: VecDeque<(Instant, Step)>,
    bytes: usize,
    /// How often the database had moved when all that was kept before was last made again.
    moves: u64,
}

impl Recent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a step that the store has just made, where it may have to be made again.
    pub(super) fn keep(&self, store: &dyn Store, step: impl FnOnce() -> Step) {
        self.keep_after(step, store.is_followed(), store.moves());
    }

    /// Keeps a step that was made after so many moves of the database. One that nothing can lose, since nothing follows
    /// the database, is kept only while earlier ones wait to be made again: it may depend on them.
    fn keep_after(&self, step: impl FnOnce() -> Step, is_followed: bool, moves: u64) {
        let has_moved = self.state().moves != moves;
        if !is_followed && !has_moved {
            return;
        }
        let step = step();
        if step.is_empty() {
            return;
        }
        let mut state = self.state();
        let now = Instant::now();
        state.bytes += step.size();
        state.steps.push_back((now, step));
        // By the age before this step, and not by the time: no steps are made for as long as the database is away.
        while let Some((at, oldest)) = state.steps.front()
            && (state.bytes > BYTES || (!has_moved && now.duration_since(*at) > KEPT))
        {
            state.bytes -= oldest.size();
            state.steps.pop_front();
        }
    }

    /// Takes note that what was kept before so many moves has been made again.
    pub(super) fn made_again(&self, moves: u64) {
        self.state().moves = moves;
    }

    /// Takes all that is kept.
    pub(super) fn take(&self) -> Vec<Step> {
        let mut state = self.state();
        state.bytes = 0;
        std::mem::take(&mut state.steps).into_iter().map(|(_, step)| step).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::domain::id::MessageId;
    use crate::domain::message::Message;
    use crate::domain::time::Timestamp;

    fn step(number: u8, bytes: usize) -> Step {
        let time = Timestamp::from_millis(1_700_000_000_000 + i64::from(number));
        let (id, body) = (MessageId::new(number.to_string()), Bytes::from(vec![0; bytes]));
        let message = Message::plain(id, time, "http://localhost/", body);
        let lane = Arc::from("a");
        Step::Accepted(vec![Accept::waiting(Arc::new(message), lane)])
    }

    fn taken(recent: &Recent) -> Vec<String> {
        let id = |step: &Step| match step {
            Step::Accepted(accepts) => accepts[0].message.id.to_string(),
            Step::Ended(_) => unreachable!("none was kept"),
        };
        recent.take().iter().map(id).collect()
    }

    #[test]
    fn steps_are_taken_once_in_their_order() {
        let recent = Recent::default();
        for number in [3, 1, 2] {
            recent.keep_after(|| step(number, 10), true, 0);
        }
        recent.keep_after(|| Step::Ended(Vec::new()), true, 0);
        assert_eq!(taken(&recent), ["3", "1", "2"]);
        assert_eq!((taken(&recent).len(), recent.state().bytes), (0, 0));
    }

    #[test]
    fn the_oldest_give_way() {
        let recent = Recent::default();
        for (number, bytes) in [(1, BYTES / 3), (2, BYTES / 3), (3, BYTES / 2)] {
            recent.keep_after(|| step(number, bytes), true, 0);
            assert!(recent.state().bytes <= BYTES);
        }
        assert_eq!(taken(&recent), ["2", "3"]);
        recent.keep_after(|| step(4, 10), true, 0);
        recent.state().steps[0].0 -= KEPT * 2;
        recent.keep_after(|| step(5, 10), true, 0);
        assert_eq!(taken(&recent), ["5"]);
    }

    #[test]
    fn steps_outlast_a_long_failover() {
        let recent = Recent::default();
        recent.keep_after(|| step(1, 10), true, 0);
        recent.keep_after(|| step(2, 10), true, 0);
        for (at, _) in &mut recent.state().steps {
            *at -= KEPT * 2;
        }
        // After a move, the first steps come before those are made again; nothing follows the new primary yet.
        recent.keep_after(|| step(3, 10), false, 1);
        assert_eq!(taken(&recent), ["1", "2", "3"]);
        recent.state().moves = 1;
        recent.keep_after(|| step(4, 10), false, 1);
        assert!(taken(&recent).is_empty(), "nothing can lose it");
    }

    #[test]
    fn a_refused_step_is_made_one_by_one() {
        let Step::Accepted(mut accepts) = step(1, 10) else { unreachable!("it is one") };
        let Step::Accepted(more) = step(2, 10) else { unreachable!("it is one") };
        accepts.extend(more);
        let singles = Step::Accepted(accepts).into_singles();
        assert_eq!(singles.iter().map(Step::len).collect::<Vec<_>>(), [1, 1]);
    }
}
