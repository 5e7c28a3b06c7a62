//! Scenarios of queues and flow-control keys. Each runs on every store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use homing::domain::gate::{FlowChange, Gate, Limits, Rate, Starts, admit, flow_gate, is_queue, queue_gate};
use homing::domain::id::{DeadLetterId, MessageId};
use homing::domain::message::{FlowControl, Message, Options};
use homing::store::gates::{FlowKey, GateSnapshot, GateStep, Pass, Queue};
use homing::store::model::MAX_QUEUES;
use homing::store::{
    Accept, Accepted, Applied, Cancellation, Delivery, Ended, Lease, Missing, NodeId, Refusal, Repeat,
    Retention, Slot, State, Store, StoreError,
};

use crate::schedules::{run, schedule};
use crate::support::{FUTURE, Held, LATEST, NODE, START, World, ids, passing, time, waiting, with_callback};

/// More than any scenario has.
const MANY: usize = 100;

pub(crate) fn queued(message: Message, queue: &str) -> Message {
    Message { queue: Some(queue.to_owned()), ..message }
}

/// Under a key; 0 means no limit.
pub(crate) fn under(message: Message, key: &str, parallelism: u32, rate: u32) -> Message {
    let some = |number: u32| (number > 0).then_some(number);
    let flow =
        FlowControl { key: key.to_owned(), parallelism: some(parallelism), rate: some(rate), period_s: 60 };
    Message { options: Options { flow_control: Some(flow), ..message.options }, ..message }
}

/// What a node does at one gate: looks, decides, takes.
pub(crate) async fn take(store: &dyn Store, node: NodeId, gate: &str, lease: i64) -> Vec<Delivery> {
    let looks = store.snapshot_gates(&[Arc::from(gate)], MANY).await.unwrap();
    let (steps, passes) = decide(&looks.gates, gate, looks.now);
    let now = time(START + 50_000_000);
    let deliveries = store.pass_gates(node, Lease(lease), &steps, &passes, now).await.unwrap();
    let place = |delivery: &Delivery| passes.iter().position(|pass| pass.id == delivery.message.id);
    let mut deliveries = deliveries;
    deliveries.sort_by_key(place);
    deliveries
}

pub(crate) fn decide(
    looks: &[GateSnapshot],
    name: &str,
    now: homing::domain::time::Timestamp,
) -> (Vec<GateStep>, Vec<Pass>) {
    let mut gates: BTreeMap<Arc<str>, Gate> =
        looks.iter().map(|look| (Arc::clone(&look.name), look.gate.clone())).collect();
    let Some(look) = looks.iter().find(|look| *look.name == *name) else { return (Vec::new(), Vec::new()) };
    let admission = admit(&mut gates, &look.name, &look.waiting, now, |_| true);
    let passes: Vec<Pass> = admission
        .taken
        .iter()
        .map(|&index| {
            let one = &look.waiting[index];
            let in_order = is_queue(name) && !one.holds_slot;
            Pass { id: one.id.clone(), gate: Arc::clone(&look.name), flow: one.flow.clone(), in_order }
        })
        .collect();
    (looks.iter().map(step).collect(), passes)
}

fn step(look: &GateSnapshot) -> GateStep {
    GateStep {
        name: Arc::clone(&look.name),
        version: look.version,
        starts: look.gate.starts.clone(),
        next_at: None,
    }
}

impl World {
    async fn put_message(&self, message: Message) -> MessageId {
        let accept = waiting(message, "a");
        assert_eq!(self.accept(std::slice::from_ref(&accept)).await, [Accepted::Stored]);
        accept.message.id.clone()
    }

    async fn enqueue(&self, queue: &str) -> MessageId {
        self.put_message(queued(self.message(), queue)).await
    }

    async fn take(&self, gate: &str, lease: i64) -> Vec<Delivery> {
        take(&*self.store, NODE, gate, lease).await
    }

    async fn take_one(&self, gate: &str, lease: i64) -> Held {
        let taken = self.take(gate, lease).await;
        assert_eq!(taken.len(), 1, "{gate}");
        Held::from(&taken[0])
    }

    async fn look(&self, gate: &str) -> GateSnapshot {
        let looks = self.store.snapshot_gates(&[Arc::from(gate)], MANY).await.unwrap();
        looks.gates.into_iter().find(|look| *look.name == *gate).expect("the gate is there")
    }

    async fn in_use(&self, gate: &str) -> u32 {
        self.look(gate).await.gate.in_use
    }

    async fn the_queue(&self, name: &str) -> Queue {
        self.store.queue(name).await.unwrap().expect("the queue is there")
    }

    async fn the_key(&self, key: &str) -> FlowKey {
        self.store.flow_key(key, time(START + 1_000_000)).await.unwrap().expect("the key is there")
    }

    async fn set_parallelism(&self, queue: &str, parallelism: u32) {
        let now = time(START);
        assert!(self.store.upsert_queue(queue, Some(parallelism), None, None, now).await.unwrap());
    }
}

fn waiting_ids(look: &GateSnapshot) -> Vec<MessageId> {
    look.waiting.iter().map(|one| one.id.clone()).collect()
}

pub(crate) async fn a_queue_gives_its_messages_in_order(world: World) {
    // Delayed messages take their place by the time at which they are due.
    let later = world.put_message(Message { due_at: time(FUTURE), ..queued(world.message(), "q") }).await;
    let second = world.enqueue("q").await;
    let batch: Vec<_> =
        world.messages(3).into_iter().map(|message| waiting(queued(message, "q"), "a")).collect();
    world.accept(&batch).await;
    let message = world.message();
    let first = world
        .put_message(Message { due_at: time(message.created_at.as_millis() + 1), ..queued(message, "q") })
        .await;
    world.set_parallelism("q", 50).await;
    let mut expected = vec![first, second];
    expected.extend(batch.iter().map(|accept| accept.message.id.clone()));
    let look = world.look("q:q").await;
    let mut all = expected.clone();
    all.push(later);
    assert_eq!((waiting_ids(&look), look.waiting[5].due_at), (all, time(FUTURE)));
    assert_eq!(ids(&world.take("q:q", 1).await), expected);
    assert!(world.take("q:q", 2).await.is_empty());
    assert!(world.store.snapshot_gates(&[Arc::from("q:other")], MANY).await.unwrap().gates.is_empty());
}

pub(crate) async fn a_queue_has_one_slot_unless_told_otherwise(world: World) {
    let mut expected = Vec::new();
    for _ in 0..4 {
        expected.push(world.enqueue("q").await);
    }
    let look = world.look("q:q").await;
    assert_eq!((look.gate.limits.parallelism, look.gate.in_use), (Some(1), 0));
    assert_eq!(waiting_ids(&look), expected, "the next one and some behind it");
    let first = world.take_one("q:q", 1).await;
    assert_eq!(first.id, expected[0]);
    assert_eq!(waiting_ids(&world.look("q:q").await), expected[1..]);
    let slot = first.slot.clone().expect("it has a slot");
    assert_eq!((&*slot.queue, &slot.holder), ("q:q", &first.id));
    assert!(world.take("q:q", 2).await.is_empty());
    world.set_parallelism("q", 2).await;
    let second = world.take_one("q:q", 3).await;
    world.set_parallelism("q", 1).await;
    assert_eq!(world.in_use("q:q").await, 2);
    assert_eq!(world.finish(first.delivered()).await, Applied::Yes);
    assert!(world.take("q:q", 4).await.is_empty());
    assert_eq!(world.finish(second.failed("1-1")).await, Applied::Yes);
    assert_eq!(world.take_one("q:q", 5).await.id, expected[2]);
}

pub(crate) async fn what_waits_at_a_gate_is_claimed_only_there(world: World) {
    let queued = world.enqueue("q").await;
    world.put_message(under(world.message(), "k", 1, 0)).await;
    assert!(world.nothing_waits().await);
    assert_eq!(world.store.due_lanes(10, "").await.unwrap().lanes, [""; 0]);
    assert!(world.claim("a", 1).await.is_empty());
    let held = world.take_one("q:q", 2).await;
    assert_eq!(held.id, queued);
    assert_eq!(world.store.release(NODE, &[(held.id.clone(), held.lease)]).await.unwrap(), 1);
    assert!(world.claim("a", 3).await.is_empty());
    assert!(world.nothing_waits().await);
}

pub(crate) async fn a_retry_keeps_its_slot(world: World) {
    let id = world.enqueue("q").await;
    let behind = world.enqueue("q").await;
    let held = world.take_one("q:q", 1).await;
    assert_eq!(world.finish(held.retry_at(START)).await, Applied::Yes);
    let look = world.look("q:q").await;
    assert_eq!((look.gate.in_use, waiting_ids(&look)), (1, vec![id.clone(), behind.clone()]));
    assert_eq!((look.waiting[0].holds_slot, look.waiting[0].due_at), (true, time(START)));
    let taken = world.take("q:q", 2).await;
    assert_eq!((ids(&taken), taken[0].retried, &taken[0].slot), (vec![id.clone()], 1, &held.slot));
    // While it waits, nobody else goes, unless there is another slot.
    assert_eq!(world.finish(Held::from(&taken[0]).retry_at(FUTURE)).await, Applied::Yes);
    assert!(world.take("q:q", 3).await.is_empty());
    assert_eq!(world.look("q:q").await.waiting[0].due_at, time(FUTURE));
    world.set_parallelism("q", 2).await;
    assert_eq!(world.take_one("q:q", 4).await.id, behind);
    // A cancel gives the slot back.
    assert_eq!(world.in_use("q:q").await, 2);
    assert_eq!(world.store.cancel(&id, time(START)).await.unwrap(), Cancellation::Cancelled);
    assert_eq!(world.in_use("q:q").await, 1);
}

pub(crate) async fn a_lease_that_is_lost_keeps_its_slot(world: World) {
    let id = world.enqueue("q").await;
    world.enqueue("q").await;
    world.take_one("q:q", 1).await;
    assert_eq!(world.store.reconcile(NODE, &[], LATEST).await.unwrap(), 1);
    let look = world.look("q:q").await;
    assert_eq!((look.gate.in_use, look.waiting[0].holds_slot), (1, true));
    let taken = world.take("q:q", 2).await;
    assert_eq!((ids(&taken), taken[0].claims), (vec![id], 2));
}

pub(crate) async fn callbacks_keep_the_slot(world: World) {
    world.enqueue("q").await;
    let behind = world.enqueue("q").await;
    let held = world.take_one("q:q", 1).await;
    let (waits, runs) = (world.message(), world.message());
    let ended = with_callback(held.delivered(), waits.clone(), "cb", None);
    let ended = with_callback(ended, runs.clone(), "cb", Some(2));
    assert_eq!(world.finish(ended).await, Applied::Yes);
    assert_eq!(world.in_use("q:q").await, 1, "both of them share their source's slot");
    assert!(world.take("q:q", 3).await.is_empty());
    let runs = Held { id: runs.id, lease: Lease(2), retried: 0, slot: held.slot.clone() };
    assert_eq!(world.finish(runs.retry_at(START)).await, Applied::Yes);
    let callbacks = world.claim("cb", 4).await;
    assert_eq!(callbacks.len(), 2);
    assert!(callbacks.iter().all(|delivery| delivery.slot == held.slot));
    let mut callbacks: Vec<Held> = callbacks.iter().map(Held::from).collect();
    callbacks.sort_by_key(|held| held.id == runs.id);
    // A callback's own callback keeps it too.
    let nested = with_callback(callbacks[0].failed("1-1"), world.message(), "cb", Some(5));
    let nested_id = nested.finish.callbacks().next().expect("a callback").id.clone();
    assert_eq!(world.finish(nested).await, Applied::Yes);
    assert_eq!(world.finish(callbacks[1].delivered()).await, Applied::Yes);
    assert_eq!(world.in_use("q:q").await, 1);
    assert!(world.take("q:q", 6).await.is_empty());
    let nested = Held { id: nested_id, lease: Lease(5), retried: 0, slot: held.slot.clone() };
    assert_eq!(world.finish(nested.delivered()).await, Applied::Yes);
    assert_eq!(world.take_one("q:q", 7).await.id, behind);
}

pub(crate) async fn a_slot_goes_to_the_next_message(world: World) {
    let mut expected = Vec::new();
    for _ in 0..6 {
        expected.push(world.enqueue("q").await);
    }
    let passed = |applied: Applied| match applied {
        Applied::PassedOn(next) => *next,
        other => panic!("{other:?}"),
    };
    let first = world.take_one("q:q", 1).await;
    let next = passed(world.finish(passing(first.delivered(), "a", 2)).await);
    assert_eq!((&next.message.id, next.lease, next.claims, next.retried), (&expected[1], Lease(2), 1, 0));
    let slot = Slot { queue: Arc::from("q:q"), holder: expected[1].clone() };
    assert_eq!((&next.slot, &next.flow, &*next.lane), (&Some(slot), &None, "a"));
    assert_eq!(next.message, Arc::new(world.store.message(&expected[1]).await.unwrap().unwrap()));
    let look = world.look("q:q").await;
    assert_eq!((look.gate.in_use, waiting_ids(&look)), (1, expected[2..].to_vec()));
    assert_eq!(world.finish(passing(first.delivered(), "a", 3)).await, Applied::No, "it has gone");
    // A retry keeps the slot. What fails passes it on as well.
    let second = Held::from(&next);
    assert_eq!(world.finish(passing(second.retry_at(START), "a", 4)).await, Applied::Yes);
    let second = world.take_one("q:q", 5).await;
    assert_eq!(second.id, expected[1]);
    let next = passed(world.finish(passing(second.failed("1-1"), "a", 6)).await);
    assert_eq!(next.message.id, expected[2]);
    // A callback keeps it, and passes it on when it is the last one.
    let third = Held::from(&next);
    let ended = with_callback(third.delivered(), world.message(), "cb", Some(7));
    let ended = with_callback(ended, world.message(), "cb", Some(7));
    let held = |index: usize| {
        let id = ended.finish.callbacks().nth(index).expect("a callback").id.clone();
        Held { id, lease: Lease(7), retried: 0, slot: third.slot.clone() }
    };
    let callbacks = [held(0), held(1)];
    assert_eq!(world.finish(passing(ended.clone(), "a", 8)).await, Applied::Yes);
    assert_eq!(world.finish(passing(callbacks[1].delivered(), "a", 9)).await, Applied::Yes);
    let next = passed(world.finish(passing(callbacks[0].delivered(), "a", 10)).await);
    assert_eq!(next.message.id, expected[3]);
    // A cancelled message passes it on, too.
    let fourth = Held::from(&next);
    assert_eq!(world.store.cancel(&fourth.id, time(START)).await.unwrap(), Cancellation::Requested);
    let next = passed(world.finish(passing(fourth.cancelled(), "a", 11)).await);
    assert_eq!(next.message.id, expected[4]);
    // One that was cancelled while it waited is skipped.
    assert_eq!(world.store.cancel(&expected[5], time(START)).await.unwrap(), Cancellation::Cancelled);
    assert_eq!(world.finish(passing(Held::from(&next).delivered(), "a", 12)).await, Applied::Yes);
    assert_eq!(world.in_use("q:q").await, 0);
}

pub(crate) async fn a_slot_is_left_to_a_claim_where_the_next_message_may_not_go(world: World) {
    let now = time(START);
    let mut lease = 0;
    let mut ends_one = async |pass: &dyn Fn(Ended) -> Ended| {
        lease += 1;
        let held = world.take_one("q:q", lease).await;
        let applied = world.finish(pass(held.delivered())).await;
        matches!(applied, Applied::PassedOn(_))
    };
    let to = |lane: &'static str| move |ended| passing(ended, lane, 100);
    world.enqueue("q").await;
    assert!(!ends_one(&to("a")).await, "there is none");
    for _ in 0..4 {
        world.enqueue("q").await;
    }
    assert!(!ends_one(&to("b")).await, "it goes elsewhere");
    let small = |ended| {
        let mut ended = passing(ended, "a", 100);
        ended.pass_on.as_mut().unwrap().room = 1;
        ended
    };
    assert!(!ends_one(&small).await, "it is too large");
    assert!(!ends_one(&|ended| ended).await, "nobody wants it");
    let last = world.take_one("q:q", 50).await;
    world.put_message(under(queued(world.message(), "q"), "k", 9, 0)).await;
    world.enqueue("q").await;
    assert_eq!(
        world.finish(passing(last.delivered(), "a", 100)).await,
        Applied::Yes,
        "its key must admit it"
    );
    let keyed = world.take_one("q:q", 51).await;
    assert!(world.store.pause_queue("q", true, now).await.unwrap());
    assert_eq!(world.finish(passing(keyed.delivered(), "a", 100)).await, Applied::Yes, "the queue is paused");
    assert!(world.store.pause_queue("q", false, now).await.unwrap());
    world.put_message(Message { due_at: time(FUTURE), ..queued(world.message(), "q") }).await;
    assert!(!ends_one(&to("a")).await, "it is not due");
}

pub(crate) async fn slots_are_passed_on_one_by_one_and_not_beyond_the_parallelism(world: World) {
    world.set_parallelism("q", 3).await;
    let mut expected = Vec::new();
    for _ in 0..9 {
        expected.push(world.enqueue("q").await);
    }
    let held: Vec<Held> = world.take("q:q", 1).await.iter().map(Held::from).collect();
    let finish = async |ends: Vec<Ended>| {
        let next = |applied| match applied {
            Applied::PassedOn(next) => Some(next.message.id.clone()),
            Applied::Yes => None,
            Applied::No => panic!("the lease holds"),
        };
        world.store.finish(NODE, &ends).await.unwrap().into_iter().map(next).collect::<Vec<_>>()
    };
    // The end of the earliest message of a batch passes on.
    let both = vec![passing(held[1].delivered(), "a", 2), passing(held[0].delivered(), "a", 2)];
    assert_eq!(finish(both).await, [None, Some(expected[3].clone())]);
    assert_eq!(world.in_use("q:q").await, 2);
    // One whose callback has its slot doesn't; the other one of the batch does.
    let fourth = Held {
        id: expected[3].clone(),
        slot: Some(Slot { queue: Arc::from("q:q"), holder: expected[3].clone() }),
        ..held[0].with_lease(2)
    };
    let kept = with_callback(passing(held[2].delivered(), "a", 3), world.message(), "cb", None);
    assert_eq!(
        finish(vec![kept, passing(fourth.delivered(), "a", 3)]).await,
        [None, Some(expected[4].clone())]
    );
    assert_eq!(world.in_use("q:q").await, 2);
    // There are more slots in use than there may be.
    let fifth = Held {
        id: expected[4].clone(),
        slot: Some(Slot { queue: Arc::from("q:q"), holder: expected[4].clone() }),
        ..held[0].with_lease(3)
    };
    world.set_parallelism("q", 1).await;
    assert_eq!(finish(vec![passing(fifth.delivered(), "a", 4)]).await, [None]);
    assert_eq!(world.in_use("q:q").await, 1);
}

pub(crate) async fn a_removed_queue_passes_nothing_on(world: World) {
    world.enqueue("q").await;
    let held = world.take_one("q:q", 1).await;
    assert!(world.store.remove_queue("q", time(START)).await.unwrap().done);
    // Another one of the same name.
    world.enqueue("q").await;
    assert_eq!(world.finish(passing(held.delivered(), "a", 2)).await, Applied::Yes);
    assert_eq!(world.in_use("q:q").await, 0);
}

pub(crate) async fn a_callback_of_a_failed_attempt_needs_no_slot_of_its_own(world: World) {
    world.enqueue("q").await;
    let held = world.take_one("q:q", 1).await;
    let ended = with_callback(held.retry_at(START), world.message(), "cb", Some(2));
    assert_eq!(world.finish(ended).await, Applied::Yes);
    assert_eq!(world.in_use("q:q").await, 1);
    assert_eq!(world.take_one("q:q", 3).await.id, held.id, "its own retry doesn't wait for it");
}

pub(crate) async fn a_callback_may_have_a_key_of_its_own(world: World) {
    world.enqueue("q").await;
    let held = world.take_one("q:q", 1).await;
    let callback = under(world.message(), "k", 1, 0);
    let ended = with_callback(held.delivered(), callback.clone(), "cb", None);
    assert_eq!(world.finish(ended).await, Applied::Yes);
    assert!(world.claim("cb", 2).await.is_empty());
    let callback = world.take_one("f:k", 3).await;
    assert_eq!(callback.slot, held.slot);
    assert_eq!((world.in_use("q:q").await, world.in_use("f:k").await), (1, 1));
    assert_eq!(world.finish(callback.delivered()).await, Applied::Yes);
    assert_eq!((world.in_use("q:q").await, world.in_use("f:k").await), (0, 0));
}

pub(crate) async fn a_key_counts_what_is_in_flight(world: World) {
    let mut expected = Vec::new();
    for _ in 0..4 {
        expected.push(world.put_message(under(world.message(), "k", 2, 0)).await);
    }
    let taken = world.take("f:k", 1).await;
    assert_eq!(ids(&taken), expected[..2]);
    assert_eq!(taken[0].flow.as_deref(), Some("f:k"));
    assert_eq!(taken[0].slot, None);
    assert!(world.take("f:k", 2).await.is_empty());
    let key = world.the_key("k").await;
    assert_eq!((key.waiting, key.in_flight), (2, 2));
    // Waiting for a retry holds nothing, and the retry waits behind the others by its time.
    let retried = Held::from(&taken[0]);
    assert_eq!(world.finish(retried.retry_at(FUTURE)).await, Applied::Yes);
    let third = world.take_one("f:k", 3).await;
    assert_eq!(third.id, expected[2]);
    assert_eq!(world.finish(third.delivered()).await, Applied::Yes);
    let look = world.look("f:k").await;
    assert_eq!(waiting_ids(&look), [expected[3].clone(), retried.id]);
    // What is freed counts no more.
    assert_eq!(world.in_use("f:k").await, 1);
    assert_eq!(world.store.reconcile(NODE, &[], LATEST).await.unwrap(), 1);
    assert_eq!(world.in_use("f:k").await, 0);
    assert_eq!(world.take("f:k", 4).await.len(), 2);
}

pub(crate) async fn starts_are_kept_with_the_gate(world: World) {
    world.put_message(under(world.message(), "k", 0, 5)).await;
    let look = world.look("f:k").await;
    let rate = Rate { count: 5, period_s: 60 };
    assert_eq!(look.gate.limits, Limits { parallelism: None, rate: Some(rate) });
    let mut starts = Starts::default();
    starts.add(rate, 3, time(START), Duration::ZERO);
    starts.add(rate, 2, time(START + 20_000), Duration::ZERO);
    let steps = [GateStep { starts: starts.clone(), ..step(&look) }];
    world.store.pass_gates(NODE, Lease(1), &steps, &[], time(START)).await.unwrap();
    assert_eq!(world.look("f:k").await.gate.starts, starts);
    assert_eq!(world.the_key("k").await.starts, starts);
    assert!(world.store.change_flow_key("k", &FlowChange::ResetRate, time(START)).await.unwrap());
    assert_eq!(world.look("f:k").await.gate.starts, Starts::default());
}

pub(crate) async fn what_changed_since_the_look_is_not_passed(world: World) {
    let id = world.enqueue("q").await;
    let looks = world.store.snapshot_gates(&[Arc::from("q:q")], MANY).await.unwrap();
    let (steps, passes) = decide(&looks.gates, "q:q", looks.now);
    assert_eq!(passes.len(), 1);
    let pass = async |lease: i64| {
        ids(&world.store.pass_gates(NODE, Lease(lease), &steps, &passes, time(START)).await.unwrap())
    };
    // Somebody has paused it meanwhile.
    assert!(world.store.pause_queue("q", true, time(START)).await.unwrap());
    assert_eq!(pass(1).await, []);
    assert!(waiting_ids(&world.look("q:q").await).is_empty(), "nothing waits at a paused gate");
    assert!(world.store.pause_queue("q", false, time(START)).await.unwrap());
    // Or has taken it, and given it back.
    let held = world.take_one("q:q", 2).await;
    assert_eq!(pass(3).await, []);
    assert_eq!(world.store.release(NODE, &[(held.id, held.lease)]).await.unwrap(), 1);
    assert_eq!(pass(4).await, []);
    assert_eq!(world.take_one("q:q", 5).await.id, id);
}

pub(crate) async fn nobody_goes_past_one_that_is_gone(world: World) {
    for (gate, goes_on) in [("q:q", false), ("f:k", true)] {
        let mut members = Vec::new();
        for _ in 0..3 {
            let message = world.message();
            let member = if goes_on { under(message, "k", 9, 0) } else { queued(message, "q") };
            members.push(world.put_message(member).await);
        }
        world.set_parallelism("q", 9).await;
        let looks = world.store.snapshot_gates(&[Arc::from(gate)], MANY).await.unwrap();
        let (steps, passes) = decide(&looks.gates, gate, looks.now);
        assert_eq!(passes.len(), 3);
        assert_eq!(world.store.cancel(&members[1], time(START)).await.unwrap(), Cancellation::Cancelled);
        let passed = world.store.pass_gates(NODE, Lease(1), &steps, &passes, time(START)).await.unwrap();
        let mut passed = ids(&passed);
        passed.sort();
        let expected: &[usize] = if goes_on { &[0, 2] } else { &[0] };
        let expected: Vec<_> = expected.iter().map(|index| members[*index].clone()).collect();
        assert_eq!(passed, expected);
    }
}

pub(crate) async fn both_gates_must_be_as_they_were(world: World) {
    let id = world.put_message(under(queued(world.message(), "q"), "k", 1, 0)).await;
    let looks = world.store.snapshot_gates(&[Arc::from("q:q")], MANY).await.unwrap();
    let names: Vec<&str> = looks.gates.iter().map(|look| &*look.name).collect();
    assert_eq!(names, ["q:q", "f:k"]);
    assert_eq!(looks.gates[0].waiting[0].flow.as_deref(), Some("f:k"));
    assert!(looks.gates[1].waiting.is_empty());
    let (steps, passes) = decide(&looks.gates, "q:q", looks.now);
    assert!(world.store.change_flow_key("k", &FlowChange::Pause, time(START)).await.unwrap());
    let passed = world.store.pass_gates(NODE, Lease(1), &steps, &passes, time(START)).await.unwrap();
    assert_eq!(ids(&passed), []);
    assert!(world.take("q:q", 2).await.is_empty(), "the key is paused");
    assert!(world.store.change_flow_key("k", &FlowChange::Resume, time(START)).await.unwrap());
    let held = world.take_one("q:q", 3).await;
    assert_eq!(held.id, id);
    assert_eq!((world.in_use("q:q").await, world.in_use("f:k").await), (1, 1));
    // The slot stays while it waits for a retry, the attempt in flight is over.
    assert_eq!(world.finish(held.retry_at(START)).await, Applied::Yes);
    assert_eq!((world.in_use("q:q").await, world.in_use("f:k").await), (1, 0));
    assert_eq!(world.take_one("q:q", 4).await.id, id);
}

/// Names of gates and what they let through come whole through every statement that is for several of them.
pub(crate) async fn many_gates_take_one_step(world: World) {
    let names = [r#"a"b"#, r"c\d", "e'f", "ü\u{1f600}", "[1,2]", "g h"];
    let mut batch = Vec::new();
    for name in names {
        batch.push(queued(world.message(), name));
        batch.push(under(world.message(), name, 2, 7));
        batch.push(under(queued(world.message(), name), name, 2, 7));
    }
    let batch: Vec<_> = batch.into_iter().map(|message| waiting(message, "a")).collect();
    world.accept(&batch).await;
    assert!(world.store.pause_queue("g h", true, time(START)).await.unwrap());
    let gates = names.iter().flat_map(|name| [queue_gate(name), flow_gate(name)]);
    let mut gates: Vec<Arc<str>> = gates.map(Arc::from).collect();
    gates.push(Arc::from("q:none"));
    let looks = world.store.snapshot_gates(&gates, MANY).await.unwrap();
    gates.pop();
    let mut seen: Vec<Arc<str>> = looks.gates.iter().map(|look| Arc::clone(&look.name)).collect();
    seen.sort();
    gates.sort();
    assert_eq!(seen, gates);
    for look in &looks.gates {
        let waiting = match (&*look.name, is_queue(&look.name)) {
            ("q:g h", _) => 0,
            (_, true) => 2,
            (_, false) => 1,
        };
        assert_eq!(look.waiting.len(), waiting, "{}", look.name);
    }
    let mut passes = Vec::new();
    for gate in &gates {
        passes.extend(decide(&looks.gates, gate, looks.now).1);
    }
    // One of them has changed since.
    assert!(world.store.pause_queue("e'f", true, time(START)).await.unwrap());
    let then = time(START + 50_000_000);
    let steps: Vec<GateStep> =
        looks.gates.iter().map(|look| GateStep { next_at: Some(then), ..step(look) }).collect();
    let passed = world.store.pass_gates(NODE, Lease(1), &steps, &passes, then).await.unwrap();
    let of = |kept: fn(usize) -> bool| {
        let all = batch.iter().enumerate().filter(|(index, _)| kept(*index));
        let mut ids: Vec<MessageId> = all.map(|(_, accept)| accept.message.id.clone()).collect();
        ids.sort();
        ids
    };
    let mut ids = ids(&passed);
    ids.sort();
    // The first of each queue, and each key's own; not those of the queues that are paused.
    assert_eq!(ids, of(|index| index % 3 == 1 || (index % 3 == 0 && ![6, 15].contains(&index))));
    for delivery in &passed {
        let queue = delivery.message.queue.as_deref().map(queue_gate);
        assert_eq!(delivery.slot.as_ref().map(|slot| slot.queue.to_string()), queue);
    }
    let resting: Vec<(Arc<str>, _)> = gates.iter().map(|gate| (Arc::clone(gate), then)).collect();
    world.store.rest_gates(&resting).await.unwrap();
    let held: Vec<Held> = passed.iter().map(Held::from).collect();
    for held in held {
        assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    }
    world.store.rest_gates(&resting).await.unwrap();
    let looks = world.store.snapshot_gates(&gates, MANY).await.unwrap();
    for look in looks.gates {
        let waits = is_queue(&look.name) && !["q:g h", "q:e'f"].contains(&&*look.name);
        assert_eq!(look.next_at.is_some(), waits, "{}", look.name);
        assert_eq!(look.gate.in_use, 0);
    }
}

pub(crate) async fn repeats_at_gates_store_nothing_twice(world: World) {
    let batch = [
        waiting(queued(world.message(), "q"), "a"),
        waiting(under(world.message(), "k", 1, 0), "a"),
        waiting(world.message(), "a"),
    ];
    world.accept(&batch[..2]).await;
    let held = world.take_one("q:q", 1).await;
    assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    assert!(world.store.remove_queue("q", time(START)).await.unwrap().done);
    world.put_message(under(world.message(), "k", 3, 0)).await;
    let again = world.store.accept(NODE, &batch, Repeat::Again).await.unwrap();
    assert_eq!(again, vec![Accepted::Stored; 3]);
    assert!(world.store.queues(None, 100).await.unwrap().items.is_empty(), "it is removed");
    assert_eq!(world.the_key("k").await.control.limits.parallelism, Some(3));
    assert!(world.take("q:q", 2).await.is_empty());
    assert_eq!(world.take("f:k", 3).await.len(), 2);
    assert_eq!(world.claim("a", 4).await.len(), 1);
}

pub(crate) async fn a_dead_letter_goes_back_through_its_gates(world: World) {
    world.put_message(under(queued(world.message(), "q"), "k", 1, 0)).await;
    let held = world.take_one("q:q", 1).await;
    assert_eq!(world.finish(held.failed("1-1")).await, Applied::Yes);
    let letter = DeadLetterId::new("1-1");
    let message = world.store.dead_letter(&letter).await.unwrap().unwrap().message;
    let id = world.message().id;
    let accept = waiting(Message { id: id.clone(), ..message }, "a");
    let retried = world.store.retry_dead_letters(&[(letter, accept)], Missing::Refuse).await.unwrap();
    assert_eq!(retried, [true]);
    assert!(world.claim("a", 2).await.is_empty());
    assert_eq!(world.take_one("q:q", 3).await.id, id);
}

pub(crate) async fn queues_are_made_changed_and_listed(world: World) {
    let store = &world.store;
    assert!(store.queues(None, 100).await.unwrap().items.is_empty());
    assert_eq!(store.queue("q").await.unwrap(), None);
    assert!(!store.pause_queue("q", true, time(START)).await.unwrap());
    let upsert = async |name: &str, parallelism, paused, max, ms: i64| {
        store.upsert_queue(name, parallelism, paused, max, time(START + ms)).await.unwrap()
    };
    assert!(upsert("q", None, None, None, 1).await);
    let expected = Queue {
        name: "q".to_owned(),
        created_at: time(START + 1),
        updated_at: time(START + 1),
        parallelism: 1,
        paused: false,
        lag: 0,
    };
    assert_eq!(world.the_queue("q").await, expected);
    assert!(upsert("q", Some(7), None, None, 2).await);
    assert!(upsert("q", None, Some(true), None, 3).await);
    let expected = Queue { updated_at: time(START + 3), parallelism: 7, paused: true, ..expected };
    assert_eq!(world.the_queue("q").await, expected);
    for (paused, updated) in [(true, 3), (false, 5), (false, 5)] {
        assert!(store.pause_queue("q", paused, time(START + 5)).await.unwrap());
        let queue = world.the_queue("q").await;
        assert_eq!((queue.paused, queue.updated_at), (paused, time(START + updated)));
    }
    // Accepting leaves the settings alone, and makes a queue that is missing.
    for queue in ["q", "q", "p"] {
        world.enqueue(queue).await;
    }
    world.put_message(Message { due_at: time(FUTURE), ..queued(world.message(), "q") }).await;
    let held = world.take("q:q", 1).await;
    assert_eq!(held.len(), 2);
    assert_eq!(world.the_queue("q").await.lag, 3, "waiting, delayed or in flight");
    assert_eq!(world.finish(Held::from(&held[0]).delivered()).await, Applied::Yes);
    assert_eq!(world.finish(Held::from(&held[1]).retry_at(FUTURE)).await, Applied::Yes);
    let queues: Vec<_> = store.queues(None, 100).await.unwrap().items;
    let shown: Vec<_> =
        queues.iter().map(|queue| (queue.name.as_str(), queue.parallelism, queue.lag)).collect();
    assert_eq!(shown, [("p", 1, 1), ("q", 7, 2)]);
    // A limit on their number is one on new ones.
    assert!(upsert("q", None, None, Some(2), 9).await);
    assert!(!upsert("r", None, None, Some(2), 9).await);
    assert_eq!(store.queue("r").await.unwrap(), None);
    assert!(store.may_use_queue("p", 2).await.unwrap() && !store.may_use_queue("r", 2).await.unwrap());
    assert!(upsert("r", None, None, Some(3), 9).await);
}

pub(crate) async fn messages_make_no_more_queues_than_there_may_be(world: World) {
    const REFUSED: Accepted = Accepted::Refused(Refusal::TooManyQueues(MAX_QUEUES));
    let refused = |error: &StoreError| matches!(error, StoreError::TooManyQueues(MAX_QUEUES));
    let mut accepts = tokio::task::JoinSet::new();
    for number in 0..2 * MAX_QUEUES {
        let (store, message) = (Arc::clone(&world.store), queued(world.message(), &format!("q{number}")));
        accepts.spawn(async move {
            let id = message.id.clone();
            let accepted = store.accept(NODE, &[waiting(message, "a")], Repeat::First).await.unwrap();
            (id, accepted[0].clone())
        });
    }
    let mut stored = 0;
    for (id, result) in accepts.join_all().await {
        let found = world.store.message(&id).await.unwrap();
        assert_eq!(found.is_some(), result == Accepted::Stored);
        stored += u32::from(result == Accepted::Stored);
        assert!(matches!(result, Accepted::Stored | REFUSED), "{result:?}");
    }
    assert_eq!(stored, MAX_QUEUES);
    let queues = world.store.queues(None, 100).await.unwrap().items;
    assert_eq!(queues.len(), MAX_QUEUES as usize);

    // What was asked for together is refused together; what needs no new queue goes, and what others ask for.
    let there = || waiting(queued(world.message(), &queues[0].name), "a");
    let new = || waiting(queued(world.message(), "new"), "a");
    let of = |request, accept| Accept { request, ..accept };
    let batch = [of(0, there()), of(1, there()), of(1, new()), of(2, new()), of(3, there())];
    let results = [Accepted::Stored, REFUSED, REFUSED, REFUSED, Accepted::Stored];
    assert_eq!(world.accept(&batch).await, results);
    for (accept, result) in batch.iter().zip(results) {
        let found = world.store.message(&accept.message.id).await.unwrap();
        assert_eq!(found.is_some(), result == Accepted::Stored);
    }

    let held = world.publish_leased("a", 1).await;
    assert_eq!(world.finish(held.failed("1-1")).await, Applied::Yes);
    let letter = DeadLetterId::new("1-1");
    let retry = [(letter.clone(), waiting(queued(world.message(), "new"), "a"))];
    for missing in [Missing::Refuse, Missing::Skip] {
        assert!(refused(&world.store.retry_dead_letters(&retry, missing).await.unwrap_err()));
    }
    assert!(world.store.dead_letter(&letter).await.unwrap().is_some());
    let due = schedule("s", 1);
    assert!(world.store.put_schedule(&due, None).await.unwrap());
    let slot = run(&due, FUTURE, &[queued(world.message(), "new")]);
    assert!(refused(&world.store.fire(&slot).await.unwrap_err()));
    assert_eq!(world.store.schedule(&due.id).await.unwrap(), Some(due));

    assert!(world.store.remove_queue(&queues[0].name, time(START)).await.unwrap().done);
    assert_eq!(world.store.retry_dead_letters(&retry, Missing::Refuse).await.unwrap(), [true]);
    assert!(world.store.fire(&slot).await.unwrap(), "the queue is there");
}

pub(crate) async fn a_removed_queue_takes_its_messages_along(world: World) {
    let store = &world.store;
    let removed = store.remove_queue("q", time(START)).await.unwrap();
    assert!(removed.done && removed.requested.is_empty(), "there is none");
    let mut members = Vec::new();
    for _ in 0..4 {
        members.push(world.put_message(under(queued(world.message(), "q"), "k", 9, 0)).await);
    }
    let other = world.enqueue("other").await;
    world.set_parallelism("q", 2).await;
    let held: Vec<Held> = world.take("q:q", 1).await.iter().map(Held::from).collect();
    assert_eq!(held.len(), 2);
    let ended = with_callback(held[0].delivered(), world.message(), "cb", None);
    assert_eq!(world.finish(ended).await, Applied::Yes);
    let removed = store.remove_queue("q", time(START + 900)).await.unwrap();
    assert!(removed.done);
    assert_eq!(removed.requested, [members[1].clone()]);
    assert_eq!(store.queue("q").await.unwrap(), None);
    for id in &members[2..] {
        assert_eq!(world.story(id).await, [State::Created, State::CancelRequested, State::Cancelled]);
    }
    assert_eq!(world.in_use("f:k").await, 1, "it is still in flight");
    // Its callbacks go on, and what was in flight ends wherever it turns up.
    let callbacks = world.claim("cb", 2).await;
    assert_eq!((callbacks.len(), &callbacks[0].slot), (1, &None));
    assert_eq!(store.reconcile(NODE, &[Lease(2)], LATEST).await.unwrap(), 1);
    let again = world.claim("a", 3).await;
    assert_eq!((ids(&again), again[0].cancel_requested), (vec![members[1].clone()], true));
    assert_eq!(
        store.finish_cancelled(NODE, &[(members[1].clone(), Lease(3))], time(START + 950)).await.unwrap(),
        1
    );
    assert_eq!(world.in_use("f:k").await, 0);
    assert_eq!(world.take_one("q:other", 4).await.id, other);
    // A new queue of that name begins anew.
    let fresh = world.enqueue("q").await;
    assert_eq!(world.take_one("q:q", 5).await.id, fresh);
}

pub(crate) async fn a_large_queue_is_removed_in_steps(world: World) {
    for _ in 0..3 {
        let batch: Vec<_> =
            world.messages(250).into_iter().map(|message| waiting(queued(message, "q"), "a")).collect();
        world.accept(&batch).await;
    }
    let mut steps = 1;
    while !world.store.remove_queue("q", time(START)).await.unwrap().done {
        steps += 1;
    }
    assert_eq!(steps, if world.is_model() { 1 } else { 2 });
    assert_eq!(world.store.queue("q").await.unwrap(), None);
}

pub(crate) async fn keys_follow_their_messages_and_their_users(world: World) {
    let store = &world.store;
    let now = time(START + 1_000_000);
    assert_eq!(store.flow_key("k", now).await.unwrap(), None);
    let change =
        async |key: &str, change: FlowChange| store.change_flow_key(key, &change, now).await.unwrap();
    assert!(!change("k", FlowChange::ResetRate).await);
    assert!(!change("k", FlowChange::Unpin { parallelism: true, rate: true }).await);
    world.put_message(under(world.message(), "k", 2, 0)).await;
    let limits = async || {
        let control = world.the_key("k").await.control;
        let rate = control.limits.rate.map(|rate| (rate.count, rate.period_s));
        (control.limits.parallelism, rate, control.pinned_parallelism, control.pinned_rate)
    };
    assert_eq!(limits().await, (Some(2), None, false, false));
    // Two in one batch: the last one counts.
    let batch = [(7, 1), (0, 5)].map(|(most, rate)| waiting(under(world.message(), "k", most, rate), "a"));
    world.accept(&batch).await;
    assert_eq!(limits().await, (None, Some((5, 60)), false, false));
    let pin = Limits { parallelism: Some(3), rate: None };
    assert!(change("k", FlowChange::Pin(pin)).await);
    world.put_message(under(world.message(), "k", 9, 0)).await;
    assert_eq!(limits().await, (Some(3), None, true, false));
    assert!(change("k", FlowChange::Unpin { parallelism: true, rate: false }).await);
    assert_eq!(limits().await, (Some(3), None, false, false));
    world.put_message(under(world.message(), "k", 9, 1)).await;
    assert_eq!(limits().await, (Some(9), Some((1, 60)), false, false));
    world.put_message(Message { due_at: time(FUTURE), ..under(world.message(), "k", 9, 1) }).await;
    let key = world.the_key("k").await;
    assert_eq!((key.key.as_str(), key.waiting, key.in_flight), ("k", 5, 0), "what is delayed has not joined");
    for (key, does) in [("a/b:c", FlowChange::Pause), ("x", FlowChange::Resume), ("y", FlowChange::Pin(pin))]
    {
        assert!(change(key, does).await);
    }
    let keys = async |containing: &str| -> Vec<(String, bool)> {
        let keys = store.flow_keys(containing, None, 100, now).await.unwrap().items;
        keys.into_iter().map(|key| (key.key, key.control.paused)).collect()
    };
    let shown = |key: &str, paused: bool| (key.to_owned(), paused);
    let all = [shown("a/b:c", true), shown("k", false), shown("x", false), shown("y", false)];
    assert_eq!(keys("").await, all);
    assert_eq!(keys("/b").await, all[..1]);
    assert_eq!(keys("f:").await, []);
    assert_eq!(keys("%").await, []);
}

pub(crate) async fn gates_are_looked_at_when_they_are_due(world: World) {
    let store = &world.store;
    let due = async || -> Vec<String> {
        let due = store.due_gates(10).await.unwrap();
        due.gates.iter().map(ToString::to_string).collect()
    };
    assert_eq!((due().await, store.due_gates(10).await.unwrap().next_at), (vec![], None));
    world.put_message(Message { due_at: time(FUTURE + 7), ..queued(world.message(), "q") }).await;
    assert_eq!(store.due_gates(10).await.unwrap().next_at, Some(time(FUTURE + 7)));
    world.enqueue("q").await;
    world.put_message(under(world.message(), "k", 1, 0)).await;
    assert_eq!(due().await, ["q:q", "f:k"], "the longest due first");
    assert_eq!(store.due_gates(1).await.unwrap().gates.len(), 1);
    // A step says when to look again; what is accepted meanwhile leaves that time alone if it is soon.
    let look = world.look("q:q").await;
    let then = time(FUTURE);
    let steps = [GateStep { next_at: Some(then), ..step(&look) }];
    store.pass_gates(NODE, Lease(1), &steps, &[], time(START)).await.unwrap();
    assert_eq!(due().await, ["f:k"]);
    let late = Message { due_at: time(FUTURE - 4000), ..queued(world.message(), "q") };
    world.put_message(late).await;
    assert_eq!(world.look("q:q").await.next_at, Some(then));
    let early = Message { due_at: time(FUTURE - 5001), ..queued(world.message(), "q") };
    world.put_message(early).await;
    assert_eq!(world.look("q:q").await.next_at, Some(time(FUTURE - 5001)));
    store.wake_gates().await.unwrap();
    let mut all = due().await;
    all.sort();
    assert_eq!(all, ["f:k", "q:q"]);
}

pub(crate) async fn a_gate_rests_until_something_is_due(world: World) {
    let store = &world.store;
    let blocked_until = time(FUTURE + 1_000_000);
    let rest = async |gate: &str| {
        store.rest_gates(&[(Arc::from(gate), blocked_until)]).await.unwrap();
        world.look(gate).await.next_at
    };
    let id = world.enqueue("q").await;
    assert_eq!(rest("q:q").await, Some(blocked_until));
    // In flight: there is nothing to look for, but someone might die.
    let held = world.take_one("q:q", 1).await;
    let soon = store.now().await.unwrap().after(Duration::from_mins(2));
    assert!(rest("q:q").await.is_some_and(|at| at < soon));
    world.put_message(Message { due_at: time(FUTURE), ..queued(world.message(), "q") }).await;
    assert!(rest("q:q").await.is_some_and(|at| at < soon));
    assert_eq!(world.finish(held.retry_at(FUTURE - 1)).await, Applied::Yes);
    assert!(rest("q:q").await.is_some_and(|at| at < soon), "its slot is in use");
    assert_eq!(store.cancel(&id, time(START)).await.unwrap(), Cancellation::Cancelled);
    assert_eq!(rest("q:q").await, Some(time(FUTURE)));
    assert!(store.pause_queue("q", true, time(START)).await.unwrap());
    assert_eq!(rest("q:q").await, None);
    world.enqueue("q").await;
    assert_eq!(world.look("q:q").await.next_at, None, "nobody looks at what is paused");
    assert!(store.pause_queue("q", false, time(START)).await.unwrap());
    assert_eq!(world.look("q:q").await.next_at, Some(time(START)));
    // A key without anything rests for good, and wakes with the next message.
    let key = world.put_message(under(world.message(), "k", 1, 0)).await;
    let held = world.take_one("f:k", 2).await;
    assert_eq!(held.id, key);
    assert!(rest("f:k").await.is_some_and(|at| at < soon));
    assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    assert_eq!(rest("f:k").await, None);
    store.wake_gates().await.unwrap();
    assert_eq!(world.look("f:k").await.next_at, None);
    world.put_message(under(world.message(), "k", 1, 0)).await;
    assert!(world.look("f:k").await.next_at.is_some());
}

pub(crate) async fn idle_keys_go_with_the_log(world: World) {
    let store = &world.store;
    for key in ["idle", "waits", "behind", "paused", "pinned"] {
        let message = under(world.message(), key, 1, 0);
        let message = if key == "behind" { queued(message, "q") } else { message };
        let id = world.put_message(message).await;
        if !["waits", "behind"].contains(&key) {
            assert_eq!(store.cancel(&id, time(START)).await.unwrap(), Cancellation::Cancelled);
            store.rest_gates(&[(flow_gate(key).into(), time(FUTURE))]).await.unwrap();
        }
    }
    let now = time(START + 2000);
    assert!(store.change_flow_key("paused", &FlowChange::Pause, now).await.unwrap());
    let pin = FlowChange::Pin(Limits { parallelism: Some(1), rate: None });
    assert!(store.change_flow_key("pinned", &pin, now).await.unwrap());
    for key in ["paused", "pinned"] {
        store.rest_gates(&[(flow_gate(key).into(), time(FUTURE))]).await.unwrap();
    }
    let prune = async |age_ms: u64| {
        let age = Duration::from_millis(age_ms);
        let retention = Retention { log: age, dead_letters: age };
        store.prune(retention, time(START + 10_000), "").await.unwrap();
        let keys = store.flow_keys("", None, 100, time(START)).await.unwrap().items;
        keys.into_iter().map(|key| key.key).collect::<Vec<_>>()
    };
    assert_eq!(prune(10_000).await, ["behind", "idle", "paused", "pinned", "waits"]);
    assert_eq!(prune(9000).await, ["behind", "paused", "pinned", "waits"]);
    assert_eq!(store.queues(None, 100).await.unwrap().items.len(), 1);
    assert_eq!(queue_gate("q"), "q:q");
}
