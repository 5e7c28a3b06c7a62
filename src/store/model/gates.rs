//! The model's queues and flow-control keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::gate::{
    Control, FlowChange, Gate, Limits, Path, Starts, Waiting, bare_name, flow_gate, is_queue, queue_gate,
};
use crate::domain::message::{FlowControl, Message};
use crate::domain::time::Timestamp;
use crate::mutation::{self, Mutation};
use crate::store::gates::{
    BEHIND, DueGates, FlowKey, GateSnapshot, GateStep, Gates, Pass, Queue, QueueRemoval, Queues, RECHECK,
    RECHECK_BLOCKED, Snapshot, without_room,
};
use crate::store::{Accept, Cancellation, Delivery, Lease, NodeId, PassOn, Result, Slot};
use async_trait::async_trait;

use super::{Contents, MAX_QUEUES, Model};

pub(super) struct GateState {
    created_at: Timestamp,
    updated_at: Timestamp,
    used_at: Timestamp,
    control: Control,
    version: i64,
    starts: Starts,
    next_at: Option<Timestamp>,
}

impl GateState {
    fn new(parallelism: Option<u32>, now: Timestamp) -> Self {
        Self {
            created_at: now,
            updated_at: now,
            used_at: now,
            control: Control { limits: Limits { parallelism, rate: None }, ..Control::default() },
            version: 0,
            starts: Starts::default(),
            next_at: None,
        }
    }
}

/// A delivery's part in its gates.
#[derive(Clone, Default)]
pub(super) struct AtGate {
    pub(super) gate: Option<Arc<str>>,
    pub(super) flow: Option<Arc<str>>,
    pub(super) place: i64,
    pub(super) slot: Option<Slot>,
}

impl AtGate {
    /// A retry takes its place at a key's gate anew.
    pub(super) fn retry(&mut self, due_at: Timestamp) {
        if self.gate.as_ref().is_some_and(|gate| !is_queue(gate)) {
            self.place = due_at.as_millis() * 1000;
        }
    }
}

fn time(microseconds: i64) -> Timestamp {
    Timestamp::from_millis(microseconds / 1000)
}

impl Contents {
    /// Makes and changes the gates of one batch's messages, whatever becomes of each.
    pub(super) fn hold<'a>(&mut self, messages: impl Iterator<Item = &'a Message>) {
        let mut flows: BTreeMap<Arc<str>, &FlowControl> = BTreeMap::new();
        let mut due: BTreeMap<Arc<str>, Timestamp> = BTreeMap::new();
        let mut accepted_at = Timestamp::default();
        for message in messages {
            let Some(path) = Path::of(message) else { continue };
            accepted_at = accepted_at.max(message.created_at);
            if let (Some(name), Some(flow)) = (path.flow, &message.options.flow_control) {
                flows.insert(name, flow);
            }
            let earliest = due.entry(path.gate).or_insert(message.due_at);
            *earliest = message.due_at.min(*earliest);
        }
        let now = self.tick();
        let names: BTreeSet<&Arc<str>> = flows.keys().chain(due.keys()).collect();
        for name in names {
            let new = !self.gates.contains_key(&**name);
            let parallelism = is_queue(name).then_some(1);
            let gate = self.gates.entry(name.to_string());
            let gate = gate.or_insert_with(|| GateState::new(parallelism, accepted_at));
            let (before, looked_at) = (gate.control, gate.next_at);
            if let Some(flow) = flows.get(name) {
                gate.control.follow(flow);
            }
            if gate.control != before && !new {
                (gate.updated_at, gate.next_at) = (now, Some(now));
            }
            if let Some(due_at) = due.get(name).filter(|_| !gate.control.paused)
                && looked_at.is_none_or(|next_at| next_at > due_at.after(RECHECK))
            {
                gate.next_at = Some(gate.next_at.map_or(*due_at, |next_at| next_at.min(*due_at)));
            }
        }
    }

    /// The requests that would make more queues than there may be.
    pub(super) fn without_room<'a>(&self, accepts: impl Iterator<Item = &'a Accept>) -> BTreeSet<usize> {
        let there: BTreeSet<&str> =
            self.gates.keys().map(String::as_str).filter(|name| is_queue(name)).collect();
        let paths = accepts.filter_map(|accept| Some((accept.request, Path::of(&accept.message)?)));
        let wanted: Vec<(usize, Arc<str>)> =
            paths.map(|(request, path)| (request, path.gate)).filter(|(_, gate)| is_queue(gate)).collect();
        let wanted = wanted.iter().map(|(request, gate)| (*request, &**gate));
        without_room(wanted, &there, (MAX_QUEUES as usize).saturating_sub(there.len()))
    }

    /// Where a message waits.
    pub(super) fn enter(&mut self, message: &Message) -> AtGate {
        let Some(path) = Path::of(message) else { return AtGate::default() };
        let now = self.tick();
        let delayed = message.due_at > message.created_at;
        let place = if delayed {
            message.due_at.as_millis() * 1000
        } else if is_queue(&path.gate) {
            let last = self.places.entry(path.gate.to_string()).or_default();
            *last = (*last + 1).max(now.as_millis() * 1000);
            *last
        } else {
            message.due_at.min(now).as_millis() * 1000
        };
        AtGate { gate: Some(path.gate), flow: path.flow, place, slot: None }
    }

    fn look(&self, name: &str, count: Option<usize>, now: Timestamp) -> Option<GateSnapshot> {
        let state = self.gates.get(name)?;
        let slots: BTreeSet<_> = self
            .deliveries
            .values()
            .filter_map(|delivery| delivery.at.slot.as_ref())
            .filter(|slot| *slot.queue == *name)
            .map(|slot| &slot.holder)
            .collect();
        let in_use = if is_queue(name) { slots.len() as u64 } else { self.in_flight(name) };
        let gate = Gate {
            limits: state.control.limits,
            paused: state.control.paused,
            in_use: u32::try_from(in_use).unwrap_or(u32::MAX),
            starts: Starts::new(state.starts.bursts().to_vec(), now),
            passed: 0,
        };
        let mut waiting = Vec::new();
        if let Some(count) = count.filter(|_| !gate.paused) {
            let mut held = self.waiting(name, true);
            held.truncate(count + 1);
            let mut others = self.waiting(name, false);
            let free = gate.limits.parallelism.map(|most| most.saturating_sub(gate.in_use) as usize);
            let behind = if is_queue(name) { BEHIND as usize } else { 0 };
            let free = free.map(|free| free + behind);
            let rate = gate.limits.rate.map(|rate| rate.count as usize);
            others.truncate([Some(count), free, rate].into_iter().flatten().min().unwrap_or(count) + 1);
            waiting.extend(held);
            waiting.extend(others);
        }
        let next_at = state.next_at;
        Some(GateSnapshot { name: Arc::from(name), version: state.version, gate, next_at, waiting })
    }

    /// The deliveries that wait at a gate with a slot of it, or without, in their order.
    pub(super) fn waiting(&self, name: &str, holds_slot: bool) -> Vec<Waiting> {
        let mut waiting: Vec<(i64, Waiting)> = Vec::new();
        for (id, delivery) in &self.deliveries {
            let at = &delivery.at;
            let holds = at.slot.as_ref().is_some_and(|slot| *slot.queue == *name);
            if delivery.holder.is_some() || at.gate.as_deref() != Some(name) || holds != holds_slot {
                continue;
            }
            let due_at = if holds { delivery.due_at } else { time(at.place) };
            let order = if holds { due_at.as_millis() } else { at.place };
            let one = Waiting {
                id: id.clone(),
                lane: Arc::clone(&delivery.lane),
                size: self.messages[id].size(),
                due_at,
                holds_slot: holds,
                flow: at.flow.clone().filter(|flow| **flow != *name),
            };
            waiting.push((order, one));
        }
        waiting.sort_by(|(a, one), (b, other)| (a, &one.id).cmp(&(b, &other.id)));
        if mutation::on(Mutation::PassesHead) && is_queue(name) {
            waiting.reverse();
        }
        waiting.into_iter().map(|(_, one)| one).collect()
    }

    fn in_flight(&self, gate: &str) -> u64 {
        let of = self.deliveries.values().filter(|delivery| delivery.at.flow.as_deref() == Some(gate));
        of.filter(|delivery| delivery.holder.is_some()).count() as u64
    }

    pub(super) fn queue_of(&self, gate: &str) -> Option<Queue> {
        let state = self.gates.get(gate).filter(|_| is_queue(gate))?;
        let members =
            self.deliveries.values().filter(|delivery| delivery.at.gate.as_deref() == Some(gate)).count();
        Some(Queue {
            name: bare_name(gate).to_owned(),
            created_at: state.created_at,
            updated_at: state.updated_at,
            parallelism: state.control.limits.parallelism.unwrap_or(1),
            paused: state.control.paused,
            lag: members as u64,
        })
    }

    pub(super) fn key_of(&self, gate: &str, now: Timestamp) -> Option<FlowKey> {
        let state = self.gates.get(gate).filter(|_| !is_queue(gate))?;
        let waiting = self.deliveries.values().filter(|delivery| {
            delivery.at.flow.as_deref() == Some(gate) && delivery.holder.is_none() && delivery.due_at <= now
        });
        Some(FlowKey {
            key: bare_name(gate).to_owned(),
            control: state.control,
            starts: Starts::new(state.starts.bursts().to_vec(), now),
            waiting: waiting.count() as u64,
            in_flight: self.in_flight(gate),
        })
    }

    fn may_use_queue(&self, name: &str, max: u32) -> bool {
        let queues = self.gates.keys().filter(|name| is_queue(name)).count();
        self.gates.contains_key(&queue_gate(name)) || queues < max as usize
    }

    pub(super) fn prune_keys(&mut self, cutoff: Timestamp) {
        let used: BTreeSet<String> = self
            .deliveries
            .values()
            .filter_map(|delivery| delivery.at.flow.as_ref().map(ToString::to_string))
            .collect();
        self.gates.retain(|name, gate| {
            is_queue(name)
                || used.contains(name)
                || gate.used_at >= cutoff
                || gate.updated_at >= cutoff
                || gate.next_at.is_some()
                || gate.control.paused
                || gate.control.pinned_parallelism
                || gate.control.pinned_rate
        });
    }

    pub(super) fn wake_gates(&mut self) {
        let now = self.tick();
        for gate in self.gates.values_mut() {
            gate.next_at = gate.next_at.map(|next_at| next_at.min(now));
        }
    }

    fn rest(&mut self, name: &str, blocked_until: Timestamp, now: Timestamp) {
        let until = |due_at: Timestamp| if due_at <= now { blocked_until } else { due_at };
        let first = self.waiting(name, false).first().map(|one| until(one.due_at));
        let held = self.waiting(name, true).into_iter().map(|one| until(one.due_at)).min();
        let slots = |slot: &Slot| *slot.queue == *name;
        let busy = self.in_flight(name) > 0
            || self.deliveries.values().any(|delivery| delivery.at.slot.as_ref().is_some_and(slots));
        let busy = busy.then(|| now.after(RECHECK_BLOCKED));
        if let Some(gate) = self.gates.get_mut(name) {
            let next = [first, held, busy].into_iter().flatten().min();
            gate.next_at = next.filter(|_| !gate.control.paused);
        }
    }

    /// Whether any delivery has this slot.
    pub(super) fn has_slot(&self, slot: &Slot) -> bool {
        self.deliveries.values().any(|delivery| delivery.at.slot.as_ref() == Some(slot))
    }

    /// Gives a slot of a queue that has become free to the first message that waits there, if that may go.
    pub(super) fn pass_on(
        &mut self,
        node: NodeId,
        pass_on: &PassOn,
        queue: &Arc<str>,
        ended_at: Timestamp,
    ) -> Option<Delivery> {
        let now = self.tick();
        let look = self.look(queue, Some(0), now)?;
        let next = self.waiting(queue, false).into_iter().next()?;
        let fits = next.lane == pass_on.lane && next.size <= pass_on.room && next.flow.is_none();
        if !fits || next.due_at > now || look.gate.refusal(now).is_some() {
            return None;
        }
        let at = self.deliveries[&next.id].due_at.max(ended_at);
        let pass = Pass { id: next.id, gate: Arc::clone(queue), flow: None, in_order: true };
        self.pass(node, pass_on.lease, &pass, at)
    }

    fn pass(&mut self, node: NodeId, lease: Lease, pass: &Pass, now: Timestamp) -> Option<Delivery> {
        let message = Arc::clone(self.messages.get(&pass.id)?);
        let delivery = self.deliveries.get_mut(&pass.id)?;
        if delivery.holder.is_some() || delivery.at.gate.as_ref() != Some(&pass.gate) {
            return None;
        }
        delivery.holder = Some((node, lease));
        delivery.claims += 1;
        delivery.due_at = now;
        if is_queue(&pass.gate) {
            delivery.at.slot = Some(Slot { queue: Arc::clone(&pass.gate), holder: pass.id.clone() });
        }
        Some(Delivery {
            retried: delivery.retried,
            claims: delivery.claims,
            cancel_requested: delivery.cancel_requested,
            flow: delivery.at.flow.clone(),
            ..Delivery::stored_leased(&message, &delivery.lane, lease, delivery.at.slot.as_ref())
        })
    }
}

#[async_trait]
impl Gates for Model {
    async fn snapshot_gates(&self, names: &[Arc<str>], count: usize) -> Result<Snapshot> {
        self.read("snapshot_gates", |state| {
            let now = state.tick();
            let names: BTreeSet<&Arc<str>> = names.iter().collect();
            let mut gates: Vec<GateSnapshot> =
                names.iter().filter_map(|name| state.look(name, Some(count), now)).collect();
            let keys: BTreeSet<Arc<str>> =
                gates.iter().flat_map(|gate| &gate.waiting).filter_map(|one| one.flow.clone()).collect();
            let keys = keys.iter().filter(|key| !names.contains(key));
            gates.extend(keys.filter_map(|key| state.look(key, None, now)));
            Ok(Snapshot { now, gates })
        })
        .await
    }

    async fn pass_gates(
        &self,
        node: NodeId,
        lease: Lease,
        steps: &[GateStep],
        passes: &[Pass],
        now: Timestamp,
    ) -> Result<Vec<Delivery>> {
        let steps = steps.to_vec();
        let passes = passes.to_vec();
        self.write("pass_gates", move |state| {
            let mut changed = BTreeSet::new();
            for step in &steps {
                if let Some(gate) = state.gates.get_mut(&*step.name)
                    && gate.version == step.version
                {
                    gate.version += 1;
                    gate.starts = step.starts.clone();
                    gate.next_at = step.next_at.or(gate.next_at);
                    gate.used_at = now;
                    changed.insert(&step.name);
                }
            }
            let mut held_up = BTreeSet::new();
            let mut passed = Vec::new();
            for pass in &passes {
                let open = changed.contains(&pass.gate)
                    && pass.flow.as_ref().is_none_or(|flow| changed.contains(flow));
                let waits = !open || pass.in_order && held_up.contains(&pass.gate);
                let delivery = if waits { None } else { state.pass(node, lease, pass, now) };
                if delivery.is_none() && pass.in_order {
                    held_up.insert(&pass.gate);
                }
                passed.extend(delivery);
            }
            Ok(passed)
        })
        .await
    }

    async fn rest_gates(&self, gates: &[(Arc<str>, Timestamp)]) -> Result<()> {
        let gates = gates.to_vec();
        self.write("rest_gates", move |state| {
            let now = state.tick();
            for (name, blocked_until) in &gates {
                state.rest(name, *blocked_until, now);
            }
            Ok(())
        })
        .await
    }

    async fn due_gates(&self, limit: usize) -> Result<DueGates> {
        self.read("due_gates", |state| {
            let now = state.tick();
            let mut times: Vec<(Timestamp, &String)> =
                state.gates.iter().filter_map(|(name, gate)| Some((gate.next_at?, name))).collect();
            times.sort();
            let next_at = times.iter().map(|(at, _)| *at).find(|at| *at > now);
            let due = times.into_iter().take_while(|(at, _)| *at <= now).take(limit);
            let gates = due.map(|(_, name)| Arc::from(name.as_str())).collect();
            Ok(DueGates { gates, next_at, now })
        })
        .await
    }

    async fn wake_gates(&self) -> Result<()> {
        self.write("wake_gates", move |state| {
            state.wake_gates();
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Queues for Model {
    async fn upsert_queue(
        &self,
        name: &str,
        parallelism: Option<u32>,
        paused: Option<bool>,
        max: Option<u32>,
        now: Timestamp,
    ) -> Result<bool> {
        let name = name.to_owned();
        self.write("upsert_queue", move |state| {
            if max.is_some_and(|max| !state.may_use_queue(&name, max)) {
                return Ok(false);
            }
            let new = !state.gates.contains_key(&queue_gate(&name));
            let gate = state.gates.entry(queue_gate(&name)).or_insert_with(|| GateState::new(Some(1), now));
            gate.control.limits.parallelism = parallelism.or(gate.control.limits.parallelism);
            gate.control.paused = paused.unwrap_or(gate.control.paused);
            if !new {
                gate.updated_at = now;
                gate.version += 1;
                gate.next_at = Some(now);
            }
            Ok(true)
        })
        .await
    }

    async fn pause_queue(&self, name: &str, paused: bool, now: Timestamp) -> Result<bool> {
        let name = name.to_owned();
        self.write("pause_queue", move |state| {
            let Some(gate) = state.gates.get_mut(&queue_gate(&name)) else { return Ok(false) };
            if gate.control.paused != paused {
                gate.updated_at = now;
            }
            gate.control.paused = paused;
            gate.version += 1;
            gate.next_at = Some(now);
            Ok(true)
        })
        .await
    }

    async fn queue(&self, name: &str) -> Result<Option<Queue>> {
        self.read("queue", |state| Ok(state.queue_of(&queue_gate(name)))).await
    }

    async fn may_use_queue(&self, name: &str, max: u32) -> Result<bool> {
        self.read("may_use_queue", |state| Ok(state.may_use_queue(name, max))).await
    }

    /// All at once.
    async fn remove_queue(&self, name: &str, now: Timestamp) -> Result<QueueRemoval> {
        let name = name.to_owned();
        self.write("remove_queue", move |state| {
            let gate = queue_gate(&name);
            let members: Vec<_> = state
                .deliveries
                .iter()
                .filter(|(_, delivery)| delivery.at.gate.as_deref() == Some(&gate))
                .map(|(id, _)| id.clone())
                .collect();
            let mut requested = Vec::new();
            for id in members {
                if state.cancel(&id, now) == Cancellation::Requested {
                    let delivery = state.deliveries.get_mut(&id).expect("it is in flight");
                    delivery.at = AtGate { flow: delivery.at.flow.take(), ..AtGate::default() };
                    requested.push(id);
                }
            }
            for delivery in state.deliveries.values_mut() {
                if delivery.at.slot.as_ref().is_some_and(|slot| *slot.queue == *gate) {
                    delivery.at.slot = None;
                }
            }
            state.gates.remove(&gate);
            state.places.remove(&gate);
            Ok(QueueRemoval { done: true, requested })
        })
        .await
    }

    async fn change_flow_key(&self, key: &str, change: &FlowChange, now: Timestamp) -> Result<bool> {
        let key = key.to_owned();
        let change = *change;
        self.write("change_flow_key", move |state| {
            if change.creates() {
                state.gates.entry(flow_gate(&key)).or_insert_with(|| GateState::new(None, now));
            }
            let Some(gate) = state.gates.get_mut(&flow_gate(&key)) else { return Ok(false) };
            gate.control.apply(&change);
            (gate.updated_at, gate.next_at) = (now, Some(now));
            gate.version += 1;
            if change.resets_rate() {
                gate.starts.reset();
            }
            Ok(true)
        })
        .await
    }

    async fn flow_key(&self, key: &str, now: Timestamp) -> Result<Option<FlowKey>> {
        self.read("flow_key", |state| Ok(state.key_of(&flow_gate(key), now))).await
    }
}
