//! From the first sign to the proof: nginx with its default timeout of 60 s towards gunicorn, which
//! closes after its default of 2 s.
//!
//! finrace must call the pair exposed before a request is lost, its advice must be a line that
//! nginx takes, and once that line is in place, it must call the races fixed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::setup::now;

use super::finrace::{Report, Reporting, Row};
use super::load::{Gaps, Load, during};
use super::metrics::Serving;
use super::table::Table;
use super::{Bench, SETTLE};
use crate::link::Link;
use crate::proxy::{Pools, Proxy};
use crate::software::{self, Kind, Place, Server};

const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Delay of the link, each way.
const ONE_WAY: Duration = Duration::from_millis(5);

/// Clients of each run before races are wanted.
const GENTLE: usize = 16;

/// Clients of each run that may race.
const RACERS: usize = 24;

/// Clients of each run with ordinary gaps.
const OTHERS: usize = 8;

/// How long the verdict may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// nginx, gunicorn, and what is known of them.
struct Run<'a> {
    name: String,
    namespace: Option<&'a str>,
    proxy: Proxy,
    server: Server,
    /// Seconds until the verdict, and until the first race, since the load began.
    exposed: Option<f64>,
    raced: Option<f64>,
    faults: Vec<String>,
}

impl<'a> Run<'a> {
    fn start(bench: &Bench, index: usize, link: &'a Link) -> Result<Self> {
        let has_delay = index % 2 == 1;
        let name = format!("{index} {}", if has_delay { "link" } else { "loopback" });
        let directory = bench.directory(&format!("fix/{}", name.replace(' ', "-")))?;
        let namespace = has_delay.then_some(link.client_ns());
        let place = Place {
            directory: &directory,
            client_ns: namespace,
            server_ns: has_delay.then_some(link.server_ns()),
            server_ip: if has_delay { link.server_ip() } else { [127, 0, 0, 1].into() },
            tls: false,
        };
        let server = software::start(Kind::Gunicorn, KEEP_ALIVE, &bench.software, place)?;
        let pools = Pools::new(server.address, RACERS + OTHERS);
        let proxy = Proxy::start(&directory, namespace, pools)?;
        let (exposed, raced, faults) = (None, None, Vec::new());
        Ok(Self { name, namespace, proxy, server, exposed, raced, faults })
    }

    fn load(&self, clients: std::ops::Range<usize>, gaps: Gaps, is_in_step: bool) -> Load<'a> {
        let (namespace, proxy) = (self.namespace, self.proxy.address);
        Load { namespace, proxy, clients, gaps, is_in_step, keep_alive: None }
    }

    /// Reaches gunicorn's 2 s now and then, and hardly ever hits it.
    fn gentle(&self) -> Vec<Load<'a>> {
        vec![self.load(0..GENTLE, Gaps::Mixed(0.25..1.2, 1.2..10.0, 0.2), false)]
    }

    /// Hits it often. Clients stay close together: gunicorn looks for what has expired once per
    /// turn of its loop, and so does that in the midst of their requests.
    fn racing(&self) -> Vec<Load<'a>> {
        let timeout = KEEP_ALIVE.as_secs_f64();
        let around = if self.namespace.is_some() { -0.013..0.01 } else { -0.002..0.004 };
        let around = timeout + around.start..timeout + around.end;
        vec![
            self.load(0..RACERS, Gaps::Uniform(around), true),
            self.load(RACERS..RACERS + OTHERS, Gaps::Uniform(0.3..1.5), false),
        ]
    }

    /// nginx's row.
    fn row<'r>(&self, report: &'r Report) -> Option<&'r Row> {
        report.row("client", &self.server.address.to_string())
    }

    /// Puts the advice of the first report into nginx's configuration.
    fn follow(&mut self, before: &Report) {
        let advice = self.row(before).and_then(|row| row.advice.first());
        let Some(line) = advice.and_then(|advice| advice.line.clone()) else {
            self.faults.push("no advice".to_owned());
            return;
        };
        let pools = Pools::new(self.server.address, RACERS + OTHERS);
        if let Err(error) = self.proxy.reload(pools.with_lines(&line)) {
            self.faults.push(format!("the advice `{line}` is none: {error:#}"));
        }
    }

    fn check(&mut self, after: &Report) {
        let row = self.row(after);
        let verdict = row.and_then(|row| row.verdict.as_deref()).unwrap_or("none");
        if verdict != "safe" {
            self.faults.push(format!("verdict {verdict} after the change, not safe"));
        }
        let status = row.and_then(|row| row.against.as_ref()).map_or("none", |a| &a.status);
        if status != "fixed" {
            self.faults.push(format!("against the report before it is {status}, not fixed"));
        }
    }

    /// Whether the verdict came before a race.
    fn is_in_time(&self) -> bool {
        self.exposed.is_some_and(|exposed| self.raced.is_none_or(|raced| exposed < raced))
    }
}

pub(super) fn run(bench: &Bench) -> Result<Vec<String>> {
    // How long to watch before and after the change.
    let (count, watch) = if bench.is_short { (3, "20s") } else { (10, "30s") };
    let directory = bench.directory("fix")?;
    let link = Link::new("frfix", ONE_WAY)?;
    let mut runs = (0..count)
        .map(|index| Run::start(bench, index, &link).with_context(|| format!("run {index}")))
        .collect::<Result<Vec<_>>>()?;

    let start = now();
    let serving = Serving::start(&bench.finrace, &directory)?;
    let loads: Vec<Load<'_>> = runs.iter().flat_map(Run::gentle).collect();
    during(&loads, || {
        while start.elapsed() < PATIENCE && !runs.iter().all(|run| run.exposed.is_some()) {
            poll(&serving, &mut runs, start)?;
        }
        Ok(())
    })?;

    println!("from {:.1} s on with a load that races", start.elapsed().as_secs_f64());
    let reporting = Reporting::start(&bench.finrace, &["--for", watch], "before", &directory)?;
    let loads: Vec<Load<'_>> = runs.iter().flat_map(Run::racing).collect();
    let (before, _) = during(&loads, || {
        let mut reporting = reporting;
        while reporting.is_running()? {
            poll(&serving, &mut runs, start)?;
        }
        reporting.stop()
    })?;
    // Its races are reported by then.
    sleep(SETTLE);
    poll(&serving, &mut runs, start)?;
    drop(serving);

    for run in &mut runs {
        run.follow(&before);
    }
    sleep(Duration::from_secs(1));
    let file = directory.join("before.json");
    let arguments = ["--for", watch, "--against", &file.to_string_lossy()];
    let reporting = Reporting::start(&bench.finrace, &arguments, "after", &directory)?;
    let (after, _) = during(&loads, || reporting.wait(Duration::from_mins(1)))?;
    for run in &mut runs {
        run.check(&after);
    }
    Ok(judge(&runs, &before, &after))
}

/// Notes which verdicts and races have come, a quarter of a second later.
fn poll(serving: &Serving, runs: &mut [Run<'_>], start: Instant) -> Result<()> {
    sleep(Duration::from_millis(250));
    let metrics = serving.scrape()?;
    let elapsed = start.elapsed().as_secs_f64();
    for run in runs {
        if run.raced.is_none() && metrics.races(run.server.address) > 0.0 {
            run.raced = Some(elapsed);
        }
        if run.exposed.is_none() && metrics.has_verdict(run.server.address, "exposed") {
            run.exposed = Some(elapsed);
        }
    }
    Ok(())
}

/// Prints the table; returns what is wrong.
fn judge(runs: &[Run<'_>], before: &Report, after: &Report) -> Vec<String> {
    let mut table = Table::new([
        "run",
        "exposed after",
        "first race",
        "races before",
        "advice",
        "races after",
        "verdict",
        "against",
    ]);
    let mut faults = Vec::new();
    for run in runs {
        let races = |report| run.row(report).map_or(0, |row| row.races.values().sum::<u64>());
        let seconds = |time: Option<f64>| time.map_or("-".to_owned(), |t| format!("{t:.1} s"));
        let or_dash = |text: Option<&String>| text.map_or("-", |text| text).to_owned();
        let advice = run.row(before).and_then(|row| row.advice.first());
        if races(before) == 0 {
            faults.push(format!("run {}: no race before the change", run.name));
        }
        faults.extend(run.faults.iter().map(|fault| format!("run {}: {fault}", run.name)));
        table.add([
            run.name.clone(),
            seconds(run.exposed),
            seconds(run.raced),
            races(before).to_string(),
            or_dash(advice.and_then(|advice| advice.line.as_ref())),
            races(after).to_string(),
            or_dash(run.row(after).and_then(|row| row.verdict.as_ref())),
            or_dash(run.row(after).and_then(|row| row.against.as_ref()).map(|a| &a.status)),
        ]);
    }
    println!("{table}");
    let in_time = runs.iter().filter(|run| run.is_in_time()).count();
    // By chance a race may come first, about once in ten times.
    if in_time + 1 < runs.len() {
        faults.push(format!("exposed before the first race in {in_time} of {} runs", runs.len()));
    }
    faults
}
