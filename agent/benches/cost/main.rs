//! Measures what finrace costs, from within one process: programs of the kernel side are attached
//! and let go beside empty ones, a client loads a server, rings are filled, tables are scraped.
//!
//! Run by `cargo xtask bench`, which sets the stage and reads the results: a JSON value a line.

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
    /// Holds the programs and does what standard input says: none, empty, attached, programs
    Stage(stage::Args),
    /// What a write and a whole connection take, with and without programs
    Paths(paths::Args),
    /// Sends one request after the other, and says how many when it is asked
    Client(client::Args),
    /// Carries made-up records from decoder to table, and says what each stage takes
    Events(events::Args),
    /// Writes records into the agent's ring from within the kernel, and says what becomes of them
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

/// Says a result to whoever runs this.
fn say(result: &impl Serialize) -> Result<()> {
    tell(&serde_json::to_string(result).context("encoding a result")?)
}

fn tell(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing a result")
}
