use std::time::Duration;

use tokio::time::timeout;

use super::lanes::{CLAIM_AHEAD, Load};
use super::*;
use crate::clock::Clock;
use crate::domain::gate::is_gated;
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::store::NodeId;

/// A delivery that has started.
type Started = (Held, Running);

fn dispatcher(concurrency: usize, per_lane: usize, held: usize) -> Dispatcher {
    with_bytes(concurrency, per_lane, held, usize::MAX)
}

fn with_bytes(concurrency: usize, per_lane: usize, held: usize, held_bytes: usize) -> Dispatcher {
    let node = Arc::new(Node::new(NodeId(1), Clock::system(), true));
    Dispatcher::with(Limits { concurrency, per_lane, held, held_bytes }, node)
}

fn delivery(id: usize, lane: &str, lease: Lease) -> Delivery {
    let now = Timestamp::from_millis(0);
    let message =
        Message::plain(MessageId::new(format!("msg_{id}")), now, "http://e.com", bytes::Bytes::new());
    Delivery::stored_leased(&Arc::new(message), &Arc::from(lane), lease, None)
}

/// One that came through a queue.
fn queued(id: usize, lane: &str, lease: Lease) -> Delivery {
    let delivery = delivery(id, lane, lease);
    let message = Message { queue: Some("q".to_owned()), ..(*delivery.message).clone() };
    Delivery { message: Arc::new(message), ..delivery }
}

fn id(started: &Started) -> &str {
    started.0.delivery.message.id.as_str()
}

/// Held deliveries and running attempts.
fn load(dispatcher: &Dispatcher) -> (usize, usize) {
    (dispatcher.held(), dispatcher.running())
}

/// Takes as many of `count` deliveries of a lane from a gate as there is room for; those that may start, and how many there
/// was room for.
fn pass(dispatcher: &Dispatcher, lane: &str, count: usize) -> (Vec<Started>, usize) {
    let claim = dispatcher.claim();
    let leased: Vec<_> = (100..100 + count)
        .map(|id| queued(id, lane, claim.lease()))
        .filter_map(|delivery| {
            let permit = dispatcher.permit_at_gate(&delivery.lane, delivery.size)?;
            Some((delivery, permit))
        })
        .collect();
    let room = leased.len();
    claim.settle(leased);
    (dispatcher.start(), room)
}

/// Makes a lane known for an answer.
fn answer(dispatcher: &Dispatcher, lane: &str) {
    let started = admit(dispatcher, lane, 1);
    assert_eq!(started.len(), 1);
    assert!(end(dispatcher, started).is_empty());
}

/// Takes in as many of `count` deliveries of a lane as there is room for; those that may start.
fn admit(dispatcher: &Dispatcher, lane: &str, count: usize) -> Vec<Started> {
    let claim = dispatcher.claim();
    let all: Vec<Delivery> = (0..count).map(|id| delivery(id, lane, claim.lease())).collect();
    let permits = dispatcher.permits(all.iter().map(|delivery| (&delivery.lane, delivery.size)));
    claim.settle(all.into_iter().zip(permits).filter_map(|(delivery, permit)| Some((delivery, permit?))));
    dispatcher.start()
}

/// Ends attempts with an answer, and then their deliveries; those that start instead.
fn end(dispatcher: &Dispatcher, ended: Vec<Started>) -> Vec<Started> {
    let mut started = Vec::new();
    for (held, mut running) in ended {
        running.answered();
        drop(running);
        started.extend(dispatcher.start());
        drop(held);
    }
    started
}

#[test]
fn everything_comes_up_and_nothing_is_left_behind() {
    let dispatcher = dispatcher(8, 4, 1000);
    let mut running = admit(&dispatcher, "a", 50);
    running.extend(admit(&dispatcher, "b", 50));
    let mut ended = 0;
    while !running.is_empty() {
        ended += running.len();
        running = end(&dispatcher, running);
    }
    assert_eq!(ended, 100);
    assert_eq!(load(&dispatcher), (0, 0));
    let state = dispatcher.0.state();
    assert!(state.leases.is_empty(), "{:?}", state.leases);
    assert!(state.lanes.is_empty());
}

#[test]
fn a_lane_that_hangs_leaves_slots_to_the_others() {
    let dispatcher = dispatcher(16, 16, 1000);
    for hanging in ["a", "b", "c"] {
        answer(&dispatcher, hanging);
    }
    let mut running = Vec::new();
    for hanging in ["a", "b", "c"] {
        let started = admit(&dispatcher, hanging, 100);
        assert!(!started.is_empty(), "{hanging} gets something");
        running.extend(started);
    }
    assert!(load(&dispatcher).1 < 16, "and a slot is left");
    assert_eq!(admit(&dispatcher, "healthy", 1).len(), 1);
}

#[test]
fn however_many_lanes_hang_those_that_answer_go_on() {
    for each in [1, 100] {
        let dispatcher = dispatcher(8192, 128, 8192);
        answer(&dispatcher, "known");
        let mut hanging = Vec::new();
        for lane in 0..5000 {
            let started = admit(&dispatcher, &format!("silent{lane}"), each);
            assert!(!started.is_empty(), "each gets a slot");
            hanging.extend(started);
        }
        answer(&dispatcher, "new");
        let burst = admit(&dispatcher, "known", 1000);
        assert_eq!(burst.len(), 128, "all of its own limit");
        for lane in 5000..20_000 {
            hanging.extend(admit(&dispatcher, &format!("silent{lane}"), each));
        }
        assert!(admit(&dispatcher, "late", 1).is_empty(), "the last part is not for strangers");
        let mut burst = burst;
        while !burst.is_empty() {
            burst = end(&dispatcher, burst);
        }
        answer(&dispatcher, "new");
        assert!(admit(&dispatcher, "known", 1000).len() > 100);
    }
}

#[test]
fn what_waits_of_lanes_that_hang_is_passed_over() {
    // More of them wait than there are slots for them.
    let dispatcher = dispatcher(8, 4, 1000);
    answer(&dispatcher, "known");
    let mut hanging = Vec::new();
    for lane in 0..100 {
        hanging.extend(admit(&dispatcher, &format!("silent{lane}"), 3));
    }
    assert_eq!(load(&dispatcher).1, 7);
    for _ in 0..3 {
        answer(&dispatcher, "known");
    }
    // One that answers while it waits is known, too.
    let (held, mut running) = hanging.remove(0);
    assert_eq!(&*held.delivery.lane, "silent0");
    running.answered();
    drop(running);
    let next = dispatcher.start();
    let lanes: Vec<&str> = next.iter().map(|(held, _)| &*held.delivery.lane).collect();
    assert_eq!(lanes, ["silent0", "silent7"], "it goes on, and its place is another stranger's");
}

#[test]
fn strangers_leave_some_of_the_memory() {
    let body = 1 << 20;
    let room = |dispatcher: &Dispatcher, lane: &str| {
        dispatcher.permits(std::iter::once((&Arc::from(lane), body))).pop().flatten()
    };
    let dispatcher = with_bytes(8192, 128, 8192, 16 * body);
    answer(&dispatcher, "known");
    let silent: Vec<_> = (0..100).filter_map(|lane| room(&dispatcher, &format!("silent{lane}"))).collect();
    assert_eq!(silent.len(), 14);
    assert!(room(&dispatcher, "known").is_some());
    let alone = with_bytes(8, 8, 8, body);
    assert!(room(&alone, "a").is_some(), "where nothing else is there, all may be used");
}

#[test]
fn claims_for_strangers_leave_some_of_the_memory() {
    let body = 1 << 20;
    let dispatcher = with_bytes(8192, 128, 8192, 16 * body);
    answer(&dispatcher, "known");
    let mut silent = 0;
    for lane in 0..100 {
        let claim = dispatcher.claim();
        let name = format!("silent{lane}");
        let (wants, bytes) = dispatcher.wants(std::iter::once(Arc::from(name.as_str())));
        if let [want] = &wants[..] {
            let count = want.count.min(bytes / body);
            let claimed = || Delivery { size: body, ..delivery(1000 + lane, &name, claim.lease()) };
            claim_and_settle(&dispatcher, (0..count).map(|_| claimed()).collect());
            silent += count;
        }
        claim.settle([]);
    }
    assert_eq!(silent, 14);
    let (wants, bytes) = dispatcher.wants(["new", "known"].into_iter().map(Arc::from));
    let wants: Vec<&str> = wants.iter().map(|want| &*want.lane).collect();
    assert_eq!((wants, bytes), (vec!["known"], body));
}

fn claim_and_settle(dispatcher: &Dispatcher, claimed: Vec<Delivery>) {
    dispatcher.claim().settle(dispatcher.with_permits(claimed));
}

#[test]
fn each_lane_that_has_answered_gets_one_place_where_many_of_them_hang() {
    let dispatcher = dispatcher(8192, 128, 8192);
    let lanes: Vec<String> = (0..500).map(|lane| format!("hanging{lane}")).collect();
    for lane in &lanes {
        answer(&dispatcher, lane);
    }
    answer(&dispatcher, "healthy");
    let mut running = Vec::new();
    for lane in &lanes {
        let started = admit(&dispatcher, lane, 200);
        assert!(!started.is_empty());
        running.extend(started);
    }
    assert_eq!(admit(&dispatcher, "healthy", 1).len(), 1);
}

#[test]
fn a_single_busy_lane_gets_half_of_few_places_and_nearly_half_of_many() {
    for (all, own) in [(1, 1), (2, 1), (3, 2), (8, 4), (15, 8), (16, 8), (32, 15), (1600, 750)] {
        let dispatcher = dispatcher(all, all, 100_000);
        answer(&dispatcher, "a");
        assert_eq!(admit(&dispatcher, "a", 2 * all).len(), own, "of {all}");
    }
}

#[test]
fn claims_take_one_of_a_lane_that_has_not_answered_where_many_hang() {
    let dispatcher = dispatcher(1000, 100, 1000);
    answer(&dispatcher, "known");
    let _running: Vec<_> =
        (0..300).flat_map(|lane| admit(&dispatcher, &format!("silent{lane}"), 1)).collect();
    let lanes = ["known", "new", "silent0"].into_iter().map(Arc::from);
    let (wants, _) = dispatcher.wants(lanes);
    let wants: Vec<_> = wants.iter().map(|want| (&*want.lane, want.count)).collect();
    assert_eq!(wants, [("known", 100 * CLAIM_AHEAD), ("new", 1)]);
}

#[test]
fn a_lane_keeps_its_own_limit() {
    let dispatcher = dispatcher(100, 3, 1000);
    let mut started = admit(&dispatcher, "a", 10);
    assert_eq!(started.len(), 3);
    let first = started.remove(0);
    assert_eq!(end(&dispatcher, vec![first]).len(), 1);
}

#[test]
fn room_is_shared_by_what_is_free() {
    let dispatcher = dispatcher(1, 1, 8);
    answer(&dispatcher, "a");
    answer(&dispatcher, "b");
    let _a = admit(&dispatcher, "a", 100);
    assert_eq!(load(&dispatcher).0, 4, "one lane holds as much as is left free");
    let _b = admit(&dispatcher, "b", 100);
    assert_eq!(load(&dispatcher).0, 6);
}

#[test]
fn a_dropped_permit_gives_its_room_back() {
    let dispatcher = with_bytes(100, 100, 100, 100);
    let lane: Arc<str> = Arc::from("a");
    let permit = dispatcher.permits(std::iter::once((&lane, 30))).pop().flatten();
    let at_gate = dispatcher.permit_at_gate(&lane, 30);
    assert_eq!(dispatcher.0.state().lanes.load(), Load { running: 0, held: 2, held_bytes: 60 });
    drop((permit, at_gate));
    assert!(dispatcher.0.state().lanes.is_empty());
}

#[test]
fn a_claim_that_is_not_settled_is_in_doubt() {
    let dispatcher = dispatcher(10, 10, 10);
    let claim = dispatcher.claim();
    let number = claim.lease();
    assert_eq!(dispatcher.live_leases(), (vec![number], number));
    claim.settle([]);
    assert_eq!(dispatcher.live_leases(), (Vec::new(), number));
    assert!(!dispatcher.0.node.is_in_doubt(), "surely nothing was leased");
    drop(dispatcher.claim());
    assert!(dispatcher.0.node.is_in_doubt());
    assert!(dispatcher.live_leases().0.is_empty());
}

#[tokio::test]
async fn a_cancel_between_the_step_and_its_settling_ends_the_delivery() {
    let dispatcher = dispatcher(100, 100, 100);
    let (before, early) = (dispatcher.claim(), dispatcher.claim());
    assert!(dispatcher.withdraw(&[MessageId::new("msg_0"), MessageId::new("msg_3")]).is_empty());
    let after = dispatcher.claim();
    early.settle([]);
    for (claim, first) in [(before, 0), (after, 3)] {
        let claimed: Vec<_> = (first..first + 3).map(|id| delivery(id, "a", claim.lease())).collect();
        claim.settle(dispatcher.with_permits(claimed));
    }
    let started = dispatcher.start();
    // A cancel before the last claim is not noted for it: the store would have returned the delivery as cancelled.
    assert_eq!(started.iter().map(id).collect::<Vec<_>>(), ["msg_1", "msg_2", "msg_3", "msg_4", "msg_5"]);
    let cancelled = dispatcher.cancelled().await;
    assert_eq!(cancelled.len(), 1);
    assert_eq!(cancelled[0].delivery.message.id.as_str(), "msg_0");
    assert_eq!(load(&dispatcher), (6, 5), "its room is kept until it is ended");
    drop((cancelled, started));
    let state = dispatcher.0.state();
    assert!(state.cancels.recent.is_empty() && state.cancels.claims.is_empty());
    assert!(state.leases.is_empty() && state.lanes.is_empty());
}

#[tokio::test]
async fn what_the_store_knows_to_be_cancelled_is_ended() {
    let dispatcher = dispatcher(10, 10, 10);
    let claim = dispatcher.claim();
    let cancelled = Delivery { cancel_requested: true, ..delivery(1, "a", claim.lease()) };
    claim.settle(dispatcher.with_permits(vec![cancelled]));
    assert!(dispatcher.start().is_empty());
    assert_eq!(dispatcher.cancelled().await.len(), 1);
}

#[test]
fn a_withdrawn_delivery_never_starts() {
    let dispatcher = dispatcher(1, 1, 100);
    let started = admit(&dispatcher, "a", 4);
    assert_eq!(load(&dispatcher), (4, 1));
    let withdrawn = dispatcher.withdraw(&["msg_0", "msg_3", "msg_1"].map(MessageId::new));
    let names: Vec<_> = withdrawn.iter().map(|held| held.delivery.message.id.as_str()).collect();
    assert_eq!(names, ["msg_1", "msg_3"], "the other one runs");
    drop(withdrawn);
    let next = end(&dispatcher, started);
    assert_eq!(id(&next[0]), "msg_2");
    assert!(end(&dispatcher, next).is_empty());
    assert_eq!(load(&dispatcher), (0, 0));
}

#[test]
fn only_what_starts_soon_comes_through_gates() {
    let dispatcher = dispatcher(100, 4, 1000);
    let (mut started, room) = pass(&dispatcher, "a", 10);
    assert_eq!((started.len(), room), (4, 4));
    let (other, _) = pass(&dispatcher, "b", 1);
    assert_eq!(other.len(), 1, "another lane has its own slots");
    // All slots are in use: one waits for the next that is free.
    let (next, room) = pass(&dispatcher, "a", 10);
    assert_eq!((next.len(), room), (0, 1));
    let first = started.remove(0);
    let next = end(&dispatcher, vec![first]);
    assert_eq!(next.len(), 1);
    let lane: Arc<str> = Arc::from("a");
    let permit = dispatcher.permit_at_gate(&lane, 1);
    assert!(permit.is_some() && dispatcher.permit_at_gate(&lane, 1).is_none());
    drop(permit);
    assert!(dispatcher.permit_at_gate(&lane, 1).is_some());
    end(&dispatcher, started);
    assert_eq!(load(&dispatcher), (2, 2));
}

#[tokio::test]
async fn what_waits_at_gates_is_told_of_room() {
    let dispatcher = dispatcher(100, 1, 1000);
    let (started, _) = pass(&dispatcher, "a", 1);
    assert_eq!(pass(&dispatcher, "a", 1).1, 1, "one runs, and one waits");
    assert_eq!(pass(&dispatcher, "a", 1).1, 0);
    end(&dispatcher, started);
    dispatcher.gate_room().await;
}

#[test]
fn room_is_given_back_whatever_the_message_takes() {
    let dispatcher = dispatcher(100, 1, 1000);
    for stored in [1, 1 << 20] {
        let claim = dispatcher.claim();
        let delivery = Delivery { size: stored, ..queued(1, "a", claim.lease()) };
        let permit = dispatcher.permit_at_gate(&delivery.lane, stored).unwrap();
        claim.settle([(delivery, permit)]);
        assert!(end(&dispatcher, dispatcher.start()).is_empty());
        assert!(dispatcher.0.state().lanes.is_empty());
    }
}

#[test]
fn deliveries_from_gates_and_the_others_take_turns() {
    let dispatcher = dispatcher(100, 1, 1000);
    let mut running = admit(&dispatcher, "a", 5);
    let mut order = Vec::new();
    while let Some(started) = running.pop() {
        order.push(is_gated(&started.0.delivery.message));
        pass(&dispatcher, "a", 1);
        running = end(&dispatcher, vec![started]);
        if order.len() == 6 {
            break;
        }
    }
    assert_eq!(order.iter().filter(|gated| **gated).count(), 3, "{order:?}");
    let waiting = dispatcher.drain();
    assert!(waiting.iter().any(|held| is_gated(&held.delivery.message)));
    drop(waiting);
    end(&dispatcher, running);
    assert_eq!(load(&dispatcher), (0, 0));
}

#[test]
fn a_withdrawn_delivery_leaves_its_place_at_the_gate() {
    let dispatcher = dispatcher(100, 1, 1000);
    let (started, _) = pass(&dispatcher, "a", 1);
    assert_eq!(pass(&dispatcher, "a", 1).1, 1);
    assert_eq!(pass(&dispatcher, "a", 1).1, 0);
    let withdrawn = dispatcher.withdraw(&[MessageId::new("msg_100")]);
    assert_eq!(withdrawn.len(), 1);
    drop(withdrawn);
    assert_eq!(pass(&dispatcher, "a", 1).1, 1);
    let next = end(&dispatcher, started);
    end(&dispatcher, next);
    assert_eq!(load(&dispatcher), (0, 0));
}

#[test]
fn draining_takes_nothing_more() {
    let dispatcher = dispatcher(1, 1, 100);
    let started = admit(&dispatcher, "a", 3);
    assert_eq!(dispatcher.drain().len(), 2);
    assert!(admit(&dispatcher, "b", 1).is_empty());
    assert!(end(&dispatcher, started).is_empty());
    assert_eq!(load(&dispatcher), (0, 0));
    assert!(!dispatcher.has_room());
}

#[test]
fn claims_fill_each_lane_to_a_bound() {
    let dispatcher = dispatcher(100, 3, 1000);
    let lanes = || ["a", "b", "a"].into_iter().map(Arc::from);
    let (wants, _) = dispatcher.wants(lanes());
    let counts: Vec<usize> = wants.iter().map(|want| want.count).collect();
    assert_eq!(counts, [3 * CLAIM_AHEAD, 3 * CLAIM_AHEAD]);
    claim_and_settle(&dispatcher, (0..3 * CLAIM_AHEAD).map(|id| delivery(id, "a", Lease(1))).collect());
    let (wants, _) = dispatcher.wants(lanes());
    assert_eq!(wants.len(), 1);
    assert_eq!(&*wants[0].lane, "b");
}

#[tokio::test(start_paused = true)]
async fn the_next_deliveries_are_waited_for() {
    let dispatcher = dispatcher(1, 1, 100);
    let long = Duration::from_secs(1);
    assert!(timeout(long, dispatcher.next()).await.is_err());
    claim_and_settle(&dispatcher, (0..2).map(|id| delivery(id, "a", Lease(1))).collect());
    let started = timeout(long, dispatcher.next()).await.unwrap();
    assert_eq!(started.len(), 1);
    assert!(timeout(long, dispatcher.next()).await.is_err(), "its slot is in use");
    drop(started);
    assert_eq!(timeout(long, dispatcher.next()).await.unwrap().len(), 1);
}

#[test]
fn nothing_is_given_back_to_a_dispatcher_that_is_gone() {
    let dispatcher = dispatcher(1, 1, 100);
    let started = admit(&dispatcher, "a", 2);
    let state = Arc::downgrade(&dispatcher.0);
    drop(dispatcher);
    assert!(state.upgrade().is_none(), "what waits in it does not keep it");
    drop(started);
}
