//! The request headers of publish, enqueue, batch items and schedules.
use std::time::Duration;

pub use crate::domain::deduplication::{Deduplication, content_key, id_key};
use crate::domain::message::{Headers, Method, Options};
use crate::domain::time::Timestamp;

/// What the headers belong to; headers that mean nothing there are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Publish,
    Enqueue,
    BatchItem,
    Schedule,
}

/// The server's limits on what headers may ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Retries of a message that names none.
    pub default_retries: u32,
    /// The most retries; `None`: no limit.
    pub max_retries: Option<u32>,
    /// The longest delay; `None`: no limit.
    pub max_delay: Option<Duration>,
    /// The longest flow-control period.
    pub max_flow_control_period: Duration,
}

/// When a message is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    Now,
    After(Duration),
    At(Timestamp),
}

/// What the headers say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    pub method: Method,
    pub headers: Headers,
    pub retries: u32,
    pub due: Due,
    pub labels: Vec<String>,
    pub options: Options,
    pub deduplication: Option<Deduplication>,
    pub queue: Option<String>,
    pub schedule_id: Option<String>,
    pub cron: Option<String>,
}

/// Why headers were refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// 400.
    #[error("invalid header {header}: {problem}")]
    Invalid { header: String, problem: String },
    /// 412.
    #[error("quota maxRetries exceeded, current limit: {limit}")]
    MaxRetries { limit: u32 },
    /// 412.
    #[error("quota maxDelay exceeded, current limit: {limit_s}")]
    MaxDelay { limit_s: u64 },
}

/// Reads a message's headers; `params` are the query parameters that stand in for absent ones.
pub fn parse<'a>(
    _kind: Kind,
    _headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    _params: &[(String, String)],
    _limits: &Limits,
    _now: Timestamp,
) -> Result<Publish, HeaderError> {
    todo!()
}
