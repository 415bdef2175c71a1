//! Pure: the kernel's BTF bytes to the field offsets that the programs need.
//!
//! Rust has no CO-RE, so offsets are looked up here and frozen in the programs' `.rodata`. Two
//! kernels of one version differ by configuration alone: nothing is ever derived from a version.
//! Format: <https://docs.kernel.org/6.12/bpf/btf.html>.

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use finrace_ebpf::abi::{ABSENT, Layout};

const MAGIC: u32 = 0xEB9F;
/// Bytes of the header's fields that are read here; a longer header is legal.
const HEADER_BYTES: usize = 24;
const POINTER_BYTES: u64 = 8;
/// Longest chain of typedefs and qualifiers (or of arrays) that is followed; a cycle ends here.
const MAX_CHAIN: usize = 32;

/// BTF kinds that are looked at by name; the rest are only stepped over.
mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const PTR: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const FUNC: u8 = 12;
    pub(super) const FUNC_PROTO: u8 = 13;
    pub(super) const FLOAT: u8 = 16;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM64: u8 = 19;
}

/// Kinds that only rename or qualify the type they refer to.
const QUALIFIERS: [u8; 5] =
    [kind::TYPEDEF, kind::VOLATILE, kind::CONST, kind::RESTRICT, kind::TYPE_TAG];

/// Where a member lies, in bits from the start of the struct that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    pub offset: u64,
    /// Of a bit-field its own width, else that of its type.
    pub width: u64,
}

/// The type information of one kernel, checked once: every type lies within the data.
pub struct Btf {
    data: Vec<u8>,
    types: Vec<Type>,
    strings: Range<usize>,
}

#[derive(Clone, Copy)]
struct Type {
    kind: u8,
    /// Struct and union: members carry bit-field widths. Enum: values are signed.
    kind_flag: bool,
    vlen: u16,
    name: u32,
    /// Size of the type, or the id of the one it refers to.
    argument: u32,
    /// Where what follows the common part begins.
    body: usize,
}

#[derive(Clone, Copy)]
struct Member {
    name: u32,
    type_id: u32,
    offset: u64,
    /// 0: not a bit-field.
    bit_field: u32,
}

impl Btf {
    /// Reads little-endian BTF of the kernel itself (not of a module, which needs its base).
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let data = bytes.into();
        let header = |at| u32_at(&data, at).context("BTF ends within its header");
        let magic = header(0)?;
        ensure!(magic & 0xFFFF == MAGIC, "not little-endian BTF: magic {:#06x}", magic & 0xFFFF);
        ensure!((magic >> 16) & 0xFF == 1, "BTF version {} is not known", (magic >> 16) & 0xFF);
        let start = header(4)? as usize;
        ensure!(start >= HEADER_BYTES, "BTF header of {start} bytes is too short");
        let section = |at, what| -> Result<Range<usize>> {
            let from = start + header(at)? as usize;
            let range = from..from + header(at + 4)? as usize;
            ensure!(range.end <= data.len(), "BTF {what} end beyond its {} bytes", data.len());
            Ok(range)
        };
        let (types, strings) = (section(8, "types")?, section(16, "strings")?);
        let types = parse_types(&data, types)?;
        Ok(Self { data, types, strings })
    }

    /// Finds `path` (dotted: `icsk_ack.lrcvtime`) in `struct strukt`, also within anonymous
    /// structs and unions. Embedding is not inheritance: ask `sock_common` for `skc_state`.
    pub fn member(&self, strukt: &str, path: &str) -> Option<Bits> {
        self.named(&[kind::STRUCT], strukt).find_map(|ty| self.descend(ty, path))
    }

    /// Number of parameters of a tracepoint, without the `void *__data` that comes first.
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        let name = format!("btf_trace_{name}");
        self.named(&[kind::TYPEDEF], &name).find_map(|typedef| {
            let pointer = self.stripped(typedef.argument)?;
            let proto = self.stripped(pointer.argument)?;
            let is_proto = pointer.kind == kind::PTR && proto.kind == kind::FUNC_PROTO;
            is_proto.then_some(usize::from(proto.vlen))?.checked_sub(1)
        })
    }

    /// Whether the kernel has a function of this name (so that fentry and kprobe can find it).
    pub fn func_exists(&self, name: &str) -> bool {
        self.named(&[kind::FUNC], name).next().is_some()
    }

    fn named<'a>(&'a self, kinds: &'a [u8], name: &'a str) -> impl Iterator<Item = Type> + 'a {
        let matches = move |ty: &&Type| kinds.contains(&ty.kind) && self.is_named(ty.name, name);
        self.types.iter().filter(matches).copied()
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let strings = self.data.get(self.strings.clone()).unwrap_or_default();
        strings
            .get(offset as usize..)
            .and_then(|text| text.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The type behind typedefs, qualifiers and tags.
    fn stripped(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_CHAIN {
            let ty = *self.types.get((id as usize).checked_sub(1)?)?;
            if !QUALIFIERS.contains(&ty.kind) {
                return Some(ty);
            }
            id = ty.argument;
        }
        None
    }

    fn descend(&self, ty: Type, path: &str) -> Option<Bits> {
        let (name, rest) = match path.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (path, None),
        };
        let member = self.find_member(ty, name)?;
        let inner = match rest {
            Some(rest) => self.descend(self.stripped(member.type_id)?, rest)?,
            None if member.bit_field != 0 => Bits { offset: 0, width: member.bit_field.into() },
            None => Bits { offset: 0, width: self.size(member.type_id)?.checked_mul(8)? },
        };
        Some(Bits { offset: member.offset + inner.offset, ..inner })
    }

    fn find_member(&self, ty: Type, name: &str) -> Option<Member> {
        let mut pending = vec![(ty, 0)];
        // Each type once: what it does not hold the first time it never holds, and a cycle ends.
        let mut seen = HashSet::new();
        while let Some((ty, base)) = pending.pop() {
            for member in self.members(ty) {
                let offset = base + member.offset;
                if self.is_named(member.name, name) {
                    return Some(Member { offset, ..member });
                }
                if self.is_named(member.name, "")
                    && let Some(inner) = self.stripped(member.type_id)
                    && seen.insert(inner.body)
                {
                    pending.push((inner, offset));
                }
            }
        }
        None
    }

    fn members(&self, ty: Type) -> impl Iterator<Item = Member> {
        let is_composite = matches!(ty.kind, kind::STRUCT | kind::UNION);
        let count = if is_composite { usize::from(ty.vlen) } else { 0 };
        (0..count).filter_map(move |index| {
            let at = ty.body + index * 12;
            let place = self.u32_at(at + 8)?;
            let (offset, bit_field) =
                if ty.kind_flag { (place & 0x00FF_FFFF, place >> 24) } else { (place, 0) };
            let (name, type_id) = (self.u32_at(at)?, self.u32_at(at + 4)?);
            Some(Member { name, type_id, offset: offset.into(), bit_field })
        })
    }

    /// Bytes that a value of this type takes.
    fn size(&self, mut id: u32) -> Option<u64> {
        let mut count = 1u64;
        for _ in 0..MAX_CHAIN {
            let ty = self.stripped(id)?;
            let one = match ty.kind {
                kind::PTR => POINTER_BYTES,
                kind::INT
                | kind::STRUCT
                | kind::UNION
                | kind::ENUM
                | kind::FLOAT
                | kind::ENUM64 => ty.argument.into(),
                kind::ARRAY => {
                    count = count.checked_mul(self.u32_at(ty.body + 8)?.into())?;
                    id = self.u32_at(ty.body)?;
                    continue;
                }
                _ => return None,
            };
            return count.checked_mul(one);
        }
        None
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        u32_at(&self.data, at)
    }
}

fn parse_types(data: &[u8], section: Range<usize>) -> Result<Vec<Type>> {
    let mut types = Vec::new();
    let mut at = section.start;
    while at < section.end {
        let id = types.len() + 1;
        let word = |index: usize| {
            u32_at(data, at + index * 4).with_context(|| format!("BTF type {id} is cut off"))
        };
        let (name, info, argument) = (word(0)?, word(1)?, word(2)?);
        let kind = (info >> 24 & 0x1F) as u8;
        let vlen = (info & 0xFFFF) as u16;
        let body = at + 12;
        at = body
            + match kind {
                kind::INT | 14 | 17 => 4, // also VAR, DECL_TAG
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | 15 | kind::ENUM64 => usize::from(vlen) * 12, // DATASEC
                kind::ENUM | kind::FUNC_PROTO => usize::from(vlen) * 8,
                kind::PTR | 7..=kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0, // 7: FWD
                _ => bail!("BTF type {id} is of unknown kind {kind}"),
            };
        ensure!(at <= section.end, "BTF type {id} is cut off");
        types.push(Type { kind, kind_flag: info >> 31 == 1, vlen, name, argument, body });
    }
    Ok(types)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// What [`resolve`] found.
#[derive(Debug)]
pub struct Resolved {
    pub layout: Layout,
    /// Optional fields that this kernel lacks.
    pub lost: Vec<Lost>,
}

/// An optional field that this kernel lacks, and what cannot be told without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub field: String,
    pub loses: &'static str,
}

/// Fills the layout; an error names every required field that is missing, in one line.
pub fn resolve(btf: &Btf) -> Result<Resolved> {
    const LATE: &str = "late requests: the segment that a reset answers";
    const TIME_WAIT: &str = "late requests that a TIME_WAIT socket answers";
    const NETNS: &str = "late requests that no socket answers: their network namespace";
    const ROLE: &str = "the role of connections whose FIN is not out yet, unless accepted";
    const TIMESTAMPS: &str = "telling a live peer's reset from one without a socket";

    let mut of = Resolver { btf, missing: Vec::new(), lost: Vec::new() };
    let (rx_opt_flags, saw_tstamp_bit, tstamp_ok_bit) = of.timestamp_flags(TIMESTAMPS);
    // One line per field: struct, path, the bits that are read at least, and what is lost without.
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
        sk_protocol: of.required("sock", "sk_protocol", 16),
        sk_shutdown: of.required("sock", "sk_shutdown", 2),
        sk_err: of.optional("sock", "sk_err", 32, "telling a timeout from a close"),
        sk_max_ack_backlog: of.optional("sock", "sk_max_ack_backlog", 32, "the role after a FIN"),
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
        copied_seq: of.optional("tcp_sock", "copied_seq", 32, "requests unread at our own close"),
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
        msg_count: of.optional("msghdr", "msg_iter.count", 64, "the bytes of a write"),
    };
    ensure!(of.missing.is_empty(), "unknown kernel layout: BTF has no {}", of.missing.join(", "));
    Ok(Resolved { layout, lost: of.lost })
}

struct Resolver<'a> {
    btf: &'a Btf,
    missing: Vec<String>,
    lost: Vec<Lost>,
}

impl Resolver<'_> {
    /// Byte offset of a member that can be read as `bits` at a byte boundary. Wider is fine
    /// (little-endian: its low bytes come first), narrower would read its neighbour.
    fn offset(&self, strukt: &str, path: &str, bits: u64) -> Option<u32> {
        let found = self.btf.member(strukt, path)?;
        let fits = found.offset.is_multiple_of(8) && found.width >= bits;
        fits.then_some(found.offset / 8)?.try_into().ok()
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

    /// A field of a kernel feature that may not be built in; without it nothing is lost.
    fn if_built(&self, strukt: &str, path: &str, bits: u64) -> u32 {
        self.offset(strukt, path, bits).unwrap_or(ABSENT)
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
        self.lost.push(Lost { field, loses });
        ABSENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes BTF from C-like lines, one type each; see [`KERNEL`].
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        names: Vec<String>,
    }

    impl Builder {
        fn new(lines: &str) -> Self {
            let mut new = Self { strings: vec![0], ..Self::default() };
            for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
                new.line(line);
            }
            new
        }

        fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend_from_slice(text.as_bytes());
            self.strings.push(0);
            at
        }

        fn id(&self, name: &str) -> u32 {
            if let Some(id) = name.strip_prefix('#') {
                return id.parse().unwrap();
            }
            let found = self.names.iter().position(|known| known == name);
            found.unwrap_or_else(|| panic!("{name} is not declared")) as u32 + 1
        }

        /// `int NAME BYTES`, `ptr|typedef|const|func NAME TYPE`, `array NAME TYPE COUNT`,
        /// `proto NAME COUNT`, `enum|enum64 NAME VARIANT=VALUE..`, and
        /// `struct|union NAME MEMBER=TYPE@BIT[:WIDTH]..`. `@` before a name: anonymous. A TYPE is
        /// the name of one declared above, or `#` and an id.
        fn line(&mut self, line: &str) {
            let words: Vec<&str> = line.split(' ').collect();
            let (word, name, rest) = (words[0], words[1], &words[2..]);
            let (mut flag, mut vlen, mut argument, mut body) = (0, rest.len(), 0, Vec::new());
            let kind = match word {
                "int" => {
                    (vlen, argument) = (0, rest[0].parse().unwrap());
                    body.push(0);
                    kind::INT
                }
                "array" => {
                    vlen = 0;
                    body.extend([self.id(rest[0]), 0, rest[1].parse().unwrap()]);
                    kind::ARRAY
                }
                "proto" => {
                    vlen = rest[0].parse().unwrap();
                    body.resize(vlen * 2, 0);
                    kind::FUNC_PROTO
                }
                "enum" | "enum64" => {
                    argument = if word == "enum" { 4 } else { 8 };
                    for item in rest {
                        let (variant, value) = item.split_once('=').unwrap();
                        let value: i64 = value.parse().unwrap();
                        flag |= u32::from(value < 0);
                        body.extend([self.string(variant), value.cast_unsigned() as u32]);
                        body.extend(
                            (word == "enum64").then_some((value.cast_unsigned() >> 32) as u32),
                        );
                    }
                    if word == "enum" { kind::ENUM } else { kind::ENUM64 }
                }
                "struct" | "union" => {
                    for item in rest {
                        let (member, place) = item.split_once('=').unwrap();
                        let (ty, bit) = place.rsplit_once('@').unwrap();
                        let (bit, width) = bit.split_once(':').unwrap_or((bit, "0"));
                        let width: u32 = width.parse().unwrap();
                        flag |= u32::from(width > 0);
                        body.extend([self.string(member), self.id(ty)]);
                        body.push(width << 24 | bit.parse::<u32>().unwrap());
                    }
                    if word == "struct" { kind::STRUCT } else { kind::UNION }
                }
                _ => {
                    (vlen, argument) = (0, self.id(rest[0]));
                    match word {
                        "ptr" => kind::PTR,
                        "typedef" => kind::TYPEDEF,
                        "volatile" => kind::VOLATILE,
                        "const" => kind::CONST,
                        "tag" => kind::TYPE_TAG,
                        "func" => kind::FUNC,
                        _ => panic!("{line}"),
                    }
                }
            };
            self.names.push(name.to_owned());
            let name = self.string(if name.starts_with('@') { "" } else { name });
            let info = flag << 31 | u32::from(kind) << 24 | vlen as u32;
            for value in [name, info, argument].into_iter().chain(body) {
                self.types.extend(value.to_le_bytes());
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let mut bytes = Vec::new();
            for value in [0x0001_EB9F, 24, 0, types, types, strings] {
                bytes.extend(value.to_le_bytes());
            }
            bytes.extend_from_slice(&self.types);
            bytes.extend_from_slice(&self.strings);
            bytes
        }
    }

    const SMALL: &str = "
        int u8 1
        int u16 2
        int u32 4
        ptr p u32
        typedef alias u32
        volatile @valias alias
        const @cvalias @valias
        tag @tagged p
        array bytes u8 6
        array grid bytes 3
        union @inner low=u32@0 wide=p@0
        struct @middle first=u16@0 =@inner@64
        struct flags a=u16@0:1 b=u16@1:3 word=u16@16
        struct sock state=u8@8 =@middle@64 opt=flags@192 \
            seq=@cvalias@256 ref=@tagged@320 grid=grid@384
        enum color RED=0 BLUE=4000000000
        enum signed MINUS=-5 PLUS=5
        enum64 big HUGE=1099511627776 LESS=-2
        proto @proto3 4
        ptr @trace3 @proto3
        typedef btf_trace_three @trace3
        typedef btf_trace_none u32
        func tcp_sendmsg @proto3
    ";

    #[test]
    fn members() {
        let btf = Btf::parse(Builder::new(SMALL).bytes()).unwrap();
        let check = |path: &str, expected: &str| {
            let (strukt, path) = path.split_once(' ').unwrap();
            let found = btf.member(strukt, path);
            let text = found.map(|bits| format!("{}+{}", bits.offset, bits.width));
            assert_eq!(text.as_deref().unwrap_or("none"), expected, "{strukt}.{path}");
        };
        check("sock state", "8+8");
        check("sock first", "64+16");
        check("sock low", "128+32");
        check("sock wide", "128+64");
        check("sock opt.a", "192+1");
        check("sock opt.b", "193+3");
        check("sock opt.word", "208+16");
        check("sock opt", "192+0"); // the builder gives structs no size
        check("sock seq", "256+32");
        check("sock ref", "320+64");
        check("sock grid", "384+144");
        check("sock stat", "none");
        check("sock state.low", "none");
        check("sock opt.low", "none");
        check("nothing state", "none");
        check("color RED", "none");
    }

    #[test]
    fn names() {
        let btf = Btf::parse(Builder::new(SMALL).bytes()).unwrap();
        assert_eq!(btf.tracepoint_args("three"), Some(3));
        assert_eq!(btf.tracepoint_args("none"), None);
        assert_eq!(btf.tracepoint_args("thre"), None);
        assert!(btf.func_exists("tcp_sendmsg"));
        assert!(!btf.func_exists("tcp_send"));
    }

    #[test]
    fn cycles_end() {
        let lines = "
            struct @itself =#1@0 =#2@0
            typedef loop #2
            array ring #3 2
            struct sock =@itself@0 looped=loop@0 round=ring@0";
        let btf = Btf::parse(Builder::new(lines).bytes()).unwrap();
        assert_eq!(btf.member("sock", "state"), None);
        assert_eq!(btf.member("sock", "looped"), None);
        assert_eq!(btf.member("sock", "round"), None);
    }

    #[test]
    fn broken_input_is_named() {
        let good = Builder::new(SMALL).bytes();
        let with = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        let check = |bytes: Vec<u8>, expected: &str| {
            let error = Btf::parse(bytes).err().map(|error| format!("{error:#}"));
            assert_eq!(error.as_deref(), Some(expected));
        };
        let size = good.len();
        check(Vec::new(), "BTF ends within its header");
        check(good[..12].to_vec(), "BTF ends within its header");
        check(b"\x7fELF\x02\x01\x01\0".to_vec(), "not little-endian BTF: magic 0x457f");
        check(with(0, 0x0001_9FEB), "not little-endian BTF: magic 0x9feb");
        check(with(0, 0x0002_EB9F), "BTF version 2 is not known");
        check(with(4, 8), "BTF header of 8 bytes is too short");
        check(with(12, u32::MAX), &format!("BTF types end beyond its {size} bytes"));
        check(with(20, u32::MAX), &format!("BTF strings end beyond its {size} bytes"));
        check(with(12, 10), "BTF type 1 is cut off");
        check(with(24 + 4, 31 << 24), "BTF type 1 is of unknown kind 31");
        check(with(24 + 4, 4 << 24 | 0xFFFF), "BTF type 1 is cut off");
    }

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
        struct sock sk_protocol=u16@4256 sk_shutdown=u8@4600 sk_err=u32@2272 \
            sk_max_ack_backlog=u32@4832
        struct inet_sock inet_sport=u16@6512
        struct icsk_ack lrcvtime=u32@128
        struct inet_connection_sock icsk_ack=icsk_ack@9984 icsk_retransmits=u8@9992
        struct rx_opt saw_tstamp=u16@128:1 tstamp_ok=u16@129:1
        struct tcp_sock lsndtime=u32@800 rcv_tstamp=u32@832 snd_una=u32@864 snd_nxt=u32@896 \
            write_seq=u32@928 rcv_nxt=u32@960 copied_seq=u32@992 rcv_wup=u32@1632 srtt_us=u32@1024 \
            bytes_acked=u64@1088 bytes_sent=u64@1152 bytes_retrans=u64@1216 \
            bytes_received=u64@1280 data_segs_out=u32@1344 rx_opt=rx_opt@1376 is_mptcp=u8@1600
        struct sk_buff cb=cb@320 head=p@1536 network_header=u16@1440 transport_header=u16@1424 \
            dev=p@128
        struct tcp_skb_cb seq=u32@0 end_seq=u32@32 ack_seq=u32@160
        struct msg_iter count=u64@192
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
                let some = [l.sk_protocol, l.sk_shutdown, l.lrcvtime, l.net_inum, l.dev_net];
                let rest = [l.is_mptcp, l.skc_v6_daddr].map(place);
                let lost: Vec<&str> = lost.iter().map(|lost| lost.field.as_str()).collect();
                format!("{:?} {flags:?} {rest:?} lost: {}", some.map(place), lost.join(", "))
            }
        }
    }

    #[test]
    fn layouts() {
        let check = |edits: &[(&str, &str)], expected: &str| assert_eq!(resolved(edits), expected);
        check(&[], "[532, 575, 1264, 176, 264] [188, 0, 1] [200, 56] lost: ");
        // A bit-field (before 5.6) may stand for the byte only at its boundary.
        check(
            &[("sk_shutdown=u8@4600", "sk_shutdown=u32@4608:2")],
            "[532, 576, 1264, 176, 264] [188, 0, 1] [200, 56] lost: ",
        );
        check(
            &[("sk_shutdown=u8@4600", "sk_shutdown=u32@4604:2")],
            "unknown kernel layout: BTF has no sock.sk_shutdown",
        );
        // Not built in: nothing is lost.
        check(
            &[("is_mptcp", "other"), ("skc_v6_daddr", "other")],
            "[532, 575, 1264, 176, 264] [188, 0, 1] [-1, -1] lost: ",
        );
        // The two flags must share 16 bits.
        check(
            &[("tstamp_ok=u16@129", "tstamp_ok=u16@150"), ("srtt_us", "srtt_ns")],
            "[532, 575, 1264, 176, 264] [-1, -1, -1] [200, 56] \
             lost: tcp_sock.rx_opt.saw_tstamp, tstamp_ok, tcp_sock.srtt_us",
        );
        // Narrower than what is read, and gone: both are named at once.
        check(
            &[("lsndtime=u32", "lsndtime=u16"), ("net=p@0", "gone=p@0"), ("snd_una", "una")],
            "unknown kernel layout: BTF has no sock_common.skc_net.net, tcp_sock.lsndtime, \
             tcp_sock.snd_una",
        );
    }
}
