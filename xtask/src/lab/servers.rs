//! The real software of the lab: four backends with a short idle timeout, and nginx in front.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::{command_in, within};
use crate::setup::{self, Process, run, wait_port};

/// How long a server may take to listen. Python's start-up on a busy machine takes seconds.
const START: Duration = Duration::from_secs(20);

/// What a request to nginx may address: upstream `i` of it has a pool of its own.
pub(super) fn path(worker: usize) -> String {
    format!("/u{worker}")
}

/// Software behind the proxy, each with its own way of closing an idle connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// Gthread worker: a thread polls for the timeout.
    Gunicorn,
    /// Asyncio timer.
    Uvicorn,
    /// Libuv timer.
    Node,
    /// Event MPM. Lingering close: requests are lost without any RST.
    Apache,
}

impl Backend {
    pub(super) const ALL: [Self; 4] = [Self::Gunicorn, Self::Uvicorn, Self::Node, Self::Apache];

    const fn name(self) -> &'static str {
        match self {
            Self::Gunicorn => "gunicorn",
            Self::Uvicorn => "uvicorn",
            Self::Node => "node",
            Self::Apache => "apache",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What all settings share: the installed software, and the files that it reads.
pub(super) struct Software {
    /// `bin` of the Python environment.
    python: PathBuf,
    /// Directory of applications, key and certificate.
    directory: PathBuf,
}

impl Software {
    /// Installs what is missing and writes the files.
    pub(super) fn new(directory: PathBuf) -> Result<Self> {
        setup::ensure(&["apache2", "iproute2", "nginx-light", "openssl", "tcpdump", "tshark"])?;
        if Command::new("node").arg("--version").output().is_err() {
            setup::ensure(&["nodejs"])?;
        }
        let python = setup::python(&["gunicorn==27.0.1", "uvicorn==0.54.0"])?;

        fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
        for (name, text) in [
            ("app.py", include_str!("app.py")),
            ("app.js", include_str!("app.js")),
            ("idle.py", include_str!("idle.py")),
        ] {
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

/// Where the software of one setting runs.
pub(super) struct Place<'a> {
    /// The setting's own directory, for configurations and logs.
    pub(super) directory: &'a Path,
    pub(super) client_ns: Option<&'a str>,
    pub(super) server_ns: Option<&'a str>,
    pub(super) server_ip: IpAddr,
    pub(super) tls: bool,
}

/// A running backend.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    _process: Process,
}

/// Starts a backend and waits until it answers connections.
pub(super) fn start(backend: Backend, software: &Software, place: &Place<'_>) -> Result<Server> {
    let port = setup::free_port()?;
    let address = SocketAddr::new(place.server_ip, port);
    let (key, certificate) = (software.key(), software.certificate());
    let python = |program: &str| {
        let path = software.python.join(program);
        command_in(place.server_ns, &path.to_string_lossy())
    };
    let mut command = match backend {
        Backend::Gunicorn => {
            let mut command = python("gunicorn");
            command.args(["--worker-class", "gthread", "--threads", "16", "--keep-alive", "1"]);
            command.args(["--log-level", "warning", "--bind", &address.to_string()]);
            if place.tls {
                command.arg("--keyfile").arg(key).arg("--certfile").arg(certificate);
            }
            command.arg("app:wsgi");
            command
        }
        Backend::Uvicorn => {
            let mut command = python("uvicorn");
            command.args(["--timeout-keep-alive", "1", "--log-level", "warning"]);
            command.args(["--host", &address.ip().to_string(), "--port", &port.to_string()]);
            if place.tls {
                command.arg("--ssl-keyfile").arg(key).arg("--ssl-certfile").arg(certificate);
            }
            command.arg("app:asgi");
            command
        }
        Backend::Node => {
            let mut command = command_in(place.server_ns, "node");
            command.args(["app.js", &address.ip().to_string(), &port.to_string()]);
            if place.tls {
                command.arg(key).arg(certificate);
            }
            command
        }
        Backend::Apache => {
            let file = place.directory.join("apache.conf");
            fs::write(&file, apache_conf(address, software, place)).context("apache.conf")?;
            let mut command = command_in(place.server_ns, "apache2");
            command.args(["-D", "FOREGROUND", "-f"]).arg(file);
            command
        }
    };
    command.current_dir(&software.directory);
    let process = Process::spawn(backend.name(), command, place.directory)?;
    within(place.client_ns, || wait_port(address, START))
        .with_context(|| format!("{backend}: {}", process.output().unwrap_or_default()))?;
    Ok(Server { address, _process: process })
}

fn apache_conf(address: SocketAddr, software: &Software, place: &Place<'_>) -> String {
    let directory = place.directory.display();
    let tls = if place.tls {
        format!(
            "SSLEngine on\nSSLCertificateKeyFile {}\nSSLCertificateFile {}\n",
            software.key().display(),
            software.certificate().display()
        )
    } else {
        String::new()
    };
    // A rewrite to status 200 answers every method with the document of that status.
    let module =
        |name: &str| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n");
    let modules: String = ["mpm_event", "authz_core", "rewrite", "ssl"].map(module).concat();
    format!(
        "ServerRoot {directory}\nDefaultRuntimeDir {directory}\nPidFile {directory}/apache.pid\n\
         ServerName lab\nUser www-data\nGroup www-data\nErrorLog /dev/stderr\n{modules}\
         Listen {address}\nKeepAlive On\nKeepAliveTimeout 1\nMaxKeepAliveRequests 0\n\
         RewriteEngine On\nRewriteRule ^ - [R=200]\nErrorDocument 200 \"ok\n{tls}"
    )
}

/// Measures, without a capture, how long the backend keeps an idle connection.
pub(super) fn idle_close(
    software: &Software,
    place: &Place<'_>,
    address: SocketAddr,
) -> Result<Duration> {
    const SAMPLES: &str = "6";
    let python = software.python.join("python");
    let mut command = command_in(place.client_ns, &python.to_string_lossy());
    command.arg(software.directory.join("idle.py"));
    command.args([&address.ip().to_string(), &address.port().to_string()]);
    command.args([if place.tls { "tls" } else { "plain" }, SAMPLES]);
    let seconds: f64 = run(&mut command)?.trim().parse().context("idle.py")?;
    Duration::try_from_secs_f64(seconds).context("idle.py")
}

/// A running nginx with one upstream block per worker.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    /// Its access log: time, status, upstream status, upstream address.
    pub(super) log: PathBuf,
    _process: Process,
}

/// Starts nginx in front of `backend`, in the client's namespace.
pub(super) fn start_proxy(place: &Place<'_>, backend: SocketAddr, pools: usize) -> Result<Proxy> {
    let address = SocketAddr::from(([127, 0, 0, 1], setup::free_port()?));
    let log = place.directory.join("access.log");
    let file = place.directory.join("nginx.conf");
    fs::write(&file, nginx_conf(place, address, backend, pools)).context("nginx.conf")?;
    let mut command = command_in(place.client_ns, "nginx");
    command.arg("-c").arg(file).arg("-p").arg(place.directory).args(["-e", "error.log"]);
    let process = Process::spawn("nginx", command, place.directory)?;
    within(place.client_ns, || wait_port(address, START))
        .with_context(|| format!("nginx: {}", process.output().unwrap_or_default()))?;
    Ok(Proxy { address, log, _process: process })
}

fn nginx_conf(place: &Place<'_>, address: SocketAddr, backend: SocketAddr, pools: usize) -> String {
    let directory = place.directory.display();
    let scheme = if place.tls { "https" } else { "http" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/tmp;\n"))
        .concat();
    let upstream = |i| format!("upstream u{i} {{ server {backend}; keepalive 4; }}\n");
    let location = |i| format!("location = {} {{ proxy_pass {scheme}://u{i}; }}\n", path(i));
    let upstreams = (0..pools).map(upstream).collect::<Vec<_>>().concat();
    let locations = (0..pools).map(location).collect::<Vec<_>>().concat();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {directory}/nginx.pid;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n{temporary}\
         log_format lab '$msec $status $upstream_status $upstream_addr';\n\
         access_log {directory}/access.log lab;\n\
         proxy_http_version 1.1;\nproxy_set_header Connection '';\n\
         keepalive_requests 1000000;\n{upstreams}server {{ listen {address};\n{locations}}}\n}}\n"
    )
}
