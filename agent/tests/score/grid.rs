//! The settings that are tried: drawn at random, several things at a time, always the same.

use crate::random::Random;
use crate::setting::{
    Backend, Change, Group, Kind, Late, Load, Noise, Ping, Pool, Process, Setting, Side, Timer,
};

/// Timeouts that software has by default.
const COMMON: [f64; 17] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 65.0, 75.0, 90.0, 120.0, 180.0,
    600.0,
];
const RTTS: [f64; 5] = [0.000_03, 0.001, 0.01, 0.04, 0.15];
const HZ: [f64; 3] = [100.0, 250.0, 1000.0];

/// How many settings of each group.
const COUNTS: [(Group, usize); 24] = [
    (Group::Plain, 80),
    (Group::Late, 60),
    (Group::Sweep, 60),
    (Group::AfterData, 30),
    (Group::Scattered, 60),
    (Group::Reload, 40),
    (Group::Crash, 30),
    (Group::TwoServers, 60),
    (Group::Farewell, 30),
    (Group::Change, 60),
    (Group::ClientFirst, 60),
    (Group::TwoPools, 30),
    (Group::Steady, 30),
    (Group::NoTimeout, 60),
    (Group::Control, 40),
    (Group::Leaking, 20),
    (Group::Dropping, 20),
    (Group::Racing, 80),
    (Group::SlowClose, 30),
    (Group::AgeLimit, 40),
    (Group::Restart, 30),
    (Group::Lazy, 30),
    (Group::Pings, 30),
    (Group::TwoProcesses, 30),
];

pub(crate) fn settings(seed: u64) -> Vec<Setting> {
    let groups = COUNTS.into_iter().flat_map(|(group, count)| vec![group; count]);
    let of = |(number, group)| {
        let number = number + 1;
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
        draw(number, group, seed)
    };
    groups.enumerate().map(of).collect()
}

fn draw(number: usize, group: Group, seed: u64) -> Setting {
    let mut random = Random(seed);
    let r = &mut random;
    let server = timer(r, group);
    let mut setting = Setting {
        number,
        group,
        seed: seed ^ 0x5eed,
        pools: vec![Pool { load: load(r, server.timeout), timer: None }],
        backends: vec![Backend { timer: Some(server), weight: 1.0 }],
        noise: None,
        change: None,
        rtt: r.pick(&RTTS),
        response: r.pick(&[0.001, 0.02, 0.2]),
        reaction: Some(r.pick(&[0.000_05, 0.000_2, 0.002])),
        is_lazy: false,
        ping: None,
        farewell: false,
        limit: None,
        client_hz: r.pick(&HZ),
        server_hz: r.pick(&HZ),
    };
    let share = r.between(0.1, 0.7);
    let noise = |kind, by| Some(Noise { kind, by, share, every: server.timeout });
    match group {
        Group::Plain | Group::Late | Group::Sweep | Group::Steady => {
            // A client that would close much later.
            if r.is(0.3) {
                let late = server.timeout * r.between(1.5, 4.0);
                setting.pools[0].timer = Some(timer(r, group).with(late));
            }
        }
        Group::Racing => {
            // Short timeouts and long round trips, for many races.
            let timer = timer(r, group).with(r.log_between(0.5, 20.0));
            setting.backends[0].timer = Some(timer);
            setting.pools[0].load = load(r, timer.timeout);
            setting.rtt = r.log_between(0.005, 0.2);
            setting.reaction = Some(r.log_between(0.000_05, 0.05));
        }
        Group::AfterData => setting.noise = noise(Kind::AfterData, Side::Server),
        Group::Scattered => {
            setting.noise =
                noise(Kind::Scattered, r.pick(&[Side::Server, Side::Server, Side::Client]));
        }
        Group::Reload => setting.noise = noise(Kind::Reload, Side::Server),
        Group::Crash => setting.noise = noise(Kind::Crash, Side::Server),
        Group::TwoServers => two_servers(&mut setting, server, r),
        Group::Farewell => {
            setting.farewell = true;
            if r.is(0.4) {
                setting.noise = noise(Kind::AfterData, Side::Server);
            }
        }
        Group::Change => {
            let ratio = r.log_between(1.3, 12.0);
            let is_longer = server.timeout < 2.0 || (r.is(0.5) && server.timeout < 100.0);
            let timeout = if is_longer { server.timeout * ratio } else { server.timeout / ratio };
            let after = 10 + u32::try_from(r.below(150)).unwrap();
            let timeout = timeout.max(0.4);
            setting.change = Some(Change { after, timeout, is_restart: r.is(0.5) });
            // Gaps that reach both timeouts.
            setting.pools[0].load = load(r, timeout.max(server.timeout));
        }
        Group::ClientFirst => client_first(&mut setting, server, r),
        Group::TwoPools => {
            let timeout = server.timeout * r.between(0.3, 0.9);
            let other = Pool { load: load(r, timeout), timer: Some(timer(r, group).with(timeout)) };
            setting.pools.push(other);
        }
        Group::NoTimeout => no_timeout(&mut setting, server.timeout, r),
        Group::Control => control(&mut setting, server.timeout, r),
        Group::Leaking => {
            setting.reaction = None;
            if r.is(0.5) {
                let much_later = server.timeout * r.between(2.0, 20.0);
                setting.pools[0].timer = Some(timer(r, group).with(much_later));
            }
            let beyond = Process::Exponential(server.timeout * r.between(0.5, 2.0));
            setting.pools[0].load = Load::Workers { count: 1 + r.below(20), gap: beyond };
        }
        Group::Dropping => dropping(&mut setting, server, r),
        Group::SlowClose => slow_close(&mut setting, server.timeout, r),
        Group::AgeLimit => age_limit(&mut setting, server, r),
        Group::Restart => restart(&mut setting, server, r),
        Group::Lazy => lazy(&mut setting, server, r),
        Group::Pings => pings(&mut setting, server, r),
        Group::TwoProcesses => two_processes(&mut setting, server, r),
    }
    setting
}

fn timeout(r: &mut Random) -> f64 {
    if r.is(0.6) { r.pick(&COMMON) } else { r.log_between(0.5, 600.0) }
}

fn timer(r: &mut Random, group: Group) -> Timer {
    let timeout = timeout(r);
    let late = match group {
        Group::Plain => Late::Exact,
        Group::Sweep => {
            let step = r.pick(&[1.0, 5.0, 30.0]);
            Late::Sweep(if step > timeout { 1.0 } else { step })
        }
        Group::Late => Late::UpTo(r.pick(&[0.001, 0.004, 0.01, 0.1, 0.5, 1.0])),
        _ => {
            let step = if timeout < 10.0 { 1.0 } else { 5.0 };
            let kinds = [Late::Exact, Late::UpTo(0.004), Late::UpTo(0.02), Late::UpTo(1.0)];
            if r.is(0.1) { Late::Sweep(step) } else { r.pick(&kinds) }
        }
    };
    Timer { timeout, late, jitter: r.pick(&[0.0, 0.001, 0.005, 0.02]) }
}

/// Traffic that comes near to a timeout, more or less.
fn load(r: &mut Random, timeout: f64) -> Load {
    let around = |r: &mut Random| match r.below(6) {
        0 | 1 => Process::Exponential(timeout * r.between(0.2, 1.2)),
        2 => {
            let width = r.pick(&[0.05, 0.3, 0.9]);
            Process::Uniform(timeout * (1.0 - width), timeout * (1.0 + width))
        }
        3 => {
            let every = timeout * r.pick(&[0.5, 0.95, 1.0, 1.0, 1.05]);
            Process::Periodic { every, jitter: (every * r.pick(&[0.001, 0.01, 0.1])).max(0.002) }
        }
        4 => Process::Pareto { least: timeout * r.between(0.01, 0.2), alpha: r.between(1.1, 1.6) },
        _ => Process::Exponential(timeout * r.between(0.8, 2.0)),
    };
    if r.is(0.55) {
        let gap = around(r);
        return Load::Workers { count: r.pick(&[1, 3, 10, 30]), gap };
    }
    let is_lifo = r.is(0.6);
    let (arrivals, burst) = match r.below(4) {
        // As many connections as there is work for within a timeout.
        0 => (Process::Exponential(timeout / r.log_between(1.0, 20.0)), 1),
        1 => (Process::Exponential(timeout * r.between(0.2, 1.5)), 1 + r.below(20)),
        2 => {
            let every = r.pick(&[5.0, 60.0, timeout * 0.7, timeout * 1.0]);
            (Process::Periodic { every, jitter: every * 0.01 }, 1 + r.below(20))
        }
        _ => (Process::Pareto { least: timeout * 0.02, alpha: 1.2 }, 1 + r.below(10)),
    };
    Load::Pool { arrivals, burst, is_lifo }
}

fn two_servers(setting: &mut Setting, first: Timer, r: &mut Random) {
    let ratio = r.log_between(1.3, 10.0);
    let second = if first.timeout > 60.0 { first.timeout / ratio } else { first.timeout * ratio };
    let share = r.between(0.1, 0.9);
    let second = Timer { timeout: second, ..timer(r, Group::Steady) };
    setting.backends = vec![
        Backend { timer: Some(first), weight: share },
        Backend { timer: Some(second), weight: 1.0 - share },
    ];
    setting.pools[0].load = load(r, first.timeout.max(second.timeout));
    if r.is(0.3) {
        setting.noise = Some(Noise {
            kind: r.pick(&[Kind::AfterData, Kind::Scattered, Kind::Reload]),
            by: Side::Server,
            share: r.between(0.1, 0.4),
            every: first.timeout,
        });
    }
}

/// Connections end, but by no idle timer.
fn no_timeout(setting: &mut Setting, scale: f64, r: &mut Random) {
    setting.backends[0].timer = None;
    let kind = r.pick(&[Kind::Scattered, Kind::Scattered, Kind::Reload, Kind::Crash]);
    let by = r.pick(&[Side::Server, Side::Server, Side::Client]);
    let every = scale * r.log_between(0.1, 10.0);
    setting.noise = Some(Noise { kind, by, share: 0.0, every });
}

/// Closes that have nothing to do with idle timeouts.
fn control(setting: &mut Setting, scale: f64, r: &mut Random) {
    setting.backends[0].timer = None;
    let kind = r.pick(&[Kind::AfterData, Kind::Unused, Kind::Unanswered]);
    let by = r.pick(&[Side::Server, Side::Client]);
    let every = scale * r.log_between(0.05, 1.0);
    setting.noise = Some(Noise { kind, by, share: 0.0, every });
    if r.is(0.4) {
        setting.pools[0].timer = Some(timer(r, Group::Steady).with(scale));
    }
}

fn client_first(setting: &mut Setting, server: Timer, r: &mut Random) {
    let timeout = server.timeout * r.pick(&[0.05, 0.3, 0.5, 0.8, 0.9, 0.98]);
    setting.pools[0].timer = Some(timer(r, Group::ClientFirst).with(timeout.max(0.3)));
    setting.pools[0].load = load(r, timeout);
    if r.is(0.3) {
        setting.backends[0].timer = None;
    }
    if r.is(0.3) {
        setting.noise = Some(Noise {
            kind: r.pick(&[Kind::AfterData, Kind::Reload, Kind::Scattered]),
            by: Side::Server,
            share: r.between(0.01, 0.3),
            every: server.timeout,
        });
    }
}

/// A middlebox forgets connections before either side closes them.
fn dropping(setting: &mut Setting, server: Timer, r: &mut Random) {
    let limit = r.pick(&[240.0, 350.0]);
    setting.limit = Some(limit);
    setting.backends[0].timer = r.is(0.5).then(|| server.with(limit * r.between(1.5, 5.0)));
    let gap = r.pick(&[
        Process::Exponential(limit * 0.5),
        Process::Uniform(limit * 0.5, limit * 1.2),
        Process::Exponential(limit * 0.15),
    ]);
    setting.pools[0].load = Load::Workers { count: 1 + r.below(20), gap };
}

/// Some answers take long, and the server closes after each of those.
fn slow_close(setting: &mut Setting, scale: f64, r: &mut Random) {
    setting.backends[0].timer = None;
    let work = r.log_between(0.3, 30.0);
    let work = r.pick(&[
        Process::Periodic { every: work, jitter: work * 0.01 },
        Process::Uniform(work * 0.5, work * 1.5),
        Process::Exponential(work),
    ]);
    let (by, share, every) = (Side::Server, 0.0, scale * r.log_between(0.05, 1.0));
    setting.noise = Some(Noise { kind: Kind::Slow(work), by, share, every });
    if r.is(0.3) {
        setting.pools[0].timer = Some(timer(r, Group::Steady).with(scale));
    }
}

/// The server closes connections that are old or have had many requests.
fn age_limit(setting: &mut Setting, server: Timer, r: &mut Random) {
    let (age, requests) = (server.timeout * r.log_between(0.8, 8.0), 2 + r.below(30));
    let lag = r.pick(&[0.000_1, 0.001, 0.01]);
    let requests = Kind::Requests(u32::try_from(requests).unwrap(), lag);
    let kind = r.pick(&[Kind::Age(age), requests]);
    setting.noise = Some(Noise { kind, by: Side::Server, share: 0.0, every: server.timeout });
    setting.backends[0].timer = r.is(0.5).then_some(server);
    // Requests that closely follow each other, and some that come at any time.
    let gap = r.pick(&[0.05, 0.3, 1.0]) * server.timeout;
    let gap = r.pick(&[
        Process::Exponential(gap),
        Process::Uniform(gap * 0.5, gap * 1.5),
        Process::Pareto { least: gap * 0.1, alpha: 1.3 },
    ]);
    setting.pools[0].load = Load::Workers { count: r.pick(&[1, 3, 10, 30]), gap };
}

/// Restarts in the middle of busy traffic.
fn restart(setting: &mut Setting, server: Timer, r: &mut Random) {
    setting.backends[0].timer = r.is(0.7).then_some(server);
    setting.rtt = r.log_between(0.001, 0.15);
    let every = server.timeout * r.log_between(5.0, 100.0);
    setting.noise = Some(Noise { kind: Kind::Restart, by: Side::Server, share: 0.0, every });
    let mean = server.timeout * r.log_between(0.02, 0.5);
    let gap = r.pick(&[
        Process::Exponential(mean),
        Process::Pareto { least: server.timeout * 0.02, alpha: 1.2 },
    ]);
    setting.pools[0].load = Load::Workers { count: r.pick(&[10, 30, 100]), gap };
}

/// A pool that looks for a FIN only before it uses a connection.
fn lazy(setting: &mut Setting, server: Timer, r: &mut Random) {
    (setting.reaction, setting.is_lazy) = (None, true);
    if r.is(0.5) {
        let timer = timer(r, Group::Racing).with(r.log_between(0.5, 20.0));
        setting.backends[0].timer = Some(timer);
        setting.pools[0].load = load(r, timer.timeout);
        setting.rtt = r.log_between(0.005, 0.2);
    } else if r.is(0.3) {
        let late = server.timeout * r.between(1.5, 4.0);
        setting.pools[0].timer = Some(timer(r, Group::Lazy).with(late));
    }
    // Otherwise those that got a FIN would lie at the bottom forever.
    if let Load::Pool { is_lifo, .. } = &mut setting.pools[0].load {
        *is_lifo = false;
    }
}

/// Silence is broken by pings, which the timers of requests do not count.
fn pings(setting: &mut Setting, server: Timer, r: &mut Random) {
    let server = server.with(server.timeout.max(2.0));
    let every = server.timeout / r.pick(&[1.5, 2.2, 3.0, 5.0, 7.3]);
    let by = r.pick(&[Side::Server, Side::Client]);
    setting.ping = Some(Ping { by, every, is_named: by == Side::Server || r.is(0.7) });
    setting.backends[0].timer = Some(server);
}

/// Two processes, whose pools have timers of their own.
fn two_processes(setting: &mut Setting, server: Timer, r: &mut Random) {
    let parts = r.pick(&[[0.3, 0.7], [0.5, 0.9], [0.5, 2.0], [0.8, 1.5]]);
    let pool = |r: &mut Random, part: f64| {
        let timer = timer(r, Group::Steady).with(server.timeout * part);
        Pool { load: load(r, server.timeout * part.min(1.0)), timer: Some(timer) }
    };
    setting.pools = parts.map(|part| pool(r, part)).to_vec();
}
