//! Scenarios of schedules and their runs. Each runs on every store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use homing::domain::id::{MessageId, ScheduleId};
use homing::domain::message::{CallbackSpec, FlowControl, Headers, Message, Method, Options, Redact};
use homing::domain::template::Template;
use homing::store::schedules::{Firing, LastFiring, Progress, Schedule};
use homing::store::{Applied, Cancellation, Retention};

use crate::support::{ANY_SIZE, FUTURE, Held, LATEST, NODE, START, World, time, waiting};

/// A schedule with nothing set, whose slot is at [`START`].
pub(crate) fn schedule(id: &str, generation: i64) -> Schedule {
    let mut template =
        Template::new(Method::Post, Headers::new(), Bytes::new(), 3, Vec::new(), Options::default());
    template.schedule_id = Some(id.to_owned());
    Schedule {
        id: ScheduleId::new(id),
        generation,
        cron: "* * * * *".to_owned(),
        destination: "https://example.com/".to_owned(),
        template,
        delay: None,
        created_at: time(START - 1000),
        paused: false,
        next_at: time(START),
        last_firing: None,
    }
}

/// One with everything set.
pub(crate) fn full_schedule(id: &str) -> Schedule {
    let spec = CallbackSpec { url: "https://example.com/cb".to_owned(), ..CallbackSpec::default() };
    let flow = FlowControl { key: "k/1".to_owned(), parallelism: Some(2), rate: None, period_s: 60 };
    let options = Options {
        timeout: Some(Duration::from_secs(5)),
        retry_delay: Some("1000".to_owned()),
        callback: Some(Box::new(spec.clone())),
        failure_callback: Some(Box::new(spec)),
        redact: Redact { body: true, ..Redact::default() },
        flow_control: Some(flow),
        api: None,
    };
    let headers = Headers(vec![("X-A".to_owned(), b"\xfc".to_vec()), ("X-A".to_owned(), "ünï".into())]);
    let labels = vec!["one".to_owned(), "two".to_owned()];
    let body = Bytes::from_static(b"\x00\xff'");
    let mut template = Template::new(Method::Put, headers, body, 0, labels, options);
    template.schedule_id = Some(id.to_owned());
    template.caller_ip = Some("2001:db8::1".to_owned());
    template.queue = Some("q".to_owned());
    Schedule {
        cron: "CRON_TZ=Europe/Berlin 0 4 * * MON".to_owned(),
        destination: "a-group".to_owned(),
        template,
        delay: Some(Duration::from_millis(1500)),
        paused: true,
        last_firing: Some(LastFiring {
            occurrence: time(START - 5),
            messages: vec![MessageId::new("msg_1"), MessageId::new("msg_2")],
            error: Some("both, which no run leaves".to_owned()),
        }),
        ..schedule(id, i64::MAX)
    }
}

/// A run of a schedule's slot with these messages.
pub(crate) fn run(schedule: &Schedule, next_at: i64, messages: &[Message]) -> Firing {
    Firing {
        id: schedule.id.clone(),
        generation: schedule.generation,
        occurrence: schedule.next_at,
        next_at: time(next_at),
        outcome: Ok(messages.iter().map(|message| waiting(message.clone(), "a")).collect()),
    }
}

impl World {
    async fn put(&self, schedule: &Schedule) {
        assert!(self.store.put_schedule(schedule, None).await.unwrap());
    }

    async fn stored(&self, id: &str) -> Option<Schedule> {
        self.store.schedule(&ScheduleId::new(id)).await.unwrap()
    }

    async fn due(&self, now: i64, count: usize, max_bytes: usize) -> Vec<String> {
        let due = self.store.due_schedules(time(now), count, max_bytes).await.unwrap();
        due.into_iter().map(|schedule| schedule.id.as_str().to_owned()).collect()
    }

    async fn progress(&self, id: &MessageId) -> Option<Progress> {
        let progress = self.store.progress(&[id]).await.unwrap();
        assert!(progress.iter().all(|(found, _)| found == id));
        progress.first().map(|(_, progress)| *progress)
    }
}

pub(crate) async fn schedules_are_read_back_unchanged(world: World) {
    for schedule in [full_schedule("full"), schedule("empty", 0)] {
        world.put(&schedule).await;
        assert_eq!(world.stored(schedule.id.as_str()).await, Some(schedule));
    }
    assert_eq!(world.stored("unknown").await, None);
}

pub(crate) async fn a_schedule_is_replaced_entirely(world: World) {
    world.put(&full_schedule("s")).await;
    let new = schedule("s", 2);
    world.put(&new).await;
    assert_eq!(world.stored("s").await, Some(new));
    let all = world.store.schedules(None, 10, ANY_SIZE).await.unwrap();
    assert_eq!((all.items.len(), all.more), (1, false));
}

pub(crate) async fn schedules_are_listed_in_pages(world: World) {
    let none = world.store.schedules(None, 10, ANY_SIZE).await.unwrap();
    assert_eq!((none.items, none.more), (Vec::new(), false));
    // Names in the order of their bytes.
    let ids = ["A", "B.1", "a-1", "a.1", "a_1", "b"];
    for id in ["a.1", "b", "A", "a_1", "B.1", "a-1"] {
        world.put(&full_schedule(id)).await;
    }
    for (count, max_bytes, pages) in [(2, ANY_SIZE, 3), (4, ANY_SIZE, 2), (6, ANY_SIZE, 1), (10, 4, 3)] {
        let mut found: Vec<Schedule> = Vec::new();
        for page in 1..=pages {
            let after = found.last().map(|schedule| schedule.id.clone());
            let next = world.store.schedules(after.as_ref(), count, max_bytes).await.unwrap();
            assert_eq!(next.more, page < pages, "page {page} of {count} and {max_bytes} bytes");
            found.extend(next.items);
        }
        assert_eq!(found, ids.map(full_schedule));
    }
}

pub(crate) async fn a_schedule_is_deleted_once(world: World) {
    world.put(&schedule("s", 1)).await;
    world.put(&schedule("other", 2)).await;
    let id = ScheduleId::new("s");
    assert!(world.store.delete_schedule(&id).await.unwrap());
    assert!(!world.store.delete_schedule(&id).await.unwrap());
    assert_eq!(world.stored("s").await, None);
    assert!(world.stored("other").await.is_some());
}

pub(crate) async fn a_quota_counts_the_others(world: World) {
    let put = async |id: &str, max| world.store.put_schedule(&schedule(id, 1), Some(max)).await.unwrap();
    assert!(!put("a", 0).await);
    assert!(put("a", 2).await && put("b", 2).await);
    assert!(!put("c", 2).await);
    assert_eq!(world.stored("c").await, None);
    // Replacing one makes no more of them, also when there are too many already.
    assert!(put("a", 2).await && put("b", 1).await);
    assert!(world.store.delete_schedule(&ScheduleId::new("a")).await.unwrap());
    assert!(put("c", 2).await);
}

pub(crate) async fn equal_creations_at_once_keep_the_quota(world: World) {
    let mut puts = tokio::task::JoinSet::new();
    for number in 0..20 {
        let store = Arc::clone(&world.store);
        puts.spawn(async move {
            let id = format!("s{}", number % 10);
            store.put_schedule(&schedule(&id, number), Some(3)).await.unwrap()
        });
    }
    puts.join_all().await;
    assert_eq!(world.store.schedules(None, 100, ANY_SIZE).await.unwrap().items.len(), 3);
}

pub(crate) async fn a_paused_schedule_has_no_slot(world: World) {
    let before = world.store.now().await.unwrap();
    let next = world.store.next_occurrence().await.unwrap();
    assert_eq!(next.due_at, None);
    assert!(next.now >= before);
    for (id, next_at) in [("early", START), ("later", START + 5), ("future", FUTURE)] {
        world.put(&Schedule { next_at: time(next_at), ..schedule(id, 1) }).await;
    }
    for (id, slot) in
        [("other", Some(START)), ("early", Some(START + 5)), ("later", Some(FUTURE)), ("future", None)]
    {
        assert_eq!(world.store.pause_schedule(&ScheduleId::new(id)).await.unwrap(), id != "other");
        assert_eq!(world.store.next_occurrence().await.unwrap().due_at, slot.map(time), "{id}");
    }
    assert!(world.store.pause_schedule(&ScheduleId::new("early")).await.unwrap(), "again");
    let stored = world.stored("early").await.unwrap();
    assert_eq!(stored, Schedule { paused: true, ..schedule("early", 1) });
    assert!(world.due(FUTURE, 10, ANY_SIZE).await.is_empty());
}

pub(crate) async fn resuming_goes_on_with_another_slot(world: World) {
    let (id, running) = (ScheduleId::new("s"), schedule("s", 5));
    world.put(&running).await;
    world.store.resume_schedule(&id, 5, time(FUTURE)).await.unwrap();
    assert_eq!(world.stored("s").await, Some(running.clone()), "it was not paused");
    world.store.pause_schedule(&id).await.unwrap();
    world.store.resume_schedule(&id, 4, time(FUTURE)).await.unwrap();
    assert!(world.stored("s").await.unwrap().paused, "of an earlier schedule of that id");
    world.store.resume_schedule(&ScheduleId::new("other"), 5, time(FUTURE)).await.unwrap();
    world.store.resume_schedule(&id, 5, time(FUTURE)).await.unwrap();
    assert_eq!(world.stored("s").await, Some(Schedule { next_at: time(FUTURE), ..running }));
}

pub(crate) async fn due_schedules_come_in_order(world: World) {
    for (id, next_at) in [("b", 10), ("c", 20), ("d", 20), ("a", 30), ("e", 31)] {
        let full = full_schedule(id);
        world.put(&Schedule { next_at: time(START + next_at), paused: false, ..full }).await;
    }
    assert_eq!(world.due(START + 30, 10, ANY_SIZE).await, ["b", "c", "d", "a"]);
    assert_eq!(world.due(START + 30, 2, ANY_SIZE).await, ["b", "c"]);
    // Bodies of three bytes, until there is no room.
    assert_eq!(world.due(START + 30, 10, 4).await, ["b", "c"]);
    assert_eq!(world.due(START + 30, 10, 1).await, ["b"]);
    assert!(world.due(START + 9, 10, ANY_SIZE).await.is_empty());
    let due = world.store.due_schedules(time(START + 10), 10, ANY_SIZE).await.unwrap();
    let expected = Schedule { next_at: time(START + 10), paused: false, ..full_schedule("b") };
    assert_eq!(due, [expected]);
}

pub(crate) async fn a_run_stores_its_messages_and_moves_on(world: World) {
    let schedule = schedule("s", 1);
    world.put(&schedule).await;
    let later = Message { due_at: time(FUTURE), ..world.message() };
    let messages = [world.message(), world.message(), later];
    let run = run(&schedule, START + 60, &messages);
    assert!(world.store.fire(&run).await.unwrap());
    let ids: Vec<MessageId> = messages.iter().map(|message| message.id.clone()).collect();
    let last_firing = Some(LastFiring { occurrence: run.occurrence, messages: ids.clone(), error: None });
    let moved = Schedule { next_at: time(START + 60), last_firing, ..schedule };
    assert_eq!(world.stored("s").await, Some(moved.clone()));
    for message in &messages {
        assert_eq!(world.store.message(&message.id).await.unwrap().as_ref(), Some(message));
    }
    // They wait; nobody holds them.
    assert_eq!(world.store.reconcile(NODE, &[], LATEST).await.unwrap(), 0);
    assert_eq!(crate::support::ids(&world.claim("a", 1).await), ids[..2]);
    assert_eq!(world.store.next_due().await.unwrap().due_at, Some(time(FUTURE)));
    // The next slot is another run's.
    let next = world.message();
    assert!(world.store.fire(&self::run(&moved, START + 120, std::slice::from_ref(&next))).await.unwrap());
    assert_eq!(world.stored("s").await.unwrap().last_firing.unwrap().messages, [next.id]);
}

pub(crate) async fn a_run_that_was_overtaken_stores_nothing(world: World) {
    let schedule = schedule("s", 1);
    world.put(&schedule).await;
    let fires_nothing = async |stale: &Schedule, why: &str| {
        let message = world.message();
        let before = world.stored("s").await;
        let run = run(stale, START + 999, std::slice::from_ref(&message));
        assert!(!world.store.fire(&run).await.unwrap(), "{why}");
        let failed = Firing { outcome: Err("failed".to_owned()), ..run };
        assert!(!world.store.fire(&failed).await.unwrap(), "{why}");
        assert_eq!(world.store.message(&message.id).await.unwrap(), None, "{why}");
        assert_eq!(world.stored("s").await, before, "{why}");
    };
    fires_nothing(&Schedule { next_at: time(START - 60), ..schedule.clone() }, "another slot").await;
    fires_nothing(&Schedule { generation: 2, ..schedule.clone() }, "another schedule of that id").await;
    fires_nothing(&Schedule { id: ScheduleId::new("t"), ..schedule.clone() }, "an unknown schedule").await;
    world.store.pause_schedule(&schedule.id).await.unwrap();
    fires_nothing(&schedule, "paused").await;
    world.store.resume_schedule(&schedule.id, 1, schedule.next_at).await.unwrap();
    assert!(world.store.fire(&run(&schedule, START + 60, &[])).await.unwrap());
    fires_nothing(&schedule, "run before").await;
    world.put(&Schedule { generation: 2, ..schedule.clone() }).await;
    fires_nothing(&schedule, "replaced").await;
    world.store.delete_schedule(&schedule.id).await.unwrap();
    fires_nothing(&schedule, "deleted").await;
    assert!(world.nothing_waits().await);
}

pub(crate) async fn a_run_without_messages_leaves_its_error(world: World) {
    let schedule = schedule("s", 1);
    world.put(&schedule).await;
    let failed = Firing { outcome: Err("topic g not found".to_owned()), ..run(&schedule, START + 60, &[]) };
    assert!(world.store.fire(&failed).await.unwrap());
    let error = Some("topic g not found".to_owned());
    let last_firing = Some(LastFiring { occurrence: failed.occurrence, messages: Vec::new(), error });
    let moved = Schedule { next_at: time(START + 60), last_firing, ..schedule };
    assert_eq!(world.stored("s").await, Some(moved.clone()));
    assert!(world.nothing_waits().await);
    assert!(world.store.fire(&run(&moved, START + 120, &[world.message()])).await.unwrap());
    assert_eq!(world.stored("s").await.unwrap().last_firing.unwrap().error, None);
}

pub(crate) async fn equal_runs_at_once_fire_once(world: World) {
    let schedules = ["a", "b", "c"].map(|id| schedule(id, 1));
    for schedule in &schedules {
        world.put(schedule).await;
    }
    let mut runs = tokio::task::JoinSet::new();
    for message in world.messages(60) {
        let store = Arc::clone(&world.store);
        let run = run(&schedules[runs.len() % 3], START + 60, &[message]);
        runs.spawn(async move { (run.id.clone(), store.fire(&run).await.unwrap()) });
    }
    let mut fired: Vec<ScheduleId> =
        runs.join_all().await.into_iter().filter(|(_, fired)| *fired).map(|(id, _)| id).collect();
    fired.sort();
    assert_eq!(fired, schedules.map(|schedule| schedule.id));
    assert_eq!(world.claim("a", 1).await.len(), 3);
}

pub(crate) async fn messages_of_a_run_show_how_far_they_are(world: World) {
    assert_eq!(world.store.progress(&[]).await.unwrap(), []);
    assert_eq!(world.progress(&MessageId::new("msg_unknown")).await, None);
    let waits = world.publish("a").await;
    assert_eq!(world.progress(&waits).await, Some(Progress::Waiting));
    let held = world.publish_leased("b", 1).await;
    assert_eq!(world.progress(&held.id).await, Some(Progress::Waiting));
    assert_eq!(world.finish(held.retry_at(START)).await, Applied::Yes);
    assert_eq!(world.progress(&held.id).await, Some(Progress::Waiting));
    let again = Held::from(&world.claim_one("b", 2).await);
    assert_eq!(world.finish(again.delivered()).await, Applied::Yes);
    assert_eq!(world.progress(&held.id).await, Some(Progress::Delivered));
    let held = world.publish_leased("b", 3).await;
    assert_eq!(world.finish(held.failed("1-1")).await, Applied::Yes);
    assert_eq!(world.progress(&held.id).await, Some(Progress::Failed));
    assert_eq!(world.store.cancel(&waits, time(START)).await.unwrap(), Cancellation::Cancelled);
    assert_eq!(world.progress(&waits).await, Some(Progress::Failed));
    let both = world.store.progress(&[&waits, &again.id]).await.unwrap();
    assert_eq!(both.len(), 2);
    let none = Retention { log: Duration::ZERO, dead_letters: Duration::ZERO };
    world.store.prune(none, time(FUTURE), "").await.unwrap();
    assert_eq!(world.progress(&waits).await, None);
}

pub(crate) async fn schedule_ids_are_only_text(world: World) {
    world.put(&schedule("s", 1)).await;
    for text in ["", "s ", "S", "%", "s'; DROP TABLE schedules; --", "s\0", "\u{10ffff}"] {
        let id = ScheduleId::new(text);
        assert_eq!(world.store.schedule(&id).await.unwrap(), None, "{text:?}");
        assert!(!world.store.delete_schedule(&id).await.unwrap(), "{text:?}");
        assert!(!world.store.pause_schedule(&id).await.unwrap(), "{text:?}");
    }
    assert_eq!(world.stored("s").await, Some(schedule("s", 1)));
}
