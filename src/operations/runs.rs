//! Durable workflows: submissions of their endpoints, and what users do with runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::publish::Messages;
use super::{OperationError, Operations, Result};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::InstanceId;
use crate::domain::message::Message;
use crate::domain::outcome::Ids as _;
use crate::domain::run::submission::{self, Action, Envelope, Request, Submission};
use crate::domain::run::{Run, RunState};
use crate::engine::ingest::NewMessage;
use crate::store::runs::{RunFilter, RunKey};
use crate::store::{Accepted, OnRun, Refusal};

/// Runs in one page of a search for those to cancel.
const PAGE: usize = 250;

/// Which runs an operation is about.
pub enum Selection {
    Ids(Vec<String>),
    Matching(Box<RunFilter>),
}

impl Operations {
    /// What a submission comes to: a message, and what it changes of its run.
    pub(super) async fn submit(
        &self,
        submission: &Submission,
        mut request: Request,
    ) -> Result<(Message, OnRun)> {
        let invalid = OperationError::Invalid;
        Ok(match submission.action {
            Action::Begin => {
                let (message, new) = submission::begin(submission, request, None);
                (message, OnRun::Begin(Arc::new(new)))
            }
            Action::Invoke => {
                let sent = request.body.clone();
                let envelope = Envelope::parse(&sent).map_err(invalid)?;
                let parent =
                    self.live_run(&envelope.workflow_run_id, envelope.workflow_run_created_at).await?;
                let (payload, invoker) = envelope.open(&parent).map_err(invalid)?;
                request.body = payload;
                let (message, new) = submission::begin(submission, request, Some(invoker));
                (message, OnRun::Begin(Arc::new(new)))
            }
            Action::BeginBySdk => {
                let run = self.live_run(&submission.run_id, submission.created_at).await?;
                let (message, trigger) = submission::begin_by_sdk(&run, submission, request);
                (message, OnRun::Configure(Arc::new(trigger)))
            }
            Action::Step => {
                let run = self.live_run(&submission.run_id, submission.created_at).await?;
                let known = self.engine.runs().log_size(&run.instance);
                let (message, entry) = submission::step(&run, request, known).map_err(invalid)?;
                (message, OnRun::Append(entry))
            }
            Action::Call => {
                let run = self.live_run(&submission.run_id, submission.created_at).await?;
                let (message, entry) = submission::call(&run, request).map_err(invalid)?;
                (message, OnRun::Append(entry))
            }
        })
    }

    /// A run id for a trigger that names none.
    pub fn fresh_run_id(&self) -> String {
        let id = self.engine.ids().message(self.now());
        format!("wfr_{}", id.as_str().trim_start_matches("msg_"))
    }

    /// Begins runs by plain HTTP, all or none: each, and whether it is new.
    pub async fn trigger(&self, messages: Messages) -> Result<Vec<(Arc<Run>, bool)>> {
        let mut begun = Vec::new();
        for (message, accepted) in self.publish(messages).await? {
            let (instance, is_new) = match accepted {
                Accepted::Stored => (InstanceId::begun_by(&message.id), true),
                Accepted::Duplicate(first) => (InstanceId::begun_by(&first), false),
                Accepted::Refused(refusal) => return Err(refusal.into()),
            };
            let run = self.engine.runs().instance(&instance).await?;
            begun.push((run.ok_or(OperationError::RunEnded)?, is_new));
        }
        Ok(begun)
    }

    /// The live run of that id, of which may be told when it began.
    pub(super) async fn live_run(&self, id: &str, created_at: Option<i64>) -> Result<Arc<Run>> {
        let run = self.engine.runs().live(id).await?;
        let is_meant = |run: &Arc<Run>| created_at.is_none_or(|ms| ms == run.created_at.as_millis());
        run.filter(is_meant).ok_or_else(|| OperationError::RunEnded)
    }

    /// Follows up on messages of runs: remembers runs that have begun, and submits once more what was refused because another
    /// node has ended the run, and begun one of the same id.
    pub(super) async fn follow_runs(
        &self,
        run_ids: &BTreeMap<usize, String>,
        messages: Vec<(usize, NewMessage)>,
        accepted: &mut [Accepted],
    ) -> Result<()> {
        let runs = self.engine.runs();
        for (index, new) in messages {
            let part = new.message.run.as_ref();
            match (&new.on_run, part, &accepted[index]) {
                (Some(OnRun::Begin(begun)), Some(part), Accepted::Stored) => {
                    let run = Run::begun(part.instance.clone(), new.message.created_at, (**begun).clone());
                    runs.begun(run);
                }
                (Some(OnRun::Configure(trigger)), Some(part), Accepted::Stored) => {
                    if let Some(run) = runs.instance(&part.instance).await? {
                        runs.begun(Run { trigger: (**trigger).clone(), ..(*run).clone() });
                    }
                }
                (Some(OnRun::Append(_)), Some(part), Accepted::Refused(Refusal::RunEnded)) => {
                    let id = &run_ids[&index];
                    runs.forget(id);
                    let Some(run) = runs.live(id).await? else { continue };
                    if run.instance == part.instance {
                        continue;
                    }
                    let mut message = Message::clone(&new.message);
                    if run.trigger.features.trigger_on_config && part.kind.carries_run() {
                        submission::configure(&mut message, &run);
                    }
                    message.run =
                        Some(crate::domain::run::Part { instance: run.instance.clone(), ..part.clone() });
                    let again = NewMessage { message: Arc::new(message), ..new };
                    if let Some(result) = self.engine.ingest().publish(vec![again]).await?.pop() {
                        accepted[index] = result;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends a run as its function has returned. One that has ended, or is not there, stays as it is: whoever asks has done
    /// its part.
    pub async fn finish_run(&self, id: &str, created_at: Option<i64>, result: Bytes) -> Result<()> {
        let result = (!result.is_empty()).then_some(result);
        // Another node may have ended the run that is known here, and begun one of the same id.
        for _ in 0..2 {
            match self.live_run(id, created_at).await {
                Ok(run) if self.end_run(&run, RunState::Success, result.clone()).await? => break,
                Ok(_) => {}
                Err(OperationError::RunEnded) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Cancels a run; an error if there was never one of that id.
    pub async fn cancel_run(&self, id: &str) -> Result<bool> {
        let run = self.store().run(&RunKey::Id(id.to_owned())).await?;
        let run = run.ok_or_else(|| OperationError::not_found("workflow run", id))?;
        self.end_run(&run, RunState::Cancelled, None).await
    }

    /// Cancels live runs, at most `count` of those that match; how many.
    pub async fn cancel_runs(&self, which: Selection, count: usize) -> Result<usize> {
        let mut cancelled = 0;
        match which {
            Selection::Ids(ids) => {
                for id in ids {
                    if let Some(run) = self.store().run(&RunKey::Id(id)).await?
                        && self.end_run(&run, RunState::Cancelled, None).await?
                    {
                        cancelled += 1;
                    }
                }
            }
            Selection::Matching(filter) => {
                let filter = RunFilter { states: vec![RunState::Started], ..*filter };
                let mut after = None;
                while cancelled < count {
                    let page = self.store().runs(&filter, after.as_ref(), PAGE).await?;
                    for run in page.items.iter().take(count - cancelled) {
                        cancelled += usize::from(self.end_run(run, RunState::Cancelled, None).await?);
                    }
                    after = page.next;
                    if after.is_none() {
                        break;
                    }
                }
            }
        }
        Ok(cancelled)
    }

    async fn end_run(&self, run: &Run, state: RunState, result: Option<Bytes>) -> Result<bool> {
        let runs = self.engine.runs();
        let ended = runs.end(run, state, result).await?;
        runs.forget(&run.id);
        Ok(ended)
    }

    /// The whole log of a live run, as deliveries show it.
    pub async fn run_log(&self, id: &str) -> Result<Bytes> {
        let not_found = || OperationError::NotFound(format!("no live workflow run {}", Excerpt(id)));
        let run = self.store().run(&RunKey::Id(id.to_owned())).await?;
        let run = run.filter(|run| run.state == RunState::Started).ok_or_else(not_found)?;
        self.engine.runs().log(&run.instance).await?.ok_or_else(not_found)
    }
}
