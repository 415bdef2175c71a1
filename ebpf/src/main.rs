//! finrace's kernel programs. Each tracepoint has one body, generic over how it reads memory
//! ([`sock::Mem`]); the entry points at the end of this file choose how.
//!
//! The programs keep nothing per connection: the kernel already keeps the stamps, sequence numbers and
//! byte counts that the decisions rest on. On a healthy write, they read the state and one stamp and return.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod sock;

use core::arch::asm;
use core::marker::PhantomData;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::macros::{btf_tracepoint, fentry, kprobe, raw_tracepoint};
use aya_ebpf::maps::RingBuf;
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext};
use aya_log_ebpf::debug;
use finrace_ebpf::abi::{Record, flag, kind, loss, opener, registers};
use finrace_ebpf::decide::{self, HANGS_AFTER, Ring, state};

use crate::maps::{FR_LOSSES, FR_MEASURES, FR_RACES, frozen};
use crate::sock::{Cast, Direct, Mem, Probe, field, netns};

/// The kernel's string "Dual MIT/GPL": the helpers used here require a GPL-compatible program.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Unreachable: no program can panic, or the verifier would reject this loop.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Lets `fill` write a record directly into the ring, or counts a loss if the ring is full; if `fill`
/// returns `None`, the record is discarded. Wakes the reader only when the ring is a quarter full: a
/// wake-up from the traced context costs microseconds.
#[inline(always)]
fn tell(
    ring: Ring,
    kind: u8,
    old_state: u8,
    new_state: u8,
    fill: impl FnOnce(&mut Record) -> Option<()>,
) -> Option<()> {
    let (buffer, lost, given_back): (&RingBuf, u32, u32) = match ring {
        Ring::Races => (&FR_RACES, loss::RACES_FULL, loss::RACES_GIVEN_BACK),
        Ring::Measures => (&FR_MEASURES, loss::MEASURES_FULL, loss::MEASURES_GIVEN_BACK),
    };
    let Some(mut entry) = buffer.reserve::<Record>(0) else {
        count(lost);
        return None;
    };
    let told = fill(sock::begin(&mut entry, kind, old_state, new_state));
    if told.is_some() {
        let unread = buffer.query(u64::from(BPF_RB_AVAIL_DATA));
        let wake = unread >= u64::from(frozen!(FR_SETTINGS.wake_bytes));
        entry.submit(u64::from(if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
    } else {
        // Before the reader can see the gap: its sums are never short of it.
        count(given_back);
        entry.discard(u64::from(BPF_RB_NO_WAKEUP));
    }
    told
}

/// Adds one to one of the [`loss`] counts.
#[inline(always)]
fn count(what: u32) {
    if let Some(count) = FR_LOSSES.get_ptr_mut(what) {
        // The target's `AtomicU64` has no `fetch_add`; this instruction is as old as BPF.
        // SAFETY: a valid, aligned pointer into the map.
        unsafe {
            asm!("lock *(u64 *)({count} + 0) += {one}", count = in(reg) count, one = in(reg) 1_u64);
        }
    }
}

/// The arguments of a hook that sees writes.
trait Written: Copy {
    type Mem: Mem;

    fn socket(self) -> *const u8;

    /// Bytes still to be copied from the caller.
    fn size(self) -> u32;

    /// The message, or null if a page is written instead.
    fn message(self) -> *const u8;
}

/// The tracepoint `tcp_sendmsg_locked` (6.16+; in process context, under the socket lock, once per
/// loop iteration, after the `sk_err || SEND_SHUTDOWN` test), the function of that name (likewise, but
/// once per call and before that test), `do_tcp_sendpages` (under the lock, once per page) or
/// `tcp_sendmsg` (before the lock).
///
/// Every write on the host takes this path: it reads the state, one stamp and jiffies, and returns.
/// The rest is a separate function, so that no register is saved for it here.
#[inline(always)]
fn write<W: Written>(call: W) {
    let sk = call.socket();
    // SAFETY: the context's socket.
    if unsafe { W::Mem::state(sk) } == u64::from(state::ESTABLISHED) {
        // SAFETY: as above.
        let tp = unsafe { W::Mem::tcp_sock(sk) };
        if tp.is_null() {
            return;
        }
        // SAFETY: a full TCP socket.
        let sent = unsafe { W::Mem::lsndtime(tp) };
        if decide::is_in_use(sock::jiffies(), sent, sock::reuse_jiffies()) {
            return;
        }
    }
    write_after_gap::<W, W::Mem>(call);
}

/// Handles a write that may be a reuse, or that goes into a half-closed connection.
#[inline(never)]
fn write_after_gap<W: Written<Mem = M>, M: Mem>(call: W) -> Option<()> {
    let sk = call.socket();
    // SAFETY: the context's socket.
    let tp = unsafe { M::tcp_sock(sk) };
    if tp.is_null() {
        return None;
    }
    // We still have data queued or unacknowledged: a blocked sender, not a new exchange.
    if field!(M, tp, write_seq: u32) != field!(M, tp, snd_una: u32) || sock::is_mptcp::<M>(tp) {
        return None;
    }
    // Comes first, because the verifier walks it once for every path that reaches it.
    let size = sock::anew(call.size().into()) as u32;
    let word = sock::word::<M>(call.message(), size);
    let sk_state = field!(M, sk, skc_state: u8);
    let (sent, received) = (field!(M, tp, lsndtime: u32), field!(M, tp, lrcvtime: u32));
    match sk_state {
        state::ESTABLISHED => {}
        // Only the first write after the FIN; the FIN is as old as the last ACK received.
        state::CLOSE_WAIT
            if decide::distance(received, sent) >= 0
                || decide::distance(field!(M, tp, rcv_tstamp: u32), sent) >= 0 => {}
        _ => return None,
    }
    let who = sock::opener::<M>(tp);
    let ring = if sk_state == state::CLOSE_WAIT {
        if who == opener::PASSIVE {
            return None; // a server answering a half-closed client
        }
        Ring::Races
    } else {
        let rcv_nxt = field!(M, tp, rcv_nxt: u32);
        let write = decide::Write {
            opener: who,
            word,
            size,
            heard: rcv_nxt.wrapping_sub(field!(M, tp, rcv_wup: u32)),
            unread: rcv_nxt.wrapping_sub(field!(M, tp, copied_seq: u32)),
            now: sock::jiffies(),
            lsndtime: sent,
            lrcvtime: received,
        };
        if !decide::is_told(write, frozen!(FR_SETTINGS.reuse_jiffies)) {
            return None;
        }
        Ring::Measures
    };
    let (size, word) = (sock::anew(size.into()) as u32, sock::anew(word.into()) as u8);
    write_recorded::<M>(sk, size, word, ring == Ring::Races);
    Some(())
}

/// Records a write. Kept apart from the decision, whose functions need stack space, too.
#[inline(never)]
fn write_recorded<M: Mem>(sk: *const u8, size: u32, word: u8, is_half_closed: bool) {
    // SAFETY: the context's socket.
    let tp = unsafe { M::tcp_sock(sk) };
    if tp.is_null() {
        return;
    }
    let (state, ring) = if is_half_closed {
        (state::CLOSE_WAIT, Ring::Races)
    } else {
        (state::ESTABLISHED, Ring::Measures)
    };
    tell(ring, kind::WRITE, state, state, |record| {
        sock::fill_tcp::<M>(record, sk, tp);
        sock::fill_task(record);
        record.size = size;
        record.word = word;
        Some(())
    });
}

/// `inet_sock_set_state(sk, old, new)`: fires before the state is stored, in any context; also for
/// SCTP, DCCP and MPTCP, which are skipped.
#[inline(always)]
fn state_change<M: Mem>(sk: *const u8, old: u32, new: u32) {
    let (old, new) = (old as u8, new as u8);
    if decide::state_matters(old, new) && sock::protocol::<M>(sk) == IPPROTO_TCP {
        state_recorded::<M>(sk, old, new);
    }
}

#[inline(never)]
fn state_recorded<M: Mem>(sk: *const u8, old: u8, new: u8) -> Option<()> {
    // SAFETY: the context's socket.
    let tp = unsafe { M::tcp_sock(sk) };
    if tp.is_null() {
        return None;
    }
    let unacked = field!(M, tp, write_seq: u32).wrapping_sub(field!(M, tp, snd_una: u32));
    let heard = decide::distance(field!(M, tp, lrcvtime: u32), field!(M, tp, lsndtime: u32));
    let ring = decide::state_change(old, new, unacked, heard, frozen!(FR_SETTINGS.reuse_jiffies))?;
    if sock::is_mptcp::<M>(tp) {
        return None;
    }
    tell(ring, kind::STATE, old, new, |record| {
        sock::fill_tcp::<M>(record, sk, tp);
        // These two happen in close() or shutdown(); so does ->CLOSE after close() has set sk_shutdown
        // (`__tcp_close`, v6.12 net/ipv4/tcp.c). A received RST sets it only after the tracepoint.
        if matches!(new, state::FIN_WAIT1 | state::LAST_ACK)
            || (old == state::ESTABLISHED && new == state::CLOSE && record.shutdown == 3)
        {
            sock::fill_task(record);
        }
        Some(())
    })
}

/// `tcp_receive_reset(sk)`: the first statement of `tcp_reset()`, so the state is still the old one and
/// the RST's own ACK is not yet applied. Runs in softirq, or in the backlog of a task that need not own
/// the socket.
#[inline(always)]
fn reset_received<M: Mem>(sk: *const u8) -> Option<()> {
    // SAFETY: the context's socket.
    let tp = unsafe { M::tcp_sock(sk) };
    if tp.is_null() {
        return None;
    }
    let sk_state = field!(M, tp, skc_state: u8);
    if decide::reset_matters(sk_state) {
        recorded::<M>(sk, kind::RESET_RECEIVED);
    }
    Some(())
}

/// `tcp_destroy_sock(sk)`: the last event of a socket. Only a socket that was reset, or closed with data
/// unacknowledged, has a write that is not accounted for; for all others this returns at once.
#[inline(always)]
fn destroyed<M: Mem>(sk: *const u8) {
    // SAFETY: the context's socket.
    let tp = unsafe { M::tcp_sock(sk) };
    if !tp.is_null()
        && field!(M, tp, app_limited: u32) != 0
        && field!(M, sk, skc_state: u8) == state::CLOSE
    {
        recorded::<M>(sk, kind::DESTROYED);
    }
}

/// `tcp_retransmit_skb(sk, skb[, err])`: fires after the segment was retransmitted.
#[inline(always)]
fn retransmitted<M: Mem>(sk: *const u8) {
    // SAFETY: the context's socket.
    let tp = unsafe { M::tcp_sock(sk) };
    if !tp.is_null()
        && field!(M, tp, icsk_retransmits: u8) == HANGS_AFTER
        && field!(M, sk, skc_state: u8) == state::ESTABLISHED
    {
        recorded::<M>(sk, kind::RETRANSMITTED);
    }
}

/// Records a socket in its current state.
#[inline(never)]
fn recorded<M: Mem>(sk: *const u8, kind: u8) {
    // SAFETY: the context's socket.
    let tp = unsafe { M::tcp_sock(sk) };
    if tp.is_null() || sock::is_mptcp::<M>(tp) {
        return;
    }
    let sk_state = field!(M, sk, skc_state: u8);
    tell(Ring::Races, kind, sk_state, sk_state, |record| {
        sock::fill_tcp::<M>(record, sk, tp);
        Some(())
    });
}

/// `tcp_send_reset(sk, skb[, reason])`: data that found no socket, or a TIME_WAIT minisock, or a socket
/// that it has just aborted. `sk` may be null since 6.10 (19822a980e19). Minisocks have only the common
/// fields, so the state is read first. Without `HEADERS`, nothing is read through a helper, and segments
/// whose addresses are only in their own headers are skipped.
#[inline(always)]
fn reset_sent<M: Mem, const HEADERS: bool>(
    sk: *const u8,
    skb: *const u8,
    reason: u32,
) -> Option<()> {
    if skb.is_null() {
        return None; // an active reset: the state change reports it
    }
    let cb = |field: u32| {
        let offset = frozen!(FR_LAYOUT.skb_cb) + field;
        // SAFETY: the context's segment, at a constant offset.
        unsafe { M::read::<u32>(skb, offset) }
    };
    let seq = cb(frozen!(FR_LAYOUT.cb_seq));
    let flags = cb(frozen!(FR_LAYOUT.cb_tcp_flags));
    let size = cb(frozen!(FR_LAYOUT.cb_end_seq)).wrapping_sub(seq).wrapping_sub(flags & FIN);
    if size == 0 || size > 0x0010_0000 || flags & SYN != 0 {
        return None;
    }
    tell(Ring::Races, kind::RESET_SENT, 0, 0, |record| {
        if sk.is_null() {
            if !HEADERS {
                return None;
            }
            fill_from_headers::<M>(record, skb)?;
            let device = field!(M, skb, skb_dev: u64) as *const u8;
            record.netns = netns::<M>(field!(M, device, dev_net: u64));
        } else {
            let sk_state = field!(M, sk, skc_state: u8);
            record.old_state = sk_state;
            record.new_state = sk_state;
            match sk_state {
                state::TIME_WAIT => {
                    sock::fill_common::<M>(record, sk);
                    record.flags |= flag::TIMEWAIT;
                    record.local_port = field!(M, sk, skc_num: u16);
                    record.rcv_nxt = field!(M, sk, skc_tw_rcv_nxt: u32);
                    record.snd_nxt = field!(M, sk, skc_tw_snd_nxt: u32);
                }
                state::CLOSE => {
                    // SAFETY: the context's socket.
                    let tp = unsafe { M::tcp_sock(sk) };
                    if tp.is_null() || sock::is_mptcp::<M>(tp) {
                        return None;
                    }
                    sock::fill_tcp::<M>(record, sk, tp);
                }
                // No connection, but there is a listener; `skb->dev` is already cleared.
                state::LISTEN if HEADERS => {
                    fill_from_headers::<M>(record, skb)?;
                    record.netns = netns::<M>(field!(M, sk, skc_net: u64));
                    record.cgroup = sock::cgroup::<M>(sk);
                }
                _ => return None,
            }
        }
        record.flags |= flag::SEGMENT;
        record.code = reason;
        record.skb_seq = seq;
        record.skb_ack = cb(frozen!(FR_LAYOUT.cb_ack_seq));
        record.size = size;
        Some(())
    })
}

/// `tcp_v4_send_reset(sk, skb)` and its IPv6 counterpart, before 6.10: there the tracepoint fires only
/// for full sockets (5c487bb9addd), so this reports the others.
#[inline(always)]
fn stray_segment(sk: *const u8, skb: *const u8) {
    if sk.is_null() || field!(Probe, sk, skc_state: u8) == state::TIME_WAIT {
        reset_sent::<Probe, true>(sk, skb, 0);
    }
}

/// Fills in the addresses and ports of a segment that found no socket, from its own headers.
#[inline(always)]
fn fill_from_headers<M: Mem>(record: &mut Record, skb: *const u8) -> Option<()> {
    let head = field!(M, skb, skb_head: u64) as *const u8;
    let ip = u32::from(field!(M, skb, skb_network_header: u16));
    let tcp = u32::from(field!(M, skb, skb_transport_header: u16));
    // The headers are packet memory, which has no BTF type: they are always read with the helper.
    // SAFETY: `Probe` may read any address.
    let version = unsafe { Probe::read::<u8>(head, ip) } >> 4;
    match version {
        4 => {
            // SAFETY: as above.
            record.remote = sock::mapped(unsafe { Probe::read(head, ip + 12) });
            // SAFETY: as above.
            record.local = sock::mapped(unsafe { Probe::read(head, ip + 16) });
        }
        6 => {
            // SAFETY: as above.
            record.remote = sock::bytes(unsafe { Probe::read(head, ip + 8) });
            // SAFETY: as above.
            record.local = sock::bytes(unsafe { Probe::read(head, ip + 24) });
        }
        _ => return None,
    }
    // SAFETY: as above.
    record.remote_port = u16::from_be(unsafe { Probe::read(head, tcp) });
    // SAFETY: as above.
    record.local_port = u16::from_be(unsafe { Probe::read(head, tcp + 2) });
    Some(())
}

const IPPROTO_TCP: u16 = 6;

/// Control bits of the TCP header (RFC 9293 section 3.1). Each occupies one sequence number.
const FIN: u32 = 1;
const SYN: u32 = 2;

/// Arguments of the tracepoint `tcp_sendmsg_locked(sk, msg, skb, size_goal)`.
struct Traced<M>(*const u64, PhantomData<M>);

/// Index of the byte count among the arguments of a function whose second argument is a message.
const OF_MESSAGE: usize = 2;

/// Arguments of a function; argument `SIZE` (from 0) is the byte count.
#[derive(Clone, Copy)]
struct Called<const SIZE: usize>(*const u64);

/// The same, in a kprobe's registers.
#[derive(Clone, Copy)]
struct Probed<const SIZE: usize>(*const u64);

impl<M> Clone for Traced<M> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Traced<M> {}

impl<M: Mem> Written for Traced<M> {
    type Mem = M;

    #[inline(always)]
    fn socket(self) -> *const u8 {
        word::<0>(self.0) as *const u8
    }

    #[inline(always)]
    fn size(self) -> u32 {
        let msg = self.message();
        saturated(field!(M, msg, msg_count: u64))
    }

    #[inline(always)]
    fn message(self) -> *const u8 {
        word::<1>(self.0) as *const u8
    }
}

impl<const SIZE: usize> Written for Called<SIZE> {
    type Mem = Direct;

    #[inline(always)]
    fn socket(self) -> *const u8 {
        word::<0>(self.0) as *const u8
    }

    #[inline(always)]
    fn size(self) -> u32 {
        saturated(word::<SIZE>(self.0))
    }

    #[inline(always)]
    fn message(self) -> *const u8 {
        if SIZE == OF_MESSAGE { word::<1>(self.0) as *const u8 } else { core::ptr::null() }
    }
}

impl<const SIZE: usize> Written for Probed<SIZE> {
    type Mem = Probe;

    #[inline(always)]
    fn socket(self) -> *const u8 {
        argument::<0>(self.0) as *const u8
    }

    #[inline(always)]
    fn size(self) -> u32 {
        saturated(argument::<SIZE>(self.0))
    }

    #[inline(always)]
    fn message(self) -> *const u8 {
        if SIZE == OF_MESSAGE { argument::<1>(self.0) as *const u8 } else { core::ptr::null() }
    }
}

/// Word `N` of a context.
#[inline(always)]
fn word<const N: usize>(context: *const u64) -> u64 {
    // SAFETY: within the context, as the verifier checks.
    unsafe { context.wrapping_add(N).read_volatile() }
}

#[inline(always)]
fn saturated(size: u64) -> u32 {
    size.min(u64::from(u32::MAX)) as u32
}

/// Argument `N` of the probed function. Reads the registers of both architectures, at offsets that are
/// within either `pt_regs`, so that one object serves both.
#[inline(always)]
fn argument<const N: usize>(context: *const u64) -> u64 {
    let x86_64 = word::<0>(context.wrapping_add(14 - N)); // di, si, dx, cx
    let aarch64 = word::<N>(context); // x0 to x3
    match frozen!(FR_SETTINGS.registers) {
        registers::AARCH64 => aarch64,
        _ => x86_64,
    }
}

/// Write, first choice: tp_btf on `tcp_sendmsg_locked`, 6.16+.
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
fn fr_write_btf(ctx: BtfTracePointContext) -> i32 {
    write(Traced::<Cast>(ctx.as_ptr().cast_const().cast(), PhantomData));
    0
}

/// Write, second choice: the same tracepoint, raw.
#[raw_tracepoint(tracepoint = "tcp_sendmsg_locked")]
fn fr_write_raw(ctx: RawTracePointContext) -> i32 {
    write(Traced::<Probe>(ctx.as_ptr().cast_const().cast(), PhantomData));
    0
}

/// Write, third choice: fentry on `tcp_sendmsg_locked(sk, msg, size)` or `tcp_sendmsg`, which has
/// the same arguments.
#[fentry(function = "tcp_sendmsg_locked")]
fn fr_write_fent(ctx: FEntryContext) -> i32 {
    write(Called::<2>(ctx.as_ptr().cast_const().cast()));
    0
}

/// In addition to it before 6.5, where `sendfile` and kTLS write through
/// `do_tcp_sendpages(sk, page, offset, size, flags)`.
#[fentry(function = "do_tcp_sendpages")]
fn fr_pages_fent(ctx: FEntryContext) -> i32 {
    write(Called::<3>(ctx.as_ptr().cast_const().cast()));
    0
}

/// Write, last choice: a kprobe on either function.
#[kprobe]
fn fr_write_kpr(ctx: ProbeContext) -> u32 {
    write(Probed::<2>(ctx.as_ptr().cast_const().cast()));
    0
}

/// In addition to it before 6.5.
#[kprobe]
fn fr_pages_kpr(ctx: ProbeContext) -> u32 {
    write(Probed::<3>(ctx.as_ptr().cast_const().cast()));
    0
}

/// FIN and close, first choice.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn fr_state_btf(ctx: BtfTracePointContext) -> i32 {
    state_change::<Direct>(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// FIN and close, second choice.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
fn fr_state_raw(ctx: RawTracePointContext) -> i32 {
    state_change::<Probe>(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// Reset received, first choice.
#[btf_tracepoint(function = "tcp_receive_reset")]
fn fr_rrst_btf(ctx: BtfTracePointContext) -> i32 {
    reset_received::<Direct>(ctx.arg(0));
    0
}

/// Reset received, second choice.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
fn fr_rrst_raw(ctx: RawTracePointContext) -> i32 {
    reset_received::<Probe>(ctx.arg(0));
    0
}

/// A socket's end, first choice.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn fr_dest_btf(ctx: BtfTracePointContext) -> i32 {
    destroyed::<Direct>(ctx.arg(0));
    0
}

/// A socket's end, second choice.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
fn fr_dest_raw(ctx: RawTracePointContext) -> i32 {
    destroyed::<Probe>(ctx.arg(0));
    0
}

/// Retransmission, first choice.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn fr_retr_btf(ctx: BtfTracePointContext) -> i32 {
    retransmitted::<Direct>(ctx.arg(0));
    0
}

/// Retransmission, second choice.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
fn fr_retr_raw(ctx: RawTracePointContext) -> i32 {
    retransmitted::<Probe>(ctx.arg(0));
    0
}

/// Reset sent, as tp_btf. On kernels between 6.10 and the fix that marks `sk` as nullable, this
/// crashes the node: there the verifier assumes that `sk` is never null and removes our check. Loaded
/// only if [`fr_srst_proof`] was rejected.
#[btf_tracepoint(function = "tcp_send_reset")]
fn fr_srst_btf(ctx: BtfTracePointContext) -> i32 {
    reset_sent::<Direct, true>(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// The same without any helper that reads memory, for lockdown=confidentiality.
#[btf_tracepoint(function = "tcp_send_reset")]
fn fr_srst_dir(ctx: BtfTracePointContext) -> i32 {
    reset_sent::<Direct, false>(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// Loaded but never attached: dereferences argument 0 without a null check. A kernel that accepts this
/// does not know that the argument may be null.
#[btf_tracepoint(function = "tcp_send_reset")]
fn fr_srst_proof(ctx: BtfTracePointContext) -> i32 {
    i32::from(field!(Direct, ctx.arg(0), skc_state: u8))
}

/// Reset sent, with the reason as the third argument (b533fb9cf4f7, 6.10).
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
fn fr_srst_raw3(ctx: RawTracePointContext) -> i32 {
    if reset_sent::<Probe, true>(ctx.arg(0), ctx.arg(1), ctx.arg(2)).is_some() {
        debug!(&ctx, "reset sent for a segment, reason {}", ctx.arg::<u32>(2));
    }
    0
}

/// Reset sent before 6.10: reading a third argument would make the attachment fail.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
fn fr_srst_raw2(ctx: RawTracePointContext) -> i32 {
    reset_sent::<Probe, true>(ctx.arg(0), ctx.arg(1), 0);
    0
}

/// Resets without a full socket before 6.10, IPv4.
#[fentry(function = "tcp_v4_send_reset")]
fn fr_stray4_fent(ctx: FEntryContext) -> i32 {
    stray_segment(ctx.arg(0), ctx.arg(1));
    0
}

/// The same for IPv6.
#[fentry(function = "tcp_v6_send_reset")]
fn fr_stray6_fent(ctx: FEntryContext) -> i32 {
    stray_segment(ctx.arg(0), ctx.arg(1));
    0
}

/// Both, as a kprobe.
#[kprobe]
fn fr_stray_kpr(ctx: ProbeContext) -> u32 {
    let context = ctx.as_ptr().cast_const().cast();
    stray_segment(argument::<0>(context) as *const u8, argument::<1>(context) as *const u8);
    0
}
