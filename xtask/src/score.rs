//! `cargo xtask score`: how right estimates, exposure and verdicts are in simulated traffic.

use anyhow::Result;

use xtask::{cargo, show};

#[derive(clap::Args)]
pub(crate) struct ScoreArgs {
    /// Passed on: `--faults` for all that went wrong, `--only NUMBER` for one setting in full,
    /// `--seed N` for other settings
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: ScoreArgs) -> Result<()> {
    let test = ["test", "--locked", "--release", "--package=finrace", "--test=score"];
    show(cargo().args(test).args(["--", "--print"]).args(args.arguments))
}
