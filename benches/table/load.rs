//! The load: a process that publishes messages over some connections and reports what came of it.
//!
//! Each connection has one request in flight. Its request is written once; for each message only the digits of number
//! and time change. Nothing is allocated for a message.

use std::cell::{Cell, RefCell};
use std::io::Read as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::histogram::{Histogram, Percentiles};
use crate::message::{self, Slots};
use crate::procs::{self, now_us};
use crate::{http, print_line};

/// What to publish. It ends with the number of messages, with the time, or when standard input does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Servers; the connections take turns.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) connections: usize,
    pub(crate) messages: Option<u64>,
    pub(crate) seconds: Option<u64>,
    /// Messages a second; without it, as fast as they are answered.
    pub(crate) rate: Option<u64>,
    /// Bytes of a body.
    pub(crate) bytes: usize,
    /// Several messages in a request.
    pub(crate) batch: Option<Batch>,
    /// How long after its publish a message is due: deliveries' latencies count from then.
    pub(crate) due_after_s: u64,
    /// How many own names there are, where target or headers have one ([`message::OWN`]): messages take them in turn.
    pub(crate) own_names: u64,
}

/// Requests for `/v2/batch`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) size: u64,
    pub(crate) destination: String,
    /// Of each item.
    pub(crate) headers: Vec<(String, String)>,
}

/// What came of it. Times are in microseconds of the monotonic clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Messages in requests with a 2xx answer.
    pub(crate) accepted: u64,
    /// The numbers of all others.
    pub(crate) failed: Vec<u64>,
    pub(crate) first_error: Option<String>,
    pub(crate) start_us: u64,
    pub(crate) end_us: u64,
    /// From sending to the answer's end, by request. With a rate, a message that had to wait for a free connection counts
    /// from when it was due.
    pub(crate) publish: Percentiles,
    /// CPU time of this process.
    pub(crate) cpu_us: u64,
}

impl Report {
    /// Numbers given out.
    pub(crate) fn sent(&self) -> u64 {
        self.accepted + self.failed.len() as u64
    }

    pub(crate) fn accepted_per_s(&self) -> f64 {
        self.accepted as f64 * 1e6 / self.end_us.saturating_sub(self.start_us).max(1) as f64
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Runs the load and prints the report.
pub(crate) fn main(load: &str) -> Result<()> {
    let load: Load = serde_json::from_str(load)?;
    std::thread::spawn(|| {
        // Whoever started us wants the report, or is gone.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        STOP.store(true, Ordering::Relaxed);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, run(load))?;
    print_line(&serde_json::to_string(&report)?)
}

async fn run(load: Load) -> Result<Report> {
    let plan = Rc::new(Plan::new(load));
    let connections: Vec<_> = (0..plan.load.connections)
        .map(|at| tokio::task::spawn_local(connection(Rc::clone(&plan), at)))
        .collect();
    for connection in connections {
        connection.await?;
    }
    let tally = plan.tally.take();
    Ok(Report {
        accepted: tally.accepted,
        failed: tally.failed,
        first_error: tally.first_error,
        start_us: plan.start_us,
        end_us: now_us(),
        publish: tally.latency.percentiles(),
        cpu_us: procs::cpu_us(std::process::id()),
    })
}

#[derive(Default)]
struct Tally {
    accepted: u64,
    failed: Vec<u64>,
    first_error: Option<String>,
    latency: Histogram,
}

impl Tally {
    fn add(&mut self, result: &Result<()>, numbers: Range<u64>, us: u64) {
        match result {
            Ok(()) => {
                self.latency.record(us);
                self.accepted += numbers.end - numbers.start;
            }
            Err(error) => {
                self.failed.extend(numbers);
                self.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

/// What the connections share.
struct Plan {
    request: Vec<u8>,
    slots: Vec<Slots>,
    own_names: Vec<usize>,
    requests: u64,
    next: Cell<u64>,
    start_us: u64,
    end_us: u64,
    tally: RefCell<Tally>,
    load: Load,
}

impl Plan {
    fn new(load: Load) -> Self {
        let body = message::body(load.bytes);
        let body = match &load.batch {
            None => body,
            Some(batch) => {
                let headers: serde_json::Map<_, _> =
                    batch.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
                let item = serde_json::json!({
                    "destination": batch.destination,
                    "headers": headers,
                    "body": body,
                });
                serde_json::Value::Array((0..batch.size).map(|_| item.clone()).collect()).to_string()
            }
        };
        let request = http::request("POST", load.addresses[0], &load.target, &load.headers, &body);
        let start_us = now_us();
        Self {
            slots: Slots::find_all(&request),
            own_names: message::own_names(&request),
            request: request.into_bytes(),
            requests: load.messages.map_or(u64::MAX, |count| count.div_ceil(size(&load))),
            next: Cell::new(0),
            start_us,
            end_us: load.seconds.map_or(u64::MAX, |seconds| start_us + seconds * 1_000_000),
            tally: RefCell::default(),
            load,
        }
    }

    /// The next request's number, and when it starts. One that is late since its connection was busy starts when it was
    /// due; one that was waited for starts when the timer says so, whose milliseconds are not the server's.
    async fn next(&self) -> Option<(u64, u64)> {
        let number = self.next.get();
        let now = now_us();
        let due = match self.load.rate {
            None => now,
            Some(rate) => self.start_us + number * size(&self.load) * 1_000_000 / rate,
        };
        if number >= self.requests || due >= self.end_us || STOP.load(Ordering::Relaxed) {
            return None;
        }
        self.next.set(number + 1);
        if due <= now {
            return Some((number, due));
        }
        tokio::time::sleep(Duration::from_micros(due - now)).await;
        Some((number, now_us()))
    }
}

/// Messages in a request.
fn size(load: &Load) -> u64 {
    load.batch.as_ref().map_or(1, |batch| batch.size)
}

async fn connection(plan: Rc<Plan>, at: usize) {
    let address = plan.load.addresses[at % plan.load.addresses.len()];
    let size = size(&plan.load);
    let mut request = plan.request.clone();
    let mut buffer = vec![0; 16 << 10];
    let mut stream = None;
    while let Some((number, start_us)) = plan.next().await {
        let first = number * size;
        for (slots, number) in plan.slots.iter().zip(first..) {
            slots.write(&mut request, number, start_us + plan.load.due_after_s * 1_000_000);
        }
        for (at, number) in plan.own_names.iter().zip(first..) {
            message::write_own_name(&mut request, *at, number % plan.load.own_names);
        }
        let result = exchange(&mut stream, address, &request, &mut buffer).await;
        plan.tally.borrow_mut().add(&result, first..first + size, now_us().saturating_sub(start_us));
        if result.is_err() && stream.is_none() {
            // Refused or cut off: not at once again.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Sends a request and reads the answer, which must be 2xx. A connection that can't be used again is taken away.
async fn exchange(
    place: &mut Option<TcpStream>,
    address: SocketAddr,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let mut stream = match place.take() {
        Some(stream) => stream,
        None => connect(address).await?,
    };
    stream.write_all(request).await?;
    let (head, filled) = read_answer(&mut stream, buffer).await?;
    if !head.close {
        *place = Some(stream);
    }
    let status = http::status(buffer)?;
    if !(200..300).contains(&status) {
        bail!("{status}: {}", String::from_utf8_lossy(&buffer[head.length..filled]));
    }
    Ok(())
}

pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("no connection to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads one answer into the buffer, which grows to hold it; its head, and how far the buffer is filled.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(http::Head, usize)> {
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            buffer.resize(filled * 2, 0);
        }
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            bail!("the connection ended instead of an answer");
        }
        filled += count;
        if let Some(head) = http::head(&buffer[..filled])?
            && filled >= head.length + head.body
        {
            return Ok((head, filled));
        }
    }
}
