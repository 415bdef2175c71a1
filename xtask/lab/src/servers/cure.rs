//! Advice put to the test: each software gets the line that finrace advises, and must lose nothing from
//! then on; and the verdict must go away within minutes, while one agent watches all the time.
//!
//! All cases run at the same time, over a link with a delay, in front of servers that close after
//! 2 s. Proxies and pools are clients themselves; a server's case has a client that keeps 5 s.

mod pools;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::setup::{self, Process, now, server_port, wait_port};

use self::pools::{Counts, Library, Pool, Proxy, RUNTIME_CLIENTS};
use super::finrace::{Report, Row};
use super::load::{Gaps, Load, Tally, during};
use super::metrics::Serving;
use super::table::Table;
use super::{Bench, SETTLE};
use crate::link::Link;
use crate::software::{self, Kind, Place, START, Server};

/// All servers close after that.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The timeout that Node is given for that: it closes a second later.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// Delay of the link, each way.
const ONE_WAY: Duration = Duration::from_millis(5);

/// For how long the load runs before the change, and at least after it.
const BEFORE: Duration = Duration::from_secs(45);

/// How long the verdict may take to go away.
const PATIENCE: Duration = Duration::from_mins(6);

/// Clients whose gaps meet the timeout, and others.
const RACERS: usize = 9;
const OTHERS: usize = 3;

/// How long the client keeps connections to a server whose setting is changed.
const CLIENT_KEEPS: Duration = Duration::from_secs(5);

/// Whose setting must be changed.
#[derive(Clone, Copy, Debug)]
enum Subject {
    /// A proxy's pool.
    Proxy(Proxy),
    /// A library's pool, within a runtime.
    Library(Library),
    /// The server's own.
    Server,
}

#[derive(Debug)]
struct Case {
    name: &'static str,
    subject: Subject,
    server: Kind,
    /// The setting that has to be named.
    setting: &'static str,
    /// For advice without a line, since no process reveals the library: how its setting is written.
    /// `{}` is the advised value in seconds.
    line: Option<&'static str>,
}

const fn proxy(name: &'static str, proxy: Proxy, setting: &'static str) -> Case {
    let (subject, server) = (Subject::Proxy(proxy), Kind::Uvicorn);
    Case { name, subject, server, setting, line: None }
}

const fn library(
    name: &'static str,
    library: Library,
    setting: &'static str,
    line: Option<&'static str>,
) -> Case {
    let (subject, server) = (Subject::Library(library), Kind::Uvicorn);
    Case { name, subject, server, setting, line }
}

const fn server(name: &'static str, server: Kind, setting: &'static str) -> Case {
    Case { name, subject: Subject::Server, server, setting, line: None }
}

const CASES: [Case; 12] = [
    proxy("nginx", Proxy::Nginx, "keepalive_timeout"),
    proxy("HAProxy", Proxy::Haproxy, "pool-purge-delay"),
    proxy("Apache httpd", Proxy::Apache, "ttl"),
    proxy("Caddy", Proxy::Caddy, "keepalive"),
    library("Node http.Agent", Library::Node, "http.Agent", None),
    library(
        "aiohttp",
        Library::Aiohttp,
        "keepalive_timeout of TCPConnector",
        Some("connector=aiohttp.TCPConnector(keepalive_timeout={})"),
    ),
    library(
        "httpx",
        Library::Httpx,
        "keepalive_expiry",
        Some(
            "limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, \
             keepalive_expiry={})",
        ),
    ),
    server("gunicorn", Kind::Gunicorn, "--keep-alive"),
    server("uvicorn", Kind::Uvicorn, "--timeout-keep-alive"),
    server("Node server", Kind::Node, "server.keepAliveTimeout"),
    server("Apache httpd server", Kind::Apache, "KeepAliveTimeout"),
    Case {
        line: Some("keepAliveTimeout=\"{}000\""),
        ..server("Tomcat", Kind::Tomcat, "keepAliveTimeout")
    },
];

/// What was advised.
#[derive(Clone, Debug, Default)]
struct Advised {
    line: Option<String>,
    text: String,
    seconds: Option<f64>,
}

/// A case at work.
struct Run<'a> {
    case: &'static Case,
    bench: &'a Bench,
    link: &'a Link,
    directory: PathBuf,
    server: Option<Server>,
    address: SocketAddr,
    /// The address of a proxy.
    front: SocketAddr,
    advised: Advised,
    before: Counts,
    after: Counts,
    verdict_before: String,
    verdict_after: String,
    /// How long after the change the verdict went away.
    left: Option<Duration>,
    faults: Vec<String>,
}

impl<'a> Run<'a> {
    fn start(bench: &'a Bench, link: &'a Link, case: &'static Case) -> Result<Self> {
        let directory = bench.directory(&format!("cure/{}", case.name.replace(' ', "-")))?;
        let address = SocketAddr::new(link.server_ip(), server_port()?);
        let front = match case.subject {
            Subject::Proxy(_) => SocketAddr::from(([127, 0, 0, 1], server_port()?)),
            Subject::Library(_) | Subject::Server => address,
        };
        let (advised, before, after) = (Advised::default(), Counts::default(), Counts::default());
        let mut run = Self {
            case,
            bench,
            link,
            directory,
            server: None,
            address,
            front,
            advised,
            before,
            after,
            verdict_before: "none".to_owned(),
            verdict_after: "none".to_owned(),
            left: None,
            faults: Vec::new(),
        };
        run.start_server("")?;
        Ok(run)
    }

    fn start_server(&mut self, line: &str) -> Result<()> {
        // The port has to be free again.
        self.server = None;
        let place = Place {
            directory: &self.directory,
            client_ns: Some(self.link.client_ns()),
            server_ns: Some(self.link.server_ns()),
            server_ip: self.link.server_ip(),
            tls: false,
        };
        let kind = self.case.server;
        let keep_alive = if kind == Kind::Node { NODE_TIMEOUT } else { TIMEOUT };
        let software = &self.bench.software;
        self.server =
            Some(software::start_at(self.address, kind, keep_alive, software, place, line)?);
        Ok(())
    }

    /// Starts the proxy or the library's program, with a line of advice or none.
    fn start_pool(&self, line: &str, name: &str) -> Result<Option<Process>> {
        let directory = self.directory.join(name);
        let directory = setup::empty_directory(directory)?;
        let namespace = self.link.client_ns();
        let pool = Pool {
            directory: &directory,
            namespace,
            server: self.address,
            front: self.front,
            python: &self.bench.software.python,
            line,
        };
        match self.case.subject {
            Subject::Proxy(proxy) => {
                let process = pool.proxy(proxy)?;
                crate::link::within(Some(namespace), || wait_port(self.front, START))
                    .with_context(|| process.output().unwrap_or_default())?;
                Ok(Some(process))
            }
            Subject::Library(library) => {
                let around = around();
                pool.library(library, &around, RACERS + OTHERS).map(Some)
            }
            Subject::Server => Ok(None),
        }
    }

    /// Nothing where the program loads the server by itself.
    fn loads(&self) -> Vec<Load<'a>> {
        let keep_alive = match self.case.subject {
            Subject::Library(_) => return Vec::new(),
            Subject::Proxy(_) => None,
            Subject::Server => Some(CLIENT_KEEPS),
        };
        let load = |clients, gaps| Load {
            namespace: Some(self.link.client_ns()),
            proxy: self.front,
            clients,
            gaps,
            // Some servers look for what has expired when they are woken.
            is_in_step: true,
            keep_alive,
        };
        let short = 0.3..1.0;
        let kept = CLIENT_KEEPS.as_secs_f64();
        let others = match self.case.subject {
            // Reaches the client's own timeout, once the server keeps more than that.
            Subject::Server => Gaps::Mixed(short, kept + 0.2..kept + 0.5, 0.3),
            Subject::Proxy(_) | Subject::Library(_) => Gaps::Uniform(short),
        };
        let racers = Gaps::Uniform(around());
        vec![load(0..RACERS, racers), load(RACERS..RACERS + OTHERS, others)]
    }

    fn row<'r>(&self, report: &'r Report) -> Option<&'r Row> {
        report.row("client", &self.address.to_string())
    }

    fn verdict(&self, report: &Report) -> String {
        let verdict = self.row(report).and_then(|row| row.verdict.clone());
        verdict.unwrap_or_else(|| "none".to_owned())
    }

    /// Takes the advice from a report: a server's is that for the other side, as both ends are here.
    fn take_advice(&mut self, report: &Report) -> Result<()> {
        self.verdict_before = self.verdict(report);
        let row = self.row(report).context("no row")?;
        let first = row.advice.first().context("no advice")?;
        self.advised = match self.case.subject {
            Subject::Proxy(_) | Subject::Library(_) => Advised {
                line: first.line.clone(),
                text: first.text.clone(),
                seconds: Some(first.seconds),
            },
            Subject::Server => {
                let mut others = row.alternatives.iter();
                let other = others.find(|other| other.kind == "other_side");
                let other = other.context("one side only")?;
                Advised {
                    line: other.line.clone(),
                    text: other.text.clone(),
                    seconds: seconds_of(&other.text),
                }
            }
        };
        if !self.advised.text.contains(self.case.setting) {
            self.faults
                .push(format!("`{}` is not named: {}", self.case.setting, self.advised.text));
        }
        Ok(())
    }

    /// The line to apply; nothing where there is none, which is a fault.
    fn line(&mut self) -> String {
        let Advised { line, text, seconds } = &self.advised;
        match (line, self.case.line, seconds) {
            (Some(line), None, _) => line.clone(),
            (None, Some(line), Some(seconds)) => line.replace("{}", &seconds.to_string()),
            _ => {
                self.faults.push(format!("no line, or one too many: {text}"));
                String::new()
            }
        }
    }

    fn judge(&mut self) {
        if self.before.failed == 0 {
            self.faults.push(format!("no request lost of {} before", self.before.requests));
        }
        if !matches!(&*self.verdict_before, "racing" | "exposed") {
            self.faults.push(format!("verdict {} before", self.verdict_before));
        }
        if self.after.requests < 50 {
            self.faults.push(format!("only {} requests after", self.after.requests));
        }
        if self.after.failed > 0 {
            let Counts { failed, requests, .. } = self.after;
            self.faults.push(format!("{failed} of {requests} requests lost after"));
        }
        if self.left.is_none() {
            self.faults.push(format!("verdict {} after", self.verdict_after));
        }
    }
}

/// The value in `keep idle connections for 65 s`.
fn seconds_of(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once("idle connections for ")?;
    rest.split_once(' ')?.0.parse().ok()
}

/// Gaps that meet the timeout.
fn around() -> std::ops::Range<f64> {
    let timeout = TIMEOUT.as_secs_f64();
    timeout - 0.015..timeout + 0.01
}

/// Loads all of them while `body` runs, and returns what each application counts.
fn load<'a>(
    runs: &mut [Run<'a>],
    lines: &[String],
    name: &str,
    body: impl FnOnce(&mut [Run<'a>]) -> Result<()>,
) -> Result<Vec<Counts>> {
    let pools: Vec<Option<Process>> = runs
        .iter()
        .zip(lines)
        .map(|(run, line)| run.start_pool(line, name).with_context(|| run.case.name))
        .collect::<Result<_>>()?;
    let each: Vec<Vec<Load<'_>>> = runs.iter().map(Run::loads).collect();
    let loads: Vec<Load<'_>> = each.iter().flatten().cloned().collect();
    let ((), tallies) = during(&loads, || body(runs))?;
    let mut tallies = tallies.into_iter();
    let mut counts = Vec::new();
    for (loads, pool) in each.iter().zip(pools) {
        counts.push(match (loads.is_empty(), pool) {
            (true, Some(program)) => Counts::read(&program.stop()?)?,
            // What a server answers, it has not lost; a proxy answers for the server.
            (_, proxy) => {
                let failed = |tally: Tally| if proxy.is_some() { tally.failed } else { 0 };
                let of_it = tallies.by_ref().take(loads.len());
                of_it.fold(Counts::default(), |sum, tally| Counts {
                    requests: sum.requests + tally.requests,
                    failed: sum.failed + tally.lost + failed(tally),
                    ..sum
                })
            }
        });
    }
    Ok(counts)
}

pub(super) fn run(bench: &Bench) -> Result<Vec<String>> {
    setup::ensure(RUNTIME_CLIENTS.debian)?;
    setup::python(RUNTIME_CLIENTS.wheels)?;
    let link = Link::new(&format!("frcure{}", std::process::id()), ONE_WAY)?;
    let directory = bench.directory("cure")?;
    let mut runs = CASES
        .iter()
        .filter(|case| {
            bench.only.is_empty() || bench.only.iter().any(|name| case.name.contains(&**name))
        })
        .map(|case| Run::start(bench, &link, case).context(case.name))
        .collect::<Result<Vec<_>>>()?;
    ensure!(!runs.is_empty(), "no software of that name");
    let serving = Serving::start(&bench.finrace, &directory)?;

    let none = vec![String::new(); runs.len()];
    let counts = load(&mut runs, &none, "before", |_| {
        sleep(BEFORE);
        Ok(())
    })?;
    // Its races are reported by then.
    sleep(SETTLE);
    let report = serving.report(&directory.join("before.json"))?;
    for (run, counts) in runs.iter_mut().zip(counts) {
        run.before = counts;
        if let Err(error) = run.take_advice(&report) {
            run.faults.push(format!("{error:#}"));
        }
        println!("{}: {}", run.case.name, run.advised.text);
    }

    let lines: Vec<String> = runs.iter_mut().map(Run::line).collect();
    let mut of_pools = Vec::new();
    for (run, line) in runs.iter_mut().zip(&lines) {
        if matches!(run.case.subject, Subject::Server) {
            run.start_server(line).with_context(|| format!("`{line}`"))?;
            of_pools.push(String::new());
        } else {
            of_pools.push(line.clone());
        }
    }
    let counts = load(&mut runs, &of_pools, "after", |runs| {
        watch(&serving, &directory.join("after.json"), runs)
    })?;
    for (run, counts) in runs.iter_mut().zip(counts) {
        run.after = counts;
        run.judge();
    }
    Ok(tell(&runs, &lines))
}

/// Waits until the verdicts have gone away, and at least as long as before.
fn watch(serving: &Serving, file: &Path, runs: &mut [Run<'_>]) -> Result<()> {
    let start = now();
    loop {
        sleep(Duration::from_secs(2));
        let report = serving.report(file)?;
        let elapsed = start.elapsed();
        for run in runs.iter_mut() {
            run.verdict_after = run.verdict(&report);
            if matches!(&*run.verdict_after, "safe" | "unknown") {
                run.left.get_or_insert(elapsed);
            } else {
                run.left = None;
            }
        }
        let have_left = runs.iter().all(|run| run.left.is_some());
        if elapsed > PATIENCE || (elapsed > BEFORE && have_left) {
            return Ok(());
        }
    }
}

/// Prints the table; returns what is wrong.
fn tell(runs: &[Run<'_>], lines: &[String]) -> Vec<String> {
    let heading =
        ["software", "setting", "lost before", "verdict", "lost after", "verdict", "minutes"];
    let mut table = Table::new(heading);
    let mut faults = Vec::new();
    for (run, line) in runs.iter().zip(lines) {
        let lost = |counts: &Counts| format!("{} of {}", counts.failed, counts.requests);
        let minutes = run.left.map(|left| format!("{:.1}", left.as_secs_f64() / 60.0));
        table.add([
            run.case.name.to_owned(),
            line.clone(),
            lost(&run.before),
            run.verdict_before.clone(),
            lost(&run.after),
            run.verdict_after.clone(),
            minutes.unwrap_or_else(|| "never".to_owned()),
        ]);
        faults.extend(run.faults.iter().map(|fault| format!("{}: {fault}", run.case.name)));
        if !run.after.last.is_empty() {
            println!("{}: {}", run.case.name, run.after.last);
        }
    }
    println!("{table}");
    faults
}
