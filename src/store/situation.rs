//! Where an unfinished message stands: the facts from which the reason follows why it waits.

use std::sync::Arc;

use async_trait::async_trait;

use super::{NodeId, Result};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;

/// Messages in front of another that are counted at most, and holders of slots that are told.
pub const AHEAD: usize = 1000;

/// An unfinished message's delivery, as one moment saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Situation {
    /// The moment, by the store's clock.
    pub now: Timestamp,
    pub due_at: Timestamp,
    /// Attempts made.
    pub retried: u32,
    /// A user has cancelled it: no attempt may start.
    pub cancel_requested: bool,
    /// Who has leased it.
    pub holder: Option<Holder>,
    /// Where it waits; `None`: nothing but its lane limits it.
    pub gate: Option<Arc<str>>,
    /// The gate of its flow-control key, which may be the same one.
    pub flow: Option<Arc<str>>,
    /// Whether it keeps a slot of its queue.
    pub has_slot: bool,
    /// The messages that go through its gate before it; `None`: it waits at none, or keeps a slot.
    pub ahead: Option<Ahead>,
}

/// The node that has leased a delivery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    pub node: NodeId,
    /// `None`: it is not registered any more.
    pub name: Option<String>,
}

/// The messages in front of one at its gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// Messages that wait in front of it, at most [`AHEAD`].
    pub waiting: usize,
    /// The first of them.
    pub first: Option<MessageId>,
    /// The messages that hold the slots of a queue, in the order of their ids, at most [`AHEAD`].
    pub holders: Vec<MessageId>,
}

#[async_trait]
pub trait Situations {
    /// Where a message stands; `None`: there is none, or it is finished.
    async fn situation(&self, id: &MessageId) -> Result<Option<Situation>>;
}
