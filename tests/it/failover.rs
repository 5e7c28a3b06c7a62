//! A failover to a standby, while the former primary goes on: two clusters of the test's own, and a proxy before them
//! that leads new connections to one or the other and leaves old ones where they are.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::support::wait::pause;
use crate::support::{Engine, Receiver, Test, eventually, within};

/// Postgres' programs: the newest version's.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = ["/usr/lib/postgresql", "/usr"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path().join("bin"))))
        .filter(|bin| bin.join("pg_basebackup").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL's server programs")
}

/// A program of Postgres, as a user that it accepts.
fn program(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(programs().join(name));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if rustix::process::getuid().is_root() {
        let id = |flag: &str| {
            let id = Command::new("id").args([flag, "postgres"]).output().unwrap().stdout;
            String::from_utf8(id).unwrap().trim().parse().unwrap()
        };
        command.uid(id("-u")).gid(id("-g"));
    }
    command
}

fn run(mut command: Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running server of Postgres.
struct Cluster {
    folder: PathBuf,
    data: PathBuf,
    port: u16,
    server: Child,
}

impl Cluster {
    async fn primary(folder: &Path) -> Self {
        let data = folder.join("primary");
        let mut init = program("initdb", folder);
        init.arg("--pgdata").arg(&data).args(["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
        run(init);
        Self::start(folder, data).await
    }

    async fn standby(folder: &Path, of: &Self) -> Self {
        let data = folder.join("standby");
        let mut copy = program("pg_basebackup", folder);
        copy.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &of.port.to_string()]);
        copy.arg("-D").arg(&data).args(["-R", "-X", "stream", "-c", "fast"]);
        run(copy);
        Self::start(folder, data).await
    }

    async fn start(folder: &Path, data: PathBuf) -> Self {
        let port = free_port();
        let mut server = program("postgres", folder);
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k"]).arg(folder);
        let cluster = Self { folder: folder.to_owned(), data, port, server: server.spawn().unwrap() };
        eventually("the cluster takes connections", async || cluster.connect("postgres").await.ok()).await;
        cluster
    }

    async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(&format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)).await
    }

    async fn execute(&self, database: &str, sql: &str) {
        let mut connection = self.connect(database).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    }

    /// The ids of all messages that it has.
    async fn messages(&self) -> HashSet<String> {
        let mut connection = self.connect("homing").await.unwrap();
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT id FROM messages").fetch_all(&mut connection).await.unwrap();
        ids.into_iter().collect()
    }

    fn promote(&self) {
        let mut promote = program("pg_ctl", &self.folder);
        promote.arg("promote").arg("-w").arg("-D").arg(&self.data);
        run(promote);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Immediately: nothing in there is worth a checkpoint.
        let _gone = kill_process(Pid::from_child(&self.server), Signal::QUIT).is_err();
        let _ended = self.server.wait().is_ok();
    }
}

/// Where new connections go.
struct Proxy {
    address: SocketAddr,
    port: Arc<AtomicU16>,
}

impl Proxy {
    async fn before(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let port = Arc::new(AtomicU16::new(cluster.port));
        let to = Arc::clone(&port);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let port = to.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                        let _broken = tokio::io::copy_bidirectional(&mut client, &mut server).await.is_err();
                    }
                });
            }
        });
        Self { address, port }
    }

    fn lead_to(&self, cluster: &Cluster) {
        self.port.store(cluster.port, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_accepted_on_a_former_primary() {
    Test::run(Engine::Postgres, async |t| {
        t.allow_errors("");
        let folder = TempDir::with_prefix("homing-pg-").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), mode).unwrap();
        let old = Cluster::primary(folder.path()).await;
        old.execute("postgres", "CREATE DATABASE homing").await;
        let new = Cluster::standby(folder.path(), &old).await;
        let proxy = Proxy::before(&old).await;
        let url = format!("postgres://postgres@{}/homing", proxy.address);
        let server = t.server_with(&[("HOMING_DATABASE_URL", &url)]).await;
        let receiver = Receiver::start().await;
        // That it sees the standby is a part of the start.
        eventually("the standby follows", async || {
            let sql = "SELECT COUNT(*) FROM pg_stat_replication WHERE state = 'streaming'";
            let mut connection = old.connect("postgres").await.unwrap();
            let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
            (count == 1).then_some(())
        })
        .await;

        let acknowledged: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (server, url) = (server.clone(), receiver.url("/"));
                let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let began = Instant::now();
                        let answer =
                            server.call("POST", &format!("/v2/publish/{url}")).body("x").send().await;
                        if answer.status == 200 {
                            let id = answer.json(200)["messageId"].as_str().unwrap().to_owned();
                            acknowledged.lock().unwrap().push((began, id));
                        }
                        pause(Duration::from_millis(5)).await;
                    }
                })
            })
            .collect();
        let count =
            |after: Instant| acknowledged.lock().unwrap().iter().filter(|(began, _)| *began > after).count();
        let start = Instant::now();
        eventually("messages are accepted", async || (count(start) >= 200).then_some(())).await;

        new.promote();
        proxy.lead_to(&new);
        let failed_over = Instant::now();
        within(Duration::from_secs(30), "messages are accepted", async || {
            (count(failed_over) >= 200).then_some(())
        })
        .await;
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.await.unwrap();
        }
        let first = acknowledged.lock().unwrap().iter().map(|(began, _)| *began).find(|at| *at > failed_over);
        eprintln!("accepted again {:?} after the failover", first.map(|at| at - failed_over));
        within(Duration::from_secs(10), "the node is ready", async || {
            (server.get("/readyz").await.status == 200).then_some(())
        })
        .await;

        let acknowledged = acknowledged.lock().unwrap().clone();
        let lost = eventually("what was accepted lately is stored again", async || {
            let on_new = new.messages().await;
            let lost = acknowledged.iter().filter(|(_, id)| !on_new.contains(id)).count();
            (lost == 0).then_some(lost)
        })
        .await;
        let before = acknowledged.iter().filter(|(began, _)| *began < failed_over).count();
        eprintln!("{before} accepted before, {} in all, {lost} lost", acknowledged.len());
        for (_, id) in &acknowledged {
            assert_eq!(server.ended(id).await, "CREATED ACTIVE DELIVERED");
        }
        let twice = receiver.counts().values().filter(|count| **count > 1).count();
        eprintln!("{twice} delivered twice");
    })
    .await;
}
