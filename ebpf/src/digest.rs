//! Digest of the BPF object's sources, and the record beside the object that holds this digest.
//!
//! Not a module of the library: `build.rs` and `cargo xtask bpf` both include this file by path,
//! so that they cannot disagree. Only `src/**/*.rs` counts here, because `cargo package` and
//! `cargo vendor` rewrite the manifest; xtask checks the manifest and the dependencies itself.

use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

/// The committed object, in the package's directory.
pub(crate) const OBJECT: &str = "finrace.bpf.o";
/// The record of what the object was built from and with, beside it.
pub(crate) const RECORD: &str = "finrace.bpf.toml";
/// What a user sees if sources and object do not match.
pub(crate) const STALE: &str = "ebpf sources and finrace.bpf.o differ: run cargo xtask bpf";

/// Digest of the names and contents of all sources of the package in `package`.
pub(crate) fn sources(package: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    collect(&package.join("src"), &mut files)?;
    files.sort();

    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(package).unwrap_or(&file).to_string_lossy().into_owned();
        let content = fs::read(&file)?;
        // Lengths first, so that no two sets of files give the same bytes.
        for part in [name.as_bytes(), &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of `bytes`, in hexadecimal.
pub(crate) fn of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
