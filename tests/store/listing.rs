//! Scenarios of lists by pages. Each runs on every store.

use homing::domain::gate::FlowChange;
use homing::domain::message::Message;
use homing::domain::url_group::UrlGroup;
use homing::store::gates::{FlowKey, Queue};
use homing::store::url_groups::UrlGroupLimits;
use homing::store::{Lease, Page};

use crate::gates::{queued, take, under};
use crate::support::{ANY_SIZE, FUTURE, Held, NODE, START, World, ids, leased, time, waiting};
use crate::url_groups::endpoint;

async fn accept(world: &World, messages: impl IntoIterator<Item = Message>) {
    let batch: Vec<_> = messages.into_iter().map(|message| waiting(message, "a")).collect();
    world.accept(&batch).await;
}

/// All items of a list, read by pages of that size.
async fn all<T>(
    count: usize,
    name: impl Fn(&T) -> &str,
    read: impl AsyncFn(Option<&str>) -> Page<T>,
) -> Vec<T> {
    let mut items: Vec<T> = Vec::new();
    loop {
        let after = items.last().map(|last| name(last).to_owned());
        let page = read(after.as_deref()).await;
        assert!(page.items.len() <= count, "{} of {count}", page.items.len());
        assert!(page.items.len() == count || !page.more, "a page that is not full is the last one");
        items.extend(page.items);
        if !page.more {
            return items;
        }
    }
}

pub(crate) async fn queues_are_listed_in_pages(world: World) {
    let store = &world.store;
    for name in ["b", "a.1", "A", "c", "z"] {
        store.upsert_queue(name, Some(2), None, None, time(START)).await.unwrap();
    }
    // Neither is a queue.
    store.change_flow_key("b", &FlowChange::Pause, time(START)).await.unwrap();
    accept(&world, ["a.1", "a.1", "c", "a.1"].map(|queue| queued(world.message(), queue))).await;
    assert_eq!(take(&**store, NODE, "q:a.1", 1).await.len(), 2, "its parallelism");
    for count in [1, 2, 5, 100] {
        let queues =
            all(count, |queue: &Queue| &queue.name, async |after| store.queues(after, count).await.unwrap());
        let queues = queues.await;
        let lags: Vec<_> = queues.iter().map(|queue| (queue.name.as_str(), queue.lag)).collect();
        assert_eq!(lags, [("A", 0), ("a.1", 3), ("b", 0), ("c", 1), ("z", 0)], "by {count}");
        for queue in queues {
            assert_eq!(store.queue(&queue.name).await.unwrap(), Some(queue));
        }
    }
    let after_none = store.queues(Some("b\u{0}"), 1).await.unwrap();
    assert_eq!((after_none.items[0].name.as_str(), after_none.more), ("c", true));
    assert!(!store.queues(Some("z"), 1).await.unwrap().more);
}

pub(crate) async fn flow_keys_are_listed_in_pages(world: World) {
    let store = &world.store;
    let now = time(START);
    for key in ["k/1", "k/2", "K", "a%b", "other k"] {
        store.change_flow_key(key, &FlowChange::Pause, now).await.unwrap();
        store.change_flow_key(key, &FlowChange::Resume, now).await.unwrap();
    }
    accept(&world, ["k/1", "k/1", "k/2"].map(|key| under(world.message(), key, 1, 0))).await;
    assert_eq!(take(&**store, NODE, "f:k/1", 1).await.len(), 1);
    for count in [1, 2, 100] {
        for (containing, expected) in [
            ("", &[("K", 0, 0), ("a%b", 0, 0), ("k/1", 1, 1), ("k/2", 1, 0), ("other k", 0, 0)][..]),
            ("k", &[("k/1", 1, 1), ("k/2", 1, 0), ("other k", 0, 0)]),
            ("%", &[("a%b", 0, 0)]),
            ("none", &[]),
        ] {
            let keys = all(
                count,
                |key: &FlowKey| &key.key,
                async |after| store.flow_keys(containing, after, count, time(FUTURE)).await.unwrap(),
            );
            let keys = keys.await;
            let found: Vec<_> =
                keys.iter().map(|key| (key.key.as_str(), key.waiting, key.in_flight)).collect();
            assert_eq!(found, expected, "{containing} by {count}");
        }
    }
}

pub(crate) async fn url_groups_are_listed_in_pages(world: World) {
    let store = &world.store;
    let limits = UrlGroupLimits { groups: None, endpoints: 100 };
    let url = format!("https://e.com/{}", "x".repeat(5000));
    for name in ["b", "a.1", "A", "c"] {
        store.upsert_endpoints(name, &[endpoint("n", &url)], limits, time(START)).await.unwrap();
    }
    for count in [1, 3, 4, 100] {
        let groups = all(
            count,
            |group: &UrlGroup| &group.name,
            async |after| store.url_groups(after, count, ANY_SIZE).await.unwrap(),
        );
        let groups = groups.await;
        let names: Vec<_> = groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, ["A", "a.1", "b", "c"], "by {count}");
        assert_eq!(store.url_group("b").await.unwrap().as_ref(), Some(&groups[2]));
    }
    // A page has one at least, and few where they are large.
    for (bytes, expected) in [(1, 1), (6_000, 2), (11_000, 3)] {
        let page = store.url_groups(Some("A"), 100, bytes).await.unwrap();
        assert_eq!((page.items.len(), page.more), (expected, expected < 3), "{bytes} bytes");
    }
    let none = store.url_groups(Some("c"), 100, 1).await.unwrap();
    assert!(none.items.is_empty() && !none.more);
}

pub(crate) async fn a_message_tells_where_it_stands(world: World) {
    let store = &world.store;
    let messages: Vec<Message> = (0..4).map(|_| queued(world.message(), "q")).collect();
    accept(&world, messages.iter().cloned()).await;
    let id = |number: usize| messages[number].id.clone();
    let situation = async |number: usize| store.situation(&id(number)).await.unwrap().expect("it waits");
    let third = situation(2).await;
    assert_eq!(
        (third.gate.as_deref(), third.flow, third.holder, third.has_slot),
        (Some("q:q"), None, None, false)
    );
    assert_eq!((third.due_at, third.retried), (messages[2].due_at, 0));
    let ahead = third.ahead.expect("it waits at a gate");
    assert_eq!((ahead.waiting, ahead.first, ahead.holders), (2, Some(id(0)), vec![]));
    assert_eq!(ids(&take(&**store, NODE, "q:q", 1).await), [id(0)]);
    let ahead = situation(2).await.ahead.expect("it waits at a gate");
    assert_eq!((ahead.waiting, ahead.first, ahead.holders), (1, Some(id(1)), vec![id(0)]));
    let first = situation(0).await;
    let holder = first.holder.expect("it is held");
    assert_eq!((holder.node, holder.name.as_deref()), (NODE, Some("node-1")));
    assert_eq!((first.has_slot, first.ahead), (true, None));
    let plain = world.message();
    world.accept(&[leased(plain.clone(), "a", 7)]).await;
    let plain_situation = store.situation(&plain.id).await.unwrap().expect("it is leased");
    assert_eq!((plain_situation.gate, plain_situation.ahead), (None, None));
    // Its node signs off, and whoever asks later finds nobody.
    store.deregister(NODE).await.unwrap();
    let freed = store.situation(&plain.id).await.unwrap().expect("it waits again");
    assert_eq!(freed.holder, None);
    store.register(NODE, "node-1").await.unwrap();
    assert_eq!(world.claim_one("a", 7).await.message.id, plain.id);
    let held = Held { id: plain.id.clone(), lease: Lease(7), retried: 0, slot: None };
    world.finish(held.delivered()).await;
    assert_eq!(store.situation(&plain.id).await.unwrap(), None);
    store.cancel(&id(3), time(START)).await.unwrap();
    assert_eq!(store.situation(&id(3)).await.unwrap(), None);
}
