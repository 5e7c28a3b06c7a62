//! Decides what goes through gates, as a snapshot showed them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::gate::{Admission, Gate, Waiting, admit, is_queue};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::engine::dispatcher::{Dispatcher, Permit};
use crate::store::gates::{GateSnapshot, GateStep, Pass, RECHECK, RECHECK_BLOCKED, Snapshot};

/// From one snapshot to the next of a gate whose deliveries wait for another node's doing.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// A decision about the gates of a snapshot.
#[derive(Default)]
pub(super) struct Taking {
    gates: BTreeMap<Arc<str>, Gate>,
    pub(super) admissions: BTreeMap<Arc<str>, Admission>,
    pub(super) steps: Vec<GateStep>,
    pub(super) passes: Vec<Pass>,
    /// Room for each delivery that goes.
    pub(super) places: BTreeMap<MessageId, Place>,
}

/// Room for a delivery that goes.
pub(super) struct Place {
    /// Its number among those that go.
    pub(super) number: usize,
    pub(super) gate: Arc<str>,
    pub(super) size: usize,
    pub(super) permit: Permit,
    /// Set where a rate counts its start.
    pub(super) start_within: Option<Duration>,
}

impl Taking {
    /// Nothing is decided yet about the gates of this snapshot.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let gates = snapshot.gates.iter().map(|look| (Arc::clone(&look.name), look.gate.clone())).collect();
        Self { gates, ..Self::default() }
    }

    /// Decides what goes through one of them, as far as there is room for it.
    pub(super) fn admit(
        &mut self,
        dispatcher: &Dispatcher,
        look: &GateSnapshot,
        now: Timestamp,
    ) -> &Admission {
        let mut permits = Vec::new();
        let fits = |one: &Waiting| {
            let permit = dispatcher.permit_at_gate(&one.lane, one.size);
            let fits = permit.is_some();
            permits.extend(permit);
            fits
        };
        let admission = admit(&mut self.gates, &look.name, &look.waiting, now, fits);
        for (&index, permit) in admission.taken.iter().zip(permits) {
            let one = &look.waiting[index];
            let (number, gate, size) = (self.passes.len(), Arc::clone(&look.name), one.size);
            self.places.insert(one.id.clone(), Place { number, gate, size, permit, start_within: None });
            self.passes.push(Pass {
                id: one.id.clone(),
                gate: Arc::clone(&look.name),
                flow: one.flow.clone(),
                in_order: is_queue(&look.name) && !one.holds_slot,
            });
        }
        self.admissions.entry(Arc::clone(&look.name)).or_insert(admission)
    }

    /// The gates that take a step, and when they are due again; `None`: as it is.
    pub(super) fn stepped(&self) -> BTreeMap<Arc<str>, Option<Timestamp>> {
        self.steps.iter().map(|step| (Arc::clone(&step.name), step.next_at)).collect()
    }

    /// Decides what becomes of the gates; and which of them may rest, with the time before which nothing due can go there.
    /// `slow` is how long the next step of the store may take.
    pub(super) fn step(
        &mut self,
        snapshot: &Snapshot,
        now: Timestamp,
        slow: Duration,
    ) -> Vec<(Arc<str>, Timestamp)> {
        let mut resting = Vec::new();
        for look in &snapshot.gates {
            let Some(gate) = self.gates.get_mut(&look.name) else { continue };
            let rate = gate.limits.rate.filter(|_| gate.passed > 0);
            if let Some(rate) = rate {
                gate.starts.add(rate, gate.passed, now, rate.start_within(slow));
            }
            let admission = self.admissions.get(&look.name);
            // Who has a slot goes without passing.
            let used = gate.passed > 0 || admission.is_some_and(|admission| !admission.taken.is_empty());
            let next_at = admission.and_then(|admission| next_at(look, admission, used, now));
            if used || next_at.is_some() {
                self.steps.push(GateStep {
                    name: Arc::clone(&look.name),
                    version: look.version,
                    starts: gate.starts.clone(),
                    next_at,
                });
            }
            let until = admission.and_then(|admission| next_event(admission, now));
            let long = until.is_none_or(|until| until > now.after(RECHECK));
            let is_over = |at: Timestamp| at <= now || is_idle(look);
            if admission.is_some() && !used && long && look.next_at.is_some_and(is_over) {
                resting.push((Arc::clone(&look.name), until.unwrap_or_else(|| now.after(RECHECK))));
            }
        }
        for pass in &self.passes {
            let within = [Some(&pass.gate), pass.flow.as_ref()]
                .into_iter()
                .flatten()
                .filter_map(|name| Some(self.gates.get(name)?.limits.rate?.start_within(slow)))
                .min();
            if let Some(place) = self.places.get_mut(&pass.id) {
                place.start_within = within;
            }
        }
        resting
    }
}

/// Whether nothing waits at a gate and nothing has passed it that is still under way.
pub(super) fn is_idle(look: &GateSnapshot) -> bool {
    look.waiting.is_empty() && look.gate.in_use == 0
}

/// When something may go through that can't now, without a wake-up. `None`: never.
fn next_event(admission: &Admission, now: Timestamp) -> Option<Timestamp> {
    let soon = (admission.no_room || !admission.full_keys.is_empty()).then(|| now.after(SOON));
    let blocked = admission.blocked.then(|| now.after(RECHECK_BLOCKED));
    [admission.later, soon, blocked].into_iter().flatten().min()
}

/// When a gate is to be due again; `None`: as it is. A time in the store that does is left alone: a row changes more cheaply
/// when no index does.
fn next_at(look: &GateSnapshot, admission: &Admission, used: bool, now: Timestamp) -> Option<Timestamp> {
    let event = next_event(admission, now);
    if event.is_none() && look.next_at.is_none() && !used {
        return None;
    }
    let latest = now.after(RECHECK);
    let wanted = event.map_or(latest, |event| event.min(latest));
    let fine = look.next_at.is_some_and(|next_at| next_at > now && next_at <= wanted);
    (!fine).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::gate::{Limits, Starts};

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    /// Decides about a queue that is due in three seconds; whether it takes a step, and whether it may rest.
    fn step(in_use: u32, waiting: &[Timestamp]) -> (bool, bool) {
        let gate = Gate {
            limits: Limits { parallelism: Some(1), rate: None },
            paused: false,
            in_use,
            starts: Starts::default(),
            passed: 0,
        };
        let one = |due_at: &Timestamp| Waiting {
            id: MessageId::new("msg_a"),
            lane: Arc::from("lane"),
            size: 1,
            due_at: *due_at,
            holds_slot: false,
            flow: None,
        };
        let name: Arc<str> = Arc::from("q:a");
        let waiting: Vec<Waiting> = waiting.iter().map(one).collect();
        let next_at = Some(NOW.after(Duration::from_secs(3)));
        let mut taking =
            Taking { gates: BTreeMap::from([(Arc::clone(&name), gate.clone())]), ..Taking::default() };
        let admission = admit(&mut taking.gates, &name, &waiting, NOW, |_| false);
        taking.admissions.insert(Arc::clone(&name), admission);
        let snapshot =
            Snapshot { now: NOW, gates: vec![GateSnapshot { name, version: 1, gate, next_at, waiting }] };
        let resting = taking.step(&snapshot, NOW, Duration::ZERO);
        (!taking.steps.is_empty(), !resting.is_empty())
    }

    #[test]
    fn a_gate_with_nothing_to_do_rests_before_its_time() {
        assert_eq!(step(0, &[]), (false, true));
        assert_eq!(step(1, &[]), (false, false), "someone has its slot");
        assert_eq!(step(1, &[NOW]), (false, false), "someone waits for the slot");
        assert_eq!(step(0, &[NOW.after(Duration::from_mins(1))]), (false, false), "someone will be due");
    }
}
