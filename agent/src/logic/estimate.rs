//! The estimate of an idle timeout from the idle times at which connections were closed.
//!
//! A timeout hides in a mixture: restarts, request limits, crashes, other servers behind the same
//! address. So the estimate looks for where closes crowd, and asks whether they crowd there more
//! than beside it. It works on counts: exact values are counts of one, the buckets of a histogram
//! do as well.

use std::ops::Range;
use std::time::Duration;

/// Closes that must agree before anything is said.
pub const MIN_CLOSES: u32 = 5;

/// Seconds in which they must have come.
const MIN_MOMENTS: usize = 3;

/// Closes that must agree on a timeout that scatters.
const MIN_CLOSES_OF_RANGE: u32 = 10;

/// The share of all closes that a timeout must have, however sharp it is.
const MIN_SHARE: f64 = 0.1;

/// Closes among which a changed timeout has to show.
const LATEST: usize = 20;

/// More timeouts than this behind one address are not told apart.
const MAX_POPULATIONS: usize = 3;

/// Flanks on either side of a crowd are so many times as wide as it, on a logarithmic scale.
const FLANKS: f64 = 3.0;

/// A crowd may be chance once in e^4 = 55 times, in all places where one could have been.
const MIN_EVIDENCE: f64 = 4.0;

/// From the shortest to the longest timeout that is looked for, 50 ms to 2 h, as a logarithm.
const WHOLE_RANGE: f64 = 11.9;

/// Idle times from `low` to `high` seconds, `count` of them: a bucket, or one exact value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    pub low: f64,
    pub high: f64,
    pub count: u32,
}

/// Closes that agree on a timeout. All times are seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Population {
    /// The median of them.
    pub value: f64,
    /// The earliest that such a close is to be expected: a little below the earliest seen.
    pub low: f64,
    /// The latest seen.
    pub high: f64,
    pub count: u32,
    /// Their share of all closes that were looked at.
    pub share: f64,
}

/// How sure an estimate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Less.
    Low,
    /// Ten closes that agree.
    Medium,
    /// Twenty that agree, and most of all.
    High,
}

impl Confidence {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// An idle timeout, as far as it can be read from closes.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// What most closes agree on.
    pub main: Population,
    /// Others behind the same address, the most frequent first.
    pub others: Vec<Population>,
    /// It rests on idle times that farewells ended: the timeout is at most this.
    pub is_upper_bound: bool,
}

impl Estimate {
    pub fn timeout(&self) -> Duration {
        seconds(self.main.value)
    }

    /// From the earliest to the latest close that agrees.
    pub fn spread(&self) -> Duration {
        seconds(self.main.high - self.main.low)
    }

    pub fn confidence(&self) -> Confidence {
        match self.main {
            Population { count: 20.., share: 0.5.., .. } => Confidence::High,
            Population { count: 10.., .. } => Confidence::Medium,
            Population { .. } => Confidence::Low,
        }
    }

    /// Every timeout behind the address.
    pub fn populations(&self) -> impl Iterator<Item = &Population> {
        std::iter::once(&self.main).chain(&self.others)
    }

    /// The earliest close of all.
    pub fn lowest(&self) -> f64 {
        self.populations().map(|population| population.low).fold(f64::INFINITY, f64::min)
    }

    /// Whether `time` is within `slack` of one of the timeouts.
    pub fn is_near(&self, time: Duration, slack: Duration) -> bool {
        let (time, slack) = (time.as_secs_f64(), slack.as_secs_f64());
        self.populations().any(|p| (p.low - slack..=p.high + slack).contains(&time))
    }
}

/// A close: the second that it came in, and how long the connection had been idle.
pub type Closed = (u32, Duration);

/// The timeout that closes agree on, the oldest close first.
pub fn of_closes(closes: &[Closed], is_upper_bound: bool) -> Option<Estimate> {
    let mut since_change = closes;
    while let Some(change) = last_change(since_change) {
        since_change = since_change.get(change..)?;
    }
    let mut found = populations(&bins(since_change));
    found.retain(|population| is_repeated(since_change, population));
    found.sort_by_key(|population| std::cmp::Reverse(population.count));
    let mut found = found.into_iter();
    Some(Estimate { main: found.next()?, others: found.collect(), is_upper_bound })
}

fn bins(closes: &[Closed]) -> Vec<Bin> {
    let values = closes.iter().map(|(_, idle)| idle.as_secs_f64());
    let mut bins: Vec<_> = values.map(|value| Bin { low: value, high: value, count: 1 }).collect();
    bins.sort_by(|a, b| a.low.total_cmp(&b.low));
    bins.dedup_by(|next, kept| {
        let is_same = next.low.total_cmp(&kept.low).is_eq();
        kept.count += u32::from(is_same);
        is_same
    });
    bins
}

/// Whether closes of a population came again and again. Connections that had been idle for the same
/// time and were closed at the same moment may have met a restart: that is one event.
fn is_repeated(closes: &[Closed], population: &Population) -> bool {
    let members = || closes.iter().filter(|close| population.contains(**close));
    members().count() >= MIN_CLOSES as usize && moments(members()) >= MIN_MOMENTS
}

/// Where a timeout was changed, so that nothing before is evidence any more.
fn last_change(closes: &[Closed]) -> Option<usize> {
    let place = closes.len().checked_sub(LATEST)?;
    let (before, latest) = closes.split_at(place);
    let new: Vec<_> =
        populations(&bins(latest)).into_iter().filter(|new| is_repeated(latest, new)).collect();
    // The latest agree on what none had before.
    let is_unheard =
        |new: &Population| new.share >= 0.8 && !before.iter().any(|close| new.contains(*close));
    if !before.is_empty() && new.iter().any(is_unheard) {
        return Some(place);
    }
    // Closes at one timeout have ended, for longer than chance allows, and others have come since.
    let ends = populations(&bins(closes)).into_iter().filter_map(|old| {
        let first = closes.iter().position(|close| old.contains(*close))?;
        let last = closes.iter().rposition(|close| old.contains(*close))?;
        let after = closes.get(last + 1..)?;
        let while_it_lasted = f64::from(old.count) / count_of(last - first + 1);
        let chance_of_silence = (1.0 - while_it_lasted).max(0.0).powf(count_of(after.len()));
        let is_over = new.iter().any(|new| is_repeated(after, new))
            || (after.len() >= LATEST && moments(after.iter()) >= MIN_MOMENTS);
        (is_over && chance_of_silence < 0.01).then_some(last + 1)
    });
    ends.max()
}

/// In how many different seconds these came.
fn moments<'a>(closes: impl Iterator<Item = &'a Closed>) -> usize {
    let mut seconds: Vec<_> = closes.map(|(second, _)| *second).collect();
    seconds.dedup();
    seconds.len()
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred closes")]
const fn count_of(closes: usize) -> f64 {
    closes as f64
}

/// Where the values of `bins` crowd, the densest first. Bins are in order and do not overlap.
pub fn populations(bins: &[Bin]) -> Vec<Population> {
    let all: u32 = bins.iter().map(|bin| bin.count).sum();
    let mut rest = bins.to_vec();
    let mut found = Vec::new();
    while found.len() < MAX_POPULATIONS {
        let Some(crowd) = densest(&rest, all) else { break };
        found.push(Population::of(rest.drain(crowd).as_slice(), all));
    }
    found
}

impl Population {
    fn contains(&self, (_, idle): Closed) -> bool {
        (self.low..=self.high).contains(&idle.as_secs_f64())
    }

    fn of(crowd: &[Bin], all: u32) -> Self {
        let count: u32 = crowd.iter().map(|bin| bin.count).sum();
        let low = crowd.first().map_or(0.0, |bin| bin.low);
        let high = crowd.last().map_or(0.0, |bin| bin.high);
        // Of values spread evenly, the lowest of n lies that far above where they begin.
        let below = (high - low) / f64::from(count.saturating_sub(1).max(1));
        let is_exact = crowd.iter().all(|bin| bin.low >= bin.high);
        Self {
            value: median(crowd, count),
            low: if is_exact { (low - below).max(0.0) } else { low },
            high,
            count,
            share: f64::from(count) / f64::from(all),
        }
    }
}

/// The crowd that is least likely to be chance, if one is unlikely enough.
fn densest(bins: &[Bin], all: u32) -> Option<Range<usize>> {
    let total: u32 = bins.iter().map(|bin| bin.count).sum();
    let mut best: Option<(f64, Range<usize>)> = None;
    for (start, first) in bins.iter().enumerate() {
        let mut count = 0;
        for (end, last) in bins.iter().enumerate().skip(start) {
            let Some(scatter) = Scatter::of(first, last) else { break };
            count += last.count;
            let needed = match scatter {
                Scatter::Sharp => MIN_CLOSES.max(share_of(all, MIN_SHARE)),
                Scatter::Late => MIN_CLOSES_OF_RANGE.max(share_of(total, 0.6)),
                Scatter::Tick => MIN_CLOSES_OF_RANGE.max(share_of(total, 0.8)),
            };
            let crowd = start..end + 1;
            let size = (measure(first.low, last.high) / WHOLE_RANGE).min(0.99);
            let score = unlikelihood(count, total - count, size);
            if count >= needed
                && best.as_ref().is_none_or(|(best, _)| score > *best)
                && stands_out(bins, &crowd, count)
                && (scatter == Scatter::Sharp || has_edges(bins, &crowd, count))
            {
                best = Some((score, crowd));
            }
        }
    }
    best.map(|(_, crowd)| with_stragglers(bins, crowd))
}

/// How far closes at one timeout may lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scatter {
    /// A timer, and how late an event loop is.
    Sharp,
    /// Up to twice the timeout: a server that looks for what has expired as seldom as the timeout
    /// is long.
    Late,
    /// By a tick of a second, and what it takes to see that all is quiet.
    Tick,
}

impl Scatter {
    fn of(first: &Bin, last: &Bin) -> Option<Self> {
        // What lies between them; of a timer, a bucket's own width says nothing.
        if last.low - first.high <= (0.04 * first.low).max(0.06) {
            Some(Self::Sharp)
        } else if last.high <= 2.05 * first.low {
            Some(Self::Late)
        } else if last.high - first.low <= 1.8 && first.low >= 0.9 {
            Some(Self::Tick)
        } else {
            None
        }
    }
}

/// A crowd that scatters, with those at its ends: without them it is denser, and less than all.
fn with_stragglers(bins: &[Bin], crowd: Range<usize>) -> Range<usize> {
    let Range { mut start, mut end } = crowd;
    let scatter = |start: usize, end: usize| {
        let (first, last) = (bins.get(start)?, bins.get(end.checked_sub(1)?)?);
        Some((Scatter::of(first, last)?, last.high - first.low))
    };
    let Some((Scatter::Late | Scatter::Tick, width)) = scatter(start, end) else {
        return start..end;
    };
    let is_near = |a: Option<&Bin>, b: Option<&Bin>| {
        a.zip(b).is_some_and(|(a, b)| b.low - a.high <= width / 4.0)
    };
    while start > 0
        && is_near(bins.get(start - 1), bins.get(start))
        && scatter(start - 1, end).is_some()
    {
        start -= 1;
    }
    while is_near(bins.get(end - 1), bins.get(end)) && scatter(start, end + 1).is_some() {
        end += 1;
    }
    start..end
}

/// The smallest count that is at least this share.
fn share_of(count: u32, share: f64) -> u32 {
    #[expect(clippy::cast_sign_loss, reason = "counts and shares are positive")]
    let least = (f64::from(count) * share).ceil() as u32;
    least
}

/// How wide an interval is on a logarithmic scale, with the blur of clocks and event loops.
fn measure(low: f64, high: f64) -> f64 {
    let blur = blur(high);
    ((high + blur) / (low - blur).max(0.001)).ln()
}

fn blur(value: f64) -> f64 {
    (value / 400.0).max(0.01)
}

/// Whether a crowd is more than the densest part of its surroundings.
fn stands_out(bins: &[Bin], crowd: &Range<usize>, count: u32) -> bool {
    let Some((first, last)) = bins.get(crowd.start).zip(bins.get(crowd.end - 1)) else {
        return false;
    };
    let (low, high) = (first.low, last.high);
    let reach = (FLANKS * measure(low, high)).exp();
    let near = (low - blur(high)).max(0.001) / reach..(high + blur(high)) * reach;
    let others = bins.iter().enumerate().filter(|(place, _)| !crowd.contains(place));
    let beside = others.filter(|(_, bin)| bin.high >= near.start && bin.low <= near.end);
    let beside = beside.map(|(_, bin)| bin.count).sum();
    let places: u32 = bins.iter().map(|bin| bin.count).sum();
    unlikelihood(count, beside, 1.0 / (1.0 + 2.0 * FLANKS)) - f64::from(places).ln() >= MIN_EVIDENCE
}

/// Whether a crowd that scatters ends where it ends: beside it, up to half of its width away, there
/// is at most a third of its density.
fn has_edges(bins: &[Bin], crowd: &Range<usize>, count: u32) -> bool {
    let Some((first, last)) = bins.get(crowd.start).zip(bins.get(crowd.end - 1)) else {
        return false;
    };
    let width = (last.high - first.low) / 2.0;
    let count_in = |bins: Option<&[Bin]>, range: Range<f64>| -> u32 {
        let bins = bins.into_iter().flatten();
        bins.filter(|bin| range.contains(&bin.low)).map(|bin| bin.count).sum()
    };
    let below = count_in(bins.get(..crowd.start), first.low - width..first.low);
    let above = count_in(bins.get(crowd.end..), last.high..last.high + width);
    // In half of the width, a third of the density is a sixth of the count.
    below.max(above) * 6 <= count
}

/// How unlikely it is that so many of all fall `inside` where only the share `expected` should:
/// the negative logarithm of (Chernoff's bound on) the chance; zero if there are no more than that.
fn unlikelihood(inside: u32, outside: u32, expected: f64) -> f64 {
    let (inside, outside) = (f64::from(inside), f64::from(outside));
    let all = inside + outside;
    let term = |count: f64, expected: f64| {
        if count > 0.0 { count * (count / (all * expected)).ln() } else { 0.0 }
    };
    if inside <= all * expected {
        return 0.0;
    }
    term(inside, expected) + term(outside, 1.0 - expected)
}

/// The middle value; within a bucket, values are taken to be spread evenly.
fn median(bins: &[Bin], count: u32) -> f64 {
    let half = f64::from(count) / 2.0;
    let mut below = 0.0;
    for bin in bins {
        let inside = f64::from(bin.count);
        if below + inside >= half {
            return bin.low + (bin.high - bin.low) * (half - below) / inside;
        }
        below += inside;
    }
    bins.last().map_or(0.0, |bin| bin.high)
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds in, `value low..high xcount` of each population out.
    fn check(name: &str, values: impl IntoIterator<Item = u64>, expected: &str) {
        // One a second.
        let closes: Vec<_> = (0..).zip(values.into_iter().map(Duration::from_millis)).collect();
        let found = of_closes(&closes, false).map_or_else(String::new, |estimate| {
            let texts = estimate
                .populations()
                .map(|p| format!("{:.3} {:.3}..{:.3} x{}", p.value, p.low, p.high, p.count));
            texts.collect::<Vec<_>>().join(", ")
        });
        assert_eq!(found, expected, "{name}");
    }

    /// Evenly spread, in an order that looks like chance.
    fn scattered(count: u64, low: u64, high: u64) -> impl Iterator<Item = u64> + Clone {
        (0..count).map(move |i| low + (i * 61 % count) * (high - low) / count.max(1))
    }

    #[test]
    fn sharp_timeouts() {
        check("nothing", [], "");
        check("four are too few", [5000; 4], "");
        check("five that agree", [5004, 5000, 5002, 5001, 5003], "5.002 4.999..5.004 x5");
        check("five that do not", [1000, 2000, 3000, 4000, 5000], "");
        check("zero", [0; 8], "0.000 0.000..0.000 x8");
        check(
            "no overflow",
            [u64::MAX; 5].map(|v| v / 1_000_000),
            "18446744073.709 18446744073.709..18446744073.709 x5",
        );
        check("a far value is none of it", [200, 210, 220, 230, 240, 900], "0.220 0.190..0.240 x5");
    }

    #[test]
    fn mixtures() {
        let noise = scattered(20, 300, 4_900);
        check("noise alone", noise.clone(), "");
        check("noise of request limits", scattered(40, 200, 1_000), "");
        let half = noise.clone().chain((0..20).map(|i| 5000 + i));
        check("as many others", half, "5.009 4.999..5.019 x20");
        let few = noise.clone().chain((0..6).map(|i| 5000 + i));
        check("many more others", few, "5.002 4.999..5.005 x6");
        let two = (0..6).flat_map(|_| [65_000, 5_000, 65_004]);
        check("two servers", two, "65.000 65.000..65.004 x12, 5.000 5.000..5.000 x6");
        let changed = [[5_000; 100].as_slice(), &[10_000; 6]].concat();
        check("changed", changed, "10.000 10.000..10.000 x6");
        let back = [[5_000; 60].as_slice(), &[10_000; 40], &[5_000; 6]].concat();
        check("and changed back", back, "5.000 5.000..5.000 x6");
        let mixed = (0..20).flat_map(|i| [10_000, 300 + i * 217 % 4_000]);
        check(
            "changed amid noise",
            [5_000; 100].into_iter().chain(mixed.take(16)),
            "10.000 10.000..10.000 x8",
        );
        let by_turns = (0..50).flat_map(|_| [5_000, 10_000]);
        check("by turns", by_turns, "5.000 5.000..5.000 x50, 10.000 10.000..10.000 x50");
        let fewer = [[5_000; 40].to_vec(), scattered(19, 100, 4_000).collect()].concat();
        check("a few others in a row change nothing", fewer, "5.000 5.000..5.000 x40");
        let gone = [[5_000; 40].to_vec(), scattered(20, 100, 4_000).collect()].concat();
        check("it is gone", gone, "");
        let unseen = [scattered(30, 300, 4_900).collect(), [9_000; 20].to_vec()].concat();
        check("new after noise", unseen, "9.000 9.000..9.000 x20");
    }

    #[test]
    fn what_happens_once_is_no_timeout() {
        let found = |seconds: [u32; 8]| {
            of_closes(&seconds.map(|second| (second, Duration::from_millis(560))), false).is_some()
        };
        assert!(!found([7; 8]), "a restart");
        assert!(!found([7, 7, 7, 7, 9, 9, 9, 9]), "two");
        assert!(found([7, 7, 7, 9, 9, 9, 12, 12]));
    }

    #[test]
    fn timeouts_that_scatter() {
        check("a tick of a second", scattered(20, 2_000, 3_000), "2.450 1.950..2.950 x20");
        check("too few for a range", scattered(8, 2_000, 3_000), "");
        let mixed = scattered(20, 2_000, 3_000).chain([300, 700, 1_100]);
        check("with a few others", mixed, "2.450 1.950..2.950 x20");
        check("steps of 30 s", scattered(20, 120_000, 150_000), "133.500 118.500..148.500 x20");
    }

    /// What can be read from exported histograms.
    #[test]
    fn buckets() {
        let check = |bins: &[(f64, f64, u32)], expected: &[(f64, f64, f64, u32)]| {
            let bins: Vec<_> =
                bins.iter().map(|&(low, high, count)| Bin { low, high, count }).collect();
            let found: Vec<_> =
                populations(&bins).iter().map(|p| (p.value, p.low, p.high, p.count)).collect();
            assert_eq!(found, expected);
        };
        check(&[(4.5, 6.5, 40)], &[(5.5, 4.5, 6.5, 40)]);
        check(&[(0.1, 0.95, 2), (4.5, 6.5, 40)], &[(5.5, 4.5, 6.5, 40)]);
        // Of a native histogram with eight buckets to a doubling.
        check(
            &[(1.0, 1.09, 1), (4.76, 5.19, 30), (5.19, 5.66, 10)],
            &[(5.046_666_666_666_667, 4.76, 5.66, 40)],
        );
        check(&[(0.95, 1.1, 3), (1.1, 1.9, 3), (1.9, 2.2, 3), (2.2, 4.5, 3)], &[]);
    }
}
