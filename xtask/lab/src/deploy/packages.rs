//! The Debian and the RPM package: built, inspected, unpacked, and their contents tried.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::{cargo, report, root, setup, show};

use crate::guest::{self, Arch};
use crate::live;

/// Cargo's subcommands, with their versions.
const DEB: (&str, &str) = ("cargo-deb", "3.8.0");
const RPM: (&str, &str) = ("cargo-generate-rpm", "0.21.1");

/// The exposure that systemd's own rating gives the unit, in tenths: lower is better.
const EXPOSURE: &str = "21";

/// What both packages contain; in the RPM, zsh's file is elsewhere.
const FILES: [&str; 6] = [
    "/usr/bin/finrace",
    "/usr/lib/systemd/system/finrace.service",
    "/usr/share/bash-completion/completions/finrace",
    "/usr/share/fish/vendor_completions.d/finrace.fish",
    "/usr/share/man/man1/finrace-serve.1.gz",
    "/usr/share/man/man1/finrace.1.gz",
];

/// Builds and checks them; `manifests` have arguments for the binary that is in them.
pub(super) fn run(directory: &Path, manifests: &[&Value]) -> Result<()> {
    setup::ensure(&["binutils", "lintian", "rpm", "systemd"])?;
    let arch = Arch::host()?;
    let [finrace] = live::executables(&mut guest::build_static(arch)?, ["--bin=finrace"])?;
    manual(&finrace)?;

    let target = guest::target_dir(arch);
    let package = |tool: (&str, &str), arguments: &[&str], file: &str| {
        let path = directory.join(file);
        let mut command = Command::new(tool_of(tool)?);
        command.current_dir(root().join("agent")).env("CARGO_TARGET_DIR", &target);
        command.args(arguments).args(["--target", &arch.target(), "--output"]).arg(&path);
        setup::run(&mut command)?;
        Ok::<_, anyhow::Error>(path)
    };
    let deb = package(DEB, &["deb", "--no-build", "--no-strip"], "finrace.deb")?;
    let rpm = package(RPM, &["generate-rpm"], "finrace.rpm")?;

    // Fails for errors, not for warnings.
    show(Command::new("lintian").args(["--allow-root", "--fail-on", "error"]).arg(&deb))?;
    let unpacked = setup::empty_directory(directory.join("unpacked"))?;
    setup::run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&unpacked))?;
    for file in FILES {
        let path = unpacked.join(file.trim_start_matches('/'));
        ensure!(path.is_file(), "{} has no {file}", deb.display());
    }
    let listed = setup::run(Command::new("rpm").args(["-qlp"]).arg(&rpm))?;
    for file in FILES {
        ensure!(listed.lines().any(|line| line == file), "{} has no {file}", rpm.display());
    }

    let binary = unpacked.join("usr/bin/finrace");
    let version = setup::run(Command::new(&binary).arg("--version"))?;
    ensure!(version.trim() == concat!("finrace ", env!("CARGO_PKG_VERSION")), "{version}");
    understands(&binary, manifests)?;
    completes(&unpacked.join("usr/share/bash-completion/completions/finrace"))?;
    unit(&unpacked, directory)?;
    for file in [&deb, &rpm] {
        let bytes = fs::metadata(file).with_context(|| format!("{}", file.display()))?.len();
        report(&format!("{}: {} KiB", file.display(), bytes / 1024));
    }
    Ok(())
}

/// Lets the binary write its man pages and completions next to itself, where the packages look for
/// them.
fn manual(finrace: &Path) -> Result<()> {
    let directory = setup::empty_directory(finrace.with_file_name("manual"))?;
    let pages = directory.join("man1");
    setup::run(Command::new(finrace).arg("man").arg(&pages))?;
    for entry in fs::read_dir(&pages).context("listing the man pages")? {
        setup::run(Command::new("gzip").args(["-9n"]).arg(entry?.path()))?;
    }
    for (shell, file) in [("bash", "finrace.bash"), ("zsh", "_finrace"), ("fish", "finrace.fish")] {
        let script = setup::run(Command::new(finrace).args(["completions", shell]))?;
        fs::write(directory.join(file), script).with_context(|| format!("writing {file}"))?;
    }
    Ok(())
}

/// A cargo subcommand that does not come with Rust, installed where it is missing.
fn tool_of((name, version): (&str, &str)) -> Result<PathBuf> {
    let tools = setup::target_dir().join("tools");
    let path = tools.join("bin").join(name);
    let installed = Command::new(&path).arg("--version").output();
    if !installed.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(version)) {
        report(&format!("setup: cargo install {name}@{version}"));
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--force", "--root"]).arg(&tools);
        show(install.arg(format!("{name}@{version}")))?;
    }
    Ok(path)
}

/// The binary knows every argument of the manifests. It prints its help when it has read them all.
fn understands(binary: &Path, manifests: &[&Value]) -> Result<()> {
    let ask = |arguments: &[&str]| {
        let output = Command::new(binary).args(arguments).arg("--help").output();
        output.context("starting finrace")
    };
    for manifest in manifests {
        let Some(arguments) = manifest.pointer("/spec/template/spec/containers/0/args") else {
            continue;
        };
        let arguments: Vec<&str> =
            arguments.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let output = ask(&arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "finrace {arguments:?}: {said}");
    }
    let typo = ask(&["serve", "--kube.sauce=none"])?;
    ensure!(typo.status.code() == Some(2), "finrace takes a flag that it does not have");
    Ok(())
}

/// Asks bash itself what it would complete.
fn completes(script: &Path) -> Result<()> {
    let ask = "source \"$1\"; COMP_WORDS=(finrace \"$2\"); COMP_CWORD=1; \
               _finrace finrace \"$2\" finrace; echo \"${COMPREPLY[*]}\"";
    for (typed, expected) in [("ser", "serve"), ("chec", "check"), ("--ver", "--version")] {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", ask, "bash"]).arg(script).arg(typed);
        let found = setup::run(&mut bash)?;
        ensure!(found.trim() == expected, "bash completes `{typed}` to `{}`", found.trim());
    }
    Ok(())
}

/// The unit as systemd reads it, with the binary of the package.
fn unit(unpacked: &Path, directory: &Path) -> Result<()> {
    let file = unpacked.join("usr/lib/systemd/system/finrace.service");
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let exec = format!("ExecStart={}/usr/bin/finrace serve\n", unpacked.display());
    let (unit, typo) = (directory.join("finrace.service"), directory.join("typo.service"));
    let placed = text.replace("ExecStart=finrace serve\n", &exec);
    ensure!(placed != text, "{} starts something else", file.display());
    fs::write(&unit, &placed).context("writing the unit")?;
    fs::write(&typo, placed.replace("ProtectHome=", "ProtectHmoe=")).context("writing a unit")?;
    let verify = |unit: &Path| {
        let output = Command::new("systemd-analyze").arg("verify").arg(unit).output();
        let output = output.context("starting systemd-analyze")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok::<_, anyhow::Error>((output.status.success() && said.is_empty(), said))
    };
    let (is_fine, said) = verify(&unit)?;
    ensure!(is_fine, "systemd-analyze verify: {said}");
    let (is_fine, said) = verify(&typo)?;
    ensure!(!is_fine && said.contains("ProtectHmoe"), "systemd overlooks a typo: {said}");
    setup::run(
        Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true", "--threshold", EXPOSURE])
            .arg(&unit),
    )?;
    Ok(())
}
