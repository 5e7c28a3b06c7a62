//! The server is killed again and again while clients publish. Afterwards every message it acknowledged must be
//! accounted for, by its id, at the receiver or in the DLQ, with its callbacks.
//!
//! `HOMING_TEST_KILLS` and `HOMING_TEST_SEED` make it longer or repeat a run.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::support::http::Answer;
use crate::support::wait::pause;
use crate::support::{Received, Receiver, Reply, Server, Test, base64_text, within};

mod slots;

engines! { nothing_acknowledged_is_lost }

const CLIENTS: u64 = 4;
/// The longest that a client pauses between two publishes. Some hundred messages a second keep the server busy without
/// making the accounting the longest part of the test.
const CLIENT_PAUSE: Duration = Duration::from_millis(6);
/// Clients that get no answer wait a little, as the SDKs do.
const AFTER_NO_ANSWER: Duration = Duration::from_millis(50);
/// How long after the restart the next kill comes: during recovery, in the middle of work, or later.
const UNTIL_KILL_MS: std::ops::Range<u64> = 50..700;
/// How long an outcome may take from the receiver's answer to the commit. A kill in between repeats the attempt, so a
/// request that was answered that shortly before a kill counts as in flight. The bound is wide, for a busy machine:
/// what matters is that no attempt is repeated without a kill.
const UNTIL_RECORDED: Duration = Duration::from_secs(2);
/// What lies in a socket's buffers when the sender dies is read a moment later.
const UNTIL_READ: Duration = Duration::from_millis(200);
const DRAIN: Duration = Duration::from_secs(40);

/// What a client published under one id.
struct Published {
    body: Vec<u8>,
    fails: bool,
}

/// What the clients did.
#[derive(Default)]
struct Ledger {
    acknowledged: HashMap<String, Published>,
    /// Bodies whose publish got no answer: each may have been accepted or not.
    unknown: HashSet<Vec<u8>>,
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name} = {text}: {e}")))
}

/// What the run's choices come from, and how many kills there are unless a setting says.
fn choices(kills: u64) -> (StdRng, u64) {
    let seed = setting("HOMING_TEST_SEED").unwrap_or_else(rand::random);
    eprintln!("HOMING_TEST_SEED={seed} repeats this run's choices");
    (StdRng::seed_from_u64(seed), setting("HOMING_TEST_KILLS").unwrap_or(kills))
}

async fn nothing_acknowledged_is_lost(t: Test) {
    let (mut rng, rounds) = choices(12);
    let server = t.server_with(&[("HOMING_NODE_NAME", "the-only-node")]).await;
    let receiver = Arc::new(Receiver::start().await);
    receiver.script("/ok", [Reply::ok().body("fine").after(Duration::from_millis(3))]);
    receiver.script("/fails", [Reply::status(500).body("no").after(Duration::from_millis(3))]);

    let ledger = Arc::<Mutex<Ledger>>::default();
    let stop = Arc::new(AtomicBool::new(false));
    let sequence = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let client = Client {
                server: server.clone(),
                receiver: Arc::clone(&receiver),
                ledger: Arc::clone(&ledger),
                stop: Arc::clone(&stop),
                sequence: Arc::clone(&sequence),
                rng: StdRng::seed_from_u64(rng.random()),
            };
            tokio::spawn(client.publish())
        })
        .collect();

    let mut kills = Vec::new();
    for _ in 0..rounds {
        pause(Duration::from_millis(rng.random_range(UNTIL_KILL_MS))).await;
        server.kill9();
        kills.push(Instant::now());
        server.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client");
    }
    let ledger = std::mem::take(&mut *ledger.lock().unwrap());
    assert!(
        ledger.acknowledged.len() > 100,
        "the clients published {} messages only",
        ledger.acknowledged.len()
    );
    account(&server, &receiver, &ledger, &kills).await;
}

struct Client {
    server: Server,
    receiver: Arc<Receiver>,
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    sequence: Arc<AtomicU64>,
    rng: StdRng,
}

impl Client {
    async fn publish(mut self) {
        let (callback, failure) = (self.receiver.url("/callback"), self.receiver.url("/failure"));
        while !self.stop.load(Ordering::Relaxed) {
            let fails = self.rng.random_ratio(1, 5);
            let mut body = self.sequence.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec();
            let size = self.rng.random_range(0..2000);
            body.extend((0..size).map(|_| self.rng.random::<u8>()));
            let url = self.receiver.url(if fails { "/fails" } else { "/ok" });
            let call = self
                .server
                .call("POST", &format!("/v2/publish/{url}"))
                .header("Upstash-Callback", &callback)
                .header("Upstash-Failure-Callback", &failure)
                .header("Upstash-Retries", if fails { "1" } else { "3" })
                .header("Upstash-Retry-Delay", "100")
                .body(&body);
            let answer = call.try_send().await.ok();
            if answer.is_none() {
                // Most likely the server is down.
                pause(AFTER_NO_ANSWER).await;
            }
            self.note(answer, body, fails);
            let longest = u64::try_from(CLIENT_PAUSE.as_millis()).expect("a short pause");
            pause(Duration::from_millis(self.rng.random_range(0..=longest))).await;
        }
    }
}

impl Client {
    /// Enters what came of a publish; no answer is `None`.
    fn note(&self, answer: Option<Answer>, body: Vec<u8>, fails: bool) {
        let mut ledger = self.ledger.lock().unwrap();
        match answer {
            Some(answer) if answer.status == 200 => {
                let id = answer.json(200)["messageId"].as_str().expect("an id").to_owned();
                let old = ledger.acknowledged.insert(id.clone(), Published { body, fails });
                assert!(old.is_none(), "{id} was given twice");
            }
            // A server may fail a publish while it starts or stops, but these are all good requests.
            Some(answer) => {
                assert!(answer.status >= 500, "{}: {}", answer.status, answer.text());
                ledger.unknown.insert(body);
            }
            None => {
                ledger.unknown.insert(body);
            }
        }
    }
}

/// What came of the messages, by the receiver's records and the DLQ.
struct Outcome {
    deliveries: HashMap<String, Vec<Received>>,
    /// The ids of callback messages by source and attempt.
    callbacks: HashMap<(String, u64), HashSet<String>>,
    /// The ids of failure callback messages by source.
    failures: HashMap<String, HashSet<String>>,
    dead: HashSet<String>,
}

impl Outcome {
    fn of(receiver: &Receiver, dead: HashSet<String>) -> Self {
        let mut outcome =
            Self { deliveries: HashMap::new(), callbacks: HashMap::new(), failures: HashMap::new(), dead };
        for request in receiver.requests() {
            let id = request.message_id().to_owned();
            match request.path() {
                "/callback" => {
                    let (source, retried) = source_of(&request.json());
                    outcome.callbacks.entry((source, retried)).or_default().insert(id);
                }
                "/failure" => {
                    let (source, _) = source_of(&request.json());
                    outcome.failures.entry(source).or_default().insert(id);
                }
                _ => outcome.deliveries.entry(id).or_default().push(request),
            }
        }
        outcome
    }

    /// What is still missing of a message, if anything.
    fn missing(&self, id: &str, fails: bool) -> Option<&'static str> {
        let called_back = |retried| self.callbacks.contains_key(&(id.to_owned(), retried));
        if !self.deliveries.contains_key(id) {
            Some("its delivery")
        } else if !called_back(0) || (fails && !called_back(1)) {
            Some("a callback")
        } else if fails && !self.failures.contains_key(id) {
            Some("its failure callback")
        } else if fails && !self.dead.contains(id) {
            Some("its dead letter")
        } else {
            None
        }
    }
}

fn source_of(callback: &Value) -> (String, u64) {
    let source = callback["sourceMessageId"].as_str().expect("a source");
    (source.to_owned(), callback["retried"].as_u64().expect("retried"))
}

async fn account(server: &Server, receiver: &Receiver, ledger: &Ledger, kills: &[Instant]) {
    let mut last = String::new();
    let outcome = within(DRAIN, "every acknowledged message is accounted for", async || {
        let dead = server.list("/v2/dlq", "messages").await;
        let dead =
            dead.iter().map(|letter| letter["messageId"].as_str().expect("an id").to_owned()).collect();
        let outcome = Outcome::of(receiver, dead);
        let missing: Vec<_> = ledger
            .acknowledged
            .iter()
            .filter_map(|(id, published)| {
                outcome.missing(id, published.fails).map(|what| format!("{id}: {what}"))
            })
            .collect();
        let sample = missing.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let report = format!("{} of {} miss something: {sample}", missing.len(), ledger.acknowledged.len());
        if report != last {
            eprintln!("{report}");
            last = report;
        }
        missing.is_empty().then_some(outcome)
    })
    .await;

    check_bodies(ledger, &outcome, receiver);
    for (id, published) in &ledger.acknowledged {
        assert!(published.fails || !outcome.dead.contains(id), "{id} was delivered and is in the DLQ");
        assert!(
            published.fails || !outcome.failures.contains_key(id),
            "{id} was delivered and has a failure callback"
        );
    }
    for (source, messages) in &outcome.callbacks {
        assert_eq!(messages.len(), 1, "one outcome, one callback message: {source:?} has {messages:?}");
    }
    for (source, messages) in &outcome.failures {
        assert_eq!(messages.len(), 1, "one failure, one failure callback message: {source} has {messages:?}");
    }
    let repeated = check_repeats(receiver, kills);
    eprintln!(
        "{} kills, {} acknowledged, {} unknown, {} requests, {repeated} repeated, {} open at most",
        kills.len(),
        ledger.acknowledged.len(),
        ledger.unknown.len(),
        receiver.requests().len(),
        receiver.most_open(),
    );
}

/// Nothing altered, nothing from nowhere.
fn check_bodies(ledger: &Ledger, outcome: &Outcome, receiver: &Receiver) {
    for (id, requests) in &outcome.deliveries {
        for request in requests {
            if let Some(published) = ledger.acknowledged.get(id) {
                assert!(request.body == published.body, "{id}: the body has changed");
                assert_eq!(request.path(), if published.fails { "/fails" } else { "/ok" }, "{id}");
            } else {
                let body: &[u8] = &request.body;
                assert!(ledger.unknown.contains(body), "{id} comes from nowhere");
            }
        }
    }
    for request in receiver.requests_on("/callback") {
        let callback = request.json();
        let (source, _) = source_of(&callback);
        if let Some(published) = ledger.acknowledged.get(&source) {
            assert!(
                base64_text(&callback["sourceBody"]) == published.body,
                "{source}: its callback has another body"
            );
            assert_eq!(callback["status"], if published.fails { 500 } else { 200 }, "{source}");
        }
    }
}

/// Each repeated attempt must have been in flight at a kill: it had arrived, and its outcome was not recorded yet, which
/// is so for [`UNTIL_RECORDED`] at most. Returns how many there were.
fn check_repeats(receiver: &Receiver, kills: &[Instant]) -> usize {
    let mut attempts: HashMap<(String, u32), Vec<(Instant, Bytes)>> = HashMap::new();
    for request in receiver.requests() {
        let attempt = (request.message_id().to_owned(), request.retried());
        attempts.entry(attempt).or_default().push((request.at, request.body));
    }
    let mut repeated = 0;
    for (attempt, times) in &attempts {
        for pair in times.windows(2) {
            let ((first, body), (second, again)) = (&pair[0], &pair[1]);
            repeated += 1;
            assert!(body == again, "{attempt:?}: the repeated request has another body");
            let cut_off = |kill: &Instant| {
                *first <= *kill + UNTIL_READ
                    && kill <= second
                    && kill.duration_since(*first) <= UNTIL_RECORDED
            };
            assert!(
                kills.iter().any(cut_off),
                "{attempt:?} was repeated after {:?}, though no kill cut it off",
                *second - *first
            );
        }
    }
    repeated
}
