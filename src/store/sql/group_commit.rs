//! Group commit on SQLite: accepts and finishes that wait at the same time share a transaction.
//!
//! SQLite has one writer and syncs once for each transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::hot_sqlite;
use super::tx::begin_immediate;
use crate::clock::Clock;
use crate::failure::Failure;
use crate::store::pace::{self, Pace};
use crate::store::{Accept, Accepted, Applied, Ended, NodeId, Repeat, Result, StoreError};

/// Steps that may wait for the writer; beyond, callers wait to hand theirs over.
const WAITING: usize = 64;
/// Steps in one transaction at most; with batches of up to 256 messages each.
const GROUP: usize = 16;
/// Bytes of messages in one statement, which has them once more in memory, unless one batch has more.
const STATEMENT_BYTES: usize = 16 << 20;
enum Step {
    Accept { node: NodeId, batch: Vec<Accept>, repeat: Repeat, reply: oneshot::Sender<Result<Vec<Accepted>>> },
    Finish { node: NodeId, batch: Vec<Ended>, reply: oneshot::Sender<Result<Vec<Applied>>> },
}

enum Done {
    Accept(Vec<Accepted>),
    Finish(Vec<Applied>),
}

/// Runs accepts and finishes, those that wait together in one transaction.
pub(super) struct GroupCommit {
    steps: mpsc::Sender<Step>,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl GroupCommit {
    /// Starts the task, which notifies `written` after each commit.
    pub(super) fn start(
        writer: SqlitePool,
        written: Arc<Notify>,
        max_queues: Option<u32>,
        clock: &Clock,
        failure: &Failure,
    ) -> Self {
        let (steps, waiting) = mpsc::channel(WAITING);
        let task =
            failure.spawn("writing to SQLite", run(writer, waiting, written, max_queues, clock.clone()));
        Self { steps, task: std::sync::Mutex::new(Some(task)) }
    }

    pub(super) async fn accept(
        &self,
        node: NodeId,
        batch: Vec<Accept>,
        repeat: Repeat,
    ) -> Result<Vec<Accepted>> {
        let (reply, result) = oneshot::channel();
        self.send(Step::Accept { node, batch, repeat, reply }).await?;
        result.await.map_err(|_| gone())?
    }

    pub(super) async fn finish(&self, node: NodeId, batch: Vec<Ended>) -> Result<Vec<Applied>> {
        let (reply, result) = oneshot::channel();
        self.send(Step::Finish { node, batch, reply }).await?;
        result.await.map_err(|_| gone())?
    }

    async fn send(&self, step: Step) -> Result<()> {
        self.steps.send(step).await.map_err(|_| gone())
    }

    /// Stops the writer's task; steps that still come are refused.
    pub(super) async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // The task was cancelled, or has ended by itself.
            drop(task.await);
        }
    }
}

fn gone() -> StoreError {
    StoreError::Closed
}

async fn run(
    writer: SqlitePool,
    mut waiting: mpsc::Receiver<Step>,
    written: Arc<Notify>,
    max_queues: Option<u32>,
    clock: Clock,
) {
    let mut group = Vec::with_capacity(GROUP);
    let pace = Pace::default();
    loop {
        if waiting.recv_many(&mut group, GROUP).await == 0 {
            return;
        }
        // An accept that comes a moment later would wait for this sync and then for its own.
        if pace.pays() && group.iter().all(is_finish) {
            let room = GROUP - group.len();
            let _late = tokio::time::timeout(pace::WAIT, waiting.recv_many(&mut group, room)).await.is_err();
            pace.waited(!group.iter().all(is_finish));
        }
        let work = group.iter().map(work).sum();
        let began = Instant::now();
        // Accepts next to each other are stored as one.
        group.sort_by_key(is_finish);
        match store(&writer, &group, max_queues, &clock).await {
            Ok(results) => {
                for (step, result) in group.drain(..).zip(results) {
                    answer(step, Ok(result));
                }
            }
            Err(error) => {
                if group.len() == 1
                    && let Some(step) = group.pop()
                {
                    answer_error(step, error);
                }
                // One step's trouble must not be the others': each alone.
                for mut step in group.drain(..) {
                    // The failure may have been that of the answer to a commit that took effect.
                    if let Step::Accept { repeat, .. } = &mut step {
                        *repeat = Repeat::Again;
                    }
                    match store(&writer, std::slice::from_ref(&step), max_queues, &clock).await {
                        Ok(mut results) => match results.pop() {
                            Some(result) => answer(step, Ok(result)),
                            None => answer_error(step, gone()),
                        },
                        Err(error) => answer_error(step, error),
                    }
                }
            }
        }
        pace.took(began.elapsed(), work);
        written.notify_one();
    }
}

fn answer(step: Step, result: Result<Done>) {
    // A caller that has gone away does not want the answer.
    let _gone = match (step, result) {
        (Step::Accept { reply, .. }, Ok(Done::Accept(results))) => reply.send(Ok(results)).is_err(),
        (Step::Finish { reply, .. }, Ok(Done::Finish(results))) => reply.send(Ok(results)).is_err(),
        (step, Ok(_)) => {
            answer_error(step, gone());
            false
        }
        (step, Err(error)) => {
            answer_error(step, error);
            false
        }
    };
}

fn answer_error(step: Step, error: StoreError) {
    let _gone = match step {
        Step::Accept { reply, .. } => reply.send(Err(error)).is_err(),
        Step::Finish { reply, .. } => reply.send(Err(error)).is_err(),
    };
}

/// Stores a group of steps in one transaction.
async fn store(
    writer: &SqlitePool,
    group: &[Step],
    max_queues: Option<u32>,
    clock: &Clock,
) -> Result<Vec<Done>> {
    let mut tx = begin_immediate(writer).await?;
    let now = clock.now();
    let mut results = Vec::with_capacity(group.len());
    let mut bytes = 0;
    let as_one = group.chunk_by(|one, next| {
        bytes += size(one);
        let fits = are_alike(one, next) && bytes + size(next) <= STATEMENT_BYTES;
        bytes = if fits { bytes } else { 0 };
        fits
    });
    for alike in as_one {
        match alike {
            [Step::Accept { node, repeat, .. }, ..] => {
                let batches: Vec<&[Accept]> = alike.iter().filter_map(accepts).collect();
                let batch: Vec<&Accept> = batches.iter().copied().flatten().collect();
                let mut accepted =
                    hot_sqlite::accept(&mut tx, *node, &batch, *repeat, max_queues, now).await?.into_iter();
                let own = |batch: &&[Accept]| Done::Accept(accepted.by_ref().take(batch.len()).collect());
                results.extend(batches.iter().map(own));
            }
            [Step::Finish { node, batch, .. }, ..] => {
                results.push(Done::Finish(hot_sqlite::finish(&mut tx, *node, batch, now).await?));
            }
            [] => {}
        }
    }
    tx.commit().await?;
    Ok(results)
}

/// Whether the steps can be stored as one, by as few statements as either of them.
fn are_alike(one: &Step, next: &Step) -> bool {
    match (one, next) {
        (
            Step::Accept { node, repeat, batch, .. },
            Step::Accept { node: next_node, repeat: next_repeat, batch: next, .. },
        ) => {
            // The numbers of requests that stand and fall together are each batch's own.
            let stands = |batch: &[Accept]| !batch.iter().any(may_be_refused);
            node == next_node && repeat == next_repeat && stands(batch) && stands(next)
        }
        _ => false,
    }
}

/// Whether a message may be refused, and with it those of its request.
fn may_be_refused(accept: &Accept) -> bool {
    accept.on_run.is_some() || accept.message.queue.is_some()
}

fn is_finish(step: &Step) -> bool {
    matches!(step, Step::Finish { .. })
}

fn accepts(step: &Step) -> Option<&[Accept]> {
    match step {
        Step::Accept { batch, .. } => Some(batch),
        Step::Finish { .. } => None,
    }
}

/// The least time on a processor that the step takes.
fn work(step: &Step) -> Duration {
    match step {
        Step::Accept { batch, .. } => pace::work(batch.len(), size(step)),
        Step::Finish { batch, .. } => pace::work(batch.len(), 0),
    }
}

/// Bytes of messages that the step stores.
fn size(step: &Step) -> usize {
    accepts(step).into_iter().flatten().map(|accept| accept.message.size()).sum()
}
