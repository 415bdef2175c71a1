//! `cargo xtask live`, `vm`, `lab` and others: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use finrace_lab::Cli;
use xtask::end;

fn main() -> ExitCode {
    end(Cli::parse().run())
}
