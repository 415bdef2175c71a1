//! Which owner holds how much of a bounded memory, and whose goes first when it is full.
//!
//! Anyone who can open connections can make peers and ports, including ones that seem to matter. So what
//! leaves is taken from the largest holder: from that owner in that network namespace, and there from its
//! largest port.

use std::collections::BTreeSet;

use foldhash::HashMap;

use super::Rank;
use crate::model::Nanos;
use crate::owner::Owner;
use crate::peer::PortKey;

/// Where something stands in the order of leaving: the lowest goes first.
pub(super) type Standing<K> = (Rank, Nanos, K);

type Holder = (u32, Owner);

/// What is kept, by holder and port.
#[derive(Clone, Debug)]
pub(super) struct Shares<K> {
    holders: HashMap<Holder, Share<K>>,
    by_size: BTreeSet<(usize, Holder)>,
}

#[derive(Clone, Debug)]
struct Share<K> {
    size: usize,
    ports: HashMap<PortKey, BTreeSet<Standing<K>>>,
    by_size: BTreeSet<(usize, PortKey)>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self { holders: HashMap::default(), by_size: BTreeSet::new() }
    }
}

impl<K> Default for Share<K> {
    fn default() -> Self {
        Self { size: 0, ports: HashMap::default(), by_size: BTreeSet::new() }
    }
}

const fn holder(port: &PortKey) -> Holder {
    (port.netns, port.owner)
}

impl<K: Copy + Ord> Shares<K> {
    pub(super) fn insert(&mut self, port: &PortKey, place: Standing<K>) {
        let share = self.holders.entry(holder(port)).or_default();
        let places = share.ports.entry(*port).or_default();
        let before = places.len();
        places.insert(place);
        let now = places.len();
        resize(&mut share.by_size, *port, before, now);
        let size = share.size - before + now;
        resize(&mut self.by_size, holder(port), share.size, size);
        share.size = size;
    }

    pub(super) fn remove(&mut self, port: &PortKey, place: &Standing<K>) {
        let Some(share) = self.holders.get_mut(&holder(port)) else { return };
        let Some(places) = share.ports.get_mut(port) else { return };
        let before = places.len();
        places.remove(place);
        let now = places.len();
        resize(&mut share.by_size, *port, before, now);
        if now == 0 {
            share.ports.remove(port);
        }
        let size = share.size - before + now;
        resize(&mut self.by_size, holder(port), share.size, size);
        share.size = size;
        if size == 0 {
            self.holders.remove(&holder(port));
        }
    }

    /// The share that must lose one to make room for another at this port: the one that would then be the
    /// largest. That is the newcomer's own share if it is as large as any.
    pub(super) fn largest(&self, newcomer: &PortKey) -> Option<&BTreeSet<Standing<K>>> {
        let own = self.holders.get(&holder(newcomer));
        let own_size = own.map_or(0, |share| share.size);
        let (size, largest) = self.by_size.last()?;
        let share = match own {
            Some(own) if own_size + 1 >= *size => own,
            _ => self.holders.get(largest)?,
        };
        let own_size = share.ports.get(newcomer).map_or(0, BTreeSet::len);
        let (size, largest) = share.by_size.last()?;
        let is_own = own_size > 0 && own_size + 1 >= *size;
        share.ports.get(if is_own { newcomer } else { largest })
    }

    /// How many are kept of this port.
    pub(super) fn of_port(&self, port: &PortKey) -> usize {
        let share = self.holders.get(&holder(port));
        share.and_then(|share| share.ports.get(port)).map_or(0, BTreeSet::len)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.holders.values().flat_map(|share| share.ports.values()).map(BTreeSet::len).sum()
    }
}

fn resize<T: Copy + Ord>(sizes: &mut BTreeSet<(usize, T)>, of: T, before: usize, now: usize) {
    if before != now {
        sizes.remove(&(before, of));
        if now > 0 {
            sizes.insert((now, of));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Role;

    fn port(owner: u32, port: u16) -> PortKey {
        PortKey { netns: 1, owner: Owner(owner), role: Role::Client, port }
    }

    fn lowest(shares: &Shares<u32>, newcomer: &PortKey) -> u32 {
        shares.largest(newcomer).unwrap().first().unwrap().2
    }

    #[test]
    fn who_holds_most_gives_way() {
        let mut shares = Shares::default();
        let place = |key| (Rank::Racing, Nanos(u64::from(key)), key);
        for key in 0..6 {
            shares.insert(&port(1, 80), place(key));
        }
        for key in 6..10 {
            shares.insert(&port(1, 443), place(key));
        }
        for key in 10..15 {
            shares.insert(&port(2, 80), place(key));
        }
        assert_eq!(shares.len(), 15);
        // Owner 1 holds most, and most of that at port 80.
        for newcomer in [port(3, 1), port(2, 80), port(2, 81), port(1, 443), port(1, 80)] {
            assert_eq!(lowest(&shares, &newcomer), 0, "{newcomer}");
        }
        for key in 0..3 {
            shares.remove(&port(1, 80), &place(key));
        }
        assert_eq!(lowest(&shares, &port(2, 80)), 6);
        // Its own is as large, with the newcomer.
        assert_eq!(lowest(&shares, &port(1, 80)), 3);
        for key in 6..9 {
            shares.remove(&port(1, 443), &place(key));
        }
        // Now it is owner 2.
        assert_eq!(lowest(&shares, &port(3, 80)), 10);
        assert_eq!((shares.of_port(&port(1, 80)), shares.of_port(&port(1, 443))), (3, 1));
        for key in [3, 4, 5] {
            shares.remove(&port(1, 80), &place(key));
        }
        shares.remove(&port(1, 443), &place(9));
        for key in 10..15 {
            shares.remove(&port(2, 80), &place(key));
        }
        assert!(shares.holders.is_empty() && shares.by_size.is_empty());
        assert!(shares.largest(&port(1, 80)).is_none());
    }

    #[test]
    fn where_all_hold_the_same_the_newcomer_replaces_its_own() {
        let mut shares = Shares::default();
        for owner in 1..5 {
            for key in [2 * owner, 2 * owner + 1] {
                shares.insert(&port(owner, 80), (Rank::Fleeting, Nanos(0), key));
            }
        }
        for owner in 1..5 {
            assert_eq!(lowest(&shares, &port(owner, 80)), 2 * owner);
        }
    }
}
