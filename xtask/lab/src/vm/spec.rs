//! `xtask/lab/kernels.toml`: which kernels, which runs on each, and what may differ.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use serde::{Deserialize, Deserializer, de};
use xtask::root;

use crate::guest::Arch;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    /// No program may take the verifier more instructions than this, on any kernel.
    pub(super) instructions: u64,
    #[serde(rename = "kernel")]
    pub(super) kernels: Vec<Kernel>,
    #[serde(rename = "run")]
    pub(super) runs: Vec<Run>,
}

/// One kernel series of Debian on one architecture.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kernel {
    pub(super) series: Series,
    pub(super) suite: String,
    #[serde(default = "x86_64", deserialize_with = "arch")]
    pub(super) arch: Arch,
    /// Belongs to the subset that runs before every merge.
    #[serde(default)]
    pub(super) ci: bool,
    /// Parts of the names of scenarios that cannot be played here, and why.
    #[serde(default)]
    pub(super) skips: BTreeMap<String, String>,
    /// Runs that cannot be had here, beyond what the runs themselves say, and why.
    #[serde(default)]
    pub(super) absent: BTreeMap<String, String>,
}

/// One start of the live tests in a booted kernel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    pub(super) name: String,
    /// For the kernel's command line. Runs that agree in it share a boot.
    #[serde(default)]
    pub(super) cmdline: String,
    /// For the agent's command line.
    #[serde(default)]
    pub(super) arguments: String,
    /// For the live tests.
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    /// Shell commands around the run.
    #[serde(default)]
    pub(super) before: String,
    #[serde(default)]
    pub(super) after: String,
    /// First and last series that has what this run needs.
    from: Option<Series>,
    until: Option<Series>,
    /// Why it is not run elsewhere.
    #[serde(default)]
    pub(super) why: String,
    /// The agent must refuse to run, and say this.
    pub(super) refused: Option<String>,
    /// What must fail, since the agent says that it does not see it in this setup.
    #[serde(default)]
    pub(super) lost: Vec<Loss>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Loss {
    /// First and last series where this is so.
    from: Option<Series>,
    until: Option<Series>,
    /// Parts of what failures say. Each must be found in one at least.
    pub(super) failures: Vec<String>,
    pub(super) why: String,
}

impl Spec {
    /// The kernel of this series.
    pub(super) fn find(&self, series: &str, arch: Arch) -> Result<&Kernel> {
        let mut kernels = self.kernels.iter().filter(|kernel| kernel.arch == arch);
        let found = kernels.find(|kernel| kernel.series.to_string() == series);
        found.with_context(|| format!("xtask/lab/kernels.toml has no {series} for {}", arch.name()))
    }

    pub(super) fn read() -> Result<Self> {
        let path = root().join("xtask/lab/kernels.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let spec: Self =
            toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        for name in spec.kernels.iter().flat_map(|kernel| kernel.absent.keys()) {
            let is_known = spec.runs.iter().any(|run| run.name == *name);
            ensure!(is_known, "{} has no run `{name}`, which is absent", path.display());
        }
        Ok(spec)
    }
}

impl Kernel {
    /// Its name in tables and files.
    pub(super) fn name(&self) -> String {
        match self.arch {
            Arch::X86_64 => self.series.to_string(),
            Arch::Aarch64 => format!("{}-{}", self.series, self.arch.name()),
        }
    }
}

impl Run {
    /// Why this kernel does not have what the run needs.
    pub(super) fn absent_on<'a>(&'a self, kernel: &'a Kernel) -> Option<&'a str> {
        if !kernel.series.is_within(self.from, self.until) {
            return Some(&self.why);
        }
        kernel.absent.get(&self.name).map(String::as_str)
    }

    /// Losses to expect on this kernel.
    pub(super) fn losses_on(&self, kernel: &Kernel) -> impl Iterator<Item = &Loss> {
        self.lost.iter().filter(|loss| kernel.series.is_within(loss.from, loss.until))
    }

    /// Whether there is something to try. Where it is known to be absent, only the agent's own word
    /// on a hook is worth a question.
    pub(super) fn is_tried_on(&self, kernel: &Kernel) -> bool {
        let is_about_hooks = !self.arguments.is_empty() && self.environment.is_empty();
        is_about_hooks || self.absent_on(kernel).is_none()
    }
}

fn x86_64() -> Arch {
    Arch::X86_64
}

/// Parsed as on the command line.
fn arch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arch, D::Error> {
    let name = String::deserialize(deserializer)?;
    Arch::from_str(&name, false).map_err(de::Error::custom)
}

/// A kernel's first two numbers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub(super) struct Series(u32, u32);

impl Series {
    /// The series of a release such as `6.12.117+deb13-cloud-amd64`, or of a series itself.
    pub(super) fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(['.', '-', '+']).map(|part| part.parse().ok());
        Some(Self(numbers.next()??, numbers.next()??))
    }

    fn is_within(self, from: Option<Self>, until: Option<Self>) -> bool {
        from.is_none_or(|from| self >= from) && until.is_none_or(|until| self <= until)
    }
}

impl TryFrom<String> for Series {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::of(&text).ok_or_else(|| format!("`{text}` is no kernel series"))
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}
