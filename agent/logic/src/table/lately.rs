//! A row's recent past: the facts that a verdict rests on.

use std::time::Duration;

use super::pool::Pool;
use crate::estimate::{Estimate, is_refuted_by};
use crate::exposure::{ENOUGH, Grounds, at_most};
use crate::gaps::{Bucket, Gaps, count};
use crate::knobs::Side;
use crate::last_uses::LastUses;
use crate::latest::Latest;
use crate::model::{Cause, Class, Close, Closer, Dwell, Evidence, Incident, Nanos, Reuse, Role};
use crate::order::Order;
use crate::verdict::{Facts, Races, is_old};
use crate::window::Window;

/// Traffic changes by the hour: what was used and closed is looked at for one to two.
const TRAFFIC: Duration = Duration::from_hours(1);

/// Requests that are lost this soon after each other are lost to one event.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A request lost at noon is still a reason to act in the evening.
const LOSSES: Duration = Duration::from_hours(12);

/// All of it in bounded memory.
#[derive(Clone, Debug)]
pub(super) struct Lately {
    traffic: Window<Traffic>,
    /// Idle times that ended with a use, with a lost one, with a close by the peer, and by us: as old
    /// as `traffic`.
    uses: Gaps,
    last_uses: LastUses,
    lost: Gaps,
    by_peer: Gaps,
    by_us: Gaps,
    /// Most rows never lose a request.
    losses: Window<Option<Box<LatelyLost>>>,
    order: Order,
    pool: Pool,
    /// For sockets that nothing was written to: enough for a median.
    dwells: Latest<32>,
}

/// Half as large as with durations.
#[derive(Clone, Debug, Default)]
struct Traffic {
    longest_gap_ns: u64,
    shortest_rtt_us: Option<u32>,
    /// Requests that an idle timeout may have taken.
    lost: u32,
    /// In CLOSE_WAIT, all sockets together, and how many of them our pool closed unwritten.
    dwell_us: u64,
    noticed: u32,
    /// And to how many it wrote.
    written: u32,
    /// The server's closes that were not its own.
    by_middlebox: u32,
    /// Keep-alive probes run on connections that were used.
    is_probed: bool,
}

#[derive(Clone, Debug, Default)]
struct LatelyLost {
    races: Races,
    /// Those that count at the client's row.
    seen: Races,
    /// The first of either kind whose cause is unknown: an estimate may yet tell it.
    undecided: Vec<Undecided>,
    /// How many times requests were lost: what is lost within a second of each other is lost at once.
    times: u32,
    /// The latest, and the latest that met a rollout.
    last_race: Option<Nanos>,
    last_rollout: Option<Nanos>,
    drops: u32,
    shortest_drop: Option<Duration>,
    stale: u32,
    old_fins: u32,
}

/// How many requests were lost before the timeout, which begins at `low`, and the least gap before one: by a
/// server whose event loop is blocked for that long, and which then looks at its timers before it reads.
fn lost_early(lost: &[Bucket], low: f64, rtt: Duration) -> Option<(u32, Duration)> {
    /// Fewer may have another reason.
    const LEAST: u32 = 3;

    let margin = (2.0 * rtt.as_secs_f64()).max(low / 20.0);
    let mut early = lost.iter().filter(|gap| gap.low > low / 2.0 && gap.high < low - margin);
    let first = early.clone().next()?;
    let count: u32 = early.by_ref().map(|gap| gap.count).sum();
    (count >= LEAST).then(|| Duration::try_from_secs_f64(first.low).ok().map(|gap| (count, gap)))?
}

#[derive(Clone, Copy, Debug)]
struct Undecided {
    is_seen: bool,
    idle: Duration,
    rtt: Duration,
}

impl LatelyLost {
    /// The most that are remembered until an estimate tells.
    const UNDECIDED: usize = 64;

    fn note(&mut self, race: &Incident, is_seen: bool) {
        let races = if is_seen { &mut self.seen } else { &mut self.races };
        let count = races.of_mut(race.cause);
        *count = count.saturating_add(1);
        let is_new = self.last_race.is_none_or(|last| race.time.since(last) >= AT_ONCE);
        self.times = self.times.saturating_add(is_new.into());
        self.last_race = self.last_race.max(Some(race.time));
        if race.cause == Cause::Rollout {
            self.last_rollout = self.last_rollout.max(Some(race.time));
        }
        if race.cause == Cause::Unknown
            && self.undecided.len() < Self::UNDECIDED
            && let Some(idle) = race.idle.or(race.gap)
        {
            let rtt = race.origin.rtt.unwrap_or_default();
            self.undecided.push(Undecided { is_seen, idle, rtt });
        }
    }

    /// Own races, or those of the client's row, in the light of what is known by now.
    fn by_cause(&self, is_seen: bool, is_idle: impl Fn(&Undecided) -> bool) -> Races {
        let mut races = if is_seen { self.seen } else { self.races };
        for undecided in &self.undecided {
            if undecided.is_seen == is_seen && is_idle(undecided) {
                races.unknown = races.unknown.saturating_sub(1);
                races.idle = races.idle.saturating_add(1);
            }
        }
        races
    }
}

impl Lately {
    pub(super) fn new(start: Nanos) -> Self {
        Self {
            traffic: Window::new(TRAFFIC, start),
            uses: Gaps::default(),
            last_uses: LastUses::default(),
            lost: Gaps::default(),
            by_peer: Gaps::default(),
            by_us: Gaps::default(),
            losses: Window::new(LOSSES, start),
            order: Order::default(),
            pool: Pool::new(start),
            dwells: Latest::default(),
        }
    }

    /// Lets go of what is old by `now`.
    pub(super) fn turn(&mut self, now: Nanos) {
        self.traffic(now);
        self.losses.turn(now);
    }

    fn traffic(&mut self, now: Nanos) -> &mut Traffic {
        for _ in 0..self.traffic.turn(now) {
            for gaps in [&mut self.uses, &mut self.lost, &mut self.by_peer, &mut self.by_us] {
                gaps.turn();
            }
        }
        self.traffic.at(now)
    }

    /// Whether requests were lost within half a day.
    pub(super) fn has_losses(&self) -> bool {
        self.losses.spans().into_iter().any(Option::is_some)
    }

    pub(super) fn note_rtt(&mut self, time: Nanos, rtt: Duration) {
        let rtt_us = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        let shortest = &mut self.traffic(time).shortest_rtt_us;
        *shortest = Some(shortest.map_or(rtt_us, |least| least.min(rtt_us)));
    }

    pub(super) fn note_reuse(&mut self, reuse: &Reuse) {
        self.note_gap(reuse.time, reuse.gap);
        self.traffic(reuse.time).is_probed |= reuse.is_probed;
        self.uses.add(reuse.gap);
        self.last_uses.add(reuse.time, reuse.gap);
        self.pool.use_after(reuse.time, reuse.gap);
    }

    fn note_gap(&mut self, time: Nanos, gap: Duration) {
        let gap_ns = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
        let longest = &mut self.traffic(time).longest_gap_ns;
        *longest = gap_ns.max(*longest);
    }

    pub(super) fn note_close(&mut self, close: &Close) {
        if matches!(close.evidence, Evidence::Idle | Evidence::UpperBound) {
            let end = close.end();
            self.order.add(close.time, end);
            // Since our last data: the answer to that took a round trip at least.
            let is_exact = close.evidence == Evidence::Idle;
            let answer = close.origin.rtt.filter(|_| !is_exact).unwrap_or_default();
            self.end(close.time, end, close.idle.saturating_sub(answer));
            let by_middlebox = &mut self.traffic(close.time).by_middlebox;
            *by_middlebox = by_middlebox.saturating_add((close.closer == Closer::Middlebox).into());
            let [_, client] = close.origin.role.sides();
            if end == client {
                self.pool.drop_after(close.idle);
            } else {
                self.pool.close();
            }
        }
    }

    /// An idle time ended with a close by that side.
    fn end(&mut self, time: Nanos, closer: Closer, idle: Duration) {
        self.traffic(time);
        match closer {
            Closer::Peer | Closer::Middlebox => self.by_peer.add(idle),
            Closer::Local => self.by_us.add(idle),
        }
    }

    pub(super) fn note_dwell(&mut self, dwell: &Dwell) {
        let traffic = self.traffic(dwell.time);
        let dwell_us = u64::try_from(dwell.dwell.as_micros()).unwrap_or(u64::MAX);
        traffic.dwell_us = traffic.dwell_us.saturating_add(dwell_us);
        if dwell.written {
            traffic.written = traffic.written.saturating_add(1);
        } else {
            traffic.noticed = traffic.noticed.saturating_add(1);
            self.dwells.add(dwell.time, dwell.dwell);
        }
    }

    pub(super) fn note_race(&mut self, race: &Incident) {
        let Incident { time, class, cause, gap, fin_age, .. } = *race;
        if cause == Cause::Idle {
            self.order.note_race();
        }
        // A close that a request crossed does not count as one of an idle connection.
        let is_close_of_its_own = matches!(class, Class::StaleWrite | Class::LateRequest);
        if cause == Cause::Idle && class != Class::SilentDrop && !is_close_of_its_own {
            let [server, _] = race.origin.role.sides();
            self.end(time, server, gap.unwrap_or_default());
        }
        if class != Class::SilentDrop {
            self.note_lost(race);
        }
        let losses = self.losses.at(time).get_or_insert_default();
        if class == Class::SilentDrop {
            losses.drops = losses.drops.saturating_add(1);
            let least = losses.shortest_drop;
            losses.shortest_drop =
                gap.map(|gap| least.map_or(gap, |least| least.min(gap))).or(least);
            return;
        }
        losses.note(race, false);
        if class == Class::StaleWrite {
            let rtt = race.origin.rtt.unwrap_or_default();
            losses.stale = losses.stale.saturating_add(1);
            losses.old_fins += u32::from(fin_age.is_some_and(|age| is_old(age, rtt)));
        }
    }

    /// The gap before a request that was lost, if an idle timeout may have taken it.
    fn note_lost(&mut self, race: &Incident) {
        if !matches!(race.cause, Cause::Idle | Cause::Unknown) {
            return;
        }
        self.pool.note_race(race.time);
        let lost = &mut self.traffic(race.time).lost;
        *lost = lost.saturating_add(1);
        if let Some(gap) = race.gap {
            self.note_gap(race.time, gap);
            self.lost.add(gap);
        }
    }

    /// A race that counts at the client's row.
    pub(super) fn note_seen(&mut self, view: &Incident) {
        self.note_lost(view);
        if view.cause == Cause::Idle {
            self.order.note_race();
        }
        self.losses.at(view.time).get_or_insert_default().note(view, true);
    }

    /// Gaps before requests that were lost, even if to no definite timeout yet.
    pub(super) fn lost_gaps(&self) -> Vec<Bucket> {
        self.lost.buckets()
    }

    /// When a connection was last used after how long a gap.
    pub(super) const fn last_uses(&self) -> &LastUses {
        &self.last_uses
    }

    /// Since when gaps are known.
    pub(super) const fn gaps_since(&self) -> Nanos {
        self.traffic.start()
    }

    /// Gaps before reuses.
    pub(super) fn gaps(&self) -> Vec<Bucket> {
        self.uses.buckets()
    }

    /// Idle times that ended with a close by that side.
    pub(super) fn closed_after(&self, closer: Closer) -> Vec<Bucket> {
        match closer {
            Closer::Peer | Closer::Middlebox => self.by_peer.buckets(),
            Closer::Local => self.by_us.buckets(),
        }
    }

    /// What made most of the closes that count as the server's.
    fn closed_by(&self, server: Closer) -> Side {
        let all: u32 = self.closed_after(server).iter().map(|at| at.count).sum();
        let between: u32 = self.traffic.spans().map(|span| span.by_middlebox).into_iter().sum();
        if between > all / 2 { Side::Middlebox } else { Side::Server }
    }

    /// Whether connections were used again after longer, more often than that side closed such connections. A
    /// use after nearly as long may itself be lost at this moment, as this one was.
    pub(super) fn is_outlived(&self, closer: Closer, idle: Duration) -> bool {
        let (least, most) = (idle.as_secs_f64() * 0.9, idle.as_secs_f64() * 1.1);
        let ended = count(&self.closed_after(closer), |at| (least..=most).contains(&at.low));
        is_refuted_by(count(&self.gaps(), |gap| gap.low >= most), ended)
    }

    fn losses(&self) -> impl Iterator<Item = &LatelyLost> {
        self.losses.spans().into_iter().flatten().map(|losses| &**losses)
    }

    /// A sum over both spans of losses.
    fn lost(&self, of: impl Fn(&LatelyLost) -> u32) -> u32 {
        self.losses().map(of).fold(0, u32::saturating_add)
    }

    /// Remembers what these facts say plainly.
    pub(super) fn learn(&mut self, facts: &Facts) {
        if let Some(low) = facts.server_low().filter(|_| facts.unused_after.is_some()) {
            self.pool.prove(low, facts.rtt.unwrap_or_default());
        }
    }

    /// Mean time in CLOSE_WAIT until our pool notices; none where it never did.
    fn reaction(&self) -> Option<Duration> {
        let spans = self.traffic.spans();
        let dwell_us = spans.map(|span| span.dwell_us).into_iter().fold(0, u64::saturating_add);
        let noticed = spans.map(|span| span.noticed).into_iter().fold(0, u32::saturating_add);
        (noticed > 0).then(|| Duration::from_micros(dwell_us) / noticed)
    }

    /// The share of sockets in CLOSE_WAIT that our pool wrote to, at most.
    fn written(&self) -> Option<f64> {
        let sum =
            |of: fn(&Traffic) -> u32| -> u32 { self.traffic.spans().map(of).into_iter().sum() };
        let (written, noticed) = (sum(|span| span.written), sum(|span| span.noticed));
        let all = f64::from(written.saturating_add(noticed));
        (all > 0.0).then(|| (at_most(written.into()) / all).min(1.0))
    }

    /// What exposure is computed from. `races` were lost recently, over half a day or more; fewer than
    /// [`ENOUGH`] of the same hour or two say too little.
    pub(super) fn grounds(&self, role: Role, now: Nanos, races: Races) -> Grounds {
        let [server, client] = role.sides();
        let length = self.traffic.length(now);
        let of_late: u32 = self.traffic.spans().map(|span| span.lost).into_iter().sum();
        let is_decided = races.unknown == 0 && of_late >= ENOUGH;
        let (lost, lost_in) =
            if is_decided { (of_late, length) } else { (races.idle, self.losses.length(now)) };
        Grounds {
            uses: self.gaps(),
            by_server: self.closed_after(server),
            by_client: self.closed_after(client),
            length,
            rtt: self.rtt().unwrap_or_default(),
            reaction: self.reaction().filter(|_| role == Role::Client),
            written: self.written().filter(|_| role == Role::Client),
            lost,
            lost_in,
        }
    }

    /// The shortest round trip.
    pub(super) fn rtt(&self) -> Option<Duration> {
        let spans = self.traffic.spans();
        let rtt_us = spans.into_iter().filter_map(|span| span.shortest_rtt_us).min();
        rtt_us.map(|rtt_us| Duration::from_micros(rtt_us.into()))
    }

    /// What is known as of `now`, except for the client's timeout.
    pub(super) fn facts(
        &self,
        role: Role,
        threshold: Duration,
        now: Nanos,
        server_timeout: Option<Estimate>,
    ) -> Facts {
        let Self { traffic, losses, order, dwells, .. } = self;
        let [server, client] = role.sides();
        let dwell = dwells.quantile(0.5).filter(|_| role == Role::Client);
        let drop = self.losses().filter_map(|span| span.shortest_drop).min();
        let is_idle = |undecided: &Undecided| {
            let is_outlived = || self.is_outlived(server, undecided.idle);
            let reaches =
                |known: &Estimate| known.is_reached(undecided.idle, undecided.rtt, is_outlived);
            server_timeout.as_ref().is_some_and(reaches)
        };
        let by_cause = |is_seen| {
            let of = |span: &LatelyLost| span.by_cause(is_seen, is_idle);
            self.losses().map(of).fold(Races::default(), Races::plus)
        };
        // A few among many others, and nothing agrees on a timeout any longer: there was none.
        let settled = |races: Races| {
            if server_timeout.is_none() && races.idle < races.others() {
                Races { idle: 0, unknown: races.unknown.saturating_add(races.idle), ..races }
            } else {
                races
            }
        };
        let (races, seen) = (settled(by_cause(false)), settled(by_cause(true)));
        let ago = |of: fn(&LatelyLost) -> Option<Nanos>| {
            self.losses().filter_map(of).max().map(|last| now.since(last))
        };
        let grounds = self.grounds(role, now, races.plus(seen));
        // Only losses make it urgent to know this, and only their absence then tells that it is no chance.
        let has_lost = races.idle + seen.idle > 0;
        let of_late = |low| self.pool.last_use(low, grounds.rtt).filter(|_| has_lost);
        let lowest = server_timeout.as_ref().map(Estimate::lowest);
        let unused_after = lowest.and_then(|low| grounds.last_use(low).or_else(|| of_late(low)));
        let longest_ns = traffic.spans().map(|span| span.longest_gap_ns).into_iter().max();
        Facts {
            role,
            length: losses.length(now),
            threshold,
            server_timeout,
            client_timeout: None,
            server_first: order.by(server),
            client_first: order.by(client),
            client_in_a_row: order.in_a_row(client),
            is_server_first_again: false,
            closed_by: self.closed_by(server),
            is_probed: traffic.spans().into_iter().any(|span| span.is_probed),
            client_row_length: order.row_length(client, now),
            server_share_before: order.share_before_row(client),
            reuses: 0,
            reuses_per_second: rate(&grounds.uses, grounds.length),
            longest_gap: Duration::from_nanos(longest_ns.unwrap_or_default()),
            exposure: grounds.exposure(),
            unused_after,
            lost_early: lowest.and_then(|low| lost_early(&self.lost_gaps(), low, grounds.rtt)),
            races,
            seen,
            lost_at_once: self.lost_at_once(races.plus(seen)),
            may_be_read: true,
            last_race: ago(|span| span.last_race),
            last_rollout: ago(|span| span.last_rollout),
            drops: self.lost(|span| span.drops),
            drops_outlived: drop.map_or(0, |drop| outlive(&grounds.uses, drop)),
            drop_limit: drop.and_then(|drop| self.drop_limit(&grounds.uses, drop)),
            stale: self.lost(|span| span.stale),
            old_fins: self.lost(|span| span.old_fins),
            dwell: dwell.map(|median| (median, u32::try_from(dwells.len()).unwrap_or(u32::MAX))),
            rtt: self.rtt(),
        }
    }

    /// Requests lost at a time, on average.
    fn lost_at_once(&self, races: Races) -> f64 {
        let all = races.idle.saturating_add(races.others());
        f64::from(all.max(1)) / f64::from(self.lost(|span| span.times).max(1))
    }

    /// The longest gap that passed and the shortest that did not; none where longer gaps passed, and more of
    /// them than were dropped.
    fn drop_limit(&self, uses: &[Bucket], shortest: Duration) -> Option<(Duration, Duration)> {
        let limit = shortest.as_secs_f64();
        let drops = self.lost(|span| span.drops);
        let passed = uses.iter().rev().find(|gap| gap.high <= limit)?;
        let is_limit = outlive(uses, shortest) <= drops;
        is_limit.then(|| (Duration::from_secs_f64(passed.low), shortest))
    }
}

/// Uses after a longer gap.
fn outlive(uses: &[Bucket], idle: Duration) -> u32 {
    count(uses, |gap| gap.low > idle.as_secs_f64())
}

fn rate(uses: &[Bucket], length: Duration) -> f64 {
    let count: u32 = uses.iter().map(|gap| gap.count).sum();
    f64::from(count) / length.as_secs_f64().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_before_the_timeout() {
        let rtt = Duration::from_millis(1);
        let early = |gaps: &[f64]| {
            let mut lost = Gaps::default();
            for gap in gaps {
                lost.add(Duration::from_secs_f64(*gap));
            }
            lost_early(&lost.buckets(), 2.0, rtt).map(|(count, gap)| (count, gap.as_secs_f64()))
        };
        let (count, gap) = early(&[0.4, 1.3, 1.5, 1.7, 1.99, 2.0]).unwrap();
        assert!(count == 3 && (1.28..1.31).contains(&gap), "{count} {gap}");
        assert_eq!(early(&[0.4, 0.5, 0.6, 1.5, 1.7, 1.99, 1.99]), None);
    }
}
