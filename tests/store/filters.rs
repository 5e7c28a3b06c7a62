//! Scenarios of finding messages by what they have, and of cancelling many. Each runs on every store.

use std::collections::BTreeSet;
use std::sync::Arc;

use homing::domain::filter::{Host, MessageFilter};
use homing::domain::id::{DeadLetterId, MessageId};
use homing::domain::message::{FlowControl, Message};
use homing::store::{
    Applied, Cancellation, DeadLetterFilter, Delivery, Lease, LogCursor, LogFilter, Missing, Order, State,
    UnfinishedFilter,
};

use crate::support::{ANY_SIZE, Held, NODE, START, World, cancel_requested, leased, time, waiting};

const URLS: [&str; 5] = [
    "https://a.example/hook?x=1,2",
    "http://A.example:8080/hook",
    "https://u:p@b.example",
    "https://b.example/a.example?host=a.example",
    "http://[::1]/%25_'\"",
];
const LABELS: [&[&str]; 5] = [&[], &["one"], &["one", "two"], &["two", "on"], &["%", "_ne", "'"]];

/// A message that has a bit of everything, according to a number.
pub(crate) fn varied(message: Message, number: usize) -> Message {
    let choose = |every: usize, name: &str| {
        (number.is_multiple_of(every)).then(|| format!("{name}{}", number / every % 2))
    };
    let flow_control =
        choose(4, "k/").map(|key| FlowControl { key, parallelism: Some(1), rate: None, period_s: 1 });
    Message {
        url: URLS[number % URLS.len()].to_owned(),
        labels: LABELS[number / 2 % LABELS.len()].iter().map(|label| (*label).to_owned()).collect(),
        queue: choose(2, "q"),
        url_group: choose(3, "g"),
        schedule_id: choose(5, "s"),
        caller_ip: choose(2, "192.0.2."),
        options: homing::domain::message::Options { flow_control, ..Default::default() },
        ..message
    }
}

/// Filters of all kinds, on what [`varied`] makes.
pub(crate) fn filters() -> Vec<MessageFilter> {
    let all = MessageFilter::default;
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let hosts = |hosts: &[&str]| hosts.iter().map(|host| Host::parse(host).unwrap()).collect::<Vec<_>>();
    vec![
        all(),
        MessageFilter { urls: texts(&[URLS[0], URLS[4], "https://a.example/hook"]), ..all() },
        MessageFilter { hosts: hosts(&["a.EXAMPLE"]), ..all() },
        MessageFilter { hosts: hosts(&["a.example:8080", "::1"]), ..all() },
        MessageFilter { hosts: hosts(&["b.example:443"]), ..all() },
        MessageFilter { paths: texts(&["/hook", "/%25_'\""]), ..all() },
        MessageFilter { hosts: hosts(&["b.example"]), paths: texts(&["/"]), ..all() },
        MessageFilter { labels: texts(&["one"]), ..all() },
        MessageFilter { labels: texts(&["on", "%"]), ..all() },
        MessageFilter { labels: texts(&["two"]), queues: texts(&["q0"]), ..all() },
        MessageFilter { queues: texts(&["q0", "q1"]), url_groups: texts(&["g0"]), ..all() },
        MessageFilter { schedule_ids: texts(&["s1"]), ..all() },
        MessageFilter { flow_keys: texts(&["k/0"]), caller_ips: texts(&["192.0.2.0"]), ..all() },
        MessageFilter { labels: texts(&["nobody's"]), ..all() },
        MessageFilter { queues: texts(&["q\0"]), ..all() },
    ]
}

/// Stores that many varied messages, waiting in one lane.
/// They are accepted leased, as those in queues and under keys are none of the plain claim's.
async fn publish_varied(world: &World, count: usize) -> Vec<Arc<Message>> {
    let batch: Vec<_> = (0..count).map(|number| leased(varied(world.message(), number), "a", 1)).collect();
    world.accept(&batch).await;
    batch.into_iter().map(|accept| accept.message).collect()
}

fn deliveries(messages: &[Arc<Message>]) -> Vec<Delivery> {
    messages.iter().map(|message| Delivery::stored_leased(message, &Arc::from("a"), Lease(1), None)).collect()
}

#[test]
fn each_filter_finds_something_but_not_all() {
    let messages: Vec<Message> =
        (0..60).map(|number| varied(crate::support::message(0, START), number)).collect();
    for (index, filter) in filters().iter().enumerate() {
        let found = messages.iter().filter(|message| filter.matches(message)).count();
        let expected = match index {
            0 => found == 60,
            13 | 14 => found == 0,
            _ => (1..40).contains(&found),
        };
        assert!(expected, "{filter:?} finds {found}");
    }
}

pub(crate) async fn the_log_is_filtered_by_its_messages(world: World) {
    let messages = publish_varied(&world, 60).await;
    let claimed = deliveries(&messages);
    for (number, delivery) in claimed.iter().enumerate().filter(|(number, _)| number % 3 > 0) {
        let held = Held::from(delivery);
        let ended = if number % 3 == 1 { held.delivered() } else { held.failed(&format!("1-{number}")) };
        assert_eq!(world.finish(ended).await, Applied::Yes);
    }
    let whole = world.store.log(&LogFilter::default(), Order::EarliestFirst, None, 1000, ANY_SIZE).await;
    let whole = whole.unwrap().items;
    assert_eq!(whole.len(), 60 + 60 + 20 + 40);
    for matching in filters() {
        for (messages, states) in
            [(vec![], vec![]), (vec![messages[7].id.clone(), messages[8].id.clone()], vec![State::Created])]
        {
            let filter = LogFilter { messages, states, matching: matching.clone(), ..LogFilter::default() };
            let expected: Vec<_> = whole
                .iter()
                .filter(|entry| filter.matching.matches(&entry.message))
                .filter(|entry| filter.messages.is_empty() || filter.messages.contains(&entry.message.id))
                .filter(|entry| filter.states.is_empty() || filter.states.contains(&entry.state))
                .collect();
            for count in [1, 7, 1000] {
                let mut found = Vec::new();
                let mut cursor: Option<LogCursor> = None;
                loop {
                    let page = world
                        .store
                        .log(&filter, Order::EarliestFirst, cursor.as_ref(), count, ANY_SIZE)
                        .await;
                    let page = page.unwrap();
                    assert!(page.items.len() <= count);
                    found.extend(page.items);
                    cursor = page.next;
                    if cursor.is_none() {
                        break;
                    }
                }
                assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
            }
        }
    }
}

pub(crate) async fn dead_letters_are_filtered_by_their_messages(world: World) {
    let messages = publish_varied(&world, 30).await;
    for (number, delivery) in deliveries(&messages).iter().enumerate() {
        let (held, id) = (Held::from(delivery), format!("1-{number:02}"));
        let ended = if number % 4 == 0 { held.failed_unanswered(&id) } else { held.failed(&id) };
        assert_eq!(world.finish(ended).await, Applied::Yes);
    }
    let list = async |filter: &DeadLetterFilter, order, count| {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page =
                world.store.dead_letters(filter, order, after.as_ref(), count, ANY_SIZE).await.unwrap();
            let places = world.store.dead_letter_places(filter, order, after.as_ref(), count).await.unwrap();
            let of_page: Vec<_> = page.items.iter().map(homing::store::DeadLetter::place).collect();
            assert_eq!((&of_page, &page.next), (&places.items, &places.next));
            after = page.next;
            found.extend(page.items);
            if after.is_none() {
                return found;
            }
        }
    };
    let whole = list(&DeadLetterFilter::default(), Order::EarliestFirst, 100).await;
    assert_eq!(whole.len(), 30);
    for matching in filters() {
        for statuses in [vec![], vec![0], vec![500, 0], vec![999]] {
            let filter = DeadLetterFilter { matching: matching.clone(), statuses, ..Default::default() };
            let mut expected: Vec<_> = whole
                .iter()
                .filter(|letter| filter.matching.matches(&letter.message))
                .filter(|letter| {
                    let status = letter.response.as_ref().map_or(0, |response| response.status);
                    filter.statuses.is_empty() || filter.statuses.contains(&status)
                })
                .collect();
            for order in [Order::EarliestFirst, Order::LatestFirst] {
                for count in [1, 4, 100] {
                    let found = list(&filter, order, count).await;
                    assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
                }
                expected.reverse();
            }
        }
    }
}

async fn look_at_all(world: &World, filter: &UnfinishedFilter, count: usize) -> Vec<MessageId> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let look = world.store.unfinished(filter, after.as_ref(), count).await.unwrap();
        assert!(look.found.len() <= count);
        found.extend(look.found);
        assert!(look.next > after || look.next.is_none(), "the walk goes on");
        after = look.next;
        if after.is_none() {
            return found;
        }
    }
}

pub(crate) async fn unfinished_messages_are_found(world: World) {
    let messages = publish_varied(&world, 45).await;
    let held: Vec<Held> = deliveries(&messages).iter().take(20).map(Held::from).collect();
    let delivered = &held[3];
    assert_eq!(world.finish(delivered.delivered()).await, Applied::Yes);
    let cancelled = &messages[30].id;
    assert_eq!(world.store.cancel(cancelled, time(START)).await.unwrap(), Cancellation::Requested);
    let dates = [(None, None), (Some(messages[5].created_at), Some(messages[35].created_at))];
    for matching in filters() {
        for (from, to) in dates {
            let expected: Vec<MessageId> = messages
                .iter()
                .filter(|message| message.id != delivered.id && message.id != *cancelled)
                .filter(|message| matching.matches(message))
                .filter(|message| from.is_none_or(|from| message.created_at >= from))
                .filter(|message| to.is_none_or(|to| message.created_at <= to))
                .map(|message| message.id.clone())
                .collect();
            let filter = UnfinishedFilter { matching: matching.clone(), from, to };
            for count in [1, 10, 1000] {
                assert_eq!(look_at_all(&world, &filter, count).await, expected, "{filter:?}");
            }
        }
    }
    let far = UnfinishedFilter { to: Some(time(i64::MAX)), ..UnfinishedFilter::default() };
    assert_eq!(look_at_all(&world, &far, 1000).await.len(), 43);
}

pub(crate) async fn many_messages_are_cancelled(world: World) {
    let leased = world.publish_leased("a", 7).await;
    let running = world.publish_leased("a", 7).await;
    let delivered = world.publish_leased("a", 7).await;
    assert_eq!(world.finish(delivered.delivered()).await, Applied::Yes);
    let waits = world.publish("b").await;
    let untouched = world.publish("c").await;
    let gone = world.publish("b").await;
    assert_eq!(world.store.cancel(&gone, time(START + 5)).await.unwrap(), Cancellation::Cancelled);
    let ids = [&leased.id, &MessageId::new("msg_\0'"), &waits, &delivered.id, &gone, &running.id, &waits]
        .map(Clone::clone);
    let now = time(START + 50);
    let results = world.store.cancel_many(&ids, now).await.unwrap();
    let (yes, no) = (Cancellation::Cancelled, Cancellation::NotFound);
    assert_eq!(results, [Cancellation::Requested, no, yes, no, no, Cancellation::Requested, no]);
    assert_eq!(world.store.cancel_many(&ids, now).await.unwrap(), [no; 7], "each once");
    assert_eq!(world.store.cancel_many(&[], now).await.unwrap(), []);
    assert_eq!(world.story(&waits).await, [State::Created, State::CancelRequested, State::Cancelled]);

    let mut requested = cancel_requested(&*world.store, &ids).await;
    requested.sort();
    assert_eq!(requested, [leased.id.clone(), running.id.clone()]);
    let mut held = world.store.cancelled_leases(NODE).await.unwrap();
    held.sort();
    assert_eq!(held, requested);
    let held = [(leased.id.clone(), Lease(7))];
    assert_eq!(world.store.finish_cancelled(NODE, &held, time(START + 60)).await.unwrap(), 1);
    assert_eq!(world.finish(running.retry_at(START)).await, Applied::No, "no further attempt");
    assert_eq!(world.finish(running.cancelled()).await, Applied::Yes);
    assert_eq!(cancel_requested(&*world.store, &ids).await, []);
    for id in [&leased.id, &running.id] {
        let story = world.story(id).await;
        assert_eq!((story[0], story.last()), (State::Created, Some(&State::Cancelled)), "{story:?}");
        assert!(story.contains(&State::CancelRequested));
    }
    assert_eq!(world.claim_one("c", 9).await.message.id, untouched);
    assert!(world.claim("b", 9).await.is_empty());
}

/// While nodes lease, finish and cancel the same messages, each is cancelled by one call or delivered.
pub(crate) async fn cancels_at_once_count_each_message_once(world: World) {
    const COUNT: usize = 300;
    let batch: Vec<_> = (0..COUNT).map(|_| waiting(world.message(), "a")).collect();
    world.accept(&batch).await;
    let ids: Vec<MessageId> = batch.iter().map(|accept| accept.message.id.clone()).collect();
    let mut cancels = tokio::task::JoinSet::new();
    for turn in 0..4 {
        let (world, mut ids) = (world.clone(), ids.clone());
        ids.rotate_left(turn * 70);
        if turn % 2 == 1 {
            ids.reverse();
        }
        cancels.spawn(async move {
            let mut cancelled = BTreeSet::new();
            for step in ids.chunks(50) {
                let results = world.store.cancel_many(step, time(START + 1_000_000)).await.unwrap();
                let yes = step.iter().zip(results).filter(|(_, result)| *result != Cancellation::NotFound);
                cancelled.extend(yes.map(|(id, _)| id.clone()));
            }
            cancelled
        });
    }
    let mut delivered = BTreeSet::new();
    for lease in 1..20 {
        let claimed =
            world.store.claim(NODE, Lease(lease), &[crate::support::want("a", 20)], ANY_SIZE).await.unwrap();
        let ended: Vec<_> = claimed.iter().map(|delivery| Held::from(delivery).delivered()).collect();
        for (ended, applied) in ended.iter().zip(world.store.finish(NODE, &ended).await.unwrap()) {
            assert_eq!(applied, Applied::Yes, "a success wins");
            delivered.insert(ended.id.clone());
        }
    }
    let mut cancelled = Vec::new();
    while let Some(result) = cancels.join_next().await {
        cancelled.extend(result.unwrap());
    }
    let distinct: BTreeSet<MessageId> = cancelled.iter().cloned().collect();
    assert_eq!(distinct.len(), cancelled.len(), "none is counted twice");
    for id in &ids {
        let story = world.story(id).await;
        let ends = [State::Delivered, State::Cancelled].map(|end| story.contains(&end));
        assert_eq!(ends, [delivered.contains(id), !delivered.contains(id)], "{story:?}");
        assert_eq!(story.contains(&State::CancelRequested), distinct.contains(id), "{story:?}");
    }
}

pub(crate) async fn retries_leave_out_what_is_gone(world: World) {
    let mut replacements = Vec::new();
    for id in ["1-1", "1-2", "1-3"] {
        let held = world.publish_leased("a", 1).await;
        assert_eq!(world.finish(held.failed(id)).await, Applied::Yes);
        replacements.push((DeadLetterId::new(id), waiting(world.message(), "b")));
    }
    let second = [DeadLetterId::new("1-2")];
    assert_eq!(world.store.delete_dead_letters(&second).await.unwrap(), 1);
    let refused = world.store.retry_dead_letters(&replacements, Missing::Refuse).await.unwrap();
    assert_eq!(refused, [false; 3]);
    assert!(world.nothing_waits().await);
    let replaced = world.store.retry_dead_letters(&replacements, Missing::Skip).await.unwrap();
    assert_eq!(replaced, [true, false, true]);
    assert_eq!(world.store.retry_dead_letters(&replacements, Missing::Skip).await.unwrap(), [false; 3]);
    assert_eq!(world.claim("b", 1).await.len(), 2);
}

pub(crate) async fn a_days_messages_are_reserved_once(world: World) {
    let mut asks = tokio::task::JoinSet::new();
    for wanted in 1..=20 {
        let store = Arc::clone(&world.store);
        asks.spawn(async move { store.reserve_messages(100, wanted, 150).await.unwrap() });
    }
    let granted = asks.join_all().await;
    assert_eq!(granted.iter().sum::<u64>(), 150);
    assert_eq!(world.store.reserve_messages(100, 1, 150).await.unwrap(), 0);
    assert_eq!(world.store.reserve_messages(100, 7, 155).await.unwrap(), 5, "the limit was raised");
    assert_eq!(world.store.reserve_messages(100, 7, 10).await.unwrap(), 0, "the limit was lowered");
    assert_eq!(world.store.reserve_messages(101, 7, 10).await.unwrap(), 7);
    assert_eq!(world.store.reserve_messages(101, 7, 10).await.unwrap(), 3);
}

/// The log tells what happened in its order, also where the nodes that wrote it down have clocks that are apart.
pub(crate) async fn a_cancel_comes_after_what_it_ends(world: World) {
    let early = time(START - 5000);
    let cancelled = [State::Created, State::CancelRequested, State::Cancelled];
    let [waits, one_of_many] = [world.publish("a").await, world.publish("a").await];
    assert_eq!(world.store.cancel(&waits, early).await.unwrap(), Cancellation::Cancelled);
    let results = world.store.cancel_many(std::slice::from_ref(&one_of_many), early).await.unwrap();
    assert_eq!(results, [Cancellation::Cancelled]);
    for id in [&waits, &one_of_many] {
        assert_eq!(world.story(id).await, cancelled);
    }

    // One node requests it, and another one, whose clock is behind, ends it.
    let (withdrawn, running) = (world.publish_leased("a", 7).await, world.publish_leased("a", 8).await);
    let late = time(START + 600_000);
    for held in [&withdrawn, &running] {
        assert_eq!(world.store.cancel(&held.id, late).await.unwrap(), Cancellation::Requested);
    }
    let held = [(withdrawn.id.clone(), Lease(7))];
    assert_eq!(world.store.finish_cancelled(NODE, &held, early).await.unwrap(), 1);
    assert_eq!(world.finish(running.cancelled()).await, Applied::Yes);
    assert_eq!(world.story(&withdrawn.id).await, cancelled);
    assert_eq!(world.story(&running.id).await.last(), Some(&State::Cancelled));

    // A retry's wait, and its attempt.
    for again in [false, true] {
        let failed = world.publish_leased("a", 9).await;
        assert_eq!(world.finish(failed.retry_at(START)).await, Applied::Yes);
        if again {
            assert_eq!(world.claim_one("a", 10).await.message.id, failed.id);
        }
        assert_ne!(world.store.cancel(&failed.id, early).await.unwrap(), Cancellation::NotFound);
        let story = world.story(&failed.id).await;
        let end = if again { State::CancelRequested } else { State::Cancelled };
        assert_eq!(story.last(), Some(&end), "{story:?}");
    }
}
