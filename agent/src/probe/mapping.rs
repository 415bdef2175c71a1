//! Memory of a map that the kernel shares with this process.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Read through memory, not through bpf(2), which requires capabilities before 5.19 (c8644cd0efe7).
pub(super) struct Mapping {
    start: *mut c_void,
    /// In bytes.
    length: usize,
}

// SAFETY: the memory belongs to no thread; it is only ever read.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `words` of 64 bits, from a page of the map on.
    pub(super) fn of(map: &MapData, page: usize, words: usize) -> Result<Self> {
        let length = words * size_of::<u64>();
        let offset = (page * rustix::param::page_size()) as u64;
        let (any, fd) = (std::ptr::null_mut(), map.fd().as_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(any, length, ProtFlags::READ, MapFlags::SHARED, fd, offset) };
        let start = start.map_err(io::Error::from).context("mapping a map's memory")?;
        Ok(Self { start, length })
    }

    /// The word of that index, as it is now.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn word(&self, index: usize) -> u64 {
        assert!(index < self.length / size_of::<u64>(), "no word {index}");
        // SAFETY: within the mapping.
        let word = unsafe { self.start.cast::<u64>().add(index) };
        // SAFETY: aligned, and only ever changed by whole words.
        unsafe { word.read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing points into it.
        if let Err(error) = unsafe { munmap(self.start, self.length) } {
            log::debug!("unmapping a map's memory: {error}");
        }
    }
}
