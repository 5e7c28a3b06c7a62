//! Columns as data: from one list of a table's columns come the statements of both engines, the values that are bound to
//! them, and how a row is read.
//!
//! The lists are `columns` and `delivery` in [`messages`](super::messages), and `columns` and `letter` in
//! [`attempts`](super::attempts). A new nullable column takes three edits: a line of its list, `migrations/postgres` and `migrations/sqlite`. Statements are put together once, and bind
//! values in the order of the list.

use std::borrow::Cow;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgBindIterExt as _};
use sqlx::{Arguments, ColumnIndex, Decode, Encode, Row, Type};

/// Reads a value of a row `R`; `None` is NULL.
type Get<R, V> = fn(R) -> Option<V>;

/// A column that is written from a row `R`, whose parts live for `'a`.
#[derive(Clone, Copy)]
pub(super) struct Column<'a, R> {
    pub(super) name: &'static str,
    value: Value<'a, R>,
}

#[derive(Clone, Copy)]
enum Value<'a, R> {
    Text(Get<R, Cow<'a, str>>),
    Number(Get<R, i64>),
    Bytes(Get<R, &'a [u8]>),
}

impl<'a, R> Column<'a, R> {
    pub(super) const fn text(name: &'static str, get: Get<R, Cow<'a, str>>) -> Self {
        Self { name, value: Value::Text(get) }
    }

    pub(super) const fn number(name: &'static str, get: Get<R, i64>) -> Self {
        Self { name, value: Value::Number(get) }
    }

    pub(super) const fn bytes(name: &'static str, get: Get<R, &'a [u8]>) -> Self {
        Self { name, value: Value::Bytes(get) }
    }

    /// The type of an array of such values on Postgres.
    const fn array(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "text[]",
            Value::Number(_) => "bigint[]",
            Value::Bytes(_) => "bytea[]",
        }
    }
}

/// Writes a value that was read into a `W`; `None` where it can't be what it should.
type Set<W, V> = fn(&mut W, Option<V>) -> Option<()>;

/// A column that is written from a row `R` and read into a `W`.
pub(super) struct Stored<'a, R, W> {
    pub(super) column: Column<'a, R>,
    read: Read<W>,
}

enum Read<W> {
    Text(Set<W, String>),
    Number(Set<W, i64>),
    Bytes(Set<W, Vec<u8>>),
}

impl<'a, R, W> Stored<'a, R, W> {
    pub(super) const fn text(name: &'static str, get: Get<R, Cow<'a, str>>, set: Set<W, String>) -> Self {
        Self { column: Column::text(name, get), read: Read::Text(set) }
    }

    pub(super) const fn number(name: &'static str, get: Get<R, i64>, set: Set<W, i64>) -> Self {
        Self { column: Column::number(name, get), read: Read::Number(set) }
    }

    pub(super) const fn bytes(name: &'static str, get: Get<R, &'a [u8]>, set: Set<W, Vec<u8>>) -> Self {
        Self { column: Column::bytes(name, get), read: Read::Bytes(set) }
    }

    /// Reads the column of a row into `into`; false where its value can't be what it should.
    fn read(&self, row: &impl Fields, into: &mut W) -> sqlx::Result<bool> {
        let name = self.column.name;
        let read = match self.read {
            Read::Text(set) => set(into, row.text(name)?),
            Read::Number(set) => set(into, row.number(name)?),
            Read::Bytes(set) => set(into, row.bytes(name)?),
        };
        Ok(read.is_some())
    }
}

/// Sets a place to a value that must not be NULL.
pub(super) fn put<T>(place: &mut T, value: Option<T>) -> Option<()> {
    *place = value?;
    Some(())
}

/// Reads the columns of a row into `into`; the name of the first one whose value can't be what it should.
pub(super) fn read<R, W>(
    columns: &[Stored<'_, R, W>],
    row: &impl Fields,
    into: &mut W,
) -> sqlx::Result<Option<&'static str>> {
    for stored in columns {
        if !stored.read(row, into)? {
            return Ok(Some(stored.column.name));
        }
    }
    Ok(None)
}

/// A row of either engine, whose values are found by the names of their columns.
pub(super) trait Fields: Row {
    fn text(&self, name: &str) -> sqlx::Result<Option<String>>;
    fn number(&self, name: &str) -> sqlx::Result<Option<i64>>;
    fn bytes(&self, name: &str) -> sqlx::Result<Option<Vec<u8>>>;
}

impl<R: Row> Fields for R
where
    for<'n> &'n str: ColumnIndex<R>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    fn text(&self, name: &str) -> sqlx::Result<Option<String>> {
        self.try_get(name)
    }

    fn number(&self, name: &str) -> sqlx::Result<Option<i64>> {
        self.try_get(name)
    }

    fn bytes(&self, name: &str) -> sqlx::Result<Option<Vec<u8>>> {
        self.try_get(name)
    }
}

/// The names of columns, as a statement lists them; with a table's alias and a dot before each if `prefix` has one.
pub(super) fn names<R>(columns: &[Column<'_, R>], prefix: &str) -> String {
    list(columns.iter().map(|column| format!("{prefix}{}", column.name)))
}

/// Placeholders for one row's values, from `$first` on.
pub(super) fn placeholders(count: usize, first: usize) -> String {
    list((first..first + count).map(|number| format!("${number}")))
}

/// Postgres' placeholders for an array of each column's values, from `$first` on.
pub(super) fn arrays<R>(columns: &[Column<'_, R>], first: usize) -> String {
    list(columns.iter().zip(first..).map(|(column, number)| format!("${number}::{}", column.array())))
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// The arguments of a statement.
pub(super) fn arguments<A: Default>(add: impl FnOnce(&mut A) -> Result<(), BoxDynError>) -> sqlx::Result<A> {
    let mut arguments = A::default();
    add(&mut arguments).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

/// Adds one row's values to the arguments of a statement.
pub(super) fn add_row<'a, R: Copy, A: Arguments>(
    arguments: &mut A,
    columns: &[Column<'a, R>],
    row: R,
) -> Result<(), BoxDynError>
where
    Option<Cow<'a, str>>: Encode<'a, A::Database> + Type<A::Database>,
    Option<i64>: Encode<'a, A::Database> + Type<A::Database>,
    Option<&'a [u8]>: Encode<'a, A::Database> + Type<A::Database>,
{
    for column in columns {
        match column.value {
            Value::Text(get) => arguments.add(get(row))?,
            Value::Number(get) => arguments.add(get(row))?,
            Value::Bytes(get) => arguments.add(get(row))?,
        }
    }
    Ok(())
}

/// Adds an array of each column's values to the arguments of a statement of Postgres.
pub(super) fn add_arrays<R: Copy>(
    arguments: &mut PgArguments,
    columns: &[Column<'_, R>],
    rows: &(impl Iterator<Item = R> + Clone),
) -> Result<(), BoxDynError> {
    for column in columns {
        let rows = rows.clone();
        match column.value {
            Value::Text(get) => arguments.add(rows.map(get).bind_iter())?,
            Value::Number(get) => arguments.add(rows.map(get).bind_iter())?,
            Value::Bytes(get) => arguments.add(rows.map(get).bind_iter())?,
        }
    }
    Ok(())
}
