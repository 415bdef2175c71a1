//! What tests with real software need around them: packages, a Python environment, free ports,
//! child processes that end with the test.
//!
//! Everything here is for root on a machine or container made for tests: it installs packages.

#![expect(clippy::print_stdout, reason = "says what it installs")]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::process::{Pid, Signal, kill_process};

/// Where Debian's package scripts ask whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The one clock of the tests with real software.
#[expect(clippy::disallowed_methods, reason = "these tests run against real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Seconds since the epoch, as captures have them.
#[expect(clippy::disallowed_methods, reason = "these tests run against real time")]
pub fn epoch() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}

/// Cargo's target directory, where tests leave their logs and captures: an absolute path.
pub fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Makes a directory that has nothing in it; what was there before is gone.
pub fn empty_directory(directory: PathBuf) -> Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Runs a command to its end; its output is shown only when it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

/// Installs those of the Debian packages that are missing, without starting any service.
pub fn ensure(apt: &[&str]) -> Result<()> {
    let missing: Vec<&str> = apt.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: apt-get install {}", missing.join(" "));
    let _policy = NoServices::begin()?;
    if install(&missing).is_err() {
        // No package lists yet, or lists older than the archive.
        println!("setup: apt-get update");
        run(apt_get().arg("update"))?;
        install(&missing)?;
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${Status}", package])
        .output()
        .is_ok_and(|o| o.stdout == b"install ok installed")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install(packages: &[&str]) -> Result<String> {
    run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// While it lives, packages being installed start no services.
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    fn begin() -> Result<Self> {
        match File::options().write(true).create_new(true).mode(0o755).open(POLICY) {
            Ok(_) => fs::write(POLICY, "#!/bin/sh\nexit 101\n")
                .map(|()| Self { is_ours: true })
                .with_context(|| format!("writing {POLICY}")),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(Self { is_ours: false }),
            Err(e) => Err(e).with_context(|| format!("creating {POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours {
            // If left behind, it would only keep services from starting at the next installation.
            fs::remove_file(POLICY).ok();
        }
    }
}

/// A Python environment with these packages (`name==version`); returns its `bin` directory.
pub fn python(packages: &[&str]) -> Result<PathBuf> {
    let venv = target_dir().join("lab-venv");
    let bin = venv.join("bin");
    if !bin.join("pip").exists() {
        if run(Command::new("python3").args(["-c", "import ensurepip"])).is_err() {
            ensure(&["python3-venv"])?;
        }
        println!("setup: python3 -m venv {}", venv.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let pip = |arguments: &[&str]| {
        run(Command::new(bin.join("pip")).arg("--disable-pip-version-check").args(arguments))
    };
    let present = pip(&["freeze"])?;
    let missing: Vec<&str> =
        packages.iter().copied().filter(|p| !present.lines().any(|l| l == *p)).collect();
    if !missing.is_empty() {
        println!("setup: pip install {}", missing.join(" "));
        pip(&[&["install", "--quiet"], &*missing].concat())?;
    }
    Ok(bin)
}

/// Where the ephemeral ports begin (`net.ipv4.ip_local_port_range` as Linux sets it): servers
/// listen below.
pub const EPHEMERAL: u16 = 32_768;

/// A TCP port for a server, not in use and not given to another server of this process. It
/// lies below the ephemeral ports, so that no client's port in any namespace is taken for it.
pub fn server_port() -> Result<u16> {
    const FIRST: u16 = 21_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // A different start in another run at the same time.
    let start = std::process::id().wrapping_mul(97);
    loop {
        let given = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(given < EPHEMERAL - FIRST, "no free port below the ephemeral ones");
        let offset = (start % u32::from(EPHEMERAL - FIRST)) as u16 + given;
        let port = FIRST + offset % (EPHEMERAL - FIRST);
        // Bound, but not listened on: a copy in a child forked just now must not accept anything.
        let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        if bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// Waits until something accepts connections at `address`. In a network namespace, call it from a
/// thread in there ([`crate::link::within`]).
pub fn wait_port(address: SocketAddr, timeout: Duration) -> Result<()> {
    let end = now() + timeout;
    while let Err(error) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
        if now() > end {
            return Err(error).with_context(|| format!("{address} after {timeout:?}"));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until `is_so` is true. A check that fails may succeed later.
pub fn until(what: &str, timeout: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = now() + timeout;
    loop {
        let result = is_so();
        if matches!(result, Ok(true)) {
            return Ok(());
        }
        if now() > end {
            result.with_context(|| format!("waiting until {what}"))?;
            bail!("waited in vain until {what}");
        }
        sleep(Duration::from_millis(200));
    }
}

/// While it lives, the processes of this session come before those of others: builds and the like.
pub struct Preference;

impl Preference {
    /// The niceness of the scheduler's group, which is the session: a process's own counts only there.
    const FILE: &str = "/proc/self/autogroup";

    /// Where it is refused, or the kernel has no such groups, the results will tell.
    pub fn begin() -> Self {
        fs::write(Self::FILE, "-10").ok();
        Self
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        fs::write(Self::FILE, "0").ok();
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("creating {}", path.display()))
}

/// A child that ends when this is dropped: SIGTERM to its pid, SIGKILL if it does not obey.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with standard output and error in `log_dir/name.log`.
    pub fn spawn(name: &str, command: Command, log_dir: &Path) -> Result<Self> {
        let log = log_dir.join(format!("{name}.log"));
        let out = create(&log)?;
        let err = out.try_clone()?;
        Self::start(name, command, log, out, err)
    }

    /// Starts `command`, with standard output in `file`, and standard error in
    /// `log_dir/name.log`.
    pub fn spawn_into(file: &Path, name: &str, command: Command, log_dir: &Path) -> Result<Self> {
        let log = log_dir.join(format!("{name}.log"));
        let (out, err) = (create(file)?, create(&log)?);
        Self::start(name, command, log, out, err)
    }

    fn start(name: &str, mut command: Command, log: PathBuf, out: File, err: File) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?.is_none())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("{signal:?} to {}", self.name))
    }

    /// Waits until it ends by itself, and fails if it failed.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        let end = now() + timeout;
        while self.is_running()? {
            ensure!(now() < end, "{} still runs after {timeout:?}", self.name);
            sleep(Duration::from_millis(20));
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "{}: {status}: {}", self.name, self.output()?);
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything it has printed so far.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("{}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until its output contains `text`.
    pub fn wait_output(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let end = now() + timeout;
        while !self.output()?.contains(text) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before `{text}`: {}", self.name, self.output()?);
            }
            if now() > end {
                bail!("{} has not said `{text}`: {}", self.name, self.output()?);
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it, as a drop does, and returns all that it has printed.
    pub fn stop(mut self) -> Result<String> {
        self.end();
        self.output()
    }

    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // An error here means that it has just ended; the wait below finds out.
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        let_end(&mut self.child);
    }
}

/// Waits for a child that is about to end, and kills it if it does not.
pub fn let_end(child: &mut Child) {
    let end = now() + Duration::from_secs(5);
    while now() < end {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    child.kill().ok();
    child.wait().ok();
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
