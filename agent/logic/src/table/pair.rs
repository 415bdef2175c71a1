//! Rows that are the two ends of the same connections, both on this host: one story, and one problem.
//!
//! They are found by their addresses; through NAT, which changes these, by a request that both lost. Where a
//! row has connections of several local addresses, or several rows of a role share a pair of addresses, it is
//! not known which belongs to which; but what one server's row says then is still what its clients' rows do.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::net::IpAddr;

use foldhash::HashMap;

use super::{Row, Table};
use crate::ends::Ends;
use crate::model::{Endpoint, Name, Nanos, Origin, Role};
use crate::peer::RowKey;
use crate::verdict::State;

/// What both ends of a connection have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Addresses {
    /// Set where loopback means a different host in each namespace.
    netns: Option<u32>,
    client: IpAddr,
    server: Endpoint,
}

impl Addresses {
    /// None while the role is unknown.
    fn of(origin: &Origin) -> Option<Self> {
        let (client, server) = match origin.role {
            Role::Client => (origin.local.ip, origin.remote),
            Role::Server => (origin.remote.ip, origin.local),
            Role::Unknown => return None,
        };
        let netns = server.ip.is_loopback().then_some(origin.netns);
        Some(Self { netns, client, server })
    }
}

/// How a row's other end is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pairing {
    #[default]
    New,
    By(Addresses),
    /// By the client's addresses, which NAT has changed on the path to this server.
    Translated(Addresses),
    /// Its connections have several local addresses.
    Many,
}

impl Pairing {
    const fn addresses(self) -> Option<Addresses> {
        match self {
            Self::By(addresses) | Self::Translated(addresses) => Some(addresses),
            Self::New | Self::Many => None,
        }
    }
}

/// Rows by their addresses: those of clients and those of servers.
pub(super) type Pairs = HashMap<Addresses, [Vec<RowKey>; 2]>;

/// A row, lent or owned, with what its other end says.
#[derive(Clone, Copy, Debug)]
pub struct Told<R = Row> {
    pub row: R,
    /// The other end's, where that tells what is wrong between the two.
    teller: Option<R>,
    /// The other end's process.
    beyond: Option<Name>,
    /// For a server's row, the client's row that has the same problem: it counts there.
    pub other_end: Option<RowKey>,
}

impl<R: Borrow<Row>> Told<R> {
    /// Whose verdict it is.
    pub fn teller(&self) -> &Row {
        self.teller.as_ref().unwrap_or(&self.row).borrow()
    }

    pub fn ends(&self) -> Ends<'_> {
        ends(self.row.borrow(), self.beyond.as_ref())
    }
}

fn ends<'a>(row: &'a Row, beyond: Option<&'a Name>) -> Ends<'a> {
    let (role, port) = (row.key.role(), row.key.port().port);
    Ends::new(role, Some(port), row.stats.actor(), beyond.map(Name::as_str))
}

impl Told<&Row> {
    pub fn cloned(self) -> Told {
        let Self { row, teller, beyond, other_end } = self;
        Told { row: row.clone(), teller: teller.cloned(), beyond, other_end }
    }
}

impl Table {
    /// Learns how to find the other end of a row.
    pub(super) fn pair(&mut self, slot: usize, origin: &Origin) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let Some(addresses) = Addresses::of(origin) else { return };
        match row.pairing {
            Pairing::New => {
                row.pairing = Pairing::By(addresses);
                let [clients, servers] = self.pairs.entry(addresses).or_default();
                let rows = if row.key.role() == Role::Client { clients } else { servers };
                rows.push(row.key);
            }
            Pairing::By(known) if known != addresses => {
                row.pairing = Pairing::Many;
                let key = row.key;
                self.unpair(&key, Pairing::By(known));
            }
            Pairing::By(_) | Pairing::Translated(_) | Pairing::Many => {}
        }
    }

    /// Learns from a request that both ends lost, whose sequence numbers were the same, that they belong to
    /// one connection.
    pub(super) fn pair_views(&mut self, client: &Origin, server: &Origin) {
        let (Some(at_client), Some(at_server)) = (Addresses::of(client), Addresses::of(server))
        else {
            return;
        };
        let slot = RowKey::of(server).and_then(|key| self.index.get(&key).copied());
        let Some(row) = slot.and_then(|slot| self.rows.get_mut(slot)) else { return };
        if at_client == at_server || row.pairing != Pairing::By(at_server) {
            return;
        }
        row.pairing = Pairing::Translated(at_client);
        let key = row.key;
        self.unpair(&key, Pairing::By(at_server));
        let [_, servers] = self.pairs.entry(at_client).or_default();
        servers.push(key);
    }

    /// Undoes the pairing of a row that leaves.
    pub(super) fn unpair(&mut self, key: &RowKey, pairing: Pairing) {
        let Some(addresses) = pairing.addresses() else { return };
        let Some(ends) = self.pairs.get_mut(&addresses) else { return };
        for rows in &mut *ends {
            rows.retain(|row| row != key);
        }
        if ends.iter().all(Vec::is_empty) {
            self.pairs.remove(&addresses);
        }
    }

    /// The rows of clients and of servers that have the same connections as this one.
    fn paired(&self, row: &Row) -> Option<&[Vec<RowKey>; 2]> {
        self.pairs.get(&row.pairing.addresses()?)
    }

    /// The worst row of the other role that has the same connections. For a client only where it is the only
    /// one: otherwise, what a server's row tells may be another client's.
    fn other_end(&self, row: &Row) -> Option<&Row> {
        let [clients, servers] = self.paired(row)?;
        let others = match row.key.role() {
            Role::Server => clients,
            Role::Client | Role::Unknown if clients.len() == 1 => servers,
            Role::Client | Role::Unknown => return None,
        };
        let others = others.iter().filter_map(|key| self.row(key));
        others.min_by_key(|other| (own_state(other), Reverse(other.stats.counts.races())))
    }

    /// The process at the other end.
    fn beyond(&self, row: &Row) -> Option<Name> {
        if row.key.role() == Role::Server {
            return self.other_end(row)?.stats.actor().map(Name::from);
        }
        let [_, servers] = self.paired(row)?;
        servers.iter().find_map(|key| self.row(key)?.stats.actor().map(Name::from))
    }

    /// Works out the verdict of a row anew, as far as it can be seen at this end.
    pub(super) fn assess_row(&mut self, slot: usize, now: Nanos) {
        let beyond = self.rows.get(slot).and_then(|row| self.beyond(row));
        if let Some(row) = self.rows.get_mut(slot) {
            let facts = row.stats.facts_now(self.threshold, now);
            let ends = ends(row, beyond.as_ref());
            let assessment = row.stats.judge(&facts, ends);
            row.stats.take(assessment);
        }
    }

    /// The other end, if that knows better.
    fn teller(&self, row: &Row) -> Option<&Row> {
        let other = self.other_end(row)?;
        let is_client = row.key.role() == Role::Client;
        let (client, server) = if is_client { (row, other) } else { (other, row) };
        (is_told_by_client(own_state(client), own_state(server)) != is_client).then_some(other)
    }

    /// Lets a row say what its other end does, where that knows better; both were assessed.
    pub(super) fn settle(&mut self, slot: usize) {
        let Some(row) = self.rows.get(slot) else { return };
        let told = self.teller(row).and_then(|teller| teller.stats.own());
        if let Some(row) = self.rows.get_mut(slot) {
            row.stats.say(told);
        }
    }

    /// A row as it is shown.
    pub fn told<'a>(&'a self, row: &'a Row) -> Told<&'a Row> {
        let is_server = row.key.role() == Role::Server;
        let other_end = self.other_end(row).filter(|_| is_server).map(|client| client.key);
        Told { row, teller: self.teller(row), beyond: self.beyond(row), other_end }
    }
}

fn own_state(row: &Row) -> State {
    row.stats.own().map_or(State::Unknown, |own| own.state)
}

/// Losses are judged best where the request was written. Otherwise the worse of the two words holds; unknown
/// does not count as one.
fn is_told_by_client(client: State, server: State) -> bool {
    client.is_loss() || server == State::Unknown || (client != State::Unknown && client <= server)
}
