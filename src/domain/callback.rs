//! The messages that tell a publisher what an attempt came to.
use super::id::{DeadLetterId, MessageId};
use super::message::{CallbackSpec, Message};
use super::outcome::Attempt;
use super::time::Timestamp;

/// Makes the message of a callback (`dead_letter` is `None`) or failure callback.
pub fn make(
    _source: &Message,
    _attempt: &Attempt,
    _spec: &CallbackSpec,
    _dead_letter: Option<&DeadLetterId>,
    _id: MessageId,
    _now: Timestamp,
    _max_body: usize,
) -> Message {
    todo!()
}
