//! The run that takes the place of one that has failed: from where that was, or from its beginning.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::id::{DeadLetterId, InstanceId, MessageId};
use super::super::message::{Headers, Message};
use super::super::outcome::Ids;
use super::super::publish::Overrides;
use super::super::time::Timestamp;
use super::log::entry_size;
use super::step::Step;
use super::story::RunMessage;
use super::{CallType, Entry, Kind, NewRun, Part, Run, Trigger};

/// A run that begins in the place of a failed one, whose dead letter it replaces in one step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Again {
    pub letter: DeadLetterId,
    pub instance: InstanceId,
    pub created_at: Timestamp,
    pub new: NewRun,
    /// The log that it begins with, the payload first.
    pub entries: Vec<Entry>,
    /// Deliveries that are made again; each has the id of its entry.
    pub messages: Vec<Message>,
}

/// Which part of a failed run's past the new one has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// The payload alone.
    Beginning,
    /// Everything that is finished.
    Failure,
}

/// A failed run, and what has happened in it.
#[derive(Clone, Copy, Debug)]
pub struct Past<'a> {
    pub run: &'a Run,
    pub letter: &'a DeadLetterId,
    /// All entries, in order.
    pub entries: &'a [Entry],
    /// All messages, in the order of their ids.
    pub messages: &'a [RunMessage],
    /// The steps that have invoked other runs, and when these began.
    pub invoked: &'a [(u64, Timestamp)],
}

impl Past<'_> {
    /// The run that takes this one's place; `None`: the payload is not there.
    pub fn again(
        &self,
        from: From,
        overrides: &Overrides,
        ids: &mut dyn Ids,
        now: Timestamp,
    ) -> Option<Again> {
        let payload = self.entries.first().filter(|entry| entry.position == 0)?;
        let (kept, redelivered) = match from {
            From::Beginning => (vec![payload], BTreeSet::from([0])),
            From::Failure => self.unfinished(),
        };
        let instance = InstanceId::begun_by(&ids.message(now));
        let (mut entries, mut messages, mut log_size) = (Vec::with_capacity(kept.len()), Vec::new(), 0);
        for (position, entry) in (0_u32..).zip(kept) {
            let id = if position == 0 { MessageId::new(instance.as_str()) } else { ids.message(now) };
            log_size += entry_size(entry.body.len());
            if redelivered.contains(&entry.position) {
                let mut message = self.message(entry);
                let due_at = message.due_at;
                change(&mut message, overrides);
                if !self.run.trigger.features.unknown_sdk {
                    // Its abilities are known by now.
                    message.headers.remove("Upstash-Workflow-Unknown-Sdk");
                }
                message.id = id.clone();
                message.created_at = now;
                message.due_at = overrides.due.of(now).max(due_at);
                message.run = Some(Part { instance: instance.clone(), kind: Kind::Step, log_size });
                messages.push(message);
            }
            entries.push(Entry { position, message: id, ..entry.clone() });
        }
        let new = self.begun(&instance, overrides, payload.body.clone());
        Some(Again { letter: self.letter.clone(), instance, created_at: now, new, entries, messages })
    }

    /// The run that begins: nobody waits for it any more.
    fn begun(&self, instance: &InstanceId, overrides: &Overrides, payload: Bytes) -> NewRun {
        let run = self.run;
        let mut trigger = Trigger {
            max_retries: overrides.retries.unwrap_or(run.trigger.max_retries),
            ..run.trigger.clone()
        };
        overrides.options.clone().apply(&mut trigger.options);
        // Answers that are in the log already, and may have been hidden one by one.
        for sent in self.messages.iter().filter(|sent| sent.kind() == Some(Kind::Call)) {
            trigger.options.redact.add(&sent.message.options.redact);
        }
        let random = instance.as_str().trim_start_matches("msg_");
        NewRun {
            id: format!("wfr_{random}"),
            url: run.url.clone(),
            labels: overrides.labels.clone().unwrap_or_else(|| run.labels.clone()),
            caller_ip: run.caller_ip.clone(),
            trigger,
            invoker: None,
            payload,
        }
    }

    /// The message that delivers an entry: as it was, or, where another run has delivered it, as those of this one are.
    fn message(&self, entry: &Entry) -> Message {
        let own = self.messages.iter().find(|sent| sent.message.id == entry.message);
        if let Some(own) = own {
            return own.message.clone();
        }
        let mut steps = self.messages.iter().filter(|sent| sent.kind() == Some(Kind::Step));
        if let Some(other) = steps.next() {
            return Message { due_at: self.run.created_at, ..other.message.clone() };
        }
        let mut headers = Headers::new();
        headers.append("Upstash-Workflow-Sdk-Version", "1");
        let plain = Message::plain(entry.message.clone(), self.run.created_at, &self.run.url, Bytes::new());
        let options = self.run.trigger.options.clone();
        Message { headers, max_retries: self.run.trigger.max_retries, options, ..plain }
    }

    /// The entries that stay, and the positions of those to deliver again: what never arrived, and what led to something
    /// that has no result. Third parties are asked again, so that nothing of a call without a result stays.
    fn unfinished(&self) -> (Vec<&Entry>, BTreeSet<u32>) {
        let steps: Vec<(&Entry, Option<Step>)> = self
            .entries
            .iter()
            .filter(|entry| entry.call_type == CallType::Step)
            .map(|entry| (entry, Step::parse(&entry.body).ok().filter(|_| entry.position > 0)))
            .collect();
        let results: BTreeSet<u64> =
            steps.iter().filter_map(|(_, step)| step.as_ref()).map(Step::id).filter(|id| *id > 0).collect();
        let plan = |id: u64| {
            let plan = steps.iter().find(|(_, step)| step.as_ref().and_then(Step::target) == Some(id));
            plan.map(|(entry, _)| entry.position)
        };
        let last_before = |is_before: &dyn Fn(&Entry) -> bool| {
            let before = steps.iter().rev().find(|(entry, _)| is_before(entry));
            before.map_or(0, |(entry, _)| entry.position)
        };
        let mut again = BTreeSet::new();
        for (entry, step) in &steps {
            let sent = self.messages.iter().find(|sent| sent.message.id == entry.message);
            let has_result =
                step.as_ref().and_then(Step::target).is_some_and(|target| results.contains(&target));
            if sent.is_some_and(|sent| !sent.is_delivered()) && !has_result {
                again.insert(entry.position);
            }
        }
        let mut kept = Vec::with_capacity(self.entries.len());
        for entry in self.entries {
            match called(entry).filter(|id| !results.contains(id)) {
                None => kept.push(entry),
                Some(id) => {
                    let cause =
                        plan(id).unwrap_or_else(|| last_before(&|step| step.position < entry.position));
                    again.insert(cause);
                }
            }
        }
        let waits = self.messages.iter().filter(|sent| sent.kind() == Some(Kind::Timeout));
        let waits = waits.filter_map(|sent| Some((sent.step_id()?, sent.message.created_at)));
        for (id, at) in waits.chain(self.invoked.iter().copied()).filter(|(id, _)| !results.contains(id)) {
            again.insert(plan(id).unwrap_or_else(|| last_before(&|step| step.created_at <= at)));
        }
        if again.is_empty() {
            again.insert(last_before(&|_| true));
        }
        (kept, again)
    }
}

/// The step that an entry of a call is of; `None`: it is of no call.
fn called(entry: &Entry) -> Option<u64> {
    if entry.call_type == CallType::Step {
        return None;
    }
    entry.key.as_deref()?.split_once(':')?.1.parse().ok()
}

/// Changes what is set of a message, as far as it has to do with a run.
fn change(message: &mut Message, overrides: &Overrides) {
    message.max_retries = overrides.retries.unwrap_or(message.max_retries);
    let own_failure_callback = message.options.failure_callback.is_some();
    overrides.options.clone().apply(&mut message.options);
    if !own_failure_callback {
        // The run has it.
        message.options.failure_callback = None;
    }
    message.options.callback = None;
}
