//! Two nodes on one Postgres, each with its own connections.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use homing::domain::gate::{FlowChange, Limits, queue_gate};
use homing::domain::id::{MessageId, ScheduleId};
use homing::domain::message::Message;
use homing::domain::url_group::Endpoint;
use homing::store::sql::SqlStore;
use homing::store::url_groups::{Upserted, UrlGroupLimits};
use homing::store::{
    Accept, Accepted, Applied, Delivery, Firings as _, Gates as _, History as _, Lease, Listing as _, NodeId,
    Nodes as _, Queues as _, Repeat, Retention, Schedules as _, Store, UrlGroups as _, Work as _,
};
use sqlx::{Connection as _, PgConnection};

use crate::gates::{queued, take, under};
use crate::schedules::{run, schedule};
use crate::support::{
    ANY_SIZE, Database, FUTURE, Held, START, ids, keyed, message, next, passing, time, waiting, want,
};

const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

async fn on_two_nodes<F>(scenario: impl FnOnce([Arc<SqlStore>; 2]) -> F)
where
    F: Future<Output = ()>,
{
    let database = Database::create().await;
    let stores = [Arc::new(database.connect().await), Arc::new(database.connect().await)];
    let ended = AssertUnwindSafe(async {
        for (store, node) in stores.iter().zip(NODES) {
            store.register(node, &format!("node-{}", node.0)).await.unwrap();
        }
        scenario(stores.clone()).await;
    })
    .catch_unwind()
    .await;
    for store in &stores {
        store.close().await;
    }
    database.remove().await;
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_nodes_claim_is_claimed_once() {
    on_two_nodes(async |stores| {
        let messages: Vec<Accept> = (0..2000)
            .map(|number| {
                waiting(message(number, START + i64::from(number)), ["a", "b", "c"][number as usize % 3])
            })
            .collect();
        for batch in messages.chunks(250) {
            stores[0].accept(NODES[0], batch, Repeat::First).await.unwrap();
        }
        let mut claims = tokio::task::JoinSet::new();
        // Two tasks for each node, and the nodes prefer different lanes.
        for task in 0..4_usize {
            let (store, node) = (Arc::clone(&stores[task % 2]), NODES[task % 2]);
            claims.spawn(async move {
                let mut claimed: Vec<MessageId> = Vec::new();
                let lanes = if task % 2 == 0 { ["a", "b", "c"] } else { ["c", "b", "a"] };
                for round in 0.. {
                    let lease = Lease(i64::try_from(task * 10_000 + round).unwrap());
                    let wants = lanes.map(|lane| want(lane, 7));
                    let deliveries = store.claim(node, lease, &wants, ANY_SIZE).await.unwrap();
                    let ended: Vec<_> =
                        deliveries.iter().map(|delivery| Held::from(delivery).delivered()).collect();
                    let applied = store.finish(node, &ended).await.unwrap();
                    assert!(applied.iter().all(|applied| *applied == Applied::Yes));
                    claimed.extend(ids(&deliveries));
                    // What the others have locked shows up again only if they give it back.
                    if deliveries.is_empty() && store.next_due().await.unwrap().due_at.is_none() {
                        break;
                    }
                }
                claimed
            });
        }
        let claimed: Vec<MessageId> = claims.join_all().await.into_iter().flatten().collect();
        assert_eq!(claimed.len(), 2000);
        assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 2000);
    })
    .await;
}

/// Two batches that want the same keys in opposite orders wait for each other one way only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_keys_of_two_nodes_do_not_deadlock() {
    on_two_nodes(async |stores| {
        for round in 0..30_u32 {
            let mut accepts = tokio::task::JoinSet::new();
            for node in 0..2_usize {
                let store = Arc::clone(&stores[node]);
                accepts.spawn(async move {
                    let first = round * 100 + u32::try_from(node).unwrap() * 50;
                    let mut batch: Vec<Accept> = (0..50)
                        .map(|key| {
                            let message = message(first + key, START + i64::from(first + key));
                            keyed(message, &format!("{round}-{key}"), FUTURE)
                        })
                        .collect();
                    if node == 1 {
                        batch.reverse();
                    }
                    let results = store.accept(NODES[node], &batch, Repeat::First).await.unwrap();
                    batch
                        .into_iter()
                        .zip(results)
                        .map(|(accept, result)| {
                            (accept.deduplication.unwrap().key, accept.message.id.clone(), result)
                        })
                        .collect::<Vec<_>>()
                });
            }
            let results: Vec<_> = accepts.join_all().await.into_iter().flatten().collect();
            let stored: Vec<_> = results.iter().filter(|(.., result)| *result == Accepted::Stored).collect();
            assert_eq!(stored.len(), 50);
            for (key, id, result) in &results {
                let (_, winner, _) = stored.iter().find(|(of, ..)| of == key).unwrap();
                let expected =
                    if id == winner { Accepted::Stored } else { Accepted::Duplicate(winner.clone()) };
                assert_eq!(*result, expected);
            }
        }
        let claimed = stores[1].claim(NODES[1], Lease(1), &[want("a", 5000)], ANY_SIZE).await.unwrap();
        assert_eq!(claimed.len(), 1500);
    })
    .await;
}

/// Cancelling races with claiming: each message ends either without an attempt or in the hands of a node that is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_meets_a_claim() {
    on_two_nodes(async |stores| {
        let messages: Vec<Accept> =
            (0..200).map(|number| waiting(message(number, START + i64::from(number)), "a")).collect();
        stores[0].accept(NODES[0], &messages, Repeat::First).await.unwrap();
        let store = Arc::clone(&stores[0]);
        let wanted: Vec<MessageId> = messages.iter().map(|accept| accept.message.id.clone()).collect();
        let cancels = tokio::spawn(async move {
            let mut cancelled = 0;
            for id in &wanted {
                match store.cancel(id, crate::support::time(START + 900)).await.unwrap() {
                    homing::store::Cancellation::NotFound => panic!("{id} is there"),
                    homing::store::Cancellation::Cancelled => cancelled += 1,
                    homing::store::Cancellation::Requested => {}
                }
            }
            cancelled
        });
        let mut held = Vec::new();
        let mut round = 0;
        while !cancels.is_finished() || stores[1].next_due().await.unwrap().due_at.is_some() {
            round += 1;
            held.extend(stores[1].claim(NODES[1], Lease(round), &[want("a", 3)], ANY_SIZE).await.unwrap());
        }
        let cancelled: usize = cancels.await.unwrap();
        assert_eq!(cancelled + held.len(), 200);
        // Everything that was claimed has been asked to stop meanwhile.
        let ended: Vec<_> = held.iter().map(|delivery| Held::from(delivery).cancelled()).collect();
        let applied = stores[1].finish(NODES[1], &ended).await.unwrap();
        assert!(applied.iter().all(|applied| *applied == Applied::Yes));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_two_nodes_see_are_run_once() {
    const SCHEDULES: u32 = 300;
    on_two_nodes(async |stores| {
        for number in 0..SCHEDULES {
            let id = format!("s{number}");
            stores[0].put_schedule(&schedule(&id, i64::from(number)), None).await.unwrap();
        }
        let mut runs = tokio::task::JoinSet::new();
        for task in 0..4_u32 {
            let store = Arc::clone(&stores[task as usize % 2]);
            runs.spawn(async move {
                let mut fired: Vec<ScheduleId> = Vec::new();
                let mut number = task * 1_000_000;
                loop {
                    let mut due = store.due_schedules(time(START), 20, ANY_SIZE).await.unwrap();
                    if due.is_empty() {
                        return fired;
                    }
                    // The tasks are at different ones, so that each finds some of its own run by others.
                    let middle = task as usize * 5 % due.len();
                    due.rotate_left(middle);
                    for seen in &due {
                        number += 1;
                        if store.fire(&run(seen, FUTURE, &[message(number, START)])).await.unwrap() {
                            fired.push(seen.id.clone());
                        }
                    }
                }
            });
        }
        let fired: Vec<ScheduleId> = runs.join_all().await.into_iter().flatten().collect();
        let distinct: BTreeSet<&ScheduleId> = fired.iter().collect();
        assert_eq!((fired.len(), distinct.len()), (SCHEDULES as usize, SCHEDULES as usize));
        let claimed = stores[1].claim(NODES[1], Lease(1), &[want("a", 1000)], ANY_SIZE).await.unwrap();
        assert_eq!(claimed.len(), SCHEDULES as usize);
    })
    .await;
}

/// Both nodes add endpoints to a group that neither has made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_endpoint_is_lost_between_two_nodes() {
    on_two_nodes(async |stores| {
        let limits = UrlGroupLimits { groups: Some(1), endpoints: 100 };
        let mut adding = tokio::task::JoinSet::new();
        for number in 0..100_usize {
            let (store, other) = (Arc::clone(&stores[number % 2]), Arc::clone(&stores[(number + 1) % 2]));
            adding.spawn(async move {
                let endpoint = Endpoint { name: Some(number.to_string()), url: format!("https://{number}") };
                let upserted = store.upsert_endpoints("g", &[endpoint], limits, time(START)).await.unwrap();
                assert_eq!(upserted, Upserted::Stored);
                // What is answered on one node can be read on the other.
                let group = other.url_group("g").await.unwrap().unwrap();
                assert!(group.endpoints.iter().any(|have| have.url == format!("https://{number}")));
            });
        }
        adding.join_all().await;
        assert_eq!(stores[0].url_group("g").await.unwrap().unwrap().endpoints.len(), 100);
        assert_eq!(stores[1].url_groups(None, 100, ANY_SIZE).await.unwrap().items.len(), 1);
    })
    .await;
}

/// Claimers on two nodes, which finish what they take, until so many are finished. What was taken, in that order, and how
/// many were held at once at most.
async fn drain(stores: &[Arc<SqlStore>; 2], gate: &'static str, total: usize) -> (Vec<MessageId>, usize) {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (held, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let done = Arc::new(AtomicUsize::new(0));
    let leases = Arc::new(AtomicI64::new(1));
    let mut claimers = tokio::task::JoinSet::new();
    for task in 0..4_usize {
        let (store, node) = (Arc::clone(&stores[task % 2]), NODES[task % 2]);
        let (taken, held, most) = (Arc::clone(&taken), Arc::clone(&held), Arc::clone(&most));
        let (done, leases) = (Arc::clone(&done), Arc::clone(&leases));
        claimers.spawn(async move {
            let deadline = Instant::now() + Duration::from_mins(1);
            while done.load(Ordering::SeqCst) < total {
                assert!(Instant::now() < deadline, "{} of {total}", done.load(Ordering::SeqCst));
                let lease = leases.fetch_add(1, Ordering::SeqCst);
                let mut deliveries = take(&*store, node, gate, lease).await;
                for round in 1.. {
                    if deliveries.is_empty() {
                        break;
                    }
                    taken.lock().unwrap().extend(ids(&deliveries));
                    most.fetch_max(
                        held.fetch_add(deliveries.len(), Ordering::SeqCst) + deliveries.len(),
                        Ordering::SeqCst,
                    );
                    tokio::task::yield_now().await;
                    held.fetch_sub(deliveries.len(), Ordering::SeqCst);
                    // Some slots are passed on, the others are left to whoever claims.
                    let end = |delivery: &Delivery| {
                        let ended = Held::from(delivery).delivered();
                        if round % 4 == 0 { ended } else { passing(ended, "a", lease) }
                    };
                    let ended: Vec<_> = deliveries.iter().map(end).collect();
                    let applied = store.finish(node, &ended).await.unwrap();
                    done.fetch_add(deliveries.len(), Ordering::SeqCst);
                    deliveries = applied.into_iter().filter_map(next).collect();
                }
            }
        });
    }
    claimers.join_all().await;
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    (taken, most.load(Ordering::SeqCst))
}

/// Whoever had the answer before another one was sent goes first, on whichever nodes they came in and went out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_keep_a_queue_in_order() {
    on_two_nodes(async |stores| {
        let made = Arc::new(AtomicUsize::new(0));
        let mut publishers = tokio::task::JoinSet::new();
        for task in 0..4_usize {
            let (store, node, made) = (Arc::clone(&stores[task % 2]), NODES[task % 2], Arc::clone(&made));
            publishers.spawn(async move {
                let mut accepted = Vec::new();
                for _ in 0..50 {
                    let number = u32::try_from(made.fetch_add(1, Ordering::SeqCst)).unwrap();
                    // Their clocks differ.
                    let created_at = START + i64::from(number) + 5000 * i64::try_from(task % 2).unwrap();
                    let accept = waiting(queued(message(number, created_at), "q"), "a");
                    let begun = Instant::now();
                    store.accept(node, std::slice::from_ref(&accept), Repeat::First).await.unwrap();
                    accepted.push((accept.message.id.clone(), begun, Instant::now()));
                }
                accepted
            });
        }
        let (taken, most) = drain(&stores, "q:q", 200).await;
        assert_eq!((taken.len(), most), (200, 1));
        let place: HashMap<&MessageId, usize> = taken.iter().zip(0..).collect();
        let accepted: Vec<_> = publishers.join_all().await.into_iter().flatten().collect();
        for (earlier, _, answered) in &accepted {
            for (later, begun, _) in &accepted {
                assert!(answered >= begun || place[earlier] < place[later], "{earlier} goes before {later}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_keep_to_a_keys_parallelism() {
    on_two_nodes(async |stores| {
        let batch: Vec<Accept> = (0..200)
            .map(|number| waiting(under(message(number, START + i64::from(number)), "k", 3, 0), "a"))
            .collect();
        stores[0].accept(NODES[0], &batch, Repeat::First).await.unwrap();
        let (taken, most) = drain(&stores, "f:k", 200).await;
        assert_eq!(taken.into_iter().collect::<BTreeSet<_>>().len(), 200);
        assert!((1..=3).contains(&most), "{most} at once");
    })
    .await;
}

/// All that locks gates and deliveries, at once and in opposite orders: nothing deadlocks, and nothing is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_at_many_gates_does_not_deadlock() {
    on_two_nodes(async |stores| {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for node in 0..2_usize {
            for kind in 0..4 {
                let (store, stop) = (Arc::clone(&stores[node]), Arc::clone(&stop));
                tasks.spawn(async move {
                    for round in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        disturb(&store, NODES[node], kind, round).await;
                    }
                });
            }
        }
        for round in 0..40_u32 {
            let mut accepts = tokio::task::JoinSet::new();
            for node in 0..2_usize {
                let store = Arc::clone(&stores[node]);
                accepts.spawn(async move {
                    let first = round * 100 + u32::try_from(node).unwrap() * 50;
                    let of = |number: u32| -> Message {
                        let made = message(first + number, START + i64::from(first + number));
                        let made = under(made, &format!("k{}", number % 5), 1 + round % 3, 0);
                        if number.is_multiple_of(2) {
                            queued(made, &format!("q{}", number % 3))
                        } else {
                            made
                        }
                    };
                    let mut batch: Vec<Accept> = (0..30).map(|number| waiting(of(number), "a")).collect();
                    if node == 1 {
                        batch.reverse();
                    }
                    store.accept(NODES[node], &batch, Repeat::First).await.unwrap();
                });
            }
            accepts.join_all().await;
        }
        stop.store(true, Ordering::SeqCst);
        tasks.join_all().await;
        // Whatever is left at the gates can still be taken, if nothing is in its way.
        for node in NODES {
            stores[0].reconcile(node, &[], Lease(i64::MAX)).await.unwrap();
        }
        for name in ["q0", "q1", "q2"] {
            stores[0].upsert_queue(name, Some(5000), Some(false), None, time(START)).await.unwrap();
        }
        for key in ["k0", "k1", "k2", "k3", "k4"] {
            let pin = FlowChange::Pin(Limits { parallelism: Some(5000), rate: None });
            stores[0].change_flow_key(key, &pin, time(START)).await.unwrap();
            stores[0].change_flow_key(key, &FlowChange::Resume, time(START)).await.unwrap();
        }
        let gates = ["q:q0", "q:q1", "q:q2", "f:k0", "f:k1", "f:k2", "f:k3", "f:k4"];
        for gate in gates {
            while !take(&*stores[0], NODES[0], gate, 1).await.is_empty() {}
        }
        for queue in stores[0].queues(None, 100).await.unwrap().items {
            // All are in flight; some that are finished keep their slot for their callback.
            let looks = stores[0].snapshot_gates(&[Arc::from(format!("q:{}", queue.name))], 1).await.unwrap();
            assert!(u64::from(looks.gates[0].gate.in_use) >= queue.lag, "{}", queue.name);
            assert!(looks.gates[0].waiting.is_empty(), "{}", queue.name);
        }
        for key in stores[0].flow_keys("", None, 100, time(FUTURE)).await.unwrap().items {
            assert_eq!(key.waiting, 0, "{}", key.key);
        }
    })
    .await;
}

/// One thing that nodes and users do beside accepting.
async fn disturb(store: &SqlStore, node: NodeId, kind: u32, round: i64) {
    let lease = i64::from(kind) * 1_000_000 + round + 1;
    match kind {
        0 => {
            let gate = format!("q:q{}", round % 3);
            for delivery in take(store, node, &gate, lease).await {
                let mut last = Some(delivery);
                for _ in 0..3 {
                    let Some(delivery) = last.take() else { break };
                    let ended = passing(Held::from(&delivery).delivered(), "a", lease);
                    if let Applied::PassedOn(next) = store.finish(node, &[ended]).await.unwrap().remove(0) {
                        last = Some(*next);
                    }
                }
                let Some(delivery) = last else { continue };
                let held = Held::from(&delivery);
                let callback = under(delivery.message.as_ref().clone(), "k4", 2, 0);
                let number = u32::try_from(round).unwrap() * 8 + u32::try_from(node.0).unwrap();
                let id = message(number, START + 5_000_000 + round).id;
                let callback = Message { id, queue: None, ..callback };
                let ended = crate::support::with_callback(held.delivered(), callback, "cb", None);
                store.finish(node, &[ended]).await.unwrap();
            }
        }
        1 => {
            let gate = format!("f:k{}", round % 5);
            for delivery in take(store, node, &gate, lease).await {
                store.finish(node, &[Held::from(&delivery).delivered()]).await.unwrap();
            }
        }
        2 => {
            let gates = ["q:q2", "q:q1", "q:q0", "f:k4", "f:k0"].map(|gate| (Arc::from(gate), time(FUTURE)));
            store.rest_gates(&gates).await.unwrap();
            store.wake_gates().await.unwrap();
            let retention = Retention { log: Duration::ZERO, dead_letters: Duration::ZERO };
            store.prune(retention, time(START), "").await.unwrap();
        }
        _ => {
            let queue = format!("q{}", round % 3);
            store.pause_queue(&queue, round % 2 == 0, time(START)).await.unwrap();
            let change = if round % 2 == 0 { FlowChange::Pause } else { FlowChange::Resume };
            store.change_flow_key(&format!("k{}", round % 5), &change, time(START)).await.unwrap();
            if round % 7 == 0 {
                while !store.remove_queue(&queue, time(START)).await.unwrap().done {}
            }
            store.reconcile(node, &[], Lease(0)).await.unwrap();
        }
    }
}

/// What is said while the connection that listens is lost is heard by nobody: that it was lost counts as a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_counts_as_a_change() {
    let database = Database::create().await;
    let (store, other) = (database.connect().await, database.connect().await);
    store.changed_elsewhere().await.expect("it listens from here on");
    other.tell_others().await.unwrap();
    store.changed_elsewhere().await.expect("it was told");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND query ILIKE 'LISTEN%'";
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let ended: Vec<bool> = sqlx::query_scalar(end).fetch_all(&mut connection).await.unwrap();
    assert_eq!(ended, [true]);
    let told = tokio::time::timeout(Duration::from_secs(20), store.changed_elsewhere()).await;
    told.expect("it counts as a change").expect("it listens again");
    other.tell_others().await.unwrap();
    store.changed_elsewhere().await.expect("it was told");
    connection.close().await.unwrap();
    for store in [store, other] {
        store.close().await;
    }
    database.remove().await;
}

/// A node that is held up between a claim and putting aside what it can't read has been taken over when it goes on: what
/// it claimed is another's. A trigger holds it up at the beginning of that statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_taken_over_is_not_put_aside() {
    let database = Database::create().await;
    let store = Arc::new(database.connect().await);
    let mut sql = PgConnection::connect(&database.url()).await.unwrap();
    store.register(NODES[0], "node-1").await.unwrap();
    let plain = waiting(message(0, START), "a");
    let queued = waiting(queued(message(1, START), "q"), "a");
    let ids = [plain.message.id.clone(), queued.message.id.clone()];
    store.accept(NODES[0], &[plain, queued], Repeat::First).await.unwrap();
    let setup = "UPDATE messages SET headers = 'no JSON'; \
         CREATE FUNCTION hold_up() RETURNS trigger AS $$ BEGIN \
             IF current_query() LIKE '%due_at = due_at + %' THEN PERFORM pg_advisory_xact_lock(42); END IF; \
             RETURN NULL; END $$ LANGUAGE plpgsql; \
         CREATE TRIGGER hold_up BEFORE UPDATE ON deliveries EXECUTE FUNCTION hold_up()";
    sqlx::raw_sql(setup).execute(&mut sql).await.unwrap();
    for (id, is_queued) in ids.iter().zip([false, true]) {
        sqlx::raw_sql("SELECT pg_advisory_lock(42)").execute(&mut sql).await.unwrap();
        let claiming = Arc::clone(&store);
        let claim = tokio::spawn(async move {
            if is_queued {
                take(&*claiming, NODES[0], &queue_gate("q"), 5).await.len()
            } else {
                claiming.claim(NODES[0], Lease(5), &[want("a", 1)], ANY_SIZE).await.unwrap().len()
            }
        });
        let waits = "SELECT EXISTS (SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
             WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database())";
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut sql).await.unwrap() {
            assert!(!claim.is_finished(), "nothing was put aside");
        }
        let take_over = "UPDATE deliveries SET node = 2, lease = 7 WHERE message_id = $1 AND node = 1";
        let taken = sqlx::query(take_over).bind(id.as_str()).execute(&mut sql).await.unwrap();
        assert_eq!(taken.rows_affected(), 1);
        sqlx::raw_sql("SELECT pg_advisory_unlock(42)").execute(&mut sql).await.unwrap();
        assert_eq!(claim.await.unwrap(), 0);
        let holder: (i64, i64) = sqlx::query_as("SELECT node, lease FROM deliveries WHERE message_id = $1")
            .bind(id.as_str())
            .fetch_one(&mut sql)
            .await
            .unwrap();
        assert_eq!(holder, (2, 7));
    }
    store.close().await;
    sql.close().await.unwrap();
    database.remove().await;
}
