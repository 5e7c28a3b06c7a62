//! Messages: reading and cancelling.

use super::{OperationError, Operations, Result};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::store::{Cancellation, UnfinishedFilter};

impl Operations {
    /// A message that waits, or whose log is still kept.
    pub async fn message(&self, id: &MessageId) -> Result<Message> {
        let found = self.store().message(id).await?;
        found.ok_or_else(|| OperationError::not_found("message", id.as_str()))
    }

    /// Cancels a message. An attempt that is in flight may still deliver it.
    pub async fn cancel(&self, id: &MessageId) -> Result<()> {
        match self.engine.cancel(id).await? {
            Cancellation::NotFound => {
                let id = Excerpt(id.as_str());
                Err(OperationError::NotFound(format!("message {id} not found, or already finished")))
            }
            Cancellation::Cancelled | Cancellation::Requested => Ok(()),
        }
    }

    /// Cancels those of the messages that are unfinished, at most `limit`; how many.
    pub async fn cancel_each(&self, ids: &[MessageId], limit: usize) -> Result<usize> {
        Ok(self.engine.cancel_each(ids, limit).await?)
    }

    /// Cancels the unfinished messages that match, the earliest first, at most `limit`; how many.
    pub async fn cancel_matching(&self, filter: &UnfinishedFilter, limit: usize) -> Result<usize> {
        Ok(self.engine.cancel_matching(filter, limit).await?)
    }
}
