//! The model's schedules.

use std::sync::Arc;

use async_trait::async_trait;
use homing::domain::id::{MessageId, ScheduleId};
use homing::domain::time::Timestamp;
use homing::store::schedules::{Firing, Firings, LastFiring, Progress, Schedule, Schedules};
use homing::store::{NextDue, Page, Result};

use super::{Model, Next, cut};

#[async_trait]
impl Schedules for Model {
    async fn put_schedule(&self, schedule: &Schedule, max: Option<u32>) -> Result<bool> {
        let mut state = self.state();
        let is_new = !state.schedules.contains_key(&schedule.id);
        if is_new && max.is_some_and(|max| state.schedules.len() >= max as usize) {
            return Ok(false);
        }
        state.schedules.insert(schedule.id.clone(), schedule.clone());
        Ok(true)
    }

    async fn schedule(&self, id: &ScheduleId) -> Result<Option<Schedule>> {
        Ok(self.state().schedules.get(id).cloned())
    }

    async fn schedules(
        &self,
        after: Option<&ScheduleId>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<Schedule>> {
        let mut schedules: Vec<Schedule> = self.state().schedules.values().cloned().collect();
        schedules.retain(|schedule| after.is_none_or(|after| schedule.id > *after));
        Ok(cut(schedules, count, max_bytes, |schedule| schedule.template.body.len()))
    }

    async fn delete_schedule(&self, id: &ScheduleId) -> Result<bool> {
        Ok(self.state().schedules.remove(id).is_some())
    }

    async fn pause_schedule(&self, id: &ScheduleId) -> Result<bool> {
        Ok(self.state().schedules.get_mut(id).map(|schedule| schedule.paused = true).is_some())
    }

    async fn resume_schedule(&self, id: &ScheduleId, generation: i64, next_at: Timestamp) -> Result<()> {
        if let Some(schedule) = self.state().schedules.get_mut(id)
            && schedule.paused
            && schedule.generation == generation
        {
            schedule.paused = false;
            schedule.next_at = next_at;
        }
        Ok(())
    }

    async fn progress(&self, ids: &[&MessageId]) -> Result<Vec<(MessageId, Progress)>> {
        let state = self.state();
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
    }
}

#[async_trait]
impl Firings for Model {
    async fn next_occurrence(&self) -> Result<NextDue> {
        let mut state = self.state();
        let now = state.tick();
        let waiting = state.schedules.values().filter(|schedule| !schedule.paused);
        Ok(NextDue { due_at: waiting.map(|schedule| schedule.next_at).min(), now })
    }

    async fn due_schedules(&self, now: Timestamp, count: usize, max_bytes: usize) -> Result<Vec<Schedule>> {
        let mut due: Vec<Schedule> = self.state().schedules.values().cloned().collect();
        due.retain(|schedule| !schedule.paused && schedule.next_at <= now);
        due.sort_by_key(|schedule| (schedule.next_at, schedule.id.clone()));
        Ok(cut(due, count, max_bytes, |schedule| schedule.template.body.len()).items)
    }

    async fn fire(&self, run: &Firing) -> Result<bool> {
        let mut state = self.state();
        let found = state.schedules.get(&run.id).filter(|schedule| {
            schedule.generation == run.generation && schedule.next_at == run.occurrence && !schedule.paused
        });
        let Some(schedule) = found else { return Ok(false) };
        let accepts = run.outcome.as_deref().unwrap_or_default();
        let mut schedule = schedule.clone();
        schedule.next_at = run.next_at;
        schedule.last_firing = Some(LastFiring {
            occurrence: run.occurrence,
            messages: accepts.iter().map(|accept| accept.message.id.clone()).collect(),
            error: run.outcome.as_ref().err().cloned(),
        });
        state.hold(accepts.iter().map(|accept| &*accept.message))?;
        state.schedules.insert(run.id.clone(), schedule);
        for accept in accepts {
            state.insert(Arc::clone(&accept.message), Arc::clone(&accept.lane), None, None);
        }
        Ok(true)
    }
}
