//! `cargo xtask`: builds, checks, and hands on to the lab and the benchmarks, which are packages of their own.

mod ci;
mod docs;
mod rules;
mod score;

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use xtask::page::PageArgs;
use xtask::{bpf, cargo, end, report, show};

/// Which to run when; printed if nothing is asked for.
const WHEN: &str = include_str!("when.txt");

/// Builds, checks and tests finrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = WHEN)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// What to run before each commit: format, lints, unit tests; no root, nothing is installed
    Check,
    /// Everything that has to pass before a merge, stopping at the first failure (root, Debian)
    Test,
    /// Build the BPF object that is committed under ebpf/, or check it
    Bpf(bpf::BpfArgs),
    /// Put what the matrix of kernels and the benchmarks have recorded into docs/, and check links
    Docs(PageArgs),
    /// Check and test alerts and recording rules (root, Debian)
    Rules,
    /// Score estimates, exposure and verdicts on simulated traffic, about which everything is known
    Score(score::ScoreArgs),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// A program next to this one.
#[derive(Clone, Copy)]
enum Package {
    Lab,
    Bench,
}

impl Package {
    fn command(self) -> Command {
        let package = match self {
            Self::Lab => "--package=finrace-lab",
            Self::Bench => "--package=finrace-bench",
        };
        let mut command = cargo();
        command.args(["run", "--quiet", "--locked", package, "--"]);
        command
    }
}

fn main() -> ExitCode {
    end(run(Cli::parse().task))
}

fn run(task: Option<Task>) -> Result<()> {
    match task {
        None => {
            report(WHEN.trim_end());
            Ok(())
        }
        Some(Task::Check) => ci::check(),
        Some(Task::Test) => ci::test(),
        Some(Task::Bpf(args)) => bpf::run(args),
        Some(Task::Docs(args)) => docs::run(&args),
        Some(Task::Rules) => rules::run(),
        Some(Task::Score(args)) => score::run(args),
        Some(Task::Other(words)) => {
            if let Some((_, arguments)) = words.split_first().filter(|(first, _)| *first == "bench")
            {
                return show(Package::Bench.command().args(arguments));
            }
            show(Package::Lab.command().args(words))
        }
    }
}

/// Runs a task as if it had been asked for on the command line.
fn task(arguments: &[&str]) -> Result<()> {
    let words = std::iter::once("xtask").chain(arguments.iter().copied());
    run(Cli::try_parse_from(words)?.task)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn each_task_is_listed() {
        let cli = Cli::command();
        for task in cli.get_subcommands() {
            let line = format!("cargo xtask {}", task.get_name());
            assert!(WHEN.contains(&line), "when.txt does not have `{line}`");
        }
    }
}
