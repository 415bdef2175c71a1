//! Tells the build's compiler and revision to `finrace_build_info`; both may be unknown.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A packaged crate has no repository; a file that is missing would rebuild it each time.
    let head = Path::new("../.git/HEAD");
    if head.exists() {
        println!("cargo::rerun-if-changed={}", head.display());
    }
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let facts = [
        ("FINRACE_RUSTC", output(&rustc, &["--version"])),
        ("FINRACE_REVISION", output("git", &["rev-parse", "--short=12", "HEAD"])),
    ];
    for (name, value) in facts {
        println!("cargo::rustc-env={name}={}", value.unwrap_or_default().trim());
    }
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
}
