//! What a scenario is built on: its directory, its ports, its programs, and its claims.

use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::setup::{self, Process};

use super::lines::{Claim, Lines};
use super::verdicts::Verdicts;
use crate::link::{Link, command_in};

/// What all scenarios share.
pub(super) struct Kit {
    pub(super) dir: PathBuf,
    pub(super) finrace: PathBuf,
    /// `bin` of a Python environment.
    pub(super) venv: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    peers: PathBuf,
    go_peer: PathBuf,
}

impl Kit {
    pub(super) fn new(dir: PathBuf, finrace: PathBuf) -> Result<Self> {
        setup::ensure(&[
            "curl",
            "golang-go",
            "golang-golang-x-net-dev",
            "haproxy",
            "iproute2",
            "iptables",
            "nginx",
            "openssl",
            "postgresql",
            "prometheus",
            "redis-server",
            "wrk",
        ])?;
        let venv = setup::python(&["gunicorn==27.0.1", "websockets==17.4"])?;
        let kit = Self {
            finrace,
            venv,
            certificate: dir.join("certificate.pem"),
            key: dir.join("key.pem"),
            peers: dir.join("peers.py"),
            go_peer: dir.join("go-peer"),
            dir,
        };

        write(&kit.peers, include_str!("peers.py"))?;
        let go_source = kit.dir.join("main.go");
        write(&go_source, include_str!("go/main.go"))?;
        setup::run(
            // Debian's packages of Go libraries: nothing is downloaded.
            Command::new("go")
                .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode")])
                .args(["build", "-o"])
                .args([&kit.go_peer, &go_source]),
        )?;
        setup::run(
            Command::new("openssl")
                .args("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lookalike".split(' '))
                .arg("-keyout")
                .arg(&kit.key)
                .arg("-out")
                .arg(&kit.certificate),
        )?;
        Ok(kit)
    }
}

pub(super) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Where a scenario's two ends are: loopback, or two namespaces with a delay between them.
pub(super) struct Wire(Option<Link>);

impl Wire {
    pub(super) fn host(&self) -> String {
        self.0.as_ref().map_or("127.0.0.1".to_owned(), |link| link.server_ip().to_string())
    }

    pub(super) fn client_ns(&self) -> Option<&str> {
        self.0.as_ref().map(Link::client_ns)
    }

    pub(super) fn server_ns(&self) -> Option<&str> {
        self.0.as_ref().map(Link::server_ns)
    }
}

/// One scenario under way.
pub(super) struct Stage<'a> {
    pub(super) kit: &'a Kit,
    pub(super) dir: PathBuf,
    name: &'static str,
    ports: Vec<u16>,
    /// Those of the ports on which nothing is wrong.
    innocent: Vec<u16>,
    claims: Vec<Claim>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(name: &'static str, kit: &'a Kit) -> Result<Self> {
        let dir = kit.dir.join(name);
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { kit, dir, name, ports: Vec::new(), innocent: Vec::new(), claims: Vec::new() })
    }

    /// A port of this scenario's own on which no race may be reported, and no one blamed.
    pub(super) fn port(&mut self) -> Result<u16> {
        let port = self.race_port()?;
        self.innocent.push(port);
        self.none(port, "event=race");
        Ok(port)
    }

    /// A port of this scenario's own.
    pub(super) fn race_port(&mut self) -> Result<u16> {
        let port = setup::server_port()?;
        self.ports.push(port);
        Ok(port)
    }

    pub(super) fn some(&mut self, port: u16, pattern: impl Into<String>) {
        self.claim(port, 1..=usize::MAX, pattern);
    }

    pub(super) fn none(&mut self, port: u16, pattern: impl Into<String>) {
        self.claim(port, 0..=0, pattern);
    }

    pub(super) fn exactly(&mut self, count: usize, port: u16, pattern: impl Into<String>) {
        self.claim(port, count..=count, pattern);
    }

    fn claim(&mut self, port: u16, count: RangeInclusive<usize>, pattern: impl Into<String>) {
        self.claims.push(Claim { port, count, pattern: pattern.into() });
    }

    /// What is wrong with the lines and verdicts on this scenario's ports.
    pub(super) fn faults(&self, lines: &Lines, verdicts: &Verdicts) -> Vec<String> {
        let mut faults = Vec::new();
        if self.ports.iter().all(|port| lines.about(*port).is_empty()) {
            faults.push("no line about any of its ports".to_owned());
        }
        faults.extend(self.ports.iter().filter_map(|port| lines.wrong_roles(*port)));
        faults.extend(self.claims.iter().filter_map(|claim| claim.fault(lines)));
        faults.extend(self.innocent.iter().filter_map(|port| verdicts.blame(*port)));
        faults
    }

    /// Loopback, or a link with this delay each way.
    pub(super) fn wire(&self, one_way_ms: u64) -> Result<Wire> {
        let link = (one_way_ms > 0)
            .then(|| Link::new(&format!("look-{}", self.name), Duration::from_millis(one_way_ms)));
        Ok(Wire(link.transpose()?))
    }

    /// A role of `peers.py`.
    pub(super) fn python<A: ToString>(
        &self,
        namespace: Option<&str>,
        role: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = command_in(namespace, &self.kit.venv.join("python").to_string_lossy());
        command.arg(&self.kit.peers).arg(role);
        command.args(arguments.into_iter().map(|a| a.to_string()));
        command
    }

    /// The program of `go/main.go`.
    pub(super) fn go(&self, namespace: Option<&str>) -> Command {
        command_in(namespace, &self.kit.go_peer.to_string_lossy())
    }

    pub(super) fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(name, command, &self.dir)
    }

    /// Starts a server that says `ready`.
    pub(super) fn serve(&self, name: &str, command: Command) -> Result<Process> {
        let mut process = self.spawn(name, command)?;
        process.wait_output("ready", PATIENCE)?;
        Ok(process)
    }

    /// Starts a server and waits until it accepts connections.
    pub(super) fn listen(&self, name: &str, command: Command, port: u16) -> Result<Process> {
        let process = self.spawn(name, command)?;
        setup::wait_port(SocketAddr::from(([127, 0, 0, 1], port)), PATIENCE)
            .with_context(|| format!("{name}: {}", process.output().unwrap_or_default()))?;
        Ok(process)
    }

    /// Starts nginx with these `server` blocks, one of which listens on `port`.
    pub(super) fn nginx(&self, port: u16, servers: &str) -> Result<Process> {
        let dir = self.dir.display();
        let path = self.dir.join("nginx.conf");
        let text = format!(
            "daemon off; user root; worker_processes 1; pid {dir}/nginx.pid;
             error_log {dir}/error.log; events {{ worker_connections 512; }}
             http {{
                 access_log off; root {dir};
                 client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
                 fastcgi_temp_path {dir}/fastcgi; scgi_temp_path {dir}/scgi;
                 uwsgi_temp_path {dir}/uwsgi;
                 {servers}
             }}"
        );
        write(&path, text)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&path).arg("-e").arg(self.dir.join("error.log"));
        self.listen("nginx", command, port)
    }

    /// `nginx -s`.
    pub(super) fn signal_nginx(&self, signal: &str) -> Result<()> {
        let (conf, log) = (self.dir.join("nginx.conf"), self.dir.join("error.log"));
        let mut command = Command::new("nginx");
        setup::run(command.args(["-s", signal, "-c"]).arg(conf).arg("-e").arg(log))?;
        Ok(())
    }
}

/// How long to wait for what has to come, even on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
