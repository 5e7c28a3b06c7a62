//! Lists of queues, flow-control keys and URL groups, by pages: all in the order of their names, however many there are.

use async_trait::async_trait;

use super::gates::{FlowKey, Queue};
use super::{Page, Result};
use crate::domain::time::Timestamp;
use crate::domain::url_group::UrlGroup;

/// A page has at most `count` items, and begins after the one that `after` names, whether that still exists or not.
#[async_trait]
pub trait Listing {
    async fn queues(&self, after: Option<&str>, count: usize) -> Result<Page<Queue>>;
    /// The keys that contain a text, as they are `now`.
    async fn flow_keys(
        &self,
        containing: &str,
        after: Option<&str>,
        count: usize,
        now: Timestamp,
    ) -> Result<Page<FlowKey>>;
    /// Groups with about `max_bytes` of endpoints and headers.
    async fn url_groups(&self, after: Option<&str>, count: usize, max_bytes: usize)
    -> Result<Page<UrlGroup>>;
}
