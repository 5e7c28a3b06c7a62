//! Scenarios of the log, the dead letters, the secrets and retention. Each runs on every store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use homing::domain::filter::MessageFilter;
use homing::domain::id::{DeadLetterId, MessageId};
use homing::domain::message::{Headers, Message};
use homing::domain::outcome::{LOGGED_BODY, Outcome};
use homing::domain::time::Timestamp;
use homing::store::{
    Accept, Accepted, Applied, Cancellation, DeadLetter, DeadLetterFilter, Ended, Lease, LogCursor, LogEntry,
    LogFilter, Missing, Order, Retention, SigningKeyPair, State, StoredKeys,
};

use crate::support::{
    ANY_SIZE, FUTURE, Held, NODE, START, World, keyed, leased, message, time, waiting, with_callback,
};

/// The place of an attempt's entries among those of its message.
const ATTEMPT: i64 = 4;
const CANCEL: i64 = 1 << 40;

fn after(entry: &LogEntry) -> LogCursor {
    entry.place()
}

/// All pages of the log, as a client walks them.
async fn walk_log(world: &World, filter: &LogFilter, order: Order, count: usize) -> Vec<LogEntry> {
    let mut entries: Vec<LogEntry> = Vec::new();
    loop {
        let cursor = entries.last().map(after);
        let page = world.store.log(filter, order, cursor.as_ref(), count, ANY_SIZE).await.unwrap();
        assert!(page.items.len() <= count);
        entries.extend(page.items);
        if page.next.is_none() {
            return entries;
        }
        assert_eq!(page.next, entries.last().map(after));
    }
}

async fn walk_letters(
    world: &World,
    filter: &DeadLetterFilter,
    order: Order,
    count: usize,
) -> Vec<DeadLetter> {
    let mut letters: Vec<DeadLetter> = Vec::new();
    let mut after = None;
    loop {
        let page = world.store.dead_letters(filter, order, after.as_ref(), count, ANY_SIZE).await.unwrap();
        assert!(page.items.len() <= count);
        letters.extend(page.items);
        after = page.next;
        if after.is_none() {
            return letters;
        }
    }
}

/// Tries a message `attempts` times in vain.
async fn retry(world: &World, lane: &str, attempts: u32) -> Held {
    let id = world.publish(lane).await;
    for attempt in 0..attempts {
        let held = Held::from(&world.claim_one(lane, 100 + i64::from(attempt)).await);
        assert_eq!(held.retried, attempt);
        assert_eq!(world.finish(held.retry_at(START + i64::from(attempt))).await, Applied::Yes);
    }
    let held = Held::from(&world.claim_one(lane, 200).await);
    assert_eq!(held.id, id);
    held
}

pub(crate) async fn the_log_tells_each_story(world: World) {
    let story = async |id: &MessageId| {
        let filter = LogFilter { messages: vec![id.clone()], ..LogFilter::default() };
        let entries = walk_log(&world, &filter, Order::EarliestFirst, 100).await;
        for entry in &entries {
            // Who tells what.
            let answered = matches!(entry.state, State::Error | State::Failed | State::Delivered);
            assert_eq!(entry.response.is_some(), answered, "{:?}", entry.state);
            let failed = matches!(entry.state, State::Error | State::Failed);
            assert_eq!(entry.error.is_some(), failed, "{:?}", entry.state);
            assert_eq!(entry.next_due_at.is_some(), entry.state == State::Retry, "{:?}", entry.state);
        }
        entries
            .into_iter()
            .map(|entry| (entry.state, entry.sequence, entry.time.as_millis() - START))
            .collect::<Vec<_>>()
    };
    let failing = retry(&world, "a", 2).await;
    let so_far = vec![
        (State::Created, 0, 0),
        (State::Active, 1, 999_990),
        (State::Error, 2, 1_000_000),
        (State::Retry, 3, 1_000_000),
        (State::Active, ATTEMPT + 1, 1_999_990),
        (State::Error, ATTEMPT + 2, 2_000_000),
        (State::Retry, ATTEMPT + 3, 2_000_000),
    ];
    // The attempt in flight began when it was due, as far as the store knows: before the last one ended, here.
    let mut in_flight = so_far.clone();
    in_flight.insert(1, (State::Active, 2 * ATTEMPT + 1, 1));
    assert_eq!(story(&failing.id).await, in_flight);
    assert_eq!(world.finish(failing.failed("1-1")).await, Applied::Yes);
    let mut failed = so_far;
    failed.extend([
        (State::Active, 2 * ATTEMPT + 1, 2_999_990),
        (State::Error, 2 * ATTEMPT + 2, 3_000_000),
        (State::Failed, 2 * ATTEMPT + 3, 3_000_000),
    ]);
    assert_eq!(story(&failing.id).await, failed);

    let delivered = retry(&world, "b", 1).await;
    assert_eq!(world.finish(delivered.delivered()).await, Applied::Yes);
    let entries = story(&delivered.id).await;
    let expected = [(State::Active, ATTEMPT + 1, 1_999_990), (State::Delivered, ATTEMPT + 3, 2_000_000)];
    assert_eq!(entries[4..], expected);

    let cancelled = retry(&world, "c", 0).await;
    let asked = world.store.cancel(&cancelled.id, time(START + 999_995)).await.unwrap();
    assert_eq!(asked, Cancellation::Requested);
    assert_eq!(world.finish(cancelled.cancelled()).await, Applied::Yes);
    let expected = [
        (State::Active, 1, 999_990),
        (State::CancelRequested, CANCEL, 999_995),
        (State::Error, 2, 1_000_000),
        (State::Cancelled, CANCEL + 1, 1_000_000),
    ];
    assert_eq!(story(&cancelled.id).await[1..], expected);

    let later = Message { due_at: time(FUTURE), ..world.message() };
    world.accept(&[waiting(later.clone(), "d")]).await;
    let filter = LogFilter { messages: vec![later.id.clone()], ..LogFilter::default() };
    let entries = walk_log(&world, &filter, Order::LatestFirst, 10).await;
    assert_eq!(
        (entries.len(), entries[0].state, entries[0].next_due_at),
        (1, State::Created, Some(time(FUTURE)))
    );
    assert_eq!(*entries[0].message, later);
}

/// Messages of every fate, with many entries in the same millisecond.
async fn many_stories(world: &World) {
    for number in 0..6 {
        let lane = format!("lane-{number}");
        let held = retry(world, &lane, 2).await;
        match number % 3 {
            0 => assert_eq!(world.finish(held.failed(&format!("1-{number}"))).await, Applied::Yes),
            1 => assert_eq!(world.finish(held.delivered()).await, Applied::Yes),
            _ => {
                world.store.cancel(&held.id, time(held.ended_at() - 5)).await.unwrap();
                assert_eq!(world.finish(held.cancelled()).await, Applied::Yes);
            }
        }
    }
    let at_once: Vec<_> = (0..5).map(|number| waiting(message(9000 + number, START + 3), "x")).collect();
    world.accept(&at_once).await;
    world.store.cancel(&at_once[2].message.id, time(START + 3)).await.unwrap();
}

pub(crate) async fn log_pages_follow_each_other(world: World) {
    many_stories(&world).await;
    let filter = LogFilter::default();
    let whole = walk_log(&world, &filter, Order::EarliestFirst, 1000).await;
    let places: Vec<_> =
        whole.iter().map(|entry| (entry.time, entry.message.id.clone(), entry.sequence)).collect();
    assert!(places.is_sorted() && places.len() > 60, "{} entries", places.len());
    assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len(), "places are unique");
    let states: BTreeSet<String> = whole.iter().map(|entry| format!("{:?}", entry.state)).collect();
    assert_eq!(states.len(), 8, "all states occur: {states:?}");
    let mut reversed = whole.clone();
    reversed.reverse();
    for count in [1, 2, 7, whole.len() - 1, whole.len()] {
        assert!(walk_log(&world, &filter, Order::EarliestFirst, count).await == whole, "pages of {count}");
        assert!(walk_log(&world, &filter, Order::LatestFirst, count).await == reversed, "pages of {count}");
    }
    // A bare time as cursor leaves out its whole millisecond.
    let bare = LogCursor { time: time(START + 3), entry: None };
    for order in [Order::EarliestFirst, Order::LatestFirst] {
        let page = world.store.log(&filter, order, Some(&bare), 1000, ANY_SIZE).await.unwrap();
        let beyond = |entry: &&LogEntry| match order {
            Order::EarliestFirst => entry.time > bare.time,
            Order::LatestFirst => entry.time < bare.time,
        };
        assert_eq!(page.items.len(), whole.iter().filter(beyond).count());
        assert!(page.items.iter().all(|entry| beyond(&entry)));
    }
}

pub(crate) async fn log_pages_stay_in_place_under_new_entries(world: World) {
    many_stories(&world).await;
    let filter = LogFilter::default();
    let whole = walk_log(&world, &filter, Order::LatestFirst, 1000).await;
    let mut seen: Vec<LogEntry> = Vec::new();
    loop {
        let cursor = seen.last().map(after);
        let page = world.store.log(&filter, Order::LatestFirst, cursor.as_ref(), 5, ANY_SIZE).await.unwrap();
        seen.extend(page.items);
        if page.next.is_none() {
            break;
        }
        // Something newer happens between any two pages.
        let number = u32::try_from(seen.len()).unwrap();
        let new = message(20_000 + number, START + 10_000_000 + i64::from(number));
        assert_eq!(world.accept(&[waiting(new, "new")]).await, [Accepted::Stored]);
    }
    assert!(seen == whole);
}

pub(crate) async fn log_filters_apply_together(world: World) {
    many_stories(&world).await;
    let whole = walk_log(&world, &LogFilter::default(), Order::LatestFirst, 1000).await;
    let check = async |filter: LogFilter, wanted: &dyn Fn(&LogEntry) -> bool| {
        let expected: Vec<_> = whole.iter().filter(|entry| wanted(entry)).cloned().collect();
        assert!(!expected.is_empty(), "{filter:?} finds something");
        for count in [3, 1000] {
            let found = walk_log(&world, &filter, Order::LatestFirst, count).await;
            assert!(found == expected, "{filter:?}: {} of {}", found.len(), expected.len());
        }
    };
    let all = [
        State::Created,
        State::Active,
        State::Delivered,
        State::Error,
        State::Retry,
        State::Failed,
        State::CancelRequested,
        State::Cancelled,
    ];
    for state in all {
        check(LogFilter { states: vec![state], ..LogFilter::default() }, &|entry| entry.state == state).await;
    }
    let progress = [State::Active, State::Retry, State::Error];
    let filter = LogFilter { states: progress.to_vec(), ..LogFilter::default() };
    check(filter, &|entry| progress.contains(&entry.state)).await;
    let ids = [whole[0].message.id.clone(), whole[whole.len() - 1].message.id.clone(), MessageId::new("no")];
    let filter = LogFilter { messages: ids.to_vec(), ..LogFilter::default() };
    check(filter, &|entry| ids.contains(&entry.message.id)).await;
    let (from, to) = (time(START + 999_990), time(START + 2_000_000));
    let filter = LogFilter { from: Some(from), to: Some(to), ..LogFilter::default() };
    check(filter.clone(), &|entry| (from..=to).contains(&entry.time)).await;
    let filter = LogFilter { messages: vec![ids[1].clone()], states: progress.to_vec(), ..filter };
    check(filter, &|entry| {
        entry.message.id == ids[1] && progress.contains(&entry.state) && (from..=to).contains(&entry.time)
    })
    .await;
}

pub(crate) async fn log_pages_are_bounded_in_bytes(world: World) {
    many_stories(&world).await;
    let filter = LogFilter::default();
    for order in [Order::EarliestFirst, Order::LatestFirst] {
        let page = world.store.log(&filter, order, None, 100, 1).await.unwrap();
        assert_eq!((page.items.len(), page.next), (1, page.items.first().map(after)));
        let page = world.store.log(&filter, order, None, 100, 200).await.unwrap();
        assert_eq!(page.next, page.items.last().map(after));
        assert!((2..100).contains(&page.items.len()), "{} entries", page.items.len());
    }
}

/// Dead letters with ids whose text is in another order than their numbers, some of one millisecond.
async fn some_letters(world: &World) -> Vec<DeadLetterId> {
    let mut ids = Vec::new();
    for (index, text) in ["1-10", "1-9", "1-2", "2-1", "10-1"].into_iter().enumerate() {
        let held = world.publish_leased("a", 1).await;
        let mut ended = if index == 3 { held.failed_unanswered(text) } else { held.failed(text) };
        let created_at = START + 5000 + i64::try_from(index / 2).unwrap();
        Arc::make_mut(&mut ended.finish).attempt.ended_at = time(created_at);
        assert_eq!(world.finish(ended).await, Applied::Yes);
        ids.push(DeadLetterId::new(text));
    }
    // By time, then by the id as text.
    let order = [0, 1, 2, 3, 4];
    assert!(ids[0].as_str() < ids[1].as_str() && ids[2].as_str() < ids[3].as_str());
    order.map(|index: usize| ids[index].clone()).into()
}

pub(crate) async fn dead_letters_are_listed_in_pages(world: World) {
    let ids = some_letters(&world).await;
    let filter = DeadLetterFilter::default();
    for order in [Order::EarliestFirst, Order::LatestFirst] {
        let mut expected = ids.clone();
        if order == Order::LatestFirst {
            expected.reverse();
        }
        for count in [1, 2, 4, 5, 100] {
            let letters = walk_letters(&world, &filter, order, count).await;
            let found: Vec<_> = letters.iter().map(|letter| letter.id.clone()).collect();
            assert_eq!(found, expected, "{order:?}, pages of {count}");
        }
        let page = world.store.dead_letters(&filter, order, None, 100, 1).await.unwrap();
        assert_eq!(page.items.len(), 1);
        assert_eq!(page.next, page.items.last().map(DeadLetter::place));
        for letter in page.items {
            assert_eq!(world.store.dead_letter(&letter.id).await.unwrap(), Some(letter));
        }
    }
}

pub(crate) async fn dead_letters_are_filtered(world: World) {
    let ids = some_letters(&world).await;
    let all = walk_letters(&world, &DeadLetterFilter::default(), Order::EarliestFirst, 100).await;
    let check = async |filter: DeadLetterFilter, expected: &[usize]| {
        let found = walk_letters(&world, &filter, Order::EarliestFirst, 2).await;
        let expected: Vec<_> = expected.iter().map(|&index| all[index].clone()).collect();
        assert!(found == expected, "{filter:?}: {found:?}");
    };
    let unknown = DeadLetterId::new("3-3");
    let by_id = DeadLetterFilter {
        ids: vec![ids[3].clone(), unknown, ids[0].clone()],
        ..DeadLetterFilter::default()
    };
    check(by_id.clone(), &[0, 3]).await;
    let messages = vec![all[3].message.id.clone(), all[4].message.id.clone()];
    check(DeadLetterFilter { messages: messages.clone(), ..DeadLetterFilter::default() }, &[3, 4]).await;
    check(DeadLetterFilter { messages, ..by_id }, &[3]).await;
    let (from, to) = (Some(all[2].created_at), Some(all[3].created_at));
    check(DeadLetterFilter { from, ..DeadLetterFilter::default() }, &[2, 3, 4]).await;
    check(DeadLetterFilter { from, to, ..DeadLetterFilter::default() }, &[2, 3]).await;
}

pub(crate) async fn dead_letters_are_deleted_once(world: World) {
    let ids = some_letters(&world).await;
    let some = [ids[1].clone(), DeadLetterId::new("3-3"), ids[4].clone(), ids[1].clone()];
    assert_eq!(world.store.delete_dead_letters(&some).await.unwrap(), 2);
    assert_eq!(world.store.delete_dead_letters(&some).await.unwrap(), 0);
    assert_eq!(world.store.dead_letter(&ids[1]).await.unwrap(), None);
    let left = walk_letters(&world, &DeadLetterFilter::default(), Order::EarliestFirst, 10).await;
    let left: Vec<_> = left.into_iter().map(|letter| letter.id).collect();
    assert_eq!(left, [ids[0].clone(), ids[2].clone(), ids[3].clone()]);
}

pub(crate) async fn dead_letters_are_retried_all_or_none(world: World) {
    let ids = some_letters(&world).await;
    let replacement = |id: &DeadLetterId| (id.clone(), waiting(world.message(), "b"));
    let unknown = DeadLetterId::new("3-3");
    let batch = [replacement(&ids[0]), replacement(&unknown), replacement(&ids[1])];
    let retry = async |batch: &[_]| world.store.retry_dead_letters(batch, Missing::Refuse).await.unwrap();
    assert_eq!(retry(&batch).await, [false; 3]);
    let twice = [replacement(&ids[0]), replacement(&ids[0])];
    assert_eq!(retry(&twice).await, [false; 2]);
    assert!(world.nothing_waits().await);
    for (id, accept) in batch.iter().chain(&twice) {
        assert_eq!(world.store.message(&accept.message.id).await.unwrap(), None);
        assert_eq!(world.store.dead_letter(id).await.unwrap().is_some(), *id != unknown);
    }
    let batch = [replacement(&ids[0]), replacement(&ids[1])];
    assert_eq!(retry(&batch).await, [true; 2]);
    assert_eq!(retry(&batch).await, [false; 2]);
    let claimed = world.claim("b", 1).await;
    let messages: Vec<Arc<Message>> = batch.iter().map(|(_, accept)| Arc::clone(&accept.message)).collect();
    assert_eq!(claimed.iter().map(|delivery| Arc::clone(&delivery.message)).collect::<Vec<_>>(), messages);
    assert!(claimed.iter().all(|delivery| (delivery.claims, delivery.retried) == (1, 0)));
    let left = walk_letters(&world, &DeadLetterFilter::default(), Order::EarliestFirst, 10).await;
    assert_eq!(left.len(), 3);
    assert!(retry(&[]).await.is_empty());
}

pub(crate) async fn many_dead_letters_are_retried_all_or_none(world: World) {
    let mut ids = Vec::new();
    for part in 0..9 {
        let batch: Vec<Accept> = (0..250).map(|_| leased(world.message(), "a", 1)).collect();
        world.accept(&batch).await;
        let mut ends = Vec::new();
        for (index, accept) in batch.iter().enumerate() {
            let id = format!("1-{}", 250 * part + index);
            let held = Held { id: accept.message.id.clone(), lease: Lease(1), retried: 0, slot: None };
            ends.push(held.failed(&id));
            ids.push(DeadLetterId::new(id));
        }
        assert!(world.store.finish(NODE, &ends).await.unwrap().iter().all(|it| *it == Applied::Yes));
    }
    let replacements = |ids: &[DeadLetterId]| -> Vec<(DeadLetterId, Accept)> {
        ids.iter().map(|id| (id.clone(), waiting(world.message(), "b"))).collect()
    };
    let unknown = [&ids[..], &[DeadLetterId::new("3-3")]].concat();
    let batch = replacements(&unknown);
    let retried = world.store.retry_dead_letters(&batch, Missing::Refuse).await.unwrap();
    assert_eq!(retried, vec![false; 2251]);
    assert!(world.nothing_waits().await);
    let retried = world.store.retry_dead_letters(&batch[2000..], Missing::Skip).await.unwrap();
    assert_eq!(retried, [vec![true; 250], vec![false]].concat());

    // Deleting at once what is being retried: it is one or the other, and never a part.
    let (named, deleted) = (replacements(&ids[..2000]), [ids[1999].clone()]);
    let retry = world.store.retry_dead_letters(&named, Missing::Refuse);
    let (retried, deleted) = tokio::join!(retry, world.store.delete_dead_letters(&deleted));
    assert_eq!(retried.unwrap(), vec![deleted.unwrap() == 0; 2000]);
    world.store.retry_dead_letters(&named, Missing::Skip).await.unwrap();
    assert_eq!(walk_letters(&world, &DeadLetterFilter::default(), Order::EarliestFirst, 100).await.len(), 0);
}

pub(crate) fn keys(current: &str, next: &str) -> StoredKeys {
    StoredKeys {
        pair: SigningKeyPair { current: current.to_owned(), next: next.to_owned() },
        configured: Some([7; 32]),
    }
}

pub(crate) async fn signing_keys_are_made_once_and_rotate(world: World) {
    let now = time(START);
    let mut asks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(&world.store);
        let fresh = keys(&format!("sig_{number}"), &format!("sig_{number}_next"));
        asks.spawn(async move { store.signing_keys(&fresh, now).await.unwrap() });
    }
    let pairs = asks.join_all().await;
    assert!(pairs.iter().all(|pair| *pair == pairs[0]));
    let rotated = world.store.rotate_signing_keys("sig_x", now).await.unwrap();
    assert!(rotated == keys(&pairs[0].pair.next, "sig_x").pair);
    assert!(world.store.signing_keys(&keys("a", "b"), now).await.unwrap().pair == rotated);
    world.store.set_signing_keys(&keys("c", "d"), now).await.unwrap();
    assert!(world.store.signing_keys(&keys("a", "b"), now).await.unwrap() == keys("c", "d"));
}

pub(crate) async fn one_token_is_made_however_many_ask(world: World) {
    let mut asks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(&world.store);
        asks.spawn(async move { store.tokens(&[number; 32], time(START)).await.unwrap() });
    }
    let answers = asks.join_all().await;
    assert_eq!(answers.iter().filter(|(_, made)| *made).count(), 1);
    assert!(answers.iter().all(|(hashes, _)| hashes.len() == 1 && *hashes == answers[0].0));
}

const DAY: Duration = Duration::from_hours(24);

async fn prune(world: &World, log: Duration, dead_letters: Duration, now: Timestamp) -> u32 {
    let mut after = String::new();
    for step in 1..100 {
        let retention = Retention { log, dead_letters };
        match world.store.prune(retention, now, &after).await.unwrap() {
            None => return step,
            Some(next) => {
                assert!(next > after, "the walk goes on");
                after = next;
            }
        }
    }
    panic!("the walk does not end");
}

pub(crate) async fn only_what_is_finished_and_old_is_pruned(world: World) {
    let now = time(START).after(30 * DAY);
    let day = i64::try_from(DAY.as_millis()).unwrap();
    let ending_at = |mut ended: homing::store::Ended, at: i64| {
        Arc::make_mut(&mut ended.finish).attempt.ended_at = time(at);
        ended
    };
    let (young, old) = (START + 25 * day, START + 15 * day);
    let waits = world.publish("a").await;
    let runs = world.publish_leased("a", 1).await;
    let delivered_old = world.publish_leased("a", 1).await;
    assert_eq!(world.finish(ending_at(delivered_old.delivered(), old)).await, Applied::Yes);
    let delivered_young = world.publish_leased("a", 1).await;
    assert_eq!(world.finish(ending_at(delivered_young.delivered(), young)).await, Applied::Yes);
    let cancelled_old = world.publish("a").await;
    world.store.cancel(&cancelled_old, time(old)).await.unwrap();
    let cancelled_young = world.publish("a").await;
    world.store.cancel(&cancelled_young, time(young)).await.unwrap();
    // Asked for long ago, and only lately found by a node.
    let found_late = world.publish_leased("b", 2).await;
    world.store.cancel(&found_late.id, time(old)).await.unwrap();
    let held = [(found_late.id.clone(), Lease(2))];
    assert_eq!(world.store.finish_cancelled(NODE, &held, time(young)).await.unwrap(), 1);
    let letter_old = world.publish_leased("a", 1).await;
    assert_eq!(world.finish(ending_at(letter_old.failed("1-1"), old)).await, Applied::Yes);
    let letter_young = world.publish_leased("a", 1).await;
    assert_eq!(world.finish(ending_at(letter_young.failed("1-2"), young)).await, Applied::Yes);
    let accepted_young = message(500, young);
    world.accept(&[waiting(accepted_young.clone(), "c")]).await;
    world.store.cancel(&accepted_young.id, time(old)).await.unwrap();
    let keys = [("expired", now.as_millis()), ("held", now.as_millis() + 1)];
    let holders = keys.map(|(key, expires_at)| keyed(world.message(), key, expires_at));
    world.accept(&holders).await;

    // Dead letters stay longer here than the log does.
    prune(&world, 10 * DAY, 20 * DAY, now).await;
    let kept = async |id: &MessageId| {
        let kept = world.store.message(id).await.unwrap().is_some();
        assert_eq!(!world.story(id).await.is_empty(), kept, "a message and its log go together");
        kept
    };
    for id in [&delivered_old.id, &cancelled_old] {
        assert!(!kept(id).await);
    }
    let all = [
        &waits,
        &runs.id,
        &delivered_young.id,
        &cancelled_young,
        &found_late.id,
        &letter_old.id,
        &letter_young.id,
        &accepted_young.id,
    ];
    for (index, id) in all.into_iter().enumerate() {
        assert!(kept(id).await, "the {index}th");
    }
    // The expired key is free even for somebody whose clock is behind; the other is not.
    let behind = |key| keyed(world.message(), key, FUTURE);
    let results = world.accept(&[behind("expired"), behind("held")]).await;
    assert_eq!(results, [Accepted::Stored, Accepted::Duplicate(holders[1].message.id.clone())]);

    // A dead letter goes with its message, if that has nothing young.
    prune(&world, 10 * DAY, 10 * DAY, now).await;
    assert!(!kept(&letter_old.id).await);
    assert!(kept(&letter_young.id).await);
    assert_eq!(world.store.dead_letter(&DeadLetterId::new("1-1")).await.unwrap(), None);
    assert!(world.store.dead_letter(&DeadLetterId::new("1-2")).await.unwrap().is_some());
    assert_eq!(world.finish(runs.delivered()).await, Applied::Yes);
    assert!(world.claim("a", 9).await.iter().any(|delivery| delivery.message.id == waits));
}

pub(crate) async fn pruning_walks_on(world: World) {
    let mut kept = Vec::new();
    let mut batch = Vec::new();
    for number in 0..1200 {
        let accept = waiting(world.message(), if number % 100 == 7 { "kept" } else { "gone" });
        if number % 100 == 7 {
            kept.push(accept.message.id.clone());
        }
        batch.push(accept);
    }
    world.accept(&batch).await;
    let claimed =
        world.store.claim(NODE, Lease(1), &[crate::support::want("gone", 5000)], ANY_SIZE).await.unwrap();
    let ended: Vec<_> = claimed.iter().map(|delivery| Held::from(delivery).delivered()).collect();
    // One has a callback, which is old as well and waits.
    let callback = world.message();
    let mut ended = ended;
    ended[0] = with_callback(ended[0].clone(), callback.clone(), "kept", None);
    assert_eq!(world.store.finish(NODE, &ended).await.unwrap(), vec![Applied::Yes; 1188]);
    let steps = prune(&world, DAY, DAY, time(START).after(30 * DAY)).await;
    assert!(world.is_model() || steps > 1, "a batch is less than everything");
    let filter = LogFilter { states: vec![State::Created], ..LogFilter::default() };
    let left = walk_log(&world, &filter, Order::EarliestFirst, 1000).await;
    kept.push(callback.id);
    assert_eq!(left.iter().map(|entry| entry.message.id.clone()).collect::<Vec<_>>(), kept);
    let left = walk_log(&world, &LogFilter::default(), Order::EarliestFirst, 1000).await;
    assert_eq!(left.len(), kept.len());
}

pub(crate) async fn the_log_keeps_the_beginning_of_a_long_answer(world: World) {
    let long = "x".repeat(3 * LOGGED_BODY);
    let (retried, failed) = (world.publish_leased("a", 1).await, world.publish_leased("a", 2).await);
    let delivered = world.publish_leased("a", 3).await;
    let ends = [retried.retry_at(FUTURE), failed.failed("1-1"), delivered.delivered()];
    for ended in ends {
        let ended = with_headers(with_answer(ended, &long), &"x".repeat(LOGGED_BODY / 3));
        assert_eq!(world.finish(ended).await, Applied::Yes);
    }
    let filter = LogFilter::default();
    let page = world.store.log(&filter, Order::EarliestFirst, None, 1000, ANY_SIZE).await.unwrap();
    let answers: Vec<usize> =
        page.items.iter().filter_map(|entry| Some(entry.response.as_ref()?.body.len())).collect();
    assert_eq!(answers, [LOGGED_BODY; 4], "ERROR twice, FAILED, DELIVERED");
    let headers = page.items.iter().filter_map(|entry| Some(entry.response.as_ref()?.headers.0.len()));
    assert_eq!(headers.collect::<Vec<_>>(), [2; 4], "what fits");
    let letter = world.store.dead_letter(&DeadLetterId::new("1-1")).await.unwrap().unwrap();
    let response = letter.response.unwrap();
    assert_eq!((response.body, response.headers.0.len()), (long.into(), 3));
}

pub(crate) async fn headers_are_a_part_of_a_pages_bytes(world: World) {
    let long = "x".repeat(LOGGED_BODY / 3);
    for number in 1..=3 {
        let ended = world.publish_leased("a", number).await.failed(&format!("1-{number}"));
        assert_eq!(world.finish(with_headers(ended, &long)).await, Applied::Yes);
    }
    let (order, bytes) = (Order::EarliestFirst, 3 * long.len());
    let filter = DeadLetterFilter::default();
    let page = world.store.dead_letters(&filter, order, None, 100, bytes).await.unwrap();
    assert_eq!(page.items.len(), 1);
    let filter = LogFilter { states: vec![State::Failed], ..LogFilter::default() };
    let page = world.store.log(&filter, order, None, 100, bytes).await.unwrap();
    assert_eq!(page.items.len(), 2, "of which the log keeps two headers each");
}

/// More than a window of them.
pub(crate) async fn a_filter_may_leave_nothing_of_many_dead_letters(world: World) {
    let mut messages = world.messages(1300);
    messages[1200].labels = vec!["rare".to_owned(), "other".to_owned()];
    let accepts: Vec<_> = messages.into_iter().map(|message| leased(message, "a", 1)).collect();
    world.accept(&accepts).await;
    let ends: Vec<_> = accepts
        .iter()
        .enumerate()
        .map(|(number, accept)| {
            let held = Held { id: accept.message.id.clone(), lease: Lease(1), retried: 0, slot: None };
            held.failed(&format!("1-{number:04}"))
        })
        .collect();
    world.store.finish(NODE, &ends).await.unwrap();
    let labels = |labels: &[&str]| {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let matching = MessageFilter { labels, ..MessageFilter::default() };
        DeadLetterFilter { matching, ..DeadLetterFilter::default() }
    };
    for order in [Order::EarliestFirst, Order::LatestFirst] {
        let found = walk_letters(&world, &labels(&["x", "rare"]), order, 2).await;
        let ids: Vec<&str> = found.iter().map(|letter| letter.id.as_str()).collect();
        assert_eq!(ids, ["1-1200"]);
        assert_eq!(walk_letters(&world, &labels(&["rar", "are"]), order, 2).await, []);
        assert_eq!(walk_letters(&world, &DeadLetterFilter::default(), order, 1300).await.len(), 1300);
    }
}

/// The same end with another answer.
fn with_answer(mut ended: Ended, body: &str) -> Ended {
    let finish = Arc::make_mut(&mut ended.finish);
    if let Outcome::Response(response) = &mut finish.attempt.outcome {
        response.body = Bytes::copy_from_slice(body.as_bytes());
    }
    ended
}

/// The same end with an answer that has three headers of that value.
fn with_headers(mut ended: Ended, value: &str) -> Ended {
    let finish = Arc::make_mut(&mut ended.finish);
    if let Outcome::Response(response) = &mut finish.attempt.outcome {
        response.headers = Headers((0..3).map(|n| (format!("X-{n}"), value.into())).collect());
    }
    ended
}
