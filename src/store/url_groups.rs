//! Where URL groups are kept.

use async_trait::async_trait;

use super::Result;
use crate::domain::message::Headers;
use crate::domain::time::Timestamp;
use crate::domain::url_group::{Endpoint, EndpointKey, UrlGroup};

/// How many there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UrlGroupLimits {
    /// `None`: no limit.
    pub groups: Option<u32>,
    /// In one group.
    pub endpoints: usize,
}

/// The result of adding or changing endpoints. Nothing is stored unless all are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upserted {
    Stored,
    /// There are as many groups as there may be, and this would be one more.
    TooManyGroups,
    /// The group would get more endpoints than it may have.
    TooManyEndpoints,
}

/// URL groups. What several callers change at once is changed by one after the other, and readable as soon as it is
/// answered.
#[async_trait]
pub trait UrlGroups: Send + Sync {
    /// A group; `None`: there is none of that name.
    async fn url_group(&self, name: &str) -> Result<Option<UrlGroup>>;
    /// Adds or changes endpoints in their order, making the group when there is none.
    async fn upsert_endpoints(
        &self,
        name: &str,
        endpoints: &[Endpoint],
        limits: UrlGroupLimits,
        now: Timestamp,
    ) -> Result<Upserted>;
    /// Removes endpoints, and the group with the last of them; false: there is no such group.
    async fn remove_endpoints(&self, name: &str, keys: &[EndpointKey], now: Timestamp) -> Result<bool>;
    /// Replaces a group's headers; false: there is no such group.
    async fn set_url_group_headers(&self, name: &str, headers: &Headers, now: Timestamp) -> Result<bool>;
    /// Deletes a group, if there is one.
    async fn delete_url_group(&self, name: &str) -> Result<()>;
}
