//! `cargo xtask histograms`: native histograms and exemplars, as a real Prometheus takes them from a
//! real agent that has seen traffic about which everything is known.
//!
//! One Prometheus asks for all of it, one is told nothing about native histograms, and one asks an agent
//! that has both switched off.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{scope, sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde_json::Value;
use xtask::report;
use xtask::setup::{self, now, server_port};

use super::{Daemon, PrometheusArgs, START, prepare};
use crate::client::{Answer, Client};
use crate::servers::metrics::Serving;

/// A server's idle timeout, which no gap before a good request comes near.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// In milliseconds: all count as reuses, and their buckets are not all neighbours.
const GAPS: [u64; 9] = [250, 260, 270, 300, 330, 480, 700, 710, 900];

/// Options of `cargo xtask histograms`.
#[derive(Args, Debug)]
pub(crate) struct HistogramsArgs {
    #[command(flatten)]
    common: PrometheusArgs,
    /// Prometheus, from version 2.40 on
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/prometheus")]
    prometheus: PathBuf,
}

pub(crate) fn run(args: HistogramsArgs) -> Result<()> {
    let finrace = args.common.finrace()?;
    let directory = prepare("histograms")?;
    // It is started in a directory of its own.
    let program = std::path::absolute(&args.prometheus).context("the path of Prometheus")?;
    let version = version(&program)?;
    let with = ["--metrics.native-histograms", "--metrics.exemplars"];
    let with = Serving::start_with(&finrace, "with", &with, &directory)?;
    let without = Serving::start_with(&finrace, "without", &[], &directory)?;

    let start = |name, agent: &Serving, features: &str, keeps_classic: bool| {
        Prometheus::start(&program, name, agent, features, keeps_classic, &directory)
    };
    // Before 2.45 there is no way to keep the classic ones, and the option has had this name since 3.
    let keeps_classic = version >= 3;
    if !keeps_classic {
        report("SKIP classic beside native histograms: Prometheus before 3");
    }
    let all = "native-histograms,exemplar-storage";
    let native = start("native", &with, all, keeps_classic)?;
    let classic = start("classic", &with, "exemplar-storage", false)?;
    let off = start("off", &without, all, false)?;

    let traffic = Traffic::make()?;
    for prometheus in [&native, &classic, &off] {
        prometheus.wait_for(&traffic)?;
    }
    check_native(&native, &traffic, keeps_classic)?;
    check_classic(&classic, &traffic)?;
    check_classic(&off, &traffic)?;
    check_exemplars(&native, &traffic).context("exemplars by protobuf")?;
    check_exemplars(&classic, &traffic).context("exemplars by text")?;
    let found = off.exemplars()?;
    ensure!(found.is_empty(), "exemplars that nobody asked for: {found:?}");
    report(&format!(
        "{} reuses and {} races in native histograms and exemplars of Prometheus {version}",
        traffic.reuses(),
        traffic.races
    ));
    Ok(())
}

/// The first number of its version.
fn version(prometheus: &Path) -> Result<u32> {
    // Some versions say it to standard error.
    let output = Command::new(prometheus).arg("--version").output();
    let output = output.with_context(|| format!("starting {}", prometheus.display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let version = text.split("version ").nth(1).and_then(|rest| rest.split('.').next());
    let version = version.and_then(|version| version.parse().ok());
    version.with_context(|| format!("a version in `{text}`"))
}

/// What was done, and what came of it.
struct Traffic {
    /// A server whose timeout some requests have met, and one with good clients only.
    racing: SocketAddr,
    ordinary: SocketAddr,
    /// The gaps at each server.
    gaps: Vec<Duration>,
    races: u32,
    /// The client's end of the last race.
    last: SocketAddr,
}

impl Traffic {
    fn make() -> Result<Self> {
        let (racing, ordinary) = (serve()?, serve()?);
        // Good clients of both, each with all gaps, in an order of its own.
        let gaps = scope(|scope| -> Result<Vec<Duration>> {
            let clients: Vec<_> = [racing, ordinary]
                .map(|server| scope.spawn(move || reuse(server)))
                .into_iter()
                .collect();
            let mut gaps = Vec::new();
            for client in clients {
                gaps = client.join().map_err(|_panic| anyhow!("a client panicked"))??;
            }
            Ok(gaps)
        })?;
        let mut last = None;
        for _ in 0..2 {
            let mut client = Client::connect(racing, "/")?;
            client.must()?;
            client.wait_close()?;
            let answer = client.request()?;
            ensure!(answer == Answer::Lost, "{answer:?} from a closed connection");
            last = Some(client.local_address()?);
        }
        let last = last.context("no race was made")?;
        Ok(Self { racing, ordinary, gaps, races: 2, last })
    }

    /// Reuses at each server.
    fn reuses(&self) -> u32 {
        self.gaps.len() as u32
    }

    /// The gap that half of them do not exceed.
    fn median(&self) -> f64 {
        let mut gaps = self.gaps.clone();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).map_or(0.0, Duration::as_secs_f64)
    }
}

/// Uses a connection again after each gap, and is the first to close.
fn reuse(server: SocketAddr) -> Result<Vec<Duration>> {
    let mut client = Client::connect(server, "/")?;
    client.must()?;
    let gaps = GAPS.map(Duration::from_millis);
    for gap in gaps {
        sleep(gap);
        client.must()?;
    }
    Ok(gaps.to_vec())
}

/// A server that answers until a connection is idle for too long.
fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, server_port()?))?;
    let address = listener.local_addr()?;
    // Both threads end with the program.
    spawn(move || {
        for stream in listener.incoming().flatten() {
            spawn(move || answer(&stream).ok());
        }
    });
    Ok(address)
}

fn answer(mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "the client has closed");
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse()?;
            } else if line.trim().is_empty() {
                break;
            }
        }
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}

/// A Prometheus that scrapes one agent.
struct Prometheus {
    name: &'static str,
    daemon: Daemon,
}

impl Prometheus {
    fn start(
        program: &Path,
        name: &'static str,
        agent: &Serving,
        features: &str,
        keeps_classic: bool,
        directory: &Path,
    ) -> Result<Self> {
        let directory = setup::empty_directory(directory.join(name))?;
        let keeps = if keeps_classic { "always_scrape_classic_histograms: true" } else { "" };
        let conf = format!(
            "scrape_configs:\n  - job_name: finrace\n    scrape_interval: 1s\n    scrape_timeout: 1s\n\
             \x20   static_configs: [{{targets: ['{}']}}]\n    {keeps}\n",
            agent.address
        );
        let options = ["--storage.tsdb.path=data", &format!("--enable-feature={features}")];
        let daemon = Daemon::start(program, &conf, &options, &directory).context(name)?;
        Ok(Self { name, daemon })
    }

    /// Waits until it has scraped all that was done.
    fn wait_for(&self, traffic: &Traffic) -> Result<()> {
        let end = now() + START;
        loop {
            let races = format!("sum(finrace_races_total{{peer=\"{}\"}})", traffic.racing);
            let races = self.value(&races)?.unwrap_or(0.0);
            if races >= f64::from(traffic.races) {
                return Ok(());
            }
            if now() > end {
                let up = self.value("up")?;
                bail!("{}: {races} races of {}, up {up:?}", self.name, traffic.races);
            }
            sleep(Duration::from_millis(200));
        }
    }

    /// The result of a query for one number, which may find nothing.
    fn value(&self, query: &str) -> Result<Option<f64>> {
        let data = self.daemon.api("query", &[("query", query)]).context(self.name)?;
        let result = data.get("result").and_then(Value::as_array);
        let result = result.with_context(|| format!("{query}: {data}"))?;
        match result.as_slice() {
            [] => Ok(None),
            [one] => {
                let text = one.pointer("/value/1").and_then(Value::as_str);
                let text = text.with_context(|| format!("{query}: {one}"))?;
                text.parse().map(Some).with_context(|| format!("{query}: {text}"))
            }
            _ => bail!("{query} has several results: {data}"),
        }
    }

    fn expect(&self, query: &str, expected: Option<f64>, tolerance: f64) -> Result<()> {
        let found = self.value(query)?;
        let is_near = match (found, expected) {
            (Some(found), Some(expected)) => (found - expected).abs() <= tolerance * expected,
            (found, expected) => found.is_none() && expected.is_none(),
        };
        ensure!(is_near, "{}: {query} is {found:?}, not {expected:?}", self.name);
        Ok(())
    }

    /// Those of races in the last minute by Prometheus' own clock: series and exemplar, for each.
    fn exemplars(&self) -> Result<Vec<(Value, Value)>> {
        let time = self.value("vector(time())")?.context("no time")?;
        let (start, end) = ((time - 60.0).to_string(), (time + 1.0).to_string());
        let parameters = [("query", "finrace_races_total"), ("start", &start), ("end", &end)];
        let data = self.daemon.api("query_exemplars", &parameters).context(self.name)?;
        let mut exemplars = Vec::new();
        for series in data.as_array().with_context(|| format!("{data}"))? {
            let labels = series.get("seriesLabels").cloned().unwrap_or_default();
            let of_series = series.get("exemplars").and_then(Value::as_array);
            exemplars.extend(
                of_series.into_iter().flatten().map(|exemplar| (labels.clone(), exemplar.clone())),
            );
        }
        Ok(exemplars)
    }
}

fn check_native(prometheus: &Prometheus, traffic: &Traffic, keeps_classic: bool) -> Result<()> {
    let reuses = f64::from(traffic.reuses());
    for server in [traffic.racing, traffic.ordinary] {
        let gap = |suffix: &str| {
            format!("finrace_reuse_gap_seconds{suffix}{{role=\"client\",peer=\"{server}\"}}")
        };
        let native = gap("");
        let expect =
            |query: &str, expected, tolerance| prometheus.expect(query, Some(expected), tolerance);
        expect(&format!("histogram_count({native})"), reuses, 0.0)?;
        let sum = traffic.gaps.iter().sum::<Duration>().as_secs_f64();
        expect(&format!("histogram_sum({native})"), sum, 0.05)?;
        // A bucket is 9 % wide, and an answer may be off by that much; the kernel's tick is on top.
        expect(&format!("histogram_quantile(0.5, {native})"), traffic.median(), 0.11)?;
        expect(&format!("histogram_fraction(0, 0.4, {native})"), 5.0 / reuses, 0.03)?;
        let classic = keeps_classic.then_some(reuses);
        prometheus.expect(&gap("_count"), classic, 0.0)?;
    }
    Ok(())
}

/// Nothing but what there has always been.
fn check_classic(prometheus: &Prometheus, traffic: &Traffic) -> Result<()> {
    let reuses = Some(f64::from(traffic.reuses()));
    let labels = format!("role=\"client\",peer=\"{}\"", traffic.ordinary);
    prometheus.expect(&format!("finrace_reuse_gap_seconds_count{{{labels}}}"), reuses, 0.0)?;
    let buckets = format!("count(finrace_reuse_gap_seconds_bucket{{{labels}}})");
    prometheus.expect(&buckets, Some(12.0), 0.0)?;
    prometheus.expect(&format!("finrace_reuse_gap_seconds{{{labels}}}"), None, 0.0)
}

/// The last race is there with its connection, and an ordinary reuse is nowhere.
fn check_exemplars(prometheus: &Prometheus, traffic: &Traffic) -> Result<()> {
    let exemplars = prometheus.exemplars()?;
    let text = |value: &Value, pointer: &str| -> Option<String> {
        value.pointer(pointer)?.as_str().map(str::to_owned)
    };
    // There may be other races on this machine, but none at the ordinary server.
    let ordinary = Some(traffic.ordinary.to_string());
    for (series, exemplar) in &exemplars {
        let peers = [text(series, "/peer"), text(exemplar, "/labels/peer")];
        ensure!(!peers.contains(&ordinary), "no race: {series} {exemplar}");
    }
    let local = Some(traffic.last.to_string());
    let found = exemplars.iter().find(|(_, exemplar)| text(exemplar, "/labels/local") == local);
    let (_, exemplar) = found.with_context(|| format!("no {local:?} in {exemplars:?}"))?;
    let number = |name: &str| -> Result<f64> {
        let text = text(exemplar, &format!("/labels/{name}"));
        let text = text.with_context(|| format!("no {name} in {exemplar}"))?;
        text.parse().with_context(|| format!("{name} of {exemplar}"))
    };
    let (gap, fin_age) = (number("gap")?, number("fin_age")?);
    ensure!(gap >= TIMEOUT.as_secs_f64() - 0.01 && fin_age < gap, "{exemplar}");
    let pid = std::process::id().to_string();
    ensure!(text(exemplar, "/labels/pid") == Some(pid.clone()), "{exemplar} is not of {pid}");
    Ok(())
}
