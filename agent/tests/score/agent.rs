//! What the agent on one of the hosts says, and when it is asked.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use finrace_logic::estimate::{Estimate, Population};
use finrace_logic::exposure::Grounds;
use finrace_logic::model::{Close, Closer, Evidence, Nanos, Observation, Role};
use finrace_logic::peer::RowKey;
use finrace_logic::table::{Stats, Table};
use finrace_logic::turn;
use finrace_logic::verdict::State;

use crate::judge::{DAY, Foresight, Guess, HOUR, Invention, Score, Word, tolerance};
use crate::seen::{Seen, Truth, nanos};
use crate::setting::{Group, Setting, Side};
use crate::truth::Recent;
use crate::world::THRESHOLD;

/// The closes by the timer after which its estimate is judged.
const ENOUGH: usize = 20;
/// The seconds over which these must be spread: what closes together may be one event.
const MOMENTS: usize = 5;
/// The closes needed by each of two timers, and the least share of each.
const ENOUGH_OF_TWO: usize = 8;
const SHARE_OF_TWO: f64 = 0.12;

/// The agent on one of the hosts.
pub(crate) struct Agent<'a> {
    setting: &'a Setting,
    pub(crate) role: Role,
    table: Table,
    key: Option<RowKey>,
    /// For the server's side and for the client's.
    pub(crate) guesses: [Option<Guess>; 2],
    /// Closes by timers: which server's it was, the idle time, and the second it came in.
    closes: [Vec<(usize, f64, u64)>; 2],
    others: [u32; 2],
    invented: [u32; 2],
    invention: [String; 2],
    looks: u32,
    looked: f64,
    /// What was said although a request had just been lost: there must be none.
    denial: Option<String>,
    recent: Recent,
    /// Processes that lost requests.
    losers: BTreeSet<String>,
    word: Option<State>,
    /// Changes of the word since it was settled.
    changes: Vec<(f64, State)>,
    settled: Option<f64>,
    pub(crate) races: u32,
    /// Races per hour, computed and told.
    prediction: Option<(f64, f64)>,
    first_prediction: Option<(f64, u32)>,
}

impl<'a> Agent<'a> {
    pub(crate) fn new(role: Role, setting: &'a Setting) -> Self {
        let threshold = Duration::from_secs_f64(THRESHOLD);
        Self {
            setting,
            role,
            table: Table::new(100, threshold, Nanos(0)),
            key: None,
            guesses: [None, None],
            closes: [Vec::new(), Vec::new()],
            others: [0; 2],
            invented: [0; 2],
            invention: [String::new(), String::new()],
            looks: 0,
            looked: 0.0,
            denial: None,
            recent: Recent::default(),
            losers: BTreeSet::new(),
            word: None,
            changes: Vec::new(),
            settled: None,
            races: 0,
            prediction: None,
            first_prediction: None,
        }
    }

    fn closer(&self, side: Side) -> Closer {
        match (side, self.role) {
            (Side::Server, Role::Server) | (Side::Client, Role::Client) => Closer::Local,
            _ => Closer::Peer,
        }
    }

    fn stats(&self) -> Option<&Stats> {
        Some(&self.table.row(&self.key?)?.stats)
    }

    fn estimate(&self, side: Side) -> Option<Estimate> {
        self.stats()?.timeout(self.closer(side))
    }

    pub(crate) fn see(&mut self, seen: &Seen) {
        self.key = RowKey::of(seen.observation.origin());
        if let Observation::Incident(incident) = &seen.observation {
            // As the engine does.
            let mut incident = incident.clone();
            let key = RowKey::of(&incident.origin);
            let rtt = incident.origin.rtt;
            let is_at_timeout =
                |silence| key.is_some_and(|key| self.table.is_at_timeout(&key, silence, rtt));
            if !turn::settle(&mut incident, is_at_timeout) {
                return;
            }
            incident.cause = self.table.cause(&incident);
            self.table.add(&Observation::Incident(incident));
        } else {
            self.table.add(&seen.observation);
        }
        self.recent.add(seen);
        match (&seen.observation, seen.truth) {
            (Observation::Incident(incident), Truth::Race { .. }) => {
                self.races += 1;
                let process = incident.origin.process.map(|process| process.name.to_string());
                self.losers.extend(process);
            }
            (Observation::Close(close), Truth::Timer { side, server, idle }) => {
                let second = close.time.0 / 1_000_000_000;
                self.closes[side as usize].push((server, idle, second));
                if self.guesses[side as usize].is_none() {
                    self.guesses[side as usize] = self.guess(side);
                }
            }
            (
                Observation::Close(Close { evidence: Evidence::Idle, .. }),
                Truth::Other { side } | Truth::Cut { side },
            )
            | (Observation::Close(_), Truth::Slow { side }) => self.others[side as usize] += 1,
            _ => {}
        }
    }

    /// The estimate, if it is time for it.
    fn guess(&self, side: Side) -> Option<Guess> {
        let closes = &self.closes[side as usize];
        let of = |server| -> Vec<f64> {
            let closes = closes.iter().filter(|(of, ..)| *of == server);
            closes.map(|(_, idle, _)| *idle).collect()
        };
        let moments = |server| {
            let closes = closes.iter().filter(|(of, ..)| *of == server);
            closes.map(|(.., second)| second).collect::<BTreeSet<_>>().len()
        };
        let timeout = |server: usize| match (side, self.setting.change) {
            (Side::Server, Some(change)) if server > 0 => Some(change.timeout),
            (Side::Server, _) => self.setting.backends[server].timer.map(|timer| timer.timeout),
            (Side::Client, _) => self.setting.pools[server].timer.map(|timer| timer.timeout),
        };
        let servers = if side == Side::Client {
            self.setting.visible_pools()
        } else if self.setting.change.is_some() {
            vec![1]
        } else {
            (0..self.setting.backends.len()).collect()
        };
        // As for words: closes that scatter more than twofold do not reveal a timer.
        let timer = |server: &usize| match side {
            Side::Server if self.setting.change.is_some() => {
                let change = self.setting.change.map(|change| change.timeout);
                self.setting.backends[0].timer.zip(change).map(|(timer, after)| timer.with(after))
            }
            Side::Server => self.setting.backends[*server].timer,
            Side::Client => self.setting.pools[*server].timer,
        };
        if servers.iter().filter_map(timer).any(|timer| timer.scatter() > timer.timeout) {
            return None;
        }
        let enough = if servers.len() == 1 { ENOUGH } else { ENOUGH_OF_TWO };
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let is_rare = |server| {
            (of(server).len() as f64) < SHARE_OF_TWO * closes.len() as f64 && servers.len() > 1
        };
        let is_early = |server| of(server).len() < enough || moments(server) < MOMENTS;
        if closes.len() < ENOUGH
            || servers.iter().any(|server| is_early(*server) || is_rare(*server))
        {
            return None;
        }
        let estimate = self.estimate(side);
        let mut populations: Vec<Population> =
            estimate.iter().flat_map(Estimate::populations).copied().collect();
        if servers.len() == 1 {
            populations.truncate(1);
        }
        let mut values = Vec::new();
        for server in &servers {
            let truth = median(of(*server));
            let distance = |population: &Population| (population.value - truth).abs();
            let near = populations.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
            values.push((truth, near.map(|population| population.value)));
        }
        // Two timeouts in one population are not two.
        if servers.len() > populations.len() && !populations.is_empty() {
            let farthest = values.iter_mut().max_by(|(truth, found), (other, of_other)| {
                let distance = |truth: f64, found: &Option<f64>| {
                    found.map_or(f64::INFINITY, |found| (found - truth).abs())
                };
                distance(*truth, found).total_cmp(&distance(*other, of_other))
            });
            farthest.unwrap().1 = None;
        }
        // A farewell's idle time begins with the request, and a client's at the server is longer.
        let extra = match (side, self.role) {
            (Side::Client, Role::Server) => self.setting.rtt,
            (Side::Server, Role::Client) if self.setting.farewell => {
                self.setting.rtt + self.setting.response
            }
            _ => 0.0,
        };
        let lowest = servers.iter().filter_map(|server| timeout(*server)).reduce(f64::min)? + extra;
        let above = estimate.map_or(0.0, |known| known.lowest()) - lowest;
        Some(Guess {
            role: self.role,
            side,
            values,
            too_high: Some(above).filter(|above| *above > tolerance(lowest)),
            text: self.show(side),
        })
    }

    /// What the agent knows of this side's timeout, and from which closes.
    fn show(&self, side: Side) -> String {
        let mut text = match self.estimate(side) {
            None => "no estimate".to_owned(),
            Some(estimate) => estimate.populations().fold(String::new(), |mut text, p| {
                write!(text, "[{:.3} {:.3}..{:.3} x{}]", p.value, p.low, p.high, p.count).unwrap();
                text
            }),
        };
        if let Some(stats) = self.stats() {
            let times = stats.idle(self.closer(side));
            let latest = if times.exact.is_empty() { &times.upper_bound } else { &times.exact };
            text += " from";
            for value in latest.values() {
                write!(text, " {:.3}", value.as_secs_f64()).unwrap();
            }
        }
        text
    }

    /// What its exposure is based on.
    pub(crate) fn grounds(&mut self, now: f64) -> Option<Grounds> {
        self.table.assess(nanos(now));
        let stats = self.stats()?;
        let facts = stats.facts(self.table.threshold(), nanos(now));
        Some(stats.grounds(&facts, nanos(now)))
    }

    /// Assesses, as the daemon does every few seconds.
    pub(crate) fn look(&mut self, now: f64) {
        self.table.assess(nanos(now));
        for side in [Side::Server, Side::Client] {
            if self.closes[side as usize].is_empty() && self.estimate(side).is_some() {
                self.invented[side as usize] += 1;
                self.invention[side as usize] = self.show(side);
            }
        }
        self.looks += 1;
        let Some(stats) = self.stats() else { return };
        let word = stats.verdict();
        let facts = stats.facts(self.table.threshold(), nanos(now));
        let computed = facts.exposure.map(|exposure| exposure.computed);
        let expected = computed.zip(stats.expected());
        let is_settled = now > 2.0 * HOUR && self.closes.iter().any(|closes| closes.len() >= 20);
        if is_settled && self.settled.is_none() {
            self.settled = Some(now);
        }
        if let Some(new) = word
            && word != self.word
            && self.settled.is_some_and(|settled| now > settled)
        {
            self.changes.push((now, new));
        }
        if self.recent.has_loss(self.looked) && !word.is_some_and(State::is_loss) {
            let word = word.map_or("nothing", State::as_str);
            self.denial =
                Some(format!("{} after {:.2} h: {word} {facts:?}", self.role, now / HOUR));
        }
        self.looked = now;
        self.word = word;
        if let Some(expected) = expected
            && is_settled
        {
            self.prediction = Some(expected);
            if self.first_prediction.is_none() {
                self.first_prediction = Some((now, self.races));
            }
        }
    }

    /// A process that is told what to change although only others lost requests.
    fn wrong_actor(&self) -> Option<String> {
        let actor = self.stats()?.actor()?;
        let is_right = self.losers.is_empty() || self.losers.contains(actor);
        (!is_right).then(|| format!("{actor} is blamed for what {:?} lost", self.losers))
    }

    pub(crate) fn finish(mut self, now: f64, score: &mut Score) {
        self.look(now);
        let mut right = self.recent.right_words(now);
        if self.setting.change.is_some() || matches!(self.setting.group, Group::SlowClose) {
            right.push(State::Unknown);
        }
        // A pool whose timer may be as late as the server's is early does not always close first.
        if self.setting.is_close() && right.contains(&State::Safe) {
            right.push(State::Exposed);
        }
        // A timer whose silence is broken cannot be recognized as one.
        let is_cut = self.setting.ping.is_some();
        if is_cut && right.contains(&State::Exposed) {
            right.push(State::Unknown);
        }
        // Upper bounds alone are not enough.
        if self.setting.farewell && self.role == Role::Client && right.contains(&State::Exposed) {
            right.push(State::Unknown);
        }
        // Closes that scatter more than twofold, or that come with a farewell, do not reveal a timer.
        let mut timers = self.setting.backends.iter().filter_map(|backend| backend.timer);
        let is_untold = is_cut
            || timers.any(|timer| timer.scatter() > timer.timeout)
            || (self.setting.farewell && self.role == Role::Client);
        if is_untold && right.contains(&State::Racing) {
            right.push(State::Losing);
        }
        if let Some(stats) = self.stats() {
            let threshold = Duration::from_secs_f64(THRESHOLD);
            let facts = stats.facts(threshold, nanos(now));
            let mut text = format!("{facts:?}");
            if !self.changes.is_empty() {
                write!(text, " changes:").unwrap();
                for (time, word) in self.changes.iter().take(20) {
                    write!(text, " {:.2} h {word}", time / HOUR).unwrap();
                }
            }
            score.words.push(Word {
                role: self.role,
                found: stats.verdict(),
                right,
                changes: returns(&self.changes),
                days: self.settled.map_or(0.0, |settled| (now - settled) / DAY),
                text,
            });
        }
        for side in [Side::Server, Side::Client] {
            if self.closes[side as usize].is_empty() && self.others[side as usize] >= 5 {
                let share = f64::from(self.invented[side as usize]) / f64::from(self.looks);
                let text = format!("{} {side:?}: {}", self.role, self.invention[side as usize]);
                score.inventions.push(Invention { share, text });
            }
        }
        if let (Some((first, before)), Some((computed, told))) =
            (self.first_prediction, self.prediction)
            && self.setting.change.is_none()
        {
            let races = self.races - before;
            score.foresights.push(Foresight {
                role: self.role,
                computed,
                told,
                truth: f64::from(races) / ((now - first) / HOUR),
                races,
                text: self.show(Side::Server),
            });
        }
        score.denials.extend(self.wrong_actor());
        score.denials.extend(self.denial);
        score.guesses.extend(self.guesses.into_iter().flatten());
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

/// Changes back to an earlier word: a world that stays the same has no reason for any.
fn returns(changes: &[(f64, State)]) -> u32 {
    let before = |place: usize, word| changes[..place].iter().any(|(_, said)| *said == word);
    let places = changes.iter().enumerate();
    let returns = places.filter(|(place, (_, word))| before(*place, *word)).count();
    u32::try_from(returns).unwrap()
}
