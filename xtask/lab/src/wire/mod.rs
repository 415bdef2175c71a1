//! A packet capture: tcpdump writes it, tshark decodes it, and what it says is the truth that
//! finrace is held against.

pub(crate) mod idle;
pub(crate) mod truth;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::setup::{Process, run};

use self::truth::{Connection, FIELDS};
use crate::link::{self, command_in};

/// A running packet capture.
pub(crate) struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    /// Captures what `filter` lets through: on the link, if there is a namespace of one of its
    /// ends, otherwise on loopback.
    pub(crate) fn start(directory: &Path, namespace: Option<&str>, filter: &str) -> Result<Self> {
        let file = directory.join("capture.pcap");
        let device = if namespace.is_some() { link::DEVICE } else { "lo" };
        let mut command = command_in(namespace, "tcpdump");
        // A buffer of 64 MiB, each packet at once, headers only, as root so that it may write.
        command.args(["-i", device, "-B", "65536", "--immediate-mode", "-s", "128", "-Z", "root"]);
        command.arg("-w").arg(&file).arg(filter);
        let mut tcpdump = Process::spawn("tcpdump", command, directory)?;
        tcpdump.wait_output("listening on", Duration::from_secs(10))?;
        Ok(Self { tcpdump, file })
    }

    /// Ends the capture and has tshark read it.
    pub(crate) fn finish(self) -> Result<Vec<Connection>> {
        let said = self.tcpdump.stop()?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "incomplete capture: {said}");

        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-T", "fields", "-r"]).arg(&self.file);
        tshark.args(FIELDS.iter().flat_map(|field| ["-e", field]));
        Ok(truth::connections(truth::parse(&run(&mut tshark)?)?))
    }
}
