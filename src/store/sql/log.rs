//! The log. No row is written for it: its entries are derived from messages, attempts and cancellations.
//!
//! An entry stands at (time, message, sequence). The sequence tells a message's entries apart: CREATED is 0, attempt n
//! (from 0) has ACTIVE at 4n + 1, ERROR at 4n + 2 and what followed at 4n + 3; a cancellation comes last. Rows of each
//! kind are read through an index on their time, a window at a time, and merged; what the filter leaves of the windows is
//! the page. A page reads a bounded number of rows, for a bounded time, however few of them match.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sqlx::{PgPool, SqlitePool};

use super::Backend;
use super::dead_letters::fitting;
use super::messages;
use super::query::{PAGE_TIME, Query};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{LogCursor, LogFilter, LogPage, Order, Owner, Result, State, StoreError};

mod details;

use self::details::{details, distinct, sizes};

/// Sequences of a cancellation's entries: behind any attempt's.
const CANCEL_REQUESTED: i64 = 1 << 40;
const CANCELLED: i64 = CANCEL_REQUESTED + 1;

/// Rows of each source in one window at most.
const WINDOW: usize = 4000;
/// Rows that a page reads at most: about a second's worth.
const PAGE_ROWS: usize = 200_000;

/// One kind of rows. Each is an entry or two, which follow each other.
struct Source {
    table: &'static str,
    message_id: &'static str,
    time: &'static str,
    /// Sequences of its first and its last entry.
    first: &'static str,
    last: &'static str,
    /// An SQL text that tells which entries, as [`entries_of`] reads it.
    kind: &'static str,
    /// Which rows. Without any condition on the time, SQLite would sort the whole table.
    condition: &'static str,
    states: &'static [State],
}

const SOURCES: [Source; 5] = [
    Source {
        table: "messages e",
        message_id: "e.id",
        time: "e.created_at",
        first: "0",
        last: "0",
        kind: "'CREATED'",
        condition: "1 = 1",
        states: &[State::Created],
    },
    Source {
        table: "attempts e",
        message_id: "e.message_id",
        time: "e.started_at",
        first: "4 * e.retried + 1",
        last: "4 * e.retried + 1",
        kind: "'ACTIVE'",
        condition: "e.started_at >= 0",
        states: &[State::Active],
    },
    Source {
        table: "attempts e",
        message_id: "e.message_id",
        time: "e.ended_at",
        first: "4 * e.retried + 2",
        last: "4 * e.retried + 3",
        kind: "e.result",
        condition: "e.ended_at >= 0",
        states: &[State::Error, State::Retry, State::Failed, State::Delivered],
    },
    Source {
        table: "cancellations e",
        message_id: "e.message_id",
        time: "e.requested_at",
        first: "1099511627776",
        last: "1099511627776",
        kind: "'CANCEL_REQUESTED'",
        condition: "e.requested_at >= 0",
        states: &[State::CancelRequested],
    },
    Source {
        table: "cancellations e",
        message_id: "e.message_id",
        time: "e.cancelled_at",
        first: "1099511627777",
        last: "1099511627777",
        kind: "'CANCELED'",
        condition: "e.cancelled_at >= 0",
        states: &[State::Cancelled],
    },
];

/// Attempts in flight, which have no row of their own yet. They began when they were due, or a little later. There are
/// few, and no index on them.
const IN_FLIGHT: Source = Source {
    table: "deliveries e",
    message_id: "e.message_id",
    time: "e.due_at",
    first: "4 * e.retried + 1",
    last: "4 * e.retried + 1",
    kind: "'ACTIVE'",
    condition: "e.node <> 0",
    states: &[State::Active],
};

#[derive(sqlx::FromRow)]
struct SourceRow {
    time: i64,
    message_id: String,
    first: i64,
    last: i64,
    source: i64,
    kind: String,
}

/// Where an entry stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct LogPlace {
    time: i64,
    message_id: String,
    sequence: i64,
}

impl LogPlace {
    fn cursor(&self) -> LogCursor {
        let entry = Some((MessageId::new(self.message_id.as_str()), self.sequence));
        LogCursor { time: Timestamp::from_millis(self.time), entry }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct FoundEntry {
    place: LogPlace,
    state: State,
    in_flight: bool,
}

pub(super) async fn page(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &LogFilter,
    order: Order,
    cursor: Option<&LogCursor>,
    count: usize,
    max_bytes: usize,
) -> Result<LogPage> {
    let walk = Walk { pools, filter, order, window: WINDOW, rows: PAGE_ROWS, time: PAGE_TIME };
    let (mut entries, mut next) = walk.entries(cursor, count).await?;
    let sizes = sizes(pools, &entries).await?;
    let size = |entry: &FoundEntry| sizes.get(&entry.place.message_id).copied().unwrap_or(0);
    let within = fitting(entries.iter().map(size), count, max_bytes);
    if within < entries.len() {
        entries.truncate(within);
        next = entries.last().map(|entry| entry.place.cursor());
    }
    Ok(LogPage { items: details(pools, &entries).await?, next })
}

/// A walk along the log in one direction.
struct Walk<'a> {
    pools: &'a Backend<&'a PgPool, &'a SqlitePool>,
    filter: &'a LogFilter,
    order: Order,
    /// [`WINDOW`], [`PAGE_ROWS`] and [`PAGE_TIME`].
    window: usize,
    rows: usize,
    time: Duration,
}

/// How far a walk has read one source.
struct Feed {
    index: usize,
    /// The last row's place; `None` before the first.
    end: Option<LogPlace>,
    done: bool,
}

impl Walk<'_> {
    /// The first `count` entries that match, and where to go on.
    async fn entries(
        &self,
        cursor: Option<&LogCursor>,
        count: usize,
    ) -> Result<(Vec<FoundEntry>, Option<LogCursor>)> {
        let mut feeds: Vec<Feed> = (0..SOURCES.len())
            .filter(|&index| self.wants(&SOURCES[index]))
            .map(|index| Feed { index, end: None, done: false })
            .collect();
        let started = Instant::now();
        // Before the others: an attempt that ends between the two is seen twice, and not missed.
        let mut pending = self.in_flight(cursor).await?;
        let mut found: Vec<FoundEntry> = Vec::new();
        let mut frontier: Option<LogPlace> = None;
        let mut limit = count.saturating_add(1).min(self.window);
        let mut rows = 0;
        let next = 'page: loop {
            let new = self.read(&mut feeds, frontier.as_ref(), cursor, limit).await?;
            rows += new.len();
            for row in &new {
                pending.extend(entries_of(row)?.filter(|entry| self.is_wanted(entry, cursor)));
            }
            // An entry beyond the frontier may come after one that was not read yet.
            frontier = self.frontier(&feeds);
            let (mut window, beyond) = pending.into_iter().partition::<Vec<_>, _>(|entry| {
                frontier.as_ref().is_none_or(|frontier| !self.is_beyond(&entry.place, frontier))
            });
            pending = beyond;
            window.sort_by(|a, b| a.place.cmp(&b.place));
            if self.order == Order::LatestFirst {
                window.reverse();
            }
            for part in window.chunks(self.window.min(messages::MATCHED)) {
                found.extend(self.matching(part).await?);
                if found.len() > count {
                    found.truncate(count);
                    break 'page found.last().map(|entry| entry.place.cursor());
                }
                if started.elapsed() >= self.time && part.last() != window.last() {
                    break 'page part.last().map(|entry| entry.place.cursor());
                }
            }
            if frontier.is_none() || rows >= self.rows || started.elapsed() >= self.time {
                break frontier.map(|place| place.cursor());
            }
            limit = (limit * 2).min(self.window);
        };
        let attempt = |entry: &FoundEntry| (entry.place.message_id.clone(), entry.place.sequence);
        let ended: HashSet<(String, i64)> =
            found.iter().filter(|entry| !entry.in_flight).map(attempt).collect();
        found.retain(|entry| !entry.in_flight || !ended.contains(&attempt(entry)));
        Ok((found, next))
    }

    async fn in_flight(&self, cursor: Option<&LogCursor>) -> Result<Vec<FoundEntry>> {
        if !self.wants(&IN_FLIGHT) {
            return Ok(Vec::new());
        }
        let mut query = Query::new(self.pools);
        self.select(&mut query, 0, &IN_FLIGHT, cursor);
        let rows: Vec<SourceRow> = query.fetch(self.pools).await?;
        let mut entries = Vec::with_capacity(rows.len());
        for row in &rows {
            entries.extend(entries_of(row)?.map(|entry| FoundEntry { in_flight: true, ..entry }));
        }
        Ok(entries)
    }

    /// The next rows of the sources that are read as far as the frontier, at most `limit` of each.
    async fn read(
        &self,
        feeds: &mut [Feed],
        frontier: Option<&LogPlace>,
        cursor: Option<&LogCursor>,
        limit: usize,
    ) -> Result<Vec<SourceRow>> {
        let mut query = Query::new(self.pools);
        let mut joint = "";
        for feed in feeds.iter_mut().filter(|feed| !feed.done && feed.end.as_ref() == frontier) {
            let from = feed.end.as_ref().map(LogPlace::cursor);
            query.sql(joint).sql("SELECT * FROM (");
            self.select(&mut query, feed.index, &SOURCES[feed.index], from.as_ref().or(cursor));
            query.sql(" LIMIT ").number(i64::try_from(limit).unwrap_or(i64::MAX));
            query.sql(&format!(") AS part{}", feed.index));
            joint = " UNION ALL ";
            // Unless it turns out to have more.
            feed.done = true;
        }
        let rows: Vec<SourceRow> = query.fetch(self.pools).await?;
        for feed in feeds {
            let own = || rows.iter().filter(|row| usize::try_from(row.source) == Ok(feed.index));
            if own().count() >= limit {
                feed.done = false;
                let places = own().map(|row| LogPlace {
                    time: row.time,
                    message_id: row.message_id.clone(),
                    sequence: match self.order {
                        Order::EarliestFirst => row.last,
                        Order::LatestFirst => row.first,
                    },
                });
                feed.end = match self.order {
                    Order::EarliestFirst => places.max(),
                    Order::LatestFirst => places.min(),
                };
            }
        }
        Ok(rows)
    }

    /// How far all sources have been read; `None`: to their ends.
    fn frontier(&self, feeds: &[Feed]) -> Option<LogPlace> {
        let ends = feeds.iter().filter(|feed| !feed.done).filter_map(|feed| feed.end.clone());
        match self.order {
            Order::EarliestFirst => ends.min(),
            Order::LatestFirst => ends.max(),
        }
    }

    fn is_beyond(&self, place: &LogPlace, frontier: &LogPlace) -> bool {
        match self.order {
            Order::EarliestFirst => place > frontier,
            Order::LatestFirst => place < frontier,
        }
    }

    /// Whether an entry has a wanted state, and is after the cursor: of a row's two entries the first one may not be.
    fn is_wanted(&self, entry: &FoundEntry, cursor: Option<&LogCursor>) -> bool {
        (self.filter.states.is_empty() || self.filter.states.contains(&entry.state))
            && cursor.is_none_or(|cursor| self.is_after(&entry.place, cursor))
    }

    fn is_after(&self, place: &LogPlace, cursor: &LogCursor) -> bool {
        let found = match &cursor.entry {
            None => place.time.cmp(&cursor.time.as_millis()),
            Some((id, sequence)) => (place.time, place.message_id.as_str(), place.sequence).cmp(&(
                cursor.time.as_millis(),
                id.as_str(),
                *sequence,
            )),
        };
        match self.order {
            Order::EarliestFirst => found.is_gt(),
            Order::LatestFirst => found.is_lt(),
        }
    }

    fn wants(&self, source: &Source) -> bool {
        self.filter.states.is_empty() || source.states.iter().any(|state| self.filter.states.contains(state))
    }

    /// The entries whose messages match the filter.
    async fn matching(&self, entries: &[FoundEntry]) -> Result<Vec<FoundEntry>> {
        let LogFilter { matching, owner, .. } = self.filter;
        if matching.is_empty() && *owner == Owner::Any {
            return Ok(entries.to_vec());
        }
        let matching = messages::matching(self.pools, &distinct(entries), matching, *owner).await?;
        Ok(entries.iter().filter(|entry| matching.contains(&entry.place.message_id)).cloned().collect())
    }

    fn select(&self, query: &mut Query, index: usize, source: &Source, from: Option<&LogCursor>) {
        let Source { table, message_id, time, first, last, kind, condition, .. } = source;
        let Self { filter, order, .. } = self;
        query.sql(&format!(
            "SELECT {time} AS time, {message_id} AS message_id, CAST({first} AS BIGINT) AS first, \
             CAST({last} AS BIGINT) AS last, CAST({index} AS BIGINT) AS source, {kind} AS kind \
             FROM {table} WHERE {condition}"
        ));
        if source.states.contains(&State::Delivered)
            && !filter.states.is_empty()
            && !filter.states.contains(&State::Delivered)
        {
            // For which there is an index, since they are few.
            query.sql(" AND e.result <> 'delivered'");
        }
        let (strict, loose, direction, sequence) = match order {
            Order::LatestFirst => ("<", "<=", " DESC", first),
            Order::EarliestFirst => (">", ">=", "", last),
        };
        match from {
            None => {}
            Some(LogCursor { time: at, entry: None }) => {
                query.sql(&format!(" AND {time} {strict} ")).number(at.as_millis());
            }
            Some(LogCursor { time: at, entry: Some((id, after)) }) => {
                // The first condition is implied by the second; it is the one that an index serves.
                query.sql(&format!(" AND {time} {loose} ")).number(at.as_millis());
                query.sql(&format!(" AND ({time}, {message_id}, {sequence}) {strict} ("));
                query.number(at.as_millis()).sql(", ").text(id.as_str()).sql(", ").number(*after).sql(")");
            }
        }
        if let Some(from) = filter.from {
            query.sql(&format!(" AND {time} >= ")).number(from.as_millis());
        }
        if let Some(to) = filter.to {
            query.sql(&format!(" AND {time} <= ")).number(to.as_millis());
        }
        if !filter.messages.is_empty() {
            let ids: Vec<&str> = filter.messages.iter().map(MessageId::as_str).collect();
            query.sql(&format!(" AND {message_id} ")).one_of(&ids);
        }
        if source.states.contains(&State::Created) {
            // Messages have no index on the time of their acceptance but their ids, which begin with it.
            let at = from.map(|cursor| cursor.time);
            match order {
                Order::LatestFirst => {
                    query.accepted(message_id, filter.from, at.into_iter().chain(filter.to).min())
                }
                Order::EarliestFirst => {
                    query.accepted(message_id, at.into_iter().chain(filter.from).max(), filter.to)
                }
            };
            query.sql(&format!(" ORDER BY {message_id}{direction}"));
        } else {
            // The sequence by its name: Postgres refuses a constant.
            query.sql(&format!(" ORDER BY {time}{direction}, {message_id}{direction}, first{direction}"));
        }
    }
}

/// The entries of a row.
fn entries_of(row: &SourceRow) -> Result<impl Iterator<Item = FoundEntry>> {
    let states: &[(State, i64)] = match row.kind.as_str() {
        "CREATED" => &[(State::Created, 0)],
        "ACTIVE" => &[(State::Active, 0)],
        "CANCEL_REQUESTED" => &[(State::CancelRequested, 0)],
        "CANCELED" => &[(State::Cancelled, 0)],
        // The states that an attempt leaves behind.
        "delivered" => &[(State::Delivered, 1)],
        "retry" => &[(State::Error, 0), (State::Retry, 1)],
        "failed" => &[(State::Error, 0), (State::Failed, 1)],
        "cancelled" => &[(State::Error, 0)],
        _ => {
            let id = row.message_id.clone();
            return Err(StoreError::Corrupt { table: "attempts", column: "result", id });
        }
    };
    Ok(states.iter().map(|&(state, offset)| FoundEntry {
        place: LogPlace { time: row.time, message_id: row.message_id.clone(), sequence: row.first + offset },
        state,
        in_flight: false,
    }))
}

const _: () = assert!(CANCEL_REQUESTED == 1_099_511_627_776 && CANCELLED == 1_099_511_627_777);

#[cfg(test)]
mod tests;
