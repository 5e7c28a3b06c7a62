//! The JSON of workflow runs: their stories, and the dead letters that have ended them.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::super::workflow_log::TOLD;
use super::{HeaderMap, Labels, Shown, dead_letter, log_entry};
use crate::domain::id::DeadLetterId;
use crate::domain::message::{Headers, Redact};
use crate::domain::outcome::Response;
use crate::domain::run::Told;
use crate::domain::run::story::{
    CallStory, Detail, Failure, Group, NextStep, RunAttempt, RunMessage, StepState, StepStory, View, cut,
};
use crate::domain::time::Timestamp;
use crate::operations::run_letters::RunLetter;
use crate::operations::stories::{RunEvent, ToldRun};

/// A run with its steps.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunJson<'a> {
    workflow_run_id: &'a str,
    workflow_url: &'a str,
    workflow_state: &'static str,
    workflow_run_created_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_run_completed_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_run_caller_ip: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_run_response: Option<String>,
    #[serde(flatten)]
    labels: Labels<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_control_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoker: Option<InvokerJson<'a>>,
    steps: Vec<GroupJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dlq_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_function: Option<FailureJson<'a>>,
}

#[derive(Serialize)]
struct InvokerJson<'a> {
    #[serde(rename = "workflowRunId")]
    id: &'a str,
    #[serde(rename = "workflowUrl")]
    url: &'a str,
    #[serde(rename = "workflowRunCreatedAt")]
    created_at: i64,
}

#[derive(Serialize)]
struct GroupJson<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    steps: Vec<StepJson<'a>>,
}

/// A step of any kind; each has some of the fields.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct StepJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    step_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_type: Option<&'static str>,
    message_id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrent: Option<u64>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_delay: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_delivery_time: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sleep_for: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sleep_until: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_headers: Option<OwnHeaders<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_response_status: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_response_headers: Option<OwnHeaders<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_response_body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_event_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_timeout_duration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_timeout_deadline: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_timeout: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoked_workflow_run_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoked_workflow_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoked_workflow_created_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoked_workflow_run_body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoked_workflow_run_headers: Option<HeaderMap<'a>>,
}

/// Headers that the story has made itself.
struct OwnHeaders<'a>(Headers, Option<&'a Redact>);

impl Serialize for OwnHeaders<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        HeaderMap { headers: &self.0, redact: self.1 }.serialize(serializer)
    }
}

/// An attempt that has failed.
#[derive(Serialize)]
struct ErrorJson<'a> {
    error: &'a str,
    status: u16,
    headers: HeaderMap<'a>,
    body: String,
    time: i64,
}

impl<'a> ErrorJson<'a> {
    fn of(attempt: &'a RunAttempt, view: &View) -> Self {
        let (status, headers, body) = answer(attempt.response.as_ref(), view);
        let error = attempt.error.as_deref().unwrap_or_default();
        Self { error, status, headers, body, time: attempt.ended_at.as_millis() }
    }

    fn all(attempts: &[&'a RunAttempt], view: &View) -> Vec<Self> {
        attempts.iter().map(|attempt| Self::of(attempt, view)).collect()
    }
}

/// The parts of an answer; status 0 without one.
fn answer<'a>(response: Option<&'a Response>, view: &View) -> (u16, HeaderMap<'a>, String) {
    const NONE: &Headers = &Headers::new();
    match response {
        None => (0, HeaderMap::plain(NONE), String::new()),
        Some(Response { status, headers, body }) => {
            (*status, HeaderMap::plain(headers), cut(body, view.max_text))
        }
    }
}

/// How whoever was to be told of the failure was told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FailureJson<'a> {
    message_id: &'a str,
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dlq_id: Option<&'a str>,
    fail_status: u16,
    fail_headers: HeaderMap<'a>,
    fail_response: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_headers: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_body: Option<String>,
    errors: Vec<ErrorJson<'a>>,
    max_retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_delivery_time: Option<i64>,
}

impl<'a> FailureJson<'a> {
    fn of(failure: &Failure<'a>, view: &View) -> Self {
        let callback = failure.callback;
        let (fail_status, fail_headers, fail_response) =
            answer(failure.cause.and_then(|cause| cause.response.as_ref()), view);
        let last = callback.attempts.last().map(|attempt| answer(attempt.response.as_ref(), view));
        let (response_status, response_headers, response_body) = last
            .map_or((None, None, None), |(status, headers, body)| (Some(status), Some(headers), Some(body)));
        Self {
            message_id: callback.message.id.as_str(),
            url: &callback.message.url,
            state: told_name(failure.told),
            dlq_id: failure.dead_letter.map(DeadLetterId::as_str),
            fail_status,
            fail_headers,
            fail_response,
            response_status,
            response_headers,
            response_body,
            errors: ErrorJson::all(&failure.errors, view),
            max_retries: callback.message.max_retries,
            next_delivery_time: next_delivery(callback),
        }
    }
}

/// The name of how far telling is; `None`: there is nobody to tell.
fn told_name(told: Option<Told>) -> Option<&'static str> {
    TOLD.iter().find(|(have, _)| *have == told).map(|(_, name)| *name)
}

/// When a message goes that waits.
fn next_delivery(sent: &RunMessage) -> Option<i64> {
    sent.pending.filter(|pending| !pending.leased).map(|pending| pending.due_at.as_millis())
}

const fn state_name(state: StepState) -> &'static str {
    match state {
        StepState::Progress => "STEP_PROGRESS",
        StepState::Success => "STEP_SUCCESS",
        StepState::Retry => "STEP_RETRY",
        StepState::Failed => "STEP_FAILED",
        StepState::Cancelled => "STEP_CANCELED",
    }
}

impl<'a> StepJson<'a> {
    fn of(step: StepStory<'a>, view: &'a View) -> Self {
        let errors = ErrorJson::all(&step.errors, view);
        let waits = matches!(step.state, StepState::Progress | StepState::Retry);
        let json = Self {
            step_id: step.id,
            step_name: Some(Cow::Owned(step.name)),
            step_type: Some(step.kind),
            call_type: Some(step.call_type.as_str()),
            message_id: match step.message {
                Cow::Borrowed(id) => Cow::Borrowed(id.as_str()),
                Cow::Owned(id) => Cow::Owned(id.as_str().to_owned()),
            },
            out: step.out,
            concurrent: Some(step.concurrent),
            state: state_name(step.state),
            created_at: Some(step.created_at.as_millis()),
            headers: step.headers.map(|headers| HeaderMap { headers, redact: Some(&view.redact) }),
            retries: step.delivery.map(|sent| sent.message.max_retries),
            retry_delay: step.delivery.and_then(|sent| sent.message.options.retry_delay.as_deref()),
            next_delivery_time: step.delivery.filter(|_| waits).and_then(next_delivery),
            errors,
            ..Self::default()
        };
        json.with(step.detail)
    }

    fn with(self, detail: Detail<'a>) -> Self {
        match detail {
            Detail::None => self,
            Detail::SleepFor(value) => Self { sleep_for: Some(value), ..self },
            Detail::SleepUntil(value) => Self { sleep_until: Some(value), ..self },
            Detail::Call(call) => self.with_call(call),
            Detail::Wait { event_id, timeout, deadline, timed_out } => Self {
                wait_event_id: Some(event_id),
                wait_timeout_duration: Some(timeout),
                wait_timeout_deadline: deadline.map(Timestamp::as_millis),
                wait_timeout: timed_out,
                ..self
            },
            Detail::Invoke { child, payload } => Self {
                invoked_workflow_run_id: Some(&child.id),
                invoked_workflow_url: Some(&child.url),
                invoked_workflow_created_at: Some(child.created_at.as_millis()),
                invoked_workflow_run_body: Some(payload),
                invoked_workflow_run_headers: Some(HeaderMap {
                    headers: &child.trigger.headers,
                    redact: Some(&child.trigger.options.redact),
                }),
                ..self
            },
        }
    }

    fn with_call(self, CallStory { url, method, headers, body, answer, redact }: CallStory<'a>) -> Self {
        let (status, response_headers, response_body) = match answer {
            None => (None, None, None),
            Some(answer) => (Some(answer.status), Some(OwnHeaders(answer.headers, None)), Some(answer.body)),
        };
        Self {
            call_url: Some(url),
            call_method: Some(method),
            call_headers: Some(OwnHeaders(headers, Some(redact))),
            call_body: Some(body),
            call_response_status: status,
            call_response_headers: response_headers,
            call_response_body: response_body,
            ..self
        }
    }

    fn next(next: NextStep<'a>, view: &View) -> Self {
        let message = &next.delivery.message;
        Self {
            step_name: next.name.map(Cow::Owned),
            message_id: Cow::Borrowed(message.id.as_str()),
            state: state_name(next.state),
            retries: Some(message.max_retries),
            retry_delay: message.options.retry_delay.as_deref(),
            next_delivery_time: next_delivery(next.delivery),
            errors: ErrorJson::all(&next.errors, view),
            ..Self::default()
        }
    }
}

impl<'a> GroupJson<'a> {
    fn of(group: Group<'a>, view: &'a View) -> Self {
        match group {
            Group::One(step) => Self { kind: "sequential", steps: vec![StepJson::of(*step, view)] },
            Group::Parallel(steps) => Self {
                kind: "parallel",
                steps: steps.into_iter().map(|step| StepJson::of(step, view)).collect(),
            },
            Group::Next(steps) => Self {
                kind: "next",
                steps: steps.into_iter().map(|step| StepJson::next(step, view)).collect(),
            },
        }
    }
}

impl Shown for ToldRun {
    fn shown(&self) -> impl Serialize {
        let (run, view, story) = (&self.run, self.view(), self.story());
        let result = run.end.as_ref().and_then(|end| end.result.as_ref());
        RunJson {
            workflow_run_id: &run.id,
            workflow_url: &run.url,
            workflow_state: run.state.as_str(),
            workflow_run_created_at: run.created_at.as_millis(),
            workflow_run_completed_at: run.end.as_ref().map(|end| end.at.as_millis()),
            workflow_run_caller_ip: run.caller_ip.as_deref(),
            workflow_run_response: result.map(|result| view.text(&view.redact, result)),
            labels: Labels::of(&run.labels),
            flow_control_key: run.trigger.options.flow_control.as_ref().map(|flow| flow.key.as_str()),
            invoker: run.invoker.as_ref().map(|invoker| InvokerJson {
                id: &invoker.run_id,
                url: &invoker.url,
                created_at: invoker.created_at.as_millis(),
            }),
            failure_function: story.failure.as_ref().map(|failure| FailureJson::of(failure, view)),
            dlq_id: run.end.as_ref().and_then(|end| end.dead_letter.as_ref().map(DeadLetterId::as_str)),
            steps: story.groups.into_iter().map(|group| GroupJson::of(group, view)).collect(),
        }
    }
}

/// A dead letter that has ended a run.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunLetterJson<'a, L> {
    #[serde(flatten)]
    letter: L,
    workflow_run_id: &'a str,
    workflow_created_at: i64,
    workflow_url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_function_state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_callback_info: Option<CallbackInfo<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallbackInfo<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_headers: Option<HeaderMap<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_body: Option<String>,
}

impl Shown for RunLetter {
    fn shown(&self) -> impl Serialize {
        let Self { letter, run, telling } = self;
        let told = run.end.as_ref().and_then(|end| end.telling.as_ref()).map(|telling| telling.told);
        let state = told.and_then(told_name);
        let last = telling.as_ref().and_then(|sent| sent.attempts.last());
        let response = last.and_then(|attempt| attempt.response.as_ref());
        RunLetterJson {
            letter: dead_letter(letter),
            workflow_run_id: &run.id,
            workflow_created_at: run.created_at.as_millis(),
            workflow_url: &run.url,
            failure_function_state: state,
            failure_callback_info: state.map(|state| CallbackInfo {
                state,
                response_status: last.map(|_| response.map_or(0, |response| response.status)),
                response_headers: response.map(|response| HeaderMap::plain(&response.headers)),
                response_body: response.map(|response| String::from_utf8_lossy(&response.body).into_owned()),
            }),
        }
    }
}

/// An entry of the log of runs' messages, and to how many bytes bodies are cut.
impl Shown for (RunEvent, Option<usize>) {
    fn shown(&self) -> impl Serialize {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct EventJson<'a, E> {
            #[serde(flatten)]
            entry: E,
            workflow_run_id: &'a str,
            workflow_url: &'a str,
            workflow_created_at: i64,
        }
        let (RunEvent { entry, run }, trim) = self;
        EventJson {
            entry: log_entry(entry, *trim),
            workflow_run_id: &run.id,
            workflow_url: &run.url,
            workflow_created_at: run.created_at.as_millis(),
        }
    }
}
