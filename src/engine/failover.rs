//! Stores again what a failover has lost.

use std::collections::VecDeque;

use super::backoff;
use super::recent::Step;
use super::shared::Shared;
use crate::store::{Repeat, Result};

/// Makes the steps again that were made lately.
pub(super) async fn store_again(shared: &Shared) {
    let moves = shared.store.moves();
    let mut steps = make_all(shared).await;
    // Outcomes that came meanwhile may have come before their messages.
    steps += make_all(shared).await;
    shared.recent.made_again(moves);
    if steps > 0 {
        tracing::info!(steps, "what was stored lately is stored again where it was missing");
        shared.wakeups.due_at(shared.clock.now());
    }
}

/// Makes all again that is kept; how many steps.
async fn make_all(shared: &Shared) -> usize {
    let mut steps: VecDeque<Step> = shared.recent.take().into();
    let count = steps.len();
    let mut backoff = backoff::fetching();
    while let Some(step) = steps.pop_front() {
        let Err(error) = make(shared, &step).await else {
            backoff.reset();
            continue;
        };
        if !error.is_transient() && step.len() > 1 {
            // One that the store refuses must not take the others with it.
            for single in step.into_singles().into_iter().rev() {
                steps.push_front(single);
            }
            continue;
        }
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "what was stored shortly before a failover could not be stored again"
        );
        if error.is_transient() && backoff.wait(&shared.draining).await {
            steps.push_front(step);
        }
    }
    count
}

async fn make(shared: &Shared, step: &Step) -> Result<()> {
    match step {
        Step::Accepted(accepts) => {
            shared.store.accept(shared.node.id(), accepts, Repeat::Again).await?;
            for accept in accepts {
                shared.wakeups.waits(&accept.message);
            }
        }
        Step::Ended(ends) => drop(shared.store.finish(shared.node.id(), ends).await?),
    }
    Ok(())
}
