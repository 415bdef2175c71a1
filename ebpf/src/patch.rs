//! Operands that the agent patches into instructions before the load: on the path of every write,
//! even reading a frozen offset costs too much.

use crate::abi::{ABSENT, Layout, Settings};

/// Placeholder for the offset of a load: `skc_state`. No kernel structure is this large.
pub const SKC_STATE: i16 = 0x7F01;
/// Placeholder for the offset of a load: `lsndtime`.
pub const LSNDTIME: i16 = 0x7F02;
/// Placeholder for an immediate: `reuse_jiffies`.
pub const REUSE_JIFFIES: i32 = 0x7F00_C0D1;
/// Placeholder for an immediate: `tcp_sock_id`.
pub const TCP_SOCK_ID: i32 = 0x7F00_C0D2;
/// Placeholder for the kernel function of a call: `rdonly_cast_id`.
pub const RDONLY_CAST_ID: i32 = 0x7F00_C0D3;

/// Opcodes: a load into a register, of any width; moves of an immediate; a call of a kernel function.
const LDX: u8 = 0x61;
const MOVES: [u8; 2] = [0xB4, 0xB7];
const CALL: u8 = 0x85;
const KERNEL_FUNCTION: u8 = 2 << 4;

/// Called where that function does not exist: the helper `bpf_skc_to_tcp_sock`.
const SKC_TO_TCP_SOCK: u32 = 137;

/// Patches the operands in, and returns how many instructions it changed. An instruction is a word
/// of eight bytes, aligned as one in any object (v6.12 Documentation/bpf/standardization).
pub fn apply(object: &mut [u8], layout: &Layout, settings: &Settings) -> usize {
    let words = object.as_chunks_mut::<8>().0.iter_mut();
    let changes = words.filter_map(|word| {
        *word = changed(*word, layout, settings)?;
        Some(())
    });
    changes.count()
}

fn changed(word: [u8; 8], layout: &Layout, settings: &Settings) -> Option<[u8; 8]> {
    let [code, registers, o0, o1, imm @ ..] = word;
    let with_number = |registers, number: u32| {
        let [i0, i1, i2, i3] = number.to_le_bytes();
        Some([code, registers, o0, o1, i0, i1, i2, i3])
    };
    match (code, i32::from_le_bytes(imm)) {
        (CALL, RDONLY_CAST_ID) if registers == KERNEL_FUNCTION => {
            if layout.rdonly_cast_id == ABSENT {
                return with_number(0, SKC_TO_TCP_SOCK);
            }
            with_number(registers, layout.rdonly_cast_id)
        }
        (code, REUSE_JIFFIES) if MOVES.contains(&code) => {
            with_number(registers, settings.reuse_jiffies)
        }
        (code, TCP_SOCK_ID) if MOVES.contains(&code) => with_number(registers, layout.tcp_sock_id),
        (code, 0) if code & 0xE7 == LDX => {
            let offset = match i16::from_le_bytes([o0, o1]) {
                SKC_STATE => layout.skc_state,
                LSNDTIME => layout.lsndtime,
                _ => return None,
            };
            let [o0, o1, ..] = offset.to_le_bytes();
            Some([code, registers, o0, o1, 0, 0, 0, 0])
        }
        _ => None,
    }
}
