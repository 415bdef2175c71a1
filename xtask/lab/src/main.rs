//! `cargo xtask live`, `vm`, `lab` and others: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use finrace_lab::Cli;
use xtask::report;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
