//! Claims deliveries from the gates at which they wait: queues and flow-control keys.
//!
//! A task of its own beside `refill`, so that neither waits for the other. It takes a snapshot of a gate when a wake-up says
//! that someone may go through: a message was accepted, something ended, a limit has changed; when the store says that it
//! is time; and, as other nodes don't wake this one, now and then. A queue of which a snapshot was taken lately may need
//! none ([`ahead`]). What may go is decided by `domain::gate`, and takes effect only if the gate is still as it was in the
//! snapshot. A gate with nothing to do is put to rest, so that it costs nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::ahead::{Ahead, Seen};
use self::taking::{SOON, Taking, is_idle};
use super::backoff;
use super::observer::Happened;
use super::shared::Shared;
use crate::clock::{pause, pause_until};
use crate::domain::gate::Admission;
use crate::domain::time::Timestamp;
use crate::store::Result;
use crate::store::gates::{GateSnapshot, Snapshot};

mod ahead;
mod taking;

/// Gates in one snapshot.
const GATES: usize = 256;
/// Deliveries in one snapshot, shared by its gates.
const DELIVERIES: usize = 512;
/// Deliveries of each gate at least.
const MIN_PER_GATE: usize = 8;
/// From a claim in which somebody else was faster to the next snapshot of the gate.
const CONTENDED: Duration = Duration::from_millis(5);
/// How long joining a gate that lets nobody through is no reason for a snapshot of it: another wake-up tells what opens it.
const CLOSED: Duration = Duration::from_millis(20);
/// How long to wait for room at most.
const SATURATED: Duration = Duration::from_millis(100);
/// Gates about which something is kept in mind; beyond, all of it is forgotten, which costs snapshots and time, nothing
/// else.
const MAX_KEPT: usize = 4096;
/// The longest that a slow store may keep an attempt of a rate from starting.
const MAX_SLOW: Duration = Duration::from_secs(1);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut task = Task::new(Arc::clone(&shared));
    let mut backoff = backoff::fetching();
    while !shared.draining.is_cancelled() {
        match task.round().await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "messages could not be taken from queues and flow control; trying again"
                );
                backoff.wait(&shared.draining).await;
                continue;
            }
        }
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => return,
            () = task.wait() => {}
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    /// Gates to take a snapshot of.
    pending: Pending,
    /// When to ask the store which gates are due, and when it was last asked.
    ask_at: Instant,
    asked_at: Instant,
    /// Queues that all who waited there have left, as far as this node can know.
    quiet: BTreeSet<Arc<str>>,
    /// Gates that have nothing to do, to be put to rest together, and when.
    idle: BTreeMap<Arc<str>, Timestamp>,
    rest_at: Instant,
    /// Gates to take a snapshot of a little later.
    again: BTreeSet<Arc<str>>,
    again_at: Instant,
    /// Gates that let nobody through, and until when that is taken for granted.
    closed: BTreeMap<Arc<str>, Instant>,
    /// Gates with something that didn't fit into this node.
    without_room: BTreeSet<Arc<str>>,
    /// Queues whose deliveries wait for a key, by that key.
    behind: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Queues that are known without a new snapshot.
    ahead: Ahead,
    /// How often the database had moved when that was found out.
    moves: u64,
    /// An estimate of how long a claim takes: four times the last one, or a little less than before.
    slow: Duration,
}

/// Gates to take a snapshot of, each once, in the order in which they came: none waits for later ones.
#[derive(Default)]
struct Pending {
    order: VecDeque<Arc<str>>,
    names: BTreeSet<Arc<str>>,
}

impl Pending {
    fn extend(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        for name in names {
            if self.names.insert(Arc::clone(&name)) {
                self.order.push_back(name);
            }
        }
    }

    fn take(&mut self, most: usize) -> BTreeSet<Arc<str>> {
        let taken: BTreeSet<Arc<str>> = self.order.drain(..most.min(self.order.len())).collect();
        for name in &taken {
            self.names.remove(name);
        }
        taken
    }
}

/// When gates were claimed from: by the store's time, at most, and since boot at that time.
#[derive(Clone, Copy)]
struct Moment {
    now: Timestamp,
    since_boot: Duration,
}

impl Task {
    fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Self {
            pending: Pending::default(),
            ask_at: now,
            asked_at: now,
            quiet: BTreeSet::new(),
            idle: BTreeMap::new(),
            rest_at: now,
            again: BTreeSet::new(),
            again_at: now,
            closed: BTreeMap::new(),
            without_room: BTreeSet::new(),
            behind: BTreeMap::new(),
            ahead: Ahead::default(),
            moves: shared.store.moves(),
            slow: Duration::ZERO,
            shared,
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) {
        let shared = &self.shared;
        if !self.has_room() {
            tokio::select! {
                biased;
                () = shared.dispatcher.gate_room() => {}
                () = pause(SATURATED) => {}
            }
            return;
        }
        let again_at = (!self.again.is_empty()).then_some(self.again_at);
        let rest_at = (!self.idle.is_empty()).then_some(self.rest_at);
        let until = [again_at, rest_at].into_iter().flatten().fold(self.ask_at, Instant::min);
        tokio::select! {
            biased;
            // First, or those who wait for room would wait for a moment when nobody else does.
            () = shared.dispatcher.gate_room(), if !self.without_room.is_empty() => {
                shared.wakeups.gates.opened(std::mem::take(&mut self.without_room));
            }
            () = std::future::ready(()), if !self.pending.order.is_empty() => {}
            () = shared.wakeups.gates.changed() => {}
            () = pause_until(until) => {}
        }
    }

    fn has_room(&self) -> bool {
        self.shared.dispatcher.has_gate_room() && self.shared.node.leases_hold()
    }

    /// Claims from the gates of which there is news, and from those that are due.
    async fn round(&mut self) -> Result<()> {
        if !self.has_room() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let moves = shared.store.moves();
        if std::mem::replace(&mut self.moves, moves) != moves {
            self.ahead = Ahead::default();
        }
        let news = shared.wakeups.gates.take();
        let now = Instant::now();
        if let Some(due_at) = news.due_at {
            self.ask_at = self.ask_at.min(now + due_at.since(shared.clock.now()));
        }
        let mut names = news.opened;
        if now >= self.again_at {
            names.append(&mut self.again);
        }
        for name in news.joined {
            self.quiet.remove(&name);
            match self.closed.get(&name) {
                Some(until) if *until > now => self.look_again(name, CLOSED),
                _ => {
                    names.insert(name);
                }
            }
        }
        let queues: Vec<Arc<str>> =
            names.iter().filter_map(|name| self.behind.remove(name)).flatten().collect();
        names.extend(queues);
        let (mut known, unknown) = self.ahead.freed(news.freed);
        for name in unknown {
            if self.quiet.remove(&name) && shared.node.is_alone() {
                // If someone waits all the same, the gate is due at once.
                self.let_rest(name, shared.clock.now());
            } else {
                names.insert(name);
            }
        }
        self.pending.extend(names);
        let asked = self.ask(news.all).await;
        let names = self.pending.take(GATES);
        known.retain(|seen| !names.contains(seen.name()));
        let known_names: Vec<Arc<str>> = known.iter().map(|seen| Arc::clone(seen.name())).collect();
        let taken = match asked {
            Ok(()) if names.is_empty() && known.is_empty() => Ok(()),
            Ok(()) => self.take(&names, known).await,
            Err(error) => Err(error),
        };
        if taken.is_err() {
            self.pending.extend(names.into_iter().chain(known_names));
            if news.all {
                shared.wakeups.gates.all_opened();
            }
        }
        taken?;
        self.rest().await
    }

    fn look_again(&mut self, name: Arc<str>, after: Duration) {
        let at = Instant::now() + after;
        self.again_at = if self.again.is_empty() { at } else { self.again_at.min(at) };
        self.again.insert(name);
    }

    /// Asks the store which gates are due, if it is time; while many others wait for a snapshot, only now and then.
    async fn ask(&mut self, all: bool) -> Result<()> {
        let now = Instant::now();
        if all {
            self.shared.store.wake_gates().await?;
            self.ask_at = now;
        }
        if self.ask_at <= now && (self.pending.order.len() < GATES || now >= self.asked_at + SOON) {
            let due = self.shared.store.due_gates(GATES).await?;
            let next = due.next_at.map_or(Duration::MAX, |next_at| next_at.since(due.now));
            // More than these may be due; those of which a snapshot was taken are not, for a while.
            let wait = if due.gates.len() == GATES { Duration::ZERO } else { self.shared.node.sweep() };
            self.ask_at = now + wait.min(next);
            self.asked_at = now;
            self.pending.extend(due.gates);
        }
        Ok(())
    }

    /// Puts a gate to rest soon, together with others.
    fn let_rest(&mut self, name: Arc<str>, until: Timestamp) {
        if self.idle.is_empty() {
            self.rest_at = Instant::now() + SOON;
        }
        self.idle.insert(name, until);
    }

    /// Puts gates to rest that have nothing to do.
    async fn rest(&mut self) -> Result<()> {
        if self.idle.is_empty() || (self.idle.len() < GATES && Instant::now() < self.rest_at) {
            return Ok(());
        }
        let gates: Vec<(Arc<str>, Timestamp)> = std::mem::take(&mut self.idle).into_iter().collect();
        self.shared.store.rest_gates(&gates).await
    }

    /// Takes what may go through these gates, and through those that are known.
    async fn take(&mut self, names: &BTreeSet<Arc<str>>, known: Vec<Seen>) -> Result<()> {
        let count = (DELIVERIES / names.len().max(1)).max(MIN_PER_GATE);
        let asked_at = Instant::now();
        let mut snapshot = if names.is_empty() {
            Snapshot { now: self.shared.clock.now(), gates: Vec::new() }
        } else {
            let names: Vec<Arc<str>> = names.iter().cloned().collect();
            self.shared.store.snapshot_gates(&names, count).await?
        };
        // Attempts are given their time to start from here on.
        let since_boot = self.shared.clock.since_boot();
        let moment = Moment { now: snapshot.now.after(asked_at.elapsed()), since_boot };
        if self.quiet.len() > MAX_KEPT {
            self.quiet.clear();
        }
        for name in names {
            self.ahead.forget(name);
            self.quiet.remove(name);
        }
        let mut seen = known;
        snapshot.gates.extend(seen.iter().map(Seen::as_of_now));
        let wanted: BTreeSet<Arc<str>> = seen.iter().map(Seen::name).chain(names).map(Arc::clone).collect();
        let (taking, mut resting) = self.decide(&snapshot, &wanted, count, moment.now);
        for name in seen.iter().map(Seen::name) {
            if taking.admissions.get(name).is_some_and(|admission| !admission.blocked) {
                // All that was known has gone, but there may be more.
                self.shared.wakeups.gates.opened([Arc::clone(name)]);
            }
        }
        let idle: BTreeSet<&Arc<str>> =
            snapshot.gates.iter().filter(|look| is_idle(look)).map(|look| &look.name).collect();
        for (name, until) in resting.extract_if(.., |(name, _)| idle.contains(name)) {
            self.let_rest(name, until);
        }
        let looked_at = snapshot.gates.into_iter().filter(|look| names.contains(&look.name));
        seen.extend(looked_at.filter_map(|look| Seen::new(look, snapshot.now, since_boot)));
        self.claim(taking, seen, names, moment).await?;
        if !resting.is_empty() {
            self.shared.store.rest_gates(&resting).await?;
            // The store knows when that is over.
            self.ask_at = Instant::now();
        }
        Ok(())
    }

    /// Decides what goes through the wanted ones of these gates; which of them may rest, with the time before which
    /// nothing due can go there.
    fn decide(
        &mut self,
        snapshot: &Snapshot,
        wanted: &BTreeSet<Arc<str>>,
        count: usize,
        now: Timestamp,
    ) -> (Taking, Vec<(Arc<str>, Timestamp)>) {
        let mut taking = Taking::of(snapshot);
        for look in snapshot.gates.iter().filter(|look| wanted.contains(&look.name)) {
            let admission = taking.admit(&self.shared.dispatcher, look, snapshot.now);
            self.remember(look, admission, count);
        }
        let resting = taking.step(snapshot, now, self.slow);
        self.look_by(snapshot, &taking, now);
        (taking, resting)
    }

    /// Keeps in mind what a gate waits for of which no wake-up of its own tells.
    fn remember(&mut self, look: &GateSnapshot, admission: &Admission, count: usize) {
        let name = || Arc::clone(&look.name);
        if admission.no_room {
            self.without_room.insert(name());
        }
        if admission.taken.len() > count && admission.taken.len() == look.waiting.len() {
            // There may be more.
            self.shared.wakeups.gates.opened([name()]);
        }
        if self.behind.len() > MAX_KEPT {
            self.behind.clear();
        }
        if self.closed.len() > MAX_KEPT {
            self.closed.clear();
        }
        if admission.blocked || look.gate.paused {
            self.closed.insert(name(), Instant::now() + CLOSED);
        } else {
            self.closed.remove(&look.name);
        }
        for key in &admission.full_keys {
            self.behind.entry(Arc::clone(key)).or_default().insert(name());
        }
    }

    /// Asks the store again when the first of these gates is due.
    fn look_by(&mut self, snapshot: &Snapshot, taking: &Taking, now: Timestamp) {
        let stepped = taking.stepped();
        for look in snapshot.gates.iter().filter(|look| taking.admissions.contains_key(&look.name)) {
            if let Some(next_at) = stepped.get(&look.name).copied().flatten().or(look.next_at) {
                self.ask_at = self.ask_at.min(Instant::now() + next_at.since(now));
            }
        }
    }

    /// Claims what was decided, and keeps what was seen beyond it. A snapshot of the gates with these names was taken just
    /// now.
    async fn claim(
        &mut self,
        mut taking: Taking,
        seen: Vec<Seen>,
        names: &BTreeSet<Arc<str>>,
        moment: Moment,
    ) -> Result<()> {
        let claimed = if taking.steps.is_empty() { Ok(()) } else { self.pass(&mut taking, moment).await };
        let stepped = taking.stepped();
        // Somebody else was faster, or the store has not answered.
        let missed: BTreeSet<Arc<str>> = taking.places.into_values().map(|place| place.gate).collect();
        for gate in &missed {
            if names.contains(gate) {
                self.look_again(Arc::clone(gate), CONTENDED);
            } else {
                self.shared.wakeups.gates.opened([Arc::clone(gate)]);
            }
        }
        claimed?;
        for seen in seen.into_iter().filter(|seen| !missed.contains(seen.name())) {
            let Some(admission) = taking.admissions.get(seen.name()) else { continue };
            let step = stepped.get(seen.name()).copied();
            if names.contains(seen.name()) && seen.is_empty_after(&admission.taken) {
                self.quiet.insert(Arc::clone(seen.name()));
            }
            if let Some(rest) = seen.after(&admission.taken) {
                self.ahead.keep(match step {
                    Some(next_at) => rest.stepped(next_at),
                    None => rest,
                });
            }
        }
        Ok(())
    }

    /// Lets deliveries pass their gates. The places of those that did not go are left.
    async fn pass(&mut self, taking: &mut Taking, moment: Moment) -> Result<()> {
        let (shared, began) = (&self.shared, Instant::now());
        let claim = shared.dispatcher.claim();
        let (node, lease) = (shared.node.id(), claim.lease());
        let passed = shared.store.pass_gates(node, lease, &taking.steps, &taking.passes, moment.now).await;
        self.slow = (4 * began.elapsed()).max(self.slow * 3 / 4).min(MAX_SLOW);
        let mut leased = Vec::new();
        for mut delivery in passed? {
            let id = &delivery.message.id;
            shared.tell(Happened::claimed(&delivery));
            let Some(place) = taking.places.remove(id) else { continue };
            delivery.size = place.size;
            delivery.start_by = place.start_within.map(|within| moment.since_boot + within);
            leased.push((place.number, delivery, place.permit));
        }
        leased.sort_by_key(|(number, ..)| *number);
        claim.settle(leased.into_iter().map(|(_, delivery, permit)| (delivery, permit)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &str) -> Vec<Arc<str>> {
        names.chars().map(|name| Arc::from(name.to_string())).collect()
    }

    #[test]
    fn gates_are_looked_at_in_the_order_in_which_they_came() {
        let mut pending = Pending::default();
        pending.extend(named("abcd"));
        assert_eq!(pending.take(2), named("ab").into_iter().collect());
        pending.extend(named("cea"));
        assert_eq!(pending.take(2), named("cd").into_iter().collect());
        assert_eq!(pending.take(9), named("ea").into_iter().collect());
        assert!(pending.take(9).is_empty() && pending.names.is_empty());
    }
}
