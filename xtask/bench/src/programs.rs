//! What the kernel counts of BPF programs: how often each has run, and for how long.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::machine::{field, read};

/// What the kernel has counted of a program.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) hook: String,
    pub(super) runs: u64,
    pub(super) run_ns: u64,
    /// Instructions that the verifier went through; none where the kernel does not tell.
    pub(super) verified: Option<u32>,
}

/// Identifies a program: its name, and what it is attached to.
pub(super) type Key = (String, String);

/// What programs have done within some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    pub(super) runs: f64,
    pub(super) ns: f64,
}

/// What each has done between two moments.
pub(super) fn between(before: &[Program], after: &[Program]) -> BTreeMap<Key, Spent> {
    let mut spent: BTreeMap<_, Spent> = BTreeMap::new();
    for (programs, sign) in [(after, 1.0), (before, -1.0)] {
        for program in programs {
            let sum = spent.entry((program.name.clone(), program.hook.clone())).or_default();
            #[expect(clippy::cast_precision_loss, reason = "of minutes, in nanoseconds")]
            let (runs, ns) = (program.runs as f64, program.run_ns as f64);
            sum.runs += sign * runs;
            sum.ns += sign * ns;
        }
    }
    spent
}

/// The sum over all programs that a process holds: the kernel reports it with each descriptor.
pub(super) fn programs_of(pid: u32) -> Result<Program> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut runs = BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("reading {directory}"))? {
        // A descriptor that was closed meanwhile belongs to no program.
        let text = read(&entry?.path().to_string_lossy()).unwrap_or_default();
        let number = |name| field(&text, name).and_then(|value| value.parse::<u64>().ok());
        let counts = (number("prog_id"), number("run_cnt"), number("run_time_ns"));
        if let (Some(id), Some(count), Some(ns)) = counts {
            runs.insert(id, (count, ns));
        }
    }
    let sum = |sum: Program, (runs, run_ns): &(u64, u64)| Program {
        runs: sum.runs + runs,
        run_ns: sum.run_ns + run_ns,
        ..sum
    };
    Ok(runs.values().fold(Program::default(), sum))
}

/// While it lives, the kernel counts the runs of programs and their time.
pub(super) struct Statistics {
    before: String,
}

impl Statistics {
    const FILE: &str = "/proc/sys/kernel/bpf_stats_enabled";

    pub(super) fn on() -> Result<Self> {
        let before = read(Self::FILE)?;
        Self::again()?;
        Ok(Self { before })
    }

    /// Switches counting on again: anyone may have switched it off.
    pub(super) fn again() -> Result<()> {
        fs::write(Self::FILE, "1").with_context(|| format!("writing {}", Self::FILE))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        fs::write(Self::FILE, self.before.trim()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        let program = |name: &str, runs, run_ns| Program {
            name: name.to_owned(),
            hook: "h".to_owned(),
            runs,
            run_ns,
            verified: None,
        };
        let spent =
            between(&[program("a", 10, 1000)], &[program("a", 15, 2000), program("b", 1, 50)]);
        let key = |name: &str| (name.to_owned(), "h".to_owned());
        assert_eq!(
            spent,
            [
                (key("a"), Spent { runs: 5.0, ns: 1000.0 }),
                (key("b"), Spent { runs: 1.0, ns: 50.0 }),
            ]
            .into()
        );
    }
}
