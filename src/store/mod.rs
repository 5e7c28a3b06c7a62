//! Where messages are kept: the [`Store`] trait and the traits that it is made of, one for each reader.
//!
//! The engine needs [`Work`], [`Gates`], [`Nodes`], [`Firings`] and [`Runs`]; faces need the [`Catalogue`], the [`History`] and [`Situations`]; both
//! need [`Secrets`]. The store applies and decides nothing: whether to retry, what a callback holds and which filter means
//! what is settled above it, once for both engines. [`sql::SqlStore`] is the store; its hot steps have a text per engine.

use async_trait::async_trait;

use crate::failure::Failure;

pub mod error;
pub mod gates;
mod history;
pub mod listing;
#[cfg(feature = "model")]
pub mod model;
mod nodes;
pub(crate) mod pace;
pub mod quota;
pub mod runs;
pub mod schedules;
mod secrets;
pub mod situation;
#[cfg(feature = "sql")]
#[expect(clippy::disallowed_methods, reason = "a real database takes real time, and is not simulated")]
pub mod sql;
pub mod url_groups;
mod work;

pub use self::error::{Result, StoreError};
pub use self::gates::{Gates, Queues, Slot};
pub use self::history::{
    DeadLetter, DeadLetterFilter, History, LetterPage, LetterPlace, LogCursor, LogEntry, LogFilter, LogPage,
    Missing, Order, Owner, Retention, State,
};
pub use self::listing::Listing;
pub use self::nodes::Nodes;
pub use self::quota::Quota;
pub use self::runs::Runs;
pub use self::schedules::{Firings, Schedules};
pub use self::secrets::{Secrets, SigningKeyPair, StoredKeys};
pub use self::situation::Situations;
pub use self::url_groups::UrlGroups;
pub use self::work::{
    Accept, Accepted, Applied, Cancellation, Deduplication, Delivery, DueLanes, Ended, NextDue, OnRun,
    PassOn, Refusal, Repeat, UnfinishedFilter, UnfinishedPage, Want, Work,
};

/// A node's incarnation: a positive number, unique for each start of a process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeId(pub i64);

/// A node's claim number. With the incarnation it names the holder of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Lease(pub i64);

/// A page of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Whether entries follow after the last item.
    pub more: bool,
}

/// Everything that users make and name: queues and flow-control keys, URL groups, schedules.
pub trait Catalogue: Queues + UrlGroups + Schedules + Listing {}

impl<T: Queues + UrlGroups + Schedules + Listing> Catalogue for T {}

/// Durable storage. No call may be cancelled half-way by its caller's disappearance, so the engine and the API make those
/// that write from tasks of their own.
#[async_trait]
pub trait Store:
    Work
    + Gates
    + Nodes
    + Firings
    + Runs
    + Catalogue
    + History
    + Situations
    + Secrets
    + Quota
    + Send
    + Sync
    + 'static
{
    /// The failure that is set when a task of the store panics.
    fn failure(&self) -> Failure {
        Failure::default()
    }
    /// Why the store can't be written to, in words that go on after "the database can't be written to: "; `None`: as far as is
    /// known, it can.
    fn trouble(&self) -> Option<&'static str> {
        None
    }
    /// Whether the store can be read.
    async fn ping(&self) -> Result<()>;
    /// Ends all connections.
    async fn close(&self);
}
