//! Damage that an unclean end may have left in SQLite's files, and what can be done about it.
//!
//! A log that was cut off, by a power cut on a disk that promises more than it keeps, leaves a file whose pages are of
//! different moments. What waits is looked at before the start, for a moment; the rest afterwards, beside everything
//! else. An index that doesn't fit its table is made anew; anything else is told, with what to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::migrate::MigrateError;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, SqlitePool};
use tokio::task::JoinHandle;

use super::query::stop_when;
use crate::failure::Failure;
use crate::store::{Result, StoreError};

/// How long a start looks: what waits is some hundred thousand rows a second.
const AT_START: Duration = Duration::from_secs(1);
/// How long one table is looked at afterwards. The log can't start anew meanwhile.
const AFTERWARDS: Duration = Duration::from_secs(30);
/// Tables that grow with the log. Whatever is wrong there holds up no message.
const LARGE: [&str; 5] = ["messages", "attempts", "cancellations", "dead_letters", "deduplications"];

/// The state of a table, as far as it is known.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Sound,
    /// Damaged in a way that SQLite puts into these words.
    Damaged(String),
    /// There was no time to find out.
    Unknown,
}

/// Looks at what waits, and mends what can be. The tables that remain to be looked at.
pub(super) async fn check_at_start(connection: &mut SqliteConnection, path: &Path) -> Result<Vec<String>> {
    let (until, never) = (Instant::now() + AT_START, Arc::default());
    let mut left = Vec::new();
    let tables = tables(connection).await.map_err(|error| opening(path, error))?;
    for table in tables {
        if LARGE.contains(&table.as_str()) {
            left.push(table);
            continue;
        }
        match examine(connection, &table, until, &never).await.map_err(|error| opening(path, error))? {
            Finding::Sound => {}
            Finding::Unknown => left.push(table),
            Finding::Damaged(found) => mend(connection, path, &table, &found).await?,
        }
    }
    Ok(left)
}

/// All tables, what waits first.
async fn tables(connection: &mut SqliteConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~' \
         ORDER BY name <> 'deliveries', name",
    )
    .fetch_all(connection)
    .await
}

async fn examine(
    connection: &mut SqliteConnection,
    table: &str,
    until: Instant,
    stop: &Arc<AtomicBool>,
) -> sqlx::Result<Finding> {
    if Instant::now() >= until {
        return Ok(Finding::Unknown);
    }
    let stopped = Arc::clone(stop);
    stop_when(connection, move || Instant::now() >= until || stopped.load(Ordering::Relaxed)).await?;
    let sql = format!("PRAGMA integrity_check(\"{table}\")");
    let found: sqlx::Result<Vec<String>> =
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *connection).await;
    connection.lock_handle().await?.remove_progress_handler();
    match found {
        Ok(found) if found == ["ok"] => Ok(Finding::Sound),
        Ok(found) => Ok(Finding::Damaged(found.into_iter().next().unwrap_or_default())),
        Err(error) => match code(&error) {
            Some(INTERRUPTED) => Ok(Finding::Unknown),
            Some(CORRUPT) => Ok(Finding::Damaged(error.to_string())),
            _ => Err(error),
        },
    }
}

/// Makes a table's indices anew, which is all that can be wrong without harm.
async fn mend(connection: &mut SqliteConnection, path: &Path, table: &str, found: &str) -> Result<()> {
    let damaged = |found: &str| StoreError::Open { reason: damage_help(path, &format!("{table}: {found}")) };
    let sql = format!("REINDEX \"{table}\"");
    match sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await {
        Ok(_) => {}
        Err(error) if matches!(code(&error), Some(CORRUPT | CONSTRAINT)) => return Err(damaged(found)),
        Err(error) => return Err(opening(path, error)),
    }
    let until = Instant::now() + AFTERWARDS;
    match examine(connection, table, until, &Arc::default()).await.map_err(|error| opening(path, error))? {
        Finding::Damaged(found) => Err(damaged(&found)),
        Finding::Sound | Finding::Unknown => {
            tracing::warn!(
                table,
                found,
                "{} was damaged by an unclean end: an index did not fit its table, and was made anew",
                path.display()
            );
            Ok(())
        }
    }
}

/// Looks at the tables that a start had no time for, beside everything else.
pub(super) struct Checkup {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Checkup {
    pub(super) fn start(
        tables: Vec<String>,
        options: SqliteConnectOptions,
        writer: SqlitePool,
        path: PathBuf,
        failure: &Failure,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = failure.spawn("look at the database", async move {
            if let Err(error) = check(&tables, options, &writer, &path, &stopped).await {
                tracing::error!(error = &error as &dyn std::error::Error, "{} needs care", path.display());
            }
        });
        Self { stop, task }
    }

    /// Ends it, and its connection.
    pub(super) async fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the look at the database after an unclean end failed");
        }
    }
}

async fn check(
    tables: &[String],
    options: SqliteConnectOptions,
    writer: &SqlitePool,
    path: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let mut unknown = Vec::new();
    for table in tables {
        match examine(&mut connection, table, Instant::now() + AFTERWARDS, stop).await? {
            _ if stop.load(Ordering::Relaxed) => break,
            Finding::Sound => {}
            Finding::Unknown => unknown.push(table.as_str()),
            Finding::Damaged(found) => {
                tracing::warn!(table, found, "indices are made anew; nothing is stored meanwhile");
                mend(&mut *writer.acquire().await?, path, table, &found).await?;
            }
        }
    }
    connection.close().await?;
    if unknown.is_empty() {
        tracing::info!("the rest of the database is sound");
    } else {
        tracing::info!(tables = unknown.join(", "), "too large to be looked at whole after an unclean end");
    }
    Ok(())
}

/// Primary result codes of SQLite.
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NO_MEMORY: i32 = 7;
const DISK_FAILS: i32 = 10;
const FULL: i32 = 13;
const CORRUPT: i32 = 11;
const NOT_A_DATABASE: i32 = 26;
const INTERRUPTED: i32 = 9;
const CONSTRAINT: i32 = 19;

fn code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// An error at the opening of the file, with its name, and what to do where that helps. What may pass by itself is
/// [`StoreError::Unavailable`], so that whoever supervises the server starts it again.
pub(super) fn opening(path: &Path, error: sqlx::Error) -> StoreError {
    let Some(database) = error.as_database_error() else { return error.into() };
    let text = database.message().to_owned();
    let reason = match code(&error) {
        Some(BUSY | LOCKED | NO_MEMORY | DISK_FAILS | FULL) => return error.into(),
        Some(CORRUPT | NOT_A_DATABASE) => damage_help(path, &text),
        _ => format!("{} can't be used: {text}", path.display()),
    };
    StoreError::Open { reason }
}

/// An error while the schema is brought up to date, which is when pages are first read: of a damaged file as
/// [`opening`] tells it.
pub(super) fn migrating(path: &Path, error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
            if matches!(code(&error), Some(CORRUPT | NOT_A_DATABASE)) =>
        {
            opening(path, error)
        }
        error => error.into(),
    }
}

fn damage_help(path: &Path, found: &str) -> String {
    let path = path.display();
    format!(
        "{path} is damaged, encrypted, or no SQLite database ({found}). Keep a copy of it and of {path}-wal; then restore \
         a backup in their place, or save what can be read: sqlite3 {path} .recover | sqlite3 recovered.db. Without \
         both, the next start begins with nothing"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_may_pass_does_not_keep_the_server_down() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("homing.db");
        let options = SqliteConnectOptions::new().filename(&path).busy_timeout(Duration::ZERO);
        let mut other =
            SqliteConnection::connect_with(&options.clone().create_if_missing(true)).await.unwrap();
        let mut own = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
        let locked = tables(&mut own).await.unwrap_err();
        assert!(matches!(opening(&path, locked), StoreError::Unavailable(_)));
        // Dropped, it would go on holding its lock for a moment.
        other.close().await.unwrap();
        std::fs::write(&path, "x".repeat(8192)).unwrap();
        let mut own = SqliteConnection::connect_with(&options).await.unwrap();
        let damaged = tables(&mut own).await.unwrap_err();
        assert!(matches!(opening(&path, damaged), StoreError::Open { .. }));
    }
}
