//! The model's URL groups.

use async_trait::async_trait;

use super::Model;
use crate::domain::message::Headers;
use crate::domain::time::Timestamp;
use crate::domain::url_group::{Endpoint, EndpointKey, UrlGroup};
use crate::store::Result;
use crate::store::url_groups::{Upserted, UrlGroupLimits, UrlGroups};

#[async_trait]
impl UrlGroups for Model {
    async fn url_group(&self, name: &str) -> Result<Option<UrlGroup>> {
        self.read("url_group", |state| Ok(state.url_groups.get(name).cloned())).await
    }

    async fn upsert_endpoints(
        &self,
        name: &str,
        endpoints: &[Endpoint],
        limits: UrlGroupLimits,
        now: Timestamp,
    ) -> Result<Upserted> {
        let name = name.to_owned();
        let endpoints = endpoints.to_vec();
        self.write("upsert_endpoints", move |state| {
            let groups = &mut state.url_groups;
            let mut group = match groups.get(&name) {
                Some(group) => group.clone(),
                None if limits.groups.is_some_and(|limit| groups.len() >= limit as usize) => {
                    return Ok(Upserted::TooManyGroups);
                }
                None => UrlGroup::new(name.clone(), now),
            };
            if groups.contains_key(&name) {
                group.touch(now);
            }
            if !group.upsert_all(&endpoints, limits.endpoints) {
                return Ok(Upserted::TooManyEndpoints);
            }
            groups.insert(name, group);
            Ok(Upserted::Stored)
        })
        .await
    }

    async fn remove_endpoints(&self, name: &str, keys: &[EndpointKey], now: Timestamp) -> Result<bool> {
        let name = name.to_owned();
        let keys = keys.to_vec();
        self.write("remove_endpoints", move |state| {
            let groups = &mut state.url_groups;
            let Some(group) = groups.get_mut(&name) else { return Ok(false) };
            let before = group.endpoints.len();
            for key in &keys {
                group.remove(key);
            }
            if group.endpoints.len() < before {
                group.touch(now);
            }
            if group.endpoints.is_empty() {
                groups.remove(&name);
            }
            Ok(true)
        })
        .await
    }

    async fn set_url_group_headers(&self, name: &str, headers: &Headers, now: Timestamp) -> Result<bool> {
        let name = name.to_owned();
        let headers = headers.clone();
        self.write("set_url_group_headers", move |state| {
            let groups = &mut state.url_groups;
            let Some(group) = groups.get_mut(&name) else { return Ok(false) };
            group.headers = headers;
            group.touch(now);
            Ok(true)
        })
        .await
    }

    async fn delete_url_group(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.write("delete_url_group", move |state| {
            state.url_groups.remove(&name);
            Ok(())
        })
        .await
    }
}
