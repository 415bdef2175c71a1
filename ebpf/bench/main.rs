//! What the measurements need in the kernel: a twin that does nothing for each program of finrace
//! (`no_write_btf` for `fr_write_btf`), and a source of records at any rate.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod shared;

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, fentry, kprobe, map, raw_tracepoint};
use aya_ebpf::maps::{Array, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext};
use finrace_ebpf::abi::{MEASURES_BYTES, Record, loss};

use crate::shared::{PATTERNS, PRODUCERS, Produced};

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// A program of each kind that returns at once.
macro_rules! twins {
    ($($kind:ident($($argument:ident = $value:literal)?) $name:ident($context:ty) -> $result:ty;)*) => {
        $(
            #[$kind($($argument = $value)?)]
            fn $name(_: $context) -> $result {
                0
            }
        )*
    };
}

twins! {
    btf_tracepoint(function = "tcp_sendmsg_locked") no_write_btf(BtfTracePointContext) -> i32;
    btf_tracepoint(function = "inet_sock_set_state") no_state_btf(BtfTracePointContext) -> i32;
    btf_tracepoint(function = "tcp_receive_reset") no_rrst_btf(BtfTracePointContext) -> i32;
    btf_tracepoint(function = "tcp_destroy_sock") no_dest_btf(BtfTracePointContext) -> i32;
    btf_tracepoint(function = "tcp_retransmit_skb") no_retr_btf(BtfTracePointContext) -> i32;
    btf_tracepoint(function = "tcp_send_reset") no_srst_btf(BtfTracePointContext) -> i32;
    raw_tracepoint(tracepoint = "tcp_sendmsg_locked") no_write_raw(RawTracePointContext) -> i32;
    raw_tracepoint(tracepoint = "inet_sock_set_state") no_state_raw(RawTracePointContext) -> i32;
    raw_tracepoint(tracepoint = "tcp_receive_reset") no_rrst_raw(RawTracePointContext) -> i32;
    raw_tracepoint(tracepoint = "tcp_destroy_sock") no_dest_raw(RawTracePointContext) -> i32;
    raw_tracepoint(tracepoint = "tcp_retransmit_skb") no_retr_raw(RawTracePointContext) -> i32;
    raw_tracepoint(tracepoint = "tcp_send_reset") no_srst_raw3(RawTracePointContext) -> i32;
    raw_tracepoint(tracepoint = "tcp_send_reset") no_srst_raw2(RawTracePointContext) -> i32;
    fentry(function = "tcp_sendmsg_locked") no_write_fent(FEntryContext) -> i32;
    fentry(function = "do_tcp_sendpages") no_pages_fent(FEntryContext) -> i32;
    fentry(function = "tcp_v4_send_reset") no_stray4_fent(FEntryContext) -> i32;
    fentry(function = "tcp_v6_send_reset") no_stray6_fent(FEntryContext) -> i32;
    kprobe() no_write_kpr(ProbeContext) -> u32;
    kprobe() no_pages_kpr(ProbeContext) -> u32;
    kprobe() no_stray_kpr(ProbeContext) -> u32;
}

/// These two are those of the agent under test: it finds them pinned.
#[map]
static FR_MEASURES: RingBuf = RingBuf::with_byte_size(MEASURES_BYTES, 0);
#[map]
static FR_LOSSES: Array<u64> = Array::with_max_entries(loss::COUNT, BPF_F_MMAPABLE);

/// What is produced, over and over.
#[map]
static PATTERN: Array<Record> = Array::with_max_entries(PATTERNS, 0);

/// How far each producer got.
#[map]
static PRODUCED: Array<Produced> = Array::with_max_entries(PRODUCERS, 0);

/// Writes up to 500 records, as many as its first argument says, as the producer that its third one
/// names. Their stamps of jiffies are taken as ages.
#[raw_tracepoint(tracepoint = "none")]
fn produce(ctx: RawTracePointContext) -> i32 {
    let Some(produced) = PRODUCED.get_ptr_mut(ctx.arg(2)) else { return 1 };
    // SAFETY: the map's value; no other producer has this one.
    let produced = unsafe { &mut *produced };
    let wake_bytes = ctx.arg::<u64>(1);
    for _ in 0..ctx.arg::<u64>(0).min(500) {
        let Some(pattern) = PATTERN.get(produced.next % PATTERNS) else { return 1 };
        let mut record = *pattern;
        // SAFETY: no arguments.
        record.time_ns = unsafe { bpf_ktime_get_ns() };
        // SAFETY: no arguments.
        let now = unsafe { bpf_jiffies64() } as u32;
        record.jiffies = now;
        record.lsndtime = now.wrapping_sub(pattern.lsndtime);
        record.lrcvtime = now.wrapping_sub(pattern.lrcvtime);
        record.rcv_tstamp = now.wrapping_sub(pattern.rcv_tstamp);
        produced.next = produced.next.wrapping_add(1);
        produced.count += 1;
        // As `emit` does: a wake-up where the ring is a quarter full.
        let unread = FR_MEASURES.query(0);
        let wake = unread >= wake_bytes;
        let flags = if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
        if FR_MEASURES.output::<Record>(&record, flags.into()).is_err()
            && let Some(lost) = FR_LOSSES.get_ptr_mut(loss::MEASURES_FULL)
        {
            produced.refused += 1;
            // SAFETY: a valid, aligned pointer into the map.
            unsafe {
                asm!("lock *(u64 *)({lost} + 0) += {one}", lost = in(reg) lost, one = in(reg) 1_u64);
            }
        }
    }
    0
}
