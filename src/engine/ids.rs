//! Fresh ids.

use crate::chance::Chance;
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::outcome::Ids;
use crate::domain::time::Timestamp;
use crate::store::NodeId;

/// Makes ids.
#[derive(Clone, Debug)]
pub struct FreshIds(pub Chance);

impl Ids for FreshIds {
    fn message(&mut self, now: Timestamp) -> MessageId {
        MessageId::generate(now, self.0.random())
    }

    fn dead_letter(&mut self, now: Timestamp) -> DeadLetterId {
        DeadLetterId::generate(now, self.0.random())
    }
}

/// A number for this start of the process.
pub(super) fn incarnation(chance: &Chance) -> NodeId {
    NodeId(chance.number(1..i64::MAX))
}
