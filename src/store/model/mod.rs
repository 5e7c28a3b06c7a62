//! The store as plain maps under one lock: what the SQL stores are compared with, and what simulated nodes share.
//! Obviously correct rather than fast, and all in order, so that equal calls give equal answers.
//!
//! A [`Model`] is one node's connection to the maps. Between it and them stands a [`Link`], which delays, refuses and
//! loses calls as a test wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::domain::id::{DeadLetterId, InstanceId, MessageId, ScheduleId};
use crate::domain::message::Message;
use crate::domain::outcome::{Attempt, Next, Response};
use crate::domain::time::Timestamp;
use crate::domain::url_group::UrlGroup;
use crate::store::schedules::Schedule;
use crate::store::{Lease, NodeId, Quota, Result, Slot, Store, StoreError, StoredKeys};

mod gates;
mod history;
mod listing;
mod nodes;
mod runs;
mod schedules;
mod secrets;
mod situation;
mod stories;
mod url_groups;
mod work;

use self::gates::{AtGate, GateState};
use self::runs::RunContents;
pub use self::stories::Story;

/// How many queues messages may make.
pub const MAX_QUEUES: u32 = 8;

/// How many server processes may share the store: what a registration says about earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Processes {
    /// As with SQLite's locked file: whoever was registered before is gone.
    One,
    /// As with Postgres: only the namesake is gone.
    Several,
}

/// Settles what becomes of a node's calls, as a test wants it.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// Comes before a call takes effect, and settles whether it does.
    async fn before(&self, call: &'static str) -> Fate;
    /// Comes after it took effect. With an error its answer is lost.
    async fn after(&self, call: &'static str) -> Result<()>;
    /// Lets a step take effect whose caller has its error already.
    fn late(&self, call: &'static str, step: Box<dyn FnOnce() + Send>);
}

/// The fate of a call.
#[derive(Debug)]
pub enum Fate {
    /// The call takes effect now.
    Now,
    /// The call fails, and never takes effect.
    Refused(StoreError),
    /// The call fails, and takes effect all the same, some time later, unless it only reads.
    Late(StoreError),
}

/// One node's connection to the contents, which all that come from one [`Model::new`] share.
pub struct Model {
    processes: Processes,
    contents: Arc<Mutex<Contents>>,
    link: Option<Arc<dyn Link>>,
    /// Rung when a node says that something has changed.
    changed: Arc<Notify>,
    /// How many of these words this node has heard.
    heard: AtomicU64,
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
    run: Option<InstanceId>,
}

struct Contents {
    clock: Box<dyn Fn() -> Timestamp + Send>,
    /// How often a node has said that something has changed.
    words: u64,
    /// Nodes whose registration has ended, by name, and when.
    ended: Vec<(String, Timestamp)>,
    /// When each message ended.
    ends: BTreeMap<MessageId, Timestamp>,
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
    runs: BTreeMap<InstanceId, RunContents>,
}

impl Model {
    /// An empty store with a clock of its own, which moves on by a millisecond whenever it is asked, so that nothing waits
    /// for time to pass.
    pub fn new(processes: Processes) -> Self {
        let now = AtomicI64::new(1_790_000_000_000);
        let tick = move || Timestamp::from_millis(now.fetch_add(1, Ordering::Relaxed) + 1);
        Self::with_clock(processes, tick)
    }

    /// An empty store that goes by this clock.
    pub fn with_clock(processes: Processes, clock: impl Fn() -> Timestamp + Send + 'static) -> Self {
        let contents = Contents {
            clock: Box::new(clock),
            words: 0,
            ended: Vec::new(),
            ends: BTreeMap::new(),
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
            runs: BTreeMap::new(),
        };
        Self {
            processes,
            contents: Arc::new(Mutex::new(contents)),
            link: None,
            changed: Arc::default(),
            heard: AtomicU64::new(0),
        }
    }

    /// Another node's connection, whose calls go through this link.
    #[must_use]
    pub fn connect(&self, link: Arc<dyn Link>) -> Self {
        Self {
            processes: self.processes,
            contents: Arc::clone(&self.contents),
            link: Some(link),
            changed: Arc::clone(&self.changed),
            heard: AtomicU64::new(self.state().words),
        }
    }

    fn state(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that changes nothing.
    async fn read<T>(
        &self,
        call: &'static str,
        step: impl FnOnce(&mut Contents) -> Result<T> + Send,
    ) -> Result<T> {
        let Some(link) = &self.link else { return step(&mut self.state()) };
        match link.before(call).await {
            Fate::Now => {}
            Fate::Refused(error) | Fate::Late(error) => return Err(error),
        }
        let answer = step(&mut self.state());
        link.after(call).await?;
        answer
    }

    /// Makes a call that changes something.
    async fn write<T>(
        &self,
        call: &'static str,
        step: impl FnOnce(&mut Contents) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Some(link) = &self.link else { return step(&mut self.state()) };
        match link.before(call).await {
            Fate::Now => {}
            Fate::Refused(error) => return Err(error),
            Fate::Late(error) => {
                let contents = Arc::clone(&self.contents);
                let late = move || {
                    let mut state = contents.lock().unwrap_or_else(PoisonError::into_inner);
                    drop(step(&mut state));
                };
                link.late(call, Box::new(late));
                return Err(error);
            }
        }
        let answer = step(&mut self.state());
        link.after(call).await?;
        answer
    }
}

impl Contents {
    fn tick(&mut self) -> Timestamp {
        (self.clock)()
    }

    /// Ends a message.
    fn end(&mut self, id: &MessageId) {
        self.deliveries.remove(id);
        let now = self.tick();
        self.ends.insert(id.clone(), now);
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

    /// Ends registrations; whose.
    fn end_nodes(&mut self, which: impl Fn(i64, &(String, Timestamp)) -> bool) -> BTreeSet<i64> {
        let now = self.tick();
        let ended = self.nodes.extract_if(.., |node, registered| which(*node, registered));
        let (ended, names): (BTreeSet<i64>, Vec<String>) =
            ended.map(|(node, (name, _))| (node, name)).unzip();
        self.ended.extend(names.into_iter().map(|name| (name, now)));
        ended
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
}

#[async_trait]
impl Store for Model {
    async fn ping(&self) -> Result<()> {
        self.read("ping", |_| Ok(())).await
    }

    async fn close(&self) {}
}

#[async_trait]
impl Quota for Model {
    async fn reserve_messages(&self, day: i64, wanted: u64, limit: u64) -> Result<u64> {
        self.write("reserve_messages", move |state| {
            if state.reserved.0 != day {
                state.reserved = (day, 0);
            }
            let granted = wanted.min(limit.saturating_sub(state.reserved.1));
            state.reserved.1 += granted;
            Ok(granted)
        })
        .await
    }
}
