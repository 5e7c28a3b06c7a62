//! Submissions: what an endpoint, or whoever triggers a run, asks to be appended or begun, and the message that comes of it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::id::{InstanceId, MessageId};
use super::super::message::{Headers, Message, Method, Options};
use super::super::signature::body_sha256;
use super::super::time::Timestamp;
use super::headers::{forwarded, persisted};
use super::log::entry_size;
use super::step::{self, Step};
use super::{CallType, Features, Invoker, Kind, NewEntry, NewRun, Part, Run, Trigger};

/// What the headers of a message say of its run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Submission {
    pub run_id: String,
    /// The run's URL, by which it is known in logs; `None`: the destination.
    pub url: Option<String>,
    pub action: Action,
    pub features: Features,
    /// When the run began that is meant, in Unix milliseconds, where that is told.
    pub created_at: Option<i64>,
}

/// The kinds of submissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A run begins.
    Begin,
    /// A run begins, for another one that waits for its result.
    Invoke,
    /// The SDK of a run that was begun by plain HTTP tells of itself, and begins it once more.
    BeginBySdk,
    /// A step's result, or a plan.
    Step,
    /// A request to a third party.
    Call,
}

/// A message's parts that have nothing to do with its run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub id: MessageId,
    pub now: Timestamp,
    pub due_at: Timestamp,
    pub url: String,
    pub method: Method,
    /// The content type and the forwarded headers.
    pub headers: Headers,
    pub body: Bytes,
    pub max_retries: u32,
    pub labels: Vec<String>,
    pub caller_ip: Option<String>,
    pub options: Options,
}

impl Request {
    fn message(&self, part: Part, headers: Headers, options: Options) -> Message {
        Message {
            due_at: self.due_at,
            headers,
            max_retries: self.max_retries,
            caller_ip: self.caller_ip.clone(),
            run: Some(part),
            options,
            ..Message::plain(self.id.clone(), self.now, &self.url, Bytes::new())
        }
    }

    /// The options of a message to a run's endpoint, where it brings its own.
    fn own_options(&self) -> Options {
        Options { callback: None, api: None, ..self.options.clone() }
    }
}

/// The run that a request begins, and its first message.
pub fn begin(submission: &Submission, request: Request, invoker: Option<Invoker>) -> (Message, NewRun) {
    let part = Part {
        instance: InstanceId::begun_by(&request.id),
        kind: Kind::Step,
        log_size: entry_size(request.body.len()),
    };
    let options = request.own_options();
    let mut first = options.clone();
    if submission.features.trigger_on_config {
        // The run has it.
        first.failure_callback = None;
    }
    let message = request.message(part, forwarded(&request.headers), first);
    let trigger = Trigger {
        headers: persisted(&request.headers),
        max_retries: request.max_retries,
        options,
        features: submission.features,
    };
    let new = NewRun {
        id: submission.run_id.clone(),
        url: submission.url.clone().unwrap_or_else(|| request.url.clone()),
        labels: request.labels,
        caller_ip: request.caller_ip,
        trigger,
        invoker,
        payload: request.body,
    };
    (message, new)
}

/// The message that begins a run once more which was begun by plain HTTP, and what its trigger is from then on. It has no
/// entry: the payload is the run's first one.
pub fn begin_by_sdk(run: &Run, submission: &Submission, request: Request) -> (Message, Trigger) {
    let (mut message, new) = begin(submission, request, None);
    let trigger = run.trigger.completed(new.trigger);
    message.run = Some(Part {
        instance: run.instance.clone(),
        kind: Kind::Step,
        log_size: entry_size(new.payload.len()),
    });
    message.max_retries = trigger.max_retries;
    message.options.flow_control.clone_from(&trigger.options.flow_control);
    message.options.retry_delay.clone_from(&trigger.options.retry_delay);
    (message, trigger)
}

/// The message of a step, with its entry; the error says what is wrong with the step. `known` is how many bytes of the log are
/// known.
pub fn step(run: &Run, request: Request, known: usize) -> Result<(Message, NewEntry), String> {
    let step = Step::parse(&request.body)?;
    let log_size = known + entry_size(request.body.len());
    let part = Part { instance: run.instance.clone(), kind: Kind::Step, log_size };
    let options = request.own_options();
    let mut message = request.message(part, forwarded(&request.headers), options);
    if run.trigger.features.trigger_on_config {
        configure(&mut message, run);
    }
    let entry = NewEntry { call_type: CallType::Step, key: Some(step.key()), body: request.body };
    Ok((message, entry))
}

/// Gives a message what the run's trigger says of all of them.
pub fn configure(message: &mut Message, run: &Run) {
    let options = &run.trigger.options;
    message.max_retries = run.trigger.max_retries;
    message.options = Options {
        retry_delay: options.retry_delay.clone(),
        flow_control: options.flow_control.clone(),
        redact: options.redact.clone(),
        ..Options::default()
    };
}

/// The message to a third party, with its entry.
pub fn call(run: &Run, request: Request) -> Result<(Message, NewEntry), String> {
    let Some(spec) = request.options.callback.as_deref() else {
        return Err("a call needs Upstash-Callback, where its result goes".to_owned());
    };
    let key = spec.headers.get("Upstash-Workflow-StepId").map(|step_id| step::call_key(&step_id));
    let part = Part { instance: run.instance.clone(), kind: Kind::Call, log_size: 0 };
    let mut headers = forwarded(&request.headers);
    if let Some(content_type) = request.headers.get("Content-Type") {
        headers.append("Content-Type", content_type.into_owned());
    }
    let options = Options { failure_callback: None, ..request.options.clone() };
    let mut message = request.message(part, headers, options);
    message.method = request.method;
    message.body_sha256 = body_sha256(&request.body);
    message.body = request.body.clone();
    let entry = NewEntry { call_type: CallType::ToCallback, key, body: request.body };
    Ok((message, entry))
}

/// What an invocation brings beside the request: its body as it is sent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<'a> {
    /// The invoked run's payload.
    body: Option<String>,
    #[serde(default)]
    headers: serde_json::Map<String, serde_json::Value>,
    /// The run that waits.
    pub workflow_run_id: String,
    /// When it began, in Unix milliseconds.
    pub workflow_run_created_at: Option<i64>,
    workflow_url: String,
    #[serde(borrow)]
    step: &'a RawValue,
}

impl<'a> Envelope<'a> {
    /// Reads an envelope; the error says what is missing.
    pub fn parse(body: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| format!("invalid invocation: {error}"))
    }

    /// The payload of the invoked run, and whom its result is for.
    pub fn open(self, parent: &Run) -> Result<(Bytes, Invoker), String> {
        let step = Step::parse(self.step.get().as_bytes())?;
        let invoker = Invoker {
            instance: parent.instance.clone(),
            run_id: parent.id.clone(),
            created_at: parent.created_at,
            url: self.workflow_url,
            step_id: step.id(),
            step: step.as_str().to_owned(),
            headers: forwarded(&forward_headers(&self.headers)),
        };
        Ok((Bytes::from(self.body.unwrap_or_default()), invoker))
    }
}

/// The headers to forward among those of a JSON object, whose values are lists of texts or texts.
pub fn forward_headers(fields: &serde_json::Map<String, serde_json::Value>) -> Headers {
    const PREFIX: &str = "upstash-forward-";
    let mut headers = Headers::new();
    for (name, value) in fields {
        let Some(own) = name.get(PREFIX.len()..).filter(|_| name.to_ascii_lowercase().starts_with(PREFIX))
        else {
            continue;
        };
        let value = value.as_array().and_then(|list| list.last()).unwrap_or(value);
        if let Some(text) = value.as_str() {
            headers.remove(own);
            headers.append(own, text);
        }
    }
    headers
}
