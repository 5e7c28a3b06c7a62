//! The table of figures: starts server, database, destination and load, and measures. `scripts/bench` runs it, and
//! docs/performance.md says what the rows mean.
//!
//! The driver is this program without a role; `load` and `sink` are processes of their own, so that their CPU can be told
//! from the server's. `bench` measures, `rows` has a function for each row.

#![allow(clippy::disallowed_methods, reason = "the bans are about the server; this measures it from outside")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures are rounded for reading"
)]

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::available_parallelism;

use anyhow::Result;
use clap::Parser as _;
use tempfile::TempDir;

mod args;
mod arrivals;
mod baseline;
mod bench;
mod child;
mod database;
mod histogram;
mod http;
mod load;
mod message;
mod procs;
mod rows;
mod server;
mod shim;
mod sink;
mod trace;

use self::args::Args;
use self::bench::Bench;

/// The server's own, for the bare server that it is compared with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        // Where stderr is gone, the exit code has to do.
        writeln!(std::io::stderr(), "bench: {error:#}").ok();
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next().unwrap_or_default();
    match role.as_str() {
        "@load" => load::main(&arguments.next().unwrap_or_default())?,
        "@sink" => sink::main()?,
        "@bare" => baseline::main()?,
        "@exec" => child::exec(arguments)?,
        "@sync" => {
            let time = shim::sync_time(Path::new(&arguments.next().unwrap_or_default()))?;
            print_line(&time.as_micros().to_string())?;
        }
        _ => return drive(Args::parse()),
    }
    Ok(ExitCode::SUCCESS)
}

fn drive(args: Args) -> Result<ExitCode> {
    let selection = args.selection()?;
    let place = TempDir::with_prefix("homing-bench-")?;
    // Postgres runs as another user and has to find the shim.
    fs::set_permissions(place.path(), Permissions::from_mode(0o755))?;
    remove_at_signals(place.path().to_owned())?;
    print_machine(&args, place.path())?;
    let bench = Bench::start(args, place)?;
    let size = match bench.args.messages {
        Some(messages) => format!(" (with {messages} messages)"),
        None if bench.args.quick => " (made small: no figures to go by)".to_owned(),
        None => String::new(),
    };
    for (row, engine) in selection {
        print_line(&format!("\n{} on {}: {}{size}", row.name, engine.name(), row.about))?;
        if let Err(error) = (row.run)(&bench, engine) {
            bench.fault(&format!("the row ended early: {error:#}"))?;
        }
    }
    match bench.faults() {
        0 => Ok(ExitCode::SUCCESS),
        faults => {
            print_line(&format!("\n{faults} faults; see above"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What the figures were measured on.
fn print_machine(args: &Args, place: &Path) -> Result<()> {
    let first_line = |command: &mut Command| {
        let output = command.output().ok().filter(|output| output.status.success());
        output.map(|output| {
            String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
        })
    };
    let root = env!("CARGO_MANIFEST_DIR");
    let version = first_line(Command::new(&args.server).arg("--version"));
    let commit = first_line(Command::new("git").args(["-C", root, "describe", "--always", "--dirty"]));
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let unknown = || "unknown".to_owned();
    print_line(&format!(
        "server   {}, commit {}",
        version.unwrap_or_else(unknown),
        commit.unwrap_or_else(unknown)
    ))?;
    print_line(&format!(
        "machine  {} × {}, {} GiB, Linux {}",
        available_parallelism()?,
        cpu.map_or("unknown", |(_, name)| name.trim()),
        memory >> 20,
        kernel.trim()
    ))?;
    let file_system = procs::file_system(place);
    let sync = shim::sync_time(place)?;
    print_line(&format!("disk     {file_system} at {}, a sync takes {sync:.0?}", place.display()))?;
    if matches!(file_system.as_str(), "tmpfs" | "ramfs") {
        print_line("WARNING  that is memory: its syncs cost nothing. Let TMPDIR name a directory on a disk")?;
    }
    print_line(&format!("load     {} connections", args.connections))?;
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("HOMING_")) {
        print_line(&format!("setting  {name}={value}"))?;
    }
    Ok(())
}

/// Leaves nothing behind at Ctrl-C. Processes that were started end with this one.
fn remove_at_signals(place: PathBuf) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        fs::remove_dir_all(&place).ok();
        std::process::exit(130);
    });
    Ok(())
}

/// Writes a line at once: rows take long.
fn print_line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
