//! Processes that the driver starts. None of them outlives it, however it ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// A command that runs one of this program's own roles.
pub(crate) fn role(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name);
    Ok(command)
}

/// A command that runs a program which is killed when the driver ends.
pub(crate) fn tied(program: &Path) -> Result<Command> {
    let mut command = role("@exec")?;
    command.arg(program);
    Ok(command)
}

/// Becomes the program named by the arguments, which gets SIGKILL when the driver is gone.
pub(crate) fn exec(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let program = arguments.next().context("no program")?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Err(Command::new(&program).args(arguments).exec()).with_context(|| format!("can't run {program}"))
}

/// A process that tells something in its first line and ends with its standard input.
pub(crate) struct Helper {
    child: Child,
}

impl Helper {
    /// Starts it; its first line of output.
    pub(crate) fn start(mut command: Command) -> Result<(Self, String)> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("no output")?;
        BufReader::new(out).read_line(&mut line)?;
        if line.is_empty() {
            bail!("{command:?} ended at its start: {}", child.wait()?);
        }
        Ok((Self { child }, line.trim().to_owned()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}

/// A process whose whole output is its result.
pub(crate) struct Job {
    child: Child,
}

impl Job {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        Ok(Self { child })
    }

    /// Asks it to come to its end.
    pub(crate) fn stop(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for its end; what it wrote.
    pub(crate) fn result(mut self) -> Result<String> {
        let mut text = String::new();
        // Not closed before: it would take that for the signal to stop.
        let out = self.child.stdout.as_mut().context("no output")?;
        out.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "it failed: {status}");
        Ok(text)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sends a signal to a process of ours.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    Ok(kill_process(pid, signal)?)
}
