//! The life of accepted messages: gathered in by [`ingest`], let go by the `dispatcher`, sent by `attempt`, and recorded by
//! the `finisher`; what waits in the store is fetched by `refill`, or, from queues and flow control, by `gates`.
//! [`schedules`] makes messages of its own. What these tasks share is in `shared`; files import only files that stand before
//! them: `world`, `wakeups` and `node`, then `dispatcher`, `shared`, `ending`, and the tasks.
//!
//! Invariant: memory holds only leased deliveries, a bounded number of them; everything else is in the store. Losing a
//! wake-up costs a sweep interval, never a message.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chance::Chance;
use crate::clock::Clock;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::failure::Failure;
use crate::store::{Cancellation, NodeId, Result, Store, UnfinishedFilter};

mod attempt;
mod backoff;
mod cancelling;
mod dispatcher;
mod ending;
mod failover;
pub mod finisher;
mod gates;
pub mod ids;
pub mod ingest;
pub mod keys;
mod known_runs;
mod membership;
mod node;
pub mod observer;
mod recent;
mod refill;
mod retention;
pub mod runs;
pub mod schedules;
mod shared;
mod wakeups;
mod world;

use self::dispatcher::Dispatcher;
use self::finisher::Finisher;
use self::ingest::Ingest;
use self::keys::Keys;
use self::node::Node;
use self::observer::{Happened, Membership};
use self::shared::{Shared, names};
pub use self::world::{LlmAccess, Settings, World};

/// Bytes of runs that were used lately and are kept in memory.
const RUN_MEMORY: u64 = 64 << 20;

/// Connections to Postgres that steps of this engine use at once: for each set of writers those of accepts, with their
/// helpers, and one of outcomes; and two for claims.
pub(crate) fn hot_connections(writers: usize) -> usize {
    writers.saturating_mul(ingest::HELPERS + 2).saturating_add(2)
}

/// How often the store is asked for its time at the start.
const TIME_ASKED: u32 = 5;
/// The round trip of an answer that is good enough: half of it is how far off the time may be.
const GOOD_TRIP: Duration = Duration::from_millis(2);

/// The store's time, and the round trip of the answer: the quickest of some, as a machine is busy when a server starts, and
/// nodes compare the times that they write down.
async fn store_time(store: &dyn Store, clock: &Clock) -> Result<(Timestamp, Duration)> {
    let mut best: Option<(Timestamp, Duration)> = None;
    for _ in 0..TIME_ASKED {
        let asked = clock.since_boot();
        let now = store.now().await?;
        let trip = clock.since_boot().saturating_sub(asked);
        // What was true then is true so much earlier now.
        best = Some(match best {
            Some((then, least)) if least <= trip => (then.after(trip), least),
            _ => (now, trip),
        });
        if trip <= GOOD_TRIP {
            break;
        }
    }
    Ok(best.unwrap_or_default())
}

/// The running engine.
pub struct Engine {
    shared: Arc<Shared>,
    ingest: Ingest,
}

impl Engine {
    /// Registers the node and starts the tasks.
    pub async fn start(settings: Settings, store: Arc<dyn Store>, keys: Keys, world: World) -> Result<Self> {
        let World { mut clock, chance, destinations, tasks, observer } = world;
        if store.is_shared() {
            let (now, trip) = store_time(&*store, &clock).await?;
            clock = clock.following(now, trip);
        }
        let id = ids::incarnation(&chance);
        let node = Arc::new(Node::new(id, clock.clone(), store.is_shared()));
        store.register(id, &settings.node_name).await?;
        let shared = Arc::new(Shared {
            dispatcher: Dispatcher::new(&settings, Arc::clone(&node)),
            settings,
            store,
            clock,
            chance,
            keys,
            node,
            wakeups: wakeups::Wakeups::default(),
            runs: known_runs::Runs::new(RUN_MEMORY),
            recent: recent::Recent::default(),
            observer,
            tasks,
            attempts: TaskTracker::new(),
            background: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        });
        shared.tell(Happened::Membership(Membership::Joined));
        let ingest = Ingest::start(&shared);
        let finisher = Finisher::start(&shared);
        let own = || Arc::clone(&shared);
        shared.spawn("starting attempts", attempt::run(own(), destinations, finisher));
        shared.spawn("cancelled messages", ending::run(own()));
        shared.spawn("claiming", refill::run(own()));
        shared.spawn("queues and keys", gates::run(own()));
        shared.spawn("heartbeat", membership::beat(own()));
        shared.spawn("membership", membership::run(own()));
        shared.spawn("clock", membership::watch_clock(own()));
        shared.spawn("changes by other nodes", membership::follow(own()));
        shared.spawn("retention", retention::run(own()));
        shared.spawn("schedules", schedules::run(own()));
        Ok(Self { shared, ingest })
    }

    /// Where messages come in.
    pub fn ingest(&self) -> &Ingest {
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
        if !shared.node.leases_hold() {
            return Err("the registration in the database could not be renewed".to_owned());
        }
        shared.store.ping().await.map_err(|error| {
            format!("the database can't be read: {}", error.trouble().unwrap_or("it refuses to be"))
        })
    }

    /// Cancels a message. When this returns, no further attempt of it starts on this node, nor on another one unless
    /// that one had it in memory already and has not heard of it yet.
    pub async fn cancel(&self, id: &MessageId) -> Result<Cancellation> {
        cancelling::cancel(&self.shared, id).await
    }

    /// Cancels those of the messages that are unfinished, as [`Engine::cancel`] does each, except for what is cancelled
    /// already; `limit` at most. How many.
    pub async fn cancel_each(&self, ids: &[MessageId], limit: usize) -> Result<usize> {
        cancelling::cancel_each(&self.shared, ids, limit).await
    }

    /// Cancels what is unfinished and matches, the earliest first, `limit` at most. How many.
    pub async fn cancel_matching(&self, filter: &UnfinishedFilter, limit: usize) -> Result<usize> {
        cancelling::cancel_matching(&self.shared, filter, limit).await
    }

    /// Removes a queue: what waits in it is cancelled, a few at a time, and what is in flight makes no further attempt.
    pub async fn remove_queue(&self, name: &str) -> Result<()> {
        cancelling::remove_queue(&self.shared, name).await
    }

    /// Runs.
    pub fn runs(&self) -> runs::Handle<'_> {
        runs::Handle(&self.shared)
    }

    /// Tells the engine that the store holds a message that waits.
    pub fn note_waiting(&self, message: &Message) {
        self.shared.wakeups.waits(message);
    }

    /// Tells the engine that something may go through this queue or flow-control key that could not before.
    pub fn gate_changed(&self, gate: String) {
        self.shared.wakeups.gates.opened([gate.into()]);
    }

    /// Tells the engine that something may go through any queue or key: after a change of a key, for instance, for which
    /// queues may wait.
    pub fn gates_changed(&self) {
        self.shared.wakeups.gates.all_opened();
    }

    /// Tells the engine that a schedule has a new next occurrence.
    pub fn schedule_changed(&self) {
        self.shared.wakeups.schedules.notify_one();
    }

    /// Attempts that run now, and the most that may.
    pub fn parallelism(&self) -> (usize, usize) {
        (self.shared.dispatcher.running(), self.shared.settings.concurrency)
    }

    /// Whether this is the node's incarnation.
    pub fn is_node(&self, node: NodeId) -> bool {
        self.shared.node.id() == node
    }

    /// Whether a message is in this node's memory and waits for an attempt to end.
    pub fn waits_for_room(&self, id: &MessageId) -> bool {
        self.shared.dispatcher.is_waiting(id)
    }

    /// Deliveries that have room in memory: waiting, running, not yet stored, or about to come from the store.
    pub fn deliveries(&self) -> usize {
        self.shared.dispatcher.held()
    }

    /// Notified when a task panics that the server can't do without.
    pub fn failure(&self) -> Failure {
        self.shared.tasks.failure().clone()
    }

    /// Starts nothing more, and gives back what has not started, for other nodes to take at once.
    pub async fn drain(&self) {
        let shared = &self.shared;
        shared.draining.cancel();
        let waiting = shared.dispatcher.drain();
        if !waiting.is_empty()
            && let Err(error) = shared.store.release(shared.node.id(), &names(&waiting)).await
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
        shared.background.close();
        if tokio::time::timeout(Duration::from_secs(5), shared.background.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        match shared.store.deregister(shared.node.id()).await {
            Ok(()) => shared.tell(Happened::Membership(Membership::Left)),
            Err(error) => {
                tracing::warn!(%error, "the node could not be deregistered; its leases will expire");
            }
        }
    }
}
