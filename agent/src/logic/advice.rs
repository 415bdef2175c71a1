//! What to change, on which side, to what value; and what else would help, with its cost.
//!
//! The value comes from the measurement. Names come from the local process, or are guesses from
//! the measured value, and are said to be.

use std::time::Duration;

use super::estimate::Estimate;
use super::explain::short;
use super::knobs::{self, Knob, Side, Software, Unit};
use super::model::Role;
use super::verdict::{Facts, Races, State};

/// The one change that is proposed, and its alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    pub change: Change,
    pub alternatives: Vec<Alternative>,
}

/// A setting to change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub side: Side,
    /// Whose setting it is, where the process tells it.
    pub software: Option<&'static str>,
    pub knob: Option<&'static str>,
    pub place: Option<&'static str>,
    /// The value to set.
    pub seconds: f64,
    /// Ready to be pasted.
    pub line: Option<String>,
    /// The whole of it as a sentence.
    pub text: String,
    /// What it is not to be confused with.
    pub note: Option<&'static str>,
}

/// Another remedy, with what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    pub kind: Kind,
    pub text: String,
    pub line: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    OtherSide,
    NoReuse,
    Retry,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OtherSide => "other_side",
            Self::NoReuse => "no_reuse",
            Self::Retry => "retry",
        }
    }
}

/// A pool that keeps connections for less is of little use: then the server is to wait longer.
const SHORTEST_POOL: f64 = 0.5;

/// What servers are to outlast when nothing is known of the pool: most proxies keep 60 s.
const USUAL_POOL: f64 = 60.0;

/// A default is taken for what was measured if it is that near, as a share and in seconds.
const NEAR: f64 = 0.03;
const NEAR_SECS: f64 = 0.06;

/// What to do about these facts; none where nothing is wrong, or nothing can be said.
pub fn advise(facts: &Facts, state: State, process: Option<&str>) -> Option<Advice> {
    let server = facts.server_timeout.as_ref();
    match state {
        State::Racing | State::Exposed | State::Leaking => {
            let low =
                server.map_or_else(|| facts.longest_gap.as_secs_f64() / 2.0, Estimate::lowest);
            (low > 0.0).then(|| against_timeout(facts, state, low, process))
        }
        State::Dropping => {
            let (passed, _) = facts.drop_limit?;
            let change =
                client_change(facts, passed.as_secs_f64(), End::of(facts, Role::Client, process));
            let text = format!(
                "{}. Or let TCP keep-alive probe idle connections more often than every {}",
                change.text,
                short(passed)
            );
            let change = Change { text, ..change };
            Some(Advice { change, alternatives: of_client(facts, process) })
        }
        State::Losing | State::Safe | State::Unknown => None,
    }
}

fn against_timeout(facts: &Facts, state: State, low: f64, process: Option<&str>) -> Advice {
    let by_client = client_change(facts, low, End::of(facts, Role::Client, process));
    let by_server = server_change(facts, End::of(facts, Role::Server, process));
    let is_possible = by_client.seconds >= SHORTEST_POOL;
    // What is on this host can be changed here; else the client, whose side is the better one.
    let is_here = facts.role == Role::Client || facts.seen != Races::default();
    let (mut change, other) =
        if is_here && is_possible { (by_client, by_server) } else { (by_server, by_client) };
    if facts.seen != Races::default() {
        change.text += ". The client's end is on this host too, with a row of its own";
    }
    if facts.server_timeout.is_none() {
        change.text += ". That is a guess from the longest gap seen, for the server closes after no certain time";
    }
    if state == State::Leaking {
        change.text = format!(
            "Let the pool watch its idle connections, or test each before it is used: no timeout \
             helps a pool that does not look. {}",
            change.text
        );
    }
    let other = Alternative { kind: Kind::OtherSide, text: other.text, line: other.line };
    let mut alternatives = vec![other];
    alternatives.extend(of_client(facts, process));
    Advice { change, alternatives }
}

/// One side of a connection.
#[derive(Clone, Copy)]
struct End<'a> {
    /// Its process, if it is on this host.
    process: Option<&'a str>,
    /// What that process is known to be.
    software: Option<&'static Software>,
}

impl<'a> End<'a> {
    fn of(facts: &Facts, role: Role, process: Option<&'a str>) -> Self {
        let process = process.filter(|_| facts.role == role);
        Self { process, software: process.and_then(|name| by_process(name, facts)) }
    }

    fn name(self, otherwise: &'a str) -> &'a str {
        self.software.map(|software| software.name).or(self.process).unwrap_or(otherwise)
    }

    fn knob(self, side: Side) -> Option<&'static Knob> {
        self.software?.knob(side)
    }
}

/// The software of a process, of what has a setting for its role. Several share a name (`java`):
/// then the measured timeout decides.
fn by_process(name: &str, facts: &Facts) -> Option<&'static Software> {
    let (side, measured) = match facts.role {
        Role::Server => (Side::Server, &facts.server_timeout),
        Role::Client | Role::Unknown => (Side::Client, &facts.client_timeout),
    };
    let can_be =
        |software: &&'static Software| software.has_process(name) && software.knob(side).is_some();
    let all: Vec<_> = knobs::all().filter(can_be).collect();
    let measured = measured.as_ref().map(|estimate| estimate.main.value);
    match all.as_slice() {
        [only] => Some(only),
        several => several.iter().copied().find(|software| {
            measured.is_some_and(|value| {
                software.knobs.iter().any(|k| k.side == side && is_default(k, value))
            })
        }),
    }
}

fn is_default(knob: &Knob, value: f64) -> bool {
    let is_near = |default: f64| (default - value).abs() <= (default * NEAR).max(NEAR_SECS);
    knob.defaults.iter().filter_map(|default| default.seconds).any(is_near)
}

/// Software whose default on that side is what was measured: guesses.
pub fn guesses(side: Side, seconds: f64) -> Vec<&'static str> {
    let has = |software: &&Software| {
        software.knobs.iter().any(|knob| knob.side == side && is_default(knob, seconds))
    };
    knobs::all().filter(has).map(|software| software.name).collect()
}

/// What has a limit between the longest gap that passed and the shortest that did not: guesses.
pub fn middleboxes((passed, failed): (Duration, Duration)) -> Vec<&'static str> {
    let range = passed.as_secs_f64()..=failed.as_secs_f64();
    let has = |software: &&Software| {
        let knobs = software.knobs.iter().filter(|knob| knob.side == Side::Middlebox);
        let mut limits = knobs.flat_map(|knob| knob.defaults).filter_map(|limit| limit.seconds);
        limits.any(|limit| range.contains(&limit))
    };
    knobs::all().filter(has).map(|software| software.name).collect()
}

/// The requesting side is to close before `low`.
fn client_change(facts: &Facts, low: f64, end: End<'_>) -> Change {
    let knob = end.knob(Side::Client);
    let spread = facts.server_timeout.as_ref().map_or(Duration::ZERO, Estimate::spread);
    let margin = (facts.rtt.unwrap_or_default() * 2 + spread).as_secs_f64().max(low / 10.0);
    let unit = knob.map_or(Unit::Fraction, |knob| knob.unit);
    let seconds = round_down((low - margin).max(0.0), unit);
    let who = end.name("the client");
    change(
        Side::Client,
        end.software,
        knob,
        seconds,
        &format!(
            "Let {who} close idle connections after {}, before the other side does",
            plain(seconds)
        ),
    )
}

/// The answering side is to outlast the pools of its clients.
fn server_change(facts: &Facts, end: End<'_>) -> Change {
    let knob = end.knob(Side::Server);
    let own = facts.server_timeout.as_ref().map_or(0.0, |estimate| estimate.main.high);
    // Clients that outlast a server that keeps as much as most do are unlike most.
    let usual = if own < 0.9 * USUAL_POOL { USUAL_POOL } else { 2.0 * own };
    let pool = facts.client_timeout.as_ref().map_or(usual, |estimate| estimate.main.high);
    let pool = pool.max(facts.longest_gap.as_secs_f64());
    let seconds = (pool * 1.08 + facts.rtt.unwrap_or_default().as_secs_f64()).ceil().max(5.0);
    let seconds = if seconds > 20.0 { (seconds / 5.0).ceil() * 5.0 } else { seconds };
    let seen = facts.longest_gap.as_secs_f64();
    let clients = if facts.client_timeout.is_some() {
        format!("up to {}", plain(pool))
    } else if seen >= pool {
        format!("they used one again after {}", plain(seen))
    } else {
        format!("how long was not seen; a guess, as most proxies keep them for {}", plain(pool))
    };
    let who = end.name("the server");
    change(
        Side::Server,
        end.software,
        knob,
        seconds,
        &format!(
            "Let {who} keep idle connections for {}, longer than its clients do ({clients})",
            plain(seconds)
        ),
    )
}

fn change(
    side: Side,
    software: Option<&'static Software>,
    knob: Option<&'static Knob>,
    seconds: f64,
    what: &str,
) -> Change {
    let line = knob.and_then(|knob| render(knob, seconds));
    let place = knob.map(|knob| knob.place).filter(|place| !place.is_empty());
    let how = match (&line, place) {
        (Some(line), Some(place)) => format!(": `{line}` in {place}"),
        (Some(line), None) => format!(": `{line}`"),
        (None, _) => String::new(),
    };
    Change {
        side,
        software: software.map(|software| software.name),
        knob: knob.map(|knob| knob.name),
        place,
        seconds,
        line,
        text: format!("{what}{how}"),
        note: knob.map(|knob| knob.note).filter(|note| !note.is_empty()),
    }
}

/// What the requesting side can do instead.
fn of_client(facts: &Facts, process: Option<&str>) -> Vec<Alternative> {
    let software = End::of(facts, Role::Client, process).software;
    let line = |of: fn(&Software) -> &'static str| {
        software.map(of).filter(|line| !line.is_empty()).map(str::to_owned)
    };
    vec![
        Alternative {
            kind: Kind::NoReuse,
            text: format!(
                "No reuse, for at least {:.1} more connects a second",
                facts.reuses_per_second
            ),
            line: line(|software| software.no_reuse),
        },
        Alternative {
            kind: Kind::Retry,
            text: if facts.may_be_read {
                "Retries, of requests that may be repeated: some may have been acted on".to_owned()
            } else {
                "Retries: none of the lost requests was read".to_owned()
            },
            line: line(|software| software.retry),
        },
    ]
}

/// A value that a person would choose, not above this one.
fn round_down(seconds: f64, unit: Unit) -> f64 {
    let step = match (seconds, unit) {
        (3.0.., _) | (_, Unit::Seconds) => 1.0,
        (1.0.., _) => 0.5,
        _ => 0.1,
    };
    // 0.3 is 3 steps of 0.1, although 0.3 / 0.1 is a little less.
    (seconds / step + 1e-9).floor() * step
}

/// The line of a knob with this value; whole seconds are written as such where `ms` can be.
fn render(knob: &Knob, seconds: f64) -> Option<String> {
    let value = match knob.unit {
        Unit::Milliseconds if seconds.fract() == 0.0 && knob.line.contains("{}ms") => {
            return Some(knob.line.replace("{}ms", &format!("{seconds:.0}s")));
        }
        Unit::Milliseconds => format!("{:.0}", seconds * 1e3),
        Unit::Seconds => format!("{seconds:.0}"),
        Unit::Fraction if seconds.fract() == 0.0 => format!("{seconds:.0}"),
        Unit::Fraction => format!("{seconds:.1}"),
    };
    (!knob.line.is_empty()).then(|| knob.line.replace("{}", &value))
}

/// `4 s`, `1.5 s`.
fn plain(seconds: f64) -> String {
    if (seconds - seconds.round()).abs() < 0.05 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::estimate::of_closes;

    fn after(seconds: f64) -> Option<Estimate> {
        let idle = Duration::from_secs_f64(seconds);
        of_closes(&(0..20).map(|second| (second, idle)).collect::<Vec<_>>(), false)
    }

    /// The server closes after so many seconds.
    fn facts(role: Role, seconds: f64) -> Facts {
        Facts {
            role,
            server_timeout: after(seconds),
            server_first: 20,
            reuses: 120,
            reuses_per_second: 2.0,
            longest_gap: Duration::from_secs_f64(0.9 * seconds),
            ..Facts::nothing()
        }
    }

    fn of(facts: &Facts, process: &str) -> Advice {
        advise(facts, State::Exposed, Some(process)).expect("advice")
    }

    #[test]
    fn the_client_is_to_close_first() {
        let check = |seconds: f64, process: &str, line: &str| {
            let advice = of(&facts(Role::Client, seconds), process);
            assert_eq!(advice.change.line.as_deref(), Some(line), "{seconds} {process}");
            assert_eq!(advice.change.side, Side::Client);
            assert!(advice.change.seconds < seconds);
        };
        check(2.0, "nginx", "keepalive_timeout 1500ms;");
        check(5.0, "nginx", "keepalive_timeout 4s;");
        check(65.0, "nginx", "keepalive_timeout 58s;");
        // A round trip and the scatter of the timeout count, if they are more than a tenth.
        let far = Facts { rtt: Some(Duration::from_millis(600)), ..facts(Role::Client, 5.0) };
        assert_eq!(of(&far, "nginx").change.line.as_deref(), Some("keepalive_timeout 3s;"));
        let scattered: Vec<_> =
            (0..20).map(|i| (i, Duration::from_millis(5_000 + 50 * u64::from(i)))).collect();
        let late =
            Facts { server_timeout: of_closes(&scattered, false), ..facts(Role::Client, 5.0) };
        assert_eq!(of(&late, "nginx").change.line.as_deref(), Some("keepalive_timeout 3s;"));
    }

    #[test]
    fn the_server_is_to_outlast_its_clients() {
        let check = |facts: Facts, process: &str, line: &str| {
            let advice = of(&facts, process);
            assert_eq!(advice.change.line.as_deref(), Some(line), "{process}");
            assert_eq!(advice.change.side, Side::Server);
        };
        // What the clients keep is not known: most proxies keep 60 s.
        check(facts(Role::Server, 2.0), "gunicorn", "--keep-alive 65");
        check(facts(Role::Server, 5.0), "uvicorn", "--timeout-keep-alive 65");
        check(facts(Role::Server, 75.0), "nginx", "keepalive_timeout 165s;");
        let known = Facts { client_timeout: after(90.0), ..facts(Role::Server, 5.0) };
        check(known, "gunicorn", "--keep-alive 100");
        // Both ends are here: the client's side is the better one.
        let both =
            Facts { seen: Races { idle: 1, ..Races::default() }, ..facts(Role::Server, 5.0) };
        assert_eq!(of(&both, "gunicorn").change.side, Side::Client);
        // No pool lives on less than half a second.
        let advice = of(&facts(Role::Client, 0.5), "nginx");
        assert_eq!((advice.change.side, advice.change.line), (Side::Server, None));
    }

    #[test]
    fn names_are_known_or_not_given() {
        let software = |facts: &Facts, process: &str| of(facts, process).change.software;
        assert_eq!(software(&facts(Role::Client, 5.0), "nginx"), Some("nginx"));
        // It has no pool of its own.
        assert_eq!(software(&facts(Role::Client, 5.0), "gunicorn"), None);
        assert_eq!(software(&facts(Role::Client, 5.0), "made-up"), None);
        let text = of(&facts(Role::Client, 5.0), "made-up").change.text;
        assert!(text.contains("Let made-up close idle connections after 4 s"), "{text}");
        // Any of several: what was measured decides.
        assert_eq!(software(&facts(Role::Server, 30.0), "java"), Some("Jetty"));
        assert_eq!(software(&facts(Role::Server, 3.3), "java"), None);
    }

    #[test]
    fn other_remedies_come_with_their_cost() {
        let advice = of(&facts(Role::Client, 5.0), "nginx");
        let kinds: Vec<_> = advice.alternatives.iter().map(|other| other.kind.as_str()).collect();
        assert_eq!(kinds, ["other_side", "no_reuse", "retry"]);
        assert!(advice.alternatives.iter().any(|other| other.text.contains("2.0 more connects")));
        assert!(advice.alternatives.iter().any(|other| {
            other.line.as_ref().is_some_and(|line| line.contains("non_idempotent"))
        }));
    }

    #[test]
    fn each_verdict_has_its_own() {
        let facts = facts(Role::Client, 5.0);
        let text = |facts: &Facts, state| advise(facts, state, None).map(|a| a.change.text);
        assert_eq!(text(&facts, State::Safe), None);
        assert_eq!(text(&facts, State::Unknown), None);
        assert_eq!(text(&facts, State::Dropping), None);
        assert!(text(&facts, State::Leaking).unwrap().contains("watch its idle connections"));
        let limit = Some((Duration::from_secs(340), Duration::from_mins(6)));
        let dropping = text(&Facts { drop_limit: limit, ..facts }, State::Dropping).unwrap();
        assert!(dropping.contains("after 306 s") && dropping.contains("keep-alive"), "{dropping}");
    }

    #[test]
    fn defaults_near_the_measured_value_are_guesses() {
        assert!(guesses(Side::Server, 2.01).contains(&"gunicorn"));
        assert!(guesses(Side::Client, 59.2).contains(&"nginx"));
        assert!(guesses(Side::Server, 3.3).is_empty());
        let within = |passed, failed| {
            middleboxes((Duration::from_secs(passed), Duration::from_secs(failed)))
        };
        assert!(within(340, 355).contains(&"AWS NAT gateway"));
        assert!(within(360, 900).is_empty());
    }
}
