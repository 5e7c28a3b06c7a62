//! The store's part in queues and flow control: the traits [`Gates`] and [`Queues`].
//!
//! A claim from a gate takes two steps. [`Gates::snapshot_gates`] tells what waits and what is in use, as one moment saw it; what may
//! go is decided above. [`Gates::pass_gates`] leases that, for each gate only if nobody has claimed from it or changed
//! its limits since the snapshot: [`GateSnapshot::version`] says so. So no lock is held while something is decided, and what is
//! accepted or finished meanwhile never waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Delivery, Lease, NodeId, Result};
use crate::domain::gate::{Control, FlowChange, Gate, Starts, Waiting};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;

/// How long nobody may look at a gate at which something waits that could go. Only [`Gates::rest_gates`] makes it longer,
/// as it alone can see that nothing is being accepted meanwhile.
pub const RECHECK: Duration = Duration::from_secs(5);
/// How long nobody may look at a gate at which something waits that can't go, or is in flight: its end is told, or found
/// after that time.
pub const RECHECK_BLOCKED: Duration = Duration::from_mins(1);

/// Deliveries of a queue in a snapshot beyond those that could go: they may go later without another snapshot.
pub const BEHIND: u32 = 32;

/// Which requests of a batch are refused, as they would make more queues than there is room for: of those that ask for
/// queues, each with its request's number and in order, those that don't fit whole.
pub(crate) fn without_room<'a>(
    wanted: impl IntoIterator<Item = (usize, &'a str)>,
    there: &BTreeSet<&str>,
    mut room: usize,
) -> BTreeSet<usize> {
    let mut requests: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for (request, queue) in wanted {
        requests.entry(request).or_default().insert(queue);
    }
    let (mut made, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for (request, queues) in requests {
        let new: Vec<&str> =
            queues.into_iter().filter(|queue| !there.contains(queue) && !made.contains(queue)).collect();
        if new.len() > room {
            refused.insert(request);
        } else {
            room -= new.len();
            made.extend(new);
        }
    }
    refused
}

/// A queue's slot, as a delivery has it: its message's own one, or, for a callback, its source's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The queue's gate.
    pub queue: Arc<str>,
    /// The message in the queue. All deliveries of one holder share one slot.
    pub holder: MessageId,
}

/// Some gates as one moment saw them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The moment, by the store's clock.
    pub now: Timestamp,
    /// The gates that were asked for and exist, and the keys that deliveries waiting there have to pass as well.
    pub gates: Vec<GateSnapshot>,
}

/// A gate in a [`Snapshot`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateSnapshot {
    pub name: Arc<str>,
    pub version: i64,
    pub gate: Gate,
    /// When it was to be looked at; `None`: only when something happens.
    pub next_at: Option<Timestamp>,
    /// The first of those that wait, due or not: those that hold slots, then the others in their order; none of a paused
    /// gate, or of one that wasn't asked for.
    pub waiting: Vec<Waiting>,
}

/// A change of a gate, made if it still is as a snapshot saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateStep {
    pub name: Arc<str>,
    /// As it was seen.
    pub version: i64,
    pub starts: Starts,
    /// When to look again, at most [`RECHECK`] from now; `None`: as it is.
    pub next_at: Option<Timestamp>,
}

/// A delivery to take from its gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pass {
    pub id: MessageId,
    /// Where it waits; among the steps.
    pub gate: Arc<str>,
    /// The other gate that it passes, if any; among the steps too.
    pub flow: Option<Arc<str>>,
    /// Taken only if all earlier passes of its gate that go in order are taken, too.
    pub in_order: bool,
}

/// Which gates to look at, and when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DueGates {
    /// The longest due first.
    pub gates: Vec<Arc<str>>,
    /// When the next one is due.
    pub next_at: Option<Timestamp>,
    pub now: Timestamp,
}

/// A queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queue {
    pub name: String,
    pub created_at: Timestamp,
    /// When its settings changed.
    pub updated_at: Timestamp,
    pub parallelism: u32,
    pub paused: bool,
    /// Messages that are not finished.
    pub lag: u64,
}

/// A flow-control key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowKey {
    pub key: String,
    pub control: Control,
    pub starts: Starts,
    /// Deliveries that are due.
    pub waiting: u64,
    /// Attempts in flight.
    pub in_flight: u64,
}

/// One step of a queue's removal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueRemoval {
    /// Whether it is gone; else there is more to cancel.
    pub done: bool,
    /// Messages in flight that make no further attempt.
    pub requested: Vec<MessageId>,
}

/// Gates as the engine uses them.
#[async_trait]
pub trait Gates: Send + Sync {
    /// Takes a snapshot of these gates: of each as many deliveries as its limits let go now, at most `count`, and one more,
    /// which tells whether more wait; at a queue [`BEHIND`] in addition.
    async fn snapshot_gates(&self, names: &[Arc<str>], count: usize) -> Result<Snapshot>;
    /// Applies the steps whose gate is as it was seen, and leases the deliveries all of whose gates are; they are due at
    /// `now`. Deliveries that are not returned wait on.
    async fn pass_gates(
        &self,
        node: NodeId,
        lease: Lease,
        steps: &[GateStep],
        passes: &[Pass],
        now: Timestamp,
    ) -> Result<Vec<Delivery>>;
    /// Lets gates rest until something that waits there is due, except those that somebody is using at this moment. What is
    /// due already can't go before the time beside its gate.
    async fn rest_gates(&self, gates: &[(Arc<str>, Timestamp)]) -> Result<()>;
    /// The gates to look at now, at most `limit`.
    async fn due_gates(&self, limit: usize) -> Result<DueGates>;
    /// Makes all gates due at which anything waits or is in flight.
    async fn wake_gates(&self) -> Result<()>;
}

/// Queues and flow-control keys as users see them.
#[async_trait]
pub trait Queues: Send + Sync {
    /// Makes a queue, with parallelism 1 unless it says otherwise, or changes what is given of it. False: there are
    /// `max` queues already, and nothing was done.
    async fn upsert_queue(
        &self,
        name: &str,
        parallelism: Option<u32>,
        paused: Option<bool>,
        max: Option<u32>,
        now: Timestamp,
    ) -> Result<bool>;
    /// Pauses or resumes a queue; false: there is none.
    async fn pause_queue(&self, name: &str, paused: bool, now: Timestamp) -> Result<bool>;
    /// One queue.
    async fn queue(&self, name: &str) -> Result<Option<Queue>>;
    /// Whether a message may go to this queue where there may be `max` of them: it is there, or there are fewer.
    async fn may_use_queue(&self, name: &str, max: u32) -> Result<bool>;
    /// Cancels some messages of a queue, and removes it when there are no more. Nothing is done while somebody is using it.
    async fn remove_queue(&self, name: &str, now: Timestamp) -> Result<QueueRemoval>;

    /// Changes a flow-control key; false: there is none.
    async fn change_flow_key(&self, key: &str, change: &FlowChange, now: Timestamp) -> Result<bool>;
    /// One flow-control key as it is `now`.
    async fn flow_key(&self, key: &str, now: Timestamp) -> Result<Option<FlowKey>>;
}
