//! Counts of instructions, compared with those recorded in `xtask/bench/costs.json`: they hardly depend
//! on the machine and not at all on its load, so a regression shows before a merge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use xtask::{report, root, setup};

use super::instructions::{self, Counts};
use super::workload::Stand;

#[derive(clap::Args)]
pub(super) struct GuardArgs {
    /// Keep what is counted now, for later runs to be compared with
    #[arg(long)]
    record: bool,
}

/// `xtask/bench/costs.json`.
#[derive(Deserialize, Serialize)]
struct Costs {
    /// In a guest, by hook and kernel.
    kernel: Vec<Counts>,
    /// In user space, by task: per record or per peer.
    user: BTreeMap<String, f64>,
}

/// What user space does, in the steps of the benchmark `cost`, each of which does what the one before
/// does and something more; with the number of things that it is done to.
const TASKS: [(&str, &str, &[&str], f64); 6] = [
    ("record", "", &["events", "--count", "20000", "--stage", "traffic"], 20_000.0),
    ("record", "decode", &["events", "--count", "20000", "--stage", "decode"], 20_000.0),
    ("record", "classify", &["events", "--count", "20000", "--stage", "join"], 20_000.0),
    ("record", "aggregate", &["events", "--count", "20000", "--stage", "engine"], 20_000.0),
    ("peer", "", &["table", "--peers", "50", "--encode", "1"], 50.0),
    ("peer", "encode", &["table", "--peers", "50", "--encode", "2"], 50.0),
];

pub(super) fn run(stand: &Stand, args: &GuardArgs) -> Result<()> {
    let now = Costs { kernel: instructions::run(stand)?, user: user(stand)? };
    if args.record {
        let json = serde_json::to_string_pretty(&now).context("encoding the counts")?;
        return fs::write(path(), json + "\n").context("writing xtask/bench/costs.json");
    }
    let text = fs::read(path()).context("reading xtask/bench/costs.json")?;
    let recorded: Costs =
        serde_json::from_slice(&text).context("reading xtask/bench/costs.json")?;
    let differences = recorded.differences(&now);
    for difference in &differences {
        report(difference);
    }
    ensure!(
        differences.is_empty(),
        "{} counts differ from xtask/bench/costs.json; if they are meant to: cargo xtask bench guard \
         --record",
        differences.len()
    );
    Ok(())
}

/// Counts with callgrind.
fn user(stand: &Stand) -> Result<BTreeMap<String, f64>> {
    setup::ensure(&["valgrind"])?;
    let count = |arguments: &[&str]| -> Result<f64> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        let output = command.arg(&stand.cost).args(arguments).output().context("valgrind")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "valgrind: {said}");
        let collected = said.lines().find_map(|line| line.split_once("Collected : "));
        let (_, number) = collected.with_context(|| format!("no count in: {said}"))?;
        number.trim().parse().context("a count")
    };
    let mut counts = BTreeMap::new();
    let mut before = 0.0;
    for (thing, what, arguments, of) in TASKS {
        let all = count(arguments)?;
        if !what.is_empty() {
            counts.insert(format!("{what} a {thing}"), ((all - before) / of).round());
        }
        before = all;
    }
    Ok(counts)
}

impl Costs {
    /// What is off by more than chance. Cheaper is a difference, too, or else the gain would be lost
    /// again unnoticed.
    fn differences(&self, now: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |what: String, before: f64, now: f64, tolerance: f64| {
            if (now - before).abs() > tolerance {
                differences.push(format!("{what}: {now} instructions, recorded {before}"));
            }
        };
        for before in &self.kernel {
            let Counts { series, hook, .. } = before;
            let same = |now: &&Counts| now.series == *series && now.hook == *hook;
            let Some(now) = now.kernel.iter().find(same) else {
                compare(format!("{hook} on {series}, no more"), before.write[2], 0.0, 0.0);
                continue;
            };
            // Another kernel release has different code of its own in between.
            let is_same = before.release == now.release;
            let tolerance = |strict: f64, of: f64| if is_same { strict } else { of * 0.2 };
            let (of_write, of_connection) = (before.write[2], before.connection[2]);
            let what = format!("write, {hook} on {series}");
            compare(what, of_write, now.write[2], tolerance(2.0, of_write));
            let what = format!("connection, {hook} on {series}");
            let strict = of_connection * 0.1;
            compare(what, of_connection, now.connection[2], tolerance(strict, of_connection));
            // What only one of the two has counts as zero in the other.
            let count =
                |of: &Counts, program| of.verified.get(program).copied().unwrap_or(0).into();
            for program in keys(&before.verified, &now.verified) {
                let (before, now) = (count(before, program), count(now, program));
                let what = format!("{program} on {series}, as the verifier counts");
                compare(what, before, now, tolerance(before * 0.05, before));
            }
        }
        let is_known = |now: &&Counts| {
            self.kernel.iter().any(|known| known.series == now.series && known.hook == now.hook)
        };
        for new in now.kernel.iter().filter(|now| !is_known(now)) {
            compare(format!("{} on {}", new.hook, new.series), 0.0, new.write[2], 0.0);
        }
        let count = |of: &Self, what| of.user.get(what).copied().unwrap_or(0.0);
        for what in keys(&self.user, &now.user) {
            let before = count(self, what);
            compare(what.clone(), before, count(now, what), before * 0.03);
        }
        differences
    }
}

/// The keys of either map.
fn keys<'a, T>(a: &'a BTreeMap<String, T>, b: &'a BTreeMap<String, T>) -> BTreeSet<&'a String> {
    a.keys().chain(b.keys()).collect()
}

fn path() -> PathBuf {
    root().join("xtask/bench/costs.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(release: &str, write: f64, verified: u32, user: f64) -> Costs {
        let counts = Counts {
            series: "7.3".to_owned(),
            release: release.to_owned(),
            hook: "tp_btf".to_owned(),
            write: [1900.0, 129.0, write],
            connection: [110_000.0, 1000.0, 4000.0],
            verified: [("fr_write_btf".to_owned(), verified)].into(),
        };
        Costs { kernel: vec![counts], user: [("decode a record".to_owned(), user)].into() }
    }

    #[test]
    fn what_differs_is_told() {
        let recorded = costs("7.3.4", 27.0, 1300, 500.0);
        let check = |now: Costs, expected: usize| {
            let differences = recorded.differences(&now);
            assert_eq!(differences.len(), expected, "{differences:?}");
        };
        check(costs("7.3.4", 28.9, 1360, 514.0), 0);
        check(costs("7.3.4", 29.1, 1300, 500.0), 1);
        check(costs("7.3.4", 24.0, 1300, 500.0), 1);
        check(costs("7.3.4", 27.0, 1400, 520.0), 2);
        // Another release of the kernel.
        check(costs("7.3.5", 32.0, 1400, 500.0), 0);
        check(costs("7.3.5", 34.0, 1400, 500.0), 1);
        // What is gone, and what is new.
        check(Costs { kernel: Vec::new(), ..costs("7.3.4", 27.0, 1300, 500.0) }, 1);
        check(Costs { user: BTreeMap::new(), ..costs("7.3.4", 27.0, 1300, 500.0) }, 1);
        let mut other = costs("7.3.4", 27.0, 1300, 500.0);
        other.kernel.extend(costs("7.3.4", 27.0, 1300, 500.0).kernel);
        if let Some(new) = other.kernel.last_mut() {
            "fentry".clone_into(&mut new.hook);
        }
        check(other, 1);
        let mut other = costs("7.3.4", 27.0, 1300, 500.0);
        for counts in &mut other.kernel {
            counts.verified = [("fr_write_raw".to_owned(), 1300)].into();
        }
        check(other, 2);
    }
}
