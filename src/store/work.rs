//! The hot part of the store: messages come in, are leased, and end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Lease, NodeId, Result, Slot};
use crate::domain::destination;
use crate::domain::filter::MessageFilter;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::outcome::Finish;
use crate::domain::run::{NewEntry, NewRun, Trigger};
use crate::domain::time::Timestamp;

/// A message to accept.
#[derive(Clone, Debug)]
pub struct Accept {
    pub message: Arc<Message>,
    /// The lane of its delivery: its destination's origin.
    pub lane: Arc<str>,
    /// Set: stored already leased to the accepting node. Only for what is due now and waits at no gate.
    pub lease: Option<Lease>,
    /// Set: stored only when no message holds the key.
    pub deduplication: Option<Deduplication>,
    /// The change of the message's run that is made with it.
    pub on_run: Option<OnRun>,
    /// Those of a batch that were asked for together have the same number, and stand together: if one of them is refused, all
    /// are.
    pub request: usize,
}

impl Accept {
    /// A message that waits in the store, with nothing beside it.
    pub fn waiting(message: Arc<Message>, lane: Arc<str>) -> Self {
        Self { message, lane, lease: None, deduplication: None, on_run: None, request: 0 }
    }

    /// A message that waits in the store, with nothing beside it, in the lane of its URL.
    pub fn by_url(message: Arc<Message>) -> Self {
        let lane = destination::lane(&message.url);
        Self::waiting(message, lane)
    }
}

/// A change of a run that a message brings.
#[derive(Clone, Debug)]
pub enum OnRun {
    /// The message begins a run: its instance is that of the message's part.
    Begin(Arc<NewRun>),
    /// The entry is appended to the run, if that is live.
    Append(NewEntry),
    /// The run has this trigger from now on, if it is live.
    Configure(Arc<Trigger>),
}

impl OnRun {
    /// Whether it is refused when the run has ended.
    pub const fn needs_live_run(&self) -> bool {
        matches!(self, Self::Append(_) | Self::Configure(_))
    }
}

/// A deduplication key, and until when a message accepted now holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deduplication {
    pub key: String,
    pub expires_at: Timestamp,
}

/// The result of accepting one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Accepted {
    Stored,
    /// Another message holds the deduplication key, or is the first one of its kind in the run.
    Duplicate(MessageId),
    /// The message is not stored, and the others of its batch are.
    Refused(Refusal),
}

/// Why one message of a batch is not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Its run has ended, or the run that its own would be invoked by.
    RunEnded,
    /// The run id is that of a live run which somebody else has begun.
    RunIdTaken,
    /// It would make another queue, and there are so many already as there may be.
    TooManyQueues(u32),
}

/// A leased delivery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    pub message: Arc<Message>,
    pub lane: Arc<str>,
    /// Bytes of memory that are reserved for it: for one that waited at a gate what is stored, which an earlier version may
    /// have counted in another way than [`Message::size`].
    pub size: usize,
    pub lease: Lease,
    /// Attempts made.
    pub retried: u32,
    /// Leases taken for this attempt, this one included.
    pub claims: u32,
    /// A user has cancelled it: no attempt may start.
    pub cancel_requested: bool,
    /// The queue's slot that it keeps taken, if any.
    pub slot: Option<Slot>,
    /// The flow-control key's gate that counts it, if any.
    pub flow: Option<Arc<str>>,
    /// Set by the engine: it must not start later, by the time since boot.
    pub start_by: Option<Duration>,
}

impl Delivery {
    /// The delivery of a message that was stored already leased: for its first attempt.
    pub fn stored_leased(message: &Arc<Message>, lane: &Arc<str>, lease: Lease, slot: Option<&Slot>) -> Self {
        Self {
            message: Arc::clone(message),
            lane: Arc::clone(lane),
            size: message.size(),
            lease,
            retried: 0,
            claims: 1,
            cancel_requested: false,
            slot: slot.cloned(),
            flow: None,
            start_by: None,
        }
    }
}

/// How much of a lane a node can take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    pub lane: Arc<str>,
    pub count: usize,
}

/// An attempt's end, to be applied only while the lease holds.
#[derive(Clone, Debug)]
pub struct Ended {
    pub id: MessageId,
    pub lease: Lease,
    pub finish: Arc<Finish>,
    /// Lane and lease for each of the callback messages.
    pub callbacks: Vec<(Arc<str>, Option<Lease>)>,
    /// The slot that the delivery has; its callbacks keep it.
    pub slot: Option<Slot>,
    /// Set: if the end frees the slot, the queue's next message gets it.
    pub pass_on: Option<PassOn>,
}

impl Ended {
    /// The end as it is stored again where a failover has lost it: what its slot went to then may have gone on since.
    pub(crate) fn to_repeat(&self) -> Self {
        Self { pass_on: None, ..self.clone() }
    }
}

/// What the next message of a queue is leased with, and what it must be to take the room of the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassOn {
    pub lease: Lease,
    pub lane: Arc<str>,
    /// Bytes that the message may take at most.
    pub room: usize,
}

/// The result of finishing one attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    /// The end is stored with all its consequences.
    Yes,
    /// The end is stored with all its consequences, and this delivery has got its slot.
    PassedOn(Box<Delivery>),
    /// Nothing is stored: the lease was not ours any more, or, for a failed attempt, a user has cancelled the message
    /// meanwhile. Finishing it as cancelled tells the two apart.
    No,
}

/// The result of cancelling one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancellation {
    /// No such message, or it is finished.
    NotFound,
    /// The message was waiting, and is gone.
    Cancelled,
    /// A node holds it; it will make no further attempt.
    Requested,
}

/// The earliest time at which something is due, and the time of the question, by the store's clock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextDue {
    /// The earliest due time of an unleased delivery; `None`: there is none.
    pub due_at: Option<Timestamp>,
    pub now: Timestamp,
}

/// Lanes in which something may be due.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DueLanes {
    /// Each once.
    pub lanes: Vec<String>,
    /// How far the walk through all lanes has come; empty at its end, or when there was none.
    pub after: String,
}

/// Whether an accept may have been made before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// The ids are new.
    First,
    /// An earlier call with these ids may have taken effect.
    Again,
}

/// A filter of unfinished messages of no run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnfinishedFilter {
    pub matching: MessageFilter,
    /// When it was accepted; both ends inclusive.
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// A page of unfinished messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnfinishedPage {
    /// Ids in order; perhaps none, though more may follow.
    pub found: Vec<MessageId>,
    /// The next page begins after this message; `None`: this is the last one.
    pub next: Option<MessageId>,
}

/// Messages as the engine works on them. Every call is one step, which happens as a whole or not at all, but for
/// [`Work::cancel_many`].
#[async_trait]
pub trait Work: Send + Sync {
    /// Stores the messages, all but those that are refused. With `repeat`, some may have been stored by an earlier call whose
    /// answer was lost; they are not stored twice.
    async fn accept(&self, node: NodeId, batch: &[Accept], repeat: Repeat) -> Result<Vec<Accepted>>;
    /// The lanes of the deliveries that are due first, up to `limit` of these looked at; when there are as many, also
    /// some lanes after `after` in their order, so that each lane comes up even when one holds all of the first.
    async fn due_lanes(&self, limit: usize, after: &str) -> Result<DueLanes>;
    /// Leases what is due in these lanes, at most `max_bytes` of messages (or one that is larger), the earliest first.
    async fn claim(
        &self,
        node: NodeId,
        lease: Lease,
        wants: &[Want],
        max_bytes: usize,
    ) -> Result<Vec<Delivery>>;
    /// The earliest due time of what nobody holds.
    async fn next_due(&self) -> Result<NextDue>;
    /// Stores the ends of attempts with all their consequences, each only while its lease holds. A batch may name a
    /// message more than once, with different leases; it is then not stored at one instant.
    ///
    /// An end with [`Ended::pass_on`] that leaves no delivery with its slot leases the first message that waits in the
    /// queue, if that may go now: it is due, fits what is asked of it and is under no flow-control key, and the queue is
    /// not paused and not above its parallelism. Of a queue's ends in one batch, that of the earliest message passes on.
    async fn finish(&self, node: NodeId, batch: &[Ended]) -> Result<Vec<Applied>>;
    /// Ends leased deliveries that a user has cancelled, without an attempt.
    async fn finish_cancelled(
        &self,
        node: NodeId,
        batch: &[(MessageId, Lease)],
        now: Timestamp,
    ) -> Result<u64>;
    /// Counts the start of an attempt, before it starts; the count. `None`: the lease is gone.
    async fn count_start(&self, node: NodeId, id: &MessageId, lease: Lease) -> Result<Option<u32>>;
    /// Gives leased deliveries back unattempted.
    async fn release(&self, node: NodeId, batch: &[(MessageId, Lease)]) -> Result<u64>;

    /// Cancels a message of no run.
    async fn cancel(&self, id: &MessageId, now: Timestamp) -> Result<Cancellation>;
    /// Searches `count` messages after `after` that are unfinished, not cancelled and of the wanted time, in the order of
    /// their ids, which is that of their acceptance.
    async fn unfinished(
        &self,
        filter: &UnfinishedFilter,
        after: Option<&MessageId>,
        count: usize,
    ) -> Result<UnfinishedPage>;
    /// Cancels messages, each once. Unlike [`Work::cancel`] it says [`Cancellation::NotFound`] also of what is
    /// cancelled already. A few hundred at most, so that nothing waits long for their locks.
    async fn cancel_many(&self, ids: &[MessageId], now: Timestamp) -> Result<Vec<Cancellation>>;
    /// Lists the messages that the node has leased and a user has cancelled.
    async fn cancelled_leases(&self, node: NodeId) -> Result<Vec<MessageId>>;
}
