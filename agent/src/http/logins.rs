//! Basic auth: the header, and the password behind it.
//!
//! Checking a password takes a tenth of a second by design. So only one check runs at a time, on a
//! thread of its own; at most one per network waits for it; and what was right once is remembered, so
//! that a client trying passwords cannot keep a scraper out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bcrypt::HashParts;
use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::fair::network;

/// Networks with a password being checked or waiting to be.
const QUEUE: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    Right,
    Wrong,
    /// Too many checks are pending.
    Busy,
}

pub(super) struct Logins {
    /// For each user, what was last right: a digest of hash and password. Never more entries than
    /// users, whatever is tried.
    right: Arc<Mutex<HashMap<String, [u8; 32]>>>,
    /// Networks with a check in the queue.
    waiting: Mutex<HashSet<IpAddr>>,
    turn: Arc<Semaphore>,
}

impl Default for Logins {
    fn default() -> Self {
        Self { right: Arc::default(), waiting: Mutex::default(), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Logins {
    /// `users` are hashes by name; `header` is the `Authorization` of a request `from` that address.
    pub(super) async fn check(
        &self,
        users: &BTreeMap<String, String>,
        header: Option<&HeaderValue>,
        from: IpAddr,
    ) -> Login {
        let Some((user, password)) = header.and_then(|header| credentials(header.as_bytes()))
        else {
            return Login::Wrong;
        };
        let known = users.get(&user);
        let Some(hash) = known.or_else(|| stand_in(users)).cloned() else {
            return Login::Wrong;
        };
        let digest = digest(&hash, &password);
        let remembered = |right: &HashMap<_, _>| right.get(&user) == Some(&digest);
        if known.is_some() && remembered(&self.right.lock().unwrap_or_else(PoisonError::into_inner))
        {
            return Login::Right;
        }
        let Some(_place) = Waiting::of(self, network(from)) else { return Login::Busy };
        // The semaphore is never closed.
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok();
        let (is_known, right) = (known.is_some(), Arc::clone(&self.right));
        let check = tokio::task::spawn_blocking(move || {
            let is_right = bcrypt::verify(&password, &hash).unwrap_or(false) && is_known;
            if is_right {
                right.lock().unwrap_or_else(PoisonError::into_inner).insert(user, digest);
            }
            // Not before: a client that leaves does not end the work.
            drop(turn);
            is_right
        });
        if check.await.unwrap_or(false) { Login::Right } else { Login::Wrong }
    }

    /// Forgets those who are no longer users.
    pub(super) fn keep(&self, users: &BTreeMap<String, String>) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.retain(|user, _| users.contains_key(user));
    }
}

/// A network's place in the queue, for as long as it waits.
struct Waiting<'a> {
    logins: &'a Logins,
    network: IpAddr,
}

impl<'a> Waiting<'a> {
    /// None if the network already has one, or if none is left.
    fn of(logins: &'a Logins, network: IpAddr) -> Option<Self> {
        let mut waiting = logins.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Made only if the insertion succeeds: it removes the network when dropped.
        (waiting.len() < QUEUE && waiting.insert(network)).then(|| Self { logins, network })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.logins.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&self.network);
    }
}

/// An unknown user takes as long as a known one, by the hash of another user: the slowest one.
fn stand_in(users: &BTreeMap<String, String>) -> Option<&String> {
    users.values().max_by_key(|hash| hash.parse().ok().map(|hash: HashParts| hash.get_cost()))
}

fn digest(hash: &str, password: &[u8]) -> [u8; 32] {
    // A hash is always 60 bytes.
    Sha256::new().chain_update(hash).chain_update(password).finalize().into()
}

/// User and password of a header, which need not be UTF-8; a user name that is not matches nobody.
fn credentials(header: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = STANDARD.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let (user, password) = decoded.split_at_checked(colon)?;
    Some((String::from_utf8_lossy(user).into_owned(), password.get(1..)?.to_vec()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// The hash of "sesame", at the least cost.
    pub(in super::super) fn hash() -> String {
        bcrypt::hash("sesame", 4).unwrap()
    }

    pub(in super::super) fn basic(login: &str) -> String {
        format!("Basic {}", STANDARD.encode(login))
    }

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn users() -> BTreeMap<String, String> {
        BTreeMap::from([("alice".to_owned(), hash()), ("bob".to_owned(), hash())])
    }

    #[test]
    fn headers() {
        let check = |header: &str, expected: Option<(&str, &str)>| {
            let found = credentials(header.as_bytes());
            let expected = expected.map(|(user, password)| (user.to_owned(), password.into()));
            assert_eq!(found, expected, "{header}");
        };
        check(&basic("alice:sesame"), Some(("alice", "sesame")));
        check("bAsIc OmE6Yg==", Some(("", "a:b")));
        check(&basic("alice:"), Some(("alice", "")));
        check(&basic("alice"), None);
        check("Bearer YTpi", None);
        check("Basic", None);
        check("Basic  YTpi", None);
        check("Basic YTp", None);
        check("", None);
    }

    #[tokio::test]
    async fn who_is_let_in() {
        let (logins, users) = (Logins::default(), users());
        for (login, expected) in [
            ("alice:sesame", Login::Right),
            ("bob:sesame", Login::Right),
            // Now from memory, and what memory must not let in.
            ("alice:sesame", Login::Right),
            ("alice:sesam", Login::Wrong),
            ("alice:", Login::Wrong),
            ("Alice:sesame", Login::Wrong),
            ("carol:sesame", Login::Wrong),
            (":sesame", Login::Wrong),
        ] {
            let header = HeaderValue::from_str(&basic(login)).unwrap();
            assert_eq!(logins.check(&users, Some(&header), HERE).await, expected, "{login}");
        }
        assert_eq!(logins.check(&users, None, HERE).await, Login::Wrong);
        assert_eq!(logins.right.lock().unwrap().len(), 2);
    }

    #[test]
    fn whoever_is_not_known_takes_longest() {
        let costs = [("alice", 4), ("bob", 6), ("carol", 10), ("dave", 5)];
        let hashed = costs.map(|(user, cost)| {
            (
                user.to_owned(),
                format!("$2y${cost:02}$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"),
            )
        });
        let users = BTreeMap::from(hashed);
        assert_eq!(stand_in(&users), users.get("carol"));
        assert_eq!(stand_in(&BTreeMap::new()), None);
    }

    #[tokio::test]
    async fn a_new_password_ends_the_old_one() {
        let (logins, mut users) = (Logins::default(), users());
        let header = HeaderValue::from_str(&basic("alice:sesame")).unwrap();
        assert_eq!(logins.check(&users, Some(&header), HERE).await, Login::Right);
        users.insert("alice".to_owned(), bcrypt::hash("open", 4).unwrap());
        logins.keep(&users);
        assert_eq!(logins.check(&users, Some(&header), HERE).await, Login::Wrong);
        users.remove("alice");
        logins.keep(&users);
        assert_eq!(logins.check(&users, Some(&header), HERE).await, Login::Wrong);
        assert!(logins.right.lock().unwrap().is_empty());
    }

    /// The turn is taken, so no password is checked: remembered users do not wait, a few others do,
    /// and the rest are told so.
    #[tokio::test]
    async fn those_who_try_passwords_keep_nobody_out() {
        let (logins, users) = (Arc::new(Logins::default()), users());
        let right = HeaderValue::from_str(&basic("alice:sesame")).unwrap();
        assert_eq!(logins.check(&users, Some(&right), HERE).await, Login::Right);
        let turn = Arc::clone(&logins.turn).acquire_owned().await.unwrap();
        let wrong = HeaderValue::from_str(&basic("alice:open")).unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        let mut wait = |header: &HeaderValue, from| {
            let (logins, users, header) = (Arc::clone(&logins), users.clone(), header.clone());
            waiting.spawn(async move { logins.check(&users, Some(&header), from).await });
        };
        // One each from loopback and from an IPv6 network, whatever the address.
        for n in 0..20 {
            wait(&wrong, [127, 0, 1, n].into());
            wait(&wrong, Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, n.into()).into());
        }
        // Another user, not seen before.
        let bob = HeaderValue::from_str(&basic("bob:sesame")).unwrap();
        wait(&bob, [10, 0, 0, 7].into());
        while logins.waiting.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(logins.check(&users, Some(&wrong), HERE).await, Login::Busy);
        assert_eq!(logins.check(&users, Some(&right), HERE).await, Login::Right);
        drop(turn);
        let mut results = waiting.join_all().await;
        results.retain(|login| *login != Login::Busy);
        results.sort_unstable_by_key(|login| *login == Login::Right);
        assert_eq!(results, [Login::Wrong, Login::Wrong, Login::Right]);
        assert!(logins.waiting.lock().unwrap().is_empty());
        // The number of networks is limited, too.
        let turn = Arc::clone(&logins.turn).acquire_owned().await.unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..QUEUE {
            let (logins, users, wrong) = (Arc::clone(&logins), users.clone(), wrong.clone());
            let from = [10, 0, 1, n as u8].into();
            waiting.spawn(async move { logins.check(&users, Some(&wrong), from).await });
        }
        while logins.waiting.lock().unwrap().len() < QUEUE {
            tokio::task::yield_now().await;
        }
        assert_eq!(logins.check(&users, Some(&wrong), HERE).await, Login::Busy);
        drop(turn);
        assert_eq!(waiting.join_all().await, [Login::Wrong; QUEUE]);
    }
}
