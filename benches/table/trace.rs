//! Whether every acceptance was synced to disk before it was told: read from what `strace -f -y -o FILE` wrote of the
//! server and, with Postgres, of the database.
//!
//! The file's order is that in which the calls were stopped: a call's line, or the first of its two, stands where it
//! began, its end where it ended. An answer causally behind a sync therefore stands behind the sync's end.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};

/// The calls to be traced.
pub(crate) const CALLS: &str = "fsync,fdatasync,sendto,sendmsg,write,writev,pwrite64,pwritev,pwritev2";

/// How the ids in answers begin.
const ID: &str = "msg_";

/// What a trace shows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Verdict {
    /// Ids in 2xx answers.
    pub(crate) accepted: usize,
    /// Writes to the database's log, and syncs of it that succeeded.
    pub(crate) log_writes: usize,
    pub(crate) log_syncs: usize,
    /// Ids whose answer began before a sync had ended that began after the id was written to the log.
    pub(crate) violations: Vec<String>,
}

/// A call from its beginning to its end, both as places in the trace.
struct Call<'a> {
    name: &'a str,
    /// What stands in its parentheses, as far as it was known at the beginning.
    arguments: &'a str,
    begin: usize,
    end: usize,
    /// What it returned; `None` when it never did.
    result: Option<i64>,
}

/// Judges a trace.
pub(crate) fn judge(trace: &str) -> Result<Verdict> {
    let calls = calls(trace)?;
    let answers: Vec<(&str, usize)> = calls.iter().filter(|call| is_acceptance(call)).flat_map(ids).collect();
    let wanted: HashSet<&str> = answers.iter().map(|(id, _)| *id).collect();
    let lengths: HashSet<usize> = wanted.iter().map(|id| id.len()).collect();
    let mut verdict = Verdict { accepted: answers.len(), ..Verdict::default() };
    // The first write that holds an id: later ones may repeat its page for others.
    let mut written: HashMap<&str, &Call> = HashMap::new();
    let mut syncs: HashMap<&str, Vec<&Call>> = HashMap::new();
    for call in &calls {
        let Some(file) = log_file(call) else { continue };
        match call.name {
            "fsync" | "fdatasync" if call.result == Some(0) => {
                verdict.log_syncs += 1;
                syncs.entry(file).or_default().push(call);
            }
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" => {
                verdict.log_writes += 1;
                for (at, _) in call.arguments.match_indices(ID) {
                    for length in &lengths {
                        if let Some(id) = call.arguments.get(at..at + length).and_then(|id| wanted.get(id)) {
                            let first = written.entry(id).or_insert(call);
                            if call.end < first.end {
                                *first = call;
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }
    for (id, answer) in answers {
        let is_synced = written.get(id).is_some_and(|write| {
            let syncs = log_file(write).and_then(|file| syncs.get(file));
            syncs.into_iter().flatten().any(|sync| write.end < sync.begin && sync.end < answer)
        });
        if !is_synced {
            verdict.violations.push(id.to_owned());
        }
    }
    Ok(verdict)
}

fn calls(trace: &str) -> Result<Vec<Call<'_>>> {
    let mut calls: Vec<Call> = Vec::new();
    // The call that each thread is in.
    let mut open: HashMap<&str, usize> = HashMap::new();
    for (place, line) in trace.lines().enumerate() {
        let line_error = || format!("line {} of the trace can't be read: {line:.120}", place + 1);
        let (thread, rest) = line.split_once(' ').with_context(line_error)?;
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if rest.starts_with("<...") {
            // Of a call that began before the trace there is no beginning.
            if let Some(at) = open.remove(thread) {
                calls[at].end = place;
                calls[at].result = result(rest);
            }
            continue;
        }
        let (name, arguments) = rest.split_once('(').with_context(line_error)?;
        anyhow::ensure!(!arguments.contains("\"..."), "line {} of the trace is cut off", place + 1);
        if let Some(arguments) = arguments.strip_suffix("<unfinished ...>") {
            open.insert(thread, calls.len());
            calls.push(Call { name, arguments, begin: place, end: usize::MAX, result: None });
        } else {
            calls.push(Call { name, arguments, begin: place, end: place, result: result(rest) });
        }
    }
    Ok(calls)
}

/// The number behind the last `=`.
fn result(line: &str) -> Option<i64> {
    line.rsplit_once("= ")?.1.split_whitespace().next()?.parse().ok()
}

/// A write of a 2xx answer.
fn is_acceptance(call: &Call) -> bool {
    call.arguments.contains("\"HTTP/1.1 2") && call.arguments.contains(ID)
}

/// The ids in an answer, with the place where it began.
fn ids<'a>(call: &Call<'a>) -> Vec<(&'a str, usize)> {
    let of_word = |at: usize| {
        let rest = &call.arguments[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        (&rest[..end], call.begin)
    };
    call.arguments.match_indices(ID).map(|(at, _)| of_word(at)).collect()
}

/// The file that a call is about, if that is the database's log.
fn log_file<'a>(call: &Call<'a>) -> Option<&'a str> {
    let (_, rest) = call.arguments.split_once('<')?;
    let (file, _) = rest.split_once('>')?;
    (file.ends_with("-wal") || file.contains("/pg_wal/")).then_some(file)
}
