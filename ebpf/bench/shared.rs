//! What the programs of the measurements and their driver agree on.

/// Records that are produced in turn.
pub(crate) const PATTERNS: u32 = 4096;

/// How many may produce at a time.
pub(crate) const PRODUCERS: u32 = 2;

/// What came of producing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Produced {
    /// Records tried, those refused by a full ring among them.
    pub(crate) count: u64,
    /// Records that found the ring full.
    pub(crate) refused: u64,
    /// The next of the pattern.
    pub(crate) next: u32,
    /// Zero.
    pub(crate) padding: u32,
}
