//! What attempts came to, stored in batches: each outcome with all its consequences, only while its lease holds.
//!
//! Invariant: an outcome is kept and tried again until the store has answered; what it held of this node's room is
//! freed only then.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, mpsc};
use tokio_util::task::TaskTracker;

use super::ids::FreshIds;
use super::{Shared, cancelling, gates, recent};
use crate::clock::pause;
use crate::domain::destination::validate_url;
use crate::domain::gate::is_gated;
use crate::domain::message::Message;
use crate::domain::outcome::{Attempt, Context, Finish, Next, decide};
use crate::store::{Applied, Delivery, Ended, Lease, StoreError};

/// Outcomes in one batch.
const BATCH: usize = 256;
/// Bytes of responses and callbacks in one batch, unless one outcome alone has more.
const BATCH_BYTES: usize = 16 << 20;

/// Outcomes from which on a batch is written at once.
const FEW: usize = 16;
/// How long fewer wait for others: a sync costs the same for one and for many, and only a callback waits for it.
const LINGER: Duration = Duration::from_millis(1);

/// An outcome to store.
pub(super) struct Job {
    delivery: Delivery,
    finish: Arc<Finish>,
    /// Lanes of the callback messages.
    lanes: Vec<Arc<str>>,
    /// The share of memory that a large response body holds.
    memory: Option<OwnedSemaphorePermit>,
}

impl Job {
    fn size(&self) -> usize {
        let callbacks: usize = self.finish.callbacks.iter().map(|message| message.size()).sum();
        let response = match &self.finish.attempt.outcome {
            crate::domain::outcome::Outcome::Response(response) => response.body.len(),
            _ => 0,
        };
        callbacks + response
    }
}

/// Decides what follows from an attempt, and hands it over. Waits while the finisher is behind.
pub(super) async fn submit(
    shared: &Arc<Shared>,
    delivery: Delivery,
    attempt: Attempt,
    memory: Option<OwnedSemaphorePermit>,
) {
    let decided = AssertUnwindSafe(|| job(shared, delivery.clone(), attempt, false, memory));
    let Ok(job) = std::panic::catch_unwind(decided) else {
        tracing::error!(message.id = %delivery.message.id, "deciding on an outcome failed; the attempt will be repeated");
        shared.dispatcher.forget(&delivery);
        shared.doubt_leases();
        return;
    };
    if let Err(mpsc::error::SendError(job)) = shared.finisher.send(job).await {
        tracing::error!(message.id = %job.delivery.message.id, "an outcome came too late to be stored");
    }
}

fn job(
    shared: &Shared,
    delivery: Delivery,
    attempt: Attempt,
    cancel_requested: bool,
    memory: Option<OwnedSemaphorePermit>,
) -> Job {
    let mut ids = FreshIds(shared.chance.clone());
    let mut context = Context { cancel_requested, max_body: shared.settings.max_response, ids: &mut ids };
    let finish = Arc::new(decide(&delivery.message, attempt, &mut context));
    let lanes = finish.callbacks.iter().map(|message| lane(message)).collect();
    Job { delivery, finish, lanes, memory }
}

/// The lane of a message: its destination's origin.
pub fn lane(message: &Message) -> Arc<str> {
    match validate_url(&message.url) {
        Ok(origin) => Arc::from(origin.to_string()),
        // It will fail at its attempt, with the reason; the lane only has to be one.
        Err(_) => Arc::from("invalid"),
    }
}

pub(super) fn start(shared: &Arc<Shared>, jobs: mpsc::Receiver<Job>, tasks: &TaskTracker) {
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..shared.settings.writers {
        super::spawn(shared, tasks, "storing outcomes", run(Arc::clone(shared), Arc::clone(&jobs)));
    }
}

async fn run(shared: Arc<Shared>, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) {
    loop {
        let batch = {
            let mut jobs = jobs.lock().await;
            let first = tokio::select! {
                biased;
                first = jobs.recv() => first,
                () = shared.stopping.cancelled() => return,
            };
            let Some(first) = first else { return };
            // What is taken out of the channel must not be dropped with a future that loses a race.
            gather(first, &mut jobs).await
        };
        store(&shared, batch).await;
    }
}

async fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.size();
    let mut batch = vec![first];
    take_waiting(jobs, &mut batch, &mut bytes);
    // Where another one waits for this one's end, a moment is long.
    let hurry = |job: &Job| gates::opened_by(&job.delivery).next().is_some();
    if batch.len() < FEW && !batch.iter().any(hurry) {
        pause(LINGER).await;
        take_waiting(jobs, &mut batch, &mut bytes);
    }
    batch
}

fn take_waiting(jobs: &mut mpsc::Receiver<Job>, batch: &mut Vec<Job>, bytes: &mut usize) {
    while batch.len() < BATCH && *bytes < BATCH_BYTES {
        let Ok(next) = jobs.try_recv() else { break };
        *bytes += next.size();
        batch.push(next);
    }
}

async fn store(shared: &Arc<Shared>, mut jobs: Vec<Job>) {
    // Outcomes whose message was cancelled meanwhile go through again, as cancelled.
    while !jobs.is_empty() {
        jobs = store_once(shared, jobs).await;
    }
}

/// Stores each outcome by itself: one that the store refuses must not take the others with it.
async fn finish_singly(shared: &Shared, ended: &[Ended]) -> (Vec<Applied>, bool) {
    let mut all = Vec::with_capacity(ended.len());
    let mut all_sure = true;
    for one in ended {
        let (applied, sure) = Box::pin(finish(shared, std::slice::from_ref(one))).await;
        all.extend(applied);
        all_sure &= sure;
    }
    (all, all_sure)
}

/// Stores a batch; what is to be stored differently.
async fn store_once(shared: &Arc<Shared>, jobs: Vec<Job>) -> Vec<Job> {
    let lease = shared.dispatcher.open_lease();
    let ended = lease_callbacks(shared, &jobs, lease);
    let withdrawals = cancelling::withdrawals(shared);
    let held_at = shared.clock.since_boot();
    let (applied, sure) = finish(shared, &ended).await;
    // Also those whose leases were gone: they may have come to the new primary before their messages do.
    recent::keep(shared, || recent::Step::Ended(ended.clone()));
    let mut started = Vec::new();
    let mut again = Vec::new();
    let mut finished = Vec::with_capacity(jobs.len());
    for ((job, ended), applied) in jobs.into_iter().zip(ended).zip(applied) {
        let callbacks = job.finish.callbacks.iter().zip(&ended.callbacks);
        match applied {
            Applied::Yes => {
                note_due(shared, &job, &ended.callbacks);
                for (message, (lane, lease)) in callbacks {
                    let Some(lease) = *lease else { continue };
                    started.push(Delivery::stored_leased(message, lane, lease, ended.slot.as_ref()));
                }
            }
            Applied::No => {
                if !sure {
                    // It may have been stored all the same.
                    note_due(shared, &job, &ended.callbacks);
                }
                for (message, (lane, lease)) in callbacks {
                    if lease.is_some() {
                        shared.dispatcher.unreserve(lane, message.size());
                    }
                }
            }
        }
        let failed = matches!(job.finish.next, Next::Retry { .. } | Next::Failed { .. });
        if applied == Applied::No && failed {
            again.push(self::job(shared, job.delivery, job.finish.attempt.clone(), true, job.memory));
        } else {
            if applied == Applied::No {
                tracing::debug!(message.id = %job.delivery.message.id, "an outcome was dropped: the lease was gone");
            }
            let last = applied == Applied::Yes && is_last(&job);
            finished.push((job.delivery, last));
        }
    }
    shared.dispatcher.forget_all(finished.iter().map(|(delivery, _)| delivery));
    shared.gates.ended(finished.iter().map(|(delivery, last)| (delivery, *last)), held_at);
    cancelling::start(shared, withdrawals, lease, shared.dispatcher.admit(started)).await;
    shared.dispatcher.close_lease(lease);
    if !sure {
        shared.doubt_leases();
    }
    again
}

/// Whether nothing else can have the delivery's slot, once it is finished: no callback of this attempt or an earlier one.
fn is_last(job: &Job) -> bool {
    let holder = job.delivery.slot.as_ref().map(|slot| &slot.holder);
    matches!(job.finish.next, Next::Delivered)
        && job.delivery.retried == 0
        && job.finish.callbacks.is_empty()
        && holder == Some(&job.delivery.message.id)
}

/// The batch for the store; callbacks that are due now are leased as far as there is room.
fn lease_callbacks(shared: &Shared, jobs: &[Job], lease: Lease) -> Vec<Ended> {
    jobs.iter()
        .map(|job| {
            let callbacks = job
                .finish
                .callbacks
                .iter()
                .zip(&job.lanes)
                .map(|(message, lane)| {
                    let due = message.due_at <= message.created_at && !is_gated(message);
                    let room = due
                        && shared
                            .dispatcher
                            .reserve(std::iter::once((lane, message.size())))
                            .first()
                            .is_some_and(|fits| *fits);
                    (Arc::clone(lane), room.then_some(lease))
                })
                .collect();
            Ended {
                id: job.delivery.message.id.clone(),
                lease: job.delivery.lease,
                finish: Arc::clone(&job.finish),
                callbacks,
                slot: job.delivery.slot.clone(),
            }
        })
        .collect()
}

fn note_due(shared: &Shared, job: &Job, callbacks: &[(Arc<str>, Option<Lease>)]) {
    if let Next::Retry { due_at } = job.finish.next
        && !is_gated(&job.delivery.message)
    {
        shared.refill.note_due(due_at);
    }
    for (message, (_, lease)) in job.finish.callbacks.iter().zip(callbacks) {
        if lease.is_none() {
            shared.note_waiting(message);
        }
    }
}

/// Stores the batch, as often as it takes. Whether the answer is that of the only try: after a lost answer a batch that
/// was stored looks like one whose leases are gone.
async fn finish(shared: &Shared, ended: &[Ended]) -> (Vec<Applied>, bool) {
    let mut rest = Duration::from_millis(20);
    let mut sure = true;
    loop {
        match shared.store.finish(shared.node(), ended).await {
            Ok(applied) => return (applied, sure),
            Err(StoreError::Deadline(_)) if ended.len() > 1 => {
                // Too much at once for this connection, perhaps; or it was stored and the answer was late.
                let (applied, _) = finish_singly(shared, ended).await;
                return (applied, false);
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    outcomes = ended.len(),
                    "storing outcomes is tried again"
                );
            }
            Err(_) if ended.len() > 1 => return finish_singly(shared, ended).await,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    message.id = ended.first().map(|ended| ended.id.as_str()),
                    "an outcome could not be stored; the attempt will be repeated"
                );
                return (vec![Applied::No; ended.len()], false);
            }
        }
        sure = false;
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return (vec![Applied::No; ended.len()], false),
            () = pause(rest) => {}
        }
        rest = (rest * 2).min(Duration::from_secs(2));
    }
}
