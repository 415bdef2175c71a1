//! Bounded memory of connections that are past their FIN: what userspace keeps, all of it.

use std::hash::Hash;
use std::time::Duration;

use foldhash::HashMap;

use super::model::Nanos;

/// A map that forgets what is older than `keep` when it is full, and refuses (and counts) what
/// does not fit even then.
#[derive(Debug)]
pub struct Recent<K, V> {
    entries: HashMap<K, (Nanos, V)>,
    limit: usize,
    keep: Duration,
    /// Entries refused or pushed out for lack of room.
    pub refused: u64,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    pub fn new(limit: usize, keep: Duration) -> Self {
        Self { entries: HashMap::default(), limit, keep, refused: 0 }
    }

    pub fn insert(&mut self, key: K, time: Nanos, value: V) {
        self.make_room(&key, time);
        self.entries.insert(key, (time, value));
    }

    /// The entry of this key, made if there is none.
    pub fn get_or_insert(&mut self, key: K, time: Nanos, make: impl FnOnce() -> V) -> &mut V {
        self.make_room(&key, time);
        &mut self.entries.entry(key).or_insert_with(|| (time, make())).1
    }

    fn make_room(&mut self, key: &K, time: Nanos) {
        if self.entries.len() >= self.limit && !self.entries.contains_key(key) {
            let keep = self.keep;
            self.entries.retain(|_, (stamp, _)| time.since(*stamp) <= keep);
            // Nearly full of fresh ones: make room by halves, so that scans stay rare.
            if self.entries.len() > self.limit / 4 * 3 {
                let mut kept = 0_usize;
                let before = self.entries.len();
                self.entries.retain(|_, _| {
                    kept += 1;
                    kept.is_multiple_of(2)
                });
                self.refused += (before - self.entries.len()) as u64;
            }
        }
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(_, value)| value)
    }

    /// Entries, fresh or not.
    pub fn count(&self) -> usize {
        self.entries.len()
    }
}
