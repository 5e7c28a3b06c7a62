//! What an attempt came to, and what follows from it.

use bytes::Bytes;

use super::id::DeadLetterId;
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
