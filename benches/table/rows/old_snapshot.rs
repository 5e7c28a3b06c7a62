//! A transaction that stays open, so that nothing which has changed since can be cleaned up.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{begin, mib, note};
use crate::bench::{Bench, Sample, World};
use crate::database::Engine;

/// Messages a second that are due at once, which need no claim.
const NOW: u64 = 2000;
/// Messages a second that are due a second later, which do.
const LATER: u64 = 500;

pub(super) fn old_snapshot(bench: &Bench, engine: Engine) -> Result<()> {
    let world = World::start(bench, engine, None)?;
    let part = bench.or_quick(30, 3);
    begin(bench, |load| {
        load.rate = Some(NOW);
        load.seconds = Some(bench.or_quick(5, 1));
    })?;
    world.warm_up()?;
    let measure = |name: &str| -> Result<[Sample; 2]> {
        let mut now = world.publish()?;
        now.load.rate = Some(NOW);
        now.load.seconds = Some(part);
        let mut later = world.publish()?;
        later.load.rate = Some(LATER);
        later.load.seconds = Some(part);
        later.load.headers.push(("Upstash-Delay".to_owned(), "1s".to_owned()));
        later.load.due_after_s = 1;
        let mut samples = bench.measure(&world.watched(), &[now, later])?;
        let pair = [samples.remove(0), samples.remove(0)];
        pair[0].print(name, bench)?;
        pair[1].print("  due 1 s later", bench)?;
        Ok(pair)
    };
    let before = measure("without")?;
    let snapshot = world.database.snapshot()?;
    let held = Instant::now();
    let hold = Duration::from_secs(bench.or_quick(60 * bench.args.minutes, 6));
    let mut sizes = Sizes::default();
    let mut last = before.clone();
    while held.elapsed() < hold {
        last = measure(&format!("held for {} s", held.elapsed().as_secs()))?;
        sizes.look(&world)?;
    }
    drop(snapshot);
    measure("let go")?;
    note(&format!(
        "p99 of the delivery in the end {:.2} times that without, of those due later {:.2} times",
        times(&last[0], &before[0]),
        times(&last[1], &before[1])
    ))?;
    match engine {
        Engine::Postgres => note(&format!("the hot table took up to {:.1} MiB", mib(sizes.hot_table))),
        Engine::Sqlite => {
            // What is left to write goes on making checkpoints.
            sleep(Duration::from_secs(bench.or_quick(30, 1)));
            note(&format!(
                "the write-ahead log took up to {:.1} MiB, and {:.1} MiB {} s after",
                mib(sizes.log),
                mib(world.database.wal_bytes()),
                part + bench.or_quick(30, 1)
            ))
        }
    }
}

fn times(sample: &Sample, before: &Sample) -> f64 {
    sample.delivery.p99 as f64 / before.delivery.p99.max(1) as f64
}

/// The most that was seen.
#[derive(Default)]
struct Sizes {
    hot_table: u64,
    log: u64,
}

impl Sizes {
    fn look(&mut self, world: &World) -> Result<()> {
        if world.database.engine == Engine::Postgres {
            self.hot_table = self.hot_table.max(world.database.hot_table_bytes()?);
        }
        self.log = self.log.max(world.database.wal_bytes());
        Ok(())
    }
}
