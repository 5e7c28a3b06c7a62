//! Large bodies: how fast they come in, and what memory that takes.

use anyhow::Result;

use super::{begin, mib, note};
use crate::bench::{Bench, Sample, Watched, World};
use crate::child::{self, Helper};
use crate::database::Engine;
use crate::load::Load;
use crate::procs;

const BODY: usize = 1 << 20;

pub(super) fn large(bench: &Bench, engine: Engine) -> Result<()> {
    let messages = bench.count(500, 70);
    let like = |load: &mut Load| {
        load.messages = Some(messages);
        load.bytes = BODY;
    };
    let world = World::start(bench, engine, None)?;
    begin(bench, like)?;
    let (bare, address) = Helper::start(child::role("@bare")?)?;
    let mut publish = world.publish()?;
    like(&mut publish.load);
    publish.load.addresses = vec![address.parse()?];
    "/".clone_into(&mut publish.load.target);
    publish.delivered = false;
    let watched = Watched { servers: vec![bare.pid()], database: None };
    let to_bare = bench.measure(&watched, &[publish])?.remove(0);
    to_bare.print("bare server", bench)?;
    let mut publish = world.publish()?;
    like(&mut publish.load);
    let to_server = world.measure(publish)?;
    to_server.print("server", bench)?;
    let rate = |sample: &Sample| sample.accepted_per_s * mib(BODY as u64);
    let peak = |pid| procs::peak_memory_kib(pid) as f64 / 1024.0;
    note(&format!(
        "{:.0} MiB/s in, at most {:.0} MiB of memory; the bare server {:.0} MiB/s, {:.0} MiB",
        rate(&to_server),
        peak(world.server()?.pid()),
        rate(&to_bare),
        peak(bare.pid())
    ))
}
