//! A real Prometheus that scrapes a real finrace while real software races: `cargo xtask dashboard`
//! runs the queries of the dashboard and of the documentation, `cargo xtask alerts` follows an alert
//! to a webhook and back, `cargo xtask histograms` is about native histograms and exemplars.

mod alerts;
mod board;
mod dashboard;
mod endpoint;
mod histograms;
mod queries;
mod stand;
mod unit;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

pub(crate) use alerts::run as alerts;
pub(crate) use dashboard::run as dashboard;
pub(crate) use histograms::{HistogramsArgs, run as histograms};
use xtask::root;
use xtask::setup::{self, Process, now, server_port};

/// Its data goes to its own directory, not where Debian has it. A target that does not offer native
/// histograms is asked for the others as before.
const OPTIONS: [&str; 2] = ["--storage.tsdb.path=data", "--enable-feature=native-histograms"];

/// The address of a target, as docs/fleet.md takes it.
const ADDRESS: &str = r"\[?(.+?)\]?:[0-9]+";

/// How long a Go program may take to start on a busy machine.
const START: Duration = Duration::from_secs(30);

/// Options of all these commands.
#[derive(Args, Debug)]
pub(crate) struct PrometheusArgs {
    /// The program under test
    #[arg(long, value_name = "PATH", default_value = "target/release/finrace")]
    finrace: PathBuf,
}

impl PrometheusArgs {
    fn finrace(&self) -> Result<PathBuf> {
        ensure!(rustix::process::geteuid().is_root(), "real servers need root");
        fs::canonicalize(&self.finrace)
            .with_context(|| format!("{} (cargo build --release)", self.finrace.display()))
    }
}

/// A running Prometheus, or an Alertmanager.
struct Daemon {
    address: SocketAddr,
    _process: Process,
}

impl Daemon {
    /// Starts `program` in this directory, where its configuration is written to, and waits until it
    /// says that it is ready.
    fn start(
        program: impl AsRef<Path>,
        conf: &str,
        arguments: &[&str],
        directory: &Path,
    ) -> Result<Self> {
        let program = program.as_ref();
        let name = program.file_name().unwrap_or_default().display().to_string();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port()?));
        let file = directory.join(format!("{name}.yaml"));
        fs::write(&file, conf).with_context(|| format!("writing {}", file.display()))?;
        let mut command = Command::new(program);
        command.current_dir(directory).arg(format!("--config.file={}", file.display()));
        command.arg(format!("--web.listen-address={address}")).arg("--log.level=warn");
        command.args(arguments);
        let mut process = Process::spawn(&name, command, directory)?;
        let end = now() + START;
        while !get(address, "/-/ready").is_ok_and(|(status, _)| status == 200) {
            ensure!(process.is_running()?, "{name} ended: {}", process.output()?);
            ensure!(now() < end, "{name} is not ready: {}", process.output()?);
            sleep(Duration::from_millis(50));
        }
        Ok(Self { address, _process: process })
    }

    /// A Prometheus that asks every second: jobs by name, each with one target and its address as a label.
    fn prometheus(
        jobs: &[(&str, SocketAddr)],
        rules: &str,
        alertmanager: Option<SocketAddr>,
        directory: &Path,
    ) -> Result<Self> {
        let file = directory.join("rules.yaml");
        fs::write(&file, rules).with_context(|| format!("writing {}", file.display()))?;
        let file = file.display();
        let scraped = |(name, target): &(&str, SocketAddr)| {
            format!(
                "  - job_name: {name}\n    static_configs: [{{ targets: ['{target}'] }}]\n    \
                 relabel_configs: [{{ source_labels: [__address__], regex: '{ADDRESS}', \
                 target_label: host_ip }}]\n"
            )
        };
        let scraped: Vec<String> = jobs.iter().map(scraped).collect();
        let alerting = alertmanager.map(|address| {
            format!("alerting: {{ alertmanagers: [static_configs: [targets: ['{address}']]] }}\n")
        });
        let conf = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{file}]\n{}scrape_configs:\n{}",
            alerting.unwrap_or_default(),
            scraped.concat()
        );
        Self::start("prometheus", &conf, &OPTIONS, directory)
    }

    /// The data of an answer of Prometheus's API.
    fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        #[derive(Deserialize)]
        struct Answer {
            status: String,
            #[serde(default)]
            data: Value,
            #[serde(default)]
            error: String,
        }
        let pairs: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
        let (_, text) = get(self.address, &format!("/api/v1/{path}?{}", pairs.join("&")))?;
        let answer: Answer =
            serde_json::from_str(&text).with_context(|| format!("Prometheus answers `{text}`"))?;
        ensure!(answer.status == "success", "{}", answer.error);
        Ok(answer.data)
    }
}

/// The rules as they are shipped.
fn rules() -> Result<String> {
    let path = root().join("deploy/prometheus/finrace.rules.yaml");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A directory for logs, configurations and data; installs the packages.
fn prepare(name: &str) -> Result<PathBuf> {
    setup::ensure(&["prometheus", "prometheus-alertmanager"])?;
    setup::empty_directory(setup::target_dir().join(name))
}

/// Gets a page: its status and its body.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // HTTP/1.0: the body then ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").context("asking")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("reading from {address}"))?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("no HTTP: `{text}`") };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no status in `{head}`"))?, body.to_owned()))
}

/// As a value of a URL's query.
fn quoted(text: &str) -> String {
    let quoted = |byte: u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(quoted).collect()
}
