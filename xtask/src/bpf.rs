//! `cargo xtask bpf`: builds the BPF object that is committed under `ebpf/`, and checks it.
//!
//! The object is the same byte for byte from any checkout. Three things make it so: paths are
//! remapped, bpf-linker is shown exactly one LLVM (left alone, it takes the first `libLLVM*` that
//! it finds next to any directory of `PATH`), and DWARF is taken out, which only `.BTF` needed.

#[path = "../../ebpf/src/digest.rs"]
mod digest;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

use crate::{cargo, report, root, setup, show};

/// Debian's Rust with a BPF target: <https://tracker.debian.org/pkg/rustc-web>. With LLVM 22, as
/// bpf-linker 0.10 wants it.
const PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const RUSTC: &str = "/usr/bin/rustc";
const CLIPPY: &str = "/usr/bin/cargo-clippy";
const STD: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const TARGET: &str = "bpfel-unknown-none";
/// The profile in the workspace.
const PROFILE: &str = "bpf";
const BINARY: &str = "finrace-bpf";
const LINKER_VERSION: &str = "0.10.3";

#[derive(clap::Args)]
pub struct BpfArgs {
    /// Compare the committed object with the sources instead, and install nothing; where the
    /// toolchain is the recorded one, build again and compare byte for byte
    #[arg(long)]
    check: bool,
}

pub fn run(args: BpfArgs) -> Result<()> {
    if args.check { check() } else { update() }
}

/// Installs what `cargo xtask bpf` needs, where it is missing.
pub fn install() -> Result<()> {
    setup::ensure(&PACKAGES)?;
    if linker()?.is_none() {
        let tools = setup::target_dir().join("tools");
        let arguments =
            ["install", "bpf-linker", "--locked", "--version", LINKER_VERSION, "--root"];
        show(cargo().args(arguments).arg(tools))?;
    }
    Ok(())
}

/// Runs clippy over the programs as the BPF target sees them.
pub fn clippy() -> Result<()> {
    setup::ensure(&["rust-web-clippy"])?;
    let toolchain = Toolchain::find()?.context("no BPF toolchain: run cargo xtask bpf")?;
    let mut command = Command::new(CLIPPY);
    command.arg("clippy");
    toolchain.prepare(&mut command, "bpf-check")?;
    show(command.args(["--", "-D", "warnings"]))
}

/// Builds the programs of the measurements; returns where they are.
pub fn build_bench() -> Result<PathBuf> {
    let object = Toolchain::installed()?.build("finrace-bench-bpf", "bpf")?;
    let path = setup::target_dir().join("bpf/bench.bpf.o");
    write(&path, &object)?;
    Ok(path)
}

fn update() -> Result<()> {
    let toolchain = Toolchain::installed()?;
    let object = toolchain.build(BINARY, "bpf")?;
    let package = root().join("ebpf");
    let record = format!(
        "# Written by `cargo xtask bpf`; read by build.rs and `cargo xtask bpf --check`.\n{}{}",
        Inputs::read()?.lines(&object),
        toolchain.lines()
    );
    write(&package.join(digest::OBJECT), &object)?;
    write(&package.join(digest::RECORD), record.as_bytes())?;
    report(&format!("ebpf/{}: {} bytes", digest::OBJECT, object.len()));
    Ok(())
}

fn check() -> Result<()> {
    let package = root().join("ebpf");
    let record = fs::read_to_string(package.join(digest::RECORD)).context(digest::STALE)?;
    let object = fs::read(package.join(digest::OBJECT)).context(digest::STALE)?;
    for line in Inputs::read()?.lines(&object).lines() {
        ensure!(record.lines().any(|recorded| recorded == line), "{}; now: {line}", digest::STALE);
    }
    let Some(toolchain) = Toolchain::find()? else {
        report("digests agree; not built again: no BPF toolchain here");
        return Ok(());
    };
    for line in toolchain.lines().lines() {
        if !record.lines().any(|recorded| recorded == line) {
            report(&format!("digests agree; not built again: another toolchain here, {line}"));
            return Ok(());
        }
    }
    ensure!(
        toolchain.build(BINARY, "bpf-check")? == object,
        "the recorded toolchain makes other bytes of the same sources: run cargo xtask bpf"
    );
    report("digests agree; built again with the recorded toolchain: the same bytes");
    Ok(())
}

/// What determines the object's content.
struct Inputs {
    sources: String,
    manifest: String,
    crates: String,
}

impl Inputs {
    fn read() -> Result<Self> {
        let package = root().join("ebpf");
        let sources = digest::sources(&package).context("reading the sources in ebpf/src")?;
        let manifest = fs::read(package.join("Cargo.toml")).context("reading ebpf/Cargo.toml")?;
        // Name, version and features; not the package itself, whose line ends with its path.
        let tree = setup::run(cargo().args([
            "tree",
            "--locked",
            "--package=finrace-ebpf",
            "--features=bpf",
            "--edges=normal",
            "--prefix=none",
            "--no-dedupe",
            "--format={p} [{f}]",
            "--target",
            TARGET,
        ]))?;
        let mut crates: Vec<_> = tree.lines().filter(|line| !line.contains("(/")).collect();
        crates.sort_unstable();
        crates.dedup();
        Ok(Self { sources, manifest: digest::of(&manifest), crates: crates.join(", ") })
    }

    fn lines(&self, object: &[u8]) -> String {
        let Self { sources, manifest, crates } = self;
        let object = digest::of(object);
        format!(
            "sources = \"{sources}\"\nmanifest = \"{manifest}\"\ncrates = \"{crates}\"\n\
             object = \"{object}\"\n"
        )
    }
}

struct Toolchain {
    rustc: String,
    llvm: String,
    cargo: String,
    linker: PathBuf,
}

impl Toolchain {
    /// The toolchain, installed first where it is missing.
    fn installed() -> Result<Self> {
        install()?;
        Self::find()?.context("the BPF toolchain is missing after its set-up")
    }

    /// The toolchain, where all of it is installed.
    fn find() -> Result<Option<Self>> {
        if !Path::new(STD).is_dir() || !Path::new(RUSTC).is_file() {
            return Ok(None);
        }
        let Some(linker) = linker()? else { return Ok(None) };
        let version = setup::run(Command::new(RUSTC).arg("-vV"))?;
        let rustc = version.lines().next().context("rustc -vV says nothing")?.to_owned();
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .context("rustc -vV names no LLVM")?
            .to_owned();
        let cargo = setup::run(cargo().arg("-V"))?.trim().to_owned();
        Ok(Some(Self { rustc, llvm, cargo, linker }))
    }

    fn lines(&self) -> String {
        let Self { rustc, llvm, cargo, .. } = self;
        format!(
            "rustc = \"{rustc}\"\nllvm = \"{llvm}\"\nbpf-linker = \"{LINKER_VERSION}\"\n\
             cargo = \"{cargo}\"\n"
        )
    }

    fn build(&self, binary: &str, target_dir: &str) -> Result<Vec<u8>> {
        let mut command = cargo();
        command.args(["build", "--bin", binary]);
        self.prepare(&mut command, target_dir)?;
        show(&mut command)?;
        let path = setup::target_dir().join(target_dir).join(TARGET).join(PROFILE).join(binary);
        let object = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        strip(&object).with_context(|| format!("stripping {}", path.display()))
    }

    fn prepare(&self, command: &mut Command, target_dir: &str) -> Result<()> {
        let target_dir = setup::target_dir().join(target_dir);
        command
            .args(["--locked", "--profile", PROFILE, "--package=finrace-ebpf", "--features=bpf"])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&target_dir)
            .env("RUSTC", RUSTC)
            // Unlocks the target's unstable features in a stable compiler.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTC_WRAPPER", "")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?)
            .env("LD_LIBRARY_PATH", self.only_llvm(&target_dir)?)
            .env("PATH", self.path()?);
        Ok(())
    }

    /// A directory with nothing but the LLVM of `rustc`, for bpf-linker, which looks through
    /// `LD_LIBRARY_PATH` first.
    fn only_llvm(&self, target_dir: &Path) -> Result<PathBuf> {
        let release = self.llvm.rsplit_once('.').map_or(&*self.llvm, |(release, _)| release);
        let library = format!("libLLVM.so.{release}");
        let installed =
            Path::new("/usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH)).join(&library);
        ensure!(installed.exists(), "{} does not exist", installed.display());
        let directory = setup::empty_directory(target_dir.join("llvm"))?;
        symlink(&installed, directory.join(&library))
            .with_context(|| format!("linking to {}", installed.display()))?;
        Ok(directory)
    }

    /// `PATH` with our bpf-linker in front.
    fn path(&self) -> Result<OsString> {
        let first = self.linker.parent().map(Path::to_path_buf);
        let rest = env::var_os("PATH").unwrap_or_default();
        env::join_paths(first.into_iter().chain(env::split_paths(&rest))).context("joining PATH")
    }
}

/// A bpf-linker of the version we want, from `target/tools` or from `PATH`.
fn linker() -> Result<Option<PathBuf>> {
    let own = setup::target_dir().join("tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    for directory in std::iter::once(own).chain(env::split_paths(&path)) {
        let candidate = directory.join("bpf-linker");
        if candidate.is_file()
            && setup::run(Command::new(&candidate).arg("--version"))?.trim()
                == format!("bpf-linker {LINKER_VERSION}")
        {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// Flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn rustflags() -> Result<String> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(directory) => PathBuf::from(directory),
        None => env::home_dir().context("neither CARGO_HOME nor HOME is set")?.join(".cargo"),
    };
    Ok([
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit arithmetic, which the verifier has known since 5.1.
        "-Ctarget-cpu=v3".to_owned(),
        // Chooses the layout of pt_regs in aya-ebpf.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        format!("--remap-path-prefix={}=/finrace", root().display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
    ]
    .join("\x1f"))
}

/// Removes DWARF; `.BTF` and `.BTF.ext`, which the kernel reads, stay.
fn strip(elf: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(elf)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM keeps all names in one table; the builder wants those of sections in their own.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}
