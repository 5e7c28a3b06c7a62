//! Schedules.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::publish::Groups;
use super::{OperationError, Operations, Result};
use crate::domain::cron::{Cron, CronError};
use crate::domain::destination::Destination;
use crate::domain::id::{MessageId, ScheduleId};
use crate::domain::publish::{Due, Publish};
use crate::domain::url_group::targets;
use crate::store::Page;
use crate::store::schedules::{Progress, Schedule};

/// A schedule to be made, checked; only the body of its messages is missing.
pub struct ScheduleDraft {
    cron: Cron,
    /// The cron as it was given.
    text: String,
    destination: String,
    publish: Publish,
}

/// A schedule, and how far it has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScheduleState {
    pub schedule: Schedule,
    /// How far the messages of its last firing have come, those that are still kept.
    pub progress: Vec<(MessageId, Progress)>,
}

impl Operations {
    /// Checks when and where something is to go, and everything else that is asked for beyond its form.
    pub async fn draft_schedule(
        &self,
        destination: Destination,
        mut publish: Publish,
    ) -> Result<ScheduleDraft> {
        let text = publish.cron.take().unwrap_or_default();
        let cron = Cron::parse(&text).map_err(|error| invalid_cron(&error))?;
        let destination = match destination {
            Destination::Api(name) => {
                publish.options.api = Some(name);
                Destination::Url(self.llm_url()?)
            }
            other => other,
        };
        let written = destination.to_string();
        let mut groups = Groups::default();
        let group = match destination.group() {
            Some(name) => Some(self.find_group(name.to_owned(), &mut groups).await?),
            None => None,
        };
        for target in targets(destination, group)? {
            self.check_destination(&target.url)?;
            self.check_callbacks(&publish.options)?;
        }
        Ok(ScheduleDraft { cron, text, destination: written, publish })
    }

    /// Creates a schedule, or replaces the one whose id is given; its id.
    pub async fn create_schedule(
        &self,
        draft: ScheduleDraft,
        body: Bytes,
        caller_ip: Option<String>,
    ) -> Result<ScheduleId> {
        let ScheduleDraft { cron, text, destination, mut publish } = draft;
        let now = self.now();
        let id = match publish.schedule_id.take() {
            Some(name) => ScheduleId::new(name),
            None => ScheduleId::generate(now, self.engine.chance().random()),
        };
        let due = publish.due;
        let mut template = publish.into_template(body, caller_ip);
        template.schedule_id = Some(id.as_str().to_owned());
        let schedule = Schedule {
            id: id.clone(),
            generation: self.engine.chance().random(),
            cron: text,
            destination,
            template,
            delay: match due {
                Due::After(delay) => Some(delay),
                Due::Now | Due::At(_) => None,
            },
            created_at: now,
            paused: false,
            next_at: cron.next_after(now).ok_or_else(|| invalid_cron(&CronError::Never))?,
            last_firing: None,
        };
        self.put_schedule(schedule).await?;
        Ok(id)
    }

    /// In a task of its own: a caller that hangs up must not stop it half-way.
    async fn put_schedule(&self, schedule: Schedule) -> Result<()> {
        let (engine, max) = (Arc::clone(&self.engine), self.settings.max_schedules);
        let put = tokio::spawn(async move {
            let stored = engine.store().put_schedule(&schedule, max).await;
            engine.schedule_changed();
            stored
        });
        let stored = put.await.map_err(OperationError::TaskFailed)??;
        match max {
            Some(max) if !stored => Err(OperationError::Quota { name: "maxSchedules", limit: max.into() }),
            _ => Ok(()),
        }
    }

    /// Schedules after that id, in the order of the ids, at most `count` and about `max_bytes` of bodies.
    pub async fn schedules(
        &self,
        after: Option<&ScheduleId>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<ScheduleState>> {
        let page = self.store().schedules(after, count, max_bytes).await?;
        Ok(Page { items: self.states(page.items).await?, more: page.more })
    }

    pub async fn schedule(&self, id: &ScheduleId) -> Result<ScheduleState> {
        let schedule = self.find_schedule(id).await?;
        self.states(vec![schedule]).await?.pop().ok_or_else(|| unknown(id))
    }

    async fn find_schedule(&self, id: &ScheduleId) -> Result<Schedule> {
        self.store().schedule(id).await?.ok_or_else(|| unknown(id))
    }

    /// Deletes a schedule, if there is one. The messages that it made stay.
    pub async fn delete_schedule(&self, id: &ScheduleId) -> Result<()> {
        self.store().delete_schedule(id).await?;
        Ok(())
    }

    /// Lets occurrences pass without messages.
    pub async fn pause_schedule(&self, id: &ScheduleId) -> Result<()> {
        if self.store().pause_schedule(id).await? { Ok(()) } else { Err(unknown(id)) }
    }

    /// Goes on with the first occurrence after now: those that passed meanwhile are not made up for.
    pub async fn resume_schedule(&self, id: &ScheduleId) -> Result<()> {
        let schedule = self.find_schedule(id).await?;
        if schedule.paused {
            let cron = Cron::parse(&schedule.cron).map_err(|error| invalid_cron(&error))?;
            let next_at = cron.next_after(self.now()).ok_or_else(|| invalid_cron(&CronError::Never))?;
            self.store().resume_schedule(&schedule.id, schedule.generation, next_at).await?;
            self.engine.schedule_changed();
        }
        Ok(())
    }

    async fn states(&self, schedules: Vec<Schedule>) -> Result<Vec<ScheduleState>> {
        let messages = |schedule: &Schedule| {
            schedule.last_firing.as_ref().map(|firing| firing.messages.clone()).unwrap_or_default()
        };
        let ids: Vec<MessageId> = schedules.iter().flat_map(messages).collect();
        let mut known: HashMap<MessageId, Progress> = HashMap::new();
        if !ids.is_empty() {
            known.extend(self.store().progress(&ids.iter().collect::<Vec<_>>()).await?);
        }
        let state = |schedule: Schedule| {
            let progress =
                messages(&schedule).into_iter().filter_map(|id| Some((id.clone(), *known.get(&id)?)));
            ScheduleState { progress: progress.collect(), schedule }
        };
        Ok(schedules.into_iter().map(state).collect())
    }
}

fn invalid_cron(error: &CronError) -> OperationError {
    OperationError::invalid(format!("invalid header Upstash-Cron: {error}"))
}

fn unknown(id: &ScheduleId) -> OperationError {
    OperationError::not_found("schedule", id.as_str())
}
