//! Scenarios of workflow runs as they are looked back at: lists, messages, dead letters, new runs in the places of failed
//! ones, and how all of it ends. Each runs on every store.

use std::sync::Arc;
use std::time::Duration;

use homing::domain::filter::MessageFilter;
use homing::domain::id::{DeadLetterId, InstanceId, MessageId};
use homing::domain::message::Message;
use homing::domain::outcome::{Effect, Next};
use homing::domain::run::again::Again;
use homing::domain::run::ending::Ending;
use homing::domain::run::story::{AttemptResult, Pending};
use homing::domain::run::{Kind, NewRun, Run, RunState, Telling, Told, Trigger};
use homing::store::runs::{RunFilter, RunKey};
use homing::store::{
    Accepted, Applied, Cancellation, DeadLetterFilter, Ended, LogFilter, Order, Owner, Retention, State,
    UnfinishedFilter,
};

use crate::runs::{
    LANE, URL, append, begin, beginning, claimable, ending, entries, keys, new_run, of_run, run,
};
use crate::support::{ANY_SIZE, FUTURE, Held, START, World, time};

/// Ends a run by the failure of its first delivery, with somebody to tell; the dead letter, and the message that tells.
async fn fail(world: &World, instance: &InstanceId, letter: &str) -> (DeadLetterId, Arc<Message>) {
    let first = MessageId::new(instance.as_str());
    let delivery =
        world.claim(LANE, 1).await.into_iter().find(|one| one.message.id == first).expect("its first");
    let letter = DeadLetterId::new(letter);
    let callback = of_run(world, instance, Kind::FailureCallback, None).message;
    let mut ended = Held::from(&delivery).failed(letter.as_str());
    let at = ended.finish.attempt.ended_at;
    let ending = Ending {
        dead_letter: Some(letter.clone()),
        failure_callback: Some(Arc::clone(&callback)),
        ..ending(instance, RunState::Failed, at.as_millis())
    };
    Arc::make_mut(&mut ended.finish).effects.push(Effect::End(Box::new(ending)));
    assert_eq!(world.finish(ended).await, Applied::Yes);
    (letter, callback)
}

/// The end of the delivery of the message that tells of a failure.
async fn told(world: &World, instance: &InstanceId, callback: &MessageId, answer: Told) {
    let delivery =
        world.claim(LANE, 2).await.into_iter().find(|one| one.message.id == *callback).expect("it waits");
    let held = Held::from(&delivery);
    let mut ended: Ended = if answer == Told::Failed { held.failed("none") } else { held.delivered() };
    let finish = Arc::make_mut(&mut ended.finish);
    if answer == Told::Failed {
        finish.next = Next::Failed { dead_letter: None };
    }
    let effect = Effect::Told { instance: instance.clone(), message: callback.clone(), answer };
    finish.effects.push(effect);
    assert_eq!(world.finish(ended).await, Applied::Yes);
}

pub(crate) async fn runs_are_listed_and_filtered(world: World) {
    let one = begin(&world, "wfr_1").await;
    let (two, accept) = beginning(
        &world,
        NewRun {
            labels: Vec::new(),
            url: "https://example.com/other".to_owned(),
            caller_ip: None,
            trigger: Trigger::default(),
            ..new_run("wfr_2")
        },
    );
    world.accept(&[accept]).await;
    let three = begin(&world, "wfr_3").await;
    let (_, callback) = fail(&world, &three, "1600000001000-0").await;
    let check = async |filter: RunFilter, expected: &[&InstanceId]| {
        let page = world.store.runs(&filter, None, 10).await.unwrap();
        assert_eq!(page.items.iter().map(|run| &run.instance).collect::<Vec<_>>(), expected, "{filter:?}");
        assert_eq!(page.next, None);
        for run in page.items {
            assert!(filter.matches(&run), "{filter:?} {run:?}");
        }
    };
    let texts = |text: &str| vec![text.to_owned()];
    let none = RunFilter::default;
    check(none(), &[&three, &two, &one]).await;
    check(RunFilter { instances: vec![two.clone(), one.clone()], ..none() }, &[&two, &one]).await;
    check(RunFilter { ids: texts("wfr_2"), ..none() }, &[&two]).await;
    check(RunFilter { urls: texts(URL), ..none() }, &[&three, &one]).await;
    check(RunFilter { url_prefix: Some("https://example.com/o".to_owned()), ..none() }, &[&two]).await;
    check(RunFilter { states: vec![RunState::Started], ..none() }, &[&two, &one]).await;
    check(RunFilter { labels: vec!["x".to_owned(), "two".to_owned()], ..none() }, &[&three, &one]).await;
    check(RunFilter { labels: texts("tw"), ..none() }, &[]).await;
    check(RunFilter { flow_keys: texts("shop"), ..none() }, &[&three, &one]).await;
    check(RunFilter { caller_ips: texts("192.0.2.1"), ..none() }, &[&three, &one]).await;
    let at = run(&world, &two).await.created_at;
    check(RunFilter { from: Some(at), to: Some(at), ..none() }, &[&two]).await;
    let begun = vec![("wfr_2".to_owned(), at), ("wfr_1".to_owned(), at)];
    check(RunFilter { begun, ..none() }, &[&two]).await;
    check(RunFilter { told: vec![None], ..none() }, &[&three]).await;
    told(&world, &three, &callback.id, Told::Failed).await;
    check(RunFilter { told: vec![None], ..none() }, &[]).await;
    check(RunFilter { told: vec![None, Some(Told::Failed)], ..none() }, &[&three]).await;
    let first = world.store.runs(&none(), None, 2).await.unwrap();
    let rest = world.store.runs(&none(), first.next.as_ref(), 2).await.unwrap();
    assert_eq!((first.items.len(), rest.items[0].instance.clone(), rest.next), (2, one, None));
}

pub(crate) async fn messages_of_a_run_are_read_with_their_attempts(world: World) {
    let instance = begin(&world, "wfr_1").await;
    let leased = world.claim_one(LANE, 1).await;
    world.accept(&[append(&world, &instance, Some("step:1:0"), "a")]).await;
    world.publish(LANE).await;
    assert_eq!(world.finish(Held::from(&leased).retry_at(FUTURE)).await, Applied::Yes);
    let messages = world.store.run_messages(&instance, None, ANY_SIZE).await.unwrap();
    assert_eq!(messages.len(), 2, "none that is of no run");
    let first = &messages[0];
    assert_eq!(first.message.id, leased.message.id);
    assert_eq!(first.pending, Some(Pending { due_at: time(FUTURE), leased: false }));
    let [attempt] = &first.attempts[..] else { panic!("{:?}", first.attempts) };
    assert_eq!((attempt.result, attempt.response.as_ref().unwrap().status), (AttemptResult::Retry, 503));
    assert_eq!((messages[1].attempts.len(), messages[1].is_delivered()), (0, false));
    let page = world.store.run_messages(&instance, None, 1).await.unwrap();
    assert_eq!(page, messages[..1]);
    let rest = world.store.run_messages(&instance, Some(&page[0].message.id), 1).await.unwrap();
    assert_eq!(rest, messages[1..]);
    assert_eq!(world.store.run_messages(&instance, Some(&rest[0].message.id), 1).await.unwrap(), []);
    assert_eq!(world.store.run_message(&rest[0].message.id).await.unwrap().as_ref(), Some(&rest[0]));
}

pub(crate) async fn messages_of_runs_are_no_users_messages(world: World) {
    let instance = begin(&world, "wfr_1").await;
    let plain = world.publish(LANE).await;
    let id = MessageId::new(instance.as_str());
    let filter = UnfinishedFilter { matching: MessageFilter::default(), from: None, to: None };
    let found = world.store.unfinished(&filter, None, 10).await.unwrap().found;
    assert_eq!(found, std::slice::from_ref(&plain));
    assert_eq!(world.store.cancel(&id, time(START)).await.unwrap(), Cancellation::NotFound);
    let cancelled = world.store.cancel_many(&[id.clone(), plain.clone()], time(START)).await.unwrap();
    assert_eq!(cancelled, [Cancellation::NotFound, Cancellation::Cancelled]);
    let log = async |owner: Owner| {
        let filter = LogFilter { owner, states: vec![State::Created], ..LogFilter::default() };
        let page = world.store.log(&filter, Order::EarliestFirst, None, 10, ANY_SIZE).await.unwrap();
        page.items.into_iter().map(|entry| entry.message.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(log(Owner::User).await, std::slice::from_ref(&plain));
    assert_eq!(log(Owner::Run).await, std::slice::from_ref(&id));
    assert_eq!(log(Owner::Any).await, [id, plain]);
}

pub(crate) async fn a_failed_run_leaves_a_dead_letter_of_its_own(world: World) {
    let instance = begin(&world, "wfr_1").await;
    let (letter, callback) = fail(&world, &instance, "1600000001000-0").await;
    let failed = run(&world, &instance).await;
    let end = failed.end.expect("it has ended");
    assert_eq!((failed.state, end.dead_letter), (RunState::Failed, Some(letter.clone())));
    assert_eq!(end.telling, Some(Telling { message: callback.id.clone(), told: None }));
    let list = async |filter: DeadLetterFilter| {
        let page = world.store.dead_letters(&filter, Order::EarliestFirst, None, 10, ANY_SIZE).await.unwrap();
        page.items.into_iter().map(|letter| letter.id).collect::<Vec<_>>()
    };
    let of = |owner| DeadLetterFilter { owner, ..DeadLetterFilter::default() };
    assert_eq!(list(of(Owner::User)).await, []);
    assert_eq!(list(of(Owner::Run)).await, std::slice::from_ref(&letter));
    assert_eq!(list(of(Owner::Any)).await, std::slice::from_ref(&letter));
    for (label, expected) in [("one", 1), ("x", 0)] {
        let runs = RunFilter { labels: vec![label.to_owned()], ..RunFilter::default() };
        let filter = DeadLetterFilter { runs: Some(Box::new(runs)), ..of(Owner::Run) };
        assert_eq!(list(filter).await.len(), expected, "{label}");
    }
    assert_eq!(world.store.dead_letter(&letter).await.unwrap().unwrap().run, Some(instance.clone()));
    world.store.delete_dead_letters(std::slice::from_ref(&letter)).await.unwrap();
    assert_eq!(run(&world, &instance).await.end.unwrap().dead_letter, None, "it is gone");
}

pub(crate) async fn telling_of_a_failure_is_repeated_and_cancelled(world: World) {
    let instance = begin(&world, "wfr_1").await;
    let (_, first) = fail(&world, &instance, "1600000001000-0").await;
    let store = &world.store;
    let telling = async || run(&world, &instance).await.end.unwrap().telling.unwrap();
    let again = || of_run(&world, &instance, Kind::FailureCallback, None);
    let second = again();
    assert!(!store.tell_again(&instance, &first.id, &second).await.unwrap(), "it is under way");
    told(&world, &instance, &first.id, Told::Failed).await;
    assert!(store.tell_again(&instance, &first.id, &second).await.unwrap());
    assert!(!store.tell_again(&instance, &first.id, &again()).await.unwrap());
    assert_eq!(telling().await, Telling { message: second.message.id.clone(), told: None });
    let cancel =
        async |message: &MessageId| store.cancel_telling(&instance, message, time(START)).await.unwrap();
    assert_eq!(cancel(&first.id).await, Cancellation::NotFound);
    assert_eq!(cancel(&second.message.id).await, Cancellation::Cancelled);
    assert_eq!(cancel(&second.message.id).await, Cancellation::NotFound);
    assert_eq!(telling().await.told, Some(Told::Cancelled));
    assert!(world.nothing_waits().await);
    // One that is out is asked to stop.
    let (other, callback) = {
        let other = begin(&world, "wfr_2").await;
        let (_, callback) = fail(&world, &other, "1600000002000-0").await;
        (other, callback)
    };
    let held = world.claim_one(LANE, 5).await;
    let cancelled = store.cancel_telling(&other, &callback.id, time(START)).await.unwrap();
    assert_eq!(cancelled, Cancellation::Requested);
    let mut ended = Held::from(&held).delivered();
    let effect = Effect::Told { instance: other.clone(), message: callback.id.clone(), answer: Told::Done };
    Arc::make_mut(&mut ended.finish).effects.push(effect);
    assert_eq!(world.finish(ended).await, Applied::Yes);
    assert_eq!(run(&world, &other).await.end.unwrap().telling.unwrap().told, Some(Told::Done));
}

pub(crate) async fn a_run_takes_the_place_of_a_failed_one(world: World) {
    let old = begin(&world, "wfr_1").await;
    world.accept(&[append(&world, &old, Some("step:1:0"), "a")]).await;
    let (letter, _) = fail(&world, &old, "1600000001000-0").await;
    let instance = InstanceId::new(world.message().id.as_str());
    let own = of_run(&world, &instance, Kind::Step, None).message;
    let mut log = entries(&world, &old).await;
    log[0].message = MessageId::new(instance.as_str());
    log[1].message = own.id.clone();
    let again = Again {
        letter: letter.clone(),
        instance: instance.clone(),
        created_at: time(START + 100),
        new: new_run("wfr_new"),
        entries: log.clone(),
        messages: vec![Message::clone(&own)],
    };
    let plain = Again { letter: DeadLetterId::new("1600000009000-0"), ..again.clone() };
    assert!(!world.store.begin_again(&plain).await.unwrap(), "there is no such dead letter");
    assert!(world.store.begin_again(&again).await.unwrap());
    assert!(!world.store.begin_again(&again).await.unwrap(), "it is gone");
    assert_eq!(world.store.dead_letter(&letter).await.unwrap(), None);
    assert_eq!(
        run(&world, &instance).await,
        Run::begun(instance.clone(), again.created_at, again.new.clone())
    );
    assert_eq!(entries(&world, &instance).await, log);
    let duplicate = world.accept(&[append(&world, &instance, Some("step:1:0"), "b")]).await;
    assert_eq!(duplicate, [Accepted::Duplicate(own.id.clone())], "the keys are there");
    world.accept(&[append(&world, &instance, Some("step:2:0"), "c")]).await;
    assert_eq!(keys(&world, &instance).await, ["", "step:1:0", "step:2:0"]);
    assert!(claimable(&world, 3).await.contains(&own.id));
}

pub(crate) async fn runs_go_with_the_log(world: World) {
    let hours = Duration::from_hours;
    let retention = Retention { log: hours(24), dead_letters: hours(24 * 30) };
    let live = begin(&world, "wfr_live").await;
    let done = begin(&world, "wfr_done").await;
    let failed = begin(&world, "wfr_failed").await;
    let (letter, callback) = fail(&world, &failed, "1600000001000-0").await;
    let leases = world.claim(LANE, 4).await;
    for delivery in leases.iter().filter(|one| one.message.id == callback.id) {
        assert_eq!(world.finish(Held::from(delivery).delivered()).await, Applied::Yes);
    }
    world.store.end_run(&ending(&done, RunState::Success, START + 2000)).await.unwrap();
    let prune = async |now: i64| {
        let mut after = String::new();
        while let Some(next) = world.store.prune(retention, time(now), &after).await.unwrap() {
            after = next;
        }
    };
    let has = async |instance: &InstanceId| {
        let run = world.store.run(&RunKey::Instance(instance.clone())).await.unwrap();
        let entries = !entries(&world, instance).await.is_empty();
        assert_eq!(run.is_some(), entries, "a run goes with its entries");
        entries
    };
    let day = 24 * 3_600_000;
    prune(START + day).await;
    assert!(has(&done).await, "it is young enough");
    prune(START + day + 2_000_000).await;
    assert_eq!([has(&live).await, has(&done).await, has(&failed).await], [true, false, true]);
    let message = |instance: &InstanceId| MessageId::new(instance.as_str());
    assert!(world.store.message(&message(&failed)).await.unwrap().is_some());
    world.store.delete_dead_letters(&[letter]).await.unwrap();
    prune(START + day + 2_000_000).await;
    assert_eq!([has(&live).await, has(&failed).await], [true, false]);
    assert_eq!(world.store.message(&message(&failed)).await.unwrap(), None);
    assert!(world.store.message(&message(&live)).await.unwrap().is_some());
}
