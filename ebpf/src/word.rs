//! Classifies a write by its first bytes, where a protocol defines them, into a closed set. This happens
//! in the kernel, so that no byte of a payload leaves it. Pure; tested on the host.
//!
//! Only what a specification defines exactly is named; everything else is [`UNKNOWN`], and is judged by
//! order and habit. If the protocol's header has a length, each test also compares the length of the write,
//! so that a protocol that is not known here is hardly ever mistaken for another.

/// None of the protocols known here.
pub const UNKNOWN: u8 = 0;
/// The start of a request: an HTTP method, a RESP, memcached or SMTP command, a `MySQL` or `PostgreSQL`
/// query, HTTP/2 HEADERS.
pub const REQUEST: u8 = 1;
/// Last words: a TLS alert, GOAWAY, QUIT, Terminate, DISCONNECT, a close frame, 408, 421.
pub const FAREWELL: u8 = 2;
/// Maintains the connection, requests nothing: PING, pong, `WINDOW_UPDATE`, SETTINGS, PINGREQ, a heartbeat.
pub const CONTROL: u8 = 3;
/// A pool's test query: RESP's PING, `COM_PING`, `SELECT 1`, NOOP, version.
pub const PROBE: u8 = 4;
/// A TLS record of application data, whose content cannot be read.
pub const SEALED: u8 = 5;

/// How many bytes of a write are examined.
pub const LOOK: usize = 16;

/// A mask for the first `count` bytes of a little-endian word.
const fn first(count: u32) -> u64 {
    if count >= 8 { u64::MAX } else { (1 << (8 * count)) - 1 }
}

/// Up to eight bytes as a little-endian word.
const fn text(mut bytes: &[u8]) -> u64 {
    let mut word = 0;
    while let [rest @ .., last] = bytes {
        word = word << 8 | *last as u64;
        bytes = rest;
    }
    word
}

/// 1 if `$word` begins with `$bytes`, otherwise 0.
macro_rules! begins {
    ($word:expr, $bytes:literal) => {{
        const TEXT: u64 = text($bytes);
        const MASK: u64 = first($bytes.len() as u32);
        same($word & MASK, TEXT)
    }};
}

/// 1 if `a - b` is negative, otherwise 0. Opaque to the compiler, which would turn what follows into
/// branches: the verifiers of 5.10 and 6.1 explore both sides of each, and give up on dozens in a row.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = a;
        // Not `pure`: kept in order, these need few registers.
        // SAFETY: two instructions on two registers.
        unsafe {
            core::arch::asm!(
                "{a} -= {b}",
                "{a} >>= 63",
                a = inout(reg) value,
                b = in(reg) b,
                options(nomem, nostack),
            );
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        a.wrapping_sub(b) >> 63
    }
}

/// 1 if `a` equals `b`, otherwise 0.
#[inline(always)]
fn same(a: u64, b: u64) -> u64 {
    // Unless it is zero, the difference has its highest bit set in one of the two directions.
    (is_less(a, b) | is_less(b, a)) ^ 1
}

/// 1 if `a` is at most `b`, otherwise 0; for numbers below 2^63.
#[inline(always)]
fn at_most(a: u64, b: u64) -> u64 {
    is_less(b, a) ^ 1
}

/// Byte `INDEX` of a word.
#[inline(always)]
fn byte<const INDEX: u32>(word: u64) -> u64 {
    word >> (8 * INDEX) & 0xFF
}

/// The first answer that holds.
struct Answer(u64);

impl Answer {
    const NONE: Self = Self(UNKNOWN as u64);

    /// `holds` is 1 or 0.
    #[inline(always)]
    fn or(&mut self, holds: u64, word: u8) {
        self.or_else(holds.wrapping_neg() & u64::from(word));
    }

    #[inline(always)]
    fn or_else(&mut self, other: u64) {
        self.0 |= same(self.0, Self::NONE.0).wrapping_neg() & other;
    }
}

/// Classifies a write of `size` bytes. `a` and `b` are its first sixteen bytes as little-endian words, zero
/// past its end.
#[inline(always)]
pub fn of(a: u64, b: u64, size: u32) -> u8 {
    let size = u64::from(size);
    let mut answer = Answer(tls(a, size));
    answer.or_else(text_of_requests(a));
    answer.or_else(resp(a, b));
    answer.or_else(text_of_others(a, b, size));
    answer.or_else(postgres(a, b, size));
    answer.or_else(mysql(a, b, size));
    answer.or_else(http2(a, b, size));
    answer.or_else(short_frames(a, size));
    answer.or_else(ldap_or_amqp(a, size));
    answer.0 as u8
}

/// TLS (RFC 8446 section 5): a type, version 3.x, a length. In 1.3, an alert is application data of 19
/// bytes: two for the alert itself, one for the type, sixteen for the tag.
#[inline(never)]
fn tls(a: u64, size: u64) -> u64 {
    let mut answer = Answer::NONE;
    let is_record = same(byte::<1>(a), 3) & at_most(byte::<2>(a), 4) & at_most(6, size);
    let length = byte::<3>(a) << 8 | byte::<4>(a);
    let (is_alert, is_data) = (same(byte::<0>(a), 21), same(byte::<0>(a), 23));
    answer.or(is_record & is_alert & same(length + 5, size), FAREWELL);
    answer.or(is_record & is_data & same(length, 19) & same(size, 24), FAREWELL);
    answer.or(is_record & is_data, SEALED);
    answer.0
}

/// Requests of text protocols: HTTP/1 (RFC 9110 section 9), SMTP (RFC 5321), memcached.
#[inline(never)]
fn text_of_requests(a: u64) -> u64 {
    let mut answer = Answer::NONE;
    let is_http = begins!(a, b"GET ")
        | begins!(a, b"POST ")
        | begins!(a, b"PUT ")
        | begins!(a, b"HEAD ")
        | begins!(a, b"DELETE ")
        | begins!(a, b"PATCH ")
        | begins!(a, b"OPTIONS ");
    let is_smtp = begins!(a, b"MAIL FRO")
        | begins!(a, b"RCPT TO:")
        | begins!(a, b"EHLO ")
        | begins!(a, b"HELO ");
    let is_memcached = begins!(a, b"get ")
        | begins!(a, b"gets ")
        | begins!(a, b"set ")
        | begins!(a, b"add ")
        | begins!(a, b"incr ")
        | begins!(a, b"decr ")
        | begins!(a, b"delete ")
        | begins!(a, b"mg ");
    answer.or(is_http | is_smtp | is_memcached, REQUEST);
    answer.0
}

/// RESP (Redis, Valkey): an array of bulk strings; an array of one may be PING or QUIT.
#[inline(never)]
fn resp(a: u64, b: u64) -> u64 {
    let mut answer = Answer::NONE;
    let of_one = begins!(a, b"*1\r\n$4\r\n");
    answer.or(of_one & (begins!(b, b"PING\r\n") | begins!(b, b"ping\r\n")), PROBE);
    answer.or(of_one & (begins!(b, b"QUIT\r\n") | begins!(b, b"quit\r\n")), FAREWELL);
    let digit = byte::<1>(a);
    let is_resp = same(byte::<0>(a), u64::from(b'*'))
        & at_most(u64::from(b'1'), digit)
        & at_most(digit, u64::from(b'9'));
    answer.or(is_resp, REQUEST);
    answer.0
}

/// Text that is not a request: a server's 408 and 421, QUIT, NOOP, PING, version.
#[inline(never)]
fn text_of_others(a: u64, b: u64, size: u64) -> u64 {
    let mut answer = Answer::NONE;
    let of_six = same(size, 6);
    let is_timeout = begins!(a, b"HTTP/1.") & begins!(b, b" 408");
    let is_421 = begins!(a, b"421 ") | begins!(a, b"421-");
    let is_quit = begins!(a, b"QUIT\r\n") | begins!(a, b"quit\r\n");
    answer.or(is_timeout | is_421 | (of_six & is_quit), FAREWELL);
    let is_test = begins!(a, b"NOOP\r\n")
        | begins!(a, b"RSET\r\n")
        | begins!(a, b"PING\r\n")
        | begins!(a, b"ping\r\n");
    answer.or((of_six & is_test) | (same(size, 9) & begins!(a, b"version\r")), PROBE);
    answer.0
}

/// Whether a query is `SELECT 1`, in upper or lower case, whatever follows the number.
#[inline(always)]
fn is_select_one(sql: u64) -> u64 {
    // Upper and lower case differ only in this bit.
    const LOWER: u64 = 0x0020_2020_2020_2020 & first(6);
    same((sql | LOWER) & first(7), text(b"select ")) & same(sql >> 56, u64::from(b'1'))
}

/// `PostgreSQL`: a type, and a big-endian length that includes itself.
#[inline(never)]
fn postgres(a: u64, b: u64, size: u64) -> u64 {
    let mut answer = Answer::NONE;
    let length = byte::<1>(a) << 24 | byte::<2>(a) << 16 | byte::<3>(a) << 8 | byte::<4>(a);
    let fits = at_most(4, length) & at_most(length + 1, size);
    let is_whole = at_most(4, length) & same(length + 1, size);
    let is = |letter: u8| same(byte::<0>(a), u64::from(letter));
    answer.or(is_whole & same(size, 5) & is(b'X'), FAREWELL); // Terminate
    // A server's FATAL error: it closes the connection.
    answer.or(fits & is(b'E') & same(a >> 40, text(b"SFA")), FAREWELL);
    answer.or(is_whole & same(size, 5) & is(b'S'), PROBE); // Sync
    // A query that is empty, `;` or `SELECT 1`.
    let is_test = at_most(size, 7) | (at_most(size, 15) & is_select_one(a >> 40 | b << 24));
    answer.or(is_whole & is(b'Q') & is_test, PROBE);
    answer.or(is_whole & is(b'Q'), REQUEST);
    answer.or(fits & (is(b'P') | is(b'B') | is(b'C')), REQUEST); // Parse, Bind, Close
    answer.0
}

/// `MySQL`: a little-endian length, a sequence number, a command.
#[inline(never)]
fn mysql(a: u64, b: u64, size: u64) -> u64 {
    let mut answer = Answer::NONE;
    let is_whole = same((a & 0x00FF_FFFF) + 4, size);
    let is_first = is_whole & same(byte::<3>(a), 0);
    let is = |command: u64| is_first & same(byte::<4>(a), command);
    answer.or(is(0x01) & same(size, 5), FAREWELL); // COM_QUIT
    answer.or(is(0x0E) & same(size, 5), PROBE); // COM_PING
    answer.or(is(0x1F) & same(size, 5), CONTROL); // COM_RESET_CONNECTION
    answer.or(is(0x03) & at_most(size, 14) & is_select_one(a >> 40 | b << 24), PROBE);
    answer.or(is(0x03) | is(0x16) | is(0x17), REQUEST); // COM_QUERY, COM_STMT_PREPARE, _EXECUTE
    // A server's error 4031, since 8.0.24: it closes the connection.
    answer.or(is(0xFF) & same(a >> 40 & 0xFFFF, 4031), FAREWELL);
    answer.0
}

/// HTTP/2 (RFC 9113 section 4.1): a 24-bit length, a type, flags, a stream identifier.
#[inline(never)]
fn http2(a: u64, b: u64, size: u64) -> u64 {
    let mut answer = Answer::NONE;
    let length = byte::<0>(a) << 16 | byte::<1>(a) << 8 | byte::<2>(a);
    let stream = byte::<5>(a) << 24 | byte::<6>(a) << 16 | byte::<7>(a) << 8 | byte::<0>(b);
    let of_all = same(stream, 0);
    let is = |kind: u64| at_most(length + 9, size) & same(byte::<3>(a), kind);
    answer.or(is(7) & of_all & at_most(8, length), FAREWELL); // GOAWAY
    answer.or(is(6) & of_all & same(length, 8), CONTROL); // PING
    answer.or(is(8) & same(length, 4), CONTROL); // WINDOW_UPDATE
    // SETTINGS: an acknowledgement, or up to three settings; more would be the start of a connection.
    let of_settings = same(length, 0) | same(length, 6) | same(length, 12) | same(length, 18);
    answer.or(is(4) & of_all & of_settings, CONTROL);
    answer.or(is(1) & (of_all ^ 1) & at_most(1, length), REQUEST); // HEADERS
    answer.0
}

/// WebSocket (RFC 6455 section 5.2) and MQTT.
#[inline(never)]
fn short_frames(a: u64, size: u64) -> u64 {
    let mut answer = Answer::NONE;
    let (kind, second) = (byte::<0>(a), byte::<1>(a));
    // Control frames: a client's are masked, a server's are not.
    let body = second & 0x7F;
    let fits = at_most(body, 125) & same(body + 2 + (second >> 7) * 4, size);
    answer.or(same(kind, 0x88) & fits, FAREWELL);
    answer.or((same(kind, 0x89) | same(kind, 0x8A)) & fits, CONTROL);
    // DISCONNECT; PINGREQ and PINGRESP.
    let is_mqtt = same(size, 2) & same(second, 0);
    answer.or(is_mqtt & same(kind, 0xE0), FAREWELL);
    answer.or(is_mqtt & (same(kind, 0xC0) | same(kind, 0xD0)), CONTROL);
    answer.0
}

/// LDAP (RFC 4511): a message with an id and an operation. AMQP 0-9-1: a heartbeat, which is an empty frame;
/// every frame ends with 0xCE.
#[inline(never)]
fn ldap_or_amqp(a: u64, size: u64) -> u64 {
    let mut answer = Answer::NONE;
    let is_ldap =
        same(byte::<0>(a), 0x30) & same(byte::<1>(a) + 2, size) & same(a >> 16 & 0xFFFF, 0x0102);
    let is = |operation: u64| is_ldap & same(byte::<5>(a), operation);
    answer.or(is(0x42), FAREWELL); // unbind
    answer.or(is(0x60) | is(0x63) | is(0x4A) | is(0x66) | is(0x68) | is(0x6E), REQUEST);
    answer.or(same(size, 8) & same(a, 0xCE00_0000_0000_0008), CONTROL);
    answer.0
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;

    use super::*;

    /// Classifies a write of these bytes.
    fn word(bytes: &[u8]) -> u8 {
        let mut start = [0; LOOK];
        let seen = bytes.len().min(LOOK);
        start[..seen].copy_from_slice(&bytes[..seen]);
        let [a, b] = [0, 8].map(|at| u64::from_le_bytes(start[at..at + 8].try_into().unwrap()));
        of(a, b, bytes.len() as u32)
    }

    #[test]
    fn protocols_say_what_they_write() {
        let check = |expected: u8, all: &[&[u8]]| {
            for bytes in all {
                assert_eq!(word(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
            }
        };
        check(
            REQUEST,
            &[
                b"GET / HTTP/1.1\r\n\r\n",
                b"POST /a HTTP/1.1\r\n",
                b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
                b"get key\r\n",
                b"MAIL FROM:<a@b>\r\n",
                b"Q\0\0\0\x0eSELECT 22\0",
                b"P\0\0\0\x08\0x\0\0\0B\0\0\0\x04",
                b"\x09\0\0\0\x03SELECT a",
                b"\0\0\x05\x01\x25\0\0\0\x03hpack",
                b"\x30\x0c\x02\x01\x02\x63\x07abcdefg",
            ],
        );
        check(
            FAREWELL,
            &[
                b"\x15\x03\x03\0\x02\x01\0",
                &[&b"\x17\x03\x03\0\x13"[..], &[7; 19]].concat(),
                &[&b"\x15\x03\x03\0\x1a"[..], &[7; 26]].concat(),
                b"*1\r\n$4\r\nQUIT\r\n",
                b"quit\r\n",
                b"QUIT\r\n",
                b"X\0\0\0\x04",
                b"\x01\0\0\0\x01",
                b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0",
                b"\x88\x82abcd\x03\xe8",
                b"\x88\x02\x03\xe8",
                b"\xe0\0",
                b"\x30\x05\x02\x01\x03\x42\0",
                b"HTTP/1.1 408 Request Timeout\r\n",
                b"421 4.4.2 timeout\r\n",
                b"E\0\0\0\x0cSFATAL\0abc\0",
                b"\x07\0\0\0\xff\xbf\x0f#08S",
            ],
        );
        check(
            CONTROL,
            &[
                b"\0\0\x08\x06\0\0\0\0\0abcdefgh",
                b"\0\0\x04\x08\0\0\0\0\x01\0\0\x10\0",
                b"\0\0\0\x04\x01\0\0\0\0",
                b"\x89\x80abcd",
                b"\x8a\0",
                b"\xc0\0",
                b"\xd0\0",
                b"\x08\0\0\0\0\0\0\xce",
            ],
        );
        check(
            PROBE,
            &[
                b"*1\r\n$4\r\nPING\r\n",
                b"PING\r\n",
                b"NOOP\r\n",
                b"version\r\n",
                b"Q\0\0\0\x0dSELECT 1\0",
                b"Q\0\0\0\x06;\0",
                b"\x01\0\0\0\x0e",
                b"\x09\0\0\0\x03select 1",
            ],
        );
        check(SEALED, &[&[&b"\x17\x03\x03\0\x40"[..], &[7; 64]].concat()]);
        check(
            UNKNOWN,
            &[
                b"",
                b"x",
                &[b'x'; 27],
                &[0; 32],
                &[0xFF; 40],
                b"HTTP/1.1 200 OK\r\n",
                b"\x16\x03\x01\0\x05hello",
                // A header alone, or with a length that does not match.
                b"\x15\x03\x03\0\x02\x01\0more",
                b"QUIT\r\nMAIL",
                b"X\0\0\0\x05",
                b"\x01\0\0\0\x01more",
                b"\x88\x82abcd\x03",
                b"\xe0\0\0",
                b"{\"event\":\"log\"}\n",
            ],
        );
    }

    #[test]
    fn any_bytes_are_one_of_the_set() {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let known = (0..200_000)
            .filter(|_| {
                let (a, b, size) = (next(), next(), next() as u32 % 2_000);
                let word = of(a, b, size);
                assert!(word <= SEALED);
                word != UNKNOWN
            })
            .count();
        // Random bytes are hardly ever mistaken for a protocol.
        assert!(known < 200, "{known} of 200,000");
    }
}
