//! What the numbers of a peer amount to, in one word.
//!
//! One rule is behind it: the side that sends requests must close idle connections before the side that
//! answers them. Pure: facts in, a word out; the previous word matters only where a change would be mere
//! flutter.

use std::time::Duration;

use super::estimate::{Estimate, MIN_CLOSES};
use super::exposure::Exposure;
use super::knobs::Side;
use super::model::{Cause, Role};
use super::numbers::{plural, short};
use crate::words;

words! {
    /// One for each peer and role; the worst first.
    State {
        /// Requests are lost to an idle timeout.
        Racing = "racing",
        /// Requests are lost to something that forgot the connection without a word.
        Dropping = "dropping",
        /// Requests are lost, but to no idle timeout: to a limit on requests or age, to a restart, or
        /// for a reason that is not known yet.
        Losing = "losing",
        /// Our pool does not notice that connections were closed.
        Leaking = "leaking",
        /// The answering side closes first: races can be expected.
        Exposed = "exposed",
        /// Too little was seen.
        Unknown = "unknown",
        /// The requesting side closes first.
        Safe = "safe",
    }
}

impl State {
    /// Whether there is something to do about it.
    pub const fn is_bad(self) -> bool {
        match self {
            Self::Racing | Self::Dropping | Self::Losing | Self::Leaking | Self::Exposed => true,
            Self::Unknown | Self::Safe => false,
        }
    }

    /// Whether requests were lost.
    pub const fn is_loss(self) -> bool {
        matches!(self, Self::Racing | Self::Dropping | Self::Losing | Self::Leaking)
    }
}

/// Closes in a row, all by the requesting side, that prove that the order has turned.
pub const TURNED: u32 = 20;

/// A FIN that had been there for longer than this plus ten round trips was not raced against: nobody looked.
const OLD_FIN: Duration = Duration::from_secs(1);

/// Over a shorter time, the absence of losses proves nothing.
const LEAST_QUIET: Duration = Duration::from_mins(5);

/// Sockets that stay in CLOSE_WAIT for longer (the median) are not watched.
const LONG_DWELL: Duration = Duration::from_secs(10);

/// Whether a request that met a FIN of this age points to a pool that does not watch its sockets.
pub fn is_old(fin_age: Duration, rtt: Duration) -> bool {
    fin_age > OLD_FIN + 10 * rtt
}

/// Counts of races by cause, without silent drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Races {
    pub idle: u32,
    pub lifetime: u32,
    pub rollout: u32,
    pub unknown: u32,
}

impl Races {
    pub const fn of_mut(&mut self, cause: Cause) -> &mut u32 {
        match cause {
            Cause::Idle => &mut self.idle,
            Cause::Lifetime => &mut self.lifetime,
            Cause::Rollout => &mut self.rollout,
            Cause::Unknown => &mut self.unknown,
        }
    }

    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            idle: self.idle.saturating_add(other.idle),
            lifetime: self.lifetime.saturating_add(other.lifetime),
            rollout: self.rollout.saturating_add(other.rollout),
            unknown: self.unknown.saturating_add(other.unknown),
        }
    }

    /// Those that are not known to be due to an idle timeout.
    pub const fn others(self) -> u32 {
        self.lifetime.saturating_add(self.rollout).saturating_add(self.unknown)
    }
}

/// All that is known of a peer's recent past. `server` is the side that answers requests, whichever of the
/// two is on this host.
#[derive(Clone, Debug)]
pub struct Facts {
    pub role: Role,
    /// The period over which lost requests were looked for.
    pub length: Duration,
    /// The gap from which a write counts as a reuse.
    pub threshold: Duration,
    pub server_timeout: Option<Estimate>,
    pub client_timeout: Option<Estimate>,
    /// How many of the latest closes of idle connections were by each side.
    pub server_first: u32,
    pub client_first: u32,
    /// The server has closed many, on many occasions, even if after no definite time.
    pub is_server_first_again: bool,
    /// What did most of that: the server, or something between the two that resets idle connections.
    pub closed_by: Side,
    /// TCP keep-alive probes run on the client's idle connections.
    pub is_probed: bool,
    /// How many of the latest closes in a row were all by the client, with no race since.
    pub client_in_a_row: u32,
    /// How long that has lasted.
    pub client_row_length: Duration,
    /// The server's share of the closes before those, if there were any.
    pub server_share_before: Option<f64>,
    /// Since watching began.
    pub reuses: u64,
    pub reuses_per_second: f64,
    pub longest_gap: Duration,
    pub exposure: Option<Exposure>,
    /// The longest idle time after which the client uses a connection, if it plainly uses none later: it
    /// leaves it to the server to close those.
    pub unused_after: Option<Duration>,
    /// Requests that were lost although they came well before the server's timeout, and how early the first: the
    /// server was late to read them.
    pub lost_early: Option<(u32, Duration)>,
    pub races: Races,
    /// Races seen here and counted at the client's row.
    pub seen: Races,
    /// How many requests were lost at a time, on average.
    pub lost_at_once: f64,
    /// For some lost requests it is not proven that nobody has read them.
    pub may_be_read: bool,
    /// How long ago the last race was, and the last that met a rollout.
    pub last_race: Option<Duration>,
    pub last_rollout: Option<Duration>,
    pub drops: u32,
    /// Uses after a longer gap than the shortest that was dropped.
    pub drops_outlived: u32,
    /// The longest gap that passed and the shortest that did not.
    pub drop_limit: Option<(Duration, Duration)>,
    /// Requests written after a FIN, and how many of them met one that [`is_old`].
    pub stale: u32,
    pub old_fins: u32,
    /// Median time in CLOSE_WAIT of sockets that nothing was written to, and their number.
    pub dwell: Option<(Duration, u32)>,
    pub rtt: Option<Duration>,
}

impl Facts {
    pub fn is_by_middlebox(&self) -> bool {
        self.closed_by == Side::Middlebox
    }

    pub fn idle_closes(&self) -> u32 {
        self.server_first + self.client_first
    }

    /// The share of idle connections that the answering side closed.
    fn server_share(&self) -> f64 {
        f64::from(self.server_first) / f64::from(self.idle_closes().max(1))
    }

    /// Whether the client closes first now, or uses no connection that the server is about to close.
    fn has_turned(&self) -> bool {
        self.closes_first_now() || self.uses_none_late_now()
    }

    /// What came after the last race makes it plain that it uses none that late, and several were due since.
    fn uses_none_late_now(&self) -> bool {
        self.unused_after.is_some() && self.idle_races() > 0 && self.are_over(self.idle_races())
    }

    /// Whether it is no accident that none was lost since the last: among that many silences between losses,
    /// one this long comes once in a hundred times. What is lost at once is one loss.
    fn are_over(&self, lost: u32) -> bool {
        let quiet = self.last_race.unwrap_or_default();
        let before = self.length.saturating_sub(quiet).as_secs_f64();
        let losses = (f64::from(lost) / self.lost_at_once.max(1.0)).max(1.0);
        let due = losses * quiet.as_secs_f64() / before.max(1.0);
        due >= (100.0 * losses).ln()
    }

    /// Whether that many in a row cannot be chance, given the server's share before. No more than a few in a
    /// hundred of its closes ever go unseen.
    fn closes_first_now(&self) -> bool {
        let share = self.server_share_before.unwrap_or(0.0).max(0.03);
        let chance = (1.0 - share).max(0.0).powf(self.client_in_a_row.into());
        // Nor was it chance that no race came meanwhile.
        let passed = self.client_row_length.as_secs_f64() / self.length.as_secs_f64().max(1.0);
        let races_due = f64::from(self.idle_races()) * passed;
        // Where nothing was lost there is no hurry, and there are many rows to look at.
        let most = if self.idle_races() == 0 { 0.001 } else { 0.01 };
        self.client_in_a_row >= TURNED
            && chance < most
            && (self.idle_races() == 0 || races_due >= 3.0)
    }

    /// Requests expected to be lost per hour if everything goes on as it is: to an idle timeout, and
    /// otherwise. None as long as nothing points to any.
    pub fn expected(&self) -> Option<f64> {
        let hours = (self.length.as_secs_f64() / 3600.0).max(f64::EPSILON);
        let idle = match (self.has_turned(), self.exposure) {
            (true, _) => Some(0.0),
            (false, Some(exposure)) => Some(exposure.races),
            (false, None) => None,
        };
        // Without a recent close, what was lost before is all that is known.
        let seen = self.idle_races();
        let idle = idle.or_else(|| (seen > 0).then(|| f64::from(seen) / hours));
        // A restart is one event, and does not come again by itself.
        let others = Races { rollout: 0, ..self.other_races() }.others();
        let others = (others > 0 && self.is_losing()).then(|| f64::from(others) / hours);
        [idle, others].into_iter().flatten().reduce(|idle, others| idle + others)
    }

    /// Requests lost to an idle timeout, whichever end they count at.
    pub fn idle_races(&self) -> u32 {
        self.races.idle + self.seen.idle
    }

    /// Requests lost otherwise.
    pub fn other_races(&self) -> Races {
        Races { idle: 0, ..self.races.plus(self.seen) }
    }

    /// Requests that met connections which the server had forgotten, while others lived on for longer: no
    /// limit explains that.
    pub fn forgotten(&self) -> u32 {
        if self.drops_outlived > self.drops { self.drops } else { 0 }
    }

    /// Whether requests are being lost other than to an idle timeout. No longer, once so many were due since
    /// the last that their absence cannot be chance.
    fn is_losing(&self) -> bool {
        let lost = self.other_races().others();
        let is_often = f64::from(lost) >= 3.0 * self.lost_at_once;
        let is_long = self.last_race.is_some_and(|quiet| quiet >= LEAST_QUIET);
        let is_over = is_often && is_long && self.are_over(lost);
        self.forgotten() > 0 || (lost > 0 && !is_over)
    }

    /// Median dwell, if our pool does not seem to watch its sockets.
    pub fn long_dwell(&self) -> Option<Duration> {
        let (dwell, count) = self.dwell?;
        let limit = LONG_DWELL + 10 * self.rtt.unwrap_or_default();
        (self.role == Role::Client && count >= MIN_CLOSES && dwell > limit).then_some(dwell)
    }

    /// When the requesting side has to close at the latest: the lowest known timeout of the other side.
    pub fn server_low(&self) -> Option<f64> {
        self.server_timeout.as_ref().map(Estimate::lowest)
    }

    /// By how much the client closes first, if that is less than a round trip: a request that it sends just
    /// before may come too late.
    pub fn too_close(&self) -> Option<Duration> {
        let (client, low) = self.client_timeout.as_ref().zip(self.server_low())?;
        let margin = Duration::try_from_secs_f64(low - client.main.high).ok()?;
        (margin < self.rtt.unwrap_or_default()).then_some(margin)
    }

    /// What has yet to be seen before anything can be said.
    pub fn missing(&self) -> String {
        let missing = MIN_CLOSES.saturating_sub(self.idle_closes());
        let gap = || format!("a reuse after a gap of over {}", short(self.threshold));
        if missing > 0 {
            let more = if self.idle_closes() > 0 { "more " } else { "" };
            format!("{missing} {more}close{} of an idle connection", plural(missing))
        } else if self.reuses == 0 && self.server_first > 0 {
            gap()
        } else {
            let seen = self.idle_closes();
            format!("closes that agree on an idle timeout ({seen} seen do not)")
        }
    }
}

/// The word for these facts. `before` is what was said last: a change for the better takes more
/// than one for the worse, and where both might be said, the word stays.
pub fn assess(facts: &Facts, before: Option<State>) -> State {
    let races = facts.idle_races();
    let has_turned = facts.has_turned();
    let drops = facts.drops - facts.forgotten();
    if drops > 0 && drops >= races && !has_turned {
        return State::Dropping;
    }
    if facts.old_fins >= 2 && facts.old_fins * 2 > facts.stale.max(races) && !has_turned {
        return State::Leaking;
    }
    if races > 0 && !has_turned {
        return State::Racing;
    }
    if facts.is_losing() {
        return State::Losing;
    }
    let limit = match before {
        Some(State::Safe) => 0.10,
        Some(State::Exposed | State::Racing | State::Leaking) => 0.02,
        Some(State::Dropping | State::Losing | State::Unknown) | None => 0.05,
    };
    // Where the client has a timeout and the server none, the server's closes have other reasons.
    let has_only_client = facts.server_timeout.is_none() && facts.client_timeout.is_some();
    let limit = if has_only_client { 0.5 } else { limit };
    let is_server_first = !facts.closes_first_now() && facts.server_share() > limit;
    // Farewells alone give only an upper bound: a slow answer with a close looks the same.
    let has_timeout = facts.server_timeout.as_ref().is_some_and(|known| !known.is_upper_bound);
    let is_known = has_timeout || facts.is_server_first_again;
    if is_server_first && facts.unused_after.is_some() {
        return State::Safe;
    }
    let is_at_risk = (is_server_first && is_known) || (has_timeout && facts.too_close().is_some());
    if is_at_risk && facts.idle_closes() >= MIN_CLOSES && facts.reuses > 0 {
        return State::Exposed;
    }
    if !is_server_first && facts.client_first >= MIN_CLOSES {
        return State::Safe;
    }
    State::Unknown
}

#[cfg(test)]
mod tests;
