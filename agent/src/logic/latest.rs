//! The latest of many durations, with the time of each: what an estimate looks at.

use std::collections::VecDeque;
use std::time::Duration;

use super::model::Nanos;

/// At most [`Latest::SIZE`] values, of which each second has its share: a thousand connections that
/// a reload closes at once do not push out what was known before.
#[derive(Clone, Debug, Default)]
pub struct Latest(VecDeque<Entry>);

/// Eight bytes, since there may be thousands of rows.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Seconds of `CLOCK_MONOTONIC`.
    second: u32,
    /// Units of 10 us; up to twelve hours.
    value: u32,
}

impl Latest {
    pub const SIZE: usize = 128;
    const PER_SECOND: usize = 16;
    const UNIT: Duration = Duration::from_micros(10);

    pub const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Whether there was room.
    pub fn add(&mut self, time: Nanos, value: Duration) -> bool {
        let second = second(time);
        let before = self.0.len().checked_sub(Self::PER_SECOND).and_then(|at| self.0.get(at));
        if before.is_some_and(|entry| entry.second == second) {
            return false;
        }
        if self.0.len() == Self::SIZE {
            self.0.pop_front();
        }
        let value = u32::try_from(value.as_nanos() / Self::UNIT.as_nanos()).unwrap_or(u32::MAX);
        self.0.push_back(Entry { second, value });
        true
    }

    /// Forgets what is older than `age` at `now`; whether there was any.
    pub fn forget(&mut self, now: Nanos, age: Duration) -> bool {
        let before = self.0.len();
        let oldest = second(now).saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        while self.0.front().is_some_and(|entry| entry.second < oldest) {
            self.0.pop_front();
        }
        self.0.len() != before
    }

    /// Values with the second that each came in, the oldest first.
    pub fn timed(&self) -> impl Iterator<Item = (u32, Duration)> {
        let value = |entry: &Entry| Self::UNIT * entry.value;
        self.0.iter().map(move |entry| (entry.second, value(entry)))
    }

    /// The oldest first.
    pub fn values(&self) -> impl Iterator<Item = Duration> {
        self.timed().map(|(_, value)| value)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least the share `q` of all do not exceed.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let mut sorted: Vec<_> = self.values().collect();
        sorted.sort_unstable();
        #[expect(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "0 to 128")]
        let rank = (q.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

fn second(time: Nanos) -> u32 {
    u32::try_from(time.0 / 1_000_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos(millis * 1_000_000)
    }

    #[test]
    fn the_latest_are_kept() {
        let mut latest = Latest::default();
        assert_eq!(latest.quantile(0.5), None);
        for value in 1..=1000 {
            latest.add(at(value * 100), Duration::from_millis(value));
        }
        assert_eq!(latest.len(), Latest::SIZE);
        let quantiles = [0.0, 0.5, 0.99, 1.0].map(|q| latest.quantile(q).unwrap().as_millis());
        assert_eq!(quantiles, [873, 936, 999, 1000]);
        latest.forget(at(100_000), Duration::from_secs(5));
        assert_eq!(latest.values().next(), Some(Duration::from_millis(950)));
        latest.add(at(101_000), Duration::MAX);
        assert_eq!(latest.values().last().unwrap().as_secs(), 42_949);
    }

    #[test]
    fn a_burst_does_not_push_out_what_was_known() {
        let mut latest = Latest::default();
        for second in 0..100 {
            latest.add(at(second * 1000), Duration::from_secs(5));
        }
        for _ in 0..1000 {
            latest.add(at(200_000), Duration::from_secs(1));
        }
        assert_eq!(latest.len(), 116);
    }
}
