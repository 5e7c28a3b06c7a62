//! When the next attempt is made.
use std::time::Duration;

use super::message::{Headers, Options};
use super::time::Timestamp;

/// The delay before a retry; `retry` is 1 for the first.
pub fn back_off(_retry: u32) -> Duration {
    todo!()
}

/// The delay that a response asks for.
pub fn asked_by(_headers: &Headers, _now: Timestamp) -> Option<Duration> {
    todo!()
}

/// The delay before the attempt that follows the one after `retried` others.
pub fn delay(_options: &Options, _headers: Option<&Headers>, _retried: u32, _now: Timestamp) -> Duration {
    todo!()
}
