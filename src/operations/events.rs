//! Events that workflow runs wait for.

use std::sync::Arc;

use bytes::Bytes;

use super::{OperationError, Operations, Result};
use crate::domain::id::MessageId;
use crate::domain::message::{Headers, Message};
use crate::domain::outcome::Ids as _;
use crate::domain::run::waiting::{self, Waiter, Wanted};
use crate::domain::run::{NewEntry, Run};
use crate::store::Accept;
use crate::store::runs::{Keeps, MAX_KEPT, Waits};

/// Waits that end in one step of the store.
const STEP: usize = 500;

/// A run that an event has reached.
pub struct Notified {
    pub waiter: Waiter,
    /// The message that brings it the event.
    pub message: MessageId,
    pub run: Arc<Run>,
}

impl Operations {
    /// Lets a run wait for an event. One that has come before is delivered at once.
    pub async fn wait_for_event(
        &self,
        run_id: &str,
        created_at: Option<i64>,
        event_id: &str,
        headers: &Headers,
        body: &[u8],
    ) -> Result<()> {
        let wanted = Wanted::parse(body).map_err(OperationError::Invalid)?;
        let run = self.live_run(run_id, created_at).await?;
        self.check_destination(&wanted.url)?;
        self.check_destination(&wanted.timeout_url)?;
        let now = self.now();
        let id = self.engine.ids().message(now);
        let (waiter, timer) =
            wanted.begin(&run, event_id.to_owned(), headers, id, now).map_err(OperationError::Invalid)?;
        let timer = Accept::by_url(Arc::new(timer));
        loop {
            match self.store().wait(&waiter, &timer).await? {
                Waits::Waiting => {
                    self.engine.note_waiting(&timer.message);
                    return Ok(());
                }
                Waits::Already => return Ok(()),
                Waits::Ended => {
                    self.engine.runs().forget(&run.id);
                    // Another node may have begun a run of the same id.
                    let is_other = self.live_run(run_id, created_at).await?.instance != run.instance;
                    return if is_other {
                        Box::pin(self.wait_for_event(run_id, created_at, event_id, headers, body)).await
                    } else {
                        Err(OperationError::RunEnded)
                    };
                }
                Waits::Kept { number, data } => {
                    let (message, entry) = self.arrival(&run, &waiter, &data);
                    if self.store().take_event(event_id, number, &message, &entry).await? {
                        self.engine.note_waiting(&message);
                        return Ok(());
                    }
                }
            }
        }
    }

    fn arrival(&self, run: &Run, waiter: &Waiter, data: &[u8]) -> (Arc<Message>, NewEntry) {
        let now = self.now();
        let id = self.engine.ids().message(now);
        let (message, entry) = waiting::arrived(run, waiter, data, id, now);
        (Arc::new(message), entry)
    }

    /// Brings an event to all who wait for it now.
    pub async fn notify(&self, event_id: &str, data: &[u8]) -> Result<Vec<Notified>> {
        let waiters = self.store().waiters(event_id, None).await?;
        self.end_waits(waiters, data).await
    }

    /// Brings an event to one run, which may wait for it later: until then it is kept, and nobody is notified. An error if no
    /// run of that id is live.
    pub async fn notify_run(&self, run_id: &str, event_id: &str, data: &Bytes) -> Result<Vec<Notified>> {
        let not_found = || OperationError::not_found("live workflow run", run_id);
        let mut run = self.engine.runs().live(run_id).await?.ok_or_else(not_found)?;
        loop {
            let waiters = self.store().waiters(event_id, Some(&run.instance)).await?;
            // Each takes one.
            let first: Vec<Waiter> = waiters.into_iter().take(1).collect();
            let notified = self.end_waits(first, data).await?;
            if !notified.is_empty() {
                return Ok(notified);
            }
            match self.store().keep_event(&run.instance, event_id, data).await? {
                Keeps::Kept => return Ok(Vec::new()),
                Keeps::Waited => {}
                Keeps::Full => {
                    return Err(OperationError::Quota {
                        name: "maxKeptEvents of a workflow run",
                        limit: MAX_KEPT.into(),
                    });
                }
                Keeps::Ended => {
                    self.engine.runs().forget(run_id);
                    // Another node may have begun a run of the same id.
                    let now = self.engine.runs().live(run_id).await?.ok_or_else(not_found)?;
                    if now.instance == run.instance {
                        return Err(not_found());
                    }
                    run = now;
                }
            }
        }
    }

    async fn end_waits(&self, waiters: Vec<Waiter>, data: &[u8]) -> Result<Vec<Notified>> {
        let mut notified = Vec::new();
        let mut rest = waiters.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut ends, mut of) = (Vec::new(), Vec::new());
            for waiter in rest.by_ref().take(STEP) {
                let Some(run) = self.engine.runs().instance(&waiter.instance).await? else { continue };
                ends.push(self.arrival(&run, &waiter, data));
                of.push((waiter, run));
            }
            let ended = self.store().end_waits(&ends).await?;
            for (((message, _), (waiter, run)), ended) in ends.into_iter().zip(of).zip(ended) {
                if ended {
                    self.engine.note_waiting(&message);
                    notified.push(Notified { waiter, message: message.id.clone(), run });
                }
            }
        }
        Ok(notified)
    }

    /// Those who wait for an event.
    pub async fn waiters(&self, event_id: &str) -> Result<Vec<(Waiter, Arc<Run>)>> {
        let mut waiters = Vec::new();
        for waiter in self.store().waiters(event_id, None).await? {
            if let Some(run) = self.engine.runs().instance(&waiter.instance).await? {
                waiters.push((waiter, run));
            }
        }
        Ok(waiters)
    }
}
