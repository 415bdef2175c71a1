//! Everything that was observed, by peer and by port, in bounded memory.
//!
//! Note that a row or a port can leave, because the table is full, or because it is no longer seen. Where the
//! table is full, the largest holder loses one ([`shares`]). The counts of what left stay, in the row `other`
//! of its role or with those that are shown under the same labels ([`Left`]), so that a sum over the rows
//! never goes back.

mod counts;
mod export;
mod lately;
mod pair;
mod pool;
mod round;
mod shares;
mod stats;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use foldhash::HashMap;

use super::balance::{Balance, Stage};
use super::estimate::Estimate;
use super::model::{Cause, Class, Close, Closer, Incident, Nanos, Observation, Origin, Role};
use super::owner::Owner;
use super::peer::{PortKey, RowKey};
pub use counts::{Counts, Example, Keeps, Kinds, Measure, Tally};
pub use export::{Collection, Export, Left, Level, OF_OTHERS, Shown};
pub use pair::Told;
use pair::{Pairing, Pairs};
use round::Round;
use shares::{Shares, Standing};
use stats::RecentCloses;
pub use stats::{Advised, IdleTimes, Stats};
pub use survey::{Badness, Picture, Survey};

/// Roll-ups: a port of an owner in a namespace.
const MAX_PORTS: usize = 4096;

/// A row that raced, or that told us something, is kept this long afterwards, unless its holder has too many.
const KEPT: Duration = Duration::from_hours(1);

/// Observations after which a row is more than a passer-by; an estimate needs as many closes.
const TELLING: u32 = 5;

/// What was observed of one peer.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: RowKey,
    pub stats: Stats,
    observations: u32,
    rank: Rank,
    /// Where the row stands in the order of eviction, see [`Rank`].
    since: Nanos,
    last_seen: Nanos,
    last_race: Option<Nanos>,
    /// The collection for a scrape that last took it.
    taken: u32,
    pairing: Pairing,
}

impl Row {
    fn new(key: RowKey, stats: Stats, time: Nanos) -> Self {
        Self {
            key,
            stats,
            observations: 0,
            rank: Rank::Fleeting,
            since: time,
            last_seen: time,
            last_race: None,
            taken: 0,
            pairing: Pairing::New,
        }
    }

    pub const fn last_seen(&self) -> Nanos {
        self.last_seen
    }
}

/// The part of the table, one in this many, that the peers of a port may take from those that race before
/// they race themselves.
const OF_PORT: usize = 16;

/// How much a row matters to its holder; within a rank, those that were quiet for longest go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Seen a few times: all that a flood of addresses can make.
    Fleeting,
    /// Has said enough for an estimate; kept for an hour after it was last seen.
    Telling,
    /// Has raced within the last hour.
    Racing,
}

/// What was observed at one port, over all its peers.
#[derive(Clone, Debug)]
pub struct Port {
    pub stats: Stats,
    recent: RecentCloses,
    last_seen: Nanos,
    /// Where it stands in the order of eviction.
    since: Nanos,
    /// The collection for a scrape that last took it.
    taken: u32,
}

impl Port {
    const fn place(&self, key: PortKey) -> Standing<PortKey> {
        (Rank::Telling, self.since, key)
    }
}

/// The bounded table.
#[derive(Clone, Debug)]
pub struct Table {
    max_rows: usize,
    max_ports: usize,
    threshold: Duration,
    keeps: Keeps,
    /// When watching began.
    start: Nanos,
    index: HashMap<RowKey, usize>,
    #[expect(clippy::vec_box, reason = "thousands of large ones, not to be moved as it grows")]
    rows: Vec<Box<Row>>,
    pairs: Pairs,
    /// Every row by rank, then by age.
    order: BTreeSet<Standing<usize>>,
    /// The same by holder: one of the largest share has to leave.
    shares: Shares<usize>,
    other_client: Stats,
    other_server: Stats,
    ports: HashMap<PortKey, Box<Port>>,
    port_shares: Shares<PortKey>,
    /// What ports that left had counted, by role: clients', servers'.
    other_ports: [Counts; 2],
    /// Those that left since the last scrape that showed them.
    left_rows: Vec<Left<RowKey>>,
    left_ports: Vec<Left<PortKey>>,
    /// Whatever has not been seen for this long leaves; without a limit, nothing ever does.
    stale_after: Option<Duration>,
    stale: u64,
    /// The number of the collection under way; between collections, one that none has.
    scrape: u32,
    /// Counts of rows, and of ports, that left after that collection had taken them.
    gone: [Counts; 2],
    gone_ports: [Counts; 2],
    evictions: u64,
    refusals: u64,
    port_evictions: u64,
    unattributed: u64,
    /// Observations, and views of them from the other end.
    taken: u64,
    added: u64,
    /// Counts of rows that left, which a scrape has shown for the last time.
    taken_away: u64,
}

impl Table {
    /// `threshold` is the gap from which a write counts as a reuse, `start` when watching began.
    pub fn new(max_rows: usize, threshold: Duration, start: Nanos) -> Self {
        Self {
            max_rows,
            max_ports: MAX_PORTS,
            threshold,
            keeps: Keeps::default(),
            start,
            index: HashMap::default(),
            rows: Vec::new(),
            pairs: Pairs::default(),
            order: BTreeSet::new(),
            shares: Shares::default(),
            other_client: Stats::new(Role::Client, start, Keeps::default()),
            other_server: Stats::new(Role::Server, start, Keeps::default()),
            ports: HashMap::default(),
            port_shares: Shares::default(),
            other_ports: Default::default(),
            left_rows: Vec::new(),
            left_ports: Vec::new(),
            stale_after: None,
            stale: 0,
            scrape: 1,
            gone: Default::default(),
            gone_ports: Default::default(),
            evictions: 0,
            refusals: 0,
            port_evictions: 0,
            unattributed: 0,
            taken: 0,
            added: 0,
            taken_away: 0,
        }
    }

    /// Lets peers and ports leave once they have not been seen for this long; they do so when verdicts are next
    /// worked out.
    pub const fn forget_after(&mut self, quiet: Duration) {
        self.stale_after = Some(quiet);
    }

    /// Sets what to keep besides the counts; to be called before anything is added.
    pub fn keep(&mut self, keeps: Keeps) {
        self.keeps = keeps;
        self.other_client = self.new_stats(Role::Client);
        self.other_server = self.new_stats(Role::Server);
    }

    fn new_stats(&self, role: Role) -> Stats {
        Stats::new(role, self.start, self.keeps)
    }

    pub fn add(&mut self, observation: &Observation) {
        let is_race = matches!(observation, Observation::Incident(i) if i.class.is_race());
        self.added += 1;
        if matches!(observation, Observation::Outcome(_)) {
            return; // Of what was counted before.
        }
        let time = observation.time();
        let close = if let Observation::Close(close) = observation { Some(close) } else { None };
        self.update(observation.origin(), time, is_race, close, |stats| stats.add(observation));
        if let Observation::Incident(Incident { other_view: Some(view), .. }) = observation
            && is_race
        {
            self.update(&view.origin, view.time, true, None, |stats| {
                stats.add_seen(view);
            });
            self.pair_views(observation.origin(), &view.origin);
        }
    }

    /// Applies `change` to the row and to the roll-up of `origin`; the latter remembers the close.
    fn update(
        &mut self,
        origin: &Origin,
        time: Nanos,
        is_race: bool,
        close: Option<&Close>,
        change: impl Fn(&mut Stats),
    ) {
        self.taken += 1;
        let Some(key) = RowKey::of(origin) else {
            self.unattributed += 1;
            return;
        };
        if let Some(port) = self.port_mut(&key.port(), time) {
            change(&mut port.stats);
            if let Some(close) = close {
                port.recent.add(close);
            }
        }

        let slot = self.index.get(&key).copied().or_else(|| self.make_room(key, time, is_race));
        let Some((slot, row)) = slot.and_then(|slot| Some((slot, self.rows.get_mut(slot)?))) else {
            self.refusals += 1;
            change(self.other_mut(key.role()));
            return;
        };
        change(&mut row.stats);
        row.observations = row.observations.saturating_add(1);
        row.last_seen = row.last_seen.max(time);
        if is_race {
            row.last_race = row.last_race.max(Some(time));
        }
        let place = (row.rank, row.since, slot);
        let (rank, since) = match row.last_race {
            Some(race) if row.last_seen.since(race) < KEPT => (Rank::Racing, race),
            _ if row.observations >= TELLING => (Rank::Telling, row.last_seen),
            _ => (Rank::Fleeting, row.last_seen),
        };
        // A busy row need not move at every close: its age in seconds is enough.
        if rank != row.rank || since.since(row.since) > Duration::from_secs(1) {
            (row.rank, row.since) = (rank, since);
            self.forget_place(&key, &place);
            self.note_place(&key, (rank, since, slot));
        }
        self.pair(slot, origin);
    }

    fn note_place(&mut self, key: &RowKey, place: Standing<usize>) {
        self.order.insert(place);
        self.shares.insert(&key.port(), place);
    }

    fn forget_place(&mut self, key: &RowKey, place: &Standing<usize>) {
        self.order.remove(place);
        self.shares.remove(&key.port(), place);
    }

    /// The roll-up of something that is seen at `now`.
    fn port_mut(&mut self, key: &PortKey, now: Nanos) -> Option<&mut Port> {
        if !self.ports.contains_key(key) {
            self.open_port(*key, now);
        }
        let port = self.ports.get_mut(key)?;
        port.last_seen = port.last_seen.max(now);
        // As with rows, its age in seconds is enough.
        if port.last_seen.since(port.since) > Duration::from_secs(1) {
            self.port_shares.remove(key, &port.place(*key));
            port.since = port.last_seen;
            self.port_shares.insert(key, port.place(*key));
        }
        Some(port)
    }

    /// Where there is no room for another one, one leaves.
    fn open_port(&mut self, key: PortKey, now: Nanos) {
        if self.ports.len() >= self.max_ports
            && let Some((.., victim)) = self.port_shares.largest(&key).and_then(BTreeSet::first)
        {
            let victim = *victim;
            self.remove_port(&victim);
            self.port_evictions += 1;
        }
        let (stats, recent) = (self.new_stats(key.role), RecentCloses::default());
        let port = Port { stats, recent, last_seen: now, since: now, taken: 0 };
        self.port_shares.insert(&key, port.place(key));
        self.ports.insert(key, Box::new(port));
    }

    /// A slot for a new row, or none if what would have to leave matters more than a newcomer.
    fn make_room(&mut self, key: RowKey, now: Nanos, is_race: bool) -> Option<usize> {
        let row = Box::new(Row::new(key, self.new_stats(key.role()), now));
        let place = (row.rank, row.since);
        let slot = if self.rows.len() < self.max_rows {
            self.rows.push(row);
            self.rows.len() - 1
        } else {
            let victim = self.victim(&key.port(), now, is_race)?;
            let slot = victim.2;
            let old = std::mem::replace(self.rows.get_mut(slot)?, row);
            self.forget_place(&old.key, &victim);
            self.index.remove(&old.key);
            self.unpair(&old.key, old.pairing);
            self.let_go(&old);
            self.evictions += 1;
            slot
        };
        self.note_place(&key, (place.0, place.1, slot));
        self.index.insert(key, slot);
        Some(slot)
    }

    fn is_stale(&self, last_seen: Nanos, now: Nanos) -> bool {
        self.stale_after.is_some_and(|after| now.since(last_seen) > after)
    }

    /// Lets a row leave; the last one moves into its slot.
    fn remove_row(&mut self, slot: usize) {
        let last = self.rows.len().wrapping_sub(1);
        let Some(row) = self.rows.get(slot) else { return };
        let (key, place) = (row.key, (row.rank, row.since, slot));
        self.forget_place(&key, &place);
        let gone = self.rows.swap_remove(slot);
        self.index.remove(&gone.key);
        self.unpair(&gone.key, gone.pairing);
        if let Some(moved) = self.rows.get(slot) {
            let (key, rank, since) = (moved.key, moved.rank, moved.since);
            self.forget_place(&key, &(rank, since, last));
            self.note_place(&key, (rank, since, slot));
            self.index.insert(key, slot);
        }
        self.let_go(&gone);
        self.stale += 1;
    }

    /// Makes sure that nothing a row had counted is lost.
    fn let_go(&mut self, row: &Row) {
        let (shown, rest) = row.stats.parts();
        if let Some(rest) = rest {
            self.other_mut(row.key.role()).absorb(&rest);
            if row.taken == self.scrape {
                of_role(&mut self.gone, row.key.role()).absorb(&rest);
            }
        }
        if let Some(counts) = shown {
            let (process, owner) = (row.stats.process_name(), row.stats.process_owner());
            let taken = row.taken;
            self.left_rows.push(Left {
                key: row.key,
                counts,
                process,
                process_owner: owner,
                taken,
            });
        }
    }

    fn remove_port(&mut self, key: &PortKey) {
        let Some(gone) = self.ports.remove(key) else { return };
        self.port_shares.remove(key, &gone.place(*key));
        let (shown, rest) = gone.stats.parts();
        if let Some(rest) = rest {
            of_role(&mut self.other_ports, key.role).absorb(&rest);
            if gone.taken == self.scrape {
                of_role(&mut self.gone_ports, key.role).absorb(&rest);
            }
        }
        if let Some(counts) = shown {
            let (process, process_owner, taken) = (None, Owner::UNKNOWN, gone.taken);
            self.left_ports.push(Left { key: *key, counts, process, process_owner, taken });
        }
    }

    /// The place in the order of the row to evict for a newcomer of this port, which may race or not.
    ///
    /// First those that have been quiet for an hour. Then, within the largest share, the fleeting, the
    /// telling, and those that race: a flood of what seems to matter takes no more than its own.
    fn victim(&self, newcomer: &PortKey, now: Nanos, is_race: bool) -> Option<Standing<usize>> {
        let first = |rank| self.order.range((rank, Nanos(0), 0)..).next().copied();
        let quiet = [Rank::Racing, Rank::Telling].into_iter().filter_map(first);
        let mut quiet = quiet.filter(|(_, since, _)| now.since(*since) >= KEPT);
        if let Some(quiet) = quiet.next() {
            return Some(quiet);
        }
        let lowest = self.shares.largest(newcomer)?.first().copied()?;
        let has_part = self.shares.of_port(newcomer) >= self.max_rows / OF_PORT;
        (lowest.0 < Rank::Racing || is_race || !has_part).then_some(lowest)
    }

    /// Works out the verdicts anew.
    pub fn assess(&mut self, now: Nanos) {
        let mut round = Round::begin(now);
        while round.step(self).is_some() {}
        for (key, port) in &mut self.ports {
            port.stats.assess(key, self.threshold, now);
        }
    }

    /// The idle timeout of `closer`: the row's if it has shown one, else its port's.
    pub fn estimate(&self, key: &RowKey, closer: Closer) -> Option<Estimate> {
        let of_row = self.row(key).and_then(|row| row.stats.timeout(closer));
        of_row.or_else(|| self.port(&key.port())?.stats.timeout(closer))
    }

    /// Whether connections of this row were used again after longer gaps.
    fn is_outlived(&self, key: &RowKey, idle: Duration) -> bool {
        let closer = server_side(key.role());
        self.row(key).is_some_and(|row| row.stats.is_outlived(closer, idle))
    }

    /// Whether connections of this row closed together around `time` though they had been idle
    /// for different times: a reload or a rollout, not a timeout.
    ///
    /// On the client side only closes by or towards the same address count: one server going
    /// away, and not several that happen to use the same port.
    pub fn burst(&self, key: &RowKey, time: Nanos) -> bool {
        let ip = (key.role() == Role::Client).then(|| key.ip());
        self.port(&key.port()).is_some_and(|port| {
            Closer::ENDS.into_iter().any(|closer| {
                let spread = self.estimate(key, closer).map(|estimate| estimate.spread());
                port.recent.are_scattered(time, closer, ip, spread.unwrap_or_default())
            })
        })
    }

    /// Why the connection of this incident was closing.
    pub fn cause(&self, incident: &Incident) -> Cause {
        let Some(key) = RowKey::of(&incident.origin) else { return Cause::Unknown };
        // The gap also holds the time from the FIN to the write: the idle time is the better one.
        let Some(idle) = incident.idle.or(incident.gap) else { return Cause::Unknown };
        let rtt = incident.origin.rtt.unwrap_or_default();
        let estimate = self.estimate(&key, server_side(key.role()));
        let estimate = estimate.filter(Estimate::is_settled);
        let is_over = idle > self.threshold;
        let is_outlived = || self.is_outlived(&key, idle);
        match estimate {
            // Nothing closed: there is only a limit that the gap exceeded.
            _ if is_over && incident.class == Class::SilentDrop => Cause::Idle,
            Some(estimate) if is_over && estimate.is_reached(idle, rtt, is_outlived) => Cause::Idle,
            _ if self.burst(&key, incident.time) => Cause::Rollout,
            // Nothing agrees on a timeout yet, and none of the others was used after longer.
            None if is_over && !is_outlived() => Cause::Unknown,
            _ => Cause::Lifetime,
        }
    }

    /// Whether a request after this gap came just when the server side's idle timeout was due.
    pub fn is_at_timeout(&self, key: &RowKey, gap: Duration, rtt: Option<Duration>) -> bool {
        let estimate = self.estimate(key, server_side(key.role()));
        estimate.is_some_and(|estimate| estimate.is_near(gap, rtt.unwrap_or_default()))
    }

    pub fn row(&self, key: &RowKey) -> Option<&Row> {
        self.index.get(key).and_then(|slot| self.rows.get(*slot)).map(|row| &**row)
    }

    pub fn port(&self, key: &PortKey) -> Option<&Port> {
        self.ports.get(key).map(|port| &**port)
    }

    /// All rows, by key.
    pub fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self.rows.iter().map(|row| &**row).collect();
        rows.sort_unstable_by_key(|row| row.key);
        rows
    }

    /// What did not fit into rows, by role.
    pub fn others(&self) -> [(Role, &Stats); 2] {
        [(Role::Client, &self.other_client), (Role::Server, &self.other_server)]
    }

    /// All roll-ups, by key.
    pub fn ports(&self) -> Vec<(&PortKey, &Port)> {
        let mut ports: Vec<_> = self.ports.iter().map(|(key, port)| (key, &**port)).collect();
        ports.sort_unstable_by_key(|(key, _)| **key);
        ports
    }

    pub const fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// The gap from which a write counts as a reuse.
    pub const fn threshold(&self) -> Duration {
        self.threshold
    }

    /// Rows that gave way to others.
    pub const fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Observations of peers that found no room, and count under `other`.
    pub const fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Roll-ups that gave way to others.
    pub const fn port_evictions(&self) -> u64 {
        self.port_evictions
    }

    /// What became of all observations, and of views of them from the other end: what rows, `other`, and what
    /// left have counted.
    pub fn balance(&self) -> Balance {
        let rows = self.rows.iter().map(|row| row.stats.counts.total());
        let others = self.others().map(|(_, stats)| stats.counts.total());
        let left = self.left_rows.iter().map(|left| left.counts.total());
        let counted: u64 = rows.chain(others).chain(left).sum();
        Balance {
            taken: self.taken,
            passed: counted + self.taken_away,
            lost: self.unattributed,
            ..Balance::of(Stage::Table)
        }
    }

    /// Observations that were added.
    pub const fn added(&self) -> u64 {
        self.added
    }

    /// Observations in no row, their role being unknown.
    pub const fn unattributed(&self) -> u64 {
        self.unattributed
    }

    const fn other_mut(&mut self, role: Role) -> &mut Stats {
        match role {
            Role::Server => &mut self.other_server,
            Role::Client | Role::Unknown => &mut self.other_client,
        }
    }
}

/// Picks from a pair for clients and servers.
const fn of_role<T>([client, server]: &mut [T; 2], role: Role) -> &mut T {
    match role {
        Role::Server => server,
        Role::Client | Role::Unknown => client,
    }
}

/// Whose idle timeout a request of this role, or to it, can meet.
const fn server_side(role: Role) -> Closer {
    let [server, _] = role.sides();
    server
}
