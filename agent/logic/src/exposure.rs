//! How many races to expect: from what is known before the first one (the gaps between our uses of a
//! connection, the ages at which the other side closes it, how long a request can meet a close), and from how
//! many have come since.

use std::time::Duration;

use super::estimate::MIN_CLOSES;
use super::gaps::Bucket;

/// The number of uses that a rate is read from, if that many are near enough.
pub const ENOUGH: u32 = 12;

/// The shortest span that a rate is read from, in seconds: ages are only as fine as the kernel's tick, up to 10 ms.
const LEAST: f64 = 0.02;

/// What exposure is computed from: all of it over the same period, except for the losses.
#[derive(Clone, Debug, Default)]
pub struct Grounds {
    /// Idle times that ended with a use. A use that met a close came at a greater age than the close, so it
    /// need not be among them.
    pub uses: Vec<Bucket>,
    /// Those that ended with a close by the side that answers requests.
    pub by_server: Vec<Bucket>,
    /// And with a close by the other side.
    pub by_client: Vec<Bucket>,
    /// The length of the period observed.
    pub length: Duration,
    pub rtt: Duration,
    /// How long our pool keeps a socket that got a FIN, on average; none if unknown.
    pub reaction: Option<Duration>,
    /// The share of sockets with a FIN that our pool wrote to, at most: a pool that looks before it writes
    /// keeps them for a long time, and loses no request. None if unknown.
    pub written: Option<f64>,
    /// Requests lost to such closes, and over how long.
    pub lost: u32,
    pub lost_in: Duration,
}

/// Races to expect. An idle connection that is closed is never used: the likelihood of a use at that very age
/// is taken to be the same as just before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exposure {
    /// Per hour.
    pub races: f64,
    /// What the ages at closes and uses say on their own.
    pub computed: f64,
    /// The most per hour, if it was chance that so few gaps were seen near the close, or so few
    /// requests lost.
    pub at_most: f64,
    /// A request that begins within this time around the close is lost: the round trip, and `reaction`.
    pub window: Duration,
    /// How long our pool takes on average to notice; none if it was never seen to.
    pub reaction: Option<Duration>,
    /// Gaps that the figure rests on, at the average close.
    pub gaps: f64,
    /// The share of all gaps that came in the last tenth before the close.
    pub near: f64,
}

/// What would happen if the requesting side closed idle connections after a given time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Per hour.
    pub races: f64,
    /// New connections a second, in place of those that were closed.
    pub connects: f64,
}

/// Uses per second of a connection of a given age.
struct Hazard {
    likely: f64,
    /// The same, if it was chance that so few were seen (19 times in 20).
    at_most: f64,
    /// How many were seen.
    gaps: f64,
}

impl Grounds {
    /// None as long as the answering side has closed nothing.
    pub fn exposure(&self) -> Option<Exposure> {
        let closes = total(&self.by_server);
        if self.length.is_zero() || closes == 0.0 {
            return None;
        }
        let mut exposure = Exposure {
            window: self.rtt.saturating_add(self.reaction.unwrap_or_default()),
            reaction: self.reaction,
            ..Exposure::default()
        };
        let (mut computed, mut most) = (0.0, 0.0);
        for close in &self.by_server {
            let hazard = self.hazard(close);
            computed += self.losses(close, hazard.likely, f64::INFINITY);
            most += self.losses(close, hazard.at_most, f64::INFINITY);
            let weight = f64::from(close.count) / closes;
            exposure.gaps += hazard.gaps * weight;
            exposure.near += share_between(&self.uses, 0.9 * close.low, close.high) * weight;
        }
        exposure.races = self.in_light_of_losses(computed);
        exposure.computed = self.per_hour(computed);
        let by_chance = at_most(self.lost.into()) / hours(self.lost_in);
        exposure.at_most = exposure.races.max(self.per_hour(most).min(by_chance));
        Some(exposure)
    }

    /// Per hour. Losses count as they are. What is computed on top of them counts for one request at most:
    /// more would have been lost by now.
    fn in_light_of_losses(&self, computed: f64) -> f64 {
        let hours = hours(self.lost_in);
        let due = self.per_hour(computed) * hours;
        (f64::from(self.lost) + due / (1.0 + due)) / hours
    }

    /// This count in the period observed, as a rate per hour.
    fn per_hour(&self, count: f64) -> f64 {
        count / hours(self.length)
    }

    /// The longest idle time after which connections are used, if our pool plainly uses none later although
    /// the other side closes first, at `low` seconds at the earliest: of the connections that it came upon
    /// after that time, it used none and closed some. A pool that checks a connection's age before taking it
    /// behaves this way.
    pub fn last_use(&self, low: f64) -> Option<Duration> {
        let last = self.uses.last()?.high;
        let margin = margin(low, self.rtt);
        let after = |end: &&Bucket| end.mean > last && end.mean < low;
        let dropped: f64 = self.by_client.iter().filter(after).map(count).sum();
        let is_plain = dropped >= MIN_CLOSES.into() && dropped * 4.0 >= total(&self.by_server);
        (last + margin < low && is_plain).then(|| Duration::try_from_secs_f64(last).ok())?
    }

    /// All idle times, whatever ended them.
    fn ends(&self) -> impl Iterator<Item = &Bucket> {
        [&self.uses, &self.by_server, &self.by_client].into_iter().flatten()
    }

    /// Seconds that connections spent idle between these ages.
    fn at_risk(&self, from: f64, to: f64) -> f64 {
        self.ends().map(|end| count(end) * (end.mean.min(to) - from).max(0.0)).sum()
    }

    /// What an idle timeout on the requesting side would give if it fired on time; without one, how things
    /// are now. Nothing is known of ages that are never reached: none beyond the longest idle time.
    pub fn forecast(&self, timeout: Option<Duration>) -> Option<Forecast> {
        let limit = timeout.map_or(f64::INFINITY, |timeout| timeout.as_secs_f64());
        let longest = self.ends().map(|end| end.high).fold(0.0, f64::max);
        if self.length.is_zero() || (timeout.is_some() && limit > longest) {
            return None;
        }
        let (all, computed) = (self.computed(f64::INFINITY), self.computed(limit));
        let closed =
            self.by_server.iter().filter(|close| close.mean < limit).map(count).sum::<f64>();
        // Where nothing is computed, every close is as dangerous as any other.
        let (part, of) = if all > 0.0 { (computed, all) } else { (closed, total(&self.by_server)) };
        let share = if of > 0.0 { part / of } else { 0.0 };
        let cut: f64 = self.uses.iter().filter(|gap| gap.mean > limit).map(count).sum();
        Some(Forecast {
            races: self.in_light_of_losses(all) * share,
            connects: (total(&self.by_server) + total(&self.by_client) + cut)
                / self.length.as_secs_f64(),
        })
    }

    /// Requests that meet a close, if the requesting side closes at `limit`.
    fn computed(&self, limit: f64) -> f64 {
        let of = |close| self.losses(close, self.hazard(close).likely, limit);
        self.by_server.iter().map(of).sum()
    }

    /// How many of these closes meet a request, if requests come at that rate and the requesting side closes
    /// at `limit`. A request is lost if it is under way as the other side closes, or if it begins before our
    /// pool has noticed.
    fn losses(&self, close: &Bucket, rate: f64, limit: f64) -> f64 {
        let rtt = self.rtt.as_secs_f64();
        let under_way = (limit - (close.mean - rtt)).clamp(0.0, rtt);
        let reaction = self.reaction.unwrap_or_default().as_secs_f64();
        let unnoticed = reaction.min((limit - close.mean).max(0.0));
        // The pool notices at any time, or a use comes first.
        let written = rate * unnoticed / (1.0 + rate * unnoticed);
        let written = self.written.map_or(written, |most| most.min(written));
        let passes = (-rate * under_way).exp() * (1.0 - written);
        f64::from(close.count) * (1.0 - passes)
    }

    /// At the age of a close: uses of connections a little younger, divided by the time spent at those ages.
    /// The nearest dozen uses count, as far as they are within half of the age.
    fn hazard(&self, close: &Bucket) -> Hazard {
        let age = close.mean;
        let nearest = age - LEAST;
        let farthest = age / 2.0;
        let (mut count, mut reached) = (0.0, age);
        let near = self.uses.iter().rev().filter(|b| b.low <= close.low && b.low >= farthest);
        for bucket in near {
            if count >= f64::from(ENOUGH) && bucket.high <= nearest {
                break;
            }
            count += f64::from(bucket.count);
            reached = bucket.low;
        }
        let from = if count >= f64::from(ENOUGH) { reached.min(nearest) } else { farthest };
        let at_risk = self.at_risk(from, age);
        let rate = |count: f64| if at_risk > 0.0 { count / at_risk } else { 0.0 };
        Hazard { likely: rate(count), at_most: rate(at_most(count)), gaps: count }
    }
}

/// The most that such a count can stand for, if it is this low by chance (19 times in 20).
pub fn at_most(count: f64) -> f64 {
    count + 3.0 + 2.0 * count.sqrt()
}

/// How long before `low` the last use must be for no use to be near it.
pub fn margin(low: f64, rtt: Duration) -> f64 {
    rtt.as_secs_f64().max(low / 20.0)
}

fn hours(time: Duration) -> f64 {
    (time.as_secs_f64() / 3600.0).max(f64::EPSILON)
}

fn count(bucket: &Bucket) -> f64 {
    bucket.count.into()
}

fn total(buckets: &[Bucket]) -> f64 {
    buckets.iter().map(count).sum()
}

fn share_between(buckets: &[Bucket], from: f64, to: f64) -> f64 {
    let inside = |b: &Bucket| (b.high.min(to) - b.low.max(from)).max(0.0) / (b.high - b.low);
    let sum: f64 = buckets.iter().map(|bucket| inside(bucket) * f64::from(bucket.count)).sum();
    let all = total(buckets);
    if all > 0.0 { sum / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gaps::Gaps;

    fn buckets(values: impl IntoIterator<Item = f64>) -> Vec<Bucket> {
        let mut gaps = Gaps::default();
        values.into_iter().for_each(|value| gaps.add(Duration::from_secs_f64(value)));
        gaps.buckets()
    }

    /// One hour, in which this many requests were lost.
    fn grounds(uses: &[Bucket], by_server: &[Bucket], lost: u32) -> Grounds {
        Grounds {
            uses: uses.to_vec(),
            by_server: by_server.to_vec(),
            length: Duration::from_hours(1),
            lost,
            lost_in: Duration::from_hours(1),
            ..Grounds::default()
        }
    }

    fn of(grounds: Grounds, rtt_ms: u64, reaction_ms: Option<u64>) -> Exposure {
        let (rtt, reaction) =
            (Duration::from_millis(rtt_ms), reaction_ms.map(Duration::from_millis));
        Grounds { rtt, reaction, ..grounds }.exposure().expect("closes")
    }

    /// A hundred gaps for each second of gap length up to 4 s, of which the server allows none over 2 s.
    fn uniform() -> (Vec<Bucket>, Vec<Bucket>) {
        (buckets((0..180).map(|i| 0.205 + f64::from(i) / 100.0)), buckets([2.0; 200]))
    }

    fn is_near(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= 0.2 * expected + 1e-9
    }

    #[test]
    fn a_gap_is_lost_within_a_round_trip_and_the_reaction() {
        let (uses, by_server) = uniform();
        // Before the first loss, the computed figure is given as it is only while it is small.
        let check = |rtt_ms, reaction_ms, computed: f64| {
            let exposure = of(grounds(&uses, &by_server, 0), rtt_ms, reaction_ms);
            let expected = computed / (1.0 + computed);
            assert!(is_near(exposure.races, expected), "{exposure:?}, not {expected}");
            assert!(exposure.at_most >= exposure.races, "{exposure:?}");
            assert!((0.09..0.13).contains(&exposure.near), "{exposure:?}");
        };
        check(1, None, 0.1);
        check(10, None, 1.0);
        check(1, Some(1), 0.2);
        check(0, Some(0), 0.0);
    }

    #[test]
    fn what_was_lost_weighs_more_than_what_is_computed() {
        let (uses, by_server) = uniform();
        let races = |lost, rtt_ms| of(grounds(&uses, &by_server, lost), rtt_ms, None);
        // Far more than computed: on loopback, by a pool that does not look.
        assert!(is_near(races(64, 0).races, 64.0) && races(64, 0).at_most >= 64.0);
        // Far fewer: the pool sees the FIN before it writes. Twenty were due and none has come.
        let exposure = races(0, 200);
        assert!(exposure.races < 1.0 && exposure.at_most <= 3.0, "{exposure:?}");
        // About as many.
        assert!(is_near(races(20, 200).races, 20.0));
    }

    #[test]
    fn a_pool_that_looks_before_use_loses_what_is_under_way_alone() {
        let (uses, by_server) = uniform();
        let computed = |written| {
            let grounds = Grounds { written, ..grounds(&uses, &by_server, 0) };
            of(grounds, 1, Some(60_000)).computed
        };
        assert!(computed(None) > 100.0);
        assert!(is_near(computed(Some(0.0)), 0.1), "{}", computed(Some(0.0)));
        assert!(is_near(computed(Some(0.05)), 10.1), "{}", computed(Some(0.05)));
    }

    #[test]
    fn no_more_than_every_connection_is_lost() {
        let uses = buckets((0..100).map(|i| 1.0 + f64::from(i) / 1000.0));
        let exposure = of(grounds(&uses, &buckets([1.1; 50]), 50), 10_000, None);
        assert!((49.9..51.01).contains(&exposure.races), "{exposure:?}");
    }

    #[test]
    fn each_close_counts_at_its_own_age() {
        // All uses come at 1 s: a close at 1 s is in their way, one at 60 s is not.
        let uses = buckets([0.999; 1_000]);
        let races = |by_server: &[f64]| {
            let by_server = buckets(by_server.iter().copied());
            of(grounds(&uses, &by_server, 0), 1, None).races
        };
        let (early, both) = (races(&[1.0; 10]), races(&[[1.0; 10], [60.0; 10]].concat()));
        assert!(early > 0.1 && (both - early).abs() < 0.1 * early, "{early} {both}");
    }

    #[test]
    fn no_gap_near_the_close_still_leaves_a_bound() {
        let exposure = of(grounds(&buckets([0.3; 1_000]), &buckets([60.0; 10]), 0), 10, None);
        assert!(exposure.races == 0.0 && exposure.at_most > 0.0, "{exposure:?}");
        assert_eq!(grounds(&[], &[], 0).exposure(), None);
    }

    #[test]
    fn a_pool_that_looks_at_the_age_uses_none_later() {
        // A hundred uses for each second of idle time up to 1.5 s; the server closes at 2 s.
        let until = |last: f64| -> Vec<Bucket> {
            let all = (0..).map(|i| 0.2 + f64::from(i) / 100.0);
            buckets(all.take_while(|seconds| *seconds < last))
        };
        let last_use = |uses: &[Bucket], dropped: &[f64]| {
            let by_client = buckets(dropped.iter().copied());
            let grounds = grounds(uses, &buckets([2.0; 20]), 0);
            Grounds { by_client, ..grounds }.last_use(2.0).map(|last| last.as_secs_f64())
        };
        let dropped = [1.6, 1.7, 1.8, 1.8, 1.9];
        let last = last_use(&until(1.5), &dropped).unwrap();
        assert!((1.49..1.53).contains(&last), "{last}");
        // It came upon too few. None was used after that long, but one might have been.
        assert_eq!(last_use(&until(1.5), &dropped[1..]), None);
        assert_eq!(last_use(&until(1.5), &[]), None);
        // They are used until the server closes, or beyond: another server behind the address.
        assert_eq!(last_use(&until(1.98), &[1.99; 10]), None);
        assert_eq!(last_use(&[until(1.5), buckets([7.0])].concat(), &dropped), None);
    }

    #[test]
    fn a_shorter_timeout_of_the_client_costs_connects_and_saves_requests() {
        let (uses, by_server) = uniform();
        let rtt = Duration::from_millis(10);
        let grounds = Grounds { rtt, ..grounds(&uses, &by_server, 20) };
        let of = |seconds| grounds.forecast(Some(Duration::from_secs_f64(seconds)));
        let [half, one, near] = [0.5, 1.0, 1.995].map(|seconds| of(seconds).expect("known"));
        assert_eq!((half.races, one.races), (0.0, 0.0));
        // Half of the round trip before the close.
        assert!(is_near(near.races, 10.3), "{near:?}");
        // 200 closes as before, and 150 or 100 gaps that were longer.
        let [half, one] = [half, one].map(|forecast| forecast.connects * 3600.0);
        assert!(is_near(half, 350.0) && is_near(one, 300.0), "{half} {one}");
        // Never reached.
        assert_eq!((of(2.5), of(60.0)), (None, None));
        // With the timeout that the client already has, if later than the server's, nothing changes.
        let (uses, by_server) = (&uses, &[by_server, buckets([4.0])].concat());
        let with_own = Grounds { rtt, ..self::grounds(uses, by_server, 20) };
        let last = with_own.forecast(Some(Duration::from_secs(3))).unwrap();
        assert_eq!(Some(last), with_own.forecast(None));
        assert!(is_near(last.races, with_own.exposure().unwrap().races), "{last:?}");
    }
}
