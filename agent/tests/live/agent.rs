//! The agent as a child process, and the lines it has printed.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::rights::{self, Rights};
use crate::stage::{Stage, stretched};

/// Loading programs can take seconds.
const START_MS: u64 = 60_000;
const STOP_MS: u64 = 10_000;
const POLL_MS: u64 = 20;

pub(crate) struct Agent {
    child: Child,
    lines: Collected,
    log: Collected,
    rights: Option<Rights>,
}

type Collected = Arc<Mutex<Vec<String>>>;

impl Agent {
    /// Returns once its programs are attached.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        Self::run(&["watch", "--json"], args)
    }

    /// The same for another command.
    pub(crate) fn run(words: &[&str], args: &[&str]) -> Result<Self> {
        let program = program()?;
        let added = std::env::var("FINRACE_ARGS").unwrap_or_default();
        let mut command = Command::new(&program);
        command.args(words).args(added.split_whitespace()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let rights = Rights::from_env()?;
        if let Some(rights) = rights {
            rights.restrict(&mut command);
        }
        let mut child =
            command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let lines = collect(child.stdout.take());
        let log = collect(child.stderr.take());
        let mut agent = Self { child, lines, log, rights };
        for _ in 0..START_MS / POLL_MS {
            if locked(&agent.log).iter().any(|line| line.contains("attached")) {
                return Ok(agent);
            }
            if let Some(status) = agent.child.try_wait().context("waiting for the agent")? {
                bail!("the agent ended with {status}: {}", locked(&agent.log).join("; "));
            }
            thread::sleep(stretched(POLL_MS));
        }
        bail!("the agent did not attach: {}", locked(&agent.log).join("; "))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("reading the agent's pid")?, signal)
            .with_context(|| format!("sending the agent {signal:?}"))
    }

    /// All that it has printed, once it has ended well.
    pub(crate) fn output(mut self) -> Result<String> {
        self.wait()?;
        thread::sleep(stretched(POLL_MS));
        Ok(locked(&self.lines).concat())
    }

    fn wait(&mut self) -> Result<()> {
        for _ in 0..STOP_MS / POLL_MS {
            let Some(status) = self.child.try_wait().context("waiting for the agent")? else {
                thread::sleep(stretched(POLL_MS));
                continue;
            };
            if !status.success() {
                let (said, log) = (locked(&self.lines).concat(), locked(&self.log).join("; "));
                bail!("the agent ended with {status}: {log} {said}");
            }
            return Ok(());
        }
        bail!("the agent went on after an interrupt")
    }

    /// Runs of its programs that the kernel skipped, because one of the kind was under way on that
    /// processor; 0 before 5.12, which does not count them.
    pub(crate) fn skipped_runs(&self) -> u64 {
        let files = fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()));
        let texts =
            files.into_iter().flatten().flatten().map(|file| fs::read_to_string(file.path()));
        let counts = texts.flatten().filter_map(|text| {
            let count = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
            count.trim().parse::<u64>().ok()
        });
        counts.sum()
    }

    /// Checks that it has no capability left.
    pub(crate) fn check_rights(&self) -> Result<()> {
        rights::check_given_up(self.rights, self.child.id())
    }

    /// What it said about the connections of this stage.
    pub(crate) fn lines(&self, stage: &Stage) -> Vec<Value> {
        let lines = locked(&self.lines);
        // A line that is not JSON counts for every stage, so that it fails the run.
        let parsed = lines.iter().map(|line| {
            serde_json::from_str(line).unwrap_or_else(|_| Value::String(line.to_owned()))
        });
        parsed.filter(|line: &Value| line.is_string() || stage.owns(line)).collect()
    }

    /// An interrupt is an ordinary end: status 0 and a last word.
    pub(crate) fn stop(mut self) -> Result<()> {
        let before = locked(&self.log).len();
        self.signal(Signal::INT)?;
        self.wait()?;
        thread::sleep(stretched(POLL_MS));
        if locked(&self.log).len() == before {
            bail!("the agent ended without a summary");
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it has already ended, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `FINRACE_BIN`, else next to this program (in a VM), else the one that cargo built with this test.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FINRACE_BIN") {
        return Ok(path.into());
    }
    let sibling =
        std::env::current_exe().context("finding this program")?.with_file_name("finrace");
    let built = option_env!("CARGO_BIN_EXE_finrace").map(PathBuf::from);
    Ok(if sibling.exists() { sibling } else { built.unwrap_or(sibling) })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Collected {
    let collected = Collected::default();
    let to = Arc::clone(&collected);
    if let Some(stream) = stream {
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                locked(&to).push(line);
            }
        });
    }
    collected
}

fn locked(lines: &Collected) -> MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}
