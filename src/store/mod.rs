//! Where messages are kept: the [`Store`] trait, each call one atomic step in the domain's terms.
//!
//! The store applies and decides nothing: whether to retry, what a callback holds and which filter means what is settled
//! above it, once for both engines. [`sql::SqlStore`] is the store; its hot steps have a text per engine.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::filter::MessageFilter;
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::message::Message;
use crate::domain::outcome::{Finish, Response};
use crate::domain::time::Timestamp;
use crate::failure::Failure;

pub mod cancelling;
pub mod gates;
pub mod listing;
pub(crate) mod pace;
pub mod quota;
pub mod schedules;
pub mod situation;
#[expect(clippy::disallowed_methods, reason = "a real database takes real time, and is not simulated")]
pub mod sql;
pub mod url_groups;

pub use self::cancelling::{Cancelling, Look, UnfinishedFilter};
pub use self::gates::{Gates, Slot};
pub use self::listing::Listing;
pub use self::quota::Quota;
pub use self::situation::Situations;
pub use self::url_groups::UrlGroups;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database can't be reached or did not answer in time. Whether a write took effect is unknown.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The call was not answered within its deadline.
    #[error("the database did not answer within {0:?}")]
    Deadline(Duration),
    /// A search read for too long, or others leave it no room. Nothing is changed.
    #[error("the search was stopped, or did not begin: it takes too long, or others are under way")]
    TooMuch,
    /// The database refused the statement: a defect of ours, or of the schema.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
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
    Migrate(#[source] sqlx::migrate::MigrateError),
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
            Self::Unavailable(_) | Self::Deadline(_) | Self::Contended | Self::BatchFailed | Self::TooMuch
        )
    }
}

impl StoreError {
    /// What is wrong with the database, in words; `None` where the trouble is the statement's own, or a passing conflict.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        match self {
            Self::Deadline(_) => Some(SLOW),
            Self::Unavailable(error) | Self::Refused(error) => match error {
                sqlx::Error::Database(error) => error.code().and_then(|code| trouble_by_code(&code)),
                sqlx::Error::PoolTimedOut => Some("it can't be reached, or all connections to it are busy"),
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
                    Some("it can't be reached")
                }
                sqlx::Error::WorkerCrashed => Some("the task that writes has failed"),
                _ => None,
            },
            _ => None,
        }
    }
}

const SLOW: &str = "it does not answer in time";

/// What a code of PostgreSQL (appendix A) or SQLite says about the database.
fn trouble_by_code(code: &str) -> Option<&'static str> {
    if code.len() == 5 && code.is_ascii() {
        return match (code, &code[..2]) {
            ("53100", _) => Some("its disk is full"),
            ("53300", _) => Some("it has no connection to give"),
            ("25006", _) => Some("it takes no writes"),
            ("55P03", _) => Some("somebody else has locked it"),
            ("57014", _) => Some(SLOW),
            ("42501" | "42P01", _) | (_, "28" | "3D" | "3F") => Some("its tables can't be used"),
            (_, "08") => Some("it can't be reached"),
            (_, "53") => Some("it has not enough of what it needs"),
            (_, "57") => Some("it is starting or stopping"),
            (_, "58") => Some("its disk fails"),
            (_, "XX") => Some("it is damaged, or has failed"),
            _ => None,
        };
    }
    match code.parse::<i32>().ok()? & 0xff {
        5 | 6 => Some("another program has locked it"),
        7 => Some("there is not enough memory"),
        8 => Some("its file takes no writes"),
        10 => Some("its disk fails"),
        11 | 26 => Some("its file is damaged"),
        13 => Some("its disk is full"),
        14 => Some("its file can't be opened"),
        _ => None,
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => match database.code().as_deref() {
                // Serialization failures, deadlocks, shutdown, too many connections, timeouts, read-only after a
                // failover, disk full (PostgreSQL, appendix A); SQLITE_BUSY, _LOCKED, _NOMEM, _READONLY, _IOERR, _FULL,
                // _CANTOPEN and their extensions.
                Some(code) if is_transient_code(code) => Self::Unavailable(error),
                _ => Self::Refused(error),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error),
            // What can't be encoded, decoded or found now can't be the next time.
            _ => Self::Refused(error),
        }
    }
}

fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 && code.is_ascii() {
        return matches!(&code[..2], "08" | "40" | "53" | "57" | "58") || code == "25006" || code == "55P03";
    }
    code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 5..=8 | 10 | 13 | 14))
}

/// What a call gives.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A node's incarnation: a positive number, unique for each start of a process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeId(pub i64);

/// A node's claim number. With the incarnation it names the holder of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Lease(pub i64);

/// A message to accept.
#[derive(Clone, Debug)]
pub struct Accept {
    pub message: Arc<Message>,
    /// What its deliveries are limited by.
    pub lane: Arc<str>,
    /// Set: stored already leased to the accepting node. Only for what is due now and waits at no gate.
    pub lease: Option<Lease>,
    /// Set: stored only when no message holds the key.
    pub deduplication: Option<Deduplication>,
}

/// A deduplication key, and until when a message accepted now holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deduplication {
    pub key: String,
    pub expires_at: Timestamp,
}

/// What became of a message to accept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Accepted {
    Stored,
    /// Another message holds the deduplication key.
    Duplicate(MessageId),
}

/// A leased delivery.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message: Arc<Message>,
    pub lane: Arc<str>,
    /// Bytes of memory that are reserved for it: for one that waited at a gate what is stored, which an earlier version may
    /// have counted in another way than [`Message::size`].
    pub size: usize,
    pub lease: Lease,
    /// Attempts made.
    pub retried: u32,
    /// Leases taken for this attempt, this one included.
    pub claims: u32,
    /// A user has cancelled it: no attempt may start.
    pub cancel_requested: bool,
    /// The queue's slot that it keeps taken, if any.
    pub slot: Option<Slot>,
    /// The flow-control key's gate that counts it, if any.
    pub flow: Option<Arc<str>>,
    /// Set by the engine: it must not start later, by the time since boot.
    pub start_by: Option<Duration>,
}

impl Delivery {
    /// The delivery of a message that was stored already leased: for its first attempt.
    pub fn stored_leased(message: &Arc<Message>, lane: &Arc<str>, lease: Lease, slot: Option<&Slot>) -> Self {
        Self {
            message: Arc::clone(message),
            lane: Arc::clone(lane),
            size: message.size(),
            lease,
            retried: 0,
            claims: 1,
            cancel_requested: false,
            slot: slot.cloned(),
            flow: None,
            start_by: None,
        }
    }
}

/// How much of a lane a node can take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    pub lane: Arc<str>,
    pub count: usize,
}

/// An attempt's end, to be applied only while the lease holds.
#[derive(Clone, Debug)]
pub struct Ended {
    pub id: MessageId,
    pub lease: Lease,
    pub finish: Arc<Finish>,
    /// Lane and lease for each of the callback messages.
    pub callbacks: Vec<(Arc<str>, Option<Lease>)>,
    /// The slot that the delivery has; its callbacks keep it.
    pub slot: Option<Slot>,
}

/// What became of an attempt's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// It is stored with all its consequences.
    Yes,
    /// Nothing is stored: the lease was not ours any more, or, for a failed attempt, a user has cancelled the message
    /// meanwhile. Finishing it as cancelled tells the two apart.
    No,
}

/// What a cancellation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancellation {
    /// No such message, or it is finished.
    NotFound,
    /// It was waiting, and is gone.
    Cancelled,
    /// A node holds it; it will make no further attempt.
    Requested,
}

/// What is due, and when that was asked, by the store's clock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextDue {
    /// The earliest due time of an unleased delivery; `None`: there is none.
    pub due_at: Option<Timestamp>,
    pub now: Timestamp,
}

/// Lanes in which something may be due.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DueLanes {
    /// Each once.
    pub lanes: Vec<String>,
    /// How far the walk through all lanes has come; empty at its end, or when there was none.
    pub after: String,
}

/// A dead letter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    pub created_at: Timestamp,
    pub message: Message,
    /// The last answer; `None` when the last attempt had none.
    pub response: Option<Response>,
    pub error: Option<String>,
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

/// Which entries of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogFilter {
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
    /// Perhaps none, though more may follow: a page looks at a bounded number of entries.
    pub items: Vec<LogEntry>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<LogCursor>,
}

/// Which dead letters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeadLetterFilter {
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

/// What retrying dead letters does about those that don't exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// It leaves them out.
    Skip,
    /// It does nothing at all.
    Refuse,
}

/// Where a list of dead letters goes on: after the one of that time and id.
pub type LetterPlace = (Timestamp, DeadLetterId);

/// A page of the dead letters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LetterPage<T> {
    /// Perhaps none, though more may follow: a page looks for a bounded time.
    pub items: Vec<T>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<LetterPlace>,
}

/// A page of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Whether entries follow after the last item.
    pub more: bool,
}

/// How old finished things may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// The log, and with it the messages that are finished.
    pub log: Duration,
    pub dead_letters: Duration,
}

/// The pair that signs, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeyPair {
    pub current: String,
    pub next: String,
}

/// A stored pair, and the SHA-256 of the configured pair that it comes from, perhaps by rotation; `None` for a generated
/// one.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredKeys {
    pub pair: SigningKeyPair,
    pub configured: Option<[u8; 32]>,
}

/// Durable storage. Every call is one atomic step; none may be cancelled half-way by its caller's disappearance, so the
/// engine and the API call it from tasks of their own.
#[async_trait]
pub trait Store:
    Cancelling + Gates + Listing + Quota + Situations + UrlGroups + schedules::Schedules + Send + Sync + 'static
{
    /// Whether several nodes may share it. One that isn't shared goes by this machine's clock, and nobody takes over.
    fn is_shared(&self) -> bool;

    /// Now, by the clock that decides what is due.
    async fn now(&self) -> Result<Timestamp>;

    /// Registers this process; an earlier incarnation of the same name loses its leases at once, and so does everybody
    /// who is not registered.
    async fn register(&self, node: NodeId, name: &str) -> Result<()>;
    /// Registers a new incarnation of a process whose last one was taken over; others of that name keep their leases.
    async fn rejoin(&self, node: NodeId, name: &str) -> Result<()>;
    /// Renews the registration and tells the time. `None`: others have taken over what this incarnation held.
    async fn heartbeat(&self, node: NodeId) -> Result<Option<Timestamp>>;
    /// Removes nodes whose heartbeat is older than `ttl`, and frees what they held. How many nodes that were.
    async fn take_over(&self, ttl: Duration) -> Result<u64>;
    /// How many nodes are registered.
    async fn count_nodes(&self) -> Result<u64>;
    /// Ends the registration and frees what it still holds.
    async fn deregister(&self, node: NodeId) -> Result<()>;
    /// Frees the node's leases up to the number `last` other than `live` ones, and those of nodes that are not registered
    /// (any more): one that was taken over may store leases in its old name until it notices. Later leases are none of
    /// its business: they are being taken at this moment. How many deliveries that were.
    async fn reconcile(&self, node: NodeId, live: &[Lease], last: Lease) -> Result<u64>;

    /// Stores the messages, all or none. With `repeat`, some may have been stored by an earlier call whose answer was
    /// lost; they are not stored twice.
    async fn accept(&self, node: NodeId, batch: &[Accept], repeat: Repeat) -> Result<Vec<Accepted>>;
    /// The lanes of the deliveries that are due first, up to `limit` of these looked at; when there are as many, also
    /// some lanes after `after` in their order, so that each lane comes up even when one holds all of the first.
    async fn due_lanes(&self, limit: usize, after: &str) -> Result<DueLanes>;
    /// Leases what is due in these lanes, at most `max_bytes` of messages (or one that is larger), the earliest first.
    async fn claim(
        &self,
        node: NodeId,
        lease: Lease,
        wants: &[Want],
        max_bytes: usize,
    ) -> Result<Vec<Delivery>>;
    /// The earliest due time of what nobody holds.
    async fn next_due(&self) -> Result<NextDue>;
    /// Stores the ends of attempts with all their consequences, each only while its lease holds. A batch may name a
    /// message more than once, with different leases; it is then not stored at one instant.
    async fn finish(&self, node: NodeId, batch: &[Ended]) -> Result<Vec<Applied>>;
    /// Ends leased deliveries that a user has cancelled, without an attempt.
    async fn finish_cancelled(
        &self,
        node: NodeId,
        batch: &[(MessageId, Lease)],
        now: Timestamp,
    ) -> Result<u64>;
    /// Counts the start of an attempt, before it starts; the count. `None`: the lease is gone.
    async fn count_start(&self, node: NodeId, id: &MessageId, lease: Lease) -> Result<Option<u32>>;
    /// Gives leased deliveries back unattempted.
    async fn release(&self, node: NodeId, batch: &[(MessageId, Lease)]) -> Result<u64>;

    /// A message that is waiting or whose log is still kept.
    async fn message(&self, id: &MessageId) -> Result<Option<Message>>;
    /// Cancels a message.
    async fn cancel(&self, id: &MessageId, now: Timestamp) -> Result<Cancellation>;

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
    /// The same without what is in them.
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

    /// The stored pair of signing keys, storing this one when there is none; and what it comes from.
    async fn signing_keys(&self, fresh: &StoredKeys, now: Timestamp) -> Result<StoredKeys>;
    /// Makes next current and `fresh` next; the new pair.
    async fn rotate_signing_keys(&self, fresh: &str, now: Timestamp) -> Result<SigningKeyPair>;
    /// Replaces the stored pair.
    async fn set_signing_keys(&self, keys: &StoredKeys, now: Timestamp) -> Result<()>;
    /// Hashes of the generated tokens; stores `fresh` when there are none, and tells whether it did.
    async fn tokens(&self, fresh: &[u8; 32], now: Timestamp) -> Result<(Vec<[u8; 32]>, bool)>;

    /// Removes one batch of what is past its age, walking the messages from `after`. Where to go on, or `None` when
    /// the walk is complete.
    async fn prune(&self, retention: Retention, now: Timestamp, after: &str) -> Result<Option<String>>;

    /// Waits until another node says that something all must know has changed, such as the signing keys, or may have said so
    /// unheard. Where there are no other nodes it waits for ever.
    async fn changed_elsewhere(&self) -> Result<()> {
        std::future::pending().await
    }
    /// Says so to the other nodes. Seldom: on Postgres it takes a lock that all who do it share.
    async fn tell_others(&self) -> Result<()> {
        Ok(())
    }

    /// What is set when a task of the store panics.
    fn failure(&self) -> Failure {
        Failure::default()
    }
    /// Why it can't be written to, in words that go on after "the database can't be written to: "; `None`: as far as is
    /// known, it can.
    fn trouble(&self) -> Option<&'static str> {
        None
    }
    /// How often it has become another database, by a failover: what the last steps have changed may be missing there.
    fn moves(&self) -> u64 {
        0
    }
    /// Whether another database follows it and may take its place.
    fn is_followed(&self) -> bool {
        false
    }
    /// Whether the store can be read.
    async fn ping(&self) -> Result<()>;
    /// Ends all connections.
    async fn close(&self);
}

/// Whether an accept may have been made before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// The ids are new.
    First,
    /// An earlier call with these ids may have taken effect.
    Again,
}
