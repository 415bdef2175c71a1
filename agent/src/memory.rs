//! Memory that is no longer needed.

/// Returns freed memory to the kernel.
///
/// Starting takes 30 MB, mostly for the kernel's types; running takes one. The C library would keep
/// the rest: once a block of many megabytes has been freed, it assumes that such blocks are normal.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain function of glibc, which may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
