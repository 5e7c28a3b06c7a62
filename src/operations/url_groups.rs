//! URL groups.

use super::{OperationError, Operations, Result};
use crate::domain::destination::DestinationError;
use crate::domain::excerpt::Excerpt;
use crate::domain::id::Name;
use crate::domain::message::Headers;
use crate::domain::url_group::{Endpoint, EndpointKey, UrlGroup};
use crate::store::Page;
use crate::store::url_groups::Upserted;

/// Bytes of an endpoint's name, which is sent as a header.
const MAX_ENDPOINT_NAME: usize = 256;

impl Operations {
    /// Groups after that name, in the order of the names, at most `count` and about `max_bytes` of endpoints and headers.
    pub async fn url_groups(
        &self,
        after: Option<&str>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<UrlGroup>> {
        Ok(self.store().url_groups(after, count, max_bytes).await?)
    }

    pub async fn url_group(&self, name: &str) -> Result<UrlGroup> {
        self.store().url_group(name).await?.ok_or_else(|| unknown(name))
    }

    /// Adds or changes endpoints in their order, making the group when there is none. All or none.
    pub async fn upsert_endpoints(&self, group: &Name, endpoints: &[Endpoint]) -> Result<()> {
        for (index, endpoint) in endpoints.iter().enumerate() {
            self.check_endpoint(endpoint).map_err(|error| error.of(format_args!("endpoint {index}")))?;
        }
        let limits = self.settings.url_groups;
        let upserted = self.store().upsert_endpoints(group.as_str(), endpoints, limits, self.now()).await?;
        let (name, limit) = match upserted {
            Upserted::Stored => return Ok(()),
            Upserted::TooManyGroups => ("maxUrlGroups", limits.groups.unwrap_or_default().into()),
            Upserted::TooManyEndpoints => ("maxEndpointsPerGroup", limits.endpoints as u64),
        };
        Err(OperationError::Quota { name, limit })
    }

    fn check_endpoint(&self, endpoint: &Endpoint) -> Result<()> {
        if let Some(name) = &endpoint.name
            && (name.len() > MAX_ENDPOINT_NAME || name.contains(char::is_control))
        {
            return Err(OperationError::invalid(format!(
                "invalid name {:?}: at most {MAX_ENDPOINT_NAME} bytes without control characters are allowed",
                Excerpt(name)
            )));
        }
        self.check_destination(&endpoint.url).map(drop)
    }

    /// Removes endpoints, and the group with the last of them.
    pub async fn remove_endpoints(&self, group: &str, keys: &[EndpointKey]) -> Result<()> {
        let found = self.store().remove_endpoints(group, keys, self.now()).await?;
        if found { Ok(()) } else { Err(unknown(group)) }
    }

    /// Replaces a group's headers.
    pub async fn set_url_group_headers(&self, group: &str, headers: &Headers) -> Result<()> {
        let found = self.store().set_url_group_headers(group, headers, self.now()).await?;
        if found { Ok(()) } else { Err(unknown(group)) }
    }

    /// Deletes a group, if there is one.
    pub async fn delete_url_group(&self, name: &str) -> Result<()> {
        Ok(self.store().delete_url_group(name).await?)
    }
}

fn unknown(name: &str) -> OperationError {
    DestinationError::UnknownGroup(name.to_owned()).into()
}
