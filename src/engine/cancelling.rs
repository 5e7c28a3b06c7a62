//! Cancelling many messages: found and cancelled in small steps in the store, and withdrawn from the dispatcher. Other
//! nodes are told once, at the end, and withdraw what they have in memory; they look for it every few seconds as well.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Backoff, Engine, Shared, attempt, gates};
use crate::domain::id::MessageId;
use crate::store::{Cancellation, Delivery, Lease, NodeId, Result, UnfinishedFilter};

/// Messages that are looked at at once.
const LOOK: usize = 2000;
/// Messages in one transaction.
const STEP: usize = 250;

impl Engine {
    /// Cancels those of the messages that are unfinished, as [`Engine::cancel`] does each, but for what is cancelled
    /// already; `limit` at most. How many.
    pub async fn cancel_each(&self, ids: &[MessageId], limit: usize) -> Result<usize> {
        let mut cancelled = Cancelled::default();
        let result = self.cancel_steps(ids, limit, &mut cancelled).await;
        self.cancelled_many(&cancelled).await;
        result.map(|()| cancelled.count)
    }

    /// Cancels what is unfinished and matches, the earliest first, `limit` at most. How many.
    pub async fn cancel_matching(&self, filter: &UnfinishedFilter, limit: usize) -> Result<usize> {
        let mut cancelled = Cancelled::default();
        let result = self.cancel_walk(filter, limit, &mut cancelled).await;
        self.cancelled_many(&cancelled).await;
        result.map(|()| cancelled.count)
    }

    async fn cancel_walk(
        &self,
        filter: &UnfinishedFilter,
        limit: usize,
        cancelled: &mut Cancelled,
    ) -> Result<()> {
        let mut after = None;
        while cancelled.count < limit {
            let look = self.shared.store.unfinished(filter, after.as_ref(), LOOK).await?;
            self.cancel_steps(&look.found, limit, cancelled).await?;
            after = look.next;
            if after.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn cancel_steps(&self, ids: &[MessageId], limit: usize, cancelled: &mut Cancelled) -> Result<()> {
        let mut rest = ids;
        while !rest.is_empty() && cancelled.count < limit {
            let (step, later) = rest.split_at(rest.len().min(STEP).min(limit - cancelled.count));
            rest = later;
            let results = self.shared.store.cancel_many(step, self.now()).await?;
            cancelled.count += results.iter().filter(|result| **result != Cancellation::NotFound).count();
            let requested: Vec<MessageId> = step
                .iter()
                .zip(results)
                .filter(|(_, result)| *result == Cancellation::Requested)
                .map(|(id, _)| id.clone())
                .collect();
            cancelled.left += withdraw(&self.shared, &requested).await;
        }
        Ok(())
    }

    /// What follows when many messages have been cancelled, all of them or some of them before a fault.
    async fn cancelled_many(&self, cancelled: &Cancelled) {
        if cancelled.count > 0 {
            self.gates_changed();
        }
        tell_others(&self.shared, cancelled.left).await;
    }
}

/// What a bulk cancel has come to.
#[derive(Default)]
struct Cancelled {
    count: usize,
    /// Those of them that run here or are in another node's hands.
    left: usize,
}

/// Ends what has been cancelled and waits in this node's memory. How many of them were elsewhere.
pub(super) async fn withdraw(shared: &Arc<Shared>, ids: &[MessageId]) -> usize {
    shared.withdrawals.fetch_add(1, Ordering::AcqRel);
    ids.len() - take_out(shared, &ids.iter().collect()).await
}

/// The same without a note of it; how many of them waited here.
async fn take_out(shared: &Arc<Shared>, ids: &HashSet<&MessageId>) -> usize {
    let waiting = shared.dispatcher.withdraw(ids);
    end_all(shared, &waiting).await;
    waiting.len()
}

/// Ends cancelled deliveries in small steps, and lets go of them.
async fn end_all(shared: &Arc<Shared>, cancelled: &[Delivery]) {
    for step in cancelled.chunks(STEP) {
        end(shared, step).await;
        shared.dispatcher.forget_all(step.iter());
    }
}

/// Ends leased deliveries that a user has cancelled and that have not started.
pub(super) async fn end(shared: &Arc<Shared>, cancelled: &[Delivery]) {
    let held = super::held(cancelled);
    let opened: Vec<Arc<str>> = cancelled.iter().flat_map(gates::opened_by).collect();
    let node = shared.node();
    let finished = shared.store.finish_cancelled(node, &held, shared.clock.now()).await;
    shared.gates.look_at(opened.iter().map(Arc::clone));
    if let Err(error) = finished {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            messages = held.len(),
            "cancelled messages wait to be ended"
        );
        let end = end_later(Arc::clone(shared), node, held, opened);
        shared.tasks.spawn("cancelled messages", end);
    }
}

/// Ends cancelled deliveries when the store can. Their leases may be those of others that are under way for hours.
async fn end_later(shared: Arc<Shared>, node: NodeId, held: Vec<(MessageId, Lease)>, opened: Vec<Arc<str>>) {
    let mut backoff = Backoff::new();
    loop {
        backoff.wait(&shared).await;
        // Who is stopping frees all leases, and whoever finds them free ends them, since they are marked.
        if shared.draining.is_cancelled() {
            break;
        }
        match shared.store.finish_cancelled(node, &held, shared.clock.now()).await {
            Ok(_) => break,
            Err(error) if error.is_transient() => {}
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    messages = held.len(),
                    "cancelled messages could not be ended"
                );
                // Whoever finds their leases freed tries again.
                shared.doubt_leases();
                break;
            }
        }
    }
    shared.gates.look_at(opened);
}

/// Lets other nodes look for what has been cancelled, if any of it can be in their memory.
pub(super) async fn tell_others(shared: &Arc<Shared>, left: usize) {
    if left > 0
        && let Err(error) = shared.store.tell_others().await
    {
        // They find out when they look by themselves, every few seconds.
        tracing::debug!(error = &error as &dyn std::error::Error, "other nodes were not told of a cancel");
    }
}

/// How often this node's memory has been looked through for what is cancelled.
pub(super) fn withdrawals(shared: &Shared) -> u64 {
    shared.withdrawals.load(Ordering::Acquire)
}

/// Starts the attempts of what was just admitted under this lease. What was cancelled after it was stored or claimed and
/// before it was in this node's memory, where a look since `seen` missed it, ends instead.
pub(super) async fn start(shared: &Arc<Shared>, seen: u64, lease: Lease, mut started: Vec<Delivery>) {
    if withdrawals(shared) != seen {
        let mut admitted = shared.dispatcher.waiting_under(lease);
        admitted.extend(started.iter().map(|delivery| delivery.message.id.clone()));
        match shared.store.cancel_requested(&admitted).await {
            Ok(cancelled) => {
                let cancelled: HashSet<&MessageId> = cancelled.iter().collect();
                take_out(shared, &cancelled).await;
                let missed: Vec<Delivery> =
                    started.extract_if(.., |delivery| cancelled.contains(&delivery.message.id)).collect();
                started
                    .extend(missed.iter().flat_map(|one| shared.dispatcher.attempt_ended(&one.lane, false)));
                end_all(shared, &missed).await;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "messages may be attempted that were cancelled");
            }
        }
    }
    attempt::start(shared, started);
}

/// Ends what was cancelled through other nodes and waits in this node's memory.
pub(super) async fn withdraw_cancelled(shared: &Arc<Shared>) -> Result<()> {
    let cancelled = shared.store.cancelled_leases(shared.node()).await?;
    // Some of these may be on their way here from a claim, which then asks for itself.
    shared.withdrawals.fetch_add(1, Ordering::AcqRel);
    take_out(shared, &cancelled.iter().collect()).await;
    Ok(())
}
