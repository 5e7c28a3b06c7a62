//! Who goes next: the leased deliveries in memory, fair across lanes, within this node's limits.
//!
//! A lane here is what the store calls one: the destination's origin. Possession is a value. A [`Permit`] is room in a lane,
//! a [`Claim`] is a claim number for a step that leases, a [`Held`] delivery has both until it is dropped, and [`Running`]
//! is its place among the attempts at once. Dropping one gives back what it stands for, whatever happens.
//!
//! Deliveries that came through a gate count there from then on, so that few of them wait here, and within their lane they
//! take turns with the others ([`lanes`]). How lanes share slots and room is in [`places`].
//!
//! Nothing that gives something back may be dropped under the lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use self::lanes::{Lanes, Limits, Way};
use super::node::Node;
use super::world::Settings;
use crate::domain::id::MessageId;
use crate::mutation::{self, Mutation};
use crate::store::{Delivery, Lease, Want};

mod lanes;
mod places;
#[cfg(test)]
mod tests;

/// The deliveries that a node holds.
pub(super) struct Dispatcher(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    node: Arc<Node>,
    /// Notified when something may start.
    startable: Notify,
    /// Notified when there are cancelled deliveries to end.
    cancelled: Notify,
    /// Notified when there is room again after there was none.
    room: Notify,
    /// Notified when there is room for deliveries at gates, after a lane had none for them.
    gate_room: Notify,
}

struct State {
    lanes: Lanes<Held>,
    /// Claim numbers in use, by a claim or by deliveries.
    leases: BTreeSet<Lease>,
    /// The last claim number; they only grow, also when the node begins a new incarnation.
    last_lease: i64,
    cancels: Cancels,
    /// Cancelled deliveries that have to be ended in the store.
    cancelled: Vec<Held>,
    draining: bool,
    /// A claim found no room at all.
    starved: bool,
    /// Something that waits at a gate found no room.
    gates_starved: bool,
}

impl State {
    /// Takes out what has not started, as far as it is wanted, in the order of the messages' ids.
    fn take_out(&mut self, is_wanted: impl Fn(&Held) -> bool) -> Vec<Held> {
        let mut out = self.lanes.take_out(is_wanted);
        let place = |held: &Held| (held.delivery.message.id.clone(), held.delivery.lease);
        out.sort_by_cached_key(place);
        out
    }

    fn has_room(&self) -> bool {
        !self.draining && self.lanes.has_room()
    }
}

/// Cancels that deliveries may have missed which are being leased at this moment.
#[derive(Default)]
struct Cancels {
    /// Grows with each cancel.
    epoch: u64,
    /// Messages that were cancelled in an epoch, the oldest first, for as long as an older claim is open.
    recent: VecDeque<(u64, BTreeSet<MessageId>)>,
    /// The epoch in which each open claim began.
    claims: BTreeMap<Lease, u64>,
}

impl Cancels {
    fn note(&mut self, ids: &BTreeSet<&MessageId>) {
        self.epoch += 1;
        if !self.claims.is_empty() {
            self.recent.push_back((self.epoch, ids.iter().map(|id| (*id).clone()).collect()));
        }
    }

    fn hit(&self, id: &MessageId, since: u64) -> bool {
        let mut missed = self.recent.iter().rev().take_while(|(epoch, _)| *epoch > since);
        !mutation::on(Mutation::MissesCancels) && missed.any(|(_, ids)| ids.contains(id))
    }

    fn close(&mut self, claim: Lease) {
        self.claims.remove(&claim);
        // Claims begin in the order of their numbers.
        let oldest = self.claims.values().next().copied().unwrap_or(u64::MAX);
        while self.recent.front().is_some_and(|(epoch, _)| *epoch <= oldest) {
            self.recent.pop_front();
        }
    }
}

/// Room for a delivery in its lane.
pub(super) struct Permit {
    of: Weak<Inner>,
    lane: Arc<str>,
    bytes: usize,
    /// The way of its delivery, which is at its end when it starts.
    way: Way,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(dispatcher) = self.of.upgrade() {
            dispatcher.let_go(self);
        }
    }
}

/// A claim number for one step that leases: no reconciling frees what the step leases before it is here. A claim that is
/// dropped without being settled leaves the node's leases in doubt.
pub(super) struct Claim {
    of: Arc<Inner>,
    number: Lease,
    /// Gone once it is settled.
    mark: Option<Arc<Mark>>,
}

/// A claim number in use.
struct Mark {
    of: Weak<Inner>,
    number: Lease,
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(dispatcher) = self.of.upgrade() {
            dispatcher.state().leases.remove(&self.number);
        }
    }
}

impl Claim {
    /// The claim number.
    pub(super) fn lease(&self) -> Lease {
        self.number
    }

    /// Takes in what the step has leased, perhaps nothing. A message that was cancelled since the claim began is ended
    /// instead of started, and so is one that the store returned as cancelled.
    pub(super) fn settle(mut self, leased: impl IntoIterator<Item = (Delivery, Permit)>) {
        let Some(mark) = self.mark.take() else { return };
        let leased: Vec<(Delivery, Permit)> = leased.into_iter().collect();
        let mut state = self.of.state();
        let since = state.cancels.claims.get(&self.number).copied().unwrap_or_default();
        let (mut admitted, mut cancelled) = (false, false);
        for (delivery, permit) in leased {
            let is_cancelled = delivery.cancel_requested || state.cancels.hit(&delivery.message.id, since);
            let held = Held { delivery, permit, _mark: Arc::clone(&mark) };
            if is_cancelled {
                state.cancelled.push(held);
                cancelled = true;
            } else {
                let (lane, way) = (Arc::clone(&held.permit.lane), held.permit.way);
                state.lanes.admit(&lane, held, way);
                admitted = true;
            }
        }
        state.cancels.close(self.number);
        drop(state);
        if admitted {
            self.of.startable.notify_one();
        }
        if cancelled {
            self.of.cancelled.notify_one();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.mark.take().is_some() {
            self.of.state().cancels.close(self.number);
            self.of.node.mark_in_doubt();
        }
    }
}

/// A leased delivery in this node's hands, with its room and its claim number.
pub(super) struct Held {
    pub(super) delivery: Delivery,
    permit: Permit,
    _mark: Arc<Mark>,
}

impl Held {
    /// Lets go of the room and the claim number.
    pub(super) fn let_go(self) -> Delivery {
        self.delivery
    }
}

/// A place among the attempts at once.
pub(super) struct Running {
    of: Weak<Inner>,
    lane: Arc<str>,
    answered: bool,
}

impl Running {
    /// Takes note that the destination has answered.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(dispatcher) = self.of.upgrade() {
            dispatcher.ended(self);
        }
    }
}

impl Dispatcher {
    pub(super) fn new(settings: &Settings, node: Arc<Node>) -> Self {
        let limits = Limits {
            concurrency: settings.concurrency,
            per_lane: settings.concurrency_per_origin,
            held: settings.prefetch,
            held_bytes: settings.prefetch_bytes,
        };
        Self::with(limits, node)
    }

    fn with(limits: Limits, node: Arc<Node>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                lanes: Lanes::new(limits),
                leases: BTreeSet::new(),
                last_lease: 0,
                cancels: Cancels::default(),
                cancelled: Vec::new(),
                draining: false,
                starved: false,
                gates_starved: false,
            }),
            node,
            startable: Notify::new(),
            cancelled: Notify::new(),
            room: Notify::new(),
            gate_room: Notify::new(),
        }))
    }

    /// Begins a claim.
    pub(super) fn claim(&self) -> Claim {
        let mut state = self.0.state();
        state.last_lease += 1;
        let number = Lease(state.last_lease);
        state.leases.insert(number);
        let epoch = state.cancels.epoch;
        state.cancels.claims.insert(number, epoch);
        let mark = Some(Arc::new(Mark { of: Arc::downgrade(&self.0), number }));
        Claim { of: Arc::clone(&self.0), number, mark }
    }

    /// The claim numbers in use, and the last one that was given out: a later one is that of a later claim.
    pub(super) fn live_leases(&self) -> (Vec<Lease>, Lease) {
        let state = self.0.state();
        (state.leases.iter().copied().collect(), Lease(state.last_lease))
    }

    /// Room for deliveries that may be leased, each a lane and its bytes, as far as there is some.
    pub(super) fn permits<'a>(
        &self,
        wanted: impl Iterator<Item = (&'a Arc<str>, usize)>,
    ) -> Vec<Option<Permit>> {
        let mut state = self.0.state();
        wanted
            .map(|(lane, bytes)| {
                let fits = !state.draining && state.lanes.fits(lane, bytes);
                fits.then(|| self.take(&mut state, lane, bytes, Way::Straight))
            })
            .collect()
    }

    /// Room for a delivery that waits at a gate: only where it can start soon, since it counts there from then on. If there
    /// is none, [`Dispatcher::gate_room`] ends when there may be.
    pub(super) fn permit_at_gate(&self, lane: &Arc<str>, bytes: usize) -> Option<Permit> {
        let mut state = self.0.state();
        let fits = !state.draining && state.lanes.starts_soon(lane) && state.lanes.fits(lane, bytes);
        state.lanes.note_refusal(lane, !fits);
        state.gates_starved |= !fits;
        fits.then(|| self.take(&mut state, lane, bytes, Way::Gate))
    }

    /// Whether the room of this delivery, which has ended, may go to the next one of its queue. Not where others wait for
    /// some: queues take turns.
    pub(super) fn may_pass_on(&self, held: &Held) -> bool {
        let state = self.0.state();
        state.has_room() && state.lanes.may_pass_on(&held.permit.lane)
    }

    /// Lets go of a delivery, but for its room, which the next one of its queue gets.
    pub(super) fn pass_on(&self, held: Held) -> (Delivery, Permit) {
        let Held { delivery, mut permit, _mark } = held;
        if permit.way == Way::Straight {
            permit.way = Way::Gate;
            self.0.state().lanes.pass_again(&permit.lane);
        }
        (delivery, permit)
    }

    /// Room for what was claimed because [`Dispatcher::wants`] found room for it.
    pub(super) fn with_permits(&self, claimed: Vec<Delivery>) -> Vec<(Delivery, Permit)> {
        let mut state = self.0.state();
        let with_permit = |delivery: Delivery| {
            let permit = self.take(&mut state, &delivery.lane, delivery.size, Way::Straight);
            (delivery, permit)
        };
        claimed.into_iter().map(with_permit).collect()
    }

    fn take(&self, state: &mut State, lane: &Arc<str>, bytes: usize, way: Way) -> Permit {
        state.lanes.take(lane, bytes, way);
        Permit { of: Arc::downgrade(&self.0), lane: Arc::clone(lane), bytes, way }
    }

    /// Waits until deliveries may start, and takes all that may.
    pub(super) async fn next(&self) -> Vec<(Held, Running)> {
        loop {
            let next = self.start();
            if !next.is_empty() {
                return next;
            }
            self.0.startable.notified().await;
        }
    }

    fn start(&self) -> Vec<(Held, Running)> {
        let mut state = self.0.state();
        if state.draining {
            return Vec::new();
        }
        let started = state.lanes.start();
        drop(state);
        let running = |mut held: Held| {
            held.permit.way = Way::Straight;
            let lane = Arc::clone(&held.permit.lane);
            (held, Running { of: Arc::downgrade(&self.0), lane, answered: false })
        };
        started.into_iter().map(running).collect()
    }

    /// Takes out what has been cancelled and has not started; what is being leased at this moment will not start. The
    /// deliveries are to be ended in the store.
    pub(super) fn withdraw(&self, ids: &[MessageId]) -> Vec<Held> {
        if ids.is_empty() {
            return Vec::new();
        }
        let ids: BTreeSet<&MessageId> = ids.iter().collect();
        let mut state = self.0.state();
        state.cancels.note(&ids);
        state.take_out(|held| ids.contains(&held.delivery.message.id))
    }

    /// Whether a message was admitted and has not started.
    pub(super) fn is_waiting(&self, id: &MessageId) -> bool {
        self.0.state().lanes.waiting().any(|held| held.delivery.message.id == *id)
    }

    /// Has cancelled deliveries ended later.
    pub(super) fn end_later(&self, cancelled: Vec<Held>) {
        self.0.state().cancelled.extend(cancelled);
        self.0.cancelled.notify_one();
    }

    /// Waits for cancelled deliveries that have to be ended in the store, and takes all of them.
    pub(super) async fn cancelled(&self) -> Vec<Held> {
        loop {
            let cancelled = std::mem::take(&mut self.0.state().cancelled);
            if !cancelled.is_empty() {
                return cancelled;
            }
            self.0.cancelled.notified().await;
        }
    }

    /// Takes all out that have not started, and takes no more.
    pub(super) fn drain(&self) -> Vec<Held> {
        let mut state = self.0.state();
        state.draining = true;
        state.take_out(|_| true)
    }

    /// Lets go of all that have not started, and tells how many these were; and the last claim number that was given out.
    pub(super) fn let_go_of_waiting(&self) -> (usize, Lease) {
        let mut state = self.0.state();
        let (waiting, last) = (state.take_out(|_| true), Lease(state.last_lease));
        drop(state);
        (waiting.len(), last)
    }

    /// Whether there is room for anything; if not, [`Dispatcher::room`] ends when there is.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.0.state();
        state.starved = !state.has_room();
        !state.starved
    }

    /// Waits for the room that [`Dispatcher::has_room`] or [`Dispatcher::wants`] did not find.
    pub(super) async fn room(&self) {
        self.0.room.notified().await;
    }

    /// Whether there is room for anything that waits at gates; if not, [`Dispatcher::gate_room`] ends when there is.
    pub(super) fn has_gate_room(&self) -> bool {
        let mut state = self.0.state();
        let has_room = state.has_room();
        state.gates_starved |= !has_room;
        has_room
    }

    /// Waits for the room that a delivery at a gate did not find.
    pub(super) async fn gate_room(&self) {
        self.0.gate_room.notified().await;
    }

    /// How much of each lane to claim now, and how many bytes in all. Lanes without room are kept in mind:
    /// [`Dispatcher::room`] ends when one has some.
    pub(super) fn wants(&self, lanes: impl Iterator<Item = Arc<str>>) -> (Vec<Want>, usize) {
        self.0.state().lanes.wants(lanes)
    }

    /// Whether the last claim left lanes out for want of room.
    pub(super) fn is_hungry(&self) -> bool {
        self.0.state().lanes.is_hungry()
    }

    /// Attempts running.
    pub(super) fn running(&self) -> usize {
        self.0.state().lanes.load().running
    }

    /// Deliveries held: waiting, running, or not yet finished in the store.
    pub(super) fn held(&self) -> usize {
        self.0.state().lanes.load().held
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives room back, and notifies whoever waits for some.
    fn let_go(&self, permit: &Permit) {
        let mut state = self.state();
        state.lanes.give_back(&permit.lane, permit.bytes, permit.way);
        if state.starved || state.lanes.can_be_fed(&permit.lane) {
            state.starved = false;
            self.room.notify_one();
        }
        self.wake_gates(&mut state);
    }

    /// Frees the slot of an attempt.
    fn ended(&self, attempt: &Running) {
        let mut state = self.state();
        if state.lanes.ended(&attempt.lane, attempt.answered) {
            self.startable.notify_one();
        }
        self.wake_gates(&mut state);
    }

    fn wake_gates(&self, state: &mut State) {
        if std::mem::take(&mut state.gates_starved) {
            self.gate_room.notify_one();
        }
    }
}
