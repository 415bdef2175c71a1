//! Ten thousand peers in one table for a week: are the rows bounded, and is the word for those that
//! race right?

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use finrace_logic::model::{Class, Evidence, How, Nanos, Observation, Role};
use finrace_logic::peer::RowKey;
use finrace_logic::table::Table;
use finrace_logic::verdict::State;

use crate::random::Random;
use crate::seen::{CLIENT, Host, Seen, Truth, nanos};
use crate::setting::Side;
use crate::world::THRESHOLD;

const HOUR: f64 = 3600.0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Peer {
    /// Closes idle connections after 5 s, now and then just before a request.
    Races,
    /// Closes idle connections after 60 s; no request has met that yet.
    Exposed,
    /// Its clients close first.
    Safe,
    /// Was seen, and is seen again hours later.
    Passing,
}

impl Peer {
    /// Of a hundred, one races, nine are exposed, twenty are safe.
    const fn of(number: usize) -> Self {
        match number % 100 {
            0 => Self::Races,
            1..=9 => Self::Exposed,
            10..=29 => Self::Safe,
            _ => Self::Passing,
        }
    }

    /// Seconds between two connections.
    const fn pace(self) -> f64 {
        match self {
            Self::Races => 120.0,
            Self::Exposed | Self::Safe => 300.0,
            Self::Passing => 4.0 * HOUR,
        }
    }

    const fn word(self) -> State {
        match self {
            Self::Races => State::Racing,
            Self::Exposed => State::Exposed,
            Self::Safe => State::Safe,
            Self::Passing => State::Unknown,
        }
    }
}

fn host(number: usize) -> Host {
    let number = u32::try_from(number).unwrap();
    let server = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number);
    Host { role: Role::Client, hz: 250.0, rtt: 0.001, server, client: CLIENT, pool: None }
}

/// What is seen of one connection that began at `time`.
fn connection(number: usize, time: f64, random: &mut Random) -> Vec<Seen> {
    let (peer, host) = (Peer::of(number), host(number));
    let (idle, evidence) = (How::Fin, Evidence::Idle);
    let gap = random.between(0.3, 4.5);
    let (reused, since) = (time + gap, time + gap + 0.01);
    let reuse = host.reuse(time, reused, random);
    let mut close = |by, timeout: f64| {
        let ends = since + timeout + random.between(0.0, 0.02);
        host.close((since, ends), by, (idle, evidence), Truth::Nothing, random)
    };
    match peer {
        Peer::Races => {
            let close = close(Side::Server, 5.0);
            if !random.is(0.4) {
                return vec![reuse, close];
            }
            let times = (since, since + 5.021, since + 5.02);
            let race = host.incident(Class::StaleWrite, times, Truth::Nothing, random);
            vec![reuse, close, race]
        }
        Peer::Exposed => vec![reuse, close(Side::Server, 60.0)],
        Peer::Safe => vec![reuse, close(Side::Client, 4.0)],
        Peer::Passing => {
            let how = (How::Fin, Evidence::AfterData);
            vec![host.close((time, time + 0.1), Side::Server, how, Truth::Nothing, random)]
        }
    }
}

/// What went wrong; a part of the week, and of the peers, if it has to be fast.
pub(crate) fn run(is_whole: bool) -> Vec<String> {
    let (peers, hours) = if is_whole { (10_000, 7.0 * 24.0) } else { (1_000, 6.0) };
    let mut failures = Vec::new();
    for max_rows in [peers / 5, peers] {
        failures.extend(fill(peers, max_rows, hours, is_whole));
    }
    failures
}

#[expect(clippy::disallowed_methods, reason = "how long it takes is to be shown")]
fn fill(peers: usize, max_rows: usize, hours: f64, is_shown: bool) -> Vec<String> {
    let started = Instant::now();
    let mut random = Random(7);
    let mut table = Table::new(max_rows, Duration::from_secs_f64(THRESHOLD), Nanos(0));
    let mut next: BinaryHeap<Reverse<(Nanos, usize)>> = (0..peers)
        .map(|number| Reverse((nanos(random.between(0.0, Peer::of(number).pace())), number)))
        .collect();
    let (mut seen, mut looking, mut looks) = (0_u64, Duration::ZERO, 0_u32);
    let mut look_at = Nanos(0) + Duration::from_hours(1);
    while let Some(Reverse((time, number))) = next.pop() {
        if time >= look_at {
            let before = Instant::now();
            table.assess(look_at);
            looking += before.elapsed();
            looks += 1;
            look_at = look_at + Duration::from_hours(1);
        }
        let now = time.since(Nanos(0)).as_secs_f64();
        if now > hours * HOUR {
            break;
        }
        for Seen { observation, .. } in connection(number, now, &mut random) {
            let mut observation = observation;
            if let Observation::Incident(incident) = &mut observation {
                incident.cause = table.cause(incident);
            }
            table.add(&observation);
            seen += 1;
        }
        let pace = Peer::of(number).pace() * random.between(0.5, 1.5);
        next.push(Reverse((nanos(now + pace), number)));
    }
    table.assess(nanos(hours * HOUR));
    let mut failures = Vec::new();
    let rows = table.rows().len();
    if rows > max_rows {
        failures.push(format!("{rows} rows where {max_rows} are the most"));
    }
    for peer in [Peer::Races, Peer::Exposed, Peer::Safe, Peer::Passing] {
        let mut counts = [0_u32; 3];
        for number in (0..peers).filter(|number| Peer::of(*number) == peer) {
            let origin = *connection(number, 0.0, &mut random)[0].observation.origin();
            let row = RowKey::of(&origin).and_then(|key| table.row(&key));
            let is_right = row.map(|row| row.stats.verdict() == Some(peer.word()));
            counts[match is_right {
                Some(true) => 0,
                Some(false) => 1,
                None => 2,
            }] += 1;
        }
        let [right, wrong, absent] = counts;
        if is_shown {
            println!("    {peer:?}: word right {right}, wrong {wrong}, without a row {absent}");
        }
        if peer == Peer::Races && wrong + absent > 0 {
            failures.push(format!(
                "of {peers} peers in {max_rows} rows, {right} that race have the right word, {wrong} \
                 the wrong one, {absent} no row"
            ));
        }
    }
    if is_shown {
        println!(
            "{peers} peers, {rows} rows of {max_rows}: {seen} observations in {:.1?}, of which each of \
             {looks} assessments took {:.1?}; {} evictions\n",
            started.elapsed(),
            looking / looks.max(1),
            table.evictions()
        );
    }
    failures
}
