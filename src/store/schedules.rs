//! Schedules in the store: they make messages at the occurrences of a cron.

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
    /// The parts that all its messages have.
    pub template: Template,
    /// How long after its firing a message is due.
    pub delay: Option<Duration>,
    pub created_at: Timestamp,
    pub paused: bool,
    /// The occurrence that comes next, or has come and was not fired yet. Stale while the schedule is paused.
    pub next_at: Timestamp,
    pub last_firing: Option<LastFiring>,
}

/// The result of a schedule's last firing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastFiring {
    /// The occurrence that it was for.
    pub occurrence: Timestamp,
    /// The messages that it made.
    pub messages: Vec<MessageId>,
    /// Why it made none.
    pub error: Option<String>,
}

/// A schedule's firing for the occurrence that has come.
#[derive(Clone, Debug)]
pub struct Firing {
    pub id: ScheduleId,
    pub generation: i64,
    /// The occurrence: the schedule's `next_at`.
    pub occurrence: Timestamp,
    /// The occurrence after this firing.
    pub next_at: Timestamp,
    /// The messages to store, unleased, or why there are none.
    pub outcome: Result<Vec<Accept>, String>,
}

/// How far the message of a firing has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The message has not ended.
    Waiting,
    Delivered,
    /// The message failed for good, or was cancelled.
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
    /// Lets occurrences pass without a firing; whether there is such a schedule.
    async fn pause_schedule(&self, id: &ScheduleId) -> Result<bool>;
    /// Goes on with the occurrence `next_at`, if the schedule is still of that generation and paused.
    async fn resume_schedule(&self, id: &ScheduleId, generation: i64, next_at: Timestamp) -> Result<()>;

    /// How far messages have come; those that are not kept any more are left out.
    async fn progress(&self, ids: &[&MessageId]) -> Result<Vec<(MessageId, Progress)>>;
}

/// Schedules as the engine fires them.
#[async_trait]
pub trait Firings: Send + Sync {
    /// The earliest occurrence of a schedule that is not paused.
    async fn next_occurrence(&self) -> Result<NextDue>;
    /// Schedules whose occurrence has come, the earliest first, at most `count` and about `max_bytes` of bodies.
    async fn due_schedules(&self, now: Timestamp, count: usize, max_bytes: usize) -> Result<Vec<Schedule>>;
    /// Stores a firing with its messages and moves the schedule on to the next occurrence. False: it was fired already, or the
    /// schedule was replaced, paused or deleted meanwhile, and nothing was done.
    async fn fire(&self, firing: &Firing) -> Result<bool>;
}
