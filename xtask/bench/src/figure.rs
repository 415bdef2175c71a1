//! Figures that sum up what was measured, each with its budget; and those that docs/costs.md shows.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};
use xtask::root;

use super::machine::Machine;
use super::stats::Judgement;

/// One figure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Figure {
    /// What was measured.
    pub(super) what: String,
    /// The value with its unit and, where there is one, its interval.
    pub(super) measured: String,
    /// Likewise.
    pub(super) budget: Option<String>,
    pub(super) judgement: Option<Judgement>,
    /// Also for docs/costs.md: figures that have a budget, and those to compare with them.
    pub(super) is_for_all: bool,
}

impl Figure {
    /// A figure without a budget.
    pub(super) fn new(what: impl Into<String>, measured: impl Into<String>) -> Self {
        let (what, measured) = (what.into(), measured.into());
        Self { what, measured, budget: None, judgement: None, is_for_all: false }
    }

    pub(super) fn for_all(self) -> Self {
        Self { is_for_all: true, ..self }
    }

    pub(super) fn within(self, budget: impl Into<String>, judgement: Judgement) -> Self {
        Self { budget: Some(budget.into()), judgement: Some(judgement), ..self }.for_all()
    }

    /// A value that must not be above another.
    pub(super) fn at_most(
        what: impl Into<String>,
        value: f64,
        budget: f64,
        unit: &str,
        digits: usize,
    ) -> Self {
        let judgement = if value <= budget { Judgement::Within } else { Judgement::Over };
        Self::new(what, format!("{value:.digits$}{unit}"))
            .within(format!("{budget}{unit}"), judgement)
    }
}

pub(super) fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "measured", "budget", ""]);
    for Figure { what, measured, budget, judgement, .. } in figures {
        let judgement = judgement.map(|judgement| judgement.to_string()).unwrap_or_default();
        table.add_row([what, measured, budget.as_deref().unwrap_or_default(), &judgement]);
    }
    table.to_string()
}

/// `xtask/bench/bench.json`: the last full run that was kept.
#[derive(Deserialize, Serialize)]
pub(crate) struct Recorded {
    pub(super) machine: Machine,
    pub(super) commit: String,
    pub(super) figures: Vec<Figure>,
}

impl Recorded {
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read(path()).with_context(|| format!("reading {}", path().display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path().display()))
    }

    pub(super) fn write(&self) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("encoding the figures")?;
        fs::write(path(), json + "\n").with_context(|| format!("writing {}", path().display()))
    }

    /// What is not within its budget.
    pub(super) fn faults(&self) -> Vec<String> {
        let is_bad = |figure: &&Figure| {
            figure.judgement.is_some_and(|judgement| judgement != Judgement::Within)
        };
        let fault = |Figure { what, measured, judgement, .. }: &Figure| {
            let judgement = judgement.map(|judgement| judgement.to_string()).unwrap_or_default();
            format!("{what}: {measured}: {judgement}")
        };
        self.figures.iter().filter(is_bad).map(fault).collect()
    }

    /// The table and where it is from.
    pub(crate) fn to_markdown(&self) -> String {
        let row = |Figure { what, measured, budget, judgement, .. }: &Figure| {
            let budget = budget.as_deref().unwrap_or_default();
            let judgement = judgement.map(|judgement| judgement.to_string()).unwrap_or_default();
            format!("| {what} | {measured} | {budget} | {judgement} |\n")
        };
        let rows: String =
            self.figures.iter().filter(|figure| figure.is_for_all).map(row).collect();
        let Self { machine, commit, .. } = self;
        format!(
            "| | measured | budget | |\n|---|---|---|---|\n{rows}\n{machine}, commit {commit}.\n"
        )
    }
}

fn path() -> PathBuf {
    root().join("xtask/bench/bench.json")
}
