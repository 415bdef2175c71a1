//! Servers under a continuous load.
//!
//! The client and its servers share one processor, and so does finrace's own thread where whole
//! workloads are compared. Then whatever finrace takes, at either end or elsewhere, is missing from what
//! the workload gets done; and nothing depends on which process wakes which on which processor, which is
//! most of the noise otherwise. Everything else goes to the other processors, if there are any.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use finrace_lab::software::conf::nginx_head;
use serde::Deserialize;
use xtask::setup::{self, Process, server_port, wait_port};

use super::dialog::Dialog;

const START: Duration = Duration::from_secs(20);

/// What all parts are built on.
pub(super) struct Stand {
    /// The executable of the benchmark `cost`.
    pub(super) cost: PathBuf,
    /// The agent.
    pub(super) finrace: PathBuf,
    /// Programs that do nothing, and one that writes records.
    pub(super) object: PathBuf,
    /// For configurations and logs.
    pub(super) directory: PathBuf,
}

impl Stand {
    /// An empty directory of this name.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        setup::empty_directory(self.directory.join(name))
    }

    /// A stage, ready for orders; on the processor of the load, or anywhere.
    pub(super) fn stage(&self, directory: &Path, is_pinned: bool) -> Result<Dialog> {
        let mut command = if is_pinned { pinned(&self.cost)? } else { Command::new(&self.cost) };
        command.arg("stage").arg("--object").arg(&self.object);
        let mut stage = Dialog::start("stage", command, directory)?;
        let word = stage.hear()?;
        ensure!(word == "ready", "the stage says `{word}`");
        Ok(stage)
    }
}

/// A command on the last processor, which is less often interrupted than the first.
fn pinned(program: &Path) -> Result<Command> {
    let last = available_parallelism()?.get() - 1;
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &last.to_string()]).arg(program);
    Ok(command)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Workload {
    /// nginx, a file of 1 KB, keep-alive connections
    Static,
    /// The same behind an nginx that keeps its connections to it
    Proxy,
    /// redis, GET of 64 bytes
    Redis,
    /// Writes of 64 KiB
    Bulk,
    /// nginx, the file of 1 KB, a connection for each request
    Close,
}

impl Workload {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Static => "nginx, 1 KB",
            Self::Proxy => "nginx behind nginx",
            Self::Redis => "redis GET",
            Self::Bulk => "64 KiB writes",
            Self::Close => "nginx, connection per request",
        }
    }

    /// How much of its throughput may be lost, in percent.
    pub(super) const fn budget(self) -> Option<f64> {
        match self {
            Self::Static => Some(2.0),
            Self::Redis => Some(2.5),
            Self::Close => Some(4.0),
            Self::Proxy | Self::Bulk => None,
        }
    }

    /// What the client is told to do.
    const fn kind(self) -> &'static str {
        match self {
            Self::Static | Self::Proxy => "http",
            Self::Redis => "redis",
            Self::Bulk => "bulk",
            Self::Close => "http-close",
        }
    }

    /// Starts servers and load.
    pub(super) fn start(self, stand: &Stand, directory: &Path) -> Result<Running> {
        let servers = match self {
            Self::Static | Self::Close => vec![Server::nginx(directory)?],
            Self::Proxy => {
                let behind = Server::nginx(directory)?;
                vec![Server::proxy(directory, behind.address)?, behind]
            }
            Self::Redis => vec![Server::redis(directory)?],
            Self::Bulk => Vec::new(),
        };
        let mut command = pinned(&stand.cost)?;
        command.args(["client", "--kind", self.kind(), "--connections", "16"]);
        if let Some(server) = servers.first() {
            command.args(["--address", &server.address.to_string()]);
        }
        let mut client = Dialog::start("client", command, directory)?;
        // Answered once the first requests were: workers run by now.
        client.ask("count").context("starting the client")?;
        let pids = servers.iter().map(Server::pids).collect::<Result<Vec<_>>>()?.concat();
        Ok(Running { client, pids, _servers: servers })
    }
}

/// A server that ends when this is dropped.
struct Server {
    address: SocketAddr,
    process: Process,
}

impl Server {
    fn start(name: &str, address: SocketAddr, command: Command, directory: &Path) -> Result<Self> {
        let process = Process::spawn(name, command, directory)?;
        wait_port(address, START)
            .with_context(|| format!("{name}: {}", process.output().unwrap_or_default()))?;
        Ok(Self { address, process })
    }

    fn nginx(directory: &Path) -> Result<Self> {
        setup::ensure(&["nginx-light"])?;
        let root = directory.join("root");
        fs::create_dir_all(&root).context("creating a directory of documents")?;
        fs::write(root.join("index.html"), "x".repeat(1024)).context("writing a document")?;
        let lines = format!("root {};", root.display());
        Self::nginx_with("nginx", "sendfile on; tcp_nopush on;", &lines, directory)
    }

    fn proxy(directory: &Path, behind: SocketAddr) -> Result<Self> {
        let head = format!(
            "proxy_http_version 1.1; proxy_set_header Connection '';\n\
             upstream behind {{ server {behind}; keepalive 32; keepalive_requests 1000000000; }}"
        );
        Self::nginx_with("proxy", &head, "location / { proxy_pass http://behind; }", directory)
    }

    /// Starts nginx with `head` for all, and `lines` for its one server.
    fn nginx_with(name: &str, head: &str, lines: &str, directory: &Path) -> Result<Self> {
        let address = loopback()?;
        let directory = directory.join(name);
        fs::create_dir_all(&directory).context("creating a directory for nginx")?;
        let file = directory.join("nginx.conf");
        let conf = format!(
            "{}access_log off;\n{head}\nserver {{\nlisten {address};\n\
             keepalive_requests 1000000000;\n{lines}\n}}\n}}\n",
            nginx_head(&directory.to_string_lossy())
        );
        fs::write(&file, conf).with_context(|| format!("writing {}", file.display()))?;
        let mut command = pinned(Path::new("nginx"))?;
        command.arg("-c").arg(file).arg("-p").arg(&directory).args(["-e", "error.log"]);
        Self::start(name, address, command, &directory)
    }

    fn redis(directory: &Path) -> Result<Self> {
        setup::ensure(&["redis-server", "redis-tools"])?;
        let address = loopback()?;
        let port = address.port().to_string();
        let mut command = pinned(Path::new("redis-server"))?;
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port]);
        command.current_dir(directory);
        let server = Self::start("redis", address, command, directory)?;
        setup::run(Command::new("redis-cli").args(["-p", &port, "set", "k", &"x".repeat(64)]))?;
        Ok(server)
    }

    /// The main process and its workers.
    fn pids(&self) -> Result<Vec<u32>> {
        let pid = self.process.pid();
        let children = super::machine::read(&format!("/proc/{pid}/task/{pid}/children"))?;
        let children = children.split_whitespace().map(str::parse);
        let pids = std::iter::once(Ok(pid)).chain(children).collect::<Result<_, _>>();
        pids.context("children of a server")
    }
}

fn loopback() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, server_port()?).into())
}

/// A workload at work.
pub(super) struct Running {
    // Declared before the servers, so that it ends first.
    client: Dialog,
    pids: Vec<u32>,
    _servers: Vec<Server>,
}

impl Running {
    /// How far it has got, with the CPU time of another process.
    pub(super) fn count(&mut self, other: Option<u32>) -> Result<Count> {
        let pids = self.pids.iter().copied().chain(other);
        let order: String =
            std::iter::once("count".to_owned()).chain(pids.map(|pid| format!(" {pid}"))).collect();
        let answer: Answer = serde_json::from_str(&self.client.ask(&order)?)?;
        ensure!(answer.errors == 0, "{} requests failed", answer.errors);
        let (servers, other) =
            answer.watched_ns.split_at_checked(self.pids.len()).context("a short answer")?;
        Ok(Count {
            requests: answer.requests,
            bytes: answer.bytes,
            time_ns: answer.time_ns,
            cpu_ns: answer.cpu_ns + servers.iter().sum::<u64>(),
            other_ns: other.iter().sum(),
        })
    }

    /// Ends it; fails if any request has failed.
    pub(super) fn finish(self) -> Result<()> {
        self.client.finish()
    }
}

/// The client's answer to `count`.
#[derive(Deserialize)]
struct Answer {
    requests: u64,
    bytes: u64,
    errors: u64,
    cpu_ns: u64,
    time_ns: u64,
    watched_ns: Vec<u64>,
}

/// How far a load has got.
#[derive(Clone, Copy)]
pub(super) struct Count {
    requests: u64,
    bytes: u64,
    time_ns: u64,
    /// CPU time of client and servers.
    cpu_ns: u64,
    /// CPU time of the other process.
    other_ns: u64,
}

/// What was done between two counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slice {
    pub(super) seconds: f64,
    pub(super) requests: f64,
    pub(super) bytes: f64,
    /// Seconds of CPU, of client and servers.
    pub(super) cpu: f64,
    /// Seconds of CPU, of the other process.
    pub(super) other_cpu: f64,
}

impl Slice {
    #[expect(clippy::cast_precision_loss, reason = "seconds in nanoseconds")]
    pub(super) fn between(start: Count, end: Count) -> Result<Self> {
        let seconds = |start, end: u64| end.saturating_sub(start) as f64 / 1e9;
        let slice = Self {
            seconds: seconds(start.time_ns, end.time_ns),
            requests: end.requests.saturating_sub(start.requests) as f64,
            bytes: end.bytes.saturating_sub(start.bytes) as f64,
            cpu: seconds(start.cpu_ns, end.cpu_ns),
            other_cpu: seconds(start.other_ns, end.other_ns),
        };
        ensure!(slice.requests > 0.0 && slice.seconds > 0.0, "nothing got done");
        Ok(slice)
    }

    pub(super) fn per_second(&self) -> f64 {
        self.requests / self.seconds
    }

    /// Microseconds of client and servers.
    pub(super) fn cpu_per_request(&self) -> f64 {
        self.cpu / self.requests * 1e6
    }
}
