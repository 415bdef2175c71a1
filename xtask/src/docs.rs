//! `cargo xtask docs`: tables in README.md, made from what the matrix of kernels and the benchmarks
//! have recorded.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{bench, report, root, vm};

#[derive(clap::Args)]
pub(crate) struct DocsArgs {
    /// Change nothing; fail if README.md does not have what was recorded
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: DocsArgs) -> Result<()> {
    let path = root().join("README.md");
    let text = fs::read_to_string(&path).context("reading README.md")?;
    let updated = with(&text, "matrix", &vm::Recorded::read()?.to_markdown()?)?;
    let updated = with(&updated, "overhead", &bench::Recorded::read()?.to_markdown())?;
    if text == updated {
        report("README.md has what was recorded");
        return Ok(());
    }
    ensure!(!args.check, "README.md differs from what was recorded: run cargo xtask docs");
    fs::write(&path, updated).context("writing README.md")
}

/// With this table in its place.
fn with(text: &str, name: &str, table: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->\n"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts.with_context(|| format!("README.md has no {}", begin.trim()))?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}
