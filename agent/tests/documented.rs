//! What users meet in output stands in the documentation: every word, every command, every option.
#![cfg(test)]

use std::fs;

use clap::CommandFactory as _;
use finrace::cli::Cli;
use finrace::lost::Reason;
use finrace_logic::advice::Remedy;
use finrace_logic::estimate::Confidence;
use finrace_logic::knobs::Side;
use finrace_logic::model::{Cause, Certainty, Class, Closer, Evidence, How, Outcome, Read, Role};
use finrace_logic::protocol::Protocol;
use finrace_logic::verdict::State;

const README: &str = include_str!("../../README.md");
const CLASSES: &str = include_str!("../../docs/classes.md");
const LOSSES: &str = include_str!("../../docs/runbooks/FinraceLosesEvents.md");
const REPORT: &str = include_str!("../../docs/report.md");
const VERDICTS: &str = include_str!("../../docs/verdicts.md");
const WATCH: &str = include_str!("../../docs/watch.md");

/// README.md and all pages in docs/, one after the other.
fn all_pages() -> String {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
    let pages = fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    pages.map(|path| fs::read_to_string(path).unwrap()).chain([README.to_owned()]).collect()
}

/// The words that a page lacks, each as it stands in text: between backticks.
fn missing<T: AsRef<str>>(page: &str, words: &[T]) -> Vec<String> {
    let words = words.iter().map(|word| format!("`{}`", word.as_ref()));
    words.filter(|word| !page.contains(word)).collect()
}

#[test]
fn every_word() {
    let protocols: Vec<_> = Protocol::ALL.iter().filter(|one| **one != Protocol::Unknown).collect();
    let lacking = [
        ("README.md", missing(README, State::ALL)),
        ("docs/classes.md", missing(CLASSES, Class::ALL)),
        ("docs/classes.md", missing(CLASSES, Cause::ALL)),
        ("docs/classes.md", missing(CLASSES, Outcome::ALL)),
        ("docs/classes.md", missing(CLASSES, Certainty::ALL)),
        ("docs/classes.md", missing(CLASSES, &[Read::Never])),
        ("docs/runbooks/FinraceLosesEvents.md", missing(LOSSES, Reason::ALL)),
        ("docs/report.md", missing(REPORT, State::ALL)),
        ("docs/report.md", missing(REPORT, &protocols)),
        ("docs/report.md", missing(REPORT, Confidence::ALL)),
        ("docs/report.md", missing(REPORT, Side::ALL)),
        ("docs/report.md", missing(REPORT, Remedy::ALL)),
        ("docs/report.md", missing(REPORT, Reason::ALL)),
        ("docs/verdicts.md", missing(VERDICTS, State::ALL)),
        ("docs/watch.md", missing(WATCH, Role::ALL)),
        ("docs/watch.md", missing(WATCH, Cause::ALL)),
        ("docs/watch.md", missing(WATCH, Outcome::ALL)),
        ("docs/watch.md", missing(WATCH, Closer::ALL)),
        ("docs/watch.md", missing(WATCH, How::ALL)),
        ("docs/watch.md", missing(WATCH, Evidence::ALL)),
    ];
    for (page, words) in lacking {
        assert!(words.is_empty(), "{page} says nothing of {}", words.join(", "));
    }
}

/// Whether an option stands there, and not only one whose name begins with it.
fn names(pages: &str, option: &str) -> bool {
    pages.match_indices(option).any(|(at, _)| {
        let rest = pages.get(at + option.len()..).unwrap_or_default();
        // A full stop may end a sentence.
        let mut rest = rest.chars();
        match rest.next() {
            Some('.') => !rest.next().is_some_and(char::is_alphanumeric),
            Some(next) => !next.is_alphanumeric() && next != '-',
            None => true,
        }
    })
}

#[test]
fn every_command_and_option() {
    let pages = all_pages();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        assert!(README.contains(&format!("finrace {name}")), "README.md does not name `{name}`");
        let options = command.get_arguments().filter_map(clap::Arg::get_long);
        let options = options.map(|option| format!("--{option}"));
        let lacking: Vec<_> = options.filter(|option| !names(&pages, option)).collect();
        assert!(lacking.is_empty(), "no page says what these of `{name}` are for: {lacking:?}");
    }
}
