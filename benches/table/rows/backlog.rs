//! What waits in the store, and what that does to the rest.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::{begin, closed, mib, note};
use crate::bench::{Bench, Publish, Sample, World};
use crate::database::Engine;
use crate::procs::{self, now_us};

/// Messages a second beside a drain.
const LIGHT: u64 = 200;
/// Messages a second to the healthy destination.
const HEALTHY: u64 = 500;

pub(super) fn dead_destination(bench: &Bench, engine: Engine) -> Result<()> {
    let world = World::start(bench, engine, None)?;
    let seconds = bench.or_quick(20, 3);
    begin(bench, |load| {
        load.rate = Some(HEALTHY);
        load.seconds = Some(bench.or_quick(5, 1));
    })?;
    world.warm_up()?;
    let healthy = || -> Result<Sample> {
        let mut publish = world.publish()?;
        publish.load.rate = Some(HEALTHY);
        publish.load.seconds = Some(seconds);
        world.measure(publish)
    };
    let alone = healthy()?;
    alone.print("healthy alone", bench)?;
    let mut dead = world.publish_to(bench.ports.silent)?;
    dead.load.messages = Some(bench.count(100_000, 2000));
    dead.delivered = false;
    world.measure(dead)?.print("to the dead one", bench)?;
    let beside = healthy()?;
    beside.print("healthy beside it", bench)?;
    note(&format!(
        "p99 of the delivery beside it: {:.2} times that alone",
        beside.delivery.p99 as f64 / alone.delivery.p99.max(1) as f64
    ))
}

pub(super) fn drain(bench: &Bench, engine: Engine) -> Result<()> {
    let messages = bench.count(100_000, 2000);
    let mut world = World::start(bench, engine, None)?;
    let light = |world: &World| -> Result<Publish> {
        // Another origin than that of the messages that drain: else these would have to go first.
        let mut publish = world.publish_to(bench.ports.other)?;
        publish.load.rate = Some(LIGHT);
        Ok(publish)
    };
    begin(bench, |load| {
        load.rate = Some(LIGHT);
        load.seconds = Some(bench.or_quick(5, 1));
    })?;
    world.warm_up()?;
    let mut alone = light(&world)?;
    alone.load.seconds = Some(bench.or_quick(10, 2));
    let alone = world.measure(alone)?;
    alone.print("light load alone", bench)?;

    // All due at the same second, after the server is stopped: the time that 2,000 a second would take, and some more.
    let due = SystemTime::now() + Duration::from_secs(5 + messages / 2000);
    let due_s = due.duration_since(SystemTime::UNIX_EPOCH)?.as_secs() + 1;
    let waiting = world.publish_many(&[("Upstash-Not-Before".to_owned(), due_s.to_string())])?;
    let mut waiting = Publish { delivered: false, ..waiting };
    waiting.load.messages = Some(messages);
    let published = world.measure(waiting.clone())?;
    published.print("what shall drain", bench)?;
    world.stop_server()?;
    ensure!(SystemTime::now() < due, "the messages were due before all of them were published");
    let until_due = due + Duration::from_secs(2);
    sleep(until_due.duration_since(SystemTime::now()).unwrap_or_default());

    let started_us = now_us();
    world.start_server()?;
    let ready_after = world.server()?.ready_after;
    let watched = world.watched();
    let span = bench.begin(&watched);
    let beside = light(&world)?;
    let running = beside.start()?;
    bench.wait_for_count(waiting.stream, published.accepted)?;
    let drained = bench.stats(waiting.stream, 0)?;
    let report = running.stop()?;
    let stats = bench.delivered(&beside, &report)?;
    let accepted = report.accepted;
    let beside = span.end(drained.unique + accepted, &[(&beside, report, stats)]).remove(0);
    beside.print("light load beside it", bench)?;
    let seconds = |from: u64| drained.last_us.saturating_sub(from).max(1) as f64 / 1e6;
    note(&format!(
        "{} drained in {:.2} s = {:.0}/s, {:.2} s after the start of the process, which was ready after {:.3} s",
        drained.unique,
        seconds(drained.first_us),
        drained.unique as f64 / seconds(drained.first_us),
        seconds(started_us),
        ready_after.as_secs_f64()
    ))?;
    note(&format!(
        "p99 of the light load's publish beside the drain: {:.2} times that alone; CPU is by message, drained ones too",
        beside.publish.p99 as f64 / alone.publish.p99.max(1) as f64
    ))?;
    if drained.duplicates > 0 || drained.unique < published.accepted {
        bench.fault(&format!(
            "of {} messages {} came, and {} of them again",
            published.accepted, drained.unique, drained.duplicates
        ))?;
    }
    Ok(())
}

pub(super) fn delayed(bench: &Bench, engine: Engine) -> Result<()> {
    let messages = bench.count(1_000_000, 5000);
    let some = bench.or_quick(20_000, 1000);
    let mut world = World::start(bench, engine, None)?;
    begin(bench, |load| load.messages = Some(some))?;
    world.warm_up()?;
    let before = closed(&world, some)?;
    before.print("before", bench)?;
    let mut waiting = world.publish_many(&[("Upstash-Delay".to_owned(), "1d".to_owned())])?;
    waiting.load.messages = Some(messages);
    waiting.delivered = false;
    world.measure(waiting)?.print("due in a day", bench)?;
    let beside = closed(&world, some)?;
    beside.print("beside these", bench)?;
    world.stop_server()?;
    world.start_server()?;
    sleep(Duration::from_secs(bench.or_quick(5, 1)));
    let server = world.server()?;
    let ready_after = server.ready_after;
    let memory = procs::memory_kib(server.pid()) as f64 / 1024.0;
    world.warm_up()?;
    closed(&world, some)?.print("after a start", bench)?;
    note(&format!(
        "beside them {:.2} times the rate before; ready {:.3} s after the start, with {memory:.0} MiB",
        beside.delivered_per_s / before.delivered_per_s,
        ready_after.as_secs_f64()
    ))
}

pub(super) fn churn(bench: &Bench, engine: Engine) -> Result<()> {
    const PARTS: u64 = 10;
    let part = (bench.count(5_000_000, 10_000) / PARTS).max(1);
    let world = World::start(bench, engine, None)?;
    begin(bench, |load| load.messages = Some(part.min(50_000)))?;
    world.warm_up()?;
    let mut samples = Vec::new();
    let mut sizes = Vec::new();
    for number in 1..=PARTS {
        let sample = closed(&world, part)?;
        sample.print(&format!("after {}", number * part), bench)?;
        sizes.push(world.database.hot_table_bytes()?);
        samples.push(sample);
    }
    let (first, last) = samples.first().zip(samples.last()).context("there are parts")?;
    note(&format!(
        "at the end {:.2} times the rate of the begin; the hot table took {:.2} MiB at first, {:.2} at most, {:.2} in the end",
        last.delivered_per_s / first.delivered_per_s,
        mib(sizes[0]),
        mib(sizes.iter().copied().max().unwrap_or(0)),
        mib(sizes[sizes.len() - 1])
    ))
}
