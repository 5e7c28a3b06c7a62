//! The model's lists by pages.

use crate::domain::gate::{bare_name, is_queue};
use crate::domain::time::Timestamp;
use crate::domain::url_group::UrlGroup;
use crate::store::gates::{FlowKey, Queue};
use crate::store::{Listing, Page, Result};
use async_trait::async_trait;

use super::Model;

/// The first of these, in their order.
fn page<T>(mut items: impl Iterator<Item = T>, count: usize) -> Page<T> {
    let first = items.by_ref().take(count).collect();
    Page { items: first, more: items.next().is_some() }
}

#[async_trait]
impl Listing for Model {
    async fn queues(&self, after: Option<&str>, count: usize) -> Result<Page<Queue>> {
        self.read("queues", |state| {
            let names = state.gates.keys().filter(|name| is_queue(name) && Some(bare_name(name)) > after);
            Ok(page(names.filter_map(|name| state.queue_of(name)), count))
        })
        .await
    }

    async fn flow_keys(
        &self,
        containing: &str,
        after: Option<&str>,
        count: usize,
        now: Timestamp,
    ) -> Result<Page<FlowKey>> {
        self.read("flow_keys", |state| {
            let names = state.gates.keys().filter(|name| !is_queue(name) && Some(bare_name(name)) > after);
            let names = names.filter(|name| bare_name(name).contains(containing));
            Ok(page(names.filter_map(|name| state.key_of(name, now)), count))
        })
        .await
    }

    async fn url_groups(
        &self,
        after: Option<&str>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<UrlGroup>> {
        self.read("url_groups", |state| {
            let groups = state.url_groups.values().filter(|group| Some(group.name.as_str()) > after);
            // Its bytes are about those that the others count: a first one always fits, and what is far too much doesn't.
            let mut bytes = 0;
            let mut found = page(groups.cloned(), count);
            let fitting = found.items.iter().take_while(|group| {
                let fits = bytes < max_bytes;
                bytes += group.headers.size();
                bytes += group.endpoints.iter().map(|one| one.url.len()).sum::<usize>();
                fits
            });
            let fitting = fitting.count();
            found.more |= fitting < found.items.len();
            found.items.truncate(fitting);
            Ok(found)
        })
        .await
    }
}
