//! Whether what was answered was on disk before.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::{closed, note};
use crate::bench::{Bench, World, print_columns};
use crate::child;
use crate::database::Engine;
use crate::procs;
use crate::shim::Shim;
use crate::trace::{self, Verdict};

/// How long the tracer may take to begin or to end.
const LIMIT: Duration = Duration::from_mins(1);

pub(super) fn durability(bench: &Bench, engine: Engine) -> Result<()> {
    let version = Command::new("strace").arg("-V").output();
    version.context("strace can't be run; this row needs it")?;
    print_columns()?;
    let sound = traced(bench, &World::start(bench, engine, None)?, "traced")?;
    if sound.violations.is_empty() {
        note("every one of them was synced before it was answered")?;
    } else {
        bench.fault(&format!(
            "{} of {} were answered before they were synced, {} among them",
            sound.violations.len(),
            sound.accepted,
            sound.violations[0]
        ))?;
    }
    // The test of the test.
    let shim = Shim::skip(bench.place.path())?;
    let unsound = traced(bench, &World::start(bench, engine, Some(&shim))?, "without any sync")?;
    if unsound.violations.len() == unsound.accepted {
        note("none was synced, and that was noticed of every one")
    } else {
        bench.fault("where nothing is synced, that was not noticed of all: the check can't be trusted")
    }
}

fn traced(bench: &Bench, world: &World, name: &str) -> Result<Verdict> {
    let file = world.database.directory().join("trace");
    let server = world.server()?.pid();
    let database = world.database.pid().map(procs::tree_pids).unwrap_or_default();
    let tracer = Tracer::attach(&[vec![server], database].concat(), &file)?;
    let sample = closed(world, bench.count(1000, 200))?;
    sample.print(name, bench)?;
    tracer.detach()?;
    let text = fs::read(&file)?;
    let verdict = trace::judge(&String::from_utf8_lossy(&text))?;
    note(&format!(
        "the trace shows {} acceptances, {} writes to the log and {} syncs of it",
        verdict.accepted, verdict.log_writes, verdict.log_syncs
    ))?;
    let accepted = usize::try_from(sample.accepted)?;
    ensure!(verdict.accepted == accepted, "the trace does not show all of the {accepted} acceptances");
    Ok(verdict)
}

/// A running strace.
struct Tracer {
    child: Child,
}

impl Tracer {
    fn attach(pids: &[u32], file: &Path) -> Result<Self> {
        // No write of the log is as long as 4 MiB, and all of each must be there to find the ids.
        let mut command = child::tied(Path::new("strace"))?;
        command.args(["-f", "-y", "-qq", "-s", "4194304", "-e", trace::CALLS, "-o"]).arg(file);
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let mut tracer = Self { child: command.stdin(Stdio::null()).spawn()? };
        let start = Instant::now();
        while !pids.iter().all(|pid| procs::is_traced(*pid)) {
            if let Some(status) = tracer.child.try_wait()? {
                anyhow::bail!("strace can't attach ({status}); it takes root, or kernel.yama.ptrace_scope=0");
            }
            ensure!(start.elapsed() < LIMIT, "strace does not attach");
            sleep(Duration::from_millis(10));
        }
        Ok(tracer)
    }

    /// Ends it; its file is whole then.
    fn detach(mut self) -> Result<()> {
        child::signal(self.child.id(), Signal::INT)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < LIMIT, "strace does not end");
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
