//! Scenarios of accepting, claiming, finishing and cancelling. Each runs on every store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use homing::domain::id::{DeadLetterId, MessageId};
use homing::domain::message::{CallbackSpec, FlowControl, Headers, Message, Method, Options, Redact};
use homing::domain::signature::body_sha256;
use homing::store::{
    Accept, Accepted, Applied, Cancellation, DeadLetterFilter, Ended, Lease, LogCursor, LogFilter, Missing,
    NodeId, Order, Repeat, State,
};

use crate::support::{
    ANY_SIZE, FUTURE, Held, LATEST, NODE, START, World, ids, keyed, leased, time, waiting, want,
    with_callback,
};

const OTHER: NodeId = NodeId(2);

pub(crate) async fn messages_are_read_back_unchanged(world: World) {
    let body = Bytes::from_static(b"\x00\xff'\"\\");
    let spec = CallbackSpec {
        url: "https://example.com/cb?a=1".to_owned(),
        method: Method::Put,
        headers: Headers(vec![("X-A".to_owned(), b"1 \xf6".to_vec())]),
        retries: Some(0),
        delay: Some(Duration::from_secs(5)),
        labels: vec!["of-callback".to_owned()],
        options: Options { timeout: Some(Duration::from_secs(1)), ..Options::default() },
    };
    let full = Message {
        due_at: time(FUTURE),
        method: Method::Patch,
        url: "https://user:päss@example.com/?q='; DROP TABLE messages; --".to_owned(),
        headers: Headers(vec![
            ("X-Twice".to_owned(), "first, \"quoted\"".into()),
            ("X-Twice".to_owned(), "ünïcode \u{10ffff}".into()),
            ("X-Latin".to_owned(), b"\xf6 \xc3\xb6 \x80\xff".to_vec()),
            ("Accept".to_owned(), Vec::new()),
        ]),
        body_sha256: body_sha256(&body),
        body,
        max_retries: u32::MAX,
        caller_ip: Some("2001:db8::1".to_owned()),
        labels: vec!["one".to_owned(), "two".to_owned()],
        queue: Some("q".to_owned()),
        url_group: Some("g".to_owned()),
        endpoint: Some("e".to_owned()),
        schedule_id: Some("s".to_owned()),
        source_id: Some(MessageId::new("msg_source")),
        options: Options {
            timeout: Some(Duration::from_millis(1500)),
            retry_delay: Some("pow(2, retried)".to_owned()),
            callback: Some(Box::new(spec.clone())),
            failure_callback: Some(Box::new(spec)),
            redact: Redact { body: true, all_headers: false, headers: vec!["X-A".to_owned()] },
            flow_control: Some(FlowControl {
                key: "k/1".to_owned(),
                parallelism: Some(2),
                rate: None,
                period_s: 60,
            }),
            api: Some("llm".to_owned()),
        },
        ..world.message()
    };
    let empty = Message { body: Bytes::new(), body_sha256: body_sha256(b""), ..world.message() };
    world.accept(&[waiting(full.clone(), "a"), waiting(empty.clone(), "a")]).await;
    for message in [full, empty] {
        assert_eq!(world.store.message(&message.id).await.unwrap(), Some(message));
    }
    assert_eq!(world.store.message(&MessageId::new("msg_unknown")).await.unwrap(), None);
}

pub(crate) async fn accepted_messages_wait_or_are_leased(world: World) {
    let batch = [waiting(world.message(), "a"), leased(world.message(), "a", 7)];
    assert_eq!(world.accept(&batch).await, [Accepted::Stored, Accepted::Stored]);
    let delivery = world.claim_one("a", 8).await;
    assert_eq!(delivery.message, batch[0].message);
    assert_eq!((&*delivery.lane, delivery.lease), ("a", Lease(8)));
    assert_eq!((delivery.retried, delivery.claims, delivery.cancel_requested), (0, 1, false));
    assert!(world.claim("a", 9).await.is_empty());
    let held = Held { id: batch[1].message.id.clone(), lease: Lease(7), retried: 0, slot: None };
    assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    assert_eq!(world.accept(&[]).await, []);
}

pub(crate) async fn a_repeat_stores_nothing_twice(world: World) {
    for (lane, lease) in [("a", None), ("b", Some(Lease(1)))] {
        let mut batch: Vec<_> = world.messages(3).into_iter().map(|message| waiting(message, lane)).collect();
        for accept in &mut batch {
            accept.lease = lease;
        }
        world.accept(&batch[..2]).await;
        // One of them came not through.
        let results = world.store.accept(NODE, &batch, Repeat::Again).await.unwrap();
        assert_eq!(results, vec![Accepted::Stored; 3]);
        if lease.is_some() {
            world.store.reconcile(NODE, &[], LATEST).await.unwrap();
        }
        let claimed = world.claim(lane, 2).await;
        let expected: Vec<_> = batch.iter().map(|accept| accept.message.id.clone()).collect();
        assert_eq!(ids(&claimed), expected);
    }
}

pub(crate) async fn a_repeat_does_not_resurrect_what_is_finished(world: World) {
    let plain = leased(world.message(), "a", 1);
    let mut with_key = keyed(world.message(), "k", FUTURE);
    with_key.lease = Some(Lease(1));
    let batch = [plain, with_key];
    world.accept(&batch).await;
    for accept in &batch {
        let held = Held { id: accept.message.id.clone(), lease: Lease(1), retried: 0, slot: None };
        assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    }
    let again = world.store.accept(NODE, &batch, Repeat::Again).await.unwrap();
    assert_eq!(again, [Accepted::Stored, Accepted::Stored]);
    assert!(world.nothing_waits().await);
    assert_eq!(world.store.reconcile(NODE, &[], LATEST).await.unwrap(), 0);
}

pub(crate) async fn a_key_admits_one_message_until_it_expires(world: World) {
    let holder = keyed(world.message(), "k", START + 100);
    assert_eq!(world.accept(std::slice::from_ref(&holder)).await, [Accepted::Stored]);
    let at = |created_at: i64| {
        let number = u32::try_from(created_at - START).unwrap();
        keyed(crate::support::message(1000 + number, created_at), "k", FUTURE)
    };
    let batch = [at(START + 99), keyed(world.message(), "K", FUTURE)];
    let results = world.accept(&batch).await;
    assert_eq!(results, [Accepted::Duplicate(holder.message.id.clone()), Accepted::Stored]);
    assert_eq!(world.store.message(&batch[0].message.id).await.unwrap(), None);
    let next = at(START + 100);
    assert_eq!(world.accept(std::slice::from_ref(&next)).await, [Accepted::Stored]);
    let last = at(START + 101);
    assert_eq!(world.accept(&[last]).await, [Accepted::Duplicate(next.message.id.clone())]);
}

pub(crate) async fn a_key_admits_one_message_of_a_batch(world: World) {
    let first = keyed(world.message(), "old", FUTURE);
    world.accept(std::slice::from_ref(&first)).await;
    let batch = [
        keyed(world.message(), "new", FUTURE),
        keyed(world.message(), "old", FUTURE),
        waiting(world.message(), "a"),
        keyed(world.message(), "new", FUTURE),
        keyed(world.message(), "old", FUTURE),
    ];
    let stored = batch[0].message.id.clone();
    let first = first.message.id.clone();
    let expected = [
        Accepted::Stored,
        Accepted::Duplicate(first.clone()),
        Accepted::Stored,
        Accepted::Duplicate(stored.clone()),
        Accepted::Duplicate(first.clone()),
    ];
    assert_eq!(world.accept(&batch).await, expected);
    assert_eq!(ids(&world.claim("a", 1).await), [first, stored, batch[2].message.id.clone()]);
}

pub(crate) async fn the_own_repeat_is_not_a_duplicate(world: World) {
    let mine = keyed(world.message(), "k", FUTURE);
    let same = keyed(world.message(), "k", FUTURE);
    let other = keyed(world.message(), "l", FUTURE);
    let stored = Accepted::Duplicate(mine.message.id.clone());
    assert_eq!(world.accept(&[mine.clone(), same.clone()]).await, [Accepted::Stored, stored.clone()]);
    let again = world.store.accept(NODE, &[mine.clone(), same, other], Repeat::Again).await.unwrap();
    assert_eq!(again, [Accepted::Stored, stored, Accepted::Stored]);
    assert_eq!(world.claim("a", 1).await.len(), 2);
}

pub(crate) async fn equal_keys_at_once_store_one_message(world: World) {
    let mut publishes = tokio::task::JoinSet::new();
    for message in world.messages(100) {
        let store = Arc::clone(&world.store);
        publishes.spawn(async move {
            let accept = keyed(message, "k", FUTURE);
            let result = store.accept(NODE, std::slice::from_ref(&accept), Repeat::First).await.unwrap();
            (accept.message.id.clone(), result[0].clone())
        });
    }
    let results = publishes.join_all().await;
    let stored: Vec<_> = results.iter().filter(|(_, result)| *result == Accepted::Stored).collect();
    let [(winner, _)] = stored[..] else { panic!("{} were stored", stored.len()) };
    for (id, result) in &results {
        assert!(id == winner || *result == Accepted::Duplicate(winner.clone()), "{id}: {result:?}");
    }
    assert_eq!(ids(&world.claim("a", 1).await), std::slice::from_ref(winner));
}

pub(crate) async fn claims_come_in_order_and_within_counts(world: World) {
    let mut batch = Vec::new();
    // Accepted in one order, due in another; the last two at the same time.
    for (lane, due_at) in [("a", 50), ("b", 40), ("a", 30), ("a", 20), ("b", 10), ("c", 5), ("a", 20)] {
        let message = Message { due_at: time(START + due_at), ..world.message() };
        batch.push(waiting(message, lane));
    }
    world.accept(&batch).await;
    let claimed = world
        .store
        .claim(NODE, Lease(1), &[want("b", 5), want("a", 3), want("d", 5)], ANY_SIZE)
        .await
        .unwrap();
    let expected: Vec<_> = [4, 3, 6, 2, 1].map(|index: usize| batch[index].message.id.clone()).into();
    assert_eq!(ids(&claimed), expected);
    let lanes: Vec<&str> = claimed.iter().map(|delivery| &*delivery.lane).collect();
    assert_eq!(lanes, ["b", "a", "a", "a", "b"]);
    assert_eq!(ids(&world.claim("a", 2).await), [batch[0].message.id.clone()]);
    assert!(world.store.claim(NODE, Lease(3), &[], ANY_SIZE).await.unwrap().is_empty());
    assert!(world.store.claim(NODE, Lease(3), &[want("c", 0)], ANY_SIZE).await.unwrap().is_empty());
}

pub(crate) async fn claims_are_bounded_in_bytes(world: World) {
    let body = Bytes::from(vec![b'x'; 10_000]);
    let message = || Message { body: body.clone(), body_sha256: body_sha256(&body), ..world.message() };
    let batch: Vec<_> = (0..4).map(|index| waiting(message(), ["a", "b"][index % 2])).collect();
    let size = batch[0].message.size();
    world.accept(&batch).await;
    let mut lease = 0;
    let mut claim = async |max_bytes: usize| {
        lease += 1;
        let wants = [want("b", 9), want("a", 9)];
        ids(&world.store.claim(NODE, Lease(lease), &wants, max_bytes).await.unwrap())
    };
    let id = |index: usize| batch[index].message.id.clone();
    assert_eq!(claim(1).await, [id(0)]);
    assert_eq!(claim(2 * size - 1).await, [id(1)]);
    assert_eq!(claim(2 * size).await, [id(2), id(3)]);
    assert_eq!(claim(2 * size).await, []);
}

pub(crate) async fn a_lane_named_twice_is_claimed_once(world: World) {
    let id = world.publish("a").await;
    let wants = [want("a", 5), want("a", 5)];
    let claimed = world.store.claim(NODE, Lease(1), &wants, ANY_SIZE).await.unwrap();
    assert_eq!(ids(&claimed), [id]);
    assert_eq!(claimed[0].claims, 1);
}

pub(crate) async fn future_messages_are_not_claimed(world: World) {
    let later = Message { due_at: time(FUTURE), ..world.message() };
    world.accept(&[waiting(later.clone(), "a")]).await;
    assert_eq!(world.store.due_lanes(10, "").await.unwrap().lanes, [""; 0]);
    assert!(world.claim("a", 1).await.is_empty());
    let held = world.publish_leased("a", 2).await;
    assert_eq!(world.finish(held.retry_at(FUTURE)).await, Applied::Yes);
    assert!(world.claim("a", 3).await.is_empty());
    assert_eq!(world.store.next_due().await.unwrap().due_at, Some(time(FUTURE)));
}

/// One lane with a thousand due messages hides none of those behind it, wherever its name stands among theirs.
pub(crate) async fn every_due_lane_comes_up(world: World) {
    let flood: Vec<_> = world.messages(1000).into_iter().map(|message| waiting(message, "m")).collect();
    world.accept(&flood).await;
    let mut missing: Vec<String> =
        (0..150).map(|number| format!("{}{number}", ["a", "z"][number % 2])).collect();
    let behind: Vec<_> = missing.iter().map(|lane| waiting(world.message(), lane)).collect();
    world.accept(&behind).await;
    let mut after = String::new();
    for look in 0.. {
        assert!(look < 8, "these lanes did not come up: {missing:?}");
        let due = world.store.due_lanes(256, &after).await.unwrap();
        after = due.after;
        let lanes = due.lanes;
        let mut distinct = lanes.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), lanes.len(), "each lane is told once");
        assert_eq!(lanes[0], "m", "the earliest due comes first");
        missing.retain(|lane| !lanes.contains(lane));
        if missing.is_empty() {
            break;
        }
    }
    // Without a flood, one look sees all, due first.
    world.claim("m", 1).await;
    let lanes = world.store.due_lanes(256, "").await.unwrap().lanes;
    let expected: Vec<&str> = behind.iter().map(|accept| &*accept.lane).collect();
    assert_eq!(lanes, expected);
}

pub(crate) async fn the_earliest_due_time_is_told(world: World) {
    let before = world.store.now().await.unwrap();
    let next = world.store.next_due().await.unwrap();
    assert_eq!(next.due_at, None);
    assert!(next.now >= before);
    world.publish_leased("a", 1).await;
    assert_eq!(world.store.next_due().await.unwrap().due_at, None);
    for (due_at, earliest) in [(FUTURE + 5, FUTURE + 5), (FUTURE, FUTURE), (FUTURE + 9, FUTURE)] {
        let message = Message { due_at: time(due_at), ..world.message() };
        world.accept(&[waiting(message, "a")]).await;
        assert_eq!(world.store.next_due().await.unwrap().due_at, Some(time(earliest)));
    }
}

pub(crate) async fn a_delivered_message_is_done(world: World) {
    let held = world.publish_leased("a", 1).await;
    assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    assert_eq!(world.finish(held.delivered()).await, Applied::No);
    assert!(world.nothing_waits().await);
    assert_eq!(world.store.reconcile(NODE, &[], LATEST).await.unwrap(), 0);
    assert!(world.store.message(&held.id).await.unwrap().is_some());
    assert_eq!(world.story(&held.id).await, [State::Created, State::Active, State::Delivered]);
    assert_eq!(world.store.finish(NODE, &[]).await.unwrap(), []);
}

pub(crate) async fn a_retry_waits_again_with_its_claims_reset(world: World) {
    let id = world.publish("a").await;
    for claims in 1..=3 {
        let delivery = world.claim_one("a", i64::from(claims)).await;
        assert_eq!((delivery.claims, delivery.retried), (claims, 0));
        if claims < 3 {
            assert_eq!(world.store.reconcile(NODE, &[], LATEST).await.unwrap(), 1);
        } else {
            assert_eq!(world.finish(Held::from(&delivery).retry_at(START + 5)).await, Applied::Yes);
        }
    }
    let next = world.store.next_due().await.unwrap();
    assert_eq!(next.due_at, Some(time(START + 5)));
    let delivery = world.claim_one("a", 4).await;
    assert_eq!((delivery.message.id.clone(), delivery.claims, delivery.retried), (id, 1, 1));
    assert_eq!(world.finish(Held::from(&delivery).delivered()).await, Applied::Yes);
}

pub(crate) async fn a_failure_leaves_a_dead_letter(world: World) {
    for (lease, dlq_id) in [(1, "1-1"), (2, "1-2")] {
        let held = world.publish_leased("a", lease).await;
        let ended = if lease == 1 { held.failed(dlq_id) } else { held.failed_unanswered(dlq_id) };
        assert_eq!(world.finish(ended.clone()).await, Applied::Yes);
        let letter = world.store.dead_letter(&DeadLetterId::new(dlq_id)).await.unwrap().unwrap();
        assert_eq!(letter.message.id, held.id);
        assert_eq!(letter.created_at, time(held.ended_at()));
        assert_eq!(letter.error, ended.finish.error);
        let answered = letter.response.map(|response| (response.status, response.body));
        assert_eq!(answered, (lease == 1).then(|| (500, Bytes::from_static(b"boom"))));
        let story = [State::Created, State::Active, State::Error, State::Failed];
        assert_eq!(world.story(&held.id).await, story);
    }
    assert!(world.nothing_waits().await);
}

pub(crate) async fn callbacks_are_stored_with_the_outcome(world: World) {
    for (index, lease) in [(1, 10), (2, 20), (3, 30)] {
        let held = world.publish_leased("a", lease).await;
        let ended = match index {
            1 => held.delivered(),
            2 => held.retry_at(FUTURE),
            _ => held.failed("1-1"),
        };
        let (waits, runs) = (world.message(), world.message());
        let ended = with_callback(ended, waits.clone(), "cb", None);
        let ended = with_callback(ended, runs.clone(), "cb", Some(lease + 1));
        assert_eq!(world.finish(ended).await, Applied::Yes);
        let delivery = world.claim_one("cb", lease + 2).await;
        assert_eq!((&delivery.message.id, delivery.claims), (&waits.id, 1));
        assert_eq!(delivery.message.source_id, Some(held.id));
        assert_eq!(world.finish(Held::from(&delivery).delivered()).await, Applied::Yes);
        let running = Held { id: runs.id, lease: Lease(lease + 1), retried: 0, slot: None };
        assert_eq!(world.finish(running.delivered()).await, Applied::Yes);
    }
}

/// Finishes that hold no lease leave nothing, whatever they bring.
async fn finishes_nothing(world: &World, node: NodeId, held: &Held) {
    let before = world.story(&held.id).await;
    let cases: [fn(&Held) -> Ended; 4] =
        [Held::delivered, |held| held.retry_at(START), |held| held.failed("9-9"), Held::cancelled];
    let mut callbacks = Vec::new();
    for case in cases {
        let messages = world.messages(2);
        callbacks.extend(messages.iter().map(|message| message.id.clone()));
        let [waits, runs] = messages.try_into().unwrap();
        let ended = with_callback(case(held), waits, "cb", None);
        let ended = with_callback(ended, runs, "cb", Some(99));
        assert_eq!(world.store.finish(node, &[ended]).await.unwrap(), [Applied::No]);
        assert_eq!(world.store.finish(node, &[case(held)]).await.unwrap(), [Applied::No]);
    }
    for id in callbacks {
        assert_eq!(world.store.message(&id).await.unwrap(), None);
    }
    assert!(world.claim("cb", 98).await.is_empty());
    assert_eq!(world.store.release(node, &[(held.id.clone(), held.lease)]).await.unwrap(), 0);
    let cancelled = [(held.id.clone(), held.lease)];
    assert_eq!(world.store.finish_cancelled(node, &cancelled, time(START)).await.unwrap(), 0);
    assert_eq!(world.store.dead_letter(&DeadLetterId::new("9-9")).await.unwrap(), None);
    assert_eq!(world.story(&held.id).await, before);
}

pub(crate) async fn a_stranger_finishes_nothing(world: World) {
    let held = world.publish_leased("a", 1).await;
    finishes_nothing(&world, OTHER, &held).await;
    finishes_nothing(&world, NODE, &held.with_lease(2)).await;
    let unknown = Held { id: MessageId::new("msg_unknown"), ..held.clone() };
    assert_eq!(world.finish(unknown.delivered()).await, Applied::No);
    // Nobody's delivery has the node 0 and the lease 0.
    world.store.release(NODE, &[(held.id.clone(), held.lease)]).await.unwrap();
    finishes_nothing(&world, NODE, &held).await;
    let delivery = world.claim_one("a", 3).await;
    assert_eq!(world.finish(Held::from(&delivery).delivered()).await, Applied::Yes);
}

/// After a takeover a node may hold a message again whose old attempt has not come home yet. Each of the two ends is
/// judged by its own lease.
pub(crate) async fn one_batch_may_name_a_message_twice(world: World) {
    for (round, stale_first) in [(0, true), (1, false)] {
        let stale = world.publish_leased("a", 10 * round + 1).await;
        assert_eq!(world.store.reconcile(NODE, &[], LATEST).await.unwrap(), 1);
        let current = Held::from(&world.claim_one("a", 10 * round + 2).await);
        let callbacks = world.messages(4);
        let ended =
            |held: &Held, callback: &Message| with_callback(held.delivered(), callback.clone(), "cb", None);
        let mut batch = vec![ended(&stale, &callbacks[0]), ended(&current, &callbacks[1])];
        let mut expected = vec![Applied::No, Applied::Yes];
        if !stale_first {
            batch.reverse();
            expected.reverse();
        }
        assert_eq!(world.store.finish(NODE, &batch).await.unwrap(), expected);
        let callback = world.claim_one("cb", 10 * round + 3).await;
        assert_eq!(callback.message.id, callbacks[1].id);
        assert_eq!(world.finish(Held::from(&callback).delivered()).await, Applied::Yes);
        assert_eq!(world.story(&current.id).await, [State::Created, State::Active, State::Delivered]);

        // The same where plain deliveries have a statement of their own, and with different ends.
        let stale = world.publish_leased("b", 10 * round + 4).await;
        assert_eq!(world.store.release(NODE, &[(stale.id.clone(), stale.lease)]).await.unwrap(), 1);
        let current = Held::from(&world.claim_one("b", 10 * round + 5).await);
        let mut batch = vec![stale.delivered(), current.delivered()];
        let mut expected = vec![Applied::No, Applied::Yes];
        if !stale_first {
            batch.reverse();
            expected.reverse();
        }
        batch.push(current.retry_at(START));
        expected.push(Applied::No);
        assert_eq!(world.store.finish(NODE, &batch).await.unwrap(), expected);
        assert!(world.claim("b", 10 * round + 6).await.is_empty());
    }
}

pub(crate) async fn large_batches_are_stored_whole(world: World) {
    // No power of two, and more than the rows of one statement.
    let batch: Vec<_> = world.messages(301).into_iter().map(|message| leased(message, "a", 1)).collect();
    assert_eq!(world.accept(&batch).await, vec![Accepted::Stored; 301]);
    let mut ended = Vec::new();
    for (index, accept) in batch.iter().enumerate() {
        let held = Held { id: accept.message.id.clone(), lease: Lease(1), retried: 0, slot: None };
        ended.push(match index % 4 {
            0 => held.delivered(),
            1 => held.retry_at(START),
            2 => held.failed(&format!("1-{index}")),
            _ => with_callback(held.delivered(), world.message(), "cb", None),
        });
    }
    assert_eq!(world.store.finish(NODE, &ended).await.unwrap(), vec![Applied::Yes; 301]);
    assert_eq!(world.claim("a", 2).await.len(), 75);
    assert_eq!(world.claim("cb", 2).await.len(), 75);
    let filter = DeadLetterFilter::default();
    let letters = world.store.dead_letters(&filter, Order::LatestFirst, None, 1000, ANY_SIZE).await.unwrap();
    assert_eq!(letters.items.len(), 75);
}

pub(crate) async fn a_batch_of_many_bytes_is_stored_whole_or_not_at_all(world: World) {
    let body = Bytes::from(vec![b'x'; 9 << 20]);
    let large = || Message { body: body.clone(), body_sha256: body_sha256(&body), ..world.message() };
    // The first and the last have one key, in whatever parts they are stored.
    let batch: Vec<Accept> =
        (0..10).map(|number| keyed(large(), &(number % 9).to_string(), FUTURE)).collect();
    let first = batch[0].message.id.clone();
    let mut expected = vec![Accepted::Stored; 10];
    expected[9] = Accepted::Duplicate(first.clone());
    assert_eq!(world.accept(&batch).await, expected);
    let again = world.store.accept(NODE, &batch, Repeat::Again).await.unwrap();
    assert_eq!(again, expected);
    assert_eq!(world.claim("a", 1).await.len(), 9);
    assert_eq!(world.store.message(&first).await.unwrap().unwrap().body, body);
    if world.is_model() {
        return;
    }
    // The last can't be stored, for its id is there: then none is.
    let mut batch: Vec<Accept> = (0..10).map(|_| waiting(large(), "b")).collect();
    batch[9] = waiting(Message { id: first, ..large() }, "b");
    world.store.accept(NODE, &batch, Repeat::First).await.unwrap_err();
    assert!(world.claim("b", 2).await.is_empty());
    assert_eq!(world.store.message(&batch[0].message.id).await.unwrap(), None);
}

pub(crate) async fn a_released_delivery_is_not_counted_as_claimed(world: World) {
    let held = world.publish_leased("a", 1).await;
    let other = world.publish_leased("a", 1).await;
    let batch = [(held.id.clone(), Lease(1)), (other.id.clone(), Lease(2))];
    assert_eq!(world.store.release(NODE, &batch).await.unwrap(), 1);
    assert_eq!(world.store.release(NODE, &batch).await.unwrap(), 0);
    let delivery = world.claim_one("a", 3).await;
    assert_eq!((delivery.message.id.clone(), delivery.claims), (held.id, 1));
}

pub(crate) async fn reconciling_frees_all_but_the_live_leases(world: World) {
    let mut held = Vec::new();
    for lease in [1, 2, 2, 3] {
        held.push(world.publish_leased("a", lease).await);
    }
    let live = [Lease(1), Lease(3), Lease(4)];
    // What was leased after the look at the live ones is left alone.
    assert_eq!(world.store.reconcile(NODE, &[], Lease(0)).await.unwrap(), 0);
    assert_eq!(world.store.reconcile(NODE, &live, LATEST).await.unwrap(), 2);
    assert_eq!(world.store.reconcile(NODE, &live, LATEST).await.unwrap(), 0);
    finishes_nothing(&world, NODE, &held[1]).await;
    let claimed = world.claim("a", 5).await;
    assert_eq!(ids(&claimed), [held[1].id.clone(), held[2].id.clone()]);
    assert_eq!(claimed[0].claims, 2);
    for held in [&held[0], &held[3]] {
        assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    }
}

pub(crate) async fn a_namesake_takes_the_leases_at_once(world: World) {
    let held = world.publish_leased("a", 1).await;
    world.store.register(OTHER, "node-1").await.unwrap();
    assert_eq!(world.store.count_nodes().await.unwrap(), 1);
    finishes_nothing(&world, NODE, &held).await;
    let claimed = world.claim_as(OTHER, "a", 1).await;
    assert_eq!((ids(&claimed), claimed[0].claims), (vec![held.id.clone()], 2));
    if world.is_alone() {
        return;
    }
    assert_eq!(world.store.heartbeat(NODE).await.unwrap(), None);
    assert!(world.store.heartbeat(OTHER).await.unwrap().is_some());
    // A node of another name leaves the leases alone.
    world.store.register(NodeId(3), "node-2").await.unwrap();
    assert_eq!(world.store.count_nodes().await.unwrap(), 2);
    let ended = Held::from(&claimed[0]).delivered();
    assert_eq!(world.store.finish(OTHER, &[ended]).await.unwrap(), [Applied::Yes]);
}

pub(crate) async fn a_silent_node_is_taken_over(world: World) {
    let held = world.publish_leased("a", 1).await;
    let hour = Duration::from_hours(1);
    assert_eq!(world.store.take_over(hour).await.unwrap(), 0);
    if world.is_alone() {
        assert_eq!(world.store.take_over(Duration::ZERO).await.unwrap(), 0);
        assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.store.take_over(Duration::ZERO).await.unwrap() == 0 {
        assert!(Instant::now() < deadline, "the node's heartbeat never becomes older than nothing");
    }
    world.store.register(OTHER, "node-2").await.unwrap();
    assert_eq!(world.store.heartbeat(NODE).await.unwrap(), None);
    finishes_nothing(&world, NODE, &held).await;
    let claimed = world.claim_as(OTHER, "a", 1).await;
    assert_eq!((ids(&claimed), claimed[0].claims), (vec![held.id], 2));
    assert_eq!(world.store.take_over(hour).await.unwrap(), 0);
    assert_eq!(world.store.count_nodes().await.unwrap(), 1);
}

/// A node that was silent for too long may still store leases in its name before it notices. Nobody would ever look for
/// these by the node's name or heartbeat: it has none any more.
pub(crate) async fn leases_of_a_node_that_is_gone_are_freed(world: World) {
    world.store.register(OTHER, "node-1").await.unwrap();
    let zombie = world.publish_leased("a", 1).await;
    assert_eq!(world.store.reconcile(OTHER, &[], LATEST).await.unwrap(), 1);
    finishes_nothing(&world, NODE, &zombie).await;
    assert_eq!(world.claim_as(OTHER, "a", 2).await.len(), 1);
    assert_eq!(world.store.reconcile(OTHER, &[Lease(2)], LATEST).await.unwrap(), 0);
    let zombie = world.publish_leased("b", 3).await;
    world.store.register(NodeId(3), "node-1").await.unwrap();
    let claimed = world.claim_as(NodeId(3), "b", 1).await;
    assert_eq!((ids(&claimed), claimed[0].claims), (vec![zombie.id], 2));
}

pub(crate) async fn a_node_that_signs_off_frees_its_leases(world: World) {
    let held = world.publish_leased("a", 1).await;
    world.store.deregister(NODE).await.unwrap();
    finishes_nothing(&world, NODE, &held).await;
    world.store.register(OTHER, "node-2").await.unwrap();
    assert_eq!(ids(&world.claim_as(OTHER, "a", 1).await), [held.id]);
    assert_eq!(world.store.count_nodes().await.unwrap(), 1);
}

pub(crate) async fn a_waiting_message_is_cancelled(world: World) {
    let now = time(START + 500);
    let cancel = async |id: &MessageId| world.store.cancel(id, now).await.unwrap();
    assert_eq!(cancel(&MessageId::new("msg_unknown")).await, Cancellation::NotFound);
    let id = world.publish("a").await;
    assert_eq!(cancel(&id).await, Cancellation::Cancelled);
    assert_eq!(cancel(&id).await, Cancellation::NotFound);
    assert!(world.claim("a", 1).await.is_empty());
    assert_eq!(world.story(&id).await, [State::Created, State::CancelRequested, State::Cancelled]);
    assert!(world.store.message(&id).await.unwrap().is_some());
    let done = world.publish_leased("a", 1).await;
    assert_eq!(world.finish(done.delivered()).await, Applied::Yes);
    assert_eq!(cancel(&done.id).await, Cancellation::NotFound);
    assert_eq!(world.story(&done.id).await.last(), Some(&State::Delivered));
}

pub(crate) async fn a_leased_message_is_cancelled_after_its_attempt(world: World) {
    let cases: [fn(&Held) -> Ended; 2] = [|held| held.retry_at(START), |held| held.failed("1-1")];
    for case in cases {
        let held = world.publish_leased("a", 1).await;
        assert_eq!(world.finish(held.cancelled()).await, Applied::No);
        for _ in 0..2 {
            let asked = world.store.cancel(&held.id, time(START + 500)).await.unwrap();
            assert_eq!(asked, Cancellation::Requested);
        }
        let callback = world.message();
        let ended = with_callback(case(&held), callback.clone(), "cb", None);
        assert_eq!(world.finish(ended).await, Applied::No);
        assert_eq!(world.store.message(&callback.id).await.unwrap(), None);
        let story = world.story(&held.id).await;
        assert_eq!(story, [State::Created, State::Active, State::CancelRequested]);
        assert_eq!(world.finish(held.cancelled()).await, Applied::Yes);
        assert_eq!(world.finish(held.cancelled()).await, Applied::No);
        assert!(world.nothing_waits().await);
        let story = world.story(&held.id).await;
        let expected =
            [State::Created, State::CancelRequested, State::Active, State::Error, State::Cancelled];
        assert_eq!(story, expected);
    }
    assert_eq!(world.store.dead_letter(&DeadLetterId::new("1-1")).await.unwrap(), None);
}

pub(crate) async fn a_cancel_does_not_undo_a_delivery(world: World) {
    let held = world.publish_leased("a", 1).await;
    let asked = world.store.cancel(&held.id, time(START + 500)).await.unwrap();
    assert_eq!(asked, Cancellation::Requested);
    let callback = world.message();
    let ended = with_callback(held.delivered(), callback.clone(), "cb", None);
    assert_eq!(world.finish(ended).await, Applied::Yes);
    assert_eq!(world.claim_one("cb", 2).await.message.id, callback.id);
    let story = world.story(&held.id).await;
    assert_eq!(story, [State::Created, State::CancelRequested, State::Active, State::Delivered]);
}

pub(crate) async fn a_cancelled_message_that_is_given_back_ends_unattempted(world: World) {
    let (first, second) = (world.publish_leased("a", 1).await, world.publish_leased("a", 1).await);
    for held in [&first, &second] {
        world.store.cancel(&held.id, time(START + 500)).await.unwrap();
        assert_eq!(world.store.release(NODE, &[(held.id.clone(), held.lease)]).await.unwrap(), 1);
    }
    // Waiting again, it can be cancelled again, at once.
    let asked = world.store.cancel(&second.id, time(START + 600)).await.unwrap();
    assert_eq!(asked, Cancellation::Cancelled);
    let delivery = world.claim_one("a", 2).await;
    assert_eq!((&delivery.message.id, delivery.cancel_requested), (&first.id, true));
    let wrong = [(first.id.clone(), Lease(1)), (MessageId::new("msg_unknown"), Lease(2))];
    assert_eq!(world.store.finish_cancelled(NODE, &wrong, time(START + 700)).await.unwrap(), 0);
    let held = [(first.id.clone(), Lease(2))];
    assert_eq!(world.store.finish_cancelled(NODE, &held, time(START + 700)).await.unwrap(), 1);
    assert_eq!(world.store.finish_cancelled(NODE, &held, time(START + 700)).await.unwrap(), 0);
    for id in [&first.id, &second.id] {
        let story = world.story(id).await;
        assert_eq!(story, [State::Created, State::CancelRequested, State::Cancelled]);
    }
    // Only what a user has cancelled ends without an attempt.
    let live = world.publish_leased("a", 3).await;
    let held = [(live.id.clone(), Lease(3))];
    assert_eq!(world.store.finish_cancelled(NODE, &held, time(START + 700)).await.unwrap(), 0);
}

/// Ids come in from users: whatever they are, they are only looked up.
pub(crate) async fn ids_are_only_text(world: World) {
    for (lease, text) in [(1, "'"), (2, "\""), (3, "\\"), (4, "\n ü"), (5, "[1]")] {
        let message = Message { id: MessageId::new(text), ..world.message() };
        let held = Held { id: message.id.clone(), lease: Lease(lease), retried: 0, slot: None };
        world.accept(&[leased(message.clone(), "a", lease)]).await;
        assert_eq!(
            world.store.accept(NODE, &[leased(message, "a", lease)], Repeat::Again).await.unwrap(),
            [Accepted::Stored]
        );
        assert_eq!(world.finish(held.delivered()).await, Applied::Yes, "{text}");
        assert_eq!(world.story(&held.id).await.len(), 3);
    }
    for text in ["", "\0", "msg_\0", "%", "\"'", "[]", "ü\u{10ffff}", &"x".repeat(100_000)] {
        let (id, letter) = (MessageId::new(text), DeadLetterId::new(text));
        let now = time(START);
        assert_eq!(world.store.message(&id).await.unwrap(), None);
        assert_eq!(world.store.cancel(&id, now).await.unwrap(), Cancellation::NotFound);
        assert_eq!(world.store.dead_letter(&letter).await.unwrap(), None);
        assert_eq!(world.store.delete_dead_letters(std::slice::from_ref(&letter)).await.unwrap(), 0);
        let replacement = (letter.clone(), waiting(world.message(), "a"));
        assert_eq!(world.store.retry_dead_letters(&[replacement], Missing::Refuse).await.unwrap(), [false]);
        let filter = LogFilter { messages: vec![id.clone()], ..LogFilter::default() };
        let cursor = LogCursor { time: now, entry: Some((id.clone(), 0)) };
        let page = world.store.log(&filter, Order::LatestFirst, Some(&cursor), 10, ANY_SIZE).await.unwrap();
        assert_eq!(page.items, []);
        let filter =
            DeadLetterFilter { messages: vec![id], ids: vec![letter.clone()], ..DeadLetterFilter::default() };
        let after = (now, letter);
        let page =
            world.store.dead_letters(&filter, Order::LatestFirst, Some(&after), 10, ANY_SIZE).await.unwrap();
        assert_eq!(page.items, []);
    }
}

/// What begins is counted, and only by who holds it; a retry begins anew.
pub(crate) async fn starts_of_attempts_are_counted(world: World) {
    let held = world.publish_leased("a", 1).await;
    for count in 1..=3 {
        assert_eq!(world.store.count_start(NODE, &held.id, held.lease).await.unwrap(), Some(count));
    }
    assert_eq!(world.store.count_start(OTHER, &held.id, held.lease).await.unwrap(), None);
    assert_eq!(world.store.count_start(NODE, &held.id, Lease(2)).await.unwrap(), None);
    assert_eq!(world.finish(held.retry_at(START)).await, Applied::Yes);
    let claimed = world.claim("a", 3).await;
    let held = Held::from(&claimed[0]);
    assert_eq!(world.store.count_start(NODE, &held.id, held.lease).await.unwrap(), Some(1));
}

/// A process that begins anew takes nothing from a living one of its name.
pub(crate) async fn rejoining_leaves_namesakes_alone(world: World) {
    let held = world.publish_leased("a", 1).await;
    world.store.rejoin(OTHER, "node-1").await.unwrap();
    assert_eq!(world.finish(held.delivered()).await, Applied::Yes);
    assert!(world.store.heartbeat(NODE).await.unwrap().is_some());
    assert!(world.store.heartbeat(OTHER).await.unwrap().is_some());
}
