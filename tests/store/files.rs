//! SQLite's files after ends that were not orderly, with links in their place, and after the clock has gone back.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use homing::clock::Clock;
use homing::domain::id::MessageId;
use homing::store::model::MAX_QUEUES;
use homing::store::sql::{self, SqlStore};
use homing::store::{
    Accept, Accepted, Gates as _, Lease, Nodes as _, Queues as _, Repeat, Store as _, StoreError, Work as _,
};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tempfile::TempDir;

use crate::gates::{queued, take, under};
use crate::support::{ANY_SIZE, FUTURE, NODE, START, message, time, waiting, want};

struct Files {
    folder: TempDir,
    database: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("homing.db");
        Self { folder, database }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("homing.db{suffix}"))
    }

    /// Opens the store as a server does at its start.
    async fn open(&self) -> Result<SqlStore, StoreError> {
        open(&self.database).await
    }

    /// As a killed process leaves it: nothing says that the end was orderly.
    fn mark_unclean(&self) {
        fs::write(self.beside(".lock"), "4711\n").unwrap();
    }

    async fn execute(&self, sql: &str) {
        let url = format!("sqlite://{}", self.database.display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn is_sound(&self) -> bool {
        let url = format!("sqlite://{}", self.database.display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        let found: Vec<String> =
            sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        found == ["ok"]
    }

    /// Gives an index a condition for the time of some statements, so that it does not see what they do.
    async fn behind_the_index(&self, name: &str, sql: &str) {
        self.execute(&format!(
            "CREATE TABLE kept AS SELECT sql FROM sqlite_master WHERE name = '{name}'; \
             PRAGMA writable_schema = ON; \
             UPDATE sqlite_master SET sql = REPLACE(sql, 'node = 0', 'node = 9') WHERE name = '{name}'"
        ))
        .await;
        self.execute(sql).await;
        self.execute(&format!(
            "PRAGMA writable_schema = ON; \
             UPDATE sqlite_master SET sql = (SELECT sql FROM kept) WHERE name = '{name}'; DROP TABLE kept"
        ))
        .await;
    }
}

async fn open(path: &Path) -> Result<SqlStore, StoreError> {
    let options = sql::Options {
        database: sql::Database::Sqlite(path.to_owned()),
        connections: 8,
        hot_connections: 8,
        max_queues: Some(MAX_QUEUES),
    };
    let store = SqlStore::connect(&options, Clock::system()).await?;
    store.migrate().await?;
    Ok(store)
}

/// An orderly end.
async fn end(store: SqlStore) {
    store.close().await;
}

fn messages(count: u32) -> Vec<Accept> {
    (0..count).map(|number| waiting(message(number, START), "a")).collect()
}

async fn accept(store: &SqlStore, batch: &[Accept]) {
    let accepted = store.accept(NODE, batch, Repeat::First).await.unwrap();
    assert_eq!(accepted, vec![Accepted::Stored; batch.len()]);
}

async fn claimed(store: &SqlStore, lane: &str) -> usize {
    store.claim(NODE, Lease(1), &[want(lane, 1000)], ANY_SIZE).await.unwrap().len()
}

#[tokio::test]
async fn an_index_that_lost_rows_is_made_anew() {
    let files = Files::new();
    let store = files.open().await.unwrap();
    accept(&store, &messages(20)).await;
    end(store).await;
    files.behind_the_index("deliveries_claim", "UPDATE deliveries SET lane = 'b'").await;
    assert!(!files.is_sound().await, "the test damages the index");
    // After an orderly end nobody looks, and nothing of the lane is found.
    let store = files.open().await.unwrap();
    assert_eq!(claimed(&store, "b").await, 0);
    end(store).await;
    files.mark_unclean();
    let store = files.open().await.unwrap();
    assert_eq!(claimed(&store, "b").await, 20);
    end(store).await;
    assert!(files.is_sound().await);
    assert_eq!(fs::read(files.beside(".lock")).unwrap(), b"", "the end was orderly");
}

#[tokio::test]
async fn an_index_of_the_log_is_made_anew_beside_everything_else() {
    let files = Files::new();
    let store = files.open().await.unwrap();
    accept(&store, &messages(20)).await;
    end(store).await;
    files
        .execute(
            "CREATE INDEX of_the_log ON messages (method) WHERE url <> ''; PRAGMA writable_schema = ON; \
             UPDATE sqlite_master SET sql = REPLACE(sql, '<>', '=') WHERE name = 'of_the_log'",
        )
        .await;
    files.execute("UPDATE messages SET method = 'PUT'").await;
    files
        .execute(
            "PRAGMA writable_schema = ON; \
             UPDATE sqlite_master SET sql = REPLACE(sql, '=', '<>') WHERE name = 'of_the_log'",
        )
        .await;
    assert!(!files.is_sound().await, "the test damages the index");
    files.mark_unclean();
    let store = files.open().await.unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !files.is_sound().await {
        assert!(std::time::Instant::now() < deadline, "the index is made anew");
        tokio::task::yield_now().await;
    }
    end(store).await;
}

/// What the refusal says.
async fn refusal(files: &Files) -> String {
    let Err(error) = files.open().await else { panic!("it opens") };
    let text = error.to_string();
    assert!(text.contains(&files.database.display().to_string()), "it names the file: {text}");
    text
}

#[tokio::test]
async fn a_file_that_is_damaged_is_named() {
    let files = Files::new();
    let store = files.open().await.unwrap();
    accept(&store, &messages(200)).await;
    end(store).await;
    let whole = fs::read(&files.database).unwrap();
    let size = whole.len();

    fs::write(&files.database, vec![b'x'; 8192]).unwrap();
    let text = refusal(&files).await;
    assert!(text.contains("file is not a database") && text.contains("restore a backup"), "{text}");
    fs::write(&files.database, &whole[..size / 2]).unwrap();
    assert!(refusal(&files).await.contains("restore a backup"));
    // A page that holds waiting deliveries.
    files.mark_unclean();
    let mut torn = whole.clone();
    let place = whole.windows(13).rposition(|part| part == b"https://e.com").or_else(|| {
        let id = message(100, START).id;
        whole.windows(id.as_str().len()).rposition(|part| part == id.as_str().as_bytes())
    });
    let page = place.unwrap() / 4096 * 4096;
    torn[page..page + 4096].fill(0xff);
    fs::write(&files.database, &torn).unwrap();
    match files.open().await {
        Err(error) => assert!(error.to_string().contains("restore a backup"), "{error}"),
        Ok(store) => {
            // It was an index's.
            end(store).await;
            assert!(files.is_sound().await);
        }
    }
    fs::write(&files.database, &whole).unwrap();
    let store = files.open().await.unwrap();
    assert_eq!(claimed(&store, "a").await, 200);
    end(store).await;
}

/// A log that ends anywhere, after a part of it was moved into the database file.
#[tokio::test]
async fn whatever_is_left_of_the_log_indices_fit_or_the_start_is_refused() {
    let files = Files::new();
    let store = files.open().await.unwrap();
    for round in 0..6 {
        let batch: Vec<Accept> = (0..40)
            .map(|number| {
                waiting(message(round * 40 + number, START), if number % 2 == 0 { "a" } else { "b" })
            })
            .collect();
        accept(&store, &batch).await;
        store.claim(NODE, Lease(1 + i64::from(round)), &[want("a", 10)], ANY_SIZE).await.unwrap();
        if round == 3 {
            files.execute("PRAGMA wal_checkpoint(PASSIVE)").await;
        }
    }
    let (database, log) = (fs::read(&files.database).unwrap(), fs::read(files.beside("-wal")).unwrap());
    let (mut refused, mut mended) = (0, 0);
    let cuts = 24;
    for cut in 0..=cuts {
        let copy = Files::new();
        fs::write(&copy.database, &database).unwrap();
        fs::write(copy.beside("-wal"), &log[..log.len() * cut / cuts]).unwrap();
        copy.mark_unclean();
        match copy.open().await {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(&copy.database.display().to_string()), "{text}");
                refused += 1;
            }
            Ok(store) => {
                end(store).await;
                assert!(copy.is_sound().await, "cut {cut}");
                mended += 1;
            }
        }
    }
    assert!(mended > 0 && refused < cuts, "{mended} mended, {refused} refused");
    end(store).await;
}

#[tokio::test]
async fn a_link_in_the_locks_place_is_refused() {
    let files = Files::new();
    let victim = files.folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, files.beside(".lock")).unwrap();
    let Err(error) = files.open().await else { panic!("it opens") };
    assert!(error.to_string().contains("is a symbolic link: remove it"), "{error}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    fs::remove_file(&victim).unwrap();
    assert!(files.open().await.is_err());
    assert!(!victim.exists(), "nothing is made where the link leads");
    fs::remove_file(files.beside(".lock")).unwrap();
    for suffix in ["-wal", "-shm"] {
        symlink(&victim, files.beside(suffix)).unwrap();
        let Err(error) = files.open().await else { panic!("it opens") };
        assert!(error.to_string().contains("is a symbolic link: remove it"), "{error}");
        fs::remove_file(files.beside(suffix)).unwrap();
    }
    end(files.open().await.unwrap()).await;
}

#[tokio::test]
async fn a_link_to_the_database_has_its_lock() {
    let files = Files::new();
    let store = files.open().await.unwrap();
    let link = files.folder.path().join("link.db");
    symlink(&files.database, &link).unwrap();
    assert!(matches!(open(&link).await, Err(StoreError::Locked { .. })));
    end(store).await;
    end(open(&link).await.unwrap()).await;
    let nowhere = files.folder.path().join("nowhere.db");
    symlink(files.folder.path().join("missing.db"), &nowhere).unwrap();
    let Err(error) = open(&nowhere).await else { panic!("it opens") };
    assert!(error.to_string().contains("is a link that leads nowhere"), "{error}");
}

#[tokio::test]
async fn only_the_owner_has_access() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("made/for/homing.db");
    let store = open(&database).await.unwrap();
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    for made in ["made", "made/for"] {
        assert_eq!(mode(&folder.path().join(made)), 0o700, "{made}");
    }
    for file in ["homing.db", "homing.db-wal", "homing.db-shm", "homing.db.lock"] {
        assert_eq!(mode(&folder.path().join("made/for").join(file)), 0o600, "{file}");
    }
    end(store).await;
}

/// Accepted by a clock that was far ahead, and has gone back since.
#[tokio::test]
async fn what_was_due_is_due_after_the_clock_has_gone_back() {
    let files = Files::new();
    let store = files.open().await.unwrap();
    store.register(NODE, "node").await.unwrap();
    let delayed = |number: u32| {
        let mut message = message(number, FUTURE);
        message.due_at = time(FUTURE + 10);
        message
    };
    let lane = [message(1, FUTURE), delayed(2), message(3, START)];
    // Accepted before the clock went ahead, and due before the last place that was taken.
    let mut early = message(10, START);
    early.due_at = time(FUTURE - 10);
    let queue = [queued(message(4, FUTURE), "q"), queued(message(5, FUTURE), "q"), queued(delayed(6), "q")];
    let queue = queue.into_iter().chain([queued(early, "q")]).collect::<Vec<_>>();
    let key = [under(message(7, FUTURE), "k", 9, 0), under(delayed(8), "k", 9, 0)];
    let batch: Vec<Accept> =
        lane.iter().chain(&queue).chain(&key).map(|message| waiting(message.clone(), "a")).collect();
    accept(&store, &batch).await;
    // As a clock that was ahead leaves the places.
    let ahead = FUTURE * 1000;
    files
        .execute(&format!(
            "UPDATE deliveries SET place = {ahead} + (place - (SELECT MIN(place) FROM deliveries WHERE gate = 'q:q')) \
             WHERE gate = 'q:q' AND due_at = {FUTURE}; \
             UPDATE deliveries SET place = {ahead} WHERE gate = 'f:k' AND due_at = {FUTURE}; \
             UPDATE queue_places SET place = {ahead} + 1"
        ))
        .await;
    let ids = |deliveries: &[homing::store::Delivery]| -> Vec<MessageId> {
        deliveries.iter().map(|delivery| delivery.message.id.clone()).collect()
    };
    let due = async |lease: i64| {
        let mut found = ids(&store.claim(NODE, Lease(lease), &[want("a", 10)], ANY_SIZE).await.unwrap());
        found.sort();
        found
    };
    assert_eq!(due(1).await, [message(3, START).id]);
    assert!(take(&store, NODE, "q:q", 2).await.is_empty());

    store.wake_gates().await.unwrap();
    assert_eq!(due(3).await, [message(1, FUTURE).id]);
    // The queue goes on in its order, and what comes now comes after.
    let later = queued(message(9, START + 9), "q");
    accept(&store, &[waiting(later.clone(), "a")]).await;
    store.upsert_queue("q", Some(9), None, None, time(START)).await.unwrap();
    let taken = ids(&take(&store, NODE, "q:q", 4).await);
    assert_eq!(taken, [message(4, FUTURE).id, message(5, FUTURE).id, later.id]);
    assert_eq!(ids(&take(&store, NODE, "f:k", 5).await), [message(7, FUTURE).id]);
    end(store).await;
}
