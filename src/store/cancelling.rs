//! Cancelling many messages: a bounded look for them, then steps of a few hundred.

use async_trait::async_trait;

use super::{Cancellation, NodeId, Result};
use crate::domain::filter::MessageFilter;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;

/// Which unfinished messages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnfinishedFilter {
    pub matching: MessageFilter,
    /// When it was accepted; both ends inclusive.
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// What a bounded look has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// In order; perhaps none, though more may follow.
    pub found: Vec<MessageId>,
    /// The next look begins after this message; `None`: this was the last one.
    pub next: Option<MessageId>,
}

#[async_trait]
pub trait Cancelling {
    /// Looks at `count` messages after `after` that are unfinished, not cancelled and of the wanted time, in the order of
    /// their ids, which is that of their acceptance.
    async fn unfinished(
        &self,
        filter: &UnfinishedFilter,
        after: Option<&MessageId>,
        count: usize,
    ) -> Result<Look>;
    /// Cancels messages, each once. Unlike [`super::Store::cancel`] it says [`Cancellation::NotFound`] also of what is
    /// cancelled already. A few hundred at most, so that nothing waits long for their locks.
    async fn cancel_many(&self, ids: &[MessageId], now: Timestamp) -> Result<Vec<Cancellation>>;
    /// What the node has leased and a user has cancelled.
    async fn cancelled_leases(&self, node: NodeId) -> Result<Vec<MessageId>>;
    /// Those of the messages that are cancelled and not finished.
    async fn cancel_requested(&self, ids: &[MessageId]) -> Result<Vec<MessageId>>;
}
