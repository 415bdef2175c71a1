//! Instructions of a guest that a write and a connection take: under QEMU's `-icount shift=0` each
//! is a nanosecond of the guest's clock, so what counts time elsewhere counts them there, and the
//! machine's load changes nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use finrace_lab::vm;
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::paths::{Loaded, Samples};
use super::values;
use super::workload::Stand;

/// Series of kernels, and the hooks for writes that are measured there.
const KERNELS: [(&str, &[&str]); 2] =
    [("6.1", &["fentry", "kprobe"]), ("7.3", &["tp_btf", "raw_tp", "fentry", "kprobe"])];

/// What a healthy write may take beyond a program that does nothing, with direct loads.
const BUDGET: f64 = 20.0;

/// Counts with one hook for writes, on one kernel.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Counts {
    pub(super) series: String,
    pub(super) release: String,
    pub(super) hook: String,
    /// A healthy write: with nothing, what an empty program adds, and what finrace adds to that.
    pub(super) write: [f64; 3],
    /// A connection from open to close, likewise.
    pub(super) connection: [f64; 3],
    /// What the verifier goes through, by program.
    pub(super) verified: BTreeMap<String, u32>,
}

/// Boots each kernel once.
pub(super) fn run(stand: &Stand) -> Result<Vec<Counts>> {
    let mut all = Vec::new();
    for (series, hooks) in KERNELS {
        let paths = hooks.iter().map(|hook| {
            format!(
                "echo '@hook {hook}'\n/cost paths --object /bench.bpf.o --hook write={hook} \
                 --rounds 60 --writes 500 --connections 20\n"
            )
        });
        let files = [("cost", &*stand.cost), ("bench.bpf.o", &*stand.object)];
        let (release, said) = vm::once(series, &files, &paths.collect::<String>())?;
        for (hook, said) in hooks.iter().zip(said.split("@hook ").skip(1)) {
            let samples = Samples::read(said)?;
            let loaded: Vec<Loaded> = values(said, "{\"loaded\"")?;
            let verified = loaded.into_iter().flat_map(|line| line.loaded);
            let verified =
                verified.filter_map(|program| Some((program.name, program.verified?))).collect();
            let steps = |path| {
                // The least of all rounds: the others had a tick of the timer in them.
                let [none, empty, finrace] = ["none", "empty", "finrace"]
                    .map(|set| samples.of(path, set).map(|(_, ns)| ns).min_by(f64::total_cmp));
                let (none, empty) = (none?, empty?);
                Some(
                    [none, empty - none, finrace? - empty]
                        .map(|value| (value * 10.0).round() / 10.0),
                )
            };
            let missing = || format!("{series}, {hook}: no samples in: {said}");
            all.push(Counts {
                series: series.to_owned(),
                release: release.clone(),
                hook: (*hook).to_owned(),
                write: steps("write").with_context(missing)?,
                connection: steps("connection").with_context(missing)?,
                verified,
            });
        }
    }
    Ok(all)
}

pub(super) fn figures(all: &[Counts]) -> Vec<Figure> {
    let figures =
        |Counts { series, hook, write: [.., write], connection: [.., connection], .. }: &Counts| {
            let above = "instructions above an empty program";
            let what = format!("healthy write, {hook} on {series}: {above}");
            let is_direct = ["tp_btf", "fentry"].contains(&&**hook);
            let write = if is_direct {
                Figure::at_most(what, *write, BUDGET, "", 0)
            } else {
                Figure::new(what, format!("{write:.0}"))
            };
            let what = format!("connection, open to close, both ends, {hook} on {series}: {above}");
            [write, Figure::new(what, format!("{connection:.0}"))]
        };
    all.iter().flat_map(figures).collect()
}
