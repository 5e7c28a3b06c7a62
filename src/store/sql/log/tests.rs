//! Windows are an optimisation: whatever their size, a walk finds the same.

use std::sync::Arc;

use super::*;
use crate::clock::Clock;
use crate::domain::filter::MessageFilter;
use crate::domain::id::DeadLetterId;
use crate::domain::message::{Headers, Message, Method, Options};
use crate::domain::outcome::{Attempt, Finish, Next, Outcome, Response};
use crate::domain::template::{Target, Template};
use crate::store::sql::{Database, Options as StoreOptions, SqlStore};
use crate::store::{Accept, Ended, Lease, NodeId, Repeat, Store as _, Work as _};

const START: i64 = 1_600_000_000_000;

fn message(number: u8) -> Arc<Message> {
    let labels = if number == 3 { vec!["rare".to_owned()] } else { Vec::new() };
    let template = Template::new(Method::Post, Headers::new(), "x".into(), 3, labels, Options::default());
    // Many in one millisecond.
    let now = Timestamp::from_millis(START + i64::from(number / 8));
    let id = MessageId::generate(now, [number; 10]);
    Arc::new(template.message(id, Target::url("https://e.com".to_owned()), now, now))
}

/// The end of a message's first attempt, at a time that has little to do with its order.
fn ended(message: &Message, number: u8) -> Ended {
    let at = Timestamp::from_millis(START + 20 + i64::from(number % 5));
    let (next, error) = match number % 3 {
        0 => (Next::Delivered, None),
        1 => (Next::Retry { due_at: at }, Some("later".to_owned())),
        _ => {
            let dead_letter = DeadLetterId::new(format!("1-{number}"));
            (Next::Failed { dead_letter: Some(dead_letter) }, Some("never".to_owned()))
        }
    };
    let response = Response { status: 200, headers: Headers::new(), body: "y".into() };
    let attempt = Attempt { retried: 0, started_at: at, ended_at: at, outcome: Outcome::Response(response) };
    let finish = Arc::new(Finish { attempt, next, error, effects: Vec::new() });
    Ended {
        id: message.id.clone(),
        lease: Lease(1),
        slot: None,
        pass_on: None,
        finish,
        callbacks: Vec::new(),
    }
}

async fn filled(folder: &tempfile::TempDir) -> SqlStore {
    let database = Database::Sqlite(folder.path().join("homing.db"));
    let options = StoreOptions { database, connections: 1, hot_connections: 1, max_queues: None };
    let store = SqlStore::connect(&options, Clock::system()).await.expect("it opens");
    store.migrate().await.expect("its schema");
    let messages: Vec<Arc<Message>> = (0..60).map(message).collect();
    let accept = |message: &Arc<Message>| Accept {
        message: Arc::clone(message),
        lane: Arc::from("a"),
        lease: Some(Lease(1)),
        deduplication: None,
        on_run: None,
        request: 0,
    };
    let accepts: Vec<Accept> = messages.iter().map(accept).collect();
    store.accept(NodeId(1), &accepts, Repeat::First).await.expect("it accepts");
    // The rest stays in flight.
    let ends: Vec<Ended> = messages.iter().zip(0..50).map(|(message, n)| ended(message, n)).collect();
    store.finish(NodeId(1), &ends).await.expect("it finishes");
    for message in messages.iter().step_by(7) {
        store.cancel(&message.id, Timestamp::from_millis(START + 22)).await.expect("it cancels");
    }
    store
}

/// All pages of a walk, and how many there are.
async fn pages(walk: &Walk<'_>, count: usize) -> (Vec<(LogPlace, State)>, usize) {
    let (mut found, mut cursor) = (Vec::new(), None);
    for page in 1.. {
        let (entries, next) = walk.entries(cursor.as_ref(), count).await.expect("a page");
        assert!(entries.len() <= count);
        found.extend(entries.into_iter().map(|entry| (entry.place, entry.state)));
        cursor = next;
        if cursor.is_none() {
            return (found, page);
        }
    }
    unreachable!("a walk ends")
}

#[tokio::test]
async fn whatever_its_windows_a_walk_finds_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = filled(&folder).await;
    let rare = MessageFilter { labels: vec!["rare".to_owned()], ..MessageFilter::default() };
    let filters = [
        LogFilter::default(),
        LogFilter { matching: rare, ..LogFilter::default() },
        LogFilter { states: vec![State::Failed], ..LogFilter::default() },
        LogFilter { states: vec![State::Delivered, State::Active], ..LogFilter::default() },
    ];
    for filter in &filters {
        for order in [Order::EarliestFirst, Order::LatestFirst] {
            let pools = store.lists();
            let ample = Duration::from_hours(1);
            let walk = |window, look, time| Walk { pools: &pools, filter, order, window, rows: look, time };
            let (whole, count) = pages(&walk(1000, 1000, ample), 1000).await;
            assert!(count == 1 && !whole.is_empty());
            assert!(whole.is_sorted_by(|(a, _), (b, _)| match order {
                Order::EarliestFirst => a < b,
                Order::LatestFirst => a > b,
            }));
            let bounds = [(1, 1, 1000), (1, 1000, 4), (2, 20, 1), (5, 20, 4), (5, 1000, 1000), (64, 1, 3)];
            for (window, look, size) in bounds {
                for time in [ample, Duration::ZERO] {
                    let (found, count) = pages(&walk(window, look, time), size).await;
                    assert!(found == whole, "{filter:?} {order:?} {window} {look} {time:?} {size}");
                    let bounded = look == 1 || (window < 5 && time.is_zero());
                    assert!(size < 1000 || !bounded || count > 1, "a page ends before it is full");
                }
            }
        }
    }
    store.close().await;
}
