//! Holds finrace's reports against the truth, connection by connection, and against the proxy's
//! own 502s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::wire::truth::{Class, Connection};

/// How far nginx's log and a race may lie apart, in seconds: the log is written when the failure
/// has come back to the client.
const LOG_SLACK: f64 = 0.1;

/// One line of finrace's JSON output.
#[derive(Debug)]
struct Report {
    /// Seconds of the day, UTC.
    time: f64,
    is_race: bool,
    /// As the client's end reports it, if that was seen.
    class: String,
    local: SocketAddr,
    peer: SocketAddr,
    line: String,
}

/// Reads the reports among the lines that `finrace watch --json` has printed.
fn reports(output: &str) -> Result<Vec<Report>> {
    let lines = output.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| report(line).with_context(|| format!("finrace: `{line}`"))).collect()
}

fn report(line: &str) -> Result<Report> {
    let value: Value = serde_json::from_str(line)?;
    let text = |value: &Value, name| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let field = |name| text(&value, name).with_context(|| format!("no `{name}`"));
    let views = [Some(&value), value.get("other_view")];
    let client = views.into_iter().flatten().find(|v| text(v, "role").as_deref() == Some("client"));
    Ok(Report {
        time: time_of_day(&field("time")?).context("time")?,
        is_race: field("event")? == "race",
        class: client.and_then(|v| text(v, "class")).or(text(&value, "class")).unwrap_or_default(),
        local: field("local")?.parse().context("local")?,
        peer: field("peer")?.parse().context("peer")?,
        line: line.to_owned(),
    })
}

/// Seconds since midnight of `2026-01-02T03:04:05.678Z`.
fn time_of_day(text: &str) -> Option<f64> {
    let (_, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    Some(next()? * 3600.0 + next()? * 60.0 + next()?)
}

/// A request that nginx answered with 502.
#[derive(Debug)]
struct Failure {
    /// Seconds since the epoch.
    time: f64,
    upstream: SocketAddr,
}

/// Reads the 502s from nginx's access log.
fn failures(log: &str) -> Result<Vec<Failure>> {
    let mut failures = Vec::new();
    for line in log.lines() {
        let mut fields = line.split(' ');
        let mut next = || fields.next().with_context(|| format!("access log: `{line}`"));
        let (time, status, _, upstream) = (next()?, next()?, next()?, next()?);
        if status == "502" {
            failures.push(Failure { time: time.parse()?, upstream: upstream.parse()? });
        }
    }
    Ok(failures)
}

/// Seconds between two times, of which one may lack its date.
fn apart(a: f64, b: f64) -> f64 {
    const DAY: f64 = 86_400.0;
    let apart = (a - b).rem_euclid(DAY);
    apart.min(DAY - apart)
}

/// How many of the 502s have no race of their own, at the same upstream and the same time.
fn unexplained(failures: &[Failure], races: impl Iterator<Item = (f64, SocketAddr)>) -> usize {
    let mut races: Vec<_> = races.map(Some).collect();
    let explains = |failure: &Failure, race: &Option<(f64, SocketAddr)>| {
        race.is_some_and(|(time, server)| {
            server == failure.upstream && apart(time, failure.time) <= LOG_SLACK
        })
    };
    failures
        .iter()
        .filter(|failure| match races.iter_mut().find(|race| explains(failure, race)) {
            Some(race) => race.take().is_none(),
            None => true,
        })
        .count()
}

/// Races by class, as finrace words it.
pub(super) type Counts = BTreeMap<String, usize>;

/// What one setting has shown, or several together.
#[derive(Clone, Debug, Default)]
pub(super) struct Score {
    pub(super) requests: usize,
    pub(super) failures: usize,
    /// 502s for which the truth has no race.
    pub(super) unexplained_by_truth: usize,
    /// 502s for which finrace has no race.
    pub(super) unexplained: usize,
    pub(super) truth: Counts,
    pub(super) finrace: Counts,
    /// Races that both know.
    pub(super) found: usize,
    /// How many of those have the right class.
    pub(super) right_class: usize,
    pub(super) missed: usize,
    /// finrace's races that are not races, or were reported before.
    pub(super) false_reports: usize,
}

impl Score {
    pub(super) fn races(&self) -> usize {
        self.truth.values().sum()
    }

    /// Share of the races that finrace has reported.
    pub(super) fn recall(&self) -> f64 {
        ratio(self.found, self.races())
    }

    /// Share of finrace's races that are races.
    pub(super) fn precision(&self) -> f64 {
        ratio(self.found, self.found + self.false_reports)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.unexplained_by_truth += other.unexplained_by_truth;
        self.unexplained += other.unexplained;
        self.found += other.found;
        self.right_class += other.right_class;
        self.missed += other.missed;
        self.false_reports += other.false_reports;
        for (sum, counts) in [(&mut self.truth, &other.truth), (&mut self.finrace, &other.finrace)]
        {
            for (class, count) in counts {
                *sum.entry(class.clone()).or_default() += count;
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few thousand")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// Compares the three accounts of one setting; returns the score, and each disagreement in full.
pub(super) fn compare(
    requests: usize,
    access_log: &str,
    truth: &[Connection],
    finrace: &str,
) -> Result<(Score, String)> {
    let failures = failures(access_log)?;
    let reports = reports(finrace)?;
    let races: Vec<(&Connection, Class)> =
        truth.iter().filter_map(|c| Some((c, c.race?))).collect();

    let mut score = Score {
        requests,
        failures: failures.len(),
        unexplained_by_truth: unexplained(&failures, races.iter().map(|(c, _)| (c.time, c.server))),
        unexplained: unexplained(
            &failures,
            // Either end may be the upstream.
            reports.iter().filter(|r| r.is_race).map(|r| (r.time, upstream(r, &failures))),
        ),
        ..Score::default()
    };
    for (_, class) in &races {
        *score.truth.entry(class.as_str().to_owned()).or_default() += 1;
    }

    let mut details = String::new();
    let mut reported = BTreeSet::new();
    for report in reports.iter().filter(|r| r.is_race) {
        *score.finrace.entry(report.class.clone()).or_default() += 1;
        let is_its = |c: &Connection| is_of(report, c);
        // A client's port may come back within the run: the nearest in time is meant.
        let race = (races.iter().enumerate())
            .filter(|(_, (c, _))| is_its(c))
            .min_by(|(_, (a, _)), (_, (b, _))| {
                apart(report.time, a.time).total_cmp(&apart(report.time, b.time))
            })
            .map(|(index, _)| index);
        let found = race.filter(|i| reported.insert(*i)).and_then(|i| races.get(i));
        if let Some((connection, class)) = found {
            score.found += 1;
            if class.as_str() == report.class {
                score.right_class += 1;
            } else {
                writeln!(details, "CLASS, truth {class}: {}", report.line)?;
                writeln!(details, "{connection}")?;
            }
        } else {
            score.false_reports += 1;
            let what = if race.is_some() { "TWICE" } else { "FALSE" };
            writeln!(details, "{what}: {}", report.line)?;
            for connection in truth.iter().filter(|c| is_its(c)) {
                writeln!(details, "{connection}")?;
            }
        }
    }
    for (i, (connection, class)) in races.iter().enumerate() {
        if !reported.contains(&i) {
            score.missed += 1;
            writeln!(details, "MISSED, truth {class}: {connection}")?;
            for report in reports.iter().filter(|r| is_of(r, connection)) {
                writeln!(details, "  {}", report.line)?;
            }
        }
    }
    Ok((score, details))
}

/// Whether the report, from either end, is about this connection.
fn is_of(report: &Report, connection: &Connection) -> bool {
    let ends = (connection.client, connection.server);
    (report.local, report.peer) == ends || (report.peer, report.local) == ends
}

/// The end of the reported connection that nginx knows as an upstream.
fn upstream(report: &Report, failures: &[Failure]) -> SocketAddr {
    let is_upstream = failures.iter().any(|f| f.upstream == report.local);
    if is_upstream { report.local } else { report.peer }
}

/// The classes of truth and finrace in one table row each.
pub(super) struct Table<'a> {
    pub(super) rows: &'a [(String, Score)],
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut classes: Vec<&str> = Class::ALL.iter().map(|c| c.as_str()).collect();
        // What finrace may say beyond the truth's words.
        for (_, score) in self.rows {
            for class in score.finrace.keys() {
                if !classes.contains(&class.as_str()) {
                    classes.push(class);
                }
            }
        }
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        writeln!(f, "Races by class, truth/finrace:")?;
        write!(f, "{:width$} requests  502", "setting")?;
        for class in &classes {
            write!(f, " {class:>w$}", w = class.len().max(9))?;
        }
        writeln!(f, "  found class missed false  502s without: truth finrace")?;
        for (name, score) in self.rows {
            write!(f, "{name:width$} {:8} {:4}", score.requests, score.failures)?;
            for class in &classes {
                let of = |counts: &Counts| counts.get(*class).copied().unwrap_or(0);
                let cell = format!("{}/{}", of(&score.truth), of(&score.finrace));
                write!(f, " {cell:>w$}", w = class.len().max(9))?;
            }
            writeln!(
                f,
                " {:6} {:5} {:6} {:5} {:20} {:7}",
                score.found,
                score.right_class,
                score.missed,
                score.false_reports,
                score.unexplained_by_truth,
                score.unexplained
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::truth::{connections, parse};

    /// A connection from client port 1000 whose request of 300 bytes met a FIN, and one from port
    /// 1001 whose request was answered.
    fn truth() -> Vec<Connection> {
        let segment = |stream, time, client: bool, rest: &str| {
            let (client_end, server_end) = (format!("10.0.0.1\t{}", 1000 + stream), "10.0.0.2\t80");
            let (from, to) =
                if client { (&*client_end, server_end) } else { (server_end, &*client_end) };
            let rest = rest.replace(' ', "\t");
            format!("{time}\t{stream}\t{from}\t{to}\t{rest}\t1\n")
        };
        let both: String = [0, 1]
            .into_iter()
            .map(|stream| {
                [
                    segment(stream, 5.0, true, "0x2 0 0 0"),
                    segment(stream, 5.0, false, "0x12 0 1 0"),
                    segment(stream, 6.0, true, "0x18 1 1 300"),
                    if stream == 0 {
                        segment(stream, 6.0, false, "0x11 1 1 0")
                    } else {
                        segment(stream, 6.0, false, "0x18 1 301 300")
                    },
                ]
                .concat()
            })
            .collect();
        connections(parse(&both).unwrap())
    }

    fn race(class: &str, role: &str, local: &str, peer: &str, more: &str) -> String {
        format!(
            r#"{{"time":"1970-01-01T00:00:06.010Z","event":"race","class":"{class}","role":"{role}","local":"{local}","peer":"{peer}"{more}}}"#
        )
    }

    /// Expected: found, right class, missed, false, 502s without race.
    fn check(output: &str, expected: [usize; 5]) {
        let log = "5.5 200 200 10.0.0.2:80\n6.02 502 502 10.0.0.2:80\n";
        let (s, details) = compare(2, log, &truth(), output).unwrap();
        let got = [s.found, s.right_class, s.missed, s.false_reports, s.unexplained];
        assert_eq!(got, expected, "{details}");
        assert_eq!((s.failures, s.unexplained_by_truth), (1, 0));
    }

    #[test]
    fn agreements_and_disagreements() {
        let (client, answered, server) = ("10.0.0.1:1000", "10.0.0.1:1001", "10.0.0.2:80");
        let right = race("fin_crossed", "client", client, server, "");
        check(&format!("attached\n{right}\n"), [1, 1, 0, 0, 0]);
        check("", [0, 0, 1, 0, 1]);
        check(&right.replace("\"race\"", "\"incident\""), [0, 0, 1, 0, 1]);
        check(&format!("{right}\n{right}"), [1, 1, 0, 1, 0]);
        check(&race("stale_write", "client", client, server, ""), [1, 0, 0, 0, 0]);
        // The server's view leads: the client's class counts, if there is one.
        check(&race("late_request", "server", server, client, ""), [1, 0, 0, 0, 0]);
        let other = r#","other_view":{"role":"client","class":"fin_crossed"}"#;
        check(&race("late_request", "server", server, client, other), [1, 1, 0, 0, 0]);
        check(&race("fin_crossed", "client", answered, server, ""), [0, 0, 1, 1, 0]);
        // Too late for the 502.
        check(&right.replace(":06.010", ":06.310"), [1, 1, 0, 0, 1]);
    }
}
