//! A run as users see it: its steps, each with how far it is, and what went wrong. Derived from the log and from what has
//! become of the run's messages, so that nothing is stored for it.
//!
//! [`Line`] reads an entry, [`tell`] puts the story together.

mod lines;
mod telling;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

pub use self::lines::Line;
use self::telling::Teller;
use super::super::id::{DeadLetterId, MessageId};
use super::super::message::{Headers, Message, Redact};
use super::super::outcome::Response;
use super::super::redact::marker;
use super::super::time::Timestamp;
use super::step::Step;
use super::waiting::Waiter;
use super::{CallType, Kind, Run, RunState, Told};

/// A message of a run, and what has become of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunMessage {
    pub message: Message,
    /// `None`: it has ended, or the run has ended before it.
    pub pending: Option<Pending>,
    /// Those that have ended, in order.
    pub attempts: Vec<RunAttempt>,
}

/// A message's delivery that has not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending {
    pub due_at: Timestamp,
    /// Whether a node has it.
    pub leased: bool,
}

/// An attempt that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunAttempt {
    pub ended_at: Timestamp,
    pub result: AttemptResult,
    pub error: Option<String>,
    /// As the log keeps it.
    pub response: Option<Response>,
}

/// The state that an attempt has left its message in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttemptResult {
    Delivered,
    Retry,
    Failed,
    Cancelled,
}

impl RunMessage {
    /// The message's part in its run.
    pub fn kind(&self) -> Option<Kind> {
        self.message.run.as_ref().map(|part| part.kind)
    }

    /// Whether it has arrived.
    pub fn is_delivered(&self) -> bool {
        self.attempts.last().is_some_and(|attempt| attempt.result == AttemptResult::Delivered)
    }

    /// The step for which a call, its answer or a wait's end is.
    pub fn step_id(&self) -> Option<u64> {
        const NAME: &str = "Upstash-Workflow-StepId";
        match self.kind()? {
            Kind::Call => self.message.options.callback.as_ref()?.headers.get(NAME)?.parse().ok(),
            Kind::CallResult => self.message.headers.get(NAME)?.parse().ok(),
            Kind::Timeout => Some(Step::parse(&self.message.body).ok()?.id()),
            Kind::Step | Kind::FailureCallback => None,
        }
    }

    /// How far a step is that ends with this message.
    fn state(&self, run: &Run) -> StepState {
        let last = self.attempts.last().map(|attempt| attempt.result);
        match last {
            Some(AttemptResult::Delivered) => StepState::Success,
            Some(AttemptResult::Failed) => StepState::Failed,
            Some(AttemptResult::Cancelled) => StepState::Cancelled,
            _ if run.state != RunState::Started || self.pending.is_none() => StepState::Cancelled,
            Some(AttemptResult::Retry) => StepState::Retry,
            None => StepState::Progress,
        }
    }

    fn errors(&self) -> Vec<&RunAttempt> {
        self.attempts.iter().filter(|attempt| attempt.result != AttemptResult::Delivered).collect()
    }
}

/// A run that another one has invoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Child {
    pub run: Run,
    pub payload: Bytes,
}

/// How texts and headers are shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// What the run hides.
    pub redact: Redact,
    /// What single calls hide beside that, by their steps.
    pub calls: BTreeMap<u64, Redact>,
    /// Bytes of each text that are shown.
    pub max_text: usize,
}

impl View {
    /// The view of a run with these messages.
    pub fn new(run: &Run, messages: &[RunMessage], max_text: usize) -> Self {
        let redact = run.trigger.options.redact.clone();
        let mut calls: BTreeMap<u64, Redact> = BTreeMap::new();
        for sent in messages.iter().filter(|sent| sent.kind() == Some(Kind::Call)) {
            if let Some(step_id) = sent.step_id() {
                let hidden = calls.entry(step_id).or_insert_with(|| redact.clone());
                hidden.add(&sent.message.options.redact);
            }
        }
        Self { redact, calls, max_text }
    }

    /// What a step hides.
    pub fn of_step(&self, id: u64) -> &Redact {
        self.calls.get(&id).unwrap_or(&self.redact)
    }

    /// A text as it is shown.
    pub fn text(&self, redact: &Redact, text: &[u8]) -> String {
        if redact.body && !text.is_empty() { marker(text) } else { cut(text, self.max_text) }
    }
}

/// The beginning of a text: whole characters.
pub fn cut(text: &[u8], max: usize) -> String {
    let Some(beginning) = text.get(..max).filter(|_| max < text.len()) else {
        return String::from_utf8_lossy(text).into_owned();
    };
    match std::str::from_utf8(beginning) {
        Ok(whole) => whole.to_owned(),
        Err(error) if error.error_len().is_none() => {
            String::from_utf8_lossy(&beginning[..error.valid_up_to()]).into_owned()
        }
        Err(_) => String::from_utf8_lossy(beginning).into_owned(),
    }
}

/// Everything that a story is told from.
pub struct Parts<'a> {
    pub run: &'a Run,
    /// In order.
    pub lines: &'a [Line],
    /// In the order of their ids.
    pub messages: &'a [RunMessage],
    pub waiters: &'a [Waiter],
    pub children: &'a [Child],
    pub view: &'a View,
}

/// What has become of a run.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Story<'a> {
    pub groups: Vec<Group<'a>>,
    /// Whoever was to be told of the failure.
    pub failure: Option<Failure<'a>>,
}

/// Steps that belong together.
#[derive(Clone, PartialEq, Debug)]
pub enum Group<'a> {
    One(Box<StepStory<'a>>),
    /// Steps that run side by side.
    Parallel(Vec<StepStory<'a>>),
    /// Steps that are not known yet: the endpoint is about to tell them, or has failed to.
    Next(Vec<NextStep<'a>>),
}

/// How far a step is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepState {
    Progress,
    Success,
    Retry,
    Failed,
    Cancelled,
}

/// A step.
#[derive(Clone, PartialEq, Debug)]
pub struct StepStory<'a> {
    /// `None` for the payload.
    pub id: Option<u64>,
    pub name: String,
    pub kind: String,
    pub call_type: CallType,
    pub message: Cow<'a, MessageId>,
    /// Its result, hidden or cut as the view says.
    pub out: Option<String>,
    /// Steps in its group.
    pub concurrent: u64,
    pub state: StepState,
    pub created_at: Timestamp,
    /// The trigger's headers, with the payload.
    pub headers: Option<&'a Headers>,
    pub detail: Detail<'a>,
    /// The message that the step waits for.
    pub delivery: Option<&'a RunMessage>,
    /// Attempts that have failed.
    pub errors: Vec<&'a RunAttempt>,
}

/// What kinds of steps have beside the rest.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Detail<'a> {
    #[default]
    None,
    /// How long, as it was submitted.
    SleepFor(Value),
    /// Until when, as it was submitted.
    SleepUntil(Value),
    Call(CallStory<'a>),
    Wait {
        event_id: String,
        timeout: String,
        deadline: Option<Timestamp>,
        timed_out: Option<bool>,
    },
    Invoke {
        child: &'a Run,
        payload: String,
    },
}

/// A request to a third party; texts are hidden or cut as the view says.
#[derive(Clone, PartialEq, Debug)]
pub struct CallStory<'a> {
    pub url: String,
    pub method: String,
    pub headers: Headers,
    pub body: String,
    pub answer: Option<CallAnswer>,
    pub redact: &'a Redact,
}

/// A third party's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallAnswer {
    /// 0: there was none.
    pub status: u64,
    pub headers: Headers,
    pub body: String,
}

/// A step that is not known yet.
#[derive(Clone, PartialEq, Debug)]
pub struct NextStep<'a> {
    /// The name that the endpoint tells with its failure.
    pub name: Option<String>,
    pub state: StepState,
    pub delivery: &'a RunMessage,
    pub errors: Vec<&'a RunAttempt>,
}

/// How whoever was to be told of a run's failure was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure<'a> {
    pub callback: &'a RunMessage,
    pub told: Option<Told>,
    pub dead_letter: Option<&'a DeadLetterId>,
    /// The attempt that has ended the run.
    pub cause: Option<&'a RunAttempt>,
    pub errors: Vec<&'a RunAttempt>,
}

/// Tells what has become of a run.
pub fn tell<'a>(parts: &Parts<'a>) -> Story<'a> {
    let mut teller = Teller::new(parts);
    for line in parts.lines {
        teller.add(line);
    }
    teller.add_waits();
    teller.add_children();
    let next = teller.next();
    let mut groups = teller.groups;
    if !next.is_empty() {
        groups.push(Group::Next(next));
    }
    Story { groups, failure: failure(parts) }
}

fn failure<'a>(parts: &Parts<'a>) -> Option<Failure<'a>> {
    let end = parts.run.end.as_ref()?;
    let telling = end.telling.as_ref().filter(|telling| telling.told != Some(Told::Nobody))?;
    let find = |id: &MessageId| parts.messages.iter().find(|sent| sent.message.id == *id);
    let callback = find(&telling.message)?;
    let cause = callback.message.source_id.as_ref().and_then(find);
    Some(Failure {
        callback,
        told: telling.told,
        dead_letter: end.dead_letter.as_ref(),
        cause: cause.and_then(|cause| cause.attempts.last()),
        errors: callback.errors(),
    })
}
