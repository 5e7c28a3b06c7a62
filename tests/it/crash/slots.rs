//! The server is killed again and again while slots of schedules come, a queue goes on and a key holds back. Afterwards
//! each slot has had one run, the queue has gone in its order, neither had more out at once than it may, and nothing is
//! lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{AFTER_NO_ANSWER, CLIENT_PAUSE, DRAIN, UNTIL_KILL_MS, UNTIL_READ, check_repeats, choices};
use crate::support::wait::pause;
use crate::support::{Received, Receiver, Reply, Server, Test, within};

engines! { slots_queues_and_keys_outlive_kills }

/// Messages of a client that are worth a look.
const ENOUGH: usize = 20;
const SCHEDULES: usize = 12;
/// Only the slots that the test makes come.
const YEARLY: &str = "0 0 1 1 *";
const HOUR_MS: i64 = 3_600_000;
/// When slots come, counted from the moment before a restart: missed ones, and some during the start and the work.
const SLOT_MS: std::ops::Range<i64> = -1000..1200;
/// How long destinations take, at least: what begins sooner after a request than that is out at the same time.
const ANSWER: Duration = Duration::from_millis(8);
/// What the key lets out at once.
const PARALLELISM: usize = 2;

async fn slots_queues_and_keys_outlive_kills(t: Test) {
    let (mut rng, rounds) = choices(8);
    let server = t.server_with(&[("HOMING_NODE_NAME", "the-only-node")]).await;
    let (slots, queued, keyed) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    for receiver in [&queued, &keyed] {
        receiver.script("/ok", [Reply::ok().after(ANSWER)]);
        receiver.script("/fails", [Reply::status(500).after(ANSWER)]);
    }
    let clock = Clock::new(&server, &slots.url("/")).await;

    let stop = Arc::new(AtomicBool::new(false));
    let queue = [("Upstash-Queue-Name", "q")];
    let key = [("Upstash-Flow-Control-Key", "k"), ("Upstash-Flow-Control-Value", "parallelism=2")];
    let clients = [(&queued, &queue[..]), (&keyed, &key[..])].map(|(receiver, headers)| {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let client = Client {
            server: server.clone(),
            urls: ["/ok", "/fails"].map(|path| receiver.url(path)),
            headers: headers.collect(),
            stop: Arc::clone(&stop),
            rng: StdRng::seed_from_u64(rng.random()),
        };
        tokio::spawn(client.publish())
    });

    let mut kills = Vec::new();
    let mut made: BTreeMap<usize, usize> = BTreeMap::new();
    for _ in 0..rounds {
        pause(Duration::from_millis(rng.random_range(UNTIL_KILL_MS))).await;
        server.kill9();
        kills.push(Instant::now());
        let now = clock.now();
        for number in 0..SCHEDULES {
            // The last slot may not have had its run yet.
            let slot = now + rng.random_range(SLOT_MS);
            let sql = format!(
                "UPDATE schedules SET next_at = {slot} WHERE id = 's{number}' AND next_at > {now} + {HOUR_MS}"
            );
            *made.entry(number).or_default() += usize::try_from(t.execute(sql).await).expect("one row");
        }
        server.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    let [in_queue, under_key] = clients;
    let (in_queue, under_key) = (in_queue.await.expect("a client"), under_key.await.expect("a client"));
    check_slots(&server, &slots, &made).await;
    arrived(&queued, &in_queue).await;
    arrived(&keyed, &under_key).await;
    within(DRAIN, "the queue is empty, and the key holds nothing", async || {
        let (queue, key) =
            (server.get_json("/v2/queues/q").await, server.get_json("/v2/flowControl/k").await);
        (queue["lag"] == 0 && key["waitListSize"] == 0 && key["parallelismCount"] == 0).then_some(())
    })
    .await;
    check_order(&queued.requests());
    check_at_once(&queued.requests(), 1, &kills);
    check_at_once(&keyed.requests(), PARALLELISM, &kills);
    let repeated: usize =
        [&slots, &queued, &keyed].map(|receiver| check_repeats(receiver, &kills)).iter().sum();
    let runs: usize = made.values().sum();
    eprintln!(
        "{} kills, {runs} slots, {} in the queue, {} under the key, {repeated} repeated",
        kills.len(),
        in_queue.len(),
        under_key.len()
    );
}

/// The server's time, as far as it can be told while the server is down.
struct Clock {
    created_at: i64,
    from: Instant,
}

impl Clock {
    /// Makes the schedules, which tell it.
    async fn new(server: &Server, url: &str) -> Self {
        for number in 0..SCHEDULES {
            let id = format!("s{number}");
            let headers = [("Upstash-Cron", YEARLY), ("Upstash-Schedule-Id", id.as_str())];
            let call = server.call("POST", &format!("/v2/schedules/{url}")).headers(&headers);
            call.send().await.json(200);
        }
        let from = Instant::now();
        let last = server.get_json(&format!("/v2/schedules/s{}", SCHEDULES - 1)).await;
        Self { created_at: last["createdAt"].as_i64().expect("a time"), from }
    }

    fn now(&self) -> i64 {
        self.created_at + i64::try_from(self.from.elapsed().as_millis()).expect("a short time")
    }
}

struct Client {
    server: Server,
    /// Where it publishes to, and where some of it fails.
    urls: [String; 2],
    headers: Vec<(String, String)>,
    stop: Arc<AtomicBool>,
    rng: StdRng,
}

impl Client {
    /// Publishes numbers, one after the other, until it is told to stop and has published enough; those that were acknowledged by their ids.
    async fn publish(mut self) -> HashMap<String, u64> {
        let mut acknowledged = HashMap::new();
        for number in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) && acknowledged.len() >= ENOUGH {
                break;
            }
            let url = &self.urls[usize::from(self.rng.random_ratio(1, 5))];
            let mut call = self
                .server
                .call("POST", &format!("/v2/publish/{url}"))
                .header("Upstash-Retries", "1")
                .header("Upstash-Retry-Delay", "20")
                .body(number.to_string());
            for (name, value) in &self.headers {
                call = call.header(name, value);
            }
            match call.try_send().await.ok().filter(|answer| answer.status < 500) {
                Some(answer) => {
                    let id = answer.json(200)["messageId"].as_str().expect("an id").to_owned();
                    assert!(acknowledged.insert(id, number).is_none(), "an id was given twice");
                }
                // It may have been accepted or not.
                None => pause(AFTER_NO_ANSWER).await,
            }
            pause(CLIENT_PAUSE).await;
        }
        acknowledged
    }
}

fn number(request: &Received) -> u64 {
    std::str::from_utf8(&request.body).ok().and_then(|text| text.parse().ok()).expect("a number")
}

/// Waits until each slot has had its run, and looks whether it had one only.
async fn check_slots(server: &Server, receiver: &Receiver, made: &BTreeMap<usize, usize>) {
    let expected: usize = made.values().sum();
    assert!(expected > 2 * SCHEDULES, "slots have come: {made:?}");
    within(DRAIN, "every slot is run and its message delivered", async || {
        let list = server.get_json("/v2/schedules").await;
        let states = list.as_array().expect("an array").iter().map(|one| &one["lastScheduleStates"]);
        let delivered = |states: &serde_json::Value| {
            states.as_object().is_some_and(|states| states.values().all(|state| state == "SUCCESS"))
        };
        (receiver.counts().len() >= expected
            && states.filter(|states| delivered(states)).count() == SCHEDULES)
            .then_some(())
    })
    .await;
    for (number, slots) in made {
        let events = server.list(&format!("/v2/events?scheduleId=s{number}&state=CREATED"), "events").await;
        assert_eq!(events.len(), *slots, "runs of s{number}");
    }
    assert_eq!(receiver.counts().len(), expected, "each run's message arrived");
}

/// Waits until all that was acknowledged has arrived, what fails with its retry, and looks whether it is what was sent.
async fn arrived(receiver: &Receiver, acknowledged: &HashMap<String, u64>) {
    let requests = within(DRAIN, "all that was acknowledged has arrived", async || {
        let requests = receiver.requests();
        let attempts: HashSet<(&str, u32)> =
            requests.iter().map(|request| (request.message_id(), request.retried())).collect();
        let failing: HashSet<&str> =
            requests.iter().filter(|it| it.path() == "/fails").map(Received::message_id).collect();
        let complete =
            |id: &str| attempts.contains(&(id, 0)) && (!failing.contains(id) || attempts.contains(&(id, 1)));
        acknowledged.keys().all(|id| complete(id)).then_some(requests.clone())
    })
    .await;
    for request in requests {
        if let Some(sent) = acknowledged.get(request.message_id()) {
            assert_eq!(number(&request), *sent);
        }
    }
}

/// One client published, so nothing comes after what was published later, its retry and its repeat neither.
fn check_order(requests: &[Received]) {
    let numbers: Vec<u64> = requests.iter().map(number).collect();
    assert!(numbers.is_sorted(), "out of order: {numbers:?}");
}

/// Never more than so many were out at once, but for those that a kill had cut off.
fn check_at_once(requests: &[Received], most: usize, kills: &[Instant]) {
    for (index, request) in requests.iter().enumerate() {
        let is_out = |earlier: &&Received| {
            let cut_off = |kill: &Instant| earlier.at <= *kill + UNTIL_READ && *kill <= request.at;
            request.at.duration_since(earlier.at) < ANSWER && !kills.iter().any(cut_off)
        };
        let beside = requests[..index].iter().filter(is_out).count();
        assert!(beside < most, "{} went while {beside} others were out", request.message_id());
    }
}
