//! Messages that a snapshot of a queue showed behind those that could go, kept for the next slots that become free.
//!
//! Without them, each message of a queue of parallelism 1 takes a snapshot. A snapshot stays true while the gate's version
//! does, but for what leaves: a message that is cancelled can't be claimed, and then nothing behind it is; a slot that
//! becomes free counts here only when the snapshot has surely counted it as taken. What comes has a place behind all that
//! was due when the snapshot was taken, and no more than that is kept. (A delayed message that was stored only after it
//! was due may have a place among these. It waits for the next snapshot, behind messages that were accepted before it.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::gate::is_queue;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::engine::wakeups::Freed;
use crate::store::gates::{BEHIND, GateSnapshot};

/// Queues in memory; beyond, all are forgotten, which costs snapshots.
const QUEUES: usize = 512;

/// A queue as a snapshot showed it, brought up to date.
pub(super) struct Seen {
    /// In use is what was in use in the snapshot, without the slots that have become free.
    look: GateSnapshot,
    /// When the snapshot was taken, by the store's clock, and when it came, since boot.
    now: Timestamp,
    answered: Duration,
    /// Messages that went since then and have their slots.
    went: BTreeSet<MessageId>,
}

impl Seen {
    /// `None`: nothing can be kept of it.
    pub(super) fn new(look: GateSnapshot, now: Timestamp, answered: Duration) -> Option<Self> {
        is_queue(&look.name).then(|| Self { look, now, answered, went: BTreeSet::new() })
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.look.name
    }

    /// The queue with what is in use now at most.
    pub(super) fn as_of_now(&self) -> GateSnapshot {
        let mut look = self.look.clone();
        look.gate.in_use = self.in_use();
        look
    }

    fn in_use(&self) -> u32 {
        let went = u32::try_from(self.went.len()).unwrap_or(u32::MAX);
        self.look.gate.in_use.saturating_add(went)
    }

    /// Whether nobody waits once these went, by their places in the list.
    pub(super) fn is_empty_after(&self, taken: &[usize]) -> bool {
        !self.look.gate.paused && taken.len() == self.look.waiting.len()
    }

    /// The rest of the queue after these went, by their places in the list; `None` unless someone can go without another
    /// snapshot as soon as a slot is free.
    pub(super) fn after(mut self, taken: &[usize]) -> Option<Self> {
        let taken: BTreeSet<usize> = taken.iter().copied().collect();
        let mut rest = Vec::with_capacity(BEHIND as usize);
        for (index, one) in std::mem::take(&mut self.look.waiting).into_iter().enumerate() {
            if taken.contains(&index) {
                if !one.holds_slot {
                    self.went.insert(one.id);
                }
            } else if one.holds_slot || one.flow.is_some() {
                return None;
            } else if one.due_at > self.now || rest.len() == BEHIND as usize {
                break;
            } else {
                rest.push(one);
            }
        }
        self.look.waiting = rest;
        (!self.look.gate.paused && !self.look.waiting.is_empty()).then_some(self)
    }

    /// The queue once this node has changed its gate.
    pub(super) fn stepped(mut self, next_at: Option<Timestamp>) -> Self {
        self.look.version += 1;
        self.look.next_at = next_at.or(self.look.next_at);
        self
    }

    /// Takes note of a free slot; false: it may have been free in the snapshot.
    fn free(&mut self, freed: &Freed) -> bool {
        if self.went.remove(&freed.holder) {
            return true;
        }
        if freed.held_at < self.answered {
            return false;
        }
        self.look.gate.in_use = self.look.gate.in_use.saturating_sub(1);
        true
    }

    fn has_room(&self) -> bool {
        self.look.gate.limits.parallelism.is_some_and(|most| self.in_use() < most)
    }
}

/// Queues that are known, by their gates.
#[derive(Default)]
pub(super) struct Ahead(BTreeMap<Arc<str>, Seen>);

impl Ahead {
    pub(super) fn keep(&mut self, seen: Seen) {
        if self.0.len() >= QUEUES {
            self.0.clear();
        }
        self.0.insert(Arc::clone(seen.name()), seen);
    }

    pub(super) fn forget(&mut self, gate: &str) {
        self.0.remove(gate);
    }

    /// Takes out the queues in which these slots became free and someone can go; the others of them need a snapshot.
    pub(super) fn freed(&mut self, all: Vec<Freed>) -> (Vec<Seen>, BTreeSet<Arc<str>>) {
        let mut queues = BTreeSet::new();
        for freed in all {
            if !self.0.get_mut(&freed.queue).is_some_and(|seen| seen.free(&freed)) {
                self.0.remove(&freed.queue);
            }
            queues.insert(freed.queue);
        }
        let mut known = Vec::new();
        queues.retain(|queue| match self.0.remove(queue) {
            Some(seen) if seen.has_room() => {
                known.push(seen);
                false
            }
            _ => true,
        });
        (known, queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::gate::{Gate, Limits, Starts, Waiting};

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const LATER: Timestamp = Timestamp::from_millis(1_700_000_005_000);
    /// Since boot: before the snapshot came, and when it did.
    const BEFORE: Duration = Duration::from_secs(99);
    const ANSWERED: Duration = Duration::from_secs(100);

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

    /// A snapshot of a queue with this parallelism.
    fn seen(parallelism: u32, in_use: u32, waiting: Vec<Waiting>) -> Seen {
        let gate = Gate {
            limits: Limits { parallelism: Some(parallelism), rate: None },
            paused: false,
            in_use,
            starts: Starts::default(),
            passed: 0,
        };
        let look = GateSnapshot { name: Arc::from("q:a"), version: 7, gate, next_at: Some(NOW), waiting };
        Seen::new(look, NOW, ANSWERED).unwrap()
    }

    fn three() -> Vec<Waiting> {
        ["a", "b", "c"].map(waiting).into()
    }

    /// The messages that wait, and what is in use.
    fn state(seen: &Seen) -> (Vec<&str>, u32) {
        (seen.look.waiting.iter().map(|one| one.id.as_str()).collect(), seen.in_use())
    }

    /// The queue, if it is known, once these messages' slots are free.
    fn freed(seen: Seen, slots: &[(&str, Duration)]) -> Option<Seen> {
        let mut ahead = Ahead::default();
        ahead.keep(seen);
        let slot = |&(holder, held_at): &(&str, Duration)| Freed {
            queue: Arc::from("q:a"),
            holder: MessageId::new(holder.to_owned()),
            held_at,
        };
        let (mut known, unknown) = ahead.freed(slots.iter().map(slot).collect());
        assert!(ahead.0.is_empty(), "nobody goes twice");
        assert_eq!(known.len() + unknown.len(), 1);
        known.pop()
    }

    #[test]
    fn the_next_one_goes_when_the_slot_of_the_last_is_free() {
        let after = seen(1, 0, three()).after(&[0]).unwrap().stepped(Some(LATER));
        assert_eq!((state(&after), after.look.version), ((vec!["b", "c"], 1), 8));
        assert_eq!(after.look.next_at, Some(LATER));
        assert_eq!(state(&freed(after, &[("a", BEFORE)]).unwrap()), (vec!["b", "c"], 0));
    }

    #[test]
    fn a_slot_counts_that_the_snapshot_showed_taken() {
        let full = || seen(1, 1, three()).after(&[]).unwrap();
        assert_eq!(state(&freed(full(), &[("before", ANSWERED)]).unwrap()), (vec!["a", "b", "c"], 0));
        assert!(freed(full(), &[("before", BEFORE)]).is_none(), "it may have been free in the snapshot");
        let both = seen(2, 1, three()).after(&[0]).unwrap();
        assert!(freed(both, &[("a", ANSWERED), ("before", BEFORE)]).is_none());
    }

    #[test]
    fn slots_are_counted() {
        let after = seen(2, 0, three()).after(&[0, 1]).unwrap();
        assert_eq!(state(&freed(after, &[("b", ANSWERED)]).unwrap()), (vec!["c"], 1));
        // The limit may be lower than what is in use.
        assert!(freed(seen(2, 3, three()).after(&[]).unwrap(), &[("x", ANSWERED)]).is_none());
    }

    #[test]
    fn a_queue_is_empty_when_all_went() {
        assert!(seen(3, 0, three()).is_empty_after(&[0, 1, 2]));
        assert!(seen(1, 1, Vec::new()).is_empty_after(&[]));
        assert!(!seen(1, 0, three()).is_empty_after(&[0]));
        let mut paused = seen(1, 0, Vec::new());
        paused.look.gate.paused = true;
        assert!(!paused.is_empty_after(&[]), "what waits at a paused one isn't told");
    }

    #[test]
    fn nothing_is_kept_that_needs_a_snapshot() {
        let with = |change: fn(&mut Waiting)| {
            let mut all = three();
            change(&mut all[1]);
            seen(1, 0, all).after(&[0])
        };
        assert!(with(|one| one.holds_slot = true).is_none(), "a retry to come has a time of its own");
        assert!(with(|one| one.flow = Some(Arc::from("f:k"))).is_none(), "its key needs a snapshot");
        assert!(with(|one| one.due_at = LATER).is_none(), "others may come before it");
        assert!(seen(1, 0, vec![waiting("a")]).after(&[0]).is_none(), "nobody is left");
        let mut paused = seen(1, 0, three());
        paused.look.gate.paused = true;
        assert!(paused.after(&[]).is_none());
        let key = GateSnapshot { name: Arc::from("f:k"), ..seen(1, 0, three()).look };
        assert!(Seen::new(key, NOW, ANSWERED).is_none(), "a key lets others past");
    }

    #[test]
    fn a_holder_that_goes_on_needs_no_other_slot() {
        let mut all = three();
        all[0].holds_slot = true;
        assert_eq!(state(&seen(1, 1, all).after(&[0]).unwrap()), (vec!["b", "c"], 1));
    }
}
