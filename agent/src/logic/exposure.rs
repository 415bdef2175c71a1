//! How many races are to be expected, from what is known before the first one: the gaps between
//! our uses of a connection, the ages at which the other side closes it, and how long a request can
//! meet a close.

use std::time::Duration;

use super::gaps::Bucket;

/// A pool that watches its sockets closes one that got a FIN within this time. What one does that
/// does not watch them is no matter of chance: it is counted.
const WATCHING: Duration = Duration::from_millis(100);

/// The chance of a use is read from so many, if there are as many near enough.
const ENOUGH: f64 = 12.0;

/// And from no shorter time, in seconds: ages are as fine as the kernel's tick, up to 10 ms.
const LEAST: f64 = 0.02;

/// What exposure is computed from, all of the same time.
#[derive(Clone, Copy, Debug)]
pub struct Grounds<'a> {
    /// Idle times that ended with a use.
    pub uses: &'a [Bucket],
    /// Those that ended with a close by the side that answers requests.
    pub by_server: &'a [Bucket],
    /// And by the other one.
    pub by_client: &'a [Bucket],
    /// How long was looked at.
    pub length: Duration,
    pub rtt: Duration,
    /// How long our pool keeps a socket that got a FIN: the median; none if not known.
    pub reaction: Option<Duration>,
}

/// Races to be expected. An idle connection that is closed is never used: how likely it would have
/// been at that very age is taken to be what it was just before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exposure {
    /// Per hour.
    pub races: f64,
    /// The most per hour, if it was chance that so few gaps were seen near the close.
    pub at_most: f64,
    /// A request that begins within this time around the close is lost.
    pub window: Duration,
    /// Gaps that the figure rests on, at the average close.
    pub gaps: f64,
    /// The share of all gaps that came in the last tenth before the close.
    pub near: f64,
}

/// None as long as the answering side has closed nothing.
pub fn exposure(grounds: &Grounds<'_>) -> Option<Exposure> {
    let Grounds { uses, by_server, length, rtt, reaction, .. } = *grounds;
    let closes = total(by_server);
    if length.is_zero() || closes == 0.0 {
        return None;
    }
    let hours = length.as_secs_f64() / 3600.0;
    let window = rtt + reaction.filter(|reaction| *reaction <= WATCHING).unwrap_or_default();
    let mut exposure = Exposure { window, ..Exposure::default() };
    for close in by_server {
        let hazard = grounds.hazard(close);
        let per_hour = |rate: f64| {
            f64::from(close.count) / hours * (1.0 - (-rate * window.as_secs_f64()).exp())
        };
        exposure.races += per_hour(hazard.likely);
        exposure.at_most += per_hour(hazard.at_most);
        let weight = f64::from(close.count) / closes;
        exposure.gaps += hazard.gaps * weight;
        exposure.near += share_between(uses, 0.9 * close.low, close.high) * weight;
    }
    Some(exposure)
}

/// Uses per second of a connection of some age.
struct Hazard {
    likely: f64,
    /// If it was chance that so few were seen (19 times in 20).
    at_most: f64,
    /// How many were seen.
    gaps: f64,
}

impl Grounds<'_> {
    /// At the age of a close: uses of connections a little younger, by the time that they were so
    /// old. The nearest dozen of uses counts, as far as they are within half of the age.
    fn hazard(&self, close: &Bucket) -> Hazard {
        let age = close.mean;
        let nearest = age - LEAST;
        let farthest = age / 2.0;
        let (mut count, mut reached) = (0.0, age);
        let near = self.uses.iter().rev().filter(|b| b.low <= close.low && b.low >= farthest);
        for bucket in near {
            if count >= ENOUGH && bucket.high <= nearest {
                break;
            }
            count += f64::from(bucket.count);
            reached = bucket.low;
        }
        let from = if count >= ENOUGH { reached.min(nearest) } else { farthest };
        let ends = [self.uses, self.by_server, self.by_client].into_iter().flatten();
        let at_risk: f64 =
            ends.map(|end| f64::from(end.count) * (end.mean.min(age) - from).max(0.0)).sum();
        let rate = |count: f64| if at_risk > 0.0 { count / at_risk } else { 0.0 };
        Hazard { likely: rate(count), at_most: rate(count + 3.0 + 2.0 * count.sqrt()), gaps: count }
    }
}

fn total(buckets: &[Bucket]) -> f64 {
    buckets.iter().map(|bucket| f64::from(bucket.count)).sum()
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
    use crate::logic::gaps::Gaps;

    fn buckets(values: impl IntoIterator<Item = f64>) -> Vec<Bucket> {
        let mut gaps = Gaps::default();
        values.into_iter().for_each(|value| gaps.add(Duration::from_secs_f64(value)));
        gaps.buckets()
    }

    /// In an hour.
    fn of(
        uses: &[Bucket],
        by_server: &[Bucket],
        rtt_ms: u64,
        reaction_ms: Option<u64>,
    ) -> Exposure {
        let grounds = Grounds {
            uses,
            by_server,
            by_client: &[],
            length: Duration::from_hours(1),
            rtt: Duration::from_millis(rtt_ms),
            reaction: reaction_ms.map(Duration::from_millis),
        };
        exposure(&grounds).expect("closes")
    }

    #[test]
    fn a_gap_is_lost_within_a_round_trip_and_the_reaction() {
        // A hundred gaps for each second of gap up to 4 s, of which the server lets none over 2 s.
        let uses = buckets((0..180).map(|i| 0.205 + f64::from(i) / 100.0));
        let by_server = buckets([2.0; 200]);
        let check = |rtt_ms, reaction_ms, expected: f64| {
            let exposure = of(&uses, &by_server, rtt_ms, reaction_ms);
            let is_near = (exposure.races - expected).abs() <= 0.2 * expected + 1e-9;
            assert!(is_near && exposure.at_most >= exposure.races, "{exposure:?}, not {expected}");
            assert!((0.09..0.13).contains(&exposure.near), "{exposure:?}");
        };
        check(10, None, 1.0);
        check(10, Some(10), 2.0);
        check(0, Some(0), 0.0);
        // A pool that does not look: what it loses is known, and no guess.
        check(10, Some(30_000), 1.0);
    }

    #[test]
    fn no_more_than_every_connection_is_lost() {
        let uses = buckets((0..100).map(|i| 1.0 + f64::from(i) / 1000.0));
        let exposure = of(&uses, &buckets([1.1; 50]), 10_000, None);
        assert!((49.9..50.01).contains(&exposure.races), "{exposure:?}");
    }

    #[test]
    fn each_close_counts_at_its_own_age() {
        // All uses come at 1 s: who closes at 1 s is in their way, who closes at 60 s is not.
        let uses = buckets([0.999; 1_000]);
        let early = of(&uses, &buckets([1.0; 10]), 1, None).races;
        let both = of(&uses, &buckets([[1.0; 10], [60.0; 10]].concat()), 1, None).races;
        assert!(early > 0.1 && (both - early).abs() < 0.1 * early, "{early} {both}");
    }

    #[test]
    fn no_gap_near_the_close_still_leaves_a_bound() {
        let exposure = of(&buckets([0.3; 1_000]), &buckets([60.0; 10]), 10, None);
        assert!(exposure.races == 0.0 && exposure.at_most > 0.0, "{exposure:?}");
        let grounds = Grounds {
            uses: &[],
            by_server: &[],
            by_client: &[],
            length: Duration::from_hours(1),
            rtt: Duration::ZERO,
            reaction: None,
        };
        assert_eq!(super::exposure(&grounds), None);
    }
}
