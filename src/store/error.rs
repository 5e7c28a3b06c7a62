//! Why a call of the store did not succeed: the cases that callers tell apart.

use std::error::Error;
use std::time::Duration;

/// The database driver's error.
pub type Source = Box<dyn Error + Send + Sync>;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database can't be reached or did not answer in time. Whether a write took effect is unknown.
    #[error("the database is unavailable")]
    Unavailable(#[source] Source),
    /// The call was not answered within its deadline.
    #[error("the database did not answer within {0:?}")]
    Deadline(Duration),
    /// The store is closed or closing, or its task that writes has ended.
    #[error("the store is closed")]
    Closed,
    /// A search read for too long, or others leave it no room. Nothing is changed.
    #[error("the search was stopped, or did not begin: it takes too long, or others are under way")]
    TooMuch,
    /// The database refused the statement: a defect of ours, or of the schema.
    #[error("the database refused a statement")]
    Refused(#[source] Source),
    /// Another message of the same batch could not be stored.
    #[error("the batch could not be stored")]
    BatchFailed,
    /// Others changed the same rows again and again meanwhile; nothing is stored.
    #[error("others changed the same rows meanwhile")]
    Contended,
    /// A message's queue would be one more than there may be; nothing is stored.
    #[error("quota maxQueues exceeded, current limit: {0}")]
    TooManyQueues(u32),
    /// A row that we can't read: a defect of ours, or a damaged database.
    #[error("{table}.{column} of {id} can't be read")]
    Corrupt { table: &'static str, column: &'static str, id: String },
    /// The schema could not be brought up to date.
    #[error("the database schema could not be migrated")]
    Migrate(#[source] Source),
    /// The SQLite file is in use by another process.
    #[error(
        "{path} is in use by another process: one SQLite file serves one server; stop the other one, or use Postgres for several nodes"
    )]
    Locked { path: String },
    /// The database can't be opened.
    #[error("{reason}")]
    Open { reason: String },
}

impl StoreError {
    /// Whether trying again may help.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::Deadline(_)
                | Self::Closed
                | Self::Contended
                | Self::BatchFailed
                | Self::TooMuch
        )
    }
}

/// The result of a call.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
