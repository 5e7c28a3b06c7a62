//! Entries as stories need them: what a large one holds is cut when it is read, so that a long log takes little memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::super::id::MessageId;
use super::super::super::message::{Headers, Redact};
use super::super::super::time::Timestamp;
use super::super::step::Step;
use super::super::{CallType, Entry};
use super::{CallAnswer, View};

/// An entry as far as a story tells it.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    pub(super) position: u32,
    pub(super) message: MessageId,
    pub(super) call_type: CallType,
    pub(super) created_at: Timestamp,
    pub(super) kind: Kind,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Kind {
    Payload(String),
    Step(Box<Fields>),
    /// A plan for the step of that number.
    Plan(u64, Box<Fields>),
    /// A request to a third party, or its answer, with the number of the step.
    Called(Option<u64>, Box<Called>),
    /// Nothing that a story tells.
    Unknown,
}

/// What is told of a step.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Fields {
    pub(super) id: u64,
    pub(super) target: Option<u64>,
    pub(super) name: String,
    pub(super) step_type: String,
    pub(super) concurrent: u64,
    pub(super) out: Option<String>,
    pub(super) sleep_for: Option<Value>,
    pub(super) sleep_until: Option<Value>,
    /// The event's id, and for how long.
    pub(super) wait: Option<(String, String)>,
    pub(super) timed_out: bool,
    /// URL, method and body of a call that is planned.
    pub(super) planned_call: Option<(String, String, String)>,
    pub(super) planned_headers: Headers,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            id: 0,
            target: None,
            name: String::new(),
            step_type: String::new(),
            concurrent: 1,
            out: None,
            sleep_for: None,
            sleep_until: None,
            wait: None,
            timed_out: false,
            planned_call: None,
            planned_headers: Headers::new(),
        }
    }
}

/// What an entry tells of a call; `None`: it does not tell it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Called {
    pub(super) url: Option<String>,
    pub(super) method: Option<String>,
    pub(super) headers: Option<Headers>,
    pub(super) body: Option<String>,
    pub(super) answer: Option<CallAnswer>,
}

/// The part of a callback that a story tells.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notice {
    status: u64,
    #[serde(default)]
    header: Map<String, Value>,
    #[serde(default)]
    body: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    method: String,
    #[serde(default)]
    source_header: Map<String, Value>,
    #[serde(default)]
    source_body: String,
}

impl Line {
    /// Reads an entry.
    pub fn of(entry: &Entry, view: &View) -> Self {
        let kind = match entry.call_type {
            CallType::Step if entry.position == 0 => Kind::Payload(view.text(&view.redact, &entry.body)),
            CallType::Step => match Step::parse(&entry.body) {
                Ok(step) => {
                    let fields = Box::new(Fields::of(&step, view));
                    match step.target() {
                        Some(target) => Kind::Plan(target, fields),
                        None => Kind::Step(fields),
                    }
                }
                Err(_) => Kind::Unknown,
            },
            CallType::ToCallback | CallType::FromCallback => {
                let step_id = entry.key.as_deref().and_then(|key| key.split_once(':')?.1.parse().ok());
                let redact = step_id.map_or(&view.redact, |id| view.of_step(id));
                let called = if entry.call_type == CallType::ToCallback {
                    Some(Called { body: Some(view.text(redact, &entry.body)), ..Called::default() })
                } else {
                    Called::answered(&entry.body, redact, view)
                };
                called.map_or(Kind::Unknown, |called| Kind::Called(step_id, Box::new(called)))
            }
        };
        let Entry { position, message, call_type, created_at, .. } = entry;
        Self {
            position: *position,
            message: message.clone(),
            call_type: *call_type,
            created_at: *created_at,
            kind,
        }
    }

    /// Bytes that it takes in memory, roughly.
    pub fn size(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        400 + match &self.kind {
            Kind::Payload(out) => out.len(),
            Kind::Step(fields) | Kind::Plan(_, fields) => {
                let planned = fields.planned_call.as_ref().map_or(0, |(url, _, body)| url.len() + body.len());
                text(&fields.out) + fields.name.len() + planned + fields.planned_headers.size()
            }
            Kind::Called(_, called) => {
                let answer =
                    called.answer.as_ref().map_or(0, |answer| answer.body.len() + answer.headers.size());
                text(&called.body)
                    + text(&called.url)
                    + called.headers.as_ref().map_or(0, Headers::size)
                    + answer
            }
            Kind::Unknown => 0,
        }
    }
}

impl Called {
    fn answered(body: &[u8], redact: &Redact, view: &View) -> Option<Self> {
        let notice: Notice = serde_json::from_slice(body).ok()?;
        let decoded = |text: &str| view.text(redact, &STANDARD.decode(text).unwrap_or_default());
        Some(Self {
            headers: Some(headers(&notice.source_header)),
            body: Some(decoded(&notice.source_body)),
            answer: Some(CallAnswer {
                status: notice.status,
                headers: headers(&notice.header),
                body: decoded(&notice.body),
            }),
            url: Some(notice.url),
            method: Some(notice.method),
        })
    }
}

/// Headers from a JSON object of lists of texts, or of texts.
fn headers(fields: &Map<String, Value>) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in fields {
        let values = value.as_array().map_or_else(|| vec![value], |values| values.iter().collect());
        for text in values.into_iter().filter_map(Value::as_str) {
            headers.append(name, text);
        }
    }
    headers
}

impl Fields {
    /// Reads a step.
    pub(super) fn of(step: &Step, view: &View) -> Self {
        let owned = |name: &str| step.text(name).unwrap_or_default().to_owned();
        let id = step.target().unwrap_or_else(|| step.id());
        let redact = view.of_step(id);
        let text = |value: &Value| match value {
            Value::String(text) => view.text(redact, text.as_bytes()),
            other => view.text(redact, other.to_string().as_bytes()),
        };
        let small =
            |name: &str| step.field(name).filter(|value| value.is_number() || value.is_string()).cloned();
        Self {
            id: step.id(),
            target: step.target(),
            name: owned("stepName"),
            step_type: owned("stepType"),
            concurrent: step.number("concurrent").unwrap_or(1),
            out: step.field("out").map(text),
            sleep_for: small("sleepFor"),
            sleep_until: small("sleepUntil"),
            wait: step.text("waitEventId").map(|event_id| (event_id.to_owned(), owned("timeout"))),
            timed_out: step.field("waitTimeout") == Some(&Value::Bool(true)),
            planned_call: step.text("callUrl").map(|url| {
                let body = step.field("callBody").map(text).unwrap_or_default();
                (url.to_owned(), owned("callMethod"), body)
            }),
            planned_headers: step
                .field("callHeaders")
                .and_then(Value::as_object)
                .map(headers)
                .unwrap_or_default(),
        }
    }
}
