//! The server under test as a process.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::child;
use crate::http;

const TOKEN: &str = "bench";

/// How long a start or a stop may take.
const LIMIT: Duration = Duration::from_mins(2);

/// How a server is started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) binary: PathBuf,
    /// Where its log goes; also its working directory.
    pub(crate) directory: PathBuf,
    pub(crate) database_url: String,
    pub(crate) node: &'static str,
    /// Further environment variables.
    pub(crate) environment: Vec<(String, String)>,
}

/// A server that is ready. It is killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From the start of the process to the first 200 of `/readyz`.
    pub(crate) ready_after: Duration,
}

impl Server {
    pub(crate) fn start(setup: &Setup) -> Result<Self> {
        let log = setup.directory.join(format!("{}.log", setup.node));
        let out = File::create(&log)?;
        let start = Instant::now();
        let child = child::tied(&setup.binary)?
            .current_dir(&setup.directory)
            .env_remove("HOMING_TEST_POSTGRES")
            .env("HOMING_LISTEN", "127.0.0.1:0")
            .env("HOMING_DATABASE_URL", &setup.database_url)
            .env("HOMING_TOKEN", TOKEN)
            .env("HOMING_NODE_NAME", setup.node)
            .envs(setup.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()?;
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), ready_after: Duration::ZERO };
        while !server.is_ready(&log)? {
            let log = || fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended at its start: {status}\n{}", log());
            }
            if start.elapsed() > LIMIT {
                bail!("the server is not ready after {LIMIT:?}\n{}", log());
            }
            sleep(Duration::from_millis(2));
        }
        server.ready_after = start.elapsed();
        Ok(server)
    }

    fn is_ready(&mut self, log: &Path) -> Result<bool> {
        if self.address.port() == 0 {
            let text = fs::read_to_string(log)?;
            // Not before the whole line is there.
            let mut lines = text.lines().take(text.matches('\n').count());
            let Some(address) = lines.find_map(|line| line.split_once("listening on http://")) else {
                return Ok(false);
            };
            let address = address.1.split_whitespace().next().unwrap_or_default();
            self.address = address.parse().with_context(|| format!("listening on {address:?}"))?;
        }
        Ok(http::call(self.address, "GET", "/readyz", &[], "").is_ok_and(|(status, _)| status == 200))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A request to the API.
    pub(crate) fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(String, String)],
        body: &str,
    ) -> Result<(u16, String)> {
        http::call(self.address, method, target, &[headers, &[authorization()]].concat(), body)
    }

    /// Stops it as an operator would.
    pub(crate) fn stop(mut self) -> Result<()> {
        child::signal(self.pid(), Signal::TERM)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(start.elapsed() < LIMIT, "the server does not stop");
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn authorization() -> (String, String) {
    ("Authorization".to_owned(), format!("Bearer {TOKEN}"))
}
