//! The model's messages on their way: accepted, claimed, finished, cancelled.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Cancelling, Contents, Ending, Letter, MAX_QUEUES, Model, Waiting};
use crate::domain::id::MessageId;
use crate::domain::outcome::{Effect, Next};
use crate::domain::time::Timestamp;
use crate::mutation::{self, Mutation};
use crate::store::{
    Accept, Accepted, Applied, Cancellation, Delivery, DueLanes, Ended, Lease, NextDue, NodeId, Refusal,
    Repeat, Result, Slot, StoreError, UnfinishedFilter, UnfinishedPage, Want, Work,
};

impl Contents {
    pub(super) fn accept(&mut self, node: NodeId, accept: &Accept, repeat: Repeat) -> Accepted {
        let message = &accept.message;
        if repeat == Repeat::Again && self.messages.contains_key(&message.id) {
            if mutation::on(Mutation::AcceptsAgain) && !self.deliveries.contains_key(&message.id) {
                self.messages.remove(&message.id);
                self.insert(Arc::clone(message), Arc::clone(&accept.lane), None, None);
            }
            return Accepted::Stored;
        }
        if let Some(wanted) = &accept.deduplication {
            if let Some((holder, expires_at)) = self.keys.get(&wanted.key)
                && *holder != message.id
                && *expires_at > message.created_at
            {
                return Accepted::Duplicate(holder.clone());
            }
            self.keys.insert(wanted.key.clone(), (message.id.clone(), wanted.expires_at));
        }
        if let Some(result) = self.change_run(accept) {
            return result;
        }
        let holder = accept.lease.map(|lease| (node, lease));
        self.insert(Arc::clone(message), Arc::clone(&accept.lane), holder, None);
        Accepted::Stored
    }

    pub(super) fn finish_all(&mut self, node: NodeId, batch: &[Ended]) -> Result<Vec<Applied>> {
        let mut seen = BTreeSet::new();
        if let Some(repeat) = batch.iter().position(|ended| !seen.insert(&ended.id)) {
            let mut applied = self.finish_all(node, &batch[..repeat])?;
            applied.extend(self.finish_all(node, &batch[repeat..])?);
            return Ok(applied);
        }
        self.hold(batch.iter().flat_map(|ended| ended.finish.callbacks()).map(|message| &**message));
        let slots: Vec<Option<Slot>> =
            batch.iter().map(|ended| self.deliveries.get(&ended.id)?.at.slot.clone()).collect();
        let mut applied: Vec<Applied> = batch.iter().map(|ended| self.finish(node, ended)).collect();
        let mut freed: Vec<usize> =
            (0..batch.len()).filter(|&index| applied[index] == Applied::Yes).collect();
        freed.sort_by_key(|&index| &batch[index].id);
        let mut queues = BTreeSet::new();
        for index in freed {
            let ended = &batch[index];
            let (Some(pass_on), Some(slot)) = (&ended.pass_on, &slots[index]) else { continue };
            if self.has_slot(slot) || !queues.insert(&slot.queue) {
                continue;
            }
            if let Some(next) = self.pass_on(node, pass_on, &slot.queue, ended.finish.attempt.ended_at) {
                applied[index] = Applied::PassedOn(Box::new(next));
            }
        }
        Ok(applied)
    }

    fn finish(&mut self, node: NodeId, ended: &Ended) -> Applied {
        let Some(delivery) = self.deliveries.get_mut(&ended.id) else { return Applied::No };
        if delivery.holder != Some((node, ended.lease)) && !mutation::on(Mutation::IgnoresLeases) {
            return Applied::No;
        }
        let finish = &ended.finish;
        let allowed = match finish.next {
            Next::Delivered => true,
            Next::Retry { .. } | Next::Failed { .. } => !delivery.cancel_requested,
            Next::Cancelled => delivery.cancel_requested,
        };
        if !allowed {
            return Applied::No;
        }
        match &finish.next {
            Next::Retry { due_at } => {
                delivery.due_at = *due_at;
                delivery.retried = finish.attempt.retried + 1;
                delivery.claims = 0;
                delivery.starts = 0;
                delivery.holder = None;
                delivery.at.retry(*due_at);
            }
            Next::Delivered | Next::Failed { .. } | Next::Cancelled => {
                self.end(&ended.id);
            }
        }
        match &finish.next {
            Next::Failed { dead_letter: Some(dead_letter) } => {
                let letter = Letter {
                    message: ended.id.clone(),
                    created_at: finish.attempt.ended_at,
                    response: finish.attempt.response().cloned(),
                    error: finish.error.clone(),
                    run: finish.on_runs().find_map(|effect| match effect {
                        Effect::End(ending) => Some(ending.instance.clone()),
                        _ => None,
                    }),
                };
                self.dead_letters.insert(dead_letter.clone(), letter);
            }
            Next::Cancelled => {
                let cancelling = self.cancellations.get_mut(&ended.id).expect("it was requested");
                cancelling.cancelled_at = Some(finish.attempt.ended_at.max(cancelling.requested_at));
            }
            Next::Delivered | Next::Retry { .. } | Next::Failed { dead_letter: None } => {}
        }
        let ending = Ending {
            attempt: finish.attempt.clone(),
            next: finish.next.clone(),
            error: finish.error.clone(),
        };
        let before = self.attempts.insert((ended.id.clone(), finish.attempt.retried), ending);
        assert!(before.is_none(), "an attempt of {} ended twice", ended.id);
        for (message, (lane, lease)) in finish.callbacks().zip(&ended.callbacks) {
            let holder = lease.map(|lease| (node, lease));
            let slot = ended.slot.as_ref().filter(|_| !mutation::on(Mutation::FreesPlaceEarly));
            self.insert(Arc::clone(message), Arc::clone(lane), holder, slot);
        }
        self.change_runs(ended);
        Applied::Yes
    }

    /// Now, by a node's clock, but not before anything that is known of the message.
    pub(super) fn cancel_time(&self, id: &MessageId, now: Timestamp) -> Timestamp {
        if mutation::on(Mutation::TrustsClocks) {
            return now;
        }
        let created = self.messages.get(id).map(|message| message.created_at);
        let attempts = self.attempts.range((id.clone(), 0)..=(id.clone(), u32::MAX));
        let held = self.deliveries.get(id).filter(|waiting| waiting.holder.is_some());
        attempts
            .map(|(_, ending)| ending.attempt.ended_at)
            .chain(created)
            .chain(held.map(|waiting| waiting.due_at))
            .fold(now, Timestamp::max)
    }

    /// Whether a message is one of a run.
    pub(super) fn is_of_run(&self, id: &MessageId) -> bool {
        self.messages.get(id).is_some_and(|message| message.run.is_some())
    }

    pub(super) fn cancel(&mut self, id: &MessageId, now: Timestamp) -> Cancellation {
        let now = self.cancel_time(id, now);
        let Some(delivery) = self.deliveries.get_mut(id) else { return Cancellation::NotFound };
        let cancelling = self
            .cancellations
            .entry(id.clone())
            .or_insert(Cancelling { requested_at: now, cancelled_at: None });
        if delivery.holder.is_some() {
            delivery.cancel_requested = true;
            return Cancellation::Requested;
        }
        cancelling.cancelled_at = Some(now.max(cancelling.requested_at));
        self.end(id);
        Cancellation::Cancelled
    }

    pub(super) fn claim(
        &mut self,
        node: NodeId,
        lease: Lease,
        wants: &[Want],
        max_bytes: usize,
    ) -> Vec<Delivery> {
        let now = self.tick();
        let mut picked: BTreeSet<(Timestamp, MessageId)> = BTreeSet::new();
        for want in wants {
            let mut due: Vec<(Timestamp, MessageId)> = self
                .deliveries
                .iter()
                .filter(|(_, waiting)| waiting.at.gate.is_none() && waiting.lane == want.lane)
                .filter(|(_, waiting)| waiting.holder.is_none() && waiting.due_at <= now)
                .map(|(id, waiting)| (waiting.due_at, id.clone()))
                .collect();
            due.sort();
            picked.extend(due.into_iter().take(want.count));
        }
        let mut bytes = 0;
        let mut claimed = Vec::new();
        for (_, id) in picked {
            let message = Arc::clone(&self.messages[&id]);
            bytes += message.size();
            if bytes > max_bytes && !claimed.is_empty() {
                break;
            }
            let waiting = self.deliveries.get_mut(&id).expect("it was picked from there");
            waiting.holder = Some((node, lease));
            waiting.claims += 1;
            claimed.push(Delivery {
                retried: waiting.retried,
                claims: waiting.claims,
                cancel_requested: waiting.cancel_requested,
                ..Delivery::stored_leased(&message, &waiting.lane, lease, waiting.at.slot.as_ref())
            });
        }
        claimed
    }
}

#[async_trait]
impl Work for Model {
    async fn accept(&self, node: NodeId, batch: &[Accept], repeat: Repeat) -> Result<Vec<Accepted>> {
        let batch = batch.to_vec();
        self.write("accept", move |state| {
            if repeat == Repeat::First
                && batch.iter().any(|accept| state.messages.contains_key(&accept.message.id))
            {
                // A late one, whose repeat was faster.
                return Err(StoreError::BatchFailed);
            }
            // One that is there already touches nothing.
            let missing: Vec<bool> = batch
                .iter()
                .map(|accept| repeat == Repeat::First || !state.messages.contains_key(&accept.message.id))
                .collect();
            let absent =
                || batch.iter().zip(&missing).filter(|(_, missing)| **missing).map(|(accept, _)| accept);
            // A message whose key leads another of the batch is not looked at any further.
            let mut keys = BTreeSet::new();
            let leads = |accept: &&Accept| {
                accept.deduplication.as_ref().is_none_or(|wanted| keys.insert(wanted.key.clone()))
            };
            let leading: Vec<&Accept> = absent().filter(leads).collect();
            let refused = state.without_room(leading.iter().copied());
            let ended = state.ended_requests(leading.iter().copied());
            let entering = leading.iter().filter(|accept| !refused.contains(&accept.request));
            state.hold(entering.map(|accept| &*accept.message));
            Ok(batch
                .iter()
                .zip(&missing)
                .map(|(accept, missing)| match accept.request {
                    request if *missing && refused.contains(&request) => {
                        Accepted::Refused(Refusal::TooManyQueues(MAX_QUEUES))
                    }
                    request if *missing && ended.contains(&request) => Accepted::Refused(Refusal::RunEnded),
                    _ => state.accept(node, accept, repeat),
                })
                .collect())
        })
        .await
    }

    async fn due_lanes(&self, limit: usize, after: &str) -> Result<DueLanes> {
        self.read("due_lanes", |state| {
            let now = state.tick();
            let free = || {
                state
                    .deliveries
                    .iter()
                    .filter(|(_, waiting)| waiting.holder.is_none() && waiting.at.gate.is_none())
            };
            let mut due: Vec<(Timestamp, &MessageId, &Arc<str>)> = free()
                .filter(|(_, waiting)| waiting.due_at <= now)
                .map(|(id, waiting)| (waiting.due_at, id, &waiting.lane))
                .collect();
            due.sort();
            due.truncate(limit);
            let mut lanes: Vec<String> = Vec::new();
            for (_, _, lane) in &due {
                if !lanes.iter().any(|have| **have == ***lane) {
                    lanes.push(lane.to_string());
                }
            }
            let mut position = String::new();
            if due.len() == limit {
                let behind: BTreeSet<&Arc<str>> =
                    free().map(|(_, waiting)| &waiting.lane).filter(|lane| ***lane > *after).collect();
                let walked: Vec<String> = behind.into_iter().take(64).map(ToString::to_string).collect();
                if walked.len() == 64 {
                    position.clone_from(&walked[63]);
                }
                lanes.extend(walked);
                let mut seen = BTreeSet::new();
                lanes.retain(|lane| seen.insert(lane.clone()));
            }
            Ok(DueLanes { lanes, after: position })
        })
        .await
    }

    async fn claim(
        &self,
        node: NodeId,
        lease: Lease,
        wants: &[Want],
        max_bytes: usize,
    ) -> Result<Vec<Delivery>> {
        let wants = wants.to_vec();
        self.write("claim", move |state| Ok(state.claim(node, lease, &wants, max_bytes))).await
    }

    async fn next_due(&self) -> Result<NextDue> {
        self.read("next_due", |state| {
            let now = state.tick();
            let free = state
                .deliveries
                .values()
                .filter(|waiting| waiting.holder.is_none() && waiting.at.gate.is_none());
            Ok(NextDue { due_at: free.map(|waiting| waiting.due_at).min(), now })
        })
        .await
    }

    async fn finish(&self, node: NodeId, batch: &[Ended]) -> Result<Vec<Applied>> {
        let batch = batch.to_vec();
        self.write("finish", move |state| state.finish_all(node, &batch)).await
    }

    async fn finish_cancelled(
        &self,
        node: NodeId,
        batch: &[(MessageId, Lease)],
        now: Timestamp,
    ) -> Result<u64> {
        let batch = batch.to_vec();
        self.write("finish_cancelled", move |state| {
            let mut ended = 0;
            for (id, lease) in &batch {
                let held = state.deliveries.get(id).is_some_and(|waiting| {
                    waiting.holder == Some((node, *lease)) && waiting.cancel_requested
                });
                if held {
                    state.end(id);
                    let at = state.cancel_time(id, now);
                    let cancelling = state.cancellations.get_mut(id).expect("it was requested");
                    cancelling.cancelled_at = Some(at.max(cancelling.requested_at));
                    ended += 1;
                }
            }
            Ok(ended)
        })
        .await
    }

    async fn count_start(&self, node: NodeId, id: &MessageId, lease: Lease) -> Result<Option<u32>> {
        let id = id.clone();
        self.write("count_start", move |state| {
            let held = state.deliveries.get_mut(&id).filter(|waiting| waiting.holder == Some((node, lease)));
            Ok(held.map(|waiting| {
                waiting.starts += 1;
                waiting.starts
            }))
        })
        .await
    }

    async fn release(&self, node: NodeId, batch: &[(MessageId, Lease)]) -> Result<u64> {
        let batch = batch.to_vec();
        self.write("release", move |state| {
            let mut freed = 0;
            for (id, lease) in &batch {
                if let Some(waiting) = state.deliveries.get_mut(id)
                    && waiting.holder == Some((node, *lease))
                {
                    waiting.holder = None;
                    waiting.claims -= 1;
                    freed += 1;
                }
            }
            Ok(freed)
        })
        .await
    }

    async fn cancel(&self, id: &MessageId, now: Timestamp) -> Result<Cancellation> {
        let id = id.clone();
        self.write("cancel", move |state| {
            Ok(if state.is_of_run(&id) { Cancellation::NotFound } else { state.cancel(&id, now) })
        })
        .await
    }

    async fn unfinished(
        &self,
        filter: &UnfinishedFilter,
        after: Option<&MessageId>,
        count: usize,
    ) -> Result<UnfinishedPage> {
        self.read("unfinished", |state| {
            let looked_at: Vec<&MessageId> = state
                .deliveries
                .iter()
                .filter(|(id, waiting)| !waiting.cancel_requested && after.is_none_or(|after| *id > after))
                .map(|(id, _)| id)
                .filter(|id| !state.is_of_run(id))
                .filter(|id| {
                    let accepted = state.messages[*id].created_at;
                    filter.from.is_none_or(|from| accepted >= from)
                        && filter.to.is_none_or(|to| accepted <= to)
                })
                .take(count)
                .collect();
            let next = looked_at.last().filter(|_| looked_at.len() == count).map(|id| MessageId::clone(id));
            let matches = |id: &&MessageId| filter.matching.matches(&state.messages[*id]);
            Ok(UnfinishedPage { found: looked_at.into_iter().filter(matches).cloned().collect(), next })
        })
        .await
    }

    async fn cancel_many(&self, ids: &[MessageId], now: Timestamp) -> Result<Vec<Cancellation>> {
        let ids = ids.to_vec();
        self.write("cancel_many", move |state| {
            let mut cancel = |id: &MessageId| match state.deliveries.get(id) {
                Some(waiting) if !waiting.cancel_requested && !state.is_of_run(id) => state.cancel(id, now),
                _ => Cancellation::NotFound,
            };
            Ok(ids.iter().map(&mut cancel).collect())
        })
        .await
    }

    async fn cancelled_leases(&self, node: NodeId) -> Result<Vec<MessageId>> {
        self.read("cancelled_leases", |state| {
            if mutation::on(Mutation::HearsNoCancels) {
                return Ok(Vec::new());
            }
            let is_wanted = |waiting: &Waiting| {
                waiting.cancel_requested && waiting.holder.is_some_and(|(holder, _)| holder == node)
            };
            let wanted = state.deliveries.iter().filter(|(_, waiting)| is_wanted(waiting));
            Ok(wanted.map(|(id, _)| id.clone()).collect())
        })
        .await
    }
}
