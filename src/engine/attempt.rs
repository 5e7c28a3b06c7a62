//! Attempts: one request each, checked, signed, and sent; its outcome goes to the finisher.
//!
//! Invariant: nothing of the database is held while the request is out, and whatever happens here, a panic included, ends
//! as an outcome.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Uri, uri};
use tokio::sync::OwnedSemaphorePermit;

use super::dispatcher::{Held, Running};
use super::finisher::Finisher;
use super::observer::Happened;
use super::runs::{self, KnownRun, Payload};
use super::shared::{Shared, names};
use super::wakeups::opened_by;
use crate::clock::pause;
use crate::domain::destination::{RequestTarget, request_target};
use crate::domain::message::{Headers, Message, Method};
use crate::domain::outcome::{Attempt, FailureClass, Outcome, Response};
use crate::domain::run::Kind;
use crate::domain::signature;
use crate::egress::Destinations;
use crate::egress::client::{Outgoing, SendError};
use crate::mutation::{self, Mutation};
use crate::store::Delivery;

/// Leases taken for one attempt from which on its starts are counted.
const SUSPECT_CLAIMS: u32 = 5;
/// Starts of one attempt, so counted, before the message is given up: it may be what ends its nodes.
const MAX_STARTS: u32 = 15;
/// How long an attempt waits that can't be made for want of descriptors or the like.
const LACK_PAUSE: Duration = Duration::from_secs(1);
/// How often an attempt waits so before its delivery is given back, to a node that has what it takes.
const LACK_PATIENCE: u32 = 10;
/// The least time between two log lines that say that attempts wait.
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

/// The means of all attempts.
pub(super) struct Attempts {
    shared: Arc<Shared>,
    destinations: Arc<dyn Destinations>,
    finisher: Finisher,
    lack: Lack,
}

/// Starts attempts as the dispatcher lets them, until the engine drains.
pub(super) async fn run(shared: Arc<Shared>, destinations: Arc<dyn Destinations>, finisher: Finisher) {
    let attempts = Arc::new(Attempts { shared, destinations, finisher, lack: Lack::default() });
    let shared = &attempts.shared;
    loop {
        let started = tokio::select! {
            biased;
            started = shared.dispatcher.next() => started,
            () = shared.draining.cancelled() => return,
        };
        for (held, running) in started {
            let task = Arc::clone(&attempts).one(held, running);
            shared.tasks.spawn("an attempt", shared.attempts.track_future(task));
        }
    }
}

/// The result of trying to attempt a delivery.
enum Tried {
    /// An attempt, and the share of memory that its response holds.
    Made(Attempt, Option<OwnedSemaphorePermit>),
    /// Nothing: the lease can't be trusted.
    Untrusted,
    /// Nothing: it has to be given back.
    GivenBack,
}

impl Attempts {
    async fn one(self: Arc<Self>, held: Held, mut running: Running) {
        let shared = &self.shared;
        let delivery = &held.delivery;
        let run = match runs::of(shared, &delivery.message).await {
            Ok(run) => run,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    message.id = %delivery.message.id,
                    "the run of a message could not be read; the attempt is made later"
                );
                drop(held);
                shared.node.mark_in_doubt();
                return;
            }
        };
        let run_of = run.as_ref();
        let tried =
            if is_late(shared, delivery) { Tried::GivenBack } else { self.attempt(delivery, run_of).await };
        match tried {
            // The slot is kept until the outcome is handed over, so that outcomes don't pile up while the store is away.
            Tried::Made(attempt, memory) => {
                if matches!(attempt.outcome, Outcome::Response(_)) {
                    running.answered();
                }
                let known = match run {
                    Some(run) => runs::after_attempt(shared, &held.delivery.message, run).await,
                    None => Ok(None),
                };
                if let Ok(run) = known {
                    self.finisher.submit(shared, held, attempt, run.as_ref(), memory).await;
                } else {
                    // The attempt is made once more.
                    drop(held);
                    shared.node.mark_in_doubt();
                }
            }
            Tried::GivenBack => give_back(shared, held).await,
            Tried::Untrusted => {
                // The delivery is left to whoever finds it free.
                drop(held);
                shared.node.mark_in_doubt();
            }
        }
    }

    async fn attempt(&self, delivery: &Delivery, run: Option<&KnownRun>) -> Tried {
        if !self.shared.node.holds(delivery.lease) {
            return Tried::Untrusted;
        }
        if delivery.claims > SUSPECT_CLAIMS {
            return self.suspect(delivery, run).await;
        }
        self.make(delivery, run, LACK_PATIENCE).await
    }

    /// Attempts a message whose leases ended without an outcome again and again. It may be what ends its nodes, or it only
    /// waited in memory whenever they ended: what begins is counted in the store before it begins.
    async fn suspect(&self, delivery: &Delivery, run: Option<&KnownRun>) -> Tried {
        let (shared, id) = (&self.shared, &delivery.message.id);
        match shared.store.count_start(shared.node.id(), id, delivery.lease).await {
            Ok(Some(starts)) if starts > MAX_STARTS => {
                let now = shared.clock.now().max(delivery.message.due_at);
                let error = format!("given up: the server itself ended in each of {MAX_STARTS} attempts");
                let outcome = Outcome::Unsendable { class: FailureClass::Message, error };
                let attempt = Attempt { retried: delivery.retried, started_at: now, ended_at: now, outcome };
                Tried::Made(attempt, None)
            }
            // Not given back where it only has to wait: the next start would count again.
            Ok(Some(_)) => self.make(delivery, run, u32::MAX).await,
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
    async fn make(&self, delivery: &Delivery, run: Option<&KnownRun>, patience: u32) -> Tried {
        let (shared, message) = (&self.shared, &delivery.message);
        let retried = delivery.retried;
        shared.tell(Happened::Started { message, lease: delivery.lease, retried });
        let mut waits = 0;
        loop {
            let started_at = shared.clock.now().max(message.due_at);
            let made = AssertUnwindSafe(self.send(delivery, run)).catch_unwind().await;
            let made = made.unwrap_or_else(|_| {
                tracing::error!(message.id = %message.id, "an attempt's task failed");
                let error = "the server failed while it made the attempt".to_owned();
                Ok((Outcome::NoResponse { class: FailureClass::Internal, error }, None))
            });
            match made {
                Ok((outcome, memory)) => {
                    let ended_at = shared.clock.now().max(started_at);
                    return Tried::Made(Attempt { retried, started_at, ended_at, outcome }, memory);
                }
                Err(Lacking(error)) => self.lack.say(shared.clock.since_boot(), &error),
            }
            waits += 1;
            let stays = tokio::select! {
                biased;
                () = shared.draining.cancelled() => false,
                () = pause(LACK_PAUSE) => waits < patience,
            };
            if !shared.node.holds(delivery.lease) {
                return Tried::Untrusted;
            }
            if !stays || is_late(shared, delivery) {
                return Tried::GivenBack;
            }
        }
    }

    async fn send(
        &self,
        delivery: &Delivery,
        run: Option<&KnownRun>,
    ) -> Result<(Outcome, Option<OwnedSemaphorePermit>), Lacking> {
        let message = &*delivery.message;
        let unsendable =
            |error: String| Ok((Outcome::Unsendable { class: FailureClass::Message, error }, None));
        let no_response =
            |class: FailureClass, error: String| Ok((Outcome::NoResponse { class, error }, None));
        let kind = message.run.as_ref().map(|part| part.kind);
        if kind == Some(Kind::Timeout) {
            let response = Response { status: 204, headers: Headers::new(), body: Bytes::new() };
            return Ok((Outcome::Response(response), None));
        }
        if signature::body_sha256(&message.body) != message.body_sha256 {
            return unsendable("the stored body does not match its hash".to_owned());
        }
        let payload = match (kind, run) {
            (None, _) => Payload::stored(message),
            (Some(_), None) => return unsendable("its run is not kept any more".to_owned()),
            (Some(kind), Some(run)) => match runs::payload(&self.shared, run, message, kind).await {
                Ok(payload) => payload,
                Err(error) => {
                    return no_response(FailureClass::Internal, format!("its run can't be read: {error}"));
                }
            },
        };
        let outgoing = match outgoing(&self.shared, delivery, payload) {
            Ok(outgoing) => outgoing,
            Err(error) => return unsendable(error),
        };
        let limit = timeout(message, self.shared.settings.max_timeout);
        match tokio::time::timeout(limit, self.destinations.send(outgoing)).await {
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
}

/// Whether a delivery can't start any more within the time in which its rate has counted it.
fn is_late(shared: &Shared, delivery: &Delivery) -> bool {
    !mutation::on(Mutation::StartsLate)
        && delivery.start_by.is_some_and(|start_by| shared.clock.since_boot() > start_by)
}

/// Gives a delivery back unattempted.
async fn give_back(shared: &Shared, held: Held) {
    let released = shared.store.release(shared.node.id(), &names(std::slice::from_ref(&held))).await;
    let delivery = held.let_go();
    match released {
        Ok(_) => shared.wakeups.gates.opened(opened_by(&delivery)),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a delivery could not be given back");
            shared.node.mark_in_doubt();
        }
    }
}

/// The system's text when an attempt could not be made for want of something on this machine.
struct Lacking(String);

/// Says in the log that attempts wait for something that this machine lacks, seldom enough not to add to its troubles.
#[derive(Default)]
struct Lack {
    /// When the last line was logged, since boot.
    said_at: Mutex<Option<Duration>>,
}

impl Lack {
    fn say(&self, now: Duration, error: &str) {
        let mut said_at = self.said_at.lock().unwrap_or_else(PoisonError::into_inner);
        if said_at.is_none_or(|said_at| now.saturating_sub(said_at) >= LACK_SAID_EVERY) {
            *said_at = Some(now);
            tracing::warn!(
                error,
                "deliveries wait and are not counted as attempts: this machine is short of descriptors, ports or memory \
                 for connections"
            );
        }
    }
}

/// The limit for one attempt: a message shortens the server's, a zero means that it doesn't.
fn timeout(message: &Message, max: Duration) -> Duration {
    message.options.timeout.filter(|timeout| !timeout.is_zero()).map_or(max, |timeout| timeout.min(max))
}

fn outgoing(shared: &Shared, delivery: &Delivery, payload: Payload<'_>) -> Result<Outgoing, String> {
    let message = &*delivery.message;
    let target = request_target(&message.url).map_err(|error| error.to_string())?;
    let headers = headers(shared, delivery, &payload, &target)
        .map_err(|error| format!("a header can't be sent: {error}"))?;
    let uri = uri(target).map_err(|error| format!("the URL can't be sent: {error}"))?;
    Ok(Outgoing { method: message.method, uri, headers, body: payload.body })
}

fn uri(target: RequestTarget) -> Result<Uri, http::Error> {
    let scheme = if target.origin.https { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    Uri::builder().scheme(scheme).authority(target.authority).path_and_query(target.path_and_query).build()
}

fn headers(
    shared: &Shared,
    delivery: &Delivery,
    payload: &Payload<'_>,
    target: &RequestTarget,
) -> Result<HeaderMap, http::Error> {
    let message = &*delivery.message;
    let mut headers = HeaderMap::with_capacity(payload.headers.0.len() + 12);
    headers.insert(HOST, HeaderValue::try_from(target.authority.as_str())?);
    for (name, value) in payload.headers.iter() {
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
    if payload.body.is_empty() && matches!(message.method, Method::Post | Method::Put | Method::Patch) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    headers.insert(MESSAGE_ID, HeaderValue::try_from(message.id.as_str())?);
    headers.insert(RETRIED, HeaderValue::from(delivery.retried));
    let jti = signature::generate_jti(shared.chance.random());
    let signed_at = shared.clock.now_for_others().as_secs();
    let token = signature::sign(&shared.keys.current(), &message.url, &payload.sha256, signed_at, &jti);
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
