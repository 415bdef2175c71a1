//! Time that a write and a connection take with the programs attached: by the clock, against
//! programs that do nothing in the same round, and by the kernel's own statistics of each program.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::machine::{Conditions, Watch};
use super::programs::Program;
use super::stats::{Estimate, median};
use super::values;
use super::workload::Stand;

/// How many times as long as an empty program ours may run, by the statistics.
const BUDGET: f64 = 1.2;

#[derive(clap::Args)]
pub(super) struct PathsArgs {
    #[arg(long, default_value_t = 400)]
    rounds: u32,
    /// A hook for writes other than the best
    #[arg(long)]
    write: Option<String>,
}

/// A line of `cost paths`.
#[derive(Deserialize)]
pub(super) struct Line {
    path: String,
    set: String,
    round: u32,
    /// By the clock, for one write or connection.
    ns: Option<f64>,
    /// By the kernel's statistics.
    #[serde(default)]
    programs: Vec<Program>,
}

/// What `cost paths` says first.
#[derive(Deserialize)]
pub(super) struct Loaded {
    pub(super) loaded: Vec<Program>,
}

/// All lines of a run.
pub(super) struct Samples(Vec<Line>);

impl Samples {
    /// Parses all that `cost paths` prints.
    pub(super) fn read(said: &str) -> Result<Self> {
        values(said, "{\"path\"").map(Self)
    }

    /// Round and nanoseconds, by the clock.
    pub(super) fn of(&self, path: &str, set: &str) -> impl Iterator<Item = (u32, f64)> {
        let lines = self.0.iter().filter(move |line| line.path == path && line.set == set);
        lines.filter_map(|line| Some((line.round, line.ns?)))
    }

    /// Differences of the same round.
    fn above(&self, path: &str, base: &str) -> Option<Estimate> {
        let base: BTreeMap<u32, f64> = self.of(path, base).collect();
        let differences = self
            .of(path, "finrace")
            .filter_map(|(round, ns)| Some(ns - base.get(&round)?))
            .collect::<Vec<_>>();
        Estimate::new(&differences)
    }

    /// For each program, medians over rounds: nanoseconds per run, and the least of any round.
    fn by_program(&self, path: &str, set: &str) -> Vec<Runs> {
        let mut all: BTreeMap<&str, (Vec<f64>, Option<u32>)> = BTreeMap::new();
        for line in self.0.iter().filter(|line| line.path == path && line.set == set) {
            for program in line.programs.iter().filter(|program| program.runs > 0) {
                let of = all.entry(&program.name).or_default();
                #[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
                of.0.push(program.run_ns as f64 / program.runs as f64);
                of.1 = program.verified;
            }
        }
        let runs = all.into_iter().filter_map(|(name, (ns, verified))| {
            let least = ns.iter().copied().fold(f64::INFINITY, f64::min);
            Some(Runs { name: name.to_owned(), least_ns: least, median_ns: median(ns)?, verified })
        });
        runs.collect()
    }
}

#[derive(Serialize)]
pub(super) struct Paths {
    rounds: u32,
    both: Vec<Path>,
    conditions: Conditions,
}

#[derive(Serialize)]
struct Path {
    name: &'static str,
    /// Without any program, by the clock.
    ns: f64,
    /// Paired differences.
    above_none_ns: Estimate,
    above_empty_ns: Estimate,
    empty: Vec<Runs>,
    finrace: Vec<Runs>,
}

/// By the kernel's statistics, which take about 50 ns of each run for themselves.
#[derive(Serialize)]
struct Runs {
    name: String,
    median_ns: f64,
    least_ns: f64,
    /// As [`Program::verified`].
    verified: Option<u32>,
}

pub(super) fn run(stand: &Stand, args: &PathsArgs) -> Result<Paths> {
    let watch = Watch::begin()?;
    let rounds = args.rounds.to_string();
    let hook = args.write.as_ref().map(|hook| format!("write={hook}"));
    let mut arguments = vec!["--stats", "--rounds", &rounds];
    arguments.extend(hook.iter().flat_map(|hook| ["--hook", hook]));
    let samples = Samples::read(&stand.said("paths", &arguments)?)?;
    let path = |name| {
        Some(Path {
            name,
            ns: median(samples.of(name, "none").map(|(_, ns)| ns).collect())?,
            above_none_ns: samples.above(name, "none")?,
            above_empty_ns: samples.above(name, "empty")?,
            empty: samples.by_program(name, "empty"),
            finrace: samples.by_program(name, "finrace"),
        })
    };
    let both = ["write", "connection"].map(path).into_iter().collect::<Option<_>>();
    let both = both.context("no samples of a path")?;
    Ok(Paths { rounds: args.rounds, both, conditions: watch.finish()? })
}

impl Paths {
    pub(super) fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for Path { name, above_none_ns, above_empty_ns, empty, finrace, .. } in &self.both {
            if let ("write", [empty], [finrace]) = (*name, &**empty, &**finrace) {
                let ratio = finrace.least_ns / empty.least_ns;
                let what = format!(
                    "healthy write, `{}`: times an empty program's {:.0} ns, by the kernel's \
                     statistics",
                    finrace.name, empty.least_ns
                );
                figures.push(Figure::at_most(what, ratio, BUDGET, "", 2));
            }
            figures.push(Figure::new(
                format!("{name}: ns more than without any program, by the clock"),
                above_none_ns.to_string(),
            ));
            figures.push(Figure::new(
                format!("{name}: ns more than with empty programs, by the clock"),
                above_empty_ns.to_string(),
            ));
        }
        figures
    }
}
