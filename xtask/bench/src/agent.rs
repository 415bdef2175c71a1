//! The agent as it is shipped, a static binary: its size, how long until it is attached, and what
//! it takes when nothing happens.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use finrace_lab::guest::{self, Arch};
use finrace_lab::live::executables;
use finrace_lab::memory::Memory;
use serde::Serialize;
use xtask::setup::{Process, now, server_port};

use super::figure::Figure;
use super::machine::read;
use super::stats::median;
use super::workload::Stand;

const STARTS: usize = 11;
const SETTLE: Duration = Duration::from_secs(2);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(20);

const BINARY_MIB: f64 = 3.0;
const START_MS: f64 = 300.0;
const RSS_MIB: f64 = 10.0;
const CPU_PERCENT: f64 = 0.2;

#[derive(Serialize)]
pub(super) struct Agent {
    binary_bytes: u64,
    /// Size without the feature `kubernetes`, which the budget is for.
    bare_bytes: u64,
    /// Time from its start until it says that it is attached.
    start_ms: Vec<f64>,
    idle_rss_kb: u64,
    /// The most it ever had, reached while it started.
    peak_rss_kb: u64,
    idle_cpu_percent: f64,
}

pub(super) fn run(stand: &Stand) -> Result<Agent> {
    let binary_bytes = size(&stand.finrace)?;
    let mut start_ms = Vec::new();
    let (agent, address) = loop {
        let (agent, address, time) = start(stand)?;
        start_ms.push(time.as_secs_f64() * 1e3);
        if start_ms.len() == STARTS {
            break (agent, address);
        }
    };
    scrape(address)?;
    sleep(SETTLE);
    let before = cpu_ns(agent.pid())?;
    sleep(IDLE);
    let spent = cpu_ns(agent.pid())? - before;
    let memory = Memory::of(agent.pid())?;
    #[expect(clippy::cast_precision_loss, reason = "of seconds")]
    let idle_cpu_percent = 100.0 * spent as f64 / IDLE.as_nanos() as f64;
    drop(agent);
    Ok(Agent {
        binary_bytes,
        bare_bytes: bare()?,
        start_ms,
        idle_rss_kb: memory.now,
        peak_rss_kb: memory.peak,
        idle_cpu_percent,
    })
}

/// Comes last: it replaces the agent that is measured.
fn bare() -> Result<u64> {
    let mut build = guest::build_static(Arch::X86_64)?;
    let [bare] = executables(build.arg("--no-default-features"), ["--bin=finrace"])?;
    size(&bare)
}

fn size(binary: &Path) -> Result<u64> {
    Ok(fs::metadata(binary).with_context(|| format!("the size of {}", binary.display()))?.len())
}

/// Starts it, and waits until it is attached.
fn start(stand: &Stand) -> Result<(Process, SocketAddr, Duration)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port()?));
    let mut command = Command::new(&stand.finrace);
    command.args(["serve", "--web.listen-address", &address.to_string()]);
    let begin = now();
    let mut agent = Process::spawn("agent", command, &stand.directory)?;
    agent.wait_output("attached", Duration::from_secs(20))?;
    Ok((agent, address, begin.elapsed()))
}

fn scrape(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("reaching the agent")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\naccept-encoding: gzip\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("scraping the agent")?;
    ensure!(answer.starts_with(b"HTTP/1.0 200 "), "the agent refuses a scrape");
    Ok(())
}

/// CPU time of all threads.
fn cpu_ns(pid: u32) -> Result<u64> {
    let directory = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&directory).with_context(|| format!("reading {directory}"))? {
        let text = read(&task?.path().join("schedstat").to_string_lossy())?;
        let spent = text.split(' ').next().and_then(|word| word.parse::<u64>().ok());
        sum += spent.context("schedstat")?;
    }
    Ok(sum)
}

impl Agent {
    pub(super) fn figures(&self) -> Vec<Figure> {
        #[expect(clippy::cast_precision_loss, reason = "of a file, of memory")]
        let mebibytes = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
        let start = median(self.start_ms.clone()).unwrap_or(f64::INFINITY);
        vec![
            Figure::new(
                "static binary, stripped",
                format!("{:.2} MiB", mebibytes(self.binary_bytes)),
            ),
            Figure::at_most(
                "static binary without Kubernetes, stripped",
                mebibytes(self.bare_bytes),
                BINARY_MIB,
                " MiB",
                2,
            ),
            Figure::at_most("start until attached", start, START_MS, " ms", 0),
            Figure::at_most("RSS, idle", mebibytes(self.idle_rss_kb * 1024), RSS_MIB, " MiB", 1),
            Figure::at_most(
                "CPU of one processor, idle",
                self.idle_cpu_percent,
                CPU_PERCENT,
                " %",
                2,
            ),
        ]
    }
}
