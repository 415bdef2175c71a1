//! What the process metrics need, from `/proc`.

use std::time::Duration;

use anyhow::Context as _;

/// This process, in the units of its metrics.
#[derive(Clone, Debug)]
pub struct ProcessStatus {
    pub cpu: Duration,
    pub resident_bytes: u64,
    pub open_fds: u64,
    /// Since the Unix epoch.
    pub start: Duration,
}

impl ProcessStatus {
    pub fn read() -> anyhow::Result<Self> {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let fds = std::fs::read_dir("/proc/self/fd").context("listing /proc/self/fd")?;
        let read =
            |path: &str| std::fs::read_to_string(path).with_context(|| format!("reading {path}"));
        let status = read("/proc/self/status")?;
        let (stat, system) = (read("/proc/self/stat")?, read("/proc/stat")?);
        Ok(Self {
            cpu: cpu.try_into().unwrap_or_default(),
            resident_bytes: resident_bytes(&status).context("no VmRSS in /proc/self/status")?,
            // One of them is the listing's own.
            open_fds: (fds.count() as u64).saturating_sub(1),
            start: start(&stat, &system).context("no start time in /proc/self/stat, /proc/stat")?,
        })
    }
}

/// `VmRSS:    6512 kB` of `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Start after boot, field 22 of `/proc/self/stat` in ticks, and `btime` of `/proc/stat`.
fn start(stat: &str, system: &str) -> Option<Duration> {
    // User space sees 100 ticks a second on x86-64 and arm64, whatever the kernel's own HZ.
    const TICK: Duration = Duration::from_millis(10);
    // The command, field 2, may hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u32 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Duration::from_secs(boot) + TICK * ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_proc() {
        let status = "Name:\tfinrace\nVmHWM:\t    9000 kB\nVmRSS:\t    6512 kB\n";
        assert_eq!(resident_bytes(status), Some(6512 * 1024));
        assert_eq!(resident_bytes("Name:\tkthreadd\n"), None);

        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 12345 1 2 3";
        let system = "cpu  1 2 3\nbtime 1700000000\nprocesses 9\n";
        assert_eq!(start(stat, system), Some(Duration::from_millis(1_700_000_123_450)));
        assert_eq!(start(stat, "cpu 1\n"), None);
        assert_eq!(start("7 (a) S", system), None);
    }

    #[test]
    fn reads_this_process() {
        let own = ProcessStatus::read().unwrap();
        assert!(own.resident_bytes > 0 && own.open_fds > 0 && !own.start.is_zero(), "{own:?}");
    }
}
