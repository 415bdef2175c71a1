//! `cargo xtask lab`: finrace against real software, judged by a packet capture.
//!
//! In each setting nginx reuses its connections to a real backend just when that closes them. What
//! happened to each connection is decided three times: by tcpdump and tshark (the truth), by
//! finrace, and by nginx, whose 502s are what users see of it. Failures are the point of the load:
//! in a good run all three accounts agree on them.

#![expect(clippy::print_stdout, reason = "prints its results")]

mod compare;
mod idle;
mod load;

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use xtask::setup::{Process, target_dir};

use self::compare::{Score, Table, compare};
use self::load::Load;
use crate::link::Link;
use crate::proxy::{Pools, Proxy};
use crate::software::{self, Kind, Place, Software};
use crate::wire::Capture;

/// Delay of the link, each way.
const ONE_WAY: Duration = Duration::from_millis(5);

/// How long finrace may take to report a race after the last request.
const SETTLE: Duration = Duration::from_secs(4);

/// Software behind the proxy, each with its own way of closing an idle connection.
const BACKENDS: [Kind; 4] = [Kind::Gunicorn, Kind::Uvicorn, Kind::Node, Kind::Apache];

/// Recall and precision that must be reached.
const REQUIRED: f64 = 0.99;

/// Options of `cargo xtask lab`.
#[derive(Args, Debug)]
pub(crate) struct LabArgs {
    /// Seconds of load in each setting [default: 15, with --short 5]
    #[arg(long)]
    seconds: Option<u64>,
    /// Workers, each with an upstream pool of its own
    #[arg(long, default_value_t = 48)]
    workers: usize,
    /// A run of under a minute: two backends, without TLS
    #[arg(long)]
    short: bool,
    /// Fail where the capture shows fewer races in total [default: 200, with --short 50]
    #[arg(long)]
    min_races: Option<usize>,
    /// Run only settings whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The program under test [default: that of `cargo build --release`]
    #[arg(long, value_name = "PATH")]
    finrace: Option<PathBuf>,
    /// Without finrace: check the capture against nginx's 502s, to test the lab itself
    #[arg(long)]
    truth_only: bool,
}

/// A backend, and the way to it.
#[derive(Clone, Copy)]
struct Setting {
    backend: Kind,
    has_delay: bool,
    tls: bool,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = if self.has_delay { "link" } else { "loopback" };
        write!(f, "{}-{link}{}", self.backend, if self.tls { "-tls" } else { "" })
    }
}

impl Setting {
    /// Around the idle timeout, so that requests come shortly before, across and shortly after the
    /// FIN. Much later the proxy has seen the FIN and takes a new connection.
    fn offset_ms(self) -> Range<f64> {
        let rtt_ms = ONE_WAY.as_secs_f64() * 2000.0;
        if self.has_delay { -rtt_ms - 3.0..rtt_ms } else { -2.0..4.0 }
    }
}

fn settings(args: &LabArgs) -> Vec<Setting> {
    let backends: &[Kind] = if args.short { &[Kind::Uvicorn, Kind::Apache] } else { &BACKENDS };
    let kinds: &[bool] = if args.short { &[false] } else { &[false, true] };
    let mut settings = Vec::new();
    for &backend in backends {
        for has_delay in [false, true] {
            settings.extend(kinds.iter().map(|&tls| Setting { backend, has_delay, tls }));
        }
    }
    settings.retain(|s| s.to_string().contains(&args.only));
    settings
}

/// Runs every setting, prints the table, and fails where finrace and the truth disagree.
pub(crate) fn run(args: LabArgs) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the lab needs root");
    let finrace = args.finrace.clone().unwrap_or_else(|| target_dir().join("release/finrace"));
    ensure!(
        args.truth_only || finrace.exists(),
        "no {}: build it with `cargo build --release`",
        finrace.display()
    );
    let directory = target_dir().join("lab");
    let software = Software::new(directory.join("software"), &BACKENDS)?;
    let link = Link::new("frlab", ONE_WAY)?;

    let mut rows = Vec::new();
    let mut total = Score::default();
    for setting in settings(&args) {
        let directory = directory.join(setting.to_string());
        let bench = Bench { args: &args, setting, finrace: &finrace, directory: &directory };
        let (score, details) =
            bench.run(&software, &link).with_context(|| format!("setting {setting}"))?;
        if !args.truth_only {
            print!("{details}");
        }
        total.add(&score);
        rows.push((setting.to_string(), score));
    }
    rows.push(("all".to_owned(), total.clone()));
    println!("{}", Table { rows: &rows });
    verdict(&args, &total)
}

fn verdict(args: &LabArgs, total: &Score) -> Result<()> {
    let min_races = args.min_races.unwrap_or(if args.short { 50 } else { 200 });
    ensure!(total.races() >= min_races, "{} races, {min_races} wanted", total.races());
    if args.truth_only {
        return Ok(());
    }
    let (recall, precision) = (total.recall(), total.precision());
    println!("recall {recall:.4}, precision {precision:.4}, of {} races", total.races());
    ensure!(recall >= REQUIRED && precision >= REQUIRED, "under {REQUIRED}");
    ensure!(total.false_reports == 0, "{} false reports", total.false_reports);
    Ok(())
}

/// One setting at work.
struct Bench<'a> {
    args: &'a LabArgs,
    setting: Setting,
    finrace: &'a Path,
    directory: &'a Path,
}

impl Bench<'_> {
    fn run(&self, software: &Software, link: &Link) -> Result<(Score, String)> {
        match fs::remove_dir_all(self.directory) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context("removing old logs")?,
            _ => fs::create_dir_all(self.directory).context("creating the log directory")?,
        }
        let has_delay = self.setting.has_delay;
        let place = Place {
            directory: self.directory,
            client_ns: has_delay.then_some(link.client_ns()),
            server_ns: has_delay.then_some(link.server_ns()),
            server_ip: if has_delay { link.server_ip() } else { [127, 0, 0, 1].into() },
            tls: self.setting.tls,
        };
        // Node keeps it a second longer than it is told.
        let is_node = self.setting.backend == Kind::Node;
        let keep_alive = Duration::from_millis(if is_node { 300 } else { 1000 });
        let server = software::start(self.setting.backend, keep_alive, software, place)?;
        let pools = Pools { tls: place.tls, ..Pools::new(server.address, self.args.workers) };
        let proxy = Proxy::start(self.directory, place.client_ns, pools)?;
        let port = server.address.port();
        let capture = Capture::start(self.directory, place.client_ns, &format!("tcp port {port}"))?;
        let finrace = if self.args.truth_only { None } else { Some(self.start_finrace(port)?) };

        let idle = idle::idle_close(software, &place, server.address)?;
        let seconds = self.args.seconds.unwrap_or(if self.args.short { 5 } else { 15 });
        let load = Load {
            namespace: place.client_ns,
            proxy: proxy.address,
            workers: self.args.workers,
            idle,
            offset_ms: self.setting.offset_ms(),
            duration: Duration::from_secs(seconds),
        };
        let requests = load.run()?;
        sleep(SETTLE);

        let output = finrace.map(Process::stop).transpose()?.unwrap_or_default();
        let truth = capture.finish()?;
        let log = fs::read_to_string(&proxy.log).context("nginx's access log")?;
        let (score, details) = compare(requests, &log, &truth, &output)?;
        println!(
            "{}: idle timeout {:.4} s, {requests} requests, {} times 502, {} races",
            self.setting,
            idle.as_secs_f64(),
            score.failures,
            score.races()
        );
        Ok((score, details))
    }

    fn start_finrace(&self, port: u16) -> Result<Process> {
        let mut command = Command::new(self.finrace);
        command.args(["watch", "--json", "--port", &port.to_string()]);
        let mut process = Process::spawn("finrace", command, self.directory)?;
        process.wait_output("attached", Duration::from_secs(30))?;
        Ok(process)
    }
}
