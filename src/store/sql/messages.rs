//! The table `messages`: written once, read by id.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::{PgPool, SqlitePool};

use super::query::{Query, wanted};
use super::{Backend, codec};
use crate::domain::filter::MessageFilter;
use crate::domain::id::MessageId;
use crate::domain::message::{Message, Method};
use crate::domain::time::Timestamp;
use crate::store::{Delivery, Lease, Result, Slot, StoreError};

/// The columns of [`MessageRow`], for a table alias `m`.
macro_rules! message_columns {
    () => {
        "m.id, m.created_at, m.due_at, m.method, m.url, m.headers, m.body, m.body_sha256, m.max_retries, \
         m.caller_ip, m.labels, m.queue, m.url_group, m.endpoint, m.schedule_id, m.source_id, m.options"
    };
}
pub(super) use message_columns;

/// One row as it is stored.
#[derive(sqlx::FromRow)]
pub(super) struct MessageRow {
    pub(super) id: String,
    created_at: i64,
    due_at: i64,
    method: String,
    url: String,
    headers: Option<String>,
    body: Vec<u8>,
    body_sha256: Vec<u8>,
    max_retries: i64,
    caller_ip: Option<String>,
    labels: Option<String>,
    queue: Option<String>,
    url_group: Option<String>,
    endpoint: Option<String>,
    schedule_id: Option<String>,
    source_id: Option<String>,
    options: Option<String>,
}

impl MessageRow {
    pub(super) fn into_message(self) -> Result<Message> {
        let corrupt = |column| StoreError::Corrupt { table: "messages", column, id: self.id.clone() };
        Ok(Message {
            created_at: Timestamp::from_millis(self.created_at),
            due_at: Timestamp::from_millis(self.due_at),
            method: Method::parse(&self.method).ok_or_else(|| corrupt("method"))?,
            headers: codec::read_headers(self.headers.as_deref(), "messages", &self.id)?,
            body_sha256: self.body_sha256.as_slice().try_into().map_err(|_| corrupt("body_sha256"))?,
            max_retries: u32::try_from(self.max_retries).map_err(|_| corrupt("max_retries"))?,
            labels: self.labels.as_deref().map(read_labels).unwrap_or_default(),
            options: codec::read_options(self.options.as_deref(), "messages", &self.id)?,
            id: MessageId::new(self.id),
            url: self.url,
            body: Bytes::from(self.body),
            caller_ip: self.caller_ip,
            queue: self.queue,
            url_group: self.url_group,
            endpoint: self.endpoint,
            schedule_id: self.schedule_id,
            source_id: self.source_id.map(MessageId::new),
        })
    }
}

/// Labels as they are stored: comma-joined; `None` for none.
pub(super) fn write_labels(labels: &[String]) -> Option<String> {
    (!labels.is_empty()).then(|| labels.join(","))
}

pub(super) fn read_labels(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

/// Adds a message's columns to the arguments of an insert, in the order of the table.
macro_rules! add_message {
    ($arguments:expr, $message:expr) => {{
        use sqlx::Arguments as _;
        let message: &crate::domain::message::Message = $message;
        let arguments = $arguments;
        arguments.add(message.id.as_str())?;
        arguments.add(message.created_at.as_millis())?;
        arguments.add(message.due_at.as_millis())?;
        arguments.add(message.method.as_str())?;
        arguments.add(message.url.as_str())?;
        arguments.add($crate::store::sql::codec::write_headers(&message.headers))?;
        arguments.add(&message.body[..])?;
        arguments.add(&message.body_sha256[..])?;
        arguments.add(i64::from(message.max_retries))?;
        arguments.add(message.caller_ip.as_deref())?;
        arguments.add($crate::store::sql::messages::write_labels(&message.labels))?;
        arguments.add(message.queue.as_deref())?;
        arguments.add(message.url_group.as_deref())?;
        arguments.add(message.endpoint.as_deref())?;
        arguments.add(message.schedule_id.as_deref())?;
        arguments.add(message.options.flow_control.as_ref().map(|flow| flow.key.as_str()))?;
        arguments.add(message.source_id.as_ref().map(crate::domain::id::MessageId::as_str))?;
        arguments.add($crate::store::sql::codec::write_options(&message.options))
    }};
}
pub(super) use add_message;

/// Adds what a new message's delivery has of its own: lane, size, claims, node and lease. Nobody's where it isn't leased.
macro_rules! add_delivery {
    ($arguments:expr, $node:expr, $new:expr) => {{
        use sqlx::Arguments as _;
        let (arguments, node, new) = ($arguments, $node, $new);
        arguments.add(&*new.lane)?;
        arguments.add(i64::try_from(new.message.size()).unwrap_or(i64::MAX))?;
        arguments.add(i64::from(new.lease.is_some()))?;
        arguments.add(new.lease.map_or(0, |_| node.0))?;
        arguments.add(new.lease.map_or(0, |lease| lease.0))
    }};
}
pub(super) use add_delivery;

pub(super) async fn get(pools: &Backend<&PgPool, &SqlitePool>, id: &MessageId) -> Result<Option<Message>> {
    let sql = concat!("SELECT ", message_columns!(), " FROM messages m WHERE m.id = $1");
    let row: Option<MessageRow> = on_backend!(pools, |pool| {
        sqlx::query_as(sql).bind(wanted(id.as_str())).fetch_optional(*pool).await?
    });
    row.map(MessageRow::into_message).transpose()
}

/// The messages of these ids, in no order.
pub(super) async fn get_many(pools: &Backend<&PgPool, &SqlitePool>, ids: &[&str]) -> Result<Vec<Message>> {
    let mut query = Query::new(pools);
    query.sql(concat!("SELECT ", message_columns!(), " FROM messages m WHERE m.id ")).one_of(ids);
    let rows: Vec<MessageRow> = query.fetch(pools).await?;
    rows.into_iter().map(MessageRow::into_message).collect()
}

#[derive(sqlx::FromRow)]
struct PartsRow {
    id: String,
    url: String,
    labels: Option<String>,
}

/// Ids that one call to [`matching`] may name: a moment's work, even where bodies lie before what is looked at.
pub(super) const MATCHED: usize = 1000;

/// Those of the ids, at most [`MATCHED`], whose messages match.
pub(super) async fn matching(
    pools: &Backend<&PgPool, &SqlitePool>,
    ids: &[&str],
    filter: &MessageFilter,
) -> Result<HashSet<String>> {
    let mut query = Query::new(pools);
    query.sql("SELECT m.id, m.url, m.labels FROM messages m WHERE m.id ").one_of(ids).matching(filter);
    let rows: Vec<PartsRow> = query.fetch(pools).await?;
    let matches = |row: &PartsRow| {
        let labels = row.labels.as_deref().into_iter().flat_map(|labels| labels.split(','));
        filter.matches_parts(&row.url, labels)
    };
    Ok(rows.into_iter().filter(matches).map(|row| row.id).collect())
}

/// A leased delivery with its message.
#[derive(sqlx::FromRow)]
pub(super) struct ClaimedRow {
    lane: String,
    attempt_due_at: i64,
    retried: i64,
    claims: i64,
    cancel_requested: bool,
    slot: Option<String>,
    holder: Option<String>,
    flow_gate: Option<String>,
    #[sqlx(flatten)]
    message: MessageRow,
}

impl ClaimedRow {
    pub(super) fn id(&self) -> &str {
        &self.message.id
    }

    /// The deliveries in the order of their due times, and the ids of those whose messages can't be read.
    pub(super) fn into_deliveries(mut rows: Vec<Self>, lease: Lease) -> (Vec<Delivery>, Vec<String>) {
        rows.sort_by(|a, b| (a.attempt_due_at, &a.message.id).cmp(&(b.attempt_due_at, &b.message.id)));
        let mut deliveries = Vec::with_capacity(rows.len());
        let mut unreadable = Vec::new();
        for row in rows {
            let id = row.message.id.clone();
            match row.message.into_message() {
                Ok(message) => deliveries.push(Delivery {
                    lane: super::lane(&row.lane),
                    size: message.size(),
                    lease,
                    retried: u32::try_from(row.retried).unwrap_or(u32::MAX),
                    claims: u32::try_from(row.claims).unwrap_or(u32::MAX),
                    cancel_requested: row.cancel_requested,
                    slot: row.slot.zip(row.holder).map(|(queue, holder)| Slot {
                        queue: Arc::from(queue),
                        holder: MessageId::new(holder),
                    }),
                    flow: row.flow_gate.map(Arc::from),
                    start_by: None,
                    message: Arc::new(message),
                }),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        message.id = %id,
                        "a message can't be read, and is put aside for a day"
                    );
                    unreadable.push(id);
                }
            }
        }
        (deliveries, unreadable)
    }
}
