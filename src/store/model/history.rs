//! The model's log and dead letters.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::runs::RunContents;
use super::{Contents, Ending, MAX_QUEUES, Model};
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::message::{Headers, Message};
use crate::domain::outcome::{Attempt, Next, Response};
use crate::domain::time::Timestamp;
use crate::store::{
    Accept, DeadLetter, DeadLetterFilter, History, LetterPage, LetterPlace, LogCursor, LogEntry, LogFilter,
    LogPage, Missing, Order, Page, Result, Retention, State, StoreError,
};

/// Sequences of a cancellation's entries in the log: behind any attempt's.
const CANCEL_REQUESTED: i64 = 1 << 40;
const CANCELLED: i64 = CANCEL_REQUESTED + 1;

impl Contents {
    /// All entries of the log, the earliest first.
    pub(super) fn log(&self) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        let mut add = |id: &MessageId, time: Timestamp, state: State, sequence: i64| {
            let message = Arc::clone(&self.messages[id]);
            entries.push(LogEntry {
                time,
                message,
                state,
                sequence,
                next_due_at: None,
                error: None,
                response: None,
            });
            entries.len() - 1
        };
        let mut created_later = Vec::new();
        for (id, message) in &self.messages {
            let entry = add(id, message.created_at, State::Created, 0);
            if message.due_at > message.created_at {
                created_later.push((entry, message.due_at));
            }
        }
        for (id, waiting) in self.deliveries.iter().filter(|(_, waiting)| waiting.holder.is_some()) {
            add(id, waiting.due_at, State::Active, 4 * i64::from(waiting.retried) + 1);
        }
        for (id, cancelling) in &self.cancellations {
            add(id, cancelling.requested_at, State::CancelRequested, CANCEL_REQUESTED);
            if let Some(cancelled_at) = cancelling.cancelled_at {
                add(id, cancelled_at, State::Cancelled, CANCELLED);
            }
        }
        let mut ended = Vec::new();
        for ((id, retried), ending) in &self.attempts {
            let base = 4 * i64::from(*retried);
            add(id, ending.attempt.started_at, State::Active, base + 1);
            let at = ending.attempt.ended_at;
            if ending.next != Next::Delivered {
                ended.push((add(id, at, State::Error, base + 2), ending));
            }
            match &ending.next {
                Next::Delivered => ended.push((add(id, at, State::Delivered, base + 3), ending)),
                Next::Retry { .. } => ended.push((add(id, at, State::Retry, base + 3), ending)),
                Next::Failed { .. } => ended.push((add(id, at, State::Failed, base + 3), ending)),
                Next::Cancelled => {}
            }
        }
        for (entry, due_at) in created_later {
            entries[entry].next_due_at = Some(due_at);
        }
        for (entry, ending) in ended {
            let entry = &mut entries[entry];
            if let (State::Retry, Next::Retry { due_at }) = (entry.state, &ending.next) {
                entry.next_due_at = Some(*due_at);
            } else {
                entry.error.clone_from(&ending.error);
                entry.response = logged(&ending.attempt);
            }
        }
        entries.sort_by(|a, b| place(a).cmp(&place(b)));
        entries
    }

    pub(super) fn size(&self, id: &MessageId) -> usize {
        let answers = self.attempts.iter().filter(|((of, _), _)| of == id);
        let answers = answers.map(|(_, Ending { attempt, .. })| {
            attempt.logged_body().len() + headers_size(&attempt.logged_headers())
        });
        let message = &self.messages[id];
        message.body.len() + headers_size(&message.headers) + answers.sum::<usize>()
    }

    pub(super) fn dead_letter(&self, id: &DeadLetterId) -> Option<DeadLetter> {
        let letter = self.dead_letters.get(id)?;
        Some(DeadLetter {
            id: id.clone(),
            created_at: letter.created_at,
            message: Message::clone(&self.messages[&letter.message]),
            response: letter.response.clone(),
            error: letter.error.clone(),
            run: letter.run.clone(),
        })
    }

    pub(super) fn letters(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
    ) -> Vec<DeadLetter> {
        let mut letters: Vec<DeadLetter> =
            self.dead_letters.keys().filter_map(|id| self.dead_letter(id)).collect();
        letters.sort_by_key(DeadLetter::place);
        if order == Order::LatestFirst {
            letters.reverse();
        }
        letters.retain(|letter| {
            let status = letter.response.as_ref().map_or(0, |response| response.status);
            after.is_none_or(|after| match order {
                Order::EarliestFirst => letter.place() > *after,
                Order::LatestFirst => letter.place() < *after,
            }) && filter.owner.includes(letter.run.is_some())
                && filter.runs.as_ref().is_none_or(|runs| {
                    let run = letter.run.as_ref().and_then(|instance| self.known_run(instance));
                    run.is_some_and(|run| runs.matches(&run))
                })
                && (filter.messages.is_empty() || filter.messages.contains(&letter.message.id))
                && (filter.ids.is_empty() || filter.ids.contains(&letter.id))
                && filter.matching.matches(&letter.message)
                && (filter.statuses.is_empty() || filter.statuses.contains(&status))
                && filter.from.is_none_or(|from| letter.created_at >= from)
                && filter.to.is_none_or(|to| letter.created_at <= to)
        });
        letters
    }

    /// Whether anything happened to the message at `cutoff` or later.
    pub(super) fn is_young(&self, id: &MessageId, cutoff: Timestamp) -> bool {
        let attempts =
            self.attempts.iter().any(|((of, _), ending)| of == id && ending.attempt.ended_at >= cutoff);
        let cancelled = self.cancellations.get(id).is_some_and(|cancelling| {
            cancelling.requested_at >= cutoff || cancelling.cancelled_at.is_some_and(|at| at >= cutoff)
        });
        self.messages[id].created_at >= cutoff || attempts || cancelled
    }
}

/// The response as the log keeps it.
pub(super) fn logged(attempt: &Attempt) -> Option<Response> {
    let (headers, body) = (attempt.logged_headers(), Bytes::copy_from_slice(attempt.logged_body()));
    attempt.response().map(|response| Response { headers, body, ..response.clone() })
}

/// Bytes of headers as they are stored: JSON, nothing where there are none.
pub(super) fn headers_size(headers: &Headers) -> usize {
    if headers.is_empty() {
        return 0;
    }
    serde_json::to_string(&headers.texts().collect::<Vec<_>>()).map_or(0, |text| text.len())
}

pub(super) fn place(entry: &LogEntry) -> (Timestamp, &MessageId, i64) {
    (entry.time, &entry.message.id, entry.sequence)
}

pub(super) fn letter_page<T>(page: Page<T>, place: impl Fn(&T) -> LetterPlace) -> LetterPage<T> {
    let next = page.items.last().filter(|_| page.more).map(place);
    LetterPage { items: page.items, next }
}

/// The first items of a list: at most `count`, and no more once `max_bytes` are reached.
pub(super) fn cut<T>(items: Vec<T>, count: usize, max_bytes: usize, size: impl Fn(&T) -> usize) -> Page<T> {
    let total = items.len();
    let mut bytes = 0;
    let mut page = Vec::new();
    for item in items {
        if page.len() == count || bytes >= max_bytes {
            break;
        }
        bytes += size(&item);
        page.push(item);
    }
    Page { more: page.len() < total, items: page }
}

#[async_trait]
impl History for Model {
    async fn message(&self, id: &MessageId) -> Result<Option<Message>> {
        self.read("message", |state| Ok(state.messages.get(id).map(|message| Message::clone(message)))).await
    }

    async fn log(
        &self,
        filter: &LogFilter,
        order: Order,
        cursor: Option<&LogCursor>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LogPage> {
        self.read("log", |state| {
            let mut entries = state.log();
            if order == Order::LatestFirst {
                entries.reverse();
            }
            entries.retain(|entry| {
                let (after, before) = match cursor {
                    None => (true, true),
                    Some(LogCursor { time, entry: None }) => (entry.time > *time, entry.time < *time),
                    Some(LogCursor { time, entry: Some((id, sequence)) }) => {
                        (place(entry) > (*time, id, *sequence), place(entry) < (*time, id, *sequence))
                    }
                };
                (match order {
                    Order::EarliestFirst => after,
                    Order::LatestFirst => before,
                }) && filter.owner.includes(entry.message.run.is_some())
                    && (filter.messages.is_empty() || filter.messages.contains(&entry.message.id))
                    && filter.matching.matches(&entry.message)
                    && (filter.states.is_empty() || filter.states.contains(&entry.state))
                    && filter.from.is_none_or(|from| entry.time >= from)
                    && filter.to.is_none_or(|to| entry.time <= to)
            });
            let page = cut(entries, count, max_bytes, |entry| state.size(&entry.message.id));
            let next = page.items.last().filter(|_| page.more).map(LogEntry::place);
            Ok(LogPage { items: page.items, next })
        })
        .await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        self.read("dead_letter", |state| Ok(state.dead_letter(id))).await
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LetterPage<DeadLetter>> {
        self.read("dead_letters", |state| {
            let page = cut(state.letters(filter, order, after), count, max_bytes, |letter| {
                let answer = letter.response.as_ref();
                let run = letter.run.as_ref().and_then(|instance| state.runs.get(instance));
                letter.message.body.len()
                    + run.map_or(0, RunContents::payload_size)
                    + headers_size(&letter.message.headers)
                    + answer.map_or(0, |response| response.body.len() + headers_size(&response.headers))
            });
            Ok(letter_page(page, DeadLetter::place))
        })
        .await
    }

    async fn dead_letter_places(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
    ) -> Result<LetterPage<LetterPlace>> {
        self.read("dead_letter_places", |state| {
            let letters = state.letters(filter, order, after);
            let page = cut(letters.iter().map(DeadLetter::place).collect(), count, usize::MAX, |_| 0);
            Ok(letter_page(page, LetterPlace::clone))
        })
        .await
    }

    async fn delete_dead_letters(&self, ids: &[DeadLetterId]) -> Result<u64> {
        let ids = ids.to_vec();
        self.write("delete_dead_letters", move |state| {
            Ok(ids.iter().filter(|id| state.dead_letters.remove(id).is_some()).count() as u64)
        })
        .await
    }

    async fn retry_dead_letters(
        &self,
        replacements: &[(DeadLetterId, Accept)],
        missing: Missing,
    ) -> Result<Vec<bool>> {
        let replacements = replacements.to_vec();
        self.write("retry_dead_letters", move |state| {
            let ids: BTreeSet<&DeadLetterId> = replacements.iter().map(|(id, _)| id).collect();
            let is_missing =
                ids.len() < replacements.len() || ids.iter().any(|id| !state.dead_letters.contains_key(id));
            if missing == Missing::Refuse && is_missing {
                return Ok(vec![false; replacements.len()]);
            }
            let mut seen = BTreeSet::new();
            let there: Vec<bool> = replacements
                .iter()
                .map(|(id, _)| seen.insert(id) && state.dead_letters.contains_key(id))
                .collect();
            let replaced: Vec<&(DeadLetterId, Accept)> = replacements
                .iter()
                .zip(&there)
                .filter(|(_, there)| **there)
                .map(|(replacement, _)| replacement)
                .collect();
            if !state.without_room(replaced.iter().map(|(_, accept)| accept)).is_empty() {
                return Err(StoreError::TooManyQueues(MAX_QUEUES));
            }
            state.hold(replaced.iter().map(|(_, accept)| &*accept.message));
            for (id, accept) in replaced {
                state.dead_letters.remove(id);
                state.insert(Arc::clone(&accept.message), Arc::clone(&accept.lane), None, None);
            }
            Ok(there)
        })
        .await
    }

    /// All in one batch.
    async fn prune(&self, retention: Retention, now: Timestamp, after: &str) -> Result<Option<String>> {
        let after = after.to_owned();
        self.write("prune", move |state| {
            if after.is_empty() {
                let cutoff = now.before(retention.dead_letters);
                state.dead_letters.retain(|_, letter| letter.created_at >= cutoff);
                state.keys.retain(|_, (_, expires_at)| *expires_at > now);
            }
            let cutoff = now.before(retention.log);
            if after.is_empty() {
                state.prune_keys(cutoff);
            }
            state.prune_runs(cutoff);
            let bound = MessageId::earliest_at(cutoff);
            let kept = |id: &MessageId| {
                id.as_str() <= after.as_str()
                    || *id >= bound
                    || state.deliveries.contains_key(id)
                    || state.dead_letters.values().any(|letter| letter.message == *id)
                    || state.is_young(id, cutoff)
                    || state.messages[id]
                        .run
                        .as_ref()
                        .is_some_and(|part| state.runs.contains_key(&part.instance))
            };
            let gone: BTreeSet<MessageId> = state.messages.keys().filter(|id| !kept(id)).cloned().collect();
            state.messages.retain(|id, _| !gone.contains(id));
            state.attempts.retain(|(id, _), _| !gone.contains(id));
            state.cancellations.retain(|id, _| !gone.contains(id));
            Ok(None)
        })
        .await
    }
}
