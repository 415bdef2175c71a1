//! Whether a pool uses what the server is about to close, judged by the latest minute: so a change in it shows soon.

use std::time::Duration;

use crate::estimate::MIN_CLOSES;
use crate::exposure::margin;
use crate::model::Nanos;

/// The latest minute or so of uses and drops, since the last request that an idle timeout may have taken:
/// what happened before the requesting side changed its pool does not count for long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pool {
    before: Slot,
    now: Slot,
    since: Nanos,
    /// It was plain that none is used after longer than this, and none was since; 0 if it was not plain. It
    /// stays so while the pool has nothing to drop.
    proven_us: u32,
}

/// How long the connections that were used again had been idle, how many that were idle for longer our pool
/// closed, and how many the server closed.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    longest_us: u32,
    uses: u32,
    dropped: u32,
    closed: u32,
}

impl Pool {
    const SLOT: Duration = Duration::from_secs(30);

    /// Fewer prove nothing.
    const LEAST: u32 = 20;

    pub(super) fn new(start: Nanos) -> Self {
        Self { since: start, ..Self::default() }
    }

    pub(super) fn use_after(&mut self, time: Nanos, gap: Duration) {
        if self.now.uses >= Self::LEAST && time.since(self.since) >= Self::SLOT {
            *self = Self { before: self.now, now: Slot::default(), since: time, ..*self };
        }
        let (slot, gap_us) = (&mut self.now, micros(gap));
        if gap_us > self.proven_us {
            self.proven_us = 0;
        }
        slot.uses = slot.uses.saturating_add(1);
        if gap_us > slot.longest_us {
            (slot.longest_us, slot.dropped) = (gap_us, 0);
        }
    }

    pub(super) fn drop_after(&mut self, idle: Duration) {
        let slot = &mut self.now;
        slot.dropped = slot.dropped.saturating_add(u32::from(micros(idle) > slot.longest_us));
    }

    /// The server closed one.
    pub(super) fn close(&mut self) {
        self.now.closed = self.now.closed.saturating_add(1);
    }

    pub(super) fn note_race(&mut self, time: Nanos) {
        *self = Self { since: time, ..Self::default() };
    }

    /// As [`Grounds::last_use`](crate::exposure::Grounds::last_use), from the latest alone.
    pub(super) fn last_use(&self, low: f64, rtt: Duration) -> Option<Duration> {
        let Self { before, now, .. } = self;
        let last = Duration::from_micros(before.longest_us.max(now.longest_us).into());
        let margin = margin(low, rtt);
        let is_new = before.uses.saturating_add(now.uses) >= Self::LEAST
            && before.dropped.saturating_add(now.dropped) >= MIN_CLOSES
            // Otherwise the pool that lost requests may just be at rest.
            && before.closed.saturating_add(now.closed) >= 2;
        let is_plain = is_new || self.proven_us > 0;
        (is_plain && last.as_secs_f64() + margin < low).then_some(last)
    }

    /// It is plain that none is used near the timeout, which begins at `low`.
    pub(super) fn prove(&mut self, low: f64, rtt: Duration) {
        let limit = Duration::try_from_secs_f64(low - margin(low, rtt));
        self.proven_us = limit.map_or(0, micros);
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pool drops what was idle for 1.5 s or more, and the server would close after 2 s.
    #[test]
    fn what_came_of_late_counts() {
        let rtt = Duration::from_millis(1);
        let second = |second: u64| Nanos(second * 1_000_000_000);
        let add = |pool: &mut Pool, start: u64, uses: &[(u64, u32)], drops: &[u64]| {
            for (gap_ms, count) in uses {
                for i in 0..*count {
                    let time = second(start + u64::from(i));
                    pool.use_after(time, Duration::from_millis(*gap_ms));
                }
            }
            for idle_ms in drops {
                pool.drop_after(Duration::from_millis(*idle_ms));
            }
            pool.close();
            pool.close();
        };
        let last = |pool: &Pool| pool.last_use(2.0, rtt).map(|last| last.as_millis());
        let last_use = |uses: &[(u64, u32)], drops: &[u64]| {
            let mut pool = Pool::default();
            add(&mut pool, 0, uses, drops);
            last(&pool)
        };
        assert_eq!(last_use(&[(400, 19), (1400, 1)], &[1600; 5]), Some(1400));
        // Too few uses, too few drops, drops of what is used after as long, uses near the timeout.
        assert_eq!(last_use(&[(400, 18), (1400, 1)], &[1600; 5]), None);
        assert_eq!(last_use(&[(400, 19), (1400, 1)], &[1600; 4]), None);
        assert_eq!(last_use(&[(400, 19), (1400, 1)], &[1300; 5]), None);
        assert_eq!(last_use(&[(400, 19), (1950, 1)], &[1960; 5]), None);
        // What came before does not count for long, and nothing from before a race does.
        let mut pool = Pool::default();
        add(&mut pool, 0, &[(400, 19), (1950, 1)], &[]);
        add(&mut pool, 40, &[(400, 30)], &[1600; 5]);
        assert_eq!(last(&pool), None);
        add(&mut pool, 80, &[(400, 30)], &[1600; 5]);
        assert_eq!(last(&pool), Some(400));
        // Once it is plain, it stays so until one is used near the timeout, or lost.
        pool.prove(2.0, rtt);
        add(&mut pool, 120, &[(400, 30)], &[]);
        add(&mut pool, 160, &[(400, 30)], &[]);
        assert_eq!(last(&pool), Some(400));
        let mut used = pool;
        add(&mut used, 200, &[(1950, 1)], &[]);
        assert_eq!(last(&used), None);
        add(&mut used, 240, &[(400, 60)], &[]);
        add(&mut used, 320, &[(400, 60)], &[]);
        assert_eq!(last(&used), None, "it has to be plain anew");
        pool.note_race(second(120));
        assert_eq!(last(&pool), None);
    }
}
