//! Durable workflows in the store.
//!
//! Who appends to a run, or ends it, holds its row until the end of the transaction. So all entries of a run have one order,
//! and whoever reads some of them sees all before these.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Accept, Cancellation, Result};
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::message::Message;
use crate::domain::run::again::Again;
use crate::domain::run::ending::Ending;
use crate::domain::run::story::RunMessage;
use crate::domain::run::waiting::Waiter;
use crate::domain::run::{Entry, NewEntry, Run, RunState, Told};
use crate::domain::time::Timestamp;

/// Which run is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RunKey {
    Instance(InstanceId),
    /// The live run of that id, or else the one that began last.
    Id(String),
}

/// The result of ending a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunEnded {
    /// It was live, and has ended now. Messages of it that are leased make no further attempt.
    Now {
        /// Whether there are such messages.
        leased: bool,
    },
    /// It had ended already, or there is none.
    Before,
}

/// The result of beginning to wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waits {
    Waiting,
    /// It was waiting for it before, or has waited.
    Already,
    /// The event has come already, and is kept under that number: it is to be taken.
    Kept {
        number: i64,
        data: Bytes,
    },
    /// The run has ended.
    Ended,
}

/// Events that are kept for one run at most: whoever knows a webhook's URL may send some.
pub const MAX_KEPT: u32 = 1000;

/// The result of keeping an event for a run that does not wait for it yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeps {
    Kept,
    /// As many are kept for it as may be: [`MAX_KEPT`].
    Full,
    /// The run waits for it.
    Waited,
    Ended,
}

/// A page of runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunPage {
    /// The latest first.
    pub items: Vec<Run>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<RunPlace>,
}

/// Where a list of runs goes on: after the run of that time and instance.
pub type RunPlace = (Timestamp, InstanceId);

/// A filter of runs; what is empty is not asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RunFilter {
    pub instances: Vec<InstanceId>,
    pub ids: Vec<String>,
    /// Single runs, by their ids and when they began.
    pub begun: Vec<(String, Timestamp)>,
    pub urls: Vec<String>,
    /// The beginning of the URL.
    pub url_prefix: Option<String>,
    pub states: Vec<RunState>,
    pub labels: Vec<String>,
    pub flow_keys: Vec<String>,
    pub caller_ips: Vec<String>,
    /// When it began; both ends inclusive.
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// How far telling of the failure is; `None` among them: under way.
    pub told: Vec<Option<Told>>,
}

impl RunFilter {
    /// Whether a run matches.
    pub fn matches(&self, run: &Run) -> bool {
        let any = |wanted: &[String], have: Option<&str>| {
            wanted.is_empty() || wanted.iter().any(|one| Some(one.as_str()) == have)
        };
        let flow = run.trigger.options.flow_control.as_ref().map(|flow| flow.key.as_str());
        let telling = run.end.as_ref().and_then(|end| end.telling.as_ref());
        (self.instances.is_empty() || self.instances.contains(&run.instance))
            && any(&self.ids, Some(&run.id))
            && (self.begun.is_empty()
                || self.begun.iter().any(|(id, at)| *id == run.id && *at == run.created_at))
            && any(&self.urls, Some(&run.url))
            && self.url_prefix.as_ref().is_none_or(|prefix| run.url.starts_with(prefix))
            && (self.states.is_empty() || self.states.contains(&run.state))
            && (self.labels.is_empty() || run.labels.iter().any(|one| self.labels.contains(one)))
            && any(&self.flow_keys, flow)
            && any(&self.caller_ips, run.caller_ip.as_deref())
            && self.from.is_none_or(|from| run.created_at >= from)
            && self.to.is_none_or(|to| run.created_at <= to)
            && (self.told.is_empty() || telling.is_some_and(|telling| self.told.contains(&telling.told)))
    }
}

/// Durable workflows. What a submission appends comes with [`Work::accept`](super::Work::accept), what an outcome does to
/// a run with [`Work::finish`](super::Work::finish).
#[async_trait]
pub trait Runs: Send + Sync {
    /// A run.
    async fn run(&self, key: &RunKey) -> Result<Option<Run>>;
    /// A run's entries from a position on, in order: about `max_bytes` of them, and at least one, if there is one.
    async fn run_entries(&self, instance: &InstanceId, from: u32, max_bytes: usize) -> Result<Vec<Entry>>;
    /// Ends a run, with what follows from it.
    async fn end_run(&self, ending: &Ending) -> Result<RunEnded>;
    /// Runs that match, the latest first.
    async fn runs(&self, filter: &RunFilter, after: Option<&RunPlace>, count: usize) -> Result<RunPage>;

    /// Lets a run wait for an event, unless one is kept. `timer` is the message that ends the wait.
    async fn wait(&self, waiter: &Waiter, timer: &Accept) -> Result<Waits>;
    /// Those who wait for an event: all, or one run alone.
    async fn waiters(&self, event_id: &str, instance: Option<&InstanceId>) -> Result<Vec<Waiter>>;
    /// Ends waits by their instances and their entries' keys: each gets its entry and the message that delivers it. Which of them did, as others
    /// may have ended before.
    async fn end_waits(&self, ends: &[(Arc<Message>, NewEntry)]) -> Result<Vec<bool>>;
    /// Keeps an event for a run that does not wait for it.
    async fn keep_event(&self, instance: &InstanceId, event_id: &str, data: &Bytes) -> Result<Keeps>;
    /// Takes a kept event: appends the entry and the message that delivers it. False: it was taken already, or the run has
    /// ended.
    async fn take_event(
        &self,
        event_id: &str,
        number: i64,
        message: &Arc<Message>,
        entry: &NewEntry,
    ) -> Result<bool>;

    /// The waits of a run.
    async fn run_waiters(&self, instance: &InstanceId) -> Result<Vec<Waiter>>;
    /// The runs that a run has invoked, in the order of its steps.
    async fn children(&self, instance: &InstanceId) -> Result<Vec<Run>>;
    /// A run's messages after that one, in the order of their ids, with what has become of them: about `max_bytes`, and at
    /// least one, if there is one.
    async fn run_messages(
        &self,
        instance: &InstanceId,
        after: Option<&MessageId>,
        max_bytes: usize,
    ) -> Result<Vec<RunMessage>>;
    /// A message of a run, with what has become of it.
    async fn run_message(&self, id: &MessageId) -> Result<Option<RunMessage>>;

    /// Begins a run in the place of a failed one's dead letter. False: that is gone, or no dead letter of a run.
    async fn begin_again(&self, again: &Again) -> Result<bool>;
    /// Tells of a run's failure by another message, where telling by that one has failed. False: it has not.
    async fn tell_again(&self, instance: &InstanceId, failed: &MessageId, again: &Accept) -> Result<bool>;
    /// Cancels telling of a run's failure, while it is under way.
    async fn cancel_telling(
        &self,
        instance: &InstanceId,
        message: &MessageId,
        now: Timestamp,
    ) -> Result<Cancellation>;
}
