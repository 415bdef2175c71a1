use super::*;
use crate::ends::Ends;
use crate::estimate::of_closes;
use crate::explain::{notes, sentence};

impl Facts {
    /// Nothing was seen in ten minutes.
    pub(crate) fn nothing() -> Self {
        Self {
            role: Role::Client,
            length: Duration::from_mins(10),
            threshold: Duration::from_millis(200),
            server_timeout: None,
            client_timeout: None,
            server_first: 0,
            client_first: 0,
            is_server_first_again: false,
            closed_by: Side::Server,
            is_probed: false,
            client_in_a_row: 0,
            client_row_length: Duration::from_mins(9),
            server_share_before: None,
            reuses: 0,
            reuses_per_second: 0.0,
            longest_gap: Duration::ZERO,
            exposure: None,
            unused_after: None,
            lost_early: None,
            races: Races::default(),
            seen: Races::default(),
            lost_at_once: 1.0,
            may_be_read: true,
            last_race: None,
            last_rollout: None,
            drops: 0,
            drops_outlived: 0,
            drop_limit: None,
            stale: 0,
            old_fins: 0,
            dwell: None,
            rtt: Some(Duration::from_millis(1)),
        }
    }
}

/// The server's or the client's idle timeout.
fn after(seconds: f64, closes: u32) -> Option<Estimate> {
    let idle = Duration::from_secs_f64(seconds);
    of_closes(&(0..closes).map(|second| (second, idle)).collect::<Vec<_>>(), false)
}

/// The server closes after 2 s, the client uses connections for up to 1.9 s.
fn server_first() -> Facts {
    Facts {
        server_timeout: after(2.0, 40),
        server_first: 40,
        reuses: 300,
        longest_gap: Duration::from_millis(1_900),
        ..Facts::nothing()
    }
}

/// The client closes after 1 s, and the server would after 2 s.
fn client_first() -> Facts {
    Facts {
        client_timeout: after(1.0, 30),
        client_first: 30,
        client_in_a_row: 30,
        server_first: 0,
        ..server_first()
    }
}

fn with_races(idle: u32, facts: Facts) -> Facts {
    Facts { races: Races { idle, ..Races::default() }, ..facts }
}

#[test]
fn a_middlebox_is_named_as_the_one_that_closes() {
    let facts = Facts { closed_by: Side::Middlebox, ..server_first() };
    let text = sentence(&facts, State::Exposed, "nginx", "the peer");
    assert!(
        text.starts_with(
            "Something between nginx and the peer closes idle connections after 2.000 s"
        ),
        "{text}"
    );
    let notes = notes(&facts, "nginx", "the peer", Ends::new(Role::Client, None, None, None));
    assert!(notes.iter().any(|note| note.contains("come from a device in between")), "{notes:?}");
}

#[test]
fn words() {
    let check = |name: &str, facts: Facts, expected: State| {
        assert_eq!(assess(&facts, None), expected, "{name}");
    };
    check("nothing", Facts::nothing(), State::Unknown);
    check("the server first", server_first(), State::Exposed);
    check("never used again", Facts { reuses: 0, ..server_first() }, State::Unknown);
    check("four closes", Facts { server_first: 4, ..server_first() }, State::Unknown);
    check("no timeout", Facts { server_timeout: None, ..server_first() }, State::Unknown);
    check("a race", with_races(1, server_first()), State::Racing);
    let seen = Races { idle: 1, ..Races::default() };
    check("seen from the server", Facts { seen, ..server_first() }, State::Racing);
    check("a race, little else", with_races(1, Facts::nothing()), State::Racing);
    check("the client first", client_first(), State::Safe);
    check(
        "four by the client",
        Facts { client_first: 4, client_in_a_row: 4, ..client_first() },
        State::Unknown,
    );

    let other = Races { lifetime: 9, rollout: 9, ..Races::default() };
    check("other races", Facts { races: other, ..client_first() }, State::Losing);
    check("seen from the server, too", Facts { seen: other, ..client_first() }, State::Losing);
    check(
        "of unknown cause",
        Facts { races: Races { unknown: 1, ..Races::default() }, ..Facts::nothing() },
        State::Losing,
    );
    check(
        "beside idle ones",
        Facts { seen: other, ..with_races(1, server_first()) },
        State::Racing,
    );
    let long_ago = |minutes| Some(Duration::from_mins(minutes));
    // Nine in four minutes, and none for six; or for two.
    let over = Facts { races: other, last_race: long_ago(6), ..client_first() };
    check("no more", over.clone(), State::Safe);
    check("perhaps no more", Facts { last_race: long_ago(2), ..over }, State::Losing);
    let one = Facts { races: Races { rollout: 1, ..Races::default() }, ..client_first() };
    check("one", Facts { last_race: long_ago(9), ..one }, State::Losing);
    check("a crash", Facts { drops: 2, drops_outlived: 9, ..client_first() }, State::Losing);
    check("drops", Facts { drops: 2, ..Facts::nothing() }, State::Dropping);
    check(
        "more drops than races",
        Facts { drops: 2, ..with_races(1, server_first()) },
        State::Dropping,
    );
    check(
        "more races than drops",
        Facts { drops: 1, ..with_races(2, server_first()) },
        State::Racing,
    );

    let old = Facts { stale: 6, old_fins: 5, ..with_races(6, server_first()) };
    check("old FINs", old.clone(), State::Leaking);
    check("one old FIN", Facts { old_fins: 1, ..old.clone() }, State::Racing);
    check("few old FINs", Facts { old_fins: 3, ..old }, State::Racing);
    let dwell = |seconds, count| Some((Duration::from_secs(seconds), count));
    check("long in CLOSE_WAIT", Facts { dwell: dwell(30, 9), ..server_first() }, State::Exposed);
    check("not that long", Facts { dwell: dwell(9, 9), ..server_first() }, State::Exposed);
    check("only four", Facts { dwell: dwell(30, 4), ..server_first() }, State::Exposed);
    let server = Facts { role: Role::Server, dwell: dwell(30, 9), ..server_first() };
    check("a server may wait", server, State::Exposed);
}

#[test]
fn words_do_not_flutter() {
    let check = |before, server_first, expected| {
        let facts = Facts { server_first, client_first: 100, client_in_a_row: 3, ..client_first() };
        let facts = Facts { server_timeout: after(2.0, 40), ..facts };
        assert_eq!(assess(&facts, before), expected, "{before:?} {server_first}");
    };
    check(None, 3, State::Safe);
    check(None, 8, State::Exposed);
    for server_first in [3, 8] {
        check(Some(State::Safe), server_first, State::Safe);
        check(Some(State::Exposed), server_first, State::Exposed);
    }
    check(Some(State::Safe), 12, State::Exposed);
    check(Some(State::Exposed), 2, State::Safe);
}

#[test]
fn a_change_shows_at_once_when_the_order_has_turned() {
    let facts = Facts { server_first: 40, ..with_races(9, client_first()) };
    let check = |client_in_a_row, share, expected| {
        let facts = Facts { client_in_a_row, server_share_before: share, ..facts.clone() };
        assert_eq!(assess(&facts, Some(State::Racing)), expected, "{client_in_a_row} {share:?}");
    };
    check(TURNED - 1, Some(1.0), State::Racing);
    check(TURNED, Some(1.0), State::Safe);
    // Where the server closed one in ten, twenty by the client are nothing out of the ordinary.
    check(TURNED, Some(0.1), State::Racing);
    check(44, Some(0.1), State::Safe);
    let rare =
        Facts { client_in_a_row: 60, client_row_length: Duration::from_mins(1), ..facts.clone() };
    let rare = Facts { server_share_before: Some(1.0), ..with_races(20, rare) };
    assert_eq!(assess(&rare, None), State::Racing, "two races were due in that minute");
    check(100, None, State::Racing);
    check(152, None, State::Safe);
}

/// One figure for what an idle timeout will take, and what else was lost recently.
#[test]
fn what_else_was_lost_is_expected_too() {
    let exposure = Exposure { races: 7.0, at_most: 9.0, ..Exposure::default() };
    let races = Races { idle: 1, lifetime: 2, rollout: 50, unknown: 3 };
    let facts = Facts { races, exposure: Some(exposure), ..server_first() };
    // In ten minutes; a restart is one event.
    assert_eq!(facts.expected(), Some(37.0));
    // No recent close: what was lost before is all that is known.
    let quiet = Facts { exposure: None, ..facts.clone() };
    assert_eq!(quiet.expected(), Some(36.0));
    assert_eq!(Facts { races: Races::default(), ..quiet }.expected(), None);
    let over = Facts { last_race: Some(Duration::from_secs(570)), ..facts.clone() };
    assert_eq!(over.expected(), Some(7.0));
    // The order of closes has turned: the old ones no longer say anything.
    let turned = Facts {
        races: Races::default(),
        client_in_a_row: 100,
        server_share_before: Some(0.5),
        ..facts
    };
    assert_eq!(turned.expected(), Some(0.0));
}

/// What counts is whether connections are used, not who closes them.
#[test]
fn a_pool_that_drops_the_old_is_safe() {
    let unused_after = Some(Duration::from_millis(1500));
    let lazy = Facts { unused_after, ..server_first() };
    assert_eq!(assess(&lazy, Some(State::Exposed)), State::Safe);
    assert_eq!(
        sentence(&lazy, State::Safe, "apache2", "10.0.0.5:80"),
        "apache2 uses no connection that was idle for more than 1.50 s, although 10.0.0.5:80 is the one to close it, \
         after 2.000 s (40 closes): margin 0.500 s"
    );
    assert_eq!(assess(&with_races(1, lazy.clone()), None), State::Racing);
    // Ten came in five minutes, so as many were due in the five minutes since.
    let after = |quiet| {
        let facts = Facts { last_race: Some(Duration::from_secs(quiet)), ..lazy.clone() };
        assess(&with_races(10, facts), Some(State::Racing))
    };
    assert_eq!(after(300), State::Safe);
    assert_eq!(after(60), State::Racing);
}

/// At a round trip of 80 ms it takes more than 20 ms to be first.
#[test]
fn the_margin_is_a_round_trip() {
    let rtt = Some(Duration::from_millis(80));
    let near = Facts { server_timeout: after(1.02, 5), rtt, ..client_first() };
    assert_eq!(assess(&near, None), State::Exposed);
    assert_eq!(
        sentence(&near, State::Exposed, "nginx", "10.0.0.5:80"),
        "10.0.0.5:80 closes idle connections after 1.020 s (5 closes), nginx only 20 ms before, less than \
         the round trip of 80 ms"
    );
    let far = Facts { server_timeout: after(1.2, 5), ..near.clone() };
    assert_eq!(assess(&far, None), State::Safe);
    let at_once = Facts { rtt: Some(Duration::from_millis(1)), ..near };
    assert_eq!(assess(&at_once, None), State::Safe);
}

#[test]
fn sentences() {
    let check = |facts: Facts, expected: &str| {
        let state = assess(&facts, None);
        assert_eq!(sentence(&facts, state, "nginx", "10.0.0.5:80"), expected);
    };
    check(Facts::nothing(), "Too little was seen; still needed: 5 closes of an idle connection");
    check(
        Facts { server_first: 2, ..Facts::nothing() },
        "Too little was seen; still needed: 3 more closes of an idle connection",
    );
    check(
        Facts { reuses: 0, ..server_first() },
        "Too little was seen; still needed: a reuse after a gap of over 200 ms",
    );
    check(
        Facts { server_timeout: None, ..server_first() },
        "Too little was seen; still needed: closes that agree on an idle timeout (40 seen do not)",
    );
    check(
        with_races(6, server_first()),
        "10.0.0.5:80 closes idle connections after 2.000 s (40 closes), nginx reuses them after up to \
         1.90 s: 6 requests lost in 10 min",
    );
    let exposure = Exposure { races: 13.7, at_most: 20.0, ..Exposure::default() };
    check(
        Facts { exposure: Some(exposure), ..server_first() },
        "10.0.0.5:80 closes idle connections after 2.000 s (40 closes), nginx reuses them after up to \
         1.90 s: 14 races an hour to be expected",
    );
    check(
        client_first(),
        "nginx closes first: 30 of 30 idle connections, after 1.000 s (30 closes); 10.0.0.5:80 would \
         after 2.000 s: margin 1.000 s",
    );
    let limit = Some((Duration::from_secs(340), Duration::from_mins(6)));
    check(
        Facts { drops: 1, drop_limit: limit, ..Facts::nothing() },
        "Something between nginx and 10.0.0.5:80 silently forgets idle connections (they still \
         worked after 340 s, but not after 360 s): 1 request lost in 10 min",
    );
    check(
        Facts { stale: 6, old_fins: 5, ..with_races(6, server_first()) },
        "nginx does not watch its idle connections: 5 of 6 late requests met a FIN over a second old",
    );
    let two = (0..20).flat_map(|second| [5, 65].map(|idle| (second, Duration::from_secs(idle))));
    let two: Vec<_> = two.collect();
    check(
        Facts { server_timeout: of_closes(&two, false), ..server_first() },
        "10.0.0.5:80 closes idle connections after 65.000 s (20 closes) or 5.000 s (20 closes) (2 \
         timeouts), nginx reuses them after up to 1.90 s",
    );
}

/// On a port that tells nothing.
fn ends(role: Role, process: &str) -> Ends<'_> {
    Ends::new(role, Some(34567), Some(process), None)
}

#[test]
fn other_races_have_their_own_words_and_no_timeout() {
    let races = Races { lifetime: 1, rollout: 2, ..Races::default() };
    let last_rollout = Some(Duration::from_secs(40));
    let facts = Facts { races, last_rollout, ..Facts::nothing() };
    assert_eq!(
        sentence(&facts, assess(&facts, None), "nginx", "10.0.0.5:80"),
        "10.0.0.5:80 closed connections that nginx still used, but not because they were idle: 3 requests \
         lost in 10 min, 1 to a limit on requests or age, 2 to a restart, reload or rollout"
    );
    let all = notes(&facts, "nginx", "10.0.0.5:80", ends(Role::Client, "nginx"));
    assert_eq!(all.len(), 2);
    assert!(all[0].contains("such as `keepalive_requests` of nginx"), "{}", all[0]);
    assert!(all[1].contains("the last 40.00 s ago: a restart"), "{}", all[1]);
    let at_server = Facts { role: Role::Server, ..facts };
    let all = notes(&at_server, "10.0.0.9", "gunicorn", ends(Role::Server, "gunicorn"));
    assert!(all[0].contains("of gunicorn: `--max-requests`"), "{}", all[0]);
    // No web server limits for a database, nor nginx's where it forwards bytes.
    for process in ["postgres", "nginx"] {
        let ends = Ends::new(Role::Server, Some(5432), Some(process), None);
        let all = notes(&at_server, "10.0.0.9", process, ends);
        assert!(all[0].contains("on a connection's age. Raise it"), "{}", all[0]);
    }
    let unknown = Facts { races: Races { unknown: 1, ..Races::default() }, ..Facts::nothing() };
    assert_eq!(
        sentence(&unknown, State::Losing, "nginx", "10.0.0.5:80"),
        "10.0.0.5:80 closed connections that nginx still used: 1 request lost in 10 min; whether to an \
         idle timeout will show after 5 closes of an idle connection"
    );
    let crash = Facts { drops: 2, drops_outlived: 9, ..Facts::nothing() };
    assert_eq!(
        sentence(&crash, assess(&crash, None), "nginx", "10.0.0.5:80"),
        "10.0.0.5:80 closed connections that nginx still used, but not because they were idle: 2 requests \
         lost in 10 min, 2 to a crash or failover"
    );
    let all = notes(&crash, "nginx", "10.0.0.5:80", ends(Role::Client, "nginx"));
    assert!(all.len() == 1 && all[0].starts_with("2 requests met connections"), "{all:?}");
    let dwell = Facts { dwell: Some((Duration::from_secs(30), 9)), ..server_first() };
    assert_eq!(
        notes(&dwell, "nginx", "10.0.0.5:80", ends(Role::Client, "nginx")),
        [
            "nginx keeps connections that 10.0.0.5:80 has closed, for 30.00 s (median): it does not watch \
             its idle connections. That is harmless if it tests each one before use"
        ]
    );
    assert!(notes(&Facts::nothing(), "y", "x", ends(Role::Client, "y")).is_empty());
}
