//! The tables `runs` and `run_entries`: durable workflows.
//!
//! [`entering`] has the part of accepts, [`ending`] that of outcomes and of a run's end, [`waiting`] the waits for events. Whoever
//! changes runs holds their rows, in the order of their instances, before any gate's and any delivery's.

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgArguments;
use sqlx::{PgPool, SqlitePool};

use super::columns::{Column, add_arrays, arguments, arrays, names};
use super::gates::entering::Conn;
use super::hot_sqlite::{Inserts, insert_rows, inserts};
use super::query::Query;
use super::{Backend, codec, hot_postgres, messages};
use crate::domain::id::{DeadLetterId, InstanceId, MessageId};
use crate::domain::run::{
    CallType, Entry, Features, Invoker, NewEntry, NewRun, Run, RunEnd, RunState, Telling, Told, Trigger,
};
use crate::domain::time::Timestamp;
use crate::store::runs::RunKey;
use crate::store::{Result, StoreError};

mod again;
mod calls;
pub(super) mod ending;
pub(super) mod entering;
pub(super) mod listing;
mod messages_of;
mod waiting;

/// A statement that inserts rows, for both engines.
struct Insert {
    postgres: String,
    sqlite: Inserts,
}

impl Insert {
    fn new<R>(table: &str, columns: &[Column<'_, R>]) -> Self {
        let names = names(columns, "");
        Self {
            postgres: hot_postgres::insert(table, &names, &arrays(columns, 1)),
            sqlite: inserts(table, columns),
        }
    }

    /// Rows that are there already, by any unique index, are left as they are.
    fn or_nothing(mut self) -> Self {
        let end = " ON CONFLICT DO NOTHING";
        self.postgres.push_str(end);
        self.sqlite.iter_mut().for_each(|sql| sql.push_str(end));
        self
    }

    async fn run<R: Copy>(
        &'static self,
        conn: &mut Conn<'_>,
        columns: &[Column<'_, R>],
        rows: &[R],
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        match conn {
            Backend::Postgres(conn) => {
                let arguments = arguments(|arguments: &mut PgArguments| {
                    add_arrays(arguments, columns, &rows.iter().copied())
                })?;
                sqlx::query_with(self.postgres.as_str(), arguments).execute(&mut **conn).await?;
            }
            Backend::Sqlite(conn) => insert_rows(conn, &self.sqlite, columns, rows).await?,
        }
        Ok(())
    }
}

/// A run to insert.
#[derive(Clone, Copy)]
struct Begun<'a> {
    instance: &'a str,
    created_at: Timestamp,
    new: &'a NewRun,
}

/// The columns of a new run; the others have no value yet.
fn begun<'a>() -> Vec<Column<'a, Begun<'a>>> {
    type Own<'a> = Column<'a, Begun<'a>>;
    vec![
        Own::text("instance", |run| Some(run.instance.into())),
        Own::text("run_id", |run| Some(run.new.id.as_str().into())),
        Own::number("created_at", |run| Some(run.created_at.as_millis())),
        Own::text("url", |run| Some(run.new.url.as_str().into())),
        Own::text("state", |_| Some(RunState::Started.as_str().into())),
        Own::text("labels", |run| messages::write_labels(&run.new.labels).map(Cow::from)),
        Own::text("flow_key", |run| {
            run.new.trigger.options.flow_control.as_ref().map(|flow| flow.key.as_str().into())
        }),
        Own::text("caller_ip", |run| run.new.caller_ip.as_deref().map(Cow::from)),
        Own::text("headers", |run| codec::write_headers(&run.new.trigger.headers).map(Cow::from)),
        Own::number("max_retries", |run| Some(i64::from(run.new.trigger.max_retries))),
        Own::text("features", |run| Some(run.new.trigger.features.list().into())),
        Own::text("options", |run| codec::write_options(&run.new.trigger.options).map(Cow::from)),
        Own::text("invoker_instance", |run| {
            run.new.invoker.as_ref().map(|invoker| invoker.instance.as_str().into())
        }),
        Own::number("invoker_step", |run| {
            run.new.invoker.as_ref().map(|invoker| i64::try_from(invoker.step_id).unwrap_or(i64::MAX))
        }),
        Own::text("invoker", |run| {
            run.new.invoker.as_ref().map(|invoker| codec::json(&InvokerRow::from(invoker)).into())
        }),
        Own::number("next_position", |_| Some(1)),
    ]
}

static INSERT_RUNS: LazyLock<Insert> = LazyLock::new(|| Insert::new("runs", &begun()).or_nothing());

/// An entry to insert.
#[derive(Clone, Copy)]
struct Appended<'a> {
    instance: &'a str,
    position: i64,
    message: &'a str,
    created_at: Timestamp,
    call_type: CallType,
    key: Option<&'a str>,
    body: &'a Bytes,
}

fn entries<'a>() -> Vec<Column<'a, Appended<'a>>> {
    type Own<'a> = Column<'a, Appended<'a>>;
    vec![
        Own::text("instance", |entry| Some(entry.instance.into())),
        Own::number("position", |entry| Some(entry.position)),
        Own::text("message_id", |entry| Some(entry.message.into())),
        Own::text("call_type", |entry| Some(entry.call_type.as_str().into())),
        Own::text("step_key", |entry| entry.key.map(Cow::from)),
        Own::bytes("body", |entry| Some(entry.body)),
        Own::number("created_at", |entry| Some(entry.created_at.as_millis())),
    ]
}

static INSERT_ENTRIES: LazyLock<Insert> = LazyLock::new(|| Insert::new("run_entries", &entries()));

/// The rest of an invoker: see [`Invoker`].
#[derive(Serialize, Deserialize)]
struct InvokerRow {
    run_id: String,
    created_at: i64,
    url: String,
    step: String,
    headers: Option<String>,
}

impl From<&Invoker> for InvokerRow {
    fn from(invoker: &Invoker) -> Self {
        Self {
            run_id: invoker.run_id.clone(),
            created_at: invoker.created_at.as_millis(),
            url: invoker.url.clone(),
            step: invoker.step.clone(),
            headers: codec::write_headers(&invoker.headers),
        }
    }
}

const COLUMNS: &str = "r.instance, r.run_id, r.created_at, r.url, r.state, r.completed_at, r.labels, r.caller_ip, r.headers, \
    r.max_retries, r.features, r.options, r.invoker_instance, r.invoker_step, r.invoker, r.result, \
    (SELECT l.id FROM dead_letters l WHERE l.id = r.dead_letter) AS dead_letter, r.failure_message, r.failure_told";

#[derive(sqlx::FromRow)]
struct RunRow {
    instance: String,
    run_id: String,
    created_at: i64,
    url: String,
    state: String,
    completed_at: Option<i64>,
    labels: Option<String>,
    caller_ip: Option<String>,
    headers: Option<String>,
    max_retries: i64,
    features: String,
    options: Option<String>,
    invoker_instance: Option<String>,
    invoker_step: Option<i64>,
    invoker: Option<String>,
    result: Option<Vec<u8>>,
    dead_letter: Option<String>,
    failure_message: Option<String>,
    failure_told: Option<String>,
}

impl RunRow {
    fn into_run(self) -> Result<Run> {
        let corrupt = |column| StoreError::Corrupt { table: "runs", column, id: self.instance.clone() };
        let trigger = Trigger {
            headers: codec::read_headers(self.headers.as_deref(), "runs", &self.instance)?,
            max_retries: u32::try_from(self.max_retries).map_err(|_| corrupt("max_retries"))?,
            options: codec::parse_options(self.options.as_deref()).ok_or_else(|| corrupt("options"))?,
            features: Features::parse(&self.features),
        };
        let invoker = match self.invoker_instance.as_deref().zip(self.invoker.as_deref()) {
            None => None,
            Some((instance, rest)) => {
                let rest: InvokerRow = serde_json::from_str(rest).map_err(|_| corrupt("invoker"))?;
                let step_id = self.invoker_step.unwrap_or_default();
                Some(Invoker {
                    instance: InstanceId::new(instance),
                    run_id: rest.run_id,
                    created_at: Timestamp::from_millis(rest.created_at),
                    url: rest.url,
                    step_id: u64::try_from(step_id).map_err(|_| corrupt("invoker_step"))?,
                    step: rest.step,
                    headers: codec::read_headers(rest.headers.as_deref(), "runs", &self.instance)?,
                })
            }
        };
        let told = match &self.failure_told {
            None => None,
            Some(text) => Some(Told::parse(text).ok_or_else(|| corrupt("failure_told"))?),
        };
        let telling = self.failure_message.map(|id| Telling { message: MessageId::new(id), told });
        let state = RunState::parse(&self.state).ok_or_else(|| StoreError::Corrupt {
            table: "runs",
            column: "state",
            id: self.instance.clone(),
        })?;
        Ok(Run {
            state,
            end: self.completed_at.map(|at| RunEnd {
                at: Timestamp::from_millis(at),
                result: self.result.map(Bytes::from),
                dead_letter: self.dead_letter.map(DeadLetterId::new),
                telling,
            }),
            instance: InstanceId::new(self.instance),
            id: self.run_id,
            created_at: Timestamp::from_millis(self.created_at),
            url: self.url,
            labels: messages::read_labels(self.labels.as_deref()),
            caller_ip: self.caller_ip,
            trigger,
            invoker,
        })
    }
}

async fn get(pools: &Backend<&PgPool, &SqlitePool>, key: &RunKey) -> Result<Option<Run>> {
    let mut query = Query::new(pools);
    query.sql("SELECT ").sql(COLUMNS).sql(" FROM runs r WHERE ");
    match key {
        RunKey::Instance(instance) => query.sql("r.instance = ").text(instance.as_str()),
        RunKey::Id(id) => query
            .sql("r.run_id = ")
            .text(id)
            .sql(" ORDER BY r.completed_at IS NULL DESC, r.created_at DESC, r.instance DESC LIMIT 1"),
    };
    let rows: Vec<RunRow> = query.fetch(pools).await?;
    rows.into_iter().next().map(RunRow::into_run).transpose()
}

#[derive(sqlx::FromRow)]
struct EntryRow {
    position: i64,
    message_id: String,
    call_type: String,
    step_key: Option<String>,
    body: Vec<u8>,
    created_at: i64,
}

/// Entries in one page.
const ENTRIES: i64 = 1000;

async fn read_entries(
    pools: &Backend<&PgPool, &SqlitePool>,
    instance: &InstanceId,
    from: u32,
    max_bytes: usize,
) -> Result<Vec<Entry>> {
    let mut query = Query::new(pools);
    query
        .sql(
            "SELECT position, message_id, call_type, step_key, body, created_at FROM ( \
                 SELECT position, message_id, call_type, step_key, body, created_at, \
                        SUM(LENGTH(body)) OVER (ORDER BY position) AS total \
                 FROM run_entries WHERE instance = ",
        )
        .text(instance.as_str())
        .sql(" AND position >= ")
        .number(i64::from(from))
        .sql(" ORDER BY position LIMIT ")
        .number(ENTRIES)
        .sql(") AS page WHERE total <= ")
        .number(i64::try_from(max_bytes).unwrap_or(i64::MAX))
        .sql(" OR position = ")
        .number(i64::from(from))
        .sql(" ORDER BY position");
    let rows: Vec<EntryRow> = query.fetch(pools).await?;
    let entry = |row: EntryRow| {
        let corrupt =
            |column| StoreError::Corrupt { table: "run_entries", column, id: row.message_id.clone() };
        Ok(Entry {
            position: u32::try_from(row.position).map_err(|_| corrupt("position"))?,
            call_type: CallType::parse(&row.call_type).ok_or_else(|| corrupt("call_type"))?,
            message: MessageId::new(row.message_id),
            key: row.step_key,
            body: Bytes::from(row.body),
            created_at: Timestamp::from_millis(row.created_at),
        })
    };
    rows.into_iter().map(entry).collect()
}

/// A run's row, held until the end of the transaction.
#[derive(sqlx::FromRow)]
struct HeldRow {
    instance: String,
    state: String,
    next_position: i64,
}

/// Holds those of the runs that exist, in the order of their instances.
async fn hold<T: AsRef<str>>(conn: &mut Conn<'_>, instances: &[T]) -> Result<Vec<HeldRow>> {
    let mut query = Query::new(conn);
    query
        .sql("SELECT instance, state, next_position FROM runs WHERE instance ")
        .one_of(instances)
        .sql(" ORDER BY instance")
        .lock(" FOR UPDATE");
    query.fetch_on(conn).await
}

/// Stores how far the logs have grown.
async fn advance(conn: &mut Conn<'_>, runs: &[HeldRow]) -> Result<()> {
    #[derive(Serialize)]
    struct Next<'a> {
        instance: &'a str,
        next: i64,
    }
    if runs.is_empty() {
        return Ok(());
    }
    let rows: Vec<Next<'_>> =
        runs.iter().map(|run| Next { instance: &run.instance, next: run.next_position }).collect();
    let sql = format!(
        "UPDATE runs SET next_position = c.next FROM (SELECT r.* FROM {}) AS c WHERE runs.instance = {}",
        super::query::table(conn, &[("instance", "TEXT"), ("next", "BIGINT")]),
        match conn {
            Backend::Postgres(_) => "ANY (ARRAY[c.instance])",
            Backend::Sqlite(_) => "c.instance",
        }
    );
    let rows = codec::json(&rows);
    on_backend!(conn, |conn| {
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(rows).execute(&mut **conn).await?;
    });
    Ok(())
}

/// An entry as it is inserted.
fn appended<'a>(
    instance: &'a InstanceId,
    position: i64,
    message: &'a MessageId,
    created_at: Timestamp,
    entry: &'a NewEntry,
) -> Appended<'a> {
    Appended {
        instance: instance.as_str(),
        position,
        message: message.as_str(),
        created_at,
        call_type: entry.call_type,
        key: entry.key.as_deref(),
        body: &entry.body,
    }
}
