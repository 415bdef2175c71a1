//! What a row or a port has counted: it only grows, and it is what a scrape shows.

use std::time::Duration;

use crate::histogram::{Histogram, IDLE_BOUNDS, SHORT_BOUNDS};
use crate::model::{Cause, Class, Closer, Endpoint, Evidence, How, Incident, Nanos, Process, Read};
use crate::native::Native;

/// What incidents are counted by.
pub(super) type IncidentKind = (Class, Cause, Read);

/// What histograms measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Idle time of connections that were idle for exactly this long, by the side that closed them.
    ClosedByPeer,
    ClosedByUs,
    /// Idle time before a reuse.
    ReuseGap,
    /// From the peer's FIN to our write.
    FinAge,
    /// Time in CLOSE_WAIT.
    Dwell,
}

impl Measure {
    pub(super) const ALL: [Self; 5] =
        [Self::ClosedByPeer, Self::ClosedByUs, Self::ReuseGap, Self::FinAge, Self::Dwell];

    pub const fn bounds(self) -> &'static [f64; 12] {
        match self {
            Self::ClosedByPeer | Self::ClosedByUs | Self::ReuseGap => &IDLE_BOUNDS,
            Self::FinAge | Self::Dwell => &SHORT_BOUNDS,
        }
    }

    /// Buckets that nothing falls into: what is no longer than the threshold is neither a gap nor an idle time.
    pub fn unused_buckets(self, threshold: Duration) -> usize {
        match self {
            Self::ClosedByPeer | Self::ClosedByUs | Self::ReuseGap => {
                let least = threshold.as_secs_f64();
                self.bounds().iter().take_while(|bound| **bound <= least).count()
            }
            Self::FinAge | Self::Dwell => 0,
        }
    }

    pub const fn of_idle(closer: Closer) -> Self {
        match closer {
            Closer::Peer | Closer::Middlebox => Self::ClosedByPeer,
            Closer::Local => Self::ClosedByUs,
        }
    }
}

/// How often, and when last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub count: u64,
    pub last_seen: Nanos,
}

/// What is kept only where it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeps {
    /// Native histograms, in addition to the classic ones.
    pub native: bool,
    /// The latest race of each kind.
    pub examples: bool,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    native: Option<Box<[Native; Measure::ALL.len()]>>,
    examples: Option<Kinds<IncidentKind, Example>>,
}

/// A race, and on which connection it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Example {
    pub time: Nanos,
    pub local: Endpoint,
    pub peer: Endpoint,
    pub process: Option<Process>,
    pub gap: Option<Duration>,
    pub fin_age: Option<Duration>,
}

impl Example {
    const fn of(incident: &Incident) -> Self {
        let Incident { time, origin, gap, fin_age, .. } = incident;
        Self {
            time: *time,
            local: origin.local,
            peer: origin.remote,
            process: origin.process,
            gap: *gap,
            fin_age: *fin_age,
        }
    }
}

/// Counts and distributions. Rows are many, so what never happened takes next to no room.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub closes: Kinds<(Closer, How, Evidence), u64>,
    pub incidents: Kinds<IncidentKind, Tally>,
    /// Races seen from this end too, but counted on the row of the other one.
    pub seen: u64,
    histograms: [Histogram; Measure::ALL.len()],
    kept: Option<Box<Kept>>,
}

impl Counts {
    pub(super) fn keeping(keeps: Keeps) -> Self {
        let kept = || {
            let (native, examples) = (keeps.native.then(Box::default), Kinds::default());
            Box::new(Kept { native, examples: keeps.examples.then_some(examples) })
        };
        Self { kept: (keeps != Keeps::default()).then(kept), ..Self::default() }
    }

    pub const fn histogram(&self, measure: Measure) -> &Histogram {
        let [by_peer, by_us, reuse_gap, fin_age, dwell] = &self.histograms;
        match measure {
            Measure::ClosedByPeer => by_peer,
            Measure::ClosedByUs => by_us,
            Measure::ReuseGap => reuse_gap,
            Measure::FinAge => fin_age,
            Measure::Dwell => dwell,
        }
    }

    /// The same values as a native histogram, if such are kept.
    pub fn native(&self, measure: Measure) -> Option<&Native> {
        self.kept.as_ref()?.native.as_ref()?.get(measure as usize)
    }

    /// The latest race of this kind, if such are kept.
    pub fn example(&self, kind: &IncidentKind) -> Option<&Example> {
        self.kept.as_ref()?.examples.as_ref()?.get(kind)
    }

    pub(super) fn measure(&mut self, measure: Measure, value: Duration) {
        let [by_peer, by_us, reuse_gap, fin_age, dwell] = &mut self.histograms;
        let histogram = match measure {
            Measure::ClosedByPeer => by_peer,
            Measure::ClosedByUs => by_us,
            Measure::ReuseGap => reuse_gap,
            Measure::FinAge => fin_age,
            Measure::Dwell => dwell,
        };
        histogram.add(measure.bounds(), value);
        if let Some(native) = self.kept.as_mut().and_then(|kept| kept.native.as_mut())
            && let Some(native) = native.get_mut(measure as usize)
        {
            native.add(value);
        }
    }

    pub(super) fn note(&mut self, incident: &Incident) {
        let read = if incident.class.is_race() { incident.read } else { Read::Unknown };
        let kind = (incident.class, incident.cause, read);
        self.incidents.change(kind, |tally| {
            tally.count += 1;
            tally.last_seen = tally.last_seen.max(incident.time);
        });
        if incident.class.is_race()
            && let Some(examples) = self.kept.as_mut().and_then(|kept| kept.examples.as_mut())
        {
            examples.later(kind, Example::of(incident));
        }
    }

    pub fn races(&self) -> u64 {
        let races = self.incidents.iter().filter(|((class, ..), _)| class.is_race());
        races.map(|(_, tally)| tally.count).sum()
    }

    /// For some lost requests, if there are any, it is not proven that nobody has read them.
    pub(super) fn may_be_read(&self) -> bool {
        let mut races = self.incidents.iter().filter(|((class, ..), _)| class.is_race());
        self.races() == 0 || races.any(|((_, _, read), _)| *read != Read::Never)
    }

    /// Everything that was counted: how much this row has to say.
    pub(super) fn total(&self) -> u64 {
        let closes: u64 = self.closes.iter().map(|(_, count)| count).sum();
        let incidents: u64 = self.incidents.iter().map(|(_, tally)| tally.count).sum();
        let measured = |measure| self.histogram(measure).count();
        closes + incidents + self.seen + measured(Measure::ReuseGap) + measured(Measure::Dwell)
    }

    /// Counts of incidents that are no races, by class: all causes of a class stand together.
    pub fn other_incidents(&self) -> impl Iterator<Item = (Class, u64)> {
        let classes = Class::ALL.iter().filter(|class| !class.is_race());
        let counts = classes.map(|class| {
            let same = self.incidents.iter().filter(|((other, ..), _)| other == class);
            (*class, same.map(|(_, tally)| tally.count).sum())
        });
        counts.filter(|(_, count)| *count > 0)
    }

    /// Adds what another has counted.
    pub fn absorb(&mut self, more: &Self) {
        for (kind, count) in more.closes.iter() {
            self.closes.change(*kind, |sum| *sum += count);
        }
        for (kind, more) in more.incidents.iter() {
            self.incidents.change(*kind, |tally| {
                tally.count += more.count;
                tally.last_seen = tally.last_seen.max(more.last_seen);
            });
        }
        self.seen += more.seen;
        for (histogram, more) in self.histograms.iter_mut().zip(&more.histograms) {
            histogram.absorb(more);
        }
        if let Some(more) = &more.kept {
            self.kept.get_or_insert_default().absorb(more);
        }
    }

    /// What has been counted since the counts were `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let mut since = Self { seen: self.seen - earlier.seen, ..Self::default() };
        for (kind, count) in self.closes.iter() {
            let before = earlier.closes.get(kind).copied().unwrap_or_default();
            if *count > before {
                since.closes.change(*kind, |new| *new = count - before);
            }
        }
        for (kind, tally) in self.incidents.iter() {
            let before = earlier.incidents.get(kind).map_or(0, |tally| tally.count);
            if tally.count > before {
                let new = Tally { count: tally.count - before, ..*tally };
                since.incidents.change(*kind, |tally| *tally = new);
            }
        }
        let both = self.histograms.iter().zip(&earlier.histograms);
        for (new, (now, before)) in since.histograms.iter_mut().zip(both) {
            *new = now.since(before);
        }
        since.kept = self.kept.as_ref().map(|kept| {
            let native = kept.native.as_ref().map(|native| {
                let earlier = earlier.kept.as_ref().and_then(|earlier| earlier.native.as_ref());
                earlier
                    .map_or_else(|| native.clone(), |earlier| Box::new(all_since(native, earlier)))
            });
            // Where races are new, so is the latest.
            let is_new = |kind| since.incidents.get(kind).is_some();
            let examples = kept.examples.as_ref().map(|examples| {
                Kinds(examples.0.iter().filter(|(kind, _)| is_new(kind)).copied().collect())
            });
            Box::new(Kept { native, examples })
        });
        since
    }
}

fn all_since<const N: usize>(now: &[Native; N], earlier: &[Native; N]) -> [Native; N] {
    let mut both = now.iter().zip(earlier);
    std::array::from_fn(|_| {
        both.next().map_or_else(Native::default, |(now, before)| now.since(before))
    })
}

impl Kept {
    fn absorb(&mut self, more: &Self) {
        if let Some(more) = &more.native {
            let native = self.native.get_or_insert_default();
            for (native, more) in native.iter_mut().zip(&**more) {
                native.absorb(more);
            }
        }
        if let Some(more) = &more.examples {
            let examples = self.examples.get_or_insert_default();
            more.iter().for_each(|(kind, example)| examples.later(*kind, *example));
        }
    }
}

impl Kinds<IncidentKind, Example> {
    fn later(&mut self, kind: IncidentKind, example: Example) {
        self.change(kind, |latest| {
            if example.time >= latest.time {
                *latest = example;
            }
        });
    }
}

/// Counts by kind, for the few kinds that there are; in order.
#[derive(Clone, Debug)]
pub struct Kinds<K, V>(Vec<(K, V)>);

impl<K, V> Default for Kinds<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord + Copy, V: Default> Kinds<K, V> {
    pub fn get(&self, kind: &K) -> Option<&V> {
        let at = self.0.binary_search_by_key(kind, |(kind, _)| *kind).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(kind, value)| (kind, value))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn change(&mut self, kind: K, change: impl FnOnce(&mut V)) {
        let at = self.0.binary_search_by_key(&kind, |(kind, _)| *kind).unwrap_or_else(|at| {
            self.0.reserve_exact(1);
            self.0.insert(at, (kind, V::default()));
            at
        });
        if let Some((_, value)) = self.0.get_mut(at) {
            change(value);
        }
    }
}
