//! Waits for events: what begins one, and the three ways in which one ends: by the event, by its deadline, with its run.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::super::duration;
use super::super::id::{InstanceId, MessageId};
use super::super::message::{Headers, Message};
use super::super::time::Timestamp;
use super::ending::step_message;
use super::headers::forwarded;
use super::step::{self, Step};
use super::submission::forward_headers;
use super::{CallType, Kind, NewEntry, Part, Run};

/// A run's wait for an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiter {
    pub instance: InstanceId,
    /// By it the wait is recognised in its run.
    pub key: String,
    pub event_id: String,
    /// The step that waits, as JSON.
    pub step: String,
    /// Where the event is delivered.
    pub url: String,
    /// Headers of that delivery.
    pub headers: Headers,
    /// How long it waits, as it was asked for.
    pub timeout: String,
    /// Until when.
    pub deadline: Timestamp,
    /// Where it is delivered that no event came.
    pub timeout_url: String,
    /// Headers of that delivery, as they were asked for: JSON.
    pub timeout_headers: String,
    /// The message whose due time is the deadline.
    pub timer: MessageId,
}

/// A wait as it is asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted<'a> {
    pub url: String,
    timeout: Value,
    pub timeout_url: String,
    #[serde(default)]
    timeout_headers: Map<String, Value>,
    #[serde(borrow)]
    step: &'a RawValue,
}

impl<'a> Wanted<'a> {
    /// Reads what is asked for; the error says what is missing.
    pub fn parse(body: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| format!("invalid wait: {error}"))
    }

    /// The wait of a run that begins now, and the timer that ends it.
    pub fn begin(
        self,
        run: &Run,
        event_id: String,
        headers: &Headers,
        timer: MessageId,
        now: Timestamp,
    ) -> Result<(Waiter, Message), String> {
        let step = Step::parse(self.step.get().as_bytes())?;
        let timeout = match self.timeout {
            Value::String(text) => text,
            Value::Number(seconds) => format!("{seconds}s"),
            other => return Err(format!("invalid timeout {other}: a duration such as 7d is allowed")),
        };
        let lasts: Duration =
            duration::parse(&timeout).map_err(|error| format!("invalid timeout {timeout:?}: {error}"))?;
        let deadline = now.after(lasts).min(Timestamp::LAST);
        let text = step.with(&[
            ("waitEventId", json!(event_id)),
            ("timeout", json!(timeout)),
            ("waitTimeout", json!(true)),
        ]);
        let part = Part { instance: run.instance.clone(), kind: Kind::Timeout, log_size: 0 };
        let message = Message {
            due_at: deadline,
            headers: forwarded(&forward_headers(&self.timeout_headers)),
            run: Some(part),
            ..Message::plain(timer.clone(), now, &self.timeout_url, Bytes::from(text))
        };
        let waiter = Waiter {
            instance: run.instance.clone(),
            key: step::wait_key(step.id()),
            event_id,
            step: step.as_str().to_owned(),
            url: self.url,
            headers: forwarded(headers),
            timeout,
            deadline,
            timeout_url: self.timeout_url,
            timeout_headers: Value::Object(self.timeout_headers).to_string(),
            timer,
        };
        Ok((waiter, message))
    }
}

/// The message that brings an event to a run which waits for it, and its entry.
pub fn arrived(
    run: &Run,
    waiter: &Waiter,
    data: &[u8],
    id: MessageId,
    now: Timestamp,
) -> (Message, NewEntry) {
    let fields = [
        ("waitEventId", json!(waiter.event_id)),
        ("timeout", json!(waiter.timeout)),
        ("out", json!(STANDARD.encode(data))),
    ];
    // It was read when the wait began.
    let body =
        Step::parse(waiter.step.as_bytes()).map_or_else(|_| waiter.step.clone(), |step| step.with(&fields));
    let entry =
        NewEntry { call_type: CallType::Step, key: Some(waiter.key.clone()), body: Bytes::from(body) };
    let headers = waiter.headers.clone();
    (step_message(run, id, now, &waiter.url, headers, entry.body.len()), entry)
}

/// The message that tells a run that the event has not come for which it waited, and the entry: the timer has all of it.
pub fn timed_out(run: &Run, timer: &Message, id: MessageId, now: Timestamp) -> (Message, NewEntry) {
    let key = Step::parse(&timer.body).ok().map(|step| step::wait_key(step.id()));
    let entry = NewEntry { call_type: CallType::Step, key, body: timer.body.clone() };
    let message = step_message(run, id, now, &timer.url, timer.headers.clone(), timer.body.len());
    (message, entry)
}
