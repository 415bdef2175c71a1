//! How long connections were idle, finely enough to ask how many gaps come near to a close.

use std::time::Duration;

/// Buckets are so many times as wide as the one before.
const GROWTH: f64 = 1.01;

/// Where the first begins: a gap is a gap from 10 ms at the least.
const FIRST: f64 = 0.01;

/// Counts by bucket; only buckets that have any.
#[derive(Clone, Debug, Default)]
pub struct Gaps(Vec<Cell>);

#[derive(Clone, Copy, Debug)]
struct Cell {
    bucket: u16,
    count: u32,
    /// Of how far the values are from where the bucket begins, in seconds.
    sum: f32,
}

/// So many values from `low` to `high` seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    pub low: f64,
    pub high: f64,
    pub mean: f64,
    pub count: u32,
}

impl Gaps {
    pub fn add(&mut self, gap: Duration) {
        let gap = gap.as_secs_f64();
        let bucket = bucket(gap);
        let offset = (gap - bound(bucket)) as f32;
        match self.0.binary_search_by_key(&bucket, |cell| cell.bucket) {
            Ok(at) => {
                if let Some(cell) = self.0.get_mut(at) {
                    cell.add(1, offset);
                }
            }
            Err(at) => self.0.insert(at, Cell { bucket, count: 1, sum: offset }),
        }
    }
}

impl Cell {
    fn add(&mut self, count: u32, sum: f32) {
        self.count = self.count.saturating_add(count);
        self.sum += sum;
    }
}

/// All of them together, in order.
pub fn sum(all: &[&Gaps]) -> Vec<Bucket> {
    let mut cells: Vec<_> = all.iter().flat_map(|gaps| gaps.0.iter().copied()).collect();
    cells.sort_unstable_by_key(|cell| cell.bucket);
    cells.dedup_by(|next, kept| {
        let is_same = next.bucket == kept.bucket;
        if is_same {
            kept.add(next.count, next.sum);
        }
        is_same
    });
    let bucket = |Cell { bucket, count, sum }| {
        let (low, high) = (bound(bucket), bound(bucket + 1));
        Bucket { low, high, mean: low + f64::from(sum) / f64::from(count), count }
    };
    cells.into_iter().map(bucket).collect()
}

fn bucket(seconds: f64) -> u16 {
    #[expect(clippy::cast_sign_loss, reason = "clamped")]
    let bucket = ((seconds / FIRST).ln() / GROWTH.ln()).clamp(0.0, 2000.0) as u16;
    bucket
}

fn bound(bucket: u16) -> f64 {
    FIRST * GROWTH.powi(bucket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_is_in_its_bucket() {
        for gap in [0.0, 0.01, 0.2, 1.0, 59.9, 3600.0, 1e9] {
            let mut gaps = Gaps::default();
            gaps.add(Duration::from_secs_f64(gap));
            let [Bucket { low, high, mean, count: 1 }] = sum(&[&gaps])[..] else {
                panic!("{gaps:?}")
            };
            assert!((low <= gap || gap < FIRST) && (gap < high || gap > 1e6), "{low} {gap} {high}");
            assert!((mean - gap).abs() <= 1e-6 * gap.max(1.0), "{mean} {gap}");
        }
    }

    #[test]
    fn sums_are_in_order() {
        let (mut a, mut b) = (Gaps::default(), Gaps::default());
        for (gaps, gap) in [(0, 5.0), (0, 1.0), (0, 5.0), (1, 3.0), (1, 5.0)] {
            [&mut a, &mut b][gaps].add(Duration::from_secs_f64(gap));
        }
        let counts: Vec<_> = sum(&[&a, &b]).iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts, [1, 1, 3]);
        assert!(sum(&[&a, &b]).is_sorted_by(|a, b| a.high <= b.low));
        assert!(sum(&[]).is_empty());
    }
}
