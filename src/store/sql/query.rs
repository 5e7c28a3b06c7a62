//! A statement put together from parts, for lists whose filters vary. Values are always bound, never written in.

use std::borrow::Cow;

use sqlx::{AssertSqlSafe, FromRow, PgPool, SqlitePool, postgres::PgRow, sqlite::SqliteRow};

use super::Backend;
use crate::store::Result;

enum Value {
    Text(String),
    Number(i64),
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

    /// Appends a list of texts, for `IN`.
    pub(super) fn list(&mut self, values: &[&str]) -> &mut Self {
        let values: Vec<Cow<'_, str>> = values.iter().map(|value| wanted(value)).collect();
        let json = serde_json::to_string(&values).expect("text is valid JSON");
        match self.engine {
            Engine::Postgres => self.sql("(SELECT jsonb_array_elements_text(").text(&json).sql("::jsonb))"),
            Engine::Sqlite => self.sql("(SELECT value FROM json_each(").text(&json).sql("))"),
        }
    }

    /// Runs it.
    pub(super) async fn fetch<T>(self, pools: &Backend<&PgPool, &SqlitePool>) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(on_backend!(pools, |pool| {
            let mut query = sqlx::query_as(AssertSqlSafe(self.sql));
            for value in self.values {
                query = match value {
                    Value::Text(text) => query.bind(text),
                    Value::Number(number) => query.bind(number),
                };
            }
            query.fetch_all(*pool).await?
        }))
    }
}
