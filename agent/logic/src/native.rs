//! Histograms that Prometheus calls native: buckets by a fixed rule, as many as there are values for.
//!
//! Bucket `i` of schema `s` holds what is above `base^(i-1)` and up to `base^i`, with `base` =
//! 2^(2^-s). Where there are too many, two neighbours become one, which is the next lower schema; it
//! never rises again, since for Prometheus that would be a reset.

use std::time::Duration;

/// Eight buckets to a power of two, each 9 % wider than the one before.
pub const SCHEMA: i32 = 3;

/// Up to here in seconds, everything counts as zero: 2^-20, a microsecond.
pub const ZERO_THRESHOLD: f64 = 1.0 / 1_048_576.0;

/// As many as most client libraries advise.
const MAX_CELLS: usize = 100;

/// Upper bounds between two powers of two: 2^(n/8 - 1).
#[rustfmt::skip]
const BOUNDS: [f64; 1 << SCHEMA] = [
    0.5, 0.545_253_866_332_628_8, 0.594_603_557_501_360_5, 0.648_419_777_325_504_8,
    0.707_106_781_186_547_5, 0.771_105_412_703_970_4, 0.840_896_415_253_714_4,
    0.917_004_043_204_671_1,
];

/// Counts by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    schema: i8,
    zero: u64,
    /// In order.
    cells: Vec<Cell>,
}

/// A bucket in the upper 16 bits, its count in the others: more than any host will see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell(u64);

impl Cell {
    const COUNT: u64 = (1 << 48) - 1;

    const fn new(index: i16, count: u64) -> Self {
        let count = if count < Self::COUNT { count } else { Self::COUNT };
        Self((index.cast_unsigned() as u64) << 48 | count)
    }

    const fn index(self) -> i16 {
        ((self.0 >> 48) as u16).cast_signed()
    }

    const fn count(self) -> u64 {
        self.0 & Self::COUNT
    }
}

impl Default for Native {
    fn default() -> Self {
        Self { schema: SCHEMA as i8, zero: 0, cells: Vec::new() }
    }
}

impl Native {
    pub fn add(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        if seconds <= ZERO_THRESHOLD {
            self.zero += 1;
        } else {
            let index = self.coarser(index(seconds), SCHEMA as i8);
            self.add_to(index, 1);
            self.limit();
        }
    }

    /// Adds the counts of `other`.
    pub fn absorb(&mut self, other: &Self) {
        while self.schema > other.schema {
            self.widen();
        }
        self.zero += other.zero;
        for cell in &other.cells {
            self.add_to(self.coarser(cell.index(), other.schema), cell.count());
        }
        self.limit();
    }

    /// What came since it was `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.zero = since.zero.saturating_sub(earlier.zero);
        for cell in &earlier.cells {
            let index = self.coarser(cell.index(), earlier.schema);
            if let Ok(at) = since.find(index)
                && let Some(new) = since.cells.get_mut(at)
            {
                *new = Cell::new(index, new.count().saturating_sub(cell.count()));
            }
        }
        since.cells.retain(|cell| cell.count() > 0);
        since
    }

    pub const fn schema(&self) -> i32 {
        self.schema as i32
    }

    /// The count of zero values.
    pub const fn zero(&self) -> u64 {
        self.zero
    }

    /// Buckets that are not empty, with their counts, in order.
    pub fn buckets(&self) -> impl Iterator<Item = (i32, u64)> {
        self.cells.iter().map(|cell| (cell.index().into(), cell.count()))
    }

    /// A bucket of that schema in ours, which is not finer.
    const fn coarser(&self, index: i16, schema: i8) -> i16 {
        let halvings = schema - self.schema;
        // Rounded up, since it is upper bounds that fall together.
        (index + ((1 << halvings) - 1)) >> halvings
    }

    fn find(&self, index: i16) -> Result<usize, usize> {
        self.cells.binary_search_by_key(&index, |cell| cell.index())
    }

    fn add_to(&mut self, index: i16, count: u64) {
        match self.find(index) {
            Ok(at) => {
                if let Some(cell) = self.cells.get_mut(at) {
                    *cell = Cell::new(index, cell.count() + count);
                }
            }
            Err(at) => {
                if self.cells.len() == self.cells.capacity() {
                    self.cells.reserve_exact(4);
                }
                self.cells.insert(at, Cell::new(index, count));
            }
        }
    }

    fn limit(&mut self) {
        while self.cells.len() > MAX_CELLS {
            self.widen();
        }
    }

    /// Makes one bucket of two neighbours.
    fn widen(&mut self) {
        let (schema, cells) = (self.schema, std::mem::take(&mut self.cells));
        self.schema -= 1;
        for cell in cells {
            self.add_to(self.coarser(cell.index(), schema), cell.count());
        }
    }
}

/// The bucket of the finest schema.
fn index(seconds: f64) -> i16 {
    const FRACTION: u32 = f64::MANTISSA_DIGITS - 1;
    /// The exponent of the numbers from 0.5 to 1.
    const HALF: u64 = 1022;
    let bits = seconds.to_bits();
    let fraction = f64::from_bits(bits & ((1 << FRACTION) - 1) | HALF << FRACTION);
    let above = BOUNDS.iter().filter(|bound| **bound < fraction).count() as u16;
    // A duration is above 2^-30 s and below 2^64 s.
    let power = (bits >> FRACTION) as i16 - HALF as i16 - 1;
    above.cast_signed() + (power << SCHEMA)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Native {
        let mut native = Native::default();
        millis.into_iter().for_each(|millis| native.add(Duration::from_millis(millis)));
        native
    }

    fn total(native: &Native) -> u64 {
        native.zero() + native.buckets().map(|(_, count)| count).sum::<u64>()
    }

    /// The rule of the format, by arithmetic of its own.
    fn holds(schema: i32, index: i32, seconds: f64) -> bool {
        let base = 2_f64.powf(2_f64.powi(-schema));
        base.powi(index - 1) < seconds * (1.0 + 1e-12)
            && seconds <= base.powi(index) * (1.0 + 1e-12)
    }

    #[test]
    fn every_value_is_in_its_bucket() {
        for (n, bound) in (0..).zip(BOUNDS) {
            assert!((2_f64.powf(f64::from(n) / 8.0 - 1.0) / bound - 1.0).abs() < 1e-15, "{bound}");
        }
        let mut seconds = 1.1 * ZERO_THRESHOLD;
        while seconds < 1e9 {
            let mut native = Native::default();
            native.add(Duration::from_secs_f64(seconds));
            let exact = Duration::from_secs_f64(seconds).as_secs_f64();
            for _ in 0..=SCHEMA {
                let buckets: Vec<_> = native.buckets().collect();
                assert!(
                    matches!(buckets[..], [(index, 1)] if holds(native.schema(), index, exact))
                );
                native.widen();
            }
            seconds *= 1.037;
        }
        // On a bound, and next to it: the upper bound belongs to the bucket.
        let check = |nanos, expected: &[(i32, u64)], zero| {
            let mut native = Native::default();
            native.add(Duration::from_nanos(nanos));
            assert_eq!((native.buckets().collect(), native.zero()), (expected.to_vec(), zero));
        };
        check(0, &[], 1);
        check(953, &[], 1);
        check(954, &[(-159, 1)], 0);
        check(1_000_000_000, &[(0, 1)], 0);
        check(1_000_000_001, &[(1, 1)], 0);
        check(500_000_000, &[(-8, 1)], 0);
        check(4_000_000_000, &[(16, 1)], 0);
        check(5_000_000_000, &[(19, 1)], 0);
        Native::default().add(Duration::MAX);
    }

    #[test]
    fn counts_are_those_of_both() {
        let mut both = of([0, 1, 1, 5000]);
        let earlier = both.clone();
        let more = of([0, 1, 7, 5000, 5001]);
        both.absorb(&more);
        assert_eq!(both, of([0, 0, 1, 1, 1, 7, 5000, 5000, 5001]));
        assert_eq!(both.since(&earlier), more);
        assert_eq!(total(&both.since(&both)), 0);
        assert_eq!(both.since(&Native::default()), both);
    }

    #[test]
    fn many_different_values_take_wider_buckets() {
        let values = |count| {
            let mut native = Native::default();
            (0..count).for_each(|i| native.add(Duration::from_secs_f64(1.09_f64.powi(i) / 100.0)));
            native
        };
        let few = values(95);
        assert_eq!(few.schema(), SCHEMA);
        let many = values(190);
        assert_eq!((many.schema(), total(&many)), (2, 190));
        assert!(many.cells.len() <= MAX_CELLS);
        // Whichever is added to the other, and the difference with it.
        let (mut one, mut other) = (few.clone(), many.clone());
        one.absorb(&many);
        other.absorb(&few);
        assert_eq!(one, other);
        assert_eq!((one.schema(), total(&one)), (2, 285));
        assert_eq!(one.since(&few), many);
        // From a microsecond to a month and beyond, everything is covered.
        let mut all = Native::default();
        (0..640).for_each(|i| all.add(Duration::from_secs_f64(1e-6 * 1.05_f64.powi(i))));
        assert!(all.cells.len() <= MAX_CELLS && all.schema() == 1, "{}", all.schema());
        assert_eq!(total(&all), 640);
    }

    #[test]
    fn no_count_wraps() {
        let mut native = of([1]);
        native.cells[0] = Cell::new(native.cells[0].index(), Cell::COUNT);
        native.add(Duration::from_millis(1));
        assert_eq!(native, of([1]).with_count(Cell::COUNT));
        assert_eq!(size_of::<Cell>(), 8);
    }

    impl Native {
        fn with_count(mut self, count: u64) -> Self {
            self.cells[0] = Cell::new(self.cells[0].index(), count);
            self
        }
    }
}
