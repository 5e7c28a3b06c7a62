//! Durable workflows in the engine: what is sent for a run's messages, and how runs end.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::known_runs::Known;
use super::shared::Shared;
use super::{cancelling, ids};
use crate::domain::id::InstanceId;
use crate::domain::message::{Headers, Message};
use crate::domain::outcome::{Ids as _, InRun};
use crate::domain::run::ending::{Ending, Family};
use crate::domain::run::{Kind, Run, RunState, headers};
use crate::domain::signature;
use crate::store::Result;
use crate::store::runs::{RunEnded, RunKey};

/// What has to be known of a run to attempt a message of it and to decide what follows.
pub(super) struct KnownRun {
    known: Arc<Known>,
    parent: Option<Arc<Run>>,
    payload: Bytes,
}

impl KnownRun {
    /// What a decision has to know.
    pub(super) fn context(&self) -> InRun<'_> {
        let family = Family { run: &self.known.run, parent: self.parent.as_deref() };
        InRun { family, payload: &self.payload }
    }
}

/// The run of a message, if it has one that is still kept.
pub(super) async fn of(shared: &Shared, message: &Message) -> Result<Option<KnownRun>> {
    let Some(part) = &message.run else { return Ok(None) };
    let Some(known) = shared.runs.known(&*shared.store, &part.instance).await? else { return Ok(None) };
    let payload = match part.kind {
        Kind::Step | Kind::CallResult => shared.runs.payload(&*shared.store, &known).await?,
        Kind::Call | Kind::FailureCallback | Kind::Timeout => Bytes::new(),
    };
    let parent = parent(shared, &known.run).await?;
    Ok(Some(KnownRun { known, parent, payload }))
}

async fn parent(shared: &Shared, run: &Run) -> Result<Option<Arc<Run>>> {
    let Some(invoker) = &run.invoker else { return Ok(None) };
    let parent = shared.runs.known(&*shared.store, &invoker.instance).await?;
    Ok(parent.map(|parent| Arc::clone(&parent.run)))
}

/// The run as it is after an attempt, during which its SDK may have told of itself.
pub(super) async fn after_attempt(
    shared: &Shared,
    message: &Message,
    run: KnownRun,
) -> Result<Option<KnownRun>> {
    if run.known.run.trigger.features.unknown_sdk { of(shared, message).await } else { Ok(Some(run)) }
}

/// What a delivery sends.
pub(super) struct Payload<'a> {
    pub(super) body: Bytes,
    pub(super) sha256: [u8; 32],
    pub(super) headers: Cow<'a, Headers>,
}

impl<'a> Payload<'a> {
    /// The message as it is stored.
    pub(super) fn stored(message: &'a Message) -> Self {
        Self {
            body: message.body.clone(),
            sha256: message.body_sha256,
            headers: Cow::Borrowed(&message.headers),
        }
    }
}

/// What the delivery of a run's message sends.
pub(super) async fn payload<'a>(
    shared: &Shared,
    KnownRun { known, .. }: &KnownRun,
    message: &'a Message,
    kind: Kind,
) -> Result<Payload<'a>> {
    let stored = Payload::stored(message);
    Ok(match kind {
        // A third party must not take it for a delivery of the run.
        Kind::Call | Kind::Timeout => stored,
        Kind::CallResult | Kind::FailureCallback => {
            Payload { headers: Cow::Owned(headers::of_delivery(&known.run, message)), ..stored }
        }
        Kind::Step => {
            let mut body = shared.runs.body(&*shared.store, known, message).await?;
            let threshold = shared.settings.lazy_log_bytes;
            if known.run.trigger.features.lazy_fetch && body.len() > threshold {
                // The endpoint asks for it.
                body = Bytes::new();
            }
            let headers = Cow::Owned(headers::of_delivery(&known.run, message));
            Payload { sha256: signature::body_sha256(&body), body, headers }
        }
    })
}

/// Takes out of memory what belongs to runs that have ended.
pub(super) async fn withdraw_ended(shared: &Shared) {
    if let Err(error) = cancelling::withdraw_cancelled(shared).await {
        // It is looked for every few seconds as well.
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "messages of a run that has ended may go on"
        );
    }
}

/// Runs, for operations.
pub struct Handle<'a>(pub(super) &'a Arc<Shared>);

impl Handle<'_> {
    /// A run.
    pub async fn instance(&self, instance: &InstanceId) -> Result<Option<Arc<Run>>> {
        let known = self.0.runs.known(&*self.0.store, instance).await?;
        Ok(known.map(|known| Arc::clone(&known.run)))
    }

    /// The run of that id that was live when somebody last asked; only what the store then says of it counts. `None`: no
    /// run of that id is live.
    pub async fn live(&self, id: &str) -> Result<Option<Arc<Run>>> {
        let runs = &self.0.runs;
        if let Some(instance) = runs.live(id)
            && let Some(run) = self.instance(&instance).await?
        {
            return Ok(Some(run));
        }
        let run = self.0.store.run(&RunKey::Id(id.to_owned())).await?;
        let Some(run) = run.filter(|run| run.state == RunState::Started) else { return Ok(None) };
        runs.note_live(&run);
        let known = runs.kept(&run.instance).unwrap_or_else(|| runs.keep(run));
        Ok(Some(Arc::clone(&known.run)))
    }

    /// Takes note of a run that has begun.
    pub fn begun(&self, run: Run) {
        self.0.runs.note_live(&run);
        self.0.runs.keep(run);
    }

    /// Forgets which run of that id is live.
    pub fn forget(&self, id: &str) {
        self.0.runs.forget(id);
    }

    /// The whole log of a run, as its deliveries show it.
    pub async fn log(&self, instance: &InstanceId) -> Result<Option<Bytes>> {
        let runs = &self.0.runs;
        let Some(known) = runs.known(&*self.0.store, instance).await? else { return Ok(None) };
        loop {
            let read = known.log().len();
            if !runs.read_on(&*self.0.store, &known, read).await? {
                return Ok(Some(known.log().whole()));
            }
        }
    }

    /// Bytes of a run's log, as far as it is in memory.
    pub fn log_size(&self, instance: &InstanceId) -> usize {
        self.0.runs.kept(instance).map_or(0, |known| known.log().size())
    }

    /// Takes out of memory what belongs to runs that have ended, or was cancelled with them.
    pub async fn withdraw_ended(&self) {
        withdraw_ended(self.0).await;
    }

    /// Ends a run, unless it has ended; whether it was live. Whoever waits for it is told.
    pub async fn end(&self, run: &Run, state: RunState, result: Option<Bytes>) -> Result<bool> {
        let shared = self.0;
        let parent = parent(shared, run).await?;
        let now = shared.clock.now();
        let id = ids::FreshIds(shared.chance.clone()).message(now);
        let ending = Family { run, parent: parent.as_deref() }.end(state, result, id, now);
        self.end_as(&ending).await
    }

    async fn end_as(&self, ending: &Ending) -> Result<bool> {
        let shared = self.0;
        let RunEnded::Now { leased } = shared.store.end_run(ending).await? else { return Ok(false) };
        let parent = ending.parent.iter().map(|(message, _)| message);
        for message in parent.chain(&ending.failure_callback) {
            shared.wakeups.waits(message);
        }
        if leased {
            withdraw_ended(shared).await;
        }
        Ok(true)
    }
}
