//! How many there are, before something is done to all of them.

use std::time::Duration;

use tokio::time::Instant;

use super::{Operations, Result};
use crate::store::{DeadLetterFilter, Order, UnfinishedFilter};

/// How long is counted.
const TIME: Duration = Duration::from_secs(2);
/// Messages or dead letters in one step.
const STEP: usize = 2000;

/// How many match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    pub count: u64,
    /// Whether these are all; else there may be more.
    pub exact: bool,
}

impl Operations {
    /// How many unfinished messages match, which [`Operations::cancel_matching`] would cancel.
    pub async fn count_unfinished(&self, filter: &UnfinishedFilter) -> Result<Count> {
        let (started, mut count, mut after) = (Instant::now(), 0, None);
        loop {
            let page = self.store().unfinished(filter, after.as_ref(), STEP).await?;
            count += page.found.len() as u64;
            after = page.next;
            if after.is_none() || started.elapsed() >= TIME {
                return Ok(Count { count, exact: after.is_none() });
            }
        }
    }

    /// How many dead letters match.
    pub async fn count_dead_letters(&self, filter: &DeadLetterFilter) -> Result<Count> {
        let (started, mut count, mut after) = (Instant::now(), 0, None);
        loop {
            let order = Order::EarliestFirst;
            let page = self.store().dead_letter_places(filter, order, after.as_ref(), STEP).await?;
            count += page.items.len() as u64;
            after = page.next;
            if after.is_none() || started.elapsed() >= TIME {
                return Ok(Count { count, exact: after.is_none() });
            }
        }
    }
}
