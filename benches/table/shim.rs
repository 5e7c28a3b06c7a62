//! A library that slows down or skips the syncs of the processes that load it.
//!
//! Preloaded, since it costs a sync nothing but the delay; stopping each process at each call, as tracers do, costs tens
//! of microseconds and a switch.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::child;

/// A compiled shim.
pub(crate) struct Shim {
    library: PathBuf,
    setting: String,
}

impl Shim {
    /// Delays each fsync and fdatasync.
    pub(crate) fn delay(directory: &Path, delay: Duration) -> Result<Self> {
        let shim = Self::compile(directory, delay.as_micros().to_string())?;
        let (with, without) = (probe(directory, Some(&shim))?, probe(directory, None)?);
        ensure!(
            with >= delay,
            "the delay of syncs has no effect: one takes {with:?} with it, {without:?} without"
        );
        Ok(shim)
    }

    /// Makes each fsync and fdatasync do nothing.
    pub(crate) fn skip(directory: &Path) -> Result<Self> {
        Self::compile(directory, "skip".to_owned())
    }

    fn compile(directory: &Path, setting: String) -> Result<Self> {
        let source = directory.join("sync.c");
        let library = directory.join("sync.so");
        std::fs::write(&source, include_str!("sync.c"))?;
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let status = Command::new(&compiler)
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status()
            .with_context(|| format!("{compiler}, the C compiler, can't be run; this row needs one"))?;
        ensure!(status.success(), "{compiler} could not compile {}", source.display());
        Ok(Self { library, setting })
    }

    pub(crate) fn library(&self) -> &Path {
        &self.library
    }

    /// For the processes that shall load it.
    pub(crate) fn environment(&self) -> [(String, String); 2] {
        [
            ("LD_PRELOAD".to_owned(), self.library.display().to_string()),
            ("BENCH_SYNC_US".to_owned(), self.setting.clone()),
        ]
    }
}

/// How long a sync takes in a process that loads the shim.
fn probe(directory: &Path, shim: Option<&Shim>) -> Result<Duration> {
    let mut command = child::role("@sync")?;
    command.arg(directory);
    if let Some(shim) = shim {
        command.envs(shim.environment());
    }
    let text = child::Job::start(command)?.result()?;
    Ok(Duration::from_micros(text.trim().parse()?))
}

/// The median time of a sync of 4 KiB at the end of a file.
pub(crate) fn sync_time(directory: &Path) -> Result<Duration> {
    use std::io::Write as _;
    let mut file = tempfile::tempfile_in(directory)?;
    let mut times = Vec::new();
    for _ in 0..51 {
        file.write_all(&[0; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}
