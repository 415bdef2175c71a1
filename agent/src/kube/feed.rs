//! One kind of object as reported by one source, with the health of that source.

use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::directory::{Directory, Uid};

/// Why something could not be learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No right to read it.
    Forbidden,
    /// The token or certificate is not accepted, or cannot be read.
    Unauthorized,
    /// What we knew is too old to continue from, so everything is listed again.
    Gone,
    /// No connection, or it broke off; also a certificate that does not verify.
    Connect,
    /// An answer or an object that is not what it should be.
    Decode,
    Timeout,
    /// An address of a remote end found no room.
    Full,
    Other,
}

impl Reason {
    pub const ALL: [Self; 8] = [
        Self::Forbidden,
        Self::Unauthorized,
        Self::Gone,
        Self::Connect,
        Self::Decode,
        Self::Timeout,
        Self::Full,
        Self::Other,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::Gone => "gone",
            Self::Connect => "connect",
            Self::Decode => "decode",
            Self::Timeout => "timeout",
            Self::Full => "full",
            Self::Other => "other",
        }
    }
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub reason: Reason,
    pub error: anyhow::Error,
}

/// The parts of an object that concern us.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Object<K, V> {
    pub uid: Uid,
    /// Where a watch resumes after it.
    pub version: Option<String>,
    pub names: Vec<(K, V)>,
}

type Decode<K, V> = fn(&str) -> serde_json::Result<Object<K, V>>;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    pub is_up: bool,
    pub last_sync: Option<SystemTime>,
    /// Whether it has been logged that the feed is not up.
    is_told: bool,
    /// By [`Reason`].
    pub errors: [u64; Reason::ALL.len()],
}

pub(super) struct Feed<K, V> {
    /// Where the objects come from.
    pub source: &'static str,
    /// What these objects are called.
    pub kind: &'static str,
    decode: Decode<K, V>,
    directory: RwLock<Directory<K, V>>,
    health: Mutex<Health>,
    wall_clock: fn() -> SystemTime,
    changed: Arc<watch::Sender<()>>,
}

impl<K: Clone + Eq + Hash, V: Clone> Feed<K, V> {
    pub(super) fn new(
        (source, kind): (&'static str, &'static str),
        decode: Decode<K, V>,
        max: usize,
        wall_clock: fn() -> SystemTime,
        changed: &Arc<watch::Sender<()>>,
    ) -> Self {
        Self {
            source,
            kind,
            decode,
            directory: RwLock::new(Directory::new(max)),
            health: Mutex::default(),
            wall_clock,
            changed: Arc::clone(changed),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.read(|directory| directory.get(key).cloned())
    }

    pub(super) fn health(&self) -> Health {
        *self.lock_health()
    }

    pub(super) fn objects(&self) -> usize {
        self.read(Directory::objects)
    }

    pub(super) fn keys(&self) -> usize {
        self.read(Directory::keys)
    }

    /// Takes an object and returns its version, if it can be read.
    pub(super) fn put(&self, json: &str) -> Option<String> {
        let object = self.decode(json)?;
        let refused = self.write(|directory, now| directory.put(object.uid, object.names, now));
        if refused > 0 {
            self.count(Reason::Full, refused as u64);
        }
        self.tell();
        object.version
    }

    pub(super) fn remove(&self, json: &str) -> Option<String> {
        let object = self.decode(json)?;
        self.write(|directory, now| directory.remove(object.uid, now));
        self.tell();
        object.version
    }

    pub(super) fn begin_listing(&self) {
        self.write(|directory, _| directory.begin_listing());
    }

    pub(super) fn end_listing(&self) {
        self.write(Directory::end_listing);
        self.synced();
    }

    pub(super) fn expire(&self, keep: Duration) {
        self.write(|directory, now| directory.expire(keep, now));
        self.tell();
    }

    /// Records that what is known is up to date.
    pub(super) fn synced(&self) {
        let now = (self.wall_clock)();
        let was_up = {
            let mut health = self.lock_health();
            health.last_sync = Some(now);
            health.is_told = false;
            std::mem::replace(&mut health.is_up, true)
        };
        if !was_up {
            log::info!("{}, {}: known", self.source, self.kind);
        }
        self.tell();
    }

    /// The first error in a row is logged as a warning.
    pub(super) fn failed(&self, failure: &Failure) {
        self.count(failure.reason, 1);
        // Having to list again is normal.
        let is_down = failure.reason != Reason::Gone;
        let is_news = is_down && {
            let mut health = self.lock_health();
            health.is_up = false;
            !std::mem::replace(&mut health.is_told, true)
        };
        let level = if is_news { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "{}, {}: {:#}; tried again", self.source, self.kind, failure.error);
        self.tell();
    }

    fn count(&self, reason: Reason, count: u64) {
        let mut health = self.lock_health();
        if let Some(errors) = health.errors.get_mut(reason as usize) {
            *errors += count;
        }
    }

    /// Counts one object that cannot be read; this does not affect the others.
    pub(super) fn leave_out(&self, error: &dyn Display) {
        log::debug!("{}, {}: an object is left out: {error}", self.source, self.kind);
        self.count(Reason::Decode, 1);
        self.tell();
    }

    fn decode(&self, json: &str) -> Option<Object<K, V>> {
        match (self.decode)(json) {
            Ok(object) => Some(object),
            Err(error) => {
                self.leave_out(&error);
                None
            }
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Directory<K, V>) -> T) -> T {
        read(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Directory<K, V>, Instant) -> T) -> T {
        let now = Instant::now();
        write(&mut self.directory.write().unwrap_or_else(PoisonError::into_inner), now)
    }

    fn lock_health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_where_they_are_shown() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }
}
