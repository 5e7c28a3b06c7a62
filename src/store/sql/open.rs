//! Opening the database: connections, their settings, and SQLite's lock file.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _};

use super::checkpoint::{self, Checkpointer};
use super::damage::{self, Checkup};
use super::group_commit::GroupCommit;
use super::health::Health;
use super::low_water::LowWater;
use super::primary::Primary;
use super::query::READ_LIMIT;
use super::{Backend, DEADLINE, Database, Options, PostgresPools, SqlitePools};
use crate::clock::Clock;
use crate::failure::Failure;
use crate::store::{Result, StoreError};

/// SQLite's connections for short reads, and for searches.
const SQLITE_READERS: u32 = 3;
const SQLITE_LISTS: u32 = 2;

/// Lets a backend stop soon after its client has gone. Known from Postgres 14 on, not allowed on every system.
const WATCH_CLIENT: &str = "SELECT set_config(name, '500ms', false) FROM pg_settings \
     WHERE name = 'client_connection_check_interval'";

pub(super) async fn connect(
    options: &Options,
    clock: &Clock,
    failure: &Failure,
) -> Result<Backend<PostgresPools, SqlitePools>> {
    match &options.database {
        Database::Sqlite(path) => sqlite(path, options, clock, failure).await.map(Backend::Sqlite),
        Database::Postgres(url) => postgres(url, options, clock, failure).await.map(Backend::Postgres),
    }
}

async fn postgres(url: &str, options: &Options, clock: &Clock, failure: &Failure) -> Result<PostgresPools> {
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
    let limit = READ_LIMIT.as_millis().to_string();
    let lists = rest.clone().options([("statement_timeout", limit.as_str())]);
    let primary = Primary::new();
    let pool = |prepare| {
        primary
            .pool(prepare)
            .acquire_timeout(DEADLINE)
            .test_before_acquire(false)
            .idle_timeout(Duration::from_mins(10))
    };
    // A call that ran out of time may leave its connection inside a transaction.
    let clean = || {
        let primary = Arc::clone(&primary);
        pool(None).before_acquire(move |connection, meta| {
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
    let current = |pool: PgPoolOptions| {
        let primary = Arc::clone(&primary);
        pool.before_acquire(move |_, meta| {
            let is_current = primary.is_current(meta.age);
            Box::pin(async move { Ok(is_current) })
        })
    };
    let short = options.connections.div_ceil(2);
    let long = options.connections.saturating_sub(short).max(1);
    let probe = rest.clone().options([("statement_timeout", "2s"), ("lock_timeout", "2s")]);
    Ok(PostgresPools {
        hot: current(pool(None)).max_connections(options.hot_connections).connect_with(hot).await?,
        heartbeat: clean().max_connections(1).connect_with(rest.clone()).await?,
        rest: clean().max_connections(short).connect_with(rest).await?,
        lists: current(pool(Some(WATCH_CLIENT))).max_connections(long).connect_with(lists).await?,
        listening: current(pool(None)).max_connections(1).connect_lazy_with(unlimited.clone()),
        // Nothing runs for a database that can't be opened.
        health: Health::start(Backend::Postgres(probe), clock, failure),
        probes: primary.start(unlimited.clone(), failure),
        listener: tokio::sync::Mutex::new(None),
        low_water: Arc::new(LowWater::new()),
        unlimited,
        primary,
    })
}

async fn sqlite(path: &Path, options: &Options, clock: &Clock, failure: &Failure) -> Result<SqlitePools> {
    let max_queues = options.max_queues;
    let open = |reason: String| StoreError::Open { reason };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| open(folder_help(folder, "made", &error)))?;
    }
    let path = &real_path(path)?;
    let (lock, ended_orderly) = LockFile::take(path)?;
    let unclean = path.exists() && (!ended_orderly || log_size(path) > 0);
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
        .connect_with(options.clone())
        .await
        .map_err(|error| damage::opening(path, error))?;
    let mut unchecked = Vec::new();
    if unclean {
        unchecked = damage::check_at_start(&mut *writer.acquire().await?, path).await?;
    }
    let reading = options.clone().pragma("cache_size", "-4096").pragma("query_only", "on");
    let readers = SqlitePoolOptions::new()
        .max_connections(SQLITE_READERS)
        .test_before_acquire(false)
        .acquire_timeout(DEADLINE)
        .connect_with(reading.clone())
        .await?;
    let lists = SqlitePoolOptions::new()
        .max_connections(SQLITE_LISTS)
        .test_before_acquire(false)
        .acquire_timeout(DEADLINE)
        .connect_with(reading)
        .await?;
    let options = options.pragma("cache_size", "-512");
    let checkpoints = SqlitePoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(options.clone())
        .await?;
    let checkup = Checkup::start(unchecked, options, writer.clone(), path.clone(), failure);
    let checkpointer = Checkpointer::start(checkpoints.clone(), writer.clone(), path, failure);
    let group = GroupCommit::start(writer.clone(), checkpointer.bell(), max_queues, clock, failure);
    let health = Health::start(Backend::Sqlite(writer.clone()), clock, failure);
    Ok(SqlitePools {
        writer,
        group,
        health,
        checkpointer,
        checkpoints,
        readers,
        lists,
        dead_letters: tokio::sync::Mutex::new(()),
        checkup: tokio::sync::Mutex::new(checkup),
        path: path.clone(),
        lock,
    })
}

/// A sentence about a path that can't be used, with advice where there is some. Files are made in the folder, which is
/// what must be writable.
fn folder_help(path: &Path, verb: &str, error: &std::io::Error) -> String {
    let text = format!("{} can't be {verb}: {error}", path.display());
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        return text;
    }
    let folder = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(path);
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    format!("{text}; if it is a mounted volume: chown {uid}:{gid} {}", folder.display())
}

/// The file that a path leads to, since a link and its target must not have a lock file each; and no links where SQLite
/// makes its other files.
fn real_path(path: &Path) -> Result<PathBuf> {
    let open = |reason: String| StoreError::Open { reason };
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|file| file.is_symlink());
    let path = if is_link(path) {
        let found = path.canonicalize();
        found.map_err(|error| open(format!("{} is a link that leads nowhere: {error}", path.display())))?
    } else {
        path.to_owned()
    };
    for suffix in ["-wal", "-shm", "-journal"] {
        let beside = beside(&path, suffix);
        if is_link(&beside) {
            return Err(open(format!("{} is a symbolic link: remove it", beside.display())));
        }
    }
    Ok(path)
}

/// The file beside the database whose name ends with that.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Bytes in the write-ahead log, of which an orderly end leaves nothing.
fn log_size(path: &Path) -> u64 {
    beside(path, "-wal").metadata().map_or(0, |file| file.len())
}

/// Makes the database file readable for its owner alone, since it holds signing keys and bodies; SQLite gives its other
/// files the same mode. One that is there keeps its own.
fn create_private(path: &Path) -> Result<()> {
    let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    match made {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            if let Ok(file) = path.metadata()
                && file.mode() & 0o077 != 0
            {
                tracing::warn!(
                    "{path} holds signing keys and messages, and others can read or write it (mode {mode:o}): \
                     chmod 600 {path}*",
                    path = path.display(),
                    mode = file.mode() & 0o777
                );
            }
            Ok(())
        }
        Err(error) => Err(StoreError::Open { reason: folder_help(path, "made", &error) }),
    }
}

/// The exclusive lock beside the database file, which the system releases when the process ends, however it does. The
/// file holds the process's id until an orderly end.
pub(super) struct LockFile(File);

impl LockFile {
    /// Takes the lock; and whether the last one that had it came to an orderly end.
    fn take(path: &Path) -> Result<(Self, bool)> {
        let lock_path = &beside(path, ".lock");
        let open = |reason: String| StoreError::Open { reason };
        let is_new = !lock_path.exists();
        // Nothing is written through a link that somebody else has put there.
        let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(lock_path);
        let mut file = opened.map_err(|error| {
            open(match Errno::from_io_error(&error) {
                Some(Errno::LOOP) => format!("{} is a symbolic link: remove it", lock_path.display()),
                _ => folder_help(lock_path, "opened", &error),
            })
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: path.display().to_string() });
            }
            Err(TryLockError::Error(error)) => {
                return Err(open(format!("{} can't be locked: {error}", lock_path.display())));
            }
        }
        let ended_orderly = !is_new && file.metadata().is_ok_and(|file| file.len() == 0);
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .and_then(|()| file.sync_all());
        if let Err(error) = written {
            tracing::debug!(%error, "the lock file's process id could not be written");
        }
        Ok((Self(file), ended_orderly))
    }

    /// Notes that nothing is left to be done for the files.
    pub(super) fn note_orderly_end(&self) {
        if let Err(error) = self.0.set_len(0) {
            tracing::debug!(%error, "the lock file could not be emptied; the next start looks at the database");
        }
    }
}
