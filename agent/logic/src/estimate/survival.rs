//! What speaks against a timeout: connections that were used after longer.

use std::time::Duration;

use super::{
    CHANCE_OF_SILENCE, Closed, Estimate, FEW_OF_TIMER, MIN_CLOSES, MIN_MOMENTS, Outlived,
    Population, SLACK, count_of, is_refuted_by, moments, seconds,
};
use crate::gaps::{Bucket, count};
use crate::last_uses::LastUses;

/// A timer that is late more often than not lets so many uses happen for each that is lost.
const LATE_FOR_A_LOSS: u32 = 50;

/// Uses of connections, by which a timeout is judged.
#[derive(Clone, Copy, Debug)]
pub struct Uses<'a> {
    /// How long these connections had been idle, lately.
    pub gaps: &'a [Bucket],
    /// The same before requests that were lost.
    pub lost: &'a [Bucket],
    /// The second since when.
    pub start: u32,
    /// When they were last used after how long.
    pub last: &'a LastUses,
    /// What is used within this time before the other side's close comes crosses that close, and is lost.
    pub crossing: Duration,
}

/// Closes of idle connections by one side, by which a timeout is judged.
#[derive(Clone, Copy, Debug)]
pub struct Closes<'a> {
    /// Those that it was read from, the oldest first.
    pub latest: &'a [Closed],
    /// Of as long as uses.
    pub of_late: &'a [Bucket],
    /// For the latest, what the connections had outlived.
    pub connections: &'a [Outlived],
    /// If these are by the server: the client's timeout, and its closes of as long.
    pub client: Option<(&'a Estimate, &'a [Bucket])>,
}

impl Uses<'_> {
    fn count(&self, is_meant: impl Fn(&Bucket) -> bool) -> u32 {
        count(self.gaps, is_meant)
    }

    /// The longest gap after which a connection that meets this timer can have been used.
    fn longest(&self, timer: &Population) -> f64 {
        let crossed = timer.high.min(timer.high + timer.beyond() - self.crossing.as_secs_f64());
        let lost = count(self.lost, |gap| gap.high > crossed && gap.low < timer.high);
        let is_contrary = self.beyond(crossed) > LATE_FOR_A_LOSS * lost;
        if timer.is_sharp() && is_contrary { crossed } else { timer.high }
    }

    /// How many came later.
    fn beyond(&self, longest: f64) -> u32 {
        // Where in a bucket uses are is known to a 32nd of it.
        self.count(|gap| gap.mean - (gap.high - gap.low) / 32.0 > longest)
    }
}

impl Estimate {
    /// Without the timeouts that uses refute: no server closes what has been idle for that long if
    /// connections are used again and again after longer. Several servers may share an address, and then the
    /// connections of one of them live on; so a few uses prove nothing, nor do a handful for each close.
    pub fn surviving(&self, uses: &Uses<'_>, closes: &Closes<'_>) -> Option<Self> {
        let (all, is_of_lost) = (uses.count(|_| true), self.is_of_lost);
        let is_refuted = |population: &Population| {
            let sooner = uses.count(|gap| gap.high < population.low);
            let longest = uses.longest(population);
            let later = uses.beyond(longest);
            let connections = closes.connections;
            let is_contrary = longest < population.high;
            if population.is_of_unused(connections, sooner, all)
                || closes.client.is_some_and(|client| population.is_cut_off(closes.of_late, client))
                || (is_contrary && population.was_outlived(connections, longest, FEW_OF_TIMER))
            {
                return true;
            }
            if population.is_kept_to(connections, longest, later, all)
                || population.is_since(uses, later, closes.latest)
            {
                return false;
            }
            if is_of_lost && uses.count(|gap| gap.low > population.low) > population.count {
                return true;
            }
            is_refuted_by(later, population.of_late(closes.of_late).max(population.count))
        };
        self.without(is_refuted)
    }
}

impl Population {
    /// Whether the connections that met it had been used before, but none after that long, although `later`
    /// of all uses came later: that is no chance, and those uses were of others: of another pool, server, or
    /// time.
    fn is_kept_to(&self, closes: &[Outlived], longest: f64, later: u32, all: u32) -> bool {
        let used =
            || closes.iter().filter(|(idle, outlived)| self.holds(*idle) && !outlived.is_zero());
        let against = used().filter(|(_, outlived)| outlived.as_secs_f64() > longest).count();
        let due = f64::from(later) / f64::from(all.max(1));
        let chance = (1.0 - due).powf(count_of(used().count()));
        chance < 0.01 && count_of(against) < count_of(used().count()) * due / 4.0
    }

    /// How many of these lie within it.
    fn of_late(&self, closes: &[Bucket]) -> u32 {
        count(closes, |gap| gap.high >= self.low && gap.low <= self.high)
    }

    /// Whether it scatters up to where the client closes what is idle, as that does more often: whatever ends
    /// connections at random seems to stop there.
    fn is_cut_off(&self, closes: &[Bucket], (client, by_client): (&Estimate, &[Bucket])) -> bool {
        let latest = (1.05 * self.high).max(self.high + self.beyond() + SLACK.as_secs_f64());
        let is_before = |timer: &Population| self.low < timer.low && latest >= timer.low;
        let is_more = |timer: &Population| timer.of_late(by_client) > self.of_late(closes);
        !self.is_sharp() && client.populations().any(|timer| is_before(timer) && is_more(timer))
    }

    /// Whether the `later` uses after a longer gap have ended, for longer than chance allows, and connections met
    /// it again and again since: it was set then, and those uses were of before.
    fn is_since(&self, uses: &Uses<'_>, later: u32, closes: &[Closed]) -> bool {
        let Some(last) = uses.last.beyond(seconds(self.high)) else { return false };
        let met = closes.iter().filter(|close| self.contains(**close));
        let since = || met.clone().filter(|(second, _)| *second > last);
        let Some((latest, _)) = since().next_back() else { return false };
        let (quiet, all) = (latest - last, latest.saturating_sub(uses.start));
        let chance = (1.0 - f64::from(quiet) / f64::from(all.max(1))).max(0.0);
        since().count() >= MIN_CLOSES as usize
            && moments(since()) >= MIN_MOMENTS as usize
            && chance.powf(later.into()) < CHANCE_OF_SILENCE
    }

    /// Whether connections met it only if they had never been used after a gap, although `sooner` of all uses
    /// come sooner: then it is the age at which all are closed, and others reached it while they were idle
    /// for less.
    fn is_of_unused(&self, closes: &[Outlived], sooner: u32, all: u32) -> bool {
        let was_used = |(_, outlived): &&Outlived| !outlived.is_zero();
        let members = || closes.iter().filter(|(idle, _)| self.holds(*idle));
        let others = || closes.iter().filter(|(idle, _)| !self.holds(*idle));
        let used =
            count_of(others().filter(was_used).count()) / count_of(others().count()).max(1.0);
        let due = used * f64::from(sooner) / f64::from(all.max(1));
        let chance = (1.0 - due).powf(count_of(members().count()));
        let is_known = others().count() >= MIN_CLOSES as usize && chance < 0.01;
        is_known && !members().any(|close| was_used(&close))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::of_closes;
    use crate::model::Nanos;

    const TIMEOUT: Duration = Duration::from_secs(2);

    fn after(gap: f64, count: u32) -> Bucket {
        Bucket { low: gap * 0.995, high: gap * 1.005, mean: gap, count }
    }

    /// What an estimate is judged by, of closes after these idle times, one a second from `start` on.
    struct Seen {
        closes: Vec<Closed>,
        uses: Vec<Bucket>,
        lost: Vec<Bucket>,
        last: LastUses,
        crossing: Duration,
        outlived: Vec<Outlived>,
        by_client: Vec<Closed>,
    }

    impl Seen {
        fn of(start: u32, idle: impl IntoIterator<Item = Duration>, uses: &[Bucket]) -> Self {
            Self {
                closes: (start..).zip(idle).collect(),
                uses: uses.to_vec(),
                lost: Vec::new(),
                last: LastUses::default(),
                crossing: Duration::ZERO,
                outlived: Vec::new(),
                by_client: Vec::new(),
            }
        }

        /// Twenty closes after two seconds.
        fn sharp(uses: &[Bucket]) -> Self {
            Self::of(0, [TIMEOUT; 20], uses)
        }

        fn survives(&self) -> bool {
            let uses = Uses {
                gaps: &self.uses,
                lost: &self.lost,
                start: 0,
                last: &self.last,
                crossing: self.crossing,
            };
            let client = of_closes(&self.by_client, false);
            let of_late = |closes: &[Closed]| -> Vec<_> {
                closes.iter().map(|(_, idle)| after(idle.as_secs_f64(), 1)).collect()
            };
            let buckets = of_late(&self.by_client);
            let closes = Closes {
                latest: &self.closes,
                of_late: &of_late(&self.closes),
                connections: &self.outlived,
                client: client.as_ref().map(|client| (client, &*buckets)),
            };
            let estimate = of_closes(&self.closes, false).expect("the closes agree");
            estimate.surviving(&uses, &closes).is_some()
        }
    }

    #[test]
    fn an_age_is_met_at_once_by_those_that_are_never_used() {
        let age = Duration::from_mins(1);
        let survives = |outlived: u64, gap: f64| {
            let unused = (0..10).map(|_| (age, Duration::from_millis(outlived)));
            let others = (1..20).map(|i| (Duration::from_secs(i), Duration::from_secs(7)));
            let outlived = unused.chain(others).collect();
            Seen { outlived, ..Seen::of(0, [age; 20], &[after(gap, 100)]) }.survives()
        };
        assert!(!survives(0, 7.0));
        assert!(survives(5_000, 7.0));
        assert!(survives(0, 70.0), "none could have been used before");
    }

    #[test]
    fn later_uses_of_others_refute_nothing() {
        let uses = [after(1.0, 500), after(3.0, 500)];
        assert!(Seen::sharp(&uses[..1]).survives());
        assert!(!Seen::sharp(&uses).survives());
        // Half of all uses come later, and none of the twenty connections was used that late.
        let with = |outlived: &[Outlived]| {
            Seen { outlived: outlived.to_vec(), ..Seen::sharp(&uses) }.survives()
        };
        let outlived = [(TIMEOUT, Duration::from_secs(1)); 20];
        assert!(with(&outlived));
        assert!(!with(&outlived[..6]), "that may be chance");
        assert!(!with(&[(TIMEOUT, Duration::ZERO); 20]));
    }

    #[test]
    fn what_was_used_before_a_timeout_was_set_does_not_refute_it() {
        let used_until = |second: u64, count: u32| {
            let mut last = LastUses::default();
            last.add(Nanos(second * 1_000_000_000), Duration::from_secs(3));
            Seen { last, ..Seen::of(1000, [TIMEOUT; 20], &[after(3.0, count)]) }.survives()
        };
        // A thousand uses in as many seconds, and none in the last twenty.
        assert!(used_until(999, 1_000));
        assert!(!used_until(999, 250), "that it is quiet for twenty seconds may be chance");
        assert!(!used_until(1_014, 1_000), "met five times since, but that may be chance");
        assert!(!used_until(1_020, 1_000), "they go on");
        assert!(used_until(1_010, 1_000), "nine closes, 1,000 uses that stay away");
        assert!(!used_until(1_015, 100_000), "four closes");
    }

    /// A ping every 3.3 s, and a timeout of ten seconds that does not count pings: closed just before the third.
    #[test]
    fn what_would_have_crossed_the_close_and_did_not() {
        let pings = |crossing: u64, lost: u32| Seen {
            crossing: Duration::from_millis(crossing),
            lost: vec![after(1.98, lost)],
            ..Seen::sharp(&[after(1.98, 200)])
        };
        assert!(!pings(40, 0).survives());
        assert!(!pings(40, 3).survives());
        assert!(pings(40, 4).survives(), "some are lost: the timer is often late");
        assert!(pings(5, 0).survives(), "those came before the close was under way");
        assert!(pings(0, 0).survives());
        // Fewer uses: then the connections themselves.
        let few = |outlived: u64| Seen {
            uses: vec![after(1.98, 60)],
            outlived: vec![(TIMEOUT, Duration::from_millis(outlived)); 20],
            ..pings(40, 0)
        };
        assert!(!few(1_980).survives());
        assert!(few(1_900).survives());
    }

    /// A server ends connections at random, and the client closes what has been idle for four seconds.
    #[test]
    fn a_scatter_that_the_client_cuts_off_is_no_timeout() {
        let idle = (0..40).map(|i| Duration::from_millis(2_100 + i * 17 % 40 * 45));
        let with_client = |count: u32, millis: u64| {
            let by_client = (0..count).map(|n| (n, Duration::from_millis(millis))).collect();
            Seen { by_client, ..Seen::of(0, idle.clone(), &[]) }.survives()
        };
        assert!(with_client(0, 4_000));
        assert!(!with_client(50, 4_000));
        assert!(with_client(30, 4_000), "the server closes more");
        assert!(with_client(50, 4_800), "it ends well before");
        let sharp = Seen { by_client: vec![], ..Seen::sharp(&[]) };
        let by_client = (0..50).map(|n| (n, Duration::from_millis(2_050))).collect();
        assert!(Seen { by_client, ..sharp }.survives(), "a timer just before the client's");
    }
}
