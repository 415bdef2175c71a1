//! What a process has in memory, as the kernel counts it.

use std::fmt::{Display, Formatter};
use std::fs;

use anyhow::{Context, Result};

/// Resident memory in KiB.
pub struct Memory {
    pub now: u64,
    /// The most there ever was.
    pub peak: u64,
}

impl Memory {
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        Self::parse(&text).with_context(|| path)
    }

    fn parse(status: &str) -> Result<Self> {
        let kib = |name: &str| {
            let mut values = status.lines().filter_map(|line| line.strip_prefix(name));
            let value = values.next().and_then(|value| value.trim().strip_suffix(" kB"));
            value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name}"))
        };
        Ok(Self { now: kib("VmRSS:")?, peak: kib("VmHWM:")? })
    }

    pub fn peak_mb(&self) -> f64 {
        megabytes(self.peak)
    }
}

impl Display for Memory {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MB, at the most {:.1} MB", megabytes(self.now), self.peak_mb())
    }
}

/// In units of a million bytes.
#[expect(clippy::cast_precision_loss, reason = "of memory")]
fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status() {
        let text = "Name:\tx\nVmPeak:\t  99999 kB\nVmHWM:\t    9000 kB\nVmRSS:\t    5000 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!((memory.now, memory.peak), (5_000, 9_000));
        assert_eq!(memory.to_string(), "5.1 MB, at the most 9.2 MB");
        // Like that of a kernel thread, or of a process that has just ended.
        assert!(Memory::parse("Name:\tx\n").is_err());
    }
}
