//! Who goes next: the leased deliveries in memory, fair across lanes, within this node's limits.
//!
//! A lane here is what the store calls one: the destination's origin. Possession is a value. A [`Permit`] is room in a lane,
//! a [`Claim`] is a claim number for a step that leases, a [`Held`] delivery has both until it is dropped, and [`Running`]
//! is its place among the attempts at once. Dropping one gives back what it stands for, whatever happens.
//!
//! Deliveries that came through a gate count there from then on, so that few of them wait here, and within their lane they
//! take turns with the others. How lanes share slots and room is in [`places`].
//!
//! Nothing that gives something back may be dropped under the lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use self::places::{Answered, NOT_FOR_STRANGERS, Places, Standing};
use super::Settings;
use super::node::Node;
use crate::domain::gate::is_gated;
use crate::domain::id::MessageId;
use crate::store::{Delivery, Lease, Want};

mod places;
#[cfg(test)]
mod tests;

/// Deliveries that a claim takes for one lane, as a multiple of what may run there: enough for two more rounds while
/// the next claim is on its way.
const CLAIM_AHEAD: usize = 4;
/// Deliveries in one claim.
const CLAIM_MAX: usize = 512;

/// The deliveries that a node holds.
pub(super) struct Dispatcher(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    limits: Limits,
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

struct Limits {
    concurrency: usize,
    per_lane: usize,
    held: usize,
    held_bytes: usize,
}

#[derive(Default)]
struct State {
    /// In no order: whoever goes through all of them sorts what comes of it.
    lanes: HashMap<Arc<str>, Lane>,
    answered: Answered,
    /// Lanes that have something ready and are below their own limit, each once: those that have answered lately, and the
    /// strangers.
    known_ring: VecDeque<Arc<str>>,
    strange_ring: VecDeque<Arc<str>>,
    /// Places that all lanes take, and those that strangers take.
    load: Load,
    strange: Load,
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
    /// Lanes with something due that a claim found no room for.
    hungry: HashSet<Arc<str>>,
    /// Something that waits at a gate found no room.
    gates_starved: bool,
}

#[derive(Default)]
struct Lane {
    /// Deliveries that wait for a slot and came through no gate.
    ready: VecDeque<Held>,
    /// Deliveries that wait for a slot and came through a gate.
    passed: VecDeque<Held>,
    /// Permits for deliveries from gates that have not started.
    passing: usize,
    /// Whose turn it is.
    passed_next: bool,
    load: Load,
    /// The lane's standing when it was last brought up to date.
    standing: Standing,
    /// The ring that it is in.
    ring: Option<Standing>,
}

/// The places that lanes take.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Load {
    running: usize,
    /// Waiting, running, or not yet finished in the store.
    held: usize,
    /// Bytes of these.
    held_bytes: usize,
}

impl Load {
    const RUNNING: Self = Self { running: 1, held: 0, held_bytes: 0 };

    const fn held(bytes: usize) -> Self {
        Self { running: 0, held: 1, held_bytes: bytes }
    }

    fn add(&mut self, other: Self) {
        self.running += other.running;
        self.held += other.held;
        self.held_bytes += other.held_bytes;
    }

    fn remove(&mut self, other: Self) {
        self.running -= other.running;
        self.held -= other.held;
        self.held_bytes -= other.held_bytes;
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
        self.recent.iter().rev().take_while(|(epoch, _)| *epoch > since).any(|(_, ids)| ids.contains(id))
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
    /// Whether it is for a delivery from a gate that has not started.
    passing: bool,
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
                state.admit(held, self.of.limits.per_lane);
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
        Self::with(
            Limits {
                concurrency: settings.concurrency,
                per_lane: settings.concurrency_per_origin,
                held: settings.prefetch,
                held_bytes: settings.prefetch_bytes,
            },
            node,
        )
    }

    fn with(limits: Limits, node: Arc<Node>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            limits,
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
                self.0.fits(&mut state, lane, bytes).then(|| self.take(&mut state, lane, bytes))
            })
            .collect()
    }

    /// Room for a delivery that waits at a gate: only where it can start soon, since it counts there from then on. If there
    /// is none, [`Dispatcher::gate_room`] ends when there may be.
    pub(super) fn permit_at_gate(&self, lane: &Arc<str>, bytes: usize) -> Option<Permit> {
        let mut state = self.0.state();
        let (passing, running) =
            state.lanes.get(lane).map_or((0, 0), |lane| (lane.passing, lane.load.running));
        // Where all slots are in use, one waits for the next that ends.
        let soon = passing < self.0.limits.per_lane.saturating_sub(running).max(1);
        if !soon || !self.0.fits(&mut state, lane, bytes) {
            state.gates_starved = true;
            return None;
        }
        let mut permit = self.take(&mut state, lane, bytes);
        permit.passing = true;
        state.lane(lane).passing += 1;
        Some(permit)
    }

    /// Room for what was claimed because [`Dispatcher::wants`] found room for it.
    pub(super) fn with_permits(&self, claimed: Vec<Delivery>) -> Vec<(Delivery, Permit)> {
        let mut state = self.0.state();
        let with_permit = |delivery: Delivery| {
            let permit = self.take(&mut state, &delivery.lane, delivery.size);
            (delivery, permit)
        };
        claimed.into_iter().map(with_permit).collect()
    }

    fn take(&self, state: &mut State, lane: &Arc<str>, bytes: usize) -> Permit {
        state.add(lane, Load::held(bytes));
        Permit { of: Arc::downgrade(&self.0), lane: Arc::clone(lane), bytes, passing: false }
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

    /// The deliveries that may start: lanes that have answered lately and strangers take turns, as long as there are slots.
    fn start(&self) -> Vec<(Held, Running)> {
        let mut state = self.0.state();
        let mut started = Vec::new();
        loop {
            let before = started.len();
            for ring in [Standing::Known, Standing::Strange] {
                started.extend(self.0.next_of(&mut state, ring).map(|held| {
                    let lane = Arc::clone(&held.permit.lane);
                    (held, Running { of: Arc::downgrade(&self.0), lane, answered: false })
                }));
            }
            if started.len() == before {
                return started;
            }
        }
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
        state.starved = !self.0.has_room(&state);
        !state.starved
    }

    /// Waits for the room that [`Dispatcher::has_room`] or [`Dispatcher::wants`] did not find.
    pub(super) async fn room(&self) {
        self.0.room.notified().await;
    }

    /// Whether there is room for anything that waits at gates; if not, [`Dispatcher::gate_room`] ends when there is.
    pub(super) fn has_gate_room(&self) -> bool {
        let mut state = self.0.state();
        let has_room = self.0.has_room(&state);
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
        let (inner, mut state) = (&*self.0, self.0.state());
        let mut room = inner.room(&state);
        let mut left = CLAIM_MAX.min(room.free());
        let free_bytes = inner.free_bytes(&state, Standing::Known);
        let strange_bytes = inner.free_bytes(&state, Standing::Strange);
        // Half of what is free, so that one claim of large messages leaves something to the next.
        let mut bytes = free_bytes.div_ceil(2);
        let mut wants: Vec<Want> = Vec::new();
        state.hungry.clear();
        for name in lanes {
            let standing = state.standing(&name);
            let Load { held, held_bytes, .. } = state.load_of(&name);
            let known = standing == Standing::Known;
            let own_bytes = if known { free_bytes } else { strange_bytes };
            let fits = room.fits(held, standing) && own_bytes > 0 && held_bytes <= own_bytes;
            // Not a few at a time: a claim costs the same for many.
            let low = fits && held <= inner.claim_ahead() / 2;
            let most =
                if known { usize::MAX } else { (room.for_strangers().saturating_sub(held) / 2).max(1) };
            let count = if low { (inner.claim_ahead() - held).min(most).min(left) } else { 0 };
            if count == 0 {
                state.hungry.insert(name);
            } else if !wants.iter().any(|want| want.lane == name) {
                left -= count;
                if !known {
                    room.used += count;
                    room.strange += count;
                    // Not less than half of what strangers leave: others are in this claim, too.
                    let least = inner.limits.held_bytes / NOT_FOR_STRANGERS / 2;
                    bytes = bytes.min(strange_bytes.max(least));
                }
                wants.push(Want { lane: name, count });
            }
        }
        (wants, bytes)
    }

    /// Whether the last claim left lanes out for want of room.
    pub(super) fn is_hungry(&self) -> bool {
        !self.0.state().hungry.is_empty()
    }

    /// Attempts running.
    pub(super) fn running(&self) -> usize {
        self.0.state().load.running
    }

    /// Deliveries held: waiting, running, or not yet finished in the store.
    pub(super) fn held(&self) -> usize {
        self.0.state().load.held
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fits(&self, state: &mut State, lane: &Arc<str>, bytes: usize) -> bool {
        let standing = state.standing(lane);
        let free_bytes = self.free_bytes(state, standing);
        let own = state.load_of(lane);
        !state.draining
            && self.room(state).fits(own.held, standing)
            && own.held_bytes <= free_bytes
            && bytes <= free_bytes
    }

    /// Bytes that lanes of this standing may still take.
    fn free_bytes(&self, state: &State, standing: Standing) -> usize {
        let all = self.limits.held_bytes;
        let free = all.saturating_sub(state.load.held_bytes);
        if standing == Standing::Known || state.strange.held == 0 {
            return free;
        }
        free.min((all - all / NOT_FOR_STRANGERS).saturating_sub(state.strange.held_bytes))
    }

    fn room(&self, state: &State) -> Places {
        Places { all: self.limits.held, used: state.load.held, strange: state.strange.held }
    }

    fn has_room(&self, state: &State) -> bool {
        !state.draining && self.room(state).free() > 0 && state.load.held_bytes < self.limits.held_bytes
    }

    fn slots(&self, state: &State) -> Places {
        Places { all: self.limits.concurrency, used: state.load.running, strange: state.strange.running }
    }

    /// Deliveries of one lane that claims fill up to.
    fn claim_ahead(&self) -> usize {
        self.limits.per_lane.saturating_mul(CLAIM_AHEAD)
    }

    /// Takes the next delivery of the lanes in this ring, each of which comes up once in vain at most.
    fn next_of(&self, state: &mut State, ring: Standing) -> Option<Held> {
        let slots = self.slots(state);
        let any = if ring == Standing::Known { slots.free() > 0 } else { slots.fits_strangers() };
        if !any || state.draining {
            return None;
        }
        for _ in 0..state.ring(ring).len() {
            let name = state.ring(ring).pop_front()?;
            let standing = state.standing(&name);
            // The lane may be gone, or have moved to the other ring.
            let Some(lane) = state.lanes.get_mut(&name).filter(|lane| lane.ring == Some(ring)) else {
                continue;
            };
            lane.ring = None;
            let mut next = None;
            if lane.load.running < self.limits.per_lane && slots.fits(lane.load.running, standing) {
                next = lane.pop();
            }
            if next.is_some() {
                state.add(&name, Load::RUNNING);
            }
            state.enter_ring(&name, self.limits.per_lane);
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// Gives room back, and notifies whoever waits for some.
    fn let_go(&self, permit: &Permit) {
        let mut state = self.state();
        if permit.passing {
            state.lane(&permit.lane).passing -= 1;
        }
        state.remove(&permit.lane, Load::held(permit.bytes));
        let low = self.claim_ahead() / 2;
        let fed = state.hungry.contains(&permit.lane) && state.load_of(&permit.lane).held <= low;
        if state.starved || fed {
            state.starved = false;
            self.room.notify_one();
        }
        self.wake_gates(&mut state);
    }

    /// Frees the slot of an attempt.
    fn ended(&self, attempt: &Running) {
        let mut state = self.state();
        if attempt.answered {
            state.answered.note(&attempt.lane);
        }
        state.remove(&attempt.lane, Load::RUNNING);
        state.enter_ring(&attempt.lane, self.limits.per_lane);
        if !(state.known_ring.is_empty() && state.strange_ring.is_empty()) {
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

impl Lane {
    /// Takes the next one: those that came through gates and the others take turns.
    fn pop(&mut self) -> Option<Held> {
        let passed = self.passed_next || self.ready.is_empty();
        self.passed_next = !passed;
        if passed && let Some(mut held) = self.passed.pop_front() {
            held.permit.passing = false;
            self.passing -= 1;
            return Some(held);
        }
        self.ready.pop_front()
    }
}

impl State {
    /// The lane of this name, a new one if there is none.
    fn lane(&mut self, name: &Arc<str>) -> &mut Lane {
        // Not by its entry, which would take a clone of the name each time.
        if !self.lanes.contains_key(name) {
            let standing = self.answered.standing(name);
            self.lanes.insert(Arc::clone(name), Lane { standing, ..Lane::default() });
        }
        self.lanes.get_mut(name).unwrap_or_else(|| unreachable!("it was just made"))
    }

    /// Takes in a delivery that waits for its turn.
    fn admit(&mut self, held: Held, per_lane: usize) {
        let name = Arc::clone(&held.permit.lane);
        let lane = self.lane(&name);
        if is_gated(&held.delivery.message) {
            lane.passed.push_back(held);
        } else {
            lane.ready.push_back(held);
        }
        self.enter_ring(&name, per_lane);
    }

    /// Takes out what has not started, as far as it is wanted, in the order of the messages' ids.
    fn take_out(&mut self, is_wanted: impl Fn(&Held) -> bool) -> Vec<Held> {
        let mut out = Vec::new();
        for lane in self.lanes.values_mut() {
            for list in [&mut lane.ready, &mut lane.passed] {
                if list.iter().any(&is_wanted) {
                    let (wanted, kept) = std::mem::take(list).into_iter().partition::<Vec<_>, _>(&is_wanted);
                    *list = kept.into();
                    out.extend(wanted);
                }
            }
        }
        let place = |held: &Held| (held.delivery.message.id.clone(), held.delivery.lease);
        out.sort_by_cached_key(place);
        out
    }

    /// The places that a lane takes.
    fn load_of(&self, name: &Arc<str>) -> Load {
        self.lanes.get(name).map_or_else(Load::default, |lane| lane.load)
    }

    fn add(&mut self, name: &Arc<str>, more: Load) {
        let lane = self.lane(name);
        lane.load.add(more);
        let standing = lane.standing;
        self.load.add(more);
        if standing == Standing::Strange {
            self.strange.add(more);
        }
    }

    /// Gives places of a lane back; one that takes none any more is removed.
    fn remove(&mut self, name: &Arc<str>, less: Load) {
        let lane = self.lane(name);
        lane.load.remove(less);
        let (standing, left) = (lane.standing, lane.load);
        self.load.remove(less);
        if standing == Standing::Strange {
            self.strange.remove(less);
        }
        if left == Load::default() {
            // Its place in the ring, if it has one, is skipped.
            self.lanes.remove(name);
        }
    }

    /// Brings a lane's standing up to date, by which its places count.
    fn standing(&mut self, name: &Arc<str>) -> Standing {
        let standing = self.answered.standing(name);
        if let Some(lane) = self.lanes.get_mut(name)
            && lane.standing != standing
        {
            lane.standing = standing;
            match standing {
                Standing::Known => self.strange.remove(lane.load),
                Standing::Strange => self.strange.add(lane.load),
            }
        }
        standing
    }

    fn ring(&mut self, ring: Standing) -> &mut VecDeque<Arc<str>> {
        match ring {
            Standing::Known => &mut self.known_ring,
            Standing::Strange => &mut self.strange_ring,
        }
    }

    /// Puts a lane into its ring if it belongs there. One at its own limit comes back when an attempt of it ends.
    fn enter_ring(&mut self, name: &Arc<str>, per_lane: usize) {
        let ring = self.standing(name);
        if let Some(lane) = self.lanes.get_mut(name)
            && (lane.ring.is_none() || (lane.ring, ring) == (Some(Standing::Strange), Standing::Known))
            && !(lane.ready.is_empty() && lane.passed.is_empty())
            && lane.load.running < per_lane
        {
            lane.ring = Some(ring);
            self.ring(ring).push_back(Arc::clone(name));
        }
    }
}
