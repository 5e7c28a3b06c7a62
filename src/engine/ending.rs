//! Ends deliveries in the store that were cancelled while this node held them and had not started them.

use std::sync::Arc;

use super::backoff;
use super::dispatcher::Held;
use super::shared::{Shared, names};
use super::wakeups::opened_by;
use crate::store::Result;

/// Messages in one transaction.
const STEP: usize = 250;

/// Ends cancelled deliveries; those that the store can't end now are ended by [`run`].
pub(super) async fn end(shared: &Shared, mut cancelled: Vec<Held>) {
    if let Err(error) = end_all(shared, &mut cancelled).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            messages = cancelled.len(),
            "cancelled messages wait to be ended"
        );
        shared.dispatcher.end_later(cancelled);
    }
}

/// Ends what was cancelled while it was being leased, or could not be ended at once.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut backoff = backoff::fetching();
    loop {
        let mut cancelled = tokio::select! {
            biased;
            // The leases of a node that stops are freed, and whoever finds these deliveries free ends them.
            () = shared.draining.cancelled() => return,
            cancelled = shared.dispatcher.cancelled() => cancelled,
        };
        while let Err(error) = end_all(&shared, &mut cancelled).await {
            if !error.is_transient() {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    messages = cancelled.len(),
                    "cancelled messages could not be ended"
                );
                // Whoever finds their leases freed tries again.
                shared.node.mark_in_doubt();
                break;
            }
            if !backoff.wait(&shared.draining).await {
                return;
            }
        }
        backoff.reset();
    }
}

/// Ends cancelled deliveries a few at a time, and lets go of them. What is left is not ended.
async fn end_all(shared: &Shared, cancelled: &mut Vec<Held>) -> Result<()> {
    while !cancelled.is_empty() {
        let step = &cancelled[..cancelled.len().min(STEP)];
        shared.store.finish_cancelled(shared.node.id(), &names(step), shared.clock.now()).await?;
        shared.wakeups.gates.opened(step.iter().flat_map(|held| opened_by(&held.delivery)));
        let done = step.len();
        cancelled.drain(..done);
    }
    Ok(())
}
