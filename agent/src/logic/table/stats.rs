//! What is kept of the observations of one row or one port.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::logic::idle::{Estimate, Histogram, IDLE_BOUNDS, Reservoir, SHORT_BOUNDS, estimate};
use crate::logic::model::{Cause, Class, Close, Closer, Evidence, How, Nanos, Observation};

/// Counts and distributions. The counts only grow; the reservoirs hold the latest values.
#[derive(Clone, Debug)]
pub struct Stats {
    pub closes: BTreeMap<(Closer, How, Evidence), u64>,
    pub incidents: BTreeMap<(Class, Cause), Tally>,
    /// Races seen from this end too, but counted on the row of the other one.
    pub seen: u64,
    pub reuse_gap: Histogram,
    pub reuse_gaps: Reservoir,
    pub fin_age: Histogram,
    pub dwell: Histogram,
    closed_by_peer: IdleTimes,
    closed_by_us: IdleTimes,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            closes: BTreeMap::new(),
            incidents: BTreeMap::new(),
            seen: 0,
            reuse_gap: Histogram::new(&IDLE_BOUNDS),
            reuse_gaps: Reservoir::default(),
            fin_age: Histogram::new(&SHORT_BOUNDS),
            dwell: Histogram::new(&SHORT_BOUNDS),
            closed_by_peer: IdleTimes::default(),
            closed_by_us: IdleTimes::default(),
        }
    }
}

/// How often, and when last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub count: u64,
    pub last_seen: Nanos,
}

/// Idle times at the closes of one closer.
#[derive(Clone, Debug)]
pub struct IdleTimes {
    /// Of connections that were idle for exactly this long.
    pub histogram: Histogram,
    pub exact: Reservoir,
    /// Ended by a farewell: idle for at most this long.
    pub upper_bound: Reservoir,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self {
            histogram: Histogram::new(&IDLE_BOUNDS),
            exact: Reservoir::default(),
            upper_bound: Reservoir::default(),
        }
    }
}

impl IdleTimes {
    /// From the exact values, else from upper bounds that agree with each other.
    pub fn estimate(&self) -> Option<Estimate> {
        let of = |values: &Reservoir| estimate(&values.sorted());
        of(&self.exact).or_else(|| of(&self.upper_bound))
    }
}

impl Stats {
    pub const fn idle(&self, closer: Closer) -> &IdleTimes {
        match closer {
            Closer::Peer => &self.closed_by_peer,
            Closer::Local => &self.closed_by_us,
        }
    }

    pub fn races(&self) -> u64 {
        let races = self.incidents.iter().filter(|((class, _), _)| class.is_race());
        races.map(|(_, tally)| tally.count).sum()
    }

    pub(super) fn add(&mut self, observation: &Observation) {
        match observation {
            Observation::Close(close) => self.add_close(close),
            Observation::Reuse(reuse) => {
                self.reuse_gap.add(reuse.gap);
                self.reuse_gaps.add(reuse.gap);
            }
            Observation::Dwell(dwell) => self.dwell.add(dwell.dwell),
            Observation::Incident(incident) => {
                let tally = self.incidents.entry((incident.class, incident.cause)).or_default();
                tally.count += 1;
                tally.last_seen = tally.last_seen.max(incident.time);
                if let Some(fin_age) = incident.fin_age {
                    self.fin_age.add(fin_age);
                }
            }
        }
    }

    fn add_close(&mut self, close: &Close) {
        *self.closes.entry((close.closer, close.how, close.evidence)).or_default() += 1;
        let idle = match close.closer {
            Closer::Peer => &mut self.closed_by_peer,
            Closer::Local => &mut self.closed_by_us,
        };
        match close.evidence {
            Evidence::Idle => {
                idle.histogram.add(close.idle);
                idle.exact.add(close.idle);
            }
            Evidence::UpperBound => idle.upper_bound.add(close.idle),
            Evidence::Unanswered | Evidence::AfterData | Evidence::Unused => {}
        }
    }

    /// Adds the counts of a row that leaves. Its exact values go: a mixture has no timeout.
    pub(super) fn absorb(&mut self, gone: &Self) {
        for (kind, count) in &gone.closes {
            *self.closes.entry(*kind).or_default() += count;
        }
        for (kind, more) in &gone.incidents {
            let tally = self.incidents.entry(*kind).or_default();
            tally.count += more.count;
            tally.last_seen = tally.last_seen.max(more.last_seen);
        }
        self.seen += gone.seen;
        self.reuse_gap.absorb(&gone.reuse_gap);
        self.fin_age.absorb(&gone.fin_age);
        self.dwell.absorb(&gone.dwell);
        self.closed_by_peer.histogram.absorb(&gone.closed_by_peer.histogram);
        self.closed_by_us.histogram.absorb(&gone.closed_by_us.histogram);
    }
}

/// The name seen most often, slow to change: it is a label, and a new label is a new series.
#[derive(Clone, Debug, Default)]
pub(super) struct Label {
    current: Option<Arc<str>>,
    votes: Vec<(Arc<str>, u32)>,
}

impl Label {
    /// Names remembered at a time; a newcomer takes the place of the rarest.
    const CANDIDATES: usize = 4;
    /// Votes by which a challenger must lead, over twice the votes of the present name.
    const LEAD: u32 = 8;
    /// From here on all votes are halved, so that an upgrade is noticed.
    const MAX_VOTES: u32 = 512;

    pub(super) fn name(&self) -> Option<&str> {
        self.current.as_deref()
    }

    pub(super) fn vote(&mut self, name: &Arc<str>) {
        let votes = if let Some((_, votes)) = self.votes.iter_mut().find(|(n, _)| n == name) {
            *votes += 1;
            *votes
        } else {
            if self.votes.len() == Self::CANDIDATES {
                self.votes.sort_unstable_by_key(|(_, votes)| std::cmp::Reverse(*votes));
                self.votes.pop();
            }
            self.votes.push((Arc::clone(name), 1));
            1
        };
        if votes >= Self::MAX_VOTES {
            self.votes.iter_mut().for_each(|(_, votes)| *votes /= 2);
        }
        let of_current = self.current.as_ref().map(|current| {
            let found = self.votes.iter().find(|(name, _)| name == current);
            found.map_or(0, |(_, votes)| *votes)
        });
        if of_current.is_none_or(|current| votes > current * 2 + Self::LEAD) {
            self.current = Some(Arc::clone(name));
        }
    }
}

/// The latest closes of idle connections at one port, thinned so that the few seconds an incident
/// may take to be understood are still there after thousands of closes.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentCloses(VecDeque<RecentClose>);

#[derive(Clone, Copy, Debug)]
struct RecentClose {
    time: Nanos,
    closer: Closer,
    ip: IpAddr,
    idle: Duration,
}

impl RecentCloses {
    /// At most so many are kept, of which each slice of time has its share: four seconds' worth.
    const SIZE: usize = 64;
    const PER_SLICE: usize = 8;
    const SLICE: u64 = 500_000_000;
    /// Closes this near to an instant belong to what happened there.
    const NEAR: Duration = Duration::from_secs(1);
    const BURST: usize = 5;
    /// The coarsest common timer tick, a second, and some delay.
    const TICK: Duration = Duration::from_millis(1100);

    pub(super) fn add(&mut self, close: &Close) {
        if !matches!(close.evidence, Evidence::Idle | Evidence::UpperBound) {
            return;
        }
        let slice = |time: Nanos| time.0 / Self::SLICE;
        let same = self.0.iter().rev().take(Self::PER_SLICE);
        if same.filter(|other| slice(other.time) == slice(close.time)).count() == Self::PER_SLICE {
            return;
        }
        if self.0.len() == Self::SIZE {
            self.0.pop_front();
        }
        let Close { time, closer, idle, .. } = *close;
        self.0.push_back(RecentClose { time, closer, ip: close.origin.remote.ip, idle });
    }

    /// Whether `closer` closed several connections (of `ip`, if given) around `time` whose idle
    /// times differ by more than `spread` and a tick, even without the least and the greatest.
    pub(super) fn are_scattered(
        &self,
        time: Nanos,
        closer: Closer,
        ip: Option<IpAddr>,
        spread: Duration,
    ) -> bool {
        let near = self.0.iter().filter(|close| {
            close.closer == closer
                && ip.is_none_or(|ip| close.ip == ip)
                && close.time.since(time).max(time.since(close.time)) <= Self::NEAR
        });
        let mut idle: Vec<_> = near.map(|close| close.idle).collect();
        idle.sort_unstable();
        match idle.as_slice() {
            [_, least, .., greatest, _] if idle.len() >= Self::BURST => {
                greatest.saturating_sub(*least) > spread.max(Self::TICK)
            }
            _ => false,
        }
    }
}
