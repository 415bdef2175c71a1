//! Who the ends of connections are: the owners that were found, and the names of them.
//!
//! Shared between the thread that reads the rings, which finds owners, and those that show them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::logic::owner::{End, Owner, Place};

/// Owners that are known at a time: containers and units that had a connection.
const MOST: usize = 16_384;

/// Every owner that was found, by number.
#[derive(Clone, Debug, Default)]
pub struct Who(Arc<Mutex<Owners>>);

#[derive(Debug, Default)]
struct Owners {
    numbers: HashMap<Place, Owner>,
    known: HashMap<Owner, End>,
    /// The number that was given last; none is given twice.
    last: u32,
    /// Sockets whose cgroup has no name, by why.
    errors: [u64; Unnamed::ALL.len()],
}

/// Where names come from, and how it is with that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: &'static str,
    /// Whether new names are found.
    pub is_up: bool,
    /// When all that there is was read last, since the Unix epoch.
    pub last_sync: Option<Duration>,
    /// What went wrong how often, by reason.
    pub errors: Vec<(&'static str, u64)>,
    /// What is known, by kind.
    pub objects: Vec<(&'static str, u64)>,
}

/// Why a socket's owner has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// Its cgroup was not there any more when it was looked for.
    Gone,
    /// It was not looked for, having been looked for others just before.
    Busy,
}

impl Unnamed {
    const ALL: [Self; 2] = [Self::Gone, Self::Busy];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Busy => "busy",
        }
    }
}

impl Who {
    /// The number of a place, the same one each time.
    pub fn owner(&self, place: Place) -> Owner {
        let mut owners = self.lock();
        if let Some(owner) = owners.numbers.get(&place) {
            return *owner;
        }
        if owners.known.len() >= MOST {
            owners.forget();
        }
        owners.last += 1;
        let owner = Owner(owners.last);
        owners.known.insert(owner, place.end());
        owners.numbers.insert(place, owner);
        owner
    }

    /// What is known of an owner, also when it is long gone.
    pub fn end(&self, owner: Owner) -> End {
        self.lock().known.get(&owner).cloned().unwrap_or_default()
    }

    /// So many sockets' owners have no name.
    pub fn count(&self, why: Unnamed, sockets: usize) {
        if let Some(count) = self.lock().errors.get_mut(why as usize) {
            *count += sockets as u64;
        }
    }

    /// How it is with finding owners by their cgroups, which `has_cgroups` says are there at all.
    pub fn cgroups(&self, has_cgroups: bool) -> Source {
        let owners = self.lock();
        let errors = Unnamed::ALL.into_iter().zip(owners.errors);
        Source {
            name: "cgroup",
            is_up: has_cgroups,
            last_sync: None,
            errors: errors.map(|(why, count)| (why.as_str(), count)).collect(),
            objects: vec![("owner", owners.known.len() as u64)],
        }
    }

    /// What a panic may have left behind is still true: every change is one insertion.
    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owners {
    /// The older half leaves. Of these, those that still have connections get a new number.
    fn forget(&mut self) {
        let mut numbers: Vec<_> = self.known.keys().copied().collect();
        let middle = numbers.len() / 2;
        let (_, middle, _) = numbers.select_nth_unstable(middle);
        let middle = *middle;
        self.known.retain(|owner, _| *owner >= middle);
        self.numbers.retain(|_, owner| *owner >= middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        Place::of(&format!("/system.slice/{name}.service")).unwrap()
    }

    #[test]
    fn a_unit_that_is_started_again_is_the_same_owner() {
        let who = Who::default();
        let (nginx, redis) = (who.owner(place("nginx")), who.owner(place("redis")));
        assert_eq!(who.owner(place("nginx")), nginx);
        assert_ne!(nginx, redis);
        assert_eq!(who.end(redis).text().as_deref(), Some("redis.service"));
        assert!(who.end(Owner::UNKNOWN).is_empty() && who.end(Owner(77)).is_empty());
        who.count(Unnamed::Busy, 3);
        let source = who.cgroups(true);
        assert_eq!(source.errors, [("gone", 0), ("busy", 3)]);
        assert_eq!(source.objects, [("owner", 2)]);
    }

    #[test]
    fn owners_are_bounded_and_the_latest_stay() {
        let who = Who::default();
        let owners: Vec<_> = (0..MOST * 2).map(|n| who.owner(place(&n.to_string()))).collect();
        let known = who.lock().known.len();
        assert!((MOST / 2..=MOST).contains(&known), "{known}");
        assert_eq!(who.lock().numbers.len(), known);
        assert!(owners.iter().rev().take(MOST / 2).all(|owner| !who.end(*owner).is_empty()));
        // One that was forgotten is another owner.
        assert_eq!(who.owner(place("0")), Owner(2 * MOST as u32 + 1));
    }
}
