//! Dead letters that have ended workflow runs: reading them, new runs in their places, and telling of the failure again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::dead_letters::{Bulk, Matching};
use super::{OperationError, Operations, Result};
use crate::domain::id::DeadLetterId;
use crate::domain::message::Message;
use crate::domain::outcome::Ids as _;
use crate::domain::publish::Overrides;
use crate::domain::run::again::{Again, From, Past};
use crate::domain::run::story::RunMessage;
use crate::domain::run::{Entry, Run, Told, headers};
use crate::domain::time::Timestamp;
use crate::store::runs::RunKey;
use crate::store::{Accept, Cancellation, DeadLetter, LetterPage};

/// Bytes of a run's entries that are read at once.
const READ: usize = 4 << 20;
/// Bytes of the log that a resumed run may begin with.
const MAX_LOG: usize = 256 << 20;
/// After how long a call says how far it has come.
const BULK_TIME: Duration = Duration::from_secs(5);

/// A dead letter that has ended a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunLetter {
    /// With the message as users know it: the run's payload, and the headers of the delivery.
    pub letter: DeadLetter,
    pub run: Run,
    /// The message that tells of the failure; `None`: there is none.
    pub telling: Option<RunMessage>,
}

/// A run that has begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    pub id: String,
    pub created_at: Timestamp,
}

impl Operations {
    /// The next dead letters of runs that match, about `max_bytes` of headers and bodies.
    pub async fn run_letters(&self, which: &Matching, max_bytes: usize) -> Result<LetterPage<RunLetter>> {
        let page = self.dead_letters(which, max_bytes).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for letter in page.items {
            items.extend(self.run_letter_of(letter).await?);
        }
        Ok(LetterPage { items, next: page.next })
    }

    /// A dead letter that has ended a run.
    pub async fn run_letter(&self, id: &DeadLetterId) -> Result<RunLetter> {
        let letter = self.store().dead_letter(id).await?.ok_or_else(|| unknown(id))?;
        self.run_letter_of(letter).await?.ok_or_else(|| unknown(id))
    }

    async fn run_letter_of(&self, mut letter: DeadLetter) -> Result<Option<RunLetter>> {
        let Some(instance) = letter.run.clone() else { return Ok(None) };
        let Some(run) = self.store().run(&RunKey::Instance(instance)).await? else { return Ok(None) };
        let payload = self.store().run_entries(&run.instance, 0, 1).await?;
        letter.message = shown(&run, letter.message, payload.into_iter().next());
        let telling = match run.end.as_ref().and_then(|end| end.telling.as_ref()) {
            Some(telling) => self.store().run_message(&telling.message).await?,
            None => None,
        };
        Ok(Some(RunLetter { letter, run, telling }))
    }

    /// Deletes a dead letter of a run.
    pub async fn delete_run_letter(&self, id: &DeadLetterId) -> Result<()> {
        let letter = self.store().dead_letter(id).await?;
        letter.filter(|letter| letter.run.is_some()).ok_or_else(|| unknown(id))?;
        self.delete_dead_letter(id).await
    }

    /// Begins runs in the places of these dead letters, all of which there must be.
    pub async fn begin_again(
        &self,
        ids: &[DeadLetterId],
        from: From,
        overrides: &Overrides,
    ) -> Result<Vec<Begun>> {
        for id in ids {
            let letter = self.store().dead_letter(id).await?.ok_or_else(|| unknown(id))?;
            if letter.run.is_none() {
                return Err(OperationError::Invalid(format!(
                    "dead letter {id} has ended no workflow run: it can be retried, by /v2/dlq/retry"
                )));
            }
        }
        let mut begun = Vec::with_capacity(ids.len());
        for id in ids {
            begun.extend(self.begin_one_again(id, from, overrides).await?);
        }
        Ok(begun)
    }

    /// Begins runs in the places of the next dead letters that match, as far as it comes in some seconds. A run whose
    /// destination is not allowed any more stays what it is.
    pub async fn begin_matching_again(
        &self,
        which: Matching,
        from: From,
        overrides: &Overrides,
    ) -> Result<Bulk<Vec<Begun>>> {
        let started = Instant::now();
        let Matching { filter, order, after, count } = &which;
        let page = self.store().dead_letter_places(filter, *order, after.as_ref(), *count).await?;
        let (mut done, mut next) = (Vec::new(), page.next);
        let mut places = page.items.into_iter();
        while let Some(place) = places.next() {
            match self.begin_one_again(&place.1, from, overrides).await {
                Ok(begun) => done.extend(begun),
                Err(
                    OperationError::Destination(_)
                    | OperationError::Invalid(_)
                    | OperationError::TooLarge { .. },
                ) => {}
                Err(error) => return Err(error),
            }
            if started.elapsed() >= BULK_TIME && places.len() > 0 {
                next = Some(place);
                break;
            }
        }
        Ok(Bulk { done, next })
    }

    /// Begins a run in the place of a dead letter; `None`: that is gone.
    async fn begin_one_again(
        &self,
        id: &DeadLetterId,
        from: From,
        overrides: &Overrides,
    ) -> Result<Option<Begun>> {
        let Some(again) = self.again(id, from, overrides).await? else { return Ok(None) };
        for message in &again.messages {
            self.check_destination(&message.url)?;
        }
        self.check_callbacks(&again.new.trigger.options)?;
        if !self.store().begin_again(&again).await? {
            return Ok(None);
        }
        let Again { instance, created_at, new, messages, .. } = again;
        for message in messages {
            self.engine.note_waiting(&Arc::new(message));
        }
        let id = new.id.clone();
        self.engine.runs().begun(Run::begun(instance, created_at, new));
        Ok(Some(Begun { id, created_at }))
    }

    async fn again(&self, id: &DeadLetterId, from: From, overrides: &Overrides) -> Result<Option<Again>> {
        let store = self.store();
        let letter = store.dead_letter(id).await?.and_then(|letter| letter.run);
        let Some(instance) = letter else { return Ok(None) };
        let Some(run) = store.run(&RunKey::Instance(instance)).await? else { return Ok(None) };
        let (mut entries, mut size): (Vec<Entry>, usize) = (Vec::new(), 0);
        loop {
            let position = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            let bytes = if from == From::Beginning { 1 } else { READ };
            let more = store.run_entries(&run.instance, position, bytes).await?;
            size += more.iter().map(|entry| entry.body.len()).sum::<usize>();
            if size > MAX_LOG {
                return Err(OperationError::TooLarge { what: "the log of the run", limit: MAX_LOG });
            }
            let is_all = more.is_empty() || from == From::Beginning;
            entries.extend(more);
            if is_all {
                break;
            }
        }
        let messages = self.run_messages(&run, 0).await?;
        let children = store.children(&run.instance).await?;
        let step = |child: &Run| Some((child.invoker.as_ref()?.step_id, child.created_at));
        let invoked: Vec<_> = children.iter().filter_map(step).collect();
        let past = Past { run: &run, letter: id, entries: &entries, messages: &messages, invoked: &invoked };
        Ok(past.again(from, overrides, &mut self.engine.ids(), self.now()))
    }

    /// Tells of a run's failure once more, where telling has failed.
    pub async fn tell_again(&self, id: &DeadLetterId) -> Result<Begun> {
        let RunLetter { run, telling, .. } = self.run_letter(id).await?;
        let failed = || {
            OperationError::invalid(
                "the run's failure callback has not failed: only one in the state CALLBACK_FAIL can be called again",
            )
        };
        let told = run.end.as_ref().and_then(|end| end.telling.as_ref()?.told);
        let telling = telling.filter(|_| told == Some(Told::Failed)).ok_or_else(failed)?;
        self.check_destination(&telling.message.url)?;
        let now = self.now();
        let id = self.engine.ids().message(now);
        let message = Message { id, created_at: now, due_at: now, ..telling.message.clone() };
        let accept = Accept::by_url(Arc::new(message));
        if !self.store().tell_again(&run.instance, &telling.message.id, &accept).await? {
            return Err(failed());
        }
        self.engine.note_waiting(&accept.message);
        Ok(Begun { id: run.id, created_at: run.created_at })
    }

    /// Cancels telling of a run's failure, while it is under way.
    pub async fn cancel_telling(&self, id: &DeadLetterId) -> Result<Begun> {
        let RunLetter { run, telling, .. } = self.run_letter(id).await?;
        let ended = || {
            OperationError::invalid(
                "the run's failure callback is not under way: only one in the state CALLBACK_INPROGRESS can be cancelled",
            )
        };
        let told = run.end.as_ref().and_then(|end| end.telling.as_ref()?.told);
        let telling = telling.filter(|_| told.is_none()).ok_or_else(ended)?;
        let cancelled = self.store().cancel_telling(&run.instance, &telling.message.id, self.now()).await?;
        match cancelled {
            Cancellation::NotFound => return Err(ended()),
            Cancellation::Requested => self.engine.runs().withdraw_ended().await,
            Cancellation::Cancelled => {}
        }
        Ok(Begun { id: run.id, created_at: run.created_at })
    }
}

/// The message of a dead letter as users know it.
fn shown(run: &Run, message: Message, payload: Option<Entry>) -> Message {
    let mut options = message.options.clone();
    options.redact.add(&run.trigger.options.redact);
    if options.failure_callback.is_none() {
        options.failure_callback.clone_from(&run.trigger.options.failure_callback);
    }
    Message {
        headers: headers::of_delivery(run, &message),
        body: payload.map(|entry| entry.body).unwrap_or_default(),
        labels: run.labels.clone(),
        caller_ip: run.caller_ip.clone(),
        options,
        ..message
    }
}

fn unknown(id: &DeadLetterId) -> OperationError {
    OperationError::not_found("dead letter of a workflow run", id.as_str())
}
