//! Fetches what waits in the store: delayed messages, retries, overflow, and what other nodes left.
//!
//! No polling while idle: a timer for the earliest due time, wake-ups from within the node, and a slow sweep for what
//! other nodes may have left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff;
use super::observer::Happened;
use super::shared::Shared;
use crate::clock::{pause, pause_until};
use crate::store::Result;

/// How long to wait for room at most: a slot that ends wakes, but not what becomes due in other lanes meanwhile.
const SATURATED: Duration = Duration::from_millis(100);
/// How long to wait where another node has locked what is due.
const CONTENDED: Duration = Duration::from_millis(20);
/// Deliveries that are due first, for whose lanes a query asks.
const PAGE: usize = 256;

/// The result of a round of claiming.
enum Round {
    /// Another one may find more at once.
    Again,
    /// Nothing is due for that long.
    Idle(Duration),
    /// Everything that is due has to wait for room, for that long at most.
    Full(Duration),
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut after = String::new();
    let mut backoff = backoff::fetching();
    while !shared.draining.is_cancelled() {
        let wait = match round(&shared, &mut after).await {
            Ok(Round::Again) => {
                backoff.reset();
                continue;
            }
            Ok(Round::Full(wait)) => {
                tokio::select! {
                    biased;
                    () = shared.draining.cancelled() => return,
                    () = shared.dispatcher.room() => {}
                    () = pause(wait) => {}
                }
                continue;
            }
            Ok(Round::Idle(wait)) => wait,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "due messages could not be fetched; trying again"
                );
                backoff.wait(&shared.draining).await;
                continue;
            }
        };
        backoff.reset();
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => return,
            () = pause_or_due(&shared, wait) => {}
        }
    }
}

/// Waits, but no longer than until something is due of which a wake-up tells meanwhile.
async fn pause_or_due(shared: &Shared, wait: Duration) {
    let deadline = Instant::now() + wait;
    loop {
        let next = shared.wakeups.due.next().map(|due_at| due_at.since(shared.clock.now()));
        let until = Instant::now() + next.unwrap_or(wait).min(wait);
        tokio::select! {
            biased;
            () = pause_until(until.min(deadline)) => return,
            () = shared.wakeups.due.changed() => {}
        }
    }
}

async fn round(shared: &Shared, after: &mut String) -> Result<Round> {
    if !shared.dispatcher.has_room() || !shared.node.leases_hold() {
        return Ok(Round::Full(SATURATED));
    }
    let began = Instant::now();
    // Before the store is asked, so that a wake-up meanwhile is kept.
    shared.wakeups.due.reset();
    let due = shared.store.due_lanes(PAGE, after).await?;
    *after = due.after;
    // Where thousands of lanes hang, those that don't are found by walking on, for half of the time at most.
    let full = if after.is_empty() { SATURATED } else { SATURATED.min(began.elapsed()) };
    if due.lanes.is_empty() {
        return idle(shared, full).await;
    }
    let (wants, max_bytes) = shared.dispatcher.wants(due.lanes.into_iter().map(Arc::from));
    if wants.is_empty() {
        return Ok(Round::Full(full));
    }
    let claim = shared.dispatcher.claim();
    let node = shared.node.id();
    let claimed = shared.store.claim(node, claim.lease(), &wants, max_bytes.max(1)).await?;
    if claimed.is_empty() {
        claim.settle([]);
        return idle(shared, full).await;
    }
    for delivery in &claimed {
        shared.tell(Happened::claimed(delivery));
    }
    claim.settle(shared.dispatcher.with_permits(claimed));
    Ok(Round::Again)
}

/// How long nothing will be due, as far as this node can know; `full` is how long to wait for room.
async fn idle(shared: &Shared, full: Duration) -> Result<Round> {
    let sweep = shared.node.sweep();
    let next = shared.store.next_due().await?;
    Ok(match next.due_at {
        None => Round::Idle(sweep),
        // All that is due is in lanes without room.
        Some(due_at) if due_at <= next.now && shared.dispatcher.is_hungry() => Round::Full(full),
        Some(due_at) if due_at <= next.now => Round::Idle(CONTENDED),
        Some(due_at) => Round::Idle(due_at.since(next.now).min(sweep)),
    })
}
