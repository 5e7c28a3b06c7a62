//! The table `schedules`, and the firings that it leads to.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::dead_letters::fitting;
use super::query::{Query, wanted};
use super::tx::Tx;
use super::{Backend, DEADLINE, LONG_DEADLINE, SqlStore, codec, deliveries, messages, within};
use crate::domain::id::{MessageId, ScheduleId};
use crate::domain::message::Method;
use crate::domain::template::Template;
use crate::domain::time::Timestamp;
use crate::store::schedules::{Firing, Firings, LastFiring, Progress, Schedule, Schedules};
use crate::store::{NextDue, Nodes as _, Page, Result, StoreError};

/// Postgres' lock for counting: `hschedul` in ASCII.
const ADVISORY_LOCK: i64 = 0x6873_6368_6564_756c;

/// How long a schedule that can't be read is put aside.
const ASIDE: Duration = Duration::from_hours(24);

/// All columns, in the order of the table.
macro_rules! columns {
    () => {
        "id, generation, cron, destination, method, headers, body, body_sha256, max_retries, caller_ip, labels, \
         queue, options, delay_ms, created_at, paused, next_at, last_slot, last_messages, last_error"
    };
}

#[derive(sqlx::FromRow)]
struct ScheduleRow {
    id: String,
    generation: i64,
    cron: String,
    destination: String,
    method: String,
    headers: Option<String>,
    body: Vec<u8>,
    body_sha256: Vec<u8>,
    max_retries: i64,
    caller_ip: Option<String>,
    labels: Option<String>,
    queue: Option<String>,
    options: Option<String>,
    delay_ms: Option<i64>,
    created_at: i64,
    paused: bool,
    next_at: i64,
    last_slot: Option<i64>,
    last_messages: Option<String>,
    last_error: Option<String>,
}

impl ScheduleRow {
    fn into_schedule(self) -> Result<Schedule> {
        let corrupt = |column| StoreError::Corrupt { table: "schedules", column, id: self.id.clone() };
        let template = Template {
            method: Method::parse(&self.method).ok_or_else(|| corrupt("method"))?,
            headers: codec::read_headers(self.headers.as_deref(), "schedules", &self.id)?,
            body_sha256: self.body_sha256.as_slice().try_into().map_err(|_| corrupt("body_sha256"))?,
            max_retries: u32::try_from(self.max_retries).map_err(|_| corrupt("max_retries"))?,
            labels: messages::read_labels(self.labels.as_deref()),
            options: codec::parse_options(self.options.as_deref()).ok_or_else(|| corrupt("options"))?,
            body: Bytes::from(self.body),
            caller_ip: self.caller_ip,
            queue: self.queue,
            schedule_id: Some(self.id.clone()),
        };
        let delay = self.delay_ms.map(|ms| u64::try_from(ms).map(Duration::from_millis)).transpose();
        Ok(Schedule {
            delay: delay.map_err(|_| corrupt("delay_ms"))?,
            last_firing: self.last_slot.map(|slot| LastFiring {
                occurrence: Timestamp::from_millis(slot),
                messages: self
                    .last_messages
                    .iter()
                    .flat_map(|ids| ids.split(','))
                    .map(MessageId::new)
                    .collect(),
                error: self.last_error,
            }),
            id: ScheduleId::new(self.id),
            generation: self.generation,
            cron: self.cron,
            destination: self.destination,
            template,
            created_at: Timestamp::from_millis(self.created_at),
            paused: self.paused,
            next_at: Timestamp::from_millis(self.next_at),
        })
    }
}

/// Ids as they are stored: comma-joined; `None` for none.
fn write_ids<'a>(ids: impl Iterator<Item = &'a MessageId>) -> Option<String> {
    let ids: Vec<&str> = ids.map(MessageId::as_str).collect();
    (!ids.is_empty()).then(|| ids.join(","))
}

async fn put(tx: &mut Tx, schedule: &Schedule) -> Result<()> {
    let sql = concat!(
        "INSERT INTO schedules (",
        columns!(),
        ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) \
         ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, cron = excluded.cron, \
             destination = excluded.destination, method = excluded.method, headers = excluded.headers, \
             body = excluded.body, body_sha256 = excluded.body_sha256, max_retries = excluded.max_retries, \
             caller_ip = excluded.caller_ip, labels = excluded.labels, queue = excluded.queue, \
             options = excluded.options, delay_ms = excluded.delay_ms, created_at = excluded.created_at, \
             paused = excluded.paused, next_at = excluded.next_at, last_slot = excluded.last_slot, \
             last_messages = excluded.last_messages, last_error = excluded.last_error"
    );
    let template = &schedule.template;
    let last_firing = schedule.last_firing.as_ref();
    let delay_ms = schedule.delay.map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql)
            .bind(schedule.id.as_str())
            .bind(schedule.generation)
            .bind(schedule.cron.as_str())
            .bind(schedule.destination.as_str())
            .bind(template.method.as_str())
            .bind(codec::write_headers(&template.headers))
            .bind(&template.body[..])
            .bind(&template.body_sha256[..])
            .bind(i64::from(template.max_retries))
            .bind(template.caller_ip.as_deref())
            .bind(messages::write_labels(&template.labels))
            .bind(template.queue.as_deref())
            .bind(codec::write_options(&template.options))
            .bind(delay_ms)
            .bind(schedule.created_at.as_millis())
            .bind(schedule.paused)
            .bind(schedule.next_at.as_millis())
            .bind(last_firing.map(|firing| firing.occurrence.as_millis()))
            .bind(last_firing.and_then(|firing| write_ids(firing.messages.iter())))
            .bind(last_firing.and_then(|firing| firing.error.as_deref()))
            .execute(&mut **tx)
            .await?;
    });
    Ok(())
}

/// How many schedules other than this one there are. No other transaction that asks goes on before this one's end.
async fn count_others(tx: &mut Tx, id: &ScheduleId) -> Result<i64> {
    if let Backend::Postgres(tx) = &mut tx.on {
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ADVISORY_LOCK).execute(&mut **tx).await?;
    }
    let sql = "SELECT COUNT(*) FROM schedules WHERE id <> $1";
    Ok(on_backend!(&mut tx.on, |tx| sqlx::query_scalar(sql).bind(id.as_str()).fetch_one(&mut **tx).await?))
}

async fn exists(tx: &mut Tx, id: &ScheduleId) -> Result<bool> {
    let sql = "SELECT 1 FROM schedules WHERE id = $1";
    Ok(on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql).bind(id.as_str()).fetch_optional(&mut **tx).await?.is_some()
    }))
}

/// Moves a schedule on, if it is as the firing found it.
async fn advance(tx: &mut Tx, firing: &Firing) -> Result<bool> {
    let sql = "UPDATE schedules SET next_at = $1, last_slot = next_at, last_messages = $2, last_error = $3 \
               WHERE id = $4 AND generation = $5 AND next_at = $6 AND NOT paused";
    let accepts = firing.outcome.as_deref().unwrap_or_default();
    let ids = write_ids(accepts.iter().map(|accept| &accept.message.id));
    let updated = on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql)
            .bind(firing.next_at.as_millis())
            .bind(ids)
            .bind(firing.outcome.as_ref().err())
            .bind(firing.id.as_str())
            .bind(firing.generation)
            .bind(firing.occurrence.as_millis())
            .execute(&mut **tx)
            .await?
            .rows_affected()
    });
    Ok(updated == 1)
}

#[derive(sqlx::FromRow)]
struct SizeRow {
    id: String,
    size: i64,
}

#[derive(sqlx::FromRow)]
struct ProgressRow {
    id: String,
    waiting: bool,
    delivered: bool,
}

impl SqlStore {
    /// The schedules of these ids, in this order, as far as they exist: each as it could be read.
    async fn schedules_of(&self, ids: &[&str]) -> Result<Vec<(String, Result<Schedule>)>> {
        let readers = self.readers();
        let mut query = Query::new(&readers);
        query.sql(concat!("SELECT ", columns!(), " FROM schedules WHERE id ")).one_of(ids);
        let rows: Vec<ScheduleRow> = query.fetch(&readers).await?;
        let place = |id: &str| ids.iter().position(|wanted| *wanted == id);
        let mut schedules: Vec<_> =
            rows.into_iter().map(|row| (row.id.clone(), row.into_schedule())).collect();
        schedules.sort_by_key(|(id, _)| place(id));
        Ok(schedules)
    }

    /// Puts schedules aside that can't be read, so that the others are firing.
    async fn put_aside(&self, ids: &[String], now: Timestamp) -> Result<()> {
        self.write(DEADLINE, async |tx| {
            for id in ids {
                let sql = "UPDATE schedules SET next_at = $1 WHERE id = $2";
                on_backend!(&mut tx.on, |tx| {
                    sqlx::query(sql).bind(now.after(ASIDE).as_millis()).bind(id).execute(&mut **tx).await?;
                });
            }
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Schedules for SqlStore {
    async fn put_schedule(&self, schedule: &Schedule, max: Option<u32>) -> Result<bool> {
        self.write(DEADLINE, async |tx| {
            if let Some(max) = max
                && count_others(tx, &schedule.id).await? >= i64::from(max)
                && !exists(tx, &schedule.id).await?
            {
                return Ok(false);
            }
            put(tx, schedule).await?;
            Ok(true)
        })
        .await
    }

    async fn schedule(&self, id: &ScheduleId) -> Result<Option<Schedule>> {
        within(DEADLINE, async {
            let found = self.schedules_of(&[&wanted(id.as_str())]).await?.pop();
            found.map(|(_, schedule)| schedule).transpose()
        })
        .await
    }

    async fn schedules(
        &self,
        after: Option<&ScheduleId>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<Schedule>> {
        within(LONG_DEADLINE, async {
            let readers = self.readers();
            let mut query = Query::new(&readers);
            query
                .sql("SELECT id, CAST(LENGTH(body) AS BIGINT) AS size FROM schedules WHERE id > ")
                .text(after.map_or("", ScheduleId::as_str))
                .sql(" ORDER BY id LIMIT ")
                .number(i64::try_from(count.saturating_add(1)).unwrap_or(i64::MAX));
            let rows: Vec<SizeRow> = query.fetch(&readers).await?;
            let within = fitting(rows.iter().map(|row| row.size), count, max_bytes);
            let ids: Vec<&str> = rows[..within].iter().map(|row| row.id.as_str()).collect();
            let found = self.schedules_of(&ids).await?;
            let items = found.into_iter().map(|(_, schedule)| schedule).collect::<Result<_>>()?;
            Ok(Page { items, more: rows.len() > within })
        })
        .await
    }

    async fn delete_schedule(&self, id: &ScheduleId) -> Result<bool> {
        self.write(DEADLINE, async |tx| {
            let sql = "DELETE FROM schedules WHERE id = $1";
            let deleted = on_backend!(&mut tx.on, |tx| {
                sqlx::query(sql).bind(wanted(id.as_str())).execute(&mut **tx).await?.rows_affected()
            });
            Ok(deleted == 1)
        })
        .await
    }

    async fn pause_schedule(&self, id: &ScheduleId) -> Result<bool> {
        self.write(DEADLINE, async |tx| {
            let sql = "UPDATE schedules SET paused = TRUE WHERE id = $1";
            let found = on_backend!(&mut tx.on, |tx| {
                sqlx::query(sql).bind(wanted(id.as_str())).execute(&mut **tx).await?.rows_affected()
            });
            Ok(found == 1)
        })
        .await
    }

    async fn resume_schedule(&self, id: &ScheduleId, generation: i64, next_at: Timestamp) -> Result<()> {
        self.write(DEADLINE, async |tx| {
            let sql = "UPDATE schedules SET paused = FALSE, next_at = $1 \
                       WHERE id = $2 AND generation = $3 AND paused";
            on_backend!(&mut tx.on, |tx| {
                sqlx::query(sql)
                    .bind(next_at.as_millis())
                    .bind(id.as_str())
                    .bind(generation)
                    .execute(&mut **tx)
                    .await?;
            });
            Ok(())
        })
        .await
    }

    async fn progress(&self, ids: &[&MessageId]) -> Result<Vec<(MessageId, Progress)>> {
        within(DEADLINE, async {
            let readers = self.readers();
            let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
            let mut query = Query::new(&readers);
            query
                .sql(
                    "SELECT m.id, \
                     EXISTS (SELECT 1 FROM deliveries d WHERE d.message_id = m.id) AS waiting, \
                     EXISTS (SELECT 1 FROM attempts a WHERE a.message_id = m.id AND a.result = 'delivered') \
                         AS delivered \
                     FROM messages m WHERE m.id ",
                )
                .one_of(&ids);
            let rows: Vec<ProgressRow> = query.fetch(&readers).await?;
            let progress = |row: &ProgressRow| match (row.waiting, row.delivered) {
                (true, _) => Progress::Waiting,
                (false, true) => Progress::Delivered,
                (false, false) => Progress::Failed,
            };
            Ok(rows.into_iter().map(|row| (MessageId::new(&*row.id), progress(&row))).collect())
        })
        .await
    }
}

#[async_trait]
impl Firings for SqlStore {
    async fn next_occurrence(&self) -> Result<NextDue> {
        within(DEADLINE, async {
            let sql = "SELECT next_at FROM schedules WHERE NOT paused ORDER BY next_at LIMIT 1";
            let next: Option<i64> =
                on_backend!(self.readers(), |pool| sqlx::query_scalar(sql).fetch_optional(pool).await?);
            Ok(NextDue { due_at: next.map(Timestamp::from_millis), now: self.now().await? })
        })
        .await
    }

    async fn due_schedules(&self, now: Timestamp, count: usize, max_bytes: usize) -> Result<Vec<Schedule>> {
        within(LONG_DEADLINE, async {
            let readers = self.readers();
            let mut query = Query::new(&readers);
            query
                .sql("SELECT id, CAST(LENGTH(body) AS BIGINT) AS size FROM schedules WHERE NOT paused AND next_at <= ")
                .number(now.as_millis())
                .sql(" ORDER BY next_at, id LIMIT ")
                .number(i64::try_from(count).unwrap_or(i64::MAX));
            let rows: Vec<SizeRow> = query.fetch(&readers).await?;
            let within = fitting(rows.iter().map(|row| row.size), count, max_bytes);
            let ids: Vec<&str> = rows[..within].iter().map(|row| row.id.as_str()).collect();
            let mut due = Vec::new();
            let mut unreadable = Vec::new();
            for (id, schedule) in self.schedules_of(&ids).await? {
                match schedule {
                    // Between the two reads another node may have fired it.
                    Ok(schedule) if schedule.paused || schedule.next_at > now => {}
                    Ok(schedule) => due.push(schedule),
                    Err(error) => {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            schedule.id = %id,
                            "a schedule can't be read, and is put aside for a day"
                        );
                        unreadable.push(id);
                    }
                }
            }
            if !unreadable.is_empty() {
                self.put_aside(&unreadable, now).await?;
            }
            Ok(due)
        })
        .await
    }

    async fn fire(&self, firing: &Firing) -> Result<bool> {
        self.write(LONG_DEADLINE, async |tx| {
            if !advance(tx, firing).await? {
                return Ok(false);
            }
            if let Ok(accepts) = &firing.outcome {
                deliveries::insert(tx, accepts, self.max_queues).await?;
            }
            Ok(true)
        })
        .await
    }
}
