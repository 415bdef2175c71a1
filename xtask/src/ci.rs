//! `cargo xtask check`: what needs no root. `cargo xtask test`: what has to pass before a merge, on a machine with
//! Rust, apt and root.
//!
//! Not here: cargo-deny, which fetches its advisories from a repository of their own and so would
//! make a merge wait on the network. `deny.toml` is kept for `cargo deny check bans licenses`.

use std::time::Duration;

use anyhow::{Context, Result};

use xtask::{bpf, cargo, report, setup, show};

use crate::task;

type Step = (&'static str, fn() -> Result<()>);

const CHECKS: [Step; 5] = [
    ("fmt", format),
    ("docs", || task(&["docs", "--check"])),
    ("clippy", clippy),
    ("BPF object", || task(&["bpf", "--check"])),
    ("unit and replay tests", unit_tests),
];

/// From fast to slow, as far as one does not need another.
const STEPS: [Step; 20] = [
    ("fmt", format),
    ("docs", || task(&["docs", "--check"])),
    ("rules", || task(&["rules"])),
    ("set-up", bpf::install),
    ("clippy", clippy),
    ("clippy for BPF", bpf::clippy),
    ("BPF object", || task(&["bpf", "--check"])),
    ("unit and replay tests", unit_tests),
    ("release build", || show(cargo().args(["build", "--locked", "--release"]))),
    ("live", || task(&["live"])),
    ("costs", || task(&["bench", "guard"])),
    ("kernels", || task(&["vm"])),
    ("image", || task(&["image"])),
    ("deploy", || task(&["deploy"])),
    ("lookalikes", || task(&["lookalikes"])),
    ("servers", || task(&["servers", "--short"])),
    ("dashboard", || task(&["dashboard"])),
    ("alerts", || task(&["alerts"])),
    ("histograms", || task(&["histograms"])),
    ("lab", || task(&["lab", "--short"])),
];

pub(crate) fn check() -> Result<()> {
    each(&CHECKS)
}

pub(crate) fn test() -> Result<()> {
    each(&STEPS)
}

fn each(steps: &[Step]) -> Result<()> {
    let mut took = Vec::new();
    let result = steps.iter().try_for_each(|(name, step)| {
        report(&format!("== {name}"));
        let start = setup::now();
        let result = step().with_context(|| format!("step `{name}`"));
        took.push((name, start.elapsed()));
        result
    });
    report("== took");
    let total: Duration = took.iter().map(|(_, duration)| *duration).sum();
    for (name, duration) in took.iter().chain([&(&"total", total)]) {
        report(&format!("{:>7.1} s  {name}", duration.as_secs_f64()));
    }
    result
}

fn format() -> Result<()> {
    show(cargo().args(["fmt", "--all", "--check"]))
}

fn unit_tests() -> Result<()> {
    show(cargo().args(["test", "--locked", "--workspace"]))
}

fn clippy() -> Result<()> {
    // `--all-targets` leaves out what has `test = false`, as the live tests have, and what exists
    // only without a feature.
    let targets = [
        ["--workspace", "--all-targets"],
        ["--package=finrace", "--test=live"],
        ["--package=finrace", "--no-default-features"],
    ];
    for targets in targets {
        let arguments = ["--", "-D", "warnings"];
        show(cargo().args(["clippy", "--locked"]).args(targets).args(arguments))?;
    }
    Ok(())
}
