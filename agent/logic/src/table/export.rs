//! What a scrape shows: which rows and ports have series of their own, and what is summed up.
//!
//! It is collected row by row, so that the caller can stop at any row and let observations in between. Counts
//! are lent, not copied: a row that changes before the scrape is written changes a copy.
//!
//! There is room for a limited number of series. Ports come first, with a quarter of it at most, then rows.
//! Among each, those that lost requests recently go first, then those that had their place at the last
//! scrape, then those with the most to say. What finds no room is summed up in `other`. There is one rule
//! behind the sums: what a row's series show and what `other` holds of it are what the row has counted. So a
//! row that gets a place begins at zero (what it had counted stays in `other`), and one that loses it leaves
//! all it has counted to `other`.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::counts::{Counts, Measure};
use super::round::Round;
use super::stats::{Advised, Showing, Stats, Weight};
use super::{Port, Row, Table, Told, of_role};
use crate::estimate::Population;
use crate::model::{Cause, Class, Closer, Evidence, How, Name, Nanos, Read, Role};
use crate::owner::Owner;
use crate::peer::{PortKey, RowKey};
use crate::verdict::State;

/// The series of a classic histogram with all its buckets: these, `+Inf`, sum and count.
const OF_HISTOGRAM: usize = 15;

/// With the native one in addition, a single series for Prometheus.
const MOST_OF_HISTOGRAM: usize = OF_HISTOGRAM + 1;

/// The most series that counts can have, of rows and of ports.
const MOST_OF_ROW: usize = most(5) + Class::ALL.len() - RACES + 2;
const MOST_OF_PORT: usize = most(3);

const fn most(histograms: usize) -> usize {
    // A middlebox has one way to close, and closes only what is idle.
    let closes = Closer::ENDS.len() * How::ALL.len() * Evidence::ALL.len() + 1;
    closes + RACES * Cause::ALL.len() * Read::ALL.len() + histograms * MOST_OF_HISTOGRAM
}

/// Classes that are races.
const RACES: usize = {
    let (mut races, mut classes) = (0, Class::ALL);
    while let [class, rest @ ..] = classes {
        races += class.is_race() as usize;
        classes = rest;
    }
    races
};

/// What the rows `other` may take, whatever happens: one for each role.
pub const OF_OTHERS: usize = 2 * (MOST_OF_ROW + MOST_OF_PORT);

/// How long the sum of the losses of a row that was not shown before stays at zero: a scrape each minute sees
/// it there, so that `increase()` counts the first loss too.
const BEGINS_AT_ZERO: Duration = Duration::from_secs(70);

/// What ports may take of the room.
const fn ports_room(room: usize) -> usize {
    room / 4
}

/// A row or a port with series of its own.
#[derive(Clone, Debug)]
pub struct Shown<K> {
    pub key: K,
    pub counts: Arc<Counts>,
    pub process: Option<Name>,
    /// What that process belongs to, where the key has no owner.
    pub process_owner: Owner,
    pub timeouts: [Option<Population>; Closer::ENDS.len()],
    pub expected: Option<f64>,
    pub verdict: Option<State>,
    /// For a row; what to set towards the peers of a port is said by each of their rows.
    pub advised: Option<Advised>,
    /// It is a server's row, and its client's row has the same problem.
    pub is_other_end: bool,
    /// Races in its counts that the sum of its losses does not show yet.
    pub withheld: u64,
}

/// What is said of a row, with what its other end says.
struct Story {
    timeouts: [Option<Population>; Closer::ENDS.len()],
    advised: Option<Advised>,
    is_other_end: bool,
}

impl Story {
    fn timeouts(stats: &Stats) -> [Option<Population>; Closer::ENDS.len()] {
        Closer::ENDS.map(|closer| stats.timeout(closer).map(|estimate| estimate.main))
    }

    fn of_port(stats: &Stats) -> Self {
        Self { timeouts: Self::timeouts(stats), advised: None, is_other_end: false }
    }

    fn of_row(told: Told<&Row>) -> Self {
        let teller = told.teller();
        let mut timeouts = Self::timeouts(&teller.stats);
        // What is the peer's for one end is the other's own.
        if teller.key.role() != told.row.key.role() {
            timeouts.reverse();
        }
        let advised = told.row.stats.advised();
        Self { timeouts, advised, is_other_end: told.other_end.is_some() }
    }
}

/// A row or a port that left after a scrape had shown it, with what that scrape and later ones showed or
/// would have shown: others may be shown under the same labels, whose series must not go back.
#[derive(Clone, Debug)]
pub struct Left<K> {
    pub key: K,
    pub counts: Arc<Counts>,
    pub process: Option<Name>,
    pub process_owner: Owner,
    /// The collection that last took it.
    pub(super) taken: u32,
}

/// All rows, or all ports.
#[derive(Clone, Debug)]
pub struct Level<K> {
    pub shown: Vec<Shown<K>>,
    /// The others together, those that left included.
    pub others: [(Role, Counts); 2],
    /// Those that have left since the last scrape.
    pub left: Vec<Left<K>>,
    /// How many found no room.
    pub left_out: usize,
    /// How many more series there is room for.
    room: usize,
    threshold: Duration,
}

impl<K> Level<K> {
    fn new(room: usize, threshold: Duration) -> Self {
        let others = [Role::Client, Role::Server].map(|role| (role, Counts::default()));
        Self { shown: Vec::new(), others, left: Vec::new(), left_out: 0, room, threshold }
    }

    /// Shows the row if there is room for it, sums it up if not.
    fn take(
        &mut self,
        key: K,
        role: Role,
        stats: &mut Stats,
        series: fn(&Counts, Duration) -> usize,
        story: Story,
        now: Option<Nanos>,
    ) -> Option<&mut Shown<K>> {
        let Story { timeouts, advised, is_other_end } = story;
        let (expected, verdict) = (stats.expected(), stats.verdict());
        // As many as it would have without a base: what has happened once will happen again.
        let needed = series(&stats.counts, self.threshold)
            + timeouts.iter().flatten().count() * 3
            + usize::from(expected.is_some())
            + usize::from(verdict.is_some())
            + usize::from(advised.is_some())
            + usize::from(is_other_end);
        let (_, other) = of_role(&mut self.others, role);
        let Some(room) = self.room.checked_sub(needed) else {
            self.left_out += 1;
            other.absorb(&stats.counts);
            (stats.place, stats.base, stats.shown_since) = (Showing::LeftOut, None, None);
            return None;
        };
        self.room = room;
        if stats.place == Showing::LeftOut {
            stats.base = Some(Arc::clone(&stats.counts));
        }
        stats.place = Showing::Shown;
        let counts = match &stats.base {
            Some(base) => {
                other.absorb(base);
                Arc::new(stats.counts.since(base))
            }
            None => Arc::clone(&stats.counts),
        };
        let since = *stats.shown_since.get_or_insert(now.unwrap_or_default());
        let is_new = now.is_some_and(|now| now.since(since) < BEGINS_AT_ZERO);
        self.shown.push(Shown {
            key,
            withheld: if is_new { counts.races() } else { 0 },
            counts,
            process: None,
            process_owner: Owner::UNKNOWN,
            timeouts,
            expected,
            verdict,
            advised,
            is_other_end,
        });
        self.shown.last_mut()
    }
}

pub(super) fn series_of_port(counts: &Counts, threshold: Duration) -> usize {
    let races = counts.incidents.iter().filter(|((class, ..), _)| class.is_race()).count();
    let histograms = [Measure::ClosedByPeer, Measure::ClosedByUs, Measure::ReuseGap]
        .map(|measure| series_of_histogram(counts, measure, threshold));
    races + counts.closes.len() + histograms.iter().sum::<usize>()
}

pub(super) fn series_of_row(counts: &Counts, threshold: Duration) -> usize {
    series_of_port(counts, threshold)
        + 1
        + counts.other_incidents().count()
        + usize::from(counts.seen > 0)
        + series_of_histogram(counts, Measure::FinAge, threshold)
        + series_of_histogram(counts, Measure::Dwell, threshold)
}

fn series_of_histogram(counts: &Counts, measure: Measure, threshold: Duration) -> usize {
    if counts.histogram(measure).is_empty() {
        return 0;
    }
    OF_HISTOGRAM - measure.unused_buckets(threshold) + usize::from(counts.native(measure).is_some())
}

/// What a scrape shows of a table.
#[derive(Clone, Debug)]
pub struct Export {
    pub rows: Level<RowKey>,
    pub ports: Level<PortKey>,
    pub threshold: Duration,
    pub rows_now: usize,
    pub max_rows: usize,
    pub evictions: u64,
    pub stale: u64,
    pub refusals: u64,
    pub port_evictions: u64,
    pub unattributed: u64,
}

/// A collection under way.
#[derive(Debug)]
pub struct Collection {
    now: Option<Nanos>,
    stage: Stage,
    /// The position in what this stage goes through.
    at: usize,
    round: Option<Round>,
    slots: Vec<(Weight, u32)>,
    keys: Vec<(Weight, PortKey)>,
    rows: Level<RowKey>,
    ports: Level<PortKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Assess,
    WeighPorts,
    WeighRows,
    TakePorts,
    TakeRows,
    Done,
}

impl Collection {
    /// With room for this many series. If `now` is given, verdicts are worked out anew as of then.
    pub fn begin(table: &mut Table, room: usize, now: Option<Nanos>) -> Self {
        table.scrape += 1;
        table.gone = Default::default();
        table.gone_ports = Default::default();
        let room = room.saturating_sub(OF_OTHERS);
        Self {
            now,
            stage: Stage::Assess,
            at: 0,
            round: now.map(Round::begin),
            slots: Vec::with_capacity(table.rows.len()),
            keys: table.ports.keys().map(|key| (Reverse((false, false, 0)), *key)).collect(),
            rows: Level::new(room, table.threshold),
            ports: Level::new(ports_room(room), table.threshold),
        }
    }

    /// Does one row, or one port; false once all are done.
    pub fn step(&mut self, table: &mut Table) -> bool {
        let is_more = match self.stage {
            Stage::Assess => self.round.as_mut().and_then(|round| round.step(table)).map(drop),
            Stage::WeighPorts => self.weigh_port(table),
            Stage::WeighRows => self.weigh_row(table),
            Stage::TakePorts => self.take_port(table),
            Stage::TakeRows => self.take_row(table),
            Stage::Done => return false,
        };
        self.at = self.at.wrapping_add(1);
        if is_more.is_none() {
            self.at = 0;
            self.stage = match self.stage {
                Stage::Assess => Stage::WeighPorts,
                Stage::WeighPorts => {
                    self.keys.sort_unstable();
                    Stage::WeighRows
                }
                Stage::WeighRows => {
                    self.slots.sort_unstable();
                    Stage::TakePorts
                }
                Stage::TakePorts => {
                    self.rows.room -= ports_room(self.rows.room) - self.ports.room;
                    Stage::TakeRows
                }
                Stage::TakeRows | Stage::Done => Stage::Done,
            };
        }
        true
    }

    fn weigh_port(&mut self, table: &mut Table) -> Option<()> {
        let (weight, key) = self.keys.get_mut(self.at)?;
        let is_stale = |port: &Port| table.is_stale(port.last_seen, self.now.unwrap_or_default());
        if table.port(key).is_some_and(is_stale) {
            table.remove_port(key);
        }
        if let Some(port) = table.ports.get_mut(key) {
            if let Some(now) = self.now {
                port.stats.assess(key, table.threshold, now);
            }
            *weight = port.stats.weight();
        }
        Some(())
    }

    fn weigh_row(&mut self, table: &Table) -> Option<()> {
        let row = table.rows.get(self.at)?;
        self.slots.push((row.stats.weight(), u32::try_from(self.at).ok()?));
        Some(())
    }

    fn take_port(&mut self, table: &mut Table) -> Option<()> {
        let (_, key) = *self.keys.get(self.at)?;
        if let Some(port) = table.ports.get_mut(&key) {
            port.taken = table.scrape;
            let story = Story::of_port(&port.stats);
            self.ports.take(key, key.role, &mut port.stats, series_of_port, story, self.now);
        }
        Some(())
    }

    fn take_row(&mut self, table: &mut Table) -> Option<()> {
        let (_, slot) = *self.slots.get(self.at)?;
        // Not the row that was weighed, if that has left: then the one in its place.
        let story = Story::of_row(table.told(table.rows.get(slot as usize)?));
        if let Some(row) = table.rows.get_mut(slot as usize) {
            row.taken = table.scrape;
            let (key, now) = (row.key, self.now);
            let stats = &mut row.stats;
            let shown = self.rows.take(key, key.role(), stats, series_of_row, story, now);
            if let Some(shown) = shown {
                shown.process = row.stats.process_name();
                shown.process_owner = row.stats.process_owner();
            }
        }
        Some(())
    }

    /// Everything as it was taken.
    pub fn finish(mut self, table: &mut Table) -> Export {
        while self.step(table) {}
        // What left once it was taken is shown this time.
        let scrape = table.scrape;
        self.rows.left = table.left_rows.extract_if(.., |left| left.taken != scrape).collect();
        table.taken_away += self.rows.left.iter().map(|left| left.counts.total()).sum::<u64>();
        self.ports.left = table.left_ports.extract_if(.., |left| left.taken != scrape).collect();
        // From here on no row counts as taken.
        table.scrape += 1;
        let gone = std::mem::take(&mut table.gone);
        let evicted = [&table.other_client, &table.other_server];
        for (((_, sum), evicted), gone) in self.rows.others.iter_mut().zip(evicted).zip(gone) {
            // Those that left since they were taken are counted where they were taken.
            sum.absorb(&evicted.counts.since(&gone));
        }
        let gone = std::mem::take(&mut table.gone_ports);
        for (((_, sum), left), gone) in
            self.ports.others.iter_mut().zip(&table.other_ports).zip(gone)
        {
            sum.absorb(&left.since(&gone));
        }
        Export {
            rows: self.rows,
            ports: self.ports,
            threshold: table.threshold,
            rows_now: table.rows.len(),
            max_rows: table.max_rows,
            evictions: table.evictions,
            stale: table.stale,
            refusals: table.refusals,
            port_evictions: table.port_evictions,
            unattributed: table.unattributed,
        }
    }
}
