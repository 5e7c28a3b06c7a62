//! Durable workflows: what a run is, and what may happen to it.
//!
//! A run is an append-only log of entries, kept by the server. Its endpoint gets the log, replays the user's function
//! against it, executes the first step that has no entry, submits that step's result, which becomes the next entry, and is
//! called again. One total order of entries for each run, and in each delivery exactly the prefix that ends in its own
//! entry: on this everything else depends.
//!
//! [`step`] reads what the server has to know of a submission, [`log`] makes the delivered body, [`headers`] the delivered
//! headers, [`ending`] whom an end is told to, [`story`] what users are told of a run, and [`again`] the run that takes the place
//! of one that has failed.

use bytes::Bytes;

use super::id::{DeadLetterId, InstanceId, MessageId};
use super::message::{Headers, Options};
use super::time::Timestamp;

pub mod again;
pub mod ending;
pub mod headers;
pub mod log;
pub mod step;
pub mod story;
pub mod submission;
pub mod waiting;

/// A message's part in a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    pub instance: InstanceId,
    pub kind: Kind,
    /// Bytes of the log that its delivery shows, as far as they are known: it is made when it is sent, and memory has to
    /// be reserved for it before.
    pub log_size: usize,
}

/// The kinds of messages in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The log, for the run's endpoint: made when it is sent, and stored nowhere.
    Step,
    /// A request to a third party, for which the run waits.
    Call,
    /// A third party's answer, for the run's endpoint.
    CallResult,
    /// The failure of a run, for its endpoint or whoever was to be told.
    FailureCallback,
    /// No request: its due time ends the wait for an event.
    Timeout,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Step, Self::Call, Self::CallResult, Self::FailureCallback, Self::Timeout];

    /// The kind as it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Call => "call",
            Self::CallResult => "call_result",
            Self::FailureCallback => "failure_callback",
            Self::Timeout => "timeout",
        }
    }

    /// Reads what [`Kind::as_str`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether it is dropped when the run ends; telling of the run's failure begins then.
    pub const fn ends_with_run(self) -> bool {
        !matches!(self, Self::FailureCallback)
    }

    /// Whether the run goes on with its delivery, and ends with its failure.
    pub const fn carries_run(self) -> bool {
        matches!(self, Self::Step | Self::CallResult)
    }
}

/// How far a run has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// The run is live; the other states are final.
    Started,
    Success,
    Failed,
    Cancelled,
}

impl RunState {
    const ALL: [Self; 4] = [Self::Started, Self::Success, Self::Failed, Self::Cancelled];

    /// The state as the API and the store write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "RUN_STARTED",
            Self::Success => "RUN_SUCCESS",
            Self::Failed => "RUN_FAILED",
            Self::Cancelled => "RUN_CANCELED",
        }
    }

    /// Reads what [`RunState::as_str`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Who has made an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallType {
    /// The endpoint: the only entries that the SDKs read.
    Step,
    /// The endpoint, for a third party.
    ToCallback,
    /// A third party.
    FromCallback,
}

impl CallType {
    const ALL: [Self; 3] = [Self::Step, Self::ToCallback, Self::FromCallback];

    /// The type as the delivered log has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::ToCallback => "toCallback",
            Self::FromCallback => "fromCallback",
        }
    }

    /// Reads what [`CallType::as_str`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call_type| call_type.as_str() == text)
    }
}

/// The words for [`Features::detect_sdk`] and [`Features::unknown_sdk`], which no SDK sends.
const DETECT_SDK: &str = "DetectSdk";
const UNKNOWN_SDK: &str = "UnknownSdk";

/// Abilities of the endpoint that a run's trigger tells.
#[expect(clippy::struct_excessive_bools, reason = "each is an ability by itself")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// It takes a delivery without the log, and asks for that itself.
    pub lazy_fetch: bool,
    /// Its first answer tells whether it is a workflow's endpoint at all.
    pub detect_trigger: bool,
    /// The trigger's configuration and headers hold for all messages of the run; otherwise each brings its own.
    pub trigger_on_config: bool,
    /// The run was begun by plain HTTP: the first answer tells whether the SDK there is one that takes part in that.
    pub detect_sdk: bool,
    /// Nobody has told of its abilities yet: the run was begun by plain HTTP, and the SDK there is to begin it once more.
    pub unknown_sdk: bool,
}

impl Features {
    /// Reads a comma-separated list; unknown words mean nothing.
    pub fn parse(list: &str) -> Self {
        let mut features = Self::default();
        for word in list.split(',').map(str::trim) {
            match word {
                "LazyFetch" => features.lazy_fetch = true,
                "WF_DetectTrigger" => features.detect_trigger = true,
                "WF_TriggerOnConfig" => features.trigger_on_config = true,
                DETECT_SDK => features.detect_sdk = true,
                UNKNOWN_SDK => features.unknown_sdk = true,
                _ => {}
            }
        }
        features
    }

    /// The list that [`Features::parse`] reads.
    pub fn list(self) -> String {
        let words = [
            (self.lazy_fetch, "LazyFetch"),
            (self.detect_trigger, "WF_DetectTrigger"),
            (self.trigger_on_config, "WF_TriggerOnConfig"),
            (self.detect_sdk, DETECT_SDK),
            (self.unknown_sdk, UNKNOWN_SDK),
        ];
        words.into_iter().filter(|(has, _)| *has).map(|(_, word)| word).collect::<Vec<_>>().join(",")
    }
}

/// What a trigger says of its whole run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trigger {
    /// Headers that every delivery to the endpoint has.
    pub headers: Headers,
    /// Retries of its messages.
    pub max_retries: u32,
    /// Retry delay, flow control, failure callback and redaction of its messages.
    pub options: Options,
    pub features: Features,
}

impl Trigger {
    /// What an SDK says of a run that was begun by plain HTTP, where that has not said it already.
    #[must_use]
    pub fn completed(&self, by_sdk: Self) -> Self {
        let mut headers = by_sdk.headers;
        for (name, _) in self.headers.iter() {
            headers.remove(name);
        }
        headers.0.extend(self.headers.0.iter().cloned());
        let (own, sdk) = (&self.options, by_sdk.options);
        Self {
            headers,
            max_retries: self.max_retries,
            options: Options {
                retry_delay: own.retry_delay.clone().or(sdk.retry_delay),
                failure_callback: own.failure_callback.clone().or(sdk.failure_callback),
                flow_control: own.flow_control.clone().or(sdk.flow_control),
                ..own.clone()
            },
            features: by_sdk.features,
        }
    }
}

/// The run that waits for another one, which it has invoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invoker {
    pub instance: InstanceId,
    pub run_id: String,
    pub created_at: Timestamp,
    /// Where the result is delivered.
    pub url: String,
    /// The number of the step that waits.
    pub step_id: u64,
    /// That step as JSON, to which the result is added.
    pub step: String,
    /// Headers of the delivery, beside those that the parent's trigger has named.
    pub headers: Headers,
}

/// A run to begin, by its first message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRun {
    /// Users' name for it; one live run has it at a time.
    pub id: String,
    pub url: String,
    pub labels: Vec<String>,
    pub caller_ip: Option<String>,
    pub trigger: Trigger,
    pub invoker: Option<Invoker>,
    /// Entry 0.
    pub payload: Bytes,
}

/// A run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub instance: InstanceId,
    pub id: String,
    pub created_at: Timestamp,
    pub url: String,
    pub labels: Vec<String>,
    pub caller_ip: Option<String>,
    pub trigger: Trigger,
    pub invoker: Option<Invoker>,
    pub state: RunState,
    /// How it has ended; `None` while it is live.
    pub end: Option<RunEnd>,
}

/// A run's end, as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunEnd {
    pub at: Timestamp,
    /// What its function has returned, as JSON text.
    pub result: Option<Bytes>,
    /// The dead letter that it has left, as long as there is one.
    pub dead_letter: Option<DeadLetterId>,
    /// The one who was to be told of the failure; `None`: nobody was.
    pub telling: Option<Telling>,
}

/// The message that tells of a run's failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Telling {
    pub message: MessageId,
    /// `None`: it is under way.
    pub told: Option<Told>,
}

/// How telling of a run's failure has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Done,
    /// There is nobody to tell: the endpoint has no failure function.
    Nobody,
    Failed,
    /// A user has cancelled it.
    Cancelled,
}

impl Told {
    const ALL: [Self; 4] = [Self::Done, Self::Nobody, Self::Failed, Self::Cancelled];

    /// The end as it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Nobody => "nobody",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads what [`Told::as_str`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|told| told.as_str() == text)
    }
}

impl Run {
    /// The run that a message begins.
    pub fn begun(instance: InstanceId, created_at: Timestamp, new: NewRun) -> Self {
        let NewRun { id, url, labels, caller_ip, trigger, invoker, payload: _ } = new;
        let state = RunState::Started;
        Self { instance, id, created_at, url, labels, caller_ip, trigger, invoker, state, end: None }
    }
}

/// An entry to append to a run's log; its id is that of the message which it comes with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewEntry {
    pub call_type: CallType,
    /// By it a repeated submission is recognised.
    pub key: Option<String>,
    pub body: Bytes,
}

/// An entry of a run's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Counted from 0, without gaps.
    pub position: u32,
    /// The message that was accepted with it.
    pub message: MessageId,
    pub call_type: CallType,
    /// By it a repeated submission is recognised.
    pub key: Option<String>,
    pub body: Bytes,
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
        for state in RunState::ALL {
            assert_eq!(RunState::parse(state.as_str()), Some(state));
        }
        for told in Told::ALL {
            assert_eq!(Told::parse(told.as_str()), Some(told));
        }
        for call_type in CallType::ALL {
            assert_eq!(CallType::parse(call_type.as_str()), Some(call_type));
        }
        let features = Features::parse("LazyFetch, InitialBody,WF_TriggerOnConfig,WF_Unknown");
        assert_eq!(features, Features { lazy_fetch: true, trigger_on_config: true, ..Features::default() });
        assert_eq!(Features::parse(&features.list()), features);
    }
}
