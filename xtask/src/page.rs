//! Pages in `docs/` that contain a table made from what was recorded.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{report, root};

/// Options of whatever makes such a table.
#[derive(clap::Args)]
pub struct PageArgs {
    /// Change nothing; fail if a page does not have what was recorded
    #[arg(long)]
    pub check: bool,
}

/// Puts this table where the page says `<!-- NAME:begin -->`.
pub fn update(args: &PageArgs, page: &str, name: &str, table: &str) -> Result<()> {
    let path = root().join(page);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {page}"))?;
    let updated = with(&text, name, table).context(page.to_owned())?;
    if text == updated {
        report(&format!("{page} has what was recorded"));
        return Ok(());
    }
    ensure!(!args.check, "{page} differs from what was recorded: run cargo xtask docs");
    fs::write(&path, updated).with_context(|| format!("writing {page}"))
}

/// The text with this table in its place.
fn with(text: &str, name: &str, table: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->\n"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts.with_context(|| format!("there is no {}", begin.trim()))?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}
