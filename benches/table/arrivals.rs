//! What has arrived at the sink: which messages of which stream, how often and when.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::histogram::{Histogram, Percentiles};
use crate::message;

/// Missing messages that are named.
const NAMED: usize = 100_000;

/// What came of a stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Different messages.
    pub(crate) unique: u64,
    pub(crate) duplicates: u64,
    /// Numbers below the one asked for that have not come, up to [`NAMED`] of them.
    pub(crate) missing: Vec<u64>,
    /// By the monotonic clock; 0 when there is none.
    pub(crate) first_us: u64,
    pub(crate) last_us: u64,
    /// From the time in the body to the body's arrival.
    pub(crate) latency: Percentiles,
    /// Deliveries whose path or body could not be read, of all streams.
    pub(crate) foreign: u64,
}

/// All streams.
#[derive(Default)]
pub(crate) struct Arrivals {
    streams: Vec<Stream>,
    foreign: u64,
}

#[derive(Default)]
struct Stream {
    /// A bit for each number.
    seen: Vec<u64>,
    unique: u64,
    duplicates: u64,
    first_us: u64,
    last_us: u64,
    latency: Histogram,
}

impl Arrivals {
    /// Takes a delivery to `/s/N`.
    pub(crate) fn deliver(&mut self, target: &str, body: &[u8], now_us: u64) {
        let stream = target.strip_prefix("/s/").and_then(|number| number.parse::<u16>().ok());
        let (Some(stream), Some((seq, ts))) = (stream, message::read(body)) else {
            self.foreign += 1;
            return;
        };
        let stream = usize::from(stream);
        if self.streams.len() <= stream {
            self.streams.resize_with(stream + 1, Stream::default);
        }
        self.streams[stream].deliver(seq, ts, now_us);
    }

    /// The answer for `N?sent=COUNT`.
    pub(crate) fn stats(&self, query: &str) -> Result<Stats> {
        let (stream, sent) = query.split_once("?sent=").context("no number of messages sent")?;
        let sent = sent.parse()?;
        let stats = match self.streams.get(stream.parse::<usize>()?) {
            Some(stream) => stream.stats(sent),
            None => Stream::default().stats(sent),
        };
        Ok(Stats { foreign: self.foreign, ..stats })
    }
}

impl Stream {
    fn deliver(&mut self, seq: u64, ts: u64, now: u64) {
        let (word, bit) = place(seq);
        if self.seen.len() <= word {
            self.seen.resize((word + 1).next_power_of_two(), 0);
        }
        if self.seen[word] & bit != 0 {
            self.duplicates += 1;
            return;
        }
        self.seen[word] |= bit;
        self.unique += 1;
        if self.first_us == 0 {
            self.first_us = now;
        }
        self.last_us = now;
        self.latency.record(now.saturating_sub(ts));
    }

    fn stats(&self, sent: u64) -> Stats {
        let is_missing = |seq: &u64| {
            let (word, bit) = place(*seq);
            self.seen.get(word).is_none_or(|seen| seen & bit == 0)
        };
        Stats {
            unique: self.unique,
            duplicates: self.duplicates,
            missing: (0..sent).filter(is_missing).take(NAMED).collect(),
            first_us: self.first_us,
            last_us: self.last_us,
            latency: self.latency.percentiles(),
            foreign: 0,
        }
    }
}

/// The word and the bit of a number. Numbers have at most ten digits.
fn place(seq: u64) -> (usize, u64) {
    (usize::try_from(seq / 64).unwrap_or(usize::MAX), 1 << (seq % 64))
}
