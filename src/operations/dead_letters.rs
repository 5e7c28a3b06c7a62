//! Dead letters: reading, deleting and retrying them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{OperationError, Operations, Result};
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::outcome::Ids as _;
use crate::domain::publish::Overrides;
use crate::store::{Accept, DeadLetter, DeadLetterFilter, LetterPage, LetterPlace, Missing, Order, Owner};

/// Dead letters in one transaction.
const STEP: usize = 100;
/// Bytes of headers and bodies that are read at once.
const STEP_BYTES: usize = 4 << 20;
/// Bytes of bodies that a retry by ids holds, since it is all or nothing.
const MAX_RETRY: usize = 128 << 20;
/// After how long a retry by filters says how far it has come.
const BULK_TIME: Duration = Duration::from_secs(5);

/// A selection of dead letters: the next ones that match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matching {
    pub filter: DeadLetterFilter,
    pub order: Order,
    pub after: Option<LetterPlace>,
    /// At most.
    pub count: usize,
}

/// A part of what matches was deleted or retried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bulk<T> {
    pub done: T,
    /// Where to go on; `None`: that was all.
    pub next: Option<LetterPlace>,
}

impl Operations {
    /// The next dead letters that match, about `max_bytes` of headers and bodies.
    pub async fn dead_letters(&self, which: &Matching, max_bytes: usize) -> Result<LetterPage<DeadLetter>> {
        let Matching { filter, order, after, count } = which;
        Ok(self.store().dead_letters(filter, *order, after.as_ref(), *count, max_bytes).await?)
    }

    pub async fn dead_letter(&self, id: &DeadLetterId) -> Result<DeadLetter> {
        self.store().dead_letter(id).await?.ok_or_else(|| unknown(id))
    }

    /// Deletes those of the dead letters that exist; how many.
    pub async fn delete_dead_letters(&self, ids: &[DeadLetterId]) -> Result<u64> {
        let mut deleted = 0;
        for step in ids.chunks(STEP) {
            deleted += self.store().delete_dead_letters(step).await?;
        }
        Ok(deleted)
    }

    /// Deletes the next dead letters that match; how many.
    pub async fn delete_matching_dead_letters(&self, which: &Matching) -> Result<Bulk<u64>> {
        let Matching { filter, order, after, count } = which;
        let page = self.store().dead_letter_places(filter, *order, after.as_ref(), *count).await?;
        let ids: Vec<DeadLetterId> = page.items.into_iter().map(|(_, id)| id).collect();
        Ok(Bulk { done: self.delete_dead_letters(&ids).await?, next: page.next })
    }

    /// Deletes a dead letter.
    pub async fn delete_dead_letter(&self, id: &DeadLetterId) -> Result<()> {
        match self.store().delete_dead_letters(std::slice::from_ref(id)).await? {
            0 => Err(unknown(id)),
            _ => Ok(()),
        }
    }

    /// Refuses overrides that fit no dead letter.
    pub fn check_overrides(&self, overrides: &Overrides) -> Result<()> {
        overrides.callbacks().iter().flatten().try_for_each(|spec| self.check_callback(spec))
    }

    /// Replaces dead letters by new messages, all or none; the messages' ids, in their order.
    pub async fn retry_dead_letters(
        &self,
        ids: &[DeadLetterId],
        overrides: &Overrides,
    ) -> Result<Vec<MessageId>> {
        let mut replacements = HashMap::with_capacity(ids.len());
        let mut bytes = 0;
        for step in ids.chunks(STEP) {
            let ids = step.to_vec();
            let filter = DeadLetterFilter { owner: Owner::Any, ids, ..DeadLetterFilter::default() };
            let mut which = Matching { filter, order: Order::EarliestFirst, after: None, count: STEP };
            loop {
                let page = self.dead_letters(&which, STEP_BYTES).await?;
                for letter in page.items {
                    if letter.run.is_some() {
                        return Err(OperationError::Invalid(format!(
                            "dead letter {} has ended a workflow run: it can be resumed or restarted, by \
                             /v2/workflows/dlq/resume and /v2/workflows/dlq/restart",
                            letter.id
                        )));
                    }
                    bytes += letter.message.size();
                    let id = letter.id.clone();
                    replacements.insert(id, self.replacement(letter, overrides)?);
                }
                if bytes > MAX_RETRY {
                    let what = "what these dead letters hold together";
                    return Err(OperationError::TooLarge { what, limit: MAX_RETRY });
                }
                which.after = page.next;
                if which.after.is_none() {
                    break;
                }
            }
        }
        let replacement = |id: &DeadLetterId| {
            let accept = replacements.remove(id).ok_or_else(|| unknown(id))?;
            Ok::<_, OperationError>((id.clone(), accept))
        };
        let batch: Vec<_> = ids.iter().map(replacement).collect::<Result<_>>()?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let replaced = self.store().retry_dead_letters(&batch, Missing::Refuse).await?;
        if replaced.contains(&false) {
            let text = "some of the dead letters are gone; none was retried";
            return Err(OperationError::NotFound(text.to_owned()));
        }
        Ok(self.retried(&batch, &replaced))
    }

    /// Replaces the next dead letters that match by new messages, those that are still there, as far as it comes in some
    /// seconds; the messages' ids. A dead letter whose destination is not allowed any more stays what it is.
    pub async fn retry_matching_dead_letters(
        &self,
        which: Matching,
        overrides: &Overrides,
    ) -> Result<Bulk<Vec<MessageId>>> {
        let mut retried = Vec::new();
        let mut left = which.count;
        let mut which = which;
        let started = Instant::now();
        while left > 0 {
            which.count = left.min(STEP);
            let page = self.dead_letters(&which, STEP_BYTES).await?;
            left -= page.items.len();
            which.after = page.next;
            let replacement =
                |letter: DeadLetter| Some((letter.id.clone(), self.replacement(letter, overrides).ok()?));
            let batch: Vec<_> = page.items.into_iter().filter_map(replacement).collect();
            let replaced = self.store().retry_dead_letters(&batch, Missing::Skip).await?;
            retried.extend(self.retried(&batch, &replaced));
            if which.after.is_none() || started.elapsed() >= BULK_TIME {
                break;
            }
        }
        Ok(Bulk { done: retried, next: which.after })
    }

    /// The messages that have taken the places of dead letters; the engine is told of them.
    fn retried(&self, batch: &[(DeadLetterId, Accept)], replaced: &[bool]) -> Vec<MessageId> {
        let accepted = batch.iter().zip(replaced).filter(|(_, replaced)| **replaced);
        let messages = accepted.map(|((_, accept), _)| &accept.message);
        messages
            .inspect(|message| self.engine.note_waiting(message))
            .map(|message| message.id.clone())
            .collect()
    }

    /// The new message for a dead letter.
    fn replacement(&self, letter: DeadLetter, overrides: &Overrides) -> Result<Accept> {
        let now = self.now();
        let mut message = letter.message;
        message.id = self.engine.ids().message(now);
        overrides.clone().apply(&mut message, now);
        let origin = self.check_destination(&message.url)?;
        self.check_callbacks(&message.options)?;
        Ok(Accept::waiting(Arc::new(message), origin.lane()))
    }
}

fn unknown(id: &DeadLetterId) -> OperationError {
    OperationError::not_found("dead letter", id.as_str())
}
