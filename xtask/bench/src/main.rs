//! `cargo xtask bench`: what finrace costs, and whether that is within its budgets.
//!
//! Times hold for this machine and hour; what carries over are ratios to programs that do nothing,
//! measured in the same run, and counts of instructions. The latter are also recorded in the
//! repository and checked before every merge (`guard`); times never are.

mod agent;
mod dialog;
mod events;
mod figure;
mod guard;
mod instructions;
mod load;
mod machine;
mod paths;
mod peers;
mod programs;
mod stats;
mod table;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use finrace_lab::guest::{self, Arch};
use finrace_lab::live::executables;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xtask::page::{self, PageArgs};
use xtask::setup::{self, target_dir};
use xtask::{bpf, end, report, root};

use self::figure::Figure;
use self::figure::Recorded;
use self::machine::Machine;
use self::workload::Stand;

/// Measures what finrace costs (root, Debian).
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    /// [default: all of them but `guard`, one after another]
    #[command(subcommand)]
    part: Option<Part>,
    /// Keep the figures in xtask/bench/bench.json, for docs/costs.md
    #[arg(long)]
    record: bool,
}

#[derive(Subcommand)]
enum Part {
    /// A write and a connection, in instructions of a guest under QEMU
    Instructions,
    /// The same in time, by the clock and by the kernel's own statistics
    Paths(paths::PathsArgs),
    /// Whole workloads with and without finrace
    Load(load::LoadArgs),
    /// Other tools under the same load
    Peers(peers::PeersArgs),
    /// Records at any rate, from within the kernel to the table
    Events(events::EventsArgs),
    /// Memory of peers, and scrapes of their metrics
    Table,
    /// The agent itself: size, start, and what it takes when nothing happens
    Agent,
    /// Compare counts of instructions with those that are recorded in xtask/bench/costs.json
    Guard(guard::GuardArgs),
    /// Put what the last full run has recorded into docs/costs.md, or check it
    #[command(hide = true)]
    Docs(PageArgs),
}

fn main() -> ExitCode {
    end(run(Cli::parse()))
}

/// Runs what is asked for, prints tables, and fails where a budget is exceeded.
fn run(args: Cli) -> Result<()> {
    if let Some(Part::Docs(args)) = args.part {
        return page::update(&args, "docs/costs.md", "overhead", &Recorded::read()?.to_markdown());
    }
    ensure!(rustix::process::geteuid().is_root(), "programs are loaded by root");
    // The state that is built now, whatever changes meanwhile.
    let commit = commit()?;
    let stand = Stand::build()?;
    if let Some(Part::Guard(args)) = args.part {
        return guard::run(&stand, &args);
    }
    let parts = args.part.map_or_else(Part::all, |part| Ok(vec![part]))?;
    let mut results = serde_json::Map::new();
    let mut figures = Vec::new();
    for part in &parts {
        report(&format!("== {}", part.name()));
        let (result, more) = part.run(&stand)?;
        results.insert(part.name().to_owned(), result);
        figures.extend(more);
    }
    let text = figure::table(&figures);
    report(&text);
    let recorded = Recorded { machine: Machine::read()?, commit, figures };
    let file = stand.directory.join("results.json");
    let all = json!({ "summary": recorded, "parts": results });
    fs::write(&file, serde_json::to_string_pretty(&all)?)
        .with_context(|| format!("writing {}", file.display()))?;
    report(&format!("all figures: {}", file.display()));
    if args.record {
        recorded.write()?;
    }
    let faults = recorded.faults();
    ensure!(faults.is_empty(), "not within budget: {}", faults.join("; "));
    Ok(())
}

impl Part {
    /// All parts with their defaults; what needs quiet comes first.
    fn all() -> Result<Vec<Self>> {
        #[derive(clap::Parser)]
        struct One {
            #[command(subcommand)]
            part: Part,
        }
        let names = ["paths", "load", "peers", "events", "table", "agent", "instructions"];
        let part = |name| Ok(One::try_parse_from(["bench", name])?.part);
        names.into_iter().map(part).collect()
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Paths(_) => "paths",
            Self::Load(_) => "load",
            Self::Peers(_) => "peers",
            Self::Events(_) => "events",
            Self::Table => "table",
            Self::Agent => "agent",
            Self::Guard(_) => "guard",
            Self::Docs(_) => "docs",
        }
    }

    /// Measures; returns all results, and the figures that sum them up.
    fn run(&self, stand: &Stand) -> Result<(Value, Vec<Figure>)> {
        match self {
            Self::Instructions => of(instructions::run(stand)?, |all| instructions::figures(all)),
            Self::Paths(args) => of(paths::run(stand, args)?, paths::Paths::figures),
            Self::Load(args) => of(load::run(stand, args)?, load::LoadResults::figures),
            Self::Peers(args) => of(peers::run(stand, args)?, peers::PeersResults::figures),
            Self::Events(args) => of(events::run(stand, args)?, events::figures),
            Self::Table => of(table::run(stand)?, |all| table::figures(all)),
            Self::Agent => of(agent::run(stand)?, agent::Agent::figures),
            Self::Guard(_) | Self::Docs(_) => Ok((Value::Null, Vec::new())),
        }
    }
}

fn of<T: Serialize>(results: T, figures: fn(&T) -> Vec<Figure>) -> Result<(Value, Vec<Figure>)> {
    let figures = figures(&results);
    Ok((serde_json::to_value(results)?, figures))
}

impl Stand {
    /// Builds what measures and what is measured.
    fn build() -> Result<Self> {
        let object = bpf::build_bench()?;
        // Static, since they also run in a guest, and since that is what is shipped.
        let mut build = guest::build_static(Arch::X86_64)?;
        let [cost, finrace] = executables(&mut build, ["--bench=cost", "--bin=finrace"])?;
        let directory = target_dir().join("bench");
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self { cost, finrace, object, directory })
    }

    /// The results that a part of the benchmark prints.
    fn cost<T: DeserializeOwned>(&self, part: &str, arguments: &[&str]) -> Result<Vec<T>> {
        values(&self.said(part, arguments)?, "{")
    }

    fn said(&self, part: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.cost);
        command.arg(part);
        if ["paths", "ring"].contains(&part) {
            command.arg("--object").arg(&self.object);
        }
        setup::run(command.args(arguments))
    }
}

/// Lines that begin with `begin`, each a JSON value; others are skipped.
fn values<T: DeserializeOwned>(text: &str, begin: &str) -> Result<Vec<T>> {
    let lines = text.lines().filter(|line| line.starts_with(begin));
    lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The commit of the sources that are measured.
fn commit() -> Result<String> {
    let describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    let text = setup::run(Command::new("git").current_dir(root()).args(describe))?;
    Ok(text.trim().to_owned())
}

/// A file system for pinned maps, as long as it is needed.
struct BpfFs(PathBuf);

impl BpfFs {
    fn mount(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        setup::run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(directory))?;
        Ok(Self(directory.to_owned()))
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // If it stays mounted, the next run finds it so, and mounts over it.
        Command::new("umount").arg(&self.0).status().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_but_the_guard() {
        let names: Vec<_> = Part::all().unwrap().iter().map(Part::name).collect();
        let known: Vec<_> = Part::augment_subcommands(clap::Command::new("bench"))
            .get_subcommands()
            .map(|part| part.get_name().to_owned())
            .filter(|name| !["guard", "docs"].contains(&name.as_str()))
            .collect();
        assert_eq!(names.len(), known.len());
        assert!(known.iter().all(|name| names.contains(&&**name)), "{names:?} {known:?}");
    }
}
