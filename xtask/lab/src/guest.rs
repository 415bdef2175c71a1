//! The agent and its live tests as static binaries, for machines that have nothing but a kernel.
//!
//! glibc is linked statically: one file runs in an empty root directory, without any library. What
//! is built here goes to a target directory of its own, since other flags would make cargo rebuild
//! everything in the usual one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum as _;
use xtask::{cargo, root, setup, show};

use crate::live::Built;

/// Static glibc, and relocations in few bytes (binutils 2.38, glibc 2.36).
const STATIC: [&str; 2] =
    ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,pack-relative-relocs"];

/// What to build for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    Aarch64,
}

impl Arch {
    /// The name that `uname -m` and Rust use.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The architecture of this machine.
    pub fn host() -> Result<Self> {
        Self::from_str(env::consts::ARCH, false)
            .map_err(|_unknown| anyhow!("no static build for {}", env::consts::ARCH))
    }

    pub fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.name())
    }

    /// A linker and a static libc for this architecture, in a Debian of another one.
    fn cross_packages(self) -> [&'static str; 2] {
        match self {
            Self::X86_64 => ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            Self::Aarch64 => ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        }
    }
}

/// Builds both for `arch`; installs what that needs.
pub fn build(arch: Arch) -> Result<Built> {
    Built::new(&mut build_static(arch)?)
}

/// A `cargo build` of static binaries for `arch`.
pub fn build_static(arch: Arch) -> Result<Command> {
    let target = arch.target();
    ensure_std(&target)?;
    let mut command = cargo();
    if arch.name() != env::consts::ARCH {
        setup::ensure(&arch.cross_packages())?;
        // C code of dependencies is compiled by the same one, which is found by its name.
        let variable = target.to_uppercase().replace('-', "_");
        command.env(
            format!("CARGO_TARGET_{variable}_LINKER"),
            format!("{}-linux-gnu-gcc", arch.name()),
        );
    }
    // With a target named, flags leave build scripts and procedural macros alone, which cannot be
    // static. This variable comes before every other way to set flags.
    command.env("CARGO_ENCODED_RUSTFLAGS", STATIC.join("\x1f"));
    command.arg("build").arg("--target").arg(target).arg("--target-dir").arg(target_dir(arch));
    Ok(command)
}

/// Where what is built for `arch` goes.
pub fn target_dir(arch: Arch) -> PathBuf {
    setup::target_dir().join(format!("guest-{}", arch.name()))
}

/// Rust's own library for `target`: rustup brings it where it is missing.
fn ensure_std(target: &str) -> Result<()> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.current_dir(root()).args(["--print=target-libdir", "--target", target]);
    if Path::new(setup::run(&mut rustc)?.trim()).is_dir() {
        return Ok(());
    }
    show(Command::new("rustup").current_dir(root()).args(["target", "add", target]))
        .with_context(|| format!("installing Rust's library for {target}"))
}
