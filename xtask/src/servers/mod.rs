//! `cargo xtask servers`: what finrace says about real servers and the proxies in front of them,
//! held against what is on the wire, against the configuration, and against what then happens.
//!
//! Where `lab` asks whether each race is found, this asks whether the conclusions are right: the
//! timeout, the verdict, the advice, the expected number of races.

#![expect(clippy::print_stdout, reason = "prints its results")]

mod chain;
mod exposure;
mod finrace;
mod fix;
mod idle;
mod load;
mod metrics;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::setup::{now, target_dir};
use crate::software::{Kind, Software};

/// What finrace may take to tell of the last event.
const SETTLE: Duration = Duration::from_secs(4);

/// Options of `cargo xtask servers`.
#[derive(Args, Debug)]
pub(crate) struct ServersArgs {
    /// What to run [default: all of it]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// A run of under four minutes
    #[arg(long)]
    short: bool,
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
}

impl Part {
    /// The servers that it takes, besides nginx.
    const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Idle => &Kind::ALL,
            Self::Fix | Self::Chain => &[Kind::Gunicorn],
            Self::Exposure => &[Kind::Apache, Kind::Gunicorn, Kind::Node, Kind::Uvicorn],
        }
    }

    fn run(self, bench: &Bench) -> Result<Vec<String>> {
        match self {
            Self::Idle => idle::run(bench),
            Self::Fix => fix::run(bench),
            Self::Chain => chain::run(bench),
            Self::Exposure => exposure::run(bench),
        }
    }
}

/// What all parts share.
struct Bench {
    finrace: PathBuf,
    software: Software,
    directory: PathBuf,
    is_short: bool,
}

impl Bench {
    /// An empty directory for configurations and logs.
    fn directory(&self, name: &str) -> Result<PathBuf> {
        let directory = self.directory.join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("removing {}", directory.display()))?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        Ok(directory)
    }
}

/// Runs each part, prints its table, and fails where a requirement is not met.
pub(crate) fn run(args: ServersArgs) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "real servers need root");
    let finrace = fs::canonicalize(&args.finrace)
        .with_context(|| format!("{} (cargo build --release)", args.finrace.display()))?;
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    let kinds: Vec<Kind> = parts.iter().flat_map(|part| part.kinds()).copied().collect();
    let directory = target_dir().join("servers");
    let software = Software::new(directory.join("software"), &kinds)?;
    let bench = Bench { finrace, software, directory, is_short: args.short };

    let mut violated = 0;
    for part in parts {
        let start = now();
        let faults = part.run(&bench).with_context(|| format!("{part:?}"))?;
        for fault in &faults {
            println!("FAIL {part:?}: {fault}");
        }
        println!("{part:?} took {:.0} s\n", start.elapsed().as_secs_f64());
        violated += faults.len();
    }
    let logs = bench.directory.display();
    ensure!(violated == 0, "{violated} requirements violated; logs are in {logs}");
    Ok(())
}
