//! Parses, sets logging up, runs, and turns an error into an exit status: 0 done, 1 failed, 2 bad
//! usage, 3 a verdict that `report --fail-on` names.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use finrace::cli::{Cli, Command};
use finrace::clock::{rfc3339, wall};
use finrace::output::{eprintln_quietly, visible};
use finrace::usage::Usage;
use finrace::{check, manual, report, serve, watch};
use log::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log(cli.log_level);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln_quietly(&format!("finrace: {error:#}"));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn init_log(level: LevelFilter) {
    // It logs every failure as an error, however often; ours are logged once, and counted.
    let of_kube = if level < LevelFilter::Debug { LevelFilter::Off } else { level };
    env_logger::Builder::new()
        .filter_level(level)
        .filter_module("kube_client", of_kube)
        .format(|out, record| {
            let (time, level, target) = (rfc3339(wall()), record.level(), record.target());
            // Certificates, pods and clients choose their own names.
            writeln!(out, "[{time} {level:<5} {target}] {}", visible(&record.args().to_string()))
        })
        .init();
}

fn run(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match command {
        Command::Watch(args) => runtime.block_on(watch::run(&args))?,
        Command::Report(args) => {
            return Ok(if runtime.block_on(report::run(&args))? {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(3)
            });
        }
        Command::Serve(args) => runtime.block_on(serve::run(&args))?,
        Command::Check(args) => {
            return Ok(if runtime.block_on(check::run(&args))? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Completions(args) => manual::completions(args.shell)?,
        Command::Man(args) => manual::pages(args.directory.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}
