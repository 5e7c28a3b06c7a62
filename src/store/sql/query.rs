//! A statement put together from parts, for lists whose filters vary. Values are always bound, never written in.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArgumentBuffer, PgRow, PgTypeInfo};
use sqlx::sqlite::{SqliteArgumentsBuffer, SqliteRow, SqliteTypeInfo};
use sqlx::{
    AssertSqlSafe, Database, Encode, FromRow, PgPool, Pool, Postgres, Sqlite, SqliteConnection, SqlitePool,
};

use super::Backend;
use super::gates::entering::Conn;
use super::tx::Tx;
use crate::domain::filter::MessageFilter;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::{Result, StoreError};

/// How long one statement may read. Postgres has it as the connection's `statement_timeout`.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(5);
/// How long a page of a list searches for what matches before it says how far it has come.
pub(super) const PAGE_TIME: Duration = Duration::from_secs(1);
/// Instructions of SQLite's virtual machine between two checks whether a statement is to stop: some ten microseconds.
const INSTRUCTIONS: i32 = 1000;

enum Value {
    Text(String),
    Number(i64),
    Texts(Texts),
}

/// A list of texts: an array on Postgres, JSON on SQLite.
struct Texts(Vec<String>);

impl sqlx::Type<Postgres> for Texts {
    fn type_info() -> PgTypeInfo {
        <Vec<String> as sqlx::Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Texts {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <Vec<String> as Encode<'_, Postgres>>::encode_by_ref(&self.0, buffer)
    }
}

impl sqlx::Type<Sqlite> for Texts {
    fn type_info() -> SqliteTypeInfo {
        <String as sqlx::Type<Sqlite>>::type_info()
    }
}

impl Encode<'_, Sqlite> for Texts {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        <String as Encode<'_, Sqlite>>::encode(serde_json::to_string(&self.0)?, buffer)
    }
}

/// A text from a user, to be looked up. Postgres has no NUL in texts and refuses the statement; nothing that is stored
/// has one, so that any other character that ids don't have does as well.
pub(super) fn wanted(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Rows that a statement takes as JSON in `$1`, an object each, as a table `r` with columns of these names and types.
pub(super) fn table<P, S>(backend: &Backend<P, S>, columns: &[(&str, &str)]) -> String {
    match backend {
        Backend::Postgres(_) => {
            // Names sort and compare as those in tables do.
            let collation = |kind| if kind == "TEXT" { " COLLATE \"C\"" } else { "" };
            let columns: Vec<String> =
                columns.iter().map(|(name, kind)| format!("{name} {kind}{}", collation(*kind))).collect();
            let columns = columns.join(", ");
            format!("jsonb_to_recordset(CAST(CAST($1 AS TEXT) AS JSONB)) AS r ({columns})")
        }
        Backend::Sqlite(_) => {
            let columns: Vec<String> =
                columns.iter().map(|(name, _)| format!("value ->> '{name}' AS {name}")).collect();
            let columns = columns.join(", ");
            format!("(SELECT {columns} FROM json_each($1)) AS r")
        }
    }
}

/// SQL with its bound values.
pub(super) struct Query {
    sql: String,
    values: Vec<Value>,
    engine: Engine,
}

/// Which spelling of the few differing parts.
#[derive(Clone, Copy)]
enum Engine {
    Postgres,
    Sqlite,
}

/// The statement with its values, for either engine.
macro_rules! bound {
    ($query:ident, $self:expr) => {{
        let mut query = sqlx::$query(AssertSqlSafe($self.sql));
        for value in $self.values {
            query = match value {
                Value::Text(text) => query.bind(text),
                Value::Number(number) => query.bind(number),
                Value::Texts(texts) => query.bind(texts),
            };
        }
        query
    }};
}

impl Query {
    pub(super) fn new<P, S>(backend: &Backend<P, S>) -> Self {
        let engine = match backend {
            Backend::Postgres(_) => Engine::Postgres,
            Backend::Sqlite(_) => Engine::Sqlite,
        };
        Self { sql: String::new(), values: Vec::new(), engine }
    }

    /// Appends SQL that is written in this program.
    pub(super) fn sql(&mut self, part: &str) -> &mut Self {
        self.sql.push_str(part);
        self
    }

    fn placeholder(&mut self, value: Value) -> &mut Self {
        self.values.push(value);
        let number = self.values.len();
        self.sql(&format!("${number}"))
    }

    /// Appends a placeholder for a text.
    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.placeholder(Value::Text(wanted(value).into_owned()))
    }

    /// Appends a placeholder for a number.
    pub(super) fn number(&mut self, value: i64) -> &mut Self {
        self.placeholder(Value::Number(value))
    }

    /// Appends that what stands before is one of these texts. On Postgres not as `IN (SELECT …)`, which it may answer by
    /// comparing each row of the table with each of the list, where the statistics tell of few rows.
    pub(super) fn one_of<T: AsRef<str>>(&mut self, values: &[T]) -> &mut Self {
        let values = values.iter().map(|value| wanted(value.as_ref()).into_owned()).collect();
        let (before, after) = match self.engine {
            Engine::Postgres => ("= ANY (", ")"),
            Engine::Sqlite => ("IN (SELECT value FROM json_each(", "))"),
        };
        self.sql(before).placeholder(Value::Texts(Texts(values))).sql(after)
    }

    /// Appends a table `list` of these texts, with the column `id`.
    pub(super) fn list(&mut self, values: &[&str]) -> &mut Self {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let (before, after) = match self.engine {
            Engine::Postgres => ("unnest(", "::text[]) AS list (id)"),
            Engine::Sqlite => ("(SELECT value AS id FROM json_each(", ")) AS list"),
        };
        self.sql(before).placeholder(Value::Texts(Texts(values))).sql(after)
    }

    /// Appends that a column's text contains another.
    pub(super) fn contains(&mut self, column: &str, text: &str) -> &mut Self {
        let position = match self.engine {
            Engine::Postgres => "STRPOS",
            Engine::Sqlite => "INSTR",
        };
        self.sql(&format!("{position}({column}, ")).text(text).sql(") > 0")
    }

    /// Appends the conditions of a filter on the messages `m`, but for those on parts of a column, which
    /// [`MessageFilter::matches_parts`] has, for what this finds.
    pub(super) fn matching(&mut self, filter: &MessageFilter) -> &mut Self {
        for (column, values) in [
            (" AND m.url ", &filter.urls),
            (" AND m.url_group ", &filter.url_groups),
            (" AND m.queue ", &filter.queues),
            (" AND m.schedule_id ", &filter.schedule_ids),
            (" AND m.flow_key ", &filter.flow_keys),
            (" AND m.caller_ip ", &filter.caller_ips),
        ] {
            if !values.is_empty() {
                self.sql(column).one_of(values);
            }
        }
        if !filter.labels.is_empty() {
            self.sql(" AND m.labels IS NOT NULL");
        }
        self
    }

    /// Appends conditions on the time of acceptance, both ends inclusive, as conditions on ids, which begin with it.
    pub(super) fn accepted(&mut self, id: &str, from: Option<Timestamp>, to: Option<Timestamp>) -> &mut Self {
        if let Some(from) = from {
            self.sql(&format!(" AND {id} >= ")).text(MessageId::earliest_at(from).as_str());
        }
        if let Some(to) = to {
            let next = Timestamp::from_millis(to.as_millis().saturating_add(1));
            self.sql(&format!(" AND {id} < ")).text(MessageId::earliest_at(next).as_str());
        }
        self
    }

    /// Appends how Postgres locks the rows that are selected. A transaction of SQLite has locked everything.
    pub(super) fn lock(&mut self, postgres: &str) -> &mut Self {
        match self.engine {
            Engine::Postgres => self.sql(postgres),
            Engine::Sqlite => self,
        }
    }

    /// Runs the statement on a connection of its own, for [`READ_LIMIT`] at most. When the future is dropped, the statement stops.
    pub(super) async fn fetch<T>(self, pools: &Backend<&PgPool, &SqlitePool>) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        let rows = match pools {
            Backend::Postgres(pool) => {
                let mut lent = Lent::new(acquire(pool).await?);
                let rows = bound!(query_as, self).fetch_all(lent.connection()).await;
                lent.give_back(rows)
            }
            Backend::Sqlite(pool) => {
                let mut lent = Lent::new(acquire(pool).await?);
                let (progress, until) = (Arc::clone(&lent.progress), Instant::now() + READ_LIMIT);
                let stop = move || match progress.load(Ordering::Relaxed) {
                    RUNNING => Instant::now() >= until,
                    progress => progress == STOPPED,
                };
                stop_when(lent.connection(), stop).await?;
                let rows = bound!(query_as, self).fetch_all(lent.connection()).await;
                lent.give_back(rows)
            }
        };
        rows.map_err(|error| if is_stopped(&error) { StoreError::TooMuch } else { error.into() })
    }

    /// Runs the statement on a connection inside a transaction, and returns its rows.
    pub(super) async fn fetch_on<T>(self, conn: &mut Conn<'_>) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(on_backend!(conn, |conn| bound!(query_as, self).fetch_all(&mut **conn).await?))
    }

    /// Runs the statement on a connection inside a transaction, and returns how many rows it has changed.
    pub(super) async fn execute_on(self, conn: &mut Conn<'_>) -> Result<u64> {
        Ok(on_backend!(conn, |conn| bound!(query, self).execute(&mut **conn).await?.rows_affected()))
    }

    /// Runs the statement in a transaction, and returns its rows.
    pub(super) async fn fetch_in<T>(self, tx: &mut Tx) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(on_backend!(&mut tx.on, |tx| bound!(query_as, self).fetch_all(&mut **tx).await?))
    }

    /// Runs the statement in a transaction, and returns how many rows it has changed.
    pub(super) async fn execute_in(self, tx: &mut Tx) -> Result<u64> {
        Ok(on_backend!(&mut tx.on, |tx| bound!(query, self).execute(&mut **tx).await?.rows_affected()))
    }
}

/// A connection of the pool. Where others keep all of them in use, the database has no trouble.
async fn acquire<DB: Database>(pool: &Pool<DB>) -> Result<PoolConnection<DB>> {
    pool.acquire().await.map_err(|error| match error {
        sqlx::Error::PoolTimedOut if pool.size() >= pool.options().get_max_connections() => {
            StoreError::TooMuch
        }
        error => error.into(),
    })
}

/// A statement's progress, for the handler on its connection, which outlives it.
const RUNNING: u8 = 0;
const DONE: u8 = 1;
const STOPPED: u8 = 2;

/// A connection for one statement that reads. Unless the statement has come to its end, it is closed and not returned:
/// Postgres sees that the connection is gone, SQLite is told.
struct Lent<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    progress: Arc<AtomicU8>,
}

impl<DB: Database> Lent<DB> {
    fn new(connection: PoolConnection<DB>) -> Self {
        Self { connection: Some(connection), progress: Arc::new(AtomicU8::new(RUNNING)) }
    }

    fn connection(&mut self) -> &mut DB::Connection {
        self.connection.as_mut().expect("it is lent until it is given back")
    }

    /// Returns the connection if the statement has come to its end.
    fn give_back<T>(mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        if matches!(&result, Ok(_) | Err(sqlx::Error::Database(_))) {
            self.progress.store(DONE, Ordering::Relaxed);
            drop(self.connection.take());
        }
        result
    }
}

impl<DB: Database> Drop for Lent<DB> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.progress.store(STOPPED, Ordering::Relaxed);
            drop(connection.detach());
        }
    }
}

/// Stops statements on the connection when this says so, until another call or `remove_progress_handler`.
pub(super) async fn stop_when(
    connection: &mut SqliteConnection,
    stop: impl Fn() -> bool + Send + 'static,
) -> sqlx::Result<()> {
    connection.lock_handle().await?.set_progress_handler(INSTRUCTIONS, move || !stop());
    Ok(())
}

/// Whether the database stopped a statement because its time was over: Postgres' `query_canceled`, `SQLITE_INTERRUPT`.
fn is_stopped(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    matches!(error.code().as_deref(), Some("57014" | "9"))
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use super::*;

    const ENDLESS: &str =
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n";

    async fn pool() -> SqlitePool {
        let options = SqliteConnectOptions::new().in_memory(true).thread_name(|_| "reader".to_owned());
        SqlitePoolOptions::new().max_connections(1).connect_with(options).await.expect("a database")
    }

    async fn fetch(pool: &SqlitePool, sql: &str) -> Result<Vec<(i64,)>> {
        let pools = Backend::Sqlite(pool);
        let mut query = Query::new(&pools);
        query.sql(sql);
        query.fetch(&pools).await
    }

    /// Threads of SQLite's connections: one each.
    fn connections() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "reader").count()
    }

    #[tokio::test]
    async fn a_statement_stops_when_nobody_waits_for_it() {
        let pool = pool().await;
        assert_eq!((fetch(&pool, "SELECT 7").await.expect("a row"), connections()), (vec![(7,)], 1));
        while pool.num_idle() == 0 {
            tokio::task::yield_now().await;
        }
        let mut endless = Box::pin(fetch(&pool, ENDLESS));
        // The connection is taken and the statement sent, at the latest after a few turns.
        while pool.num_idle() > 0 {
            assert!(futures_util::poll!(&mut endless).is_pending());
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut endless).is_pending());
            tokio::task::yield_now().await;
        }
        drop(endless);
        let started = Instant::now();
        while connections() > 0 {
            assert!(started.elapsed() < READ_LIMIT / 2, "the statement runs on");
            tokio::task::yield_now().await;
        }
        assert_eq!(fetch(&pool, "SELECT 8").await.expect("a row"), [(8,)]);
    }

    #[tokio::test]
    async fn a_statement_has_its_time() {
        let pool = pool().await;
        assert!(matches!(fetch(&pool, ENDLESS).await, Err(StoreError::TooMuch)));
        // The next one on the connection has its own.
        assert_eq!(fetch(&pool, "SELECT 8").await.expect("a row"), [(8,)]);
        let direct: i64 = sqlx::query_scalar("SELECT 9").fetch_one(&pool).await.expect("a row");
        assert_eq!((direct, connections()), (9, 1));
    }
}
