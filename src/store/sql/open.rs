//! Opening the database: connections, their settings, and SQLite's lock file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _};

use super::checkpoint::{self, Checkpointer};
use super::health::Health;
use super::low_water::LowWater;
use super::primary::Primary;
use super::writer::Writer;
use super::{Backend, DEADLINE, Database, Options, PostgresPools, SqlitePools, hot_sqlite};
use crate::failure::Failure;
use crate::store::{Result, StoreError};

/// Readers beside SQLite's writer.
const SQLITE_READERS: u32 = 4;

pub(super) async fn connect(
    options: &Options,
    failure: &Failure,
) -> Result<Backend<PostgresPools, SqlitePools>> {
    match &options.database {
        Database::Sqlite(path) => sqlite(path, options, failure).await.map(Backend::Sqlite),
        Database::Postgres(url) => postgres(url, options, failure).await.map(Backend::Postgres),
    }
}

async fn postgres(url: &str, options: &Options, failure: &Failure) -> Result<PostgresPools> {
    let base = PgConnectOptions::from_str(url)
        .map_err(|error| StoreError::Open { reason: format!("the Postgres URL can't be read: {error}") })?
        .application_name("homing");
    let unlimited = base.clone();
    let base = base.options([
        ("lock_timeout", "4s"),
        ("idle_in_transaction_session_timeout", "30s"),
        ("synchronous_commit", "on"),
        ("default_transaction_isolation", "read committed"),
    ]);
    let rest = base.clone().options([("statement_timeout", "60s")]);
    // A plan made while the hot table was empty is wrong when it is not, and the other way round; the statements here
    // have one good plan each, through the index that is made for it.
    let hot = base.options([
        ("statement_timeout", "5s"),
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("enable_material", "off"),
        ("jit", "off"),
    ]);
    let primary = Primary::new();
    let pool = || {
        primary
            .pool()
            .acquire_timeout(DEADLINE)
            .test_before_acquire(false)
            .idle_timeout(Duration::from_mins(10))
    };
    // A call that ran out of time may leave its connection inside a transaction.
    let clean = || {
        let primary = Arc::clone(&primary);
        pool().before_acquire(move |connection, meta| {
            let is_current = primary.is_current(meta.age);
            Box::pin(async move {
                if !is_current {
                    return Ok(false);
                }
                // As text, so that both are taken at the same moment unless the transaction is older.
                let row = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(connection).await?;
                row.try_get::<bool, _>(0)
            })
        })
    };
    let current = || {
        let primary = Arc::clone(&primary);
        pool().before_acquire(move |_, meta| {
            let is_current = primary.is_current(meta.age);
            Box::pin(async move { Ok(is_current) })
        })
    };
    let probe = rest.clone().options([("statement_timeout", "2s"), ("lock_timeout", "2s")]);
    Ok(PostgresPools {
        hot: current().max_connections(options.hot_connections).connect_with(hot).await?,
        health: Health::start(Backend::Postgres(probe), failure),
        looks: primary.start(unlimited.clone(), failure),
        heartbeat: clean().max_connections(1).connect_with(rest.clone()).await?,
        rest: clean().max_connections(options.connections).connect_with(rest).await?,
        listening: current().max_connections(1).connect_lazy_with(unlimited.clone()),
        listener: tokio::sync::Mutex::new(None),
        low_water: Arc::new(LowWater::new()),
        vacuum: super::vacuum::Vacuum::start(unlimited.clone(), options.vacuum_after, failure),
        unlimited,
        primary,
    })
}

async fn sqlite(path: &Path, options: &Options, failure: &Failure) -> Result<SqlitePools> {
    let max_queues = options.max_queues;
    let open = |reason: String| StoreError::Open { reason };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|error| open(folder_help(folder, "made", &error)))?;
    }
    let lock = lock(path)?;
    create_private(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // NORMAL would be faster, and loses acknowledged messages at a power cut.
        .synchronous(SqliteSynchronous::Full)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(false)
        .pragma("cache_size", "-16384")
        .pragma("temp_store", "memory")
        .pragma("journal_size_limit", checkpoint::KEPT.to_string())
        .pragma("wal_autocheckpoint", "0");
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(30))
        // A commit that fails may end the transaction without the driver's knowing: such a connection begins none again.
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(hot_sqlite::ACCEPTED).execute(connection).await?;
                Ok(())
            })
        })
        .connect_with(options.clone())
        .await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(SQLITE_READERS)
        .test_before_acquire(false)
        .acquire_timeout(DEADLINE)
        .connect_with(options.clone().pragma("cache_size", "-4096").pragma("query_only", "on"))
        .await?;
    let checkpoints = SqlitePoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(options.pragma("cache_size", "-512"))
        .await?;
    let writer = Arc::new(Writer::new(writer));
    let checkpointer = Checkpointer::start(checkpoints.clone(), Arc::clone(&writer), path, failure);
    let group = hot_sqlite::GroupCommit::start(Arc::clone(&writer), checkpointer.bell(), max_queues, failure);
    let dead_letters = tokio::sync::Mutex::new(());
    let health = Health::start(Backend::Sqlite(Arc::clone(&writer)), failure);
    Ok(SqlitePools { writer, group, health, checkpointer, checkpoints, readers, dead_letters, _lock: lock })
}

/// What can't be done with a path, and what may help. Files are made in the folder, which is what must be writable.
fn folder_help(path: &Path, verb: &str, error: &std::io::Error) -> String {
    let text = format!("{} can't be {verb}: {error}", path.display());
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        return text;
    }
    let folder = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(path);
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    format!("{text}; if it is a mounted volume: chown {uid}:{gid} {}", folder.display())
}

/// Makes the database file readable for its owner alone, since it holds signing keys and bodies; SQLite gives its other
/// files the same mode.
fn create_private(path: &Path) -> Result<()> {
    let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(StoreError::Open { reason: folder_help(path, "made", &error) })
        }
        _ => Ok(()),
    }
}

/// Takes the exclusive lock beside the database file, which the system releases when the process ends, however it does.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = Path::new(&name);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(lock_path)
        .map_err(|error| StoreError::Open { reason: folder_help(lock_path, "opened", &error) })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StoreError::Locked { path: path.display().to_string() });
        }
        Err(TryLockError::Error(error)) => {
            return Err(StoreError::Open {
                reason: format!("{} can't be locked: {error}", lock_path.display()),
            });
        }
    }
    // For a person who wonders who holds it; nothing reads it.
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::debug!(%error, "the lock file's process id could not be written");
    }
    Ok(file)
}
