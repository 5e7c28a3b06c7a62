//! How many messages were accepted in a day, by all nodes together.

use async_trait::async_trait;

use super::Result;

#[async_trait]
pub trait Quota: Send + Sync {
    /// Reserves `wanted` messages of a day (counted from the Unix epoch, in UTC), or as many as are left of `limit`; how
    /// many.
    async fn reserve_messages(&self, day: i64, wanted: u64, limit: u64) -> Result<u64>;
}
