//! `cargo xtask live`: builds the agent and its live tests, and runs these against this kernel.
//!
//! The tests are not run by cargo: the same binary has to run where there is no cargo.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;
use serde_json::Value;
use xtask::{cargo, setup, show};

#[derive(clap::Args)]
pub struct LiveArgs {
    /// Passed on to the test binary: names of tests, `--list`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(args: LiveArgs) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "live tests load programs into the kernel and need root: run `sudo -E env \
         \"PATH=$PATH\" cargo xtask live`"
    );
    let built = Built::new(cargo().arg("build"))?;
    show(Command::new(built.live).args(args.arguments).env("FINRACE_BIN", built.finrace))
}

/// Where cargo has put what it built.
pub struct Built {
    pub finrace: PathBuf,
    pub live: PathBuf,
}

impl Built {
    /// `build` is a `cargo build` that says what to build for, and where to put it.
    pub fn new(build: &mut Command) -> Result<Self> {
        let [finrace, live] = executables(build, ["--bin=finrace", "--test=live"])?;
        Ok(Self { finrace, live })
    }
}

/// Builds targets of the agent's package, `--KIND=NAME` each, and returns where cargo has put them.
pub fn executables<const N: usize>(
    build: &mut Command,
    targets: [&str; N],
) -> Result<[PathBuf; N]> {
    let messages = setup::run(
        build
            .args(["--locked", "--release", "--package=finrace"])
            .args(targets)
            .arg("--message-format=json-render-diagnostics"),
    )?;
    let mut paths = targets.map(|_| PathBuf::new());
    for (path, target) in paths.iter_mut().zip(targets) {
        let (_, name) = target.split_once('=').context("a target without a name")?;
        *path = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message.pointer("/target/name") == Some(&name.into()))
            .find_map(|message| Some(message.get("executable")?.as_str()?.into()))
            .with_context(|| format!("cargo has built no executable of {name}"))?;
    }
    Ok(paths)
}
