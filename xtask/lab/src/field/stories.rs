//! The stories of `agent/tests/live/field.rs`, with many connections each: over loopback, between two
//! network namespaces, and between two that are 10 ms apart.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::{cargo, report, setup};

use crate::live::Built;

/// Connections of each story in each place.
const CONNECTIONS: usize = 50;

/// What `FINRACE_DISTANCE_MS` is there; none is loopback.
const PLACES: [Option<u32>; 3] = [None, Some(0), Some(10)];

/// Stories at a time: with more, threads delay each other.
const AT_ONCE: usize = 3;

/// All, right, missed, wrong class, wrong closer, false, doubled.
type Row = [usize; 7];

pub(super) fn run(finrace: &Path) -> Result<()> {
    let live = Built::new(cargo().arg("build"))?.live;
    let mut rows = BTreeMap::<String, Row>::new();
    let names = setup::run(Command::new(&live).arg("--list"))?;
    let names: Vec<&str> = names.lines().filter(|name| name.starts_with("field_")).collect();
    let mut failures = 0;
    for distance in PLACES {
        for names in names.chunks(AT_ONCE) {
            let mut command = Command::new(&live);
            command.args(names).env("FINRACE_BIN", finrace);
            command.env("FINRACE_CONNECTIONS", CONNECTIONS.to_string());
            // What counts is what was reported, not how punctual a hundred and fifty threads were.
            command.env("FINRACE_SLACK", "2");
            if let Some(distance) = distance {
                command.env("FINRACE_DISTANCE_MS", distance.to_string());
            }
            let output = command.output().context("running the live tests")?;
            let said = String::from_utf8_lossy(&output.stdout);
            for line in said.lines().filter(|line| line.starts_with("FAIL")) {
                report(line);
                // What is counted may be wrong in one of a hundred cases; anything else, never.
                let is_counted =
                    names.iter().any(|name| line.starts_with(&format!("FAIL {name}:")));
                failures += usize::from(!is_counted);
            }
            // A story whose name begins like another's is played along with that one, too.
            let counted = said.lines().filter_map(tally).filter(|(name, _)| names.contains(name));
            for (name, counts) in counted {
                let row = rows.entry(name.to_owned()).or_default();
                row.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
            }
        }
    }
    let columns = ["n", "right", "missed", "class", "closer", "false", "doubled"];
    report(&line("story", columns));
    for (name, row) in &rows {
        report(&line(name, *row));
    }
    let all = rows.values().fold(Row::default(), |mut all, row| {
        all.iter_mut().zip(row).for_each(|(all, count)| *all += count);
        all
    });
    report(&line("all", all));
    ensure!(failures == 0, "{failures} tests beside the stories failed");
    ensure!(rows.len() == names.len(), "{} stories of {} were counted", rows.len(), names.len());
    let is_short = rows
        .values()
        .any(|[n, right, ..]| *n != CONNECTIONS * PLACES.len() || right * 100 < n * 99);
    let [.., made_up, doubled] = all;
    ensure!(!is_short && made_up == 0 && doubled == 0, "not all stories were told as they were");
    Ok(())
}

/// A line `tally NAME COUNT...`.
fn tally(line: &str) -> Option<(&str, Row)> {
    let mut words = line.strip_prefix("tally ")?.split(' ');
    let name = words.next()?;
    let counts: Vec<usize> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    Some((name, counts.try_into().ok()?))
}

fn line<T: ToString>(name: &str, columns: [T; 7]) -> String {
    let columns = columns.map(|column| format!("{:>8}", column.to_string()));
    format!("{name:38}{}", columns.concat())
}
