//! Durations by the row: a histogram for the metrics, a few exact values for the estimate, and the
//! estimate of an idle timeout itself.
//!
//! A timeout hides in a mixture (restarts, request limits, other servers behind the same port), so
//! the estimate looks for where the values crowd and ignores the rest, however far away.

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

/// The latest exact values, at most [`Reservoir::SIZE`] of them.
#[derive(Clone, Debug, Default)]
pub struct Reservoir {
    /// Nanoseconds: half the size of a [`Duration`].
    values: Vec<u64>,
    next: usize,
}

impl Reservoir {
    pub const SIZE: usize = 256;

    pub fn add(&mut self, value: Duration) {
        let value = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        if let Some(oldest) = self.values.get_mut(self.next) {
            *oldest = value;
        } else {
            self.values.push(value);
        }
        self.next = (self.next + 1) % Self::SIZE;
    }

    /// The values, smallest first.
    pub fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.values.clone();
        sorted.sort_unstable();
        sorted.into_iter().map(Duration::from_nanos).collect()
    }

    /// The smallest value that at least the share `q` of all values do not exceed.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let sorted = self.sorted();
        #[expect(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "0 to 256")]
        let rank = (q.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

/// An idle timeout, as far as it can be read from closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub timeout: Duration,
    /// From the smallest to the largest close that agrees.
    pub spread: Duration,
    /// Closes that agree.
    pub n: usize,
}

/// Closes that must agree before anything is said.
pub const MIN_VALUES: usize = 5;

/// The timeout that most of `values` (in any order) agree on.
///
/// The densest window of 2 % (at least 50 ms) must hold five values and a third of all; its median
/// is the timeout. The spread also takes in neighbours less than half a window apart, up to one
/// window on either side.
pub fn estimate(values: &[Duration]) -> Option<Estimate> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    // For each value, those within one window above it; among equals the first, thus shortest.
    let mut end = 0;
    let mut densest: &[Duration] = &[];
    for (start, low) in sorted.iter().enumerate() {
        while sorted.get(end).is_some_and(|high| high.saturating_sub(*low) <= window(*low)) {
            end += 1;
        }
        let inside = sorted.get(start..end).unwrap_or_default();
        if inside.len() > densest.len() {
            densest = inside;
        }
    }
    let (low, high) = (*densest.first()?, *densest.last()?);
    if densest.len() < MIN_VALUES || densest.len() * 3 < sorted.len() {
        return None;
    }
    let timeout = *densest.get(densest.len() / 2)?;
    let width = window(timeout);
    let above = sorted.iter().copied().filter(|value| *value > high);
    let below = sorted.iter().rev().copied().filter(|value| *value < low);
    let (top, more_above) = reach(high, above, width);
    let (bottom, more_below) = reach(low, below, width);
    let spread = top.saturating_sub(bottom);
    Some(Estimate { timeout, spread, n: densest.len() + more_above + more_below })
}

/// How wide a window of agreement is at `value`.
fn window(value: Duration) -> Duration {
    (value / 50).max(Duration::from_millis(50))
}

/// Walks from `edge` over `values`, each further away, while they stay near to each other and to
/// the edge; returns where it ended and how many it passed.
fn reach(
    edge: Duration,
    values: impl Iterator<Item = Duration>,
    width: Duration,
) -> (Duration, usize) {
    let mut last = edge;
    let near = values.take_while(|value| {
        let is_near = value.abs_diff(last) <= width / 2 && value.abs_diff(edge) <= width;
        last = *value;
        is_near
    });
    near.fold((edge, 0), |(_, count), value| (value, count + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_millis).collect()
    }

    /// `expected` is timeout, spread in milliseconds and n.
    fn check(
        name: &str,
        values: impl IntoIterator<Item = u64>,
        expected: Option<(u64, u64, usize)>,
    ) {
        let expected = expected.map(|(timeout, spread, n)| Estimate {
            timeout: Duration::from_millis(timeout),
            spread: Duration::from_millis(spread),
            n,
        });
        assert_eq!(estimate(&ms(values)), expected, "{name}");
    }

    #[test]
    fn estimates() {
        check("nothing", [], None);
        check("four are too few", [5000; 4], None);
        check("five that agree", [5000, 5001, 5002, 5003, 5004], Some((5002, 4, 5)));
        check("five that do not", [1000, 2000, 3000, 4000, 5000], None);
        check("order does not matter", [5004, 5000, 5002, 5001, 5003], Some((5002, 4, 5)));
        check("a window of 2 %", [60_000, 60_300, 60_600, 60_900, 61_200], Some((60_600, 1200, 5)));
        check("neighbours widen the spread", [200, 220, 240, 250, 250, 275], Some((240, 75, 6)));
        check("nor one half a window off", [200, 200, 200, 200, 200, 245, 290], Some((200, 45, 6)));
        check("a far value does not", [200, 210, 220, 230, 240, 400], Some((220, 40, 5)));

        // Half of the closes at 5 s, the others anywhere.
        let noise = (0..20).map(|i| 137 + i * 3571);
        check("a mixture", noise.clone().chain((0..20).map(|i| 5000 + i)), Some((5010, 19, 20)));
        check("less than a third", noise.chain((0..9).map(|i| 5000 + i)), None);
        let two = [[15_000; 6].as_slice(), &[75_000; 12]].concat();
        check("the larger of two", two, Some((75_000, 0, 12)));
        check("zero", [0; 8], Some((0, 0, 8)));
        check("no overflow", [u64::MAX; 5], Some((u64::MAX, 0, 5)));
    }

    #[test]
    fn the_reservoir_keeps_the_latest() {
        let mut reservoir = Reservoir::default();
        assert_eq!(reservoir.quantile(0.5), None);
        for value in ms(1..=1000) {
            reservoir.add(value);
        }
        assert_eq!(reservoir.sorted().len(), Reservoir::SIZE);
        let quantiles = [0.0, 0.5, 0.99, 1.0].map(|q| reservoir.quantile(q).unwrap().as_millis());
        assert_eq!(quantiles, [745, 872, 998, 1000]);
    }

    #[test]
    fn the_histogram_counts_every_value_once() {
        let mut histogram = Histogram::new(&IDLE_BOUNDS);
        for value in ms([0, 100, 101, 5000, 360_000, 360_001, 4_000_000]) {
            histogram.add(value);
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
