//! Histograms as they are exported: a few buckets, counts that only grow.

use std::time::Duration;

/// Bucket bounds in seconds for idle times and gaps: around the known idle timeouts, not on them,
/// since a close at 5 s is seen at 5.00 to 5.02 s.
pub const IDLE_BOUNDS: [f64; 12] =
    [0.1, 0.95, 1.1, 1.9, 2.2, 4.5, 6.5, 21.0, 32.0, 62.0, 80.0, 360.0];

/// Bucket bounds in seconds for what takes a round trip when all is well: FIN age, dwell.
pub const SHORT_BOUNDS: [f64; 12] =
    [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 20.0, 60.0];

/// Counts by bucket; the last bucket has no upper bound.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64; 12],
    buckets: [u64; 12],
    count: u64,
    sum: Duration,
}

impl Histogram {
    pub const fn new(bounds: &'static [f64; 12]) -> Self {
        Self { bounds, buckets: [0; 12], count: 0, sum: Duration::ZERO }
    }

    pub fn add(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        let bounded = self.bounds.iter().zip(&mut self.buckets);
        if let Some((_, bucket)) = bounded.into_iter().find(|(bound, _)| seconds <= **bound) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Adds the counts of `other`, which has the same bounds.
    pub fn absorb(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
    }

    pub const fn count(&self) -> u64 {
        self.count
    }

    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// Upper bounds in seconds with the count of each bucket (not cumulative), `+Inf` last.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let above = self.count - self.buckets.iter().sum::<u64>();
        self.bounds.iter().copied().zip(self.buckets).chain([(f64::INFINITY, above)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_counts_every_value_once() {
        let mut histogram = Histogram::new(&IDLE_BOUNDS);
        for value in [0, 100, 101, 5000, 360_000, 360_001, 4_000_000] {
            histogram.add(Duration::from_millis(value));
        }
        let mut twice = histogram.clone();
        twice.absorb(&histogram);
        let filled = |histogram: &Histogram| -> Vec<(f64, u64)> {
            histogram.buckets().filter(|(_, count)| *count > 0).collect()
        };
        assert_eq!(
            filled(&histogram),
            [(0.1, 2), (0.95, 1), (6.5, 1), (360.0, 1), (f64::INFINITY, 2)]
        );
        assert_eq!(filled(&twice), [(0.1, 4), (0.95, 2), (6.5, 2), (360.0, 2), (f64::INFINITY, 4)]);
        assert_eq!((twice.count(), twice.sum()), (14, Duration::from_millis(9_450_404)));
    }
}
