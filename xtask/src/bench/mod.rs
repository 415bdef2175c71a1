//! `cargo xtask bench`: what finrace costs.

mod instructions;

use std::path::PathBuf;

use anyhow::Result;

use crate::guest::{self, Arch};
use crate::live::executables;
use crate::{bpf, report};

#[derive(clap::Args)]
pub(crate) struct BenchArgs {}

pub(crate) fn run(_args: BenchArgs) -> Result<()> {
    let built = Built::new()?;
    report(&instructions::run(&built)?);
    Ok(())
}

/// What measures.
struct Built {
    /// Static, so that it runs in a guest, too.
    cost: PathBuf,
    /// The programs' twins.
    object: PathBuf,
}

impl Built {
    fn new() -> Result<Self> {
        let object = bpf::build_bench()?;
        let [cost] = executables(&mut guest::build_static(Arch::X86_64)?, ["--bench=cost"])?;
        Ok(Self { cost, object })
    }
}
