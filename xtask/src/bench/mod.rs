//! `cargo xtask bench`: what finrace costs.

#![expect(clippy::print_stdout, reason = "prints its results")]

mod dialog;
mod load;
mod machine;
mod peers;
mod programs;
mod stats;
mod workload;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::cargo;
use crate::setup::{self, target_dir};
use machine::Machine;
use workload::Stand;

/// Options of `cargo xtask bench`.
#[derive(clap::Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    part: Part,
    /// An executable of the benchmark `cost` [default: it is built]
    #[arg(long, global = true, value_name = "PATH")]
    cost: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Whole workloads with and without finrace
    Load(load::LoadArgs),
    /// Other tools under the same load
    Peers(peers::PeersArgs),
}

/// Runs a part, prints its table, and fails where a budget is exceeded.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "programs are loaded by root");
    let cost = args.cost.map_or_else(build, Ok)?;
    let stand = Stand { cost, directory: target_dir().join("bench") };
    let (faults, results) = match &args.part {
        Part::Load(args) => {
            let results = load::run(&stand, args)?;
            println!("{results}");
            (results.faults(), json!({ "load": results }))
        }
        Part::Peers(args) => {
            let results = peers::run(&stand, args)?;
            println!("{results}");
            (results.faults(), json!({ "peers": results }))
        }
    };
    let file = stand.directory.join("results.json");
    let results = json!({ "machine": Machine::read()?, "results": results });
    fs::write(&file, serde_json::to_string_pretty(&results)?)
        .with_context(|| format!("writing {}", file.display()))?;
    println!("{}", file.display());
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}

fn build() -> Result<PathBuf> {
    let arguments = ["--locked", "--release", "--package=finrace", "--bench=cost"];
    let mut build = cargo();
    build.arg("build").args(arguments).arg("--message-format=json-render-diagnostics");
    setup::run(&mut build)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/target/name") == Some(&"cost".into()))
        .find_map(|message| Some(message.get("executable")?.as_str()?.into()))
        .context("cargo has built no executable of the benchmark")
}
