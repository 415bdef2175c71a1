//! What to change, on which side, to what value; and what else would help, with its cost.
//!
//! The value comes from the measurement. Names come from the local process, or are guesses from the measured
//! value, and are labelled as such.

use std::time::Duration;

use super::ends::Ends;
use super::estimate::Estimate;
use super::knobs::{self, Knob, ROUNDS, Side, Software, Unit};
use super::model::Role;
use super::numbers::short;
use super::protocol::Protocol;
use super::verdict::{Facts, Races, State};
use crate::words;

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
    /// What not to confuse it with.
    pub note: Option<&'static str>,
}

/// Another remedy, with what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    pub kind: Remedy,
    pub text: String,
    pub line: Option<String>,
}

words! {
    /// What another remedy does.
    Remedy {
        /// The setting of the other side.
        OtherSide = "other_side",
        /// TCP keep-alive probes.
        KeepAlive = "keep_alive",
        /// The pool tests a connection before it uses it.
        Test = "test",
        /// Connections are used once.
        NoReuse = "no_reuse",
        /// Requests that may be repeated are.
        Retry = "retry",
    }
}

/// A pool that keeps connections for less is of little use: then the server should wait longer.
const SHORTEST_POOL: f64 = 0.5;

/// What servers should outlast when nothing is known of the pool: most proxies keep 60 s.
const USUAL_POOL: f64 = 60.0;

/// A default is taken for what was measured if it is that near, as a share and in seconds.
const NEAR: f64 = 0.03;
const NEAR_SECS: f64 = 0.06;

/// What to do about these facts; none where nothing is wrong, or nothing can be said.
pub fn advise(facts: &Facts, state: State, ends: Ends<'_>) -> Option<Advice> {
    let server = facts.server_timeout.as_ref();
    match state {
        State::Racing | State::Exposed | State::Leaking => {
            let low =
                server.map_or_else(|| facts.longest_gap.as_secs_f64() / 2.0, Estimate::lowest);
            let low = facts.lost_early.map_or(low, |(_, gap)| low.min(gap.as_secs_f64()));
            (low > 0.0).then(|| against_timeout(facts, state, low, ends))
        }
        State::Dropping => {
            let (passed, _) = facts.drop_limit?;
            let change = client_change(facts, passed.as_secs_f64(), ends);
            let mut alternatives: Vec<_> = probes(facts, passed).into_iter().collect();
            alternatives.extend(of_client(facts, ends));
            Some(Advice { change, alternatives })
        }
        State::Losing | State::Safe | State::Unknown => None,
    }
}

fn against_timeout(facts: &Facts, state: State, low: f64, ends: Ends<'_>) -> Advice {
    let by_client = client_change(facts, low, ends);
    let by_client = already_set(facts, ends, &by_client).unwrap_or(by_client);
    let by_server = server_change(facts, ends);
    let is_possible = by_client.seconds >= SHORTEST_POOL;
    // What is on this host can be changed here; otherwise change the client, whose side is the better one.
    let is_here = facts.role == Role::Client
        || facts.seen != Races::default()
        || ends.process(Side::Client).is_some();
    let (mut change, other) = match by_server {
        Some(by_server) if !(is_here && is_possible) => (by_server, Some(by_client)),
        by_server => (by_client, by_server),
    };
    if facts.seen != Races::default() {
        change.text += ". The client's end is on this host too, with a row of its own";
    }
    let guess = facts.server_timeout.is_none().then(|| {
        format!(
            ". That is a guess, for the server closes after no certain time: it is below half of {}, the \
             longest time after which a connection was used again",
            plain(facts.longest_gap.as_secs_f64())
        )
    });
    let late = facts.lost_early.map(|(count, gap)| {
        format!(
            ". That leaves more than usual, for the server reads late: {count} requests were lost that came \
             after {} already, as if its event loop was blocked. Find out what blocks it",
            plain(gap.as_secs_f64())
        )
    });
    change.text.extend([guess, late].into_iter().flatten());
    if state == State::Leaking {
        change.text = format!(
            "Let the pool watch its idle connections, or test each before it is used: no timeout \
             helps a pool that does not look. {}",
            change.text
        );
    }
    let other = other.map(|other| Alternative {
        kind: Remedy::OtherSide,
        text: other.text,
        line: other.line,
    });
    let mut alternatives: Vec<_> = other.into_iter().collect();
    if facts.is_by_middlebox() {
        alternatives
            .extend(Duration::try_from_secs_f64(low).ok().and_then(|low| probes(facts, low)));
    }
    alternatives.extend(of_client(facts, ends));
    Advice { change, alternatives }
}

/// What keeps a connection from looking idle to whatever is between the two ends; none where it already runs.
fn probes(facts: &Facts, limit: Duration) -> Option<Alternative> {
    let text = format!(
        "TCP keep-alive that probes idle connections more often than every {}",
        short(limit)
    );
    (!facts.is_probed).then_some(Alternative { kind: Remedy::KeepAlive, text, line: None })
}

/// One side of a connection.
#[derive(Clone, Copy)]
struct Party<'a> {
    /// Its process, if it is on this host.
    process: Option<&'a str>,
    /// What that process is known to be.
    software: Option<&'static Software>,
}

impl<'a> Party<'a> {
    fn of(facts: &Facts, side: Side, ends: Ends<'a>) -> Self {
        let measured = match side {
            Side::Server => &facts.server_timeout,
            Side::Client | Side::Middlebox => &facts.client_timeout,
        };
        let measured = measured.as_ref().map(|estimate| estimate.main.value);
        let process = ends.process(side);
        let software = process.and_then(|name| by_process(name, side, measured, ends.protocol));
        Self { process, software }
    }

    /// What to call a side; what runs inside a process is a pool.
    fn name(self, side: Side, protocol: Protocol) -> String {
        let is_pool = side == Side::Client && !protocol.is_http();
        match (self.software, self.process) {
            (Some(software), _) => software.name.to_owned(),
            (None, Some(process)) if is_pool => format!("the pool of {process}"),
            (None, Some(process)) => process.to_owned(),
            (None, None) if is_pool => "the pool".to_owned(),
            (None, None) => format!("the {}", side.as_str()),
        }
    }

    fn knob(self, side: Side) -> Option<&'static Knob> {
        self.software?.knob(side)
    }
}

/// The software of a process, among what speaks that protocol and has a setting for that side. Several share
/// a name (`java`), and any library may be at work in a runtime: then it is the only one whose default is the
/// measured timeout.
fn by_process(
    name: &str,
    side: Side,
    measured: Option<f64>,
    protocol: Protocol,
) -> Option<&'static Software> {
    let can_be = |software: &&'static Software| {
        software.has_process(name) && software.speaks(protocol) && software.knob(side).is_some()
    };
    let fits = |software: &&'static Software| {
        measured.is_some_and(|value| has_default(software, side, value))
    };
    let is_library = !protocol.is_http() && knobs::is_runtime(name);
    let all: Vec<_> = knobs::all().filter(can_be).collect();
    match all.as_slice() {
        [only] if !is_library => Some(only),
        several => {
            let mut fitting = several.iter().copied().filter(fits);
            fitting.next().filter(|_| fitting.next().is_none())
        }
    }
}

fn has_default(software: &Software, side: Side, value: f64) -> bool {
    software.knobs.iter().any(|knob| knob.side == side && is_default(knob, value))
}

fn is_default(knob: &Knob, value: f64) -> bool {
    knob.defaults
        .iter()
        .filter_map(|default| default.seconds)
        .any(|default| is_near(default, value))
}

fn is_near(default: f64, value: f64) -> bool {
    (default - value).abs() <= (default * NEAR).max(NEAR_SECS)
}

/// Software whose default on that side is what was measured: guesses. Where the process on that side is
/// known, only software that runs in it can be meant.
pub fn guesses(side: Side, seconds: f64, ends: Ends<'_>) -> Vec<&'static str> {
    let can_be = |software: &&Software| {
        software.speaks(ends.protocol)
            && ends.process(side).is_none_or(|process| software.has_process(process))
    };
    let has = |software: &&Software| has_default(software, side, seconds);
    knobs::all().filter(can_be).filter(has).map(|software| software.name).collect()
}

/// Middleboxes with a limit between the longest gap that passed and the shortest that did not: guesses.
pub fn middleboxes((passed, failed): (Duration, Duration)) -> Vec<&'static str> {
    let range = passed.as_secs_f64()..=failed.as_secs_f64();
    let has = |software: &&Software| {
        let knobs = software.knobs.iter().filter(|knob| knob.side == Side::Middlebox);
        let mut limits = knobs.flat_map(|knob| knob.defaults).filter_map(|limit| limit.seconds);
        limits.any(|limit| range.contains(&limit))
    };
    knobs::all().filter(has).map(|software| software.name).collect()
}

/// Makes the requesting side close before `low`.
fn client_change(facts: &Facts, low: f64, ends: Ends<'_>) -> Change {
    let end = Party::of(facts, Side::Client, ends);
    let knob = end.knob(Side::Client);
    let spread = facts.server_timeout.as_ref().map_or(Duration::ZERO, Estimate::spread);
    let margin = (facts.rtt.unwrap_or_default() * 2 + spread).as_secs_f64().max(low / 10.0);
    let unit = knob.map_or(Unit::Fraction, |knob| knob.unit);
    let seconds = round_down((low - margin).max(0.0), unit);
    let who = end.name(Side::Client, ends.protocol);
    let after = plain(seconds);
    let what = match knob {
        None if ends.protocol.has_heartbeats() => {
            format!("Let {who} send heartbeats more often than every {after}")
        }
        None if !ends.protocol.is_http() => format!(
            "Let {who} close idle connections after {after}, or test them as often, before the \
             other side closes them"
        ),
        _ if facts.is_by_middlebox() => {
            format!("Let {who} close idle connections after {after}, before what is between does")
        }
        _ => format!("Let {who} close idle connections after {after}, before the other side does"),
    };
    let names = pools(end, ends.protocol).filter_map(|pool| {
        let knob = pool.knob(Side::Client).filter(|_| knob.is_none())?;
        Some(format!("`{}` of {}", knob.name, pool.name))
    });
    let what = [what, such_as(names)].concat();
    change(Side::Client, end.software, knob, seconds, &what)
}

/// Where the client's own closes show that it already has what would be advised: it is not told to set it again.
fn already_set(facts: &Facts, ends: Ends<'_>, change: &Change) -> Option<Change> {
    let own = facts.client_timeout.as_ref().filter(|own| !own.is_upper_bound)?;
    if own.main.high > change.seconds + (change.seconds * NEAR).max(NEAR_SECS) {
        return None;
    }
    let who = Party::of(facts, Side::Client, ends).name(Side::Client, ends.protocol);
    let text = format!(
        "{who} closes idle connections after {} already, which is early enough: what is lost or closed by the \
         server beside that is from before, or belongs to a pool that is set otherwise, and has to be set as well",
        plain(own.main.value)
    );
    Some(Change { line: None, text, ..change.clone() })
}

/// The libraries that a pool may be: for a runtime, those that run in it. For HTTP, where most pools are
/// those of proxies, there are none without a runtime.
fn pools(end: Party<'_>, protocol: Protocol) -> impl Iterator<Item = &'static Software> {
    let runtime = end.process.filter(|name| knobs::is_runtime(name));
    let is_its_own = move |one: &&Software| {
        let is_of_runtime = runtime.is_some_and(|process| one.has_process(process));
        protocol.is_http() && end.software.is_none() && is_of_runtime && one.speaks(protocol)
    };
    // What only sends requests comes first.
    let (servers, clients): (Vec<_>, Vec<_>) =
        knobs::all().filter(is_its_own).partition(|one| one.has(Side::Server));
    let of_runtime = clients.into_iter().chain(servers);
    let of_stores = knobs::pools().filter(move |pool| match (end.software, runtime) {
        _ if !pool.speaks(protocol) => false,
        (Some(known), _) => known.name == pool.name,
        (None, Some(process)) => pool.has_process(process),
        (None, None) => true,
    });
    of_runtime.chain(of_stores)
}

/// ` (such as ...)`, with a few of them.
fn such_as(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.take(3).collect();
    if names.is_empty() { String::new() } else { format!(" (such as {})", names.join(", ")) }
}

/// How long the client keeps idle connections, and how that is known. Its default counts only if it is longer
/// than `least`: otherwise it is not what the client runs with, or does not matter.
fn pool_limit(facts: &Facts, client: Party<'_>, least: f64) -> Option<(f64, String)> {
    if let Some(estimate) = &facts.client_timeout {
        let high = estimate.main.high;
        return Some((high, format!("up to {}", plain(high))));
    }
    let default = client.knob(Side::Client)?.defaults.first()?.seconds?;
    let name = client.software?.name;
    let text = format!("{name} keeps them for {} by default", plain(default));
    (default >= least).then_some((default, text))
}

/// Makes the answering side outlast the pools of its clients. None where those may keep connections for ever,
/// as most pools other than proxies do: no server outlasts that.
fn server_change(facts: &Facts, ends: Ends<'_>) -> Option<Change> {
    let end = Party::of(facts, Side::Server, ends);
    let client = Party::of(facts, Side::Client, ends);
    let knob = end.knob(Side::Server);
    let is_http = ends.protocol.is_http();
    let own = facts.server_timeout.as_ref().map_or(0.0, |estimate| estimate.main.high);
    // Clients that outlast a server that keeps as much as most do are unlike most.
    let is_short = own < 0.9 * USUAL_POOL;
    let usual = if is_short { USUAL_POOL } else { 2.0 * own };
    let (pool, known) = match pool_limit(facts, client, if is_http { usual } else { own }) {
        Some(known) => known,
        None if is_http => {
            let guess = if is_short {
                format!("as most proxies keep them for {}", plain(usual))
            } else {
                "twice what the server keeps now".to_owned()
            };
            (usual, format!("how long was not seen; a guess, {guess}"))
        }
        None => return None,
    };
    let seen = facts.longest_gap.as_secs_f64();
    let known =
        if seen >= pool { format!("they used one again after {}", plain(seen)) } else { known };
    let pool = pool.max(seen);
    let seconds = (pool * 1.08 + facts.rtt.unwrap_or_default().as_secs_f64()).ceil().max(5.0);
    let seconds = if seconds > 20.0 { (seconds / 5.0).ceil() * 5.0 } else { seconds };
    let whose = if is_http { "its clients do" } else { "the pool does" };
    let kept = format!("for {}, longer than {whose} ({known})", plain(seconds));
    if facts.is_by_middlebox() {
        return Some(between_change(own, seconds, &kept));
    }
    let who = end.name(Side::Server, ends.protocol);
    let runtime = end.process.filter(|name| end.software.is_none() && knobs::is_runtime(name));
    let names = runtime.into_iter().flat_map(|process| {
        knobs::all()
            .filter(move |one| one.has_process(process) && one.speaks(ends.protocol))
            .filter_map(|one| Some(format!("`{}` of {}", one.knob(Side::Server)?.name, one.name)))
    });
    let names = such_as(names);
    let upgraded = end.software.and_then(|software| knobs::of_upgraded(software.name));
    let upgraded = upgraded.filter(|(_, default)| is_near(*default, own)).map(|(name, _)| {
        format!(". If these are WebSockets, it is `{name}` that ends them after so long")
    });
    let mut change = change(
        Side::Server,
        end.software,
        knob,
        seconds,
        &format!("Let {who} keep idle connections {kept}{names}"),
    );
    change.text.extend(upgraded);
    Some(change)
}

/// Makes what is between the two keep connections for longer than `own` seconds.
fn between_change(own: f64, seconds: f64, kept: &str) -> Change {
    let all = knobs::all().flat_map(|one| one.knobs.iter().map(move |knob| (one, knob)));
    let names = all
        .filter(|(_, knob)| knob.side == Side::Middlebox && is_default(knob, own))
        .map(|(one, knob)| format!("`{}` of {}", knob.name, one.name));
    let what = format!("Let what is between keep idle connections {kept}{}", such_as(names));
    change(Side::Middlebox, None, None, seconds, &what)
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
fn of_client(facts: &Facts, ends: Ends<'_>) -> Vec<Alternative> {
    let end = Party::of(facts, Side::Client, ends);
    let line = |of: fn(&Software) -> &'static str| {
        end.software.map(of).filter(|line| !line.is_empty()).map(str::to_owned)
    };
    let requests = ends.protocol.requests();
    let tests = pools(end, ends.protocol)
        .filter_map(|pool| Some(format!("`{}` of {}", knobs::test_of(pool.name)?, pool.name)));
    let tests = such_as(tests);
    let test = (!tests.is_empty()).then(|| Alternative {
        kind: Remedy::Test,
        text: format!(
            "A test of each connection before it is used{tests}: then only a close within the next \
             round trip loses {requests}"
        ),
        line: None,
    });
    let no_reuse = pools(end, ends.protocol)
        .filter(|pool| end.software.is_none() && !pool.no_reuse.is_empty())
        .map(|pool| format!("`{}` of {}", pool.no_reuse, pool.name));
    let no_reuse = such_as(no_reuse);
    let mut alternatives: Vec<_> = test.into_iter().collect();
    alternatives.extend([
        Alternative {
            kind: Remedy::NoReuse,
            text: format!(
                "No reuse{no_reuse}, for at least {:.1} more connects a second",
                facts.reuses_per_second
            ),
            line: line(|software| software.no_reuse),
        },
        Alternative {
            kind: Remedy::Retry,
            text: if facts.may_be_read {
                format!("Retries, of {requests} that may be repeated: some may have been acted on")
            } else {
                format!("Retries: none of the lost {requests} was read")
            },
            line: line(|software| software.retry),
        },
    ]);
    alternatives
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

/// The line of a knob with this value; whole seconds are written as such where the line has `ms`.
fn render(knob: &Knob, seconds: f64) -> Option<String> {
    let value = match knob.unit {
        Unit::Milliseconds if seconds.fract() == 0.0 && knob.line.contains("{}ms") => {
            return Some(knob.line.replace("{}ms", &format!("{seconds:.0}s")));
        }
        Unit::Milliseconds => format!("{:.0}", seconds * 1e3),
        Unit::Rounds => format!("{:.0}", (seconds * 1e3 / ROUNDS).floor()),
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
    use crate::estimate::of_closes;

    fn after(seconds: f64) -> Option<Estimate> {
        let idle = Duration::from_secs_f64(seconds);
        of_closes(&(0..20).map(|second| (second, idle)).collect::<Vec<_>>(), false)
    }

    /// The server closes after this many seconds.
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
        on(34567, facts, process)
    }

    /// With the server on that port.
    fn on(port: u16, facts: &Facts, process: &str) -> Advice {
        let ends = Ends::new(facts.role, Some(port), Some(process), None);
        advise(facts, State::Exposed, ends).expect("advice")
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
    fn web_sockets_have_a_timeout_of_their_own() {
        let text = |seconds: f64| of(&facts(Role::Server, seconds), "nginx").change.text;
        assert!(text(60.0).ends_with("it is `proxy_read_timeout` that ends them after so long"));
        assert!(text(75.0).contains("keepalive_timeout") && !text(75.0).contains("WebSockets"));
    }

    #[test]
    fn against_a_middlebox() {
        let kinds = |advice: &Advice| -> Vec<_> {
            advice.alternatives.iter().map(|other| other.kind).collect()
        };
        // As Azure's balancers do, if told to.
        let client = Facts { closed_by: Side::Middlebox, ..facts(Role::Client, 240.0) };
        let advice = of(&client, "nginx");
        assert_eq!(advice.change.line.as_deref(), Some("keepalive_timeout 216s;"));
        assert!(advice.change.text.contains("before what is between does"), "{advice:?}");
        assert_eq!(kinds(&advice)[..2], [Remedy::OtherSide, Remedy::KeepAlive]);
        let [between, probes, ..] = &*advice.alternatives else { panic!("{advice:?}") };
        assert!(between.text.starts_with("Let what is between keep idle connections for"));
        assert!(between.text.contains("Azure"), "{}", between.text);
        assert!(probes.text.contains("more often than every 240 s"), "{}", probes.text);
        // For a server whose clients are elsewhere, that is what can be changed.
        let server = Facts { closed_by: Side::Middlebox, ..facts(Role::Server, 240.0) };
        assert_eq!(of(&server, "gunicorn").change.side, Side::Middlebox);
        // What runs already is not proposed.
        let limit = Some((Duration::from_secs(230), Duration::from_secs(250)));
        let forgets = Facts { drop_limit: limit, drops: 3, ..facts(Role::Client, 600.0) };
        for facts in [client, forgets] {
            let ends = Ends::new(facts.role, Some(34567), Some("nginx"), None);
            let state = if facts.drops > 0 { State::Dropping } else { State::Exposed };
            let has_probes = |facts: &Facts| {
                kinds(&advise(facts, state, ends).expect("advice")).contains(&Remedy::KeepAlive)
            };
            assert!(has_probes(&facts) && !has_probes(&Facts { is_probed: true, ..facts }));
        }
    }

    #[test]
    fn what_closes_in_rounds_takes_several() {
        let advice = of(&facts(Role::Client, 2.0), "haproxy");
        assert_eq!(advice.change.line.as_deref(), Some("pool-purge-delay 125ms"));
        assert!(advice.change.text.contains("after 1.5 s"), "{}", advice.change.text);
    }

    #[test]
    fn a_guess_says_that_it_is_one_and_from_what() {
        let guess = Facts { server_timeout: None, ..facts(Role::Client, 20.0) };
        let change = of(&guess, "nginx").change;
        assert_eq!(change.line.as_deref(), Some("keepalive_timeout 8s;"));
        let is_told = change.text.contains("is a guess") && change.text.contains("half of 18 s");
        assert!(is_told, "{}", change.text);
        assert!(!of(&facts(Role::Client, 20.0), "nginx").change.text.contains("guess"));
    }

    #[test]
    fn a_server_that_reads_late_takes_a_wider_margin() {
        let lost_early = Some((4, Duration::from_millis(1300)));
        let change = of(&Facts { lost_early, ..facts(Role::Client, 2.0) }, "nginx").change;
        assert_eq!(change.line.as_deref(), Some("keepalive_timeout 1s;"));
        let is_told = change.text.contains("4 requests were lost that came after 1.3 s already");
        assert!(is_told && change.text.contains("blocked"), "{}", change.text);
    }

    #[test]
    fn nothing_is_advised_that_is_set() {
        let set = |seconds| Facts { client_timeout: after(seconds), ..facts(Role::Client, 2.0) };
        let change = |seconds| of(&set(seconds), "nginx").change;
        for seconds in [1.0, 1.5] {
            let Change { line, text, .. } = change(seconds);
            assert_eq!(line, None, "{text}");
            assert!(text.contains("already, which is early enough"), "{text}");
        }
        // Not early enough.
        assert_eq!(change(1.8).line.as_deref(), Some("keepalive_timeout 1500ms;"));
    }

    #[test]
    fn a_runtime_is_told_of_its_libraries() {
        let text = |process| of(&facts(Role::Client, 2.0), process).change.text;
        for library in
            ["`keepalive_timeout of TCPConnector` of aiohttp", "`keepalive_expiry` of httpx"]
        {
            assert!(text("python3").contains(library), "{}", text("python3"));
        }
        assert!(text("java").contains("of OkHttp"), "{}", text("java"));
        // For a library without such a setting, what it does have.
        let others = of(&facts(Role::Client, 2.0), "python3").alternatives;
        let no_reuse = "`headers={\"Connection\": \"close\"}` of urllib3 and requests";
        assert!(others.iter().any(|other| other.text.contains(no_reuse)), "{others:?}");
        assert!(!text("made-up").contains("such as"), "{}", text("made-up"));
        // A server is told of no client's setting.
        let server = of(&facts(Role::Server, 3.3), "java").change.text;
        assert!(server.contains("(such as `keepAliveTimeout` of Tomcat, "), "{server}");
    }

    #[test]
    fn the_server_is_to_outlast_its_clients() {
        let check = |facts: Facts, process: &str, line: &str| {
            let advice = of(&facts, process);
            assert_eq!(advice.change.line.as_deref(), Some(line), "{process}");
            assert_eq!(advice.change.side, Side::Server);
        };
        // How long the clients keep connections is unknown: most proxies keep 60 s.
        check(facts(Role::Server, 2.0), "gunicorn", "--keep-alive 65");
        check(facts(Role::Server, 5.0), "uvicorn", "--timeout-keep-alive 65");
        check(facts(Role::Server, 75.0), "nginx", "keepalive_timeout 165s;");
        let text = of(&facts(Role::Server, 75.0), "nginx").change.text;
        assert!(text.contains("twice what the server keeps") && !text.contains("most"), "{text}");
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
        assert_eq!(software(&facts(Role::Server, 2.0), "python3"), Some("gunicorn"));
        // That of more than one.
        assert_eq!(software(&facts(Role::Server, 5.0), "python3"), None);
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
        let ends = Ends::new(Role::Client, None, None, None);
        let text = |facts: &Facts, state| advise(facts, state, ends).map(|a| a.change.text);
        assert_eq!(text(&facts, State::Safe), None);
        assert_eq!(text(&facts, State::Unknown), None);
        assert_eq!(text(&facts, State::Dropping), None);
        assert!(text(&facts, State::Leaking).unwrap().contains("watch its idle connections"));
        let limit = Some((Duration::from_secs(340), Duration::from_mins(6)));
        let dropping = text(&Facts { drop_limit: limit, ..facts }, State::Dropping).unwrap();
        assert!(dropping.contains("after 306 s"), "{dropping}");
    }

    fn guess(side: Side, seconds: f64, port: u16, server: Option<&str>) -> Vec<&'static str> {
        guesses(side, seconds, Ends::new(Role::Server, Some(port), server, None))
    }

    #[test]
    fn defaults_near_the_measured_value_are_guesses() {
        assert!(guess(Side::Server, 2.01, 8080, None).contains(&"gunicorn"));
        assert!(guess(Side::Client, 59.2, 8080, None).contains(&"nginx"));
        assert!(guess(Side::Server, 3.3, 8080, None).is_empty());
        let within = |passed, failed| {
            middleboxes((Duration::from_secs(passed), Duration::from_secs(failed)))
        };
        assert!(within(340, 355).contains(&"AWS NAT gateway"));
        assert!(within(890, 910).contains(&"IPVS"));
        assert!(within(360, 590).is_empty());
    }

    #[test]
    fn a_known_process_is_no_other_software() {
        assert_eq!(guess(Side::Server, 2.0, 8080, Some("gunicorn: worke")), ["gunicorn"]);
        for process in ["node", "nginx", "made-up"] {
            assert!(guess(Side::Server, 2.0, 8080, Some(process)).is_empty(), "{process}");
        }
        // It says nothing of the other end.
        assert!(guess(Side::Client, 60.0, 8080, Some("made-up")).contains(&"nginx"));
    }

    #[test]
    fn guesses_speak_the_protocol_of_the_row() {
        let nine = guess(Side::Client, 540.0, 9092, None);
        assert_eq!(nine, ["Apache Kafka"]);
        assert!(guess(Side::Client, 540.0, 8080, None).is_empty());
        assert!(guess(Side::Client, 60.0, 6379, None).contains(&"Jedis"));
        for port in [25, 389, 1883, 3306, 5432, 5672, 6379, 9092, 11211, 27017] {
            for software in knobs::all().filter(|one| one.protocols == [Protocol::Http]) {
                let defaults =
                    software.knobs.iter().flat_map(|k| k.defaults.iter().map(move |d| (k, d)));
                for (knob, default) in defaults {
                    let named = default.seconds.map(|value| guess(knob.side, value, port, None));
                    let is_named = named.is_some_and(|names| names.contains(&software.name));
                    assert!(!is_named, "{port} {}", software.name);
                }
            }
        }
        // A proxy there forwards bytes, and has another setting for that.
        assert_eq!(guess(Side::Server, 600.0, 5432, Some("nginx")), ["nginx (stream)"]);
        assert_eq!(guess(Side::Server, 75.0, 5432, Some("nginx")), [""; 0]);
        assert_eq!(guess(Side::Server, 75.0, 80, Some("nginx")), ["nginx"]);
    }

    #[test]
    fn a_pool_is_told_of_its_own_limit() {
        let server = facts(Role::Server, 30.0);
        let advice = on(3306, &server, "mariadbd");
        assert_eq!(
            advice.change.text,
            "Let the pool close idle connections after 27 s, or test them as often, before the \
             other side closes them (such as `maxLifetime` of HikariCP, `pool_recycle` of \
             SQLAlchemy, `SetConnMaxIdleTime` of Go database/sql)"
        );
        assert_eq!(advice.change.side, Side::Client);
        let kinds: Vec<_> = advice.alternatives.iter().map(|other| other.kind).collect();
        // No server outlasts a pool that keeps connections for ever.
        assert_eq!(kinds, [Remedy::Test, Remedy::NoReuse, Remedy::Retry]);
        let text = &advice.alternatives.last().unwrap().text;
        assert_eq!(
            text,
            "Retries, of statements that may be repeated: some may have been acted on"
        );
        // If how long it keeps them is known, the server can outlast that.
        let known = Facts { client_timeout: after(90.0), ..server };
        let advice = on(3306, &known, "mariadbd");
        assert_eq!(advice.change.line.as_deref(), Some("wait_timeout = 100"));
        assert!(advice.change.text.contains("longer than the pool does (up to 90 s)"));
        // For HTTP the clients are proxies, most of which keep 60 s.
        let advice = on(8080, &facts(Role::Server, 30.0), "gunicorn");
        assert_eq!(advice.change.line.as_deref(), Some("--keep-alive 65"));
    }

    #[test]
    fn no_line_of_http_for_what_speaks_none() {
        let client = facts(Role::Client, 30.0);
        // No `http.Agent` speaks to Redis, and nothing tells which library it is.
        let advice = on(6379, &client, "node");
        let Change { software, line, text, .. } = advice.change;
        assert_eq!((software, line), (None, None));
        assert!(
            text.starts_with("Let the pool of node close idle connections after 27 s"),
            "{text}"
        );
        assert!(
            text.contains("`pingInterval` of node-redis") && !text.contains("redis-py"),
            "{text}"
        );
        // What was measured tells it.
        let measured = Facts { client_timeout: after(60.0), ..client.clone() };
        assert_eq!(on(6379, &measured, "java").change.software, Some("Jedis"));
        // A process of its own is known by its name.
        let line = on(5432, &client, "pgbouncer").change.line;
        assert_eq!(line.as_deref(), Some("server_idle_timeout = 27"));
        let line = on(5432, &client, "haproxy").change.line;
        assert_eq!(line.as_deref(), Some("timeout server 27s"));
        let line = on(8080, &client, "node").change.line;
        assert_eq!(line.as_deref(), Some("new http.Agent({ keepAlive: true, timeout: 27000 })"));
        let known: Vec<_> = knobs::all().flat_map(|one| one.processes).collect();
        for port in [25, 389, 1883, 3306, 5432, 5672, 6379, 9092, 11211, 27017] {
            for process in &known {
                let name = process.trim_matches('*');
                let change = on(port, &client, name).change;
                let is_http = |one: &Software| {
                    one.protocols == [Protocol::Http] && Some(one.name) == change.software
                };
                assert!(!knobs::all().any(is_http), "{port} {name}: {}", change.text);
                let all = on(port, &client, name).alternatives;
                assert!(!all.iter().any(|one| one.text.contains("proxies")), "{port} {name}");
            }
        }
    }

    #[test]
    fn a_known_client_has_its_own_default() {
        let advice = |process| {
            let facts = facts(Role::Server, 5.0);
            let ends = Ends::new(Role::Server, Some(8080), Some("gunicorn"), process);
            advise(&facts, State::Exposed, ends).expect("advice")
        };
        // A client on this host can be changed here; what the server would have to do is the alternative.
        let longer = |process| advice(Some(process)).alternatives.swap_remove(0);
        let caddy = longer("caddy");
        assert!(caddy.kind == Remedy::OtherSide && caddy.text.contains("for 130 s"), "{caddy:?}");
        assert!(caddy.text.contains("Caddy keeps them for 120 s by default"), "{caddy:?}");
        assert_eq!(advice(Some("caddy")).change.side, Side::Client);
        // One that keeps less may have been set to more, and a name that is not known says nothing.
        for process in ["linkerd2-proxy", "made-up"] {
            assert_eq!(longer(process).line.as_deref(), Some("--keep-alive 65"), "{process}");
        }
        assert_eq!(advice(None).change.line.as_deref(), Some("--keep-alive 65"));
        // From the client's end it is the same.
        let other = of(&facts(Role::Client, 5.0), "caddy").alternatives.swap_remove(0);
        assert!(other.kind == Remedy::OtherSide && other.text.contains("for 130 s"), "{other:?}");
        // A use after a longer gap refutes the default.
        let late = Facts { longest_gap: Duration::from_secs(200), ..facts(Role::Client, 5.0) };
        let other = of(&late, "caddy").alternatives.swap_remove(0);
        assert!(other.text.contains("used one again after 200 s"), "{other:?}");
    }

    #[test]
    fn what_has_heartbeats_is_told_of_them() {
        let text = |port| on(port, &facts(Role::Client, 60.0), "made-up").change.text;
        assert!(
            text(5672).starts_with("Let the pool of made-up send heartbeats"),
            "{}",
            text(5672)
        );
        assert!(text(1883).contains("more often than every 54 s"), "{}", text(1883));
        assert!(text(6379).contains("close idle connections after 54 s"), "{}", text(6379));
    }
}
