//! Kernels of other Debian releases, by an apt of our own.
//!
//! The archive's address is that of the machine's sources, with another suite. Lists, state and
//! packages are kept in the user's cache directory: the machine's own stay as they are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::setup::{self, run};

use super::spec::Series;
use crate::guest::Arch;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite with what it builds upon, for one architecture.
pub(super) struct Archive {
    arch: Arch,
    directory: PathBuf,
    /// Names of kernel packages.
    names: Vec<String>,
}

/// Where this program keeps what it would otherwise fetch again.
pub(super) fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(directory) => PathBuf::from(directory),
        None => env::home_dir().context("neither XDG_CACHE_HOME nor HOME is set")?.join(".cache"),
    };
    Ok(base.join("finrace"))
}

/// Debian's name of an architecture.
fn debian(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

impl Archive {
    /// Brings the lists of `suite` up to date.
    pub(super) fn open(suite: &str, arch: Arch) -> Result<Self> {
        setup::ensure(&["debian-archive-keyring"])?;
        let directory = cache()?.join(format!("apt/{suite}-{}", debian(arch)));
        for part in ["lists/partial", "archives/partial"] {
            create(&directory.join(part))?;
        }
        let mut archive = Self { arch, directory, names: Vec::new() };
        archive.write("sources.list", &Addresses::of_machine()?.sources(suite))?;
        archive.write("apt.conf", &archive.configuration())?;
        run(archive.apt("apt-get").args(["update", "--error-on=any"]))
            .with_context(|| format!("reading the package lists of {suite}"))?;
        let names = run(archive.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        archive.names = names.lines().map(str::to_owned).collect();
        Ok(archive)
    }

    /// The newest release of each series.
    pub(super) fn releases(&self) -> Vec<(Series, String)> {
        let suffix = format!("-cloud-{}", debian(self.arch));
        let mut releases: Vec<_> = self
            .names
            .iter()
            .filter_map(|name| name.strip_prefix("linux-image-"))
            // Names without a third number are those of packages that depend on the newest.
            .filter(|release| release.ends_with(&suffix) && numbers(release).len() > 2)
            .filter_map(|release| Some((Series::of(release)?, release.to_owned())))
            .collect();
        releases.sort_by_key(|(series, release)| (*series, numbers(release)));
        releases.reverse();
        releases.dedup_by_key(|(series, _)| *series);
        releases.reverse();
        releases
    }

    /// Fetches a kernel's packages. Up to 6.18 one holds all; from 6.19 on the kernel is in a second
    /// and the modules in a third, which the archive drops when a newer series comes.
    pub(super) fn fetch_kernel(&self, release: &str) -> Result<Vec<PathBuf>> {
        let parts = ["image", "binary", "modules"].map(|part| format!("linux-{part}-{release}"));
        let parts = parts.iter().filter(|name| self.names.contains(name)).map(String::as_str);
        self.fetch(&parts.collect::<Vec<_>>())
    }

    /// Fetches packages, where they are not in the cache yet; apt compares their digests.
    pub(super) fn fetch(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let directory = cache()?.join("packages");
        create(&directory)?;
        let download = |directory: &Path, option: &[&str]| {
            let mut apt = self.apt("apt-get");
            run(apt.current_dir(directory).arg("download").args(option).args(packages))
        };
        download(&directory, &[])?;
        // 'ADDRESS' FILE SIZE DIGEST, of all files that are not in the current directory.
        let files = download(&self.directory, &["--print-uris"])?;
        let files = files.lines().filter_map(|line| line.split(' ').nth(1));
        Ok(files.map(|file| directory.join(file)).collect())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
    }

    fn configuration(&self) -> String {
        let directory = self.directory.display();
        let arch = debian(self.arch);
        // For suites that have left support the index has expired, but not its signature.
        format!(
            r#"APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Sandbox::User "root";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Dir::Cache "{directory}";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Etc::SourceList "{directory}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "{directory}";
Dir::State::Status "/dev/null";
"#
        )
    }
}

/// Where the machine gets its packages from.
struct Addresses {
    main: String,
    security: Option<String>,
}

impl Addresses {
    /// Asks apt, which knows every format of its sources. With no lists at hand it names every
    /// index it would fetch, and fetches none.
    fn of_machine() -> Result<Self> {
        let nothing = cache()?.join("apt/nothing");
        create(&nothing.join("partial"))?;
        let mut apt = Command::new("apt-get");
        apt.arg(format!("--option=Dir::State::Lists={}", nothing.display()));
        let indices = run(apt.args(["update", "--print-uris"]))?;
        let os = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        let codename = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.context("/etc/os-release has no VERSION_CODENAME")?;
        let find = |suite: &str| {
            let index = format!("/dists/{suite}/main/binary-");
            let line = indices.lines().find(|line| line.contains(&index))?;
            Some(line.split_once(&index)?.0.trim_start_matches('\'').to_owned())
        };
        let main = find(codename)
            .with_context(|| format!("the machine's apt sources have no main of {codename}"))?;
        Ok(Self { main, security: find(&format!("{codename}-security")) })
    }

    fn sources(&self, suite: &str) -> String {
        let source = |address: &str, suite: &str| {
            format!("deb [signed-by={KEYRING} target=Packages] {address} {suite} main\n")
        };
        let (base, backports) = match suite.split_once('-') {
            Some((base, _)) => (base, Some(suite)),
            None => (suite, None),
        };
        let mut sources = source(&self.main, base);
        match (backports, &self.security) {
            (Some(suite), _) => sources += &source(&self.main, suite),
            (None, Some(security)) => sources += &source(security, &format!("{base}-security")),
            (None, None) => {}
        }
        sources
    }
}

/// All numbers in a release's name: they order releases of one series.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

pub(super) fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))
}

/// Unpacks packages into a directory.
pub(super) fn unpack(packages: &[PathBuf], directory: &Path) -> Result<()> {
    for package in packages {
        ensure!(package.is_file(), "{} has not been fetched", package.display());
        run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(directory))?;
    }
    Ok(())
}
