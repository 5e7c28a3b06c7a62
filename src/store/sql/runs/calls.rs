//! The trait [`Runs`] of the store on SQL: which connection each call takes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{again, ending, listing, messages_of, waiting};
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::message::Message;
use crate::domain::run::again::Again;
use crate::domain::run::ending::Ending;
use crate::domain::run::story::RunMessage;
use crate::domain::run::waiting::Waiter;
use crate::domain::run::{Entry, NewEntry, Run};
use crate::domain::time::Timestamp;
use crate::store::runs::{Keeps, RunEnded, RunFilter, RunKey, RunPage, RunPlace, Runs, Waits};
use crate::store::sql::{DEADLINE, LIST_DEADLINE, LONG_DEADLINE, SqlStore, within};
use crate::store::{Accept, Cancellation, Result};

#[async_trait]
impl Runs for SqlStore {
    async fn run(&self, key: &RunKey) -> Result<Option<Run>> {
        within(DEADLINE, super::get(&self.readers(), key)).await
    }

    async fn run_entries(&self, instance: &InstanceId, from: u32, max_bytes: usize) -> Result<Vec<Entry>> {
        within(LIST_DEADLINE, super::read_entries(&self.readers(), instance, from, max_bytes)).await
    }

    async fn end_run(&self, ending: &Ending) -> Result<RunEnded> {
        let ended = self
            .write(DEADLINE, async |tx| {
                let (mut conn, claimable) = tx.parts();
                ending::end(&mut conn, claimable, ending).await
            })
            .await?;
        let RunEnded::Now { leased } = ended else { return Ok(ended) };
        // It has ended, whatever comes of this.
        let rest = ending::drop_rest(self, &ending.instance, ending.at).await.unwrap_or(true);
        Ok(RunEnded::Now { leased: leased || rest })
    }

    async fn runs(&self, filter: &RunFilter, after: Option<&RunPlace>, count: usize) -> Result<RunPage> {
        within(LIST_DEADLINE, listing::page(&self.lists(), filter, after, count)).await
    }

    async fn wait(&self, waiter: &Waiter, timer: &Accept) -> Result<Waits> {
        self.write(DEADLINE, async |tx| {
            let (mut conn, claimable) = tx.parts();
            waiting::wait(&mut conn, claimable, waiter, timer).await
        })
        .await
    }

    async fn waiters(&self, event_id: &str, instance: Option<&InstanceId>) -> Result<Vec<Waiter>> {
        within(LIST_DEADLINE, waiting::waiters(&self.lists(), event_id, instance)).await
    }

    async fn end_waits(&self, ends: &[(Arc<Message>, NewEntry)]) -> Result<Vec<bool>> {
        self.write(LONG_DEADLINE, async |tx| {
            let (mut conn, claimable) = tx.parts();
            waiting::end_all(&mut conn, claimable, ends).await
        })
        .await
    }

    async fn keep_event(&self, instance: &InstanceId, event_id: &str, data: &Bytes) -> Result<Keeps> {
        self.write(DEADLINE, async |tx| {
            let (mut conn, _) = tx.parts();
            waiting::keep(&mut conn, instance, event_id, data).await
        })
        .await
    }

    async fn take_event(
        &self,
        event_id: &str,
        number: i64,
        message: &Arc<Message>,
        entry: &NewEntry,
    ) -> Result<bool> {
        self.write(DEADLINE, async |tx| {
            let (mut conn, claimable) = tx.parts();
            waiting::take(&mut conn, claimable, event_id, number, message, entry).await
        })
        .await
    }

    async fn run_waiters(&self, instance: &InstanceId) -> Result<Vec<Waiter>> {
        within(LIST_DEADLINE, waiting::of_run(&self.lists(), instance)).await
    }

    async fn children(&self, instance: &InstanceId) -> Result<Vec<Run>> {
        within(LIST_DEADLINE, listing::children(&self.lists(), instance)).await
    }

    async fn run_messages(
        &self,
        instance: &InstanceId,
        after: Option<&MessageId>,
        max_bytes: usize,
    ) -> Result<Vec<RunMessage>> {
        within(LIST_DEADLINE, messages_of::page(&self.lists(), instance, after, max_bytes)).await
    }

    async fn run_message(&self, id: &MessageId) -> Result<Option<RunMessage>> {
        Ok(within(LIST_DEADLINE, messages_of::get(&self.lists(), &[id.as_str()])).await?.pop())
    }

    async fn begin_again(&self, again: &Again) -> Result<bool> {
        let _kept = self.keep_dead_letters().await?;
        self.write(LONG_DEADLINE, async |tx| again::begin(tx, again).await).await
    }

    async fn tell_again(&self, instance: &InstanceId, failed: &MessageId, again: &Accept) -> Result<bool> {
        self.write(DEADLINE, async |tx| again::tell(tx, instance, failed, again).await).await
    }

    async fn cancel_telling(
        &self,
        instance: &InstanceId,
        message: &MessageId,
        now: Timestamp,
    ) -> Result<Cancellation> {
        self.write(DEADLINE, async |tx| again::cancel(tx, instance, message, now).await).await
    }
}
