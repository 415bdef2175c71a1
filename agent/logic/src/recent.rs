//! Bounded memory of connections that are past their FIN: this is all that userspace keeps.

use std::hash::Hash;
use std::time::Duration;

use foldhash::HashMap;

use super::balance::{Balance, Stage};
use super::model::Nanos;

/// Entries whose room is not worth giving back.
const ROOM: usize = 256;

/// A map that forgets what is older than `keep` when it is full, and pushes out (and counts) the older half
/// of the rest where that frees no room.
#[derive(Debug)]
pub struct Recent<K, V> {
    entries: HashMap<K, (Nanos, V)>,
    limit: usize,
    keep: Duration,
    taken: u64,
    /// Entries that were removed, replaced, or grew too old.
    left: u64,
    /// Entries pushed out for lack of room.
    pub refused: u64,
    /// When the youngest of those that left a full map had come: everything that came later is still there.
    pub left_until: Nanos,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    pub fn new(limit: usize, keep: Duration) -> Self {
        Self {
            entries: HashMap::default(),
            limit,
            keep,
            taken: 0,
            left: 0,
            refused: 0,
            left_until: Nanos(0),
        }
    }

    pub fn insert(&mut self, key: K, time: Nanos, value: V) {
        self.make_room(&key, time);
        self.taken += 1;
        self.left += u64::from(self.entries.insert(key, (time, value)).is_some());
    }

    /// The entry of this key, made if there is none.
    pub fn get_or_insert(&mut self, key: K, time: Nanos, make: impl FnOnce() -> V) -> &mut V {
        self.make_room(&key, time);
        let taken = &mut self.taken;
        let fresh = || {
            *taken += 1;
            (time, make())
        };
        &mut self.entries.entry(key).or_insert_with(fresh).1
    }

    fn make_room(&mut self, key: &K, time: Nanos) {
        if self.entries.len() >= self.limit && !self.entries.contains_key(key) {
            let keep = self.keep;
            let (mut left_until, before) = (self.left_until, self.entries.len());
            self.entries.retain(|_, (stamp, _)| {
                let stays = time.since(*stamp) <= keep;
                if !stays {
                    left_until = left_until.max(*stamp);
                }
                stays
            });
            self.left += (before - self.entries.len()) as u64;
            // Nearly full of fresh ones: make room by halves, so that scans stay rare.
            if self.entries.len() > self.limit / 4 * 3 {
                let before = self.entries.len();
                let mut stamps: Vec<_> = self.entries.values().map(|(stamp, _)| *stamp).collect();
                let (_, middle, _) = stamps.select_nth_unstable(before / 2);
                // Of the entries of that very moment, as many as it takes.
                let mut rest = before - before / 2;
                self.entries.retain(|_, (stamp, _)| {
                    let stays = *stamp >= *middle && rest > 0;
                    rest -= usize::from(stays);
                    stays
                });
                self.refused += (before - self.entries.len()) as u64;
                left_until = left_until.max(*middle);
            }
            self.left_until = left_until;
        }
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    pub fn keys(&self) -> Vec<K>
    where
        K: Copy,
    {
        self.entries.keys().copied().collect()
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let removed = self.entries.remove(key);
        self.left += u64::from(removed.is_some());
        removed.map(|(_, value)| value)
    }

    /// Forgets what is too old, full or not.
    pub fn forget(&mut self, now: Nanos) {
        let (keep, before) = (self.keep, self.entries.len());
        self.entries.retain(|_, (stamp, _)| now.since(*stamp) <= keep);
        self.left += (before - self.entries.len()) as u64;
    }

    /// Gives back the room that a burst took and nothing needs any more.
    pub fn shrink(&mut self) {
        let needed = self.entries.len().max(ROOM);
        if self.entries.capacity() / 4 > needed {
            self.entries.shrink_to(2 * needed);
        }
    }

    /// What became of all entries.
    pub fn balance(&self, stage: Stage) -> Balance {
        let Self { entries, taken, left, refused, .. } = self;
        Balance {
            stage,
            taken: *taken,
            passed: *left,
            lost: *refused,
            pending: entries.len() as u64,
        }
    }

    /// Entries, fresh or not.
    pub fn count(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_leave_a_full_map() {
        let mut recent = Recent::new(1_000, Duration::from_mins(1));
        for key in 0..2_500_u64 {
            recent.insert(key, Nanos(key), key);
        }
        assert!((500..=1_000).contains(&recent.count()));
        assert_eq!(recent.count() as u64 + recent.refused, 2_500);
        assert_eq!(recent.get(&2_499), Some(&2_499));
        assert!((2_000..2_500).all(|key| recent.get(&key).is_some()));
        // All at once: half of them, whichever.
        let mut recent = Recent::new(1_000, Duration::from_mins(1));
        (0..1_001).for_each(|key| recent.insert(key, Nanos(5), ()));
        assert_eq!((recent.count(), recent.refused), (501, 500));
    }

    #[test]
    fn every_entry_is_accounted_for() {
        let mut recent = Recent::new(500, Duration::from_secs(18));
        // In an order that looks like chance, with keys that come again.
        for n in 0..20_000_u64 {
            let (key, now) = (n * 7_919 % 900, Nanos(0) + Duration::from_millis(n * 40));
            match n % 7 {
                0 => drop(recent.remove(&key)),
                1 => *recent.get_or_insert(key, now, || 0) += 1,
                _ => recent.insert(key, now, n),
            }
            if n % 1_000 == 0 {
                recent.forget(now);
            }
            assert_eq!(recent.balance(Stage::Tracker).unaccounted(), 0);
        }
        let Balance { taken, passed, lost, pending, .. } = recent.balance(Stage::Tracker);
        assert!(
            taken > 15_000 && passed > 1_000 && lost > 1_000 && pending > 100,
            "{taken} {passed} {lost} {pending}"
        );
    }

    #[test]
    fn the_room_of_a_burst_is_given_back() {
        let at = |secs| Nanos(0) + Duration::from_secs(secs);
        let mut recent = Recent::new(16_384, Duration::from_mins(1));
        for key in 0..10_000 {
            recent.insert(key, at(key / 1_000), ());
        }
        recent.forget(at(64));
        recent.shrink();
        assert_eq!((recent.count(), recent.refused), (6_000, 0));
        assert!(recent.entries.capacity() >= 10_000);
        recent.forget(at(69));
        recent.shrink();
        assert_eq!(recent.count(), 1_000);
        assert!((1_000..5_000).contains(&recent.entries.capacity()));
        assert!(recent.get(&9_000).is_some());
    }
}
