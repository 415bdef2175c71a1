//! What is kept of the observations of one row or one port.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::counts::{Counts, Keeps, Measure};
use super::lately::Lately;
use super::survey::Badness;
use crate::advice::advise;
use crate::ends::Ends;
use crate::estimate::{Closed, Closes, Estimate, Outlived, Uses, of_closes};
use crate::exposure::Grounds;
use crate::gaps::Bucket;
use crate::knobs::Side;
use crate::latest::Latest;
use crate::model::{
    Certainty, Class, Close, Closer, Evidence, Incident, Name, Nanos, Observation, Role,
};
use crate::owner::Owner;
use crate::peer::PortKey;
use crate::verdict::{Facts, State, assess};

/// Closes older than this say nothing of the timeout now.
const EVIDENCE_AGE: Duration = Duration::from_hours(24);

/// Counts, which only grow, and what was learned recently.
#[derive(Clone, Debug)]
pub struct Stats {
    role: Role,
    /// Lent to a scrape under way: what changes meanwhile is changed in a copy.
    pub counts: Arc<Counts>,
    /// What the series of this row do not show, since those of `other` do.
    pub(super) base: Option<Arc<Counts>>,
    pub(super) place: Showing,
    /// When a scrape showed it first.
    pub(super) shown_since: Option<Nanos>,
    closed_by_peer: IdleTimes,
    closed_by_us: IdleTimes,
    lately: Lately,
    process: Vote<(Name, Owner)>,
    /// Among the processes that share this row, the one that loses requests.
    loser: Option<Box<Vote<Name>>>,
    /// Judged by what was seen at this end, and with what the other end says.
    own: Option<Assessment>,
    said: Option<Assessment>,
}

/// An estimate is made anew once one in this many closes has changed: of 128, eight.
const RENEWED: usize = 16;

/// Of so few closes, each one counts.
const FEW: usize = 32;

/// How much it matters that a row has series of its own: with losses first, then what has them already, then by
/// observations.
pub(super) type Weight = Reverse<(bool, bool, u64)>;

/// What the last scrape did with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Showing {
    /// There was none.
    New,
    /// It had series of its own.
    Shown,
    /// It was summed up in `other`.
    LeftOut,
}

/// What all this amounts to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assessment {
    pub(super) state: State,
    expected: Option<f64>,
    advised: Option<Advised>,
}

/// The idle timeout to set, in seconds, and on which side.
pub type Advised = (Side, f64);

/// Idle times at the closes of one closer.
#[derive(Clone, Debug, Default)]
pub struct IdleTimes {
    /// For connections that were idle for exactly this long.
    pub exact: Latest,
    /// Ended by a farewell: idle for at most this long.
    pub upper_bound: Latest,
    /// Closes that a request crossed, which was lost.
    crossed: Latest,
    /// For each of the latest closes, how long the connection was idle, and the silence that it had outlived.
    /// What is kept depends on the time of a close alone, so the two stay in step.
    outlived: [Latest<64>; 2],
    /// Made when it is asked for, gone once a sixteenth of the closes have changed.
    estimate: OnceCell<Option<Box<Estimate>>>,
    /// Closes that came or went since.
    changed: usize,
}

impl IdleTimes {
    /// From the exact values, else from upper bounds that agree with each other, else with those that a request
    /// crossed; as the closes alone have it.
    fn estimate(&self) -> Option<&Estimate> {
        let of_closes = |closes: &[_], is_upper_bound| {
            of_closes(closes, is_upper_bound)?.without_contrary(&self.outlived())
        };
        let exact = || of_closes(&self.exact.timed().collect::<Vec<_>>(), false);
        let with_crossed = || {
            let estimate =
                of_closes(&self.with_crossed(), false).filter(|_| !self.crossed.is_empty())?;
            Some(Estimate { is_of_lost: true, ..estimate })
        };
        let upper_bound = || of_closes(&self.upper_bound.timed().collect::<Vec<_>>(), true);
        let made = self
            .estimate
            .get_or_init(|| exact().or_else(with_crossed).or_else(upper_bound).map(Box::new));
        made.as_deref()
    }

    /// Exact values and those that a request crossed, the oldest first.
    fn with_crossed(&self) -> Vec<Closed> {
        let mut all: Vec<_> = self.exact.timed().chain(self.crossed.timed()).collect();
        all.sort_by_key(|(second, _)| *second);
        all
    }

    /// What an estimate of this kind rests on.
    fn behind(&self, estimate: &Estimate) -> Vec<Closed> {
        if estimate.is_upper_bound {
            self.upper_bound.timed().collect()
        } else {
            self.with_crossed()
        }
    }

    /// Whether idle connections were closed again and again, even if after no definite time.
    fn is_repeated(&self) -> bool {
        let mut seconds: Vec<_> = self.exact.timed().map(|(second, _)| second).collect();
        let count = seconds.len();
        seconds.sort_unstable();
        seconds.dedup();
        count >= 20 && seconds.len() >= 5
    }

    fn outlived(&self) -> Vec<Outlived> {
        let [idle, outlived] = &self.outlived;
        idle.values().zip(outlived.values()).collect()
    }

    fn add(&mut self, close: &Close) {
        let latest = match close.evidence {
            Evidence::Idle => &mut self.exact,
            Evidence::UpperBound => &mut self.upper_bound,
            Evidence::Unanswered | Evidence::AfterData | Evidence::Unused => return,
        };
        let [idle, outlived] = &mut self.outlived;
        idle.add(close.time, close.idle);
        outlived.add(close.time, close.outlived);
        self.changed += usize::from(latest.add(close.time, close.idle));
        self.forget(close.time);
    }

    /// A request that crossed a close proves how old the connection was, as the close of an idle one does.
    /// What is only inferred may have been inferred from a timeout, and proves none.
    fn add_crossed(&mut self, race: &Incident) {
        let is_crossed = matches!(race.class, Class::FinCrossed | Class::UnreadClose)
            && race.certainty == Certainty::Certain;
        if let Some(idle) = race.idle.or(race.gap).filter(|_| is_crossed) {
            self.changed += usize::from(self.crossed.add(race.time, idle));
            self.forget(race.time);
        }
    }

    /// What is too old by `now` is no longer evidence.
    fn forget(&mut self, now: Nanos) {
        let kept = |idle: &Self| idle.exact.len() + idle.upper_bound.len() + idle.crossed.len();
        let before = kept(self);
        self.exact.forget(now, EVIDENCE_AGE);
        self.upper_bound.forget(now, EVIDENCE_AGE);
        self.crossed.forget(now, EVIDENCE_AGE);
        for times in &mut self.outlived {
            times.forget(now, EVIDENCE_AGE);
        }
        self.changed += before - kept(self);
        if self.changed * RENEWED > kept(self).saturating_sub(FEW) {
            self.estimate.take();
            self.changed = 0;
        }
    }
}

impl Stats {
    /// Nothing was seen yet since `start`.
    pub fn new(role: Role, start: Nanos, keeps: Keeps) -> Self {
        Self {
            role,
            counts: Arc::new(Counts::keeping(keeps)),
            base: None,
            place: Showing::New,
            shown_since: None,
            closed_by_peer: IdleTimes::default(),
            closed_by_us: IdleTimes::default(),
            lately: Lately::new(start),
            process: Vote::default(),
            loser: None,
            own: None,
            said: None,
        }
    }

    pub const fn idle(&self, closer: Closer) -> &IdleTimes {
        match closer {
            Closer::Peer | Closer::Middlebox => &self.closed_by_peer,
            Closer::Local => &self.closed_by_us,
        }
    }

    const fn idle_mut(&mut self, closer: Closer) -> &mut IdleTimes {
        match closer {
            Closer::Peer | Closer::Middlebox => &mut self.closed_by_peer,
            Closer::Local => &mut self.closed_by_us,
        }
    }

    /// The idle timeout of that side, as far as recent uses do not refute it.
    pub fn timeout(&self, closer: Closer) -> Option<Estimate> {
        let idle = self.idle(closer);
        let estimate = idle.estimate()?;
        // The client, which also uses, never crosses its own close.
        let is_crossed = self.role == Role::Client && closer != Closer::Local;
        let uses = Uses {
            gaps: &self.gaps(),
            lost: &self.lost_gaps(),
            start: self.lately.gaps_since().second(),
            last: self.lately.last_uses(),
            crossing: self.lately.rtt().filter(|_| is_crossed).unwrap_or_default(),
        };
        // What the server closes may be of another pool of the same host.
        let [server, client] = self.role.sides();
        let by_client = self.closed_after(client);
        let client = self.idle(client).estimate().filter(|_| closer == server);
        let met = Closes {
            latest: &idle.behind(estimate),
            of_late: &self.closed_after(closer),
            connections: &idle.outlived(),
            client: client.map(|known| (known, &*by_client)),
        };
        estimate.surviving(&uses, &met)
    }

    /// Whether recent uses refute that `closer` ends what has been idle for that long: connections were used
    /// again after longer, more often than it closed such connections.
    pub(super) fn is_outlived(&self, closer: Closer, idle: Duration) -> bool {
        self.lately.is_outlived(closer, idle)
    }

    /// The local process seen most often.
    pub fn process(&self) -> Option<&str> {
        self.process.current.as_ref().map(|(name, _)| name.as_str())
    }

    /// The one that loses requests, if any does, otherwise the one seen most often: it is told what to change.
    pub fn actor(&self) -> Option<&str> {
        let loser = self.loser.as_ref().and_then(|loser| loser.current.as_ref());
        loser.map(Name::as_str).or_else(|| self.process())
    }

    pub(super) fn process_name(&self) -> Option<Name> {
        self.process.current.map(|(name, _)| name)
    }

    /// What that process belongs to, where the sockets did not tell.
    pub fn process_owner(&self) -> Owner {
        self.process.current.map_or(Owner::UNKNOWN, |(_, owner)| owner)
    }

    /// The verdict as of the last assessment; none before, and for a mixture.
    pub fn verdict(&self) -> Option<State> {
        self.said.map(|said| said.state)
    }

    /// Races to expect in an hour, computed or seen, as of the last assessment.
    pub fn expected(&self) -> Option<f64> {
        self.said?.expected
    }

    /// As of the last assessment, where there is something to set.
    pub fn advised(&self) -> Option<Advised> {
        self.said?.advised
    }

    pub(super) fn add(&mut self, observation: &Observation) {
        let origin = observation.origin();
        if let Some(process) = &origin.process {
            self.process.vote((process.name, process.owner));
        }
        if let Some(rtt) = origin.rtt {
            self.lately.note_rtt(observation.time(), rtt);
        }
        match observation {
            Observation::Close(close) => {
                let counts = Arc::make_mut(&mut self.counts);
                let kind = (close.closer, close.how, close.evidence);
                counts.closes.change(kind, |count| *count += 1);
                if close.evidence == Evidence::Idle {
                    counts.measure(Measure::of_idle(close.end()), close.idle);
                }
                self.lately.note_close(close);
                self.idle_mut(close.end()).add(close);
            }
            Observation::Reuse(reuse) => {
                Arc::make_mut(&mut self.counts).measure(Measure::ReuseGap, reuse.gap);
                self.lately.note_reuse(reuse);
            }
            Observation::Dwell(dwell) => {
                Arc::make_mut(&mut self.counts).measure(Measure::Dwell, dwell.dwell);
                self.lately.note_dwell(dwell);
            }
            Observation::Incident(incident) => self.add_incident(incident),
            Observation::Outcome(_) => {}
        }
    }

    fn add_incident(&mut self, incident: &Incident) {
        let counts = Arc::make_mut(&mut self.counts);
        counts.note(incident);
        if let Some(fin_age) = incident.fin_age {
            counts.measure(Measure::FinAge, fin_age);
        }
        if incident.class.is_race() {
            self.lately.note_race(incident);
            let [server, _] = incident.origin.role.sides();
            self.idle_mut(server).add_crossed(incident);
            if let Some(process) = &incident.origin.process {
                self.loser.get_or_insert_default().vote(process.name);
            }
        }
    }

    /// A race of this end, which counts on the row of the other one.
    pub(super) fn add_seen(&mut self, view: &Incident) {
        Arc::make_mut(&mut self.counts).seen += 1;
        self.lately.note_seen(view);
    }

    /// Adds counts of a row that leaves. What was learned recently goes: a mixture has no timeout.
    pub(super) fn absorb(&mut self, gone: &Counts) {
        Arc::make_mut(&mut self.counts).absorb(gone);
    }

    /// As of the last assessment.
    pub fn badness(&self) -> Badness {
        let closes = self.counts.closes.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_sign_loss, reason = "races to come are not negative")]
        let expected = self.expected().map_or(0, |races| (races * 1e6) as u64);
        let state = self.verdict().unwrap_or(State::Unknown);
        (state, Reverse((self.counts.races(), expected, closes)))
    }

    /// What series of its own show of it, and the rest.
    pub(super) fn parts(&self) -> (Option<Arc<Counts>>, Option<Arc<Counts>>) {
        match (self.place, &self.base) {
            (Showing::Shown, None) => (Some(Arc::clone(&self.counts)), None),
            (Showing::Shown, Some(base)) => {
                (Some(Arc::new(self.counts.since(base))), Some(Arc::clone(base)))
            }
            (Showing::New | Showing::LeftOut, _) => (None, Some(Arc::clone(&self.counts))),
        }
    }

    /// How much it matters that this has series of its own.
    pub(super) fn weight(&self) -> Weight {
        let is_shown = self.place == Showing::Shown;
        Reverse((self.lately.has_losses(), is_shown, self.counts.total()))
    }

    /// Works out the verdict of a port anew.
    pub(super) fn assess(&mut self, key: &PortKey, threshold: Duration, now: Nanos) {
        let facts = self.facts_now(threshold, now);
        let ends = Ends::new(key.role, Some(key.port), self.actor(), None);
        let assessment = self.judge(&facts, ends);
        self.take(assessment);
    }

    /// The facts as of now; lets go of what is old by then.
    pub(super) fn facts_now(&mut self, threshold: Duration, now: Nanos) -> Facts {
        self.lately.turn(now);
        self.closed_by_peer.forget(now);
        self.closed_by_us.forget(now);
        let facts = self.facts(threshold, now);
        self.lately.learn(&facts);
        facts
    }

    pub(super) fn judge(&self, facts: &Facts, ends: Ends<'_>) -> Assessment {
        let state = assess(facts, self.own.map(|own| own.state));
        let advice = advise(facts, state, ends);
        let advised = advice.map(|advice| (advice.change.side, advice.change.seconds));
        let advised = advised.filter(|(_, seconds)| *seconds > 0.0);
        Assessment { state, expected: facts.expected(), advised }
    }

    pub(super) const fn take(&mut self, assessment: Assessment) {
        self.own = Some(assessment);
        self.said = self.own;
    }

    pub(super) const fn own(&self) -> Option<Assessment> {
        self.own
    }

    /// Says what the other end does; its own, if that says nothing.
    pub(super) fn say(&mut self, other: Option<Assessment>) {
        self.said = other.or(self.own);
    }

    /// Gaps before reuses, of the last hour or two.
    pub fn gaps(&self) -> Vec<Bucket> {
        self.lately.gaps()
    }

    /// Gaps before requests that were lost, of the last hour or two.
    pub fn lost_gaps(&self) -> Vec<Bucket> {
        self.lately.lost_gaps()
    }

    /// What exposure rests on, and what other timeouts would give.
    pub fn grounds(&self, facts: &Facts, now: Nanos) -> Grounds {
        self.lately.grounds(facts.role, now, facts.races.plus(facts.seen))
    }

    /// Idle times that ended with a close by that side, of the last hour or two.
    pub fn closed_after(&self, closer: Closer) -> Vec<Bucket> {
        self.lately.closed_after(closer)
    }

    /// What a verdict rests on, as of `now`.
    pub fn facts(&self, threshold: Duration, now: Nanos) -> Facts {
        let [server, client] = self.role.sides();
        let (server_timeout, client_timeout) = (self.timeout(server), self.timeout(client));
        let facts = self.lately.facts(self.role, threshold, now, server_timeout);
        // A pool that closes on time is not one that leaves it to the server.
        let timer = client_timeout.as_ref().filter(|own| own.is_sharp()).map(Estimate::timeout);
        let unused_after = facts.unused_after.filter(|last| timer.is_none_or(|own| own < *last));
        Facts {
            client_timeout,
            unused_after,
            is_server_first_again: self.idle(server).is_repeated(),
            may_be_read: self.counts.may_be_read(),
            reuses: self.counts.histogram(Measure::ReuseGap).count(),
            ..facts
        }
    }
}

/// The name seen most often, slow to change: it is a label, and a new label is a new series.
#[derive(Clone, Debug)]
pub(super) struct Vote<T> {
    current: Option<T>,
    votes: Vec<(T, u32)>,
}

impl<T> Default for Vote<T> {
    fn default() -> Self {
        Self { current: None, votes: Vec::new() }
    }
}

impl<T: Copy + Eq> Vote<T> {
    /// Names remembered at a time; a newcomer takes the place of the rarest.
    const CANDIDATES: usize = 4;
    /// Votes by which a challenger must lead, over twice the votes of the present name.
    const LEAD: u32 = 8;
    /// From here on all votes are halved, so that an upgrade is noticed.
    const MAX_VOTES: u32 = 512;

    pub(super) fn vote(&mut self, name: T) {
        let votes = if let Some((_, votes)) = self.votes.iter_mut().find(|(n, _)| *n == name) {
            *votes += 1;
            *votes
        } else {
            if self.votes.len() == Self::CANDIDATES {
                self.votes.sort_unstable_by_key(|(_, votes)| Reverse(*votes));
                self.votes.pop();
            }
            self.votes.reserve_exact(1);
            self.votes.push((name, 1));
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
            self.current = Some(name);
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
    /// The most that are kept, with a limited share for each slice of time: four seconds' worth.
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
        let Close { time, idle, .. } = *close;
        let closer = close.end();
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
