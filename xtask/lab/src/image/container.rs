//! Containers by podman and runc, each gone when it is dropped.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::setup::{self, now};

use crate::memory::Memory;

/// Limits may not be higher than this machine's own, which podman's defaults would be. crun does not
/// run where cgroups are mounted in both versions.
const RUN: [&str; 4] =
    ["--runtime=runc", "run", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"];

/// A running container.
pub(super) struct Container {
    name: String,
}

impl Container {
    /// Starts it in a network namespace; one of the same name that an interrupted run has left is
    /// replaced.
    pub(super) fn start(
        name: &str,
        namespace: Option<&str>,
        options: &[&str],
        image: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let network =
            namespace.map_or_else(|| "none".to_owned(), |name| format!("ns:/run/netns/{name}"));
        let mut podman = Command::new("podman");
        podman.args(RUN).args(["--detach", "--replace", "--name", name, "--network", &network]);
        setup::run(podman.args(options).arg(image).args(arguments))?;
        Ok(Self { name: name.to_owned() })
    }

    /// Everything it has printed so far.
    pub(super) fn log(&self) -> Result<String> {
        let output = Command::new("podman").args(["logs", &self.name]).output();
        let output = output.with_context(|| format!("the log of {}", self.name))?;
        Ok(text(&output))
    }

    pub(super) fn wait_log(&self, wanted: &str) -> Result<()> {
        let end = now() + Duration::from_secs(30);
        loop {
            let log = self.log()?;
            if log.contains(wanted) {
                return Ok(());
            }
            if now() > end {
                bail!("{} has not said `{wanted}`: {log}", self.name);
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// What the kernel says about its first process.
    pub(super) fn status(&self) -> Result<String> {
        let path = format!("/proc/{}/status", self.pid()?);
        fs::read_to_string(&path).with_context(|| path)
    }

    /// Memory of its first process.
    pub(super) fn memory(&self) -> Result<Memory> {
        Memory::of(self.pid()?).with_context(|| self.name.clone())
    }

    fn pid(&self) -> Result<u32> {
        let mut podman = Command::new("podman");
        let pid = setup::run(podman.args(["inspect", "--format={{.State.Pid}}", &self.name]))?;
        pid.trim().parse().with_context(|| format!("{} has the pid `{}`", self.name, pid.trim()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut podman = Command::new("podman");
        // If it is left behind, the next run replaces it.
        setup::run(podman.args(["rm", "--force", "--time=2", &self.name])).ok();
    }
}

/// Runs a container to its end; returns its exit status and all that it has printed.
pub(super) fn run(
    options: &[&str],
    image: &str,
    arguments: &[&str],
) -> Result<(Option<i32>, String)> {
    let mut podman = Command::new("podman");
    podman.args(RUN).args(["--rm", "--network=none"]).args(options).arg(image).args(arguments);
    let output = podman.output().with_context(|| format!("starting {podman:?}"))?;
    Ok((output.status.code(), text(&output)))
}

fn text(output: &std::process::Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}
