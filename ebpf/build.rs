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
    use std::fs;
    use std::io::{self, Write as _};
    use std::path::Path;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::digest;

    pub(crate) fn run() {
        for input in ["src", digest::OBJECT, digest::RECORD] {
            println!("cargo::rerun-if-changed={input}");
        }
        if let Err(error) = compress() {
            println!("cargo::error=compressing {}: {error}", digest::OBJECT);
        }
        match belong_together() {
            Ok(true) => {}
            Ok(false) => println!("cargo::error={}", digest::STALE),
            Err(error) => println!("cargo::error={} ({error})", digest::STALE),
        }
    }

    /// For the library to include.
    fn compress() -> io::Result<()> {
        let directory = std::env::var_os("OUT_DIR").unwrap_or_default();
        let file = fs::File::create(Path::new(&directory).join("object.zlib"))?;
        let mut encoder = ZlibEncoder::new(file, Compression::best());
        encoder.write_all(&fs::read(digest::OBJECT)?)?;
        encoder.finish().map(drop)
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
