//! Plans on Postgres that are made while nothing waits, and have to hold when much does.

use homing::store::{Accept, Gates as _, Repeat, Store as _};
use sqlx::{Connection as _, PgConnection};

use crate::gates::{queued, take};
use crate::support::{Database, Held, NODE, START, leased, message, time, waiting};

const WAITING: i64 = 2000;
const TAKEN: i64 = 20;

/// Entries of the indices on deliveries that the database has read so far. Its processes tell it when they end.
async fn index_entries_read(database: &Database) -> i64 {
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let others = "SELECT COUNT(*) FROM pg_stat_activity \
                  WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while sqlx::query_scalar::<_, i64>(others).fetch_one(&mut connection).await.unwrap() > 0 {
        tokio::task::yield_now().await;
    }
    let read = "SELECT SUM(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'deliveries'";
    let read = sqlx::query_scalar(read).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    read
}

/// One at a time goes by a statement of its own.
#[tokio::test]
async fn a_long_queue_costs_no_more_than_a_short_one() {
    a_long_queue(1).await;
}

#[tokio::test]
async fn nor_does_one_that_lets_several_go_at_once() {
    a_long_queue(2).await;
}

async fn a_long_queue(parallelism: u32) {
    let database = Database::create().await;
    let store = database.connect().await;
    store.register(NODE, "node").await.unwrap();
    store.upsert_queue("q", Some(parallelism), None, None, time(START)).await.unwrap();
    let take = async |lease: i64| {
        let taken = take(&store, NODE, "q:q", lease).await;
        assert!(!taken.is_empty());
        let ended: Vec<_> = taken.iter().map(|delivery| Held::from(delivery).delivered()).collect();
        store.finish(NODE, &ended).await.unwrap();
    };
    for number in 0..WAITING {
        let number = u32::try_from(number).unwrap();
        let accept = waiting(queued(message(number, START + i64::from(number)), "q"), "a");
        store.accept(NODE, &[accept], Repeat::First).await.unwrap();
        // Each connection has made its plans before much waits.
        if number < 40 && (number + 1) % parallelism == 0 {
            take(1 + i64::from(number)).await;
        }
    }
    for lease in 100..100 + TAKEN {
        take(lease).await;
    }
    store.close().await;
    let read = index_entries_read(&database).await;
    database.remove().await;
    // Entries of what is gone are among them, a few for each message.
    assert!(read < TAKEN * WAITING / 10, "{read} entries for {TAKEN} messages, with {WAITING} waiting");
}

#[tokio::test]
async fn a_long_lane_costs_a_look_no_more_than_a_short_one() {
    let database = Database::create().await;
    let store = database.connect().await;
    store.register(NODE, "node").await.unwrap();
    let messages =
        |from: i64| (from..from + WAITING).map(|number| message(u32::try_from(number).unwrap(), START));
    // The statistics are of a moment when nothing waits. Much is due at the same time, which makes the index of due times,
    // with many entries alike, the smaller one.
    let under_way: Vec<Accept> = messages(0).map(|message| leased(message, "a", 1)).collect();
    store.accept(NODE, &under_way, Repeat::First).await.unwrap();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql("ANALYZE deliveries").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let waiting: Vec<Accept> = messages(WAITING).map(|message| waiting(message, "a")).collect();
    store.accept(NODE, &waiting, Repeat::First).await.unwrap();
    for _ in 0..TAKEN {
        // A look that finds as many as it may walks the lanes, too.
        assert_eq!(store.due_lanes(1, "").await.unwrap().lanes, ["a"]);
    }
    store.close().await;
    let read = index_entries_read(&database).await;
    database.remove().await;
    assert!(read < TAKEN * WAITING / 10, "{read} entries for {TAKEN} looks, with {WAITING} waiting");
}
