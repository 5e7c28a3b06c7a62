//! The table `attempts`: one row per attempt that has ended.

use std::collections::HashSet;

use super::codec;
use crate::domain::outcome::{Finish, Next};
use crate::domain::time::Timestamp;
use crate::store::Ended;

/// Where a batch names a message for the second time. The statements tell ends apart by their message, so they must see
/// each once: a node that lost a lease and took the message again may report two ends, of which one lease holds.
pub(super) fn first_repeat(batch: &[Ended]) -> Option<usize> {
    let mut seen = HashSet::with_capacity(batch.len());
    batch.iter().position(|ended| !seen.insert(ended.id.as_str()))
}

/// The earliest due time, in Unix milliseconds, of what an end leaves for anybody to take: a retry, callbacks.
pub(super) fn due_again(ended: &Ended) -> Option<i64> {
    let retry = match &ended.finish.next {
        Next::Retry { due_at } => Some(due_at.as_millis()),
        _ => None,
    };
    let callbacks = ended.finish.callbacks.iter().zip(&ended.callbacks);
    let unleased = callbacks.filter(|(_, (_, lease))| lease.is_none());
    unleased.map(|(message, _)| message.due_at.as_millis()).chain(retry).min()
}

/// The columns of an ended attempt, but for its message's id.
pub(super) struct AttemptColumns<'a> {
    pub(super) retried: i64,
    pub(super) started_at: i64,
    pub(super) ended_at: i64,
    pub(super) result: &'static str,
    pub(super) status: i64,
    pub(super) error: Option<&'a str>,
    pub(super) next_due_at: Option<i64>,
    pub(super) headers: Option<String>,
    pub(super) body: Option<&'a [u8]>,
    /// All headers and the whole body, for the dead letter that the attempt left.
    pub(super) letter_headers: Option<String>,
    pub(super) letter_body: Option<&'a [u8]>,
}

impl<'a> AttemptColumns<'a> {
    pub(super) fn new(finish: &'a Finish) -> Self {
        let response = finish.attempt.response();
        let failed = matches!(finish.next, Next::Failed { .. });
        let (result, next_due_at) = match &finish.next {
            Next::Delivered => ("delivered", None),
            Next::Retry { due_at } => ("retry", Some(due_at)),
            Next::Failed { .. } => ("failed", None),
            Next::Cancelled => ("cancelled", None),
        };
        Self {
            retried: i64::from(finish.attempt.retried),
            started_at: finish.attempt.started_at.as_millis(),
            ended_at: finish.attempt.ended_at.as_millis(),
            result,
            status: response.map_or(0, |response| i64::from(response.status)),
            error: finish.error.as_deref(),
            next_due_at: next_due_at.copied().map(Timestamp::as_millis),
            headers: codec::write_headers(&finish.attempt.logged_headers()),
            body: Some(finish.attempt.logged_body()).filter(|body| !body.is_empty()),
            letter_headers: response
                .filter(|_| failed)
                .and_then(|response| codec::write_headers(&response.headers)),
            letter_body: response
                .filter(|_| failed)
                .map(|response| &response.body[..])
                .filter(|body| !body.is_empty()),
        }
    }
}
