//! Measures what finrace costs, from within one process: programs of the kernel side are attached
//! and let go beside empty ones, a client loads a server, rings are filled, tables are scraped.
//!
//! Run by `cargo xtask bench`, which sets the stage and reads the results: a JSON value a line.

mod client;
mod stage;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Holds the programs and does what standard input says: none, empty, attached, programs
    Stage(stage::Args),
    /// Sends one request after the other, and says how many when it is asked
    Client(client::Args),
    /// Fills a table with peers, and scrapes it
    Table(table::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().part {
        Part::Stage(args) => stage::run(args),
        Part::Client(args) => client::run(args),
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
