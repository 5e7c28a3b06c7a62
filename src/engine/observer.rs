//! Events of a node's work, for metrics, a live view, a log, or a simulation's checker.

use std::sync::Arc;

use crate::domain::id::{MessageId, ScheduleId};
use crate::domain::message::Message;
use crate::domain::outcome::Finish;
use crate::domain::time::Timestamp;
use crate::store::{Accept, Applied, Delivery, Lease, NodeId};

/// Is told of each event on a node, right after it. Must be quick, and must not wait.
pub trait Observer: Send + Sync + 'static {
    /// Takes note of an event.
    fn happened(&self, event: &Event<'_>);
}

/// An event on a node.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// The incarnation.
    pub node: NodeId,
    /// The time when it is told, by the store's clock as the node knows it.
    pub at: Timestamp,
    pub what: Happened<'a>,
}

/// The kinds of events, with what they are about.
#[derive(Clone, Debug)]
pub enum Happened<'a> {
    /// A message was stored, before its publisher was answered; with a lease it goes on at once.
    Accepted { message: &'a Arc<Message>, lease: Option<Lease> },
    /// A delivery was leased from the store, after so many attempts.
    Claimed { message: &'a Arc<Message>, lease: Lease, retried: u32 },
    /// An attempt begins, after so many.
    Started { message: &'a Arc<Message>, lease: Lease, retried: u32 },
    /// An attempt has ended, and the store has applied that with all its consequences, or dropped it because the lease was
    /// gone.
    Finished { message: &'a Arc<Message>, lease: Lease, finish: &'a Finish, applied: &'a Applied },
    /// A user's cancel took effect on a message that waited, or will when its attempt ends.
    Cancelled { message: &'a MessageId },
    /// A schedule's occurrence has come, and made these messages, or none, for that reason.
    Fired { schedule: &'a ScheduleId, occurrence: Timestamp, outcome: &'a Result<Vec<Accept>, String> },
    /// The node's place among the others has changed.
    Membership(Membership),
}

impl<'a> Happened<'a> {
    /// A delivery was leased from the store.
    pub(super) fn claimed(delivery: &'a Delivery) -> Self {
        let Delivery { message, lease, retried, .. } = delivery;
        Self::Claimed { message, lease: *lease, retried: *retried }
    }
}

/// Changes of the node's place among the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Membership {
    /// The node has registered.
    Joined,
    /// Others had taken over its deliveries; the node lets go of that many and goes on as a new incarnation.
    BeganAnew { dropped: usize },
    /// The node has freed the deliveries of that many silent nodes.
    TookOver { nodes: u64 },
    /// The node has freed that many deliveries that the store had leased to it without its knowing.
    Reconciled { deliveries: u64 },
    /// The node has given back its deliveries, and is gone.
    Left,
}
