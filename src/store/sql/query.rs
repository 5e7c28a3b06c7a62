//! A statement put together from parts, for lists whose filters vary. Values are always bound, never written in.

use std::borrow::Cow;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgRow, PgTypeInfo};
use sqlx::sqlite::{SqliteArgumentsBuffer, SqliteRow, SqliteTypeInfo};
use sqlx::{AssertSqlSafe, Encode, FromRow, PgPool, Postgres, Sqlite, SqlitePool};

use super::{Backend, Tx};
use crate::domain::filter::MessageFilter;
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::Result;

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

    /// Appends the conditions of a filter on the messages `m`, but for those on parts of their destination:
    /// [`MessageFilter::matches_parts`] has them, for what this finds.
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
        // Labels are one text, joined by commas.
        let find = match self.engine {
            Engine::Postgres => "strpos(',' || m.labels || ',', ",
            Engine::Sqlite => "instr(',' || m.labels || ',', ",
        };
        for (index, label) in filter.labels.iter().enumerate() {
            self.sql(if index == 0 { " AND (" } else { " OR " })
                .sql(find)
                .text(&format!(",{label},"))
                .sql(") > 0");
        }
        if !filter.labels.is_empty() {
            self.sql(")");
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

    /// Runs it.
    pub(super) async fn fetch<T>(self, pools: &Backend<&PgPool, &SqlitePool>) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(on_backend!(pools, |pool| bound!(query_as, self).fetch_all(*pool).await?))
    }

    /// Runs it in a transaction.
    pub(super) async fn fetch_in<T>(self, tx: &mut Tx) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(on_backend!(tx, |tx| bound!(query_as, self).fetch_all(&mut **tx).await?))
    }

    /// Runs it in a transaction; how many rows it has changed.
    pub(super) async fn execute_in(self, tx: &mut Tx) -> Result<u64> {
        Ok(on_backend!(tx, |tx| bound!(query, self).execute(&mut **tx).await?.rows_affected()))
    }
}
