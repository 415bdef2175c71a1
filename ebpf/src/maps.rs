//! Maps and frozen globals.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, RingBuf};
use finrace_ebpf::abi::{Layout, MEASURES_BYTES, RACES_BYTES, Settings, loss, registers};

/// FINs with data at risk, writes after a FIN, resets: few, and must not be crowded out.
#[map]
pub(crate) static FR_RACES: RingBuf = RingBuf::with_byte_size(RACES_BYTES, 0);

/// Closes and reuses: many at a reload. They have their own ring, so that they cannot crowd out a race.
#[map]
pub(crate) static FR_MEASURES: RingBuf = RingBuf::with_byte_size(MEASURES_BYTES, 0);

/// Records lost because their ring was full, and places that were given back, by ring. Mapped into the agent, which thus needs no
/// capabilities to read it (before 5.19, every bpf(2) call requires them: c8644cd0efe7).
#[map]
pub(crate) static FR_LOSSES: Array<u64> = Array::with_max_entries(loss::COUNT, BPF_F_MMAPABLE);

/// Field offsets of the running kernel; the agent overwrites and freezes this before the load.
#[unsafe(no_mangle)]
pub(crate) static FR_LAYOUT: Layout = Layout::ABSENT;

/// The agent's settings, frozen in the same way.
#[unsafe(no_mangle)]
pub(crate) static FR_SETTINGS: Settings = Settings {
    reuse_jiffies: 50,
    wake_bytes: u32::MAX,
    registers: registers::X86_64,
    probe_read: 0,
};

/// Reads one field of a frozen global, so that the verifier sees a constant and the compiler does
/// not fold the placeholder.
macro_rules! frozen {
    ($global:ident . $field:ident) => {
        // SAFETY: a valid static, read as a whole; nothing writes to it after the load.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::$global.$field) }
    };
}
pub(crate) use frozen;
