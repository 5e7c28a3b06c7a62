//! The JSON of answers: here of messages, dead letters and the log, in `resources` of everything else, but for workflow runs, which are in `runs`.
//!
//! Optional fields are absent, never null. Redaction is applied here, so that no path shows what it hides.

mod resources;
mod runs;

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};

use crate::domain::message::{CallbackSpec, Headers, Message, Options, Redact, header_text};
use crate::domain::outcome::Response;
use crate::domain::redact::marker;
use crate::domain::time::Timestamp;
use crate::store::{DeadLetter, LogEntry, State};

/// An item of a list, shown as JSON.
pub(super) trait Shown {
    /// Its JSON. In memory that may be several times as large.
    fn shown(&self) -> impl Serialize;
}

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

pub(super) fn state_name(state: State) -> &'static str {
    STATES.iter().find(|(have, _)| *have == state).map_or("", |(_, name)| name)
}

/// The fields that messages, dead letters and log entries have in common.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Common<'a> {
    message_id: &'a str,
    url: &'a str,
    method: &'a str,
    max_retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url_group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule_id: Option<&'a str>,
    #[serde(flatten)]
    caller: Caller<'a>,
    #[serde(flatten)]
    labels: Labels<'a>,
    #[serde(flatten)]
    options: Delivery<'a>,
}

impl<'a> Common<'a> {
    fn of(message: &'a Message) -> Self {
        Self {
            message_id: message.id.as_str(),
            url: &message.url,
            method: message.method.as_str(),
            max_retries: message.max_retries,
            topic_name: message.url_group.as_deref(),
            url_group: message.url_group.as_deref(),
            endpoint_name: message.endpoint.as_deref(),
            queue_name: message.queue.as_deref(),
            schedule_id: message.schedule_id.as_deref(),
            caller: Caller::of(message.caller_ip.as_deref()),
            labels: Labels::of(&message.labels),
            options: Delivery::of(&message.options),
        }
    }
}

/// The publisher's address, under both of its names.
#[derive(Serialize)]
struct Caller<'a> {
    #[serde(rename = "callerIP", skip_serializing_if = "Option::is_none")]
    upper: Option<&'a str>,
    #[serde(rename = "callerIp", skip_serializing_if = "Option::is_none")]
    lower: Option<&'a str>,
}

impl<'a> Caller<'a> {
    const fn of(ip: Option<&'a str>) -> Self {
        Self { upper: ip, lower: ip }
    }
}

#[derive(Serialize)]
struct Labels<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    labels: &'a [String],
}

impl<'a> Labels<'a> {
    fn of(labels: &'a [String]) -> Self {
        Self { label: labels.first().map(String::as_str), labels }
    }
}

/// How a message is delivered.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Delivery<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_delay_expression: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_callback: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_control_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallelism: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    period: Option<u32>,
}

impl<'a> Delivery<'a> {
    fn of(options: &'a Options) -> Self {
        let url = |spec: &'a Option<Box<CallbackSpec>>| spec.as_ref().map(|spec| spec.url.as_str());
        let flow = options.flow_control.as_ref();
        Self {
            api: options.api.as_deref(),
            retry_delay_expression: options.retry_delay.as_deref(),
            callback: url(&options.callback),
            failure_callback: url(&options.failure_callback),
            flow_control_key: flow.map(|flow| flow.key.as_str()),
            parallelism: flow.and_then(|flow| flow.parallelism),
            rate: flow.and_then(|flow| flow.rate),
            period: flow.map(|flow| flow.period_s),
        }
    }
}

/// The headers of a message's callbacks. The log has other names for them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallbackHeaders<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_header: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_callback_header: Option<HeaderMap<'a>>,
}

impl<'a> CallbackHeaders<'a> {
    fn of(options: &'a Options) -> Self {
        let headers = |spec: &'a Option<Box<CallbackSpec>>| {
            spec.as_ref().and_then(|spec| HeaderMap::redacted(&spec.headers, &options.redact))
        };
        Self {
            callback_header: headers(&options.callback),
            failure_callback_header: headers(&options.failure_callback),
        }
    }
}

/// Names to arrays of values, hidden values replaced.
struct HeaderMap<'a> {
    headers: &'a Headers,
    redact: Option<&'a Redact>,
}

impl<'a> HeaderMap<'a> {
    /// `None` where there are no headers.
    fn redacted(headers: &'a Headers, redact: &'a Redact) -> Option<Self> {
        (!headers.is_empty()).then_some(Self { headers, redact: Some(redact) })
    }

    const fn plain(headers: &'a Headers) -> Self {
        Self { headers, redact: None }
    }
}

impl Serialize for HeaderMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map: BTreeMap<&str, Vec<Cow<'_, str>>> = BTreeMap::new();
        for (name, value) in self.headers.iter() {
            let shown = match self.redact {
                Some(redact) if redact.hides_header(name) => marker(value).into(),
                _ => header_text(value),
            };
            map.entry(name).or_default().push(shown);
        }
        serializer.collect_map(map)
    }
}

/// Bytes as base64.
struct Base64<'a>(Cow<'a, [u8]>);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(&self.0, &STANDARD))
    }
}

/// A body as text when it is UTF-8, else as base64; neither when it is empty.
fn text_or_base64(body: &[u8]) -> (Option<Cow<'_, str>>, Option<Base64<'_>>) {
    match std::str::from_utf8(body) {
        Ok("") => (None, None),
        Ok(text) => (Some(text.into()), None),
        Err(_) => (None, Some(Base64(body.into()))),
    }
}

/// A message's body, or the mark that is shown in its place.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<Base64<'a>>,
}

impl<'a> Body<'a> {
    fn of(body: &'a [u8], redact: &Redact) -> Self {
        let (body, body_base64) = if redact.body && !body.is_empty() {
            (Some(marker(body).into()), None)
        } else {
            text_or_base64(body)
        };
        Self { body, body_base64 }
    }
}

/// A message.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageJson<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    #[serde(flatten)]
    callbacks: CallbackHeaders<'a>,
    header: HeaderMap<'a>,
    #[serde(flatten)]
    body: Body<'a>,
    not_before: i64,
    created_at: i64,
}

/// `GET /v2/messages/{id}`.
pub fn message(message: &Message) -> impl Serialize {
    MessageJson {
        common: Common::of(message),
        callbacks: CallbackHeaders::of(&message.options),
        header: HeaderMap { headers: &message.headers, redact: Some(&message.options.redact) },
        body: Body::of(&message.body, &message.options.redact),
        not_before: message.due_at.as_millis(),
        created_at: message.created_at.as_millis(),
    }
}

/// A dead letter.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeadLetterJson<'a, M> {
    #[serde(flatten)]
    message: M,
    dlq_id: &'a str,
    response_status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_header: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_body: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_body_base64: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// A dead letter with its message.
fn dead_letter(letter: &DeadLetter) -> impl Serialize {
    let response = letter.response.as_ref();
    let (text, base64) = text_or_base64(response.map_or(&[], |response| &response.body));
    DeadLetterJson {
        message: message(&letter.message),
        dlq_id: letter.id.as_str(),
        response_status: response.map_or(0, |response| response.status),
        response_header: response.map(|response| HeaderMap::plain(&response.headers)),
        response_body: text,
        response_body_base64: base64,
        error: letter.error.as_deref().filter(|_| response.is_none()),
    }
}

impl Shown for DeadLetter {
    fn shown(&self) -> impl Serialize {
        dead_letter(self)
    }
}

/// An entry of the log.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LogEntryJson<'a> {
    time: i64,
    state: &'a str,
    #[serde(flatten)]
    common: Common<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_headers: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_callback_headers: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_delivery_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    /// In milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
    /// `retryDelayExpression` under its other name.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_delay_expr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_header: Option<HeaderMap<'a>>,
    /// `responseHeader` under its other name.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_headers: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_body: Option<Base64<'a>>,
}

/// An entry of the log, bodies cut to that many bytes.
pub fn log_entry(entry: &LogEntry, trim: Option<usize>) -> impl Serialize {
    let cut = move |body: &'_ [u8]| body.len().min(trim.unwrap_or(usize::MAX));
    let Message { headers, body, options, .. } = &*entry.message;
    let CallbackHeaders { callback_header, failure_callback_header } = CallbackHeaders::of(options);
    let response = entry.response.as_ref();
    let without_response = matches!(entry.state, State::Error | State::Failed).then_some(0);
    let response_headers = || response.map(|response| HeaderMap::plain(&response.headers));
    LogEntryJson {
        time: entry.time.as_millis(),
        state: state_name(entry.state),
        common: Common::of(&entry.message),
        callback_headers: callback_header,
        failure_callback_headers: failure_callback_header,
        header: HeaderMap::redacted(headers, &options.redact),
        body: (!body.is_empty()).then(|| {
            let hidden = options.redact.body.then(|| marker(body).into_bytes());
            Base64(hidden.map_or_else(|| body[..cut(body)].into(), Cow::Owned))
        }),
        next_delivery_time: entry.next_due_at.map(Timestamp::as_millis),
        error: entry.error.as_deref(),
        timeout: options.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        retry_delay_expr: options.retry_delay.as_deref(),
        response_status: response.map(|response| response.status).or(without_response),
        response_header: response_headers(),
        response_headers: response_headers(),
        response_body: response
            .filter(|response| !response.body.is_empty())
            .map(|Response { body, .. }| Base64(body[..cut(body)].into())),
    }
}

/// An entry of the log, and to how many bytes bodies are cut.
impl Shown for (LogEntry, Option<usize>) {
    fn shown(&self) -> impl Serialize {
        log_entry(&self.0, self.1)
    }
}

/// The entries of one message, and to how many bytes bodies are cut.
impl Shown for (Vec<LogEntry>, Option<usize>) {
    fn shown(&self) -> impl Serialize {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Group<'a, E> {
            message_id: &'a str,
            events: Vec<E>,
        }
        let (entries, trim) = self;
        Group {
            message_id: entries.first().map_or("", |entry| entry.message.id.as_str()),
            events: entries.iter().map(|entry| log_entry(entry, *trim)).collect(),
        }
    }
}
