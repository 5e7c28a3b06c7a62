//! What is limited: queues and flow-control keys.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::{begin, closed, note, skip};
use crate::bench::{Bench, Publish, Sample, World};
use crate::database::Engine;
use crate::message::OWN;

pub(super) fn fifo(bench: &Bench, engine: Engine) -> Result<()> {
    let world = World::start(bench, engine, None)?;
    let queue = r#"{"queueName":"bench","parallelism":1,"paused":false}"#;
    let (status, answer) = world.server()?.call("POST", "/v2/queues", &[], queue)?;
    if status >= 300 {
        return skip(&format!("this server does not make queues: {status} {answer}"));
    }
    let messages = bench.count(20_000, 500);
    begin(bench, |load| load.messages = Some(messages))?;
    world.warm_up()?;
    let mut publish = world.publish()?;
    publish.load.messages = Some(messages);
    publish.load.target = publish.load.target.replace("/v2/publish/", "/v2/enqueue/bench/");
    world.measure(publish)?.print("parallelism 1", bench)?;
    note("the delivery's times are mostly waiting: messages are accepted faster than the queue lets them go")
}

pub(super) fn flow(bench: &Bench, engine: Engine) -> Result<()> {
    let world = World::start(bench, engine, None)?;
    let under = |key: &str| {
        let fields = [("Upstash-Flow-Control-Key", key), ("Upstash-Flow-Control-Value", "parallelism=100")];
        fields.map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let probe = format!("/v2/publish/http://{}/", bench.ports.silent);
    let (status, answer) = world.server()?.call("POST", &probe, &under("probe"), "")?;
    if status >= 300 {
        return skip(&format!("this server does not take flow control: {status} {answer}"));
    }
    let messages = bench.count(50_000, 1000);
    begin(bench, |load| load.messages = Some(messages))?;
    world.warm_up()?;
    let mut publish = world.publish()?;
    publish.load.messages = Some(messages);
    publish.load.headers.extend(under("bench"));
    world.measure(publish)?.print("parallelism 100", bench)
}

/// What limits messages one by one.
#[derive(Clone, Copy)]
enum Own {
    Queue,
    Key,
}

impl Own {
    const BOTH: [Self; 2] = [Self::Queue, Self::Key];

    const fn name(self) -> &'static str {
        match self {
            Self::Queue => "own queues",
            Self::Key => "own keys",
        }
    }

    /// Messages each with a queue or a key of its own, of so many.
    fn publish(self, world: &World, gates: u64) -> Result<Publish> {
        let mut publish = world.publish()?;
        publish.load.own_names = gates;
        match self {
            Self::Queue => {
                let enqueue = format!("/v2/enqueue/{OWN}/");
                publish.load.target = publish.load.target.replace("/v2/publish/", &enqueue);
            }
            Self::Key => {
                let fields =
                    [("Upstash-Flow-Control-Key", OWN), ("Upstash-Flow-Control-Value", "rate=100,period=60")];
                let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
                publish.load.headers.extend(fields);
            }
        }
        Ok(publish)
    }

    /// A message for each of so many.
    fn once_each(self, world: &World, gates: u64) -> Result<Sample> {
        let mut publish = self.publish(world, gates)?;
        publish.load.messages = Some(gates);
        world.measure(publish)
    }
}

/// What a gate takes to rest after its last message, and what belongs to that.
const REST: Duration = Duration::from_secs(10);

/// Each run finds its gates idle, those of the first run have to be made.
pub(super) fn own_gates(bench: &Bench, engine: Engine) -> Result<()> {
    let gates = bench.count(20_000, 500);
    begin(bench, |load| load.messages = Some(gates))?;
    for own in Own::BOTH {
        let world = World::start(bench, engine, None)?;
        world.warm_up()?;
        let mut shares = Vec::new();
        let mut slowest = f64::INFINITY;
        for run in 1..=bench.args.runs {
            let plain = closed(&world, gates)?;
            plain.print(&format!("plain {run}"), bench)?;
            let sample = own.once_each(&world, gates)?;
            sample.print(&format!("{} {run}", own.name()), bench)?;
            shares.push(sample.delivered_per_s / plain.delivered_per_s);
            slowest = slowest.min(sample.delivered_per_s);
        }
        let mut publish = own.publish(&world, gates)?;
        #[expect(clippy::cast_sign_loss, reason = "rates are positive")]
        let half = (slowest / 2.0) as u64;
        publish.load.rate = Some(half);
        publish.load.seconds = Some(bench.or_quick(20, 2));
        world.measure(publish)?.print("at half of the rate", bench)?;
        let shares: Vec<String> = shares.iter().map(|share| format!("{share:.2}")).collect();
        note(&format!("{}: {} of the plain rate before", own.name(), shares.join(", ")))?;
    }
    Ok(())
}

pub(super) fn idle_gates(bench: &Bench, engine: Engine) -> Result<()> {
    let gates = bench.count(100_000, 1000);
    let messages = bench.or_quick(50_000, 500);
    begin(bench, |load| load.messages = Some(messages))?;
    // The same has gone through both, so that their tables are alike.
    let without = World::start(bench, engine, None)?;
    without.warm_up()?;
    closed(&without, gates)?.print("plain before", bench)?;
    let with = World::start(bench, engine, None)?;
    with.warm_up()?;
    for own in Own::BOTH {
        own.once_each(&with, gates / 2)?.print(&format!("{} before", own.name()), bench)?;
    }
    sleep(if bench.args.quick { Duration::from_secs(1) } else { REST });
    let mut rates = Vec::new();
    let mut costs = Vec::new();
    for run in 1..=bench.args.runs {
        let none = closed(&without, messages)?;
        none.print(&format!("without {run}"), bench)?;
        let idle = closed(&with, messages)?;
        idle.print(&format!("with {run}"), bench)?;
        rates.push(idle.delivered_per_s / none.delivered_per_s);
        let cost = |sample: &Sample| sample.cpu.server + sample.cpu.database;
        costs.push(cost(&idle) / cost(&none));
    }
    for values in [&mut rates, &mut costs] {
        values.sort_by(f64::total_cmp);
    }
    note(&format!(
        "beside idle queues and keys {:.3} of the rate, and {:.3} of the CPU a message (medians)",
        rates[rates.len() / 2],
        costs[costs.len() / 2]
    ))
}
