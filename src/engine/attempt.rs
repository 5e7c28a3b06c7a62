//! One request: checked, signed, sent; what it came to goes to the finisher.
//!
//! Invariant: nothing of the database is held while the request is out, and whatever happens here, a panic included, ends
//! as an outcome.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Uri, uri};
use tokio::sync::OwnedSemaphorePermit;

use super::{Shared, finisher, gates};
use crate::clock::pause;
use crate::domain::destination::{RequestTarget, request_target};
use crate::domain::message::{Message, Method};
use crate::domain::outcome::{Attempt, FailureClass, Outcome};
use crate::domain::signature;
use crate::egress::client::{Outgoing, SendError};
use crate::store::Delivery;

/// Leases taken for one attempt from which on its starts are counted.
const SUSPECT_CLAIMS: u32 = 5;
/// Starts of one attempt, so counted, before the message is given up: it may be what ends its nodes.
const MAX_STARTS: u32 = 15;
/// How long an attempt waits that can't be made for want of descriptors or the like.
const LACK_PAUSE: Duration = Duration::from_secs(1);
/// How often it waits before its delivery is given back, to whoever has what it takes.
const LACK_PATIENCE: u32 = 10;
/// How often the log says so.
const LACK_SAID_EVERY: Duration = Duration::from_mins(1);
/// The client that destinations see, unless the message says otherwise.
const AGENT: HeaderValue = HeaderValue::from_static("Upstash-QStash");

const MESSAGE_ID: HeaderName = HeaderName::from_static("upstash-message-id");
const RETRIED: HeaderName = HeaderName::from_static("upstash-retried");
const SIGNATURE: HeaderName = HeaderName::from_static("upstash-signature");
const SCHEDULE_ID: HeaderName = HeaderName::from_static("upstash-schedule-id");
const TOPIC_NAME: HeaderName = HeaderName::from_static("upstash-topic-name");
const ENDPOINT_NAME: HeaderName = HeaderName::from_static("upstash-endpoint-name");
const CALLER_IP: HeaderName = HeaderName::from_static("upstash-caller-ip");

/// Starts the attempts of deliveries that the dispatcher let go.
pub(super) fn start(shared: &Arc<Shared>, deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        super::spawn(shared, &shared.attempts, "an attempt", run(Arc::clone(shared), delivery));
    }
}

/// What became of a delivery whose turn it was.
enum Tried {
    /// An attempt, and the share of memory that its response holds.
    Made(Attempt, Option<OwnedSemaphorePermit>),
    /// Nothing: the lease can't be trusted.
    Untrusted,
    /// Nothing: it has to be given back.
    GivenBack,
}

async fn run(shared: Arc<Shared>, delivery: Delivery) {
    let lane = Arc::clone(&delivery.lane);
    let mut answered = false;
    let tried =
        if is_late(&shared, &delivery) { Tried::GivenBack } else { attempt(&shared, &delivery).await };
    match tried {
        // The slot is kept until the outcome is handed over, so that outcomes don't pile up while the store is away.
        Tried::Made(attempt, memory) => {
            answered = matches!(attempt.outcome, Outcome::Response(_));
            finisher::submit(&shared, delivery, attempt, memory).await;
        }
        Tried::GivenBack => give_back(&shared, &delivery).await,
        Tried::Untrusted => {
            // The delivery is left to whoever finds it free.
            shared.dispatcher.forget(&delivery);
            shared.doubt_leases();
        }
    }
    start(&shared, shared.dispatcher.attempt_ended(&lane, answered));
}

/// Whether a delivery can't start any more within the time in which its rate has counted it.
fn is_late(shared: &Shared, delivery: &Delivery) -> bool {
    delivery.start_by.is_some_and(|start_by| shared.clock.since_boot() > start_by)
}

/// Gives a delivery back unattempted.
async fn give_back(shared: &Arc<Shared>, delivery: &Delivery) {
    let held = super::held(std::slice::from_ref(delivery));
    let released = shared.store.release(shared.node(), &held).await;
    shared.dispatcher.forget(delivery);
    match released {
        Ok(_) => shared.gates.look_at(gates::opened_by(delivery)),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a delivery could not be given back");
            shared.doubt_leases();
        }
    }
}

async fn attempt(shared: &Shared, delivery: &Delivery) -> Tried {
    if !shared.holds(delivery.lease) {
        return Tried::Untrusted;
    }
    if delivery.claims > SUSPECT_CLAIMS {
        return suspect(shared, delivery).await;
    }
    make(shared, delivery, LACK_PATIENCE).await
}

/// The attempt of a message whose leases ended without an outcome again and again. It may be what ends its nodes, or it
/// only waited in memory whenever they ended: what begins is counted in the store before it begins.
async fn suspect(shared: &Shared, delivery: &Delivery) -> Tried {
    let id = &delivery.message.id;
    match shared.store.count_start(shared.node(), id, delivery.lease).await {
        Ok(Some(starts)) if starts > MAX_STARTS => {
            let now = shared.clock.now().max(delivery.message.due_at);
            let error = format!("given up: the server itself ended in each of {MAX_STARTS} attempts");
            let outcome = Outcome::Unsendable { class: FailureClass::Message, error };
            let attempt = Attempt { retried: delivery.retried, started_at: now, ended_at: now, outcome };
            Tried::Made(attempt, None)
        }
        // It is not given back where it only has to wait: the next start would count again.
        Ok(Some(_)) => make(shared, delivery, u32::MAX).await,
        Ok(None) => Tried::Untrusted,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                message.id = %id,
                "an attempt could not be counted, and is not made now"
            );
            Tried::Untrusted
        }
    }
}

/// Makes the attempt, as soon as this machine has what it takes; it waits for that `patience` times.
async fn make(shared: &Shared, delivery: &Delivery, patience: u32) -> Tried {
    let message = &*delivery.message;
    let mut waits = 0;
    loop {
        let started_at = shared.clock.now().max(message.due_at);
        let made = AssertUnwindSafe(send(shared, delivery)).catch_unwind().await;
        let made = made.unwrap_or_else(|_| {
            tracing::error!(message.id = %message.id, "an attempt's task failed");
            let error = "the server failed while it made the attempt".to_owned();
            Ok((Outcome::NoResponse { class: FailureClass::Internal, error }, None))
        });
        match made {
            Ok((outcome, memory)) => {
                let ended_at = shared.clock.now().max(started_at);
                return Tried::Made(
                    Attempt { retried: delivery.retried, started_at, ended_at, outcome },
                    memory,
                );
            }
            Err(Lacking(error)) => shared.lack.say(shared.boot_ms(), &error),
        }
        waits += 1;
        let stays = tokio::select! {
            biased;
            () = shared.draining.cancelled() => false,
            () = pause(LACK_PAUSE) => waits < patience,
        };
        if !shared.holds(delivery.lease) {
            return Tried::Untrusted;
        }
        if !stays || is_late(shared, delivery) {
            return Tried::GivenBack;
        }
    }
}

/// An attempt could not be made for want of something on this machine; the system's text.
struct Lacking(String);

/// Says in the log that attempts wait for something that this machine lacks, seldom enough not to add to its troubles.
#[derive(Default)]
pub(super) struct Lack {
    /// When it was last said, in milliseconds since boot.
    said_ms: AtomicU64,
}

impl Lack {
    /// `now` is in milliseconds since boot.
    fn say(&self, now: u64, error: &str) {
        let every = super::millis(LACK_SAID_EVERY);
        let due = |said: u64| (said == 0 || now.saturating_sub(said) >= every).then_some(now);
        if self.said_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok() {
            tracing::warn!(
                error,
                "deliveries wait and are not counted as attempts: this machine is short of descriptors, ports or memory \
                 for connections"
            );
        }
    }
}

async fn send(
    shared: &Shared,
    delivery: &Delivery,
) -> Result<(Outcome, Option<OwnedSemaphorePermit>), Lacking> {
    let message = &*delivery.message;
    let unsendable = |error: String| Ok((Outcome::Unsendable { class: FailureClass::Message, error }, None));
    let no_response = |class: FailureClass, error: String| Ok((Outcome::NoResponse { class, error }, None));
    if signature::body_sha256(&message.body) != message.body_sha256 {
        return unsendable("the stored body does not match its hash".to_owned());
    }
    let outgoing = match outgoing(shared, delivery) {
        Ok(outgoing) => outgoing,
        Err(error) => return unsendable(error),
    };
    let limit = timeout(message, shared.settings.max_timeout);
    match tokio::time::timeout(limit, shared.destinations.send(outgoing)).await {
        Ok(Ok(received)) => {
            if received.perhaps_cut {
                tracing::info!(
                    message.id = %message.id,
                    status = received.response.status,
                    "the connection broke off during a response's body, which is perhaps cut off; its status counts"
                );
            }
            Ok((Outcome::Response(received.response), received.memory))
        }
        Ok(Err(SendError::Failed(failure))) => no_response(failure.class, failure.error),
        Ok(Err(SendError::Lacking(error))) => Err(Lacking(error)),
        Err(_) => no_response(FailureClass::Timeout, format!("no complete response within {limit:?}")),
    }
}

/// The limit for one attempt: a message shortens the server's, a zero means that it doesn't.
fn timeout(message: &Message, max: Duration) -> Duration {
    message.options.timeout.filter(|timeout| !timeout.is_zero()).map_or(max, |timeout| timeout.min(max))
}

fn outgoing(shared: &Shared, delivery: &Delivery) -> Result<Outgoing, String> {
    let message = &*delivery.message;
    let target = request_target(&message.url).map_err(|error| error.to_string())?;
    let headers =
        headers(shared, delivery, &target).map_err(|error| format!("a header can't be sent: {error}"))?;
    let uri = uri(target).map_err(|error| format!("the URL can't be sent: {error}"))?;
    Ok(Outgoing { method: message.method, uri, headers, body: message.body.clone() })
}

fn uri(target: RequestTarget) -> Result<Uri, http::Error> {
    let scheme = if target.origin.https { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    Uri::builder().scheme(scheme).authority(target.authority).path_and_query(target.path_and_query).build()
}

fn headers(shared: &Shared, delivery: &Delivery, target: &RequestTarget) -> Result<HeaderMap, http::Error> {
    let message = &*delivery.message;
    let mut headers = HeaderMap::with_capacity(message.headers.0.len() + 12);
    headers.insert(HOST, HeaderValue::try_from(target.authority.as_str())?);
    for (name, value) in message.headers.iter() {
        headers.append(HeaderName::try_from(name)?, HeaderValue::from_bytes(value)?);
    }
    headers.entry(USER_AGENT).or_insert(AGENT);
    if let Some(llm) = &shared.settings.llm
        && message.options.api.is_some()
        && message.url == llm.url
    {
        headers.entry(AUTHORIZATION).or_insert_with(|| llm.authorization.clone());
    }
    if let Some((user, password)) = &target.userinfo
        && !headers.contains_key(AUTHORIZATION)
    {
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        headers.insert(AUTHORIZATION, HeaderValue::try_from(basic)?);
    }
    // An empty body has no length of its own on the wire (RFC 9110, 8.6).
    if message.body.is_empty() && matches!(message.method, Method::Post | Method::Put | Method::Patch) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    headers.insert(MESSAGE_ID, HeaderValue::try_from(message.id.as_str())?);
    headers.insert(RETRIED, HeaderValue::from(delivery.retried));
    let jti = signature::generate_jti(shared.chance.random());
    let signed_at = shared.clock.now_for_others().as_secs();
    let token = signature::sign(&shared.keys.current(), &message.url, &message.body_sha256, signed_at, &jti);
    headers.insert(SIGNATURE, HeaderValue::try_from(token)?);
    let optional = [
        (SCHEDULE_ID, &message.schedule_id),
        (TOPIC_NAME, &message.url_group),
        (ENDPOINT_NAME, &message.endpoint),
        (CALLER_IP, &message.caller_ip),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes())?);
        }
    }
    Ok(headers)
}
