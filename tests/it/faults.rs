//! What a server does whose log or whose database can't be written.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use crate::support::http::Call;
use crate::support::{Engine, Receiver, Server, TOKEN, Test, eventually, within};

engines! {
    a_log_that_nobody_reads_holds_nothing_up,
    a_log_that_cannot_be_written_stops_nothing,
    a_start_that_nobody_reads_of_is_a_start,
}

/// Bytes that a pipe holds.
const PIPE: usize = 64 << 10;
/// From the first write that failed to the answer that says so, and from the end of the fault: with room for a busy
/// machine.
const RED: Duration = Duration::from_secs(3);
const GREEN: Duration = Duration::from_secs(5);
const LEEWAY: Duration = Duration::from_secs(2);

/// A pipe that takes nothing more; what reads it.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all("\n".repeat(PIPE).as_bytes()).unwrap();
    (reader, writer)
}

async fn goes_on(t: &Test, stderr: impl Into<Stdio>) {
    let receiver = Receiver::start().await;
    let server = t.unstarted_server(&[("RUST_LOG", "trace")]);
    server.start_with_stderr(stderr).await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(server.publish(&receiver.url("/"), &[], "x").await);
    }
    for id in &ids {
        assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
    }
    assert_eq!(server.get("/readyz").await.status, 200);
    let status = server.terminate().await;
    assert_eq!(status.code(), Some(0), "{status}");
}

async fn a_log_that_nobody_reads_holds_nothing_up(t: Test) {
    let (_reader, writer) = full_pipe();
    goes_on(&t, writer).await;
}

async fn a_log_that_cannot_be_written_stops_nothing(t: Test) {
    goes_on(&t, File::options().write(true).open("/dev/full").unwrap()).await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    goes_on(&t, writer).await;
}

async fn a_start_that_nobody_reads_of_is_a_start(t: Test) {
    let (_reader, full) = full_pipe();
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    for stdout in [Stdio::from(full), Stdio::from(gone)] {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = t.unstarted_server(&[("HOMING_LISTEN", &address.to_string())]);
        server.spawn_with(stdout, Stdio::piped());
        eventually("it is ready", async || {
            let answer = Call::new(address, "GET", "/readyz").try_send().await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        server.ask_to_stop();
        let status = server.exited(Duration::from_secs(30)).await;
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

/// Publishes until that fails, and looks whether the node says that it is not ready, and why.
async fn turns_red(server: &Server, reason: &str) {
    let began = Instant::now();
    let publish = async || {
        let call = Call::new(server.address(), "POST", "/v2/publish/http://127.0.0.1:1/");
        let call = call.header("Authorization", format!("Bearer {TOKEN}")).header("Upstash-Delay", "1h");
        let answer = call.body("x").send().await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.header("retry-after"), Some("1"));
    };
    let look = within(RED + LEEWAY, "the node is not ready", async || {
        let answer = server.get("/readyz").await;
        (answer.status == 503).then(|| (began.elapsed(), answer.text()))
    });
    let ((), (after, first)) = tokio::join!(publish(), look);
    eprintln!("red after {after:?}: {first}");
    let text = server.get("/readyz").await;
    assert_eq!(text.status, 503, "it stays so");
    assert!(text.text().contains(reason), "{}", text.text());
}

async fn turns_green(server: &Server) {
    let began = Instant::now();
    within(GREEN + LEEWAY, "the node is ready", async || {
        (server.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    eprintln!("green after {:?}", began.elapsed());
    server.publish("http://127.0.0.1:1/", &[("Upstash-Delay", "1h")], "x").await;
    assert_eq!(server.get("/readyz").await.status, 200, "it stays so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_sqlite_file_is_not_ready() {
    Test::run(Engine::Sqlite, async |t| {
        t.allow_errors("messages could not be stored");
        let server = t.server().await;
        let mut other = SqliteConnection::connect(&t.database_url()).await.unwrap();
        for _ in 0..2 {
            sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
            turns_red(&server, "the database can't be written to: ").await;
            sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
            turns_green(&server).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_is_not_ready() {
    Test::run(Engine::Sqlite, async |t| {
        t.allow_errors("messages could not be stored");
        let server = t.server().await;
        server.limit_files(Some(1));
        turns_red(&server, "its disk fails").await;
        server.limit_files(None);
        turns_green(&server).await;
    })
    .await;
}

/// What makes a Postgres database take no messages, what ends that, and what the node says.
const FAULTS: [(&str, &str, &str); 3] = [
    (
        "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN \
             RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$ LANGUAGE plpgsql; \
         CREATE TRIGGER refuse BEFORE INSERT ON messages EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON messages",
        "its disk is full",
    ),
    (
        "ALTER TABLE messages RENAME TO hidden",
        "ALTER TABLE hidden RENAME TO messages",
        "its tables can't be used",
    ),
    (
        "DO $$ BEGIN \
             EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); \
             PERFORM pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid(); END $$",
        "BEGIN READ WRITE; DO $$ BEGIN \
             EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); \
             PERFORM pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid(); END $$; COMMIT",
        "it takes no writes",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_stores_nothing_is_not_ready() {
    Test::run(Engine::Postgres, async |t| {
        t.allow_errors("");
        let server = t.server().await;
        for (fault, end, reason) in FAULTS {
            t.execute(fault).await;
            turns_red_whatever_the_answer(&server, reason).await;
            t.execute(end).await;
            turns_green(&server).await;
        }
    })
    .await;
}

/// A statement that the database refuses is answered by 500.
async fn turns_red_whatever_the_answer(server: &Server, reason: &str) {
    let began = Instant::now();
    within(RED + LEEWAY, "the node is not ready", async || {
        let call = server.call("POST", "/v2/publish/http://127.0.0.1:1/").header("Upstash-Delay", "1h");
        let answer = call.body("x").send().await;
        assert!(answer.status >= 500, "{}", answer.text());
        let answer = server.get("/readyz").await;
        (answer.status == 503 && answer.text().contains(reason)).then_some(())
    })
    .await;
    eprintln!("{reason}: red after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_postgres_table_is_not_ready() {
    Test::run(Engine::Postgres, async |t| {
        t.allow_errors("");
        let server = t.server().await;
        let mut other = PgConnection::connect(&t.database_url()).await.unwrap();
        let lock = "BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE";
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut other).await.unwrap();
        turns_red(&server, "the database can't be written to: ").await;
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
        turns_green(&server).await;
    })
    .await;
}
