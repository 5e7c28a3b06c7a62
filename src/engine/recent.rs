//! What was stored lately, to be stored again where a failover has lost it.
//!
//! With an asynchronous standby the last steps may not have reached it when it takes the primary's place. As long as the
//! node that has made them lives, it has them in memory and makes them there again: messages under their ids, outcomes
//! under their leases, so that what did reach the standby stays as it is.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Backoff, Shared};
use crate::store::{Accept, Ended, Repeat, Result};

/// How long steps are kept: longer than a failover takes.
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
                    ended.finish.callbacks.iter().map(|message| message.size() + OVERHEAD).sum()
                };
                let response = |ended: &Ended| match &ended.finish.attempt.outcome {
                    crate::domain::outcome::Outcome::Response(response) => response.body.len(),
                    _ => 0,
                };
                ends.iter().map(|ended| OVERHEAD + callbacks(ended) + response(ended)).sum()
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Accepted(accepts) => accepts.is_empty(),
            Self::Ended(ends) => ends.is_empty(),
        }
    }
}

/// The steps that were made lately, in their order.
#[derive(Default)]
pub(crate) struct Recent(Mutex<State>);

#[derive(Default)]
struct State {
    steps: VecDeque<(Instant, Step)>,
    bytes: usize,
}

impl Recent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a step.
    pub(super) fn keep(&self, step: Step) {
        if step.is_empty() {
            return;
        }
        let mut state = self.state();
        let now = Instant::now();
        state.bytes += step.size();
        state.steps.push_back((now, step));
        while let Some((at, oldest)) = state.steps.front()
            && (state.bytes > BYTES || now.duration_since(*at) > KEPT)
        {
            state.bytes -= oldest.size();
            state.steps.pop_front();
        }
    }

    /// Takes all that is not too old.
    fn take(&self) -> Vec<Step> {
        let mut state = self.state();
        state.bytes = 0;
        std::mem::take(&mut state.steps)
            .into_iter()
            .filter(|(at, _)| at.elapsed() <= KEPT)
            .map(|(_, step)| step)
            .collect()
    }
}

/// Makes the steps again that were made lately.
pub(super) async fn store_again(shared: &Shared) {
    let steps = shared.recent.take();
    let mut backoff = Backoff::new();
    for step in &steps {
        while let Err(error) = make(shared, step).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "what was stored shortly before a failover could not be stored again"
            );
            if !error.is_transient() || shared.draining.is_cancelled() {
                break;
            }
            backoff.wait(shared).await;
        }
    }
    if !steps.is_empty() {
        tracing::info!(steps = steps.len(), "what was stored lately is stored again where it was missing");
        shared.note_due(shared.clock.now());
    }
}

async fn make(shared: &Shared, step: &Step) -> Result<()> {
    match step {
        Step::Accepted(accepts) => {
            shared.store.accept(shared.node(), accepts, Repeat::Again).await?;
            for accept in accepts {
                shared.note_waiting(&accept.message);
            }
        }
        Step::Ended(ends) => drop(shared.store.finish(shared.node(), ends).await?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::domain::id::MessageId;
    use crate::domain::message::{Headers, Message, Method, Options};
    use crate::domain::time::Timestamp;

    fn step(number: u8, bytes: usize) -> Step {
        let time = Timestamp::from_millis(1_700_000_000_000 + i64::from(number));
        let message = Message {
            id: MessageId::new(number.to_string()),
            created_at: time,
            due_at: time,
            method: Method::Post,
            url: "http://localhost/".to_owned(),
            headers: Headers::new(),
            body: Bytes::from(vec![0; bytes]),
            body_sha256: [0; 32],
            max_retries: 0,
            caller_ip: None,
            labels: Vec::new(),
            queue: None,
            url_group: None,
            endpoint: None,
            schedule_id: None,
            source_id: None,
            options: Options::default(),
        };
        let lane = Arc::from("a");
        Step::Accepted(vec![Accept { message: Arc::new(message), lane, lease: None, deduplication: None }])
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
            recent.keep(step(number, 10));
        }
        recent.keep(Step::Ended(Vec::new()));
        assert_eq!(taken(&recent), ["3", "1", "2"]);
        assert_eq!((taken(&recent).len(), recent.state().bytes), (0, 0));
    }

    #[test]
    fn the_oldest_give_way() {
        let recent = Recent::default();
        for (number, bytes) in [(1, BYTES / 3), (2, BYTES / 3), (3, BYTES / 2)] {
            recent.keep(step(number, bytes));
            assert!(recent.state().bytes <= BYTES);
        }
        assert_eq!(taken(&recent), ["2", "3"]);
        recent.keep(step(4, 10));
        recent.state().steps[0].0 -= KEPT * 2;
        recent.keep(step(5, 10));
        assert_eq!(taken(&recent), ["5"]);
    }
}
