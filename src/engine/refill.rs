//! Fetches what waits in the store: delayed messages, retries, overflow, and what other nodes left.
//!
//! No polling while idle: a timer for the earliest due time, wake-ups from within the node, and a slow sweep for what
//! other nodes may have left.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Backoff, Shared, cancelling};
use crate::clock::{pause, pause_until};
use crate::domain::time::Timestamp;
use crate::store::{Delivery, Lease, Result};

/// How often to look without a reason: alone on SQLite, alone on Postgres, and beside other nodes.
const SWEEP_SQLITE: Duration = Duration::from_mins(1);
const SWEEP_ALONE: Duration = Duration::from_millis(2500);
const SWEEP_SHARED: Duration = Duration::from_secs(1);
/// While what is due first has no room: a slot that ends rings, but not what becomes due in other lanes meanwhile.
const SATURATED: Duration = Duration::from_millis(100);
/// When another node has locked what is due.
const CONTENDED: Duration = Duration::from_millis(20);
/// Deliveries looked at for the lanes that are due first.
const LOOK: usize = 256;

/// Tells that something will be due.
pub(super) struct Signal {
    /// The earliest due time that was told and not yet seen, in Unix milliseconds.
    due_ms: AtomicI64,
    wake: Notify,
    /// How many nodes are alive, for the sweep.
    nodes: AtomicU64,
}

impl Default for Signal {
    fn default() -> Self {
        Self { due_ms: AtomicI64::new(i64::MAX), wake: Notify::new(), nodes: AtomicU64::new(1) }
    }
}

impl Signal {
    pub(super) fn note_due(&self, due_at: Timestamp) {
        let before = self.due_ms.fetch_min(due_at.as_millis(), Ordering::AcqRel);
        if due_at.as_millis() < before {
            self.wake.notify_one();
        }
    }

    pub(super) fn set_nodes(&self, nodes: u64) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }
}

/// What a round of claiming came to.
enum Round {
    /// Look again at once.
    Again,
    /// Nothing is due for that long.
    Idle(Duration),
    /// What is due has to wait for room; look again after that long at the latest.
    Full(Duration),
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut after = String::new();
    let mut backoff = Backoff::new();
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
                    () = shared.dispatcher.room.notified() => {}
                    () = pause(wait) => {}
                }
                continue;
            }
            Ok(Round::Idle(wait)) => {
                backoff.reset();
                wait
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "due messages could not be fetched; trying again"
                );
                backoff.wait(&shared).await;
                continue;
            }
        };
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => return,
            () = sleep_until_due(&shared, wait) => {}
        }
    }
}

/// Waits, but no longer than until something that was told meanwhile is due.
async fn sleep_until_due(shared: &Shared, wait: Duration) {
    let deadline = Instant::now() + wait;
    loop {
        let told = Timestamp::from_millis(shared.refill.due_ms.load(Ordering::Acquire));
        let until = Instant::now() + told.since(shared.clock.now()).min(wait);
        tokio::select! {
            biased;
            () = pause_until(until.min(deadline)) => return,
            () = shared.refill.wake.notified() => {}
        }
    }
}

async fn round(shared: &Arc<Shared>, after: &mut String) -> Result<Round> {
    if !shared.dispatcher.has_room() || !shared.leases_hold() {
        return Ok(Round::Full(SATURATED));
    }
    let began = Instant::now();
    // What is told from here on is not covered by what is read below.
    shared.refill.due_ms.store(i64::MAX, Ordering::Release);
    let due = shared.store.due_lanes(LOOK, after).await?;
    *after = due.after;
    let lanes = due.lanes;
    // Where thousands of lanes hang, those that don't are found by walking on, for half of the time at most.
    let full = if after.is_empty() { SATURATED } else { SATURATED.min(began.elapsed()) };
    if lanes.is_empty() {
        return idle(shared, full).await;
    }
    let (wants, max_bytes) = shared.dispatcher.wants(lanes.iter().map(|lane| Arc::from(lane.as_str())));
    if wants.is_empty() {
        return Ok(Round::Full(full));
    }
    let withdrawals = cancelling::withdrawals(shared);
    let lease = shared.dispatcher.open_lease();
    let claimed = shared.store.claim(shared.node(), lease, &wants, max_bytes.max(1)).await;
    let result = match claimed {
        Ok(deliveries) if deliveries.is_empty() => idle(shared, full).await,
        Ok(deliveries) => {
            take(shared, deliveries, lease, withdrawals).await;
            Ok(Round::Again)
        }
        Err(error) => Err(error),
    };
    shared.dispatcher.close_lease(lease);
    if result.is_err() {
        shared.doubt_leases();
    }
    result
}

/// Hands claimed deliveries over; those that a user has cancelled meanwhile end here. `withdrawals` are those before the
/// claim.
async fn take(shared: &Arc<Shared>, deliveries: Vec<Delivery>, lease: Lease, withdrawals: u64) {
    let (cancelled, live): (Vec<Delivery>, Vec<Delivery>) =
        deliveries.into_iter().partition(|delivery| delivery.cancel_requested);
    cancelling::start(shared, withdrawals, lease, shared.dispatcher.admit_claimed(live)).await;
    if !cancelled.is_empty() {
        cancelling::end(shared, &cancelled).await;
    }
}

/// How often to look without a reason.
pub(super) fn sweep(shared: &Shared) -> Duration {
    match (shared.store.is_shared(), is_alone(shared)) {
        (false, _) => SWEEP_SQLITE,
        (true, true) => SWEEP_ALONE,
        (true, false) => SWEEP_SHARED,
    }
}

/// Whether no other node uses the store, as far as this one has heard.
pub(super) fn is_alone(shared: &Shared) -> bool {
    !shared.store.is_shared() || shared.refill.nodes.load(Ordering::Relaxed) <= 1
}

/// How long nothing will be due, as far as this node can know; `full` is how long to wait for room.
async fn idle(shared: &Shared, full: Duration) -> Result<Round> {
    let sweep = sweep(shared);
    let next = shared.store.next_due().await?;
    Ok(Round::Idle(match next.due_at {
        None => sweep,
        // What is due has no room; what had room was not due.
        Some(due_at) if due_at <= next.now && shared.dispatcher.is_hungry() => return Ok(Round::Full(full)),
        Some(due_at) if due_at <= next.now => CONTENDED,
        Some(due_at) => due_at.since(next.now).min(sweep),
    }))
}
