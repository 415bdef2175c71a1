//! Memory that nobody needs any more.

/// Gives the kernel back what has been freed.
///
/// To start takes 30 MB, mostly for the kernel's types, to run takes one. The C library would keep
/// the rest: once a block of many megabytes was freed it takes such blocks for the rule.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain function of glibc, which may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
