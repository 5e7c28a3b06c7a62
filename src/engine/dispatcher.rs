//! Who goes next: the leased deliveries in memory, fair across lanes, within this node's limits.
//!
//! A lane here is what the store calls one: the destination's origin. Slots and room are shared by dynamic thresholds: a
//! lane may have as much as is still free, so that one busy lane gets half. That alone leaves nothing to others where many
//! lanes hang, each of which keeps what it got. So a lane that has not answered lately gets one place, and more only of
//! the first quarter, and all of those lanes together leave an eighth to the ones that have answered. Of these, too, each
//! gets only one place of the last sixteenth.
//!
//! Deliveries that came through a gate count there from then on, so that few of them wait here, and within their lane they
//! take turns with the others.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Settings;
use crate::domain::gate::is_gated;
use crate::domain::id::MessageId;
use crate::store::{Delivery, Lease, Want};

/// Deliveries that a claim takes for one lane, as a multiple of what may run there: enough for two more rounds while
/// the next claim is on its way.
const CLAIM_AHEAD: usize = 4;
/// Deliveries in one claim.
const CLAIM_MAX: usize = 512;
/// The part of places of which a stranger, a lane that has not answered lately, may have several; and the part that
/// strangers leave to the others.
const FOR_STRANGERS: usize = 4;
const NOT_FOR_STRANGERS: usize = 8;
/// The part of places of which a lane that has answered lately may have only one.
const FOR_FIRST: usize = 16;
/// How long a lane is known for an answer: from once to twice this.
const LATELY: Duration = Duration::from_mins(1);
/// Lanes that are known for an answer, twice: beyond, it is forgotten sooner.
const MAX_KNOWN: usize = 8192;

/// The node's deliveries.
pub struct Dispatcher {
    state: Mutex<State>,
    limits: Limits,
    /// Rung when there is room again after there was none.
    pub(super) room: Notify,
    /// The same for deliveries at gates, when a lane had none for them.
    pub(super) gate_room: Notify,
}

struct Limits {
    concurrency: usize,
    per_lane: usize,
    held: usize,
    held_bytes: usize,
}

#[derive(Default)]
struct State {
    lanes: BTreeMap<Arc<str>, Lane>,
    answered: Answered,
    /// Lanes that have something ready and are below their own limit, each once: those that have answered lately, and the
    /// others.
    known_ring: VecDeque<Arc<str>>,
    strange_ring: VecDeque<Arc<str>>,
    /// Of all lanes, and of strangers.
    load: Load,
    strange: Load,
    /// Claim numbers in use, and by how many deliveries (or calls that will bring some).
    leases: BTreeMap<Lease, usize>,
    /// The last claim number; they only grow, also when the node begins a new incarnation.
    last_lease: i64,
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
    ready: VecDeque<Delivery>,
    /// Deliveries that wait for a slot and came through a gate.
    passed: VecDeque<Delivery>,
    /// How many came through a gate and wait for a slot, with those that are about to come.
    passing: usize,
    /// Whose turn it is.
    passed_next: bool,
    load: Load,
    /// Whether it had answered lately when it was last looked at.
    known: bool,
    /// The ring that it is in.
    ring: Option<Ring>,
}

/// What lanes have of the places.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Load {
    running: usize,
    /// Waiting, running, or not yet finished in the store.
    held: usize,
    /// Bytes of these.
    held_bytes: usize,
}

impl Load {
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

/// Of lanes that have answered lately, or of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ring {
    Known,
    Strange,
}

/// Lanes that have answered lately.
struct Answered {
    since: Instant,
    lately: HashSet<Arc<str>>,
    before: HashSet<Arc<str>>,
}

impl Default for Answered {
    fn default() -> Self {
        Self { since: Instant::now(), lately: HashSet::new(), before: HashSet::new() }
    }
}

impl Answered {
    fn note(&mut self, lane: &Arc<str>) {
        self.forget(MAX_KNOWN);
        if !self.lately.contains(lane) {
            self.lately.insert(Arc::clone(lane));
        }
    }

    fn has(&mut self, lane: &Arc<str>) -> bool {
        self.forget(usize::MAX);
        self.lately.contains(lane) || self.before.contains(lane)
    }

    /// Forgets what is long ago, or too much.
    fn forget(&mut self, most: usize) {
        let elapsed = self.since.elapsed();
        if elapsed >= 2 * LATELY {
            *self = Self::default();
        } else if elapsed >= LATELY || self.lately.len() >= most {
            self.before = std::mem::take(&mut self.lately);
            self.since = Instant::now();
        }
    }
}

/// Places that lanes share: slots, or room for deliveries.
#[derive(Clone, Copy)]
struct Places {
    all: usize,
    used: usize,
    /// Those of them that strangers use.
    strange: usize,
}

impl Places {
    fn free(self) -> usize {
        self.all.saturating_sub(self.used)
    }

    /// Whether a lane that has `own` of them may have one more.
    fn fits(self, own: usize, known: bool) -> bool {
        if known {
            own < self.free().saturating_sub(self.all / FOR_FIRST) || (own == 0 && self.free() > 0)
        } else {
            self.fits_strangers() && (own == 0 || own < self.for_strangers())
        }
    }

    /// Whether any stranger may have one.
    fn fits_strangers(self) -> bool {
        self.free() > 0 && self.strange < self.all - self.all / NOT_FOR_STRANGERS
    }

    /// Those that are free of the part of which a stranger may have several.
    fn for_strangers(self) -> usize {
        (self.all / FOR_STRANGERS).saturating_sub(self.strange).min(self.free())
    }
}

impl Dispatcher {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            state: Mutex::default(),
            limits: Limits {
                concurrency: settings.concurrency,
                per_lane: settings.concurrency_per_origin,
                held: settings.prefetch,
                held_bytes: settings.prefetch_bytes,
            },
            room: Notify::new(),
            gate_room: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for deliveries that may be leased, each a lane and its bytes; which of them got it.
    pub(super) fn reserve<'a>(&self, wanted: impl Iterator<Item = (&'a Arc<str>, usize)>) -> Vec<bool> {
        let mut state = self.state();
        wanted
            .map(|(lane, bytes)| {
                let fits = self.fits(&mut state, lane, bytes);
                if fits {
                    state.hold(lane, bytes);
                }
                fits
            })
            .collect()
    }

    fn fits(&self, state: &mut State, lane: &Arc<str>, bytes: usize) -> bool {
        let known = state.is_known(lane);
        let free_bytes = self.free_bytes(state, known);
        let own = state.load_of(lane);
        !state.draining
            && self.room(state).fits(own.held, known)
            && own.held_bytes <= free_bytes
            && bytes <= free_bytes
    }

    /// Bytes that lanes which have answered lately, or others, may still take.
    fn free_bytes(&self, state: &State, known: bool) -> usize {
        let all = self.limits.held_bytes;
        let free = all.saturating_sub(state.load.held_bytes);
        if known || state.strange.held == 0 {
            return free;
        }
        free.min((all - all / NOT_FOR_STRANGERS).saturating_sub(state.strange.held_bytes))
    }

    fn room(&self, state: &State) -> Places {
        Places { all: self.limits.held, used: state.load.held, strange: state.strange.held }
    }

    fn slots(&self, state: &State) -> Places {
        Places { all: self.limits.concurrency, used: state.load.running, strange: state.strange.running }
    }

    /// Takes room for a delivery that waits at a gate: only where it can start soon, since it counts there from then on.
    /// If there is none, [`Dispatcher::gate_room`] rings when there may be.
    pub(super) fn reserve_passing(&self, lane: &Arc<str>, bytes: usize) -> bool {
        let mut state = self.state();
        let (passing, running) =
            state.lanes.get(lane).map_or((0, 0), |lane| (lane.passing, lane.load.running));
        // Where all slots are in use, one waits for the next that ends.
        let soon = passing < self.limits.per_lane.saturating_sub(running).max(1);
        let fits = soon && self.fits(&mut state, lane, bytes);
        if fits {
            state.hold(lane, bytes);
            state.lanes.get_mut(lane).expect("it is held").passing += 1;
        } else {
            state.gates_starved = true;
        }
        fits
    }

    /// Gives such room back.
    pub(super) fn unreserve_passing(&self, lane: &Arc<str>, bytes: usize) {
        let mut state = self.state();
        state.lanes.get_mut(lane).expect("room was reserved in it").passing -= 1;
        state.let_go(lane, bytes);
        self.ring_for_room(&mut state, std::iter::once(lane));
    }

    /// Gives reserved room back that is not needed.
    pub(super) fn unreserve(&self, lane: &Arc<str>, bytes: usize) {
        let mut state = self.state();
        state.let_go(lane, bytes);
        self.ring_for_room(&mut state, std::iter::once(lane));
    }

    /// A new claim number, in use from now on, for a step that leases with it.
    pub(super) fn open_lease(&self) -> Lease {
        let mut state = self.state();
        state.last_lease += 1;
        let lease = Lease(state.last_lease);
        state.leases.insert(lease, 1);
        lease
    }

    /// Ends the mark of [`Dispatcher::open_lease`]; the deliveries that came keep the number in use.
    pub(super) fn close_lease(&self, lease: Lease) {
        self.state().end_lease(lease);
    }

    /// The claim numbers in use, and the last one that was given out: what has a later one was leased after this.
    pub(super) fn live_leases(&self) -> (Vec<Lease>, Lease) {
        let state = self.state();
        (state.leases.keys().copied().collect(), Lease(state.last_lease))
    }

    /// Takes leased deliveries whose room is reserved; those that may start now.
    pub(super) fn admit(&self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let mut state = self.state();
        for delivery in deliveries {
            *state.leases.entry(delivery.lease).or_default() += 1;
            let name = Arc::clone(&delivery.lane);
            let lane = state.lanes.get_mut(&name).expect("room was reserved in its lane");
            if is_gated(&delivery.message) {
                lane.passed.push_back(delivery);
            } else {
                lane.ready.push_back(delivery);
            }
            state.enter_ring(&name, self.limits.per_lane);
        }
        self.next(&mut state)
    }

    /// Takes claimed deliveries, for which [`Dispatcher::wants`] found room; those that may start now.
    pub(super) fn admit_claimed(&self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let mut state = self.state();
        for delivery in &deliveries {
            state.hold(&delivery.lane, delivery.size);
        }
        drop(state);
        self.admit(deliveries)
    }

    /// Frees the slot of an attempt that has ended, with or without an answer; those that may start instead.
    pub(super) fn attempt_ended(&self, lane: &Arc<str>, answered: bool) -> Vec<Delivery> {
        let mut state = self.state();
        state.unload(lane, Load { running: 1, ..Load::default() });
        if answered {
            state.answered.note(lane);
        }
        // It may have been forgotten before this.
        state.drop_if_empty(lane);
        state.enter_ring(lane, self.limits.per_lane);
        let started = self.next(&mut state);
        self.ring_for_gates(&mut state);
        started
    }

    /// Lets go of a delivery that is finished, or no longer ours.
    pub(super) fn forget(&self, delivery: &Delivery) {
        self.forget_all(std::iter::once(delivery));
    }

    /// Lets go of deliveries that are finished, or no longer ours.
    pub(super) fn forget_all<'a>(&self, deliveries: impl Iterator<Item = &'a Delivery> + Clone) {
        let mut state = self.state();
        for delivery in deliveries.clone() {
            state.let_go(&delivery.lane, delivery.size);
            state.end_lease(delivery.lease);
        }
        self.ring_for_room(&mut state, deliveries.map(|delivery| &delivery.lane));
    }

    /// Takes deliveries out that have not started. Their room is kept until they are forgotten.
    pub(super) fn withdraw(&self, ids: &HashSet<&MessageId>) -> Vec<Delivery> {
        if ids.is_empty() {
            return Vec::new();
        }
        let is_wanted = |delivery: &Delivery| ids.contains(&delivery.message.id);
        let mut withdrawn = Vec::new();
        for lane in self.state().lanes.values_mut() {
            let before = lane.passed.len();
            for list in [&mut lane.ready, &mut lane.passed] {
                if list.iter().any(is_wanted) {
                    let (out, kept) = std::mem::take(list).into_iter().partition::<Vec<_>, _>(is_wanted);
                    *list = kept.into();
                    withdrawn.extend(out);
                }
            }
            lane.passing -= before - lane.passed.len();
        }
        withdrawn
    }

    /// Whether a message was admitted and has not started.
    pub(super) fn is_waiting(&self, id: &MessageId) -> bool {
        let state = self.state();
        let mut waiting = state.lanes.values().flat_map(|lane| lane.ready.iter().chain(&lane.passed));
        waiting.any(|delivery| delivery.message.id == *id)
    }

    /// The messages that were admitted under this lease and have not started.
    pub(super) fn waiting_under(&self, lease: Lease) -> Vec<MessageId> {
        let state = self.state();
        state
            .lanes
            .values()
            .flat_map(|lane| lane.ready.iter().chain(&lane.passed))
            .filter(|delivery| delivery.lease == lease)
            .map(|delivery| delivery.message.id.clone())
            .collect()
    }

    /// Takes all out that have not started, and takes no more.
    pub(super) fn drain(&self) -> Vec<Delivery> {
        self.state().draining = true;
        self.withdraw_all()
    }

    /// Fences off all that was leased so far: takes out what has not started, and tells the last claim number.
    pub(super) fn fence(&self) -> (usize, Lease) {
        let last = Lease(self.state().last_lease);
        (self.withdraw_all().len(), last)
    }

    /// Takes all out that have not started, and lets go of them.
    pub(super) fn withdraw_all(&self) -> Vec<Delivery> {
        let mut waiting = Vec::new();
        for lane in self.state().lanes.values_mut() {
            lane.passing -= lane.passed.len();
            waiting.extend(lane.ready.drain(..).chain(lane.passed.drain(..)));
        }
        self.forget_all(waiting.iter());
        waiting
    }

    /// Whether there is room for anything; if not, [`Dispatcher::room`] rings when there is.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.state();
        let room =
            !state.draining && self.room(&state).free() > 0 && state.load.held_bytes < self.limits.held_bytes;
        state.starved = !room;
        room
    }

    /// Whether there is room for anything that waits at gates; if not, [`Dispatcher::gate_room`] rings when there is.
    pub(super) fn has_gate_room(&self) -> bool {
        let mut state = self.state();
        let room =
            !state.draining && self.room(&state).free() > 0 && state.load.held_bytes < self.limits.held_bytes;
        state.gates_starved |= !room;
        room
    }

    /// How much of each lane to claim now, and how many bytes in all. Lanes without room are kept in mind:
    /// [`Dispatcher::room`] rings when one has some.
    pub(super) fn wants(&self, lanes: impl Iterator<Item = Arc<str>>) -> (Vec<Want>, usize) {
        let mut state = self.state();
        let mut room = self.room(&state);
        let mut left = CLAIM_MAX.min(room.free());
        let free_bytes = self.free_bytes(&state, true);
        let strange_bytes = self.free_bytes(&state, false);
        // Half of what is free, so that one claim of large messages leaves something to the next.
        let mut bytes = free_bytes.div_ceil(2);
        let mut wants: Vec<Want> = Vec::new();
        state.hungry.clear();
        for name in lanes {
            let known = state.is_known(&name);
            let Load { held, held_bytes, .. } = state.load_of(&name);
            let own_bytes = if known { free_bytes } else { strange_bytes };
            let fits = room.fits(held, known) && own_bytes > 0 && held_bytes <= own_bytes;
            // Not a few at a time: a claim costs the same for many.
            let low = fits && held <= self.claim_ahead() / 2;
            let most =
                if known { usize::MAX } else { (room.for_strangers().saturating_sub(held) / 2).max(1) };
            let count = if low { (self.claim_ahead() - held).min(most).min(left) } else { 0 };
            if count == 0 {
                state.hungry.insert(name);
            } else if !wants.iter().any(|want| want.lane == name) {
                left -= count;
                if !known {
                    room.used += count;
                    room.strange += count;
                    // Not less than half of what strangers leave: others are in this claim, too.
                    let least = self.limits.held_bytes / NOT_FOR_STRANGERS / 2;
                    bytes = bytes.min(strange_bytes.max(least));
                }
                wants.push(Want { lane: name, count });
            }
        }
        (wants, bytes)
    }

    /// Whether the last claim left lanes out for want of room.
    pub(super) fn is_hungry(&self) -> bool {
        !self.state().hungry.is_empty()
    }

    /// Deliveries of one lane that claims fill up to.
    fn claim_ahead(&self) -> usize {
        self.limits.per_lane.saturating_mul(CLAIM_AHEAD)
    }

    /// Attempts running.
    pub(super) fn running(&self) -> usize {
        self.state().load.running
    }

    /// Deliveries held, and attempts running.
    #[cfg(test)]
    fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.load.held, state.load.running)
    }

    /// Rings after deliveries of these lanes were let go, if someone waits for that.
    fn ring_for_room<'a>(&self, state: &mut State, lanes: impl Iterator<Item = &'a Arc<str>>) {
        let low = self.claim_ahead() / 2;
        let fed = lanes
            .filter(|name| state.hungry.contains(*name))
            .any(|name| state.lanes.get(name).is_none_or(|lane| lane.load.held <= low));
        if state.starved || fed {
            state.starved = false;
            self.room.notify_one();
        }
        self.ring_for_gates(state);
    }

    fn ring_for_gates(&self, state: &mut State) {
        if state.gates_starved {
            state.gates_starved = false;
            self.gate_room.notify_one();
        }
    }

    /// The deliveries that may start: lanes that have answered lately and others take turns, as long as there are slots.
    fn next(&self, state: &mut State) -> Vec<Delivery> {
        let mut started = Vec::new();
        loop {
            let before = started.len();
            started.extend(self.next_of(state, Ring::Known));
            started.extend(self.next_of(state, Ring::Strange));
            if started.len() == before {
                return started;
            }
        }
    }

    /// The next one of the lanes in this ring, each of which is looked at once in vain at most.
    fn next_of(&self, state: &mut State, ring: Ring) -> Option<Delivery> {
        let slots = self.slots(state);
        let any = if ring == Ring::Known { slots.free() > 0 } else { slots.fits_strangers() };
        if !any || state.draining {
            return None;
        }
        for _ in 0..state.ring(ring).len() {
            let name = state.ring(ring).pop_front()?;
            let known = state.is_known(&name);
            // It may be gone, or have moved to the other ring.
            let Some(lane) = state.lanes.get_mut(&name).filter(|lane| lane.ring == Some(ring)) else {
                continue;
            };
            lane.ring = None;
            let mut next = None;
            if lane.load.running < self.limits.per_lane && slots.fits(lane.load.running, known) {
                next = lane.pop();
            }
            if next.is_some() {
                state.load(&name, Load { running: 1, ..Load::default() });
            }
            state.enter_ring(&name, self.limits.per_lane);
            if next.is_some() {
                return next;
            }
        }
        None
    }
}

impl Lane {
    /// The next one: those that came through gates and the others take turns.
    fn pop(&mut self) -> Option<Delivery> {
        let passed = self.passed_next || self.ready.is_empty();
        self.passed_next = !passed;
        if passed && let Some(delivery) = self.passed.pop_front() {
            self.passing -= 1;
            return Some(delivery);
        }
        self.ready.pop_front()
    }
}

impl State {
    fn hold(&mut self, name: &Arc<str>, bytes: usize) {
        if !self.lanes.contains_key(name) {
            let known = self.answered.has(name);
            self.lanes.insert(Arc::clone(name), Lane { known, ..Lane::default() });
        }
        self.load(name, Load { running: 0, held: 1, held_bytes: bytes });
    }

    fn let_go(&mut self, name: &Arc<str>, bytes: usize) {
        self.unload(name, Load { running: 0, held: 1, held_bytes: bytes });
        self.drop_if_empty(name);
    }

    fn drop_if_empty(&mut self, name: &Arc<str>) {
        if self.load_of(name) == Load::default() {
            // Its place in the ring, if it has one, is skipped.
            self.lanes.remove(name);
        }
    }

    /// What a lane has.
    fn load_of(&self, name: &Arc<str>) -> Load {
        self.lanes.get(name).map_or_else(Load::default, |lane| lane.load)
    }

    fn load(&mut self, name: &Arc<str>, more: Load) {
        let lane = self.lanes.get_mut(name).expect("what is held has a lane");
        lane.load.add(more);
        self.load.add(more);
        if !lane.known {
            self.strange.add(more);
        }
    }

    fn unload(&mut self, name: &Arc<str>, less: Load) {
        let lane = self.lanes.get_mut(name).expect("what is held or runs has a lane");
        lane.load.remove(less);
        self.load.remove(less);
        if !lane.known {
            self.strange.remove(less);
        }
    }

    /// Whether a lane has answered lately. From now on what it has counts as such a lane's.
    fn is_known(&mut self, name: &Arc<str>) -> bool {
        let known = self.answered.has(name);
        if let Some(lane) = self.lanes.get_mut(name)
            && lane.known != known
        {
            lane.known = known;
            if known {
                self.strange.remove(lane.load);
            } else {
                self.strange.add(lane.load);
            }
        }
        known
    }

    fn ring(&mut self, ring: Ring) -> &mut VecDeque<Arc<str>> {
        match ring {
            Ring::Known => &mut self.known_ring,
            Ring::Strange => &mut self.strange_ring,
        }
    }

    /// Puts a lane into its ring if it belongs there. One at its own limit comes back when an attempt of it ends.
    fn enter_ring(&mut self, name: &Arc<str>, per_lane: usize) {
        let ring = if self.is_known(name) { Ring::Known } else { Ring::Strange };
        if let Some(lane) = self.lanes.get_mut(name)
            && (lane.ring.is_none() || (lane.ring, ring) == (Some(Ring::Strange), Ring::Known))
            && !(lane.ready.is_empty() && lane.passed.is_empty())
            && lane.load.running < per_lane
        {
            lane.ring = Some(ring);
            self.ring(ring).push_back(Arc::clone(name));
        }
    }

    fn end_lease(&mut self, lease: Lease) {
        if let Some(count) = self.leases.get_mut(&lease) {
            *count -= 1;
            if *count == 0 {
                self.leases.remove(&lease);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::Message;
    use crate::domain::time::Timestamp;

    fn dispatcher(concurrency: usize, per_lane: usize, held: usize) -> Dispatcher {
        with_bytes(concurrency, per_lane, held, usize::MAX)
    }

    fn with_bytes(concurrency: usize, per_lane: usize, held: usize, held_bytes: usize) -> Dispatcher {
        let limits = Limits { concurrency, per_lane, held, held_bytes };
        Dispatcher { state: Mutex::default(), limits, room: Notify::new(), gate_room: Notify::new() }
    }

    fn delivery(id: usize, lane: &str, lease: Lease) -> Delivery {
        let now = Timestamp::from_millis(0);
        let message =
            Message::plain(MessageId::new(format!("msg_{id}")), now, "http://e.com", bytes::Bytes::new());
        Delivery::stored_leased(&Arc::new(message), &Arc::from(lane), lease, None)
    }

    /// One that came through a queue.
    fn queued(id: usize, lane: &str, lease: Lease) -> Delivery {
        let delivery = delivery(id, lane, lease);
        let message = Message { queue: Some("q".to_owned()), ..(*delivery.message).clone() };
        Delivery { message: Arc::new(message), ..delivery }
    }

    /// Reserves and admits as many of `count` deliveries of a lane that waited at gates as there is room for; those that
    /// may start, and how many there was room for.
    fn pass(dispatcher: &Dispatcher, lane: &str, count: usize) -> (Vec<Delivery>, usize) {
        let lease = dispatcher.open_lease();
        let all: Vec<Delivery> = (100..100 + count)
            .map(|id| queued(id, lane, lease))
            .filter(|delivery| dispatcher.reserve_passing(&delivery.lane, delivery.size))
            .collect();
        let room = all.len();
        let started = dispatcher.admit(all);
        dispatcher.close_lease(lease);
        (started, room)
    }

    /// Makes a lane known for an answer.
    fn answer(dispatcher: &Dispatcher, lane: &str) {
        let started = admit(dispatcher, lane, 1);
        assert_eq!(started.len(), 1);
        assert!(end(dispatcher, &started).is_empty());
    }

    /// Reserves and admits `count` deliveries of a lane; those that may start.
    fn admit(dispatcher: &Dispatcher, lane: &str, count: usize) -> Vec<Delivery> {
        let lease = dispatcher.open_lease();
        let all: Vec<Delivery> = (0..count).map(|id| delivery(id, lane, lease)).collect();
        let wanted = all.iter().map(|delivery| (&delivery.lane, delivery.size));
        let fits = dispatcher.reserve(wanted);
        let admitted = all.into_iter().zip(fits).filter(|(_, fits)| *fits).map(|(delivery, _)| delivery);
        let started = dispatcher.admit(admitted.collect());
        dispatcher.close_lease(lease);
        started
    }

    /// Ends attempts with an answer and forgets their deliveries; those that start instead.
    fn end(dispatcher: &Dispatcher, ended: &[Delivery]) -> Vec<Delivery> {
        let mut started = Vec::new();
        for delivery in ended {
            started.extend(dispatcher.attempt_ended(&delivery.lane, true));
            dispatcher.forget(delivery);
        }
        started
    }

    #[test]
    fn everything_comes_up_and_nothing_is_left_behind() {
        let dispatcher = dispatcher(8, 4, 1000);
        let mut running = admit(&dispatcher, "a", 50);
        running.extend(admit(&dispatcher, "b", 50));
        let mut ended = 0;
        while !running.is_empty() {
            ended += running.len();
            running = end(&dispatcher, &running);
        }
        assert_eq!(ended, 100);
        assert_eq!(dispatcher.load(), (0, 0));
        let state = dispatcher.state();
        assert_eq!((state.load, state.strange), (Load::default(), Load::default()));
        assert!(state.leases.is_empty(), "{:?}", state.leases);
        assert!(state.lanes.is_empty());
    }

    #[test]
    fn a_lane_that_hangs_leaves_slots_to_the_others() {
        let dispatcher = dispatcher(16, 16, 1000);
        for hanging in ["a", "b", "c"] {
            answer(&dispatcher, hanging);
        }
        for hanging in ["a", "b", "c"] {
            let started = admit(&dispatcher, hanging, 100);
            assert!(!started.is_empty(), "{hanging} gets something");
        }
        assert!(dispatcher.load().1 < 16, "and a slot is left");
        assert_eq!(admit(&dispatcher, "healthy", 1).len(), 1);
    }

    #[test]
    fn however_many_lanes_hang_those_that_answer_go_on() {
        for each in [1, 100] {
            let dispatcher = dispatcher(8192, 128, 8192);
            answer(&dispatcher, "known");
            let mut hanging = 0;
            for lane in 0..5000 {
                hanging += usize::from(!admit(&dispatcher, &format!("silent{lane}"), each).is_empty());
            }
            assert_eq!(hanging, 5000, "each gets a slot");
            answer(&dispatcher, "new");
            let burst = admit(&dispatcher, "known", 1000);
            assert_eq!(burst.len(), 128, "all of its own limit");
            for lane in 5000..20_000 {
                admit(&dispatcher, &format!("silent{lane}"), each);
            }
            assert!(admit(&dispatcher, "late", 1).is_empty(), "the last part is not for strangers");
            let mut burst = burst;
            while !burst.is_empty() {
                burst = end(&dispatcher, &burst);
            }
            answer(&dispatcher, "new");
            assert!(admit(&dispatcher, "known", 1000).len() > 100);
        }
    }

    #[test]
    fn what_waits_of_lanes_that_hang_is_passed_over() {
        // More of them wait than there are slots for them.
        let dispatcher = dispatcher(8, 4, 1000);
        answer(&dispatcher, "known");
        for lane in 0..100 {
            admit(&dispatcher, &format!("silent{lane}"), 3);
        }
        assert_eq!(dispatcher.load().1, 7);
        for _ in 0..3 {
            answer(&dispatcher, "known");
        }
        // Those that answer while they wait are known, too.
        let name: Arc<str> = Arc::from("silent0");
        let next = dispatcher.attempt_ended(&name, true);
        let lanes: Vec<&str> = next.iter().map(|delivery| &*delivery.lane).collect();
        assert_eq!(lanes, ["silent0", "silent7"], "it goes on, and its place is another stranger's");
    }

    #[test]
    fn an_answer_is_forgotten() {
        let mut answered = Answered::default();
        let lane: Arc<str> = Arc::from("a");
        let long_ago = |answered: &mut Answered| answered.since -= LATELY;
        answered.note(&lane);
        long_ago(&mut answered);
        assert!(answered.has(&lane));
        long_ago(&mut answered);
        assert!(!answered.has(&lane));
        for number in 0..3 * MAX_KNOWN {
            answered.note(&Arc::from(number.to_string()));
        }
        assert!(answered.lately.len() + answered.before.len() <= 2 * MAX_KNOWN);
        answered.note(&lane);
        answered.since -= 2 * LATELY;
        assert!(!answered.has(&lane), "also where nothing was asked meanwhile");
    }

    #[test]
    fn strangers_leave_some_of_the_memory() {
        let body = 1 << 20;
        let room = |dispatcher: &Dispatcher, lane: &str| {
            dispatcher.reserve(std::iter::once((&Arc::from(lane), body)))[0]
        };
        let dispatcher = with_bytes(8192, 128, 8192, 16 * body);
        answer(&dispatcher, "known");
        let silent = (0..100).filter(|lane| room(&dispatcher, &format!("silent{lane}"))).count();
        assert_eq!(silent, 14);
        assert!(room(&dispatcher, "known"));
        let alone = with_bytes(8, 8, 8, body);
        assert!(room(&alone, "a"), "where nothing else is there, all may be used");
    }

    #[test]
    fn claims_for_strangers_leave_some_of_the_memory() {
        let body = 1 << 20;
        let dispatcher = with_bytes(8192, 128, 8192, 16 * body);
        answer(&dispatcher, "known");
        let lease = dispatcher.open_lease();
        let mut silent = 0;
        for lane in 0..100 {
            let name = format!("silent{lane}");
            let (wants, bytes) = dispatcher.wants(std::iter::once(Arc::from(name.as_str())));
            if let [want] = &wants[..] {
                let count = want.count.min(bytes / body);
                let claimed = || Delivery { size: body, ..delivery(1000 + lane, &name, lease) };
                dispatcher.admit_claimed((0..count).map(|_| claimed()).collect());
                silent += count;
            }
        }
        assert_eq!(silent, 14);
        let (wants, bytes) = dispatcher.wants(["new", "known"].into_iter().map(Arc::from));
        let wants: Vec<&str> = wants.iter().map(|want| &*want.lane).collect();
        assert_eq!((wants, bytes), (vec!["known"], body));
    }

    #[test]
    fn each_lane_that_has_answered_gets_one_place_where_many_of_them_hang() {
        let dispatcher = dispatcher(8192, 128, 8192);
        let lanes: Vec<String> = (0..500).map(|lane| format!("hanging{lane}")).collect();
        for lane in &lanes {
            answer(&dispatcher, lane);
        }
        answer(&dispatcher, "healthy");
        for lane in &lanes {
            assert!(!admit(&dispatcher, lane, 200).is_empty());
        }
        assert_eq!(admit(&dispatcher, "healthy", 1).len(), 1);
    }

    #[test]
    fn a_single_busy_lane_gets_half_of_few_places_and_nearly_half_of_many() {
        for (all, own) in [(1, 1), (2, 1), (3, 2), (8, 4), (15, 8), (16, 8), (32, 15), (1600, 750)] {
            let dispatcher = dispatcher(all, all, 100_000);
            answer(&dispatcher, "a");
            assert_eq!(admit(&dispatcher, "a", 2 * all).len(), own, "of {all}");
        }
    }

    #[test]
    fn claims_take_one_of_a_lane_that_has_not_answered_where_many_hang() {
        let dispatcher = dispatcher(1000, 100, 1000);
        answer(&dispatcher, "known");
        for lane in 0..300 {
            admit(&dispatcher, &format!("silent{lane}"), 1);
        }
        let lanes = ["known", "new", "silent0"].into_iter().map(Arc::from);
        let (wants, _) = dispatcher.wants(lanes);
        let wants: Vec<_> = wants.iter().map(|want| (&*want.lane, want.count)).collect();
        assert_eq!(wants, [("known", 100 * CLAIM_AHEAD), ("new", 1)]);
    }

    #[test]
    fn a_lane_keeps_its_own_limit() {
        let dispatcher = dispatcher(100, 3, 1000);
        let started = admit(&dispatcher, "a", 10);
        assert_eq!(started.len(), 3);
        assert_eq!(end(&dispatcher, &started[..1]).len(), 1);
    }

    #[test]
    fn room_is_shared_by_what_is_free() {
        let dispatcher = dispatcher(1, 1, 8);
        answer(&dispatcher, "a");
        answer(&dispatcher, "b");
        admit(&dispatcher, "a", 100);
        assert_eq!(dispatcher.load().0, 4, "one lane holds as much as is left free");
        admit(&dispatcher, "b", 100);
        assert_eq!(dispatcher.load().0, 6);
    }

    #[test]
    fn a_withdrawn_delivery_never_starts() {
        let dispatcher = dispatcher(1, 1, 100);
        let started = admit(&dispatcher, "a", 4);
        assert_eq!(dispatcher.load(), (4, 1));
        let ids = ["msg_0", "msg_3", "msg_1"].map(MessageId::new);
        let withdrawn = dispatcher.withdraw(&ids.iter().collect());
        let names: Vec<_> = withdrawn.iter().map(|delivery| delivery.message.id.as_str()).collect();
        assert_eq!(names, ["msg_1", "msg_3"], "the other one runs");
        dispatcher.forget_all(withdrawn.iter());
        let next = end(&dispatcher, &started);
        assert_eq!(next[0].message.id.as_str(), "msg_2");
        assert!(end(&dispatcher, &next).is_empty());
        assert_eq!(dispatcher.load(), (0, 0));
    }

    #[test]
    fn only_what_starts_soon_comes_through_gates() {
        let dispatcher = dispatcher(100, 4, 1000);
        let (started, room) = pass(&dispatcher, "a", 10);
        assert_eq!((started.len(), room), (4, 4));
        assert_eq!(pass(&dispatcher, "b", 1).0.len(), 1, "another lane has its own slots");
        // All slots are in use: one waits for the next that is free.
        let (next, room) = pass(&dispatcher, "a", 10);
        assert_eq!((next.len(), room), (0, 1));
        assert_eq!(end(&dispatcher, &started[..1]).len(), 1);
        let lane: Arc<str> = Arc::from("a");
        assert!(dispatcher.reserve_passing(&lane, 1));
        assert!(!dispatcher.reserve_passing(&lane, 1));
        dispatcher.unreserve_passing(&lane, 1);
        assert!(dispatcher.reserve_passing(&lane, 1));
        dispatcher.unreserve_passing(&lane, 1);
        end(&dispatcher, &started[1..]);
        assert_eq!(dispatcher.load(), (2, 2));
    }

    #[tokio::test]
    async fn what_waits_at_gates_is_told_of_room() {
        let dispatcher = dispatcher(100, 1, 1000);
        let (started, _) = pass(&dispatcher, "a", 1);
        assert_eq!(pass(&dispatcher, "a", 1).1, 1, "one runs, and one waits");
        assert_eq!(pass(&dispatcher, "a", 1).1, 0);
        end(&dispatcher, &started);
        dispatcher.gate_room.notified().await;
    }

    #[test]
    fn what_was_reserved_is_given_back_whatever_the_message_takes() {
        let dispatcher = dispatcher(100, 1, 1000);
        for stored in [1, 1 << 20] {
            let lease = dispatcher.open_lease();
            let delivery = Delivery { size: stored, ..queued(1, "a", lease) };
            assert!(dispatcher.reserve_passing(&delivery.lane, stored));
            let started = dispatcher.admit(vec![delivery]);
            dispatcher.close_lease(lease);
            assert!(end(&dispatcher, &started).is_empty());
            assert_eq!(dispatcher.state().load, Load::default());
        }
    }

    #[test]
    fn those_from_gates_and_the_others_take_turns() {
        let dispatcher = dispatcher(100, 1, 1000);
        let mut running = admit(&dispatcher, "a", 5);
        let mut order = Vec::new();
        while let Some(delivery) = running.pop() {
            order.push(is_gated(&delivery.message));
            pass(&dispatcher, "a", 1);
            running = end(&dispatcher, &[delivery]);
            if order.len() == 6 {
                break;
            }
        }
        assert_eq!(order.iter().filter(|gated| **gated).count(), 3, "{order:?}");
        let withdrawn = dispatcher.withdraw_all();
        assert!(withdrawn.iter().any(|delivery| is_gated(&delivery.message)));
        end(&dispatcher, &running);
        assert_eq!(dispatcher.load(), (0, 0));
    }

    #[test]
    fn a_withdrawn_delivery_leaves_its_place_at_the_gate() {
        let dispatcher = dispatcher(100, 1, 1000);
        let (started, _) = pass(&dispatcher, "a", 1);
        let lease = dispatcher.open_lease();
        let waiting = queued(7, "a", lease);
        assert!(dispatcher.reserve_passing(&waiting.lane, waiting.size));
        assert!(dispatcher.admit(vec![waiting]).is_empty());
        assert_eq!(pass(&dispatcher, "a", 1).1, 0);
        let withdrawn = dispatcher.withdraw(&HashSet::from([&MessageId::new("msg_7")]));
        assert_eq!(withdrawn.len(), 1);
        dispatcher.forget(&withdrawn[0]);
        assert_eq!(pass(&dispatcher, "a", 1).1, 1);
        let next = end(&dispatcher, &started);
        end(&dispatcher, &next);
        assert_eq!(dispatcher.load(), (0, 0));
    }

    #[test]
    fn draining_takes_nothing_more() {
        let dispatcher = dispatcher(1, 1, 100);
        let started = admit(&dispatcher, "a", 3);
        assert_eq!(dispatcher.drain().len(), 2);
        assert!(admit(&dispatcher, "b", 1).is_empty());
        assert!(end(&dispatcher, &started).is_empty());
        assert_eq!(dispatcher.load(), (0, 0));
        assert!(!dispatcher.has_room());
    }

    #[test]
    fn claims_fill_each_lane_to_a_bound() {
        let dispatcher = dispatcher(100, 3, 1000);
        let lanes = || ["a", "b", "a"].into_iter().map(Arc::from);
        let (wants, _) = dispatcher.wants(lanes());
        let counts: Vec<usize> = wants.iter().map(|want| want.count).collect();
        assert_eq!(counts, [3 * CLAIM_AHEAD, 3 * CLAIM_AHEAD]);
        let lease = dispatcher.open_lease();
        let claimed = (0..3 * CLAIM_AHEAD).map(|id| delivery(id, "a", lease)).collect();
        dispatcher.admit_claimed(claimed);
        let (wants, _) = dispatcher.wants(lanes());
        assert_eq!(wants.len(), 1);
        assert_eq!(&*wants[0].lane, "b");
    }

    #[test]
    fn a_look_at_the_leases_tells_which_came_later() {
        let dispatcher = dispatcher(1, 1, 100);
        let first = dispatcher.open_lease();
        dispatcher.close_lease(first);
        let second = dispatcher.open_lease();
        let (live, last) = dispatcher.live_leases();
        assert_eq!((live, last), (vec![second], second));
        assert!(dispatcher.open_lease() > last);
    }
}
