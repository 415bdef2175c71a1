//! nginx as a proxy that keeps its connections to a server.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use xtask::setup::{self, Process, run, wait_port};

use crate::link::{command_in, within};
use crate::software::START;
use crate::software::conf::nginx_head;

/// What a request to the proxy may address: pool `i` of it.
pub(crate) fn path(pool: usize) -> String {
    format!("/u{pool}")
}

/// Pools of connections to one server, each in an `upstream` block of its own.
#[derive(Clone, Copy)]
pub(crate) struct Pools<'a> {
    pub(crate) server: SocketAddr,
    pub(crate) tls: bool,
    pub(crate) count: usize,
    /// Further lines of each block.
    pub(crate) lines: &'a str,
    /// How long the proxy keeps a connection of its own clients.
    pub(crate) keep_alive: Duration,
}

impl<'a> Pools<'a> {
    /// With nginx's defaults.
    pub(crate) fn new(server: SocketAddr, count: usize) -> Self {
        Self { server, tls: false, count, lines: "", keep_alive: Duration::from_secs(75) }
    }

    pub(crate) fn with_lines(self, lines: &'a str) -> Self {
        Self { lines, ..self }
    }
}

/// A running nginx.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// Its access log: time, status, upstream status, upstream address.
    pub(crate) log: PathBuf,
    directory: PathBuf,
    process: Process,
}

impl Proxy {
    /// Starts it on loopback of a namespace, or of ours, and waits until it answers connections.
    pub(crate) fn start(
        directory: &Path,
        namespace: Option<&str>,
        pools: Pools<'_>,
    ) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], setup::server_port()?));
        let file = configure(directory, address, pools)?;
        let mut command = command_in(namespace, "nginx");
        command.arg("-c").arg(file).arg("-p").arg(directory).args(["-e", "error.log"]);
        let process = Process::spawn("proxy", command, directory)?;
        within(namespace, || wait_port(address, START))
            .with_context(|| format!("nginx: {}", process.output().unwrap_or_default()))?;
        let (directory, log) = (directory.to_owned(), directory.join("access.log"));
        Ok(Self { address, log, directory, process })
    }

    /// Writes another configuration and has it read again, as `nginx -s reload` does. Connections
    /// of the old one close.
    pub(crate) fn reload(&self, pools: Pools<'_>) -> Result<()> {
        let file = configure(&self.directory, self.address, pools)?;
        // Otherwise it would go on with the old one, and say so only in its log.
        let mut test = Command::new("nginx");
        run(test
            .arg("-t")
            .arg("-c")
            .arg(file)
            .arg("-p")
            .arg(&self.directory)
            .args(["-e", "error.log"]))?;
        self.process.signal(Signal::HUP)
    }
}

/// Writes the configuration of a proxy on `address`, and returns its file.
pub(crate) fn configure(
    directory: &Path,
    address: SocketAddr,
    pools: Pools<'_>,
) -> Result<PathBuf> {
    let file = directory.join("proxy.conf");
    fs::write(&file, nginx_conf(directory, address, pools)).context("writing proxy.conf")?;
    Ok(file)
}

fn nginx_conf(directory: &Path, address: SocketAddr, pools: Pools<'_>) -> String {
    let Pools { server, tls, count, lines, keep_alive } = pools;
    let directory = directory.to_string_lossy();
    let head = nginx_head(&directory);
    let scheme = if tls { "https" } else { "http" };
    let upstream = |i| format!("upstream u{i} {{ server {server}; keepalive 4; {lines} }}\n");
    let location = |i| format!("location = {} {{ proxy_pass {scheme}://u{i}; }}\n", path(i));
    let upstreams = (0..count).map(upstream).collect::<Vec<_>>().concat();
    let locations = (0..count).map(location).collect::<Vec<_>>().concat();
    let milliseconds = keep_alive.as_millis();
    format!(
        "{head}log_format lab '$msec $status $upstream_status $upstream_addr';\n\
         access_log {directory}/access.log lab;\n\
         proxy_http_version 1.1;\nproxy_set_header Connection '';\n{upstreams}\
         server {{ listen {address};\nkeepalive_timeout {milliseconds}ms;\n{locations}}}\n}}\n"
    )
}
