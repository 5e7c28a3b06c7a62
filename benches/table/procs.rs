//! What processes use, from /proc.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

/// Microseconds of a tick: `USER_HZ` is 100 in Linux's ABI.
const TICK_US: u64 = 10_000;

/// Microseconds of the clock that all processes of the machine share.
pub(crate) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).unwrap_or(0)
}

#[derive(Clone, Copy)]
struct Stat {
    parent: u32,
    own_ticks: u64,
    /// Of children that have ended.
    reaped_ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold spaces and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        own_ticks: number(11)? + number(12)?,
        reaped_ticks: number(13)? + number(14)?,
    })
}

/// CPU time of a process, all its threads included.
pub(crate) fn cpu_us(pid: u32) -> u64 {
    stat(pid).map_or(0, |stat| stat.own_ticks * TICK_US)
}

/// CPU time of a process and all its descendants, those that have ended included.
pub(crate) fn tree_cpu_us(root: u32) -> u64 {
    tree(root).iter().map(|(_, stat)| (stat.own_ticks + stat.reaped_ticks) * TICK_US).sum()
}

/// A process and its descendants.
pub(crate) fn tree_pids(root: u32) -> Vec<u32> {
    tree(root).into_iter().map(|(pid, _)| pid).collect()
}

fn tree(root: u32) -> Vec<(u32, Stat)> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut all: HashMap<u32, Stat> = names
        .filter_map(|name| name.to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        next.extend(all.iter().filter(|(_, stat)| stat.parent == pid).map(|(pid, _)| *pid));
        found.extend(all.remove(&pid).map(|stat| (pid, stat)));
    }
    found
}

/// CPU time of all that ran on the machine, the kernel's own threads and interrupts included, and what a hypervisor kept
/// for others.
pub(crate) fn machine_cpu_us() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, irq, softirq, steal; without idle and iowait.
    [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum::<u64>() * TICK_US
}

/// Memory of a process in KiB, pages that it shares with others in part.
pub(crate) fn memory_kib(pid: u32) -> u64 {
    kib(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// The most memory that a process ever had, in KiB.
pub(crate) fn peak_memory_kib(pid: u32) -> u64 {
    kib(&format!("/proc/{pid}/status"), "VmHWM:")
}

fn kib(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    number_after(&text, name).unwrap_or(0)
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// How often a process's threads went to sleep.
pub(crate) fn sleeps(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    texts.filter_map(|text| number_after(&text, "voluntary_ctxt_switches:")).sum()
}

/// Whether a library is mapped into a process.
pub(crate) fn has_loaded(pid: u32, library: &Path) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().any(|line| line.ends_with(&*library.to_string_lossy()))
}

/// Whether somebody traces all threads of a process.
pub(crate) fn is_traced(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).peekable();
    texts.peek().is_some() && texts.all(|text| number_after(&text, "TracerPid:").is_some_and(|pid| pid > 0))
}

/// The type of the file system that holds a directory.
pub(crate) fn file_system(directory: &Path) -> String {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (place, kind) = (Path::new(fields.next()?), fields.next()?);
        directory.starts_with(place).then(|| (place.as_os_str().len(), kind.to_owned()))
    });
    // The last one of the longest: a later mount hides an earlier one.
    mounts.max_by_key(|(length, _)| *length).map_or_else(|| "unknown".to_owned(), |(_, kind)| kind)
}
