//! How often values of each magnitude were seen: what the consensus library counts its batches with.
//!
//! It stands in for the published crate `base2histogram` (`[patch]` in the workspace's `Cargo.toml`): that one builds tables
//! for sixteen widths when the first value is recorded, 26 MiB of them, and a controller is to stay below 25 MiB. This has the
//! part of its interface that the library calls, with one bucket for each power of two and no tables.

use std::fmt;
use std::marker::PhantomData;

/// One for zero, and one for each position of the highest bit.
const BUCKETS: usize = u64::BITS as usize + 1;

/// Counts by magnitude. `T` is what the published crate attaches to periods of time; nothing here does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    periods: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Nothing seen.
    pub fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            periods: PhantomData,
        }
    }

    /// `value` was seen once.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// `value` was seen `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
    }

    /// How many were seen.
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The smallest value of the bucket in which this share (0 to 1000 permille) of all that was seen is reached.
    fn permille(&self, share: u64) -> u64 {
        let wanted = u128::from(self.total()) * u128::from(share);
        let mut seen = 0u128;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count) * 1000;
            if *count > 0 && seen >= wanted {
                return floor(bucket);
            }
        }
        0
    }

    /// Where the values lie.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.permille(1),
            p1: self.permille(10),
            p5: self.permille(50),
            p10: self.permille(100),
            p50: self.permille(500),
            p90: self.permille(900),
            p99: self.permille(990),
            p99_9: self.permille(999),
        }
    }
}

/// The smallest value in a bucket.
fn floor(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        bucket => 1 << (bucket - 1),
    }
}

/// Shares of what was seen lie at or below these values, each rounded down to a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values.
    pub samples: u64,
    /// One in a thousand.
    pub p0_1: u64,
    /// One in a hundred.
    pub p1: u64,
    /// One in twenty.
    pub p5: u64,
    /// One in ten.
    pub p10: u64,
    /// Half.
    pub p50: u64,
    /// Nine in ten.
    pub p90: u64,
    /// All but one in a hundred.
    pub p99: u64,
    /// All but one in a thousand.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "[samples: {}, P50: {}, P90: {}, P99: {}, P99.9: {}]",
            self.samples, self.p50, self.p90, self.p99, self.p99_9
        )
    }
}

/// Several histograms, as lines of text.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// No lines.
    pub fn new() -> Self {
        Self::default()
    }

    /// One line more.
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.lines.push((name.to_owned(), histogram.percentile_stats()));
        self
    }

    /// To be printed.
    pub fn detailed(&self) -> impl fmt::Display {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.lines {
            writeln!(out, "{name} {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_found_in_their_bucket() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        histogram.record_n(0, 10);
        histogram.record_n(5, 80);
        histogram.record_n(u64::MAX, 10);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p1, stats.p50, stats.p90), (100, 0, 4, 4));
        assert_eq!(stats.p99, 1 << 63);
    }

    #[test]
    fn counts_end_at_the_largest_number() {
        let mut histogram = Histogram::<()>::new();
        histogram.record_n(1, u64::MAX);
        histogram.record(1);
        histogram.record(2);
        assert_eq!(histogram.total(), u64::MAX);
    }
}
