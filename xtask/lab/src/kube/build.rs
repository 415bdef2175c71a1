//! The real API server. There is no package of the program, but bookworm has its source, which Debian's
//! Go compiles in a few minutes. It is kept in the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::setup::{self, empty_directory, now, run};

/// The version that bookworm has, and that the server will report.
const VERSION: &str = "v1.20.2";

/// A vendored package that Go 1.18 and later miscompile, and where Debian has a later version.
const REFLECT: &str = "vendor/github.com/modern-go/reflect2";
const REFLECT_DEBIAN: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";

/// The server's path in `directory`; built first if it is missing.
pub(super) fn api_server(directory: &Path) -> Result<PathBuf> {
    let program = directory.join(format!("kube-apiserver-{VERSION}"));
    if program.exists() {
        return Ok(program);
    }
    setup::ensure(&[
        "dpkg-dev",
        "golang-github-modern-go-reflect2-dev",
        "golang-go",
        "jq",
        "make",
        "rsync",
    ])?;
    println!("kube: building kube-apiserver {VERSION}: five minutes of processor time");
    let start = now();
    let work = empty_directory(directory.join("build"))?;
    let source = unpack(&work)?;
    replace_reflect(&source)?;
    compile(&source, &work)?;
    let built = source.join("_output/bin/kube-apiserver");
    // It gets its name only when it is complete.
    let part = program.with_extension("part");
    fs::copy(&built, &part).with_context(|| format!("copying {}", built.display()))?;
    fs::rename(&part, &program).with_context(|| format!("naming {}", program.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    println!("kube: built in {:.0} s: {}", start.elapsed().as_secs_f64(), program.display());
    Ok(program)
}

/// Downloads Debian's source package and unpacks it. apt works on lists of its own for this: the
/// machine's sources stay as they are.
fn unpack(work: &Path) -> Result<PathBuf> {
    let mirror = run(Command::new("apt-get").args([
        "indextargets",
        "--format=$(REPO_URI)",
        "Created-By: Packages",
        "Codename: bookworm",
        "Component: main",
    ]))?;
    let mirror = mirror.lines().next().context(
        "apt has no list of bookworm's packages: the API server is built on Debian 12 only",
    )?;
    let (list, lists) = (work.join("sources.list"), work.join("lists"));
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(&list, format!("deb-src [signed-by={keys}] {mirror} bookworm main\n"))
        .with_context(|| format!("writing {}", list.display()))?;
    fs::create_dir_all(lists.join("partial")).context("creating apt's lists")?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.current_dir(work);
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", lists.display()),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // The directory may be closed to apt's own user.
            "APT::Sandbox::User=root".to_owned(),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        command
    };
    run(apt_get().arg("update"))?;
    run(apt_get().args(["source", "--download-only", "kubernetes"]))?;
    let source = work.join("src");
    run(Command::new("sh").current_dir(work).args(["-c", "dpkg-source -x kubernetes_*.dsc src"]))?;
    let history = source.join("debian/changelog");
    let history = fs::read_to_string(&history).with_context(|| history.display().to_string())?;
    let head = history.lines().next().unwrap_or_default();
    ensure!(
        head.contains(VERSION.trim_start_matches('v')),
        "bookworm's source is `{head}`, not {VERSION}"
    );
    Ok(source)
}

/// Without it, the server crashes when it writes indented JSON, which is what curl gets.
fn replace_reflect(source: &Path) -> Result<()> {
    let script = r#"set -e; rm "$1"/*.go "$1"/*.s; cp "$2"/*.go "$2"/*.s "$1""#;
    let vendored = source.join(REFLECT);
    run(Command::new("sh").args(["-c", script, "sh"]).arg(vendored).arg(REFLECT_DEBIAN))?;
    Ok(())
}

/// Runs the source's own makefile, which generates a part of the code first.
fn compile(source: &Path, work: &Path) -> Result<()> {
    let gopath = source.join(".go");
    let parent = gopath.join("src/k8s.io");
    fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
    std::os::unix::fs::symlink("../../..", parent.join("kubernetes")).context("linking source")?;
    let path = std::env::var("PATH").context("PATH")?;
    let mut make = Command::new("nice");
    make.current_dir(source)
        .args(["make", "WHAT=cmd/kube-apiserver"])
        .env("PATH", format!("/usr/lib/go/bin:{path}"))
        .env("GOPATH", &gopath)
        .env("GOCACHE", work.join("cache"))
        .env("GOFLAGS", "-mod=vendor")
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0")
        // There is no git to ask.
        .env("KUBE_GIT_VERSION", VERSION)
        .env("KUBE_GIT_MAJOR", "1")
        .env("KUBE_GIT_MINOR", "20")
        .env("KUBE_GIT_COMMIT", "none")
        .env("KUBE_GIT_TREE_STATE", "archive");
    run(&mut make)?;
    Ok(())
}
