//! The records, limits and decisions that the kernel programs and the agent share, and, for the
//! agent (feature `user`), the compiled programs themselves.
#![no_std]
#![warn(missing_docs)]

pub mod abi;
pub mod decide;

#[cfg(feature = "user")]
mod object {
    //! The committed object, aligned as an ELF reader wants it.

    use crate::abi::{Layout, Settings};

    #[repr(C, align(8))]
    struct Aligned<B: ?Sized>(B);

    static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../finrace.bpf.o"));

    /// The compiled BPF object, 8-byte aligned; `build.rs` proves that it belongs to its sources.
    pub fn bytes() -> &'static [u8] {
        &ALIGNED.0
    }

    // SAFETY: `repr(C)`, only `u32` fields, so no padding and every bit pattern is valid.
    unsafe impl aya::Pod for Layout {}
    // SAFETY: as for `Layout`.
    unsafe impl aya::Pod for Settings {}
}

#[cfg(feature = "user")]
pub use object::bytes as object_bytes;
