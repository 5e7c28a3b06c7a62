//! Durations as the wire writes them.
use std::time::Duration;

/// Why a duration was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DurationError {
    #[error("it is empty")]
    Empty,
}

/// Reads `1d10h30m`, `1.5s` or a bare number of seconds.
pub fn parse(_text: &str) -> Result<Duration, DurationError> {
    todo!()
}
