//! Removes what is past its age, a small batch at a time.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::clock::pause;

/// Between two walks through the old messages.
const WALK: Duration = Duration::from_mins(1);
/// Between two batches of a walk: others come first.
const BATCH: Duration = Duration::from_millis(50);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut after = String::new();
    loop {
        let wait = if after.is_empty() { WALK } else { BATCH };
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => return,
            () = pause(wait) => {}
        }
        let step = shared.store.prune(shared.settings.retention, shared.clock.now(), &after);
        match step.await {
            Ok(next) => after = next.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "removing old messages failed");
                after.clear();
            }
        }
    }
}
