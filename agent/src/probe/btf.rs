//! Pure: reads BTF, the kernel's description of its own types, as far as finrace needs it: members
//! of structures, parameters of tracepoints, names of functions.
//! Format: <https://docs.kernel.org/6.12/bpf/btf.html>.

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};

const MAGIC: u32 = 0xEB9F;
/// Bytes of the header's fields that are read here; a longer header is legal.
const HEADER_BYTES: usize = 24;
const POINTER_BYTES: u64 = 8;
/// Longest chain of typedefs and qualifiers (or of arrays) that is followed; this also ends cycles.
const MAX_CHAIN: usize = 32;

/// BTF kinds that are referred to by name; the rest are only skipped.
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

/// Where a member lies, in bits from the start of the requested struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    pub offset: u64,
    /// The width of a bit-field, otherwise that of the type.
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
    /// Where the part after the common one begins.
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
        self.func_id(name).is_some()
    }

    /// The id of a function.
    pub fn func_id(&self, name: &str) -> Option<u32> {
        self.id(kind::FUNC, name)
    }

    /// The id of a struct.
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        self.id(kind::STRUCT, name)
    }

    /// The number of an enumerator of `enum enumeration`, of 32 bits.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        self.named(&[kind::ENUM], enumeration).find_map(|ty| {
            let mut places = (0..usize::from(ty.vlen)).map(|index| ty.body + index * 8);
            let at =
                places.find(|at| self.u32_at(*at).is_some_and(|of| self.is_named(of, name)))?;
            self.u32_at(at + 4)
        })
    }

    fn id(&self, kind: u8, name: &str) -> Option<u32> {
        let matches = |ty: &Type| ty.kind == kind && self.is_named(ty.name, name);
        let at = self.types.iter().position(matches)?;
        u32::try_from(at + 1).ok()
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
        // Each type once: what it does not contain the first time it never contains, and cycles end.
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes BTF from C-like lines, one type each; see [`SMALL`].
    #[derive(Default)]
    pub(in crate::probe) struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        names: Vec<String>,
    }

    impl Builder {
        pub(in crate::probe) fn new(lines: &str) -> Self {
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

        pub(in crate::probe) fn bytes(&self) -> Vec<u8> {
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
        assert_eq!(btf.enumerator("color", "BLUE"), Some(4_000_000_000));
        assert_eq!(btf.enumerator("signed", "PLUS"), Some(5));
        assert_eq!(btf.enumerator("color", "GREEN"), None);
        assert_eq!(btf.enumerator("big", "HUGE"), None);
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
}
