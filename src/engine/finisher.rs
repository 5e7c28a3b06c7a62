//! Stores the outcomes of attempts in batches: each with all its consequences, only while its lease holds.
//!
//! Invariant: an outcome is kept and tried again until the store has answered; its delivery's room is given back only then.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, mpsc};

use super::backoff::Backoff;
use super::dispatcher::{Held, Permit};
use super::ids::FreshIds;
use super::observer::Happened;
use super::recent::Step;
use super::runs::{self, KnownRun};
use super::shared::Shared;
use super::wakeups::opened_by;
use crate::clock::pause;
use crate::domain::destination;
use crate::domain::gate::is_gated;
use crate::domain::message::Message;
use crate::domain::outcome::{Attempt, Context, Effect, Finish, InRun, Next, decide};
use crate::mutation::{self, Mutation};
use crate::store::{Applied, Delivery, Ended, Lease, PassOn, StoreError};

/// Outcomes that wait for the finisher; beyond, attempts keep their slots.
const WAITING: usize = 512;
/// Outcomes in one batch.
const BATCH: usize = 256;
/// Bytes of responses and callbacks in one batch, unless one outcome alone has more.
const BATCH_BYTES: usize = 16 << 20;

/// Outcomes from which on a batch is written at once.
const FEW: usize = 16;
/// How long fewer wait for others: a sync costs the same for one and for many, and only a callback waits for it.
const LINGER: Duration = Duration::from_millis(1);

/// An outcome to store.
struct Job {
    held: Held,
    finish: Arc<Finish>,
    /// Lanes of the callback messages.
    lanes: Vec<Arc<str>>,
    /// The share of memory that a large response body holds.
    memory: Option<OwnedSemaphorePermit>,
}

impl Job {
    fn new(finish: Finish, held: Held, memory: Option<OwnedSemaphorePermit>) -> Self {
        let lanes = finish.callbacks().map(|message| destination::lane(&message.url)).collect();
        Self { held, finish: Arc::new(finish), lanes, memory }
    }

    /// Bytes of the response and the callbacks.
    fn size(&self) -> usize {
        let callbacks: usize = self.finish.callbacks().map(|message| message.size()).sum();
        callbacks + self.finish.attempt.response().map_or(0, |response| response.body.len())
    }

    /// Whether nothing else can have the delivery's slot once it is finished: no callback of this attempt or an earlier
    /// one.
    fn frees_slot(&self) -> bool {
        let delivery = &self.held.delivery;
        let holder = delivery.slot.as_ref().map(|slot| &slot.holder);
        matches!(self.finish.next, Next::Delivered)
            && delivery.retried == 0
            && self.finish.effects.is_empty()
            && holder == Some(&delivery.message.id)
    }
}

/// Takes outcomes, to be stored.
#[derive(Clone)]
pub(super) struct Finisher(mpsc::Sender<Job>);

impl Finisher {
    /// Starts the tasks that store outcomes.
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..shared.settings.writers {
            shared.spawn("storing outcomes", run(Arc::clone(shared), Arc::clone(&waiting)));
        }
        Self(jobs)
    }

    /// Decides what follows from an attempt, and hands it over. Waits while storing is behind.
    pub(super) async fn submit(
        &self,
        shared: &Shared,
        held: Held,
        attempt: Attempt,
        run: Option<&KnownRun>,
        memory: Option<OwnedSemaphorePermit>,
    ) {
        let message = &held.delivery.message;
        let run = run.map(KnownRun::context);
        let deciding = AssertUnwindSafe(|| finish(shared, message, attempt, run, Cancel::NotRequested));
        let Ok(finish) = std::panic::catch_unwind(deciding) else {
            tracing::error!(message.id = %message.id, "deciding on an outcome failed; the attempt will be repeated");
            drop(held);
            shared.node.mark_in_doubt();
            return;
        };
        if let Err(mpsc::error::SendError(job)) = self.0.send(Job::new(finish, held, memory)).await {
            let id = &job.held.delivery.message.id;
            tracing::error!(message.id = %id, "an outcome came too late to be stored");
        }
    }
}

/// Whether a user has cancelled a message during its attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cancel {
    Requested,
    NotRequested,
}

fn finish(
    shared: &Shared,
    message: &Message,
    attempt: Attempt,
    run: Option<InRun<'_>>,
    cancel: Cancel,
) -> Finish {
    let mut context = Context {
        cancel_requested: cancel == Cancel::Requested,
        max_body: shared.settings.max_response,
        ids: &mut FreshIds(shared.chance.clone()),
        run,
    };
    decide(message, attempt, &mut context)
}

async fn run(shared: Arc<Shared>, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) {
    loop {
        let mut batch = {
            let mut jobs = jobs.lock().await;
            let first = tokio::select! {
                biased;
                first = jobs.recv() => first,
                () = shared.stopping.cancelled() => return,
            };
            let Some(first) = first else { return };
            // Not in the race above: jobs that are taken out of the channel must not be dropped with a loser.
            gather(first, &mut jobs).await
        };
        while !batch.is_empty() {
            batch = store(&shared, batch).await;
        }
    }
}

async fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.size();
    let mut batch = vec![first];
    take_waiting(jobs, &mut batch, &mut bytes);
    // Where another one waits for this one's end, a moment is long.
    let hurry = |job: &Job| opened_by(&job.held.delivery).next().is_some();
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

/// Stores a batch; returns failures whose message was cancelled meanwhile, to be stored as cancelled.
async fn store(shared: &Shared, jobs: Vec<Job>) -> Vec<Job> {
    let claim = shared.dispatcher.claim();
    let (ends, permits): (Vec<Ended>, Vec<Permits>) =
        jobs.iter().map(|job| lease_callbacks(shared, job, claim.lease())).unzip();
    let held_at = shared.clock.since_boot();
    let Stored { applied, sure } = store_ends(shared, &ends).await;
    // Also those whose leases were gone: they may have come to the new primary before their messages do.
    shared.recent.keep(&*shared.store, || Step::Ended(ends.iter().map(Ended::to_repeat).collect()));
    let mut leased = Vec::new();
    let mut again = Vec::new();
    let mut finished = Vec::with_capacity(jobs.len());
    let mut ends_run = false;
    let mut passed_on = Vec::new();
    for (((job, ended), permits), applied) in jobs.into_iter().zip(&ends).zip(permits).zip(applied) {
        let is_stored = applied != Applied::No;
        if is_stored || !sure {
            // Without a sure answer the outcome may have been stored all the same.
            wake_for(shared, &job, ended);
        }
        if is_stored {
            let callbacks = ended.finish.callbacks().zip(&ended.callbacks).zip(permits);
            leased.extend(callbacks.filter_map(|((message, (lane, _)), permit)| {
                let delivery = Delivery::stored_leased(message, lane, claim.lease(), ended.slot.as_ref());
                Some((delivery, permit?))
            }));
        }
        let failed = matches!(job.finish.next, Next::Retry { .. } | Next::Failed { .. });
        if !is_stored && failed {
            let attempt = job.finish.attempt.clone();
            // What is cancelled has no effect on a run.
            let finish = finish(shared, &job.held.delivery.message, attempt, None, Cancel::Requested);
            again.push(Job::new(finish, job.held, job.memory));
            continue;
        }
        let (message, lease) = (&job.held.delivery.message, job.held.delivery.lease);
        if !is_stored {
            tracing::debug!(message.id = %message.id, "an outcome was dropped: the lease was gone");
        }
        shared.tell(Happened::Finished { message, lease, finish: &job.finish, applied: &applied });
        ends_run |= job.finish.on_runs().any(|effect| matches!(effect, Effect::End(_)));
        if let Applied::PassedOn(next) = applied {
            shared.tell(Happened::claimed(&next));
            let (delivery, permit) = shared.dispatcher.pass_on(job.held);
            leased.push((Delivery { size: delivery.size, ..*next }, permit));
            passed_on.push(delivery);
        } else {
            let frees_slot = is_stored && job.frees_slot();
            finished.push((job.held.let_go(), frees_slot));
        }
    }
    shared.wakeups.gates.passed_on(passed_on);
    shared.wakeups.gates.ended(finished.into_iter(), held_at);
    // Without a sure answer the store may have leased callbacks that are not known here: all are left to whoever finds them
    // free.
    if sure {
        claim.settle(leased);
    }
    if ends_run {
        runs::withdraw_ended(shared).await;
    }
    again
}

/// Room for each of an outcome's callbacks that is leased.
type Permits = Vec<Option<Permit>>;

/// The outcome for the store; callbacks that are due now are leased as far as there is room.
fn lease_callbacks(shared: &Shared, job: &Job, lease: Lease) -> (Ended, Permits) {
    let delivery = &job.held.delivery;
    let room = |(message, lane): (&Arc<Message>, &Arc<str>)| {
        let is_due = message.due_at <= message.created_at && !is_gated(message);
        let wanted = is_due.then_some((lane, message.size()));
        shared.dispatcher.permits(wanted.into_iter()).pop().flatten()
    };
    let permits: Permits = job.finish.callbacks().zip(&job.lanes).map(room).collect();
    let leases = permits.iter().map(|permit| permit.as_ref().map(|_| lease));
    let ended = Ended {
        id: delivery.message.id.clone(),
        lease: delivery.lease,
        finish: Arc::clone(&job.finish),
        callbacks: job.lanes.iter().map(Arc::clone).zip(leases).collect(),
        slot: delivery.slot.clone(),
        pass_on: pass_on(shared, job, lease),
    };
    (ended, permits)
}

/// What the next message of the queue is leased with, where the outcome may free a slot: it gets the room as well.
fn pass_on(shared: &Shared, job: &Job, lease: Lease) -> Option<PassOn> {
    let held = &job.held;
    let ends = !matches!(job.finish.next, Next::Retry { .. }) && job.finish.effects.is_empty();
    let passes = ends && held.delivery.slot.is_some() && shared.dispatcher.may_pass_on(held);
    passes.then(|| PassOn { lease, lane: Arc::clone(&held.delivery.lane), room: held.delivery.size })
}

/// Wakes for what waits in the store after an outcome: the retry, and callbacks that are not leased.
fn wake_for(shared: &Shared, job: &Job, ended: &Ended) {
    if let Next::Retry { due_at } = job.finish.next
        && !is_gated(&job.held.delivery.message)
    {
        shared.wakeups.due.wake_at(due_at);
    }
    for (message, (_, lease)) in job.finish.callbacks().zip(&ended.callbacks) {
        if lease.is_none() {
            shared.wakeups.waits(message);
        }
    }
    for message in job.finish.on_runs().flat_map(Effect::messages) {
        shared.wakeups.waits(message);
    }
}

/// The store's answer to a batch of outcomes.
struct Stored {
    applied: Vec<Applied>,
    /// Whether the store was asked only once: after a lost answer a batch that was stored looks like one whose leases are gone.
    sure: bool,
}

/// Stores the batch, as often as it takes.
async fn store_ends(shared: &Shared, ends: &[Ended]) -> Stored {
    let mut backoff = Backoff::from(Duration::from_millis(20));
    let mut sure = true;
    loop {
        let forgetful: Vec<Ended>;
        let ends = if mutation::on(Mutation::ForgetsCallbacks) && !sure {
            let without = |finish: &Finish| Arc::new(Finish { effects: Vec::new(), ..finish.clone() });
            let forget = |ended: &Ended| Ended { finish: without(&ended.finish), ..ended.clone() };
            forgetful = ends.iter().map(forget).collect();
            &forgetful
        } else {
            ends
        };
        match shared.store.finish(shared.node.id(), ends).await {
            Ok(applied) => return Stored { applied, sure },
            // Too much at once for this connection, perhaps; or it was stored and the answer was late.
            Err(StoreError::Deadline(_)) if ends.len() > 1 => {
                return Stored { sure: false, ..store_singly(shared, ends).await };
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    outcomes = ends.len(),
                    "storing outcomes is tried again"
                );
            }
            Err(_) if ends.len() > 1 => return store_singly(shared, ends).await,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    message.id = ends.first().map(|ended| ended.id.as_str()),
                    "an outcome could not be stored; the attempt will be repeated"
                );
                break;
            }
        }
        sure = false;
        if !backoff.wait(&shared.stopping).await {
            break;
        }
    }
    Stored { applied: vec![Applied::No; ends.len()], sure: false }
}

/// Stores each outcome by itself: one that the store refuses must not take the others with it.
async fn store_singly(shared: &Shared, ends: &[Ended]) -> Stored {
    let mut all = Stored { applied: Vec::with_capacity(ends.len()), sure: true };
    for one in ends {
        let stored = Box::pin(store_ends(shared, std::slice::from_ref(one))).await;
        all.applied.extend(stored.applied);
        all.sure &= stored.sure;
    }
    all
}
