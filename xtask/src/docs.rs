//! `cargo xtask docs`: tables in `docs/`, made from what the matrix of kernels and the benchmarks have
//! recorded. It also checks that links between pages lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use xtask::page::PageArgs;
use xtask::{report, root, show};

use crate::Package;

pub(crate) fn run(args: &PageArgs) -> Result<()> {
    let check: &[&str] = if args.check { &["--check"] } else { &[] };
    for package in [Package::Lab, Package::Bench] {
        show(package.command().arg("docs").args(check))?;
    }
    check_links()
}

/// Links to files of this repository, and to headings of its pages.
fn check_links() -> Result<()> {
    let mut pages = Vec::new();
    for directory in ["", "docs", "docs/runbooks"] {
        pages.extend(pages_in(&root().join(directory))?);
    }
    let mut broken = Vec::new();
    for page in &pages {
        let text =
            fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (target, _) in targets.filter(|(target, _)| !target.contains("://")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let leads = file.exists()
                && (heading.is_empty()
                    || fs::read_to_string(&file).is_ok_and(|text| has_heading(&text, heading)));
            if !leads {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    report(&format!("links of {} pages lead somewhere", pages.len()));
    Ok(())
}

fn pages_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("{}", directory.display()))?;
    let mut pages = Vec::new();
    for entry in entries {
        let path = entry.context("listing pages")?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    Ok(pages)
}

/// By the names that GitHub gives them.
fn has_heading(text: &str, name: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut names = headings.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    });
    names.any(|heading| heading == name)
}
