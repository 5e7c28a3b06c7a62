//! Rates and latencies of a server that has nothing else to do.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{begin, closed, note, skip};
use crate::bench::{BYTES, Bench, Publish, Sample, Watched, World};
use crate::database::Engine;
use crate::procs;
use crate::shim::Shim;

pub(super) fn throughput(bench: &Bench, engine: Engine) -> Result<()> {
    median_of_runs(bench, &World::start(bench, engine, None)?)
}

pub(super) fn slow_sync(bench: &Bench, engine: Engine) -> Result<()> {
    let shim = Shim::delay(bench.place.path(), Duration::from_millis(2))?;
    median_of_runs(bench, &World::start(bench, engine, Some(&shim))?)
}

fn median_of_runs(bench: &Bench, world: &World) -> Result<()> {
    let messages = bench.count(50_000, 1000);
    let direct = begin(bench, |load| load.messages = Some(messages))?;
    world.warm_up()?;
    let mut samples = Vec::new();
    for run in 1..=bench.args.runs {
        let sample = closed(world, messages)?;
        sample.print(&format!("run {run}"), bench)?;
        samples.push(sample);
    }
    samples.sort_by(|a, b| a.delivered_per_s.total_cmp(&b.delivered_per_s));
    let median = &samples[samples.len() / 2];
    median.print("median", bench)?;
    note(&format!("{:.1} % of direct", 100.0 * median.delivered_per_s / direct.delivered_per_s))
}

pub(super) fn callbacks(bench: &Bench, engine: Engine) -> Result<()> {
    let messages = bench.count(30_000, 1000);
    let world = World::start(bench, engine, None)?;
    begin(bench, |load| load.messages = Some(messages))?;
    world.warm_up()?;
    let mut publish = world.publish()?;
    let callback = bench.stream();
    publish.load.messages = Some(messages);
    publish
        .load
        .headers
        .push(("Upstash-Callback".to_owned(), format!("http://{}/s/{callback}", bench.ports.main)));
    publish.callback = Some(callback);
    world.measure(publish)?.print("with callbacks", bench)?;
    note("delivered: messages whose callback has come too; the delivery's times are the callback's")
}

pub(super) fn latency(bench: &Bench, engine: Engine) -> Result<()> {
    let rate = Some(2000);
    let world = World::start(bench, engine, None)?;
    begin(bench, |load| {
        load.rate = rate;
        load.seconds = Some(bench.or_quick(5, 1));
    })?;
    world.warm_up()?;
    let mut publish = world.publish()?;
    publish.load.rate = rate;
    publish.load.seconds = Some(bench.or_quick(20, 2));
    world.measure(publish)?.print("2000/s", bench)
}

pub(super) fn single(bench: &Bench, engine: Engine) -> Result<()> {
    let messages = bench.count(3000, 100);
    let world = World::start(bench, engine, None)?;
    begin(bench, |load| {
        load.messages = Some(messages);
        load.connections = 1;
    })?;
    world.warm_up()?;
    let commits = world.database.commits(messages, BYTES)?;
    let mut publish = world.publish()?;
    publish.load.messages = Some(messages);
    publish.load.connections = 1;
    let sample = world.measure(publish)?;
    sample.print("one at a time", bench)?;
    let ms = |us: u64| us as f64 / 1000.0;
    note(&format!(
        "one row's commit takes p50 {:.2} p99 {:.2} ms; a publish {:.1} times as long (p50)",
        ms(commits.p50),
        ms(commits.p99),
        sample.publish.p50 as f64 / commits.p50.max(1) as f64
    ))
}

pub(super) fn batch(bench: &Bench, engine: Engine) -> Result<()> {
    let world = World::start(bench, engine, None)?;
    if !world.has_batches()? {
        return skip("this server answers 404 to /v2/batch");
    }
    let messages = bench.count(100_000, 2000);
    begin(bench, |load| load.messages = Some(messages))?;
    world.warm_up()?;
    let mut publish = world.publish_many(&[])?;
    publish.load.messages = Some(messages);
    world.measure(publish)?.print("requests of 100", bench)?;
    note("the times of a publish are those of a request")
}

pub(super) fn idle(bench: &Bench, engine: Engine) -> Result<()> {
    let world = World::start(bench, engine, None)?;
    // What belongs to the start.
    sleep(Duration::from_secs(bench.or_quick(5, 1)));
    let pid = world.server()?.pid();
    let database = || world.database.pid().map_or(0, procs::tree_cpu_us);
    let before = (procs::cpu_us(pid), procs::sleeps(pid), database(), Instant::now());
    sleep(Duration::from_secs(bench.or_quick(60, 3)));
    let seconds = before.3.elapsed().as_secs_f64();
    let per_s = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
    note(&format!(
        "{:.1} MiB, {:.1} wake-ups a second, CPU {:.2} ms a second, of the database {:.2} ms",
        procs::memory_kib(pid) as f64 / 1024.0,
        per_s(procs::sleeps(pid), before.1),
        per_s(procs::cpu_us(pid), before.0) / 1000.0,
        per_s(database(), before.2) / 1000.0,
    ))
}

/// Messages a second to each node where the machine is not to be busy.
const EACH_NODE: u64 = 5000;

pub(super) fn two_nodes(bench: &Bench, engine: Engine) -> Result<()> {
    let messages = bench.count(50_000, 1000);
    let world = World::start(bench, engine, None)?;
    begin(bench, |load| load.messages = Some(messages))?;
    world.warm_up()?;
    let one = closed(&world, messages)?;
    one.print("one node", bench)?;
    // Below what the machine can do, so that what differs is not how busy it is.
    let at_rate = |publish: &mut Publish, nodes| {
        publish.load.rate = Some(nodes * EACH_NODE);
        publish.load.seconds = Some(bench.or_quick(10, 1));
    };
    let mut publish = world.publish()?;
    at_rate(&mut publish, 1);
    let one_calm = world.measure(publish)?;
    one_calm.print(&format!("one at {EACH_NODE}/s"), bench)?;
    let other = world.another_server()?;
    let both = |change: &dyn Fn(&mut Publish)| -> Result<Sample> {
        let watched = world.watched();
        let watched = Watched { servers: [watched.servers, vec![other.pid()]].concat(), ..watched };
        let mut publish = world.publish()?;
        publish.load.addresses.push(other.address);
        change(&mut publish);
        Ok(bench.measure(&watched, &[publish])?.remove(0))
    };
    both(&|publish| publish.load.messages = Some(bench.or_quick(2000, 200)))?;
    let two_calm = both(&|publish| at_rate(publish, 2))?;
    two_calm.print("two at as much each", bench)?;
    let two = both(&|publish| publish.load.messages = Some(messages))?;
    two.print("two nodes", bench)?;
    let busy = both(&|publish| {
        publish.load.messages = Some(messages);
        publish.load.connections *= 2;
    })?;
    busy.print("twice the load", bench)?;
    other.stop()?;
    let sum = |sample: &Sample| sample.cpu.server + sample.cpu.database;
    note(&format!(
        "server and database take {:.1} µs a message on one node, {:.1} on two: {:.2} times as much; {:.2} times with \
         as many connections to each as to the one, which make as large batches; {:.2} times at {EACH_NODE} a second each",
        sum(&one),
        sum(&two),
        sum(&two) / sum(&one),
        sum(&busy) / sum(&one),
        sum(&two_calm) / sum(&one_calm)
    ))
}
