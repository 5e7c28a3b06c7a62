//! Where messages come in: gathers what is published at the same time, stores it as one batch, then answers.
//!
//! Invariant: an answer follows the commit that holds its messages. What is due now and fits in this node's room is
//! stored already leased to it and goes on without being claimed.
//!
//! Few batches at once are the largest, and cheapest. But when another full batch waits already, or when the store takes
//! its time, the next one does not wait for the one before: there are helpers for these alone. Where syncs are slow and
//! publishers wait for their answers, a batch waits for those that the one before has answered, instead (`store::pace`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::dispatcher::Permit;
use super::observer::Happened;
use super::recent::Step;
use super::shared::Shared;
use crate::domain::gate::is_gated;
use crate::domain::message::Message;
use crate::mutation::{self, Mutation};
use crate::store::pace::{self, Pace};
use crate::store::{Accept, Accepted, Deduplication, Delivery, Lease, OnRun, Repeat, Result, StoreError};

/// Publishes that wait for a writer; beyond, publishers wait to hand theirs over.
const WAITING: usize = 1024;
/// Messages in one batch, unless one publish alone has more.
const BATCH: usize = 256;
/// Bytes of messages in one batch, likewise.
const BATCH_BYTES: usize = 16 << 20;
/// Helpers for each writer.
pub(super) const HELPERS: usize = 3;
/// How long the next batch waits for the one that is being written: one that takes longer waits for the database, or has
/// much to write, and the next is written beside it.
const PATIENCE: Duration = Duration::from_millis(1);
/// How long the next batch waits where it is to wait for the answers of the one before: something is wrong then.
const LONG_PATIENCE: Duration = Duration::from_millis(20);
/// How often a batch is tried while the store is away.
const TRIES: u32 = 3;

/// A message to accept.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub message: Arc<Message>,
    /// The destination's lane.
    pub lane: Arc<str>,
    pub deduplication: Option<Deduplication>,
    /// What the message changes of its run.
    pub on_run: Option<OnRun>,
}

/// How long a publisher waits. One that gives up does not know what became of its messages.
const ANSWER: Duration = Duration::from_secs(5);

struct Submission {
    messages: Vec<NewMessage>,
    reply: oneshot::Sender<Result<Vec<Accepted>>>,
}

/// Publishes that are stored in one step.
struct Batch {
    submissions: Vec<Submission>,
    messages: usize,
    bytes: usize,
}

impl Batch {
    fn new(first: Submission) -> Self {
        let mut batch = Self { submissions: Vec::new(), messages: 0, bytes: 0 };
        batch.add(first);
        batch
    }

    fn add(&mut self, submission: Submission) {
        self.messages += submission.messages.len();
        self.bytes += submission.messages.iter().map(|new| new.message.size()).sum::<usize>();
        self.submissions.push(submission);
    }

    fn is_full(&self) -> bool {
        self.messages >= BATCH || self.bytes >= BATCH_BYTES
    }

    fn messages(&self) -> impl Iterator<Item = &NewMessage> {
        self.numbered().map(|(_, new)| new)
    }

    /// The messages with the numbers of their publishes.
    fn numbered(&self) -> impl Iterator<Item = (usize, &NewMessage)> {
        let publishes = self.submissions.iter().enumerate();
        publishes.flat_map(|(number, submission)| submission.messages.iter().map(move |new| (number, new)))
    }
}

/// Publishes that are in no batch yet.
struct Backlog {
    waiting: Mutex<mpsc::Receiver<Submission>>,
    messages: AtomicUsize,
    /// Notified when another batch should not wait.
    hurry: Notify,
    pace: Pace,
    /// Messages that can be in the next batch: as many as the last one answered, and those that came meanwhile.
    expected: AtomicUsize,
    /// Notified of each publish, for which a batch may wait.
    arrived: Notify,
}

/// The handle that accepts messages.
#[derive(Clone)]
pub struct Ingest {
    submissions: mpsc::Sender<Submission>,
    backlog: Arc<Backlog>,
}

impl Ingest {
    /// Starts the writers.
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let (submissions, waiting) = mpsc::channel(WAITING);
        let backlog = Arc::new(Backlog {
            waiting: Mutex::new(waiting),
            messages: AtomicUsize::new(0),
            hurry: Notify::new(),
            pace: Pace::default(),
            expected: AtomicUsize::new(0),
            arrived: Notify::new(),
        });
        for _ in 0..shared.settings.writers {
            shared.spawn("accepting messages", run(Arc::clone(shared), Arc::clone(&backlog)));
            for _ in 0..HELPERS {
                shared.spawn("accepting messages", help(Arc::clone(shared), Arc::clone(&backlog)));
            }
        }
        Self { submissions, backlog }
    }

    /// Stores the messages, all or none: if one is refused, all are. The results are in their order. Dropping the call cancels
    /// nothing.
    pub async fn publish(&self, messages: Vec<NewMessage>) -> Result<Vec<Accepted>> {
        let (reply, result) = oneshot::channel();
        let answer = async {
            let place = self.submissions.reserve().await.map_err(|_| StoreError::Closed)?;
            self.backlog.messages.fetch_add(messages.len(), Ordering::Relaxed);
            place.send(Submission { messages, reply });
            self.backlog.arrived.notify_one();
            result.await.map_err(|_| StoreError::Closed)?
        };
        tokio::time::timeout(ANSWER, answer).await.map_err(|_| StoreError::Deadline(ANSWER))?
    }
}

async fn run(shared: Arc<Shared>, backlog: Arc<Backlog>) {
    loop {
        // One writer gathers its batch while the others write theirs.
        let batch = {
            let mut waiting = backlog.waiting.lock().await;
            let first = tokio::select! {
                biased;
                first = waiting.recv() => first,
                () = shared.stopping.cancelled() => return,
            };
            let Some(first) = first else { return };
            backlog.wait_for_others().await;
            backlog.gather(first, &mut waiting)
        };
        backlog.write_on(&shared, batch).await;
    }
}

/// Writes a batch while others are written.
async fn help(shared: Arc<Shared>, backlog: Arc<Backlog>) {
    loop {
        tokio::select! {
            biased;
            () = backlog.hurry.notified() => {}
            () = shared.stopping.cancelled() => return,
        }
        // Whoever has the receiver waits for the next message, or for a moment: there is nothing to help with.
        let batch = match backlog.waiting.try_lock() {
            Ok(mut waiting) => waiting.try_recv().ok().map(|first| backlog.gather(first, &mut waiting)),
            Err(_) => None,
        };
        if let Some(batch) = batch {
            backlog.write_on(&shared, batch).await;
        }
    }
}

impl Backlog {
    /// Writes a batch, and calls for help when that takes long. Not where the batch is in a queue: the next one may have to
    /// wait for the end of its transaction.
    async fn write_on(&self, shared: &Shared, batch: Batch) {
        let queued = batch.messages().any(|new| new.message.queue.is_some());
        let work = pace::work(batch.messages, batch.bytes);
        let began = Instant::now();
        let written = async {
            write(shared, self, batch).await;
            self.pace.took(began.elapsed(), work);
        };
        let mut written = std::pin::pin!(written);
        if queued {
            return written.await;
        }
        let patience = if self.is_paced() { LONG_PATIENCE } else { PATIENCE };
        while tokio::time::timeout(patience, written.as_mut()).await.is_err() {
            if self.messages.load(Ordering::Relaxed) > 0 {
                self.hurry.notify_one();
            }
        }
    }

    /// Lets those that the last batch has answered come again, if that pays.
    async fn wait_for_others(&self) {
        if !self.is_paced() {
            return;
        }
        let expected = self.expected.load(Ordering::Relaxed).min(BATCH);
        let all = async {
            while self.messages.load(Ordering::Relaxed) < expected {
                self.arrived.notified().await;
            }
        };
        let came = tokio::time::timeout(pace::WAIT, all).await.is_ok();
        self.pace.waited(came);
    }

    /// Whether batches wait for each other: not where there is enough for several, which are written side by side.
    fn is_paced(&self) -> bool {
        self.pace.pays() && self.expected.load(Ordering::Relaxed) <= 2 * BATCH
    }

    /// Notes who may come again, before any of them can. A batch that was full will be without waiting.
    fn expect(&self, answered: &Batch) {
        let expected = answered.messages + self.messages.load(Ordering::Relaxed);
        self.expected.store(if answered.bytes < BATCH_BYTES { expected } else { 0 }, Ordering::Relaxed);
    }

    /// A batch that begins with `first`, from what is waiting.
    fn gather(&self, first: Submission, waiting: &mut mpsc::Receiver<Submission>) -> Batch {
        let mut batch = Batch::new(first);
        while !batch.is_full()
            && let Ok(next) = waiting.try_recv()
        {
            batch.add(next);
        }
        let before = self.messages.fetch_sub(batch.messages, Ordering::Relaxed);
        if before.saturating_sub(batch.messages) >= BATCH {
            self.hurry.notify_one();
        }
        batch
    }
}

async fn write(shared: &Shared, backlog: &Backlog, batch: Batch) {
    let claim = shared.dispatcher.claim();
    let (accepts, permits): (Vec<Accept>, Vec<Option<Permit>>) =
        lease_due(shared, &batch, claim.lease()).unzip();
    let mut stored = store(shared, &accepts).await;
    if mutation::on(Mutation::AnswersUnstored) && stored.is_err() {
        stored = Ok(vec![Accepted::Stored; accepts.len()]);
    }
    match stored {
        Ok(results) => {
            let mut leased = Vec::with_capacity(accepts.len());
            for ((accept, result), permit) in accepts.iter().zip(&results).zip(permits) {
                if *result != Accepted::Stored {
                    if mutation::on(Mutation::KeepsRoom) {
                        std::mem::forget(permit);
                    }
                    continue;
                }
                let message = &accept.message;
                shared.tell(Happened::Accepted { message, lease: accept.lease });
                match permit {
                    Some(permit) => {
                        let delivery = Delivery::stored_leased(message, &accept.lane, claim.lease(), None);
                        leased.push((delivery, permit));
                    }
                    None => shared.wakeups.waits(message),
                }
            }
            shared.recent.keep(&*shared.store, || {
                let stored = accepts.iter().zip(&results).filter(|(_, result)| **result == Accepted::Stored);
                Step::Accepted(stored.map(|(accept, _)| accept.clone()).collect())
            });
            // A cancel that follows the answer must find the message here.
            claim.settle(leased);
            backlog.expect(&batch);
            let mut results = results.into_iter();
            for submission in batch.submissions {
                let own = results.by_ref().take(submission.messages.len()).collect();
                // A publisher that has gone away loses the answer, not the message.
                let _gone = submission.reply.send(Ok(own)).is_err();
            }
        }
        Err(error) => {
            drop(permits);
            if error.is_transient() {
                // It may have been stored all the same.
                drop(claim);
            } else {
                claim.settle([]);
                if batch.submissions.len() > 1 {
                    // One publish that the store refuses must not take the others with it.
                    for submission in batch.submissions {
                        Box::pin(write(shared, backlog, Batch::new(submission))).await;
                    }
                    return;
                }
            }
            tracing::error!(
                error = &error as &dyn std::error::Error,
                messages = accepts.len(),
                "messages could not be stored"
            );
            let mut error = Some(error);
            for submission in batch.submissions {
                let error = error.take().unwrap_or(StoreError::BatchFailed);
                let _gone = submission.reply.send(Err(error)).is_err();
            }
        }
    }
}

/// The batch, with what is due now and waits at no gate leased as far as there is room.
fn lease_due(shared: &Shared, batch: &Batch, lease: Lease) -> impl Iterator<Item = (Accept, Option<Permit>)> {
    let is_due = |new: &&NewMessage| new.message.due_at <= new.message.created_at && !is_gated(&new.message);
    let wanted = batch.messages().filter(is_due).map(|new| (&new.lane, new.message.size()));
    let mut permits = shared.dispatcher.permits(wanted).into_iter();
    batch.numbered().map(move |(request, new)| {
        let permit = if is_due(&new) { permits.next().flatten() } else { None };
        let accept = Accept {
            message: Arc::clone(&new.message),
            lane: Arc::clone(&new.lane),
            lease: permit.as_ref().map(|_| lease),
            deduplication: new.deduplication.clone(),
            on_run: new.on_run.clone(),
            request,
        };
        (accept, permit)
    })
}

/// Stores the batch, again after a fault that may pass. The ids make repeats harmless.
async fn store(shared: &Shared, accepts: &[Accept]) -> Result<Vec<Accepted>> {
    let mut repeat = Repeat::First;
    let mut backoff = Backoff::from(Duration::from_millis(50));
    for _ in 1..TRIES {
        match shared.store.accept(shared.node.id(), accepts, repeat).await {
            Err(error) if error.is_transient() && !matches!(error, StoreError::Deadline(_)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "storing messages is tried again");
            }
            result => return result,
        }
        repeat = Repeat::Again;
        backoff.wait(&shared.stopping).await;
    }
    shared.store.accept(shared.node.id(), accepts, repeat).await
}
