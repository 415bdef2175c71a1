//! Measures what finrace costs, from within one process: kernel programs are attached and detached in
//! turn with empty ones, a client loads a server, rings are filled, tables are scraped.
//!
//! Run by `cargo xtask bench`, which sets the stage and reads the results: one JSON value per line.

mod client;
mod events;
mod paths;
mod programs;
mod ring;
mod stage;
mod table;

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Holds the programs and obeys standard input: none, empty, attached, programs
    Stage(stage::Args),
    /// Measures what a write and a whole connection take, with and without programs
    Paths(paths::Args),
    /// Sends one request after another, and says how many when asked
    Client(client::Args),
    /// Carries made-up records from decoder to table, and says what each stage takes
    Events(events::Args),
    /// Writes records into the agent's ring from within the kernel, and reports what becomes of them
    Ring(ring::Args),
    /// Fills a table with peers, and scrapes it
    Table(table::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().part {
        Part::Stage(args) => stage::run(args),
        Part::Paths(args) => paths::run(args),
        Part::Client(args) => client::run(args),
        Part::Events(args) => events::run(args),
        Part::Ring(args) => ring::run(args),
        Part::Table(args) => table::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a program for developers")]
            {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints a result for the program that runs this.
fn say(result: &impl Serialize) -> Result<()> {
    tell(&serde_json::to_string(result).context("encoding a result")?)
}

fn tell(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing a result")
}
