//! Random calls, applied to the model and to a real store: all answers are the same, and so is what is left at the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use homing::domain::filter::MessageFilter;
use homing::domain::gate::{FlowChange, Limits, Rate, flow_gate, queue_gate};
use homing::domain::id::{DeadLetterId, MessageId};
use homing::domain::message::Message;
use homing::store::gates::{GateSnapshot, GateStep, Gates as _, Pass, Snapshot};
use homing::store::model::{Model, Processes};
use homing::store::schedules::Schedule;
use homing::store::situation::Situation;
use homing::store::{
    Accept, Applied, DeadLetterFilter, Delivery, Ended, Lease, LogCursor, LogFilter, Missing, NodeId, Order,
    Owner, PassOn, Repeat, Retention, State, Store, StoredKeys, UnfinishedFilter, Want,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sqlx::{Connection as _, PgConnection};

use self::resources::{GroupCall, ScheduleCall, group_call, schedule_call};
use crate::filters::{filters, varied};
use crate::gates::{decide, queued, under};
use crate::lists::keys;
use crate::support::{
    ANY_SIZE, Engine, FUTURE, Fresh, Held, LATEST, Place, START, cancel_requested, keyed, message, time,
    waiting, with_callback,
};

const CASES: u32 = 85;
const STEPS: usize = 40;
/// Another number, also as `HOMING_TEST_SEED`, tries other calls.
const SEED: u64 = 20_240_601;

const LANES: [&str; 4] = ["https://a.example", "https://b.example:8443", "q", "Ä"];
const QUEUES: [&str; 2] = ["q", "Q"];
const KEYS: [&str; 2] = ["k", "a/ä:q"];
const NAMES: [&str; 2] = ["node-1", "node-2"];

/// One of the two nodes, by its place in [`NAMES`].
type Node = usize;

#[derive(Clone, Debug)]
struct Item {
    lane: usize,
    key: Option<u8>,
    later: bool,
    leased: bool,
    through: Through,
}

/// The gates that a message has to pass, by their places in [`QUEUES`] and [`KEYS`].
#[derive(Clone, Copy, Debug)]
struct Through {
    queue: Option<usize>,
    key: Option<Key>,
}

/// A key's place, parallelism and rate; 0 is no limit.
type Key = (usize, u32, u32);

#[derive(Clone, Debug)]
struct End {
    whose: Index,
    kind: u8,
    wrong_lease: bool,
    /// Lane, whether it is leased at once, and a key.
    callbacks: Vec<(usize, bool, Option<Key>)>,
    /// The lane and the bytes of a message that may get its slot.
    pass_on: Option<(usize, usize)>,
}

#[derive(Clone, Debug)]
enum Call {
    Accept {
        node: Node,
        items: Vec<Item>,
    },
    AcceptAgain,
    Claim {
        node: Node,
        wants: Vec<(usize, usize)>,
        max_bytes: usize,
    },
    Finish {
        stranger: bool,
        ends: Vec<End>,
    },
    FinishCancelled {
        whose: Vec<Index>,
    },
    Release {
        whose: Vec<Index>,
    },
    Cancel {
        whose: Index,
    },
    Reconcile {
        node: Node,
        live: u64,
    },
    Register {
        node: Node,
    },
    Deregister {
        node: Node,
    },
    Heartbeat {
        node: Node,
    },
    DeleteLetters {
        which: Vec<Index>,
    },
    RetryLetters {
        which: Vec<Index>,
    },
    Prune {
        log_s: i64,
        letters_s: i64,
    },
    CancelMany {
        whose: Vec<Index>,
    },
    Unfinished {
        count: usize,
        matching: Index,
    },
    Log {
        count: usize,
        latest_first: bool,
        of: Option<Index>,
        matching: Index,
        states: Vec<State>,
        from_s: Option<i64>,
    },
    Letters {
        count: usize,
        latest_first: bool,
        matching: Index,
    },
    DueLanes,
    RotateKeys {
        set: bool,
    },
    Gate(GateCall),
    Schedules(Vec<ScheduleCall>),
    Group(GroupCall),
}

#[derive(Clone, Debug)]
enum GateCall {
    Take { node: Node, gates: Vec<usize>, count: usize, without: u64, stale: bool, next: Option<bool> },
    Rest { gate: usize },
    Wake,
    Upsert { queue: usize, parallelism: Option<u32>, paused: Option<bool> },
    Pause { queue: usize, paused: bool },
    Remove { queue: usize },
    Key { key: usize, change: FlowChange },
    Show,
}

fn state() -> impl Strategy<Value = State> {
    prop::sample::select(vec![
        State::Created,
        State::Active,
        State::Delivered,
        State::Error,
        State::Retry,
        State::Failed,
        State::CancelRequested,
        State::Cancelled,
    ])
}

fn gate_call() -> impl Strategy<Value = GateCall> {
    let node = || 0..NAMES.len();
    let of_two = || 0..2_usize;
    let limits = |(parallelism, rate): (Option<u32>, Option<u32>)| Limits {
        parallelism,
        rate: rate.map(|count| Rate { count, period_s: 1 }),
    };
    let change = prop_oneof![
        2 => Just(FlowChange::Pause),
        4 => Just(FlowChange::Resume),
        2 => (prop::option::of(1..4_u32), prop::option::of(1..4_u32)).prop_map(limits).prop_map(FlowChange::Pin),
        3 => any::<(bool, bool)>().prop_map(|(parallelism, rate)| FlowChange::Unpin { parallelism, rate }),
        1 => Just(FlowChange::ResetRate),
    ];
    prop_oneof![
        14 => (
            node(),
            vec(0..4_usize, 1..4),
            1..4_usize,
            prop::sample::select(vec![0, 0, 0, 1, 2, 5]),
            prop::bool::weighted(0.1),
            any::<Option<bool>>(),
        )
            .prop_map(|(node, gates, count, without, stale, next)| GateCall::Take {
                node,
                gates,
                count,
                without,
                stale,
                next,
            }),
        2 => (0..4_usize).prop_map(|gate| GateCall::Rest { gate }),
        1 => Just(GateCall::Wake),
        2 => (of_two(), prop::option::of(1..4_u32), prop::option::weighted(0.3, any::<bool>()))
            .prop_map(|(queue, parallelism, paused)| GateCall::Upsert { queue, parallelism, paused }),
        2 => (of_two(), prop::bool::weighted(0.3)).prop_map(|(queue, paused)| GateCall::Pause { queue, paused }),
        1 => of_two().prop_map(|queue| GateCall::Remove { queue }),
        2 => (of_two(), change).prop_map(|(key, change)| GateCall::Key { key, change }),
        2 => Just(GateCall::Show),
    ]
}

fn key() -> impl Strategy<Value = Key> {
    (0..KEYS.len(), prop::sample::select(vec![(1, 0), (2, 0), (0, 3), (3, 2)]))
        .prop_map(|(key, (most, rate))| (key, most, rate))
}

fn through() -> impl Strategy<Value = Through> {
    (prop::option::weighted(0.3, 0..QUEUES.len()), prop::option::weighted(0.2, key()))
        .prop_map(|(queue, key)| Through { queue, key })
}

fn call() -> impl Strategy<Value = Call> {
    let node = || 0..NAMES.len();
    let lane = || 0..LANES.len();
    let some = || vec(any::<Index>(), 1..4);
    let item =
        (lane(), prop::option::weighted(0.3, 0..4_u8), prop::bool::weighted(0.1), any::<bool>(), through())
            .prop_map(|(lane, key, later, leased, through)| Item {
                lane,
                key,
                later,
                leased: leased && !later && through.queue.is_none() && through.key.is_none(),
                through,
            });
    let end = (
        any::<Index>(),
        prop::sample::select(vec![0, 0, 1, 1, 2, 3, 4]),
        prop::bool::weighted(0.1),
        vec((lane(), any::<bool>(), prop::option::weighted(0.2, key())), 0..3),
        prop::option::weighted(0.7, (lane(), prop::sample::select(vec![600, ANY_SIZE, ANY_SIZE]))),
    )
        .prop_map(|(whose, kind, wrong_lease, callbacks, pass_on)| End {
            whose,
            kind,
            wrong_lease,
            callbacks,
            pass_on,
        });
    prop_oneof![
        12 => (node(), vec(item, 0..6)).prop_map(|(node, items)| Call::Accept { node, items }),
        2 => Just(Call::AcceptAgain),
        10 => (node(), vec((lane(), 0..5_usize), 0..4), prop::sample::select(vec![1, 1200, 2000, ANY_SIZE]))
            .prop_map(|(node, wants, max_bytes)| Call::Claim { node, wants, max_bytes }),
        14 => (prop::bool::weighted(0.1), vec(end, 0..6)).prop_map(|(stranger, ends)| Call::Finish { stranger, ends }),
        2 => some().prop_map(|whose| Call::FinishCancelled { whose }),
        2 => some().prop_map(|whose| Call::Release { whose }),
        6 => any::<Index>().prop_map(|whose| Call::Cancel { whose }),
        2 => (node(), any::<u64>()).prop_map(|(node, live)| Call::Reconcile { node, live }),
        1 => node().prop_map(|node| Call::Register { node }),
        1 => node().prop_map(|node| Call::Deregister { node }),
        1 => node().prop_map(|node| Call::Heartbeat { node }),
        1 => some().prop_map(|which| Call::DeleteLetters { which }),
        2 => some().prop_map(|which| Call::RetryLetters { which }),
        2 => (0..30_i64, 0..30_i64).prop_map(|(log_s, letters_s)| Call::Prune { log_s, letters_s }),
        2 => (
            1..20_usize,
            any::<bool>(),
            prop::option::of(any::<Index>()),
            any::<Index>(),
            vec(state(), 0..4),
            prop::option::of(0..40_i64),
        )
            .prop_map(|(count, latest_first, of, matching, states, from_s)| Call::Log {
                count,
                latest_first,
                of,
                matching,
                states,
                from_s,
            }),
        1 => (1..4_usize, any::<bool>(), any::<Index>())
            .prop_map(|(count, latest_first, matching)| Call::Letters { count, latest_first, matching }),
        2 => vec(any::<Index>(), 0..8).prop_map(|whose| Call::CancelMany { whose }),
        1 => (1..10_usize, any::<Index>()).prop_map(|(count, matching)| Call::Unfinished { count, matching }),
        2 => Just(Call::DueLanes),
        1 => any::<bool>().prop_map(|set| Call::RotateKeys { set }),
        26 => gate_call().prop_map(Call::Gate),
        8 => vec(schedule_call(), 1..8).prop_map(Call::Schedules),
        6 => group_call().prop_map(Call::Group),
    ]
}

/// Makes a call on both stores; the answer, which is the same.
macro_rules! same {
    ($run:expr, |$store:ident| $call:expr) => {{
        let expected = {
            let $store: &dyn Store = &$run.model;
            $call
        };
        let found = {
            let $store: &dyn Store = &*$run.real;
            $call
        };
        assert_eq!(format!("{found:#?}"), format!("{expected:#?}"));
        expected
    }};
}

mod resources;

impl Through {
    fn of(self, message: Message) -> Message {
        let message = match self.queue {
            Some(queue) => queued(message, QUEUES[queue]),
            None => message,
        };
        match self.key {
            Some((key, parallelism, rate)) => under(message, KEYS[key], parallelism, rate),
            None => message,
        }
    }
}

/// The gates of [`QUEUES`] and [`KEYS`].
fn gate(index: usize) -> Arc<str> {
    let name =
        if index < QUEUES.len() { queue_gate(QUEUES[index]) } else { flow_gate(KEYS[index - QUEUES.len()]) };
    Arc::from(name)
}

/// How gates are taken from.
struct Stepping {
    /// Which of those that may pass are left out.
    without: u64,
    stale: bool,
    next: Option<bool>,
}

/// A look without what depends on a store's clock.
fn seen(looks: &Snapshot) -> Vec<impl std::fmt::Debug + use<>> {
    let mut seen: Vec<_> = looks
        .gates
        .iter()
        .map(|look| {
            let waiting: Vec<_> = look
                .waiting
                .iter()
                .map(|one| {
                    let due = one.due_at <= looks.now;
                    (one.id.clone(), Arc::clone(&one.lane), one.size, due, one.holds_slot, one.flow.clone())
                })
                .collect();
            let next = look.next_at.map(|next_at| next_at <= looks.now);
            (Arc::clone(&look.name), look.gate.clone(), next, waiting)
        })
        .collect();
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    seen
}

fn by_id(mut deliveries: Vec<Delivery>) -> Vec<Delivery> {
    deliveries.sort_by(|a, b| a.message.id.cmp(&b.message.id));
    deliveries
}

struct Run {
    model: Model,
    real: Arc<dyn Store>,
    /// A second for each call.
    now: i64,
    made: i64,
    lease: i64,
    nodes: [NodeId; 2],
    held: Vec<(NodeId, Held)>,
    messages: Vec<MessageId>,
    letters: Vec<DeadLetterId>,
    accepted: Option<(NodeId, Vec<Accept>)>,
    /// Each as it was at some time.
    schedules: Vec<Schedule>,
}

impl Run {
    async fn new(real: Arc<dyn Store>) -> Self {
        let processes = if real.is_shared() { Processes::Several } else { Processes::One };
        let mut run = Self {
            model: Model::new(processes),
            real,
            now: START,
            made: 0,
            lease: 0,
            nodes: [NodeId(1); 2],
            held: Vec::new(),
            messages: Vec::new(),
            letters: Vec::new(),
            accepted: None,
            schedules: Vec::new(),
        };
        for node in 0..NAMES.len() {
            run.register(node).await;
        }
        let pair = keys("sig_1", "sig_2");
        run.keys(&pair).await;
        run
    }

    async fn register(&mut self, node: Node) {
        self.made += 1;
        self.nodes[node] = NodeId(self.made);
        same!(self, |store| store.register(self.nodes[node], NAMES[node]).await.unwrap());
    }

    /// Pairs have no debug form, since they are secret.
    async fn keys(&self, fresh: &StoredKeys) {
        let now = time(self.now);
        same!(self, |store| {
            let pair = store.signing_keys(fresh, now).await.unwrap();
            (pair.pair.current, pair.pair.next, pair.configured)
        });
    }

    fn message(&mut self) -> Message {
        self.made += 1;
        let message = message(u32::try_from(self.made).unwrap(), self.now);
        // Callbacks are in no queue; what goes through gates is made for them.
        let varied = varied(message, usize::try_from(self.made).unwrap());
        let message = Message { queue: None, options: homing::domain::message::Options::default(), ..varied };
        self.messages.push(message.id.clone());
        message
    }

    fn replacement(&mut self) -> Accept {
        let queue = usize::try_from(self.made % 3).ok().filter(|queue| *queue < QUEUES.len());
        waiting(Through { queue, key: None }.of(self.message()), LANES[0])
    }

    /// Looks at gates and takes what they admit, but for some.
    async fn take(&mut self, node: Node, names: &[Arc<str>], count: usize, step: Stepping) {
        let node = self.nodes[node];
        let shown = same!(self, |store| seen(&store.snapshot_gates(names, count).await.unwrap()));
        if shown.is_empty() {
            return;
        }
        self.lease += 1;
        let lease = Lease(self.lease);
        let looks = self.model.snapshot_gates(names, count).await.unwrap();
        let own = self.real.snapshot_gates(names, count).await.unwrap();
        let mut passes: Vec<Pass> = Vec::new();
        for name in names {
            for pass in decide(&looks.gates, name, looks.now).1 {
                let left_out = step.without & (1 << passes.len()) != 0;
                if !left_out && !passes.iter().any(|other| other.id == pass.id) {
                    passes.push(pass);
                }
            }
        }
        let next_at = step.next.map(|soon| time(if soon { self.now } else { FUTURE + self.now }));
        let steps = |looks: &Snapshot| -> Vec<GateStep> {
            let one = |look: &GateSnapshot| {
                let mut starts = look.gate.starts.clone();
                if let Some(rate) = look.gate.limits.rate {
                    starts.add(rate, 1, time(self.now), Duration::ZERO);
                }
                let version = look.version - i64::from(step.stale);
                GateStep { name: Arc::clone(&look.name), version, starts, next_at }
            };
            looks.gates.iter().map(one).collect()
        };
        let now = time(self.now);
        let taken = self.model.pass_gates(node, lease, &steps(&looks), &passes, now).await.unwrap();
        let found = self.real.pass_gates(node, lease, &steps(&own), &passes, now).await.unwrap();
        assert_eq!(format!("{:#?}", by_id(found)), format!("{:#?}", by_id(taken.clone())));
        self.took(node, &taken);
    }

    async fn show_gates(&self) {
        let now = time(self.now);
        let names: Vec<Arc<str>> = (0..4).map(gate).collect();
        same!(self, |store| seen(&store.snapshot_gates(&names, 100).await.unwrap()));
        same!(self, |store| {
            let mut due = store.due_gates(100).await.unwrap();
            due.gates.sort();
            (due.gates, due.next_at.is_some())
        });
        same!(self, |store| (store.queues(None, 2).await.unwrap(), store.queue(QUEUES[0]).await.unwrap()));
        same!(self, |store| {
            (store.flow_keys("a", None, 2, now).await.unwrap(), store.flow_key(KEYS[0], now).await.unwrap())
        });
        for id in self.messages.iter().rev().take(4) {
            same!(self, |store| {
                let situation = store.situation(id).await.unwrap();
                situation.map(|situation| Situation { now, ..situation })
            });
        }
    }

    /// One that was leased lately, by whomever; it may be finished or taken over meanwhile.
    fn held(&self, index: Index) -> Option<(NodeId, Held)> {
        let recent = &self.held[self.held.len().saturating_sub(12)..];
        (!recent.is_empty()).then(|| index.get(recent).clone())
    }

    fn some_held(&self, indexes: &[Index]) -> Option<(NodeId, Vec<(MessageId, Lease)>)> {
        let (node, _) = self.held(*indexes.first()?)?;
        let held = indexes.iter().filter_map(|index| self.held(*index));
        Some((node, held.map(|(_, held)| (held.id, held.lease)).collect()))
    }

    fn some_letters(&self, indexes: &[Index]) -> Vec<DeadLetterId> {
        if self.letters.is_empty() {
            return vec![DeadLetterId::new("unknown")];
        }
        indexes.iter().map(|index| index.get(&self.letters).clone()).collect()
    }

    fn took(&mut self, node: NodeId, deliveries: &[Delivery]) {
        self.held.extend(deliveries.iter().map(|delivery| (node, Held::from(delivery))));
    }

    async fn accept(&mut self, node: NodeId, batch: &[Accept], repeat: Repeat) {
        let results = same!(self, |store| store.accept(node, batch, repeat).await.unwrap());
        for (accept, result) in batch.iter().zip(results) {
            if let (Some(lease), homing::store::Accepted::Stored) = (accept.lease, result) {
                self.held.push((node, Held { id: accept.message.id.clone(), lease, retried: 0, slot: None }));
            }
        }
    }

    async fn accept_new(&mut self, node: NodeId, items: Vec<Item>) {
        let batch = self.new_batch(items);
        self.accept(node, &batch, Repeat::First).await;
        self.accepted = Some((node, batch));
    }

    fn new_batch(&mut self, items: Vec<Item>) -> Vec<Accept> {
        self.lease += 1;
        let mut batch = Vec::new();
        for item in items {
            let mut message = self.message();
            if item.later {
                message.due_at = time(FUTURE + self.made);
            }
            message = item.through.of(message);
            let mut accept = match item.key {
                Some(key) => keyed(message, &format!("key {key}"), self.now + 3000),
                None => waiting(message, ""),
            };
            accept.lane = Arc::from(LANES[item.lane]);
            accept.lease = item.leased.then_some(Lease(self.lease));
            batch.push(accept);
        }
        batch
    }

    async fn finish(&mut self, stranger: bool, ends: Vec<End>) {
        self.lease += 1;
        let mut node = None;
        let mut batch: Vec<Ended> = Vec::new();
        for end in ends {
            let Some((holder, mut held)) = self.held(end.whose) else { break };
            node.get_or_insert(if stranger { NodeId(0) } else { holder });
            if end.wrong_lease {
                held.lease = Lease(held.lease.0 + 1);
            }
            self.made += 1;
            let letter = format!("{}-{}", self.now, self.made);
            let mut ended = match end.kind {
                0 => held.delivered(),
                1 => held.retry_at(self.now),
                2 => held.failed(&letter),
                3 => held.failed_unanswered(&letter),
                _ => held.cancelled(),
            };
            let attempt = &mut Arc::make_mut(&mut ended.finish).attempt;
            attempt.started_at = time(self.now);
            attempt.ended_at = time(self.now + 7);
            for (lane, leased, key) in end.callbacks {
                let leased = leased && key.is_none();
                let message = Through { queue: None, key }.of(self.message());
                ended = with_callback(ended, message, LANES[lane], leased.then_some(self.lease));
            }
            ended.pass_on = end.pass_on.map(|(lane, room)| PassOn {
                lease: Lease(self.lease),
                lane: Arc::from(LANES[lane]),
                room,
            });
            self.letters.push(DeadLetterId::new(letter));
            batch.push(ended);
        }
        let Some(node) = node else { return };
        let applied = same!(self, |store| store.finish(node, &batch).await.unwrap());
        for (ended, applied) in batch.iter().zip(applied) {
            for (callback, (_, lease)) in ended.finish.callbacks().zip(&ended.callbacks) {
                if let Some(lease) = lease.filter(|_| applied != Applied::No) {
                    self.held.push((
                        node,
                        Held { id: callback.id.clone(), lease, retried: 0, slot: ended.slot.clone() },
                    ));
                }
            }
            if let Applied::PassedOn(next) = applied {
                self.took(node, &[*next]);
            }
        }
    }

    async fn walk_log(&self, filter: &LogFilter, order: Order, count: usize) {
        let mut cursor: Option<LogCursor> = None;
        loop {
            let page = same!(self, |store| store
                .log(filter, order, cursor.as_ref(), count, ANY_SIZE)
                .await
                .unwrap());
            cursor = page.next;
            if cursor.is_none() {
                return;
            }
        }
    }

    async fn walk_letters(&self, matching: MessageFilter, order: Order, count: usize) {
        let filter = DeadLetterFilter { matching, ..DeadLetterFilter::default() };
        let mut after = None;
        loop {
            let page = same!(self, |store| store
                .dead_letters(&filter, order, after.as_ref(), count, ANY_SIZE)
                .await
                .unwrap());
            same!(self, |store| store
                .dead_letter_places(&filter, order, after.as_ref(), count)
                .await
                .unwrap());
            after = page.next;
            if after.is_none() {
                return;
            }
        }
    }

    async fn cancel_many(&self, whose: &[Index]) {
        let recent = &self.messages[self.messages.len().saturating_sub(20)..];
        if recent.is_empty() {
            return;
        }
        let ids: Vec<MessageId> = whose.iter().map(|index| index.get(recent).clone()).collect();
        same!(self, |store| store.cancel_many(&ids, time(self.now)).await.unwrap());
        same!(self, |store| {
            let mut requested = cancel_requested(store, &self.messages).await;
            requested.sort();
            let mut held = Vec::new();
            for node in self.nodes {
                held.extend(store.cancelled_leases(node).await.unwrap());
            }
            held.sort();
            (requested, held)
        });
    }

    async fn walk_unfinished(&self, matching: MessageFilter, count: usize) {
        let filter = UnfinishedFilter { matching, from: Some(time(START + 5000)), to: None };
        let mut after = None;
        loop {
            let look = same!(self, |store| store.unfinished(&filter, after.as_ref(), count).await.unwrap());
            after = look.next;
            if after.is_none() {
                return;
            }
        }
    }

    async fn retry_letters(&mut self, ids: &[DeadLetterId]) {
        let replacements: Vec<(DeadLetterId, Accept)> =
            ids.iter().map(|id| (id.clone(), self.replacement())).collect();
        // All or none, unless one is there twice, which only that refuses.
        let twice = ids.iter().collect::<BTreeSet<_>>().len() < ids.len();
        let missing = if twice || self.made % 2 == 0 { Missing::Refuse } else { Missing::Skip };
        same!(self, |store| store.retry_dead_letters(&replacements, missing).await.unwrap());
    }

    async fn rotate_keys(&self, set: bool) {
        let now = time(self.now);
        let pair = keys(&format!("sig_{now:?}"), "sig_next");
        if set {
            same!(self, |store| store.set_signing_keys(&pair, now).await.unwrap());
        } else {
            same!(self, |store| {
                let pair = store.rotate_signing_keys(&pair.pair.current, now).await.unwrap();
                (pair.current, pair.next)
            });
        }
        self.keys(&pair).await;
    }

    async fn step(&mut self, call: Call) {
        self.now += 1000;
        let now = time(self.now);
        match call {
            Call::Accept { node, items } => self.accept_new(self.nodes[node], items).await,
            Call::AcceptAgain => {
                let Some((node, batch)) = self.accepted.take() else { return };
                self.accept(node, &batch, Repeat::Again).await;
            }
            Call::Claim { node, wants, max_bytes } => {
                self.lease += 1;
                let (node, lease) = (self.nodes[node], Lease(self.lease));
                let wants: Vec<Want> = wants
                    .into_iter()
                    .map(|(lane, count)| Want { lane: Arc::from(LANES[lane]), count })
                    .collect();
                let claimed = same!(self, |store| store.claim(node, lease, &wants, max_bytes).await.unwrap());
                self.took(node, &claimed);
            }
            Call::Finish { stranger, ends } => self.finish(stranger, ends).await,
            Call::FinishCancelled { whose } => {
                let Some((node, held)) = self.some_held(&whose) else { return };
                same!(self, |store| store.finish_cancelled(node, &held, now).await.unwrap());
            }
            Call::Release { whose } => {
                let Some((node, held)) = self.some_held(&whose) else { return };
                same!(self, |store| store.release(node, &held).await.unwrap());
            }
            Call::Cancel { whose } => {
                if self.messages.is_empty() {
                    return;
                }
                let recent = &self.messages[self.messages.len().saturating_sub(20)..];
                let id = whose.get(recent);
                same!(self, |store| store.cancel(id, now).await.unwrap());
            }
            Call::Reconcile { node, live } => {
                let live: Vec<Lease> =
                    (0..=self.lease).filter(|lease| live & (1 << (lease % 64)) != 0).map(Lease).collect();
                same!(self, |store| store.reconcile(self.nodes[node], &live, LATEST).await.unwrap());
            }
            Call::Register { node } => self.register(node).await,
            Call::Deregister { node } => {
                same!(self, |store| store.deregister(self.nodes[node]).await.unwrap());
            }
            Call::Heartbeat { node } => {
                same!(self, |store| store.heartbeat(self.nodes[node]).await.unwrap().is_some());
            }
            Call::DeleteLetters { which } => {
                let ids = self.some_letters(&which);
                same!(self, |store| store.delete_dead_letters(&ids).await.unwrap());
            }
            Call::RetryLetters { which } => {
                let ids = self.some_letters(&which);
                self.retry_letters(&ids).await;
            }
            Call::Prune { log_s, letters_s } => {
                let age = |seconds: i64| std::time::Duration::from_secs(seconds.unsigned_abs());
                let retention = Retention { log: age(log_s), dead_letters: age(letters_s) };
                same!(self, |store| store.prune(retention, now, "").await.unwrap());
            }
            Call::CancelMany { whose } => self.cancel_many(&whose).await,
            Call::Unfinished { count, matching } => self.walk_unfinished(one_of(matching), count).await,
            Call::Log { count, latest_first, of, matching, states, from_s } => {
                let of = of.filter(|_| !self.messages.is_empty());
                let filter = LogFilter {
                    owner: Owner::User,
                    messages: of.map(|of| of.get(&self.messages).clone()).into_iter().collect(),
                    matching: one_of(matching),
                    states,
                    from: from_s.map(|seconds| time(START + 1000 * seconds)),
                    to: from_s.map(|seconds| time(START + 1000 * seconds + 12_000)),
                };
                self.walk_log(&filter, order(latest_first), count).await;
            }
            Call::Letters { count, latest_first, matching } => {
                self.walk_letters(one_of(matching), order(latest_first), count).await;
            }
            Call::DueLanes => {
                same!(self, |store| {
                    let mut lanes = store.due_lanes(1000, "").await.unwrap().lanes;
                    lanes.sort();
                    (lanes, store.next_due().await.unwrap().due_at)
                });
            }
            Call::RotateKeys { set } => self.rotate_keys(set).await,
            Call::Gate(call) => self.step_at_gate(call).await,
            Call::Schedules(calls) => self.step_of_schedules(calls).await,
            Call::Group(call) => self.step_of_group(call).await,
        }
    }

    async fn step_at_gate(&mut self, call: GateCall) {
        let now = time(self.now);
        match call {
            GateCall::Take { node, gates, count, without, stale, next } => {
                let mut names: Vec<Arc<str>> = gates.into_iter().map(gate).collect();
                names.sort();
                names.dedup();
                self.take(node, &names, count, Stepping { without, stale, next }).await;
            }
            GateCall::Rest { gate } => {
                let until = time(FUTURE + self.now);
                same!(self, |store| store.rest_gates(&[(self::gate(gate), until)]).await.unwrap());
            }
            GateCall::Wake => same!(self, |store| store.wake_gates().await.unwrap()),
            GateCall::Upsert { queue, parallelism, paused } => {
                same!(self, |store| store
                    .upsert_queue(QUEUES[queue], parallelism, paused, Some(2), now)
                    .await
                    .unwrap());
            }
            GateCall::Pause { queue, paused } => {
                same!(self, |store| store.pause_queue(QUEUES[queue], paused, now).await.unwrap());
            }
            GateCall::Remove { queue } => {
                same!(self, |store| {
                    let mut removal = store.remove_queue(QUEUES[queue], now).await.unwrap();
                    removal.requested.sort();
                    removal
                });
            }
            GateCall::Key { key, change } => {
                same!(self, |store| store.change_flow_key(KEYS[key], &change, now).await.unwrap());
            }
            GateCall::Show => self.show_gates().await,
        }
    }

    /// Everything that a store tells, and at last what it gives to a node that takes all.
    async fn compare_all(&mut self) {
        let everything = LogFilter::default();
        self.walk_log(&everything, Order::EarliestFirst, 1000).await;
        self.walk_letters(MessageFilter::default(), Order::EarliestFirst, 1000).await;
        for id in self.messages.clone() {
            same!(self, |store| store.message(&id).await.unwrap());
        }
        for letter in self.letters.clone() {
            same!(self, |store| store.dead_letter(&letter).await.unwrap());
        }
        self.walk_schedules(1000, ANY_SIZE).await;
        self.show_groups().await;
        self.keys(&keys("", "")).await;
        same!(self, |store| store.count_nodes().await.unwrap());
        for node in self.nodes {
            same!(self, |store| store.reconcile(node, &[], LATEST).await.unwrap());
        }
        self.step(Call::DueLanes).await;
        let wants = (0..LANES.len()).map(|lane| (lane, 1000)).collect();
        self.step(Call::Claim { node: 0, wants, max_bytes: ANY_SIZE }).await;
        self.show_gates().await;
        let names: Vec<Arc<str>> = (0..4).map(gate).collect();
        let step = Stepping { without: 0, stale: false, next: None };
        self.take(0, &names, 1000, step).await;
        self.show_gates().await;
        self.walk_log(&everything, Order::LatestFirst, 1000).await;
        for id in self.messages.clone() {
            same!(self, |store| store.cancel(&id, time(self.now)).await.unwrap());
        }
        self.step(Call::DueLanes).await;
    }
}

/// Half of the time a filter that everything matches.
fn one_of(index: Index) -> MessageFilter {
    let filters = filters();
    filters.get(index.index(2 * filters.len())).cloned().unwrap_or_default()
}

const fn order(latest_first: bool) -> Order {
    if latest_first { Order::LatestFirst } else { Order::EarliestFirst }
}

/// Postgres: one database for all cases, emptied between them. `SQLite`: a file for each.
async fn empty(fresh: &Fresh) {
    let Place::Database(database) = &fresh.place else { return };
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql(
        "DELETE FROM messages; DELETE FROM deliveries; DELETE FROM attempts; DELETE FROM cancellations; \
         DELETE FROM dead_letters; DELETE FROM deduplications; DELETE FROM nodes; DELETE FROM signing_keys; \
         DELETE FROM tokens; DELETE FROM reserved_messages; DELETE FROM gates; DELETE FROM queue_places; \
         DELETE FROM schedules; DELETE FROM url_groups",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
}

fn behaves_like_the_model(engine: Engine) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let number = std::env::var("HOMING_TEST_SEED").map_or(SEED, |text| text.parse().unwrap());
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let config =
        Config { cases: CASES, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let shared = (engine == Engine::Postgres).then(|| runtime.block_on(Fresh::open(engine)));
    let result = runner.run(&vec(call(), STEPS), |calls| {
        runtime.block_on(async {
            let own = if shared.is_none() { Some(Fresh::open(engine).await) } else { None };
            let fresh = own.as_ref().or(shared.as_ref()).expect("it is one or the other");
            empty(fresh).await;
            let mut run = Run::new(Arc::clone(&fresh.store)).await;
            for call in calls {
                run.step(call).await;
            }
            run.compare_all().await;
            if let Some(own) = own {
                own.remove().await;
            }
        });
        Ok(())
    });
    if let Some(shared) = shared {
        runtime.block_on(shared.remove());
    }
    if let Err(failure) = result {
        panic!("with the seed {number}: {failure}");
    }
}

#[test]
fn sqlite_behaves_like_the_model() {
    behaves_like_the_model(Engine::Sqlite);
}

#[test]
fn postgres_behaves_like_the_model() {
    behaves_like_the_model(Engine::Postgres);
}
