//! What single steps cost: those of the domain and the wire, which are CPU alone, and those of the store.
//!
//! `cargo bench --bench micro` measures, and compares with the last time; `cargo test --bench micro` only runs each once.
//! The steps of the store run on SQLite in a temporary directory, and on Postgres too when `HOMING_TEST_POSTGRES` names a
//! cluster.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]
#![allow(clippy::disallowed_methods, reason = "the bans are about the server; this measures it from outside")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use homing::api::headers::{self, Kind, Limits};
use homing::api::wire;
use homing::chance::Chance;
use homing::clock::Clock;
use homing::domain::callback;
use homing::domain::destination;
use homing::domain::message::{Headers, Message};
use homing::domain::outcome::{Attempt, Context, Finish, Ids as _, Outcome, Response, decide};
use homing::domain::retry_delay::Expression;
use homing::domain::signature::{self, SigningKey, body_sha256};
use homing::domain::template::{Target, Template};
use homing::domain::time::Timestamp;
use homing::engine::ids::FreshIds;
use homing::store::sql::{Database, Options, SqlStore};
use homing::store::{
    Accept, Accepted, Applied, Delivery, Ended, Lease, LogEntry, NodeId, Nodes as _, Repeat, State,
    Store as _, Want, Work as _,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::runtime::Runtime;

/// The server's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

criterion_group!(benches, requests, messages, attempts, stores);
criterion_main!(benches);

const NOW: Timestamp = Timestamp::from_millis(1_760_000_000_000);
const URL: &str = "https://example.com/hooks/orders?source=shop&attempt=1";
const EXPRESSION: &str = "min(pow(2, retried) * 1000, 86400000) + 500";

const LIMITS: Limits = Limits {
    default_retries: 3,
    max_retries: None,
    max_delay: None,
    max_flow_control_key: 512,
    max_flow_control_period: Duration::from_hours(7 * 24),
};

/// What an SDK sends with a publish of JSON.
const TYPICAL: &[(&str, &str)] = &[
    ("host", "queue.example.com"),
    ("accept", "*/*"),
    ("accept-encoding", "gzip, deflate"),
    ("authorization", "Bearer eyJVc2VySUQiOiJhIiwiUGFzc3dvcmQiOiJiIn0="),
    ("content-length", "200"),
    ("content-type", "application/json"),
    ("user-agent", "node"),
    ("upstash-method", "POST"),
    ("upstash-telemetry-sdk", "upstash-qstash-js@2.12.0"),
    ("upstash-telemetry-runtime", "node@v22.0.0"),
];

/// Everything that a publish can say at once.
const EVERY: &[(&str, &str)] = &[
    ("upstash-retries", "5"),
    ("upstash-retry-delay", EXPRESSION),
    ("upstash-delay", "1h30m"),
    ("upstash-timeout", "30s"),
    ("upstash-forward-x-api-key", "secret"),
    ("upstash-forward-x-tenant", "a"),
    ("upstash-deduplication-id", "order-1234"),
    ("upstash-label", "orders, shop"),
    ("upstash-redact-fields", "body, header[X-Api-Key]"),
    ("upstash-flow-control-key", "shop"),
    ("upstash-flow-control-value", "parallelism=3, rate=5, period=1m"),
    ("upstash-callback", "https://example.com/callback"),
    ("upstash-callback-method", "PUT"),
    ("upstash-callback-retries", "2"),
    ("upstash-callback-delay", "5s"),
    ("upstash-callback-timeout", "10s"),
    ("upstash-callback-forward-x-api-key", "secret"),
    ("upstash-failure-callback", "https://example.com/failure"),
    ("upstash-failure-callback-forward-x-api-key", "secret"),
];

fn parse_headers(fields: &[&[(&str, &str)]]) -> headers::Publish {
    let fields = fields.iter().copied().flatten().map(|(name, value)| (*name, value.as_bytes()));
    headers::parse(Kind::Publish, fields, &[], &LIMITS, NOW).unwrap()
}

fn body() -> Bytes {
    Bytes::from(format!(r#"{{"order":1234,"text":"{}"}}"#, "x".repeat(175)))
}

/// The message of a publish with those headers.
fn message(fields: &[&[(&str, &str)]], now: Timestamp) -> Message {
    let publish = parse_headers(fields);
    let mut template = Template::new(
        publish.method,
        publish.headers,
        body(),
        publish.retries,
        publish.labels,
        publish.options,
    );
    template.caller_ip = Some("192.0.2.1".to_owned());
    template.message(ids().message(now), Target::url(URL.to_owned()), now, now)
}

fn ids() -> FreshIds {
    FreshIds(Chance::system())
}

/// An attempt that the destination answered.
fn attempt(status: u16, now: Timestamp) -> Attempt {
    let mut headers = Headers::new();
    headers.append("Content-Type", "application/json");
    headers.append("Date", "Thu, 09 Oct 2025 08:53:20 GMT");
    let body = Bytes::from_static(br#"{"ok":true}"#);
    let outcome = Outcome::Response(Response { status, headers, body });
    Attempt { retried: 0, started_at: now, ended_at: now.after(Duration::from_millis(20)), outcome }
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    group.bench_function("headers, typical", |b| b.iter(|| parse_headers(black_box(&[TYPICAL]))));
    group.bench_function("headers, every option", |b| b.iter(|| parse_headers(black_box(&[TYPICAL, EVERY]))));
    group.bench_function("destination", |b| b.iter(|| destination::parse(black_box(URL)).unwrap()));
    let with_options = format!("{URL}&upstash-retries=3&upstash-delay=10s");
    group.bench_function("destination with options", |b| {
        b.iter(|| destination::parse(black_box(&with_options)).unwrap());
    });
    group.bench_function("id", |b| b.iter(|| ids().message(black_box(NOW))));
    for bytes in [200, 10_000, 1_000_000] {
        let body = vec![b'x'; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::new("hash of a body", bytes), &body, |b, body| {
            b.iter(|| body_sha256(black_box(body)));
        });
    }
}

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("json");
    for (name, fields) in [("typical", &[TYPICAL][..]), ("every option", &[TYPICAL, EVERY])] {
        let message = Arc::new(message(fields, NOW));
        group.bench_with_input(BenchmarkId::new("message", name), &message, |b, message| {
            b.iter(|| serde_json::to_vec(&wire::message(black_box(message))).unwrap());
        });
        let Outcome::Response(response) = attempt(200, NOW).outcome else { unreachable!("it is one") };
        let entry = LogEntry {
            time: NOW,
            message,
            state: State::Delivered,
            sequence: 2,
            next_due_at: None,
            error: None,
            response: Some(response),
        };
        group.bench_with_input(BenchmarkId::new("log entry", name), &entry, |b, entry| {
            b.iter(|| serde_json::to_vec(&wire::log_entry(black_box(entry), None)).unwrap());
        });
    }
}

fn attempts(c: &mut Criterion) {
    let mut group = c.benchmark_group("attempt");
    let plain = message(&[TYPICAL], NOW);
    let full = message(&[TYPICAL, EVERY], NOW);
    let key = SigningKey::new("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r");
    group.bench_function("signature", |b| {
        b.iter(|| {
            let jti = signature::generate_jti(rand::random());
            signature::sign(&key, black_box(&plain.url), &plain.body_sha256, NOW.as_secs(), &jti)
        });
    });
    group.bench_function("retry delay", |b| {
        b.iter(|| Expression::parse(black_box(EXPRESSION)).unwrap().delay(black_box(3)));
    });
    let spec = full.options.callback.as_deref().unwrap();
    let answered = attempt(200, NOW);
    group.bench_function("callback's message", |b| {
        b.iter(|| {
            let id = ids().message(NOW);
            callback::make(black_box(&full), &answered, spec, None, id, NOW, 1 << 20)
        });
    });
    for (name, message, status) in
        [("delivered", &plain, 200), ("retried", &plain, 503), ("delivered, with a callback", &full, 200)]
    {
        group.bench_function(BenchmarkId::new("decision", name), |b| {
            b.iter_batched(|| attempt(status, NOW), |attempt| end(message, attempt), BatchSize::SmallInput);
        });
    }
}

fn end(message: &Message, attempt: Attempt) -> Finish {
    let mut context = Context { cancel_requested: false, max_body: 1 << 20, ids: &mut ids(), run: None };
    decide(message, attempt, &mut context)
}

fn stores(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    store(c, &runtime, "sqlite", Database::Sqlite(folder.path().join("homing.db")));
    let Ok(cluster) = std::env::var("HOMING_TEST_POSTGRES") else { return };
    let name = format!("homing_bench_{}", std::process::id());
    let run = |sql: String| {
        runtime.block_on(async {
            let mut connection = PgConnection::connect(&cluster).await.unwrap();
            sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    };
    run(format!("CREATE DATABASE {name}"));
    store(c, &runtime, "postgres", Database::Postgres(format!("{}/{name}", cluster.trim_end_matches('/'))));
    run(format!("DROP DATABASE {name} WITH (FORCE)"));
}

const NODE: NodeId = NodeId(1);
const LEASE: Lease = Lease(1);

/// A step of the store in batches of some sizes; `run` tells the time of the step without what it needs around it.
fn step(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    name: &str,
    run: impl AsyncFn(usize) -> Duration,
) {
    for size in [1, 64, 256] {
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.to_async(runtime).iter_custom(async |times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    total += run(size).await;
                }
                total
            });
        });
    }
}

/// The hot steps with batches of some sizes, each over and over with messages of its own. What one leaves behind in the
/// hot table the next ones take away, untimed.
fn store(c: &mut Criterion, runtime: &Runtime, engine: &str, database: Database) {
    let store = runtime.block_on(async {
        let options = Options { database, connections: 4, hot_connections: 4, max_queues: None };
        let store = SqlStore::connect(&options, Clock::system()).await.unwrap();
        store.migrate().await.unwrap();
        store.register(NODE, "bench").await.unwrap();
        store
    });
    let mut group = c.benchmark_group(engine);
    group.sample_size(20);
    step(&mut group, runtime, "accept", async |size| {
        let batch = accepts(size, Some(LEASE));
        let start = Instant::now();
        accept(&store, &batch).await;
        let took = start.elapsed();
        finish(&store, &delivered(&batch)).await;
        took
    });
    step(&mut group, runtime, "finish", async |size| {
        let batch = accepts(size, Some(LEASE));
        accept(&store, &batch).await;
        let ends = delivered(&batch);
        let start = Instant::now();
        finish(&store, &ends).await;
        start.elapsed()
    });
    step(&mut group, runtime, "claim", async |size| {
        let batch = accepts(size, None);
        accept(&store, &batch).await;
        let wants = [Want { lane: Arc::clone(&batch[0].lane), count: size }];
        let start = Instant::now();
        let claimed = claim(&store, &wants).await;
        let took = start.elapsed();
        assert_eq!(claimed.len(), size);
        finish(&store, &delivered(&batch)).await;
        took
    });
    group.finish();
    runtime.block_on(store.close());
}

fn accepts(size: usize, lease: Option<Lease>) -> Vec<Accept> {
    let lane: Arc<str> = Arc::from("https://example.com:443");
    // Due a little ago, whatever the database's clock says.
    let now = Timestamp::from_millis(Clock::system().now().as_millis() - 1000);
    let accept = || Accept {
        message: Arc::new(message(&[TYPICAL], now)),
        lane: Arc::clone(&lane),
        lease,
        deduplication: None,
        on_run: None,
        request: 0,
    };
    std::iter::repeat_with(accept).take(size).collect()
}

fn delivered(batch: &[Accept]) -> Vec<Ended> {
    let ended = |accept: &Accept| Ended {
        slot: None,
        pass_on: None,
        id: accept.message.id.clone(),
        lease: LEASE,
        finish: Arc::new(end(&accept.message, attempt(200, Clock::system().now()))),
        callbacks: Vec::new(),
    };
    batch.iter().map(ended).collect()
}

async fn accept(store: &SqlStore, batch: &[Accept]) {
    let accepted = store.accept(NODE, batch, Repeat::First).await.unwrap();
    assert!(accepted.iter().all(|accepted| *accepted == Accepted::Stored));
}

async fn claim(store: &SqlStore, wants: &[Want]) -> Vec<Delivery> {
    store.claim(NODE, LEASE, wants, usize::MAX >> 1).await.unwrap()
}

async fn finish(store: &SqlStore, batch: &[Ended]) {
    let applied = store.finish(NODE, batch).await.unwrap();
    assert!(applied.iter().all(|applied| *applied == Applied::Yes));
}
