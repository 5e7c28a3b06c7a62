//! The life of accepted messages: gathered in by [`ingest`], sent by [`attempt`] as [`dispatcher`] lets them, recorded by
//! [`finisher`]; what waits in the store is fetched by `refill`, or, from queues and flow control, by `gates`.
//! [`schedules`] makes messages of its own.
//!
//! Invariant: memory holds only leased deliveries, a bounded number of them; everything else is in the store. Losing a
//! wake-up costs a sweep interval, never a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chance::Chance;
use crate::clock::{Clock, pause};
use crate::domain::gate::{is_gated, queue_gate};
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::egress::Destinations;
use crate::failure::Failure;
use crate::store::{Cancellation, Delivery, Lease, NodeId, Result, Retention, Store};
use crate::tasks::Tasks;

pub mod attempt;
mod cancelling;
pub mod dispatcher;
pub mod finisher;
mod gates;
pub mod ids;
pub mod ingest;
pub mod keys;
mod membership;
mod recent;
mod refill;
mod retention;
pub mod schedules;

use self::dispatcher::Dispatcher;
use self::keys::Keys;

/// How often a node says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// When the others take over what a silent node holds.
const NODE_TTL: Duration = Duration::from_secs(15);
/// A node that could not renew for this long starts no attempt: it stops before the others start.
const LEASE_TRUST: Duration = Duration::from_secs(12);

/// How long a step may still take effect whose answer did not come: the database's own limits end it before.
const UNSURE: Duration = Duration::from_secs(12);
/// Outcomes that wait for the finisher; beyond, attempts keep their slots.
const OUTCOMES: usize = 512;

const _: () = assert!(HEARTBEAT.as_secs() * 2 < LEASE_TRUST.as_secs());
const _: () = assert!(LEASE_TRUST.as_secs() < NODE_TTL.as_secs());

/// The engine's limits.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node_name: String,
    /// Attempts at once.
    pub concurrency: usize,
    /// Attempts at once to one origin.
    pub concurrency_per_origin: usize,
    /// Deliveries held in memory, waiting or running.
    pub prefetch: usize,
    /// Bytes of these.
    pub prefetch_bytes: usize,
    /// Tasks that write batches: one for SQLite, some for Postgres.
    pub writers: usize,
    /// Limit for an attempt; a message may shorten it.
    pub max_timeout: Duration,
    /// Bytes of a response body that callbacks carry.
    pub max_response: usize,
    pub llm: Option<LlmAccess>,
    pub retention: Retention,
}

/// What the configured language model's service asks for. It is added to a message when it is sent and stored nowhere.
#[derive(Clone, Debug)]
pub struct LlmAccess {
    /// Where messages to it go. A key for one service must not be sent to another that was configured before.
    pub url: String,
    /// Sensitive, so that `Debug` hides it.
    pub authorization: HeaderValue,
}

/// Connections to Postgres that steps of this engine use at once: for each set of writers those of accepts, with their
/// helpers, and one of outcomes; and two for claims.
pub(crate) fn hot_connections(writers: usize) -> usize {
    writers.saturating_mul(ingest::HELPERS + 2).saturating_add(2)
}

/// What the engine is given of the world outside of it, so that a simulation can give it another one.
#[derive(Clone)]
pub struct World {
    /// The machine's clock; where the store has one of its own, the engine follows that from here.
    pub clock: Clock,
    pub chance: Chance,
    pub destinations: Arc<dyn Destinations>,
    pub tasks: Tasks,
}

/// What the engine's tasks share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Clock,
    pub(crate) chance: Chance,
    pub(crate) destinations: Arc<dyn Destinations>,
    tasks: Tasks,
    pub(crate) keys: Keys,
    pub(crate) dispatcher: Dispatcher,
    /// This process's incarnation; a new one when others have taken over the old one's deliveries.
    node: AtomicI64,
    /// When the registration was last renewed, in milliseconds since boot.
    renewed_ms: AtomicU64,
    /// The last claim number of earlier incarnations: what they had leased is not ours any more.
    fence: AtomicI64,
    /// Until when, in milliseconds since boot, a step whose outcome is unknown may still take effect: so long, what the
    /// store has leased to us is compared with what we hold, again and again.
    unsure_until_ms: AtomicU64,
    pub(crate) reconcile: Notify,
    refill: refill::Signal,
    /// Rings when a schedule may have a slot that was not known of.
    schedules: Notify,
    gates: gates::Signal,
    /// Counts looks for cancelled messages in this node's memory.
    withdrawals: AtomicU64,
    finisher: mpsc::Sender<finisher::Job>,
    recent: recent::Recent,
    attempts: TaskTracker,
    lack: attempt::Lack,
    /// No new work.
    draining: CancellationToken,
    /// Everything ends.
    stopping: CancellationToken,
}

impl Shared {
    pub(crate) fn node(&self) -> NodeId {
        NodeId(self.node.load(Ordering::Acquire))
    }

    fn set_node(&self, node: NodeId) {
        self.node.store(node.0, Ordering::Release);
    }

    /// Takes note of a renewal that was asked for at `asked_ms`: the store's stamp is not older.
    fn renewed(&self, asked_ms: u64) {
        self.renewed_ms.store(asked_ms, Ordering::Release);
    }

    /// Whether a lease is this incarnation's, and can be trusted.
    pub(crate) fn holds(&self, lease: Lease) -> bool {
        lease.0 > self.fence.load(Ordering::Acquire) && self.leases_hold()
    }

    /// Whether the leases can be trusted: the others have not begun to take them over.
    pub(crate) fn leases_hold(&self) -> bool {
        !self.store.is_shared()
            || self.boot_ms().saturating_sub(self.renewed_ms.load(Ordering::Acquire)) < millis(LEASE_TRUST)
    }

    /// Whether the store may have leased something to us that we don't know of.
    fn is_unsure(&self) -> bool {
        self.boot_ms() < self.unsure_until_ms.load(Ordering::Acquire)
    }

    /// Takes note that a step may or may not have leased something to us.
    pub(crate) fn doubt_leases(&self) {
        self.stay_unsure();
        self.reconcile.notify_one();
    }

    /// Takes note that the store holds something that is due then, of whatever kind.
    fn note_due(&self, due_at: Timestamp) {
        self.refill.note_due(due_at);
        self.gates.note_due(due_at);
    }

    /// Takes note of a message that waits in the store.
    fn note_waiting(&self, message: &Message) {
        if is_gated(message) {
            self.gates.note(message);
        } else {
            self.refill.note_due(message.due_at);
        }
    }

    fn stay_unsure(&self) {
        self.unsure_until_ms.fetch_max(self.boot_ms() + millis(UNSURE), Ordering::AcqRel);
    }

    fn boot_ms(&self) -> u64 {
        millis(self.clock.since_boot())
    }
}

/// How long a task waits after a fault: longer each time, until something succeeds.
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(2);

    const fn new() -> Self {
        Self(Self::FIRST)
    }

    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }

    /// Waits, unless the engine takes no more work. Nothing that is told meanwhile shortens it.
    async fn wait(&mut self, shared: &Shared) {
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => {}
            () = pause(self.0) => {}
        }
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

/// Which deliveries these are, and by which leases they are held.
fn held(deliveries: &[Delivery]) -> Vec<(MessageId, Lease)> {
    deliveries.iter().map(|delivery| (delivery.message.id.clone(), delivery.lease)).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Starts a task that runs until the engine stops. One that panics takes the server with it: without it messages would
/// wait unnoticed.
fn spawn(
    shared: &Shared,
    tasks: &TaskTracker,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    shared.tasks.spawn(name, tasks.track_future(task));
}

/// The running engine.
pub struct Engine {
    shared: Arc<Shared>,
    ingest: ingest::Ingest,
    tasks: TaskTracker,
}

impl Engine {
    /// Registers the node and starts the tasks.
    pub async fn start(settings: Settings, store: Arc<dyn Store>, keys: Keys, world: World) -> Result<Self> {
        let World { mut clock, chance, destinations, tasks: running } = world;
        if store.is_shared() {
            let asked = clock.since_boot();
            let now = store.now().await?;
            clock = clock.following(now, clock.since_boot().saturating_sub(asked));
        }
        let node = ids::incarnation(&chance);
        let asked_ms = millis(clock.since_boot());
        store.register(node, &settings.node_name).await?;
        let (finisher, jobs) = mpsc::channel(OUTCOMES);
        let shared = Arc::new(Shared {
            dispatcher: Dispatcher::new(&settings),
            settings,
            store,
            clock,
            chance,
            destinations,
            tasks: running,
            keys,
            node: AtomicI64::new(node.0),
            renewed_ms: AtomicU64::new(asked_ms),
            fence: AtomicI64::new(0),
            unsure_until_ms: AtomicU64::new(0),
            reconcile: Notify::new(),
            refill: refill::Signal::default(),
            schedules: Notify::new(),
            gates: gates::Signal::default(),
            withdrawals: AtomicU64::new(0),
            finisher,
            recent: recent::Recent::default(),
            attempts: TaskTracker::new(),
            lack: attempt::Lack::default(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        let ingest = ingest::Ingest::start(&shared, &tasks);
        finisher::start(&shared, jobs, &tasks);
        spawn(&shared, &tasks, "claiming", refill::run(Arc::clone(&shared)));
        spawn(&shared, &tasks, "queues and keys", gates::run(Arc::clone(&shared)));
        spawn(&shared, &tasks, "heartbeat", membership::beat(Arc::clone(&shared)));
        spawn(&shared, &tasks, "membership", membership::run(Arc::clone(&shared)));
        spawn(&shared, &tasks, "clock", membership::watch_clock(Arc::clone(&shared)));
        spawn(&shared, &tasks, "changes by other nodes", membership::follow(Arc::clone(&shared)));
        spawn(&shared, &tasks, "retention", retention::run(Arc::clone(&shared)));
        spawn(&shared, &tasks, "schedules", schedules::run(Arc::clone(&shared)));
        Ok(Self { shared, ingest, tasks })
    }

    /// Where messages come in.
    pub fn ingest(&self) -> &ingest::Ingest {
        &self.ingest
    }

    /// Now, by the store's clock.
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// The source of chance.
    pub fn chance(&self) -> &Chance {
        &self.shared.chance
    }

    /// Makes ids.
    pub fn ids(&self) -> ids::FreshIds {
        ids::FreshIds(self.shared.chance.clone())
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The signing keys.
    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// Whether this node accepts messages and delivers them; if not, why, in words.
    pub async fn readiness(&self) -> Result<(), String> {
        let shared = &self.shared;
        if shared.tasks.failure().is_set() {
            return Err("a task of the server has failed".to_owned());
        }
        if shared.draining.is_cancelled() {
            return Err("stopping".to_owned());
        }
        if let Some(trouble) = shared.store.trouble() {
            return Err(format!("the database can't be written to: {trouble}"));
        }
        if !shared.leases_hold() {
            return Err("the registration in the database could not be renewed".to_owned());
        }
        shared.store.ping().await.map_err(|error| {
            format!("the database can't be read: {}", error.trouble().unwrap_or("it refuses to be"))
        })
    }

    /// Cancels a message. When this returns, no further attempt of it starts on this node, nor on another one unless
    /// that one had it in memory already and has not heard of it yet.
    pub async fn cancel(&self, id: &MessageId) -> Result<Cancellation> {
        let now = self.now();
        let cancellation = self.shared.store.cancel(id, now).await?;
        match cancellation {
            Cancellation::NotFound => {}
            Cancellation::Cancelled => self.leave_slot(id).await,
            Cancellation::Requested => {
                let left = cancelling::withdraw(&self.shared, std::slice::from_ref(id)).await;
                cancelling::tell_others(&self.shared, left).await;
            }
        }
        Ok(cancellation)
    }

    /// A message that is gone may have had a queue's slot: its own, or its source's.
    async fn leave_slot(&self, id: &MessageId) {
        let mut next = Some(id.clone());
        while let Some(id) = next.take() {
            match self.shared.store.message(&id).await {
                Ok(Some(Message { queue: Some(queue), .. })) => {
                    self.shared.gates.look_at([queue_gate(&queue).into()]);
                }
                Ok(message) => next = message.and_then(|message| message.source_id),
                // The next look without a reason finds it too.
                Err(_) => self.shared.gates.look_at_all(),
            }
        }
    }

    /// Removes a queue: what waits in it is cancelled, a few at a time, and what is in flight makes no further attempt.
    pub async fn remove_queue(&self, name: &str) -> Result<()> {
        loop {
            let removal = self.shared.store.remove_queue(name, self.now()).await?;
            let left = cancelling::withdraw(&self.shared, &removal.requested).await;
            cancelling::tell_others(&self.shared, left).await;
            if removal.done {
                return Ok(());
            }
            // Others come first.
            pause(Duration::from_millis(5)).await;
        }
    }

    /// Tells the engine that the store holds a message that waits.
    pub fn note_waiting(&self, message: &Message) {
        self.shared.note_waiting(message);
    }

    /// Tells the engine that something may go through this queue or flow-control key that could not before.
    pub fn gate_changed(&self, gate: String) {
        self.shared.gates.look_at([gate.into()]);
    }

    /// The same of any of them: after a bulk cancel, for instance, or a change of a key, for which queues may wait.
    pub fn gates_changed(&self) {
        self.shared.gates.look_at_all();
    }

    /// Attempts that run now, and the most that may.
    pub fn parallelism(&self) -> (usize, usize) {
        (self.shared.dispatcher.running(), self.shared.settings.concurrency)
    }

    /// Whether this is the node's incarnation.
    pub fn is_node(&self, node: NodeId) -> bool {
        self.shared.node() == node
    }

    /// Whether a message is in this node's memory and waits for an attempt to end.
    pub fn waits_for_room(&self, id: &MessageId) -> bool {
        self.shared.dispatcher.is_waiting(id)
    }

    /// Tells the engine that a schedule has a new slot.
    pub fn note_slot(&self) {
        self.shared.schedules.notify_one();
    }

    /// What is set when a task panics that the server can't do without.
    pub fn failure(&self) -> Failure {
        self.shared.tasks.failure().clone()
    }

    /// Starts nothing more, and gives back what has not started, for other nodes to take at once.
    pub async fn drain(&self) {
        let shared = &self.shared;
        shared.draining.cancel();
        let waiting = shared.dispatcher.drain();
        let held = held(&waiting);
        if !held.is_empty()
            && let Err(error) = shared.store.release(shared.node(), &held).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "deliveries could not be given back; their leases will expire"
            );
        }
    }

    /// Stops after [`Engine::drain`]: attempts in flight get `grace` to end, and what they came to is stored. Dropping
    /// this half-way loses nothing: the leases expire.
    pub async fn stop(&self, grace: Duration) {
        let shared = &self.shared;
        shared.attempts.close();
        if tokio::time::timeout(grace, shared.attempts.wait()).await.is_err() {
            tracing::warn!(
                attempts = shared.attempts.len(),
                "attempts were still running at the end of the grace period; they will be repeated"
            );
        }
        shared.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        if let Err(error) = shared.store.deregister(shared.node()).await {
            tracing::warn!(%error, "the node could not be deregistered; its leases will expire");
        }
    }
}
