//! Measuring: a load, a sink, what the processes between them use meanwhile, and the line of the table that comes of it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::args::Args;
use crate::arrivals::Stats;
use crate::child::{self, Helper, Job};
use crate::database::{Database, Engine};
use crate::histogram::Percentiles;
use crate::load::{Batch, Load, Report};
use crate::procs;
use crate::server::{Server, Setup, authorization};
use crate::shim::Shim;
use crate::sink::Ports;
use crate::{http, print_line};

/// A message that has not come after nothing new came for so long is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a body, unless a load says otherwise.
pub(crate) const BYTES: usize = 200;

/// From this share of the machine on, what ran besides is worth a warning.
const LOUD: f64 = 0.1;

/// What all rows share.
pub(crate) struct Bench {
    pub(crate) args: Args,
    /// Gone at the end.
    pub(crate) place: TempDir,
    sink: Helper,
    pub(crate) ports: Ports,
    streams: Cell<u16>,
    faults: Cell<u32>,
}

impl Bench {
    pub(crate) fn start(args: Args, place: TempDir) -> Result<Self> {
        let (sink, ports) = Helper::start(child::role("@sink")?)?;
        let ports = serde_json::from_str(&ports)?;
        Ok(Self { args, place, sink, ports, streams: Cell::new(0), faults: Cell::new(0) })
    }

    /// A number of messages: what was asked for, or the row's own, or its quick one.
    pub(crate) fn count(&self, full: u64, quick: u64) -> u64 {
        self.args.messages.unwrap_or_else(|| self.or_quick(full, quick))
    }

    pub(crate) const fn or_quick(&self, full: u64, quick: u64) -> u64 {
        if self.args.quick { quick } else { full }
    }

    /// Notes something that no sound server does; the program then fails in the end.
    pub(crate) fn fault(&self, text: &str) -> Result<()> {
        self.faults.set(self.faults.get() + 1);
        print_line(&format!("  FAULT: {text}"))
    }

    pub(crate) const fn faults(&self) -> u32 {
        self.faults.get()
    }

    /// A stream of the sink that nothing has been sent to.
    pub(crate) fn stream(&self) -> u16 {
        self.streams.replace(self.streams.get() + 1)
    }

    pub(crate) fn stats(&self, stream: u16, sent: u64) -> Result<Stats> {
        let target = format!("/stats/{stream}?sent={sent}");
        Ok(serde_json::from_str(&http::call(self.ports.main, "GET", &target, &[], "")?.1)?)
    }

    /// A load straight to the sink.
    fn direct(&self) -> Publish {
        let stream = self.stream();
        let load = Load {
            addresses: vec![self.ports.main],
            target: format!("/s/{stream}"),
            headers: Vec::new(),
            connections: usize::from(self.args.connections),
            messages: None,
            seconds: None,
            rate: None,
            bytes: BYTES,
            batch: None,
            due_after_s: 0,
            own_names: 1,
        };
        Publish { load, stream, callback: None, delivered: true }
    }

    /// Runs a load like the given one straight to the sink and prints its line: what the machine can do at this moment.
    pub(crate) fn measure_direct(&self, like: impl FnOnce(&mut Load)) -> Result<Sample> {
        let mut publish = self.direct();
        like(&mut publish.load);
        let sample = self.measure(&Watched::default(), &[publish])?.remove(0);
        sample.print("direct", self)?;
        Ok(sample)
    }

    /// Runs loads at the same time until all is delivered; a sample for each.
    pub(crate) fn measure(&self, watched: &Watched, publishes: &[Publish]) -> Result<Vec<Sample>> {
        let span = self.begin(watched);
        let running = publishes.iter().map(Publish::start).collect::<Result<Vec<_>>>()?;
        let reports = running.into_iter().map(Running::result).collect::<Result<Vec<_>>>()?;
        let results = publishes.iter().zip(reports);
        let results = results.map(|(publish, report)| {
            let stats = self.delivered(publish, &report)?;
            Ok((publish, report, stats))
        });
        let results = results.collect::<Result<Vec<_>>>()?;
        let messages = results.iter().map(|(_, report, _)| report.accepted).sum();
        Ok(span.end(messages, &results))
    }

    /// Begins to look at what the processes use.
    pub(crate) fn begin<'a>(&'a self, watched: &'a Watched) -> Span<'a> {
        Span { bench: self, watched, before: self.usage(watched) }
    }

    /// Waits until what was accepted is delivered, or nothing new comes.
    pub(crate) fn delivered(&self, publish: &Publish, report: &Report) -> Result<Stats> {
        if !publish.delivered {
            return Ok(Stats::default());
        }
        let mut stats = self.wait_for(publish.stream, report)?;
        if let Some(callback) = publish.callback {
            let callbacks = self.wait_for(callback, report)?;
            stats.last_us = stats.last_us.max(callbacks.last_us);
            stats.duplicates += callbacks.duplicates;
            stats.missing.extend(callbacks.missing);
            stats.latency = callbacks.latency;
        }
        Ok(stats)
    }

    fn wait_for(&self, stream: u16, report: &Report) -> Result<Stats> {
        let mut count = report.accepted;
        loop {
            let last = self.wait_for_count(stream, count)?;
            let mut stats = self.stats(stream, report.sent())?;
            // Those in requests that failed may come or not.
            if !report.failed.is_empty() {
                stats.missing.retain(|number| report.failed.binary_search(number).is_err());
            }
            if stats.missing.is_empty() || last < count {
                return Ok(stats);
            }
            count = stats.unique + 1;
        }
    }

    /// Waits until so many different messages have come, or nothing new comes; how many it were.
    pub(crate) fn wait_for_count(&self, stream: u16, count: u64) -> Result<u64> {
        let mut last = (0, Instant::now());
        loop {
            let unique = self.stats(stream, 0)?.unique;
            if unique != last.0 {
                last = (unique, Instant::now());
            }
            if unique >= count || last.1.elapsed() > PATIENCE {
                return Ok(unique);
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn usage(&self, watched: &Watched) -> Usage {
        Usage {
            at: Instant::now(),
            server_us: watched.servers.iter().map(|pid| procs::cpu_us(*pid)).sum(),
            database_us: watched.database.map_or(0, procs::tree_cpu_us),
            sink_us: procs::cpu_us(self.sink.pid()),
            driver_us: procs::cpu_us(std::process::id()),
            machine_us: procs::machine_cpu_us(),
        }
    }
}

/// A time over which the processes' use is measured.
pub(crate) struct Span<'a> {
    bench: &'a Bench,
    watched: &'a Watched,
    before: Usage,
}

impl Span<'_> {
    /// A sample for each load, with the use shared out over that many messages.
    pub(crate) fn end(self, messages: u64, results: &[(&Publish, Report, Stats)]) -> Vec<Sample> {
        let used = self.bench.usage(self.watched).since(&self.before);
        let load_us = results.iter().map(|(_, report, _)| report.cpu_us).sum();
        let cpu = used.per_message(messages.max(1), load_us);
        let other_share = used.other_us(load_us) as f64 / used.capacity_us() as f64;
        let memory_kib = self.watched.servers.iter().map(|pid| procs::memory_kib(*pid)).sum();
        let sample = |(publish, report, stats): &(&Publish, Report, Stats)| {
            Sample::new(publish, report, stats, cpu, other_share, memory_kib)
        };
        results.iter().map(sample).collect()
    }
}

/// The processes under test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    pub(crate) servers: Vec<u32>,
    pub(crate) database: Option<u32>,
}

/// A load, and where its messages arrive.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    pub(crate) load: Load,
    pub(crate) stream: u16,
    /// The stream of its callbacks.
    pub(crate) callback: Option<u16>,
    /// Whether its messages are delivered during the measurement.
    pub(crate) delivered: bool,
}

impl Publish {
    pub(crate) fn start(&self) -> Result<Running> {
        let mut command = child::role("@load")?;
        command.arg(serde_json::to_string(&self.load)?);
        Ok(Running { job: Job::start(command)? })
    }
}

/// A load at work.
pub(crate) struct Running {
    job: Job,
}

impl Running {
    /// Waits for its end.
    pub(crate) fn result(self) -> Result<Report> {
        let mut report: Report = serde_json::from_str(&self.job.result().context("the load")?)?;
        report.failed.sort_unstable();
        Ok(report)
    }

    /// Ends it.
    pub(crate) fn stop(mut self) -> Result<Report> {
        self.job.stop();
        self.result()
    }
}

/// A row's database, and the server on it.
pub(crate) struct World<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) database: Database,
    setup: Setup,
    pub(crate) server: Option<Server>,
}

impl<'a> World<'a> {
    /// A fresh database with a server on it, both under a shim, if there is one.
    pub(crate) fn start(bench: &'a Bench, engine: Engine, shim: Option<&Shim>) -> Result<Self> {
        let database = Database::create(engine, bench.place.path(), shim)?;
        let setup = Setup {
            binary: bench.args.server.clone(),
            directory: database.directory().to_owned(),
            database_url: database.url(),
            node: "node-1",
            environment: shim.map(|shim| shim.environment().to_vec()).unwrap_or_default(),
        };
        let mut world = Self { bench, database, setup, server: None };
        world.start_server()?;
        if let Some(shim) = shim {
            let loaded = procs::has_loaded(world.server()?.pid(), shim.library());
            anyhow::ensure!(loaded, "the server did not load {}", shim.library().display());
        }
        Ok(world)
    }

    pub(crate) fn start_server(&mut self) -> Result<()> {
        self.server = Some(Server::start(&self.setup)?);
        Ok(())
    }

    pub(crate) fn stop_server(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), Server::stop)
    }

    /// A further server on the same database.
    pub(crate) fn another_server(&self) -> Result<Server> {
        Server::start(&Setup { node: "node-2", ..self.setup.clone() })
    }

    pub(crate) fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("the server is stopped")
    }

    pub(crate) fn watched(&self) -> Watched {
        let servers = self.server.iter().map(Server::pid).collect();
        Watched { servers, database: self.database.pid() }
    }

    /// Messages to a stream of the sink, one a request, as fast as they are answered.
    pub(crate) fn publish(&self) -> Result<Publish> {
        self.publish_to(self.bench.ports.main)
    }

    /// The same to one of the sink's other ports.
    pub(crate) fn publish_to(&self, port: SocketAddr) -> Result<Publish> {
        let mut publish = self.bench.direct();
        publish.load.target = format!("/v2/publish/http://{port}{}", publish.load.target);
        publish.load.addresses = vec![self.server()?.address];
        publish.load.headers.push(authorization());
        Ok(publish)
    }

    /// Messages in requests of a hundred, where the server knows them; else one a request.
    pub(crate) fn publish_many(&self, headers: &[(String, String)]) -> Result<Publish> {
        let mut publish = self.publish()?;
        if self.has_batches()? {
            let destination = format!("http://{}/s/{}", self.bench.ports.main, publish.stream);
            "/v2/batch".clone_into(&mut publish.load.target);
            publish.load.batch = Some(Batch { size: 100, destination, headers: headers.to_vec() });
            publish.load.connections = 8;
        } else {
            publish.load.headers.extend_from_slice(headers);
        }
        Ok(publish)
    }

    pub(crate) fn has_batches(&self) -> Result<bool> {
        Ok(self.server()?.call("POST", "/v2/batch", &[], "[]")?.0 != 404)
    }

    /// Runs one load to its end.
    pub(crate) fn measure(&self, publish: Publish) -> Result<Sample> {
        Ok(self.bench.measure(&self.watched(), &[publish])?.remove(0))
    }

    /// Lets connections open and caches fill.
    pub(crate) fn warm_up(&self) -> Result<()> {
        let mut publish = self.publish()?;
        publish.load.messages = Some(self.bench.or_quick(2000, 200));
        self.measure(publish)?;
        Ok(())
    }
}

/// CPU time used so far.
struct Usage {
    at: Instant,
    server_us: u64,
    database_us: u64,
    sink_us: u64,
    driver_us: u64,
    machine_us: u64,
}

/// CPU time used in between.
struct Used {
    elapsed: Duration,
    server_us: u64,
    database_us: u64,
    sink_us: u64,
    driver_us: u64,
    machine_us: u64,
}

impl Usage {
    fn since(&self, before: &Self) -> Used {
        Used {
            elapsed: self.at - before.at,
            server_us: self.server_us.saturating_sub(before.server_us),
            database_us: self.database_us.saturating_sub(before.database_us),
            sink_us: self.sink_us.saturating_sub(before.sink_us),
            driver_us: self.driver_us.saturating_sub(before.driver_us),
            machine_us: self.machine_us.saturating_sub(before.machine_us),
        }
    }
}

impl Used {
    fn capacity_us(&self) -> u64 {
        let cores = available_parallelism().map_or(1, |cores| cores.get() as u64);
        (u64::try_from(self.elapsed.as_micros()).unwrap_or(u64::MAX) * cores).max(1)
    }

    fn other_us(&self, load_us: u64) -> u64 {
        let known = self.server_us + self.database_us + self.sink_us + self.driver_us + load_us;
        self.machine_us.saturating_sub(known)
    }

    fn per_message(&self, messages: u64, load_us: u64) -> Cpu {
        let per = |us: u64| us as f64 / messages as f64;
        Cpu {
            server: per(self.server_us),
            database: per(self.database_us),
            load: per(load_us),
            sink: per(self.sink_us),
            other: per(self.other_us(load_us)),
        }
    }
}

/// Microseconds of CPU for each accepted message of a measurement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) server: f64,
    pub(crate) database: f64,
    pub(crate) load: f64,
    pub(crate) sink: f64,
    /// Of all that ran besides.
    pub(crate) other: f64,
}

/// One load's figures.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) accepted: u64,
    pub(crate) accepted_per_s: f64,
    /// Different messages from the first publish to the last delivery; 0 when nothing was to be delivered.
    pub(crate) delivered_per_s: f64,
    pub(crate) publish: Percentiles,
    /// With callbacks, theirs.
    pub(crate) delivery: Percentiles,
    pub(crate) cpu: Cpu,
    /// What ran besides, as a share of the machine's time.
    pub(crate) other_share: f64,
    /// Of the servers.
    pub(crate) memory_kib: u64,
    errors: u64,
    first_error: Option<String>,
    lost: u64,
    duplicates: u64,
    foreign: u64,
}

impl Sample {
    fn new(
        publish: &Publish,
        report: &Report,
        stats: &Stats,
        cpu: Cpu,
        other_share: f64,
        memory_kib: u64,
    ) -> Self {
        let start_us = report.start_us + publish.load.due_after_s * 1_000_000;
        let seconds = stats.last_us.saturating_sub(start_us).max(1) as f64 / 1e6;
        let delivered_per_s = stats.unique as f64 / seconds;
        Self {
            accepted: report.accepted,
            accepted_per_s: report.accepted_per_s(),
            delivered_per_s,
            publish: report.publish,
            delivery: stats.latency,
            cpu,
            other_share,
            memory_kib,
            errors: report.failed.len() as u64,
            first_error: report.first_error.clone(),
            lost: if publish.delivered { stats.missing.len() as u64 } else { 0 },
            duplicates: stats.duplicates,
            foreign: stats.foreign,
        }
    }

    /// Prints its line under [`print_columns`]'s, and a line for each thing that is wrong with it.
    pub(crate) fn print(&self, name: &str, bench: &Bench) -> Result<()> {
        let ms = |us: u64| format!("{:.2}", us as f64 / 1000.0);
        let rate = |rate: f64| if rate > 0.0 { format!("{rate:.0}") } else { "-".to_owned() };
        let latencies = |p: &Percentiles| {
            let values = [p.p50, p.p99, p.p999].map(|us| if p.count == 0 { "-".to_owned() } else { ms(us) });
            format!("{:>8} {:>8} {:>8}", values[0], values[1], values[2])
        };
        let Cpu { server, database, load, sink, other } = self.cpu;
        print_line(&format!(
            "  {name:<20} {:>8} {:>8} | {} | {} | {server:>6.1} {database:>6.1} {load:>5.1} {sink:>5.1} {other:>6.1} | {:>6.0}",
            rate(self.accepted_per_s),
            rate(self.delivered_per_s),
            latencies(&self.publish),
            latencies(&self.delivery),
            self.memory_kib as f64 / 1024.0,
        ))?;
        if self.errors > 0 {
            let error = self.first_error.as_deref().unwrap_or_default();
            bench.fault(&format!("{} publishes failed; the first: {error:.300}", self.errors))?;
        }
        if self.lost + self.duplicates + self.foreign > 0 {
            bench.fault(&format!(
                "{} lost, {} duplicates, {} deliveries that could not be read",
                self.lost, self.duplicates, self.foreign
            ))?;
        }
        if self.other_share > LOUD {
            print_line(&format!(
                "  noisy: others took {:.0} % of the machine meanwhile",
                self.other_share * 100.0
            ))?;
        }
        Ok(())
    }
}

/// The heads of the columns of [`Sample::print`].
pub(crate) fn print_columns() -> Result<()> {
    print_line(&format!(
        "  {:<20} {:>8} {:>8} | {:^26} | {:^26} | {:^32} | {:>6}",
        "", "accepted", "deliv'd", "publish ms", "delivery ms", "µs of CPU a message", "server"
    ))?;
    print_line(&format!(
        "  {:<20} {:>8} {:>8} | {:>8} {:>8} {:>8} | {:>8} {:>8} {:>8} | {:>6} {:>6} {:>5} {:>5} {:>6} | {:>6}",
        "",
        "/s",
        "/s",
        "p50",
        "p99",
        "p99.9",
        "p50",
        "p99",
        "p99.9",
        "server",
        "db",
        "load",
        "sink",
        "other",
        "MiB"
    ))
}
