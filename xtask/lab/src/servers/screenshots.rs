//! `cargo xtask screenshots`: the status page as it is with real traffic, as pictures for README.md.
//!
//! Three pairs of nginx and a server: one loses requests, one will, one is right. The whole host is
//! on the page, so take the pictures where nothing else runs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use xtask::setup::{self, now, run as run_command, target_dir};
use xtask::{report, root};

use super::Bench;
use super::load::{Gaps, Load, during};
use super::metrics::Serving;
use crate::proxy::{Pools, Proxy};
use crate::software::{self, Kind, Place, Server, Software};

/// Options of `cargo xtask screenshots`.
#[derive(Args, Debug)]
pub(crate) struct ScreenshotArgs {
    /// The program whose page is shown
    #[arg(long, value_name = "PATH", default_value = "target/release/finrace")]
    finrace: PathBuf,
}

/// Least traffic before the pictures.
const TRAFFIC: Duration = Duration::from_secs(75);

/// How long to wait for each verdict.
const PATIENCE: Duration = Duration::from_mins(4);

/// Maximum size of a picture, so that README.md loads fast.
const MOST_BYTES: u64 = 200_000;

struct Picture {
    name: &'static str,
    size: &'static str,
    is_dark: bool,
}

const PICTURES: [Picture; 3] = [
    Picture { name: "status-light", size: "1024,1280", is_dark: false },
    Picture { name: "status-dark", size: "1024,1280", is_dark: true },
    Picture { name: "status-narrow", size: "390,1280", is_dark: false },
];

struct Pair {
    name: &'static str,
    /// Any of these: on a busy machine a request may be lost sooner than expected.
    verdicts: &'static [&'static str],
    server: (Kind, Duration),
    /// A line of nginx's `upstream` block.
    line: &'static str,
    clients: usize,
    gaps: Gaps,
}

fn pairs() -> [Pair; 3] {
    let gunicorn = (Kind::Gunicorn, Duration::from_secs(2));
    let gaps = Gaps::Exponential(1.2);
    [
        Pair {
            name: "racing",
            verdicts: &["racing"],
            server: (Kind::Uvicorn, Duration::from_secs(3)),
            line: "",
            clients: 60,
            // Some at regular intervals, exactly as long as the server waits.
            gaps: Gaps::Mixed(0.3..3.2, 2.996..3.006, 0.3),
        },
        Pair {
            name: "exposed",
            verdicts: &["exposed", "racing"],
            server: gunicorn,
            line: "",
            clients: 24,
            gaps: gaps.clone(),
        },
        Pair {
            name: "safe",
            verdicts: &["safe"],
            server: gunicorn,
            line: "keepalive_timeout 1s;",
            clients: 24,
            gaps,
        },
    ]
}

/// A pair at work.
struct Stand {
    pair: Pair,
    proxy: Proxy,
    server: Server,
}

impl Stand {
    fn start(bench: &Bench, pair: Pair) -> Result<Self> {
        let directory = bench.directory(&format!("screenshots/{}", pair.name))?;
        let place = Place {
            directory: &directory,
            client_ns: None,
            server_ns: None,
            server_ip: [127, 0, 0, 1].into(),
            tls: false,
        };
        let (kind, keep_alive) = pair.server;
        let server = software::start(kind, keep_alive, &bench.software, place)?;
        let pools = Pools::new(server.address, pair.clients).with_lines(pair.line);
        let proxy = Proxy::start(&directory, None, pools)?;
        Ok(Self { pair, proxy, server })
    }

    fn load(&self) -> Load<'_> {
        Load {
            namespace: None,
            proxy: self.proxy.address,
            clients: 0..self.pair.clients,
            gaps: self.pair.gaps.clone(),
            is_in_step: false,
            keep_alive: Some(Duration::from_secs(2)),
        }
    }
}

pub(crate) fn run(args: &ScreenshotArgs) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "real servers need root");
    let finrace = fs::canonicalize(&args.finrace)
        .with_context(|| format!("{} (cargo build --release)", args.finrace.display()))?;
    setup::ensure(&["chromium", "fonts-dejavu-core", "pngquant"])?;
    let directory = target_dir().join("servers");
    let software = Software::new(directory.join("software"), &[Kind::Gunicorn, Kind::Uvicorn])?;
    let bench = Bench { finrace, software, directory, is_short: true, only: Vec::new() };
    let directory = bench.directory("screenshots")?;
    let stands = pairs().map(|pair| Stand::start(&bench, pair));
    let stands: Vec<Stand> = stands.into_iter().collect::<Result<_>>()?;
    let serving = Serving::start(&bench.finrace, &directory)?;
    let loads: Vec<Load<'_>> = stands.iter().map(Stand::load).collect();
    during(&loads, || {
        wait(&serving, &stands)?;
        PICTURES.iter().try_for_each(|picture| picture.take(serving.address, &directory))
    })?;
    Ok(())
}

/// Waits until each pair has its verdict, and the charts have something to show.
fn wait(serving: &Serving, stands: &[Stand]) -> Result<()> {
    let start = now();
    loop {
        sleep(Duration::from_secs(5));
        let metrics = serving.scrape()?;
        let has_verdict = |stand: &&Stand| {
            let mut verdicts = stand.pair.verdicts.iter();
            verdicts.any(|verdict| metrics.has_verdict(stand.server.address, verdict))
        };
        match stands.iter().find(|stand| !has_verdict(stand)) {
            None if start.elapsed() >= TRAFFIC => return Ok(()),
            None => {}
            Some(missing) => ensure!(
                start.elapsed() < PATIENCE,
                "{} is not {} after {PATIENCE:?}",
                missing.server.address,
                missing.pair.name
            ),
        }
    }
}

impl Picture {
    fn take(&self, agent: SocketAddr, directory: &Path) -> Result<()> {
        let large = directory.join(format!("{}.png", self.name));
        let scheme = i32::from(!self.is_dark);
        run_command(
            Command::new("chromium")
                .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
                .arg(format!("--user-data-dir={}", directory.join("profile").display()))
                .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
                .arg(format!("--window-size={}", self.size))
                .arg(format!("--screenshot={}", large.display()))
                .arg(format!("http://{agent}/")),
        )?;
        let small = root().join(format!("docs/images/{}.png", self.name));
        fs::create_dir_all(root().join("docs/images")).context("creating docs/images")?;
        run_command(
            Command::new("pngquant")
                .args(["--force", "--strip", "--speed=1", "--output"])
                .arg(&small)
                .arg("--")
                .arg(&large),
        )?;
        let bytes = fs::metadata(&small).with_context(|| small.display().to_string())?.len();
        ensure!(bytes <= MOST_BYTES, "{} has {bytes} bytes", small.display());
        report(&format!("{}: {bytes} bytes", small.display()));
        Ok(())
    }
}
