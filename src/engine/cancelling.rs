//! Cancelling messages: in the store, in small steps where there are many, and in this node's memory. Other nodes are told
//! once, at the end, and withdraw what they have in memory; they look for it every few seconds as well.

use std::time::Duration;

use super::ending::end;
use super::observer::Happened;
use super::shared::Shared;
use crate::clock::pause;
use crate::domain::gate::queue_gate;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::store::{Cancellation, Result, UnfinishedFilter};

/// Messages in one page of a search for those to cancel.
const PAGE: usize = 2000;
/// Messages in one transaction.
const STEP: usize = 250;

/// Cancels a message.
pub(super) async fn cancel(shared: &Shared, id: &MessageId) -> Result<Cancellation> {
    let cancellation = shared.store.cancel(id, shared.clock.now()).await?;
    match cancellation {
        Cancellation::NotFound => {}
        Cancellation::Cancelled => {
            shared.tell(Happened::Cancelled { message: id });
            leave_slot(shared, id).await;
        }
        Cancellation::Requested => {
            shared.tell(Happened::Cancelled { message: id });
            let elsewhere = withdraw(shared, std::slice::from_ref(id)).await;
            tell_others(shared, elsewhere).await;
        }
    }
    Ok(cancellation)
}

/// Opens the queue of a message that is gone: its own, or its source's.
async fn leave_slot(shared: &Shared, id: &MessageId) {
    let mut next = Some(id.clone());
    while let Some(id) = next.take() {
        match shared.store.message(&id).await {
            Ok(Some(Message { queue: Some(queue), .. })) => {
                shared.wakeups.gates.opened([queue_gate(&queue).into()]);
            }
            Ok(message) => next = message.and_then(|message| message.source_id),
            // The next sweep finds it too.
            Err(_) => shared.wakeups.gates.all_opened(),
        }
    }
}

/// Removes a queue, and cancels what is in it a few messages at a time.
pub(super) async fn remove_queue(shared: &Shared, name: &str) -> Result<()> {
    loop {
        let removal = shared.store.remove_queue(name, shared.clock.now()).await?;
        let elsewhere = withdraw(shared, &removal.requested).await;
        tell_others(shared, elsewhere).await;
        if removal.done {
            return Ok(());
        }
        // Others come first.
        pause(Duration::from_millis(5)).await;
    }
}

/// Cancels those of the messages that are unfinished, at most `limit` of them; how many.
pub(super) async fn cancel_each(shared: &Shared, ids: &[MessageId], limit: usize) -> Result<usize> {
    let mut cancelled = Cancelled::default();
    let result = cancelled.take(shared, ids, limit).await;
    cancelled.follow_up(shared).await;
    result.map(|()| cancelled.count)
}

/// Cancels what is unfinished and matches, the earliest first, at most `limit` messages; how many.
pub(super) async fn cancel_matching(
    shared: &Shared,
    filter: &UnfinishedFilter,
    limit: usize,
) -> Result<usize> {
    let mut cancelled = Cancelled::default();
    let result = cancelled.walk(shared, filter, limit).await;
    cancelled.follow_up(shared).await;
    result.map(|()| cancelled.count)
}

/// The progress of a bulk cancel.
#[derive(Default)]
struct Cancelled {
    count: usize,
    /// Cancelled messages that run here or are in another node's hands.
    elsewhere: usize,
}

impl Cancelled {
    async fn walk(&mut self, shared: &Shared, filter: &UnfinishedFilter, limit: usize) -> Result<()> {
        let mut after = None;
        while self.count < limit {
            let page = shared.store.unfinished(filter, after.as_ref(), PAGE).await?;
            self.take(shared, &page.found, limit).await?;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn take(&mut self, shared: &Shared, ids: &[MessageId], limit: usize) -> Result<()> {
        let mut rest = ids;
        while !rest.is_empty() && self.count < limit {
            let (step, later) = rest.split_at(rest.len().min(STEP).min(limit - self.count));
            rest = later;
            let results = shared.store.cancel_many(step, shared.clock.now()).await?;
            let mut requested = Vec::new();
            for (id, result) in
                step.iter().zip(results).filter(|(_, result)| *result != Cancellation::NotFound)
            {
                self.count += 1;
                shared.tell(Happened::Cancelled { message: id });
                if result == Cancellation::Requested {
                    requested.push(id.clone());
                }
            }
            self.elsewhere += withdraw(shared, &requested).await;
        }
        Ok(())
    }

    /// Does what follows when many messages have been cancelled, all of them or some of them before a fault.
    async fn follow_up(&self, shared: &Shared) {
        if self.count > 0 {
            shared.wakeups.gates.all_opened();
        }
        tell_others(shared, self.elsewhere).await;
    }
}

/// Ends what has been cancelled and waits in this node's memory; how many of the messages did not.
async fn withdraw(shared: &Shared, ids: &[MessageId]) -> usize {
    let waiting = shared.dispatcher.withdraw(ids);
    let elsewhere = ids.len() - waiting.len();
    end(shared, waiting).await;
    elsewhere
}

/// Has other nodes look for cancelled messages in their memory, if there can be any.
async fn tell_others(shared: &Shared, elsewhere: usize) {
    if elsewhere > 0
        && let Err(error) = shared.store.tell_others().await
    {
        // The others look by themselves as well, every few seconds.
        tracing::debug!(error = &error as &dyn std::error::Error, "other nodes were not told of a cancel");
    }
}

/// Ends what was cancelled through other nodes and waits in this node's memory.
pub(super) async fn withdraw_cancelled(shared: &Shared) -> Result<()> {
    let cancelled = shared.store.cancelled_leases(shared.node.id()).await?;
    withdraw(shared, &cancelled).await;
    Ok(())
}
