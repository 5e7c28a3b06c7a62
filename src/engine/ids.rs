//! Fresh ids from the system's randomness.

use rand::RngExt as _;

use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::outcome::Ids;
use crate::domain::time::Timestamp;
use crate::store::NodeId;

/// Makes ids.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreshIds;

impl Ids for FreshIds {
    fn message(&mut self, now: Timestamp) -> MessageId {
        MessageId::generate(now, rand::rng().random())
    }

    fn dead_letter(&mut self, now: Timestamp) -> DeadLetterId {
        DeadLetterId::generate(now, rand::rng().random())
    }
}

/// A number for this start of the process.
pub(super) fn incarnation() -> NodeId {
    NodeId(rand::rng().random_range(1..i64::MAX))
}
