//! Who goes next: the leased deliveries in memory, fair across lanes, within this node's limits.
//!
//! A lane here is what the store calls one: the destination's origin. Room is shared by dynamic thresholds: a lane may
//! hold as much as is still free. One busy lane thus gets half of the room, and n lanes that hang leave a share of
//! 1/(n + 1) to the others, whatever their number.
//!
//! Deliveries that came through a gate count there from then on, so that few of them wait here, and within their lane they
//! take turns with the others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Settings;
use crate::domain::gate::is_gated;
use crate::domain::id::MessageId;
use crate::store::{Delivery, Lease, Want};

/// Deliveries that a claim takes for one lane, as a multiple of what may run there: enough for two more rounds while
/// the next claim is on its way.
const CLAIM_AHEAD: usize = 4;
/// Deliveries in one claim.
const CLAIM_MAX: usize = 512;

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
    lanes: HashMap<Arc<str>, Lane>,
    /// Lanes that have something ready and are below their own limit, each once.
    ring: VecDeque<Arc<str>>,
    running: usize,
    held: usize,
    held_bytes: usize,
    /// Claim numbers in use, and by how many deliveries (or calls that will bring some).
    leases: HashMap<Lease, usize>,
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
    ready: VecDeque<Delivery>,
    /// Likewise, of those that came through a gate.
    passed: VecDeque<Delivery>,
    /// How many of these there are, with those that are about to come.
    passing: usize,
    /// Whose turn it is.
    passed_next: bool,
    running: usize,
    /// Waiting, running, or not yet finished in the store.
    held: usize,
    /// Bytes of these.
    held_bytes: usize,
    in_ring: bool,
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
                let fits = self.fits(&state, lane, bytes);
                if fits {
                    state.hold(lane, bytes);
                }
                fits
            })
            .collect()
    }

    fn fits(&self, state: &State, lane: &Arc<str>, bytes: usize) -> bool {
        let free = self.limits.held.saturating_sub(state.held);
        let free_bytes = self.limits.held_bytes.saturating_sub(state.held_bytes);
        let (held, held_bytes) = state.lanes.get(lane).map_or((0, 0), |lane| (lane.held, lane.held_bytes));
        !state.draining && held < free && held_bytes <= free_bytes && bytes <= free_bytes
    }

    /// Takes room for a delivery that waits at a gate: only where it can start soon, since it counts there from then on.
    /// If there is none, [`Dispatcher::gate_room`] rings when there may be.
    pub(super) fn reserve_passing(&self, lane: &Arc<str>, bytes: usize) -> bool {
        let mut state = self.state();
        let (passing, running) = state.lanes.get(lane).map_or((0, 0), |lane| (lane.passing, lane.running));
        // Where all slots are in use, one waits for the next that ends.
        let soon = passing < self.limits.per_lane.saturating_sub(running).max(1);
        let fits = soon && self.fits(&state, lane, bytes);
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
            state.hold(&delivery.lane, delivery.message.size());
        }
        drop(state);
        self.admit(deliveries)
    }

    /// Frees the slot of an attempt that has ended; those that may start instead.
    pub(super) fn attempt_ended(&self, lane: &Arc<str>) -> Vec<Delivery> {
        let mut state = self.state();
        state.running -= 1;
        if let Some(lane) = state.lanes.get_mut(lane) {
            lane.running -= 1;
        }
        state.enter_ring(lane, self.limits.per_lane);
        let started = self.next(&mut state);
        self.ring_for_gates(&mut state);
        started
    }

    /// Lets go of a delivery that is finished, or no longer ours.
    pub(super) fn forget(&self, delivery: &Delivery) {
        self.forget_all(std::iter::once(delivery));
    }

    /// The same for many.
    pub(super) fn forget_all<'a>(&self, deliveries: impl Iterator<Item = &'a Delivery> + Clone) {
        let mut state = self.state();
        for delivery in deliveries.clone() {
            state.let_go(&delivery.lane, delivery.message.size());
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

    /// The messages that have not started.
    pub(super) fn waiting(&self) -> Vec<MessageId> {
        self.waiting_like(|_| true)
    }

    /// Those of them that were admitted under this lease.
    pub(super) fn waiting_under(&self, lease: Lease) -> Vec<MessageId> {
        self.waiting_like(|delivery| delivery.lease == lease)
    }

    fn waiting_like(&self, like: impl Fn(&Delivery) -> bool) -> Vec<MessageId> {
        let state = self.state();
        state
            .lanes
            .values()
            .flat_map(|lane| lane.ready.iter().chain(&lane.passed))
            .filter(|delivery| like(delivery))
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
            !state.draining && state.held < self.limits.held && state.held_bytes < self.limits.held_bytes;
        state.starved = !room;
        room
    }

    /// Whether there is room for anything that waits at gates; if not, [`Dispatcher::gate_room`] rings when there is.
    pub(super) fn has_gate_room(&self) -> bool {
        let mut state = self.state();
        let room =
            !state.draining && state.held < self.limits.held && state.held_bytes < self.limits.held_bytes;
        state.gates_starved |= !room;
        room
    }

    /// How much of each lane to claim now, and how many bytes in all. Lanes without room are kept in mind:
    /// [`Dispatcher::room`] rings when one has some.
    pub(super) fn wants(&self, lanes: impl Iterator<Item = Arc<str>>) -> (Vec<Want>, usize) {
        let mut state = self.state();
        let mut left = CLAIM_MAX.min(self.limits.held.saturating_sub(state.held));
        let free = self.limits.held.saturating_sub(state.held);
        let free_bytes = self.limits.held_bytes.saturating_sub(state.held_bytes);
        let mut wants: Vec<Want> = Vec::new();
        state.hungry.clear();
        for name in lanes {
            let (held, held_bytes) =
                state.lanes.get(&name).map_or((0, 0), |lane| (lane.held, lane.held_bytes));
            // Not a few at a time: a claim costs the same for many.
            let low = held <= self.claim_ahead() / 2 && held < free && held_bytes <= free_bytes;
            let count = if low { (self.claim_ahead() - held).min(left) } else { 0 };
            if count == 0 {
                state.hungry.insert(name);
            } else if !wants.iter().any(|want| want.lane == name) {
                left -= count;
                wants.push(Want { lane: name, count });
            }
        }
        // Half of what is free, so that one claim of large messages leaves something to the next.
        (wants, free_bytes.div_ceil(2))
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
        self.state().running
    }

    /// Deliveries held, and attempts running.
    #[cfg(test)]
    fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.held, state.running)
    }

    /// Rings after deliveries of these lanes were let go, if someone waits for that.
    fn ring_for_room<'a>(&self, state: &mut State, lanes: impl Iterator<Item = &'a Arc<str>>) {
        let low = self.claim_ahead() / 2;
        let fed = lanes
            .filter(|name| state.hungry.contains(*name))
            .any(|name| state.lanes.get(name).is_none_or(|lane| lane.held <= low));
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

    /// The deliveries that may start: one lane after the other, as long as there are slots, and each lane of the ring is
    /// looked at once in vain at most.
    fn next(&self, state: &mut State) -> Vec<Delivery> {
        let mut started = Vec::new();
        let mut looks = state.ring.len();
        while looks > 0 && state.running < self.limits.concurrency && !state.draining {
            let Some(name) = state.ring.pop_front() else { break };
            let free = self.limits.concurrency - state.running;
            let Some(lane) = state.lanes.get_mut(&name) else { continue };
            lane.in_ring = false;
            looks -= 1;
            if lane.running < self.limits.per_lane
                && lane.running < free
                && let Some(delivery) = lane.pop()
            {
                lane.running += 1;
                state.running += 1;
                started.push(delivery);
                looks = state.ring.len() + 1;
            }
            state.enter_ring(&name, self.limits.per_lane);
        }
        started
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
        self.held += 1;
        self.held_bytes += bytes;
        if !self.lanes.contains_key(name) {
            self.lanes.insert(Arc::clone(name), Lane::default());
        }
        let lane = self.lanes.get_mut(name).expect("it is there now");
        lane.held += 1;
        lane.held_bytes += bytes;
    }

    fn let_go(&mut self, name: &Arc<str>, bytes: usize) {
        self.held -= 1;
        self.held_bytes -= bytes;
        let lane = self.lanes.get_mut(name).expect("a held delivery has a lane");
        lane.held -= 1;
        lane.held_bytes -= bytes;
        if lane.held == 0 && lane.running == 0 {
            // Its place in the ring, if it has one, is skipped.
            self.lanes.remove(name);
        }
    }

    /// Puts a lane into the ring if it belongs there. One at its own limit comes back when an attempt of it ends.
    fn enter_ring(&mut self, name: &Arc<str>, per_lane: usize) {
        if let Some(lane) = self.lanes.get_mut(name)
            && !lane.in_ring
            && !(lane.ready.is_empty() && lane.passed.is_empty())
            && lane.running < per_lane
        {
            lane.in_ring = true;
            self.ring.push_back(Arc::clone(name));
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
    use crate::domain::message::{Headers, Message, Method, Options};
    use crate::domain::time::Timestamp;

    fn dispatcher(concurrency: usize, per_lane: usize, held: usize) -> Dispatcher {
        let limits = Limits { concurrency, per_lane, held, held_bytes: usize::MAX };
        Dispatcher { state: Mutex::default(), limits, room: Notify::new(), gate_room: Notify::new() }
    }

    fn delivery(id: usize, lane: &str, lease: Lease) -> Delivery {
        let now = Timestamp::from_millis(0);
        let message = Message {
            id: MessageId::new(format!("msg_{id}")),
            created_at: now,
            due_at: now,
            method: Method::Post,
            url: "http://e.com".to_owned(),
            headers: Headers::new(),
            body: bytes::Bytes::new(),
            body_sha256: [0; 32],
            max_retries: 0,
            caller_ip: None,
            labels: Vec::new(),
            queue: None,
            url_group: None,
            endpoint: None,
            schedule_id: None,
            source_id: None,
            options: Options::default(),
        };
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
            .filter(|delivery| dispatcher.reserve_passing(&delivery.lane, delivery.message.size()))
            .collect();
        let room = all.len();
        let started = dispatcher.admit(all);
        dispatcher.close_lease(lease);
        (started, room)
    }

    /// Reserves and admits `count` deliveries of a lane; those that may start.
    fn admit(dispatcher: &Dispatcher, lane: &str, count: usize) -> Vec<Delivery> {
        let lease = dispatcher.open_lease();
        let all: Vec<Delivery> = (0..count).map(|id| delivery(id, lane, lease)).collect();
        let wanted = all.iter().map(|delivery| (&delivery.lane, delivery.message.size()));
        let fits = dispatcher.reserve(wanted);
        let admitted = all.into_iter().zip(fits).filter(|(_, fits)| *fits).map(|(delivery, _)| delivery);
        let started = dispatcher.admit(admitted.collect());
        dispatcher.close_lease(lease);
        started
    }

    /// Ends attempts and forgets their deliveries; those that start instead.
    fn end(dispatcher: &Dispatcher, ended: &[Delivery]) -> Vec<Delivery> {
        let mut started = Vec::new();
        for delivery in ended {
            started.extend(dispatcher.attempt_ended(&delivery.lane));
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
        assert_eq!(state.held_bytes, 0);
        assert!(state.leases.is_empty(), "{:?}", state.leases);
        assert!(state.lanes.values().all(|lane| lane.held == 0 && lane.ready.is_empty()));
    }

    #[test]
    fn a_lane_that_hangs_leaves_slots_to_the_others() {
        let dispatcher = dispatcher(16, 16, 1000);
        for hanging in ["a", "b", "c"] {
            let started = admit(&dispatcher, hanging, 100);
            assert!(!started.is_empty(), "{hanging} gets something");
        }
        assert!(dispatcher.load().1 < 16, "and a slot is left");
        assert_eq!(admit(&dispatcher, "healthy", 1).len(), 1);
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
        admit(&dispatcher, "a", 100);
        assert_eq!(dispatcher.load().0, 4, "one lane holds as much as is left free");
        admit(&dispatcher, "b", 100);
        assert_eq!(dispatcher.load().0, 6);
    }

    #[test]
    fn a_withdrawn_delivery_never_starts() {
        let dispatcher = dispatcher(1, 1, 100);
        let started = admit(&dispatcher, "a", 4);
        assert_eq!(dispatcher.waiting(), ["msg_1", "msg_2", "msg_3"].map(MessageId::new));
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
        assert!(dispatcher.reserve_passing(&waiting.lane, waiting.message.size()));
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
