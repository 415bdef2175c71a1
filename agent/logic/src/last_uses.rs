//! When connections were last used after how long a gap, which no histogram tells.

use std::time::Duration;

use super::model::Nanos;

/// For any gap, the second of the last use after a longer one. A use makes all before it after shorter
/// gaps irrelevant, so few entries are left: the longest gap and the oldest use come first.
#[derive(Clone, Debug, Default)]
pub struct LastUses(Vec<LastUse>);

#[derive(Clone, Copy, Debug)]
struct LastUse {
    /// Of `CLOCK_MONOTONIC`.
    second: u32,
    gap_ms: u32,
}

impl LastUses {
    /// A million uses after random gaps leave fourteen on average.
    const MOST: usize = 20;

    pub fn add(&mut self, time: Nanos, gap: Duration) {
        let (second, gap_ms) = (time.second(), millis(gap));
        self.0.truncate(self.0.partition_point(|last| last.gap_ms > gap_ms));
        if let Some(last) = self.0.get_mut(Self::MOST - 1) {
            // A gap that is too long, rather than a use that is forgotten.
            last.second = second;
        } else {
            self.0.push(LastUse { second, gap_ms });
        }
    }

    /// When a connection was last used after a longer gap, in seconds of `CLOCK_MONOTONIC`.
    pub fn beyond(&self, gap: Duration) -> Option<u32> {
        let longer = self.0.partition_point(|last| last.gap_ms > millis(gap));
        self.0.get(..longer)?.last().map(|last| last.second)
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beyond(uses: &LastUses, gap_ms: u64) -> Option<u32> {
        uses.beyond(Duration::from_millis(gap_ms))
    }

    fn add(uses: &mut LastUses, second: u64, gap_ms: u64) {
        uses.add(Nanos(second * 1_000_000_000), Duration::from_millis(gap_ms));
    }

    #[test]
    fn the_last_use_after_a_longer_gap() {
        let mut uses = LastUses::default();
        for (second, gap_ms) in [(1, 500), (2, 9000), (3, 700), (4, 4000), (5, 600), (6, 700)] {
            add(&mut uses, second, gap_ms);
        }
        let found = [8999, 9000, 3999, 4000, 699, 700].map(|gap_ms| beyond(&uses, gap_ms));
        assert_eq!(found, [Some(2), None, Some(4), Some(2), Some(6), Some(4)]);
    }

    #[test]
    fn where_there_are_too_many_none_is_forgotten() {
        let mut uses = LastUses::default();
        for second in 0..60 {
            add(&mut uses, second, 9000 - 100 * second);
        }
        assert_eq!(uses.0.len(), LastUses::MOST);
        assert_eq!(beyond(&uses, 8899), Some(1));
        assert!(beyond(&uses, 3150) >= Some(58), "later rather than never");
    }
}
