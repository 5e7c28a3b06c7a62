//! Takes deliveries from the gates at which they wait: queues and flow-control keys.
//!
//! A task of its own beside `refill`, so that neither waits for the other. It looks at a gate when something is told that
//! may let someone through: a message was accepted, something ended, a limit has changed; when the store says that it is
//! time; and, as other nodes tell nothing, now and then. A queue that was looked at lately may need no look ([`ahead`]).
//! What may go is decided by `domain::gate`, and takes effect only if the gate is still as it was seen. A gate with nothing
//! to do is put to rest, so that it costs nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::ahead::{Ahead, Freed, Seen};
use super::{Backoff, Shared, cancelling, refill};
use crate::clock::{pause, pause_until};
use crate::domain::gate::{Admission, Gate, Path, Waiting, admit, is_queue};
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::store::gates::{GateSnapshot, GateStep, Pass, RECHECK, RECHECK_BLOCKED, Snapshot};
use crate::store::{Delivery, Lease, Result};

mod ahead;

/// Gates in one look.
const GATES: usize = 256;
/// Deliveries in one look at all of these, and the least that each gets of them.
const DELIVERIES: usize = 512;
const LEAST: usize = 8;
/// When to look at a gate again whose deliveries wait for another node's doing.
const SOON: Duration = Duration::from_secs(1);
/// When somebody else was faster.
const CONTENDED: Duration = Duration::from_millis(5);
/// How long those who join a gate that lets nobody through don't make it worth a look: what opens it is told.
const CLOSED: Duration = Duration::from_millis(20);
/// While there is no room at all.
const SATURATED: Duration = Duration::from_millis(100);
/// Gates about which something is kept in mind; beyond, all of it is forgotten, which costs looks and time, nothing else.
const MAX_KEPT: usize = 4096;
/// The longest that a slow store may keep an attempt of a rate from starting.
const MAX_SLOW: Duration = Duration::from_secs(1);

/// Tells at which gates someone may go through.
#[derive(Default)]
pub(super) struct Signal {
    told: Mutex<Told>,
    wake: Notify,
}

#[derive(Default)]
struct Told {
    gates: BTreeSet<Arc<str>>,
    /// Gates at which more waits than before.
    joined: BTreeSet<Arc<str>>,
    freed: Vec<Freed>,
    all: bool,
    /// When something is due.
    due_at: Option<Timestamp>,
}

impl Signal {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may go through these.
    pub(super) fn look_at(&self, gates: impl IntoIterator<Item = Arc<str>>) {
        let mut told = self.told();
        let before = told.gates.len();
        told.gates.extend(gates);
        if told.gates.len() > before {
            self.wake.notify_one();
        }
    }

    /// Deliveries are no longer under way, that were `held_at` that time since boot; beside each, whether it was the last
    /// one for its slot.
    pub(super) fn ended<'a>(
        &self,
        deliveries: impl Iterator<Item = (&'a Delivery, bool)>,
        held_at: Duration,
    ) {
        let mut told = self.told();
        let before = (told.gates.len(), told.freed.len());
        for (delivery, last) in deliveries {
            match &delivery.slot {
                Some(slot) if last => {
                    let (queue, holder) = (Arc::clone(&slot.queue), slot.holder.clone());
                    told.freed.push(Freed { queue, holder, held_at });
                    told.gates.extend(delivery.flow.clone());
                }
                _ => told.gates.extend(opened_by(delivery)),
            }
        }
        if (told.gates.len(), told.freed.len()) != before {
            self.wake.notify_one();
        }
    }

    /// Something may go through any of them.
    pub(super) fn look_at_all(&self) {
        self.told().all = true;
        self.wake.notify_one();
    }

    /// Something is due then, at a gate that the store tells at that time.
    pub(super) fn note_due(&self, due_at: Timestamp) {
        let mut told = self.told();
        if told.due_at.is_none_or(|earlier| due_at < earlier) {
            told.due_at = Some(due_at);
            self.wake.notify_one();
        }
    }

    /// A message waits at its gate; if it is due later, the look tells when. It may have changed its key's limits.
    pub(super) fn note(&self, message: &Message) {
        let gates = Path::of(message).into_iter().flat_map(|path| [Some(path.gate), path.flow]).flatten();
        let mut told = self.told();
        let before = told.joined.len();
        told.joined.extend(gates);
        if told.joined.len() > before {
            self.wake.notify_one();
        }
    }
}

/// The gates that may let others through when a delivery ends.
pub(super) fn opened_by(delivery: &Delivery) -> impl Iterator<Item = Arc<str>> + use<> {
    let queue = delivery.slot.as_ref().map(|slot| Arc::clone(&slot.queue));
    [queue, delivery.flow.clone()].into_iter().flatten()
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut task = Task {
        pending: Pending::default(),
        next_look: Instant::now(),
        asked: Instant::now(),
        quiet: BTreeSet::new(),
        idle: BTreeMap::new(),
        rest_at: Instant::now(),
        again: BTreeSet::new(),
        again_at: Instant::now(),
        closed: BTreeMap::new(),
        without_room: BTreeSet::new(),
        behind: BTreeMap::new(),
        ahead: Ahead::default(),
        moves: shared.store.moves(),
        slow: Duration::ZERO,
        shared,
    };
    let shared = Arc::clone(&task.shared);
    let mut backoff = Backoff::new();
    while !shared.draining.is_cancelled() {
        match task.round().await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "messages could not be taken from queues and flow control; trying again"
                );
                backoff.wait(&shared).await;
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
    /// Gates to look at.
    pending: Pending,
    /// When to ask the store which gates are due, and when it was last asked.
    next_look: Instant,
    asked: Instant,
    /// Queues that all who waited there have left, as far as this node can know.
    quiet: BTreeSet<Arc<str>>,
    /// Gates that have nothing to do, to be put to rest together, and when.
    idle: BTreeMap<Arc<str>, Timestamp>,
    rest_at: Instant,
    /// Gates to look at a little later.
    again: BTreeSet<Arc<str>>,
    again_at: Instant,
    /// Gates that let nobody through, and until when that is taken for granted.
    closed: BTreeMap<Arc<str>, Instant>,
    /// Gates with something that didn't fit into this node.
    without_room: BTreeSet<Arc<str>>,
    /// Queues whose deliveries wait for a key, by that key.
    behind: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// What is known of queues without a look.
    ahead: Ahead,
    /// How often the database had moved when that was found out.
    moves: u64,
    /// How long taking may take.
    slow: Duration,
}

/// Gates to look at, each once, in the order in which they were told: none waits for those that came later.
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

impl Task {
    /// Waits until there is something to do.
    async fn wait(&mut self) {
        if !self.has_room() {
            tokio::select! {
                biased;
                () = self.shared.dispatcher.gate_room.notified() => {}
                () = pause(SATURATED) => {}
            }
            return;
        }
        let mut until = self.next_look;
        if !self.again.is_empty() {
            until = until.min(self.again_at);
        }
        if !self.idle.is_empty() {
            until = until.min(self.rest_at);
        }
        tokio::select! {
            biased;
            // First, or those who wait for room would wait for a moment when nobody else does.
            () = self.shared.dispatcher.gate_room.notified(), if !self.without_room.is_empty() => {
                self.shared.gates.look_at(std::mem::take(&mut self.without_room));
            }
            () = std::future::ready(()), if !self.pending.order.is_empty() => {}
            () = self.shared.gates.wake.notified() => {}
            () = pause_until(until) => {}
        }
    }

    fn has_room(&self) -> bool {
        self.shared.dispatcher.has_gate_room() && self.shared.leases_hold()
    }

    /// Looks at what was told, or what is due.
    async fn round(&mut self) -> Result<()> {
        if !self.has_room() {
            return Ok(());
        }
        let moves = self.shared.store.moves();
        if std::mem::replace(&mut self.moves, moves) != moves {
            self.ahead = Ahead::default();
        }
        let told = std::mem::take(&mut *self.shared.gates.told());
        if let Some(due_at) = told.due_at {
            let due_in = due_at.since(self.shared.clock.now());
            self.next_look = self.next_look.min(Instant::now() + due_in);
        }
        let now = Instant::now();
        let mut names = told.gates;
        if now >= self.again_at {
            names.append(&mut self.again);
        }
        for name in told.joined {
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
        let (mut known, unknown) = self.ahead.freed(told.freed);
        let alone = refill::is_alone(&self.shared);
        for name in unknown {
            if self.quiet.remove(&name) && alone {
                // If someone waits all the same, the gate is due at once.
                self.let_rest(name, self.shared.clock.now());
            } else {
                names.insert(name);
            }
        }
        self.pending.extend(names);
        let asked = self.ask(told.all).await;
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
            if told.all {
                self.shared.gates.look_at_all();
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

    /// Asks the store which gates are due, if it is time. While many others wait for a look, only now and then.
    async fn ask(&mut self, all: bool) -> Result<()> {
        let now = Instant::now();
        if all {
            self.shared.store.wake_gates().await?;
            self.next_look = now;
        }
        if self.next_look <= now && (self.pending.order.len() < GATES || now >= self.asked + SOON) {
            let due = self.shared.store.due_gates(GATES).await?;
            let next = due.next_at.map_or(Duration::MAX, |next_at| next_at.since(due.now));
            // More than these may be due; those that were looked at are not, for a while.
            let wait = if due.gates.len() == GATES { Duration::ZERO } else { refill::sweep(&self.shared) };
            self.next_look = now + wait.min(next);
            self.asked = now;
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
        let count = (DELIVERIES / names.len().max(1)).max(LEAST);
        let asked = Instant::now();
        let mut looks = if names.is_empty() {
            Snapshot { now: self.shared.clock.now(), gates: Vec::new() }
        } else {
            let names: Vec<Arc<str>> = names.iter().cloned().collect();
            self.shared.store.snapshot_gates(&names, count).await?
        };
        // By the store's time it is at most `now` at `booted`, from which on attempts are given their time to start.
        let booted = self.shared.clock.since_boot();
        let now = looks.now.after(asked.elapsed());
        if self.quiet.len() > MAX_KEPT {
            self.quiet.clear();
        }
        for name in names {
            self.ahead.forget(name);
            self.quiet.remove(name);
        }
        let mut seen = known;
        looks.gates.extend(seen.iter().map(Seen::as_of_now));
        let wanted: BTreeSet<Arc<str>> = seen.iter().map(Seen::name).chain(names).map(Arc::clone).collect();
        let (taking, mut resting) = self.decide(&looks, &wanted, count, now);
        for name in seen.iter().map(Seen::name) {
            if taking.admissions.get(name).is_some_and(|admission| !admission.blocked) {
                // All that was known has gone, but there may be more.
                self.shared.gates.look_at([Arc::clone(name)]);
            }
        }
        let idle: BTreeSet<Arc<str>> =
            looks.gates.iter().filter(|look| is_idle(look)).map(|look| Arc::clone(&look.name)).collect();
        for (name, until) in resting.extract_if(.., |(name, _)| idle.contains(name)) {
            self.let_rest(name, until);
        }
        let looked_at = looks.gates.into_iter().filter(|look| names.contains(&look.name));
        seen.extend(looked_at.filter_map(|look| Seen::new(look, looks.now, booted)));
        self.pass(taking, seen, names, now, booted).await?;
        if !resting.is_empty() {
            self.shared.store.rest_gates(&resting).await?;
            // It knows when that is over.
            self.next_look = Instant::now();
        }
        Ok(())
    }

    /// Decides what goes through the wanted ones of these gates; which of them may rest, with the time before which
    /// nothing due can go there.
    fn decide(
        &mut self,
        looks: &Snapshot,
        wanted: &BTreeSet<Arc<str>>,
        count: usize,
        now: Timestamp,
    ) -> (Taking, Vec<(Arc<str>, Timestamp)>) {
        let mut taking = Taking::default();
        for look in &looks.gates {
            taking.gates.insert(Arc::clone(&look.name), look.gate.clone());
        }
        for look in looks.gates.iter().filter(|look| wanted.contains(&look.name)) {
            let admission = taking.admit(&self.shared, look, looks.now);
            self.remember(look, &admission, count);
            taking.admissions.insert(Arc::clone(&look.name), admission);
        }
        let resting = taking.step(looks, now, self.slow);
        self.look_by(looks, &taking, now);
        (taking, resting)
    }

    /// Keeps in mind what a gate waits for that isn't told for it.
    fn remember(&mut self, look: &GateSnapshot, admission: &Admission, count: usize) {
        let name = || Arc::clone(&look.name);
        if admission.no_room {
            self.without_room.insert(name());
        }
        if admission.taken.len() > count && admission.taken.len() == look.waiting.len() {
            // There may be more.
            self.shared.gates.look_at([name()]);
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

    /// Looks again when the first of these gates wants it.
    fn look_by(&mut self, looks: &Snapshot, taking: &Taking, now: Timestamp) {
        let stepped = taking.stepped();
        for look in looks.gates.iter().filter(|look| taking.admissions.contains_key(&look.name)) {
            if let Some(next_at) = stepped.get(&look.name).copied().flatten().or(look.next_at) {
                self.next_look = self.next_look.min(Instant::now() + next_at.since(now));
            }
        }
    }

    /// Takes what was decided, starts it, and keeps what was seen beyond it. The gates with these names were looked at just
    /// now.
    async fn pass(
        &mut self,
        mut taking: Taking,
        seen: Vec<Seen>,
        names: &BTreeSet<Arc<str>>,
        now: Timestamp,
        booted: Duration,
    ) -> Result<()> {
        let mut passed = Ok(());
        if !taking.steps.is_empty() {
            let lease = self.shared.dispatcher.open_lease();
            passed = self.pass_leased(lease, &mut taking, now, booted).await;
            self.shared.dispatcher.close_lease(lease);
            if passed.is_err() {
                self.shared.doubt_leases();
            }
        }
        let mut missed = BTreeSet::new();
        for place in std::mem::take(&mut taking.reserved).into_values() {
            self.shared.dispatcher.unreserve_passing(&place.lane, place.size);
            if names.contains(&place.gate) {
                self.look_again(Arc::clone(&place.gate), CONTENDED);
            } else {
                self.shared.gates.look_at([Arc::clone(&place.gate)]);
            }
            missed.insert(place.gate);
        }
        passed?;
        let stepped = taking.stepped();
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

    /// What was not taken stays reserved.
    async fn pass_leased(
        &mut self,
        lease: Lease,
        taking: &mut Taking,
        now: Timestamp,
        booted: Duration,
    ) -> Result<()> {
        let (shared, began) = (&self.shared, Instant::now());
        let withdrawals = cancelling::withdrawals(shared);
        let passed = shared.store.pass_gates(shared.node(), lease, &taking.steps, &taking.passes, now).await;
        self.slow = (4 * began.elapsed()).max(self.slow * 3 / 4).min(MAX_SLOW);
        let deliveries = passed?;
        let mut live = Vec::with_capacity(deliveries.len());
        let mut cancelled = Vec::new();
        for mut delivery in deliveries {
            if delivery.cancel_requested {
                cancelled.push(delivery);
            } else if let Some(place) = taking.reserved.remove(&delivery.message.id) {
                delivery.size = place.size;
                delivery.start_by = place.start_within.map(|within| booted + within);
                live.push((place.number, delivery));
            }
        }
        live.sort_by_key(|(number, _)| *number);
        let live = live.into_iter().map(|(_, delivery)| delivery).collect();
        cancelling::start(shared, withdrawals, lease, shared.dispatcher.admit(live)).await;
        if !cancelled.is_empty() {
            cancelling::end(shared, &cancelled).await;
        }
        Ok(())
    }
}

/// Room that is taken for a delivery.
struct Place {
    /// Its number among those that go.
    number: usize,
    gate: Arc<str>,
    lane: Arc<str>,
    size: usize,
    /// Set where a rate counts its start.
    start_within: Option<Duration>,
}

/// What is decided about some gates.
#[derive(Default)]
struct Taking {
    gates: BTreeMap<Arc<str>, Gate>,
    admissions: BTreeMap<Arc<str>, Admission>,
    steps: Vec<GateStep>,
    passes: Vec<Pass>,
    reserved: BTreeMap<MessageId, Place>,
}

impl Taking {
    fn admit(&mut self, shared: &Shared, look: &GateSnapshot, now: Timestamp) -> Admission {
        let fits = |one: &Waiting| shared.dispatcher.reserve_passing(&one.lane, one.size);
        let admission = admit(&mut self.gates, &look.name, &look.waiting, now, fits);
        for &index in &admission.taken {
            let one = &look.waiting[index];
            let place = Place {
                number: self.passes.len(),
                gate: Arc::clone(&look.name),
                lane: Arc::clone(&one.lane),
                size: one.size,
                start_within: None,
            };
            self.reserved.insert(one.id.clone(), place);
            self.passes.push(Pass {
                id: one.id.clone(),
                gate: Arc::clone(&look.name),
                flow: one.flow.clone(),
                in_order: is_queue(&look.name) && !one.holds_slot,
            });
        }
        admission
    }

    /// The gates that take a step, and when they are to be looked at again; `None`: as it is.
    fn stepped(&self) -> BTreeMap<Arc<str>, Option<Timestamp>> {
        self.steps.iter().map(|step| (Arc::clone(&step.name), step.next_at)).collect()
    }

    /// What becomes of the gates; and which of them may rest, with the time before which nothing due can go there. `slow`
    /// is how long the next step of the store may take.
    fn step(&mut self, looks: &Snapshot, now: Timestamp, slow: Duration) -> Vec<(Arc<str>, Timestamp)> {
        let mut resting = Vec::new();
        for look in &looks.gates {
            let gate = self.gates.get_mut(&look.name).expect("all that were looked at are there");
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
            if let Some(place) = self.reserved.get_mut(&pass.id) {
                place.start_within = within;
            }
        }
        resting
    }
}

/// Whether nothing waits at a gate and nothing has passed it that is still under way.
fn is_idle(look: &GateSnapshot) -> bool {
    look.waiting.is_empty() && look.gate.in_use == 0
}

/// When something may go through that can't now, without anything being told. `None`: never.
fn next_event(admission: &Admission, now: Timestamp) -> Option<Timestamp> {
    let soon = (admission.no_room || !admission.full_keys.is_empty()).then(|| now.after(SOON));
    let blocked = admission.blocked.then(|| now.after(RECHECK_BLOCKED));
    [admission.later, soon, blocked].into_iter().flatten().min()
}

/// When the store is to tell to look at a gate again; `None`: as it is. What stands there is left alone while it does: a
/// row changes more cheaply when no index does.
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

    fn named(names: &str) -> Vec<Arc<str>> {
        names.chars().map(|name| Arc::from(name.to_string())).collect()
    }

    #[test]
    fn gates_are_looked_at_in_the_order_in_which_they_were_told() {
        let mut pending = Pending::default();
        pending.extend(named("abcd"));
        assert_eq!(pending.take(2), named("ab").into_iter().collect());
        pending.extend(named("cea"));
        assert_eq!(pending.take(2), named("cd").into_iter().collect());
        assert_eq!(pending.take(9), named("ea").into_iter().collect());
        assert!(pending.take(9).is_empty() && pending.names.is_empty());
    }

    /// Looks at a queue that is to be looked at in three seconds; whether it takes a step, and whether it may rest.
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
        let looks =
            Snapshot { now: NOW, gates: vec![GateSnapshot { name, version: 1, gate, next_at, waiting }] };
        let resting = taking.step(&looks, NOW, Duration::ZERO);
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
