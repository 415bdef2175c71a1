//! The owners of the ends of connections: those that were found, and their names.
//!
//! Shared between the thread that reads the rings, which finds owners, and the threads that show them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use finrace_logic::model::{Endpoint, Role};
use finrace_logic::owner::{End, Owner, Place};

use crate::kube::{Named, Names, SourceStatus};

/// Owners known at a time: containers and units that had a connection.
const MOST: usize = 16_384;

/// Every owner found, by number, and the source of names beyond what its cgroup says.
#[derive(Clone, Debug, Default)]
pub struct Who {
    owners: Arc<Mutex<Owners>>,
    /// How often owners were forgotten.
    forgotten: Arc<AtomicU32>,
    names: Option<Names>,
}

#[derive(Debug, Default)]
struct Owners {
    numbers: HashMap<Place, Owner>,
    known: HashMap<Owner, KnownPlace>,
    /// The last number assigned; none is assigned twice.
    last: u32,
    /// Cgroups of sockets that were not found, by reason.
    errors: [u64; Unnamed::ALL.len()],
}

#[derive(Debug)]
struct KnownPlace {
    place: Place,
    end: End,
    /// Whether all that can be known is known: it then stays, whatever happens to the pod.
    is_named: bool,
}

/// Where names come from, and the state of that source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    pub name: &'static str,
    /// Whether new names are found.
    pub is_up: bool,
    /// When everything was last known to be up to date, since the Unix epoch.
    pub last_sync: Option<Duration>,
    /// How often something went wrong, by reason.
    pub errors: Vec<(&'static str, u64)>,
    /// How many objects are known, by kind.
    pub objects: Vec<(&'static str, u64)>,
}

/// Why the cgroup of a socket has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// It was gone when it was searched for.
    Gone,
    /// It has yet to be searched for: counted once per batch of records until then.
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
    /// With names from Kubernetes, if there are any.
    pub fn with(names: Option<Names>) -> Self {
        Self { names, ..Self::default() }
    }

    /// The number of a place, always the same one.
    pub fn owner(&self, place: Place) -> Owner {
        let mut owners = self.lock();
        if let Some(owner) = owners.numbers.get(&place) {
            return *owner;
        }
        if owners.known.len() >= MOST {
            owners.forget();
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        owners.last += 1;
        let owner = Owner(owners.last);
        let is_named = place.unit.is_some();
        owners.known.insert(owner, KnownPlace { place: place.clone(), end: place.end(), is_named });
        owners.numbers.insert(place, owner);
        owner
    }

    /// What is known about an owner, even when it is long gone.
    pub fn end(&self, owner: Owner) -> End {
        let mut owners = self.lock();
        let Some(known) = owners.known.get_mut(&owner) else { return End::default() };
        if !known.is_named
            && let Some(names) = &self.names
        {
            known.ask(names);
        }
        known.end.clone()
    }

    /// What is known about the other end of a connection, by its address; port 0 says
    /// nothing.
    fn remote(&self, ip: IpAddr, port: u16) -> End {
        let found = self.names.as_ref().and_then(|names| names.remote(ip, port));
        found.map_or_else(End::default, |remote| End {
            namespace: Some(Arc::from(&*remote.namespace)),
            workload: Some(Arc::from(&*remote.workload)),
            pod: remote.pod.as_deref().map(Arc::from),
            container: None,
        })
    }

    /// The names of the client and the server: the local end by its owner, the other by its address.
    pub fn ends(&self, role: Role, owner: Owner, remote: Option<Endpoint>) -> [End; 2] {
        let remote = remote.map(|Endpoint { ip, port }| self.remote(ip, port)).unwrap_or_default();
        match role {
            Role::Server => [remote, self.end(owner)],
            Role::Client | Role::Unknown => [self.end(owner), remote],
        }
    }

    /// A different number than before means that owners have been forgotten: a remembered number may
    /// no longer stand for any owner.
    pub fn forgotten(&self) -> u32 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// Counts `cgroups` without a name.
    pub fn count(&self, why: Unnamed, cgroups: usize) {
        if let Some(count) = self.lock().errors.get_mut(why as usize) {
            *count += cgroups as u64;
        }
    }

    /// The state of all sources; `has_cgroups` says whether there are cgroups to find owners by.
    pub fn sources(&self, has_cgroups: bool) -> Vec<SourceState> {
        let asked = self.names.iter().flat_map(Names::status).map(SourceState::from);
        std::iter::once(self.cgroups(has_cgroups)).chain(asked).collect()
    }

    fn cgroups(&self, has_cgroups: bool) -> SourceState {
        let owners = self.lock();
        let errors = Unnamed::ALL.into_iter().zip(owners.errors);
        SourceState {
            name: "cgroup",
            is_up: has_cgroups,
            last_sync: None,
            errors: errors.map(|(why, count)| (why.as_str(), count)).collect(),
            objects: vec![("owner", owners.known.len() as u64)],
        }
    }

    /// What a panic may have left behind is still valid: every change is one insertion.
    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownPlace {
    fn ask(&mut self, names: &Names) {
        let Place { pod_uid, container_id, .. } = &self.place;
        let Some(Named { pod, container }) =
            names.local(pod_uid.as_deref(), container_id.as_deref())
        else {
            return;
        };
        // A container that has just started is not in the pod's status yet.
        self.is_named = container.is_some() || container_id.is_none();
        self.end = End {
            namespace: Some(Arc::from(&*pod.namespace)),
            workload: Some(Arc::from(&*pod.workload)),
            pod: Some(Arc::from(&*pod.name)),
            container: container.or(self.end.container.take()),
        };
    }
}

impl From<SourceStatus> for SourceState {
    fn from(status: SourceStatus) -> Self {
        let SourceStatus { source, is_up, last_sync, errors, objects } = status;
        Self {
            name: source,
            is_up,
            last_sync: last_sync.and_then(|time| time.duration_since(UNIX_EPOCH).ok()),
            errors: errors.into_iter().map(|(reason, count)| (reason.name(), count)).collect(),
            objects: objects.into_iter().map(|(kind, count)| (kind, count as u64)).collect(),
        }
    }
}

impl Owners {
    /// Drops the older half. Those of them that still have connections get a new number, once the holder
    /// of the old one has checked [`Who::forgotten`].
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
        let [source] = &who.sources(true)[..] else { panic!("more than cgroups") };
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
        // A forgotten owner comes back as a new one.
        assert_eq!(who.owner(place("0")), Owner(2 * MOST as u32 + 1));
    }
}
