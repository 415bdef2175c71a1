//! `cargo xtask servers`: what finrace says about real servers and the proxies in front of them,
//! held against what is on the wire, against the configuration, and against what then happens.
//!
//! Where `lab` asks whether each race is found, this asks whether the conclusions are right: the
//! timeout, the verdict, the advice, the expected number of races.

#![expect(clippy::print_stdout, reason = "prints its results")]

mod chain;
mod cure;
mod exposure;
pub(crate) mod finrace;
mod fix;
mod idle;
pub(crate) mod load;
pub(crate) mod metrics;
mod screenshots;
mod stall;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use xtask::setup::{self, now, target_dir};

use crate::software::{Kind, Software};

pub(crate) use self::screenshots::{ScreenshotArgs, run as screenshots};

/// How long finrace may take to report the last event.
const SETTLE: Duration = Duration::from_secs(4);

/// A machine that stalls for this long makes races of its own.
const STALL: Duration = Duration::from_millis(200);

/// Options of `cargo xtask servers`.
#[derive(Args, Debug)]
pub(crate) struct ServersArgs {
    /// What to run [default: all of it]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// A run of under four minutes
    #[arg(long)]
    short: bool,
    /// In `cure`, only software whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The program under test
    #[arg(long, value_name = "PATH", default_value = "target/release/finrace")]
    finrace: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The idle timeouts of ten servers
    Idle,
    /// From the verdict to the advice to the proof
    Fix,
    /// Two hops, of which one is wrong
    Chain,
    /// Expected races against those that happen
    Exposure,
    /// Advice put to the test with all software; not part of a short run
    Cure,
}

impl Part {
    /// Parts that take under four minutes together.
    const SHORT: [Self; 4] = [Self::Idle, Self::Fix, Self::Chain, Self::Exposure];

    /// The servers that it needs, besides nginx.
    const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Idle => &Kind::ALL,
            Self::Fix | Self::Chain => &[Kind::Gunicorn],
            Self::Exposure => &[Kind::Apache, Kind::Gunicorn, Kind::Node, Kind::Uvicorn],
            Self::Cure => &[Kind::Apache, Kind::Gunicorn, Kind::Node, Kind::Tomcat, Kind::Uvicorn],
        }
    }

    /// Runs it and reports what is wrong, once more if the machine may be the cause; returns the number
    /// of faults.
    fn judge(self, bench: &Bench) -> Result<usize> {
        let mut is_last = false;
        loop {
            let start = now();
            let (faults, stall) = stall::measure(|| self.run(bench));
            let may_be_stall = stall >= STALL && !is_last;
            let faults = match faults {
                Err(error) if may_be_stall => vec![format!("the traffic itself: {error:#}")],
                other => other?,
            };
            for fault in &faults {
                println!("FAIL {self:?}: {fault}");
            }
            println!(
                "{self:?} took {:.0} s; the machine stood still for {} ms at most\n",
                start.elapsed().as_secs_f64(),
                stall.as_millis()
            );
            if faults.is_empty() || !may_be_stall {
                return Ok(faults.len());
            }
            println!("{self:?}, once more:");
            is_last = true;
        }
    }

    fn run(self, bench: &Bench) -> Result<Vec<String>> {
        match self {
            Self::Idle => idle::run(bench),
            Self::Fix => fix::run(bench),
            Self::Chain => chain::run(bench),
            Self::Exposure => exposure::run(bench),
            Self::Cure => cure::run(bench),
        }
    }
}

/// What all parts share.
struct Bench {
    finrace: PathBuf,
    software: Software,
    directory: PathBuf,
    is_short: bool,
    /// Parts of names; all if there are none.
    only: Vec<String>,
}

impl Bench {
    /// An empty directory for configurations and logs.
    fn directory(&self, name: &str) -> Result<PathBuf> {
        setup::empty_directory(self.directory.join(name))
    }
}

/// Runs each part, prints its table, and fails where a requirement is not met.
pub(crate) fn run(args: ServersArgs) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "real servers need root");
    let finrace = fs::canonicalize(&args.finrace)
        .with_context(|| format!("{} (cargo build --release)", args.finrace.display()))?;
    let parts: Vec<Part> = match &*args.parts {
        [] if args.short => Part::SHORT.to_vec(),
        [] => Part::value_variants().to_vec(),
        parts => parts.to_vec(),
    };
    let kinds: Vec<Kind> = parts.iter().flat_map(|part| part.kinds()).copied().collect();
    let directory = target_dir().join("servers");
    let software = Software::new(directory.join("software"), &kinds)?;
    let bench = Bench { finrace, software, directory, is_short: args.short, only: args.only };

    let mut violated = 0;
    for part in parts {
        violated += part.judge(&bench).with_context(|| format!("{part:?}"))?;
    }
    let logs = bench.directory.display();
    ensure!(violated == 0, "{violated} requirements violated; logs are in {logs}");
    Ok(())
}
