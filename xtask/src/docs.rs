//! `cargo xtask docs`: the table of kernels in README.md, made from what the matrix has recorded.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::vm::Recorded;
use crate::{report, root};

const BEGIN: &str = "<!-- matrix:begin -->\n";
const END: &str = "<!-- matrix:end -->\n";

#[derive(clap::Args)]
pub(crate) struct DocsArgs {
    /// Change nothing; fail if README.md does not have what was recorded
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: DocsArgs) -> Result<()> {
    let path = root().join("README.md");
    let text = fs::read_to_string(&path).context("reading README.md")?;
    let table = Recorded::read()?.to_markdown()?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.with_context(|| format!("README.md has no {}", BEGIN.trim()))?;
    let updated = format!("{before}{BEGIN}\n{table}\n{END}{after}");
    if text == updated {
        report("README.md has what was recorded");
        return Ok(());
    }
    ensure!(!args.check, "README.md differs from what was recorded: run cargo xtask docs");
    fs::write(&path, updated).context("writing README.md")
}
