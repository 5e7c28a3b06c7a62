//! What a look at a queue saw behind those that went, kept for the next slots that become free.
//!
//! Without it, a queue of parallelism 1 is looked at for each of its messages. What was seen stays true while the gate's
//! version does, but for what leaves: a message that is cancelled can't be taken, and then nothing behind it is; a slot
//! that becomes free counts here only when it is the slot of a message that went since the look. What comes has a place
//! behind all that was due when the look was made, and no more than that is kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::gate::is_queue;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::gates::GateLook;

/// A look at a queue, as it would be now.
#[derive(Clone)]
pub(super) struct Seen {
    /// In use is what was in use when the look was made.
    pub(super) look: GateLook,
    /// When that was, by the store's clock; it was asked for at that instant.
    pub(super) now: Timestamp,
    pub(super) asked: Instant,
    /// Messages that went since and have their slots.
    went: HashSet<MessageId>,
}

impl Seen {
    pub(super) fn new(look: GateLook, now: Timestamp, asked: Instant) -> Self {
        Self { look, now, asked, went: HashSet::new() }
    }

    /// The look with what is in use now at most.
    pub(super) fn as_of_now(&self) -> GateLook {
        let mut look = self.look.clone();
        look.gate.in_use =
            look.gate.in_use.saturating_add(u32::try_from(self.went.len()).unwrap_or(u32::MAX));
        look
    }

    /// What is left of it after these went, by their places in the list, and the gate was changed for it; `None` unless
    /// someone can go without another look as soon as a slot is free.
    pub(super) fn after(mut self, taken: &[usize], next_at: Option<Timestamp>) -> Option<Self> {
        let taken: HashSet<usize> = taken.iter().copied().collect();
        let mut rest = Vec::with_capacity(self.look.waiting.len() - taken.len());
        for (index, one) in std::mem::take(&mut self.look.waiting).into_iter().enumerate() {
            if taken.contains(&index) {
                if !one.holds_slot {
                    self.went.insert(one.id);
                }
            } else if one.holds_slot || one.flow.is_some() {
                return None;
            } else if one.due_at > self.now {
                break;
            } else {
                rest.push(one);
            }
        }
        self.look.waiting = rest;
        self.look.version += 1;
        self.look.next_at = next_at.or(self.look.next_at);
        (is_queue(&self.look.name) && !self.look.waiting.is_empty()).then_some(self)
    }

    fn has_room(&self) -> bool {
        let look = self.as_of_now();
        look.gate.limits.parallelism.is_some_and(|most| look.gate.in_use < most)
    }
}

/// What is kept, by the queues' gates.
#[derive(Default)]
pub(super) struct Ahead(HashMap<Arc<str>, Seen>);

impl Ahead {
    pub(super) fn keep(&mut self, seen: Seen, most: usize) {
        if self.0.len() >= most {
            self.0.clear();
        }
        self.0.insert(Arc::clone(&seen.look.name), seen);
    }

    pub(super) fn forget(&mut self, gate: &str) {
        self.0.remove(gate);
    }

    /// Takes out what is known of the queues in which the slots of these messages became free; the others have to be
    /// looked at.
    pub(super) fn freed(&mut self, freed: Vec<(Arc<str>, MessageId)>) -> (Vec<Seen>, HashSet<Arc<str>>) {
        let mut unknown = HashSet::new();
        let mut gates = HashSet::new();
        for (gate, message) in freed {
            if !self.0.get_mut(&gate).is_some_and(|seen| seen.went.remove(&message)) {
                unknown.insert(Arc::clone(&gate));
            }
            gates.insert(gate);
        }
        let mut known = Vec::new();
        for gate in gates.difference(&unknown) {
            known.extend(self.0.remove(gate).filter(Seen::has_room));
        }
        unknown.extend(gates.into_iter().filter(|gate| !known.iter().any(|seen| seen.look.name == *gate)));
        (known, unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::gate::{Gate, Limits, Starts, Waiting};

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const LATER: Timestamp = Timestamp::from_millis(1_700_000_005_000);

    fn waiting(id: &str) -> Waiting {
        Waiting {
            id: MessageId::new(id.to_owned()),
            lane: Arc::from("lane"),
            size: 1,
            due_at: NOW,
            holds_slot: false,
            flow: None,
        }
    }

    /// What a look saw of a gate with this parallelism.
    fn seen(name: &str, parallelism: u32, in_use: u32, waiting: Vec<Waiting>) -> Seen {
        let gate = Gate {
            limits: Limits { parallelism: Some(parallelism), rate: None },
            paused: false,
            in_use,
            starts: Starts::default(),
            passed: 0,
        };
        let look = GateLook { name: Arc::from(name), version: 7, gate, next_at: Some(NOW), waiting };
        Seen::new(look, NOW, Instant::now())
    }

    fn three() -> Vec<Waiting> {
        ["a", "b", "c"].map(waiting).into()
    }

    fn ids(seen: &Seen) -> Vec<&str> {
        seen.look.waiting.iter().map(|one| one.id.as_str()).collect()
    }

    /// What is known once these messages have given their slots back, by the ids of those that wait; and the rest.
    fn freed(ahead: &mut Ahead, messages: &[(&str, &str)]) -> (Vec<Seen>, Vec<String>) {
        let messages = messages.iter().map(|(gate, id)| (Arc::from(*gate), MessageId::new((*id).to_owned())));
        let (known, unknown) = ahead.freed(messages.collect());
        (known, unknown.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_next_one_goes_when_the_slot_of_the_last_is_free() {
        let mut ahead = Ahead::default();
        let after = seen("q:a", 1, 0, three()).after(&[0], Some(LATER)).unwrap();
        assert_eq!((ids(&after), after.look.version, after.look.next_at), (vec!["b", "c"], 8, Some(LATER)));
        assert_eq!(after.as_of_now().gate.in_use, 1);
        ahead.keep(after, 9);
        let (known, unknown) = freed(&mut ahead, &[("q:a", "a")]);
        assert_eq!((ids(&known[0]), unknown.len()), (vec!["b", "c"], 0));
        assert_eq!(known[0].as_of_now().gate.in_use, 0);
        // It is taken out, so that nobody goes twice.
        let (known, unknown) = freed(&mut ahead, &[("q:a", "a")]);
        assert_eq!((known.len(), unknown), (0, vec!["q:a".to_owned()]));
    }

    #[test]
    fn a_slot_of_before_the_look_does_not_count() {
        let mut ahead = Ahead::default();
        ahead.keep(seen("q:a", 2, 1, three()).after(&[0], None).unwrap(), 9);
        let (known, unknown) = freed(&mut ahead, &[("q:a", "before")]);
        assert_eq!((known.len(), unknown), (0, vec!["q:a".to_owned()]));
        // Nor with one that does: the look that is needed now sees both.
        let (known, unknown) = freed(&mut ahead, &[("q:a", "a"), ("q:a", "before")]);
        assert_eq!((known.len(), unknown), (0, vec!["q:a".to_owned()]));
    }

    #[test]
    fn slots_are_counted() {
        let mut ahead = Ahead::default();
        ahead.keep(seen("q:a", 2, 0, three()).after(&[0, 1], None).unwrap(), 9);
        let (known, _) = freed(&mut ahead, &[("q:a", "b")]);
        assert_eq!((ids(&known[0]), known[0].as_of_now().gate.in_use), (vec!["c"], 1));
        // The limit may be lower than what is in use.
        let mut all = three();
        all.push(waiting("d"));
        let mut low = seen("q:a", 3, 0, all).after(&[0, 1, 2], None).unwrap();
        low.look.gate.limits.parallelism = Some(2);
        ahead.keep(low, 9);
        let (known, unknown) = freed(&mut ahead, &[("q:a", "b")]);
        assert_eq!((known.len(), unknown), (0, vec!["q:a".to_owned()]));
    }

    #[test]
    fn nothing_is_kept_that_needs_a_look() {
        let with = |change: fn(&mut Waiting)| {
            let mut all = three();
            change(&mut all[1]);
            seen("q:a", 1, 0, all).after(&[0], None)
        };
        assert!(with(|one| one.holds_slot = true).is_none(), "a retry to come has a time of its own");
        assert!(with(|one| one.flow = Some(Arc::from("f:k"))).is_none(), "its key has to be looked at");
        assert!(with(|one| one.due_at = LATER).is_none(), "others may come before it");
        assert!(seen("q:a", 1, 0, vec![waiting("a")]).after(&[0], None).is_none(), "nobody is left");
        assert!(seen("f:k", 1, 0, three()).after(&[0], None).is_none(), "a key lets others past");
    }

    #[test]
    fn a_holder_that_goes_on_needs_no_other_slot() {
        let mut all = three();
        all[0].holds_slot = true;
        let after = seen("q:a", 1, 1, all).after(&[0], None).unwrap();
        assert_eq!(after.as_of_now().gate.in_use, 1);
    }
}
