//! What an attempt came to, and what follows from it.

use std::sync::Arc;

use bytes::Bytes;

use super::id::{DeadLetterId, InstanceId, MessageId};
use super::message::{CallbackSpec, Headers, Message};
use super::run::ending::{self, Ending, Family};
use super::run::{Kind, NewEntry, RunState, Told, waiting};
use super::time::Timestamp;
use super::{callback, retry};

/// A destination's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// 100 to 999.
    pub status: u16,
    /// Canonical names; values that are not text have their bytes replaced.
    pub headers: Headers,
    /// Read up to the server's cap; what came beyond is discarded.
    pub body: Bytes,
}

/// Why there was no complete response. Stable names, used in metrics too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureClass {
    Dns,
    Blocked,
    Connect,
    Tls,
    Timeout,
    Reset,
    Headers,
    Body,
    /// The stored message can't be sent: its body doesn't match its hash, or it has been claimed too often.
    Message,
    /// Our own fault; the attempt's task failed.
    Internal,
}

impl FailureClass {
    /// The class as text, lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Blocked => "blocked",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Headers => "headers",
            Self::Body => "body",
            Self::Message => "message",
            Self::Internal => "internal",
        }
    }
}

/// What one attempt came to. A receiver's failure is data, not an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The destination answered completely.
    Response(Response),
    /// It did not.
    NoResponse {
        class: FailureClass,
        /// One sentence for users.
        error: String,
    },
    /// It must not be attempted (again): straight to the dead letters.
    Unsendable { class: FailureClass, error: String },
}

/// One attempt that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Attempts made before this one.
    pub retried: u32,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub outcome: Outcome,
}

/// Bytes of a response's body, and as many of its headers, that the log keeps of each attempt. A destination decides how long its answers are, and a
/// message how often it is attempted: whole answers would let them fill the disk.
pub const LOGGED_BODY: usize = 64 << 10;

impl Attempt {
    /// The response, if there was one.
    pub fn response(&self) -> Option<&Response> {
        match &self.outcome {
            Outcome::Response(response) => Some(response),
            Outcome::NoResponse { .. } | Outcome::Unsendable { .. } => None,
        }
    }

    /// The response's headers as the log keeps them: the first ones, up to [`LOGGED_BODY`] bytes of names and values.
    /// Callbacks and the dead letter have all of them.
    pub fn logged_headers(&self) -> Headers {
        let mut left = LOGGED_BODY;
        let fields = self.response().map_or(&[][..], |response| &response.headers.0);
        let fits = fields.iter().take_while(|(name, value)| {
            let rest = left.checked_sub(name.len() + value.len());
            left = rest.unwrap_or(0);
            rest.is_some()
        });
        Headers(fits.cloned().collect())
    }

    /// The response's body as the log keeps it: cut to [`LOGGED_BODY`] bytes, and not within a character. Callbacks and
    /// the dead letter have the whole one.
    pub fn logged_body(&self) -> &[u8] {
        let body = self.response().map_or(&[][..], |response| &response.body);
        let Some(cut) = body.get(..=LOGGED_BODY) else { return body };
        let character = cut.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(LOGGED_BODY);
        // A character has at most four bytes; otherwise it is no text.
        &body[..if LOGGED_BODY - character < 4 { character } else { LOGGED_BODY }]
    }
}

/// The state that an ended attempt leaves its message in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Done.
    Delivered,
    /// Another attempt at that time.
    Retry { due_at: Timestamp },
    /// No attempt is left: a dead letter, unless a run goes on with the failure or keeps it itself.
    Failed { dead_letter: Option<DeadLetterId> },
    /// A user cancelled it while the attempt ran.
    Cancelled,
}

/// An outcome with all its consequences, to be stored in one transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finish {
    pub attempt: Attempt,
    pub next: Next,
    /// The text that logs show for a failed attempt; `None` when it was delivered.
    pub error: Option<String>,
    pub effects: Vec<Effect>,
}

/// A consequence of an outcome beyond its message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A callback or failure callback is accepted.
    Callback(Arc<Message>),
    /// The outcome is appended to the run, with the message that delivers it; nothing if the run has ended.
    Append(Arc<Message>, NewEntry),
    /// The wait with the entry's key ends: the entry is appended, with the message that delivers it; nothing if the wait has
    /// ended already.
    TimeOut(Arc<Message>, NewEntry),
    /// The run ends, unless it has already.
    End(Box<Ending>),
    /// The one who was to be told of a run's failure has answered, or has failed for good.
    Told { instance: InstanceId, message: MessageId, answer: Told },
}

impl Effect {
    /// The messages that it makes.
    pub fn messages(&self) -> impl Iterator<Item = &Arc<Message>> {
        let (one, other) = match self {
            Self::Callback(message) | Self::Append(message, _) | Self::TimeOut(message, _) => {
                (Some(message), None)
            }
            Self::End(ending) => {
                (ending.failure_callback.as_ref(), ending.parent.as_ref().map(|(message, _)| message))
            }
            Self::Told { .. } => (None, None),
        };
        one.into_iter().chain(other)
    }
}

impl Finish {
    /// The messages that it makes and that don't depend on the state of a run, in order: each has room reserved for it.
    pub fn callbacks(&self) -> impl Iterator<Item = &Arc<Message>> {
        self.effects.iter().filter_map(|effect| match effect {
            Effect::Callback(message) => Some(message),
            _ => None,
        })
    }

    /// Its effects on runs.
    pub fn on_runs(&self) -> impl Iterator<Item = &Effect> {
        self.effects.iter().filter(|effect| !matches!(effect, Effect::Callback(_)))
    }
}

/// Where the ids of new messages and dead letters come from: the engine's clock and random numbers, or a test's counter.
pub trait Ids {
    /// A fresh id for a message made at `now`.
    fn message(&mut self, now: Timestamp) -> MessageId;
    /// A fresh id for a dead letter made at `now`.
    fn dead_letter(&mut self, now: Timestamp) -> DeadLetterId;
}

/// What a decision depends on besides the message and the attempt.
pub struct Context<'a> {
    /// Whether a user asked to cancel the message while the attempt ran.
    pub cancel_requested: bool,
    /// Bytes of a response body that callbacks carry; the rest is cut off.
    pub max_body: usize,
    /// Ids for callbacks and dead letters.
    pub ids: &'a mut dyn Ids,
    /// The message's run, if it has one.
    pub run: Option<InRun<'a>>,
}

/// What a decision has to know of a run.
#[derive(Clone, Copy)]
pub struct InRun<'a> {
    pub family: Family<'a>,
    /// Its entry 0.
    pub payload: &'a [u8],
}

/// Decides what follows from an attempt; everything happens at its `ended_at`.
///
/// A success is delivered even if a user wanted to cancel: it has happened. A failure with a cancel requested is the
/// message's end, and nobody is told. Else a failure is retried while attempts are left, unless the destination refused
/// for good (status 489 and `Upstash-NonRetryable-Error: true`) or the message can't be sent at all.
pub fn decide(message: &Message, attempt: Attempt, context: &mut Context<'_>) -> Finish {
    let now = attempt.ended_at;
    let kind = message.run.as_ref().map(|part| part.kind);
    let no_endpoint = context.run.and_then(|run| no_endpoint(run.family, message, &attempt.outcome));
    let error = no_endpoint.map(str::to_owned).or_else(|| error_of(&attempt.outcome));
    let next = if error.is_none() {
        Next::Delivered
    } else if context.cancel_requested {
        Next::Cancelled
    } else if no_endpoint.is_some() || is_final(&attempt.outcome) || attempt.retried >= message.max_retries {
        let leaves_letter = kind.is_none_or(Kind::carries_run);
        Next::Failed { dead_letter: leaves_letter.then(|| context.ids.dead_letter(now)) }
    } else {
        let headers = match &attempt.outcome {
            Outcome::Response(response) => Some(&response.headers),
            Outcome::NoResponse { .. } | Outcome::Unsendable { .. } => None,
        };
        let delay = retry::delay(&message.options, headers, attempt.retried, now);
        Next::Retry { due_at: now.after(delay) }
    };
    let effects = if let (Some(kind), Some(run)) = (kind, context.run) {
        on_run(kind, run, message, &attempt, &next, context)
    } else {
        let callbacks = callbacks(message, &attempt, &next, context);
        callbacks.into_iter().map(|message| Effect::Callback(Arc::new(message))).collect()
    };
    Finish { attempt, next, error, effects }
}

/// The error of a run whose destination does not speak the protocol; clients know the text.
const NO_ENDPOINT: &str = "detected a non-workflow destination for trigger/invoke. make sure you are sending the request to \
    the correct endpoint";

/// The error of a run that was begun by plain HTTP, and whose destination knows nothing of that; clients know the text.
const OLD_SDK: &str = "trigger rest api is only usable with sdk versions after v1.0.0 major version";

/// The error of a run whose first delivery was answered by somebody who takes no part in the protocol.
fn no_endpoint(family: Family<'_>, message: &Message, outcome: &Outcome) -> Option<&'static str> {
    let Outcome::Response(response) = outcome else { return None };
    let run = family.run;
    if run.instance.as_str() != message.id.as_str() || !(200..=299).contains(&response.status) {
        return None;
    }
    let features = run.trigger.features;
    let lacks = |name| response.headers.get(name).is_none();
    if features.detect_trigger && lacks("Upstash-Workflow-Sdk-Version") {
        Some(NO_ENDPOINT)
    } else {
        let is_old = features.unknown_sdk || features.detect_sdk && lacks("Upstash-Workflow-Sdk");
        is_old.then_some(OLD_SDK)
    }
}

/// What an attempt of a run's message means for the run.
fn on_run(
    kind: Kind,
    InRun { family, payload }: InRun<'_>,
    message: &Message,
    attempt: &Attempt,
    next: &Next,
    context: &mut Context<'_>,
) -> Vec<Effect> {
    let (run, now) = (family.run, attempt.ended_at);
    match (kind, next) {
        (_, Next::Cancelled | Next::Retry { .. }) | (Kind::Step | Kind::CallResult, Next::Delivered) => {
            Vec::new()
        }
        (Kind::Step | Kind::CallResult, Next::Failed { dead_letter }) => {
            let mut ending = family.end(RunState::Failed, None, context.ids.message(now), now);
            let options = [&message.options, &run.trigger.options];
            let spec = options.into_iter().find_map(|options| options.failure_callback.as_deref());
            ending.failure_callback = spec.zip(dead_letter.as_ref()).map(|(spec, letter)| {
                let id = context.ids.message(now);
                let told = ending::Failure { run, payload, failed: message, attempt, dead_letter: letter };
                Arc::new(told.callback(spec, id, context.max_body))
            });
            ending.dead_letter.clone_from(dead_letter);
            vec![Effect::End(Box::new(ending))]
        }
        (Kind::Call, Next::Delivered | Next::Failed { .. }) => {
            let Some(spec) = message.options.callback.as_deref() else { return Vec::new() };
            let id = context.ids.message(now);
            let (result, entry) = ending::call_result(run, message, attempt, spec, id, context.max_body);
            vec![Effect::Append(Arc::new(result), entry)]
        }
        (Kind::FailureCallback, Next::Delivered | Next::Failed { .. }) => {
            let (instance, message) = (run.instance.clone(), message.id.clone());
            vec![Effect::Told { instance, message, answer: told(attempt, next) }]
        }
        (Kind::Timeout, Next::Delivered | Next::Failed { .. }) => {
            let (timed_out, entry) = waiting::timed_out(run, message, context.ids.message(now), now);
            vec![Effect::TimeOut(Arc::new(timed_out), entry)]
        }
    }
}

fn told(attempt: &Attempt, next: &Next) -> Told {
    let nobody = attempt.response().is_some_and(|response| {
        response
            .headers
            .get("Upstash-Workflow-Failure-Callback-Notfound")
            .is_some_and(|value| &*value == "true")
    });
    match next {
        _ if nobody => Told::Nobody,
        Next::Delivered => Told::Done,
        _ => Told::Failed,
    }
}

/// Why an attempt failed, in one sentence; `None` when it did not.
fn error_of(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Response(response) if (200..=299).contains(&response.status) => None,
        Outcome::Response(response) => Some(format!("destination answered {}", response.status)),
        Outcome::NoResponse { error, .. } | Outcome::Unsendable { error, .. } => Some(error.clone()),
    }
}

/// Whether a failure rules out another attempt.
fn is_final(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Response(response) => {
            let refused = response.headers.get("Upstash-NonRetryable-Error");
            response.status == 489 && refused.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
        }
        Outcome::NoResponse { .. } => false,
        Outcome::Unsendable { .. } => true,
    }
}

/// The callback after every attempt, then the failure callback after the last; none for a cancelled message.
fn callbacks(message: &Message, attempt: &Attempt, next: &Next, context: &mut Context<'_>) -> Vec<Message> {
    let (callback, failure_callback, dead_letter) = match next {
        Next::Cancelled => return Vec::new(),
        Next::Delivered | Next::Retry { .. } => (&message.options.callback, &None, None),
        Next::Failed { dead_letter } => {
            (&message.options.callback, &message.options.failure_callback, dead_letter.as_ref())
        }
    };
    let now = attempt.ended_at;
    let mut make = |spec: &CallbackSpec, dead_letter| {
        let id = context.ids.message(now);
        callback::make(message, attempt, spec, dead_letter, id, now, context.max_body)
    };
    let callback = callback.as_deref().map(|spec| make(spec, None));
    let failure_callback = failure_callback.as_deref().map(|spec| make(spec, dead_letter));
    callback.into_iter().chain(failure_callback).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::message::{Method, Options};
    use super::super::signature::body_sha256;
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const END: Timestamp = Timestamp::from_millis(1_700_000_001_000);

    /// Counts, so that a test sees the order in which ids were taken.
    struct Counter(u32);

    impl Ids for Counter {
        fn message(&mut self, _: Timestamp) -> MessageId {
            self.0 += 1;
            MessageId::new(format!("msg_{}", self.0))
        }

        fn dead_letter(&mut self, now: Timestamp) -> DeadLetterId {
            self.0 += 1;
            DeadLetterId::generate(now, self.0)
        }
    }

    #[test]
    fn the_log_keeps_the_beginning_of_a_long_body() {
        let logged = |body: &[u8]| {
            let body = Bytes::copy_from_slice(body);
            let response = Response { status: 500, headers: Headers::new(), body };
            let outcome = Outcome::Response(response);
            Attempt { retried: 0, started_at: START, ended_at: END, outcome }.logged_body().len()
        };
        let (most, long) = (LOGGED_BODY, "x".repeat(LOGGED_BODY - 1));
        assert_eq!(logged(b""), 0);
        assert_eq!(logged(format!("{long}x").as_bytes()), most);
        assert_eq!(logged(format!("{long}xx").as_bytes()), most);
        assert_eq!(logged(&vec![b'x'; 10 << 20]), most);
        // Characters of two and four bytes over the edge, and one that ends there.
        assert_eq!(logged(format!("{long}é").as_bytes()), most - 1);
        assert_eq!(logged(format!("{}😀😀", &long[2..]).as_bytes()), most - 3);
        assert_eq!(logged(format!("{}éé", &long[1..]).as_bytes()), most);
        // No text.
        assert_eq!(logged(&vec![0x80; most + 1]), most);
        let refused = Outcome::NoResponse { class: FailureClass::Connect, error: String::new() };
        let attempt = Attempt { retried: 0, started_at: START, ended_at: END, outcome: refused };
        assert_eq!(attempt.logged_body(), b"");
    }

    #[test]
    fn the_log_keeps_the_first_of_many_headers() {
        let logged = |lengths: &[usize]| {
            let headers =
                Headers(lengths.iter().map(|&length| ("X-A".to_owned(), vec![b'x'; length])).collect());
            let response = Response { status: 500, headers, body: Bytes::new() };
            let outcome = Outcome::Response(response);
            Attempt { retried: 0, started_at: START, ended_at: END, outcome }.logged_headers().0.len()
        };
        assert_eq!(logged(&[]), 0);
        assert_eq!(logged(&[1, 2, 3]), 3);
        assert_eq!(logged(&[LOGGED_BODY - 3]), 1);
        assert_eq!(logged(&[LOGGED_BODY - 2]), 0);
        assert_eq!(logged(&[10, LOGGED_BODY, 10]), 1, "nothing behind one that is left out");
        assert_eq!(logged(&[LOGGED_BODY / 4; 9]), 3);
    }

    fn message(max_retries: u32) -> Message {
        let spec =
            |url: &str| Some(Box::new(CallbackSpec { url: url.to_owned(), ..CallbackSpec::default() }));
        Message {
            id: MessageId::new("msg_source"),
            created_at: START,
            due_at: START,
            method: Method::Post,
            url: "https://e.com".to_owned(),
            headers: Headers::new(),
            body: Bytes::new(),
            body_sha256: body_sha256(b""),
            max_retries,
            caller_ip: None,
            labels: Vec::new(),
            queue: None,
            url_group: None,
            endpoint: None,
            schedule_id: None,
            source_id: None,
            run: None,
            options: Options {
                callback: spec("https://e.com/each"),
                failure_callback: spec("https://e.com/failure"),
                ..Options::default()
            },
        }
    }

    fn answer(status: u16, fields: &[(&str, &str)]) -> Outcome {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append(name, *value);
        }
        Outcome::Response(Response { status, headers, body: Bytes::new() })
    }

    fn no_response() -> Outcome {
        Outcome::NoResponse { class: FailureClass::Connect, error: "connection refused".to_owned() }
    }

    fn unsendable() -> Outcome {
        Outcome::Unsendable { class: FailureClass::Message, error: "claimed too often".to_owned() }
    }

    fn run(message: &Message, retried: u32, outcome: Outcome, cancel_requested: bool) -> Finish {
        let attempt = Attempt { retried, started_at: START, ended_at: END, outcome };
        let mut context = Context { cancel_requested, max_body: 100, ids: &mut Counter(0), run: None };
        decide(message, attempt, &mut context)
    }

    /// Checks an attempt of a message with 3 retries and both callbacks.
    #[track_caller]
    fn check(retried: u32, outcome: Outcome, next: &Next, error: Option<&str>, callbacks: &[&str]) {
        let finish = run(&message(3), retried, outcome, false);
        assert_eq!((&finish.next, finish.error.as_deref()), (next, error));
        let urls: Vec<_> = finish.callbacks().map(|callback| callback.url.as_str()).collect();
        assert_eq!(urls, callbacks);
    }

    fn failed() -> Next {
        Next::Failed { dead_letter: Some(DeadLetterId::new("1700000001000-1")) }
    }

    fn retry_after(seconds: u64) -> Next {
        Next::Retry { due_at: END.after(Duration::from_secs(seconds)) }
    }

    const EACH: &str = "https://e.com/each";
    const FAILURE: &str = "https://e.com/failure";

    #[test]
    fn any_2xx_is_delivered() {
        check(0, answer(200, &[]), &Next::Delivered, None, &[EACH]);
        check(3, answer(299, &[]), &Next::Delivered, None, &[EACH]);
        check(9, answer(204, &[("Retry-After", "5")]), &Next::Delivered, None, &[EACH]);
    }

    #[test]
    fn other_answers_are_retried_while_attempts_are_left() {
        for status in [101, 199, 300, 302, 400, 404, 429, 500, 999] {
            let error = format!("destination answered {status}");
            check(0, answer(status, &[]), &retry_after(12), Some(&error), &[EACH]);
            check(2, answer(status, &[]), &retry_after(1808), Some(&error), &[EACH]);
            check(3, answer(status, &[]), &failed(), Some(&error), &[EACH, FAILURE]);
            check(4, answer(status, &[]), &failed(), Some(&error), &[EACH, FAILURE]);
        }
        let error = Some("destination answered 503");
        check(0, answer(503, &[("Retry-After", "5")]), &retry_after(5), error, &[EACH]);
        check(3, answer(503, &[("Retry-After", "5")]), &failed(), error, &[EACH, FAILURE]);
    }

    #[test]
    fn no_answer_is_a_failure_like_any() {
        check(0, no_response(), &retry_after(12), Some("connection refused"), &[EACH]);
        check(3, no_response(), &failed(), Some("connection refused"), &[EACH, FAILURE]);
    }

    #[test]
    fn a_final_refusal_takes_status_and_header() {
        let refused = |status, value| answer(status, &[("upstash-nonretryable-error", value)]);
        let error = Some("destination answered 489");
        check(0, refused(489, "true"), &failed(), error, &[EACH, FAILURE]);
        check(0, refused(489, " True"), &failed(), error, &[EACH, FAILURE]);
        check(0, refused(489, "false"), &retry_after(12), error, &[EACH]);
        check(0, answer(489, &[]), &retry_after(12), error, &[EACH]);
        check(0, refused(488, "true"), &retry_after(12), Some("destination answered 488"), &[EACH]);
        check(0, refused(200, "true"), &Next::Delivered, None, &[EACH]);
    }

    #[test]
    fn what_cannot_be_sent_fails_at_once() {
        check(0, unsendable(), &failed(), Some("claimed too often"), &[EACH, FAILURE]);
    }

    #[test]
    fn a_cancel_ends_failures_silently_but_not_successes() {
        for (retried, outcome) in [
            (0, answer(500, &[])),
            (3, answer(500, &[])),
            (0, no_response()),
            (0, unsendable()),
            (0, answer(489, &[("Upstash-NonRetryable-Error", "true")])),
        ] {
            let finish = run(&message(3), retried, outcome, true);
            assert_eq!((finish.next, finish.effects.len()), (Next::Cancelled, 0));
            assert!(finish.error.is_some());
        }
        let finish = run(&message(3), 0, answer(200, &[]), true);
        assert_eq!((finish.next, finish.effects.len()), (Next::Delivered, 1));
    }

    #[test]
    fn only_the_failure_callback_names_the_dead_letter() {
        let finish = run(&message(0), 0, answer(500, &[]), false);
        let [each, failure] = finish.callbacks().collect::<Vec<_>>().try_into().unwrap();
        let body = |message: &Message| String::from_utf8(message.body.to_vec()).unwrap();
        assert!(!body(each).contains("dlqId"));
        assert!(body(failure).contains(r#""dlqId":"1700000001000-1""#));
        assert_ne!(each.id, failure.id);
        assert_eq!((each.created_at, failure.created_at), (END, END));
    }

    #[test]
    fn without_callbacks_there_are_none() {
        let message = Message { options: Options::default(), ..message(0) };
        assert_eq!(run(&message, 0, answer(500, &[]), false).effects, []);
        assert_eq!(run(&message, 0, answer(200, &[]), false).effects, []);
    }

    #[test]
    fn the_expression_gives_the_delay() {
        let mut message = message(3);
        message.options.retry_delay = Some("1000 * (1 + retried)".to_owned());
        assert_eq!(run(&message, 1, no_response(), false).next, retry_after(2));
    }

    proptest! {
        #[test]
        fn every_message_ends_after_its_last_attempt(
            max_retries in 0_u32..50,
            statuses in proptest::collection::vec(100_u16..1000, 50),
        ) {
            let message = message(max_retries);
            let mut attempts = 0;
            for status in statuses {
                let finish = run(&message, attempts, answer(status, &[]), false);
                attempts += 1;
                match finish.next {
                    Next::Retry { due_at } => prop_assert!(due_at >= END && attempts <= max_retries),
                    Next::Delivered => {
                        prop_assert!((200..300).contains(&status));
                        return Ok(());
                    }
                    Next::Failed { .. } => {
                        prop_assert_eq!(attempts, max_retries + 1);
                        return Ok(());
                    }
                    Next::Cancelled => prop_assert!(false, "nobody cancelled it"),
                }
            }
            prop_assert!(false, "it never ended");
        }
    }
}
