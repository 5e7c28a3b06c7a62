//! The columns of `messages` and of a new row of `deliveries`, and how messages are read.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use sqlx::{FromRow, PgPool, SqlitePool};

use super::columns::{Column, Fields, Stored, names, put, read};
use super::gates::entering::GatePlace;
use super::query::{Query, wanted};
use super::{Backend, codec};
use crate::domain::filter::MessageFilter;
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::message::{Message, Method};
use crate::domain::run::{Kind, Part};
use crate::domain::time::Timestamp;
use crate::store::{Accept, Delivery, Lease, NodeId, Owner, Result, Slot, StoreError};

type MessageColumn<'a> = Stored<'a, &'a Message, Message>;
type DeliveryColumn<'a> = Column<'a, New<'a>>;

/// A message to insert with its delivery.
#[derive(Clone, Copy)]
pub(super) struct New<'a> {
    pub(super) accept: &'a Accept,
    /// Whose lease the delivery has, where it is stored leased.
    pub(super) node: NodeId,
    /// Where the delivery waits, unless only its lane limits it.
    pub(super) place: Option<&'a GatePlace>,
    /// The slot that a callback's delivery shares with its source.
    pub(super) slot: Option<&'a Slot>,
}

/// The list of the columns of `messages`. A new one is a line here and a migration for each engine.
fn columns<'a>() -> Vec<MessageColumn<'a>> {
    type Own<'a> = MessageColumn<'a>;
    vec![
        Own::text("id", |m| Some(m.id.as_str().into()), |m, id| put(&mut m.id, id.map(MessageId::new))),
        Own::number("created_at", |m| Some(m.created_at.as_millis()), |m, ms| put(&mut m.created_at, at(ms))),
        Own::number("due_at", |m| Some(m.due_at.as_millis()), |m, ms| put(&mut m.due_at, at(ms))),
        Own::text(
            "method",
            |m| Some(m.method.as_str().into()),
            |m, name| put(&mut m.method, Method::parse(&name?)),
        ),
        Own::text("url", |m| Some(m.url.as_str().into()), |m, url| put(&mut m.url, url)),
        Own::text(
            "headers",
            |m| codec::write_headers(&m.headers).map(Cow::from),
            |m, json| put(&mut m.headers, codec::parse_headers(json.as_deref())),
        ),
        Own::bytes("body", |m| Some(&m.body), |m, body| put(&mut m.body, body.map(Bytes::from))),
        Own::bytes(
            "body_sha256",
            |m| Some(&m.body_sha256),
            |m, hash| put(&mut m.body_sha256, hash?.try_into().ok()),
        ),
        Own::number(
            "max_retries",
            |m| Some(i64::from(m.max_retries)),
            |m, number| put(&mut m.max_retries, number?.try_into().ok()),
        ),
        Own::text(
            "caller_ip",
            |m| m.caller_ip.as_deref().map(Cow::from),
            |m, ip| put(&mut m.caller_ip, Some(ip)),
        ),
        Own::text(
            "labels",
            |m| write_labels(&m.labels).map(Cow::from),
            |m, labels| put(&mut m.labels, Some(read_labels(labels.as_deref()))),
        ),
        Own::text("queue", |m| m.queue.as_deref().map(Cow::from), |m, queue| put(&mut m.queue, Some(queue))),
        Own::text(
            "url_group",
            |m| m.url_group.as_deref().map(Cow::from),
            |m, name| put(&mut m.url_group, Some(name)),
        ),
        Own::text(
            "endpoint",
            |m| m.endpoint.as_deref().map(Cow::from),
            |m, name| put(&mut m.endpoint, Some(name)),
        ),
        Own::text(
            "schedule_id",
            |m| m.schedule_id.as_deref().map(Cow::from),
            |m, id| put(&mut m.schedule_id, Some(id)),
        ),
        Own::text(
            "flow_key",
            |m| m.options.flow_control.as_ref().map(|flow| flow.key.as_str().into()),
            |_, _| Some(()),
        ),
        Own::text(
            "source_id",
            |m| m.source_id.as_ref().map(|id| id.as_str().into()),
            |m, id| put(&mut m.source_id, Some(id.map(MessageId::new))),
        ),
        Own::text(
            "run",
            |m| m.run.as_ref().map(|part| part.instance.as_str().into()),
            |m, instance| {
                let part =
                    |instance| Part { instance: InstanceId::new(instance), kind: Kind::Step, log_size: 0 };
                put(&mut m.run, Some(instance.map(part)))
            },
        ),
        // Behind the column of the run, whose part it completes.
        Own::text(
            "kind",
            |m| m.run.as_ref().map(|part| part.kind.as_str().into()),
            |m, kind| match (&mut m.run, kind) {
                (Some(part), Some(kind)) => put(&mut part.kind, Kind::parse(&kind)),
                (None, None) => Some(()),
                _ => None,
            },
        ),
        Own::text(
            "options",
            |m| codec::write_options(&m.options).map(Cow::from),
            |m, json| put(&mut m.options, codec::parse_options(json.as_deref())),
        ),
    ]
}

/// The list of the columns of `deliveries` that a new row sets; the others have defaults.
pub(super) fn delivery<'a>() -> Vec<DeliveryColumn<'a>> {
    type Own<'a> = DeliveryColumn<'a>;
    vec![
        Own::text("message_id", |new| Some(new.accept.message.id.as_str().into())),
        Own::text("lane", |new| Some((&*new.accept.lane).into())),
        Own::number("due_at", |new| Some(new.accept.message.due_at.as_millis())),
        Own::number("size", |new| Some(i64::try_from(new.accept.message.size()).unwrap_or(i64::MAX))),
        Own::number("retried", |_| Some(0)),
        Own::number("claims", |new| Some(i64::from(new.accept.lease.is_some()))),
        Own::number("node", |new| Some(new.accept.lease.map_or(0, |_| new.node.0))),
        Own::number("lease", |new| Some(new.accept.lease.map_or(0, |lease| lease.0))),
        Own::text("gate", |new| new.place.map(|place| Cow::from(&*place.gate))),
        Own::text("flow", |new| new.place.and_then(|place| place.flow.as_deref()).map(Cow::from)),
        Own::number("place", |new| new.place.map(|place| place.order_us)),
        Own::text("slot", |new| new.slot.map(|slot| Cow::from(&*slot.queue))),
        Own::text("holder", |new| new.slot.map(|slot| slot.holder.as_str().into())),
        Own::text("run", |new| new.accept.message.run.as_ref().map(|part| part.instance.as_str().into())),
    ]
}

fn at(ms: Option<i64>) -> Option<Timestamp> {
    ms.map(Timestamp::from_millis)
}

/// The columns of `messages` for a statement that writes them.
pub(super) fn written<'a>() -> Vec<Column<'a, &'a Message>> {
    columns().into_iter().map(|stored| stored.column).collect()
}

/// The columns of [`MessageRow`], for a table alias `m`.
pub(super) static SELECTED: LazyLock<String> = LazyLock::new(|| names(&written(), "m."));

/// A message as far as it could be read.
pub(super) struct MessageRow {
    message: Message,
    /// The first column whose value can't be what it should.
    corrupt: Option<&'static str>,
}

impl<'r, R: Fields> FromRow<'r, R> for MessageRow {
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        static COLUMNS: LazyLock<Vec<MessageColumn<'static>>> = LazyLock::new(columns);
        static EMPTY: LazyLock<Message> =
            LazyLock::new(|| Message::plain(MessageId::new(""), Timestamp::default(), "", Bytes::new()));
        let mut message = EMPTY.clone();
        let corrupt = read(&COLUMNS, row, &mut message)?;
        Ok(Self { message, corrupt })
    }
}

impl MessageRow {
    pub(super) fn id(&self) -> &str {
        self.message.id.as_str()
    }

    pub(super) fn into_message(self) -> Result<Message> {
        match self.corrupt {
            None => Ok(self.message),
            Some(column) => Err(StoreError::Corrupt {
                table: "messages",
                column,
                id: self.message.id.as_str().to_owned(),
            }),
        }
    }
}

/// Labels as they are stored: comma-joined; `None` for none.
pub(super) fn write_labels(labels: &[String]) -> Option<String> {
    (!labels.is_empty()).then(|| labels.join(","))
}

pub(super) fn read_labels(text: Option<&str>) -> Vec<String> {
    text.into_iter().flat_map(|labels| labels.split(',')).map(str::to_owned).collect()
}

pub(super) async fn get(pools: &Backend<&PgPool, &SqlitePool>, id: &MessageId) -> Result<Option<Message>> {
    static SQL: LazyLock<String> =
        LazyLock::new(|| format!("SELECT {} FROM messages m WHERE m.id = $1", *SELECTED));
    let row: Option<MessageRow> = on_backend!(pools, |pool| {
        sqlx::query_as(SQL.as_str()).bind(wanted(id.as_str())).fetch_optional(*pool).await?
    });
    row.map(MessageRow::into_message).transpose()
}

/// The messages of these ids, in no order.
pub(super) async fn get_many(pools: &Backend<&PgPool, &SqlitePool>, ids: &[&str]) -> Result<Vec<Message>> {
    let mut query = Query::new(pools);
    query.sql("SELECT ").sql(&SELECTED).sql(" FROM messages m WHERE m.id ").one_of(ids);
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

/// Filters ids, at most [`MATCHED`], by their messages.
pub(super) async fn matching(
    pools: &Backend<&PgPool, &SqlitePool>,
    ids: &[&str],
    filter: &MessageFilter,
    owner: Owner,
) -> Result<HashSet<String>> {
    let mut query = Query::new(pools);
    query.sql("SELECT m.id, m.url, m.labels FROM messages m WHERE m.id ").one_of(ids).matching(filter);
    match owner {
        Owner::User => query.sql(" AND m.run IS NULL"),
        Owner::Run => query.sql(" AND m.run IS NOT NULL"),
        Owner::Any => &mut query,
    };
    let rows: Vec<PartsRow> = query.fetch(pools).await?;
    let matches = |row: &PartsRow| {
        let labels = row.labels.as_deref().into_iter().flat_map(|labels| labels.split(','));
        filter.matches_parts(&row.url, labels)
    };
    Ok(rows.into_iter().filter(matches).map(|row| row.id).collect())
}

/// The columns of leased deliveries `d` that a claim returns, as [`ClaimedRow`] reads them.
pub(super) const LEASED: &str = "d.message_id, d.lane, d.due_at AS attempt_due_at, d.size, d.retried, d.claims, \
    d.cancel_requested_at IS NOT NULL AS cancel_requested, d.slot, d.holder, \
    CASE WHEN d.gate IS NOT NULL THEN d.flow END AS flow_gate";

/// A leased delivery with its message.
#[derive(FromRow)]
pub(super) struct ClaimedRow {
    lane: String,
    attempt_due_at: i64,
    size: i64,
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
        self.message.id()
    }

    /// The deliveries in the order of their due times, and the ids of those whose messages can't be read.
    pub(super) fn into_deliveries(mut rows: Vec<Self>, lease: Lease) -> (Vec<Delivery>, Vec<String>) {
        rows.sort_by(|a, b| (a.attempt_due_at, a.id()).cmp(&(b.attempt_due_at, b.id())));
        let mut deliveries = Vec::with_capacity(rows.len());
        let mut unreadable = Vec::new();
        for row in rows {
            let id = row.id().to_owned();
            match row.message.into_message() {
                Ok(message) => deliveries.push(Delivery {
                    lane: super::lane(&row.lane),
                    size: usize::try_from(row.size).unwrap_or_default(),
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
