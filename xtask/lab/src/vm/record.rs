//! `xtask/lab/matrix.json`: what the matrix has shown last, for docs/kernels.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use xtask::root;

use super::spec::{Run, Spec};
use super::verdict::{Outcome, Report};

#[derive(Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Recorded(Vec<Report>);

impl Recorded {
    pub(crate) fn read() -> Result<Self> {
        let path = path();
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Replaces what is known of these kernels.
    pub(super) fn update(reports: Vec<Report>, spec: &Spec) -> Result<()> {
        let known = if path().exists() { Self::read()?.0 } else { Vec::new() };
        let known = known.into_iter().chain(reports);
        let mut by_kernel: BTreeMap<_, _> =
            known.map(|report| (report.kernel.clone(), report)).collect();
        let listed = spec.kernels.iter().filter_map(|kernel| by_kernel.remove(&kernel.name()));
        let json = serde_json::to_string_pretty(&Self(listed.collect()))
            .context("encoding the results")?;
        fs::write(path(), json + "\n").with_context(|| format!("writing {}", path().display()))
    }

    /// A row for each run, a column for each kernel.
    pub(crate) fn to_markdown(&self) -> Result<String> {
        let spec = Spec::read()?;
        let row = |first: &str, cells: &mut dyn Iterator<Item = String>| {
            format!("| {first} | {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let mut text = row("", &mut self.0.iter().map(|report| report.kernel.clone()));
        text += &row("---", &mut self.0.iter().map(|_| "---".to_owned()));
        let is_recorded =
            |run: &&Run| self.0.iter().any(|report| report.runs.contains_key(&run.name));
        for run in spec.runs.iter().filter(is_recorded) {
            text += &row(&run.name, &mut self.0.iter().map(|report| cell(run, report)));
        }
        let releases: Vec<_> = self.0.iter().map(|report| &*report.release).collect();
        Ok(format!("{text}\nReleases: {}.\n", releases.join(", ")))
    }
}

fn cell(run: &Run, report: &Report) -> String {
    match report.runs.get(&run.name) {
        Some(Outcome::Played { ok, skipped, lost, failed }) => {
            match ok + skipped.len() + lost.len() + failed.len() {
                total if total == *ok => ok.to_string(),
                total => format!("{ok} of {total}"),
            }
        }
        Some(Outcome::Refused { .. }) if run.refused.is_some() => "refused".to_owned(),
        Some(Outcome::Refused { .. } | Outcome::Lost) | None => "–".to_owned(),
    }
}

fn path() -> PathBuf {
    root().join("xtask/lab/matrix.json")
}
