//! Histograms as they are exported: a few buckets, counts that only grow.

use std::time::Duration;

/// Bucket bounds in seconds for idle times and gaps: around the known idle timeouts, not on them,
/// since a close at 5 s is seen at 5.00 to 5.02 s.
pub const IDLE_BOUNDS: [f64; 12] =
    [0.1, 0.95, 1.1, 1.9, 2.2, 4.5, 6.5, 21.0, 32.0, 62.0, 80.0, 360.0];

/// Bucket bounds in seconds for what takes a round trip when all is well: FIN age, dwell.
pub const SHORT_BOUNDS: [f64; 12] =
    [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 20.0, 60.0];

/// One more than there are bounds: the last has none.
const BUCKETS: usize = 13;

/// Counts by bucket. There are thousands of these, and most never get a value: the bounds are kept
/// elsewhere, and the buckets made for the first one.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Option<Box<Filled>>);

#[derive(Clone, Debug)]
struct Filled {
    /// The lowest bits of the counts; the others, which few counts need, are in `high`.
    low: [u16; BUCKETS],
    sum_nanos: u32,
    sum_secs: u64,
    high: Option<Box<[u32; BUCKETS]>>,
}

impl Filled {
    const EMPTY: Self = Self { low: [0; BUCKETS], sum_nanos: 0, sum_secs: 0, high: None };

    fn counts(&self) -> [u64; BUCKETS] {
        let mut counts = self.low.map(u64::from);
        for (count, high) in counts.iter_mut().zip(self.high.iter().flat_map(|high| **high)) {
            *count |= u64::from(high) << u16::BITS;
        }
        counts
    }

    const fn sum(&self) -> Duration {
        Duration::new(self.sum_secs, self.sum_nanos)
    }

    fn of(counts: [u64; BUCKETS], sum: Duration) -> Self {
        let high = counts.map(|count| u32::try_from(count >> u16::BITS).unwrap_or(u32::MAX));
        Self {
            low: counts.map(|count| count as u16),
            sum_nanos: sum.subsec_nanos(),
            sum_secs: sum.as_secs(),
            high: (high != [0; BUCKETS]).then(|| Box::new(high)),
        }
    }
}

impl Histogram {
    /// Always with the same bounds.
    pub fn add(&mut self, bounds: &[f64; BUCKETS - 1], value: Duration) {
        let filled = self.0.get_or_insert_with(|| Box::new(Filled::EMPTY));
        let seconds = value.as_secs_f64();
        let place = bounds.iter().take_while(|bound| seconds > **bound).count();
        if let Some(count) = filled.low.get_mut(place) {
            let (sum, is_over) = count.overflowing_add(1);
            *count = sum;
            if is_over {
                let high = filled.high.get_or_insert_with(|| Box::new([0; BUCKETS]));
                if let Some(count) = high.get_mut(place) {
                    *count = count.saturating_add(1);
                }
            }
        }
        let sum = filled.sum().saturating_add(value);
        (filled.sum_secs, filled.sum_nanos) = (sum.as_secs(), sum.subsec_nanos());
    }

    /// Adds the counts of `other`, which has the same bounds.
    pub fn absorb(&mut self, other: &Self) {
        let Some(other) = &other.0 else { return };
        let filled = self.0.get_or_insert_with(|| Box::new(Filled::EMPTY));
        let mut counts = filled.counts();
        for (count, more) in counts.iter_mut().zip(other.counts()) {
            *count += more;
        }
        **filled = Filled::of(counts, filled.sum().saturating_add(other.sum()));
    }

    /// What was added since it was `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let (Some(now), Some(before)) = (&self.0, &earlier.0) else { return self.clone() };
        let mut counts = now.counts();
        for (count, before) in counts.iter_mut().zip(before.counts()) {
            *count = count.saturating_sub(before);
        }
        let is_new = counts != [0; BUCKETS];
        Self(is_new.then(|| Box::new(Filled::of(counts, now.sum().saturating_sub(before.sum())))))
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |filled| filled.counts().iter().sum())
    }

    pub fn sum(&self) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |filled| filled.sum())
    }

    /// Upper bounds in seconds with the count of each bucket (not cumulative), `+Inf` last.
    pub fn buckets(&self, bounds: &[f64; BUCKETS - 1]) -> [(f64, u64); BUCKETS] {
        let counts = self.0.as_ref().map_or([0; BUCKETS], |filled| filled.counts());
        let mut bounds = bounds.iter().copied().chain([f64::INFINITY]);
        counts.map(|count| (bounds.next().unwrap_or(f64::INFINITY), count))
    }
}

/// All but the first `unused`, which should be empty. Whatever is in them anyway counts in the next one.
pub fn without_first(buckets: &mut [(f64, u64)], unused: usize) -> &[(f64, u64)] {
    let (unused, used) = buckets.split_at_mut(unused.min(buckets.len()));
    if let Some((_, count)) = used.first_mut() {
        *count += unused.iter().map(|(_, count)| count).sum::<u64>();
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(histogram: &Histogram) -> Vec<(f64, u64)> {
        histogram.buckets(&IDLE_BOUNDS).into_iter().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn the_histogram_counts_every_value_once() {
        let mut histogram = Histogram::default();
        assert!(histogram.is_empty());
        for value in [0, 100, 101, 5000, 360_000, 360_001, 4_000_000] {
            histogram.add(&IDLE_BOUNDS, Duration::from_millis(value));
        }
        let mut twice = histogram.clone();
        twice.absorb(&histogram);
        assert_eq!(
            filled(&histogram),
            [(0.1, 2), (0.95, 1), (6.5, 1), (360.0, 1), (f64::INFINITY, 2)]
        );
        assert_eq!(filled(&twice), [(0.1, 4), (0.95, 2), (6.5, 2), (360.0, 2), (f64::INFINITY, 4)]);
        assert_eq!((twice.count(), twice.sum()), (14, Duration::from_millis(9_450_404)));
        let since = twice.since(&histogram);
        assert_eq!((filled(&since), since.sum()), (filled(&histogram), histogram.sum()));
        assert!(twice.since(&twice).is_empty());
        assert_eq!(twice.since(&Histogram::default()).count(), 14);
    }

    #[test]
    fn buckets_are_left_out_and_no_value_is() {
        let mut buckets = [(0.1, 2), (0.95, 3), (f64::INFINITY, 4)];
        assert_eq!(without_first(&mut buckets.clone(), 0), buckets);
        assert_eq!(without_first(&mut buckets.clone(), 1), [(0.95, 5), (f64::INFINITY, 4)]);
        assert_eq!(without_first(&mut buckets, 2), [(f64::INFINITY, 9)]);
    }

    #[test]
    fn no_count_wraps() {
        assert_eq!(size_of::<Filled>(), 48);
        let mut counts = [0; BUCKETS];
        counts[3] = u64::from(u16::MAX) - 1;
        let full = Filled::of(counts, Duration::ZERO);
        assert!(full.high.is_none());
        let mut histogram = Histogram(Some(Box::new(full)));
        for _ in 0..3 {
            histogram.add(&IDLE_BOUNDS, Duration::from_secs_f64(1.5));
        }
        assert_eq!(filled(&histogram), [(1.9, (1 << 16) + 1)]);
        histogram.absorb(&histogram.clone());
        assert_eq!(filled(&histogram), [(1.9, (1 << 17) + 2)]);
        assert_eq!(histogram.count(), (1 << 17) + 2);
    }
}
