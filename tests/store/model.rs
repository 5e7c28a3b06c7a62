//! The store as plain maps under one lock: what the SQL stores are compared with. Obviously correct rather than fast.
//!
//! Its clock is its own and moves on by a millisecond whenever it is asked, so that nothing here waits for time to pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use homing::domain::id::{DeadLetterId, MessageId, ScheduleId};
use homing::domain::message::{Headers, Message};
use homing::domain::outcome::{Attempt, Next, Response};
use homing::domain::time::Timestamp;
use homing::domain::url_group::{Endpoint, EndpointKey, UrlGroup};
use homing::store::schedules::Schedule;
use homing::store::url_groups::{Upserted, UrlGroupLimits, UrlGroups};
use homing::store::{
    Accept, Accepted, Applied, Cancellation, DeadLetter, DeadLetterFilter, Delivery, DueLanes, Ended,
    History, Lease, LetterPage, LetterPlace, LogCursor, LogEntry, LogFilter, LogPage, Missing, NextDue,
    NodeId, Nodes, Order, Page, Quota, Repeat, Result, Retention, Secrets, SigningKeyPair, Slot, State,
    Store, StoredKeys, UnfinishedFilter, UnfinishedPage, Want, Work,
};

mod gates;
mod listing;
mod schedules;
mod situation;

use self::gates::{AtGate, GateState};

/// Sequences of a cancellation's entries in the log: behind any attempt's.
const CANCEL_REQUESTED: i64 = 1 << 40;
const CANCELLED: i64 = CANCEL_REQUESTED + 1;

/// How many server processes may share the store: what a registration says about earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Processes {
    /// As with SQLite's locked file: whoever was registered before is gone.
    One,
    /// As with Postgres: only the namesake is gone.
    Several,
}

pub(crate) struct Model {
    processes: Processes,
    state: Mutex<Contents>,
}

struct Waiting {
    lane: Arc<str>,
    due_at: Timestamp,
    retried: u32,
    claims: u32,
    starts: u32,
    holder: Option<(NodeId, Lease)>,
    cancel_requested: bool,
    at: AtGate,
}

struct Ending {
    attempt: Attempt,
    next: Next,
    error: Option<String>,
}

struct Cancelling {
    requested_at: Timestamp,
    cancelled_at: Option<Timestamp>,
}

struct Letter {
    message: MessageId,
    created_at: Timestamp,
    response: Option<Response>,
    error: Option<String>,
}

struct Contents {
    now: Timestamp,
    messages: BTreeMap<MessageId, Arc<Message>>,
    deliveries: BTreeMap<MessageId, Waiting>,
    attempts: BTreeMap<(MessageId, u32), Ending>,
    cancellations: BTreeMap<MessageId, Cancelling>,
    dead_letters: BTreeMap<DeadLetterId, Letter>,
    /// Deduplication keys: the message that holds each, and until when.
    keys: BTreeMap<String, (MessageId, Timestamp)>,
    /// Registered incarnations: name and last heartbeat.
    nodes: BTreeMap<i64, (String, Timestamp)>,
    signing_keys: Option<StoredKeys>,
    tokens: Vec<[u8; 32]>,
    schedules: BTreeMap<ScheduleId, Schedule>,
    /// The day, and how many messages of it are reserved.
    reserved: (i64, u64),
    url_groups: BTreeMap<String, UrlGroup>,
    gates: BTreeMap<String, GateState>,
    /// The last place in each queue.
    places: BTreeMap<String, i64>,
}

impl Model {
    pub(crate) fn new(processes: Processes) -> Self {
        Self {
            processes,
            state: Mutex::new(Contents {
                now: Timestamp::from_millis(1_790_000_000_000),
                messages: BTreeMap::new(),
                deliveries: BTreeMap::new(),
                attempts: BTreeMap::new(),
                cancellations: BTreeMap::new(),
                dead_letters: BTreeMap::new(),
                keys: BTreeMap::new(),
                nodes: BTreeMap::new(),
                signing_keys: None,
                tokens: Vec::new(),
                schedules: BTreeMap::new(),
                reserved: (0, 0),
                url_groups: BTreeMap::new(),
                gates: BTreeMap::new(),
                places: BTreeMap::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, Contents> {
        self.state.lock().expect("a test that panics is over")
    }
}

impl Contents {
    fn tick(&mut self) -> Timestamp {
        self.now = self.now.after(Duration::from_millis(1));
        self.now
    }

    /// Frees the deliveries whose holder is one of these.
    fn free(&mut self, whose: impl Fn(NodeId, Lease) -> bool) -> u64 {
        let mut freed = 0;
        for delivery in self.deliveries.values_mut() {
            if delivery.holder.is_some_and(|(node, lease)| whose(node, lease)) {
                delivery.holder = None;
                freed += 1;
            }
        }
        freed
    }

    /// Frees what is held by nodes that are not registered.
    fn free_orphans(&mut self) -> u64 {
        let registered: BTreeSet<i64> = self.nodes.keys().copied().collect();
        self.free(|node, _| !registered.contains(&node.0))
    }

    fn insert(
        &mut self,
        message: Arc<Message>,
        lane: Arc<str>,
        holder: Option<(NodeId, Lease)>,
        slot: Option<&Slot>,
    ) {
        let at = AtGate { slot: slot.cloned(), ..self.enter(&message) };
        let waiting = Waiting {
            lane,
            due_at: message.due_at,
            retried: 0,
            claims: u32::from(holder.is_some()),
            starts: 0,
            holder,
            cancel_requested: false,
            at,
        };
        let id = message.id.clone();
        assert!(self.messages.insert(id.clone(), message).is_none(), "{id} is there already");
        self.deliveries.insert(id, waiting);
    }

    fn accept(&mut self, node: NodeId, accept: &Accept, repeat: Repeat) -> Accepted {
        let message = &accept.message;
        if repeat == Repeat::Again && self.messages.contains_key(&message.id) {
            return Accepted::Stored;
        }
        if let Some(wanted) = &accept.deduplication {
            if let Some((holder, expires_at)) = self.keys.get(&wanted.key)
                && *holder != message.id
                && *expires_at > message.created_at
            {
                return Accepted::Duplicate(holder.clone());
            }
            self.keys.insert(wanted.key.clone(), (message.id.clone(), wanted.expires_at));
        }
        let holder = accept.lease.map(|lease| (node, lease));
        self.insert(Arc::clone(message), Arc::clone(&accept.lane), holder, None);
        Accepted::Stored
    }

    fn finish(&mut self, node: NodeId, ended: &Ended) -> Applied {
        let Some(delivery) = self.deliveries.get_mut(&ended.id) else { return Applied::No };
        if delivery.holder != Some((node, ended.lease)) {
            return Applied::No;
        }
        let finish = &ended.finish;
        let allowed = match finish.next {
            Next::Delivered => true,
            Next::Retry { .. } | Next::Failed { .. } => !delivery.cancel_requested,
            Next::Cancelled => delivery.cancel_requested,
        };
        if !allowed {
            return Applied::No;
        }
        match &finish.next {
            Next::Retry { due_at } => {
                delivery.due_at = *due_at;
                delivery.retried = finish.attempt.retried + 1;
                delivery.claims = 0;
                delivery.starts = 0;
                delivery.holder = None;
                delivery.at.retry(*due_at);
            }
            Next::Delivered | Next::Failed { .. } | Next::Cancelled => {
                self.deliveries.remove(&ended.id);
            }
        }
        match &finish.next {
            Next::Failed { dead_letter } => {
                let letter = Letter {
                    message: ended.id.clone(),
                    created_at: finish.attempt.ended_at,
                    response: finish.attempt.response().cloned(),
                    error: finish.error.clone(),
                };
                self.dead_letters.insert(dead_letter.clone(), letter);
            }
            Next::Cancelled => {
                let cancelling = self.cancellations.get_mut(&ended.id).expect("it was requested");
                cancelling.cancelled_at = Some(finish.attempt.ended_at.max(cancelling.requested_at));
            }
            Next::Delivered | Next::Retry { .. } => {}
        }
        let ending = Ending {
            attempt: finish.attempt.clone(),
            next: finish.next.clone(),
            error: finish.error.clone(),
        };
        let before = self.attempts.insert((ended.id.clone(), finish.attempt.retried), ending);
        assert!(before.is_none(), "an attempt of {} ended twice", ended.id);
        for (message, (lane, lease)) in finish.callbacks.iter().zip(&ended.callbacks) {
            let holder = lease.map(|lease| (node, lease));
            self.insert(Arc::clone(message), Arc::clone(lane), holder, ended.slot.as_ref());
        }
        Applied::Yes
    }

    /// Now, by a node's clock, but not before anything that is known of the message.
    fn cancel_time(&self, id: &MessageId, now: Timestamp) -> Timestamp {
        let created = self.messages.get(id).map(|message| message.created_at);
        let attempts = self.attempts.range((id.clone(), 0)..=(id.clone(), u32::MAX));
        let held = self.deliveries.get(id).filter(|waiting| waiting.holder.is_some());
        attempts
            .map(|(_, ending)| ending.attempt.ended_at)
            .chain(created)
            .chain(held.map(|waiting| waiting.due_at))
            .fold(now, Timestamp::max)
    }

    fn cancel(&mut self, id: &MessageId, now: Timestamp) -> Cancellation {
        let now = self.cancel_time(id, now);
        let Some(delivery) = self.deliveries.get_mut(id) else { return Cancellation::NotFound };
        let cancelling = self
            .cancellations
            .entry(id.clone())
            .or_insert(Cancelling { requested_at: now, cancelled_at: None });
        if delivery.holder.is_some() {
            delivery.cancel_requested = true;
            return Cancellation::Requested;
        }
        cancelling.cancelled_at = Some(now.max(cancelling.requested_at));
        self.deliveries.remove(id);
        Cancellation::Cancelled
    }

    fn claim(&mut self, node: NodeId, lease: Lease, wants: &[Want], max_bytes: usize) -> Vec<Delivery> {
        let now = self.tick();
        let mut picked: BTreeSet<(Timestamp, MessageId)> = BTreeSet::new();
        for want in wants {
            let mut due: Vec<(Timestamp, MessageId)> = self
                .deliveries
                .iter()
                .filter(|(_, waiting)| waiting.at.gate.is_none() && waiting.lane == want.lane)
                .filter(|(_, waiting)| waiting.holder.is_none() && waiting.due_at <= now)
                .map(|(id, waiting)| (waiting.due_at, id.clone()))
                .collect();
            due.sort();
            picked.extend(due.into_iter().take(want.count));
        }
        let mut bytes = 0;
        let mut claimed = Vec::new();
        for (_, id) in picked {
            let message = Arc::clone(&self.messages[&id]);
            bytes += message.size();
            if bytes > max_bytes && !claimed.is_empty() {
                break;
            }
            let waiting = self.deliveries.get_mut(&id).expect("it was picked from there");
            waiting.holder = Some((node, lease));
            waiting.claims += 1;
            claimed.push(Delivery {
                retried: waiting.retried,
                claims: waiting.claims,
                cancel_requested: waiting.cancel_requested,
                ..Delivery::stored_leased(&message, &waiting.lane, lease, waiting.at.slot.as_ref())
            });
        }
        claimed
    }

    /// All entries of the log, the earliest first.
    fn log(&self) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        let mut add = |id: &MessageId, time: Timestamp, state: State, sequence: i64| {
            let message = Arc::clone(&self.messages[id]);
            entries.push(LogEntry {
                time,
                message,
                state,
                sequence,
                next_due_at: None,
                error: None,
                response: None,
            });
            entries.len() - 1
        };
        let mut created_later = Vec::new();
        for (id, message) in &self.messages {
            let entry = add(id, message.created_at, State::Created, 0);
            if message.due_at > message.created_at {
                created_later.push((entry, message.due_at));
            }
        }
        for (id, waiting) in self.deliveries.iter().filter(|(_, waiting)| waiting.holder.is_some()) {
            add(id, waiting.due_at, State::Active, 4 * i64::from(waiting.retried) + 1);
        }
        for (id, cancelling) in &self.cancellations {
            add(id, cancelling.requested_at, State::CancelRequested, CANCEL_REQUESTED);
            if let Some(cancelled_at) = cancelling.cancelled_at {
                add(id, cancelled_at, State::Cancelled, CANCELLED);
            }
        }
        let mut ended = Vec::new();
        for ((id, retried), ending) in &self.attempts {
            let base = 4 * i64::from(*retried);
            add(id, ending.attempt.started_at, State::Active, base + 1);
            let at = ending.attempt.ended_at;
            if ending.next != Next::Delivered {
                ended.push((add(id, at, State::Error, base + 2), ending));
            }
            match &ending.next {
                Next::Delivered => ended.push((add(id, at, State::Delivered, base + 3), ending)),
                Next::Retry { .. } => ended.push((add(id, at, State::Retry, base + 3), ending)),
                Next::Failed { .. } => ended.push((add(id, at, State::Failed, base + 3), ending)),
                Next::Cancelled => {}
            }
        }
        for (entry, due_at) in created_later {
            entries[entry].next_due_at = Some(due_at);
        }
        for (entry, ending) in ended {
            let entry = &mut entries[entry];
            if let (State::Retry, Next::Retry { due_at }) = (entry.state, &ending.next) {
                entry.next_due_at = Some(*due_at);
            } else {
                entry.error.clone_from(&ending.error);
                entry.response = logged(&ending.attempt);
            }
        }
        entries.sort_by(|a, b| place(a).cmp(&place(b)));
        entries
    }

    fn size(&self, id: &MessageId) -> usize {
        let answers = self.attempts.iter().filter(|((of, _), _)| of == id);
        let answers = answers.map(|(_, Ending { attempt, .. })| {
            attempt.logged_body().len() + headers_size(&attempt.logged_headers())
        });
        let message = &self.messages[id];
        message.body.len() + headers_size(&message.headers) + answers.sum::<usize>()
    }

    fn dead_letter(&self, id: &DeadLetterId) -> Option<DeadLetter> {
        let letter = self.dead_letters.get(id)?;
        Some(DeadLetter {
            id: id.clone(),
            created_at: letter.created_at,
            message: Message::clone(&self.messages[&letter.message]),
            response: letter.response.clone(),
            error: letter.error.clone(),
        })
    }

    fn letters(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
    ) -> Vec<DeadLetter> {
        let mut letters: Vec<DeadLetter> =
            self.dead_letters.keys().filter_map(|id| self.dead_letter(id)).collect();
        letters.sort_by_key(DeadLetter::place);
        if order == Order::LatestFirst {
            letters.reverse();
        }
        letters.retain(|letter| {
            let status = letter.response.as_ref().map_or(0, |response| response.status);
            after.is_none_or(|after| match order {
                Order::EarliestFirst => letter.place() > *after,
                Order::LatestFirst => letter.place() < *after,
            }) && (filter.messages.is_empty() || filter.messages.contains(&letter.message.id))
                && (filter.ids.is_empty() || filter.ids.contains(&letter.id))
                && filter.matching.matches(&letter.message)
                && (filter.statuses.is_empty() || filter.statuses.contains(&status))
                && filter.from.is_none_or(|from| letter.created_at >= from)
                && filter.to.is_none_or(|to| letter.created_at <= to)
        });
        letters
    }

    /// Whether anything happened to the message at `cutoff` or later.
    fn is_young(&self, id: &MessageId, cutoff: Timestamp) -> bool {
        let attempts =
            self.attempts.iter().any(|((of, _), ending)| of == id && ending.attempt.ended_at >= cutoff);
        let cancelled = self.cancellations.get(id).is_some_and(|cancelling| {
            cancelling.requested_at >= cutoff || cancelling.cancelled_at.is_some_and(|at| at >= cutoff)
        });
        self.messages[id].created_at >= cutoff || attempts || cancelled
    }
}

/// The response as the log keeps it.
fn logged(attempt: &Attempt) -> Option<Response> {
    let (headers, body) = (attempt.logged_headers(), Bytes::copy_from_slice(attempt.logged_body()));
    attempt.response().map(|response| Response { headers, body, ..response.clone() })
}

/// Bytes of headers as they are stored: JSON, nothing where there are none.
fn headers_size(headers: &Headers) -> usize {
    if headers.is_empty() {
        return 0;
    }
    serde_json::to_string(&headers.texts().collect::<Vec<_>>()).unwrap().len()
}

fn place(entry: &LogEntry) -> (Timestamp, &MessageId, i64) {
    (entry.time, &entry.message.id, entry.sequence)
}

fn letter_page<T>(page: Page<T>, place: impl Fn(&T) -> LetterPlace) -> LetterPage<T> {
    let next = page.items.last().filter(|_| page.more).map(place);
    LetterPage { items: page.items, next }
}

/// The first items of a list: at most `count`, and no more once `max_bytes` are reached.
fn cut<T>(items: Vec<T>, count: usize, max_bytes: usize, size: impl Fn(&T) -> usize) -> Page<T> {
    let total = items.len();
    let mut bytes = 0;
    let mut page = Vec::new();
    for item in items {
        if page.len() == count || bytes >= max_bytes {
            break;
        }
        bytes += size(&item);
        page.push(item);
    }
    Page { more: page.len() < total, items: page }
}

#[async_trait]
impl Nodes for Model {
    fn is_shared(&self) -> bool {
        self.processes == Processes::Several
    }

    async fn now(&self) -> Result<Timestamp> {
        Ok(self.state().tick())
    }

    async fn register(&self, node: NodeId, name: &str) -> Result<()> {
        let mut state = self.state();
        let now = state.tick();
        match self.processes {
            Processes::One => state.nodes.clear(),
            Processes::Several => state.nodes.retain(|_, (other, _)| other != name),
        }
        state.nodes.insert(node.0, (name.to_owned(), now));
        state.free_orphans();
        state.wake_gates();
        Ok(())
    }

    async fn rejoin(&self, node: NodeId, name: &str) -> Result<()> {
        let mut state = self.state();
        let now = state.tick();
        state.nodes.insert(node.0, (name.to_owned(), now));
        Ok(())
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Option<Timestamp>> {
        let mut state = self.state();
        let now = state.tick();
        if self.processes == Processes::One {
            return Ok(Some(now));
        }
        Ok(state.nodes.get_mut(&node.0).map(|(_, heartbeat_at)| {
            *heartbeat_at = now;
            now
        }))
    }

    async fn take_over(&self, ttl: Duration) -> Result<u64> {
        if self.processes == Processes::One {
            return Ok(0);
        }
        let mut state = self.state();
        let stale = state.tick().before(ttl);
        let (live, dead) = std::mem::take(&mut state.nodes)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, (_, heartbeat_at))| *heartbeat_at >= stale);
        state.nodes = live;
        state.free(|node, _| dead.contains_key(&node.0));
        if !dead.is_empty() {
            state.wake_gates();
        }
        Ok(dead.len() as u64)
    }

    async fn count_nodes(&self) -> Result<u64> {
        match self.processes {
            Processes::One => Ok(1),
            Processes::Several => Ok(self.state().nodes.len() as u64),
        }
    }

    async fn deregister(&self, node: NodeId) -> Result<()> {
        let mut state = self.state();
        state.free(|holder, _| holder == node);
        state.nodes.remove(&node.0);
        state.wake_gates();
        Ok(())
    }

    async fn reconcile(&self, node: NodeId, live: &[Lease], last: Lease) -> Result<u64> {
        let mut state = self.state();
        let own = state.free(|holder, lease| holder == node && !live.contains(&lease) && lease <= last);
        // What this node holds is settled by `live`, whether it is registered or not.
        let mut registered: BTreeSet<i64> = state.nodes.keys().copied().collect();
        registered.insert(node.0);
        let freed = own + state.free(|holder, _| !registered.contains(&holder.0));
        if freed > 0 {
            state.wake_gates();
        }
        Ok(freed)
    }
}

#[async_trait]
impl Work for Model {
    async fn accept(&self, node: NodeId, batch: &[Accept], repeat: Repeat) -> Result<Vec<Accepted>> {
        let mut state = self.state();
        // One that is there already touches nothing.
        let missing: Vec<bool> = batch
            .iter()
            .map(|accept| repeat == Repeat::First || !state.messages.contains_key(&accept.message.id))
            .collect();
        let missing =
            || batch.iter().zip(&missing).filter(|(_, missing)| **missing).map(|(accept, _)| accept);
        // A message whose key leads another of the batch is not looked at any further.
        let mut keys = BTreeSet::new();
        let leads = |accept: &&Accept| {
            accept.deduplication.as_ref().is_none_or(|wanted| keys.insert(wanted.key.clone()))
        };
        state.hold(missing().filter(leads).map(|accept| &*accept.message))?;
        Ok(batch.iter().map(|accept| state.accept(node, accept, repeat)).collect())
    }

    async fn due_lanes(&self, limit: usize, after: &str) -> Result<DueLanes> {
        let mut state = self.state();
        let now = state.tick();
        let free = || {
            state
                .deliveries
                .iter()
                .filter(|(_, waiting)| waiting.holder.is_none() && waiting.at.gate.is_none())
        };
        let mut due: Vec<(Timestamp, &MessageId, &Arc<str>)> = free()
            .filter(|(_, waiting)| waiting.due_at <= now)
            .map(|(id, waiting)| (waiting.due_at, id, &waiting.lane))
            .collect();
        due.sort();
        due.truncate(limit);
        let mut lanes: Vec<String> = Vec::new();
        for (_, _, lane) in &due {
            if !lanes.iter().any(|have| **have == ***lane) {
                lanes.push(lane.to_string());
            }
        }
        let mut position = String::new();
        if due.len() == limit {
            let behind: BTreeSet<&Arc<str>> =
                free().map(|(_, waiting)| &waiting.lane).filter(|lane| ***lane > *after).collect();
            let walked: Vec<String> = behind.into_iter().take(64).map(ToString::to_string).collect();
            if walked.len() == 64 {
                position.clone_from(&walked[63]);
            }
            lanes.extend(walked);
            let mut seen = BTreeSet::new();
            lanes.retain(|lane| seen.insert(lane.clone()));
        }
        Ok(DueLanes { lanes, after: position })
    }

    async fn claim(
        &self,
        node: NodeId,
        lease: Lease,
        wants: &[Want],
        max_bytes: usize,
    ) -> Result<Vec<Delivery>> {
        Ok(self.state().claim(node, lease, wants, max_bytes))
    }

    async fn next_due(&self) -> Result<NextDue> {
        let mut state = self.state();
        let now = state.tick();
        let free =
            state.deliveries.values().filter(|waiting| waiting.holder.is_none() && waiting.at.gate.is_none());
        Ok(NextDue { due_at: free.map(|waiting| waiting.due_at).min(), now })
    }

    async fn finish(&self, node: NodeId, batch: &[Ended]) -> Result<Vec<Applied>> {
        let mut seen = BTreeSet::new();
        if let Some(repeat) = batch.iter().position(|ended| !seen.insert(&ended.id)) {
            let mut applied = self.finish(node, &batch[..repeat]).await?;
            applied.extend(self.finish(node, &batch[repeat..]).await?);
            return Ok(applied);
        }
        let mut state = self.state();
        state.hold(batch.iter().flat_map(|ended| &ended.finish.callbacks).map(|message| &**message))?;
        Ok(batch.iter().map(|ended| state.finish(node, ended)).collect())
    }

    async fn finish_cancelled(
        &self,
        node: NodeId,
        batch: &[(MessageId, Lease)],
        now: Timestamp,
    ) -> Result<u64> {
        let mut state = self.state();
        let mut ended = 0;
        for (id, lease) in batch {
            let held = state
                .deliveries
                .get(id)
                .is_some_and(|waiting| waiting.holder == Some((node, *lease)) && waiting.cancel_requested);
            if held {
                state.deliveries.remove(id);
                let at = state.cancel_time(id, now);
                let cancelling = state.cancellations.get_mut(id).expect("it was requested");
                cancelling.cancelled_at = Some(at.max(cancelling.requested_at));
                ended += 1;
            }
        }
        Ok(ended)
    }

    async fn count_start(&self, node: NodeId, id: &MessageId, lease: Lease) -> Result<Option<u32>> {
        let mut state = self.state();
        let held = state.deliveries.get_mut(id).filter(|waiting| waiting.holder == Some((node, lease)));
        Ok(held.map(|waiting| {
            waiting.starts += 1;
            waiting.starts
        }))
    }

    async fn release(&self, node: NodeId, batch: &[(MessageId, Lease)]) -> Result<u64> {
        let mut state = self.state();
        let mut freed = 0;
        for (id, lease) in batch {
            if let Some(waiting) = state.deliveries.get_mut(id)
                && waiting.holder == Some((node, *lease))
            {
                waiting.holder = None;
                waiting.claims -= 1;
                freed += 1;
            }
        }
        Ok(freed)
    }

    async fn cancel(&self, id: &MessageId, now: Timestamp) -> Result<Cancellation> {
        Ok(self.state().cancel(id, now))
    }

    async fn unfinished(
        &self,
        filter: &UnfinishedFilter,
        after: Option<&MessageId>,
        count: usize,
    ) -> Result<UnfinishedPage> {
        let state = self.state();
        let looked_at: Vec<&MessageId> = state
            .deliveries
            .iter()
            .filter(|(id, waiting)| !waiting.cancel_requested && after.is_none_or(|after| *id > after))
            .map(|(id, _)| id)
            .filter(|id| {
                let accepted = state.messages[*id].created_at;
                filter.from.is_none_or(|from| accepted >= from) && filter.to.is_none_or(|to| accepted <= to)
            })
            .take(count)
            .collect();
        let next = looked_at.last().filter(|_| looked_at.len() == count).map(|id| MessageId::clone(id));
        let matches = |id: &&MessageId| filter.matching.matches(&state.messages[*id]);
        Ok(UnfinishedPage { found: looked_at.into_iter().filter(matches).cloned().collect(), next })
    }

    async fn cancel_many(&self, ids: &[MessageId], now: Timestamp) -> Result<Vec<Cancellation>> {
        let mut state = self.state();
        let mut cancel = |id: &MessageId| match state.deliveries.get(id) {
            Some(waiting) if !waiting.cancel_requested => state.cancel(id, now),
            _ => Cancellation::NotFound,
        };
        Ok(ids.iter().map(&mut cancel).collect())
    }

    async fn cancelled_leases(&self, node: NodeId) -> Result<Vec<MessageId>> {
        let state = self.state();
        let is_wanted = |waiting: &Waiting| {
            waiting.cancel_requested && waiting.holder.is_some_and(|(holder, _)| holder == node)
        };
        let wanted = state.deliveries.iter().filter(|(_, waiting)| is_wanted(waiting));
        Ok(wanted.map(|(id, _)| id.clone()).collect())
    }

    async fn cancel_requested(&self, ids: &[MessageId]) -> Result<Vec<MessageId>> {
        let state = self.state();
        let is_requested =
            |id: &&MessageId| state.deliveries.get(id).is_some_and(|waiting| waiting.cancel_requested);
        Ok(ids.iter().filter(is_requested).cloned().collect())
    }
}

#[async_trait]
impl History for Model {
    async fn message(&self, id: &MessageId) -> Result<Option<Message>> {
        Ok(self.state().messages.get(id).map(|message| Message::clone(message)))
    }

    async fn log(
        &self,
        filter: &LogFilter,
        order: Order,
        cursor: Option<&LogCursor>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LogPage> {
        let state = self.state();
        let mut entries = state.log();
        if order == Order::LatestFirst {
            entries.reverse();
        }
        entries.retain(|entry| {
            let (after, before) = match cursor {
                None => (true, true),
                Some(LogCursor { time, entry: None }) => (entry.time > *time, entry.time < *time),
                Some(LogCursor { time, entry: Some((id, sequence)) }) => {
                    (place(entry) > (*time, id, *sequence), place(entry) < (*time, id, *sequence))
                }
            };
            (match order {
                Order::EarliestFirst => after,
                Order::LatestFirst => before,
            }) && (filter.messages.is_empty() || filter.messages.contains(&entry.message.id))
                && filter.matching.matches(&entry.message)
                && (filter.states.is_empty() || filter.states.contains(&entry.state))
                && filter.from.is_none_or(|from| entry.time >= from)
                && filter.to.is_none_or(|to| entry.time <= to)
        });
        let page = cut(entries, count, max_bytes, |entry| state.size(&entry.message.id));
        let next = page.items.last().filter(|_| page.more).map(LogEntry::place);
        Ok(LogPage { items: page.items, next })
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        Ok(self.state().dead_letter(id))
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LetterPage<DeadLetter>> {
        let page = cut(self.state().letters(filter, order, after), count, max_bytes, |letter| {
            let answer = letter.response.as_ref();
            letter.message.body.len()
                + headers_size(&letter.message.headers)
                + answer.map_or(0, |response| response.body.len() + headers_size(&response.headers))
        });
        Ok(letter_page(page, DeadLetter::place))
    }

    async fn dead_letter_places(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
    ) -> Result<LetterPage<LetterPlace>> {
        let letters = self.state().letters(filter, order, after);
        let page = cut(letters.iter().map(DeadLetter::place).collect(), count, usize::MAX, |_| 0);
        Ok(letter_page(page, LetterPlace::clone))
    }

    async fn delete_dead_letters(&self, ids: &[DeadLetterId]) -> Result<u64> {
        let mut state = self.state();
        Ok(ids.iter().filter(|id| state.dead_letters.remove(id).is_some()).count() as u64)
    }

    async fn retry_dead_letters(
        &self,
        replacements: &[(DeadLetterId, Accept)],
        missing: Missing,
    ) -> Result<Vec<bool>> {
        let mut state = self.state();
        let ids: BTreeSet<&DeadLetterId> = replacements.iter().map(|(id, _)| id).collect();
        let is_missing =
            ids.len() < replacements.len() || ids.iter().any(|id| !state.dead_letters.contains_key(id));
        if missing == Missing::Refuse && is_missing {
            return Ok(vec![false; replacements.len()]);
        }
        let mut seen = BTreeSet::new();
        let there: Vec<bool> = replacements
            .iter()
            .map(|(id, _)| seen.insert(id) && state.dead_letters.contains_key(id))
            .collect();
        let replaced: Vec<&(DeadLetterId, Accept)> = replacements
            .iter()
            .zip(&there)
            .filter(|(_, there)| **there)
            .map(|(replacement, _)| replacement)
            .collect();
        state.hold(replaced.iter().map(|(_, accept)| &*accept.message))?;
        for (id, accept) in replaced {
            state.dead_letters.remove(id);
            state.insert(Arc::clone(&accept.message), Arc::clone(&accept.lane), None, None);
        }
        Ok(there)
    }

    async fn prune(&self, retention: Retention, now: Timestamp, after: &str) -> Result<Option<String>> {
        let mut state = self.state();
        if after.is_empty() {
            let cutoff = now.before(retention.dead_letters);
            state.dead_letters.retain(|_, letter| letter.created_at >= cutoff);
            state.keys.retain(|_, (_, expires_at)| *expires_at > now);
        }
        let cutoff = now.before(retention.log);
        if after.is_empty() {
            state.prune_keys(cutoff);
        }
        let bound = MessageId::earliest_at(cutoff);
        let kept = |id: &MessageId| {
            id.as_str() <= after
                || *id >= bound
                || state.deliveries.contains_key(id)
                || state.dead_letters.values().any(|letter| letter.message == *id)
                || state.is_young(id, cutoff)
        };
        let gone: BTreeSet<MessageId> = state.messages.keys().filter(|id| !kept(id)).cloned().collect();
        state.messages.retain(|id, _| !gone.contains(id));
        state.attempts.retain(|(id, _), _| !gone.contains(id));
        state.cancellations.retain(|id, _| !gone.contains(id));
        Ok(None)
    }
}

#[async_trait]
impl Secrets for Model {
    async fn signing_keys(&self, fresh: &StoredKeys, _: Timestamp) -> Result<StoredKeys> {
        Ok(self.state().signing_keys.get_or_insert_with(|| fresh.clone()).clone())
    }

    async fn rotate_signing_keys(&self, fresh: &str, _: Timestamp) -> Result<SigningKeyPair> {
        let mut state = self.state();
        let pair = &mut state.signing_keys.as_mut().expect("the engine reads them first").pair;
        *pair = SigningKeyPair { current: pair.next.clone(), next: fresh.to_owned() };
        Ok(pair.clone())
    }

    async fn set_signing_keys(&self, keys: &StoredKeys, _: Timestamp) -> Result<()> {
        self.state().signing_keys = Some(keys.clone());
        Ok(())
    }

    async fn tokens(&self, fresh: &[u8; 32], _: Timestamp) -> Result<(Vec<[u8; 32]>, bool)> {
        let mut state = self.state();
        let stored = state.tokens.is_empty();
        if stored {
            state.tokens.push(*fresh);
        }
        Ok((state.tokens.clone(), stored))
    }
}

#[async_trait]
impl Store for Model {
    async fn ping(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) {}
}

#[async_trait]
impl Quota for Model {
    async fn reserve_messages(&self, day: i64, wanted: u64, limit: u64) -> Result<u64> {
        let mut state = self.state();
        if state.reserved.0 != day {
            state.reserved = (day, 0);
        }
        let granted = wanted.min(limit.saturating_sub(state.reserved.1));
        state.reserved.1 += granted;
        Ok(granted)
    }
}

#[async_trait]
impl UrlGroups for Model {
    async fn url_group(&self, name: &str) -> Result<Option<UrlGroup>> {
        Ok(self.state().url_groups.get(name).cloned())
    }

    async fn upsert_endpoints(
        &self,
        name: &str,
        endpoints: &[Endpoint],
        limits: UrlGroupLimits,
        now: Timestamp,
    ) -> Result<Upserted> {
        let groups = &mut self.state().url_groups;
        let mut group = match groups.get(name) {
            Some(group) => group.clone(),
            None if limits.groups.is_some_and(|limit| groups.len() >= limit as usize) => {
                return Ok(Upserted::TooManyGroups);
            }
            None => UrlGroup::new(name.to_owned(), now),
        };
        if groups.contains_key(name) {
            group.touch(now);
        }
        if !group.upsert_all(endpoints, limits.endpoints) {
            return Ok(Upserted::TooManyEndpoints);
        }
        groups.insert(name.to_owned(), group);
        Ok(Upserted::Stored)
    }

    async fn remove_endpoints(&self, name: &str, keys: &[EndpointKey], now: Timestamp) -> Result<bool> {
        let groups = &mut self.state().url_groups;
        let Some(group) = groups.get_mut(name) else { return Ok(false) };
        let before = group.endpoints.len();
        for key in keys {
            group.remove(key);
        }
        if group.endpoints.len() < before {
            group.touch(now);
        }
        if group.endpoints.is_empty() {
            groups.remove(name);
        }
        Ok(true)
    }

    async fn set_url_group_headers(&self, name: &str, headers: &Headers, now: Timestamp) -> Result<bool> {
        let groups = &mut self.state().url_groups;
        let Some(group) = groups.get_mut(name) else { return Ok(false) };
        group.headers = headers.clone();
        group.touch(now);
        Ok(true)
    }

    async fn delete_url_group(&self, name: &str) -> Result<()> {
        self.state().url_groups.remove(name);
        Ok(())
    }
}
