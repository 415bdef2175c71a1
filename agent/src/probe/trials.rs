//! What only an attempt can show: kinds of maps and programs, and helpers that lockdown takes away.

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

/// What the kernel accepted when tried; `None`: the attempt itself failed, so nothing is known, and
/// the actual programs will show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trials {
    /// Maps of the ring buffer type (5.8).
    pub ring_buffer: Option<bool>,
    pub raw_tracepoint: Option<bool>,
    pub kprobe: Option<bool>,
    /// `bpf_probe_read_kernel` (5.5) in raw tracepoints; confidentiality takes it away.
    pub probe_read: Option<bool>,
}

impl Trials {
    /// Tries everything; without `CAP_BPF` and `CAP_PERFMON` nothing would be learned.
    pub fn run() -> Self {
        let program = |kind| known(is_program_supported(kind));
        Self {
            ring_buffer: is_map_supported(MapType::RingBuf).ok(),
            raw_tracepoint: program(ProgramType::RawTracePoint),
            kprobe: program(ProgramType::KProbe),
            probe_read: known(is_helper_supported(
                ProgramType::RawTracePoint,
                BpfHelper::BPF_FUNC_probe_read_kernel,
            )),
        }
    }
}

fn known(answer: Result<bool, ProgramError>) -> Option<bool> {
    answer.inspect_err(|error| log::debug!("trying what the kernel takes: {error}")).ok()
}
