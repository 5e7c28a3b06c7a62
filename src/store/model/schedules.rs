//! The model's schedules.

use std::sync::Arc;

use crate::domain::id::{MessageId, ScheduleId};
use crate::domain::time::Timestamp;
use crate::mutation::{self, Mutation};
use crate::store::schedules::{Firing, Firings, LastFiring, Progress, Schedule, Schedules};
use crate::store::{NextDue, Page, Result, StoreError};
use async_trait::async_trait;

use super::history::cut;
use super::{MAX_QUEUES, Model};
use crate::domain::outcome::Next;

#[async_trait]
impl Schedules for Model {
    async fn put_schedule(&self, schedule: &Schedule, max: Option<u32>) -> Result<bool> {
        let schedule = schedule.clone();
        self.write("put_schedule", move |state| {
            let is_new = !state.schedules.contains_key(&schedule.id);
            if is_new && max.is_some_and(|max| state.schedules.len() >= max as usize) {
                return Ok(false);
            }
            state.schedules.insert(schedule.id.clone(), schedule);
            Ok(true)
        })
        .await
    }

    async fn schedule(&self, id: &ScheduleId) -> Result<Option<Schedule>> {
        self.read("schedule", |state| Ok(state.schedules.get(id).cloned())).await
    }

    async fn schedules(
        &self,
        after: Option<&ScheduleId>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<Schedule>> {
        self.read("schedules", |state| {
            let mut schedules: Vec<Schedule> = state.schedules.values().cloned().collect();
            schedules.retain(|schedule| after.is_none_or(|after| schedule.id > *after));
            Ok(cut(schedules, count, max_bytes, |schedule| schedule.template.body.len()))
        })
        .await
    }

    async fn delete_schedule(&self, id: &ScheduleId) -> Result<bool> {
        let id = id.clone();
        self.write("delete_schedule", move |state| Ok(state.schedules.remove(&id).is_some())).await
    }

    async fn pause_schedule(&self, id: &ScheduleId) -> Result<bool> {
        let id = id.clone();
        self.write("pause_schedule", move |state| {
            Ok(state.schedules.get_mut(&id).map(|schedule| schedule.paused = true).is_some())
        })
        .await
    }

    async fn resume_schedule(&self, id: &ScheduleId, generation: i64, next_at: Timestamp) -> Result<()> {
        let id = id.clone();
        self.write("resume_schedule", move |state| {
            if let Some(schedule) = state.schedules.get_mut(&id)
                && schedule.paused
                && schedule.generation == generation
            {
                schedule.paused = false;
                schedule.next_at = next_at;
            }
            Ok(())
        })
        .await
    }

    async fn progress(&self, ids: &[&MessageId]) -> Result<Vec<(MessageId, Progress)>> {
        self.read("progress", |state| {
            let progress = |id: &MessageId| {
                let mut attempts = state.attempts.iter().filter(|((of, _), _)| of == id);
                if state.deliveries.contains_key(id) {
                    Progress::Waiting
                } else if attempts.any(|(_, ending)| ending.next == Next::Delivered) {
                    Progress::Delivered
                } else {
                    Progress::Failed
                }
            };
            let known = ids.iter().filter(|id| state.messages.contains_key(id));
            Ok(known.map(|id| (MessageId::clone(id), progress(id))).collect())
        })
        .await
    }
}

#[async_trait]
impl Firings for Model {
    async fn next_occurrence(&self) -> Result<NextDue> {
        self.read("next_occurrence", |state| {
            let now = state.tick();
            let waiting = state.schedules.values().filter(|schedule| !schedule.paused);
            Ok(NextDue { due_at: waiting.map(|schedule| schedule.next_at).min(), now })
        })
        .await
    }

    async fn due_schedules(&self, now: Timestamp, count: usize, max_bytes: usize) -> Result<Vec<Schedule>> {
        self.read("due_schedules", |state| {
            let mut due: Vec<Schedule> = state.schedules.values().cloned().collect();
            due.retain(|schedule| !schedule.paused && schedule.next_at <= now);
            due.sort_by_key(|schedule| (schedule.next_at, schedule.id.clone()));
            Ok(cut(due, count, max_bytes, |schedule| schedule.template.body.len()).items)
        })
        .await
    }

    async fn fire(&self, firing: &Firing) -> Result<bool> {
        let firing = firing.clone();
        self.write("fire", move |state| {
            let found = state.schedules.get(&firing.id).filter(|schedule| {
                schedule.generation == firing.generation
                    && (schedule.next_at == firing.occurrence || mutation::on(Mutation::FiresAgain))
                    && !schedule.paused
            });
            let Some(schedule) = found else { return Ok(false) };
            let accepts = firing.outcome.as_deref().unwrap_or_default();
            let mut schedule = schedule.clone();
            schedule.next_at = firing.next_at;
            schedule.last_firing = Some(LastFiring {
                occurrence: firing.occurrence,
                messages: accepts.iter().map(|accept| accept.message.id.clone()).collect(),
                error: firing.outcome.as_ref().err().cloned(),
            });
            if !state.without_room(accepts.iter()).is_empty() {
                return Err(StoreError::TooManyQueues(MAX_QUEUES));
            }
            state.hold(accepts.iter().map(|accept| &*accept.message));
            state.schedules.insert(firing.id.clone(), schedule);
            for accept in accepts {
                state.insert(Arc::clone(&accept.message), Arc::clone(&accept.lane), None, None);
            }
            Ok(true)
        })
        .await
    }
}
