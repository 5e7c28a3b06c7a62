//! The messages that tell a publisher what an attempt came to.
//!
//! A callback is a message like any other. Its JSON body is part of the wire contract, which is why this is the one
//! place of the domain that serialises: both generations of field names, and times and header maps in the types that
//! are really sent.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;

use super::id::{DeadLetterId, MessageId};
use super::message::{CallbackSpec, Headers, Message, Options};
use super::outcome::{Attempt, Outcome};
use super::run::Run;
use super::signature;
use super::time::Timestamp;

/// Makes the message of a callback, or with a dead letter that of a failure callback.
///
/// It is accepted at `now`. Of the response body, `max_body` bytes are carried. Retries are the source's unless `spec`
/// says otherwise; queue, flow control, labels and callbacks are only what `spec` says.
pub fn make(
    source: &Message,
    attempt: &Attempt,
    spec: &CallbackSpec,
    dead_letter: Option<&DeadLetterId>,
    id: MessageId,
    now: Timestamp,
    max_body: usize,
) -> Message {
    let body = notice(source, attempt, dead_letter, None, &source.body, max_body);
    let mut headers = spec.headers.clone();
    if headers.get("Content-Type").is_none() {
        headers.append("Content-Type", "application/json");
    }
    Message {
        id,
        created_at: now,
        due_at: now.after(spec.delay.unwrap_or_default()),
        method: spec.method,
        url: spec.url.clone(),
        headers,
        body_sha256: signature::body_sha256(&body),
        body,
        max_retries: spec.retries.unwrap_or(source.max_retries),
        caller_ip: None,
        labels: spec.labels.clone(),
        queue: None,
        url_group: None,
        endpoint: None,
        schedule_id: None,
        source_id: Some(source.id.clone()),
        run: None,
        options: options(source, spec),
    }
}

/// The body of a callback: what has come of an attempt. Of the response body, `max_body` bytes are carried. `source_body` is
/// what the source was about; in a run, that is not what was sent.
#[expect(clippy::missing_panics_doc, reason = "serialising strings and integers cannot fail")]
pub fn notice(
    source: &Message,
    attempt: &Attempt,
    dead_letter: Option<&DeadLetterId>,
    run: Option<&Run>,
    source_body: &[u8],
    max_body: usize,
) -> Bytes {
    let notice = Notice::new(source, attempt, dead_letter, run, source_body, max_body);
    Bytes::from(serde_json::to_vec(&notice).expect("strings, integers and maps of them serialise"))
}

/// The callback's own options. What the source hides is in the callback's body, so that is hidden as well; and headers
/// that it hides are hidden here too, since a secret for the destination is often one for the callback.
fn options(source: &Message, spec: &CallbackSpec) -> Options {
    let nested = |spec: &Option<Box<CallbackSpec>>| {
        let mut spec = spec.clone()?;
        // One level: a callback's callbacks have none.
        spec.options.callback = None;
        spec.options.failure_callback = None;
        Some(spec)
    };
    let own = &spec.options;
    let mut redact = own.redact.clone();
    redact.add_of_source(&source.options.redact);
    Options {
        timeout: own.timeout,
        retry_delay: own.retry_delay.clone(),
        callback: nested(&own.callback),
        failure_callback: nested(&own.failure_callback),
        redact,
        flow_control: own.flow_control.clone(),
        api: None,
    }
}

/// The body on the wire.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Notice<'a> {
    /// 0 without a response.
    status: u16,
    header: BTreeMap<&'a str, Vec<Cow<'a, str>>>,
    /// The older name of `header`, with joined values.
    headers: BTreeMap<&'a str, String>,
    /// Base64.
    body: String,
    retried: u32,
    max_retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    dlq_id: Option<&'a str>,
    source_message_id: &'a str,
    /// The older name of `sourceMessageId`, spelt as it was.
    #[serde(rename = "sourceMessasgeId")]
    source_message_id_misspelt: &'a str,
    url: &'a str,
    method: &'a str,
    source_header: BTreeMap<&'a str, Vec<Cow<'a, str>>>,
    /// Base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    source_body: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_name: Option<&'a str>,
    /// Unix milliseconds.
    not_before: i64,
    /// Unix milliseconds.
    created_at: i64,
    #[serde(rename = "callerIP", skip_serializing_if = "Option::is_none")]
    caller_ip: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<&'a str>,
    /// Why there was no response.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_run_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_url: Option<&'a str>,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_created_at: Option<i64>,
}

impl<'a> Notice<'a> {
    fn new(
        source: &'a Message,
        attempt: &'a Attempt,
        dead_letter: Option<&'a DeadLetterId>,
        run: Option<&'a Run>,
        source_body: &[u8],
        max_body: usize,
    ) -> Self {
        let (response, error) = match &attempt.outcome {
            Outcome::Response(response) => (Some(response), None),
            Outcome::NoResponse { error, .. } | Outcome::Unsendable { error, .. } => {
                (None, Some(error.as_str()))
            }
        };
        let header = response.map(|response| grouped(&response.headers)).unwrap_or_default();
        let body = match (response, error) {
            (Some(response), _) => &response.body[..response.body.len().min(max_body)],
            // The endpoint's function sees no more than the status and this.
            (None, Some(error)) if run.is_some() => error.as_bytes(),
            (None, _) => &[],
        };
        Self {
            status: response.map_or(0, |response| response.status),
            headers: header.iter().map(|(name, values)| (*name, values.join(", "))).collect(),
            header,
            body: STANDARD.encode(body),
            retried: attempt.retried,
            max_retries: source.max_retries,
            dlq_id: dead_letter.map(DeadLetterId::as_str),
            source_message_id: source.id.as_str(),
            source_message_id_misspelt: source.id.as_str(),
            url: &source.url,
            method: source.method.as_str(),
            source_header: grouped(&source.headers),
            source_body: STANDARD.encode(source_body),
            topic_name: source.url_group.as_deref(),
            endpoint_name: source.endpoint.as_deref(),
            schedule_id: source.schedule_id.as_deref(),
            queue_name: source.queue.as_deref(),
            not_before: source.due_at.as_millis(),
            created_at: source.created_at.as_millis(),
            caller_ip: source.caller_ip.as_deref(),
            api: source.options.api.as_deref(),
            error,
            workflow_run_id: run.map(|run| run.id.as_str()),
            workflow_url: run.map(|run| run.url.as_str()),
            workflow_created_at: run.map(|run| run.created_at.as_millis()),
        }
    }
}

/// Header values as text by name, repeated ones in order.
fn grouped(headers: &Headers) -> BTreeMap<&str, Vec<Cow<'_, str>>> {
    let mut grouped: BTreeMap<&str, Vec<Cow<'_, str>>> = BTreeMap::new();
    for (name, value) in headers.texts() {
        grouped.entry(name).or_default().push(value);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::message::{FlowControl, Method, Redact};
    use super::super::outcome::{FailureClass, Response};
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_005_000);

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append(name, *value);
        }
        headers
    }

    /// A message with nothing optional.
    fn plain() -> Message {
        Message {
            id: MessageId::new("msg_source"),
            created_at: Timestamp::from_millis(1_700_000_000_000),
            due_at: Timestamp::from_millis(1_700_000_000_000),
            method: Method::Post,
            url: "https://e.com/x?y".to_owned(),
            headers: Headers::new(),
            body: Bytes::new(),
            body_sha256: signature::body_sha256(b""),
            max_retries: 3,
            caller_ip: None,
            labels: vec!["a".to_owned()],
            queue: None,
            url_group: None,
            endpoint: None,
            schedule_id: None,
            source_id: None,
            run: None,
            options: Options::default(),
        }
    }

    fn answered(status: u16, headers: Headers, body: &'static str) -> Attempt {
        let outcome =
            Outcome::Response(Response { status, headers, body: Bytes::from_static(body.as_bytes()) });
        Attempt { retried: 0, started_at: NOW, ended_at: NOW, outcome }
    }

    fn spec() -> CallbackSpec {
        CallbackSpec { url: "https://e.com/cb".to_owned(), ..CallbackSpec::default() }
    }

    fn make_with(source: &Message, attempt: &Attempt, spec: &CallbackSpec) -> Message {
        make(source, attempt, spec, None, MessageId::new("msg_new"), NOW, 4)
    }

    fn json_of(message: &Message) -> Value {
        serde_json::from_slice(&message.body).unwrap()
    }

    #[test]
    fn an_optional_field_without_value_is_absent() {
        let message = make_with(&plain(), &answered(200, Headers::new(), ""), &spec());
        assert_eq!(
            json_of(&message),
            json!({
                "status": 200,
                "header": {},
                "headers": {},
                "body": "",
                "retried": 0,
                "maxRetries": 3,
                "sourceMessageId": "msg_source",
                "sourceMessasgeId": "msg_source",
                "url": "https://e.com/x?y",
                "method": "POST",
                "sourceHeader": {},
                "notBefore": 1_700_000_000_000_i64,
                "createdAt": 1_700_000_000_000_i64,
            })
        );
    }

    #[test]
    fn every_field() {
        let source = Message {
            due_at: Timestamp::from_millis(1_700_000_001_000),
            headers: headers(&[("Content-Type", "text/plain"), ("X-A", "1"), ("X-A", "2")]),
            body: Bytes::from_static(b"hello"),
            caller_ip: Some("192.0.2.1".to_owned()),
            queue: Some("q".to_owned()),
            url_group: Some("g".to_owned()),
            endpoint: Some("First endpoint".to_owned()),
            schedule_id: Some("scd_1".to_owned()),
            options: Options { api: Some("llm".to_owned()), ..Options::default() },
            ..plain()
        };
        let attempt = Attempt {
            retried: 3,
            ..answered(500, headers(&[("set-cookie", "a"), ("Set-Cookie", "b")]), "too long")
        };
        let dead_letter = DeadLetterId::new("1700000005000-0");
        let id = MessageId::new("msg_new");
        let message = make(&source, &attempt, &spec(), Some(&dead_letter), id, NOW, 4);
        assert_eq!(
            json_of(&message),
            json!({
                "status": 500,
                "header": {"Set-Cookie": ["a", "b"]},
                "headers": {"Set-Cookie": "a, b"},
                "body": "dG9vIA==",
                "retried": 3,
                "maxRetries": 3,
                "dlqId": "1700000005000-0",
                "sourceMessageId": "msg_source",
                "sourceMessasgeId": "msg_source",
                "url": "https://e.com/x?y",
                "method": "POST",
                "sourceHeader": {"Content-Type": ["text/plain"], "X-A": ["1", "2"]},
                "sourceBody": "aGVsbG8=",
                "topicName": "g",
                "endpointName": "First endpoint",
                "scheduleId": "scd_1",
                "queueName": "q",
                "notBefore": 1_700_000_001_000_i64,
                "createdAt": 1_700_000_000_000_i64,
                "callerIP": "192.0.2.1",
                "api": "llm",
            })
        );
    }

    #[test]
    fn header_values_are_shown_as_utf8_or_latin1() {
        let mut values = Headers::new();
        values.append("X-A", "J\u{f6}rg");
        values.append("X-A", &b"J\xf6rg"[..]);
        let source = Message { headers: values.clone(), ..plain() };
        let json = json_of(&make_with(&source, &answered(200, values, ""), &spec()));
        let shown = json!({"X-A": ["J\u{f6}rg", "J\u{f6}rg"]});
        assert_eq!((&json["header"], &json["sourceHeader"]), (&shown, &shown));
        assert_eq!(json["headers"], json!({"X-A": "J\u{f6}rg, J\u{f6}rg"}));
    }

    #[test]
    fn without_a_response_there_is_an_error() {
        let outcome = Outcome::NoResponse { class: FailureClass::Timeout, error: "too slow".to_owned() };
        let attempt = Attempt { retried: 1, started_at: NOW, ended_at: NOW, outcome };
        let json = json_of(&make_with(&plain(), &attempt, &spec()));
        assert_eq!(
            (&json["status"], &json["error"], &json["body"]),
            (&json!(0), &json!("too slow"), &json!(""))
        );
    }

    #[test]
    fn a_callback_is_a_message_of_its_own() {
        let message = make_with(&plain(), &answered(200, Headers::new(), ""), &spec());
        let expected = Message {
            id: MessageId::new("msg_new"),
            created_at: NOW,
            due_at: NOW,
            url: "https://e.com/cb".to_owned(),
            headers: headers(&[("Content-Type", "application/json")]),
            body_sha256: signature::body_sha256(&message.body),
            body: message.body.clone(),
            labels: Vec::new(),
            source_id: Some(MessageId::new("msg_source")),
            ..plain()
        };
        assert_eq!(message, expected);
    }

    #[test]
    fn its_specification_goes_before_the_defaults() {
        let nested = Some(Box::new(CallbackSpec {
            options: Options { callback: Some(Box::new(spec())), ..Options::default() },
            ..spec()
        }));
        let spec = CallbackSpec {
            method: Method::Get,
            headers: headers(&[("content-type", "text/plain")]),
            retries: Some(0),
            delay: Some(Duration::from_mins(1)),
            labels: vec!["b".to_owned()],
            options: Options {
                timeout: Some(Duration::from_secs(2)),
                retry_delay: Some("5".to_owned()),
                callback: nested,
                flow_control: Some(FlowControl {
                    key: "k".to_owned(),
                    parallelism: Some(1),
                    rate: None,
                    period_s: 1,
                }),
                ..Options::default()
            },
            ..spec()
        };
        let message = make_with(&plain(), &answered(200, Headers::new(), ""), &spec);
        assert_eq!(message.method, Method::Get);
        assert_eq!(message.headers, spec.headers);
        assert_eq!((message.max_retries, message.labels), (0, spec.labels));
        assert_eq!(message.due_at, NOW.after(Duration::from_mins(1)));
        assert_eq!(message.options.timeout, spec.options.timeout);
        assert_eq!(message.options.retry_delay, spec.options.retry_delay);
        assert_eq!(message.options.flow_control, spec.options.flow_control);
        let nested = message.options.callback.unwrap();
        assert_eq!((nested.url.as_str(), &nested.options.callback), ("https://e.com/cb", &None));
    }

    #[test]
    fn what_the_source_hides_is_hidden() {
        for redact in [
            Redact { body: true, ..Redact::default() },
            Redact { all_headers: true, ..Redact::default() },
            Redact { headers: vec!["X".to_owned()], ..Redact::default() },
        ] {
            let expected = Redact { body: true, ..redact.clone() };
            let source = Message { options: Options { redact, ..Options::default() }, ..plain() };
            let message = make_with(&source, &answered(200, Headers::new(), ""), &spec());
            assert_eq!(message.options.redact, expected);
        }
    }
}
