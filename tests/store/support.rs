//! What the scenarios are written with: a fresh store of each kind, messages with ids in order, ends of attempts.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use homing::clock::Clock;
use homing::domain::id::{DeadLetterId, MessageId};
use homing::domain::message::{Headers, Message, Method, Options};
use homing::domain::outcome::{Attempt, Effect, FailureClass, Finish, Next, Outcome, Response};
use homing::domain::signature::body_sha256;
use homing::domain::time::Timestamp;
use homing::store::model::{MAX_QUEUES, Model, Processes};
use homing::store::sql::{self, SqlStore};
use homing::store::{
    Accept, Accepted, Applied, Deduplication, Delivery, Ended, Lease, LogFilter, NodeId, Order, PassOn,
    Repeat, Slot, State, Store, Want,
};

use crate::postgres;

/// When the tests' first message was accepted: long ago.
pub(crate) const START: i64 = 1_600_000_000_000;
/// A time that no test lives to see.
pub(crate) const FUTURE: i64 = 4_000_000_000_000;
/// The node that most scenarios are about.
pub(crate) const NODE: NodeId = NodeId(1);
/// No limit on bytes.
pub(crate) const ANY_SIZE: usize = 1 << 40;

pub(crate) const fn time(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    Model,
    Sqlite,
    Postgres,
}

/// A store with nothing in it, and what has to go when the test is over.
pub(crate) struct Fresh {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) place: Place,
}

pub(crate) enum Place {
    Memory,
    Folder(#[expect(dead_code, reason = "its end removes the folder")] tempfile::TempDir),
    Database(Database),
}

impl Fresh {
    pub(crate) async fn open(engine: Engine) -> Self {
        match engine {
            Engine::Model => Self { store: Arc::new(Model::new(Processes::Several)), place: Place::Memory },
            Engine::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let store = connect(sql::Database::Sqlite(folder.path().join("homing.db"))).await;
                Self { store: Arc::new(store), place: Place::Folder(folder) }
            }
            Engine::Postgres => {
                let database = Database::create().await;
                let store = database.connect().await;
                Self { store: Arc::new(store), place: Place::Database(database) }
            }
        }
    }

    pub(crate) async fn remove(self) {
        self.store.close().await;
        if let Place::Database(database) = self.place {
            database.remove().await;
        }
    }
}

async fn connect(database: sql::Database) -> SqlStore {
    let options = sql::Options { database, connections: 8, hot_connections: 8, max_queues: Some(MAX_QUEUES) };
    let store = SqlStore::connect(&options, Clock::system()).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// A claim number that none comes after.
pub(crate) const LATEST: Lease = Lease(i64::MAX);

/// A Postgres database of its own.
pub(crate) struct Database {
    name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("homing_store_{}_{count}_{:08x}", std::process::id(), rand::random::<u32>());
        postgres::create(&name).await;
        Self { name }
    }

    pub(crate) fn url(&self) -> String {
        postgres::url(&self.name)
    }

    /// A store of another node on the same database.
    pub(crate) async fn connect(&self) -> SqlStore {
        connect(sql::Database::Postgres(self.url())).await
    }

    pub(crate) async fn remove(self) {
        postgres::drop(&self.name).await;
    }
}

/// Runs a scenario on a fresh store, and removes that however the scenario ends.
pub(crate) async fn on<F>(engine: Engine, scenario: impl FnOnce(World) -> F)
where
    F: Future<Output = ()>,
{
    let fresh = Fresh::open(engine).await;
    let world = World { engine, store: Arc::clone(&fresh.store), made: Arc::default() };
    let ended = AssertUnwindSafe(async {
        // Who holds leases is registered.
        world.store.register(NODE, "node-1").await.unwrap();
        scenario(world).await;
    })
    .catch_unwind()
    .await;
    fresh.remove().await;
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// A store with the actions that scenarios are made of.
#[derive(Clone)]
pub(crate) struct World {
    engine: Engine,
    pub(crate) store: Arc<dyn Store>,
    made: Arc<AtomicU32>,
}

impl World {
    /// Whether it is the oracle itself.
    pub(crate) fn is_model(&self) -> bool {
        matches!(self.engine, Engine::Model)
    }

    /// Whether only one process can use the store.
    pub(crate) fn is_alone(&self) -> bool {
        !self.store.is_shared()
    }

    /// A message accepted a millisecond after the one before.
    pub(crate) fn message(&self) -> Message {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        message(number, START + i64::from(number))
    }

    pub(crate) fn messages(&self, count: usize) -> Vec<Message> {
        (0..count).map(|_| self.message()).collect()
    }

    /// Stores one message, waiting.
    pub(crate) async fn publish(&self, lane: &str) -> MessageId {
        let accept = waiting(self.message(), lane);
        assert_eq!(self.accept(std::slice::from_ref(&accept)).await, [Accepted::Stored]);
        accept.message.id.clone()
    }

    /// Stores one message, leased to [`NODE`].
    pub(crate) async fn publish_leased(&self, lane: &str, lease: i64) -> Held {
        let accept = leased(self.message(), lane, lease);
        assert_eq!(self.accept(std::slice::from_ref(&accept)).await, [Accepted::Stored]);
        Held { id: accept.message.id.clone(), lease: Lease(lease), retried: 0, slot: None }
    }

    pub(crate) async fn accept(&self, batch: &[Accept]) -> Vec<Accepted> {
        self.store.accept(NODE, batch, Repeat::First).await.unwrap()
    }

    /// Leases all that is due in a lane to [`NODE`].
    pub(crate) async fn claim(&self, lane: &str, lease: i64) -> Vec<Delivery> {
        self.claim_as(NODE, lane, lease).await
    }

    pub(crate) async fn claim_as(&self, node: NodeId, lane: &str, lease: i64) -> Vec<Delivery> {
        self.store.claim(node, Lease(lease), &[want(lane, 1000)], ANY_SIZE).await.unwrap()
    }

    /// Leases the only thing that is due in a lane.
    #[track_caller]
    pub(crate) fn claim_one(&self, lane: &str, lease: i64) -> impl Future<Output = Delivery> {
        let claim = self.clone();
        let lane = lane.to_owned();
        async move {
            let [delivery] =
                <[Delivery; 1]>::try_from(claim.claim(&lane, lease).await).expect("one delivery is due");
            delivery
        }
    }

    pub(crate) async fn finish(&self, ended: Ended) -> Applied {
        self.store.finish(NODE, &[ended]).await.unwrap().remove(0)
    }

    /// A message's entries in the log.
    pub(crate) async fn story(&self, id: &MessageId) -> Vec<State> {
        let filter = LogFilter { messages: vec![id.clone()], ..LogFilter::default() };
        let page = self.store.log(&filter, Order::EarliestFirst, None, 1000, ANY_SIZE).await.unwrap();
        assert_eq!(page.next, None);
        page.items.into_iter().map(|entry| entry.state).collect()
    }

    /// Whether any delivery is left that could be claimed now or later.
    pub(crate) async fn nothing_waits(&self) -> bool {
        self.store.next_due().await.unwrap().due_at.is_none()
    }
}

/// Those of the messages that are cancelled and not finished, each once.
pub(crate) async fn cancel_requested(store: &dyn Store, ids: &[MessageId]) -> Vec<MessageId> {
    let mut requested = Vec::new();
    for id in ids {
        let situation = store.situation(id).await.unwrap();
        if situation.is_some_and(|situation| situation.cancel_requested) && !requested.contains(id) {
            requested.push(id.clone());
        }
    }
    requested
}

/// A delivery's holder, as its finish names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub(crate) id: MessageId,
    pub(crate) lease: Lease,
    pub(crate) retried: u32,
    pub(crate) slot: Option<Slot>,
}

impl From<&Delivery> for Held {
    fn from(delivery: &Delivery) -> Self {
        Self {
            id: delivery.message.id.clone(),
            lease: delivery.lease,
            retried: delivery.retried,
            slot: delivery.slot.clone(),
        }
    }
}

impl Held {
    pub(crate) fn with_lease(&self, lease: i64) -> Self {
        Self { lease: Lease(lease), ..self.clone() }
    }

    /// When its attempt ends.
    pub(crate) fn ended_at(&self) -> i64 {
        START + 1_000_000 * (1 + i64::from(self.retried))
    }

    fn ended(&self, outcome: Outcome, next: Next, error: Option<String>) -> Ended {
        let ended_at = time(self.ended_at());
        let attempt =
            Attempt { retried: self.retried, started_at: time(self.ended_at() - 10), ended_at, outcome };
        let finish = Arc::new(Finish { attempt, next, error, effects: Vec::new() });
        Ended {
            id: self.id.clone(),
            lease: self.lease,
            finish,
            callbacks: Vec::new(),
            slot: self.slot.clone(),
            pass_on: None,
        }
    }

    pub(crate) fn delivered(&self) -> Ended {
        self.ended(answer(200, "thanks"), Next::Delivered, None)
    }

    pub(crate) fn retry_at(&self, due_at: i64) -> Ended {
        let next = Next::Retry { due_at: time(due_at) };
        self.ended(answer(503, "later"), next, Some("destination answered 503".to_owned()))
    }

    pub(crate) fn failed(&self, dead_letter: &str) -> Ended {
        let next = Next::Failed { dead_letter: Some(DeadLetterId::new(dead_letter)) };
        self.ended(answer(500, "boom"), next, Some("destination answered 500".to_owned()))
    }

    pub(crate) fn failed_unanswered(&self, dead_letter: &str) -> Ended {
        let next = Next::Failed { dead_letter: Some(DeadLetterId::new(dead_letter)) };
        let error = "connection refused".to_owned();
        let outcome = Outcome::NoResponse { class: FailureClass::Connect, error: error.clone() };
        self.ended(outcome, next, Some(error))
    }

    pub(crate) fn cancelled(&self) -> Ended {
        self.ended(answer(500, "boom"), Next::Cancelled, Some("destination answered 500".to_owned()))
    }
}

/// Adds a callback message to an attempt's end.
pub(crate) fn with_callback(mut ended: Ended, message: Message, lane: &str, lease: Option<i64>) -> Ended {
    let callback = Arc::new(Message { source_id: Some(ended.id.clone()), ..message });
    Arc::make_mut(&mut ended.finish).effects.push(Effect::Callback(callback));
    ended.callbacks.push((Arc::from(lane), lease.map(Lease)));
    ended
}

/// Has an attempt's end pass its slot on to a message in this lane, of any size.
pub(crate) fn passing(ended: Ended, lane: &str, lease: i64) -> Ended {
    Ended { pass_on: Some(PassOn { lease: Lease(lease), lane: Arc::from(lane), room: ANY_SIZE }), ..ended }
}

/// The delivery that has got the slot of one that ended.
pub(crate) fn next(applied: Applied) -> Option<Delivery> {
    match applied {
        Applied::PassedOn(next) => Some(*next),
        Applied::Yes => None,
        Applied::No => panic!("the lease holds"),
    }
}

fn answer(status: u16, body: &str) -> Outcome {
    let headers = Headers(vec![("Content-Type".to_owned(), b"text/plain; x=\xf6".to_vec())]);
    Outcome::Response(Response { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) })
}

/// The message of that number: numbers are the order of the ids of one millisecond.
pub(crate) fn message(number: u32, created_at: i64) -> Message {
    let mut random = [0; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    let body = Bytes::from(format!("body {number}"));
    Message {
        id: MessageId::generate(time(created_at), random),
        created_at: time(created_at),
        due_at: time(created_at),
        method: Method::Post,
        url: format!("https://example.com/{number}"),
        headers: Headers::new(),
        body_sha256: body_sha256(&body),
        body,
        max_retries: 3,
        caller_ip: None,
        labels: Vec::new(),
        queue: None,
        url_group: None,
        endpoint: None,
        schedule_id: None,
        source_id: None,
        run: None,
        options: Options::default(),
    }
}

pub(crate) fn waiting(message: Message, lane: &str) -> Accept {
    Accept {
        message: Arc::new(message),
        lane: Arc::from(lane),
        lease: None,
        deduplication: None,
        on_run: None,
        request: 0,
    }
}

pub(crate) fn leased(message: Message, lane: &str, lease: i64) -> Accept {
    Accept { lease: Some(Lease(lease)), ..waiting(message, lane) }
}

/// Waiting, under a deduplication key that a message accepted now holds until `expires_at`.
pub(crate) fn keyed(message: Message, key: &str, expires_at: i64) -> Accept {
    let deduplication = Some(Deduplication { key: key.to_owned(), expires_at: time(expires_at) });
    Accept { deduplication, ..waiting(message, "a") }
}

pub(crate) fn want(lane: &str, count: usize) -> Want {
    Want { lane: Arc::from(lane), count }
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<MessageId> {
    deliveries.iter().map(|delivery| delivery.message.id.clone()).collect()
}
