//! What an attempt came to, and what follows from it.

use bytes::Bytes;

use super::id::{DeadLetterId, MessageId};
use super::message::{Headers, Message};
use super::time::Timestamp;

/// A destination's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// 100 to 999.
    pub status: u16,
    /// Canonical names; values that are not text have their bytes replaced.
    pub headers: Headers,
    /// Read up to the server's cap; what came beyond is discarded.
    pub body: Bytes,
}

/// Why there was no complete response. Stable names, used in metrics too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureClass {
    Dns,
    Blocked,
    Connect,
    Tls,
    Timeout,
    Reset,
    Headers,
    Body,
    /// The stored message can't be sent: its body doesn't match its hash, or it has been claimed too often.
    Message,
    /// Our own fault; the attempt's task failed.
    Internal,
}

impl FailureClass {
    /// The class as text, lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Blocked => "blocked",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Headers => "headers",
            Self::Body => "body",
            Self::Message => "message",
            Self::Internal => "internal",
        }
    }
}

/// What one attempt came to. A receiver's failure is data, not an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The destination answered completely.
    Response(Response),
    /// It did not.
    NoResponse {
        class: FailureClass,
        /// One sentence for users.
        error: String,
    },
    /// It must not be attempted (again): straight to the dead letters.
    Unsendable { class: FailureClass, error: String },
}

/// One attempt that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Attempts made before this one.
    pub retried: u32,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub outcome: Outcome,
}

/// The state that an ended attempt leaves its message in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Done.
    Delivered,
    /// Another attempt at that time.
    Retry { due_at: Timestamp },
    /// No attempt is left: a dead letter.
    Failed { dead_letter: DeadLetterId },
    /// A user cancelled it while the attempt ran.
    Cancelled,
}

/// An outcome with all its consequences, to be stored in one transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finish {
    pub attempt: Attempt,
    pub next: Next,
    /// The text that logs show for a failed attempt; `None` when it was delivered.
    pub error: Option<String>,
    /// Callback and failure callback messages.
    pub callbacks: Vec<Message>,
}

/// Where the ids of new messages and dead letters come from.
pub trait Ids {
    /// An id for a message made at `now`.
    fn message(&mut self, now: Timestamp) -> MessageId;
    /// An id for a dead letter made at `now`.
    fn dead_letter(&mut self, now: Timestamp) -> DeadLetterId;
}

/// What a decision depends on besides the message and the attempt.
pub struct Context<'a> {
    /// Whether a user asked to cancel the message while the attempt ran.
    pub cancel_requested: bool,
    /// Bytes of the response body that callbacks carry; the rest is cut off.
    pub max_body: usize,
    /// Ids for callbacks and dead letters.
    pub ids: &'a mut dyn Ids,
}

/// What follows from an attempt.
pub fn decide(_message: &Message, _attempt: Attempt, _context: &mut Context<'_>) -> Finish {
    todo!()
}
