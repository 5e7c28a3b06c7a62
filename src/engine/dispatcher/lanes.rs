//! Lanes: the places that each takes of a node's, and whose turn it is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::places::{Answered, NOT_FOR_STRANGERS, Places, Standing};
use crate::store::Want;

/// Deliveries that a claim takes for one lane, as a multiple of what may run there: enough for two more rounds while
/// the next claim is on its way.
pub(super) const CLAIM_AHEAD: usize = 4;
/// Deliveries in one claim.
const CLAIM_MAX: usize = 512;

/// A node's limits.
pub(super) struct Limits {
    pub(super) concurrency: usize,
    pub(super) per_lane: usize,
    pub(super) held: usize,
    pub(super) held_bytes: usize,
}

/// The places that lanes take.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Load {
    pub(super) running: usize,
    /// Deliveries that wait, run, or are not yet finished in the store.
    pub(super) held: usize,
    /// Bytes of these.
    pub(super) held_bytes: usize,
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

/// The way on which deliveries come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Straight from the store.
    Straight,
    /// Through a gate, at which they count as passing until they start.
    Gate,
}

/// All lanes in which a node holds something, with the deliveries `D` that wait there.
pub(super) struct Lanes<D> {
    limits: Limits,
    /// In no order: whoever goes through all of them sorts the result.
    all: HashMap<Arc<str>, Lane<D>>,
    answered: Answered,
    /// Lanes that have something ready and are below their own limit, each once: those that have answered lately, and the
    /// strangers.
    known_ring: VecDeque<Arc<str>>,
    strange_ring: VecDeque<Arc<str>>,
    /// Places that all lanes take, and those that strangers take.
    load: Load,
    strange: Load,
    /// Lanes with something due that a claim found no room for.
    hungry: HashSet<Arc<str>>,
}

struct Lane<D> {
    /// Deliveries that wait for a slot, by their ways.
    straight: VecDeque<D>,
    passed: VecDeque<D>,
    /// Permits for deliveries from gates that have not started.
    passing: usize,
    /// The last delivery that asked for one got none.
    refuses: bool,
    /// The way whose delivery starts next.
    next: Way,
    load: Load,
    /// The lane's standing when it was last brought up to date.
    standing: Standing,
    /// The ring that it is in.
    ring: Option<Standing>,
}

impl<D> Lane<D> {
    fn new(standing: Standing) -> Self {
        let (straight, passed) = (VecDeque::new(), VecDeque::new());
        Self {
            straight,
            passed,
            passing: 0,
            refuses: false,
            next: Way::Straight,
            load: Load::default(),
            standing,
            ring: None,
        }
    }

    fn is_waiting(&self) -> bool {
        !(self.straight.is_empty() && self.passed.is_empty())
    }

    /// Takes the next delivery: those that came through gates and the others take turns.
    fn pop(&mut self) -> Option<D> {
        let way = if self.straight.is_empty() { Way::Gate } else { self.next };
        self.next = if way == Way::Gate { Way::Straight } else { Way::Gate };
        if way == Way::Gate
            && let Some(delivery) = self.passed.pop_front()
        {
            self.passing -= 1;
            return Some(delivery);
        }
        self.straight.pop_front()
    }
}

impl<D> Lanes<D> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            all: HashMap::new(),
            answered: Answered::default(),
            known_ring: VecDeque::new(),
            strange_ring: VecDeque::new(),
            load: Load::default(),
            strange: Load::default(),
            hungry: HashSet::new(),
        }
    }

    /// Places that all lanes take.
    pub(super) fn load(&self) -> Load {
        self.load
    }

    /// Whether there is room for anything.
    pub(super) fn has_room(&self) -> bool {
        self.room().free() > 0 && self.load.held_bytes < self.limits.held_bytes
    }

    /// Whether a lane has room for one more delivery.
    pub(super) fn fits(&mut self, lane: &Arc<str>, bytes: usize) -> bool {
        let standing = self.standing(lane);
        let free_bytes = self.free_bytes(standing);
        let own = self.load_of(lane);
        self.room().fits(own.held, standing) && own.held_bytes <= free_bytes && bytes <= free_bytes
    }

    /// Whether a delivery that comes through a gate now would start soon: where all slots are in use, one waits for the next
    /// that ends.
    pub(super) fn starts_soon(&self, lane: &Arc<str>) -> bool {
        self.all
            .get(lane)
            .is_none_or(|lane| lane.passing < self.limits.per_lane.saturating_sub(lane.load.running).max(1))
    }

    /// Takes note of whether a delivery that waits at a gate found no room.
    pub(super) fn note_refusal(&mut self, lane: &Arc<str>, refused: bool) {
        if let Some(lane) = self.all.get_mut(lane) {
            lane.refuses = refused;
        }
    }

    /// Whether the room of a delivery that came through a gate may go to the next one there: it can start soon, and nobody
    /// waits for room.
    pub(super) fn may_pass_on(&self, lane: &Arc<str>) -> bool {
        self.starts_soon(lane) && self.all.get(lane).is_some_and(|lane| !lane.refuses)
    }

    /// Takes note that the room of a delivery has gone to one that comes through a gate.
    pub(super) fn pass_again(&mut self, lane: &Arc<str>) {
        self.lane(lane).passing += 1;
    }

    /// Takes room for a delivery.
    pub(super) fn take(&mut self, lane: &Arc<str>, bytes: usize, way: Way) {
        self.add(lane, Load::held(bytes));
        if way == Way::Gate {
            self.lane(lane).passing += 1;
        }
    }

    /// Gives the room of a delivery back, which has not started if it is still on its way through a gate.
    pub(super) fn give_back(&mut self, lane: &Arc<str>, bytes: usize, way: Way) {
        if way == Way::Gate {
            self.lane(lane).passing -= 1;
        }
        self.remove(lane, Load::held(bytes));
    }

    /// Takes in a delivery that waits for its turn, and for which there is room.
    pub(super) fn admit(&mut self, name: &Arc<str>, delivery: D, way: Way) {
        let lane = self.lane(name);
        match way {
            Way::Straight => lane.straight.push_back(delivery),
            Way::Gate => lane.passed.push_back(delivery),
        }
        self.enter_ring(name);
    }

    /// Takes the deliveries that may start: lanes that have answered lately and strangers take turns, as long as there are
    /// slots.
    pub(super) fn start(&mut self) -> Vec<D> {
        let mut started = Vec::new();
        loop {
            let before = started.len();
            started.extend(self.next_of(Standing::Known));
            started.extend(self.next_of(Standing::Strange));
            if started.len() == before {
                return started;
            }
        }
    }

    /// Takes the next delivery of the lanes in this ring, each of which comes up once in vain at most.
    fn next_of(&mut self, ring: Standing) -> Option<D> {
        let slots = self.slots();
        let any = if ring == Standing::Known { slots.free() > 0 } else { slots.fits_strangers() };
        if !any {
            return None;
        }
        for _ in 0..self.ring(ring).len() {
            let name = self.ring(ring).pop_front()?;
            let standing = self.standing(&name);
            // The lane may be gone, or have moved to the other ring.
            let Some(lane) = self.all.get_mut(&name).filter(|lane| lane.ring == Some(ring)) else {
                continue;
            };
            lane.ring = None;
            let mut next = None;
            if lane.load.running < self.limits.per_lane && slots.fits(lane.load.running, standing) {
                next = lane.pop();
            }
            if next.is_some() {
                self.add(&name, Load::RUNNING);
            }
            self.enter_ring(&name);
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// Takes note of an attempt's end, and of whether its destination has answered; whether something may start instead.
    pub(super) fn ended(&mut self, lane: &Arc<str>, answered: bool) -> bool {
        if answered {
            self.answered.note(lane);
        }
        self.remove(lane, Load::RUNNING);
        self.enter_ring(lane);
        !(self.known_ring.is_empty() && self.strange_ring.is_empty())
    }

    /// The deliveries that have not started, in any order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &D> {
        self.all.values().flat_map(|lane| lane.straight.iter().chain(&lane.passed))
    }

    /// Takes out deliveries that have not started, as far as they are wanted, in any order.
    pub(super) fn take_out(&mut self, is_wanted: impl Fn(&D) -> bool) -> Vec<D> {
        let mut out = Vec::new();
        for lane in self.all.values_mut() {
            for list in [&mut lane.straight, &mut lane.passed] {
                if list.iter().any(&is_wanted) {
                    let (wanted, kept) = std::mem::take(list).into_iter().partition::<Vec<_>, _>(&is_wanted);
                    *list = kept.into();
                    out.extend(wanted);
                }
            }
        }
        out
    }

    /// How much of each lane to claim now, and how many bytes in all. Lanes without room are kept in mind as hungry.
    pub(super) fn wants(&mut self, lanes: impl Iterator<Item = Arc<str>>) -> (Vec<Want>, usize) {
        let mut room = self.room();
        let mut left = CLAIM_MAX.min(room.free());
        let free_bytes = self.free_bytes(Standing::Known);
        let strange_bytes = self.free_bytes(Standing::Strange);
        // Half of what is free, so that one claim of large messages leaves something to the next.
        let mut bytes = free_bytes.div_ceil(2);
        let mut wants: Vec<Want> = Vec::new();
        self.hungry.clear();
        for name in lanes {
            let standing = self.standing(&name);
            let Load { held, held_bytes, .. } = self.load_of(&name);
            let known = standing == Standing::Known;
            let own_bytes = if known { free_bytes } else { strange_bytes };
            let fits = room.fits(held, standing) && own_bytes > 0 && held_bytes <= own_bytes;
            // Not a few at a time: a claim costs the same for many.
            let low = fits && held <= self.claim_ahead() / 2;
            let most =
                if known { usize::MAX } else { (room.for_strangers().saturating_sub(held) / 2).max(1) };
            let count = if low { (self.claim_ahead() - held).min(most).min(left) } else { 0 };
            if count == 0 {
                self.hungry.insert(name);
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
        !self.hungry.is_empty()
    }

    /// Whether a lane was left out by the last claim, and has room now.
    pub(super) fn can_be_fed(&self, lane: &Arc<str>) -> bool {
        self.hungry.contains(lane) && self.load_of(lane).held <= self.claim_ahead() / 2
    }

    /// Deliveries of one lane that claims fill up to.
    fn claim_ahead(&self) -> usize {
        self.limits.per_lane.saturating_mul(CLAIM_AHEAD)
    }

    /// Bytes that lanes of this standing may still take.
    fn free_bytes(&self, standing: Standing) -> usize {
        let all = self.limits.held_bytes;
        let free = all.saturating_sub(self.load.held_bytes);
        if standing == Standing::Known || self.strange.held == 0 {
            return free;
        }
        free.min((all - all / NOT_FOR_STRANGERS).saturating_sub(self.strange.held_bytes))
    }

    fn room(&self) -> Places {
        Places { all: self.limits.held, used: self.load.held, strange: self.strange.held }
    }

    fn slots(&self) -> Places {
        Places { all: self.limits.concurrency, used: self.load.running, strange: self.strange.running }
    }

    /// The lane of this name, a new one if there is none.
    fn lane(&mut self, name: &Arc<str>) -> &mut Lane<D> {
        self.all.entry(Arc::clone(name)).or_insert_with(|| Lane::new(self.answered.standing(name)))
    }

    /// The places that a lane takes.
    fn load_of(&self, name: &Arc<str>) -> Load {
        self.all.get(name).map_or_else(Load::default, |lane| lane.load)
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
            self.all.remove(name);
        }
    }

    /// Brings a lane's standing up to date, by which its places count.
    fn standing(&mut self, name: &Arc<str>) -> Standing {
        let standing = self.answered.standing(name);
        if let Some(lane) = self.all.get_mut(name)
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
    fn enter_ring(&mut self, name: &Arc<str>) {
        let ring = self.standing(name);
        if let Some(lane) = self.all.get_mut(name)
            && (lane.ring.is_none() || (lane.ring, ring) == (Some(Standing::Strange), Standing::Known))
            && lane.is_waiting()
            && lane.load.running < self.limits.per_lane
        {
            lane.ring = Some(ring);
            self.ring(ring).push_back(Arc::clone(name));
        }
    }
}

#[cfg(test)]
impl<D> Lanes<D> {
    /// Whether nothing is left behind.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && (self.load, self.strange) == (Load::default(), Load::default())
    }
}
