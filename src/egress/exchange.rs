//! A request, what comes of it, and the ways in which it can fail, whatever the protocol.

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};

use super::{MAX_HEADERS, MAX_INFORMATIONAL};
use crate::domain::outcome::FailureClass;

/// A request to a destination. Its fields are none of the connection's own (RFC 9110, 7.6.1).
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What a response begins with.
#[derive(Debug)]
pub(super) struct Head {
    /// 100 to 999.
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
}

/// A failed exchange: no complete response.
#[derive(Debug)]
pub struct Failure {
    pub class: FailureClass,
    /// One sentence for users.
    pub error: String,
}

/// Why a request brought no response.
#[derive(Debug)]
pub enum SendError {
    /// The attempt has failed.
    Failed(Failure),
    /// No attempt was made: this machine is short of something that a connection needs, such as descriptors or ports.
    /// The text is the system's.
    Lacking(String),
}

/// How sending a request on one connection can end without a response.
#[derive(Debug)]
pub(super) enum Broken {
    /// It has surely not been processed: it may be sent again.
    Unprocessed(Failure),
    /// It may have been, or sending it again would not help.
    Final(SendError),
}

impl From<SendError> for Broken {
    fn from(error: SendError) -> Self {
        Self::Final(error)
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Final(SendError::Failed(failure))
    }
}

/// A body that did not come to its end.
#[derive(Debug)]
pub(super) enum BodyError {
    /// It is not complete, for that reason.
    Short(String),
    /// Only the connection's end marks its own, and that end was not clean.
    PerhapsShort,
}

pub(super) fn malformed(what: &str) -> Failure {
    headers(format!("malformed response: {what}"))
}

pub(super) fn too_large() -> Failure {
    headers(format!("the response's headers are too large: more than {} KiB", MAX_HEADERS >> 10))
}

pub(super) fn too_many_informational() -> Failure {
    headers(format!("more than {MAX_INFORMATIONAL} informational (1xx) responses came instead of an answer"))
}

fn headers(error: String) -> Failure {
    Failure { class: FailureClass::Headers, error }
}
