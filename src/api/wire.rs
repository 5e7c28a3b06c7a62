//! The JSON of messages, dead letters, log entries and schedules.
//!
//! Optional fields are absent, never null. Redaction is applied here, so that no path shows what it hides.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::domain::id::MessageId;
use crate::domain::message::{CallbackSpec, Headers, Message, Options, Redact, header_text};
use crate::domain::outcome::Response;
use crate::domain::redact::marker;
use crate::domain::time::Timestamp;
use crate::domain::url_group::UrlGroup;
use crate::store::schedules::{Progress, Schedule};
use crate::store::{DeadLetter, LogEntry, State};

/// States and their names on the wire. CANCELED has one L: a client fails on another spelling.
pub(super) const STATES: [(State, &str); 8] = [
    (State::Created, "CREATED"),
    (State::Active, "ACTIVE"),
    (State::Delivered, "DELIVERED"),
    (State::Error, "ERROR"),
    (State::Retry, "RETRY"),
    (State::Failed, "FAILED"),
    (State::CancelRequested, "CANCEL_REQUESTED"),
    (State::Cancelled, "CANCELED"),
];

/// `GET /v2/messages/{id}`.
pub fn message(message: &Message) -> Value {
    Value::Object(message_object(message))
}

/// An entry of the dead-letter queue.
pub(super) fn dead_letter(letter: &DeadLetter) -> Value {
    let mut object = message_object(&letter.message);
    put(&mut object, "dlqId", letter.id.as_str());
    put(&mut object, "responseStatus", letter.response.as_ref().map_or(0, |response| response.status));
    if let Some(response) = &letter.response {
        put(&mut object, "responseHeader", header_map(&response.headers, None));
        put_text(&mut object, "responseBody", "responseBodyBase64", &response.body);
    } else {
        put_option(&mut object, "error", letter.error.as_deref());
    }
    Value::Object(object)
}

/// A URL group.
pub(super) fn url_group(group: &UrlGroup) -> Value {
    let endpoints = group.endpoints.iter().map(|endpoint| {
        let mut object = Map::new();
        put_option(&mut object, "name", endpoint.name.as_deref());
        put(&mut object, "url", endpoint.url.as_str());
        Value::Object(object)
    });
    let mut object = Map::new();
    put(&mut object, "name", group.name.as_str());
    put(&mut object, "createdAt", group.created_at.as_millis());
    put(&mut object, "updatedAt", group.updated_at.as_millis());
    put(&mut object, "endpoints", endpoints.collect::<Vec<_>>());
    if !group.headers.is_empty() {
        put(&mut object, "headers", header_map(&group.headers, None));
    }
    Value::Object(object)
}

/// An entry of the log, bodies cut to that many bytes.
pub fn log_entry(entry: &LogEntry, trim: Option<usize>) -> Value {
    let cut = |body: &[u8]| STANDARD.encode(&body[..trim.map_or(body.len(), |max| max.min(body.len()))]);
    let message = &*entry.message;
    let mut object = Map::new();
    put(&mut object, "time", entry.time.as_millis());
    put(&mut object, "state", state_name(entry.state));
    common(&mut object, message, "callbackHeaders", "failureCallbackHeaders");
    if !message.headers.is_empty() {
        put(&mut object, "header", header_map(&message.headers, Some(&message.options.redact)));
    }
    if !message.body.is_empty() {
        let shown = if message.options.redact.body {
            STANDARD.encode(marker(&message.body))
        } else {
            cut(&message.body)
        };
        put(&mut object, "body", shown);
    }
    put_time(&mut object, "nextDeliveryTime", entry.next_due_at);
    put_option(&mut object, "error", entry.error.as_deref());
    if let Some(timeout) = message.options.timeout {
        put(&mut object, "timeout", u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    }
    put_option(&mut object, "retryDelayExpr", message.options.retry_delay.as_deref());
    if let Some(Response { status, headers, body }) = &entry.response {
        put(&mut object, "responseStatus", *status);
        put(&mut object, "responseHeader", header_map(headers, None));
        put(&mut object, "responseHeaders", header_map(headers, None));
        if !body.is_empty() {
            put(&mut object, "responseBody", cut(body));
        }
    } else if matches!(entry.state, State::Error | State::Failed) {
        put(&mut object, "responseStatus", 0);
    }
    Value::Object(object)
}

/// A schedule, with how far the messages of its last run have come.
pub(super) fn schedule(schedule: &Schedule, progress: &HashMap<MessageId, Progress>) -> Value {
    let template = &schedule.template;
    let redact = &template.options.redact;
    let mut object = Map::new();
    put(&mut object, "scheduleId", schedule.id.as_str());
    put(&mut object, "cron", schedule.cron.as_str());
    put(&mut object, "destination", schedule.destination.as_str());
    put(&mut object, "method", template.method.as_str());
    put(&mut object, "createdAt", schedule.created_at.as_millis());
    put(&mut object, "retries", template.max_retries);
    put(&mut object, "isPaused", schedule.paused);
    put(&mut object, "nextScheduleTime", schedule.next_at.as_millis());
    if !template.headers.is_empty() {
        put(&mut object, "header", header_map(&template.headers, Some(redact)));
    }
    put_body(&mut object, &template.body, redact);
    put_seconds(&mut object, "delay", schedule.delay);
    put_seconds(&mut object, "timeout", template.options.timeout);
    put_option(&mut object, "queueName", template.queue.as_deref());
    put_option(&mut object, "callerIP", template.caller_ip.as_deref());
    put_option(&mut object, "callerIp", template.caller_ip.as_deref());
    put_labels(&mut object, &template.labels);
    put_options(&mut object, &template.options, "callbackHeader", "failureCallbackHeader");
    if let Some(firing) = &schedule.last_firing {
        put(&mut object, "lastScheduleTime", firing.occurrence.as_millis());
        let known = firing.messages.iter().filter_map(|id| Some((id, progress.get(id)?)));
        let states = known.map(|(id, progress)| (id.as_str().to_owned(), progress_name(*progress).into()));
        put(&mut object, "lastScheduleStates", states.collect::<Map<_, _>>());
        put_option(&mut object, "error", firing.error.as_deref());
    }
    Value::Object(object)
}

/// The only words that there are for it: a client fails on any other.
const fn progress_name(progress: Progress) -> &'static str {
    match progress {
        Progress::Waiting => "IN_PROGRESS",
        Progress::Delivered => "SUCCESS",
        Progress::Failed => "FAIL",
    }
}

fn state_name(state: State) -> &'static str {
    STATES.iter().find(|(have, _)| *have == state).map_or("", |(_, name)| name)
}

fn message_object(message: &Message) -> Map<String, Value> {
    let mut object = Map::new();
    common(&mut object, message, "callbackHeader", "failureCallbackHeader");
    put(&mut object, "header", header_map(&message.headers, Some(&message.options.redact)));
    put_body(&mut object, &message.body, &message.options.redact);
    put(&mut object, "notBefore", message.due_at.as_millis());
    put(&mut object, "createdAt", message.created_at.as_millis());
    object
}

/// The fields that messages, dead letters and log entries share; the maps of callback headers have two names.
fn common(object: &mut Map<String, Value>, message: &Message, callback: &str, failure_callback: &str) {
    put(object, "messageId", message.id.as_str());
    put(object, "url", message.url.as_str());
    put(object, "method", message.method.as_str());
    put(object, "maxRetries", message.max_retries);
    put_option(object, "topicName", message.url_group.as_deref());
    put_option(object, "urlGroup", message.url_group.as_deref());
    put_option(object, "endpointName", message.endpoint.as_deref());
    put_option(object, "queueName", message.queue.as_deref());
    put_option(object, "scheduleId", message.schedule_id.as_deref());
    put_option(object, "callerIP", message.caller_ip.as_deref());
    put_option(object, "callerIp", message.caller_ip.as_deref());
    put_labels(object, &message.labels);
    put_options(object, &message.options, callback, failure_callback);
}

fn put_labels(object: &mut Map<String, Value>, labels: &[String]) {
    put_option(object, "label", labels.first().map(String::as_str));
    if !labels.is_empty() {
        put(object, "labels", labels);
    }
}

fn put_options(object: &mut Map<String, Value>, options: &Options, callback: &str, failure_callback: &str) {
    put_option(object, "api", options.api.as_deref());
    put_option(object, "retryDelayExpression", options.retry_delay.as_deref());
    put_callback(object, "callback", callback, options.callback.as_deref(), &options.redact);
    put_callback(
        object,
        "failureCallback",
        failure_callback,
        options.failure_callback.as_deref(),
        &options.redact,
    );
    if let Some(flow) = &options.flow_control {
        put(object, "flowControlKey", flow.key.as_str());
        put(object, "period", flow.period_s);
        if let Some(parallelism) = flow.parallelism {
            put(object, "parallelism", parallelism);
        }
        if let Some(rate) = flow.rate {
            put(object, "rate", rate);
        }
    }
}

fn put_callback(
    object: &mut Map<String, Value>,
    name: &str,
    header_name: &str,
    spec: Option<&CallbackSpec>,
    redact: &Redact,
) {
    let Some(spec) = spec else { return };
    put(object, name, spec.url.as_str());
    if !spec.headers.is_empty() {
        put(object, header_name, header_map(&spec.headers, Some(redact)));
    }
}

fn put(object: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    object.insert(name.to_owned(), value.into());
}

fn put_option(object: &mut Map<String, Value>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        put(object, name, value);
    }
}

fn put_time(object: &mut Map<String, Value>, name: &str, time: Option<Timestamp>) {
    if let Some(time) = time {
        put(object, name, time.as_millis());
    }
}

/// A duration in seconds, a part of one counted as a whole.
fn put_seconds(object: &mut Map<String, Value>, name: &str, duration: Option<Duration>) {
    if let Some(duration) = duration {
        put(object, name, duration.as_secs() + u64::from(duration.subsec_nanos() > 0));
    }
}

/// A message's body, or what is shown in its place.
fn put_body(object: &mut Map<String, Value>, body: &[u8], redact: &Redact) {
    if redact.body && !body.is_empty() {
        put(object, "body", marker(body));
    } else {
        put_text(object, "body", "bodyBase64", body);
    }
}

/// A body as text when it is UTF-8, else as base64 under the other name; neither when it is empty.
fn put_text(object: &mut Map<String, Value>, name: &str, base64_name: &str, body: &[u8]) {
    if body.is_empty() {
        return;
    }
    match std::str::from_utf8(body) {
        Ok(text) => put(object, name, text),
        Err(_) => put(object, base64_name, STANDARD.encode(body)),
    }
}

/// Names to arrays of values, hidden values replaced.
fn header_map(headers: &Headers, redact: Option<&Redact>) -> Value {
    let mut map: Map<String, Value> = Map::new();
    for (name, value) in headers.iter() {
        let shown = match redact {
            Some(redact) if redact.hides_header(name) => marker(value),
            _ => header_text(value).into_owned(),
        };
        match map.get_mut(name) {
            Some(Value::Array(values)) => values.push(shown.into()),
            _ => {
                map.insert(name.to_owned(), json!([shown]));
            }
        }
    }
    Value::Object(map)
}
