//! The estimate of an idle timeout from the idle times at which connections were closed.
//!
//! A timeout hides in a mixture: restarts, request limits, crashes, other servers behind the same address. So
//! the estimate looks for where closes crowd, and asks whether they crowd there more than nearby. It works on
//! counts: exact values are counts of one, and the buckets of a histogram do as well.

mod crowd;
mod survival;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use crowd::populations;
pub use survival::{Closes, Uses};

use crate::words;

/// Closes that must agree before anything is said.
pub const MIN_CLOSES: u32 = 5;

/// The same for a timeout that scatters.
const MIN_SCATTERED: u32 = 8;

/// Seconds in which they must have come.
const MIN_MOMENTS: u32 = 3;

/// How many closes of one second count separately, since those that come together may have one cause: a
/// restart. A server that looks for expired connections once a second may find more; those have been idle for
/// different times, but not for very different ones. Those that were idle for the same time were left and
/// closed together, and count as one.
const PER_MOMENT: usize = 2;
const PER_TICK: usize = 4;
const TICK: Duration = Duration::from_millis(1800);
const SAME: Duration = Duration::from_millis(100);

/// How many uses after a longer gap refute nothing: in all, and for each close.
const FEW_USES: u32 = 3;
const USES_FOR_A_CLOSE: u32 = 9;

/// One in this many connections that met a timer may have outlived it before.
const FEW_OF_TIMER: usize = 4;

/// Whether that many uses after a longer gap refute a timeout that this many closes support.
pub fn is_refuted_by(uses: u32, closes: u32) -> bool {
    uses > FEW_USES.max(USES_FOR_A_CLOSE.saturating_mul(closes))
}

/// An event loop that is busy closes late by this much, and an estimate may be off by it.
const SLACK: Duration = Duration::from_millis(50);

/// How long a connection was idle when it was closed, and the silence that it had outlived before.
pub type Outlived = (Duration, Duration);

/// The share of upper bounds that must agree on a timeout that scatters.
const MIN_SHARE_OF_BOUNDS: f64 = 0.95;

/// Closes among which a changed timeout has to show.
const LATEST: usize = 20;

/// A timeout has been changed if its closes stay away where chance would keep them away this rarely. There is a
/// new look at every few closes.
const CHANCE_OF_SILENCE: f64 = 0.002;

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
    /// The earliest that such a close can be expected: a little below the earliest seen.
    pub low: f64,
    /// The latest seen.
    pub high: f64,
    pub count: u32,
    /// Their share of all closes that were looked at.
    pub share: f64,
}

words! {
    /// How sure an estimate is.
    Confidence {
        /// Less.
        Low = "low",
        /// Ten closes that agree.
        Medium = "medium",
        /// Twenty that agree, and most of all.
        High = "high",
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
    /// It rests mainly on requests that were lost: those that were not speak against it.
    pub is_of_lost: bool,
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

    /// Whether it is that of a timer that fires on time.
    pub fn is_sharp(&self) -> bool {
        self.main.is_sharp()
    }

    /// Whether it tells the cause of a single close: ten agree or, where they scatter, twenty and half of
    /// all. Fewer may be chance; a verdict, which looks again, may say so later.
    pub fn is_settled(&self) -> bool {
        let share: f64 = self.populations().map(|population| population.share).sum();
        let is_plain =
            self.is_sharp() || self.is_upper_bound || (self.main.count >= 20 && share >= 0.5);
        self.confidence() > Confidence::Low && is_plain
    }

    /// Every timeout behind the address.
    pub fn populations(&self) -> impl Iterator<Item = &Population> {
        std::iter::once(&self.main).chain(&self.others)
    }

    /// The earliest close of all.
    pub fn lowest(&self) -> f64 {
        self.populations().map(|population| population.low).fold(f64::INFINITY, f64::min)
    }

    fn without(&self, is_refuted: impl Fn(&Population) -> bool) -> Option<Self> {
        let mut kept = self.populations().filter(|population| !is_refuted(population)).copied();
        let (main, others) = (kept.next()?, kept.collect());
        Some(Self { main, others, ..*self })
    }

    /// Without the timeouts that the very connections which met them speak against.
    pub fn without_contrary(&self, closes: &[Outlived]) -> Option<Self> {
        self.without(|population| {
            // An answer that takes long and ends with a close looks the same, and the idle times at restarts look
            // like a scatter, so less is needed.
            let few = match (self.is_upper_bound, population.is_sharp()) {
                (true, _) => 20,
                (false, false) => 8,
                (false, true) => FEW_OF_TIMER,
            };
            let seen = population.high + population.beyond() + SLACK.as_secs_f64();
            population.was_outlived(closes, seen.min(crowd::latest(population.low)), few)
        })
    }

    /// Whether what was idle for this long, a round trip away, met one of the timeouts just as it was due.
    pub fn is_near(&self, idle: Duration, rtt: Duration) -> bool {
        let (idle, slack) = (idle.as_secs_f64(), (rtt + SLACK).as_secs_f64());
        self.populations().any(|p| (p.low - slack..=p.high + slack).contains(&idle))
    }

    /// Whether it had been idle for long enough to meet one of them. An upper bound also includes the time
    /// that the last answer took, so it cannot tell; then only uses that outlived it can.
    pub fn is_reached(
        &self,
        idle: Duration,
        rtt: Duration,
        is_outlived: impl FnOnce() -> bool,
    ) -> bool {
        if self.is_upper_bound {
            !is_outlived()
        } else {
            (idle + rtt + SLACK).as_secs_f64() >= self.lowest()
        }
    }
}

/// A close: the second that it came in, and how long the connection had been idle.
pub type Closed = (u32, Duration);

/// The timeout that closes agree on, the oldest close first.
pub fn of_closes(closes: &[Closed], is_upper_bound: bool) -> Option<Estimate> {
    let all = since_change(closes)?;
    let found = crowd::of_at_least(MIN_MOMENTS, &bins(&independent(all, 1)));
    // All closes have their say in what the timeout is, if not in whether it is one.
    let found: Vec<_> = found.into_iter().filter(|found| is_repeated(all, found)).collect();
    // Not those of a timer that fires on time in that of one that scatters.
    let of_others = |population: &Population, close: &Closed| {
        !population.is_of_timer() && found.iter().any(|it| it.is_of_timer() && it.contains(*close))
    };
    let with_all = |population: &Population| {
        let own: Vec<_> = all.iter().filter(|close| !of_others(population, close)).collect();
        population.with_all(own.into_iter().copied(), all.len())
    };
    let mut found: Vec<_> = found.iter().map(with_all).collect();
    // The times that slow answers take scatter, too, if rarely all of them as a timer's do.
    found.retain(|found| !is_upper_bound || found.is_sharp() || found.share >= MIN_SHARE_OF_BOUNDS);
    found.sort_by_key(|population| std::cmp::Reverse(population.count));
    let mut found = found.into_iter();
    let (main, others) = (found.next()?, found.collect());
    Some(Estimate { main, others, is_upper_bound, is_of_lost: false })
}

/// Without those that came before the timeout was changed.
fn since_change(closes: &[Closed]) -> Option<&[Closed]> {
    let independent = independent(closes, PER_MOMENT);
    let mut since = independent.as_slice();
    while let Some(change) = last_change(since, &populations(&bins(since))) {
        since = since.get(change..)?;
    }
    let (start, _) = *since.first()?;
    closes.get(closes.partition_point(|(second, _)| *second < start)..)
}

/// Without most of those that came together: of those that had been idle for the same time, `alike` stay.
fn independent(closes: &[Closed], alike: usize) -> Vec<Closed> {
    let mut independent: Vec<Closed> = Vec::new();
    for close in closes {
        let (second, idle) = *close;
        let moment = || independent.iter().rev().take_while(|(other, _)| *other == second);
        let near = |width| moment().filter(|(_, other)| other.abs_diff(idle) <= width).count();
        let count = moment().count();
        let is_another = near(SAME.max(idle / 100)) < alike;
        if is_another && (count < PER_MOMENT || (count < PER_TICK && near(TICK) == count)) {
            independent.push(*close);
        }
    }
    independent
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
    let earliest = members().map(|(_, idle)| *idle).min().unwrap_or_default();
    // One that scatters takes as many moments as a sharp one takes closes.
    let (least, moments_needed) = if crowd::is_sharp(earliest.as_secs_f64(), population.high) {
        (MIN_CLOSES, MIN_MOMENTS)
    } else {
        (MIN_SCATTERED, MIN_CLOSES)
    };
    members().count() >= least as usize && moments(members()) >= moments_needed as usize
}

/// Where a timeout was changed, so that nothing before it is evidence any more. `all` are the populations of
/// these closes.
fn last_change(closes: &[Closed], all: &[Population]) -> Option<usize> {
    let place = closes.len().saturating_sub(LATEST);
    let (before, latest) = closes.split_at(place);
    let new: Vec<_> =
        populations(&bins(latest)).into_iter().filter(|new| is_repeated(latest, new)).collect();
    // The latest agree on what no earlier one had.
    let is_unheard =
        |new: &Population| new.share >= 0.8 && !before.iter().any(|close| new.contains(*close));
    if !before.is_empty() && new.iter().any(is_unheard) {
        return Some(place);
    }
    // Closes at one timeout have ended, for longer than chance allows, and others have come since.
    let ends = all.iter().filter_map(|old| {
        let first = closes.iter().position(|close| old.contains(*close))?;
        let last = closes.iter().rposition(|close| old.contains(*close))?;
        let (lasted, after) = (closes.get(first..=last)?, closes.get(last + 1..)?);
        let while_it_lasted = f64::from(old.count) / count_of(lasted.len());
        let by_closes = (1.0 - while_it_lasted).max(0.0).powf(count_of(after.len()));
        // Those of one moment may have one cause.
        let its_own = moments(lasted.iter().filter(|close| old.contains(**close)));
        let share = count_of(its_own) / count_of(moments(lasted.iter()) + 1);
        let by_moments = (1.0 - share).powf(count_of(moments(after.iter())));
        let is_over = new.iter().any(|new| is_repeated(after, new))
            || (after.len() >= LATEST && moments(after.iter()) >= MIN_MOMENTS as usize);
        (is_over && by_closes.max(by_moments) < CHANCE_OF_SILENCE).then_some(last + 1)
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

impl Population {
    fn contains(&self, (_, idle): Closed) -> bool {
        self.holds(idle)
    }

    fn is_sharp(&self) -> bool {
        self.high - self.low <= SLACK.as_secs_f64().max(self.value / 20.0)
    }

    fn holds(&self, idle: Duration) -> bool {
        (self.low..=self.high).contains(&idle.as_secs_f64())
    }

    /// Whether more than one in `few` connections had outlived `latest` before they met it: what closes those is an
    /// age, a restart, or a timer that does not count pings. Several servers may share an address, and one of
    /// them may do so.
    fn was_outlived(&self, closes: &[Outlived], latest: f64, few: usize) -> bool {
        let members = || closes.iter().filter(|(idle, _)| self.holds(*idle));
        let against = members().filter(|(_, outlived)| outlived.as_secs_f64() > latest).count();
        against >= MIN_MOMENTS as usize && against * few > members().count()
    }

    /// How far it may extend below the earliest and beyond the latest: of n values spread evenly, the lowest
    /// is on average an n-th part of their range above where they begin; 19 times in 20 it is no more than
    /// three such parts.
    fn beyond(&self) -> f64 {
        3.0 * (self.high - self.low) / f64::from(self.count.max(1))
    }

    /// The same with all closes that lie in it, or that are its stragglers.
    fn with_all(&self, closes: impl Iterator<Item = Closed>, all: usize) -> Self {
        let bins = bins(&closes.collect::<Vec<_>>());
        let members = crowd::grown(&bins, self.low..=self.high);
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        Self::of(bins.get(members).unwrap_or_default(), all)
    }

    /// Whether it was found as that of a timer that fires on time: narrower than [`Self::is_sharp`], by which its
    /// stragglers are allowed for.
    fn is_of_timer(&self) -> bool {
        crowd::is_sharp(self.low, self.high)
    }

    /// From bins in order, out of `all` closes.
    fn of(crowd: &[Bin], all: u32) -> Self {
        let count: u32 = crowd.iter().map(|bin| bin.count).sum();
        let low = crowd.first().map_or(0.0, |bin| bin.low);
        let high = crowd.last().map_or(0.0, |bin| bin.high);
        let is_exact = crowd.iter().all(|bin| bin.low >= bin.high);
        let share = f64::from(count) / f64::from(all);
        let found = Self { value: median(crowd, count), low, high, count, share };
        if is_exact { Self { low: (low - found.beyond()).max(0.0), ..found } } else { found }
    }
}

/// The middle value; within a bucket, values are taken to be spread evenly.
fn median(bins: &[Bin], count: u32) -> f64 {
    let half = f64::from(count) / 2.0;
    let mut below = 0.0;
    let mut rest = bins.iter().peekable();
    while let Some(bin) = rest.next() {
        let inside = f64::from(bin.count);
        if below + inside > half {
            return bin.low + (bin.high - bin.low) * (half - below) / inside;
        }
        below += inside;
        if let Some(next) = rest.peek().filter(|_| below >= half) {
            return f64::midpoint(bin.high, next.low);
        }
    }
    bins.last().map_or(0.0, |bin| bin.high)
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}
