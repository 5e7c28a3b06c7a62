//! Queues.

use std::num::NonZeroU32;

use super::{OperationError, Operations, Result};
use crate::domain::gate::queue_gate;
use crate::domain::id::Name;
use crate::store::gates::Queue;
use crate::store::{Page, StoreError};

impl Operations {
    /// Queues after that name, in the order of the names, at most `count`.
    pub async fn queues(&self, after: Option<&str>, count: usize) -> Result<Page<Queue>> {
        Ok(self.store().queues(after, count).await?)
    }

    pub async fn queue(&self, name: &str) -> Result<Queue> {
        self.store().queue(name).await?.ok_or_else(|| unknown(name))
    }

    /// Makes a queue, with parallelism 1 unless it says otherwise, or changes what is given of it.
    pub async fn upsert_queue(
        &self,
        name: &Name,
        parallelism: Option<NonZeroU32>,
        paused: Option<bool>,
    ) -> Result<()> {
        let (name, parallelism) = (name.as_str(), parallelism.map(NonZeroU32::get));
        if let (Some(wanted), Some(limit)) = (parallelism, self.settings.max_queue_parallelism)
            && wanted > limit
        {
            return Err(OperationError::Quota { name: "maxQueueParallelism", limit: limit.into() });
        }
        let max = self.settings.max_queues;
        if !self.store().upsert_queue(name, parallelism, paused, max, self.now()).await? {
            return Err(StoreError::TooManyQueues(max.unwrap_or_default()).into());
        }
        self.engine.gate_changed(queue_gate(name));
        Ok(())
    }

    /// Lets nothing of a queue begin.
    pub async fn pause_queue(&self, name: &str) -> Result<()> {
        self.set_queue_paused(name, true).await
    }

    /// Goes on with a queue.
    pub async fn resume_queue(&self, name: &str) -> Result<()> {
        self.set_queue_paused(name, false).await
    }

    async fn set_queue_paused(&self, name: &str, paused: bool) -> Result<()> {
        if !self.store().pause_queue(name, paused, self.now()).await? {
            return Err(unknown(name));
        }
        self.engine.gate_changed(queue_gate(name));
        Ok(())
    }

    /// Removes a queue, if there is one, and cancels its messages.
    pub async fn remove_queue(&self, name: &str) -> Result<()> {
        Ok(self.engine.remove_queue(name).await?)
    }

    /// Checks that a message may go to a queue, which is made when it is missing. The store looks again when it makes one;
    /// a refusal there has held up the other messages of its batch.
    pub(super) async fn check_queue(&self, name: &str) -> Result<()> {
        match self.settings.max_queues {
            Some(max) if !self.store().may_use_queue(name, max).await? => {
                Err(StoreError::TooManyQueues(max).into())
            }
            _ => Ok(()),
        }
    }
}

fn unknown(name: &str) -> OperationError {
    OperationError::not_found("queue", name)
}
