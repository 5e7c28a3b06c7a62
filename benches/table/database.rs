//! A fresh database for each row: a directory for SQLite, a private cluster for Postgres.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::child::Helper;
use crate::histogram::{Histogram, Percentiles};
use crate::procs;
use crate::shim::Shim;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    pub(crate) const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// A database with nothing in it, which goes when it is dropped.
pub(crate) struct Database {
    pub(crate) engine: Engine,
    cluster: Option<Cluster>,
    directory: TempDir,
    runtime: Runtime,
}

struct Cluster {
    _helper: Helper,
    url: String,
    postmaster: u32,
}

/// A transaction that goes on seeing the database as it was. Ends when it is dropped.
pub(crate) enum Snapshot {
    Sqlite(#[expect(dead_code, reason = "it is open as long as it is there")] SqliteConnection),
    Postgres(#[expect(dead_code, reason = "it is open as long as it is there")] PgConnection),
}

impl Database {
    /// Within `place`; with a shim, Postgres runs under it.
    pub(crate) fn create(engine: Engine, place: &Path, shim: Option<&Shim>) -> Result<Self> {
        let directory = TempDir::with_prefix_in("row-", place)?;
        let cluster = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(Cluster::start(directory.path(), shim)?),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { engine, cluster, directory, runtime })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// As the server's setting takes it.
    pub(crate) fn url(&self) -> String {
        match &self.cluster {
            None => format!("sqlite://{}", self.file("homing.db").display()),
            Some(cluster) => format!("{}/postgres", cluster.url),
        }
    }

    /// The process at the root of Postgres.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.cluster.as_ref().map(|cluster| cluster.postmaster)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn postgres(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.url()).await?)
    }

    fn sqlite(&self, name: &str) -> SqliteConnectOptions {
        SqliteConnectOptions::new().filename(self.file(name)).busy_timeout(Duration::from_secs(30))
    }

    /// How long it takes to commit one row of that many bytes, one after the other, with all syncs: into a table of the
    /// server's database on Postgres, into a file beside the server's on SQLite.
    pub(crate) fn commits(&self, count: u64, bytes: usize) -> Result<Percentiles> {
        const TABLE: &str = "CREATE TABLE bench_commits (id BIGINT PRIMARY KEY, body TEXT NOT NULL)";
        const INSERT: &str = "INSERT INTO bench_commits (id, body) VALUES ($1, $2)";
        let body = "x".repeat(bytes);
        let mut latency = Histogram::default();
        self.runtime.block_on(async {
            match self.engine {
                Engine::Sqlite => {
                    let options = self.sqlite("commits.db").create_if_missing(true);
                    let options =
                        options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
                    let mut connection = options.connect().await?;
                    sqlx::query(TABLE).execute(&mut connection).await?;
                    for id in 0..count {
                        let start = Instant::now();
                        let insert = sqlx::query(INSERT).bind(id.cast_signed()).bind(&body);
                        insert.execute(&mut connection).await?;
                        latency.record(micros(start.elapsed()));
                    }
                    connection.close().await?;
                }
                Engine::Postgres => {
                    let mut connection = self.postgres().await?;
                    sqlx::query(TABLE).execute(&mut connection).await?;
                    for id in 0..count {
                        let start = Instant::now();
                        let insert = sqlx::query(INSERT).bind(id.cast_signed()).bind(&body);
                        insert.execute(&mut connection).await?;
                        latency.record(micros(start.elapsed()));
                    }
                    connection.close().await?;
                }
            }
            Ok(latency.percentiles())
        })
    }

    /// Bytes that the table of unfinished messages takes with its indices.
    pub(crate) fn hot_table_bytes(&self) -> Result<u64> {
        const SQLITE: &str = "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE aggregate = TRUE \
             AND name IN (SELECT name FROM sqlite_schema WHERE tbl_name = 'deliveries')";
        const POSTGRES: &str = "SELECT pg_total_relation_size('deliveries')";
        let bytes: i64 = self.runtime.block_on(async {
            match self.engine {
                Engine::Sqlite => {
                    let mut connection = self.sqlite("homing.db").read_only(true).connect().await?;
                    let bytes = sqlx::query_scalar(SQLITE).fetch_one(&mut connection).await?;
                    connection.close().await?;
                    anyhow::Ok(bytes)
                }
                Engine::Postgres => {
                    let mut connection = self.postgres().await?;
                    let bytes = sqlx::query_scalar(POSTGRES).fetch_one(&mut connection).await?;
                    connection.close().await?;
                    Ok(bytes)
                }
            }
        })?;
        Ok(bytes.cast_unsigned())
    }

    /// Bytes of SQLite's write-ahead log.
    pub(crate) fn wal_bytes(&self) -> u64 {
        self.file("homing.db-wal").metadata().map_or(0, |file| file.len())
    }

    /// Opens a transaction that has read something.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        const READ: &str = "SELECT count(*) FROM deliveries";
        self.runtime.block_on(async {
            match self.engine {
                Engine::Sqlite => {
                    let mut connection = self.sqlite("homing.db").read_only(true).connect().await?;
                    sqlx::query("BEGIN").execute(&mut connection).await?;
                    sqlx::query(READ).execute(&mut connection).await?;
                    Ok(Snapshot::Sqlite(connection))
                }
                Engine::Postgres => {
                    let mut connection = self.postgres().await?;
                    sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut connection).await?;
                    sqlx::query(READ).execute(&mut connection).await?;
                    Ok(Snapshot::Postgres(connection))
                }
            }
        })
    }
}

impl Cluster {
    /// What the script says goes into a file in `directory`.
    fn start(directory: &Path, shim: Option<&Shim>) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/postgres");
        let log = directory.join("postgres.log");
        let mut command = Command::new(script);
        command.stderr(File::create(&log)?);
        if let Some(shim) = shim {
            command.envs(shim.environment());
        }
        let started = Helper::start(command);
        let (helper, line) = started.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let (url, postmaster) = line.split_once(' ').with_context(|| format!("a cluster at {line:?}"))?;
        let cluster = Self { _helper: helper, url: url.to_owned(), postmaster: postmaster.parse()? };
        if let Some(shim) = shim {
            let loaded = procs::has_loaded(cluster.postmaster, shim.library());
            anyhow::ensure!(loaded, "Postgres did not load {}", shim.library().display());
        }
        Ok(cluster)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
