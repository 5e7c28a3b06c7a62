//! Plans on Postgres that are made while nothing waits, and have to hold when much does.

use homing::domain::id::MessageId;
use homing::store::{
    Accept, Applied, Cancellation, Delivery, Ended, Lease, Nodes as _, Queues as _, Repeat, Store as _,
    Work as _,
};
use sqlx::{Connection as _, PgConnection};

use crate::gates::{queued, take};
use crate::support::{
    Database, FUTURE, Held, NODE, START, leased, message, next, passing, time, waiting, want, with_callback,
};

const WAITING: i64 = 2000;
const TAKEN: i64 = 20;
/// Entries that may be read at most. A step that walks over all that waits reads `WAITING` entries each time. What is gone
/// is read as well until no snapshot in the cluster can see it, which other tests' connections delay: some thousands.
const MOST: i64 = TAKEN * WAITING / 4;

/// Entries of the indices on deliveries and messages that the database has read so far, and rows where it went without an
/// index. Its processes tell it when they end.
async fn entries_read(database: &Database) -> i64 {
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let others = "SELECT COUNT(*) FROM pg_stat_activity \
                  WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while sqlx::query_scalar::<_, i64>(others).fetch_one(&mut connection).await.unwrap() > 0 {
        tokio::task::yield_now().await;
    }
    let read = "SELECT SUM(read)::bigint FROM ( \
                    SELECT relname, idx_tup_read AS read FROM pg_stat_user_indexes \
                    UNION ALL SELECT relname, seq_tup_read FROM pg_stat_user_tables) AS r \
                WHERE relname IN ('messages', 'deliveries')";
    let read = sqlx::query_scalar(read).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    read
}

/// A database with the statistics of a vacuum that came while nothing was there, no rows on many pages; and what was read
/// for that.
async fn vacuumed_empty() -> (Database, i64) {
    let database = Database::create().await;
    database.connect().await.close().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    // Autovacuum would give the pages back.
    let fill = "ALTER TABLE messages SET (autovacuum_enabled = off); \
                ALTER TABLE deliveries SET (autovacuum_enabled = off); \
                INSERT INTO messages (id, created_at, due_at, method, url, body, body_sha256, max_retries) \
                SELECT 'm' || n, 0, 0, 'POST', 'https://example.com', '', '', 0 FROM generate_series(1, 10000) AS n; \
                INSERT INTO deliveries (message_id, lane, due_at, size, retried, claims, node, lease) \
                SELECT id, 'a', 0, 0, 0, 0, 0, 0 FROM messages; \
                DELETE FROM messages; DELETE FROM deliveries";
    sqlx::raw_sql(fill).execute(&mut connection).await.unwrap();
    for table in ["messages", "deliveries"] {
        let vacuum = format!("VACUUM (TRUNCATE FALSE) {table}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(vacuum)).execute(&mut connection).await.unwrap();
        let seen = "SELECT reltuples = 0 AND relpages > 50 FROM pg_class WHERE relname = $1";
        assert!(sqlx::query_scalar::<_, bool>(seen).bind(table).fetch_one(&mut connection).await.unwrap());
    }
    connection.close().await.unwrap();
    let read = entries_read(&database).await;
    (database, read)
}

/// What is found by its id must be, however few rows the statistics tell of.
#[tokio::test]
async fn a_vacuum_of_an_empty_table_makes_no_step_slow() {
    let (database, before) = vacuumed_empty().await;
    let store = database.connect().await;
    store.register(NODE, "node").await.unwrap();
    let count = usize::try_from(WAITING).unwrap();
    let messages =
        |from: i64| (from..from + WAITING).map(|number| message(u32::try_from(number).unwrap(), START));
    let under_way: Vec<Accept> = messages(0).map(|message| leased(message, "a", 1)).collect();
    store.accept(NODE, &under_way, Repeat::First).await.unwrap();
    let mut due: Vec<Accept> = messages(WAITING).map(|message| waiting(message, "a")).collect();
    store.accept(NODE, &due, Repeat::First).await.unwrap();
    let mut held = under_way.iter().map(held);
    let finish = async |batch: Vec<Ended>| {
        assert_eq!(store.finish(NODE, &batch).await.unwrap(), vec![Applied::Yes; batch.len()]);
    };
    let mut callbacks = messages(2 * WAITING);
    for number in 0..TAKEN {
        let mut next = || held.next().unwrap();
        finish(vec![next().delivered(), next().delivered()]).await;
        let callback = with_callback(next().delivered(), callbacks.next().unwrap(), "cb", None);
        finish(vec![callback, next().retry_at(FUTURE), next().failed(&number.to_string())]).await;
        let claimed = store.claim(NODE, Lease(2 + number), &[want("a", 1)], count).await.unwrap();
        assert_eq!(claimed.len(), 1);
        let back = (claimed[0].message.id.clone(), claimed[0].lease);
        assert_eq!(store.release(NODE, &[back]).await.unwrap(), 1);
        let unwanted: Vec<MessageId> =
            due.iter().rev().take(2).map(|accept| accept.message.id.clone()).collect();
        due.truncate(due.len() - 2);
        let cancelled = store.cancel_many(&unwanted, time(START)).await.unwrap();
        assert_eq!(cancelled, [Cancellation::Cancelled; 2]);
    }
    store.close().await;
    let read = entries_read(&database).await - before;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    assert_eq!(vacuums(&mut connection).await, 1, "the statistics are still those");
    connection.close().await.unwrap();
    database.remove().await;
    assert!(read < MOST, "{read} entries for {TAKEN} of each step, with {WAITING} waiting");
}

/// How many times somebody asked for a vacuum of the deliveries.
async fn vacuums(connection: &mut PgConnection) -> i64 {
    let vacuums = "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'deliveries'";
    sqlx::query_scalar(vacuums).fetch_one(connection).await.unwrap()
}

/// The lease that a message was accepted with.
fn held(accept: &Accept) -> Held {
    Held { id: accept.message.id.clone(), lease: accept.lease.unwrap(), retried: 0, slot: None }
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
    let (database, before) = vacuumed_empty().await;
    let store = database.connect().await;
    store.register(NODE, "node").await.unwrap();
    store.upsert_queue("q", Some(parallelism), None, None, time(START)).await.unwrap();
    let take = async |lease: i64| {
        let taken = take(&store, NODE, "q:q", lease).await;
        assert!(!taken.is_empty());
        let end = async |taken: Vec<Delivery>, end: &dyn Fn(&Held) -> Ended| -> Vec<Delivery> {
            let ended: Vec<_> = taken.iter().map(|delivery| end(&Held::from(delivery))).collect();
            store.finish(NODE, &ended).await.unwrap().into_iter().filter_map(next).collect()
        };
        // Slots are passed on by either of the statements that do.
        let taken = end(taken, &|held| passing(held.delivered(), "a", lease)).await;
        let taken = end(taken, &|held| passing(held.failed(&format!("1-{lease}")), "a", lease)).await;
        if lease >= 100 {
            assert_eq!(taken.len(), 1);
        }
        end(taken, &Held::delivered).await;
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
    let read = entries_read(&database).await - before;
    database.remove().await;
    assert!(read < MOST, "{read} entries for {TAKEN} messages, with {WAITING} waiting");
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
    let read = entries_read(&database).await;
    database.remove().await;
    assert!(read < MOST, "{read} entries for {TAKEN} looks, with {WAITING} waiting");
}
