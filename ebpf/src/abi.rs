//! What the kernel programs and the agent agree on: records, layout, limits, names.
//!
//! Every type is `repr(C)` with fixed-width integers, because the other side may write any bit
//! pattern; a kind becomes an enum only in the agent's decoder. Sizes are asserted below.

/// "This field does not exist on this kernel": programs skip what needs it.
pub const ABSENT: u32 = u32::MAX;

/// Byte offsets into kernel structures, resolved from the running kernel's BTF at load and frozen
/// in `.rodata`, so that the verifier folds them into constants. [`ABSENT`] where a kernel lacks
/// the field.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `sock.__sk_common.skc_daddr` (IPv4 remote address, network order).
    pub skc_daddr: u32,
    /// `skc_rcv_saddr` (IPv4 local address, network order).
    pub skc_rcv_saddr: u32,
    /// `skc_dport` (remote port, network order).
    pub skc_dport: u32,
    /// `skc_num` (local port, host order; 0 once the port is released).
    pub skc_num: u32,
    /// `skc_family`.
    pub skc_family: u32,
    /// `skc_state`.
    pub skc_state: u32,
    /// `skc_net` (pointer to `struct net`).
    pub skc_net: u32,
    /// `skc_v6_daddr`.
    pub skc_v6_daddr: u32,
    /// `skc_v6_rcv_saddr`.
    pub skc_v6_rcv_saddr: u32,
    /// `sock_common.skc_tw_rcv_nxt` (TIME_WAIT minisocks).
    pub skc_tw_rcv_nxt: u32,
    /// `sock_common.skc_tw_snd_nxt` (TIME_WAIT minisocks).
    pub skc_tw_snd_nxt: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// `sock.sk_protocol`.
    pub sk_protocol: u32,
    /// Width of that field: 16 bits since 5.6 because of MPTCP, whose number has the same low byte as
    /// TCP's; 8 bits before, and on RHEL 8.
    pub sk_protocol_bits: u32,
    /// `sock.sk_shutdown`: byte offset (2-bit field in the low bits before 5.6, else u8).
    pub sk_shutdown: u32,
    /// `sock.sk_err`.
    pub sk_err: u32,
    /// `sock.sk_max_ack_backlog`.
    pub sk_max_ack_backlog: u32,
    /// `sock.sk_cgrp_data.cgroup`, before 5.15 `sk_cgrp_data.val` (8520e224f547).
    pub sk_cgroup: u32,
    /// Not an offset: 1 if that is `val`, a number with flags in its low bits; 0 if it is a
    /// pointer.
    pub sk_cgroup_is_val: u32,
    /// `cgroup.kn`.
    pub cgroup_kn: u32,
    /// `kernfs_node.id` (u64): the inode number of the cgroup's directory.
    pub kernfs_id: u32,
    /// `inet_sock.inet_sport` (local port, network order; survives the release of the port).
    pub inet_sport: u32,
    /// `inet_connection_sock.icsk_ack.lrcvtime`.
    pub lrcvtime: u32,
    /// `inet_connection_sock.icsk_retransmits`.
    pub icsk_retransmits: u32,
    /// `tcp_sock.lsndtime`.
    pub lsndtime: u32,
    /// `tcp_sock.rcv_tstamp`.
    pub rcv_tstamp: u32,
    /// `tcp_sock.snd_una`.
    pub snd_una: u32,
    /// `tcp_sock.snd_nxt`.
    pub snd_nxt: u32,
    /// `tcp_sock.write_seq`.
    pub write_seq: u32,
    /// `tcp_sock.rcv_nxt`.
    pub rcv_nxt: u32,
    /// `tcp_sock.rcv_wup` (`rcv_nxt` when we last sent anything).
    pub rcv_wup: u32,
    /// `tcp_sock.copied_seq`.
    pub copied_seq: u32,
    /// `tcp_sock.snd_wl1` (sequence number of the latest segment that updated the peer's window).
    pub snd_wl1: u32,
    /// `tcp_sock.first_tx_mstamp` (u64).
    pub first_tx_mstamp: u32,
    /// `tcp_sock.delivered_mstamp` (u64).
    pub delivered_mstamp: u32,
    /// `tcp_sock.tcp_wstamp_ns` (u64).
    pub tcp_wstamp_ns: u32,
    /// `tcp_sock.app_limited`.
    pub app_limited: u32,
    /// `tcp_sock.srtt_us` (eight times the smoothed RTT).
    pub srtt_us: u32,
    /// `tcp_sock.bytes_acked` (u64).
    pub bytes_acked: u32,
    /// `tcp_sock.bytes_sent` (u64).
    pub bytes_sent: u32,
    /// `tcp_sock.bytes_retrans` (u64).
    pub bytes_retrans: u32,
    /// `tcp_sock.bytes_received` (u64).
    pub bytes_received: u32,
    /// `tcp_sock.data_segs_out`.
    pub data_segs_out: u32,
    /// `tcp_sock.data_segs_in`.
    pub data_segs_in: u32,
    /// `tcp_sock.rx_opt`'s 16 bits that hold `saw_tstamp` and `tstamp_ok`: byte offset.
    pub rx_opt_flags: u32,
    /// Bit of `saw_tstamp` within those 16 bits.
    pub saw_tstamp_bit: u32,
    /// Bit of `tstamp_ok` within those 16 bits.
    pub tstamp_ok_bit: u32,
    /// `tcp_sock.is_mptcp` (one byte; absent without `CONFIG_MPTCP`).
    pub is_mptcp: u32,
    /// `sk_buff.cb` (holds `tcp_skb_cb`).
    pub skb_cb: u32,
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.network_header`.
    pub skb_network_header: u32,
    /// `sk_buff.transport_header`.
    pub skb_transport_header: u32,
    /// `sk_buff.dev` (pointer to `net_device`; for the netns of a reset without a socket).
    pub skb_dev: u32,
    /// `net_device.nd_net` (pointer to `struct net`).
    pub dev_net: u32,
    /// `tcp_skb_cb.seq` within `cb`.
    pub cb_seq: u32,
    /// `tcp_skb_cb.end_seq` within `cb`.
    pub cb_end_seq: u32,
    /// `tcp_skb_cb.ack_seq` within `cb`.
    pub cb_ack_seq: u32,
    /// `tcp_skb_cb.tcp_flags` within `cb`.
    pub cb_tcp_flags: u32,
    /// `msghdr.msg_iter` `count` (bytes still to be copied).
    pub msg_count: u32,
    /// `msghdr.msg_iter` `iov_offset` (bytes of the first buffer already copied).
    pub msg_iov_offset: u32,
    /// `msghdr.msg_iter` `ubuf`, or `iov`, which has the same offset.
    pub msg_buffer: u32,
    /// `msghdr.msg_iter` `iter_type`, before 5.14 `type` (8cd54c1c8480).
    pub msg_iter_type: u32,
    /// Width of that field: 8 bits, or 32 if it is `type`, whose lowest bit is the direction.
    pub msg_iter_type_bits: u32,
    /// Not an offset: the value of `ITER_UBUF`, 6.0+ (fcb14cb1bdac).
    pub iter_ubuf: u32,
    /// Not an offset either: the value of `ITER_IOVEC`.
    pub iter_iovec: u32,
    /// Not an offset: the id of `struct tcp_sock` in the kernel's BTF.
    pub tcp_sock_id: u32,
    /// Not an offset either: the id of the function `bpf_rdonly_cast`, 6.2+.
    pub rdonly_cast_id: u32,
}

impl Layout {
    /// No field is known: what the programs hold until the agent has resolved the offsets.
    // SAFETY: `repr(C)` with nothing but `u32` fields, as the sizes show.
    pub const ABSENT: Self = unsafe {
        core::mem::transmute::<[u32; size_of::<Self>() / 4], Self>([ABSENT; size_of::<Self>() / 4])
    };
}

/// Settings that the agent chose, frozen alongside [`Layout`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A gap longer than this many jiffies makes a write a reuse.
    pub reuse_jiffies: u32,
    /// A ring with this many unread bytes wakes its reader.
    pub wake_bytes: u32,
    /// The architecture whose calling convention kprobes see: one of [`registers`].
    pub registers: u32,
    /// Whether `bpf_probe_read_kernel` may be called: not under lockdown=confidentiality.
    pub probe_read: u32,
}

/// Values of [`Settings::registers`].
pub mod registers {
    /// Arguments in di, si, dx, cx.
    pub const X86_64: u32 = 0;
    /// Arguments in x0 to x3.
    pub const AARCH64: u32 = 1;
}

/// Which tracepoint a record comes from.
pub mod kind {
    /// `inet_sock_set_state`.
    pub const STATE: u8 = 1;
    /// A write: a reuse in ESTABLISHED, or any write in CLOSE_WAIT.
    pub const WRITE: u8 = 2;
    /// `tcp_receive_reset` (also fires for data after our own close, without any RST received).
    pub const RESET_RECEIVED: u8 = 3;
    /// `tcp_send_reset`.
    pub const RESET_SENT: u8 = 4;
    /// `tcp_destroy_sock`: the application has released a socket that was reset, or that had
    /// unacknowledged data when it was closed.
    pub const DESTROYED: u8 = 5;
    /// `tcp_retransmit_skb`: a request went unacknowledged for the third time.
    pub const RETRANSMITTED: u8 = 6;
}

/// Values of [`Record::opener`].
pub mod opener {
    /// The byte arithmetic gave neither 0 nor 1, or was not possible.
    pub const UNKNOWN: u8 = 0;
    /// This end called `connect()`.
    pub const ACTIVE: u8 = 1;
    /// This end called `accept()`.
    pub const PASSIVE: u8 = 2;
}

/// Bits of [`Record::flags`].
pub mod flag {
    /// The `tcp_sock` fields are set (not for minisocks and resets without a socket).
    pub const FULL_SOCK: u8 = 1 << 0;
    /// The current task owns the socket: `tgid` and `comm` are set.
    pub const TASK: u8 = 1 << 1;
    /// The segment at hand carried a timestamp option.
    pub const SAW_TSTAMP: u8 = 1 << 2;
    /// Timestamps were negotiated.
    pub const TSTAMP_OK: u8 = 1 << 3;
    /// The reset answers a segment: `skb_seq`, `skb_ack` and `size` are set.
    pub const SEGMENT: u8 = 1 << 4;
    /// A TIME_WAIT minisock: addresses, `rcv_nxt` and `snd_nxt` are set.
    pub const TIMEWAIT: u8 = 1 << 5;
    /// Our own FIN has been sent or queued.
    pub const FIN_SENT: u8 = 1 << 6;
}

/// One event, as it leaves the kernel. Fields that do not apply are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Address of the socket; identifies it until `->CLOSE`.
    pub sk: u64,
    /// `tcp_sock.bytes_received`.
    pub bytes_received: u64,
    /// Id of the cgroup (v2) in which the socket was created; an accepted one has its listener's. 1 is
    /// the root, 0 means unknown.
    pub cgroup: u64,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Process id (thread group) of the current task, with [`flag::TASK`].
    pub tgid: u32,
    /// When the first segment of the last flight went out: `first_tx_mstamp`, microseconds of
    /// `CLOCK_MONOTONIC`.
    pub sent_us: u64,
    /// When our data was last acknowledged, or a flight began with nothing outstanding:
    /// `delivered_mstamp`, likewise.
    pub acked_us: u64,
    /// When we last sent any segment, data or not: `tcp_wstamp_ns`, nanoseconds of the same clock.
    pub spoke_ns: u64,
    /// Name of the current task, with [`flag::TASK`].
    pub comm: [u8; 16],
    /// Local address; IPv4 as IPv4-mapped IPv6.
    pub local: [u8; 16],
    /// Remote address; IPv4 as IPv4-mapped IPv6.
    pub remote: [u8; 16],
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order.
    pub remote_port: u16,
    /// See [`kind`].
    pub kind: u8,
    /// TCP state before the event.
    pub old_state: u8,
    /// TCP state after the event (state changes only; otherwise the same as `old_state`).
    pub new_state: u8,
    /// `sk_shutdown`: bit 0 receive, bit 1 send.
    pub shutdown: u8,
    /// See [`opener`].
    pub opener: u8,
    /// See [`flag`].
    pub flags: u8,
    /// `icsk_retransmits`.
    pub retransmits: u8,
    /// WRITE: what its first bytes are, see [`crate::word`].
    pub word: u8,
    /// Low 32 bits of the current jiffies.
    pub jiffies: u32,
    /// Jiffies of the last data sent.
    pub lsndtime: u32,
    /// Jiffies of the last data received.
    pub lrcvtime: u32,
    /// Jiffies of the last ACK received.
    pub rcv_tstamp: u32,
    /// Sequence number after the last byte (or FIN) queued.
    pub write_seq: u32,
    /// First unacknowledged sequence number.
    pub snd_una: u32,
    /// Next sequence number to send.
    pub snd_nxt: u32,
    /// Next sequence number expected from the peer (counts its FIN once received).
    pub rcv_nxt: u32,
    /// Next sequence number the application will read.
    pub copied_seq: u32,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
    /// Data segments sent.
    pub data_segs_out: u32,
    /// WRITE: bytes passed to this call. RESET_SENT with a segment: bytes of its payload.
    pub size: u32,
    /// Sequence number of the segment that a reset answers.
    pub skb_seq: u32,
    /// Acknowledgement number of that segment.
    pub skb_ack: u32,
    /// `sk_max_ack_backlog`: nonzero only on accepted sockets (copied from the listener).
    pub max_ack_backlog: u32,
    /// `sk_err`, or for RESET_SENT the kernel's reason number.
    pub code: u32,
    /// `rcv_nxt` when we last sent anything: what has come since is not acknowledged yet.
    pub rcv_wup: u32,
    /// Sequence number of the peer's latest segment that updated its window: any segment in order does.
    pub snd_wl1: u32,
    /// `app_limited`: nonzero from a write until it is acknowledged, even if the write fails because the
    /// socket was reset (`tcp_rate_check_app_limited` comes before that test, v6.12 net/ipv4/tcp.c).
    pub app_limited: u32,
    /// Data segments received. This, `snd_wl1` and the three times above are only set in ESTABLISHED.
    pub data_segs_in: u32,
    /// Zero.
    pub padding: u32,
}

/// Size of a [`Record`]; the decoder rejects a record of any other length.
pub const RECORD_SIZE: usize = 208;
const _: () = assert!(size_of::<Record>() == RECORD_SIZE);
const _: () = assert!(align_of::<Record>() == 8);

/// Index into the array of losses.
pub mod loss {
    /// The ring of races was full.
    pub const RACES_FULL: u32 = 0;
    /// The ring of measurements was full.
    pub const MEASURES_FULL: u32 = 1;
    /// Places in the ring of races that were given back: there was nothing to say after all.
    pub const RACES_GIVEN_BACK: u32 = 2;
    /// The same in the ring of measurements.
    pub const MEASURES_GIVEN_BACK: u32 = 3;
    /// Number of counts.
    pub const COUNT: u32 = 4;
}

/// Bytes of the ring of races (FIN with data at risk, write after FIN, resets).
pub const RACES_BYTES: u32 = 1 << 20;
/// Bytes of the ring of measurements (closes, reuses).
pub const MEASURES_BYTES: u32 = 1 << 20;
