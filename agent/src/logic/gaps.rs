//! How long connections were idle, finely enough to ask how many gaps come near to a close.

use std::sync::LazyLock;
use std::time::Duration;

/// Buckets are so many times as wide as the one before.
const GROWTH: f64 = 1.01;

/// Where the first begins: a gap is a gap from 10 ms at the least.
const FIRST: f64 = 0.01;

/// The last one has no end.
const LAST: u16 = 2000;

/// Where there are more cells, two neighbours become one. So many are enough for gaps that are
/// anything from 0.3 to 3.8 s. With half as many, exposure is less often right.
const MAX_CELLS: usize = 256;

/// Counts by bucket, of two spans of time; only buckets that have any.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    cells: Vec<Cell>,
    /// A cell is 2^this buckets wide.
    wide: u8,
}

/// Six bytes, since there may be thousands of rows with hundreds of cells each. Where a count is
/// full, there is another cell of the same bucket before it.
#[derive(Clone, Copy, Debug)]
struct Cell {
    place: Place,
    newer: u16,
    older: u16,
}

/// A bucket and, in the lowest bits, where in it the values are on average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u16);

/// So many values from `low` to `high` seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    pub low: f64,
    pub high: f64,
    pub mean: f64,
    pub count: u32,
}

impl Place {
    /// Enough to tell 5 s from 5.002 s, which is finer than the kernel's tick.
    const BITS: u32 = 5;
    const STEPS: f64 = (1 << Self::BITS) as f64;

    /// `part` of the way through a bucket.
    fn new(bucket: u16, part: f64) -> Self {
        #[expect(clippy::cast_sign_loss, reason = "clamped")]
        let step = (part * Self::STEPS).clamp(0.0, Self::STEPS - 1.0) as u16;
        Self(bucket << Self::BITS | step)
    }

    const fn bucket(self) -> u16 {
        self.0 >> Self::BITS
    }

    fn part(self) -> f64 {
        (f64::from(self.0 & ((1 << Self::BITS) - 1)) + 0.5) / Self::STEPS
    }
}

impl Cell {
    fn count(self) -> u32 {
        u32::from(self.newer) + u32::from(self.older)
    }

    /// The two together, if one cell can hold them.
    fn with(self, other: Self) -> Option<Self> {
        let newer = self.newer.checked_add(other.newer)?;
        let older = self.older.checked_add(other.older)?;
        let share = f64::from(other.count()) / f64::from(self.count() + other.count()).max(1.0);
        let (from, to) = (self.place.part(), other.place.part());
        let place = Place::new(self.place.bucket(), from + (to - from) * share);
        Some(Self { place, newer, older })
    }
}

impl Gaps {
    pub fn add(&mut self, gap: Duration) {
        let gap = gap.as_secs_f64();
        let cell = Cell { place: self.place(gap), newer: 1, older: 0 };
        let bucket = cell.place.bucket();
        let at = self.cells.partition_point(|cell| cell.place.bucket() < bucket);
        let same = self.cells.get_mut(at).filter(|cell| cell.place.bucket() == bucket);
        if let Some(same) = same
            && let Some(both) = same.with(cell)
        {
            *same = both;
            return;
        }
        if self.cells.len() == self.cells.capacity() {
            self.cells.reserve_exact(4);
        }
        self.cells.insert(at, cell);
        let is_same = |a: &Cell, b: &Cell| a.place.bucket() == b.place.bucket();
        if self.cells.len() > MAX_CELLS && self.cells.chunk_by(is_same).count() > MAX_CELLS {
            self.widen();
        }
    }

    /// The newer span becomes the older one, which is forgotten.
    pub fn turn(&mut self) {
        for cell in &mut self.cells {
            (cell.newer, cell.older) = (0, cell.newer);
        }
        self.cells.retain(|cell| cell.older > 0);
        self.cells.shrink_to_fit();
        if self.cells.is_empty() {
            self.wide = 0;
        }
    }

    /// Counts of both spans.
    pub fn buckets(&self) -> Vec<Bucket> {
        let mut cells = self.cells.iter().map(|cell| {
            let (low, high) = self.bounds(cell.place.bucket());
            let mean = low + cell.place.part() * (high - low);
            Bucket { low, high, mean, count: cell.count() }
        });
        let mut buckets: Vec<Bucket> = Vec::with_capacity(self.cells.len());
        for next in &mut cells {
            match buckets.last_mut() {
                Some(last) if last.low >= next.low => {
                    let share =
                        f64::from(next.count) / (f64::from(last.count) + f64::from(next.count));
                    last.mean += (next.mean - last.mean) * share;
                    last.count = last.count.saturating_add(next.count);
                }
                _ => buckets.push(next),
            }
        }
        buckets
    }

    fn place(&self, gap: f64) -> Place {
        let bucket = bucket(gap) >> self.wide;
        let (low, high) = self.bounds(bucket);
        Place::new(bucket, (gap - low) / (high - low))
    }

    fn bounds(&self, bucket: u16) -> (f64, f64) {
        (bound(bucket << self.wide), bound((bucket + 1) << self.wide))
    }

    /// Makes one cell of two neighbours.
    fn widen(&mut self) {
        let mut cells = std::mem::take(&mut self.cells);
        let means: Vec<_> = cells
            .iter()
            .map(|cell| {
                let (low, high) = self.bounds(cell.place.bucket());
                low + cell.place.part() * (high - low)
            })
            .collect();
        self.wide += 1;
        for (cell, mean) in cells.iter_mut().zip(means) {
            cell.place = self.place(mean);
        }
        cells.dedup_by(|next, kept| {
            let is_same = next.place.bucket() == kept.place.bucket();
            let both = if is_same { kept.with(*next) } else { None };
            both.inspect(|both| *kept = *both).is_some()
        });
        cells.shrink_to_fit();
        self.cells = cells;
    }
}

fn bucket(seconds: f64) -> u16 {
    #[expect(clippy::cast_sign_loss, reason = "clamped")]
    let bucket = ((seconds / FIRST).ln() / GROWTH.ln()).clamp(0.0, LAST.into()) as u16;
    bucket
}

/// Where a bucket begins.
fn bound(bucket: u16) -> f64 {
    static BOUNDS: LazyLock<Vec<f64>> =
        LazyLock::new(|| (0..=2048).map(|n| FIRST * GROWTH.powi(n)).collect());
    BOUNDS.get(usize::from(bucket)).copied().unwrap_or(f64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = f64>) -> Gaps {
        let mut gaps = Gaps::default();
        values.into_iter().for_each(|value| gaps.add(Duration::from_secs_f64(value)));
        gaps
    }

    fn total(gaps: &Gaps) -> u32 {
        gaps.buckets().iter().map(|bucket| bucket.count).sum()
    }

    #[test]
    fn every_gap_is_in_its_bucket() {
        assert_eq!(size_of::<Cell>(), 6);
        for gap in [0.0, 0.01, 0.2, 1.0, 59.9, 3600.0, 1e9] {
            let gaps = of([gap]);
            let [Bucket { low, high, mean, count: 1 }] = gaps.buckets()[..] else {
                panic!("{gaps:?}")
            };
            assert!((low <= gap || gap < FIRST) && (gap < high || gap > 1e6), "{low} {gap} {high}");
            let near = gap.clamp(FIRST, bound(LAST + 1));
            assert!((mean - near).abs() <= 2e-4 * near, "{mean} {gap}");
        }
    }

    #[test]
    fn two_spans_are_kept() {
        let mut gaps = of([5.0, 1.0, 5.0]);
        gaps.turn();
        for gap in [3.0, 5.0] {
            gaps.add(Duration::from_secs_f64(gap));
        }
        let counts = |gaps: &Gaps| -> Vec<u32> {
            gaps.buckets().iter().map(|bucket| bucket.count).collect()
        };
        assert_eq!(counts(&gaps), [1, 1, 3]);
        assert!(gaps.buckets().is_sorted_by(|a, b| a.high <= b.low));
        gaps.turn();
        assert_eq!(counts(&gaps), [1, 1]);
        gaps.turn();
        assert!(gaps.buckets().is_empty());
    }

    #[test]
    fn a_busy_bucket_counts_on() {
        let mut gaps = of([3.0; 10]);
        gaps.turn();
        (0..200_000).for_each(|_| gaps.add(Duration::from_secs(3)));
        assert_eq!((total(&gaps), gaps.buckets().len(), gaps.cells.len()), (200_010, 1, 4));
        gaps.turn();
        gaps.add(Duration::from_secs(3));
        assert_eq!(total(&gaps), 200_001);
    }

    #[test]
    fn many_different_gaps_take_wider_buckets() {
        let values: Vec<f64> = (0..2000).map(|i| 0.2 * 1.005_f64.powi(i)).collect();
        let gaps = of(values.iter().copied());
        assert!(gaps.cells.len() <= MAX_CELLS && gaps.wide == 2, "{gaps:?}");
        let buckets = gaps.buckets();
        assert!(buckets.is_sorted_by(|a, b| a.high <= b.low * 1.000_001));
        assert_eq!(total(&gaps), 2000);
        let sum: f64 = buckets.iter().map(|bucket| bucket.mean * f64::from(bucket.count)).sum();
        let all: f64 = values.iter().sum();
        assert!((sum / all - 1.0).abs() < 0.005, "{sum} {all}");
    }
}
