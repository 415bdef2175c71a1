//! The records, limits and decisions that the kernel programs and the agent share, and, for the
//! agent (feature `user`), the compiled programs themselves.
#![cfg_attr(not(feature = "user"), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![warn(missing_docs)]

pub mod abi;
pub mod decide;
pub mod patch;
pub mod word;

#[cfg(feature = "user")]
mod object {
    //! The committed object, compressed because most of it is names and line numbers.

    use std::io::{self, Read as _};

    use flate2::read::ZlibDecoder;

    use crate::abi::{Layout, Settings};

    const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/object.zlib"));

    /// The compiled BPF object; `build.rs` proves that it matches its sources.
    ///
    /// # Errors
    /// Fails only if the executable is corrupt.
    pub fn read() -> io::Result<Vec<u8>> {
        let mut object = Vec::new();
        ZlibDecoder::new(COMPRESSED).read_to_end(&mut object)?;
        Ok(object)
    }

    // SAFETY: `repr(C)`, only `u32` fields, so no padding and every bit pattern is valid.
    unsafe impl aya::Pod for Layout {}
    // SAFETY: as for `Layout`.
    unsafe impl aya::Pod for Settings {}
}

#[cfg(feature = "user")]
pub use object::read as object;
