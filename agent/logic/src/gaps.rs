//! How long connections were idle, finely enough to ask how many gaps come near to a close.

use std::num::TryFromIntError;
use std::sync::LazyLock;
use std::time::Duration;

/// Each bucket is this many times as wide as the one before.
const GROWTH: f64 = 1.01;

/// Where the first begins: no gap is shorter than 10 ms.
const FIRST: f64 = 0.01;

/// The last one has no end.
const LAST: u16 = 2000;

/// Where there are more cells, two neighbours become one. This many are enough for gaps anywhere from 0.3 to
/// 3.8 s. With half as many, exposure is less often right.
const MAX_CELLS: usize = 256;

/// Counts by bucket, of two spans of time; only buckets that have any.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    cells: Cells,
    /// A cell is 2^this buckets wide.
    wide: u8,
}

/// In order. There may be thousands of rows with hundreds of cells each, and few of those rows are
/// busy: cells are small until one of them is full.
#[derive(Clone, Debug)]
enum Cells {
    Small(Vec<SmallCell>),
    /// Where a count is full, there is another cell of the same bucket before it.
    Large(Vec<Cell>),
}

/// Six bytes.
#[derive(Clone, Copy, Debug)]
struct Cell {
    place: CellIndex,
    newer: u16,
    older: u16,
}

/// Four bytes.
#[derive(Clone, Copy, Debug)]
struct SmallCell {
    place: CellIndex,
    newer: u8,
    older: u8,
}

/// A bucket and, in the lowest bits, where in it the values are on average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CellIndex(u16);

/// `count` values from `low` to `high` seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    pub low: f64,
    pub high: f64,
    pub mean: f64,
    pub count: u32,
}

/// How many values are in the buckets that are meant.
pub fn count(buckets: &[Bucket], is_meant: impl Fn(&Bucket) -> bool) -> u32 {
    buckets.iter().filter(|bucket| is_meant(bucket)).map(|bucket| bucket.count).sum()
}

impl CellIndex {
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
        let place = CellIndex::new(self.place.bucket(), from + (to - from) * share);
        Some(Self { place, newer, older })
    }
}

impl From<SmallCell> for Cell {
    fn from(SmallCell { place, newer, older }: SmallCell) -> Self {
        Self { place, newer: newer.into(), older: older.into() }
    }
}

impl TryFrom<Cell> for SmallCell {
    type Error = TryFromIntError;

    fn try_from(Cell { place, newer, older }: Cell) -> Result<Self, Self::Error> {
        Ok(Self { place, newer: newer.try_into()?, older: older.try_into()? })
    }
}

impl Default for Cells {
    fn default() -> Self {
        Self::Small(Vec::new())
    }
}

impl Cells {
    /// As small as they can be.
    fn of(mut cells: Vec<Cell>) -> Self {
        let small: Result<Box<[_]>, _> = cells.iter().map(|cell| (*cell).try_into()).collect();
        cells.shrink_to_fit();
        small.map_or(Self::Large(cells), |small| Self::Small(small.into()))
    }

    fn iter(&self) -> impl Iterator<Item = Cell> {
        let (small, large): (&[SmallCell], &[Cell]) = match self {
            Self::Small(cells) => (cells, &[]),
            Self::Large(cells) => (&[], cells),
        };
        small.iter().map(|cell| (*cell).into()).chain(large.iter().copied())
    }

    const fn len(&self) -> usize {
        match self {
            Self::Small(cells) => cells.len(),
            Self::Large(cells) => cells.len(),
        }
    }

    fn add(&mut self, cell: Cell) {
        if let Self::Small(cells) = self
            && !add(cells, cell)
        {
            *self = Self::Large(self.iter().collect());
        }
        if let Self::Large(cells) = self
            && !add(cells, cell)
        {
            insert(cells, find(cells, cell), cell);
        }
    }

    fn turn(&mut self) {
        match self {
            Self::Small(cells) => turn(cells),
            Self::Large(cells) => {
                turn(cells);
                *self = Self::of(std::mem::take(cells));
            }
        }
    }
}

/// Where cells of the same bucket begin.
fn find<C: Copy + Into<Cell>>(cells: &[C], cell: Cell) -> usize {
    cells.partition_point(|other| (*other).into().place.bucket() < cell.place.bucket())
}

fn insert<C>(cells: &mut Vec<C>, at: usize, cell: C) {
    if cells.len() == cells.capacity() {
        cells.reserve_exact(4);
    }
    cells.insert(at, cell);
}

/// In place: a cell that turns needs no more room.
fn turn<C: Copy + Into<Cell> + TryFrom<Cell>>(cells: &mut Vec<C>) {
    cells.retain_mut(|cell| {
        let Cell { place, newer, .. } = (*cell).into();
        let turned = Cell { place, newer: 0, older: newer }.try_into();
        newer > 0 && turned.map(|turned| *cell = turned).is_ok()
    });
    cells.shrink_to_fit();
}

/// Adds it to the first cell of the same bucket, or as a new one. Returns whether there was room.
fn add<C: Copy + Into<Cell> + TryFrom<Cell>>(cells: &mut Vec<C>, cell: Cell) -> bool {
    let at = find(cells, cell);
    let first = cells.get(at).map(|first| (*first).into());
    let same = first.filter(|first: &Cell| first.place.bucket() == cell.place.bucket());
    let sum = same.map_or(Some(cell), |same| same.with(cell));
    let Some(sum) = sum.and_then(|sum| sum.try_into().ok()) else { return false };
    match cells.get_mut(at).filter(|_| same.is_some()) {
        Some(place) => *place = sum,
        None => insert(cells, at, sum),
    }
    true
}

impl Gaps {
    pub fn add(&mut self, gap: Duration) {
        let before = self.cells.len();
        self.cells.add(Cell { place: self.place(gap.as_secs_f64()), newer: 1, older: 0 });
        let after = self.cells.len();
        if after > before && after > MAX_CELLS && self.buckets().len() > MAX_CELLS {
            self.widen();
        }
    }

    /// The newer span becomes the older one, which is forgotten.
    pub fn turn(&mut self) {
        self.cells.turn();
        if self.cells.len() == 0 {
            self.wide = 0;
        }
    }

    /// Counts of both spans.
    pub fn buckets(&self) -> Vec<Bucket> {
        let mut buckets: Vec<Bucket> = Vec::with_capacity(self.cells.len());
        for cell in self.cells.iter() {
            let (low, high) = self.bounds(cell.place.bucket());
            let next = Bucket { low, high, mean: self.mean(cell), count: cell.count() };
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

    /// The mean of its values.
    fn mean(&self, cell: Cell) -> f64 {
        let (low, high) = self.bounds(cell.place.bucket());
        low + cell.place.part() * (high - low)
    }

    fn place(&self, gap: f64) -> CellIndex {
        let bucket = bucket(gap) >> self.wide;
        let (low, high) = self.bounds(bucket);
        CellIndex::new(bucket, (gap - low) / (high - low))
    }

    fn bounds(&self, bucket: u16) -> (f64, f64) {
        (bound(bucket << self.wide), bound((bucket + 1) << self.wide))
    }

    /// Makes one cell of two neighbours.
    fn widen(&mut self) {
        let with_means: Vec<_> = self.cells.iter().map(|cell| (cell, self.mean(cell))).collect();
        self.wide += 1;
        let wider =
            with_means.iter().map(|(cell, mean)| Cell { place: self.place(*mean), ..*cell });
        let mut cells: Vec<Cell> = wider.collect();
        cells.dedup_by(|next, kept| {
            let is_same = next.place.bucket() == kept.place.bucket();
            let both = if is_same { kept.with(*next) } else { None };
            both.inspect(|both| *kept = *both).is_some()
        });
        self.cells = Cells::of(cells);
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
    use std::collections::BTreeMap;

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
        assert_eq!((size_of::<SmallCell>(), size_of::<Cell>()), (4, 6));
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

    /// Whatever comes, and however often, the buckets are those of a plain list, and of cells that
    /// are large from the start.
    #[test]
    fn cells_are_small_until_one_is_full() {
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f64::from((state >> 32) as u32) / f64::from(u32::MAX)
        };
        for most in [2_f64, 100.0, 1000.0, 140_000.0] {
            let [mut gaps, mut large] = [Gaps::default(), Gaps::default()];
            let mut plain = BTreeMap::<u16, [u32; 2]>::new();
            let mut was_small = 0;
            for round in 0..50 {
                large.cells = Cells::Large(large.cells.iter().collect());
                let gap = Duration::from_secs_f64(0.2 * 1.1_f64.powf((random() * 20.0).floor()));
                let spans = plain.entry(bucket(gap.as_secs_f64())).or_default();
                for _ in 0..most.powf(random()).round() as i32 {
                    gaps.add(gap);
                    large.add(gap);
                    spans[0] += 1;
                }
                if round % 20 == 19 {
                    gaps.turn();
                    large.turn();
                    plain.retain(|_, [newer, older]| {
                        (*newer, *older) = (0, *newer);
                        *older > 0
                    });
                }
                let buckets = gaps.buckets();
                assert_eq!(buckets, large.buckets());
                let counts = buckets.iter().map(|b| (bucket(b.mean), b.count));
                let expected = plain.iter().map(|(bucket, spans)| (*bucket, spans.iter().sum()));
                assert!(counts.eq(expected), "{buckets:?} {plain:?}");
                let is_small = matches!(gaps.cells, Cells::Small(_));
                assert_eq!(is_small, plain.values().flatten().all(|count| *count <= 255));
                was_small += u32::from(is_small);
            }
            assert!(most < 1000.0 || (1..50).contains(&was_small), "{most} {was_small}");
        }
    }
}
