//! The model's durable workflows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::history::{cut, logged};
use super::{Contents, Model};
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::message::Message;
use crate::domain::outcome::{Effect, Next};
use crate::domain::run::again::Again;
use crate::domain::run::ending::Ending;
use crate::domain::run::story::{AttemptResult, Pending, RunAttempt, RunMessage};
use crate::domain::run::waiting::Waiter;
use crate::domain::run::{CallType, Entry, NewEntry, NewRun, Run, RunEnd, RunState, Telling, Told};
use crate::domain::time::Timestamp;
use crate::store::runs::{Keeps, MAX_KEPT, RunEnded, RunFilter, RunKey, RunPage, RunPlace, Runs, Waits};
use crate::store::{Accept, Accepted, Cancellation, Ended, NodeId, OnRun, Refusal, Repeat, Result};

/// A run with all that belongs to it.
pub(super) struct RunContents {
    run: Run,
    entries: Vec<Entry>,
    keys: BTreeMap<String, MessageId>,
    waiters: BTreeMap<String, Waiter>,
    kept: BTreeMap<(String, i64), Bytes>,
}

impl RunContents {
    fn new(run: Run) -> Self {
        Self {
            run,
            entries: Vec::new(),
            keys: BTreeMap::new(),
            waiters: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Bytes of the run's payload.
    pub(super) fn payload_size(&self) -> usize {
        self.entries.first().map_or(0, |entry| entry.body.len())
    }

    fn is_live(&self) -> bool {
        self.run.state == RunState::Started
    }

    fn append(&mut self, message: &Message, entry: &NewEntry) {
        if let Some(key) = &entry.key {
            self.keys.insert(key.clone(), message.id.clone());
        }
        self.entries.push(Entry {
            position: u32::try_from(self.entries.len()).expect("a run of a test is short"),
            message: message.id.clone(),
            call_type: entry.call_type,
            key: entry.key.clone(),
            body: entry.body.clone(),
            created_at: message.created_at,
        });
    }
}

impl Contents {
    /// Makes the change of a run that a message brings; what becomes of the message if it is not to be stored.
    pub(super) fn change_run(&mut self, accept: &Accept) -> Option<Accepted> {
        let part = accept.message.run.as_ref()?;
        match accept.on_run.as_ref()? {
            OnRun::Begin(new) => self.begin(&part.instance, &accept.message, new),
            OnRun::Append(entry) => {
                let live = self.runs.get_mut(&part.instance).filter(|run| run.is_live());
                let Some(run) = live else { return Some(Accepted::Refused(Refusal::RunEnded)) };
                if let Some(first) = entry.key.as_ref().and_then(|key| run.keys.get(key)) {
                    return Some(Accepted::Duplicate(first.clone()));
                }
                run.append(&accept.message, entry);
                None
            }
            OnRun::Configure(trigger) => {
                let live = self.runs.get_mut(&part.instance).filter(|run| run.is_live());
                let Some(run) = live else { return Some(Accepted::Refused(Refusal::RunEnded)) };
                run.run.trigger = (**trigger).clone();
                None
            }
        }
    }

    /// The requests that append to runs which have ended.
    pub(super) fn ended_requests<'a>(&self, accepts: impl Iterator<Item = &'a Accept>) -> BTreeSet<usize> {
        let is_ended = |accept: &&Accept| {
            let part = accept
                .message
                .run
                .as_ref()
                .filter(|_| accept.on_run.as_ref().is_some_and(OnRun::needs_live_run));
            part.is_some_and(|part| !self.runs.get(&part.instance).is_some_and(RunContents::is_live))
        };
        accepts.filter(is_ended).map(|accept| accept.request).collect()
    }

    fn begin(&mut self, instance: &InstanceId, message: &Message, new: &NewRun) -> Option<Accepted> {
        let step = |run: &Run| run.invoker.as_ref().map(|by| (by.instance.clone(), by.step_id));
        let wanted = new.invoker.as_ref().map(|by| (by.instance.clone(), by.step_id));
        if let Some((parent, _)) = &wanted {
            if !self.runs.get(parent).is_some_and(RunContents::is_live) {
                return Some(Accepted::Refused(Refusal::RunEnded));
            }
            if let Some(child) = self.runs.values().find(|run| step(&run.run) == wanted) {
                return Some(Accepted::Duplicate(MessageId::new(child.run.instance.as_str())));
            }
        }
        if let Some(live) = self.runs.values().find(|run| run.is_live() && run.run.id == new.id) {
            return Some(if step(&live.run) == wanted {
                Accepted::Duplicate(MessageId::new(live.run.instance.as_str()))
            } else {
                Accepted::Refused(Refusal::RunIdTaken)
            });
        }
        let mut begun = RunContents::new(Run::begun(instance.clone(), message.created_at, new.clone()));
        let payload = NewEntry { call_type: CallType::Step, key: None, body: new.payload.clone() };
        begun.append(message, &payload);
        self.runs.insert(instance.clone(), begun);
        None
    }

    /// Stores a message that waits, with its entry.
    fn append(&mut self, message: &Arc<Message>, entry: &NewEntry) {
        let accept = Accept::by_url(Arc::clone(message));
        let accept = Accept { on_run: Some(OnRun::Append(entry.clone())), ..accept };
        self.accept(NodeId(0), &accept, Repeat::First);
    }

    /// Makes the effects that an outcome has on runs.
    pub(super) fn change_runs(&mut self, ended: &Ended) {
        for effect in ended.finish.on_runs() {
            match effect {
                Effect::Callback(_) => {}
                Effect::Append(message, entry) => self.append(message, entry),
                Effect::TimeOut(message, entry) => {
                    self.end_wait(message, entry);
                }
                Effect::End(ending) => {
                    self.end_run(ending);
                }
                Effect::Told { instance, message, answer } => {
                    if let Some(telling) =
                        self.telling(instance).filter(|telling| telling.message == *message)
                    {
                        telling.told = Some(*answer);
                    }
                }
            }
        }
    }

    /// A run as it is read: its dead letter is shown as long as there is one.
    pub(super) fn known_run(&self, instance: &InstanceId) -> Option<Run> {
        let mut run = self.runs.get(instance)?.run.clone();
        if let Some(end) = &mut run.end {
            end.dead_letter = end.dead_letter.take().filter(|id| self.dead_letters.contains_key(id));
        }
        Some(run)
    }

    fn telling(&mut self, instance: &InstanceId) -> Option<&mut Telling> {
        self.runs.get_mut(instance)?.run.end.as_mut()?.telling.as_mut()
    }

    fn run_message(&self, id: &MessageId) -> Option<RunMessage> {
        let message = Message::clone(self.messages.get(id)?);
        let waiting = self.deliveries.get(id);
        let pending =
            waiting.map(|waiting| Pending { due_at: waiting.due_at, leased: waiting.holder.is_some() });
        let attempts = self.attempts.range((id.clone(), 0)..=(id.clone(), u32::MAX));
        let attempts = attempts.map(|(_, ending)| RunAttempt {
            ended_at: ending.attempt.ended_at,
            result: match ending.next {
                Next::Delivered => AttemptResult::Delivered,
                Next::Retry { .. } => AttemptResult::Retry,
                Next::Failed { .. } => AttemptResult::Failed,
                Next::Cancelled => AttemptResult::Cancelled,
            },
            error: ending.error.clone(),
            response: logged(&ending.attempt),
        });
        Some(RunMessage { message, pending, attempts: attempts.collect() })
    }

    /// Removes runs that ended before then, with their logs.
    pub(super) fn prune_runs(&mut self, cutoff: Timestamp) {
        let pinned: BTreeSet<InstanceId> =
            self.dead_letters.values().filter_map(|letter| letter.run.clone()).collect();
        let deliveries = &self.deliveries;
        self.runs.retain(|instance, run| {
            let Some(end) = &run.run.end else { return true };
            let is_telling = end.telling.as_ref().is_some_and(|one| deliveries.contains_key(&one.message));
            end.at >= cutoff || pinned.contains(instance) || is_telling
        });
    }

    /// Ends a wait; whether it was one.
    fn end_wait(&mut self, message: &Arc<Message>, entry: &NewEntry) -> bool {
        let run = message.run.as_ref().and_then(|part| self.runs.get_mut(&part.instance));
        let waiter = run.zip(entry.key.as_ref()).and_then(|(run, key)| run.waiters.remove(key));
        let Some(waiter) = waiter else { return false };
        if self.deliveries.get(&waiter.timer).is_some_and(|timer| timer.holder.is_none()) {
            self.deliveries.remove(&waiter.timer);
        }
        self.append(message, entry);
        true
    }

    fn end_run(&mut self, ending: &Ending) -> RunEnded {
        let live = self.runs.get_mut(&ending.instance).filter(|run| run.is_live());
        let Some(run) = live else { return RunEnded::Before };
        run.run.state = ending.state;
        run.run.end = Some(RunEnd {
            at: ending.at,
            result: ending.result.clone(),
            dead_letter: ending.dead_letter.clone(),
            telling: ending
                .failure_callback
                .as_ref()
                .map(|message| Telling { message: message.id.clone(), told: None }),
        });
        run.waiters.clear();
        run.kept.clear();
        let own: Vec<MessageId> = self
            .deliveries
            .keys()
            .filter(|id| {
                let part = self.messages[*id].run.as_ref();
                part.is_some_and(|part| part.instance == ending.instance && part.kind.ends_with_run())
            })
            .cloned()
            .collect();
        let mut leased = false;
        for id in own {
            let delivery = self.deliveries.get_mut(&id).expect("it was listed");
            if delivery.holder.is_some() {
                delivery.cancel_requested = true;
                leased = true;
            } else {
                self.end(&id);
            }
        }
        if let Some((message, entry)) = &ending.parent {
            let parent = message.run.as_ref().and_then(|part| self.runs.get_mut(&part.instance));
            match parent {
                // For its log alone.
                Some(ended) if !ended.is_live() => ended.append(message, entry),
                _ => self.append(message, entry),
            }
        }
        if let Some(message) = &ending.failure_callback {
            let accept = Accept::by_url(Arc::clone(message));
            self.accept(NodeId(0), &accept, Repeat::First);
        }
        RunEnded::Now { leased }
    }
}

#[async_trait]
impl Runs for Model {
    async fn run(&self, key: &RunKey) -> Result<Option<Run>> {
        self.read("run", |state| {
            let found = match key {
                RunKey::Instance(instance) => state.runs.get(instance),
                RunKey::Id(id) => {
                    let same = state.runs.values().filter(|run| run.run.id == *id);
                    same.max_by_key(|run| (run.is_live(), run.run.created_at, run.run.instance.clone()))
                }
            };
            Ok(found.and_then(|run| state.known_run(&run.run.instance)))
        })
        .await
    }

    async fn run_entries(&self, instance: &InstanceId, from: u32, max_bytes: usize) -> Result<Vec<Entry>> {
        self.read("run_entries", |state| {
            let Some(run) = state.runs.get(instance) else { return Ok(Vec::new()) };
            let mut total = 0;
            let fits = |entry: &&Entry| {
                total += entry.body.len();
                total <= max_bytes || entry.position == from
            };
            Ok(run.entries.iter().skip(from as usize).take_while(fits).cloned().collect())
        })
        .await
    }

    async fn end_run(&self, ending: &Ending) -> Result<RunEnded> {
        let ending = ending.clone();
        self.write("end_run", move |state| Ok(state.end_run(&ending))).await
    }

    async fn runs(&self, filter: &RunFilter, after: Option<&RunPlace>, count: usize) -> Result<RunPage> {
        self.read("runs", |state| {
            let place = |run: &Run| (run.created_at, run.instance.clone());
            let mut items: Vec<Run> = state
                .runs
                .keys()
                .filter_map(|instance| state.known_run(instance))
                .filter(|run| filter.matches(run) && after.is_none_or(|after| place(run) < *after))
                .collect();
            items.sort_by_key(|run| std::cmp::Reverse(place(run)));
            let more = items.len() > count;
            items.truncate(count);
            let next = items.last().filter(|_| more).map(place);
            Ok(RunPage { items, next })
        })
        .await
    }

    async fn wait(&self, waiter: &Waiter, timer: &Accept) -> Result<Waits> {
        let (waiter, timer) = (waiter.clone(), timer.clone());
        self.write("wait", move |state| {
            let live = state.runs.get_mut(&waiter.instance).filter(|run| run.is_live());
            let Some(run) = live else { return Ok(Waits::Ended) };
            if run.keys.contains_key(&waiter.key) || run.waiters.contains_key(&waiter.key) {
                return Ok(Waits::Already);
            }
            if let Some(((_, number), data)) = run.kept.iter().find(|((id, _), _)| *id == waiter.event_id) {
                return Ok(Waits::Kept { number: *number, data: data.clone() });
            }
            run.waiters.insert(waiter.key.clone(), waiter);
            state.accept(NodeId(0), &timer, Repeat::First);
            Ok(Waits::Waiting)
        })
        .await
    }

    async fn waiters(&self, event_id: &str, instance: Option<&InstanceId>) -> Result<Vec<Waiter>> {
        self.read("waiters", |state| {
            let waiters = state.runs.values().flat_map(|run| run.waiters.values());
            let mut found: Vec<Waiter> = waiters
                .filter(|waiter| waiter.event_id == event_id)
                .filter(|waiter| instance.is_none_or(|instance| waiter.instance == *instance))
                .cloned()
                .collect();
            found.sort_by_key(|waiter| (waiter.deadline, waiter.instance.clone(), waiter.key.clone()));
            Ok(found)
        })
        .await
    }

    async fn end_waits(&self, ends: &[(Arc<Message>, NewEntry)]) -> Result<Vec<bool>> {
        let ends = ends.to_vec();
        self.write("end_waits", move |state| {
            Ok(ends.iter().map(|(message, entry)| state.end_wait(message, entry)).collect())
        })
        .await
    }

    async fn keep_event(&self, instance: &InstanceId, event_id: &str, data: &Bytes) -> Result<Keeps> {
        let (instance, event_id, data) = (instance.clone(), event_id.to_owned(), data.clone());
        self.write("keep_event", move |state| {
            let live = state.runs.get_mut(&instance).filter(|run| run.is_live());
            let Some(run) = live else { return Ok(Keeps::Ended) };
            if run.waiters.values().any(|waiter| waiter.event_id == event_id) {
                return Ok(Keeps::Waited);
            }
            if run.kept.len() >= MAX_KEPT as usize {
                return Ok(Keeps::Full);
            }
            let last = run.kept.keys().filter(|(id, _)| *id == event_id).map(|(_, number)| *number).max();
            run.kept.insert((event_id, last.unwrap_or(0) + 1), data);
            Ok(Keeps::Kept)
        })
        .await
    }

    async fn take_event(
        &self,
        event_id: &str,
        number: i64,
        message: &Arc<Message>,
        entry: &NewEntry,
    ) -> Result<bool> {
        let place = (event_id.to_owned(), number);
        let (message, entry) = (Arc::clone(message), entry.clone());
        self.write("take_event", move |state| {
            let run = message.run.as_ref().and_then(|part| state.runs.get_mut(&part.instance));
            let taken = run.filter(|run| run.is_live()).and_then(|run| run.kept.remove(&place));
            if taken.is_some() {
                state.append(&message, &entry);
            }
            Ok(taken.is_some())
        })
        .await
    }

    async fn run_waiters(&self, instance: &InstanceId) -> Result<Vec<Waiter>> {
        self.read("run_waiters", |state| {
            let Some(run) = state.runs.get(instance) else { return Ok(Vec::new()) };
            let mut waiters: Vec<Waiter> = run.waiters.values().cloned().collect();
            waiters.sort_by_key(|waiter| (waiter.deadline, waiter.key.clone()));
            Ok(waiters)
        })
        .await
    }

    async fn children(&self, instance: &InstanceId) -> Result<Vec<Run>> {
        self.read("children", |state| {
            let runs = state.runs.keys().filter_map(|child| state.known_run(child));
            let step = |run: &Run| run.invoker.as_ref().map(|by| (by.instance.clone(), by.step_id));
            let mut children: Vec<Run> =
                runs.filter(|run| step(run).is_some_and(|(parent, _)| parent == *instance)).collect();
            children.sort_by_key(step);
            Ok(children)
        })
        .await
    }

    async fn run_messages(
        &self,
        instance: &InstanceId,
        after: Option<&MessageId>,
        max_bytes: usize,
    ) -> Result<Vec<RunMessage>> {
        self.read("run_messages", |state| {
            let of_run = state.messages.values().filter(|message| {
                message.run.as_ref().is_some_and(|part| part.instance == *instance)
                    && after.is_none_or(|after| message.id > *after)
            });
            let ids: Vec<MessageId> = of_run.map(|message| message.id.clone()).collect();
            let page = cut(ids, usize::MAX, max_bytes.max(1), |id| state.size(id));
            Ok(page.items.iter().filter_map(|id| state.run_message(id)).collect())
        })
        .await
    }

    async fn run_message(&self, id: &MessageId) -> Result<Option<RunMessage>> {
        self.read("run_message", |state| Ok(state.run_message(id))).await
    }

    async fn begin_again(&self, again: &Again) -> Result<bool> {
        let again = again.clone();
        self.write("begin_again", move |state| {
            if state.dead_letters.get(&again.letter).is_none_or(|letter| letter.run.is_none()) {
                return Ok(false);
            }
            state.dead_letters.remove(&again.letter);
            let run = Run::begun(again.instance.clone(), again.created_at, again.new);
            let mut begun = RunContents::new(run);
            for entry in &again.entries {
                if let Some(key) = &entry.key {
                    begun.keys.insert(key.clone(), entry.message.clone());
                }
            }
            begun.entries = again.entries;
            state.runs.insert(again.instance, begun);
            for message in again.messages {
                state.accept(NodeId(0), &Accept::by_url(Arc::new(message)), Repeat::First);
            }
            Ok(true)
        })
        .await
    }

    async fn tell_again(&self, instance: &InstanceId, failed: &MessageId, again: &Accept) -> Result<bool> {
        let (instance, failed, again) = (instance.clone(), failed.clone(), again.clone());
        self.write("tell_again", move |state| {
            let wanted = Telling { message: failed, told: Some(Told::Failed) };
            let Some(telling) = state.telling(&instance).filter(|telling| **telling == wanted) else {
                return Ok(false);
            };
            *telling = Telling { message: again.message.id.clone(), told: None };
            state.accept(NodeId(0), &again, Repeat::First);
            Ok(true)
        })
        .await
    }

    async fn cancel_telling(
        &self,
        instance: &InstanceId,
        message: &MessageId,
        now: Timestamp,
    ) -> Result<Cancellation> {
        let (instance, message) = (instance.clone(), message.clone());
        self.write("cancel_telling", move |state| {
            let wanted = Telling { message: message.clone(), told: None };
            let Some(telling) = state.telling(&instance).filter(|telling| **telling == wanted) else {
                return Ok(Cancellation::NotFound);
            };
            telling.told = Some(Told::Cancelled);
            Ok(state.cancel(&message, now))
        })
        .await
    }
}
