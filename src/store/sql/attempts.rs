//! The table `attempts`: one row per attempt that has ended.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use super::codec;
use super::columns::Column;
use crate::domain::outcome::{Effect, Next};
use crate::store::{Accept, Ended};

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
    let callbacks = ended.finish.callbacks().zip(&ended.callbacks);
    let unleased = callbacks.filter(|(_, (_, lease))| lease.is_none());
    unleased.map(|(message, _)| message.due_at.as_millis()).chain(retry).min()
}

type EndedColumn<'a> = Column<'a, &'a Ended>;

/// The list of the columns of `attempts`.
pub(super) fn columns<'a>() -> Vec<EndedColumn<'a>> {
    type Own<'a> = EndedColumn<'a>;
    vec![
        Own::text("message_id", |ended| Some(ended.id.as_str().into())),
        Own::number("retried", |ended| Some(i64::from(ended.finish.attempt.retried))),
        Own::number("started_at", |ended| Some(ended.finish.attempt.started_at.as_millis())),
        Own::number("ended_at", |ended| Some(ended.finish.attempt.ended_at.as_millis())),
        Own::text("result", |ended| Some(result(&ended.finish.next).into())),
        Own::number("status", |ended| Some(status(ended))),
        Own::text("error", |ended| ended.finish.error.as_deref().map(Cow::from)),
        Own::number("next_due_at", |ended| match ended.finish.next {
            Next::Retry { due_at } => Some(due_at.as_millis()),
            _ => None,
        }),
        Own::text("response_headers", |ended| {
            codec::write_headers(&ended.finish.attempt.logged_headers()).map(Cow::from)
        }),
        Own::bytes("response_body", |ended| some(ended.finish.attempt.logged_body())),
    ]
}

/// The list of the columns of `dead_letters`, for an attempt that left one: with all headers and the whole body.
pub(super) fn letter<'a>() -> Vec<EndedColumn<'a>> {
    type Own<'a> = EndedColumn<'a>;
    vec![
        Own::text("id", |ended| match &ended.finish.next {
            Next::Failed { dead_letter: Some(dead_letter) } => Some(dead_letter.as_str().into()),
            _ => None,
        }),
        Own::text("message_id", |ended| Some(ended.id.as_str().into())),
        Own::text("run", |ended| {
            let ends_run = ended.finish.on_runs().find_map(|effect| match effect {
                Effect::End(ending) => Some(&ending.instance),
                _ => None,
            });
            ends_run.map(|instance| instance.as_str().into())
        }),
        Own::number("created_at", |ended| Some(ended.finish.attempt.ended_at.as_millis())),
        Own::number("status", |ended| Some(status(ended))),
        Own::text("error", |ended| ended.finish.error.as_deref().map(Cow::from)),
        Own::text("response_headers", |ended| {
            codec::write_headers(&ended.finish.attempt.response()?.headers).map(Cow::from)
        }),
        Own::bytes("response_body", |ended| some(&ended.finish.attempt.response()?.body)),
    ]
}

/// The state that an attempt leaves its message in, as it is stored.
const fn result(next: &Next) -> &'static str {
    match next {
        Next::Delivered => "delivered",
        Next::Retry { .. } => "retry",
        Next::Failed { .. } => "failed",
        Next::Cancelled => "cancelled",
    }
}

fn status(ended: &Ended) -> i64 {
    ended.finish.attempt.response().map_or(0, |response| i64::from(response.status))
}

fn some(body: &[u8]) -> Option<&[u8]> {
    Some(body).filter(|body| !body.is_empty())
}

/// The ends that leave a dead letter.
pub(super) fn with_letter<'a>(
    batch: impl Iterator<Item = &'a Ended> + Clone,
) -> impl Iterator<Item = &'a Ended> + Clone {
    batch.filter(|ended| matches!(ended.finish.next, Next::Failed { dead_letter: Some(_) }))
}

/// The callback messages of an end, as they are accepted.
pub(super) fn callbacks(ended: &Ended) -> impl Iterator<Item = Accept> {
    ended.finish.callbacks().zip(&ended.callbacks).map(|(message, (lane, lease))| Accept {
        lease: *lease,
        ..Accept::waiting(Arc::clone(message), Arc::clone(lane))
    })
}
