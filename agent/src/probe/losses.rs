//! The programs' count of lost records, mapped into this process.

use std::io;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use aya::maps::Map;
use finrace_ebpf::abi::loss;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const BYTES: usize = loss::COUNT as usize * size_of::<u64>();

/// Read through memory, not through bpf(2), which requires capabilities before 5.19 (c8644cd0efe7).
pub struct Losses {
    counts: *mut std::ffi::c_void,
}

// SAFETY: the memory belongs to no thread; it is only ever read.
unsafe impl Send for Losses {}

impl Losses {
    pub fn map(map: &Map) -> Result<Self> {
        let Map::Array(data) = map else { bail!("FR_LOSSES is not an array") };
        let fd = data.fd();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let counts = unsafe {
            mmap(std::ptr::null_mut(), BYTES, ProtFlags::READ, MapFlags::SHARED, fd.as_fd(), 0)
        };
        Ok(Self { counts: counts.map_err(io::Error::from).context("mapping FR_LOSSES")? })
    }

    /// Records lost since the start, by [`loss`] index.
    pub fn read(&self) -> [u64; loss::COUNT as usize] {
        std::array::from_fn(|reason| {
            // SAFETY: within the mapping, which has room for every reason.
            let count = unsafe { self.counts.cast::<u64>().add(reason) };
            // SAFETY: aligned, and only ever changed by whole words.
            unsafe { count.read_volatile() }
        })
    }
}

impl Drop for Losses {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing points into it.
        if let Err(error) = unsafe { munmap(self.counts, BYTES) } {
            log::debug!("unmapping FR_LOSSES: {error}");
        }
    }
}
