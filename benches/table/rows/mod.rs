//! The rows of the table. Each prints its lines; what no sound server does is a fault.

use anyhow::Result;

use crate::bench::{Bench, Sample, World, print_columns};
use crate::database::Engine;
use crate::load::Load;
use crate::print_line;

mod backlog;
mod basic;
mod durability;
mod lanes;
mod large;
mod old_snapshot;

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) engines: &'static [Engine],
    pub(crate) run: fn(&Bench, Engine) -> Result<()>,
}

const BOTH: &[Engine] = &Engine::ALL;

/// All of them, in the order in which they run.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "throughput",
        about: "50,000 messages over the connections as fast as they are answered, the median of some runs",
        engines: BOTH,
        run: basic::throughput,
    },
    Row {
        name: "slow-sync",
        about: "the same with 2 ms more for each fsync and fdatasync",
        engines: BOTH,
        run: basic::slow_sync,
    },
    Row {
        name: "callbacks",
        about: "30,000 messages with a callback each: two deliveries a message",
        engines: BOTH,
        run: basic::callbacks,
    },
    Row { name: "latency", about: "2,000 messages a second for 20 s", engines: BOTH, run: basic::latency },
    Row {
        name: "single",
        about: "one connection, one message at a time, beside a single row's commit",
        engines: BOTH,
        run: basic::single,
    },
    Row { name: "batch", about: "100,000 messages in requests of 100", engines: BOTH, run: basic::batch },
    Row {
        name: "large",
        about: "500 bodies of 1 MiB over 64 connections, beside a bare server",
        engines: BOTH,
        run: large::large,
    },
    Row { name: "idle", about: "a server with nothing to do for 60 s", engines: BOTH, run: basic::idle },
    Row {
        name: "fifo",
        about: "20,000 messages through one queue at parallelism 1",
        engines: BOTH,
        run: lanes::fifo,
    },
    Row {
        name: "flow",
        about: "50,000 messages under one flow-control key at parallelism 100",
        engines: BOTH,
        run: lanes::flow,
    },
    Row {
        name: "own-gates",
        about: "20,000 queues with a message each, then as many keys with a rate, beside plain messages",
        engines: BOTH,
        run: lanes::own_gates,
    },
    Row {
        name: "idle-gates",
        about: "plain messages beside 100,000 queues and keys that were used once, against none",
        engines: BOTH,
        run: lanes::idle_gates,
    },
    Row {
        name: "dead-destination",
        about: "100,000 messages for one that never answers, and 500 a second for a healthy one",
        engines: BOTH,
        run: backlog::dead_destination,
    },
    Row {
        name: "drain",
        about: "100,000 messages due at a start, and 200 a second beside them",
        engines: BOTH,
        run: backlog::drain,
    },
    Row {
        name: "delayed-1m",
        about: "1,000,000 messages due in a day: throughput, memory and start beside them",
        engines: BOTH,
        run: backlog::delayed,
    },
    Row {
        name: "two-nodes",
        about: "50,000 messages to two servers on one database",
        engines: &[Engine::Postgres],
        run: basic::two_nodes,
    },
    Row {
        name: "durability",
        about: "1,000 messages with every sync and answer traced: none may be answered before its sync",
        engines: BOTH,
        run: durability::durability,
    },
    Row {
        name: "old-snapshot",
        about: "2,500 messages a second while a transaction stays open for some minutes",
        engines: BOTH,
        run: old_snapshot::old_snapshot,
    },
    Row {
        name: "churn",
        about: "5,000,000 messages through the store: rates and the hot table's size from begin to end",
        engines: BOTH,
        run: backlog::churn,
    },
];

/// Says why a row is not measured.
fn skip(reason: &str) -> Result<()> {
    print_line(&format!("  skipped: {reason}"))
}

fn note(text: &str) -> Result<()> {
    print_line(&format!("  {text}"))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Messages as fast as they are answered, so many of them.
fn closed(world: &World, messages: u64) -> Result<Sample> {
    let mut publish = world.publish()?;
    publish.load.messages = Some(messages);
    world.measure(publish)
}

/// The columns, and how fast the same load gets to the sink without a server.
fn begin(bench: &Bench, like: impl FnOnce(&mut Load)) -> Result<Sample> {
    print_columns()?;
    bench.measure_direct(like)
}
