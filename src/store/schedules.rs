//! Schedules in the store: what makes messages at the slots of a cron.

use std::time::Duration;

use async_trait::async_trait;

use super::{Accept, NextDue, Page, Result};
use crate::domain::id::{MessageId, ScheduleId};
use crate::domain::template::Template;
use crate::domain::time::Timestamp;

/// A schedule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    pub id: ScheduleId,
    /// A number of its own for each time that a schedule is created, the id's earlier schedules included: what was decided
    /// about one of those is not done to this one.
    pub generation: i64,
    /// As given.
    pub cron: String,
    /// A URL, or the name of a URL group.
    pub destination: String,
    /// What its messages are made from.
    pub template: Template,
    /// How long after its run a message is due.
    pub delay: Option<Duration>,
    pub created_at: Timestamp,
    pub paused: bool,
    /// The slot that comes next, or that has come and not been run yet. Stale while it is paused.
    pub next_at: Timestamp,
    pub last_firing: Option<LastFiring>,
}

/// What a schedule's last run came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastFiring {
    /// The slot that it was for.
    pub occurrence: Timestamp,
    /// The messages that it made.
    pub messages: Vec<MessageId>,
    /// Why it made none.
    pub error: Option<String>,
}

/// A run of a schedule for the slot that has come.
#[derive(Clone, Debug)]
pub struct Firing {
    pub id: ScheduleId,
    pub generation: i64,
    /// The occurrence: the schedule's `next_at`.
    pub occurrence: Timestamp,
    /// The slot after this run.
    pub next_at: Timestamp,
    /// The messages to store, unleased, or why there are none.
    pub outcome: Result<Vec<Accept>, String>,
}

/// How far the message of a run has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It has not ended.
    Waiting,
    Delivered,
    /// It failed for good, or was cancelled.
    Failed,
}

/// Schedules as users see them.
#[async_trait]
pub trait Schedules: Send + Sync {
    /// Stores a schedule, in the place of the one with its id, if any. False: there are `max` others, and nothing was done.
    async fn put_schedule(&self, schedule: &Schedule, max: Option<u32>) -> Result<bool>;
    /// One schedule.
    async fn schedule(&self, id: &ScheduleId) -> Result<Option<Schedule>>;
    /// Schedules after that id, in the order of the ids, at most `count` and about `max_bytes` of bodies.
    async fn schedules(
        &self,
        after: Option<&ScheduleId>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<Schedule>>;
    /// Deletes a schedule; whether there was one. The messages that it made stay.
    async fn delete_schedule(&self, id: &ScheduleId) -> Result<bool>;
    /// Lets slots pass without a run; whether there is such a schedule.
    async fn pause_schedule(&self, id: &ScheduleId) -> Result<bool>;
    /// Goes on with the slot `next_at`, if the schedule is still of that generation and paused.
    async fn resume_schedule(&self, id: &ScheduleId, generation: i64, next_at: Timestamp) -> Result<()>;

    /// How far messages have come; those that are not kept any more are left out.
    async fn progress(&self, ids: &[&MessageId]) -> Result<Vec<(MessageId, Progress)>>;
}

/// What the engine needs of schedules.
#[async_trait]
pub trait Firings: Send + Sync {
    /// The earliest slot of a schedule that is not paused.
    async fn next_occurrence(&self) -> Result<NextDue>;
    /// Schedules whose slot has come, the earliest first, at most `count` and about `max_bytes` of bodies.
    async fn due_schedules(&self, now: Timestamp, count: usize, max_bytes: usize) -> Result<Vec<Schedule>>;
    /// Stores a run with its messages and moves the schedule on to the next slot. False: the slot has been run, or the
    /// schedule was replaced, paused or deleted meanwhile, and nothing was done.
    async fn fire(&self, run: &Firing) -> Result<bool>;
}
