//! finrace at work, and what it reports.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use xtask::setup::Process;

/// Time for the programs to be loaded, even on a busy machine.
pub(crate) const ATTACH: Duration = Duration::from_secs(30);

/// `finrace report --json`, as far as the tests read it.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    lost: BTreeMap<String, u64>,
    peers: Vec<Row>,
}

/// One peer of a report.
#[derive(Debug, Deserialize)]
pub(crate) struct Row {
    role: String,
    peer: String,
    pub(crate) races: BTreeMap<String, u64>,
    pub(crate) idle_timeout: IdleTimeout,
    pub(crate) verdict: Option<String>,
    /// Expected races.
    pub(crate) exposure_per_hour: Option<f64>,
    /// Best first.
    #[serde(default)]
    pub(crate) advice: Vec<Advice>,
    #[serde(default)]
    pub(crate) alternatives: Vec<Alternative>,
    /// Compared with an earlier report.
    pub(crate) against: Option<Against>,
}

/// What would end the races.
#[derive(Debug, Deserialize)]
pub(crate) struct Advice {
    /// For the configuration of the software that is meant.
    pub(crate) line: Option<String>,
    /// The whole of it as a sentence.
    pub(crate) text: String,
    /// The value to set.
    pub(crate) seconds: f64,
}

/// Another remedy.
#[derive(Debug, Deserialize)]
pub(crate) struct Alternative {
    pub(crate) kind: String,
    pub(crate) text: String,
    pub(crate) line: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Against {
    pub(crate) status: String,
}

/// Estimates, by the end that closed.
#[derive(Debug, Deserialize)]
pub(crate) struct IdleTimeout {
    pub(crate) peer: Option<Estimate>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Estimate {
    pub(crate) seconds: f64,
    pub(crate) low_seconds: Option<f64>,
    pub(crate) high_seconds: Option<f64>,
    pub(crate) closes: u64,
}

impl Report {
    fn read(file: &Path) -> Result<Self> {
        let report = Self::read_with_losses(file)?;
        // Closes of our own that were forgotten early would only matter to a request that comes much later.
        let lost = report.lost.iter().filter(|(reason, _)| *reason != "closed_full");
        let lost: u64 = lost.map(|(_, count)| count).sum();
        ensure!(lost == 0, "{lost} records lost: {}", file.display());
        Ok(report)
    }

    /// Reads it even where records were lost, if only those of what else runs on this machine.
    pub(super) fn read_with_losses(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}", file.display()))
    }

    /// The row of a peer: an address for a client, `:8080 from 10.0.0.9` for a server.
    pub(crate) fn row(&self, role: &str, peer: &str) -> Option<&Row> {
        self.peers.iter().find(|row| row.role == role && row.peer == peer)
    }
}

/// A `finrace report` under way.
pub(crate) struct Reporting {
    process: Process,
    file: PathBuf,
}

impl Reporting {
    /// Starts it, and waits until it watches. Its files are `name.json` and `name.log`.
    pub(crate) fn start(
        finrace: &Path,
        arguments: &[&str],
        name: &str,
        directory: &Path,
    ) -> Result<Self> {
        let file = directory.join(format!("{name}.json"));
        let mut command = Command::new(finrace);
        command.args(["report", "--json"]).args(arguments);
        let mut process = Process::spawn_into(&file, name, command, directory)?;
        process.wait_output("attached", ATTACH)?;
        Ok(Self { process, file })
    }

    pub(crate) fn is_running(&mut self) -> Result<bool> {
        self.process.is_running()
    }

    /// Makes it report now, if it has not yet.
    pub(crate) fn stop(self) -> Result<Report> {
        self.process.stop()?;
        Report::read(&self.file)
    }

    /// Waits until its time is over.
    pub(crate) fn wait(mut self, timeout: Duration) -> Result<Report> {
        self.process.wait(timeout)?;
        Report::read(&self.file)
    }
}
