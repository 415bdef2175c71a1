//! Pure: from the kernel's BTF to the field offsets that the programs need.
//!
//! Rust has no CO-RE, so offsets are looked up here and frozen in the programs' `.rodata`. Two
//! kernels of one version differ by configuration alone: nothing is ever derived from a version.

use anyhow::{Result, ensure};
use finrace_ebpf::abi::{ABSENT, Layout};

use super::btf::Btf;

/// What [`resolve`] found.
#[derive(Debug)]
pub struct Resolved {
    pub layout: Layout,
    /// Optional fields that this kernel lacks.
    pub lost: Vec<Lacking>,
}

/// An optional field that this kernel lacks, and what cannot be seen without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    pub field: String,
    pub loses: &'static str,
}

/// Fills the layout; an error names every required field that is missing, in one line.
pub fn resolve(btf: &Btf) -> Result<Resolved> {
    const LATE: &str = "late requests: the segment that a reset answers";
    const TIME_WAIT: &str = "late requests that a TIME_WAIT socket answers";
    const NETNS: &str = "late requests that no socket answers: their network namespace";
    const ROLE: &str = "the role of connections whose FIN is not out yet, unless accepted";
    const UNREAD: &str = "requests unread at a close, and what an application knew as it wrote";
    const ORDER: &str = "order within one tick of the clock: some classes are not certain";
    const DEAD: &str = "requests that fail since their socket was reset while it was idle";
    const WORDS: &str = "farewells and pings by their own words";
    const TIMESTAMPS: &str = "telling a live peer's reset from one without a socket";

    let mut of = Resolver { btf, missing: Vec::new(), lost: Vec::new() };
    let (sk_cgroup, sk_cgroup_is_val) = of.cgroup("the container or unit of an end");
    let (msg_buffer, msg_iter_type, msg_iter_type_bits) = of.message(WORDS);
    let (rx_opt_flags, saw_tstamp_bit, tstamp_ok_bit) = of.timestamp_flags(TIMESTAMPS);
    // One line per field: struct, path, the minimum number of bits read, and what is lost without it.
    let layout = Layout {
        skc_daddr: of.required("sock_common", "skc_daddr", 32),
        skc_rcv_saddr: of.required("sock_common", "skc_rcv_saddr", 32),
        skc_dport: of.required("sock_common", "skc_dport", 16),
        skc_num: of.required("sock_common", "skc_num", 16),
        skc_family: of.required("sock_common", "skc_family", 16),
        skc_state: of.required("sock_common", "skc_state", 8),
        skc_net: of.required("sock_common", "skc_net.net", 64),
        skc_v6_daddr: of.if_built("sock_common", "skc_v6_daddr", 128),
        skc_v6_rcv_saddr: of.if_built("sock_common", "skc_v6_rcv_saddr", 128),
        skc_tw_rcv_nxt: of.optional("sock_common", "skc_tw_rcv_nxt", 32, TIME_WAIT),
        skc_tw_snd_nxt: of.optional("sock_common", "skc_tw_snd_nxt", 32, TIME_WAIT),
        net_inum: of.required("net", "ns.inum", 32),
        sk_protocol: of.required("sock", "sk_protocol", 8),
        sk_protocol_bits: of.width("sock", "sk_protocol"),
        sk_shutdown: of.required("sock", "sk_shutdown", 2),
        sk_err: of.optional("sock", "sk_err", 32, "telling a timeout from a close"),
        sk_max_ack_backlog: of.optional("sock", "sk_max_ack_backlog", 32, "the role after a FIN"),
        sk_cgroup,
        sk_cgroup_is_val,
        cgroup_kn: of.if_built("cgroup", "kn", 64),
        kernfs_id: of.if_built("kernfs_node", "id", 64),
        inet_sport: of.required("inet_sock", "inet_sport", 16),
        lrcvtime: of.required("inet_connection_sock", "icsk_ack.lrcvtime", 32),
        icsk_retransmits: of.optional(
            "inet_connection_sock",
            "icsk_retransmits",
            8,
            "silent drops that we gave up on",
        ),
        lsndtime: of.required("tcp_sock", "lsndtime", 32),
        rcv_tstamp: of.optional("tcp_sock", "rcv_tstamp", 32, "the age of a FIN"),
        snd_una: of.required("tcp_sock", "snd_una", 32),
        snd_nxt: of.required("tcp_sock", "snd_nxt", 32),
        write_seq: of.required("tcp_sock", "write_seq", 32),
        rcv_nxt: of.required("tcp_sock", "rcv_nxt", 32),
        rcv_wup: of.optional("tcp_sock", "rcv_wup", 32, "farewells that our own FIN answers"),
        copied_seq: of.optional("tcp_sock", "copied_seq", 32, UNREAD),
        snd_wl1: of.optional("tcp_sock", "snd_wl1", 32, ORDER),
        first_tx_mstamp: of.optional("tcp_sock", "first_tx_mstamp", 64, ORDER),
        delivered_mstamp: of.optional("tcp_sock", "delivered_mstamp", 64, ORDER),
        tcp_wstamp_ns: of.optional("tcp_sock", "tcp_wstamp_ns", 64, ORDER),
        app_limited: of.optional("tcp_sock", "app_limited", 32, DEAD),
        srtt_us: of.optional("tcp_sock", "srtt_us", 32, "round-trip times"),
        bytes_acked: of.optional("tcp_sock", "bytes_acked", 64, ROLE),
        bytes_sent: of.optional("tcp_sock", "bytes_sent", 64, ROLE),
        bytes_retrans: of.optional("tcp_sock", "bytes_retrans", 64, ROLE),
        bytes_received: of.optional(
            "tcp_sock",
            "bytes_received",
            64,
            "telling connections that were never used",
        ),
        data_segs_out: of.optional(
            "tcp_sock",
            "data_segs_out",
            32,
            "telling the first exchange from later ones",
        ),
        data_segs_in: of.optional("tcp_sock", "data_segs_in", 32, ORDER),
        rx_opt_flags,
        saw_tstamp_bit,
        tstamp_ok_bit,
        is_mptcp: of.if_built("tcp_sock", "is_mptcp", 8),
        skb_cb: of.optional("sk_buff", "cb", 48 * 8, LATE),
        skb_head: of.optional("sk_buff", "head", 64, LATE),
        skb_network_header: of.optional("sk_buff", "network_header", 16, LATE),
        skb_transport_header: of.optional("sk_buff", "transport_header", 16, LATE),
        skb_dev: of.optional("sk_buff", "dev", 64, NETNS),
        dev_net: of.optional("net_device", "nd_net.net", 64, NETNS),
        cb_seq: of.optional("tcp_skb_cb", "seq", 32, LATE),
        cb_end_seq: of.optional("tcp_skb_cb", "end_seq", 32, LATE),
        cb_ack_seq: of.optional("tcp_skb_cb", "ack_seq", 32, LATE),
        cb_tcp_flags: of.optional("tcp_skb_cb", "tcp_flags", 8, LATE),
        msg_count: of.optional("msghdr", "msg_iter.count", 64, "the bytes of a write"),
        msg_iov_offset: of.optional("msghdr", "msg_iter.iov_offset", 64, WORDS),
        msg_buffer,
        msg_iter_type,
        msg_iter_type_bits,
        iter_ubuf: btf.enumerator("iter_type", "ITER_UBUF").unwrap_or(ABSENT),
        iter_iovec: btf.enumerator("iter_type", "ITER_IOVEC").unwrap_or(ABSENT),
        tcp_sock_id: btf.struct_id("tcp_sock").unwrap_or(ABSENT),
        rdonly_cast_id: btf.func_id("bpf_rdonly_cast").unwrap_or(ABSENT),
    };
    ensure!(of.missing.is_empty(), "unknown kernel layout: BTF has no {}", of.missing.join(", "));
    Ok(Resolved { layout, lost: of.lost })
}

struct Resolver<'a> {
    btf: &'a Btf,
    missing: Vec<String>,
    lost: Vec<Lacking>,
}

impl Resolver<'_> {
    /// Byte offset of a member that can be read as `bits` at a byte boundary. A wider member is fine
    /// (little-endian: its low bytes come first); with a narrower one, its neighbour would be read.
    fn offset(&self, strukt: &str, path: &str, bits: u64) -> Option<u32> {
        let found = self.btf.member(strukt, path)?;
        let fits = found.offset.is_multiple_of(8) && found.width >= bits;
        fits.then_some(found.offset / 8)?.try_into().ok()
    }

    /// Bits of a member, 0 if there is none.
    fn width(&self, strukt: &str, path: &str) -> u32 {
        self.btf.member(strukt, path).and_then(|found| found.width.try_into().ok()).unwrap_or(0)
    }

    fn required(&mut self, strukt: &str, path: &str, bits: u64) -> u32 {
        self.offset(strukt, path, bits).unwrap_or_else(|| {
            self.missing.push(format!("{strukt}.{path}"));
            ABSENT
        })
    }

    fn optional(&mut self, strukt: &str, path: &str, bits: u64, loses: &'static str) -> u32 {
        let offset = self.offset(strukt, path, bits);
        offset.unwrap_or_else(|| self.lose(format!("{strukt}.{path}"), loses))
    }

    /// Byte offsets of a message's buffer and of the buffer's kind, and the bits of that kind: by the
    /// first that exists of the names that these have had.
    fn message(&mut self, loses: &'static str) -> (u32, u32, u32) {
        let buffers = ["msg_iter.ubuf", "msg_iter.__iov", "msg_iter.iov"];
        let kinds = ["msg_iter.iter_type", "msg_iter.type"];
        let buffer = buffers.iter().find_map(|path| self.offset("msghdr", path, 64));
        let kind = kinds.iter().find_map(|path| self.offset("msghdr", path, 8));
        let bits = kinds.map(|path| self.width("msghdr", path)).into_iter().sum();
        match (buffer, kind) {
            (Some(buffer), Some(kind)) => (buffer, kind, bits),
            _ => (self.lose("msghdr.msg_iter".to_owned(), loses), ABSENT, bits),
        }
    }

    /// A field of a kernel feature that need not be built in; without it nothing is lost.
    fn if_built(&self, strukt: &str, path: &str, bits: u64) -> u32 {
        self.offset(strukt, path, bits).unwrap_or(ABSENT)
    }

    /// Byte offset of the field that leads to a socket's cgroup, and whether that is `val`: see
    /// [`Layout::sk_cgroup`].
    fn cgroup(&mut self, loses: &'static str) -> (u32, u32) {
        let leads = |path| self.offset("sock", path, 64);
        let is_named = self.offset("cgroup", "kn", 64).is_some()
            && self.offset("kernfs_node", "id", 64).is_some();
        let found = leads("sk_cgrp_data.cgroup").map(|at| (at, 0));
        match found.or_else(|| leads("sk_cgrp_data.val").map(|at| (at, 1))) {
            Some(found) if is_named => found,
            _ => (self.lose("sock.sk_cgrp_data".to_owned(), loses), 0),
        }
    }

    /// Byte offset of the 16 bits that hold both flags, and the bit of each within them.
    fn timestamp_flags(&mut self, loses: &'static str) -> (u32, u32, u32) {
        let bit = |path| u32::try_from(self.btf.member("tcp_sock", path)?.offset).ok();
        let both = bit("rx_opt.saw_tstamp").zip(bit("rx_opt.tstamp_ok"));
        match both {
            Some((saw, ok)) if saw / 16 == ok / 16 => (saw / 16 * 2, saw % 16, ok % 16),
            _ => {
                self.lose("tcp_sock.rx_opt.saw_tstamp, tstamp_ok".to_owned(), loses);
                (ABSENT, ABSENT, ABSENT)
            }
        }
    }

    fn lose(&mut self, field: String, loses: &'static str) -> u32 {
        self.lost.push(Lacking { field, loses });
        ABSENT
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::tests::Builder;
    use super::*;

    #[test]
    fn garbage_never_panics() {
        let good = Builder::new(KERNEL).bytes();
        let ask = |bytes: Vec<u8>| {
            if let Ok(btf) = Btf::parse(bytes) {
                drop(resolve(&btf));
                btf.tracepoint_args("tcp_send_reset");
            }
        };
        (0..good.len()).for_each(|end| ask(good[..end].to_vec()));
        for at in 24..good.len() {
            for value in [0, 0x7F, 0xFF] {
                let mut bytes = good.clone();
                bytes[at] = value;
                ask(bytes);
            }
        }
    }

    /// A kernel with every field of the layout; offsets are made up.
    const KERNEL: &str = "
        int u8 1
        int u16 2
        int u32 4
        int u64 8
        ptr p u64
        array v6 u64 2
        array cb u64 6
        struct net_ref net=p@0
        struct ns inum=u32@64
        struct net ns=ns@1344
        struct net_device nd_net=net_ref@2112
        struct sock_common skc_daddr=u32@0 skc_rcv_saddr=u32@32 skc_dport=u16@96 skc_num=u16@112 \
            skc_family=u16@128 skc_state=u8@144 skc_net=net_ref@384 skc_v6_daddr=v6@448 \
            skc_v6_rcv_saddr=v6@576 skc_tw_rcv_nxt=u32@992 skc_tw_snd_nxt=u32@1056
        struct cgroup_data cgroup=p@0
        struct sock sk_protocol=u16@4256 sk_shutdown=u8@4600 sk_err=u32@2272 \
            sk_max_ack_backlog=u32@4832 sk_cgrp_data=cgroup_data@5376
        struct cgroup kn=p@2048
        struct kernfs_node id=u64@768
        struct inet_sock inet_sport=u16@6512
        struct icsk_ack lrcvtime=u32@128
        struct inet_connection_sock icsk_ack=icsk_ack@9984 icsk_retransmits=u8@9992
        struct rx_opt saw_tstamp=u16@128:1 tstamp_ok=u16@129:1
        struct tcp_sock lsndtime=u32@800 rcv_tstamp=u32@832 snd_una=u32@864 snd_nxt=u32@896 \
            write_seq=u32@928 rcv_nxt=u32@960 copied_seq=u32@992 rcv_wup=u32@1632 srtt_us=u32@1024 \
            bytes_acked=u64@1088 bytes_sent=u64@1152 bytes_retrans=u64@1216 \
            bytes_received=u64@1280 data_segs_out=u32@1344 rx_opt=rx_opt@1376 is_mptcp=u8@1600 \
            snd_wl1=u32@1664 first_tx_mstamp=u64@1728 delivered_mstamp=u64@1792 \
            tcp_wstamp_ns=u64@1856 app_limited=u32@1920 data_segs_in=u32@1984
        struct sk_buff cb=cb@320 head=p@1536 network_header=u16@1440 transport_header=u16@1424 \
            dev=p@128
        struct tcp_skb_cb seq=u32@0 end_seq=u32@32 ack_seq=u32@160 tcp_flags=u8@96
        struct msg_iter iter_type=u8@0 iov_offset=u64@64 ubuf=p@128 count=u64@192
        enum iter_type ITER_UBUF=0 ITER_IOVEC=1
        struct msghdr msg_iter=msg_iter@128
    ";

    /// Edits [`KERNEL`], then gives the error, or the lost fields and a few offsets.
    fn resolved(edits: &[(&str, &str)]) -> String {
        let mut lines = KERNEL.to_owned();
        for (from, to) in edits {
            assert!(lines.contains(from), "{from} is not in the kernel");
            lines = lines.replace(from, to);
        }
        match resolve(&Btf::parse(Builder::new(&lines).bytes()).unwrap()) {
            Err(error) => format!("{error:#}"),
            Ok(Resolved { layout: l, lost }) => {
                let place = |offset| if offset == ABSENT { -1 } else { i64::from(offset) };
                let flags = [l.rx_opt_flags, l.saw_tstamp_bit, l.tstamp_ok_bit].map(place);
                let some = [
                    l.sk_protocol,
                    l.sk_protocol_bits,
                    l.sk_shutdown,
                    l.lrcvtime,
                    l.net_inum,
                    l.dev_net,
                ];
                let rest = [l.is_mptcp, l.skc_v6_daddr, l.sk_cgroup, l.sk_cgroup_is_val].map(place);
                let lost: Vec<&str> = lost.iter().map(|lost| lost.field.as_str()).collect();
                format!("{:?} {flags:?} {rest:?} lost: {}", some.map(place), lost.join(", "))
            }
        }
    }

    #[test]
    fn layouts() {
        let check = |edits: &[(&str, &str)], expected: &str| assert_eq!(resolved(edits), expected);
        check(&[], "[532, 16, 575, 1264, 176, 264] [188, 0, 1] [200, 56, 672, 0] lost: ");
        // A bit-field (before 5.6) may stand for the byte only at its boundary.
        check(
            &[("sk_shutdown=u8@4600", "sk_shutdown=u32@4608:2")],
            "[532, 16, 576, 1264, 176, 264] [188, 0, 1] [200, 56, 672, 0] lost: ",
        );
        check(
            &[("sk_shutdown=u8@4600", "sk_shutdown=u32@4604:2")],
            "unknown kernel layout: BTF has no sock.sk_shutdown",
        );
        // Not built in: nothing is lost.
        check(
            &[("is_mptcp", "other"), ("skc_v6_daddr", "other")],
            "[532, 16, 575, 1264, 176, 264] [188, 0, 1] [-1, -1, 672, 0] lost: ",
        );
        // The two flags must share 16 bits.
        check(
            &[("tstamp_ok=u16@129", "tstamp_ok=u16@150"), ("srtt_us", "srtt_ns")],
            "[532, 16, 575, 1264, 176, 264] [-1, -1, -1] [200, 56, 672, 0] \
             lost: tcp_sock.rx_opt.saw_tstamp, tstamp_ok, tcp_sock.srtt_us",
        );
        // RHEL 8: a bit-field of 8 bits is a byte.
        check(
            &[("sk_protocol=u16@4256", "sk_protocol=u32@4264:8")],
            "[533, 8, 575, 1264, 176, 264] [188, 0, 1] [200, 56, 672, 0] lost: ",
        );
        // Before 5.15, and without cgroups.
        check(
            &[("cgroup=p@0", "val=u64@0")],
            "[532, 16, 575, 1264, 176, 264] [188, 0, 1] [200, 56, 672, 1] lost: ",
        );
        for gone in ["cgroup=p@0", "kn=p@2048", "id=u64@768"] {
            check(
                &[(gone, "other=u8@0")],
                "[532, 16, 575, 1264, 176, 264] [188, 0, 1] [200, 56, -1, 0] \
                 lost: sock.sk_cgrp_data",
            );
        }
        // Narrower than what is read, and gone: both are named at once.
        check(
            &[("lsndtime=u32", "lsndtime=u16"), ("net=p@0", "gone=p@0"), ("snd_una", "una")],
            "unknown kernel layout: BTF has no sock_common.skc_net.net, tcp_sock.lsndtime, \
             tcp_sock.snd_una",
        );
    }
}
