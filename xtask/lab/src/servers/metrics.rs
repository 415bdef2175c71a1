//! The daemon, and what it says about a peer while the traffic goes on.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::setup::{Process, server_port};

use super::finrace::{ATTACH, Report};

/// A running `finrace serve`.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    process: Process,
}

impl Serving {
    pub(crate) fn start(finrace: &Path, directory: &Path) -> Result<Self> {
        Self::start_with(finrace, "serve", &[], directory)
    }

    /// Starts it with more arguments; its log is `name.log`.
    pub(crate) fn start_with(
        finrace: &Path,
        name: &str,
        arguments: &[&str],
        directory: &Path,
    ) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], server_port()?));
        let mut command = Command::new(finrace);
        command.args(["serve", "--web.listen-address", &address.to_string()]).args(arguments);
        let mut process = Process::spawn(name, command, directory)?;
        process.wait_output("attached", ATTACH)?;
        Ok(Self { address, process })
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// The metrics, as they are now.
    pub(crate) fn scrape(&self) -> Result<Metrics> {
        Metrics::scrape(self.address)
    }

    /// All peers in the form of `finrace report --json`, which also goes into a file.
    pub(super) fn report(&self, file: &Path) -> Result<Report> {
        let text = ask(self.address, "/api/v1/peers?limit=500")?;
        let (_, body) = text.split_once("\r\n\r\n").context("an answer without a body")?;
        fs::write(file, body).with_context(|| format!("writing {}", file.display()))?;
        Report::read_with_losses(file)
    }
}

/// The whole answer of the daemon at `address`.
fn ask(address: SocketAddr, path: &str) -> Result<String> {
    let patience = Some(Duration::from_secs(5));
    let mut stream = TcpStream::connect(address).context("connecting to finrace")?;
    stream.set_read_timeout(patience)?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .context("asking finrace")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("reading {path}"))?;
    Ok(text)
}

/// Metrics in their text format.
pub(crate) struct Metrics(String);

impl Metrics {
    /// Asks the daemon at `address`.
    pub(crate) fn scrape(address: SocketAddr) -> Result<Self> {
        ask(address, "/metrics").map(Self)
    }

    /// The value of a metric without labels.
    pub(crate) fn plain(&self, name: &str) -> Option<f64> {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value)
    }

    /// The sum over all series of `name` that have these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // A sum of nothing is -0.
        0.0 + self.series(name, labels).iter().map(|(_, value)| value).sum::<f64>()
    }

    /// Labels, `name="value"` each, and value of the series of `name` that have these labels.
    pub(crate) fn series(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(Vec<&str>, f64)> {
        let wanted: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let series = self.0.lines().filter_map(|line| {
            let (series, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            // Commas within values would only hide a series that nobody asks for.
            let labels: Vec<&str> = series.split(',').collect();
            let has_all = wanted.iter().all(|label| labels.contains(&&**label));
            has_all.then(|| Some((labels, value.trim().parse().ok()?)))?
        });
        series.collect()
    }

    /// Whether a client's peer has this verdict.
    pub(crate) fn has_verdict(&self, peer: SocketAddr, verdict: &str) -> bool {
        let peer = peer.to_string();
        let labels = [("role", "client"), ("peer", &*peer), ("verdict", verdict)];
        self.sum("finrace_verdict", &labels) > 0.0
    }

    /// Races with a client's peer so far.
    pub(crate) fn races(&self, peer: SocketAddr) -> f64 {
        self.sum("finrace_races_total", &[("role", "client"), ("peer", &peer.to_string())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series() {
        let peer = "127.0.0.1:80".parse().unwrap();
        let other = "127.0.0.1:8".parse().unwrap();
        let text = "HTTP/1.0 200 OK\r\n\r\n\
            # TYPE finrace_races_total counter\n\
            finrace_races_total{role=\"client\",peer=\"127.0.0.1:80\",class=\"stale_write\"} 2\n\
            finrace_races_total{role=\"client\",peer=\"127.0.0.1:80\",class=\"fin_crossed\"} 3\n\
            finrace_races_total{role=\"server\",peer=\"127.0.0.1:80\",class=\"x\"} 5\n\
            finrace_verdict{role=\"client\",peer=\"127.0.0.1:80\",verdict=\"exposed\"} 1\n\
            finrace_verdict{role=\"client\",peer=\"127.0.0.1:80\",verdict=\"safe\"} 0\n";
        let metrics = Metrics(text.to_owned());
        assert!((metrics.races(peer) - 5.0).abs() < 1e-9);
        assert!(metrics.races(other).abs() < 1e-9);
        assert!(metrics.has_verdict(peer, "exposed"));
        assert!(!metrics.has_verdict(peer, "safe"));
        assert!(!metrics.has_verdict(other, "exposed"));
    }
}
