//! How good estimates of idle timeouts, exposure and verdicts are: simulated traffic, about which all
//! is known, is shown to the table, and what it says is scored.
//!
//! `cargo test` runs a part of the settings, `cargo xtask score` all of them. From the command
//! line: `--print` for all, with a table of the scores; `--every N` for each N-th; `--only NUMBER`
//! for one, in full; `--group NAME` for one kind; `--faults` for everything that went wrong; `--seed N`
//! for other settings.
#![cfg(test)]
#![expect(clippy::wildcard_enum_match_arm, reason = "of many, some matter here")]

mod agent;
mod faults;
mod grid;
mod judge;
mod print;
mod random;
mod scale;
mod seen;
mod setting;
mod truth;
mod what_if;
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use judge::{Effort, Score, judge};
use setting::Setting;

const SEED: u64 = 1;
/// Every N-th setting is enough to notice what breaks.
const SUBSET: usize = 9;
const WHOLE: Effort = Effort { requests: 40_000, races: 150, step: 60.0 };
const SHORT: Effort = Effort { requests: 2_500, races: 60, step: 300.0 };

struct Options {
    print: bool,
    faults: bool,
    every: usize,
    only: Option<usize>,
    group: Option<String>,
    seed: u64,
    /// False if tests of other names were asked for.
    is_wanted: bool,
}

fn options() -> Options {
    let mut options = Options {
        print: false,
        faults: false,
        every: SUBSET,
        only: None,
        group: None,
        seed: SEED,
        is_wanted: true,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--group" {
            options.group = arguments.next();
            continue;
        }
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("a number");
        match argument.as_str() {
            "--print" => (options.print, options.every) = (true, 1),
            "--faults" => options.faults = true,
            "--every" => options.every = number(),
            "--only" => options.only = Some(number()),
            "--seed" => options.seed = number() as u64,
            "--list" => options.is_wanted = false,
            _ if argument.starts_with('-') => {} // what cargo hands to tests
            name => options.is_wanted = "score".contains(name),
        }
    }
    options
}

fn main() -> ExitCode {
    let options = options();
    if !options.is_wanted {
        return ExitCode::SUCCESS;
    }
    let mut settings = grid::settings(options.seed);
    if let Some(only) = options.only {
        settings.retain(|setting| setting.number == only);
    } else {
        settings.retain(|setting| setting.number % options.every == 0);
    }
    if let Some(group) = &options.group {
        settings.retain(|setting| setting.group.to_string() == *group);
    }
    let effort = if options.print || options.only.is_some() { WHOLE } else { SHORT };
    let scores = run(&settings, effort);
    if options.only.is_some() {
        scores.iter().for_each(faults::in_full);
        return ExitCode::SUCCESS;
    }
    let summary = print::Summary::of(&scores);
    if options.print {
        summary.print();
        faults::worst(&scores, if options.faults { usize::MAX } else { 10 });
    }
    if options.group.is_some() {
        return ExitCode::SUCCESS;
    }
    let mut failures = summary.failures(options.print);
    failures.extend(what_if::run(&settings, options.print));
    failures.extend(scale::run(options.print));
    for failure in &failures {
        println!("FAIL {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs as many threads as there are processors; the scores are in the order of the settings.
fn run(settings: &[Setting], effort: Effort) -> Vec<Score> {
    let next = AtomicUsize::new(0);
    let scores = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(setting) = settings.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let score = judge(setting, effort);
                    scores.lock().unwrap().push(score);
                }
            });
        }
    });
    let mut scores = scores.into_inner().unwrap();
    scores.sort_by_key(|score| score.setting.number);
    scores
}
