//! How long connections were idle, finely enough to ask how many gaps come near to a close.

use std::time::Duration;

/// Buckets are so many times as wide as the one before.
const GROWTH: f64 = 1.01;

/// Where the first begins: a gap is a gap from 10 ms at the least.
const FIRST: f64 = 0.01;

/// Counts by bucket; only buckets that have any.
#[derive(Clone, Debug, Default)]
pub struct Gaps(Vec<(u16, u32)>);

/// So many values from `low` to `high` seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    pub low: f64,
    pub high: f64,
    pub count: u32,
}

impl Bucket {
    pub fn middle(&self) -> f64 {
        f64::midpoint(self.low, self.high)
    }
}

impl Gaps {
    pub fn add(&mut self, gap: Duration) {
        let bucket = bucket(gap.as_secs_f64());
        match self.0.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => {
                if let Some((_, count)) = self.0.get_mut(at) {
                    *count = count.saturating_add(1);
                }
            }
            Err(at) => self.0.insert(at, (bucket, 1)),
        }
    }
}

/// All of them together, in order.
pub fn sum(all: &[&Gaps]) -> Vec<Bucket> {
    let mut counts: Vec<_> = all.iter().flat_map(|gaps| gaps.0.iter().copied()).collect();
    counts.sort_unstable_by_key(|(bucket, _)| *bucket);
    counts.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        kept.1 = kept.1.saturating_add(if is_same { next.1 } else { 0 });
        is_same
    });
    let bucket = |(bucket, count)| Bucket { low: bound(bucket), high: bound(bucket + 1), count };
    counts.into_iter().map(bucket).collect()
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
            let [Bucket { low, high, count: 1 }] = sum(&[&gaps])[..] else { panic!("{gaps:?}") };
            assert!((low <= gap || gap < FIRST) && (gap < high || gap > 1e6), "{low} {gap} {high}");
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
