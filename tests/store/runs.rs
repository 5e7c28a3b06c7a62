//! Scenarios of workflow runs. Each runs on every store.

use std::sync::Arc;

use bytes::Bytes;
use homing::domain::destination;
use homing::domain::id::{InstanceId, MessageId};
use homing::domain::message::{FlowControl, Headers, Message, Options};
use homing::domain::outcome::Effect;
use homing::domain::run::ending::Ending;
use homing::domain::run::waiting::Waiter;
use homing::domain::run::{
    CallType, Entry, Features, Invoker, Kind, NewEntry, NewRun, Part, Run, RunState, Trigger,
};
use homing::store::runs::{Keeps, RunEnded, RunKey, Waits};
use homing::store::{Accept, Accepted, Applied, OnRun, Refusal};

use crate::support::{ANY_SIZE, FUTURE, Held, START, World, time};

/// Where the runs' endpoint is.
pub(crate) const URL: &str = "https://example.com/flow";
pub(crate) const LANE: &str = "https://example.com:443";

/// A message of a run, with its change.
pub(crate) fn of_run(world: &World, instance: &InstanceId, kind: Kind, on_run: Option<OnRun>) -> Accept {
    let part = Part { instance: instance.clone(), kind, log_size: 0 };
    let message = Message { url: URL.to_owned(), run: Some(part), ..world.message() };
    Accept { on_run, ..Accept::waiting(Arc::new(message), destination::lane(URL)) }
}

fn entry(key: Option<&str>, body: &str) -> NewEntry {
    NewEntry {
        call_type: CallType::Step,
        key: key.map(str::to_owned),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

pub(crate) fn append(world: &World, instance: &InstanceId, key: Option<&str>, body: &str) -> Accept {
    of_run(world, instance, Kind::Step, Some(OnRun::Append(entry(key, body))))
}

pub(crate) fn new_run(id: &str) -> NewRun {
    let mut headers = Headers::new();
    headers.append("X-Tenant", "acme");
    let flow_control =
        Some(FlowControl { key: "shop".to_owned(), parallelism: Some(2), rate: None, period_s: 1 });
    NewRun {
        id: id.to_owned(),
        url: URL.to_owned(),
        labels: vec!["one".to_owned(), "two".to_owned()],
        caller_ip: Some("192.0.2.1".to_owned()),
        trigger: Trigger {
            headers,
            max_retries: 5,
            options: Options { flow_control, ..Options::default() },
            features: Features { lazy_fetch: true, detect_trigger: true, ..Features::default() },
        },
        invoker: None,
        payload: Bytes::from_static(b"\x00payload"),
    }
}

/// The accept that begins a run, whose instance is its message's id.
pub(crate) fn beginning(world: &World, new: NewRun) -> (InstanceId, Accept) {
    let accept = of_run(world, &InstanceId::new(""), Kind::Step, Some(OnRun::Begin(Arc::new(new))));
    let mut message = Message::clone(&accept.message);
    let instance = InstanceId::begun_by(&message.id);
    message.run.as_mut().unwrap().instance = instance.clone();
    (instance, Accept { message: Arc::new(message), ..accept })
}

pub(crate) async fn begin(world: &World, id: &str) -> InstanceId {
    let (instance, accept) = beginning(world, new_run(id));
    assert_eq!(world.accept(&[accept]).await, [Accepted::Stored]);
    instance
}

pub(crate) async fn run(world: &World, instance: &InstanceId) -> Run {
    world.store.run(&RunKey::Instance(instance.clone())).await.unwrap().expect("a run")
}

pub(crate) async fn entries(world: &World, instance: &InstanceId) -> Vec<Entry> {
    world.store.run_entries(instance, 0, ANY_SIZE).await.unwrap()
}

pub(crate) async fn keys(world: &World, instance: &InstanceId) -> Vec<String> {
    let entries = entries(world, instance).await;
    let positions: Vec<u32> = entries.iter().map(|entry| entry.position).collect();
    assert_eq!(positions, (0..u32::try_from(entries.len()).unwrap()).collect::<Vec<_>>());
    entries.into_iter().map(|entry| entry.key.unwrap_or_default()).collect()
}

pub(crate) fn ending(instance: &InstanceId, state: RunState, at: i64) -> Ending {
    Ending {
        instance: instance.clone(),
        state,
        at: time(at),
        result: None,
        dead_letter: None,
        failure_callback: None,
        parent: None,
    }
}

/// The deliveries of runs that anybody can claim.
pub(crate) async fn claimable(world: &World, lease: i64) -> Vec<MessageId> {
    crate::support::ids(&world.claim(LANE, lease).await)
}

pub(crate) async fn a_run_begins_with_its_payload(world: World) {
    let new = new_run("wfr_1");
    let (instance, accept) = beginning(&world, new.clone());
    assert_eq!(world.accept(std::slice::from_ref(&accept)).await, [Accepted::Stored]);
    let expected = Run::begun(instance.clone(), accept.message.created_at, new.clone());
    assert_eq!(run(&world, &instance).await, expected);
    assert_eq!(world.store.run(&RunKey::Id("wfr_1".to_owned())).await.unwrap(), Some(expected));
    let expected = Entry {
        position: 0,
        message: accept.message.id.clone(),
        call_type: CallType::Step,
        key: None,
        body: new.payload,
        created_at: accept.message.created_at,
    };
    assert_eq!(entries(&world, &instance).await, [expected]);
    assert_eq!(claimable(&world, 1).await, std::slice::from_ref(&accept.message.id));
    assert_eq!(world.store.run(&RunKey::Id("wfr_2".to_owned())).await.unwrap(), None);
}

pub(crate) async fn a_live_runs_id_is_taken(world: World) {
    let instance = begin(&world, "wfr_1").await;
    let first = MessageId::new(instance.as_str());
    let batch: Vec<Accept> = (0..2).map(|_| beginning(&world, new_run("wfr_1")).1).collect();
    assert_eq!(world.accept(&batch).await, vec![Accepted::Duplicate(first); 2]);
    assert_eq!(world.store.message(&batch[0].message.id).await.unwrap(), None);
    world.store.end_run(&ending(&instance, RunState::Success, START)).await.unwrap();
    let again = begin(&world, "wfr_1").await;
    let found = world.store.run(&RunKey::Id("wfr_1".to_owned())).await.unwrap().expect("the live one");
    assert_eq!(found.instance, again);
    // Two of one batch.
    let pair: Vec<Accept> = (0..2).map(|_| beginning(&world, new_run("wfr_2")).1).collect();
    let results = world.accept(&pair).await;
    assert_eq!(results, [Accepted::Stored, Accepted::Duplicate(pair[0].message.id.clone())]);
}

pub(crate) async fn entries_have_one_order(world: World) {
    let (one, two) = (begin(&world, "wfr_1").await, begin(&world, "wfr_2").await);
    let batch = [
        append(&world, &one, Some("step:0:1"), "a"),
        append(&world, &two, Some("step:1:0"), "b"),
        append(&world, &one, Some("step:0:2"), "c"),
        append(&world, &one, None, "d"),
        append(&world, &one, None, "e"),
    ];
    assert_eq!(world.accept(&batch).await, vec![Accepted::Stored; 5]);
    assert_eq!(world.accept(&[append(&world, &one, Some("step:1:0"), "f")]).await, [Accepted::Stored]);
    assert_eq!(keys(&world, &one).await, ["", "step:0:1", "step:0:2", "", "", "step:1:0"]);
    assert_eq!(keys(&world, &two).await, ["", "step:1:0"]);
    let part = world.store.run_entries(&one, 2, 1).await.unwrap();
    assert_eq!(part.iter().map(|entry| &entry.body[..]).collect::<Vec<_>>(), [b"c"], "about as many bytes");
    let ids: Vec<MessageId> = entries(&world, &one).await.into_iter().map(|entry| entry.message).collect();
    assert_eq!(ids[1], batch[0].message.id);
}

pub(crate) async fn a_repeated_submission_is_recognised(world: World) {
    let (one, two) = (begin(&world, "wfr_1").await, begin(&world, "wfr_2").await);
    let first = append(&world, &one, Some("step:1:0"), "a");
    world.accept(std::slice::from_ref(&first)).await;
    let batch = [
        append(&world, &one, Some("step:1:0"), "another result"),
        append(&world, &two, Some("step:1:0"), "b"),
        append(&world, &two, Some("step:1:0"), "c"),
    ];
    let results = world.accept(&batch).await;
    let expected = [
        Accepted::Duplicate(first.message.id.clone()),
        Accepted::Stored,
        Accepted::Duplicate(batch[1].message.id.clone()),
    ];
    assert_eq!(results, expected);
    assert_eq!(entries(&world, &one).await[1].body, "a", "the first stands");
    assert_eq!(keys(&world, &two).await.len(), 2);
}

pub(crate) async fn a_run_that_has_ended_takes_nothing_more(world: World) {
    let (ended, live) = (begin(&world, "wfr_1").await, begin(&world, "wfr_2").await);
    world.store.end_run(&ending(&ended, RunState::Cancelled, START)).await.unwrap();
    let step = |instance, request| Accept { request, ..append(&world, instance, None, "x") };
    let results = world.accept(&[step(&ended, 0), step(&live, 0), step(&live, 1)]).await;
    let refused = Accepted::Refused(Refusal::RunEnded);
    assert_eq!(results, [refused.clone(), refused, Accepted::Stored], "a request is stored as a whole");
    assert_eq!((keys(&world, &ended).await.len(), keys(&world, &live).await.len()), (1, 2));
    let unknown = step(&InstanceId::new("msg_none"), 0);
    assert_eq!(world.accept(&[unknown]).await, [Accepted::Refused(Refusal::RunEnded)]);
}

pub(crate) async fn a_run_ends_once_and_drops_its_messages(world: World) {
    let instance = begin(&world, "wfr_1").await;
    let leased = world.claim_one(LANE, 1).await;
    world.accept(&[append(&world, &instance, Some("step:1:0"), "a")]).await;
    let result = Bytes::from_static(b"7");
    let end = Ending { result: Some(result.clone()), ..ending(&instance, RunState::Success, START + 50) };
    assert_eq!(world.store.end_run(&end).await.unwrap(), RunEnded::Now { leased: true });
    let again = ending(&instance, RunState::Cancelled, START + 60);
    assert_eq!(world.store.end_run(&again).await.unwrap(), RunEnded::Before);
    let ended = run(&world, &instance).await;
    assert_eq!(ended.state, RunState::Success);
    let end = ended.end.expect("it has ended");
    assert_eq!(
        (end.at, end.result, end.dead_letter, end.telling),
        (time(START + 50), Some(result), None, None)
    );
    assert!(world.nothing_waits().await, "what waits is gone");
    // One that is out makes no further attempt.
    let retry = Held::from(&leased).retry_at(FUTURE);
    assert_eq!(world.finish(retry).await, Applied::No);
    let none = ending(&InstanceId::new("msg_none"), RunState::Success, START);
    assert_eq!(world.store.end_run(&none).await.unwrap(), RunEnded::Before);
}

/// A run that another one's step has invoked.
fn invoked(id: &str, parent: &InstanceId, step_id: u64) -> NewRun {
    let invoker = Invoker {
        instance: parent.clone(),
        run_id: "wfr_parent".to_owned(),
        created_at: time(START),
        url: URL.to_owned(),
        step_id,
        step: format!(r#"{{"stepId":{step_id}}}"#),
        headers: Headers::new(),
    };
    NewRun { invoker: Some(invoker), ..new_run(id) }
}

pub(crate) async fn an_invocation_is_made_once(world: World) {
    let parent = begin(&world, "wfr_parent").await;
    let (child, accept) = beginning(&world, invoked("wfr_child", &parent, 1));
    assert_eq!(world.accept(&[accept]).await, [Accepted::Stored]);
    let duplicate = Accepted::Duplicate(MessageId::new(child.as_str()));
    // By its step, whatever the child's id is, and when it has ended, too.
    for id in ["wfr_child", "wfr_other"] {
        let again = beginning(&world, invoked(id, &parent, 1)).1;
        assert_eq!(world.accept(&[again]).await, std::slice::from_ref(&duplicate));
    }
    world.store.end_run(&ending(&child, RunState::Failed, START)).await.unwrap();
    let again = beginning(&world, invoked("wfr_child", &parent, 1)).1;
    assert_eq!(world.accept(&[again]).await, [duplicate]);
    let (second, accept) = beginning(&world, invoked("wfr_second", &parent, 2));
    assert_eq!(world.accept(&[accept]).await, [Accepted::Stored]);
    // A live run that others have begun.
    let taken = beginning(&world, invoked("wfr_second", &parent, 3)).1;
    assert_eq!(world.accept(&[taken]).await, [Accepted::Refused(Refusal::RunIdTaken)]);
    let children = world.store.children(&parent).await.unwrap();
    assert_eq!(children.iter().map(|run| &run.instance).collect::<Vec<_>>(), [&child, &second]);
    assert_eq!(children[0], run(&world, &child).await);
    world.store.end_run(&ending(&parent, RunState::Cancelled, START)).await.unwrap();
    let late = beginning(&world, invoked("wfr_late", &parent, 4)).1;
    assert_eq!(world.accept(&[late]).await, [Accepted::Refused(Refusal::RunEnded)]);
}

pub(crate) async fn a_parent_is_told_once(world: World) {
    let parent = begin(&world, "wfr_parent").await;
    let (child, accept) = beginning(&world, invoked("wfr_child", &parent, 1));
    world.accept(&[accept]).await;
    let tells = |child: &InstanceId, key| {
        let message = append(&world, &parent, None, "").message;
        Ending {
            parent: Some((message, entry(Some(key), "told"))),
            ..ending(child, RunState::Success, START)
        }
    };
    let first = tells(&child, "invoke:1");
    assert!(matches!(world.store.end_run(&first).await.unwrap(), RunEnded::Now { .. }));
    let again = tells(&child, "invoke:1");
    assert_eq!(world.store.end_run(&again).await.unwrap(), RunEnded::Before);
    assert_eq!(keys(&world, &parent).await, ["", "invoke:1"]);
    let delivered = claimable(&world, 3).await;
    assert!(delivered.contains(&first.parent.as_ref().unwrap().0.id), "{delivered:?}");
    // A parent that has ended has it in its log, and nothing is delivered.
    let (late, accept) = beginning(&world, invoked("wfr_late", &parent, 2));
    world.accept(&[accept]).await;
    world.store.end_run(&ending(&parent, RunState::Failed, START)).await.unwrap();
    let end = tells(&late, "invoke:2");
    assert!(matches!(world.store.end_run(&end).await.unwrap(), RunEnded::Now { .. }));
    assert_eq!(keys(&world, &parent).await, ["", "invoke:1", "invoke:2"]);
    let message = &end.parent.as_ref().unwrap().0.id;
    assert_eq!(world.store.message(message).await.unwrap(), None);
}

fn waiter(world: &World, instance: &InstanceId, step: u64) -> (Waiter, Accept) {
    let timer = of_run(world, instance, Kind::Timeout, None);
    let timer = Accept {
        message: Arc::new(Message { due_at: time(FUTURE), ..Message::clone(&timer.message) }),
        ..timer
    };
    let mut headers = Headers::new();
    headers.append("A", "1");
    let waiter = Waiter {
        instance: instance.clone(),
        key: format!("wait:{step}"),
        event_id: "paid".to_owned(),
        step: format!(r#"{{"stepId":{step}}}"#),
        url: URL.to_owned(),
        headers,
        timeout: "1d".to_owned(),
        deadline: time(FUTURE),
        timeout_url: URL.to_owned(),
        timeout_headers: "{}".to_owned(),
        timer: timer.message.id.clone(),
    };
    (waiter, timer)
}

fn arrival(world: &World, instance: &InstanceId, key: &str) -> (Arc<Message>, NewEntry) {
    (of_run(world, instance, Kind::Step, None).message, entry(Some(key), "came"))
}

pub(crate) async fn a_wait_ends_once(world: World) {
    let (one, two) = (begin(&world, "wfr_1").await, begin(&world, "wfr_2").await);
    let store = &world.store;
    let ((first, timer), (second, other)) = (waiter(&world, &one, 1), waiter(&world, &two, 1));
    assert_eq!(store.wait(&first, &timer).await.unwrap(), Waits::Waiting);
    assert_eq!(store.wait(&second, &other).await.unwrap(), Waits::Waiting);
    let (again, another) = waiter(&world, &one, 1);
    assert_eq!(store.wait(&again, &another).await.unwrap(), Waits::Already);
    assert_eq!(store.waiters("paid", None).await.unwrap(), [first.clone(), second.clone()]);
    assert_eq!(store.waiters("paid", Some(&two)).await.unwrap(), std::slice::from_ref(&second));
    assert_eq!(store.waiters("other", None).await.unwrap(), []);
    assert_eq!(store.run_waiters(&one).await.unwrap(), [first]);
    // By the event, for one of them.
    let ends = [arrival(&world, &one, "wait:1"), arrival(&world, &one, "wait:2")];
    assert_eq!(store.end_waits(&ends).await.unwrap(), [true, false]);
    assert_eq!(store.end_waits(&ends[..1]).await.unwrap(), [false]);
    assert_eq!(keys(&world, &one).await, ["", "wait:1"]);
    assert_eq!(store.run_message(&timer.message.id).await.unwrap().expect("it is kept").pending, None);
    assert_eq!(store.wait(&again, &another).await.unwrap(), Waits::Already, "it has waited");
    // By the run's end, for the other.
    store.end_run(&ending(&two, RunState::Success, START)).await.unwrap();
    assert_eq!(store.waiters("paid", None).await.unwrap(), []);
    assert_eq!(store.end_waits(&[arrival(&world, &two, "wait:1")]).await.unwrap(), [false]);
    let (late, timer) = waiter(&world, &two, 2);
    assert_eq!(store.wait(&late, &timer).await.unwrap(), Waits::Ended);
}

pub(crate) async fn a_deadline_ends_a_wait(world: World) {
    let instance = begin(&world, "wfr_1").await;
    world.claim_one(LANE, 1).await;
    let (waits, timer) = waiter(&world, &instance, 1);
    let due = Message { due_at: time(START), ..Message::clone(&timer.message) };
    let timer = Accept { message: Arc::new(due), ..timer };
    assert_eq!(world.store.wait(&waits, &timer).await.unwrap(), Waits::Waiting);
    let delivery = world.claim_one(LANE, 2).await;
    assert_eq!(delivery.message.id, timer.message.id);
    let (message, entry) = arrival(&world, &instance, "wait:1");
    let mut ended = Held::from(&delivery).delivered();
    Arc::make_mut(&mut ended.finish).effects.push(Effect::TimeOut(Arc::clone(&message), entry));
    assert_eq!(world.finish(ended).await, Applied::Yes);
    assert_eq!(keys(&world, &instance).await, ["", "wait:1"]);
    assert_eq!(world.store.waiters("paid", None).await.unwrap(), []);
    assert_eq!(claimable(&world, 3).await, std::slice::from_ref(&message.id));
    assert_eq!(world.store.end_waits(&[arrival(&world, &instance, "wait:1")]).await.unwrap(), [false]);
}

pub(crate) async fn an_event_is_kept_or_delivered(world: World) {
    let instance = begin(&world, "wfr_1").await;
    let store = &world.store;
    for data in ["1", "2"] {
        let data = Bytes::copy_from_slice(data.as_bytes());
        assert_eq!(store.keep_event(&instance, "paid", &data).await.unwrap(), Keeps::Kept);
    }
    for (step, expected) in [(1, "1"), (2, "2")] {
        let (waits, timer) = waiter(&world, &instance, step);
        let Waits::Kept { number, data } = store.wait(&waits, &timer).await.unwrap() else {
            panic!("no event")
        };
        assert_eq!(data, expected, "first in, first out");
        let (message, entry) = arrival(&world, &instance, &waits.key);
        assert!(store.take_event("paid", number, &message, &entry).await.unwrap());
        let (message, entry) = arrival(&world, &instance, "wait:9");
        assert!(!store.take_event("paid", number, &message, &entry).await.unwrap(), "it is taken");
    }
    assert_eq!(keys(&world, &instance).await, ["", "wait:1", "wait:2"]);
    let (waits, timer) = waiter(&world, &instance, 3);
    assert_eq!(store.wait(&waits, &timer).await.unwrap(), Waits::Waiting);
    let data = Bytes::from_static(b"3");
    assert_eq!(store.keep_event(&instance, "paid", &data).await.unwrap(), Keeps::Waited);
    assert_eq!(store.keep_event(&instance, "other", &data).await.unwrap(), Keeps::Kept);
    store.end_run(&ending(&instance, RunState::Success, START)).await.unwrap();
    assert_eq!(store.keep_event(&instance, "paid", &data).await.unwrap(), Keeps::Ended);
    let (message, entry) = arrival(&world, &instance, "wait:9");
    assert!(!store.take_event("other", 1, &message, &entry).await.unwrap(), "it has ended with its run");
}
