//! The log.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{Operations, Result};
use crate::domain::id::MessageId;
use crate::store::{LogCursor, LogEntry, LogFilter, LogPage, Order};

/// Entries of one message that a group shows.
const GROUP: usize = 1000;
/// Pages of entries that are looked at for one page of groups, how many entries each has, and how long that may take.
const GROUP_PAGES: usize = 20;
const GROUP_PAGE: usize = 100;
const GROUP_TIME: Duration = Duration::from_secs(2);
/// Bytes of headers and bodies in a page of groups.
const GROUP_BYTES: usize = 4 << 20;

/// A page of the log, by messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupPage {
    /// The entries of a message each; never empty.
    pub groups: Vec<Vec<LogEntry>>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<LogCursor>,
}

impl Operations {
    /// Entries of the log after `cursor`, at most `count` of them and about `max_bytes` of headers and bodies.
    pub async fn log(
        &self,
        filter: &LogFilter,
        order: Order,
        cursor: Option<&LogCursor>,
        count: usize,
        max_bytes: usize,
    ) -> Result<LogPage> {
        Ok(self.store().log(filter, order, cursor, count, max_bytes).await?)
    }

    /// The entries that match, by message, each message where its first entry is; at most `count` messages.
    pub async fn log_groups(
        &self,
        filter: &LogFilter,
        order: Order,
        mut cursor: Option<LogCursor>,
        count: usize,
    ) -> Result<GroupPage> {
        let started = Instant::now();
        let mut groups = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..GROUP_PAGES {
            let page = self.store().log(filter, order, cursor.as_ref(), GROUP_PAGE, GROUP_BYTES).await?;
            let mut unread: Vec<MessageId> = Vec::new();
            for entry in &page.items {
                if !seen.contains(&entry.message.id) && !unread.contains(&entry.message.id) {
                    unread.push(entry.message.id.clone());
                }
            }
            let mut unread = unread.into_iter();
            let mut stories = HashMap::new();
            for entry in page.items {
                let id = &entry.message.id;
                if seen.insert(id.clone()) {
                    if !stories.contains_key(id) {
                        // One more, whose story tells whether this page of groups is full.
                        let next: Vec<MessageId> = unread.by_ref().take(count - groups.len() + 1).collect();
                        stories = self.stories(filter, order, next).await?;
                    }
                    let story: Vec<LogEntry> = stories.remove(id).unwrap_or_default();
                    // Otherwise an earlier page has shown it.
                    if story.first().is_some_and(|first| first.place() == entry.place()) {
                        if groups.len() == count {
                            return Ok(GroupPage { groups, next: cursor });
                        }
                        groups.push(story);
                    }
                }
                cursor = Some(entry.place());
            }
            cursor = page.next;
            if cursor.is_none() || started.elapsed() >= GROUP_TIME {
                break;
            }
        }
        Ok(GroupPage { groups, next: cursor })
    }

    /// The entries of these messages, from each one's first one on. All are asked for at once, and each by itself where that
    /// is too much.
    async fn stories(
        &self,
        filter: &LogFilter,
        order: Order,
        ids: Vec<MessageId>,
    ) -> Result<HashMap<MessageId, Vec<LogEntry>>> {
        let mut stories: HashMap<_, Vec<_>> = ids.iter().map(|id| (id.clone(), Vec::new())).collect();
        let of = |messages: &[MessageId]| LogFilter { messages: messages.to_vec(), ..filter.clone() };
        let page = self.store().log(&of(&ids), order, None, GROUP, GROUP_BYTES).await?;
        if page.next.is_none() {
            for entry in page.items {
                stories.entry(entry.message.id.clone()).or_default().push(entry);
            }
            return Ok(stories);
        }
        let bytes = GROUP_BYTES / ids.len().max(1);
        for id in ids {
            let page = self.store().log(&of(std::slice::from_ref(&id)), order, None, GROUP, bytes).await?;
            stories.insert(id, page.items);
        }
        Ok(stories)
    }
}
