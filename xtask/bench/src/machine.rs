//! What timings depend on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use xtask::setup;

/// What stays the same during a run.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    /// Ticks of the kernel per second; none where it does not tell.
    hz: Option<u32>,
    /// By the name of the vulnerability.
    mitigations: BTreeMap<String, String>,
}

impl Machine {
    pub(super) fn read() -> Result<Self> {
        let info = read("/proc/cpuinfo")?;
        let processor = field(&info, "model name").unwrap_or("unknown").to_owned();
        let mut mitigations = BTreeMap::new();
        // An old kernel does not tell.
        for entry in fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten() {
            let entry = entry?;
            let state = read(&entry.path().to_string_lossy())?.trim().to_owned();
            if state != "Not affected" {
                mitigations.insert(entry.file_name().to_string_lossy().into_owned(), state);
            }
        }
        Ok(Self {
            kernel: kernel()?,
            processor,
            processors: std::thread::available_parallelism()?.get(),
            hz: hz(),
            mitigations,
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel, processor, processors, hz, mitigations } = self;
        write!(f, "Linux {kernel}, {processors} processors of {processor}")?;
        hz.map_or(Ok(()), |hz| write!(f, ", HZ {hz}"))?;
        write!(f, ", {} mitigations", mitigations.len())
    }
}

/// Its version, without what distributors add.
fn kernel() -> Result<String> {
    let release = read("/proc/sys/kernel/osrelease")?;
    Ok(release.split(['-', '+', '\n']).next().unwrap_or_default().to_owned())
}

fn hz() -> Option<u32> {
    let release = read("/proc/sys/kernel/osrelease").ok()?;
    let config = read(&format!("/boot/config-{}", release.trim()))
        .or_else(|_| setup::run(Command::new("zcat").arg("/proc/config.gz")))
        .ok()?;
    config.lines().find_map(|line| line.strip_prefix("CONFIG_HZ="))?.parse().ok()
}

/// What else the machine did while a part was measured.
#[derive(Debug, Serialize)]
pub(super) struct Conditions {
    /// Over the last minute.
    load_before: f64,
    load_after: f64,
    /// Share of all processors' time that the hypervisor gave to others.
    steal_percent: f64,
}

/// The conditions so far.
pub(super) struct Watch {
    load: f64,
    times: Vec<u64>,
}

impl Watch {
    pub(super) fn begin() -> Result<Self> {
        Ok(Self { load: load()?, times: times()? })
    }

    pub(super) fn finish(self) -> Result<Conditions> {
        let spent: Vec<u64> =
            times()?.iter().zip(&self.times).map(|(after, before)| after - before).collect();
        // user nice system idle iowait irq softirq steal
        let all: u64 = spent.iter().take(8).sum();
        let steal = spent.get(7).copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "ticks of one run")]
        let steal_percent = 100.0 * steal as f64 / all.max(1) as f64;
        Ok(Conditions { load_before: self.load, load_after: load()?, steal_percent })
    }
}

fn load() -> Result<f64> {
    let text = read("/proc/loadavg")?;
    text.split(' ').next().and_then(|word| word.parse().ok()).context("/proc/loadavg")
}

fn times() -> Result<Vec<u64>> {
    let text = read("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let times = line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>();
    times.context("/proc/stat")
}

/// The value of a line `name: value`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.trim_start().strip_prefix(':');
    text.lines().find_map(value).map(str::trim)
}

pub(super) fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let text = "prog_id:\t17\nmodel name\t: A B\nrun_cnt:\t4\n";
        assert_eq!(field(text, "model name"), Some("A B"));
        assert_eq!(field(text, "prog_id"), Some("17"));
        assert_eq!(field(text, "run"), None);
    }
}
