//! Where a message goes: the forms a destination is written in, and what is sent to it.
use std::fmt;

/// A destination as a publisher wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    Url(String),
    Group(String),
    Api(String),
}

/// A destination and the API's own query parameters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    pub destination: Destination,
    pub params: Vec<(String, String)>,
}

/// Why a destination was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DestinationError {
    #[error("a non-empty destination must be provided")]
    Empty,
    #[error("invalid destination url: endpoint has invalid scheme, add http:// or https://")]
    InvalidScheme,
    #[error("invalid destination url: {0}")]
    InvalidUrl(String),
    #[error("unknown destination api/{0}: only api/llm is supported")]
    UnknownApi(String),
    #[error("topic {0} not found")]
    UnknownGroup(String),
}

/// Scheme, host and port: what connections and fairness go by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    pub https: bool,
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Origin {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

/// What goes onto the wire for a URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestTarget {
    pub origin: Origin,
    pub authority: String,
    pub path_and_query: String,
    pub userinfo: Option<(String, String)>,
}

/// Reads what follows `/v2/publish/` in the raw request target, query included.
pub fn parse(_raw_rest: &str) -> Result<Parsed, DestinationError> {
    todo!()
}

/// Reads a batch item's destination, whose query is all its own.
pub fn parse_literal(_text: &str) -> Result<Destination, DestinationError> {
    todo!()
}

/// Checks that a URL can be sent to.
pub fn validate_url(_url: &str) -> Result<Origin, DestinationError> {
    todo!()
}

/// Takes a URL apart for sending.
pub fn request_target(_url: &str) -> Result<RequestTarget, DestinationError> {
    todo!()
}
