//! The expression language of `Upstash-Retry-Delay`.
use std::time::Duration;

/// Why an expression was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{problem} at character {position}")]
pub struct ExpressionError {
    pub position: usize,
    pub problem: String,
}

/// An expression that has been checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Expression;

impl Expression {
    /// Reads an expression.
    pub fn parse(_text: &str) -> Result<Self, ExpressionError> {
        todo!()
    }

    /// The delay before the next attempt; `None`: not a number, so use back-off.
    pub fn delay(&self, _retried: u32) -> Option<Duration> {
        todo!()
    }
}
