//! Gates: what lets limited deliveries through. A queue is one, a flow-control key is one; a message may have to pass
//! both.
//!
//! Here are the rules: who may pass ([`admit`]), how often in a period ([`starts`]), and what changes a key's limits
//! ([`control`]). What waits at a gate and what is in use comes from the store, and only there does a decision take
//! effect, if the gate is still as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::id::MessageId;
use super::message::Message;
use super::time::Timestamp;

pub mod control;
pub mod starts;

pub use self::control::{Control, FlowChange, Limits};
pub use self::starts::{Rate, Starts};

/// The gates that a message has to pass, by their names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// Where it waits: at its queue's gate, or, in no queue, at its flow-control key's.
    pub gate: Arc<str>,
    /// Its flow-control key's gate.
    pub flow: Option<Arc<str>>,
}

impl Path {
    /// `None`: nothing but its destination limits it.
    pub fn of(message: &Message) -> Option<Self> {
        let flow: Option<Arc<str>> =
            message.options.flow_control.as_ref().map(|flow| flow_gate(&flow.key).into());
        let gate = message.queue.as_deref().map(|queue| queue_gate(queue).into()).or_else(|| flow.clone())?;
        Some(Self { gate, flow })
    }
}

/// Whether a message waits at a gate.
pub fn is_gated(message: &Message) -> bool {
    message.queue.is_some() || message.options.flow_control.is_some()
}

const QUEUE: &str = "q:";
const FLOW: &str = "f:";

/// The name of a queue's gate.
pub fn queue_gate(queue: &str) -> String {
    format!("{QUEUE}{queue}")
}

/// The name of a flow-control key's gate.
pub fn flow_gate(key: &str) -> String {
    format!("{FLOW}{key}")
}

/// Whether a gate is a queue's; else it is a flow-control key's.
pub fn is_queue(gate: &str) -> bool {
    gate.starts_with(QUEUE)
}

/// The queue or the key of a gate.
pub fn bare_name(gate: &str) -> &str {
    gate.get(QUEUE.len()..).unwrap_or_default()
}

/// A gate at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gate {
    pub limits: Limits,
    pub paused: bool,
    /// A queue: slots that messages hold, each until its last callback is done. A key: attempts in flight.
    pub in_use: u32,
    /// What was let through lately, as far as a rate counts it.
    pub starts: Starts,
    /// What was let through since that moment.
    pub passed: u32,
}

/// Why a gate lets nothing more through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    Paused,
    /// Until something ends.
    Full,
    /// Until then.
    Rate(Timestamp),
}

impl Gate {
    /// Why it lets nothing more through; `None`: it lets something through.
    pub fn refusal(&self, now: Timestamp) -> Option<Refusal> {
        if self.paused {
            return Some(Refusal::Paused);
        }
        if self.limits.parallelism.is_some_and(|most| self.in_use >= most) {
            return Some(Refusal::Full);
        }
        let free_at = self.starts.free_at(self.limits.rate?, self.passed, now);
        (free_at > now).then_some(Refusal::Rate(free_at))
    }

    fn let_through(&mut self) {
        self.in_use += 1;
        self.passed += 1;
    }
}

/// A delivery that waits at a gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    pub id: MessageId,
    /// Its destination's.
    pub lane: Arc<str>,
    /// Bytes that the message takes in memory.
    pub size: usize,
    pub due_at: Timestamp,
    /// It has a slot of this queue already and goes on with it: a retry, or an attempt that was cut off.
    pub holds_slot: bool,
    /// The other gate that it has to pass, if any.
    pub flow: Option<Arc<str>>,
}

/// What [`admit`] comes to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Admission {
    /// Which of those that wait may go, by their place in the list.
    pub taken: Vec<usize>,
    /// When something will be due, or a rate has room again.
    pub later: Option<Timestamp>,
    /// Something due waits until an event tells that it may go.
    pub blocked: bool,
    /// Keys that are full, for which something waits here.
    pub full_keys: Vec<Arc<str>>,
    /// Something might go that doesn't fit into this node.
    pub no_room: bool,
}

/// Lets through what waits at the gate `name`, as far as its gates and `fits` allow.
///
/// `waiting` is in the gate's order, those that hold slots first. Such a delivery goes without a new slot. At a queue the
/// first of the others that can't go keeps those behind it waiting; at a key they may go past it. The gates take note of
/// what was let through; one that is not among `gates` has no limits.
pub fn admit(
    gates: &mut BTreeMap<Arc<str>, Gate>,
    name: &Arc<str>,
    waiting: &[Waiting],
    now: Timestamp,
    mut fits: impl FnMut(&Waiting) -> bool,
) -> Admission {
    let mut admission = Admission::default();
    if gates.get(name).is_some_and(|gate| gate.paused) {
        return admission;
    }
    let in_order = is_queue(name);
    for (index, one) in waiting.iter().enumerate() {
        if one.due_at > now {
            admission.wait_until(one.due_at);
            continue;
        }
        let gate = if one.holds_slot { None } else { Some(name) };
        let refusal = [gate, one.flow.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|name| Some((name, gates.get(name)?.refusal(now)?)));
        if let Some((by, refusal)) = refusal {
            match refusal {
                Refusal::Rate(free_at) => admission.wait_until(free_at),
                Refusal::Full if by != name => admission.full_keys.push(Arc::clone(by)),
                Refusal::Full | Refusal::Paused => admission.blocked = true,
            }
        } else if fits(one) {
            for name in [gate, one.flow.as_ref()].into_iter().flatten() {
                if let Some(gate) = gates.get_mut(name) {
                    gate.let_through();
                }
            }
            admission.taken.push(index);
            continue;
        } else {
            admission.no_room = true;
            if !in_order {
                continue;
            }
        }
        if !one.holds_slot {
            break;
        }
    }
    admission
}

impl Admission {
    fn wait_until(&mut self, time: Timestamp) {
        self.later = Some(self.later.map_or(time, |earlier| earlier.min(time)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const LATER: Timestamp = Timestamp::from_millis(1_700_000_005_000);

    fn gate(parallelism: u32, in_use: u32) -> Gate {
        Gate {
            limits: Limits { parallelism: (parallelism > 0).then_some(parallelism), rate: None },
            paused: false,
            in_use,
            starts: Starts::default(),
            passed: 0,
        }
    }

    fn rated(count: u32) -> Gate {
        Gate { limits: Limits { parallelism: None, rate: Some(Rate { count, period_s: 10 }) }, ..gate(0, 0) }
    }

    fn paused(gate: Gate) -> Gate {
        Gate { paused: true, ..gate }
    }

    /// One that waits: `h` holds a slot, `-` doesn't, `k` and `l` are under these keys; capitals are due later.
    fn waiting(kinds: &str) -> Vec<Waiting> {
        let one = |(index, kind): (usize, char)| Waiting {
            id: MessageId::new(format!("msg_{index}")),
            lane: Arc::from("lane"),
            size: 1,
            due_at: if kind.is_ascii_uppercase() { LATER } else { NOW },
            holds_slot: kind.eq_ignore_ascii_case(&'h'),
            flow: "kl".contains(kind.to_ascii_lowercase()).then(|| format!("f:{kind}").into()),
        };
        kinds.chars().enumerate().map(one).collect()
    }

    struct Case {
        name: &'static str,
        gates: Vec<(&'static str, Gate)>,
        /// How many fit into the node.
        room: usize,
    }

    impl Case {
        fn run(&self, kinds: &str) -> (Admission, BTreeMap<Arc<str>, Gate>) {
            let mut gates: BTreeMap<Arc<str>, Gate> =
                self.gates.iter().map(|(name, gate)| (Arc::from(*name), gate.clone())).collect();
            let mut room = self.room;
            let admission = admit(&mut gates, &Arc::from(self.name), &waiting(kinds), NOW, |_| {
                room = room.saturating_sub(1);
                room > 0
            });
            (admission, gates)
        }

        #[track_caller]
        fn check(&self, kinds: &str, taken: &[usize], rest: Admission) {
            let (admission, _) = self.run(kinds);
            assert_eq!(admission, Admission { taken: taken.to_vec(), ..rest }, "{kinds}");
        }
    }

    fn queue(own: Gate) -> Case {
        Case { name: "q:a", gates: vec![("q:a", own)], room: 99 }
    }

    fn key(own: Gate) -> Case {
        Case { name: "f:a", gates: vec![("f:a", own)], room: 99 }
    }

    fn nothing() -> Admission {
        Admission::default()
    }

    fn blocked() -> Admission {
        Admission { blocked: true, ..nothing() }
    }

    fn later(time: Timestamp) -> Admission {
        Admission { later: Some(time), ..nothing() }
    }

    fn full(keys: &[&str]) -> Admission {
        Admission { full_keys: keys.iter().map(|key| Arc::from(*key)).collect(), ..nothing() }
    }

    #[test]
    fn a_queue_fills_its_slots_in_order() {
        queue(gate(1, 0)).check("", &[], nothing());
        queue(gate(1, 0)).check("-", &[0], nothing());
        queue(gate(1, 0)).check("---", &[0], blocked());
        queue(gate(3, 1)).check("---", &[0, 1], blocked());
        queue(gate(3, 3)).check("-", &[], blocked());
        queue(gate(1, 3)).check("-", &[], blocked());
    }

    #[test]
    fn who_holds_a_slot_needs_no_other() {
        queue(gate(1, 1)).check("h-", &[0], blocked());
        queue(gate(2, 1)).check("h--", &[0, 1], blocked());
        queue(gate(1, 3)).check("hhh-", &[0, 1, 2], blocked());
    }

    #[test]
    fn a_retry_to_come_holds_its_slot() {
        queue(gate(1, 1)).check("H-", &[], Admission { later: Some(LATER), ..blocked() });
        queue(gate(2, 1)).check("H-", &[1], later(LATER));
    }

    #[test]
    fn what_is_delayed_waits_for_its_time() {
        queue(gate(9, 0)).check("-K", &[0], later(LATER));
        key(gate(9, 0)).check("-K", &[0], later(LATER));
    }

    #[test]
    fn a_pause_stops_all() {
        queue(paused(gate(1, 1))).check("h-", &[], nothing());
        key(paused(gate(1, 0))).check("-", &[], nothing());
    }

    #[test]
    fn a_key_counts_attempts() {
        key(gate(2, 0)).check("---", &[0, 1], blocked());
        key(gate(2, 2)).check("-", &[], blocked());
        key(gate(0, 1000)).check("---", &[0, 1, 2], nothing());
    }

    #[test]
    fn a_key_counts_starts() {
        let (admission, gates) = key(rated(2)).run("---");
        assert_eq!(admission.taken, [0, 1]);
        assert!(admission.later.is_some_and(|later| later > NOW) && !admission.blocked);
        assert_eq!(gates["f:a"].passed, 2);
    }

    #[test]
    fn both_gates_must_admit() {
        let both = |own, k| Case { name: "q:a", gates: vec![("q:a", own), ("f:k", k)], room: 99 };
        both(gate(9, 0), gate(1, 0)).check("kk", &[0], full(&["f:k"]));
        both(gate(1, 0), gate(9, 0)).check("kk", &[0], blocked());
        both(gate(9, 0), paused(gate(9, 0))).check("k-", &[], blocked());
        let (admission, gates) = both(gate(9, 0), rated(1)).run("kk");
        assert_eq!((admission.taken, admission.later.is_some()), (vec![0], true));
        assert_eq!((gates["q:a"].in_use, gates["f:k"].in_use), (1, 1));
        // One without a row limits nothing.
        both(gate(9, 0), gate(1, 1)).check("l", &[0], nothing());
    }

    #[test]
    fn at_a_queue_nobody_goes_past_the_head() {
        let gates = vec![("q:a", gate(9, 0)), ("f:k", gate(1, 1))];
        Case { name: "q:a", gates, room: 99 }.check("k--", &[], full(&["f:k"]));
        Case { room: 2, ..queue(gate(9, 0)) }.check("---", &[0], Admission { no_room: true, ..nothing() });
    }

    #[test]
    fn a_holder_that_waits_for_its_key_holds_up_nobody_else() {
        let mut gates: BTreeMap<Arc<str>, Gate> =
            [("q:a", gate(2, 1)), ("f:k", gate(1, 1))].map(|(name, gate)| (Arc::from(name), gate)).into();
        let mut list = waiting("k-");
        list[0].holds_slot = true;
        let admission = admit(&mut gates, &Arc::from("q:a"), &list, NOW, |_| true);
        assert_eq!(admission, Admission { taken: vec![1], ..full(&["f:k"]) });
    }

    #[test]
    fn a_key_goes_past_what_does_not_fit() {
        let mut gates = BTreeMap::from([(Arc::from("f:a"), gate(2, 0))]);
        let list = waiting("----");
        let fits = |one: &Waiting| one.id.as_str() != "msg_0";
        let admission = admit(&mut gates, &Arc::from("f:a"), &list, NOW, fits);
        assert_eq!(admission, Admission { taken: vec![1, 2], no_room: true, ..blocked() });
    }
}
