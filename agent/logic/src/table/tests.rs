mod pair;

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::model::{
    Certainty, Closer, Dwell, Endpoint, Evidence, How, Name, Outcome, Process, Read, Reuse,
    Role::Client, Role::Server,
};
use crate::owner::Owner;
use crate::peer::Peer;
use crate::verdict::State;

const THRESHOLD: Duration = Duration::from_millis(200);
const UPSTREAM: [u8; 4] = [10, 0, 0, 5];

fn at(seconds: f64) -> Nanos {
    Nanos(0) + Duration::from_secs_f64(seconds)
}

fn origin(role: Role, ip: impl Into<IpAddr>) -> Origin {
    let (service, ephemeral) = (8080, 40_000);
    let (local, remote) = if role == Client { (ephemeral, service) } else { (service, ephemeral) };
    Origin {
        netns: 1,
        owner: Owner::UNKNOWN,
        role,
        local: Endpoint { ip: Ipv4Addr::LOCALHOST.into(), port: local },
        remote: Endpoint { ip: ip.into(), port: remote },
        process: None,
        rtt: None,
    }
}

fn key(role: Role, ip: impl Into<IpAddr>) -> RowKey {
    RowKey::of(&origin(role, ip)).unwrap()
}

fn close(time: f64, origin: Origin, evidence: Evidence, idle: f64) -> Observation {
    let closer = if origin.role == Client { Closer::Peer } else { Closer::Local };
    let idle = Duration::from_secs_f64(idle);
    Observation::Close(Close { evidence, ..Close::of_idle(at(time), origin, closer, idle) })
}

fn incident(time: f64, origin: Origin, class: Class) -> Incident {
    Incident::new(at(time), origin, class, Outcome::Unknown)
}

fn race(time: f64, ip: impl Into<IpAddr>) -> Observation {
    Observation::Incident(incident(time, origin(Client, ip), Class::StaleWrite))
}

fn reuse(time: f64, origin: Origin) -> Observation {
    Observation::Reuse(Reuse::new(at(time), origin, Duration::from_secs(1), 1))
}

/// Made-up addresses, one after the other.
fn flood_ip(n: u32) -> IpAddr {
    Ipv4Addr::from(0xac10_0000 + n).into()
}

/// Every sum over the table that may be taken.
fn sums(table: &Table) -> [u64; 6] {
    let rows = table.rows().into_iter().map(|row| &row.stats);
    let mut sums = [0; 6];
    for stats in rows.chain(table.others().map(|(_, stats)| stats)) {
        let counts = sums_of(&stats.counts);
        sums = std::array::from_fn(|i| sums[i] + counts[i]);
    }
    sums
}

fn sums_of(counts: &Counts) -> [u64; 6] {
    let count = |measure| counts.histogram(measure).count();
    [
        closes(counts),
        count(Measure::ClosedByPeer) + count(Measure::ClosedByUs),
        counts.races(),
        counts.seen,
        count(Measure::ReuseGap),
        count(Measure::Dwell),
    ]
}

fn closes(counts: &Counts) -> u64 {
    counts.closes.iter().map(|(_, count)| count).sum()
}

#[test]
fn a_middlebox_closes_before_the_client_whichever_end_looks() {
    for (role, closers) in
        [(Client, [Closer::Peer, Closer::Local]), (Server, [Closer::Local, Closer::Peer])]
    {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        let key = key(role, UPSTREAM);
        let facts = |table: &Table| table.row(&key).unwrap().stats.facts(THRESHOLD, at(900.0));
        for second in 0..20_u32 {
            let time = f64::from(second) * 40.0;
            let idle = Duration::from_secs(30);
            let close = Close::of_idle(at(time), origin(role, UPSTREAM), Closer::Middlebox, idle);
            let reset = Close { how: How::Rst, ..close };
            table.add(&Observation::Close(reset));
            let gap = Duration::from_secs(20);
            let reuse = Reuse::new(at(time), origin(role, UPSTREAM), gap, 9);
            table.add(&Observation::Reuse(reuse));
        }
        let found = facts(&table);
        assert_eq!(
            (found.server_first, found.client_first, found.is_by_middlebox()),
            (20, 0, true)
        );
        let timeout = found.server_timeout.unwrap();
        assert!((timeout.main.value - 30.0).abs() < 0.1, "{timeout:?}");
        assert_eq!(found.client_timeout, None);
        let stats = &table.row(&key).unwrap().stats;
        assert_eq!(closers.map(|end| stats.closed_after(end).len()), [1, 0]);
        let told = (Closer::Middlebox, How::Rst, Evidence::Idle);
        assert_eq!(stats.counts.closes.get(&told), Some(&20));
        assert!(!found.is_probed);
        // A few of its resets among the server's own closes do not matter.
        for second in 0..20_u32 {
            table.add(&close(
                800.0 + f64::from(second),
                origin(role, UPSTREAM),
                Evidence::Idle,
                30.0,
            ));
        }
        assert!(!facts(&table).is_by_middlebox());
    }
}

#[test]
fn every_observation_feeds_its_row_and_its_port() {
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    let here = || origin(Client, UPSTREAM);
    let fin_age = Some(Duration::from_micros(200));
    let dwell = Duration::from_millis(2);
    table.add(&close(1.0, here(), Evidence::Idle, 5.0));
    table.add(&close(2.0, here(), Evidence::UpperBound, 5.1));
    table.add(&close(3.0, here(), Evidence::AfterData, 0.0));
    table.add(&close(3.0, here(), Evidence::Unanswered, 9.0));
    table.add(&close(3.0, here(), Evidence::Unused, 9.0));
    table.add(&reuse(4.0, here()));
    table.add(&Observation::Dwell(Dwell { time: at(5.0), origin: here(), dwell, written: false }));
    let stale = Incident { fin_age, ..incident(6.0, here(), Class::StaleWrite) };
    table.add(&Observation::Incident(stale));
    table.add(&Observation::Incident(incident(7.0, here(), Class::Farewell)));
    table.add(&reuse(8.0, origin(Role::Unknown, UPSTREAM)));

    let key = key(Client, UPSTREAM);
    for stats in [&table.row(&key).unwrap().stats, &table.port(&key.port()).unwrap().stats] {
        let (idle, counts) = (stats.idle(Closer::Peer), &stats.counts);
        let count = |measure| counts.histogram(measure).count();
        assert_eq!((closes(counts), count(Measure::ClosedByPeer)), (5, 1));
        assert_eq!(idle.exact.values().collect::<Vec<_>>(), [Duration::from_secs(5)]);
        assert_eq!(idle.upper_bound.values().collect::<Vec<_>>(), [Duration::from_millis(5100)]);
        assert_eq!(count(Measure::ClosedByUs), 0);
        assert_eq!((count(Measure::ReuseGap), stats.gaps().len()), (1, 1));
        assert_eq!((count(Measure::Dwell), count(Measure::FinAge)), (1, 1));
        assert_eq!((counts.races(), counts.incidents.len(), counts.seen), (1, 2, 0));
        let tally = counts.incidents.get(&(Class::StaleWrite, Cause::Unknown, Read::Unknown));
        assert_eq!(tally, Some(&Tally { count: 1, last_seen: at(6.0) }));
    }
    assert_eq!(table.row(&key).unwrap().last_seen(), at(7.0));
    assert_eq!(table.unattributed(), 1);
}

#[test]
fn a_race_seen_from_both_ends_counts_once() {
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    let other = || Some(Box::new(incident(1.0, origin(Server, UPSTREAM), Class::LateRequest)));
    for class in [Class::StaleWrite, Class::Farewell] {
        let here = incident(1.0, origin(Client, UPSTREAM), class);
        table.add(&Observation::Incident(Incident { other_view: other(), ..here }));
    }
    let of = |role| &table.row(&key(role, UPSTREAM)).unwrap().stats.counts;
    assert_eq!((of(Client).races(), of(Client).seen), (1, 0));
    assert_eq!((of(Server).races(), of(Server).seen, of(Server).incidents.len()), (0, 1, 0));
}

#[test]
fn a_flood_moves_no_row_that_matters_and_loses_no_count() {
    let mut table = Table::new(100, THRESHOLD, Nanos(0));
    let told = [10, 0, 1, 1];
    table.add(&race(0.0, UPSTREAM));
    for i in 0..5 {
        table.add(&close(f64::from(i), origin(Client, told), Evidence::Idle, 5.0));
    }
    let mut last = sums(&table);
    for n in 0..20_000 {
        let here = || origin(Server, flood_ip(n));
        let time = 10.0 + f64::from(n) * 0.1;
        table.add(&close(time, here(), Evidence::Idle, 1.0));
        table.add(&reuse(time, here()));
        if n % 500 == 0 {
            let now = sums(&table);
            assert!(now.iter().zip(last).all(|(now, last)| *now >= last), "{last:?} {now:?}");
            last = now;
        }
    }
    assert_eq!(sums(&table), [20_005, 20_005, 1, 0, 20_000, 0]);
    assert_eq!((table.rows().len(), table.index.len(), table.order.len()), (100, 100, 100));
    assert_eq!(table.evictions(), 20_000 - 98);
    assert!(table.row(&key(Client, UPSTREAM)).is_some(), "the row with a race");
    assert!(table.row(&key(Client, told)).is_some(), "the row with an estimate");
    // All of it is at the port, none of it lost.
    let port = table.port(&key(Server, UPSTREAM).port()).unwrap();
    assert_eq!(closes(&port.stats.counts), 20_000);

    // An hour later neither matters more than the newest of the flood.
    for n in 0..100 {
        table.add(&reuse(10_000.0, origin(Server, flood_ip(1_000_000 + n))));
    }
    assert!(table.row(&key(Client, UPSTREAM)).is_none());
    assert!(table.row(&key(Client, told)).is_none());
    assert_eq!(sums(&table)[2], 1);
}

#[test]
fn when_every_row_races_only_a_race_finds_room() {
    let mut table = Table::new(3, THRESHOLD, Nanos(0));
    for n in 0..3 {
        table.add(&race(1.0, flood_ip(n)));
    }
    table.add(&race(2.0, flood_ip(3)));
    table.add(&reuse(3.0, origin(Server, flood_ip(3))));
    assert_eq!((table.rows().len(), table.evictions(), table.refusals()), (3, 1, 1));
    assert!(table.row(&key(Client, flood_ip(0))).is_none(), "its last race was the first");
    let others = table.others().map(|(role, stats)| {
        (role, stats.counts.races(), stats.counts.histogram(Measure::ReuseGap).count())
    });
    assert_eq!(others, [(Client, 1, 0), (Server, 0, 1)]);
    // One of them used, though no longer racing, goes after those that are quiet.
    table.add(&reuse(3700.0, origin(Client, flood_ip(1))));
    for n in 4..6 {
        table.add(&race(3701.0, flood_ip(n)));
    }
    let rows = [1, 4, 5].map(|n| table.row(&key(Client, flood_ip(n))).is_some());
    assert_eq!((rows, table.evictions()), ([true; 3], 3));
}

#[test]
fn the_fleeting_go_first_then_the_longest_quiet() {
    let mut table = Table::new(3, THRESHOLD, Nanos(0));
    for (n, times) in [(0, 5), (1, 5), (2, 1)] {
        for i in 0..times {
            table.add(&reuse(f64::from(10 * n + i), origin(Client, flood_ip(n))));
        }
    }
    let mut left = Vec::new();
    for n in 3..6 {
        // Each newcomer says enough to stay.
        for _ in 0..5 {
            table.add(&reuse(100.0, origin(Client, flood_ip(n))));
        }
        left.extend((0..3).filter(|n| table.row(&key(Client, flood_ip(*n))).is_none()));
    }
    assert_eq!(left, [2, 0, 2, 0, 1, 2]);
}

#[test]
fn ports_are_bounded_too() {
    let mut table = Table::new(3, THRESHOLD, Nanos(0));
    for port in 0..5000 {
        let mut here = origin(Client, UPSTREAM);
        here.remote.port = port;
        table.add(&close(1.0, here, Evidence::Idle, 1.0));
    }
    assert_eq!((table.ports().len(), table.port_evictions()), (MAX_PORTS, 5000 - 4096));
    assert_eq!((sums(&table)[0], table.port_shares.len()), (5000, MAX_PORTS));
}

/// Peers that race by the thousand, and each port that there is: all of one owner in a namespace of its own.
fn flood(table: &mut Table, from: u32, until: u32) {
    for n in from..until {
        let mut here =
            Origin { netns: 77, owner: Owner(666), ..origin(Client, flood_ip(n % 30_000)) };
        here.remote.port = n as u16;
        let race = incident(100.0 + f64::from(n) * 0.001, here, Class::StaleWrite);
        table.add(&Observation::Incident(race));
    }
}

#[test]
fn a_flood_of_races_takes_from_its_own_share() {
    let mut table = Table::new(500, THRESHOLD, Nanos(0));
    let victim = Origin { owner: Owner(5), ..origin(Client, UPSTREAM) };
    let exposed = Origin { owner: Owner(6), ..origin(Client, [10, 0, 0, 77]) };
    for n in 0..40 {
        table.add(&close(f64::from(n), exposed, Evidence::Idle, 2.0));
        table.add(&reuse(f64::from(n), exposed));
    }
    flood(&mut table, 0, 20_000);
    // One that was there stays, and one that comes finds room, with a race or without.
    let quiet = Origin { owner: Owner(7), ..origin(Server, [10, 0, 0, 78]) };
    table.add(&Observation::Incident(incident(121.0, victim, Class::StaleWrite)));
    table.add(&reuse(121.0, quiet));
    flood(&mut table, 20_000, 60_000);
    for origin in [victim, exposed, quiet] {
        let key = RowKey::of(&origin).unwrap();
        assert!(table.row(&key).is_some(), "{key}");
        assert!(table.port(&key.port()).is_some(), "{}", key.port());
    }
    assert_eq!(table.row(&RowKey::of(&victim).unwrap()).unwrap().stats.counts.races(), 1);
    assert_eq!((table.rows().len(), table.order.len(), table.shares.len()), (500, 500, 500));
}

#[test]
fn one_owner_s_racing_clients_leave_room_for_its_other_ports() {
    let mut table = Table::new(320, THRESHOLD, Nanos(0));
    let edge = |n: u32| Origin { owner: Owner(1), ..origin(Server, flood_ip(n)) };
    let race = |n: u32| {
        let at = 10.0 + f64::from(n) * 0.01;
        Observation::Incident(incident(at, edge(n), Class::LateRequest))
    };
    (0..1000).for_each(|n| table.add(&race(n)));
    let upstream = |n: u8| {
        let upstream = Origin { owner: Owner(1), ..origin(Client, [10, 1, 1, n]) };
        Origin { remote: Endpoint { port: 9000, ..upstream.remote }, ..upstream }
    };
    // A sixteenth part of the table for those that have done nothing yet.
    (0..100).for_each(|n| table.add(&reuse(21.0, upstream(n))));
    let of_upstream = || table.rows().iter().filter(|row| row.key.role() == Client).count();
    assert_eq!((of_upstream(), table.rows().len()), (320 / OF_PORT, 320));
    // Of the racing ones, those that go on racing stay.
    assert!(table.row(&RowKey::of(&edge(999)).unwrap()).is_some());
    assert!(table.row(&RowKey::of(&edge(1)).unwrap()).is_none());
}

#[test]
fn the_process_is_the_most_frequent_and_does_not_flap() {
    let check = |name: &str, runs: &[(&str, usize)], expected: &[&str]| {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        let mut seen: Vec<String> = Vec::new();
        for (name, times) in runs {
            for _ in 0..*times {
                let process =
                    Some(Process { name: Name::from(*name), pid: 1, owner: Owner::UNKNOWN });
                table.add(&reuse(1.0, Origin { process, ..origin(Client, UPSTREAM) }));
                let label = table.row(&key(Client, UPSTREAM)).unwrap().stats.process().unwrap();
                if seen.last().is_none_or(|last| last != label) {
                    seen.push(label.to_owned());
                }
            }
        }
        assert_eq!(seen, expected, "{name}");
    };
    check("one", &[("nginx", 3)], &["nginx"]);
    check("a passer-by", &[("nginx", 30), ("curl", 2), ("nginx", 5)], &["nginx"]);
    check("two alike", &[("a", 1), ("b", 1)].repeat(2000), &["a"]);
    check("first a passer-by", &[("curl", 1), ("nginx", 30)], &["curl", "nginx"]);
    check("an upgrade", &[("nginx", 100_000), ("envoy", 1200)], &["nginx", "envoy"]);
    let many: Vec<(String, usize)> = (0..100).map(|i| (format!("sh{i}"), 1)).collect();
    let mut runs: Vec<(&str, usize)> = many.iter().map(|(n, times)| (n.as_str(), *times)).collect();
    runs.insert(0, ("nginx", 20));
    check("many passers-by", &runs, &["nginx"]);
}

/// Two processes of one owner: the one that loses requests is told what to change, not the one that has the
/// most connections.
#[test]
fn the_one_that_loses_requests_is_told() {
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    let by = |name: &str| {
        let process = Some(Process { name: Name::from(name), pid: 1, owner: Owner::UNKNOWN });
        Origin { process, ..origin(Client, UPSTREAM) }
    };
    for _ in 0..100 {
        table.add(&reuse(1.0, by("nginx")));
        table.add(&reuse(1.0, by("httpx")));
    }
    let names = |table: &Table| {
        let stats = &table.row(&key(Client, UPSTREAM)).unwrap().stats;
        [stats.process(), stats.actor()].map(|name| name.unwrap().to_owned())
    };
    assert_eq!(names(&table), ["nginx", "nginx"]);
    table.add(&Observation::Incident(incident(2.0, by("httpx"), Class::Farewell)));
    assert_eq!(names(&table), ["nginx", "nginx"], "nothing was lost");
    table.add(&Observation::Incident(incident(2.0, by("httpx"), Class::StaleWrite)));
    assert_eq!(names(&table), ["nginx", "httpx"]);
}

/// Closes of idle connections: (time, idle seconds).
fn table_of(role: Role, ip: impl Into<IpAddr> + Copy, closes: &[(f64, f64)]) -> Table {
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    for (time, idle) in closes {
        table.add(&close(*time, origin(role, ip), Evidence::Idle, *idle));
    }
    table
}

#[test]
fn estimates_come_from_the_row_then_from_the_port() {
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    let (other, nobody) = ([10, 0, 0, 6], [10, 0, 0, 7]);
    for i in 0..40 {
        table.add(&close(f64::from(i), origin(Client, UPSTREAM), Evidence::Idle, 5.0));
    }
    for i in 0..10 {
        table.add(&close(f64::from(i), origin(Client, other), Evidence::UpperBound, 60.0));
    }
    let seconds = |ip, closer| {
        table.estimate(&key(Client, ip), closer).map(|estimate| estimate.timeout().as_secs())
    };
    assert_eq!(seconds(UPSTREAM, Closer::Peer), Some(5));
    assert_eq!(seconds(other, Closer::Peer), Some(60), "upper bounds that agree");
    assert_eq!(seconds(nobody, Closer::Peer), Some(5), "the port's");
    assert_eq!(seconds(UPSTREAM, Closer::Local), None);
}

#[test]
fn bursts() {
    let check = |name: &str, role, closes: &[(f64, f64)], expected: bool| {
        let table = table_of(role, UPSTREAM, closes);
        assert_eq!(table.burst(&key(role, UPSTREAM), at(100.0)), expected, "{name}");
    };
    let scattered = [0.5, 3.0, 11.0, 22.0, 40.0];
    let together = scattered.map(|idle| (100.3, idle));
    check("nothing", Server, &[], false);
    check("a reload", Server, &together, true);
    check("a server that goes away", Client, &together, true);
    check("four are too few", Server, &together[..4], false);
    check("long before", Server, &together.map(|(_, idle)| (98.9, idle)), false);
    check("long after", Server, &together.map(|(_, idle)| (101.1, idle)), false);
    check("timing out together", Server, &[(100.0, 5.0); 20], false);
    check("on a tick", Server, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0].map(|i| (100.0, 5.0 + i)), false);
    let mut timeouts = [(100.0, 5.0); 20];
    timeouts[3].1 = 0.3;
    timeouts[7].1 = 60.0;
    check("timing out together, and two others", Server, &timeouts, false);
    // The incident is understood three seconds after the fact, and 10,000 closes later.
    let reload = |i: u32| (100.0 + f64::from(i) * 0.0003, f64::from(i % 50));
    check("a large reload", Server, &(0..10_000).map(reload).collect::<Vec<_>>(), true);

    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    for (n, idle) in scattered.into_iter().enumerate() {
        table.add(&close(100.0, origin(Client, [10, 0, 9, n as u8]), Evidence::Idle, idle));
        table.add(&close(100.0, origin(Server, [10, 0, 9, n as u8]), Evidence::Idle, idle));
    }
    assert!(!table.burst(&key(Client, [10, 0, 9, 0]), at(100.0)), "several servers");
    assert!(table.burst(&key(Server, [10, 0, 9, 0]), at(100.0)), "several clients of ours");
}

#[test]
fn causes() {
    let five: [(f64, f64); 12] = std::array::from_fn(|i| (f64::from(i as u32), 5.0));
    let reload = [0.5, 3.0, 11.0, 22.0, 40.0].map(|idle| (100.3, idle));
    // `times` are gap and idle.
    let check = |name: &str, closes: &[(f64, f64)], class, times: [f64; 2], expected| {
        for role in [Client, Server] {
            let table = table_of(role, UPSTREAM, closes);
            let [gap, idle] =
                times.map(|time| (time >= 0.0).then(|| Duration::from_secs_f64(time)));
            let rtt = Some(Duration::from_millis(20));
            let here = Origin { rtt, ..origin(role, UPSTREAM) };
            let incident = Incident { gap, idle, ..incident(100.0, here, class) };
            assert_eq!(table.cause(&incident), expected, "{name}, {role}");
        }
    };
    let (none, stale) = (-1.0, Class::StaleWrite);
    check("at the timeout", &five, stale, [5.0, none], Cause::Idle);
    check("an RTT below", &five, stale, [4.94, none], Cause::Idle);
    check("below", &five, stale, [4.0, none], Cause::Lifetime);
    check("the close counts, not the late write", &five, stale, [9.0, 2.0], Cause::Lifetime);
    check("the close alone", &five, Class::LateRequest, [none, 5.0], Cause::Idle);
    check("neither", &five, stale, [none, none], Cause::Unknown);
    check("no estimate", &[], stale, [1.0, none], Cause::Unknown);
    check("few closes", &five[..6], stale, [5.0, none], Cause::Unknown);
    check("no estimate, no gap", &[], stale, [0.1, none], Cause::Lifetime);
    check("no estimate, a reload", &reload, stale, [3.0, none], Cause::Rollout);
    let both = [five.as_slice(), &five, &reload].concat();
    check("below, in a reload", &both, stale, [3.0, none], Cause::Rollout);
    check("at the timeout, in a reload", &both, stale, [5.0, none], Cause::Idle);
    check("nobody closed", &[(1.0, 900.0); 8], Class::SilentDrop, [350.0, none], Cause::Idle);
    let unknown = incident(1.0, origin(Role::Unknown, UPSTREAM), stale);
    assert_eq!(Table::new(1, THRESHOLD, Nanos(0)).cause(&unknown), Cause::Unknown);
}

/// What was lost before closes agreed on a timeout counts as lost to it once they do.
#[test]
fn the_first_losses_are_understood_later() {
    for role in [Client, Server] {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        let here = |table: &mut Table, time: f64, gap: f64| {
            let gap = Some(Duration::from_secs_f64(gap));
            let class = if role == Client { Class::StaleWrite } else { Class::LateRequest };
            let mut race = Incident { gap, ..incident(time, origin(role, UPSTREAM), class) };
            race.cause = table.cause(&race);
            table.add(&Observation::Incident(race));
        };
        here(&mut table, 0.0, 5.01);
        here(&mut table, 1.0, 1.0);
        let races = |table: &Table, time: f64| {
            let stats = &table.row(&key(role, UPSTREAM)).expect("a row").stats;
            let facts = stats.facts(THRESHOLD, at(time));
            (facts.races.idle, facts.races.unknown)
        };
        assert_eq!(races(&table, 2.0), (0, 2), "{role}");
        for i in 0..12 {
            table.add(&close(f64::from(i), origin(role, UPSTREAM), Evidence::Idle, 5.0));
        }
        assert_eq!(races(&table, 20.0), (1, 1), "{role}");
    }
}

/// One that met what looked like a timeout for a while does not turn the many others into losses to one.
/// A pool that drops what is old leaves it to the server to close the rest; two pools, of which one has a timer and
/// the other none, are something else.
#[test]
fn a_timer_is_not_a_pool_that_drops_what_is_old() {
    let unused_after = |drops: fn(u32) -> f64| {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        let here = origin(Client, UPSTREAM);
        for second in 0..20_u32 {
            let time = f64::from(10 + second);
            table.add(&reuse(time, here));
            table.add(&close(time, here, Evidence::Idle, 2.0));
            let Observation::Close(own) = close(time, here, Evidence::Idle, drops(second)) else {
                panic!()
            };
            table.add(&Observation::Close(Close { closer: Closer::Local, ..own }));
        }
        let stats = &table.row(&key(Client, UPSTREAM)).unwrap().stats;
        stats.facts(THRESHOLD, at(40.0)).unused_after.is_some()
    };
    assert!(unused_after(|second| 1.1 + f64::from(second) * 0.04));
    assert!(!unused_after(|_| 1.5));
}

/// Where a pool closes first, except for connections that a request is just using, only these tell the
/// server's timeout.
#[test]
fn requests_that_crossed_a_close_tell_the_timeout() {
    let lost = |certainty: Certainty, class: Class, used: u32| {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        for second in 0..10_u32 {
            let race = incident(f64::from(10 + second), origin(Client, UPSTREAM), class);
            let gap = Some(Duration::from_millis(2000 + u64::from(second)));
            table.add(&reuse(9.0, origin(Client, UPSTREAM)));
            table.add(&Observation::Incident(Incident { certainty, gap, ..race }));
        }
        for _ in 0..used {
            let gap = Duration::from_secs_f64(2.05);
            let reuse = Reuse::new(at(20.0), origin(Client, UPSTREAM), gap, 1);
            table.add(&Observation::Reuse(reuse));
        }
        table.assess(at(30.0));
        let row = table.row(&key(Client, UPSTREAM)).unwrap();
        let timeout = row.stats.timeout(Closer::Peer).map(|known| known.main.value.round());
        (timeout, row.stats.verdict().unwrap())
    };
    let known = (Some(2.0), State::Racing);
    assert_eq!(lost(Certainty::Certain, Class::FinCrossed, 5), known);
    assert_eq!(lost(Certainty::Certain, Class::UnreadClose, 5), known);
    // More are used after as long: a limit on age takes one now and then.
    assert_eq!(lost(Certainty::Certain, Class::FinCrossed, 20), (None, State::Losing));
    // What was inferred from a timeout proves none; and after a FIN, its own close tells.
    assert_eq!(lost(Certainty::Inferred, Class::FinCrossed, 5), (None, State::Losing));
    assert_eq!(lost(Certainty::Certain, Class::StaleWrite, 5), (None, State::Losing));
}

#[test]
fn a_timeout_that_nothing_speaks_for_any_more_took_nothing() {
    let idle_of = |lifetimes: u32| {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        let causes = (0..lifetimes).map(|_| Cause::Lifetime).chain([Cause::Idle]);
        for cause in causes {
            let race = incident(1.0, origin(Client, UPSTREAM), Class::StaleWrite);
            table.add(&Observation::Incident(Incident { cause, ..race }));
        }
        let stats = &table.row(&key(Client, UPSTREAM)).expect("a row").stats;
        stats.facts(THRESHOLD, at(2.0)).races
    };
    assert_eq!((idle_of(0).idle, idle_of(1).idle), (1, 1));
    assert_eq!((idle_of(2).idle, idle_of(2).unknown), (0, 1));
}

#[test]
fn at_the_timeout() {
    let closes = [(1.0, 5.0), (2.0, 5.0), (3.0, 5.01), (4.0, 5.02), (5.0, 5.02)];
    let table = table_of(Client, UPSTREAM, &closes);
    let check = |ip: [u8; 4], gap: u64, rtt: Option<u64>, expected: bool| {
        let key = RowKey {
            netns: 1,
            owner: Owner::UNKNOWN,
            peer: Peer::Client(Endpoint { ip: ip.into(), port: 1 }),
        };
        let key = if ip == UPSTREAM { self::key(Client, ip) } else { key };
        let (gap, rtt) = (Duration::from_millis(gap), rtt.map(Duration::from_millis));
        assert_eq!(table.is_at_timeout(&key, gap, rtt), expected, "{ip:?} {gap:?} {rtt:?}");
    };
    // 4.988 to 5.02 s.
    check(UPSTREAM, 5010, None, true);
    check(UPSTREAM, 4939, None, true);
    check(UPSTREAM, 5069, None, true);
    check(UPSTREAM, 4937, None, false);
    check(UPSTREAM, 4937, Some(2), true);
    check(UPSTREAM, 5071, None, false);
    check([10, 9, 9, 9], 5010, None, false);
}

#[test]
fn old_evidence_ages_out() {
    let closes: [(f64, f64); 8] = std::array::from_fn(|i| (f64::from(i as u32), 5.0));
    let mut table = table_of(Client, UPSTREAM, &closes);
    let key = key(Client, UPSTREAM);
    let mut check = |hours: f64, expected: bool| {
        table.assess(at(hours * 3600.0));
        assert_eq!(table.estimate(&key, Closer::Peer).is_some(), expected, "after {hours} h");
    };
    check(23.0, true);
    check(24.1, false);
}

/// What a scrape's rows, or ports, say in total.
fn sums_of_level<K>(level: &Level<K>) -> [u64; 6] {
    let shown = level.shown.iter().map(|shown| &*shown.counts);
    let all = shown.chain(level.others.iter().map(|(_, counts)| counts));
    all.map(sums_of).fold([0; 6], plus)
}

fn sums_of_left<K>(level: &Level<K>) -> [u64; 6] {
    level.left.iter().map(|left| sums_of(&left.counts)).fold([0; 6], plus)
}

fn plus(a: [u64; 6], b: [u64; 6]) -> [u64; 6] {
    std::array::from_fn(|i| a[i] + b[i])
}

fn is_within(less: [u64; 6], more: [u64; 6]) -> bool {
    less.iter().zip(more).all(|(less, more)| *less <= more)
}

/// Rows come and go, at any time in a collection, and the room changes from scrape to scrape.
#[test]
fn no_sum_over_what_is_shown_goes_back() {
    sums_over_what_is_shown(Keeps::default());
    sums_over_what_is_shown(Keeps { native: true, examples: true });
}

/// What is kept by choice is there where it is chosen, and agrees with the counts.
fn agrees(counts: &Counts, keeps: Keeps) {
    for measure in Measure::ALL {
        let (native, count) = (counts.native(measure), counts.histogram(measure).count());
        assert!(keeps.native || native.is_none());
        if let Some(native) = native {
            let sum = native.zero() + native.buckets().map(|(_, count)| count).sum::<u64>();
            assert_eq!(sum, count, "{measure:?} {native:?}");
        } else {
            assert!(!keeps.native || count == 0, "{measure:?}");
        }
    }
    for (kind, tally) in counts.incidents.iter() {
        let example = counts.example(kind).map(|example| example.time);
        let expected = (keeps.examples && kind.0.is_race()).then_some(tally.last_seen);
        assert_eq!(example, expected, "{kind:?}");
    }
}

fn sums_over_what_is_shown(keeps: Keeps) {
    let mut state = 11_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    let mut table = Table::new(30, THRESHOLD, Nanos(0));
    table.keep(keeps);
    table.max_ports = 7;
    // Everything in one row.
    let mut all = Table::new(0, THRESHOLD, Nanos(0));
    let mut time = 0.0;
    let (mut rows, mut ports, mut others) = ([0; 6], [0; 6], [0; 6]);
    let (mut left_rows, mut left_ports) = ([0; 6], [0; 6]);
    let (mut was_left_out, mut was_shown_from_zero) = (0, 0);
    let mut before: Vec<RowKey> = Vec::new();
    for round in 0..300 {
        let is_quiet = round % 10 == 9;
        let room = OF_OTHERS + random(1500) as usize;
        let mut observe = |table: &mut Table| {
            time += 0.2;
            let ip = flood_ip(random(if round % 50 < 25 { 40 } else { 400 }) as u32);
            let mut here = origin(if random(2) == 0 { Client } else { Server }, ip);
            here.remote.port = 8080 + random(9) as u16;
            let observation = match random(8) {
                0 => Observation::Incident(incident(time, here, Class::StaleWrite)),
                1 => Observation::Incident(incident(time, here, Class::Farewell)),
                2 | 3 => reuse(time, here),
                n => close(time, here, Evidence::Idle, f64::from(n as u32)),
            };
            table.add(&observation);
            all.add(&observation);
        };
        for _ in 0..100 {
            observe(&mut table);
        }
        let mut collection = Collection::begin(&mut table, room, Some(at(f64::from(round) * 80.0)));
        while collection.step(&mut table) {
            if !is_quiet {
                (0..3).for_each(|_| observe(&mut table));
            }
        }
        let export = collection.finish(&mut table);
        assert_eq!(table.balance().unaccounted(), 0, "round {round}");

        let judged = |timeouts: &[Option<_>], expected: Option<f64>| {
            3 * timeouts.iter().flatten().count() + usize::from(expected.is_some()) + 1
        };
        let of_row = |counts: &Counts| export::series_of_row(counts, export.threshold);
        let of_port = |counts: &Counts| export::series_of_port(counts, export.threshold);
        let of_rows = export.rows.shown.iter().map(|row| {
            let advised = usize::from(row.advised.is_some());
            of_row(&row.counts) + judged(&row.timeouts, row.expected) + advised
        });
        let of_ports = export
            .ports
            .shown
            .iter()
            .map(|port| of_port(&port.counts) + judged(&port.timeouts, port.expected));
        let of_others = export.rows.others.iter().map(|(_, counts)| of_row(counts));
        let of_other_ports = export.ports.others.iter().map(|(_, counts)| of_port(counts));
        let series: usize = of_rows.chain(of_ports).chain(of_others).chain(of_other_ports).sum();
        assert!(series <= room, "round {round}: {series} series where {room} have room");

        export.rows.shown.iter().for_each(|row| agrees(&row.counts, keeps));
        export.ports.shown.iter().for_each(|port| agrees(&port.counts, keeps));
        export.rows.others.iter().for_each(|(_, counts)| agrees(counts, keeps));
        export.ports.others.iter().for_each(|(_, counts)| agrees(counts, keeps));

        let of_all = sums(&all);
        left_rows = plus(left_rows, sums_of_left(&export.rows));
        let now = plus(left_rows, sums_of_level(&export.rows));
        assert!(is_within(rows, now), "round {round}: {rows:?}, then {now:?}");
        assert!(is_within(now, of_all), "round {round}: {now:?} of {of_all:?}");
        rows = now;
        left_ports = plus(left_ports, sums_of_left(&export.ports));
        let now = plus(left_ports, sums_of_level(&export.ports));
        assert!(is_within(ports, now), "round {round}: {ports:?}, then {now:?}");
        assert!(is_within(now, of_all), "round {round}: {now:?} of {of_all:?}");
        ports = now;
        let [client, server] = &export.rows.others;
        let now = plus(sums_of(&client.1), sums_of(&server.1));
        assert!(is_within(others, now), "round {round}: {others:?}, then {now:?}");
        others = now;
        if is_quiet {
            assert_eq!([rows, ports], [of_all; 2], "round {round}: not all that there is");
        }
        for gone in [&table.gone, &table.gone_ports] {
            assert_eq!(gone.each_ref().map(Counts::total), [0, 0], "round {round}");
        }
        was_left_out += export.rows.left_out + export.ports.left_out;
        let new = export.rows.shown.iter().filter(|row| !before.contains(&row.key));
        was_shown_from_zero += new.filter(|row| row.counts.total() == 0).count();
        before = export.rows.shown.iter().map(|row| row.key).collect();
    }
    let evictions = [table.evictions(), table.port_evictions()];
    let enough = [was_left_out > 1000, was_shown_from_zero > 100, evictions > [300, 300]];
    assert_eq!(enough, [true; 3], "{was_left_out} {was_shown_from_zero} {evictions:?}");
}

/// A page, a report and a scrape let go of the same rows.
#[test]
fn what_is_not_seen_for_long_leaves_at_any_look() {
    for look in [
        |table: &mut Table, now| drop(Survey::begin(table, 10, None, now).finish(table)),
        |table: &mut Table, now| table.assess(now),
        |table: &mut Table, now| drop(Collection::begin(table, 5_000, Some(now)).finish(table)),
    ] {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        table.forget_after(Duration::from_hours(6));
        for (number, seen) in [(1, 0.0), (2, 20_000.0), (3, 0.0)] {
            let race = incident(seen, origin(Client, [10, 0, 1, number]), Class::StaleWrite);
            table.add(&Observation::Incident(race));
        }
        look(&mut table, at(22_000.0));
        let left: Vec<_> = table.rows().into_iter().map(|row| row.key.ip()).collect();
        assert_eq!(left, [Ipv4Addr::new(10, 0, 1, 2)]);
    }
}

/// A scrape each minute sees a row at zero before its first loss, even where that made the row.
#[test]
fn losses_begin_at_zero() {
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    let race =
        |time| Observation::Incident(incident(time, origin(Client, UPSTREAM), Class::StaleWrite));
    table.add(&race(1.0));
    let lost = |table: &mut Table, time: f64| {
        let export = Collection::begin(table, 5_000, Some(at(time))).finish(table);
        export.rows.shown.iter().map(|row| row.counts.races() - row.withheld).sum::<u64>()
    };
    assert_eq!(lost(&mut table, 10.0), 0);
    assert_eq!(lost(&mut table, 70.0), 0);
    assert_eq!(lost(&mut table, 81.0), 1);
    table.add(&race(82.0));
    assert_eq!(lost(&mut table, 85.0), 2);
}

#[test]
fn those_that_lost_requests_have_series_then_those_that_had_them() {
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    for n in 0..6 {
        for _ in 0..=n {
            table.add(&reuse(1.0, origin(Server, flood_ip(n))));
        }
    }
    // The port has 15 series, a row 16, and one more after a race.
    let shown = |table: &mut Table, rows: usize| {
        let export =
            Collection::begin(table, OF_OTHERS + 15 + rows * 16, Some(at(2.0))).finish(table);
        assert_eq!(export.rows.left_out, table.rows().len() - export.rows.shown.len());
        let mut shown: Vec<_> = export.rows.shown.iter().map(|row| row.key).collect();
        shown.sort_unstable();
        let number = |n: &u32| shown.contains(&key(Server, flood_ip(*n)));
        (0..6).filter(number).collect::<Vec<_>>()
    };
    assert_eq!(shown(&mut table, 3), [3, 4, 5]);
    for _ in 0..100 {
        table.add(&reuse(1.0, origin(Server, flood_ip(2))));
    }
    assert_eq!(shown(&mut table, 3), [3, 4, 5]);
    assert_eq!(shown(&mut table, 4), [2, 3, 4, 5]);
    let race = incident(2.0, origin(Server, flood_ip(0)), Class::LateRequest);
    table.add(&Observation::Incident(race));
    assert_eq!(shown(&mut table, 4), [0, 2, 5]);
}

/// What a scrape at this time shows: rows and ports by key, and all reuses of rows and of ports, with
/// those of what has left by now.
fn scraped(
    table: &mut Table,
    time: f64,
    left: &mut [u64; 2],
) -> (Vec<RowKey>, Vec<PortKey>, [u64; 2]) {
    let export = Collection::begin(table, 10_000, Some(at(time))).finish(table);
    let reuses = |counts: &Counts| counts.histogram(Measure::ReuseGap).count();
    let others = |others: &[(Role, Counts); 2]| others.iter().map(|(_, c)| reuses(c)).sum::<u64>();
    let rows: u64 = export.rows.shown.iter().map(|row| reuses(&row.counts)).sum();
    let ports: u64 = export.ports.shown.iter().map(|port| reuses(&port.counts)).sum();
    let mut keys: Vec<_> = export.rows.shown.iter().map(|row| row.key).collect();
    keys.sort_unstable();
    let [left_rows, left_ports] = left;
    *left_rows += export.rows.left.iter().map(|left| reuses(&left.counts)).sum::<u64>();
    *left_ports += export.ports.left.iter().map(|left| reuses(&left.counts)).sum::<u64>();
    let rows = rows + others(&export.rows.others) + *left_rows;
    let sums = [rows, ports + others(&export.ports.others) + *left_ports];
    (keys, export.ports.shown.iter().map(|port| port.key).collect(), sums)
}

#[test]
fn peers_of_whom_nothing_is_seen_leave_and_their_counts_stay() {
    let mut table = Table::new(100, THRESHOLD, Nanos(0));
    table.forget_after(Duration::from_secs(100));
    let peer = |n: u8| origin(Client, [10, 0, 0, n]);
    let server = || origin(Server, [10, 0, 9, 9]);
    // Every third of forty is seen again, and nothing more of a port of ours.
    (0..40).for_each(|n| table.add(&reuse(f64::from(n), peer(n))));
    (0..3).for_each(|_| table.add(&reuse(1.0, server())));
    (0..40).step_by(3).for_each(|n| table.add(&reuse(150.0, peer(n))));
    let mut left = [0; 2];
    let stays: Vec<_> = (0..40).step_by(3).map(|n| key(Client, [10, 0, 0, n])).collect();
    assert_eq!(scraped(&mut table, 90.0, &mut left).0.len(), 41);
    let (rows, ports, sums) = scraped(&mut table, 145.0, &mut left);
    assert_eq!((rows.as_slice(), ports.len(), sums), (stays.as_slice(), 1, [57, 57]));
    // Everything is in order: those that stayed can be found and evicted, newcomers get in.
    for (n, key) in (0..40).step_by(3).zip(&stays) {
        assert_eq!(table.row(key).unwrap().last_seen(), at(150.0), "{n}");
    }
    (100..200).for_each(|n| table.add(&reuse(160.0, peer(n))));
    let (rows, _, sums) = scraped(&mut table, 160.0, &mut left);
    assert_eq!((rows.len(), sums), (100, [157, 157]));
    assert_eq!(table.rows().len(), 100);
    // Without a limit nothing leaves.
    let mut table = Table::new(100, THRESHOLD, Nanos(0));
    table.add(&reuse(1.0, peer(1)));
    assert_eq!(scraped(&mut table, 1e6, &mut left).0.len(), 1);
}

#[test]
fn two_owners_in_a_namespace_have_rows_of_their_own() {
    let mut table = Table::new(100, THRESHOLD, Nanos(0));
    for owner in [1, 2, 2] {
        let origin = Origin { owner: Owner(owner), ..origin(Client, UPSTREAM) };
        table.add(&reuse(1.0, origin));
    }
    let counts: Vec<_> = table
        .rows()
        .iter()
        .map(|row| (row.key.owner.0, row.stats.counts.histogram(Measure::ReuseGap).count()))
        .collect();
    assert_eq!(counts, [(1, 1), (2, 2)]);
    assert_eq!(table.ports().len(), 2);
}
