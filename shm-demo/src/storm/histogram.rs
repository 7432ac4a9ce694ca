//! How long waits took: counted by the workers in shared memory, so that a kill
//! loses one at most, and read by their parent.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::ground::LOCKS;
use crate::Result;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use zerocopy::FromBytes;

/// Each power of two is divided into this many buckets: 3% wide at most.
const PARTS: u64 = 32;

/// The longest that is told apart: 68 seconds.
const LONGEST_NS: u64 = (1 << 36) - 1;

const BUCKETS: usize = bucket(LONGEST_NS) + 1;

/// The bucket of a wait of `ns` nanoseconds.
const fn bucket(ns: u64) -> usize {
    let ns = if ns < LONGEST_NS { ns } else { LONGEST_NS };
    if ns < 2 * PARTS {
        return ns as usize;
    }
    let shift = ns.ilog2() - PARTS.ilog2();
    (shift as u64 * PARTS + (ns >> shift)) as usize
}

/// The middle of a bucket, in nanoseconds.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * PARTS {
        return bucket;
    }
    let shift = bucket / PARTS - 1;
    ((PARTS + bucket % PARTS) << shift) + (1 << shift >> 1)
}

/// The waits for one lock in one phase.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Waits {
    buckets: [AtomicU64; BUCKETS],
    longest_ns: AtomicU64,
}

impl Waits {
    pub(crate) fn add(&self, waited: Duration) {
        let ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)].fetch_add(1, Relaxed);
        self.longest_ns.fetch_max(ns, Relaxed);
    }

    /// Exact, unlike the histogram's.
    pub(crate) fn longest_us(&self) -> u64 {
        self.longest_ns.load(Relaxed) / 1000
    }

    pub(crate) fn histogram(&self) -> Result<Histogram<u64>> {
        let mut histogram = Histogram::new_with_bounds(1, LONGEST_NS, 2)?;
        for (bucket, count) in self.buckets.iter().enumerate() {
            let count = count.load(Relaxed);
            // None at all would count for the longest.
            if count > 0 {
                histogram.record_n(middle(bucket).max(1), count)?;
            }
        }
        Ok(histogram)
    }
}

/// The histograms of each lock in one phase.
pub(crate) fn histograms(waited: &[Waits; LOCKS]) -> Result<Vec<Histogram<u64>>> {
    waited.iter().map(Waits::histogram).collect()
}

/// What is reported of a histogram.
#[derive(Serialize)]
pub(crate) struct Percentiles {
    pub(crate) acquisitions: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: u64,
}

impl Percentiles {
    pub(crate) fn new(waits: &Waits) -> Result<Self> {
        let histogram = waits.histogram()?;
        let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(Self {
            acquisitions: histogram.len(),
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: waits.longest_us(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, LONGEST_NS, Waits, bucket, middle};
    use std::time::Duration;
    use zerocopy::FromZeros;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        assert_eq!((bucket(0), bucket(63), bucket(64), bucket(65)), (0, 63, 64, 64));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for at in 0..BUCKETS {
            assert_eq!(bucket(middle(at)), at);
        }
        for ns in (0..36).map(|bits| 1_u64 << bits).flat_map(|ns| [ns - 1, ns, ns + ns / 3]) {
            let (middle, ns) = (middle(bucket(ns)) as f64, ns as f64);
            assert!((middle - ns).abs() <= ns * 0.03, "{ns} became {middle}");
        }
        assert!(middle(BUCKETS - 1) <= LONGEST_NS);
    }

    #[test]
    fn a_histogram_has_what_was_added() {
        let waits = Waits::new_zeroed();
        for us in 1..=1000 {
            waits.add(Duration::from_micros(us));
        }
        waits.add(Duration::from_secs(100));
        let histogram = waits.histogram().expect("a histogram");
        assert_eq!(histogram.len(), 1001);
        let median = histogram.value_at_quantile(0.5) as f64;
        assert!((median - 500_000.0).abs() < 25_000.0, "{median}");
        assert_eq!(waits.longest_us(), 100_000_000);
        assert_eq!(Waits::new_zeroed().histogram().expect("one").max(), 0);
    }
}
