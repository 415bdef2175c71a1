//! Objects and the keys they are found by: a bounded map in which names briefly outlive their
//! objects, since a connection's last records arrive when its pod is gone.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Maximum number of keys of objects that are gone.
const GONE_MAX: usize = 1024;

/// An object's uid as a number.
pub(super) type Uid = u128;

/// Which listing an object was last seen in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation(u32);

#[derive(Debug)]
pub(super) struct Directory<K, V> {
    objects: HashMap<Uid, Applied<K>>,
    entries: HashMap<K, Kept<V>>,
    /// Keys with the time at which they went, oldest first. Stale if the key is back.
    gone: VecDeque<(Instant, K)>,
    generation: Generation,
    max: usize,
}

#[derive(Debug)]
struct Applied<K> {
    keys: Box<[K]>,
    generation: Generation,
}

#[derive(Debug)]
struct Kept<V> {
    value: V,
    owner: Uid,
    gone: Option<Instant>,
}

impl<K: Clone + Eq + Hash, V> Directory<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            objects: HashMap::new(),
            entries: HashMap::new(),
            gone: VecDeque::new(),
            generation: Generation::default(),
            max,
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Number of objects that exist.
    pub(super) fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Number of keys, including those of objects that are gone.
    pub(super) fn keys(&self) -> usize {
        self.entries.len()
    }

    /// Stores the keys an object is now found by, and returns how many of them found no room.
    pub(super) fn put(&mut self, uid: Uid, names: Vec<(K, V)>, now: Instant) -> usize {
        let old = self.objects.remove(&uid).map(|object| object.keys).unwrap_or_default();
        let mut keys = Vec::with_capacity(names.len());
        let mut refused = 0;
        for (key, value) in names {
            let other = self.entries.get(&key).filter(|entry| entry.owner != uid);
            // A few more updates arrive for a pod that ends, when its address already belongs to another.
            if other.is_some_and(|other| other.gone.is_none()) && old.contains(&key) {
                keys.push(key);
                continue;
            }
            if !self.entries.contains_key(&key) && !self.has_room() {
                refused += 1;
                continue;
            }
            self.entries.insert(key.clone(), Kept { value, owner: uid, gone: None });
            keys.push(key);
        }
        for key in old {
            if !keys.contains(&key) {
                self.bury(key, uid, now);
            }
        }
        if !keys.is_empty() {
            let generation = self.generation;
            self.objects.insert(uid, Applied { keys: keys.into(), generation });
        }
        refused
    }

    pub(super) fn remove(&mut self, uid: Uid, now: Instant) {
        for key in self.objects.remove(&uid).into_iter().flat_map(|object| object.keys) {
            self.bury(key, uid, now);
        }
    }

    /// Begins a listing: what is not put before it is [over](Self::end_listing) is gone.
    pub(super) fn begin_listing(&mut self) {
        self.generation = Generation(self.generation.0.wrapping_add(1));
    }

    pub(super) fn end_listing(&mut self, now: Instant) {
        let generation = self.generation;
        let missing = self.objects.iter().filter(|(_, object)| object.generation != generation);
        for uid in missing.map(|(uid, _)| *uid).collect::<Vec<_>>() {
            self.remove(uid, now);
        }
    }

    /// Forgets what has been gone for longer than `keep`.
    pub(super) fn expire(&mut self, keep: Duration, now: Instant) {
        while self.gone.front().is_some_and(|(since, _)| now.duration_since(*since) >= keep) {
            self.forget_oldest();
        }
    }

    fn has_room(&mut self) -> bool {
        while self.entries.len() >= self.max && self.forget_oldest() {}
        self.entries.len() < self.max
    }

    /// The name stays for a while, unless it already belongs to another object.
    fn bury(&mut self, key: K, uid: Uid, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.owner == uid) else {
            return;
        };
        entry.gone = Some(now);
        self.gone.push_back((now, key));
        if self.gone.len() > GONE_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((since, key)) = self.gone.pop_front() else { return false };
        if self.entries.get(&key).is_some_and(|entry| entry.gone == Some(since)) {
            self.entries.remove(&key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_mins(5);

    fn after(secs: u64) -> Instant {
        // Any instant will do: only differences count.
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(secs)
    }

    fn names(directory: &Directory<u8, &'static str>) -> String {
        let mut names: Vec<_> =
            directory.entries.iter().map(|(key, entry)| format!("{key}={}", entry.value)).collect();
        names.sort();
        names.join(" ")
    }

    #[test]
    fn a_name_outlives_its_object_by_a_while() {
        let mut directory = Directory::new(10);
        directory.put(1, vec![(1, "a"), (2, "a")], after(0));
        directory.put(2, vec![(3, "b")], after(0));
        directory.remove(1, after(10));
        directory.expire(KEEP, after(309));
        assert_eq!((names(&directory).as_str(), directory.objects()), ("1=a 2=a 3=b", 1));
        directory.expire(KEEP, after(310));
        assert_eq!(names(&directory), "3=b");
    }

    #[test]
    fn an_object_that_is_back_stays() {
        let mut directory = Directory::new(10);
        directory.put(1, vec![(1, "a")], after(0));
        directory.remove(1, after(0));
        directory.put(1, vec![(1, "a")], after(1));
        directory.expire(KEEP, after(1000));
        assert_eq!(names(&directory), "1=a");
    }

    #[test]
    fn a_key_that_an_object_loses_goes_later() {
        let mut directory = Directory::new(10);
        directory.put(1, vec![(1, "a"), (2, "old")], after(0));
        directory.put(1, vec![(1, "a"), (3, "new")], after(0));
        assert_eq!(names(&directory), "1=a 2=old 3=new");
        directory.expire(KEEP, after(300));
        assert_eq!(names(&directory), "1=a 3=new");
    }

    /// As when a pod's address is given to the next pod before we hear that the first has ended.
    #[test]
    fn a_key_that_was_taken_over_is_the_new_objects() {
        let mut directory = Directory::new(10);
        directory.put(1, vec![(1, "old")], after(0));
        directory.put(2, vec![(1, "new")], after(0));
        directory.remove(1, after(0));
        directory.expire(KEEP, after(1000));
        assert_eq!(names(&directory), "1=new");
        directory.remove(2, after(1000));
        directory.expire(KEEP, after(2000));
        assert_eq!((names(&directory).as_str(), directory.objects()), ("", 0));
    }

    /// Nor do updates of the old object while it terminates take the key back.
    #[test]
    fn a_key_is_not_taken_back() {
        let mut directory = Directory::new(10);
        directory.put(1, vec![(1, "old"), (2, "old")], after(0));
        directory.put(2, vec![(1, "new")], after(0));
        for _ in 0..2 {
            directory.put(1, vec![(1, "older"), (2, "older")], after(0));
            assert_eq!((names(&directory).as_str(), directory.objects()), ("1=new 2=older", 2));
        }
        directory.remove(1, after(0));
        directory.expire(KEEP, after(1000));
        assert_eq!((names(&directory).as_str(), directory.objects()), ("1=new", 1));
        // But an object that exists gets the key once it is free, and so does one that never had it.
        directory.put(1, vec![(1, "third")], after(1000));
        assert_eq!(names(&directory), "1=third");
        directory.remove(1, after(1000));
        directory.put(2, vec![(1, "new")], after(1000));
        assert_eq!(names(&directory), "1=new");
    }

    #[test]
    fn what_a_listing_lacks_is_gone() {
        let mut directory = Directory::new(10);
        directory.put(1, vec![(1, "a")], after(0));
        directory.put(2, vec![(2, "b")], after(0));
        directory.begin_listing();
        directory.put(2, vec![(2, "b")], after(0));
        directory.put(3, vec![(3, "c")], after(0));
        assert_eq!(directory.objects(), 3, "not before its end");
        directory.end_listing(after(0));
        directory.expire(KEEP, after(300));
        assert_eq!(names(&directory), "2=b 3=c");
    }

    #[test]
    fn there_is_a_bound_and_the_gone_give_way_first() {
        let mut directory = Directory::new(2);
        assert_eq!(directory.put(1, vec![(1, "a"), (2, "a"), (3, "a")], after(0)), 1);
        assert_eq!(directory.put(2, vec![(4, "b")], after(0)), 1);
        assert_eq!((names(&directory).as_str(), directory.objects()), ("1=a 2=a", 1));
        directory.remove(1, after(0));
        assert_eq!(directory.put(2, vec![(4, "b")], after(0)), 0);
        assert_eq!(names(&directory), "2=a 4=b");
    }

    #[test]
    fn what_comes_and_goes_is_bounded_too() {
        let mut directory = Directory::new(1_000_000);
        for uid in 0..5000 {
            directory.put(uid, vec![(uid, "short")], after(0));
            directory.remove(uid, after(0));
        }
        assert_eq!((directory.keys(), directory.objects()), (GONE_MAX, 0));
    }
}
