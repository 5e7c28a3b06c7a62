//! Messages as they are looked back at: one of them, the log, the dead letters, and how all of it ends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::runs::RunFilter;
use super::{Accept, Result};
use crate::domain::filter::MessageFilter;
use crate::domain::id::{DeadLetterId, InstanceId, MessageId};
use crate::domain::message::Message;
use crate::domain::outcome::Response;
use crate::domain::time::Timestamp;

/// A dead letter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    pub created_at: Timestamp,
    pub message: Message,
    /// The last answer; `None` when the last attempt had none.
    pub response: Option<Response>,
    pub error: Option<String>,
    /// The run that it has ended.
    pub run: Option<InstanceId>,
}

impl DeadLetter {
    /// Where it stands in a list.
    pub fn place(&self) -> LetterPlace {
        (self.created_at, self.id.clone())
    }
}

/// The states of the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    Created,
    Active,
    Delivered,
    Error,
    Retry,
    Failed,
    CancelRequested,
    Cancelled,
}

/// The order of a list by time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    #[default]
    LatestFirst,
    EarliestFirst,
}

/// Where a page of the log begins: after this entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogCursor {
    pub time: Timestamp,
    /// Tie-breakers; with neither, the page begins before (after) the whole millisecond.
    pub entry: Option<(MessageId, i64)>,
}

/// Whose messages are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Owner {
    /// Messages of no run.
    #[default]
    User,
    /// Messages of workflow runs.
    Run,
    /// All messages.
    Any,
}

impl Owner {
    /// Whether a message is meant that is of a run, or is not.
    pub const fn includes(self, is_of_run: bool) -> bool {
        match self {
            Self::User => !is_of_run,
            Self::Run => is_of_run,
            Self::Any => true,
        }
    }
}

/// A filter of the log's entries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogFilter {
    pub owner: Owner,
    /// Empty: of all messages.
    pub messages: Vec<MessageId>,
    pub matching: MessageFilter,
    /// Empty: all states.
    pub states: Vec<State>,
    /// On the entry's time; both ends inclusive.
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// One entry of the log, without its message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    pub time: Timestamp,
    pub message: Arc<Message>,
    pub state: State,
    /// Where it stands among its message's entries.
    pub sequence: i64,
    /// When the next attempt is due, for CREATED with a delay and RETRY.
    pub next_due_at: Option<Timestamp>,
    /// For ERROR and FAILED.
    pub error: Option<String>,
    /// For ERROR, FAILED and DELIVERED.
    pub response: Option<Response>,
}

impl LogEntry {
    /// Where it stands: what follows after it begins there.
    pub fn place(&self) -> LogCursor {
        LogCursor { time: self.time, entry: Some((self.message.id.clone(), self.sequence)) }
    }
}

/// A page of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPage {
    /// Perhaps none, though more may follow: a page reads a bounded number of entries.
    pub items: Vec<LogEntry>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<LogCursor>,
}

/// A filter of dead letters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeadLetterFilter {
    /// Whether they have ended runs.
    pub owner: Owner,
    /// Conditions on the runs that they have ended; others don't match them.
    pub runs: Option<Box<RunFilter>>,
    /// Empty: of all messages.
    pub messages: Vec<MessageId>,
    /// Empty: any.
    pub ids: Vec<DeadLetterId>,
    pub matching: MessageFilter,
    /// The last answer's status, 0 for none; empty: any.
    pub statuses: Vec<u16>,
    /// When it became one; both ends inclusive.
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// How a retry treats dead letters that don't exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// The retry leaves them out.
    Skip,
    /// The retry does nothing at all.
    Refuse,
}

/// Where a list of dead letters goes on: after the one of that time and id.
pub type LetterPlace = (Timestamp, DeadLetterId);

/// A page of the dead letters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LetterPage<T> {
    /// Perhaps none, though more may follow: a page searches for a bounded time.
    pub items: Vec<T>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<LetterPlace>,
}

/// How old finished things may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// The log, and with it the messages that are finished.
    pub log: Duration,
    pub dead_letters: Duration,
}

/// The log and the dead letters.
#[async_trait]
pub trait History: Send + Sync {
    /// A message that is waiting or whose log is still kept.
    async fn message(&self, id: &MessageId) -> Result<Option<Message>>;

    /// Entries of the log after `cursor`, at most `count` of them and about `max_bytes` of bodies.
    async fn log(
        &self,
        filter: &LogFilter,
        order: Order,
        cursor: Option<&LogCursor>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LogPage>;

    /// One dead letter.
    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>>;
    /// Dead letters after the one of that time and id, at most `count` and about `max_bytes` of bodies.
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LetterPage<DeadLetter>>;
    /// The places of dead letters after the one of that time and id, at most `count`.
    async fn dead_letter_places(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
    ) -> Result<LetterPage<LetterPlace>>;
    /// Deletes those of the dead letters that exist; how many.
    async fn delete_dead_letters(&self, ids: &[DeadLetterId]) -> Result<u64>;
    /// Replaces dead letters by new messages, unleased; which of them. None is there twice. On SQLite more than a thousand
    /// of them are several steps, and a fault between two of these leaves the rest what it was.
    async fn retry_dead_letters(
        &self,
        replacements: &[(DeadLetterId, Accept)],
        missing: Missing,
    ) -> Result<Vec<bool>>;

    /// Removes one batch of what is past its age, walking the messages from `after`. Where to go on, or `None` when
    /// the walk is complete.
    async fn prune(&self, retention: Retention, now: Timestamp, after: &str) -> Result<Option<String>>;
}
