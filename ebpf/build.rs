//! With feature `user`: refuses to build when the committed object is not the one that these
//! sources give. Compares recorded digests, so it needs neither the BPF toolchain nor a network.

#[cfg(feature = "user")]
#[path = "src/digest.rs"]
mod digest;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "user")]
    check::run();
}

#[cfg(feature = "user")]
mod check {
    use std::path::Path;
    use std::{fs, io};

    use super::digest;

    pub(crate) fn run() {
        for input in ["src", digest::OBJECT, digest::RECORD] {
            println!("cargo::rerun-if-changed={input}");
        }
        match belong_together() {
            Ok(true) => {}
            Ok(false) => println!("cargo::error={}", digest::STALE),
            Err(error) => println!("cargo::error={} ({error})", digest::STALE),
        }
    }

    fn belong_together() -> io::Result<bool> {
        // Cargo runs a build script in the directory of its package.
        let package = Path::new(".");
        let record = fs::read_to_string(package.join(digest::RECORD))?;
        let object = fs::read(package.join(digest::OBJECT))?;
        let line = |key, digest| format!("{key} = \"{digest}\"");
        Ok(record.contains(&line("sources", digest::sources(package)?))
            && record.contains(&line("object", digest::of(&object))))
    }
}
