//! The latest of many durations, with the time of each: what an estimate looks at.

use std::time::Duration;

use super::model::Nanos;

/// At most `SIZE` values, with a limited share for each second: a thousand connections that a reload closes
/// at once do not push out what was known before.
#[derive(Clone, Debug, Default)]
pub struct Latest<const SIZE: u8 = 128>(Option<Box<Deltas>>);

/// The first entry, and how each of the others differs from the one before it. Entries are near each
/// other, and there may be thousands of rings: a difference takes two to five bytes.
#[derive(Clone, Debug)]
struct Deltas {
    first: Entry,
    last: Entry,
    len: u8,
    /// How many of the last have the same second.
    in_second: u8,
    steps: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// Seconds of `CLOCK_MONOTONIC`.
    second: u32,
    /// Units of 10 us; up to twelve hours.
    value: u32,
}

impl Deltas {
    const fn new(entry: Entry) -> Self {
        Self { first: entry, last: entry, len: 1, in_second: 1, steps: Vec::new() }
    }

    fn push(&mut self, entry: Entry) {
        if self.steps.capacity() - self.steps.len() < 2 * MAX_STEP {
            // As one row lets go of a block, others take it: little is wasted, less than by doubling.
            self.steps.reserve_exact(16);
        }
        write(&mut self.steps, self.last.second, entry.second);
        write(&mut self.steps, self.last.value, entry.value);
        self.in_second = if entry.second == self.last.second { self.in_second + 1 } else { 1 };
        self.last = entry;
        self.len += 1;
    }

    /// Without the first of at least two.
    fn pop(&mut self) {
        let mut steps = self.steps.iter();
        if let Some(second) = step(&mut steps, self.first) {
            self.first = second;
        }
        let used = self.steps.len() - steps.len();
        self.steps.drain(..used);
        self.len -= 1;
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let mut steps = self.steps.iter();
        std::iter::successors(Some(self.first), move |entry| step(&mut steps, *entry))
    }
}

/// The most bytes that one number takes.
const MAX_STEP: usize = 5;

/// How far it is from one number to the next: seven bits to a byte, the lowest first, and the lowest
/// of all is the sign.
fn write(out: &mut Vec<u8>, from: u32, to: u32) {
    let step = i64::from(to) - i64::from(from);
    let mut rest = step.unsigned_abs() << 1 | u64::from(step < 0);
    while rest > 0x7f {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn read(bytes: &mut std::slice::Iter<'_, u8>, from: u32) -> Option<u32> {
    let (mut step, mut shift) = (0, 0);
    loop {
        let byte = bytes.next()?;
        step |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
    }
    let size = (step >> 1) as u32;
    Some(if step & 1 == 0 { from.wrapping_add(size) } else { from.wrapping_sub(size) })
}

/// The entry after `entry`.
fn step(bytes: &mut std::slice::Iter<'_, u8>, entry: Entry) -> Option<Entry> {
    let second = read(bytes, entry.second)?;
    Some(Entry { second, value: read(bytes, entry.value)? })
}

impl<const SIZE: u8> Latest<SIZE> {
    const PER_SECOND: u8 = 16;
    const UNIT: Duration = Duration::from_micros(10);

    /// Returns whether there was room.
    pub fn add(&mut self, time: Nanos, value: Duration) -> bool {
        let second = time.second();
        let value = u32::try_from(value.as_nanos() / Self::UNIT.as_nanos()).unwrap_or(u32::MAX);
        let entry = Entry { second, value };
        let Some(ring) = &mut self.0 else {
            self.0 = Some(Box::new(Deltas::new(entry)));
            return true;
        };
        if ring.last.second == second && ring.in_second >= Self::PER_SECOND {
            return false;
        }
        if ring.len == SIZE {
            ring.pop();
        }
        ring.push(entry);
        true
    }

    /// Forgets what is older than `age` at `now`.
    pub fn forget(&mut self, now: Nanos, age: Duration) {
        let oldest = now.second().saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        while let Some(ring) = self.0.as_mut().filter(|ring| ring.first.second < oldest) {
            if ring.len > 1 {
                ring.pop();
            } else {
                self.0 = None;
            }
        }
    }

    /// Values with the second that each came in, the oldest first.
    pub fn timed(&self) -> impl Iterator<Item = (u32, Duration)> {
        let entries = self.0.iter().flat_map(|ring| ring.entries());
        entries.map(|entry| (entry.second, Self::UNIT * entry.value))
    }

    /// The oldest first.
    pub fn values(&self) -> impl Iterator<Item = Duration> {
        self.timed().map(|(_, value)| value)
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |ring| ring.len.into())
    }

    /// The smallest value that at least the share `q` of all do not exceed.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let mut values: Vec<_> = self.values().collect();
        #[expect(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "0 to 128")]
        let rank = (q.clamp(0.0, 1.0) * values.len() as f64).ceil() as usize;
        let place = rank.saturating_sub(1);
        (place < values.len()).then(|| *values.select_nth_unstable(place).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos(millis * 1_000_000)
    }

    #[test]
    fn the_latest_are_kept() {
        let mut latest = <Latest>::default();
        assert_eq!(latest.quantile(0.5), None);
        for value in 1..=1000 {
            latest.add(at(value * 100), Duration::from_millis(value));
        }
        assert_eq!(latest.len(), 128);
        let quantiles = [0.0, 0.5, 0.99, 1.0].map(|q| latest.quantile(q).unwrap().as_millis());
        assert_eq!(quantiles, [873, 936, 999, 1000]);
        latest.forget(at(100_000), Duration::from_secs(5));
        assert_eq!(latest.values().next(), Some(Duration::from_millis(950)));
        latest.add(at(101_000), Duration::MAX);
        assert_eq!(latest.values().last().unwrap().as_secs(), 42_949);
    }

    #[test]
    fn a_burst_does_not_push_out_what_was_known() {
        let mut latest = <Latest>::default();
        for second in 0..100 {
            latest.add(at(second * 1000), Duration::from_secs(5));
        }
        for _ in 0..1000 {
            latest.add(at(200_000), Duration::from_secs(1));
        }
        assert_eq!(latest.len(), 116);
    }

    /// Whatever comes, it is what a plain list of the latest would hold.
    #[test]
    fn nothing_is_lost_in_differences() {
        let (mut latest, mut plain) = (<Latest>::default(), Vec::new());
        let mut state = 7_u64;
        let mut random = |bits: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> (64 - bits)
        };
        let mut now = 0;
        for round in 0..3000 {
            // Stamps of different CPUs may be out of order.
            let bits = 4 + random(3) as u32;
            now = (now + random(bits) * 10).saturating_sub(random(4) * 10);
            let bits = if round % 10 == 0 { 38 } else { 21 };
            let value = Duration::from_micros(random(bits) / 10 * 10);
            if latest.add(at(now), value) {
                plain.push(((now / 1000) as u32, value.min(Duration::from_micros(42_949_672_950))));
            }
            let rest = plain.len().saturating_sub(128);
            plain.drain(..rest);
            if round % 100 == 0 {
                latest.forget(at(now), Duration::from_secs(50));
                let oldest = (now / 1000).saturating_sub(50) as u32;
                let old = plain.iter().take_while(|(second, _)| *second < oldest).count();
                plain.drain(..old);
            }
            assert_eq!(latest.timed().collect::<Vec<_>>(), plain, "round {round}");
        }
        latest.forget(Nanos(u64::MAX), Duration::ZERO);
        assert!(latest.is_empty());
    }
}
