//! The idle timeouts of real servers, as finrace estimates them and as the wire has them.
//!
//! Connections come at irregular times, few at once: a server that looks for what has expired
//! once in a while shows that only to clients that do not come together.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::finrace::{Estimate, Report, Reporting};
use super::table::{Table, number};
use super::{Bench, SETTLE};
use crate::client::{Client, Random};
use crate::software::{self, Kind, Place, Server};
use crate::wire::Capture;
use crate::wire::truth::Connection;

/// Connections to each server, all of which it closes.
const CONNECTIONS: usize = 20;

/// The time over which they come.
const SPREAD_SECONDS: f64 = 8.0;

/// A capture that has fewer of a server's closes says too little.
const MIN_CLOSES: usize = 15;

/// How far finrace may be off: this share of the time on the wire, or this many seconds.
const TOLERANCE: (f64, f64) = (0.01, 0.05);

/// A server with one setting.
#[derive(Clone, Copy)]
struct Case {
    kind: Kind,
    keep_alive: Duration,
    tls: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls { "-tls" } else { "" };
        write!(f, "{}{tls} {} s", self.kind, self.keep_alive.as_secs_f64())
    }
}

impl Case {
    /// How long the server can be relied on to keep a connection.
    fn kept_seconds(self) -> f64 {
        let buffer = if self.kind == Kind::Node { 1.0 } else { 0.0 };
        self.keep_alive.as_secs_f64() + buffer
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for seconds in [1, 3] {
        let keep_alive = Duration::from_secs(seconds);
        cases.extend(Kind::ALL.map(|kind| Case { kind, keep_alive, tls: false }));
        let with_tls = [Kind::Nginx, Kind::Uvicorn, Kind::Gunicorn];
        cases.extend(with_tls.map(|kind| Case { kind, keep_alive, tls: true }));
    }
    cases
}

/// All servers at the same time, with one finrace and one capture.
pub(super) fn run(bench: &Bench) -> Result<Vec<String>> {
    let directory = bench.directory("idle")?;
    let cases = cases();
    let servers = start(bench, &cases)?;
    // For what Python and Java still have to do once they listen.
    sleep(Duration::from_secs(2));

    let ports: Vec<String> =
        servers.iter().map(|server| format!("port {}", server.address.port())).collect();
    let filter = format!("tcp and ({})", ports.join(" or "));
    let capture = Capture::start(&directory, None, &filter)?;
    let reporting = Reporting::start(&bench.finrace, &["--for", "5m"], "report", &directory)?;
    load(&cases, &servers)?;
    sleep(SETTLE);
    let report = reporting.stop()?;
    let truth = closes(&capture.finish()?);

    let mut table = Table::new([
        "server", "closes", "wire min", "median", "max", "finrace", "low", "high", "closes",
        "error",
    ]);
    let mut faults = Vec::new();
    for (case, server) in cases.iter().zip(&servers) {
        let wire = truth.get(&server.address).map_or(&[][..], Vec::as_slice);
        let row = Row { case: *case, wire, estimate: estimate(&report, server.address) };
        row.add_to(&mut table);
        faults.extend(row.faults().into_iter().map(|fault| format!("{case}: {fault}")));
    }
    println!("{table}");
    Ok(faults)
}

/// Starts all servers at once.
fn start(bench: &Bench, cases: &[Case]) -> Result<Vec<Server>> {
    scope(|scope| {
        let start = |case: &Case| {
            let case = *case;
            scope.spawn(move || {
                let directory = bench.directory(&format!("idle/{case}").replace(' ', "-"))?;
                let place = Place {
                    directory: &directory,
                    client_ns: None,
                    server_ns: None,
                    server_ip: [127, 0, 0, 1].into(),
                    tls: case.tls,
                };
                software::start(case.kind, case.keep_alive, &bench.software, place)
                    .with_context(|| case.to_string())
            })
        };
        let threads: Vec<_> = cases.iter().map(start).collect();
        threads
            .into_iter()
            .map(|t| t.join().map_err(|_panic| anyhow!("a starting thread panicked"))?)
            .collect()
    })
}

/// Opens all connections, and waits until the servers have closed them.
fn load(cases: &[Case], servers: &[Server]) -> Result<()> {
    scope(|scope| {
        let mut threads = Vec::new();
        for (case, server) in cases.iter().zip(servers) {
            for i in 0..CONNECTIONS {
                let seed = u64::from(server.address.port()) << 8 | i as u64;
                threads.push(scope.spawn(move || {
                    let connection = Connected { case: *case, address: server.address };
                    connection.run(Random(seed)).with_context(|| case.to_string())
                }));
            }
        }
        threads
            .into_iter()
            .try_for_each(|t| t.join().map_err(|_panic| anyhow!("a client's thread panicked"))?)
    })
}

/// One connection of the load.
struct Connected {
    case: Case,
    address: SocketAddr,
}

impl Connected {
    fn run(&self, mut random: Random) -> Result<()> {
        sleep(Duration::from_secs_f64(random.between(0.0, SPREAD_SECONDS)));
        let gap = random.between(0.25, 0.6) * self.case.kept_seconds();
        let gap = Duration::from_secs_f64(gap);
        if self.case.tls {
            exchange(Client::connect_tls(self.address, "/")?, gap)
        } else {
            exchange(Client::connect(self.address, "/")?, gap)
        }
    }
}

/// Two requests with a gap between them, then silence.
fn exchange<S: Read + Write>(mut client: Client<S>, gap: Duration) -> Result<()> {
    client.must()?;
    sleep(gap);
    client.must()?;
    client.wait_close()
}

/// Idle times at the server's closes, sorted, by server.
fn closes(connections: &[Connection]) -> HashMap<SocketAddr, Vec<f64>> {
    let mut closes: HashMap<SocketAddr, Vec<f64>> = HashMap::new();
    for connection in connections {
        closes.entry(connection.server).or_default().extend(connection.idle_close());
    }
    for times in closes.values_mut() {
        times.sort_by(f64::total_cmp);
    }
    closes
}

fn estimate(report: &Report, server: SocketAddr) -> Option<&Estimate> {
    report.row("client", &server.to_string())?.idle_timeout.peer.as_ref()
}

/// What is known of one server.
struct Row<'a> {
    case: Case,
    /// Sorted.
    wire: &'a [f64],
    estimate: Option<&'a Estimate>,
}

impl Row<'_> {
    /// The two values in the middle, or twice the one. All between them are medians.
    fn medians(&self) -> Option<(f64, f64)> {
        let last = self.wire.len().checked_sub(1)?;
        Some((*self.wire.get(last / 2)?, *self.wire.get(last.div_ceil(2))?))
    }

    /// How far the estimate lies from the nearest median.
    fn error(&self) -> Option<f64> {
        let (seconds, (low, high)) = (self.estimate?.seconds, self.medians()?);
        Some(seconds - seconds.clamp(low, high))
    }

    fn add_to(&self, table: &mut Table) {
        let of = |value: fn(&Estimate) -> Option<f64>| number(self.estimate.and_then(value));
        table.add([
            self.case.to_string(),
            self.wire.len().to_string(),
            number(self.wire.first().copied()),
            number(self.medians().map(|(low, high)| f64::midpoint(low, high))),
            number(self.wire.last().copied()),
            of(|e| Some(e.seconds)),
            of(|e| e.low_seconds),
            of(|e| e.high_seconds),
            self.estimate.map_or(0, |e| e.closes).to_string(),
            self.error().map_or_else(|| "-".to_owned(), |e| format!("{:+.1} ms", e * 1000.0)),
        ]);
    }

    fn faults(&self) -> Vec<String> {
        let allowed = |wire: f64| f64::max(wire * TOLERANCE.0, TOLERANCE.1);
        let mut faults = Vec::new();
        if self.wire.len() < MIN_CLOSES {
            faults.push(format!("only {} closes on the wire", self.wire.len()));
        }
        let (Some((median, _)), Some(smallest)) = (self.medians(), self.wire.first()) else {
            return faults;
        };
        let (Some(estimate), Some(error)) = (self.estimate, self.error()) else {
            faults.push("no estimate".to_owned());
            return faults;
        };
        if error.abs() > allowed(median) {
            let seconds = estimate.seconds;
            faults.push(format!("{seconds:.3} s, {:+.0} ms off the wire's median", error * 1000.0));
        }
        match estimate.low_seconds {
            None => faults.push("no low end of the estimate".to_owned()),
            Some(low) if low > smallest + allowed(*smallest) => faults.push(format!(
                "low end {low:.3} s, but closed after {smallest:.3} s: a timeout chosen by it races"
            )),
            Some(_) => {}
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(wire: &[f64], estimate: Option<(f64, f64)>) -> Vec<String> {
        let estimate = estimate.map(|(seconds, low)| Estimate {
            seconds,
            low_seconds: Some(low),
            high_seconds: None,
            closes: 20,
        });
        let case = Case { kind: Kind::Nginx, keep_alive: Duration::from_secs(1), tls: false };
        Row { case, wire, estimate: estimate.as_ref() }.faults()
    }

    #[test]
    fn requirements() {
        let wire = [vec![1.0; 8], vec![1.1; 8]].concat();
        assert!(faults(&wire, Some((1.05, 1.0))).is_empty());
        assert!(faults(&wire, Some((1.14, 1.05))).is_empty());
        for (estimate, expected) in [
            (None, "no estimate"),
            (Some((1.2, 1.0)), "1.200 s, +100 ms off"),
            (Some((1.06, 1.06)), "low end 1.060 s, but"),
        ] {
            let faults = faults(&wire, estimate);
            assert!(faults.len() == 1 && faults[0].starts_with(expected), "{faults:?}");
        }
        assert_eq!(faults(&[], None), ["only 0 closes on the wire"]);
    }
}
