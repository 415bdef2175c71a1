//! Images: the agent's from its Containerfile, others from programs of this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xtask::{report, root, setup};

use crate::guest::{self, Arch};
use crate::live;

const CONTAINERFILE: &str = "deploy/image/Containerfile";
/// The label of all images made here.
const LABEL: &str = "org.opencontainers.image.title=finrace";

/// Builds the agent's image and returns its name.
pub(super) fn image(directory: &Path, base: Option<&str>) -> Result<String> {
    let [finrace] = live::executables(&mut guest::build_static(Arch::host()?)?, ["--bin=finrace"])?;
    let base = match base {
        Some(base) => base.to_owned(),
        None => of_programs(directory, "finrace-base", &["/bin/sh", "/sbin/setcap"], "")?,
    };
    let context = setup::empty_directory(directory.join("context"))?;
    fs::copy(&finrace, context.join("finrace")).context("copying the binary")?;
    let git = Command::new("git")
        .current_dir(root())
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success());
    let revision = git.map(|git| String::from_utf8_lossy(&git.stdout).trim().to_owned());
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("localhost/finrace:{version}");
    let mut buildah = buildah(&name);
    buildah.arg(format!("--build-arg=BASE={base}")).arg(format!("--build-arg=VERSION={version}"));
    if let Some(revision) = revision {
        buildah.arg(format!("--build-arg=REVISION={revision}"));
    }
    buildah.arg("--file").arg(root().join(CONTAINERFILE)).arg(&context);
    setup::run(&mut buildah)?;
    forget()?;
    report(&format!("{name}: {} KiB", size(&name)? / 1024));
    Ok(name)
}

/// An image of this machine's nginx.
pub(super) fn nginx(directory: &Path) -> Result<String> {
    setup::ensure(&["nginx-light"])?;
    of_programs(
        directory,
        "finrace-nginx",
        &["/usr/sbin/nginx"],
        "ENTRYPOINT [\"/usr/sbin/nginx\"]\n",
    )
}

/// Bytes of an image.
pub(super) fn size(image: &str) -> Result<u64> {
    let mut podman = Command::new("podman");
    let size = setup::run(podman.args(["image", "inspect", "--format={{.Size}}", image]))?;
    size.trim().parse().with_context(|| format!("size of {image}: {size}"))
}

/// Removes what earlier runs have built under the same names.
fn forget() -> Result<()> {
    let filter = format!("--filter=label={LABEL}");
    setup::run(Command::new("podman").args(["image", "prune", "--force", &filter]))?;
    Ok(())
}

/// `chroot` needs no right to mount or to make namespaces, which a machine for tests may lack.
fn buildah(name: &str) -> Command {
    let mut command = Command::new("buildah");
    command.args(["build", "--isolation=chroot", "--quiet", "--tag", name]);
    command
}

/// An image with some programs, the libraries that they load, and a root user.
fn of_programs(directory: &Path, name: &str, programs: &[&str], last: &str) -> Result<String> {
    let context = setup::empty_directory(directory.join(name))?;
    let mut files: BTreeSet<PathBuf> = programs.iter().map(PathBuf::from).collect();
    for program in programs {
        let libraries = setup::run(Command::new("ldd").arg(program))?;
        files
            .extend(libraries.split_whitespace().filter(|w| w.starts_with('/')).map(PathBuf::from));
    }
    let write = |path: &str, text: &str| {
        let path = context.join(path);
        fs::create_dir_all(path.with_file_name(""))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    for file in files {
        let inside = context.join(file.strip_prefix("/").unwrap_or(&file));
        fs::create_dir_all(inside.with_file_name(""))?;
        fs::copy(&file, &inside).with_context(|| format!("copying {}", file.display()))?;
    }
    write("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")?;
    write("etc/group", "root:x:0:\n")?;
    let file = directory.join(format!("{name}.containerfile"));
    fs::write(&file, format!("FROM scratch\nLABEL {LABEL}\nCOPY . /\n{last}"))
        .context("writing a Containerfile")?;
    let name = format!("localhost/{name}");
    setup::run(buildah(&name).arg("--file").arg(&file).arg(&context))?;
    Ok(name)
}
