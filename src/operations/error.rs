//! Why an operation was not done.

use crate::domain::destination::DestinationError;
use crate::domain::excerpt::Excerpt;
use crate::store::{Refusal, StoreError};

/// Why an operation was not done. The texts are fit for the user, but for those of [`OperationError::Store`] and
/// [`OperationError::TaskFailed`].
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The request can't be done, whenever it is made.
    #[error("{0}")]
    Invalid(String),
    /// A thing that the request is about isn't there.
    #[error("{0}")]
    NotFound(String),
    /// A message is for a workflow run that has ended.
    #[error("can not append to the workflow run: it has ended")]
    RunEnded,
    /// A workflow run is to begin whose id a live run has that others have begun.
    #[error("the workflow run id is that of a live run that others have begun")]
    RunIdTaken,
    /// The operator allows no more of something.
    #[error("quota {name} exceeded, current limit: {limit}")]
    Quota { name: &'static str, limit: u64 },
    /// The operator allows no more messages on this day. `reset_s`: when the next day begins, in Unix seconds.
    #[error("quota max_messages_per_day exceeded: {wanted} more messages, of {limit} a day; {left} are left")]
    DailyQuota { wanted: u64, limit: u64, left: u64, reset_s: i64 },
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
    /// There is no room for the request at this moment.
    #[error("{0}")]
    Busy(&'static str),
    /// One of several things in a request is the reason.
    #[error("{what}: {source}")]
    Part { what: String, source: Box<Self> },
    /// The operation's task ended without an answer.
    #[error("an operation's task failed")]
    TaskFailed(#[source] tokio::task::JoinError),
}

/// An operation's result.
pub type Result<T, E = OperationError> = std::result::Result<T, E>;

impl From<Refusal> for OperationError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::RunEnded => Self::RunEnded,
            Refusal::RunIdTaken => Self::RunIdTaken,
            Refusal::TooManyQueues(max) => Self::Quota { name: "maxQueues", limit: max.into() },
        }
    }
}

impl OperationError {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// For something that is known by its name or id.
    pub(crate) fn not_found(what: &str, name: &str) -> Self {
        Self::NotFound(format!("{what} {} not found", Excerpt(name)))
    }

    /// The error with what it is about before its text, where a request has several things.
    pub(crate) fn of(self, what: impl std::fmt::Display) -> Self {
        Self::Part { what: what.to_string(), source: Box::new(self) }
    }
}
