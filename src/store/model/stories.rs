//! A checker's view of the model, beside what its calls answer.

use std::sync::Arc;

use super::Model;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::outcome::{Attempt, Next};
use crate::domain::time::Timestamp;

/// All that has become of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Story {
    pub message: Arc<Message>,
    /// When it ended, by the store's clock.
    pub ended_at: Option<Timestamp>,
    /// Attempts whose ends are stored, in their order, and what followed from each.
    pub attempts: Vec<(Attempt, Next)>,
    /// When a user wanted it to end.
    pub requested_at: Option<Timestamp>,
    /// When it ended for that.
    pub cancelled_at: Option<Timestamp>,
}

impl Model {
    /// All messages, in the order of their ids.
    pub fn stories(&self) -> Vec<Story> {
        let state = self.state();
        let story = |(id, message): (&MessageId, &Arc<Message>)| {
            let ends = state.attempts.range((id.clone(), 0)..=(id.clone(), u32::MAX));
            let cancelling = state.cancellations.get(id);
            Story {
                message: Arc::clone(message),
                ended_at: state.ends.get(id).copied().filter(|_| !state.deliveries.contains_key(id)),
                attempts: ends.map(|(_, ending)| (ending.attempt.clone(), ending.next.clone())).collect(),
                requested_at: cancelling.map(|cancelling| cancelling.requested_at),
                cancelled_at: cancelling.and_then(|cancelling| cancelling.cancelled_at),
            }
        };
        state.messages.iter().map(story).collect()
    }

    /// Whether any message has not ended.
    pub fn has_unfinished(&self) -> bool {
        !self.state().deliveries.is_empty()
    }

    /// When registrations of nodes ended, by the nodes' names.
    pub fn registrations_ended(&self) -> Vec<(String, Timestamp)> {
        self.state().ended.clone()
    }

    /// The store's time.
    pub fn time(&self) -> Timestamp {
        self.state().tick()
    }
}
