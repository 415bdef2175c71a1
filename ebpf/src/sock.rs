//! Reads kernel structures into a [`Record`]. The same code reads in two ways: by direct loads where
//! the verifier knows the pointer's type (tp_btf, fentry), and by `bpf_probe_read_kernel` elsewhere.
//!
//! Offsets come from [`FR_LAYOUT`](crate::maps::FR_LAYOUT); fields that a kernel lacks read as zero.

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_jiffies64};
use aya_ebpf::helpers::{bpf_ktime_get_ns, generated};
use finrace_ebpf::abi::{ABSENT, Record, flag, opener};
use finrace_ebpf::decide::{self, state};
use finrace_ebpf::{patch, word};

use crate::maps::frozen;

/// A way to read kernel memory.
pub(crate) trait Mem {
    /// Reads a `T` at `base + offset`, or zero if the field is absent or the read faults.
    ///
    /// # Safety
    /// `base` is a kernel pointer that this program got from its context (or read through such a
    /// pointer), and `T` is an integer.
    unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> T;

    /// The `tcp_sock` behind a `sock`, or null if it is not a full TCP socket.
    ///
    /// # Safety
    /// `sk` is the context's `struct sock` argument.
    unsafe fn tcp_sock(sk: *const u8) -> *const u8;

    /// State of a socket, as [`Mem::read`] would read it; for the path of every write.
    ///
    /// # Safety
    /// As [`Mem::read`].
    #[inline(always)]
    unsafe fn state(sk: *const u8) -> u64 {
        let offset = frozen!(FR_LAYOUT.skc_state);
        // SAFETY: upheld by the caller.
        unsafe { Self::read::<u8>(sk, offset) }.into()
    }

    /// When data was last sent, read likewise.
    ///
    /// # Safety
    /// As [`Mem::read`].
    #[inline(always)]
    unsafe fn lsndtime(tp: *const u8) -> u32 {
        let offset = frozen!(FR_LAYOUT.lsndtime);
        // SAFETY: upheld by the caller.
        unsafe { Self::read(tp, offset) }
    }
}

/// A load whose offset the agent patches in.
macro_rules! patched_load {
    ($base:expr, $width:literal, $offset:ident) => {{
        let (base, value): (*const u8, u64);
        base = $base;
        // SAFETY: checked by the verifier.
        unsafe {
            asm!(
                concat!("{value} = *(", $width, " *)({base} + {offset})"),
                value = out(reg) value,
                base = in(reg) base,
                offset = const patch::$offset,
                options(readonly, nostack, preserves_flags),
            );
        }
        value
    }};
}

/// Plain loads; the verifier checks each against BTF, and the kernel handles faults.
///
/// A `tcp_sock` comes from the function `bpf_rdonly_cast`, which the verifier turns into a move
/// (6.2+, a35b9af4ec2c), or else from the helper `bpf_skc_to_tcp_sock` (5.9+), which returns null for
/// anything but a full TCP socket; the agent patches in one or the other.
pub(crate) struct Direct;

impl Mem for Direct {
    #[inline(always)]
    unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> T {
        if offset == ABSENT {
            // SAFETY: all zeroes are a valid integer.
            return unsafe { MaybeUninit::zeroed().assume_init() };
        }
        // SAFETY: checked by the verifier, load by load.
        let field = unsafe { base.add(offset as usize) };
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(field.cast()) }
    }

    #[inline(always)]
    unsafe fn state(sk: *const u8) -> u64 {
        patched_load!(sk, "u8", SKC_STATE)
    }

    #[inline(always)]
    unsafe fn lsndtime(tp: *const u8) -> u32 {
        patched_load!(tp, "u32", LSNDTIME) as u32
    }

    #[inline(always)]
    unsafe fn tcp_sock(sk: *const u8) -> *const u8 {
        let tp: *const u8;
        // SAFETY: the arguments are right for either function.
        unsafe {
            asm!(
                "r2 = {id}",
                ".8byte {call}",
                id = const patch::TCP_SOCK_ID,
                call = const (patch::RDONLY_CAST_ID as i64) << 32 | 0x2085,
                inlateout("r1") sk => _,
                lateout("r0") tp,
                lateout("r2") _,
                lateout("r3") _,
                lateout("r4") _,
                lateout("r5") _,
                options(nostack, preserves_flags),
            );
        }
        tp
    }
}

/// Like [`Direct`], for kernels where only `bpf_rdonly_cast` is possible; its result is never null.
pub(crate) struct Cast;

impl Mem for Cast {
    #[inline(always)]
    unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> T {
        // SAFETY: upheld by the caller.
        unsafe { Direct::read(base, offset) }
    }

    #[inline(always)]
    unsafe fn tcp_sock(sk: *const u8) -> *const u8 {
        // SAFETY: upheld by the caller.
        let tp = unsafe { Direct::tcp_sock(sk) };
        // SAFETY: if this does not hold, the verifier rejects what follows.
        unsafe { core::hint::assert_unchecked(!tp.is_null()) };
        tp
    }

    #[inline(always)]
    unsafe fn state(sk: *const u8) -> u64 {
        // SAFETY: upheld by the caller.
        unsafe { Direct::state(sk) }
    }

    #[inline(always)]
    unsafe fn lsndtime(tp: *const u8) -> u32 {
        // SAFETY: upheld by the caller.
        unsafe { Direct::lsndtime(tp) }
    }
}

/// `bpf_probe_read_kernel`: 22 to 35 ns per call. Its result is ignored on purpose: it zero-fills on a
/// fault, and one branch per read makes the verifiers of 5.10 and 6.1 give up.
pub(crate) struct Probe;

impl Mem for Probe {
    #[inline(always)]
    unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> T {
        let mut value = MaybeUninit::<T>::zeroed();
        if offset != ABSENT {
            let field = base.wrapping_add(offset as usize);
            // SAFETY: writes `size_of::<T>()` bytes to `value`; any address may be passed.
            unsafe {
                generated::bpf_probe_read_kernel(
                    value.as_mut_ptr().cast(),
                    size_of::<T>() as u32,
                    field.cast(),
                )
            };
        }
        // SAFETY: zeroed above, and an integer.
        unsafe { value.assume_init() }
    }

    #[inline(always)]
    unsafe fn tcp_sock(sk: *const u8) -> *const u8 {
        sk
    }
}

/// Reads the field at `FR_LAYOUT.$field` as `$type` from `$base`.
macro_rules! field {
    ($mem:ident, $base:expr, $field:ident : $type:ty) => {{
        let (base, offset): (*const u8, u32) = ($base, $crate::maps::frozen!(FR_LAYOUT.$field));
        // SAFETY: `base` comes from the program's context; the offset is this kernel's own.
        unsafe { <$mem as $crate::sock::Mem>::read::<$type>(base, offset) }
    }};
}
pub(crate) use field;

/// What the first bytes of a write are, see [`word`]; unknown if a page is written.
///
/// The contents of the caller's buffer are used here and stay here. Lockdown does not forbid reading them,
/// but the loader (aya 0.14) then replaces both read helpers with one that it does forbid.
#[inline(never)]
pub(crate) fn word<M: Mem>(msg: *const u8, size: u32) -> u8 {
    let is_known = frozen!(FR_SETTINGS.probe_read) != 0
        && frozen!(FR_LAYOUT.msg_buffer) != ABSENT
        && frozen!(FR_LAYOUT.msg_iter_type) != ABSENT;
    // If part of the buffer is already copied, the write did not begin here.
    if msg.is_null() || size == 0 || !is_known || field!(M, msg, msg_iov_offset: u64) != 0 {
        return word::UNKNOWN;
    }
    let (kind, wide) = if frozen!(FR_LAYOUT.msg_iter_type_bits) > 8 {
        (field!(M, msg, msg_iter_type: u32) & !1, true)
    } else {
        (u32::from(field!(M, msg, msg_iter_type: u8)), false)
    };
    let buffer = field!(M, msg, msg_buffer: u64);
    let base = if !wide && kind == frozen!(FR_LAYOUT.iter_ubuf) {
        buffer
    } else if kind == frozen!(FR_LAYOUT.iter_iovec) {
        // SAFETY: `Probe` may read any address; this is the first word of `struct iovec`.
        unsafe { Probe::read::<u64>(buffer as *const u8, 0) }
    } else {
        return word::UNKNOWN;
    };
    // Word by word, see `begin`.
    let mut bytes = MaybeUninit::<[u64; 2]>::uninit();
    let first = bytes.as_mut_ptr().cast::<u64>();
    for place in [first, first.wrapping_add(1)] {
        // SAFETY: within the two words.
        unsafe { place.write_volatile(0) };
    }
    let look = |count: u32| {
        // SAFETY: writes at most sixteen bytes, and any address may be passed.
        unsafe { generated::bpf_probe_read_user(first.cast(), count, base as *const _) };
    };
    if size >= word::LOOK as u32 {
        look(word::LOOK as u32);
    } else {
        look(below_sixteen(size));
    }
    // SAFETY: written above, and integers.
    let [a, b] = unsafe { bytes.assume_init() };
    fr_word(a, b, size.into()) as u8
}

/// Returns the number unchanged, but makes the verifier forget what branches have shown about it.
/// Otherwise the verifier would follow each of those branches separately from here.
#[inline(always)]
pub(crate) fn anew(number: u64) -> u64 {
    let mut value = number;
    // SAFETY: one instruction on a register.
    unsafe {
        asm!("{value} += 0", value = inout(reg) value, options(pure, nomem, nostack));
    }
    value
}

/// [`word::of`] as a global function: the verifier checks it once, on its own, and not once for each path
/// that leads to a call (5.6+, 51c39bb1d5d1).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn fr_word(a: u64, b: u64, size: u64) -> u64 {
    word::of(a, b, size as u32).into()
}

/// Shows the verifier that a number is below sixteen; the compiler would optimize a plain mask away.
#[inline(always)]
fn below_sixteen(number: u32) -> u32 {
    let mut value = u64::from(number);
    // SAFETY: one instruction on a register.
    unsafe {
        asm!("{value} &= 15", value = inout(reg) value, options(pure, nomem, nostack));
    }
    value as u32
}

/// Protocol number of a socket.
#[inline(always)]
pub(crate) fn protocol<M: Mem>(sk: *const u8) -> u16 {
    if frozen!(FR_LAYOUT.sk_protocol_bits) < 16 {
        u16::from(field!(M, sk, sk_protocol: u8))
    } else {
        field!(M, sk, sk_protocol: u16)
    }
}

/// Whether this TCP socket is a subflow of MPTCP, which has its own clocks and closes.
#[inline(always)]
pub(crate) fn is_mptcp<M: Mem>(tp: *const u8) -> bool {
    field!(M, tp, is_mptcp: u8) & 1 != 0
}

/// The gap that makes a write a reuse, as an immediate in the program itself.
#[inline(always)]
pub(crate) fn reuse_jiffies() -> u32 {
    let value: u64;
    // SAFETY: only sets a register.
    unsafe {
        asm!(
            "{value} = {id}",
            value = out(reg) value,
            id = const patch::REUSE_JIFFIES,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value as u32
}

/// Low 32 bits of jiffies, as in the socket's stamps.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() as u32 }
}

/// Initializes a record in place: sets time, kind and states, and zeroes the rest.
#[inline(always)]
pub(crate) fn begin(
    place: &mut MaybeUninit<Record>,
    kind: u8,
    old_state: u8,
    new_state: u8,
) -> &mut Record {
    let words = place.as_mut_ptr().cast::<u64>();
    // Word by word, or the compiler would emit a call to `memset`, which here is a loop over bytes.
    for word in 0..size_of::<Record>() / 8 {
        let word = words.wrapping_add(word);
        // SAFETY: within the record, which is aligned for it.
        unsafe { word.write_volatile(0) };
    }
    // SAFETY: `Record` consists of integers and arrays of them, all written.
    let record = unsafe { place.assume_init_mut() };
    // SAFETY: no arguments.
    record.time_ns = unsafe { bpf_ktime_get_ns() };
    record.jiffies = jiffies();
    record.kind = kind;
    record.old_state = old_state;
    record.new_state = new_state;
    record
}

/// Fills in addresses, remote port and netns: the fields that minisocks have, too.
#[inline(always)]
pub(crate) fn fill_common<M: Mem>(record: &mut Record, sk: *const u8) {
    const AF_INET6: u16 = 10;
    record.sk = sk as u64;
    record.remote_port = u16::from_be(field!(M, sk, skc_dport: u16));
    if field!(M, sk, skc_family: u16) == AF_INET6 {
        record.local = in6::<M>(sk, frozen!(FR_LAYOUT.skc_v6_rcv_saddr));
        record.remote = in6::<M>(sk, frozen!(FR_LAYOUT.skc_v6_daddr));
    } else {
        record.local = mapped(field!(M, sk, skc_rcv_saddr: u32));
        record.remote = mapped(field!(M, sk, skc_daddr: u32));
    }
    record.netns = netns::<M>(field!(M, sk, skc_net: u64));
}

/// Inode number of the `struct net` at this address.
#[inline(always)]
pub(crate) fn netns<M: Mem>(net: u64) -> u32 {
    field!(M, net as *const u8, net_inum: u32)
}

/// Cgroup id of a full socket; also works in softirq, where the current task is arbitrary.
///
/// A socket keeps the cgroup in which it was created; an accepted one has its listener's
/// (`cgroup_sk_alloc`, `cgroup_sk_clone`, v6.12 kernel/cgroup/cgroup.c).
#[inline(always)]
pub(crate) fn cgroup<M: Mem>(sk: *const u8) -> u64 {
    if frozen!(FR_LAYOUT.sk_cgroup) == ABSENT {
        return 0;
    }
    let cgroup = field!(M, sk, sk_cgroup: u64);
    if frozen!(FR_LAYOUT.sk_cgroup_is_val) == 0 {
        return cgroup_id::<M>(cgroup);
    }
    // The lowest bit says that this is not a pointer but a net_cls class, the next bit how references
    // are counted (v5.10 include/linux/cgroup-defs.h). It has no BTF type, so direct loads are out.
    if cgroup & 1 == 0 { cgroup_id::<Probe>(cgroup & !3) } else { 0 }
}

#[inline(always)]
fn cgroup_id<M: Mem>(cgroup: u64) -> u64 {
    let kn = field!(M, cgroup as *const u8, cgroup_kn: u64);
    field!(M, kn as *const u8, kernfs_id: u64)
}

/// Reads an IPv6 address word by word: the verifier requires each load to stay within one member.
#[inline(always)]
fn in6<M: Mem>(sk: *const u8, offset: u32) -> [u8; 16] {
    // SAFETY: as `field!`; one of the four words of `in6_addr`.
    let word = |index: u32| unsafe { M::read::<u32>(sk, offset + index * 4) };
    bytes([word(0), word(1), word(2), word(3)])
}

/// An IPv4 address in network order, mapped into IPv6.
#[inline(always)]
pub(crate) fn mapped(be: u32) -> [u8; 16] {
    bytes([0, 0, 0xffff_u32.to_be(), be])
}

/// The bytes of four words, in memory order.
#[inline(always)]
pub(crate) fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: arrays of integers of the same length.
    unsafe { core::mem::transmute(words) }
}

/// Fills in everything about a full TCP socket, which is passed twice: through `sk`, a tracepoint's
/// argument, fields are loaded without a check. `record.old_state` must be set: it decides whether
/// the opener's arithmetic is valid.
#[inline(always)]
pub(crate) fn fill_tcp<M: Mem>(record: &mut Record, sk: *const u8, tp: *const u8) {
    fill_common::<M>(record, sk);
    record.flags |= flag::FULL_SOCK;
    // `skc_num` is 0 by the time of ->CLOSE (`inet_put_port` ran before the tracepoint).
    record.local_port = u16::from_be(field!(M, tp, inet_sport: u16));
    record.shutdown = field!(M, sk, sk_shutdown: u8) & 3;
    record.code = field!(M, sk, sk_err: u32);
    record.max_ack_backlog = field!(M, sk, sk_max_ack_backlog: u32);
    record.cgroup = cgroup::<M>(sk);
    record.retransmits = field!(M, tp, icsk_retransmits: u8);
    record.lsndtime = field!(M, tp, lsndtime: u32);
    record.lrcvtime = field!(M, tp, lrcvtime: u32);
    record.rcv_tstamp = field!(M, tp, rcv_tstamp: u32);
    record.write_seq = field!(M, tp, write_seq: u32);
    record.snd_una = field!(M, tp, snd_una: u32);
    record.snd_nxt = field!(M, tp, snd_nxt: u32);
    record.rcv_nxt = field!(M, tp, rcv_nxt: u32);
    record.rcv_wup = field!(M, tp, rcv_wup: u32);
    record.copied_seq = field!(M, tp, copied_seq: u32);
    record.rtt_us = field!(M, tp, srtt_us: u32) >> 3;
    record.data_segs_out = field!(M, tp, data_segs_out: u32);
    record.bytes_received = field!(M, tp, bytes_received: u64);
    record.app_limited = field!(M, tp, app_limited: u32);
    // These tell the order of events, which matters only while neither side has closed.
    if record.old_state == state::ESTABLISHED {
        record.data_segs_in = field!(M, tp, data_segs_in: u32);
        record.snd_wl1 = field!(M, tp, snd_wl1: u32);
        record.sent_us = field!(M, tp, first_tx_mstamp: u64);
        record.acked_us = field!(M, tp, delivered_mstamp: u64);
        record.spoke_ns = field!(M, tp, tcp_wstamp_ns: u64);
    }

    let options = field!(M, tp, rx_opt_flags: u16);
    if options >> (frozen!(FR_LAYOUT.saw_tstamp_bit) & 15) & 1 != 0 {
        record.flags |= flag::SAW_TSTAMP;
    }
    if options >> (frozen!(FR_LAYOUT.tstamp_ok_bit) & 15) & 1 != 0 {
        record.flags |= flag::TSTAMP_OK;
    }

    // At CLOSE_WAIT->LAST_ACK and ESTABLISHED->FIN_WAIT1 the FIN is not queued yet
    // (`tcp_close_state` comes before `tcp_send_fin`, v6.12 net/ipv4/tcp.c).
    if matches!(record.old_state, state::ESTABLISHED | state::CLOSE_WAIT) {
        record.opener = opener::<M>(tp);
    } else {
        record.flags |= flag::FIN_SENT;
    }
}

/// Who opened the connection; see [`decide::opener_of`].
#[inline(always)]
pub(crate) fn opener<M: Mem>(tp: *const u8) -> u8 {
    if frozen!(FR_LAYOUT.bytes_sent) == ABSENT || frozen!(FR_LAYOUT.bytes_retrans) == ABSENT {
        return opener::UNKNOWN;
    }
    decide::opener_of(
        field!(M, tp, bytes_acked: u64),
        field!(M, tp, snd_nxt: u32).wrapping_sub(field!(M, tp, snd_una: u32)),
        field!(M, tp, bytes_sent: u64),
        field!(M, tp, bytes_retrans: u64),
    )
}

/// Fills in the current task, where it is known to own the socket: at a write and at a local close.
/// Never call this from softirq, where the current task is whichever was interrupted.
#[inline(always)]
pub(crate) fn fill_task(record: &mut Record) {
    record.tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let comm = record.comm.as_mut_ptr().cast();
    // SAFETY: writes at most the sixteen bytes of `comm`.
    if unsafe { generated::bpf_get_current_comm(comm, size_of_val(&record.comm) as u32) } == 0 {
        record.flags |= flag::TASK;
    }
}
