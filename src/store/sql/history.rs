//! The [`History`] of the store on SQL.

use async_trait::async_trait;

use super::tx::Tx;
use super::{
    Backend, DEADLINE, LIST_DEADLINE, LONG_DEADLINE, SqlStore, dead_letters, gates, log, messages, retention,
    within,
};
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::store::{
    Accept, DeadLetter, DeadLetterFilter, History, LetterPage, LetterPlace, LogCursor, LogFilter, LogPage,
    Missing, Order, Result, Retention,
};

#[async_trait]
impl History for SqlStore {
    async fn message(&self, id: &MessageId) -> Result<Option<Message>> {
        within(DEADLINE, messages::get(&self.readers(), id)).await
    }

    async fn log(
        &self,
        filter: &LogFilter,
        order: Order,
        cursor: Option<&LogCursor>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LogPage> {
        within(LIST_DEADLINE, log::page(&self.lists(), filter, order, cursor, count, max_bytes)).await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        within(DEADLINE, dead_letters::get(&self.readers(), id)).await
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LetterPage<DeadLetter>> {
        within(LIST_DEADLINE, dead_letters::page(&self.lists(), filter, order, after, count, max_bytes)).await
    }

    async fn dead_letter_places(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<&LetterPlace>,
        count: usize,
    ) -> Result<LetterPage<LetterPlace>> {
        within(LIST_DEADLINE, dead_letters::places(&self.lists(), filter, order, after, count)).await
    }

    async fn delete_dead_letters(&self, ids: &[DeadLetterId]) -> Result<u64> {
        let ids: Vec<&str> = ids.iter().map(DeadLetterId::as_str).collect();
        let _kept = self.keep_dead_letters().await?;
        self.write(LONG_DEADLINE, async |tx| dead_letters::delete(tx, &ids).await).await
    }

    async fn retry_dead_letters(
        &self,
        replacements: &[(DeadLetterId, Accept)],
        missing: Missing,
    ) -> Result<Vec<bool>> {
        let _kept = self.keep_dead_letters().await?;
        let parts = match &self.backend {
            Backend::Postgres(_) => vec![replacements],
            Backend::Sqlite(_) => dead_letters::parts(replacements),
        };
        if parts.len() > 1 && missing == Missing::Refuse {
            let ids: Vec<&DeadLetterId> = replacements.iter().map(|(id, _)| id).collect();
            if !within(LONG_DEADLINE, dead_letters::all_exist(&self.readers(), &ids)).await? {
                return Ok(vec![false; replacements.len()]);
            }
        }
        let mut replaced = Vec::with_capacity(replacements.len());
        for part in parts {
            let max_queues = self.max_queues;
            let replace = async |tx: &mut Tx| dead_letters::replace(tx, part, missing, max_queues).await;
            replaced.extend(self.write(LONG_DEADLINE, replace).await?);
        }
        Ok(replaced)
    }

    async fn prune(&self, retention: Retention, now: Timestamp, after: &str) -> Result<Option<String>> {
        let _kept = self.keep_dead_letters().await?;
        let idle_keys = match after {
            "" => {
                within(LONG_DEADLINE, gates::keys::idle_keys(&self.readers(), now.before(retention.log)))
                    .await?
            }
            _ => Vec::new(),
        };
        let prune = async |tx: &mut Tx| retention::prune(tx, retention, now, after, &idle_keys).await;
        self.write(LONG_DEADLINE, prune).await
    }
}
