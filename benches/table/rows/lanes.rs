//! What is limited: queues and flow-control keys.

use anyhow::Result;

use super::{begin, note, skip};
use crate::bench::{Bench, World};
use crate::database::Engine;

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
