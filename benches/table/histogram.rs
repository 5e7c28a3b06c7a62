//! Latencies in microseconds, counted in buckets that are less than 1 % wide.

use serde::{Deserialize, Serialize};

/// Each power of two is cut into this many buckets, as a power of two.
const CUTS: u32 = 7;
/// Longer latencies count as this: 12 days.
const LONGEST: u64 = (1 << 40) - 1;

/// How often which latency came up.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

/// What is shown of a histogram, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; bucket(LONGEST) + 1], total: 0, max: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, us: u64) {
        let us = us.min(LONGEST);
        self.counts[bucket(us)] += 1;
        self.total += 1;
        self.max = self.max.max(us);
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.total,
            p50: self.at(500),
            p90: self.at(900),
            p99: self.at(990),
            p999: self.at(999),
            max: self.max,
        }
    }

    /// The latency that so many in a thousand don't exceed; 0 when there is none.
    fn at(&self, per_mille: u64) -> u64 {
        let rank = (self.total * per_mille).div_ceil(1000);
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank && *count > 0 {
                return largest(bucket).min(self.max);
            }
        }
        0
    }
}

/// Values below 2 to the power of [`CUTS`] have a bucket each.
fn bucket(value: u64) -> usize {
    let shift = (value | (1 << CUTS)).ilog2() - CUTS;
    let cut = usize::try_from(value >> shift).unwrap_or(usize::MAX);
    (usize::try_from(shift).unwrap_or(usize::MAX) << CUTS) + cut
}

/// The largest value of a bucket.
fn largest(bucket: usize) -> u64 {
    let shift = (bucket >> CUTS).saturating_sub(1);
    let cut = bucket - (shift << CUTS);
    (((cut + 1) as u64) << shift) - 1
}
